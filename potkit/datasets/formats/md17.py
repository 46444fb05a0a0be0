"""MD17, revised MD17 and MD22: one molecule, many frames, kcal/mol and Å. As .npz (two sets of
names) and as .xyz (two header styles).

sGDML's .npz: R [n,a,3], E [n] or [n,1], F [n,a,3], z [a] (S. Chmiela et al., 10.1126/sciadv.1603015
and 10.1126/sciadv.adf0873); the revised set: coords, energies, forces, nuclear_charges
(10.1088/2632-2153/abba6f). sGDML's .xyz: the comment line is the energy alone, or says Energy=…;
the atom lines are element x y z fx fy fz. A comment of key=value pairs is that of extended XYZ,
Lattice, charge and the order of the columns (Properties=…) included. An .npz that names its units
(r_unit, e_unit) is believed.
"""

from __future__ import annotations

from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import numpy as np

from ... import units
from ...errors import DataError
from ...structures.array_files import read_npz
from ...structures.store import Structures
from . import extxyz
from .common import (
    NpyRows,
    Units,
    checked_numbers,
    chosen_units,
    data_files,
    energy_unit_from_size,
    npz_names,
    numbers_of,
    require_finite,
    system_name,
    text_of,
)
from .packer import Packer

NAME = "md17"
DESCRIPTION = "MD17, rMD17, MD22 (.npz or sGDML .xyz, or a folder of them): Å, kcal/mol, kcal/mol/Å"
FRAMES = 5_000  # read at once
NAMED = ("r_unit", "e_unit")
COLUMNS = "species:S:1:pos:R:3:forces:R:3"  # of an .xyz that does not say which it has
SPELLINGS = (
    {"pos": "R", "energy": "E", "forces": "F", "z": "z"},
    {"pos": "coords", "energy": "energies", "forces": "forces", "z": "nuclear_charges"},
)


def sniff(path: Path) -> bool:
    """Whether it is an .npz with one of the two sets of names, or an .xyz whose energy is the size
    of kcal/mol; or a folder of them. A number alone in the comment may be anything, such as a step
    of a simulation: it is an energy where it has the size of one, in whatever unit.
    """
    if path.is_dir():
        files = data_files(path)
        return bool(files) and files == _files(path) and all(sniff(f) for f in files)
    names = npz_names(path)
    if names:
        return any({s["pos"], s["z"]} <= names for s in SPELLINGS)
    head = extxyz.first_lines(path, 3)
    if len(head) < 3 or not extxyz.is_count(head[0]) or len(head[2].split()) != 7:
        return False
    bare = _bare_energy(head[1])
    if bare is not None and not np.isfinite(bare):
        return True  # which the reader refuses
    try:  # files of other units look the same: only the size of the number tells
        energy = float(extxyz.parse_comment(head[1])["Energy"]) if bare is None else bare
        lines = extxyz.first_lines(path, int(head[0]) + 2)[2:]
        z = numbers_of([line.split()[0] for line in lines], str(path))
        unit = energy_unit_from_size(z, energy)
    except (DataError, ValueError, LookupError):
        return False
    # the reader says which unit a bare energy has; eV files spell Energy=… as well
    return unit == "kcal/mol" if bare is None else unit is not None


def read(
    path: Path,
    dtype: Any = np.float32,
    old: bool = False,
    system: str | None = None,
    energy_unit: str | None = None,
    forces_unit: str | None = None,
    length_unit: str | None = None,
) -> Structures:
    """Read one molecule, or every molecule of a folder. ``old`` takes rMD17's original MD17 labels
    (old_energies, old_forces). ``system`` names the molecule (default: as the file is named).
    Units that are given go before those the file names; one energy unit serves the forces, too.
    A ``lattice`` of an .npz holds the cell vectors as columns, as sGDML writes it.

    The energies of an .npz that names no unit are doubted where they have the size of no total
    energy. Raises DataError naming file and frame for what does not fit, among it energies that are
    the size of Hartree.
    """
    packer = Packer(dtype)
    doubts: list[str] = []
    given = {"r_unit": length_unit, "e_unit": energy_unit, "f_unit": forces_unit}
    for file in _files(path) if path.is_dir() else [path]:
        if npz_names(file) or file.suffix == ".npz":
            doubts += _read_npz(file, packer, old, system, given)
        else:
            factors = chosen_units(length_unit, energy_unit, forces_unit, energy="kcal/mol")
            _read_xyz(file, packer, system, factors, energy_unit is not None)
    out = packer.finish(str(path), name=path.stem, source_format=NAME)
    if doubts:
        out.info["doubts"] = doubts
    return out


def _files(folder: Path) -> list[Path]:
    endings = (".npz", ".xyz", ".extxyz")
    return [f for f in sorted(folder.iterdir()) if f.is_file() and f.suffix.lower() in endings]


def _label(path: Path, arrays: dict[str, np.ndarray]) -> str:
    name = path.stem
    if "name" in arrays and arrays["name"].dtype.kind in "US" and arrays["name"].size:
        name = text_of(arrays["name"])
    return name.removeprefix("rmd17_").removeprefix("md17_").removeprefix("md22_")


def _check_size(z: np.ndarray, energy: float, where: str) -> bool:
    """Whether ``energy`` of atoms ``z``, taken for kcal/mol, is the size of a total energy. Raises
    DataError where it is that in another unit.
    """
    like = energy_unit_from_size(z, energy)
    if like is None or like == "kcal/mol":
        return like is not None
    spelled = {"ev": "eV", "hartree": "Hartree", "kj/mol": "kJ/mol"}[like]
    hint = "; format='qm22' reads Hartree with gradients" if like == "hartree" else ""
    raise DataError(
        f"{where} {energy:.10g} is the size of {spelled}, not kcal/mol; give energy_unit= "
        f"(--energy-unit){hint}"
    )


def _npz_units(
    path: Path,
    z: np.ndarray,
    arrays: dict[str, np.ndarray],
    given: dict[str, str | None],
    energy: float | None,
) -> tuple[Units, list[str]]:
    """Of one file: what was given, else what it names, else Å and kcal/mol; and what speaks against
    kcal/mol. ``energy``: the first one, as it stands in the file.
    """
    named = {key: text_of(arrays[key]) for key in NAMED if key in arrays}
    energy_unit = given["e_unit"] or named.get("e_unit")
    doubts = []
    guessed = energy_unit is None and energy is not None
    if guessed and not _check_size(z, energy, f"{path}: names no unit, and energy"):
        doubts.append(
            f"{path.name} names no unit: taken for kcal/mol, its energies ({energy:.10g}) are not "
            "the size of total energies: is energy_unit=eV (--energy-unit eV) meant? "
            "energy_unit=kcal/mol says that they are right"
        )
    factors = chosen_units(
        given["r_unit"] or named.get("r_unit"), energy_unit, given["f_unit"], energy="kcal/mol"
    )
    return factors, doubts


def _read_npz(
    path: Path, packer: Packer, old: bool, label: str | None, given: dict[str, str | None]
) -> list[str]:
    """Append the frames of one file to ``packer``; what speaks against its units is returned."""
    names = npz_names(path)
    spelling = next((s for s in SPELLINGS if s["pos"] in names), None)
    if not names:
        read_npz(path, texts=names)  # says what is wrong with the file
    labels = ("energy", "forces")
    asked = () if spelling is None else [k for n, k in spelling.items() if n not in labels]
    if spelling is None or (missing := [k for k in asked if k not in names]):
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
    arrays = read_npz(path, [keys["z"], keys["energy"], *NAMED, "lattice"], texts=NAMED)
    if "name" in names:
        with suppress(DataError):  # a pickled name is not missed: the file's own name stands in
            arrays |= read_npz(path, ["name"], texts=["name"])
    where = str(path)
    z = checked_numbers(arrays[keys["z"]], where)
    energy = arrays.get(keys["energy"])
    with ExitStack() as stack:
        pos = stack.enter_context(closing(NpyRows(path, keys["pos"])))
        forces = None
        if keys["forces"] in names:
            forces = stack.enter_context(closing(NpyRows(path, keys["forces"])))
        n = pos.shape[0] if pos.shape else 0
        if len(pos.shape) != 3 or pos.shape[1:] != (len(z), 3):
            raise DataError(
                f"{where}: {keys['pos']} has shape {pos.shape}, {len(z)} atomic numbers ask for "
                f"(n, {len(z)}, 3)"
            )
        if not n or not len(z):
            raise DataError(f"{where}: holds no frames ({keys['pos']} has shape {pos.shape})")
        if energy is not None and (energy.size != n or energy.shape[:1] != (n,)):
            raise DataError(
                f"{where}: {keys['energy']} has shape {energy.shape}, {n} frames ask for ({n},)"
            )
        if forces is not None and forces.shape != pos.shape:
            raise DataError(
                f"{where}: {keys['forces']} has shape {forces.shape}, {keys['pos']} {pos.shape}"
            )
        first = None if energy is None else float(energy.reshape(-1)[0])
        factors, doubts = _npz_units(path, z, arrays, given, first)
        if energy is not None:
            energy = energy.reshape(-1).astype(np.float64) * factors.energy
            require_finite(energy, keys["energy"], where, "frame")
        cell = None
        if "lattice" in arrays:  # the vectors are its columns
            if arrays["lattice"].shape != (3, 3):
                raise DataError(
                    f"{where}: lattice has shape {arrays['lattice'].shape}, expected (3, 3)"
                )
            cell = arrays["lattice"].astype(np.float64).T * factors.length
            require_finite(cell, "lattice", where, "vector")
        system = packer.system(label or _label(path, arrays))
        packer.reserve(n, n * len(z))
        for start in range(0, n, FRAMES):
            count = min(FRAMES, n - start)
            positions = pos.take(count).astype(np.float64)
            require_finite(positions, keys["pos"], where, "frame", start)
            force = None
            if forces is not None:
                force = forces.take(count).astype(np.float64)
                require_finite(force, keys["forces"], where, "frame", start)
                force = force * factors.forces
            packer.add(
                z,
                positions * factors.length,
                system,
                None if energy is None else energy[start : start + count],
                force,
                cell,
                cell is not None,
            )
    return doubts


def _bare_energy(comment: str) -> float | None:
    try:
        return float(comment)
    except ValueError:
        return None


def _read_xyz(path: Path, packer: Packer, label: str | None, factors: Units, given: bool) -> None:
    label = label or _label(path, {})
    names = extxyz.Names(packer, None, None)

    def layout_of(frame: extxyz.Frame) -> str:
        return frame.info.get("Properties", "")

    def check(z: np.ndarray, energy: float, where: str, key: str) -> None:
        _check_size(z, energy / units.KCAL_MOL, f"{where}: {key}")

    with open(path, "rb") as file:
        described = map(_described, extxyz.frames(file, path))
        for layout, block in extxyz.blocks(described, layout_of):
            if layout:
                options = {"check": None if given else check, "label": label}
                extxyz.pack(block, layout, path, packer, factors, names, **options)
            else:
                _pack_bare(block, path, packer, label, factors, given)


def _described(frame: extxyz.Frame) -> extxyz.Frame:
    """``frame``; where its comment says Energy= and no Properties, as extended XYZ says it."""
    info = frame.info
    energies = info.keys() & {"Energy", "energy"}
    if "Properties" in info or not energies:
        return frame
    # a word in the free text of a comment says nothing
    pairs = {k: v for k, v in info.items() if v != "T" or k in energies}
    return frame._replace(info=pairs | {"Properties": COLUMNS})


def _pack_bare(
    block: list[extxyz.Frame], path: Path, packer: Packer, label: str, factors: Units, given: bool
) -> None:
    """Append frames whose comment is the energy alone."""
    names, numbers = extxyz.parse_lines(block, 0, range(1, 7), 7, path)
    stop = 0
    for frame in block:
        where = f"{path}: frame {frame.index}"
        rows = slice(stop, stop + frame.n)
        stop = rows.stop
        bare = next(iter(frame.info)) if len(frame.info) == 1 else ""
        if _bare_energy(bare) is None:
            raise DataError(f"{where}: the comment line is neither an energy nor holds Energy=")
        energy = extxyz.number({"energy": bare}, "energy", where)
        z = numbers_of(names[rows], where)
        if not given:
            _check_size(z, energy, f"{where}: energy")
        require_finite(numbers[rows, :3], "position", where, "atom")
        require_finite(numbers[rows, 3:], "force", where, "atom")
        system = packer.system((label, system_name(z)), label)
        packer.add(
            z,
            numbers[rows, :3][None] * factors.length,
            system,
            np.array([energy]) * factors.energy,
            numbers[rows, 3:][None] * factors.forces,
        )
