"""What is in an HDF5 file: the keys of its first groups that hold data, which is how HDF5 formats
are told apart.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import h5py

MAGIC = b"\x89HDF\r\n\x1a\n"


def is_hdf5(path: Path) -> bool:
    """Whether the file begins as HDF5 does (it may still be truncated)."""
    try:
        with open(path, "rb") as file:
            return file.read(8) == MAGIC
    except OSError:
        return False


def first_keys(path: Path, groups: int = 20) -> set[str]:
    """The data set names in the first ``groups`` groups that hold any; empty if the file cannot be
    opened. For a folder: its first HDF5 file.
    """
    if path.is_dir():
        path = next((f for f in sorted(path.rglob("*")) if f.is_file() and is_hdf5(f)), path)
    if not path.is_file() or not is_hdf5(path):
        return set()
    keys: set[str] = set()
    n_with_data = 0
    with suppress(OSError, RuntimeError, KeyError), h5py.File(path, "r") as file:
        stack: list[h5py.Group] = [file]
        while stack and n_with_data < groups:
            group = stack.pop()
            kinds = {name: group.get(name, getclass=True) for name in list(group)[: 4 * groups]}
            data = {name for name, kind in kinds.items() if kind is h5py.Dataset}
            n_with_data += bool(data)
            keys |= data
            below = [name for name, kind in kinds.items() if kind is h5py.Group]
            stack.extend(group[name] for name in reversed(below))
    return keys
