"""A potential whose dynamics are known: springs between oxygen and hydrogen."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

import potkit
from potkit.models import adapt

REST = 1.0  # Å
STIFF = 30.0  # eV/Å²


class Springs(nn.Module):
    """STIFF / 2 (distance − REST)² of every O and H within the cutoff, [S] eV."""

    cutoff = 3.0

    def __init__(self, stiff: float = STIFF) -> None:
        super().__init__()
        self.register_buffer("stiff", torch.tensor(stiff))

    def forward(self, z: Tensor, batch: Tensor, edge_index: Tensor, edge_weight: Tensor) -> Tensor:
        """The energy of each structure; each pair comes twice."""
        unlike = z[edge_index[0]] != z[edge_index[1]]
        each = torch.where(unlike, self.stiff / 4 * (edge_weight - REST) ** 2, 0.0)
        structure = batch[edge_index[1]]
        return each.new_zeros(int(batch.max()) + 1).index_add(0, structure, each)


def springs(stiff: float = STIFF) -> potkit.Potential:
    """As a network."""
    return adapt(Springs(stiff), energy=lambda out: out, cutoff=Springs.cutoff)


def dimers(n: int, length: float = REST) -> potkit.Structures:
    """``n`` structures of O and H, ``length`` Å apart."""
    pos = np.tile([[0.0, 0.0, 0.0], [length, 0.0, 0.0]], (n, 1))
    return potkit.Structures(np.tile([8, 1], n), pos, 2 * np.arange(n + 1))


def water(n: int = 1) -> potkit.Structures:
    """``n`` molecules of three atoms, O and two H, at rest."""
    shape = REST * np.array([[0.0, 0, 0], [0.79, 0.61, 0], [-0.79, 0.61, 0]])
    return potkit.Structures(np.tile([8, 1, 1], n), np.tile(shape, (n, 1)), 3 * np.arange(n + 1))
