"""The mean of every term over a validation set, exact over batches and processes."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from ..models import Potential
from ..objectives import Objective, Term
from ..structures.batch import Batch, cut
from ..structures.store import Structures
from .config import TrainConfig
from .memory import Limit
from .step import draw


class _Sum(NamedTuple):
    """A term of the objective, summed over batches."""

    term: Term
    total: Tensor  # float64
    count: Tensor  # float64


def validate(
    fabric: Fabric,
    model: Potential,
    structures: Structures,
    objective: Objective,
    config: TrainConfig,
    dtype: torch.dtype,
    limit: Limit | None = None,
) -> dict[str, float]:
    """Mean of every term over ``structures``, and their weighted sum as "loss".

    Exact over batches and processes, with the same corruption at every call.
    """
    size = config.eval_batch_size or 2 * config.batch_size
    limit = limit or Limit(what="validation")
    generator = torch.Generator(device=fabric.device)
    starts = range(0, len(structures), size)
    numbers = range(len(starts))[fabric.global_rank :: fabric.world_size]
    sums: dict[str, _Sum] = {}
    model.eval()
    with torch.no_grad():
        for number in numbers:
            rows = np.arange(starts[number], min(starts[number] + size, len(structures)))
            batch = structures.batch(rows, fabric.device, dtype)
            batch = objective.corrupt(batch, draw(generator, config.seed, "valid", number))

            def score(at_once: int, batch: Batch = batch) -> dict[str, _Sum]:
                return _score(fabric, model, objective, batch, at_once)

            _add(sums, limit.attempt(len(rows), score))
    model.train()
    return _means(fabric, sums)


def _score(
    fabric: Fabric, model: Potential, objective: Objective, batch: Batch, at_once: int
) -> dict[str, _Sum]:
    """Every term summed over ``batch``, of which ``at_once`` structures go through the network."""
    sums: dict[str, _Sum] = {}
    for part in cut(batch, at_once):
        with fabric.autocast():
            prediction = model(part, objective.needed())
        for term in objective.terms(prediction, part):
            count = torch.as_tensor(term.count, dtype=torch.float64, device=fabric.device)
            _add(sums, {term.name: _Sum(term, term.total.double(), count)})
    return sums


def _add(sums: dict[str, _Sum], more: dict[str, _Sum]) -> None:
    for name, (term, total, count) in more.items():
        if name in sums:
            total, count = sums[name].total + total, sums[name].count + count
        sums[name] = _Sum(term, total, count)


def _means(fabric: Fabric, sums: dict[str, _Sum]) -> dict[str, float]:
    """The mean of every term over all processes, finished as its term says, and the loss."""
    # of each process: name -> total, count, weight in the loss; a process may have had no batch
    shares: list[Any] = [
        {
            name: (float(total), float(count), term.weight)
            for name, (term, total, count) in sums.items()
        }
    ]
    if fabric.world_size > 1:
        local = shares[0]
        shares = [None] * fabric.world_size
        torch.distributed.all_gather_object(shares, local)
    means: dict[str, float] = {}
    loss = 0.0
    for name in dict.fromkeys(name for share in shares for name in share):
        entries = [share[name] for share in shares if name in share]
        total, count, weight = (
            sum(e[0] for e in entries),
            sum(e[1] for e in entries),
            entries[0][2],
        )
        mean = total / max(count, 1.0)
        loss += weight * mean
        finish = sums[name].term.finish if name in sums else None
        means[name] = finish(mean) if finish else mean
    return {"loss": loss, **means}
