"""potkit bench epoch: the real loop over all structures, its rows, and the busy share from a
profile.
"""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import torch
from tiny import molecules

from potkit import TrainConfig, datasets, models
from potkit.bench import epoch
from potkit.cli import main as cli
from potkit.errors import ConfigError
from potkit.objectives import Denoise
from potkit.report import blocks


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Few structures instead of ani-mini, tiny networks, and the number of threads put back."""
    before = torch.get_num_threads()
    build = models.build

    def tiny(name, preset, **options):
        return build(name, preset, hidden=8, layers=1, **options)

    monkeypatch.setattr(datasets, "load", lambda name: molecules(20))
    monkeypatch.setattr(models, "build", tiny)
    yield
    torch.set_num_threads(before)


def test_rows_of_a_whole_epoch():
    table = epoch.run(repeats=2, cases=("egnn", "torchmd_et"), preset="small", batch=8)
    assert list(table.columns) == epoch.COLUMNS and list(table["case"]) == ["egnn", "torchmd_et"]
    # 20 structures in batches of 8
    assert set(table["steps"]) == {2} and set(table["structures"]) == {16}
    assert table["gpu_busy"].isna().all() and (table["spread_s"] > 0).all()
    assert np.allclose(table["per_second"] * table["median_s"], 16)


def test_every_structure_is_trained_on(monkeypatch):
    """Nothing is set aside, nothing validated, and the loop is that of `pretrain`, run to the
    end.
    """
    seen = []
    objective = epoch.Watched(Denoise(sigma=0.1), seen.append)
    config = TrainConfig(epochs=1.0, batch_size=5, device="cpu", progress=False)
    model = models.build("egnn", "small")
    before = model.backbone.layers[0].message[0].weight.detach().clone()
    taken = []
    monkeypatch.setattr(type(molecules(1)), "batch", _spy(type(molecules(1)).batch, taken))
    assert epoch.epoch(model, molecules(20), objective, config) > 0
    assert seen == [0, 1, 2, 3]
    assert sorted(np.concatenate([rows for rows in taken if len(rows) == 5])) == list(range(20))
    assert not torch.equal(before, model.backbone.layers[0].message[0].weight)


def _spy(original, taken):
    def batch(self, indices=None, *args, **kwargs):
        taken.append(np.atleast_1d(indices))
        return original(self, indices, *args, **kwargs)

    return batch


def test_watched_is_the_objective_it_watches():
    objective = Denoise(sigma=0.3)
    watched, batch = epoch.Watched(objective, lambda step: None), molecules(2).batch()
    assert watched.to_dict() == objective.to_dict() and watched.needed() == objective.needed()
    first = watched.corrupt(batch, torch.Generator().manual_seed(0))
    second = objective.corrupt(batch, torch.Generator().manual_seed(0))
    assert torch.equal(first.pos, second.pos)


@pytest.mark.parametrize(
    "intervals, length",
    [
        ([], 0),
        ([(0, 4)], 4),
        ([(5, 6), (0, 4)], 5),
        ([(0, 4), (2, 6)], 6),
        ([(0, 10), (2, 3), (4, 12), (12, 13)], 13),
    ],
)
def test_covered(intervals, length):
    assert epoch.covered(intervals) == length


class Event:
    def __init__(self, kind, start, duration):
        self.values = kind, start, duration

    def activity_type(self):
        return self.values[0]

    def start_ns(self):
        return self.values[1]

    def duration_ns(self):
        return self.values[2]


def test_busy_share(monkeypatch):
    """Kernels of 0.3 s in 0.5 s; copies and annotations do not count; the device is waited for
    before and after the watched steps only.
    """
    kernels = [Event("kernel", 10**8 * k, 10**8) for k in (0, 2, 3)]
    others = [Event("gpu_memcpy", 5 * 10**8, 10**8), Event("gpu_user_annotation", 0, 10**9)]
    log: list[str] = []
    times = itertools.count(1.0, 0.5)

    class Profile:
        def __init__(self, activities):
            assert activities == [torch.profiler.ProfilerActivity.CUDA]
            self.profiler = self.kineto_results = self

        def events(self):
            return kernels + others

        def start(self):
            log.append("start")

        def stop(self):
            log.append("stop")

    def clock():
        return next(times) if log and log[-1] in ("wait", "start") else 0.0

    def corrupt_only(model, structures, objective, config):
        for _ in range(config.steps):
            objective.corrupt(molecules(1).batch(), torch.Generator())

    monkeypatch.setattr(torch.profiler, "profile", Profile)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(epoch.time, "perf_counter", clock)
    monkeypatch.setattr(epoch, "epoch", corrupt_only)
    share = epoch.busy(None, molecules(4), TrainConfig(steps=3, device="cpu"))
    assert log == ["wait", "start", "wait", "stop"] and share == pytest.approx(0.6)


@pytest.mark.gpu
def test_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no GPU")
    row = epoch.run(device="cuda", cases=("egnn",), preset="small", batch=8, steps=3).iloc[0]
    assert 0 < row["gpu_busy"] <= 1 and row["per_second"] > 0


def test_command_and_block(tmp_path, capsys):
    command = "bench epoch --case schnet --preset small --batch 4 --steps 2 --threads 1".split()
    with pytest.raises(SystemExit) as done:
        cli.main([*command, "--json", str(tmp_path / "bench-epoch.json")])
    assert not done.value.code and "schnet" in capsys.readouterr().out
    (row,) = json.loads((tmp_path / "bench-epoch.json").read_text())["rows"]
    assert row["structures"] == 8 and row["gpu_busy"] is None and not row["compiled"]
    block = blocks.fill("<!-- bench: epoch -->\n<!-- end -->", tmp_path)
    columns = "network | preset | precision | batch | structures | time (s) | structures per second"
    assert f"| {columns} |\n" in block
    assert "| schnet | small | 32-true | 4 | 8 |" in block


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(batch=0), "at least 1, got 0"),
        (dict(steps=0), "at least 1, got 0"),
        (dict(preset="huge"), "unknown preset 'huge' of egnn"),
        (dict(precision="half"), "precision"),
    ],
)
def test_mistakes(options, message):
    with pytest.raises(ConfigError, match=message):
        epoch.run(cases=("egnn",), **options)
