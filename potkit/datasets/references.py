"""Reference energies: what is taken off a total energy so that a network learns interaction, not
the sum of its atoms.

Either the energies of isolated atoms at the level of theory of the data, or a least-squares fit
over compositions, or nothing. A fit must see the training part only; nothing here looks further
than the structures it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from .. import units
from ..errors import DataError
from ..structures.elements import MAX_Z, SYMBOLS, composition
from ..structures.store import Structures
from .formats import read
from .records import RECORDS

CHOICES = ("least-squares", "isolated", "none")

# energies of isolated atoms by level of theory and atomic number, eV
LEVELS: dict[str, dict[int, float]] = {}
# J. S. Smith et al., Chem. Sci. 8, 3192 (2017), as published with the ANI-1 data, in Hartree
LEVELS["wB97X/6-31G(d)"] = {
    1: -0.500607632585 * units.HARTREE,
    6: -37.8302333826 * units.HARTREE,
    7: -54.5680045287 * units.HARTREE,
    8: -75.0362229210 * units.HARTREE,
}
# the same level from another program (ORCA, in the 3BPA files): up to 0.08 eV per atom away, so a
# table of its own
LEVELS["wB97X/6-31G(d), 3BPA"] = {
    1: -13.587222780835477,
    6: -1029.4889999855063,
    7: -1484.9814568572233,
    8: -2041.9816003861047,
}
# isolated atoms by tblite (GFN2-xTB, neutral, SCC accuracy 0.05, 300 K electrons) with the unpaired
# electrons of the ground state: H 1, Li 1, B 1, C 2, N 3, O 2, F 1, Na 1, Mg 0, Si 2, P 3, S 2,
# Cl 1, K 1, Ca 0, Br 1, I 1. GFN2-xTB has no spin polarisation: that number fills the orbitals, no
# more. All embedded molecular sets have this level.
LEVELS["GFN2-xTB"] = {
    1: -10.707211,
    3: -4.900000,
    5: -25.917121,
    6: -48.798080,
    7: -70.908088,
    8: -102.521808,
    9: -125.698644,
    11: -4.546934,
    12: -12.679817,
    14: -42.711262,
    15: -64.604696,
    16: -85.619453,
    17: -121.975723,
    19: -4.510348,
    20: -10.113012,
    35: -110.160926,
    53: -102.848979,
}


def isolated_atoms(source: str | Path) -> dict[int, float]:
    """Energies (eV) of isolated atoms by atomic number: from a file of one-atom structures, or a
    level of theory in LEVELS.

    Raises DataError if ``source`` is neither, a structure of the file has more than one atom, or an
    element comes twice.
    """
    for level, energies in LEVELS.items():
        if level.lower() == str(source).lower().replace("ω", "w"):
            return dict(energies)
    path = Path(source)
    if not path.exists():
        known = ", ".join(map(repr, LEVELS))
        raise DataError(
            f"{source}: neither a file nor a level of theory with a table (known: {known})"
        )
    atoms = read(path, dtype=np.float64)
    if atoms.energy is None:
        raise DataError(f"{path}: isolated atoms need an energy")
    if (atoms.n_atoms != 1).any():
        worst = int(np.flatnonzero(atoms.n_atoms != 1)[0])
        raise DataError(
            f"{path}: structure {worst} has {int(atoms.n_atoms[worst])} atoms, isolated atoms have "
            "one"
        )
    table: dict[int, float] = {}
    for z, energy in zip(atoms.z.tolist(), atoms.energy.tolist(), strict=True):
        if z in table:
            raise DataError(f"{path}: {SYMBOLS[z]} comes twice")
        table[z] = energy
    return table


def _isolated(
    structures: Structures, given: Mapping[str, float] | None
) -> tuple[dict[int, float], str]:
    """Energies of isolated atoms (eV) by atomic number, and where they were found."""
    own = structures.info.get("atomic_energies") if given is None else given
    if own is not None:
        where = "of the data set" if given is None else "given"
        return {SYMBOLS.index(symbol): float(energy) for symbol, energy in own.items()}, where
    # a set that was joined has the names of its parts
    names = str(structures.info.get("name", "")).split(" + ")
    levels = {
        record.isolated or record.level
        for name in names
        for record in RECORDS
        if record.name == name
    }
    if len(levels) > 1:
        return {}, f"different levels of theory: {', '.join(sorted(levels))}"
    own_level = structures.info.get("level") or structures.info.get("level_of_theory")
    level = levels.pop() if levels else own_level
    if level is None:
        return {}, "their level of theory is not known"
    if level in LEVELS:
        return LEVELS[level], level
    return {}, f"level of theory {level}"


class ReferenceEnergies:
    """One energy (eV) per element. ``table``: atomic number -> eV. ``origin`` tells where it came
    from.
    """

    def __init__(self, table: Mapping[int, float], origin: str = "given") -> None:
        for z, value in table.items():
            if not (1 <= int(z) <= MAX_Z) or not np.isfinite(value):
                raise DataError(f"reference energies: {value} for atomic number {z}")
        self.table = {int(z): float(value) for z, value in sorted(table.items())}
        self.origin = origin

    def __repr__(self) -> str:
        energies = ", ".join(f"{SYMBOLS[z]} {energy:.4f}" for z, energy in self.table.items())
        return f"ReferenceEnergies({energies} eV; {self.origin})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ReferenceEnergies) and self.table == other.table

    @classmethod
    def zero(cls, structures: Structures) -> ReferenceEnergies:
        """Nothing taken off, for the elements of ``structures``: for data that are formation or
        interaction energies already.
        """
        return cls(dict.fromkeys(structures.elements, 0.0), "zero")

    @classmethod
    def from_isolated(cls, source: str | Path) -> ReferenceEnergies:
        """Isolated atoms of a level of theory or a file, see `isolated_atoms`."""
        name = Path(source).name if Path(source).exists() else source
        return cls(isolated_atoms(source), f"isolated atoms, {name}")

    @classmethod
    def isolated(
        cls, structures: Structures, given: Mapping[str, float] | None = None
    ) -> ReferenceEnergies:
        """Isolated atoms of the level of theory of ``structures``; ``given``, eV by symbol, goes
        before.

        They are looked for in ``structures.info["atomic_energies"]`` (eV by symbol), then in the
        table of the registered set of that name, then in that of ``structures.info["level"]``.
        Raises DataError naming the elements of ``structures`` without one.
        """
        table, origin = _isolated(structures, given)
        missing = [SYMBOLS[z] for z in structures.elements if z not in table]
        if missing:
            name = structures.info.get("name", "structures")
            raise DataError(
                f"{name}: no energy of an isolated atom is known for {', '.join(missing)} "
                f"({origin}); give isolated_energies, eV by symbol, or choose references: "
                "least-squares or none"
            )
        return cls(table, f"isolated atoms, {origin}")

    @classmethod
    def choose(
        cls,
        structures: Structures,
        how: str | Path | ReferenceEnergies,
        given: Mapping[str, float] | None = None,
    ) -> ReferenceEnergies:
        """The references that ``how`` names: "least-squares" (or "fit") over ``structures``,
        "isolated" (see `isolated`, which is given ``given``), "none", or what `from_isolated`
        takes. ReferenceEnergies stay as they are. Raises DataError.
        """
        if isinstance(how, ReferenceEnergies):
            return how
        if how in ("least-squares", "fit"):
            return cls.fit(structures)
        if how == "isolated":
            return cls.isolated(structures, given)
        if how == "none":
            return cls.zero(structures)
        return cls.from_isolated(how)

    @classmethod
    def fit(
        cls, structures: Structures, prior: ReferenceEnergies | None = None
    ) -> ReferenceEnergies:
        """Least squares of energy over composition; of all solutions the smallest (or the one
        nearest to ``prior``).

        Give it the training part only. Works with a single composition, where the solution is far
        from unique. Raises DataError if there are no energies.
        """
        if structures.energy is None or not len(structures):
            name = structures.info.get("name", "structures")
            raise DataError(f"{name}: reference energies need labelled structures")
        if structures.partly_labelled:
            structures = structures[structures.labelled("energy")]
        elements = structures.elements
        counts, group = np.unique(composition(structures, elements), axis=0, return_inverse=True)
        group = group.reshape(-1)
        n = np.bincount(group).astype(np.float64)
        mean = np.bincount(group, weights=structures.energy) / n
        start = np.array([0.0 if prior is None else prior.table.get(z, 0.0) for z in elements])
        weight = np.sqrt(n)
        residual = (mean - counts @ start) * weight
        solution, *_ = np.linalg.lstsq(counts * weight[:, None], residual, rcond=1e-10)
        origin = f"least squares over {len(structures)} structures of {len(counts)} compositions"
        energies = (start + solution).tolist()
        return cls(dict(zip(elements, energies, strict=True)), origin)

    def array(self) -> np.ndarray:
        """The table as [119] float64, indexed by atomic number; NaN where there is no reference."""
        out = np.full(MAX_Z + 1, np.nan)
        out[list(self.table)] = list(self.table.values())
        return out

    def energy(self, structures: Structures) -> np.ndarray:
        """The sum of the references of each structure's atoms, [S] float64 eV. Raises DataError
        naming an element without one.
        """
        missing = [z for z in structures.elements if z not in self.table]
        if missing:
            atom = np.flatnonzero(structures.z == missing[0])[0]
            row = int(np.searchsorted(structures.ptr, atom, "right")) - 1
            known = ", ".join(SYMBOLS[z] for z in self.table) or "nothing"
            raise DataError(
                f"no reference energy for {SYMBOLS[missing[0]]} (first in structure {row}); "
                f"there are references for {known}"
            )
        return composition(structures) @ self.array()[structures.elements]

    def to_dict(self) -> dict[str, Any]:
        """What JSON can hold; energies in eV by symbol."""
        return {
            "unit": "eV",
            "origin": self.origin,
            "energies": {SYMBOLS[z]: e for z, e in self.table.items()},
        }

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> ReferenceEnergies:
        """The reverse of `to_dict`."""
        try:
            if content["unit"] != "eV":
                raise DataError(f"reference energies in {content['unit']!r}, expected 'eV'")
            energies = content["energies"].items()
            table = {SYMBOLS.index(symbol): energy for symbol, energy in energies}
            return cls(table, content.get("origin", "given"))
        except (KeyError, TypeError, AttributeError) as error:
            raise DataError(f"reference energies cannot be read: {error!r}") from error
        except ValueError as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"reference energies name an unknown element: {error}") from error
