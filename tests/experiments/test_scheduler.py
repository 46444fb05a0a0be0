"""Where runs are done: processes, GPUs, Dask; deaths of workers and of those who started them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from chores import Hesitant, Square, until
from grids import grid, numbers

import potkit
from potkit.errors import ConfigError
from potkit.experiments import experiment, scheduler, yaml_form


def test_processes_survive_the_death_of_one_and_see_a_device_each(tmp_path):
    notes = []
    before = signal.getsignal(signal.SIGTERM)
    with scheduler.Processes(Square(tmp_path), 2, devices=["3", "5"]) as place:
        first = place.map([1, 13, 2, 3, 4], lambda: notes.append(1))
        second = place.map([5])
    assert list(first) == [1, 13, 2, 3, 4] and len(notes) == 5
    assert first[13]["status"] == "failed" and "signal 9" in first[13]["error"]
    assert [first[t]["value"] for t in (1, 2, 3, 4)] == [1, 4, 9, 16] and second[5]["value"] == 25
    assert {first[t]["device"] for t in (1, 2, 3, 4)} == {"3", "5"}
    assert (
        os.getpid() not in {r.get("pid") for r in first.values()}
        and "CUDA_VISIBLE_DEVICES" not in os.environ
    )
    assert signal.getsignal(signal.SIGTERM) is before


def test_gpus_are_taken_in_turn(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert scheduler.visible_devices(4) == ["0", "1", "2"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5,7")
    assert scheduler.visible_devices(4) == ["2", "5", "7"]
    assert scheduler.visible_devices(1) is None  # one process: nothing to spread
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert scheduler.visible_devices(4) is None


@pytest.mark.parametrize(
    "place",
    [scheduler.Serial, lambda function: scheduler.Processes(function, 1)],
    ids=["here", "processes"],
)
def test_busy_runs_are_asked_for_again(tmp_path, place):
    with place(Hesitant(tmp_path, 3)) as opened:
        rows = opened.map([0, 1, 2])
    assert [rows[t]["value"] for t in (0, 1, 2)] == [0, 1, 2] and len(list(tmp_path.iterdir())) == 6


STARTER = """
import sys
sys.path.insert(0, sys.argv[1])
if __name__ == "__main__":
    from chores import endless
    from potkit import scheduler
    with scheduler.Processes(endless, 1) as place:
        place.map([sys.argv[2]])
"""


def test_workers_end_with_the_process_that_started_them(tmp_path):
    """However that ends: killed, asked to stop, by Ctrl-C, or with its terminal."""
    script = tmp_path / "starter.py"
    script.write_text(STARTER)
    environment = {**os.environ, "PYTHONPATH": str(Path(potkit.__file__).parents[1])}
    starters = {}
    for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        folder = tmp_path / number.name
        folder.mkdir()
        command = [sys.executable, str(script), str(Path(__file__).parents[1]), str(folder)]
        starters[number] = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    workers = {}
    try:
        for number, starter in starters.items():
            mark = tmp_path / number.name / "started"
            workers[number] = int(until(partial(_content, mark), 60))
            assert _alive(workers[number])
            starter.send_signal(number)
        for number, starter in starters.items():
            assert starter.wait(30) != 0
            assert until(partial(_gone, workers[number]), 20), (
                f"the worker outlived its starter's {number.name}"
            )
    finally:
        for starter in starters.values():
            starter.kill()


SPEC = """
name: endless
model: {name: egnn, preset: small, hidden: 8, layers: 1}
pretrain_on: {data: ani-mini, limit: 20}
train: {data: ani-mini, limit: 20}
test: {data: ani-mini, part: {fractions: [0.5, 0.5], index: 1}}
labels: [8]
seeds: [0, 1]
arms: {denoise: {objective: denoise, sigma: 0.1}}
pretrain: {steps: 1000000, batch_size: 4, progress: false, device: cpu}
finetune: {steps: 1000000, batch_size: 4, progress: false, device: cpu}
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("training", [True, False])
def test_nothing_outlives_a_killed_compare(tmp_path, training):
    """Whether its workers train already or are only being started."""
    (tmp_path / "spec.yaml").write_text(SPEC)
    command = [sys.executable, "-m", "potkit", "compare", "spec.yaml", "--jobs", "2"]
    environment = {**os.environ, "PYTHONPATH": str(Path(potkit.__file__).parents[1])}
    starter = subprocess.Popen(
        [*command, "--store", "store"], cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL
    )
    try:
        store = tmp_path / "store"
        # two workers, and the process that looks after what they share
        assert until(lambda: len(_children(starter.pid)) >= 3, 120)
        if training:
            assert until(lambda: len(list(store.glob("*/metrics.jsonl"))) == 2, 120)
        workers = _children(starter.pid)
    finally:
        starter.kill()
    starter.wait(30)
    assert until(lambda: all(map(_gone, workers)), 40), "they go on after the end of compare"


def _children(parent: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # it has ended
            if int(path.read_text().rpartition(") ")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return found


STUBBORN = """
import sys
sys.path.insert(0, sys.argv[1])
if __name__ == "__main__":
    from chores import deaf
    from potkit import scheduler
    with scheduler.Processes(deaf, 1) as place:
        place.map([sys.argv[2]])
"""


def test_a_worker_that_does_not_stop_ends_soon_after_its_starter_is_killed(tmp_path):
    script = tmp_path / "starter.py"
    script.write_text(STUBBORN)
    environment = {**os.environ, "PYTHONPATH": str(Path(potkit.__file__).parents[1])}
    command = [sys.executable, str(script), str(Path(__file__).parents[1]), str(tmp_path)]
    starter = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    try:
        worker = int(until(partial(_content, tmp_path / "started"), 60))
        starter.kill()
        starter.wait(10)
        assert until(partial(_gone, worker), scheduler.ALONE + 3)
    finally:
        starter.kill()


def _content(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _gone(pid: int) -> bool:
    return not _alive(pid)


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(") ")[1][0] != "Z"
    except OSError:
        return False


TRAINER = """
import sys
sys.path.insert(0, sys.argv[1])
if __name__ == "__main__":
    import potkit
    from grids import grid
    from potkit import experiments
    steps = 1_000_000
    config = potkit.TrainConfig(
        steps=steps,
        batch_size=4,
        progress=False,
        device="cpu",
        checkpoint_every=steps,
        validate_every=steps,
    )
    alone = dict(seeds=[0], objectives={}, variants={}, finetune_config=config, jobs=2)
    experiments.run(grid(sys.argv[2], **alone), progress=False)
"""


@pytest.mark.slow
def test_a_killed_grid_leaves_a_last_checkpoint(tmp_path):
    """The run writes none by itself here: it is written because the process that started them is
    gone.
    """
    script = tmp_path / "trainer.py"
    store = tmp_path / "store"
    script.write_text(TRAINER)
    environment = {**os.environ, "PYTHONPATH": str(Path(potkit.__file__).parents[1])}
    starter = subprocess.Popen(
        [sys.executable, str(script), str(Path(__file__).parents[1]), str(store)], env=environment
    )
    try:
        assert until(lambda: len(list(store.glob("*/metrics.jsonl"))) == 1, 120)
        time.sleep(0.5)
    finally:
        starter.kill()
    starter.wait(30)
    assert until(lambda: len(list(store.glob("*/last.safetensors"))) == 1, 60)
    assert potkit.checkpoints.read(next(store.glob("*/last.safetensors")))[1]["state"]["step"] > 0


def test_a_dask_cluster_of_two_workers_gives_the_same_table(tmp_path):
    distributed = pytest.importorskip("dask.distributed", reason="needs the extra `cluster`")
    settings = dict(threads_per_worker=1, dashboard_address=None, memory_limit=None)
    with (
        distributed.LocalCluster(2, **settings) as cluster,
        distributed.Client(cluster) as client,
    ):
        far = experiment.run(grid(tmp_path / "dask"), progress=False, client=client)
        again = potkit.compare(
            grid(tmp_path / "dask"), progress=False, client=cluster.scheduler_address
        )
    here = experiment.run(grid(tmp_path / "here"), progress=False)
    pd.testing.assert_frame_equal(numbers(far), numbers(here), rtol=1e-5)
    pd.testing.assert_frame_equal(again, potkit.compare(far))


@pytest.mark.slow
def test_a_grid_survives_the_death_of_a_dask_worker(tmp_path):
    """Killed while it trains: its run goes on elsewhere, and the table is that of a quiet grid."""
    distributed = pytest.importorskip("dask.distributed", reason="needs the extra `cluster`")
    config = potkit.TrainConfig(
        steps=40, batch_size=4, progress=False, device="cpu", checkpoint_every=2
    )
    changes = dict(pretrain_config=config, finetune_config=config, seeds=[0], variants={})
    settings = dict(threads_per_worker=1, dashboard_address=None, memory_limit=None)
    store, killed = tmp_path / "dask", []

    with (
        distributed.LocalCluster(n_workers=1, **settings) as cluster,
        distributed.Client(cluster) as client,
    ):
        [worker] = client.run(os.getpid).values()

        def kill() -> None:
            if until(lambda: list(store.glob("*/last.safetensors")), 120):
                os.kill(worker, signal.SIGKILL)
                killed.append(worker)

        other = threading.Thread(target=kill)
        other.start()
        far = experiment.run(grid(store, **changes), progress=False, client=client)
        other.join()
    assert killed
    here = experiment.run(grid(tmp_path / "here", **changes), progress=False)
    pd.testing.assert_frame_equal(numbers(far), numbers(here), rtol=1e-5)


FAR = """
name: far
model: {name: egnn, preset: small, hidden: 8, layers: 1}
pretrain_on: {data: ani-mini, limit: 20}
train: {data: ani-mini, limit: 20}
test: {data: ani-mini, part: {fractions: [0.99, 0.01], index: 1}}
labels: [8]
seeds: [0, 1]
arms: {denoise: {objective: denoise, sigma: 0.1}}
pretrain: {steps: 2, batch_size: 4, progress: false, device: cpu}
finetune: {steps: 60, batch_size: 4, progress: false, device: cpu, checkpoint_every: 2}
longer: steps
"""


@contextmanager
def cluster_of_one(folder: Path) -> Iterator[tuple[str, subprocess.Popen]]:
    """The address of a Dask scheduler with one worker, processes of their own, and the
    scheduler's.
    """
    environment = {**os.environ, "PYTHONPATH": str(Path(potkit.__file__).parents[1])}
    folder.mkdir()
    log = (folder / "log.txt").open("w")

    def begin(*words: object) -> subprocess.Popen:
        command = [sys.executable, "-m", "dask", *map(str, words), "--no-dashboard"]
        return subprocess.Popen(command, env=environment, stdout=log, stderr=log)

    record = folder / "scheduler.json"
    started = [
        begin("scheduler", "--host", "127.0.0.1", "--port", 0, "--scheduler-file", record),
    ]
    try:
        assert until(record.exists, 60)
        started.append(begin("worker", "--scheduler-file", record, "--nthreads", 1, "--no-nanny"))
        yield json.loads(record.read_text())["address"], started[0]
    finally:
        for process in started:
            process.kill()
            process.wait()
        log.close()


@pytest.mark.slow
def test_a_killed_dask_scheduler_is_one_line_and_its_grid_goes_on(tmp_path):
    """Killed while a run trains: the command ends soon, and what is finished is not done again."""
    pytest.importorskip("dask.distributed", reason="needs the extra `cluster`")
    (tmp_path / "spec.yaml").write_text(FAR)
    store = tmp_path / "far"
    environment = {**os.environ, "PYTHONPATH": str(Path(potkit.__file__).parents[1])}
    command = [sys.executable, "-m", "potkit", "compare", "spec.yaml", "--store"]

    def compare(*words: str) -> subprocess.Popen:
        return subprocess.Popen(
            [*command, *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )

    with cluster_of_one(tmp_path / "first") as (address, dask):
        grid = compare("far", "--dask", address, "--out", "results")
        trains = "finetune-*/last.safetensors"
        assert until(lambda: list(store.glob(trains)) or grid.poll() is not None, 120)
        finished = {path: path.stat().st_mtime_ns for path in store.glob("*/summary.json")}
        dask.kill()
        _, said = grid.communicate(timeout=60)
    assert grid.returncode == 1 and finished
    last = said.splitlines()[-1]
    assert last == (
        f"error: the Dask scheduler at {address} no longer answers; finished runs are kept, and "
        "the same call goes on from there"
    )
    assert "Traceback" not in said and "distributed" not in said
    assert not (tmp_path / "results").exists()

    with cluster_of_one(tmp_path / "second") as (address, _):
        grid = compare("far", "--dask", address, "--out", "results")
        _, said = grid.communicate(timeout=240)
    assert grid.returncode == 0, said
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    far = pd.read_csv(tmp_path / "results/far-runs.csv")
    [quiet] = yaml_form.read(tmp_path / "spec.yaml").experiments(store=tmp_path / "here")
    here = experiment.run(quiet, progress=False)
    columns = ["arm", "seed", "steps", "status", "energy_mae", "forces_mae"]
    pd.testing.assert_frame_equal(numbers(far)[columns], numbers(here)[columns], rtol=1e-5)


def test_a_dask_scheduler_that_does_not_answer_is_one_line():
    pytest.importorskip("dask.distributed", reason="needs the extra `cluster`")
    with pytest.raises(ConfigError, match="no Dask scheduler") as caught:
        scheduler.connect("not an address")
    assert "\n" not in str(caught.value)
