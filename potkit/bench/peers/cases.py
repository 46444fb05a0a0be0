"""Potkit's side of each case: its network, its batch, copies to be trained, its operations."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ... import models
from ...kernels.compiling import compile_backbone
from ...models.base import Potential
from .base import Peer


def reference(case: str, hidden: int) -> Potential:
    """The network of a case at width ``hidden``: its preset denoise-paper; NequIP's paper
    setting with −∂E/∂x, a quarter as many channels.
    """
    if case == "nequip":
        channels = max(hidden // 4, 1)
        return models.build("nequip", "paper", channels=channels, vector="gradient", vectors=False)
    width = {"hidden": hidden, "filters": hidden} if case == "schnet" else {"hidden": hidden}
    return models.build(case, "denoise-paper", **width)


def batch_of(case: str, batch: int, device: str) -> int:
    """Structures per step of a case for ``batch`` in general: on a CPU NequIP gets a sixteenth,
    else its step takes a minute.
    """
    return max(batch // 16, 1) if case == "nequip" and device == "cpu" else batch


def wake(model: Potential) -> None:
    """Scale up the weights by which coordinates are updated, which start at almost nothing:
    differences must show.
    """
    with torch.no_grad():
        for layer in model.backbone.layers:
            if hasattr(layer, "coordinate"):
                layer.coordinate[-1].weight.mul_(300.0)


def copy_of(model: Potential, compile: bool = False) -> nn.Module:
    """A copy with the same weights that can be trained by itself."""
    twin = copy.deepcopy(model)
    return compile_backbone(twin, ("vector",)) if compile else twin


def energy_of(
    case: str, model: Potential, peer: Peer
) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    """The energy (one number per atom or structure) of a peer's network and potkit's head, at
    positions ``pos``.
    """
    head = copy.deepcopy(model.energy_head.mlp)

    def energy(module: nn.Module, batch: Any, pos: Tensor) -> Tensor:
        if case == "torchmd_et":
            return head(module.network(batch.z, pos, batch.batch)[0])
        if case == "egnn":
            return head(module.features(batch)[0])
        peer.hold(batch)
        return module(batch.z, pos, batch.batch)

    return energy


def least_operations(model: Potential, n_edges: int) -> float:
    """Operations of the products per edge that no factorisation removes, forward and backward; 0
    where it is not known.

    EGNN: two products F × F per edge and layer, each with its two derivatives. SchNet: one F × F
    per *pair* (i, j) and layer for the filters, forward and its derivative by the distance, each
    with two derivatives.
    """
    backbone = model.backbone
    kind, layers, width = type(backbone).__name__, len(backbone.layers), backbone.n_features
    if kind == "EGNN":
        return 2 * 3 * 2.0 * n_edges * width * width * layers
    if kind == "SchNet":
        return 6 * 2.0 * (n_edges / 2) * width * width * layers
    return 0.0
