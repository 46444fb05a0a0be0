"""Ensembles: means and spreads by hand, calibration against Gaussians whose scale is known, and
ensembles from a run store.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from grids import DATA, grid
from scipy import stats
from tiny import egnn, molecules, one_line

import potkit
from potkit.errors import CheckpointError, ConfigError, DataError
from potkit.experiments import experiment, uncertainty
from potkit.report import figures


def gaussian(n: int = 4000, factor: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Errors drawn with standard deviations ``factor`` times the spreads, which range over a
    decade.
    """
    rng = np.random.default_rng(seed)
    spread = 10 ** rng.uniform(-2, -1, n)
    return factor * spread * rng.normal(size=n), spread


def pretended(factor: float, n: int = 1200) -> uncertainty.Ensemble:
    """An ensemble whose energies are wrong by ``factor`` spreads."""
    structures = molecules(n)
    error, spread = gaussian(n, factor)
    return uncertainty.Ensemble(10_000, structures, structures.energy + error, spread, None, None)


def test_mean_and_spread_are_those_of_the_members():
    structures = molecules(5)
    members = [egnn(seed=s) for s in range(3)]
    one = uncertainty.ensemble(members, structures)
    single = [potkit.predict(m, structures) for m in members]
    for quantity, spread in (("energy", one.energy_spread), ("forces", one.forces_spread)):
        values = np.array([s[quantity] for s in single], np.float64)
        np.testing.assert_allclose(getattr(one, quantity), values.mean(0), rtol=1e-12)
        np.testing.assert_allclose(
            spread, np.sqrt(((values - values.mean(0)) ** 2).sum(0) / 2), rtol=1e-9, atol=1e-15
        )
    error, spread = one.errors("forces")
    np.testing.assert_allclose(error, (one.forces - structures.forces).ravel())
    table = one.table()
    np.testing.assert_allclose(table["energy_error"], one.energy - structures.energy)
    a, b = structures.ptr[1], structures.ptr[2]
    assert table["forces_error"][1] == pytest.approx(
        float(np.sqrt(np.mean((one.forces - structures.forces)[a:b] ** 2)))
    )
    assert table["forces_spread"][1] == pytest.approx(
        float(np.sqrt(np.mean(one.forces_spread[a:b] ** 2)))
    )


@pytest.mark.parametrize("factor", [1.0, 2.0, 0.5])
def test_coverage_and_scale_of_errors_whose_scale_is_known(factor):
    error, spread = gaussian(factor=factor)
    assert uncertainty.scale(error, spread) == pytest.approx(factor, rel=0.04)
    table = uncertainty.coverage(error, spread)
    # what a Gaussian of that scale has within k spreads
    expected = 2 * stats.norm.cdf(table["k"] / factor) - 1
    np.testing.assert_allclose(table["observed"], expected, atol=0.025)


@pytest.mark.parametrize("members", [2, 3, 5, 20])
def test_few_members_whose_label_is_like_one_of_them(members):
    """Members and label drawn from the same Gaussians: perfect calibration, by Student's t,
    however few they are.
    """
    rng = np.random.default_rng(1)
    width = 10 ** rng.uniform(-2, -1, 6000)
    drawn = width * rng.normal(size=(members + 1, 6000))
    error = drawn[:-1].mean(0) - drawn[-1]
    spread = drawn[:-1].std(0, ddof=1)
    table = uncertainty.coverage(error, spread, members)
    np.testing.assert_allclose(table["observed"], table["expected"], atol=0.02)
    assert uncertainty.scale(error, spread, members) == pytest.approx(1.0, abs=0.05)
    if members < 5:  # and the Gaussian's intervals would be far too narrow
        assert (table["expected"] - uncertainty.coverage(error, spread)["observed"]).max() > 0.09


def test_summary_tells_calibrated_from_overconfident():
    table = uncertainty.summarise(
        {("50", "good"): pretended(1.0), ("50", "sure of itself"): pretended(3.0)}, "energy"
    ).set_index("arm")
    good, bad = table.loc["good"], table.loc["sure of itself"]
    assert (
        good["area"] < 0.03
        and good["within_1"] == pytest.approx(0.683, abs=0.05)
        and good["within_2"] == pytest.approx(0.954, abs=0.03)
    )
    assert (
        bad["area"] > 0.2
        and bad["scale"] == pytest.approx(3.0, rel=0.1)
        and bad["area_scaled"] < 0.04
    )
    # a factor does not change ranks
    assert good["spearman"] > 0.4 and bad["spearman"] == pytest.approx(good["spearman"], abs=0.02)
    assert good["values"] == 600 and good["labels"] == "50"


def test_spread_that_knows_nothing_of_the_error():
    one = pretended(1.0)
    blind = dataclasses.replace(
        one, energy_spread=np.random.default_rng(5).permutation(one.energy_spread)
    )
    row = uncertainty.summarise(blind, "energy").iloc[0]
    assert abs(row["spearman"]) < 0.1 and abs(row["log_pearson"]) < 0.1


def test_bins_of_rising_spread():
    error, spread = gaussian(factor=2.0)
    table = uncertainty.binned(error, spread, 8)
    assert table["spread"].is_monotonic_increasing and table["values"].sum() == 4000
    np.testing.assert_allclose(table["error"], 2 * table["spread"], rtol=0.12)


def test_ensembles_from_a_run_store(tmp_path):
    runs = experiment.run(grid(tmp_path, variants={}, longer=None), progress=False)
    ensembles = uncertainty.from_runs(runs, tmp_path, DATA[24:])
    assert list(ensembles) == [(10, "scratch"), (10, "denoise")]
    assert all(e.members == 2 for e in ensembles.values())
    with pytest.raises(ConfigError, match="a name for each part") as caught:
        uncertainty.summarise(ensembles, names=["arm"])
    one_line(caught.value)
    table = uncertainty.summarise(ensembles)
    assert (
        (table["rmse"] > 0).all()
        and table["arm"].tolist() == ["scratch", "denoise"]
        and table["labels"].tolist() == [10, 10]
    )
    alone = uncertainty.ensemble(
        [tmp_path / r for r in runs[runs["arm"] == "denoise"]["run"]], DATA[24:]
    )
    np.testing.assert_array_equal(alone.energy_spread, ensembles[(10, "denoise")].energy_spread)
    with pytest.raises(CheckpointError):
        uncertainty.from_runs(runs, tmp_path / "elsewhere", DATA[24:])


def test_figures():
    error, spread = gaussian(factor=2.0)
    chart = figures.calibration(
        {
            "denoise": uncertainty.coverage(error, spread),
            "scaled": uncertainty.coverage(error, 2 * spread),
        }
    )
    assert [t.name for t in chart.data] == ["perfect", "denoise", "scaled"]
    np.testing.assert_array_equal(chart.data[1].y, uncertainty.coverage(error, spread)["observed"])
    chart = figures.error_against_spread(
        {"denoise": uncertainty.binned(error, spread)}, unit="eV/Å"
    )
    assert "(eV/Å)" in chart.layout.xaxis.title.text and len(chart.data[1].x) == 10


def test_mistakes_are_one_line():
    structures = molecules(6)
    with pytest.raises(ConfigError, match="at least two") as caught:
        uncertainty.ensemble([egnn()], structures)
    one_line(caught.value)
    one = uncertainty.ensemble([egnn(seed=0), egnn(seed=1)], structures)
    with pytest.raises(ConfigError, match="'force'"):
        one.errors("force")
    with pytest.raises(DataError, match="no forces to compare"):
        dataclasses.replace(one, forces=None).errors("forces")
    with pytest.raises(DataError, match="at least 4"):
        uncertainty.summarise(uncertainty.ensemble([egnn(seed=0), egnn(seed=1)], molecules(3)))
