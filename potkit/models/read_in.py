"""What a network can be told besides elements and positions: the forces of the structure it is to
find back (`ForceEncoder`).

Force-conditioned denoising (DeNS: Liao, Smidt, Shuaibi, Das 2024, arXiv 2403.09549) gives the
network the forces f of the *clean* structure, here in units of the potential's ``scale`` (the root
mean square force of the training set). Atoms are marked by g_i = 1 where f_i is given and 0
elsewhere; where g_i = 0 nothing changes, so a network that is never given forces does not depend on
the encoder. With r̂_ij from i to j, a smooth cutoff f_c and Bessel functions B(d):

    p_i  = Σ_j f_c(d_ij) [(U B) (g_i f_i·r̂_ij) + (V B) (g_j f_j·r̂_ij)] ⊙ e(z_j)          projections on the edges, invariant
    h_i ← h_i + g_i φ(|f_i|, p_i)            added to the embedding of every atom, in every network
    v_i ← v_i + g_i f_i ⊗ ψ(|f_i|)           added to the vectors (l = 1) that the first layer makes

What each network takes
    SchNet, EGNN                              p and |f| as scalars; they have no vector features
    TorchMD-Net ET, PaiNN, SE(3)-Transformer, NequIP   the scalars, and f itself as l = 1 features
    GNS, ForceNet                             the scalars, and the three components of f: these networks are not invariant anyway
DeNS expands f in spherical harmonics of all degrees before the first layer; here it enters with l =
1, and the coupling with the edges inside the layers makes the higher degrees.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..structures.elements import MAX_Z
from .layers import BesselBasis, mlp, polynomial_envelope, sum_over

RADIAL = 8


class ForceEncoder(nn.Module):
    """Forces [N, 3] -> what is added to the embedding [N, ``features``] and to the first vectors
    [N, 3, ``vectors``] (None if 0).

    ``components``: the network may see x, y, z as they are, because it is not invariant under
    rotation.
    """

    def __init__(self, features: int, vectors: int, cutoff: float, components: bool) -> None:
        super().__init__()
        self.cutoff, self.components = cutoff, components
        self.basis = BesselBasis(RADIAL, cutoff)
        self.own, self.other = (nn.Linear(RADIAL, features, bias=False) for _ in range(2))  # U, V
        self.element = nn.Embedding(MAX_Z + 1, features)
        self.net = mlp([1 + features + 3 * components, features, features])
        self.gate = mlp([1, features, vectors]) if vectors else None

    # force [N, 3], given [N] 0 or 1
    def forward(self, graph, force: Tensor, given: Tensor) -> tuple[Tensor, Tensor | None]:
        given = given.to(force.dtype)[:, None]
        force = force * given
        norm = (force.square().sum(1, keepdim=True) + 1e-6).sqrt()  # [N, 1]
        direction = graph.vector / graph.distance[:, None]  # [E, 3]
        # [E, R]
        near = (
            self.basis(graph.distance) * polynomial_envelope(graph.distance, self.cutoff)[:, None]
        )
        own = (force[graph.receiver] * direction).sum(1, keepdim=True)  # [E, 1]
        other = (force[graph.sender] * direction).sum(1, keepdim=True)
        # [E, F]
        edge = (self.own(near) * own + self.other(near) * other) * self.element(graph.z)[
            graph.sender
        ]
        inputs = [norm, sum_over(edge, graph.receiver, graph.z.shape[0])] + [
            force
        ] * self.components
        scalar = given * self.net(torch.cat(inputs, -1))
        return scalar, None if self.gate is None else force[:, :, None] * self.gate(norm)[:, None]
