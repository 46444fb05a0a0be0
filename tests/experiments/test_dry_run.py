"""A dry run counts what a grid would do, and does none of it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import yaml
from grids import TINY, grid
from tiny import one_line

import potkit
from potkit.cli import main as cli
from potkit.errors import ConfigError
from potkit.experiments import dry_run, experiment, operations, shipped, stand_ins, yaml_form

SPEC = {
    "name": "dry",
    "model": TINY,
    "pretrain_on": {"data": "ani-mini", "limit": 40},
    "train": {"data": "ani-mini", "limit": 40},
    "test": {"data": "ani-mini", "limit": 20},
    "labels": [10],
    "seeds": [0, 1],
    "arms": {
        "denoise": {"objective": "denoise", "sigma": 0.1},
        "frozen": {"like": "denoise", "freeze": 0.5},
    },
    "pretrain": {"steps": 6, "batch_size": 4},
    "finetune": {"steps": 4, "batch_size": 4},
    "longer": "operations",
    "convergence": True,
}


def written(folder, **changes):
    path = folder / "dry.yaml"
    path.write_text(yaml.safe_dump(SPEC | changes, sort_keys=False))
    return path


def by_part(table):
    return table.set_index(["part", "labels"])


def test_a_dry_run_counts_and_runs_nothing(tmp_path):
    store = tmp_path / "store"
    spec = yaml_form.read(written(tmp_path))
    planned = dry_run.table(spec.planned(store))
    rows = by_part(planned)
    assert rows.loc[("pretraining", 0), "runs"] == 2
    assert rows.loc[("pretraining", 0), "steps"] == 12
    assert rows.loc[("pretraining", 0), "structures"] == 38
    # scratch, denoise, frozen, scratch-longer and scratch with twice the steps
    tuned = rows.loc[("fine-tuning", 10)]
    made = spec.experiment(store)
    extra = 6 * operations.of_pretraining_step(made, "denoise")
    extra /= operations.of_finetuning_step(made, 10)
    assert tuned["runs"] == 10 and tuned["structures"] == 9
    assert tuned["steps"] == 2 * (3 * 4 + 8 + 4 + int(np.ceil(extra)))
    assert tuned["operations"] == pytest.approx(
        tuned["steps"] * operations.of_finetuning_step(made, 10)
    )
    assert (planned["hours"] > 0).all() and (planned["stored"] == 0).all()
    assert not list(store.glob("pretrain-*")) and not list(store.glob("finetune-*"))


def test_what_is_stored_costs_nothing(tmp_path):
    spec = yaml_form.read(written(tmp_path, search={"lr": [1e-3, 3e-3]}, tuning_seeds=[10, 11]))
    before = dry_run.table(spec.planned(tmp_path / "store"))
    assert by_part(before).loc[("search", 10), "runs"] == 4 * 2 * 2
    table = experiment.run(spec.experiments(tmp_path / "store"), progress=False)
    assert (table["status"] == "ok").all(), table["error"].tolist()
    after = dry_run.table(spec.planned(tmp_path / "store"))
    assert after["runs"].tolist() == before["runs"].tolist()
    assert after["stored"].tolist() == after["runs"].tolist()
    assert after["steps"].sum() == 0 and after["hours"].sum() == 0


def test_a_run_that_was_halted_does_not_make_the_others_dear(tmp_path):
    made = grid(tmp_path, seeds=[0, 1, 2, 3], variants={})
    paces = dry_run._Paces(made, None, {}, measure=False)
    run = dry_run._Run(dry_run.FINETUNING, 10, "scratch", 4, None)
    for seconds in (4.0, 4.4, 40_000.0):
        paces.note(run, {"seconds": seconds, "steps": 4})
    assert paces.seconds(run) == pytest.approx(1.1)


def test_steps_that_will_be_compiled_are_measured_without_and_it_says_so(tmp_path):
    plain = dry_run.table([dry_run.Planned({}, grid(tmp_path))])
    assert "compile" not in dry_run.in_words(plain)
    made = grid(tmp_path)
    made = dataclasses.replace(made, finetune_config=made.finetune_config.replace(compile=True))
    planned = dry_run.table([dry_run.Planned({}, made)])
    assert "hours of runs that compile" in dry_run.in_words(planned)
    unmeasured = dry_run.table([dry_run.Planned({}, made)], measure=False)
    assert not unmeasured.attrs["compiled"]


def test_steps_of_a_chain_and_of_time(tmp_path):
    objectives = {"denoise": potkit.Denoise(sigma=0.1), "labels": potkit.Supervised()}
    made = grid(tmp_path, objectives=objectives, after={"labels": "denoise"}, variants={})
    rows = by_part(dry_run.table([dry_run.Planned({}, made)]))
    # scratch-longer: its own 4 steps, and two pretrainings of 4
    assert rows.loc[("fine-tuning", 10), "steps"] == 2 * (3 * 4 + 12)
    made = grid(tmp_path, longer="time", variants={})
    planned = dry_run.table([dry_run.Planned({}, made)])
    assert np.isnan(by_part(planned).loc[("fine-tuning", 10), "steps"])
    assert "not known before other runs are done" in dry_run.in_words(planned)


def test_without_its_data_a_grid_says_what_it_can(tmp_path, capsys):
    missing = {"data": str(tmp_path / "nowhere.xyz")}
    path = written(tmp_path, grid={"data": {"here": {}, "gone": {"test": missing}}})
    with pytest.raises(SystemExit) as done:
        cli.main(["compare", str(path), "--store", str(tmp_path / "store"), "--dry-run"])
    assert not done.value.code
    out = capsys.readouterr().out
    assert "missing: data gone:" in out and "nowhere.xyz" in out
    planned = dry_run.table(yaml_form.read(path).planned(tmp_path / "store"))
    both = [by_part(part)["runs"] for _, part in planned.groupby("data")]
    assert both[0].to_dict() == both[1].to_dict()
    assert "here" in out and "hours" in out
    assert not list((tmp_path / "store").glob("pretrain-*"))


def test_wrong_settings_stop_a_dry_run_too(tmp_path):
    path = written(tmp_path, model={"name": "egnn", "hiden": 3})
    with pytest.raises(ConfigError, match="hiden") as caught:
        yaml_form.read(path).planned(tmp_path)
    one_line(caught.value)


def test_the_example_of_the_page_on_the_protocol_is_read(repository):
    """And says without any data what it can."""
    page = (repository / "docs" / "protocol.md").read_text(encoding="utf-8")
    example = yaml.safe_load(page.split("```yaml\n")[1].split("```")[0])
    [(_, spec)] = yaml_form.GridSpec(example).specs
    rows = {(row["part"], row["labels"]): row["runs"] for row in spec.counted()}
    arms = 1 + 4 + 1  # scratch, those of the page, scratch-longer
    assert rows[("pretraining", 0)] == 3 * (6 + 3)
    assert rows[("search", 50)] == arms * 3 * 3 and ("search", 10) not in rows
    assert rows[("fine-tuning", 10)] == (arms + 1) * 6


@pytest.fixture
def away(monkeypatch):
    """No public set is on this machine."""
    monkeypatch.setattr(stand_ins, "_away", lambda name: name in stand_ins.STAND_INS)
    monkeypatch.delenv("POTKIT_DATA", raising=False)


def test_sets_that_are_missing_are_planned_by_their_records(tmp_path, away, monkeypatch):
    fractions = {"fractions": [0.8, 0.1, 0.1], "by": "structure-within-system", "rounding": "floor"}
    parts = [{"data": "md22", "systems": ["DHA"], "part": fractions | {"index": i}} for i in (0, 1)]
    path = written(
        tmp_path,
        pretrain_on={"data": "iso17"},
        train=parts[0],
        valid=parts[1],
        test=parts[1],
        labels=[1.0],
        finetune={"epochs": 2, "batch_size": 256},
        longer=None,
        convergence=False,
        arms={"denoise": {"objective": "denoise", "sigma": 0.1}},
    )
    monkeypatch.setattr(operations, "of_step", lambda *_: 10.0)
    planned = dry_run.table(yaml_form.read(path).planned(tmp_path / "store"), measure=False)
    rows = by_part(planned)
    assert rows.loc[("pretraining", 0), "structures"] == round(645_000 * 0.95)
    # 80 % of DHA's 69 753 train, with what is left by rounding down
    tuned = planned[planned["part"] == "fine-tuning"].iloc[0]
    assert tuned["structures"] == 55_803
    assert tuned["labels"] == 55_803 + 6_975
    assert tuned["steps"] == 4 * round(2 * 55_803 / 256)
    assert planned["about"].all() and planned["hours"].isna().all()
    words = dry_run.in_words(planned, tflops=2.0)
    assert "2 TFLOP/s" in words and "~55803" in words
    assert words.count("potkit data fetch md22") == 1


@pytest.mark.parametrize("name", shipped.names())
def test_every_shipped_experiment_is_planned_without_its_data(name, tmp_path, away, monkeypatch):
    monkeypatch.setattr(operations, "of_step", lambda *_: 1e9)
    planned = dry_run.table(shipped.read(name).planned(tmp_path / "store"), measure=False)
    assert planned["about"].all()
    known = planned[["structures", "steps", "operations"]]
    assert (known.notna() | planned[["runs"]].eq(0).to_numpy()).all(axis=None)
    assert len(planned.attrs["missing"]) == len(set(planned.attrs["missing"])) >= 1
