"""Small networks of the published codes, and their weights under the published names."""

from __future__ import annotations

import torch
from torch import Tensor

import potkit
from potkit import models
from potkit.models import published_codes

SMALL = {  # sizes for tests
    "denoise-schnet": dict(hidden_channels=8, num_filters=6, num_interactions=2, num_gaussians=5),
    "denoise-egnn": dict(hidden_channels=8, n_layers=2),
    "denoise-torchmd_et": dict(hidden_channels=8, num_layers=2, num_rbf=5, num_heads=2),
    "denoise-se3": dict(num_layers=2, num_channels=4, num_degrees=3, div=2),
    "masked-egnn": dict(hidden_channels=8, n_layers=2),
    "masked-gns": dict(
        latent_dim=8, nmessage_passing_steps=2, mlp_hidden_dim=6, particle_type_embedding_size=4
    ),
    "masked-forcenet": dict(
        hidden_channels=8, decoder_hidden_channels=6, num_interactions=2, num_freqs=3
    ),
}


def state_of(model: potkit.Potential, name: str) -> dict[str, Tensor]:
    """The state dict of a published network under the published names."""
    module = published_codes.code(name)
    own = published_codes.OWN
    return {
        published_codes.original(module, k): v.clone()
        for k, v in model.state_dict().items()
        if k not in own
    }


def made_up(name: str, **settings) -> potkit.Potential:
    """A small network in float64 whose weights follow from a formula, not from random numbers."""
    model = (
        models.build(f"published/{name}", "published", **{**SMALL[name], **settings})
        .double()
        .eval()
    )
    with torch.no_grad():
        for i, (key, p) in enumerate(sorted(model.named_parameters())):
            wave = torch.sin(1.7 * torch.arange(p.numel(), dtype=torch.float64) + i).reshape(
                p.shape
            )
            norm = p.ndim == 1 and key.endswith("weight")  # LayerNorm and BatchNorm start at one
            p.copy_(
                1.0 + 0.2 * wave if norm else wave / (p.shape[-1] ** 0.5 if p.ndim > 1 else 5.0)
            )
            if key.endswith(("means", "betas")):  # of the radial basis
                p.copy_(1.0 + 0.5 * wave)
    return model


def published_state(name: str) -> dict[str, Tensor]:
    """A state dict as a published code would have saved it."""
    return state_of(made_up(name), name)
