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
    rng, elements = np.random.default_rng(seed), list(elements)
    if periodic:
        cell = cutoff * np.array([[0.9, 0.0, 0.0], [0.25, 1.1, 0.0], [-0.2, 0.3, 1.3]])
        kinds = [
            ((True, True, True), 5),
            ((True, True, False), 4),
            ((True, False, False), 3),
            ((False, False, False), 5),
        ]
    else:
        cell, kinds = (
            cutoff * np.diag([1.4, 0.8, 0.8]),
            [((False, False, False), n) for n in (6, 4, 5)],
        )
    parts, z, sizes = [], [], [n for _, n in kinds]
    for pbc, n in kinds:
        parts.append(_spread(rng, n, cell, pbc, cutoff))
        z.append(rng.choice(elements, n))
    flags = np.array([pbc for pbc, _ in kinds])
    cells = np.where(flags.any(1)[:, None, None], cell, 0.0) if periodic else None
    ptr = np.concatenate([[0], np.cumsum(sizes)])
    return Structures(
        np.concatenate(z),
        np.concatenate(parts),
        ptr,
        cell=cells,
        pbc=flags,
        info={"name": "examples"},
    )


def _spread(
    rng: np.random.Generator, n: int, cell: np.ndarray, pbc: tuple[bool, ...], cutoff: float
) -> np.ndarray:
    batch, ptr = torch.zeros(n, dtype=torch.long), torch.tensor([0, n])
    box, flags = torch.tensor(cell)[None], torch.tensor([pbc])
    for _ in range(10_000):
        pos = rng.random((n, 3)) @ cell
        points = torch.from_numpy(pos)
        edges, shifts = neighbor_list(points, batch, ptr, 1.01 * cutoff, box, flags)
        distance = (points[edges[0]] + shifts.to(points) @ box[0] - points[edges[1]]).norm(dim=1)
        if not (((distance / cutoff - 1).abs() < 0.005) | (distance < 0.22 * cutoff)).any():
            return pos
    # only if `cell` above is made far too small
    raise RuntimeError("no random structure without close contacts was found")
