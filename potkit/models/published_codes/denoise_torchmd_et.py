"""TorchMD-Net ET as in the denoise paper's code (arXiv 2303.02216; Thölke et al. 2202.02541).

Scalars x_i and vectors v_i of width F; f(d) = ½(cos(πd / r_c) + 1); every atom is its own neighbour
too, at d = 0 without direction:
    e_k(d)   = f(d) exp(−β_k (exp(−5d / r_c) − μ_k)²)                       β and μ trained
    x_i      = C [embed(t_i), Σ_{j≠i} embed'(t_j) ⊙ (W e_ij + w) f_ij] + c  neighbour embedding
  each layer, on LayerNorm(x), with Q, K, V linear in it and D^K, D^V = SiLU(linear(e)):
    A_ij     = SiLU(Σ_{channels of a head} Q_i ⊙ K_j ⊙ D^K_ij) f_ij
    s s¹ s²  = split of V_j ⊙ D^V_ij within each head
    o¹ o² o³ = split(O Σ_j A_ij s_ij)
    x_i      ← x_i + o² ⊙ ⟨U₁ v_i, U₂ v_i⟩ + o³
    v_i      ← v_i + Σ_j (s¹_ij ⊙ v_j + s²_ij ⊙ r̂_ij) + o¹ ⊙ U₃ v_i,   r̂_ij from i to j
    E        = φ_E(Σ_i LayerNorm x_i),   ε̂ = two gated equivariant blocks on (LayerNorm x, v)

Published faults that stand here:
- "pooled": features are summed over atoms before the energy MLP, so the energy is not
  size-extensive (`PooledEnergy`).
- "no-envelope": the sum of v_i is not damped at the cutoff; D^V's bias leaves a message there and
  the energy jumps.
- "neighbours-32": the search stops after ``max_num_neighbors`` atoms in index order, the atom
  itself counted: 31 others, and an atom with 32 others before it loses its own term.
- The code builds and saves a linear layer for scalars and one for vectors per layer that nothing
  uses; they are left out here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import ConfigError
from ..base import Features
from ..faults import of
from ..layers import cosine_envelope, sum_over
from .common import CodeGraph, PooledEnergy, Published, first_in_index_order
from .denoise_schnet import ShiftedSoftplus

SETTINGS: dict[str, Any] = dict(  # the configuration beside the published weights
    hidden_channels=256,
    num_layers=6,
    num_rbf=32,
    num_heads=8,
    activation="silu",
    attn_activation="silu",
    neighbor_embedding=True,
    distance_influence="both",
    cutoff_upper=5.0,
    max_atom_type=28,
    max_num_neighbors=32,
)
WITHOUT_EFFECT = ("max_chirality_type", "trainable_rbf")
# other values are in the code, in none of its configurations, and not here
FIXED = {"rbf_type": "expnorm", "cutoff_lower": 0.0}
NAMES = (("energy_head.", "energy_head."), ("force_head.", "vector_readout."), ("", "backbone."))
UNUSED = (r"x_t_layers\.", r"vec_t_layers\.")
ACTIVATIONS = {"silu": nn.SiLU, "ssp": ShiftedSoftplus, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid}


class ExpNormalSmearing(nn.Module):
    """The radial basis e_k; starts as in PhysNet."""

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        start = math.exp(-cutoff)
        self.means = nn.Parameter(torch.linspace(start, 1.0, size))
        self.betas = nn.Parameter(torch.full((size,), (2.0 / size * (1.0 - start)) ** -2))

    def forward(self, distance: Tensor, envelope: Tensor) -> Tensor:
        """e_k of each distance [E] Å and its envelope [E]: [E, K]."""
        closeness = torch.exp(distance * (-5.0 / self.cutoff))[:, None]
        return envelope[:, None] * torch.exp(-self.betas * (closeness - self.means) ** 2)


class Edges:
    """The edges of the search, an atom to itself (at d = 0, without direction) among them."""

    def __init__(
        self, graph: CodeGraph, cutoff: float, limit: int, smearing: ExpNormalSmearing
    ) -> None:
        n = len(graph.z)
        kept, own = first_in_index_order(graph.sender, graph.receiver, n, limit)
        loops = torch.nonzero(own).flatten()
        self.sender = torch.cat([graph.sender[kept], loops])
        self.receiver = torch.cat([graph.receiver[kept], loops])
        vector = graph.pos[graph.sender[kept]] - graph.pos[graph.receiver[kept]]
        if graph.shift is not None:
            vector = vector + graph.shift[kept]
        distance = vector.square().sum(1).sqrt()
        self.distance = torch.cat([distance, distance.new_zeros(len(loops))])
        self.direction = torch.cat([vector / distance[:, None], vector.new_zeros(len(loops), 3)])
        self.envelope = cosine_envelope(self.distance, cutoff)
        self.basis = smearing(self.distance, self.envelope)  # [E, K]
        self.pairs = slice(0, len(distance))  # without the loops


class NeighborEmbedding(nn.Module):
    """x_i from its own type and those of its neighbours."""

    def __init__(self, hidden: int, rbf: int, types: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(types, hidden)
        self.distance_proj = nn.Linear(rbf, hidden)
        self.combine = nn.Linear(2 * hidden, hidden)

    def forward(self, type: Tensor, x: Tensor, edges: Edges) -> Tensor:
        """x_i [N, F] from the types [N] and their embedding ``x`` [N, F]."""
        pairs = edges.pairs
        weight = self.distance_proj(edges.basis[pairs]) * edges.envelope[pairs, None]
        message = self.embedding(type)[edges.sender[pairs]] * weight
        near = sum_over(message, edges.receiver[pairs], len(x))
        return self.combine(torch.cat([x, near], 1))


class Attention(nn.Module):
    """The changes of x and v; see the module's docstring."""

    def __init__(
        self, hidden: int, rbf: int, heads: int, influence: str, activation: str, attention: str
    ) -> None:
        super().__init__()
        self.heads, self.hidden = heads, hidden
        self.act, self.attn_activation = ACTIVATIONS[activation](), ACTIVATIONS[attention]()
        self.layernorm = nn.LayerNorm(hidden)
        self.q_proj, self.k_proj = nn.Linear(hidden, hidden), nn.Linear(hidden, hidden)
        self.v_proj, self.o_proj = nn.Linear(hidden, 3 * hidden), nn.Linear(hidden, 3 * hidden)
        self.vec_proj = nn.Linear(hidden, 3 * hidden, bias=False)
        self.dk_proj = nn.Linear(rbf, hidden) if influence in ("keys", "both") else None
        self.dv_proj = nn.Linear(rbf, 3 * hidden) if influence in ("values", "both") else None

    def forward(self, x: Tensor, v: Tensor, edges: Edges) -> tuple[Tensor, Tensor]:
        """Δx [N, F] and Δv [N, 3, F] from x [N, F] and v [N, 3, F]."""
        sender, receiver, n = edges.sender, edges.receiver, len(x)
        by_head = (self.heads, -1)
        x = self.layernorm(x)
        query = self.q_proj(x).unflatten(1, by_head)  # [N, heads, F / heads]
        key = self.k_proj(x).unflatten(1, by_head)
        value = self.v_proj(x).unflatten(1, by_head)[sender]  # [E, heads, 3 F / heads]

        agreement = query[receiver] * key[sender]
        if self.dk_proj is not None:
            agreement = agreement * self.act(self.dk_proj(edges.basis)).unflatten(1, by_head)
        attention = self.attn_activation(agreement.sum(-1)) * edges.envelope[:, None]  # [E, heads]
        if self.dv_proj is not None:
            value = value * self.act(self.dv_proj(edges.basis)).unflatten(1, by_head)
        s, s1, s2 = value.chunk(3, -1)  # each [E, heads, F / heads]

        total = sum_over((s * attention[:, :, None]).flatten(1), receiver, n)  # [N, F]
        # "no-envelope": neither term is damped at the cutoff
        carried = v[sender] * s1.flatten(1)[:, None]  # [E, 3, F]
        message = carried + edges.direction[:, :, None] * s2.flatten(1)[:, None]
        o1, o2, o3 = self.o_proj(total).chunk(3, 1)
        u1, u2, u3 = self.vec_proj(v).chunk(3, -1)  # each [N, 3, F]
        dx = (u1 * u2).sum(1) * o2 + o3
        dv = u3 * o1[:, None] + sum_over(message, receiver, n)
        return dx, dv


class TorchMDET(nn.Module):
    """The backbone: `CodeGraph` -> `Features`.

    Scalars are [N, hidden_channels], vectors [N, 3, hidden_channels].
    """

    gives_displacement = False
    boxes = False
    faults = of("torchmd_et", "denoise-paper")
    formal_charges = False  # read through `CodeGraph.type`
    stacks = ("attention_layers",)
    # not "permutation": the neighbour limit goes by the order of atoms
    symmetries = frozenset({"translation", "rotation", "reflection"})

    def __init__(
        self,
        hidden_channels: int,
        num_layers: int,
        num_rbf: int,
        num_heads: int,
        activation: str,
        attn_activation: str,
        neighbor_embedding: bool,
        distance_influence: str,
        cutoff_upper: float,
        max_atom_type: int,
        max_num_neighbors: int,
    ) -> None:
        super().__init__()
        if hidden_channels % num_heads:
            raise ConfigError(
                f"denoise-torchmd_et: num_heads={num_heads} does not divide "
                f"hidden_channels={hidden_channels}"
            )
        for setting in (activation, attn_activation):
            if setting not in ACTIVATIONS:
                raise ConfigError(
                    f"denoise-torchmd_et: unknown activation {setting!r}; "
                    f"there are {', '.join(ACTIVATIONS)}"
                )
        self.cutoff, self.max_num_neighbors = cutoff_upper, max_num_neighbors
        self.n_features = self.n_vector_features = hidden_channels
        self.type_embedding = nn.Embedding(max_atom_type, hidden_channels)
        self.distance_expansion = ExpNormalSmearing(num_rbf, cutoff_upper)
        self.neighbor_embedding = None
        if neighbor_embedding:
            self.neighbor_embedding = NeighborEmbedding(hidden_channels, num_rbf, max_atom_type)
        self.attention_layers = nn.ModuleList(
            Attention(
                hidden_channels, num_rbf, num_heads, distance_influence, activation, attn_activation
            )
            for _ in range(num_layers)
        )
        self.out_norm = nn.LayerNorm(hidden_channels)

    def forward(self, graph: CodeGraph) -> Features:
        """Scalars [N, F], normalised, and vectors [N, 3, F]."""
        edges = Edges(graph, self.cutoff, self.max_num_neighbors, self.distance_expansion)
        x = self.type_embedding(graph.type)
        if self.neighbor_embedding is not None:
            x = self.neighbor_embedding(graph.type, x, edges)
        v = x.new_zeros(len(x), 3, self.n_features)
        for layer in self.attention_layers:
            dx, dv = layer(x, v, edges)
            x, v = x + dx, v + dv
        return Features(self.out_norm(x), vector=v)


class GatedBlock(nn.Module):
    """Scalars see norms of vectors, scalars gate vectors (Schütt et al. 2021, PaiNN fig. 3)."""

    def __init__(self, features: int, out: int, activation: str, last: bool) -> None:
        super().__init__()
        self.vec1_proj = nn.Linear(features, features, bias=False)
        self.vec2_proj = nn.Linear(features, out, bias=False)
        act = ACTIVATIONS[activation]
        self.update_net = nn.Sequential(
            nn.Linear(2 * features, features), act(), nn.Linear(features, 2 * out)
        )
        self.act = None if last else act()

    def forward(self, x: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Scalars [N, F] and vectors [N, 3, F] -> [N, out] and [N, 3, out]."""
        # the norm's gradient at zero is zero, as the code has it
        norm = torch.linalg.vector_norm(self.vec1_proj(v), dim=1)
        x, gate = self.update_net(torch.cat([x, norm], 1)).chunk(2, 1)
        return x if self.act is None else self.act(x), gate[:, None] * self.vec2_proj(v)


class NoiseHead(nn.ModuleList):
    """Two gated blocks, F → F/2 → 1 vector per atom."""

    needs = "vector"

    def __init__(self, features: int, activation: str) -> None:
        half = features // 2
        super().__init__(
            [
                GatedBlock(features, half, activation, last=False),
                GatedBlock(half, 1, activation, last=True),
            ]
        )

    def forward(
        self, features: Features, graph: CodeGraph, energy: Tensor | None, keep_graph: bool
    ) -> Tensor:
        """One vector per atom from scalars [N, F] and vectors [N, 3, F]: [N, 3]."""
        x, v = features.scalar, features.vector
        for block in self:
            x, v = block(x, v)
        return v[..., 0]


def sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """The settings that a state dict tells."""
    types, hidden = state["type_embedding.weight"].shape
    layers = [int(k.split(".")[1]) for k in state if k.startswith("attention_layers.")]
    keys = "attention_layers.0.dk_proj.weight" in state
    values = "attention_layers.0.dv_proj.weight" in state
    influences = {(0, 0): "none", (1, 0): "keys", (0, 1): "values", (1, 1): "both"}
    return dict(
        hidden_channels=hidden,
        num_layers=1 + max(layers),
        num_rbf=len(state["distance_expansion.means"]),
        neighbor_embedding="neighbor_embedding.combine.weight" in state,
        distance_influence=influences[keys, values],
        max_atom_type=types,
    )


def network(**settings: Any) -> Published:
    """The network with new weights, under the published code's names of settings."""
    backbone, hidden = TorchMDET(**settings), settings["hidden_channels"]
    head = PooledEnergy(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))
    return Published(backbone, head, NoiseHead(hidden, settings["activation"]), vector="gated")
