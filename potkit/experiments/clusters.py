"""What a finite test set leaves open: intervals over its molecules (or blocks of a trajectory), and
how many structures it is worth.

Structures of one molecule are alike, and so are neighbours in time, so a test set of S structures
holds less than S independent ones. The error of a set is a ratio, Σ w x / Σ w over structures (w: 1
for energies, the number of atoms for forces). Whole clusters are drawn with replacement, and the
logarithm of the ratio is studentised in each draw (bootstrap t: Davison & Hinkley 1997, chapters
2.4 and 5.2), which covers better than percentiles where a few molecules are much worse than the
others. Clusters of unequal weight count as fewer: G* = (Σ w)²/Σ w² of the G clusters' weights, and
the interval is t(0.975; G* − 1)/t(0.975; G − 1) times as wide.

A draw from few clusters does not know the molecules that are much worse than all it has, least of
all where these have more structures, so its upper end comes out too low. It is therefore never
below that of a log-normal law of both sums. With a = log Σ w x and b = log Σ w of a cluster, v and
u their variances over clusters and c their covariance, this law has the ratio of means
mean(a − b) +
(v − u)/2 (its logarithm), and the end is t(0.975; G* − 1) standard errors above it or above the
ratio itself: √(var(a − b)/G + (v² + u² − 2 c²)/(2 (G − 1))). Where clusters weigh the same this is
Cox's interval (Zhou & Gao 1997, with t for the normal quantile as in Olsson 2005).

A change between two networks has no such tail, since both are bad at the same molecules; its
interval is never narrower than Student's t for the linearised logarithm, with G* of the baseline's
errors. The design effect (Kish 1965) is the variance by clusters over that of structures taken as
independent, both linearised; S over it is the effective number.

The interval belongs to the test set: it says what other molecules would do to given networks, and
stands beside the one over seeds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import stats

from ..errors import ConfigError, DataError
from ..structures.store import Structures
from ..training.evaluation import evaluate
from .statistics import grouping

if TYPE_CHECKING:
    from ..training.evaluation import Evaluation
    from .experiment import Experiment

DRAWS = 4000


@dataclasses.dataclass(frozen=True)
class Sampled:
    """A mean over a test set with its 95 % interval over clusters (NaN for a single one), and how
    many structures it is worth.
    """

    mean: float
    low: float
    high: float
    structures: int
    clusters: int
    design_effect: float
    effective: float  # structures over design effect

    def __str__(self) -> str:
        text = f"{self.mean:.4g} ({self.low:.4g} to {self.high:.4g})"
        size = f"{self.structures} structures of {self.clusters} clusters"
        return f"{text}; {size}, worth {self.effective:.0f}"


def clusters_of(structures: Structures, block: int | None = None) -> np.ndarray:
    """[S] int: a number for each structure's cluster: its system, or with ``block`` its stretch of
    so many structures of the system.

    Blocks are for trajectories, whose structures stand in the order of time; a block should be
    longer than the memory of the motion.
    """
    if block is None:
        return np.unique(structures.system, return_inverse=True)[1]
    if block < 1:
        raise ConfigError(f"block must be at least 1 structure, got {block}")
    from ..datasets.splits import by_system

    out = np.zeros(len(structures), np.int64)
    used = 0
    for _, rows in by_system(structures):
        stretch = np.arange(len(rows)) // block
        if len(rows) > block and len(rows) % block:  # a short rest joins the block before it
            stretch = np.minimum(stretch, len(rows) // block - 1)
        out[rows] = used + stretch
        used += int(stretch[-1]) + 1
    return out


def sampled_mean(
    values: np.ndarray,  # [S]
    clusters: np.ndarray,  # [S]
    weights: np.ndarray | None = None,  # [S]
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Sampled:
    """The weighted mean of positive ``values`` with its interval over ``clusters``. Raises
    DataError for values that are not positive.
    """
    values = np.asarray(values, np.float64)
    weights = np.ones(len(values)) if weights is None else np.asarray(weights, np.float64)
    if not len(values) or not (
        np.isfinite(values).all() and (values >= 0).all() and values.sum() > 0
    ):
        raise DataError("the error of a test set needs finite errors above 0 of its structures")
    top, bottom = _sums(clusters, values * weights, weights)
    mean = float(top.sum() / bottom.sum())
    low, high = _log_ratio_interval(top, bottom, bottom, confidence, draws, seed)
    high = max(high, _log_normal_end(top, bottom, confidence))
    low, high = np.exp([low, high])
    effect = _design_effect(weights * (values - mean), clusters)
    effective = len(values) / effect
    return Sampled(mean, float(low), float(high), len(values), len(top), effect, effective)


def sampled_change(
    errors: np.ndarray,  # [S] eV or eV/Å
    baseline: np.ndarray,  # [S]
    clusters: np.ndarray,  # [S]
    weights: np.ndarray | None = None,  # [S]
    confidence: float = 0.95,
    draws: int = DRAWS,
    seed: int = 0,
) -> Sampled:
    """The change of the mean error in % from ``baseline`` to ``errors``, structure by structure of
    one test set, over ``clusters``.
    """
    errors = np.asarray(errors, np.float64)
    baseline = np.asarray(baseline, np.float64)
    weights = np.ones(len(errors)) if weights is None else np.asarray(weights, np.float64)
    if errors.shape != baseline.shape:
        raise DataError(
            f"a change needs errors of the same structures, got {len(errors)} and {len(baseline)}"
        )
    top, bottom, size = _sums(clusters, errors * weights, baseline * weights, weights)
    if not (top.sum() > 0 and bottom.sum() > 0):
        raise DataError("a change needs errors above 0")
    ratio = top.sum() / bottom.sum()
    drawn = _log_ratio_interval(top, bottom, size, confidence, draws, seed)
    half = _linearised_half(top, bottom, confidence)
    middle = np.log(ratio)
    ends = min(drawn[0], middle - half), max(drawn[1], middle + half)
    effect = _design_effect(weights * (errors - ratio * baseline), clusters)
    percent = [100 * float(np.expm1(v)) for v in (np.log(ratio), *ends)]
    return Sampled(*percent, len(errors), len(top), effect, len(errors) / effect)


def _sums(clusters: np.ndarray, *values: np.ndarray) -> list[np.ndarray]:
    """The sums of each of ``values`` [S] over clusters, [G] each."""
    number = np.unique(clusters, return_inverse=True)[1]
    return [np.bincount(number, v) for v in values]


def _log_ratio_interval(
    top: np.ndarray,  # [G] sums over clusters
    bottom: np.ndarray,  # [G]
    weights: np.ndarray,  # [G]
    confidence: float,
    draws: int,
    seed: int,
) -> tuple[float, float]:
    """Bootstrap t interval of log(Σ top / Σ bottom); NaN for a single cluster."""
    g = len(top)
    if g < 2:
        return np.nan, np.nan
    upper = 0.5 + confidence / 2
    counts = np.random.default_rng(seed).multinomial(g, np.full(g, 1 / g), size=draws)
    counts = counts[(counts > 0).sum(1) > 1]  # a draw of one cluster alone has no spread
    middle = np.log(top.sum() / bottom.sum())
    drawn = np.log((counts @ top) / (counts @ bottom))
    error = _standard_error(np.ones((1, g), int), top, bottom)[0]
    spread = np.maximum(_standard_error(counts, top, bottom), 1e-3 * error)
    low, high = np.quantile((drawn - middle) / spread, [1 - upper, upper])
    effective = max(weights.sum() ** 2 / np.square(weights).sum(), 2.0)
    error *= stats.t.ppf(upper, effective - 1) / stats.t.ppf(upper, g - 1)
    return middle - high * error, middle - low * error


def _linearised_half(
    top: np.ndarray,  # [G] sums over clusters
    bottom: np.ndarray,  # [G]
    confidence: float,
) -> float:
    """Half width of Student's t interval of log(Σ top / Σ bottom); NaN for a single cluster."""
    g = len(top)
    if g < 2:
        return np.nan
    error = _standard_error(np.ones((1, g), int), top, bottom)[0]
    freedom = max(bottom.sum() ** 2 / np.square(bottom).sum(), 2.0) - 1
    return float(stats.t.ppf(0.5 + confidence / 2, freedom) * error)


def _log_normal_end(
    top: np.ndarray,  # [G] sums over clusters
    bottom: np.ndarray,  # [G]
    confidence: float,
) -> float:
    """Upper end of the interval of log(Σ top / Σ bottom) if both follow a log-normal law together;
    NaN for a single cluster, and without a word (−inf) where one of them is 0.
    """
    g = len(top)
    if g < 2:
        return np.nan
    if not ((top > 0).all() and (bottom > 0).all()):
        return -np.inf
    above, below = np.log(top), np.log(bottom)
    ratio = above - below
    (a, both), (_, b) = np.cov(above, below)
    variance = np.var(ratio, ddof=1) / g + (a**2 + b**2 - 2 * both**2) / (2 * (g - 1))
    effective = max(bottom.sum() ** 2 / np.square(bottom).sum(), 2.0)
    half = stats.t.ppf(0.5 + confidence / 2, effective - 1) * np.sqrt(max(variance, 0.0))
    # around the ratio itself, or around what the law makes of its logarithms
    middle = max(np.log(top.sum() / bottom.sum()), ratio.mean() + (a - b) / 2)
    return float(middle + half)


def _standard_error(
    counts: np.ndarray,  # [draws, G] how often each cluster was drawn
    top: np.ndarray,
    bottom: np.ndarray,
) -> np.ndarray:  # [draws]
    """Of log(Σ top / Σ bottom) over clusters, linearised."""
    g = len(top)
    total, below = counts @ top, counts @ bottom
    ratio = total / below
    # Σ c (top − r bottom)², multiplied out so that it is three matrix products
    square = (
        counts @ top**2 - 2 * ratio * (counts @ (top * bottom)) + ratio**2 * (counts @ bottom**2)
    )
    return np.sqrt(np.maximum(square, 0.0) * g / (g - 1)) / total


def _design_effect(
    residual: np.ndarray,  # [S] what each structure adds to the error of the mean
    clusters: np.ndarray,
) -> float:
    """Variance of the sum of ``residual`` by clusters over that of independent structures."""
    (sums,) = _sums(clusters, residual)
    s, g = len(residual), len(sums)
    independent = s / (s - 1) * np.square(residual).sum() if s > 1 else 0.0
    if g < 2 or independent <= 0:
        return float("nan")
    return float(g / (g - 1) * np.square(sums).sum() / independent)


# -- of networks ---------------------------------------------------------------------------------
def errors_of(evaluation: Evaluation, metric: str) -> tuple[np.ndarray, np.ndarray]:  # [S], [S]
    """Absolute errors of an evaluation's structures (eV, or eV/Å averaged over a structure), and
    their weights.
    """
    table = evaluation.structures
    if metric == "forces_mae":
        return table["forces_mae"].to_numpy(), table["atoms"].to_numpy()
    if metric == "energy_mae":
        error = (table["predicted_energy"] - table["energy"]).abs().to_numpy()
        return error, np.ones(len(error))
    raise ConfigError(f"metric must be 'forces_mae' or 'energy_mae', got {metric!r}")


def set_error(
    evaluation: Evaluation,
    metric: str = "forces_mae",
    clusters: np.ndarray | None = None,
) -> Sampled:
    """The error of one network on a test set with its interval over ``clusters`` (default:
    systems).
    """
    values, weights = errors_of(evaluation, metric)
    clusters = evaluation.structures["system"].to_numpy() if clusters is None else clusters
    return sampled_mean(values, clusters, weights)


def tested(
    experiments: Sequence[Experiment], runs: pd.DataFrame, limit: int | None = None
) -> Iterator[tuple[Experiment, Structures, pd.DataFrame]]:
    """Each experiment with its test set and those of its ``runs`` (of `experiments.run`) that ended
    well. ``limit``: of a larger test set only so many structures, always the same ones.
    """
    for experiment in experiments:
        test = experiment.test
        if limit is not None and limit < len(test):
            test = test.split((limit,), seed=0)[0]
        finished = runs[runs["status"] == "ok"] if "status" in runs else runs
        for column, value in experiment.columns.items():
            finished = finished[finished[column] == value]
        yield experiment, test, finished


def of_experiments(
    experiments: Sequence[Experiment],
    runs: pd.DataFrame,
    metric: str = "forces_mae",
    baseline: str = "scratch",
    block: int | None = None,
) -> pd.DataFrame:
    """What the test set leaves open of finished experiments: a row per arm and label budget, from
    the networks in their stores.

    Errors are averaged over seeds structure by structure, so the intervals are those over molecules
    (blocks of ``block`` structures of each) for these seeds. Columns: mean, low, high (eV or eV/Å),
    structures, clusters, design_effect, effective, and the change against ``baseline`` in % with
    its interval. Raises CheckpointError where a store does not have a run any more.
    """
    rows = []
    for experiment, test, finished in tested(experiments, runs):
        clusters = clusters_of(test, block)
        by = [c for c in grouping(runs) if c not in experiment.columns]
        for key, part in finished.groupby(by, sort=False, observed=True):
            group = dict(zip(by, key if isinstance(key, tuple) else (key,), strict=True))
            errors: dict[str, np.ndarray] = {}  # [S] each
            weights = None
            for arm, of_arm in part.groupby("arm", sort=False, observed=True):
                folders = [Path(experiment.store) / run for run in of_arm["run"]]
                pairs = [errors_of(evaluate(f, test), metric) for f in folders]
                errors[arm] = np.mean([error for error, _ in pairs], axis=0)
                weights = pairs[0][1]  # the structures', so the same for every network
            for arm, values in errors.items():
                one = sampled_mean(values, clusters, weights)
                row = {**experiment.columns, **group, "arm": arm, "metric": metric}
                row |= dataclasses.asdict(one)
                if arm != baseline and baseline in errors:
                    change = sampled_change(values, errors[baseline], clusters, weights)
                    row |= {"change_%": change.mean, "change_low_%": change.low}
                    row["change_high_%"] = change.high
                rows.append(row)
    return pd.DataFrame(rows)
