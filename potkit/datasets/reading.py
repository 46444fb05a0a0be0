"""Reading what people have: any file, list of files, glob or folder, labelled or not.

The readers of `formats` come first; what they do not know goes through ASE. Nothing vanishes in
silence: `report` says in words what was read, under which names, and what was not.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import lzma
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..structures.array_files import UNREADABLE, first_line
from ..structures.ase_io import arrays_from_ase
from ..structures.elements import SYMBOLS
from ..structures.storage import workspace
from ..structures.store import Structures, concatenate
from . import formats
from .formats import label_names, packer
from .formats.common import Units, chosen_units, data_files, named_stress, sized, unit_of_totals

PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
ISOLATED = ("references", "keep")
BOX = 8.0  # Å; a single atom in a box at least that wide does not feel its images
SAME = 1e-4  # eV; energies of one atom that differ by less are one energy


def read(
    path: str | Path | Sequence[str | Path],
    format: str | None = None,
    dtype: Any = None,
    missing_labels: str = "keep",
    isolated_atoms: str = "references",
    **options: Any,
) -> Structures:
    """`Structures` from a file, a folder, a glob ("run*/OUTCAR") or a list of these.

    ``format`` forces one of `formats.FORMATS`, or "ase:NAME" one of ASE's; else the content tells,
    and what no own reader knows goes through `ase.io`. Positions and forces are kept as ``dtype``
    (default float32). Labels are never asked for: `potkit.pretrain` needs none.

    ``missing_labels``: where only some structures have energies or forces, "keep" what there is
    (training takes of each structure what it has), "stop" with DataError, or "drop" the label.
    ``isolated_atoms``: single atoms among larger structures become the "references" of their
    elements (``info["atomic_energies"]``, eV), as in MACE, or are "keep"-t as structures.
    ``options`` go to the reader: energy_key, forces_key, stress_key, energy_unit, forces_unit,
    length_unit …

    Warns where units that nobody named cannot be right.

    Raises DataError for whatever is wrong with a file, ConfigError for an unknown option.
    """
    if missing_labels not in packer.MISSING:
        raise ConfigError(
            f"missing_labels is one of {', '.join(packer.MISSING)}, got {missing_labels!r}"
        )
    if isolated_atoms not in ISOLATED:
        raise ConfigError(f"isolated_atoms is one of {', '.join(ISOLATED)}, got {isolated_atoms!r}")
    paths = _paths(path)
    # whether all have a label shows when isolated atoms are gone and files are joined
    with packer.missing_labels("keep"):
        parts = [_read_one(p, format, dtype, options) for p in paths]
    out = parts[0] if len(parts) == 1 else _joined(parts)
    if isolated_atoms == "references":
        out = _without_isolated_atoms(out)
    out.info.pop("isolated_atoms", None)
    out = _settle(out, missing_labels)
    if "energy_unit" not in options:
        _doubt_unit(out)
    if doubts := out.info.pop("doubts", []):
        name = out.info.get("name", "data")
        out.info["notes"] = [*out.info.get("notes", []), *doubts]
        for doubt in doubts:
            warnings.warn(f"{name}: {doubt}", UnitWarning, stacklevel=2)
    return out


class UnitWarning(UserWarning):
    """The units a file was taken to have cannot be right."""


def report(structures: Structures) -> list[str]:
    """What was read, a line each: how many structures have energies and forces, under which names,
    isolated atoms, and what the file holds that is not used. Nothing where all structures have both
    under their plain names and nothing was left.
    """
    s = structures
    n = len(s)
    counts = {label: int(s.labelled(label).sum()) for label in ("energy", "forces")}
    names = s.info.get("labels", {})
    have = []
    for label, count in counts.items():
        # names that differ from the plain one are worth saying
        called = names.get(label) if count and names.get(label) != label else None
        have.append(f"{count:,} with {label}" + (f" ('{called}')" if called else ""))
    line = f"{s.info.get('name', 'data')}: {n:,} structures, {', '.join(have)}"
    if any(0 < count < n for count in counts.values()):
        line += "; each is trained on what it has"
    lines = [line]
    if s.info.get("unread"):
        lines.append("not read: " + "; ".join(s.info["unread"]))
    lines += [str(note) for note in s.info.get("notes", [])]
    if np.any(s.charge):
        lines.append(
            f"total charges {int(s.charge.min()):+d} … {int(s.charge.max()):+d} e: seen only by "
            "networks built with charge=true"
        )
    plain = all(counts[label] == n and names.get(label, label) == label for label in counts)
    return [] if plain and len(lines) == 1 else lines


# --- which files ---------------------------------------------------------------------------------


def _paths(path: str | Path | Sequence[str | Path]) -> list[Path]:
    """The files and folders that are meant, globs filled in. Raises DataError."""
    if not isinstance(path, (str, Path)):
        given = list(path)
        if not given:
            raise DataError("nothing to read: the list of files is empty")
        return [found for one in given for found in _paths(one)]
    if not Path(path).exists() and glob.has_magic(str(path)):
        found = sorted(glob.glob(str(path), recursive=True))
        if not found:
            raise DataError(f"{path}: no file fits this pattern")
        return [Path(name) for name in found]
    return [Path(path)]


def _read_one(path: Path, format: str | None, dtype: Any, options: dict[str, Any]) -> Structures:
    if format is not None and format.startswith("ase:"):
        return _through_ase(path, dtype, options, format.removeprefix("ase:"))
    if format is not None or not path.exists():
        return formats.read(path, format, dtype, **options)
    if path.is_dir():
        if formats.guess(path) is not None:
            return formats.read(path, None, dtype, **options)
        parts = [_read_one(file, None, dtype, options) for file in _data_files(path)]
        out = parts[0] if len(parts) == 1 else _joined(parts)
        out.info["name"] = path.name
        return out
    if path.suffix.lower() in PACKED and path.stat().st_size:
        return _unpacked(path, dtype, options)
    if path.stat().st_size == 0 or formats.guess(path) is not None:
        return formats.read(path, None, dtype, **options)
    if _is_damaged_runner(path):
        return formats.read(path, "runner", dtype, **options)
    return _through_ase(path, dtype, options)


def _is_damaged_runner(path: Path) -> bool:
    """Whether ASE takes ``path`` for a file of RuNNer's or n2p2's and frames begin in it: it would
    leave out what stands before the first without a word.
    """
    from ase.io.formats import filetype

    try:
        if filetype(str(path), guess=False) not in ("runnerdata", "n2p2"):
            return False
    except Exception:  # ASE's functions raise what they like
        return False
    with open(path, "rb") as file:
        return any(line.split() == [b"begin"] for line in file)


def _data_files(folder: Path) -> list[Path]:
    """The files of a folder that hold data, by their endings."""
    files = data_files(folder)
    if not files:
        raise DataError(
            f"{folder}: no data file in this folder; known formats are {', '.join(formats.FORMATS)}"
        )
    return files


def _unpacked(path: Path, dtype: Any, options: dict[str, Any]) -> Structures:
    """A file of any format behind gzip, bzip2 or xz."""
    with workspace(Path(tempfile.gettempdir()) / "unpacked") as folder:
        inside = folder / path.stem
        try:
            with PACKED[path.suffix.lower()](path) as source, open(inside, "wb") as target:
                shutil.copyfileobj(source, target)
        except (*UNREADABLE, lzma.LZMAError) as error:
            raise DataError(f"{path}: cannot be unpacked ({first_line(error)})") from error
        try:
            return _read_one(inside, None, dtype, options)
        except DataError as error:
            raise DataError(str(error).replace(str(inside), str(path))) from error


def _joined(parts: list[Structures]) -> Structures:
    """The sets end to end, with what is known of each."""
    out = concatenate(parts)
    first = 0
    isolated: list[int] = []
    for part in parts:
        isolated += [first + row for row in part.info.get("isolated_atoms", [])]
        first += len(part)
    for key in ("notes", "unread", "doubts"):
        found = dict.fromkeys(line for part in parts for line in part.info.get(key, []))
        out.info.pop(key, None)
        out.info |= {key: list(found)} if found else {}
    labels: dict[str, str] = {}
    for label in ("energy", "forces"):
        words = {
            "energy": label_names.ENERGY_WORDS,
            "forces": label_names.FORCES_WORDS,
        }[label]
        found = {part.info.get("labels", {}).get(label) for part in parts} - {None}
        if len({label_names.family(name, words) for name in found}) > 1:
            raise DataError(
                f"the files have {label} under names of different methods "
                f"({', '.join(sorted(found))}); give {label}_key= (--{label}-key)"
            )
        labels |= {label: ", ".join(sorted(found))} if found else {}
    if labels:
        out.info["labels"] = labels
    if isolated:
        out.info["isolated_atoms"] = isolated
    return out


# --- what no own reader knows --------------------------------------------------------------------


def _through_ase(
    path: Path, dtype: Any, options: dict[str, Any], format: str | None = None
) -> Structures:
    """All frames that `ase.io` finds in ``path``; units of the options are applied to them."""
    import ase.io
    from ase.io.formats import UnknownFileTypeError

    known = (
        "energy_key",
        "forces_key",
        "stress_key",
        "energy_unit",
        "forces_unit",
        "length_unit",
    )
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(
            f"{path}: read through ASE, which has no option {unknown[0]!r} "
            f"(there are: {', '.join(known)})"
        )
    _check_counts(path)
    try:
        frames = ase.io.read(path, index=":", format=format)
    except UnknownFileTypeError:
        raise DataError(
            f"{path}: {formats.what(path)}, nor one that ASE knows; known formats are "
            f"{', '.join(formats.FORMATS)} (format= forces one)"
        ) from None
    except Exception as error:  # each of ASE's readers raises what it likes
        first = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{path}: {formats.what(path)}, and ASE cannot read it "
            f"({type(error).__name__}: {first})"
        ) from error
    if not frames:
        raise DataError(f"{path}: holds no structures")
    return _from_frames(frames, path, dtype, options)


def _check_counts(path: Path) -> None:
    """Raise DataError for a text of frames, each after the number of its atoms, that claims more
    atoms than it has lines: ASE counts them all the same.
    """
    if not path.is_file():
        return
    with open(path, "rb") as file:
        if not file.readline(1000).strip().isdigit():
            return
        lines = 1 + sum(1 for _ in file)
        file.seek(0)
        for number, line in enumerate(file, start=1):
            word = line.strip()
            if word.isdigit() and (len(word) > 18 or int(word) > lines):
                raise DataError(
                    f"{path}: line {number}: {word[:30].decode()} atoms are claimed, the file has "
                    f"{lines} lines"
                )


def _from_frames(frames: list, path: Path, dtype: Any, options: dict[str, Any]) -> Structures:
    from ase.calculators.singlepoint import SinglePointCalculator

    keys = options.get("energy_key"), options.get("forces_key")
    stress_key = options.get("stress_key")
    one = Units(1.0, 1.0, 1.0)  # units are applied to all frames together
    if stress_key not in (None, "none") and not any(stress_key in f.info for f in frames):
        there = ", ".join(dict.fromkeys(key for f in frames for key in f.info)) or "nothing"
        raise DataError(f"{path}: no frame has a stress under {stress_key!r} (there is: {there})")
    names: set[label_names.Chosen] = set()
    unread: dict[str, None] = {}
    for i, atoms in enumerate(frames):
        held = dict(getattr(atoms.calc, "results", None) or {})
        arrays = {
            k: v for k, v in atoms.arrays.items() if v.shape[1:] == (3,) and v.dtype.kind == "f"
        }
        scalars = {k: v for k, v in atoms.info.items() if np.ndim(v) == 0}
        energies = scalars | {k: v for k, v in held.items() if v is not None and np.ndim(v) == 0}
        forces = arrays | ({"forces": held["forces"]} if held.get("forces") is not None else {})
        chosen = label_names.choose(energies, forces, f"{path}: frame {i}", *keys)
        names.add(chosen)
        unread |= {
            f"{k} (column of three reals per atom)": None
            for k in arrays
            if k not in ("positions", "momenta", chosen.forces)
        }
        results = {}
        if chosen.energy in energies:
            results["energy"] = float(energies[chosen.energy])
        if chosen.forces in forces:
            results["forces"] = np.asarray(forces[chosen.forces])
        where = f"{path}: frame {i}"
        if stress_key in atoms.info:
            cell = np.asarray(atoms.cell)
            results["stress"] = named_stress(atoms.info, stress_key, cell, where, one)
        elif stress_key is None and held.get("stress") is not None:
            results["stress"] = np.asarray(held["stress"])
        atoms.calc = SinglePointCalculator(atoms, **results) if results else None
    try:
        found = arrays_from_ase(frames, np.float64)
        info = found.pop("info")
        out = Structures(**found, info=info)
    except DataError as error:  # of a frame, or of all together, such as a box without edges
        raise DataError(f"{path}: {error}") from error
    units = chosen_units(
        options.get("length_unit"), options.get("energy_unit"), options.get("forces_unit")
    )
    with np.errstate(over="ignore"):  # `validate` names what is beyond single precision
        out.pos = (out.pos * units.length).astype(dtype or np.float32)
    out.cell = None if out.cell is None or not out.pbc.any() else out.cell * units.length
    if out.forces is not None:
        with np.errstate(over="ignore"):
            out.forces = (out.forces * units.forces).astype(dtype or np.float32)
    if out.stress is not None:
        out.stress = out.stress * (units.energy / units.length**3)
    if out.energy is not None:
        out.energy = out.energy * units.energy
        if "energy_unit" not in options:
            row = int(np.argmax(out.labelled("energy")))
            z = out.z[out.ptr[row] : out.ptr[row + 1]]
            sized(z, out.energy[row], f"{path}: frame {row}", "energy")
    labels = {
        label: ", ".join(sorted({chosen[k] for chosen in names} - {None}))
        for k, label in enumerate(("energy", "forces"))
        if any(chosen[k] for chosen in names)
    }
    out.info |= {"name": path.stem, "source_format": "ase", "labels": labels}
    if unread:
        out.info["unread"] = list(unread)
    isolated = [
        i for i, f in enumerate(frames) if len(f) == 1 and formats.extxyz.is_isolated_atom(f.info)
    ]
    if isolated:
        out.info["isolated_atoms"] = isolated
    return out.validate()


# --- isolated atoms and missing labels -----------------------------------------------------------


def _without_isolated_atoms(structures: Structures) -> Structures:
    """``structures`` whose isolated atoms have become ``info["atomic_energies"]``, eV by symbol."""
    s = structures
    single = np.flatnonzero(s.n_atoms == 1)
    if not len(single) or len(single) == len(s) or s.energy is None:
        return s
    marked = np.isin(single, s.info.get("isolated_atoms", []))
    alone = np.array([_stands_alone(s, row) for row in single], bool)
    rows = single[(marked | alone) & s.labelled("energy")[single] & (s.charge[single] == 0)]
    table: dict[str, float] = {}
    for row in rows:
        symbol = SYMBOLS[s.z[s.ptr[row]]]
        energy = float(s.energy[row])
        if abs(table.setdefault(symbol, energy) - energy) > SAME:
            s.info.setdefault("notes", []).append(
                f"isolated atoms of {symbol} have different energies ({table[symbol]:.4f}, "
                f"{energy:.4f} eV): they stay structures"
            )
            return s
    if not table:
        return s
    out = s[np.setdiff1d(np.arange(len(s)), rows)]
    values = ", ".join(f"{symbol} {energy:.4f}" for symbol, energy in table.items())
    note = f"{len(rows)} isolated atoms are reference energies, not structures: {values} eV"
    out.info = {**s.info, "atomic_energies": table, "isolated_in_file": True}
    out.info["notes"] = [*s.info.get("notes", []), note]
    return out


def _stands_alone(s: Structures, row: int) -> bool:
    """Whether the single atom of structure ``row`` has no image nearby."""
    if s.cell is None or not s.pbc[row].any():
        return True
    vectors = s.cell[row][s.pbc[row]]
    heights = 1.0 / np.linalg.norm(np.linalg.pinv(vectors), axis=0)
    return bool(heights.min() >= BOX)


def _settle(structures: Structures, policy: str) -> Structures:
    """Do as `read` was told where only some structures have a label."""
    s = structures
    partly = []
    for label in s.partly_labelled:
        have = int(s.labelled(label).sum())
        lacking = len(s) - have
        if lacking == 0:
            continue
        if have and policy == "stop":
            row = int(np.argmin(s.labelled(label)))
            raise DataError(
                f"{s.info.get('name', 'data')}: {lacking} of {len(s)} structures have no {label}, "
                f"the first is structure {row} (missing_labels=stop)"
            )
        if have and policy == "keep":
            partly.append(label)
            continue
        setattr(s, label, None)
        if have:
            s.info.setdefault("notes", []).append(
                f"{label} left out: {lacking} of {len(s)} structures have none"
            )
    s.info.pop("partly_labelled", None)
    if partly:
        s.info["partly_labelled"] = partly
    return s


def _doubt_unit(structures: Structures) -> None:
    """Note totals that would be Hartree."""
    if structures.info.get("source_format") not in ("extxyz", "ase", "ase-db", "deepmd"):
        return
    if unit_of_totals(structures) == "hartree":
        structures.info.setdefault("doubts", []).append(
            "the energies, taken for eV, are the size of total energies in Hartree: is "
            "energy_unit=hartree (--energy-unit hartree) meant? forces would follow"
        )
