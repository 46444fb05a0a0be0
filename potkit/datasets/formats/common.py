"""What the readers share: element names, one-line errors for HDF5 and for numbers that are not
finite.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ... import units
from ...errors import DataError
from ...structures.elements import SYMBOLS, formula

NUMBERS: dict[str, int] = {symbol: i for i, symbol in enumerate(SYMBOLS) if i}
# total (all-electron) energies of atoms follow roughly −½ Z^2.4 Hartree (H −0.50, C −36.9, O −73.5,
# true −0.50, −37.8, −75.1): coarse, yet Hartree, eV, kcal/mol and kJ/mol lie factors of 4 to 27
# apart
TOTAL_ENERGY_UNITS = ("hartree", "ev", "kcal/mol", "kj/mol")


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
    z = np.asarray(z).reshape(-1)
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
    if np.isfinite(array).all():
        return
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
    raise DataError(
        f"{where}: {what} of {row} {first + int(np.flatnonzero(bad)[0])} is not a finite number"
    )


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file open for reading; whatever HDF5 complains about becomes one line that names the
    file.
    """
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(
            f"{path}: HDF5 file is truncated or damaged ({_first_line(error)})"
        ) from error
    with file:
        yield file


def dataset(group: h5py.Group, key: str, path: Path) -> h5py.Dataset:
    """``group[key]``, or DataError that says which keys there are."""
    if not isinstance(group.get(key), h5py.Dataset):
        raise DataError(
            f"{path}: group {group.name} has no {key!r} (it has: {', '.join(group) or 'nothing'})"
        )
    return group[key]


def load(data: h5py.Dataset, path: Path, rows: Any = ()) -> np.ndarray:
    """The content of ``data``. Raises DataError that names file and data set if it is damaged."""
    try:
        return data[rows]
    except (OSError, RuntimeError) as error:
        raise DataError(
            f"{path}: {data.name} cannot be read, the file is damaged ({_first_line(error)})"
        ) from error


def groups_with(file: h5py.File, key: str) -> Iterator[h5py.Group]:
    """All groups, at any depth and in file order, that hold ``key``; a group that holds data sets
    but not ``key`` comes too.
    """
    stack: list[h5py.Group] = [file]
    while stack:
        group = stack.pop()
        children = [group.get(name, getlink=True) and name for name in group]
        below = [name for name in children if group.get(name, getclass=True) is h5py.Group]
        if key in group or len(below) < len(children):
            yield group
        stack.extend(group[name] for name in reversed(below))


def load_npz(path: Path, keys: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of an .npz file (only ``keys`` that exist, if given). Raises DataError for a
    damaged file.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {k: file[k] for k in file.files if not keys or k in keys}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(
            f"{path}: .npz file is truncated or damaged ({_first_line(error)})"
        ) from error


class NpyRows:
    """An array inside an .npz file, read some rows at a time: the file may be larger than the
    memory it is packed into.
    """

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self._key = key
        with self._reading():
            self._zip = zipfile.ZipFile(path)
            self._file = self._zip.open(f"{key}.npy")
            read_header = np.lib.format.read_array_header_2_0
            if np.lib.format.read_magic(self._file) == (1, 0):
                read_header = np.lib.format.read_array_header_1_0
            self.shape, fortran, self.dtype = read_header(self._file)
        if fortran or self.dtype.hasobject:
            kind = "columns" if fortran else "objects"
            raise DataError(f"{path}: {key} is stored as {kind}, expected rows of numbers")

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
            raise DataError(
                f"{self._path}: .npz file is truncated or damaged at {self._key} "
                f"({_first_line(error)})"
            ) from error

    def take(self, rows: int) -> np.ndarray:
        """The next ``rows`` rows. Raises DataError if the file ends before."""
        size = rows * int(np.prod(self.shape[1:], dtype=np.int64)) * self.dtype.itemsize
        with self._reading():
            data = self._file.read(size)
            if len(data) < size:
                raise EOFError(f"{len(data)} of {size} bytes")
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        self._zip.close()


def npz_names(path: Path) -> set[str]:
    """The array names in an .npz file without reading them; empty if it is not one."""
    try:
        with zipfile.ZipFile(path) as file:
            return {n[:-4] for n in file.namelist() if n.endswith(".npy")}
    except (OSError, zipfile.BadZipFile):
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


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def system_name(z: np.ndarray) -> str:
    """The name a system gets when the file gives none: its formula."""
    return _formula(np.sort(z).astype(np.uint8).tobytes())


@lru_cache(maxsize=100_000)
def _formula(z: bytes) -> str:
    return formula(np.frombuffer(z, np.uint8))
