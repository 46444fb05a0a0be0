"""The equivariant transformer of the package torchmd-net, with our weights."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from ...models.base import Potential
from .base import Peer, package


class TorchMDNet(nn.Module):
    """torchmd-net's ET and its two gated equivariant blocks."""

    def __init__(self, network: nn.Module, blocks: nn.ModuleList) -> None:
        super().__init__()
        self.network, self.blocks = network, blocks

    def forward(self, batch: Any) -> Tensor:
        """The vector of the last block, [N, 3]."""
        x, v, *_ = self.network(batch.z, batch.pos, batch.batch)
        for block in self.blocks:
            x, v = block(x, v)
        return v[..., 0]


@torch.no_grad()
def copy_torchmd_et(backbone: nn.Module, network: nn.Module) -> None:
    """Copy the weights of our ET backbone into torchmd-net's, which keeps the three value parts
    together per head.
    """
    heads, hidden = network.num_heads, network.hidden_channels
    # our columns: s³ of all heads, then s¹, then s²; theirs: per head s³, s¹, s²
    order = torch.arange(3 * hidden).reshape(3, heads, -1).transpose(0, 1).flatten()
    network.embedding.weight.copy_(backbone.embedding.element.weight[:100])
    neighbors = network.neighbor_embedding
    neighbors.embedding.weight.copy_(backbone.neighbor_embedding.element.weight[:100])
    neighbors.distance_proj.load_state_dict(backbone.neighbor_filter.state_dict())
    neighbors.combine.load_state_dict(backbone.combine.state_dict())
    network.distance_expansion.means.copy_(backbone.basis.means)
    network.distance_expansion.betas.copy_(backbone.basis.betas)
    network.out_norm.load_state_dict(backbone.norm.state_dict())
    for layer, attention in zip(backbone.layers, network.attention_layers, strict=True):
        attention.layernorm.load_state_dict(layer.norm.state_dict())
        attention.q_proj.load_state_dict(layer.query.state_dict())
        attention.k_proj.load_state_dict(layer.key.state_dict())
        attention.dk_proj.load_state_dict(layer.key_distance.state_dict())
        values = [(layer.value, attention.v_proj), (layer.value_distance, attention.dv_proj)]
        for source, target in values:
            target.weight.copy_(source.weight[order])
            target.bias.copy_(source.bias[order])
        for name in ("weight", "bias"):
            q1, q2, q3 = getattr(layer.out, name).chunk(3)
            getattr(attention.o_proj, name).copy_(torch.cat([q3, q2, q1]))  # theirs: q³, q², q¹
        if layer.mix is not None:  # their first layer's acts on zeros only
            attention.vec_proj.load_state_dict(layer.mix.state_dict())


@torch.no_grad()
def copy_readout(ours: nn.Module, blocks: nn.ModuleList) -> None:
    """Copy the weights of our vector read-out into torchmd-net's two gated equivariant blocks."""
    for gated, block in zip((ours.first, ours.second), blocks, strict=True):
        seen, moved = gated.mix.weight.split(gated.split)
        block.vec1_proj.weight.copy_(seen)
        block.vec2_proj.weight.copy_(moved)
        for source, target in zip(linears(gated.net), linears(block.update_net), strict=True):
            target.load_state_dict(source.state_dict())


def linears(module: nn.Module) -> list[nn.Linear]:
    """The linear maps of ``module``, in order."""
    return [part for part in module.modules() if isinstance(part, nn.Linear)]


def peer(model: Potential, device: str) -> Peer | None:
    """torchmd-net's ET with our weights and its own neighbour search, if it is there."""
    torchmd_et = package("torchmdnet.models.torchmd_et")
    if torchmd_et is None:
        return None
    outputs = importlib.import_module("torchmdnet.models.output_modules")
    backbone = model.backbone
    network = torchmd_et.TorchMD_ET(
        backbone.n_features,
        len(backbone.layers),
        len(backbone.basis.means),
        num_heads=backbone.layers[0].heads,
        cutoff_upper=model.cutoff,
        max_num_neighbors=64,
        vector_cutoff=True,
    )
    blocks = outputs.EquivariantVectorOutput(backbone.n_features).output_network
    copy_torchmd_et(backbone, network)
    copy_readout(model.vector_readout, blocks)
    return Peer(
        "torchmd-net ET",
        TorchMDNet(network, blocks).to(device),
        note="its own neighbour search",
    )
