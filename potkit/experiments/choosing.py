"""A setting (σ, mask ratio, …) chosen on validation molecules, which the test never sees.

The best of several settings on the test set is too good by chance: of five that are all the same
the best looks some percent better than it is. So the pool that labels are drawn from is split by
system, the candidates are compared on the part that is held out, and the chosen one is trained and
tested as any other arm. How far it is a choice is said beside it: each candidate's change against
the winner, with its interval.

The numbers that made the winner also compare the others with it, so these comparisons come out too
large one by one. Their intervals are Tukey's for all pairs of candidates at once (studentised
range, seeds as blocks: Miller 1981, chapter 2), which hold whichever pair was picked. With the
residual mean square s² of log errors after the means of candidates and seeds, k candidates, n seeds

    half width = q(0.95; k, (k − 1)(n − 1)) s / √n

It takes the residual spread to be the same for all candidates; of two it is the paired t interval.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from ..datasets import splits
from ..errors import ConfigError, DataError
from ..objectives import Objective
from ..structures.store import Structures
from . import experiment as experiments
from . import statistics
from .experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Choice:
    """What `choose` found: the arm called ``name``, and ``table``, a row per candidate.

    Columns: arm, seeds, mean (eV or eV/Å, on validation molecules), low, high, change_% against the
    winner with its interval (Tukey's, all candidates at once) and the verdict that follows from it.
    ``molecules`` held out, ``structures`` in them. ``dropped``: candidates without a row, because
    no seed has all their runs: nothing is told of them.
    """

    name: str
    table: pd.DataFrame
    molecules: int
    structures: int
    dropped: tuple[str, ...] = ()

    @property
    def others(self) -> list[str]:
        """The candidates that the chosen one was compared with."""
        return [str(arm) for arm in self.table["arm"] if arm != self.name]

    @property
    def left(self) -> list[str]:
        """Those of the `others` that are not told to be worse."""
        worse = set(self.table.loc[self.table["verdict"] == "worse", "arm"])
        return [arm for arm in self.others if arm not in worse]

    def __str__(self) -> str:
        size = f"{self.structures} structures of {self.molecules} validation molecules"
        parts = [f"{self.name}, chosen on {size}"]
        if self.left:
            parts.append(f"not told from it: {', '.join(self.left)}")
        elif self.others:
            parts.append("all others are told to be worse")
        if self.dropped:
            parts.append(f"dropped, as no seed has all its runs: {', '.join(self.dropped)}")
        return "; ".join(parts)


def validation_molecules(
    pool: Structures, share: float = 0.2, seed: int = 0
) -> tuple[Structures, Structures]:
    """``pool`` without a ``share`` of its systems, and the structures of these. Raises DataError
    where there are fewer than two systems.
    """
    rest, held_out = pool.split((1.0 - share, share), seed, "system")
    if not len(rest) or not len(held_out):
        raise DataError(
            f"{pool.info.get('name', 'structures')}: too few molecules to hold out a share of "
            f"{share:g}"
        )
    return rest, held_out


def choose(
    experiment: Experiment,
    candidates: Mapping[str, Objective],
    share: float = 0.2,
    seed: int = 0,
    metric: str = "forces_mae",
    limit: int | None = None,
    progress: bool = True,
) -> Choice:
    """The best of ``candidates`` (arm -> pretraining objective) on molecules held out from the pool
    of ``experiment``, whose test set is not looked at.

    Everything else is the experiment's own: network, budgets, seeds, settings, store. ``limit``: at
    most so many validation structures. The winner has the smallest geometric mean over seeds and
    label budgets; with the same molecules a second call finds its runs in the store. Raises
    ConfigError for fewer than two candidates, TrainingError where no run ended well.
    """
    trial = on_validation(experiment, candidates, share, seed, limit)
    return ranked(experiments.run(trial, progress), list(candidates), metric, trial)


def on_validation(
    experiment: Experiment,
    candidates: Mapping[str, Objective],
    share: float = 0.2,
    seed: int = 0,
    limit: int | None = None,
) -> Experiment:
    """The experiment that `choose` runs: labels from the pool without a ``share`` of its molecules,
    pretrained without these too, tested on them.

    Raises ConfigError for fewer than two candidates, DataError where nothing is left to pretrain
    on.
    """
    if len(candidates) < 2:
        raise ConfigError(f"a choice needs at least two candidates, got {len(candidates)}")
    pool, held_out = validation_molecules(experiment.train, share, seed)
    pretrain_on = _without_systems(experiment.pretrain_on, held_out)
    if limit is not None and limit < len(held_out):
        held_out = held_out.split((limit,), seed=seed)[0]
    return dataclasses.replace(
        experiment,
        train=pool,
        test=held_out,
        pretrain_on=pretrain_on,
        objectives=dict(candidates),
        variants={},
        # a candidate is tried as the arm that it may become
        vectors={a: v for a, v in experiment.vectors.items() if a in candidates},
        parts={a: p for a, p in experiment.parts.items() if a in candidates},
        primary=None,
        longer=None,
    )


def _without_systems(structures: Structures | None, held_out: Structures) -> Structures | None:
    """``structures`` without the systems that ``held_out`` has, by name and by geometry."""
    if structures is None:
        return None
    names = structures.system_names()
    there = {held_out.system_names()[i] for i in np.unique(held_out.system)}
    rows = np.flatnonzero([names[i] not in there for i in structures.system])
    kept = structures[rows]
    if len(kept):
        leaked = splits.leakage(kept, held_out)["a"].unique()
        kept = kept[np.setdiff1d(np.arange(len(kept)), leaked)]
    if not len(kept):
        name = structures.info.get("name", "structures")
        raise DataError(f"{name}: nothing is left to pretrain on without the validation molecules")
    return kept


def ranked(
    runs: pd.DataFrame,
    candidates: Sequence[str],
    metric: str = "forces_mae",
    trial: Experiment | None = None,
) -> Choice:
    """The best of ``candidates`` in the ``runs`` of `on_validation`, over the seeds that all have.
    Candidates that no seed has all runs of are dropped, and named in the choice.

    Without the ``trial`` the numbers of molecules and structures are 0: they stand in no table of
    runs. Raises DataError where no seed has all its runs.
    """
    experiments.compare(runs, [metric])  # raises where no run ended well
    logs = statistics.over_budgets(runs, metric)
    there = [arm for arm in candidates if arm in logs and logs[arm].notna().any()]
    logs = logs[there].dropna()
    if not len(logs) or not there:
        raise DataError(f"no seed has all its runs of the candidates: {', '.join(candidates)}")
    name = str(logs.mean().idxmin())
    half = half_width(logs.to_numpy())
    rows = []
    for arm in there:
        row = {"arm": arm, "seeds": len(logs)} | statistics.typical(logs[arm])
        if arm == name:
            row["verdict"] = "chosen"
        else:
            mean = float((logs[arm] - logs[name]).mean())
            row |= statistics.change_within(mean, mean - half, mean + half)
            row["verdict"] = statistics.said(mean, mean - half, mean + half)
        rows.append(row)
    table = pd.DataFrame(rows)
    dropped = tuple(arm for arm in candidates if arm not in there)
    if trial is None:
        return Choice(name, table, 0, 0, dropped)
    return Choice(name, table, len(set(trial.test.system.tolist())), len(trial.test), dropped)


def half_width(
    logs: np.ndarray,  # [seeds, candidates] log errors
    confidence: float = 0.95,
) -> float:
    """Of Tukey's intervals of all differences between candidates (see the module); NaN for a single
    seed or candidate.
    """
    seeds, candidates = logs.shape
    if min(seeds, candidates) < 2:
        return float("nan")
    left = logs - logs.mean(axis=0) - logs.mean(axis=1, keepdims=True) + logs.mean()
    freedom = (candidates - 1) * (seeds - 1)
    error = np.sqrt(np.square(left).sum() / freedom / seeds)
    return _studentised_range(confidence, candidates, freedom) * float(error)


@functools.cache
def _studentised_range(confidence: float, candidates: int, freedom: int) -> float:
    """Its quantile, which takes scipy half a second."""
    return float(stats.studentized_range.ppf(confidence, candidates, freedom))
