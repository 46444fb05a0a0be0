"""Training on sets in which not every structure has every label."""

import json

import numpy as np
import pytest
import torch
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator

import potkit
from potkit.errors import CheckpointError, DataError
from potkit.training.normalization import normalization

CONFIG = potkit.TrainConfig(steps=2, batch_size=4, progress=False, log_every=1)


def waters(n: int, energies=None, forces=None) -> potkit.Structures:
    """``n`` waters; ``energies`` and ``forces``: the rows that have them (default: all)."""
    frames = []
    for k in range(n):
        a = molecule("H2O")
        a.rattle(0.05, seed=k)
        results = {}
        if energies is None or k in energies:
            results["energy"] = -2080.0 + 0.1 * k
        if forces is None or k in forces:
            results["forces"] = np.random.default_rng(k).normal(size=(3, 3))
        a.calc = SinglePointCalculator(a, **results)
        frames.append(a)
    return potkit.Structures.from_ase(frames)


def network():
    torch.manual_seed(0)
    return potkit.build("schnet", preset="small")


def test_the_loss_is_that_of_what_is_there():
    model = network()
    partly = waters(6, energies={0, 1, 2, 4}, forces={1, 3, 4})
    objective = potkit.Supervised()
    batch = partly.batch(dtype=torch.float64)
    model = model.double()
    prediction = model(batch, objective.needed())
    loss, metrics = objective.loss(prediction, batch)
    energy = prediction.energy.detach().numpy() - partly.energy
    difference = prediction.forces.detach().numpy() - partly.forces
    assert metrics["energy_mae"] == pytest.approx(np.abs(energy[[0, 1, 2, 4]]).mean())
    rows = [3, 4, 5, 9, 10, 11, 12, 13, 14]
    assert metrics["forces_mae"] == pytest.approx(np.abs(difference[rows]).mean())
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_finetuning_and_evaluation_take_what_there_is(tmp_path):
    train = waters(6, energies={0, 1, 2, 4}, forces={1, 3, 4})
    run = potkit.finetune(network(), train, waters(3, forces={1}), CONFIG, out=tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert all(np.isfinite(row["forces_loss"]) for row in rows)
    result = potkit.evaluate(run.model, train)
    error = result.structures["predicted_energy"] - train.energy
    assert result.energy_mae == pytest.approx(np.nanmean(np.abs(error)))
    assert np.isfinite(result.forces_mae)
    assert np.isnan(result.structures["forces_mae"]).tolist() == [
        True,
        False,
        True,
        False,
        False,
        True,
    ]
    unit = normalization(train, CONFIG).scale
    assert unit == pytest.approx(np.sqrt(np.nanmean(train.forces**2)))


def test_micro_batches_count_what_is_there(tmp_path):
    train = waters(4, forces={1})
    whole = potkit.finetune(network(), train, None, CONFIG, out=tmp_path / "a")
    cut = potkit.finetune(network(), train, None, CONFIG.replace(micro_batch=1), out=tmp_path / "b")
    for a, b in zip(whole.model.parameters(), cut.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_forces_alone_train_and_are_evaluated(tmp_path, capsys):
    train = waters(4, energies=set())
    assert train.energy is None
    config = CONFIG.replace(progress=True)
    objective = potkit.Supervised(energy=0.0)
    run = potkit.finetune(network(), train, None, config, out=tmp_path / "run", objective=objective)
    assert "arbitrary zero" in capsys.readouterr().err
    result = potkit.evaluate(run.model, train)
    assert np.isfinite(result.forces_mae) and np.isnan(result.energy_mae)
    with pytest.raises(DataError, match="no energy to fine-tune on"):
        potkit.finetune(network(), train, None, CONFIG, out=tmp_path / "other")


def test_isolated_atoms_of_the_file_are_the_references(tmp_path):
    train = waters(4)
    table = {"H": -13.6, "O": -2041.8}
    train.info |= {"atomic_energies": table, "isolated_in_file": True}
    run = potkit.finetune(network(), train, None, CONFIG, out=tmp_path / "run")
    assert float(run.model.references[1]) == pytest.approx(-13.6)
    assert float(run.model.references[8]) == pytest.approx(-2041.8)
    chosen = CONFIG.replace(references="least-squares")
    run = potkit.finetune(network(), train, None, chosen, out=tmp_path / "other")
    assert float(run.model.references[8]) != pytest.approx(-2041.8)


def test_a_network_that_was_only_pretrained_has_no_energies(tmp_path):
    train = waters(4, energies=set(), forces=set())
    run = potkit.pretrain(network(), train, potkit.Denoise(sigma=0.1), CONFIG, out=tmp_path / "run")
    with pytest.raises(CheckpointError, match="only pretrained"):
        potkit.evaluate(tmp_path / "run", waters(2))
    with pytest.raises(CheckpointError, match="only pretrained"):
        potkit.calculator(run.checkpoint)
