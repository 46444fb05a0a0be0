"""Formal charges for sets whose files do not have them.

The denoise paper's networks (arXiv 2303.02216) see pairs of element and formal charge: on SPICE
those of the SMILES, which its reader brings, on ANI, ISO17 and MD22 neutral atoms.
"""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np

from ..errors import ConfigError, DataError
from ..structures.elements import SYMBOLS
from ..structures.store import Structures


def neutral(structures: Structures) -> Structures:
    """``structures`` with a formal charge of 0 for every atom, as the denoise paper's code has it
    for sets without charged species.

    Raises DataError naming the first structure that carries a charge.
    """
    charged = np.flatnonzero(structures.charge)
    if len(charged):
        s = int(charged[0])
        raise DataError(
            f"{structures.info.get('name', 'structures')}: structure {s} has charge "
            f"{int(structures.charge[s]):+d}, so its atoms are not all neutral"
        )
    return _with(structures, np.zeros(len(structures.z), np.int8))


def from_system_names(structures: Structures) -> Structures:
    """``structures`` with the formal charges of their systems' names, which are SMILES, as those of
    `spice-mini`; atoms stand in RDKit's order, hydrogens last.

    Raises DataError naming the first system whose name RDKit cannot read, or whose elements or
    charge are others; ConfigError where RDKit is not installed.
    """
    from .recipes.species import Species

    if find_spec("rdkit") is None:
        raise ConfigError("formal charges are read from SMILES by RDKit: pip install rdkit")
    out = np.zeros(len(structures.z), np.int8)
    names = structures.system_names()
    set_name = structures.info.get("name", "structures")
    for system in np.unique(structures.system):
        where = f"{set_name}: system {names[system]!r}"
        try:
            species = Species(names[system])
        except ValueError as error:
            raise DataError(f"{where}: its name is no SMILES ({error})") from error
        charges = np.array([atom.GetFormalCharge() for atom in species.rdkit.GetAtoms()], np.int8)
        for s in np.flatnonzero(structures.system == system):
            atoms = slice(structures.ptr[s], structures.ptr[s + 1])
            z = structures.z[atoms]
            if not np.array_equal(z, species.z):
                raise DataError(
                    f"{where}: structure {s} has the atoms {_listed(z)}, "
                    f"its SMILES {_listed(species.z)}"
                )
            if int(structures.charge[s]) != species.charge:
                raise DataError(
                    f"{where}: structure {s} has charge {int(structures.charge[s]):+d}, its SMILES "
                    f"{species.charge:+d}"
                )
            out[atoms] = charges
    return _with(structures, out)


def _listed(z: np.ndarray) -> str:
    symbols = " ".join(SYMBOLS[i] for i in z[:12])
    return f"{symbols} …" if len(z) > 12 else symbols


def _with(structures: Structures, formal_charge: np.ndarray) -> Structures:
    arrays = structures.arrays() | {"formal_charge": formal_charge}
    return Structures(**arrays, info=structures.info)
