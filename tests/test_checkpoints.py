"""What a checkpoint holds, what is refused, and that a killed run ends as if it had not been killed."""

from __future__ import annotations

import errno
import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import egnn, molecules, one_line

import potkit
from potkit import TrainConfig, checkpoints, storage, training
from potkit.errors import CheckpointError, DataError, PotkitError


def weights(model) -> dict[str, torch.Tensor]:
    return {k: v.detach().clone() for k, v in model.state_dict().items()}


def equal(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(v, b[k]) for k, v in a.items())


@pytest.fixture
def saved(tmp_path) -> Path:
    return checkpoints.save(tmp_path / "model.safetensors", egnn(seed=3).set_references({1: -13.6, 6: -1029.0, 8: -2041.98}, 0.7))


# -- save and load ---------------------------------------------------------------------------------------------------------------
def test_a_loaded_model_is_the_saved_one(saved):
    original, copy = egnn(seed=3).set_references({1: -13.6, 6: -1029.0, 8: -2041.98}, 0.7), checkpoints.load(saved)
    assert equal(weights(original), weights(copy)) and copy.recipe == original.recipe and not copy.training
    structures = molecules(3)
    first, second = potkit.predict(original, structures), potkit.predict(copy, structures)
    assert (first["energy"] == second["energy"]).all() and (first["forces"] == second["forces"]).all()
    with pytest.raises(DataError, match="no reference energy for N"):  # the known elements travel with the weights
        copy.check_elements([1, 7])


def test_the_header_says_what_is_in_the_file(saved):
    tensors, header = checkpoints.read(saved)
    assert header["format_version"] == 1 and header["units"]["forces"] == "eV/Å"
    assert header["recipe"]["name"] == "egnn" and header["recipe"]["options"]["hidden"] == 8
    assert all(k.startswith("model.") for k in tensors)


def test_float64_models_come_back_as_float64(tmp_path):
    model = egnn().double()
    copy = checkpoints.load(checkpoints.save(tmp_path / "m.safetensors", model))
    assert equal(weights(model), weights(copy))


def test_a_folder_means_its_best_checkpoint(tmp_path):
    checkpoints.save(tmp_path / "last.safetensors", egnn(seed=1))
    assert checkpoints.find(tmp_path).name == "last.safetensors"
    checkpoints.save(tmp_path / "best.safetensors", egnn(seed=2))
    assert equal(weights(checkpoints.load(tmp_path)), weights(egnn(seed=2)))


# -- transfer --------------------------------------------------------------------------------------------------------------------
def test_transfer_copies_the_parts_asked_for_and_lists_the_rest(saved):
    model, theirs = egnn(seed=5), weights(checkpoints.load(saved))
    before = weights(model)
    report = checkpoints.transfer(model, saved)
    after = weights(model)
    for key in after:
        assert torch.equal(after[key], (theirs if key.startswith("backbone.") else before)[key]), key
    assert sorted(report.copied) == sorted(k for k in after if k.startswith("backbone."))
    assert sorted(report.copied + report.new) == sorted(after) and report.mismatched == []
    text = str(report)
    assert f"{len(report.copied)} of backbone" in text and "of energy_head" in text and str(saved) in text
    checkpoints.transfer(model, saved, parts=("backbone", "energy_head"))
    assert all(torch.equal(v, theirs[k]) for k, v in weights(model).items() if k.startswith(("backbone.", "energy_head.")))


def test_transfer_skips_only_what_was_allowed(saved):
    model = egnn(seed=5, radial=4)  # the first layer of the edge network sees four numbers, not one
    theirs = weights(checkpoints.load(saved))
    allow = ["backbone.layers.0.from_distance", "backbone.layers.1.from_distance", "backbone.basis"]
    report = checkpoints.transfer(model, saved, allow=allow)
    assert sorted(report.mismatched) == ["backbone.basis.frequencies"] + [f"backbone.layers.{i}.from_distance.weight" for i in (0, 1)]
    assert torch.equal(weights(model)["backbone.embedding.element.weight"], theirs["backbone.embedding.element.weight"])


BROKEN = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "header cut": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "foreign": lambda path: save_file({"a": torch.zeros(3)}, path),
    "foreign with metadata": lambda path: save_file({"a": torch.zeros(3)}, path, metadata={"format": "pt"}),
    "no JSON": lambda path: save_file({"a": torch.zeros(3)}, path, metadata={"potkit": "{"}),
    "newer": lambda path: save_file({"a": torch.zeros(3)}, path, metadata={"potkit": json.dumps({"format_version": 99})}),
    "layers": lambda path: checkpoints.save(path, egnn(layers=3)),
    "fewer layers": lambda path: checkpoints.save(path, egnn(layers=1)),
    "width": lambda path: checkpoints.save(path, egnn(hidden=9)),
    "radial": lambda path: checkpoints.save(path, egnn(radial=4)),
    "network": lambda path: checkpoints.save(path, _renamed("schnet")),
}


def _renamed(name: str):
    model = egnn()
    model.recipe = {**model.recipe, "name": name}
    return model


@pytest.mark.parametrize("how", BROKEN)
def test_a_checkpoint_that_does_not_fit_leaves_the_model_alone(saved, how, tmp_path):
    BROKEN[how](saved)
    model = egnn(seed=5)
    before = weights(model)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.transfer(model, saved)
    text = one_line(caught.value)
    assert "model.safetensors" in text and equal(before, weights(model))
    words = {"missing": ["no such"], "width": ["(9,)", "(8,)"], "network": ["schnet", "egnn"], "newer": ["99"],
             "layers": ["backbone.layers.2"], "fewer layers": ["backbone.layers.1"], "foreign": ["not a checkpoint of potkit"]}  # fmt: skip
    assert all(w in text for w in words.get(how, []))
    with pytest.raises(CheckpointError):
        potkit.finetune(model, molecules(4), config=TrainConfig(steps=1, progress=False), init=saved, out=tmp_path / "r")
    assert equal(before, weights(model)) and not (tmp_path / "r").exists()


@pytest.mark.parametrize("how", ["missing", "truncated", "foreign"])
def test_loading_a_broken_file_is_one_line(saved, how):
    BROKEN[how](saved)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(saved)
    one_line(caught.value)


def test_restore_wants_every_tensor(saved):
    tensors, _ = checkpoints.read(saved)
    state = checkpoints.weights(tensors)
    model = egnn(seed=5)
    before = weights(model)
    key = "backbone.layers.1.gate.weight"
    for broken, word in (
        ({k: v for k, v in state.items() if k != key}, "missing"),
        ({**state, "backbone.more": torch.zeros(1)}, "backbone.more"),
        ({**state, key: torch.zeros(1, 9)}, "(1, 9)"),
    ):
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(model, broken, "here")
        assert word in one_line(caught.value) and equal(before, weights(model))


def test_an_empty_folder_an_unknown_part_and_a_model_without_recipe(tmp_path, saved):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoints.find(_mkdir(tmp_path / "void"))
    with pytest.raises(CheckpointError, match="'head'"):
        checkpoints.transfer(egnn(), saved, parts=("head",))
    bare = potkit.Potential(egnn().backbone)
    with pytest.raises(CheckpointError, match="recipe"):
        checkpoints.save(tmp_path / "bare.safetensors", bare)
    assert not (tmp_path / "bare.safetensors").exists()


def _mkdir(path: Path) -> Path:
    path.mkdir()
    return path


# -- a full disk -----------------------------------------------------------------------------------------------------------------
def run(out: Path, model=None, **changes):
    config = TrainConfig(**{"steps": 12, "batch_size": 4, "lr": 3e-3, "progress": False, "device": "cpu", "checkpoint_every": 1, **changes})
    return training.fit(model or egnn(), molecules(9), potkit.Denoise(sigma=0.1), config, out)


@pytest.mark.parametrize("kind", ["no space, when moved", "file size limit"])
def test_a_full_disk_is_one_line_and_the_earlier_state_survives(tmp_path, monkeypatch, kind):
    """Once the move to the final name fails; once the operating system itself refuses to write so large a file."""
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
    assert "last.safetensors: cannot be written" in text and ("No space left" in text or "File too large" in text)
    monkeypatch.undo()
    assert not list((tmp_path / "r").glob(".*"))  # nothing half-written is left
    state = next(p for p in (tmp_path / "r" / n for n in ("last.safetensors", "previous.safetensors")) if p.exists())
    assert checkpoints.read(state)[1]["state"]["step"] == 5
    assert equal(weights(run(tmp_path / "r").model), weights(whole.model))


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(DataError) as caught:
            run(out)
        assert "cannot be written" in one_line(caught.value)


# -- damaged states --------------------------------------------------------------------------------------------------------------
def stop_at(step: int, out: Path) -> None:
    """A run that ends as if killed right after the checkpoint of ``step``."""
    original = training._step

    def dying(fabric, state, *args):
        if state.step == step:
            raise KeyboardInterrupt
        return original(fabric, state, *args)

    training._step = dying
    try:
        with pytest.raises(KeyboardInterrupt):
            run(out)
    finally:
        training._step = original


def test_a_damaged_last_state_falls_back_to_the_previous_and_says_so(tmp_path):
    whole, out = run(tmp_path / "whole"), tmp_path / "r"
    stop_at(6, out)
    (out / "last.safetensors").write_bytes((out / "last.safetensors").read_bytes()[:-100])
    with pytest.warns(UserWarning, match=r"last.safetensors: not a readable checkpoint.*going on from previous.safetensors, step 5"):
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


# -- SIGKILL ---------------------------------------------------------------------------------------------------------------------
DRIVER = """
import json, os, random, signal, sys, time, traceback
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
import potkit
import potkit.training as training, potkit.checkpoints as checkpoints
from tiny import egnn, molecules
torch.set_num_threads(1)
base = Path(sys.argv[2])
config = potkit.TrainConfig(steps=12, batch_size=4, lr=3e-3, ema=0.8, checkpoint_every=1, validate_every=4, log_every=5, progress=False,
                            device="cpu")
data = molecules(13)


def train(out):
    return training.fit(egnn(), data[:9], potkit.Supervised(), config, out, data[9:])


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def child(work):
    # a fresh process for every attempt, without paying for the imports again
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(kind, number):
    # dies at the number-th call of os.replace (before or after it), or with half a checkpoint under its temporary name
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
            training.RunFolder.log = log
        train(out)
    return work


started = time.time()
assert wait(child(lambda: train(base / "whole"))) == 0
duration = time.time() - started
report = []
points = [tuple(p) for p in json.loads(sys.argv[3])]
for index, (kind, number) in enumerate(points):
    out = base / f"{index}-{kind}-{number}"
    if kind == "random":  # killed from outside, again and again, at times nobody chose, until it is through
        rng, deaths = random.Random(number), 0
        for attempt in range(40):
            pid = child(lambda: train(out))
            time.sleep(rng.uniform(0.1, 0.9) * duration * (1 if attempt < 6 else 3))
            os.kill(pid, signal.SIGKILL)
            code = wait(pid)
            deaths += code == -signal.SIGKILL
            if code == 0:
                break
    else:
        deaths = int(wait(child(lambda: killed_at(kind, number)(out))) == -signal.SIGKILL)
    begun = out.exists() and any(p.name in ("last.safetensors", "previous.safetensors") for p in out.iterdir())
    code = wait(child(lambda: train(out)))
    report.append({"point": [kind, number], "deaths": deaths, "begun": begun, "code": code, "out": str(out)})
print("REPORT" + json.dumps(report))
"""

# what comes when: 1 run.json, 2 config.yaml, 3 metrics, 4 last (step 1), 5 last → previous, 6 last (step 2), …
POINTS = [
    ("before", 1), ("after", 2), ("before", 4), ("after", 4), ("after", 5), ("before", 6), ("after", 9), ("before", 11), ("after", 16),
    ("half", 1), ("half", 4), ("half", 5), ("half", 12), ("half", 15), ("before", 26), ("before", 29), ("after", 29),
    ("log", 2), ("log", 3), ("random", 1), ("random", 2),
]  # fmt: skip


def test_a_killed_run_ends_as_one_that_was_not(tmp_path):
    """SIGKILL at chosen points (most while a checkpoint is being written) and at random times; then the same call again.

    The final weights, the averaged weights, the optimizer's state and every row of the metrics (but for the seconds) must be
    those of the run that was left alone, to the last bit.
    """
    script = tmp_path / "driver.py"
    script.write_text(textwrap.dedent(DRIVER))
    command = [sys.executable, str(script), str(Path(__file__).parent), str(tmp_path), json.dumps(POINTS)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(Path(potkit.__file__).parents[1])])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads(done.stdout.split("REPORT")[1])

    def end(folder: Path):
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        summary = json.loads((folder / "summary.json").read_text())
        return (
            [{k: v for k, v in row.items() if k != "seconds"} for row in rows], {k: summary[k] for k in ("steps", "best", "hash")},
            checkpoints.read(folder / "best.safetensors")[0], checkpoints.read(folder / "last.safetensors")[0],
        )  # fmt: skip

    rows, summary, best, last = end(tmp_path / "whole")
    assert [r["step"] for r in rows] == [4, 5, 8, 10, 12] and any(k.startswith("optimizer.") for k in last)
    for entry in report:
        where = str(entry)
        assert entry["code"] == 0, where + done.stderr[-3000:]
        assert entry["deaths"] >= 1, where  # the kill did happen
        theirs = end(Path(entry["out"]))
        assert theirs[0] == rows and theirs[1] == summary, where
        assert equal(theirs[2], best) and equal(theirs[3], last), where
        assert not list(Path(entry["out"]).glob(".*.tmp")), where
    assert sum(entry["begun"] for entry in report) >= 12  # most did go on, rather than start anew
