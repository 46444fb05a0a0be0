"""ForceNet: its equations written plainly, what it has and lacks, that with all faults it is the
published network, what each fault does, and that it learns.
"""

from __future__ import annotations

import math

import pytest
import torch
from denoising import losses
from e3nn import o3
from faulty import TOLERANCE, fill, largest, needed, of_kind, pair, same_layers
from published_weights import made_up
from test_published import batch_of, crowd, relative
from test_published import measured as measured  # the fixture
from tiny import water
from torch import Tensor, nn

from potkit import Potential, models
from potkit.errors import ConfigError
from potkit.models import published
from potkit.models.forcenet import PowerSine
from potkit.models.layers import polynomial_envelope
from potkit.models.published_codes.masked_forcenet import complex_harmonics
from potkit.structures.element_properties import (
    atomic_radii,
    covalent_radii,
    element_properties,
)
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
    assert backbone.radii[[1, 8]].tolist() == pytest.approx([0.25, 0.60])
    assert [type(layer) for layer in model.vector_readout.mlp] == [
        nn.Linear,
        nn.BatchNorm1d,
        nn.SiLU,
        nn.Linear,
    ]
    assert [m.out_features for m in of_kind(model.vector_readout, nn.Linear)] == [128, 3]
    (energy,) = of_kind(model.energy_head, nn.Linear)
    assert (energy.in_features, energy.out_features) == (128, 1)
    assert all(isinstance(layer.update[1], nn.BatchNorm1d) for layer in backbone.layers)


def test_weights_of_the_paper_preset_start_as_xavier():
    model = models.build("forcenet", "masked-paper", seed=0)
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear):
            continue
        outputs, inputs = layer.weight.shape
        if "from_" in name:  # three parts of one matrix
            inputs = 3 * inputs
        bound = math.sqrt(6 / (inputs + outputs))
        assert 0.9 * bound < layer.weight.abs().max() <= bound, name
        assert layer.bias is None or not layer.bias.any() or "from_" in name, name


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


PLAIN = {  # how the paper's preset and ours make lengths and f_c
    "masked-paper": (
        atomic_radii,
        lambda x: max(float(x), 1e-3),
        lambda d: math.cos(math.pi * d / 6.8),
    ),
    "small": (covalent_radii, float, lambda d: polynomial_envelope(d, 3.4)),
}


@pytest.mark.parametrize("preset", PLAIN)
@pytest.mark.parametrize("periodic", [False, True])
def test_equations(periodic, preset, float64):
    """Node input, edge input, conditioned filter and update, edge by edge."""
    model = contract.prepared(build(preset, cutoff=3.4))
    backbone, batch = model.backbone, contract.examples(3.4, periodic).batch(dtype=torch.float64)
    radii, clipped, f_c = PLAIN[preset]
    radii, powers = radii(), 1.1 ** torch.arange(50)
    with torch.no_grad():
        graph = model.graph(batch, batch.pos)
        h, edge = backbone.embedding.element(graph.z), []
        pairs = list(zip(graph.sender.tolist(), graph.receiver.tolist(), strict=True))
        for n, (j, i) in enumerate(pairs):
            d, own, other = graph.distance[n], radii[graph.z[i]], radii[graph.z[j]]
            lengths = [clipped(x / 3.4) for x in (d, d - own, d - other, d - own - other)]
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
            basis = edge if layer.embed_basis is None else layer.embed_basis(edge)
            weight = torch.cat(
                [layer.from_edge.weight, layer.from_receiver.weight, layer.from_sender.weight], 1
            )
            joint = torch.stack(
                [torch.cat([basis[n], h[i], h[j]]) for n, (j, i) in enumerate(pairs)]
            )
            filters, x = layer.filter(joint @ weight.T + layer.from_edge.bias), layer.linear(h)
            total = layer.own * x
            for n, (j, i) in enumerate(pairs):
                total[i] += filters[n] * x[j] * f_c(graph.distance[n])
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


# --- the published network


def by_input(weight: Tensor, inputs: int) -> Tensor:
    """Columns of a layer on the power-sine basis, where the code has frequencies outermost."""
    return weight.unflatten(1, (-1, inputs)).transpose(1, 2)  # [F, inputs, frequencies]


def between_harmonics(max_n: int) -> Tensor:
    """Our real harmonics to the code's complex ones in its order: a matrix, found by fitting."""
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(200, 3, generator=generator, dtype=torch.float64)
    direction = nn.functional.normalize(direction)
    ours = o3.spherical_harmonics(
        list(range(max_n)), direction, normalize=True, normalization="component"
    )
    matrix = torch.linalg.lstsq(ours, complex_harmonics(direction, max_n)).solution
    return torch.where(matrix.abs() < 1e-6, 0.0, matrix)


def twin(code: Potential) -> Potential:
    """Ours with all faults, the weights of ``code`` and its tables, which are part of its state."""
    sizes = code.recipe["options"]
    model = models.build(
        "forcenet",
        "masked-paper",
        faithful=True,
        hidden=sizes["hidden_channels"],
        layers=sizes["num_interactions"],
        cutoff=sizes["cutoff"],
        max_n=sizes["max_n"],
        frequencies=sizes["num_freqs"],
    )
    model.double().eval()
    ours, theirs = model.backbone, code.backbone
    element = ours.embedding.element
    harmonics = between_harmonics(sizes["max_n"])
    with torch.no_grad():
        known = torch.nonzero(theirs.atom_map.isfinite().all(1)).flatten()
        element.table[known] = theirs.atom_map[known]
        ours.radii[known] = theirs.atom_radii[known]
        element.basis.powers.copy_(theirs.embedding[0].smearing.freq_filter[0, ::9])
        ours.basis.powers.copy_(theirs.basis_fun.smearing_sine.freq_filter[0, ::4])
        element.linear.weight.copy_(by_input(theirs.embedding[1].weight, 9).flatten(1))
        element.linear.bias.copy_(theirs.embedding[1].bias)
        ours.embedding.unflagged.copy_(theirs.mask_embedding.weight[0])
        ours.embedding.flag.copy_(theirs.mask_embedding.weight[1])
        # the code has d − ρ_j before d − ρ_i
        radial = by_input(theirs.basis_fun.lin.weight, 4)[:, [0, 2, 1, 3]]
        ours.radial.weight.copy_(radial.flatten(1))
        ours.radial.bias.copy_(theirs.basis_fun.lin.bias)
        for a, b in zip(ours.layers, theirs.interactions, strict=True):
            basis = b.lin_basis.weight.unflatten(1, (-1, 4))
            a.embed_basis.weight.copy_(torch.einsum("sm,fmr->fsr", harmonics, basis).flatten(1))
            a.embed_basis.bias.copy_(b.lin_basis.bias)
            first, second, third = of_kind(b.mlp_edge, nn.Linear)
            edge, sender, receiver = first.weight.chunk(3, 1)
            a.from_edge.weight.copy_(edge)
            a.from_edge.bias.copy_(first.bias)
            a.from_sender.weight.copy_(sender)
            a.from_receiver.weight.copy_(receiver)
            same_layers(a.filter, nn.Sequential(second, third))
            same_layers(a.linear, b.lin)
            a.own.copy_(b.center_W[0])
            a.update.load_state_dict(b.mlp_trans.state_dict())
        same_layers(ours.decode, theirs.lin)
        same_layers(model.energy_head, code.energy_head)
        model.vector_readout.mlp.load_state_dict(code.vector_readout.state_dict())
    return model


def made_up_code():
    code = made_up("masked-forcenet", decoder_hidden_channels=8, cutoff=3.0)
    with torch.no_grad():  # a BatchNorm that has seen nothing hides which it is
        for i, norm in enumerate(of_kind(code, nn.BatchNorm1d)):
            norm.running_mean.copy_(torch.linspace(-0.2, 0.3, 8) + 0.01 * i)
            norm.running_var.copy_(torch.linspace(0.5, 1.5, 8))
    return code


def flagged_water():
    s = water(1)
    batch = batch_of(s.z, s.pos, s.cell[0].diagonal())
    batch.mask = (torch.arange(len(s.z)) % 4 == 0).long()
    return batch


def test_faithful_gives_the_published_outputs(measured):
    file = measured("masked-forcenet")
    model = twin(published("masked-forcenet", file.state, **file.settings))
    for case, data in file.cases.items():
        found = model(file.batch(case))
        assert relative(found.energy, data["out_0"]) < TOLERANCE
        assert relative(found.vector, data["out_1"]) < TOLERANCE
    assert file.cases


def test_radii_are_those_of_the_published_code(measured):
    """Where Slater lists an element; the code's table is in the state dict."""
    theirs = measured("masked-forcenet").state["atom_radii"].double()
    ours, covalent = atomic_radii()[: len(theirs)], covalent_radii()[: len(theirs)]
    slater = ours != covalent
    assert 80 < slater.sum() < 96
    torch.testing.assert_close(ours[slater], theirs[slater], rtol=0, atol=1e-6)


def test_faithful_computes_what_the_published_network_does():
    """Free and periodic, flags included; the harmonics of the code are rounded to float32."""
    code = made_up_code()
    for batch in (batch_of(*crowd(30)), flagged_water()):
        assert largest(twin(code), code, batch, ("energy", "vector")) < TOLERANCE


def test_every_fault_is_needed_for_that():
    model = twin(made_up_code())
    changes = needed(model, flagged_water(), ("energy", "vector"))
    assert set(changes) == {"pooled", "mask-shift", "no-basis-gradient", "all-oxygen"}
    assert changes.pop("no-basis-gradient") == 0  # shows in derivatives only
    assert min(changes.values()) > 100 * TOLERANCE
    model.forces_mode, model.recipe["options"]["forces"] = "gradient", "gradient"
    assert needed(model, flagged_water(), ("forces",))["no-basis-gradient"] > 100 * TOLERANCE


def test_contract_of_the_paper_preset():
    """It keeps what it claims; clipped distances have kinks."""
    report = contract.check_model(build("masked-paper"))
    assert not report[report.check == "second_derivatives"].claimed.any()
    claimed = {"translation", "permutation", "extensivity", "supercell", "cutoff_continuity"}
    assert claimed <= set(report[report.claimed].check)


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


# --- each fault alone


def test_all_oxygen():
    """Elements make no difference; without the fault they do."""
    faulty, right = pair("forcenet", "masked-paper", "all-oxygen", **SMALL)
    z, pos = crowd(12)
    for model, differs in ((faulty, False), (right, True)):
        first, second = (model(batch_of(kinds, pos)) for kinds in (z, z[::-1].copy()))
        for a, b in ((first.energy, second.energy), (first.vector, second.vector)):
            assert torch.equal(a, b) is not differs


def test_no_basis_gradient():
    """Energies are the same, forces taken from them are not."""
    options = dict(SMALL, forces="gradient")
    faulty, right = pair("forcenet", "masked-paper", "no-basis-gradient", **options)
    batch = batch_of(*crowd(10))
    assert largest(faulty, right, batch, ("energy", "vector")) == 0
    assert largest(faulty, right, batch, ("forces",)) > 0.02


def test_pooled():
    """The energy's constant counts once, however many atoms there are."""
    right = contract.prepared(build("masked-paper"))
    faulty = contract.prepared(build("masked-paper", faults=("pooled",)))
    fill(faulty, right)
    constant = float(right.energy_head.mlp[0].bias.detach())
    for n in (5, 12):
        batch = batch_of(*crowd(n))
        change = (right(batch).energy - faulty(batch).energy).item()
        assert change == pytest.approx((n - 1) * constant, rel=1e-9)
        assert torch.equal(right(batch).vector, faulty(batch).vector)


def test_mask_shift():
    """One flag shifts the inputs of all other atoms."""
    faulty, right = pair("forcenet", "masked-paper", "mask-shift", **SMALL)
    batch = flagged_water()
    unflagged = batch_of(batch.z, batch.pos, batch.cell[0].diagonal())
    inputs = {}
    for model in (faulty, right):
        embedding = model.backbone.embedding
        inputs[model] = embedding(model.graph(batch, batch.pos)) - embedding(
            model.graph(unflagged, unflagged.pos)
        )
    others = batch.mask == 0
    shift = faulty.backbone.embedding.unflagged.expand(int(others.sum()), -1)
    torch.testing.assert_close(inputs[faulty][others], shift)
    assert not inputs[right][others].any() and inputs[right][~others].any()


# --- ours


def test_recipes_older_than_the_paper_preset_of_today():
    """The preset had covalent radii, LayerNorm and MLPs for read-outs."""
    options = dict(hidden=16, layers=2, cutoff=3.4, vector="direct", forces="vector")
    model = models.rebuild({"name": "forcenet", "preset": "masked-paper", "options": options})
    assert not of_kind(model, nn.BatchNorm1d) and len(of_kind(model.energy_head, nn.Linear)) == 2
    assert model.backbone.radii[8] == pytest.approx(0.63)


def test_weights_of_a_seed_stay():
    """Of the preset that is ours: stored runs started from these."""
    weights = models.build("forcenet", seed=0).parameters()
    assert sum(float(p.detach().double().sum()) for p in weights) == pytest.approx(
        291.2016414779923, rel=1e-9
    )


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


@pytest.mark.parametrize("option", ["radii", "envelope", "norm"])
def test_unknown_choices_are_named(option):
    with pytest.raises(ConfigError, match=f"unknown {option} 'green'; there are "):
        build(**{option: "green"})
