"""Packed arrays that grow block by block: in memory, or, while `packing_into` says so, in a store
folder on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ...structures.array_files import require_numbers
from ...structures.arrays import MAIN_LABELS, PER_ATOM, SINGLE
from ...structures.progress import bar as progress_bar
from ...structures.storage import SCAN, StoreWriter, pieces
from ...structures.store import Structures
from . import label_names

MISSING = ("keep", "stop", "drop")  # what is done where only some structures have a label
HELD = 64 << 20  # bytes of atoms that wait in memory before they are written to a store
_target: _Target | None = None
_missing = "drop"  # so that registered sets stay what they were


def _first_beyond(array: np.ndarray, nan: bool) -> int | None:
    """The first row of ``array`` with a number that is not finite, or beyond single precision,
    which is what networks see; None if there is none. ``nan``: whether NaN is fine.
    """
    for k, part in enumerate(pieces(array)):
        if not part.size or max(part.max(), -part.min()) <= SINGLE:  # never true with NaN
            continue
        bad = ~(np.abs(part) <= SINGLE)
        bad &= ~(np.isnan(part) & nan)
        if bad.any():
            return k * SCAN + int(np.argmax(bad.reshape(len(part), -1).any(1)))
    return None


class _Target:
    """Where the next packer puts its structures. What it opened is closed, and removed unless
    finished, by ``stack``.
    """

    def __init__(self, path: Path, total: int | None, progress: bool, name: str | None) -> None:
        self.path = path
        self.total = total
        self.progress = progress
        self.name = name or path.name
        self.taken = False
        self.stack = ExitStack()


@contextmanager
def packing_into(
    path: str | Path, total: int | None = None, progress: bool = False, name: str | None = None
) -> Iterator[None]:
    """Inside this block the first reader packs straight into the store folder ``path``, in memory
    that does not grow with the set.

    What the reader returns is that store, memory-mapped. ``total``: how many structures to expect,
    for the progress bar, which calls the set ``name`` (default: the folder's). A reader that
    gathers several files with a packer each, or filters afterwards, returns what does not lie in
    ``path``: compare.
    """
    global _target
    before = _target
    _target = _Target(Path(path), total, progress, name)
    try:
        with _target.stack:
            yield
    finally:
        _target = before


@contextmanager
def missing_labels(policy: str) -> Iterator[None]:
    """Inside this block readers do as ``policy`` says where only some structures have energies or
    forces: "keep" what there is (the set is partly labelled), "stop" with DataError, or "drop" the
    label for all, with a note.
    """
    global _missing
    before, _missing = _missing, policy
    try:
        yield
    finally:
        _missing = before


class Packer:
    """Packed arrays that grow block by block; a block is n structures of the same a atoms.

    ``formal_charge`` survives only if every block brought it; of ``energy`` and ``forces`` see
    `missing_labels`; ``stress`` survives if any block brought one, NaN for the others. What was
    dropped is told in ``info["notes"]``. Positions and forces are kept as ``dtype``, energies as
    float64. Growing uses realloc, so that memory stays near the packed result.
    """

    def __init__(self, dtype: Any = np.float32) -> None:
        self.dtype = np.dtype(dtype)
        # all that were added
        self.n_structures = 0
        self.n_atoms = 0
        # those of them that are on disk already
        self._written_structures = 0
        self._written_atoms = 0
        self._structures = {
            "energy": np.empty(0),
            "charge": np.empty(0, np.int16),
            "system": np.empty(0, np.int32),
            "cell": np.empty((0, 3, 3)),
            "pbc": np.empty((0, 3), bool),
            "stress": np.empty((0, 3, 3)),
            "size": np.empty(0, np.int32),
        }
        self._atoms = {
            "z": np.empty(0, np.uint8),
            "pos": np.empty((0, 3), self.dtype),
            "forces": np.empty((0, 3), self.dtype),
            "molecule": np.empty(0, np.int32),
            "formal_charge": np.empty(0, np.int8),
        }
        self._without: dict[str, int] = {}
        self._systems: dict[Any, int] = {}
        self._labels: list[str] = []
        self._label_set: set[str] = set()
        self._periodic = self._stressed = False
        self.notes: list[str] = []
        self.labels: set[label_names.Chosen] = set()  # the names that labels had in the file
        self.isolated: list[int] = []  # structures that say they are isolated atoms
        self.unread: dict[str, str] = {}  # what looks like a label and is not read -> what it is
        self._target = self._writer = self._bar = None  # where a store on disk is written
        if _target is not None and not _target.taken:
            self._to_disk(_target)

    def _to_disk(self, target: _Target) -> None:
        target.taken = True
        self._target = target
        self._writer = target.stack.enter_context(StoreWriter(target.path))
        options = {"desc": f"packing {target.name}", "unit": " structures", "unit_scale": True}
        self._bar = target.stack.enter_context(
            progress_bar(total=target.total, shown=target.progress, **options)
        )

    @staticmethod
    def _grow(arrays: dict[str, np.ndarray], needed: int, exact: bool = False) -> None:
        for array in arrays.values():
            if len(array) < needed or exact:
                size = needed if exact else max(needed, len(array) + len(array) // 2, 1024)
                array.resize((size, *array.shape[1:]), refcheck=False)

    def reserve(self, structures: int, atoms: int) -> None:
        """Make room for this many more, so that nothing is moved while reading."""
        if self._writer is None:
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
        formal_charge: np.ndarray | None = None,  # [a] e
        stress: np.ndarray | None = None,  # [3,3] or [n,3,3] eV/Å³, NaN for none
    ) -> None:
        """Append a block. Raises DataError for arrays that are no real numbers, and if a store is
        being written and the disk is full; values that are too large for the arrays' types are
        named when the block goes to the disk or all is finished.
        """
        self._require_numbers(pos=pos, energy=energy, forces=forces, cell=cell, stress=stress)
        n, a = pos.shape[:2]
        first_structure = self.n_structures - self._written_structures
        first_atom = self.n_atoms - self._written_atoms
        s = slice(first_structure, first_structure + n)
        t = slice(first_atom, first_atom + n * a)
        self._grow(self._structures, s.stop)
        self._grow(self._atoms, t.stop)
        self._atoms["z"][t].reshape(n, a)[:] = z
        self._atoms["pos"][t].reshape(n, a, 3)[:] = pos
        self._atoms["molecule"][t].reshape(n, a)[:] = molecule
        if formal_charge is not None:
            formal_charge = np.broadcast_to(formal_charge, (n, a))
        for name, value, rows, absent in (
            ("energy", energy, self._structures["energy"][s], np.nan),
            ("forces", forces, self._atoms["forces"][t], np.nan),
            ("formal_charge", formal_charge, self._atoms["formal_charge"][t], 0),
        ):
            if value is None:
                rows[:] = absent
                self._without[name] = self._without.get(name, 0) + n
            else:
                rows[:] = np.asarray(value).reshape(rows.shape)
        self._structures["cell"][s] = 0.0 if cell is None else cell
        self._structures["pbc"][s] = pbc
        self._periodic = self._periodic or bool(np.any(pbc))
        # a structure that does not repeat has no stress
        stress = np.nan if stress is None or not np.any(pbc) else stress
        self._structures["stress"][s] = stress
        self._stressed = self._stressed or bool(np.isfinite(stress).any())
        self._structures["charge"][s] = charge
        self._structures["system"][s] = system
        self._structures["size"][s] = a
        self.n_structures += n
        self.n_atoms += n * a
        if self._writer is not None:
            self._bar.update(n)
            if t.stop * sum(x[:1].nbytes for x in self._atoms.values()) > HELD:
                self._write()

    def _require_numbers(self, **arrays: np.ndarray | None) -> None:
        for name, array in arrays.items():
            if isinstance(array, np.ndarray):
                require_numbers(array, f"{name} of structure {self.n_structures}")

    def _check(self, arrays: dict[str, np.ndarray], where: str) -> None:
        """Raise DataError naming the first structure whose numbers are not finite: none was told,
        or single precision cannot hold it.
        """
        # where none has a stress, its rows are all NaN
        for name in ("pos", "forces", "energy", "cell", *(["stress"] if self._stressed else [])):
            array = arrays[name]
            unlabelled = name in MAIN_LABELS and name in self._without
            row = _first_beyond(array, nan=name == "stress" or unlabelled)
            if row is None:
                continue
            owner = row
            if name in PER_ATOM:
                owner = int(np.searchsorted(arrays["ptr"], row, "right")) - 1
            raise DataError(
                f"{where}: {name} of structure {self._written_structures + owner} is not a finite "
                f"number of single precision"
            )

    def _held(self) -> dict[str, np.ndarray]:
        """Everything that is not on disk, as `Structures.arrays` names it."""
        n = self.n_structures - self._written_structures
        a = self.n_atoms - self._written_atoms
        per_structure = {name: array[:n] for name, array in self._structures.items()}
        per_atom = {name: array[:a] for name, array in self._atoms.items()}
        sizes = per_structure.pop("size")
        ptr = np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
        return {"ptr": ptr, **per_structure, **per_atom}

    def _write(self) -> None:
        held = self._held()
        self._check(held, str(self._target.path))
        self._writer.append(held)
        self._written_structures = self.n_structures
        self._written_atoms = self.n_atoms

    def _names(self, where: str) -> dict[str, Any]:
        """What labels were called in the file, and what was left unread, for ``info``. Raises
        DataError where labels of several methods came together.
        """
        names = {}
        words = {"energy": label_names.ENERGY_WORDS, "forces": label_names.FORCES_WORDS}
        for k, label in enumerate(MAIN_LABELS):
            found = sorted({chosen[k] for chosen in self.labels} - {None})
            methods = {label_names.family(name, words[label]) for name in found}
            if len(methods) > 1:
                raise DataError(
                    f"{where}: structures have {label} under names of different methods "
                    f"({', '.join(found)}); give {label}_key= (--{label}-key)"
                )
            if found:
                names[label] = ", ".join(found)
        out: dict[str, Any] = {"labels": names} if names else {}
        unread = [f"{k} ({v})" for k, v in self.unread.items() if k not in names.values()]
        return out | ({"unread": unread} if unread else {})

    def finish(self, where: str, **info: Any) -> Structures:
        """The packed `Structures`; ``info`` goes with it. Raises DataError if there is nothing."""
        if not self.n_structures:
            raise DataError(f"{where}: holds no structures")
        drop = list(self._without)
        for name, missing in self._without.items():
            if missing < self.n_structures:
                if name in MAIN_LABELS and _missing == "keep":
                    drop.remove(name)
                    info.setdefault("partly_labelled", []).append(name)
                    continue
                if name in MAIN_LABELS and _missing == "stop":
                    raise DataError(
                        f"{where}: {missing} of {self.n_structures} structures have no {name}"
                    )
                self.notes.append(
                    f"{name} left out: {missing} of {self.n_structures} structures have none"
                )
        if not self._periodic:
            # a box around a molecule that does not repeat is not a property of the molecule
            drop.append("cell")
        units = {"length": "Å", "energy": "eV", "forces": "eV/Å"}
        if self._stressed:
            units["stress"] = "eV/Å³"
        else:
            drop.append("stress")
        self._check(self._held(), where)
        info |= {"systems": self._labels, "units": units}
        info |= self._names(where)
        if self.isolated:
            info["isolated_atoms"] = self.isolated
        if self.notes:
            info["notes"] = self.notes
        if self._writer is None:
            self._grow(self._structures, self.n_structures, exact=True)
            self._grow(self._atoms, self.n_atoms, exact=True)
            kept = {name: array for name, array in self._held().items() if name not in drop}
            return Structures(info=info, **kept)
        self._write()
        path = self._writer.finish(info, drop)
        self._target.stack.close()
        return Structures.open(path)
