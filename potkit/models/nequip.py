"""NequIP (Batzner et al. 2022, Nature Communications 13, 2453, arXiv 2101.03164): E(3)-equivariant
convolutions on irreps.

Features of atom i are irreps of degree l and parity p. A layer (figure 1 of the paper; equations 4
and 5) is
    m_i = n^{-1/2} Σ_j R(d_ij) ⊙ (W₁ x_j) ⊗ Y(r̂_ij)
    x_i ← 2^{-1/2} (W₂ m_i + W₃ (x_i ⊗ a(z_i)))        a self-connection that knows the element
    x_i ← gate(x_i)
where R is an MLP of Bessel functions × envelope, with one weight per channel and path, and the gate
is SiLU on 0e, tanh on 0o, and multiplies each other channel by a sigmoid of a scalar made for it.
The last layer makes scalars (0e) and vectors (1o) only; with ``vectors=False`` scalars alone, which
saves its time where the read-out is −∂E/∂x.

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
from .equivariant import (
    MAX_DEGREE,
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
from .graph import Features, Graph, Network
from .layers import AtomEmbedding, BesselBasis, parts, polynomial_envelope

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
NEEDED = (
    "NequIP needs channels, max_degree, layers, radial, radial_hidden, attributes ≥ 1 "
    "and neighbors > 0"
)


class Layer(nn.Module):
    """One interaction; features are {irrep: [N, 2l+1, channels]}."""

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
        self.radial = RadialNet([radial, hidden, hidden, sum(self.widths.values())])  # R
        self.gated = [ir for ir in coupling.irreps_out if ir.l]
        after = dict.fromkeys(coupling.irreps_out, channels)
        after[SCALAR] = channels * (1 + len(self.gated))  # a gate for every other channel
        self.collect = SelfInteraction(self.widths, after)  # W₂
        self.own = SelfInteraction(dict.fromkeys(before, channels * attributes), after)  # W₃

    def forward(
        self,
        x: ByIrrep,
        attributes: Tensor,  # [N, A] a(z_i)
        kernels: ByIrrep,  # of the coupling, from Y(r̂_ij)
        edge: Tensor,  # [E, R] Bessel functions × envelope
        sender: Tensor,
        receiver: Tensor,
    ) -> ByIrrep:
        """The atoms' features after this layer: {irrep: [N, 2l+1, channels]}."""
        products = self.coupling(kernels, gather(self.linear(x), sender))  # {o: [E, 2l+1, paths·C]}
        weights = (self.radial(edge) * self.scale).split(list(self.widths.values()), 1)
        messages = {
            ir: products[ir] * w[:, None] for ir, w in zip(self.widths, weights, strict=True)
        }
        m = sum_edges(messages, receiver, x[SCALAR].shape[0])  # m_i

        collected = self.collect(m)
        with_element = {
            ir: (v[..., None] * attributes[:, None, None]).flatten(2) for ir, v in x.items()
        }
        own = self.own(with_element)
        mixed = {ir: (v + own[ir]) * 0.5**0.5 if ir in own else v for ir, v in collected.items()}
        return self.gate(mixed)

    def gate(self, x: ByIrrep) -> ByIrrep:
        """Gate ``x``, whose scalars hold the gates behind them: {irrep: [N, 2l+1, channels]}."""
        scalars, *gates = parts(x[SCALAR], 1 + len(self.gated))
        out = {SCALAR: SILU * nn.functional.silu(scalars)}
        for ir, value in x.items():
            if ir.l == 0 and ir != SCALAR:  # odd, as a function of a pseudoscalar must be
                out[ir] = TANH * value.tanh()
        for ir, gate in zip(self.gated, gates, strict=True):
            out[ir] = x[ir] * (SIGMOID * gate.sigmoid())
        return out


class NequIP(Network):
    """The backbone: `Graph` -> `Features`, scalars [N, channels] and vectors [N, 3, channels]."""

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
        if min(channels, max_degree, layers, radial, radial_hidden, attributes) < 1:
            raise ConfigError(NEEDED)
        if not neighbors > 0:
            raise ConfigError(NEEDED)
        if max_degree > MAX_DEGREE:
            raise ConfigError(f"NequIP has max_degree up to {MAX_DEGREE}, got {max_degree}")
        self.cutoff, self.degree = cutoff, max_degree
        self.n_features, self.n_vector_features = channels, channels if vectors else 0
        self.embedding = AtomEmbedding(channels, charge)
        self.attributes = nn.Embedding(MAX_Z + 1, attributes)
        self.basis = BesselBasis(radial, cutoff)
        kinds = irreps(max_degree, "both" if parity else "natural")
        self.couplings: list[Coupling] = []  # one per layer
        reached: tuple[Irrep, ...] = (SCALAR,)
        for i in range(layers):
            if i == layers - 1:
                kinds = (SCALAR, VECTOR) if vectors else (SCALAR,)
            coupling = Coupling(reached, max_degree, kinds)
            if i and self.couplings[-1].is_like(coupling):  # its kernels are then computed once
                coupling = self.couplings[-1]
            self.couplings.append(coupling)
            reached = coupling.irreps_out
        self.layers = nn.ModuleList(
            Layer(coupling, channels, attributes, radial, radial_hidden, neighbors)
            for coupling in self.couplings
        )

    def forward(self, graph: Graph) -> Features:
        """Scalars [N, channels] and vectors [N, 3, channels] (None with ``vectors=False``)."""
        sphere = harmonics(self.degree, graph.vector)  # [E, (max_degree+1)²]
        # Bessel functions have root mean square 1/(d √c): bring them to 1 at a bond, here of 1.1 Å
        envelope = 1.1 * math.sqrt(self.cutoff) * polynomial_envelope(graph.distance, self.cutoff)
        edge = self.basis(graph.distance) * envelope[:, None]  # [E, R]
        attributes = self.attributes(graph.z)  # [N, A]
        x = {SCALAR: self.embedding(graph)[:, None]}  # {irrep: [N, 2l+1, C]}
        kernels: dict[Coupling, ByIrrep] = {}
        for i, layer in enumerate(self.layers):
            coupling = layer.coupling
            if coupling not in kernels:
                kernels[coupling] = coupling.kernels(sphere)
            x = layer(x, attributes, kernels[coupling], edge, graph.sender, graph.receiver)
            if i == 0 and graph.extra_vector is not None:
                x[VECTOR] = x[VECTOR] + graph.extra_vector
        return Features(x[SCALAR][:, 0], x.get(VECTOR))
