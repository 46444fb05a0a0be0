"""The batch a network sees: several structures as one PyG ``Data``.

Apart from the store, so that opening one needs no PyG.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric.data import Data

from ..errors import DataError
from .arrays import EDGES, rows_per


class Batch(Data):
    """A PyG ``Data`` of several structures; what a set does not have (say ``forces``) reads as
    None.

    z [N] long, pos [N,3] Å, batch [N] long, ptr [S+1] long, energy [S] float64 eV, forces [N,3]
    eV/Å, stress [S,3,3] eV/Å³ (NaN where a structure has none), cell [S,3,3] Å, pbc [S,3] bool,
    charge [S], system [S], molecule [N] (numbered within its structure), formal_charge [N] long
    (e), mask [N] long (1 = flagged by an objective), force_input [N,3] eV/Å with force_given [N]
    bool (forces an objective shows the network), origin (`Origin`).
    ``num_graphs`` and ``max_atoms`` are Python integers, known without asking the device.
    """

    _optional = frozenset(
        (
            "energy",
            "forces",
            "stress",
            "cell",
            "molecule",
            "formal_charge",
            "mask",
            "target",
            "force_input",
            "has_energy",
            "has_forces",
            "origin",
            *EDGES,
        )
    )

    @classmethod
    def of(cls, content: dict[str, Any]) -> Batch:
        """``Batch(**content)``, but many times faster: the keys are known to be plain, nothing has
        to be looked up for them.
        """
        new = cls()
        new._store._mapping.update(content)
        return new

    def __getattr__(self, key: str) -> Any:
        if key in Batch._optional and key not in self.__dict__.get("_store", {}):
            return None
        return super().__getattr__(key)

    @property
    def num_graphs(self) -> int:
        """The number of structures, S."""
        return self.ptr.shape[0] - 1

    def drop_edges(self) -> Batch:
        """Forget the edges, since the atoms moved or others are wanted. Returns self."""
        self.edge_index = self.edge_shift = self.cutoff = None
        return self


def keep_atoms(batch: Batch, keep: Tensor) -> tuple[Batch, Tensor]:
    """``batch`` without the atoms where ``keep`` [N] is False, and the kept rows.

    Arrays with a row per atom shrink, ``ptr`` and the sizes are made anew, edges are dropped. Waits
    for the device once, since sizes change. Raises DataError for an array that is not declared.
    """
    rows = torch.nonzero(keep).flatten()
    new = Batch()
    for key, value in batch.to_dict().items():
        per = rows_per(key)
        if per == "atom" and value is not None:
            setattr(new, key, value.index_select(0, rows))
        elif per != "edge" and key not in ("ptr", "num_nodes"):
            setattr(new, key, value)
    counts = torch.zeros(batch.ptr.shape[0] - 1, dtype=torch.long, device=rows.device)
    counts = counts.index_add_(0, new.batch, torch.ones_like(rows))
    new.ptr = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    new.num_nodes = len(rows)
    return new, rows


def doubled(batch: Batch) -> Batch:
    """``batch`` followed by a copy of itself: structure s + S is a second structure s. Edges are
    dropped. Raises DataError for an array that is not declared.
    """
    n_structures = batch.ptr.shape[0] - 1
    n_atoms = batch.z.shape[0]
    new = Batch()
    for key, value in batch.to_dict().items():
        per = rows_per(key)
        if per in ("atom", "structure"):
            setattr(new, key, _twice(value))
        elif per == "size":
            setattr(new, key, value)
    new.batch = torch.cat([batch.batch, batch.batch + n_structures])
    new.ptr = torch.cat([batch.ptr, batch.ptr[1:] + n_atoms])
    new.num_nodes = 2 * n_atoms
    return new


def _twice(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.cat([value, value])
    if isinstance(value, np.ndarray):
        return np.concatenate([value, value])
    if dataclasses.is_dataclass(value):  # an `Origin`
        return dataclasses.replace(value, systems=value.systems * 2)
    return value


def cut(batch: Batch, size: int) -> Iterator[Batch]:
    """``batch`` cut into batches of at most ``size`` structures; edges are left out, to be made
    anew.

    Waits for the device once. Raises DataError for an array that is not declared or has a wrong
    number of rows.
    """
    n_structures = batch.ptr.shape[0] - 1
    if size >= n_structures:
        yield batch
        return
    ptr = batch.ptr.tolist()
    arrays = {key: (rows_per(key), value) for key, value in batch.to_dict().items()}
    expected = {"atom": batch.z.shape[0], "structure": n_structures}
    for key, (per, value) in arrays.items():
        if per not in expected or not isinstance(value, (Tensor, np.ndarray)):
            continue
        if len(value) != expected[per]:
            raise DataError(f"{key} of the batch has {len(value)} rows for {expected[per]} {per}s")
    for first in range(0, n_structures, size):
        last = min(first + size, n_structures)
        new = Batch()
        for key, (per, value) in arrays.items():
            if per == "atom":
                setattr(new, key, None if value is None else value[ptr[first] : ptr[last]])
            elif per == "structure":
                setattr(new, key, _structures(value, first, last))
        new.batch = new.batch - first
        new.ptr = batch.ptr[first : last + 1] - batch.ptr[first]
        new.num_nodes = ptr[last] - ptr[first]
        new.max_atoms = max(b - a for a, b in itertools.pairwise(ptr[first : last + 1]))
        new.periodic = batch.periodic
        yield new


def _structures(value: Any, first: int, last: int) -> Any:
    """The rows first … last − 1 of what a batch has per structure."""
    if dataclasses.is_dataclass(value):  # an `Origin`
        return dataclasses.replace(value, systems=value.systems[first:last])
    return None if value is None else value[first:last]
