"""Errors of a test set over its molecules: what alike structures are worth, and intervals that
cover.
"""

from __future__ import annotations

import numpy as np
import pytest

import potkit
from potkit.errors import ConfigError, DataError
from potkit.experiments import clusters
from potkit.experiments import experiment as experiments
from potkit.structures.store import Structures


def sample(n: int, spread: float, rng: np.random.Generator, each: int = 4):
    """Errors of ``each`` structures of n molecules, which differ by ``spread`` (log); clusters;
    true mean.
    """
    number = np.repeat(np.arange(n), each)
    logs = rng.normal(0, spread, n)[number] + rng.normal(0, 0.3, n * each)
    return np.exp(logs), number, np.exp(spread**2 / 2 + 0.3**2 / 2)


@pytest.mark.parametrize("n", [12, 25, 50])
def test_intervals_over_molecules_cover(n):
    rng = np.random.default_rng(n)
    hits, changes, independent = [], [], []
    for seed in range(600):
        errors, number, truth = sample(n, 0.4, rng)
        sampled = clusters.sampled_mean(errors, number, draws=400, seed=seed)
        hits.append(sampled.low <= truth <= sampled.high)
        if seed < 200:
            alone = clusters.sampled_mean(errors, np.arange(len(errors)), draws=200, seed=seed)
            independent.append(alone.low <= truth <= alone.high)
        better = errors * np.exp(rng.normal(-0.1, 0.2, n)[number])
        change = clusters.sampled_change(better, errors, number, draws=400, seed=seed)
        changes.append(change.low <= 100 * np.expm1(-0.1 + 0.2**2 / 2) <= change.high)
    assert 0.925 < np.mean(hits) < 0.97 and 0.925 < np.mean(changes) < 0.97
    assert np.mean(independent) < 0.85, "structures taken as independent"


def test_design_effect_of_known_designs():
    rng = np.random.default_rng(0)
    copies = np.repeat(rng.lognormal(0, 0.5, 200), 4)
    sampled = clusters.sampled_mean(copies, np.repeat(np.arange(200), 4))
    assert sampled.design_effect == pytest.approx(4.0, rel=0.05)
    assert sampled.effective == pytest.approx(200, rel=0.05)
    apart = clusters.sampled_mean(rng.lognormal(0, 0.5, 800), np.repeat(np.arange(200), 4))
    assert apart.design_effect == pytest.approx(1.0, abs=0.2)
    assert "800 structures of 200 clusters" in str(apart)


def test_a_single_cluster_has_no_interval():
    sampled = clusters.sampled_mean(np.ones(5), np.zeros(5))
    assert (
        sampled.mean == 1.0 and np.isnan([sampled.low, sampled.high, sampled.design_effect]).all()
    )


def test_weights_make_the_mean_of_components():
    sampled = clusters.sampled_mean(np.array([1.0, 3.0]), np.array([0, 1]), np.array([3.0, 1.0]))
    assert sampled.mean == pytest.approx(1.5)


def test_clusters_are_systems_or_stretches_of_time():
    structures = Structures(
        np.ones(25),
        np.zeros((25, 3)),
        np.arange(26),
        system=np.r_[np.zeros(13), np.ones(12)].astype(int),
    )
    assert clusters.clusters_of(structures).tolist() == [0] * 13 + [1] * 12
    assert clusters.clusters_of(structures, 5).tolist() == [0] * 5 + [1] * 8 + [2] * 5 + [3] * 7
    with pytest.raises(ConfigError, match="block"):
        clusters.clusters_of(structures, 0)


@pytest.mark.parametrize("values", [[], [np.nan, 1.0], [-1.0, 1.0]])
def test_errors_that_are_none(values):
    with pytest.raises(DataError, match="errors"):
        clusters.sampled_mean(np.array(values), np.arange(len(values)))


def test_errors_of_networks_and_of_finished_experiments(tmp_path):
    structures = potkit.load("ani-mini")
    train, test = structures.split((60, 40), by="structure")
    config = potkit.TrainConfig(steps=3, batch_size=4, progress=False)
    experiment = experiments.Experiment(
        model={
            "name": "egnn",
            "preset": "small",
            "hidden": 8,
            "layers": 1,
            "radial": 4,
            "cutoff": 3.0,
        },
        train=train,
        test=test,
        labels=[10],
        pretrain_on=train,
        seeds=[0, 1],
        objectives={"denoise": potkit.Denoise(sigma=0.1)},
        pretrain_config=config,
        finetune_config=config,
        store=tmp_path,
        longer=None,
        columns={"data": "ani"},
    )
    runs = experiments.run(experiment, progress=False)
    table = clusters.of_experiments([experiment], runs).set_index("arm")
    assert (table["structures"] == 40).all() and (
        table["clusters"] == len(np.unique(test.system))
    ).all()
    means = runs.groupby("arm", observed=True)["forces_mae"].mean()
    assert table["mean"].to_dict() == pytest.approx(means.to_dict(), rel=1e-5)
    assert (
        table.loc["denoise", "change_low_%"]
        < table.loc["denoise", "change_%"]
        < table.loc["denoise", "change_high_%"]
    )
    evaluation = potkit.evaluate(tmp_path / runs["run"][0], test)
    for metric in ("forces_mae", "energy_mae"):
        sampled = clusters.set_error(evaluation, metric)
        assert (
            sampled.mean == pytest.approx(getattr(evaluation, metric), rel=1e-6)
            and sampled.low < sampled.mean < sampled.high
        )
    with pytest.raises(ConfigError, match="forces_rmse"):
        clusters.set_error(evaluation, "forces_rmse")
