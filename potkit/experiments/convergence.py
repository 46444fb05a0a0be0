"""Is the baseline converged? Scratch again with twice the steps, the same schedule stretched.

A comparison with a baseline that would still get better by itself says how fast arms train, not
what they reach. Doubling the steps must move scratch's error by less than the interval of that
error; else the table says "not converged".
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from .arms import DOUBLED, SCRATCH
from .statistics import DRAW, UNIT, grouping, interval

METRIC = "forces_mae"


def table(
    runs: pd.DataFrame, metric: str | None = None, by: Sequence[str] | None = None
) -> pd.DataFrame:
    """A row per experiment and label budget: what twice the steps change in scratch's error.

    ``change_%`` with its paired interval; ``interval_%``: half of the interval of scratch's mean
    error over seeds, relative; ``converged``: whether the change is smaller than that. ``metric``
    defaults to the declared contrast's, else the force error. Empty where no run has twice the
    steps.
    """
    declared = runs.attrs.get("primary") or {}
    metric = metric or declared.get("metric", METRIC)
    by = list(grouping(runs) if by is None else by)
    good = runs[runs["status"] == "ok"] if "status" in runs else runs
    rows = []
    for group, part in good.groupby(by, sort=False, observed=True):
        logs = {
            arm: np.log(part[part["arm"] == arm].set_index([UNIT, DRAW])[metric])
            for arm in (SCRATCH, DOUBLED)
        }
        both = logs[SCRATCH].index.intersection(logs[DOUBLED].index)
        if not len(both):
            continue
        moved = logs[DOUBLED][both] - logs[SCRATCH][both]
        change, low, high = interval(moved.groupby(level=UNIT).mean())
        mean, below, _ = interval(logs[SCRATCH].groupby(level=UNIT).mean())
        rows.append(
            dict(zip(by, group, strict=True))
            | {
                "metric": metric,
                "seeds": both.get_level_values(UNIT).nunique(),
                "change_%": 100 * np.expm1(change),
                "change_low_%": 100 * np.expm1(low),
                "change_high_%": 100 * np.expm1(high),
                "interval_%": 100 * np.expm1(mean - below),
                "converged": bool(abs(change) < mean - below),
            }
        )
    return pd.DataFrame(rows)


def lines(checked: pd.DataFrame) -> list[str]:
    """A sentence per row of `table`."""
    texts = []
    before_metric = list(checked.columns).index("metric") if len(checked) else 0
    for row in checked.to_dict("records"):
        where = [str(row[column]) for column in checked.columns[:before_metric]]
        said = "converged" if row["converged"] else "not converged"
        texts.append(
            f"{', '.join(where)} labels: scratch is {said}: twice the steps change its "
            f"{row['metric']} by {row['change_%']:+.1f} % ({row['change_low_%']:+.1f} to "
            f"{row['change_high_%']:+.1f}), its interval is ± {row['interval_%']:.1f} %"
        )
    return texts
