"""GNS: encode, process, decode (Sanchez-Gonzalez et al., ICML 2020, arXiv 2002.09405), as the
masked paper sets it.

Section 3.1 of the paper; ε, φ are MLPs with two hidden layers that end with a LayerNorm, f_c is a
smooth cutoff:
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

The preset "masked-paper" is the paper's: ReLU, no δ (``shared_decoder=False``), and two read-outs
of their own (``head="gns"``), MLPs 128-128-128-3 for the force and 128-128-128-1 for the atomic
energy. What differs from the masked paper, by our choice: f_c, with which the output is continuous
where a neighbour enters; an element has the same row in every charge state; positions are no
inputs. Its code has four faults, by these names (see `faults`): "edges-doubled",
"wrapped-positions" (in Å), "no-envelope" and "mask-shift"; ``faithful=True`` switches on all of
them, and then the network computes what the code does (a test compares). The cutoff of 3.4 Å is
the paper's for water (its code has 3.5); for rMD17 it states none, so there it is a guess.

The constructor's defaults and "small" are ours: SiLU, with which −∂E/∂x, should one ask for it, is
smooth; δ, one layer that both read-outs share. ``radial`` > 0 adds that many Bessel functions of
|r| and the direction r/|r| to the edge input (the paper has 0): a bond that is 0.05 Å too long
changes |r_ij| / r_c by 0.01 only, and a network without them stays many epochs at "no force" before
it can tell. The first layer of φ_e is linear in (e, v_i, v_j), so its products with v are taken per
atom, not per edge: the same numbers.

Parameters: masked-paper 1 652 996, small 193 028 (counted by a test).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..structures.neighbors import complete_cells
from . import faults as published_faults
from .graph import Features, Graph, Network
from .layers import AtomEmbedding, BesselBasis, mlp, polynomial_envelope, sum_over

PRESETS = {
    "masked-paper": dict(
        hidden=128,
        layers=10,
        cutoff=3.4,
        activation="relu",
        shared_decoder=False,
        head="gns",
        vector="direct",
        forces="vector",
    ),
    "small": dict(hidden=64, layers=4, radial=16, cutoff=5.0, vector="direct", forces="vector"),
}
ACTIVATIONS = {"silu": nn.SiLU, "relu": nn.ReLU}


class Step(nn.Module):
    """One message-passing step of the processor; ``doubled``: fault "edges-doubled"."""

    def __init__(self, hidden: int, activation: type[nn.Module], doubled: bool) -> None:
        super().__init__()
        # φ_e: three parts of its first layer, then the rest
        self.from_edge = nn.Linear(hidden, hidden)
        self.from_receiver = nn.Linear(hidden, hidden, bias=False)
        self.from_sender = nn.Linear(hidden, hidden, bias=False)
        self.message = nn.Sequential(activation(), *mlp([hidden] * 3, activation, norm=True))
        self.update = mlp([2 * hidden, hidden, hidden, hidden], activation, norm=True)  # φ_v
        self.doubled = doubled

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
        return v, e + (e if self.doubled else m)


def wrapped(graph: Graph) -> Tensor:
    """Positions [N, 3] Å, brought into the box along the axes that are periodic."""
    if graph.cell is None:
        return graph.pos
    with torch.no_grad():
        cell, _ = complete_cells(graph.cell, graph.pbc, graph.n_structures, graph.pos)
        place = torch.einsum("na,nab->nb", graph.pos, torch.linalg.inv(cell)[graph.batch])
        turns = torch.floor(place) * graph.pbc[graph.batch]
    # the cell is differentiated where a stress is asked for
    return graph.pos - torch.einsum("na,nab->nb", turns, graph.cell[graph.batch])


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
        activation: str = "silu",
        shared_decoder: bool = True,
        charge: bool = False,
        faults: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if hidden < 1 or layers < 1 or radial < 0:
            raise ConfigError(
                f"GNS needs hidden ≥ 1, layers ≥ 1, radial ≥ 0, got {hidden}, {layers}, {radial}"
            )
        if activation not in ACTIVATIONS:
            raise ConfigError(
                f"unknown activation {activation!r}; there are {', '.join(ACTIVATIONS)}"
            )
        self.faults = published_faults.check("gns", faults)
        self.cutoff, self.n_features = cutoff, hidden
        self.smooth = activation != "relu"
        node_inputs, edge_inputs = hidden, 4 + 3 + radial if radial else 4
        if "wrapped-positions" in self.faults:
            self.symmetries = frozenset({"permutation"})
            node_inputs += 3
        doubled = "edges-doubled" in self.faults
        between, widths = ACTIVATIONS[activation], [hidden, hidden, hidden]
        self.embedding = AtomEmbedding(hidden, charge, faults=self.faults)
        self.encode_node = mlp([node_inputs, *widths], between, norm=True)  # ε_v
        self.basis = BesselBasis(radial, cutoff) if radial else None
        self.encode_edge = mlp([edge_inputs, *widths], between, norm=True)  # ε_e
        self.steps = nn.ModuleList(Step(hidden, between, doubled) for _ in range(layers))
        self.decode = mlp([hidden, hidden], between, last=True) if shared_decoder else None  # δ

    def forward(self, graph: Graph) -> Features:
        """Decoded scalars h_i [N, F], not invariant under rotation."""
        v = self.encode_node(self.node_inputs(graph))  # [N, F]
        e = self.encode_edge(self.edge_inputs(graph))  # [E, F]
        envelope = None
        if "no-envelope" not in self.faults:
            envelope = polynomial_envelope(graph.distance, self.cutoff)[:, None]  # [E, 1]
        for step in self.steps:
            v, e = step(v, e, envelope, graph)
        return Features(v if self.decode is None else self.decode(v))

    def node_inputs(self, graph: Graph) -> Tensor:
        """What ε_v sees of each atom: [N, F]; with fault "wrapped-positions" [N, F + 3]."""
        inputs = self.embedding(graph)
        if "wrapped-positions" in self.faults:
            inputs = torch.cat([inputs, wrapped(graph)], -1)
        return inputs

    def edge_inputs(self, graph: Graph) -> Tensor:
        """What ε_e sees of each edge, lengths in units of r_c: [E, 4] or [E, 7 + radial]."""
        distance = graph.distance[:, None]
        inputs = torch.cat([graph.vector, distance], -1) / self.cutoff
        if self.basis is not None:
            direction = graph.vector / distance
            inputs = torch.cat([inputs, direction, self.basis(graph.distance)], -1)
        return inputs
