"""The long commands, killed at moments nobody chose: the same call again gives what an undisturbed
one gives, leaves nothing beside it and no process alive.

POTKIT_KILLS is how often each command is killed (`make kills COUNT=`); without it, some of them
once.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import commands
import pytest
from chores import child, until, wait

COUNT = int(os.environ.get("POTKIT_KILLS", "0"))
SHORT = ("data convert", "md")
OUTCOMES: Counter = Counter()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("kills") / "inputs"
    assert wait(child(lambda: commands.lay(folder))) == 0
    return folder


@pytest.fixture(scope="module", autouse=True)
def outcomes() -> Iterator[None]:
    yield
    for (name, outcome), count in sorted(OUTCOMES.items()):
        print(f"\n{name}: {count} {outcome}", end="")


def laid(inputs: Path, folder: Path) -> Path:
    """A folder of its own for one more call, with the inputs and an empty out/."""
    shutil.copytree(inputs, folder)
    shutil.copytree(inputs / "finished", folder / "out/run-to-evaluate")
    return folder


def killed(process: int) -> bool:
    """Kill the leader of a group of processes; whether it was in time. What it started has to end
    by itself.
    """
    with suppress(ProcessLookupError):
        os.kill(process, signal.SIGKILL)
    in_time = wait(process) == -signal.SIGKILL
    assert until(lambda: not commands.alive(process), 10), "what it started lives on"
    return in_time


@pytest.mark.parametrize("name", commands.COMMANDS if COUNT else SHORT)
def test_a_killed_command_ends_as_one_that_was_not(name, inputs, tmp_path):
    line = commands.COMMANDS[name]
    whole = laid(inputs, tmp_path / "whole")
    began = time.monotonic()
    code = wait(commands.begin(line, whole))
    assert code == 0, commands.said(whole)
    patience = time.monotonic() - began
    expected = commands.results(whole / "out")
    assert expected
    moments = random.Random(name)
    wrong = []
    for number in range(COUNT or 1):
        folder = laid(inputs, tmp_path / f"{number}")
        kills = 0
        for _ in range(moments.choice([1, 1, 2])):
            process = commands.begin(line, folder)
            time.sleep(moments.uniform(0.0, 1.0) * patience)
            kills += killed(process)
        code = wait(commands.begin(line, folder))
        different = commands.differences(commands.results(folder / "out"), expected)
        if code or different:
            wrong.append(f"kill {number}: exit code {code}, {commands.said(folder)}, {different}")
            OUTCOMES[name, "wrong"] += 1
        else:
            OUTCOMES[name, f"ended as undisturbed after {kills} kills"] += 1
            shutil.rmtree(folder)
    assert not wrong, "\n".join(wrong)
