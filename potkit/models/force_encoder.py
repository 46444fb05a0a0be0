"""`ForceEncoder`: a network is told the forces of the structure that it is to find back.

Force-conditioned denoising (DeNS: Liao, Smidt, Shuaibi, Das 2024, arXiv 2403.09549) gives the
network the forces f of the *clean* structure, here in units of the potential's ``scale`` (the root
mean square force of the training set). Atoms are marked by g_i = 1 where f_i is given and 0
elsewhere; where g_i = 0 nothing changes, so a network that is never given forces does not depend on
the encoder. With r̂_ij from i to j, a smooth cutoff f_c and Bessel functions B(d):

    p_i = Σ_j f_c(d_ij) [(U B) (g_i f_i·r̂_ij) + (V B) (g_j f_j·r̂_ij)] ⊙ e(z_j)
    h_i ← h_i + g_i φ(|f_i|, p_i)
    v_i ← v_i + g_i f_i ⊗ ψ(|f_i|)

The projections p on the edges are invariant; h is the embedding of every atom, in every network; v
are the vectors (l = 1) that the first layer makes. What each network takes:

    SchNet, EGNN                    p and |f| as scalars; they have no vector features
    TorchMD-Net ET, PaiNN,
    SE(3)-Transformer, NequIP       the scalars, and f itself as l = 1 features
    GNS, ForceNet                   the scalars, and the three components of f: these networks are
                                    not invariant anyway

DeNS expands f in spherical harmonics of all degrees before the first layer; here it enters with
l = 1, and the coupling with the edges inside the layers makes the higher degrees.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..structures.elements import MAX_Z
from .graph import Graph
from .layers import BesselBasis, mlp, polynomial_envelope, sum_over

RADIAL = 8


class ForceEncoder(nn.Module):
    """Forces [N, 3] -> what is added to the embedding [N, ``features``] and to the first vectors.

    The latter are [N, 3, ``vectors``], or None without any. ``components``: the network may see x,
    y, z as they are, because it is not invariant under rotation.
    """

    def __init__(self, features: int, vectors: int, cutoff: float, components: bool) -> None:
        super().__init__()
        self.cutoff, self.components = cutoff, components
        self.basis = BesselBasis(RADIAL, cutoff)  # B
        self.own = nn.Linear(RADIAL, features, bias=False)  # U
        self.other = nn.Linear(RADIAL, features, bias=False)  # V
        self.element = nn.Embedding(MAX_Z + 1, features)  # e
        self.net = mlp([1 + features + 3 * components, features, features])  # φ
        self.gate = mlp([1, features, vectors]) if vectors else None  # ψ

    def forward(
        self,
        graph: Graph,
        force: Tensor,  # [N, 3] in units of the potential's scale
        given: Tensor,  # [N] 0 or 1
    ) -> tuple[Tensor, Tensor | None]:
        """What is added to h [N, F] and to v [N, 3, F'] (None without vectors)."""
        given = given.to(force.dtype)[:, None]
        force = force * given
        norm = (force.square().sum(1, keepdim=True) + 1e-6).sqrt()  # [N, 1]
        direction = graph.vector / graph.distance[:, None]  # [E, 3]
        envelope = polynomial_envelope(graph.distance, self.cutoff)[:, None]
        near = self.basis(graph.distance) * envelope  # [E, R]
        own = (force[graph.receiver] * direction).sum(1, keepdim=True)  # [E, 1]
        other = (force[graph.sender] * direction).sum(1, keepdim=True)
        edge = self.own(near) * own + self.other(near) * other  # [E, F]
        edge = edge * self.element(graph.z)[graph.sender]
        projections = sum_over(edge, graph.receiver, graph.z.shape[0])
        inputs = [norm, projections, force] if self.components else [norm, projections]
        scalar = given * self.net(torch.cat(inputs, -1))
        if self.gate is None:
            return scalar, None
        return scalar, force[:, :, None] * self.gate(norm)[:, None]
