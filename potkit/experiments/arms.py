"""The arms of a comparison as data: what each is pretrained with, what it takes over, and how it is
fine-tuned.

    scratch          no pretraining
    scratch-longer   no pretraining, but as much longer as the (dearest) pretraining took, in wall
                     time or in steps
    NAME             pretrained with an objective; the backbone (or ``parts``) is taken over, heads
                     are new
    NAME             the same, but its pretraining goes on from another arm's (``after``)
    NAME             no pretraining here: it starts from given ``weights``, shipped ones by name or
                     a finished pretraining's folder, the same in every seed
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

An objective may read labels of what is pretrained on: `Supervised` on energies and forces of a fast
method is the arm "cheap labels". To start fine-tuning at that network, and not only at its
backbone, take over ``parts`` [backbone, energy_head].

The fine-tuning budget is the same in all arms, so a variant may change how the steps are taken, but
not how many or on what.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..objectives import Objective
from ..structures.settings import shown
from ..training import pretrained
from ..training.checkpoints import PARTS
from ..training.config import TrainConfig

SCRATCH, LONGER = "scratch", "scratch-longer"
# the check of convergence: scratch again, with twice the steps of fine-tuning
DOUBLED = "scratch, twice the steps"
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
    like); None: from scratch, or from ``weights`` (a name or path, as for `finetune`). ``after``:
    the arm whose pretraining that one goes on from.
    """

    name: str
    pretrained_as: str | None = None
    parts: tuple[str, ...] = ("backbone",)
    finetune: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    after: str | None = None
    weights: str | None = None

    @property
    def pretrained(self) -> bool:
        """Whether it starts from a pretraining, made here or before."""
        return bool(self.pretrained_as or self.weights)


def arms(
    objectives: Mapping[str, Objective],
    parts: Mapping[str, Sequence[str]],
    variants: Mapping[str, Mapping[str, Any]],
    config: TrainConfig,
    after: Mapping[str, str] | None = None,
    weights: Mapping[str, str] | None = None,
) -> dict[str, Arm]:
    """All arms but scratch-longer, by name and in order. Raises ConfigError for what does not
    fit together.
    """
    built = {SCRATCH: Arm(SCRATCH)}
    after = after or {}
    for name in objectives:
        earlier = after.get(name)
        known = isinstance(earlier, str) and earlier in built and earlier != SCRATCH
        if earlier is not None and not known:
            raise ConfigError(
                f"experiment: arm {name!r} goes on after {earlier!r}, which is no arm with a "
                "pretraining that stands before it"
            )
        taken = _parts(name, parts.get(name, ("backbone",)))
        built[name] = Arm(name, name, taken, after=earlier)
    weights = weights or {}
    for name, source in weights.items():
        try:
            on_card = pretrained.parts_of(pretrained.resolve(source))
        except CheckpointError as error:
            raise ConfigError(f"experiment: arm {name!r}: {error}") from None
        taken = _parts(name, parts.get(name, on_card))
        built[name] = Arm(name, parts=taken, weights=str(source))
    lost = after.keys() - objectives.keys()
    if lost:
        raise ConfigError(f"experiment: no arm {min(lost)!r} to go on after {after[min(lost)]!r}")
    own = [*objectives, *weights]
    strange = parts.keys() - set(own)
    if strange:
        raise ConfigError(f"experiment: no arm {min(strange)!r}; there are {', '.join(own)}")
    named = [*own, *variants]
    always_there = {SCRATCH, LONGER, DOUBLED} & set(named)
    twice = always_there or {name for name in named if named.count(name) > 1}
    if twice:
        raise ConfigError(
            f"experiment: two arms are named {min(twice)!r} "
            f"({SCRATCH}, {LONGER} and {DOUBLED!r} are the experiment's own)"
        )
    for name, given in variants.items():
        if not isinstance(given, Mapping) or "like" not in given:
            raise ConfigError(f"experiment: arm {name!r} needs 'like': the arm it is a variant of")
        if not isinstance(given["like"], str) or given["like"] not in built:
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
            _parts(name, given.get("parts", old.parts)),
            {**old.finetune, **changes},
            old.after,
            old.weights,
        )
        if "parts" in given and not new.pretrained:
            raise ConfigError(
                f"experiment: arm {name!r} starts from scratch and has no parts to take over"
            )
        try:
            config.replace(**new.finetune)
        except ConfigError as error:
            raise ConfigError(f"experiment: arm {name!r}: {error}") from None
        built[name] = new
    return built


def _parts(arm: str, given: Any) -> tuple[str, ...]:
    """What ``arm`` takes over. Raises ConfigError for anything but a list of a network's parts."""
    if not isinstance(given, (list, tuple)) or not given:  # a text would be read letter by letter
        raise ConfigError(
            f"experiment: arm {arm!r}: parts is a list such as [backbone, energy_head], "
            f"got {shown(given)}"
        )
    for part in given:
        if part not in PARTS:
            raise ConfigError(
                f"experiment: arm {arm!r} takes over {part!r}; there are {', '.join(PARTS)}"
            )
    return tuple(given)
