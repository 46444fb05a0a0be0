"""ASE databases in general: energy and forces as ASE stores them, or as key-value pairs and data
under other names. eV and Å.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ...errors import DataError, PotkitError
from ...structures.array_files import first_line
from ...structures.arrays import cast
from ...structures.ase_io import full_stress, stress_of_virial, whole_charge
from ...structures.store import Structures
from . import label_names
from .common import (
    Units,
    checked_numbers,
    chosen_units,
    named_stress,
    require_finite,
    sized,
    system_name,
)
from .packer import Packer

NAME = "ase-db"
DESCRIPTION = "ASE database (SQLite or JSON): Å, eV, eV/Å"
STRESS_KEYS = ("stress",)
VIRIAL_KEYS = ("virial",)
_FIRST_ROW = re.compile(rb'\s*\{\s*"\d+"\s*:')  # of a JSON database: its id


def sniff(path: Path) -> bool:
    """Whether it is an SQLite file with ASE's table of systems, or JSON with ASE's keys."""
    if not path.is_file():
        return False
    with open(path, "rb") as file:
        head = file.read(4096)
    if head.startswith(b"SQLite format 3"):
        import sqlite3

        try:
            # a URI: the path may hold ? and #
            uri = f"{path.resolve().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True)) as base:
                base.text_factory = bytes  # the text of a damaged file is none
                names = base.execute("select name from sqlite_master where type='table'")
                tables = {row[0] for row in names}
        except (sqlite3.Error, UnicodeDecodeError):  # sqlite quotes what is no text
            return True  # it is a database, only damaged: let the reader say so
        return {b"systems", b"keys"} <= tables
    # the first row may have been deleted; in a large one the positions stand far behind
    return _FIRST_ROW.match(head) is not None and (b'"ctime"' in head or b'"positions"' in head)


def _kind(path: Path) -> str:
    """What ASE calls the kind of database: "json" or "db"."""
    with open(path, "rb") as file:
        return "json" if file.read(4096).lstrip().startswith(b"{") else "db"


PAGE = 1000  # rows fetched at once: ASE would bring a whole database into memory


def rows(path: Path):
    """The rows of an ASE database in the order of their ids; sqlite's complaints become one line
    naming file and row.
    """

    from ase.db import connect

    last = 0
    try:
        kind = _kind(path)
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
    except PotkitError:
        raise
    except Exception as error:  # ASE's readers raise what they like; here is nothing but them
        raise DataError(
            f"{path}: after row {last}: not a readable ASE database ({first_line(error)})"
        ) from error


def count_rows(path: Path) -> int:
    """How many rows an ASE database has. Raises DataError."""
    from ase.db import connect

    try:
        with connect(path, type="db", use_lock_file=False) as base:
            return base.count()
    except Exception as error:  # ASE's readers raise what they like
        raise DataError(f"{path}: not a readable ASE database ({first_line(error)})") from error


def add_row(
    row: Any,
    where: str,
    packer: Packer,
    system: Any = None,
    require: Sequence[str] = ("energy",),
    keys: tuple[str | None, str | None] = (None, None),
    factors: Units | None = None,
    stress_key: str | None = None,
) -> None:
    """Append an `ase.db` row to ``packer``. ``system``: key of its system (default: the row's
    ``system`` or ``name``, or formula). ``keys``: names of energy and forces, where they are not to
    be guessed; ``stress_key`` likewise. ``factors``: of its units; eV and Å by default, where the
    size of the energy is looked at.
    """
    for name in ("numbers", "positions", "cell", "pbc"):
        if getattr(row, name, None) is None:
            raise DataError(f"{where}: has no {name}")
    z = checked_numbers(row.numbers, where)
    data, pairs = _contents(row, where)

    there = _own(row) | dict(data) | dict(pairs)
    chosen = label_names.choose(there, there, where, *keys)
    packer.labels.add(chosen)
    energy = there.get(chosen.energy)
    forces = there.get(chosen.forces)
    for name, value in (("energy", energy), ("forces", forces)):
        if value is None and name in require:
            raise DataError(
                f"{where}: has no {name} (it has: {', '.join([*pairs, *data]) or 'nothing'})"
            )
    if np.shape(row.positions) != (len(z), 3):
        raise DataError(
            f"{where}: positions have shape {np.shape(row.positions)}, expected ({len(z)}, 3)"
        )
    require_finite(row.positions, "position", where, "atom")
    if energy is not None:
        energy = cast(f"{where}: energy", energy, np.float64).reshape(-1)
        if energy.size != 1:
            raise DataError(f"{where}: energy has {energy.size} values")
        require_finite(energy, "energy", where, "value")
        energy = energy * factors.energy if factors else sized(z, energy, where, chosen.energy)
    if forces is not None:
        forces = cast(f"{where}: forces", forces, np.float64)
        if forces.shape != (len(z), 3):
            raise DataError(f"{where}: forces have shape {forces.shape}, expected ({len(z)}, 3)")
        require_finite(forces, "force", where, "atom")
        forces = forces[None] * (factors.forces if factors else 1.0)
    try:
        stress = _stress(row, dict(data) | dict(pairs), where, factors, stress_key)
    except DataError as error:
        raise DataError(str(error) if where in str(error) else f"{where}: {error}") from None
    key = system if system is not None else pairs.get("system", pairs.get("name", system_name(z)))
    length = factors.length if factors else 1.0
    charge = pairs.get("charge", data.get("charge", row.get("charge")))
    positions = cast(f"{where}: positions", row.positions, np.float64)
    cell = cast(f"{where}: cell", row.cell, np.float64)
    if positions.shape != (len(z), 3) or cell.shape != (3, 3):
        raise DataError(
            f"{where}: positions have shape {positions.shape} and the cell {cell.shape}, expected "
            f"({len(z)}, 3) and (3, 3)"
        )
    pbc = cast(f"{where}: pbc", row.pbc, bool)
    if pbc.shape != (3,):
        raise DataError(f"{where}: pbc has shape {pbc.shape}, expected (3,)")
    packer.add(
        z,
        positions[None] * length,
        packer.system(key),
        energy,
        forces,
        cell * length if pbc.any() else None,
        pbc,
        whole_charge(charge, where),
        stress=stress,
    )


def _own(row: Any) -> dict[str, Any]:
    """Energy and forces of a row, as ASE itself stores them, as far as it has them."""
    return {key: row.get(key) for key in ("energy", "forces") if row.get(key) is not None}


def _contents(row: Any, where: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The data and the key-value pairs of a row, which ASE decodes here. Raises DataError."""
    try:
        data = row.data if row.data else {}
        return dict(data), dict(row.key_value_pairs)
    except Exception as error:  # the text in the database may be anything
        raise DataError(f"{where}: its data cannot be read ({first_line(error)})") from error


def _metadata(path: Path) -> dict[str, Any]:
    """What the database says about itself, {} if nothing."""
    from ase.db import connect

    try:
        return dict(connect(path, type=_kind(path), use_lock_file=False).metadata or {})
    except Exception:  # `rows` says what is wrong with the file
        return {}


def read(
    path: Path,
    dtype: Any = np.float32,
    require: Sequence[str] | None = (),
    energy_key: str | None = None,
    forces_key: str | None = None,
    energy_unit: str | None = None,
    forces_unit: str | None = None,
    length_unit: str | None = None,
    stress_key: str | None = None,
) -> Structures:
    """Read every row. Options as in extended XYZ.

    SchNetPack's databases name their units in the metadata (``_property_unit_dict``,
    ``_distance_unit``), which are believed unless units are given. Raises DataError naming file and
    row.
    """
    packer = Packer(dtype)
    about = _metadata(path)
    named = about.get("_property_unit_dict") or {}
    lengths = about.get("_distance_unit")
    if not isinstance(named, dict) or not isinstance(lengths, (str, type(None))):
        raise DataError(f"{path}: the units of its metadata are no table of names and units")
    factors: dict[tuple[str | None, str | None], Units | None] = {}
    for row in rows(path):
        where = f"{path}: row {row.id}"
        if not factors or named:
            data, pairs = _contents(row, where)
            there = {*pairs, *data, *_own(row)}
            there &= set(named) if named else there
            names = label_names.choose(there, there, where, energy_key, forces_key)
            units_of = (
                length_unit or lengths,
                energy_unit or named.get(names.energy),
                forces_unit or (None if energy_unit else named.get(names.forces)),
            )
            if units_of not in factors:
                factors[units_of] = chosen_units(*units_of) if any(units_of) else None
        add_row(
            row,
            where,
            packer,
            require=tuple(require or ()),
            keys=(energy_key, forces_key),
            factors=factors[units_of],
            stress_key=stress_key,
        )
    return packer.finish(str(path), name=path.stem, source_format=NAME)


def _stress(
    row: Any,
    values: dict[str, Any],
    where: str,
    factors: Units | None,
    key: str | None = None,
) -> np.ndarray | None:
    """The stress [3, 3] eV/Å³ of a row, or of its virial in ``values``; None without either.

    ``factors`` bring the database's units to eV and Å; ``key``: the name of it, or "none".
    """
    factors = factors or Units(1.0, 1.0, 1.0)
    if key is not None:
        if key not in values:
            return None
        return named_stress(values, key, row.cell * factors.length, where, factors)
    stress = next((values[k] for k in STRESS_KEYS if k in values), row.get("stress"))
    virial = next((values[k] for k in VIRIAL_KEYS if k in values), None)
    if stress is None and virial is None:
        return None
    if stress is None:
        stress = factors.energy * stress_of_virial(virial, row.cell * factors.length)
    else:
        stress = factors.energy / factors.length**3 * full_stress(stress)
    require_finite(stress[None], "stress", where, "value")
    return stress
