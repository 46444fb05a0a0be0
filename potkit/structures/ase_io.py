"""`Structures` as lists of ``ase.Atoms``, the arrays that lists of them make, and a table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from .arrays import FLAT, cast
from .elements import SYMBOLS, formula
from .settings import shown

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
    with_energy, with_forces = s.labelled("energy"), s.labelled("forces")
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
        if with_energy[i]:
            results["energy"] = float(s.energy[i])
        if with_forces[i]:
            results["forces"] = s.forces[a:b].astype(float)
        if s.stress is not None and np.isfinite(s.stress[i]).all():
            results["stress"] = full_3x3_to_voigt_6_stress(s.stress[i])
        if results:
            atoms.calc = SinglePointCalculator(atoms, **results)
        frames.append(atoms)
    return frames


def arrays_from_ase(frames: Sequence, dtype: Any = np.float64) -> dict[str, Any]:
    """The arrays of `Structures` from ``ase.Atoms``, and under "info" the names of their systems.

    Formal charges are kept if every frame has them, in ``arrays``. Where energy or forces are there
    for some frames only, "info" says so under "partly_labelled", and the others' are NaN; a stress
    is NaN for frames that have none. Raises DataError for results that are not those of the frame,
    and for a charge that is no whole number.
    """
    single = hasattr(frames, "get_positions")
    frames = [frames] if single else list(frames)
    results = [_results(f, i) for i, f in enumerate(frames)]
    info: dict[str, Any] = {}

    def labelled(key: str) -> bool:
        """Whether any frame has the label; whether not all have goes into ``info``."""
        have = [key in r for r in results]
        if any(have) and not all(have):
            info.setdefault("partly_labelled", []).append(key)
        return any(have)

    ptr = np.cumsum([0] + [len(f) for f in frames])

    def stack(name: str, parts: list, empty: int | tuple[int, ...], kind: Any) -> np.ndarray:
        return cast(name, np.concatenate(parts), kind, ptr) if parts else np.zeros(empty, kind)

    energy = forces = stress = None
    if labelled("energy"):
        energy = np.array([float(r.get("energy", np.nan)) for r in results])
    if labelled("forces"):
        nothing = [np.full((len(f), 3), np.nan) for f in frames]
        found = [r.get("forces", none) for r, none in zip(results, nothing, strict=True)]
        forces = stack("forces", found, (0, 3), dtype)
    if any("stress" in r for r in results):
        absent = np.full((3, 3), np.nan)
        stress = np.array([full_stress(r["stress"]) if "stress" in r else absent for r in results])
    names: dict[str, int] = {}
    labels = [_system(f, i) for i, f in enumerate(frames)]
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
        "stress": stress,
        "info": {"systems": list(names), **info},
    }


def _system(atoms: Any, i: int) -> str:
    """The name of the system of frame ``i``, its formula where it has none. Raises DataError for
    atomic numbers that are none.
    """
    if len(atoms) and not 0 <= atoms.numbers.min() <= atoms.numbers.max() < len(SYMBOLS):
        wrong = atoms.numbers[(atoms.numbers < 0) | (atoms.numbers >= len(SYMBOLS))]
        raise DataError(f"frame {i}: unknown element: atomic number {wrong[0]}")
    return str(atoms.info.get("system", atoms.get_chemical_formula()))


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


def whole_charge(value: Any, where: str) -> int:
    """A total charge in e as a whole number: None is 0, −0.9999999 is −1.

    Raises DataError for a fraction, an array of several values and a charge that no int16 holds.
    """
    if value is None:
        return 0
    try:
        (number,) = np.asarray(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        raise DataError(f"{where}: the charge {value!r} is not one number") from None
    if not np.isfinite(number) or abs(number - round(number)) > 0.01 or abs(number) > 32_000:
        raise DataError(f"{where}: the charge {number:g} is not a whole number of electrons")
    return round(number)


def _results(atoms: Any, index: int) -> dict[str, Any]:
    """Energy and forces of the frame ``atoms``, as far as its calculator has them for it."""
    calc = atoms.calc
    if calc is None:
        return {}
    # what a SinglePointCalculator keeps may be None
    held = {k: v for k, v in (getattr(calc, "results", None) or {}).items() if v is not None}
    if "energy" not in held and "free_energy" in held:
        held["energy"] = held["free_energy"]
    computes = type(calc).__name__ not in ("SinglePointCalculator", "SinglePointDFTCalculator")
    if held and _same_atoms(atoms, getattr(calc, "atoms", None)):
        return held
    if not computes:
        if not held:
            return {}
        raise DataError(
            f"frame {index}: its atoms were moved or changed after energy and forces were "
            "computed; compute them again, or take the calculator away (atoms.calc = None)"
        )
    known = getattr(calc, "implemented_properties", ("energy", "forces"))
    names = ["energy", "forces", *(["stress"] if "stress" in held else [])]
    names = [name for name in names if name in known]
    try:
        return {name: np.array(calc.get_property(name, atoms)) for name in names}
    except Exception as error:  # any program may stand behind it
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"frame {index}: its calculator holds no results of these atoms and cannot compute "
            f"them ({first})"
        ) from error


def _same_atoms(atoms: Any, other: Any) -> bool:
    """Whether results for ``other`` are results for ``atoms``; unknown atoms are believed."""
    if other is None:
        return True
    if len(atoms) != len(other) or (atoms.numbers != other.numbers).any():
        return False
    periodic = atoms.pbc.any() or other.pbc.any()
    if periodic and not (
        (atoms.pbc == other.pbc).all()
        # a cell that is no number is a fault of its own, which the set names
        and np.allclose(atoms.cell, other.cell, equal_nan=True)
    ):
        return False
    if not np.isfinite(atoms.positions).all():
        return True  # a fault of its own, which the set names
    return bool(np.abs(atoms.positions - other.positions).max(initial=0.0) < 1e-6)


def full_stress(values: Any) -> np.ndarray:
    """The symmetric matrix [3, 3] of nine numbers, or six in Voigt's order (xx, yy, zz, yz, xz,
    xy); of nine that are not symmetric, the symmetric part. Raises DataError for another count, and
    for what is no number.
    """
    from ase.stress import voigt_6_to_full_3x3_stress

    values = cast("stress", values, np.float64)
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
            per_atom = (part.energy / part.n_atoms)[part.labelled("energy")]
            row["energy mean (eV/atom)"] = per_atom.mean() if len(per_atom) else np.nan
            row["energy std (eV/atom)"] = per_atom.std() if len(per_atom) else np.nan
        if s.forces is not None:
            known = part.forces[np.repeat(part.labelled("forces"), part.n_atoms)]
            mean_square = np.mean(np.square(known, dtype=np.float64)) if len(known) else np.nan
            row["forces rms (eV/Å)"] = float(np.sqrt(mean_square))
        rows.append(row)
    return pd.DataFrame(rows)
