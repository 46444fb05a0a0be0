"""Intervals and paired changes against known values."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import potkit
from potkit import report
from potkit.errors import DataError
from potkit.statistics import interval, summarise


def test_t_interval_of_three_values():
    mean, low, high = interval([1.0, 2.0, 3.0])
    half = 4.302652729911275 * 1.0 / np.sqrt(3)  # t(0.975, 2 degrees of freedom) from tables
    assert (mean, low, high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))
    assert np.isnan(interval([5.0])[1:]).all()


def test_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = [low <= 0.7 <= high for _, low, high in (interval(rng.normal(0.7, 2.0, 4)) for _ in range(2000))]
    assert abs(np.mean(inside) - 0.95) < 0.02


def frame():
    rows = []
    for seed, base in enumerate((1.0, 2.0, 4.0)):  # seeds differ much, the paired change is always the same
        rows += [dict(arm=a, seed=seed, labels=10, forces_mae=base * f, seconds=1.0, status="ok") for a, f in (("scratch", 1.0), ("denoise", 0.8))]
        rows.append(dict(arm="masked", seed=seed, labels=10, forces_mae=base * (0.5, 1.0, 2.0)[seed], seconds=1.0, status="ok"))
    rows.append(dict(arm="broken", seed=0, labels=10, forces_mae=np.nan, seconds=np.nan, status="failed"))
    return pd.DataFrame(rows)


def test_changes_are_paired_by_seed():
    table = summarise(frame(), ["forces_mae"]).set_index("arm")
    assert table.loc["denoise", "change_%"] == pytest.approx(-20.0)
    assert table.loc["denoise", "change_low_%"] == pytest.approx(-20.0) and table.loc["denoise", "effect"] == "better"
    assert table.loc["masked", "change_%"] == pytest.approx(0.0, abs=1e-9) and table.loc["masked", "effect"] == "unclear"
    assert table.loc["scratch", "mean"] == pytest.approx(7 / 3) and np.isnan(table.loc["scratch", "change_%"])
    assert "broken" not in table.index


def test_results_are_stored_with_their_origin(tmp_path):
    table = pd.DataFrame({"a": [1.5, 2.5]})
    report.store(table, "x", "potkit compare x.yaml", tmp_path, note="n")
    again, how = report.stored("x", tmp_path)
    pd.testing.assert_frame_equal(table, again)
    assert how["command"] == "potkit compare x.yaml" and how["hardware"] and how["versions"]["potkit"] == potkit.__version__
    with pytest.raises(DataError, match="y.csv"):
        report.stored("y", tmp_path)


def test_wide_table_states_units_and_intervals():
    table = report.wide(summarise(frame(), ["forces_mae"]), ["forces_mae"])
    assert list(table["arm"]) == ["scratch", "denoise", "masked"]
    assert table["force MAE (meV/Å)"][0].startswith("2333.3 ± ") and "(-20 %)" in table["force MAE (meV/Å)"][1]
    text = report.markdown(table)
    assert text.splitlines()[1] == "| " + " | ".join(["---"] * len(table.columns)) + " |"
