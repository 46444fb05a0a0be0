"""Supervised: energy, forces and stress against their labels.

    L = w_E · mean over structures of ℓ(ΔE) + w_F · mean over atoms and axes of ℓ(ΔF)
        + w_σ · mean over labelled structures and components of ℓ(Δσ)

with ℓ the square, the absolute value or Huber's; ΔE in eV (per atom if ``per_atom``), ΔF in eV/Å,
Δσ in eV/Å³. A structure without a stress (NaN), or without a cell, counts for none of the last sum.
The denoise paper trains on energies alone with the square, the masked paper on both with the
absolute value and weights 1 : 500 (water) or 15 : 40 (rMD17). Its energies are per structure and
its forces in the same unit of energy over Å, as here, so the ratios are the same in eV.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..models.base import Prediction
from ..structures.arrays import LABELS
from ..structures.batch import Batch
from ..structures.geometry import volumes
from .base import LATER, Objective, Term


def huber(error: Tensor) -> Tensor:
    """Huber's loss of every entry: a parabola up to 0.01 (eV, eV/Å or eV/Å³), then a line."""
    zero = torch.zeros_like(error)
    return torch.nn.functional.huber_loss(error, zero, reduction="none", delta=0.01)


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "mse": torch.square,
    "l1": torch.abs,
    "huber": huber,
}


@dataclasses.dataclass(frozen=True)
class Supervised(Objective):
    """``energy``, ``forces`` and ``stress`` are the weights w_E, w_F and w_σ (0 leaves a part out).

    Stresses are thousandths of an eV/Å³, so w_σ is some hundred times w_F. Their sign is ASE's.

    ``loss_function`` is "mse", "l1" or "huber" (0.01 eV); ``per_atom`` trains the energy per atom.
    Raises ConfigError for a negative weight, no weight above 0 or an unknown loss function.
    """

    name: ClassVar[str] = "supervised"

    energy: float = 1.0
    forces: float = 10.0
    loss_function: str = "l1"
    per_atom: bool = False
    stress: float = dataclasses.field(default=0.0, metadata=LATER)

    def __post_init__(self) -> None:
        for part in LABELS:
            value = getattr(self, part)
            if not (isinstance(value, (int, float)) and 0 <= value < float("inf")):
                raise ConfigError(
                    f"supervised: weight of {part} must not be negative, got {value!r}"
                )
        if self.energy == 0 and self.forces == 0 and self.stress == 0:
            raise ConfigError("supervised: all weights are 0, there is nothing to train")
        if self.loss_function not in LOSSES:
            raise ConfigError(
                f"supervised: unknown loss_function {self.loss_function!r}; "
                f"there are {', '.join(LOSSES)}"
            )

    def needed(self) -> tuple[str, ...]:
        """Forces and stress only where they are trained: without, no derivative is taken."""
        return ("energy", *(name for name in ("forces", "stress") if getattr(self, name)))

    def labels(self) -> tuple[str, ...]:
        """Those with a weight."""
        return tuple(name for name in LABELS if getattr(self, name))

    def terms(
        self,
        prediction: Prediction,
        batch: Batch,
        structures: Tensor | None = None,
        atoms: Tensor | None = None,
    ) -> list[Term]:
        """``structures`` [S] and ``atoms`` [N], bool, say whose energy and stress, and whose forces
        count (default: all). Of a partly labelled set only what is there counts.
        """
        terms: list[Term] = []
        for name in LABELS:
            weight = getattr(self, name)
            if not weight:
                continue
            label = getattr(batch, name)
            if label is None:
                raise DataError(
                    f"supervised: the structures have no {name}; "
                    f"set the weight of {name} to 0 or give labels"
                )
            kept = atoms if name == "forces" else structures
            if name == "stress":
                known = label.isfinite().all(-1).all(-1)
                known = known & (volumes(batch.cell, batch.pbc) > 0)
            else:
                known = getattr(batch, f"has_{name}")  # of a partly labelled set, else None
            if known is not None:
                known = known[batch.batch] if name == "forces" else known
                kept = known if kept is None else kept & known
            terms += self._part(name, weight, getattr(prediction, name) - label, batch, kept)
        return terms

    def _part(
        self, name: str, weight: float, error: Tensor, batch: Batch, kept: Tensor | None
    ) -> list[Term]:
        """Loss, mean absolute and root mean square error of ``error`` [S] eV, [N, 3] eV/Å or
        [S, 3, 3] eV/Å³.
        """
        loss = LOSSES[self.loss_function]
        error = error.float() if batch.pos.dtype == torch.float32 else error
        trained = error
        if name == "energy" and self.per_atom:
            trained = error / (batch.ptr[1:] - batch.ptr[:-1]).to(error.dtype)
        n: int | Tensor = error.numel()
        # by zeros and a smaller count: sizes stay as they are, so nothing waits for the device
        if kept is not None:
            n = kept.sum() * (error.numel() // max(error.shape[0], 1))
            kept = kept.reshape(-1, *[1] * (error.ndim - 1))
            trained = torch.where(kept, trained, 0.0)
            error = torch.where(kept, error, 0.0)
        return [
            Term(f"{name}_loss", loss(trained).sum(), n, weight),
            Term(f"{name}_mae", error.detach().abs().sum(), n, 0.0),
            Term(f"{name}_rmse", error.detach().square().sum(), n, 0.0, _root),
        ]


def _root(mean: Any) -> Any:
    return mean**0.5
