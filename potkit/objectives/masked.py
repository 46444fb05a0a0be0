"""Masked: remove some atoms (hydrogens) and predict in which direction they were.

Zhang, Li, Barati Farimani 2024 (arXiv 2402.15921), §2.2, eq. 4–5.  L = 1 − mean over target atoms
of cos(d̂, d).
By molecule (their water setting): in a share ρ of the molecules of each structure one removable
atom, drawn at random, is taken out. What is left of such a molecule is flagged (``mask`` = 1, a
learned embedding); each flagged atom's target is the minimum-image displacement d from that atom to
the removed one.
By atom (their rMD17 setting): every removable atom is taken out with probability ρ; the target of
each remaining atom is the displacement to the FARTHEST removed atom of its structure; nothing is
flagged. The removed set may be empty: then no target.
For both d points from the remaining atom to the removed one (the authors' rMD17 code has the
opposite sign).
Beyond the paper, by atom: ``target="bonded"`` asks only the heavy atoms that lost something, each
for d = mean of the displacements to the atoms it lost; a removed atom belongs to the remaining
heavy atom that is nearest to it (the nearest remaining atom where there is no heavy one). ``flag``
marks atoms by the learned embedding: by molecule the rest of a molecule that lost an atom, by atom
the atoms that lost one, their parents in the sense above. And ``elements`` may be any, or any mix.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

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


@dataclasses.dataclass(frozen=True)
class Masked(Objective):
    """Mask atoms of ``elements`` (atomic numbers) with ``ratio`` ρ in (0, 1], ``by`` "molecule" or
    "atom" (see the module).

    ``target``: "farthest" or "bonded" (by atom only). ``flag``: mark atoms for the network; None:
    as in the paper, by molecule yes, by atom no. Raises ConfigError for settings out of range. A
    structure without such atoms is left as it is and has no target.
    """

    name: ClassVar[str] = "masked"
    outputs: ClassVar[tuple[str, ...]] = ("vector",)

    ratio: float = 0.5
    elements: tuple[int, ...] = (1,)
    by: str = "molecule"
    target: str = dataclasses.field(default="farthest", metadata=LATER)
    flag: bool | None = dataclasses.field(default=None, metadata=LATER)

    def __post_init__(self) -> None:
        if not (isinstance(self.ratio, (int, float)) and 0 < self.ratio <= 1):
            raise ConfigError(f"masked: ratio must be in (0, 1], got {self.ratio!r}")
        elements = [self.elements] if isinstance(self.elements, (int, str)) else list(self.elements)
        # symbols are welcome too
        numbers = tuple(SYMBOLS.index(e) if e in SYMBOLS else e for e in elements)
        if not numbers or not all(isinstance(e, int) and 1 <= e <= MAX_Z for e in numbers):
            raise ConfigError(
                f"masked: elements must be atomic numbers or symbols, got {self.elements!r}"
            )
        object.__setattr__(self, "elements", numbers)
        if self.by not in ("molecule", "atom"):
            raise ConfigError(f"masked: by must be 'molecule' or 'atom', got {self.by!r}")
        if self.target not in ("farthest", "bonded"):
            raise ConfigError(f"masked: target must be 'farthest' or 'bonded', got {self.target!r}")
        if self.target == "bonded" and self.by == "molecule":
            raise ConfigError(
                "masked: target='bonded' is for by='atom'; by='molecule' asks all atoms of a molecule for the one it lost"
            )
        if self.flag not in (None, True, False):
            raise ConfigError(f"masked: flag must be true, false or none, got {self.flag!r}")

    def check(self, structures: Structures) -> None:
        """Raise DataError if no structure of the set has an atom to remove; single structures
        without are left as they are.
        """
        if not np.isin(structures.z, self.elements).any():
            wanted, present = (
                ", ".join(SYMBOLS[e] for e in some) for some in (self.elements, structures.elements)
            )
            name = structures.info.get("name", "structures")
            raise DataError(
                f"{self.name}: nothing to remove in {name}: it has no {wanted} (elements there: {present})"
            )

    # -- corruption -------------------------------------------------------------------------------
    def corrupt(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        eligible = torch.isin(batch.z, torch.tensor(self.elements, device=batch.z.device))
        draw = torch.rand(
            len(batch.z), generator=generator, device=batch.z.device, dtype=torch.float64
        )
        choice = torch.rand(
            len(batch.z), generator=generator, device=batch.z.device, dtype=torch.float64
        )
        return (self._by_molecule if self.by == "molecule" else self._by_atom)(
            batch, eligible, draw, choice
        )

    def _by_molecule(self, batch: Batch, eligible: Tensor, draw: Tensor, choice: Tensor) -> Batch:
        n_structures = batch.ptr.shape[0] - 1
        key = batch.batch * (int(batch.molecule.max()) + 1 if len(batch.z) else 1) + batch.molecule
        # [N] molecule of each atom, numbered through the batch
        _, group = torch.unique(key, return_inverse=True)
        n_molecules = int(group.max()) + 1 if len(group) else 0
        size = torch.bincount(group, minlength=n_molecules)
        # the atom a molecule would lose: the eligible one with the highest draw; a lone atom cannot
        # lose itself
        score = torch.where(eligible & (size[group] > 1), draw, -1.0)
        best = torch.full(
            (n_molecules,), -1.0, dtype=draw.dtype, device=draw.device
        ).scatter_reduce(0, group, score, "amax")
        able = best >= 0
        owner = torch.zeros(n_molecules, dtype=torch.long, device=draw.device).scatter_(
            0, group, batch.batch
        )
        # rank the able molecules of each structure by a random number; the first round(ρ · n) of
        # them lose an atom
        # (one number per molecule: the smallest of its atoms' would favour large molecules)
        ticket = torch.where(able, choice[:n_molecules], 2.0)
        order = torch.argsort(owner.to(draw.dtype) * 4.0 + ticket)
        per = torch.bincount(owner, minlength=n_structures)
        rank = torch.empty_like(order)
        rank[order] = torch.arange(n_molecules, device=order.device)
        rank = rank - (per.cumsum(0) - per)[owner]
        n_able = torch.zeros(n_structures, dtype=torch.long, device=order.device).index_add_(
            0, owner, able.long()
        )
        # a structure with any candidate gives at least one
        quota = (self.ratio * n_able.double()).round().clamp(min=1).long()
        chosen = able & (rank < quota[owner])
        removed = chosen[group] & (score == best[group]) & (score >= 0)
        lost = torch.zeros(n_molecules, 3, dtype=batch.pos.dtype, device=draw.device)
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

    def _by_atom(self, batch: Batch, eligible: Tensor, draw: Tensor, choice: Tensor) -> Batch:
        n_structures = batch.ptr.shape[0] - 1
        removed = eligible & (draw < self.ratio)
        total = batch.ptr[1:] - batch.ptr[:-1]
        gone = torch.zeros(n_structures, dtype=torch.long, device=draw.device).index_add_(
            0, batch.batch, removed.long()
        )
        # a structure that would lose all its atoms keeps them
        removed = removed & (gone < total)[batch.batch]
        gone = torch.where(gone < total, gone, 0)
        lost_pos, lost_ptr = batch.pos[removed], torch.cat([gone.new_zeros(1), gone.cumsum(0)])
        lost_owner = batch.batch[removed]
        new, _ = keep_atoms(batch, ~removed)
        if self.flag or self.target == "bonded":
            parent, way = nearest_heavy(new, lost_pos, lost_owner)
            lost = torch.zeros(len(new.z), dtype=torch.long, device=parent.device).index_add_(
                0, parent, torch.ones_like(parent)
            )
            if self.flag:
                new.mask = (lost > 0).long()
            if self.target == "bonded":
                total_way = torch.zeros_like(new.pos).index_add_(0, parent, way)
                new.target, new.has_target = total_way / lost.clamp(min=1)[:, None], lost > 0
                return new
        # every remaining atom against every removed atom of its structure, in a rectangular table
        widest = int(gone.max()) if n_structures else 0
        new.has_target = (gone > 0)[new.batch]
        if widest == 0:
            new.target = torch.zeros_like(new.pos)
            return new
        slot = torch.arange(widest, device=draw.device)
        there = slot < gone[new.batch][:, None]  # [N, W]
        index = (lost_ptr[new.batch][:, None] + slot).clamp(max=len(lost_pos) - 1)
        vector = lost_pos[index] - new.pos[:, None]  # [N, W, 3]
        flat_owner = new.batch[:, None].expand(-1, widest).reshape(-1)
        vector = minimum_image_of(vector.reshape(-1, 3), batch, flat_owner).reshape(vector.shape)
        distance = torch.where(there, vector.square().sum(-1), -1.0)
        farthest = vector.gather(1, distance.argmax(1)[:, None, None].expand(-1, 1, 3))[:, 0]
        new.target = torch.where(new.has_target[:, None], farthest, 0.0)
        return new

    # -- score ------------------------------------------------------------------------------------
    def terms(self, prediction: Prediction, batch: Batch) -> list[Term]:
        cosine = cosine_to_target(prediction.vector, batch.target)
        weight = batch.has_target.to(cosine.dtype)
        return [Term("masked_1-cos", ((1.0 - cosine) * weight).sum(), weight.sum())]


def nearest_heavy(batch: Batch, points: Tensor, owner: Tensor) -> tuple[Tensor, Tensor]:
    """For each of ``points`` [M, 3] of structures ``owner`` [M]: the nearest atom heavier than
    hydrogen (any atom if there is none) of that structure, and the way from it to the point, [M]
    rows of ``batch`` and [M, 3] Å, shortest periodic image.
    """
    count = batch.ptr[1:] - batch.ptr[:-1]
    widest = int(count.max()) if len(points) else 0
    # [M, W]
    row = (batch.ptr[owner][:, None] + torch.arange(widest, device=owner.device)).clamp(
        max=max(len(batch.z) - 1, 0)
    )
    there = torch.arange(widest, device=owner.device) < count[owner][:, None]
    way = points[:, None] - batch.pos[row]
    way = minimum_image_of(
        way.reshape(-1, 3), batch, owner[:, None].expand(-1, widest).reshape(-1)
    ).reshape(way.shape)
    distance = torch.where(there, way.square().sum(-1), torch.inf)
    # a light atom counts only where no heavy one is left: its distance is moved behind all heavy
    # ones'
    penalty = torch.where(batch.z[row] == 1, 1e6, 0.0)
    best = (distance + penalty).argmin(1) if widest else owner
    pick = best[:, None]
    return row.gather(1, pick)[:, 0], way.gather(1, pick[:, :, None].expand(-1, -1, 3))[:, 0]


def cosine_to_target(vector: Tensor, target: Tensor) -> Tensor:
    """Cosine between the rows of two [N, 3] arrays; 0 where either vanishes, with finite
    derivatives.
    """
    length = (vector.square().sum(1) + 1e-16).sqrt() * (target.square().sum(1) + 1e-16).sqrt()
    return (vector * target).sum(1) / length
