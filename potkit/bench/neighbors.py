"""Neighbour lists beside vesin and matscipy: periodic boxes of rising size, and a batch of
molecules.

All give every pair within 5 Å with its cell shift, sorted by the receiving atom; potkit's as
tensors, the others' as the NumPy arrays they come in. Linear growth shows in the time per atom
(``per_atom_us``).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..errors import DataError
from ..structures import neighbors
from ..structures.store import Structures
from .common import COLUMNS, Rival, alkanes, check_device, compare, water_like

CUTOFF = 5.0  # Å


def run(
    device: str = "cpu",
    threads: int = 1,
    repeats: int = 5,
    sizes: tuple[int, ...] = (1_000, 10_000, 100_000),
    say: Callable[[str], None] = lambda text: None,
):
    """A DataFrame, a row per size and implementation; ``ratio`` is the first peer's time over
    each one's.
    """
    import pandas as pd

    check_device(device, threads)
    rows = []
    for n in sizes:
        case = f"{n:,} atoms".replace(",", " ") + ", periodic, 5 Å"
        rounds = repeats if n <= 20_000 else min(repeats, 3)
        rows += _rows(case, water_like(n), device, threads, rounds, say)
    molecules, _ = alkanes(64)
    rows += _rows("64 molecules, 5 Å", molecules, device, threads, repeats, say)
    table = pd.DataFrame(rows, columns=[*COLUMNS, "per_atom_us"])
    table["per_atom_us"] = 1e6 * table["median_s"] / table["atoms"]
    return table


def _rows(
    case: str,
    structures: Structures,
    device: str,
    threads: int,
    repeats: int,
    say: Callable[[str], None],
) -> list[dict[str, Any]]:
    batch = structures.batch(device=device)
    # the others get the same rounded numbers: at 100 000 atoms some pairs lie that close to the
    # cutoff
    points = np.split(batch.pos.double().cpu().numpy(), structures.ptr[1:-1])
    cells = [np.zeros((3, 3))] * len(points)
    if batch.cell is not None:
        cells = list(batch.cell.double().cpu().numpy())
    inputs = list(zip(points, cells, structures.pbc.tolist(), strict=True))
    cell, pbc = (batch.cell, batch.pbc) if batch.periodic else (None, None)

    def ours() -> tuple[torch.Tensor, torch.Tensor | None]:
        return neighbors.neighbor_list(
            batch.pos, batch.batch, batch.ptr, CUTOFF, cell, pbc, batch.max_atoms
        )

    n_edges = {"potkit": len(ours()[0][0])}
    rivals = []
    if (vesin := _module("vesin")) is not None:

        def by_vesin() -> list:
            finder = vesin.NeighborList(cutoff=CUTOFF, full_list=True, sorted=True)
            return [
                finder.compute(points=p, box=c, periodic=along, quantities="ijS")
                for p, c, along in inputs
            ]

        n_edges["vesin"] = sum(len(i) for i, *_ in by_vesin())
        rivals.append(Rival("vesin", by_vesin))
    if (matscipy := _module("matscipy.neighbours")) is not None:
        # of structures that are not periodic it wants a cell around the atoms all the same
        boxed = [
            (p, c if any(along) else np.eye(3) * (np.ptp(p, 0).max() + 2 * CUTOFF), along)
            for p, c, along in inputs
        ]

        def by_matscipy() -> list:
            return [
                matscipy.neighbour_list("ijS", positions=p, cell=c, pbc=along, cutoff=CUTOFF)
                for p, c, along in boxed
            ]

        n_edges["matscipy"] = sum(len(i) for i, *_ in by_matscipy())
        rivals.append(Rival("matscipy", by_matscipy))
    if len(set(n_edges.values())) > 1:
        raise DataError(f"{case}: numbers of neighbours differ: {n_edges}")
    rivals.append(Rival("potkit", ours))
    return compare(
        case,
        rivals,
        repeats,
        device,
        threads,
        memory=False,
        say=say,
        atoms=len(batch.pos),
        edges=n_edges["potkit"],
    )


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None
