"""Published faults by name: each does what the table says, and nothing has one by default."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from published_weights import made_up
from tiny import egnn, generator, molecules, water

import potkit
from potkit import objectives
from potkit.datasets import published_splits
from potkit.datasets.formats import spice
from potkit.errors import ConfigError
from potkit.models import Prediction
from potkit.objectives import faults, total
from potkit.structures.batch import cut
from potkit.training import checkpoints, evaluation

TESTS = Path(__file__).parents[1]
WITH_FAULTS = {
    "denoise": {},
    "masked": {"by": "molecule"},
    "masked-denoise": {"form": "published"},
}


def loss_of(objective, vector, batch, displacement=None) -> float:
    prediction = Prediction(None, vector, displacement=displacement)
    return float(objective.loss(prediction, batch)[0])


# -- the table -----------------------------------------------------------------------------------
def test_every_row_is_said_with_its_source_and_its_test():
    for name, fault in faults.FAULTS.items():
        assert fault.name == name and fault.does and fault.source and fault.how
        assert set(fault.objectives) <= set(objectives.names())
        if not fault.shown_by:
            assert fault.how.startswith("no switch"), f"{name}: no test, and no word why"
            continue
        file, test = fault.shown_by.split("::")
        text = (TESTS / file).read_text()
        assert re.search(rf"^def {test}\(", text, re.M), f"{name}: {fault.shown_by} is not there"


def test_switches_outside_objectives_are_those_of_the_table():
    elsewhere = {*spice.FAULTS, *published_splits.FAULTS, *evaluation.FAULTS}
    assert elsewhere <= faults.FAULTS.keys()
    for name in elsewhere:
        assert f"'{name}'" in faults.FAULTS[name].how


@pytest.mark.parametrize("kind", objectives.OBJECTIVES.values(), ids=objectives.names())
def test_no_objective_has_a_fault_by_default(kind):
    """And a stored run without faults keeps its hash: the setting is left out."""
    objective = kind()
    assert not getattr(objective, "faults", ())
    assert not {"faults", "form"} & objective.to_dict().keys()
    assert bool(faults.of(kind.name)) == hasattr(objective, "faults")


@pytest.mark.parametrize("name", WITH_FAULTS)
def test_faults_are_kept_in_one_order_and_by_name(name):
    settings = {"objective": name, **WITH_FAULTS[name]}
    known = [f for f in faults.of(name) if f not in ("mask-direction", "constant-one")]
    forward, back = (
        objectives.from_dict({**settings, "faults": given}) for given in (known, known[::-1])
    )
    assert forward == back and forward.to_dict() == back.to_dict()
    assert forward.faults == tuple(known) and forward.to_dict()["faults"] == tuple(known)
    with pytest.raises(ConfigError, match=rf"{name} has no published fault 'signs'.*{known[0]}"):
        objectives.from_dict({**settings, "faults": ["signs"]})


@pytest.mark.parametrize(
    "make, words",
    [
        (lambda: potkit.Masked(faults=("mask-direction",)), "by='atom'"),
        (lambda: potkit.Masked(by="atom", faults=("floor",)), "by='molecule'"),
        (
            lambda: potkit.Masked(by="atom", target="bonded", faults=("constant-one",)),
            "target='farthest'",
        ),
        (lambda: potkit.MaskedDenoise(faults=("wrong-sign",)), "form='published'"),
        (lambda: potkit.MaskedDenoise(form="paper"), "'ours' or 'published'"),
    ],
)
def test_a_fault_where_the_published_code_has_none_is_an_error(make, words):
    with pytest.raises(ConfigError, match=re.escape(words)):
        make()


# -- denoise -------------------------------------------------------------------------------------
def test_wrong_sign():
    """A read-out −∂E/∂x of E = ½k|x − x₀|² has the sign of the right target, not of the wrong one:
    what learns the wrong one has its maximum at the clean structure.
    """
    batch = molecules(3).batch(dtype=torch.float64)
    right, wrong, older = (
        potkit.Denoise(sigma=0.1, **options).corrupt(batch, generator(4))
        for options in ({}, {"faults": ("wrong-sign",)}, {"faithful": True})
    )
    torch.testing.assert_close(right.pos, wrong.pos, rtol=0, atol=0)
    torch.testing.assert_close(wrong.target, -right.target, rtol=0, atol=0)
    torch.testing.assert_close(wrong.target, older.target, rtol=0, atol=0)
    spring = -(right.pos - batch.pos)  # minus the gradient of a potential around the clean one
    assert loss_of(potkit.Denoise(sigma=0.1), spring, right) == pytest.approx(0.0, abs=1e-20)
    assert loss_of(potkit.Denoise(sigma=0.1), spring, wrong) > 1.0


def test_sum():
    """The sum over atoms and axes of the batch, in parts as at once."""
    objective = potkit.Denoise(sigma=0.1, normalize=False, faults=("sum",))
    batch = objective.corrupt(molecules(5).batch(dtype=torch.float64), generator(4))
    guess = torch.randn(batch.pos.shape, generator=generator(5), dtype=torch.float64)
    expected = float((guess - batch.target).square().sum())
    assert loss_of(objective, guess, batch) == pytest.approx(expected, rel=1e-12)
    mean = potkit.Denoise(sigma=0.1, normalize=False)
    assert loss_of(mean, guess, batch) == pytest.approx(expected / guess.numel(), rel=1e-12)
    # as training does it: the count is that of the whole batch
    whole = objective.terms(Prediction(None, guess), batch)
    parts, start = 0.0, 0
    for part in cut(batch, 2):
        rows = slice(start, start + len(part.pos))
        terms = objective.terms(Prediction(None, guess[rows]), part)
        terms = [t._replace(count=w.count) for t, w in zip(terms, whole, strict=True)]
        parts += float(total(terms)[0])
        start += len(part.pos)
    assert parts == pytest.approx(expected, rel=1e-12)


# -- masked --------------------------------------------------------------------------------------
def test_floor():
    """27 waters at ρ = 0.25: int(6.75) = 6 lose a hydrogen, the nearest whole number is 7."""
    batch = water(4, per_side=3).batch(dtype=torch.float64)
    for options, expected in (({}, 7), ({"faults": ("floor",)}, 6)):
        for kind in (potkit.Masked, potkit.MaskedDenoise):
            new = kind(ratio=0.25, **options).corrupt(batch, generator(1))
            lost = torch.bincount(batch.batch) - torch.bincount(new.batch)
            assert lost.tolist() == [expected] * 4
    # where the published code stops, one molecule loses its atom
    new = potkit.Masked(ratio=0.01, faults=("floor",)).corrupt(batch, generator(1))
    assert len(batch.z) - len(new.z) == 4


def test_mask_direction():
    batch = molecules(6).batch(dtype=torch.float64)
    right, wrong = (
        potkit.Masked(ratio=0.5, by="atom", faults=given).corrupt(batch, generator(2))
        for given in ((), ("mask-direction",))
    )
    assert bool(right.has_target.any())
    torch.testing.assert_close(wrong.target, -right.target, rtol=0, atol=0)
    assert torch.equal(wrong.has_target, right.has_target)


def test_constant_one():
    """Atoms of structures that lost nothing add 1 each to the sum and to the count."""
    batch = molecules(12).batch(dtype=torch.float64)
    plain = potkit.Masked(ratio=0.2, by="atom")
    fault = potkit.Masked(ratio=0.2, by="atom", faults=("constant-one",))
    new, with_ones = plain.corrupt(batch, generator(3)), fault.corrupt(batch, generator(3))
    idle = int((~new.has_target).sum())
    assert 0 < idle < len(new.z)
    guess = torch.randn(new.pos.shape, generator=generator(5), dtype=torch.float64)
    n = len(new.z)
    expected = (loss_of(plain, guess, new) * (n - idle) + idle) / n
    assert loss_of(fault, guess, with_ones) == pytest.approx(expected, rel=1e-9)
    # and what it adds teaches nothing
    guess.requires_grad_(True)
    fault.loss(Prediction(None, guess), with_ones)[0].backward()
    assert not bool(guess.grad[~new.has_target].any())
    assert bool(guess.grad[new.has_target].any())


# -- training ------------------------------------------------------------------------------------
def test_last_state(tmp_path):
    """Without validation structures a run ends with its last state; with them, with its best."""
    structures = molecules(24)
    config = potkit.TrainConfig(
        steps=12, batch_size=4, lr=0.5, warmup=0.0, validate_every=1, progress=False
    )

    def end(valid, out):
        run = potkit.pretrain(
            egnn(), structures, potkit.Denoise(sigma=0.1), config, tmp_path / out, valid=valid
        )
        return checkpoints.read(run.checkpoint)[1]["step"]

    assert end(structures[:0], "last") == 12
    assert end(structures[:6], "best") < 12  # at this rate it only gets worse


# -- masked and denoise, the published form -------------------------------------------------------
def test_published_form_against_numpy():
    """Clean positions for directions, noise on all atoms that remain, weight 1 without 1/σ²."""
    sigma = 0.3
    objective = potkit.MaskedDenoise(ratio=0.5, sigma=sigma, form="published")
    batch = water(60).batch(dtype=torch.float64)
    clean = potkit.Masked(ratio=0.5).corrupt(batch, generator(7))
    new = objective.corrupt(batch, generator(7))
    assert torch.equal(new.z, clean.z) and torch.equal(new.mask, clean.mask)
    assert torch.equal(new.target, clean.target) and torch.equal(new.has_target, clean.has_target)
    noise = new.pos - clean.pos
    torch.testing.assert_close(new.noise_target, -noise, atol=1e-12, rtol=0)
    assert abs(float(noise.square().mean()) / sigma**2 - 1) < 5 * np.sqrt(2 / noise.numel())
    v, u = (torch.randn(new.pos.shape, generator=generator(s), dtype=torch.float64) for s in (8, 9))
    flag = new.mask.bool()
    d, g = clean.target[flag].numpy(), v[flag].numpy()
    cosine = (d * g).sum(1) / np.linalg.norm(d, axis=1) / np.linalg.norm(g, axis=1)
    expected = 1 - cosine.mean() + np.mean((u + noise).numpy() ** 2)
    assert loss_of(objective, v, new, u) == pytest.approx(expected, rel=1e-9)
    wrong = potkit.MaskedDenoise(ratio=0.5, sigma=sigma, form="published", faults=("wrong-sign",))
    flipped = wrong.corrupt(batch, generator(7))
    torch.testing.assert_close(flipped.noise_target, noise, atol=1e-12, rtol=0)
    # ours measures from where the atom is now
    ours = potkit.MaskedDenoise(ratio=0.5, sigma=sigma).corrupt(batch, generator(7))
    moved = clean.target[flag] - noise[flag]
    torch.testing.assert_close(ours.target[flag], moved, atol=1e-12, rtol=0)
    assert objective.to_dict()["form"] == "published"


def test_published_form_of_one_molecule_per_structure_denoises_all_of_it():
    structures = potkit.Structures([8, 1, 1], np.eye(3), [0, 3])
    objective = potkit.MaskedDenoise(ratio=1.0, form="published")
    with pytest.warns(UserWarning, match="each loses one H whatever the ratio is"):
        objective.check(structures)  # in our form no atom would be left to denoise
    new = objective.corrupt(structures.batch(), generator())
    assert new.has_target.tolist() == [True, True] and new.noise_target.shape == (2, 3)


def test_published_form_reads_two_read_outs():
    """Directions train the energy head through −∂E/∂x̃; noise trains what moves the coordinates."""
    objective = potkit.MaskedDenoise(ratio=0.5, sigma=0.1, form="published")
    assert objective.needed() == ("vector", "displacement")
    model = egnn(vector="gradient").double()
    batch = objective.corrupt(water(2).batch(dtype=torch.float64), generator(1))
    prediction = model(batch, objective.needed())
    assert prediction.vector.shape == prediction.displacement.shape == batch.pos.shape
    features = model.backbone(model.graph(batch, batch.pos))
    torch.testing.assert_close(prediction.displacement, features.displacement)
    terms = {term.name: term for term in objective.terms(prediction, batch)}
    last = model.backbone.layers[-1].coordinate[-1].weight  # only x_L sees it
    head = model.energy_head.mlp[0].weight
    for name, trained, idle in (("noise_mse", last, head), ("masked_1-cos", head, last)):
        grads = torch.autograd.grad(
            terms[name].total, (trained, idle), retain_graph=True, allow_unused=True
        )
        assert bool(grads[0].any()), f"{name} does not train its read-out"
        assert grads[1] is None or not bool(grads[1].any()), f"{name} trains the other's"
    assert model.parts(objective.needed()) == {"backbone", "energy_head"}
    with torch.no_grad():
        assert model(batch, objective.needed()).displacement.grad_fn is None


def test_published_form_trains_the_published_network():
    """All of it as published: its EGNN, two read-outs, its signs and numbers."""
    objective = potkit.MaskedDenoise(
        ratio=0.5, sigma=0.5, form="published", faults=("wrong-sign", "floor")
    )
    model = made_up("masked-egnn")
    batch = objective.corrupt(water(2).batch(dtype=torch.float64), generator(1))
    prediction = model(batch, objective.needed())
    loss, _ = objective.loss(prediction, batch)
    # −∂E/∂x̃ as its fine-tuning has it, but for the flags
    torch.testing.assert_close(prediction.vector, model(batch, ("forces",)).forces)
    flag = batch.mask.bool()
    cosine = torch.cosine_similarity(prediction.vector[flag], batch.target[flag])
    noise = batch.noise_target
    assert float(noise.square().mean()) == pytest.approx(0.25, rel=0.3)
    expected = 1 - cosine.mean() + (prediction.displacement - noise).square().mean()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-9)
    loss.backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


def test_published_form_lowers_both_losses():
    objective = potkit.MaskedDenoise(ratio=0.5, sigma=0.3, form="published")
    model = egnn(vector="gradient", hidden=16)
    batch = objective.corrupt(water(2).batch(dtype=torch.float32), generator(1))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    seen = []
    for _ in range(40):
        loss, metrics = objective.loss(model(batch, objective.needed()), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen.append({name: float(value) for name, value in metrics.items()})
    for name in ("masked_1-cos", "noise_mse"):
        assert seen[-1][name] < 0.98 * seen[0][name], (name, seen[0], seen[-1])


@pytest.mark.parametrize(
    "network, options, words",
    [
        ("schnet", {}, "SchNet does not make; egnn does"),
        ("egnn", {"vector": "coordinate"}, "vector='gradient'"),
    ],
)
def test_published_form_names_the_network_that_has_no_second_read_out(network, options, words):
    model = potkit.build(network, "small", seed=0, **options)
    objective = potkit.MaskedDenoise(ratio=0.5, form="published")
    batch = objective.corrupt(water(1).batch(dtype=torch.float32), generator(1))
    with pytest.raises(ConfigError, match=re.escape(words)):
        model(batch, objective.needed())


def test_published_form_trains_from_end_to_end(tmp_path):
    """By the loop, in parts, with a checkpoint that is read again."""
    config = potkit.TrainConfig(steps=3, batch_size=4, micro_batch=2, progress=False)
    model = egnn(vector="gradient")
    objective = potkit.MaskedDenoise(ratio=0.5, sigma=0.1, form="published", faults=("floor",))
    run = potkit.pretrain(model, water(8), objective, config, tmp_path / "run")
    again = checkpoints.load(run.checkpoint)
    assert again.recipe["options"].get("noise_readout") in (None, False)
