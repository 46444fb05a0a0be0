"""What the readers share: element names, one-line errors for HDF5 and for numbers that are not
finite.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from ... import units
from ...errors import DataError
from ...structures.array_files import (
    UNREADABLE,
    first_line,
    npz_member,
    read_npz,
    require_numbers,
    walk_groups,
)
from ...structures.ase_io import full_stress, stress_of_virial
from ...structures.elements import SYMBOLS, composition, formula
from ...structures.store import Structures

NUMBERS: dict[str, int] = {symbol: i for i, symbol in enumerate(SYMBOLS) if i}
# total (all-electron) energies of atoms follow roughly −½ Z^2.4 Hartree (H −0.50, C −36.9, O −73.5,
# true −0.50, −37.8, −75.1): coarse, yet Hartree, eV, kcal/mol and kJ/mol lie factors of 4 to 27
# apart
TOTAL_ENERGY_UNITS = ("hartree", "ev", "kcal/mol", "kj/mol")


# endings of files that hold no structures, left aside where a folder is read
SKIPPED = {".md", ".txt", ".yaml", ".yml", ".json", ".py", ".pdf", ".license", ".bib"}


def data_files(folder: Path) -> list[Path]:
    """The files of a folder that may hold data, by their endings, sorted."""
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.name[0] != ".")
    return [f for f in files if f.suffix.lower() not in SKIPPED]


def numbers_of(symbols: Sequence[str | bytes], where: str) -> np.ndarray:
    """Atomic numbers [a] of element symbols ("C", b"C", " cl "). Raises DataError that names the
    first unknown one.
    """
    known = [NUMBERS.get(symbol) for symbol in symbols]
    if None not in known:
        return np.array(known, np.uint8)
    out = np.empty(len(symbols), np.uint8)
    for i, symbol in enumerate(symbols):
        text = (symbol.decode("latin-1") if isinstance(symbol, bytes) else str(symbol)).strip()
        number = NUMBERS.get(text) or NUMBERS.get(text.capitalize())
        if number is None:
            raise DataError(f"{where}: unknown element {text!r} at atom {i}")
        out[i] = number
    return out


def checked_numbers(z: np.ndarray, where: str) -> np.ndarray:
    """Atomic numbers as uint8. Raises DataError that names the first value outside 1…118."""
    z = require_numbers(np.asarray(z), f"{where}: the list of elements").reshape(-1)
    with np.errstate(invalid="ignore"):  # NaN and infinity are no whole numbers
        whole = z.astype(np.int64)
    bad = (whole != z) | (whole < 1) | (whole >= len(SYMBOLS))
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise DataError(f"{where}: unknown element: atomic number {z[i]} at atom {i}")
    return whole.astype(np.uint8)


def require_finite(
    array: np.ndarray, what: str, where: str, row: str = "row", first: int = 0
) -> None:
    """Raise DataError naming the first row of ``array`` (along axis 0, counted from ``first``)
    that holds NaN or infinity.
    """
    require_numbers(array, f"{where}: {what}")
    if np.isfinite(array).all():
        return
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
    raise DataError(
        f"{where}: {what} of {row} {first + int(np.flatnonzero(bad)[0])} is not a finite number"
    )


def dataset(group: h5py.Group, key: str, path: Path) -> h5py.Dataset:
    """``group[key]``, or DataError that says which keys there are."""
    found = group.get(key)  # once: each look-up opens the object anew
    if not isinstance(found, h5py.Dataset):
        raise DataError(
            f"{path}: group {group.name} has no {key!r} (it has: {', '.join(group) or 'nothing'})"
        )
    return found


def groups_with(file: h5py.File, key: str, path: Path) -> Iterator[h5py.Group]:
    """All groups, at any depth and in file order, that hold ``key``; a group that holds data sets
    but not ``key`` comes too. Raises DataError for links that lead nowhere or out of the file.
    """
    for group, others in walk_groups(file, path):
        if key in group or others:
            yield group


def text_of(value: Any) -> str:
    """A name or a unit from an .npz or HDF5 file: text, bytes, or an array of one of them."""
    values = np.asarray(value).reshape(-1)
    if not values.size:
        return ""
    value = values[0]
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


class Units(NamedTuple):
    """Factors that turn what a file holds into Å, eV and eV/Å."""

    length: float
    energy: float
    forces: float


def chosen_units(
    length_unit: str | None,
    energy_unit: str | None,
    forces_unit: str | None,
    length: str = "Å",
    energy: str = "eV",
) -> Units:
    """The units of a file: those that were given, else ``length`` and ``energy``. Forces are energy
    over length unless ``forces_unit`` says otherwise. Raises DataError for an unknown unit, and for
    a unit of another kind than asked for.
    """
    of_length = units.factor(length_unit or length, "length")
    of_energy = units.factor(energy_unit or energy, "energy")
    of_forces = units.factor(forces_unit, "forces") if forces_unit else of_energy / of_length
    return Units(of_length, of_energy, of_forces)


def unit_of_totals(structures: Structures) -> str | None:
    """The unit in which the energies, taken for eV, would be all-electron total energies:
    "hartree", "kcal/mol", "kj/mol", "ev", or None where no unit fits.

    The totals per element come from a least-squares fit of energies over compositions; each must be
    within a quarter of what such an atom has in that unit. Where compositions do not tell the
    elements apart, the sum over the atoms is compared alone.
    """
    if structures.energy is None or not len(structures):
        return None
    rows = np.flatnonzero(structures.labelled("energy"))[:5000]
    elements = structures.elements  # of all structures: those looked at may lack one
    counts = composition(structures[rows], elements).astype(np.float64)
    energy = structures.energy[rows]
    if not len(rows):
        return None
    there = counts.any(0)
    counts, elements = counts[:, there], np.array(elements)[there]
    expected = 0.5 * elements.astype(np.float64) ** 2.4 * units.HARTREE  # eV
    kinds = np.unique(counts, axis=0)
    if np.linalg.matrix_rank(kinds) == counts.shape[1] and len(kinds) > counts.shape[1]:
        fitted, *_ = np.linalg.lstsq(counts, energy, rcond=None)
        heavy = elements > 1  # hydrogen takes up what the others leave
        share = -(fitted / expected)[heavy if heavy.any() else slice(None)]
    else:
        share = np.array([np.median(-energy / (counts @ expected))])
    for unit in TOTAL_ENERGY_UNITS:
        if (np.abs(share * units.factor(unit) - 1) < 0.25).all():
            return unit
    return None


def named_stress(
    values: Mapping[str, Any],
    key: str,
    cell: np.ndarray | None,  # [3, 3] Å
    where: str,
    factors: Units,
) -> np.ndarray:
    """The stress [3, 3] eV/Å³ behind ``key``: a virial where its name says so, else a stress; six
    numbers in Voigt's order, or nine, or a text of these.

    ``factors`` bring the file's units to eV and Å. Raises DataError.
    """
    value = values[key]
    try:
        if isinstance(value, str):
            value = re.split(r"[\s,\[\]]+", value.strip(" [],"))
        numbers = np.array(value, np.float64)
    except (TypeError, ValueError):
        raise DataError(f"{where}: {key}={values[key]!r} is not six or nine numbers") from None
    if not np.isfinite(numbers).all() or numbers.size not in (6, 9):
        raise DataError(f"{where}: {key}={values[key]!r} is not six or nine finite numbers")
    if "virial" in key.lower():
        return factors.energy * stress_of_virial(numbers, cell)
    return factors.energy / factors.length**3 * full_stress(numbers)


class NpyRows:
    """An array inside an .npz file, read some rows at a time: the file may be larger than the
    memory it is packed into.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key
        self._stack = ExitStack()
        try:
            with self._reading():
                archive = self._stack.enter_context(zipfile.ZipFile(path))
                member = self._stack.enter_context(npz_member(archive, key, path))
            self._file, self.shape, fortran, self.dtype = member
            require_numbers(np.empty(0, self.dtype), f"{path}: {key}")
        except BaseException:
            self._stack.close()
            raise
        # columns lie far apart in the file: all of them are read at once
        self._whole = read_npz(path, [key])[key] if fortran else None
        self._next = 0

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except DataError:
            raise
        except (*UNREADABLE, KeyError) as error:
            raise DataError(
                f"{self._path}: .npz file is truncated or damaged at {self._key} "
                f"({first_line(error)})"
            ) from error

    def take(self, rows: int) -> np.ndarray:
        """The next ``rows`` rows. Raises DataError if the file ends before."""
        if self._whole is not None:
            self._next += rows
            return self._whole[self._next - rows : self._next]
        size = rows * int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        with self._reading():
            data = self._file.read(size)
            if len(data) < size:
                raise EOFError(f"{len(data)} of {size} bytes")
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])

    def close(self) -> None:
        """Close the file."""
        self._stack.close()


def npz_names(path: Path) -> set[str]:
    """The array names in an .npz file without reading them; empty if it is not one."""
    try:
        with zipfile.ZipFile(path) as file:
            return {n[:-4] for n in file.namelist() if n.endswith(".npy")}
    except (*UNREADABLE, UnicodeDecodeError):
        return set()


def energy_unit_from_size(z: np.ndarray, energy: float) -> str | None:
    """The unit in which ``energy`` would be the all-electron total energy of atoms ``z``; None if
    no unit fits within 15 %.
    """
    expected = -0.5 * float(np.sum(np.asarray(z, np.float64) ** 2.4))
    for unit in TOTAL_ENERGY_UNITS:
        if abs(energy * units.factor(unit) / (expected * units.HARTREE) - 1) < 0.15:
            return unit
    return None


def sized(z: np.ndarray, energy: Any, where: str, key: str | None) -> Any:
    """``energy`` (one, or the first of [n]) of atoms ``z``, unless it cannot be eV: more binding
    than all electrons have is kcal/mol or kJ/mol. Less is common: pseudopotentials, formation
    energies. Raises DataError.
    """
    first = float(np.asarray(energy).reshape(-1)[0])
    unit = energy_unit_from_size(z, first)
    if unit in ("kcal/mol", "kj/mol"):
        raise DataError(
            f"{where}: {key}={first:.10g} is the size of {unit}, not eV; give energy_unit= "
            "(--energy-unit) of the file"
        )
    return energy


def system_name(z: np.ndarray) -> str:
    """The name a system gets when the file gives none: its formula."""
    return _formula(np.sort(z).astype(np.uint8).tobytes())


@lru_cache(maxsize=100_000)
def _formula(z: bytes) -> str:
    return formula(np.frombuffer(z, np.uint8))
