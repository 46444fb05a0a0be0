"""Faster versions of the networks' work on edges; `replacements` says what stands in, and when.

Written operation by operation, a layer makes dozens of arrays [E, F], each larger than the cache.
``egnn_blocks``, ``torchmd_et_blocks`` and ``schnet_pairs`` go through the edges in blocks that stay
in the cache, with PyTorch's operations; each of the ten or twenty operations on a block is then a
call of its own, and threads meet after each. ``egnn``, ``torchmd_et`` and ``schnet`` are the same
loops in C++ with the operations between two matrix products fused, and every thread goes its own
way through its own blocks. Matrix products stay PyTorch's. ``schnet_table`` does without most
products. Those in C++ serve two derivatives, and are for `TrainConfig.compile` on a CPU;
``egnn_operations`` and ``torchmd_et_operations`` make those of their networks known to
torch.compile.

The sources are compiled at first use (one to three minutes, by the C++ compiler that torch-scatter
is built with) and kept in the user's cache, or in the folder that POTKIT_KERNELS names. Nothing
compiled is used unless asked for; the plain functions of models/ remain the reference.
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
    """Within, networks that have kernels use them (on CPU tensors of float32).

    Raises ConfigError as `load` does.
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
