"""One step of training: learning rates, the order of the data, gradients, the state that changes.

Everything random in a step is drawn from a generator seeded by (seed, step, process), and the
structures of a step follow from (seed, step). Over several processes the gradient is summed in one
flat all-reduce, with counts summed first.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_multi_avg_fn

from ..errors import ConfigError
from ..models import Potential
from ..objectives import Objective, Term, total
from ..structures.batch import Batch, cut
from ..structures.store import Structures
from . import checkpoints
from .config import TrainConfig
from .memory import Limit, blank


@dataclasses.dataclass(frozen=True)
class Training:
    """What is trained on what, how and where: all that stays from the first step to the last."""

    fabric: Fabric
    model: Potential
    structures: Structures
    objective: Objective
    config: TrainConfig
    # the step at which the schedule begins: not 0 where a finished run is trained further
    begins: int = 0

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self.config.total_steps(len(self.structures))

    @property
    def dtype(self) -> torch.dtype:
        """The network's arithmetic, before autocast."""
        return torch.float64 if self.config.precision == "64-true" else torch.float32

    @cached_property
    def generator(self) -> torch.Generator:
        """Seeded anew whenever something is drawn: see `draw`."""
        return torch.Generator(device=self.fabric.device)

    def rows(self, step: int) -> np.ndarray:
        """The structures of a step, over all processes."""
        size, seed = self.config.batch_size, self.config.seed
        return batch_indices(step, size, len(self.structures), seed)


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """Rate of step ``step`` (from 0): linear warm-up, flat, then cosine to ``min_lr`` (denoise
    paper §2.5) or constant.
    """
    warm, flat = config.warmup * steps, config.flat * steps
    if step < warm:
        return config.lr * min((step + 1) / warm, 1.0)
    if step < warm + flat or config.schedule == "constant":
        return config.lr
    done = (step - warm - flat) / max(steps - warm - flat, 1.0)
    return config.min_lr + 0.5 * (config.lr - config.min_lr) * (
        1.0 + np.cos(np.pi * min(done, 1.0))
    )


def batch_indices(step: int, batch_size: int, n: int, seed: int) -> np.ndarray:
    """The structures of a step: a walk through endless epochs, each a permutation seeded by
    (seed, epoch).
    """
    size = min(batch_size, n)
    first, last = step * size, (step + 1) * size
    parts = []
    for epoch in range(first // n, (last - 1) // n + 1):
        order = _order(n, seed, epoch)
        parts.append(order[max(first - epoch * n, 0) : last - epoch * n])
    return np.concatenate(parts).astype(np.int64)


@lru_cache(maxsize=1)
def _order(n: int, seed: int, epoch: int) -> np.ndarray:
    """The structures of an epoch, [n], read only. Kept until another one is asked for: to draw it
    takes longer than a step where there are millions.
    """
    order = np.random.default_rng((seed, epoch)).permutation(n)
    order = order.astype(np.uint32 if n <= 2**32 else np.uint64)
    order.flags.writeable = False
    return order


def draw(generator: torch.Generator, *key: int | str) -> torch.Generator:
    """``generator``, seeded by ``key``."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    return generator.manual_seed(int.from_bytes(digest, "big"))


def rate_groups(
    model: Potential, trained: dict[str, torch.nn.Parameter], decay: float
) -> list[dict[str, Any]]:
    """The optimizer's parameter groups: ``factor`` is 1 for read-outs and ``decay`` per layer
    further down (discriminative fine-tuning, Howard and Ruder 2018, arXiv 1801.06146). Parameters
    between layers and read-outs go with the last layer.
    """
    if decay == 1.0:
        return [{"params": list(trained.values()), "factor": 1.0}]
    depths = model.depths()
    top = max(depths.values())
    groups = {}
    for name, parameter in trained.items():
        groups.setdefault(depths[name], []).append(parameter)
    return [
        {"params": groups[depth], "factor": decay ** (top - depth)}
        for depth in sorted(groups, reverse=True)
    ]


class State:
    """What changes while a run goes on, and how it is written down and taken up again."""

    def __init__(
        self, fabric: Fabric, model: Potential, used: set[str], config: TrainConfig
    ) -> None:
        self.model = model
        self.step = 0
        self.seconds = 0.0
        self.best = float("inf")
        self.trained = {
            name: parameter
            for name, parameter in model.named_parameters()
            if name.split(".")[0] in used and parameter.requires_grad
        }
        self.backbone = [p for name, p in self.trained.items() if name.startswith("backbone.")]
        self.frozen = False
        self.norms = [m for m in model.backbone.modules() if isinstance(m, _BatchNorm)]
        if config.freeze and len(self.backbone) == len(self.trained):
            raise ConfigError(
                "config: freeze leaves nothing to train: this objective uses no weights beside "
                "the backbone's"
            )
        groups = rate_groups(model, self.trained, config.layer_decay)
        kind = {"adamw": torch.optim.AdamW, "adam": torch.optim.Adam}[config.optimizer]
        self.optimizer = kind(groups, lr=config.lr, weight_decay=config.weight_decay, fused=True)
        if fabric.world_size > 1:
            for tensor in model.state_dict().values():
                torch.distributed.broadcast(tensor, 0)
        self.ema: dict[str, Tensor] = {}
        if config.ema:
            self.ema = {name: p.detach().clone() for name, p in self.trained.items()}
            self._average = get_ema_multi_avg_fn(config.ema)
        # sum and count of the loss and every term since the last row of metrics
        self.window: dict[str, list] = {}
        self.limit = Limit(config.micro_batch)
        self.valid_limit = Limit(what="validation")

    def freeze(self, frozen: bool) -> None:
        """Hold the backbone, or let it go. Without a gradient the optimizer leaves a weight
        alone, its decay included; statistics of batches (ForceNet's) are not gathered meanwhile.
        """
        for norm in self.norms:  # each step: validation sets the mode of the whole network
            norm.train(not frozen)
        if frozen != self.frozen:
            for parameter in self.backbone:
                parameter.requires_grad_(not frozen)
            self.frozen = frozen

    def average(self) -> None:
        """Move the averaged weights (if there are any) towards the present ones."""
        if self.ema:
            present = [p.detach() for p in self.trained.values()]
            self._average(list(self.ema.values()), present, self.step)

    def averaged(self) -> AbstractContextManager[None]:
        """A context in which the model holds the averaged weights (if there are any)."""
        return _swapped(self.trained, self.ema) if self.ema else nullcontext()

    def note(self, loss: Tensor, terms: list[Term]) -> None:
        """Add a step to the window, without waiting for the device."""
        for name, value, count in [("loss", loss, 1), *((t.name, t.total, t.count) for t in terms)]:
            entry = self.window.setdefault(name, [0.0, 0])
            entry[0] = entry[0] + value.double()
            entry[1] = entry[1] + (count.double() if isinstance(count, Tensor) else count)

    def row(self, terms: list[Term]) -> dict[str, float]:
        """Means over the window, which starts anew."""
        row = {
            name: float(value) / max(float(count), 1.0)
            for name, (value, count) in self.window.items()
        }
        self.window = {}
        return row | {t.name: t.finish(row[t.name]) for t in terms if t.finish}

    def tensors(self) -> dict[str, Tensor]:
        """What a checkpoint holds beside the weights: averages and the optimizer's moments."""
        out = {f"ema.{name}": tensor for name, tensor in self.ema.items()}
        for name, parameter in self.trained.items():
            for slot, value in self.optimizer.state.get(parameter, {}).items():
                out[f"optimizer.{name}/{slot}"] = value
        return out

    def header(self) -> dict[str, Any]:
        """What a checkpoint's header holds of the state."""
        window = {
            name: [float(value), float(count)] for name, (value, count) in self.window.items()
        }
        return {
            "step": self.step,
            "seconds": self.seconds,
            "best": self.best,
            "window": window,
            "micro_batch": self.limit.size,
        }

    def restore(self, tensors: dict[str, Tensor], header: dict[str, Any], source: str) -> None:
        """Take up the state that `tensors` and `header` wrote. Raises CheckpointError."""
        checkpoints.restore(self.model, checkpoints.weights(tensors), source)
        device = next(iter(self.trained.values())).device
        for name, value in checkpoints.weights(tensors, "ema.").items():
            self.ema[name].copy_(value)
        for key, value in checkpoints.weights(tensors, "optimizer.").items():
            name, slot = key.rsplit("/", 1)
            self.optimizer.state[self.trained[name]][slot] = value.to(device)
        self.step = header["step"]
        self.seconds = header["seconds"]
        self.best = header["best"]
        self.window = {name: list(entry) for name, entry in header["window"].items()}
        # what did not fit before will not fit now
        sizes = [size for size in (self.limit.size, header.get("micro_batch")) if size]
        self.limit.size = min(sizes, default=None)


@contextmanager
def _swapped(live: dict[str, Tensor], other: dict[str, Tensor]) -> Iterator[None]:
    """Within, the parameters ``live`` hold what ``other`` holds, and the other way round."""
    _swap(live, other)
    try:
        yield
    finally:
        _swap(live, other)


@torch.no_grad()
def _swap(live: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    for name, parameter in live.items():
        held = parameter.detach().clone()
        parameter.copy_(other[name])
        other[name].copy_(held)


def take_step(training: Training, state: State) -> tuple[Tensor, list[Term], Tensor]:
    """One optimizer step; returns loss, terms and gradient norm as device tensors.

    Nothing here waits for a GPU but the neighbour list and the removal of atoms, whose sizes the
    host must know.
    """
    fabric, objective, config = training.fabric, training.objective, training.config
    # a run that is trained further has been through its frozen part, unless that is all of it
    resting = config.freeze == 1 or not training.begins
    state.freeze(resting and state.step < round(config.freeze * training.steps))
    rows = training.rows(state.step)[fabric.global_rank :: fabric.world_size]
    batch = training.structures.batch(rows, fabric.device, training.dtype)
    key = (config.seed, state.step, fabric.global_rank)
    batch = objective.corrupt(batch, draw(training.generator, *key))
    loss, terms = gradient(fabric, state, batch, objective)
    unused: dict[torch.nn.Parameter, Tensor] = {}
    if fabric.world_size > 1:
        loss, terms, unused = _sum_over_processes(fabric, state, loss, terms)
    parameters = list(state.trained.values())
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip or float("inf"))
    begins = training.begins
    rate = learning_rate(state.step - begins, training.steps - begins, config)
    for group in state.optimizer.param_groups:
        group["lr"] = group["factor"] * rate
    with _untouched(state.optimizer, unused):
        state.optimizer.step()
    state.step += 1
    state.average()
    return loss, terms, norm.detach()


def _sum_counts(fabric: Fabric, terms: list[Term]) -> dict[str, int | Tensor]:
    """The count of every term, summed over all processes."""
    if fabric.world_size == 1:
        return {t.name: t.count for t in terms}
    # a number is filled in by the device: copying it there would wait for all that is queued
    local = [
        t.count.double()
        if isinstance(t.count, Tensor)
        else torch.full((), t.count, dtype=torch.float64, device=fabric.device)
        for t in terms
    ]
    counts = fabric.all_reduce(torch.stack(local), reduce_op="sum")
    return {t.name: count.to(t.total.dtype) for t, count in zip(terms, counts, strict=True)}


def gradient(
    fabric: Fabric, state: State, batch: Batch, objective: Objective
) -> tuple[Tensor, list[Term]]:
    """Leave the gradient of the (corrupted) ``batch`` in the parameters; loss and terms, detached,
    with counts of all processes.

    The batch goes through the network at once, or in parts where memory asks for it; the gradient
    is the same. Processes exchange counts exactly once, however often one of them has to try again.
    """
    counts: dict[str, int | Tensor] | None = None

    def score(part: Batch, given: dict[str, int | Tensor] | None) -> tuple[Tensor, list[Term]]:
        nonlocal counts
        with fabric.autocast():
            prediction = state.model(part, objective.needed())
        terms = objective.terms(prediction, part)
        if given is None:
            given = counts = _sum_counts(fabric, terms)
        terms = [t._replace(count=given[t.name]) for t in terms]
        loss, _ = total(terms)
        # for the weights only: positions that were differentiated for −∂E/∂x need no derivative of
        # the loss
        loss.backward(inputs=[p for p in state.trained.values() if p.requires_grad])
        return loss.detach(), [t._replace(total=t.total.detach()) for t in terms]

    def work(size: int) -> tuple[Tensor, list[Term]]:
        nonlocal counts
        state.optimizer.zero_grad(set_to_none=True)
        if size >= batch.ptr.shape[0] - 1:
            return score(batch, counts)
        if counts is None:
            # what is counted follows from the batch alone, and is needed before the first part
            nothing = blank(batch, objective.needed())
            counts = _sum_counts(fabric, objective.terms(nothing, batch))
        losses: list[Tensor] = []
        sums: dict[str, Term] = {}
        for part in cut(batch, size):
            loss, terms = score(part, counts)
            losses.append(loss)
            for term in terms:
                before = sums.get(term.name)
                summed = term.total if before is None else before.total + term.total
                sums[term.name] = term._replace(total=summed)
        return torch.stack(losses).sum(), list(sums.values())

    return state.limit.attempt(batch.ptr.shape[0] - 1, work)


def _sum_over_processes(
    fabric: Fabric, state: State, loss: Tensor, terms: list[Term]
) -> tuple[Tensor, list[Term], dict[torch.nn.Parameter, Tensor]]:
    """Sum gradients, loss and terms over all processes in one flat all-reduce.

    Also returned: the parameters this process did not use -> whether another one did (on the
    device).
    """
    parameters = list(state.trained.values())
    grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
    local = [p.grad is not None for p in parameters]
    used = torch.tensor(local).to(fabric.device, non_blocking=True)
    scores = torch.stack([loss, *(t.total for t in terms)])
    parts = [*grads, used.to(grads[0].dtype), scores.to(grads[0].dtype)]
    flat = fabric.all_reduce(torch.cat([part.flatten() for part in parts]), reduce_op="sum")
    *grads, used, scores = flat.split([part.numel() for part in parts])
    for parameter, grad in zip(parameters, grads, strict=True):
        parameter.grad = grad.view_as(parameter) if parameter.requires_grad else None
    unused = {
        parameter: by_another > 0
        for parameter, by_another, here in zip(parameters, used, local, strict=True)
        if parameter.requires_grad and not here
    }
    summed = [term._replace(total=score) for term, score in zip(terms, scores[1:], strict=True)]
    return scores[0], summed, unused


@contextmanager
def _untouched(
    optimizer: torch.optim.Optimizer, unused: dict[torch.nn.Parameter, Tensor]
) -> Iterator[None]:
    """Undo what the optimizer does within to parameters that no process used: moments and weight
    decay must not touch them.

    ``unused``: those that this process did not use -> whether another one did, a bool on the
    device. The host does not read it (that would wait for the whole backward pass), so their old
    values are kept (there are few of them) and chosen from on the device.
    """
    before: dict[torch.nn.Parameter, dict[str, Tensor]] = {}
    for parameter in unused:
        moments = {slot: value.clone() for slot, value in optimizer.state[parameter].items()}
        before[parameter] = {"weight": parameter.detach().clone(), **moments}
    yield
    with torch.no_grad():
        for parameter, by_another in unused.items():
            for slot, value in [("weight", parameter), *optimizer.state[parameter].items()]:
                old = before[parameter].get(slot)
                if old is None:  # a new moment starts at 0
                    old = torch.zeros_like(value)
                value.copy_(torch.where(by_another, value, old))
