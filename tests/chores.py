"""Tasks for workers that need nothing but Python, so that a process is there at once."""

from __future__ import annotations

import os
import signal
import time
import traceback
from pathlib import Path


def until(condition, seconds: float):
    """The first true answer of ``condition`` within ``seconds``, else its last."""
    end = time.monotonic() + seconds
    while not (answer := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return answer


def child(work) -> int:
    """The process that does ``work``: a fresh one, without paying for the imports again. It ends
    with 1 where ``work`` raises.
    """
    pid = os.fork()
    if not pid:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return pid


def wait(pid: int) -> int:
    """How a process ended: its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


class Square:
    """Squares; dies of 13. The first tasks wait for each other: both processes take part."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, task: int) -> dict:
        if task == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        (self.folder / str(os.getpid())).write_text("")
        until(lambda: len(list(self.folder.iterdir())) >= 2, 60)
        return {
            "status": "ok",
            "value": task**2,
            "pid": os.getpid(),
            "device": os.environ.get("CUDA_VISIBLE_DEVICES"),
        }


class Hesitant:
    """Says "busy" the first times an even task is asked for."""

    def __init__(self, folder: Path, times: int) -> None:
        self.folder, self.times = folder, times

    def __call__(self, task: int) -> dict:
        marks = len(list(self.folder.glob(f"{task}-*")))
        if task % 2 == 0 and marks < self.times:
            (self.folder / f"{task}-{marks}").write_text("")
            return {"status": "busy"}
        return {"status": "ok", "value": task}


def endless(folder: str) -> dict:
    """Does not end by itself; it first says who does it."""
    (Path(folder) / "starting").write_text(str(os.getpid()))
    os.replace(Path(folder) / "starting", Path(folder) / "started")
    while True:
        time.sleep(0.05)


def deaf(folder: str) -> dict:
    """As `endless`, but SIGTERM is not met, as in a long step."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    return endless(folder)
