"""The arms of a comparison as data: what each is pretrained with, what it takes over, and how it is
fine-tuned.

    scratch          no pretraining
    scratch-longer   no pretraining, but as much longer as the (dearest) pretraining took, in wall
                     time or in steps
    NAME             pretrained with an objective; the backbone (or ``parts``) is taken over, heads
                     are new
    NAME             a variant of another arm: the same start, fine-tuned with changed settings

Variants are written such as

    {"like": "denoise", "freeze": 0.3}         backbone frozen for the first 30 % of the steps
    {"like": "denoise", "layer_decay": 0.7}    each layer further from the read-outs learns at 0.7
                                               of the rate
    {"like": "denoise", "parts": ["backbone", "energy_head"]}
    {"like": "scratch", "layer_decay": 0.7}    the control to the second

What ``parts`` the papers take over: the denoise paper's text only the message-passing weights, with
a new energy MLP, which is the default here; its code the whole state dict, energy head included
(trained by SchNet's and the SE(3)-Transformer's denoising, as it was initialised for EGNN and
TorchMD-Net ET): an arm with ["backbone", "energy_head"]. The masked paper's code takes over
everything, and can start the energy head anew: ["backbone", "energy_head", "vector_readout"].

The fine-tuning budget is the same in all arms, so a variant may change how the steps are taken, but
not how many or on what.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import ConfigError
from ..objectives import Objective
from ..training.checkpoints import PARTS
from ..training.config import TrainConfig

SCRATCH, LONGER = "scratch", "scratch-longer"
MAY_CHANGE = (
    "freeze",
    "layer_decay",
    "lr",
    "min_lr",
    "warmup",
    "flat",
    "schedule",
    "weight_decay",
    "clip",
    "ema",
)


@dataclasses.dataclass(frozen=True)
class Arm:
    """``pretrained_as``: the arm whose pretraining it starts from (itself, or the one it is
    like); None: from scratch.
    """

    name: str
    pretrained_as: str | None = None
    parts: tuple[str, ...] = ("backbone",)
    finetune: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def arms(
    objectives: Mapping[str, Objective],
    parts: Mapping[str, Sequence[str]],
    variants: Mapping[str, Mapping[str, Any]],
    config: TrainConfig,
) -> dict[str, Arm]:
    """All arms but scratch-longer, by name and in order. Raises ConfigError for what does not
    fit together.
    """
    built = {SCRATCH: Arm(SCRATCH)}
    for name in objectives:
        built[name] = Arm(name, name, tuple(parts.get(name, ("backbone",))))
    strange = parts.keys() - objectives.keys()
    if strange:
        raise ConfigError(f"experiment: no arm {min(strange)!r}; there are {', '.join(objectives)}")
    always_there = {SCRATCH, LONGER} & (objectives.keys() | variants.keys())
    twice = always_there or objectives.keys() & variants.keys()
    if twice:
        raise ConfigError(
            f"experiment: two arms are named {min(twice)!r} "
            "(scratch and scratch-longer are always there)"
        )
    for name, given in variants.items():
        if not isinstance(given, Mapping) or "like" not in given:
            raise ConfigError(f"experiment: arm {name!r} needs 'like': the arm it is a variant of")
        if given["like"] not in built:
            raise ConfigError(
                f"experiment: arm {name!r} is like {given['like']!r}, "
                f"which is none of {', '.join(built)}"
            )
        changes = {k: v for k, v in given.items() if k not in ("like", "parts")}
        odd = changes.keys() - set(MAY_CHANGE)
        if odd:
            allowed = ", ".join(MAY_CHANGE)
            raise ConfigError(
                f"experiment: arm {name!r} cannot change {min(odd)!r}: "
                f"the budget is the same in all arms; it can {allowed}"
            )
        old = built[given["like"]]
        new = Arm(
            name,
            old.pretrained_as,
            tuple(given.get("parts", old.parts)),
            {**old.finetune, **changes},
        )
        if "parts" in given and new.pretrained_as is None:
            raise ConfigError(
                f"experiment: arm {name!r} starts from scratch and has no parts to take over"
            )
        try:
            config.replace(**new.finetune)
        except ConfigError as error:
            raise ConfigError(f"experiment: arm {name!r}: {error}") from None
        built[name] = new
    for arm in built.values():
        odd = set(arm.parts) - set(PARTS)
        if odd:
            raise ConfigError(
                f"experiment: arm {arm.name!r} takes over {min(odd)!r}; "
                f"there are {', '.join(PARTS)}"
            )
    return built
