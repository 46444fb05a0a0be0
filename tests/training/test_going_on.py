"""Training a finished run further, what is said of runs that go on, TensorBoard's event files."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch
from tiny import egnn, equal, molecules, one_line, weights

import potkit
from potkit.errors import ConfigError
from potkit.structures import progress
from potkit.training import checkpoints, loop, run_folder

CONFIG = potkit.TrainConfig(
    steps=6, batch_size=4, lr=1e-3, warmup=0.0, flat=0.0, log_every=1, device="cpu"
)


def train(out, steps=None, config=CONFIG, **more):
    data = molecules(12)
    return potkit.finetune(egnn(), data[:8], data[8:], config, out=out, extend=steps, **more)


def test_a_finished_run_is_trained_further_beside_it(tmp_path, capsys):
    first = train(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in first.path.iterdir() if path.is_file()}
    more = train(tmp_path / "run", 4)
    assert more.path == tmp_path / "run-plus4" and more.summary["steps"] == 10
    assert {p.name: p.read_bytes() for p in first.path.iterdir() if p.is_file()} == before
    assert "4 more steps after the 6" in capsys.readouterr().err
    rows = more.metrics
    assert rows["step"].tolist() == list(range(1, 11))
    # the first rows are those of the finished run, then the schedule begins anew
    kept = first.metrics
    assert rows["lr"][:6].tolist() == kept["lr"].tolist()
    expected = [loop.learning_rate(step, 4, CONFIG) for step in range(4)]
    np.testing.assert_allclose(rows["lr"][6:], expected)
    assert more.summary["best"] <= first.summary["best"]
    # and a second time it is found
    train(tmp_path / "run", 4)
    assert "run-plus4: this run is finished (10 steps)" in capsys.readouterr().err


def test_an_extension_that_is_killed_goes_on_to_the_same_weights(tmp_path, monkeypatch, capsys):
    config = CONFIG.replace(checkpoint_every=1)
    whole = weights(train(tmp_path / "a" / "run", config=config).model)
    whole = weights(train(tmp_path / "a" / "run", 4, config).model)
    train(tmp_path / "b" / "run", config=config)
    take_step = loop.take_step

    def killed(training, state):
        if state.step == 8:
            raise KeyboardInterrupt
        return take_step(training, state)

    monkeypatch.setattr(loop, "take_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b" / "run", 4, config)
    monkeypatch.setattr(loop, "take_step", take_step)
    capsys.readouterr()
    again = train(tmp_path / "b" / "run", 4, config)
    assert "goes on after step 8 of 10" in capsys.readouterr().err
    assert equal(weights(again.model), whole)


def test_only_a_finished_run_of_the_same_settings_is_extended(tmp_path):
    with pytest.raises(ConfigError, match="no finished run of these settings"):
        train(tmp_path / "none", 4)
    train(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"another run \(different config.lr\)"):
        train(tmp_path / "run", 4, CONFIG.replace(lr=2e-3))


def test_an_extension_that_ends_before_its_first_step_is_taken_up(tmp_path, monkeypatch):
    """Whatever ended it: the folder is known as that run's."""
    train(tmp_path / "run")
    with monkeypatch.context() as patch:

        def ended(*_):
            raise KeyboardInterrupt

        patch.setattr(loop, "_train", ended)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "run", 4)
    assert train(tmp_path / "run", 4).summary["steps"] == 10


@pytest.mark.parametrize("name", ["metrics.jsonl", "best.safetensors"])
def test_an_extension_that_ends_while_it_copies_is_taken_up(tmp_path, monkeypatch, name):
    config = CONFIG.replace(checkpoint_every=1)
    train(tmp_path / "a" / "run", config=config)
    whole = train(tmp_path / "a" / "run", 4, config)
    train(tmp_path / "b" / "run", config=config)
    copyfile = run_folder.shutil.copyfile

    def ended(source, target):
        copyfile(source, target)
        if source.name == name:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_folder.shutil, "copyfile", ended)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "b" / "run", 4, config)
    again = train(tmp_path / "b" / "run", 4, config)
    assert equal(weights(again.model), weights(whole.model))


@pytest.mark.parametrize("name", ["metrics.jsonl", "last.safetensors"])
def test_a_finished_run_without_its_last_state_is_not_extended(tmp_path, name):
    train(tmp_path / "run")
    (tmp_path / "run" / name).unlink()
    with pytest.raises(ConfigError, match=re.escape(f"{tmp_path / 'run' / name}: not there")) as e:
        train(tmp_path / "run", 4)
    one_line(e.value)
    assert not (tmp_path / "run-plus4").exists()


def test_an_extension_that_is_there_does_without_what_it_began_with(tmp_path):
    train(tmp_path / "run")
    more = train(tmp_path / "run", 4)
    (tmp_path / "run" / "last.safetensors").unlink()
    assert train(tmp_path / "run", 4).summary == more.summary


def test_a_run_in_the_working_directory_is_extended_beside_it(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    train(".")
    assert train(".", 4).path == tmp_path / "run-plus4"
    (tmp_path / "run" / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "run" / "inner")
    assert loop.extended_folder("..", 4) == tmp_path / "run-plus4"
    assert loop.extended_folder("runs/a", 4).as_posix() == "runs/a-plus4"


def test_weights_of_the_extension_start_at_the_last_ones(tmp_path):
    """With a rate of next to nothing they stay there."""
    train(tmp_path / "run")
    last = checkpoints.read(tmp_path / "run" / "last.safetensors")[0]
    train(tmp_path / "run", 1)
    more = checkpoints.read(tmp_path / "run-plus1" / "last.safetensors")[0]
    moved = [
        float((more[name] - last[name]).abs().max())
        for name in last
        if name.startswith("model.") and torch.is_floating_point(last[name])
    ]
    assert 0 < max(moved) < 2e-3  # one step of AdamW at 1e-3


def test_metrics_go_to_tensorboard_as_well(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(tmp_path / "run", config=CONFIG.replace(log="tensorboard"))
    events = accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
    rows = run.metrics
    for name in ("loss", "lr"):
        scalars = events.Scalars(name)
        assert [s.step for s in scalars] == rows["step"].tolist()
        np.testing.assert_allclose([s.value for s in scalars], rows[name], rtol=1e-6)
    # where it is logged does not make it another run
    assert train(tmp_path / "run").summary == json.loads((run.path / "summary.json").read_text())


def test_bars_are_for_terminals(monkeypatch, capsys):
    class Terminal:
        def __init__(self):
            self.text = ""

        def isatty(self):
            return True

        def write(self, text):
            self.text += text

        def flush(self):
            pass

    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    assert progress.hidden()  # pytest has taken stderr
    monkeypatch.setattr("sys.stderr", Terminal())
    assert not progress.hidden()
    monkeypatch.setenv("TQDM_DISABLE", "1")
    assert progress.hidden() and progress.bar(total=3).disable
    monkeypatch.setenv("TQDM_DISABLE", "0")
    assert not progress.hidden()


def test_a_probe_stays_one_when_it_is_trained_further(tmp_path):
    """freeze=1: the backbone of the pretraining is never moved, by more steps neither."""
    config = CONFIG.replace(freeze=1.0)
    train(tmp_path / "run", config=config)
    more = train(tmp_path / "run", 4, config=config)
    start, end = (weights(m) for m in (egnn(), checkpoints.load(more.path)))
    moved = {name.split(".")[0] for name in start if not torch.equal(start[name], end[name])}
    assert "backbone" not in moved and "energy_head" in moved


def test_statistics_of_batches_rest_with_a_frozen_backbone(tmp_path):
    data = molecules(12)
    model = potkit.build("forcenet", preset="masked-paper", hidden=16, layers=1, cutoff=4.0)
    names = [n for n, _ in model.backbone.named_buffers(prefix="backbone") if "running" in n]
    assert names
    before = {name: model.get_buffer(name).clone() for name in names}
    config = CONFIG.replace(freeze=1.0)
    potkit.finetune(model, data[:8], data[8:], config, out=tmp_path / "run")
    assert all(torch.equal(before[name], model.get_buffer(name)) for name in names)
