"""Numbers that describe a set of structures: distances, pair distributions, force norms, energies
above the minimum.
"""

from __future__ import annotations

import numpy as np
import torch

from ..errors import DataError
from ..structures.elements import SYMBOLS, atomic_number, composition
from ..structures.geometry import edge_vectors
from ..structures.neighbors import attach
from ..structures.store import Structures


def pair_distances(
    structures: Structures, first: int | str, second: int | str, cutoff: float, chunk: int = 200
) -> np.ndarray:
    """All distances (Å) below ``cutoff`` from an atom of element ``first`` to one of ``second``,
    periodic images included.
    """
    a = atomic_number(first)
    b = atomic_number(second)
    distances = [np.zeros(0)]
    for start in range(0, len(structures), chunk):
        rows = np.arange(start, min(start + chunk, len(structures)))
        batch = attach(structures.batch(rows, dtype=torch.float64), cutoff)
        sender, receiver = batch.edge_index
        keep = (batch.z[receiver] == a) & (batch.z[sender] == b)
        vectors = edge_vectors(batch.pos, sender, receiver, batch.edge_shift)
        distances.append(vectors[keep].norm(dim=1).numpy())
    return np.concatenate(distances)


def bonds(
    structures: Structures, first: int | str, second: int | str, cutoff: float
) -> tuple[np.ndarray, np.ndarray]:
    """Rows (i, j) of the atom arrays, i of element ``first`` and j of ``second``, closer than
    ``cutoff`` Å; not across a cell's faces.

    Lets one follow the same bonds while positions change: ``np.linalg.norm(pos[i] - pos[j],
    axis=1)``.
    """
    a = atomic_number(first)
    b = atomic_number(second)
    batch = attach(structures.batch(dtype=torch.float64), cutoff)
    sender, receiver = batch.edge_index
    keep = (batch.z[receiver] == a) & (batch.z[sender] == b)
    if batch.edge_shift is not None:
        keep &= (batch.edge_shift == 0).all(1)
    if a == b:
        keep &= receiver < sender
    return receiver[keep].numpy(), sender[keep].numpy()


def radial_distribution(
    structures: Structures,
    first: int | str,
    second: int | str,
    cutoff: float = 8.0,
    bins: int = 160,
) -> tuple[np.ndarray, np.ndarray]:
    """g(r) of a periodic set: bin centres [bins] Å and values [bins], 1 for a structureless fluid
    of the same density.
    """
    if structures.cell is None or not structures.pbc.all():
        raise DataError(
            "a radial distribution needs structures that are periodic in all directions"
        )
    a = atomic_number(first)
    b = atomic_number(second)
    distances = pair_distances(structures, a, b, cutoff)
    counts, edges = np.histogram(distances, bins=bins, range=(0.0, cutoff))
    owner = np.repeat(np.arange(len(structures)), structures.n_atoms)
    n_a = np.bincount(owner[structures.z == a], minlength=len(structures))
    n_b = np.bincount(owner[structures.z == b], minlength=len(structures))
    # an atom is no pair with itself, but with its image where that is within the cutoff
    width = 1.0 / np.linalg.norm(np.linalg.inv(structures.cell), axis=1).max(1)
    n_b = n_b - ((a == b) & (width > cutoff))
    # pairs per Å³ without structure
    expected = float((n_a * n_b / np.abs(np.linalg.det(structures.cell))).sum())
    shell = 4.0 / 3.0 * np.pi * np.diff(edges**3)
    return 0.5 * (edges[1:] + edges[:-1]), counts / (expected * shell)


def force_norms(structures: Structures) -> dict[str, np.ndarray]:
    """Length of the force vector on each atom (eV/Å), by element symbol. Raises DataError without
    forces.
    """
    if structures.forces is None:
        raise DataError(f"{structures.info.get('name', 'structures')}: no forces")
    norms = np.linalg.norm(structures.forces, axis=1)
    return {SYMBOLS[z]: norms[structures.z == z] for z in structures.elements}


def energy_above_minimum(structures: Structures) -> np.ndarray:
    """Energy of each structure above the lowest of the same system in the set, [S] eV/atom; NaN
    where it has none.
    """
    if structures.energy is None:
        raise DataError(f"{structures.info.get('name', 'structures')}: no energies")
    lowest = np.full(int(structures.system.max()) + 1, np.inf)
    np.fmin.at(lowest, structures.system, structures.energy)
    return (structures.energy - lowest[structures.system]) / structures.n_atoms


def element_counts(structures: Structures) -> dict[str, int]:
    """How many atoms of each element."""
    totals = composition(structures).sum(0)
    return {SYMBOLS[z]: int(n) for z, n in zip(structures.elements, totals, strict=True)}
