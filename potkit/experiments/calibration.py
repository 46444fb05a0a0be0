"""Do ensembles over seeds tell their own errors? Statistics of the members' stored errors, with
intervals over the molecules of the test set.

With M members, their errors e_m against the label, e = Σ e_m / M and the spread s =
√(Σ (e_m − e)² / (M − 1)), the label is predicted by Student's t with M − 1 degrees of freedom of
width f s √(1 + 1/M) around the mean: exact where the label is one more draw from what the members
are drawn from (see `uncertainty`). f is 1 before a recalibration. `STATISTICS`, of all force
components or all energies that are judged:

- rmse and sharpness: √mean e² and √mean s²; sharpness_scaled: √mean (f s)²;
- spearman: correlation of the ranks of |e| and s;
- factor: f, which makes half of the errors lie where half should (`uncertainty.scale`);
- nll: −log of the predicted density at the label, a mean in nats (Gneiting & Raftery 2007,
  10.1198/016214506000001437; densities per eV and per eV/Å);
- inside_50 … inside_95: the share of labels in the central interval of that probability;
- area: mean |share inside − probability| over `uncertainty.LEVELS` (Tran et al. 2020, arXiv
  1912.10066). It is never below 0: a perfect ensemble on few molecules has some.

``…_scaled`` is after the recalibration by one factor. The clusters of the test set (its molecules;
its structures where there are fewer than `FEW` molecules) are dealt into two halves. The factor is
found on the first, and everything else is judged on the second, before and after.

Intervals are bootstraps: clusters are drawn with replacement within each half, the factor is found
anew in each draw, and the standard error of the draws, on the scale of `SCALES`, is taken times
Student's t. Two kinds are different. rmse and sharpness, which a few molecules may decide, have
those of `clusters.sampled_mean` of their squares. An area is folded at 0 and pushed up by noise:
both its ends are the outer ones of the basic bootstrap's (Davison & Hinkley 1997, chapter 5.2; as
much wider as Student's t is than the normal law) and of what the mean share inside less the
probability says with its sign, which no area is smaller than. The lower end is 0 unless the area is
larger than 97.5 % of those that draws have around the observed shares themselves: what noise alone
makes of a calibrated ensemble.

All say what other molecules would do to the ensembles as they are. Other seeds would make other
ensembles: of one ensemble an arm, what these do is only hinted at by leaving out one member after
the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import stats

from ..errors import DataError
from ..structures.store import Structures
from ..training import checkpoints
from ..training.evaluation import predict
from . import clusters
from .statistics import grouping, holm
from .uncertainty import FLOOR, LEVELS, enclosing

if TYPE_CHECKING:
    from .experiment import Experiment

NOMINAL = (0.50, 0.68, 0.90, 0.95)  # intervals whose coverage is reported
INSIDE = tuple(f"inside_{round(100 * p)}" for p in NOMINAL)
PLAIN = ("nll", "area", *INSIDE)  # before and after the recalibration
STATISTICS = (
    *("rmse", "sharpness", "sharpness_scaled", "spearman", "factor"),
    *(f"{name}{ending}" for ending in ("", "_scaled") for name in PLAIN),
)
# where more is better, and where less is
BETTER = {"spearman": 1, "nll": -1, "nll_scaled": -1, "area": -1, "area_scaled": -1}
DRAWS = 1000
MOST = 1000  # test structures whose predictions are stored; ANI-1x would be gigabytes
FEW = 8  # systems; with fewer, the clusters are single structures
SINGLE = "structure "  # what the name of such a cluster begins with
RESOLUTION = 0.01  # stored errors are rounded to less than this share of the median spread

_LOG = (np.log, np.exp)
# of a share, whose errors are as large everywhere on this scale
_ANGLE = (lambda p: np.arcsin(np.sqrt(p)), lambda x: np.sin(np.clip(x, 0, np.pi / 2)) ** 2)
_AS_IT_IS = (lambda x: x, lambda x: x)
# statistic -> the scale its errors are near to normal on, and the way back
SCALES = dict.fromkeys(STATISTICS, _AS_IT_IS)
SCALES |= {"rmse": _LOG, "factor": _LOG}
SCALES |= {"spearman": (np.arctanh, np.tanh)}
SCALES |= dict.fromkeys((s for s in STATISTICS if s.startswith("inside")), _ANGLE)


# -- predictions as they are stored --------------------------------------------------------------
def check(experiments: Sequence[Experiment]) -> None:
    """Raise DataError where a test set is too small to find a factor and to judge it."""
    for experiment in experiments:
        if len(experiment.test) < 4:
            name = experiment.test.info.get("name", "structures")
            raise DataError(
                f"{name}: calibration needs at least 4 structures to test on, "
                f"got {len(experiment.test)}"
            )


def predictions(
    experiments: Sequence[Experiment], runs: pd.DataFrame, limit: int | None = None
) -> pd.DataFrame:
    """The errors of every member of the ensembles over seeds of finished experiments, on their
    test sets: a row per label budget, arm, quantity and structure.

    ``runs`` is the table of `experiments.run`. Columns: those that tell experiments apart, labels,
    arm, seeds ("0 1 2"), quantity ("forces", "energy"), unit (eV/Å or eV), structure (its number in
    the test set), cluster, errors: whole numbers of ``unit``, prediction less label, the numbers of
    a member apart by blanks (x y z of each atom), members by semicolons in the order of ``seeds``.
    ``limit``: of a larger test set only so many structures. Arms with a single finished run are
    left out, and so are quantities without labels. Raises CheckpointError where a store does not
    have a run any more.
    """
    tables = []
    for experiment, test, finished in clusters.tested(experiments, runs, limit):
        quantities = [q for q in ("forces", "energy") if getattr(test, q) is not None]
        for (labels, arm), part in finished.groupby(["labels", "arm"], sort=False, observed=True):
            if len(part) < 2:
                continue
            about = {**experiment.columns, "labels": labels, "arm": arm}
            about["seeds"] = " ".join(str(s) for s in part["seed"])
            folders = [Path(experiment.store) / run for run in part["run"]]
            said = [predict(checkpoints.load(f), test, outputs=quantities) for f in folders]
            for quantity in quantities:
                label = np.asarray(getattr(test, quantity), np.float64)
                errors = np.array([one[quantity] - label for one in said])
                tables.append(_packed(about | {"quantity": quantity}, errors, test))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _packed(
    about: Mapping[str, Any],
    errors: np.ndarray,  # [M, S] eV or [M, A, 3] eV/Å
    test: Structures,
) -> pd.DataFrame:
    """A row per structure of ``test``."""
    spread = float(np.median(np.std(errors, axis=0, ddof=1)))
    unit = 10.0 ** np.floor(np.log10(max(RESOLUTION * spread, 1e-9)))
    whole = np.rint(errors / unit).astype(np.int64)
    at = test.ptr if errors.ndim == 3 else np.arange(len(test) + 1)
    cells = [
        ";".join(" ".join(map(str, member.ravel())) for member in whole[:, a:b])
        for a, b in pairwise(at)
    ]
    where = {"structure": range(len(test)), "cluster": _clusters(test), "errors": cells}
    return pd.DataFrame({**about, "unit": float(f"{unit:.0e}"), **where})


def _clusters(test: Structures) -> list[str]:
    """The cluster of each structure: its system, or itself where there are few of these."""
    if len(set(test.system.tolist())) < FEW:
        return [f"{SINGLE}{i}" for i in range(len(test))]
    names = test.system_names()
    return [names[i] for i in test.system]


@dataclass(frozen=True)
class Members:
    """The errors of an ensemble's members (eV or eV/Å), and the cluster of each value."""

    seeds: tuple[str, ...]
    errors: np.ndarray  # [M, V]
    cluster: np.ndarray  # [V] names
    structure: np.ndarray  # [V] numbers
    unit: float  # eV or eV/Å: the errors are multiples of it

    def without(self, seed: str) -> Members:
        """The ensemble less one of its members."""
        kept = [i for i, s in enumerate(self.seeds) if s != seed]
        seeds = tuple(self.seeds[i] for i in kept)
        return Members(seeds, self.errors[kept], self.cluster, self.structure, self.unit)

    def of(self) -> str:
        """What the clusters are: "systems" or "structures"."""
        return "structures" if str(self.cluster[0]).startswith(SINGLE) else "systems"


def ensembles(table: pd.DataFrame) -> dict[tuple, Members]:
    """The ensembles in a table of `predictions`: (…, labels, arm, quantity) -> members.

    Raises DataError for errors that are no such cells.
    """
    by = [*grouping(table), "arm", "quantity"]
    out = {}
    for key, part in table.groupby(by, sort=False):
        seeds = tuple(str(part["seeds"].iloc[0]).split())
        try:
            cells = [_unpacked(cell) for cell in part["errors"]]
            unit = float(part["unit"].iloc[0])
            errors = np.concatenate(cells, axis=1) * unit
        except ValueError as error:
            raise DataError(f"errors of {', '.join(map(str, key))}: {error}") from error
        if len(errors) != len(seeds):
            raise DataError(
                f"errors of {', '.join(map(str, key))}: {len(errors)} members, "
                f"but {len(seeds)} seeds"
            )
        sizes = [cell.shape[1] for cell in cells]
        of = (np.repeat(part[c].to_numpy(), sizes) for c in ("cluster", "structure"))
        out[key] = Members(seeds, errors, *of, unit)
    return out


def _unpacked(cell: str) -> np.ndarray:  # [M, V]
    return np.array([member.split() for member in str(cell).split(";")], dtype=np.float64)


# -- statistics ----------------------------------------------------------------------------------
class Judged:
    """Errors and spreads of an ensemble, ready to be judged with every cluster counted as often as
    a draw has it. ``members``: of how many the spread is; None for a Gaussian known exactly.

    Raises DataError for fewer than four clusters, two to fit a factor on and two to judge.
    """

    def __init__(
        self,
        error: np.ndarray,  # [V] eV or eV/Å
        spread: np.ndarray,  # [V]
        cluster: np.ndarray,  # [V] names
        members: int | None = None,
    ) -> None:
        names, owner = np.unique(cluster, return_inverse=True)
        if len(names) < 4:
            raise DataError(f"calibration needs at least 4 clusters, got {len(names)}")
        self.members = members
        fit = np.random.default_rng(0).permutation(len(names)) < len(names) // 2  # [G]
        self.halves = np.flatnonzero(fit), np.flatnonzero(~fit)
        spread = np.maximum(np.asarray(spread, np.float64), FLOOR)
        ratio = np.abs(error) / spread
        # values to fit the factor on, by rising |e|/s
        known = np.flatnonzero(fit[owner])
        known = known[np.argsort(ratio[known], kind="stable")]
        self.known_ratio, self.known_owner = ratio[known], owner[known]
        # values to judge, by rising |e|/s
        self.rows = np.flatnonzero(~fit[owner])
        self.rows = self.rows[np.argsort(ratio[self.rows], kind="stable")]
        self.ratio, self.owner = ratio[self.rows], owner[self.rows]
        self.error, self.spread = np.asarray(error, np.float64)[self.rows], spread[self.rows]
        both = np.abs(self.error), self.spread
        self.places = [np.unique(values, return_inverse=True)[1] for values in both]

    @classmethod
    def of(cls, one: Members) -> Judged:
        """An ensemble's mean and spread. Raises DataError for fewer than two members."""
        if len(one.seeds) < 2:
            raise DataError(f"an ensemble needs at least two members, got {len(one.seeds)}")
        # members that agree to the last stored digit may still differ by less
        spread = np.maximum(one.errors.std(0, ddof=1), one.unit / 2)
        return cls(one.errors.mean(0), spread, one.cluster, len(one.seeds))

    @property
    def clusters(self) -> int:
        """How many are judged."""
        return len(self.halves[1])

    def draws(self, number: int = DRAWS, seed: int = 0) -> np.ndarray:
        """[number, G] how often each cluster is drawn, within its half; the same for every
        ensemble on the same clusters.
        """
        rng = np.random.default_rng(seed)
        counts = np.zeros((number, sum(map(len, self.halves))), np.int64)
        for half in self.halves:
            g = len(half)
            counts[:, half] = rng.multinomial(g, np.full(g, 1 / g), size=number)
        return counts

    def factor(self, counts: np.ndarray | None = None) -> float:
        """What the spreads must be multiplied by, as the first half says."""
        passed = np.cumsum(self._weights(counts, self.known_owner))
        middle = np.searchsorted(passed, passed[-1] / 2)
        median = max(self.known_ratio[middle], FLOOR)
        return float(median / enclosing(0.5, self.members))

    def _weights(self, counts: np.ndarray | None, owner: np.ndarray) -> np.ndarray:
        """How often each value counts."""
        return np.ones(len(owner)) if counts is None else counts[owner].astype(np.float64)

    def inside(
        self, levels: np.ndarray, factor: float = 1.0, counts: np.ndarray | None = None
    ) -> np.ndarray:
        """The share of values in the intervals of ``levels`` [L], spreads taken times
        ``factor``.
        """
        passed = np.cumsum(self._weights(counts, self.owner))
        ends = factor * enclosing(levels, self.members)
        place = np.searchsorted(self.ratio, ends, side="right")
        return np.concatenate([[0.0], passed])[place] / passed[-1]

    def surprise(self, factor: float = 1.0) -> np.ndarray:
        """−log density of each error [V], in nats, spreads taken times ``factor``."""
        if self.members is None:
            square = (self.ratio / factor) ** 2
            return np.log(factor * self.spread) + 0.5 * np.log(2 * np.pi) + square / 2
        freedom = self.members - 1
        width = factor * np.sqrt(1 + 1 / self.members)
        tail = (freedom + 1) / 2 * np.log1p((self.ratio / width) ** 2 / freedom)
        return np.log(width * self.spread) - stats.t.logpdf(0.0, freedom) + tail

    def spearman(self, counts: np.ndarray | None = None) -> float:
        """Correlation of the ranks of |e| and s, ties sharing theirs; NaN where one of them is
        the same everywhere.
        """
        weights = self._weights(counts, self.owner)
        ranks = []
        for place in self.places:
            held = np.bincount(place, weights)
            ranks.append((np.cumsum(held) - held / 2)[place])
        first, second = (rank - weights @ rank / weights.sum() for rank in ranks)
        norm = np.sqrt((weights @ first**2) * (weights @ second**2))
        return float(weights @ (first * second) / norm) if norm > 0 else float("nan")

    def curves(self, counts: np.ndarray | None = None) -> np.ndarray:
        """[2, levels] the share of values inside at each of `uncertainty.LEVELS`, before and after
        the recalibration.
        """
        taken = (1.0, self.factor(counts))
        return np.array([self.inside(LEVELS, factor, counts) for factor in taken])

    def areas(self, number: int = DRAWS) -> list[tuple[float, float]]:
        """95 % intervals of the areas before and after the recalibration (see the module)."""
        observed = self.curves()
        drawn = np.array([self.curves(counts) for counts in self.draws(number)])
        t = stats.t.ppf(0.975, self.clusters - 1)
        out = []
        for one, of_draws in zip(observed, drawn.swapaxes(0, 1), strict=True):
            area = np.abs(one - LEVELS).mean()
            areas = np.abs(of_draws - LEVELS).mean(1)
            above, below = np.quantile(areas, [0.975, 0.025])
            wider = t / stats.norm.ppf(0.975)
            signed = abs((one - LEVELS).mean())
            half = t * (of_draws - LEVELS).mean(1).std(ddof=1)
            low = min(area - wider * (above - area), signed - half)
            high = max(area + wider * (area - below), area + t * areas.std(ddof=1), signed + half)
            noise = np.abs(of_draws - one).mean(1)
            told = area > np.quantile(noise, 0.975)
            out.append((max(0.0, float(low)) if told else 0.0, float(high)))
        return out

    def statistics(self, counts: np.ndarray | None = None) -> np.ndarray:
        """`STATISTICS` in that order, every cluster counted ``counts`` [G] times (default:
        once).
        """
        factor = self.factor(counts)
        weights = self._weights(counts, self.owner)
        total = weights.sum()
        rmse, sharpness = (np.sqrt(weights @ x**2 / total) for x in (self.error, self.spread))
        out = [rmse, sharpness, factor * sharpness, self.spearman(counts), factor]
        levels = np.concatenate([LEVELS, NOMINAL])
        for taken in (1.0, factor):
            share = self.inside(levels, taken, counts)
            curve, nominal = share[: len(LEVELS)], share[len(LEVELS) :]
            out.append(weights @ self.surprise(taken) / total)
            out += [np.abs(curve - LEVELS).mean(), *nominal]
        return np.array(out, np.float64)

    def resampled(self, number: int = DRAWS) -> np.ndarray:
        """[number, statistics] `statistics` of `draws`."""
        return np.array([self.statistics(counts) for counts in self.draws(number)])

    def intervals(self, number: int = DRAWS) -> Iterator[tuple[str, float, float, float]]:
        """Name, value, and 95 % interval (low, high) of each of `STATISTICS`."""
        values = dict(zip(STATISTICS, self.statistics(), strict=True))
        drawn = self.resampled(number)
        found: dict[str, tuple[float, float]] = {
            name: ends(name, values[name], drawn[:, i], min(map(len, self.halves)) - 1)
            for i, name in enumerate(STATISTICS)
        }
        found |= zip(("area", "area_scaled"), self.areas(number), strict=True)
        for name, of in (("rmse", self.error), ("sharpness", self.spread)):
            mean = clusters.sampled_mean(of**2, self.owner)
            found[name] = float(np.sqrt(mean.low)), float(np.sqrt(mean.high))
        # a product of two that come from different molecules
        parts = [np.log(np.array(found[n]) / values[n]) for n in ("sharpness", "factor")]
        reach = np.hypot(*parts) * [-1, 1]
        found["sharpness_scaled"] = tuple(values["sharpness_scaled"] * np.exp(reach))
        for name in STATISTICS:
            yield name, values[name], *found[name]


def ends(
    statistic: str, value: float, drawn: np.ndarray, freedom: float, confidence: float = 0.95
) -> tuple[float, float]:
    """The interval (low, high) of ``value`` from the standard error of its bootstrap draws."""
    there, back = SCALES[statistic]
    with np.errstate(invalid="ignore", divide="ignore"):
        half = stats.t.ppf(0.5 + confidence / 2, freedom) * np.std(there(drawn), ddof=1)
        return float(back(there(value) - half)), float(back(there(value) + half))


def summarise(table: pd.DataFrame, number: int = DRAWS) -> pd.DataFrame:
    """What a table of `predictions` says of its ensembles: a row per label budget, arm, quantity
    and statistic of `STATISTICS`.

    Columns: members, structures and clusters that are judged, of ("systems" or "structures": what
    the clusters are), statistic, value, low, high. Energies are in eV, forces in eV/Å. Raises
    DataError for fewer than four clusters.
    """
    by = [*grouping(table), "arm", "quantity"]
    rows = []
    for key, one in ensembles(table).items():
        judged = Judged.of(one)
        about = dict(zip(by, key, strict=True)) | {
            "members": len(one.seeds),
            "structures": len(np.unique(one.structure[judged.rows])),
            "clusters": judged.clusters,
            "of": one.of(),
        }
        for name, value, low, high in judged.intervals(number):
            rows.append(about | {"statistic": name, "value": value, "low": low, "high": high})
    return pd.DataFrame(rows)


def contrasts(table: pd.DataFrame, number: int = DRAWS) -> pd.DataFrame:
    """How the calibration of ensembles differs between arms: a row per label budget, arm, baseline
    (scratch, scratch-longer), quantity and statistic of `BETTER`.

    ``change`` is the arm's statistic less the baseline's, with its 95 % interval (low, high) over
    the clusters, which both arms are judged on. ``seed_low`` and ``seed_high``: the smallest and
    the largest change when one seed is left out of both ensembles, NaN where that leaves no
    ensemble. ``p`` is of a t test with the bootstrap's standard error, ``p_holm`` adjusted over all
    rows of a family (Holm 1979), and ``verdict`` "better", "worse" or "not told from 0" at that
    level, whose interval is holm_low to holm_high. ``table.attrs["primary"]``, {"arm", "against",
    "quantity", "statistic"}: a contrast declared before the runs, a family of its own.
    """
    by = grouping(table)
    members = ensembles(table)
    found = {key: Judged.of(one) for key, one in members.items()}
    drawn = {key: judged.resampled(number) for key, judged in found.items()}
    rows = []
    for key, against in _pairs(list(found)):
        *_, arm, quantity = key
        judged, base = found[key], found[against]
        value, before = judged.statistics(), base.statistics()
        left_out = _without_one(members[key], members[against])
        for i, name in enumerate(STATISTICS):
            if name not in BETTER:
                continue
            row = dict(zip(by, key, strict=False)) | {"arm": arm, "against": against[-2]}
            row |= {"quantity": quantity, "statistic": name, "change": value[i] - before[i]}
            row["error"] = float(np.std(drawn[key][:, i] - drawn[against][:, i], ddof=1))
            row["freedom"] = judged.clusters - 1
            row["seed_low"] = min((d[i] for d in left_out), default=np.nan)
            row["seed_high"] = max((d[i] for d in left_out), default=np.nan)
            rows.append(row)
    return _judged_together(pd.DataFrame(rows), table.attrs.get("primary"))


def _pairs(keys: list[tuple]) -> Iterator[tuple[tuple, tuple]]:
    """Every ensemble with those of scratch and scratch-longer on the same clusters."""
    for key in keys:
        for baseline in ("scratch", "scratch-longer"):
            against = (*key[:-2], baseline, key[-1])
            known = against in keys and key[-2] not in ("scratch", baseline)
            if known:
                yield key, against


def _without_one(one: Members, base: Members) -> list[np.ndarray]:
    """The differences of `STATISTICS` between two ensembles, each seed left out of both in turn."""
    shared = [s for s in one.seeds if s in base.seeds]
    if min(len(one.seeds), len(base.seeds)) < 3:
        return []
    return [
        Judged.of(one.without(seed)).statistics() - Judged.of(base.without(seed)).statistics()
        for seed in shared
    ]


def _judged_together(rows: pd.DataFrame, primary: Mapping[str, str] | None) -> pd.DataFrame:
    """Changes with their intervals, and the verdicts of each family."""
    if not len(rows):
        return rows
    spread, freedom = rows.pop("error").to_numpy(), rows.pop("freedom").to_numpy()
    change = rows["change"].to_numpy()
    half = stats.t.ppf(0.975, freedom) * spread
    seeds = rows[["seed_low", "seed_high"]]
    rows = rows.drop(columns=list(seeds)).assign(low=change - half, high=change + half, **seeds)
    family = np.full(len(rows), "others", dtype=object)
    if primary:
        known = [column for column in primary if column in rows]
        family[(rows[known] == pd.Series(primary)[known]).all(axis=1)] = "primary"
    rows["family"] = family
    with np.errstate(invalid="ignore", divide="ignore"):
        p = np.where(spread > 0, 2 * stats.t.sf(np.abs(change) / spread, freedom), np.nan)
    adjusted, level = np.full(len(rows), np.nan), np.full(len(rows), 0.05)
    for name in ("primary", "others"):
        here = family == name
        adjusted[here], level[here] = holm(p[here])
    half = stats.t.ppf(1 - level / 2, freedom) * spread
    told = np.abs(change) > half
    good = change * rows["statistic"].map(BETTER).to_numpy() > 0
    rows = rows.assign(p=p, p_holm=adjusted, holm_low=change - half, holm_high=change + half)
    rows["verdict"] = np.where(told, np.where(good, "better", "worse"), "not told from 0")
    return rows


# -- for pictures --------------------------------------------------------------------------------
def reliability(one: Members, bins: int | None = None) -> pd.DataFrame:
    """Equally filled bins of rising spread, of the values that are judged: rms spread, rms error
    with its interval over clusters (low, high), and the number of values in each. A calibrated
    ensemble of many members has both equal. ``bins``: by default up to ten, of 25 values or more.

    The interval is `clusters.sampled_mean`'s of the squared errors. In simulations with a known
    truth it covers more often than it says (0.97 to 0.98 for 0.95); a bootstrap with ends by
    Student's t covered 0.80 to 0.90, for the values of a bin come from few clusters.
    """
    judged = Judged.of(one)
    bins = bins or int(np.clip(len(judged.spread) // 25, 2, 10))
    order = np.argsort(judged.spread, kind="stable")
    rows = []
    for part in np.array_split(order, min(bins, len(order))):
        squares = judged.error[part] ** 2
        mean = clusters.sampled_mean(squares, judged.owner[part])
        row = {
            "spread": float(np.sqrt(np.mean(judged.spread[part] ** 2))),
            "error": float(np.sqrt(mean.mean)),
            "low": float(np.sqrt(mean.low)),
            "high": float(np.sqrt(mean.high)),
            "values": len(part),
        }
        rows.append(row)
    return pd.DataFrame(rows)


def curve(one: Members) -> pd.DataFrame:
    """A row per probability of `uncertainty.LEVELS`: the share of labels inside, as the ensemble
    is (observed), and after the recalibration (scaled).
    """
    judged = Judged.of(one)
    plain, scaled = judged.inside(LEVELS), judged.inside(LEVELS, judged.factor())
    return pd.DataFrame({"expected": LEVELS, "observed": plain, "scaled": scaled})
