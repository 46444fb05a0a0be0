"""Networks of `potkit.build` with all faults of a published code and its weights.

Where the published code names, joins or orders its weights in another way, the mapping stands here.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from potkit import Potential, models
from potkit.models.published_codes.common import ATOM_TYPES
from potkit.structures.elements import SYMBOLS

TWINS = {  # published network: (ours, preset)
    "denoise-egnn": ("egnn", "denoise-paper"),
    "masked-egnn": ("egnn", "masked-paper"),
    "denoise-schnet": ("schnet", "denoise-paper"),
    "denoise-torchmd_et": ("torchmd_et", "denoise-paper"),
}
LEVELS = (-2, -1, 1, 2)  # formal charges with rows of their own


def twin(published: Potential, **options) -> Potential:
    """The network of `potkit.build` that computes what ``published`` does, in evaluation mode.

    ``options`` replace those of the published network's preset.
    """
    name = published.recipe["name"].removeprefix("published/")
    network, preset = TWINS[name]
    sizes = sizes_of(name, published.recipe["options"])
    model = models.build(network, preset, faithful=True, **sizes, **options).double().eval()
    copy = {"egnn": copy_egnn, "schnet": copy_schnet, "torchmd_et": copy_torchmd_et}[network]
    with torch.no_grad():
        copy(model, published)
    return model


def sizes_of(name: str, settings: dict) -> dict:
    """Our options for the published code's settings."""
    network = TWINS[name][0]
    of = {"egnn": egnn_sizes, "schnet": schnet_sizes, "torchmd_et": torchmd_et_sizes}[network]
    return of(settings)


def same(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy the weights of a layer, or of a sequence of them."""
    ours.load_state_dict(theirs.state_dict())


def copy_types(embedding: nn.Module, types: Tensor) -> None:
    """Rows of the 28 types: neutral atoms are elements, charged ones add to their element's."""
    for row, (symbol, charge) in enumerate(ATOM_TYPES):
        if charge == 0:
            embedding.element.weight[SYMBOLS.index(symbol)] = types[row]
    if embedding.ion is None:
        return
    for row, (symbol, charge) in enumerate(ATOM_TYPES):
        if charge != 0:
            z = SYMBOLS.index(symbol)
            ion = len(LEVELS) * z + LEVELS.index(charge)
            embedding.ion.weight[ion] = types[row] - embedding.element.weight[z]


# --- EGNN


def egnn_sizes(settings: dict) -> dict:
    return dict(
        hidden=settings["hidden_channels"],
        layers=settings["n_layers"],
        attention=settings["attention"],
        tanh=settings["tanh"],
        cutoff=settings["cutoff"],
    )


def copy_egnn(model: Potential, published: Potential) -> None:
    ours, theirs = model.backbone, published.backbone
    copy_types(ours.embedding, theirs.type_embedding.weight)
    if hasattr(theirs, "mask_embedding"):
        ours.embedding.unflagged.copy_(theirs.mask_embedding.weight[0])
        ours.embedding.flag.copy_(theirs.mask_embedding.weight[1])
        same(model.energy_head.norm, theirs.out_norm)
    for a, b in zip(ours.layers, theirs.gcl, strict=True):
        hidden = len(b.node_mlp[2].bias)
        receiver, sender, distance = b.edge_mlp[0].weight.split([hidden, hidden, 1], 1)
        a.from_receiver.weight.copy_(receiver)
        a.from_sender.weight.copy_(sender)
        a.from_distance.weight.copy_(distance)
        a.from_distance.bias.copy_(b.edge_mlp[0].bias)
        same(a.message[0], b.edge_mlp[2])
        same(a.coordinate[0], b.coord_mlp[0])
        same(a.coordinate[2], b.coord_mlp[2])
        same(a.update, b.node_mlp)
        if a.gate is not None:
            same(a.gate, b.att_mlp[0])
    same(model.energy_head.mlp, published.energy_head)


# --- SchNet


def schnet_sizes(settings: dict) -> dict:
    return dict(
        hidden=settings["hidden_channels"],
        filters=settings["num_filters"],
        layers=settings["num_interactions"],
        radial=settings["num_gaussians"],
        cutoff=settings["cutoff"],
    )


def copy_schnet(model: Potential, published: Potential) -> None:
    ours, theirs = model.backbone, published.backbone
    copy_types(ours.embedding, theirs.embedding.weight)
    ours.basis.centers.copy_(theirs.distance_expansion.offset)
    for a, b in zip(ours.layers, theirs.interactions, strict=True):
        same(a.filter_in, b.conv.nn[0])
        same(a.filter_out, b.conv.nn[2])
        same(a.project, b.conv.lin1)
        same(a.mix, b.conv.lin2)
        same(a.out, b.lin)
    same(model.energy_head.mlp[0], published.energy_head.lin1)
    same(model.energy_head.mlp[2], published.energy_head.lin2)


# --- TorchMD-Net ET


def torchmd_et_sizes(settings: dict) -> dict:
    return dict(
        hidden=settings["hidden_channels"],
        layers=settings["num_layers"],
        radial=settings["num_rbf"],
        heads=settings["num_heads"],
        cutoff=settings["cutoff_upper"],
    )


def copy_torchmd_et(model: Potential, published: Potential) -> None:
    ours, theirs = model.backbone, published.backbone
    copy_types(ours.embedding, theirs.type_embedding.weight)
    copy_types(ours.neighbor_embedding, theirs.neighbor_embedding.embedding.weight)
    same(ours.basis, theirs.distance_expansion)
    same(ours.neighbor_filter, theirs.neighbor_embedding.distance_proj)
    same(ours.combine, theirs.neighbor_embedding.combine)
    for a, b in zip(ours.layers, theirs.attention_layers, strict=True):
        same(a.norm, b.layernorm)
        same(a.query, b.q_proj)
        same(a.key, b.k_proj)
        same(a.key_distance, b.dk_proj)
        permuted(a.value, b.v_proj, by_head(b.heads, b.hidden))
        permuted(a.value_distance, b.dv_proj, by_head(b.heads, b.hidden))
        # theirs: what goes to v, what multiplies the product, what goes to x; ours in reverse
        rows = torch.arange(3 * b.hidden).unflatten(0, (3, -1)).flip(0).flatten()
        permuted(a.out, b.o_proj, rows)
        if a.mix is not None:  # before the first layer all vectors are zero
            same(a.mix, b.vec_proj)
    same(ours.norm, theirs.out_norm)
    same(model.energy_head.mlp, published.energy_head)
    for a, b in zip(
        (model.vector_readout.first, model.vector_readout.second),
        published.vector_readout,
        strict=True,
    ):
        a.mix.weight.copy_(torch.cat([b.vec1_proj.weight, b.vec2_proj.weight]))
        same(a.net[0], b.update_net[0])
        same(a.net[2], b.update_net[2])


def by_head(heads: int, hidden: int) -> Tensor:
    """Rows s of all heads, then s¹, then s², where theirs stand head by head."""
    return torch.arange(3 * hidden).unflatten(0, (heads, 3, -1)).transpose(0, 1).flatten()


def permuted(ours: nn.Linear, theirs: nn.Linear, rows: Tensor) -> None:
    ours.weight.copy_(theirs.weight[rows])
    ours.bias.copy_(theirs.bias[rows])
