"""Extended XYZ: a count, a comment of key=value pairs with Properties=…, then a line per atom.
Energies in eV, forces in eV/Å.

The layout is that of libAtoms and ASE. Read here without per-frame objects: the atom lines of many
frames go through one C parser. Understood: Properties, Lattice, pbc, energy, forces (or ``force``,
``REF_forces`` …), stress and virial (six numbers in Voigt's order or nine; the stress in ASE's sign
and the file's unit of energy per Å³, the virial −stress · volume), charge, system. Everything else
is ignored. A frame with a Lattice and no pbc is periodic, as in ASE; a Lattice with pbc="F F F" is
dropped.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import pandas as pd

from ... import units
from ...errors import ConfigError, DataError
from ...structures.ase_io import full_stress, stress_of_virial
from ...structures.geometry import water_molecules
from ...structures.store import Structures
from .common import checked_numbers, energy_unit_from_size, numbers_of, require_finite, system_name
from .packer import Packer

NAME = "extxyz"
DESCRIPTION = "extended XYZ: Properties=…, energy eV, forces (or force) eV/Å"
ENERGY_KEYS = ("energy", "Energy", "REF_energy", "ref_energy", "dft_energy", "total_energy")
FORCES_KEYS = ("forces", "force", "Forces", "REF_forces", "ref_forces", "dft_forces")
STRESS_KEYS = ("stress", "Stress", "REF_stress", "ref_stress", "dft_stress")
VIRIAL_KEYS = ("virial", "virials", "Virial", "REF_virial", "ref_virial", "dft_virial")
CHARGE_KEYS = ("charge", "total_charge")
SYSTEM_KEYS = ("system", "name")
BLOCK = 4_000_000  # bytes of atom lines parsed at once
PAIR = re.compile(r"""([^\s=]+)(?:\s*=\s*("(?:[^"\\]|\\.)*"|'[^']*'|\{[^}]*\}|\[[^\]]*\]|\S+))?""")


class Frame(NamedTuple):
    """One frame as it stands in the file: its atom lines are still text."""

    index: int
    n: int
    info: dict[str, str]
    lines: list[bytes]


def sniff(path: Path) -> bool:
    """Whether the file starts with a count and a comment that holds Properties=."""
    head = first_lines(path)
    return len(head) > 1 and head[0].strip().isdigit() and "Properties=" in head[1]


def first_lines(path: Path, count: int = 3) -> list[str]:
    """The first lines of a file, [] if it is not a text file."""
    if not path.is_file():
        return []
    with open(path, "rb") as file:
        lines = [line for line in (file.readline(1 << 20) for _ in range(count)) if line]
    try:
        return [] if any(b"\0" in line for line in lines) else [line.decode() for line in lines]
    except UnicodeDecodeError:
        return []


def parse_comment(comment: str) -> dict[str, str]:
    """The key=value pairs of a comment line, quotes removed; a bare word counts as "T"."""
    return {m[1]: "T" if m[2] is None else m[2].strip("\"'{}[]") for m in PAIR.finditer(comment)}


def frames(file: BinaryIO, path: Path) -> Iterator[Frame]:
    """The frames of an open file, one after the other. Raises DataError where the file ends too
    early or a count is no count.
    """
    index = 0
    while True:
        count = file.readline()
        if not count.strip():
            rest = file.readline() if count else b""
            if not count or not rest.strip():
                return
            raise DataError(
                f"{path}: frame {index}: expected the number of atoms, found an empty line"
            )
        try:
            n = int(count)
        except ValueError:
            raise DataError(
                f"{path}: frame {index}: expected the number of atoms, found {_shown(count)}"
            ) from None
        if n < 1:
            raise DataError(f"{path}: frame {index}: has {n} atoms")
        comment = file.readline().decode("utf-8", "replace")
        lines = list(islice(file, n))
        if len(lines) < n:
            raise DataError(f"{path}: frame {index}: the file ends after {len(lines)} of {n} atoms")
        yield Frame(index, n, parse_comment(comment), lines)
        index += 1


def columns(properties: str, where: str) -> dict[str, tuple[str, slice]]:
    """The columns that "species:S:1:pos:R:3:…" describes: name -> (type letter, columns)."""
    parts = properties.split(":")
    if len(parts) % 3 or not all(p.isdigit() for p in parts[2::3]):
        raise DataError(f"{where}: Properties={properties!r} is not a list of name:type:columns")
    layout: dict[str, tuple[str, slice]] = {}
    start = 0
    for name, kind, width in zip(parts[::3], parts[1::3], parts[2::3], strict=True):
        layout[name] = (kind, slice(start, start + int(width)))
        start += int(width)
    return layout


def parse_lines(
    block: Sequence[Frame], species: int | None, numeric: Sequence[int], width: int, path: Path
) -> tuple[list[str] | None, np.ndarray]:
    """The atom lines of ``block``: the strings of column ``species`` and the numbers of the
    columns ``numeric`` [N, len].
    """
    lines = [line for frame in block for line in frame.lines]
    text = b"".join(lines)
    numeric = list(numeric)
    try:  # the quick way; whatever it stumbles over goes the exact way, which names the place
        table = pd.read_csv(
            io.BytesIO(text),
            sep=r"\s+",
            header=None,
            dtype={} if species is None else {species: str},
            na_filter=False,
            quoting=3,
        )
    except (ValueError, pd.errors.ParserError):
        table = pd.DataFrame()
    if table.shape == (len(lines), width) and all(table[c].dtype.kind in "if" for c in numeric):
        symbols = None if species is None else table[species].tolist()
        return symbols, table[numeric].to_numpy(np.float64)
    if any(len(line.split()) != width for line in lines):
        _explain(block, numeric, width, path)
    words = np.array(text.split()).reshape(len(lines), width)
    try:
        numbers = words[:, numeric].astype(np.float64)
    except ValueError:
        _explain(block, numeric, width, path)
    symbols = None if species is None else [word.decode() for word in words[:, species]]
    return symbols, numbers


def _explain(block: Sequence[Frame], numeric: Sequence[int], width: int, path: Path) -> None:
    """Raise the DataError that names frame and atom of the first line that is not what Properties
    says.
    """
    for frame in block:
        for i, line in enumerate(frame.lines):
            words = line.split()
            where = f"{path}: frame {frame.index}, atom {i}"
            if len(words) != width:
                raise DataError(
                    f"{where}: expected {width} columns, found {len(words)} in {_shown(line)}"
                )
            for c in numeric:
                try:
                    float(words[c])
                except ValueError:
                    raise DataError(
                        f"{where}: column {c + 1} is not a number: {_shown(words[c])}"
                    ) from None
    raise DataError(f"{path}: frames {block[0].index}…{block[-1].index} cannot be parsed")


def _shown(text: bytes) -> str:
    text = text.decode("utf-8", "replace").strip()
    return repr(text if len(text) < 60 else text[:57] + "…")


def _first(mapping: Any, keys: Sequence[str], forced: str | None = None) -> str | None:
    """The first of ``keys`` (or only ``forced``, if given) that ``mapping`` has, else None."""
    candidates = (forced,) if forced else keys
    return next((key for key in candidates if key in mapping), None)


def read(
    path: Path,
    dtype: Any = np.float32,
    energy_key: str | None = None,
    forces_key: str | None = None,
    energy_unit: str = "eV",
    forces_unit: str = "eV/Å",
    require: Sequence[str] | None = ("energy",),
    waters: bool = False,
) -> Structures:
    """Read a file of frames.

    ``energy_key``/``forces_key`` force a name where the usual ones are not meant. ``require``: what
    every frame must have, of "energy" and "forces"; a label that only some frames have is otherwise
    left out and told in ``info["notes"]``. ``waters``: number the molecules of pure water, found
    from the geometry. Raises DataError naming file, frame and atom: no energy, unknown element,
    NaN, a wrong number of columns, an early end, energies that are not eV.
    """
    required = tuple(require or ())
    if unknown := set(required) - {"energy", "forces"}:
        raise ConfigError(f"require may name 'energy' and 'forces', got {sorted(unknown)}")
    packer = Packer(dtype)
    options = {
        "energy_key": energy_key,
        "forces_key": forces_key,
        "required": required,
        "waters": waters,
    }
    factors = units.factor(energy_unit), units.factor(forces_unit)
    block: list[Frame] = []  # frames of one layout that wait
    size = 0  # bytes of their atom lines, nearly
    layout = ""
    with open(path, "rb") as file:
        for frame in frames(file, path):
            properties = frame.info.get("Properties", "species:S:1:pos:R:3")
            if block and (properties != layout or size > BLOCK):
                _pack(block, layout, path, packer, factors, **options)
                block, size = [], 0
            layout = properties
            block.append(frame)
            size += sum(map(len, frame.lines[:1])) * frame.n
    if block:
        _pack(block, layout, path, packer, factors, **options)
    return packer.finish(str(path), name=path.stem, source_format=NAME)


def _pack(
    block: list[Frame],
    properties: str,
    path: Path,
    packer: Packer,
    factors: tuple[float, float],
    energy_key: str | None,
    forces_key: str | None,
    required: Sequence[str],
    waters: bool,
) -> None:
    where = f"{path}: frame {block[0].index}"
    layout = columns(properties, where)
    place = {name: [*range(span.start, span.stop)] for name, (_, span) in layout.items()}
    if len(place.get("pos", ())) != 3:
        raise DataError(f"{where}: Properties has no pos:R:3 (it has: {', '.join(layout)})")
    element = _first(layout, ("species", "Z", "numbers", "atomic_numbers"))
    if element is None:
        raise DataError(
            f"{where}: Properties has neither species nor Z (it has: {', '.join(layout)})"
        )
    forces_name = _first(layout, FORCES_KEYS, forces_key)
    if forces_name is None and (forces_key or "forces" in required):
        raise DataError(
            f"{where}: has no {forces_key or 'forces'!r} column (it has: {', '.join(layout)})"
        )
    width = max(span.stop for _, span in layout.values())
    by_symbol = layout[element][0] == "S"
    numeric = place["pos"] + place.get(forces_name, [])
    if by_symbol:
        names, numbers = parse_lines(block, place[element][0], numeric, width, path)
    else:  # by number, which goes into the last column
        names, numbers = parse_lines(block, None, [*numeric, place[element][0]], width, path)
    stop = 0
    for frame in block:
        where = f"{path}: frame {frame.index}"
        rows = slice(stop, stop + frame.n)
        stop = rows.stop
        if by_symbol:
            z = numbers_of(names[rows], where)
        else:
            z = checked_numbers(numbers[rows, -1], where)
        pos = numbers[rows, :3]
        require_finite(pos, "position", where, row="atom")
        forces = None
        if forces_name is not None:
            forces = numbers[rows, 3:6]
            require_finite(forces, "force", where, row="atom")
            forces = forces[None] * factors[1]
        cell, pbc = cell_of(frame.info, where)
        energy = _energy(frame.info, z, where, energy_key, required, factors[0])
        system = _first(frame.info, SYSTEM_KEYS)
        charge = _first(frame.info, CHARGE_KEYS)
        molecule = water_molecules(z, pos, cell, pbc) if waters else None
        packer.add(
            z,
            pos[None],
            packer.system(frame.info[system] if system else system_name(z)),
            energy,
            forces,
            cell,
            pbc,
            number(frame.info, charge, where) if charge else 0,
            0 if molecule is None else molecule,
            stress=_stress(frame.info, cell, where, factors[0]),
        )


def _energy(
    info: dict[str, str],
    z: np.ndarray,
    where: str,
    key: str | None,
    required: Sequence[str],
    factor: float,
) -> float | None:
    name = _first(info, ENERGY_KEYS, key)
    if name is None:
        if "energy" in required or key:
            raise DataError(
                f"{where}: has no {key or 'energy'!r} in its comment line (it has: "
                f"{', '.join(info) or 'nothing'})"
            )
        return None
    energy = number(info, name, where) * factor
    # more binding than all electrons have cannot be eV; less is common: pseudopotentials, formation
    # energies
    unit = energy_unit_from_size(z, energy)
    if unit in ("kcal/mol", "kj/mol"):
        raise DataError(
            f"{where}: {name}={info[name]} is the size of {unit}, not eV; give energy_unit= and "
            "forces_unit= of the file"
        )
    return energy


def _stress(
    info: dict[str, str], cell: np.ndarray | None, where: str, factor: float
) -> np.ndarray | None:
    """The stress [3, 3] eV/Å³ of a comment line, or of its virial; None where there is neither.
    ``factor`` brings the file's unit of energy to eV.
    """
    key = _first(info, (*STRESS_KEYS, *VIRIAL_KEYS))
    if key is None:
        return None
    try:
        values = np.array(re.split(r"[\s,\[\]]+", info[key].strip(" [],")), np.float64)
    except ValueError:
        raise DataError(f"{where}: {key}={info[key]!r} is not six or nine numbers") from None
    if not np.isfinite(values).all() or values.size not in (6, 9):
        raise DataError(f"{where}: {key}={info[key]!r} is not six or nine finite numbers")
    if key in VIRIAL_KEYS:
        return factor * stress_of_virial(values, cell)
    return factor * full_stress(values)


def number(info: dict[str, str], key: str, where: str) -> float:
    """The finite number behind ``key`` of a comment line."""
    try:
        value = float(info[key])
    except ValueError:
        raise DataError(f"{where}: {key}={info[key]!r} is not a number") from None
    if not np.isfinite(value):
        raise DataError(f"{where}: {key}={info[key]} is not a finite number")
    return value


def cell_of(info: dict[str, str], where: str) -> tuple[np.ndarray | None, np.ndarray]:
    """Lattice [3,3] (rows are vectors, Å) or None, and pbc [3], of a comment line."""
    if "Lattice" not in info:
        if "T" in info.get("pbc", "F").upper().replace("TRUE", "T").split():
            raise DataError(f"{where}: pbc={info['pbc']!r} but there is no Lattice")
        return None, np.zeros(3, bool)
    try:
        cell = np.array(info["Lattice"].replace(",", " ").split(), np.float64).reshape(3, 3)
    except ValueError:
        raise DataError(f"{where}: Lattice={info['Lattice']!r} is not nine numbers") from None
    require_finite(cell, "Lattice", where, row="vector")
    flags = info.get("pbc", "T T T").replace(",", " ").split()
    if len(flags) != 3:
        raise DataError(f"{where}: pbc={info['pbc']!r} is not three of T and F")
    return cell, np.array([f[0] in "Tt1" for f in flags])
