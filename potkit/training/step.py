"""One step of training and one pass of validation, for `training.fit`: learning rates, the order of
the data, gradients, state.

Everything random in a step is drawn from a generator seeded by (seed, step, process), and the
structures of a step follow from (seed, step). Over several processes the gradient is summed in one
flat all-reduce, with counts summed first.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from ..errors import ConfigError
from ..models import Potential
from ..objectives import Objective, Term, total
from ..structures.batch import Batch, cut
from ..structures.store import Structures
from . import checkpoints
from . import memory as microbatch
from .config import TrainConfig


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
        order = np.random.default_rng((seed, epoch)).permutation(n)
        parts.append(order[max(first - epoch * n, 0) : last - epoch * n])
    return np.concatenate(parts)


def draw(generator: torch.Generator, *key: int | str) -> torch.Generator:
    """``generator``, seeded by ``key``."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    return generator.manual_seed(int.from_bytes(digest, "big"))


def rate_groups(
    model: Potential, trained: dict[str, torch.nn.Parameter], decay: float
) -> list[dict[str, Any]]:
    """AdamW's parameter groups: ``factor`` is 1 for read-outs and ``decay`` per layer further down
    (discriminative fine-tuning, Howard and Ruder 2018, arXiv 1801.06146). Parameters between layers
    and read-outs go with the last layer.
    """
    if decay == 1.0:
        return [{"params": list(trained.values()), "factor": 1.0}]
    depths = model.depths()
    top, groups = max(depths.values()), {}
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
        self.model, self.step, self.seconds, self.best = model, 0, 0.0, float("inf")
        self.trained = {
            n: p for n, p in model.named_parameters() if n.split(".")[0] in used and p.requires_grad
        }
        self.backbone = [p for n, p in self.trained.items() if n.startswith("backbone.")]
        self.frozen = False
        if config.freeze and len(self.backbone) == len(self.trained):
            raise ConfigError(
                "config: freeze leaves nothing to train: this objective uses no weights beside the backbone's"
            )
        groups = rate_groups(model, self.trained, config.layer_decay)
        self.optimizer = torch.optim.AdamW(
            groups, lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        if fabric.world_size > 1:
            for tensor in model.state_dict().values():
                torch.distributed.broadcast(tensor, 0)
        self.ema = {n: p.detach().clone() for n, p in self.trained.items()} if config.ema else {}
        # sum and count of the loss and every term since the last row of metrics
        self.window: dict[str, list] = {}
        self.limit, self.valid_limit = (
            microbatch.Limit(config.micro_batch),
            microbatch.Limit(what="validation"),
        )

    def freeze(self, frozen: bool) -> None:
        """Hold the backbone, or let it go. Without a gradient the optimizer leaves a weight
        alone, its decay included.
        """
        if frozen != self.frozen:
            for parameter in self.backbone:
                parameter.requires_grad_(not frozen)
            self.frozen = frozen

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
        row = {
            name: float(value) / max(float(count), 1.0)
            for name, (value, count) in self.window.items()
        }
        self.window = {}
        return row | {t.name: t.finish(row[t.name]) for t in terms if t.finish}

    def tensors(self) -> dict[str, Tensor]:
        out = {f"ema.{n}": t for n, t in self.ema.items()}
        for name, parameter in self.trained.items():
            for key, value in self.optimizer.state.get(parameter, {}).items():
                out[f"optimizer.{name}/{key}"] = value
        return out

    def header(self) -> dict[str, Any]:
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
        checkpoints.restore(self.model, checkpoints.weights(tensors), source)
        device = next(iter(self.trained.values())).device
        for key, value in checkpoints.weights(tensors, "ema.").items():
            self.ema[key].copy_(value)
        for key, value in checkpoints.weights(tensors, "optimizer.").items():
            name, slot = key.rsplit("/", 1)
            self.optimizer.state[self.trained[name]][slot] = value.to(device)
        self.step, self.seconds, self.best = header["step"], header["seconds"], header["best"]
        self.window = {name: list(entry) for name, entry in header["window"].items()}
        # what did not fit before will not fit now
        sizes = [s for s in (self.limit.size, header.get("micro_batch")) if s]
        self.limit.size = min(sizes, default=None)


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


def _sum_counts(fabric: Fabric, terms: list[Term]) -> dict[str, int | Tensor]:
    """The count of every term, summed over all processes."""
    if fabric.world_size == 1:
        return {t.name: t.count for t in terms}
    # a number is filled in by the device: copying it there would wait for all that is queued
    own = [
        t.count.double()
        if isinstance(t.count, Tensor)
        else torch.full((), t.count, dtype=torch.float64, device=fabric.device)
        for t in terms
    ]
    counts = torch.stack(own)
    counts = fabric.all_reduce(counts, reduce_op="sum")
    return {t.name: c.to(t.total.dtype) for t, c in zip(terms, counts)}


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
            counts = _sum_counts(
                fabric, objective.terms(microbatch.blank(batch, objective.needed()), batch)
            )
        losses, sums = [], {}
        for part in cut(batch, size):
            loss, terms = score(part, counts)
            losses.append(loss)
            for term in terms:
                known = sums.get(term.name)
                sums[term.name] = (
                    term if known is None else known._replace(total=known.total + term.total)
                )
        return torch.stack(losses).sum(), list(sums.values())

    return state.limit.attempt(batch.ptr.shape[0] - 1, work)


def step(
    fabric, state, structures, objective, config, steps, dtype, generator
) -> tuple[Tensor, list[Term], Tensor]:
    """One optimizer step; returns loss, terms and gradient norm as device tensors (nothing here
    waits for a GPU but the neighbour list and the removal of atoms, whose sizes the host must
    know).
    """
    state.freeze(state.step < round(config.freeze * steps))
    rows = batch_indices(state.step, config.batch_size, len(structures), config.seed)[
        fabric.global_rank :: fabric.world_size
    ]
    batch = structures.batch(rows, fabric.device, dtype)
    batch = objective.corrupt(batch, draw(generator, config.seed, state.step, fabric.global_rank))
    loss, terms = gradient(fabric, state, batch, objective)
    parameters = list(state.trained.values())
    idle: dict[torch.nn.Parameter, Tensor] = {}
    if fabric.world_size > 1:
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        local = [p.grad is not None for p in parameters]
        used = torch.tensor(local).to(fabric.device, non_blocking=True)
        scores = torch.stack([loss, *(t.total for t in terms)])
        flat = torch.cat(
            [g.flatten() for g in [*grads, used.to(grads[0].dtype), scores.to(grads[0].dtype)]]
        )
        *grads, used, scores = fabric.all_reduce(flat, reduce_op="sum").split(
            [*(g.numel() for g in grads), len(used), len(scores)]
        )
        for p, g in zip(parameters, grads):
            p.grad = g.view_as(p) if p.requires_grad else None
        idle = {
            p: u > 0 for p, u, here in zip(parameters, used, local) if p.requires_grad and not here
        }
        loss, terms = scores[0], [t._replace(total=s) for t, s in zip(terms, scores[1:])]
    norm = torch.nn.utils.clip_grad_norm_(parameters, config.clip or float("inf"))
    for group in state.optimizer.param_groups:
        group["lr"] = group["factor"] * learning_rate(state.step, steps, config)
    with _unused(state.optimizer, idle):
        state.optimizer.step()
    if state.ema:
        torch._foreach_lerp_(
            list(state.ema.values()), [p.detach() for p in parameters], 1.0 - config.ema
        )
    state.step += 1
    return loss, terms, norm.detach()


@contextmanager
def _unused(
    optimizer: torch.optim.Optimizer, idle: dict[torch.nn.Parameter, Tensor]
) -> Iterator[None]:
    """Undo what the optimizer does within to parameters that no process used: moments and weight
    decay must not touch them.

    ``idle``: those that this process did not use -> whether another one did, a bool on the device.
    The host does not read it (that would wait for the whole backward pass), so their old values are
    kept (there are few of them) and chosen from on the device.
    """
    before = {
        p: {key: value.clone() for key, value in optimizer.state[p].items()}
        | {"": p.detach().clone()}
        for p in idle
    }
    yield
    with torch.no_grad():
        for parameter, used in idle.items():
            for key, value in [("", parameter), *optimizer.state[parameter].items()]:
                old = before[parameter].get(key)
                # a new state starts at 0
                value.copy_(
                    torch.where(used, value, torch.zeros_like(value) if old is None else old)
                )


def validate(
    fabric: Fabric,
    model: Potential,
    structures: Structures,
    objective: Objective,
    config: TrainConfig,
    dtype: torch.dtype,
    limit: microbatch.Limit | None = None,
) -> dict[str, float]:
    """Mean of every term over ``structures``, exact over batches and processes, with the same
    corruption at every call.
    """
    size = config.eval_batch_size or 2 * config.batch_size
    limit = limit or microbatch.Limit(what="validation")
    generator = torch.Generator(device=fabric.device)
    sums: dict[str, list] = {}

    def score(batch: Batch, at_once: int) -> dict[str, list]:
        own: dict[str, list] = {}
        for part in cut(batch, at_once):
            with fabric.autocast():
                prediction = model(part, objective.needed())
            for term in objective.terms(prediction, part):
                pair = torch.stack(
                    [
                        term.total.double(),
                        torch.as_tensor(term.count, dtype=torch.float64, device=fabric.device),
                    ]
                )
                kept = own.setdefault(term.name, [torch.zeros_like(pair), term])
                kept[0] = kept[0] + pair
        return own

    model.eval()
    chunks = [np.arange(a, min(a + size, len(structures))) for a in range(0, len(structures), size)]
    with torch.no_grad():
        for number, rows in list(enumerate(chunks))[fabric.global_rank :: fabric.world_size]:
            batch = structures.batch(rows, fabric.device, dtype)
            batch = objective.corrupt(batch, draw(generator, config.seed, "valid", number))
            for name, (pair, term) in limit.attempt(
                len(rows), lambda at_once: score(batch, at_once)
            ).items():
                kept = sums.setdefault(name, [torch.zeros_like(pair), term])
                kept[0] = kept[0] + pair
    model.train()
    out, loss = {}, 0.0
    gathered: list[dict] = [{k: (v[0].tolist(), v[1].weight, v[1].finish) for k, v in sums.items()}]
    if fabric.world_size > 1:
        gathered = [None] * fabric.world_size  # type: ignore[list-item]
        torch.distributed.all_gather_object(
            gathered, {k: (v[0].tolist(), v[1].weight, None) for k, v in sums.items()}
        )
        finishers = {k: v[1].finish for k, v in sums.items()}
    for name in dict.fromkeys(n for part in gathered for n in part):
        entries = [part[name] for part in gathered if name in part]
        mean = sum(e[0][0] for e in entries) / max(sum(e[0][1] for e in entries), 1.0)
        loss += entries[0][1] * mean
        finish = entries[0][2] if fabric.world_size == 1 else finishers.get(name)
        out[name] = finish(mean) if finish else mean
    return {"loss": loss, **out}
