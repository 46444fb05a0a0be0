"""The calculator of `potkit.calculator`: a class of its own module, so that it can be pickled and
sent to other processes. Importing this imports ASE.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from ..errors import DataError
from ..kernels.compiling import ForPredictions
from ..models import Potential
from ..structures.batch import Batch
from ..structures.geometry import edge_vectors, volumes
from ..structures.neighbors import attach
from ..structures.store import Structures

SPREAD = "_std"  # what follows the name of a quantity whose spread over members it is
# Å; the neighbours within cutoff + SKIN serve until an atom has moved by half of it (Verlet, Phys.
# Rev. 159, 98 (1967))
SKIN = 0.5


class Neighborhood:
    """The batch of some atoms with all edges within cutoff + `SKIN`, while the atoms move;
    ``cutoff`` (Å) is the largest of the networks that look at it.

    It serves as long as numbers, cell, boundaries and charges stay, and no atom has moved by more
    than `SKIN` / 2 since it was made: no pair can have come within the cutoff unseen.
    """

    def __init__(self, atoms: Atoms, batch: Batch, cutoff: float) -> None:
        self.made_for = atoms.copy()
        self.batch, self.cutoff = batch, cutoff
        wide = attach(copy.copy(batch).drop_edges(), cutoff + SKIN)
        self.edges, self.shift = wide.edge_index, wide.edge_shift

    def serves(self, atoms: Atoms) -> bool:
        """Whether every neighbour within the cutoff is among the edges."""
        before = self.made_for
        if len(atoms) != len(before) or not np.array_equal(atoms.numbers, before.numbers):
            return False
        if not np.array_equal(atoms.cell.array, before.cell.array):
            return False
        if not np.array_equal(atoms.pbc, before.pbc) or not _equal(atoms.info, before.info):
            return False
        if atoms.arrays.keys() != before.arrays.keys():
            return False
        for name, values in atoms.arrays.items():
            if name not in MOVING and not np.array_equal(values, before.arrays[name]):
                return False
        moved = np.square(atoms.positions - before.positions).sum(1)
        # not: > , which NaN would pass
        return bool((moved <= (SKIN / 2) ** 2).all())

    def at(self, positions: np.ndarray, cutoff: float | None = None) -> Batch:
        """The batch at ``positions`` [N, 3] Å, with the edges that are within ``cutoff`` there
        (default: the largest).
        """
        cutoff = self.cutoff if cutoff is None else cutoff
        batch = copy.copy(self.batch)
        batch.pos = torch.as_tensor(positions).to(self.batch.pos)
        sender, receiver = self.edges
        vector = edge_vectors(batch.pos, sender, receiver, self.shift)
        near = torch.nonzero(vector.square().sum(1) < cutoff * cutoff)[:, 0]
        batch.edge_index = self.edges.index_select(1, near)
        batch.edge_shift = _rows(self.shift, near)
        batch.cutoff = cutoff
        return batch


# arrays of atoms that change from step to step and that no network reads
MOVING = ("positions", "momenta")


def _rows(values: Tensor | None, rows: Tensor) -> Tensor | None:
    return None if values is None else values.index_select(0, rows)


def _equal(one: dict, other: dict) -> bool:
    """Whether what atoms say of themselves is the same; what cannot be told is not."""
    try:
        return bool(one == other)
    except ValueError:  # arrays
        return False


class PotkitCalculator(Calculator):
    """A `Potential`, or an ensemble of them, as an ASE calculator; `potkit.calculator` makes one.

    energy and free_energy (the same: there are no electrons to smear) in eV, forces [N, 3] in eV/Å;
    energies [N] in eV, each atom's share of the energy, where the energy is a sum over atoms;
    stress [6] in eV/Å³, Voigt's order xx, yy, zz, yz, xz, xy, positive under tension, of atoms
    whose cell repeats and has a volume. A network that reads its forces out directly has no stress.

    Of an ensemble these are the members' means. Beside them stand energy_std, forces_std [N, 3],
    stress_std [6] and energies_std [N]: the sample standard deviation over the members, component
    by component, in the same units. What one member lacks the ensemble lacks.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "forces",
        "energies",
        "stress",
    ]

    def __init__(
        self,
        models: Sequence[Potential],
        device: str | torch.device,
        dtype: torch.dtype,
        compile: bool,
    ) -> None:
        super().__init__()
        self.models = list(models)
        self.device, self.dtype, self.compile = device, dtype, compile
        self._neighborhood: Neighborhood | None = None
        self._quick = self._compiled()
        had = ["energy", "forces"]
        if not any(model.energy_head.pooled for model in self.models):
            had.append("energies")
        if all(model.forces_mode == "gradient" for model in self.models):
            had.append("stress")
        spread = [name + SPREAD for name in had] if len(self.models) > 1 else []
        self.quantities = had
        self.implemented_properties = ["energy", "free_energy", *had[1:], *spread]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """All that there is for ``atoms``, at once, into ``results``.

        Raises DataError for an element without a reference energy and for predictions that are not
        finite numbers, ASE's PropertyNotImplementedError for a stress without a cell.
        """
        super().calculate(atoms, properties, system_changes)
        # what is made in inference mode cannot be differentiated
        with torch.inference_mode(False):
            near = self._neighbors(self.atoms)
            positions = self.atoms.positions
            answers = [
                self._predict(model, quick, near.at(positions, model.cutoff))
                for model, quick in zip(self.models, self._quick, strict=True)
            ]
        results = {
            name: np.mean([answer[name] for answer in answers], axis=0) for name in answers[0]
        }
        if len(answers) > 1:
            results |= {
                name + SPREAD: np.std([answer[name] for answer in answers], axis=0, ddof=1)
                for name in answers[0]
            }
        for name in {"energy", "energy" + SPREAD} & results.keys():
            results[name] = float(results[name])
        results["free_energy"] = results["energy"]
        asked = {name.removesuffix(SPREAD) for name in properties}
        if "stress" in asked and "stress" not in results:
            raise PropertyNotImplementedError(
                "stress: the atoms have no cell that repeats and has a volume"
            )
        self.results = results

    def _neighbors(self, atoms: Atoms) -> Neighborhood:
        """The edges around ``atoms``; found anew only where they must be."""
        known = self._neighborhood
        if known is None or not known.serves(atoms):
            bare = atoms.copy()
            bare.calc = None
            structures = Structures.from_ase([bare])
            for model in self.models:
                model.check_elements(structures.elements)
            batch = structures.batch(device=self.device, dtype=self.dtype)
            cutoff = max(model.cutoff for model in self.models)
            self._neighborhood = known = Neighborhood(bare, batch, cutoff)
        return known

    def _compiled(self) -> list[ForPredictions]:
        """Of each network; builds kernels, or says why not, before a simulation starts."""
        return [
            ForPredictions(model, self.compile, self.device, self.dtype) for model in self.models
        ]

    def __getstate__(self) -> dict:
        """All but the neighbours, which are found again."""
        return self.__dict__ | {"_neighborhood": None}

    def _predict(
        self, model: Potential, quick: ForPredictions, batch: Batch
    ) -> dict[str, np.ndarray]:
        outputs = list(self.quantities)
        if "stress" in outputs and not bool(volumes(batch.cell, batch.pbc)[0] > 0):
            outputs.remove("stress")
        with torch.no_grad(), quick:
            prediction = model(batch, outputs)
        answers = {name: getattr(prediction, name) for name in outputs}
        if not all(bool(answer.isfinite().all()) for answer in answers.values()):
            raise DataError(
                f"the predicted {' or '.join(outputs)} are not finite numbers; are all atoms apart?"
            )
        results = {name: answer.double().cpu().numpy() for name, answer in answers.items()}
        results["energy"] = results["energy"][0]
        if "stress" in results:
            results["stress"] = full_3x3_to_voigt_6_stress(results["stress"][0])
        return results
