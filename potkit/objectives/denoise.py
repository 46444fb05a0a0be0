"""Denoise: predict the Gaussian noise that was added to non-equilibrium structures.

Wang, Xu, Li, Barati Farimani, J. Chem. Theory Comput. 2023 (arXiv 2303.02216), eq. 7; Zaidi et al. 2023 (arXiv 2206.00133).
    x̃ = x + ε,  ε ~ N(0, σ² I);    L = mean over atoms and axes of (ε̂(z, x̃) − ε)²
For Gaussian p(x̃|x) the score is −ε/σ² (Vincent 2011): the way back, −ε, is what a force would be up to a constant. So the vector
read-out v speaks for ε̂ = −v, and the target stored in the batch is −ε = x − x̃. For a read-out −∂E/∂x this gives an energy with its
minimum at the clean structure; the authors' code has v = +ε, a maximum there (``faithful=True`` repeats that). For read-outs that are not
a gradient the sign is a matter of taste. Periodic structures need no wrapping back into the box: neighbour lists do not depend on
it, and the target is never wrapped.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import ClassVar

import torch

from ..models.base import Prediction
from ..models.layers import sum_over
from ..structures import Batch
from .base import Objective, Term, positive


@dataclasses.dataclass(frozen=True)
class Denoise(Objective):
    """Gaussian noise of standard deviation ``sigma`` (Å); ``zero_mean`` removes each structure's net translation from it.

    The vector read-out predicts the way back, −ε in Å (``faithful``: +ε). ``normalize`` divides the loss by σ², so that 1 is what predicting zero
    gets at any σ (the papers have False; it changes the loss scale, not the minimum). Raises ConfigError unless sigma > 0.
    """

    name: ClassVar[str] = "denoise"
    outputs: ClassVar[tuple[str, ...]] = ("vector",)

    sigma: float = 0.2
    zero_mean: bool = False
    normalize: bool = True
    faithful: bool = False

    def __post_init__(self) -> None:
        positive("denoise", sigma=self.sigma)

    def corrupt(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        noise = self.sigma * torch.randn(batch.pos.shape, generator=generator, dtype=batch.pos.dtype, device=batch.pos.device)
        if self.zero_mean:
            counts = (batch.ptr[1:] - batch.ptr[:-1]).to(noise.dtype).clamp(min=1)
            noise = noise - (sum_over(noise, batch.batch, len(counts)) / counts[:, None])[batch.batch]
        new = copy.copy(batch)
        new.edge_index = new.edge_shift = new.cutoff = None
        new.pos, new.target = batch.pos + noise, noise if self.faithful else -noise
        return new

    def terms(self, prediction: Prediction, batch: Batch) -> list[Term]:
        squared = (prediction.vector - batch.target).square().sum()
        if not self.normalize:
            return [Term("noise_mse", squared, batch.target.numel())]
        return [Term("noise_mse", squared, batch.target.numel(), self.sigma**-2)]
