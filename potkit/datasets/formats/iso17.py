"""ISO17: ASE databases of C7O2H10 isomers with ``total_energy`` (eV) and ``atomic_forces`` (eV/Å), and id files for its own
split.

K. T. Schütt et al., NeurIPS 30 (2017). A folder with reference.db (80 % of the steps of 80 % of the trajectories),
test_within.db (their other steps), test_other.db (unseen trajectories), train_ids.txt and validation_ids.txt (rows of
reference.db, counted from 1).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError
from ...structures import Structures
from .ase_db import add_row, rows
from .common import Packer

NAME = "iso17"
DESCRIPTION = "ISO17 folder: reference.db, test_within.db, test_other.db, train_ids.txt, validation_ids.txt"
PARTS = ("train", "valid", "test_within", "test_other")
_IDS = {"train": "train_ids.txt", "valid": "validation_ids.txt"}
_DATABASES = {"train": "reference.db", "valid": "reference.db", "test_within": "test_within.db", "test_other": "test_other.db"}


def sniff(path: Path) -> bool:
    """Whether it is a folder that holds reference.db and train_ids.txt."""
    return path.is_dir() and (path / "reference.db").is_file() and (path / "train_ids.txt").is_file()


def read(path: Path, dtype: Any = np.float32, part: str | None = None) -> Structures:
    """Read one ``part`` ("train", "valid", "test_within", "test_other") or all four, one after the other.

    Every part is a system of its own, so that ``structures.system`` tells the published split; `parts` gives its rows. Raises
    DataError for a missing database, and for an id that points past the end of reference.db or comes twice.
    """
    if part is not None and part not in PARTS:
        raise ConfigError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    packer = Packer(dtype)
    for name in PARTS if part is None else (part,):
        database = path / _DATABASES[name]
        if not database.is_file():
            if part is None and name.startswith("test"):
                continue
            raise DataError(f"{database}: missing")
        wanted = _wanted(path / _IDS[name], database) if name in _IDS else None
        for row in rows(database):
            if wanted is None or row.id in wanted:
                add_row(row, f"{database}: row {row.id}", packer, system=name, require=("energy", "forces"))
    return packer.finish(str(path), name="iso17", source_format=NAME)


def _wanted(ids: Path, database: Path) -> set[int]:
    from ase.db import connect

    from ..splits import published

    with connect(database, use_lock_file=False) as base:
        count = base.count()
    return set((published(ids, count, base=1) + 1).tolist())


def parts(structures: Structures) -> dict[str, np.ndarray]:
    """The published split of what `read` returned: part -> rows."""
    names = structures.system_names()
    return {name: np.flatnonzero(structures.system == names.index(name)) for name in PARTS if name in names}
