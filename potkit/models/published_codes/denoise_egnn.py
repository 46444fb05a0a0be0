"""EGNN as in the denoise paper's code (arXiv 2303.02216; Satorras et al. 2021, arXiv 2102.09844).

Per layer, i the atom that is updated, j its neighbours, r_ij = x_i − x_j:
    m_ij = φ_e(h_i, h_j, |r_ij|²),   m_ij ← σ(a·m_ij + b) m_ij     (attention gate)
    x_i  ← x_i + mean_j r_ij / (|r_ij| + 10⁻⁸) · tanh φ_x(m_ij)    (φ_x ends without bias)
    h_i  ← h_i + φ_h(h_i, Σ_j m_ij)                                (residual)
and after the last
    E    = φ_E(Σ_i h_i),   ε̂ = x_L − x

Published faults that stand here:
- "pooled": features are summed over atoms before the energy MLP, so the energy is not
  size-extensive (`PooledEnergy`).
- "no-envelope": nothing vanishes at the cutoff; energy and noise jump when a neighbour crosses it.
- "neighbours-32": the search stops after ``max_num_neighbors`` + 2 atoms in index order, the atom
  itself counted. (The network asks for one more than the setting, the search for one more to drop
  the atom itself.) It limits the SENDING side: each j is heard by its first 33 others, or by 34
  where it is not among the first 34 itself.
- "detached-norm": the length that normalises r_ij is a constant to autograd, so −∂E/∂x is not the
  derivative of E.
- The code copies the positions before it moves them, so in it E has no derivative at all; here it
  has the one above.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..base import Features
from ..faults import of
from ..layers import sum_over
from .common import (
    CodeGraph,
    PooledEnergy,
    Published,
    first_in_index_order,
    mean_over,
    minimum_image,
)

# the configuration beside the published weights; those at the top of the repository: tanh=False
SETTINGS: dict[str, Any] = dict(
    hidden_channels=256,
    n_layers=5,
    residual=True,
    attention=True,
    normalize=True,
    tanh=True,
    cutoff=5.0,
    max_atom_type=28,
    max_num_neighbors=32,
)
WITHOUT_EFFECT = ("max_chirality_type",)
NAMES = (("energy_head.", "energy_head."), ("gcl_", "backbone.gcl."), ("", "backbone."))
UNUSED: tuple[str, ...] = ()


class Layer(nn.Module):
    """One message-passing layer (the code's E_GCL); see the module's docstring."""

    def __init__(
        self, hidden: int, residual: bool, attention: bool, normalize: bool, tanh: bool
    ) -> None:
        super().__init__()
        self.residual, self.normalize = residual, normalize
        self.edge_mlp = nn.Sequential(
            nn.Linear(2 * hidden + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.node_mlp = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )
        last = nn.Linear(hidden, 1, bias=False)
        nn.init.xavier_uniform_(last.weight, gain=0.001)
        bound = [nn.Tanh()] if tanh else []
        self.coord_mlp = nn.Sequential(nn.Linear(hidden, hidden), nn.SiLU(), last, *bound)
        self.att_mlp = nn.Sequential(nn.Linear(hidden, 1), nn.Sigmoid()) if attention else None

    def forward(
        self,
        h: Tensor,  # [N, F]
        x: Tensor,  # [N, 3]
        receiver: Tensor,  # [E] i
        sender: Tensor,  # [E] j
        shift: Tensor | None,  # [E, 3] added to x_j
        box: Tensor | None,  # [E, 3] edges of the box, masked paper only
    ) -> tuple[Tensor, Tensor]:
        """The atoms' features [N, F] and positions [N, 3] Å after this layer."""
        difference = x[receiver] - x[sender]  # [E, 3]
        if shift is not None:
            difference = difference - shift
        difference = minimum_image(difference, box)
        squared = difference.square().sum(1, keepdim=True)  # [E, 1]
        if self.normalize:
            difference = difference / (squared.sqrt().detach() + 1e-8)  # "detached-norm"
        message = self.edge_mlp(torch.cat([h[receiver], h[sender], squared], 1))  # [E, F]
        if self.att_mlp is not None:
            message = message * self.att_mlp(message)
        x = x + mean_over(difference * self.coord_mlp(message), receiver, len(x))
        update = self.node_mlp(torch.cat([h, sum_over(message, receiver, len(h))], 1))
        return h + update if self.residual else update, x


class EGNN(nn.Module):
    """The backbone: `CodeGraph` -> `Features`.

    Scalars are [N, hidden_channels], the displacement x_L − x [N, 3] in Å.
    """

    n_vector_features = 0
    gives_displacement = True
    boxes = False
    faults = of("egnn", "denoise-paper")
    formal_charges = False  # read through `CodeGraph.type`
    stacks = ("gcl",)
    # not "permutation": the neighbour limit goes by the order of atoms
    symmetries = frozenset({"translation", "rotation", "reflection"})

    def __init__(
        self,
        hidden_channels: int,
        n_layers: int,
        residual: bool,
        attention: bool,
        normalize: bool,
        tanh: bool,
        cutoff: float,
        max_atom_type: int,
        max_num_neighbors: int,
    ) -> None:
        super().__init__()
        self.cutoff, self.n_features = cutoff, hidden_channels
        self.max_num_neighbors = max_num_neighbors
        self.type_embedding = nn.Embedding(max_atom_type, hidden_channels)
        self.gcl = nn.ModuleList(
            Layer(hidden_channels, residual, attention, normalize, tanh) for _ in range(n_layers)
        )

    def heard(self, graph: CodeGraph) -> Tensor:
        """Which edges the search finds, [E]: the receiver is among the sender's first atoms."""
        n, limit = len(graph.z), self.max_num_neighbors + 2
        # each sender's list of receivers
        order = torch.argsort(graph.sender * n + graph.receiver, stable=True)
        kept, _ = first_in_index_order(graph.receiver[order], graph.sender[order], n, limit)
        return torch.empty_like(kept).scatter_(0, order, kept)

    def forward(self, graph: CodeGraph) -> Features:
        """Scalars h_i [N, F] and displacements x_L − x [N, 3] Å."""
        kept = self.heard(graph)
        sender, receiver = graph.sender[kept], graph.receiver[kept]
        shift = None if graph.shift is None else graph.shift[kept]
        h, x = self.type_embedding(graph.type), graph.pos
        # later layers see the moved atoms; the edges stay those of the input
        for layer in self.gcl:
            h, x = layer(h, x, receiver, sender, shift, None)
        return Features(h, displacement=x - graph.pos)


def sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """The settings that a state dict tells."""
    types, hidden = state["type_embedding.weight"].shape
    layers = [int(k.split(".")[0].removeprefix("gcl_")) for k in state if k.startswith("gcl_")]
    return dict(
        hidden_channels=hidden,
        n_layers=1 + max(layers),
        attention=any(".att_mlp." in k for k in state),
        max_atom_type=types,
    )


def network(**settings: Any) -> Published:
    """The network with new weights, under the published code's names of settings."""
    hidden = settings["hidden_channels"]
    head = PooledEnergy(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))
    return Published(EGNN(**settings), head, vector="coordinate")
