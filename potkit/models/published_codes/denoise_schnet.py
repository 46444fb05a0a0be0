"""SchNet as in the denoise paper's code (arXiv 2303.02216): the one of PyTorch Geometric.

    e_k(d)   = exp(−(d − μ_k)² / 2Δ²)                    μ_k from 0 to r_c, Δ their spacing
    W(d)     = ½(cos(πd / r_c) + 1) · (A₂ ssp(A₁ e + a₁) + a₂)
    h_i      ← h_i + D ssp(B₂ Σ_j (B₁ h_j) ⊙ W(d_ij) + b₂) + d
    E        = Σ_i (C₂ ssp(C₁ h_i + c₁) + c₂)             widths F → F/2 → 1
    ε̂        = −∂E/∂x
with ssp(x) = log(½eˣ + ½); d_ij and r_c in Å.

Published faults that stand here:
- "neighbours-32": only the first 32 neighbours of an atom in index order, 33 for an atom that is
  not among its own first 33. The setting ``max_num_neighbors`` is overwritten by the base class,
  so it changes nothing.
- "wrong-sign": pretraining compares −∂E/∂x with +noise, so the energy it learns has its maximum at
  the clean structure. That is the objective's matter (`Denoise(faithful=True)`); the network is the
  same.
- Embedding rows are the 28 types of `ATOM_TYPES`, though the table has 100: rows 28 to 99 are never
  used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..base import Features
from ..faults import of
from ..layers import cosine_envelope, sum_over
from .common import CodeGraph, Published, first_in_index_order, mean_over

SETTINGS: dict[str, Any] = dict(  # the configuration beside the published weights
    hidden_channels=256,
    num_filters=256,
    num_interactions=5,
    num_gaussians=32,
    cutoff=5.0,
    readout="add",
    max_embedding=100,
)
WITHOUT_EFFECT = (
    "num_atoms",
    "bond_feat_dim",
    "num_targets",
    "otf_graph",
    "auto_grad",
    "max_num_neighbors",
)
NAMES = (("lin1.", "energy_head.lin1."), ("lin2.", "energy_head.lin2."), ("", "backbone."))
# `mlp` is the filter network again under a second name; older versions of the library keep masses
UNUSED = (r"interactions\.\d+\.mlp\.", "atomic_mass$")
NEIGHBORS = 32
# the library rounds log 2 to float32, whatever the weights are
SHIFT = torch.tensor(2.0, dtype=torch.float32).log().item()


class ShiftedSoftplus(nn.Module):
    """log(½eˣ + ½)."""

    def forward(self, x: Tensor) -> Tensor:
        """log(½eˣ + ½) of every entry, in any shape."""
        return nn.functional.softplus(x) - SHIFT


class Smearing(nn.Module):
    """The Gaussians e_k; the centres stand in the state dict, their width does not."""

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.register_buffer("offset", torch.linspace(0.0, cutoff, size))
        rounded = torch.linspace(0.0, cutoff, size, dtype=torch.float32)  # as in the library
        self.coefficient = -0.5 / rounded[1].item() ** 2

    def forward(self, distance: Tensor) -> Tensor:
        """The Gaussians of each distance: [E] Å -> [E, K]."""
        return torch.exp(self.coefficient * (distance[:, None] - self.offset) ** 2)


class Convolution(nn.Module):
    """Σ_j (B₁ h_j) ⊙ W(d_ij), then B₂."""

    def __init__(self, hidden: int, filters: int, gaussians: int) -> None:
        super().__init__()
        self.lin1 = nn.Linear(hidden, filters, bias=False)
        self.lin2 = nn.Linear(filters, hidden)
        self.nn = nn.Sequential(
            nn.Linear(gaussians, filters), ShiftedSoftplus(), nn.Linear(filters, filters)
        )

    def forward(
        self,
        h: Tensor,  # [N, F]
        basis: Tensor,  # [E, K]
        envelope: Tensor,  # [E, 1]
        sender: Tensor,
        receiver: Tensor,
    ) -> Tensor:
        """The convolved features: [N, F] -> [N, F]."""
        message = self.lin1(h)[sender] * (self.nn(basis) * envelope)
        return self.lin2(sum_over(message, receiver, len(h)))


class Interaction(nn.Module):
    """The change of h."""

    def __init__(self, hidden: int, filters: int, gaussians: int) -> None:
        super().__init__()
        self.conv = Convolution(hidden, filters, gaussians)
        self.act = ShiftedSoftplus()
        self.lin = nn.Linear(hidden, hidden)

    def forward(
        self, h: Tensor, basis: Tensor, envelope: Tensor, sender: Tensor, receiver: Tensor
    ) -> Tensor:
        """What the neighbours change in h: [N, F] -> [N, F]."""
        return self.lin(self.act(self.conv(h, basis, envelope, sender, receiver)))


class SchNet(nn.Module):
    """The backbone: `CodeGraph` -> `Features` with scalars [N, hidden_channels]."""

    n_vector_features = 0
    gives_displacement = False
    boxes = False
    faults = of("schnet", "denoise-paper")
    formal_charges = False  # read through `CodeGraph.type`
    stacks = ("interactions",)
    # not "permutation": the neighbour limit goes by the order of atoms
    symmetries = frozenset({"translation", "rotation", "reflection"})

    def __init__(
        self,
        hidden: int,
        filters: int,
        interactions: int,
        gaussians: int,
        cutoff: float,
        types: int,
    ) -> None:
        super().__init__()
        self.cutoff, self.n_features = cutoff, hidden
        self.embedding = nn.Embedding(types, hidden)
        self.distance_expansion = Smearing(gaussians, cutoff)
        self.interactions = nn.ModuleList(
            Interaction(hidden, filters, gaussians) for _ in range(interactions)
        )

    def forward(self, graph: CodeGraph) -> Features:
        """Scalars h_i [N, F], invariant."""
        limit = NEIGHBORS + 1  # the search counts the atom itself
        kept, _ = first_in_index_order(graph.sender, graph.receiver, len(graph.z), limit)
        sender, receiver = graph.sender[kept], graph.receiver[kept]
        vector = graph.pos[sender] - graph.pos[receiver]
        if graph.shift is not None:
            vector = vector + graph.shift[kept]
        distance = vector.square().sum(1).sqrt()
        basis = self.distance_expansion(distance)
        envelope = cosine_envelope(distance, self.cutoff)[:, None]
        h = self.embedding(graph.type)
        for interaction in self.interactions:
            h = h + interaction(h, basis, envelope, sender, receiver)
        return Features(h)


class EnergyHead(nn.Module):
    """C₂ ssp(C₁ h + c₁) + c₂ per atom: [N, F] -> [N].

    With ``readout`` "mean" it is averaged over the atoms of a structure, -> [S]; "add" leaves the
    sum to `Potential`.
    """

    def __init__(self, hidden: int, readout: str) -> None:
        super().__init__()
        self.pooled = readout == "mean"
        self.lin1 = nn.Linear(hidden, hidden // 2)
        self.act = ShiftedSoftplus()
        self.lin2 = nn.Linear(hidden // 2, 1)

    def forward(self, features: Tensor, graph: CodeGraph) -> Tensor:
        """Energies of atoms [N], or of structures [S] where they are averaged."""
        energy = self.lin2(self.act(self.lin1(features)))[:, 0]
        return mean_over(energy, graph.batch, graph.n_structures) if self.pooled else energy


def sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """The settings that a state dict tells."""
    filters, gaussians = state["interactions.0.conv.nn.0.weight"].shape
    types, hidden = state["embedding.weight"].shape
    blocks = [int(k.split(".")[1]) for k in state if k.startswith("interactions.")]
    return dict(
        hidden_channels=hidden,
        num_filters=filters,
        num_gaussians=gaussians,
        num_interactions=1 + max(blocks),
        # the last centre of the Gaussians; single precision has seven digits
        cutoff=float(f"{state['distance_expansion.offset'][-1].item():.6g}"),
        max_embedding=types,
    )


def network(
    hidden_channels: int,
    num_filters: int,
    num_interactions: int,
    num_gaussians: int,
    cutoff: float,
    readout: str,
    max_embedding: int,
) -> Published:
    """The network with new weights, under the published code's names of settings."""
    if readout not in ("add", "sum", "mean"):
        raise ConfigError(f"denoise-schnet: readout must be add, sum or mean, got {readout!r}")
    backbone = SchNet(
        hidden_channels, num_filters, num_interactions, num_gaussians, cutoff, max_embedding
    )
    return Published(backbone, EnergyHead(hidden_channels, readout), vector="gradient")
