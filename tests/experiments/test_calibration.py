"""Calibration of ensembles: Gaussian errors whose width is known, an independent implementation of
ranks and coverage, intervals that cover, and what is stored, from a run store to `verify`.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import yaml
from cover_notes import note
from grids import DATA, TINY, grid
from scipy import stats
from tiny import one_line

import potkit
from potkit.cli import main as cli
from potkit.errors import DataError
from potkit.experiments import calibration, experiment, uncertainty
from potkit.report import blocks, pages, sentences, stored_figures, tables, verify

PRIMARY = {"arm": "denoise", "against": "scratch", "quantity": "forces", "statistic": "area"}


def gaussian(clusters: int = 100, per: int = 200, seed: int = 0):
    """Errors drawn with the widths that come with them, and clusters that differ in width."""
    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(clusters), per)
    width = 0.1 * np.exp(rng.normal(0, 0.3, clusters))[cluster]
    width = width * np.exp(rng.normal(0, 0.3, len(cluster)))
    return width * rng.normal(size=len(width)), width, cluster


def of(judged: calibration.Judged) -> dict[str, float]:
    return dict(zip(calibration.STATISTICS, judged.statistics(), strict=True))


# -- a known truth -------------------------------------------------------------------------------
@pytest.mark.parametrize("factor", [1.0, 2.0, 0.5])
def test_gaussian_errors_with_right_and_wrong_spreads(factor):
    """Spreads that are ``factor`` times too small: coverage and NLL are the Gaussian's, and the
    recalibration finds the factor.
    """
    error, width, cluster = gaussian()
    judged = calibration.Judged(error, width / factor, cluster)
    told = of(judged)
    assert told["factor"] == pytest.approx(factor, rel=0.03)
    e, w = judged.error, factor * judged.spread
    for level, name in zip(calibration.NOMINAL, calibration.INSIDE, strict=True):
        k = stats.norm.ppf(0.5 + level / 2)
        assert told[name] == pytest.approx(2 * stats.norm.cdf(k / factor) - 1, abs=0.015)
        assert told[f"{name}_scaled"] == pytest.approx(level, abs=0.015)
    assert told["nll"] == pytest.approx(-stats.norm.logpdf(e, scale=w / factor).mean(), rel=1e-9)
    assert told["nll_scaled"] == pytest.approx(-stats.norm.logpdf(e, scale=w).mean(), abs=2e-3)
    assert told["rmse"] == pytest.approx(np.sqrt(np.mean(e**2)))
    assert told["sharpness_scaled"] == pytest.approx(told["rmse"], rel=0.03)
    assert told["area_scaled"] < 0.01
    if factor == 1:
        assert told["area"] < 0.01
    else:
        share = 2 * stats.norm.cdf(uncertainty.enclosing(uncertainty.LEVELS) / factor) - 1
        area = np.abs(share - uncertainty.LEVELS).mean()
        assert told["area"] == pytest.approx(area, abs=0.01)
        assert told["nll"] > told["nll_scaled"] + 0.3


@pytest.mark.parametrize("members", [2, 3, 5])
def test_members_that_are_drawn_like_the_label(members):
    """Calibrated by Student's t, however few they are, and their NLL is the t density's."""
    rng = np.random.default_rng(members)
    _, width, cluster = gaussian()
    drawn = width * rng.normal(size=(members + 1, len(width)))
    error, spread = drawn[:-1].mean(0) - drawn[-1], drawn[:-1].std(0, ddof=1)
    judged = calibration.Judged(error, spread, cluster, members)
    told = of(judged)
    assert told["factor"] == pytest.approx(1.0, abs=0.06) and told["area"] < 0.012
    for level, name in zip(calibration.NOMINAL, calibration.INSIDE, strict=True):
        assert told[name] == pytest.approx(level, abs=0.015)
    scale = judged.spread * np.sqrt(1 + 1 / members)
    density = stats.t.logpdf(judged.error, members - 1, scale=scale)
    assert told["nll"] == pytest.approx(-density.mean(), rel=1e-9)


def test_spreads_that_know_nothing_and_all():
    error, width, cluster = gaussian()
    blind = calibration.Judged(error, np.random.default_rng(1).permutation(width), cluster)
    assert abs(of(blind)["spearman"]) < 0.05
    assert of(calibration.Judged(error, np.abs(error), cluster))["spearman"] == pytest.approx(1.0)
    same = calibration.Judged(error, np.ones(len(error)), cluster)
    assert np.isnan(of(same)["spearman"])


# -- the machinery -------------------------------------------------------------------------------
def test_a_draw_is_what_repeated_molecules_are():
    """Weights against the same statistics of an ensemble in which molecules are repeated."""
    error, width, cluster = gaussian(12, 30)
    error = np.round(error, 2)  # with ties
    judged = calibration.Judged(error, width / 1.5, cluster)
    counts = judged.draws(3)[2]
    assert counts[judged.halves[0]].sum() == len(judged.halves[0]) == 6
    rows = np.concatenate(
        [np.repeat(np.flatnonzero(cluster == c), n) for c, n in enumerate(counts)]
    )
    e, s = error[rows], width[rows] / 1.5
    fit = np.isin(cluster[rows], judged.halves[0])
    told = dict(zip(calibration.STATISTICS, judged.statistics(counts), strict=True))
    factor = uncertainty.scale(e[fit], s[fit])
    assert told["factor"] == pytest.approx(factor, rel=0.01)  # the lower of two medians
    e, s = e[~fit], s[~fit]
    assert told["spearman"] == pytest.approx(stats.spearmanr(np.abs(e), s).statistic, abs=1e-9)
    held = uncertainty.coverage(e, s)
    assert told["area"] == pytest.approx((held["observed"] - held["expected"]).abs().mean())
    held = uncertainty.coverage(e, told["factor"] * s, levels=np.array(calibration.NOMINAL))
    shares = [told[f"{name}_scaled"] for name in calibration.INSIDE]
    np.testing.assert_allclose(shares, held["observed"], atol=1e-12)
    scaled = told["factor"] * s
    assert told["nll_scaled"] == pytest.approx(-stats.norm.logpdf(e, scale=scaled).mean())


def test_what_is_judged_does_not_choose_the_factor():
    error, width, cluster = gaussian(20, 40)
    judged = calibration.Judged(error, width, cluster)
    on_trial = np.isin(cluster, judged.halves[1])
    assert not set(cluster[on_trial]) & set(cluster[~on_trial])
    changed = np.where(on_trial, 7 * error, error)
    assert calibration.Judged(changed, width, cluster).factor() == judged.factor()
    assert calibration.Judged(np.where(on_trial, error, 7 * error), width, cluster).factor() > 5


# -- tables --------------------------------------------------------------------------------------
def packed(arms: dict[str, np.ndarray], unit: float = 0.001) -> pd.DataFrame:
    """Stored predictions of energies, five structures a molecule; arm -> errors [M, S] (eV)."""
    rows = []
    for arm, errors in arms.items():
        whole = np.rint(errors / unit).astype(int)
        for s in range(whole.shape[1]):
            about = {"labels": 10, "arm": arm, "seeds": " ".join(map(str, range(len(whole))))}
            about |= {"quantity": "energy", "unit": unit, "structure": s, "cluster": f"m{s // 5}"}
            rows.append(about | {"errors": ";".join(str(v) for v in whole[:, s])})
    return pd.DataFrame(rows)


def drawn(seed: int, factor: float, n: int = 300) -> np.ndarray:
    """Errors of three members whose mean is ``factor`` times as wrong as their spread says."""
    rng = np.random.default_rng(seed)
    width = np.exp(rng.normal(0, 0.4, n))
    return factor * np.sqrt(1.33) * width * rng.normal(size=n) + width * rng.normal(size=(3, n))


def test_contrasts_tell_arms_apart_that_differ():
    table = packed(
        {"scratch": drawn(0, 4.0), "scratch-longer": drawn(1, 4.0), "one": drawn(2, 0.5)}
    )
    table.attrs["primary"] = PRIMARY | {"arm": "one", "quantity": "energy"}
    found = calibration.contrasts(table)
    assert set(zip(found["arm"], found["against"], strict=True)) == {
        ("scratch-longer", "scratch"),
        ("one", "scratch"),
        ("one", "scratch-longer"),
    }
    assert set(found["statistic"]) == set(calibration.BETTER) and len(found) == 15
    of = found.set_index(["arm", "against", "statistic"])
    better = of.loc[("one", "scratch", "area")]
    assert better["verdict"] == "better" and better["high"] < 0 and better["family"] == "primary"
    assert better["p_holm"] == better["p"] and better["seed_high"] < 0
    alike = of.loc[("scratch-longer", "scratch", "area")]
    assert alike["verdict"] == "not told from 0" and alike["low"] < 0 < alike["high"]
    assert alike["holm_low"] < alike["low"] and alike["p_holm"] >= alike["p"]
    summary = calibration.summarise(table).set_index(["arm", "statistic"])["value"]
    change = summary["one", "area"] - summary["scratch", "area"]
    assert better["change"] == pytest.approx(change)
    said = sentences.calibrated(found)
    assert "Declared beforehand: one against scratch, miscalibration area of energies" in said
    assert "**one** against scratch, energies: " in said and "better for these seeds" in said
    assert said.count("\n- ") == 3 and "not told from 0 (−" in said


def test_two_members_have_no_ensemble_left_without_one():
    errors = {"scratch": drawn(0, 2.0)[:2], "denoise": drawn(1, 2.0)[:2]}
    found = calibration.contrasts(packed(errors))
    assert found["seed_low"].isna().all() and set(found["family"]) == {"others"}
    assert "a seed left out −" not in sentences.calibrated(found)
    alone = packed({"scratch": errors["scratch"]})
    assert calibration.contrasts(alone).empty and len(calibration.summarise(alone))


def test_reliability_of_a_calibrated_and_an_overconfident_ensemble():
    for factor in (1.0, 3.0):
        errors = np.random.default_rng(0).normal(size=(200, 2000))
        width = np.exp(np.random.default_rng(1).normal(0, 0.5, 2000))
        true = factor * width * np.random.default_rng(2).normal(size=2000)
        (one,) = calibration.ensembles(packed({"scratch": width * errors + true})).values()
        table = calibration.reliability(one)
        assert len(table) == 10 and table["spread"].is_monotonic_increasing
        assert ((table["low"] < table["error"]) & (table["error"] < table["high"])).all()
        np.testing.assert_allclose(table["error"], factor * table["spread"], rtol=0.25)
        curve = calibration.curve(one)
        assert (curve["scaled"] - curve["expected"]).abs().mean() < 0.03


def test_reliability_covers():
    """Six members, 40 molecules of five structures whose errors go together, a true rms error of
    1 in every bin: the interval covers it at least as often as it says.
    """
    rng = np.random.default_rng(0)
    held = total = 0
    for _ in range(60):
        molecule = np.repeat(np.arange(40), 5)
        true = 0.7 * rng.normal(size=40)[molecule] + np.sqrt(0.51) * rng.normal(size=200)
        errors = true + 1e-3 * rng.normal(size=(6, 200))  # the spread tells nothing
        judged = packed({"scratch": errors})
        (one,) = calibration.ensembles(judged).values()
        table = calibration.reliability(one, bins=2)
        held += ((table["low"] < 1) & (table["high"] > 1)).sum()
        total += len(table)
    note("error in a bin of spread", "40 molecules", held / total, total)
    assert held / total >= 0.93


# -- from a run store to what is stored ----------------------------------------------------------
@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A grid of a few steps with its runs, and its predictions."""
    store = tmp_path_factory.mktemp("store")
    config = dict(variants={}, seeds=[0, 1, 2], columns={"set": "made"})
    one = grid(store, **config)
    runs = experiment.run(one, progress=False)
    return one, runs, calibration.predictions([one], runs)


def test_predictions_are_those_of_the_networks(finished):
    one, runs, table = finished
    assert list(table)[:4] == ["set", "labels", "arm", "seeds"]
    assert len(table) == 3 * 2 * len(one.test) and set(table["seeds"]) == {"0 1 2"}
    # two systems are too few to be shared out
    assert set(table["cluster"]) == {f"structure {i}" for i in range(len(one.test))}
    again = calibration.ensembles(tables.as_stored(table))
    folders = [one.store / r for r in runs[runs["arm"] == "denoise"]["run"]]
    known = uncertainty.ensemble(folders, one.test)
    for quantity in ("forces", "energy"):
        error, spread = known.errors(quantity)
        members = again["made", 10, "denoise", quantity]
        near = dict(atol=members.unit, rtol=0)
        np.testing.assert_allclose(members.errors.mean(0), error, **near)
        np.testing.assert_allclose(members.errors.std(0, ddof=1), spread, **near)
        # rounded to less than a hundredth of a spread
        assert 0.001 < members.unit / np.median(spread) <= 0.0101
        assert members.of() == "structures" and len(members.seeds) == 3
    few = calibration.predictions([one], runs, limit=5)
    assert (few.groupby(["arm", "quantity"]).size() == 5).all()
    assert calibration.predictions([one], runs[runs["seed"] == 0]).empty


def test_many_systems_are_the_clusters():
    several = potkit.load("ani-mini")[::500]
    names = calibration._clusters(several)
    assert names == [several.system_names()[i] for i in several.system]
    assert len(set(names)) >= calibration.FEW


def test_compare_stores_predictions_that_verify_makes_tables_of(tmp_path, capsys):
    spec = {
        "name": "sure",
        "model": TINY,
        "pretrain_on": {"data": "ani-mini", "limit": 24},
        "train": {"data": "ani-mini", "limit": 24},
        "test": {"data": "ani-mini", "limit": 12},
        "labels": [10],
        "seeds": [0, 1],
        "arms": {"denoise": {"objective": "denoise", "sigma": 0.1}},
        "pretrain": {"steps": 2, "batch_size": 4},
        "finetune": {"steps": 2, "batch_size": 4},
        "longer": None,
    }
    path = tmp_path / "sure.yaml"
    path.write_text(yaml.safe_dump(spec))
    out = tmp_path / "out"
    options = ["--store", str(tmp_path / "store"), "--out", str(out), "--ensembles"]
    with pytest.raises(SystemExit) as done:
        cli.main(["compare", str(path), *options])
    said = capsys.readouterr().out
    assert not done.value.code and "inside 90 % intervals" in said and "Differences between" in said
    table, how = tables.stored("sure-predictions", out)
    assert len(table) == 2 * 2 * 12
    assert how["command"].endswith(f"--ensembles --store {tmp_path / 'store'} --out {out}")
    found = verify.verify(out, tmp_path)
    # p values of two seeds that hardly differ are beyond the six digits that runs are stored with
    assert set(found.differences["where"]) <= {"sure-effects.csv"}
    assert {"sure-ensembles", "sure-contrasts"} <= set(found.tables)
    assert "sure-predictions" not in found.without_runs
    changed = (out / "sure-ensembles.csv").read_text().replace("rmse,", "rmse,1", 1)
    (out / "sure-ensembles.csv").write_text(changed)
    assert "sure-ensembles.csv" in set(verify.verify(out, tmp_path).differences["where"])


def test_pictures_and_blocks_follow_from_what_is_stored(finished, tmp_path):
    _, _, table = finished
    again = tables.as_stored(table)
    for ending, of in (
        ("predictions", table),
        ("ensembles", calibration.summarise(again, 50)),
        ("contrasts", calibration.contrasts(again, 50)),
    ):
        tables.store(of, f"mine-{ending}", "a test", tmp_path)
    for kind in stored_figures.OF_ENSEMBLES:
        chart = stored_figures.draw(kind, "mine", tmp_path, title="T")
        title = chart.layout.title.text
        assert "ensembles of 3 seeds, 10 labels" in title and "on 8 structures, 95 %" in title
        assert pages.points_of(chart)
    curve = next(
        t
        for t in stored_figures.draw("coverage", "mine", tmp_path, title="T").data
        if t.name == "scratch"
    )
    (one, *_) = calibration.ensembles(again).values()
    np.testing.assert_allclose(curve.y, calibration.curve(one)["observed"])
    text = blocks.fill("<!-- ensembles: mine -->\n<!-- end -->\n", tmp_path)
    assert "| made | 10 | forces (meV/Å) | scratch |" in text
    assert "judged on 8 structures; the factor is found on others" in text


# -- mistakes ------------------------------------------------------------------------------------
def test_mistakes_are_one_line(tmp_path):
    with pytest.raises(DataError, match="at least 4 clusters, got 3") as caught:
        calibration.Judged(np.ones(6), np.ones(6), np.repeat([0, 1, 2], 2))
    one_line(caught.value)
    with pytest.raises(DataError, match="at least 4 structures to test on, got 3") as caught:
        calibration.check([grid(tmp_path, test=DATA[:3])])
    one_line(caught.value)
    table = packed({"scratch": drawn(0, 1.0)})
    broken = table.assign(errors=table["errors"].str.replace(";", ",", regex=False))
    with pytest.raises(DataError, match="errors of 10, scratch, energy: ") as caught:
        calibration.ensembles(broken)
    one_line(caught.value)
    with pytest.raises(DataError, match="3 members, but 2 seeds"):
        calibration.ensembles(table.assign(seeds="0 1"))
