"""GNS: its equations written plainly, what it has and lacks, its faithful variant, and that it
learns.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from denoising import losses
from torch import nn

from potkit import models
from potkit.errors import ConfigError
from potkit.models.layers import polynomial_envelope
from potkit.testing import contract

SMALL = dict(hidden=16, layers=2)


def build(preset="small", **options):
    torch.manual_seed(0)
    return models.build("gns", preset, **{**SMALL, **options})


def test_published_setting():
    torch.manual_seed(0)
    model = models.build("gns", "masked-paper")
    backbone = model.backbone
    assert (backbone.n_features, len(backbone.steps), model.cutoff) == (128, 10, 3.4)
    assert (model.vector_mode, model.forces_mode) == ("direct", "vector")
    linear = [m for m in backbone.encode_edge if isinstance(m, nn.Linear)]
    assert [m.in_features for m in linear] == [4, 128, 128] and isinstance(
        backbone.encode_edge[-1], nn.LayerNorm
    )


@pytest.mark.parametrize("periodic", [False, True])
def test_equations(periodic):
    """Encode, process, decode as the paper writes them: concatenated inputs, one edge at a time."""
    model = contract.prepared(build("masked-paper"))
    backbone, batch = model.backbone, contract.examples(3.4, periodic).batch(dtype=torch.float64)
    with torch.no_grad():
        graph = model.graph(batch, batch.pos)
        v = backbone.encode_node(backbone.embedding(graph))
        e = backbone.encode_edge(torch.cat([graph.vector / 3.4, graph.distance[:, None] / 3.4], 1))
        for step in backbone.steps:
            weight = torch.cat(
                [step.from_edge.weight, step.from_receiver.weight, step.from_sender.weight], 1
            )
            edges = enumerate(zip(graph.sender, graph.receiver, strict=True))
            joint = torch.stack([torch.cat([e[n], v[i], v[j]]) for n, (j, i) in edges])
            new = step.message(joint @ weight.T + step.from_edge.bias)
            total = torch.zeros_like(v)
            for n, i in enumerate(graph.receiver.tolist()):
                total[i] += new[n] * polynomial_envelope(graph.distance[n], 3.4)
            v, e = v + step.update(torch.cat([v, total], 1)), e + new
        found = backbone(graph).scalar
    torch.testing.assert_close(found, backbone.decode(v), rtol=1e-12, atol=1e-12)


def test_what_it_has_and_lacks(record_property):
    """Translation and permutation exactly; rotation and reflection not, by how much is measured."""
    model = build()
    assert model.backbone.symmetries == {"translation", "permutation"}
    checks = ["translation", "permutation", "rotation", "reflection"]
    report = contract.check_model(model, checks=checks)
    worst = report.groupby(["check", "quantity"]).residual.max()
    assert worst[["translation", "permutation"]].max() < 1e-12
    assert worst["rotation"]["vector"] > 0.1 and worst["rotation"]["energy"] > 1e-5
    for check in ("rotation", "reflection"):
        record_property(check, worst[check].to_dict())  # in the JUnit report, if one is asked for


def test_faithful_variant():
    """Positions as node input, ReLU, no envelope: translation is lost and the output jumps at
    the cutoff.
    """
    model = build("masked-paper", faithful=True)
    assert model.backbone.symmetries == {"permutation"}
    report = contract.check_model(model, measure=["second_derivatives"])  # ReLU has none
    worst = report.groupby(["check", "quantity"]).residual.max()
    assert worst["translation"]["vector"] > 1e-3 and worst["cutoff_continuity"]["vector"] > 1e-2


def test_forces_from_the_energy():
    report = contract.check_model(
        build(vector="gradient", forces="gradient"), checks=["finite_differences", "isolated_atom"]
    )
    assert report.claimed.all() and report.residual.max() < 1e-8


def test_learns():
    seen = losses(build(hidden=64, layers=4))
    assert seen[-1] < 0.4 < 0.7 < seen[0]  # 1 is what predicting zero gets


def test_directions_and_lengths_are_in_the_basis():
    """With ``radial`` the edge input also holds r/|r| and Bessel functions; without, it is the
    paper's.
    """
    sizes = {radial: build(radial=radial).backbone.encode_edge[0].in_features for radial in (0, 5)}
    assert sizes == {0: 4, 5: 12}
    report = contract.check_model(
        build(radial=5), checks=["cutoff_continuity", "periodic_image", "supercell"]
    )
    assert report.passed.all()


@pytest.mark.parametrize("options", [dict(hidden=0), dict(layers=0), dict(radial=-1)])
def test_bad_options(options):
    with pytest.raises(ConfigError, match="GNS needs hidden ≥ 1, layers ≥ 1, radial ≥ 0"):
        build(**options)


def test_total_charge():
    model, structures = contract.prepared(build(charge=True)), contract.examples(5.0)
    neutral = contract.evaluate(model, structures)["energy"]
    structures.charge[:] = np.array([0, 1, 0])
    charged = contract.evaluate(model, structures)["energy"]
    assert torch.equal(charged != neutral, torch.tensor([False, True, False]))
