"""Objectives by name. A new one is one file with a frozen dataclass, and one line in OBJECTIVES."""

from __future__ import annotations

import dataclasses
import typing
from typing import Any

from ..errors import ConfigError
from ..structures.settings import check_plain, check_types, shown
from .anisotropic import AnisotropicDenoise
from .base import Objective, Term, total
from .denoise import Denoise
from .force_conditioned import ForceConditionedDenoise
from .masked import Masked
from .mixed import MaskedDenoise
from .noisy_nodes import NoisyNodes
from .supervised import Supervised

OBJECTIVES: dict[str, type[Objective]] = {
    kind.name: kind
    for kind in (
        Denoise,
        Masked,
        MaskedDenoise,
        AnisotropicDenoise,
        ForceConditionedDenoise,
        Supervised,
        NoisyNodes,
    )
}

__all__ = [
    "OBJECTIVES",
    "AnisotropicDenoise",
    "Denoise",
    "ForceConditionedDenoise",
    "Masked",
    "MaskedDenoise",
    "NoisyNodes",
    "Objective",
    "Supervised",
    "Term",
    "from_dict",
    "names",
    "total",
]


def names() -> list[str]:
    """The registered objectives."""
    return list(OBJECTIVES)


def from_dict(settings: dict[str, Any]) -> Objective:
    """The objective that ``to_dict`` described: {"objective": name, **settings}.

    Raises ConfigError for unknown words.
    """
    settings = dict(settings)
    name = settings.pop("objective", None)
    if not isinstance(name, str) or name not in OBJECTIVES:
        raise ConfigError(f"unknown objective {shown(name)}; there are {', '.join(OBJECTIVES)}")
    fields = [field.name for field in dataclasses.fields(OBJECTIVES[name])]
    unknown = [key for key in settings if key not in fields]
    if unknown:
        raise ConfigError(
            f"{name} has no setting {', '.join(map(repr, unknown))}; it has {', '.join(fields)}"
        )
    check_plain(settings, name, also=lambda value: dataclasses.is_dataclass(value))
    check_types(typing.get_type_hints(OBJECTIVES[name]), settings, name)
    for key, value in settings.items():
        if isinstance(value, list):  # a file knows no tuples
            settings[key] = tuple(value)
    return OBJECTIVES[name](**settings)
