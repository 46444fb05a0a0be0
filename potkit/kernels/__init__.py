"""The networks' work on edges, compiled for this machine: `TrainConfig.compile` on a CPU.

`edge_block` of EGNN, `blocked` of TorchMD-Net ET and `filtered` of SchNet go through their edges in
blocks; in PyTorch each of the ten or twenty operations on a block is a call of its own, and threads
meet after each. The C++ here is the same loop with the operations between two matrix products
fused, and every thread goes its own way through its own blocks. Matrix products stay PyTorch's.
`interpolated` of SchNet does without most products.

The sources are compiled at first use (one to three minutes, by the C++ compiler that torch-scatter
is built with) and kept in the user's cache, or in the folder that POTKIT_KERNELS names. Nothing
here is used unless asked for; PyTorch's operations remain the reference.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from .build import load

_active = False


@contextlib.contextmanager
def used(wanted: bool = True) -> Iterator[None]:
    """Within, networks that have kernels use them (on CPU tensors of float32). Raises
    ConfigError as `load` does.
    """
    global _active
    if wanted:
        load()
    before, _active = _active, wanted
    try:
        yield
    finally:
        _active = before


def wanted(like: Tensor) -> bool:
    """Whether an operation on ``like`` is to go through a kernel."""
    return _active and like.device.type == "cpu" and like.dtype == torch.float32
