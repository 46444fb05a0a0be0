"""One run of a grid: where it lies in the run store, how it is found there, and how it is done.

    STORE/pretrain-HASH     a pretraining; every arm that starts from it uses the same
    STORE/finetune-HASH     a fine-tuning, and its errors on a test set: test-HASH.json, and
                            test-HASH.csv structure by structure (`structure_errors`)
    STORE/longer-HASH.json  how many steps "scratch-longer" has: measured once, so that an
                            interrupted grid goes on as it began

The hashes are those of all that decides the numbers: network, data, objective, settings, start.

By hand, since experiment trackers find runs by name or time; here a run is found by what decides
its numbers, across grids, machines and moves of the code, with files that any tool reads.
"""

from __future__ import annotations

import dataclasses
import json
import numbers
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from filelock import FileLock

from ..errors import Busy, ConfigError, Interrupted, PotkitError
from ..structures.outputs import PART, Kind, read_json
from ..structures.storage import replacing
from ..training import checkpoints, pretrained
from ..training.evaluation import evaluate
from ..training.loop import finetune, pretrain
from ..training.repeatable import threads
from ..training.run_folder import Run, identity_hash
from . import operations, structure_errors
from .arms import SCRATCH

if TYPE_CHECKING:
    from .experiment import Experiment


@dataclasses.dataclass(frozen=True)
class Task:
    """One run. ``steps`` replaces the config's (scratch-longer); ``experiment`` counts where
    several are run together.

    ``seed`` is the pretraining's; ``draw`` counts the draws of labels that are nested in it.
    ``choice``: settings of fine-tuning that the protocol's search tries or has chosen. ``tuning``:
    a run of the search: scored on validation structures, never tested.
    """

    kind: str  # "pretrain" or "finetune"
    arm: str
    seed: int
    labels: int = 0
    steps: int | None = None
    experiment: int = 0
    draw: int = 0
    choice: tuple[tuple[str, Any], ...] = ()
    tuning: bool = False


class Executor:
    """Does the tasks of some experiments, here or (it can be pickled) elsewhere."""

    def __init__(self, experiments: Sequence[Experiment]) -> None:
        self.experiments = list(experiments)

    def __call__(self, task: Task) -> dict[str, Any]:
        """Run (or find) one task: a row with status "ok", "failed" with the error in one line, or
        "busy" if another process has it.

        Raises Interrupted after Ctrl-C or SIGTERM, which end the grid.
        """
        row = self.row(task)
        experiment = self.experiments[task.experiment]
        try:
            with threads(experiment.threads):
                return row | (_pretrain if task.kind == "pretrain" else _finetune)(experiment, task)
        except Interrupted:
            raise
        except Busy as error:
            return row | {"status": "busy", "error": str(error)}
        except PotkitError as error:
            return row | {"status": "failed", "error": str(error)}
        except Exception as error:
            # a bug or the machine: keep the other runs going, but say what it was
            return row | {
                "status": "failed",
                "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            }

    def row(self, task: Task) -> dict[str, Any]:
        """What is known of a task before it is done."""
        experiment = self.experiments[task.experiment]
        seeds = {"seed": experiment.finetune_seed(task.seed, task.draw)}
        seeds |= {"pretrain_seed": task.seed, "label_draw": task.draw}
        chosen = {"chosen": in_words(task.choice)} if experiment.search else {}
        if experiment.weights:
            arm = experiment.arms.get(task.arm)
            seeds["weights"] = arm.weights if arm else None
        return {
            **experiment.columns,
            "arm": task.arm,
            "labels": task.labels,
            **seeds,
            **chosen,
            "status": "ok",
            "error": None,
        }

    def stored(self, task: Task) -> dict[str, Any] | None:
        """The row of a finished task, if the store has it."""
        experiment = self.experiments[task.experiment]
        try:
            if task.kind == "pretrain":
                return self._whole(task, pretrain_folder(experiment, task.arm, task.seed))
            folder = finetune_folder(experiment, task)
            if task.tuning:
                return self._whole(task, folder)
            result = folder / f"test-{experiment.test.fingerprint()}.json"
            return self.row(task) | json.loads(result.read_text())
        except (OSError, ValueError, KeyError):
            # not there, or not whole: the run itself will say what is wrong
            return None

    def _whole(self, task: Task, folder: Path) -> dict[str, Any] | None:
        """The row of a run that needs no test, if it ended and, of a pretraining, its weights are
        there. Of a run of the search only its validation loss is asked for.
        """
        summary = read_json(folder / "summary.json")
        if summary["hash"] != read_json(folder / "run.json")["hash"]:
            return None
        if task.kind == "pretrain":
            if not (folder / "best.safetensors").is_file():
                return None
            experiment = self.experiments[task.experiment]
            return self.row(task) | _pretrained(experiment, task.arm, task.seed, summary)
        return self.row(task) | _summary(summary, folder)


def in_words(choice: tuple[tuple[str, Any], ...]) -> str:
    """Chosen settings as a table shows them."""
    return ", ".join(f"{key} {_shown(value)}" for key, value in choice)


def _shown(value: Any) -> str:
    """A number without the digits that say nothing; a word (of a schedule) or None as it is."""
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return f"{value:g}" if number else str(value)


# seeded weights pass through torch's one generator, and a Dask worker may have several threads
_building = threading.Lock()


def _model(experiment: Experiment, seed: int, arm: str | None = None):
    with _building:
        return experiment.build(seed, arm)


def _folder(experiment: Experiment, kind: str, what: dict[str, Any]) -> Path:
    return Path(experiment.store) / f"{kind}-{identity_hash(what)}"


def pretrain_folder(experiment: Experiment, arm: str, seed: int) -> Path:
    """Where the pretraining that ``arm`` starts from lies."""
    arm = experiment.arms[arm].pretrained_as
    config = experiment.pretrain_config.replace(seed=seed)
    more: dict[str, Any] = {}
    if earlier := experiment.arms[arm].after:
        before = pretrain_folder(experiment, earlier, seed).name
        more = {"after": before, "parts": experiment.arms[earlier].parts}
    return _folder(
        experiment,
        "pretrain",
        more
        | {
            "model": experiment.model,
            "vector": experiment.vectors.get(arm),
            "objective": experiment.objectives[arm].to_dict(),
            "data": experiment.pretrain_on.fingerprint(),
            "config": config.identity(),
        },
    )


def _settings(experiment: Experiment, task: Task):
    changes: dict[str, Any] = {"seed": experiment.finetune_seed(task.seed, task.draw)}
    if task.steps:
        changes |= {"steps": task.steps, "epochs": None}
    # scratch-longer is scratch with other steps, and so is scratch for twice the steps
    arm = experiment.arms.get(task.arm, experiment.arms[SCRATCH])
    changes = {**arm.finetune, **dict(task.choice), **changes}
    return experiment.finetune_config.replace(**changes), arm


def finetune_folder(experiment: Experiment, task: Task) -> Path:
    """Where a fine-tuning lies."""
    config, arm = _settings(experiment, task)
    train, valid = experiment.labelled(task.labels, experiment.finetune_seed(task.seed, task.draw))
    init = pretrain_folder(experiment, arm.name, task.seed).name if arm.pretrained_as else None
    more: dict[str, Any] = {"parts": arm.parts} if arm.parts != ("backbone",) else {}
    if train.info.get("isolated_in_file"):  # energies of atoms that the user's file has
        more["atomic_energies"] = train.info["atomic_energies"]
    if arm.weights:
        more["weights"] = pretrained.checksum(checkpoints.find(pretrained.resolve(arm.weights)))
    return _folder(
        experiment,
        "finetune",
        more
        | {
            "model": experiment.model,
            "init": init,
            "train": train.fingerprint(),
            "valid": valid.fingerprint(),
            "objective": experiment.supervised.to_dict(),
            "config": config.identity(),
        },
    )


def _summary(summary: dict[str, Any], folder: Path) -> dict[str, Any]:
    return {k: summary[k] for k in ("steps", "seconds", "best")} | {"run": folder.name}


def _pretrain(experiment: Experiment, task: Task) -> dict[str, Any]:
    folder = pretrain_folder(experiment, task.arm, task.seed)
    config = experiment.pretrain_config.replace(seed=task.seed, progress=False)
    model = _model(experiment, task.seed, task.arm)
    if earlier := experiment.arms[task.arm].after:
        # busy with another process: this one is asked for again later
        before = _pretrain(experiment, dataclasses.replace(task, arm=earlier))
        source = Path(experiment.store) / before["run"]
        checkpoints.transfer(model, source, experiment.arms[earlier].parts)
    run = pretrain(model, experiment.pretrain_on, experiment.objectives[task.arm], config, folder)
    return _pretrained(experiment, task.arm, task.seed, run.summary)


def _pretrained(
    experiment: Experiment, arm: str, seed: int, summary: dict[str, Any]
) -> dict[str, Any]:
    """What a row says of a pretraining: steps and seconds of those it goes on from included."""
    row = _summary(summary, pretrain_folder(experiment, arm, seed))
    while earlier := experiment.arms[arm].after:
        before = read_json(pretrain_folder(experiment, earlier, seed) / "summary.json")
        row |= {key: row[key] + before[key] for key in ("steps", "seconds")}
        arm = earlier
    return row


def _finetune(experiment: Experiment, task: Task) -> dict[str, Any]:
    folder = finetune_folder(experiment, task)
    result = folder / f"test-{experiment.test.fingerprint()}.json"
    config, arm = _settings(experiment, task)
    init: Path | str | None = arm.weights
    if arm.pretrained_as:
        init = pretrain_folder(experiment, arm.name, task.seed)
    seed = experiment.finetune_seed(task.seed, task.draw)
    train, valid = experiment.labelled(task.labels, seed)
    model = _model(experiment, seed)
    with warnings.catch_warnings():
        # said once for a grid, not in every run: see `experiment.unseen_elements`
        warnings.simplefilter("ignore", pretrained.UnseenElements)
        done: Run = finetune(
            model,
            train,
            valid,
            config.replace(progress=False),
            init,
            folder,
            experiment.supervised,
            parts=arm.parts,
        )
    if task.tuning:
        return _summary(done.summary, done.path)
    with_forces = experiment.test.forces is not None
    scores = evaluate(done.model, experiment.test, keep_forces=with_forces)
    structure_errors.keep(folder, experiment.test, scores)
    errors = {name: value for name, value in scores.to_dict().items() if name != "n_structures"}
    row = _summary(done.summary, done.path) | errors | {"n_test": scores.n_structures}
    with replacing(result, PART) as temporary:
        temporary.write_text(json.dumps(row))
    return row


MEASURED = Kind(
    "the measured cost of a pretraining",
    lambda path: {"steps", "seconds_per_step"} <= read_json(path).keys(),
)


def longer_steps(
    experiment: Experiment,
    done: dict[Task, dict[str, Any]],
    number: int,
    labels: int,
    choice: tuple[tuple[str, Any], ...] = (),
) -> int | None:
    """Fine-tuning steps of scratch-longer at a label budget; None where its length is not known,
    because no pretraining of an objective, or no scratch run, ended well.

    In operations: see `operations.longer_steps`. In steps: the pretraining's on top. In time: as
    many steps as the dearest pretraining (mean over seeds) lasted, at the scratch arm's seconds per
    step. Times vary from one measurement to the next, so the first one of a complete grid is kept
    in the store.
    """
    train, _ = experiment.labelled(labels, experiment.seeds[0])
    # what was chosen for scratch may hold its steps
    scratch_config = experiment.finetune_config.replace(**dict(choice))
    scratch_steps = scratch_config.total_steps(len(train))
    if experiment.longer == "operations":
        return operations.longer_steps(experiment, labels, scratch_steps)
    finished = {t: r for t, r in done.items() if t.experiment == number and r["status"] == "ok"}
    pretrainings: dict[str, list[dict]] = {}
    for task, row in finished.items():
        if task.kind == "pretrain":
            pretrainings.setdefault(task.arm, []).append(row)
    scratch = [
        r
        for t, r in finished.items()
        if t.kind == "finetune" and t.arm == SCRATCH and t.labels == labels
    ]
    if experiment.objectives.keys() - pretrainings.keys():
        return None
    if experiment.longer == "steps":
        return scratch_steps + max(rows[0]["steps"] for rows in pretrainings.values())
    if not scratch:
        return None
    measured = {
        "pretrain": sorted(r["run"] for rows in pretrainings.values() for r in rows),
        "scratch": sorted(r["run"] for r in scratch),
    }
    path = Path(experiment.store) / f"longer-{identity_hash(measured)}.json"
    with FileLock(path.with_suffix(".lock")):
        if path.is_file():
            try:
                return scratch_steps + int(json.loads(path.read_text())["steps"])
            except (ValueError, KeyError):
                raise ConfigError(f"{path}: not readable; delete it to measure anew") from None
        seconds = max(
            float(np.mean([r["seconds"] for r in rows])) for rows in pretrainings.values()
        )
        per_step = float(np.mean([r["seconds"] / r["steps"] for r in scratch]))
        steps = int(float(f"{seconds / per_step:.2g}"))
        complete = len(scratch) == len(experiment.seeds) * experiment.draws and all(
            len(r) == len(experiment.seeds) for r in pretrainings.values()
        )
        if complete and len(pretrainings) == len(experiment.objectives):
            with replacing(path, MEASURED) as temporary:
                cost = {"steps": steps, "seconds": seconds, "seconds_per_step": per_step}
                temporary.write_text(json.dumps(cost | measured, indent=1))
        return scratch_steps + steps
