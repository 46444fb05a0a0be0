"""TorchMD-Net ET against the torchmd-net package's own with the same weights, and its options."""

from __future__ import annotations

import pytest
import torch

from potkit import models
from potkit.bench.peers import copy_torchmd_et
from potkit.errors import ConfigError
from potkit.testing import contract


@pytest.mark.peers
@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize(
    "size",
    [dict(hidden=256, layers=6, radial=32, heads=8), dict(hidden=24, layers=2, radial=9, heads=3)],
)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equals_the_package(size, faithful, dtype, tolerance):
    package = pytest.importorskip(
        "torchmdnet.models.torchmd_et", reason="the torchmd-net package is not installed"
    )
    torch.manual_seed(0)
    model = contract.prepared(
        models.build("torchmd_et", "denoise-paper", faithful=faithful, **size), dtype
    )
    theirs = package.TorchMD_ET(
        size["hidden"],
        size["layers"],
        size["radial"],
        num_heads=size["heads"],
        cutoff_upper=5.0,
        max_num_neighbors=64,
        vector_cutoff=not faithful,
        dtype=dtype,
    ).to(dtype)
    copy_torchmd_et(model.backbone, theirs)
    batch = contract.examples(5.0).batch(dtype=dtype)
    with torch.no_grad():
        ours = model.backbone(model.graph(batch, batch.pos))
        scalar, vector, *_ = theirs(batch.z, batch.pos, batch.batch)
    assert (ours.scalar - scalar).abs().max() < tolerance * scalar.abs().max()
    assert (ours.vector - vector).abs().max() < tolerance * vector.abs().max()
    assert vector.abs().max() > 1e-2


def test_faithful_jumps_at_the_cutoff():
    """Without the damping a vector message of a neighbour ends abruptly; with it the jump goes
    to zero with the distance.
    """
    jumps = {}
    for faithful in (False, True):
        torch.manual_seed(0)
        model = models.build("torchmd_et", hidden=32, heads=4, faithful=faithful)
        report = contract.check_model(
            model, checks=["cutoff_continuity"], periodic=False
        ).set_index("quantity")
        assert report.claimed.all() == (not faithful)
        jumps[faithful] = report.residual
    assert jumps[True]["vector"] > 0.05 and jumps[True]["energy"] > 1e-5
    assert jumps[False]["vector"] < 1e-9 and jumps[False]["energy"] < 1e-9


def test_self_attention_is_part_of_every_layer():
    """An isolated atom goes through attention with itself: its features depend on the value
    projection.
    """
    torch.manual_seed(0)
    model = contract.prepared(models.build("torchmd_et", hidden=16, heads=4, layers=1))
    alone = contract.examples(5.0)[0].batch(dtype=torch.float64)
    alone.pos = alone.pos * 100
    before = model(alone).energy
    with torch.no_grad():
        model.backbone.layers[0].value.weight.mul_(2)
    assert model(alone).energy != before


def test_radial_basis_starts_as_in_physnet():
    basis = models.build("torchmd_et", "denoise-paper").backbone.basis
    start = torch.exp(torch.tensor(-5.0))
    torch.testing.assert_close(basis.means[[0, -1]], torch.stack([start, torch.tensor(1.0)]))
    torch.testing.assert_close(basis.betas, torch.full((32,), float((2 / 32 * (1 - start)) ** -2)))
    assert basis.means.requires_grad and basis.betas.requires_grad


def test_presets_and_options():
    with pytest.raises(
        ConfigError,
        match="unknown preset 'masked-paper' of torchmd_et; there are denoise-paper, small",
    ):
        models.build("torchmd_et", "masked-paper")
    with pytest.raises(
        ConfigError,
        match="a number of heads that divides hidden, got layers=3, radial=32, heads=5, hidden=64",
    ):
        models.build("torchmd_et", heads=5)
    assert models.build("torchmd_et", "denoise-paper", faithful=True).energy_head.pooled
    assert models.build("torchmd_et", "denoise-paper").vector_mode == "gated"
