"""Copies of a structure moved by the networks of a comparison: known dynamics, the same steps as
`potkit md` takes, ends, what is stored of it, and what is told.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from grids import DATA, grid
from springs import REST, STIFF, dimers, springs, water

import potkit
from potkit import MDConfig, simulate
from potkit.errors import ConfigError, DataError, PotkitError
from potkit.experiments import experiment, simulations, statistics
from potkit.experiments.simulations import Case, Counts, Plan
from potkit.report import simulation_figures
from potkit.report import tables as report
from potkit.units import BOLTZMANN

SHORT = Plan(temperature=300.0, nvt=0.05, nve=0.05, copies=2)


def lengths(frames: list[np.ndarray]) -> np.ndarray:
    """Of dimers, [T] Å."""
    return np.array([np.linalg.norm(pos[1] - pos[0]) for pos in frames])


# -- moving --------------------------------------------------------------------------------------
def test_steps_are_those_of_a_single_simulation(tmp_path, monkeypatch):
    """Without a thermostat, from rest: the same positions as ASE's velocity Verlet."""
    monkeypatch.setattr(simulations, "HOTTEST", np.inf)
    start = dimers(1, REST + 0.1)
    moved = simulations.move(springs().double(), start, 1e-12, 0.1, 0.25, 0.0, 10.0, seed=0)
    config = MDConfig(ensemble="nve", temperature=0.0, timestep=0.25, steps=400, every=40)
    done = simulate(springs(), start, config, tmp_path / "md", progress=False)
    alone = np.array(potkit.read(done.trajectory).pos, float).reshape(-1, 2, 3)
    [history] = moved
    assert len(history.frames) == len(alone) == 11 and not history.why
    np.testing.assert_allclose(lengths(history.frames), lengths(list(alone)), atol=1e-5)
    assert np.ptp(lengths(history.frames)) > 0.1  # it swings
    assert history.held == pytest.approx(0.1)
    total = np.array(history.total)
    assert np.abs(total - total[0]).max() < 0.01 * total[0]


def test_the_thermostat_visits_what_boltzmann_says():
    moved = simulations.move(springs().double(), dimers(60), 300.0, 0.5, 1.0, 0.1, 10.0, seed=1)
    assert not any(h.why for h in moved)
    found = np.concatenate([lengths(h.frames[10:]) for h in moved])
    assert found.std() == pytest.approx(np.sqrt(BOLTZMANN * 300.0 / STIFF), rel=0.1)
    assert np.mean([h.temperature[10:] for h in moved]) == pytest.approx(300.0, rel=0.1)


def test_copies_that_end_leave_the_others_alone():
    """Atoms without a force fly apart, one copy after the other."""
    moved = simulations.move(springs(0.0).double(), dimers(6), 300.0, 0.2, 1.0, 0.0, 10.0, seed=0)
    ended = [h for h in moved if h.why]
    assert ended and all("broken" in h.why or "fused" in h.why for h in ended)
    assert len({h.held for h in moved}) > 1
    for history in moved:
        # a look that ends a copy leaves no frame
        looks = round(100 * history.held)
        assert len(history.frames) == looks + (0 if history.why else 1)


def test_predictions_that_are_no_numbers_end_a_copy():
    moved = simulations.move(
        springs(np.nan).double(), dimers(2), 300.0, 0.1, 1.0, 0.0, 10.0, seed=0
    )
    assert all("not finite" in h.why for h in moved)


# -- plans and cases -----------------------------------------------------------------------------
@pytest.mark.parametrize(
    "wrong, said",
    [
        (dict(temperature=0.0), "temperature"),
        (dict(copies=0), "copies"),
        (dict(settle=1.0), "settle"),
        (dict(nve=0.01), "three looks"),
    ],
)
def test_plans_that_cannot_be_are_refused(wrong, said):
    with pytest.raises(ConfigError, match=said):
        Plan(**dict(temperature=300.0, nvt=1.0, nve=1.0) | wrong)


def test_a_case_is_of_one_system():
    with pytest.raises(DataError, match="one system"):
        Case(dimers(2), water(2), SHORT)
    with pytest.raises(DataError, match="reference"):
        Case(dimers(2), dimers(2)[:0], SHORT)
    assert len(Case(dimers(1), dimers(3), SHORT).copies()) == 2
    starts = potkit.Structures.from_ase(
        [atoms for n in range(4) for atoms in dimers(1, REST + n / 100).to_ase()]
    )
    taken = np.array(Case(starts, starts, SHORT).copies().pos, float)[1::2, 0]
    np.testing.assert_allclose(taken, [REST, REST + 0.02], atol=1e-6)


# -- what is told --------------------------------------------------------------------------------
def test_histograms_come_back_from_their_cell():
    cell = "C–H|0|1|0 3 1 0;g O–O|0|2|0 1000"
    found = simulations.unpacked(cell)
    np.testing.assert_allclose(found["C–H"][0], [0.125, 0.375, 0.625, 0.875])
    assert found["C–H"][1].tolist() == [0, 3, 1, 0] and len(found) == 2
    assert simulations.unpacked("") == {} and simulations.unpacked(np.nan) == {}
    with pytest.raises(DataError, match="not a histogram"):
        simulations.unpacked("C–H|0|1|three")
    shifted = {"C–H": (found["C–H"][0], np.array([0, 0, 3, 1]))}
    assert simulations.distances(shifted, found)["bonds"] == pytest.approx(0.25)


def table_of(ends: dict[str, list[int]]) -> pd.DataFrame:
    """Four copies a seed of 1 ps; of each seed so many ended in the middle."""
    cell = "C–H|0|1|0 3 1 0"
    rows = [{"arm": simulations.REFERENCE, "seed": 0, "ensemble": simulations.REFERENCE}]
    for arm, seeds in ends.items():
        for seed, count in enumerate(seeds):
            for copy in range(4):
                why = "the bond C0–H1 is broken" if copy < count else ""
                row = {"arm": arm, "seed": seed, "copy": copy, "length": 1.0, "why": why}
                rows.append(row | {"ensemble": "nvt", "held": 0.5 if why else 1.0})
                rows.append(row | {"ensemble": "nve", "held": 1.0, "why": "", "drift": -2.0})
    table = pd.DataFrame(rows).assign(labels=50, forces_mae=0.1, seconds=1.0, frames=4)
    table["histograms"] = cell
    return table[["labels", *[c for c in table if c != "labels"]]]


def test_rates_of_ends_and_their_verdicts():
    table = table_of({"scratch": [1, 1, 2], "denoise": [4, 4, 4]})
    told = simulations.measures(table).set_index(["arm", "seed"])
    assert told.loc[("scratch", 0), "ends_per_ps"] == pytest.approx(1.5 / 3.5)
    assert told.loc[("denoise", 0), "ends_per_ps"] == pytest.approx(4.5 / 2.0)
    assert (told["drift"] == 2.0).all() and (told["bonds"] == 0).all()
    table.attrs["primary"] = {"arm": "denoise", "against": "scratch", "metric": "ends_per_ps"}
    table = table.assign(histograms="")  # a distance of 0 has no logarithm
    effects = simulations.effects(table).set_index("metric")
    assert effects.loc["ends_per_ps", ["family", "verdict"]].tolist() == ["primary", "worse"]
    at, share = simulations.survival(
        table[table["arm"].eq("scratch") & table["ensemble"].eq("nvt")]
    )
    assert share[0] == 1 and share[-1] == pytest.approx(8 / 12) and at[-1] == 1.0


def test_a_rate_of_few_ends_has_the_interval_of_a_poisson_law():
    # no end in 30 ps: exactly the upper end of Garwood (1936), and 0 below
    low, high = simulations.with_few([0, 0, 0], [10.0, 10.0, 10.0], 0.05, 0.05)
    assert low == 0 and high == pytest.approx(3.689 / 30, rel=1e-3)
    assert simulations.with_few([3, 3, 3], [1.0, 1.0, 1.0], 2.9, 3.1) == (2.9, 3.1)
    assert np.isnan(simulations.with_few([0], [10.0], np.nan, np.nan)).all()


def test_a_change_of_few_ends_has_to_be_counted_too():
    """Three networks without an end and three with one have no spread: t alone is sure."""
    table = table_of({"scratch": [0, 0, 0], "denoise": [1, 1, 1]}).assign(histograms="")
    found = simulations.measures(table)
    alone = statistics.effects(found, ["ends_per_ps"]).iloc[0]
    assert alone["verdict"] == "worse" and alone["p"] < 1e-6
    row = simulations.effects(table).set_index("metric").loc["ends_per_ps"]
    # all three of three ends in the 10.5 of 22.5 ps that denoise ran
    assert row["p"] == pytest.approx(2 * (10.5 / 22.5) ** 3)
    assert row["effect"] == "unclear" and row["change_low_%"] < 0 < row["change_high_%"]
    assert np.isinf(row["change_high_%"]) and row["verdict"].startswith("not told from 0 (−")
    # where t tells nothing by itself, or ends are many, it is all as it was
    for ends in ([0, 1, 0], [4, 4, 4]):
        table = table_of({"scratch": [1, 0, 0] if sum(ends) < 3 else [3, 3, 3], "denoise": ends})
        table = table.assign(histograms="")
        plain = statistics.effects(simulations.measures(table), simulations.MEASURES)
        pd.testing.assert_frame_equal(simulations.effects(table), plain)


def test_a_change_that_is_counted_and_told_stays_told_with_the_words_of_its_family():
    few = {"scratch": [2, 2, 2], "denoise": [0, 0, 0], "masked": [2, 2, 2]}
    longer = pd.concat([table_of(few)] * 4, ignore_index=True).assign(histograms="")
    table = simulations.effects(longer).set_index(["arm", "metric"])
    told = table.loc[("denoise", "ends_per_ps")]
    assert told["verdict"] == told["effect"] == "better" and 0 < told["p"] <= told["p_holm"] < 0.05
    assert told["change_low_%"] == -100 and told["change_high_%"] < 0
    same = table.loc[("masked", "ends_per_ps")]
    assert same["verdict"] == "not told from 0 (+0 to +0 %)", "others keep what t says of them"


def test_counts_are_tested_as_a_binomial_law_says():
    """The interval leaves out 0 just where a tail is small enough; without an end it is open."""
    counts = Counts(1, 10.0, 9, 12.0)
    few, many = counts.tails()
    share = 10 / 22
    assert few == pytest.approx((1 - share) ** 10 + 10 * share * (1 - share) ** 9)
    assert many == pytest.approx(1 - (1 - share) ** 10)
    assert counts.rates_apart(1 - 2 * few)[1] == pytest.approx(0, abs=1e-9)
    low, high = counts.rates_apart()
    assert low < np.log((1 / 10) / (9 / 12)) < high
    assert Counts(0, 10.0, 9, 12.0).rates_apart()[0] == -np.inf
    assert Counts(0, 1.0, 0, 1.0).rates_apart() == (-np.inf, np.inf)
    # tests that speak for opposite sides tell nothing
    assert Counts(9, 10.0, 1, 10.0).p_of_both(-1.0, 0.001) == 1.0


def test_label_draws_are_no_pretrainings():
    """Two pretrainings with three draws each are two, not six."""
    table = table_of({"scratch": [1, 2, 1, 2, 1, 3], "denoise": [4, 3, 4, 4, 3, 4]})
    table = table.assign(histograms="", forces_mae=0.1 + 0.01 * table["seed"])
    nested = table.assign(pretrain_seed=table["seed"] // 3, label_draw=table["seed"] % 3)
    found = simulations.measures(nested)
    assert found[["pretrain_seed", "label_draw"]].drop_duplicates().shape == (6, 2)
    assert (simulations.effects(nested)["seeds"] == 2).all()
    summary = simulations.summarise(nested)
    assert (summary["seeds"] == 2).all() and set(summary["arm"]) == {"scratch", "denoise"}
    assert (simulations.effects(table)["seeds"] == 6).all()
    # the same as of the means over draws
    rates = np.log(found.set_index(["arm", "pretrain_seed", "label_draw"])["ends_per_ps"])
    of_pretraining = (rates["denoise"] - rates["scratch"]).groupby(level=0).mean()
    _, low, high = statistics.interval(of_pretraining)
    row = simulations.effects(nested).set_index("metric").loc["ends_per_ps"]
    assert row["change_low_%"] == pytest.approx(100 * np.expm1(low))
    assert row["change_high_%"] == pytest.approx(100 * np.expm1(high))


def test_networks_and_pretrainings_are_counted_apart(tmp_path):
    table = table_of({"scratch": [1] * 6, "denoise": [2] * 6}).assign(histograms="")
    report.store(table, "plain-simulations", "potkit run", tmp_path)
    assert simulation_figures.sizes("plain", tmp_path).startswith("6 networks an arm; 50 labels: 4")
    table = table.assign(pretrain_seed=table["seed"] // 3, label_draw=table["seed"] % 3)
    report.store(table, "nested-simulations", "potkit run", tmp_path)
    said = simulation_figures.sizes("nested", tmp_path)
    assert said.startswith("6 networks of 2 pretrainings an arm; 50 labels: 4 copies of each")


def test_without_an_end_no_rate_is_told():
    told = simulations.measures(table_of({"scratch": [0, 0], "denoise": [0, 0]}))
    assert told["ends_per_ps"].isna().all()


# -- from a run store ----------------------------------------------------------------------------
def test_networks_of_a_grid_are_simulated_once(tmp_path, monkeypatch):
    one = grid(tmp_path, seeds=[0], variants={})
    runs = experiment.run(one, progress=False)
    case = Case(DATA[:1], DATA[:1], SHORT)
    table = simulations.trajectories([one], runs, [case], progress=False)
    networks = table[table["arm"] != simulations.REFERENCE]
    assert set(networks["arm"]) == set(runs["arm"])
    assert len(networks) == len(runs) * 2 * SHORT.copies
    assert (networks["held"] > 0).all() and (networks["held"] <= networks["length"] + 1e-9).all()
    monkeypatch.setattr(simulations, "simulated", lambda *_: pytest.fail("simulated again"))
    again = simulations.trajectories([one], runs, [case], progress=False)
    pd.testing.assert_frame_equal(again, table)
    with pytest.raises(ConfigError, match="1 experiments, but 2 cases"):
        simulations.trajectories([one], runs, [case, case])
    monkeypatch.setattr(simulations.Simulator, "_found", _refuses)
    with pytest.raises(PotkitError, match="seed 0: no network"):
        simulations.trajectories([one], runs, [case], progress=False)


def test_networks_of_all_draws_are_simulated_and_keep_their_pretraining(tmp_path):
    settings = dict(seeds=[0], variants={}, longer=None)
    several = [grid(tmp_path, draws=2, columns={"cell": "two"}, **settings)]
    several.append(grid(tmp_path, columns={"cell": "one"}, **settings))
    runs = experiment.run(several, progress=False)
    case = Case(DATA[:1], DATA[:1], SHORT)
    table = simulations.trajectories(several, runs, [case] * 2, progress=False)
    # an experiment without draws beside one with them has no gaps
    assert table[["pretrain_seed", "label_draw"]].notna().all(axis=None)
    found = simulations.measures(table)
    assert found.groupby(["cell", "arm"]).size().to_dict() == {
        (cell, arm): draws
        for cell, draws in (("two", 2), ("one", 1))
        for arm in ("scratch", "denoise")
    }
    assert found["pretrain_seed"].eq(0).all()
    summary = simulations.summarise(table)
    assert (summary["seeds"] == 1).all()


def _refuses(*_):
    raise DataError("no network")
