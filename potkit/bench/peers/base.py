"""What peers share: what a peer is, its edges, its forces, and how its package is found."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import io
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...structures import neighbors


def call(module: nn.Module, batch: Any) -> Tensor:
    """The vector of a module that takes a batch, [N, 3]."""
    return module(batch)


def needs_nothing(batch: Any) -> None:
    """What `Peer.hold` does for a network that finds its edges by itself."""


@dataclasses.dataclass
class Peer:
    """``predict(module, batch)`` -> vector [N, 3]; ``same``: weights are copied, so it must be
    potkit's vector.
    """

    name: str
    module: nn.Module
    predict: Callable[[nn.Module, Any], Tensor] = call
    same: bool = True
    note: str = ""
    # gives a network that does not take edges those of the batch
    hold: Callable[[Any], None] = needs_nothing
    periodic: bool = True  # whether it is given periodic structures, too


def minus_gradient(hold: Callable[[Any], None]) -> Callable[[nn.Module, Any], Tensor]:
    """The vector −∂E/∂x of a network of (z, pos, batch) that is given its edges by ``hold``."""

    def predict(module: nn.Module, batch: Any) -> Tensor:
        hold(batch)
        pos = batch.pos.detach().requires_grad_(True)
        energy = module(batch.z, pos, batch.batch)
        return -torch.autograd.grad(energy.sum(), pos, create_graph=True)[0]

    return predict


def edges_of(batch: Any, cutoff: float) -> Any:
    """``batch`` with its edges within ``cutoff`` Å, found anew."""
    return neighbors.attach(copy.copy(batch), cutoff)


def package(name: str) -> Any:
    """A module of another package, or None where it cannot be imported."""
    try:
        # warp, which torchmd-net uses, greets
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        return None
