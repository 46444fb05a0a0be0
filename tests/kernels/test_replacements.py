"""Whatever stands in for a plain function of models/ is held to it: every registered replacement,
in both precisions.

Values, first and second derivatives of a whole network, by positions and weights, in which one
replacement is used wherever it serves and everything else is plain.
"""

from __future__ import annotations

import inspect
import sys

import numpy as np
import pytest
import torch
from tiny import molecules

from potkit import kernels, models
from potkit.models import replaceable
from potkit.structures.store import Structures, concatenate
from potkit.testing import contract

REGISTERED = [
    (name, place)
    for name in replaceable.names()
    for place in range(len(replaceable.replacements(name)))
]


def is_compiled(name: str, place: int) -> bool:
    module = sys.modules[replaceable.replacements(name)[place].function.__module__]
    return "torch.ops.potkit" in inspect.getsource(module)


SERVED = [
    (name, place, dtype)
    for name, place in REGISTERED
    for dtype in (torch.float32, torch.float64)
    if dtype == torch.float32 or not is_compiled(name, place)
]
OPTIONS = {"schnet": dict(radial=8)}  # such that a table of filters pays
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4}


def wave(like: torch.Tensor) -> torch.Tensor:
    """A weight for every entry of an array, so that no mistake cancels."""
    return torch.sin(1.0 + torch.arange(like.numel(), dtype=like.dtype)).view_as(like)


def derivatives(model, batch) -> dict[str, torch.Tensor]:
    """Energy and vector, their derivatives by positions and weights, and those of the forces."""
    parameters = dict(model.named_parameters())
    batch.pos = pos = batch.pos.detach().requires_grad_(True)
    prediction = model(batch, ("energy", "vector"))
    energy, vector = prediction.energy, prediction.vector
    variables = [pos, *parameters.values()]
    score = energy.sum() + (vector * wave(vector)).sum()
    first = torch.autograd.grad(score, variables, retain_graph=True, allow_unused=True)
    forces = torch.autograd.grad(energy.sum(), pos, create_graph=True)[0]
    score = forces.square().sum() + (forces * wave(forces)).sum()
    second = torch.autograd.grad(score, variables, allow_unused=True)
    results = {"energy": energy, "vector": vector, "forces": forces}
    for order, gradients in (("first", first), ("second", second)):
        for name, gradient in zip(("positions", *parameters), gradients, strict=True):
            if gradient is not None:
                results[f"{order} derivative by {name}"] = gradient
    return {name: value.detach().double() for name, value in results.items()}


@pytest.fixture
def only(monkeypatch):
    """only(name, function): that one stands in for its plain function, nothing for any other.

    Answers with a list of its calls. Without a function, everything is plain.
    """

    def use(name: str = "", function=None) -> list[str]:
        calls = []

        def noted(*args):
            calls.append(name)
            return function(*args)

        always = replaceable.Replacement(lambda *_: True, noted)
        monkeypatch.setattr(
            replaceable, "replacements", lambda asked: [always] if asked == name else []
        )
        return calls

    return use


@pytest.mark.usefixtures("compiled_kernels")
@pytest.mark.parametrize("periodic", [False, True], ids=["molecules", "crystals"])
@pytest.mark.parametrize("name, place, dtype", SERVED, ids=str)
def test_equals_the_plain_function(name, place, dtype, periodic, only):
    function = replaceable.replacements(name)[place].function
    network = name.split(".")[0]
    torch.manual_seed(0)
    model = contract.prepared(models.build(network, **OPTIONS.get(network, {})))
    structures = concatenate([contract.examples(model.cutoff, periodic, s) for s in range(8)])
    only()
    exact = derivatives(model, structures.batch(dtype=torch.float64))
    calls = only(name, function)
    results = derivatives(model.to(dtype), structures.batch(dtype=dtype))
    assert calls
    for quantity in results.keys() | exact.keys():
        one, other = results.get(quantity), exact.get(quantity)
        found = torch.zeros_like(other) if one is None else one  # no derivative is a zero one
        expected = torch.zeros_like(one) if other is None else other
        allowed = TOLERANCE[dtype] * max(float(expected.abs().max()), 1e-3)
        assert float((found - expected).abs().max()) <= allowed, quantity


CHOSEN = {  # network: what stands in when asked for, and by default for large arrays
    "egnn": ({"egnn"}, {"egnn_blocks"}),
    "torchmd_et": ({"torchmd_et"}, {"torchmd_et_blocks"}),
    "schnet": ({"schnet_table"}, {"schnet_pairs"}),
}


@pytest.mark.usefixtures("compiled_kernels")
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("network", CHOSEN)
def test_what_stands_in_when(network, size, monkeypatch):
    """Compiled code if asked for and in float32; blocks for large arrays; else the plain
    function.
    """
    used = set()
    registered = replaceable.replacements

    def noted(replacement):
        def function(*args):
            used.add(replacement.function.__module__.split(".")[-1])
            return replacement.function(*args)

        return replacement._replace(function=function)

    monkeypatch.setattr(
        replaceable, "replacements", lambda name: [noted(r) for r in registered(name)]
    )

    def used_by(model, dtype):
        used.clear()
        model(molecules(16).batch(dtype=dtype), ("energy",)).energy.sum().backward()
        return set(used)

    model = models.build(network, hidden=16 if size == "small" else 512, layers=1)
    compiled, blocks = CHOSEN[network]
    default = blocks if size == "large" else set()
    assert used_by(model, torch.float32) == default
    with kernels.used():
        assert used_by(model, torch.float32) == compiled
        assert used_by(model.double(), torch.float64) == default
    if network == "egnn":  # its blocks cost predictions time and save memory
        assert used_by(model.eval(), torch.float64) == set()
        monkeypatch.setattr("potkit.kernels.replacements.SCARCE", 1)
    assert used_by(model.eval(), torch.float64) == default


def crowd() -> Structures:
    """Sixty atoms on a shaken grid, so dense that every search that stops early does."""
    rng = np.random.default_rng(0)
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3)[:60]
    pos = 1.1 * grid + rng.uniform(-0.15, 0.15, (60, 3))
    return Structures(np.resize([6, 1, 8, 7, 1], 60), pos, [0, 60])


@pytest.mark.usefixtures("compiled_kernels")
@pytest.mark.parametrize("network, fault", [(n, f) for n in CHOSEN for f in models.faults.of(n)])
def test_faults_stay_what_they_are(network, fault, monkeypatch):
    """With any fault on, whatever stands in gives what the plain functions give."""
    model = models.build(network, "denoise-paper", hidden=64, layers=2, faults=(fault,), seed=0)
    if network == "egnn":
        for layer in model.backbone.layers:
            layer.coordinate[-1].weight.data.mul_(300)
    batch = concatenate([crowd(), *[crowd()] * 4]).batch(dtype=torch.float32)
    found = []
    for kernel in (False, True, None):
        if kernel is None:
            monkeypatch.setattr(replaceable, "replacements", lambda name: [])
        model.zero_grad()
        with kernels.used(bool(kernel)):
            energy, vector = model(batch, ("energy", "vector"))[:2]
            (energy.sum() + (vector * wave(vector)).sum()).backward()
        gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        found.append((energy.detach(), vector.detach(), torch.cat(gradients)))
    for by_default, compiled, plain in zip(*found, strict=True):
        allowed = TOLERANCE[torch.float32] * float(plain.abs().max())
        assert float((by_default - plain).abs().max()) <= allowed
        assert float((compiled - plain).abs().max()) <= allowed


def test_every_network_of_a_plain_function_is_there():
    assert {name.split(".")[0] for name, _ in REGISTERED} <= set(models.names())


def test_the_first_that_serves_stands_in(monkeypatch):
    monkeypatch.setitem(replaceable._replacements, "test.double", [])

    @replaceable.replaceable("test.double")
    def double(x):
        return 2 * x

    assert double(2) == 4 and double.__name__ == "double"
    replaceable.register("test.double", lambda x: x > 2, lambda x: "large")
    replaceable.register("test.double", lambda x: x > 1, lambda x: "middle")
    assert [double(x) for x in (1, 2, 3)] == [2, "middle", "large"]
    assert double.plain(3) == 6
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    assert double(3) == 6, "torch.compile traces the plain function"


def test_a_name_that_nothing_is_marked_with_is_refused():
    with pytest.raises(KeyError, match=r"no plain function is marked 'egnn\.mesages'"):
        replaceable.register("egnn.mesages", lambda *_: True, lambda *_: None)
