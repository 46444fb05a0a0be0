"""Conformations from which SPICE was computed, before there are labels: an HDF5 group per molecule
with ``smiles`` and ``conformations`` [n,a,3] in nm.

P. Eastman et al., Sci. Data 10, 11 (2023), 10.1038/s41597-022-01882-6. The files hold no atomic
numbers. Atom k of ``conformations`` is the atom with map number k in ``smiles`` ("[C:17]"),
wherever it stands in the text; what a dot separates is a molecule of its own. A ``units``
attribute, where there is one, is believed.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ... import units
from ...errors import ConfigError, DataError
from ...structures.array_files import check_texts, load_hdf5, open_hdf5
from ...structures.store import Structures
from .common import NUMBERS, dataset, groups_with, require_finite, system_name, text_of
from .packer import Packer
from .spice import ENERGIES, charge_of

NAME = "spice-conformers"
DESCRIPTION = "SPICE conformations without labels, HDF5: smiles with map numbers, conformations nm"
LENGTHS = {"nanometers": "nm", "nanometer": "nm", "angstroms": "angstrom", "bohrs": "bohr"}
_ATOM = re.compile(r"\[\d*([A-Z][a-z]?|[a-z][a-z]?)[^\]:]*(?::(\d+))?\]")


def sniff(path: Path) -> bool:
    """Whether the first groups hold conformations and smiles, but no atomic_numbers."""
    from .hdf5 import first_keys

    keys = first_keys(path) if path.is_file() else set()
    labelled = {"atomic_numbers", "dft_total_gradient", *ENERGIES.values()}
    return {"conformations", "smiles"} <= keys and not labelled & keys


def atoms_of(smiles: str, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Atomic numbers [a] uint8 and molecule [a] int32 of a SMILES whose atoms all have map numbers,
    in the order of these.

    Raises DataError where an atom has none, or they are not 1 … a.
    """
    found = []  # map number, atomic number, molecule
    for molecule, fragment in enumerate(smiles.split(".")):
        atoms = _ATOM.findall(fragment)
        outside = re.sub(r"\[[^\]]*\]", "", fragment)
        if fragment.count("[") != len(atoms) or re.search("[A-Za-z]", outside):
            raise DataError(f"{where}: an atom of smiles {fragment!r} has no brackets")
        for symbol, number in atoms:
            # "[nH:5]" is aromatic nitrogen, not "Nh"
            z = NUMBERS.get(symbol.capitalize())
            if z is None or not number:
                what = "has no map number" if z else "is no element"
                raise DataError(f"{where}: {symbol} of smiles {fragment!r} {what}")
            found.append((int(number), z, molecule))
    found.sort()
    if [number for number, *_ in found] != [*range(1, len(found) + 1)]:
        raise DataError(
            f"{where}: map numbers of smiles are not 1 … {len(found)}, one for each atom"
        )
    _, z, molecules = zip(*found, strict=True)
    return np.array(z, np.uint8), np.array(molecules, np.int32)


def read(
    path: Path, dtype: Any = np.float32, elements: str | Sequence[str] | None = None
) -> Structures:
    """Read all molecules, or those made of no other than ``elements`` ("H C N O").

    The result has neither energies nor forces: `potkit.pretrain` takes it, `potkit.finetune` does
    not. Charges come from the SMILES. Raises DataError naming file and group: a SMILES whose map
    numbers are not those of the atoms, a wrong shape, NaN, a unit that is not known.
    """
    allowed = _allowed(elements)
    packer = Packer(dtype)
    left = 0
    check_texts(path)
    with open_hdf5(path) as file:
        for group in groups_with(file, "conformations", path):
            where = f"{path}: group {group.name}"
            smiles = text_of(load_hdf5(dataset(group, "smiles", path), path, text=True))
            z, molecule = atoms_of(smiles, where)
            if allowed is not None and not set(z.tolist()) <= allowed:
                left += 1
                continue
            data = dataset(group, "conformations", path)
            unit = text_of(data.attrs.get("units", "nanometers"))
            length = units.factor(LENGTHS.get(unit, unit), "length")
            pos = load_hdf5(data, path).astype(np.float64) * length
            if pos.ndim != 3 or pos.shape[1:] != (len(z), 3):
                raise DataError(
                    f"{where}: conformations have shape {pos.shape}, {len(z)} atoms of smiles ask "
                    f"for (n, {len(z)}, 3)"
                )
            require_finite(pos, "conformations", where)
            name = group.name.strip("/")
            # a group of several molecules: the same name stands for other compositions elsewhere
            if molecule.any():
                name = f"{name}, {system_name(z)}"
            packer.add(
                z, pos, packer.system(name), charge=charge_of(smiles), molecule=molecule[None]
            )
    if left:
        packer.notes.append(f"{left} molecules with other elements than {elements} left out")
    return packer.finish(str(path), name=path.stem, source_format=NAME)


def _allowed(elements: str | Sequence[str] | None) -> set[int] | None:
    if elements is None:
        return None
    symbols = elements.split() if isinstance(elements, str) else list(elements)
    if unknown := [symbol for symbol in symbols if symbol not in NUMBERS]:
        raise ConfigError(f"elements names {unknown[0]!r}, which is no element")
    return {NUMBERS[symbol] for symbol in symbols}
