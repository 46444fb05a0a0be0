"""Grids that are killed, at chosen and at random points, and grids that share a store: no run
lost, none done twice, the same table.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from grids import grid, numbers

import potkit
from potkit.errors import Busy, Interrupted, TrainingError
from potkit.experiments import experiment
from potkit.structures import outputs
from potkit.training import loop

DRIVER = """
import json, os, pickle, random, signal, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
import potkit
from potkit import experiments
from potkit.experiments import tasks
from potkit.training import loop
from chores import child, wait
from grids import grid, numbers
base, points, pairs = Path(sys.argv[2]), json.loads(sys.argv[3]), int(sys.argv[4])


def table(store, **changes):
    rows = numbers(experiments.run(grid(store, **changes), progress=False))
    (store / "table.pickle").write_bytes(pickle.dumps(rows))


def dying(store, after):
    # SIGKILL when so many files have been moved to their place (a grid moves about 100), so at any
    # point: in runs, between them, at the end
    moved = [0]

    def replace(source, target, original=os.replace):
        moved[0] += 1
        if moved[0] == after:
            os.kill(os.getpid(), signal.SIGKILL)
        original(source, target)

    os.replace = replace
    table(store)


def counting(store, log):
    original = loop._train

    def noted(training, folder, valid, notes):
        with open(log, "a") as file:
            file.write(folder.path.name + "\\n")
        return original(training, folder, valid, notes)

    loop._train = noted
    table(store)


started = time.time()
assert wait(child(lambda: table(base / "whole"))) == 0
patience, report = time.time() - started, []
for number, point in enumerate(points):
    store = base / f"killed-{number}"
    if point is None:  # a time nobody chose
        pid = child(lambda: table(store))
        time.sleep(random.Random(number).uniform(0.05, 0.95) * patience)
        os.kill(pid, signal.SIGKILL)
        deaths = int(wait(pid) == -signal.SIGKILL)
    else:
        deaths = int(wait(child(lambda: dying(store, point))) == -signal.SIGKILL)
    finished = len(list(store.glob("*/summary.json")))
    code = wait(child(lambda: table(store)))
    entry = {"point": point, "deaths": deaths, "finished": finished, "code": code}
    report.append(entry | {"store": str(store)})
for number in range(pairs):
    store, log = base / f"shared-{number}", base / f"shared-{number}.log"
    pids = [child(lambda: counting(store, log)) for _ in range(2)]
    codes = [wait(pid) for pid in pids]
    report.append({"pair": codes, "store": str(store), "trained": log.read_text().split()})
print("REPORT" + json.dumps(report))
"""

POINTS = [1, 4, 7, 11, 16, 23, 30, 36, 41, 47, 52, 58, 63, 69, 74, *[None] * 6]


@pytest.fixture(scope="module")
def report(tmp_path_factory) -> list[dict]:
    base = tmp_path_factory.mktemp("grids")
    script = base / "driver.py"
    script.write_text(DRIVER)
    command = [
        sys.executable,
        str(script),
        str(Path(__file__).parents[1]),
        str(base),
        json.dumps(POINTS),
        "2",
    ]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(potkit.__file__).parents[1]),
    }
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return [
        {"stderr": done.stderr[-3000:], "whole": str(base / "whole"), **entry}
        for entry in json.loads(done.stdout.split("REPORT")[1])
    ]


def table(store: str) -> pd.DataFrame:
    return pd.read_pickle(Path(store) / "table.pickle")


@pytest.mark.slow
def test_a_grid_killed_anywhere_gives_the_table_of_one_that_was_not(report):
    whole = table(report[0]["whole"])
    assert (
        len(whole) == 8
        and (whole["status"] == "ok").all()
        and set(whole["arm"]) == {"scratch", "scratch-longer", "denoise", "frozen"}
    )
    killed = [e for e in report if "point" in e]
    assert len(killed) >= 20
    for entry in killed:
        assert entry["code"] == 0, entry
        # the kill did happen; at a random time it may come too late
        assert entry["deaths"] == 1 or entry["point"] is None, entry
        pd.testing.assert_frame_equal(table(entry["store"]), whole)  # to the last bit
        names = [path.name for path in Path(entry["store"]).rglob("*")]
        assert not list(filter(outputs.is_temporary, names)), entry
    assert {0, 1, 5} <= {e["finished"] for e in killed} and len(
        {e["finished"] for e in killed}
    ) >= 5, "killed in few places only"


@pytest.mark.slow
def test_two_grids_at_once_do_every_run_once(report):
    whole = table(report[0]["whole"])
    pairs = [e for e in report if "pair" in e]
    for entry in pairs:
        assert entry["pair"] == [0, 0], entry
        assert len(entry["trained"]) == len(set(entry["trained"])) == 10, (
            "a run was done twice or lost"
        )
        pd.testing.assert_frame_equal(table(entry["store"]), whole)
    assert pairs


HOLDER = """
import sys, filelock
lock = filelock.FileLock(sys.argv[1])
lock.acquire()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_folder_in_which_another_process_trains_is_left_alone(tmp_path):
    from tiny import egnn, molecules

    config = potkit.TrainConfig(steps=2, batch_size=2, progress=False, device="cpu")
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "run.lock")]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline().strip() == b"held"
        with pytest.raises(Busy, match="another process trains in this folder") as caught:
            loop.fit(egnn(), molecules(6), potkit.Denoise(sigma=0.1), config, tmp_path)
        assert "\n" not in str(caught.value)
    finally:
        holder.kill()
        holder.wait()
    # the dead hold nothing
    run = loop.fit(egnn(), molecules(6), potkit.Denoise(sigma=0.1), config, tmp_path)
    assert run.summary["steps"] == 2 and not (tmp_path / "run.lock").exists()


def test_ctrl_c_ends_a_grid_not_only_its_run(tmp_path, monkeypatch):
    calls = []
    original = loop._train

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 2:
            raise Interrupted("interrupted after step 3; the same call goes on from there")
        return original(*args)

    monkeypatch.setattr(loop, "_train", interrupted)
    with pytest.raises(Interrupted, match="after step 3"):
        experiment.run(grid(tmp_path), progress=False)
    assert len(calls) == 2
    monkeypatch.undo()
    # Ctrl-C outside of the training loop
    monkeypatch.setattr(loop, "_train", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted, match="stopped after 1 of 10 runs; the same call goes on"):
        experiment.run(grid(tmp_path), progress=False)


def test_a_failed_run_keeps_its_error_and_its_place(tmp_path, monkeypatch):
    original = loop._train

    def failing(training, folder, valid, notes):
        config = training.config
        if notes["task"] == "finetune" and config.seed == 1 and config.freeze:
            raise TrainingError(
                f"{folder.path}: the loss of step 2 or its gradient is not a finite number"
            )
        return original(training, folder, valid, notes)

    monkeypatch.setattr(loop, "_train", failing)
    table = experiment.run(grid(tmp_path), progress=False)
    bad = table[table["status"] != "ok"]
    assert (
        len(table) == 8
        and len(bad) == 1
        and bad.iloc[0][["arm", "seed", "labels"]].tolist() == ["frozen", 1, 10]
    )
    assert "the loss of step 2" in bad.iloc[0]["error"]
    monkeypatch.undo()
    # what failed is tried again, the rest is found
    again = experiment.run(grid(tmp_path), progress=False)
    assert (again["status"] == "ok").all()
    good = table["status"] == "ok"
    one, other = (numbers(t)[good.to_numpy()].drop(columns="error") for t in (again, table))
    pd.testing.assert_frame_equal(one, other, check_dtype=False)


def test_the_cost_of_pretraining_is_measured_once(tmp_path):
    first = experiment.run(grid(tmp_path, longer="time", variants={}), progress=False)
    [kept] = tmp_path.glob("longer-*.json")
    values = json.loads(kept.read_text())
    for folder in tmp_path.glob("*/summary.json"):  # as if the clock had been another
        summary = json.loads(folder.read_text())
        folder.write_text(json.dumps(summary | {"seconds": 7 * summary["seconds"] + 1}))
    second = experiment.run(grid(tmp_path, longer="time", variants={}), progress=False)
    longer = first[first["arm"] == "scratch-longer"]
    assert (longer["steps"] == 4 + values["steps"]).all() and values["steps"] > 0
    pd.testing.assert_frame_equal(numbers(first), numbers(second))
