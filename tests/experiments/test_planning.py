"""Designs from a pilot's spread: numbers worked out elsewhere, simulations, and the nested runs
they ask for.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import pandas as pd
import pytest

import potkit
from potkit.cli import main as cli
from potkit.errors import ConfigError, DataError
from potkit.experiments import experiment, planning, statistics, tasks, yaml_form


@pytest.mark.parametrize(
    "between, within, expected",
    [
        (
            0.043,
            0.056,
            {1: 11, 2: 8, 3: 7},
        ),  # ani-mini, 100 labels: issue and an independent reading
        (0.098, 0.043, {1: 21, 2: 19}),  # 3BPA
        (0.039, 0.090, {1: 18, 2: 12, 3: 9}),  # dipeptides
        (0.071, np.hypot(0.048, 0.161), {1: 56, 2: 33, 4: 22}),  # energies
    ],
)
def test_designs_known_from_elsewhere(between, within, expected):
    table = planning.designs(between, within, 0.05).set_index("draws")["pretrainings"]
    assert {d: table[d] for d in expected} == expected


def test_the_cheapest_design_follows_the_costs():
    """Free pretrainings ask for one draw each; dear ones for several draws in few."""
    free = planning.designs(0.043, 0.056, pretrain_hours=0.0, finetune_hours=1.0)
    dear = planning.designs(0.043, 0.056, pretrain_hours=50.0, finetune_hours=1.0)
    assert free.loc[free["best"], "draws"].tolist() == [1] and dear.loc[
        dear["best"], "draws"
    ].tolist() == [3]
    row = dear[dear["draws"] == 2].iloc[0]
    assert row["hours"] == pytest.approx(8 * (50 + 2)) and row["draws_in_all"] == 16
    more = planning.designs(0.043, 0.056, budgets=4, pretrain_hours=0.0)
    assert more["pretrainings"][0] == planning.designs(0.043, 0.056, draws=[4])["pretrainings"][0]
    assert more["hours"][0] == pytest.approx(more["pretrainings"][0] * 4)


def test_the_expected_half_width_is_the_mean_of_many():
    rng = np.random.default_rng(0)
    for n in (3, 8):
        halves = [
            np.diff(statistics.interval(x)[1:])[0] / 2 for x in rng.normal(0, 0.07, (4000, n))
        ]
        assert np.mean(halves) == pytest.approx(planning.expected_half_width(0.07, n), rel=0.02)


def test_assurance_asks_for_more():
    plain, sure = (
        planning.designs(0.06, np.nan, assurance=a)["pretrainings"][0] for a in (None, 0.9)
    )
    assert (plain, sure) == (8, 12)
    rng = np.random.default_rng(1)
    reached = [
        np.diff(statistics.interval(x)[1:])[0] / 2 <= np.log(1.05)
        for x in rng.normal(0, 0.06, (2000, sure))
    ]
    assert 0.88 < np.mean(reached) < 0.97


def test_no_design_has_fewer_than_six_pretrainings():
    assert (planning.designs(1e-3, 1e-3)["pretrainings"] == 6).all()


def test_spreads_are_found_again():
    rng = np.random.default_rng(2)
    variances = []
    for _ in range(400):
        effect = rng.normal(0, 0.05, (6, 1, 1)) + np.array([0.0, 0.3]).reshape(1, 2, 1)
        spread = planning.spread(effect + rng.normal(0, 0.08, (6, 2, 2)))
        variances.append((spread.between**2, spread.within**2))
    between, within = np.sqrt(np.mean(variances, axis=0))
    assert between == pytest.approx(0.05, rel=0.1) and within == pytest.approx(0.08, rel=0.03)
    single = planning.spread(rng.normal(0, 0.05, (5, 1, 1)))
    assert (
        np.isnan(single.within)
        and single.between == single.total
        and single.low < single.total < single.high
    )


def test_a_pilot_with_one_run_a_pretraining_plans_one_draw():
    assert planning.designs(0.06, np.nan)["draws"].tolist() == [1]


def test_the_stop_rule_waits_for_six():
    values = [-0.1, -0.11, -0.1, -0.1, -0.11]
    assert not statistics.enough(values) and statistics.enough([*values, -0.1])
    assert not statistics.enough(np.linspace(-0.5, 0.5, 8))


@pytest.mark.parametrize(
    "settings, word",
    [
        ({"half_width": 5}, "half_width"),
        ({"between": -1.0}, "spreads"),
        ({"assurance": 90}, "assurance"),
        ({"draws": []}, "draw"),
    ],
)
def test_designs_that_make_no_sense(settings, word):
    with pytest.raises(ConfigError, match=word):
        planning.designs(**{"between": 0.05, "within": 0.05} | settings)


# -- from stored runs ----------------------------------------------------------------------------
def test_plan_of_a_stored_pilot(repository):
    """The spreads that a reader found by other means, root mean square over both networks: 0.098
    and 0.043, 0.039 and 0.090.
    """
    for name, expected in (
        ("denoise-3bpa-curve", (9.8, 4.3)),
        ("denoise-dipeptides-curve", (3.9, 9.0)),
    ):
        runs = pd.read_csv(repository / "data" / "results" / f"{name}-runs.csv")
        table = experiment.plan(runs, arm="denoise", against="scratch").groupby("model").first()
        spreads = np.sqrt((table[["between_%", "within_%"]] ** 2).mean())
        assert spreads.tolist() == pytest.approx(expected, abs=0.1)
    assert not table["enough"].any() and (table["pilot"] == 3).all()
    with pytest.raises(ConfigError, match="name one"):
        statistics.plan(runs)
    with pytest.raises(ConfigError, match="no arm 'typo'"):
        statistics.plan(runs, "typo")
    with pytest.raises(DataError, match="two pretrainings"):
        statistics.plan(runs[runs["seed"] == 0], "denoise")


def test_the_command_prints_the_plan(repository, capsys):
    file = repository / "data" / "results" / "denoise-3bpa-curve-runs.csv"
    with pytest.raises(SystemExit) as ended:
        cli.main(
            ["plan", str(file), "--arm", "denoise", "--against", "scratch", "--pretrain-hours", "2"]
        )
    out = capsys.readouterr().out
    assert (
        not ended.value.code
        and out.count("cheapest") == 2
        and "between pretrainings 10.6 %, within 5.2 %" in out
    )
    with pytest.raises(SystemExit) as ended:
        cli.main(["plan", "no-such-file.csv"])
    assert ended.value.code == 1 and "no such file" in capsys.readouterr().err


# -- nested runs ---------------------------------------------------------------------------------
TINY = {"name": "egnn", "preset": "small", "hidden": 8, "layers": 1, "radial": 4, "cutoff": 3.0}


def grid(store, **changes):
    structures = potkit.load("ani-mini")[:200]
    config = potkit.TrainConfig(steps=3, batch_size=4, progress=False)
    values = dict(
        model=TINY,
        train=structures[:100],
        test=structures[150:],
        labels=[10],
        pretrain_on=structures[:100],
        seeds=[0, 1],
        objectives={"denoise": potkit.Denoise(sigma=0.1)},
        pretrain_config=config,
        finetune_config=config,
        store=store,
        longer="steps",
    )
    return experiment.Experiment(**{**values, **changes})


def test_draws_are_nested_in_pretrainings_and_keep_earlier_runs(tmp_path):
    plain = grid(tmp_path)
    before = experiment.run(plain, progress=False)
    nested = dataclasses.replace(plain, draws=2)
    for arm in ("scratch", "denoise"):
        task = tasks.Task("finetune", arm, 1, 10)
        assert tasks.finetune_folder(plain, task) == tasks.finetune_folder(nested, task), (
            "the first draw is the run there was"
        )
    after = experiment.run(nested, progress=False)
    assert len(after) == 2 * len(before) and (after["status"] == "ok").all()
    assert set(before["run"]) < set(after["run"]) and after["run"].is_unique
    assert after.groupby("pretrain_seed")["seed"].nunique().tolist() == [2, 2] and set(
        after["label_draw"]
    ) == {0, 1}
    assert len(list(tmp_path.glob("pretrain-*"))) == 2, "draws share their seed's pretraining"
    denoise = after[after["arm"] == "denoise"]
    assert denoise.groupby("pretrain_seed")["pretrain_loss"].nunique().tolist() == [1, 1]
    drawn = [nested.labelled(10, nested.finetune_seed(0, d))[0].fingerprint() for d in (0, 1)]
    assert drawn[0] != drawn[1]
    summary = potkit.compare(after)
    assert (summary["seeds"] == 2).all()


def test_a_declared_contrast_reaches_the_effects(tmp_path):
    primary = {"arm": "denoise", "against": "scratch-longer", "metric": "forces_mae"}
    runs = experiment.run(grid(tmp_path, primary=primary), progress=False)
    table = statistics.effects(runs)
    assert table.loc[table["family"] == "primary", ["arm", "against", "metric"]].to_dict(
        "records"
    ) == [primary]
    planned = experiment.plan(grid(tmp_path, primary=primary), progress=False)
    assert planned.loc[0, "against"] == "scratch-longer" and planned["draws"].tolist() == [1]


@pytest.mark.parametrize(
    "change, word",
    [
        ({"draws": 0}, "draws"),
        ({"seeds": [1, 1]}, "same seed"),
        ({"primary": {"arm": "denoise"}}, "primary needs"),
        ({"primary": {"arm": "typo", "against": "scratch", "metric": "forces_mae"}}, "typo"),
        ({"primary": {"arm": "denoise", "against": "scratch", "metric": "mae"}}, "forces_mae"),
        (
            {
                "longer": None,
                "primary": {"arm": "denoise", "against": "scratch-longer", "metric": "forces_mae"},
            },
            "none of scratch",
        ),
    ],
)
def test_impossible_designs_are_refused(tmp_path, change, word):
    with pytest.raises(ConfigError, match=word):
        grid(tmp_path, **change)


def test_draws_and_contrast_from_yaml(tmp_path):
    text = """
name: tiny
model: {name: egnn, preset: small, hidden: 8, layers: 1}
pretrain_on: {data: ani-mini, limit: 60}
train: {data: ani-mini, limit: 60}
test: {data: ani-mini, limit: 30}
labels: [20]
draws: 3
primary: {arm: denoise, against: scratch-longer, metric: forces_mae}
arms: {denoise: {objective: denoise, sigma: 0.1}}
"""
    (tmp_path / "tiny.yaml").write_text(text)
    built = yaml_form.read(tmp_path / "tiny.yaml").experiment(store=tmp_path)
    assert built.draws == 3 and built.primary["against"] == "scratch-longer"
