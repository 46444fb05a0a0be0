"""ANI-1 HDF5: group/molecule/{coordinates [n,a,3] Å, energies [n] Hartree, species [a]}; one file,
or all files of a folder.

J. S. Smith, O. Isayev, A. E. Roitberg, Sci. Data 4, 170193 (2017), 10.1038/sdata.2017.193. The
public files hold no forces; files of the same layout from others do (``forces`` [n,a,3],
Hartree/Bohr). ``coordinatesHE``/``energiesHE`` are the conformations above 275 kcal/mol that the
authors set apart. ``smiles`` is not read: in some files it names another molecule.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ... import units
from ...errors import ConfigError, DataError
from ...structures.array_files import load_hdf5, open_hdf5
from ...structures.elements import formula
from ...structures.store import Structures
from .common import data_files, dataset, groups_with, numbers_of, require_finite
from .packer import Packer

NAME = "ani1"
DESCRIPTION = "ANI-1 HDF5 (file or folder): coordinates Å, energies Hartree, species"
FOLDER_PATTERN = "*.h5"


def sniff(path: Path) -> bool:
    """Whether the first group with data sets has the ANI-1 keys; of a folder: whether all files in
    it that hold data are HDF5 that `read` takes, the first of them with these keys.
    """
    from .hdf5 import first_keys, is_hdf5

    if path.is_dir():
        files = data_files(path)
        if not all(file.match(FOLDER_PATTERN) and is_hdf5(file) for file in files):
            return False  # each file for itself: others would be left out without a word
    keys = first_keys(path)
    return "coordinates" in keys and "species" in keys and "atomic_numbers" not in keys


def read(
    path: Path,
    dtype: Any = np.float32,
    systems: str = "group",
    high_energy: bool = False,
    forces_unit: str = "hartree/bohr",
    max_energy: float | None = None,
) -> Structures:
    """Read one file or every ``*.h5`` below a folder.

    ``systems``: "group" (a molecule is a group of the file, as in ANI-1) or "composition" (files
    that cut one molecule into many groups). ``high_energy`` adds the set-apart conformations.
    ``max_energy`` (eV) drops conformations that lie further above the lowest one of their
    composition (over all files read). Groups without energies are geometries alone. Raises
    DataError for anything that does not fit, naming file and group.
    """
    if systems not in ("group", "composition"):
        raise ConfigError(f"systems must be 'group' or 'composition', got {systems!r}")
    files = sorted(path.rglob(FOLDER_PATTERN)) if path.is_dir() else [path]
    if not files:
        raise DataError(f"{path}: no {FOLDER_PATTERN} file below this folder")
    packer = Packer(dtype)
    for file in files:
        with open_hdf5(file) as handle:
            groups = list(groups_with(handle, "coordinates", file))
            if not groups:
                raise DataError(
                    f"{file}: holds no data, expected groups with coordinates, energies, species"
                )
            shapes = [dataset(group, "coordinates", file).shape for group in groups]
            shapes = [shape for shape in shapes if shape is not None and len(shape) == 3]
            n_atoms = sum(shape[0] * shape[1] for shape in shapes)
            if n_atoms < file.stat().st_size:  # else the file cannot hold what it claims
                packer.reserve(sum(shape[0] for shape in shapes), n_atoms)
            for group in groups:
                _read_group(group, file, packer, systems, high_energy, forces_unit)
    out = packer.finish(str(path), name=path.stem, source_format=NAME)
    if max_energy is None:
        return out
    from ..filters import near_minimum

    return near_minimum(out, max_energy)


def _read_group(
    group: h5py.Group, file: Path, packer: Packer, systems: str, high_energy: bool, forces_unit: str
) -> None:
    where = f"{file}: group {group.name}"
    species = load_hdf5(dataset(group, "species", file), file, text=True)
    if species.ndim == 2:  # one row per conformation: fine as long as all rows agree
        differ = (species != species[:1]).any(1)
        if differ.any():
            raise DataError(
                f"{where}: species of row {int(np.flatnonzero(differ)[0])} are in another order "
                "than those of row 0"
            )
        species = species[:1].reshape(-1)
    if species.ndim != 1:
        raise DataError(f"{where}: species have shape {species.shape}, expected one per atom")
    z = numbers_of(species.tolist(), where)
    if not len(z):
        raise DataError(f"{where}: species is empty")
    name = group.name.rsplit("/", 1)[-1] or "root"
    composition = formula(z)
    if systems == "composition":
        system = packer.system(composition)
    else:
        # in ANI-1 a name stands for one molecule; elsewhere it may come back for another one
        again = packer.has_label(name) and not packer.has_system((name, composition))
        system = packer.system((name, composition), f"{name} ({composition})" if again else name)
    for suffix in ("", "HE") if high_energy else ("",):
        if suffix and "coordinatesHE" not in group:
            continue
        pos = load_hdf5(dataset(group, f"coordinates{suffix}", file), file)
        energy = None  # geometries alone
        if any("energ" in key for key in group):
            energy = load_hdf5(dataset(group, f"energies{suffix}", file), file)
        if pos.ndim != 3 or pos.shape[1:] != (len(z), 3):
            raise DataError(
                f"{where}: coordinates{suffix} have shape {pos.shape}, {len(z)} species ask for "
                f"(n, {len(z)}, 3)"
            )
        if energy is not None and energy.shape != (len(pos),):
            raise DataError(
                f"{where}: energies{suffix} have shape {energy.shape}, {len(pos)} conformations "
                f"ask for ({len(pos)},)"
            )
        if not len(pos):
            if suffix:
                continue
            raise DataError(f"{where}: holds no conformations (coordinates have shape {pos.shape})")
        require_finite(pos, f"coordinates{suffix}", where)
        if energy is not None:
            require_finite(energy, f"energies{suffix}", where)
            energy = energy.astype(np.float64) * units.HARTREE
        forces = None
        if "forces" in group and not suffix:
            forces = load_hdf5(dataset(group, "forces", file), file)
            if forces.shape != pos.shape:
                raise DataError(
                    f"{where}: forces have shape {forces.shape}, coordinates {pos.shape}"
                )
            require_finite(forces, "forces", where)
            forces = forces.astype(np.float64) * units.factor(forces_unit, "forces")
        packer.add(z, pos, system, energy, forces)
