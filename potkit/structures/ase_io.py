"""`Structures` as lists of ``ase.Atoms``, the arrays that lists of them make, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from .arrays import FLAT
from .elements import formula

if TYPE_CHECKING:
    from .store import Structures


def to_ase(structures: Structures) -> list:
    """A list of `ase.Atoms`; energy (eV), forces (eV/Å) and stress (eV/Å³, Voigt's order xx, yy,
    zz, yz, xz, xy; where there is one) in a SinglePointCalculator, charge and system in ``info``,
    molecule and formal charges (where known) in ``arrays``.
    """
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.stress import full_3x3_to_voigt_6_stress

    s = structures
    names = s.system_names()
    frames = []
    for i in range(len(s)):
        a, b = s.ptr[i], s.ptr[i + 1]
        cell = None if s.cell is None else s.cell[i]
        atoms = Atoms(s.z[a:b], s.pos[a:b].astype(float), cell=cell, pbc=s.pbc[i])
        atoms.info["charge"] = int(s.charge[i])
        atoms.info["system"] = names[s.system[i]]
        atoms.arrays["molecule"] = np.array(s.molecule[a:b])
        if s.formal_charge is not None:
            atoms.arrays["formal_charge"] = np.array(s.formal_charge[a:b])
        results = {}
        if s.energy is not None:
            results["energy"] = float(s.energy[i])
        if s.forces is not None:
            results["forces"] = s.forces[a:b].astype(float)
        if s.stress is not None and np.isfinite(s.stress[i]).all():
            results["stress"] = full_3x3_to_voigt_6_stress(s.stress[i])
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def arrays_from_ase(frames: Sequence, dtype: Any = np.float64) -> dict[str, Any]:
    """The arrays of `Structures` from ``ase.Atoms``, and under "info" the names of their systems.

    Formal charges are kept if every frame has them, in ``arrays``; the stress if any frame has one,
    with NaN for the others. Raises DataError if energy or
    forces are there for some frames only.
    """
    single = hasattr(frames, "get_positions")
    frames = [frames] if single else list(frames)
    results = [getattr(f.calc, "results", {}) for f in frames]  # {} also where there is no calc

    def labelled(key: str) -> bool:
        """Whether all frames have the label, or none."""
        have = [key in r for r in results]
        if any(have) and not all(have):
            raise DataError(f"frame {have.index(False)} has no {key} while others have")
        return bool(have) and all(have)

    def stack(parts: list, empty: int | tuple[int, ...], kind: Any) -> np.ndarray:
        return np.concatenate(parts).astype(kind) if parts else np.zeros(empty, kind)

    energy = forces = stress = None
    if labelled("energy"):
        energy = np.array([r["energy"] for r in results])
    if labelled("forces"):
        forces = stack([r["forces"] for r in results], (0, 3), dtype)
    if any("stress" in r for r in results):
        absent = np.full((3, 3), np.nan)
        stress = np.array([full_stress(r["stress"]) if "stress" in r else absent for r in results])
    names: dict[str, int] = {}
    labels = [str(f.info.get("system", f.get_chemical_formula())) for f in frames]
    system = np.array([names.setdefault(name, len(names)) for name in labels], np.int32)
    molecules = [f.arrays.get("molecule", np.zeros(len(f), int)) for f in frames]
    formal_charge = None
    if frames and all("formal_charge" in f.arrays for f in frames):
        formal_charge = stack([f.arrays["formal_charge"] for f in frames], 0, np.int8)
    with_cell = any(f.cell.rank for f in frames)
    return {
        "z": stack([f.numbers for f in frames], 0, np.int64),
        "pos": stack([f.positions for f in frames], (0, 3), dtype),
        "ptr": np.cumsum([0] + [len(f) for f in frames]),
        "energy": energy,
        "forces": forces,
        "cell": np.array([f.cell.array for f in frames]) if with_cell else None,
        "pbc": np.array([f.pbc for f in frames]) if frames else None,
        "charge": np.array([int(f.info.get("charge", 0)) for f in frames], np.int16),
        "system": system,
        "molecule": stack(molecules, 0, np.int32),
        "formal_charge": formal_charge,
        "stress": stress,
        "info": {"systems": list(names)},
    }


def full_stress(values: Any) -> np.ndarray:
    """The symmetric matrix [3, 3] of nine numbers, or six in Voigt's order (xx, yy, zz, yz, xz,
    xy); of nine that are not symmetric, the symmetric part. Raises DataError for another count.
    """
    from ase.stress import voigt_6_to_full_3x3_stress

    values = np.asarray(values, np.float64)
    if values.size not in (6, 9):
        raise DataError(f"a stress has 6 (Voigt) or 9 numbers, got {values.size}")
    full = voigt_6_to_full_3x3_stress(values.ravel()) if values.size == 6 else values.reshape(3, 3)
    return (full + full.T) / 2


def stress_of_virial(values: Any, cell: np.ndarray | None) -> np.ndarray:
    """The stress [3, 3] eV/Å³ of a virial in eV (six or nine numbers, see `full_stress`): −W / V.

    NaN without a ``cell`` [3, 3] Å that has a volume. Raises DataError for another count.
    """
    virial = full_stress(values)
    volume = 0.0 if cell is None else abs(np.linalg.det(np.asarray(cell, np.float64)))
    return -virial / volume if volume > FLAT else np.full((3, 3), np.nan)


def summary(s: Structures):
    """A DataFrame with a row per system: structures, atoms, formula of the first, energy (eV/atom)
    and forces (eV/Å).
    """
    import pandas as pd

    order = np.argsort(s.system, kind="stable")
    ids, first, counts = np.unique(s.system[order], return_index=True, return_counts=True)
    names = s.system_names()
    rows = []
    for i, start, count in zip(ids, first, counts, strict=True):
        part = s[order[start : start + count]]
        first_z = part.z[: part.ptr[1]]
        row = {
            "system": names[i],
            "formula": formula(first_z),
            "structures": int(count),
            "atoms": len(first_z),
        }
        if s.energy is not None:
            per_atom = part.energy / part.n_atoms
            row["energy mean (eV/atom)"] = per_atom.mean()
            row["energy std (eV/atom)"] = per_atom.std()
        if s.forces is not None:
            mean_square = np.mean(np.square(part.forces, dtype=np.float64))
            row["forces rms (eV/Å)"] = float(np.sqrt(mean_square))
        rows.append(row)
    return pd.DataFrame(rows)
