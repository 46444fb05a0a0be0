"""The calculator of `potkit.calculator`: a class of its own module, so that it can be pickled and
sent to other processes. Importing this imports ASE.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress
from torch import Tensor

from ..errors import ConfigError, DataError
from ..kernels.compiling import ForPredictions, has_compiler, require_compiler
from ..models import Potential
from ..structures.batch import Batch
from ..structures.geometry import edge_vectors, volumes
from ..structures.neighbors import attach
from ..structures.store import Structures

SPREAD = "_std"  # what follows the name of a quantity whose spread over members it is
# Å; the neighbours within cutoff + SKIN serve until an atom has moved by half of it (Verlet, Phys.
# Rev. 159, 98 (1967))
SKIN = 0.5
# Å; of a free structure of up to `SMALL` atoms: all its pairs, which are few. With SKIN they are
# found anew every few steps of 0.5 fs where hydrogen moves
FREE_SKIN = 100.0
# s; predictions that have taken so long together go on compiled, where nothing was said of it:
# compiling takes about as long, so waiting costs at most as much again
PATIENCE = 30.0
# atoms; up to here one compiled graph serves, beyond it kernels where there are any. Of the small
# presets, in water at 5 Å on one thread, the graph took so many times as long as the kernels:
# at 24, 100 and 192 atoms SchNet 0.7, 2.2, 3.5, EGNN 0.6, 0.9, 1.1, TorchMD-Net ET 0.9, 1.1, 1.2
SMALL = 40
UNCHARGED = 0.1  # e; sums of rounded partial charges are off by less
# arrays of atoms whose change ASE has a calculator look at
STATE = ("positions", "numbers", "initial_charges", "initial_magmoms", "formal_charge")


class Neighborhood:
    """The batch of some atoms with all edges within cutoff + ``skin`` (`SKIN` or `FREE_SKIN`),
    while the atoms move; ``cutoff`` (Å) is the largest of the networks that look at it.

    It serves as long as numbers, cell, boundaries and charges stay, and no atom has moved by more
    than ``skin`` / 2 since it was made: no pair can have come within the cutoff unseen.
    """

    def __init__(self, atoms: Atoms, batch: Batch, cutoff: float) -> None:
        self.made_for = atoms.copy()
        self.batch, self.cutoff = batch, cutoff
        self.has_volume = bool(volumes(batch.cell, batch.pbc)[0] > 0)
        free = not atoms.pbc.any()
        self.skin = FREE_SKIN if free and len(atoms) <= SMALL else SKIN
        wide = attach(copy.copy(batch).drop_edges(), cutoff + self.skin)
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
        return bool((moved <= (self.skin / 2) ** 2).all())

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


def _same_array(one: Atoms, other: Atoms, name: str) -> bool:
    """Whether two structures have the same array ``name``, one that is missing being zeros."""
    a, b = one.arrays.get(name), other.arrays.get(name)
    if a is None or b is None:
        given = a if b is None else b
        return given is None or not given.any()
    return bool(np.array_equal(a, b))


def _check_charge(atoms: Atoms) -> None:
    """Raise DataError where only initial charges tell that ``atoms`` are charged: these may be
    partial charges, which do not say how many electrons there are.
    """
    total = float(atoms.get_initial_charges().sum())
    if "charge" not in atoms.info and abs(total) > UNCHARGED:
        raise DataError(
            f"the initial charges of the atoms add up to {total:g} e, which is not read: give the "
            "total charge that the network reads as atoms.info['charge']"
        )


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
    whose cell repeats and has a volume. A network that reads its forces out directly has no stress,
    nor have the masked paper's published ones.

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
        compile: bool | None,
    ) -> None:
        super().__init__()
        self.models = list(models)
        self.device, self.dtype, self.compile = device, dtype, compile
        self.seconds = 0.0  # that predictions have taken
        self._undecided = compile is None
        self._compiles = bool(compile)
        self._neighborhood: Neighborhood | None = None
        if compile:
            require_compiler(device)  # before a simulation starts
        self._quick: dict[tuple[bool, bool], list[ForPredictions]] = {}
        had = ["energy", "forces"]
        if all(model.has_shares for model in self.models):
            had.append("energies")
        if all(model.has_stress for model in self.models):
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

        Raises DataError for an element without a reference energy, a total charge that the network
        does not know or nobody tells, and predictions that are not finite numbers, ASE's
        PropertyNotImplementedError for a stress without a cell.
        """
        super().calculate(atoms, properties, system_changes)
        start = time.perf_counter()
        # what is made in inference mode cannot be differentiated
        with torch.inference_mode(False):
            near = self._neighbors(self.atoms)
            answers = self._answers(near)
        self.seconds += time.perf_counter() - start
        results = dict(answers[0])
        if len(answers) > 1:
            for name in answers[0]:
                values = [answer[name] for answer in answers]
                results[name] = np.mean(values, axis=0)
                results[name + SPREAD] = np.std(values, axis=0, ddof=1)
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
                model.check_charges(torch.tensor(structures.charge))
                if model.reads_charge:
                    _check_charge(bare)
            batch = structures.batch(device=self.device, dtype=self.dtype)
            cutoff = max(model.cutoff for model in self.models)
            self._neighborhood = known = Neighborhood(bare, batch, cutoff)
        return known

    def check_state(self, atoms: Atoms, tol: float = 1e-15) -> list[str]:
        """What has changed since the last prediction, by ASE's names.

        ASE compares with a tolerance, array by array and three times a step of dynamics, which
        takes as long as a small network; here a number is the same or it is not.
        """
        before = self.atoms
        if before is None or len(before) != len(atoms):
            return list(all_changes)
        changed = [name for name in STATE if not _same_array(before, atoms, name)]
        if not np.array_equal(before.cell.array, atoms.cell.array):
            changed.append("cell")
        if not np.array_equal(before.pbc, atoms.pbc):
            changed.append("pbc")
        charges = ({"charge": a.info.get("charge", 0)} for a in (before, atoms))
        if not _equal(*charges):  # the total one, as `Structures.from_ase` reads it
            changed.append("initial_charges")
        return changed

    def _answers(self, near: Neighborhood) -> list[dict[str, np.ndarray]]:
        """What each network says. Compiled code that was not asked for and cannot be had is done
        without, with a warning.
        """
        if self._undecided and self.seconds > PATIENCE:
            self._undecided, self._compiles = False, has_compiler(self.device)
        try:
            return self._predictions(near)
        except ConfigError as error:
            if self.compile or not self._compiles:
                raise
            warnings.warn(f"calculator: goes on uncompiled: {error}", stacklevel=4)
            self._compiles = False
            return self._predictions(near)

    def _predictions(self, near: Neighborhood) -> list[dict[str, np.ndarray]]:
        positions = self.atoms.positions
        quick = self._compiled(self._compiles, len(positions) <= SMALL)
        return [
            self._predict(model, how, near.at(positions, model.cutoff), near.has_volume)
            for model, how in zip(self.models, quick, strict=True)
        ]

    def _compiled(self, compile: bool, single: bool) -> list[ForPredictions]:
        """Of each network; made when it is first asked for."""
        key = (compile, single)
        if key not in self._quick:
            self._quick[key] = [
                ForPredictions(model, compile, self.device, self.dtype, single)
                for model in self.models
            ]
        return self._quick[key]

    def __getstate__(self) -> dict:
        """All but the neighbours, which are found again."""
        return self.__dict__ | {"_neighborhood": None}

    def _predict(
        self, model: Potential, quick: ForPredictions, batch: Batch, has_volume: bool
    ) -> dict[str, np.ndarray]:
        outputs = [name for name in self.quantities if name != "stress" or has_volume]
        with torch.no_grad(), quick:
            prediction = model(batch, outputs)
        answers = {name: getattr(prediction, name) for name in outputs}
        results = {name: answer.double().cpu().numpy() for name, answer in answers.items()}
        if not all(np.isfinite(values).all() for values in results.values()):
            raise DataError(
                f"the predicted {' or '.join(outputs)} are not finite numbers; are all atoms apart?"
            )
        results["energy"] = results["energy"][0]
        if "stress" in results:
            results["stress"] = full_3x3_to_voigt_6_stress(results["stress"][0])
        return results
