"""The implementations potkit is measured against, wrapped so that they take potkit's batch and
(where they can) its weights.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import io
import math
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from .. import models
from ..kernels.compiling import compile_backbone
from ..models.base import Potential
from ..models.layers import polynomial_envelope
from ..structures import neighbors
from ..structures.store import Structures


@dataclasses.dataclass
class Peer:
    """``predict(module, batch)`` -> vector [N, 3]; ``same``: weights are copied, so it must be
    potkit's vector.
    """

    name: str
    module: nn.Module
    predict: Callable[[nn.Module, Any], Tensor]
    same: bool = True
    note: str = ""
    # gives a network that does not take edges those of the batch
    hold: Callable[[Any], None] = lambda batch: None


def reference(case: str, hidden: int) -> Potential:
    """The network of a case at width ``hidden``: its preset denoise-paper; NequIP's paper
    setting with −∂E/∂x, a quarter as many channels.
    """
    if case == "nequip":
        return models.build(
            "nequip", "paper", channels=max(hidden // 4, 1), vector="gradient", vectors=False
        )
    return models.build(
        case, "denoise-paper", hidden=hidden, **({"filters": hidden} if case == "schnet" else {})
    )


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
    own = copy.deepcopy(model)
    return compile_backbone(own, ("vector",)) if compile else own


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
    kind, layers = type(model.backbone).__name__, len(model.backbone.layers)
    width = model.backbone.n_features
    if kind == "EGNN":
        return 2 * 3 * 2.0 * n_edges * width * width * layers
    if kind == "SchNet":
        return 6 * 2.0 * (n_edges / 2) * width * width * layers
    return 0.0


def of(case: str, model: Potential, structures: Structures, device: str) -> list[Peer]:
    """The peers of ``case`` that are installed, the one that ratios refer to first."""
    from .peers_nequip import nequip  # which imports this module

    found = {
        "egnn": [plain_egnn, egnn_pytorch],
        "torchmd_et": [torchmd_net],
        "schnet": [pyg_schnet],
        "nequip": [nequip],
    }[case]
    return [peer for make in found if (peer := make(model, device)) is not None]


def minus_gradient(hold: Callable[[Any], None]) -> Callable[[nn.Module, Any], Tensor]:
    """The vector −∂E/∂x of a network of (z, pos, batch) that is given its edges by ``hold``."""

    def predict(module: nn.Module, batch: Any) -> Tensor:
        hold(batch)
        pos = batch.pos.detach().requires_grad_(True)
        energy = module(batch.z, pos, batch.batch)
        return -torch.autograd.grad(energy.sum(), pos, create_graph=True)[0]

    return predict


def edges_of(batch: Any, cutoff: float) -> Any:
    """``batch`` with its edges, found anew."""
    return neighbors.attach(copy.copy(batch), cutoff)


# -- EGNN ----------------------------------------------------------------------------------------
class PlainLayer(nn.Module):
    """A layer of EGNN as the paper writes it: φ_e on the concatenation [h_i, h_j, d²]; PyG's
    scatter, torch's SiLU.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.edge = nn.Sequential(
            nn.Linear(2 * hidden + 1, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.gate = nn.Sequential(nn.Linear(hidden, 1), nn.Sigmoid())
        self.coordinate = nn.Sequential(
            nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1), nn.Tanh()
        )
        self.update = nn.Sequential(
            nn.Linear(2 * hidden, hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )

    def forward(
        self, h: Tensor, x: Tensor, sender: Tensor, receiver: Tensor, envelope: Tensor
    ) -> tuple[Tensor, Tensor]:
        from torch_geometric.utils import scatter

        difference = x[receiver] - x[sender]
        squared = difference.square().sum(1, keepdim=True)
        m = self.edge(torch.cat([h[receiver], h[sender], squared], dim=1))
        m = m * self.gate(m)
        move = difference / ((squared + 1e-12).sqrt() + 1e-8) * self.coordinate(m) * envelope
        x = x + scatter(move, receiver, 0, x.shape[0])
        total = scatter(m * envelope, receiver, 0, h.shape[0])
        return h + self.update(torch.cat([h, total], dim=1)), x


class PlainEGNN(nn.Module):
    """The whole network in the plain formulation, on potkit's edges."""

    def __init__(self, model: Potential) -> None:
        super().__init__()
        backbone = model.backbone
        self.cutoff, hidden = model.cutoff, backbone.n_features
        self.embedding = nn.Embedding.from_pretrained(
            backbone.embedding.element.weight.detach().clone(), freeze=False
        )
        self.layers = nn.ModuleList(PlainLayer(hidden) for _ in backbone.layers)
        with torch.no_grad():
            for ours, plain in zip(backbone.layers, self.layers):
                joint = [
                    ours.from_receiver.weight,
                    ours.from_sender.weight,
                    ours.from_distance.weight,
                ]
                plain.edge[0].weight.copy_(torch.cat(joint, 1))
                plain.edge[0].bias.copy_(ours.from_distance.bias)
                pairs = [
                    (ours.message[0], plain.edge[2]),
                    (ours.gate, plain.gate[0]),
                    (ours.coordinate[0], plain.coordinate[0]),
                    (ours.coordinate[2], plain.coordinate[2]),
                    (ours.update[0], plain.update[0]),
                    (ours.update[2], plain.update[2]),
                ]
                for a, b in pairs:
                    b.load_state_dict(a.state_dict())

    def forward(self, batch: Any) -> Tensor:
        return self.features(batch)[1] - batch.pos

    def features(self, batch: Any) -> tuple[Tensor, Tensor]:
        """h [N, F] and x [N, 3] after the last layer."""
        batch = edges_of(batch, self.cutoff)
        sender, receiver = batch.edge_index
        h, x = self.embedding(batch.z), batch.pos
        envelope = polynomial_envelope((x[sender] - x[receiver]).norm(dim=1), self.cutoff)[:, None]
        for layer in self.layers:
            h, x = layer(h, x, sender, receiver, envelope)
        return h, x


def plain_egnn(model: Potential, device: str) -> Peer:
    """The plain formulation with our weights."""
    return Peer(
        "plain EGNN",
        PlainEGNN(model).to(device),
        lambda m, b: m(b),
        note="all edge features concatenated; our edges",
    )


class LucidrainsEGNN(nn.Module):
    """Layers of egnn-pytorch's ``EGNN_Sparse`` on our edges."""

    def __init__(self, layer: type, model: Potential) -> None:
        super().__init__()
        hidden, self.cutoff = model.backbone.n_features, model.cutoff
        self.embedding = nn.Embedding(119, hidden)
        self.layers = nn.ModuleList(
            layer(hidden, m_dim=hidden, soft_edge=1, norm_coors=True) for _ in model.backbone.layers
        )

    def forward(self, batch: Any) -> Tensor:
        edges = edges_of(batch, self.cutoff).edge_index
        x = torch.cat([batch.pos, self.embedding(batch.z)], 1)
        for layer in self.layers:
            x = layer(x, edges)
        return x[:, :3] - batch.pos


def egnn_pytorch(model: Potential, device: str) -> Peer | None:
    """egnn-pytorch, if it is there: the same width, depth and gate, but its edge network has 4F
    + 2 and 4F hidden channels.
    """
    found = package("egnn_pytorch")
    if found is None:
        return None
    module = LucidrainsEGNN(found.EGNN_Sparse, model).to(device)
    return Peer(
        "egnn-pytorch",
        module,
        lambda m, b: m(b),
        same=False,
        note="its edge network is 4F + 2 wide where ours is F",
    )


# -- SchNet --------------------------------------------------------------------------------------
def pyg_schnet(model: Potential, device: str) -> Peer:
    """PyG's SchNet with our weights and our energy head, on our edges; its vector is −∂E/∂x."""
    from torch_geometric.nn import SchNet

    backbone, held = model.backbone, {}

    def graph(pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        sender, receiver = held["edges"]
        return held["edges"], (pos[sender] - pos[receiver]).norm(dim=-1)

    filters = backbone.layers[0].filter_out.out_features
    theirs = SchNet(
        backbone.n_features,
        filters,
        len(backbone.layers),
        len(backbone.basis.centers),
        model.cutoff,
        interaction_graph=graph,
    )
    theirs.lin1, theirs.act, theirs.lin2 = copy.deepcopy(model.energy_head.mlp)
    theirs.act = nn.SiLU()
    theirs.distance_expansion.coeff = backbone.basis.coefficient
    for module in theirs.modules():
        if hasattr(module, "shift"):
            module.shift = math.log(2.0)
    with torch.no_grad():
        theirs.embedding.weight.copy_(backbone.embedding.element.weight[:100])
        for a, b in zip(backbone.layers, theirs.interactions):
            for ours, other in (
                (a.filter_in, b.mlp[0]),
                (a.filter_out, b.mlp[2]),
                (a.project, b.conv.lin1),
                (a.mix, b.conv.lin2),
                (a.out, b.lin),
            ):
                other.load_state_dict(ours.state_dict())

    def hold(batch: Any) -> None:
        held["edges"] = edges_of(batch, model.cutoff).edge_index

    return Peer(
        "PyG SchNet",
        theirs.to(device),
        minus_gradient(hold),
        note="on our edges, with our energy head; −∂E/∂x",
        hold=hold,
    )


# -- TorchMD-Net ET ------------------------------------------------------------------------------
class TorchMDNet(nn.Module):
    """torchmd-net's ET and its two gated equivariant blocks."""

    def __init__(self, network: nn.Module, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.network, self.blocks = network, blocks

    def forward(self, batch: Any) -> Tensor:
        x, v, *_ = self.network(batch.z, batch.pos, batch.batch)
        for block in self.blocks:
            x, v = block(x, v)
        return v[..., 0]


def copy_torchmd_et(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy the weights of our ET backbone into torchmd-net's, which keeps the three value parts
    together per head.
    """
    heads, hidden = theirs.num_heads, theirs.hidden_channels
    # our columns: s³ of all heads, then s¹, then s²; theirs: per head s³, s¹, s²
    order = torch.arange(3 * hidden).reshape(3, heads, -1).transpose(0, 1).flatten()
    with torch.no_grad():
        theirs.embedding.weight.copy_(ours.embedding.element.weight[:100])
        theirs.neighbor_embedding.embedding.weight.copy_(
            ours.neighbor_embedding.element.weight[:100]
        )
        theirs.neighbor_embedding.distance_proj.load_state_dict(ours.neighbor_filter.state_dict())
        theirs.neighbor_embedding.combine.load_state_dict(ours.combine.state_dict())
        theirs.distance_expansion.means.copy_(ours.basis.means)
        theirs.distance_expansion.betas.copy_(ours.basis.betas)
        theirs.out_norm.load_state_dict(ours.norm.state_dict())
        for mine, other in zip(ours.layers, theirs.attention_layers):
            other.layernorm.load_state_dict(mine.norm.state_dict())
            for a, b in (
                (mine.query, other.q_proj),
                (mine.key, other.k_proj),
                (mine.key_distance, other.dk_proj),
            ):
                b.load_state_dict(a.state_dict())
            for a, b in ((mine.value, other.v_proj), (mine.value_distance, other.dv_proj)):
                b.weight.copy_(a.weight[order])
                b.bias.copy_(a.bias[order])
            for name in ("weight", "bias"):
                q1, q2, q3 = getattr(mine.out, name).chunk(3)
                getattr(other.o_proj, name).copy_(torch.cat([q3, q2, q1]))  # theirs: q³, q², q¹
            if mine.mix is not None:  # their first layer's acts on zeros only
                other.vec_proj.load_state_dict(mine.mix.state_dict())


def torchmd_net(model: Potential, device: str) -> Peer | None:
    """torchmd-net's ET with our weights and its own neighbour search, if it is there."""
    found = package("torchmdnet.models.torchmd_et")
    if found is None:
        return None
    outputs = importlib.import_module("torchmdnet.models.output_modules")
    ours = model.backbone
    hidden, heads = ours.n_features, ours.layers[0].heads
    theirs = found.TorchMD_ET(
        hidden,
        len(ours.layers),
        len(ours.basis.means),
        num_heads=heads,
        cutoff_upper=model.cutoff,
        max_num_neighbors=64,
        vector_cutoff=True,
    )
    blocks = outputs.EquivariantVectorOutput(hidden).output_network
    copy_torchmd_et(ours, theirs)
    with torch.no_grad():
        for mine, other in zip((model.vector_readout.first, model.vector_readout.second), blocks):
            seen, moved = mine.mix.weight.split(mine.split)
            other.vec1_proj.weight.copy_(seen)
            other.vec2_proj.weight.copy_(moved)
            for a, b in zip(
                [m for m in mine.net if isinstance(m, nn.Linear)],
                [m for m in other.update_net.modules() if isinstance(m, nn.Linear)],
            ):
                b.load_state_dict(a.state_dict())
    return Peer(
        "torchmd-net ET",
        TorchMDNet(theirs, blocks).to(device),
        lambda m, b: m(b),
        note="its own neighbour search",
    )


def package(name: str) -> Any:
    """A module of another package, or None where it cannot be imported."""
    try:
        # warp, which torchmd-net uses, greets
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except ImportError:
        return None
