"""Tables for people: stored results with the command, commit and hardware that made them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import DataError
from ..experiments import statistics
from ..structures.storage import replacing
from . import provenance

UNITS = {
    "energy_mae": ("energy MAE", "meV", 1e3),
    "energy_rmse": ("energy RMSE", "meV", 1e3),
    "forces_mae": ("force MAE", "meV/Å", 1e3),
    "forces_rmse": ("force RMSE", "meV/Å", 1e3),
}


def store(
    table: pd.DataFrame, name: str, command: str, folder: str | Path = "data/results", **notes: Any
) -> Path:
    """Write ``table`` to folder/name.csv and how it was made to name.json (command, commit,
    hardware, versions, notes).
    """
    folder = Path(folder)
    with replacing(folder / f"{name}.csv") as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    how = {"command": command, **provenance.made_by(), **notes}
    with replacing(folder / f"{name}.json") as temporary:
        temporary.write_text(json.dumps(how, indent=1, default=str, ensure_ascii=False) + "\n")
    return folder / f"{name}.csv"


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
    for _, entry in summary[summary["metric"].isin(metrics)].iterrows():
        label, unit, scale = UNITS[entry["metric"]]
        head = {column: entry[column] for column in (*by, "arm")}
        row = rows.setdefault(
            tuple(head.values()),
            {**head, "seeds": entry["seeds"], "time (s)": f"{entry['seconds']:.0f}"},
        )
        text = f"{scale * entry['mean']:.1f}"
        if pd.notna(entry["low"]):
            text += f" ± {scale * (entry['high'] - entry['mean']):.1f}"
        if pd.notna(entry.get("change_%")):
            text += f" ({entry['change_%']:+.0f} %)"
        row[f"{label} ({unit})"] = text
    return pd.DataFrame(rows.values())


def across(summary: pd.DataFrame, metric: str = "forces_mae") -> pd.DataFrame:
    """One metric of a summary with an arm per column: a row per label budget (and experiment),
    "mean ± half width (change)", unit in the head.
    """
    label, unit, _ = UNITS[metric]
    title = f"{label} ({unit})"
    rows = wide(summary, [metric])
    arms = list(dict.fromkeys(rows["arm"]))  # in their order
    by = [c for c in rows.columns if c not in ("arm", "seeds", "time (s)", title)]
    table = rows.pivot(index=by, columns="arm", values=title)[arms].reset_index().fillna("")
    table.columns.name = None
    return table.rename(columns={by[-1]: f"{by[-1]}; {title}"})


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
    for _, curve in slopes.iterrows():
        row = {column: curve[column] for column in (*by, "arm", "seeds")}
        row["slope"] = (
            f"{curve['slope']:.2f} ({curve['slope_low']:.2f} to {curve['slope_high']:.2f})"
        )
        budgets = saved
        if len(saved):
            same = (saved["arm"] == curve["arm"]) & (saved[by] == curve[by]).all(axis=1)
            budgets = saved[same]
        for _, budget in budgets.iterrows():
            row[f"worth of {budget['labels']} labels"] = statistics.needs_in_words(budget)
        rows.append(row)
    return pd.DataFrame(rows).fillna("")


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """`statistics.effects` as people read it: an arm per row (and experiment), "change (low to
    high)" in % per metric and baseline; what the interval tells from 0 is in bold.
    """
    by = list(table.columns[: list(table.columns).index("arm")])
    rows: dict[tuple, dict[str, Any]] = {}
    for _, effect in table.iterrows():
        head = {column: effect[column] for column in (*by, "arm")}
        row = rows.setdefault(tuple(head.values()), {**head, "seeds": effect["seeds"]})
        text = f"{effect['change_%']:+.0f} %"
        if pd.notna(effect["change_low_%"]):
            text += f" ({effect['change_low_%']:+.0f} to {effect['change_high_%']:+.0f})"
        if effect["effect"] != "unclear":
            text = f"**{text}**"
        label, *_ = UNITS[effect["metric"]]
        row[f"{label} against {effect['against']}"] = text
    return pd.DataFrame(rows.values()).fillna("")


def markdown(table: pd.DataFrame) -> str:
    """A GitHub table."""
    rows = [list(table.columns), ["---"] * len(table.columns), *table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)
