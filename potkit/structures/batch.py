"""The batch a network sees: several structures as one PyG ``Data``. Apart from `structures`, so
that opening a store needs no PyG.
"""

from __future__ import annotations

from typing import Any

from torch_geometric.data import Data


class Batch(Data):
    """A PyG ``Data`` of several structures; what a set does not have (say ``forces``) reads as
    None.

    z [N] long, pos [N,3] Å, batch [N] long, ptr [S+1] long, energy [S] float64 eV, forces [N,3]
    eV/Å, cell [S,3,3] Å, pbc [S,3] bool, charge [S], system [S], molecule [N] (numbered within its
    structure), mask [N] long (1 = flagged by an objective), force_input [N,3] eV/Å with force_given
    [N] bool (forces an objective shows the network), origin (`Origin`). ``num_graphs`` and
    ``max_atoms`` are Python integers, known without asking the device.
    """

    _optional = frozenset(
        {
            "energy",
            "forces",
            "cell",
            "molecule",
            "mask",
            "target",
            "edge_index",
            "edge_shift",
            "cutoff",
            "force_input",
            "origin",
        }
    )

    @classmethod
    def of(cls, content: dict[str, Any]) -> Batch:
        """``Batch(**content)``, but many times faster: the keys are known to be plain, nothing
        has to be looked up for them.
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
        return self.ptr.shape[0] - 1
