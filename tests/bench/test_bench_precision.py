"""bf16-mixed: forces are trained through it by every network of the study, whose grid differs in
the precision alone.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tiny import molecules

from potkit import TrainConfig, models
from potkit.experiments import yaml_form
from potkit.objectives import Supervised
from potkit.training import loop

STUDY = Path(__file__).resolve().parents[2] / "data/results/precision.yaml"


def test_the_study_differs_in_precision_only():
    grid = yaml_form.read(STUDY).specs
    assert [tuple(columns.values()) for columns, _ in grid] == [
        (network, precision)
        for network in ("egnn", "torchmd_et", "schnet")
        for precision in ("float32", "bf16-mixed")
    ]
    for (_, full), (_, low) in zip(grid[::2], grid[1::2], strict=True):
        for spec, precision in ((full, "32-true"), (low, "bf16-mixed")):
            assert spec.pretrain.pop("precision") == spec.finetune.pop("precision") == precision
        assert full == low and len(full.seeds) == 3 and list(full.arms) == ["denoise"]


@pytest.mark.parametrize("name", ["egnn", "torchmd_et", "schnet"])
def test_gradient_of_a_force_loss(name):
    """Of the weights, through −∂E/∂x: of float32, finite, and within a few per cent of what
    float32 gives.
    """
    model = models.build(name, "small", seed=0)
    objective = Supervised(energy=1, forces=100, loss_function="mse")
    batch = objective.corrupt(molecules(6).batch(), torch.Generator())
    gradients = []
    for low in (False, True):
        model.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            prediction = model(batch, objective.needed())
        assert prediction.energy.dtype == torch.float64
        objective.loss(prediction, batch)[0].backward(
            inputs=[p for n, p in model.named_parameters() if n.startswith(("backbone", "energy"))]
        )
        grads = [p.grad for p in model.parameters() if p.grad is not None]
        assert {grad.dtype for grad in grads} == {torch.float32}
        gradients.append(torch.cat([grad.flatten() for grad in grads]))
    full, low = gradients
    assert full.norm() > 0 and 0 < (low - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize("name", ["egnn", "torchmd_et", "schnet"])
def test_forces_are_learned(name, tmp_path):
    """As far as in float32: the weights stay float32, and the loss ends where it ends there."""
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        config = TrainConfig(
            steps=12,
            batch_size=6,
            lr=3e-3,
            precision=precision,
            device="cpu",
            progress=False,
            log_every=1,
            seed=1,
        )
        run = loop.finetune(
            models.build(name, "small", seed=0),
            molecules(12),
            None,
            config,
            out=tmp_path / precision,
        )
        assert {p.dtype for p in run.model.parameters()} == {torch.float32}
        losses[precision] = run.metrics["loss"].to_numpy()
    full, low = losses["32-true"], losses["bf16-mixed"]
    assert full[-1] < full[0]
    assert low[-1] == pytest.approx(full[-1], rel=0.05)
    assert (low != full).any()
