"""Export: what other programs load answers as the calculator does, and mistakes are one line."""

from __future__ import annotations

import importlib.util
import zipfile

import ase
import numpy as np
import pytest
import torch
from ase.build import bulk, molecule
from tiny import egnn, molecules, water

import potkit
from potkit.cli import main as cli
from potkit.errors import CheckpointError, ConfigError, DataError
from potkit.training import checkpoints
from potkit.training import export as exports

METATOMIC = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("metatomic", "metatomic_ase"))),
    reason="metatomic-torch and metatomic-ase are not installed (extra `metatomic`)",
)
TORCH_SIM = pytest.mark.skipif(
    importlib.util.find_spec("torch_sim") is None,
    reason="torch-sim-atomistic is not installed (extra `torch-sim`)",
)
REFERENCES = {1: -13.0, 6: -1000.0, 7: -1500.0, 8: -2000.0}  # eV
SAME = 1e-5  # eV, eV/Å, eV/Å³: what the exported model may be off


def network(name, **options):
    return potkit.build(name, **{"seed": 0, **options}).set_references(REFERENCES, 2.0, shift=0.5)


def frames():
    """A molecule, an atom, a triclinic box shorter than cutoffs along one vector, and two of it."""
    rng = np.random.default_rng(0)
    ethanol = molecule("CH3CH2OH")
    ethanol.positions += rng.normal(0, 0.05, ethanol.positions.shape)
    cell = np.array([[4.5, 0, 0], [1.0, 6.0, 0], [0.5, -0.7, 7.0]])
    box = ase.Atoms("OH2NCH3", rng.uniform(0, 1, (8, 3)) @ cell, cell=cell, pbc=True)
    return [ethanol, ase.Atoms("H"), box, box.repeat((2, 1, 1))]


def own(model, atoms, dtype=torch.float64):
    calc = potkit.calculator(model, dtype=dtype)
    calc.calculate(atoms, ["energy"])
    return calc.results


# -- metatomic -----------------------------------------------------------------------------------
@METATOMIC
@pytest.mark.parametrize("name", potkit.models.names())
def test_metatomic_answers_as_the_calculator_does(name, tmp_path):
    """Energies, of atoms too, forces and stress in metatomic's calculator: free and periodic."""
    model = network(name)
    path = potkit.export(model, tmp_path / "model.pt")
    from metatomic_ase import MetatomicCalculator

    direct = model.forces_mode == "vector"
    calc = MetatomicCalculator(
        path,
        check_consistency=True,
        non_conservative="forces" if direct else False,
        do_gradients_with_energy=False,
    )
    for atoms in frames():
        expected = own(model, atoms)
        again = atoms.copy()
        again.calc = calc
        assert again.get_potential_energy() == pytest.approx(expected["energy"], abs=SAME)
        forces = expected["forces"]
        if direct:  # that calculator takes the mean of direct forces away
            forces = forces - forces.mean(0)
        np.testing.assert_allclose(again.get_forces(), forces, rtol=0, atol=SAME)
        if atoms.pbc.all() and not direct:
            np.testing.assert_allclose(again.get_stress(), expected["stress"], rtol=0, atol=SAME)
        if not direct:
            energies = again.get_potential_energies()
            np.testing.assert_allclose(energies, expected["energies"], rtol=0, atol=SAME)


@METATOMIC
def test_metatomic_of_several_systems_selected_atoms_and_float32(tmp_path):
    """What LAMMPS does with it: float32, local atoms only, no extension to be loaded."""
    model = network("painn").set_references(REFERENCES, 2.0)
    path = potkit.export(model, tmp_path / "model.pt", dtype=torch.float32)
    from metatensor.torch import Labels
    from metatomic.torch import ModelOutput
    from metatomic_ase import MetatomicCalculator

    calc = MetatomicCalculator(path, check_consistency=True)
    capabilities = calc.model().capabilities()
    assert capabilities.dtype == "float32" and capabilities.length_unit.lower() == "angstrom"
    assert capabilities.atomic_types == sorted(REFERENCES)
    assert capabilities.interaction_range == pytest.approx(3 * model.cutoff)
    with zipfile.ZipFile(path) as file:
        extensions = [n for n in file.namelist() if n.endswith(("extensions", "extensions-deps"))]
        assert extensions and all(file.read(n) == b"[]" for n in extensions)
    several = frames()
    chosen = [[0, 3], [0, 1], [2, 0], [3, 5]]  # system and atom
    selected = Labels(["system", "atom"], torch.tensor(chosen, dtype=torch.int32))
    wanted = {"energy": ModelOutput(unit="eV", sample_kind="atom")}
    block = calc.run_model(several, wanted, selected)["energy"].block()
    assert sorted(block.samples.values.tolist()) == sorted(chosen)
    for (system, atom), value in zip(block.samples.values.tolist(), block.values, strict=True):
        expected = own(model, several[system], torch.float32)["energies"][atom]
        assert float(value) == pytest.approx(expected, abs=1e-3)
    wanted = {"energy": ModelOutput(unit="eV", sample_kind="system")}
    totals = calc.run_model(several, wanted)["energy"].block().values[:, 0]
    for total, atoms in zip(totals.tolist(), several, strict=True):
        assert total == pytest.approx(own(model, atoms)["energy"], abs=2e-2)  # 10⁴ eV in float32


@METATOMIC
def test_a_file_of_anothers_is_left_and_an_exported_one_replaced(tmp_path):
    path = potkit.export(network("egnn"), tmp_path / "model.pt")
    first = path.read_bytes()
    potkit.export(network("egnn", seed=1), path)
    assert path.read_bytes() != first
    path.write_text("notes")
    with pytest.raises(DataError, match="not a metatomic model"):
        potkit.export(network("egnn"), path)
    assert path.read_text() == "notes" and [p.name for p in tmp_path.iterdir()] == ["model.pt"]


# -- torch-sim -----------------------------------------------------------------------------------
@TORCH_SIM
@pytest.mark.parametrize("name", potkit.models.names())
def test_torch_sim_answers_as_the_calculator_does(name, tmp_path):
    """All structures of a state at once: energies, forces, stress, free and periodic."""
    import torch_sim

    model = network(name)
    path = potkit.export(model, tmp_path / "model.safetensors", "torch-sim")
    wrapped = potkit.torch_sim_model(path)
    ethanol, atom, box, double = frames()
    for group in ([ethanol, atom], [box, double]):
        state = torch_sim.io.atoms_to_state(group, torch.device("cpu"), torch.float64)
        answer = wrapped(state)
        expected = [own(model, atoms) for atoms in group]
        for key, join in (("energy", np.stack), ("forces", np.concatenate)):
            values = join([e[key] for e in expected])
            np.testing.assert_allclose(answer[key].numpy(), values, rtol=0, atol=SAME)
        energies = np.concatenate([e["energies"] for e in expected])
        np.testing.assert_allclose(answer["energies"].numpy(), energies, rtol=0, atol=SAME)
        if model.forces_mode == "vector":
            assert "stress" not in answer
        elif group[0].pbc.any():
            voigt = answer["stress"].numpy().reshape(2, 9)[:, [0, 4, 8, 5, 2, 1]]
            stress = np.stack([e["stress"] for e in expected])
            np.testing.assert_allclose(voigt, stress, rtol=0, atol=SAME)
        else:
            assert bool(answer["stress"].isnan().all())


@TORCH_SIM
@pytest.mark.parametrize("name", potkit.models.names())
def test_torch_sims_own_validation_passes(name):
    from torch_sim.models.interface import validate_model_outputs

    model = network(name).set_references({14: -7800.0, 26: -34000.0}, 2.0)
    wrapped = potkit.torch_sim_model(model)
    validate_model_outputs(wrapped, torch.device("cpu"), torch.float64)


@TORCH_SIM
def test_torch_sim_runs_dynamics_and_says_what_is_wrong(tmp_path):
    import torch_sim

    model = network("egnn").set_references({14: -7800.0})
    wrapped = potkit.torch_sim_model(model)
    final = torch_sim.integrate(
        system=[bulk("Si"), bulk("Si", cubic=True)],
        model=wrapped,
        integrator=torch_sim.integrators.nve,
        n_steps=2,
        timestep=0.001,
        temperature=300.0,
    )
    assert final.energy.shape == (2,) and bool(final.energy.isfinite().all())
    state = torch_sim.io.atoms_to_state([bulk("Fe")], torch.device("cpu"), torch.float64)
    with pytest.raises(DataError, match="no reference energy for Fe"):
        wrapped(state)
    with pytest.raises(DataError, match="float32 positions"):
        wrapped(torch_sim.io.atoms_to_state([bulk("Si")], torch.device("cpu"), torch.float32))
    direct = potkit.torch_sim_model(network("gns"))
    assert not direct.compute_stress
    with pytest.raises(NotImplementedError, match="has no stress"):
        direct.compute_stress = True
    with pytest.raises(ConfigError, match="has no stress"):
        potkit.torch_sim_model(network("gns"), compute_stress=True)


# -- mistakes ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(format="lammps"), "unknown format 'lammps'; there are metatomic, torch-sim"),
        (dict(dtype=torch.float16), "dtype must be"),
        (dict(format="torch-sim", device="tpu"), "tpu"),
    ],
)
def test_wrong_settings_write_nothing(options, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        potkit.export(egnn(), tmp_path / "out", **options)
    assert not list(tmp_path.iterdir())


def test_a_network_that_reads_charges_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="total charges"):
        potkit.export(network("schnet", charge=True), tmp_path / "out", "torch-sim")
    assert not list(tmp_path.iterdir())


@TORCH_SIM
@pytest.mark.parametrize("name", ["denoise-schnet", "denoise-egnn", "masked-egnn"])
def test_published_networks_that_go_by_formal_charges_are_refused(name, tmp_path):
    model = potkit.build(f"published/{name}", "published", seed=0)
    if name.startswith("denoise"):
        with pytest.raises(ConfigError, match="reads formal charges of atoms"):
            potkit.torch_sim_model(model)
        with pytest.raises(ConfigError, match="reads formal charges of atoms"):
            potkit.export(model, tmp_path / "out", "torch-sim")
        assert not list(tmp_path.iterdir())
        return
    import torch_sim

    wrapped = potkit.torch_sim_model(model)
    assert not wrapped.compute_stress
    with pytest.raises(NotImplementedError, match="has no stress"):
        wrapped.compute_stress = True
    boxes = water(2).to_ase()
    found = wrapped(torch_sim.io.atoms_to_state(boxes, torch.device("cpu"), torch.float64))
    for energy, atoms in zip(found["energy"].tolist(), boxes, strict=True):
        assert energy == pytest.approx(own(model, atoms)["energy"], abs=1e-9)


@pytest.mark.parametrize(("extra", "format"), [("metatomic", "metatomic"), ("torch-sim", None)])
def test_a_missing_package_is_named_with_its_extra(extra, format, tmp_path, monkeypatch):
    monkeypatch.setitem(exports.NEEDED, extra, ("no_such_package_here",))
    with pytest.raises(ConfigError, match=rf"pip install 'potkit\[{extra}\]'"):
        if format:
            potkit.export(egnn(), tmp_path / "out.pt", format)
        else:
            potkit.torch_sim_model(egnn())
    assert not list(tmp_path.iterdir())


def test_only_pretrained_weights_are_refused(tmp_path):
    run = potkit.pretrain(
        egnn(),
        molecules(4),
        potkit.Denoise(sigma=0.1),
        potkit.TrainConfig(steps=1, batch_size=2, progress=False),
        out=tmp_path / "run",
    )
    for source in (run.checkpoint, run, run.model, checkpoints.load(run.checkpoint)):
        with pytest.raises(CheckpointError, match="was only pretrained"):
            potkit.export(source, tmp_path / "out.safetensors", "torch-sim")


def test_from_a_shell(tmp_path, capsys):
    model = network("egnn")
    path = checkpoints.save(tmp_path / "model.safetensors", model)
    out = tmp_path / "weights.safetensors"
    with pytest.raises(SystemExit) as ended:
        cli.main(["export", str(path), "--format", "torch-sim", "--out", str(out)])
    assert ended.value.code == 0 and str(out) in capsys.readouterr().out
    again = checkpoints.load(out)
    atoms = frames()[0]
    assert own(again, atoms)["energy"] == pytest.approx(own(model, atoms)["energy"], abs=1e-9)
    for words, message in [
        ([str(tmp_path / "absent"), "--out", str(out)], "no such checkpoint"),
        ([str(path), "--out", str(tmp_path / "model.bin")], "to end in .pt"),
    ]:
        with pytest.raises(SystemExit) as ended:
            cli.main(["export", *words])
        error = capsys.readouterr().err.strip()
        assert ended.value.code == 1 and error.startswith("error: ") and message in error
        assert len(error.splitlines()) == 1
