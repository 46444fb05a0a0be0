"""The ASE calculator: energies of atoms, ensembles, pickling."""

from __future__ import annotations

import pickle

import ase
import numpy as np
import pytest
import torch
from ase.calculators.calculator import PropertyNotImplementedError, all_changes
from ase.io import read, write
from ase.md.verlet import VelocityVerlet
from tiny import egnn, molecules, one_line, water

import potkit
from potkit import models
from potkit.errors import ConfigError, DataError
from potkit.kernels import compiling, whole_graph
from potkit.models import published_codes
from potkit.training import ase_calculator, checkpoints

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


def test_a_calculator_that_is_used_for_long_goes_on_compiled(monkeypatch):
    """Where nothing was said of it, and not before its predictions have taken their time."""
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    monkeypatch.setattr(ase_calculator, "PATIENCE", 1e9)
    model = models.build("schnet", "small", layers=1)
    (atoms,) = molecules(1).to_ase()
    calc, never = potkit.calculator(model), potkit.calculator(model, compile=False)
    plain = potkit.calculator(model, compile=False)
    for step, patience in enumerate((1e9, 0.0, 0.0)):
        monkeypatch.setattr(ase_calculator, "PATIENCE", patience)
        atoms.positions[0, 0] += 0.01
        forces = [c.get_forces(atoms) for c in (calc, never, plain)]
        assert np.array_equal(forces[1], forces[2])
        np.testing.assert_allclose(forces[0], forces[2], rtol=1e-9, atol=1e-9)
        assert set(calc._quick) == {(step > 0, True), (False, True)}
    assert set(never._quick) == {(False, True)}
    assert calc.dtype == torch.float64


def test_what_cannot_be_compiled_unasked_is_done_without(monkeypatch):
    def refused(*args):
        raise ConfigError("compile: a network that cannot be traced")

    monkeypatch.setattr(ase_calculator, "PATIENCE", -1.0)
    monkeypatch.setattr(whole_graph.WholeGraph, "_trace", refused)
    model = models.build("schnet", "small", layers=1)
    (atoms,) = molecules(1).to_ase()
    atoms.calc = potkit.calculator(model)
    with pytest.warns(UserWarning, match="goes on uncompiled: compile: a network that cannot"):
        forces = atoms.get_forces()
    atoms.positions[0] += 0.01
    assert not np.array_equal(atoms.get_forces(), forces)  # and says nothing more
    asked = potkit.calculator(model, compile=True)
    with pytest.raises(ConfigError, match="cannot be traced"):
        asked.get_forces(atoms)


@pytest.mark.parametrize(
    "change",
    ["positions", "numbers", "cell", "pbc", "initial_charges", "initial_magmoms", "one atom less"],
)
def test_what_changes_is_seen(change):
    (atoms,) = molecules(1).to_ase()
    calc = potkit.calculator(models.build("schnet", "small", layers=1))
    assert set(calc.check_state(atoms)) == set(all_changes)
    calc.get_potential_energy(atoms)
    assert calc.check_state(atoms) == []
    if change == "positions":
        atoms.positions[0, 0] = np.nextafter(atoms.positions[0, 0], 9.0)
    elif change == "numbers":
        atoms.numbers[0] = 9
    elif change == "cell":
        atoms.cell[0, 0] = 30.0
    elif change == "pbc":
        atoms.pbc[0] = True
    elif change == "one atom less":
        del atoms[0]
        assert set(calc.check_state(atoms)) == set(all_changes)
        return
    else:
        atoms.set_array(change, np.zeros(len(atoms)))  # which is what was there
        assert calc.check_state(atoms) == []
        atoms.arrays[change][0] = 0.5
    assert calc.check_state(atoms) == [change]


def test_another_total_charge_is_another_energy():
    atoms = free()
    atoms.calc = potkit.calculator(egnn(charge=True), compile=False)
    energies = []
    for charge in (0, 1, 0):
        atoms.info["charge"] = charge
        energies.append(atoms.get_potential_energy())
    assert energies[0] == energies[2] != energies[1]


def test_a_charge_that_only_initial_charges_tell_is_refused():
    atoms = free()
    atoms.calc = potkit.calculator(egnn(charge=True), compile=False)
    charges = np.zeros(len(atoms))
    charges[:2] = 0.4, -0.4
    atoms.set_initial_charges(charges)
    neutral = atoms.get_potential_energy()
    charges[0] = 1.4
    atoms.set_initial_charges(charges)
    with pytest.raises(DataError) as caught:
        atoms.get_potential_energy()
    message = "initial charges of the atoms add up to 1 e, which is not read"
    assert message in one_line(caught.value) and "atoms.info['charge']" in str(caught.value)
    atoms.info["charge"] = 1
    assert atoms.get_potential_energy() != neutral
    del atoms.info["charge"]
    atoms.calc = potkit.calculator(egnn())  # does not read it
    assert np.isfinite(atoms.get_potential_energy())


def test_a_total_charge_that_the_network_does_not_know_is_named(monkeypatch):
    monkeypatch.setattr(compiling, "BACKEND", "aot_eager")
    for compile in (False, True):
        atoms = free()
        atoms.calc = potkit.calculator(egnn(charge=True), compile=compile, dtype=torch.float64)
        energies = []
        for step in range(3):  # from the third on a compiled graph answers alone
            atoms.info["charge"] = step
            energies.append(atoms.get_potential_energy())
        assert len(set(energies)) == 3
        atoms.info["charge"] = 11
        with pytest.raises(DataError, match=r"has charge \+11; the network knows -10 to \+10"):
            atoms.get_potential_energy()


@pytest.mark.parametrize("name", published_codes.NETWORKS)
def test_published_networks_answer_for_water_in_a_box(name):
    """With a stress where the code knows more than rectangular boxes, without elsewhere."""
    model = potkit.build(f"published/{name}", "published", seed=0)
    (atoms,) = water(1).to_ase()
    atoms.calc = potkit.calculator(model)
    assert np.isfinite(atoms.get_forces()).all()
    assert model.has_stress == ("stress" in atoms.calc.implemented_properties)
    assert model.has_stress == (name.startswith("denoise") and model.forces_mode == "gradient")
    if not model.has_stress:
        with pytest.raises(PropertyNotImplementedError):
            atoms.get_stress()


def test_formal_charges_are_named_where_they_cannot_be_compiled(tmp_path):
    model = potkit.build("egnn", preset="small", hidden=8, layers=1, formal_charges=True)
    data = molecules(4)
    data.formal_charge = np.zeros(len(data.z), np.int8)
    config = potkit.TrainConfig(steps=1, batch_size=2, device="cpu", compile=True)
    with pytest.raises(ConfigError, match="read formal charges of atoms; set compile to false"):
        potkit.finetune(model, data[:2], data[2:], config, out=tmp_path / "run")
