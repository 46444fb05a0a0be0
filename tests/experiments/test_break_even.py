"""When pretraining has paid: known costs, known savings."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from potkit.errors import ConfigError
from potkit.experiments import break_even
from potkit.experiments.arms import DOUBLED
from potkit.report import figures

BUDGETS = (25, 50, 100, 200)


def runs(factor: float = 2.0, spread: float = 0.01, seeds: int = 6, slope: float = -0.5):
    """Errors that fall as labels^slope; the pretrained arm does with n what scratch does with
    n · factor. A pretraining takes ten hours.
    """
    rng = np.random.default_rng(0)
    rows = []
    for arm, worth, hours in (("scratch", 1.0, 0.0), ("denoise", factor, 10.0)):
        for seed in range(seeds):
            for labels in BUDGETS:
                error = (labels * worth) ** slope * np.exp(rng.normal(0, spread))
                rows.append(
                    {
                        "arm": arm,
                        "labels": labels,
                        "seed": seed,
                        "status": "ok",
                        "forces_mae": error,
                        "energy_mae": error,
                        "seconds": 100.0,
                        "steps": 100,
                        "pretrain_seconds": 3600 * hours,
                    }
                )
    return pd.DataFrame(rows)


def test_targets_are_cost_over_saving():
    table = break_even.in_labels(runs(), label_hours=0.1).set_index("labels")
    row = table.loc[50]  # does as well as 100: saves 50 labels of 0.1 h, and costs 10 h
    assert row["saved_hours"] == pytest.approx(5.0, rel=0.1)
    assert row["targets"] == pytest.approx(2.0, rel=0.1)
    assert row["targets_low"] < row["targets"] < row["targets_high"] < 3
    assert break_even.in_words(row).startswith("pays from 2 targets on (2 to 3") or (
        break_even.in_words(row).startswith("pays from 3 targets on (2 to 3")
    )
    dearer = break_even.in_labels(runs(), label_hours=1.0).set_index("labels")
    assert dearer.loc[50, "targets"] == pytest.approx(row["targets"] / 10)


def test_what_lies_beyond_the_budgets_stays_open():
    row = break_even.in_labels(runs(), 0.1).set_index("labels").loc[200]
    assert row["relation"] == ">" and np.isnan(row["targets"])
    assert row["targets_low"] == 0.0
    assert "between" in break_even.in_words(row)


def test_an_arm_that_saves_nothing_never_pays_and_a_wide_one_has_no_upper_bound():
    worse = break_even.in_labels(runs(factor=0.5), 0.1).set_index("labels").loc[100]
    assert np.isinf(worse["targets_low"]) and "never pays" in break_even.in_words(worse)
    wide = break_even.in_labels(runs(1.1, spread=0.3, seeds=4), 0.1).set_index("labels")
    known = wide[wide["given"]]
    assert len(known) and np.isinf(known["targets_high"]).any()
    open_above = known[np.isinf(known["targets_high"]) & np.isfinite(known["targets_low"])]
    said = [break_even.in_words(row) for _, row in open_above.iterrows()]
    assert said
    for row, words in zip(open_above.to_dict("records"), said, strict=True):
        first = max(1, int(np.ceil(row["targets_low"])))
        assert words == f"whether it pays is not told; at best from {first} targets on"


def test_a_cheap_pretraining_pays_from_the_first_target_on():
    row = dict(given=True, targets=0.001, targets_low=0.0, targets_high=0.002)
    assert break_even.in_words(row) == "pays from 1 targets on (1 to 1)"
    row = dict(given=True, targets=np.nan, targets_low=0.0, targets_high=0.0)
    assert break_even.in_words(row) == "pays from between 1 and 1 targets on"


def test_a_flat_baseline_gives_no_answer():
    table = break_even.in_labels(runs(slope=0.0, spread=0.05), 0.1)
    assert table["targets"].isna().all()
    assert break_even.in_words(table.iloc[0]).startswith("not told")


def test_steps_saved_are_counted_in_time():
    by_steps = runs().rename(columns={"labels": "length"})
    by_steps["steps"] = by_steps["length"] * 4
    by_steps["seconds"] = by_steps["steps"] * 36.0  # a hundredth of an hour a step
    by_steps = by_steps.drop(columns="length").assign(labels=50)
    table = break_even.in_steps(by_steps).set_index("steps")
    # as well as 400 steps: 200 steps of 0.01 h saved
    assert table.loc[200, "saved_hours"] == pytest.approx(2.0, rel=0.1)
    assert table.loc[200, "targets"] == pytest.approx(5.0, rel=0.1)
    assert (table["budget"] == 50).all()
    with pytest.raises(ConfigError, match="several lengths"):
        break_even.in_steps(runs())


def test_both_questions_stand_side_by_side():
    table = runs()
    longer = table[table["arm"] == "scratch"].assign(arm="scratch-longer")
    longer["forces_mae"] *= 1.3 * np.exp(np.random.default_rng(1).normal(0, 0.01, len(longer)))
    answers = break_even.questions(pd.concat([table, longer]), 0.1)
    assert answers["arm"].tolist() == ["denoise"]
    assert answers["equal total cost"][0].endswith(": better")
    assert "targets on" in answers["amortised, 50 labels"][0]
    with pytest.raises(ConfigError, match="scratch-longer"):
        break_even.questions(table, 0.1)


def beside(table: pd.DataFrame, arm: str, factor: float) -> pd.DataFrame:
    """``table`` with scratch's runs again as another ``arm``, with ``factor`` times the error."""
    noise = np.exp(np.random.default_rng(1).normal(0, 0.01, int((table["arm"] == "scratch").sum())))
    again = table[table["arm"] == "scratch"].assign(arm=arm)
    again["forces_mae"] *= factor * noise
    return pd.concat([table, again], ignore_index=True)


def test_arms_without_a_pretraining_have_nothing_to_pay():
    table = beside(beside(runs(), "scratch-longer", 0.8), DOUBLED, 0.9)
    assert set(break_even.in_labels(table, 0.1)["arm"]) == {"denoise"}
    alone = table[table["arm"].isin(["scratch", "scratch-longer"])]
    assert not len(break_even.in_labels(alone, 0.1))
    assert not len(break_even.in_labels(runs().query("arm == 'scratch'"), 0.1))


def test_the_check_of_convergence_is_no_length_of_the_grid():
    grid = runs().rename(columns={"labels": "length"})
    grid = grid.assign(steps=grid["length"] * 4, labels=50).drop(columns="length")
    checked = beside(grid, DOUBLED, 0.9)
    # stretched, it has other steps than any other run
    checked.loc[checked["arm"] == DOUBLED, "steps"] *= 3
    pd.testing.assert_frame_equal(break_even.in_steps(checked), break_even.in_steps(grid))
    # and is no grid by itself
    once = runs().query("labels == 50")
    with pytest.raises(ConfigError, match="several lengths"):
        break_even.in_steps(pd.concat([once, once.assign(arm=DOUBLED, steps=200)]))
    assert not len(break_even.in_steps(grid[grid["arm"] == "scratch"]))


def test_a_declared_contrast_stays_in_its_own_table():
    table = beside(runs(), "scratch-longer", 1.3)
    plain = break_even.questions(table, 0.1)
    table["energy_rmse"] = 2 * table["energy_mae"]
    for metric, against in (("forces_mae", "scratch"), ("energy_rmse", "scratch-longer")):
        table.attrs["primary"] = {"arm": "denoise", "against": against, "metric": metric}
        told = break_even.questions(table, 0.1)
        pd.testing.assert_frame_equal(told, plain)


def test_the_figure_crosses_where_it_pays():
    table = break_even.in_labels(runs(), 0.1).set_index("labels", drop=False)
    chart = figures.break_even(table.loc[50])
    scratch, arm = (
        next(t for t in chart.data if t.name == name) for name in ("scratch", "denoise")
    )
    below = np.flatnonzero(np.asarray(arm.y) < np.asarray(scratch.y))[0]
    assert arm.x[below] == pytest.approx(table.loc[50, "targets"], abs=0.2)
    with pytest.raises(ConfigError, match="nothing to draw"):
        figures.break_even(table.loc[200])


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match="label_hours"):
        break_even.in_labels(runs(), 0.0)
    with pytest.raises(ConfigError, match="pretrain_seconds"):
        break_even.in_labels(runs().drop(columns="pretrain_seconds"), 1.0)
