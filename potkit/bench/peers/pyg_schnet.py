"""SchNet of PyG, with our weights and our energy head, on our edges."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from ...models.base import Potential
from ...structures.geometry import edge_vectors
from .base import Peer, edges_of, minus_gradient


class HeldEdges:
    """Stands where PyG's SchNet searches neighbours, and gives it edges that were found before."""

    def __init__(self, cutoff: float) -> None:
        self.cutoff = cutoff
        self.edges: Tensor | None = None
        self.shift: Tensor | None = None

    def hold(self, batch: Any) -> None:
        """Take the edges [2, E] (sender, receiver) of the batch that comes next."""
        found = edges_of(batch, self.cutoff)
        self.edges, self.shift = found.edge_index, found.edge_shift

    def __call__(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """Edges [2, E] and distances [E] Å."""
        sender, receiver = self.edges
        return self.edges, edge_vectors(pos, sender, receiver, self.shift).norm(dim=-1)


@torch.no_grad()
def copy_weights(backbone: nn.Module, schnet: nn.Module) -> None:
    """Copy the weights of our backbone into PyG's, whose table of elements ends at 99."""
    schnet.embedding.weight.copy_(backbone.embedding.element.weight[:100])
    for layer, interaction in zip(backbone.layers, schnet.interactions, strict=True):
        pairs = [
            (layer.filter_in, interaction.mlp[0]),
            (layer.filter_out, interaction.mlp[2]),
            (layer.project, interaction.conv.lin1),
            (layer.mix, interaction.conv.lin2),
            (layer.out, interaction.lin),
        ]
        for source, target in pairs:
            target.load_state_dict(source.state_dict())


def peer(model: Potential, device: str) -> Peer:
    """PyG's SchNet with our weights; its vector is −∂E/∂x."""
    from torch_geometric.nn import SchNet

    backbone = model.backbone
    edges = HeldEdges(model.cutoff)
    schnet = SchNet(
        backbone.n_features,
        backbone.layers[0].filter_out.out_features,
        len(backbone.layers),
        len(backbone.basis.centers),
        model.cutoff,
        interaction_graph=edges,
    )
    schnet.lin1, schnet.act, schnet.lin2 = copy.deepcopy(model.energy_head.mlp)
    schnet.distance_expansion.coeff = backbone.basis.coefficient
    for module in schnet.modules():
        if hasattr(module, "shift"):  # ln 2 of the softplus, which PyG rounds to float32
            module.shift = math.log(2.0)
    copy_weights(backbone, schnet)
    return Peer(
        "PyG SchNet",
        schnet.to(device),
        minus_gradient(edges.hold),
        note="on our edges, with our energy head; −∂E/∂x",
        hold=edges.hold,
    )
