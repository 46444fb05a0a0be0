"""Networks with faults of the published codes beside the same networks without them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from test_published import relative
from torch import nn

from potkit import Potential, models
from potkit.structures.batch import Batch
from potkit.testing import contract

TOLERANCE = 1e-6  # of the largest value, in float64


def fill(model: nn.Module, source: nn.Module) -> None:
    """Give ``model`` the weights of ``source``, as far as it has them.

    Where it lacks the last inputs of a layer ("wrapped-positions"), it goes without.
    """
    given = source.state_dict()
    state = {
        key: given[key][tuple(slice(n) for n in value.shape)]
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state)
    tables = dict(source.named_buffers())  # those that no state dict has, too
    for name, table in model.named_buffers():
        table.copy_(tables[name])


def pair(name: str, preset: str, fault: str, **options) -> tuple[Potential, Potential]:
    """A network with one fault, and with its weights but without the fault, in float64."""
    faulty = contract.prepared(models.build(name, preset, seed=0, faults=(fault,), **options))
    right = contract.prepared(models.build(name, preset, seed=0, **options))
    fill(right, faulty)
    for ours, theirs in ((right, ()), (faulty, (fault,))):
        assert ours.backbone.faults == theirs
    return faulty, right


def largest(model: Potential, other: Potential, batch: Batch, outputs: Sequence[str]) -> float:
    """By how much two networks differ, in units of the largest value of the second."""
    found, expected = model(batch, outputs), other(batch, outputs)
    return max(relative(getattr(found, q), getattr(expected, q).detach()) for q in outputs)


def needed(model: Potential, batch: Batch, outputs: Sequence[str]) -> dict[str, float]:
    """What changes when one fault of ``model`` is taken from it, fault by fault."""
    recipe, changes = model.recipe, {}
    options = {k: v for k, v in recipe["options"].items() if k not in ("pooled", "faults")}
    for fault in model.backbone.faults:
        others = [f for f in model.backbone.faults if f != fault]
        right = models.build(recipe["name"], recipe["preset"], faults=others, **options)
        right.double().eval()
        fill(right, model)
        changes[fault] = largest(right, model, batch, outputs)
    return changes


def jump(model: Potential, batch_of_distance, outputs: Sequence[str]) -> float:
    """The jump at the cutoff, in units of the value at half of it."""
    cutoff = model.cutoff
    inside, outside, half = (
        model(batch_of_distance(d), outputs) for d in (cutoff - 1e-7, cutoff + 1e-7, cutoff / 2)
    )
    jumps = []
    for quantity in outputs:
        a, b, scale = (getattr(p, quantity).detach() for p in (inside, outside, half))
        jumps.append(float((a - b).abs().max() / scale.abs().max()))
    return max(jumps)


def of_kind(module: nn.Module, *kinds: type[nn.Module]) -> list[nn.Module]:
    """The layers of ``module`` of these kinds, in order."""
    return [m for m in module.modules() if isinstance(m, kinds)]


def same_layers(ours: nn.Module, theirs: nn.Module) -> None:
    """Copy the weights of all linear layers and LayerNorms, one after the other."""
    kinds = nn.Linear, nn.LayerNorm
    with torch.no_grad():
        for a, b in zip(of_kind(ours, *kinds), of_kind(theirs, *kinds), strict=True):
            a.load_state_dict(b.state_dict())
