"""What an objective is: it corrupts a batch and scores a prediction, on the device of the batch.

A score is a list of `Term`s, each a sum over atoms or structures with the number it is to be
divided by. Sums and counts, not means, so that batches of different size, and shares of a batch on
several devices, add up to exactly the mean over all of them.

Settings are checked by hand, in ``__post_init__``, and not by pydantic as those of `TrainConfig`
are: what pydantic checks it also converts (a weight of 1 to 1.0, and with it the hash of stored
runs), and most checks here hold several settings against each other or against the elements.
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
from ..structures.arrays import LABELS
from ..structures.batch import Batch
from ..structures.store import Structures

# metadata of settings that came later: left out of `to_dict` at their default, so that earlier runs
# are still found
LATER = {"later": True}


class Term(NamedTuple):
    """One summand ``weight · total / count`` of the loss; weight 0 makes it a metric only.

    By hand: metric libraries keep the state of a metric, but what a loss needs is the sum and the
    count apart, so that parts and processes add up to the gradient of the whole batch.
    """

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
        """What the model is asked for: some of "energy", "forces", "stress", "vector", "noise",
        "displacement".
        """
        return self.outputs

    def labels(self) -> tuple[str, ...]:
        """What the structures must have: some of "energy", "forces", "stress"."""
        return tuple(name for name in self.needed() if name in LABELS)

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
        """The summands of the loss, and metrics, of a prediction for a corrupted ``batch``."""
        raise NotImplementedError

    def loss(self, prediction: Prediction, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """The scalar to be minimised, and every term's finished mean by name (detached)."""
        return total(self.terms(prediction, batch))

    def to_dict(self) -> dict[str, Any]:
        """The name and the settings, as they are stored and hashed; `from_dict` reads them back.

        Settings marked `LATER` are left out at their default.
        """
        settings = dataclasses.asdict(self)
        for field in dataclasses.fields(self):
            if field.metadata.get("later") and settings[field.name] == field.default:
                del settings[field.name]
        return {"objective": self.name, **settings}


def total(terms: Sequence[Term]) -> tuple[Tensor, dict[str, Tensor]]:
    """Weighted sum of the terms' means, and the means. A term with nothing to count is 0, not
    NaN.
    """
    loss: Any = 0.0
    metrics = {}
    for term in terms:
        whole = isinstance(term.count, int)
        mean = term.total / (max(term.count, 1) if whole else term.count.clamp(min=1))
        metrics[term.name] = term.finish(mean.detach()) if term.finish else mean.detach()
        if term.weight:
            loss = loss + term.weight * mean
    return loss, metrics


def require(owner: str, structures: Structures, labels: Sequence[str]) -> None:
    """Raise DataError if ``structures`` lack one of ``labels``."""
    name = structures.info.get("name", "the structures")
    for label in labels:
        if getattr(structures, label) is None:
            raise DataError(f"{owner}: {name} have no {label}, which this objective needs")
        if not structures.labelled(label).all():
            lacking = int(np.argmin(structures.labelled(label)))
            raise DataError(
                f"{owner}: structure {lacking} of {name} has no {label}, which this objective "
                "needs of all"
            )


def positive(owner: str, **values: float) -> None:
    """Raise ConfigError for the first value that is not a number above 0."""
    for name, value in values.items():
        if not (isinstance(value, (int, float)) and value > 0 and value != float("inf")):
            raise ConfigError(f"{owner}: {name} must be a positive number, got {value!r}")
