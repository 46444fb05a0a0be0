"""GNS: encode, process, decode (Sanchez-Gonzalez et al., ICML 2020, arXiv 2002.09405), as the
masked paper sets it.

Section 3.1 of the paper; ε, φ are MLPs with two hidden layers that end with a LayerNorm, δ is the
decoder up to its last hidden layer, f_c a smooth cutoff:
    encode    v_i  = ε_v(element, flag)
              e_ij = ε_e(r_ij / r_c, |r_ij| / r_c)
    process   m_ij = φ_e(e_ij, v_i, v_j)                        this and the next two lines M times
              v_i  ← v_i + φ_v(v_i, Σ_j f_c(d_ij) m_ij)
              e_ij ← e_ij + m_ij
    decode    h_i  = δ(v_i)      from which the read-outs make three numbers (force-centric) and an
                                 atomic energy

What it lacks: r_ij enters as three plain numbers, so nothing is invariant or equivariant under
rotation and reflection; the network has to learn that from data. Translation and permutation hold
exactly.

What differs from the authors' codes: f_c makes the output continuous where a neighbour enters; SiLU
replaces ReLU, so that −∂E/∂x, should one ask for it, is smooth; the energy MLP acts per atom, so
the energy is extensive. ``faithful=True`` undoes the first two and brings back the masked paper's
fault: positions as they are stored are a node input. ``radial`` > 0 adds that many Bessel functions
of |r| and the direction r/|r| to the edge input (ours; the paper has 0): a bond that is 0.05 Å too
long changes |r_ij| / r_c by 0.01 only, and a network without them stays many epochs at "no force"
before it can tell. The first layer of φ_e is linear in (e, v_i, v_j), so its products with v are
taken per atom, not per edge: the same numbers.

Parameters: masked-paper 1 636 484, small 193 028 (counted by a test).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from . import faults as published_faults
from .graph import Features, Graph, Network
from .layers import AtomEmbedding, BesselBasis, mlp, polynomial_envelope, sum_over

PRESETS = {
    "masked-paper": dict(hidden=128, layers=10, cutoff=3.4, vector="direct", forces="vector"),
    "small": dict(hidden=64, layers=4, radial=16, cutoff=5.0, vector="direct", forces="vector"),
}


class Step(nn.Module):
    """One message-passing step of the processor."""

    def __init__(self, hidden: int, activation: type[nn.Module]) -> None:
        super().__init__()
        # φ_e: three parts of its first layer, then the rest
        self.from_edge = nn.Linear(hidden, hidden)
        self.from_receiver = nn.Linear(hidden, hidden, bias=False)
        self.from_sender = nn.Linear(hidden, hidden, bias=False)
        self.message = nn.Sequential(activation(), *mlp([hidden] * 3, activation, norm=True))
        self.update = mlp([2 * hidden, hidden, hidden, hidden], activation, norm=True)  # φ_v

    def forward(
        self,
        v: Tensor,  # [N, F]
        e: Tensor,  # [E, F]
        envelope: Tensor | None,  # [E, 1]
        graph: Graph,
    ) -> tuple[Tensor, Tensor]:
        """The atoms' features v [N, F] and the edges' e [E, F] after this step."""
        joint = self.from_edge(e) + self.from_receiver(v)[graph.receiver]
        joint = joint + self.from_sender(v)[graph.sender]
        m = self.message(joint)  # [E, F]
        damped = m if envelope is None else m * envelope
        total = sum_over(damped, graph.receiver, v.shape[0])
        v = v + self.update(torch.cat([v, total], -1))
        return v, e + m


class GNS(Network):
    """The backbone: `Graph` -> `Features`: scalars [N, hidden], not invariant under rotation."""

    stacks = ("steps",)
    symmetries = frozenset({"translation", "permutation"})

    def __init__(
        self,
        hidden: int = 128,
        layers: int = 10,
        radial: int = 0,
        cutoff: float = 3.4,
        charge: bool = False,
        faults: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if hidden < 1 or layers < 1 or radial < 0:
            raise ConfigError(
                f"GNS needs hidden ≥ 1, layers ≥ 1, radial ≥ 0, got {hidden}, {layers}, {radial}"
            )
        self.faults = published_faults.check("gns", faults)
        self.faithful = faithful = bool(self.faults)
        self.cutoff, self.n_features = cutoff, hidden
        if faithful:
            self.symmetries = frozenset({"permutation"})
        activation = nn.ReLU if faithful else nn.SiLU
        node_inputs = hidden + 3 if faithful else hidden
        edge_inputs = 4 + 3 + radial if radial else 4
        widths = [hidden, hidden, hidden]
        self.embedding = AtomEmbedding(hidden, charge)
        self.encode_node = mlp([node_inputs, *widths], activation, norm=True)  # ε_v
        self.basis = BesselBasis(radial, cutoff) if radial else None
        self.encode_edge = mlp([edge_inputs, *widths], activation, norm=True)  # ε_e
        self.steps = nn.ModuleList(Step(hidden, activation) for _ in range(layers))
        self.decode = mlp([hidden, hidden], activation, last=True)  # δ

    def forward(self, graph: Graph) -> Features:
        """Decoded scalars h_i [N, F], not invariant under rotation."""
        v = self.encode_node(self.node_inputs(graph))  # [N, F]
        e = self.encode_edge(self.edge_inputs(graph))  # [E, F]
        envelope = None
        if not self.faithful:
            envelope = polynomial_envelope(graph.distance, self.cutoff)[:, None]  # [E, 1]
        for step in self.steps:
            v, e = step(v, e, envelope, graph)
        return Features(self.decode(v))

    def node_inputs(self, graph: Graph) -> Tensor:
        """What ε_v sees of each atom: [N, F], with positions / r_c [N, F + 3] if ``faithful``."""
        inputs = self.embedding(graph)
        if self.faithful:
            inputs = torch.cat([inputs, graph.pos / self.cutoff], -1)
        return inputs

    def edge_inputs(self, graph: Graph) -> Tensor:
        """What ε_e sees of each edge, lengths in units of r_c: [E, 4] or [E, 7 + radial]."""
        distance = graph.distance[:, None]
        inputs = torch.cat([graph.vector, distance], -1) / self.cutoff
        if self.basis is not None:
            direction = graph.vector / distance
            inputs = torch.cat([inputs, direction, self.basis(graph.distance)], -1)
        return inputs
