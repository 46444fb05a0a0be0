"""What a grid would cost: runs, structures, steps, operations and hours, with nothing run.

Steps follow from the settings. Operations are counted (see `operations`), hours estimated: the
seconds per step of runs of the same kind that the store holds, else one step measured here. Runs
that the store holds are counted apart, and cost nothing. For registered sets that are not there,
structures are those of their records, and a few structures of an embedded set stand in where a step
is counted or measured (see `stand_ins`): such numbers are estimates. For other data that are not
there, the runs and steps that the settings alone tell are given, and what is missing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch

from ..errors import ConfigError
from ..models import Potential
from ..objectives import Objective, total
from ..structures.store import Structures
from . import operations, search, stand_ins
from .arms import DOUBLED, LONGER, SCRATCH
from .experiment import Experiment
from .tasks import Executor, Task, pretrain_folder

COLUMNS = ("part", "labels", "runs", "stored", "structures", "steps", "operations", "hours")
# a GPU's sustained 10^12 operations per second, assumed, not measured: 2 to 5 % of what cards of
# the years 2020 to 2023 state for float32 (20 to 67). Networks this small wait for memory and for
# kernels to start.
TFLOPS = 1.0
# atoms in the batches on which a step with stand-ins is counted and measured
FEW_ATOMS = 128
PRETRAINING, SEARCH, FINETUNING = "pretraining", "search", "fine-tuning"


class Planned(NamedTuple):
    """An experiment of a grid, or why it cannot be made; ``known``: what its settings tell in any
    case, rows of part, labels, runs and steps. ``estimate``: of an experiment with stand-ins.
    """

    columns: dict[str, str]
    experiment: Experiment | None
    missing: str = ""
    known: Sequence[dict[str, Any]] = ()
    estimate: stand_ins.Estimate | None = None


class _Run(NamedTuple):
    """A run of the grid: ``task`` is None where its settings are not chosen yet."""

    part: str
    labels: int
    arm: str
    steps: int | None
    task: Task | None


def table(grid: Sequence[Planned], measure: bool = True) -> pd.DataFrame:
    """A row per experiment, part (pretraining, search, fine-tuning) and label budget.

    ``stored`` of the ``runs`` are finished; ``steps``, ``operations`` and ``hours`` are those of
    the others, each together. NaN: not known before other runs are done, such as the steps of
    scratch-longer in time. ``about``: numbers of a row are estimates, for data are missing.
    ``attrs["missing"]`` has a line per missing set, and one per experiment of which nothing else
    is known. ``attrs["compiled"]``: some hours come from a measured step that was not compiled, of
    runs that will be. ``measure=False``: hours only from stored runs, NaN without.
    """
    rows: list[dict[str, Any]] = []
    missing = []
    compiled = False
    # of all experiments: many pretrain alike
    measured: dict[str, float] = {}
    pretrained: set[tuple[str, int]] = set()
    for plan in grid:
        if plan.experiment is None:
            where = "".join(f"{column} {name}: " for column, name in plan.columns.items())
            missing.append(f"{where}{plan.missing}")
            empty = dict.fromkeys(COLUMNS, np.nan) | {"about": False}
            rows += [plan.columns | empty | row for row in plan.known]
            continue
        if plan.estimate is not None:
            missing += plan.estimate.missing.values()
        paces = _Paces(plan.experiment, plan.estimate, measured, measure)
        for row in _of_experiment(paces, pretrained):
            rows.append(plan.columns | row | {"about": plan.estimate is not None})
        compiled |= paces.compiled
    made = pd.DataFrame(rows)
    made.attrs["missing"] = list(dict.fromkeys(missing))
    made.attrs["compiled"] = compiled
    return made


def _of_experiment(paces: _Paces, pretrained: set[tuple[str, int]]) -> Iterator[dict[str, Any]]:
    """Rows; of pretrainings only those that are not among ``pretrained``, which grows by them."""
    e, estimate = paces.experiment, paces.estimate
    executor = Executor([e])
    rows: dict[tuple[str, int], dict[str, Any]] = {}

    def stored(task: Task | None) -> dict[str, Any] | None:
        # runs on data that are missing cannot be looked up
        return None if task is None or estimate is not None else executor.stored(task)

    runs = list(_runs(e, paces, stored))
    found = [stored(run.task) for run in runs]
    for run, row in zip(runs, found, strict=True):
        if row is not None:
            paces.note(run, row)
    for run, row in zip(runs, found, strict=True):
        labels = run.labels if estimate is None else estimate.labels.get(run.labels, 0)
        start = {"part": run.part, "labels": labels, "runs": 0}
        start |= {"stored": 0 if estimate is None else np.nan}
        start |= {"structures": paces.structures(run), "steps": 0, "operations": 0.0, "hours": 0.0}
        cell = rows.setdefault((run.part, run.labels), start)
        if run.part == PRETRAINING and run.task is not None:
            folder = pretrain_folder(e, run.arm, run.task.seed).name
            # stand-ins alike may stand for sets of different size
            known = (folder, paces.pretrained_on())
            if known in pretrained:
                continue
            pretrained.add(known)
        cell["runs"] += 1
        if row is not None:
            cell["stored"] += 1
            continue
        steps = np.nan if run.steps is None else run.steps
        cell["steps"] += steps
        cell["operations"] += steps * paces.operations(run)
        cell["hours"] += steps * paces.seconds(run) / 3600
    yield from rows.values()


def _runs(
    e: Experiment, paces: _Paces, stored: Callable[[Task | None], dict[str, Any] | None]
) -> Iterator[_Run]:
    """Every run of an experiment, in the order they would be done."""
    seeds = [*e.seeds, *e.tuning_seeds]
    for arm in e.objectives:
        steps = e.pretrain_config.total_steps(paces.pretrained_on())
        for seed in seeds:
            yield _Run(PRETRAINING, 0, arm, steps, Task("pretrain", arm, seed))
    tried: dict[Task, dict[str, Any] | None] = {}

    def search_runs(tasks: list[Task], longer: dict | None = None) -> Iterator[_Run]:
        """``tasks``, and what is tried beyond them as far as the store tells."""
        while tasks:
            for task in tasks:
                tried[task] = stored(task)
                yield _Run(SEARCH, task.labels, task.arm, _steps(paces, task), task)
            done = _ended(tried)
            tasks = search.further([e], search.table([e], done), longer) if done else []

    yield from search_runs(list(search.tries([e])))
    with_longer = bool(e.objectives and e.longer)
    choices = _choices(e, tried)
    longer = {}
    if with_longer:
        longer = {n: _longer(paces, n, choices.get((0, SCRATCH, n), ())) for n in e.labels}
    if e.search and with_longer:
        steps = {(0, n): longer[n] for n in search.budgets(e)}
        yield from search_runs(list(search.tries([e], [LONGER], steps)), steps)
        choices = _choices(e, tried)
    for n in e.labels:
        once = _scratch_steps(paces, n, choices.get((0, SCRATCH, n), ()))
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
                    taken = once if task is None else _steps(paces, task)
                    yield _Run(FINETUNING, n, arm, steps or taken, task)


def _choices(e: Experiment, tried: dict[Task, dict[str, Any] | None]) -> search.Choices:
    """What the search chose for arms whose tries are all in the store."""
    done = _ended(tried)
    return search.chosen([e], search.table([e], done)) if done else {}


def _ended(tried: dict[Task, dict[str, Any] | None]) -> dict[Task, dict[str, Any]]:
    """The tries of arms of which all are in the store."""
    open_arms = {task.arm for task, row in tried.items() if row is None}
    return {t: row for t, row in tried.items() if row is not None and t.arm not in open_arms}


def _scratch_steps(paces: _Paces, labels: int, choice: search.Choice) -> int:
    config = paces.experiment.finetune_config.replace(**dict(choice))
    return config.total_steps(paces.trained_on(labels))


def _steps(paces: _Paces, task: Task) -> int:
    """Steps of a fine-tuning."""
    e = paces.experiment
    arm = e.arms.get(task.arm, e.arms[SCRATCH])
    config = e.finetune_config.replace(**{**arm.finetune, **dict(task.choice)})
    return task.steps or config.total_steps(paces.trained_on(task.labels))


def _longer(paces: _Paces, labels: int, choice: search.Choice) -> int | None:
    """Steps of scratch-longer; None where they follow from seconds that nobody has measured."""
    e = paces.experiment
    once = _scratch_steps(paces, labels, choice)
    steps = e.pretrain_config.total_steps(paces.pretrained_on())
    if e.longer == "operations":
        dearest = max(steps * paces.of_pretraining_chain(arm) for arm in e.objectives)
        return once + int(np.ceil(dearest / paces.of_finetuning_step(labels)))
    if e.longer == "steps":
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
    """Structures, seconds and operations of one step of each kind of run of an experiment, found
    once; ``measured`` keeps what was found with stand-ins, for experiments that share it.
    """

    def __init__(
        self,
        experiment: Experiment,
        estimate: stand_ins.Estimate | None,
        measured: dict[str, float],
        measure: bool,
    ) -> None:
        self.experiment = experiment
        self.estimate = estimate
        self.shared = measured
        self.measure = measure
        self.noted: dict[tuple[str, int], list[float]] = {}
        self.measured: dict[tuple[str, int], float] = {}
        self.compiled = False  # whether a step was measured as it is that runs will compile
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

    def pretrained_on(self) -> int:
        """How many structures a pretraining trains on."""
        if self.estimate is not None:
            return self.estimate.pretrain_on
        return operations.trained_on(self.experiment)

    def trained_on(self, labels: int) -> int:
        """How many structures a fine-tuning trains on."""
        if self.estimate is not None:
            return self.estimate.trained_on[labels]
        return len(self.experiment.labelled(labels, self.experiment.seeds[0])[0])

    def structures(self, run: _Run) -> int:
        """How many structures a run trains on."""
        return self.pretrained_on() if run.part == PRETRAINING else self.trained_on(run.labels)

    def operations(self, run: _Run) -> float:
        """Of one step."""
        if run.part == PRETRAINING:
            return self.of_pretraining_step(run.arm)
        return self.of_finetuning_step(run.labels)

    def of_pretraining_chain(self, arm: str) -> float:
        """Operations of one step of each pretraining from the first to that of ``arm``."""
        earlier = self.experiment.arms[arm].after
        return self.of_pretraining_step(arm) + (
            self.of_pretraining_chain(earlier) if earlier else 0
        )

    def of_pretraining_step(self, arm: str) -> float:
        """Operations."""
        key = (arm, 0)
        if key not in self.counted:
            if self.estimate is None:
                self.counted[key] = operations.of_pretraining_step(self.experiment, arm)
            else:
                self.counted[key] = self._estimated(operations.of_step, PRETRAINING, arm, 0)
        return self.counted[key]

    def of_finetuning_step(self, labels: int) -> float:
        """Operations."""
        key = ("", labels)
        if key not in self.counted:
            if self.estimate is None:
                self.counted[key] = operations.of_finetuning_step(self.experiment, labels)
            else:
                self.counted[key] = self._estimated(operations.of_step, FINETUNING, "", labels)
        return self.counted[key]

    def seconds(self, run: _Run) -> float:
        """Of one step: the median of what is stored, for a run may have been halted for hours; else
        measured here.
        """
        key = self._key(run)
        if key in self.noted:
            return float(np.median(self.noted[key]))
        if not self.measure:
            return np.nan
        e = self.experiment
        config = e.pretrain_config if run.part == PRETRAINING else e.finetune_config
        self.compiled |= bool(config.compile)
        if key not in self.measured:
            if self.estimate is None:
                self.measured[key] = seconds_of_step(*self._of(run.part, run.arm, run.labels))
            else:
                self.measured[key] = self._estimated(seconds_of_step, run.part, run.arm, run.labels)
        return self.measured[key]

    def _of(self, part: str, arm: str, labels: int) -> tuple[Potential, Structures, Objective, int]:
        e = self.experiment
        if part == PRETRAINING:
            size = e.pretrain_config.batch_size
            return e.build(0, arm), e.pretrain_on, e.objectives[arm], size
        train = e.train if self.estimate else e.labelled(labels, e.seeds[0])[0]
        return e.build(0), train, e.supervised, e.finetune_config.batch_size

    def _estimated(self, what: Callable[..., float], part: str, arm: str, labels: int) -> float:
        """``what`` of a step on the stand-in, in proportion to the atoms of a batch."""
        e, estimate = self.experiment, self.estimate
        model, structures, objective, batch_size = self._of(part, arm, labels)
        relative = estimate.pretraining if part == PRETRAINING else estimate.training
        n = estimate.pretrain_on if part == PRETRAINING else estimate.trained_on[labels]
        few = max(1, int(FEW_ATOMS / structures.n_atoms.mean()))
        few = min(few, batch_size, len(structures))
        vector = e.vectors.get(arm)
        told = [what.__name__, e.model, vector, objective.to_dict(), structures.fingerprint(), few]
        key = json.dumps(told, sort_keys=True)
        if key not in self.shared:
            self.shared[key] = what(model, structures, objective, few)
        return self.shared[key] * min(batch_size, n) / few * relative


def seconds_of_step(
    model: Potential, structures: Structures, objective: Objective, batch_size: int
) -> float:
    """Wall time of forward and backward pass of one batch, s, not compiled: the shortest of four,
    for the first ones warm up and other work may come between.
    """
    size = min(batch_size, len(structures))
    model.extend(objective.needed(), objective.inputs, seed=0)
    used = model.parts(objective.needed())
    weights = [p for name, p in model.named_parameters() if name.split(".")[0] in used]
    rows = np.linspace(0, len(structures) - 1, size).round().astype(int)
    generator = torch.Generator().manual_seed(0)
    taken = []
    for _ in range(4):
        begun = time.perf_counter()
        batch = objective.corrupt(structures.batch(rows), generator)
        loss, _terms = total(objective.terms(model(batch, objective.needed()), batch))
        torch.autograd.grad(loss, weights, allow_unused=True)
        taken.append(time.perf_counter() - begun)
    return min(taken)


def in_words(planned: pd.DataFrame, tflops: float = TFLOPS) -> str:
    """The table as people read it, with sums and what is missing below; "~" marks estimates.

    ``tflops``: what a GPU is assumed to sustain, 10^12 operations per second.
    """
    if not len(planned):
        raise ConfigError("a grid without experiments")
    if not (np.isfinite(tflops) and tflops > 0):
        raise ConfigError(f"tflops must be a number above 0, got {tflops}")
    shown = planned.drop(columns="about")
    marks = ["~" if about else "" for about in planned["about"]]
    pairs = list(zip(planned["labels"], marks, strict=True))
    shown["labels"] = [f"{mark}{n:.0f}" if n else "" for n, mark in pairs]
    for column in ("runs", "stored"):
        shown[column] = [_short(value, "{:.0f}") for value in planned[column]]
    forms = {"structures": "{:.0f}", "steps": "{:.0f}", "operations": "{:.2g}", "hours": "{:.2g}"}
    for column, form in forms.items():
        values = zip(planned[column], marks, strict=True)
        shown[column] = [_short(value, mark + form) for value, mark in values]
    numbers = planned[["runs", "stored", "steps", "operations", "hours"]]
    sums = numbers.sum()
    left = int(sums["runs"] - sums["stored"])
    about = "about " if planned["about"].any() else ""
    # no sum where nothing is known
    hours = "?" if numbers["hours"].isna().all() else f"{sums['hours']:.2g}"
    lines = [shown.to_string(index=False)]
    lines.append(
        f"together: {left} runs to do and {sums['stored']:.0f} in the store; "
        f"{about}{sums['steps']:.0f} steps, {about}{sums['operations']:.2g} operations, about "
        f"{hours} hours in one process on this machine"
    )
    if not numbers["operations"].isna().all():
        lines.append(
            f"on a GPU: about {sums['operations'] / (tflops * 1e12) / 3600:.2g} hours, if it "
            f"sustains {tflops:g} TFLOP/s (an assumption, not measured; --tflops changes it)"
        )
    if planned.attrs["compiled"]:
        lines.append("hours of runs that compile: their step was measured without; they take fewer")
    if planned["about"].any():
        lines.append(
            "~: estimated, for data are missing; structures by their records, a step counted and "
            "measured on a few structures of the set that stands in"
        )
    if numbers[["steps", "operations", "hours"]].isna().any(axis=None):
        lines.append("?: not known before other runs are done, or without the data; not in the sum")
    again = (planned["part"] == PRETRAINING) & (planned["runs"] == 0)
    if again.any():
        lines.append("0 runs: a pretraining that an experiment above has, done once for both")
    lines += [f"missing: {line}" for line in planned.attrs["missing"]]
    return "\n".join(lines)


def _short(value: float, form: str) -> str:
    return "?" if np.isnan(value) else form.format(value)
