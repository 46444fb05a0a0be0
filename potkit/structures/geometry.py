"""Which atoms belong to one molecule, and which isomer it is, from the geometry alone."""

from __future__ import annotations

import hashlib

import numpy as np


def minimum_image(step: np.ndarray, cell: np.ndarray | None, pbc: np.ndarray) -> np.ndarray:
    """``step`` [..., 3] Å brought to the image nearest to zero along the periodic directions of
    ``cell`` [3,3].

    By rounding fractional coordinates: exact for the short distances of bonds in any cell that is
    not strongly skewed.
    """
    if cell is None or not np.any(pbc):
        return step
    full = np.where(np.asarray(pbc)[:, None], cell, np.eye(3))
    return step - (np.round(step @ np.linalg.inv(full)) * pbc) @ full


def water_molecules(
    z: np.ndarray, pos: np.ndarray, cell: np.ndarray | None, pbc: np.ndarray
) -> np.ndarray | None:
    """Molecule number of each atom [a] of a structure of water: every hydrogen goes to its nearest
    oxygen.

    None if it is not water, that is if there are other elements or an oxygen does not get exactly
    two hydrogens (dissociated, a proton on its way, or an ion).
    """
    oxygen, hydrogen = np.flatnonzero(z == 8), np.flatnonzero(z == 1)
    if len(oxygen) + len(hydrogen) != len(z) or len(hydrogen) != 2 * len(oxygen) or not len(oxygen):
        return None
    step = minimum_image(
        np.asarray(pos, np.float64)[hydrogen][:, None] - np.asarray(pos, np.float64)[oxygen],
        cell,
        pbc,
    )
    nearest = np.square(step).sum(-1).argmin(1)
    if (np.bincount(nearest, minlength=len(oxygen)) != 2).any():
        return None
    out = np.empty(len(z), np.int32)
    out[oxygen], out[hydrogen] = np.arange(len(oxygen)), nearest
    return out


def bond_graph(z: np.ndarray, pos: np.ndarray, scale: float = 1.3) -> tuple[np.ndarray, np.ndarray]:
    """Heavy atoms as a graph: colour [h] (atomic number, hydrogens at it) and adjacency [h,h] bool
    of one molecule without box.

    Two heavy atoms are bonded if closer than ``scale`` times the sum of their covalent radii (ASE's
    table: Cordero et al., Dalton Trans. 2832 (2008)): at 1.3 a C–C bond may stretch by 0.4 Å, seven
    standard deviations at 500 K. A hydrogen belongs to its nearest heavy atom however far it has
    swung, so vibrations do not change the graph.
    """
    from ase.data import covalent_radii

    heavy, pos = z > 1, np.asarray(pos, np.float64)
    points, numbers = pos[heavy], z[heavy].astype(np.int64)
    radii = covalent_radii[numbers]
    bonded = np.linalg.norm(points[:, None] - points, axis=-1) < scale * (radii[:, None] + radii)
    np.fill_diagonal(bonded, False)
    hydrogens = np.zeros(len(numbers), np.int64)
    if len(numbers) and (~heavy).any():
        nearest = np.square(pos[~heavy][:, None] - points).sum(-1).argmin(1)
        hydrogens = np.bincount(nearest, minlength=len(numbers))
    return numbers * 100 + hydrogens, bonded


def graph_key(colour: np.ndarray, bonded: np.ndarray) -> str:
    """Eight hex digits that are the same for the same graph however its atoms are numbered.

    Colour refinement (Weisfeiler and Leman 1968) that starts from element, hydrogens and the
    numbers of closed walks of length 3 … 8 through an atom; those walks tell apart ring systems
    that refinement alone does not, such as decalin and bicyclopentyl.
    """
    steps, power, walks = bonded.astype(np.int64), bonded.astype(np.int64) @ bonded, []
    for _ in range(6):
        power = power @ steps
        walks.append(np.diagonal(power))
    labels = [
        _hash((int(c), *(int(w) for w in row))) for c, row in zip(colour, np.stack(walks, axis=1))
    ]
    around = [np.flatnonzero(row) for row in bonded]
    for _ in range(len(labels)):
        labels = [
            _hash((own, *sorted(labels[j] for j in near))) for own, near in zip(labels, around)
        ]
    return _hash(tuple(sorted(labels)))


def _hash(content: tuple) -> str:
    return hashlib.blake2b(repr(content).encode(), digest_size=4).hexdigest()
