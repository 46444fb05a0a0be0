"""potkit's own store: what `Structures.save` wrote (a folder of .npy files, or one .h5 file)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...structures import storage
from ...structures.store import Structures

NAME = "potkit"
DESCRIPTION = "potkit's own packed store (folder or .h5)"


def sniff(path: Path) -> bool:
    """Whether `Structures.save` wrote it."""
    return storage.is_packed(path)


def read(path: Path, dtype: Any = None, mmap: bool = True) -> Structures:
    """Open the store; a folder is memory-mapped. ``dtype`` converts positions and forces (and then
    holds them in memory).
    """
    out = Structures.open(path, mmap=mmap)
    if dtype is not None:
        out.pos = out.pos.astype(dtype, copy=False)
        out.forces = None if out.forces is None else out.forces.astype(dtype, copy=False)
    return out
