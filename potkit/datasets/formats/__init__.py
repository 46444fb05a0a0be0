"""One reader per file format. A reader is a module with NAME, DESCRIPTION, ``sniff(path)`` and
``read(path, dtype, **options)``.

A new format is one new file and its name in FORMATS. ``sniff`` judges by content, never by the
file's name; the first that says yes reads. Readers return `Structures` in Å, eV and eV/Å, or raise
DataError naming file and place.
"""

from __future__ import annotations

import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError
from ...structures.array_files import open_hdf5, walk_groups
from ...structures.store import Structures, concatenate
from . import (
    ani1,
    ani1x,
    ase_db,
    deepmd,
    extxyz,
    iso17,
    md17,
    packed,
    qm22,
    runner,
    spice,
    spice_conformers,
    tip3p_npz,
)
from .common import data_files

# order matters only where one content is a special case of another: md17 (kcal/mol by the size of
# the energy) before extxyz
_READERS = (
    packed,
    ani1,
    ani1x,
    spice,
    spice_conformers,
    md17,
    qm22,
    extxyz,
    runner,
    iso17,
    deepmd,
    ase_db,
    tip3p_npz,
)
FORMATS: dict[str, ModuleType] = {module.NAME: module for module in _READERS}


def guess(path: Path) -> str | None:
    """The name of the format ``path`` (a file or a folder) is written in, judged by its content;
    None if none fits.
    """
    return next((name for name, module in FORMATS.items() if module.sniff(path)), None)


def read(
    path: str | Path, format: str | None = None, dtype: Any = None, **options: Any
) -> Structures:
    """`Structures` from a file or folder in any format of FORMATS; ``format`` forces one.

    Positions and forces are kept as ``dtype`` (default float32; energies are float64 always).
    ``options`` go to the reader. A folder of files that only make sense one by one is read file by
    file, in name order, and joined. Raises DataError for a missing file, an unknown content, or
    whatever is wrong inside; ConfigError for an unknown option.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    if not (path.is_file() or path.is_dir()):
        raise DataError(
            f"{path}: a pipe or a device, which can be read only once; write it to a file and name "
            "that"
        )
    if path.is_file() and path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty")
    if format is not None and format not in FORMATS:
        raise ConfigError(f"unknown format {format!r}: known are {', '.join(FORMATS)}")
    name = format or guess(path)
    if name is None and path.is_dir():
        return _read_each(path, dtype, options)
    if name is None:
        raise DataError(
            f"{path}: {what(path)}; known formats are {', '.join(FORMATS)} (format= forces one)"
        )
    reader = FORMATS[name].read
    known = [p for p in inspect.signature(reader).parameters if p not in ("path", "dtype")]
    if unknown := sorted(set(options) - set(known)):
        raise ConfigError(
            f"format {name} has no option {unknown[0]!r} (it has: {', '.join(known) or 'none'})"
        )
    if dtype is not None:
        options["dtype"] = dtype
    try:
        # what a type cannot hold is named by the packer
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            return reader(path, **options)
    except DataError as error:
        # what is said by rooms that know of no file
        if path.name in str(error):
            raise
        raise DataError(f"{path}: {error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not a text file (byte {error.start})") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _read_each(folder: Path, dtype: Any, options: dict[str, Any]) -> Structures:

    files = data_files(folder)
    formats = {f: guess(f) for f in files}
    foreign = [f.name for f, name in formats.items() if name is None]
    if not files or foreign:
        what = f"{foreign[0]} is in no known format" if foreign else "no data file in this folder"
        raise DataError(f"{folder}: {what}; known formats are {', '.join(FORMATS)}")
    out = concatenate([read(f, formats[f], dtype, **options) for f in files])
    out.info["name"] = folder.name
    return out


def what(path: Path) -> str:
    """One clause on why the content was not recognised."""
    from .hdf5 import first_keys, is_hdf5

    if is_hdf5(path):
        try:
            with open_hdf5(path) as file:
                for _ in walk_groups(file, path):
                    pass
        except DataError as error:
            return str(error).removeprefix(f"{path}: ")
        keys = sorted(first_keys(path))
        return f"HDF5 file of unknown layout (its groups have: {', '.join(keys[:12]) or 'nothing'})"
    return "content is in no known format"
