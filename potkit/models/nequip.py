"""NequIP (Batzner et al. 2022, Nature Communications 13, 2453, arXiv 2101.03164): E(3)-equivariant
convolutions on irreps.

Features of atom i are irreps of degree l and parity p. A layer (figure 1 of the paper; equations 4
and 5) is
    m_i = n^{-1/2} Σ_j R(d_ij) ⊙ (W₁ x_j) ⊗ Y(r̂_ij)          R: an MLP of Bessel functions × envelope, one weight per channel and path
    x_i ← gate( 2^{-1/2} (W₂ m_i + W₃ (x_i ⊗ a(z_i))) )        self-connection that knows the element
where gate is SiLU on 0e, tanh on 0o, and multiplies each other channel by a sigmoid of a scalar
made for it. The last layer makes scalars (0e) and vectors (1o) only; with ``vectors=False`` scalars
alone, which saves its time where the read-out is −∂E/∂x.

What differs from the authors' code: a(z) is a learned vector of ``attributes`` numbers per element
instead of a one-hot code over a fixed list of species, so that the whole periodic table costs no
more than ``attributes`` species; the energy head is the MLP that all networks here share instead of
a linear map; n is a fixed typical number of neighbours, not an average over the training set.
``parity=False`` keeps only the irreps that spherical harmonics have (0e, 1o, 2e …), as the option
of that name does there; both settings are equivariant under reflections.

Parameters: paper 2 048 315, small 72 411 (counted by a test).
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from ..errors import ConfigError
from ..structures.elements import MAX_Z
from .base import Features, Graph
from .equivariant import (
    ByIrrep,
    Coupling,
    Irrep,
    RadialNet,
    SelfInteraction,
    gather,
    harmonics,
    irreps,
    sum_edges,
)
from .layers import AtomEmbedding, BesselBasis, polynomial_envelope

PRESETS = {
    "paper": dict(
        channels=64, max_degree=2, parity=True, layers=5, radial=8, cutoff=4.0, vector="gated"
    ),
    "small": dict(
        channels=16, max_degree=2, parity=False, layers=3, radial=8, cutoff=5.0, vector="gated"
    ),
}
SCALAR, VECTOR = Irrep(0, 1), Irrep(1, -1)
# 1 / √⟨f(x)²⟩ for normal x: activations keep variance 1, as e3nn's do
SILU, TANH, SIGMOID = 1.679, 1.593, 1.847


class Layer(nn.Module):
    """One interaction; see the module's docstring."""

    def __init__(
        self,
        coupling: Coupling,
        channels: int,
        attributes: int,
        radial: int,
        hidden: int,
        neighbors: float,
    ) -> None:
        super().__init__()
        self.coupling, self.scale = coupling, neighbors**-0.5
        before = dict.fromkeys(coupling.irreps_in, channels)
        self.linear = SelfInteraction(before, before)  # W₁
        self.widths = {ir: n * channels for ir, n in coupling.paths.items()}
        self.radial = RadialNet([radial, hidden, hidden, sum(self.widths.values())])
        self.gated = [ir for ir in coupling.irreps_out if ir.l]
        wanted = {
            ir: channels * (1 + len(self.gated) if ir == SCALAR else 1)
            for ir in coupling.irreps_out
        }
        self.collect = SelfInteraction(self.widths, wanted)  # W₂
        self.own = SelfInteraction(dict.fromkeys(before, channels * attributes), wanted)  # W₃

    def forward(
        self,
        x: ByIrrep,
        attributes: Tensor,
        kernels: ByIrrep,
        edge: Tensor,
        sender: Tensor,
        receiver: Tensor,
    ) -> ByIrrep:
        n = x[SCALAR].shape[0]
        products = self.coupling(kernels, gather(self.linear(x), sender))  # {o: [E, 2l+1, paths·C]}
        weights = (self.radial(edge) * self.scale).split(list(self.widths.values()), 1)
        messages = {ir: products[ir] * w[:, None] for ir, w in zip(self.widths, weights)}
        new = self.collect(sum_edges(messages, receiver, n))
        own = self.own(
            {ir: (v[..., None] * attributes[:, None, None]).flatten(2) for ir, v in x.items()}
        )
        return self.gate(
            {ir: (v + own[ir]) * 0.5**0.5 if ir in own else v for ir, v in new.items()}
        )

    def gate(self, x: ByIrrep) -> ByIrrep:
        scalars, *gates = x[SCALAR].chunk(1 + len(self.gated), -1)
        out = {SCALAR: SILU * nn.functional.silu(scalars)}
        # odd, as a function of a pseudoscalar must be
        out |= {ir: TANH * v.tanh() for ir, v in x.items() if ir.l == 0 and ir != SCALAR}
        return out | {ir: x[ir] * (SIGMOID * g.sigmoid()) for ir, g in zip(self.gated, gates)}


class NequIP(nn.Module):
    """The backbone: `Graph` -> `Features` with scalars [N, channels] and vectors [N, 3,
    channels].
    """

    gives_displacement = False

    def __init__(
        self,
        channels: int = 64,
        max_degree: int = 2,
        parity: bool = True,
        layers: int = 5,
        radial: int = 8,
        radial_hidden: int = 64,
        attributes: int = 8,
        neighbors: float = 12.0,
        cutoff: float = 4.0,
        charge: bool = False,
        vectors: bool = True,
    ) -> None:
        super().__init__()
        if (
            min(channels, max_degree, radial, radial_hidden, attributes) < 1
            or layers < 1
            or not neighbors > 0
        ):
            raise ConfigError(
                "NequIP needs channels, max_degree, layers, radial, radial_hidden, attributes ≥ 1 and neighbors > 0"
            )
        self.cutoff, self.degree = cutoff, max_degree
        self.n_features, self.n_vector_features = channels, channels if vectors else 0
        self.embedding = AtomEmbedding(channels, charge)
        self.attributes = nn.Embedding(MAX_Z + 1, attributes)
        self.basis = BesselBasis(radial, cutoff)
        kinds = irreps(max_degree, "both" if parity else "natural")
        # one per layer; equal ones are one object, whose kernels are computed once
        self.couplings: list[Coupling] = []
        for i in range(layers):
            reached = self.couplings[-1].irreps_out if i else (SCALAR,)
            wanted = kinds if i < layers - 1 else (SCALAR, VECTOR) if vectors else (SCALAR,)
            last = self.couplings[-1] if i else None
            new = Coupling(reached, max_degree, wanted)
            same = (
                last is not None
                and last.irreps_in == new.irreps_in
                and last.irreps_out == new.irreps_out
            )
            self.couplings.append(last if same else new)
        self.layers = nn.ModuleList(
            Layer(coupling, channels, attributes, radial, radial_hidden, neighbors)
            for coupling in self.couplings
        )

    def forward(self, graph: Graph) -> Features:
        sphere = harmonics(self.degree, graph.vector)  # [E, (max_degree+1)²]
        # Bessel functions have root mean square 1/(d √c): bring them to 1 at a bond, here of 1.1 Å
        envelope = 1.1 * math.sqrt(self.cutoff) * polynomial_envelope(graph.distance, self.cutoff)
        edge = self.basis(graph.distance) * envelope[:, None]  # [E, R]
        attributes = self.attributes(graph.z)  # [N, A]
        x, kernels = {SCALAR: self.embedding(graph)[:, None]}, {}
        for i, layer in enumerate(self.layers):
            if layer.coupling not in kernels:
                kernels[layer.coupling] = layer.coupling.kernels(sphere)
            x = layer(x, attributes, kernels[layer.coupling], edge, graph.sender, graph.receiver)
            if i == 0 and graph.extra_vector is not None:
                x[VECTOR] = x[VECTOR] + graph.extra_vector
        return Features(x[SCALAR][:, 0], x.get(VECTOR))
