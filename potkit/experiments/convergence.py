"""Is the baseline converged? Scratch again with twice the steps, the same schedule stretched.

A comparison with a baseline that would still get better by itself says how fast arms train, not
what they reach. Doubling the steps must move scratch's error by less than the interval of that
error; else the table says "not converged". Where no arm with just twice the steps was trained,
scratch-longer takes its place if it has at least twice the steps: a harder check.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .arms import DOUBLED, LONGER, SCRATCH
from .statistics import DRAW, UNIT, grouping, interval

METRIC = "forces_mae"


def table(
    runs: pd.DataFrame, metric: str | None = None, by: Sequence[str] | None = None
) -> pd.DataFrame:
    """A row per experiment and label budget: what twice the steps change in scratch's error.

    ``times``: how many times the steps of scratch, 2 or more; ``change_%`` with its paired
    interval; ``interval_%``: half of the interval of scratch's mean error over seeds, relative;
    ``converged``: whether the change is smaller than that. ``metric`` defaults to the declared
    contrast's, else the force error. Empty where no run has twice the steps.
    """
    declared = runs.attrs.get("primary") or {}
    metric = metric or declared.get("metric", METRIC)
    by = list(grouping(runs) if by is None else by)
    good = runs[runs["status"] == "ok"] if "status" in runs else runs
    rows = []
    for group, part in good.groupby(by, sort=False, observed=True):
        scratch, again, times = _pair(part, metric)
        both = scratch.index.intersection(again.index)
        if not len(both):
            continue
        change, low, high = interval((again[both] - scratch[both]).groupby(level=UNIT).mean())
        mean, below, _ = interval(scratch.groupby(level=UNIT).mean())
        rows.append(
            dict(zip(by, group, strict=True))
            | {
                "metric": metric,
                "seeds": both.get_level_values(UNIT).nunique(),
                "times": times,
                "change_%": 100 * np.expm1(change),
                "change_low_%": 100 * np.expm1(low),
                "change_high_%": 100 * np.expm1(high),
                "interval_%": 100 * np.expm1(mean - below),
                "converged": bool(abs(change) < mean - below),
            }
        )
    return pd.DataFrame(rows)


def _pair(part: pd.DataFrame, metric: str) -> tuple[pd.Series, pd.Series, float]:
    """Logarithms of scratch's errors and of those with more steps, by unit and draw, and how many
    times the steps; none of the latter where no arm has twice the steps.
    """
    of_arm = {arm: part[part["arm"] == arm] for arm in (SCRATCH, DOUBLED, LONGER)}
    logs = {
        arm: np.log(rows.set_index([UNIT, DRAW])[metric].dropna()) for arm, rows in of_arm.items()
    }
    if not len(logs[DOUBLED]) and len(logs[LONGER]) and len(logs[SCRATCH]):
        times = of_arm[LONGER]["steps"].mean() / of_arm[SCRATCH]["steps"].mean()
        if times >= 2:
            return logs[SCRATCH], logs[LONGER], round(float(times), 2)
    return logs[SCRATCH], logs[DOUBLED], 2.0


def lines(checked: pd.DataFrame) -> list[str]:
    """A sentence per row of `table`."""
    texts = []
    before_metric = list(checked.columns).index("metric") if len(checked) else 0
    for row in checked.to_dict("records"):
        where = [str(row[column]) for column in checked.columns[:before_metric]]
        said = "converged" if row["converged"] else "not converged"
        steps = "twice" if row["times"] == 2 else f"{row['times']:.2g} times"
        texts.append(
            f"{', '.join(where)} labels: scratch is {said}: {steps} the steps change its "
            f"{row['metric']} by {row['change_%']:+.1f} % ({row['change_low_%']:+.1f} to "
            f"{row['change_high_%']:+.1f}), its interval is ± {row['interval_%']:.1f} %"
        )
    return texts
