"""MD17, revised MD17 and MD22: one molecule, many frames, kcal/mol and Å. As .npz (two sets of
names) and as .xyz (two header styles).

sGDML's .npz: R [n,a,3], E [n] or [n,1], F [n,a,3], z [a] (S. Chmiela et al., 10.1126/sciadv.1603015
and 10.1126/sciadv.adf0873); the revised set: coords, energies, forces, nuclear_charges
(10.1088/2632-2153/abba6f). sGDML's .xyz: the comment line is the energy alone, or says Energy=…;
the atom lines are element x y z fx fy fz. An .npz that names its units (r_unit, e_unit) is
believed.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ... import units
from ...errors import DataError
from ...structures.store import Structures
from . import extxyz
from .common import (
    NpyRows,
    checked_numbers,
    energy_unit_from_size,
    load_npz,
    npz_names,
    numbers_of,
    require_finite,
    system_name,
)
from .packer import Packer

NAME = "md17"
DESCRIPTION = "MD17, rMD17, MD22 (.npz or sGDML .xyz, or a folder of them): Å, kcal/mol, kcal/mol/Å"
FRAMES = 5_000  # read at once
SPELLINGS = (
    {"pos": "R", "energy": "E", "forces": "F", "z": "z"},
    {"pos": "coords", "energy": "energies", "forces": "forces", "z": "nuclear_charges"},
)


def sniff(path: Path) -> bool:
    """Whether it is an .npz with one of the two sets of names, or an .xyz whose energy is the size
    of kcal/mol; or a folder of them.
    """
    if path.is_dir():
        files = _files(path)
        return bool(files) and all(sniff(f) for f in files)
    names = npz_names(path)
    if names:
        return any({s["pos"], s["z"], s["energy"]} <= names for s in SPELLINGS)
    head = extxyz.first_lines(path, 3)
    if len(head) < 3 or not head[0].strip().isdigit():
        return False
    if _bare_energy(head[1]) is not None:
        return len(head[2].split()) == 7
    info = extxyz.parse_comment(head[1])
    if "Energy" not in info or len(head[2].split()) != 7:
        return False
    try:  # eV files spell it this way too: only the size of the number tells
        n = int(head[0])
        lines = extxyz.first_lines(path, n + 2)[2:]
        z = numbers_of([line.split()[0] for line in lines], str(path))
        return energy_unit_from_size(z, float(info["Energy"])) == "kcal/mol"
    except (DataError, ValueError, IndexError):
        return False


def read(
    path: Path, dtype: Any = np.float32, old: bool = False, system: str | None = None
) -> Structures:
    """Read one molecule, or every molecule of a folder. ``old`` takes rMD17's original MD17 labels
    (old_energies, old_forces). ``system`` names the molecule (default: as the file is named).

    Raises DataError naming file and frame for what does not fit, among it energies that are the
    size of Hartree.
    """
    packer = Packer(dtype)
    for file in _files(path) if path.is_dir() else [path]:
        if npz_names(file) or file.suffix == ".npz":
            _read_npz(file, packer, old, system)
        else:
            _read_xyz(file, packer, system)
    return packer.finish(str(path), name=path.stem, source_format=NAME)


def _files(folder: Path) -> list[Path]:
    endings = (".npz", ".xyz", ".extxyz")
    return [f for f in sorted(folder.iterdir()) if f.is_file() and f.suffix.lower() in endings]


def _label(path: Path, arrays: dict[str, np.ndarray]) -> str:
    name = path.stem
    if "name" in arrays and arrays["name"].dtype.kind == "U":
        name = str(arrays["name"].reshape(-1)[0])
    return name.removeprefix("rmd17_").removeprefix("md17_").removeprefix("md22_")


def _unit(arrays: dict[str, np.ndarray], key: str, default: str) -> float:
    unit = str(arrays.get(key, default))
    return units.factor("å" if unit == "Ang" else unit)


def _read_npz(path: Path, packer: Packer, old: bool, label: str | None) -> None:
    names = npz_names(path)
    spelling = next((s for s in SPELLINGS if s["pos"] in names), None)
    if not names:
        load_npz(path)  # says what is wrong with the file
    if spelling is None or (missing := [k for k in spelling.values() if k not in names]):
        needed = " or ".join("/".join(s.values()) for s in SPELLINGS)
        lacks = f" has no {missing[0]!r}" if spelling else ""
        raise DataError(
            f"{path}:{lacks} needs {needed} (it has: {', '.join(sorted(names)) or 'nothing'})"
        )
    keys = dict(spelling)
    if old:
        keys |= {"energy": "old_energies", "forces": "old_forces"}
        if keys["energy"] not in names or keys["forces"] not in names:
            raise DataError(
                f"{path}: has no old_energies and old_forces (it has: {', '.join(sorted(names))})"
            )
    arrays = load_npz(path, [keys["z"], keys["energy"], "name", "r_unit", "e_unit"])
    where = str(path)
    z = checked_numbers(arrays[keys["z"]], where)
    energy = arrays[keys["energy"]]
    with (
        closing(NpyRows(path, keys["pos"])) as pos,
        closing(NpyRows(path, keys["forces"])) as forces,
    ):
        n = pos.shape[0] if pos.shape else 0
        if len(pos.shape) != 3 or pos.shape[1:] != (len(z), 3):
            raise DataError(
                f"{where}: {keys['pos']} has shape {pos.shape}, {len(z)} atomic numbers ask for "
                f"(n, {len(z)}, 3)"
            )
        if not n or not len(z):
            raise DataError(f"{where}: holds no frames ({keys['pos']} has shape {pos.shape})")
        if energy.size != n or energy.shape[0] != n:
            raise DataError(
                f"{where}: {keys['energy']} has shape {energy.shape}, {n} frames ask for ({n},)"
            )
        if forces.shape != pos.shape:
            raise DataError(
                f"{where}: {keys['forces']} has shape {forces.shape}, {keys['pos']} {pos.shape}"
            )
        length_factor = _unit(arrays, "r_unit", "å")
        energy_factor = _unit(arrays, "e_unit", "kcal/mol")
        energy = energy.reshape(-1).astype(np.float64) * energy_factor
        require_finite(energy, keys["energy"], where, "frame")
        system = packer.system(label or _label(path, arrays))
        packer.reserve(n, n * len(z))
        for start in range(0, n, FRAMES):
            count = min(FRAMES, n - start)
            positions = pos.take(count).astype(np.float64)
            force = forces.take(count).astype(np.float64)
            require_finite(positions, keys["pos"], where, "frame", start)
            require_finite(force, keys["forces"], where, "frame", start)
            packer.add(
                z,
                positions * length_factor,
                system,
                energy[start : start + count],
                force * (energy_factor / length_factor),
            )


def _bare_energy(comment: str) -> float | None:
    try:
        return float(comment)
    except ValueError:
        return None


def _read_xyz(path: Path, packer: Packer, label: str | None) -> None:
    label = label or _label(path, {})
    block: list[extxyz.Frame] = []
    size = 0
    with open(path, "rb") as file:
        for frame in extxyz.frames(file, path):
            block.append(frame)
            size += len(frame.lines[0]) * frame.n
            if size > extxyz.BLOCK:
                _pack_xyz(block, path, packer, label)
                block, size = [], 0
    if block:
        _pack_xyz(block, path, packer, label)


def _pack_xyz(block: list[extxyz.Frame], path: Path, packer: Packer, label: str) -> None:
    names, numbers = extxyz.parse_lines(block, 0, range(1, 7), 7, path)
    stop = 0
    for frame in block:
        where = f"{path}: frame {frame.index}"
        rows = slice(stop, stop + frame.n)
        stop = rows.stop
        bare = next(iter(frame.info)) if len(frame.info) == 1 else ""
        key = next((k for k in ("Energy", "energy") if k in frame.info), None)
        if key is not None:
            energy = extxyz.number(frame.info, key, where)
        elif _bare_energy(bare) is not None:
            energy = extxyz.number({"energy": bare}, "energy", where)
        else:
            raise DataError(f"{where}: the comment line is neither an energy nor holds Energy=")
        z = numbers_of(names[rows], where)
        if energy_unit_from_size(z, energy) == "hartree":
            raise DataError(
                f"{where}: energy {energy} is the size of Hartree, not kcal/mol; "
                "format='qm22' reads Hartree with gradients"
            )
        require_finite(numbers[rows, :3], "position", where, "atom")
        require_finite(numbers[rows, 3:], "force", where, "atom")
        system = packer.system((label, system_name(z)), label)
        packer.add(
            z,
            numbers[rows, :3][None],
            system,
            np.array([energy]) * units.KCAL_MOL,
            numbers[rows, 3:][None] * units.KCAL_MOL,
        )
