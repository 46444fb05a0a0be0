"""Energy and derivatives as one graph: the same numbers as the network, and what is refused."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import equal, molecules, one_line, weights
from torch import nn

import potkit
from potkit import Denoise, Supervised, TrainConfig, models
from potkit.errors import ConfigError
from potkit.kernels import compiling, whole_graph
from potkit.kernels.whole_graph import WholeGraph
from potkit.models.layers import sum_over
from potkit.testing import contract
from potkit.training import loop

# as few operations as show what a network does: a graph's compilation takes seconds
LAYERS = {"painn": 2}


@pytest.fixture
def nothing_shared(monkeypatch):
    monkeypatch.setattr(whole_graph, "_SHARED", {})


def small(name: str) -> models.Potential:
    """A network of few layers with derivative forces, its weights not those it starts with."""
    layers = LAYERS.get(name, 1)
    model = models.build(name, layers=layers, vector="gradient", forces="gradient")
    return contract.prepared(model).train()


def derivatives(predict, model, batch, outputs):
    """What is predicted, and the derivatives of its squares by the weights."""
    prediction = predict(batch, outputs)
    given = [v for v in prediction if v is not None]
    total = sum(torch.nan_to_num(v).square().sum() for v in given)
    weights = list(model.parameters())
    gradients = torch.autograd.grad(total, weights, allow_unused=True, materialize_grads=True)
    return given, list(gradients)


@pytest.mark.parametrize("name", models.names())
def test_every_network_and_its_second_derivatives(name, monkeypatch):
    """Skewed box, slab, wire and a free structure in one batch, float64, stress included."""
    model = small(name)
    batch = contract.examples(model.cutoff, periodic=True).batch(dtype=torch.float64)
    outputs = ("energy", "forces", "stress")
    monkeypatch.setattr(whole_graph, "CHECKED", 0)  # compared here
    given, gradients = derivatives(WholeGraph(model, "eager"), model, batch, outputs)
    wanted, expected = derivatives(model, model, batch, outputs)
    assert len(given) == 3 and len(gradients) == len(expected) > 0
    for a, b in zip(given, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9, equal_nan=True)
    size = max(float(g.abs().max()) for g in expected)
    for g, b in zip(gradients, expected, strict=True):
        assert (g - b).abs().max() < 1e-10 * size
    assert size > 0


CALLED = {
    "egnn": {"egnn_slopes_backward", "egnn_backward"},
    "torchmd_et": {
        "torchmd_et_slopes_backward",
        "torchmd_et_backward",
        "torchmd_et_neighbours_slopes_backward",
        "torchmd_et_update_slopes_backward",
    },
}


@pytest.mark.parametrize("name", CALLED)
def test_kernels_are_called_from_the_graph(name, compiled_kernels, monkeypatch):
    """In float32: the same predictions and derivatives, for batches of all sizes."""
    model = contract.prepared(models.build(name, "small", layers=2, vector="gradient"))
    model = model.float().train()
    graph = WholeGraph(model, "aot_eager", kernels=True)
    monkeypatch.setattr(whole_graph, "CHECKED", 0)  # compared here
    called = set()
    for n in (2, 5):
        batch = molecules(n).batch()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            given, gradients = derivatives(graph, model, batch, ("energy", "forces"))
        called |= {event.key for event in profile.key_averages()}
        wanted, expected = derivatives(model, model, batch, ("energy", "forces"))
        for a, b in zip(given, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
        size = max(float(g.abs().max()) for g in expected)
        assert len(gradients) == len(expected) > 0
        for g, b in zip(gradients, expected, strict=True):
            assert (g - b).abs().max() < 1e-5 * size
    assert {f"potkit::{operation}" for operation in CALLED[name]} <= called
    assert graph.compilations in (1, 2)
    # in float64 there are none
    double = model.double()
    batch = molecules(2).batch(dtype=torch.float64)
    WholeGraph(double, "eager", kernels=True)(batch, ("energy", "forces"))


@pytest.mark.parametrize("name", ["egnn", "schnet", "torchmd_et"])
def test_double_precision_goes_through_the_graph_without_kernels(name, monkeypatch):
    """Of networks that have kernels for both derivatives, which are float32."""
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    model, outputs = small(name), ("energy", "forces")
    batch = molecules(2).batch(dtype=torch.float64)
    wanted = model(batch, outputs)
    with compiling.compiled(model, outputs, True, "cpu", "64-true"):
        whole = model._compiled_call_impl
        assert isinstance(whole, WholeGraph) and not whole.kernels
        torch.testing.assert_close(model(batch, outputs).forces, wanted.forces)


def test_one_graph_serves_all_sizes_and_follows_the_weights():
    model = small("painn").float()
    graph = WholeGraph(model, "aot_eager")
    outputs, counts = ("energy", "forces"), []
    for seed in range(6):
        batch = molecules(3 + seed, seed=seed).batch()
        got, wanted = graph(batch, outputs), model.forward(batch, outputs)
        torch.testing.assert_close(got.energy, wanted.energy, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.forces, wanted.forces, rtol=1e-4, atol=1e-5)
        counts.append(graph.compilations)
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1.01)
    # the backend may be asked twice for the first batch, and is never asked again
    assert counts == [counts[0]] * 6 and counts[0] in (1, 2)


FIRST_CALL = """
import sys
import potkit
from potkit.kernels.whole_graph import WholeGraph

batch = potkit.load("ani-mini")[:2].batch()
model = potkit.build(sys.argv[1], "small", vector="gradient", seed=0)
compiled = WholeGraph(model, "aot_eager")(batch, ("energy", "forces"))
print(float((compiled.forces - model(batch, ("forces",)).forces).abs().max()))
"""


@pytest.mark.parametrize("name", ["nequip", "forcenet"])
def test_the_first_call_of_a_process_may_be_a_graphs(name):
    """e3nn's spherical harmonics keep what they make at their first call, which is none of the
    trace's then.
    """
    command = [sys.executable, "-c", FIRST_CALL, name]
    done = subprocess.run(command, capture_output=True, text=True)
    assert not done.returncode, done.stderr
    assert float(done.stdout) < 1e-4


def test_what_it_leaves_to_the_network(monkeypatch):
    model = small("painn").float()
    graph = WholeGraph(model, "aot_eager")
    monkeypatch.setattr(WholeGraph, "_trace", lambda *a: pytest.fail("traced"))
    batch = molecules(3).batch()
    assert graph(batch, ("energy",)).energy.requires_grad  # no derivative in it
    with torch.no_grad():  # a prediction
        assert graph(batch, ("energy", "forces")).forces.shape == (len(batch.z), 3)
    atoms = potkit.Structures(np.ones(2, int), np.zeros((2, 3)), np.array([0, 1, 2]))
    assert graph(atoms.batch(), ("energy", "forces")).forces.abs().max() == 0  # no edges


@pytest.mark.parametrize("objective", [Supervised(), Denoise(sigma=0.1)], ids=lambda o: o.name)
def test_training_ends_where_it_does_without(objective, tmp_path, monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    ends = []
    for compile in (False, True):
        model = models.build("painn", layers=1, hidden=8, vector="gradient", seed=0)
        config = TrainConfig(
            steps=4, batch_size=4, lr=1e-3, compile=compile, device="cpu", progress=False
        )
        run = loop.fit(model, molecules(8), objective, config, tmp_path / str(compile))
        assert model._compiled_call_impl is None
        ends.append(weights(run.model))
    assert ends[0].keys() == ends[1].keys()
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("freeze", [0.0, 0.5])
def test_batch_norms_are_trained_as_without(tmp_path, monkeypatch, nothing_shared, freeze):
    """Statistics of each batch are counted once, though the first ones are compared; while the
    backbone is frozen they rest, and are gathered from then on.
    """
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    small = dict(layers=1, hidden=8, cutoff=3.0, vector="gradient", forces="gradient")
    ends = []
    for compile in (False, True):
        model = models.build("forcenet", preset="masked-paper", seed=0, **small)
        assert any(isinstance(module, nn.BatchNorm1d) for module in model.backbone.modules())
        config = TrainConfig(
            steps=6,
            batch_size=4,
            lr=3e-3,
            freeze=freeze,
            precision="64-true",
            compile=compile,
            device="cpu",
            progress=False,
        )
        run = loop.fit(model, molecules(8), Supervised(), config, tmp_path / str(compile))
        ends.append(weights(run.model))
    counted = [name for name in ends[0] if name.endswith("num_batches_tracked")]
    assert counted and all(ends[0][name] == 6 * (1 - freeze) for name in counted)
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-6, atol=1e-7)


def test_a_compiled_run_goes_on_to_the_same_weights(tmp_path, monkeypatch):
    """What a killed run does: it stops in the middle, and a new graph is made for the rest."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")

    class Stop(Exception):
        pass

    def fit(out, stop=None):
        model = models.build("painn", layers=1, hidden=8, vector="gradient", seed=0)
        config = TrainConfig(
            steps=6,
            batch_size=4,
            lr=1e-3,
            compile=True,
            device="cpu",
            progress=False,
            checkpoint_every=2,
            ema=0.9,
        )
        call = WholeGraph.__call__
        count = iter(range(1000))

        def counted(self, batch, outputs=None):
            if stop is not None and torch.is_grad_enabled() and next(count) == stop:
                raise Stop
            return call(self, batch, outputs)

        with monkeypatch.context() as patch:
            patch.setattr(WholeGraph, "__call__", counted)
            return loop.fit(model, molecules(8), Supervised(), config, out)

    whole = fit(tmp_path / "whole")
    with pytest.raises(Stop):
        fit(tmp_path / "cut", stop=4)
    assert equal(weights(fit(tmp_path / "cut").model), weights(whole.model))


# -- what is refused -------------------------------------------------------------------------------
class Odd(nn.Module):
    """A backbone that does something with its numbers that no graph can hold, or something else
    while it is traced.
    """

    cutoff, n_features = 3.0, 4

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.weight = how, nn.Parameter(torch.ones(4))

    def forward(self, graph):
        size = sum_over(graph.distance.square()[:, None], graph.receiver, graph.z.shape[0])
        if self.how == "looks" and float(size.sum()) > 1e9:
            size = 2 * size
        if self.how == "differs" and size.requires_grad and isinstance(graph.z.shape[0], int):
            size = 2 * size
        return models.Features(size * self.weight)


@pytest.mark.parametrize(
    ("how", "words"), [("looks", "cannot be traced"), ("differs", "has other energy")]
)
def test_a_network_that_no_graph_can_hold_is_named(how, words):
    model = models.Potential(Odd(how), vector="gradient")
    with pytest.raises(ConfigError) as caught:
        WholeGraph(model, "eager")(molecules(3).batch(), ("energy", "forces"))
    line = one_line(caught.value)
    assert line.startswith("compile: Odd") and words in line and "set compile to false" in line


def test_predictions_that_no_graph_can_hold_are_named(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "eager")
    model = models.Potential(Odd("looks"), vector="gradient")
    with pytest.raises(ConfigError, match="compile: Odd cannot be traced") as caught:
        potkit.predict(model, molecules(3), compile=True)
    assert "set compile to false" in one_line(caught.value)
    assert model._compiled_call_impl is None
    assert potkit.predict(model, molecules(3))["energy"].shape == (3,)


@pytest.mark.parametrize("shared", [False, True])
def test_wrong_derivatives_are_seen_though_predictions_are_right(
    monkeypatch, nothing_shared, shared
):
    """Torch takes mean and deviation of a layer norm for constants once its first derivative is
    spelled out by them. A graph that might be another network's is made once more before that is
    told.
    """
    core = torch._decomp.core_aten_decompositions
    monkeypatch.setattr(whole_graph, "_decompositions", core)
    graph = WholeGraph(small("gns"), "eager", shared=shared)
    batch = molecules(3).batch(dtype=torch.float64)
    with pytest.raises(ConfigError, match="other derivatives by") as caught:
        graph(batch, ("energy", "forces"))
    assert "set compile to false" in one_line(caught.value)


def test_half_precision_is_refused():
    model = models.build("painn", vector="gradient")
    with (
        pytest.raises(ConfigError, match="not for precision bf16-mixed"),
        compiling.compiled(model, ("energy", "forces"), True, "cpu", "bf16-mixed"),
    ):
        pass


def test_inductor_adds_up_edges_rightly():
    """What it made of values inlined into a scatter was wrong: forces of PaiNN, of two layers."""
    pytest.importorskip("torch._inductor")
    model = models.build("painn", preset="small", hidden=16, layers=2, vector="gradient", seed=0)
    batch = molecules(4).batch()
    got = WholeGraph(model)(batch, ("energy", "forces"))  # it compares derivatives, too
    wanted = model.forward(batch, ("energy", "forces"))
    torch.testing.assert_close(got.forces, wanted.forces, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", models.names())
def test_predictions_of_every_network(name, monkeypatch):
    """Skewed box, slab, wire and a free structure in one batch, float64, stress included."""
    model = small(name).eval()
    batch = contract.examples(model.cutoff, periodic=True).batch(dtype=torch.float64)
    monkeypatch.setattr(whole_graph, "CHECKED", 0)  # compared here
    graph = WholeGraph(model, "eager", predictions=True)
    with torch.no_grad():
        for outputs in [("energy", "forces", "stress"), ("energy",)]:
            got, wanted = graph(batch, outputs), model(batch, outputs)
            for field in outputs:
                torch.testing.assert_close(
                    getattr(got, field),
                    getattr(wanted, field),
                    rtol=1e-9,
                    atol=1e-9,
                    equal_nan=True,
                )
    assert len(graph._graphs) == 2


def test_predictions_follow_the_weights_and_are_compiled_once(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    model, structures = small("painn").float().eval(), molecules(5)
    before = potkit.predict(model, structures, batch_size=2, compile=True)
    made = model.__dict__[compiling.KEPT].made
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1.1)
    with monkeypatch.context() as patch:
        patch.setattr(WholeGraph, "_trace", lambda *a: pytest.fail("traced again"))
        after = potkit.predict(model, structures, batch_size=2, compile=True)
    assert model.__dict__[compiling.KEPT].made is made and model._compiled_call_impl is None
    plain = potkit.predict(model, structures, batch_size=2)
    assert np.abs(after["forces"] - before["forces"]).max() > 1e-3
    for name, value in plain.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-4, atol=1e-5)
    assert copy.deepcopy(model).__dict__[compiling.KEPT].made is None
    # another shift is another tensor, which the graph does not know
    model.set_references({1: -1.0, 6: -2.0, 7: -3.0, 8: -4.0}, shift=5.0)
    shifted = potkit.predict(model, structures, batch_size=2, compile=True)
    np.testing.assert_allclose(
        shifted["energy"], potkit.predict(model, structures)["energy"], rtol=1e-5, atol=1e-4
    )


def test_a_compiled_calculator_moves_atoms_as_the_plain_one_does(monkeypatch):
    """Numbers of edges change from step to step; a pickled one compiles again."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    model = small("painn").eval()
    (atoms,) = molecules(1).to_ase()
    calc = potkit.calculator(model, compile=True, dtype=torch.float64)
    plain = potkit.calculator(model)
    rng = np.random.default_rng(0)
    for scale in (0.0, 0.05, 0.3):
        moved = atoms.copy()
        moved.positions += scale * rng.standard_normal(moved.positions.shape)
        for calculator in (calc, pickle.loads(pickle.dumps(calc))):
            moved.calc = calculator
            forces, energy = moved.get_forces(), moved.get_potential_energy()
            moved.calc = plain
            np.testing.assert_allclose(forces, moved.get_forces(), rtol=1e-9, atol=1e-9)
            np.testing.assert_allclose(energy, moved.get_potential_energy(), rtol=1e-12)
    assert calc._quick[True, True][0]._graph.compilations in (1, 2)


def shared_graph(model):
    return WholeGraph(model, "aot_eager", kernels=True, shared=True)


@pytest.mark.parametrize("name", ["egnn", "painn"])
def test_networks_that_are_alike_share_a_graph(name, nothing_shared):
    """Other weights and reference energies, the same code: the second network compiles nothing."""
    outputs = ("energy", "forces")
    batch = molecules(4).batch()
    first, second = small(name).float(), small(name).float()
    with torch.no_grad():
        for weight in second.parameters():
            weight.add_(0.1 * torch.randn_like(weight))
    second.set_references({1: -13.0, 6: -1029.0, 8: -2042.0}, scale=0.7)
    made = []
    for model in (first, second, first):
        graph = shared_graph(model)
        given, gradients = derivatives(graph, model, batch, outputs)
        expected, wanted = derivatives(model.forward, model, batch, outputs)
        for one, other in zip(given, expected, strict=True):
            if other is not None:
                torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
        for one, other in zip(gradients, wanted, strict=True):
            if one is not None and other is not None:
                scale = float(other.abs().max()) + 1
                torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * scale)
        made.append(graph.compilations)
    assert made[0] >= 1 and made[1:] == [0, 0]
    assert len(whole_graph._SHARED) == 1
    assert not next(iter(whole_graph._SHARED.values())).state  # no network is kept alive


def test_networks_that_differ_share_nothing(nothing_shared):
    batch = molecules(4).batch()
    wide = models.build("egnn", layers=1, hidden=24, vector="gradient", forces="gradient")
    frozen = small("egnn").float()
    next(frozen.backbone.parameters()).requires_grad_(False)
    evaluated = small("egnn").float().eval()
    for model in (small("egnn").float(), wide, frozen, evaluated):
        graph = shared_graph(model)
        graph(batch, ("energy", "forces"))
        assert graph.compilations >= 1
    assert len(whole_graph._SHARED) == 4
    adapted = small("egnn").float()
    adapted.recipe = None  # nobody knows what else it is made of
    graph = shared_graph(adapted)
    graph(batch, ("energy", "forces"))
    assert graph.compilations >= 1 and len(whole_graph._SHARED) == 4


def test_a_network_altered_by_hand_gets_a_graph_of_its_own(nothing_shared):
    """What is neither in the recipe nor a weight is in the graph: the comparison finds it."""
    batch = molecules(4).batch()
    shared_graph(small("schnet").float())(batch, ("energy", "forces"))
    other = small("schnet").float()
    other.cutoff = other.backbone.cutoff = 2.0
    graph = shared_graph(other)
    got = graph(batch, ("energy", "forces"))
    own = other.forward(batch, ("energy", "forces"))
    torch.testing.assert_close(got.energy, own.energy, rtol=1e-5, atol=1e-5)  # sums of float32
    assert graph.compilations >= 1 and not graph.shared


def test_shared_graphs_are_not_kept_without_end(nothing_shared, monkeypatch):
    monkeypatch.setattr(whole_graph, "MOST_SHARED", 1)
    batch = molecules(4).batch()
    shared_graph(small("egnn").float())(batch, ("energy", "forces"))
    shared_graph(small("schnet").float())(batch, ("energy", "forces"))
    assert [key[0] for key in whole_graph._SHARED] == [json_of(small("schnet").recipe)]


def json_of(recipe):
    return json.dumps(recipe, sort_keys=True, default=str)
