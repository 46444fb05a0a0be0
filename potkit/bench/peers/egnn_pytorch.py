"""EGNN of the package egnn-pytorch (lucidrains), whose edge network is wider than ours."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...models.base import Potential
from .base import Peer, edges_of, package


class LucidrainsEGNN(nn.Module):
    """Layers of egnn-pytorch's ``EGNN_Sparse`` on our edges."""

    def __init__(self, layer: type, model: Potential) -> None:
        super().__init__()
        hidden, self.cutoff = model.backbone.n_features, model.cutoff
        self.embedding = nn.Embedding(119, hidden)
        self.layers = nn.ModuleList(
            layer(hidden, m_dim=hidden, soft_edge=1, norm_coors=True) for _ in model.backbone.layers
        )

    def forward(self, batch: Any) -> Tensor:
        """The vector: how far each atom was moved, [N, 3] Å."""
        return self.features(batch)[1] - batch.pos

    def features(self, batch: Any) -> tuple[Tensor, Tensor]:
        """h [N, F] and x [N, 3] Å after the last layer."""
        edges = edges_of(batch, self.cutoff).edge_index
        x = torch.cat([batch.pos, self.embedding(batch.z)], 1)
        for layer in self.layers:
            x = layer(x, edges)
        return x[:, 3:], x[:, :3]


def peer(model: Potential, device: str) -> Peer | None:
    """egnn-pytorch, if it is there: the same width, depth and gate, but its edge network has 4F
    + 2 and 4F hidden channels.
    """
    egnn = package("egnn_pytorch")
    if egnn is None:
        return None
    return Peer(
        "egnn-pytorch",
        LucidrainsEGNN(egnn.EGNN_Sparse, model).to(device),
        same=False,
        note="its edge network is 4F + 2 wide where ours is F",
        periodic=False,  # it takes differences of positions, without images
    )
