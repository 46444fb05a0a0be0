"""What an objective is: it corrupts a batch and scores a prediction, on whatever device the batch
lies.

A score is a list of `Term`s, each a sum over atoms or structures with the number it is to be
divided by. Sums and counts, not means, so that batches of different size, and shares of a batch on
several devices, add up to exactly the mean over all of them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..models.base import Prediction
from ..structures.neighbors import complete_cells
from ..structures.store import Batch, Structures

# metadata of settings that came later: left out of `to_dict` at their default, so that earlier runs
# are still found
LATER = {"later": True}


class Term(NamedTuple):
    """One summand ``weight · total / count`` of the loss; weight 0 makes it a metric only."""

    name: str
    total: Tensor  # scalar
    count: int | Tensor
    weight: float = 1.0
    # applied to the mean (number or tensor) when reported, such as a square root
    finish: Callable[[Any], Any] | None = None


@dataclasses.dataclass(frozen=True)
class Objective:
    """Base of all objectives: fields are the settings; ``name`` and ``outputs`` belong to the
    class.
    """

    name: ClassVar[str] = ""
    outputs: ClassVar[tuple[str, ...]] = ()
    # what the network is told besides elements and positions: ("forces",) or nothing
    inputs: ClassVar[tuple[str, ...]] = ()
    monitor: ClassVar[str] = "loss"  # the validation metric that tells the best state

    def needed(self) -> tuple[str, ...]:
        """What the model is asked for: some of "energy", "forces", "vector", "noise"."""
        return self.outputs

    def labels(self) -> tuple[str, ...]:
        """What the structures must have: some of "energy", "forces"."""
        return tuple(name for name in self.needed() if name in ("energy", "forces"))

    def validation(self) -> Objective:
        """The objective whose loss on the validation structures chooses the best state; this one
        unless it says otherwise.
        """
        return self

    def check(self, structures: Structures) -> None:
        """Raise DataError if this set as a whole gives the objective nothing to learn; called
        once, before training.
        """

    def corrupt(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """A changed copy of ``batch`` with its ``target``; the original is left as it is."""
        return batch

    def terms(self, prediction: Prediction, batch: Batch) -> list[Term]:
        raise NotImplementedError

    def loss(self, prediction: Prediction, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to be minimised, and every term's finished mean by name (detached)."""
        return total(self.terms(prediction, batch))

    def to_dict(self) -> dict[str, Any]:
        values = dataclasses.asdict(self)
        unchanged = [
            f.name
            for f in dataclasses.fields(self)
            if f.metadata.get("later") and values[f.name] == f.default
        ]
        return {"objective": self.name, **{k: v for k, v in values.items() if k not in unchanged}}


def total(terms: Sequence[Term]) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms' means, and the means. A term with nothing to count is 0, not
    NaN.
    """
    loss, metrics = 0.0, {}
    for term in terms:
        mean = term.total / (
            max(term.count, 1) if isinstance(term.count, int) else term.count.clamp(min=1)
        )
        metrics[term.name] = term.finish(mean.detach()) if term.finish else mean.detach()
        if term.weight:
            loss = loss + term.weight * mean
    return loss, metrics


def require(owner: str, structures: Structures, labels: Sequence[str]) -> None:
    """Raise DataError if ``structures`` lack one of ``labels``."""
    for label in labels:
        if getattr(structures, label) is None:
            raise DataError(
                f"{owner}: {structures.info.get('name', 'the structures')} have no {label}, which this objective needs"
            )


def positive(owner: str, **values: float) -> None:
    """Raise ConfigError for the first value that is not a number above 0."""
    for name, value in values.items():
        if not (isinstance(value, (int, float)) and value > 0 and value != float("inf")):
            raise ConfigError(f"{owner}: {name} must be a positive number, got {value!r}")


def keep_atoms(batch: Batch, keep: Tensor) -> tuple[Batch, Tensor]:
    """``batch`` without the atoms where ``keep`` [N] is False, and the kept rows. Waits for the
    device once (sizes change).

    Atom-wise arrays shrink, ``ptr`` and the sizes are made anew, edges are dropped; structure-wise
    arrays stay.
    """
    rows = torch.nonzero(keep).flatten()
    new = Batch()
    for key, value in batch.to_dict().items():
        if key in ("edge_index", "edge_shift", "cutoff", "ptr", "num_nodes"):
            continue
        atomwise = key in ("z", "pos", "forces", "molecule", "mask", "batch", "target")
        setattr(new, key, value.index_select(0, rows) if atomwise and value is not None else value)
    counts = torch.zeros(batch.ptr.shape[0] - 1, dtype=torch.long, device=rows.device).index_add_(
        0, new.batch, torch.ones_like(rows)
    )
    new.ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    new.num_nodes = len(rows)
    return new, rows


def doubled(batch: Batch) -> Batch:
    """``batch`` followed by a copy of itself: structure s + S is a second structure s. Edges are
    dropped.
    """
    new, n_structures, n_atoms = Batch(), batch.ptr.shape[0] - 1, batch.z.shape[0]
    for key, value in batch.to_dict().items():
        if key in ("edge_index", "edge_shift", "cutoff", "origin"):
            continue
        if isinstance(value, Tensor) and value.ndim:
            value = torch.cat([value, value])
        elif isinstance(value, np.ndarray):
            value = np.concatenate([value, value])
        setattr(new, key, value)
    new.batch = torch.cat([batch.batch, batch.batch + n_structures])
    new.ptr = torch.cat([batch.ptr, batch.ptr[1:] + n_atoms])
    new.num_nodes = 2 * n_atoms
    return new


def minimum_image(vector: Tensor, batch: Batch, owner: Tensor) -> Tensor:
    """Shortest periodic image of ``vector`` [M,3] in the cells of structures ``owner`` [M].

    Rounds fractional coordinates, which is exact while the vector's length stays below half the
    smallest cell height, as it does between atoms of one molecule.
    """
    if batch.cell is None or not getattr(batch, "periodic", True):
        return vector
    cell, _ = complete_cells(batch.cell, batch.pbc, batch.ptr.shape[0] - 1, vector)
    fraction = (vector[:, None] @ torch.linalg.inv(cell)[owner])[:, 0]
    image = torch.where(batch.pbc[owner], fraction.round(), torch.zeros_like(fraction))
    return vector - (image[:, None] @ cell[owner])[:, 0]
