"""The protocol: operations, the search on tuning seeds, the check of convergence, error over
time.
"""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from grids import DATA, TINY, grid
from tiny import one_line

import potkit
from potkit import models
from potkit.cli import main as cli
from potkit.errors import ConfigError, DataError
from potkit.experiments import (
    convergence,
    experiment,
    operations,
    search,
    statistics,
    tasks,
    time_curves,
)
from potkit.experiments.arms import DOUBLED, LONGER
from potkit.objectives import Objective, Term
from potkit.report import tables as report
from potkit.report import time_figures, verify
from potkit.training.step import batch_indices

SEARCH = {"search": {"lr": [1e-4, 3e-3]}, "tuning_seeds": [7, 8], "variants": {}}


# -- operations ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["egnn", "painn"])
def test_operations_are_the_same_number_each_time(name):
    def count() -> float:
        return operations.of_step(potkit.build(name, seed=0), DATA, potkit.Supervised(), 4)

    before = torch.get_num_threads()
    first = count()
    torch.set_num_threads(2)
    try:
        assert count() == first > 1e6
    finally:
        torch.set_num_threads(before)


def test_operations_count_the_products_of_matrices_by_hand():
    """One layer of weights on all atoms: 2 · N · in · out forward, and as much backward for the
    weights; the input needs no derivative.
    """

    class Linear(Objective):
        name, outputs = "linear", ("vector",)

        def terms(self, prediction, batch):
            return [Term("loss", prediction.sum(), 1)]

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone = torch.nn.Linear(3, 5)

        def extend(self, *_, **__):
            pass

        def parts(self, _):
            return {"backbone"}

        def forward(self, batch, _):
            return self.backbone(batch.pos)

    atoms = np.diff(DATA.ptr)
    assert len(set(atoms[:8].tolist())) <= 2
    counted = operations.of_step(Model(), DATA, Linear(), len(DATA))
    size = min(len(DATA), operations.MOST)
    rows = [batch_indices(i, size, len(DATA), 0) for i in range(4)]
    n = np.mean([atoms[r].sum() for r in rows]) * len(DATA) / size
    assert counted == pytest.approx(2 * (2 * n * 3 * 5))


def test_a_step_with_derivatives_costs_more_and_with_more_structures_in_proportion():
    model = potkit.build("egnn", seed=0)
    energies = operations.of_step(model, DATA, potkit.Supervised(forces=0.0), 8)
    both = operations.of_step(model, DATA, potkit.Supervised(), 8)
    assert 1.5 < both / energies < 8
    twice = operations.of_step(model, DATA, potkit.Supervised(), 16)
    assert twice / both == pytest.approx(2, rel=0.1)


def test_scratch_longer_in_operations_is_counted_once_and_kept(tmp_path, monkeypatch):
    made = grid(tmp_path, longer="operations", variants={})
    extra = operations.of_pretraining(made, "denoise") / operations.of_finetuning_step(made, 10)
    table = experiment.run(made, progress=False)
    longer = table[table["arm"] == LONGER]["steps"].unique()
    assert longer.tolist() == [4 + int(np.ceil(extra))]
    assert len(list(tmp_path.glob("operations-*.json"))) == 2
    monkeypatch.setattr(operations, "of_step", None)  # found in the store, not counted again
    again = experiment.run(made, progress=False)
    assert again["steps"].tolist() == table["steps"].tolist()


def test_a_damaged_count_is_named(tmp_path):
    made = grid(tmp_path, longer="operations", variants={})
    operations.of_finetuning_step(made, 10)
    path = next(tmp_path.glob("operations-*.json"))
    path.write_text("{")
    with pytest.raises(ConfigError, match="delete it to count anew") as caught:
        operations.of_finetuning_step(made, 10)
    one_line(caught.value)


# -- the search ----------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    """A grid with a search and the check of convergence, and its runs."""
    store = tmp_path_factory.mktemp("searched") / "store"
    made = grid(store, longer="operations", convergence=True, valid_min=2, **SEARCH)
    return made, experiment.run(made, progress=False)


def test_every_arm_is_searched_alike_and_runs_with_what_was_best(searched):
    made, table = searched
    assert (table["status"] == "ok").all(), table["error"].tolist()
    choices = pd.DataFrame(table.attrs["choices"])
    assert set(choices["arm"]) == {"scratch", LONGER, "denoise"}
    assert (choices.groupby("arm").size() == 2).all()
    assert (choices["valid_structures"] == 2 * 2).all()
    for arm, part in choices.groupby("arm"):
        best = part.loc[part["score"].idxmin()]
        assert best["chosen"] and part["chosen"].sum() == 1
        for run in table[table["arm"] == arm]["run"]:
            config = json.loads((made.store / run / "run.json").read_text())["identity"]["config"]
            assert config["lr"] == best["lr"]


def test_scores_are_those_of_the_validation_structures_of_tuning_seeds(searched):
    made, table = searched
    choices = pd.DataFrame(table.attrs["choices"])
    for row in choices[choices["arm"] == "denoise"].itertuples():
        logs = []
        for seed in made.tuning_seeds:
            task = tasks.Task(
                "finetune", "denoise", seed, 10, choice=(("lr", row.lr),), tuning=True
            )
            folder = tasks.finetune_folder(made, task)
            logs.append(np.log(json.loads((folder / "summary.json").read_text())["best"]))
            assert not list(folder.glob("test-*")), "a run of the search was tested"
        assert row.score == pytest.approx(np.mean(logs))


def test_choices_follow_from_the_stored_tries(searched):
    made, table = searched
    tries = report.as_stored(pd.DataFrame(table.attrs["tries"]))
    assert len(tries) == sum(c["seeds"] for c in table.attrs["choices"])
    assert set(tries["seed"]) == set(made.tuning_seeds)
    again, choices = search.of_tries(tries), pd.DataFrame(table.attrs["choices"])
    pd.testing.assert_frame_equal(again, choices, check_like=True, rtol=1e-4)
    # a run that failed leaves its value out
    broken = tries.assign(status=["failed", *tries["status"][1:]])
    first = search.of_tries(broken).iloc[0]
    assert first["score"] == np.inf and not first["chosen"] and first["seeds"] == 1


def test_no_test_structure_chooses_anything(searched, tmp_path):
    """With other test labels the same settings are chosen."""
    _, table = searched
    other = DATA[24:]
    other.forces = -5 * other.forces
    again = grid(tmp_path, longer="operations", valid_min=2, test=other, **SEARCH)
    chosen = [
        [(c["arm"], c["lr"]) for c in t.attrs["choices"] if c["chosen"]]
        for t in (table, experiment.run(again, progress=False))
    ]
    assert chosen[0] == chosen[1]


def test_what_was_found_is_not_run_again(searched, monkeypatch):
    made, table = searched
    monkeypatch.setattr(tasks, "finetune", None)
    monkeypatch.setattr(tasks, "pretrain", None)
    again = experiment.run(made, progress=False)
    pd.testing.assert_frame_equal(again, table)
    assert again.attrs["choices"] == table.attrs["choices"]


def test_one_budget_can_choose_for_all(tmp_path):
    made = grid(tmp_path, longer=None, objectives={}, pretrain_on=None, labels=[8, 12], **SEARCH)
    both = experiment.run(made, progress=False)
    assert {c["labels"] for c in both.attrs["choices"]} == {8, 12}
    one = grid(
        tmp_path,
        longer=None,
        objectives={},
        pretrain_on=None,
        labels=[8, 12],
        search_at=12,
        **SEARCH,
    )
    table = experiment.run(one, progress=False)
    assert {c["labels"] for c in table.attrs["choices"]} == {12}
    assert table["chosen"].nunique() == 1


def ladder(made, losses) -> tuple[list[float], pd.DataFrame]:
    """The rates tried from scratch where ``losses`` says each one's validation loss, in order, and
    the table at the end.
    """
    tried, tasks_left = {}, list(search.tries([made], ["scratch"]))
    while tasks_left:
        for task in tasks_left:
            rate = dict(task.choice)["lr"]
            tried[task] = {"status": "ok", "best": losses(rate), "error": ""}
        scores = search.table([made], tried)
        tasks_left = search.further([made], scores)
    return list(dict.fromkeys(dict(task.choice)["lr"] for task in tried)), scores


@pytest.mark.parametrize(
    "best, expected",
    [
        (1.5e-3, [1e-3, 2e-3, 4e-3]),  # worse on both sides: it ends
        (4e-3, [1e-3, 2e-3, 4e-3, 8e-3]),
        (5e-4, [1e-3, 2e-3, 5e-4, 2.5e-4]),
        (1.0, [1e-3, 2e-3, 4e-3, 8e-3]),  # not further than it may
    ],
)
def test_a_search_goes_on_beyond_an_edge_that_is_best(tmp_path, best, expected):
    made = grid(
        tmp_path, **(SEARCH | {"longer": None, "search": {"lr": [1e-3, 2e-3]}, "search_beyond": 2})
    )
    # slightly lower towards higher rates, so that two equally far are told apart
    rates, scores = ladder(made, lambda lr: np.exp(abs(np.log(lr / best)) - 0.1 * np.log(lr)))
    assert rates == expected
    row = scores[scores["chosen"]].iloc[0]
    assert row["at_edge"] == (best == 1.0)
    assert search.chosen([made], scores)[0, "scratch", made.labels[0]] == (("lr", row["lr"]),)


def test_a_search_that_may_not_go_on_ends_at_what_was_given(tmp_path):
    made = grid(tmp_path, **(SEARCH | {"longer": None}))
    rates, scores = ladder(made, lambda lr: 1 / lr)
    assert rates == [1e-4, 3e-3]
    assert scores[scores["chosen"]]["at_edge"].all()


def test_whole_numbers_stay_whole_beyond_an_edge(tmp_path):
    made = grid(
        tmp_path,
        **(SEARCH | {"longer": None, "search": {"steps": [2, 4]}, "search_beyond": 1}),
    )
    tried = {
        task: {"status": "ok", "best": 1 / dict(task.choice)["steps"], "error": ""}
        for task in search.tries([made], ["scratch"])
    }
    [first, second] = search.further([made], search.table([made], tried))
    assert dict(first.choice) == {"steps": 8} and isinstance(dict(first.choice)["steps"], int)
    assert [first.seed, second.seed] == SEARCH["tuning_seeds"]


def test_runs_beyond_an_edge_are_done_counted_and_found_again(tmp_path):
    made = grid(tmp_path, longer="operations", search_beyond=1, valid_min=2, **SEARCH)
    table = experiment.run(made, progress=False)
    choices = pd.DataFrame(table.attrs["choices"])
    for arm, tried in choices.groupby("arm"):
        assert 3 <= len(tried) <= 4, arm  # one beyond, or none on that side and one on the other
        best = tried[tried["chosen"]]["lr"].item()
        assert set(table[table["arm"] == arm]["chosen"]) == {f"lr {best:g}"}
    again = experiment.run(made, progress=False)
    pd.testing.assert_frame_equal(again, table)


def test_an_arm_keeps_what_its_variant_fixes(tmp_path):
    variants = {"slow": {"like": "denoise", "lr": 5e-4}}
    made = grid(tmp_path, longer=None, **(SEARCH | {"variants": variants}))
    assert search.values(made, "slow") == [()]
    assert [dict(v)["lr"] for v in search.values(made, "denoise")] == [1e-4, 3e-3]


def test_words_can_be_searched(tmp_path):
    """A schedule has a name, not a number."""
    changes = dict(longer=None, objectives={}, pretrain_on=None, seeds=[0], variants={})
    changes |= dict(search={"schedule": ["cosine", "constant"]}, tuning_seeds=[7])
    made = grid(tmp_path, **changes)
    table = experiment.run(made, progress=False)
    assert (table["status"] == "ok").all(), table["error"].tolist()
    choices = pd.DataFrame(table.attrs["choices"])
    (best,) = choices[choices["chosen"]]["schedule"]
    assert set(choices["schedule"]) == {"cosine", "constant"}
    assert set(table["chosen"]) == {f"schedule {best}"}
    choice = (("schedule", "cosine"), ("lr", 0.0030), ("steps", 40), ("clip", None))
    assert tasks.in_words(choice) == "schedule cosine, lr 0.003, steps 40, clip None"


def test_no_clipping_can_be_searched_beside_numbers(tmp_path):
    """None is neither larger nor smaller than a number, so there is no edge and nothing beyond."""
    changes = dict(longer=None, objectives={}, pretrain_on=None, seeds=[0], variants={})
    values = {"clip": [None, 10.0], "lr": [1e-3, 2e-3, 4e-3]}
    made = grid(tmp_path, **changes, search=values, tuning_seeds=[7])
    # the best rate lies inside
    tried = {
        task: {"status": "ok", "best": 1 + (dict(task.choice)["lr"] != 2e-3), "error": ""}
        for task in search.tries([made])
    }
    scores = search.table([made], tried)
    assert search.further([made], scores) == []
    chosen = scores[scores["chosen"]].iloc[0]
    assert dict(chosen["choice"]) == {"clip": None, "lr": 2e-3} and not chosen["at_edge"]
    assert search.lines(scores) == ["scratch, 10 labels: clip None, lr 0.002"]
    table = experiment.run(made, progress=False)
    assert (table["status"] == "ok").all(), table["error"].tolist()
    # and what is stored says the same
    tries = report.as_stored(pd.DataFrame(table.attrs["tries"]))
    again, choices = search.of_tries(tries), pd.DataFrame(table.attrs["choices"])
    assert again["at_edge"].tolist() == choices["at_edge"].tolist()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"tuning_seeds": [1, 7]}, "seed 1 is a tuning seed and a reported one"),
        ({"tuning_seeds": []}, "go together"),
        ({"search": {"lr": [1e-3]}}, "two or more values"),
        ({"search": {"batch_size": [2, 4]}}, "none of"),
        ({"search": {"lr": [1e-3, -1.0]}}, "lr"),
        ({"search_at": 77}, "none of the label budgets"),
        ({"search_beyond": -1}, "0 or more"),
        ({"search": {"freeze": [0.0, 0.3]}, "search_beyond": 1}, "positive numbers"),
        ({"longer": "time"}, "longer: operations"),
    ],
)
def test_an_unfair_search_is_refused(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        grid(tmp_path, **({"longer": "steps"} | SEARCH | changes))
    one_line(caught.value)


def test_small_budgets_get_enough_validation_structures(tmp_path):
    made = grid(tmp_path, valid_min=3, variants={})
    train, valid = made.labelled(10, 0)
    assert (len(train), len(valid)) == (7, 3)
    # at the default every stored run keeps its structures
    assert [len(part) for part in grid(tmp_path).labelled(10, 0)] == [9, 1]


# -- convergence ---------------------------------------------------------------------------------
def test_twice_the_steps_are_the_same_schedule_stretched(searched):
    made, table = searched
    doubled = table[table["arm"] == DOUBLED]
    assert (doubled["steps"] == 8).all() and len(doubled) == 2
    scratch = table[table["arm"] == "scratch"]
    settings = []
    for run in (scratch["run"].iloc[0], doubled["run"].iloc[0]):
        identity = json.loads((made.store / run / "run.json").read_text())["identity"]
        settings.append(identity["config"] | {"steps": 0})
    assert settings[0] == settings[1]
    # a check, not a contrast: it takes no level from the comparisons
    assert DOUBLED not in set(statistics.effects(table)["arm"])


def with_twice_the_steps(change: float, spread: float) -> pd.DataFrame:
    """Runs of five seeds whose errors twice the steps change by ``change``, give or take
    ``spread``.
    """
    errors = np.exp(np.array([-0.05, 0.0, 0.05, 0.02, -0.02]))
    again = change * errors * np.exp(spread * np.array([1, -1, 1, -1, 0]))
    rows = [
        {"arm": arm, "labels": 50, "seed": s, "pretrain_seed": s, "label_draw": 0, "forces_mae": e}
        for arm, values in (("scratch", errors), (DOUBLED, again))
        for s, e in enumerate(values)
    ]
    return pd.DataFrame(rows).assign(status="ok")


@pytest.mark.parametrize(
    "change, spread, verdict, within",
    [
        (0.99, 0.01, "converged", True),
        (0.98, 0.001, "converged", True),  # told from 0, but less than the margin
        (0.98, 0.02, "not told", True),  # the change of points is small: that tells nothing
        (1.0, 0.1, "not told", True),
        (0.94, 0.005, "not converged", False),
        (0.7, 0.01, "not converged", False),
        (1.4, 0.01, "worse by more steps", False),
    ],
)
def test_the_interval_of_the_change_decides_on_convergence(change, spread, verdict, within):
    checked = convergence.table(with_twice_the_steps(change, spread))
    assert checked["verdict"].tolist() == [verdict]
    assert checked["within_interval"].tolist() == [within]
    assert checked["change_%"].item() == pytest.approx(100 * (change - 1))
    assert checked["interval_%"].item() == pytest.approx(4.84, abs=0.01)
    [line] = convergence.lines(checked)
    low, high = checked["change_low_%"].item(), checked["change_high_%"].item()
    assert f"({low:+.1f} to {high:+.1f} %;".replace("-", "−") in line
    assert ("is not told" in line) == (verdict == "not told") and "twice the steps" in line


def test_convergence_of_energies_is_told_where_no_run_has_a_force_error():
    """Data without forces, alone and beside data that have some."""
    runs = with_twice_the_steps(0.7, 0.01)
    energies = runs.rename(columns={"forces_mae": "energy_mae"})
    checked = convergence.table(energies)
    expected = convergence.table(runs).assign(metric="energy_mae")
    pd.testing.assert_frame_equal(checked, expected)
    pd.testing.assert_frame_equal(convergence.table(energies.assign(forces_mae=np.nan)), expected)
    assert "energy_mae of scratch by −30.0 %" in convergence.lines(checked)[0]
    # a run that failed has no error, whatever its row says
    failed = runs.iloc[:1].assign(status="failed")
    both = pd.concat([failed, energies], ignore_index=True)
    assert convergence.table(both)["metric"].tolist() == ["energy_mae"]
    both = pd.concat([runs.assign(data="a"), energies.assign(data="b")], ignore_index=True)
    both = both[["data", *runs, "energy_mae"]]
    assert convergence.table(both)["metric"].tolist() == ["forces_mae", "energy_mae"]
    # what is asked for is not exchanged
    assert not len(convergence.table(energies.assign(forces_mae=np.nan), "forces_mae"))


def test_the_margin_of_convergence_can_be_set():
    runs = with_twice_the_steps(0.96, 0.005)
    assert convergence.table(runs)["verdict"].item() == "not converged"
    wide = convergence.table(runs, margin=0.06)
    assert wide["verdict"].item() == "converged" and wide["margin_%"].item() == pytest.approx(6)
    with pytest.raises(ConfigError, match="margin"):
        convergence.table(runs, margin=0.0)


def test_a_single_seed_tells_nothing_of_convergence():
    runs = with_twice_the_steps(0.5, 0.0)
    checked = convergence.table(runs[runs["seed"] == 0])
    assert checked["verdict"].item() == "not told" and not checked["within_interval"].item()
    assert convergence.lines(checked)[0].endswith("of scratch by −50.0 %")


@pytest.mark.parametrize("steps, checked", [(25, True), (19, False)])
def test_scratch_longer_checks_convergence_where_it_has_twice_the_steps(steps, checked):
    errors = [1.0, 1.1, 0.9]
    rows = [
        {"arm": arm, "steps": n, "labels": 50, "seed": s, "forces_mae": factor * e}
        for arm, n, factor in (("scratch", 10, 1.0), ("scratch-longer", steps, 0.5))
        for s, e in enumerate(errors)
    ]
    runs = pd.DataFrame(rows).assign(status="ok", label_draw=0)
    runs["pretrain_seed"] = runs["seed"]
    table = convergence.table(runs)
    assert len(table) == checked
    if checked:
        assert table["times"].item() == 2.5 and table["change_%"].item() == pytest.approx(-50)
        [line] = convergence.lines(table)
        assert "scratch is not converged: 2.5 times the steps change" in line


# -- error over time -----------------------------------------------------------------------------
def test_every_arm_has_a_curve_of_its_validation_error(searched):
    made, table = searched
    curves = time_curves.of_experiments([made], table)
    assert set(curves["arm"]) == set(table["arm"].astype(str))
    per_step = operations.of_finetuning_step(made, 10)
    assert curves["operations"].to_numpy() == pytest.approx(curves["step"] * per_step)
    assert (curves["valid_forces_mae"] > 0).all() and (curves["seconds"] > 0).all()
    before = curves.set_index("arm")["pretrain_operations"]
    assert (before["denoise"] > 0).all() and (before["scratch"] == 0).all()
    # the last validation of each run
    ends = curves.groupby(["arm", "seed"])["step"].max()
    assert (
        ends.to_dict() == table.astype({"arm": str}).set_index(["arm", "seed"])["steps"].to_dict()
    )


def test_the_curves_are_drawn(searched):
    made, table = searched
    curves = time_curves.of_experiments([made], table)
    for against in ("step", "operations", "seconds"):
        chart = time_figures.time_curves(curves, against)
        named = {t.name for t in chart.data if t.name}
        assert named == set(curves["arm"])
        assert "meV/Å" in chart.layout.yaxis.title.text
    with pytest.raises(ConfigError, match="none of step"):
        time_figures.time_curves(curves, "epochs")
    with pytest.raises(DataError, match="not counted"):
        time_figures.time_curves(curves.assign(operations=np.nan), "operations")


# -- the command ---------------------------------------------------------------------------------
def test_compare_prints_and_stores_the_protocol(tmp_path, capsys):
    spec = {
        "name": "protocol",
        "model": TINY,
        "pretrain_on": {"data": "ani-mini", "limit": 24},
        "train": {"data": "ani-mini", "limit": 24},
        "test": {"data": "ani-mini", "limit": 8},
        "labels": [10],
        "seeds": [0, 1],
        "arms": {"denoise": {"objective": "denoise", "sigma": 0.1}},
        "pretrain": {"steps": 2, "batch_size": 4},
        "finetune": {"steps": 2, "batch_size": 4},
        "longer": "operations",
        "search": {"lr": [1e-3, 3e-3]},
        "tuning_seeds": [5],
        "convergence": True,
    }
    path = tmp_path / "protocol.yaml"
    path.write_text(yaml.safe_dump(spec))
    options = ["--store", str(tmp_path / "store"), "--out", str(tmp_path)]
    with pytest.raises(SystemExit) as done:
        cli.main(["compare", str(path), *options, "--figure", str(tmp_path / "curves.html")])
    assert not done.value.code
    said = capsys.readouterr().out
    assert "settings tried" in said and "twice the steps change" in said
    choices, how = report.stored("protocol-choices", tmp_path)
    assert len(choices) == 3 * 2 and how["command"].startswith("potkit compare")
    assert len(report.stored("protocol-time-curves", tmp_path)[0])
    assert (tmp_path / "curves-time.html").is_file()
    verified = verify.verify(tmp_path, tmp_path)
    assert "protocol-convergence" in verified.tables
    # p values of two seeds that hardly differ are beyond the six digits that runs are stored with
    assert "protocol-convergence.csv" not in set(verified.differences["where"])


def test_compare_gives_no_verdict_beside_a_bootstrap_without_an_interval(
    tmp_path, capsys, monkeypatch
):
    """Below six seeds it is refused before anything is run, or where runs failed; with six the
    head says whose the verdicts are.
    """
    spec = {
        "name": "few",
        "model": TINY,
        "pretrain_on": {"data": "ani-mini", "limit": 24},
        "train": {"data": "ani-mini", "limit": 24},
        "test": {"data": "ani-mini", "limit": 8},
        "labels": [10],
        "seeds": list(range(5)),
        "arms": {"denoise": {"objective": "denoise", "sigma": 0.1}},
        "pretrain": {"steps": 1, "batch_size": 4},
        "finetune": {"steps": 1, "batch_size": 4},
    }
    path, store = tmp_path / "few.yaml", tmp_path / "store"
    options = [str(path), "--store", str(store), "--out", str(tmp_path), "--interval", "bootstrap"]

    def compare() -> tuple[str, str]:
        with pytest.raises(SystemExit):
            cli.main(["compare", *options])
        return capsys.readouterr()

    refused = "intervals by bootstrap need 6 seeds or more with all their runs, got 5"
    path.write_text(yaml.safe_dump(spec))
    said, error = compare()
    assert refused in error and error.count("\n") == 1 and not said and not store.exists()
    path.write_text(yaml.safe_dump(spec | {"seeds": list(range(6))}))
    said, error = compare()
    assert "over all label budgets (intervals by bootstrap, verdicts by t; ** told from 0" in said
    effects, how = report.stored("few-effects", tmp_path)
    assert effects["change_low_%"].notna().all() and how["interval"] == "bootstrap"
    run = experiment.run

    def one_failed(*args, **options) -> pd.DataFrame:
        table = run(*args, **options)
        bad = (table["arm"] == "denoise") & (table["seed"] == 3)
        table.loc[bad, "status"] = "failed"
        return table

    monkeypatch.setattr(experiment, "run", one_failed)
    assert refused in compare()[1]


def test_all_networks_can_be_counted():
    for name in models.names():
        assert operations.of_step(potkit.build(name, seed=0), DATA, potkit.Supervised(), 2) > 0
