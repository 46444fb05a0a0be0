"""What is in an HDF5 file: the keys of its first groups that hold data, which is how HDF5 formats
are told apart.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import h5py

from ...errors import DataError
from ...structures.array_files import open_hdf5, walk_groups

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
    with suppress(DataError), open_hdf5(path) as file:
        for group, others in walk_groups(file, path):
            data = {
                name
                for name in others[: 4 * groups]
                if group.get(name, getclass=True) is h5py.Dataset
            }
            n_with_data += bool(data)
            keys |= data
            if n_with_data >= groups:
                break
    return keys
