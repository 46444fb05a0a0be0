"""Masked: remove some atoms (hydrogens) and predict in which direction they were.

Zhang, Li, Barati Farimani 2024 (arXiv 2402.15921), §2.2, eq. 4–5.

    L = 1 − mean over target atoms of cos(d̂, d)

By molecule (their water setting): in a share ρ of the molecules of each structure one removable
atom, drawn at random, is taken out. What is left of such a molecule is flagged (``mask`` = 1, a
learned embedding); each flagged atom's target is the minimum-image displacement d from that atom to
the removed one.

By atom (their rMD17 setting): every removable atom is taken out with probability ρ; the target of
each remaining atom is the displacement to the FARTHEST removed atom of its structure; nothing is
flagged. The removed set may be empty: then no target.

For both d points from the remaining atom to the removed one. What the authors' code does otherwise
can be repeated by name (``faults``, see `objectives.faults`): by molecule int(ρ n) molecules lose
an atom instead of the nearest whole number ("floor"); by atom the target has the opposite sign
("mask-direction"), and a structure that lost nothing adds a constant 1 per atom ("constant-one").
That code also adds a vector to all unflagged atoms in pretraining, and none in fine-tuning: a fault
of its networks ("mask-shift"), which are told of flags by ``mask`` and here of nothing else.

Beyond the paper, by atom: ``target="bonded"`` asks only the heavy atoms that lost something, each
for d = mean of the displacements to the atoms it lost; a removed atom belongs to the remaining
heavy atom that is nearest to it (the nearest remaining atom where there is no heavy one). ``flag``
marks atoms by the learned embedding: by molecule the rest of a molecule that lost an atom, by atom
the atoms that lost one, their parents in the sense above. And ``elements`` may be any, or any mix.
"""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..models.base import Prediction
from ..structures.batch import Batch, keep_atoms
from ..structures.elements import MAX_Z, SYMBOLS
from ..structures.geometry import minimum_image_of
from ..structures.store import Structures
from .base import LATER, Objective, Term
from .faults import check

# the way of masking in which the published code has a fault
BELONGS = {"floor": "molecule", "mask-direction": "atom", "constant-one": "atom"}


@dataclasses.dataclass(frozen=True)
class Masked(Objective):
    """Mask atoms of ``elements`` (symbols or atomic numbers, kept as numbers) with ``ratio`` ρ in
    (0, 1], ``by`` "molecule" or "atom" (see the module).

    ``target``: "farthest" or "bonded" (by atom only). ``flag``: mark atoms for the network; None:
    as in the paper, by molecule yes, by atom no. ``faults`` of the published code, off by default
    (see the module). Raises ConfigError for settings out of range. A structure without such atoms
    is left as it is and has no target.
    """

    name: ClassVar[str] = "masked"
    outputs: ClassVar[tuple[str, ...]] = ("vector",)

    ratio: float = 0.5
    elements: int | str | tuple[int | str, ...] = (1,)
    by: str = "molecule"
    target: str = dataclasses.field(default="farthest", metadata=LATER)
    flag: bool | None = dataclasses.field(default=None, metadata=LATER)
    faults: tuple[str, ...] = dataclasses.field(default=(), metadata=LATER, kw_only=True)

    def __post_init__(self) -> None:
        if not (isinstance(self.ratio, (int, float)) and 0 < self.ratio <= 1):
            raise ConfigError(f"masked: ratio must be in (0, 1], got {self.ratio!r}")
        object.__setattr__(self, "elements", atomic_numbers(self.elements))
        if self.by not in ("molecule", "atom"):
            raise ConfigError(f"masked: by must be 'molecule' or 'atom', got {self.by!r}")
        if self.target not in ("farthest", "bonded"):
            raise ConfigError(f"masked: target must be 'farthest' or 'bonded', got {self.target!r}")
        if self.target == "bonded" and self.by == "molecule":
            raise ConfigError(
                "masked: target='bonded' is for by='atom'; "
                "by='molecule' asks all atoms of a molecule for the one it lost"
            )
        if self.flag not in (None, True, False):
            raise ConfigError(f"masked: flag must be true, false or none, got {self.flag!r}")
        object.__setattr__(self, "faults", check(self.name, self.faults))
        for fault, by in BELONGS.items():
            if fault in self.faults and (self.by != by or self.target == "bonded"):
                raise ConfigError(
                    f"{self.name}: the fault {fault!r} is one of by={by!r}, target='farthest' only"
                )

    def check(self, structures: Structures) -> None:
        """Raise DataError if no structure of the set has an atom to remove; single structures
        without are left as they are.

        By molecule, of a set in which every structure is one molecule, also DataError where there
        are boxes, else a warning: whatever the ratio, each structure loses one atom.
        """
        name = structures.info.get("name", "structures")
        if not np.isin(structures.z, self.elements).any():
            removable = ", ".join(SYMBOLS[z] for z in self.elements)
            present = ", ".join(SYMBOLS[z] for z in structures.elements)
            raise DataError(
                f"{self.name}: nothing to remove in {name}: "
                f"it has no {removable} (elements there: {present})"
            )
        if self.by == "molecule" and not (structures.molecule > 0).any():
            self._check_single(structures, name)

    def _check_single(self, structures: Structures, name: str) -> None:
        """What there is to say where every structure is one molecule."""
        removable = " or ".join(SYMBOLS[z] for z in self.elements)
        if structures.pbc.any():
            raise DataError(
                f"{self.name}: the atoms of {name} have no molecule numbers, so each box would "
                f"lose one {removable} whatever the ratio is; number them (water in extxyz: "
                "potkit.read(path, waters=True), --waters yes) or mask by='atom'"
            )
        warnings.warn(
            f"{self.name}: every structure of {name} is one molecule, so each loses one "
            f"{removable} whatever the ratio is; by='atom' masks a share",
            stacklevel=5,  # whoever pretrains
        )

    # -- corruption -------------------------------------------------------------------------------
    def corrupt(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """A batch of the atoms that remain, N' ≤ N.

        Sets ``target`` d [N', 3] Å and ``has_target`` [N'], and ``mask`` [N'] where atoms are
        flagged.
        """
        device = batch.z.device
        eligible = torch.isin(batch.z, torch.tensor(self.elements, device=device))

        def random() -> Tensor:  # [N] in [0, 1)
            n = len(batch.z)
            return torch.rand(n, generator=generator, device=device, dtype=torch.float64)

        draw = random()
        choice = random()
        if self.by == "molecule":
            return self._by_molecule(batch, eligible, draw, choice)
        return self._by_atom(batch, eligible, draw)

    def _by_molecule(
        self,
        batch: Batch,
        eligible: Tensor,  # [N] bool
        draw: Tensor,  # [N] in [0, 1): which atom of a molecule
        choice: Tensor,  # [N] in [0, 1): which molecules, by the first entries
    ) -> Batch:
        n_structures, device = batch.num_graphs, draw.device
        most = int(batch.molecule.max()) + 1 if len(batch.z) else 1
        # [N] molecule of each atom, numbered through the batch
        _, group = torch.unique(batch.batch * most + batch.molecule, return_inverse=True)
        n_molecules = int(group.max()) + 1 if len(group) else 0
        size = torch.bincount(group, minlength=n_molecules)
        # the atom a molecule would lose: the eligible one with the highest draw; a lone atom cannot
        # lose itself
        score = torch.where(eligible & (size[group] > 1), draw, -1.0)
        best = score.new_full((n_molecules,), -1.0).scatter_reduce(0, group, score, "amax")
        able = best >= 0
        owner = group.new_zeros(n_molecules).scatter_(0, group, batch.batch)
        # rank the able molecules of each structure by a random number; the first round(ρ · n) of
        # them lose an atom (one number per molecule: the smallest of its atoms' would favour large
        # molecules)
        ticket = torch.where(able, choice[:n_molecules], 2.0)
        order = torch.argsort(owner.to(draw.dtype) * 4.0 + ticket)
        per_structure = torch.bincount(owner, minlength=n_structures)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(n_molecules, device=device)
        rank = rank - (per_structure.cumsum(0) - per_structure)[owner]
        n_able = owner.new_zeros(n_structures).index_add_(0, owner, able.long())
        share = self.ratio * n_able.double()
        # a structure with any candidate gives at least one
        quota = (share.floor() if "floor" in self.faults else share.round()).clamp(min=1).long()
        chosen = able & (rank < quota[owner])
        removed = chosen[group] & (score == best[group]) & (score >= 0)
        lost = batch.pos.new_zeros(n_molecules, 3)  # where the atom was that a molecule loses
        lost[group[removed]] = batch.pos[removed]
        new, rows = keep_atoms(batch, ~removed)
        kept_group = group[rows]
        flagged = chosen[kept_group]
        target = minimum_image_of(lost[kept_group] - new.pos, batch, new.batch)
        new.target = torch.where(flagged[:, None], target, 0.0)
        if self.flag is not False:
            new.mask = flagged.long()
        new.has_target = flagged
        return new

    def _by_atom(
        self,
        batch: Batch,
        eligible: Tensor,  # [N] bool
        draw: Tensor,  # [N] in [0, 1)
    ) -> Batch:
        n_lost = batch.batch.new_zeros(batch.num_graphs)  # [S]
        removed = eligible & (draw < self.ratio)
        n_lost = n_lost.index_add_(0, batch.batch, removed.long())
        # a structure that would lose all its atoms keeps them
        some_left = n_lost < batch.ptr[1:] - batch.ptr[:-1]
        removed = removed & some_left[batch.batch]
        n_lost = torch.where(some_left, n_lost, 0)
        lost_pos = batch.pos[removed]  # [L, 3] Å
        lost_owner = batch.batch[removed]
        new, _ = keep_atoms(batch, ~removed)
        if self.flag or self.target == "bonded":
            parent, way = nearest_heavy(new, lost_pos, lost_owner)
            n_children = parent.new_zeros(len(new.z)).index_add_(0, parent, torch.ones_like(parent))
            if self.flag:
                new.mask = (n_children > 0).long()
            if self.target == "bonded":
                total_way = torch.zeros_like(new.pos).index_add_(0, parent, way)
                new.target = total_way / n_children.clamp(min=1)[:, None]
                new.has_target = n_children > 0
                return new
        new.has_target = (n_lost > 0)[new.batch]
        way = farthest_lost(new, lost_pos, n_lost)
        if "mask-direction" in self.faults:
            way = -way
        new.target = torch.where(new.has_target[:, None], way, 0.0)
        if "constant-one" in self.faults:
            # a target without length: 1 − cos is 1 whatever the network says
            new.has_target = torch.ones_like(new.has_target)
        return new

    # -- score ------------------------------------------------------------------------------------
    def terms(self, prediction: Prediction, batch: Batch) -> list[Term]:
        """1 − cos between read-out and target, the mean over the atoms that have a target."""
        cosine = cosine_to_target(prediction.vector, batch.target)
        weight = batch.has_target.to(cosine.dtype)
        return [Term("masked_1-cos", ((1.0 - cosine) * weight).sum(), weight.sum())]


def atomic_numbers(elements: Any) -> tuple[int, ...]:
    """``elements``, one or several, as atomic numbers.

    Raises ConfigError for none, and for what is neither a symbol nor a number of the periodic
    table.
    """
    several = isinstance(elements, Iterable) and not isinstance(elements, str)
    numbers = tuple(_number(element) for element in (elements if several else [elements]))
    if not numbers or not all(1 <= z <= MAX_Z for z in numbers):
        raise ConfigError(f"masked: elements must be atomic numbers or symbols, got {elements!r}")
    return numbers


def _number(element: Any) -> int:
    """The atomic number that ``element`` says, 0 where it says none."""
    if isinstance(element, str):
        return SYMBOLS.index(element) if element in SYMBOLS else 0
    whole = isinstance(element, (int, np.integer)) and not isinstance(element, bool)
    return int(element) if whole else 0


def farthest_lost(batch: Batch, lost_pos: Tensor, n_lost: Tensor) -> Tensor:
    """From each atom of ``batch`` to the farthest removed atom of its structure, [N, 3] Å.

    ``lost_pos`` [L, 3] Å holds the removed atoms structure by structure, ``n_lost`` [S] their
    numbers. Shortest periodic images; without meaning where a structure lost nothing.
    """
    widest = int(n_lost.max()) if len(n_lost) else 0
    if widest == 0:
        return torch.zeros_like(batch.pos)
    # every atom against every removed atom of its structure, in a rectangular table [N, W]
    first = n_lost.cumsum(0) - n_lost
    slot = torch.arange(widest, device=n_lost.device)
    there = slot < n_lost[batch.batch][:, None]
    row = (first[batch.batch][:, None] + slot).clamp(max=len(lost_pos) - 1)
    way = images_of_table(lost_pos[row] - batch.pos[:, None], batch, batch.batch)  # [N, W, 3]
    distance = torch.where(there, way.square().sum(-1), -1.0)
    return one_of_each_row(way, distance.argmax(1))


def nearest_heavy(batch: Batch, points: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """For each of ``points`` [M, 3] of structures ``owner`` [M]: the nearest atom heavier than
    hydrogen (any atom if there is none) of that structure, and the way from it to the point, [M]
    rows of ``batch`` and [M, 3] Å, shortest periodic image.
    """
    if not len(points):
        return owner, points
    # every point against every atom of its structure, in a rectangular table [M, W]
    count = batch.ptr[1:] - batch.ptr[:-1]
    slot = torch.arange(int(count.max()), device=owner.device)
    there = slot < count[owner][:, None]
    row = (batch.ptr[owner][:, None] + slot).clamp(max=len(batch.z) - 1)
    way = images_of_table(points[:, None] - batch.pos[row], batch, owner)  # [M, W, 3]
    distance = torch.where(there, way.square().sum(-1), torch.inf)
    # a light atom counts only where no heavy one is left: its distance is moved behind all heavy
    # ones'
    penalty = torch.where(batch.z[row] == 1, 1e6, 0.0)
    nearest = (distance + penalty).argmin(1)
    return row.gather(1, nearest[:, None])[:, 0], one_of_each_row(way, nearest)


def images_of_table(vectors: Tensor, batch: Batch, owner: Tensor) -> Tensor:
    """Shortest periodic images of ``vectors`` [M, W, 3] Å, row m in the cell of ``owner`` [M]."""
    flat_owner = owner[:, None].expand(-1, vectors.shape[1]).reshape(-1)
    return minimum_image_of(vectors.reshape(-1, 3), batch, flat_owner).reshape(vectors.shape)


def one_of_each_row(table: Tensor, column: Tensor) -> Tensor:
    """``table[m, column[m]]`` of a table [M, W, 3], [M, 3]."""
    return table.gather(1, column[:, None, None].expand(-1, 1, 3))[:, 0]


def cosine_to_target(vector: Tensor, target: Tensor) -> Tensor:
    """Cosine between the rows of two [N, 3] arrays; 0 where either vanishes, with finite
    derivatives.
    """
    length = (vector.square().sum(1) + 1e-16).sqrt() * (target.square().sum(1) + 1e-16).sqrt()
    return (vector * target).sum(1) / length
