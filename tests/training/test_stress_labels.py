"""Stress as a label, in training, in errors and in the ASE calculator."""

from __future__ import annotations

import multiprocessing
import pickle

import numpy as np
import pytest
import torch
from ase import units
from ase.calculators.calculator import PropertyNotImplementedError
from ase.filters import ExpCellFilter, FrechetCellFilter
from ase.md.nose_hoover_chain import IsotropicMTKNPT
from ase.optimize import BFGS
from tiny import egnn, molecules, water

import potkit
from potkit.errors import ConfigError, DataError
from potkit.training import TrainConfig


@pytest.fixture(scope="module")
def model() -> potkit.Potential:
    return egnn(radial=4).double().set_references({1: -13.6, 6: -1029.48, 8: -2041.98}, 0.8).eval()


def labelled(model: potkit.Potential) -> potkit.Structures:
    """Three boxes and two molecules; one box without stress."""
    boxes, free = water(3), molecules(2)
    both = potkit.structures.concatenate([boxes, potkit.Structures(free.z, free.pos, free.ptr)])
    predicted = potkit.predict(model, both, outputs=("energy", "forces", "stress"))
    rng = np.random.default_rng(0)
    noise = rng.normal(scale=1e-3, size=(5, 3, 3))
    both.energy, both.forces = predicted["energy"], predicted["forces"]
    both.stress = predicted["stress"] + (noise + noise.swapaxes(1, 2)) / 2
    both.stress[1] = np.nan
    return both


# -- training and errors ---------------------------------------------------------------------------
def test_loss_against_numpy(model):
    structures = labelled(model)
    batch = structures.batch(dtype=torch.float64)
    objective = potkit.Supervised(energy=0.0, forces=0.0, stress=100.0, loss_function="mse")
    assert objective.needed() == ("energy", "stress") and "stress" in objective.labels()
    loss, metrics = objective.loss(model(batch, objective.needed()), batch)
    exact = potkit.predict(model, structures, outputs=("stress",))["stress"]
    error = (exact - structures.stress)[[0, 2]]
    assert float(loss) == pytest.approx(100 * np.square(error).mean(), rel=1e-9)
    assert float(metrics["stress_mae"]) == pytest.approx(abs(error).mean(), rel=1e-9)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    model.zero_grad()


def test_a_weight_of_zero_leaves_stored_runs_alone():
    assert "stress" not in potkit.Supervised().to_dict()
    assert potkit.Supervised(stress=1.0).to_dict()["stress"] == 1.0
    assert potkit.Supervised(1.0, 0.0).needed() == ("energy",)
    with pytest.raises(ConfigError, match="weight of stress"):
        potkit.Supervised(stress=-1.0)
    with pytest.raises(DataError, match="have no stress"):
        batch = molecules(2).batch(dtype=torch.float64)
        potkit.Supervised(stress=1.0).terms(egnn().double()(batch, ("energy", "forces")), batch)


def test_training_brings_the_stress_down_in_any_micro_batch(model, tmp_path):
    structures = labelled(model)
    structures.pos = structures.pos.astype(np.float32)
    errors = {}
    for micro in (None, 2):
        config = TrainConfig(
            steps=12,
            batch_size=5,
            lr=2e-3,
            micro_batch=micro,
            references="none",
            normalization="none",
            precision="64-true",
            device="cpu",
            progress=False,
        )
        start = egnn(seed=1, radial=4)
        objective = potkit.Supervised(0.0, 0.0, stress=1.0)
        run = potkit.finetune(
            start, structures, config=config, objective=objective, out=tmp_path / str(micro)
        )
        errors[micro] = potkit.evaluate(run.model, structures).stress_mae
    before = potkit.evaluate(egnn(seed=1, radial=4).double(), structures).stress_mae
    assert errors[None] < 0.9 * before
    assert errors[2] == pytest.approx(errors[None], rel=1e-6)


def test_errors_against_numpy(model):
    structures = labelled(model)
    result = potkit.evaluate(model, structures, batch_size=2)
    exact = potkit.predict(model, structures, outputs=("stress",))["stress"]
    error = (exact - structures.stress)[[0, 2]]
    assert result.stress_mae == pytest.approx(abs(error).mean(), rel=1e-9)
    assert result.stress_rmse == pytest.approx(np.sqrt(np.square(error).mean()), rel=1e-9)
    assert result.to_dict()["stress_mae"] == result.stress_mae
    table = result.structures["stress_mae"]
    assert np.flatnonzero(table.isna()).tolist() == [1, 3, 4]
    text = f"stress MAE {1e3 * result.stress_mae:.3f}"
    assert text in repr(result) and f"MAE {160.21766 * result.stress_mae:.4f}" in repr(result)
    structures.stress = None
    without = potkit.evaluate(model, structures)
    assert "stress_mae" not in without.to_dict() and "stress" not in repr(without)
    assert "stress_mae" not in without.systems


# -- calculator ------------------------------------------------------------------------------------
def box(model: potkit.Potential):
    atoms = water(1).to_ase()[0]
    atoms.calc = potkit.calculator(model)
    return atoms


def test_stress_is_the_numerical_one_of_ase(model):
    from ase.calculators.fd import calculate_numerical_stress

    atoms = box(model)
    numerical = calculate_numerical_stress(atoms, eps=1e-5)
    assert abs(numerical).max() > 1e-5
    np.testing.assert_allclose(atoms.get_stress(), numerical, atol=1e-6 * abs(numerical).max())
    assert atoms.get_potential_energy(force_consistent=True) == atoms.get_potential_energy()


def test_atoms_without_a_cell_and_direct_forces_have_no_stress(model):
    atoms = molecules(1).to_ase()[0]
    atoms.calc = potkit.calculator(model)
    assert np.isfinite(atoms.get_forces()).all()
    with pytest.raises(PropertyNotImplementedError, match="no cell that repeats"):
        atoms.get_stress()
    boxed = box(potkit.build("gns", hidden=8, layers=1, vector="direct", forces="vector"))
    assert boxed.get_forces().shape == (24, 3)
    with pytest.raises(PropertyNotImplementedError):
        boxed.get_stress()


def test_inference_mode(model):
    expected = box(model).get_stress()
    with torch.inference_mode():
        atoms = box(model)
        np.testing.assert_allclose(atoms.get_stress(), expected)
        assert np.isfinite(atoms.get_forces()).all()


def energy_of(atoms) -> float:
    return atoms.get_potential_energy()


def test_pickle_and_processes(model):
    atoms = box(model)
    copied = pickle.loads(pickle.dumps(atoms))
    assert copied.get_potential_energy() == atoms.get_potential_energy()
    np.testing.assert_array_equal(copied.get_stress(), atoms.get_stress())
    moved = atoms.copy()
    moved.rattle(0.05, seed=1)
    moved.calc = potkit.calculator(model)
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        energies = pool.map(energy_of, [atoms, moved])
    expected = [atoms.get_potential_energy(), moved.get_potential_energy()]
    assert energies == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("kind", [FrechetCellFilter, ExpCellFilter])
def test_cell_relaxation(model, kind):
    atoms = box(model)
    before = atoms.get_potential_energy()
    optimizer = BFGS(kind(atoms), logfile=None, maxstep=0.02)
    cell = atoms.cell.array.copy()
    optimizer.run(fmax=0.0, steps=5)
    assert atoms.get_potential_energy() < before
    assert not np.allclose(atoms.cell.array, cell, atol=1e-6)


def test_constant_pressure_conserves_its_energy(model):
    """The conserved quantity of Martyna, Tobias and Klein holds only if stress and forces are
    derivatives of one energy: it wanders by the square of the time step.
    """
    wander = []
    for femtoseconds, steps in ((0.5, 16), (0.25, 32)):
        atoms = box(model)
        rng = np.random.default_rng(0)
        thermal = np.sqrt(300 * units.kB / atoms.get_masses())[:, None]
        atoms.set_velocities(rng.normal(size=(24, 3)) * thermal)
        dynamics = IsotropicMTKNPT(
            atoms,
            timestep=femtoseconds * units.fs,
            temperature_K=300,
            pressure_au=1000 * units.bar,
            tdamp=25 * units.fs,
            pdamp=100 * units.fs,
        )
        volume = atoms.get_volume()
        conserved = [dynamics.get_conserved_energy() for _ in dynamics.irun(steps)]
        assert abs(atoms.get_volume() / volume - 1) > 1e-4
        wander.append(np.ptp(conserved))
    assert wander[1] < wander[0] / 2.5
