"""Tables for people: stored results with the command, commit and hardware that made them, and
Markdown for README and notebooks.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError
from ..experiments import statistics
from ..structures.outputs import Kind, check, is_a, is_provenance, plain_name, read_json
from ..structures.storage import replacing
from . import provenance, published_numbers

UNITS = {
    "energy_mae": ("energy MAE", "meV", 1e3),
    "energy_rmse": ("energy RMSE", "meV", 1e3),
    "forces_mae": ("force MAE", "meV/Å", 1e3),
    "forces_rmse": ("force RMSE", "meV/Å", 1e3),
}


def _is_origin(path: Path) -> bool:
    about = read_json(path)
    return is_provenance(about) and "rows" not in about  # which a benchmark has


ORIGIN = Kind("how `potkit` made a stored result", _is_origin)
RESULT = Kind(
    "a stored result of `potkit` with its origin beside it",
    lambda path: is_a(ORIGIN, path.with_suffix(".json")),
)


def check_results(folder: str | Path, *names: str) -> None:
    """Raise DataError where `store` could not write the results ``names``, ConfigError for a name
    that is no plain one.
    """
    for name in names:
        plain_name(name, "result")
        check(Path(folder) / f"{name}.csv", RESULT)
        check(Path(folder) / f"{name}.json", ORIGIN)


def store(
    table: pd.DataFrame, name: str, command: str, folder: str | Path = "data/results", **notes: Any
) -> Path:
    """Write ``table`` to folder/name.csv and how it was made to name.json (command, commit,
    hardware, versions, notes).

    An earlier result of the name is replaced; raises as `check_results` does.
    """
    check_results(folder, name)
    path = Path(folder) / f"{name}.csv"
    how = {"command": command, **provenance.made_by(), **notes}
    # both are written before either is moved; then the origin first, which says whose the table is
    with (
        replacing(path, RESULT) as new_table,
        replacing(path.with_name(f"{name}.json"), ORIGIN) as new_origin,
    ):
        table.to_csv(new_table, index=False, float_format="%.6g")
        new_origin.write_text(json.dumps(how, indent=1, default=str, ensure_ascii=False) + "\n")
    return path


def stored(name: str, folder: str | Path = "data/results") -> tuple[pd.DataFrame, dict[str, Any]]:
    """The table and the provenance that `store` wrote. Raises DataError if there is none."""
    path = Path(folder) / f"{name}.csv"
    if not path.is_file():
        raise DataError(f"{path}: no such stored result")
    return pd.read_csv(path), json.loads(path.with_suffix(".json").read_text())


def wide(
    summary: pd.DataFrame,
    metrics: Sequence[str] = ("forces_mae", "energy_mae"),
    by: Sequence[str] | None = None,
) -> pd.DataFrame:
    """The summary of `statistics.summarise` as people read it: an arm per row, "mean ± half
    width (change)" per metric, with units.
    """
    by = statistics.grouping(summary) if by is None else by
    rows: dict[tuple, dict[str, Any]] = {}
    for _, r in summary[summary["metric"].isin(metrics)].iterrows():
        label, unit, scale = UNITS[r["metric"]]
        key = (*[r[b] for b in by], r["arm"])
        row = rows.setdefault(
            key,
            {
                **{b: r[b] for b in by},
                "arm": r["arm"],
                "seeds": r["seeds"],
                "time (s)": f"{r['seconds']:.0f}",
            },
        )
        text = f"{scale * r['mean']:.1f}"
        if pd.notna(r["low"]):
            text += f" ± {scale * (r['high'] - r['mean']):.1f}"
        if pd.notna(r.get("change_%")):
            text += f" ({r['change_%']:+.0f} %)"
        row[f"{label} ({unit})"] = text
    return pd.DataFrame(rows.values())


def across(summary: pd.DataFrame, metric: str = "forces_mae") -> pd.DataFrame:
    """One metric of a summary with an arm per column: a row per label budget (and experiment),
    "mean ± half width (change)", unit in the head.
    """
    label, unit, _ = UNITS[metric]
    rows = wide(summary, [metric])
    by = [c for c in rows.columns if c not in ("arm", "seeds", "time (s)", f"{label} ({unit})")]
    made = (
        rows.pivot(index=by, columns="arm", values=f"{label} ({unit})")[
            list(dict.fromkeys(rows["arm"]))
        ]
        .reset_index()
        .fillna("")
    )
    made.columns.name = None
    return made.rename(columns={by[-1]: f"{by[-1]}; {label} ({unit})"})


def curves(runs: pd.DataFrame, metric: str = "forces_mae") -> pd.DataFrame:
    """Learning curves as people read them: an arm per row (and experiment, in a grid), its slope,
    and what each budget is worth.

    Columns: slope with its interval, and per label budget how many labels training from scratch
    needs for the same error.
    """
    by = [b for b in statistics.grouping(runs) if b != "labels"]
    slopes = statistics.learning_curves(runs, metric, by)
    saved = statistics.labels_saved(runs, metric, by)
    rows = []
    for _, r in slopes.iterrows():
        slope = f"{r['slope']:.2f} ({r['slope_low']:.2f} to {r['slope_high']:.2f})"
        row = {**{b: r[b] for b in by}, "arm": r["arm"], "seeds": r["seeds"], "slope": slope}
        own = (
            saved[(saved["arm"] == r["arm"]) & (saved[by] == r[by]).all(axis=1)]
            if len(saved)
            else saved
        )
        for _, s in own.iterrows():
            row[f"worth of {s['labels']} labels"] = statistics.needs_in_words(s)
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """`statistics.effects` as people read it: an arm per row (and experiment), "change (low to
    high)" in % per metric and baseline; what the interval tells from 0 is in bold.
    """
    by = list(table.columns[: list(table.columns).index("arm")])
    rows: dict[tuple, dict[str, Any]] = {}
    for _, r in table.iterrows():
        row = rows.setdefault(
            (*[r[b] for b in by], r["arm"]),
            {**{b: r[b] for b in by}, "arm": r["arm"], "seeds": r["seeds"]},
        )
        text = f"{r['change_%']:+.0f} %"
        if pd.notna(r["change_low_%"]):
            text += f" ({r['change_low_%']:+.0f} to {r['change_high_%']:+.0f})"
        row[f"{UNITS[r['metric']][0]} against {r['against']}"] = (
            f"**{text}**" if r["effect"] != "unclear" else text
        )
    return pd.DataFrame(rows.values()).fillna("")


def markdown(table: pd.DataFrame) -> str:
    """A GitHub table."""
    head = [str(c) for c in table.columns]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += [
        "| " + " | ".join(str(v) for v in row) + " |" for row in table.itertuples(index=False)
    ]
    return "\n".join(lines)


# benchmark -> column of its rows -> title, factor and format in a table for people
BENCHES = {
    "networks": {
        "network": ("network", None, ""),
        "parameters": ("parameters", 1, ",.0f"),
        "supervised_ms": ("step with forces (ms)", 1, ".0f"),
        "denoise_ms": ("denoising step (ms)", 1, ".0f"),
        "labels": ("structures", 1, ".0f"),
        "energy_mae": ("energy MAE (meV)", 1e3, ".0f"),
        "forces_mae": ("force MAE (meV/Å)", 1e3, ".0f"),
    },
    "step": {
        "case": ("case", None, ""),
        "implementation": ("implementation", None, ""),
        "precision": ("precision", None, ""),
        "median_s": ("time (s)", 1, ".3g"),
        "ratio": ("times as fast", 1, ".2f"),
        "ratio_low": ("lower quartile", 1, ".2f"),
        "ratio_high": ("upper quartile", 1, ".2f"),
        "peak_mb": ("peak memory (MB)", 1, ".0f"),
    },
    "scaling": {
        "sweep": ("sweep", None, ""),
        "value": ("size", 1, ",.0f"),
        "atoms": ("atoms in the batch", 1, ",.0f"),
        "edges": ("edges", 1, ",.0f"),
        "median_s": ("time (s)", 1, ".3g"),
        "us_per_atom": ("time per atom (µs)", 1, ".3g"),
        "kb_per_atom": ("memory per atom (kB)", 1, ".3g"),
        "time_exponent": ("time ∝ size^", 1, ".2f"),
        "memory_exponent": ("memory ∝ size^", 1, ".2f"),
    },
    "epoch": {
        "case": ("network", None, ""),
        "preset": ("preset", None, ""),
        "precision": ("precision", None, ""),
        "batch": ("batch", 1, ".0f"),
        "structures": ("structures", 1, ",.0f"),
        "median_s": ("time (s)", 1, ".3g"),
        "per_second": ("structures per second", 1, ",.0f"),
        "gpu_busy": ("GPU busy (%)", 100, ".0f"),
    },
}
BENCHES["infer"] = BENCHES["neighbors"] = BENCHES["data"] = BENCHES["step"]


def measured(name: str, folder: str | Path = "data/results") -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table that `potkit bench NAME --json` wrote, as people read it, and its provenance.
    Raises DataError if there is none.
    """
    path = Path(folder) / f"bench-{name}.json"
    if name not in BENCHES or not path.is_file():
        raise DataError(f"{path}: no such stored benchmark")
    how = json.loads(path.read_text())
    rows = []
    for row in how.pop("rows"):
        shown = {}
        for column, (title, factor, form) in BENCHES[name].items():
            value = row.get(column)
            shown[title] = (
                ""
                if value is None
                else str(value)
                if factor is None
                else format(factor * value, form)
            )
        rows.append(shown)
    table = pd.DataFrame(rows)
    return table.loc[:, (table != "").any()], how


def printed(network: str) -> pd.DataFrame:
    """The papers' changes by pretraining for a network (by the papers' name for it), all labels,
    as people read them.
    """
    rows = published_numbers.changes()
    rows = rows[
        (rows.model == network)
        & (rows.labels == "all")
        & ((rows.metric == "MAE") | (rows.paper == "masked"))
    ]
    # their averages are printed too, or follow
    rows = rows[~rows.data.str.startswith("rMD17 ") & (rows.data != "RPBE and TIP3P")]
    rows = rows.assign(
        change=[f"{v:+.0f} %" for v in rows.computed], what=rows.quantity + " " + rows.metric
    )
    return rows[["paper", "table", "data", "arm", "what", "change"]].rename(
        columns={"arm": "pretraining", "change": "change against scratch"}
    )


def fill(text: str, folder: str | Path = "data/results") -> str:
    """``text`` with what stands between ``<!-- results: NAME -->`` and ``<!-- end -->`` replaced by
    the stored table NAME and its origin;
    likewise ``<!-- across: NAME -->`` with an arm per column (a table for forces, one for
    energies), ``<!-- effects: NAME -->`` with the changes over all label budgets, ``<!-- bench:
    NAME -->`` by the stored benchmark NAME, and ``<!-- papers: NETWORK -->`` by what the papers
    print.
    """

    def block(match: re.Match) -> str:
        kind, name = match[1], match[2]
        if kind == "papers":
            return f"<!-- papers: {name} -->\n{markdown(printed(name))}\n<!-- end -->"
        table, how = measured(name, folder) if kind == "bench" else stored(name, folder)
        origin = f"Made by `{how['command']}` on {how['hardware']}, commit {how['commit']}."
        if kind == "across":
            shown = "\n\n".join(
                markdown(across(table, metric)) for metric in ("forces_mae", "energy_mae")
            )
        else:
            shown = markdown(
                {"bench": lambda t: t, "effects": effects, "results": wide}[kind](table)
            )
        return f"<!-- {kind}: {name} -->\n{shown}\n\n{origin}\n<!-- end -->"

    return re.sub(
        r"<!-- (results|across|effects|bench|papers): (\S+) -->\n.*?<!-- end -->",
        block,
        text,
        flags=re.DOTALL,
    )
