"""Random structures for the contract suite of `potkit.testing`: hard cases on purpose, such as
boxes smaller than the cutoff.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch

from ..structures.neighbors import neighbor_list
from ..structures.store import Structures


def examples(
    cutoff: float, periodic: bool = False, seed: int = 0, elements: Iterable[int] = (1, 6, 7, 8)
) -> Structures:
    """Random structures whose size goes with ``cutoff`` (Å): three free ones, or a box, a slab, a
    wire and a free one.

    The box and the slab are triclinic and shorter than the cutoff along their first vector. No pair
    distance lies within half a per cent of the cutoff, so that numerical differentiation does not
    step across it.
    """
    rng = np.random.default_rng(seed)
    elements = list(elements)
    # periodic along which vectors, and number of atoms, of each structure
    if periodic:
        cell = cutoff * np.array([[0.9, 0.0, 0.0], [0.25, 1.1, 0.0], [-0.2, 0.3, 1.3]])
        kinds = [
            ((True, True, True), 5),
            ((True, True, False), 4),
            ((True, False, False), 3),
            ((False, False, False), 5),
        ]
    else:
        cell = cutoff * np.diag([1.4, 0.8, 0.8])
        kinds = [((False, False, False), n) for n in (6, 4, 5)]
    pos, z = [], []
    for pbc, n in kinds:
        pos.append(_spread(rng, n, cell, pbc, cutoff))
        z.append(rng.choice(elements, n))
    pbc = np.array([directions for directions, _ in kinds])
    ptr = np.cumsum([0, *(n for _, n in kinds)])
    return Structures(
        np.concatenate(z),
        np.concatenate(pos),
        ptr,
        cell=np.where(pbc.any(1)[:, None, None], cell, 0.0) if periodic else None,
        pbc=pbc,
        info={"name": "examples"},
    )


def _spread(
    rng: np.random.Generator, n: int, cell: np.ndarray, pbc: tuple[bool, ...], cutoff: float
) -> np.ndarray:
    """Positions [n, 3] Å in the cell: no pair closer than 0.22 cutoffs, none near the cutoff."""
    batch, ptr = torch.zeros(n, dtype=torch.long), torch.tensor([0, n])
    box, flags = torch.tensor(cell)[None], torch.tensor([pbc])
    for _ in range(10_000):
        pos = rng.random((n, 3)) @ cell
        points = torch.from_numpy(pos)
        edges, shifts = neighbor_list(points, batch, ptr, 1.01 * cutoff, box, flags)
        distance = (points[edges[0]] + shifts.to(points) @ box[0] - points[edges[1]]).norm(dim=1)
        at_cutoff = (distance / cutoff - 1).abs() < 0.005
        too_close = distance < 0.22 * cutoff
        if not (at_cutoff | too_close).any():
            return pos
    # only if `cell` above is made far too small
    raise RuntimeError("no random structure without close contacts was found")
