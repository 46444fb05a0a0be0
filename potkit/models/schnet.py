"""SchNet (Schütt, Sauceda, Kindermans, Tkatchenko, Müller, J. Chem. Phys. 148, 241722 (2018), arXiv
1712.06113).

Invariant features, mixed by continuous-filter convolutions (fig. 2 of the paper;
ssp(x) = log(½eˣ + ½), f_c the cutoff function):
    (1) e_k(d_ij) = exp(−γ (d_ij − μ_k)²)                     Gaussians, μ_k from 0 to the cutoff
    (2) W(d_ij)   = (A₂ ssp(A₁ e + a₁) + a₂) · f_c(d_ij)       filter-generating network
    (3) c_i       = Σ_j (B h_j) ⊙ W(d_ij)                      continuous-filter convolution
    (4) h_i       ← h_i + D₂ ssp(D₁ c_i + b₁) + b₂             interaction block, residual

The read-outs are `Potential`'s; in "denoise-paper" the energy of an atom is the paper's, two layers
F → F/2 → 1 with ssp between (read-out option ``head="schnet"``), in "small", which is ours, two
layers F → F → 1 with SiLU. f_c is the cosine cutoff, as in the implementation the denoise paper
used; with ``envelope="polynomial"`` ("small") the second derivatives are continuous too.

What differs from the denoise paper's code by our choice: no neighbour is cut off; elements have a
row each, not the code's 28 types (``formal_charges=True`` tells those apart). ``faults`` =
("neighbours-32",), the same as ``faithful=True``: an atom hears the first 33 atoms within the
cutoff in the order of their indices, itself counted if it is among them, so energies jump wherever
one more comes in; with copied weights energies and −∂E/∂x are then the published code's to 1e-7
(it rounds log 2 and γ to float32).

Parameters: denoise-paper 1 420 545, small 86 657 (counted by a test).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ..errors import ConfigError
from . import faults as published_faults
from .graph import Features, Graph, Network
from .layers import (
    ENVELOPES,
    AtomEmbedding,
    GaussianBasis,
    first_neighbors,
    glorot,
    keep_edges,
    shifted_softplus,
    sum_over,
)
from .replaceable import replaceable

PRESETS = {
    "denoise-paper": dict(
        hidden=256,
        filters=256,
        layers=5,
        radial=32,
        cutoff=5.0,
        envelope="cosine",
        head="schnet",
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
FAULTY_SEARCH = 33  # atoms that an atom hears, itself counted, in the published code


class Interaction(nn.Module):
    """Equations 2–4: the change of h."""

    def __init__(self, hidden: int, filters: int, radial: int) -> None:
        super().__init__()
        self.filter_in, self.filter_out = glorot(radial, filters), glorot(filters, filters)  # A
        self.project = glorot(hidden, filters, bias=False)  # B
        self.mix, self.out = glorot(filters, hidden), glorot(hidden, hidden)  # D

    def forward(
        self,
        h: Tensor,  # [N, F]
        basis: Tensor,  # [E, K]
        envelope: Tensor,  # [E, 1]
        graph: Graph,
    ) -> Tensor:
        """What the neighbours change in h: [N, F] -> [N, F]."""
        weight = self.filter_out(shifted_softplus(self.filter_in(basis))) * envelope  # (2)
        message = self.project(h).index_select(0, graph.sender) * weight  # [E, filters]
        convolved = sum_over(message, graph.receiver, h.shape[0])  # (3) [N, filters]
        return self.update(convolved)  # (4)

    def update(self, convolved: Tensor) -> Tensor:
        """D₂ ssp(D₁ c_i + b₁) + b₂: [N, filters] -> [N, F]."""
        return self.out(shifted_softplus(self.mix(convolved)))


class SchNet(Network):
    """The backbone: `Graph` -> `Features` with scalars [N, hidden]."""

    kernel_order = 2

    def __init__(
        self,
        hidden: int = 256,
        filters: int = 256,
        layers: int = 5,
        radial: int = 32,
        cutoff: float = 5.0,
        envelope: str = "cosine",
        charge: bool = False,
        formal_charges: bool = False,
        faults: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if min(hidden, filters, layers) < 1 or radial < 2:
            raise ConfigError(
                "SchNet needs hidden, filters, layers ≥ 1 and radial ≥ 2, "
                f"got {(hidden, filters, layers, radial)}"
            )
        if envelope not in ENVELOPES:
            raise ConfigError(f"unknown envelope {envelope!r}; there are {', '.join(ENVELOPES)}")
        self.cutoff, self.n_features = cutoff, hidden
        self.faults, self.formal_charges = published_faults.check("schnet", faults), formal_charges
        self.envelope = ENVELOPES[envelope]
        self.embedding = AtomEmbedding(hidden, charge, formal_charges, self.faults)
        self.basis = GaussianBasis(radial, cutoff)
        self.layers = nn.ModuleList(Interaction(hidden, filters, radial) for _ in range(layers))

    def forward(self, graph: Graph) -> Features:
        """Scalars h_i [N, F], invariant."""
        if "neighbours-32" in self.faults:
            graph = keep_edges(graph, first_neighbors(graph, FAULTY_SEARCH)[0])
        return Features(self.interactions(self.embedding(graph), graph))

    @replaceable("schnet.interactions")
    def interactions(self, h: Tensor, graph: Graph) -> Tensor:  # [N, F] -> [N, F]
        """All interaction blocks, one after the other."""
        basis = self.basis(graph.distance)  # (1) [E, K]
        envelope = self.envelope(graph.distance, self.cutoff)[:, None]  # [E, 1]
        for layer in self.layers:
            h = h + layer(h, basis, envelope, graph)
        return h
