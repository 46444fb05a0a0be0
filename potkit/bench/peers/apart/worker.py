"""A peer's process, seen from here: started with settings, asked for one piece of work at a time,
ended whatever happens.
"""

from __future__ import annotations

import contextlib
import json
import math
import queue
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from typing import IO, Any

from ....errors import ConfigError
from ...common import Seconds
from .environments import bare_environment, last_words

START = 1800.0  # s until the first answer: import, building, compiling, the first calls
ANSWER = 600.0  # s until any other answer
END = 2.0  # s that a process has to end by itself
SIZES = ("first_s", "last_s", "prepare_s", "parameters", "edges")  # of the first answer


class Worker:
    """A process that answers lines of JSON (`workers/serving.py`); a context manager that ends it.

    ``sizes`` is its first answer. Raises ConfigError, in one line, where it cannot be started,
    crashes, says nothing for too long, or something that it should not.
    """

    def __init__(
        self, name: str, command: Sequence[str], settings: dict[str, Any], threads: int
    ) -> None:
        self.name = name
        errors = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 (`close` closes it)
        self._errors: IO[str] = errors
        self._lines: queue.Queue[str | None] = queue.Queue()
        try:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                text=True,
                env=bare_environment(**thread_variables(threads)),
                start_new_session=True,  # Ctrl-C reaches this process alone, which then ends it
            )
        except OSError as error:
            self._errors.close()
            raise ConfigError(f"bench: {name}: {command[0]}: {error.strerror}") from None
        threading.Thread(target=self._read, daemon=True).start()
        try:
            self.sizes = self.ask(json.dumps(settings), START, *SIZES)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *problem: object) -> None:
        self.close()

    def go(self) -> Seconds:
        """Have the work done once, and give the seconds that it took there."""
        return Seconds(self.ask("go", ANSWER, "seconds")["seconds"])

    def peak_mb(self) -> float:
        """MB at the peak of one piece of work, NaN where the peer cannot tell."""
        peak = self.ask("memory", ANSWER)["peak_mb"]
        return math.nan if peak is None else float(peak)

    def ask(self, line: str, patience: float, *numbers: str) -> dict[str, Any]:
        """The answer to a line, which must hold ``numbers`` of these names."""
        with contextlib.suppress(BrokenPipeError):  # it has ended: its answer says so
            self._process.stdin.write(line + "\n")
            self._process.stdin.flush()
        try:
            answer = self._lines.get(timeout=patience)
        except queue.Empty:
            raise ConfigError(f"bench: {self.name} did not answer within {patience:g} s") from None
        if answer is None:
            raise ConfigError(f"bench: {self.name} ended with {self._ended()}")
        try:
            content = json.loads(answer)
            problem = content.get("error")
            wrong = [key for key in numbers if not isinstance(content.get(key), int | float)]
        except (ValueError, AttributeError):
            content, problem, wrong = {}, None, ["JSON"]
        if problem:
            raise ConfigError(f"bench: {self.name}: {' '.join(str(problem).split())[:300]}")
        if wrong:
            raise ConfigError(f"bench: {self.name} answered {answer.strip()[:80]!r}")
        return content

    def close(self) -> None:
        """End the process: it ends by itself when nothing can come any more, else it is killed."""
        with contextlib.suppress(OSError):
            self._process.stdin.close()
        try:
            self._process.wait(END)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._errors.close()

    def _read(self) -> None:
        # ends when the process does: readline itself cannot be given a limit
        with contextlib.suppress(ValueError, OSError):
            for line in self._process.stdout:
                self._lines.put(line)
        self._lines.put(None)

    def _ended(self) -> str:
        """With which code the process ended, and the last that it said."""
        try:
            code: int | str = self._process.wait(END)
        except subprocess.TimeoutExpired:
            code = "its output closed"
        self._errors.seek(0)
        return f"{code}: {last_words(self._errors.read())}"


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables by which a process starts with so many threads, whatever computes in
    it: OpenMP, OpenBLAS, MKL, XLA.
    """
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NPROC", "PJRT_NPROC")
    return dict.fromkeys(names, str(threads)) | {"JAX_PLATFORMS": "cpu"}
