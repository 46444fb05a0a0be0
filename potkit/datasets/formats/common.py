"""What the readers share: growing packed arrays, element names, one-line errors for HDF5 and for numbers that are not finite."""

from __future__ import annotations

import zipfile
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Iterator, Sequence

import h5py
import numpy as np

from ... import units
from ...errors import DataError
from ...structures import SYMBOLS, Structures, formula

NUMBERS: dict[str, int] = {symbol: i for i, symbol in enumerate(SYMBOLS) if i}
# Total (all-electron) energies of atoms follow roughly −½ Z^2.4 Hartree (H −0.50, C −36.9, O −73.5, true −0.50, −37.8, −75.1):
# coarse, yet Hartree, eV, kcal/mol and kJ/mol lie factors of 4 to 27 apart.
TOTAL_ENERGY_UNITS = ("hartree", "ev", "kcal/mol", "kj/mol")


def numbers_of(symbols: Sequence[str | bytes], where: str) -> np.ndarray:
    """Atomic numbers [a] of element symbols ("C", b"C", " cl "). Raises DataError that names the first unknown one."""
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


def require_finite(array: np.ndarray, what: str, where: str, row: str = "row", first: int = 0) -> None:
    """Raise DataError naming the first row of ``array`` (along axis 0, counted from ``first``) that holds NaN or infinity."""
    if np.isfinite(array).all():
        return
    bad = ~np.isfinite(array.reshape(len(array), -1)).all(1)
    raise DataError(f"{where}: {what} of {row} {first + int(np.flatnonzero(bad)[0])} is not a finite number")


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file open for reading; whatever HDF5 complains about becomes one line that names the file."""
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path}: HDF5 file is truncated or damaged ({_first_line(error)})") from error
    with file:
        yield file


def dataset(group: h5py.Group, key: str, path: Path) -> h5py.Dataset:
    """``group[key]``, or DataError that says which keys there are."""
    if not isinstance(group.get(key), h5py.Dataset):
        raise DataError(f"{path}: group {group.name} has no {key!r} (it has: {', '.join(group) or 'nothing'})")
    return group[key]


def load(data: h5py.Dataset, path: Path, rows: Any = ()) -> np.ndarray:
    """The content of ``data``, or DataError that names file and data set if it cannot be decoded."""
    try:
        return data[rows]
    except (OSError, RuntimeError) as error:
        raise DataError(f"{path}: {data.name} cannot be read, the file is damaged ({_first_line(error)})") from error


def groups_with(file: h5py.File, key: str) -> Iterator[h5py.Group]:
    """All groups, at any depth and in file order, that hold ``key``; a group that holds data sets but not ``key`` comes too."""
    stack: list[h5py.Group] = [file]
    while stack:
        group = stack.pop()
        children = [group.get(name, getlink=True) and name for name in group]
        below = [name for name in children if group.get(name, getclass=True) is h5py.Group]
        if key in group or len(below) < len(children):
            yield group
        stack.extend(group[name] for name in reversed(below))


def load_npz(path: Path, keys: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """The arrays of an .npz file (only ``keys`` that exist, if given). Raises DataError for a damaged file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return {k: file[k] for k in file.files if not keys or k in keys}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zipfile.error) as error:  # type: ignore[misc]
        raise DataError(f"{path}: .npz file is truncated or damaged ({_first_line(error)})") from error


def npz_names(path: Path) -> set[str]:
    """The array names in an .npz file without reading them; empty if it is not one."""
    try:
        with zipfile.ZipFile(path) as file:
            return {n[:-4] for n in file.namelist() if n.endswith(".npy")}
    except (OSError, zipfile.BadZipFile):
        return set()


def energy_unit_from_size(z: np.ndarray, energy: float) -> str | None:
    """The unit in which ``energy`` would be the all-electron total energy of atoms ``z``; None if no unit fits within 15 %."""
    expected = -0.5 * float(np.sum(np.asarray(z, np.float64) ** 2.4))
    for unit in TOTAL_ENERGY_UNITS:
        if abs(energy * units.factor(unit) / (expected * units.HARTREE) - 1) < 0.15:
            return unit
    return None


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


class Packer:
    """Packed arrays that grow block by block; a block is n structures of the same a atoms.

    ``energy`` and ``forces`` survive only if every block brought them; what was dropped is told in ``info["notes"]``. Positions
    and forces are kept as ``dtype``, energies as float64. Growing uses realloc, so that memory stays near the packed result.
    """

    def __init__(self, dtype: Any = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        self.n_structures = self.n_atoms = 0
        self._structures = {"energy": np.empty(0), "charge": np.empty(0, np.int16), "system": np.empty(0, np.int32)}
        self._structures |= {"cell": np.empty((0, 3, 3)), "pbc": np.empty((0, 3), bool), "size": np.empty(0, np.int32)}
        self._atoms = {"z": np.empty(0, np.uint8), "pos": np.empty((0, 3), self.dtype), "forces": np.empty((0, 3), self.dtype)}
        self._atoms["molecule"] = np.empty(0, np.int32)
        self._without: dict[str, int] = {}
        self._systems: dict[Any, int] = {}
        self._labels: list[str] = []
        self._label_set: set[str] = set()
        self.notes: list[str] = []

    @staticmethod
    def _grow(arrays: dict[str, np.ndarray], needed: int, exact: bool = False) -> None:
        for name, array in arrays.items():
            if len(array) < needed or exact:
                size = needed if exact else max(needed, len(array) + len(array) // 2, 1024)
                array.resize((size,) + array.shape[1:], refcheck=False)

    def reserve(self, structures: int, atoms: int) -> None:
        """Make room for this many more, so that nothing is moved while reading."""
        self._grow(self._structures, self.n_structures + structures)
        self._grow(self._atoms, self.n_atoms + atoms)

    def has_system(self, key: Any) -> bool:
        """Whether ``key`` was seen before."""
        return key in self._systems

    def has_label(self, label: str) -> bool:
        """Whether a system already carries this name."""
        return label in self._label_set

    def system(self, key: Any, label: str | None = None) -> int:
        """The number of the system ``key``; a new one gets the next number and ``label``."""
        if key not in self._systems:
            self._systems[key] = len(self._labels)
            self._labels.append(str(key) if label is None else label)
            self._label_set.add(self._labels[-1])
        return self._systems[key]

    def add(
        self,
        z: np.ndarray,  # [a]
        pos: np.ndarray,  # [n,a,3] Å
        system: int | np.ndarray,  # one number or [n]
        energy: np.ndarray | None = None,  # [n] eV
        forces: np.ndarray | None = None,  # [n,a,3] eV/Å
        cell: np.ndarray | None = None,  # [3,3] or [n,3,3] Å
        pbc: Any = False,  # broadcast to [n,3]
        charge: Any = 0,  # broadcast to [n]
        molecule: Any = 0,  # broadcast to [n,a]
    ) -> None:
        """Append a block."""
        n, a = pos.shape[:2]
        s, t = slice(self.n_structures, self.n_structures + n), slice(self.n_atoms, self.n_atoms + n * a)
        self._grow(self._structures, s.stop)
        self._grow(self._atoms, t.stop)
        self._atoms["z"][t].reshape(n, a)[:] = z
        self._atoms["pos"][t].reshape(n, a, 3)[:] = pos
        self._atoms["molecule"][t].reshape(n, a)[:] = molecule
        for name, value, target in (
            ("energy", energy, self._structures["energy"][s]),
            ("forces", forces, self._atoms["forces"][t]),
        ):
            if value is None:
                target[:] = np.nan
                self._without[name] = self._without.get(name, 0) + n
            else:
                target[:] = np.asarray(value).reshape(target.shape)
        self._structures["cell"][s] = 0.0 if cell is None else cell
        self._structures["pbc"][s] = pbc
        self._structures["charge"][s] = charge
        self._structures["system"][s] = system
        self._structures["size"][s] = a
        self.n_structures, self.n_atoms = s.stop, t.stop

    def finish(self, where: str, **info: Any) -> Structures:
        """The packed `Structures`; ``info`` goes with it. Raises DataError if there is nothing."""
        if not self.n_structures:
            raise DataError(f"{where}: holds no structures")
        self._grow(self._structures, self.n_structures, exact=True)
        self._grow(self._atoms, self.n_atoms, exact=True)
        keep = dict(self._structures) | dict(self._atoms)
        for name, missing in self._without.items():
            if missing < self.n_structures:
                self.notes.append(f"{name} left out: {missing} of {self.n_structures} structures have none")
            keep[name] = None
        if not keep["pbc"].any():
            keep["cell"] = None  # a box around a molecule that does not repeat is not a property of the molecule
        ptr = np.concatenate([[0], np.cumsum(keep.pop("size"), dtype=np.int64)])
        info |= {"systems": self._labels, "units": {"length": "Å", "energy": "eV", "forces": "eV/Å"}}
        if self.notes:
            info["notes"] = self.notes
        return Structures(ptr=ptr, info=info, **keep)


def system_name(z: np.ndarray) -> str:
    """The name a system gets when the file gives none: its formula."""
    return _formula(np.sort(z).astype(np.uint8).tobytes())


@lru_cache(maxsize=100_000)
def _formula(z: bytes) -> str:
    return formula(np.frombuffer(z, np.uint8))
