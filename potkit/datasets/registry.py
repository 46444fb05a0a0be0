"""Finding a data set by name: what there is, where its files are, and how they become `Structures`.

Embedded sets lie in the checkout's data/ folder. Reference sets are used from the folder that
POTKIT_REFERENCE_DATA names. Everything downloaded or converted goes below the folder that
POTKIT_DATA names (default: the user's cache). Downloading is `fetch.py`'s work.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from ..errors import ConfigError, DataError
from ..structures import storage
from ..structures.outputs import check
from ..structures.store import Structures, concatenate
from . import fetch as fetching
from . import reading, splits
from .formats import read
from .formats.packer import packing_into
from .records import CITATIONS, RECORDS, Record

ISOLATED_ATOMS = "iso_atoms.xyz"  # lies beside the structures of a set, is none of them
# formats in which a reference set of several files is read file by file, and joined
FILE_BY_FILE = ("extxyz", "md17", "spice-conformers")


def record(name: str) -> Record:
    """The record of a data set. Raises ConfigError that lists the known names."""
    for known in RECORDS:
        if known.name == name:
            return known
    raise ConfigError(f"unknown data set {name!r}: known are {', '.join(r.name for r in RECORDS)}")


def is_name(text: str) -> bool:
    """Whether ``text`` is for `load`: a registered set, or a part of one ("3bpa/train_300K") unless
    there is a file of that path.
    """
    name, slash, _ = text.partition("/")
    return any(r.name == name for r in RECORDS) and not (slash and Path(text).exists())


def is_embedded(name: str) -> bool:
    """Whether ``name`` is an embedded set."""
    return any(r.name == name and r.kind == "embedded" for r in RECORDS)


def part_names(r: Record) -> dict[str, list[str]]:
    """The parts of a set that can be loaded alone: its published parts and its files (without
    their endings), each with its files.
    """
    if r.kind == "embedded":
        return {}
    out: dict[str, list[str]] = {}
    for f in r.files:
        if f.unpack or f.path == ISOLATED_ATOMS or r.format == "deepmd":
            continue
        for name in dict.fromkeys((r.parts.get(f.path), f.path, f.path.rpartition(".")[0])):
            if name:
                out.setdefault(name, []).append(f.path)
    return out


def _set_and_files(name: str) -> tuple[Record, list[str] | None]:
    """The record that ``name`` names, and the files of the part of it, if it names one."""
    name, slash, part = name.partition("/")
    r = record(name)
    if not slash:
        return r, None
    parts = part_names(r)
    if part not in parts:
        has = ", ".join(p for p in parts if p not in {f.path for f in r.files}) or "none"
        raise ConfigError(f"data set {name!r} has no part {part!r} (it has: {has})")
    return r, parts[part]


def names():
    """A DataFrame with a row per registered set: kind, size, elements, atoms, level of theory,
    licence, citation, where it is now.
    """
    import pandas as pd

    rows = []
    for r in RECORDS:
        molecules, structures, atoms = r.molecules, r.structures, r.atoms
        place = _place(r)
        # made by recipes at any size: the file knows, not the record
        if r.kind == "embedded" and place is not None:
            molecules, structures, atoms = _size(place)
        rows.append(
            {
                "name": r.name,
                "kind": r.kind,
                "title": r.title,
                "molecules": molecules,
                "structures": structures,
                "elements": r.elements,
                "atoms": f"{atoms[0]}–{atoms[1]}" if atoms else None,
                "level": r.level,
                "forces": r.forces,
                "labelled": r.labelled,
                "periodic": r.periodic,
                "licence": r.licence,
                "split": r.split,
                "used for": r.used_for,
                "citation": ", ".join(r.citation),
                "source": r.source,
                "files": ", ".join(f.path for f in r.files),
                "state": "missing" if place is None else "ready",
            }
        )
    return pd.DataFrame(rows).astype({"molecules": "Int64", "structures": "Int64"})


def describe(name: str) -> str:
    """Everything the registry knows about one set, as text: sizes, level, licence, files with
    addresses and checksums, citation.
    """
    r = record(name)
    row = names().set_index("name").loc[name]
    known = fetching.recorded(cache_dir() / r.name / "raw")
    show = {
        k: row[k]
        for k in (
            "title",
            "kind",
            "molecules",
            "structures",
            "elements",
            "atoms",
            "level",
            "forces",
            "labelled",
            "periodic",
        )
    }
    show |= {"units of the files": r.units}
    show |= {k: row[k] for k in ("licence", "source", "split", "used for", "state")}
    show |= {"note": r.note}
    lines = [f"{name}"] + [
        f"  {k}: {v}" for k, v in show.items() if v is not None and v == v and v != ""
    ]
    for f in r.files:
        first = (
            f"{known[f.path]} (of the first download)"
            if f.path in known
            else "never published: the first download's is recorded"
        )
        lines.append(f"  file: {f.path}" + (f"\n    from {f.url}" if f.url else ""))
        if r.kind != "embedded":
            lines.append(f"    checksum {f.checksum or first}")
    return "\n".join(lines) + "\n\n" + bibtex(name)


def bibtex(name: str) -> str:
    """The BibTeX entries to cite when a data set is used."""
    return "\n\n".join(CITATIONS[key] for key in record(name).citation)


def cache_dir() -> Path:
    """Where downloads and converted stores go: POTKIT_DATA, or the user's cache folder."""
    if chosen := os.environ.get("POTKIT_DATA"):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "potkit"


def embedded_path(r: Record) -> Path | None:
    """The file of an embedded set: in the checkout's data/ (beside the package), else in the
    installed package (`wheel.py` copies it there), else below POTKIT_DATA; None if in none.
    """
    here = Path(__file__).resolve()
    candidates = [here.parents[2] / "data", here.parent / "embedded", cache_dir()]
    return next((c / r.read_from for c in candidates if (c / r.read_from).exists()), None)


def reference_path(r: Record) -> Path | None:
    """The folder of a reference set below POTKIT_REFERENCE_DATA; None if the variable is not set or
    files are missing there.

    An archive lies there unpacked by the user, with or without the archive itself: it is complete
    if all files that are read from it are there.
    """
    root = os.environ.get("POTKIT_REFERENCE_DATA")
    if not root:
        return None
    name = r.folder or r.name
    for folder in (Path(root) / name, Path(root) / name.removesuffix("-sample")):
        if fetching.lacking(folder, r.files, by_hand=True) is None:
            return folder
    return None


def _downloaded_path(r: Record) -> Path | None:
    """The folder of `fetch`, if all files of the set are in it, and its archives unpacked to the
    end.
    """
    raw = cache_dir() / r.name / "raw"
    return raw if r.files and fetching.lacking(raw, r.files) is None else None


def packed_path(r: Record) -> Path:
    """Where `convert` puts the memory-mapped store of a set."""
    return cache_dir() / r.name / "packed"


def _place(r: Record) -> Path | None:
    if r.kind == "embedded":
        return embedded_path(r)
    if packed_path(r).exists():
        return packed_path(r)
    return reference_path(r) or _downloaded_path(r)


def _size(path: Path) -> tuple[int, int, tuple[int, int]]:
    """Systems, structures and the range of atoms of a store, without reading more of it than
    that takes.
    """
    arrays, _ = storage.open_(path, only=("ptr", "system"))
    atoms = np.diff(arrays["ptr"])
    return len(np.unique(arrays["system"])), len(atoms), (int(atoms.min()), int(atoms.max()))


def load(
    name: str, verify: bool = True, files: Sequence[str] | None = None, **options: Any
) -> Structures:
    """The data set ``name`` as `Structures`, or one part of it: "3bpa/train_300K" is its file
    train_300K.xyz, "3bpa/test" the published part of that name.

    Embedded: opened from the checkout. Reference: read from POTKIT_REFERENCE_DATA (checked against
    the recorded sha256 unless ``verify=False``), all of it or only the ``files`` named. Public: the
    packed store if there is one, else what was downloaded is converted once; nothing large is
    downloaded unasked: `fetch` does that. ``options`` go to the reader and bypass the packed store.
    Raises DataError that says what is missing and how to get it.
    """
    r, part = _set_and_files(name)
    if part is not None and files is not None:
        raise ConfigError(f"{name!r} names a part already: give files= to {r.name!r}")
    files = part if files is None else files
    if files is not None:
        unknown = [f for f in files if f not in {x.path for x in r.files}]
        if unknown or r.kind == "embedded":
            has = ", ".join(x.path for x in r.files)
            raise ConfigError(
                f"data set {r.name!r} has no file {(unknown or list(files))[0]!r} to read alone "
                f"(it has: {has})"
            )
    if r.kind == "embedded":
        path = embedded_path(r)
        if path is None:
            raise DataError(
                f"embedded data set {name!r}: {r.read_from} is neither in the checkout's data/ nor "
                f"in the package nor in {cache_dir()}; "
                f"make it with `potkit data make {name}`"
            )
        return _named(read(path, **options), r)
    if packed_path(r).exists() and not options and files is None:
        return Structures.open(packed_path(r))
    folder = raw_path(r)
    if verify:
        fetching.verify(folder, r.files)
    settings = dict(r.options) | options
    if files is not None:
        parts = [read(folder / f, r.format, **settings) for f in files]
        joined = concatenate(parts, missing="drop")
        return _named(joined, r, name)
    if r.kind == "public" and not options:
        convert(name, verify=False)
        return Structures.open(packed_path(r))
    return _whole(r, folder, settings)


def _whole(r: Record, folder: Path, settings: dict[str, Any]) -> Structures:
    """All of a set, read from its files in ``folder``."""
    if r.kind != "reference" or r.format not in FILE_BY_FILE:
        return _named(read(_inside(folder, r), r.format, **settings), r)
    only = [f.path for f in r.files if not f.unpack and f.path != ISOLATED_ATOMS]
    sets = [read(folder / f, r.format, **settings) for f in only]
    joined = _named(concatenate(sets, missing="drop"), r)
    if r.format != "extxyz":
        return joined
    sizes = {r.parts.get(f, f): len(part) for f, part in zip(only, sets, strict=True)}
    return splits.mark_parts(joined, sizes)


def raw_path(r: Record) -> Path:
    """The folder with the files of a set, as they were published.

    Raises DataError if they are not on this machine, or not all, or not unpacked to the end.
    """
    folder = reference_path(r) or _downloaded_path(r)
    if folder is not None:
        return folder
    root = os.environ.get("POTKIT_REFERENCE_DATA")
    if r.kind == "reference" and not any(f.url for f in r.files):
        where = (
            f"not in POTKIT_REFERENCE_DATA={root}" if root else "POTKIT_REFERENCE_DATA is not set"
        )
        first = f"{r.folder or r.name}/{r.files[0].path}"
        what = f"{len(r.files)} files such as {first}" if len(r.files) > 1 else first
        raise DataError(
            f"data set {r.name!r}: {where}; set it to a folder with {what} "
            f"(published at {r.source})"
        )
    raw = cache_dir() / r.name / "raw"
    if raw.is_dir() and any(raw.iterdir()):  # fetching or unpacking was interrupted
        reason = fetching.lacking(raw, r.files)
        raise DataError(
            f"data set {r.name!r} is not complete: {reason}; "
            f"`potkit data fetch {r.name}` goes on from what is there"
        )
    raise DataError(
        f"data set {r.name!r} is not on this machine: "
        f"`potkit data fetch {r.name}` downloads it from {r.source}"
    )


def _inside(folder: Path, r: Record) -> Path:
    path = folder / r.read_from if r.read_from != "." else folder
    if not path.exists():
        raise DataError(
            f"{path}: not in the downloaded files of {r.name!r}; "
            f"`potkit data fetch {r.name}` unpacks it"
        )
    if r.choose is not None:
        names = [f.relative_to(path).as_posix() for f in sorted(path.rglob("*")) if f.is_file()]
        fitting = [n for n in names if re.search(r.choose, n)]
        if len(fitting) != 1:
            there = ", ".join(names[:12])
            raise DataError(
                f"{path}: {len(fitting)} files fit {r.choose!r}, expected one of {there}; "
                "read the right one by its path"
            )
        return path / fitting[0]
    inputs = [f for f in r.files if not f.unpack]
    single = path.is_dir() and len(inputs) == 1 and len(r.files) == 1
    return path / inputs[0].path if single else path


def _named(s: Structures, r: Record, name: str | None = None) -> Structures:
    s.info |= {"name": name or r.name, "level": s.info.get("level", r.level)}
    s.info.setdefault("citation", list(r.citation))
    s.info.setdefault("licence", r.licence)
    return s


def fetch(name: str, files: list[str] | None = None, progress: bool = True) -> Path:
    """Download a public set (or the ``files`` of it) into the cache and unpack it; what is already
    there is kept. Returns the folder.

    Interrupted downloads go on where they stopped; checksums are verified, or recorded where none
    was published. Raises DataError.
    """
    r = record(name)
    if r.kind == "embedded":
        raise ConfigError(
            f"data set {name!r} is embedded: it is made by `potkit data make {name}`, "
            "not downloaded"
        )
    chosen = r.files if files is None else tuple(f for f in r.files if f.path in files)
    if files is not None and len(chosen) < len(files):
        missing = sorted(set(files) - {f.path for f in r.files})
        has = ", ".join(f.path for f in r.files)
        raise ConfigError(f"data set {name!r} has no file {missing[0]!r} (it has: {has})")
    without = [f.path for f in chosen if f.url is None]
    if without:
        raise DataError(
            f"data set {name!r}: no address is known for {without[0]}; "
            f"get it from {r.source} and set POTKIT_REFERENCE_DATA"
        )
    folder = cache_dir() / r.name / "raw"
    fetching.fetch(folder, chosen, progress)
    return folder


def convert(name: str, verify: bool = True, progress: bool = True) -> Path:
    """Pack a set once into a memory-mapped store in the cache, so that the next `load` opens it at
    once. Returns its path.

    Packed as it is read, in memory that does not grow with the set. A conversion that is
    interrupted or killed leaves no store; of two processes that ask at once the second waits for
    the first. Raises DataError.
    """
    r = record(name)
    if r.kind == "embedded":
        raise ConfigError(f"data set {name!r} is embedded and packed already")
    folder = raw_path(r)
    out = packed_path(r)
    check(out, storage.STORE)
    if verify:
        fetching.verify(folder, r.files)
    out.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(out.parent / ".convert.lock"):
        storage.remove_leftovers(out)
        if r.kind == "reference":  # its files, not a store that was made of them before
            _whole(r, folder, dict(r.options)).save(out)
        else:
            pack(
                _inside(folder, r),
                out,
                r.format,
                total=r.structures,
                progress=progress,
                record=r,
                **r.options,
            )
    return out


def pack(
    source: str | Path,
    out: str | Path,
    format: str | None = None,
    total: int | None = None,
    progress: bool = False,
    record: Record | None = None,
    **options: Any,
) -> Path:
    """Read ``source`` (any file or folder `read` takes) straight into the store folder ``out``, in
    bounded memory. Returns ``out``.

    ``total``: how many structures to expect, for the progress bar. A store of potkit's at ``out``
    is replaced. Raises DataError, also for any other folder that is not empty, and Busy while
    another process packs into ``out``; what was at ``out`` is left as it was then.
    """
    out = Path(out)
    if out.suffix == ".h5":
        raise ConfigError(
            f"{out}: a store is a folder; one .h5 file is what Structures.save writes"
        )
    check(out, storage.STORE)  # before anything is read
    # what comes after the first file may fail: until all is read and settled, it lies aside
    with storage.only_writer(out), storage.workspace(out) as aside:
        built = aside / out.name
        try:
            with packing_into(built, total, progress, record.name if record is not None else None):
                if record is None:  # a file of the user's
                    s = reading.read(source, format, **options)
                else:
                    s = read(source, format, **options)
            if record is not None:
                _named(s, record)
            if s.lies_in(built):
                storage.set_info(built, s.info)
            else:
                s.save(built)  # several files joined, or filtered after reading: it was in memory
        except DataError as error:
            raise type(error)(str(error).replace(str(built), str(out))) from error
        with storage.replacing(out, storage.STORE) as temporary:
            os.replace(built, temporary)
    return out


def published_split(
    name: str, structures: Structures | None = None, fold: int = 1
) -> dict[str, np.ndarray]:
    """The split that was published with a set: part -> rows of ``structures`` (default: of `load`).

    From the set's own files (ISO17, SPICE dipeptides, 3BPA) or its index files (rMD17, ``fold`` 1 …
    5, of each molecule). Raises ConfigError for a set without one, DataError for an index that
    points past the end or a set that was cut before.
    """
    r = record(name)
    s = load(name) if structures is None else structures
    if not r.indices:
        if "parts" not in s.info:
            raise ConfigError(f"data set {name!r} has no published split; recommended: {r.split}")
        return splits.parts(s)
    folder = raw_path(r)
    labels = s.system_names()
    out: dict[str, np.ndarray] = {}
    for part, pattern in r.indices.items():
        path = folder / pattern.format(fold=fold)
        chosen = []  # rows of each system
        for system, rows in splits.by_system(s):
            try:
                chosen.append(rows[splits.published(path, len(rows))])
            except DataError as error:
                raise DataError(f"{error} of {labels[system]}") from None
        out[part] = np.sort(np.concatenate(chosen))
    return out
