"""The generated parts of README: stored results, benchmarks and printed numbers between markers.

`fill` replaces what stands between the markers, so that no number in a page is typed by hand.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError
from ..experiments import audit, planning, statistics
from ..structures.outputs import Kind
from ..structures.storage import replacing
from ..training import pretrained
from . import at_scale, audits, paper_map, paper_settings, published_numbers, sentences
from .tables import MARK, across, markdown, read, spreads, standings, stored, wide
from .tables import effects as effects_in_words

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
# finetune-xeon: of another machine
_LIKE_STEP = (
    "infer",
    "neighbors",
    "data",
    "finetune",
    "finetune-xeon",
    "finetune-nequip",
    "evaluate",
    "start",
)
for _name in _LIKE_STEP:
    BENCHES[_name] = BENCHES["step"]
for _name in ("md", "md-small"):
    BENCHES[_name] = {
        **BENCHES["step"],
        "median_s": ("time (s)", 1, ".3g"),
        "ms_per_step": ("a step (ms)", 1, ".2f"),
        "over_roofline": ("times its products", 1, ".1f"),
    }


def _benchmark(name: str, folder: str | Path) -> dict[str, Any]:
    """A stored benchmark: its rows and its provenance. Raises DataError if there is none."""
    path = Path(folder) / f"bench-{name}.json"
    if name not in BENCHES or not path.is_file():
        raise DataError(f"{path}: no such stored benchmark")
    return json.loads(path.read_text())


def measured(name: str, folder: str | Path = "data/results") -> tuple[pd.DataFrame, dict[str, Any]]:
    """A table that `potkit bench NAME --json` wrote, as people read it, and its provenance.
    Raises DataError if there is none.
    """
    how = _benchmark(name, folder)
    rows = []
    for row in how.pop("rows"):
        shown = {}
        for column, (title, factor, form) in BENCHES[name].items():
            value = row.get(column)
            if value is None:
                shown[title] = ""
            elif factor is None:
                shown[title] = str(value)
            else:
                shown[title] = format(factor * value, form)
        rows.append(shown)
    table = pd.DataFrame(rows)
    return table.loc[:, (table != "").any()], how


def fastest(name: str, folder: str | Path = "data/results") -> pd.DataFrame:
    """Who is fastest in each case of a stored benchmark, as people read it (`standings`)."""
    table = standings(pd.DataFrame(_benchmark(name, folder)["rows"]))
    return pd.DataFrame(
        {
            "case": table["case"],
            "fastest": table["fastest"],
            "fastest other": table["fastest_other"],
            "potkit is times as fast": [f"{v:.2f}" for v in table["speedup"]],
        }
    )


def printed(network: str) -> pd.DataFrame:
    """The papers' changes by pretraining for a network (by the papers' name for it), all labels,
    as people read them.
    """
    rows = published_numbers.changes()
    comparable = (rows.metric == "MAE") | (rows.paper == "masked")
    rows = rows[(rows.model == network) & (rows.labels == "all") & comparable]
    # their averages are printed too, or follow
    rows = rows[~rows.data.str.startswith("rMD17 ") & (rows.data != "RPBE and TIP3P")]
    rows = rows.assign(
        change=[f"{v:+.0f} %" for v in rows.computed], what=rows.quantity + " " + rows.metric
    )
    return rows[["paper", "table", "data", "arm", "what", "change"]].rename(
        columns={"arm": "pretraining", "change": "change against scratch"}
    )


def settings(how: dict[str, Any]) -> pd.DataFrame:
    """What a stored comparison trained, a row per part of its grid: data, steps, batch and rate.

    ``how`` is the provenance that `stored` returns. Raises DataError for one without settings, such
    as a notebook's table.
    """
    if "experiment" not in how:
        raise DataError(f"`{how['command']}`: its table has no settings of an experiment beside it")
    rows = []
    for part in _parts(how):
        rows.append(
            {
                **part.get("grid", {}),
                "pretrained on": _data_name(part.get("pretrain_on")),
                "pretraining": _training(part["pretrain"]),
                "fine-tuned on": _data_name(part["train"]),
                "fine-tuning": _training(part["finetune"], part.get("search")),
                "labels": ", ".join(map(str, part["labels"])),
                "seeds": len(part["seeds"]),
            }
        )
    return pd.DataFrame(rows)


def _parts(how: dict[str, Any]) -> list[dict[str, Any]]:
    """The settings of each experiment of a grid; a single one is stored without a list."""
    parts = how["experiment"]
    return parts if isinstance(parts, list) else [parts]


def _data_name(data: dict[str, Any] | None) -> str:
    """The data sets of an experiment by their names, or by their files' last two parts."""
    if data is None:
        return "–"
    sets = [data["data"]] if isinstance(data["data"], str) else data["data"]
    return " + ".join("/".join(Path(name).parts[-2:]) for name in sets)


def _training(config: dict[str, Any], searched: Mapping[str, Any] | None = None) -> str:
    if "steps" not in config:
        return "–"
    rate = f", rate {config['lr']:g}" if "lr" in config else ""
    if "lr" in (searched or {}):  # what an arm runs with is chosen for it
        rate = ", rate searched for each arm"
    return f"{config['steps']} steps of {config['batch_size']}{rate}"


def studies(names: Sequence[str], folder: str | Path = "data/results") -> pd.DataFrame:
    """The stored comparisons ``names`` side by side, a row per pretraining objective and network.

    Columns: how long each trained, and changes of the force error over all label budgets with 95 %
    intervals: of the pretrained arm and of longer training, both against scratch, and of scratch's
    own error from the fewest to the most labels, seed by seed; "–" for a comparison without longer
    training, or with one label budget. Raises DataError where a table is missing.
    """
    rows = []
    for name in names:
        summary, how = stored(name, folder)
        runs, _ = stored(f"{name}-runs", folder)
        effects, _ = stored(f"{name}-effects", folder)
        effects = effects[(effects["metric"] == "forces_mae") & (effects["against"] == "scratch")]
        for part in _parts(how):
            grid = part.get("grid", {})
            errors = _of_part(summary[summary["metric"] == "forces_mae"], grid)
            scratch = errors.loc[errors["arm"] == "scratch", "labels"].sort_values().tolist()
            changes = _of_part(effects, grid).set_index("arm")
            for arm, objective in part["arms"].items():
                if "objective" not in objective or arm not in changes.index:
                    continue  # a variant of another arm; RESULTS.md has it
                longer, several = "scratch-longer" in changes.index, len(scratch) > 1
                rows.append(
                    {
                        "study": name,
                        # without a grid there is one network, and the settings name it
                        "network": " ".join(map(str, grid.values())) or part["model"]["name"],
                        "pretraining": f"{arm}, {part['pretrain']['steps']} steps",
                        "fine-tuning": f"{part['finetune']['steps']} steps",
                        "labels": f"{scratch[0]} to {scratch[-1]}" if several else f"{scratch[0]}",
                        "seeds": changes.loc[arm, "seeds"],
                        "pretrained": _change_in_words(changes.loc[arm]),
                        "trained longer": _change_in_words(changes.loc["scratch-longer"])
                        if longer
                        else "–",
                        "scratch, fewest → most labels": (
                            _change_in_words(_by_labels(_of_part(runs, grid), scratch))
                            if several
                            else "–"
                        ),
                    }
                )
    return pd.DataFrame(rows)


def _by_labels(runs: pd.DataFrame, labels: Sequence[int]) -> dict[str, Any]:
    """The change of scratch's force error from the first to the last of ``labels``, as
    `statistics.change`.
    """
    of_scratch = runs[(runs["arm"] == "scratch") & runs["labels"].isin([labels[0], labels[-1]])]
    ends = statistics.nested(of_scratch).pivot_table(
        index=[statistics.UNIT, statistics.DRAW], columns="labels", values="forces_mae"
    )
    logs = np.log(ends[labels[-1]] / ends[labels[0]]).dropna()
    return statistics.change(logs.groupby(level=statistics.UNIT).mean())


def _of_part(table: pd.DataFrame, grid: dict[str, Any]) -> pd.DataFrame:
    """The rows of one part of a grid."""
    return table[(table[list(grid)].astype(str) == pd.Series(grid).astype(str)).all(axis=1)]


def _change_in_words(row: Any) -> str:
    text = f"{row['change_%']:+.0f} %"
    if pd.notna(row["change_low_%"]):
        text += f" ({row['change_low_%']:+.0f} to {row['change_high_%']:+.0f})"
    return text


BLOCK = re.compile(
    r"<!-- (results|across|effects|settings|studies|bench|fastest|papers|numerics|map|departures"
    r"|audit|verdicts|test|choice|saved|learned|ensembles|calibrated"
    r"|simulations|moved|weights|convergence|power|coverage|breakdown"
    r"|astray|gains|scale|beginning): (\S+) -->\n.*?<!-- end -->",
    flags=re.DOTALL,
)


# kind of block -> ending of the stored table it is made of, and how
SENTENCES: dict[str, tuple[str, Callable[[pd.DataFrame], str]]] = {
    "verdicts": ("-effects", sentences.verdicts),
    "gains": ("-effects", sentences.gains),
    "test": ("-test", sentences.test_set),
    "breakdown": ("-breakdown", sentences.broken_down),
    "astray": ("-runs", sentences.astray),
    "choice": ("-runs", sentences.choice),
    "saved": ("-runs", sentences.saved),
    "learned": ("-runs", sentences.learned),
    "ensembles": ("-ensembles", sentences.ensembles),
    "calibrated": ("-contrasts", sentences.calibrated),
    "simulations": ("-measures", sentences.simulated),
    "moved": ("-changes", sentences.moved),
    "convergence": ("-convergence", sentences.converged),
}

# kind of block -> what follows from stored benchmarks, and from which
AT_SCALE = {
    "scale": (at_scale.plan, ("data", "step")),
    "beginning": (at_scale.beginning, ("data",)),
}

PAGE = Kind("a page with generated blocks", lambda path: BLOCK.search(path.read_text()) is not None)


def fill(text: str, folder: str | Path = "data/results") -> str:
    """``text`` with every generated block (`BLOCK`) written anew from what is stored in ``folder``.

    A block stands between ``<!-- KIND: NAME -->`` and ``<!-- end -->``; KIND is one of

    - results: the stored table NAME, an arm per row;
    - across: the same with an arm per column, a table for forces and one for energies;
    - effects: the stored changes over all label budgets;
    - settings: what the comparison NAME trained;
    - studies: several comparisons (names joined by commas) side by side;
    - bench: the stored benchmark NAME;
    - fastest: who is fastest in each of its cases, and how potkit stands to the others;
    - numerics: the spread between threads or instructions that `potkit numerics` stored as NAME;
    - audit: what each setting of the comparison NAME does to the gain, from its stored runs;
    - papers: what the papers print for the network NAME;
    - verdicts: the stored changes of the experiment NAME as sentences;
    - gains: those of the force error by denoising, cell by cell, as one sentence;
    - test: its errors on the test set, with intervals over molecules;
    - breakdown: these by molecule, size, element, and other groups of the test structures;
    - astray: its runs that ended badly, beside the medians;
    - choice: what the runs NAME on validation molecules chose;
    - saved: what labels are worth in the experiment NAME, and slopes;
    - learned: the losses of its pretrainings;
    - ensembles: how its ensembles over seeds tell their own errors;
    - calibrated: how that differs between arms, as sentences;
    - simulations: how its networks run, an arm per row;
    - moved: how that differs between arms, as sentences;
    - convergence: what more steps change in the error of scratch, as sentences;
    - power: what numbers of seeds see at the spreads NAME (in %, joined by commas);
    - coverage: what the simulations of intervals that are stored as NAME measured;
    - scale: what a pretraining of the settings NAME (structures=30000000,nodes=4) would take;
    - beginning: what each of its processes does before the first step;
    - weights: those that ship, of their cards (NAME is all);
    - map: where the items of the paper NAME (denoise, masked) are answered, with both numbers;
    - departures: from the published codes in networks or in other; settings of denoise-paper,
      masked-paper or the presets; or the notes of the shipped experiments.

    Raises DataError where NAME is not stored.
    """
    return BLOCK.sub(lambda match: _block(match[1], match[2], folder), text)


def _block(kind: str, name: str, folder: str | Path) -> str:
    if kind == "papers":
        shown = markdown(printed(name))
    elif kind == "weights":
        shown = markdown(pretrained.table())
    elif kind == "fastest":
        shown = markdown(fastest(name, folder))
    elif kind in AT_SCALE:
        follow, benches = AT_SCALE[kind]
        shown = markdown(follow(at_scale.Run.of(name), folder))
        shown += "\n\n" + at_scale.origin(*benches, folder=folder)
    elif kind == "power":
        shown = markdown(_power([float(spread) for spread in name.split(",")]))
    elif kind == "studies":
        shown = markdown(studies(name.split(","), folder))
    elif kind in SENTENCES:
        ending, say = SENTENCES[kind]
        shown = say(stored(name + ending, folder)[0])
    elif kind == "map":
        shown = markdown(paper_map.of_paper(name, folder))
    elif kind == "departures":
        shown = markdown(_departures(name))
    else:
        if kind == "bench":
            table, how = measured(name, folder)
        else:
            table, how = stored(f"{name}-runs" if kind == "audit" else name, folder)
        shown = _shown(kind, name, table, how, folder)
    return f"<!-- {kind}: {name} -->\n{shown}\n<!-- end -->"


SEEDS = (3, 5, 6, 8, 11)


def _power(spreads: Sequence[float]) -> pd.DataFrame:
    """What a comparison of so many seeds sees, by the spread (%) of log ratios between them."""
    rows = []
    for seeds in SEEDS:
        row = {"seeds": seeds}
        for spread in spreads:
            deviation = spread / 100
            half = 100 * np.expm1(planning.expected_half_width(deviation, seeds))
            told = 100 * planning.power(np.log(0.9), deviation, seeds)
            least = 100 * -np.expm1(-planning.detectable(deviation, seeds))
            row[f"spread {spread:g} %"] = (
                f"± {half:.0f} %; −10 % told in {told:.0f} %; −{least:.0f} % told in 80 %"
            )
        rows.append(row)
    return pd.DataFrame(rows)


def _covers(table: pd.DataFrame) -> pd.DataFrame:
    """The covers of simulated intervals, an interval a row, a column for each number of seeds."""
    rows = {}
    for r in table.to_dict("records"):
        row = rows.setdefault(r["interval"], {"interval": r["interval"]})
        n = str(r["n"])
        alone = n not in ("3", "5", "8", "11")
        text = f"{r['low']:.3f}"
        text += f" to {r['high']:.3f}" if r["high"] > r["low"] else ""
        row["others" if alone else f"{n} seeds"] = (
            "; ".join(filter(None, [row.get("others", ""), f"{n}: {text}"])) if alone else text
        )
        row["cases"] = min(row.get("cases", r["cases"]), r["cases"])
    columns = ["interval", *(f"{n} seeds" for n in (3, 5, 8, 11)), "others", "cases"]
    return pd.DataFrame(rows.values(), columns=columns).fillna("")


def _departures(name: str) -> pd.DataFrame:
    """What differs between here and the papers or their codes, by the kind of it."""
    if name == "networks":
        return paper_map.faults()
    if name == "other":
        return paper_map.other_faults()
    if name == "notes":
        return paper_map.notes()
    if name == "presets":
        return paper_settings.networks()
    papers = {"denoise-paper": "denoise", "masked-paper": "masked"}
    if name not in papers:
        raise DataError(
            f"a block of departures is networks, other, presets, notes or a paper, got {name}"
        )
    return paper_settings.table(papers[name])


def _shown(
    kind: str, name: str, table: pd.DataFrame, how: dict[str, Any], folder: str | Path
) -> str:
    """A stored table as Markdown, with its origin below; NAME-baselines beside it mark rows."""
    if kind == "settings":
        return markdown(settings(how))
    beside = Path(folder) / f"{name}-baselines.csv"
    trivial = read(beside) if beside.is_file() else None
    if kind == "across":
        metrics = ("forces_mae", "energy_mae")
        shown = "\n\n".join(markdown(across(table, metric, trivial)) for metric in metrics)
    elif kind == "effects":
        shown = markdown(effects_in_words(table))
    elif kind == "audit":
        shown = markdown(audits.in_words(audit.table(table)))
    elif kind == "coverage":
        shown = markdown(_covers(table))
    elif kind == "numerics":
        shown = markdown(spreads(table))
    elif kind == "results":
        shown = markdown(wide(table, baselines=trivial)) + _astray(name, folder)
    else:
        shown = markdown(table)
    if MARK in shown:
        shown += (
            f"\n\n{MARK} a larger mean error than a prediction that needs no network, in the same "
            "table."
        )
    origin = f"Made by `{how['command']}` on {how['hardware']}, commit {how['commit']}."
    return f"{shown}\n\n{origin}"


def _astray(name: str, folder: str | Path) -> str:
    """What a table of means has to say below it of runs that ended badly; "" without any."""
    path = Path(folder) / f"{name}-runs.csv"
    runs = read(path) if path.is_file() else None
    if runs is None or not len(statistics.astray(runs)):
        return ""
    head = "Runs that ended badly and draw their means, with the medians of their arms:"
    return f"\n\n{head}\n\n{sentences.astray(runs)}"


def fill_files(*paths: str | Path) -> list[Path]:
    """`fill` pages in place; returns those that changed. Raises DataError as `fill` does."""
    changed = []
    for path in map(Path, paths):
        text = path.read_text()
        filled = fill(text)
        if filled != text:
            with replacing(path, PAGE) as temporary:
                temporary.write_text(filled)
            changed.append(path)
    return changed


if __name__ == "__main__":
    for page in fill_files(*sys.argv[1:]):
        print(f"written: {page}")
