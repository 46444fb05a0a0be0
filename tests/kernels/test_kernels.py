"""The compiled kernels: EGNN's edges against PyTorch's, and what compiling can run into."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from tiny import molecules, water

import potkit
from potkit import Denoise, TrainConfig, kernels, models
from potkit.cli import main as cli
from potkit.errors import ConfigError
from potkit.kernels import egnn
from potkit.kernels.autograd import with_weights
from potkit.kernels.egnn_blocks import WEIGHTS
from potkit.models import Graph
from potkit.models.egnn import Layer
from potkit.training import checkpoints, loop

pytestmark = pytest.mark.usefixtures("compiled_kernels")


def inputs(
    n_atoms, n_edges, width, radial, gate=True, envelope=True, bias=True, dtype=torch.float32
):
    """P, Q, edges, envelope and weights of `egnn_blocks`, and atoms; receivers rise.

    All floats want gradients.
    """
    generator = torch.Generator().manual_seed(width + n_edges)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    scale = width**-0.5
    p, q, edge = numbers(n_atoms, width), numbers(n_atoms, width), numbers(n_edges, radial)
    damp = numbers(n_edges, 1).sigmoid() if envelope else None
    weights = [numbers(width, radial), scale * numbers(width, width), numbers(width)]
    weights += [scale * numbers(1, width), numbers(1)] if gate else [None, None]
    weights += [scale * numbers(width, width), numbers(width)]
    weights += [scale * numbers(1, width), numbers(1) if bias else None]
    sender = torch.randint(n_atoms, (n_edges,), generator=generator)
    receiver = torch.randint(n_atoms, (n_edges,), generator=generator).sort().values
    floats = [
        None if x is None else x.to(dtype).requires_grad_() for x in (p, q, edge, damp, *weights)
    ]
    return floats, sender, receiver


def graph_of(n_atoms, sender, receiver):
    """A graph of which only atoms and edges are looked at."""
    zeros, none = torch.zeros(n_atoms, dtype=torch.long), torch.zeros(n_atoms, 3)
    return Graph(
        z=zeros,
        pos=none,
        batch=zeros,
        n_structures=1,
        sender=sender,
        receiver=receiver,
        vector=none[sender],
        distance=none[sender, 0],
        shift=None,
        mask=None,
        charge=zeros[:1],
    )


def messages(function, p, q, edge, envelope, weights, sender, receiver):
    """M and t of ``function``: `Layer.messages`, or what stands in for it, with these weights."""
    has = {"attention": weights[3] is not None, "bias": weights[8] is not None}
    layer = Layer(p.shape[1], edge.shape[1], tanh=False, **has).to(p.dtype)
    named = dict(zip(WEIGHTS, weights, strict=True))
    graph = graph_of(len(p), sender, receiver)
    t, total = with_weights(function, layer, named, p, q, edge, envelope, graph)
    return total, t


def by_dispatch(*args):
    """Whatever is to be used: the kernel within `kernels.used`."""
    return Layer.messages(*args)


def results(floats, sender, receiver, function=by_dispatch):
    """Outputs and the gradients of all inputs of a sum in which every output has its own weight."""
    p, q, edge, envelope, *weights = floats
    total, t = messages(function, p, q, edge, envelope, weights, sender, receiver)
    loss = (total * torch.linspace(-1, 1, total.numel()).view_as(total)).sum()
    loss = loss + (t * torch.linspace(1, 2, len(t))).sum()
    wanted = [x for x in floats if x is not None]
    return [total.detach(), t.detach(), *torch.autograd.grad(loss, wanted)]


def assert_close(found, expected, tolerance):
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape, k
        if b.numel():
            error = float((a.double() - b.double()).abs().max())
            assert error <= tolerance * max(float(b.double().abs().max()), 1e-3), k


@pytest.mark.parametrize(
    "size",
    [(5, 0, 16, 1), (3, 1, 16, 1), (40, 700, 24, 1), (7, 300, 5, 3), (60, 600, 64, 8)],
    ids=str,
)
@pytest.mark.parametrize("gate", [True, False], ids=["gate", "no gate"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_edges_agree_with_the_formulas(size, gate, bias, threads):
    has = dict(gate=gate, bias=bias)
    exact = results(*inputs(*size, **has, dtype=torch.float64), Layer.messages.plain)
    assert_close(results(*inputs(*size, **has), egnn.messages), exact, 1e-5)
    with kernels.used():
        found = results(*inputs(*size, **has))
    called = results(*inputs(*size, **has), egnn.messages)
    assert all(torch.equal(a, b) for a, b in zip(found, called, strict=True))


def test_edges_without_envelope_and_with_senders_out_of_order(threads):
    floats, sender, receiver = inputs(30, 400, 20, 2, envelope=False)
    # not sorted: one thread does it all
    shuffled = receiver[torch.randperm(len(receiver), generator=torch.Generator().manual_seed(0))]
    for order in (receiver, shuffled):
        with kernels.used():
            found = results(floats, sender, order)
        assert_close(found, results(floats, sender, order), 1e-5)


def wave(t):
    """A weight for every entry of an array, so that no mistake cancels."""
    return torch.sin(1.0 + torch.arange(t.numel(), dtype=t.dtype)).view_as(t)


def of_both(total, t, with_t):
    """A number into which all outputs go, each with its own weight, or all but t."""
    score = (total * wave(total)).sum() + 0.1 * total.square().sum()
    return score + (t * wave(t)).sum() + 0.1 * t.square().sum() if with_t else score


def second(floats, sender, receiver, function=by_dispatch, with_t=True, by=slice(None)):
    """As when training on −∂E/∂x: derivatives by P, Q, e and f go into the score beside M and t."""
    p, q, edge, envelope, *weights = floats
    total, t = messages(function, p, q, edge, envelope, weights, sender, receiver)
    inputs = [x for x in floats[:4] if x is not None]
    slopes = torch.autograd.grad(of_both(total, t, with_t), inputs, create_graph=True)
    score = sum((s * wave(s)).sum() + 0.1 * s.square().sum() for s in slopes) + total.sin().sum()
    if with_t:
        score = score + t.cos().sum()
    wanted = [x for x in floats if x is not None][by]
    found = torch.autograd.grad(score, wanted, allow_unused=True, materialize_grads=True)
    return [*(s.detach() for s in slopes), *found]


@pytest.mark.parametrize(
    "size", [(5, 0, 16, 1), (3, 1, 16, 1), (40, 700, 24, 1), (7, 300, 5, 3)], ids=str
)
@pytest.mark.parametrize("without", ["nothing", "gate", "bias", "envelope"])
@pytest.mark.parametrize("with_t", [True, False], ids=["t", "no t"])
def test_second_derivatives(size, without, with_t, threads):
    """By the weights only (training), and by positions too (Hessians)."""
    has = {} if without == "nothing" else {without: False}
    for by in (slice(None), slice(4, None)):
        options = {"with_t": with_t, "by": by}
        exact = second(*inputs(*size, **has, dtype=torch.float64), Layer.messages.plain, **options)
        with kernels.used():
            assert_close(second(*inputs(*size, **has), **options), exact, 1e-5)


def test_third_derivatives_go_through_the_formulas():
    def third(floats, sender, receiver):
        p, q, edge, envelope, *weights = floats
        total, t = messages(by_dispatch, p, q, edge, envelope, weights, sender, receiver)
        score, inputs = of_both(total, t, True), floats[:4]
        for _ in range(2):
            slopes = torch.autograd.grad(score, inputs, create_graph=True)
            score = sum((s * wave(s)).sum() for s in slopes)
        return [*(s.detach() for s in slopes), *torch.autograd.grad(score, inputs)]

    exact = third(*inputs(6, 12, 8, 2, dtype=torch.float64))
    with kernels.used():
        assert_close(third(*inputs(6, 12, 8, 2)), exact, 1e-4)


def test_forces_of_a_training_step_go_through_the_kernels():
    """Energy and forces, and the derivative of both by every weight."""
    model = models.build("egnn", "small", vector="gradient").train()
    batch = molecules(3).batch()

    def gradients():
        prediction = model(batch, ("energy", "forces"))
        loss = prediction.energy.square().sum() + prediction.forces.sin().square().sum()
        weights = [p for p in model.parameters() if p.requires_grad]
        found = torch.autograd.grad(loss, weights, allow_unused=True, materialize_grads=True)
        return [prediction.energy.detach(), prediction.forces.detach(), *found]

    plain = gradients()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with kernels.used(), torch.profiler.profile(activities=activities) as profile:
        found = gradients()
    called = {event.key for event in profile.key_averages()}
    assert {"potkit::egnn_slopes_backward", "potkit::egnn_backward"} <= called
    size = max(float(g.abs().max()) for g in plain[2:])
    for one, other in zip(found[2:], plain[2:], strict=True):
        assert float((one - other).abs().max()) < 1e-5 * size
    assert_close(found[:2], plain[:2], 1e-5)


def test_bfloat16_is_no_further_from_the_truth(threads):
    floats, sender, receiver = inputs(60, 900, 64, 1)
    exact = results(floats, sender, receiver)
    errors = []
    for kernel in (False, True):
        with kernels.used(kernel), torch.autocast("cpu", torch.bfloat16):
            found = results(floats, sender, receiver)
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)])
    assert 0 < max(errors[1]) < 0.02
    assert sum(errors[1]) < 1.05 * sum(errors[0])


def test_second_derivatives_in_bfloat16_are_no_further_from_the_truth(threads):
    floats, sender, receiver = inputs(60, 900, 64, 1)
    exact = second(floats, sender, receiver, Layer.messages.plain)
    errors = []
    for kernel in (False, True):
        with kernels.used(kernel), torch.autocast("cpu", torch.bfloat16):
            found = second(floats, sender, receiver)
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)])
    assert 0 < max(errors[1]) < 0.02
    assert sum(errors[1]) < sum(errors[0])


def test_exponential_and_not_a_number():
    """Activations are the kernels' own: at the ends of float32 they must not overflow, and a NaN
    must come out as one.
    """
    p = torch.tensor([[-200.0, -88.0, -20.0, -1e-3, 0.0, 1e-3, 20.0, 88.0, 200.0, float("nan")]])
    n = p.shape[1]
    eye, zero = torch.eye(n), torch.zeros(n)
    weights = torch.zeros(n, 1), eye, zero, None, None, eye, zero, torch.ones(1, n), torch.zeros(1)
    index = torch.zeros(1, dtype=torch.long)
    with kernels.used(), torch.no_grad():
        total, t = messages(
            egnn.messages, p, torch.zeros(1, n), torch.zeros(1, 1), None, weights, index, index
        )
    # NaN goes through the product W₂ into every channel: the others are looked at without it
    assert torch.isnan(total).all() and torch.isnan(t).all()
    clean, n = p[:, :-1], n - 1
    eye, zero = torch.eye(n), torch.zeros(n)
    weights = torch.zeros(n, 1), eye, zero, None, None, eye, zero, torch.ones(1, n), torch.zeros(1)
    with kernels.used(), torch.no_grad():
        total, _ = messages(
            egnn.messages, clean, torch.zeros(1, n), torch.zeros(1, 1), None, weights, index, index
        )
    silu = torch.nn.functional.silu
    torch.testing.assert_close(total, silu(silu(clean.double())).float(), rtol=1e-6, atol=1e-30)


def test_second_derivatives_go_through_the_formulas():
    floats, sender, receiver = inputs(8, 20, 6, 1)

    def curvature(kernel):
        p, q, edge, envelope, *weights = floats
        with kernels.used(kernel):
            total, t = messages(by_dispatch, p, q, edge, envelope, weights, sender, receiver)
            first = torch.autograd.grad(
                total.square().sum() + t.square().sum(), edge, create_graph=True
            )[0]
            return torch.autograd.grad(first.square().sum(), [edge, weights[1]])

    assert_close(curvature(True), curvature(False), 1e-5)


@pytest.mark.parametrize("network", ["egnn", "torchmd_et", "schnet"])
def test_training_is_the_same_run(network, tmp_path):
    """A few steps by `TrainConfig.compile` end at the weights of the same steps without."""
    ends = []
    for compile in (False, True):
        model = models.build(network, "small", seed=0)
        config = TrainConfig(
            steps=4, batch_size=4, lr=1e-3, compile=compile, device="cpu", progress=False
        )
        run = loop.pretrain(
            model, molecules(8), Denoise(sigma=0.1), config, tmp_path / str(compile)
        )
        ends.append([w.detach().clone() for w in run.model.backbone.parameters()])
    start = models.build(network, "small", seed=0).backbone
    pairs = zip(ends[0], start.parameters(), strict=True)
    moved = max(float((a - b.detach()).abs().max()) for a, b in pairs)
    assert moved > 1e-4
    for plain, fast in zip(*ends, strict=True):
        assert float((plain - fast).abs().max()) < 0.02 * moved


def test_double_precision_is_refused_not_ignored(tmp_path):
    config = TrainConfig(steps=1, compile=True, precision="64-true", device="cpu", progress=False)
    with pytest.raises(ConfigError, match="compile has no kernels for precision 64-true on a CPU"):
        loop.pretrain(
            models.build("egnn", "small", seed=0), molecules(4), Denoise(), config, tmp_path
        )


def test_off_unless_asked_for():
    assert not kernels.wanted(torch.zeros(1))
    with kernels.used():
        assert kernels.wanted(torch.zeros(1))
        assert not kernels.wanted(torch.zeros(1, dtype=torch.float64))
        with kernels.used(False):
            assert not kernels.wanted(torch.zeros(1))
    assert not kernels.wanted(torch.zeros(1))


@pytest.mark.parametrize("trouble", ["compiler", "folder"])
def test_a_machine_that_cannot_compile_is_told_in_one_line(trouble, tmp_path):
    (tmp_path / "file").touch()
    if trouble == "compiler":
        changes = {"CXX": "false", "POTKIT_KERNELS": str(tmp_path)}
    else:
        changes = {"POTKIT_KERNELS": str(tmp_path / "file")}
    lines = [
        f"import os; os.environ.update({changes!r})",
        "from potkit import kernels",
        "try: kernels.load()",
        "except Exception as e: print(type(e).__name__, e)",
    ]
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    said = done.stdout.strip()
    assert said.startswith("ConfigError compile: the kernels could not be compiled")
    assert said.endswith("set compile to false")
    assert "\n" not in said and not list(tmp_path.rglob("*.so"))


# -- predictions ---------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["egnn", "schnet", "torchmd_et"])
@pytest.mark.parametrize("structures", [molecules(3), water(2)], ids=["molecules", "boxes"])
def test_predictions_through_kernels(name, structures):
    model = models.build(name, hidden=16, layers=2, seed=0).set_references(
        {1: -13.6, 6: -1029.5, 8: -2042.0}, 0.8
    )
    expected, found = (
        potkit.predict(model, structures, outputs=("energy", "forces"), compile=c)
        for c in (False, True)
    )
    assert not kernels._active and model.training
    assert not np.array_equal(found["forces"], expected["forces"]), (
        "another way of computing, other roundings"
    )
    for what in ("energy", "forces"):
        np.testing.assert_allclose(
            found[what],
            expected[what],
            rtol=1e-9 if what == "energy" else 0,
            atol=2e-5 * np.abs(expected["forces"]).max(),
        )
    atoms = structures.to_ase()[0]
    atoms.calc = potkit.calculator(model, compile=True)
    np.testing.assert_allclose(
        atoms.get_forces(),
        found["forces"][: structures.ptr[1]],
        atol=2e-5 * np.abs(expected["forces"]).max(),
    )
    assert not kernels._active and next(model.parameters()).dtype == torch.float32


@pytest.mark.parametrize("name", ["egnn", "schnet", "torchmd_et"])
def test_derivatives_within_autocast(name):
    """Forces and weights' gradients, where the backward pass too is called under autocast: no
    further off than plain operations are.
    """
    model, batch = models.build(name, hidden=32, layers=2, seed=0).eval(), molecules(6).batch()
    exact, errors = model.energy_and_forces(batch)[1], []
    for kernel in (False, True):
        with kernels.used(kernel), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            errors.append(float((model.energy_and_forces(batch)[1] - exact).norm() / exact.norm()))
    assert 0 < errors[1] < 1.5 * errors[0] < 0.05
    parameters = [p for n, p in model.named_parameters() if n.startswith("backbone.layers")]
    gradients = []
    for kernel in (False, True):
        with kernels.used(kernel), torch.autocast("cpu", torch.bfloat16):
            loss = model(batch, ("energy",)).energy.sum()
            # some are None for one, zero for the other
            found = torch.autograd.grad(loss, parameters, allow_unused=True)
        flat = [
            torch.zeros_like(p).flatten() if g is None else g.flatten()
            for p, g in zip(parameters, found, strict=True)
        ]
        gradients.append(torch.cat(flat))
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 0.05


def test_evaluate_command_through_kernels(tmp_path, capsys):
    path = checkpoints.save(tmp_path / "m.safetensors", models.build("egnn", hidden=16, seed=0))
    molecules(4).save(tmp_path / "data")
    options = ["--data", str(tmp_path / "data"), "--compile"]
    with pytest.raises(SystemExit) as done:
        cli.main(["evaluate", str(path), *options])
    assert not done.value.code and "forces MAE" in capsys.readouterr().out
