"""SchNet against torch-geometric's SchNet with the same weights, and its options."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch_geometric.nn import SchNet as PyGSchNet

from potkit import models
from potkit.errors import ConfigError
from potkit.models.schnet import shifted_softplus
from potkit.structures.store import Structures
from potkit.testing import contract


def copied(hidden, filters, layers, radial, cutoff, dtype, **options):
    """Ours, and torch-geometric's with our weights.

    Its graph is given to it, as it cannot search neighbours by itself here.
    """
    torch.manual_seed(0)
    options |= dict(hidden=hidden, filters=filters, layers=layers, radial=radial, cutoff=cutoff)
    ours = contract.prepared(models.build("schnet", "denoise-paper", **options), dtype)
    state = {}

    def graph_of(pos, batch):
        graph = state["graph"]
        return torch.stack([graph.sender, graph.receiver]), graph.distance

    theirs = (
        PyGSchNet(hidden, filters, layers, radial, cutoff, interaction_graph=graph_of)
        .to(dtype)
        .eval()
    )
    backbone = ours.backbone
    # theirs is rounded to float32, and so is their log 2
    theirs.distance_expansion.coeff = backbone.basis.coefficient
    for module in theirs.modules():
        if hasattr(module, "shift"):
            module.shift = math.log(2.0)
    with torch.no_grad():
        theirs.embedding.weight.copy_(backbone.embedding.element.weight[:100])
        for a, b in zip(backbone.layers, theirs.interactions, strict=True):
            pairs = {
                a.filter_in: b.mlp[0],
                a.filter_out: b.mlp[2],
                a.project: b.conv.lin1,
                a.mix: b.conv.lin2,
                a.out: b.lin,
            }
            for mine, other in pairs.items():
                other.load_state_dict(mine.state_dict())
    return ours, theirs, state


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("size", [(256, 256, 5, 32), (24, 40, 2, 10)])
def test_equals_torch_geometric(size, dtype, tolerance, periodic):
    ours, theirs, state = copied(*size, 5.0, dtype)
    batch = contract.examples(5.0, periodic).batch(dtype=dtype)
    batch.pos.requires_grad_(True)
    graph = state["graph"] = ours.graph(batch, batch.pos)
    entering = []
    theirs.lin1.register_forward_pre_hook(lambda _, inputs: entering.append(inputs[0]))
    energy = theirs(batch.z, batch.pos, batch.batch)[:, 0]
    features = ours.backbone(graph).scalar
    assert (features - entering[0]).abs().max() < tolerance * features.abs().max()

    # their read-out on our features: the same energy and forces
    head = theirs.lin2(theirs.act(theirs.lin1(features)))[:, 0]
    expected, found = (
        torch.autograd.grad(e.sum(), batch.pos, retain_graph=True)[0] for e in (energy, head)
    )
    total = torch.zeros_like(energy).index_add(0, batch.batch, head)
    assert (total - energy).abs().max() < tolerance * energy.abs().max()
    assert (found - expected).abs().max() < 10 * tolerance * expected.abs().max()


def test_shifted_softplus():
    x = torch.linspace(-30, 30, 61, dtype=torch.float64)
    torch.testing.assert_close(shifted_softplus(x), torch.log(0.5 * torch.exp(x) + 0.5))
    assert shifted_softplus(torch.zeros(1)).abs() < 1e-7


def test_polynomial_envelope_has_continuous_second_derivatives():
    """Curvature of the energy at the cutoff: it jumps with the cosine, not with the polynomial."""
    jumps = {}
    for envelope in ("cosine", "polynomial"):
        torch.manual_seed(0)
        model = contract.prepared(
            models.build("schnet", "small", hidden=16, filters=16, layers=1, envelope=envelope)
        )

        def curvature(d, model=model):
            pair = Structures([8, 1], [[0.0, 0.0, 0.0], [d, 0.0, 0.0]], [0, 2]).batch(
                dtype=torch.float64
            )
            pair.pos.requires_grad_(True)
            forces = model(pair, ("forces",)).forces
            return float(torch.autograd.grad(forces[1, 0], pair.pos)[0][1, 0])

        scale = max(abs(curvature(d)) for d in np.linspace(1.0, 4.9, 20))
        jumps[envelope] = abs(curvature(5.0 - 1e-6) - curvature(5.0 + 1e-6)) / scale
    assert jumps["polynomial"] < 1e-5 < 1e-3 < jumps["cosine"]


def test_neighbours_32_keeps_the_first_of_each_atom():
    """A crystal with more than 32 neighbours per atom: with the fault an atom hears the first 33
    in index order, itself counted if it is among them, the default hears all.
    """
    grid = np.stack(np.meshgrid(*[np.arange(4)] * 3, indexing="ij"), -1).reshape(-1, 3) * 1.4
    crystal = Structures(
        np.full(64, 6), grid + 0.05 * np.random.default_rng(0).normal(size=(64, 3)), [0, 64]
    )
    torch.manual_seed(0)
    right = contract.prepared(models.build("schnet", "small", hidden=16, filters=16, layers=1))
    torch.manual_seed(0)
    cut = contract.prepared(
        models.build("schnet", "small", hidden=16, filters=16, layers=1, faults=("neighbours-32",))
    )
    batch = crystal.batch(dtype=torch.float64)
    graph = right.graph(batch, batch.pos)
    assert torch.bincount(graph.receiver).min() > 32
    assert not torch.allclose(right(batch).energy, cut(batch).energy)
    heard = [torch.nonzero(graph.receiver == i)[:, 0] for i in range(64)]
    before = [int((graph.sender[edges] < i).sum()) for i, edges in enumerate(heard)]
    kept = torch.cat(
        [edges[: 32 if lower < 33 else 33] for edges, lower in zip(heard, before, strict=True)]
    )
    assert max(before) >= 33  # for some the search stops before it comes to the atom itself
    edges = {k: getattr(graph, k)[kept] for k in ("sender", "receiver", "vector", "distance")}
    torch.testing.assert_close(
        cut.backbone(graph).scalar, right.backbone(graph._replace(**edges)).scalar
    )
    few = contract.examples(5.0).batch(dtype=torch.float64)
    # one by pairs, the other by edges
    torch.testing.assert_close(right(few).energy, cut(few).energy)


def test_presets_and_options():
    assert models.presets("schnet")["denoise-paper"]["layers"] == 5
    with pytest.raises(
        ConfigError, match="unknown preset 'masked-paper' of schnet; there are denoise-paper, small"
    ):
        models.build("schnet", "masked-paper")
    assert models.build("schnet", "denoise-paper").energy_head.mlp[0].out_features == 128
    assert models.build("schnet", "small").energy_head.mlp[0].out_features == 64
    with pytest.raises(ConfigError, match="unknown energy head 'wide'; there are mlp, schnet"):
        models.build("schnet", head="wide")
    with pytest.raises(ConfigError, match="unknown envelope 'square'"):
        models.build("schnet", envelope="square")
    with pytest.raises(ConfigError, match="radial ≥ 2"):
        models.build("schnet", radial=1)
    basis = models.build("schnet", "denoise-paper").backbone.basis
    assert len(basis.centers) == 32 and math.isclose(basis.centers[1], 5 / 31, rel_tol=1e-6)
