"""What single settings do to the gain from pretraining: each against a base, paired by seed.

The table of runs is that of a grid over one column, "setting" by default: the base trains scratch
and a pretrained arm, and every other setting trains both again with one thing changed (a published
fault switched on, a choice of ours the other way). All settings of a seed share labelled
structures, initial weights where they have the same, and batch order, so everything is compared
seed by seed:

    change of scratch     log(scratch of the setting / scratch of the base)
    change of the arm     log(arm of the setting / arm of the base)
    change of the gain    log(arm / scratch) of the setting − log(arm / scratch) of the base

Below 0 is better: a lower error, or more gained. A seed's logarithms are means over label budgets
and draws (`statistics.over_budgets`); intervals are Student's t over seeds. Verdicts follow Holm
over the settings, for each quantity and metric on its own, and never say that a setting does
nothing.

A setting may leave an arm as it is in the base (the sign of the pretraining target changes nothing
of scratch). Its runs are then the base's own, the difference is 0 by construction, and no test is
made of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..errors import ConfigError
from . import statistics
from .arms import DOUBLED, LONGER, SCRATCH

__all__ = ["GAIN", "SHARED", "base_of", "changes", "pretrained_arm", "table"]
GAIN = "gain"
SHARED = "the base's own runs"  # verdict on an arm that the setting does not touch


def base_of(runs: pd.DataFrame, column: str = "setting") -> str:
    """The setting that comes first in ``runs``. Raises ConfigError without such a column."""
    if column not in runs or not len(runs):
        names = ", ".join(map(str, runs))
        raise ConfigError(f"an audit needs the column {column!r}; the table has {names}")
    return str(runs[column].iloc[0])


def pretrained_arm(runs: pd.DataFrame) -> str:
    """The only arm of ``runs`` that is pretrained. Raises ConfigError where there is not one."""
    plain = (SCRATCH, LONGER, DOUBLED)
    arms = [str(arm) for arm in dict.fromkeys(runs["arm"]) if arm not in plain]
    if len(arms) != 1:
        there = ", ".join(arms) or "none"
        raise ConfigError(f"an audit compares one pretrained arm, the table has {there}: name one")
    return arms[0]


def changes(
    base: pd.DataFrame, setting: pd.DataFrame, arm: str, baseline: str = SCRATCH
) -> dict[str, np.ndarray]:
    """The logarithms that the module's text defines, [seeds] each: ``baseline``, ``arm``, "gain".

    ``base`` and ``setting`` hold log errors, a row per seed and a column per arm. Only seeds that
    have both arms in both count.
    """
    names = [baseline, arm]
    both = pd.concat({"base": base[names], "setting": setting[names]}, axis=1).dropna()
    of_baseline, of_arm = (
        both["setting", name].to_numpy() - both["base", name].to_numpy() for name in names
    )
    return {baseline: of_baseline, arm: of_arm, GAIN: of_arm - of_baseline}


def table(
    runs: pd.DataFrame,
    base: str | None = None,
    arm: str | None = None,
    baseline: str = SCRATCH,
    metrics: Sequence[str] = ("forces_mae", "energy_mae"),
    column: str = "setting",
) -> pd.DataFrame:
    """Each setting of ``runs`` against ``base`` (default: the first): a row per setting, quantity
    and metric.

    ``quantity`` is ``baseline``, the pretrained ``arm`` (default: the only one) or "gain".
    ``change_%`` with its interval is that of one comparison alone; ``p``, ``p_holm`` and
    ``verdict`` as in `statistics.effects`, with Holm over the settings. Where all differences are
    exactly 0 the runs are the base's: no interval, no p, and ``verdict`` is `SHARED`.

    Raises ConfigError for a table without the column, without other settings, or where a setting
    has no finished runs of both arms.
    """
    base = base_of(runs, column) if base is None else base
    arm = pretrained_arm(runs) if arm is None else arm
    settings = [str(name) for name in dict.fromkeys(runs[column])] if column in runs else []
    if base not in settings:
        raise ConfigError(f"an audit's base {base!r} is none of {', '.join(settings) or 'nothing'}")
    if len(settings) < 2:
        raise ConfigError(f"an audit needs settings beside {base!r}, the table has none")
    rows = []
    for metric in metrics:
        if metric not in runs or runs[metric].isna().all():
            continue
        logs = {name: _log_errors(runs, column, name, metric, (baseline, arm)) for name in settings}
        found = {
            name: changes(logs[base], logs[name], arm, baseline)
            for name in settings
            if name != base
        }
        for quantity in (baseline, arm, GAIN):
            rows += _family(
                {name: of[quantity] for name, of in found.items()}, column, quantity, metric
            )
    return pd.DataFrame(rows)


def _log_errors(
    runs: pd.DataFrame, column: str, name: str, metric: str, arms: tuple[str, str]
) -> pd.DataFrame:
    """Log errors of one setting, a row per seed and a column per arm."""
    part = runs[(runs[column] == name) & (runs["arm"].isin(arms))]
    good = part[part["status"] == "ok"] if "status" in part else part
    missing = [arm for arm in arms if not (good["arm"] == arm).any()]
    if missing:
        raise ConfigError(f"{column} {name!r} has no finished runs of arm {missing[0]!r}")
    return statistics.over_budgets(part, metric)


def _family(
    logs: dict[str, np.ndarray], column: str, quantity: str, metric: str
) -> list[dict[str, object]]:
    """The rows of one quantity and metric: one family of comparisons, a setting each."""
    shared = {name for name, values in logs.items() if len(values) and not values.any()}
    p = [np.nan if name in shared else statistics.p_value(v) for name, v in logs.items()]
    adjusted, levels = statistics.holm(p)
    rows = []
    for i, (name, values) in enumerate(logs.items()):
        row: dict[str, object] = {column: name, "quantity": quantity, "metric": metric}
        row["seeds"] = len(values)
        if name in shared:
            row |= {"change_%": 0.0, "change_low_%": np.nan, "change_high_%": np.nan}
            row |= {"effect": "", "p": np.nan, "p_holm": np.nan, "verdict": SHARED}
        else:
            row |= statistics.change(values)
            row |= {"p": p[i], "p_holm": adjusted[i]}
            row["verdict"] = statistics.verdict(values, 1 - levels[i])
        rows.append(row)
    return rows
