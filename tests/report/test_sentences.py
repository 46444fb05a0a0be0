"""No verdict stands without its interval, and the words are those of the numbers."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from potkit.errors import DataError
from potkit.experiments import statistics
from potkit.report import sentences


def made_up(factors: dict[str, float], labels=(50,), seeds=6, spread=0.02) -> pd.DataFrame:
    """Runs whose errors are ``factors`` times those of scratch, which fall with labels."""
    rng = np.random.default_rng(5)
    return pd.DataFrame(
        [
            {
                "data": "ani",
                "labels": n,
                "arm": arm,
                "seed": seed,
                "status": "ok",
                "forces_mae": f * n**-0.5 * np.exp(rng.normal(0, spread)),
                "energy_mae": f * np.exp(rng.normal(0, 1.0)),
                "seconds": 1.0,
            }
            for arm, f in factors.items()
            for n in labels
            for seed in range(seeds)
        ]
    )


RUNS = made_up({"scratch": 1.0, "scratch-longer": 0.9, "denoise": 0.6, "masked": 1.3})


def test_every_verdict_has_its_interval():
    said = sentences.verdicts(statistics.effects(RUNS))
    lines = [line for line in said.splitlines() if line.startswith("- ")]
    assert len(lines) == 5
    interval = r"[+−]\d+ % \([+−]\d+ to (?:> )?[+−]\d+ %\)"
    verdict = r"(?:better|worse|not told from 0 \([+−]\d+ to (?:> )?[+−]\d+ %\))"
    one = rf"{interval}: {verdict}"
    for line in lines:
        assert re.search(rf": force MAE {one}; energy MAE per structure {one}$", line), line
    assert "- ani: **denoise** against scratch: force MAE −" in said
    assert re.search(r"\*\*masked\*\* against scratch: force MAE [^;]*: worse;", said)
    assert "nothing" not in said and "Declared" not in said


def test_the_declared_contrast_is_named():
    primary = {"arm": "denoise", "against": "scratch-longer", "metric": "forces_mae"}
    said = sentences.verdicts(statistics.effects(RUNS, primary=primary))
    assert "Declared before the runs: denoise against scratch-longer, force MAE" in said
    assert "the other 9 are one family" in said


def test_ends_of_many_digits_are_no_numbers():
    wild = RUNS[RUNS["seed"] < 2].reset_index(drop=True)
    wild["energy_mae"] *= np.exp(np.random.default_rng(0).normal(0, 3, len(wild)))
    said = sentences.verdicts(statistics.effects(wild))
    assert "> +999 %" in said and not re.search(r"\d{4,} %", said)


def test_declared_contrasts_of_several_cells_are_a_family():
    cells = pd.concat([RUNS.assign(data=t) for t in ("a", "b")], ignore_index=True)
    primary = dict(arm="denoise", against="scratch", metric="forces_mae")
    said = sentences.verdicts(statistics.effects(cells, primary=primary))
    assert "Declared before the runs: denoise against scratch, force MAE, a family of 2;" in said


def test_gains_stand_cell_by_cell_against_each_baseline():
    rows = [
        dict(target=t, arm="denoise", metric="forces_mae", against=b, verdict=v) | {"change_%": c}
        for t, b, c, v in (
            ("a", "scratch", -14.2, "better"),
            ("a", "scratch-longer", -9.7, "not told from 0 (−20 to +1 %)"),
            ("b", "scratch", 3.4, "worse"),
        )
    ]
    table = pd.DataFrame(rows)
    said = sentences.gains(table)
    assert max(map(len, said.splitlines())) <= 100
    assert said.replace("\n", " ") == (
        "Change of the force error by denoise, against scratch / scratch-longer: "
        "a −14 % / −10 % (not told), b +3 %."
    )
    with pytest.raises(DataError, match="without force errors of 'masked'"):
        sentences.gains(table, "masked")


def test_tables_without_verdicts_are_refused():
    with pytest.raises(DataError, match="verdict"):
        sentences.verdicts(statistics.effects(RUNS).drop(columns="verdict"))


def test_a_choice_says_what_it_does_not_tell_apart():
    names = {"scratch": 1.0, "σ 0.1": 0.5, "σ 0.2": 0.8, "σ 0.4": 0.5001}
    runs = made_up(names)
    # better with one seed, worse with the next
    swing = runs["arm"].eq("σ 0.4") * (-1.0) ** runs["seed"]
    runs["forces_mae"] *= 1 + 0.1 * swing
    said = sentences.choice(runs)
    assert re.search(r"Chosen, because it has the smallest mean error: σ 0\.[14]\.", said)
    assert re.search(r"Not told from it: σ 0\.[14]\.$", said)
    (row,) = [line for line in said.splitlines() if line.startswith("| σ 0.2 ")]
    assert re.search(r"\+\d+ % \(\+\d+ to \+\d+ %\): worse \|$", row), row
    assert "scratch" not in said


def test_labels_saved_against_both_baselines_with_intervals():
    budgets = (25, 100, 400, 1600)
    names = {"scratch": 1.0, "scratch-longer": 0.8, "denoise": 0.5}
    said = sentences.saved(made_up(names, budgets))
    assert re.search(
        r"\*\*denoise\*\* against scratch: 25 labels do as well as \d+ \(\d+ to ", said
    )
    assert re.search(r"\*\*denoise\*\* against scratch-longer: 25 labels do as well as \d+ ", said)
    assert re.search(r"slopes of force MAE over labels: scratch −0\.\d+ \(−0\.\d+ to −0\.", said)
    of_slope = r"[+−]0\.\d+ \([+−]0\.\d+ to [+−]0\.\d+\)"
    difference = rf"denoise {of_slope}, {of_slope} to scratch's"
    assert re.search(difference, said)
    flat = made_up(names, budgets)
    flat["forces_mae"] *= flat["labels"] ** 0.5
    assert "is not told" in sentences.saved(flat)


def test_a_pretraining_that_several_runs_share_counts_once():
    runs = made_up({"scratch": 1.0, "denoise": 0.5}, (10, 20), seeds=2)
    of_seed = runs["seed"].map({0: 0.2, 1: 0.8})
    runs["pretrain_loss"] = of_seed.where(runs["arm"] == "denoise")
    said = sentences.learned(runs)
    assert "| ani | denoise | 2 | 0.400 [" in said and "scratch" not in said


def test_runs_that_ended_badly_stand_beside_the_median():
    calm = RUNS.drop(columns="energy_mae")  # energies here have a spread that is a fault of its own
    assert "No run that ended" in sentences.astray(calm)
    rows = (calm["arm"] == "masked") & (calm["seed"] == 4)
    runs = calm.assign(forces_mae=calm["forces_mae"].where(~rows, 10 * calm["forces_mae"]))
    [line] = sentences.astray(runs).splitlines()
    median = runs.loc[runs["arm"] == "masked", "forces_mae"].median()
    assert line.startswith("- ani: **masked**, 50 labels, seed 4: force MAE ")
    assert line.endswith(f"times the median of {1e3 * median:.4g}")
    [row] = statistics.astray(runs, ["forces_mae"]).to_dict("records")
    assert row["times"] == pytest.approx(row["error"] / median) and row["times"] > 8
    # as it was while seeds were what is compared
    assert list(row) == ["data", "labels", "arm", "seed", "error", "metric", "median", "times"]
    # failed runs are counted elsewhere
    failed = runs.assign(status=["failed" if bad else "ok" for bad in rows])
    assert not len(statistics.astray(failed, ["forces_mae"]))


def test_a_draw_that_ended_badly_is_not_hidden_by_the_others():
    """Of five draws one is ten times off: their geometric mean is only 1.6 times."""
    calm = RUNS.drop(columns="energy_mae")
    runs = pd.concat(
        [calm.assign(pretrain_seed=calm["seed"], label_draw=draw) for draw in range(5)],
        ignore_index=True,
    )
    bad = (runs["arm"] == "masked") & (runs["seed"] == 4) & (runs["label_draw"] == 3)
    runs["forces_mae"] *= np.where(bad, 10, 1)
    [line] = sentences.astray(runs).splitlines()
    assert line.startswith("- ani: **masked**, 50 labels, seed 4, draw 3 of labels: force MAE ")


def test_of_two_runs_none_is_told_to_have_ended_badly():
    calm = RUNS.drop(columns="energy_mae")
    two = calm[calm["seed"] < 2].reset_index(drop=True)
    two.loc[0, "forces_mae"] *= 100
    start = "Of fewer than 3 runs of an arm and label budget it cannot be told whether one ended "
    said = sentences.astray(two)
    assert said == f"{start}badly: scratch, scratch-longer, denoise, masked."
    # where some arms have enough, both are said
    few = calm[(calm["seed"] < 2) | (calm["arm"] != "masked")]
    assert sentences.astray(few) == (
        "No run that ended has an error of more than 3 times the median of its arm. "
        f"{start}badly: masked."
    )
    few = few.reset_index(drop=True)
    few.loc[0, "forces_mae"] *= 100
    first, _, last = sentences.astray(few).splitlines()
    assert first.startswith("- ani: **scratch**, 50 labels, seed 0: force MAE ")
    assert last == f"{start}badly: masked."
