"""Settings are chosen on molecules that neither the labels nor the test have."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import potkit
from potkit.errors import ConfigError, DataError
from potkit.experiments import choosing, statistics
from potkit.experiments import experiment as experiments
from potkit.report import sentences

TINY = {"name": "egnn", "preset": "small", "hidden": 8, "layers": 1, "radial": 4, "cutoff": 3.0}


@pytest.fixture(scope="module")
def structures():
    return potkit.load("ani-mini")[::10]


def tiny(structures, store, **changes):
    train, test = structures.split((0.8, 0.2), by="system")
    config = potkit.TrainConfig(steps=2, batch_size=4, progress=False)
    settings = dict(
        model=TINY,
        train=train,
        test=test,
        labels=[10],
        pretrain_on=train,
        seeds=[0, 1],
        objectives={"denoise": potkit.Denoise(sigma=0.1)},
        pretrain_config=config,
        finetune_config=config,
        store=store,
        longer=None,
    )
    return experiments.Experiment(**settings | changes)


def test_held_out_molecules_are_in_neither_part(structures):
    rest, held_out = choosing.validation_molecules(structures, 0.25, seed=1)
    assert not set(rest.system) & set(held_out.system) and len(rest) + len(held_out) == len(
        structures
    )
    one = structures[structures.system == structures.system[0]]
    with pytest.raises(DataError):
        choosing.validation_molecules(one)


def test_the_winner_is_the_best_on_validation_molecules(structures, tmp_path, monkeypatch):
    """The numbers of made-up runs decide; the test set is not among what is run."""
    experiment = tiny(structures, tmp_path)
    candidates = {f"σ {s}": potkit.Denoise(sigma=s) for s in (0.05, 0.1, 0.2)}
    asked = []

    def made_up(trial, progress):
        asked.append(trial)
        error = {"scratch": 0.9, "σ 0.05": 0.7, "σ 0.1": 0.5, "σ 0.2": 0.501}
        rows = [
            {
                "arm": arm,
                "labels": 10,
                "seed": seed,
                "status": "ok",
                # two candidates that differ by 0.2 % and scatter by 1 %, against each other
                "forces_mae": value * np.exp(0.01 * (-1) ** (seed + (arm == "σ 0.2"))),
                "seconds": 1.0,
            }
            for arm, value in error.items()
            for seed in range(6)
        ]
        return pd.DataFrame(rows)

    monkeypatch.setattr(experiments, "run", made_up)
    choice = choosing.choose(experiment, candidates, limit=7, progress=False)
    (trial,) = asked
    test_systems = {experiment.test.system_names()[i] for i in experiment.test.system}
    for part in (trial.train, trial.test):
        assert not test_systems & {part.system_names()[i] for i in part.system}
    assert len(trial.test) == choice.structures == 7 and trial.longer is None
    held_out = {trial.test.system_names()[i] for i in trial.test.system}
    assert not held_out & {trial.pretrain_on.system_names()[i] for i in trial.pretrain_on.system}
    table = choice.table.set_index("arm")
    assert choice.name in ("σ 0.1", "σ 0.2") and table.loc[choice.name, "verdict"] == "chosen"
    other = {"σ 0.1": "σ 0.2", "σ 0.2": "σ 0.1"}[choice.name]
    assert table.loc["σ 0.05", "verdict"] == "worse"
    assert table.loc[other, "verdict"].startswith("not told from 0")
    assert f"not told from it: {other}" in str(choice)


def finished(errors: dict[str, float], seeds: int = 4) -> pd.DataFrame:
    """Runs of two label budgets whose errors hardly scatter; a candidate without one failed."""
    rng = np.random.default_rng(0)
    rows = [
        {"arm": arm, "labels": labels, "seed": seed, "seconds": 1.0}
        | {"status": "failed" if np.isnan(error) else "ok", "error": "no reason"}
        | {"forces_mae": error * np.exp(rng.normal(0, 0.001))}
        for arm, error in errors.items()
        for labels in (10, 20)
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def test_a_candidate_that_failed_is_not_told_to_be_worse():
    runs = finished({"a": 0.5, "b": np.nan, "c": 0.8})
    choice = choosing.ranked(runs, ["a", "b", "c"])
    assert choice.dropped == ("b",) and choice.others == ["c"]
    ending = "all others are told to be worse; dropped, as no seed has all its runs: b"
    assert str(choice).endswith(ending)
    said = sentences.chosen_in_words(choice)
    assert said.endswith(
        "All others are told to be worse. Dropped, as no seed has all its runs: b."
    )
    alone = choosing.ranked(runs[runs["arm"] != "c"], ["a", "b"])
    for words in (str(alone), sentences.chosen_in_words(alone)):
        assert "others" not in words and "no seed has all its runs: b" in words
    # one of two budgets is not enough
    runs.loc[(runs["arm"] == "c") & (runs["labels"] == 20), "status"] = "failed"
    assert choosing.ranked(runs, ["a", "b", "c"]).dropped == ("b", "c")


def test_of_two_candidates_the_interval_is_the_paired_one():
    logs = np.random.default_rng(0).normal(size=(6, 2))
    mean, _, high = statistics.interval(logs[:, 0] - logs[:, 1])
    assert choosing.half_width(logs) == pytest.approx(high - mean, rel=1e-6)
    assert np.isnan(choosing.half_width(logs[:1]))


def test_a_choice_runs_and_is_found_again(structures, tmp_path):
    experiment = tiny(structures, tmp_path)
    candidates = {"narrow": potkit.Denoise(sigma=0.05), "wide": potkit.Denoise(sigma=0.3)}
    first = choosing.choose(experiment, candidates, progress=False)
    files = sorted(p.name for p in tmp_path.iterdir())
    again = choosing.choose(experiment, candidates, progress=False)
    assert first.table.equals(again.table) and first.name in candidates
    assert sorted(p.name for p in tmp_path.iterdir()) == files
    with pytest.raises(ConfigError, match="at least two"):
        choosing.choose(experiment, {"narrow": potkit.Denoise(sigma=0.05)})
