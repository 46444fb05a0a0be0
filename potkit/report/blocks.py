"""The generated parts of README: stored results, benchmarks and printed numbers between markers.

`fill` replaces what stands between the markers, so that no number in a page is typed by hand.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError
from . import published_numbers
from .tables import across, effects, markdown, stored, wide

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
            if value is None:
                shown[title] = ""
            elif factor is None:
                shown[title] = str(value)
            else:
                shown[title] = format(factor * value, form)
        rows.append(shown)
    table = pd.DataFrame(rows)
    return table.loc[:, (table != "").any()], how


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
