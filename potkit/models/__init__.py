"""Networks by name. A new one is one file with a `Network` and PRESETS, and one line in MODELS."""

from __future__ import annotations

import importlib
import inspect
import typing
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import ConfigError
from ..structures.settings import check_plain, check_types, shown, walk
from ..structures.settings import seed as checked_seed
from . import adapted, published_codes
from . import faults as published_faults
from .adapted import CurrentGraph, adapt
from .base import Potential
from .graph import Backbone, Features, Graph, Network, Prediction
from .import_paths import allow
from .published_codes import published

MODELS = {
    "schnet": "schnet:SchNet",
    "egnn": "egnn:EGNN",
    "torchmd_et": "torchmd_et:TorchMDET",
    "painn": "painn:PaiNN",
    "se3_transformer": "se3_transformer:SE3Transformer",
    "gns": "gns:GNS",
    "forcenet": "forcenet:ForceNet",
    "nequip": "nequip:NequIP",
}
READOUT_OPTIONS = (
    "vector",
    "forces",
    "head_norm",
    "pooled",
    "head",
    "force_input",
    "noise_readout",
)

__all__ = [
    "MODELS",
    "Backbone",
    "CurrentGraph",
    "Features",
    "Graph",
    "Network",
    "Potential",
    "Prediction",
    "adapt",
    "allow",
    "backbone_options",
    "build",
    "names",
    "network",
    "presets",
    "published",
    "rebuild",
]


def names() -> list[str]:
    """The registered networks."""
    return list(MODELS)


def _find(name: str) -> tuple[type, dict[str, dict[str, Any]]]:
    if name not in MODELS:
        raise ConfigError(f"unknown model {name!r}; there are {', '.join(MODELS)}")
    file, cls = MODELS[name].split(":")
    module = importlib.import_module(f".{file}", __package__)
    return getattr(module, cls), module.PRESETS


def network(name: str) -> type:
    """The class of a registered network, whose constructor takes its options. Raises ConfigError
    for an unknown name.
    """
    return _find(name)[0]


def _options_of(name: str, preset: str) -> dict[str, Any]:
    table = _find(name)[1]
    if preset not in table:
        raise ConfigError(f"unknown preset {preset!r} of {name}; there are {', '.join(table)}")
    return table[preset]


def presets(name: str) -> dict[str, dict[str, Any]]:
    """The presets of a network: preset -> options."""
    return {k: dict(v) for k, v in _find(name)[1].items()}


def backbone_options(recipe: dict[str, Any]) -> dict[str, Any]:
    """All options of the backbone a recipe stands for, defaults filled in; not the read-outs'."""
    given = {k: v for k, v in _by_name(recipe).items() if k not in READOUT_OPTIONS}
    if recipe["name"] not in MODELS:  # an adapted module of the user's own
        return given
    parameters = inspect.signature(_find(recipe["name"])[0]).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} | given


CUTOFFS = (1e-3, 1e4)  # Å, smallest and largest: bases of others are no numbers
LARGEST_OPTION = 100_000  # of whole numbers: layers, widths, atoms


def build(
    name: str,
    preset: str = "small",
    *,
    seed: int | None = None,
    faults: Sequence[str] = (),
    faithful: bool = False,
    **overrides: Any,
) -> Potential:
    """A network with its read-outs, at a preset with single options replaced.

    Presets are "small" and, as far as a paper has the network, "denoise-paper", "masked-paper" or
    "paper" (`presets`). Options are the backbone's constructor arguments and the read-outs'
    ``vector``, ``forces``, ``head_norm``, ``pooled``, ``head``. ``faults`` are those of a published
    code, by name (see `faults`); ``faithful``: all that the code of this preset's paper has, but
    "pooled" where ``pooled`` says otherwise. ``seed`` makes the initial weights repeatable and
    leaves torch's generator alone. Raises ConfigError naming what is unknown or out of range.
    """
    if not isinstance(name, str) or not isinstance(preset, str):
        raise ConfigError(f"a network and its preset are names, got {shown(name)}, {shown(preset)}")
    if seed is not None:
        seed = checked_seed(seed)
    check_plain(overrides, name, also=lambda value: not isinstance(value, (float, int, str)))
    for place, value in walk(overrides):
        if isinstance(value, int) and abs(value) > LARGEST_OPTION:
            raise ConfigError(f"{name}: {place} of {shown(value)} is too large")
    if name.startswith(published_codes.PREFIX):
        overrides |= ({"faults": faults} if faults else {}) | (
            {"faithful": True} if faithful else {}
        )
        return _published(name, preset, seed, overrides)
    cls = _find(name)[0]
    of_preset = _options_of(name, preset)
    own = list(inspect.signature(cls).parameters)
    unknown = [k for k in overrides if k not in own and k not in READOUT_OPTIONS]
    if unknown:
        raise ConfigError(
            f"{name} has no option {', '.join(map(repr, unknown))}; "
            f"it has {', '.join((*own, *READOUT_OPTIONS))}"
        )
    check_types(typing.get_type_hints(cls.__init__), overrides, name)
    options = {**of_preset, **overrides}
    if not options.get("cutoff", 1.0) > 0:
        raise ConfigError(f"cutoff must be positive, got {options['cutoff']}")
    if not CUTOFFS[0] <= options.get("cutoff", 1.0) <= CUTOFFS[1]:
        raise ConfigError(
            f"cutoff must lie in {CUTOFFS[0]:g}…{CUTOFFS[1]:g} Å, got {shown(options['cutoff'])}"
        )
    options |= _fault_options(name, preset, faults, faithful, options)
    return _make(name, preset, options, seed)


def rebuild(recipe: dict[str, Any]) -> Potential:
    """The network, with new weights, that a stored recipe stands for.

    What a recipe does not say is as the constructors have it, whatever its preset says today: a
    recipe holds all that its preset said when it was written. ``faithful=True`` in one that is
    older than the names of faults means what it meant then (`faults.formerly`). Raises ConfigError
    as `build` does.
    """
    if recipe["name"].startswith(published_codes.PREFIX):
        return build(recipe["name"], recipe["preset"], **recipe["options"])
    if recipe["name"].startswith(adapted.PREFIX):
        return adapted.rebuild(recipe)
    _options_of(recipe["name"], recipe["preset"])  # there must be such a preset
    model = _make(recipe["name"], recipe["preset"], _by_name(recipe), None)
    model.recipe = recipe
    return model


def _by_name(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe's options, with ``faithful`` said by the names of faults."""
    options = dict(recipe["options"])
    faithful = options.pop("faithful", False)
    if faithful:
        options["faults"] = published_faults.formerly(recipe["name"], recipe["preset"])
    if "faults" in options:
        options["faults"] = tuple(options["faults"])
    return options


def _fault_options(
    name: str, preset: str, faults: Sequence[str], faithful: bool, options: dict[str, Any]
) -> dict[str, Any]:
    """The options ``faults`` and ``pooled`` that the faults asked for come down to."""
    if faithful:
        if not published_faults.of(name):
            raise ConfigError(f"{name} cannot be faithful: neither paper published it")
        of_code = published_faults.of(name, preset)
        # who gives ``pooled`` wants the other faults with that read-out
        faults = [
            f for f in of_code if "pooled" not in options or not published_faults.pooling([f])
        ]
    elif faults:
        faults = published_faults.check(name, faults)
    if not faults:
        return {}
    pooled = published_faults.pooling(faults)
    if pooled and options.get("pooled", pooled) != pooled:
        raise ConfigError(
            f"pooled={options['pooled']!r} contradicts faults={', '.join(faults)} of {name}"
        )
    return {"faults": list(faults)} | ({"pooled": pooled} if pooled else {})


def _make(name: str, preset: str, options: dict[str, Any], seed: int | None) -> Potential:
    """The network with new weights; ``options`` are complete."""
    cls = _find(name)[0]
    options = dict(options)
    readout = {k: options.pop(k) for k in READOUT_OPTIONS if k in options}
    try:
        with torch.random.fork_rng(devices=[], enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(seed)
            model = Potential(cls(**options), **readout)
    except TypeError as error:
        raise ConfigError(f"{name}: {error}") from error
    # what a checkpoint needs to build it again
    model.recipe = {"name": name, "preset": preset, "options": {**options, **readout}}
    return model


def _published(name: str, preset: str, seed: int | None, overrides: dict[str, Any]) -> Potential:
    """A network of `published_codes` with new weights; recipes name it "published/NAME"."""
    if preset != published_codes.PRESET:
        raise ConfigError(f"unknown preset {preset!r} of {name}; there is {published_codes.PRESET}")
    settings = {k: v for k, v in overrides.items() if k not in ("noise_readout", "force_input")}
    with torch.random.fork_rng(devices=[], enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        model = published_codes.network(name.removeprefix(published_codes.PREFIX), **settings)
    noise = ("noise",) if overrides.get("noise_readout") else ()
    forces = ("forces",) if overrides.get("force_input") else ()
    # parts that an objective added to the network a recipe stands for
    return model.extend(noise, forces)
