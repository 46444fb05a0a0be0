"""Changes of the gain from pretraining, on runs whose truth is known."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from cover_notes import note

from potkit.errors import ConfigError
from potkit.experiments import audit, statistics

GAINS = {"as it is": 0.9, "fault": 1.1, "choice": 0.9}  # denoise / scratch
SCRATCH = {"as it is": 0.2, "fault": 0.2, "choice": 0.3}


def simulated(
    seeds: int = 6,
    noise: float = 0.0,
    rng: np.random.Generator | None = None,
    labels: tuple[int, ...] = (50,),
    shared: tuple[str, ...] = (),
) -> pd.DataFrame:
    """Runs with the truths above: what a seed shares over settings, and ``noise`` of each run.

    Settings in ``shared`` have the base's own scratch runs.
    """
    rng = rng or np.random.default_rng(0)
    of_seed = rng.normal(0, 0.3, seeds)
    rows, scratch_of_base = [], {}
    for setting in GAINS:
        for count in labels:
            for seed in range(seeds):
                for arm in ("scratch", "denoise"):
                    truth = SCRATCH[setting] * (GAINS[setting] if arm == "denoise" else 1.0)
                    error = truth * np.exp(of_seed[seed] + rng.normal(0, noise)) * 50 / count
                    if arm == "scratch":
                        first = scratch_of_base.setdefault((seed, count), error)
                        error = first if setting in shared else error
                    row = dict(setting=setting, arm=arm, labels=count, seed=seed, status="ok")
                    rows.append(row | dict(forces_mae=error, energy_mae=2 * error, seconds=1.0))
    return pd.DataFrame(rows)


def row(table: pd.DataFrame, setting: str, quantity: str, metric: str = "forces_mae") -> pd.Series:
    chosen = (table["setting"] == setting) & (table["quantity"] == quantity)
    (found,) = table[chosen & (table["metric"] == metric)].to_dict("records")
    return pd.Series(found)


@pytest.mark.parametrize("labels", [(50,), (50, 200)])
def test_changes_are_the_truths_where_runs_have_no_noise(labels):
    table = audit.table(simulated(labels=labels))
    for setting in ("fault", "choice"):
        scratch = SCRATCH[setting] / SCRATCH["as it is"]
        gain = GAINS[setting] / GAINS["as it is"]
        for metric in ("forces_mae", "energy_mae"):
            for quantity, truth in (
                ("scratch", scratch),
                ("denoise", scratch * gain),
                ("gain", gain),
            ):
                change = row(table, setting, quantity, metric)["change_%"]
                assert change == pytest.approx(100 * (truth - 1), abs=1e-9)
    assert len(table) == 2 * 3 * 2


def test_the_gain_is_the_difference_of_gains_seed_by_seed():
    runs = simulated(noise=0.1)
    wide = np.log(runs.pivot(index="seed", columns=["setting", "arm"], values="forces_mae"))
    gains = {s: wide[s, "denoise"] - wide[s, "scratch"] for s in GAINS}
    expected = statistics.interval(gains["fault"] - gains["as it is"])
    got = row(audit.table(runs), "fault", "gain")
    ends = got[["change_%", "change_low_%", "change_high_%"]].astype(float)
    assert np.log1p(ends / 100).to_list() == pytest.approx(list(expected))


def test_pairing_takes_out_what_seeds_share():
    """Seeds differ by 30 %, runs of one seed by 1 %: a change of 20 % is told from 0."""
    table = audit.table(simulated(noise=0.01))
    assert row(table, "fault", "gain")["verdict"] == "worse"
    assert row(table, "choice", "scratch")["verdict"] == "worse"
    verdict = row(table, "fault", "scratch")["verdict"]
    assert verdict.startswith("not told from 0 (")
    assert not table["verdict"].str.contains("nothing|no effect").any()


def test_holm_goes_over_the_settings_of_each_quantity():
    table = audit.table(simulated(noise=0.1))
    for _, family in table.groupby(["quantity", "metric"]):
        adjusted, _ = statistics.holm(family["p"])
        assert family["p_holm"].to_list() == pytest.approx(list(adjusted))
        assert (family["p_holm"] >= family["p"]).all() and len(family) == 2


def test_a_shared_scratch_arm_is_no_comparison():
    table = audit.table(simulated(noise=0.1, shared=("fault",)))
    scratch, denoise, gain = (row(table, "fault", q) for q in ("scratch", "denoise", "gain"))
    assert scratch["verdict"] == audit.SHARED and scratch["change_%"] == 0
    assert np.isnan(scratch[["change_low_%", "change_high_%", "p", "p_holm"]].astype(float)).all()
    # the gain changes by what the pretrained arm does
    assert gain["change_%"] == pytest.approx(denoise["change_%"])
    # and the shared arm takes no level from the others
    other = row(table, "choice", "scratch")
    assert other["p_holm"] == pytest.approx(other["p"])


def test_only_seeds_with_all_four_runs_count():
    runs = simulated(noise=0.1)
    lost = (runs["setting"] == "fault") & (runs["seed"] == 2) & (runs["arm"] == "denoise")
    runs.loc[lost, "status"] = "failed"
    table = audit.table(runs)
    assert row(table, "fault", "gain")["seeds"] == 5
    assert row(table, "fault", "scratch")["seeds"] == 5
    assert row(table, "choice", "gain")["seeds"] == 6


def test_one_seed_has_no_verdict():
    table = audit.table(simulated(seeds=1, noise=0.1))
    gain = row(table, "fault", "gain")
    assert "single seed" in gain["verdict"] and np.isnan(gain["p"])


def test_the_base_and_the_arm_may_be_named():
    runs = simulated(noise=0.1)
    other = audit.table(runs, base="fault")
    back, forth = row(other, "as it is", "gain"), row(audit.table(runs), "fault", "gain")
    assert np.log1p(back["change_%"] / 100) == pytest.approx(-np.log1p(forth["change_%"] / 100))
    assert audit.table(runs, arm="denoise").equals(audit.table(runs))


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda runs: runs.drop(columns="setting"), "needs the column 'setting'"),
        (lambda runs: runs[runs.setting == "fault"], "settings beside 'fault'"),
        (lambda runs: runs[runs.arm == "scratch"], "one pretrained arm, the table has none"),
        (
            lambda runs: runs[(runs.setting != "fault") | (runs.arm == "scratch")],
            "setting 'fault' has no finished runs of arm 'denoise'",
        ),
        (
            lambda runs: pd.concat([runs, runs.assign(arm="masked")]),
            "one pretrained arm, the table has denoise, masked",
        ),
    ],
)
def test_tables_that_are_none_are_named(change, message):
    with pytest.raises(ConfigError, match=message):
        audit.table(change(simulated()))


def test_an_unknown_base_is_named():
    with pytest.raises(ConfigError, match="base 'as ever' is none of as it is, fault, choice"):
        audit.table(simulated(), base="as ever")


def as_runs(logs: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Runs of one label budget with the log errors of each setting, a row a seed, a column an
    arm.
    """
    rows = [
        dict(setting=setting, arm=arm, labels=50, seed=seed, status="ok", seconds=1.0)
        | {"forces_mae": np.exp(log)}
        for setting, wide in logs.items()
        for arm in wide
        for seed, log in wide[arm].items()
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize("quantity", ["scratch", "denoise", "gain"])
def test_intervals_hold_the_truth_as_often_as_they_say(quantity):
    """Six seeds that share much over settings and arms, and 10 % of noise in each run."""
    rng = np.random.default_rng(1)
    truth = {"scratch": 0.0, "denoise": np.log(1.1 / 0.9), "gain": np.log(1.1 / 0.9)}[quantity]
    inside = []
    for case in range(3000):
        shared = rng.normal(0, 0.3, (6, 1))
        base, fault = (
            pd.DataFrame(
                shared + np.log([SCRATCH[s], SCRATCH[s] * GAINS[s]]) + rng.normal(0, 0.1, (6, 2)),
                columns=["scratch", "denoise"],
            )
            for s in ("as it is", "fault")
        )
        _, low, high = statistics.interval(audit.changes(base, fault, "denoise")[quantity])
        inside.append(low <= truth <= high)
        if case == 0:  # that is what the table prints
            table = audit.table(as_runs({"as it is": base, "fault": fault}))
            printed = row(table, "fault", quantity)
            ends = printed[["change_low_%", "change_high_%"]].astype(float)
            assert np.log1p(ends / 100).to_list() == pytest.approx([low, high])
    note("change of a gain", 6, np.mean(inside), len(inside))
    assert 0.935 < np.mean(inside) < 0.965


def test_false_claims_are_as_rare_as_holm_says():
    """Without any true change, some setting is told from 0 in at most 5 % of tables."""
    rng = np.random.default_rng(2)
    wrong = []
    for _ in range(2000):
        scratch, arm = rng.normal(0, 0.1, (2, 4, 6))  # [settings, seeds]
        gains = (arm - scratch)[1:] - (arm - scratch)[0]
        adjusted, _ = statistics.holm([statistics.p_value(g) for g in gains])
        wrong.append((adjusted < 0.05).any())
    assert np.mean(wrong) < 0.06
