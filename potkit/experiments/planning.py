"""How many pretrainings and how many label draws in each: from a pilot's spread to the cheapest
design that reaches an interval.

The design: P pretrainings, and nested in each D draws of labelled structures (with new heads and
batch order), the same draws in both arms. With y_pd = log(error / baseline error) = μ + a_p + e_pd,
Var a = between², Var e = within², the mean over draws of a pretraining has the variance v =
between² + within²/D, and Student's t over P pretrainings gives a half width whose expectation is

    h(P, D) = t(0.975; P − 1) · c4(P) · √(v / P),     c4(P) = √(2/(P − 1)) Γ(P/2) / Γ((P − 1)/2)

(c4 v^½ is the expected standard deviation of P normal numbers). Draws are nested, not crossed: a
draw shared by all pretrainings would buy nothing and tie them together. The two spreads are
estimated by analysis of variance (Searle, Casella & McCulloch 1992, chapter 3).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

from ..errors import ConfigError, DataError

FEWEST = 6  # pretrainings: a stop rule that looks earlier stops by luck, and covers too little


@dataclasses.dataclass(frozen=True)
class Spread:
    """Standard deviations of log(error / baseline error): ``between`` pretrainings and ``within``
    one, over label draws.

    ``within`` is NaN where the pilot has a single run for each pretraining; ``between`` is then
    that of single runs. ``total``: of a single run, with its 95 % interval ``low`` to ``high``
    (Graybill & Wang 1980), which says how little a small pilot knows. ``units`` pretrainings with
    ``replicates`` runs each.
    """

    between: float
    within: float
    total: float
    low: float
    high: float
    units: int
    replicates: int


def spread(
    values: np.ndarray,  # [pretrainings, budgets, draws] log ratios
) -> Spread:
    """The components of variance of a pilot, after the mean of each label budget is taken off.

    Budgets count as replicates of a pretraining, like draws: their labels are nested, which leans
    ``between`` to the safe side. Raises DataError for fewer than two pretrainings.
    """
    values = np.asarray(values, np.float64)
    units, budgets, draws = values.shape
    if units < 2:
        raise DataError(f"a pilot needs at least two pretrainings with all their runs, got {units}")
    centred = values - values.mean(axis=(0, 2), keepdims=True)
    replicates = budgets * draws
    of_unit = centred.mean(axis=(1, 2))
    mean_square_between = replicates * float(np.square(of_unit).sum()) / (units - 1)
    if replicates == 1:
        total = float(np.sqrt(mean_square_between))
        low, high = _ends(np.array([mean_square_between]), np.array([units - 1]))
        return Spread(total, np.nan, total, low, high, units, 1)
    rest = centred - of_unit[:, None, None]
    # the budgets' means took budgets − 1 degrees of freedom of the rest, the pretrainings' means
    # took units
    freedom = units * replicates - units - budgets + 1
    mean_square_within = float(np.square(rest).sum()) / freedom
    between = max(0.0, mean_square_between - mean_square_within) / replicates
    # of a single run: between² + within², as a sum of two independent mean squares
    shares = np.array([mean_square_between, mean_square_within * (replicates - 1)]) / replicates
    low, high = _ends(shares, np.array([units - 1, freedom]))
    total = float(np.sqrt(between + mean_square_within))
    within = float(np.sqrt(mean_square_within))
    return Spread(float(np.sqrt(between)), within, total, low, high, units, replicates)


def _ends(
    shares: np.ndarray,  # [k] mean squares times their coefficients
    freedom: np.ndarray,  # [k]
) -> tuple[float, float]:
    """95 % interval of the square root of a sum of mean squares (Graybill & Wang 1980; exact for
    one).
    """
    shrink = 1 - freedom / stats.chi2.ppf(0.975, freedom)
    grow = freedom / stats.chi2.ppf(0.025, freedom) - 1
    variance = shares.sum()
    low = variance - np.sqrt(np.square(shrink * shares).sum())
    high = variance + np.sqrt(np.square(grow * shares).sum())
    return float(np.sqrt(max(low, 0.0))), float(np.sqrt(high))


def expected_half_width(
    deviation: float | np.ndarray, pretrainings: int | np.ndarray, confidence: float = 0.95
) -> np.ndarray:
    """What the half width of a t interval over so many numbers of standard ``deviation`` will be on
    average (log units).
    """
    n = np.asarray(pretrainings, float)
    c4 = np.sqrt(2 / (n - 1)) * np.exp(special.gammaln(n / 2) - special.gammaln((n - 1) / 2))
    return stats.t.ppf(0.5 + confidence / 2, n - 1) * c4 * deviation / np.sqrt(n)


def power(effect: float, deviation: float, pretrainings: int, confidence: float = 0.95) -> float:
    """How often a true log ratio ``effect`` is told from 0 by so many numbers of standard
    ``deviation``: of Student's t test alone, two-sided.
    """
    freedom = pretrainings - 1
    limit = stats.t.ppf(0.5 + confidence / 2, freedom)
    away = effect**2 * pretrainings / deviation**2
    if away == 0:
        return 1 - confidence
    # t² follows noncentral F; scipy's noncentral t is NaN in parts of its tail
    return float(stats.ncf.sf(limit**2, 1, freedom, away))


def detectable(
    deviation: float, pretrainings: int, wanted: float = 0.8, confidence: float = 0.95
) -> float:
    """The size of log ratio that `power` tells with the probability ``wanted``."""
    scale = deviation / np.sqrt(pretrainings)
    end = scale
    while power(end, deviation, pretrainings, confidence) < wanted:
        end *= 2
    return float(
        optimize.brentq(lambda e: power(e, deviation, pretrainings, confidence) - wanted, 0.0, end)
    )


def designs(
    between: float,
    within: float,
    half_width: float = 0.05,
    pretrain_hours: float = 1.0,
    finetune_hours: float = 1.0,
    draws: Sequence[int] = (1, 2, 3, 4, 5),
    fewest: int = FEWEST,
    assurance: float | None = None,
    budgets: int = 1,
) -> pd.DataFrame:
    """For each number of draws D the fewest pretrainings P that reach ``half_width`` (0.05: ± 5 %),
    and the hours it costs.

    ``finetune_hours``: all fine-tunings of one draw at one label budget, those of the baseline
    included. ``budgets``: how many label budgets the contrast is averaged over. The cheapest row is
    marked in ``best``. The half width is reached on average, or with the probability ``assurance``.
    Raises ConfigError for settings that make no sense.
    """
    if not 0 < half_width < 1:
        raise ConfigError(f"half_width must lie between 0 and 1 (0.05 for ± 5 %), got {half_width}")
    if (
        not np.isfinite(between)
        or between < 0
        or within < 0
        or between + np.nan_to_num(within) <= 0
    ):
        raise ConfigError(f"spreads must not be negative or both 0, got {between} and {within}")
    if assurance is not None and not 0.5 <= assurance < 1:
        raise ConfigError(f"assurance must lie between 0.5 and 1, got {assurance}")
    for name, hours in (("pretrain_hours", pretrain_hours), ("finetune_hours", finetune_hours)):
        if not 0 <= hours < np.inf:
            raise ConfigError(f"{name} must be a number of hours, 0 or more, got {hours}")
    if np.isnan(within):
        draws = (1,)  # one run a pretraining does not tell what a second draw would change
    if budgets < 1 or not len(draws) or min(draws) < 1 or fewest < 2:
        raise ConfigError("a design has at least one draw and budget, and two pretrainings")
    rows = []
    for d in draws:
        deviation = float(np.sqrt(between**2 + np.nan_to_num(within) ** 2 / (d * budgets)))
        number = _fewest(deviation, float(np.log1p(half_width)), fewest, assurance)
        reached = float(expected_half_width(deviation, number))
        rows.append(
            {
                "pretrainings": number,
                "draws": int(d),
                "half_width_%": 100 * float(np.expm1(reached)),
                "draws_in_all": number * int(d),
                "hours": number * (pretrain_hours + d * budgets * finetune_hours),
            }
        )
    table = pd.DataFrame(rows)
    table["best"] = table.index == table["hours"].idxmin()
    return table


def _fewest(deviation: float, half: float, fewest: int, assurance: float | None) -> int:
    """The fewest pretrainings whose interval has the half width ``half`` (log units)."""

    def width(n: float) -> float:
        if assurance is None:
            return float(expected_half_width(deviation, n))
        upper = np.sqrt(stats.chi2.ppf(assurance, n - 1) / (n - 1)) * deviation
        return float(stats.t.ppf(0.975, n - 1) * upper / np.sqrt(n))

    if width(fewest) <= half:
        return fewest
    end = float(fewest)
    while width(end) > half:
        end *= 2
    # widths fall with n: the crossing lies between, and the next whole number is enough
    return int(np.ceil(optimize.brentq(lambda n: width(n) - half, fewest, end) - 1e-9))


def enough(
    values: Sequence[float],
    half_width: float = 0.05,
    fewest: int = FEWEST,
    confidence: float = 0.95,
) -> bool:
    """The stop rule: whether the log ratios of ``fewest`` or more pretrainings have an interval of
    ``half_width`` or less.

    Asked after each pretraining; from six on the interval at which it stops covers 0.93 to 0.95 of
    0.95.
    """
    values = np.asarray(values, np.float64)
    n = len(values)
    if n < max(fewest, 2):
        return False
    error = values.std(ddof=1) / np.sqrt(n)
    half = stats.t.ppf(0.5 + confidence / 2, n - 1) * error
    return bool(half <= np.log1p(half_width))
