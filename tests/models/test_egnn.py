"""EGNN against the paper's equations in plain NumPy, its presets, and what the faithful option
brings back.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from potkit import models
from potkit.errors import ConfigError
from potkit.structures.store import Structures
from potkit.testing import contract

PAPERS = ("denoise-paper", "masked-paper")


def small(preset, **options):
    torch.manual_seed(0)
    return contract.prepared(models.build("egnn", preset, **{"hidden": 32, **options}))


# -- the equations, written down again, atom by atom and with concatenated inputs ----------------
def silu(x):
    return x / (1 + np.exp(-x))


def linear(layer, x):
    bias = 0.0 if layer.bias is None else layer.bias.detach().numpy()
    return layer.weight.detach().numpy() @ x + bias


def two_layers(sequence, x):
    return linear(sequence[2], silu(linear(sequence[0], x)))


def numpy_egnn(model, z, pos, attention, tanh, smooth, mean):
    backbone = model.backbone
    h, x = backbone.embedding.element.weight.detach().numpy()[z], pos.copy()
    n, cutoff = len(z), backbone.cutoff
    for layer in backbone.layers:
        parts = (layer.from_receiver, layer.from_sender, layer.from_distance)
        # one matrix for [h_i, h_j, d²]
        joint = np.concatenate([p.weight.detach().numpy() for p in parts], axis=1)
        new_h, new_x = h.copy(), x.copy()
        for i in range(n):
            total, move, count = np.zeros(h.shape[1]), np.zeros(3), 0.0
            for j in range(n):
                start = np.linalg.norm(pos[i] - pos[j])
                if i == j or start >= cutoff:
                    continue
                u = start / cutoff
                f = 1 - 28 * u**6 + 48 * u**7 - 21 * u**8 if smooth else 1.0
                d = np.linalg.norm(x[i] - x[j])
                m = (
                    joint @ np.concatenate([h[i], h[j], [d * d]])
                    + layer.from_distance.bias.detach().numpy()
                )
                m = silu(linear(layer.message[0], silu(m)))  # equation 3
                if attention:
                    m = m / (1 + np.exp(-linear(layer.gate, m)))
                w = two_layers(layer.coordinate, m)[0]
                # equation 4, normalised
                step = (x[i] - x[j]) / (d + 1e-8) * (np.tanh(w) if tanh else w) * f
                move += step * f if mean else step
                count += f
                total += m * f  # equation 5
            new_x[i] += move / count if mean else move
            # equation 6, residual
            new_h[i] += two_layers(layer.update, np.concatenate([h[i], total]))
        h, x = new_h, new_x
    return h, x - pos


@pytest.mark.parametrize("preset", PAPERS)
@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("aggregate", ["mean", "sum"])
def test_equals_the_equations_in_numpy(preset, faithful, aggregate):
    model = small(preset, faithful=faithful, aggregate=aggregate)
    one = contract.examples(model.cutoff)[0]
    batch = one.batch(dtype=torch.float64)
    with torch.no_grad():
        features = model.backbone(model.graph(batch, batch.pos))
    options = models.presets("egnn")[preset]
    h, displacement = numpy_egnn(
        model,
        one.z.astype(int),
        one.pos,
        options["attention"],
        options["tanh"],
        not faithful,
        aggregate == "mean",
    )
    np.testing.assert_allclose(features.scalar.numpy(), h, rtol=0, atol=1e-11 * np.abs(h).max())
    np.testing.assert_allclose(
        features.displacement.numpy(), displacement, rtol=0, atol=1e-11 * np.abs(displacement).max()
    )
    assert np.abs(displacement).max() > 1e-4


def test_energy_head_is_per_atom_or_pooled():
    model, pooled = small("masked-paper"), small("denoise-paper", faithful=True)
    batch = contract.examples(model.cutoff).batch(dtype=torch.float64)
    with torch.no_grad():
        scalar = model.backbone(model.graph(batch, batch.pos)).scalar
        atomic = model.energy_head.mlp(
            torch.nn.functional.layer_norm(scalar, (32,), *model.energy_head.norm.parameters())
        )[:, 0]
        expected = [atomic[a:b].sum() for a, b in itertools.pairwise(batch.ptr)]
        torch.testing.assert_close(model(batch).energy, torch.stack(expected))
        scalar = pooled.backbone(pooled.graph(batch, batch.pos)).scalar
        summed = torch.stack([scalar[a:b].sum(0) for a, b in itertools.pairwise(batch.ptr)])
        torch.testing.assert_close(pooled(batch).energy, pooled.energy_head.mlp(summed)[:, 0])


@pytest.mark.parametrize("preset", PAPERS)
def test_contract_of_both_papers(preset):
    torch.manual_seed(0)
    report = contract.check_model(models.build("egnn", preset, hidden=32))
    assert report.claimed.all() and report.passed.all()


@pytest.mark.slow
@pytest.mark.parametrize("preset", PAPERS)
def test_contract_at_full_size(preset):
    torch.manual_seed(0)
    assert contract.check_model(models.build("egnn", preset)).passed.all()


def test_faithful_jumps_at_the_cutoff_and_is_not_extensive():
    torch.manual_seed(0)
    model = models.build("egnn", "denoise-paper", hidden=32, faithful=True)
    report = contract.check_model(model, checks=["cutoff_continuity", "extensivity"])
    energy = (
        report[(report.structures == "free") & (report.quantity == "energy")]
        .set_index("check")
        .residual
    )
    # some per cent, against 1e-14 without `faithful`
    assert energy["cutoff_continuity"] > 0.01 and energy["extensivity"] > 1e-3
    assert not report[report.check == "cutoff_continuity"].claimed.any()


@pytest.mark.parametrize("preset", PAPERS)
def test_gradcheck_through_minus_gradient(preset):
    """torch's own check of the derivative of −∂E/∂x by positions and a weight, and of the second
    derivative of the energy.
    """
    model = small(preset, hidden=8, vector="gradient")
    batch = Structures(
        [8, 1, 6], [[0.0, 0.0, 0.1], [0.9, 0.1, 0.0], [-0.5, 1.1, 0.3]], [0, 3]
    ).batch(dtype=torch.float64)
    weight = model.backbone.layers[0].from_sender.weight

    def minus_gradient(pos, value):
        b = batch.clone()
        b.pos = pos
        return torch.func.functional_call(
            model, {"backbone.layers.0.from_sender.weight": value}, (b, ("vector",))
        ).vector

    inputs = (batch.pos.clone().requires_grad_(True), weight.detach().clone().requires_grad_(True))
    assert torch.autograd.gradcheck(minus_gradient, inputs, eps=1e-5, atol=1e-7, rtol=1e-5)

    def energy(pos):
        b = batch.clone()
        b.pos = pos
        return model(b, ("energy",)).energy

    assert torch.autograd.gradgradcheck(energy, inputs[:1], eps=1e-5, atol=1e-7, rtol=1e-5)


def test_displacement_is_the_denoising_read_out():
    model = small("denoise-paper")
    batch = contract.examples(model.cutoff).batch(dtype=torch.float64)
    with torch.no_grad():
        features = model.backbone(model.graph(batch, batch.pos))
        assert torch.equal(model(batch, ("vector",)).vector, features.displacement)


def test_starts_near_the_identity():
    torch.manual_seed(0)
    model = models.build("egnn", "denoise-paper", hidden=32)
    batch = contract.examples(5.0).batch()
    with torch.no_grad():
        assert 0 < model(batch, ("vector",)).vector.abs().max() < 0.05  # Å


def test_paper_presets_average_and_small_adds():
    """Both published codes average coordinate updates and have no last bias; ours adds, with it."""
    for preset in PAPERS:
        options = models.presets("egnn")[preset]
        assert options["aggregate"] == "mean" and options["bias"] is False
        assert small(preset).backbone.layers[0].coordinate[-1].bias is None
    layer = models.build("egnn", "small").backbone.layers[0]
    assert layer.aggregate == "sum" and layer.coordinate[-1].bias is not None


def test_the_mean_does_not_grow_with_the_number_of_neighbours():
    """Twice the neighbours in the same places move an atom as far by mean, twice as far by sum."""
    moved = {}
    for aggregate in ("mean", "sum"):
        model = small("denoise-paper", layers=1, aggregate=aggregate)
        for copies in (1, 2):
            pos = np.array([[0.0, 0, 0], *[[1.1, 0.2, -0.3], [-0.4, 1.3, 0.6]] * copies])
            z = np.array([6, *[8, 1] * copies])
            pair = [(i, 0) for i in range(1, len(z))]  # only the first atom hears others
            sender, receiver = torch.tensor(pair).T
            batch = Structures(z, pos, [0, len(z)]).batch(dtype=torch.float64)
            batch.edge_index, batch.edge_shift = torch.stack([sender, receiver]), None
            batch.cutoff = model.cutoff
            with torch.no_grad():
                moved[aggregate, copies] = model(batch, ("vector",)).vector[0]
    torch.testing.assert_close(moved["mean", 2], moved["mean", 1])
    torch.testing.assert_close(moved["sum", 2], 2 * moved["sum", 1])
    assert moved["mean", 1].abs().max() > 1e-5


def test_the_mean_is_smooth_where_the_only_neighbour_leaves():
    """A mean over f_c itself would keep its full length up to the cutoff and then be gone."""
    model = small("denoise-paper", layers=2)

    def step(d):
        pair = Structures([8, 1], [[0.0, 0, 0], [d, 0, 0]], [0, 2]).batch(dtype=torch.float64)
        with torch.no_grad():
            return float(model(pair, ("vector",)).vector[0].norm())

    assert step(1.0) > 100 * step(4.9) > 0
    assert step(5.0 - 1e-6) < 1e-12 and step(5.0 + 1e-6) == 0


def test_bad_options():
    with pytest.raises(ConfigError, match="unknown aggregate 'max'; there are sum, mean"):
        models.build("egnn", "denoise-paper", aggregate="max")
    with pytest.raises(ConfigError, match="hidden ≥ 1, layers ≥ 1, radial ≥ 0, got 0, 5, 0"):
        models.build("egnn", "denoise-paper", hidden=0)
