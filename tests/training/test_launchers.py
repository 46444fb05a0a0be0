"""Who starts the processes of a run: torchrun, srun, Fabric, or nobody but the user; and which of
them speaks.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tiny import egnn, molecules, one_line

import potkit
from potkit.cli import main as cli
from potkit.cli import streams
from potkit.errors import ConfigError
from potkit.structures import progress
from potkit.training import loop

ROOT = Path(__file__).resolve().parents[2]
CONFIG = potkit.TrainConfig(steps=2, batch_size=4, device="cpu", progress=False)
LAUNCHERS = ("SLURM", "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD", "LOCAL_WORLD", "MASTER")
# an allocation of four tasks, as a batch script sees it
ALLOCATION = {
    "SLURM_JOB_ID": "123",
    "SLURM_JOB_NAME": "big",
    "SLURM_NTASKS": "4",
    "SLURM_NNODES": "1",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
# and one of its four tasks, as srun starts it
TASK = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_STEP_NUM_NODES": "1"}
# the shell of an salloc is a step of one task
SHELL = {"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1"}


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in [name for name in os.environ if name.startswith(LAUNCHERS)]:
        monkeypatch.delenv(name)


def set_all(monkeypatch, values: dict[str, str]) -> None:
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(
    "more", [{}, {"SLURM_NTASKS_PER_NODE": "4"}, SHELL, SHELL | {"SLURM_NTASKS": "1"}]
)
def test_an_allocation_without_srun_is_one_process(monkeypatch, tmp_path, more):
    """However many tasks it has: nobody starts them."""
    set_all(monkeypatch, ALLOCATION | more)
    data = molecules(9)
    run = loop.fit(egnn(), data, potkit.Denoise(sigma=0.1), CONFIG, tmp_path / "run")
    assert run.summary["steps"] == 2


def test_in_an_allocation_fabric_starts_what_the_settings_ask_for(monkeypatch):
    set_all(monkeypatch, ALLOCATION)
    devices, nodes, environment = loop._processes(CONFIG.replace(devices=2))
    assert (devices, nodes) == (2, 1)
    assert not environment.creates_processes_externally


@pytest.mark.parametrize(
    ("tasks", "nodes", "each"), [(4, 1, 4), (4, 2, 2), (2, 2, 1)], ids=lambda n: str(n)
)
def test_what_srun_starts_counts(monkeypatch, tasks, nodes, each):
    """Of the step, not of the allocation, and not of the settings."""
    step = {"SLURM_NTASKS": tasks, "SLURM_STEP_NUM_TASKS": tasks, "SLURM_NNODES": nodes}
    step |= {"SLURM_STEP_NUM_NODES": nodes, "SLURM_NTASKS_PER_NODE": each}
    set_all(monkeypatch, ALLOCATION | {name: str(value) for name, value in step.items()})
    devices, machines, environment = loop._processes(CONFIG.replace(devices=7))
    assert (devices, machines) == (each, nodes)
    assert environment.creates_processes_externally and environment.world_size() == tasks


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({}, "--nodes=1 --ntasks-per-node=4"),  # srun --ntasks=4
        ({"SLURM_NTASKS_PER_NODE": "8"}, "--nodes=1 --ntasks-per-node=4"),
        ({"SLURM_STEP_NUM_NODES": "3"}, "4 tasks cannot be spread evenly over 3 nodes"),
    ],
)
def test_tasks_that_lightning_cannot_read_are_one_line(monkeypatch, tmp_path, more, words):
    set_all(monkeypatch, ALLOCATION | TASK | more)
    with pytest.raises(ConfigError, match=words) as caught:
        loop.fit(egnn(), molecules(9), potkit.Denoise(sigma=0.1), CONFIG, tmp_path / "run")
    one_line(caught.value)


def test_tasks_that_see_one_gpu_are_told_how_to_ask(monkeypatch):
    """Slurm shows each task one GPU where it was asked for --gpus-per-task=1."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = CONFIG.replace(device="cuda", devices=2)
    with pytest.raises(ConfigError, match=r"2 GPUs asked for, 1 found$"):
        loop.make_fabric(config)
    set_all(monkeypatch, ALLOCATION | TASK | {"SLURM_NTASKS_PER_NODE": "4"})
    words = r"4 GPUs asked for, 1 found; .*--gpus-per-node"
    with pytest.raises(ConfigError, match=words) as caught:
        loop.make_fabric(config)
    one_line(caught.value)


@pytest.mark.parametrize("page", ["guide/07-clusters.md", "scale.md"])
def test_jobs_of_the_pages_show_every_task_all_gpus(page):
    (line,) = re.findall(r"^#SBATCH .*", (ROOT / "docs" / page).read_text(), re.MULTILINE)
    options = dict(re.findall(r"--([a-z-]+)=(\S+)", line))
    assert options["gpus-per-node"] == options["ntasks-per-node"]
    assert "gpus-per-task" not in options


SCRIPT = """
import sys
import potkit
from potkit.training import loop

config = potkit.TrainConfig(device="cpu", devices=int(sys.argv[1]))
fabric = loop.make_fabric(config)
loop._say(config, f"first of {fabric.world_size}")
print(f"process {fabric.global_rank} of {fabric.world_size}")
"""


def start(tmp_path: Path, devices: int, more: dict[str, str]) -> subprocess.Popen:
    (tmp_path / "script.py").write_text(SCRIPT)
    own = {name: value for name, value in os.environ.items() if not name.startswith("CUDA")}
    own |= {"GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    own["PYTHONPATH"] = str(Path(potkit.__file__).parents[1])
    return subprocess.Popen(
        [sys.executable, str(tmp_path / "script.py"), str(devices)],
        env=own | more,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def test_fabrics_own_processes_say_what_is_said_once(tmp_path):
    """In a batch script of four tasks, of which this is one process that asks for two."""
    process = start(tmp_path, 2, ALLOCATION | {"SLURM_NTASKS_PER_NODE": "4"})
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert sorted(out.splitlines()) == ["process 0 of 2", "process 1 of 2"]
    assert err.count("first of 2") == 1


def test_tasks_of_srun_find_each_other(tmp_path):
    step = {"SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2", "SLURM_NTASKS_PER_NODE": "2"}
    step |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    tasks = [
        start(
            tmp_path,
            1,
            ALLOCATION | TASK | step | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
        )
        for rank in range(2)
    ]
    ends = [task.communicate(timeout=180) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], ends
    assert [out.strip() for out, _ in ends] == ["process 0 of 2", "process 1 of 2"]
    assert sum(err.count("first of 2") for _, err in ends) == 1


@pytest.mark.parametrize("name", ["RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"])
def test_only_the_first_process_speaks(monkeypatch, capsys, name):
    """Whichever launcher tells it its place."""
    for place, speaks in (("0", True), ("1", False)):
        monkeypatch.setenv(name, place)
        assert progress.first_process() == speaks
        loop._say(CONFIG.replace(progress=True), "of a run")
        cli._say("a result")
        streams.say_aside("aside")
        said = capsys.readouterr()
        assert (said.out, said.err) == (("a result\n", "of a run\naside\n") if speaks else ("", ""))
