"""ANI-1x HDF5: a group per formula with atomic_numbers [a], coordinates [n,a,3] Å and one data set
per property and level of theory.

J. S. Smith et al., Sci. Data 7, 134 (2020), 10.1038/s41597-020-0473-z. Energies in Hartree, forces
in Hartree/Å; a property that was not computed for a conformation is NaN there. Groups are formulas:
isomers share one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ... import units
from ...errors import ConfigError, DataError
from ...structures.array_files import load_hdf5, open_hdf5
from ...structures.store import Structures
from .common import checked_numbers, dataset, groups_with, require_finite
from .packer import Packer

NAME = "ani1x"
DESCRIPTION = (
    "ANI-1x HDF5: coordinates Å, LEVEL.energy Hartree, LEVEL.forces Hartree/Å, NaN where missing"
)


def sniff(path: Path) -> bool:
    """Whether the first groups of a file hold coordinates, atomic_numbers and some LEVEL.energy, or
    nothing that is called an energy.
    """
    from .hdf5 import first_keys

    keys = first_keys(path) if path.is_file() else set()
    if not {"coordinates", "atomic_numbers"} <= keys:
        return False
    return any(k.endswith(".energy") for k in keys) or not any("energ" in k for k in keys)


def read(
    path: Path, dtype: Any = np.float32, level: str = "wb97x_dz", forces: bool = True
) -> Structures:
    """Read the conformations that have energy (and forces, where the level has them) at ``level``;
    the others are dropped and counted. A file without any energy is geometries alone.

    ``level``: the part before ".energy" (wb97x_dz, wb97x_tz, ccsd(t)_cbs …). ``info["notes"]`` says
    how many rows were dropped. Raises ConfigError for a level the file does not have, DataError
    naming file and group for shapes that do not fit.
    """
    packer = Packer(dtype)
    dropped = 0
    levels: set[str] = set()
    with open_hdf5(path) as file:
        groups = list(groups_with(file, "coordinates", path))
        unlabelled = not any(key.endswith(".energy") for group in groups for key in group)
        for group in groups:
            where = f"{path}: group {group.name}"
            z = checked_numbers(load_hdf5(dataset(group, "atomic_numbers", path), path), where)
            levels |= {k.rsplit(".", 1)[0] for k in group if k.endswith(".energy")}
            if f"{level}.energy" not in group and not unlabelled:
                shape = dataset(group, "coordinates", path).shape
                dropped += shape[0] if shape else 0
                continue
            pos = load_hdf5(dataset(group, "coordinates", path), path)
            energy = None
            if not unlabelled:
                energy = load_hdf5(dataset(group, f"{level}.energy", path), path)
            force = None
            if forces and f"{level}.forces" in group:
                force = load_hdf5(dataset(group, f"{level}.forces", path), path)
            if pos.ndim != 3 or pos.shape[1:] != (len(z), 3):
                raise DataError(
                    f"{where}: coordinates have shape {pos.shape}, {len(z)} atomic_numbers ask for "
                    f"(n, {len(z)}, 3)"
                )
            if not len(pos) or not len(z):
                raise DataError(
                    f"{where}: holds no conformations (coordinates have shape {pos.shape})"
                )
            if energy is not None and energy.shape != (len(pos),):
                raise DataError(
                    f"{where}: {level}.energy has shape {energy.shape}, {len(pos)} conformations "
                    f"ask for ({len(pos)},)"
                )
            if force is not None and force.shape != pos.shape:
                raise DataError(
                    f"{where}: {level}.forces have shape {force.shape}, coordinates {pos.shape}"
                )
            keep = np.ones(len(pos), bool) if energy is None else ~np.isnan(energy)
            if force is not None:
                keep &= ~np.isnan(force).any((1, 2))
            dropped += int((~keep).sum())
            if not keep.any():
                continue
            require_finite(pos, "coordinates", where)
            if energy is not None:
                require_finite(energy[keep], f"{level}.energy", where, "kept row")
                energy = energy[keep].astype(np.float64) * units.HARTREE
            if force is not None:
                force = force[keep].astype(np.float64) * units.factor("hartree/å")
            packer.add(
                z,
                pos[keep],
                packer.system(group.name.strip("/")),
                energy,
                force,
            )
    if unlabelled:
        return packer.finish(str(path), name=path.stem, source_format=NAME)
    if level not in levels:
        raise ConfigError(f"{path}: no level {level!r} (it has: {', '.join(sorted(levels))})")
    if dropped:
        labels = f"{level} energy and forces" if forces else f"{level} energy"
        packer.notes.append(f"{dropped} conformations without {labels} dropped")
    return packer.finish(str(path), name=path.stem, source_format=NAME, level=level)
