"""One loop for every objective: pretraining and fine-tuning differ only in what is corrupted and
scored.

Read from the bottom: `pretrain` and `finetune` prepare a model and call `fit`; `fit` takes steps
(`step.take_step`) until done, validating, writing checkpoints and metrics on the way. What is
random in a step follows from (seed, step, process), so a run that was killed goes on exactly as if
it had not been.

Processes are started and joined by Lightning Fabric (one process, several GPUs, torchrun, SLURM).
Its module wrapper is not used: it casts outputs to float32, which rounds total energies, and DDP's
buckets expect the same parameters in every step. Instead the gradient is summed over processes in
one flat all-reduce, with counts summed first, so the result is that of one process with the whole
batch however atoms are spread.
"""

from __future__ import annotations

import logging
import os
import sys
import time
import warnings
from collections.abc import Collection
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.loggers import TensorBoardLogger
from lightning_fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from torch import Tensor

from ..datasets import label_checks
from ..datasets.references import CHOICES, ReferenceEnergies
from ..errors import ConfigError, DataError, Interrupted, TrainingError
from ..kernels.compiling import compiled
from ..models import Potential
from ..objectives import Objective, Supervised
from ..structures.arrays import MAIN_LABELS
from ..structures.elements import SYMBOLS
from ..structures.neighbors import check_geometry
from ..structures.outputs import PART, read_json
from ..structures.progress import bar as progress_bar
from ..structures.progress import first_process
from ..structures.store import Structures
from . import checkpoints, pretrained, start
from .config import TrainConfig
from .memory import keep_freed_memory, out_of_memory
from .normalization import normalization
from .repeatable import repeatable
from .run_folder import Run, RunFolder, identity_hash, weights_hash
from .step import State, Training, batch_indices, learning_rate, take_step
from .stopping import Stop
from .validation import validate

__all__ = [
    "batch_indices",
    "finetune",
    "fit",
    "learning_rate",
    "make_fabric",
    "pretrain",
    "validate",
]


def make_fabric(config: TrainConfig) -> Fabric:
    """The process group a config asks for; under torchrun or srun the launcher's numbers count.
    Launched already. Raises ConfigError where so many processes cannot be had.
    """
    devices, nodes, environment = _processes(config)
    accelerator = {"auto": "cuda" if torch.cuda.is_available() else "cpu"}.get(
        config.device, config.device
    )
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        found = torch.cuda.device_count()
        hint = ""
        if found == 1 and isinstance(environment, SLURMEnvironment):
            hint = "; each task sees one GPU; ask with --gpus-per-node, or srun --gpu-bind=none"
        raise ConfigError(f"config: device cuda: {devices} GPUs asked for, {found} found{hint}")
    if accelerator == "cpu" and devices > (most := max(8, 4 * (os.cpu_count() or 1))):
        raise ConfigError(f"config: devices: {devices} processes on a CPU, at most {most} fit here")
    if accelerator == "cpu":
        keep_freed_memory()
    strategy = "ddp" if devices * nodes > 1 else "auto"
    tf32 = config.precision == "tf32"
    # process-wide, so every run says which it wants
    torch.set_float32_matmul_precision("high" if tf32 else "highest")
    precision = "32-true" if tf32 else config.precision
    log = logging.getLogger("lightning_fabric.utilities.rank_zero")
    level = log.level
    # "Using bfloat16 …": what the config says already, once per run of a grid
    log.setLevel(logging.WARNING)
    try:
        fabric = Fabric(
            accelerator=accelerator,
            devices=devices,
            num_nodes=nodes,
            strategy=strategy,
            precision=precision,
            plugins=[] if environment is None else [environment],
        )
    finally:
        log.setLevel(level)
    fabric.launch()
    return fabric


def _processes(config: TrainConfig) -> tuple[int, int, ClusterEnvironment | None]:
    """Processes on each machine, machines, and who has started them (None: whom Fabric finds).

    Of torchrun and srun, which start every process, the numbers count; else those of ``config``,
    and Fabric starts the others. An allocation of Slurm's is not enough: a batch script or a shell
    in it is one process, however many tasks it has. Raises ConfigError where srun's tasks are not
    spread evenly, or were asked for in a way that Lightning does not read.
    """
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        return devices, int(os.environ["WORLD_SIZE"]) // devices, None
    if not SLURMEnvironment.detect():
        return config.devices, config.nodes, None
    # SLURM_NTASKS is that of the allocation in a batch script, too, and the shell of an salloc is a
    # step of its own, with a SLURM_STEP_ID: what srun alone tells is how many tasks it started
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks == 1:
        return config.devices, config.nodes, LightningEnvironment()
    nodes = int(os.environ.get("SLURM_STEP_NUM_NODES") or os.environ.get("SLURM_NNODES", 1))
    devices = tasks // nodes
    if devices * nodes != tasks:
        raise ConfigError(f"srun: {tasks} tasks cannot be spread evenly over {nodes} nodes")
    try:
        environment = SLURMEnvironment()
        environment.validate_settings(devices, nodes)
    except (RuntimeError, ValueError):
        raise ConfigError(
            f"srun: {tasks} tasks were asked for in a way that cannot be read here; ask for them "
            f"with --nodes={nodes} --ntasks-per-node={devices}"
        ) from None
    return devices, nodes, environment


def fit(
    model: Potential,
    structures: Structures,
    objective: Objective,
    config: TrainConfig,
    out: str | Path,
    valid: Structures | None = None,
    notes: dict[str, Any] | None = None,
    whole: Structures | None = None,
    overwrite: bool = False,
    extend: int | None = None,
    rounded: Collection[str] = (),
) -> Run:
    """Train ``model`` in place on ``structures`` and keep the run in folder ``out``; see `pretrain`
    and `finetune`.

    A finished run of the same identity is loaded, a broken one resumed, a different one is an
    error, or replaced with ``overwrite``; a folder with anything else in it is left as it is, with
    an error. The model ends with the best weights on ``valid`` if given, else the last. ``whole``
    is the set both were cut from, if an error is to count structures there.

    ``extend``: train the finished run in ``out`` by so many more steps, in a folder beside it
    (`extended_folder`); the finished run stays as it is. Weights, optimizer, averages and the order
    of the data go on, the schedule of ``config`` begins anew over the further steps, and the
    weights kept are the best of both. Raises ConfigError where no such run is finished, or its last
    state is gone.

    ``rounded``: weights and buffers that follow from all others and the data, but for last digits
    that depend on the number of threads: a run that differs in them alone is the same.

    Raises TrainingError when the loss is no longer a number or memory does not suffice for one
    structure; Interrupted after Ctrl-C; Busy while another process trains in ``out``.
    """
    if not len(structures):
        raise DataError("no structures to train on")
    if not model.n_parameters():
        raise ConfigError("this network has no parameters: there is nothing to train")
    model.extend(objective.needed(), objective.inputs, seed=config.seed)
    valid = valid if valid is not None and len(valid) else None
    identity = _identity(model, structures, valid, objective, config, notes)
    exact = weights_hash(model, but=rounded) if rounded else None
    folder = RunFolder(Path(out), identity, config, overwrite and extend is None, exact)
    finished: RunFolder | None = None
    begins = 0
    if extend is not None:
        finished = folder
        begins = _steps_done(finished)
        config = config.replace(steps=begins + extend, epochs=None)
        notes = {**(notes or {}), "extends": {"hash": identity_hash(finished.identity)}}
        changed = {"config": config.identity(), "notes": notes}
        identity = finished.identity | changed
        folder = RunFolder(extended_folder(out, extend), identity, config, overwrite, exact)
        _say(
            config,
            f"{folder.path}: {extend} more steps after the {begins} of {finished.path}; the "
            f"{config.schedule} schedule begins anew, with rate {config.lr:g}",
        )
    if folder.finished:
        return _found(folder, config, model)
    if finished is not None:
        folder.check_start(finished)
    header = {
        "objective": objective.to_dict(),
        "config": config.model_dump(),
        "data": structures.info.get("name", "unnamed"),
        "data_fingerprint": structures.fingerprint(),
        **(notes or {}),
    }
    for part in (structures, valid):
        if part is not None:
            model.check_elements(part.elements)
            model.check_charges(torch.tensor(part.charge))
            objective.check(part)
    for part in (structures, valid) if whole is None else (whole,):
        if part is not None:
            check_geometry(part)
    fabric = make_fabric(config)
    with folder.lock() if fabric.global_rank == 0 else nullcontext():
        if fabric.world_size == 1 and folder.finished:  # by another process, while we were looking
            return _found(folder, config, model)
        if finished is not None and fabric.global_rank == 0:
            folder.go_on_from(finished, header)
        fabric.barrier()
        fast = compiled(
            model, objective.needed(), config.compile, fabric.device.type, config.precision
        )
        with fast, repeatable(fabric.device.type):
            training = Training(fabric, model, structures, objective, config, begins)
            return _train(training, folder, valid, header)


def extended_folder(out: str | Path, steps: int) -> Path:
    """Where the run in ``out`` lies once it is trained by ``steps`` more: beside it."""
    path = Path(out)
    if path.name in ("", ".."):  # "." says where it lies, not what it is called
        path = Path(os.path.abspath(path))
    return path.with_name(f"{path.name}-plus{steps}")


def _steps_done(folder: RunFolder) -> int:
    """Steps of a finished run. Raises ConfigError where it is not finished."""
    if not folder.finished:
        raise ConfigError(
            f"{folder.path}: no finished run of these settings to train further; "
            "finish it by the same call without extend"
        )
    return int(read_json(folder.summary)["steps"])


def _say(config: TrainConfig, text: str) -> None:
    """One line on stderr (stdout may be a pipe nobody reads), by the first process only."""
    if config.progress and first_process():
        print(text, file=sys.stderr, flush=True)


def _found(folder: RunFolder, config: TrainConfig, model: Potential) -> Run:
    run = folder.load(into=model)
    with suppress(DataError):  # where nothing may be written, it is as good without
        folder.tell_settings()
    _say(
        config, f"{folder.path}: this run is finished ({run.summary['steps']} steps), not repeated"
    )
    return run


def _train(
    training: Training, folder: RunFolder, valid: Structures | None, header: dict[str, Any]
) -> Run:
    """The loop of `fit`, in a folder that is ours."""
    fabric, model, config = training.fabric, training.model, training.config
    structures, objective = training.structures, training.objective
    at_most = min(config.batch_size, len(structures))
    if fabric.world_size > at_most:
        raise ConfigError(
            f"config: a batch of {at_most} cannot be shared by {fabric.world_size} processes"
        )
    model.to(fabric.device, dtype=training.dtype)
    model.train()
    if config.resident:
        _make_resident(structures, fabric.device)
    state = State(fabric, model, model.parts(objective.needed()), config)
    resumed = folder.resume(state)
    validate_every = config.steps_between_validations(len(structures))
    checkpoint_every = config.checkpoint_every or validate_every
    writer = fabric.global_rank == 0
    if writer:
        folder.begin(header, resumed)
    if resumed > training.begins:
        _say(config, f"{folder.path}: goes on after step {resumed} of {training.steps}")
    board = _board(folder, config, resumed) if writer else None
    broken = _FirstBroken(training, folder)
    clock = _Clock(state)
    bar = progress_bar(
        shown=config.progress and writer,
        total=training.steps,
        initial=state.step,
        desc=folder.path.name,
        leave=False,
    )
    stop = Stop(fabric.world_size)
    try:
        while state.step < training.steps:
            loss, terms, norm = take_step(training, state)
            broken.look(state.step - 1, loss, norm)
            state.note(loss, terms)
            bar.update()
            at_end = state.step == training.steps
            validates = state.step % validate_every == 0 or at_end
            if state.step % config.log_every == 0 or validates:
                broken.stop_if_any()
                row = {"step": state.step, **state.row(terms)}
                row["gradient_norm"] = float(norm)
                row["lr"] = state.optimizer.param_groups[0]["lr"]
                row["seconds"] = clock.seconds()
                if valid is not None and validates:
                    scores = _validate(training, state, folder, valid, header)
                    row |= {f"valid_{name}": value for name, value in scores.items()}
                bar.set_postfix({k: f"{row[k]:.4g}" for k in ("loss", "valid_loss") if k in row})
                if writer:
                    folder.log(row)
                if board is not None:
                    board.log_metrics({k: v for k, v in row.items() if k != "step"}, row["step"])
            if at_end:
                break
            if state.step % checkpoint_every == 0:
                broken.stop_if_any()
                clock.write()
                if writer:
                    folder.checkpoint(model, state, header)
            if stop.asked:
                broken.stop_if_any()
                clock.write()
                folder.checkpoint(model, state, header)
                raise Interrupted(
                    f"{folder.path}: interrupted after step {state.step}; the same call goes on "
                    "from there"
                )
    finally:
        state.freeze(False)
        stop.restore()
        bar.close()
        if board is not None:
            board.finalize("ended")
    clock.write()
    if writer:
        if valid is None:
            # a run without validation ends with (and keeps) the averaged weights
            with state.averaged():
                checkpoints.save(folder.best, model, header | {"step": state.step}, kind=PART)
        folder.finish(model, state, header)
    fabric.barrier()
    return folder.load(into=model)


def _make_resident(structures: Structures, device: torch.device) -> None:
    """Copy the packed set to ``device``. Raises TrainingError where it does not fit there."""
    try:
        structures.to(device)
    except (torch.OutOfMemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        name = structures.info.get("name", "structures")
        raise TrainingError(
            f"{name}: the {len(structures)} training structures do not fit the device's memory "
            "beside the network; set resident: false"
        ) from None


def _board(folder: RunFolder, config: TrainConfig, resumed: int) -> Any:
    """Fabric's logger for TensorBoard, in the folder of the run; None where not asked for. Rows
    after step ``resumed`` that an interrupted process has written are hidden.
    """
    if config.log == "none":
        return None
    try:
        return TensorBoardLogger(
            folder.path, name="", version="tensorboard", purge_step=resumed + 1
        )
    except ModuleNotFoundError:
        raise ConfigError(
            "config: log: tensorboard needs the package tensorboard: pip install potkit[log]"
        ) from None


def _validate(
    training: Training,
    state: State,
    folder: RunFolder,
    valid: Structures,
    header: dict[str, Any],
) -> dict[str, float]:
    """Score the averaged weights on ``valid``, and keep them if they are the best so far."""
    fabric, model, config = training.fabric, training.model, training.config
    judged_by = training.objective.validation()
    with state.averaged():
        scores = validate(
            fabric, model, valid, judged_by, config, training.dtype, state.valid_limit
        )
        if not np.isfinite(scores["loss"]):
            raise TrainingError(
                f"{folder.path}: the validation loss after step {state.step} is not a finite number"
            )
        if scores["loss"] < state.best:
            state.best = scores["loss"]
            if fabric.global_rank == 0:
                kept = header | {"step": state.step, "valid": scores}
                checkpoints.save(folder.best, model, kept, kind=PART)
    return scores


class _FirstBroken:
    """The first step whose loss or gradient is not finite, found without waiting for the device."""

    def __init__(self, training: Training, folder: RunFolder) -> None:
        self.training = training
        self.folder = folder
        self.step = torch.full((), -1, dtype=torch.long, device=training.fabric.device)

    def look(self, step: int, loss: Tensor, norm: Tensor) -> None:
        """Note ``step`` (from 0) if it is the first one that broke."""
        finite = torch.isfinite(loss) & torch.isfinite(norm)
        self.step = torch.where((self.step < 0) & ~finite, step, self.step)

    def stop_if_any(self) -> None:
        """Raise TrainingError that names the step and its structures. Waits for the device."""
        step = int(self.step)
        if step < 0:
            return
        structures = self.training.structures
        folder = self.folder
        rows = self.training.rows(step)
        names = structures.system_names()
        systems = list(dict.fromkeys(names[number] for number in structures.system[rows]))[:5]
        good = folder.last if folder.last.exists() else "the initial one"
        raise TrainingError(
            f"{folder.path}: the loss of step {step} or its gradient is not a finite number; its "
            f"structures: {rows.tolist()} ({', '.join(systems)}); the last good state is {good}"
        )


class _Clock:
    """Seconds a run has taken, over all its stretches."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.start = time.perf_counter()

    def seconds(self) -> float:
        """Seconds so far, this stretch included."""
        return self.state.seconds + time.perf_counter() - self.start

    def write(self) -> None:
        """Put the seconds so far into the state."""
        now = time.perf_counter()
        self.state.seconds += now - self.start
        self.start = now


def _identity(
    model: Potential,
    structures: Structures,
    valid: Structures | None,
    objective: Objective,
    config: TrainConfig,
    notes: dict[str, Any] | None,
) -> dict[str, Any]:
    """All that decides the numbers a run ends with."""
    return {
        "model": getattr(model, "recipe", {"name": type(model).__name__}),
        "weights": weights_hash(model),
        "data": structures.fingerprint(),
        "valid": valid.fingerprint() if valid is not None else None,
        "objective": objective.to_dict(),
        "config": config.identity(),
        "notes": notes or {},
    }


def pretrain(
    model: Potential,
    structures: Structures,
    objective: Objective,
    config: TrainConfig | None = None,
    out: str | Path = "runs/pretrain",
    valid: Structures | None = None,
    overwrite: bool = False,
    extend: int | None = None,
) -> Run:
    """Train ``model`` on unlabelled ``structures`` with a self-supervised ``objective``; of twenty
    or more the share ``config.valid_fraction`` (5 %) is set aside for validation.

    Labels of ``structures`` are not looked at, unless the objective asks for them
    (`ForceConditionedDenoise`); then reference energies and the unit of energies and forces follow
    from them as in `finetune`. ``out`` holds the run: config, metrics, best and last checkpoint;
    with ``overwrite`` another run that lies there is replaced. ``extend``: further steps for the
    finished run in ``out``, see `fit`. Returns the Run. Raises ConfigError
    for a ``config`` that chooses references or a normalization of labels that are not read.
    """
    config = config or TrainConfig()
    if objective.labels():
        objective.check(structures)
        labels = {
            *objective.labels(),
            *(objective.needed() if structures.energy is not None else ()),
        }
        normalization(structures, config, labels=tuple(labels)).put_into(model)
    else:
        for name in ("references", "normalization"):
            if getattr(config, name) != TrainConfig.model_fields[name].default:
                raise ConfigError(
                    f"config: {name} is for labels, which {objective.name} does not read; "
                    "set it for the fine-tuning"
                )
    notes = {"task": "pretrain"}
    share = config.valid_fraction
    if valid is not None or len(structures) < 20 or not share:
        return fit(model, structures, objective, config, out, valid, notes, None, overwrite, extend)
    train, valid = structures.split((1 - share, share), seed=0, by="structure-within-system")
    return fit(model, train, objective, config, out, valid, notes, structures, overwrite, extend)


def finetune(
    model: Potential,
    train: Structures,
    valid: Structures | None = None,
    config: TrainConfig | None = None,
    init: str | Path | Run | None = None,
    out: str | Path = "runs/finetune",
    objective: Supervised | None = None,
    references: str | ReferenceEnergies | None = None,
    parts: tuple[str, ...] | None = None,
    overwrite: bool = False,
    extend: int | None = None,
) -> Run:
    """Train ``model`` on the labels of ``train``; ``init`` is a checkpoint (or Run, or the name of
    pretrained weights) whose ``parts`` it starts from (the denoise paper's text: the backbone; its
    code: the energy head too, see `checkpoints.transfer`); default: the parts on the card of
    pretrained weights, else the backbone.

    ``references``: as ``config.references`` ("fit" is "least-squares" too), the name of a table of
    isolated atoms or a file of them, or ReferenceEnergies; default: what ``config`` says. They,
    the unit of the energy head and the mean of the energies follow from ``train`` and ``config``
    (see `potkit.training.normalization`), not from ``init``. Validation and test labels are never
    used for any of them. Heads that were trained on labels and are among ``parts`` keep the unit
    they were trained in, and references are fitted to what they leave of the energies: the run
    begins at the forces of ``init``, and at its energies up to references. ``overwrite`` and
    ``extend`` as in `pretrain`.

    Of a partly labelled set each structure is trained on what it has. Isolated atoms that came
    with the file (``info["isolated_in_file"]``) are the references where ``config`` chooses none.
    With ``objective.energy`` 0 energies may be missing; they then have an arbitrary zero. Raises
    ConfigError where ``config`` chooses other references than ``references``; DataError where the
    labels tell that forces have the wrong sign or unit (`config.check_labels`).
    """
    config = config or TrainConfig()
    objective = objective or (Supervised() if train.forces is not None else Supervised(forces=0.0))
    for part, role in ((train, "train"), (valid, "valid")):
        missing = [
            label
            for label in objective.labels()
            if part is not None
            and (getattr(part, label) is None or (len(part) and not part.labelled(label).any()))
        ]
        if missing:
            unread = part.info.get("unread", [])
            hint = f"; not read: {'; '.join(unread)}" if unread else ""
            name = part.info.get("name", role)
            raise DataError(f"{name}: no {missing[0]} to fine-tune on (labels of {role}){hint}")
    for line in _what_is_trained(train, objective):
        _say(config, line)
    if config.check_labels and "forces" in objective.labels():
        _check_labels(train)
    if references is None:
        config = _with_isolated_atoms(train, valid, config)
    fitted = references in (None, "fit", "least-squares")
    if references is not None:
        config, references = _given_references(config, references, train)
    notes: dict[str, Any] = {"task": "finetune", "init": None}
    if init is not None:
        source = init.checkpoint if isinstance(init, Run) else pretrained.resolve(init)
        pretrained.check_elements(source, train.elements)
        if overwrite and checkpoints.find(source).resolve().parent == Path(out).resolve():
            raise ConfigError(
                f"{out}: holds the weights to start from, which are not overwritten; "
                "choose another folder"
            )
        parts = parts or pretrained.parts_of(source)
        report = checkpoints.transfer(model, source, parts)
        _say(config, str(report))
        notes["init"] = {"parts": list(parts), "copied": len(report.copied), "new": len(report.new)}
    begin = normalization(train, config, references, _known(train))
    fitted = fitted and config.references == "least-squares"
    unit = None if init is None else start.carried_unit(model, source, parts or ())
    rounded: tuple[str, ...] = ()
    if train.energy is None:  # their zero is arbitrary, but heads that are taken over have a unit
        begin = begin if unit is None else begin._replace(scale=unit)
    elif unit is not None:
        begin = start.with_carried_heads(model, train, begin, unit, fitted)
        rounded = ("references",) if fitted else ()  # to what the network says, see `start`
    else:
        start.check_references(begin, valid or train, config, fitted)
    begin.put_into(model)
    return fit(model, train, objective, config, out, valid, notes, None, overwrite, extend, rounded)


def _known(structures: Structures) -> tuple[str, ...]:
    """Those of "energy" and "forces" that ``structures`` have."""
    return tuple(name for name in MAIN_LABELS if getattr(structures, name) is not None)


def _check_labels(train: Structures) -> None:
    """Raise DataError where forces are gradients, or labels have other units than eV and eV/Å."""
    if not np.isfinite(train.pos).all():
        return  # `fit` names the structure
    verdict = label_checks.judge(train, thorough=False)
    if verdict.state != "wrong":
        return
    told = ", ".join(f"{e.question} is {e.value:.3g}" for e in verdict.evidence if not e.fits)
    raise DataError(
        f"{train.info.get('name', 'train')}: {verdict.says} ({told}, 1 would be right); "
        "check_labels: false (--config-set check_labels=false) trains on them as they are"
    )


def _what_is_trained(train: Structures, objective: Objective) -> list[str]:
    """What a user would not expect of the labels, a line each."""
    name = train.info.get("name", "train")
    lines = []
    counts = {label: int(train.labelled(label).sum()) for label in MAIN_LABELS}
    if any(0 < count < len(train) for count in counts.values()):
        lines.append(
            f"{name}: of {len(train)} training structures {counts['energy']} have an energy, "
            f"{counts['forces']} forces; each is trained on what it has"
        )
    if "energy" not in objective.labels():
        lines.append(f"{name}: trained on forces alone, so energies have an arbitrary zero")
    elif "forces" not in objective.labels() and counts["forces"]:
        lines.append(f"{name}: there are forces, but only energies are trained on")
    if train.stress is not None and "stress" not in objective.labels():
        lines.append(f"{name}: there is a stress, but it is not trained on")
    return lines


def _with_isolated_atoms(
    train: Structures, valid: Structures | None, config: TrainConfig
) -> TrainConfig:
    """``config`` whose references are the isolated atoms that came with the file of ``train``, if
    nothing else was chosen and they cover its elements.
    """
    chosen = {"references", "isolated_energies"} & config.model_fields_set
    if not train.info.get("isolated_in_file") or chosen or train.energy is None:
        return config
    table = train.info["atomic_energies"]
    elements = {*train.elements, *(valid.elements if valid is not None else ())}
    missing = [SYMBOLS[z] for z in elements if SYMBOLS[z] not in table]
    if missing:
        warnings.warn(
            f"{train.info.get('name', 'train')}: no isolated atom of {', '.join(missing)} in the "
            "file, so references are a fit (least-squares)",
            stacklevel=3,
        )
        return config
    return config.replace(references="isolated", isolated_energies=table)


def _given_references(
    config: TrainConfig, given: str | ReferenceEnergies, train: Structures
) -> tuple[TrainConfig, ReferenceEnergies]:
    """``config`` that says what was ``given`` beside it, and the energies."""
    word = "least-squares" if given == "fit" else given
    chosen = TrainConfig.model_fields["references"].default
    if config.references not in (word, chosen):
        raise ConfigError(
            f"references are given twice: {config.references} in the settings, {given} beside them"
        )
    if isinstance(word, str) and word in CHOICES:
        config = config.replace(references=word)
    return config, ReferenceEnergies.choose(train, given, config.isolated_energies)
