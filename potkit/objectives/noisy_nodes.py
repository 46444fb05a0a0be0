"""NoisyNodes: denoising as an auxiliary loss while fine-tuning (Godwin et al., ICLR 2022, arXiv
2106.07971).

    L = L_supervised(energy, forces) + weight · mean over atoms and axes of (ε̂(z, x̃) − ε)²/σ²,     x̃ = x + ε,  ε ~ N(0, σ²I)
Energy and forces are labels of x, and a potential must not answer x̃ with them. So by default
(``beside``) every structure goes through the network twice, clean for the labels and noisy for the
noise; a step costs about twice as much. ``beside=False`` is the
original: one pass, with the labels of x scored on x̃, meant for properties of relaxed structures.
ε̂ is spoken by a second vector read-out (``noise``), which a model gets when it is trained with
this objective; the one that pretraining used may be the very one that gives the forces. As in
`Denoise` it says −ε. The best state is chosen by the supervised loss alone.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import ClassVar

import torch

from ..models.base import Prediction
from ..structures.batch import Batch, doubled
from .base import Term, positive
from .supervised import Supervised


@dataclasses.dataclass(frozen=True)
class NoisyNodes(Supervised):
    """`Supervised` (its settings are the first four) plus ``weight`` times denoising at
    ``sigma`` Å; see the module for ``beside``.
    """

    name: ClassVar[str] = "noisy-nodes"

    sigma: float = 0.05
    weight: float = 0.1
    beside: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        positive("noisy-nodes", sigma=self.sigma, weight=self.weight)

    def needed(self) -> tuple[str, ...]:
        return (*super().needed(), "noise")

    def validation(self) -> Supervised:
        return Supervised(self.energy, self.forces, self.loss_function, self.per_atom)

    def corrupt(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        noise = self.sigma * torch.randn(
            batch.pos.shape, generator=generator, dtype=batch.pos.dtype, device=batch.pos.device
        )
        n, s = len(batch.z), batch.ptr.shape[0] - 1
        new = doubled(batch) if self.beside else copy.copy(batch)
        new.drop_edges()
        # [S'] the clean ones, or simply all
        new.has_label = torch.arange(new.ptr.shape[0] - 1, device=noise.device) < s
        shift = torch.cat([torch.zeros_like(noise), noise]) if self.beside else noise
        new.pos, new.target = new.pos + shift, -shift
        new.has_target = torch.arange(len(new.pos), device=noise.device) >= (
            n if self.beside else 0
        )
        return new

    def terms(self, prediction: Prediction, batch: Batch) -> list[Term]:
        labelled = batch.has_label
        terms = super().terms(prediction, batch, labelled, labelled[batch.batch])
        squared = (prediction.noise - batch.target).square().sum(1) * batch.has_target
        return [
            *terms,
            Term(
                "noise_mse", squared.sum(), 3 * batch.has_target.sum(), self.weight * self.sigma**-2
            ),
        ]
