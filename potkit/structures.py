"""The packed store of structures, and the batch a network sees.

All structures of a set lie end to end in a few flat arrays: structure ``i`` owns atoms ``ptr[i]:ptr[i+1]``. Nothing is held per
structure, so a set can be memory-mapped, moved to a GPU whole, and cut into batches by index arithmetic alone.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, Sequence

import numpy as np
import torch
from torch_geometric.data import Data

from . import storage
from .errors import DataError

SYMBOLS = (
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh "
    "Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr "
    "Ra Ac Th Pa U Np Pu Am Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
).split()
MAX_Z = len(SYMBOLS) - 1  # 118
PER_ATOM = ("z", "pos", "forces", "molecule")
PER_STRUCTURE = ("energy", "cell", "pbc", "charge", "system")
ARRAYS = ("ptr",) + PER_ATOM + PER_STRUCTURE


class Batch(Data):
    """A PyG ``Data`` of several structures; what a set does not have (say ``forces``) reads as None.

    z [N] long, pos [N,3] Å, batch [N] long, ptr [S+1] long, energy [S] float64 eV, forces [N,3] eV/Å, cell [S,3,3] Å,
    pbc [S,3] bool, charge [S], system [S], molecule [N] (numbered within its structure), mask [N] long (1 = flagged by an
    objective). ``num_graphs`` and ``max_atoms`` are Python integers, known without asking the device.
    """

    _optional = frozenset({"energy", "forces", "cell", "molecule", "mask", "target", "edge_index", "edge_shift", "cutoff"})

    def __getattr__(self, key: str) -> Any:
        if key in Batch._optional and key not in self.__dict__.get("_store", {}):
            return None
        return super().__getattr__(key)

    @property
    def num_graphs(self) -> int:
        return self.ptr.shape[0] - 1


class Structures:
    """Many structures in flat arrays; see the contract in the module's docstring.

    z [A] uint8 · pos [A,3] float Å · ptr [S+1] int64 · energy [S] float64 eV | None · forces [A,3] eV/Å | None ·
    cell [S,3,3] Å | None (rows are lattice vectors; zeros where a structure has none) · pbc [S,3] bool · charge [S] int16 (e) ·
    system [S] int32 (structures of one chemical species or one trajectory share a number) · molecule [A] int32 (bonded group,
    numbered from 0 in each structure). ``info`` holds what JSON can: name, level of theory, ``systems`` (a name per system) …
    Raises DataError where shapes or elements do not fit.
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
    ) -> None:
        self.ptr = np.asarray(ptr, np.int64)
        n_structures, n_atoms = len(self.ptr) - 1, int(self.ptr[-1]) if len(self.ptr) else -1
        if self.ptr.ndim != 1 or n_structures < 0 or (len(self.ptr) and self.ptr[0] != 0) or (np.diff(self.ptr) < 0).any():
            raise DataError(f"ptr must be a rising array that starts at 0, got shape {self.ptr.shape}")

        def take(name: str, value: Any, dtype: Any, shape: tuple[int, ...], default: Any = None) -> Any:
            if value is None:
                return None if default is None else np.full(shape, default, dtype)
            value = value if isinstance(value, np.ndarray) else np.asarray(value)
            if value.shape != shape:
                raise DataError(f"{name} must have shape {shape}, got {value.shape}")
            return value if dtype is None or value.dtype == dtype else value.astype(dtype)

        def floating(value: Any) -> Any:
            return None if value is None else np.float32 if np.asarray(value).dtype.itemsize <= 4 else np.float64

        z = np.asarray(z)
        if len(z) and (z.min() < 1 or z.max() > MAX_Z):
            row = int(np.flatnonzero((z < 1) | (z > MAX_Z))[0])
            owner = int(np.searchsorted(self.ptr, row, "right")) - 1
            raise DataError(f"structure {owner}: atomic number {int(z[row])} of atom {row - int(self.ptr[owner])} is not in 1…{MAX_Z}")
        self.z = take("z", z, np.uint8, (n_atoms,))
        self.pos = take("pos", pos, floating(pos), (n_atoms, 3))
        self.energy = take("energy", energy, np.float64, (n_structures,))
        self.forces = take("forces", forces, floating(forces), (n_atoms, 3))
        self.cell = take("cell", cell, np.float64, (n_structures, 3, 3))
        self.pbc = take("pbc", pbc, np.bool_, (n_structures, 3), False)
        self.charge = take("charge", charge, np.int16, (n_structures,), 0)
        self.system = take("system", system, np.int32, (n_structures,), 0)
        self.molecule = take("molecule", molecule, np.int32, (n_atoms,), 0)
        if self.cell is None and self.pbc.any():
            raise DataError("pbc is true somewhere but no cell was given")
        self.info: dict[str, Any] = dict(info or {})
        self._resident: dict[str, dict[str, torch.Tensor]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_resident": {}}  # copies on a device do not travel to other processes

    # -- size and looks ----------------------------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self.ptr) - 1

    @property
    def n_atoms(self) -> np.ndarray:
        """Atoms per structure, [S]."""
        return np.diff(self.ptr)

    @property
    def elements(self) -> list[int]:
        """The atomic numbers that occur, rising."""
        return np.flatnonzero(np.bincount(self.z, minlength=MAX_Z + 1)).tolist()

    def system_names(self) -> list[str]:
        """A name for every system number up to the largest in use."""
        named = list(self.info.get("systems", []))
        top = int(self.system.max()) + 1 if len(self) else 0
        return named + [f"system-{i}" for i in range(len(named), top)]

    def __repr__(self) -> str:
        sizes = self.n_atoms
        atoms = "no atoms" if not len(self) else f"{sizes.min()}–{sizes.max()} atoms"
        has = [n for n in ("energy", "forces", "cell") if getattr(self, n) is not None]
        return (
            f"Structures({self.info.get('name', 'unnamed')}: {len(self):,} structures of {len(np.unique(self.system)):,} systems, {atoms}, "
            f"elements {' '.join(SYMBOLS[z] for z in self.elements)}, with {', '.join(has) or 'positions only'})"
        )

    def _repr_html_(self) -> str:
        table = self.summary()
        more = f"<p>… {len(table) - 8} more systems</p>" if len(table) > 8 else ""
        return f"<p><b>{self!r}</b></p>{table.head(8).to_html(float_format='%.4g')}{more}"

    def summary(self):
        """A DataFrame with a row per system: structures, atoms, formula of the first, energy (eV/atom) and forces (eV/Å)."""
        import pandas as pd

        order = np.argsort(self.system, kind="stable")
        ids, first, counts = np.unique(self.system[order], return_index=True, return_counts=True)
        names, rows = self.system_names(), []
        for i, start, count in zip(ids, first, counts):
            rows_of = order[start : start + count]
            one, part = self.z[self.ptr[rows_of[0]] : self.ptr[rows_of[0] + 1]], self[rows_of]
            row = {"system": names[i], "formula": formula(one), "structures": int(count), "atoms": int(len(one))}
            if self.energy is not None:
                per_atom = part.energy / part.n_atoms
                row |= {"energy mean (eV/atom)": per_atom.mean(), "energy std (eV/atom)": per_atom.std()}
            if self.forces is not None:
                row |= {"forces rms (eV/Å)": float(np.sqrt(np.mean(np.square(part.forces, dtype=np.float64))))}
            rows.append(row)
        return pd.DataFrame(rows)

    # -- selecting and joining ---------------------------------------------------------------------------------------------
    def _atom_rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        counts = self.ptr[rows + 1] - self.ptr[rows]
        ptr = np.concatenate([[0], np.cumsum(counts)])
        return np.repeat(self.ptr[rows] - ptr[:-1], counts) + np.arange(ptr[-1]), ptr

    def __getitem__(self, key: int | slice | Sequence[int] | np.ndarray) -> Structures:
        if isinstance(key, (int, np.integer)):
            if not -len(self) <= key < len(self):
                raise IndexError(f"structure {key} of {len(self)}")
            key = [int(key) % len(self)]
        elif isinstance(key, torch.Tensor):
            key = key.cpu().numpy()
        rows = np.arange(len(self))[key]
        atoms, ptr = self._atom_rows(rows)
        pick = {n: None if getattr(self, n) is None else np.asarray(getattr(self, n)[atoms]) for n in PER_ATOM}
        pick |= {n: None if getattr(self, n) is None else np.asarray(getattr(self, n)[rows]) for n in PER_STRUCTURE}
        return Structures(ptr=ptr, info=self.info, **pick)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __add__(self, other: Structures) -> Structures:
        return concatenate([self, other])

    def split(
        self, fractions: Sequence[float] = (0.8, 0.1, 0.1), seed: int = 0, by: str = "structure"
    ) -> tuple[Structures, ...]:
        """Disjoint random parts. ``by``: "structure", "system" (no system in two parts) or "structure-within-system"."""
        from .datasets import splits

        return tuple(self[rows] for rows in splits.split(self, fractions, seed=seed, by=by))

    # -- files -------------------------------------------------------------------------------------------------------------
    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are there, by name."""
        return {n: getattr(self, n) for n in ARRAYS if getattr(self, n) is not None}

    def save(self, path: str | Path) -> Path:
        """Write to ``path``: a folder of .npy files that can be memory-mapped, or one compressed file if it ends in ``.h5``."""
        return storage.save(Path(path), self.arrays(), self.info)

    @classmethod
    def open(cls, path: str | Path, mmap: bool = True) -> Structures:
        """Open what `save` wrote; a folder is memory-mapped unless ``mmap=False``."""
        arrays, info = storage.open_(Path(path), mmap)
        for name in [n for n in ("ptr", "z", "pos") if n not in arrays] + [n for n in arrays if n not in ARRAYS]:
            raise DataError(f"{path}: array {name} is {'unknown' if name in arrays else 'missing'}")
        try:
            return cls(**arrays, info=info)
        except DataError as error:
            raise DataError(f"{path}: {error}") from None

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
        """Raise DataError that names the first structure holding NaN or infinity, or that has no atoms; return self."""
        where = self.info.get("name", "structures")
        for name in ("pos", "forces", "energy", "cell"):
            array = getattr(self, name)
            if array is None:
                continue
            bad = ~np.isfinite(array).all(axis=tuple(range(1, array.ndim)))
            if bad.any():
                row = int(np.flatnonzero(bad)[0])
                atomwise = name in PER_ATOM
                owner = int(np.searchsorted(self.ptr, row, "right")) - 1 if atomwise else row
                place = f", atom {row - int(self.ptr[owner])}" if atomwise else ""
                raise DataError(f"{where}: {name} of structure {owner}{place} is not a finite number")
        if (self.n_atoms == 0).any():
            raise DataError(f"{where}: structure {int(np.flatnonzero(self.n_atoms == 0)[0])} has no atoms")
        return self

    # -- batches -----------------------------------------------------------------------------------------------------------
    def to(self, device: str | torch.device) -> Structures:
        """Keep a copy of the arrays on ``device``, so that `batch` gathers there. Returns self."""
        self._tensors(torch.device(device))
        return self

    def _tensors(self, device: torch.device) -> dict[str, torch.Tensor]:
        if str(device) not in self._resident:
            host = {n: torch.from_numpy(np.asarray(a)) for n, a in self.arrays().items() if n != "ptr"}
            self._resident[str(device)] = {n: t.to(device) for n, t in host.items()}
        return self._resident[str(device)]

    def batch(
        self,
        indices: Sequence[int] | np.ndarray | torch.Tensor | None = None,
        device: str | torch.device = "cpu",
        dtype: torch.dtype | None = None,
    ) -> Batch:
        """The structures at ``indices`` (default: all) as one PyG ``Data``; floats in ``dtype`` (default: torch's), energy float64.

        Gathered on ``device`` if the set was moved there by `to`, else on the CPU and copied. Never waits for the device.
        """
        device, dtype = torch.device(device), dtype or torch.get_default_dtype()
        rows = np.arange(len(self)) if indices is None else np.atleast_1d(np.asarray(indices, np.int64))
        if len(rows) and (rows.min() < 0 or rows.max() >= len(self)):
            raise DataError(f"batch asks for structure {int(rows.min() if rows.min() < 0 else rows.max())} of {len(self)}")
        atoms, ptr = self._atom_rows(rows)
        home = device if str(device) in self._resident else torch.device("cpu")
        tensors = self._tensors(home)

        def move(array: np.ndarray, to: torch.device) -> torch.Tensor:
            tensor = torch.from_numpy(array)
            return tensor if to.type == "cpu" else tensor.pin_memory().to(to, non_blocking=True)

        atom_rows, rows_t = move(atoms, home), move(rows, home)
        counts = np.diff(ptr)
        out: dict[str, torch.Tensor] = {}
        for name, tensor in tensors.items():
            picked = tensor.index_select(0, atom_rows if name in PER_ATOM else rows_t)
            if name in ("pos", "forces", "cell"):
                picked = picked.to(dtype)
            elif name == "charge":
                picked = picked.to(dtype)
            elif name in ("z", "system", "molecule"):
                picked = picked.long()
            out[name] = picked.to(device, non_blocking=True)
        ptr_t = move(ptr, device)
        owner = move(np.repeat(np.arange(len(rows)), counts), device)
        data = Batch(batch=owner, ptr=ptr_t, **out)
        data.mask = torch.zeros(int(ptr[-1]), dtype=torch.long, device=device)
        data.num_nodes = int(ptr[-1])
        data.max_atoms = int(counts.max()) if len(counts) else 0
        data.periodic = bool(self.pbc[rows].any())
        data.indices = rows
        return data

    # -- ASE ---------------------------------------------------------------------------------------------------------------
    def to_ase(self) -> list:
        """A list of `ase.Atoms` with energy and forces in a SinglePointCalculator."""
        from ase import Atoms
        from ase.calculators.singlepoint import SinglePointCalculator

        frames, names = [], self.system_names()
        for i in range(len(self)):
            a, b = self.ptr[i], self.ptr[i + 1]
            cell = None if self.cell is None else self.cell[i]
            atoms = Atoms(self.z[a:b], self.pos[a:b].astype(float), cell=cell, pbc=self.pbc[i])
            atoms.info |= {"charge": int(self.charge[i]), "system": names[self.system[i]]}
            atoms.arrays["molecule"] = np.array(self.molecule[a:b])
            results = {}
            if self.energy is not None:
                results["energy"] = float(self.energy[i])
            if self.forces is not None:
                results["forces"] = self.forces[a:b].astype(float)
            if results:
                atoms.calc = SinglePointCalculator(atoms, **results)
            frames.append(atoms)
        return frames

    @classmethod
    def from_ase(cls, frames: Sequence, info: dict[str, Any] | None = None, dtype: Any = np.float64) -> Structures:
        """From `ase.Atoms`: energy and forces come from the attached calculator and must be there for all frames or for none."""
        frames = [frames] if hasattr(frames, "get_positions") else list(frames)
        results = [getattr(f.calc, "results", {}) if f.calc is not None else {} for f in frames]

        def all_or_none(key: str) -> bool:
            have = [key in r for r in results]
            if any(have) and not all(have):
                raise DataError(f"frame {have.index(False)} has no {key} while others have")
            return bool(have) and all(have)

        names: dict[str, int] = {}
        labels = [str(f.info.get("system", f.get_chemical_formula())) for f in frames]
        system = np.array([names.setdefault(n, len(names)) for n in labels], np.int32)
        stack = lambda parts, width, kind: np.concatenate(parts).astype(kind) if parts else np.zeros(width, kind)  # noqa: E731
        periodic = any(f.cell.rank for f in frames)
        return cls(
            z=stack([f.numbers for f in frames], 0, np.int64),
            pos=stack([f.positions for f in frames], (0, 3), dtype),
            ptr=np.cumsum([0] + [len(f) for f in frames]),
            energy=np.array([r["energy"] for r in results]) if all_or_none("energy") else None,
            forces=stack([r["forces"] for r in results], (0, 3), dtype) if all_or_none("forces") else None,
            cell=np.array([f.cell.array for f in frames]) if periodic else None,
            pbc=np.array([f.pbc for f in frames]) if frames else None,
            charge=np.array([int(f.info.get("charge", 0)) for f in frames], np.int16),
            system=system,
            molecule=stack([f.arrays.get("molecule", np.zeros(len(f), int)) for f in frames], 0, np.int32),
            info={"systems": list(names)} | dict(info or {}),
        ).validate()


def formula(z: np.ndarray) -> str:
    """Hill formula of atomic numbers, such as C2H6O."""
    counts = np.bincount(np.asarray(z, np.int64), minlength=MAX_Z + 1)
    present = [i for i in np.flatnonzero(counts)]
    carbon_first = sorted(present, key=lambda i: (i != 6, i != 1, SYMBOLS[i]) if counts[6] else (True, True, SYMBOLS[i]))
    return "".join(f"{SYMBOLS[i]}{counts[i] if counts[i] > 1 else ''}" for i in carbon_first)


def concatenate(parts: Sequence[Structures]) -> Structures:
    """Join sets end to end. Labels (energy, forces) stay only if every part has them; systems are matched by name."""
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
    for name in ("z", "pos", "molecule", "pbc", "charge", "energy", "forces"):
        arrays = [getattr(p, name) for p in parts]
        joined[name] = None if any(a is None for a in arrays) else np.concatenate(arrays)
    if periodic:
        joined["cell"] = np.concatenate([np.zeros((len(p), 3, 3)) if p.cell is None else p.cell for p in parts])
    info = dict(parts[0].info) if len({json.dumps(p.info, sort_keys=True, default=str) for p in parts}) == 1 else {
        "name": " + ".join(dict.fromkeys(str(p.info.get("name", "unnamed")) for p in parts)),
        **{k: v for k, v in parts[0].info.items() if k != "name" and all(p.info.get(k) == v for p in parts)},
    }
    info["systems"] = list(names)
    offsets = np.cumsum([0] + [int(p.ptr[-1]) for p in parts])
    ptr = np.concatenate([[0]] + [p.ptr[1:] + o for p, o in zip(parts, offsets)])
    return Structures(ptr=ptr, system=np.concatenate(systems), info=info, **joined)
