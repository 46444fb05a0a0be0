"""Runs that stop half-way: a loss that is no number, Ctrl-C, a full disk, damaged states,
SIGKILL; and how they go on.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from tiny import egnn, equal, molecules, one_line, weights

import potkit
from potkit import TrainConfig
from potkit.errors import DataError, PotkitError, TrainingError
from potkit.structures import storage
from potkit.training import checkpoints, loop


def settings(**changes) -> TrainConfig:
    fixed = {
        "steps": 12,
        "batch_size": 4,
        "lr": 3e-3,
        "progress": False,
        "device": "cpu",
        "checkpoint_every": 1,
    }
    return TrainConfig(**{**fixed, **changes})


def run(out: Path, **changes):
    return loop.fit(egnn(), molecules(9), potkit.Denoise(sigma=0.1), settings(**changes), out)


# -- stopping ------------------------------------------------------------------------------------
def test_a_loss_that_explodes_names_step_and_structures(tmp_path):
    with pytest.raises(TrainingError) as caught:
        run(tmp_path / "r", lr=1e30, warmup=0.0, log_every=1)
    text = one_line(caught.value)
    step = int(text.split("of step ")[1].split()[0])
    assert str(loop.batch_indices(step, 4, 9, 0).tolist()) in text and str(tmp_path / "r") in text
    assert not (tmp_path / "r" / "best.safetensors").exists()
    assert not (tmp_path / "r" / "summary.json").exists()


@dataclasses.dataclass(frozen=True)
class Poisoned(potkit.Denoise):
    """Loss or gradient is NaN whenever structure ``victim`` is in the batch."""

    victim: int = 5
    gradient_only: bool = False

    def terms(self, prediction, batch):
        terms = super().terms(prediction, batch)
        if self.victim not in batch.indices:
            return terms
        total = terms[0].total
        if self.gradient_only:  # the root has no derivative at 0
            total = total + (prediction.vector * 0).square().sum().sqrt()
        else:
            total = total * float("nan")
        return [terms[0]._replace(total=total)]


@pytest.mark.parametrize("gradient_only", [False, True])
def test_a_poisoned_structure_stops_the_run_and_no_checkpoint_keeps_the_damage(
    tmp_path, gradient_only
):
    config = settings(batch_size=2, log_every=50, validate_every=50, steps=20)
    # within the first epoch, so it does not come before
    where, victim = 3, int(loop.batch_indices(3, 2, 9, 0)[0])
    objective = Poisoned(sigma=0.1, victim=victim, gradient_only=gradient_only)
    with pytest.raises(TrainingError, match=f"step {where} .*") as caught:
        loop.fit(egnn(), molecules(9), objective, config, tmp_path / "r")
    rows = loop.batch_indices(where, 2, 9, 0)
    names = dict.fromkeys(("CH2O", "C2H4")[i % 2] for i in rows)
    assert f"{rows.tolist()} ({', '.join(names)})" in one_line(caught.value)
    tensors, header = checkpoints.read(tmp_path / "r" / "last.safetensors")
    assert header["state"]["step"] == where
    assert all(bool(t.isfinite().all()) for t in tensors.values())


@dataclasses.dataclass(frozen=True)
class Interrupted(potkit.Denoise):
    """Ctrl-C is pressed when the corruption of a step is drawn."""

    name = "denoise"

    def corrupt(self, batch, generator=None):
        Interrupted.calls += 1
        if Interrupted.calls == Interrupted.at:
            signal.raise_signal(Interrupted.how)
        return super().corrupt(batch, generator)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_run_goes_on_to_the_same_result(tmp_path, how):
    structures, runs = molecules(9), []
    handler = signal.getsignal(how)
    config = settings(steps=10, checkpoint_every=None, ema=0.9, log_every=3)
    for at in (0, 4):
        Interrupted.calls, Interrupted.at, Interrupted.how = 0, at, how
        where = tmp_path / str(at)
        if at:
            with pytest.raises(
                TrainingError, match="after step 4; the same call goes on from there"
            ) as caught:
                loop.fit(egnn(), structures, Interrupted(sigma=0.1), config, where)
            one_line(caught.value)
            assert signal.getsignal(how) is handler
        runs.append(loop.fit(egnn(), structures, Interrupted(sigma=0.1), config, where))
    assert equal(weights(runs[0].model), weights(runs[1].model))
    assert Interrupted.calls == 10
    one, other = (r.metrics.drop(columns="seconds") for r in runs)
    assert one.equals(other)


def half_way(out: Path) -> None:
    """A run in ``out`` that Ctrl-C stopped after its fourth step."""
    Interrupted.calls, Interrupted.at, Interrupted.how = 0, 4, signal.SIGINT
    with pytest.raises(TrainingError, match="after step 4"):
        loop.fit(egnn(), molecules(9), Interrupted(sigma=0.1), settings(), out)


def test_a_temporary_folder_is_swept_by_the_next_run(tmp_path):
    out = tmp_path / "r"
    half_way(out)
    left, own = out / ".last.safetensors.potkit-0123abcd.tmp", out / ".mine.tmp"
    for folder in (left, own):
        folder.mkdir()
        (folder / "half").write_text("x")
    loop.fit(egnn(), molecules(9), Interrupted(sigma=0.1), settings(), out)
    assert not left.exists() and (own / "half").read_text() == "x"


@pytest.mark.parametrize("text", [None, "", "steps: [", "steps: 3\n"])
def test_damaged_settings_are_written_again(tmp_path, text):
    path = tmp_path / "r" / "config.yaml"
    half_way(path.parent)
    path.unlink()
    if text is not None:
        path.write_text(text)
    loop.fit(egnn(), molecules(9), Interrupted(sigma=0.1), settings(), path.parent)
    assert TrainConfig.from_yaml(path) == settings()


@pytest.mark.parametrize("text", [None, "", "steps: [", "steps: 3\n"])
def test_damaged_settings_of_a_finished_run_are_written_again(tmp_path, text):
    path = tmp_path / "r" / "config.yaml"
    whole = run(path.parent)
    path.unlink()
    if text is not None:
        path.write_text(text)
    again = run(path.parent)
    assert TrainConfig.from_yaml(path) == settings() and again.summary == whole.summary


def test_a_finished_run_is_found_where_nothing_may_be_written(tmp_path, monkeypatch):
    whole = run(tmp_path / "r")
    (tmp_path / "r" / "config.yaml").unlink()
    monkeypatch.setattr(storage.os, "replace", _no_space)
    assert run(tmp_path / "r").summary == whole.summary


SETTINGS_THAT_KEEP_A_STATE = {
    "plain": {},
    "averages": {"ema": 0.8},
    "frozen beyond the interruption": {"freeze": 0.7},
    "frozen before it": {"freeze": 0.2},
    "micro-batches": {"micro_batch": 7},
    "all": {"ema": 0.8, "freeze": 0.5, "micro_batch": 7, "layer_decay": 0.7, "weight_decay": 0.1},
}


@pytest.mark.parametrize("what", SETTINGS_THAT_KEEP_A_STATE)
def test_going_on_is_equal_to_the_last_bit(tmp_path, threads, monkeypatch, what):
    """Fine-tuning from pretrained weights, with batches that are large enough for two threads to
    share; weights, averages, the optimizer's state and the metrics.
    """
    config = settings(
        steps=6, batch_size=32, lr=1e-2, validate_every=3, **SETTINGS_THAT_KEEP_A_STATE[what]
    )
    structures = potkit.load("ani-mini")[:80]

    def tune(out: Path):
        model = potkit.build("egnn", hidden=32, layers=2, seed=0)
        return potkit.finetune(model, structures[:64], structures[64:], config, out=out)

    whole = tune(tmp_path / "whole")
    take_step = loop.take_step

    def killed(training, state):
        if state.step == 4:
            raise KeyboardInterrupt
        return take_step(training, state)

    monkeypatch.setattr(loop, "take_step", killed)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "again")
    monkeypatch.setattr(loop, "take_step", take_step)
    again = tune(tmp_path / "again")
    one, other = (r.metrics.drop(columns="seconds") for r in (whole, again))
    assert one.equals(other)
    for name in ("best", "last"):
        states = [checkpoints.read(r.path / f"{name}.safetensors")[0] for r in (whole, again)]
        assert equal(*states), name


# -- a full disk ---------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["no space, when moved", "file size limit"])
def test_a_full_disk_is_one_line_and_the_earlier_state_survives(tmp_path, monkeypatch, kind):
    """Once the move to the final name fails; once the operating system itself refuses to write
    so large a file.
    """
    whole = run(tmp_path / "whole")
    if kind == "file size limit":
        original, calls = checkpoints.save_file, []

        def limited(*args, **kwargs):
            calls.append(1)
            soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000 if len(calls) > 5 else soft, hard))
            try:
                return original(*args, **kwargs)
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

        monkeypatch.setattr(checkpoints, "save_file", limited)
    else:
        original, count = os.replace, []

        def full(source, target):
            if ".tmp" in str(source) and str(target).endswith("last.safetensors"):
                count.append(1)
                if len(count) > 5:
                    raise OSError(errno.ENOSPC, "No space left on device")
            return original(source, target)

        monkeypatch.setattr(storage.os, "replace", full)
    with pytest.raises(PotkitError) as caught:
        run(tmp_path / "r")
    text = one_line(caught.value)
    assert "last.safetensors: cannot be written" in text
    assert "No space left" in text or "File too large" in text
    monkeypatch.undo()
    assert not list((tmp_path / "r").glob(".*"))  # nothing half-written is left
    last, previous = (tmp_path / "r" / f"{name}.safetensors" for name in ("last", "previous"))
    state = last if last.exists() else previous
    assert checkpoints.read(state)[1]["state"]["step"] == 5
    assert equal(weights(run(tmp_path / "r").model), weights(whole.model))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError) as caught:
            run(out)
        assert "cannot be written" in one_line(caught.value)


# -- damaged states ------------------------------------------------------------------------------
def stop_at(step: int, out: Path) -> None:
    """A run that ends as if killed right after the checkpoint of ``step``."""
    original = loop.take_step

    def dying(training, state):
        if state.step == step:
            raise KeyboardInterrupt
        return original(training, state)

    loop.take_step = dying
    try:
        with pytest.raises(KeyboardInterrupt):
            run(out)
    finally:
        loop.take_step = original


def test_a_damaged_last_state_falls_back_to_the_previous_and_says_so(tmp_path):
    whole, out = run(tmp_path / "whole"), tmp_path / "r"
    stop_at(6, out)
    (out / "last.safetensors").write_bytes((out / "last.safetensors").read_bytes()[:-100])
    told = (
        r"last.safetensors: not a readable checkpoint.*going on from previous.safetensors, step 5"
    )
    with pytest.warns(UserWarning, match=told):
        again = run(out)
    assert equal(weights(again.model), weights(whole.model))
    assert again.metrics.drop(columns="seconds").equals(whole.metrics.drop(columns="seconds"))


def test_the_good_previous_state_is_not_overwritten_by_the_damaged_last(tmp_path, monkeypatch):
    out = tmp_path / "r"
    stop_at(6, out)
    (out / "last.safetensors").write_bytes(b"broken")
    good = (out / "previous.safetensors").read_bytes()
    monkeypatch.setattr(checkpoints, "save_file", _no_space)  # the very next checkpoint fails
    with pytest.warns(UserWarning), pytest.raises(DataError):
        run(out)
    assert (out / "previous.safetensors").read_bytes() == good


def _no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_two_damaged_states_start_anew_and_say_so(tmp_path):
    whole, out = run(tmp_path / "whole"), tmp_path / "r"
    stop_at(6, out)
    for name in ("last", "previous"):
        (out / f"{name}.safetensors").write_bytes(b"broken")
    with pytest.warns(UserWarning, match="starting anew"):
        again = run(out)
    assert equal(weights(again.model), weights(whole.model))
    assert again.metrics["step"].tolist() == whole.metrics["step"].tolist()


def test_an_unreadable_run_file_is_one_line(tmp_path):
    stop_at(3, tmp_path / "r")
    (tmp_path / "r" / "run.json").write_text('{"identity": ')
    with pytest.raises(PotkitError) as caught:
        run(tmp_path / "r")
    assert "run.json" in one_line(caught.value)


# -- SIGKILL -------------------------------------------------------------------------------------
DRIVER = """
import json, os, random, shutil, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
import potkit
from potkit import training
from potkit.training import checkpoints, run_folder
from chores import child, wait
from tiny import egnn, molecules
torch.set_num_threads(1)
base = Path(sys.argv[2])
config = potkit.TrainConfig(
    steps=12,
    batch_size=4,
    lr=3e-3,
    ema=0.8,
    checkpoint_every=1,
    validate_every=4,
    log_every=5,
    progress=False,
    device="cpu",
)
data = molecules(13)


def train(out):
    return training.fit(egnn(), data[:9], potkit.Supervised(), config, out, data[9:])


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(kind, number):
    # dies at the number-th call of os.replace (before or after it), or with half a checkpoint
    # under its temporary name
    seen = [0]

    def replace(source, target, original=os.replace):
        seen[0] += 1
        if kind == "before" and seen[0] == number:
            die()
        original(source, target)
        if kind == "after" and seen[0] == number:
            die()

    def save_file(tensors, path, metadata=None, original=checkpoints.save_file):
        seen[0] += 1
        original(tensors, path, metadata=metadata)
        if seen[0] == number:
            whole = Path(path).read_bytes()
            Path(path).write_bytes(whole[: len(whole) // 2])
            die()

    def log(self, row):  # half a line of the metrics
        seen[0] += 1
        with self.metrics.open("a") as file:
            file.write(json.dumps(row)[:20] if seen[0] == number else json.dumps(row) + "\\n")
        if seen[0] == number:
            die()

    def work(out):
        if kind in ("before", "after"):
            os.replace = replace
        elif kind == "half":
            checkpoints.save_file = save_file
        elif kind == "log":
            run_folder.RunFolder.log = log
        train(out)
    return work


started = time.time()
assert wait(child(lambda: train(base / "whole"))) == 0
duration = time.time() - started
report = []
points = [tuple(p) for p in json.loads(sys.argv[3])]
for index, (kind, number) in enumerate(points):
    out = base / f"{index}-{kind}-{number}"
    if kind == "random":
        # killed from outside, again and again, at times nobody chose, until it is through
        rng, deaths, patience = random.Random(number), 0, duration
        for attempt in range(40):
            pid = child(lambda: train(out))
            time.sleep(rng.uniform(0.1, 0.9) * patience)
            os.kill(pid, signal.SIGKILL)
            code = wait(pid)
            if code == 0:
                if deaths:
                    break
                shutil.rmtree(out)  # it was faster than we: again, with less patience
                patience /= 2
            else:
                deaths += code == -signal.SIGKILL
                patience *= 1.2
    else:
        deaths = int(wait(child(lambda: killed_at(kind, number)(out))) == -signal.SIGKILL)
    begun = any((out / f"{name}.safetensors").exists() for name in ("last", "previous"))
    code = wait(child(lambda: train(out)))
    report.append(
        {
            "point": [kind, number],
            "deaths": deaths,
            "begun": begun,
            "code": code,
            "out": str(out),
        }
    )
print("REPORT" + json.dumps(report))
"""

# what comes when: 1 run.json, 2 config.yaml, 3 metrics, 4 last (step 1), 5 last → previous,
# 6 last (step 2), …
POINTS = [
    ("before", 1),
    ("after", 2),
    ("before", 4),
    ("after", 4),
    ("after", 5),
    ("before", 6),
    ("after", 9),
    ("before", 11),
    ("after", 16),
    ("half", 1),
    ("half", 4),
    ("half", 5),
    ("half", 12),
    ("half", 15),
    ("before", 26),
    ("before", 29),
    ("after", 29),
    ("log", 2),
    ("log", 3),
    ("random", 1),
    ("random", 2),
]


def test_a_killed_run_ends_as_one_that_was_not(tmp_path):
    """SIGKILL at chosen points (most while a checkpoint is being written) and at random times; then
    the same call again.

    The final weights, the averaged weights, the optimizer's state and every row of the metrics (but
    for the seconds) must be those of the run that was left alone, to the last bit.
    """
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    helpers, package = Path(__file__).parents[1], Path(potkit.__file__).parents[1]
    command = [sys.executable, str(script), str(helpers), str(tmp_path), json.dumps(POINTS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(package)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.split("REPORT")[1])

    def end(folder: Path):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((folder / "summary.json").read_text())
        return (
            [{k: v for k, v in row.items() if k != "seconds"} for row in rows],
            {k: summary[k] for k in ("steps", "best", "hash")},
            checkpoints.read(folder / "best.safetensors")[0],
            checkpoints.read(folder / "last.safetensors")[0],
        )

    rows, summary, best, last = end(tmp_path / "whole")
    assert [r["step"] for r in rows] == [4, 5, 8, 10, 12]
    assert any(k.startswith("optimizer.") for k in last)
    for entry in report:
        where = str(entry)
        assert entry["code"] == 0, where + done.stderr[-3000:]
        assert entry["deaths"] >= 1, where  # the kill did happen
        rows_again, summary_again, best_again, last_again = end(Path(entry["out"]))
        assert rows_again == rows and summary_again == summary, where
        assert equal(best_again, best) and equal(last_again, last), where
        assert not list(Path(entry["out"]).glob(".*.tmp")), where
    assert sum(entry["begun"] for entry in report) >= 12  # most did go on, rather than start anew
