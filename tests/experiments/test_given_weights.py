"""Arms that start from given weights: shipped ones by name, a finished run's folder, a file."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import ase.io
import pytest
import yaml
from grids import DATA, TINY, grid
from tiny import one_line

import potkit
from potkit.errors import ConfigError
from potkit.experiments import dry_run, experiment, shipped, statistics, tasks, yaml_form
from potkit.experiments.arms import DOUBLED
from potkit.report import sentences

ROOT = Path(__file__).resolve().parents[2]
STILL = dict(objectives={}, variants={}, pretrain_on=None)


@pytest.fixture
def run(tmp_path) -> potkit.Run:
    """A finished pretraining of the network of `grids.grid`."""
    config = potkit.TrainConfig(steps=3, batch_size=4, progress=False, device="cpu")
    options = {k: v for k, v in TINY.items() if k != "name"}
    model = potkit.build("egnn", seed=9, **options)
    return potkit.pretrain(model, DATA[:24], potkit.Denoise(0.1), config, tmp_path / "given")


def test_an_arm_from_given_weights_is_the_fine_tuning_from_them(tmp_path, run):
    made = grid(tmp_path / "store", weights={"given": str(run.path)}, seeds=[0], **STILL)
    assert list(made.arms) == ["scratch", "given"]
    table = experiment.run(made, progress=False).set_index("arm")
    assert (table["status"] == "ok").all(), table["error"].tolist()
    assert table["forces_mae"].nunique() == 2
    assert table["weights"].fillna("").to_dict() == {"scratch": "", "given": str(run.path)}
    # the same by hand
    train, valid = made.labelled(10, 0)
    config = made.finetune_config.replace(seed=0)
    by_hand = potkit.finetune(
        made.build(0), train, valid, config, run.path, tmp_path / "hand", made.supervised
    )
    errors = potkit.evaluate(by_hand.model, made.test).to_dict()
    assert errors["forces_mae"] == pytest.approx(table.loc["given", "forces_mae"], rel=1e-6)


def test_scratch_keeps_its_runs_and_other_weights_are_another_run(tmp_path, run):
    plain, given = grid(tmp_path), grid(tmp_path, weights={"given": str(run.path)})
    scratch = tasks.Task("finetune", "scratch", 0, 10)
    names = {tasks.finetune_folder(e, scratch).name for e in (plain, given)}
    assert len(names) == 1
    task = tasks.Task("finetune", "given", 0, 10)
    before = tasks.finetune_folder(given, task).name
    source = run.path / "best.safetensors"
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes(source.read_bytes())
    elsewhere = grid(tmp_path, weights={"given": str(copy)})
    assert tasks.finetune_folder(elsewhere, task).name == before  # by content, not by place
    source.write_bytes(source.read_bytes() + b"\0")
    assert tasks.finetune_folder(given, task).name != before
    with_heads = grid(tmp_path, weights={"given": str(copy)}, parts={"given": ["backbone"]})
    assert tasks.finetune_folder(with_heads, task).name == before
    with_heads = grid(
        tmp_path, weights={"given": str(copy)}, parts={"given": ["backbone", "energy_head"]}
    )
    assert tasks.finetune_folder(with_heads, task).name != before


def test_the_card_of_shipped_weights_says_what_is_taken_over(tmp_path):
    model = {"name": "egnn", "preset": "small", "cutoff": 4.0, "vector": "gradient"}
    made = grid(
        tmp_path,
        model=model,
        weights={"denoise": "egnn-small-denoise", "cheap": "egnn-small-cheap-labels"},
        **STILL,
    )
    assert made.arms["denoise"].parts == ("backbone",)
    assert made.arms["cheap"].parts == ("backbone", "energy_head")


def test_there_is_no_scratch_longer_without_a_pretraining(tmp_path, run):
    made = grid(tmp_path, weights={"given": str(run.path)}, seeds=[0], convergence=True, **STILL)
    rows = dry_run.table([dry_run.Planned({}, made)], measure=False)
    assert rows["runs"].sum() == 3  # scratch, scratch for twice the steps, given
    table = experiment.run(made, progress=False)
    assert set(table["arm"]) == {"scratch", "scratch, twice the steps", "given"}
    assert table["pretrain_seconds"].eq(0).all()
    # the check of convergence is a contrast where it is asked for, and only there
    assert DOUBLED not in set(statistics.effects(table)[["arm", "against"]].to_numpy().ravel())
    asked = statistics.effects(table, contrasts=[("given", DOUBLED)])
    assert set(zip(asked["arm"], asked["against"], strict=True)) == {("given", DOUBLED)}
    both = grid(tmp_path, weights={"given": str(run.path)}, seeds=[0])
    arms = experiment.run(both, progress=False)["arm"]
    assert set(arms) == {"scratch", "scratch-longer", "denoise", "frozen", "given"}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"weights": {"given": "nobody"}}, "no such checkpoint, run folder or pretrained weights"),
        ({"weights": {"given": "egnn-small-denoise"}}, "has shape|was made with|is missing"),
        ({"weights": {"given": "schnet-small-denoise"}}, "holds schnet, the model is egnn"),
        ({"weights": {"denoise": "egnn-small-denoise"}}, "two arms are named 'denoise'"),
        ({"weights": {"scratch": "egnn-small-denoise"}}, "two arms are named 'scratch'"),
    ],
)
def test_what_does_not_fit_is_said_before_anything_runs(tmp_path, changes, said):
    with pytest.raises(ConfigError, match=said) as caught:
        grid(tmp_path, **changes)
    one_line(caught.value)


def test_a_variant_starts_from_the_same_weights(tmp_path, run):
    variants = {"slow": {"like": "given", "lr": 1e-4}}
    made = grid(tmp_path, **STILL | {"weights": {"given": str(run.path)}, "variants": variants})
    assert made.arms["slow"].weights == str(run.path)
    assert made.arms["slow"].pretrained


def test_workers_elsewhere_find_the_weights(tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = {"name": "egnn", "preset": "small", "cutoff": 4.0, "vector": "gradient"}
    plain = grid("store", weights={"given": "given"}, **STILL)
    moved = experiment._anywhere(plain)
    assert moved.weights == {"given": str(run.path.resolve())} and moved.store.is_absolute()
    task = tasks.Task("finetune", "given", 0, 10)
    assert tasks.finetune_folder(moved, task).name == tasks.finetune_folder(plain, task).name
    named = grid("store", model=model, weights={"shipped": "egnn-small-denoise"}, **STILL)
    assert experiment._anywhere(named).weights == named.weights


def test_leakage_from_what_the_weights_have_seen(tmp_path, run):
    lines = experiment.leakage([grid(tmp_path, weights={"given": str(run.path)}, **STILL)])
    assert any("not checked" in line and str(run.path) in line for line in lines)
    pool = potkit.load("ani-mini")
    model = {"name": "egnn", "preset": "small", "cutoff": 4.0, "vector": "gradient"}
    weights = {"given": "egnn-small-denoise"}
    seen = grid(tmp_path, model=model, train=pool[:20], test=pool[20:30], weights=weights, **STILL)
    lines = experiment.leakage([seen])
    assert any("the set that egnn-small-denoise was pretrained on" in line for line in lines)
    dft = potkit.load("dft-mini")
    unseen = grid(tmp_path, model=model, train=dft[:20], test=dft[200:], weights=weights, **STILL)
    assert experiment.leakage([unseen]) == []


def test_two_arms_are_a_declared_contrast(tmp_path, run):
    weights = {"given": str(run.path)}
    declared = {"arm": "given", "against": "denoise", "metric": "forces_mae"}
    effects = statistics.effects(
        experiment.run(grid(tmp_path, weights=weights, primary=declared), progress=False)
    )
    first = effects[effects["family"] == "primary"]
    assert first[["arm", "against"]].to_numpy().tolist() == [["given", "denoise"]]
    for against, said in (("given", "with itself"), ("nobody", "'nobody' is none of")):
        with pytest.raises(ConfigError, match=said):
            grid(tmp_path, weights=weights, primary=declared | {"against": against})


def test_elements_the_weights_have_not_seen_are_named_once(tmp_path):
    model = {"name": "egnn", "preset": "small", "cutoff": 4.0, "vector": "gradient"}
    weights = {"given": "egnn-small-denoise"}
    varied = potkit.load("spice-mini")[:200]
    made = grid(tmp_path, model=model, train=varied, test=varied[:4], weights=weights, **STILL)
    (line,) = experiment.unseen_elements([made, made])
    assert "egnn-small-denoise was not pretrained on" in line and "H, C, N, O" in line
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table = experiment.run(made, progress=False)
    assert (table["status"] == "ok").all(), table["error"].tolist()
    plain = grid(tmp_path, model=model, weights=weights, **STILL)
    assert experiment.unseen_elements([plain]) == []


def test_intervals_say_that_the_pretraining_is_one(tmp_path, run):
    made = grid(tmp_path, weights={"given": str(run.path)}, **STILL)
    table = experiment.run(made, progress=False)
    effects = statistics.effects(table)
    assert set(effects["weights"]) == {str(run.path)}
    said = sentences.verdicts(effects)
    assert "Changes over 2 seeds" in said and "pretrainings" not in said
    assert "of one pretraining each, and what another would give is in no interval" in said
    plain = statistics.effects(experiment.run(grid(tmp_path), progress=False))
    assert "weights" not in plain and "Changes over 2 pretrainings" in sentences.verdicts(plain)


def test_each_experiment_of_a_grid_has_its_own_weights(tmp_path, run):
    copy = tmp_path / "copy.safetensors"
    copy.write_bytes((run.path / "best.safetensors").read_bytes())
    cells = [
        grid(tmp_path, weights={"given": str(path)}, columns={"from": name}, **STILL)
        for name, path in (("folder", run.path), ("file", copy))
    ]
    effects = statistics.effects(experiment.run(cells, progress=False))
    named = effects.set_index("from")["weights"].to_dict()
    assert named == {"folder": str(run.path), "file": str(copy)}


# --- as a file -----------------------------------------------------------------------------------


def spec(tmp_path, **changes) -> Path:
    values = dict(
        name="given",
        model={"name": "egnn", "preset": "small", "cutoff": 4.0, "vector": "gradient"},
        train={"data": "dft-mini", "limit": 40},
        test={"data": "dft-mini", "limit": 5},
        labels=[10],
        seeds=[0],
        arms={"denoise": {"weights": "egnn-small-denoise", "parts": ["backbone"]}},
    )
    path = tmp_path / "given.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return path


def test_a_file_names_weights(tmp_path):
    made = yaml_form.read(spec(tmp_path)).experiment(store=tmp_path)
    assert made.weights == {"denoise": "egnn-small-denoise"} and not made.objectives
    counted = yaml_form.read(spec(tmp_path)).specs[0][1].counted()
    assert [(row["part"], row["runs"]) for row in counted] == [(dry_run.FINETUNING, 2)]


def test_smoke_keeps_the_network_that_the_weights_fit(tmp_path):
    small = shipped.smoke(yaml_form.read(spec(tmp_path, seeds=[0, 1]))).experiment(store=tmp_path)
    assert small.model["preset"] == "small" and "hidden" not in small.model
    table = experiment.run(small, progress=False)
    assert (table["status"] == "ok").all(), table["error"].tolist()
    assert set(table["steps"]) == {2}


@pytest.mark.parametrize(
    ("arm", "said"),
    [
        ({"weights": "egnn-small-denoise", "sigma": 0.1}, "nothing to pretrain, so no sigma"),
        ({"weights": "egnn-small-denoise", "like": "scratch"}, "nothing to pretrain, so no like"),
        ({"weights": ["egnn-small-denoise"]}, "arms.denoise.weights: give a name or a path"),
        ({"weights": " "}, "arms.denoise.weights: give a name or a path"),
        ({"weights": "egnn-small-denoise", "parts": ["nose"]}, "nose"),
    ],
)
def test_a_file_that_says_more_is_refused(tmp_path, arm, said):
    with pytest.raises(ConfigError, match=said) as caught:
        yaml_form.read(spec(tmp_path, arms={"denoise": arm})).experiment(store=tmp_path)
    one_line(caught.value)


def test_the_documented_comparison_runs_on_a_file_of_ones_own(tmp_path, monkeypatch):
    """The YAML of docs/weights.md, with fewer steps and seeds."""
    page = (ROOT / "docs" / "weights.md").read_text()
    (text,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    values = yaml.safe_load(text)
    own = potkit.load("dft-mini").split((70,), seed=0)[0]
    ase.io.write(tmp_path / values["train"]["data"], own.to_ase())
    monkeypatch.chdir(tmp_path)
    values |= {"seeds": [0, 1]}
    values["finetune"] |= {"steps": 4, "device": "cpu"}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(values))
    made = yaml_form.read("mine.yaml").experiment(store=tmp_path / "store")
    table = experiment.run(made, progress=False)
    assert (table["status"] == "ok").all(), table["error"].tolist()
    assert set(statistics.effects(table)["arm"]) == {"denoise", "cheap-labels"}
