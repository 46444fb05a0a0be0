"""QM-22: many frames of one molecule in a zip archive, with energies in Hartree and gradients.

A frame is a count, a line with the energy alone (Hartree), and lines ``element x y z gx gy gz``: Å
and Hartree/Bohr. The gradient is minus the force. J. M. Bowman et al., J. Chem. Phys. 156, 240901
(2022), 10.1063/5.0089200. The layout of the text inside is that of sGDML's .xyz files, which hold
forces in kcal/mol/Å: an unpacked file is therefore read only where ``format="qm22"`` says so.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ... import units
from ...errors import DataError
from ...structures.array_files import UNREADABLE, first_line
from ...structures.store import Structures
from . import extxyz
from .common import energy_unit_from_size, numbers_of, require_finite, system_name
from .packer import Packer

NAME = "qm22"
DESCRIPTION = "QM-22 zip archive: Å, Hartree, gradients (minus forces) in Hartree/Bohr"


def sniff(path: Path) -> bool:
    """Whether it is a zip archive with one .xyz in it that begins with a count and an energy of the
    size of Hartree.
    """
    if not path.is_file() or not zipfile.is_zipfile(path):
        return False
    try:
        with _text(path) as (file, label):
            frame = next(extxyz.frames(file, path), None)
            if frame is None or len(frame.lines[0].split()) != 7:
                return False
            z = numbers_of([line.split()[0] for line in frame.lines], label)
            return energy_unit_from_size(z, _energy(frame, label)) == "hartree"
    except DataError:
        return False


def read(path: Path, dtype: Any = np.float32) -> Structures:
    """Read every frame of a zip archive with one .xyz in it, or of that .xyz.

    Raises DataError naming file and frame: an energy that is not the size of Hartree (the file is
    not QM-22's), a wrong number of columns, an early end, NaN, a damaged archive.
    """
    packer = Packer(dtype)
    with _text(path) as (file, label):
        for block in _blocks(extxyz.frames(file, path)):
            _pack(block, path, packer, label)
    return packer.finish(str(path), name=path.stem, source_format=NAME)


def _blocks(frames: Iterator[extxyz.Frame]) -> Iterator[list[extxyz.Frame]]:
    block: list[extxyz.Frame] = []
    size = 0  # bytes of atom lines, nearly
    for frame in frames:
        block.append(frame)
        size += len(frame.lines[0]) * frame.n
        if size > extxyz.BLOCK:
            yield block
            block, size = [], 0
    if block:
        yield block


@contextmanager
def _text(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """The open text, and what its molecule is called."""
    if not zipfile.is_zipfile(path):
        with open(path, "rb") as file:
            yield file, path.stem
        return
    try:
        with zipfile.ZipFile(path) as archive:
            texts = [name for name in archive.namelist() if name.lower().endswith(".xyz")]
            if len(texts) != 1:
                held = ", ".join(archive.namelist()[:8]) or "nothing"
                raise DataError(f"{path}: needs one .xyz inside, holds {held}")
            with archive.open(texts[0]) as file:
                yield io.BufferedReader(file), Path(texts[0]).stem
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(
            f"{path}: zip archive is damaged or encrypted ({first_line(error)})"
        ) from error


def _energy(frame: extxyz.Frame, where: str) -> float:
    """The energy of a frame (Hartree), which its comment line holds alone."""
    word = next(iter(frame.info), "")
    if len(frame.info) != 1:
        raise DataError(f"{where}: the line after the count is not an energy alone")
    return extxyz.number({"energy": word}, "energy", where)


def _pack(block: list[extxyz.Frame], path: Path, packer: Packer, label: str) -> None:
    names, numbers = extxyz.parse_lines(block, 0, range(1, 7), 7, path)
    stop = 0
    for frame in block:
        where = f"{path}: frame {frame.index}"
        rows = slice(stop, stop + frame.n)
        stop = rows.stop
        z = numbers_of(names[rows], where)
        pos = numbers[rows, :3]  # [a, 3] Å
        gradient = numbers[rows, 3:]  # [a, 3] Hartree/Bohr
        require_finite(pos, "position", where, "atom")
        require_finite(gradient, "gradient", where, "atom")
        energy = _energy(frame, where)
        unit = energy_unit_from_size(z, energy)
        if unit != "hartree":
            size = "no unit of a total energy" if unit is None else unit
            raise DataError(
                f"{where}: energy {energy} is the size of {size}, QM-22 has Hartree; "
                "format='md17' reads kcal/mol with forces"
            )
        packer.add(
            z,
            pos[None],
            packer.system((label, system_name(z)), label),
            np.array([energy]) * units.HARTREE,
            -gradient[None] * units.factor("hartree/bohr"),
        )
