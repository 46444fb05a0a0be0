"""SchNet (Schütt, Sauceda, Kindermans, Tkatchenko, Müller, J. Chem. Phys. 148, 241722 (2018), arXiv
1712.06113).

Invariant features, mixed by continuous-filter convolutions (fig. 2 of the paper; ssp(x) = log(½eˣ +
½), f_c the cutoff function):
    (1) e_k(d_ij) = exp(−γ (d_ij − μ_k)²)                                  Gaussians, μ_k from 0 to the cutoff
    (2) W(d_ij)   = f_c(d_ij) · (A₂ ssp(A₁ e + a₁) + a₂)                    filter-generating network
    (3) c_i       = Σ_j (B h_j) ⊙ W(d_ij)                                   continuous-filter convolution
    (4) h_i       ← h_i + D₂ ssp(D₁ c_i + b₁) + b₂                          interaction block, residual

f_c is the cosine cutoff, as in the implementation the denoise paper used; with
``envelope="polynomial"`` the second derivatives are continuous too. ``faithful=True`` keeps at most
32 neighbours per atom, silently, as the denoise paper's code did: energies then jump wherever a
33rd neighbour comes in. The read-outs are `Potential`'s.

Filters are made once per pair of atoms (models/pairs.py); with compiled kernels, once per node of a
table in d where there are many pairs (models/pairs_table.py), which changes energies and forces by
no more than float32 rounds.

Parameters: denoise-paper 1 453 569, small 86 657 (counted by a test).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from .. import kernels
from ..errors import ConfigError
from .base import Features, Graph
from .layers import (
    AtomEmbedding,
    GaussianBasis,
    cosine_envelope,
    first_neighbors,
    polynomial_envelope,
    sum_over,
)
from .pairs import Radial, convolve_by, pairs_of
from .pairs_table import Grid

PRESETS = {
    "denoise-paper": dict(
        hidden=256,
        filters=256,
        layers=5,
        radial=32,
        cutoff=5.0,
        envelope="cosine",
        vector="gradient",
    ),
    "small": dict(
        hidden=64,
        filters=64,
        layers=4,
        radial=32,
        cutoff=5.0,
        envelope="polynomial",
        vector="gradient",
    ),
}
ENVELOPES = {"cosine": cosine_envelope, "polynomial": polynomial_envelope}
FAITHFUL_NEIGHBORS = 32


def shifted_softplus(x: Tensor) -> Tensor:
    """log(½eˣ + ½): softplus that is zero at zero."""
    return nn.functional.softplus(x) - math.log(2.0)


def glorot(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with Glorot-uniform weights and zero bias, SchNet's initialisation."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


class Interaction(nn.Module):
    """Equations 2–4 of the module's docstring: the change of h."""

    def __init__(self, hidden: int, filters: int, radial: int) -> None:
        super().__init__()
        self.filter_in, self.filter_out = glorot(radial, filters), glorot(filters, filters)
        self.project = glorot(hidden, filters, bias=False)
        self.mix, self.out = glorot(filters, hidden), glorot(hidden, hidden)

    def forward(
        self,
        h: Tensor,  # [N, F]
        basis: Tensor,  # [E, K]
        envelope: Tensor,  # [E, 1]
        sender: Tensor,
        receiver: Tensor,
    ) -> Tensor:
        # (2) [E, filters]
        weight = self.filter_out(shifted_softplus(self.filter_in(basis))) * envelope
        # (3) [N, filters]
        convolved = sum_over(self.project(h)[sender] * weight, receiver, h.shape[0])
        return self.out(shifted_softplus(self.mix(convolved)))  # (4)

    def by_pairs(self, h: Tensor, convolved: Callable[..., Tensor]) -> Tensor:
        """The same; ``convolved`` makes (2) and (3) out of B h and the filter network's weights,
        once for both directions of a pair.
        """
        weights = (
            self.filter_in.weight,
            self.filter_in.bias,
            self.filter_out.weight,
            self.filter_out.bias,
        )
        return self.out(shifted_softplus(self.mix(convolved(self.project(h), *weights))))


class SchNet(nn.Module):
    """The backbone: `Graph` -> `Features` with scalars [N, hidden]."""

    n_vector_features = 0
    kernel_order = 2  # kernels serve training on −∂E/∂x too: see potkit.compiling
    gives_displacement = False

    def __init__(
        self,
        hidden: int = 256,
        filters: int = 256,
        layers: int = 5,
        radial: int = 32,
        cutoff: float = 5.0,
        envelope: str = "cosine",
        charge: bool = False,
        faithful: bool = False,
    ) -> None:
        super().__init__()
        if min(hidden, filters, layers) < 1 or radial < 2:
            raise ConfigError(
                f"SchNet needs hidden, filters, layers ≥ 1 and radial ≥ 2, got {(hidden, filters, layers, radial)}"
            )
        if envelope not in ENVELOPES:
            raise ConfigError(f"unknown envelope {envelope!r}; there are {', '.join(ENVELOPES)}")
        self.cutoff, self.n_features, self.faithful = cutoff, hidden, faithful
        self.envelope = ENVELOPES[envelope]
        self.embedding = AtomEmbedding(hidden, charge)
        self.basis = GaussianBasis(radial, cutoff)
        self.layers = nn.ModuleList(Interaction(hidden, filters, radial) for _ in range(layers))

    def forward(self, graph: Graph) -> Features:
        sender, receiver, distance = graph.sender, graph.receiver, graph.distance
        if self.faithful:
            kept = first_neighbors(receiver, FAITHFUL_NEIGHBORS, graph.z.shape[0])
            sender, receiver, distance = sender[kept], receiver[kept], distance[kept]
        h = self.embedding(graph)  # [N, F]
        pairs = (
            None
            if self.faithful or torch.compiler.is_compiling()
            else pairs_of(sender, receiver, graph.vector, distance)
        )
        if pairs is not None:
            envelope = functools.partial(self.envelope, cutoff=self.cutoff)
            if kernels.wanted(pairs.distance):
                convolved = Grid(
                    pairs, self.basis, envelope, self.cutoff / (len(self.basis.centers) - 1)
                ).convolve
            else:
                radial = Radial(
                    pairs.distance, self.basis, envelope, slopes=pairs.distance.requires_grad
                )
                convolved = functools.partial(convolve_by, radial, pairs)
            for layer in self.layers:
                h = h + layer.by_pairs(h, convolved)
            return Features(h)
        basis = self.basis(distance)  # (1) [E, K]
        envelope = self.envelope(distance, self.cutoff)[:, None]
        for layer in self.layers:
            h = h + layer(h, basis, envelope, sender, receiver)
        return Features(h)
