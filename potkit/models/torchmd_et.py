"""TorchMD-NET ET: equivariant transformer (Thölke, De Fabritiis, ICLR 2022, arXiv 2202.02541).

Scalars x_i and vectors v_i, both of width F, mixed by attention without softmax. f_c is the cosine
cutoff, ⊙ channel-wise:
    (1) e_k(d_ij) = f_c(d_ij) exp(−β_k (exp(−5 d_ij/c) − μ_k)²)                exp-normal basis, β and μ trainable
    (2) f_c(d)    = ½(cos(πd/c) + 1)
    (3) n_i       = Σ_{j≠i} embed'(z_j) ⊙ (W e_ij + w) f_c                     neighbour embedding
    (4) x_i       = C [embed(z_i), n_i] + b
  each layer, on x̄ = LayerNorm(x), with Q, K, V linear in x̄ and D = SiLU(linear(e)) for keys and
  values:
    (5) A_ij      = SiLU(Σ_{channels of a head} Q_i ⊙ K_j ⊙ D^K_ij) f_c         attention of each head
    (6) s¹ s² s³  = split(V_j ⊙ D^V_ij)
    (7) q¹ q² q³  = split(O Σ_j A_ij s³_ij)
    (8) Δx_i      = q¹ + q² ⊙ ⟨U₁ v_i, U₂ v_i⟩
    (9) Δv_i      = Σ_j (s¹_ij ⊙ v_j + s²_ij ⊙ r_ij/d_ij) f_c + q³ ⊙ U₃ v_i
Every atom also attends to itself (d = 0, no direction), as in the authors' code. After the last
layer x is normalised.

The f_c in (9) is not in the paper and not the authors' default: without it D^V's bias leaves a
message at the cutoff and the energy jumps (their option ``vector_cutoff`` is the same remedy).
``faithful=True`` leaves it out, keeps at most 32 neighbours per atom, the atom itself among them,
and sums features over atoms before the energy MLP, all as in the denoise paper's code.

Parameters: denoise-paper 4 959 811, small 202 051 (counted by a test).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from .. import kernels
from ..errors import ConfigError
from .base import Features, Graph
from .layers import AtomEmbedding, cosine_envelope, first_neighbors, in_blocks, sum_over
from .schnet import glorot
from .torchmd_et_edges import blocked, messages, plain
from .torchmd_et_kernel import changes, neighbours, pieces, summed

PRESETS = {
    "denoise-paper": dict(hidden=256, layers=6, radial=32, heads=8, cutoff=5.0, vector="gated"),
    "small": dict(hidden=64, layers=3, radial=32, heads=4, cutoff=5.0, vector="gated"),
}
FAITHFUL_NEIGHBORS = 32


class ExpNormalBasis(nn.Module):
    """Equation 1, initialised as in PhysNet (Unke, Meuwly 2019). [E] Å -> [E, size]."""

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        start = math.exp(-cutoff)
        self.means = nn.Parameter(torch.linspace(start, 1.0, size))
        self.betas = nn.Parameter(torch.full((size,), (2.0 / size * (1.0 - start)) ** -2))

    def forward(self, distance: Tensor, envelope: Tensor) -> Tensor:
        closeness = torch.exp(distance * (-5.0 / self.cutoff))[:, None]
        return envelope[:, None] * torch.exp(-self.betas * (closeness - self.means) ** 2)


class Edges:
    """What every layer needs of the pairs, or of the atoms seen by themselves (``sender`` None,
    no direction).
    """

    def __init__(
        self,
        basis: Tensor,
        envelope: Tensor,
        direction: Tensor | None,
        sender: Tensor | None,
        receiver: Tensor | None,
    ):
        self.basis = basis  # [E, K]
        self.envelope = envelope[:, None]  # [E, 1]
        self.direction = direction  # [E, 3]
        self.sender, self.receiver = sender, receiver
        # [P, 2], which edges are each other's opposite, where kernels want to know
        self.together: Tensor | None = None


class Layer(nn.Module):
    """Equations 5–9: the changes of x and v."""

    def __init__(self, hidden: int, heads: int, radial: int, damped: bool, first: bool) -> None:
        super().__init__()
        self.heads, self.damped = heads, damped
        self.norm = nn.LayerNorm(hidden)
        self.query, self.key, self.value = (
            glorot(hidden, hidden),
            glorot(hidden, hidden),
            glorot(hidden, 3 * hidden),
        )
        self.key_distance, self.value_distance = glorot(radial, hidden), glorot(radial, 3 * hidden)
        self.out = glorot(hidden, 3 * hidden)
        # U₁, U₂, U₃; before the first layer all vectors are zero, so there they would never learn
        self.mix = None if first else glorot(hidden, 3 * hidden, bias=False)

    def forward(
        self, x: Tensor, v: Tensor | None, pairs: Edges, self_edges: Edges, by_blocks: bool
    ) -> tuple[Tensor, Tensor]:
        n = x.shape[0]
        normed = self.norm(x)
        q, k, s = self.query(normed), self.key(normed), self.value(normed)
        # [4F, K], all filters in one product
        weight = torch.cat([self.key_distance.weight, self.value_distance.weight])
        bias = torch.cat([self.key_distance.bias, self.value_distance.bias])
        if by_blocks and kernels.wanted(weight):
            per_edge = pairs.basis, pairs.envelope, pairs.direction
            total, vector = summed(
                q,
                k,
                s,
                v,
                *per_edge,
                weight,
                bias,
                self_edges.basis,
                pairs.sender,
                pairs.receiver,
                pairs.together,
                self.heads,
                self.damped,
            )
            if v is not None:
                return changes(self.out(total), self.mix(v), vector)
        else:
            own, own_vector = messages(
                q,
                k,
                s,
                v,
                self_edges.basis,
                self_edges.envelope,
                None,
                weight,
                bias,
                self.heads,
                self.damped,
            )
            run = blocked if by_blocks else plain
            scalar, vector = run(
                q,
                k,
                s,
                v,
                pairs.basis,
                pairs.envelope,
                pairs.direction,
                weight,
                bias,
                pairs.sender,
                pairs.receiver,
                self.heads,
                self.damped,
            )
            total, vector = scalar + own, vector if own_vector is None else vector + own_vector
        q1, q2, q3 = self.out(total).chunk(3, dim=-1)  # (7)
        if v is None:
            return q1, vector
        u1, u2, u3 = self.mix(v).chunk(3, dim=-1)  # each [N, 3, F]
        return q1 + q2 * (u1 * u2).sum(1), vector + q3[:, None] * u3  # (8), (9)


class TorchMDET(nn.Module):
    """The backbone: `Graph` -> `Features` with scalars [N, hidden] and vectors [N, 3, hidden]."""

    gives_displacement = False
    kernel_order = 1  # kernels serve first derivatives: see potkit.compiling
    faithful_pooled = True

    def __init__(
        self,
        hidden: int = 256,
        layers: int = 6,
        radial: int = 32,
        heads: int = 8,
        cutoff: float = 5.0,
        charge: bool = False,
        faithful: bool = False,
    ) -> None:
        super().__init__()
        if min(hidden, layers, heads) < 1 or radial < 2 or hidden % heads:
            raise ConfigError(
                f"TorchMDET needs layers ≥ 1, radial ≥ 2 and a number of heads that divides hidden, "
                f"got layers={layers}, radial={radial}, heads={heads}, hidden={hidden}"
            )
        self.cutoff, self.n_features, self.n_vector_features, self.faithful = (
            cutoff,
            hidden,
            hidden,
            faithful,
        )
        self.embedding, self.neighbor_embedding = (
            AtomEmbedding(hidden, charge),
            AtomEmbedding(hidden),
        )
        self.basis = ExpNormalBasis(radial, cutoff)
        self.neighbor_filter = glorot(radial, hidden)
        self.combine = glorot(2 * hidden, hidden)
        self.layers = nn.ModuleList(
            Layer(hidden, heads, radial, damped=not faithful, first=i == 0) for i in range(layers)
        )
        self.norm = nn.LayerNorm(hidden)

    def forward(self, graph: Graph) -> Features:
        sender, receiver, vector, distance = (
            graph.sender,
            graph.receiver,
            graph.vector,
            graph.distance,
        )
        n = graph.z.shape[0]
        if self.faithful:
            kept = first_neighbors(receiver, FAITHFUL_NEIGHBORS - 1, n)
            sender, receiver, vector, distance = (
                sender[kept],
                receiver[kept],
                vector[kept],
                distance[kept],
            )
        envelope = cosine_envelope(distance, self.cutoff)
        pairs = Edges(
            self.basis(distance, envelope), envelope, vector / distance[:, None], sender, receiver
        )
        here = distance.new_zeros(1)
        # broadcasts over atoms
        itself = Edges(self.basis(here, here + 1.0), here + 1.0, None, None, None)

        by_blocks = in_blocks(distance, twice=self.training and graph.pos.requires_grad)
        near, w = self.neighbor_embedding(graph), self.neighbor_filter  # (3)
        if by_blocks and kernels.wanted(w.weight):
            pairs.together = pieces(pairs.basis, pairs.direction, sender, receiver, n)
            near = neighbours(
                near,
                pairs.basis,
                pairs.envelope,
                w.weight,
                w.bias,
                sender,
                receiver,
                pairs.together,
            )
        else:
            near = sum_over(near[sender] * w(pairs.basis) * pairs.envelope, receiver, n)
        x = self.combine(torch.cat([self.embedding(graph), near], -1))  # (4)
        v = None
        for layer in self.layers:
            dx, dv = layer(x, v, pairs, itself, by_blocks)
            x, v = (
                x + dx,
                dv + (0 if graph.extra_vector is None else graph.extra_vector)
                if v is None
                else v + dv,
            )
        return Features(self.norm(x), vector=v)
