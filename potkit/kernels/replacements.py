"""What stands in for which plain function of models/, and when; loaded when one is called.

There are two kinds of replacement. *Compiled* ones (C++, built at first use) stand in where
`kernels.used` says so, on CPU tensors of float32. *Blocks* (PyTorch's operations on a block of
edges at a time, so that arrays stay in the cache) stand in by default, where they pay (see `pays`).
Everything else is the plain function: whatever torch.compile traces, GPUs (small caches, slow
launches; but for SchNet's pairs), and training on −∂E/∂x where replacements have first derivatives
only (blocks of EGNN and TorchMD-Net ET). Second derivatives of those are right, too, but come
out of the plain function, which makes the work before them idle.
"""

from __future__ import annotations

from torch import nn

from ..models.graph import Graph
from ..models.replaceable import register
from . import egnn, egnn_blocks, schnet_pairs, schnet_table, torchmd_et, torchmd_et_blocks, wanted


def pays(graph: Graph, width: int) -> bool:
    """Whether blocks are faster than operations on whole arrays [E, F]: from half a megabyte on.

    Measured on one CPU thread of a busy two-core machine (medians of the ratio of a step's times,
    in turn), F = 64, 128 and 256, E = 1 100, 4 500 and 9 800: denoising steps took 0.81 to 0.96 of
    the plain function's time with EGNN, 0.75 to 0.95 with TorchMD-Net ET and 0.52 to 0.77 with
    SchNet, but 1.17, 1.10 and 0.98 at the smallest, E = 1 100 and F = 64.
    """
    return len(graph.sender) * width >= 2**17


def differentiated_once(module: nn.Module, graph: Graph) -> bool:
    """Whether first derivatives are all that will be asked for.

    Training with positions as variables asks for second ones. A network that is not in training
    mode predicts, and is differentiated by positions once.
    """
    return not (module.training and graph.pos.requires_grad)


def blocks_once(module: nn.Module, graph: Graph, width: int) -> bool:
    """Whether blocks are to be used that have first derivatives only."""
    on_cpu = graph.pos.device.type == "cpu"
    return on_cpu and differentiated_once(module, graph) and pays(graph, width)


# -- EGNN ----------------------------------------------------------------------------------------
# Its blocks make the gradients of all weights or none: in predictions, which want those of the
# positions only, they took 1.1 to 1.4 times as long as the plain function. There they stand in for
# large systems only, whose arrays [E, F] would fill the memory.
SCARCE = 2**24  # elements; 64 MB an array, of which a layer makes thirty


def egnn_blocks_serve(layer: nn.Module, graph: Graph, width: int) -> bool:
    """Whether EGNN's blocks are to be used."""
    large = len(graph.sender) * width >= SCARCE
    return (layer.training or large) and blocks_once(layer, graph, width)


register(
    "egnn.messages",
    lambda layer, receiver_part, sender_part, edge, envelope, graph: wanted(graph.pos),
    egnn.messages,
)
register(
    "egnn.messages",
    lambda layer, receiver_part, sender_part, edge, envelope, graph: egnn_blocks_serve(
        layer, graph, receiver_part.shape[1]
    ),
    egnn_blocks.messages,
)

# -- TorchMD-Net ET -------------------------------------------------------------------------------
register(
    "torchmd_et.neighbors",
    lambda network, h, edges: wanted(edges.graph.pos),
    torchmd_et.neighbors,
)
register(
    "torchmd_et.attention",
    lambda layer, q, k, s, v, edges: edges.own is None and wanted(edges.graph.pos),
    torchmd_et.attention,
)
register(
    "torchmd_et.attention",
    lambda layer, q, k, s, v, edges: (
        edges.own is None and blocks_once(layer, edges.graph, q.shape[1])
    ),
    torchmd_et_blocks.attention,
)
register(
    "torchmd_et.update",
    lambda layer, out, mixed, vector, edges: wanted(edges.graph.pos),
    torchmd_et.update,
)


# -- SchNet: training on −∂E/∂x, too -------------------------------------------------------------
def by_pairs(network: nn.Module, graph: Graph) -> bool:
    """Whether filters may be made once for both edges of a pair; a fault cuts some off."""
    return "neighbours-32" not in network.faults and schnet_pairs.is_paired(graph)


register(
    "schnet.interactions",
    lambda network, h, graph: wanted(graph.distance) and by_pairs(network, graph),
    schnet_table.interactions,
)
register(
    "schnet.interactions",
    lambda network, h, graph: pays(graph, h.shape[1]) and by_pairs(network, graph),
    schnet_pairs.interactions,
)
