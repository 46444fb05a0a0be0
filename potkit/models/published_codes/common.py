"""What the two published codes have in common: atom types, neighbour lists cut short, and how a
`Potential` is made of their parts.

The networks of this package see a batch as their codes do, through a `CodeGraph`: types instead of
elements, edges in index order, the edges of the box. Apart from that they are backbones and
read-outs like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ...errors import ConfigError, DataError
from ...structures.batch import Batch
from ...structures.elements import SYMBOLS
from ..base import Features, Graph, Potential, Prediction
from ..layers import sum_over

# Rows of the type embedding in both codes: pairs of element and FORMAL CHARGE, so on SPICE the
# networks see charges.
ATOM_TYPES = (
    ("Br", -1),
    ("Br", 0),
    ("C", -1),
    ("C", 0),
    ("C", 1),
    ("Ca", 2),
    ("Cl", -1),
    ("Cl", 0),
    ("F", -1),
    ("F", 0),
    ("H", 0),
    ("I", -1),
    ("I", 0),
    ("K", 1),
    ("Li", 1),
    ("Mg", 2),
    ("N", -1),
    ("N", 0),
    ("N", 1),
    ("Na", 1),
    ("O", -1),
    ("O", 0),
    ("O", 1),
    ("P", 0),
    ("P", 1),
    ("S", -1),
    ("S", 0),
    ("S", 1),
)
MAX_FORMAL_CHARGE = 2


class CodeGraph(NamedTuple):
    """What a published network sees of a batch; names as in `Graph` where they mean the same."""

    z: Tensor  # [N] atomic numbers
    type: Tensor  # [N] row of ATOM_TYPES
    pos: Tensor  # [N, 3] Å
    batch: Tensor  # [N] structure of each atom
    n_structures: int
    sender: Tensor  # [E] j, rising for each receiver
    receiver: Tensor  # [E] i, rising
    shift: Tensor | None  # [E, 3] Å
    mask: Tensor | None  # [N] flags of the masked objective
    box: Tensor | None  # [S, 3] Å, edges, infinite where a structure is free; None if all are


# --- atom types


def type_table() -> Tensor:
    """Row of ATOM_TYPES by atomic number and formal charge + 2, −1 if there is none: [119, 5]."""
    table = torch.full((len(SYMBOLS), 2 * MAX_FORMAL_CHARGE + 1), -1)
    for row, (symbol, charge) in enumerate(ATOM_TYPES):
        table[SYMBOLS.index(symbol), charge + MAX_FORMAL_CHARGE] = row
    return table


def atom_types(batch: Batch, table: Tensor) -> Tensor:
    """The type of every atom, [N], from ``batch.z`` and ``batch.formal_charge`` [N] in e, if given.

    Without formal charges atoms are neutral; a single atom has the charge of its structure. Raises
    DataError for a charged structure of several atoms without formal charges, and for a pair of
    element and charge that the codes do not know.
    """
    if "formal_charge" in batch:
        charge = batch.formal_charge.round().long()
    else:
        total = batch.charge.round().long()
        alone = (batch.ptr[1:] - batch.ptr[:-1]) == 1
        unclear = torch.nonzero((total != 0) & ~alone).flatten()
        if len(unclear):
            s = int(unclear[0])
            raise DataError(
                f"structure {s} of the batch has charge {int(total[s]):+d}, and the published "
                "networks need to know which atom carries it: give batch.formal_charge, per atom"
            )
        charge = total[batch.batch]
    row = table[batch.z, charge.clamp(-MAX_FORMAL_CHARGE, MAX_FORMAL_CHARGE) + MAX_FORMAL_CHARGE]
    row = torch.where(charge.abs() > MAX_FORMAL_CHARGE, -1, row)
    unknown = torch.nonzero(row < 0).flatten()
    if len(unknown):
        i = int(unknown[0])
        atom = _written(SYMBOLS[int(batch.z[i])], int(charge[i]))
        known = ", ".join(_written(symbol, c) for symbol, c in ATOM_TYPES)
        raise DataError(
            f"atom {i} of the batch is {atom}, for which the published networks have no row; "
            f"they know {known}"
        )
    return row


def _written(symbol: str, charge: int) -> str:
    return f"{symbol} ({charge:+d})" if charge else symbol


def given_flags(mask: Tensor | None) -> Tensor | None:
    """The flags of the masked objective, [N] long; None, as in fine-tuning, where it set none.

    The masked paper's code tells the two apart: an unflagged atom of a pretraining batch is not an
    atom of a batch without flags.
    """
    return mask.long() if mask is not None and bool(mask.any()) else None


# --- edges


def box_edges(batch: Batch) -> Tensor | None:
    """Edges of the boxes, [S, 3] Å, infinite for free structures; None if all are free.

    Raises DataError for boxes that are not rectangular or not periodic along all three edges: the
    masked paper's code has neither.
    """
    if batch.cell is None or not bool(batch.pbc.any()):
        return None
    edges = torch.diagonal(batch.cell, dim1=1, dim2=2)
    oblique = (batch.cell - torch.diag_embed(edges)).abs().amax((1, 2)) > 1e-6 * edges.abs().amax(1)
    wrong = torch.nonzero(batch.pbc.any(1) & (oblique | ~batch.pbc.all(1))).flatten()
    if len(wrong):
        raise DataError(
            f"structure {int(wrong[0])} of the batch: the published code knows rectangular boxes "
            "that are periodic along all three edges, and no others"
        )
    return torch.where(batch.pbc, edges, torch.inf)


def minimum_image(difference: Tensor, box: Tensor | None) -> Tensor:
    """Differences of positions [E, 3] brought between −L/2 and L/2, L the boxes' edges [E, 3].

    The masked paper's code does this for every edge. In boxes narrower than twice the cutoff
    several images of an atom are neighbours, and all of them get the nearest image's difference.
    """
    if box is None:
        return difference
    length = torch.where(box.isfinite(), box, 1.0)
    wrapped = torch.remainder(difference + length / 2, length) - length / 2
    return torch.where(box.isfinite(), wrapped, difference)


def first_in_index_order(
    sender: Tensor, receiver: Tensor, size: int, limit: int
) -> tuple[Tensor, Tensor]:
    """Which neighbours stay when each receiver keeps its first ``limit`` atoms, itself counted.

    Published fault ("neighbours-32"): the neighbour search stops after so many hits, without a
    word. On a GPU these are the first in index order, and energies jump when atoms are renumbered
    or one more comes near. Edges must be sorted by receiver, then sender. Returns masks: [E] of the
    edges, [N] of the atoms that are among their own first ``limit``.
    """
    count = torch.bincount(receiver, minlength=size)  # [N]
    first = torch.cumsum(count, 0) - count
    place = torch.arange(len(receiver), device=receiver.device) - first[receiver]
    place = place + (receiver < sender)  # the atom itself stands before those of higher index
    lower = receiver[sender < receiver]
    before = torch.bincount(lower, minlength=size)  # [N] neighbours of lower index
    return place < limit, before < limit


def mean_over(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Mean of the rows of ``values`` [E, …] that share an ``index`` [E], 0 of none: [size, …]."""
    count = torch.bincount(index, minlength=size).clamp(min=1)
    return sum_over(values, index, size) / count.view(-1, *[1] * (values.ndim - 1))


# --- read-outs


class PooledEnergy(nn.Sequential):
    """Features are summed over the atoms of a structure, then go through one MLP: [N, F] -> [S].

    Published fault ("pooled"): the energy is not size-extensive; two molecules far apart have not
    the sum of their energies.
    """

    pooled = True

    def forward(self, features: Tensor, graph: Graph) -> Tensor:
        """Energies of structures: [N, F] -> [S]."""
        return super().forward(sum_over(features, graph.batch, graph.n_structures))[:, 0]


class AtomEnergy(nn.Sequential):
    """An MLP per atom, summed over atoms afterwards: [N, F] -> [N]."""

    pooled = False

    def forward(self, features: Tensor, graph: Graph) -> Tensor:
        """Energies of atoms: [N, F] -> [N]."""
        return super().forward(features)[:, 0]


class DirectForces(nn.Sequential):
    """Three numbers per atom from its features, [N, F] -> [N, 3]; no derivative of anything."""

    needs = "scalar"

    def forward(
        self, features: Features, graph: Graph, energy: Tensor | None, keep_graph: bool
    ) -> Tensor:
        """The vector of each atom, [N, 3], from its scalars; no energy is needed."""
        return super().forward(features.scalar)


class Published(Potential):
    """A network of the published codes: their backbone with their read-outs.

    Energies and vectors are in the network's own units (the codes train on normalised energies)
    until references and scale are set, as fine-tuning does. ``model(batch)`` gives ``outputs``
    where nothing else is asked for.
    """

    def __init__(
        self,
        backbone: nn.Module,
        energy_head: nn.Module,
        vector_readout: nn.Module | None = None,  # None: the one that ``vector`` names
        *,
        vector: str,
        forces: str = "gradient",
        outputs: Sequence[str] = ("energy", "vector"),
    ) -> None:
        super().__init__(backbone, vector=vector, forces=forces)
        self.energy_head = energy_head
        if vector_readout is not None:
            self.vector_readout = vector_readout
        self.outputs = tuple(outputs)
        self.register_buffer("type_table", type_table(), persistent=False)

    @property
    def has_stress(self) -> bool:
        """As `Potential.has_stress`; a code that knows rectangular boxes only has none."""
        return super().has_stress and not self.backbone.boxes

    @property
    def needs_formal_charges(self) -> bool:
        """Whether its code was made for data with ions, as the denoise paper's was (SPICE).

        All go by `ATOM_TYPES`, but in the masked paper's data, water and rMD17, no atom is charged.
        """
        return not self.backbone.boxes

    def graph(self, batch: Batch, pos: Tensor, strain: Tensor | None = None) -> CodeGraph:
        """The `CodeGraph` of ``batch`` at positions ``pos`` [N, 3] Å.

        Raises DataError as `atom_types` and `box_edges` do, ConfigError for the stress of a box
        that the code takes for rectangular: it cannot be sheared.
        """
        graph = super().graph(batch, pos, strain)
        box = box_edges(batch) if self.backbone.boxes else None
        if strain is not None and box is not None:
            raise ConfigError("the published code knows rectangular boxes only: it has no stress")
        order = torch.argsort(graph.receiver * len(graph.z) + graph.sender, stable=True)
        return CodeGraph(
            z=graph.z,
            type=atom_types(batch, self.type_table),
            pos=graph.pos,
            batch=graph.batch,
            n_structures=graph.n_structures,
            sender=graph.sender[order],
            receiver=graph.receiver[order],
            shift=None if graph.shift is None else graph.shift[order],
            mask=given_flags(graph.mask),
            box=box,
        )

    def forward(self, batch: Batch, outputs: Sequence[str] | None = None) -> Prediction:
        """As `Potential.forward`; without ``outputs`` what the published network says."""
        return super().forward(batch, self.outputs if outputs is None else outputs)
