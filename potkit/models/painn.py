"""PaiNN: polarizable atom interaction network (Schütt, Unke, Gastegger, ICML 2021, arXiv
2102.03150).

Each atom carries scalars s_i and vectors v_i of the same width F. Per layer (equation numbers of
the paper; φ, a small MLPs with 3F outputs, W linear filters of the radial basis times the cutoff
function, U and V linear maps over channels):
    message   (7) Δs_i = Σ_j φ_s(s_j) ⊙ W_s(d_ij)
              (8) Δv_i = Σ_j v_j ⊙ φ_vv(s_j) ⊙ W_vv(d_ij) + Σ_j φ_vs(s_j) ⊙ W_vs(d_ij) r_ij/d_ij
    update    (9) Δs_i = a_ss(s_i, |V v_i|) + a_sv(s_i, |V v_i|) ⊙ ⟨U v_i, V v_i⟩
             (10) Δv_i = a_vv(s_i, |V v_i|) ⊙ U v_i

The radial basis is √(2/c) sin(kπd/c)/d, the cutoff function the cosine one or
(``envelope="polynomial"``) one with continuous second derivatives. |·| is √(|·|² + 10⁻⁶), which has
a derivative where a vector vanishes, as on isolated atoms. Neither paper uses PaiNN; ``paper`` is
the size of its own paper. The vector read-out is "gated" or, through −∂E/∂x, "gradient".

Parameters: paper 686 467, small 182 467 (counted by a test).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .graph import Features, Graph, Network
from .layers import ENVELOPES, AtomEmbedding, BesselBasis, mlp, parts, sum_over

PRESETS = {
    "paper": dict(hidden=128, layers=3, radial=20, cutoff=5.0, envelope="cosine", vector="gated"),
    "small": dict(
        hidden=64, layers=3, radial=20, cutoff=5.0, envelope="polynomial", vector="gated"
    ),
}


class Message(nn.Module):
    """Equations 7 and 8; φ acts on atoms before the gathering to edges."""

    def __init__(self, hidden: int, radial: int) -> None:
        super().__init__()
        self.phi = mlp([hidden, hidden, 3 * hidden])  # φ_s, φ_vs, φ_vv
        self.filter = nn.Linear(radial, 3 * hidden)  # W_s, W_vs, W_vv

    def forward(
        self,
        s: Tensor,  # [N, F]
        v: Tensor | None,  # [N, 3, F], None before the first layer
        basis: Tensor,  # [E, K]
        envelope: Tensor,  # [E, 1]
        direction: Tensor,  # [E, 3]
        graph: Graph,
    ) -> tuple[Tensor, Tensor]:
        """Δs [N, F] and Δv [N, 3, F] from the neighbours."""
        weight = self.filter(basis) * envelope  # [E, 3F]
        message = self.phi(s)[graph.sender] * weight
        from_s, along_direction, along_v = parts(message, 3)  # each [E, F]
        from_v = direction[:, :, None] * along_direction[:, None]  # [E, 3, F]
        if v is not None:
            from_v = from_v + v[graph.sender] * along_v[:, None]
        ds = sum_over(from_s, graph.receiver, s.shape[0])  # (7)
        dv = sum_over(from_v, graph.receiver, s.shape[0])  # (8)
        return ds, dv


class Update(nn.Module):
    """Equations 9 and 10."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mix = nn.Linear(hidden, 2 * hidden, bias=False)  # U and V
        self.net = mlp([2 * hidden, hidden, 3 * hidden])  # a_ss, a_sv, a_vv

    def forward(
        self,
        s: Tensor,  # [N, F]
        v: Tensor,  # [N, 3, F]
    ) -> tuple[Tensor, Tensor]:
        """Δs [N, F] and Δv [N, 3, F] from the atom itself."""
        uv, vv = parts(self.mix(v), 2)  # U v_i and V v_i, each [N, 3, F]
        norm = (vv.square().sum(1) + 1e-6).sqrt()  # |V v_i|
        a_ss, a_sv, a_vv = parts(self.net(torch.cat([s, norm], -1)), 3)
        ds = a_ss + a_sv * (uv * vv).sum(1)  # (9)
        dv = a_vv[:, None] * uv  # (10)
        return ds, dv


class PaiNN(Network):
    """The backbone: `Graph` -> `Features` with scalars [N, hidden] and vectors [N, 3, hidden]."""

    stacks = ("messages", "updates")

    def __init__(
        self,
        hidden: int = 128,
        layers: int = 3,
        radial: int = 20,
        cutoff: float = 5.0,
        envelope: str = "cosine",
        charge: bool = False,
    ) -> None:
        super().__init__()
        if min(hidden, layers, radial) < 1:
            raise ConfigError(
                f"PaiNN needs hidden, layers, radial ≥ 1, got {hidden}, {layers}, {radial}"
            )
        if envelope not in ENVELOPES:
            raise ConfigError(f"unknown envelope {envelope!r}; there are {', '.join(ENVELOPES)}")
        self.cutoff, self.n_features, self.n_vector_features = cutoff, hidden, hidden
        self.envelope = ENVELOPES[envelope]
        self.embedding = AtomEmbedding(hidden, charge)
        self.basis = BesselBasis(radial, cutoff)
        self.messages = nn.ModuleList(Message(hidden, radial) for _ in range(layers))
        self.updates = nn.ModuleList(Update(hidden) for _ in range(layers))

    def forward(self, graph: Graph) -> Features:
        """Scalars s_i [N, F] and vectors v_i [N, 3, F]."""
        s, v = self.embedding(graph), None  # [N, F], later [N, 3, F]
        basis = self.basis(graph.distance)  # [E, K]
        envelope = self.envelope(graph.distance, self.cutoff)[:, None]  # [E, 1]
        direction = graph.vector / graph.distance[:, None]  # [E, 3]
        for message, update in zip(self.messages, self.updates, strict=True):
            ds, dv = message(s, v, basis, envelope, direction, graph)
            s = s + ds
            if v is not None:
                v = v + dv
            else:
                v = dv if graph.extra_vector is None else dv + graph.extra_vector
            ds, dv = update(s, v)
            s, v = s + ds, v + dv
        return Features(s, vector=v)
