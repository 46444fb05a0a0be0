"""GNS: encode, process, decode (Sanchez-Gonzalez et al., ICML 2020, arXiv 2002.09405), as the
masked paper sets it.

    encode    v_i = ε_v(element, flag)                    e_ij = ε_e(r_ij / r_c, |r_ij| / r_c)         (section 3.1, Encoder)
    process   e_ij ← e_ij + φ_e(e_ij, v_i, v_j)           v_i ← v_i + φ_v(v_i, Σ_j f_c(d_ij) φ_e)      (Processor, M times)
    decode    h_i = δ(v_i), from which the read-outs make three numbers (force-centric) and an atomic energy    (Decoder)
ε, φ are MLPs with two hidden layers that end with a LayerNorm; δ is the decoder up to its last
hidden layer.

What it lacks: r_ij enters as three plain numbers, so nothing is invariant or equivariant under
rotation and reflection; the network has to learn that from data. Translation and permutation hold
exactly.
What differs from the authors' codes: f_c, a smooth cutoff on the messages, makes the output
continuous where a neighbour enters;
SiLU replaces ReLU, so that −∂E/∂x, should one ask for it, is smooth; the energy MLP acts per atom,
so the energy is extensive.
``faithful=True`` undoes the first two and brings back the masked paper's fault: positions as they
are stored are a node input.
``radial`` > 0 adds that many Bessel functions of |r| and the direction r/|r| to the edge input
(ours; the paper has 0): a bond that is 0.05 Å too long changes |r_ij| / r_c by 0.01 only, and a
network without them stays many epochs at "no force" before it can tell.
The first layer of φ_e is linear in (e, v_i, v_j), so its products with v are taken per atom, not
per edge: the same numbers.

Parameters: masked-paper 1 636 484, small 193 028 (counted by a test).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .base import Features, Graph
from .layers import AtomEmbedding, BesselBasis, mlp, polynomial_envelope, sum_over

PRESETS = {
    "masked-paper": dict(hidden=128, layers=10, cutoff=3.4, vector="direct", forces="vector"),
    "small": dict(hidden=64, layers=4, radial=16, cutoff=5.0, vector="direct", forces="vector"),
}


class Step(nn.Module):
    """One message-passing step of the processor; see the module's docstring."""

    def __init__(self, hidden: int, activation: type[nn.Module]) -> None:
        super().__init__()
        self.from_edge = nn.Linear(hidden, hidden)
        self.from_receiver = nn.Linear(hidden, hidden, bias=False)
        self.from_sender = nn.Linear(hidden, hidden, bias=False)
        self.message = nn.Sequential(activation(), *mlp([hidden] * 3, activation, norm=True))
        self.update = mlp([2 * hidden, hidden, hidden, hidden], activation, norm=True)

    def forward(
        self, v: Tensor, e: Tensor, envelope: Tensor | None, sender: Tensor, receiver: Tensor
    ) -> tuple[Tensor, Tensor]:  # v [N, F], e [E, F], envelope [E, 1]
        new = self.message(
            self.from_edge(e) + self.from_receiver(v)[receiver] + self.from_sender(v)[sender]
        )
        damped = new if envelope is None else new * envelope
        v = v + self.update(torch.cat([v, sum_over(damped, receiver, v.shape[0])], -1))
        return v, e + new


class GNS(nn.Module):
    """The backbone: `Graph` -> `Features` with scalars [N, hidden], which are not invariant
    under rotation.
    """

    n_vector_features = 0
    gives_displacement = False
    stacks = ("steps",)  # where the layers are
    symmetries = frozenset({"translation", "permutation"})

    def __init__(
        self,
        hidden: int = 128,
        layers: int = 10,
        radial: int = 0,
        cutoff: float = 3.4,
        charge: bool = False,
        faithful: bool = False,
    ) -> None:
        super().__init__()
        if hidden < 1 or layers < 1 or radial < 0:
            raise ConfigError(
                f"GNS needs hidden ≥ 1, layers ≥ 1, radial ≥ 0, got {hidden}, {layers}, {radial}"
            )
        self.cutoff, self.n_features, self.faithful = cutoff, hidden, faithful
        activation = nn.ReLU if faithful else nn.SiLU
        self.embedding = AtomEmbedding(hidden, charge)
        self.encode_node = mlp(
            [hidden + 3 * faithful, hidden, hidden, hidden], activation, norm=True
        )
        self.basis = BesselBasis(radial, cutoff) if radial else None
        self.encode_edge = mlp(
            [4 + (3 + radial) * (radial > 0), hidden, hidden, hidden], activation, norm=True
        )
        self.steps = nn.ModuleList(Step(hidden, activation) for _ in range(layers))
        self.decode = mlp([hidden, hidden], activation, last=True)
        if faithful:
            self.symmetries = frozenset({"permutation"})

    def forward(self, graph: Graph) -> Features:
        v = self.embedding(graph)
        if self.faithful:
            v = torch.cat([v, graph.pos / self.cutoff], -1)
        v = self.encode_node(v)  # [N, F]
        edge = torch.cat([graph.vector, graph.distance[:, None]], -1) / self.cutoff  # [E, 4]
        if self.basis is not None:
            edge = torch.cat(
                [edge, graph.vector / graph.distance[:, None], self.basis(graph.distance)], -1
            )
        e = self.encode_edge(edge)  # [E, F]
        envelope = (
            None if self.faithful else polynomial_envelope(graph.distance, self.cutoff)[:, None]
        )
        for step in self.steps:
            v, e = step(v, e, envelope, graph.sender, graph.receiver)
        return Features(self.decode(v))
