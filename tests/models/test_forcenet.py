"""ForceNet: its equations written plainly, what it has and lacks, its faithful variant, and that
it learns.
"""

from __future__ import annotations

import math

import pytest
import torch
from denoising import losses
from torch import nn

from potkit import models
from potkit.errors import ConfigError
from potkit.models.forcenet import PowerSine
from potkit.models.layers import polynomial_envelope
from potkit.structures.element_properties import covalent_radii, element_properties
from potkit.structures.store import Structures
from potkit.testing import contract

SMALL = dict(hidden=16, layers=2)


def build(preset="small", **options):
    torch.manual_seed(0)
    return models.build("forcenet", preset, **{**SMALL, **options})


def test_published_setting():
    model = models.build("forcenet", "masked-paper")
    backbone = model.backbone
    assert (backbone.n_features, len(backbone.layers), model.cutoff, backbone.degrees) == (
        128,
        5,
        3.4,
        [0, 1, 2],
    )
    assert (
        backbone.embedding.element.linear.in_features == 9 * 50
        and backbone.radial.in_features == 4 * 50
    )
    assert (model.vector_mode, model.forces_mode) == ("direct", "vector")


def test_power_sine():
    x = torch.tensor([[0.3, 0.7]])
    found = PowerSine(4)(x)
    assert found.shape == (1, 8)
    torch.testing.assert_close(
        found[0], torch.tensor([math.sin(1.1**n * v) for v in (0.3, 0.7) for n in range(4)])
    )


def test_node_input_is_scaled_to_the_unit_interval():
    embedding = build().backbone.embedding.element
    table = embedding.table[1:]
    assert (
        table.min() == 0
        and table.max() == 1
        and (table.amax(0) == 1).all()
        and (table.amin(0) == 0).all()
    )
    raw = element_properties()[1:].float()
    order = torch.argsort(raw[:, 6], stable=True)
    assert (table[order, 6].diff() >= 0).all()


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("periodic", [False, True])
def test_equations(periodic, float64):
    """Node input, edge input, conditioned filter and update, edge by edge."""
    model = contract.prepared(build("masked-paper"))
    backbone, batch = model.backbone, contract.examples(3.4, periodic).batch(dtype=torch.float64)
    radii, powers = covalent_radii(), 1.1 ** torch.arange(50)
    with torch.no_grad():
        graph = model.graph(batch, batch.pos)
        h, edge = backbone.embedding.element(graph.z), []
        pairs = list(zip(graph.sender.tolist(), graph.receiver.tolist(), strict=True))
        for n, (j, i) in enumerate(pairs):
            d, own, other = graph.distance[n], radii[graph.z[i]], radii[graph.z[j]]
            lengths = torch.stack([d, d - own, d - other, d - own - other]) / 3.4
            x, y, z = graph.vector[n] / d
            s3, s5, s15 = math.sqrt(3), math.sqrt(5), math.sqrt(15)
            # e3nn takes y as the polar axis, so l = 2 reads xz, xy, y², yz, z² − x²
            angular = [
                1,
                s3 * x,
                s3 * y,
                s3 * z,
                s15 * x * z,
                s15 * x * y,
                s5 / 2 * (3 * y * y - 1),
                s15 * y * z,
                s15 / 2 * (z * z - x * x),
            ]
            radial = backbone.radial(torch.cat([torch.sin(powers * v) for v in lengths])[None])[0]
            edge.append(torch.cat([float(a) * radial for a in angular]))
        edge = torch.stack(edge)
        torch.testing.assert_close(backbone.edge_basis(graph), edge, rtol=1e-12, atol=1e-12)
        for layer in backbone.layers:
            weight = torch.cat(
                [layer.from_edge.weight, layer.from_receiver.weight, layer.from_sender.weight], 1
            )
            joint = torch.stack(
                [torch.cat([edge[n], h[i], h[j]]) for n, (j, i) in enumerate(pairs)]
            )
            filters, x = layer.filter(joint @ weight.T + layer.from_edge.bias), layer.linear(h)
            total = layer.own * x
            for n, (j, i) in enumerate(pairs):
                total[i] += filters[n] * x[j] * polynomial_envelope(graph.distance[n], 3.4)
            h = h + layer.update(total)
        found = backbone(graph).scalar
    torch.testing.assert_close(found, backbone.decode(h), rtol=1e-12, atol=1e-12)


def test_what_it_has_and_lacks(record_property):
    """Translation and permutation exactly; rotation and reflection not, by how much is measured."""
    model = build()
    assert model.backbone.symmetries == {"translation", "permutation"}
    report = contract.check_model(
        model, checks=["translation", "permutation", "rotation", "reflection"]
    )
    worst = report.groupby(["check", "quantity"]).residual.max()
    assert worst[["translation", "permutation"]].max() < 1e-12
    assert worst["rotation"]["vector"] > 0.1 and worst["rotation"]["energy"] > 1e-5
    for check in ("rotation", "reflection"):
        record_property(check, worst[check].to_dict())  # in the JUnit report, if one is asked for


def test_elements_are_told_apart():
    """Every element alone has its own energy; the authors' fault, brought back, makes all of
    them oxygen.
    """
    alone = Structures(range(1, 119), torch.zeros(118, 3).numpy(), range(119))
    right = contract.evaluate(contract.prepared(build()), alone)["energy"]
    wrong = contract.evaluate(contract.prepared(build(faithful=True)), alone)["energy"]
    assert len(set(right.tolist())) == 118 and float(wrong.max() - wrong.min()) < 1e-14 < float(
        right.diff().abs().min()
    )


def test_faithful_variant():
    model = build("masked-paper", faithful=True)
    assert any(isinstance(m, nn.BatchNorm1d) for m in model.modules())
    assert not any(isinstance(m, nn.BatchNorm1d) for m in build().modules())
    contract.check_model(model, measure=["second_derivatives"])  # the clipped distances have a kink
    s = contract.examples(3.4)
    other = Structures(s.z[::-1].copy(), s.pos, s.ptr)
    model = contract.prepared(model)
    first, second = (contract.evaluate(model, x)["vector"] for x in (s, other))
    assert torch.equal(first, second)


def test_forces_from_the_energy():
    report = contract.check_model(
        build(vector="gradient", forces="gradient"), checks=["finite_differences", "isolated_atom"]
    )
    assert report.claimed.all() and report.residual.max() < 1e-7


def test_learns():
    seen = losses(build(hidden=32))
    assert seen[-1] < 0.3 < 0.7 < seen[0]  # 1 is what predicting zero gets


@pytest.mark.parametrize(
    "options", [dict(hidden=0), dict(layers=0), dict(max_n=0), dict(frequencies=0)]
)
def test_bad_options(options):
    with pytest.raises(
        ConfigError, match="ForceNet needs hidden, layers, max_n and frequencies ≥ 1"
    ):
        build(**options)
