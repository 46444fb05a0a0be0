"""The packed store of structures, and the batch a network sees.

All structures of a set lie end to end in a few flat arrays: structure ``i`` owns atoms
``ptr[i]:ptr[i+1]``. Nothing is held per structure, so a set can be memory-mapped, moved to a GPU
whole, and cut into batches by index arithmetic alone. Opening and cutting needs numpy only: torch
is imported by `Structures.gather`, PyG by `Structures.batch`.
"""

from __future__ import annotations

import dataclasses
import hashlib
import html
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError
from . import ase_io, splits, storage
from .arrays import ARRAYS, MAIN_LABELS, PER_ATOM, PER_STRUCTURE, SINGLE, cast
from .elements import MAX_Z, SYMBOLS

if TYPE_CHECKING:
    import torch

    from .batch import Batch

WHOLE = ("z", "system", "molecule", "formal_charge")  # what a batch holds as long
REAL = ("pos", "forces", "cell", "charge", "stress")  # and what in its floating-point precision
# up to so many structures are read one by one from the large arrays of a mapped store; more go
# through the mapping
RUNS = 20_000
# bytes up to which an array of a mapped store is small: that much of it may become resident
MAPPED = 10_000_000


def __getattr__(name: str) -> Any:
    # PyG takes seconds and hundreds of MB to import: only who uses batches pays
    if name == "Batch":
        from .batch import Batch

        return Batch
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _array(name: str, value: Any) -> np.ndarray:
    """``value`` as an array; DataError where nested lists have rows of different lengths."""
    if isinstance(value, np.ndarray):
        return value
    try:
        return np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"{name}: its rows have different lengths or are no numbers") from None


def _not_numbers(array: np.ndarray) -> np.ndarray:
    """Which rows of ``array`` hold what single precision has no number for: [rows] bool."""
    good = np.abs(array) <= SINGLE  # False for NaN and infinity
    return ~good.all(axis=tuple(range(1, array.ndim)))


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where a batch comes from: the name of its set and of each structure's system."""

    name: str
    systems: tuple[str, ...]


class Structures:
    """Many structures in flat arrays; see the contract in the module's docstring.

    z         [A] uint8
    pos       [A, 3] float, Å
    ptr       [S + 1] int64
    energy    [S] float64, eV, or None
    forces    [A, 3] float, eV/Å, or None
    cell      [S, 3, 3] float64, Å, or None; rows are lattice vectors, zeros where there is no cell
    pbc       [S, 3] bool
    charge    [S] int16, e
    system    [S] int32; structures of one chemical species or one trajectory share a number
    molecule  [A] int32; bonded group, numbered from 0 in each structure
    formal_charge [A] int8, e, of each atom in its Lewis structure, or None where that is not known
    stress    [S, 3, 3] float64, eV/Å³, or None; 1/V ∂E/∂ε (ASE's sign); NaN where there is none

    Sets may be partly labelled: ``info["partly_labelled"]`` names the labels that some structures
    lack, whose rows are NaN; `labelled` says which structures have one. Else a NaN is an error.
    ``info`` holds what JSON can: name, level of theory, ``systems`` (a name per system) … With
    ``checked`` the values (not the shapes) are known to be right and are not looked at, so that
    opening a store does not read it. Raises DataError where shapes or elements do not fit,
    or where a value has another meaning in the array's type (see `arrays.cast`).
    """

    def __init__(
        self,
        z: np.ndarray,
        pos: np.ndarray,
        ptr: np.ndarray,
        energy: np.ndarray | None = None,
        forces: np.ndarray | None = None,
        cell: np.ndarray | None = None,
        pbc: np.ndarray | None = None,
        charge: np.ndarray | None = None,
        system: np.ndarray | None = None,
        molecule: np.ndarray | None = None,
        info: dict[str, Any] | None = None,
        checked: bool = False,
        formal_charge: np.ndarray | None = None,
        stress: np.ndarray | None = None,
    ) -> None:
        self.ptr = cast("ptr", ptr, np.int64)
        well_formed = (
            self.ptr.ndim == 1
            and len(self.ptr) > 0
            and self.ptr[0] == 0
            and self.ptr[-1] >= 0
            and (checked or self._ptr_rises())
        )
        if not well_formed:
            raise DataError(
                f"ptr must be a rising array that starts at 0, got shape {self.ptr.shape}"
            )
        n_structures = len(self.ptr) - 1
        n_atoms = int(self.ptr[-1])

        def take(
            name: str, value: Any, dtype: Any, shape: tuple[int, ...], default: Any = None
        ) -> Any:
            if value is None:
                return None if default is None else np.full(shape, default, dtype)
            value = _array(name, value)
            if value.shape != shape:
                raise DataError(f"{name} must have shape {shape}, got {value.shape}")
            return cast(name, value, dtype, self.ptr)

        def floating(value: Any) -> Any:
            """Real numbers keep the precision they come in."""
            if value is None:
                return None
            return np.float32 if _array("pos", value).dtype.itemsize <= 4 else np.float64

        z = _array("z", z)
        if z.dtype.kind not in "ui":
            z = cast("z", z, np.int64, self.ptr)
        if not checked:
            self._check_elements(z)
        self.z = take("z", z, np.uint8, (n_atoms,))
        self.pos = take("pos", pos, floating(pos), (n_atoms, 3))
        self.energy = take("energy", energy, np.float64, (n_structures,))
        self.forces = take("forces", forces, floating(forces), (n_atoms, 3))
        self.cell = take("cell", cell, np.float64, (n_structures, 3, 3))
        self.pbc = take("pbc", pbc, np.bool_, (n_structures, 3), False)
        self.charge = take("charge", charge, np.int16, (n_structures,), 0)
        self.system = take("system", system, np.int32, (n_structures,), 0)
        self.molecule = take("molecule", molecule, np.int32, (n_atoms,), 0)
        self.formal_charge = take("formal_charge", formal_charge, np.int8, (n_atoms,))
        self.stress = take("stress", stress, np.float64, (n_structures, 3, 3))
        if self.cell is None and not checked and self.pbc.any():
            raise DataError("pbc is true somewhere but no cell was given")
        self._checked = not checked
        self.info: dict[str, Any] = dict(info or {})
        self._resident: dict[str, dict[str, torch.Tensor]] = {}
        self._files: dict[str, storage.Rows] = {}  # of the arrays that are mapped

    def _ptr_rises(self) -> bool:
        pieces = storage.pieces(self.ptr, overlap=1)
        return all((np.diff(piece) >= 0).all() for piece in pieces)

    def _check_elements(self, z: np.ndarray) -> None:
        for k, part in enumerate(storage.pieces(z)):
            if part.min() < 1 or part.max() > MAX_Z:
                at = int(np.flatnonzero((part < 1) | (part > MAX_Z))[0])
                row = at + k * storage.SCAN
                owner = int(np.searchsorted(self.ptr, row, "right")) - 1
                atom = row - int(self.ptr[owner])
                raise DataError(
                    f"structure {owner}: atomic number {int(part[at])} of atom {atom} is not in "
                    f"1…{MAX_Z}"
                )

    def __getstate__(self) -> dict[str, Any]:
        if self._files:
            folder = next(iter(self._files.values())).path.parent
            if self.lies_in(folder):  # the other process maps it as well
                return {"store": folder, "info": self.info}
        # copies on a device do not travel to other processes
        return {**self.__dict__, "_resident": {}, "_files": {}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "store" in state:
            state = Structures.open(state["store"]).__dict__ | {"info": state["info"]}
        self.__dict__.update(state)

    # -- size and looks ---------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self.ptr) - 1

    @property
    def n_atoms(self) -> np.ndarray:
        """Atoms per structure, [S]."""
        return np.diff(self.ptr)

    @property
    def elements(self) -> list[int]:
        """The atomic numbers that occur, rising."""
        counts = np.zeros(MAX_Z + 1, np.int64)
        for piece in storage.pieces(self.z):  # NumPy counts in copies of eight bytes an atom
            counts += np.bincount(piece, minlength=MAX_Z + 1)
        return np.flatnonzero(counts).tolist()

    @property
    def partly_labelled(self) -> tuple[str, ...]:
        """Those of "energy" and "forces" that some structures may lack, whose rows are NaN."""
        named = self.info.get("partly_labelled", ())
        return tuple(
            name for name in MAIN_LABELS if name in named and getattr(self, name) is not None
        )

    def labelled(self, name: str, rows: Any = slice(None)) -> np.ndarray:
        """Which structures have the label ``name``, "energy" or "forces": [S] bool, or that of
        ``rows`` alone.
        """
        array = getattr(self, name)
        count = self.ptr[:-1][rows].shape
        if array is None or name not in self.partly_labelled:
            return np.full(count, array is not None)
        if name == "energy":
            return ~np.isnan(array[rows])
        first = np.minimum(self.ptr[:-1][rows], max(len(array) - 1, 0))
        return ~np.isnan(array[first, 0])

    def system_names(self) -> list[str]:
        """A name for every system number up to the largest in use."""
        named = list(self.info.get("systems", []))
        top = int(self.system.max()) + 1 if len(self) else 0
        return named + [f"system-{i}" for i in range(len(named), top)]

    def __repr__(self) -> str:
        name = self.info.get("name", "unnamed")
        systems = len(np.unique(self.system))
        elements = " ".join(SYMBOLS[z] for z in self.elements)
        sizes = self.n_atoms
        atoms = "no atoms" if not len(self) else f"{sizes.min()}–{sizes.max()} atoms"
        has = [n for n in ("energy", "forces", "stress", "cell") if getattr(self, n) is not None]
        for label in self.partly_labelled:
            have = int(self.labelled(label).sum())
            if have < len(self):
                has[has.index(label)] = f"{label} of {have:,}"
        return (
            f"Structures({name}: {len(self):,} structures of {systems:,} systems, {atoms}, "
            f"elements {elements}, with {', '.join(has) or 'positions only'})"
        )

    def _repr_html_(self) -> str:
        table = self.summary()
        more = f"<p>… {len(table) - 8} more systems</p>" if len(table) > 8 else ""
        first = table.head(8).to_html(float_format="%.4g")  # pandas escapes what it shows
        return f"<p><b>{html.escape(repr(self))}</b></p>{first}{more}"

    def summary(self):
        """A DataFrame with a row per system: structures, atoms, formula of the first, energy
        (eV/atom) and forces (eV/Å).
        """
        return ase_io.summary(self)

    # -- selecting and joining --------------------------------------------------------------------
    def _rows(self, key: Any) -> np.ndarray:
        """``key`` (number, slice, numbers, mask) as row numbers ≥ 0."""
        if isinstance(key, (int, np.integer)):
            if not -len(self) <= key < len(self):
                raise IndexError(f"structure {key} of {len(self)}")
            return np.array([int(key) % len(self)])
        if isinstance(key, slice):
            return np.arange(*key.indices(len(self)))
        key = np.asarray(key.cpu() if hasattr(key, "cpu") else key)  # a tensor may be on a device
        if key.dtype == bool:
            if key.shape != (len(self),):
                raise IndexError(f"a mask of shape {key.shape} for {len(self)} structures")
            return np.flatnonzero(key)
        rows = key.astype(np.int64, casting="same_kind") if key.size else np.zeros(0, np.int64)
        if rows.size and rows.max() >= len(self):
            raise IndexError(f"structure {int(rows.max())} of {len(self)}")
        if rows.size and rows.min() < -len(self):
            raise IndexError(f"structure {int(rows.min())} of {len(self)}")
        return np.where(rows < 0, rows + len(self), rows)

    def _cut(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """All arrays that are there, reduced to the structures ``rows``, copied."""
        files = self._files if len(rows) <= RUNS else {}

        def source(name: str) -> storage.Rows | None:
            """The file to read ``name`` from, or None where the array itself is the better way."""
            file, array = files.get(name), getattr(self, name)
            if file is None or file.array is not array or array.nbytes <= MAPPED:
                return None
            return file

        if (ptr := source("ptr")) is not None:
            bounds = ptr.take(rows, np.full(len(rows), 2)).reshape(-1, 2)
            starts = bounds[:, 0]
            counts = bounds[:, 1] - starts
        else:
            starts = self.ptr.take(rows)
            counts = self.ptr.take(rows + 1) - starts
        out = {"ptr": np.concatenate([[0], np.cumsum(counts)])}
        atoms = None
        for name in PER_ATOM + PER_STRUCTURE:
            if (array := getattr(self, name)) is None:
                continue
            if (file := source(name)) is not None:
                runs = (starts, counts) if name in PER_ATOM else (rows, np.ones_like(rows))
                out[name] = file.take(*runs)
            elif name in PER_ATOM:
                atoms = storage.spread(starts, counts) if atoms is None else atoms
                out[name] = np.asarray(array.take(atoms, axis=0))
            else:
                out[name] = np.asarray(array.take(rows, axis=0))
        return out

    def __getitem__(
        self, key: int | slice | Sequence[int] | np.ndarray | torch.Tensor
    ) -> Structures:
        return Structures(info=self.info, **self._cut(self._rows(key)))

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __add__(self, other: Structures) -> Structures:
        return concatenate([self, other])

    def split(
        self,
        fractions: Sequence[float | int | None] = (0.8, 0.1, 0.1),
        seed: int = 0,
        by: str = "structure",
        block: int | None = None,
        gap: int = 0,
        rounding: str = "drawn",
    ) -> tuple[Structures, ...]:
        """Disjoint random parts. ``by``: "structure", "system" (no system in two parts),
        "structure-within-system", or "block".

        The last is for trajectories: blocks of ``block`` successive structures (default: a
        twentieth of each system), with ``gap`` left out between parts. ``rounding``: who gets what
        shares leave, "drawn" or "floor" (the first part); see `potkit.structures.splits.split`.
        """
        parts = splits.split(self, fractions, seed, by, block, gap, rounding)
        return tuple(self[rows] for rows in parts)

    # -- files ------------------------------------------------------------------------------------
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by name."""
        return {n: getattr(self, n) for n in ARRAYS if getattr(self, n) is not None}

    def save(self, path: str | Path) -> Path:
        """Write to ``path``: a folder of .npy files that can be memory-mapped, or one compressed
        file if it ends in ``.h5``.
        """
        return storage.save(Path(path), self.arrays(), self.info)

    @classmethod
    def open(cls, path: str | Path, mmap: bool = True) -> Structures:
        """Open what `save` wrote; a folder is memory-mapped unless ``mmap=False``, in time and
        memory that do not grow with it.
        """
        arrays, info = storage.open_(Path(path), mmap)
        for name in ("ptr", "z", "pos"):
            if name not in arrays:
                raise DataError(f"{path}: array {name} is missing")
        for name in arrays:
            if name not in ARRAYS:
                raise DataError(f"{path}: array {name} is unknown")
        mapped = mmap and Path(path).is_dir()
        try:
            out = cls(**arrays, info=info, checked=mapped)  # what `save` wrote was checked
        except DataError as error:
            raise DataError(f"{path}: {error}") from None
        if mapped and hasattr(os, "preadv"):
            for name, source in arrays.items():
                if isinstance(source, np.memmap):
                    file = Path(source.filename)
                    out._files[name] = storage.Rows(getattr(out, name), file, source.offset)
        return out

    def lies_in(self, path: str | Path) -> bool:
        """Whether this is the unchanged, memory-mapped content of the store folder ``path``, all of
        it.
        """
        unchanged = {n: file for n, file in self._files.items() if file.array is getattr(self, n)}
        folders = {os.path.realpath(file.path.parent) for file in unchanged.values()}
        whole = unchanged.keys() == self.arrays().keys() == self._files.keys()
        return whole and folders == {os.path.realpath(path)}

    def fingerprint(self) -> str:
        """A hash of the content (arrays, not ``info``): 16 hex digits. Computed once per object."""
        if not hasattr(self, "_fingerprint"):
            digest = hashlib.blake2b(digest_size=8)
            for name, array in self.arrays().items():
                digest.update(f"{name}{array.dtype}{array.shape}".encode())
                digest.update(np.ascontiguousarray(array))
            self._fingerprint = digest.hexdigest()
        return self._fingerprint

    def validate(self) -> Structures:
        """Raise DataError that names the first structure holding NaN or infinity, no atoms or an
        unknown element; return self.
        """
        where = self.info.get("name", "structures")
        if not self._checked:  # opened from a store, unseen
            if not self._ptr_rises():
                raise DataError(f"{where}: ptr is not a rising array: the store is damaged")
            self._check_elements(self.z)
        for name in ("pos", "forces", "energy", "cell"):
            array = getattr(self, name)
            if array is None:
                continue
            pieces = [_not_numbers(piece) for piece in storage.pieces(array)]
            bad = np.concatenate(pieces) if pieces else np.zeros(0, bool)
            if name in self.partly_labelled:  # no label at all is no fault
                none = np.isnan(array).reshape(len(array), -1).all(1)
                if name == "forces" and len(array):
                    counts = self.n_atoms
                    whole = np.add.reduceat(none, self.ptr[:-1][counts > 0]) == counts[counts > 0]
                    none &= np.repeat(whole, counts[counts > 0])
                bad &= ~none
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                atomwise = name in PER_ATOM
                owner = int(np.searchsorted(self.ptr, row, "right")) - 1 if atomwise else row
                place = f", atom {row - int(self.ptr[owner])}" if atomwise else ""
                what = "is not a finite number"
                if np.isfinite(array[row]).all():
                    # networks see single precision
                    what = f"is beyond ±{SINGLE:.2g}, the largest number of single precision"
                raise DataError(f"{where}: {name} of structure {owner}{place} {what}")
        if self.stress is not None:
            self._check_stress(where)
        empty = np.flatnonzero(self.n_atoms == 0)
        if len(empty):
            raise DataError(f"{where}: structure {int(empty[0])} has no atoms")
        return self

    def _check_stress(self, where: str) -> None:
        finite = np.isfinite(self.stress).all((1, 2))
        bad = ~(finite | np.isnan(self.stress).all((1, 2)))
        if bad.any():
            raise DataError(
                f"{where}: stress of structure {int(np.flatnonzero(bad)[0])} is not nine finite "
                "numbers (nor nine NaN, for none)"
            )

    # -- batches ----------------------------------------------------------------------------------
    def to(self, device: str | torch.device) -> Structures:
        """Keep a copy of the arrays on ``device``, so that `batch` gathers there; "cpu" brings a
        mapped store into memory. Returns self.
        """
        import torch

        device = torch.device(device)
        if device.type == "cpu":
            for name, source in self._files.items():
                if source.array is getattr(self, name):
                    setattr(self, name, np.array(source.array))
            self._files = {}
        else:
            self._tensors(device)
        return self

    def _tensors(self, device: torch.device) -> dict[str, torch.Tensor]:
        import torch

        if str(device) not in self._resident:
            self._resident[str(device)] = {
                name: torch.from_numpy(storage.writeable(array)).to(device)
                for name, array in self.arrays().items()
                if name != "ptr"
            }
        return self._resident[str(device)]

    def gather(
        self,
        indices: Sequence[int] | np.ndarray | torch.Tensor | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> dict[str, Any]:
        """What `batch` makes a ``Data`` of, as a plain dict; for code that does without PyG.
        Arguments as there.
        """
        import torch

        device = torch.device(device)
        dtype = dtype or torch.get_default_dtype()
        if indices is None:
            rows = np.arange(len(self))
        else:
            rows = np.atleast_1d(np.asarray(indices, np.int64))
        # seen without sign, a negative number is huge
        if len(rows) and int(rows.view(np.uint64).max()) >= len(self):
            offending = int(rows.min() if rows.min() < 0 else rows.max())
            raise DataError(f"batch asks for structure {offending} of {len(self)}")

        def move(array: np.ndarray) -> torch.Tensor:
            tensor = torch.from_numpy(array)
            if device.type == "cpu":
                return tensor
            return tensor.pin_memory().to(device, non_blocking=True)

        if str(device) in self._resident:
            starts = self.ptr[rows]
            counts = self.ptr[rows + 1] - starts
            host = {
                "ptr": np.concatenate([[0], np.cumsum(counts)]),
                "pbc": self.pbc[rows],
                "system": self.system[rows],
            }
            atom_rows = move(storage.spread(starts, counts))
            structure_rows = move(rows)
            out = {}
            for name, tensor in self._tensors(device).items():
                chosen = atom_rows if name in PER_ATOM else structure_rows
                out[name] = tensor.index_select(0, chosen)
            for name in WHOLE:
                if name in out:
                    out[name] = out[name].long()
            out["ptr"] = move(host["ptr"])
        else:  # numpy takes and casts in a fraction of the time that torch needs for as little
            host = self._cut(rows)
            out = {n: move(a.astype(np.int64) if n in WHOLE else a) for n, a in host.items()}
        out |= {n: out[n].to(dtype) for n in REAL if n in out and out[n].dtype != dtype}
        counts = np.diff(host["ptr"])
        total = int(host["ptr"][-1])
        out["batch"] = move(np.repeat(np.arange(len(rows)), counts))
        out["mask"] = torch.zeros(total, dtype=torch.long, device=device)
        out["num_nodes"] = total
        out["max_atoms"] = int(counts.max()) if len(counts) else 0
        for name in self.partly_labelled:
            out[f"has_{name}"] = move(self.labelled(name, rows))
        out["periodic"] = self.cell is not None and bool(host["pbc"].any())
        out["indices"] = rows
        numbers = host["system"].tolist()
        try:
            labels = tuple(map(self.info.get("systems", ()).__getitem__, numbers))
        except IndexError:  # not all systems have names
            labels = tuple(map(self.system_names().__getitem__, numbers))
        out["origin"] = Origin(str(self.info.get("name", "")), labels)
        return out

    def batch(
        self,
        indices: Sequence[int] | np.ndarray | torch.Tensor | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Batch:
        """The structures at ``indices`` (default: all) as one PyG ``Data``; floats in ``dtype``
        (default: torch's), energy float64.

        Gathered on ``device`` if the set was moved there by `to`, else on the CPU and copied. Never
        waits for the device.
        """
        from .batch import Batch

        return Batch.of(self.gather(indices, device, dtype))

    # -- ASE --------------------------------------------------------------------------------------
    def to_ase(self) -> list:
        """A list of `ase.Atoms` with energy, forces and stress in a SinglePointCalculator."""
        return ase_io.to_ase(self)

    @classmethod
    def from_ase(
        cls, frames: Sequence, info: dict[str, Any] | None = None, dtype: Any = np.float64
    ) -> Structures:
        """From `ase.Atoms`: energy (eV), forces (eV/Å) and stress (eV/Å³) come from the attached
        calculator.

        They belong to the frame: a calculator that was called for other atoms since (one shared by
        many frames) is called again, and results that were kept with other positions are refused.
        Frames without a label make the set partly labelled. Raises DataError.
        """
        arrays = ase_io.arrays_from_ase(frames, dtype)
        info = arrays.pop("info") | dict(info or {})
        return cls(**arrays, info=info).validate()


def concatenate(parts: Sequence[Structures], missing: str = "keep") -> Structures:
    """Join sets end to end; systems are matched by name. Formal charges stay only if every part has
    them; the structures of a part without stress have NaN if another has one.

    ``missing``: where some parts have no energies or forces, "keep" those of the others (the set is
    then partly labelled) or "drop" them.
    """
    parts = list(parts)
    if not parts:
        raise DataError("nothing to join: the list of structure sets is empty")
    names: dict[str, int] = {}
    systems = []
    for k, part in enumerate(parts):
        named = bool(part.info.get("systems"))
        local = [n if named else f"{part.info.get('name', k)}:{n}" for n in part.system_names()]
        table = np.array([names.setdefault(n, len(names)) for n in local] or [0], np.int32)
        systems.append(table[part.system])
    periodic = any(p.cell is not None for p in parts)
    joined: dict[str, Any] = {}
    partly = set().union(*(p.partly_labelled for p in parts))
    for name in ("z", "pos", "molecule", "pbc", "charge", "energy", "forces", "formal_charge"):
        arrays = [getattr(p, name) for p in parts]
        lacking = [array is None for array in arrays]
        if name in MAIN_LABELS and missing == "keep" and any(lacking) and not all(lacking):
            partly.add(name)
            arrays = [
                _nothing(p, name) if a is None else a for p, a in zip(parts, arrays, strict=True)
            ]
        joined[name] = None if any(a is None for a in arrays) else np.concatenate(arrays)
    if periodic:
        cells = [np.zeros((len(p), 3, 3)) if p.cell is None else p.cell for p in parts]
        joined["cell"] = np.concatenate(cells)
    if any(p.stress is not None for p in parts):
        absent = [np.full((len(p), 3, 3), np.nan) for p in parts]
        stresses = [a if p.stress is None else p.stress for p, a in zip(parts, absent, strict=True)]
        joined["stress"] = np.concatenate(stresses)
    info = _common_info([p.info for p in parts])
    info["systems"] = list(names)
    if partly:
        info["partly_labelled"] = [name for name in MAIN_LABELS if name in partly]
    counts = np.concatenate([p.n_atoms for p in parts])
    ptr = np.concatenate([[0], np.cumsum(counts)])
    return Structures(ptr=ptr, system=np.concatenate(systems), info=info, **joined)


def _nothing(part: Structures, name: str) -> np.ndarray:
    """NaN in the place of the label ``name`` of ``part``."""
    if name == "energy":
        return np.full(len(part), np.nan)
    return np.full(part.pos.shape, np.nan, part.pos.dtype)


def _common_info(infos: list[dict[str, Any]]) -> dict[str, Any]:
    """What the ``infos`` of sets that are joined agree on, under their joined names."""
    first = infos[0]
    if len({json.dumps(info, sort_keys=True, default=str) for info in infos}) == 1:
        return dict(first)
    names = dict.fromkeys(str(info.get("name", "unnamed")) for info in infos)
    common = {"name": " + ".join(names)}
    for key, value in first.items():
        if key != "name" and all(info.get(key) == value for info in infos):
            common[key] = value
    return common
