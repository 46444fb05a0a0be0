"""Comparisons as data: a list of training runs in, a DataFrame out; what is finished in the run store is never run again.

An `Experiment` names a network, pretraining objectives, label budgets and seeds. For every seed and budget it trains the arms
    scratch          no pretraining
    scratch-longer   no pretraining, but as much longer as the (dearest) pretraining took
    one per entry of ``objectives``   the same fine-tuning, started from that pretraining's backbone; heads are new
on the same labelled structures with the same fine-tuning settings. Seeds change weights, batch order, corruption and the draw of
labelled structures; label budgets are nested (50 ⊂ 200). Budgets count validation structures too: a label is a label.
Each run lies in ``store`` under a hash of all that decides its numbers.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from . import models
from .config import TrainConfig
from .datasets import splits
from .errors import ConfigError, PotkitError
from .evaluation import evaluate
from .objectives import Objective, Supervised
from .runs import Run, identity_hash
from .statistics import METRICS, summarise
from .storage import replacing
from .structures import Structures
from .training import finetune, pretrain

SCRATCH, LONGER = "scratch", "scratch-longer"


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A grid of runs: arms × label budgets × seeds; see the module's docstring.

    ``model``: {"name": …, "preset": …, option: …}. ``pretrain_on``: unlabelled structures. ``train``: pool the label budgets are drawn
    from. ``test``: never seen by any run. ``vectors``: arm -> vector read-out to pretrain that arm with (default: the preset's).
    ``longer``: measure the pretraining's cost in "time" or "steps", or None to leave that arm out. ``valid_fraction``: the share of
    each label budget that chooses the best state. ``parts``: arm -> parts that are transferred (default: the backbone only).
    """

    model: dict[str, Any]
    train: Structures
    test: Structures
    labels: Sequence[int]
    objectives: dict[str, Objective] = dataclasses.field(default_factory=dict)
    pretrain_on: Structures | None = None
    seeds: Sequence[int] = (0, 1, 2)
    pretrain_config: TrainConfig = TrainConfig()
    finetune_config: TrainConfig = TrainConfig()
    supervised: Supervised = Supervised()
    longer: str | None = "time"
    valid_fraction: float = 0.1
    vectors: dict[str, str] = dataclasses.field(default_factory=dict)
    parts: dict[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    store: str | Path = "runs/store"
    jobs: int = 1

    def __post_init__(self) -> None:
        if self.objectives and self.pretrain_on is None:
            raise ConfigError("experiment: objectives need structures to pretrain on (pretrain_on)")
        if self.longer not in ("time", "steps", None):
            raise ConfigError(f"experiment: longer must be 'time', 'steps' or None, got {self.longer!r}")
        if not self.labels or not self.seeds:
            raise ConfigError("experiment: labels and seeds must not be empty")
        short = [n for n in self.labels if not 2 <= n <= len(self.train)]
        if short:
            raise ConfigError(f"experiment: a label budget of {short[0]} cannot be drawn from {len(self.train)} structures")
        strange = (self.vectors.keys() | self.parts.keys()) - self.objectives.keys()
        if strange:
            raise ConfigError(f"experiment: no arm {min(strange)!r}; there are {', '.join(self.objectives)}")
        taken = {SCRATCH, LONGER} & set(self.objectives)
        if taken:
            raise ConfigError(f"experiment: {taken.pop()!r} is the name of an arm that is always there")

    def build(self, seed: int, arm: str | None = None) -> models.Potential:
        """The network of an arm, freshly initialised; the same weights for the same seed in all arms."""
        options = dict(self.model)
        if arm in self.vectors:
            options["vector"] = self.vectors[arm]
        return models.build(options.pop("name"), options.pop("preset", "small"), seed=seed, **options)

    def labelled(self, count: int, seed: int) -> tuple[Structures, Structures]:
        """Training and validation structures of a label budget: nested in the budget, disjoint from each other."""
        n_valid = max(1, round(self.valid_fraction * count))
        rows = splits.label_budget(self.train, [count], seed=seed)[count]
        drawn = np.random.default_rng((seed, count)).permutation(rows)
        return self.train[np.sort(drawn[n_valid:])], self.train[np.sort(drawn[:n_valid])]


@dataclasses.dataclass(frozen=True)
class Task:
    """One run of a grid. ``steps`` replaces the config's (scratch-longer)."""

    kind: str  # "pretrain" or "finetune"
    arm: str
    seed: int
    labels: int = 0
    steps: int | None = None


def run(experiment: Experiment, progress: bool = True) -> pd.DataFrame:
    """All runs of the grid, a row each: arm, labels, seed, errors in eV and eV/Å, steps, seconds, and what failed why.

    A run that fails does not stop the others; its row carries the error. Runs go on from where an earlier call was stopped.
    """
    first = [Task("pretrain", arm, seed) for arm in experiment.objectives for seed in experiment.seeds]
    grid = [(count, seed) for count in experiment.labels for seed in experiment.seeds]
    first += [Task("finetune", SCRATCH, seed, count) for count, seed in grid]
    with _Workers(experiment) as workers:
        bar = tqdm(total=len(grid) * (1 + len(experiment.objectives) + bool(experiment.objectives and experiment.longer))
                   + len(first) - len(grid), desc="runs", disable=not progress)  # fmt: skip
        done = workers.all(first, bar)
        second = [Task("finetune", arm, seed, count) for arm in experiment.objectives for count, seed in grid]
        if experiment.objectives and experiment.longer:
            second += [Task("finetune", LONGER, seed, n, _longer_steps(experiment, done, n)) for n, seed in grid]
        done |= workers.all(second, bar)
        bar.close()
    rows = [row for task, row in done.items() if task.kind == "finetune"]
    before = {(t.arm, t.seed): r for t, r in done.items() if t.kind == "pretrain" and r["status"] == "ok"}
    for row in rows:
        source = before.get((row["arm"], row["seed"]), {})
        row["pretrain_seconds"] = source.get("seconds", float("nan") if row["arm"] in experiment.objectives else 0.0)
        row["pretrain_loss"] = source.get("best", float("nan"))  # best validation loss of the pretraining
    order = [SCRATCH, LONGER, *experiment.objectives]
    table = pd.DataFrame(rows)
    table["arm"] = pd.Categorical(table["arm"], [a for a in order if a in set(table["arm"])], ordered=True)
    failed = [r for r in done.values() if r["status"] != "ok"]
    if failed:
        tqdm.write(f"{len(failed)} of {len(done)} runs failed; the first: {failed[0]['error']}")
    return table.sort_values(["labels", "arm", "seed"]).reset_index(drop=True)


def compare(experiment: Experiment | pd.DataFrame, metrics: Sequence[str] = METRICS, progress: bool = True) -> pd.DataFrame:
    """Scratch against pretrained: mean, 95 % interval and paired relative change of each metric for each arm and budget.

    Takes an `Experiment` (which is run, or loaded from its store) or the table `run` returned; see `statistics.summarise`.
    """
    table = experiment if isinstance(experiment, pd.DataFrame) else run(experiment, progress)
    return summarise(table, metrics, baseline=SCRATCH)


def _longer_steps(experiment: Experiment, done: dict[Task, dict[str, Any]], labels: int) -> int:
    """Fine-tuning steps of scratch-longer. In time: the dearest pretraining (mean over seeds) at the scratch arm's seconds per step."""
    own = experiment.finetune_config.steps
    pretrainings: dict[str, list[dict]] = {}
    for task, row in done.items():
        if task.kind == "pretrain" and row["status"] == "ok":
            pretrainings.setdefault(task.arm, []).append(row)
    scratch = [r for t, r in done.items() if t.kind == "finetune" and t.labels == labels and r["status"] == "ok"]
    if not pretrainings or not scratch:
        return own
    if experiment.longer == "steps":
        return own + max(rows[0]["steps"] for rows in pretrainings.values())
    seconds = max(float(np.mean([r["seconds"] for r in rows])) for rows in pretrainings.values())
    per_step = float(np.mean([r["seconds"] / r["steps"] for r in scratch]))
    return own + int(float(f"{seconds / per_step:.2g}"))


# -- one run ------------------------------------------------------------------------------------------------------------------
def _folder(experiment: Experiment, kind: str, what: dict[str, Any]) -> Path:
    return Path(experiment.store) / f"{kind}-{identity_hash(what)}"


def _pretrain_folder(experiment: Experiment, task: Task) -> Path:
    config = experiment.pretrain_config.replace(seed=task.seed)
    return _folder(experiment, "pretrain", {
        "model": experiment.model, "vector": experiment.vectors.get(task.arm), "objective": experiment.objectives[task.arm].to_dict(),
        "data": experiment.pretrain_on.fingerprint(), "config": config.identity(),
    })  # fmt: skip


def execute(experiment: Experiment, task: Task) -> dict[str, Any]:
    """Run (or find) one task; always returns a row, with status "ok" or "failed" and the error in one line."""
    row: dict[str, Any] = {"arm": task.arm, "labels": task.labels, "seed": task.seed, "status": "ok", "error": None}
    try:
        return row | (_execute_pretrain if task.kind == "pretrain" else _execute_finetune)(experiment, task)
    except PotkitError as error:
        return row | {"status": "failed", "error": str(error)}
    except Exception as error:  # a bug or the machine: keep the other runs going, but say what it was
        return row | {"status": "failed", "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _summary(run: Run) -> dict[str, Any]:
    return {"steps": run.summary["steps"], "seconds": run.summary["seconds"], "best": run.summary["best"], "run": run.path.name}


def _execute_pretrain(experiment: Experiment, task: Task) -> dict[str, Any]:
    folder = _pretrain_folder(experiment, task)
    config = experiment.pretrain_config.replace(seed=task.seed, progress=False)
    model = experiment.build(task.seed, task.arm)
    return _summary(pretrain(model, experiment.pretrain_on, experiment.objectives[task.arm], config, folder))


def _execute_finetune(experiment: Experiment, task: Task) -> dict[str, Any]:
    init = _pretrain_folder(experiment, task) if task.arm in experiment.objectives else None
    changes = {"seed": task.seed} | ({"steps": task.steps} if task.steps else {})
    config = experiment.finetune_config.replace(**changes)
    train, valid = experiment.labelled(task.labels, task.seed)
    parts = tuple(experiment.parts.get(task.arm, ("backbone",)))
    more = {"parts": parts} if parts != ("backbone",) else {}
    folder = _folder(experiment, "finetune", more | {
        "model": experiment.model, "init": init.name if init else None, "train": train.fingerprint(), "valid": valid.fingerprint(),
        "objective": experiment.supervised.to_dict(), "config": config.identity(),
    })  # fmt: skip
    result = folder / f"test-{experiment.test.fingerprint()}.json"
    if result.is_file():
        return json.loads(result.read_text())
    model = experiment.build(task.seed)
    done = finetune(model, train, valid, config.replace(progress=False), init, folder, experiment.supervised, parts=parts)
    scores = evaluate(done.model, experiment.test)
    row = _summary(done) | {k: v for k, v in scores.to_dict().items() if k != "n_structures"} | {"n_test": scores.n_structures}
    with replacing(result) as temporary:
        temporary.write_text(json.dumps(row))
    return row


# -- many runs ----------------------------------------------------------------------------------------------------------------
_shared: Experiment | None = None


def _start_worker(experiment: Experiment, threads: int) -> None:
    global _shared
    _shared = experiment
    torch.set_num_threads(threads)


def _work(task: Task) -> dict[str, Any]:
    return execute(_shared, task)


class _Workers:
    """Runs tasks here (jobs = 1) or in that many processes, which get the experiment's data once and share the cores."""

    def __init__(self, experiment: Experiment) -> None:
        self.experiment, self.pool = experiment, None

    def __enter__(self) -> _Workers:
        if self.experiment.jobs > 1:
            threads = max(1, (os.cpu_count() or 1) // self.experiment.jobs)
            context = multiprocessing.get_context("spawn")  # forked children of a process that used CUDA or threads may hang
            self.pool = ProcessPoolExecutor(self.experiment.jobs, context, _start_worker, (self.experiment, threads))
        return self

    def __exit__(self, *error: object) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=True, cancel_futures=True)

    def all(self, tasks: Sequence[Task], bar: Any) -> dict[Task, dict[str, Any]]:
        done: dict[Task, dict[str, Any]] = {}
        if self.pool is None:
            for task in tasks:
                done[task] = execute(self.experiment, task)
                bar.update()
            return done
        futures = {self.pool.submit(_work, task): task for task in tasks}
        for future in as_completed(futures):
            done[futures[future]] = future.result()
            bar.update()
        return {task: done[task] for task in tasks}


