"""Errors against NumPy, and the model as an ASE calculator."""

from __future__ import annotations

import copy

import ase
import numpy as np
import pytest
import springs
import torch
from ase import units
from ase.md.verlet import VelocityVerlet
from tiny import egnn, molecules, one_line, water

import potkit
from potkit.errors import CheckpointError, ConfigError, DataError
from potkit.training import checkpoints

SHORT = potkit.TrainConfig(steps=1, batch_size=2, device="cpu", progress=False)


@pytest.fixture(scope="module")
def model() -> potkit.Potential:
    """Weights of ordinary size, so that forces are not tiny; with references and a scale."""
    model = egnn(radial=4).double()
    with torch.no_grad():
        for layer in model.backbone.layers:
            layer.update[-1].weight.mul_(3.0)
    return model.set_references({1: -13.6, 6: -1029.48, 8: -2041.98}, 0.8).eval()


def labelled(n: int, with_forces: bool = True) -> potkit.Structures:
    s = molecules(n, seed=2)
    of_atoms = np.choose(s.z // 6, [-13.6, -1029.48])  # H and C (or O)
    energy = s.energy + np.add.reduceat(of_atoms, s.ptr[:-1])
    forces = s.forces if with_forces else None
    return potkit.Structures(s.z, s.pos, s.ptr, energy, forces, system=s.system, info=s.info)


# -- numbers -------------------------------------------------------------------------------------
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_errors_against_numpy(model, batch_size):
    structures = labelled(7)
    evaluation = potkit.evaluate(model, structures, batch_size=batch_size)
    energy, forces = [], []
    for one in structures:  # one structure at a time, the plain way
        e, f = model.energy_and_forces(one.batch(dtype=torch.float64))
        energy.append(float(e[0]))
        forces.append(f.detach().numpy())
    de, df = np.array(energy) - structures.energy, np.concatenate(forces) - structures.forces
    expected = {
        "energy_mae": abs(de).mean(),
        "energy_rmse": np.sqrt((de**2).mean()),
        "forces_mae": abs(df).mean(),
        "forces_rmse": np.sqrt((df**2).mean()),
        "n_structures": 7,
    }
    assert evaluation.to_dict() == pytest.approx(expected, rel=1e-9)
    table = evaluation.structures
    np.testing.assert_allclose(table["predicted_energy"], energy, rtol=1e-12)
    differences = np.split(df, structures.ptr[1:-1])
    mae = [abs(d).mean() for d in differences]
    rmse = [np.sqrt((d**2).mean()) for d in differences]
    np.testing.assert_allclose(table["forces_mae"], mae, rtol=1e-9)
    np.testing.assert_allclose(table["forces_rmse"], rmse, rtol=1e-9)
    assert table["system"].tolist() == ["CH2O", "C2H4"] * 3 + ["CH2O"]
    assert table["atoms"].tolist() == [4, 6] * 3 + [4]
    owner = np.repeat(structures.system, structures.n_atoms)
    for row in evaluation.systems.to_dict("records"):
        system = ["CH2O", "C2H4"].index(row["system"])
        of_system, atoms = structures.system == system, owner == system
        expected_of_system = {
            "structures": of_system.sum(),
            "energy_mae": abs(de[of_system]).mean(),
            "energy_rmse": np.sqrt((de[of_system] ** 2).mean()),
            "forces_mae": abs(df[atoms]).mean(),
            "forces_rmse": np.sqrt((df[atoms] ** 2).mean()),
        }
        errors = {name: row[name] for name in expected_of_system}
        assert errors == pytest.approx(expected_of_system, rel=1e-9)
    assert len(evaluation.systems) == 2
    assert f"{1e3 * expected['energy_mae']:.2f}" in repr(evaluation) and "meV" in repr(evaluation)


def test_without_forces_only_energies_are_scored(model):
    evaluation = potkit.evaluate(model, labelled(4, with_forces=False))
    full = potkit.evaluate(model, labelled(4))
    assert np.isnan(evaluation.forces_mae)
    assert evaluation.energy_mae == full.energy_mae
    assert "forces" not in repr(evaluation)
    assert (
        "forces_mae" not in evaluation.structures and evaluation.systems["forces_mae"].isna().all()
    )


def test_perfect_labels_give_zero(model):
    s = molecules(5)
    predicted = potkit.predict(model, s)
    exact = potkit.Structures(
        s.z, s.pos, s.ptr, predicted["energy"], predicted["forces"], system=s.system
    )
    result = potkit.evaluate(model, exact)
    assert result.energy_rmse == 0 and result.forces_rmse == 0


def test_a_checkpoint_is_evaluated_as_its_model(model, tmp_path):
    path = checkpoints.save(tmp_path / "best.safetensors", model)
    for source in (path, str(path), tmp_path):
        stored, live = (potkit.evaluate(which, labelled(3)) for which in (source, model))
        assert stored.to_dict() == live.to_dict()


def test_a_run_is_evaluated_as_its_model(tmp_path):
    run = potkit.finetune(egnn(), labelled(4), None, SHORT, out=tmp_path / "run")
    live = potkit.evaluate(run.model, labelled(3))
    assert potkit.evaluate(run, labelled(3)).energy_mae == live.energy_mae
    (atoms,) = labelled(1).to_ase()
    forces = [potkit.calculator(source).get_forces(atoms) for source in (run, [run], run.model)]
    assert np.array_equal(forces[0], forces[1]) and np.array_equal(forces[0], forces[2])
    for wrong in (None, 5, [5]):
        with pytest.raises(ConfigError) as caught:
            potkit.calculator(wrong)
        assert "a checkpoint, a run or a network is needed" in one_line(caught.value)


def test_a_network_that_was_only_pretrained_is_refused_until_it_is_fine_tuned(tmp_path):
    pretrained = potkit.pretrained("egnn-small-denoise")
    run = potkit.pretrain(egnn(), molecules(4), potkit.Denoise(), SHORT, out=tmp_path / "run")
    for network in (pretrained, run.model, copy.deepcopy(pretrained)):
        for use in (potkit.calculator, lambda m: potkit.evaluate(m, labelled(2))):
            with pytest.raises(CheckpointError) as caught:
                use(network)
            message = "was only pretrained (denoise) and has no energies or forces yet"
            assert message in one_line(caught.value)
    for number, network in enumerate((pretrained, run.model)):
        potkit.finetune(network, labelled(4), None, SHORT, out=tmp_path / f"tuned-{number}")
        assert np.isfinite(potkit.evaluate(network, labelled(2)).energy_mae)
        potkit.calculator(network)
    potkit.calculator(egnn())  # built, not loaded: nobody says what it was trained on
    own_loop = potkit.pretrained("egnn-small-denoise")
    own_loop.trained_on = None
    potkit.calculator(own_loop)


def test_a_total_charge_without_an_embedding_is_named_before_anything_is_written(tmp_path):
    structures = labelled(4)
    structures.charge = np.array([0, 0, -11, 0], np.int16)
    for use in (
        lambda: potkit.finetune(egnn(charge=True), structures, None, SHORT, out=tmp_path / "run"),
        lambda: potkit.evaluate(egnn(charge=True), structures),
    ):
        with pytest.raises(DataError) as caught:
            use()
        assert "structure 2 has charge -11" in one_line(caught.value)
    assert not list(tmp_path.iterdir())


def test_normalizer_lost(model, tmp_path):
    """Weights without references and scale speak of 1 where the unit was 0.8 eV, and from zero."""
    structures = labelled(5)
    checkpoints.save(tmp_path / "net.safetensors", model)
    kept = potkit.evaluate(tmp_path / "net.safetensors", structures)
    lost = potkit.evaluate(tmp_path / "net.safetensors", structures, faults=("normalizer-lost",))
    by_element = {1: -13.6, 6: -1029.48, 8: -2041.98}
    references = np.add.reduceat([by_element[int(z)] for z in structures.z], structures.ptr[:-1])
    expected = (kept.structures["predicted_energy"] - references) / 0.8
    np.testing.assert_allclose(lost.structures["predicted_energy"], expected, atol=1e-9)
    assert lost.energy_mae > 1000
    assert lost.forces_mae != kept.forces_mae
    again = potkit.evaluate(model, structures, faults=("normalizer-lost",))
    assert again.energy_mae == pytest.approx(lost.energy_mae)
    assert float(model.scale) == 0.8  # the model given stays as it was
    with pytest.raises(ConfigError, match="normalizer-lost"):
        potkit.evaluate(model, structures, faults=("lost",))


def test_evaluation_leaves_the_model_and_the_structures_as_they_were(model):
    structures, single = labelled(3), egnn().train()
    before = {k: v.clone() for k, v in single.state_dict().items()}
    arrays = {k: v.copy() for k, v in structures.arrays().items()}
    potkit.evaluate(single, structures)
    assert single.training and all(p.grad is None for p in single.parameters())
    assert all(torch.equal(v, before[k]) for k, v in single.state_dict().items())
    assert all((v == structures.arrays()[k]).all() for k, v in arrays.items())


def test_large_energies_keep_their_digits():
    """A float32 network on total energies of −10⁵ eV: only its own part is rounded, the
    references are not.
    """
    shift, s = -1e5, molecules(6)
    near, far = egnn(), egnn().set_references(dict.fromkeys(s.elements, shift))
    small, large = potkit.predict(near, s)["energy"], potkit.predict(far, s)["energy"]
    assert large.dtype == np.float64
    np.testing.assert_allclose(large - shift * s.n_atoms, small, rtol=0, atol=1e-9)


def test_predict_gives_the_vector_read_out(model):
    s = water(2)
    predicted = potkit.predict(egnn(), s, outputs=("vector",))
    assert set(predicted) == {"vector"} and predicted["vector"].shape == s.pos.shape


# -- calculator ----------------------------------------------------------------------------------
def test_the_calculator_says_what_evaluate_says(model, tmp_path):
    path = checkpoints.save(tmp_path / "m.safetensors", model)
    for structures in (molecules(3), water(1)):
        expected = potkit.predict(model, structures)
        for i, atoms in enumerate(structures.to_ase()):
            atoms.calc = potkit.calculator(path)
            assert atoms.get_potential_energy() == pytest.approx(expected["energy"][i], rel=1e-12)
            forces = expected["forces"][structures.ptr[i] : structures.ptr[i + 1]]
            np.testing.assert_allclose(atoms.get_forces(), forces, atol=1e-10)


def test_calculator_forces_are_the_derivative_of_its_energy(model):
    atoms = molecules(2)[1].to_ase()[0]
    atoms.calc = potkit.calculator(model)
    forces, step = atoms.get_forces(), 1e-4
    assert abs(forces).max() > 0.01
    for i in range(len(atoms)):
        for axis in range(3):
            energies = []
            for sign in (1, -1):
                moved = atoms.copy()
                moved.calc = atoms.calc
                moved.positions[i, axis] += sign * step
                energies.append(moved.get_potential_energy())
            slope = (energies[0] - energies[1]) / (2 * step)
            assert -slope == pytest.approx(forces[i, axis], abs=2e-6)


def test_dynamics_conserve_energy(model):
    """Velocity Verlet in float64: the total energy wanders by the square of the time step, far
    below the kinetic energy.
    """
    drift = []
    for femtoseconds, steps in ((0.5, 40), (0.25, 80)):
        atoms = molecules(2)[1].to_ase()[0]
        atoms.calc = potkit.calculator(model)
        rng = np.random.default_rng(0)
        thermal = np.sqrt(300 * units.kB / atoms.get_masses())[:, None]
        atoms.set_velocities(rng.normal(size=(len(atoms), 3)) * thermal)
        dynamics = VelocityVerlet(atoms, timestep=femtoseconds * units.fs)
        total, kinetic = [], []
        for _ in dynamics.irun(steps):
            total.append(atoms.get_total_energy())
            kinetic.append(atoms.get_kinetic_energy())
        assert len(total) == steps + 1
        drift.append(np.ptp(total))
        assert np.ptp(kinetic) > 100 * drift[-1]  # energy does flow between the two forms
    assert drift[1] < drift[0] / 3  # of second order


def test_a_calculator_does_not_change_the_model_it_was_made_from():
    single = egnn().train()
    potkit.calculator(single)
    assert single.training and next(single.parameters()).dtype == torch.float32


# -- mistakes ------------------------------------------------------------------------------------
def test_an_unknown_element_is_named_with_the_known_ones(model):
    nitrogen = potkit.Structures([7, 1], np.eye(2, 3), [0, 2], [0.0])
    for attempt in (
        lambda: potkit.evaluate(model, nitrogen),
        lambda: potkit.predict(model, nitrogen),
    ):
        with pytest.raises(DataError) as caught:
            attempt()
        assert "N" in one_line(caught.value) and "H, C, O" in str(caught.value)
    atoms = ase.Atoms("NH", positions=np.eye(2, 3))
    atoms.calc = potkit.calculator(model)
    with pytest.raises(DataError, match="no reference energy for N"):
        atoms.get_potential_energy()


def test_nothing_to_compare_with_is_an_error(model):
    s = molecules(2)
    for structures in (potkit.Structures(s.z, s.pos, s.ptr), s[:0]):
        with pytest.raises(DataError, match="no labelled structures"):
            potkit.evaluate(model, structures)


@pytest.mark.parametrize("field", ["pos", "forces", "energy"])
def test_nan_in_the_data_names_the_structure(model, field):
    s = labelled(5)
    getattr(s, field)[9 if field != "energy" else 1] = np.nan
    with pytest.raises(DataError) as caught:
        potkit.evaluate(model, s)
    assert f"{field} of structure 1" in one_line(caught.value)


def test_two_atoms_in_one_place_are_an_error_not_a_nan(model):
    s = molecules(4)
    s.pos[s.ptr[2] + 1] = s.pos[s.ptr[2]]
    with pytest.raises(DataError) as caught:
        potkit.evaluate(model, s)
    assert "structure 2" in one_line(caught.value)
    atoms = s[2].to_ase()[0]
    atoms.calc = potkit.calculator(model)
    with pytest.raises(DataError) as caught:
        atoms.get_forces()
    one_line(caught.value)


# -- GPU -----------------------------------------------------------------------------------------
@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(
    "structures", [molecules(7), water(2, per_side=3)], ids=["free", "periodic"]
)
def test_a_gpu_predicts_as_the_cpu_does(model, structures):
    import copy

    on_cpu = potkit.predict(model, structures)
    on_gpu = potkit.predict(copy.deepcopy(model), structures, device="cuda")
    for name in on_cpu:
        np.testing.assert_allclose(on_gpu[name], on_cpu[name], rtol=1e-9, atol=1e-9)


def test_short_memory_makes_no_other_numbers(monkeypatch):
    from test_microbatch import Short

    model, structures = egnn(), molecules(13)
    whole = potkit.predict(model, structures)
    short = Short(monkeypatch, room=4)
    with pytest.warns(
        UserWarning, match="evaluation: out of memory with 8 structures at once, going on with 4"
    ):
        again = potkit.predict(model, structures, batch_size=8)
    assert short.sizes == [8, 4, 4, 4, 1]
    for name in whole:
        np.testing.assert_allclose(again[name], whole[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more, got 0"),
        ({"batch_size": True}, "batch_size must be a whole number"),
        ({"device": "cuda:99"}, "device cuda:99: this machine has"),
        ({"device": "toaster"}, "device 'toaster': not to be used here"),
    ],
)
def test_settings_of_an_evaluation_are_checked_in_one_line(options, message):
    model = potkit.build("egnn", hidden=8, layers=1, seed=0)
    with pytest.raises(ConfigError) as error:
        potkit.evaluate(model, potkit.load("ani-mini")[:2], **options)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_network_without_parameters_predicts_and_is_not_trained(tmp_path):
    s = springs.water(3)
    network = springs.springs()
    assert not network.n_parameters()
    predicted = potkit.training.evaluation.predict(network, s)
    assert np.isfinite(predicted["energy"]).all() and predicted["forces"].shape == s.pos.shape
    s.energy, s.forces = predicted["energy"], predicted["forces"]
    assert potkit.evaluate(network, s).forces_mae == 0
    with pytest.raises(ConfigError, match="no parameters: there is nothing to train"):
        potkit.finetune(network, s, s, out=tmp_path / "run")
    assert not list(tmp_path.iterdir())
