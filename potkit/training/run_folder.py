"""The folder of one training run: what is in it, when it counts as finished, how it is taken up
again.

    run.json              identity (model, weights at the start, data, objective, config) and
                          versions
    config.yaml           the settings
    metrics.jsonl         a row per log step (`pandas.read_json(path, lines=True)`)
    best.safetensors      weights that did best on validation (at the end of a run without
                          validation: the final ones)
    last.safetensors      full state to resume from
    previous.safetensors  the state before, should the last be damaged
    summary.json          written last: the run is finished
    tensorboard/          the metrics once more, with `log: tensorboard`
    report/               errors and figures that the command line makes of a finished run
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import shutil
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from ..errors import Busy, CheckpointError, ConfigError, DataError, PotkitError
from ..models import Potential
from ..structures.outputs import PART, Kind, check, is_a, is_temporary, read_json, some
from ..structures.storage import replacing, sweep
from . import checkpoints
from .config import TrainConfig


@dataclasses.dataclass(frozen=True)
class Run:
    """A finished run: its folder, the model with its best weights, and the summary."""

    path: Path
    model: Potential
    summary: dict[str, Any]

    @property
    def checkpoint(self) -> Path:
        """The file with the best weights."""
        return self.path / "best.safetensors"

    @property
    def metrics(self):
        """The metrics as a DataFrame, a row per log step."""
        import pandas as pd

        # every digit that was written
        return pd.read_json(self.path / "metrics.jsonl", lines=True, precise_float=True)

    def __repr__(self) -> str:
        best = "" if self.summary["best"] is None else f", best loss {self.summary['best']:.4g}"
        cost = f"{self.summary['steps']} steps in {self.summary['seconds']:.1f} s"
        return f"Run({self.path}: {cost}{best})"


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as JSON, whole or not at all."""
    with replacing(path, PART) as temporary:
        temporary.write_text(json.dumps(value, indent=1, default=str) + "\n")


def versions() -> dict[str, str]:
    """Versions of what decides a run's numbers."""
    out = {"python": platform.python_version()}
    for name in ("potkit", "torch", "torch-geometric", "e3nn", "numpy"):
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = "not installed"
    return out


def machine() -> dict[str, Any]:
    """What else may show in the last digits of a run: threads and the kind of processor."""
    return {
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
    }


def weights_hash(model: Potential, but: Collection[str] = ()) -> str:
    """16 hex digits of a network's weights, names included, ``but`` for some."""
    weights = hashlib.blake2b(digest_size=8)
    for name, value in model.state_dict().items():
        if name in but:
            continue
        weights.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return weights.hexdigest()


def identity_hash(identity: dict[str, Any]) -> str:
    """16 hex digits that two runs share if and only if their identities are equal."""
    text = json.dumps(identity, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


NAMES = (
    "best.safetensors",
    "config.yaml",
    "last.safetensors",
    "metrics.jsonl",
    "previous.safetensors",
    "run.json",
    "run.lock",
    "summary.json",
)


FOLDERS = ("report", "tensorboard")
# what is written into them: NAME-parity with NAME.json, the course of training, TensorBoard's own
WRITTEN = re.compile(r".*-parity\.(html|png)|training\.(html|png)|plotly\.min\.js|events\.out\..*")
# what a run takes over that begins where another ended, the state last
TAKEN_OVER = ("metrics.jsonl", "best.safetensors", "last.safetensors")


def _empty(folder: Path) -> None:
    """Remove from ``folder`` the files that a run wrote into it, and itself if nothing is left:
    what a user put there stays. A link is left alone.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    names = [name for name in os.listdir(folder) if WRITTEN.fullmatch(name)]
    names += [
        f"{name.removesuffix('-parity.html')}.json"
        for name in names
        if name.endswith("-parity.html")
    ]
    for name in names:
        if (folder / name).is_file():
            (folder / name).unlink()
    if not os.listdir(folder):
        folder.rmdir()


def _is_run(path: Path) -> bool:
    """Whether a folder says which run it holds, or is one in which nothing has been written yet."""
    names = [name for name in os.listdir(path) if not is_temporary(name)]
    if names == ["run.lock"]:
        return (path / "run.lock").stat().st_size == 0
    if "run.json" in names:
        about = read_json(path / "run.json")
        return isinstance(about["identity"], dict) and "potkit" in about["versions"]
    summary = read_json(path / "summary.json")
    return isinstance(summary["hash"], str) and {"steps", "seconds", "best"} <= summary.keys()


RUN = Kind("a run of potkit's", _is_run, folder=True)


def differences(stored: dict[str, Any], new: dict[str, Any], prefix: str = "") -> list[str]:
    """The keys in which two identities differ, with dots between those of nested ones."""
    out = []
    for key in stored.keys() | new.keys():
        a, b = stored.get(key), new.get(key)
        if isinstance(a, dict) and isinstance(b, dict):
            out += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key}")
    return sorted(out)


class RunFolder:
    """Reads and writes the files above. Raises ConfigError when the folder holds another run,
    DataError when it holds something else.

    ``overwrite``: another run is removed, by its files' names, when this one begins; a folder with
    anything beside them is refused.

    ``exact_weights``: where some of the first weights are known up to rounding only, the hash of
    all others. It is kept beside the identity: a run with the same one, whose identity differs in
    ``weights`` alone, is this run, and gives it its identity.
    """

    def __init__(
        self,
        path: Path,
        identity: dict[str, Any],
        config: TrainConfig,
        overwrite: bool = False,
        exact_weights: str | None = None,
    ) -> None:
        self.path = path
        self.exact_weights = exact_weights
        self.identity = json.loads(json.dumps(identity, default=str))
        self.config = config
        self.best = path / "best.safetensors"
        self.last = path / "last.safetensors"
        self.previous = path / "previous.safetensors"
        self.metrics = path / "metrics.jsonl"
        self.summary = path / "summary.json"
        self.run = path / "run.json"
        self.broken: set[Path] = set()
        self.other = False  # whether another run lies here that is to make room
        if self.run.is_file() and not is_a(RUN, path):
            raise ConfigError(
                f"{self.run}: not readable, so the run it belongs to cannot be told; "
                "choose another folder"
            )
        check(path, RUN)
        self._take_over_rounding()
        differs = self._differs()
        if differs and not overwrite:
            raise ConfigError(
                f"{path} holds another run (different {', '.join(differs)}); "
                "choose another folder or delete it"
            )
        if differs:
            foreign = [name for name in os.listdir(path) if not self._of_a_run(name)]
            if foreign:
                raise DataError(
                    f"{path}: the run there is not replaced, because beside it there is "
                    f"{some(foreign)}; choose another folder"
                )
            self.other = True

    def _take_over_rounding(self) -> None:
        """Take the identity of the run that lies here where it is this one up to rounding."""
        if self.exact_weights is None or not self.run.is_file():
            return
        stored = read_json(self.run)
        same = stored.get("exact_weights") == self.exact_weights
        # of runs that were stored before, only the identity is known
        if same and differences(stored["identity"], self.identity) == ["weights"]:
            self.identity = stored["identity"]

    def _differs(self) -> list[str]:
        """In what the run that lies here is another one."""
        if self.run.is_file():
            differs = differences(read_json(self.run)["identity"], self.identity)
            if differs:
                return differs
        try:
            about = read_json(self.summary) if self.summary.is_file() else {}
        except ValueError:
            raise ConfigError(
                f"{self.summary}: not readable, so it cannot be told which run ended; "
                "choose another folder"
            ) from None
        this_run = identity_hash(self.identity)
        return ["hash in summary.json"] if about.get("hash", this_run) != this_run else []

    @staticmethod
    def _of_a_run(name: str) -> bool:
        """Whether potkit gives this name to a file in the folder of a run."""
        result = re.fullmatch(r"test-[0-9a-f]+\.json", name)
        return name in NAMES or name in FOLDERS or is_temporary(name) or result is not None

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder; raises Busy if another process does. The operating system lets go of
        it when a process dies.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / "run.lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise Busy(
                f"{self.path}: another process trains in this folder; wait for it or choose another"
            ) from None
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror or error})"
            ) from error
        try:
            if self.other:
                self._make_room()
            yield
        finally:
            # before release: whoever comes next finds a finished run and needs no lock
            if self.finished:
                (self.path / "run.lock").unlink(missing_ok=True)
            lock.release()

    def _make_room(self) -> None:
        """Remove the files of the other run that lies here; what says which run it is goes last."""
        if self._differs():
            names = [
                name
                for name in os.listdir(self.path)
                if self._of_a_run(name) and name != "run.lock"
            ]
            for name in sorted(names, key=lambda name: name == "run.json"):
                if name in FOLDERS:
                    _empty(self.path / name)
                elif is_temporary(name):
                    sweep(self.path / name)
                else:
                    (self.path / name).unlink()
        self.other = False

    @property
    def finished(self) -> bool:
        """Whether this very run lies here, trained to its end."""
        return not self.other and self.summary.is_file() and self.best.is_file()

    def _tells_settings(self) -> bool:
        """Whether config.yaml holds the settings that decide this run's result."""
        try:
            stored = TrainConfig.from_yaml(self.path / "config.yaml")
        except (PotkitError, OSError, ValueError):  # missing, or damaged
            return False
        return stored.identity() == self.config.identity()

    def tell_settings(self) -> None:
        """Write config.yaml where it does not tell this run's settings: deleted, or damaged."""
        if not self._tells_settings():
            self.config.to_yaml(self.path / "config.yaml", PART)

    def _tell_identity(self, header: dict[str, Any]) -> None:
        """Write run.json where the run is new: from then on the folder is known as this run's."""
        if self.run.is_file():
            return
        known = {} if self.exact_weights is None else {"exact_weights": self.exact_weights}
        write_json(
            self.run,
            {
                "identity": self.identity,
                "hash": identity_hash(self.identity),
                **known,
                "versions": versions(),
                "machine": machine(),
                "header": header,
            },
        )

    def begin(self, header: dict[str, Any], resumed_at: int) -> None:
        """Write run.json where the run is new, config.yaml where it does not tell this run's
        settings, and cut the metrics back to the step
        ``resumed_at`` that training goes on from (0: from the start).
        """
        # half a file, or a folder of half ones, of a process that was killed
        for name in [n for n in os.listdir(self.path) if is_temporary(n)]:
            sweep(self.path / name)
        self._tell_identity(header)
        self.tell_settings()
        # rows beyond the state we go on from will be made again; a last line cut short by a kill is
        # dropped with them
        kept = []
        if self.metrics.is_file():
            for line in self.metrics.read_text().splitlines():
                try:
                    if json.loads(line)["step"] <= resumed_at:
                        kept.append(line)
                except (ValueError, KeyError):
                    continue
        with replacing(self.metrics, PART) as temporary:
            temporary.write_text("".join(f"{line}\n" for line in kept))

    def log(self, row: dict[str, float]) -> None:
        """Append ``row`` (name -> number, with its "step") to the metrics; raises DataError where
        the disk is full.
        """
        try:
            with self.metrics.open("a") as file:
                file.write(json.dumps(row) + "\n")
        except OSError as error:
            raise DataError(
                f"{self.metrics}: cannot be written ({error.strerror or error})"
            ) from error

    @property
    def _begun(self) -> bool:
        """Whether this very run has a state of its own."""
        return not self.other and (self.last.is_file() or self.previous.is_file())

    def check_start(self, finished: RunFolder) -> None:
        """Raise ConfigError where this run is to begin at the end of ``finished``, and files that
        say how that ended are gone.
        """
        missing = [name for name in TAKEN_OVER if not (finished.path / name).is_file()]
        if missing and not self._begun:
            raise ConfigError(
                f"{finished.path / missing[0]}: not there, and the run cannot be trained further "
                "without it"
            )

    def go_on_from(self, finished: RunFolder, header: dict[str, Any]) -> None:
        """Begin where the run in ``finished`` ended: its metrics, best weights and full state are
        copied, the state last. Nothing is done where this run has a state of its own.
        """
        if self._begun:
            return
        # first of all: what a call that ends before its first step leaves, the next one knows
        self._tell_identity(header)
        for name in TAKEN_OVER:
            with replacing(self.path / name, PART) as temporary:
                shutil.copyfile(finished.path / name, temporary)

    def checkpoint(self, model: Potential, state: Any, header: dict[str, Any]) -> None:
        """Write the full state as last.safetensors; what was there becomes previous.safetensors."""
        if self.last.is_file() and self.last not in self.broken:
            os.replace(self.last, self.previous)
        checkpoints.save(
            self.last, model, header | {"state": state.header()}, state.tensors(), PART
        )
        self.broken.clear()

    def resume(self, state: Any) -> int:
        """Take up the last good state, if there is one; returns its step."""
        if self.other:  # the first process is removing it
            return 0
        problems = []
        for path in (self.last, self.previous):
            if not path.is_file():
                continue
            try:
                tensors, header = checkpoints.read(path)
            except CheckpointError as error:
                problems.append(str(error))
                self.broken.add(path)
                continue
            state.restore(tensors, header["state"], str(path))
            if problems:
                warnings.warn(
                    f"{problems[0]}; going on from {path.name}, step {state.step}", stacklevel=2
                )
            return state.step
        if problems:
            warnings.warn(f"{problems[0]}; no older state, starting anew", stacklevel=2)
        return 0

    def finish(self, model: Potential, state: Any, header: dict[str, Any]) -> None:
        """Write the last full state, then summary.json (steps, seconds, best validation loss),
        which makes the run a finished one.
        """
        checkpoints.save(
            self.last, model, header | {"state": state.header()}, state.tensors(), PART
        )
        self.previous.unlink(missing_ok=True)
        smaller = {"micro_batch": state.limit.size} if state.limit.size else {}
        write_json(
            self.summary,
            smaller
            | {
                "steps": state.step,
                "seconds": state.seconds,
                "best": None if state.best == float("inf") else state.best,
                "device": str(model.like().device),
                "hash": identity_hash(self.identity),
            },
        )

    def load(self, into: Potential) -> Run:
        """The finished run, with its best weights put into ``into``."""
        tensors, header = checkpoints.read(self.best)
        checkpoints.restore(into, checkpoints.weights(tensors), str(self.best))
        into.trained_on = header.get("objective")
        return Run(self.path, into.eval(), json.loads(self.summary.read_text()))
