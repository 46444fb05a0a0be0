"""Work on edges in blocks and on pairs gives what the plain formulas give.

Values, all first derivatives, and derivatives of those.
"""

from __future__ import annotations

import pytest
import torch

from potkit import models
from potkit.kernels import egnn_blocks, replacements, schnet_pairs, torchmd_et_blocks
from potkit.models import layers, replaceable
from potkit.structures.store import Structures
from potkit.testing import contract

BLOCKS = {
    "egnn.messages": egnn_blocks,
    "torchmd_et.attention": torchmd_et_blocks,
    "schnet.interactions": schnet_pairs,
}
CASES = {
    "egnn": dict(hidden=16, layers=2),
    "egnn masked": dict(hidden=16, layers=2, attention=False, tanh=False, vector="gradient"),
    "egnn radial": dict(hidden=16, layers=2, radial=4),
    "egnn sum": dict(hidden=16, layers=2, aggregate="sum", bias=True),
    "egnn faithful": dict(hidden=16, layers=2, faithful=True),
    "torchmd_et": dict(hidden=16, layers=3, heads=4, radial=8),
    "torchmd_et faithful": dict(hidden=16, layers=3, heads=4, radial=8, faithful=True),
    "schnet": dict(hidden=16, filters=12, layers=2, radial=8),
    "schnet polynomial": dict(hidden=16, filters=12, layers=2, radial=8, envelope="polynomial"),
}


@pytest.fixture(params=[7, 4096], ids=["many blocks", "one block"])
def block(request, monkeypatch):
    for module in BLOCKS.values():
        monkeypatch.setattr(module, "BLOCK", request.param)


@pytest.fixture
def only_blocks(monkeypatch):
    """Blocks wherever there are some that serve, whether they pay or not.

    A list of those that were used.
    """
    used = []

    def chosen(name):
        return [
            replaceable.Replacement(lambda *_: True, noted(name, r.function))
            for r in original(name)
            if name in BLOCKS and r.function.__module__ == BLOCKS[name].__name__
        ]

    def noted(name, function):
        return lambda *args: used.append(name) or function(*args)

    original = replaceable.replacements
    monkeypatch.setattr(replaceable, "replacements", chosen)
    return used


def plainly(monkeypatch):
    """Everything by the plain functions, edge by edge."""
    monkeypatch.setattr(replaceable, "replacements", lambda name: [])


def derivatives(model, batch):
    """Energy and vector, their derivatives by positions and weights, and those of the forces."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    pos = batch.pos.detach().requires_grad_(True)
    batch.pos = pos
    prediction = model(batch, ("energy", "vector"))
    wave = torch.sin(torch.arange(pos.numel(), dtype=pos.dtype)).view_as(pos)
    score = (prediction.vector * wave).sum() + prediction.energy.sum()
    first = torch.autograd.grad(score, [pos, *parameters], retain_graph=True, allow_unused=True)
    forces = torch.autograd.grad(prediction.energy.sum(), pos, create_graph=True)[0]
    second = torch.autograd.grad(
        (forces * wave).sum() + forces.square().sum(), [pos, *parameters], allow_unused=True
    )
    return [prediction.energy, prediction.vector, forces, *first, *second]


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_equal_the_plain_formulas(case, periodic, block, only_blocks, monkeypatch):
    torch.manual_seed(0)
    model = contract.prepared(models.build(case.split()[0], "denoise-paper", **CASES[case]))
    found = derivatives(model, contract.examples(5.0, periodic).batch(dtype=torch.float64))
    assert len(only_blocks) == (1 if "schnet" in case else CASES[case]["layers"])
    plainly(monkeypatch)
    expected = derivatives(model, contract.examples(5.0, periodic).batch(dtype=torch.float64))
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert (a is None or not a.any()) == (b is None or not b.any())
        if a is not None and b is not None:
            largest = max(1.0, float(b.detach().abs().max()))
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11 * largest)


@pytest.mark.parametrize("name", ["egnn", "torchmd_et", "schnet"])
def test_one_atom_and_none_in_reach(name, only_blocks):
    """No edges at all."""
    model = contract.prepared(models.build(name, "denoise-paper", **CASES[name]))
    apart = Structures([8, 1], [[0.0, 0.0, 0.0], [30.0, 0.0, 0.0]], [0, 2]).batch(
        dtype=torch.float64
    )
    energy, forces = model.energy_and_forces(apart)
    assert torch.isfinite(energy).all() and not forces.any() and only_blocks


@pytest.mark.parametrize("name", ["egnn", "torchmd_et", "schnet"])
def test_bfloat16_stays_close(name, only_blocks):
    """Under autocast results differ by bfloat16's 3 digits, and gradients point the same way."""
    torch.manual_seed(0)
    model = models.build(name, "denoise-paper", **CASES[name])
    if name == "egnn":
        for layer in model.backbone.layers:
            layer.coordinate[-1].weight.data.mul_(300)
    batch = contract.examples(5.0).batch()
    outputs, gradients = [], []
    for low in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            vector = model(batch, ("vector",)).vector.float()
        target = torch.cos(torch.arange(vector.numel()).float()).view_as(vector)
        (vector - target).square().sum().backward()
        outputs.append(vector.detach())
        gradients.append(
            torch.cat([p.grad.flatten() for p in model.backbone.parameters() if p.grad is not None])
        )
    assert 0 < (outputs[0] - outputs[1]).abs().max() < 0.05 * outputs[0].abs().max()
    assert torch.cosine_similarity(gradients[0], gradients[1], dim=0) > 0.995


def test_pairs_are_half_the_edges_and_truncated_lists_are_noticed():
    """Boxes smaller than twice the cutoff: many images of one pair, and of an atom with itself."""
    crystal = Structures(
        [8, 1, 1],
        [[0.1, 0.0, 0.2], [1.0, 0.1, 0.0], [0.0, 1.1, 0.1]],
        [0, 3],
        cell=2.9 * torch.eye(3)[None].numpy(),
        pbc=[[True] * 3],
    )
    model = models.build("schnet", "small")
    batch = crystal.batch(dtype=torch.float64)
    graph = model.graph(batch, batch.pos)
    assert schnet_pairs.is_paired(graph)
    found = schnet_pairs.pairs_of(graph)
    assert 2 * len(found.i) == len(graph.sender) and (graph.sender == graph.receiver).any()
    torch.testing.assert_close(
        found.distance.sort()[0].repeat_interleave(2), graph.distance.sort()[0]
    )
    for i in range(3):  # every atom has as many neighbours as before
        assert (found.i == i).sum() + (found.j == i).sum() == (graph.receiver == i).sum()
    own = int(torch.nonzero(graph.sender == graph.receiver)[0])
    other = int(torch.nonzero(graph.sender != graph.receiver)[0])
    for missing in (own, other):
        kept = torch.arange(len(graph.sender)) != missing
        edges = ("sender", "receiver", "vector", "distance", "shift")
        assert not schnet_pairs.is_paired(
            graph._replace(**{name: getattr(graph, name)[kept] for name in edges})
        )


def test_sums_over_pairs_are_each_others_derivatives():
    torch.manual_seed(0)
    i, j = torch.tensor([1, 2, 2, 3, 0]), torch.tensor([0, 0, 1, 1, 0])
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    a = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    w = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: schnet_pairs.convolve(x, w, i, j), (x, w))
    assert torch.autograd.gradgradcheck(lambda x, w: schnet_pairs.convolve(x, w, i, j), (x, w))
    assert torch.autograd.gradgradcheck(lambda a, x: schnet_pairs.outer(a, x, i, j), (a, x))


def test_blocks_are_left_to_the_cpu_and_to_first_derivatives():
    model = models.build("egnn", hidden=16, layers=1)
    batch = contract.examples(5.0).batch()
    graph = model.graph(batch, batch.pos)
    varied = model.graph(batch, batch.pos.clone().requires_grad_())
    wide = 2**17 // len(graph.sender) + 1
    assert replacements.blocks_once(model.train(), graph, wide)
    assert not replacements.blocks_once(model, graph, wide - 1), "these stay in the cache anyway"
    assert not replacements.blocks_once(model, varied, wide)
    assert replacements.blocks_once(model.eval(), varied, wide), (
        "predictions are differentiated once"
    )
    assert not replacements.blocks_once(
        model, graph._replace(pos=graph.pos.detach().to("meta")), wide
    )


# -- SiLU ----------------------------------------------------------------------------------------
def test_silu_and_its_derivatives_are_torchs():
    """Up to the third; the second as training takes it (nothing kept) and as a graph."""
    x = torch.linspace(-30, 30, 241, dtype=torch.float64).requires_grad_()
    weight = torch.linspace(0.5, 2, 241, dtype=torch.float64)
    derivatives = []
    for function in (layers.silu, torch.nn.functional.silu):
        y = function(x)
        (first,) = torch.autograd.grad((weight * y).sum(), x, create_graph=True)
        (kept,) = torch.autograd.grad((weight * first).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad((weight * first).sum(), x, retain_graph=True)
        (third,) = torch.autograd.grad((weight * kept).sum(), x)
        derivatives.append([t.detach() for t in (y, first, kept, second, third)])
    for own, expected in zip(*derivatives, strict=True):
        torch.testing.assert_close(own, expected, rtol=1e-10, atol=1e-13)
    assert torch.autograd.gradgradcheck(
        layers.silu, (torch.linspace(-3, 3, 7, dtype=torch.float64).requires_grad_(),)
    )
