"""What a notebook keeps follows from its runs, and what was changed by hand is found."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_notebook, new_output

import potkit
from potkit.errors import ConfigError, DataError
from potkit.experiments import baselines, simulations, statistics
from potkit.experiments import experiment as experiments
from potkit.notebooks import profiles, results, runner
from potkit.report import figures, pages, stored_figures, verify
from potkit.report import tables as report
from potkit.structures.elements import SYMBOLS

TINY = {"name": "egnn", "preset": "small", "hidden": 8, "layers": 1, "radial": 4, "cutoff": 3.0}
QUICK = SimpleNamespace(profile="quick")
PRIMARY = {"arm": "narrow", "against": "scratch", "metric": "forces_mae"}
ASKED = [("narrow", "scratch"), ("wide", "narrow")]


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    structures = potkit.load("ani-mini")[::20]
    train, test = structures.split((0.8, 0.2), by="system")
    config = potkit.TrainConfig(steps=2, batch_size=4, progress=False)
    return experiments.Experiment(
        model=TINY,
        train=train,
        test=test[:30],
        labels=[10, 20],
        pretrain_on=train[:60],
        seeds=[0, 1],
        objectives={"narrow": potkit.Denoise(sigma=0.05), "wide": potkit.Denoise(sigma=0.3)},
        pretrain_config=config,
        finetune_config=config,
        store=tmp_path_factory.mktemp("store"),
        longer=None,
        columns={"data": "ani-mini"},
    )


@pytest.fixture
def kept(grid, tmp_path, monkeypatch):
    """A kept comparison in a folder of its own, where pictures and a notebook lie, too."""
    monkeypatch.setenv("POTKIT_FIGURES", str(tmp_path / "figures"))
    runs = experiments.run(grid, progress=False)
    kept = results.keep_runs(
        QUICK,
        grid,
        runs,
        "mine",
        "02_noise_scale",
        contrasts=ASKED,
        primary=PRIMARY,
        over_time=True,
    )
    for kind in ("changes", "errors", "curves", "gain", "saved", "breakdown", "time"):
        chart = stored_figures.draw(kind, "mine", kept.folder, title=f"Picture of {kind}")
        figures.save(chart, kind)
    told = ("results", "test", "verdicts", "saved", "breakdown", "astray")
    said = [kept.markdown(kind) for kind in told]
    outputs = [new_output("display_data", data={"text/markdown": text}) for text in said]
    (tmp_path / "notebooks").mkdir()
    notebook = new_notebook(cells=[new_code_cell("kept.say()", outputs=outputs)])
    nbformat.write(notebook, tmp_path / "notebooks" / "02_a.ipynb")
    return kept


def test_everything_that_is_kept_is_made_again(kept, tmp_path):
    assert kept.folder == tmp_path / "results"
    found = verify.verify(kept.folder, tmp_path)
    assert found.holds, found.differences.to_string()
    derived = ("", "-effects", "-test", "-breakdown", "-baselines")
    assert set(found.tables) == {f"mine{ending}" for ending in derived}
    assert not found.without_runs
    assert len(found.pictures) == 7 and found.documents == ["notebooks/02_a.ipynb"]
    effects = kept.table("-effects")
    assert set(zip(effects.arm, effects.against, strict=True)) == set(ASKED)
    assert (effects.family == "primary").sum() == 1
    assert "Declared before the runs: narrow against scratch" in kept.markdown("verdicts")
    how = json.loads((kept.folder / "mine-runs.json").read_text())
    command = "potkit run notebooks/02_noise_scale.ipynb --profile quick --inplace"
    assert how["command"] == command and how["hardware"]


def test_one_changed_number_is_found_wherever_it_stands(kept, tmp_path):
    notebook = tmp_path / "notebooks" / "02_a.ipynb"
    before = notebook.read_text()
    notebook.write_text(before.replace("not told from 0 (", "not told from 0 (1", 1))
    assert verify.verify(kept.folder, tmp_path).differences["where"].tolist() == [
        "notebooks/02_a.ipynb"
    ]
    notebook.write_text(before)
    errors = pd.read_csv(kept.folder / "mine-test-errors.csv")
    errors.loc[errors.index[-1], "forces_mae"] *= 1.5  # at the largest budget, which is broken down
    errors.to_csv(kept.folder / "mine-test-errors.csv", index=False)
    where = set(verify.verify(kept.folder, tmp_path).differences["where"])
    assert where == {"mine-test.csv", "mine-breakdown.csv"}


def test_baselines_follow_from_the_rows_of_the_embedded_set(kept, grid, tmp_path):
    about = kept.folder / "mine-baselines.json"
    how = json.loads(about.read_text())
    [one] = how["drawn"]
    assert one["columns"] == {"data": "ani-mini"} and set(one["labelled"]) == {"10", "20"}
    assert [len(draws) for draws in one["labelled"].values()] == [2, 2]
    taken = potkit.load("ani-mini")[baselines._rows(one["test"], 10**6, "ani-mini")]
    assert sorted(taken.energy) == sorted(grid.test.energy)
    # another structure labelled, as if the table came from other labels
    changed = json.loads(json.dumps(how))
    changed["drawn"][0]["labelled"]["10"][0] = "0-9"
    about.write_text(json.dumps(changed))
    where = verify.verify(kept.folder, tmp_path).differences["where"]
    assert set(where) == {"mine-baselines.csv"}
    changed["drawn"][0]["fingerprint"] = "0" * 16
    about.write_text(json.dumps(changed))
    [difference] = verify.verify(kept.folder, tmp_path).differences.to_dict("records")
    assert "not the one that labels were drawn from" in difference["recomputed"]
    # tables that were stored before rows were written down are listed, and are no difference
    del how["drawn"]
    about.write_text(json.dumps(how))
    found = verify.verify(kept.folder, tmp_path)
    assert found.holds and found.without_runs == ["mine-baselines"]


def test_rows_carry_the_columns_that_the_notebook_gives_them(grid):
    def tidy(table):
        kept = table[table["data"] != "again"]
        return kept.rename(columns={"data": "set"})

    twice = [grid, dataclasses.replace(grid, columns={"data": "again"})]
    table, [one] = results._trivial(twice, tidy)
    assert one["columns"] == {"set": "ani-mini"}
    pd.testing.assert_frame_equal(
        baselines.of_drawn([one]), table.reset_index(drop=True), check_like=True
    )


def test_structures_of_no_embedded_set_leave_no_rows(grid):
    moved = grid.test[:]
    moved.pos = moved.pos + 1.0
    assert not baselines.drawn([dataclasses.replace(grid, test=moved)])
    assert baselines.drawn([grid])


def test_a_picture_of_other_numbers_is_found(kept, tmp_path):
    page = tmp_path / "figures" / "changes.html"
    assert pages.shows(page.read_text())["kind"] == "changes"
    other = stored_figures.draw("changes", "mine", kept.folder, title="Picture of changes")
    other.data[0].y = [y + 1 for y in other.data[0].y]
    figures.save(other, "changes")
    found = verify.verify(kept.folder, tmp_path)
    assert set(found.differences["where"]) == {"figures/changes.html"}
    for name in ("mine.csv", "mine.json"):
        shutil.move(kept.folder / name, tmp_path / name)
    found = verify.verify(kept.folder, tmp_path)
    assert "no such stored result" in " ".join(found.differences["recomputed"].astype(str))


def test_pictures_say_seeds_structures_and_systems(kept, grid):
    chart = stored_figures.draw("errors", "mine", kept.folder, title="T")
    systems = len(set(grid.test.system.tolist()))
    text = chart.layout.title.text
    assert "2 seeds" in text and f"30 structures of {systems} systems" in text
    assert "per structure" in stored_figures.TITLES["energy_mae"]
    assert {"zero forces"} <= {trace.name for trace in chart.data}
    with pytest.raises(ConfigError, match="no picture 'pie'"):
        stored_figures.draw("pie", "mine", kept.folder)


def test_a_dot_for_each_seed(kept):
    """The dots of a picture are the runs it is of, and their geometric mean is its mean."""
    runs = kept.table("-runs")
    chart = stored_figures.draw("errors", "mine", kept.folder, title="T")
    most = runs[runs["labels"] == runs["labels"].max()]
    bars = {t.name: t.y[0] for t in chart.data if t.type == "bar"}
    for arm, part in most.groupby("arm"):
        [dots] = [t for t in chart.data if t.name == f"{arm}, seeds"]
        assert sorted(dots.y) == pytest.approx(sorted(1e3 * part["forces_mae"]))
        assert np.exp(np.log(dots.y).mean()) == pytest.approx(bars[arm])
        assert sorted(dots.customdata) == sorted(part["pretrain_seed"])
    chart = stored_figures.draw("curves", "mine", kept.folder, title="T")
    dots = [t for t in chart.data if t.name == "scratch, seeds"]
    count = (runs["arm"] == "scratch").sum()
    assert [len(t.y) for t in dots] == [count, count], "forces and energies"


def test_errors_by_molecule_and_element(kept, grid):
    said = kept.markdown("breakdown")
    assert "| molecule |" in said and "| element |" in said and "has 0 more" not in said
    assert re.search(r"\| H \| 30 \| \d+ \|", said)
    chart = stored_figures.draw(
        "breakdown", "mine", kept.folder, title="T", by="element", group="ani-mini"
    )
    assert "intervals over the systems (or stretches) in a group" in chart.layout.title.text
    assert set(chart.data[0].x) == {SYMBOLS[z] for z in grid.test.elements}
    with pytest.raises(ConfigError, match="no errors by 'colour'"):
        stored_figures.draw("breakdown", "mine", kept.folder, title="T", by="colour")


def test_smoke_has_no_verdicts(kept):
    smoke = results.Kept(kept.name, kept.folder, "smoke")
    for kind in ("verdicts", "saved", "choice"):
        assert smoke.markdown(kind) == results.UNTOLD and "told from" not in results.UNTOLD
    assert "scratch" in smoke.markdown("results")


def test_contrasts_between_arms_that_there_are_not_are_refused(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("POTKIT_FIGURES", str(tmp_path / "figures"))
    runs = experiments.run(grid, progress=False)
    with pytest.raises(ConfigError, match="no arm 'nobody'"):
        results.keep_runs(QUICK, grid, runs, "x", "02", contrasts=[("narrow", "nobody")])
    assert not (tmp_path / "results").exists()


def test_tables_of_smoke_stay_out_of_the_committed_ones():
    assert runner.results_folder("smoke").parts[-2:] == ("runs", "results")


def test_a_choice_looks_at_validation_molecules_only(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("POTKIT_FIGURES", str(tmp_path / "figures"))
    run = SimpleNamespace(labels=[0.05], n_test=12, supervised=dict(forces=100), profile="quick")
    choice, runs = profiles.choose(run, grid, grid.objectives)
    assert choice.name in grid.objectives and choice.structures == 12
    assert set(runs["arm"]) == {"scratch", "narrow", "wide"}
    rest = len(grid.train) * 0.8
    assert runs["labels"].iloc[0] == pytest.approx(0.05 * rest, rel=0.2)
    trial = results.keep_choice(run, choice, runs, "mine-choice", "02_noise_scale")
    found = verify.verify(trial.folder, tmp_path)
    assert found.holds and found.tables == ["mine-choice"]
    assert choice.name in trial.markdown("choice")
    assert f"of {choice.molecules} systems" in stored_figures.sizes(trial.name, trial.folder)


def test_ensembles_are_kept_with_what_was_declared(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("POTKIT_FIGURES", str(tmp_path / "figures"))
    runs = experiments.run(grid, progress=False)
    declared = {"arm": "wide", "against": "scratch", "quantity": "forces", "statistic": "area"}
    kept = results.keep_ensembles(QUICK, grid, runs, "sure", "10_calibration", primary=declared)
    predictions, how = report.stored("sure-predictions", kept.folder)
    assert how["primary"] == declared and how["runs"] == runs["run"].tolist()
    assert len(predictions) == 3 * 2 * 2 * 30
    contrasts = kept.table("-contrasts")
    # of both label budgets
    assert (contrasts["family"] == "primary").sum() == 2
    figures.save(stored_figures.draw("reliability", "sure", kept.folder, title="T"), "sure")
    report.store(runs, "other-runs", "a test", kept.folder)  # without runs nothing is verified
    found = verify.verify(kept.folder, tmp_path)
    assert found.holds, found.differences.to_string()
    assert {"sure-ensembles", "sure-contrasts"} <= set(found.tables)
    assert found.pictures == ["figures/sure.html"]
    # another member's error, as if somebody had made it smaller
    predictions["errors"] = predictions["errors"].str.replace("1", "0", regex=False)
    predictions.to_csv(kept.folder / "sure-predictions.csv", index=False)
    where = set(verify.verify(kept.folder, tmp_path).differences["where"])
    assert where == {"sure-ensembles.csv", "sure-contrasts.csv", "figures/sure.html"}
    assert "Declared beforehand: wide against scratch" in kept.markdown("calibrated")
    smoke = results.Kept(kept.name, kept.folder, "smoke")
    assert smoke.markdown("calibrated") == results.UNTOLD
    with pytest.raises(ConfigError, match="no arm 'nobody'"):
        results.keep_ensembles(QUICK, grid, runs, "x", "10", primary=declared | {"arm": "nobody"})


def test_simulations_are_kept_and_made_again(grid, tmp_path, monkeypatch):
    monkeypatch.setenv("POTKIT_FIGURES", str(tmp_path / "figures"))
    runs = experiments.run(grid, progress=False)
    plan = simulations.Plan(temperature=300.0, nvt=0.03, nve=0.03, copies=2)
    start = potkit.load("ani-mini")[:1]
    case = simulations.Case(start, start, plan)
    here = SimpleNamespace(profile="quick", jobs=1)
    declared = {"arm": "wide", "against": "scratch", "metric": "bonds"}
    kept = results.keep_simulations(
        here, [grid], runs, [case], "mine", "09_dynamics", primary=declared
    )
    for kind in ("held", "survival", "distributions"):
        chart = stored_figures.draw(kind, "mine", kept.folder, title="T")
        assert "2 networks an arm" in chart.layout.title.text
        figures.save(chart, kind)
    report.store(runs, "other-runs", "a test", kept.folder)  # without runs nothing is verified
    found = verify.verify(kept.folder, tmp_path)
    assert found.holds, found.differences.to_string()
    assert {"mine-measures", "mine-changes"} <= set(found.tables) and len(found.pictures) == 3
    assert "Declared before the runs: wide against scratch" in kept.markdown("moved")
    assert "force MAE (meV/Å)" in kept.markdown("simulations")
    smoke = results.Kept(kept.name, kept.folder, "smoke")
    assert smoke.markdown("moved") == results.UNTOLD
    # copies that are said to have run for less
    table = kept.table("-simulations")
    table["drift"] *= 2
    table.loc[table["ensemble"] == "nvt", "held"] /= 2
    table.to_csv(kept.folder / "mine-simulations.csv", index=False)
    where = set(verify.verify(kept.folder, tmp_path).differences["where"])
    assert {"mine-measures.csv", "figures/held.html"} <= where
    with pytest.raises(ConfigError, match="no arm 'nobody'"):
        wrong = declared | {"arm": "nobody"}
        results.keep_simulations(here, [grid], runs, [case], "x", "09", primary=wrong)


# -- contrasts -----------------------------------------------------------------------------------
def test_only_what_is_asked_is_in_the_family():
    rows = [
        {"arm": arm, "labels": 10, "seed": s, "forces_mae": e * (1 + 0.01 * s * (arm > "d"))}
        for arm, e in {"scratch": 1.0, "scratch, slow": 1.2, "denoise, slow": 1.1}.items()
        for s in range(4)
    ]
    runs = pd.DataFrame(rows)
    every = statistics.effects(runs, ["forces_mae"])
    assert set(every["against"]) == {"scratch"} and len(every) == 2
    asked = [("denoise, slow", "scratch, slow")]
    (one,) = statistics.effects(runs, ["forces_mae"], contrasts=asked).to_dict("records")
    assert (one["arm"], one["against"], one["verdict"]) == (*asked[0], "better")
    assert one["p_holm"] == one["p"]


def test_a_study_is_shown_as_it_is_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(results.runner, "_root", lambda: tmp_path)
    with pytest.raises(DataError, match="no such stored result"):
        results.study("study-denoise")
    monkeypatch.undo()
    kept = results.study("study-denoise")
    assert kept.profile == "study"
    runs, effects = kept.table("-runs"), kept.table("-effects")
    shown = kept.markdown("verdicts")
    for (target, network), part in runs.groupby(["target", "network"]):
        assert f"- {target}, {network}: **denoise** against scratch-longer" in shown
        scratch = part[part["arm"] == "scratch"].set_index("seed")["forces_mae"]
        denoised = part[part["arm"] == "denoise"].set_index("seed")["forces_mae"]
        of_both = (np.log(denoised / scratch)).mean()
        told = effects.query(
            "target == @target and network == @network and arm == 'denoise'"
            " and against == 'scratch' and metric == 'forces_mae'"
        )
        assert told["change_%"].item() == pytest.approx(100 * np.expm1(of_both), rel=1e-3)


def test_convergence_is_told_where_it_was_looked_at(kept):
    """Here no arm without pretraining has more steps than scratch."""
    assert kept.markdown("convergence") == results.NOT_LOOKED_AT
    smoke = dataclasses.replace(kept, profile="smoke")
    assert smoke.markdown("convergence") == results.UNTOLD
