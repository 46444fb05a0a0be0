"""TorchMD-NET ET: equivariant transformer (Thölke, De Fabritiis, ICLR 2022, arXiv 2202.02541).

Scalars x_i and vectors v_i, both of width F, mixed by attention without softmax. f_c is the cosine
cutoff, ⊙ channel-wise:
    (2) f_c(d)    = ½(cos(πd/c) + 1)
    (1) e_k(d_ij) = f_c(d_ij) exp(−β_k (exp(−5 d_ij/c) − μ_k)²)  exp-normal basis, β and μ trainable
    (3) n_i       = Σ_{j≠i} embed'(z_j) ⊙ (W e_ij + w) f_c        neighbour embedding
    (4) x_i       = C [embed(z_i), n_i] + b
  each layer, on x̄ = LayerNorm(x), with Q, K, V linear in x̄ and D = SiLU(linear(e)) for keys and
  values:
    (5) A_ij      = SiLU(Σ_{channels of a head} Q_i ⊙ K_j ⊙ D^K_ij) f_c    attention of each head
    (6) s¹ s² s³  = split(V_j ⊙ D^V_ij)
    (7) q¹ q² q³  = split(O Σ_j A_ij s³_ij)
    (8) Δx_i      = q¹ + q² ⊙ ⟨U₁ v_i, U₂ v_i⟩
    (9) Δv_i      = Σ_j (s¹_ij ⊙ v_j + s²_ij ⊙ r_ij/d_ij) f_c + q³ ⊙ U₃ v_i
Every atom also attends to itself (d = 0, no direction), as in the authors' code. After the last
layer x is normalised.

What differs from the denoise paper's code by our choice: the f_c in (9), without which D^V's bias
leaves a message at the cutoff and the energy jumps (the authors' option ``vector_cutoff`` is the
same remedy, off by default); the energy MLP acts per atom, so the energy is extensive; no neighbour
is cut off; elements have a row each, not the code's 28 types (``formal_charges=True`` tells those
apart). ``faults`` brings back, one by one, what the code has instead: "no-envelope", "pooled" and
"neighbours-32": an atom attends to the first 32 atoms within the cutoff in the order of their
indices, itself counted, and not to itself where 32 come before it. With all of them,
``faithful=True``, and copied weights energies and vectors are the published code's to rounding.

Parameters: denoise-paper 4 959 811, small 202 051 (counted by a test).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from ..errors import ConfigError
from . import faults as published_faults
from .graph import Features, Graph, Network
from .layers import (
    AtomEmbedding,
    cosine_envelope,
    first_neighbors,
    glorot,
    keep_edges,
    parts,
    silu,
    sum_over,
)
from .replaceable import replaceable

PRESETS = {
    "denoise-paper": dict(hidden=256, layers=6, radial=32, heads=8, cutoff=5.0, vector="gated"),
    "small": dict(hidden=64, layers=3, radial=32, heads=4, cutoff=5.0, vector="gated"),
}
FAULTY_SEARCH = 32  # atoms that an atom hears, itself counted, in the published code


class ExpNormalBasis(nn.Module):
    """Equation 1, initialised as in PhysNet (Unke, Meuwly 2019). [E] Å -> [E, size]."""

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        start = math.exp(-cutoff)
        self.means = nn.Parameter(torch.linspace(start, 1.0, size))
        self.betas = nn.Parameter(torch.full((size,), (2.0 / size * (1.0 - start)) ** -2))

    def forward(self, distance: Tensor, envelope: Tensor) -> Tensor:
        """e_k of each distance [E] Å and its envelope [E]: [E, size]."""
        closeness = torch.exp(distance * (-5.0 / self.cutoff))[:, None]
        return envelope[:, None] * torch.exp(-self.betas * (closeness - self.means) ** 2)


@dataclasses.dataclass(eq=False)
class Edges:
    """What every layer needs to know of the edges; made once per step."""

    graph: Graph
    envelope: Tensor  # [E, 1] (2)
    basis: Tensor  # [E, K] (1)
    direction: Tensor  # [E, 3] r_ij / d_ij
    own_basis: Tensor  # [1, K] (1) at d = 0, where an atom attends to itself
    # [N, 1] 0 where an atom does not: fault "neighbours-32"; None where all do
    own: Tensor | None = None


class Layer(nn.Module):
    """Equations 5–9: the changes of x and v."""

    def __init__(self, hidden: int, heads: int, radial: int, damped: bool, first: bool) -> None:
        super().__init__()
        self.heads, self.damped = heads, damped
        self.norm = nn.LayerNorm(hidden)
        self.query, self.key = glorot(hidden, hidden), glorot(hidden, hidden)  # Q, K
        self.value = glorot(hidden, 3 * hidden)  # V
        self.key_distance = glorot(radial, hidden)  # of D^K
        self.value_distance = glorot(radial, 3 * hidden)  # of D^V
        self.out = glorot(hidden, 3 * hidden)  # O
        # U₁, U₂, U₃; before the first layer all vectors are zero, so there they would never learn
        self.mix = None if first else glorot(hidden, 3 * hidden, bias=False)

    def forward(self, x: Tensor, v: Tensor | None, edges: Edges) -> tuple[Tensor, Tensor]:
        """Δx [N, F] and Δv [N, 3, F]; ``v`` is None before the first layer."""
        normed = self.norm(x)
        q, k, s = self.query(normed), self.key(normed), self.value(normed)
        attended, vector = self.attention(q, k, s, v, edges)
        out = self.out(attended)  # (7) [N, 3F]
        if v is None:
            return parts(out, 3)[0], vector
        return self.update(out, self.mix(v), vector, edges)

    @replaceable("torchmd_et.attention")
    def attention(
        self,
        q: Tensor,  # [N, F]
        k: Tensor,  # [N, F]
        s: Tensor,  # [N, 3F]
        v: Tensor | None,  # [N, 3, F]
        edges: Edges,
    ) -> tuple[Tensor, Tensor]:
        """The sums over j of equations 7 and 9, the atom itself among them: [N, F], [N, 3, F]."""
        sender, receiver, n = edges.graph.sender, edges.graph.receiver, q.shape[0]
        weight, bias = self.filter_weights()
        own_scalar, own_vector = self.own_message(q, k, s, v, edges, weight, bias)
        scalar, vector = self.message(
            q.index_select(0, receiver),
            k.index_select(0, sender),
            s.index_select(0, sender),
            None if v is None else v.index_select(0, sender),
            silu(linear(edges.basis, weight, bias)),
            edges.envelope,
            edges.direction,
        )
        scalar = sum_over(scalar, receiver, n) + own_scalar
        vector = sum_over(vector, receiver, n)
        return scalar, vector if own_vector is None else vector + own_vector

    def message(
        self,
        q: Tensor,  # [E, F] of atom i
        k: Tensor,  # [E, F] of atom j
        s: Tensor,  # [E, 3F] of atom j
        v: Tensor | None,  # [E, 3, F] of atom j
        filters: Tensor,  # [E, 4F] D^K and D^V
        envelope: Tensor,  # [E, 1]
        direction: Tensor | None,  # [E, 3]
    ) -> tuple[Tensor, Tensor | None]:
        """What each edge adds to the sums of equations 7 and 9: [E, F] and [E, 3, F]."""
        d_k, d_v = filters.split([k.shape[-1], s.shape[-1]], dim=-1)
        by_head = (self.heads, -1)
        a = silu((q * k * d_k).unflatten(-1, by_head).sum(-1)) * envelope  # (5) [E, heads]
        s3, s1, s2 = parts(s * d_v, 3)  # (6), in the authors' order
        scalar = (s3.unflatten(-1, by_head) * a[..., None]).flatten(-2)
        if self.damped:
            s1, s2 = s1 * envelope, s2 * envelope
        vector = None if direction is None else direction[:, :, None] * s2[:, None]
        if v is not None:
            carried = v * s1[:, None]
            vector = carried if vector is None else vector + carried
        return scalar, vector

    def own_message(
        self,
        q: Tensor,
        k: Tensor,
        s: Tensor,
        v: Tensor | None,
        edges: Edges,
        weight: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, Tensor | None]:
        """What each atom says to itself, at d = 0, where f_c is 1 and there is no direction."""
        filters = silu(linear(edges.own_basis, weight, bias))  # [1, 4F]
        one = torch.ones_like(edges.own_basis[:, :1])
        scalar, vector = self.message(q, k, s, v, filters, one, None)
        if edges.own is None:
            return scalar, vector
        return scalar * edges.own, None if vector is None else vector * edges.own[:, None]

    def filter_weights(self) -> tuple[Tensor, Tensor]:
        """Weight [4F, K] and bias [4F] of D^K and D^V, to make both in one product."""
        weight = torch.cat([self.key_distance.weight, self.value_distance.weight])
        bias = torch.cat([self.key_distance.bias, self.value_distance.bias])
        return weight, bias

    @replaceable("torchmd_et.update")
    def update(
        self,
        out: Tensor,  # [N, 3F] q¹, q², q³
        mixed: Tensor,  # [N, 3, 3F] U₁v, U₂v, U₃v
        vector: Tensor,  # [N, 3, F] the sum of equation 9
        edges: Edges,
    ) -> tuple[Tensor, Tensor]:
        """Δx [N, F] and Δv [N, 3, F]."""
        q1, q2, q3 = parts(out, 3)  # each [N, F]
        u1, u2, u3 = parts(mixed, 3)  # each [N, 3, F]
        dx = q1 + q2 * (u1 * u2).sum(1)  # (8)
        dv = vector + q3[:, None] * u3  # (9)
        return dx, dv


class TorchMDET(Network):
    """The backbone: `Graph` -> `Features` with scalars [N, hidden] and vectors [N, 3, hidden]."""

    kernel_order = 2
    kernels_in_graphs = True

    def __init__(
        self,
        hidden: int = 256,
        layers: int = 6,
        radial: int = 32,
        heads: int = 8,
        cutoff: float = 5.0,
        charge: bool = False,
        formal_charges: bool = False,
        faults: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if min(hidden, layers, heads) < 1 or radial < 2 or hidden % heads:
            raise ConfigError(
                "TorchMDET needs layers ≥ 1, radial ≥ 2 and a number of heads that divides "
                f"hidden, got layers={layers}, radial={radial}, heads={heads}, hidden={hidden}"
            )
        self.cutoff = cutoff
        self.faults = published_faults.check("torchmd_et", faults)
        self.formal_charges = formal_charges
        self.n_features, self.n_vector_features = hidden, hidden
        self.embedding = AtomEmbedding(hidden, charge, formal_charges)
        self.neighbor_embedding = AtomEmbedding(hidden, formal_charges=formal_charges)  # embed'
        self.basis = ExpNormalBasis(radial, cutoff)
        self.neighbor_filter = glorot(radial, hidden)  # W, w
        self.combine = glorot(2 * hidden, hidden)  # C, b
        damped = "no-envelope" not in self.faults
        self.layers = nn.ModuleList(
            Layer(hidden, heads, radial, damped, first=i == 0) for i in range(layers)
        )
        self.norm = nn.LayerNorm(hidden)

    def forward(self, graph: Graph) -> Features:
        """Scalars [N, F], normalised, and vectors [N, 3, F]."""
        own = None
        if "neighbours-32" in self.faults:
            kept, own = first_neighbors(graph, FAULTY_SEARCH)
            graph = keep_edges(graph, kept)
        edges = self.edges(graph)  # (2), (1)
        if own is not None and not bool(own.all()):
            edges.own = own[:, None].to(graph.pos.dtype)
        near = self.neighbors(self.neighbor_embedding(graph), edges)  # (3)
        x = self.combine(torch.cat([self.embedding(graph), near], -1))  # (4)
        v = None
        for layer in self.layers:
            dx, dv = layer(x, v, edges)  # (5) to (9)
            x = x + dx
            if v is not None:
                v = v + dv
            else:
                v = dv if graph.extra_vector is None else dv + graph.extra_vector
        return Features(self.norm(x), vector=v)

    def edges(self, graph: Graph) -> Edges:
        """What the layers need to know of the edges of ``graph``; equations 1 and 2."""
        envelope = cosine_envelope(graph.distance, self.cutoff)  # (2)
        zero = graph.distance.new_zeros(1)
        return Edges(
            graph=graph,
            envelope=envelope[:, None],
            basis=self.basis(graph.distance, envelope),  # (1)
            direction=graph.vector / graph.distance[:, None],
            own_basis=self.basis(zero, zero + 1.0),
        )

    @replaceable("torchmd_et.neighbors")
    def neighbors(self, h: Tensor, edges: Edges) -> Tensor:  # [N, F] -> [N, F]
        """The neighbour embedding n_i from embed'(z_j)."""
        graph = edges.graph
        sent = h.index_select(0, graph.sender)  # [E, F]
        message = sent * self.neighbor_filter(edges.basis) * edges.envelope
        return sum_over(message, graph.receiver, h.shape[0])  # (3)
