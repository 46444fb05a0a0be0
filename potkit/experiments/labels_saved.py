"""How many labels a baseline needs for an error: a point on its falling learning curve, and an
interval by inverting the t test.

The baseline's curve is the polyline through the mean logarithms of its errors at the label budgets,
over the logarithm of the budgets, made to fall by isotonic regression (pool adjacent violators:
Barlow et al. 1972, as in scipy.optimize.isotonic_regression). What is pooled in the mean is pooled
in every seed, so that a seed's difference to the curve, log a − log b(n'), is defined at every n'
between the smallest and the largest budget. The interval is Fieller's (1954): all n' at which the
paired t interval over seeds of that difference holds 0. Along a piece of the polyline mean and
variance of the difference are a line and a parabola, so the ends are roots of a quadratic, found
exactly.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from scipy import optimize, stats


def pooled(
    base: np.ndarray,  # [seeds, budgets] logs of errors
) -> np.ndarray:  # [seeds, budgets]
    """``base`` with the budgets averaged that isotonic regression pools in the mean over seeds: a
    mean curve that never rises.
    """
    blocks = optimize.isotonic_regression(base.mean(0), increasing=False).blocks
    flat = np.empty_like(base)
    for start, end in pairwise(blocks):
        flat[:, start:end] = base[:, start:end].mean(1, keepdims=True)
    return flat


def needs(
    budgets: np.ndarray,  # [budgets] rising
    falling: np.ndarray,  # [budgets] logs of errors, never rising
    log_error: float,
) -> float:
    """The fewest labels at which the polyline ``falling`` is as low as ``log_error``; −inf where it
    always is, inf where it never is.

    Within 1e-12 two errors count as the same. On a flat piece that is its left end, below it the
    way down from its right end.
    """
    if log_error > falling[0] + 1e-12:
        return -np.inf
    low_enough = np.flatnonzero(falling <= log_error + 1e-12)
    if not len(low_enough):
        return np.inf
    right = int(low_enough[0])
    if right == 0:
        return float(budgets[0])
    left = right - 1
    share = (falling[left] - log_error) / (falling[left] - falling[right])
    return float(budgets[left] * (budgets[right] / budgets[left]) ** min(share, 1.0))


def needs_interval(
    budgets: np.ndarray,  # [budgets] rising
    base: np.ndarray,  # [seeds, budgets] logs of the baseline's errors
    log_errors: np.ndarray,  # [seeds] logs of the arm's errors at one budget
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """Labels that the baseline needs for the arm's error: point, low and high; −inf and inf where
    they lie outside the budgets.

    The bounds are NaN for a single seed. An end of the interval that reaches the smallest or the
    largest budget without the t test telling the two arms apart there is open, so it is −inf or
    inf: nothing is extrapolated.
    """
    curve = pooled(base)
    point = needs(budgets, curve.mean(0), float(log_errors.mean()))
    n = len(base)
    if n < 2:
        return point, np.nan, np.nan
    difference = log_errors[:, None] - curve  # [seeds, budgets]
    mean = difference.mean(0)
    covariance = np.atleast_2d(np.cov(difference, rowvar=False)) / n  # of the means
    factor = stats.t.ppf(0.5 + confidence / 2, n - 1) ** 2
    beyond = mean**2 - factor * np.diag(covariance)  # above 0: told from 0 at this budget
    held = [np.log(point)] if np.isfinite(point) else []
    held += list(np.log(budgets[beyond <= 0]))
    for left in range(len(budgets) - 1):
        start, end = np.log(budgets[left : left + 2])
        held += [start + t * (end - start) for t in _crossings(mean, covariance, factor, left)]
    low, high = -np.inf, np.inf  # open, unless the t test tells the arms apart at the budget there
    if beyond[0] > 0 and mean[0] < 0:  # the smallest budget has a larger error than the arm
        low = np.exp(min(held)) if held else np.inf
    if beyond[-1] > 0 and mean[-1] > 0:  # the largest has a smaller one
        high = np.exp(max(held)) if held else -np.inf
    return point, float(low), float(high)


def _crossings(mean: np.ndarray, covariance: np.ndarray, factor: float, left: int) -> list[float]:
    """Where on the piece from budget ``left`` to the next (0 to 1) the t statistic is just as large
    as its limit.
    """
    right = left + 1
    step = mean[right] - mean[left]
    variance, with_right = covariance[left, left], covariance[left, right]
    quadratic = step**2 - factor * (variance - 2 * with_right + covariance[right, right])
    linear = 2 * mean[left] * step - 2 * factor * (with_right - variance)
    constant = mean[left] ** 2 - factor * variance
    discriminant = linear**2 - 4 * quadratic * constant
    if discriminant < 0:
        return []
    # the root that does not cancel first, the other by Vieta: right also where the quadratic term
    # vanishes
    half = -0.5 * (linear + np.copysign(np.sqrt(discriminant), linear))
    roots = [half / quadratic if quadratic else np.nan, constant / half if half else np.nan]
    return [t for t in roots if 0 <= t <= 1]


# -- in words ------------------------------------------------------------------------------------
def bounded(value: float, budgets: np.ndarray) -> tuple[str, float]:
    """A number of labels as (relation, value): "=" and itself, ">" and the largest budget, "<" and
    the smallest.
    """
    if np.isfinite(value):
        return "=", float(value)
    return (">", float(budgets[-1])) if value > 0 else ("<", float(budgets[0]))


def needs_in_words(row: Any) -> str:
    """What one row of `statistics.labels_saved` says the baseline needs: "121 (96 to > 400)"."""

    def say(relation: str, value: float) -> str:
        return f"{'' if relation == '=' else relation + ' '}{value:.0f}"

    if not row["given"]:
        return "not told"
    text = say(row["relation"], row["needs"])
    low, high = (say(row[f"{end}_relation"], row[end]) for end in ("low", "high"))
    return f"{text} ({low} to {high})"


def saved_in_words(row: Any) -> str:
    """One row of `statistics.labels_saved` as a sentence: "50 labels do as well as 121 (96 to >
    400) from scratch".
    """
    where = "from scratch" if row["against"] == "scratch" else f"of {row['against']}"
    if not row["given"]:
        return f"what {row['labels']:.0f} labels are worth {where} is not told: {row['why']}"
    return f"{row['labels']:.0f} labels do as well as {needs_in_words(row)} {where}"
