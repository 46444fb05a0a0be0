"""Tables for people: stored results with the command, commit and hardware that made them, and
Markdown for README and notebooks.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError
from ..experiments import statistics
from ..structures.array_files import first_line
from ..structures.outputs import (
    Kind,
    check,
    is_a,
    is_provenance,
    plain_name,
    read_json,
    reason,
)
from ..structures.storage import replacing
from . import provenance

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
    """The table and the provenance that `store` wrote. Raises DataError where there is none that
    can be read.
    """
    path = Path(folder) / f"{name}.csv"
    if not path.is_file():
        raise DataError(f"{path}: no such stored result")
    table, how = read(path), origin(path.with_suffix(".json"))
    if "interval" in how:  # other intervals than t: sentences on them say so
        table.attrs["interval"] = how["interval"]
    return table, how


def read(path: str | Path) -> pd.DataFrame:
    """The table in a CSV file. Raises DataError, in one line that names it, where there is none."""
    try:
        # what is missing is written as nothing; "None" or "NA" may be the name of a part of a grid
        return pd.read_csv(path, keep_default_na=False, na_values=[""])
    except (OSError, ValueError) as error:  # pandas' own errors of parsing are of the latter
        why = reason(error) if isinstance(error, OSError) else first_line(error)
        raise DataError(f"{path}: not a table in CSV ({why})") from None


def origin(path: str | Path) -> dict[str, Any]:
    """How a stored result was made. Raises DataError where its file does not say so."""
    try:
        about = read_json(Path(path))
    except (OSError, ValueError) as error:
        why = reason(error) if isinstance(error, OSError) else first_line(error)
        raise DataError(f"{path}: does not say how a stored result was made ({why})") from None
    return about


def as_stored(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` as `stored` reads it back from the file that `store` writes; but what is text stays
    text, also where it looks like a number ("16") or like nothing ("None").
    """
    if table.columns.empty:
        return table.copy()
    back = pd.read_csv(io.StringIO(table.to_csv(index=False, float_format="%.6g")))
    for name in table:
        if all(isinstance(value, str) and value for value in table[name]):
            back[name] = table[name].astype(object).to_numpy()
    return back


MARK = "†"  # beside an error that a baseline without training beats


def wide(
    summary: pd.DataFrame,
    metrics: Sequence[str] = ("forces_mae", "energy_mae"),
    by: Sequence[str] | None = None,
    baselines: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """The summary of `statistics.summarise` as people read it: an arm per row, "mean [low to high]
    (change)" per metric.

    Units stand in the columns' names. The interval is one of logarithms, so it has no single half
    width. ``baselines``: a table of `baselines.of_experiments`, whose rows follow the arms of their
    experiment and label budget; an arm with a larger mean error than one of them is marked with
    "†".
    """
    by = statistics.grouping(summary) if by is None else list(by)
    rows: dict[tuple, dict[str, Any]] = {}
    groups: dict[tuple, dict[tuple, dict[str, Any]]] = {}
    for _, r in summary[summary["metric"].isin(metrics)].iterrows():
        label, unit, scale = UNITS[r["metric"]]
        group = tuple(r[b] for b in by)
        about = {
            **dict(zip(by, group, strict=True)),
            "arm": r["arm"],
            "seeds": r["seeds"],
            "time (s)": f"{r['seconds']:.0f}",
        }
        row = groups.setdefault(group, {}).setdefault((r["arm"],), about)
        text = f"{scale * r['mean']:.1f}"
        if pd.notna(r["low"]):
            text += f" [{scale * r['low']:.1f} to {scale * r['high']:.1f}]"
        if pd.notna(r.get("change_%")):
            text += f" ({r['change_%']:+.0f} %)"
        lowest = _lowest(baselines, dict(zip(by, group, strict=True)), r["metric"])
        row[f"{label} ({unit})"] = f"{text} {MARK}" if r["mean"] > lowest else text
    for group, arms in groups.items():
        rows |= {(*group, *arm): row for arm, row in arms.items()}
        for name, values in _baselines_of(baselines, dict(zip(by, group, strict=True))).items():
            row = {**dict(zip(by, group, strict=True)), "arm": name, "seeds": "", "time (s)": ""}
            for metric, value in values.items():
                if metric in metrics:
                    label, unit, scale = UNITS[metric]
                    row[f"{label} ({unit})"] = f"{scale * value:.1f}"
            rows[(*group, name)] = row
    return (
        pd.DataFrame(rows.values()) if baselines is None else pd.DataFrame(rows.values()).fillna("")
    )


def _baselines_of(
    baselines: pd.DataFrame | None, group: dict[str, Any]
) -> dict[str, dict[str, float]]:
    """Baseline -> metric -> error for one experiment and label budget."""
    if baselines is None:
        return {}
    here = baselines
    for column, value in group.items():
        here = here[here[column] == value]
    found: dict[str, dict[str, float]] = {}
    for _, r in here.iterrows():
        found.setdefault(r["baseline"], {})[r["metric"]] = r["mean"]
    return found


def _lowest(baselines: pd.DataFrame | None, group: dict[str, Any], metric: str) -> float:
    """The smallest error of a baseline; inf without any."""
    values = [v[metric] for v in _baselines_of(baselines, group).values() if metric in v]
    return min(values, default=float("inf"))


def across(
    summary: pd.DataFrame, metric: str = "forces_mae", baselines: pd.DataFrame | None = None
) -> pd.DataFrame:
    """One metric of a summary with an arm per column: a row per label budget (and experiment).

    Each cell is "mean [low to high] (change)"; the unit is in the head. ``baselines`` as in `wide`:
    they are further columns, and "†" marks an arm that is worse than one of them.
    """
    label, unit, _ = UNITS[metric]
    column = f"{label} ({unit})"
    rows = wide(summary, [metric], baselines=baselines)
    rows = rows[rows[column] != ""]
    by = [c for c in rows.columns if c not in ("arm", "seeds", "time (s)", column)]
    made = rows.pivot(index=by, columns="arm", values=column)
    made = made[list(dict.fromkeys(rows["arm"]))].reset_index().fillna("")
    made.columns.name = None
    return made.rename(columns={by[-1]: f"{by[-1]}; {label} ({unit})"})


def curves(runs: pd.DataFrame, metric: str = "forces_mae") -> pd.DataFrame:
    """Learning curves as people read them: an arm per row (and experiment), its slope, and what
    each budget is worth.

    Columns: slope with its interval, and per label budget how many labels training from scratch
    needs for the same error; beside it, how many training from scratch for longer needs, where the
    table has that arm. "not told" where more labels are not told to help that baseline. Experiments
    with a single budget have no curve and are left out.
    """
    by = [b for b in statistics.grouping(runs) if b != "labels"]
    runs = statistics.with_budgets(runs, 2)
    slopes = statistics.learning_curves(runs, metric, by)
    baselines = [b for b in ("scratch", "scratch-longer") if b in set(slopes["arm"])]
    saved = [statistics.labels_saved(runs, metric, by, baseline=b) for b in baselines]
    rows = []
    for _, r in slopes.iterrows():
        slope = f"{r['slope']:.2f} ({r['slope_low']:.2f} to {r['slope_high']:.2f})"
        row = {**{b: r[b] for b in by}, "arm": r["arm"], "seeds": r["seeds"], "slope": slope}
        for baseline, table in zip(baselines, saved, strict=True):
            if not len(table):
                continue
            here = table[(table["arm"] == r["arm"]) & (table[by] == r[by]).all(axis=1)]
            of = "" if baseline == "scratch" else f" of {baseline}"
            for _, s in here.iterrows():
                row[f"worth of {s['labels']} labels{of}"] = statistics.needs_in_words(s)
        rows.append(row)
    table = pd.DataFrame(rows).fillna("")
    # scratch's columns, then scratch-longer's
    worth = [c for c in table if c.startswith("worth of")]
    worth = sorted(worth, key=lambda column: " of scratch-longer" in column)
    return table[[c for c in table if c not in worth] + worth]


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """`statistics.effects` as people read it: an arm per row (and experiment), "change (low to
    high)" in % per metric and baseline.

    The intervals are those of one comparison alone. In bold is what is told from 0 when all
    comparisons of the table are counted (Holm), or was declared as the primary contrast and is told
    from 0.
    Raises DataError for a table without verdicts, as older versions stored.
    """
    if "verdict" not in table:
        raise DataError(
            "a table of effects without the column 'verdict'; make it anew: potkit verify --rewrite"
        )
    by = list(table.columns[: list(table.columns).index("arm")])
    rows: dict[tuple, dict[str, Any]] = {}
    for _, r in table.iterrows():
        about = {**{b: r[b] for b in by}, "arm": r["arm"], "seeds": r["seeds"]}
        row = rows.setdefault((*[r[b] for b in by], r["arm"]), about)
        text = f"{r['change_%']:+.0f} %"
        if pd.notna(r["change_low_%"]):
            text += f" ({r['change_low_%']:+.0f} to {r['change_high_%']:+.0f})"
        told = r["verdict"] in ("better", "worse")
        column = f"{UNITS[r['metric']][0]} against {r['against']}"
        row[column] = f"**{text}**" if told else text
    return pd.DataFrame(rows.values()).fillna("")


def spreads(table: pd.DataFrame) -> pd.DataFrame:
    """`numerics.summarise` as people read it: force and energy MAE, how far seeds differ, and how
    far one seed differs between numbers of threads or sets of instructions, with 95 % intervals.
    """
    by = list(table.columns[: list(table.columns).index("arm")])
    rows = []
    for _, r in table[table["metric"].isin(["forces_mae", "energy_mae"])].iterrows():
        between = f"{r['numerics_%']:.1f} ({r['numerics_low_%']:.1f} to {r['numerics_high_%']:.1f})"
        share = f"{r['share_%']:.0f} ({r['share_low_%']:.0f} to {r['share_high_%']:.0f})"
        if pd.isna(r["numerics_low_%"]):  # Clopper & Pearson's end of a share of none
            others = 100 * (1 - 0.025 ** (1 / r["seeds"]))
            between = f"none in {r['seeds']} of {r['seeds']}; other seeds may, up to {others:.0f} %"
            share = ""
        rows.append(
            {
                **{b: r[b] for b in by},
                "arm": r["arm"],
                "error": UNITS[r["metric"]][0],
                "seeds": r["seeds"],
                "over seeds (%)": f"{r['spread_%']:.1f}",
                f"between {r['between']} (%)": between,
                "its share of the variance (%)": share,
                "largest difference (%)": f"{r['largest_%']:.0f}",
            }
        )
    return pd.DataFrame(rows)


def markdown(table: pd.DataFrame) -> str:
    """A GitHub table."""
    head = [str(c) for c in table.columns]
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += [
        "| " + " | ".join(str(v) for v in row) + " |" for row in table.itertuples(index=False)
    ]
    return "\n".join(lines)


def standings(table: pd.DataFrame) -> pd.DataFrame:
    """Who is fastest in each case of a benchmark, in float32: a row per case with
    potkit's fastest implementation, the fastest of the others, and ``speedup``, how many times as
    fast potkit is (below 1: potkit loses). NaN where there is nobody else.
    """
    rows = []
    for case, group in table[table["precision"] == "float32"].groupby("case", sort=False):
        own = group["implementation"].str.startswith("potkit")
        ours, others = (part.sort_values("median_s") for part in (group[own], group[~own]))
        if ours.empty:
            continue
        best, rival = ours.iloc[0], None if others.empty else others.iloc[0]
        lost = rival is not None and rival["median_s"] < best["median_s"]
        rows.append(
            {
                "case": case,
                "fastest": (rival if lost else best)["implementation"],
                "potkit_s": best["median_s"],
                "fastest_other": "" if rival is None else rival["implementation"],
                "other_s": float("nan") if rival is None else rival["median_s"],
                "speedup": float("nan") if rival is None else rival["median_s"] / best["median_s"],
            }
        )
    return pd.DataFrame(rows)
