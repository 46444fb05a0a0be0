"""Is the baseline converged? Scratch again with twice the steps, the same schedule stretched.

A comparison with a baseline that would still get better by itself says how fast arms train, not
what they reach. What decides is the paired 95 % interval of log(error with twice the steps / error)
over seeds:

    converged              it lies within ± `MARGIN`: more steps change less than that
    not converged          it lies below 0, and not within the margin: more steps still help
    worse by more steps    it lies above 0, and not within the margin
    not told               anything else: these seeds do not decide

A rule that compares points cannot: whether the change is smaller than the half width of scratch's
own interval depends on how many seeds there are. With few every change is smaller; with many even
a true change of nothing is larger in one of six cases. That comparison is kept as information
(``within_interval``).

Where no arm with just twice the steps was trained, scratch-longer takes its place if it has at
least twice the steps: a harder check. Its rate may have been chosen for it apart from scratch's;
then the change is that of steps and rate together, and ``chosen`` says which. Rows are judged one
by one, each at 95 %.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from ..errors import ConfigError
from .arms import DOUBLED, LONGER, SCRATCH
from .statistics import DRAW, UNIT, grouping, interval, metric_of

MARGIN = 0.03  # relative: a doubling of the steps that changes less leaves the error as it is
CONVERGED, FALLING, RISING, NOT_TOLD = (
    "converged",
    "not converged",
    "worse by more steps",
    "not told",
)


def verdict(low: float, high: float, margin: float = MARGIN) -> str:
    """What the interval ``low`` to ``high`` of log(error with more steps / error) says."""
    if np.log1p(-margin) < low and high < np.log1p(margin):
        return CONVERGED
    if high < 0:
        return FALLING
    return RISING if low > 0 else NOT_TOLD  # without an interval (NaN) nothing is told


def table(
    runs: pd.DataFrame,
    metric: str | None = None,
    by: Sequence[str] | None = None,
    margin: float = MARGIN,
) -> pd.DataFrame:
    """A row per experiment and label budget: what twice the steps change in scratch's error.

    ``times``: how many times the steps of scratch, 2 or more; ``change_%`` with its paired
    interval; ``verdict`` and ``margin_%``: see the module; ``interval_%``: half of the interval of
    scratch's mean error over seeds, relative; ``within_interval``: whether the change is smaller
    than that; ``chosen``: what was chosen for each of the two where that differs, else empty.
    ``metric`` defaults to the declared contrast's, else the force error, or the energy error where
    no finished run of an experiment has a force error. Empty where no run has twice the steps.
    Raises ConfigError for a ``margin`` that is not between 0 and 1.
    """
    if not 0 < margin < 1:
        raise ConfigError(f"margin must lie between 0 and 1 (0.03 for ± 3 %), got {margin}")
    declared = runs.attrs.get("primary") or {}
    metric = metric or declared.get("metric")
    by = list(grouping(runs) if by is None else by)
    good = runs[runs["status"] == "ok"] if "status" in runs else runs
    rows = []
    for group, part in good.groupby(by, sort=False, observed=True):
        judged = metric or metric_of(part)
        scratch, again, times, chosen = _pair(part, judged)
        both = scratch.index.intersection(again.index)
        if not len(both):
            continue
        change, low, high = interval((again[both] - scratch[both]).groupby(level=UNIT).mean())
        mean, below, _ = interval(scratch.groupby(level=UNIT).mean())
        rows.append(
            dict(zip(by, group, strict=True))
            | {
                "metric": judged,
                "seeds": both.get_level_values(UNIT).nunique(),
                "times": times,
                "change_%": 100 * np.expm1(change),
                "change_low_%": 100 * np.expm1(low),
                "change_high_%": 100 * np.expm1(high),
                "margin_%": 100 * margin,
                "verdict": verdict(low, high, margin),
                "interval_%": 100 * np.expm1(mean - below),
                "within_interval": bool(abs(change) < mean - below),
                "chosen": chosen,
            }
        )
    return pd.DataFrame(rows)


def _pair(part: pd.DataFrame, metric: str) -> tuple[pd.Series, pd.Series, float, str]:
    """Logarithms of scratch's errors and of those with more steps, by unit and draw, how many times
    the steps, and what was chosen for each where that differs; none of the errors with more steps
    where no arm has twice the steps.
    """
    of_arm = {arm: part[part["arm"] == arm] for arm in (SCRATCH, DOUBLED, LONGER)}
    logs = {
        arm: np.log(rows.set_index([UNIT, DRAW])[metric].dropna()) for arm, rows in of_arm.items()
    }
    if not len(logs[DOUBLED]) and len(logs[LONGER]) and len(logs[SCRATCH]):
        times = of_arm[LONGER]["steps"].mean() / of_arm[SCRATCH]["steps"].mean()
        if times >= 2:
            chosen = [
                "; ".join(
                    sorted({str(value) for value in of_arm[arm]["chosen"] if pd.notna(value)})
                )
                for arm in (SCRATCH, LONGER)
                if "chosen" in part
            ]
            differs = " → ".join(chosen) if len(set(chosen)) > 1 else ""
            return logs[SCRATCH], logs[LONGER], round(float(times), 2), differs
    return logs[SCRATCH], logs[DOUBLED], 2.0, ""


def lines(checked: pd.DataFrame) -> list[str]:
    """A sentence per row of `table`: the verdict, the change that decides it with its interval, and
    how it compares with the interval of the error itself.
    """
    texts = []
    before_metric = list(checked.columns).index("metric") if len(checked) else 0
    for row in checked.to_dict("records"):
        where = [str(row[column]) for column in checked.columns[:before_metric]]
        steps = "twice" if row["times"] == 2 else f"{row['times']:.2g} times"
        change, low, high = (
            f"{row[f'change{end}_%']:+.1f}".replace("-", "−") for end in ("", "_low", "_high")
        )
        own = row.get("chosen")
        rates = f", each arm with what was chosen for it ({own})," if own == own and own else ""
        text = (
            f"{', '.join(where)} labels: {_in_words(row)}: {steps} the steps{rates} change the "
            f"{row['metric']} of scratch by {change} %"
        )
        if np.isfinite(row["change_low_%"]):
            side = "inside" if row["within_interval"] else "outside"
            text += (
                f" ({low} to {high} %; the change itself lies {side} the ± "
                f"{row['interval_%']:.1f} % of the error over {row['seeds']} seeds)"
            )
        texts.append(text)
    return texts


def _in_words(row: dict[str, Any]) -> str:
    if row["verdict"] == NOT_TOLD:
        return f"whether scratch is converged to ± {row['margin_%']:.0f} % is not told"
    if row["verdict"] == CONVERGED:
        return f"scratch is converged to ± {row['margin_%']:.0f} %"
    return f"scratch is {row['verdict']}"
