"""Per-frame .npz of classical water, as the masked paper's code stores them:
``data_SEED_FRAME.npz`` with pos, energy, forces.

pos [3m, 3] Å with atoms O H H of one molecule after another, energy kJ/mol, forces [3m, 3]
kJ/mol/nm. The box is not in the files: a cube of 20 Å unless ``box`` says otherwise. Each seed is a
system, so that "by seed" is a split by system.
"""

from __future__ import annotations

import re
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from ... import units
from ...errors import DataError
from ...structures.array_files import read_npz
from ...structures.geometry import minimum_image
from ...structures.store import Structures
from .common import NpyRows, npz_names, require_finite
from .packer import Packer

NAME = "tip3p-npz"
DESCRIPTION = (
    "folder of data_SEED_FRAME.npz (pos Å, energy kJ/mol, forces kJ/mol/nm), three-site water"
)
PATTERN = re.compile(r"data_(\d+)_(\d+)\.npz$")
KEYS = {"pos", "energy", "forces"}


def _frames(path: Path) -> list[tuple[int, int, Path]]:
    """Seed, number and file of each frame, rising."""
    files = path.iterdir() if path.is_dir() else [path]
    return sorted((int(m[1]), int(m[2]), f) for f in files if (m := PATTERN.search(f.name)))


def sniff(path: Path) -> bool:
    """Whether the first frame holds pos, energy and forces; a file of another name than data_SEED_
    FRAME.npz must hold nothing else, and the places of one frame: the keys alone are anybody's.
    """
    frames = _frames(path)
    names = npz_names(frames[0][2] if frames else path)
    if frames or path.is_dir():
        return names >= KEYS
    return names == KEYS and _is_one_frame(path)


def _is_one_frame(path: Path) -> bool:
    """Whether pos is [a, 3], by the header of the array."""
    try:
        with closing(NpyRows(path, "pos")) as pos:
            return len(pos.shape) == 2
    except DataError:
        return True  # what is wrong with it, the reader says


def read(path: Path, dtype: Any = np.float32, box: float = 20.0) -> Structures:
    """Read every frame of a folder (or one). ``box``: edge of the cubic cell, Å. Raises DataError
    naming the file.
    """
    packer = Packer(dtype)
    force_factor = units.factor("kj/mol/nm")
    frames = _frames(path) or [(0, 0, path)]
    size = None
    for seed, _, file in frames:
        names = npz_names(file)
        missing = KEYS - names
        if missing:
            raise DataError(
                f"{file}: has no {sorted(missing)[0]!r} (it has: {', '.join(sorted(names))})"
            )
        arrays = read_npz(file, ["pos", "energy", "forces"])
        if arrays["pos"].size % 9 or arrays["pos"].size == 0:
            raise DataError(
                f"{file}: pos has shape {arrays['pos'].shape}, expected (3 m, 3) for m waters"
            )
        pos = arrays["pos"].reshape(-1, 3).astype(np.float64)
        if arrays["forces"].size != pos.size:
            raise DataError(
                f"{file}: forces have shape {arrays['forces'].shape}, pos {arrays['pos'].shape}"
            )
        if arrays["energy"].size != 1:
            raise DataError(
                f"{file}: energy has shape {arrays['energy'].shape}, expected one value"
            )
        if size is not None and len(pos) != size:
            raise DataError(f"{file}: has {len(pos)} atoms, the frames before have {size}")
        size = len(pos)
        for what in ("pos", "forces", "energy"):
            require_finite(arrays[what].reshape(-1, 1), what, str(file), "entry")
        step = minimum_image(pos[1::3] - pos[::3], np.eye(3) * box, np.ones(3, bool))
        bond = np.linalg.norm(step, axis=1)
        if bond.max() > 2.0:
            first = 3 * int(bond.argmax())
            raise DataError(
                f"{file}: atoms {first} and {first + 1} are {bond.max():.1f} Å apart: the order is "
                f"not O H H, or box is not {box} Å"
            )
        packer.add(
            np.tile(np.array([8, 1, 1], np.uint8), len(pos) // 3),
            pos[None],
            packer.system(seed, f"seed-{seed}"),
            arrays["energy"].reshape(1).astype(np.float64) * units.KJ_MOL,
            arrays["forces"].reshape(1, -1, 3).astype(np.float64) * force_factor,
            np.eye(3) * box,
            True,
            molecule=np.repeat(np.arange(len(pos) // 3), 3),
        )
    return packer.finish(str(path), name=path.name, source_format=NAME)
