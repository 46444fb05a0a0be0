"""The networks of the two papers' published codes: same weights, same numbers, same faults.

Denoise paper (Wang, Xu, Li, Barati Farimani, arXiv 2303.02216):
    denoise-schnet, denoise-egnn, denoise-torchmd_et, denoise-se3
Masked paper (arXiv 2402.15921):
    masked-egnn, masked-gns, masked-forcenet
All but denoise-se3 were compared with the published codes' outputs (see `denoise_se3`).

    model = potkit.models.published("denoise-egnn", torch.load("model.pth", weights_only=True))

They are here to be compared with and to start from; potkit's own networks (`potkit.build`) do not
have the faults that each file lists. One file per network; each has

    SETTINGS        names and defaults of the published code's settings: its configuration
    ALIASES         other names of them (optional)
    FIXED           settings that are reproduced for one value only (optional)
    WITHOUT_EFFECT  settings that are taken and change nothing
    NAMES           prefixes of the state dict's names, and what stands for them here
    NOTE            what a user of its weights must know (optional)
    UNUSED          tensors of the state dict that the code never uses (regular expressions)
    sizes           the settings that a state dict tells
    network         the network with new weights
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import CheckpointError, ConfigError
from .common import Published

NETWORKS = {  # name: module
    "denoise-schnet": "denoise_schnet",
    "denoise-egnn": "denoise_egnn",
    "denoise-torchmd_et": "denoise_torchmd_et",
    "denoise-se3": "denoise_se3",
    "masked-egnn": "masked_egnn",
    "masked-gns": "masked_gns",
    "masked-forcenet": "masked_forcenet",
}
PREFIX, PRESET = "published/", "published"  # how recipes name these networks
# tensors of `Potential` that the published codes do not have
OWN = ("references", "known", "scale")


def code(name: str) -> ModuleType:
    """The module of a published network. Raises ConfigError for an unknown name."""
    if name not in NETWORKS:
        raise ConfigError(f"unknown published network {name!r}; there are {', '.join(NETWORKS)}")
    return importlib.import_module(f".{NETWORKS[name]}", __name__)


def complete(
    name: str, given: Mapping[str, Any], told: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """All settings of a network, under the names of ``SETTINGS``.

    What was ``given`` goes before what the state dict ``told``, and that before the defaults.
    Raises ConfigError for an unknown setting, one that contradicts the state dict, and one whose
    value is not reproduced.
    """
    module = code(name)
    aliases, fixed = getattr(module, "ALIASES", {}), getattr(module, "FIXED", {})
    settings = module.SETTINGS | dict(told or {})
    for key, value in given.items():
        key = aliases.get(key, key)
        if key in fixed:
            if value != fixed[key]:
                raise ConfigError(f"{name}: only {key}={fixed[key]!r} is reproduced, got {value!r}")
        elif told and key in told:
            if value != told[key]:
                raise ConfigError(
                    f"{name}: {key}={value!r} was given, but the state dict has {key}={told[key]!r}"
                )
        elif key in module.SETTINGS:
            settings[key] = _checked(name, key, value, type(module.SETTINGS[key]))
        elif key not in module.WITHOUT_EFFECT and not (key == "in_edge_nf" and value == 0):
            raise ConfigError(f"{name} has no setting {key!r}; it has {', '.join(module.SETTINGS)}")
    return settings


def _checked(name: str, key: str, value: Any, kind: type) -> Any:
    """``value`` as ``kind``. Raises ConfigError if it is of another kind or not positive."""
    try:
        converted = kind(value)
    except (TypeError, ValueError):
        converted = None
    if converted is None or converted != value:
        raise ConfigError(f"{name}: {key} must be of type {kind.__name__}, got {value!r}")
    least = 0 if key == "edge_dim" else 1e-12
    if kind in (int, float) and not converted >= least:
        raise ConfigError(f"{name}: {key} must be positive, got {value}")
    return converted


def network(name: str, **settings: Any) -> Published:
    """A published network with new weights.

    ``settings`` are under the published code's names; the rest is as in its configuration. Raises
    ConfigError as `complete` does.
    """
    options = complete(name, settings)
    model = code(name).network(**options)
    model.recipe = {"name": f"{PREFIX}{name}", "preset": PRESET, "options": options}
    return model


def renamed(module: ModuleType, key: str) -> str | None:
    """Our name of the published tensor ``key``; None if the published code does not use it."""
    if any(re.match(pattern, key) for pattern in module.UNUSED):
        return None
    theirs, ours = next(pair for pair in module.NAMES if key.startswith(pair[0]))
    return ours + key.removeprefix(theirs)


def original(module: ModuleType, key: str) -> str:
    """The published name of our tensor ``key``."""
    theirs, ours = next(pair for pair in module.NAMES if key.startswith(pair[1]))
    return theirs + key.removeprefix(ours)


def published(name: str, state_dict: Mapping[str, Tensor], **settings: Any) -> Published:
    """A network of the published codes with the weights of ``state_dict``, in evaluation mode.

    ``state_dict`` holds tensors under the published code's names, as its ``model.pth`` does; the
    network has their precision. ``settings`` are those of the published code, under its names;
    sizes need not be given, and what is not given is as in the published configuration.

    ``model(batch)`` says energy [S] and vector [N, 3] in the network's own units, before any
    de-normalisation, for the masked paper's networks also forces [N, 3]. It goes by ``batch.z``, by
    ``batch.formal_charge`` [N] where the batch has it (else atoms are neutral), and by
    ``batch.mask`` where it flags any atom. The denoise paper's code knows no boxes; in periodic
    structures its networks see potkit's periodic neighbours.

    Raises ConfigError for an unknown name, and for settings that are unknown, contradict the
    weights or are not reproduced; CheckpointError naming the first tensor that is missing, not part
    of the network or of the wrong shape.
    """
    module = code(name)
    state = {}
    for key, value in state_dict.items():
        if not isinstance(value, (Tensor, np.ndarray)):
            raise CheckpointError(
                f"{name}: {key!r} of the state dict is {type(value).__name__}, not a tensor"
            )
        state[key] = torch.as_tensor(value)
    try:
        told = module.sizes(state)
    except KeyError as error:
        raise CheckpointError(
            f"{name}: tensor {error.args[0]} is missing from the state dict"
        ) from None
    except (ValueError, IndexError, ZeroDivisionError):
        raise CheckpointError(
            f"{name}: the state dict's names or shapes are not those of this network"
        ) from None
    model = network(name, **complete(name, settings, told))
    _fill(model, name, module, state)
    return model.eval()


def _fill(model: Published, name: str, module: ModuleType, state: dict[str, Tensor]) -> None:
    """Load ``state``. Raises CheckpointError naming the first tensor that does not fit."""
    own = {k: v for k, v in model.state_dict().items() if k not in OWN}
    given = {
        ours: (theirs, state[theirs])
        for theirs in state
        if (ours := renamed(module, theirs)) is not None
    }
    for key in sorted(own.keys() - given.keys()):
        raise CheckpointError(
            f"{name}: tensor {original(module, key)} is missing from the state dict"
        )
    for key in sorted(given.keys() - own.keys()):
        raise CheckpointError(
            f"{name}: tensor {given[key][0]} of the state dict is not part of this network"
        )
    for key, value in own.items():
        theirs, tensor = given[key]
        if tensor.shape != value.shape:
            raise CheckpointError(
                f"{name}: {theirs} has shape {tuple(tensor.shape)}, "
                f"the network's has {tuple(value.shape)}"
            )
    if any(tensor.dtype == torch.float64 for _, tensor in given.values()):
        model.double()
    model.load_state_dict({key: tensor for key, (_, tensor) in given.items()}, strict=False)
