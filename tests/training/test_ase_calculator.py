"""The ASE calculator: energies of atoms, ensembles, pickling."""

from __future__ import annotations

import pickle

import ase
import numpy as np
import pytest
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from tiny import egnn

import potkit
from potkit.errors import ConfigError
from potkit.training import checkpoints

REFERENCES = {1: -13.0, 6: -1000.0, 8: -2000.0}  # eV


def box():
    rng = np.random.default_rng(1)
    cell = np.array([[5.0, 0, 0], [1.0, 6.0, 0], [0.5, -0.7, 7.0]])
    return ase.Atoms("OH2CH2O", rng.uniform(0, 1, (7, 3)) @ cell, cell=cell, pbc=True)


def free():
    atoms = box()
    return ase.Atoms(atoms.numbers, atoms.positions)


def members(n=3):
    return [egnn(seed).set_references(REFERENCES, 2.0, shift=0.5) for seed in range(n)]


def test_energies_of_atoms_add_up_to_the_energy():
    atoms = box()
    atoms.calc = potkit.calculator(members(1)[0])
    energies = atoms.get_potential_energies()
    assert energies.shape == (7,) and np.ptp(energies[atoms.numbers == 1]) > 1e-6
    assert energies.sum() == pytest.approx(atoms.get_potential_energy(), abs=1e-9)


@pytest.mark.parametrize("atoms", [free(), box()], ids=["free", "periodic"])
def test_an_ensemble_has_the_members_mean_and_their_spread(atoms, tmp_path):
    models = members()
    paths = [checkpoints.save(tmp_path / f"{i}.safetensors", m) for i, m in enumerate(models)]
    calc = potkit.calculator(paths)
    calc.calculate(atoms, ["energy", "forces"])
    names = ["energy", "energies", "forces"] + (["stress"] if atoms.pbc.any() else [])
    each = {name: [] for name in names}
    for model in models:
        single = potkit.calculator(model)
        single.calculate(atoms, names)
        assert not [key for key in single.results if key.endswith("_std")]
        for name in names:
            each[name].append(single.results[name])
    for name, values in each.items():
        np.testing.assert_allclose(calc.results[name], np.mean(values, 0), rtol=0, atol=1e-9)
        spread = np.std(values, 0, ddof=1)
        assert np.all(spread >= 0) and np.max(spread) > 0
        np.testing.assert_allclose(calc.results[f"{name}_std"], spread, rtol=0, atol=1e-9)
    assert set(calc.results) == {*names, *(f"{n}_std" for n in names), "free_energy"}
    assert isinstance(calc.results["energy_std"], float)
    # in ASE's way: by name, and again where atoms moved
    moved = atoms.copy()
    moved.positions[0] += 0.05
    before = calc.results["forces_std"]
    assert not np.allclose(calc.get_property("forces_std", moved), before)


def test_an_ensemble_runs_dynamics_and_its_frames_are_written(tmp_path):
    atoms = free()
    atoms.calc = potkit.calculator(members(2))
    VelocityVerlet(atoms, 0.05).run(2)
    write(tmp_path / "frame.xyz", atoms)
    again = read(tmp_path / "frame.xyz")
    assert again.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), abs=1e-6)


def test_what_one_member_lacks_the_ensemble_lacks():
    direct = egnn(1, forces="vector", vector="direct").set_references(REFERENCES)
    pooled = egnn(2, pooled=True).set_references(REFERENCES)
    calc = potkit.calculator([*members(1), direct, pooled])
    calc.calculate(box(), ["energy"])
    had = {*calc.results, *calc.implemented_properties}
    assert not {"stress", "energies", "stress_std", "energies_std"} & had
    assert {"energy_std", "forces_std"} <= set(calc.implemented_properties)


@pytest.mark.parametrize("name", potkit.models.names())
def test_a_calculator_of_every_network_can_be_pickled(name):
    model = potkit.build(name, seed=0).set_references(REFERENCES)
    calc = potkit.calculator([model, potkit.build(name, seed=1).set_references(REFERENCES)])
    calc.calculate(box(), ["energy"])
    again = pickle.loads(pickle.dumps(calc))
    again.reset()
    again.calculate(box(), ["energy"])
    for key, value in calc.results.items():
        np.testing.assert_array_equal(again.results[key], value)


def test_an_empty_ensemble_is_an_error():
    with pytest.raises(ConfigError, match="the list of checkpoints is empty"):
        potkit.calculator([])
