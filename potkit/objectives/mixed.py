"""Masked and denoise together: atoms are removed and the rest is moved by noise.

The masked paper's comparison (arXiv 2402.15921) has this setting, on the same corrupted input and
read from the same vector read-out:

    L = 1 − mean over target atoms of cos(d̂, d)
      + weight · mean over the other atoms of |ε̂ − ε|²/(3σ²)

One vector cannot be two things at once, so an atom that has a masked target carries no noise
target.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from ..errors import ConfigError, DataError
from ..models.base import Prediction
from ..structures.batch import Batch
from ..structures.store import Structures
from .base import Term, positive
from .masked import Masked, cosine_to_target


@dataclasses.dataclass(frozen=True)
class MaskedDenoise(Masked):
    """`Masked` by molecule (or by atom with bonded targets) plus Gaussian noise of ``sigma`` Å on
    every remaining atom; ``weight`` balances the two losses.
    """

    name: ClassVar[str] = "masked-denoise"

    sigma: float = 0.2
    weight: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("masked-denoise", sigma=self.sigma, weight=self.weight)
        if self.by != "molecule" and self.target != "bonded":
            raise ConfigError(
                "masked-denoise: by must be 'molecule', or target 'bonded': by 'atom' with the "
                "farthest every atom has a masked target and none is left to denoise"
            )

    def check(self, structures: Structures) -> None:
        """As `Masked.check`; and some structure must have several molecules, or no atom would be
        left to denoise.
        """
        super().check(structures)
        if self.by == "molecule" and not (structures.molecule > 0).any():
            name = structures.info.get("name", "structures")
            raise DataError(
                f"{self.name}: every structure of {name} is one molecule, so all its atoms have "
                "a masked target and none is left to denoise"
            )

    def corrupt(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """As `Masked.corrupt`, then noise on the atoms that remain.

        ``target`` [N, 3] Å is the way to the lost atom where ``has_target``, else −ε.
        """
        new = super().corrupt(batch, generator)
        pos = new.pos
        normal = torch.randn(pos.shape, generator=generator, dtype=pos.dtype, device=pos.device)
        noise = self.sigma * normal
        new.pos = pos + noise
        # the removed atom stays where it was, so the direction to it changes with the noise
        new.target = torch.where(new.has_target[:, None], new.target - noise, -noise)
        return new

    def terms(self, prediction: Prediction, batch: Batch) -> list[Term]:
        """Both summands of L: 1 − cos for target atoms, the noise in units of σ² for the others."""
        masked = batch.has_target.to(prediction.vector.dtype)
        cosine = cosine_to_target(prediction.vector, batch.target)
        squared = (prediction.vector - batch.target).square().sum(1) * (1 - masked)
        return [
            Term("masked_1-cos", ((1.0 - cosine) * masked).sum(), masked.sum()),
            Term("noise_mse", squared.sum(), 3 * (1 - masked).sum(), self.weight * self.sigma**-2),
        ]
