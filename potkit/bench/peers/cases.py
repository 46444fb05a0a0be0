"""Potkit's side of each case: its network, its batch, copies to be trained, its operations."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from ... import models
from ...kernels.compiling import compile_backbone
from ...models.base import Potential, Prediction
from .base import Peer


def reference(case: str, hidden: int) -> Potential:
    """The network of a case at width ``hidden``: its preset denoise-paper; NequIP's paper
    setting with −∂E/∂x, a quarter as many channels; PaiNN's paper setting.
    """
    if case == "painn":
        return models.build("painn", "paper", hidden=hidden)
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
    return compile_backbone(twin) if compile else twin


class PeerPotential(nn.Module):
    """Energy and forces of a peer's network, with potkit's energy head where it has none of its
    own: batch -> `Prediction` of energy [S] eV and forces −∂E/∂x [N, 3] eV/Å.

    In training mode the forces can be differentiated.
    """

    def __init__(self, case: str, model: Potential, peer: Peer) -> None:
        super().__init__()
        self.case, self.network, self.hold = case, peer.module, peer.hold
        own_head = case not in ("torchmd_et", "egnn")
        self.head = nn.Identity() if own_head else copy.deepcopy(model.energy_head.mlp)

    def forward(self, batch: Any) -> Prediction:
        """Energy [S] eV and forces [N, 3] eV/Å of ``batch``."""
        batch = copy.copy(batch)
        batch.pos = batch.pos.detach().requires_grad_(True)
        energy = self.energy(batch)
        grad = torch.autograd.grad(energy.sum(), batch.pos, create_graph=self.training)[0]
        return Prediction(energy, None, -grad)

    def energy(self, batch: Any) -> Tensor:
        """Energies of the structures, [S] eV."""
        if self.case == "torchmd_et":
            box = batch.cell if "cell" in batch and bool(batch.pbc.all()) else None
            per_atom = self.head(self.network.network(batch.z, batch.pos, batch.batch, box)[0])
        elif self.case == "egnn":
            per_atom = self.head(self.network.features(batch)[0])
        else:
            self.hold(batch)
            energies = self.network(batch.z, batch.pos, batch.batch)[:, 0]
            if self.case == "schnet":  # which sums over the atoms itself
                return energies
            per_atom = energies[:, None]
        total = per_atom.new_zeros(batch.num_graphs)
        return total.index_add(0, batch.batch, per_atom[:, 0])


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
