"""RuNNer and n2p2 ``input.data``: blocks begin … lattice ×3 … atom … energy … charge … end, in
Bohr, Hartree and Hartree/Bohr.

An atom line is ``atom x y z element charge n fx fy fz`` (charge: of the atom, n: unused). Three
lattice lines or none. Described by J. Behler, RuNNer, and by n2p2's documentation (A. Singraber et
al., 10.1021/acs.jctc.8b00770). Pure water gets its molecules from the geometry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ... import units
from ...errors import DataError
from ...structures.ase_io import whole_charge
from ...structures.geometry import water_molecules
from ...structures.store import Structures
from .common import Units, chosen_units, numbers_of, require_finite, system_name
from .extxyz import first_lines
from .packer import Packer

NAME = "runner"
DESCRIPTION = (
    "RuNNer / n2p2 input.data (file or folder with input.data): Bohr, Hartree, Hartree/Bohr"
)
KEYWORDS = {"lattice", "atom", "energy", "charge", "comment", "end"}


def _file(path: Path) -> Path:
    """``path``, or the one input.data at or below a folder; the folder itself if there is none or
    more than one.
    """
    files = sorted(path.rglob("input.data*")) if path.is_dir() else [path]
    return files[0] if len(files) == 1 else path


def sniff(path: Path) -> bool:
    """Whether the first line that is not empty says begin, and the next is a keyword of the
    format.
    """
    lines = [line.split() for line in first_lines(_file(path), 6)]
    lines = [words for words in lines if words and words[0][0] != "#"]
    return len(lines) > 1 and lines[0] == ["begin"] and lines[1][0] in KEYWORDS


def read(
    path: Path,
    dtype: Any = np.float32,
    length_unit: str | None = None,
    energy_unit: str | None = None,
    forces_unit: str | None = None,
) -> Structures:
    """Read every block; a file without energies is geometries alone.

    n2p2 takes any unit, and the file does not name it: Bohr and Hartree are assumed, and doubted
    where distances or energies are not of their size. Raises DataError naming file and line.
    """
    folder = path
    path = _file(path)
    if path.is_dir():
        files = sorted(folder.rglob("input.data*"))[:8]
        names = ", ".join(file.relative_to(folder).as_posix() for file in files)
        raise DataError(
            f"{folder}: needs one input.data, found {names or 'none'}: read one of them by its path"
        )
    packer = Packer(dtype)
    factors = chosen_units(length_unit, energy_unit, forces_unit, "bohr", "hartree")
    block: dict[str, Any] | None = None
    with open(path, encoding="utf-8-sig") as file:  # a byte order mark is no part of the text
        for number, line in enumerate(file, start=1):
            words = line.split()
            if not words or words[0][0] == "#":
                continue
            where = f"{path}: line {number}"
            if words[0] == "begin":
                if block is not None:
                    raise DataError(
                        f"{where}: begin inside the block that began at line {block['line']}"
                    )
                block = {
                    "line": number,
                    "lattice": [],
                    "atoms": [],
                    "symbols": [],
                    "energy": None,
                    "charge": 0.0,
                }
            elif block is None:
                raise DataError(f"{where}: {words[0]!r} outside begin … end")
            elif words[0] == "atom":
                if len(words) < 10:
                    raise DataError(f"{where}: an atom line has 10 entries, found {len(words)}")
                block["symbols"].append(words[4])
                block["atoms"].append(_floats(words[1:4] + words[7:10], where))
            elif words[0] == "lattice":
                block["lattice"].append(_floats(words[1:], where, 3))
            elif words[0] in ("energy", "charge"):
                block[words[0]] = _floats(words[1:2], where, 1)[0]
            elif words[0] == "end":
                _add(block, f"{path}: block at line {block['line']}", packer, factors)
                block = None
            elif words[0] != "comment":
                known = ", ".join(["begin", *sorted(KEYWORDS)])
                raise DataError(f"{where}: unknown keyword {words[0]!r} (known: {known})")
    if block is not None:
        raise DataError(
            f"{path}: the file ends inside the block that began at line {block['line']}"
        )
    name = path.resolve().parent.name if path.name == "input.data" else path.stem
    out = packer.finish(str(path), name=name, source_format=NAME)
    if doubts := _doubts(out, length_unit is None, energy_unit is None):
        out.info["doubts"] = doubts
    return out


def _doubts(s: Structures, length_assumed: bool, energy_assumed: bool) -> list[str]:
    """What speaks against Bohr and Hartree where they were assumed."""
    from ..checks import shortest_distances

    out = []
    rows = np.linspace(0, len(s) - 1, min(len(s), 20)).astype(int)
    shortest = shortest_distances(s, np.unique(rows))
    if length_assumed and np.isfinite(shortest).any():
        typical = float(np.median(shortest[np.isfinite(shortest)]))
        # no two atoms lie closer than in H2, 0.74 Å
        if typical < 0.65:
            out.append(
                f"taken for Bohr, atoms are {typical:.2f} Å apart: is length_unit=angstrom "
                "(--length-unit angstrom) meant?"
            )
    if energy_assumed and s.energy is not None:
        totals = np.bincount(np.repeat(np.arange(len(s)), s.n_atoms), s.z.astype(float) ** 2.4)
        # more binding than 1.3 times that of all electrons cannot be
        if float(np.median(-s.energy / (0.5 * units.HARTREE * totals))) > 1.3:
            out.append(
                f"taken for Hartree, energies ({s.energy[0]:.0f} eV) are more than all electrons "
                "can bind: is energy_unit=eV (--energy-unit eV) meant?"
            )
    return out


def _floats(words: list[str], where: str, count: int | None = None) -> list[float]:
    if count is not None and len(words) != count:
        raise DataError(f"{where}: expected {count} numbers, found {len(words)}")
    try:
        return [float(w) for w in words]
    except ValueError:
        bad = next(w for w in words if not _is_number(w))
        raise DataError(f"{where}: {bad!r} is not a number") from None


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _add(block: dict[str, Any], where: str, packer: Packer, factors: Units) -> None:
    if not block["atoms"]:
        raise DataError(f"{where}: has no atoms")
    if len(block["lattice"]) not in (0, 3):
        raise DataError(f"{where}: has {len(block['lattice'])} lattice lines, expected 3 or none")
    z = numbers_of(block["symbols"], where)
    numbers = np.array(block["atoms"])
    require_finite(numbers, "position or force", where, "atom")
    energy = None
    if block["energy"] is not None:
        energy = np.array([block["energy"]])
        require_finite(energy, "energy", where, "block")
        energy = energy * factors.energy
    periodic = len(block["lattice"]) == 3
    cell = np.array(block["lattice"]) * factors.length if periodic else None
    if cell is not None:
        require_finite(cell, "lattice", where, "vector")
    pos = numbers[:, :3] * factors.length
    molecule = water_molecules(z, pos, cell, np.full(3, periodic))
    packer.add(
        z,
        pos[None],
        packer.system(system_name(z)),
        energy,
        # without an energy the columns of forces are fillers
        None if energy is None else numbers[None, :, 3:] * factors.forces,
        cell,
        periodic,
        whole_charge(block["charge"], where),
        0 if molecule is None else molecule,
    )
