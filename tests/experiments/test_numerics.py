"""How much of a spread is numerics: known differences between threads or instructions, and real
runs.
"""

from __future__ import annotations

import json
import os

import numpy as np
import pandas as pd
import pytest
import torch

import potkit
from potkit.errors import ConfigError
from potkit.experiments import experiment as experiments
from potkit.experiments import numerics
from potkit.report import tables


def table(numeric: float, spread: float = 0.1, seeds: int = 400) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(seeds):
        of_seed = rng.normal(0, spread)
        for threads in (1, 2):
            error = np.exp(of_seed + rng.normal(0, numeric))
            rows.append({"threads": threads, "arm": "scratch", "labels": 10, "seed": seed})
            rows[-1] |= {"status": "ok", "forces_mae": error}
    return pd.DataFrame(rows)


def test_a_known_share_is_found():
    row = numerics.summarise(table(0.05), ["forces_mae"]).iloc[0]
    assert row["numerics_%"] == pytest.approx(5, rel=0.1)
    assert row["numerics_low_%"] < 5 < row["numerics_high_%"]
    assert row["spread_%"] == pytest.approx(100 * np.hypot(0.1, 0.05), rel=0.1)
    assert row["share_%"] == pytest.approx(20, abs=5) and row["equal"] == 0
    assert 10 < row["share_low_%"] < 20 < row["share_high_%"] < 30
    exact = numerics.summarise(table(0.0), ["forces_mae"]).iloc[0]
    assert exact["numerics_%"] == 0 and exact["equal"] == exact["seeds"] == 400
    assert np.isnan(exact["numerics_high_%"]), "an interval of no width would claim certainty"
    shown = tables.spreads(numerics.summarise(table(0.0, seeds=6), ["forces_mae"]))
    # 1 − 0.025^(1/6): Clopper & Pearson (1934)
    said = shown["between 1 and 2 threads (%)"].item()
    assert said.endswith("none in 6 of 6; other seeds may, up to 46 %")


def test_runs_that_experiments_share_count_once_and_of_draws_the_first():
    one = table(0.05, seeds=6).assign(run=lambda t: "run-" + t["seed"].astype(str))
    one.insert(0, "objective", "denoise")
    other = one.assign(objective="masked")
    other.loc[other["seed"] == 5, "run"] = "run-of-its-own"
    both = numerics.summarise(pd.concat([one, other], ignore_index=True), ["forces_mae"])
    assert both["objective"].tolist() == ["denoise", "masked"]
    assert both["seeds"].tolist() == [6, 1]  # five of masked's runs are denoise's
    second = one.assign(label_draw=1, seed=one["seed"] + 100, run=one["run"] + "-second")
    second["forces_mae"] *= 3.0
    drawn = pd.concat([one.assign(label_draw=0), second], ignore_index=True)
    drawn["pretrain_seed"] = drawn["seed"] % 100
    alone = numerics.summarise(one, ["forces_mae"])
    pd.testing.assert_frame_equal(numerics.summarise(drawn, ["forces_mae"]), alone)


def test_a_single_seed_has_no_spread_and_no_share():
    row = numerics.summarise(table(0.05, seeds=1), ["forces_mae"]).iloc[0]
    assert row["numerics_low_%"] < row["numerics_%"] < row["numerics_high_%"]
    assert row[["spread_%", "share_%", "share_low_%", "share_high_%"]].isna().all()


def test_runs_with_each_number_of_threads(tmp_path):
    structures = potkit.load("ani-mini")[::50]
    config = potkit.TrainConfig(steps=2, batch_size=4, progress=False)
    experiment = experiments.Experiment(
        model={"name": "egnn", "preset": "small", "hidden": 8, "layers": 1, "radial": 4},
        train=structures,
        test=structures[:10],
        labels=[10],
        seeds=[0, 1],
        finetune_config=config,
        store=tmp_path,
        longer=None,
    )
    before = torch.get_num_threads()
    runs = numerics.measure([experiment], progress=False)
    assert torch.get_num_threads() == before and sorted(runs["threads"]) == [1, 1, 2, 2]
    for threads in (1, 2):
        folder = tmp_path / f"threads-{threads}" / runs["run"].iloc[0]
        about = json.loads((folder / "run.json").read_text())
        assert threads in [
            v["threads"] for v in about.values() if isinstance(v, dict) and "threads" in v
        ]
    summary = numerics.summarise(runs)
    assert set(summary["metric"]) >= {"forces_mae", "energy_mae"} and (summary["seeds"] == 2).all()
    assert "threads" not in summary


def test_runs_with_the_instructions_of_another_processor(tmp_path):
    """Sums over vectors of other lengths: runs that differ, by rounding only after two steps."""
    structures = potkit.load("ani-mini")[::50]
    experiment = experiments.Experiment(
        model={"name": "egnn", "preset": "small", "hidden": 16, "layers": 2, "radial": 8},
        train=structures,
        test=structures[:10],
        labels=[10],
        seeds=[0],
        finetune_config=potkit.TrainConfig(steps=2, batch_size=4, progress=False, device="cpu"),
        store=tmp_path,
        longer=None,
    )
    if torch.backends.cpu.get_cpu_capability() not in ("AVX2", "AVX512"):
        pytest.skip("this processor has one set of vector instructions only")
    before = dict(os.environ)
    runs = numerics.measure([experiment], progress=False, instructions=["default", "avx2"])
    assert dict(os.environ) == before
    assert list(runs["instructions"]) == ["default", "avx2"] and runs["run"].nunique() == 1
    for way in ("default", "avx2"):
        about = tmp_path / f"instructions-{way}" / runs["run"].iloc[0] / "run.json"
        assert json.loads(about.read_text())["machine"]["cpu_capability"].lower() == way
    one, other = runs["forces_mae"]
    assert one == pytest.approx(other, rel=1e-3)
    assert set(numerics.summarise(runs)["between"]) == {"default and avx2 instructions"}
    with pytest.raises(ConfigError, match="'sse9'"):
        numerics.measure([experiment], progress=False, instructions=["sse9", "avx2"])


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match="two numbers of threads"):
        numerics.measure([], [1])
    with pytest.raises(ConfigError, match="two sets of instructions"):
        numerics.measure([], instructions=["avx2", "AVX2"])
    with pytest.raises(ConfigError, match="neither threads nor instructions"):
        numerics.summarise(table(0.1).drop(columns="threads"))
    with pytest.raises(ConfigError, match="no seed"):
        numerics.summarise(table(0.1).query("threads == 1"))
