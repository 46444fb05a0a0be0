"""A setting (σ, mask ratio, …) chosen on validation molecules, which the test never sees.

The best of several settings on the test set is too good by chance: of five that are all the same
the best looks some percent better than it is. So the pool that labels are drawn from is split by
system, the candidates are compared on the part that is held out, and the chosen one is trained and
tested as any other arm. How far it is a choice is said beside it: each candidate's change against
the winner, with its interval.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

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
    winner with its interval, and verdict (by Holm over the candidates; it leans towards "worse",
    since the same numbers made the winner). ``molecules`` held out, ``structures`` in them.
    """

    name: str
    table: pd.DataFrame
    molecules: int
    structures: int

    def __str__(self) -> str:
        size = f"{self.structures} structures of {self.molecules} validation molecules"
        others = self.table[self.table["arm"] != self.name]
        told = others.loc[others["verdict"] == "worse", "arm"]
        text = f"{self.name}, chosen on {size}; "
        left = [a for a in others["arm"] if a not in set(told)]
        if not left:
            return f"{text}all others are told to be worse"
        return f"{text}not told from it: {', '.join(left)}"


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
    """The best of ``candidates`` in the ``runs`` of `on_validation`. Without the ``trial`` the
    numbers of molecules and structures are 0: they stand in no table of runs.
    """
    summary = experiments.compare(runs, [metric])  # raises where no run ended well
    arms = summary[summary["arm"].isin(list(candidates))]
    logs = statistics.over_budgets(runs, metric)
    means = {arm: float(logs[arm].mean()) for arm in candidates if arm in logs}
    if not means:
        raise DataError(f"no candidate has all its runs: {', '.join(candidates)}")
    name = min(means, key=means.__getitem__)
    others = [arm for arm in candidates if arm in means and arm != name]
    paired = {arm: (logs[arm] - logs[name]).dropna().to_numpy() for arm in others}
    levels = statistics.holm([statistics.p_value(paired[arm]) for arm in others])[1]
    level_of = dict(zip(others, levels, strict=True))
    rows = []
    for arm in (a for a in candidates if a in means):
        row = {"arm": arm, "seeds": int(arms.loc[arms["arm"] == arm, "seeds"].max())}
        row |= statistics.typical(logs[arm])
        if arm == name:
            row["verdict"] = "chosen"
        else:
            row |= statistics.change(paired[arm])
            row["verdict"] = statistics.verdict(paired[arm], 1 - level_of[arm])
        rows.append(row)
    table = pd.DataFrame(rows)
    if trial is None:
        return Choice(name, table, 0, 0)
    return Choice(name, table, len(set(trial.test.system.tolist())), len(trial.test))
