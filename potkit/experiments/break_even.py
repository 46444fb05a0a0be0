"""When a pretraining has paid for itself: two different questions.

Equal total cost. One target, and everything is paid there: is the pretrained network better than
one trained from scratch for as much longer as pretraining cost? That is the change against
scratch-longer (`statistics.effects`), and no amount of later targets enters.

Amortised. The pretrained network is used for one target after another. Each saves labels (and
their cost), or steps of fine-tuning (and their time), and from

    N = (cost of pretraining) / (what one target saves)

targets on it is cheaper than training each from scratch to the same error. What is saved has the
interval of `statistics.labels_saved`, and its ends are turned round: the least that is saved gives
the most targets. Where nothing saved is inside the interval, N has no upper bound, and where the
pretrained arm needs more than scratch it never pays.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from ..errors import ConfigError
from . import statistics
from .arms import DOUBLED, LONGER

ANSWERS = ("pretrain_hours", "saved_hours", "targets", "targets_low", "targets_high")


def targets(
    cost: float,  # of a pretraining
    saved: float,  # by one target, in the same unit
) -> float:
    """From how many targets on a pretraining pays; inf where a target saves nothing."""
    return cost / saved if saved > 0 else float("inf")


def in_labels(
    runs: pd.DataFrame,
    label_hours: float,
    metric: str = "forces_mae",
    baseline: str = "scratch",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """How many targets pay for each arm's pretraining by the labels they save, a row per arm and
    label budget.

    ``label_hours``: the cost of one label, in the hours in which the runs' pretrainings are
    counted. Columns beside those of `statistics.labels_saved`: pretrain_hours, saved_hours (of one
    target), targets with targets_low and targets_high. Bounds outside the budgets stay open: 0
    below, inf above. NaN where the baseline is not limited by labels. Arms whose runs paid for no
    pretraining (scratch-longer, the check of convergence, given weights) have no row. Raises
    ConfigError for a cost that is not above 0, or runs that do not say what pretraining took.
    """
    if not label_hours > 0:
        raise ConfigError(f"label_hours must be above 0, got {label_hours}")
    saved = statistics.labels_saved(runs, metric, baseline=baseline, confidence=confidence)
    return _paid(saved, runs, label_hours)


def in_steps(
    runs: pd.DataFrame,
    metric: str = "forces_mae",
    baseline: str = "scratch",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """How many targets pay for each arm's pretraining by the steps of fine-tuning they save, at
    each label budget.

    ``runs`` must have fine-tunings of several lengths (column "steps", such as a grid over
    finetune.steps) at the same label budget: the baseline's errors over them are its curve. A
    step's cost is the baseline's mean time of one. Columns as in `in_labels`, where "steps" stands
    for "labels" and "budget" is the label budget. Raises ConfigError for runs of one length.
    """
    # these have other lengths than the arms that are compared
    plain = runs[~runs["arm"].isin([LONGER, DOUBLED])]
    if plain["steps"].nunique() < 2:
        raise ConfigError(
            f"steps saved need fine-tunings of several lengths, all have {plain['steps'].iloc[0]}"
        )
    by = [c for c in statistics.grouping(runs) if c != "labels"]
    of_baseline = plain[plain["arm"] == baseline]
    # columns of a grid that do nothing but give the steps would tell the lengths apart
    by = [c for c in by if of_baseline.groupby(c)["steps"].nunique().max() > 1]
    tables = []
    for budget, part in plain.groupby("labels", sort=False):
        as_labels = part.assign(labels=part["steps"])
        as_labels = as_labels[[*by, *(c for c in as_labels if c not in by)]]
        saved = statistics.labels_saved(as_labels, metric, by, baseline, confidence)
        base = part[part["arm"] == baseline]
        step_hours = float((base["seconds"] / base["steps"]).mean() / 3600)
        paid = _paid(saved, as_labels, step_hours)
        if not len(paid):
            continue
        paid["why"] = paid["why"].str.replace("labels", "steps").str.replace("label ", "step ")
        paid.insert(0, "budget", budget)
        tables.append(paid.rename(columns={"labels": "steps"}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _paid(saved: pd.DataFrame, runs: pd.DataFrame, unit_hours: float) -> pd.DataFrame:
    """``saved`` (of `statistics.labels_saved`) with what one target saves and how many pay, of arms
    that paid for a pretraining.
    """
    if "pretrain_seconds" not in runs:
        raise ConfigError("the runs do not say what pretraining took (column pretrain_seconds)")
    rows: list[dict[str, Any]] = []
    columns = list(saved.columns)
    if not len(saved):
        return pd.DataFrame(rows, columns=[*columns, *ANSWERS])
    by = columns[: columns.index("arm")]
    for r in saved.to_dict("records"):
        here = runs[runs["arm"] == r["arm"]]
        for column in by:
            here = here[here[column] == r[column]]
        cost = float(here["pretrain_seconds"].mean()) / 3600
        if not cost > 0:  # nothing that could pay
            continue
        row: dict[str, Any] = r | {"pretrain_hours": cost}
        row["saved_hours"] = (r["needs"] - r["labels"]) * unit_hours
        bounds = (_bound(r, "low", -np.inf), _bound(r, "needs", np.nan), _bound(r, "high", np.inf))
        least, middle, most = ((end - r["labels"]) * unit_hours for end in bounds)
        if r["given"]:
            row["targets"] = targets(cost, middle) if np.isfinite(middle) else np.nan
            row["targets_low"] = 0.0 if np.isposinf(most) else targets(cost, most)
            row["targets_high"] = targets(cost, least)
        else:
            row |= {"targets": np.nan, "targets_low": np.nan, "targets_high": np.nan}
        rows.append(row)
    return pd.DataFrame(rows, columns=[*columns, *ANSWERS])


def _bound(row: dict[str, Any], end: str, outside: float) -> float:
    """One end of what the baseline needs; ``outside`` where it lies beyond the budgets. NaN without
    an interval: a single seed has none.
    """
    relation = row["relation" if end == "needs" else f"{end}_relation"]
    if relation == "=":
        return float(row[end])
    if relation == "":
        return float("nan")
    if end == "needs":
        # at least (or at most) the budget at the edge: a bound, not a number
        return outside
    return np.inf if relation == ">" else -np.inf


def in_words(row: Any) -> str:
    """What one row says: "pays from 12 targets on (5 to 40)". Where the interval has no upper end,
    it may never pay.
    """
    if not row["given"]:
        return f"not told: {row['why']}"
    low, high = row["targets_low"], row["targets_high"]
    if np.isinf(low):
        return "never pays: a target saves nothing"
    # the first target that pays is a whole one
    first = max(1, int(np.ceil(low)))
    if not np.isfinite(high):
        return f"whether it pays is not told; at best from {first} targets on"
    last = max(first, int(np.ceil(high)))
    middle = row["targets"]
    if not np.isfinite(middle):
        return f"pays from between {first} and {last} targets on"
    return f"pays from {max(1, int(np.ceil(middle)))} targets on ({first} to {last})"


def questions(
    runs: pd.DataFrame,
    label_hours: float,
    metric: str = "forces_mae",
) -> pd.DataFrame:
    """Both questions side by side, a row per arm and experiment: "equal total cost" (the change
    against scratch-longer over all label budgets, with its verdict) and a column per label budget
    for "amortised over targets".

    Raises ConfigError where there is no arm scratch-longer: then only the second can be asked
    (`in_labels`).
    """
    if "scratch-longer" not in set(runs["arm"]):
        raise ConfigError("equal total cost needs the arm scratch-longer (longer: steps or time)")
    effects = statistics.effects(runs, metrics=(metric,), against=("scratch-longer",))
    if not len(effects):
        return effects
    # a contrast that was declared has a row, too, whatever it compares
    asked = (effects["against"] == "scratch-longer") & (effects["metric"] == metric)
    effects = effects[asked & ~effects["arm"].isin(["scratch", "scratch-longer"])]
    paid = in_labels(runs, label_hours, metric).to_dict("records")
    by = list(effects.columns[: list(effects.columns).index("arm")])
    rows = []
    for r in effects.to_dict("records"):
        row = {**{c: r[c] for c in by}, "arm": r["arm"], "seeds": r["seeds"]}
        text = f"{r['change_%']:+.0f} %"
        if np.isfinite(r["change_low_%"]):
            text += f" ({r['change_low_%']:+.0f} to {r['change_high_%']:+.0f})"
        told = r["verdict"] if r["verdict"] in ("better", "worse") else "not told from 0"
        row["equal total cost"] = f"{text}: {told}"
        for p in paid:
            if any(p[column] != r[column] for column in (*by, "arm")):
                continue
            row[f"amortised, {p['labels']} labels"] = in_words(p)
        rows.append(row)
    return pd.DataFrame(rows)
