"""Reading what people have: any file, list of files, glob or folder, labelled or not.

The readers of `formats` come first; what they do not know goes through ASE. Nothing vanishes in
silence: `report` says in words what was read, under which names, and what was not.
"""

from __future__ import annotations

import bz2
import glob
import gzip
import io
import lzma
import re
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..structures.array_files import UNREADABLE, first_line
from ..structures.arrays import MAIN_LABELS
from ..structures.ase_io import arrays_from_ase
from ..structures.elements import SYMBOLS
from ..structures.storage import workspace
from ..structures.store import Structures, concatenate
from . import formats
from .formats import label_names, packer
from .formats.common import (
    Units,
    chosen_units,
    data_files,
    named_stress,
    numbers_of,
    sized,
    unit_of_totals,
)

PACKED = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
ISOLATED = ("references", "keep")
# rows noted while a set is read: single atoms that say they are isolated, single atoms of a store
ROWS = ("isolated_atoms", "stored")
# formats of ASE's in which an element may be only the number of its type
LAMMPS = ("lammps-dump-text", "lammps-dump-binary", "lammps-data")
# formats whose folders are read file by file, without the folders inside
FLAT = (formats.md17.NAME, formats.tip3p_npz.NAME)
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
    elements (``info["atomic_energies"]``, eV), as in MACE, or are "keep"-t as structures; those of
    potkit's own stores were settled when these were made, and stay.
    ``options`` go to the reader: energy_key, forces_key, stress_key, energy_unit, forces_unit,
    length_unit; type_map ("O H": the elements of the types 1, 2 … of LAMMPS, 0, 1 … of DeePMD) …

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
    for key in ROWS:
        out.info.pop(key, None)
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
        return _through_own(path, format, dtype, options)
    if path.is_dir():
        return _folder(path, dtype, options)
    if path.suffix.lower() in PACKED and path.stat().st_size:
        return _unpacked(path, dtype, options)
    # a pipe has no size, and whoever opens it waits: `formats.read` refuses it unopened
    size = path.stat().st_size
    guessed = formats.guess(path) if size else None
    if not size or guessed is not None:
        return _through_own(path, guessed, dtype, options)
    if _is_damaged_runner(path):
        return formats.read(path, "runner", dtype, **options)
    return _through_ase(path, dtype, options)


def _through_own(path: Path, format: str | None, dtype: Any, options: dict[str, Any]) -> Structures:
    """What one of `formats` reads; of a store of potkit's the single atoms are noted."""
    out = formats.read(path, format, dtype, **options)
    if format == formats.packed.NAME:
        out.info["stored"] = np.flatnonzero(out.n_atoms == 1).tolist()
    return out


def _folder(path: Path, dtype: Any, options: dict[str, Any]) -> Structures:
    """A folder in one format, or file by file; what lies deeper then is noted."""
    format = formats.guess(path)
    if format is not None:
        out = _through_own(path, format, dtype, options)
    else:
        parts = [_read_one(file, None, dtype, options) for file in _data_files(path)]
        out = parts[0] if len(parts) == 1 else _joined(parts)
        out.info["name"] = path.name
    if format is None or format in FLAT:
        folders = sorted(f.name for f in path.iterdir() if f.is_dir() and f.name[0] != ".")
        if folders:
            names = ", ".join(folders[:8]) + (" …" if len(folders) > 8 else "")
            note = f"folders inside {path.name} are not read: {names}"
            out.info["notes"] = [*out.info.get("notes", []), note]
    return out


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
    starts = np.cumsum([0, *map(len, parts)])
    for key in ROWS:
        out.info.pop(key, None)
        rows = [
            int(start) + row
            for start, part in zip(starts, parts, strict=False)
            for row in part.info.get(key, [])
        ]
        if rows:
            out.info[key] = rows
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
    return out


# --- what no own reader knows --------------------------------------------------------------------


def _through_ase(
    path: Path, dtype: Any, options: dict[str, Any], format: str | None = None
) -> Structures:
    """All frames that `ase.io` finds in ``path``; units of the options are applied to them."""
    kind = format or _ase_format(path)
    known = [
        "energy_key",
        "forces_key",
        "stress_key",
        "energy_unit",
        "forces_unit",
        "length_unit",
    ]
    if kind in LAMMPS:
        known.append("type_map")
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(
            f"{path}: read through ASE, which has no option {unknown[0]!r} "
            f"(there are: {', '.join(known)})"
        )
    _check_counts(path)
    frames = _sdf_frames(path) if kind == "sdf" else _ase_frames(path, format, path, str(path))
    if not frames:
        raise DataError(f"{path}: holds no structures")
    if kind in LAMMPS:
        _settle_lammps(frames, path, kind, options.get("type_map"))
    return _from_frames(frames, path, dtype, options)


def _ase_format(path: Path) -> str | None:
    """What ASE takes ``path`` for; None if for nothing."""
    from ase.io.formats import filetype

    try:
        return filetype(str(path))
    except Exception:  # ASE's functions raise what they like
        return None


def _ase_frames(source: Any, format: str | None, path: Path, where: str) -> list:
    """All frames that `ase.io` finds in ``source``: ``path`` or a part of its text."""
    import ase.io
    from ase.io.formats import UnknownFileTypeError

    try:
        return ase.io.read(source, index=":", format=format)
    except UnknownFileTypeError:
        raise DataError(
            f"{where}: {formats.what(path)}, nor one that ASE knows; known formats are "
            f"{', '.join(formats.FORMATS)} (format= forces one)"
        ) from None
    except Exception as error:  # each of ASE's readers raises what it likes
        first = (str(error).splitlines() or [""])[0]
        raise DataError(
            f"{where}: {formats.what(path)}, and ASE cannot read it "
            f"({type(error).__name__}: {first})"
        ) from error


def _sdf_frames(path: Path) -> list:
    """The molecules of an SDF file, of which ASE reads the first alone. Raises DataError."""
    from ase.io.formats import open_with_compression

    with open_with_compression(str(path), "rb") as file:
        text = file.read().decode("utf-8", "replace")
    frames = []
    records = re.split(r"^\$\$\$\$.*$\n?", text, flags=re.MULTILINE)
    for i, record in enumerate(records):
        if not record.strip():  # after the last end of a record
            continue
        where = f"{path}: molecule {i}"
        found = _ase_frames(io.StringIO(record), "sdf", path, where)
        if not all(map(len, found)):
            reason = "it is in V3000, ASE reads V2000" if "V3000" in record else "holds no atoms"
            raise DataError(f"{where}: {reason}")
        frames += found
    return frames


def _settle_lammps(frames: list, path: Path, kind: str, type_map: Any) -> None:
    """Give the atoms of LAMMPS's types their elements, by ``type_map`` ("O H" for 1 and 2), and
    take away the energies of dumps, which ASE makes up.

    Raises DataError where the file names no elements and there is no ``type_map``: ASE takes the
    types for atomic numbers.
    """
    for atoms in frames:
        if kind != "lammps-data" and atoms.calc is not None:
            atoms.calc.results.pop("energy", None)
    if type_map is None:
        if not _names_elements(frames, path, kind):
            types = sorted({int(t) for atoms in frames for t in atoms.arrays.get("type", ())})
            raise DataError(
                f"{path}: names no elements, and its types are {types}; give type_map= "
                "(--type-map) with the elements in the order of the types, such as 'O H'"
            )
        return
    names = type_map.replace(",", " ").split() if isinstance(type_map, str) else list(type_map)
    numbers = numbers_of(names, "type_map")
    for i, atoms in enumerate(frames):
        types = atoms.arrays.get("type")
        if types is None:
            raise DataError(f"{path}: frame {i} has no types, so type_map= is not for it")
        beyond = types[(types < 1) | (types > len(numbers))]
        if len(beyond):
            raise DataError(
                f"{path}: frame {i}: type {beyond[0]} is not in the type map ({' '.join(names)})"
            )
        atoms.numbers = numbers[types - 1]


def _names_elements(frames: list, path: Path, kind: str) -> bool:
    """Whether a file of LAMMPS's says what its types are, by names or masses."""
    from ase.io.formats import open_with_compression

    if kind == "lammps-dump-binary":
        return False
    if kind == "lammps-data":
        return all(
            atoms.has("masses") or (atoms.numbers != atoms.arrays["type"]).any() for atoms in frames
        )
    with open_with_compression(str(path), "rb") as file:
        columns = [line.split()[2:] for line in file if line.startswith(b"ITEM: ATOMS")]
    return all(b"element" in names or b"mass" in names for names in columns)


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


def _is_real(value: Any) -> bool:
    """Whether it is one real number: energies have texts, flags and None under like names."""
    try:
        array = np.asarray(value)
    except ValueError:  # a list of lists that differ in length
        return False
    return array.ndim == 0 and array.dtype.kind in "iuf"


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
    there: dict[str, None] = {}
    labelled: set[str] = set()
    for i, atoms in enumerate(frames):
        held = dict(getattr(atoms.calc, "results", None) or {})
        arrays = {
            k: v for k, v in atoms.arrays.items() if v.shape[1:] == (3,) and v.dtype.kind == "f"
        }
        scalars = {k: v for k, v in atoms.info.items() if _is_real(v)}
        energies = scalars | {k: v for k, v in held.items() if _is_real(v)}
        forces = arrays | ({"forces": held["forces"]} if held.get("forces") is not None else {})
        chosen = label_names.choose(energies, forces, f"{path}: frame {i}", *keys)
        names.add(chosen)
        there |= dict.fromkeys(k for k in (*energies, *forces) if k != "positions")
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
        labelled |= results.keys()
        where = f"{path}: frame {i}"
        if stress_key in atoms.info:
            cell = np.asarray(atoms.cell)
            results["stress"] = named_stress(atoms.info, stress_key, cell, where, one)
        elif stress_key is None and held.get("stress") is not None:
            results["stress"] = np.asarray(held["stress"])
        atoms.calc = SinglePointCalculator(atoms, **results) if results else None
    for label, key in zip(MAIN_LABELS, keys, strict=True):
        if key not in (None, "none") and label not in labelled:
            raise DataError(
                f"{path}: no frame has {label} under {key!r} (there is: "
                f"{', '.join(there) or 'nothing'})"
            )
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
    # what was kept when a store was made is not undone where it is read
    single = np.setdiff1d(single, s.info.get("stored", []))
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
