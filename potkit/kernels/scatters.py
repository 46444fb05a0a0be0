"""Sums of edges into atoms as operations of their own in graphs that Inductor compiles.

Inductor (torch 2.13) writes the values of a scatter into the loop that adds them up, and on a CPU
what comes out is wrong in some graphs: forces of PaiNN were off by 5e-3 of their size, without a
word. Values that are worked out before are added up rightly, so here a scatter is a call of torch's
own function, which Inductor cannot look into.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files

aten = torch.ops.aten
SCATTERS = (aten.scatter_add.default, aten.scatter_add_.default)
PUTS = (aten.index_put.default, aten.index_put_.default, aten._unsafe_index_put.default)


_library = torch.library.Library("potkit_graph", "DEF")
_library.define("scatter_add(Tensor to, int axis, Tensor index, Tensor values) -> Tensor")
_library.define("add_rows(Tensor to, Tensor index, Tensor values) -> Tensor")


def _scatter_add(to: Tensor, axis: int, index: Tensor, values: Tensor) -> Tensor:
    """aten's scatter_add."""
    return to.scatter_add(axis, index, values)


def _add_rows(to: Tensor, index: Tensor, values: Tensor) -> Tensor:
    """``values`` [E, …] added to the rows ``index`` [E] of ``to`` [N, …]."""
    return to.index_add(0, index, values)


def _as_to(to: Tensor, *others: object) -> Tensor:
    """What both give, in shape and type."""
    return torch.empty_like(to, memory_format=torch.contiguous_format)


# without torch.library.custom_op, whose checks take longer than a sum over one molecule's edges
for name, function in (("scatter_add", _scatter_add), ("add_rows", _add_rows)):
    _library.impl(name, function, "CompositeExplicitAutograd")
    torch.library.register_fake(f"potkit_graph::{name}", _as_to, lib=_library)


class ScattersApart(CustomGraphPass):
    """Has every scatter of a graph done by the operations above."""

    def __call__(self, graph: torch.fx.Graph) -> None:
        """Change ``graph`` in place."""
        for node in graph.nodes:
            if node.target in SCATTERS:
                node.target = torch.ops.potkit_graph.scatter_add.default
            elif node.target in PUTS and _adds_rows(node):
                to, (index,), values = node.args[:3]
                node.target = torch.ops.potkit_graph.add_rows.default
                node.args = (to, index, values)

    def uuid(self) -> bytes:
        """What Inductor's cache knows the change by."""
        return get_hash_for_files((__file__,))


def _adds_rows(node: torch.fx.Node) -> bool:
    """Whether an index_put adds rows of its values to rows of another array."""
    to, indices, values, *accumulate = node.args
    return (
        bool(accumulate and accumulate[0])
        and len(indices) == 1
        and indices[0].meta["val"].dtype == torch.int64
        and indices[0].meta["val"].ndim == 1
        and values.meta["val"].ndim == to.meta["val"].ndim
    )
