"""GNS: its equations written plainly, what it has and lacks, that with all faults it is the
published network, what each fault does, and that it learns.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from denoising import losses
from faulty import TOLERANCE, jump, largest, needed, of_kind, pair, same_layers
from published_weights import made_up
from test_published import batch_of, crowd, relative
from test_published import measured as measured  # the fixture
from tiny import water
from torch import nn
from twins import copy_types

from potkit import Potential, models
from potkit.errors import ConfigError
from potkit.models import published
from potkit.models.gns import wrapped
from potkit.models.layers import polynomial_envelope
from potkit.structures.store import Structures
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
    assert backbone.decode is None
    assert not of_kind(model, nn.SiLU) and of_kind(backbone, nn.ReLU)
    for head, outputs in ((model.energy_head, 1), (model.vector_readout, 3)):
        layers = of_kind(head, nn.Linear)
        assert [m.in_features for m in layers] == [128, 128, 128]
        assert [m.out_features for m in layers] == [128, 128, outputs]
        assert len(of_kind(head, nn.ReLU)) == 2


@pytest.mark.parametrize("shared_decoder", [False, True])
@pytest.mark.parametrize("periodic", [False, True])
def test_equations(periodic, shared_decoder):
    """Encode, process, decode as the paper writes them: concatenated inputs, one edge at a time."""
    model = contract.prepared(build("masked-paper", shared_decoder=shared_decoder))
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
    expected = backbone.decode(v) if shared_decoder else v
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


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


# --- the published network


def twin(code: Potential) -> Potential:
    """Ours with all faults and the weights of ``code``, of which all widths are equal."""
    sizes = code.recipe["options"]
    model = models.build(
        "gns",
        "masked-paper",
        faithful=True,
        hidden=sizes["latent_dim"],
        layers=sizes["nmessage_passing_steps"],
        cutoff=sizes["connectivity_radius"],
    )
    model.double().eval()
    ours, theirs = model.backbone, code.backbone
    encoder = theirs._encode_process_decode._encoder
    steps = theirs._encode_process_decode._processor.gnn_stacks
    with torch.no_grad():
        copy_types(ours.embedding, theirs._particle_type_embedding.weight)
        ours.embedding.unflagged.copy_(theirs._mask_embedding.weight[0])
        ours.embedding.flag.copy_(theirs._mask_embedding.weight[1])
        same_layers(ours.encode_edge, encoder.edge_fn)
        same_layers(ours.encode_node, encoder.node_fn)
        position, kind = encoder.node_fn[0][0].weight.tensor_split([3], 1)
        ours.encode_node[0].weight.copy_(torch.cat([kind, position], 1))
        for a, b in zip(ours.steps, steps, strict=True):
            first, second, third = of_kind(b.edge_fn, nn.Linear)
            receiver, sender, edge = first.weight.chunk(3, 1)
            a.from_receiver.weight.copy_(receiver)
            a.from_sender.weight.copy_(sender)
            a.from_edge.weight.copy_(edge)
            a.from_edge.bias.copy_(first.bias)
            same_layers(a.message, nn.Sequential(second, third, b.edge_fn[1]))
            same_layers(a.update, b.node_fn)
            total, own = b.node_fn[0][0].weight.chunk(2, 1)
            a.update[0].weight.copy_(torch.cat([own, total], 1))
        same_layers(model.energy_head, code.energy_head)
        same_layers(model.vector_readout, code.vector_readout)
    return model


def made_up_code():
    return made_up(
        "masked-gns",
        latent_dim=8,
        mlp_hidden_dim=8,
        particle_type_embedding_size=8,
        connectivity_radius=3.0,
    )


def flagged_water():
    s = water(1)
    batch = batch_of(s.z, s.pos + np.array([1.0, -2.0, 50.0]), np.diag(s.cell[0]))  # not wrapped
    batch.mask = (torch.arange(len(s.z)) % 4 == 0).long()
    return batch


def test_faithful_gives_the_published_outputs(measured):
    file = measured("masked-gns")
    model = twin(published("masked-gns", file.state, **file.settings))
    for case, data in file.cases.items():
        found = model(file.batch(case))
        assert relative(found.energy, data["out_0"]) < TOLERANCE
        assert relative(found.vector, data["out_1"]) < TOLERANCE
    assert file.cases


def test_faithful_computes_what_the_published_network_does():
    """Free and periodic, flags and unwrapped positions included."""
    code = made_up_code()
    for batch in (batch_of(*crowd(30)), flagged_water()):
        assert largest(twin(code), code, batch, ("energy", "vector")) < TOLERANCE


def test_every_fault_is_needed_for_that():
    changes = needed(twin(made_up_code()), flagged_water(), ("energy", "vector"))
    assert set(changes) == {"no-envelope", "mask-shift", "edges-doubled", "wrapped-positions"}
    assert min(changes.values()) > 100 * TOLERANCE


def test_contract_of_the_paper_preset():
    """It keeps what it claims; ReLU has kinks, so second derivatives are measured only."""
    report = contract.check_model(build("masked-paper"))
    assert not report[report.check == "second_derivatives"].claimed.any()
    claimed = {"translation", "permutation", "extensivity", "supercell", "cutoff_continuity"}
    assert claimed <= set(report[report.claimed].check)


def test_faithful_variant():
    """Positions as node input, no envelope: translation is lost and the output jumps at the
    cutoff.
    """
    model = build("masked-paper", faithful=True)
    assert model.backbone.symmetries == {"permutation"}
    report = contract.check_model(model, measure=["second_derivatives"])  # ReLU has none
    worst = report.groupby(["check", "quantity"]).residual.max()
    assert worst["translation"]["vector"] > 1e-3 and worst["cutoff_continuity"]["vector"] > 1e-2


# --- each fault alone


def test_edges_doubled():
    """Edges become twice what they were, whatever the step's network says of them."""
    faulty, right = pair("gns", "masked-paper", "edges-doubled", **SMALL)
    batch = batch_of(*crowd(10))
    graph = right.graph(batch, batch.pos)
    e = right.backbone.encode_edge(right.backbone.edge_inputs(graph))
    v = right.backbone.encode_node(right.backbone.node_inputs(graph))
    doubled, updated = (m.backbone.steps[0](v, e, None, graph)[1] for m in (faulty, right))
    assert torch.equal(doubled, 2 * e)
    assert not torch.allclose(updated, doubled, rtol=0.1)
    assert largest(faulty, right, batch, ("energy", "vector")) > 1e-3


def test_wrapped_positions():
    """A shifted structure has another energy, one shifted by an edge of its box the same."""
    faulty, right = pair("gns", "masked-paper", "wrapped-positions", **SMALL)
    s = water(1)
    edges = np.diag(s.cell[0])
    here, shifted, next_box = (
        batch_of(s.z, s.pos + step, edges) for step in (0.0, np.array([1.0, 0, 0]), edges)
    )
    for model, changed in ((faulty, True), (right, False)):
        energy, moved, whole = (model(b).energy.item() for b in (here, shifted, next_box))
        assert (abs(moved - energy) > 1e-4 * abs(energy)) is changed
        assert whole == pytest.approx(energy, rel=1e-10)


def test_wrapping_in_any_box():
    """Oblique boxes, and axes that do not repeat; free structures stay as they are."""
    rng = np.random.default_rng(0)
    cell = np.array([[5.0, 0, 0], [1.0, 6.0, 0], [0, 0, 7.0]])
    inside = rng.uniform(size=(20, 3)) @ cell
    turns = rng.integers(-3, 4, size=(20, 3)) * [1, 1, 0]
    s = Structures(
        np.ones(20, int), inside + turns @ cell, [0, 20], cell=cell[None], pbc=[[True, True, False]]
    )
    batch = s.batch(dtype=torch.float64)
    graph = build().graph(batch, batch.pos)
    slab = torch.from_numpy(inside)
    torch.testing.assert_close(wrapped(graph), slab, rtol=1e-12, atol=1e-10)
    assert wrapped(graph._replace(cell=None, pbc=None)) is graph.pos


def test_no_envelope():
    faulty, right = pair("gns", "masked-paper", "no-envelope", **SMALL)

    def angle(distance):
        return batch_of([8, 1, 6], [[0.0, 0, 0], [0.6, 0.8, 0], [distance, 0, 0]])

    jumps = [jump(model, angle, ("energy", "vector")) for model in (faulty, right)]
    assert jumps[0] > 1e-3 > 1e-7 > jumps[1]


def test_mask_shift():
    """One flag shifts the inputs of all other atoms."""
    faulty, right = pair("gns", "masked-paper", "mask-shift", **SMALL)
    s = water(1)
    batch = batch_of(s.z, s.pos, np.diag(s.cell[0]))
    inputs = {}
    for model in (faulty, right):
        graph = model.graph(batch, batch.pos)
        flags = torch.zeros(len(s.z), dtype=torch.long)
        flags[0] = 1
        unflagged = model.backbone.embedding(graph._replace(mask=torch.zeros_like(flags)))
        inputs[model] = model.backbone.embedding(graph._replace(mask=flags)) - unflagged
    shift = faulty.backbone.embedding.unflagged
    torch.testing.assert_close(inputs[faulty][1:], shift.expand(len(s.z) - 1, -1))
    assert inputs[right][0].any() and not inputs[right][1:].any()


# --- ours


def test_recipes_older_than_the_paper_preset_of_today():
    """The preset was SiLU with a layer that both read-outs shared."""
    options = dict(hidden=16, layers=2, cutoff=3.4, vector="direct", forces="vector")
    model = models.rebuild({"name": "gns", "preset": "masked-paper", "options": options})
    assert model.backbone.decode is not None and not of_kind(model, nn.ReLU)
    assert len(of_kind(model.energy_head, nn.Linear)) == 2


def test_weights_of_a_seed_stay():
    """Of the preset that is ours: stored runs started from these."""
    weights = models.build("gns", seed=0).parameters()
    assert sum(float(p.detach().double().sum()) for p in weights) == pytest.approx(
        627.2058013922538, rel=1e-9
    )


def test_forces_from_the_energy():
    report = contract.check_model(
        build(vector="gradient", forces="gradient"), checks=["finite_differences", "isolated_atom"]
    )
    assert report.claimed.all() and report.residual.max() < 1e-8


def test_a_vector_that_is_a_gradient_makes_the_forces():
    """Read out by −∂E/∂x, the vector that force-centric networks train on forces is conservative,
    and training on it differentiates twice.
    """
    model = models.build("gns", hidden=8, layers=1, cutoff=3.0, vector="gradient", forces="vector")
    assert model.forces_mode == "gradient" and model.by_gradient(("forces",))
    assert model.parts(("forces",)) == {"backbone", "energy_head"}
    prediction = model(water(3).batch([0, 1, 2]), ("energy", "forces", "vector"))
    expected = prediction.vector * model.scale
    torch.testing.assert_close(prediction.forces, expected, rtol=1e-5, atol=1e-7)


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
    with pytest.raises(ConfigError, match="unknown activation 'tanh'; there are silu, relu"):
        build(activation="tanh")


def test_total_charge():
    model, structures = contract.prepared(build(charge=True)), contract.examples(5.0)
    neutral = contract.evaluate(model, structures)["energy"]
    structures.charge[:] = np.array([0, 1, 0])
    charged = contract.evaluate(model, structures)["energy"]
    assert torch.equal(charged != neutral, torch.tensor([False, True, False]))
