"""Grids of runs: the arms, the run store, failures, and YAML experiments."""

from __future__ import annotations

import copy
import dataclasses
import json

import numpy as np
import pytest
import torch

import potkit
from potkit.errors import ConfigError, DataError
from potkit.experiments import experiment as experiments
from potkit.experiments import yaml_form
from potkit.experiments.tasks import Task, finetune_folder, longer_steps
from potkit.structures.store import concatenate

TINY = {"name": "egnn", "preset": "small", "hidden": 8, "layers": 1, "radial": 4, "cutoff": 3.0}


@pytest.fixture(scope="module")
def structures():
    return potkit.load("ani-mini")[:200]


def grid(structures, store, **changes):
    config = potkit.TrainConfig(steps=3, batch_size=4, progress=False)
    values = dict(
        model=TINY,
        train=structures[:100],
        test=structures[150:],
        labels=[10, 20],
        pretrain_on=structures[:100],
        seeds=[0, 1],
        objectives={"denoise": potkit.Denoise(sigma=0.1)},
        pretrain_config=config,
        finetune_config=config,
        store=store,
    )
    return experiments.Experiment(**{**values, **changes})


def test_arms_share_labels_and_budget(structures, tmp_path):
    experiment = grid(structures, tmp_path)
    table = experiments.run(experiment, progress=False)
    assert list(table["arm"].cat.categories) == ["scratch", "scratch-longer", "denoise"]
    assert len(table) == 3 * 2 * 2 and (table["status"] == "ok").all()
    scratch, denoise = (table[table.arm == a] for a in ("scratch", "denoise"))
    assert (scratch["steps"] == 3).all() and (denoise["steps"] == 3).all()
    assert (table[table.arm == "scratch-longer"]["steps"] > 3).all()
    assert (denoise["pretrain_seconds"] > 0).all() and (scratch["pretrain_seconds"] == 0).all()
    # another start, other numbers; the same seeds and labels otherwise
    assert not np.allclose(
        scratch["forces_mae"].to_numpy(), denoise["forces_mae"].to_numpy(), rtol=1e-6
    )
    # what pairs the arms: of a budget and seed all have the same structures, to train and to judge
    trained_on: dict[tuple[int, int], set[tuple[str, str]]] = {}
    for row in table.itertuples():
        record = json.loads((experiment.store / row.run / "run.json").read_text())
        identity = record["identity"]
        sets = trained_on.setdefault((row.labels, row.seed), set())
        sets.add((identity["data"], identity["valid"]))
    assert set(trained_on) == {(labels, seed) for labels in (10, 20) for seed in (0, 1)}
    assert all(len(sets) == 1 for sets in trained_on.values())
    # and other seeds have others, as have other budgets
    data, valid = zip(*(pair for sets in trained_on.values() for pair in sets), strict=True)
    assert len(set(data)) == len(set(valid)) == len(trained_on)


def test_label_budgets_are_nested_and_validation_is_part_of_them(structures, tmp_path):
    experiment = grid(structures, tmp_path)
    names = {}
    for count in (10, 20):
        train, valid = experiment.labelled(count, seed=0)
        assert len(train) + len(valid) == count and len(valid) == count // 10
        names[count] = {tuple(np.round(s.pos.ravel(), 4)) for part in (train, valid) for s in part}
        assert len(names[count]) == count, (
            "a structure drawn twice, or shared by training and validation"
        )
    assert names[10] < names[20]


def test_arms_start_from_the_same_weights(structures, tmp_path):
    experiment = grid(structures, tmp_path)
    scratch, denoise = experiment.build(0), experiment.build(0, "denoise")
    for a, b in zip(scratch.parameters(), denoise.parameters(), strict=True):
        assert a.equal(b)
    assert not all(
        a.equal(b)
        for a, b in zip(scratch.parameters(), experiment.build(1).parameters(), strict=True)
    )


def test_finished_runs_are_loaded_not_repeated(structures, tmp_path, monkeypatch):
    experiment = grid(structures, tmp_path, longer="steps")
    first = experiments.run(experiment, progress=False)
    # any training or evaluation would now fail
    monkeypatch.setattr(potkit.models.Potential, "forward", None)
    again = experiments.run(experiment, progress=False)
    columns = [c for c in first if c not in ("pretrain_seconds",)]
    potkit_equal = first[columns].astype(str).equals(again[columns].astype(str))
    assert potkit_equal


def test_a_longer_arm_in_steps_has_the_pretrainings_steps_on_top(structures, tmp_path):
    table = experiments.run(grid(structures, tmp_path, longer="steps", labels=[10]), progress=False)
    assert (table[table.arm == "scratch-longer"]["steps"] == 6).all()


def test_processes_give_the_numbers_of_one(structures, tmp_path):
    one = experiments.run(
        grid(structures, tmp_path / "a", labels=[10], longer=None), progress=False
    )
    two = experiments.run(
        grid(structures, tmp_path / "b", labels=[10], longer=None, jobs=2), progress=False
    )
    for metric in ("energy_mae", "forces_mae"):
        np.testing.assert_allclose(one[metric], two[metric], rtol=1e-5)


def test_a_failed_run_is_reported_and_the_others_go_on(structures, tmp_path):
    experiment = grid(
        structures,
        tmp_path,
        objectives={"masked": potkit.Masked(elements=("Xe",)), "denoise": potkit.Denoise(0.1)},
        labels=[10],
    )
    table = experiments.run(experiment, progress=False)
    bad = table[table.arm == "masked"]
    assert (bad["status"] == "failed").all() and (
        table[table.arm != "masked"]["status"] == "ok"
    ).all()
    summary = potkit.compare(table)
    assert "masked" not in set(summary["arm"])


def test_an_arm_may_take_over_its_energy_head(structures, tmp_path):
    arms = {"a": potkit.Denoise(0.1), "b": potkit.Denoise(0.1)}
    both = {"a": "gradient", "b": "gradient"}
    table = experiments.run(
        grid(
            structures,
            tmp_path,
            objectives=arms,
            vectors=both,
            parts={"b": ["backbone", "energy_head"]},
            labels=[10],
            longer=None,
        ),
        progress=False,
    )
    a, b = (table[table.arm == arm].set_index("seed") for arm in "ab")
    assert (a["pretrain_loss"] == b["pretrain_loss"]).all(), "one pretraining serves both arms"
    assert (a["run"] != b["run"]).all() and (a["forces_mae"] != b["forces_mae"]).all()


@pytest.mark.parametrize(
    "change, word",
    [
        ({"labels": [1000]}, "1000"),
        ({"longer": "hours"}, "hours"),
        ({"pretrain_on": None}, "pretrain_on"),
        ({"objectives": {"scratch": potkit.Denoise(0.1)}}, "scratch"),
        ({"seeds": []}, "seeds"),
        ({"parts": {"typo": ["backbone"]}}, "typo"),
        ({"model": {"name": "egnn", "seed": 3}}, "model has a seed"),
        ({"finetune_config": potkit.TrainConfig(devices=2)}, r"finetune\.devices is 2.* by jobs"),
        ({"pretrain_config": potkit.TrainConfig(nodes=3)}, r"pretrain\.nodes is 3.* by jobs"),
    ],
)
def test_impossible_grids_are_refused_in_one_line(structures, tmp_path, change, word):
    with pytest.raises(ConfigError, match=word) as caught:
        grid(structures, tmp_path, **change)
    assert "\n" not in str(caught.value)


SPEC = """
name: tiny
model: {name: egnn, preset: small, hidden: 8, layers: 1}
pretrain_on: {data: ani-mini, limit: 60, near_minimum: 3.0}
train: {data: ani-mini, limit: 60}
test: {data: ani-mini, limit: 30, systems: [C, CC]}
labels: [20]
seeds: [0]
arms:
  denoise 0.1 Å: {objective: denoise, sigma: 0.1}
pretrain: {steps: 2, batch_size: 8}
finetune: {steps: 2, batch_size: 8}
"""


def test_experiment_from_yaml(tmp_path):
    path = tmp_path / "tiny.yaml"
    path.write_text(SPEC)
    experiment = yaml_form.read(path).experiment(store=tmp_path / "store")
    assert len(experiment.train) == 60 and set(
        np.array(experiment.test.system_names())[experiment.test.system]
    ) <= {"C", "CC"}
    assert experiment.objectives["denoise 0.1 Å"] == potkit.Denoise(sigma=0.1)
    assert experiment.finetune_config.steps == 2


@pytest.mark.parametrize(
    "old, new, word",
    [
        ("labels:", "lables:", "lables"),
        ("sigma: 0.1", "sigma: -0.1", "sigma"),
        ("hidden: 8", "hiden: 8", "hiden"),
        ("steps: 2, batch_size: 8}\nfinetune", "stepz: 2}\nfinetune", "stepz"),
        ("data: ani-mini, limit: 30", "data: no-such-set", "no-such-set"),
        ("data: ani-mini, limit: 30", "data: $POTKIT_NOT_SET/x.xyz", "POTKIT_NOT_SET"),
        ("[C, CC]", "[Nonsense]", "Nonsense"),
    ],
)
def test_mistakes_in_yaml_are_one_line(tmp_path, monkeypatch, old, new, word):
    monkeypatch.delenv("POTKIT_NOT_SET", raising=False)
    path = tmp_path / "tiny.yaml"
    assert old in SPEC
    path.write_text(SPEC.replace(old, new))
    with pytest.raises((ConfigError, DataError), match=word) as caught:
        yaml_form.read(path).experiment(store=tmp_path)
    assert "\n" not in str(caught.value)


def test_test_structures_in_the_pretraining_set_are_reported(structures, tmp_path, capsys):
    clean = grid(structures, tmp_path)
    assert experiments.leakage([clean]) == []
    leaking = dataclasses.replace(
        clean, pretrain_on=concatenate([clean.pretrain_on, clean.test[:3]])
    )
    n = len(clean.test)
    assert experiments.leakage([clean, leaking]) == [
        f"test and pretraining set: 3 of {n} structures ({300 / n:.2f} %) "
        "are in both sets within 0.001 Å"
    ]


def test_a_test_set_can_leave_out_what_training_has(structures, tmp_path):
    structures[:40].save(tmp_path / "train.h5")
    structures[30:60].save(tmp_path / "test.h5")
    kept = yaml_form.DataSpec(
        data=str(tmp_path / "test.h5"), without=str(tmp_path / "train.h5")
    ).load()
    assert len(kept) == 20
    np.testing.assert_array_equal(kept.energy, structures[40:60].energy)


def test_every_shipped_experiment_is_sound(repository, structures, monkeypatch, tmp_path):
    """All settings, arms and networks of data/results/*.yaml; the data are stood in for."""
    pool = potkit.load("ani-mini")
    monkeypatch.setattr(yaml_form.DataSpec, "load", lambda self: pool)
    files = [
        f
        for f in sorted((repository / "data" / "results").glob("*.yaml"))
        if "potkit compare" in f.read_text()
    ]
    assert len(files) >= 4
    for path in files:
        built = yaml_form.read(path).experiments(store=tmp_path)
        assert (
            yaml_form.read(path).name == path.stem
            and f"potkit compare data/results/{path.name}" in path.read_text()
        )
        for experiment in built:
            assert "scratch" in experiment.arms
            # whoever compares arms needs seeds
            assert len(experiment.seeds) >= 3 or not experiment.objectives


@pytest.mark.parametrize("number", [1, 2])
def test_every_run_has_the_threads_the_experiment_says(structures, tmp_path, number):
    """A study fixes one thread a run, whatever the process has; the record says so."""
    before = torch.get_num_threads()
    one = grid(structures, tmp_path, labels=[10], seeds=[0], longer=None, threads=number)
    experiments.run(one, progress=False)
    assert torch.get_num_threads() == before
    records = [json.loads(path.read_text()) for path in tmp_path.glob("*/run.json")]
    assert len(records) == 3
    assert all(record["machine"]["threads"] == number for record in records)


def test_threads_are_a_positive_number(structures, tmp_path):
    with pytest.raises(ConfigError, match="threads"):
        grid(structures, tmp_path, threads=0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": [10, 20, 10]}, "labels has 10 twice"),
        ({"search": {"lr": [1e-3, 0.001]}, "tuning_seeds": [5]}, "search lr has a value twice"),
        ({"search": {"lr": [1e-3, 2e-3]}, "tuning_seeds": [5, 5]}, "tuning_seeds has 5 twice"),
        (
            {"primary": {"arm": "scratch", "against": "denoise", "metric": "forces_mae"}},
            "'scratch' is a baseline .arm: denoise, against: scratch.",
        ),
    ],
)
def test_what_would_be_run_twice_or_never_is_refused(structures, tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        grid(structures, tmp_path, **changes)


def test_without_its_pretraining_scratch_longer_has_no_length(structures, tmp_path):
    """It is left out then; as long as scratch, it would be scratch under another name."""
    experiment = grid(structures, tmp_path, longer="steps")
    assert longer_steps(experiment, {}, 0, 10) is None


def test_energies_of_isolated_atoms_in_the_file_are_part_of_a_run(structures, tmp_path):
    folders = []
    for energy in (-13.6, -13.7):
        own = copy.copy(structures)
        own.info = own.info | {"isolated_in_file": True, "atomic_energies": {"H": energy}}
        folders.append(finetune_folder(grid(own, tmp_path), Task("finetune", "scratch", 0, 10)))
    assert folders[0] != folders[1]
