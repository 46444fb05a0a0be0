"""Masked and denoise together: atoms are removed and the rest is moved by noise.

The masked paper's text (arXiv 2402.15921) compares the two and never combines them; its code does,
for EGNN and water. There are two forms of it here, on the same corrupted input x̃.

``form="ours"``, for every network: one vector read-out v. It cannot be two things at once, so an
atom that has a masked target carries no noise target, and the direction d is measured from where
the atom is now, since that is what the network sees:

    L = 1 − mean over target atoms of cos(v, d(x̃))
      + weight · mean over the other atoms and axes of (v + ε)²/σ²

``form="published"``, the code's: two read-outs, v from the network's vector read-out (−∂E/∂x̃) and
the displacement u = x_L − x̃ of its coordinates, which of the networks here EGNN alone makes. Noise
counts on all atoms that remain, without 1/σ², and directions are measured from the clean positions:

    L = 1 − mean over target atoms of cos(v, d(x))
      + weight · mean over all remaining atoms and axes of (u + ε)²        weight = 1 in the code

The code's u is +ε, a matter of taste for a displacement; ``faults=("wrong-sign",)`` repeats it, and
"floor" its number of molecules (see `masked`).
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch

from ..errors import ConfigError, DataError
from ..models.base import Prediction
from ..structures.batch import Batch
from ..structures.store import Structures
from .base import LATER, Term, positive
from .masked import Masked, cosine_to_target

FORMS = ("ours", "published")


@dataclasses.dataclass(frozen=True)
class MaskedDenoise(Masked):
    """`Masked` plus Gaussian noise of ``sigma`` Å on every remaining atom; ``weight`` balances the
    two losses, ``form`` is "ours" or "published" (see the module).

    "ours" masks by molecule, or by atom with bonded targets; it would have no atom left to denoise
    otherwise. "published" needs a network whose vector read-out is not its displacement:
    ``build("egnn", "masked-paper")``, or the code's own, ``build("published/masked-egnn",
    "published")``. Raises ConfigError for settings out of range.
    """

    name: ClassVar[str] = "masked-denoise"

    sigma: float = 0.2
    weight: float = 1.0
    form: str = dataclasses.field(default="ours", metadata=LATER, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("masked-denoise", sigma=self.sigma, weight=self.weight)
        if self.form not in FORMS:
            raise ConfigError(
                f"masked-denoise: form must be {' or '.join(map(repr, FORMS))}, got {self.form!r}"
            )
        if self._published:
            return
        if "wrong-sign" in self.faults:
            raise ConfigError(
                "masked-denoise: the fault 'wrong-sign' is one of form='published' only"
            )
        if self.by != "molecule" and self.target != "bonded":
            raise ConfigError(
                "masked-denoise: by must be 'molecule', or target 'bonded': by 'atom' with the "
                "farthest every atom has a masked target and none is left to denoise"
            )

    @property
    def _published(self) -> bool:
        return self.form == "published"

    def needed(self) -> tuple[str, ...]:
        """The vector read-out; in the published form the displacement beside it."""
        return ("vector", "displacement") if self._published else ("vector",)

    def _check_single(self, structures: Structures, name: str) -> None:
        """As `Masked`; in our form DataError for free molecules too, of which no atom would be left
        to denoise.
        """
        if self._published or structures.pbc.any():
            super()._check_single(structures, name)
            return
        raise DataError(
            f"{self.name}: every structure of {name} is one molecule, so all its atoms have "
            "a masked target and none is left to denoise"
        )

    def corrupt(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """As `Masked.corrupt`, then noise on the atoms that remain.

        Our form: ``target`` [N, 3] Å is the way to the lost atom where ``has_target``, else −ε.
        Published form: ``target`` is the way from the clean position, and ``noise_target`` −ε
        [N, 3] Å of every atom ("wrong-sign": +ε).
        """
        new = super().corrupt(batch, generator)
        pos = new.pos
        normal = torch.randn(pos.shape, generator=generator, dtype=pos.dtype, device=pos.device)
        noise = self.sigma * normal
        new.pos = pos + noise
        if self._published:
            new.noise_target = noise if "wrong-sign" in self.faults else -noise
        else:
            # the removed atom stays where it was, so the direction to it changes with the noise
            new.target = torch.where(new.has_target[:, None], new.target - noise, -noise)
        return new

    def terms(self, prediction: Prediction, batch: Batch) -> list[Term]:
        """Both summands of L: 1 − cos for target atoms, and the noise.

        Our form has it for the other atoms, in units of σ²; the published form for all, in Å².
        """
        masked = batch.has_target.to(prediction.vector.dtype)
        cosine = cosine_to_target(prediction.vector, batch.target)
        directions = Term("masked_1-cos", ((1.0 - cosine) * masked).sum(), masked.sum())
        if self._published:
            squared = (prediction.displacement - batch.noise_target).square()  # [N, 3] Å²
            count = batch.noise_target.numel()
            return [directions, Term("noise_mse", squared.sum(), count, self.weight)]
        squared = (prediction.vector - batch.target).square().sum(1) * (1 - masked)
        weight = self.weight * self.sigma**-2
        return [directions, Term("noise_mse", squared.sum(), 3 * (1 - masked).sum(), weight)]
