"""EGNN as its paper writes it, without potkit's rearrangements."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...models.base import Potential
from ...models.layers import polynomial_envelope
from ...structures.geometry import edge_vectors
from .base import Peer, edges_of


class PlainLayer(nn.Module):
    """A layer of EGNN as the paper writes it: φ_e on the concatenation [h_i, h_j, d²], the mean
    over neighbours (counted by the envelope); PyG's scatter, torch's SiLU.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.edge = nn.Sequential(
            nn.Linear(2 * hidden + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.gate = nn.Sequential(nn.Linear(hidden, 1), nn.Sigmoid())
        self.coordinate = nn.Sequential(
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1, bias=False), nn.Tanh()
        )
        self.update = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )

    def forward(
        self,
        h: Tensor,  # [N, F]
        x: Tensor,  # [N, 3] Å
        sender: Tensor,  # [E]
        receiver: Tensor,  # [E]
        envelope: Tensor,  # [E, 1]
        shift: Tensor | None = None,  # [E, 3] Å, of periodic images
    ) -> tuple[Tensor, Tensor]:
        """h [N, F] and x [N, 3] Å after this layer."""
        from torch_geometric.utils import scatter

        difference = x[receiver] - x[sender]
        if shift is not None:
            difference = difference - shift
        squared = difference.square().sum(1, keepdim=True)
        m = self.edge(torch.cat([h[receiver], h[sender], squared], dim=1))
        m = m * self.gate(m)
        move = difference / ((squared + 1e-12).sqrt() + 1e-8) * self.coordinate(m) * envelope
        count = scatter(envelope, receiver, 0, x.shape[0]) + 1e-12  # [N, 1]
        x = x + scatter(move * envelope, receiver, 0, x.shape[0]) / count
        total = scatter(m * envelope, receiver, 0, h.shape[0])
        return h + self.update(torch.cat([h, total], dim=1)), x


class PlainEGNN(nn.Module):
    """The whole network in the plain formulation, on potkit's edges and with potkit's weights."""

    def __init__(self, model: Potential) -> None:
        super().__init__()
        backbone = model.backbone
        self.cutoff = model.cutoff
        elements = backbone.embedding.element.weight.detach().clone()
        self.embedding = nn.Embedding.from_pretrained(elements, freeze=False)
        self.layers = nn.ModuleList(PlainLayer(backbone.n_features) for _ in backbone.layers)
        for ours, plain in zip(backbone.layers, self.layers, strict=True):
            copy_layer(ours, plain)

    def forward(self, batch: Any) -> Tensor:
        """The vector: how far each atom was moved, [N, 3] Å."""
        return self.features(batch)[1] - batch.pos

    def features(self, batch: Any) -> tuple[Tensor, Tensor]:
        """h [N, F] and x [N, 3] Å after the last layer."""
        batch = edges_of(batch, self.cutoff)
        sender, receiver = batch.edge_index
        h, x = self.embedding(batch.z), batch.pos
        distance = edge_vectors(x, sender, receiver, batch.edge_shift).norm(dim=1)
        envelope = polynomial_envelope(distance, self.cutoff)[:, None]
        for layer in self.layers:
            h, x = layer(h, x, sender, receiver, envelope, batch.edge_shift)
        return h, x


@torch.no_grad()
def copy_layer(ours: nn.Module, plain: PlainLayer) -> None:
    """Copy the weights of a layer, whose first product potkit has in three parts."""
    first = [ours.from_receiver.weight, ours.from_sender.weight, ours.from_distance.weight]
    plain.edge[0].weight.copy_(torch.cat(first, 1))
    plain.edge[0].bias.copy_(ours.from_distance.bias)
    pairs = [
        (ours.message[0], plain.edge[2]),
        (ours.gate, plain.gate[0]),
        (ours.coordinate[0], plain.coordinate[0]),
        (ours.coordinate[2], plain.coordinate[2]),
        (ours.update[0], plain.update[0]),
        (ours.update[2], plain.update[2]),
    ]
    for source, target in pairs:
        target.load_state_dict(source.state_dict())


def peer(model: Potential, device: str) -> Peer:
    """The plain formulation with our weights."""
    return Peer(
        "plain EGNN",
        PlainEGNN(model).to(device),
        note="all edge features concatenated; our edges",
    )
