"""A run with `compile: true`, killed while Inductor compiles and while it trains: the same call
again gives what an undisturbed one gives, and nothing is left but what is left on purpose.

On purpose: Inductor's own folder (TORCHINDUCTOR_CACHE_DIR, in TMPDIR without it). Its entries are
named by their content and moved into place, so a killed run's are as good as any; what it had half
written there is never read, and goes with the folder.
"""

from __future__ import annotations

import os
import shutil
import signal
from contextlib import suppress
from functools import partial
from pathlib import Path

import commands
import pytest
from chores import until, wait
from test_kills import COUNT, inputs  # noqa: F401

from potkit.training import checkpoints, loop

KINDS = {
    # energy and forces as one graph
    "finetune": ["finetune", "--data", "source.xyz", "--model", "painn", "--no-figures"],
    # the backbone, with a vector of its own as target
    "pretrain": ["pretrain", "--data", "source.xyz", "--model", "painn"],
}
MORE = [
    *("--set", "hidden=8", "--set", "layers=1", *commands.TRAINING),
    *("--config-set", "compile=true", "--out", "out/run"),
]


def begin(kind: str, folder: Path, dies_at: int | None = None) -> int:
    """The process that trains in ``folder``, with folders of its own for what is temporary; before
    step ``dies_at`` it kills itself.
    """
    (folder / "temporary").mkdir(exist_ok=True)
    take_step = loop.take_step

    def step(training, state):
        if state.step == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return take_step(training, state)

    def surroundings() -> None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        os.environ["TMPDIR"] = str(folder / "temporary")
        loop.take_step = step

    return commands.begin([*KINDS[kind], *MORE], folder, surroundings)


def compilers(folder: Path) -> list[int]:
    """The processes that work for Inductor in ``folder``, of whatever group they are."""
    mark, found = os.fsencode(f"TORCHINDUCTOR_CACHE_DIR={folder / 'inductor'}"), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # it has ended
            if mark in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def made(folder: Path) -> int:
    """How many libraries Inductor has made."""
    return len(list((folder / "inductor").rglob("*.so")))


# by `make kills` alone, which gives it a process of its own: it takes minutes, and a process in
# which Inductor has been used before cannot be forked and use it again
@pytest.mark.slow
@pytest.mark.skipif(not COUNT, reason="compiles for minutes; make kills runs it")
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_run_with_compile_goes_on_to_the_same_result(kind, inputs, tmp_path):  # noqa: F811
    """Killed with the first library made and with some more, then in training: equal to the last
    bit, metrics included.
    """
    folder = tmp_path / "killed"
    shutil.copytree(inputs, folder)

    def killed(process: int) -> None:
        assert wait(process) == -signal.SIGKILL, commands.said(folder)
        left = partial(compilers, folder)
        assert until(lambda: not left() and not commands.alive(process), 30), left()
        assert not list((folder / "temporary").iterdir())

    for more in (1, 3):
        process, before = begin(kind, folder), made(folder)
        reached = partial(lambda least: made(folder) >= least, before + more)
        assert until(reached, 300) and compilers(folder)
        os.kill(process, signal.SIGKILL)
        killed(process)
        assert not list(folder.glob("out/run/*.safetensors"))
    killed(begin(kind, folder, dies_at=11))
    _, header = checkpoints.read(folder / "out/run/last.safetensors")
    assert 0 < header["state"]["step"] <= 11
    assert wait(begin(kind, folder)) == 0, commands.said(folder)

    whole = tmp_path / "whole"
    shutil.copytree(inputs, whole)
    assert wait(begin(kind, whole)) == 0, commands.said(whole)
    expected = commands.results(whole / "out")
    assert expected and not commands.differences(commands.results(folder / "out"), expected)
    for place in (folder, whole):
        assert not list((place / "temporary").iterdir()) and not compilers(place)
