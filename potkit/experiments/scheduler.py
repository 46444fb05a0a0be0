"""Where the runs of a grid are done: here one after the other, in several processes (each with its
GPU), or by a Dask client.

All three do the same: give every task to ``function(task)`` and collect its answer, a row with a
"status". A row whose status is "busy" (another grid does that run right now) is asked for again
later. One worker's death costs its run, not the grid. When the process that started a grid ends,
however it ends, its workers write a checkpoint and end too.

By hand, since process pools of libraries neither give a run back when its worker is killed without
losing the others, nor a GPU to each worker, nor end workers when their starter is killed.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from multiprocessing import connection, get_context, parent_process
from typing import Any, TypeVar

from ..errors import ConfigError, Interrupted
from ..structures import endings

T = TypeVar("T")
Row = dict[str, Any]
TRIES = 3  # times that a function is sent anew to the workers of a Dask cluster
PAUSE = 0.5  # s before a busy run is asked for again
PATIENCE = 30.0  # s a worker has for its last checkpoint
LOGS = ("distributed", "distributed.client", "distributed.utils")  # where Dask's client complains
ALONE = 5.0  # s it has where its starter was killed: a resumed grid waits for its run


class Serial:
    """One task after the other, in this process."""

    def __init__(self, function: Callable[[Any], Row]) -> None:
        self.function = function

    def __enter__(self) -> Serial:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def map(self, tasks: Sequence[T], note: Callable[[], Any] = lambda: None) -> dict[T, Row]:
        """The row of every task, in their order; ``note`` is called as each is done."""
        queue = deque(tasks)
        done: dict[T, Row] = {}
        in_vain = 0  # busy runs asked for since the last one that was done
        while queue:
            task = queue.popleft()
            row = self.function(task)
            if row["status"] == "busy":
                queue.append(task)
                in_vain += 1
                if in_vain >= len(queue):
                    time.sleep(PAUSE)
                continue
            done[task] = row
            in_vain = 0
            note()
        return {task: done[task] for task in tasks}


# -- processes -----------------------------------------------------------------------------------
def visible_devices(jobs: int) -> list[str] | None:
    """The GPUs to spread ``jobs`` workers over, as CUDA_VISIBLE_DEVICES names them; None where
    there is nothing to choose.
    """
    if jobs < 2:
        return None
    import torch

    count = torch.cuda.device_count()
    if count < 2:
        return None
    listed = [d for d in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if d]
    return listed[:count] or [str(i) for i in range(count)]


class Processes:
    """``jobs`` processes that get ``function`` once; worker i sees only the GPU ``devices[i %
    n]`` (default: all GPUs in turn).
    """

    def __init__(
        self, function: Callable[[Any], Row], jobs: int, devices: Sequence[str] | None = None
    ) -> None:
        self.function = function
        self.jobs = jobs
        self.devices = visible_devices(jobs) if devices is None else [str(d) for d in devices]
        self.workers: dict[connection.Connection, _Worker] = {}

    def __enter__(self) -> Processes:
        self.old = {}
        if threading.current_thread() is threading.main_thread():
            # so that `kill` or a closed terminal ends the workers in order, as Ctrl-C does
            for number in endings.requests():
                self.old[number] = signal.signal(number, _as_interrupt)
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            for worker in self.workers.values():
                worker.end(in_order=kind is None)
            deadline = time.monotonic() + PATIENCE
            for worker in self.workers.values():
                worker.process.join(max(deadline - time.monotonic(), 0.1))
                if worker.process.is_alive():
                    worker.process.kill()
        finally:
            for number, handler in self.old.items():
                signal.signal(number, handler)

    def map(self, tasks: Sequence[T], note: Callable[[], Any] = lambda: None) -> dict[T, Row]:
        """As `Serial.map`. A worker that dies (killed, out of memory) makes its run a failed one
        and is replaced.
        """
        queue = deque(tasks)
        later: list[tuple[float, T]] = []  # busy runs, with the time to ask again
        done: dict[T, Row] = {}
        while len(done) < len(tasks):
            now = time.monotonic()
            queue += [task for at, task in later if at <= now]
            later = [(at, task) for at, task in later if at > now]
            while queue and (worker := self._free()):
                worker.give(queue.popleft())
            working = [c for c, w in self.workers.items() if w.task is not None]
            if not working:
                time.sleep(PAUSE / 5)
            for ready in connection.wait(working, PAUSE) if working else []:
                task, row = self._collect(ready)
                if row["status"] == "busy":
                    later.append((time.monotonic() + PAUSE, task))
                    continue
                done[task] = row
                note()
        return {task: done[task] for task in tasks}

    def _free(self) -> _Worker | None:
        for worker in self.workers.values():
            if worker.task is None:
                return worker
        if len(self.workers) >= self.jobs:
            return None
        slot = min(set(range(self.jobs)) - {w.slot for w in self.workers.values()})
        worker = _Worker(
            self.function, slot, max(1, (os.cpu_count() or 1) // self.jobs), self.devices
        )
        self.workers[worker.connection] = worker
        return worker

    def _collect(self, ready: connection.Connection) -> tuple[Any, Row]:
        worker = self.workers[ready]
        try:
            row, stopped = ready.recv()
        except (EOFError, OSError):
            del self.workers[ready]
            worker.process.join()
            code = worker.process.exitcode
            how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
            return worker.task, {
                "status": "failed",
                "error": f"the process of this run died ({how}); was memory short?",
            }
        if stopped is not None:
            raise Interrupted(stopped)
        task, worker.task = worker.task, None
        return task, row


def _as_interrupt(*_: object) -> None:
    raise KeyboardInterrupt


class _Worker:
    """One process, seen from the one that started it."""

    def __init__(
        self, function: Callable[[Any], Row], slot: int, threads: int, devices: Sequence[str] | None
    ) -> None:
        # forked children of a process that used CUDA or threads may hang
        context = get_context("spawn")
        self.slot = slot
        self.task: Any = None
        self.connection, far_end = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(far_end, function, threads), daemon=True
        )
        with _environment(CUDA_VISIBLE_DEVICES=devices[slot % len(devices)] if devices else None):
            self.process.start()
        far_end.close()

    def give(self, task: Any) -> None:
        self.task = task
        with suppress(OSError):  # it has died; the next look at the connection tells
            self.connection.send(task)

    def end(self, in_order: bool) -> None:
        if in_order:
            self.connection.close()
        else:
            self.process.terminate()


@contextmanager
def _environment(**values: str | None) -> Iterator[None]:
    """Environment variables for processes started inside; None leaves one as it is."""
    old = {k: os.environ.get(k) for k, v in values.items() if v is not None}
    os.environ.update({k: v for k, v in values.items() if v is not None})
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _serve(tasks: connection.Connection, function: Callable[[Any], Row], threads: int) -> None:
    """What a worker does: answer tasks until the other side closes."""
    if hasattr(os, "setsid"):
        # Ctrl-C in the terminal goes to the starter alone, which then asks us once to stop
        os.setsid()
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if "torch" in sys.modules:  # unpickling the function has imported what it needs
        sys.modules["torch"].set_num_threads(threads)
    while True:
        try:
            task = tasks.recv()
        except (EOFError, OSError):
            return
        try:
            answer: tuple[Row | None, str | None] = function(task), None
        except Interrupted as error:
            answer = None, str(error)
        try:
            tasks.send(answer)
        except OSError:
            return
        if answer[1] is not None:
            return


def _end_with_parent() -> None:
    """Wait until the process that started this one is gone; then write a last checkpoint and
    end.
    """
    starter = parent_process()
    if starter is None:
        return
    while not connection.wait([starter.sentinel], 2.0) and os.getppid() == starter.pid:
        pass
    os.kill(os.getpid(), signal.SIGTERM)  # during training: stop after this step; else: the end
    time.sleep(ALONE)
    os._exit(1)


# -- Dask ----------------------------------------------------------------------------------------
class Dask:
    """Hands tasks to a `distributed.Client`. All workers must see the run store under the same
    path.
    """

    def __init__(self, function: Callable[[Any], Row], client: Any) -> None:
        self.client = connect(client) if isinstance(client, str) else client
        self.connected_here = isinstance(client, str)
        self.function = function

    def __enter__(self) -> Dask:
        # what is lost is told here, in one line
        self.levels = {name: logging.getLogger(name).level for name in LOGS}
        for name in LOGS:
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            with self._told():
                self._send()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        if self.connected_here:
            self.client.close()
        for name, level in self.levels.items():
            logging.getLogger(name).setLevel(level)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Raises Interrupted where the client has no scheduler any more: it looks for it for some
        seconds, and what it then refuses to do it tells by errors of many types.
        """
        try:
            yield
        except Exception as error:
            if self.client.status == "running":
                raise
            address = self.client.scheduler.address if self.client.scheduler else "its address"
            raise Interrupted(
                f"the Dask scheduler at {address} no longer answers; finished runs are kept, and "
                "the same call goes on from there"
            ) from error

    def _send(self) -> None:
        """Give all workers the function, which holds the structures."""
        [self.remote] = self.client.scatter([self.function], broadcast=True, hash=False)

    def map(self, tasks: Sequence[T], note: Callable[[], Any] = lambda: None) -> dict[T, Row]:
        """As `Serial.map`; what a lost Dask worker did is done again by another, as Dask's
        settings say. Where all workers that held the function are lost, new ones are given it, at
        most `TRIES` times. Raises Interrupted where the scheduler is lost and does not come back.
        """
        with self._told():
            return self._map(tasks, note)

    def _map(self, tasks: Sequence[T], note: Callable[[], Any]) -> dict[T, Row]:
        from dask.distributed import as_completed

        waiting, sent = as_completed(), {}  # the task of each future, and the function it was given

        def submit(task: T) -> None:
            future = self.client.submit(_call, self.remote, task, pure=False)
            sent[future] = task, self.remote
            waiting.add(future)

        done: dict[T, Row] = {}
        losses = 0
        try:
            for task in tasks:
                submit(task)
            for future in waiting:
                task, function = sent.pop(future)
                try:
                    row = future.result()
                except CancelledError as error:  # by nobody here: what it needs was lost
                    if function is self.remote and losses < TRIES:
                        losses += 1
                        self._send()
                    if function is not self.remote:
                        submit(task)
                        continue
                    row = _failed(error)
                except Exception as error:  # the worker's end, not the run's: those are rows
                    row = _failed(error)
                if row["status"] == "busy":
                    time.sleep(PAUSE / 5)
                    submit(task)
                    continue
                done[task] = row
                note()
        except BaseException:
            if self.client.status == "running":
                self.client.cancel(list(sent))
            raise
        return {task: done[task] for task in tasks}


def _failed(error: Exception) -> Row:
    return {
        "status": "failed",
        "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
    }


def _call(function: Callable[[Any], Row], task: Any) -> Row:
    return function(task)


def connect(address: str) -> Any:
    """A Dask client of the scheduler at ``address``. Raises ConfigError where Dask is missing or
    nobody answers.
    """
    try:
        from dask.distributed import Client
    except ImportError:
        raise ConfigError("runs over a cluster need Dask: pip install 'potkit[cluster]'") from None
    try:
        return Client(address, timeout="10s")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"no Dask scheduler answers at {address} ({' '.join(str(error).split())[:200]})"
        ) from None
