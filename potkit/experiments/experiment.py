"""Comparisons as data: a list of training runs in, a DataFrame out; what is finished in the run
store is never run again.

An `Experiment` names a network, pretraining objectives, label budgets and seeds. For every seed and
budget it trains its arms (see `experiments.arms`): scratch, scratch-longer, one per entry of
``objectives``, and ``variants`` of these, on the same labelled structures for the same number of
steps. Seeds change weights, batch order, corruption and the draw of labelled structures; label
budgets are nested (50 ⊂ 200). Budgets count validation structures too: a label is a label. Several
experiments (networks, data sets) run as one grid.

Each run lies in ``store`` under a hash of all that decides its numbers. Two grids may share a
store, also at the same time.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm.auto import tqdm

from .. import models
from ..datasets import registry, splits
from ..errors import ConfigError, Interrupted, PotkitError, TrainingError
from ..objectives import Objective, Supervised
from ..structures.progress import bar as progress_bar
from ..structures.settings import count
from ..structures.store import Structures
from ..training import checkpoints, pretrained
from ..training.config import TrainConfig
from . import scheduler, search, statistics
from .arms import DOUBLED, LONGER, SCRATCH, Arm, arms
from .statistics import METRICS, grouping, summarise
from .tasks import Executor, Task, longer_steps

__all__ = ["LONGER", "SCRATCH", "Arm", "Experiment", "compare", "plan", "run"]


MOST_JOBS = 10_000  # processes of a grid


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A grid of runs: arms × label budgets × seeds; see the module's docstring.

    ``model``: {"name": …, "preset": …, option: …}. ``pretrain_on``: unlabelled structures.
    ``train``: pool the label budgets are drawn from. ``test``: never seen by any run. ``variants``:
    arm -> {"like": another arm, changed settings}. ``vectors``: arm -> vector read-out to pretrain
    that arm with (default: the preset's). ``after``: arm -> an arm before it whose pretraining its
    own goes on from, with what that arm's ``parts`` say. ``weights``: arm -> pretrained weights it
    starts from instead of a pretraining of its own: a shipped name, a run folder or a file; the
    same in every seed, so intervals do not hold what another pretraining would change. ``longer``:
    measure the pretraining's cost in "operations", "time" or "steps", or None to leave that arm out
    (there is none where nothing is pretrained here). ``valid_fraction``: the share
    of each label budget that chooses the best state. ``parts``: arm -> parts that are transferred
    (default: the backbone only, as the denoise paper says; its code transfers all, see `arms`).
    ``columns``: what tells this experiment's rows from another's in one grid, such as {"model":
    "egnn"}. ``jobs``: processes, spread over the GPUs there are. ``draws``: how many draws of
    labelled structures are nested in each seed's pretraining, each with its own heads and batch
    order; intervals count pretrainings. ``primary``: the one contrast that is declared before any
    run, {"arm": …, "against": …, "metric": …} (see `statistics.effects`): an arm against scratch,
    scratch-longer or another arm. ``search``,
    ``tuning_seeds``, ``search_at``, ``search_beyond``: settings of fine-tuning that are chosen for
    each arm (see `experiments.search`). ``valid_min``: the fewest validation structures of a label
    budget.
    ``convergence``: train scratch with twice the steps, too (see `experiments.convergence`).
    ``threads``: of each run, which decide how sums are rounded (a study fixes one); None: the
    machine's cores, shared by the jobs.
    """

    model: dict[str, Any]
    train: Structures
    test: Structures
    labels: Sequence[int]
    objectives: dict[str, Objective] = dataclasses.field(default_factory=dict)
    pretrain_on: Structures | None = None
    seeds: Sequence[int] = (0, 1, 2)
    pretrain_config: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    finetune_config: TrainConfig = dataclasses.field(default_factory=TrainConfig)
    supervised: Supervised = dataclasses.field(default_factory=Supervised)
    longer: str | None = "operations"
    valid_fraction: float = 0.1
    vectors: dict[str, str] = dataclasses.field(default_factory=dict)
    parts: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    store: str | Path = "runs/store"
    jobs: int = 1
    variants: dict[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    columns: dict[str, str] = dataclasses.field(default_factory=dict)
    draws: int = 1
    primary: Mapping[str, str] | None = None
    search: Mapping[str, Sequence[Any]] = dataclasses.field(default_factory=dict)
    tuning_seeds: Sequence[int] = ()
    search_at: int | None = None
    search_beyond: int = 0
    valid_min: int = 1
    convergence: bool = False
    threads: int | None = None
    after: dict[str, str] = dataclasses.field(default_factory=dict)
    weights: dict[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.objectives and self.pretrain_on is None:
            raise ConfigError("experiment: objectives need structures to pretrain on (pretrain_on)")
        if self.longer not in ("operations", "time", "steps", None):
            raise ConfigError(
                "experiment: longer must be 'operations', 'time', 'steps' or None, "
                f"got {self.longer!r}"
            )
        if "seed" in self.model:
            raise ConfigError(
                "experiment: model has a seed, but weights follow from the experiment's seeds"
            )
        self._check_processes()
        if not self.labels or not self.seeds:
            raise ConfigError("experiment: labels and seeds must not be empty")
        for name in ("labels", "tuning_seeds"):
            given = list(getattr(self, name))
            if twice := {value for value in given if given.count(value) > 1}:
                raise ConfigError(f"experiment: {name} has {min(twice)} twice")
        short = [n for n in self.labels if not 2 <= n <= len(self.train)]
        if short:
            raise ConfigError(
                f"experiment: a label budget of {short[0]} cannot be drawn "
                f"from {len(self.train)} structures"
            )
        strange = self.vectors.keys() - self.objectives.keys()
        if strange:
            raise ConfigError(
                f"experiment: no arm {min(strange)!r}; there are {', '.join(self.objectives)}"
            )
        _ = self.arms  # raises for what does not fit together
        self._check_weights()
        if self.draws < 1:
            raise ConfigError(f"experiment: draws must be at least 1, got {self.draws}")
        tuned = [
            self.finetune_seed(seed, draw) for seed in self.seeds for draw in range(self.draws)
        ]
        if len(set(tuned)) < len(tuned):
            raise ConfigError(
                "experiment: two draws have the same seed; are the seeds different from each other?"
            )
        self._check_primary()
        search.check(self)
        count(self.jobs, "experiment: jobs", most=MOST_JOBS)
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"experiment: threads must be at least 1, got {self.threads}")
        if not 1 <= self.valid_min < min(self.labels):
            raise ConfigError(
                f"experiment: valid_min must be at least 1 and below the smallest label budget "
                f"({min(self.labels)}), got {self.valid_min}"
            )

    def _check_processes(self) -> None:
        configs = {"pretrain": self.pretrain_config, "finetune": self.finetune_config}
        for name, config in configs.items():
            for key in ("devices", "nodes"):
                if (processes := getattr(config, key)) > 1:
                    raise ConfigError(
                        f"experiment: {name}.{key} is {processes}, but each run has one process; a "
                        "grid spreads its runs by jobs"
                    )

    def _check_weights(self) -> None:
        for name in self.weights:
            arm = self.arms[name]
            try:
                source = pretrained.resolve(arm.weights)
                checkpoints.transfer(self.build(self.seeds[0], name), source, arm.parts)
            except PotkitError as error:
                raise ConfigError(f"experiment: arm {name!r}: {error}") from None

    def _check_primary(self) -> None:
        if self.primary is None:
            return
        if set(self.primary) != {"arm", "against", "metric"}:
            raise ConfigError(
                f"experiment: primary needs arm, against and metric, got {', '.join(self.primary)}"
            )
        longer = [LONGER] if self.objectives and self.longer else []
        if self.primary["arm"] == self.primary["against"]:
            raise ConfigError(f"experiment: primary compares {self.primary['arm']!r} with itself")
        if self.primary["arm"] == SCRATCH:
            raise ConfigError(
                f"experiment: primary asks what an arm brings, and {SCRATCH!r} is a baseline "
                f"(arm: {self.primary['against']}, against: {SCRATCH})"
            )
        for key, known in (
            ("arm", [*self.arms, *longer]),
            ("against", [*longer, *self.arms]),
            ("metric", METRICS),
        ):
            if self.primary[key] not in known:
                raise ConfigError(
                    f"experiment: primary {key} {self.primary[key]!r} is none of {', '.join(known)}"
                )

    def finetune_seed(self, seed: int, draw: int = 0) -> int:
        """The seed of a fine-tuning: that of its pretraining for the first draw of labels,
        another for each further one.
        """
        return seed if draw == 0 else int(np.random.SeedSequence((seed, draw)).generate_state(1)[0])

    @cached_property
    def arms(self) -> dict[str, Arm]:
        """Every arm but scratch-longer, by name."""
        return arms(
            self.objectives,
            self.parts,
            self.variants,
            self.finetune_config,
            self.after,
            self.weights,
        )

    def build(self, seed: int, arm: str | None = None) -> models.Potential:
        """The network of an arm, freshly initialised; the same weights for the same seed in all
        arms.
        """
        options = dict(self.model)
        if arm in self.vectors:
            options["vector"] = self.vectors[arm]
        return models.build(
            options.pop("name"), options.pop("preset", "small"), seed=seed, **options
        )

    def labelled(self, count: int, seed: int) -> tuple[Structures, Structures]:
        """Training and validation structures of a label budget: nested in the budget, disjoint
        from each other.
        """
        n_valid = max(self.valid_min, round(self.valid_fraction * count))
        rows = splits.label_budget(self.train, [count], seed=seed)[count]
        drawn = np.random.default_rng((seed, count)).permutation(rows)
        return self.train[np.sort(drawn[n_valid:])], self.train[np.sort(drawn[:n_valid])]


def run(
    experiment: Experiment | Sequence[Experiment],
    progress: bool = True,
    client: Any = None,
    devices: Sequence[str] | None = None,
) -> pd.DataFrame:
    """All runs of one or several experiments, a row each: arm, labels, seed, errors in eV and eV/Å,
    steps, seconds, what failed why.

    A run that fails does not stop the others; its row carries the error. Runs go on from where an
    earlier call was stopped.

    ``client``: a Dask client, or the address of a Dask scheduler, that does the runs instead of
    ``jobs`` processes here. ``devices``: the GPUs for the processes, as CUDA_VISIBLE_DEVICES names
    them (default: all). Raises Interrupted after Ctrl-C or SIGTERM, and where the Dask scheduler is
    lost.
    """
    grid = [experiment] if isinstance(experiment, Experiment) else list(experiment)
    if len({tuple(e.primary.items()) for e in grid if e.primary}) > 1:
        raise ConfigError(
            "several experiments in one grid declare different primary contrasts; one grid has one"
        )
    told_apart = len({tuple(e.columns.items()) for e in grid}) == len(grid)
    same_names = len({tuple(e.columns) for e in grid}) <= 1
    if not (told_apart and same_names):
        raise ConfigError(
            "several experiments in one grid need columns of the same names that tell them apart"
        )
    if client is not None:  # workers elsewhere have another working directory
        grid = [_anywhere(e) for e in grid]
    executor = Executor(grid)
    cells = [
        (i, e, count, seed, draw)
        for i, e in enumerate(grid)
        for count in e.labels
        for seed in e.seeds
        for draw in range(e.draws)
    ]
    jobs = max(e.jobs for e in grid)
    if client is not None:
        place: Any = scheduler.Dask(executor, client)
    elif jobs > 1 or devices:
        place = scheduler.Processes(executor, jobs, devices)
    else:
        place = scheduler.Serial(executor)
    bar = _Progress(_number_of_runs(grid, cells), progress)
    try:
        with place:
            scores, choices, tried = _search(grid, executor, place, bar)
            done = _reported(grid, cells, choices, executor, place, bar)
    except KeyboardInterrupt:
        raise Interrupted(
            f"stopped after {bar.done} of {bar.total} runs; the same call goes on from there"
        ) from None
    finally:
        bar.close()
    everything = [*tried.values(), *done.values()]
    failed = [r for r in everything if r["status"] != "ok"]
    if failed:
        line = f"{len(failed)} of {len(everything)} runs failed; the first: {failed[0]['error']}"
        tqdm.write(line, file=sys.stderr)  # stdout may be a pipe nobody reads
    table = _table(grid, done)
    declared = [e.primary for e in grid if e.primary]
    if declared:
        table.attrs["primary"] = dict(declared[0])
    if len(scores):
        # records, not a table: pandas compares attributes, and tables cannot be compared so
        kept = scores.drop(columns=["experiment", "choice"])
        table.attrs["choices"] = kept.to_dict("records")
        table.attrs["tries"] = search.tries_table(grid, tried).to_dict("records")
        for line in search.lines(scores):
            tqdm.write(f"chosen: {line}", file=sys.stderr)
    table.attrs["leakage"] = leakage(grid)
    for line in table.attrs["leakage"]:
        tqdm.write(f"leakage: {line}", file=sys.stderr)
    return table


def _anywhere(e: Experiment) -> Experiment:
    """``e`` with paths that mean the same in every working directory."""
    weights = {
        arm: os.path.realpath(source) if Path(source).exists() else source
        for arm, source in e.weights.items()
    }
    return dataclasses.replace(e, store=Path(os.path.realpath(e.store)), weights=weights)


Cell = tuple[int, Experiment, int, int, int]  # number, experiment, label budget, seed, label draw


def _number_of_runs(grid: Sequence[Experiment], cells: Sequence[Cell]) -> int:
    """How many runs a grid has: the search's, pretrainings, fine-tunings."""
    count = sum(len(e.objectives) * len(e.seeds) for e in grid)
    for _, e, *_ in cells:
        count += len(e.arms) + bool(e.objectives and e.longer) + e.convergence
    count += sum(1 for _ in search.pretrainings(grid)) + sum(1 for _ in search.tries(grid))
    searched = [e for e in grid if e.search and e.objectives and e.longer]
    return count + sum(
        len(search.budgets(e)) * len(search.values(e, LONGER)) * len(e.tuning_seeds)
        for e in searched
    )


def _search(
    grid: Sequence[Experiment], executor: Executor, place: Any, bar: _Progress
) -> tuple[pd.DataFrame, search.Choices, dict[Task, dict[str, Any]]]:
    """The search's scores, what was chosen, and its runs; nothing where no experiment searches."""
    if not any(e.search for e in grid):
        return pd.DataFrame(), {}, {}

    def go_on(tasks: list[Task], longer: dict | None = None) -> pd.DataFrame:
        """Do ``tasks`` and what follows beyond them; all scores so far."""
        while tasks:
            tried.update(_all(tasks, executor, place, bar))
            scores = search.table(grid, tried)
            tasks = search.further(grid, scores, longer)
            bar.expect(len(tasks))
        return scores

    tried = _all(list(search.pretrainings(grid)), executor, place, bar)
    scores = go_on(list(search.tries(grid)))
    choices = search.chosen(grid, scores)
    longer = {
        (i, n): longer_steps(e, tried, i, n, choices[i, SCRATCH, n])
        for i, e in enumerate(grid)
        if e.search and e.objectives and e.longer
        for n in search.budgets(e)
    }
    longer = {cell: steps for cell, steps in longer.items() if steps is not None}
    if longer:
        tasks = search.tries(grid, [LONGER], longer)
        tasks = [t for t in tasks if (t.experiment, t.labels) in longer]
        scores = go_on(tasks, longer)
    return scores, search.chosen(grid, scores), tried


def _reported(
    grid: Sequence[Experiment],
    cells: Sequence[Cell],
    choices: search.Choices,
    executor: Executor,
    place: Any,
    bar: _Progress,
) -> dict[Task, dict[str, Any]]:
    """All runs that a table reports, with what was chosen for each arm."""

    def finetuning(cell: Cell, arm: str, steps: int | None = None, like: str | None = None) -> Task:
        i, _, n, seed, draw = cell
        choice = choices.get((i, like or arm, n), ())
        return Task("finetune", arm, seed, n, steps, i, draw, choice)

    first = [
        Task("pretrain", arm, seed, experiment=i)
        for i, e in enumerate(grid)
        for arm in e.objectives
        for seed in e.seeds
    ]
    first += [finetuning(cell, SCRATCH) for cell in cells]
    done = _all(first, executor, place, bar)
    later = [finetuning(cell, arm) for cell in cells for arm in cell[1].arms if arm != SCRATCH]
    steps: dict[tuple[int, int], int] = {}
    for cell in cells:
        i, e, n, *_ = cell
        scratch = choices.get((i, SCRATCH, n), ())
        if e.objectives and e.longer:
            if (i, n) not in steps:
                steps[i, n] = longer_steps(e, done, i, n, scratch)
            if steps[i, n] is not None:
                later.append(finetuning(cell, LONGER, steps[i, n]))
        if e.convergence:
            train, _ = e.labelled(n, e.seeds[0])
            once = e.finetune_config.replace(**dict(scratch)).total_steps(len(train))
            later.append(finetuning(cell, DOUBLED, 2 * once, like=SCRATCH))
    return done | _all(later, executor, place, bar)


def leakage(grid: Sequence[Experiment]) -> list[str]:
    """A line for each set to pretrain on or to train on that has structures of its experiment's
    test set; [] where test data are unseen. A line, too, for given weights of which nobody here
    knows what they have seen.
    """
    lines: dict[tuple[str, str], str] = {}
    seen = {source: _seen_by(source) for e in grid for source in e.weights.values()}
    for e in grid:
        where = "".join(f"{v}, " for v in e.columns.values())
        learned = {"pretraining set": e.pretrain_on, "training pool": e.train}
        for source in dict.fromkeys(e.weights.values()):
            learned[f"the set that {source} was pretrained on"] = seen[source]
            if seen[source] is None:
                lines[source, ""] = f"not checked: the set that {source} was pretrained on"
        for name, other in learned.items():
            if other is None:
                continue
            key = other.fingerprint(), e.test.fingerprint()
            if key not in lines:
                leaked = splits.leakage(other, e.test)
                message = f"{where}test and {name}: {leaked.attrs['message']}"
                lines[key] = message if len(leaked) else ""
    return [line for line in lines.values() if line]


def unseen_elements(grid: Sequence[Experiment]) -> list[str]:
    """A line for each given weights that were not pretrained on all elements of what they are
    fine-tuned on.
    """
    lines = [
        pretrained.unseen(pretrained.resolve(source), e.train.elements)
        for e in grid
        for source in e.weights.values()
    ]
    return [line for line in dict.fromkeys(lines) if line]


def _seen_by(source: str) -> Structures | None:
    """The set that the weights ``source`` were pretrained on, or on a part of it, if it comes with
    the package.
    """
    _, header = checkpoints.read(pretrained.resolve(source))
    name = str(header.get("data"))
    return registry.load(name) if registry.is_embedded(name) else None


class _Progress:
    """Counts runs, and shows the count if asked to (a tqdm bar that is not shown does not
    count).
    """

    def __init__(self, total: int, shown: bool) -> None:
        self.done = 0
        self.total = total
        self.bar = progress_bar(total=total, desc="runs", shown=shown)

    def expect(self, more: int) -> None:
        """Runs that nobody knew of before."""
        self.total += more
        self.bar.total = self.total
        self.bar.refresh()

    def update(self, more: int = 1) -> None:
        self.done += more
        self.bar.update(more)

    def close(self) -> None:
        self.bar.close()


def _all(
    tasks: Sequence[Task], executor: Executor, place: Any, bar: Any
) -> dict[Task, dict[str, Any]]:
    """The row of every task; what the store has is not given to anyone."""
    rows = {task: row for task in tasks if (row := executor.stored(task)) is not None}
    bar.update(len(rows))
    rows |= place.map([task for task in tasks if task not in rows], bar.update)
    return {task: executor.row(task) | rows[task] for task in tasks}


def _table(grid: Sequence[Experiment], done: dict[Task, dict[str, Any]]) -> pd.DataFrame:
    pretrained = {
        (t.experiment, t.arm, t.seed): r
        for t, r in done.items()
        if t.kind == "pretrain" and r["status"] == "ok"
    }
    order = list(dict.fromkeys([SCRATCH, LONGER, DOUBLED, *(arm for e in grid for arm in e.arms)]))
    parts = []
    for number, experiment in enumerate(grid):
        rows = []
        for task, row in done.items():
            if task.kind == "finetune" and task.experiment == number:
                arm = experiment.arms.get(task.arm)  # scratch-longer and the like are none of them
                source = arm.pretrained_as if arm else None
                known = pretrained.get((number, source, task.seed), {})
                row["pretrain_seconds"] = known.get("seconds", float("nan") if source else 0.0)
                # best validation loss of the pretraining
                row["pretrain_loss"] = known.get("best", float("nan"))
                rows.append(row)
        part = pd.DataFrame(rows)
        part["arm"] = pd.Categorical(
            part["arm"], [a for a in order if a in set(part["arm"])], ordered=True
        )
        part = part.sort_values(["labels", "arm", "pretrain_seed", "label_draw"])
        parts.append(part.astype({"arm": object}))
    table = pd.concat(parts, ignore_index=True)
    table["arm"] = pd.Categorical(
        table["arm"], [a for a in order if a in set(table["arm"])], ordered=True
    )
    table.attrs["by"] = [*grid[0].columns, "labels"]
    return table


def compare(
    experiment: Experiment | Sequence[Experiment] | pd.DataFrame,
    metrics: Sequence[str] = METRICS,
    progress: bool = True,
    client: Any = None,
    method: str = "t",
) -> pd.DataFrame:
    """Scratch against pretrained: mean, 95 % interval and paired relative change of each metric for
    each arm and budget.

    Takes an `Experiment` or several (which are run, or loaded from their store; with ``client``
    over Dask) or the table `run` returned. ``method`` of the intervals is "t" or "bootstrap"; see
    `statistics.summarise`. Raises TrainingError where no run ended well.
    """
    table = (
        experiment if isinstance(experiment, pd.DataFrame) else run(experiment, progress, client)
    )
    if len(table) and not (table["status"] == "ok").any():
        first = table["error"].iloc[0]
        raise TrainingError(f"none of the {len(table)} runs ended well; the first: {first}")
    return summarise(table, metrics, baseline=SCRATCH, by=grouping(table), method=method)


def plan(
    pilot: Experiment | Sequence[Experiment] | pd.DataFrame,
    half_width: float = 0.05,
    progress: bool = True,
    **settings: Any,
) -> pd.DataFrame:
    """The pretrainings × label draws that reach ``half_width`` with the fewest hours, from a pilot:
    see `statistics.plan`.

    Takes the pilot's experiments (which are run, or loaded from their store) or the table `run`
    returned.
    """
    table = pilot if isinstance(pilot, pd.DataFrame) else run(pilot, progress)
    return statistics.plan(table, half_width=half_width, **settings)
