"""ASE databases in general: energy and forces as ASE stores them, or as key-value pairs and data
under other names. eV and Å.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError
from ...structures.ase_io import full_stress, stress_of_virial
from ...structures.store import Structures
from .common import checked_numbers, require_finite, system_name
from .packer import Packer

NAME = "ase-db"
DESCRIPTION = "ASE database (SQLite or JSON): Å, eV, eV/Å"
ENERGY_KEYS = ("energy", "total_energy", "Energy")
FORCES_KEYS = ("forces", "atomic_forces", "force")
STRESS_KEYS = ("stress",)
VIRIAL_KEYS = ("virial",)


def sniff(path: Path) -> bool:
    """Whether it is an SQLite file with ASE's table of systems, or JSON with ASE's keys."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(4096)
    if head.startswith(b"SQLite format 3"):
        import sqlite3

        try:
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as base:
                names = base.execute("select name from sqlite_master where type='table'")
                tables = {row[0] for row in names}
        except sqlite3.Error:
            return True  # it is a database, only damaged: let the reader say so
        return {"systems", "keys"} <= tables
    return head.lstrip().startswith(b'{"1"') and b'"positions"' in head


PAGE = 1000  # rows fetched at once: ASE would bring a whole database into memory


def rows(path: Path):
    """The rows of an ASE database in the order of their ids; sqlite's complaints become one line
    naming file and row.
    """
    import sqlite3

    from ase.db import connect

    last = 0
    try:
        with open(path, "rb") as file:
            kind = "json" if file.read(1) == b"{" else "db"
        with connect(path, type=kind, use_lock_file=False) as base:
            while True:
                if kind == "json":
                    page = list(base.select())
                else:
                    page = list(base.select([("id", ">", last)], sort="id", limit=PAGE))
                for row in page:
                    last = row.id
                    yield row
                if kind == "json" or len(page) < PAGE:
                    return
    except (sqlite3.Error, json.JSONDecodeError, KeyError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{path}: after row {last}: not a readable ASE database ({str(error).splitlines()[0]})"
        ) from error


def add_row(
    row: Any, where: str, packer: Packer, system: Any = None, require: Sequence[str] = ("energy",)
) -> None:
    """Append an `ase.db` row to ``packer``. ``system``: key of its system (default: the row's
    ``system`` or ``name``, or formula).
    """
    z = checked_numbers(row.numbers, where)
    data = row.data if row.data else {}
    pairs = row.key_value_pairs

    def find(keys: Sequence[str]) -> Any:
        for key in keys:
            if key in pairs:
                return pairs[key]
            if key in data:
                return data[key]
            if key in ("energy", "forces", "stress") and row.get(key) is not None:
                return row.get(key)
        return None

    energy, forces = find(ENERGY_KEYS), find(FORCES_KEYS)
    for name, value in (("energy", energy), ("forces", forces)):
        if value is None and name in require:
            raise DataError(
                f"{where}: has no {name} (it has: {', '.join([*pairs, *data]) or 'nothing'})"
            )
    require_finite(row.positions, "position", where, "atom")
    if energy is not None:
        energy = np.asarray(energy, np.float64).reshape(-1)
        if energy.size != 1:
            raise DataError(f"{where}: energy has {energy.size} values")
        require_finite(energy, "energy", where, "value")
    if forces is not None:
        forces = np.asarray(forces, np.float64)
        if forces.shape != (len(z), 3):
            raise DataError(f"{where}: forces have shape {forces.shape}, expected ({len(z)}, 3)")
        require_finite(forces, "force", where, "atom")
        forces = forces[None]
    stress, virial = find(STRESS_KEYS), find(VIRIAL_KEYS)
    if stress is None and virial is not None:
        stress = stress_of_virial(virial, row.cell)
    if stress is not None:
        stress = full_stress(stress)
        require_finite(stress[None], "stress", where, "value")
    key = system if system is not None else pairs.get("system", pairs.get("name", system_name(z)))
    charge = pairs.get("charge", data.get("charge", row.get("charge")))
    packer.add(
        z,
        row.positions[None],
        packer.system(key),
        energy,
        forces,
        row.cell if np.any(row.pbc) else None,
        row.pbc,
        round(charge or 0),
        stress=stress,
    )


def read(
    path: Path, dtype: Any = np.float32, require: Sequence[str] | None = ("energy",)
) -> Structures:
    """Read every row. ``require`` as in extended XYZ. Raises DataError naming file and row."""
    packer = Packer(dtype)
    for row in rows(path):
        add_row(row, f"{path}: row {row.id}", packer, require=tuple(require or ()))
    return packer.finish(str(path), name=path.stem, source_format=NAME)
