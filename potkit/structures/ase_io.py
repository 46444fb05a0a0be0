"""`Structures` as lists of ``ase.Atoms``, the arrays that lists of them make, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from .arrays import cast
from .elements import formula
from .settings import shown

if TYPE_CHECKING:
    from .store import Structures


def to_ase(structures: Structures) -> list:
    """A list of `ase.Atoms`; energy (eV) and forces (eV/Å) in a SinglePointCalculator, charge and
    system in ``info``, molecule and formal charges (where known) in ``arrays``.
    """
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator

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
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def arrays_from_ase(frames: Sequence, dtype: Any = np.float64) -> dict[str, Any]:
    """The arrays of `Structures` from ``ase.Atoms``, and under "info" the names of their systems.

    Formal charges are kept if every frame has them, in ``arrays``. Raises DataError if energy or
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

    ptr = np.cumsum([0] + [len(f) for f in frames])

    def stack(name: str, parts: list, empty: int | tuple[int, ...], kind: Any) -> np.ndarray:
        return cast(name, np.concatenate(parts), kind, ptr) if parts else np.zeros(empty, kind)

    energy = forces = None
    if labelled("energy"):
        energy = np.array([r["energy"] for r in results])
    if labelled("forces"):
        forces = stack("forces", [r["forces"] for r in results], (0, 3), dtype)
    names: dict[str, int] = {}
    labels = [str(f.info.get("system", f.get_chemical_formula())) for f in frames]
    system = np.array([names.setdefault(name, len(names)) for name in labels], np.int32)
    molecules = [f.arrays.get("molecule", np.zeros(len(f), int)) for f in frames]
    formal_charge = None
    if frames and all("formal_charge" in f.arrays for f in frames):
        formal_charge = stack(
            "formal_charge", [f.arrays["formal_charge"] for f in frames], 0, np.int8
        )
    with_cell = any(f.cell.rank for f in frames)
    return {
        "z": stack("z", [f.numbers for f in frames], 0, np.int64),
        "pos": stack("pos", [f.positions for f in frames], (0, 3), dtype),
        "ptr": ptr,
        "energy": energy,
        "forces": forces,
        "cell": np.array([f.cell.array for f in frames]) if with_cell else None,
        "pbc": np.array([f.pbc for f in frames]) if frames else None,
        "charge": np.array([_charge(f, i) for i, f in enumerate(frames)], np.int16),
        "system": system,
        "molecule": stack("molecule", molecules, 0, np.int32),
        "formal_charge": formal_charge,
        "info": {"systems": list(names)},
    }


def _charge(atoms: Any, i: int) -> int:
    """The total charge (e) in ``info``, 0 where it is not there; a sum of partial charges is
    rounded.
    """
    value = atoms.info.get("charge", 0)
    number = np.ndim(value) == 0 and isinstance(value, (int, float, np.number))
    if not number or isinstance(value, bool):
        text = " ".join(repr(value).split())[:40]
        raise DataError(f"charge of structure {i} is {text}, not a whole number")
    if isinstance(value, int) and not -(2**15) <= value < 2**15:
        raise DataError(f"charge of structure {i} is {shown(value, 20)}, not in -32768…32767")
    try:
        return int(cast("charge", np.array([value]), np.int16)[0])
    except DataError as error:
        raise DataError(str(error).replace("structure 0", f"structure {i}", 1)) from None


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
