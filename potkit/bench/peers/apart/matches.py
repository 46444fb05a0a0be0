"""Which network of a peer stands beside which of potkit's, and how it is made as large.

A function of potkit's network gives the constructor's arguments of the peer's: the same width,
layers, radial functions and cutoff. What the packages do not let one choose stays as it is there;
the numbers of parameters tell how far it goes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from ....models.base import Potential


@dataclasses.dataclass(frozen=True)
class Match:
    """A network of a peer: its name there, what its worker builds it from, and what to know."""

    network: str
    options: dict[str, Any]
    note: str = ""


def graph_pes_schnet(model: Potential) -> Match:
    """The same network: potkit's SchNet has a head of the same size."""
    ours = model.recipe["options"]
    options = {
        "cutoff": model.cutoff,
        "channels": ours["hidden"],
        "expansion_features": ours["radial"],
        "layers": ours["layers"],
    }
    return Match("SchNet", options)


def graph_pes_painn(model: Potential) -> Match:
    """The same network but for the radial functions and the envelope."""
    ours = model.recipe["options"]
    options = {
        "cutoff": model.cutoff,
        "channels": ours["hidden"],
        "radial_features": ours["radial"],
        "layers": ours["layers"],
    }
    return Match("PaiNN", options)


def graph_pes_nequip(model: Potential) -> Match:
    """The same irreps. Its network of the distance is as wide as there are radial functions."""
    ours = model.recipe["options"]
    options = {
        "cutoff": model.cutoff,
        "features": {
            "channels": ours["channels"],
            "l_max": ours["max_degree"],
            "use_odd_parity": ours["parity"],
        },
        "layers": ours["layers"],
        "radial_features": ours["radial"],
        "Z_embed_dim": model.backbone.attributes.weight.shape[1],
    }
    width = model.backbone.layers[0].radial[0].out_features
    note = f"its network of the distance is {ours['radial']} wide where ours is {width}"
    return Match("NequIP", options, note)


def mlip_nequip(model: Potential) -> Match:
    """The same irreps and the same network of the distance."""
    ours, backbone = model.recipe["options"], model.backbone
    # by degree, and of each the parity of spherical harmonics first, as the package asks
    natural = ["e", "o"]
    kinds = []
    for degree in range(ours["max_degree"] + 1):
        first = natural[degree % 2]
        others = [p for p in natural if p != first] if ours["parity"] else []
        kinds += [f"{degree}{parity}" for parity in (first, *others)]
    width = backbone.layers[0].radial[0].out_features
    options = {
        "cutoff": model.cutoff,
        "num_layers": ours["layers"],
        "target_irreps": " + ".join(f"{ours['channels']}x{kind}" for kind in kinds),
        "l_max": ours["max_degree"],
        "num_rbf": ours["radial"],
        "radial_mlp_hidden": [width, width],
        "neighbors": backbone.layers[0].scale ** -2,
    }
    return Match("NequIP", options)


# of MACE, as its own package trains it by default, but smaller: degrees of features 0 and 1
MACE = {"layers": 2, "max_ell": 3, "degree": 1, "correlation": 3}
MACE_NOTE = (
    "a small MACE (2 layers, L = 1, correlation 3, as many channels as NequIP), since potkit has "
    "no network of its kind"
)


def mace_torch(model: Potential) -> Match:
    """A small MACE with the channels, cutoff and radial functions of potkit's NequIP."""
    ours = model.recipe["options"]
    options = {
        "cutoff": model.cutoff,
        "channels": ours["channels"],
        "radial": ours["radial"],
        "neighbors": model.backbone.layers[0].scale ** -2,
        **MACE,
    }
    return Match("MACE", options, MACE_NOTE)


def mlip_mace(model: Potential) -> Match:
    """The same small MACE."""
    ours = model.recipe["options"]
    options = {
        "cutoff": model.cutoff,
        "num_layers": MACE["layers"],
        "num_channels": ours["channels"],
        "l_max": MACE["max_ell"],
        "node_symmetry": MACE["degree"],
        "correlation": MACE["correlation"],
        "num_rbf": ours["radial"],
        "neighbors": model.backbone.layers[0].scale ** -2,
    }
    return Match("MACE", options, MACE_NOTE)


Matching = Callable[[Potential], Match]
