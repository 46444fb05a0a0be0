"""Intervals and paired changes against known values."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

import potkit
from potkit.errors import ConfigError, DataError
from potkit.experiments import convergence
from potkit.experiments import labels_saved as saving
from potkit.experiments.statistics import (
    _hours,
    check_method,
    effects,
    holm,
    interval,
    labels_saved,
    learning_curves,
    over_budgets,
    p_value,
    saved_in_words,
    summarise,
    verdict,
    with_budgets,
)
from potkit.report import blocks, sentences
from potkit.report import tables as report


def test_t_interval_of_three_values():
    mean, low, high = interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 * 1.0 / np.sqrt(3)  # t(0.975, 2 degrees of freedom) from tables
    assert (mean, low, high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))
    assert np.isnan(interval([5.0])[1:]).all()


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = [
        low <= 0.7 <= high
        for _, low, high in (interval(rng.normal(0.7, 2.0, 4)) for _ in range(2000))
    ]
    assert abs(np.mean(inside) - 0.95) < 0.02


def frame():
    rows = []
    # seeds differ much, the paired change is always the same
    for seed, base in enumerate((1.0, 2.0, 4.0)):
        rows += [
            dict(arm=a, seed=seed, labels=10, forces_mae=base * f, seconds=1.0, status="ok")
            for a, f in (("scratch", 1.0), ("denoise", 0.8))
        ]
        rows.append(
            dict(
                arm="masked",
                seed=seed,
                labels=10,
                forces_mae=base * (0.5, 1.0, 2.0)[seed],
                seconds=1.0,
                status="ok",
            )
        )
    rows.append(
        dict(arm="broken", seed=0, labels=10, forces_mae=np.nan, seconds=np.nan, status="failed")
    )
    return pd.DataFrame(rows)


def test_changes_are_paired_by_seed():
    table = summarise(frame(), ["forces_mae"]).set_index("arm")
    assert table.loc["denoise", "change_%"] == pytest.approx(-20.0)
    assert (
        table.loc["denoise", "change_low_%"] == pytest.approx(-20.0)
        and table.loc["denoise", "effect"] == "better"
    )
    assert (
        table.loc["masked", "change_%"] == pytest.approx(0.0, abs=1e-9)
        and table.loc["masked", "effect"] == "unclear"
    )
    assert table.loc["scratch", "mean"] == pytest.approx(2.0) and np.isnan(
        table.loc["scratch", "change_%"]
    )
    assert "broken" not in table.index


def test_an_index_that_repeats_mixes_no_experiments():
    """As of two tables of runs that were put together."""
    parts = [frame().assign(network=name) for name in ("egnn", "gns")]
    parts[1]["forces_mae"] *= 2
    runs = pd.concat(parts)
    runs = runs[["network", *frame()]]
    runs.attrs["primary"] = {"arm": "denoise"}
    assert runs.index.has_duplicates
    by = ["network", "labels"]
    table = summarise(runs, ["forces_mae"], by=by)
    whole = summarise(runs.reset_index(drop=True), ["forces_mae"], by=by)
    pd.testing.assert_frame_equal(table, whole)
    of_scratch = table[table["arm"] == "scratch"].set_index("network")
    assert of_scratch["mean"].tolist() == pytest.approx([2.0, 4.0])
    assert of_scratch["seeds"].tolist() == [3, 3] and runs.attrs["primary"] == {"arm": "denoise"}


def test_a_metric_that_one_seed_lacks_leaves_the_others():
    """As in `effects`, which takes the seeds that are there."""
    runs = curves({"scratch": (1.0, -0.5), "denoise": (0.8, -0.5)}, budgets=(25,), noise=0.1)
    runs.loc[(runs["arm"] == "denoise") & (runs["seed"] == 1), "forces_mae"] = np.nan
    row = summarise(runs, ["forces_mae"]).set_index("arm").loc["denoise"]
    there = runs[(runs["arm"] == "denoise") & (runs["seed"] != 1)]
    expected = np.exp(interval(np.log(there["forces_mae"])))
    assert row[["mean", "low", "high"]].tolist() == pytest.approx(list(expected))
    assert row["seeds"] == 2 and row["failed"] == 0
    columns = ["change_%", "change_low_%", "change_high_%"]
    told = effects(runs, ["forces_mae"]).iloc[0]
    assert row[columns].tolist() == pytest.approx(told[columns].tolist()) and told["seeds"] == 2


def test_results_are_stored_with_their_origin(tmp_path):
    table = pd.DataFrame({"a": [1.5, 2.5]})
    report.store(table, "x", "potkit compare x.yaml", tmp_path, note="n")
    again, how = report.stored("x", tmp_path)
    pd.testing.assert_frame_equal(table, again)
    assert (
        how["command"] == "potkit compare x.yaml"
        and how["hardware"]
        and how["versions"]["potkit"] == potkit.__version__
    )
    with pytest.raises(DataError, match=r"y.csv"):
        report.stored("y", tmp_path)


def test_wide_table_states_units_and_intervals():
    table = report.wide(summarise(frame(), ["forces_mae"]), ["forces_mae"])
    assert list(table["arm"]) == ["scratch", "denoise", "masked"]
    assert (
        table["force MAE (meV/Å)"][0].startswith("2000.0 [")
        and "(-20 %)" in table["force MAE (meV/Å)"][1]
    )
    text = report.markdown(table)
    assert text.splitlines()[1] == "| " + " | ".join(["---"] * len(table.columns)) + " |"


def test_bootstrap_interval():
    values = np.random.default_rng(3).normal(5.0, 2.0, 40)
    mean, low, high = interval(values, method="bootstrap")
    t = interval(values)
    # of many values both agree
    assert (
        mean == t[0]
        and low == pytest.approx(t[1], abs=0.1)
        and high == pytest.approx(t[2], abs=0.1)
    )
    six = np.arange(6.0)
    low, high = interval(six, method="bootstrap")[1:]
    assert 0.0 <= low < 2.5 < high <= 5.0, "a bootstrap never leaves the range of its values"
    assert interval(six, method="bootstrap") == interval(six, method="bootstrap")
    # the range of five holds the mean too seldom
    assert np.isnan(interval(six[:5], method="bootstrap")[1:]).all()
    with pytest.raises(ConfigError, match="'normal'"):
        interval([1.0, 2.0], method="normal")


def test_a_bootstrap_of_few_seeds_is_refused_in_one_line():
    check_method("bootstrap", 6)
    check_method("t", 2)
    with pytest.raises(ConfigError, match="need 6 seeds or more with all their runs, got 5"):
        check_method("bootstrap", 5)


def test_tables_whose_intervals_are_by_bootstrap_say_so(tmp_path):
    runs = curves({"scratch": (1.0, -0.5), "denoise": (0.8, -0.5)}, seeds=range(6), noise=0.1)
    table = effects(runs, method="bootstrap")
    by_t = effects(runs)
    # verdicts are by t in any case
    same = ["arm", "against", "change_%", "p", "p_holm", "verdict"]
    pd.testing.assert_frame_equal(table[same], by_t[same])
    assert (table["change_low_%"] != by_t["change_low_%"]).all()
    said = "Intervals in brackets are by bootstrap, verdicts by t."
    assert said in sentences.verdicts(table).splitlines()[0]
    assert said not in sentences.verdicts(by_t)
    report.store(table, "b-effects", "potkit compare", tmp_path, interval="bootstrap")
    stored, _ = report.stored("b-effects", tmp_path)
    assert said in sentences.verdicts(stored)


def test_seeds_that_got_better_are_counted():
    table = summarise(frame(), ["forces_mae"], method="bootstrap").set_index("arm")
    assert table.loc["denoise", "better_seeds"] == 3 and table.loc["masked", "better_seeds"] == 1


BUDGETS = (25, 50, 100, 200, 400)


def curves(
    slopes: dict[str, tuple[float, float]], seeds=(0, 1, 2), noise: float = 0.0, budgets=BUDGETS
) -> pd.DataFrame:
    """Errors a · labels^slope of each arm, (a, slope); a seed's factor is the same in all arms."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in seeds:
        for labels in budgets:
            for arm, (a, slope) in slopes.items():
                error = a * labels**slope * (1.0 + 0.2 * seed) * np.exp(noise * rng.normal())
                rows.append(
                    dict(
                        arm=arm,
                        seed=seed,
                        labels=labels,
                        forces_mae=error,
                        seconds=1.0,
                        status="ok",
                    )
                )
    return pd.DataFrame(rows)


def test_slopes_of_power_laws():
    table = learning_curves(curves({"scratch": (2.0, -0.5), "denoise": (1.0, -0.3)})).set_index(
        "arm"
    )
    assert table["slope"].tolist() == pytest.approx([-0.5, -0.3]) and table[
        "slope_low"
    ].tolist() == pytest.approx([-0.5, -0.3])
    assert table.loc["denoise", "slope_change"] == pytest.approx(0.2) and np.isnan(
        table.loc["scratch", "slope_change"]
    )
    assert (
        table["at"].tolist() == pytest.approx([100.0, 100.0]) and (table["misfit_%"] < 1e-9).all()
    )
    assert table.loc["scratch", "error_at"] == pytest.approx(
        2.0 * 100**-0.5 * np.prod([1.0, 1.2, 1.4]) ** (1 / 3)
    )
    bent = curves({"scratch": (2.0, -0.5)})
    bent.loc[bent["labels"] == 400, "forces_mae"] *= 1.5
    assert learning_curves(bent)["misfit_%"][0] > 5
    noisy = learning_curves(curves({"scratch": (2.0, -0.5)}, seeds=range(6), noise=0.05)).iloc[0]
    assert (
        noisy["slope_low"] < -0.5 < noisy["slope_high"]
        and noisy["slope_high"] - noisy["slope_low"] < 0.15
    )


def test_labels_saved_on_curves_that_are_known():
    """denoise = scratch at 4 times the labels; masked = scratch at half of them."""
    runs = curves({"scratch": (1.0, -0.5), "denoise": (0.5, -0.5), "masked": (2**0.5, -0.5)})
    table = labels_saved(runs).set_index(["arm", "labels"])
    assert table.loc["denoise", "needs"].tolist() == pytest.approx([100, 200, 400, 400, 400])
    # 800 and 1600 were not measured, so not claimed
    assert table.loc["denoise", "relation"].tolist() == ["=", "=", "=", ">", ">"]
    assert table.loc[("denoise", 50), ["saved", "factor"]].tolist() == pytest.approx([150, 4.0])
    assert table.loc["masked", "relation"].tolist() == ["<", "=", "=", "=", "="]
    assert table.loc["masked", "needs"].tolist() == pytest.approx([25, 25, 50, 100, 200])
    # pairs share their luck
    assert (table.loc[("denoise", 50), ["low", "high"]].astype(float) - 200).abs().max() < 1e-6
    assert (
        saved_in_words(table.reset_index().iloc[3])
        == "200 labels do as well as > 400 (> 400 to > 400) from scratch"
    )


def test_labels_saved_is_honest_about_noise():
    runs = curves({"scratch": (1.0, -0.5), "denoise": (0.6, -0.5)}, seeds=range(5), noise=0.1)
    table = labels_saved(runs).set_index("labels")
    assert (
        table.loc[50, "low"] < 50 / 0.36 < table.loc[50, "high"]
        and table.loc[50, "high"] - table.loc[50, "low"] > 5
    )
    # a curve that rises somewhere is flattened first, so no budget is credited with a lucky draw
    bumpy = curves({"scratch": (1.0, -0.5), "denoise": (1.0, -0.5)})
    bumpy.loc[(bumpy["arm"] == "scratch") & (bumpy["labels"] == 100), "forces_mae"] = 0.2
    needs = labels_saved(bumpy).set_index("labels")["needs"]
    assert needs.is_monotonic_increasing
    # 50 and 100 are pooled; the error at 50 is reached on the way down from there to 200, not
    # across the flat piece
    factor = (1.0 * 1.2 * 1.4) ** (1 / 3)
    level, error, end = np.sqrt(factor / 50**0.5 * 0.2), factor / 50**0.5, factor / 200**0.5
    assert needs[50] == pytest.approx(100 * 2 ** (np.log(level / error) / np.log(level / end)))


def test_curves_of_several_experiments_stay_apart():
    one = curves({"scratch": (1.0, -0.5), "denoise": (0.5, -0.5)})
    other = curves({"scratch": (1.0, -0.2), "denoise": (0.9, -0.2)})
    both = pd.concat([one.assign(network="egnn"), other.assign(network="gns")], ignore_index=True)
    both.loc[
        (both["network"] == "gns") & (both["seed"] == 2) & (both["labels"] == 25),
        ["status", "forces_mae"],
    ] = ["failed", np.nan]
    table = learning_curves(both, by=["network", "labels"]).set_index(["network", "arm"])
    assert table.loc[("egnn", "scratch"), "slope"] == pytest.approx(-0.5) and table.loc[
        ("gns", "denoise"), "slope"
    ] == pytest.approx(-0.2)
    # a seed without all its runs does not count
    assert table.loc["gns", "seeds"].tolist() == [2, 2]
    assert set(labels_saved(both, by=["network"])["network"]) == {"egnn", "gns"}


def test_curves_that_cannot_be_drawn():
    with pytest.raises(ConfigError, match="at least two label budgets"):
        learning_curves(curves({"scratch": (1.0, -0.5)}, budgets=(50,)))
    with pytest.raises(ConfigError, match="no arm 'scratch'"):
        labels_saved(curves({"denoise": (1.0, -0.5)}))
    with pytest.raises(ConfigError, match="'energy_mae'"):
        learning_curves(curves({"scratch": (1.0, -0.5)}), "energy_mae")


def test_learning_curves_as_people_read_them():
    runs = curves({"scratch": (1.0, -0.5), "denoise": (0.5, -0.5)})
    table = report.curves(runs).set_index("arm")
    assert (
        table.loc["denoise", "worth of 50 labels"] == "200 (200 to 200)"
        and table.loc["denoise", "worth of 400 labels"] == "> 400 (> 400 to > 400)"
    )
    assert (
        table.loc["scratch", "slope"] == "-0.50 (-0.50 to -0.50)"
        and table.loc["scratch", "worth of 50 labels"] == ""
    )
    both = pd.concat([runs.assign(model="egnn"), runs.assign(model="gns")], ignore_index=True)
    both.attrs["by"] = ["model", "labels"]
    assert report.curves(both)["model"].tolist() == ["egnn", "egnn", "gns", "gns"]


# -- over all label budgets ----------------------------------------------------------------------
def test_effects_pool_budgets_and_count_seeds_once():
    runs = curves({"scratch": (1.0, -0.5), "scratch-longer": (0.8, -0.5), "denoise": (0.6, -0.5)})
    table = effects(runs, ["forces_mae"]).set_index(["arm", "against"])
    assert list(table.index) == [
        ("scratch-longer", "scratch"),
        ("denoise", "scratch"),
        ("denoise", "scratch-longer"),
    ]
    assert table["change_%"].tolist() == pytest.approx([-20.0, -40.0, -25.0])
    assert (
        table["seeds"].tolist() == [3, 3, 3]
        and table["budgets"].tolist() == [len(BUDGETS)] * 3
        and set(table["effect"]) == {"better"}
    )
    # the interval is that of three numbers, the means of each seed's logs, however many budgets
    # there are
    noisy = curves({"scratch": (1.0, -0.5), "denoise": (0.9, -0.48)}, noise=0.3)
    logs = np.log(noisy.pivot_table(index="seed", columns=["arm", "labels"], values="forces_mae"))
    mean, low, high = interval((logs["denoise"] - logs["scratch"]).mean(axis=1))
    row = effects(noisy, ["forces_mae"]).iloc[0]
    assert row[["change_%", "change_low_%", "change_high_%"]].tolist() == pytest.approx(
        [100 * np.expm1(v) for v in (mean, low, high)]
    )
    assert row["effect"] == "unclear" and low < 0 < high


def test_effects_of_several_experiments_and_failed_runs():
    one = curves({"scratch": (1.0, -0.5), "denoise": (0.5, -0.5)})
    other = curves({"scratch": (1.0, -0.2), "denoise": (1.1, -0.2)})
    both = pd.concat([one.assign(network="egnn"), other.assign(network="gns")], ignore_index=True)[
        ["network", "labels", *one.columns.drop("labels")]
    ]
    both.loc[
        (both["network"] == "gns") & (both["seed"] == 2) & (both["arm"] == "denoise"),
        ["status", "forces_mae"],
    ] = ["failed", np.nan]
    table = effects(both).set_index("network")  # there are no energies, and no scratch-longer
    assert table["change_%"].tolist() == pytest.approx([-50.0, 10.0]) and table[
        "seeds"
    ].tolist() == [3, 2]
    assert table["effect"].tolist() == ["better", "worse"]
    both.loc[
        (both["network"] == "gns")
        & (both["seed"] == 1)
        & (both["labels"] == 25)
        & (both["arm"] == "scratch"),
        "status",
    ] = "failed"
    table = effects(both).set_index("network")
    assert table["seeds"].tolist() == [3, 1] and table["effect"].tolist() == [
        "better",
        "unclear",
    ], "a seed without all budgets does not count"
    both.loc[(both["network"] == "gns") & (both["labels"] == 25), "status"] = "failed"
    assert (
        effects(both)["network"].tolist() == ["egnn", "gns"]
        and effects(both)["budgets"].tolist()[1] == len(BUDGETS) - 1
    )


def test_effects_as_people_read_them(tmp_path):
    runs = curves(
        {"scratch": (1.0, -0.5), "scratch-longer": (0.8, -0.5), "denoise": (0.6, -0.5)}, noise=0.3
    )
    table = effects(runs)
    shown = report.effects(table)
    assert list(shown) == [
        "arm",
        "seeds",
        "force MAE against scratch",
        "force MAE against scratch-longer",
    ]
    assert shown["arm"].tolist() == ["scratch-longer", "denoise"] and shown.iloc[0, 3] == ""
    against_scratch = table[table["against"] == "scratch"].to_dict("records")
    for row, text in zip(against_scratch, shown["force MAE against scratch"], strict=True):
        assert (
            text.startswith("**") == text.endswith("**") == (row["verdict"] in ("better", "worse"))
            and f"{row['change_%']:+.0f} % (" in text
        )
    told = [told for told in table["verdict"] if told in ("better", "worse")]
    assert 0 < len(told) < len(table), "both kinds of cells are looked at"
    report.store(table, "grid-effects", "potkit compare grid.yaml", tmp_path)
    block = blocks.fill("<!-- effects: grid-effects -->\n<!-- end -->", tmp_path)
    assert (
        "| arm | seeds | force MAE against scratch | force MAE against scratch-longer |" in block
        and "Made by `potkit compare" in block
    )
    alone = report.effects(effects(runs[runs["seed"] == 0]))
    assert "(" not in alone.iloc[1, 2], "one seed has no interval"


def test_a_table_of_effects_without_verdicts_is_not_shown():
    with pytest.raises(DataError, match="verify --rewrite"):
        report.effects(
            effects(curves({"scratch": (1.0, -0.5), "denoise": (0.5, -0.5)})).drop(
                columns="verdict"
            )
        )


# -- verdicts on many comparisons ----------------------------------------------------------------
def test_holm_on_numbers_worked_out_by_hand():
    adjusted, levels = holm([0.01, 0.04, 0.03, 0.005, np.nan])
    assert adjusted[:4].tolist() == pytest.approx([0.03, 0.06, 0.06, 0.02]) and np.isnan(
        adjusted[4]
    )
    # 0.005 ≤ 0.05/4, 0.01 ≤ 0.05/3, 0.03 > 0.05/2: stops there
    assert levels.tolist() == pytest.approx([0.05 / 3, 0.05 / 2, 0.05 / 2, 0.05 / 4, 0.05])


def test_verdicts_never_say_that_there_is_nothing():
    assert verdict([-0.1, -0.11, -0.1]) == "better" and verdict([0.1, 0.11, 0.1]) == "worse"
    logs = np.log([0.9, 1.0, 1.1])
    low, high = 100 * np.expm1(interval(logs)[1:])
    assert verdict(logs) == f"not told from 0 (−{-low:.0f} to +{high:.0f} %)"
    assert "single seed" in verdict([0.3])


def test_the_declared_contrast_is_judged_alone_and_the_others_together():
    """A moderate effect stands by itself and falls as one of many; its words never contradict
    themselves.
    """
    arms = {"scratch": (1.0, -0.5), "scratch-longer": (0.95, -0.5)} | {
        f"arm {k}": (0.93, -0.5) for k in range(8)
    }
    runs = curves(arms, seeds=range(6), noise=0.1)
    alone = {"arm": "arm 3", "against": "scratch", "metric": "forces_mae"}
    table = effects(runs, primary=alone)
    first = table[table["family"] == "primary"]
    assert (
        len(first) == 1
        and first["p"].tolist() == first["p_holm"].tolist()
        and first["verdict"].tolist() == ["better"]
    )
    others = table[table["family"] == "others"]
    assert len(others) == 16 and (others["p_holm"] >= others["p"]).all()
    falls = others[(others["effect"] != "unclear") & (others["p_holm"] > 0.05)]
    assert len(falls) and all(
        re.fullmatch(r"not told from 0 \(−\d+ to \+\d+ %\)", v) for v in falls["verdict"]
    )
    undeclared = effects(runs)
    assert set(undeclared["family"]) == {"others"} and undeclared.loc[
        first.index[0], "verdict"
    ].startswith("not told from 0 (−")
    runs.attrs["primary"] = alone
    pd.testing.assert_frame_equal(effects(runs), table)


def test_the_declared_contrast_may_compare_two_arms():
    """It is one row more, judged alone; all other comparisons stay as they are."""
    arms = {"scratch": (1.0, -0.5), "denoise": (0.9, -0.5), "cheap": (0.8, -0.5), "x": (0.9, -0.5)}
    runs = curves(arms, seeds=range(6), noise=0.05)
    before = effects(runs)
    table = effects(runs, primary={"arm": "cheap", "against": "denoise", "metric": "forces_mae"})
    first = table[table["family"] == "primary"]
    assert first[["arm", "against"]].to_numpy().tolist() == [["cheap", "denoise"]]
    logs = np.log(1 + first["change_%"].iloc[0] / 100)
    known = before.set_index("arm")["change_%"].map(lambda v: np.log1p(v / 100))
    assert logs == pytest.approx(known["cheap"] - known["denoise"])
    rest = table[table["family"] == "others"].reset_index(drop=True)
    pd.testing.assert_frame_equal(rest, before)


# -- labels saved, harder cases ------------------------------------------------------------------
def test_labels_needed_below_a_flat_piece_start_from_its_right_end():
    """2, 4 and 8 labels with errors 1, 1 and 1/4: half is reached half way from 4 to 8, not from
    2 to 8.
    """
    budgets = np.array([2.0, 4.0, 8.0])
    falling = np.log([1.0, 1.0, 0.25])
    # 5.66; was 4.00
    assert saving.needs(budgets, falling, np.log(0.5)) == pytest.approx(4 * 2**0.5)
    assert saving.needs(budgets, falling, 0.0) == 2.0, "the fewest labels with that error"
    assert saving.needs(budgets, falling, np.log(0.25)) == pytest.approx(8.0)
    assert (
        saving.needs(budgets, falling, np.log(1.01)) == -np.inf
        and saving.needs(budgets, falling, np.log(0.24)) == np.inf
    )


def test_the_ends_of_the_interval_are_where_the_t_test_turns():
    rng = np.random.default_rng(1)
    budgets = np.array(BUDGETS, float)
    base = np.log(budgets) * -0.4 + 0.05 * rng.normal(size=(5, len(budgets)))
    error = base[:, 2] + 0.05 * rng.normal(size=5)
    point, low, high = saving.needs_interval(budgets, base, error)
    assert budgets[0] < low < point < high < budgets[-1]
    for end, sign in ((low, -1), (high, 1)):
        curve = np.array(
            [np.interp(np.log(end), np.log(budgets), row) for row in saving.pooled(base)]
        )
        difference = error - curve
        assert (
            p_value(difference) == pytest.approx(0.05, abs=1e-6)
            and np.sign(difference.mean()) == sign
        )


def test_labels_saved_is_given_only_where_labels_limit_the_baseline():
    flat = curves({"scratch": (1.0, 0.0), "denoise": (0.9, -0.1)}, noise=0.05)
    table = labels_saved(flat)
    assert (
        not table["given"].any() and table["needs"].isna().all() and set(table["relation"]) == {""}
    )
    assert "slope" in table["why"][0] and "is not told: more labels" in saved_in_words(
        table.iloc[0]
    )
    assert set(report.curves(flat).set_index("arm").loc["denoise"].drop(["seeds", "slope"])) == {
        "not told"
    }
    single = labels_saved(curves({"scratch": (1.0, -0.5), "denoise": (0.9, -0.5)}, seeds=[0]))
    assert not single["given"].any() and "1 seed" in single["why"][0]


def test_labels_saved_against_longer_training_stands_beside():
    runs = curves({"scratch": (1.0, -0.5), "scratch-longer": (0.5, -0.5), "denoise": (0.5, -0.5)})
    shown = report.curves(runs).set_index("arm")
    assert shown.loc["denoise", "worth of 50 labels"] == "200 (200 to 200)"
    assert shown.loc["denoise", "worth of 50 labels of scratch-longer"] == "50 (50 to 50)"
    assert shown.loc["scratch-longer", "worth of 50 labels"] == "200 (200 to 200)"
    assert shown.loc["scratch-longer", "worth of 50 labels of scratch-longer"] == ""
    row = (
        labels_saved(runs, baseline="scratch-longer")
        .set_index(["arm", "labels"])
        .reset_index()
        .iloc[6]
    )
    assert saved_in_words(row).endswith("of scratch-longer")


# -- label draws nested in pretrainings ----------------------------------------------------------
def nested(pretrainings=4, draws=3, change=-0.2) -> pd.DataFrame:
    rng = np.random.default_rng(5)
    rows = []
    for p in range(pretrainings):
        of_arm = 0.1 * rng.normal()
        for d in range(draws):
            base = 0.1 * rng.normal()
            for n in (25, 100):
                common = dict(
                    labels=n,
                    seed=10 * p + d,
                    pretrain_seed=p,
                    label_draw=d,
                    seconds=1.0,
                    status="ok",
                )
                for arm, log in (
                    ("scratch", base),
                    ("denoise", base + change + of_arm + 0.1 * rng.normal()),
                ):
                    rows.append(dict(arm=arm, forces_mae=np.exp(log - 0.3 * np.log(n)), **common))
    return pd.DataFrame(rows)


def test_draws_are_averaged_and_pretrainings_counted():
    runs = nested()
    logs = np.log(
        runs.pivot_table(
            index=["pretrain_seed", "label_draw", "labels"], columns="arm", values="forces_mae"
        )
    )
    ratio = (logs["denoise"] - logs["scratch"]).groupby(level="pretrain_seed").mean()  # 4 numbers
    expected = [100 * np.expm1(v) for v in interval(ratio)]
    row = effects(runs).iloc[0]
    assert row["seeds"] == 4 and row[
        ["change_%", "change_low_%", "change_high_%"]
    ].tolist() == pytest.approx(expected)
    small = summarise(runs, ["forces_mae"]).set_index(["labels", "arm"])
    at = (
        (logs["denoise"] - logs["scratch"])
        .xs(25, level="labels")
        .groupby(level="pretrain_seed")
        .mean()
    )
    assert small.loc[(25, "denoise"), "seeds"] == 4 and len(at) == 4
    assert small.loc[(25, "denoise"), "change_%"] == pytest.approx(100 * np.expm1(at.mean()))
    assert (learning_curves(runs)["seeds"] == 4).all() and (labels_saved(runs)["seeds"] == 4).all()
    # a draw that failed in one arm is left out of the pair, the pretraining stays
    runs.loc[(runs["arm"] == "denoise") & (runs["seed"] == 1), "status"] = "failed"
    assert effects(runs).iloc[0]["seeds"] == 4
    assert (
        summarise(runs, ["forces_mae"]).set_index(["labels", "arm"]).loc[(25, "denoise"), "failed"]
        == 1
    )


# -- what a second reading of this room found -----------------------------------------------------
def test_experiments_with_a_single_budget_have_no_curve():
    """Each its own budget: a grid of such has no learning curve, and loses nothing by it."""
    several = curves(
        {"scratch": (1.0, -0.5), "denoise": (0.8, -0.4)}, budgets=(10, 40, 160)
    ).assign(target="a")
    single = several[several["labels"] == 10].assign(target="b", labels=30)
    runs = pd.concat([several, single], ignore_index=True)
    runs = runs[["target", *several.columns.drop("target")]]
    assert set(with_budgets(runs, 3)["target"]) == {"a"}
    assert len(with_budgets(runs[runs["target"] == "b"], 2)) == 0
    assert set(report.curves(runs)["target"]) == {"a"}


def test_names_of_experiments_stay_text_where_they_look_like_numbers():
    table = pd.DataFrame({"batch": ["16", "64"], "arm": ["None", "scratch"], "error": [0.1, 0.2]})
    back = report.as_stored(table)
    assert back["batch"].tolist() == ["16", "64"] and back["arm"].tolist() == ["None", "scratch"]
    assert back["error"].tolist() == [0.1, 0.2]
    assert report.as_stored(pd.DataFrame()).empty


def test_a_declared_contrast_is_told_whatever_else_is_asked():
    runs = frame()
    runs["forces_rmse"] = 1.5 * runs["forces_mae"]
    declared = {"arm": "denoise", "against": "scratch", "metric": "forces_rmse"}
    table = effects(runs, primary=declared, contrasts=[("masked", "scratch")])
    primary = table[table["family"] == "primary"]
    assert primary[["arm", "against", "metric"]].to_dict("records") == [declared]
    assert primary["change_%"].item() == pytest.approx(-20.0)
    # of the root mean square nothing else was asked
    assert (table["metric"] == "forces_rmse").sum() == 1


def test_what_labels_are_worth_needs_more_than_one_seed_of_the_arm():
    runs = curves({"scratch": (1.0, -0.5), "denoise": (0.8, -0.4)}, budgets=(10, 40, 160))
    one = runs[(runs["arm"] == "scratch") | (runs["seed"] == runs["seed"].min())]
    table = labels_saved(one)
    assert not table["given"].any() and "1 seed of denoise" in table["why"].iloc[0]
    assert "nan" not in saved_in_words(table.iloc[0])


def test_a_draw_that_one_arm_lacks_counts_for_none():
    rows = [
        dict(arm=arm, seed=0, pretrain_seed=0, label_draw=draw, labels=10, status="ok", seconds=1.0)
        | {"forces_mae": 1.0 + draw}
        for arm in ("scratch", "denoise")
        for draw in (0, 1)
    ]
    runs = pd.DataFrame(rows)
    runs.loc[(runs["arm"] == "denoise") & (runs["label_draw"] == 1), "status"] = "failed"
    wide = over_budgets(runs)
    assert wide["scratch"].item() == wide["denoise"].item() == 0.0


def test_both_pretrainings_of_a_contrast_cost():
    runs = frame()
    runs["pretrain_seconds"] = runs["arm"].map({"denoise": 3600.0, "masked": 7200.0}).fillna(0.0)
    before, _ = _hours(runs[runs["status"] == "ok"], "masked", "denoise", "forces_mae")
    assert before == pytest.approx(3.0)


def test_convergence_says_where_rates_differ():
    rows = [
        dict(arm=arm, labels=10, seed=seed, status="ok", steps=steps, chosen=chosen, seconds=1.0)
        | {"forces_mae": error * (1 + 0.01 * seed), "pretrain_seed": seed, "label_draw": 0}
        for arm, steps, chosen, error in (
            ("scratch", 100, "lr 0.002", 1.0),
            ("scratch-longer", 300, "lr 0.001", 0.9),
        )
        for seed in range(3)
    ]
    (line,) = convergence.lines(convergence.table(pd.DataFrame(rows)))
    assert "3 times the steps, each arm with what was chosen for it (lr 0.002 → lr 0.001)," in line
    same = pd.DataFrame(rows).assign(chosen="lr 0.001")
    (line,) = convergence.lines(convergence.table(same))
    assert "3 times the steps change" in line
