"""The command in odd surroundings: terminals of any encoding, closed streams, readers that leave,
folders that are gone, other people's repositories.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import potkit

ROOT = Path(potkit.__file__).resolve().parents[1]
SPEC = """
name: tiny
model: {{name: egnn, preset: small, hidden: 8, layers: 2}}
train: {{data: {data}}}
test: {{data: {data}}}
labels: [8]
seeds: [0, 1]
finetune: {{steps: 2, batch_size: 4, progress: false, device: cpu}}
"""


def environment(**more: str) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    return {**own, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **more}


def potkit_command(
    *arguments: str, cwd: Path, shell: str = "", **more: str
) -> subprocess.CompletedProcess:
    """``potkit ARGUMENTS``, with ``shell`` (redirections, pipes) behind it."""
    words = " ".join(f"'{word}'" for word in arguments)
    line = f"'{sys.executable}' -m potkit {words} {shell}"
    return subprocess.run(
        ["bash", "-c", line], cwd=cwd, env=environment(**more), capture_output=True
    )


@pytest.fixture
def spec(tmp_path: Path) -> Path:
    """An experiment of two short runs from scratch."""
    data = tmp_path / "small.h5"
    structures = potkit.load("ani-mini")
    structures[:24].save(data)
    path = tmp_path / "tiny.yaml"
    path.write_text(SPEC.format(data=data))
    return path


ENCODINGS = {
    "C": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_terminal_that_is_not_utf8_gets_replacement_characters(tmp_path, encoding):
    done = potkit_command("data", "list", cwd=tmp_path, **ENCODINGS[encoding])
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    assert b"ani-mini" in done.stdout and b"?" in done.stdout and b"Traceback" not in done.stderr


def test_an_error_reaches_a_terminal_that_is_not_utf8(tmp_path):
    done = potkit_command("data", "info", "Å.xyz", cwd=tmp_path, **ENCODINGS["ascii"])
    assert done.returncode == 1 and done.stderr.startswith(b"error: ")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("buffered", [{}, {"PYTHONUNBUFFERED": "1"}], ids=["buffered", "not"])
def test_the_table_is_stored_whoever_has_stopped_reading(tmp_path, spec, buffered):
    stopped = {"shell": "| true; exit ${PIPESTATUS[0]}", **buffered}
    done = potkit_command("compare", str(spec), "--out", "res", cwd=tmp_path, **stopped)
    assert done.returncode == 1, done.stderr.decode()  # as all programs made with click
    assert b"Traceback" not in done.stderr and b"BrokenPipe" not in done.stderr
    assert (tmp_path / "res" / "tiny.csv").is_file()
    assert (tmp_path / "res" / "tiny-runs.csv").is_file()


def test_the_table_is_stored_where_it_cannot_be_encoded(tmp_path, spec):
    done = potkit_command("compare", str(spec), "--out", "res", cwd=tmp_path, **ENCODINGS["ascii"])
    assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "res" / "tiny.csv").is_file() and b"meV/?" in done.stdout


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_training_goes_on_without_streams(tmp_path, spec, closed):
    """With a progress bar, whose stream is closed."""
    done = potkit_command(
        *("pretrain", "--data", str(tmp_path / "small.h5"), "--steps", "2", "--batch-size", "4"),
        *("--set", "hidden=8", "--set", "layers=2", "--device", "cpu", "--out", "run"),
        cwd=tmp_path,
        shell=closed,
    )
    assert done.returncode == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["steps"] == 2


def test_why_every_run_failed_is_said_and_nothing_stored(tmp_path, spec):
    spec.write_text(spec.read_text().replace("steps: 2,", "steps: 2, lr: 1.0e+300,"))
    done = potkit_command("compare", str(spec), "--store", "store", "--out", "res", cwd=tmp_path)
    last = done.stderr.decode().splitlines()[-1]
    assert done.returncode == 1 and b"Traceback" not in done.stderr
    assert last.startswith("error: none of the 2 runs ended well; the first: ")
    assert "store/finetune-" in last and "is not a finite number" in last
    assert not (tmp_path / "res").exists()


def test_a_full_disk_is_called_by_its_name(tmp_path, spec, monkeypatch):
    from potkit.experiments import experiment, yaml_form
    from potkit.training import checkpoints

    def full(*_: object, **__: object) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(checkpoints, "save_file", full)
    grid = yaml_form.read(spec).experiments(store=tmp_path / "store")
    with pytest.raises(potkit.errors.TrainingError, match=r"store/.*No space left on device"):
        experiment.compare(grid, progress=False)


def test_a_working_directory_that_is_gone_is_one_line(tmp_path):
    gone = tmp_path / "gone"
    gone.mkdir()
    done = potkit_command("data", "list", cwd=gone, shell="; exit $?")
    assert done.returncode == 0
    line = f"rmdir '{gone}'; '{sys.executable}' -m potkit data list"
    done = subprocess.run(
        ["bash", "-c", line], cwd=gone, env=environment(), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: the working directory no longer exists; change to another"
    ]


def test_a_missing_folder_for_temporary_files_is_one_line(tmp_path):
    missing = str(tmp_path / "missing")
    done = potkit_command("data", "list", cwd=tmp_path, TMPDIR=missing)
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1
    assert f"TMPDIR={missing}: no such folder" in done.stderr.decode()


def test_results_name_potkit_s_commit_and_run_nobody_s_programs(tmp_path, spec):
    """In a repository of another's, with a program that git would run."""
    trap = tmp_path / "trap"
    trap.write_text(f"#!/bin/sh\ntouch '{tmp_path}/ran'\n")
    trap.chmod(0o755)
    author = ["-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (
        ["init", "-q"],
        ["config", "core.fsmonitor", str(trap)],
        [*author, "commit", "-q", "--allow-empty", "-m", "theirs"],
    ):
        subprocess.run(["git", *command], cwd=tmp_path, check=True, capture_output=True)
    (tmp_path / "ran").unlink(missing_ok=True)
    command = ["git", "rev-parse", "--short=12", "HEAD"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    other_commit = done.stdout.strip()
    done = potkit_command("compare", str(spec), "--out", "res", cwd=tmp_path)
    assert done.returncode == 0, done.stderr.decode()
    made = json.loads((tmp_path / "res" / "tiny.json").read_text())
    assert made["commit"] and not made["commit"].startswith(other_commit)
    assert not (tmp_path / "ran").exists()
