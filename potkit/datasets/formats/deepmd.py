"""DeePMD-kit's folders: type.raw, type_map.raw, set.*/{coord,box,energy,force,virial}.npy; several
below one folder are read together.

Layout as in DeePMD-kit's documentation: coord [n, 3a] Å, box [n, 9] Å, energy [n] eV, force [n, 3a]
eV/Å, virial [n, 9] eV (the stress is −virial / volume); type.raw holds one index per atom into
type_map.raw. A file ``nopbc`` beside type.raw says that there are no periodic boundaries.
Mixed-type systems (real_atom_types.npy) are understood too. Pure water gets its molecules from the
geometry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ...structures.array_files import read_npy, require_numbers
from ...structures.arrays import cast
from ...structures.ase_io import stress_of_virial
from ...structures.geometry import water_molecules
from ...structures.store import Structures
from .common import NUMBERS, Units, chosen_units, require_finite, system_name
from .packer import Packer

NAME = "deepmd"
DESCRIPTION = "DeePMD folder(s) with type.raw and set.*/: Å, eV, eV/Å"


def _systems(path: Path) -> list[Path]:
    return sorted({f.parent for f in path.rglob("type.raw")}) if path.is_dir() else []


def sniff(path: Path) -> bool:
    """Whether it is a folder with type.raw somewhere below, beside folders set.*."""
    return any(any(s.glob("set.*")) for s in _systems(path))


def read(
    path: Path,
    dtype: Any = np.float32,
    type_map: list[str] | str | None = None,
    energy_unit: str | None = None,
    forces_unit: str | None = None,
    length_unit: str | None = None,
) -> Structures:
    """Read every system below ``path``. ``type_map`` ("O H") gives the elements in the order of the
    types; it goes before type_map.raw, whose names (HW, OW) need not be elements then.

    Raises DataError naming the folder and the array that does not fit.
    """
    systems = _systems(path)
    if not systems:
        raise DataError(f"{path}: no type.raw in this folder or below")
    packer = Packer(dtype)
    if isinstance(type_map, str):
        type_map = type_map.replace(",", " ").split()
    factors = chosen_units(length_unit, energy_unit, forces_unit)
    for system in systems:
        _read_system(system, packer, type_map, factors, system.relative_to(path).as_posix())
    return packer.finish(str(path), name=path.name, source_format=NAME)


def _array(file: Path, shape: tuple[int, ...] | None, optional: bool = False) -> np.ndarray | None:
    if not file.exists():
        if optional:
            return None
        raise DataError(f"{file}: missing")
    array = require_numbers(read_npy(file), f"{file}: the array")
    if shape is not None:
        if array.ndim == 0 and int(np.prod(shape)) == 1:  # the energy of a single frame
            array = array.reshape(shape)
        if array.size != int(np.prod(shape)) or array.shape[:1] != shape[:1]:
            raise DataError(f"{file}: has shape {array.shape}, expected {shape}")
        array = array.reshape(shape)
    return array


def _read_system(
    folder: Path, packer: Packer, type_map: list[str] | None, factors: Units, label: str
) -> None:
    try:
        types = np.array((folder / "type.raw").read_text().split(), np.int64)
    except (ValueError, OverflowError) as error:
        raise DataError(f"{folder / 'type.raw'}: not a list of whole numbers ({error})") from error
    map_file = folder / "type_map.raw"
    names = type_map
    if names is None and map_file.exists():
        names = map_file.read_text().split()
    if names is None:
        raise DataError(
            f"{folder}: has no type_map.raw, and its types are {sorted(set(types.tolist()))}; give "
            "type_map= (--type-map) with the elements in that order, such as 'O H'"
        )
    unknown = [n for n in names if n not in NUMBERS]
    if unknown:
        where = "type_map" if type_map is not None else map_file
        raise DataError(
            f"{where}: unknown element {unknown[0]!r}; give type_map= (--type-map) with the "
            f"elements that stand for {' '.join(names)}, in this order"
        )
    numbers = np.array([NUMBERS[n] for n in names])
    sets = sorted(folder.glob("set.*"))
    if not sets:
        raise DataError(f"{folder}: no set.* folder beside type.raw")
    periodic = not (folder / "nopbc").exists()
    a = len(types)
    if not a:
        raise DataError(f"{folder / 'type.raw'}: names no atoms")
    for part in sets:
        coord = _array(part / "coord.npy", None)
        n = len(coord) if coord.ndim else 0
        if not n:
            raise DataError(f"{part / 'coord.npy'}: holds no frames")
        pos = _array(part / "coord.npy", (n, a, 3))
        energy = _array(part / "energy.npy", (n,), optional=True)
        forces = _array(part / "force.npy", (n, a, 3), optional=True)
        box = _array(part / "box.npy", (n, 3, 3)) if periodic else None
        virial = _array(part / "virial.npy", (n, 3, 3), optional=True)
        mixed = _array(part / "real_atom_types.npy", (n, a), optional=True)
        if mixed is not None:
            mixed = cast(f"{part}: real_atom_types", mixed, np.int64)
        for what, array in (("coord", pos), ("energy", energy), ("force", forces), ("box", box)):
            if array is not None:
                require_finite(array, what, str(part), "frame")
        if virial is not None:
            require_finite(virial, "virial", str(part), "frame")
            virial = virial * factors.energy
        # of systems of several sizes the shorter ones are filled up with −1
        real = np.ones((n, a), bool) if mixed is None else mixed >= 0
        if mixed is not None and (mixed < -1).any():
            raise DataError(f"{part}: real_atom_types holds {int(mixed.min())}; only −1 fills up")
        if mixed is not None and not real.any(1).all():
            raise DataError(f"{part}: frame {int(np.argmin(real.any(1)))} has no atoms")
        pos = pos * factors.length
        box = None if box is None else box * factors.length
        energy = None if energy is None else energy * factors.energy
        forces = None if forces is None else forces * factors.forces
        _check_types(types if mixed is None else mixed[real], len(names), folder)
        kinds = np.broadcast_to(types, (n, a)) if mixed is None else mixed
        for k in range(n):
            there = real[k]
            z = numbers[kinds[k][there]].astype(np.uint8)
            flags = np.full(3, periodic)
            cell = None if box is None else box[k]
            molecule = water_molecules(z, pos[k][there], cell, flags)
            name = system_name(z)
            packer.add(
                z,
                pos[k][there][None],
                packer.system((label, name), name if label == "." else label),
                None if energy is None else energy[k : k + 1],
                None if forces is None else forces[k][there][None],
                cell,
                periodic,
                molecule=0 if molecule is None else molecule,
                stress=None if virial is None else stress_of_virial(virial[k], cell),
            )


def _check_types(types: np.ndarray, known: int, folder: Path) -> None:
    bad = (types < 0) | (types >= known)
    if bad.any():
        raise DataError(
            f"{folder}: type {int(types[bad][0])} is not in the type map of {known} elements"
        )
