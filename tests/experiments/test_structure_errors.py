"""The errors of each test structure, and what a test set says, against the runs and by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import potkit
from potkit.experiments import experiment as experiments
from potkit.experiments import structure_errors

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
