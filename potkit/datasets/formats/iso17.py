"""ISO17: ASE databases of C7O2H10 isomers with ``total_energy`` (eV) and ``atomic_forces`` (eV/Å),
and id files for its own split.

K. T. Schütt et al., NeurIPS 30 (2017). A folder with reference.db (80 % of the steps of 80 % of the
trajectories), test_within.db (their other steps), test_other.db (unseen trajectories),
train_ids.txt and validation_ids.txt (rows of reference.db, counted from 1). The archive's
reference_eq.db and test_eq.db (one relaxed geometry per isomer) are left aside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ...errors import ConfigError, DataError
from ...structures.geometry import bond_graph, graph_key
from ...structures.store import Structures
from .. import published_splits
from .ase_db import add_row, count_rows, rows
from .common import checked_numbers, system_name
from .packer import Packer

NAME = "iso17"
DESCRIPTION = (
    "ISO17 folder: reference.db, test_within.db, test_other.db, train_ids.txt, validation_ids.txt"
)
PARTS = ("train", "valid", "test_within", "test_other")
_IDS = {"train": "train_ids.txt", "valid": "validation_ids.txt"}
_DATABASES = {
    "train": "reference.db",
    "valid": "reference.db",
    "test_within": "test_within.db",
    "test_other": "test_other.db",
}


def sniff(path: Path) -> bool:
    """Whether it is a folder that holds reference.db and train_ids.txt."""
    return (
        path.is_dir() and (path / "reference.db").is_file() and (path / "train_ids.txt").is_file()
    )


def read(
    path: Path, dtype: Any = np.float32, part: str | None = None, systems: str = "isomer"
) -> Structures:
    """Read one ``part`` ("train", "valid", "test_within", "test_other") or all four, one after the
    other.

    ``systems``: "isomer" (the files carry no name of the molecule: isomers are told apart by the
    graph of their bonds, named by its hash, so isomers of different stereochemistry share one) or
    "part". `parts` gives the rows of the published split; the isomers of test_other occur nowhere
    else. Raises DataError for a missing database, and for an id that points past the end of
    reference.db or comes twice.
    """
    if part is not None and part not in PARTS:
        raise ConfigError(f"part must be one of {', '.join(PARTS)}, got {part!r}")
    if systems not in ("isomer", "part"):
        raise ConfigError(f"systems must be 'isomer' or 'part', got {systems!r}")
    packer = Packer(dtype)
    counts: dict[str, int] = {}
    isomers = _Isomers()

    def add(row: Any, database: Path, name: str) -> None:
        where = f"{database}: row {row.id}"
        system = name
        if systems == "isomer":
            system = isomers.name(checked_numbers(row.numbers, where), row.positions)
        add_row(row, where, packer, system=system, require=("energy", "forces"))
        counts[name] = counts.get(name, 0) + 1

    chosen = PARTS if part is None else (part,)
    for database in dict.fromkeys(path / _DATABASES[name] for name in chosen):
        within = [name for name in chosen if path / _DATABASES[name] == database]
        if not database.is_file():
            if part is None and within[0].startswith("test"):
                continue
            raise DataError(f"{database}: missing")
        ids = {name: _row_ids(path / _IDS[name], database) for name in within if name in _IDS}
        later = []
        for row in rows(database):
            if not ids or row.id in ids[within[0]]:
                add(row, database, within[0])
            elif len(within) > 1 and row.id in ids[within[1]]:
                later.append(row)  # the validation rows: 1 in 100
        for row in later:
            add(row, database, within[1])
    made = packer.finish(str(path), name="iso17", source_format=NAME)
    return published_splits.mark_parts(made, counts)


class _Isomers:
    """The name of the isomer a geometry shows; graphs that were seen in the same numbering of
    atoms are looked up.
    """

    def __init__(self) -> None:
        self._seen: dict[bytes, str] = {}

    def name(self, z: np.ndarray, pos: np.ndarray) -> str:
        """Formula and hash of the graph of bonds of atoms z [a] at pos [a,3] Å."""
        colour, bonded = bond_graph(z, pos)
        numbered = colour.tobytes() + bonded.tobytes()
        if numbered not in self._seen:
            self._seen[numbered] = f"{system_name(z)} {graph_key(colour, bonded)}"
        return self._seen[numbered]


def _row_ids(ids: Path, database: Path) -> set[int]:
    count = count_rows(database)
    return set((published_splits.published(ids, count, base=1) + 1).tolist())


def parts(structures: Structures) -> dict[str, np.ndarray]:
    """The published split of what `read` returned: part -> rows."""
    return published_splits.parts(structures)
