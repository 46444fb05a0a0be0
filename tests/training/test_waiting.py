"""A step of training waits for the device nowhere but where it must: wherever the host asks for a
number of the device, a GPU runs dry until all that is queued is done.

What would wait on a GPU is found without one: every operation of a step goes past
`torch.utils._python_dispatch`, with the line of potkit that asked for it.
"""

from __future__ import annotations

import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from tiny import molecules, water
from torch.utils._python_dispatch import TorchDispatchMode

import potkit
from potkit.training import step

# the host must know what they return, or how much: `.item()`, `bool(tensor)`, sizes from contents
WAITS = {
    "_local_scalar_dense",
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "unique_consecutive",
    "unique_dim",
    "_unique2",
    "bincount",
}
# where they are allowed, for sizes follow from positions there: module -> why
NAMED = {
    "structures/neighbors.py": "the number of edges",
    "structures/batch.py": "the atoms that are left where some are removed",
    "structures/geometry.py": "which boxes are skewed, for shortest distances in them",
    "objectives/masked.py": "the atoms to remove, molecule by molecule",
}
PACKAGE = Path(potkit.__file__).parent
SMALL = {
    "egnn": {"hidden": 8, "layers": 1},
    "schnet": {"hidden": 8, "layers": 1},
    "torchmd_et": {"hidden": 8, "layers": 1, "heads": 2},
    "painn": {"hidden": 8, "layers": 1},
    "nequip": {"preset": "small", "layers": 1},
    "se3_transformer": {"preset": "small", "layers": 1},
    "gns": {"hidden": 8, "layers": 1},
    "forcenet": {"hidden": 8, "layers": 1},
}


class Waiting(TorchDispatchMode):
    """Counts what would wait for a GPU, by the file of potkit that asked for it."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        indexed = name.startswith("index") and any(
            isinstance(i, torch.Tensor) and i.dtype == torch.bool
            for i in (args[1] if len(args) > 1 and isinstance(args[1], (list, tuple)) else ())
        )
        repeated = name == "repeat_interleave" and kwargs.get("output_size") is None
        if name in WAITS or indexed or repeated:
            self.seen[self._asked(), name] += 1
        return func(*args, **kwargs)

    @staticmethod
    def _asked() -> str:
        for frame in reversed(traceback.extract_stack()):
            path = Path(frame.filename)
            if path.is_relative_to(PACKAGE):
                return path.relative_to(PACKAGE).as_posix()
        return "torch"


def waited(network: str, objective: potkit.Objective, structures: potkit.Structures) -> Counter:
    """What one step waits for, after one that made the optimizer's moments."""
    model = potkit.build(network, cutoff=3.0, vector="gradient", **SMALL[network])
    config = potkit.TrainConfig(steps=3, batch_size=3, progress=False, ema=0.9)
    fabric = Fabric(accelerator="cpu", devices=1)
    training = step.Training(fabric, model, structures, objective, config)
    state = step.State(fabric, model, model.parts(objective.needed()), config)
    model.train()
    step.take_step(training, state)
    with Waiting() as waiting:
        loss, terms, _ = step.take_step(training, state)
        state.note(loss, terms)
    return waiting.seen


@pytest.mark.parametrize("network", sorted(SMALL))
@pytest.mark.parametrize(
    "objective",
    [potkit.Denoise(sigma=0.1), potkit.Masked(ratio=0.5), potkit.Supervised(energy=1, forces=10)],
    ids=["denoise", "masked", "supervised"],
)
@pytest.mark.parametrize("data", ["molecules", "boxes"])
def test_nothing_waits_but_what_is_named(network, objective, data):
    structures = molecules(6) if data == "molecules" else water(6, per_side=2)
    if data == "boxes" and isinstance(objective, potkit.Supervised):
        pytest.skip("these boxes have no labels")
    seen = waited(network, objective, structures)
    others = {place: count for place, count in seen.items() if place[0] not in NAMED}
    assert not others, "these would wait for a GPU in every step"


def test_a_number_that_the_host_asks_for_is_seen():
    """The test above would see it: a norm that is printed, an index by a mask."""
    values = torch.arange(4.0)
    with Waiting() as waiting:
        float(values.norm())
        values[values > 1]
        bool((values > 1).all())
    assert {name for _, name in waiting.seen} >= {"_local_scalar_dense"}
    assert sum(waiting.seen.values()) >= 3
