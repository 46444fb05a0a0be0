"""One loop for every objective: pretraining and fine-tuning differ only in what is corrupted and scored.

Read from the bottom: `pretrain` and `finetune` prepare a model and call `fit`; `fit` runs `_step` until done, validating, writing
checkpoints and metrics on the way. Everything random in a step is drawn from a generator seeded by (seed, step, process), and the
structures of a step follow from (seed, step), so a run that was killed goes on exactly as if it had not been.

Processes are started and joined by Lightning Fabric (one process, several GPUs, torchrun, SLURM). Its module wrapper is not used: it
casts outputs to float32, which rounds total energies, and DDP's buckets expect the same parameters in every step. Instead the
gradient is summed over processes in one flat all-reduce, with counts summed first, so the result is that of one process with the
whole batch however atoms are spread.
"""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments import SLURMEnvironment, TorchElasticEnvironment
from torch import Tensor
from tqdm.auto import tqdm

from . import checkpoints
from .config import TrainConfig
from .datasets.references import ReferenceEnergies
from .errors import ConfigError, DataError, TrainingError
from .models import Potential
from .neighbors import check_overlaps
from .objectives import Objective, Supervised, Term, total
from .runs import Run, RunFolder
from .structures import Structures


def make_fabric(config: TrainConfig) -> Fabric:
    """The process group a config asks for; under torchrun or SLURM the launcher's numbers count. Launched already."""
    devices, nodes = config.devices, config.nodes
    if TorchElasticEnvironment.detect():
        devices = int(os.environ["LOCAL_WORLD_SIZE"])
        nodes = int(os.environ["WORLD_SIZE"]) // devices
    elif SLURMEnvironment.detect() and int(os.environ.get("SLURM_NTASKS", 1)) > 1:
        nodes = int(os.environ["SLURM_NNODES"])
        devices = int(os.environ["SLURM_NTASKS"]) // nodes
    accelerator = {"auto": "cuda" if torch.cuda.is_available() else "cpu"}.get(config.device, config.device)
    if accelerator == "cuda" and devices > torch.cuda.device_count():
        raise ConfigError(f"config: {devices} GPUs asked for, {torch.cuda.device_count()} found")
    strategy = "ddp" if devices * nodes > 1 else "auto"
    fabric = Fabric(accelerator=accelerator, devices=devices, num_nodes=nodes, strategy=strategy, precision=config.precision)
    fabric.launch()
    return fabric


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Rate of step ``step`` (from 0): linear warm-up, flat, then cosine to ``min_lr`` (denoise paper §2.5) or constant."""
    warm, flat = config.warmup * steps, config.flat * steps
    if step < warm:
        return config.lr * min((step + 1) / warm, 1.0)
    if step < warm + flat or config.schedule == "constant":
        return config.lr
    done = (step - warm - flat) / max(steps - warm - flat, 1.0)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (1.0 + np.cos(np.pi * min(done, 1.0)))


def batch_indices(step: int, batch_size: int, n: int, seed: int) -> np.ndarray:
    """The structures of a step: a walk through endless epochs, each a permutation seeded by (seed, epoch)."""
    size = min(batch_size, n)
    first, last = step * size, (step + 1) * size
    parts = []
    for epoch in range(first // n, (last - 1) // n + 1):
        order = np.random.default_rng((seed, epoch)).permutation(n)
        parts.append(order[max(first - epoch * n, 0) : last - epoch * n])
    return np.concatenate(parts)


def _draw(generator: torch.Generator, *key: int | str) -> torch.Generator:
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    return generator.manual_seed(int.from_bytes(digest, "big"))


class _State:
    """What changes while a run goes on, and how it is written down and taken up again."""

    def __init__(self, fabric: Fabric, model: Potential, used: set[str], config: TrainConfig) -> None:
        self.model, self.step, self.seconds, self.best = model, 0, 0.0, float("inf")
        self.trained = {n: p for n, p in model.named_parameters() if n.split(".")[0] in used and p.requires_grad}
        self.optimizer = torch.optim.AdamW(
            list(self.trained.values()), lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        if fabric.world_size > 1:
            for tensor in model.state_dict().values():
                torch.distributed.broadcast(tensor, 0)
        self.ema = {n: p.detach().clone() for n, p in self.trained.items()} if config.ema else {}
        self.window: dict[str, list] = {}  # sum and count of the loss and every term since the last row of metrics

    def averaged(self):
        """A context in which the model holds the averaged weights (if there are any)."""
        return _Swap(self.trained, self.ema) if self.ema else nullcontext()

    def note(self, loss: Tensor, terms: list[Term]) -> None:
        """Add a step to the window, without waiting for the device."""
        for name, value, count in [("loss", loss, 1), *((t.name, t.total, t.count) for t in terms)]:
            entry = self.window.setdefault(name, [0.0, 0])
            entry[0] = entry[0] + value.double()
            entry[1] = entry[1] + (count.double() if isinstance(count, Tensor) else count)

    def row(self, terms: list[Term]) -> dict[str, float]:
        """Means over the window, which starts anew."""
        row = {name: float(value) / max(float(count), 1.0) for name, (value, count) in self.window.items()}
        self.window = {}
        return row | {t.name: t.finish(row[t.name]) for t in terms if t.finish}

    def tensors(self) -> dict[str, Tensor]:
        out = {f"ema.{n}": t for n, t in self.ema.items()}
        for name, parameter in self.trained.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                out[f"optimizer.{name}/{key}"] = value
        return out

    def header(self) -> dict[str, Any]:
        window = {name: [float(value), float(count)] for name, (value, count) in self.window.items()}
        return {"step": self.step, "seconds": self.seconds, "best": self.best, "window": window}

    def restore(self, tensors: dict[str, Tensor], header: dict[str, Any], source: str) -> None:
        checkpoints.restore(self.model, checkpoints.weights(tensors), source)
        device = next(iter(self.trained.values())).device
        for key, value in checkpoints.weights(tensors, "ema.").items():
            self.ema[key].copy_(value)
        for key, value in checkpoints.weights(tensors, "optimizer.").items():
            name, slot = key.rsplit("/", 1)
            self.optimizer.state[self.trained[name]][slot] = value.to(device)
        self.step, self.seconds, self.best = header["step"], header["seconds"], header["best"]
        self.window = {name: list(entry) for name, entry in header["window"].items()}


class _Swap:
    def __init__(self, live: dict[str, Tensor], other: dict[str, Tensor]) -> None:
        self.live, self.other = live, other

    def _swap(self) -> None:
        with torch.no_grad():
            for name, parameter in self.live.items():
                held = parameter.detach().clone()
                parameter.copy_(self.other[name])
                self.other[name].copy_(held)

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *_: object) -> None:
        self._swap()


class _Stop:
    """Turns Ctrl-C and SIGTERM into a request that is met between two steps, so the state written is a whole one.

    Only in the main thread of a single process; several processes would stop at different steps, they keep the usual signals.
    """

    def __init__(self, world_size: int) -> None:
        self.asked, self.old = False, {}
        if world_size == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.old[number] = signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        if self.asked:  # the second request does not wait
            raise KeyboardInterrupt
        self.asked = True

    def restore(self) -> None:
        for number, handler in self.old.items():
            signal.signal(number, handler)


def _sum_counts(fabric: Fabric, terms: list[Term]) -> list[Term]:
    """Terms with their counts summed over all processes."""
    if fabric.world_size == 1:
        return terms
    counts = torch.stack([torch.as_tensor(t.count, dtype=torch.float64, device=fabric.device) for t in terms])
    counts = fabric.all_reduce(counts, reduce_op="sum")
    return [t._replace(count=c.to(t.total.dtype)) for t, c in zip(terms, counts)]


def _step(fabric, state, structures, objective, config, steps, dtype, generator) -> tuple[Tensor, list[Term], Tensor]:
    """One optimizer step; returns loss, terms and gradient norm as device tensors (nothing here waits for a GPU but the
    neighbour list and the removal of atoms, whose sizes the host must know)."""
    rows = batch_indices(state.step, config.batch_size, len(structures), config.seed)[fabric.global_rank :: fabric.world_size]
    batch = structures.batch(rows, fabric.device, dtype)
    batch = objective.corrupt(batch, _draw(generator, config.seed, state.step, fabric.global_rank))
    with fabric.autocast():
        prediction = state.model(batch, objective.needed())
    terms = _sum_counts(fabric, objective.terms(prediction, batch))
    loss, _ = total(terms)
    state.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    parameters = list(state.trained.values())
    if fabric.world_size > 1:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        used = torch.tensor([p.grad is not None for p in parameters], device=fabric.device)
        scores = torch.stack([loss.detach(), *(t.total.detach() for t in terms)])
        flat = torch.cat([g.flatten() for g in [*grads, used.to(grads[0].dtype), scores.to(grads[0].dtype)]])
        *grads, used, scores = fabric.all_reduce(flat, reduce_op="sum").split([*(g.numel() for g in grads), len(used), len(scores)])
        for p, g, anywhere in zip(parameters, grads, used.tolist()):
            p.grad = g.view_as(p) if anywhere else None  # weight decay must not touch what no process used
        loss, terms = scores[0], [t._replace(total=s) for t, s in zip(terms, scores[1:])]
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip or float("inf"))
    for group in state.optimizer.param_groups:
        group["lr"] = learning_rate(state.step, steps, config)
    state.optimizer.step()
    if state.ema:
        torch._foreach_lerp_(list(state.ema.values()), [p.detach() for p in parameters], 1.0 - config.ema)
    state.step += 1
    return loss.detach(), [t._replace(total=t.total.detach()) for t in terms], norm.detach()


def validate(fabric, model, structures, objective, config, dtype) -> dict[str, float]:
    """Mean of every term over ``structures``, exact over batches and processes, with the same corruption at every call."""
    size = config.eval_batch_size or 2 * config.batch_size
    generator = torch.Generator(device=fabric.device)
    sums: dict[str, list] = {}
    model.eval()
    chunks = [np.arange(a, min(a + size, len(structures))) for a in range(0, len(structures), size)]
    with torch.no_grad():
        for number, rows in list(enumerate(chunks))[fabric.global_rank :: fabric.world_size]:
            batch = structures.batch(rows, fabric.device, dtype)
            batch = objective.corrupt(batch, _draw(generator, config.seed, "valid", number))
            with fabric.autocast():
                prediction = model(batch, objective.needed())
            for term in objective.terms(prediction, batch):
                pair = torch.stack([term.total.double(), torch.as_tensor(term.count, dtype=torch.float64, device=fabric.device)])
                kept = sums.setdefault(term.name, [torch.zeros_like(pair), term])
                kept[0] = kept[0] + pair
    model.train()
    out, loss = {}, 0.0
    gathered: list[dict] = [{k: (v[0].tolist(), v[1].weight, v[1].finish) for k, v in sums.items()}]
    if fabric.world_size > 1:
        gathered = [None] * fabric.world_size  # type: ignore[list-item]
        torch.distributed.all_gather_object(gathered, {k: (v[0].tolist(), v[1].weight, None) for k, v in sums.items()})
        finishers = {k: v[1].finish for k, v in sums.items()}
    for name in dict.fromkeys(n for part in gathered for n in part):
        entries = [part[name] for part in gathered if name in part]
        mean = sum(e[0][0] for e in entries) / max(sum(e[0][1] for e in entries), 1.0)
        loss += entries[0][1] * mean
        finish = entries[0][2] if fabric.world_size == 1 else finishers.get(name)
        out[name] = finish(mean) if finish else mean
    return {"loss": loss, **out}


def fit(
    model: Potential,
    structures: Structures,
    objective: Objective,
    config: TrainConfig,
    out: str | Path,
    valid: Structures | None = None,
    notes: dict[str, Any] | None = None,
) -> Run:
    """Train ``model`` in place on ``structures`` and keep the run in folder ``out``; see `pretrain` and `finetune`.

    A finished run of the same identity is loaded, a broken one resumed, a different one is an error. The model ends with the best
    weights on ``valid`` if given, else the last. Raises TrainingError when the loss is no longer a number.
    """
    if not len(structures):
        raise DataError("no structures to train on")
    valid = valid if valid is not None and len(valid) else None
    steps = config.total_steps(len(structures))
    folder = RunFolder(Path(out), _identity(model, structures, valid, objective, config, notes), config)
    if folder.finished:
        return folder.load(into=model)
    for part in (structures, valid):
        if part is not None:
            model.check_elements(part.elements)
            objective.check(part)
            check_overlaps(part.validate())
    fabric = make_fabric(config)
    if fabric.world_size > min(config.batch_size, len(structures)):
        raise ConfigError(f"config: a batch of {min(config.batch_size, len(structures))} cannot be shared by {fabric.world_size} processes")
    dtype = torch.float64 if config.precision == "64-true" else torch.float32
    model.to(fabric.device, dtype=dtype)
    model.train()
    if config.resident:
        structures.to(fabric.device)
    state = _State(fabric, model, model.parts(objective.needed()), config)
    resumed = folder.resume(state)
    validate_every = config.validate_every or max(1, steps // 10)
    checkpoint_every = config.checkpoint_every or validate_every
    generator = torch.Generator(device=fabric.device)
    writer = fabric.global_rank == 0
    header = {"objective": objective.to_dict(), "config": config.model_dump(), "data": structures.info.get("name", "unnamed"),
              "data_fingerprint": structures.fingerprint(), **(notes or {})}  # fmt: skip
    if writer:
        folder.begin(header, resumed)
    first_bad = torch.full((), -1, dtype=torch.long, device=fabric.device)
    clock = time.perf_counter()
    bar = tqdm(total=steps, initial=state.step, desc=folder.path.name, disable=not (config.progress and writer), leave=False)

    stop = _Stop(fabric.world_size)

    def stop_if_broken() -> None:
        bad = int(first_bad)
        if bad >= 0:
            rows = batch_indices(bad, config.batch_size, len(structures), config.seed)
            raise TrainingError(
                f"{folder.path}: the loss of step {bad} or its gradient is not a finite number; its structures: {rows.tolist()}; "
                f"the last good state is {folder.last if folder.last.exists() else 'the initial one'}"
            )

    try:
        while state.step < steps:
            loss, terms, norm = _step(fabric, state, structures, objective, config, steps, dtype, generator)
            first_bad = torch.where((first_bad < 0) & ~(torch.isfinite(loss) & torch.isfinite(norm)), state.step - 1, first_bad)
            state.note(loss, terms)
            bar.update()
            at_end = state.step == steps
            if state.step % config.log_every == 0 or at_end or state.step % validate_every == 0:
                stop_if_broken()
                row = {"step": state.step, **state.row(terms)}
                row |= {"gradient_norm": float(norm), "lr": state.optimizer.param_groups[0]["lr"]}
                row["seconds"] = state.seconds + time.perf_counter() - clock
                if valid is not None and (state.step % validate_every == 0 or at_end):
                    with state.averaged():
                        scores = validate(fabric, model, valid, objective, config, dtype)
                        if not np.isfinite(scores["loss"]):
                            raise TrainingError(f"{folder.path}: the validation loss after step {state.step} is not a finite number")
                        row |= {f"valid_{k}": v for k, v in scores.items()}
                        if scores["loss"] < state.best:
                            state.best = scores["loss"]
                            if writer:
                                checkpoints.save(folder.best, model, header | {"step": state.step, "valid": scores})
                bar.set_postfix({k: f"{row[k]:.4g}" for k in ("loss", "valid_loss") if k in row})
                if writer:
                    folder.log(row)
            if state.step % checkpoint_every == 0 and not at_end:
                stop_if_broken()
                state.seconds += time.perf_counter() - clock
                clock = time.perf_counter()
                if writer:
                    folder.checkpoint(model, state, header)
            if stop.asked and not at_end:
                stop_if_broken()
                state.seconds += time.perf_counter() - clock
                folder.checkpoint(model, state, header)
                raise TrainingError(f"{folder.path}: interrupted after step {state.step}; the same call goes on from there")
    finally:
        stop.restore()
        bar.close()
    state.seconds += time.perf_counter() - clock
    if writer:
        if valid is None:
            with state.averaged():  # a run without validation ends with (and keeps) the averaged weights
                checkpoints.save(folder.best, model, header | {"step": state.step})
        folder.finish(model, state, header)
    fabric.barrier()
    return folder.load(into=model)


def _identity(model, structures, valid, objective, config, notes) -> dict[str, Any]:
    state = hashlib.blake2b(digest_size=8)
    for name, value in model.state_dict().items():
        state.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return {
        "model": getattr(model, "recipe", {"name": type(model).__name__}), "weights": state.hexdigest(),
        "data": structures.fingerprint(), "valid": valid.fingerprint() if valid is not None else None,
        "objective": objective.to_dict(), "config": config.identity(), "notes": notes or {},
    }  # fmt: skip


def pretrain(
    model: Potential, structures: Structures, objective: Objective, config: TrainConfig | None = None, out: str | Path = "runs/pretrain",
    valid: Structures | None = None,
) -> Run:  # fmt: skip
    """Train ``model`` on unlabelled ``structures`` with a self-supervised ``objective``; 5 % are set aside for validation.

    Labels of ``structures`` are not looked at. ``out`` holds the run: config, metrics, best and last checkpoint. Returns the Run.
    """
    if valid is None and len(structures) >= 20:
        structures, valid = structures.split((0.95, 0.05), seed=0, by="structure-within-system")
    return fit(model, structures, objective, config or TrainConfig(), out, valid, {"task": "pretrain"})


def finetune(
    model: Potential, train: Structures, valid: Structures | None = None, config: TrainConfig | None = None,
    init: str | Path | Run | None = None, out: str | Path = "runs/finetune", objective: Supervised | None = None,
    references: str | ReferenceEnergies = "fit", parts: tuple[str, ...] = ("backbone",),
) -> Run:  # fmt: skip
    """Train ``model`` on the labels of ``train``; ``init`` is a checkpoint (or Run) whose ``parts`` it starts from.

    ``references``: "fit" (least squares over compositions of ``train`` only), the name of a table of isolated atoms, or
    ReferenceEnergies. The unit of the energy head is the root mean square force of ``train`` (its spread of energies per atom
    where there are no forces). Validation and test labels are never used for either.
    """
    objective = objective or (Supervised() if train.forces is not None else Supervised(forces=0.0))
    for part, role in ((train, "train"), (valid, "valid")):
        missing = [label for label in ("energy", *objective.needed()) if part is not None and getattr(part, label) is None]
        if missing:
            raise DataError(f"{part.info.get('name', role)}: no {missing[0]} to fine-tune on (in {role})")
    if isinstance(references, str):
        references = ReferenceEnergies.fit(train) if references == "fit" else ReferenceEnergies.from_isolated(references)
    residual = train.energy - references.energy(train)
    spread = float(np.std(residual / train.n_atoms)) if train.forces is None else float(np.sqrt(np.mean(np.square(train.forces, dtype=np.float64))))
    notes: dict[str, Any] = {"task": "finetune", "init": None}
    if init is not None:
        source = init.checkpoint if isinstance(init, Run) else init
        report = checkpoints.transfer(model, source, parts)
        tqdm.write(str(report)) if (config or TrainConfig()).progress else None
        notes["init"] = {"parts": list(parts), "copied": len(report.copied), "new": len(report.new)}
    model.set_references(references.table, max(spread, 1e-3))
    return fit(model, train, objective, config or TrainConfig(), out, valid, notes)
