"""What a grid would cost: runs, structures, steps, operations and hours, with nothing run.

Steps follow from the settings. Operations are counted (see `operations`), hours estimated: the
seconds per step of runs of the same kind that the store holds, else one step measured here. Runs
that the store holds are counted apart, and cost nothing. Where data are not there, the runs and
steps that the settings alone tell are given, and what is missing.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from ..errors import ConfigError
from ..models import Potential
from ..objectives import Objective, total
from ..structures.store import Structures
from . import operations, search
from .arms import DOUBLED, LONGER, SCRATCH
from .experiment import Experiment
from .tasks import Executor, Task

COLUMNS = ("part", "labels", "runs", "stored", "structures", "steps", "operations", "hours")
PRETRAINING, SEARCH, FINETUNING = "pretraining", "search", "fine-tuning"


class Planned(NamedTuple):
    """An experiment of a grid, or why it cannot be made; ``known``: what its settings tell in any
    case, rows of part, labels, runs and steps.
    """

    columns: dict[str, str]
    experiment: Experiment | None
    missing: str = ""
    known: Sequence[dict[str, Any]] = ()


class _Run(NamedTuple):
    """A run of the grid: ``task`` is None where its settings are not chosen yet."""

    part: str
    labels: int
    arm: str
    steps: int | None
    task: Task | None


def table(grid: Sequence[Planned]) -> pd.DataFrame:
    """A row per experiment, part (pretraining, search, fine-tuning) and label budget.

    ``stored`` of the ``runs`` are finished; ``steps``, ``operations`` and ``hours`` are those of
    the others, each together. NaN: not known before other runs are done, such as the steps of
    scratch-longer in time. ``attrs["missing"]`` has a line per experiment without its data.
    """
    rows: list[dict[str, Any]] = []
    missing = []
    for plan in grid:
        if plan.experiment is None:
            where = "".join(f"{column} {name}: " for column, name in plan.columns.items())
            missing.append(f"{where}{plan.missing}")
            rows += [plan.columns | dict.fromkeys(COLUMNS, np.nan) | row for row in plan.known]
            continue
        for row in _of_experiment(plan.experiment):
            rows.append(plan.columns | row)
    made = pd.DataFrame(rows)
    made.attrs["missing"] = list(dict.fromkeys(missing))
    return made


def _of_experiment(e: Experiment) -> Iterator[dict[str, Any]]:
    executor = Executor([e])
    rows: dict[tuple[str, int], dict[str, Any]] = {}
    paces = _Paces(e)
    runs = list(_runs(e, executor))
    found = [executor.stored(run.task) if run.task else None for run in runs]
    for run, row in zip(runs, found, strict=True):
        if row is not None:
            paces.note(run, row)
    for run, row in zip(runs, found, strict=True):
        start = {"part": run.part, "labels": run.labels, "runs": 0, "stored": 0}
        start |= {"structures": paces.structures(run), "steps": 0, "operations": 0.0, "hours": 0.0}
        cell = rows.setdefault((run.part, run.labels), start)
        cell["runs"] += 1
        if row is not None:
            cell["stored"] += 1
            continue
        steps = np.nan if run.steps is None else run.steps
        cell["steps"] += steps
        cell["operations"] += steps * paces.operations(run)
        cell["hours"] += steps * paces.seconds(run) / 3600
    yield from rows.values()


def _runs(e: Experiment, executor: Executor) -> Iterator[_Run]:
    """Every run of an experiment, in the order they would be done."""
    seeds = [*e.seeds, *e.tuning_seeds]
    for arm in e.objectives:
        steps = e.pretrain_config.total_steps(operations.trained_on(e))
        for seed in seeds:
            yield _Run(PRETRAINING, 0, arm, steps, Task("pretrain", arm, seed))
    tried: dict[Task, dict[str, Any] | None] = {}
    for task in search.tries([e]):
        tried[task] = executor.stored(task)
        yield _Run(SEARCH, task.labels, task.arm, _steps(e, task), task)
    with_longer = bool(e.objectives and e.longer)
    choices = _choices(e, tried)
    longer = {}
    if with_longer:
        longer = {n: _longer(e, n, choices.get((0, SCRATCH, n), ())) for n in e.labels}
    if e.search and with_longer:
        steps = {(0, n): longer[n] for n in search.budgets(e)}
        for task in search.tries([e], [LONGER], steps):
            tried[task] = executor.stored(task)
            yield _Run(SEARCH, task.labels, LONGER, task.steps, task)
        choices = _choices(e, tried)
    for n in e.labels:
        once = _scratch_steps(e, n, choices.get((0, SCRATCH, n), ()))
        arms: dict[str, int | None] = dict.fromkeys(e.arms)
        arms |= {LONGER: longer[n]} if with_longer else {}
        arms |= {DOUBLED: 2 * once} if e.convergence else {}
        for arm, steps in arms.items():
            choice = choices.get((0, SCRATCH if arm == DOUBLED else arm, n))
            for seed in e.seeds:
                for draw in range(e.draws):
                    task = None
                    if not e.search or choice is not None:
                        task = Task("finetune", arm, seed, n, steps, 0, draw, choice or ())
                    # nobody knows how long scratch-longer is before time was measured
                    if arm == LONGER and steps is None:
                        yield _Run(FINETUNING, n, arm, None, None)
                        continue
                    taken = once if task is None else _steps(e, task)
                    yield _Run(FINETUNING, n, arm, steps or taken, task)


def _choices(e: Experiment, tried: dict[Task, dict[str, Any] | None]) -> search.Choices:
    """What the search chose for arms whose tries are all in the store."""
    open_arms = {task.arm for task, row in tried.items() if row is None}
    done = {t: row for t, row in tried.items() if row is not None and t.arm not in open_arms}
    return search.chosen([e], search.table([e], done)) if done else {}


def _scratch_steps(e: Experiment, labels: int, choice: search.Choice) -> int:
    train, _ = e.labelled(labels, e.seeds[0])
    return e.finetune_config.replace(**dict(choice)).total_steps(len(train))


def _steps(e: Experiment, task: Task) -> int:
    """Steps of a fine-tuning."""
    arm = e.arms.get(task.arm, e.arms[SCRATCH])
    config = e.finetune_config.replace(**{**arm.finetune, **dict(task.choice)})
    train, _ = e.labelled(task.labels, e.seeds[0])
    return task.steps or config.total_steps(len(train))


def _longer(e: Experiment, labels: int, choice: search.Choice) -> int | None:
    """Steps of scratch-longer; None where they follow from seconds that nobody has measured."""
    once = _scratch_steps(e, labels, choice)
    if e.longer == "operations":
        return operations.longer_steps(e, labels, once)
    if e.longer == "steps":
        steps = e.pretrain_config.total_steps(operations.trained_on(e))
        return once + steps * max(1 + _links(e, arm) for arm in e.objectives)
    return None


def _links(e: Experiment, arm: str) -> int:
    """How many pretrainings stand before that of ``arm``."""
    links = 0
    while earlier := e.arms[arm].after:
        arm = earlier
        links += 1
    return links


class _Paces:
    """Seconds and operations of one step of each kind of run of an experiment, found once."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment = experiment
        self.noted: dict[tuple[str, int], list[float]] = {}
        self.measured: dict[tuple[str, int], float] = {}
        self.counted: dict[tuple[str, int], float] = {}

    def _key(self, run: _Run) -> tuple[str, int]:
        """Arms are fine-tuned alike, and pretrained each in its way."""
        return (run.arm, 0) if run.part == PRETRAINING else ("", run.labels)

    def note(self, run: _Run, row: dict[str, Any]) -> None:
        """A finished run tells how long a step took."""
        own = 1
        if run.part == PRETRAINING:  # whose seconds and steps include those it goes on from
            own = 1 + _links(self.experiment, run.arm)
        if own == 1 and row["steps"]:
            self.noted.setdefault(self._key(run), []).append(row["seconds"] / row["steps"])

    def _of(self, run: _Run) -> tuple[Potential, Structures, Objective, int]:
        e = self.experiment
        if run.part == PRETRAINING:
            size = e.pretrain_config.batch_size
            return e.build(0, run.arm), e.pretrain_on, e.objectives[run.arm], size
        train, _ = e.labelled(run.labels, e.seeds[0])
        return e.build(0), train, e.supervised, e.finetune_config.batch_size

    def structures(self, run: _Run) -> int:
        """How many structures a run trains on."""
        if run.part == PRETRAINING:
            return operations.trained_on(self.experiment)
        return len(self._of(run)[1])

    def operations(self, run: _Run) -> float:
        """Of one step."""
        key = self._key(run)
        if key not in self.counted:
            e = self.experiment
            if run.part == PRETRAINING:
                self.counted[key] = operations.of_pretraining_step(e, run.arm)
            else:
                self.counted[key] = operations.of_finetuning_step(e, run.labels)
        return self.counted[key]

    def seconds(self, run: _Run) -> float:
        """Of one step: the mean of what is stored, else measured here."""
        key = self._key(run)
        if key in self.noted:
            return float(np.mean(self.noted[key]))
        if key not in self.measured:
            self.measured[key] = seconds_of_step(*self._of(run))
        return self.measured[key]


def seconds_of_step(
    model: Potential, structures: Structures, objective: Objective, batch_size: int
) -> float:
    """Wall time of forward and backward pass of one batch, s; the second of two, for the first one
    warms up.
    """
    size = min(batch_size, len(structures))
    model.extend(objective.needed(), objective.inputs, seed=0)
    used = model.parts(objective.needed())
    weights = [p for name, p in model.named_parameters() if name.split(".")[0] in used]
    rows = np.linspace(0, len(structures) - 1, size).round().astype(int)
    generator = torch.Generator().manual_seed(0)
    taken = 0.0
    for _ in range(2):
        begun = time.perf_counter()
        batch = objective.corrupt(structures.batch(rows), generator)
        loss, _terms = total(objective.terms(model(batch, objective.needed()), batch))
        torch.autograd.grad(loss, weights, allow_unused=True)
        taken = time.perf_counter() - begun
    return taken


def in_words(planned: pd.DataFrame) -> str:
    """The table as people read it, with sums and what is missing below."""
    if not len(planned):
        raise ConfigError("a grid without experiments")
    shown = planned.copy()
    shown["labels"] = [f"{n:.0f}" if n else "" for n in planned["labels"]]
    for column in ("runs", "stored", "structures", "steps"):
        shown[column] = [_whole(value) for value in planned[column]]
    shown["operations"] = [_short(value, "{:.2g}") for value in planned["operations"]]
    shown["hours"] = [_short(value, "{:.2g}") for value in planned["hours"]]
    sums = planned[["runs", "stored", "steps", "operations", "hours"]].sum()
    left = int(sums["runs"] - sums["stored"])
    lines = [shown.to_string(index=False)]
    lines.append(
        f"together: {left} runs to do and {sums['stored']:.0f} in the store; "
        f"{sums['steps']:.0f} steps, {sums['operations']:.2g} operations, about "
        f"{sums['hours']:.2g} hours in one process on this machine"
    )
    if planned[["steps", "operations", "hours"]].isna().any(axis=None):
        lines.append("?: not known before other runs are done, or without the data; not in the sum")
    lines += [f"missing: {line}" for line in planned.attrs["missing"]]
    return "\n".join(lines)


def _whole(value: float) -> str:
    return "?" if np.isnan(value) else f"{value:.0f}"


def _short(value: float, form: str) -> str:
    return "?" if np.isnan(value) else form.format(value)
