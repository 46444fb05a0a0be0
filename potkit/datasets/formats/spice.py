"""SPICE HDF5, versions 1 and 2: a group per molecule with atomic_numbers [a], conformations [n,a,3]
Bohr, energies Hartree.

P. Eastman et al., Sci. Data 10, 11 (2023), 10.1038/s41597-022-01882-6. ``dft_total_gradient``
[n,a,3] Hartree/Bohr is minus the force; ``formation_energy`` is relative to free atoms or ions,
``dft_total_energy`` is not. A data set's ``units`` attribute, where there is one, is believed. The
elements are ``atomic_numbers``: the atoms of ``smiles`` stand in another order.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ... import units
from ...errors import ConfigError, DataError
from ...structures.store import Structures
from .common import checked_numbers, groups_with, load, open_hdf5, require_finite
from .packer import Packer

NAME = "spice"
DESCRIPTION = (
    "SPICE 1 and 2 HDF5: conformations Bohr, formation_energy or dft_total_energy Hartree, "
    "gradient Hartree/Bohr"
)
ENERGIES = {"formation": "formation_energy", "total": "dft_total_energy"}
_BRACKET = re.compile(r"\[[^\]]*\]")
_SIGN = re.compile(r"(\++|-+)(\d*)")


def sniff(path: Path) -> bool:
    """Whether the first groups hold conformations and atomic_numbers."""
    from .hdf5 import first_keys

    return {"conformations", "atomic_numbers"} <= {k.replace(" ", "_") for k in first_keys(path)}


def charge_of(smiles: str) -> int:
    """The total charge of a SMILES: the sum over its bracket atoms. Which atom carries it is not
    asked.
    """
    total = 0
    for atom in _BRACKET.findall(smiles):
        signs = _SIGN.search(atom.split(":")[0].rstrip("]"))
        if signs:
            size = int(signs[2]) if signs[2] else len(signs[1])
            total += size if signs[1][0] == "+" else -size
    return total


def read(
    path: Path,
    dtype: Any = np.float32,
    energy: str = "formation",
    subsets: Sequence[str] | None = None,
    max_force: float | None = None,
) -> Structures:
    """Read all molecules, or those whose ``subset`` contains one of ``subsets`` ("Dipeptides",
    "PubChem" …).

    ``energy``: "formation" or "total". ``max_force`` (eV/Å) drops conformations with a larger force
    component. Charges come from MBIS charges or else from the SMILES. Groups without conformations
    (the public files have one) are skipped and named in ``info["notes"]``. Raises DataError naming
    file and group for whatever else does not fit.
    """
    if energy not in ENERGIES:
        raise ConfigError(f"energy must be 'formation' or 'total', got {energy!r}")
    packer = Packer(dtype)
    dropped = 0
    seen: set[str] = set()  # subsets
    with open_hdf5(path) as file:
        for group in groups_with(file, "conformations"):
            where = f"{path}: group {group.name}"
            get = _fields(group)
            subset = _text(get("subset")) if get("subset") is not None else ""
            seen.add(subset)
            if subsets is not None and not any(s.lower() in subset.lower() for s in subsets):
                continue
            for needed in ("atomic_numbers", "conformations", ENERGIES[energy]):
                if get(needed) is None:
                    raise DataError(
                        f"{where} has no {needed!r} (it has: {', '.join(group) or 'nothing'})"
                    )
            z = checked_numbers(load(get("atomic_numbers"), path), where)
            pos = _converted(get("conformations"), "bohr", path)
            if pos.ndim < 3 or not len(pos):
                packer.notes.append(
                    f"group {group.name} skipped: conformations have shape {pos.shape}"
                )
                continue
            if pos.shape[1:] != (len(z), 3):
                raise DataError(
                    f"{where}: conformations have shape {pos.shape}, {len(z)} atomic_numbers ask "
                    f"for (n, {len(z)}, 3)"
                )
            value = _converted(get(ENERGIES[energy]), "hartree", path)
            if value.shape != (len(pos),):
                raise DataError(
                    f"{where}: {ENERGIES[energy]} has shape {value.shape}, {len(pos)} "
                    f"conformations ask for ({len(pos)},)"
                )
            forces = None
            if get("dft_total_gradient") is not None:
                forces = -_converted(get("dft_total_gradient"), "hartree/bohr", path)
                if forces.shape != pos.shape:
                    raise DataError(
                        f"{where}: dft_total_gradient has shape {forces.shape}, conformations "
                        f"{pos.shape}"
                    )
                require_finite(forces, "dft_total_gradient", where)
            require_finite(pos, "conformations", where)
            require_finite(value, ENERGIES[energy], where)
            keep = np.ones(len(pos), bool)
            if max_force is not None and forces is not None:
                keep = np.abs(forces).max((1, 2)) <= max_force
                dropped += int((~keep).sum())
            if keep.any():
                name = group.name.strip("/")
                packer.add(
                    z,
                    pos[keep],
                    packer.system(name),
                    value[keep],
                    None if forces is None else forces[keep],
                    charge=_charge(get, path, where),
                )
    if subsets is not None and not packer.n_structures:
        raise ConfigError(
            f"{path}: no subset matches {list(subsets)} (it has: {', '.join(sorted(seen))})"
        )
    if dropped:
        packer.notes.append(f"{dropped} conformations with a force above {max_force} eV/Å dropped")
    return packer.finish(str(path), name=path.stem, source_format=NAME, energy_kind=energy)


def _fields(group: h5py.Group):
    names = {name.replace(" ", "_").lower(): name for name in group}

    def get(key: str) -> h5py.Dataset | None:
        return group[names[key]] if key in names else None

    return get


def _converted(data: h5py.Dataset, default: str, path: Path) -> np.ndarray:
    unit = data.attrs.get("units", default)
    unit = unit.decode() if isinstance(unit, bytes) else str(unit)
    return load(data, path).astype(np.float64) * units.factor(unit)


def _text(data: h5py.Dataset) -> str:
    value = np.asarray(data[()]).reshape(-1)[0]
    return value.decode() if isinstance(value, bytes) else str(value)


def _charge(get: Any, path: Path, where: str) -> int:
    if get("mbis_charges") is not None:
        charges = load(get("mbis_charges"), path).astype(np.float64)
        total = charges.reshape(len(charges), -1).sum(1)
        if len(total) and np.isfinite(total).all():
            charge = np.round(np.median(total))
            if abs(np.median(total) - charge) > 0.25:
                raise DataError(
                    f"{where}: mbis_charges add up to {np.median(total):.2f}, not to a whole charge"
                )
            return int(charge)
    return charge_of(_text(get("smiles"))) if get("smiles") is not None else 0
