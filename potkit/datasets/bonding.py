"""Which atoms belong to one molecule, from the geometry alone."""

from __future__ import annotations

import numpy as np


def minimum_image(step: np.ndarray, cell: np.ndarray | None, pbc: np.ndarray) -> np.ndarray:
    """``step`` [..., 3] Å brought to the image nearest to zero along the periodic directions of ``cell`` [3,3].

    By rounding fractional coordinates: exact for the short distances of bonds in any cell that is not strongly skewed.
    """
    if cell is None or not np.any(pbc):
        return step
    full = np.where(np.asarray(pbc)[:, None], cell, np.eye(3))
    return step - (np.round(step @ np.linalg.inv(full)) * pbc) @ full


def water_molecules(z: np.ndarray, pos: np.ndarray, cell: np.ndarray | None, pbc: np.ndarray) -> np.ndarray | None:
    """Molecule number of each atom [a] of a structure of water: every hydrogen goes to its nearest oxygen.

    None if it is not water, that is if there are other elements or an oxygen does not get exactly two hydrogens
    (dissociated, a proton on its way, or an ion).
    """
    oxygen, hydrogen = np.flatnonzero(z == 8), np.flatnonzero(z == 1)
    if len(oxygen) + len(hydrogen) != len(z) or len(hydrogen) != 2 * len(oxygen) or not len(oxygen):
        return None
    step = minimum_image(np.asarray(pos, np.float64)[hydrogen][:, None] - np.asarray(pos, np.float64)[oxygen], cell, pbc)
    nearest = np.square(step).sum(-1).argmin(1)
    if (np.bincount(nearest, minlength=len(oxygen)) != 2).any():
        return None
    out = np.empty(len(z), np.int32)
    out[oxygen], out[hydrogen] = np.arange(len(oxygen)), nearest
    return out
