"""NoisyNodes: denoising as an auxiliary loss while fine-tuning.

Godwin et al., ICLR 2022 (arXiv 2106.07971).

    x̃ = x + ε,    ε ~ N(0, σ²I)
    L = L_supervised(energy, forces) + weight · mean over atoms and axes of (ε̂(z, x̃) − ε)²/σ²

Energy and forces are labels of x, and a potential must not answer x̃ with them. So by default
(``beside``) every structure goes through the network twice, clean for the labels and noisy for the
noise; a step costs about twice as much. ``beside=False`` is the original: one pass, with the labels
of x scored on x̃, meant for properties of relaxed structures.

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
    """`Supervised` (its settings are the first five) plus ``weight`` times denoising at
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
        """As `Supervised.needed`, and the read-out of the noise."""
        return (*super().needed(), "noise")

    def validation(self) -> Supervised:
        """The supervised part alone."""
        own = {field.name: getattr(self, field.name) for field in dataclasses.fields(Supervised)}
        return Supervised(**own)

    def corrupt(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """The clean structures followed by noisy copies (``beside``), or the noisy ones alone.

        Sets ``target`` −ε [N', 3] Å, ``has_target`` [N'], true where noise was added, and
        ``has_label`` [S'], true for structures whose labels count.
        """
        pos = batch.pos
        normal = torch.randn(pos.shape, generator=generator, dtype=pos.dtype, device=pos.device)
        noise = self.sigma * normal
        if self.beside:
            new = doubled(batch)
            shift = torch.cat([torch.zeros_like(noise), noise])  # [2N, 3]
            first_noisy = len(batch.z)
        else:
            new = copy.copy(batch)
            shift = noise
            first_noisy = 0
        new.drop_edges()
        new.pos = new.pos + shift
        new.target = -shift
        new.has_target = torch.arange(len(new.pos), device=pos.device) >= first_noisy
        new.has_label = torch.arange(new.num_graphs, device=pos.device) < batch.num_graphs
        return new

    def terms(self, prediction: Prediction, batch: Batch) -> list[Term]:
        """The terms of `Supervised` on structures with labels, and the noise in units of σ²."""
        labelled = batch.has_label
        terms = super().terms(prediction, batch, labelled, labelled[batch.batch])
        squared = (prediction.noise - batch.target).square().sum(1) * batch.has_target  # [N'] Å²
        count = 3 * batch.has_target.sum()
        return [*terms, Term("noise_mse", squared.sum(), count, self.weight * self.sigma**-2)]
