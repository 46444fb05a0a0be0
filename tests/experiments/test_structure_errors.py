"""The errors of each test structure, and what a test set says, against the runs and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import potkit
from potkit.errors import ConfigError, DataError
from potkit.experiments import experiment as experiments
from potkit.experiments import structure_errors
from potkit.structures.elements import SYMBOLS
from potkit.training.evaluation import evaluate

TINY = {"name": "egnn", "preset": "small", "hidden": 8, "layers": 1, "radial": 4, "cutoff": 3.0}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """An experiment of a few steps, and its table of runs."""
    structures = potkit.load("rmd17-mini")
    train, test = structures.split((0.9, 0.1), by="block")
    config = potkit.TrainConfig(steps=2, batch_size=4, progress=False)
    experiment = experiments.Experiment(
        model=TINY,
        train=train,
        test=test[test.system < 2],
        labels=[10],
        pretrain_on=train[:50],
        seeds=[0, 1],
        objectives={"denoise": potkit.Denoise(sigma=0.1)},
        pretrain_config=config,
        finetune_config=config,
        store=tmp_path_factory.mktemp("store"),
        longer=None,
        columns={"set": "rmd17"},
    )
    return experiment, experiments.run(experiment, progress=False)


def test_errors_of_structures_average_to_those_of_the_runs(finished):
    experiment, runs = finished
    errors = structure_errors.of_experiments([experiment], runs)
    assert len(errors) == 2 * len(experiment.test)
    for arm, part in errors.groupby("arm"):
        of_arm = runs[runs["arm"] == arm]
        assert part["energy_mae"].mean() == pytest.approx(of_arm["energy_mae"].mean(), rel=1e-5)
        forces = np.average(part["forces_mae"], weights=part["atoms"])
        assert forces == pytest.approx(of_arm["forces_mae"].mean(), rel=1e-5)
    names = {experiment.test.system_names()[i] for i in experiment.test.system}
    assert set(errors["cluster"]) == names and set(errors["set"]) == {"rmd17"}


def test_a_trajectory_falls_into_stretches_and_a_large_set_is_cut(finished):
    experiment, runs = finished
    whole = structure_errors.of_experiments([experiment], runs, block={"rmd17-mini": 15})
    sizes = whole[whole["arm"] == "scratch"].groupby("cluster").size()
    assert len(sizes) == len(experiment.test) // 15 and (sizes == 15).all()
    assert set(structure_errors.summarise(whole)["of"]) == {"stretches"}
    few = structure_errors.of_experiments([experiment], runs, limit=7)
    assert (few.groupby("arm").size() == 7).all()


def test_errors_of_a_run_are_kept_and_found_without_its_weights(finished):
    experiment, runs = finished
    of_networks = structure_errors.of_experiments([experiment], runs[runs["seed"] == 0])
    folder = experiment.store / runs["run"].iloc[0]
    path = folder / f"test-{experiment.test.fingerprint()}.csv"
    assert len(pd.read_csv(path)) == len(experiment.test)
    path.unlink()
    again = structure_errors.of_experiments([experiment], runs[runs["seed"] == 0])
    numbers = again.select_dtypes(float).columns
    assert np.allclose(again[numbers], of_networks[numbers], rtol=2e-4, atol=1e-5, equal_nan=True)
    structure_errors.keep(
        folder, experiment.test, evaluate(folder, experiment.test, keep_forces=True)
    )
    path.write_text(path.read_text()[:200])  # not whole: from the network
    assert structure_errors.kept(folder, experiment.test) is None
    structure_errors.keep(
        folder, experiment.test, evaluate(folder, experiment.test, keep_forces=True)
    )
    weights = {p: p.read_bytes() for p in folder.glob("*.safetensors")}
    for p in weights:
        p.unlink()
    found = structure_errors.of_experiments([experiment], runs, limit=7)
    assert (found.groupby("arm").size() == 7).all()
    for p, content in weights.items():
        p.write_bytes(content)


def test_errors_by_molecule_size_element_and_group(finished):
    """Every group's errors are those of its structures and atoms; together they are the whole."""
    experiment, runs = finished
    test = experiment.test
    names = [test.system_names()[i] for i in test.system]
    late = ["late" if i >= len(test) // 2 else "early" for i in range(len(test))]
    errors = structure_errors.of_experiments([experiment], runs, groups=[{"half": late}])
    table = structure_errors.breakdowns(errors)
    assert set(table["by"]) == {"molecule", "size", "element", "half"}
    whole = structure_errors.summarise(errors).set_index(["arm", "metric"])["mean"]
    scratch = table[table["arm"] == "scratch"]
    forces = scratch[scratch["metric"] == "forces_mae"].set_index(["by", "group"])
    assert set(forces.loc["molecule"].index) == set(names)
    assert list(forces.loc["half"].index) == ["early", "late"]
    for by in ("molecule", "half"):
        sizes = errors[errors["arm"] == "scratch"]
        label = sizes["cluster"] if by == "molecule" else sizes["half"]
        atoms = sizes.groupby(label, sort=False)["atoms"].sum()
        mean = np.average(forces.loc[by].loc[atoms.index, "mean"], weights=atoms)
        assert mean == pytest.approx(whole["scratch", "forces_mae"], rel=1e-6)
    atoms = {SYMBOLS[z]: int((test.z == z).sum()) for z in test.elements}
    assert set(forces.loc["element"].index) == set(atoms)
    mean = np.average(forces.loc["element"].loc[list(atoms), "mean"], weights=list(atoms.values()))
    assert mean == pytest.approx(whole["scratch", "forces_mae"], rel=1e-6)
    # an energy belongs to no element
    assert set(scratch.loc[scratch["by"] == "element", "metric"]) == {"forces_mae"}
    with pytest.raises(ConfigError, match="no such column"):
        structure_errors.breakdown(errors, "colour")
    with pytest.raises(DataError, match="no errors of single elements"):
        plain = errors[[c for c in errors if not c.startswith("forces_mae_")]]
        structure_errors.breakdown(plain, "element")


@pytest.mark.parametrize(
    ("text", "element", "count"),
    [("C2H6O", "C", 2), ("C2H6O", "O", 1), ("CCl4", "C", 1), ("CCl4", "Cl", 4), ("NaCl", "N", 0)],
)
def test_atoms_of_an_element_in_a_formula(text, element, count):
    assert structure_errors._count(text, element) == count


def test_what_a_test_set_says_by_hand():
    """Two molecules of two structures, one network twice as good as the other."""
    base = pd.DataFrame(
        {
            "labels": 10,
            "arm": "scratch",
            "structure": range(6),
            "cluster": list("aabbcc"),
            "atoms": [2, 2, 4, 4, 6, 6],
            "energy_mae": [1.0, 2.0, 3.0, 4.0, 5.0, 6.0],
            "relative_energy_mae": [0.5, 0.5, np.nan, np.nan, 1.5, 1.5],
            "forces_mae": [0.1, 0.2, 0.3, 0.2, 0.1, 0.4],
        }
    )
    errors = ["energy_mae", "relative_energy_mae", "forces_mae"]
    half = base.assign(arm="denoise", **{c: 0.5 * base[c] for c in errors})
    table = structure_errors.summarise(pd.concat([base, half])).set_index(["arm", "metric"])
    of_scratch = table.loc["scratch", "mean"]
    assert of_scratch["energy_mae"] == pytest.approx(3.5)
    per_atom = np.mean([1 / 2, 2 / 2, 3 / 4, 4 / 4, 5 / 6, 6 / 6])
    assert of_scratch["energy_mae_per_atom"] == pytest.approx(per_atom)
    # molecule b has no relative energies
    assert of_scratch["relative_energy_mae"] == pytest.approx(1.0)
    assert table.loc[("scratch", "relative_energy_mae"), "structures"] == 4
    weighted = np.average(base["forces_mae"], weights=base["atoms"])
    assert of_scratch["forces_mae"] == pytest.approx(weighted)
    assert np.allclose(table.loc["denoise", "change_%"], -50.0)
    assert (table.loc["scratch", "clusters"][["energy_mae", "forces_mae"]] == 3).all()
    assert set(table["of"]) == {"systems"}


def test_labels_without_forces_leave_forces_out():
    table = pd.DataFrame(
        {
            "labels": 5,
            "arm": "scratch",
            "structure": range(4),
            "cluster": list("aabb"),
            "atoms": 3,
            "energy_mae": [1.0, 2.0, 1.5, 0.5],
            "relative_energy_mae": [0.2, 0.2, 0.4, 0.4],
            "forces_mae": np.nan,
        }
    )
    assert "forces_mae" not in set(structure_errors.summarise(table)["metric"])
