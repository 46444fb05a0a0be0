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
a derivative where a vector vanishes, as on isolated atoms.
Neither paper uses PaiNN; ``paper`` is the size of its own paper. The vector read-out is "gated" or,
through −∂E/∂x, "gradient".

Parameters: paper 686 467, small 182 467 (counted by a test).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .base import Features, Graph
from .layers import AtomEmbedding, BesselBasis, cosine_envelope, mlp, polynomial_envelope, sum_over

PRESETS = {
    "paper": dict(hidden=128, layers=3, radial=20, cutoff=5.0, envelope="cosine", vector="gated"),
    "small": dict(
        hidden=64, layers=3, radial=20, cutoff=5.0, envelope="polynomial", vector="gated"
    ),
}
ENVELOPES = {"cosine": cosine_envelope, "polynomial": polynomial_envelope}


class Message(nn.Module):
    """Equations 7 and 8; φ acts on atoms before the gathering to edges."""

    def __init__(self, hidden: int, radial: int) -> None:
        super().__init__()
        self.phi = mlp([hidden, hidden, 3 * hidden])
        self.filter = nn.Linear(radial, 3 * hidden)

    def forward(
        self,
        s: Tensor,  # [N, F]
        v: Tensor | None,  # [N, 3, F], None before the first layer
        basis: Tensor,  # [E, K]
        envelope: Tensor,  # [E, 1]
        direction: Tensor,  # [E, 3]
        sender: Tensor,
        receiver: Tensor,
    ) -> tuple[Tensor, Tensor]:
        weight = self.filter(basis) * envelope
        ds, along, keep = (self.phi(s)[sender] * weight).chunk(3, dim=-1)  # each [E, F]
        dv = direction[:, :, None] * along[:, None]
        if v is not None:
            dv = dv + v[sender] * keep[:, None]
        return sum_over(ds, receiver, s.shape[0]), sum_over(dv, receiver, s.shape[0])


class Update(nn.Module):
    """Equations 9 and 10."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.mix = nn.Linear(hidden, 2 * hidden, bias=False)  # U and V
        self.net = mlp([2 * hidden, hidden, 3 * hidden])

    def forward(self, s: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        u, w = self.mix(v).chunk(2, dim=-1)  # each [N, 3, F]
        norm = (w.square().sum(1) + 1e-6).sqrt()
        a_ss, a_sv, a_vv = self.net(torch.cat([s, norm], -1)).chunk(3, dim=-1)
        return a_ss + a_sv * (u * w).sum(1), a_vv[:, None] * u


class PaiNN(nn.Module):
    """The backbone: `Graph` -> `Features` with scalars [N, hidden] and vectors [N, 3, hidden]."""

    gives_displacement = False
    stacks = ("messages", "updates")  # where the layers are

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
        s, v = self.embedding(graph), None
        basis = self.basis(graph.distance)
        envelope = self.envelope(graph.distance, self.cutoff)[:, None]
        direction = graph.vector / graph.distance[:, None]
        for message, update in zip(self.messages, self.updates):
            ds, dv = message(s, v, basis, envelope, direction, graph.sender, graph.receiver)
            s, v = (
                s + ds,
                dv + (0 if graph.extra_vector is None else graph.extra_vector)
                if v is None
                else v + dv,
            )
            ds, dv = update(s, v)
            s, v = s + ds, v + dv
        return Features(s, vector=v)
