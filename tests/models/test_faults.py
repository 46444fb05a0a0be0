"""The faults of the published codes: with all of them a preset computes what the code computes, and
each alone does what the table says.
"""

from __future__ import annotations

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from published_weights import made_up
from test_published import batch_of, crowd, relative
from test_published import measured as measured  # the fixture
from tiny import one_line, water
from twins import TWINS, sizes_of, twin

from potkit import models
from potkit.errors import CheckpointError, ConfigError
from potkit.models import faults, published, published_codes
from potkit.models.faults import FAULTS
from potkit.structures.store import Structures
from potkit.testing import contract
from potkit.training import checkpoints

TESTS = Path(__file__).parents[1]
FAR = np.array([100.0, 0.0, 0.0])  # Å
TOLERANCE = 1e-6  # of the largest value, in float64
SIZES = {
    "schnet": dict(hidden=16, filters=12, layers=2, radial=10),
    "egnn": dict(hidden=16, layers=2),
    "torchmd_et": dict(hidden=16, layers=2, heads=4, radial=8),
}
CODES = {  # network and preset: the published code
    ("schnet", "denoise-paper"): "denoise-schnet",
    ("egnn", "denoise-paper"): "denoise-egnn",
    ("torchmd_et", "denoise-paper"): "denoise-torchmd_et",
    ("se3_transformer", "denoise-paper"): "denoise-se3",
    ("egnn", "masked-paper"): "masked-egnn",
    ("gns", "masked-paper"): "masked-gns",
    ("forcenet", "masked-paper"): "masked-forcenet",
}


def having(fault: str) -> list[tuple[str, str]]:
    """The networks of `SIZES` and their presets that have ``fault``; others are in their files."""
    return [
        (name, preset)
        for name, its_presets in FAULTS[fault].networks.items()
        for preset in its_presets
        if name in SIZES
    ]


def with_and_without(name, preset, fault, **options):
    """A small network with no fault but one, and the same weights without it."""
    made = [
        contract.prepared(models.build(name, preset, seed=0, faults=f, **SIZES[name], **options))
        for f in ((fault,), ())
    ]
    faulty, right = made
    if fault != "mask-shift":  # which has a weight of its own
        right.load_state_dict(faulty.state_dict())
    assert faulty.backbone.faults == (fault,) and right.backbone.faults == ()
    return faulty, right


def energy_of(model, z, pos, **more) -> float:
    with torch.no_grad():
        return model(batch_of(z, pos, **more), ("energy",)).energy.item()


# --- all of them: the published code


@pytest.mark.parametrize("name", TWINS)
def test_faithful_presets_give_the_published_outputs(name, measured):
    file = measured(name)
    model = twin(published(name, file.state, **file.settings))
    compared = 0
    for case, data in file.cases.items():
        prediction = model(file.batch(case), ("energy", "vector", "forces"))
        for quantity in ("energy", "vector", "forces"):
            if quantity in data:
                compared += 1
                found = relative(getattr(prediction, quantity), data[quantity])
                assert found < TOLERANCE, (case, quantity)
    assert compared == 2 * len(file.cases) >= 4


@pytest.mark.parametrize("name", TWINS)
def test_faithful_presets_compute_what_the_published_networks_do(name):
    """The same without the published files, where every neighbour limit is met."""
    code = made_up(name)
    model = twin(code)
    for n in (12, 60):
        batch = batch_of(*crowd(n))
        ours, theirs = (m(batch, ("energy", "vector")) for m in (model, code))
        for quantity in ("energy", "vector"):
            expected = getattr(theirs, quantity).detach()
            assert relative(getattr(ours, quantity), expected) < TOLERANCE, (n, quantity)


@pytest.mark.parametrize("name", TWINS)
def test_presets_have_the_published_settings(name):
    """Those of the configuration beside the published weights; the masked paper says 3.4 Å, its
    code 3.5.
    """
    network, preset = TWINS[name]
    expected = sizes_of(name, published_codes.code(name).SETTINGS)
    if name == "masked-egnn":
        assert expected["cutoff"] == 3.5
        expected["cutoff"] = 3.4
    options = models.presets(network)[preset]
    assert {key: options[key] for key in expected} == expected


@pytest.mark.parametrize("name", TWINS)
def test_every_fault_is_needed_for_that(name):
    """Without any one of them the crowd's energy or vectors are others."""
    code = made_up(name)
    model, batch = twin(code), batch_of(*crowd(60))
    if name == "masked-egnn":
        batch.mask = torch.arange(60) % 3 // 2
    outputs = ("energy", "forces" if "masked" in name else "vector")
    if name == "denoise-egnn":  # whose vectors are no derivative
        outputs = ("energy", "vector", "forces")
    expected = model(batch, outputs)
    for fault in model.backbone.faults:
        network, preset = TWINS[name]
        others = [f for f in model.backbone.faults if f != fault]
        options = {
            k: v for k, v in model.recipe["options"].items() if k not in ("pooled", "faults")
        }
        right = models.build(network, preset, faults=others, **options).double().eval()
        state = right.state_dict().keys()
        right.load_state_dict({k: v for k, v in model.state_dict().items() if k in state})
        found = right(batch, outputs)
        changes = [relative(getattr(found, q), getattr(expected, q).detach()) for q in outputs]
        assert max(changes) > 100 * TOLERANCE, fault


def test_twins_know_formal_charges():
    """An ammonium ion in a crowd: pairs of element and charge have rows of their own."""
    code = made_up("denoise-egnn")
    model = twin(code, formal_charges=True)
    batch = batch_of(*crowd(14))
    batch.formal_charge = (batch.z == 7).long() - (batch.z == 8).long()
    assert batch.formal_charge.abs().sum() > 3
    for quantity in ("energy", "vector"):
        expected = getattr(code(batch), quantity).detach()
        assert relative(getattr(model(batch), quantity), expected) < TOLERANCE
    neutral = batch_of(*crowd(14))
    neutral.formal_charge = torch.zeros(14, dtype=torch.long)
    assert relative(model(neutral).energy, code(batch).energy.detach()) > 100 * TOLERANCE


# --- each alone


@pytest.mark.parametrize("name, preset", having("pooled"))
def test_pooled(name, preset):
    """Two copies far apart have not twice the energy."""
    z, pos = crowd(8)
    faulty, right = with_and_without(name, preset, "pooled")
    for model, largest in ((right, 1e-12), (faulty, None)):
        one = energy_of(model, z, pos)
        two = energy_of(model, np.tile(z, 2), np.concatenate([pos, pos + FAR]))
        off = abs(two - 2 * one) / abs(one)
        assert off < largest if largest else off > 1e-2


@pytest.mark.parametrize("name, preset", having("no-envelope"))
def test_no_envelope(name, preset):
    """Energy and vectors jump where a neighbour crosses the cutoff."""
    faulty, right = with_and_without(name, preset, "no-envelope")
    jumps = {}
    for model in (faulty, right):

        def of(x, model=model):
            angle = np.array([[0.0, 0, 0], [0.6, 0.8, 0], [x, 0, 0]])
            with torch.no_grad():
                prediction = model(batch_of([8, 1, 6], angle), ("energy", "vector"))
            return prediction.energy[:, None], prediction.vector

        scale = [float(x.abs().max()) for x in of(2.0)]
        before, after = of(model.cutoff - 1e-10), of(model.cutoff + 1e-10)
        jumps[model] = [
            float((a - b).abs().max()) / s for a, b, s in zip(before, after, scale, strict=True)
        ]
    assert max(jumps[right]) < 1e-9
    assert min(jumps[faulty]) > 1e-6 and max(jumps[faulty]) > 1e-3, jumps


@pytest.mark.parametrize("name, preset", having("neighbours-32"))
def test_neighbours(name, preset):
    """A dense structure has another energy, which depends on the order of its atoms; a loose one
    has not.
    """
    faulty, right = with_and_without(name, preset, "neighbours-32", cutoff=5.0)
    (z, pos), order = crowd(60), np.random.default_rng(1).permutation(60)
    energy = energy_of(right, z, pos)
    assert energy_of(right, z[order], pos[order]) == pytest.approx(energy, rel=1e-10)
    assert abs(energy_of(faulty, z, pos) - energy) > 1e-6 * abs(energy)
    assert abs(energy_of(faulty, z[order], pos[order]) - energy_of(faulty, z, pos)) > 1e-6 * abs(
        energy
    )
    few = z[:20], pos[:20]
    assert energy_of(faulty, *few) == pytest.approx(energy_of(right, *few), rel=1e-12)


def test_neighbours_of_egnn_are_cut_in_free_structures_only():
    """In one batch, too: the masked paper's code searches boxes otherwise."""
    faulty, right = with_and_without("egnn", "masked-paper", "neighbours-32", cutoff=5.0)
    z, pos = crowd(60)
    s = Structures(
        np.tile(z, 2),
        np.tile(pos, (2, 1)),
        [0, 60, 120],
        cell=np.stack([30.0 * np.eye(3), np.zeros((3, 3))]),
        pbc=np.array([[1, 1, 1], [0, 0, 0]], bool),
    )
    with torch.no_grad():
        cut, whole = (m(s.batch(dtype=torch.float64), ("energy",)).energy for m in (faulty, right))
    assert cut[0] == pytest.approx(float(whole[0]), rel=1e-12)
    assert abs(float(cut[1] - whole[1])) > 1e-6 * abs(float(whole[1]))


@pytest.mark.parametrize("name, preset", having("detached-norm"))
def test_detached_norm(name, preset):
    """Forces are not what finite differences of the energy say; energies are the same."""
    faulty, right = with_and_without(name, preset, "detached-norm", vector="gradient")
    for model in (faulty, right):
        for layer in model.backbone.layers:  # coordinates hardly move in a new network
            layer.coordinate[-1].weight.data.mul_(300)
    z, pos = crowd(6)
    assert energy_of(faulty, z, pos) == energy_of(right, z, pos)
    step, numeric = 1e-5, np.zeros((6, 3))
    for i, axis in np.ndindex(6, 3):
        moved = [pos.copy(), pos.copy()]
        moved[0][i, axis] += step
        moved[1][i, axis] -= step
        numeric[i, axis] = (energy_of(right, z, moved[1]) - energy_of(right, z, moved[0])) / (
            2 * step
        )
    off = [
        relative(m(batch_of(z, pos), ("forces",)).forces.detach(), numeric) for m in (faulty, right)
    ]
    assert off[0] > 1e-3 and off[1] < 1e-7


@pytest.mark.parametrize("name, preset", having("mask-shift"))
def test_mask_shift(name, preset):
    """Flags shift the inputs of all other atoms of a structure, and of no other structure."""
    faulty, _ = with_and_without(name, preset, "mask-shift")
    s = water(2)
    batch = s.batch(dtype=torch.float64)
    plain = faulty(batch, ("energy",)).energy
    batch.mask = torch.zeros(len(s.z), dtype=torch.long)
    assert torch.equal(faulty(batch, ("energy",)).energy, plain)  # no flag: as in fine-tuning
    batch.mask[0] = 1
    flagged = faulty(batch, ("energy",)).energy
    assert flagged[0] != plain[0] and flagged[1] == plain[1]
    graph = faulty.graph(batch, batch.pos)
    unflagged = graph._replace(mask=torch.zeros_like(graph.mask))
    change = faulty.backbone.embedding(graph) - faulty.backbone.embedding(unflagged)
    first = int(s.ptr[1])
    shift = faulty.backbone.embedding.unflagged
    torch.testing.assert_close(change[1:first], shift.expand(first - 1, -1))
    assert not change[first:].any()
    right = with_and_without(name, preset, "mask-shift")[1]
    change = right.backbone.embedding(graph) - right.backbone.embedding(unflagged)
    assert change[0].any() and not change[1:].any()


# --- the table


def test_the_table_names_what_there_is():
    assert list(FAULTS) == [fault.name for fault in FAULTS.values()]
    for fault in FAULTS.values():
        assert fault.does.endswith(".") and fault.source and fault.networks, fault.name
        for network, its_presets in fault.networks.items():
            assert set(its_presets) <= models.presets(network).keys(), fault.name
        assert set(fault.breaks) <= contract.CHECKS.keys(), fault.name


@pytest.mark.parametrize("fault", FAULTS.values(), ids=list(FAULTS))
def test_a_test_shows_each_fault(fault):
    file, _, name = fault.shown_by.partition("::")
    tree = ast.parse((TESTS / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("network, preset", CODES)
def test_published_networks_have_and_name_the_same_faults(network, preset):
    code = CODES[network, preset]
    assert made_up(code).backbone.faults == faults.of(network, preset)
    text = published_codes.code(code).__doc__
    for fault in faults.of(network, preset):
        assert f'"{fault}"' in text, fault


def test_faults_of_a_preset():
    assert faults.of("egnn", "denoise-paper") == (
        "pooled",
        "no-envelope",
        "neighbours-32",
        "detached-norm",
    )
    assert faults.of("egnn", "masked-paper") == (
        "no-envelope",
        "neighbours-32",
        "detached-norm",
        "mask-shift",
    )
    assert faults.of("egnn", "small") == faults.of("egnn", "denoise-paper")
    assert set(faults.of("egnn")) == {*faults.of("egnn", "denoise-paper"), "mask-shift"}
    assert faults.of("painn") == faults.of("painn", "paper") == ()


def test_faithful_is_all_faults_of_the_preset():
    for name, preset in CODES:
        model = models.build(name, preset, faithful=True)
        assert model.backbone.faults == faults.of(name, preset)
        assert model.recipe["options"]["faults"] == list(faults.of(name, preset))
        assert bool(model.energy_head.pooled) == ("pooled" in faults.of(name, preset)) or (
            model.energy_head.pooled == "mean"
        )
        assert models.build(name, preset).backbone.faults == ()


def test_faithful_masked_egnn_does_not_pool_and_the_denoise_papers_does():
    """LayerNorm and MLP per atom; features are summed first in the other code only."""
    masked = models.build("egnn", "masked-paper", faithful=True, hidden=16)
    denoise = models.build("egnn", "denoise-paper", faithful=True, hidden=16)
    assert not masked.energy_head.pooled and isinstance(masked.energy_head.norm, torch.nn.LayerNorm)
    assert denoise.energy_head.pooled is True
    assert isinstance(denoise.energy_head.norm, torch.nn.Identity)


def test_who_says_pooled_wants_the_other_faults_with_that_read_out():
    model = models.build("egnn", "denoise-paper", faithful=True, pooled=False, hidden=16)
    assert not model.energy_head.pooled
    assert model.backbone.faults == ("no-envelope", "neighbours-32", "detached-norm")
    averaged = models.build("egnn", pooled="mean", hidden=16).double()
    z, pos = crowd(8)
    one = energy_of(averaged, z, pos)
    two = energy_of(averaged, np.tile(z, 2), np.concatenate([pos, pos + FAR]))
    assert two == pytest.approx(one, rel=1e-12)


@pytest.mark.parametrize(
    "build, message",
    [
        (
            lambda: models.build("egnn", faults=("wrapped-positions",)),
            "egnn has no published fault 'wrapped-positions'; it has pooled, no-envelope, "
            "neighbours-32, detached-norm, mask-shift",
        ),
        (
            lambda: models.build("schnet", faults="pooled"),
            "schnet has no published fault 'pooled'; it has neighbours-32",
        ),
        (
            lambda: models.build("painn", faults=["pooled"]),
            "painn has no published fault 'pooled'; it has none: neither paper published it",
        ),
        (
            lambda: models.build("egnn", faults=7),
            "faults of egnn must be a list of names, got 7",
        ),
        (
            lambda: models.build("painn", faithful=True),
            "painn cannot be faithful: neither paper published it",
        ),
        (
            lambda: models.build("egnn", faults=["pooled"], pooled=False),
            "pooled=False contradicts faults=pooled of egnn",
        ),
        (
            lambda: models.build("egnn", pooled="max"),
            "pooled must be True, False or 'mean', got 'max'",
        ),
        (
            lambda: models.build("published/denoise-egnn", "published", faithful=True),
            "denoise-egnn has no setting 'faithful'; it has ",
        ),
    ],
)
def test_faults_that_there_are_not(build, message):
    with pytest.raises(ConfigError) as caught:
        build()
    assert message in one_line(caught.value)


def test_the_contract_does_not_claim_what_faults_break():
    model = models.build("egnn", "masked-paper", hidden=16, layers=2, faults=("detached-norm",))
    for layer in model.backbone.layers:
        layer.coordinate[-1].weight.data.mul_(300)
    checks = ["finite_differences", "second_derivatives", "cutoff_continuity"]
    report = contract.check_model(model, checks=checks, periodic=False)
    assert set(report[~report.claimed].check) == {"finite_differences", "second_derivatives"}
    assert not report[report.check == "finite_differences"].passed.all()


# --- recipes


def test_recipes_keep_faults(tmp_path):
    model = models.build("egnn", "masked-paper", seed=1, faithful=True, hidden=8, layers=2)
    path = checkpoints.save(tmp_path / "m.safetensors", model)
    copy = checkpoints.load(path)
    assert copy.recipe == model.recipe and copy.backbone.faults == model.backbone.faults
    right = models.build("egnn", "masked-paper", hidden=8, layers=2, faults=("mask-shift",))
    with pytest.raises(CheckpointError, match=r"was made with faults=.*not the same network"):
        checkpoints.transfer(right, path)


def test_recipes_older_than_the_presets_of_today_build_what_they_meant():
    """EGNN's paper presets added coordinate updates and had a bias; ``faithful`` was one switch."""
    options = dict(hidden=8, layers=2, attention=True, tanh=True, cutoff=5.0, vector="coordinate")
    recipe = {"name": "egnn", "preset": "denoise-paper", "options": options}
    layer = models.rebuild(recipe).backbone.layers[0]
    assert layer.aggregate == "sum" and layer.coordinate[-1].bias is not None
    options |= dict(faithful=True, pooled=True)
    model = models.rebuild(recipe)
    assert model.backbone.faults == ("no-envelope",) and model.energy_head.pooled
    assert model.recipe == recipe
    assert models.backbone_options(recipe)["faults"] == ("no-envelope",)
    schnet = {"name": "schnet", "preset": "denoise-paper", "options": {"hidden": 8}}
    assert models.rebuild(schnet).energy_head.mlp[0].out_features == 8


def test_weights_of_a_seed_stay():
    """Of the presets that are ours: stored runs started from these."""
    sums = {
        name: sum(float(p.detach().double().sum()) for p in models.build(name, seed=0).parameters())
        for name in SIZES
    }
    assert sums == pytest.approx(SUMS, rel=1e-6)


SUMS = {  # of all weights
    "schnet": 1.564885124036664,
    "egnn": -23.816609522823683,
    "torchmd_et": 8449.45776396158,
}
