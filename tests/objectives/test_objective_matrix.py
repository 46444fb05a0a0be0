"""Every registered objective with every registered network: a few steps on one tiny batch lower the
loss.
"""

from __future__ import annotations

import functools

import pytest
import torch
from tiny import generator, molecules, water

import potkit
from potkit import models, objectives

# smaller than the presets, for speed; a network that is not here is tried as its small preset
SIZES = {
    "schnet": {"hidden": 16, "filters": 16, "layers": 2, "radial": 8},
    "egnn": {"hidden": 16, "layers": 2, "radial": 4},
    "torchmd_et": {"hidden": 16, "layers": 2, "radial": 8, "heads": 2},
    "painn": {"hidden": 16, "layers": 2, "radial": 8},
    "se3_transformer": {
        "channels": 8,
        "max_degree": 1,
        "layers": 1,
        "heads": 2,
        "division": 4,
        "radial": 8,
        "radial_hidden": 8,
    },
    "gns": {"hidden": 16, "layers": 2, "radial": 4},
    "forcenet": {"hidden": 16, "layers": 2, "max_n": 2, "frequencies": 4},
    "nequip": {"channels": 8, "max_degree": 1, "layers": 2, "radial": 4, "radial_hidden": 8},
}
# an objective that is not here is tried with its defaults
TASKS = {
    "denoise": {"sigma": 0.1},
    "masked": {"ratio": 0.5},
    "masked-denoise": {"ratio": 0.5, "sigma": 0.1},
    "anisotropic-denoise": {"sigma": 0.1},
    "force-conditioned-denoise": {"probability": 0.7, "atoms": 0.7},
    "supervised": {},
    "noisy-nodes": {"weight": 1.0},
}
STEPS = {"egnn": 30, "nequip": 20}  # others 10: these two start with almost no vector at all


def test_the_settings_are_of_registered_networks_and_objectives():
    assert SIZES.keys() <= set(models.names())
    assert TASKS.keys() <= set(objectives.names())


@functools.cache
def structures(objective: str):
    return water(2) if objective.startswith("masked") else molecules(4)


@pytest.mark.parametrize("objective", objectives.names())
@pytest.mark.parametrize("network", models.names())
def test_a_few_steps_lower_the_loss(network, objective):
    task = objectives.from_dict({"objective": objective, **TASKS.get(objective, {})})
    model = potkit.build(network, cutoff=4.0, seed=0, **SIZES.get(network, {}))
    if task.labels():
        # about the root mean square force of these molecules
        model.set_references({1: 0.0, 6: 0.0, 8: 0.0}, 3.0)
    model.extend(task.needed(), task.inputs)
    batch = task.corrupt(structures(objective).batch(dtype=torch.float32), generator(1))
    used = model.parts(task.needed())
    trained = {n: p for n, p in model.named_parameters() if n.split(".")[0] in used}
    optimizer = torch.optim.Adam(trained.values(), 3e-3)
    seen = []
    for _ in range(STEPS.get(network, 10)):
        loss, metrics = task.loss(model(batch, task.needed()), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append(float(loss.detach()))
    assert seen[-1] < 0.99 * seen[0], f"loss {seen[0]:.4f} -> {seen[-1]:.4f}"
    assert all(bool(torch.isfinite(value)) for value in metrics.values())
    # every part that is said to take part does learn: some weight of it has a gradient
    for part in used:
        weights = [p for n, p in trained.items() if n.split(".")[0] == part]
        learns = any(p.grad is not None and bool(p.grad.any()) for p in weights)
        assert learns or not weights, f"{part} does not learn"
