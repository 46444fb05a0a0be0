"""What pretraining on a set of any size would take, from what `potkit bench data` and
`potkit bench step` measured and are stored: bytes, steps, hours.

What was not measured is a parameter: how many operations a GPU sustains, and how many bytes pass
between machines. Everything else follows from a stored table, or is counted here.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import ConfigError, DataError
from ..experiments import dry_run, operations

COUNTED_ON = "ani-mini"  # whose batches the operations of a step are counted on
IN_SECONDS = {"h": 3600, "min": 60, "s": 1, "ms": 1e-3, "µs": 1e-6}
COUNTED = 4  # structures at once; a step of more costs in proportion


@dataclasses.dataclass(frozen=True)
class Run:
    """A pretraining: so many ``structures``, ``nodes`` with ``devices`` GPUs each, ``batch``
    structures per step over all of them, ``epochs`` passes.

    ``tflops``: 10^12 operations per second that a GPU sustains; ``network``: 10^9 bytes per second
    between two machines. Both are assumed. Raises ConfigError for numbers that are not positive.
    """

    structures: int = 30_000_000
    nodes: int = 4
    devices: int = 8
    batch: int = 4096
    epochs: float = 10.0
    tflops: float = dry_run.TFLOPS
    network: float = 10.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 < value < float("inf"):
                raise ConfigError(f"scale: {field.name} must be a positive number, got {value}")
        if self.batch < self.processes:
            raise ConfigError(
                f"scale: a batch of {self.batch} cannot be shared by {self.processes} processes"
            )

    @classmethod
    def of(cls, text: str) -> Run:
        """From ``structures=30000000,nodes=4``. Raises ConfigError for what is no setting."""
        kinds = {field.name: type(field.default) for field in dataclasses.fields(cls)}
        values = {}
        for part in text.split(","):
            name, equals, value = part.partition("=")
            if name not in kinds or not equals:
                raise ConfigError(f"scale: {part!r} is not NAME=NUMBER, NAME of {', '.join(kinds)}")
            try:
                values[name] = kinds[name](value)
            except ValueError:
                raise ConfigError(f"scale: {name} is no number: {value!r}") from None
        return cls(**values)

    @property
    def processes(self) -> int:
        """One for each GPU."""
        return self.nodes * self.devices

    @property
    def share(self) -> float:
        """Structures of a process in a step."""
        return self.batch / self.processes

    @property
    def steps_per_epoch(self) -> float:
        """Steps in which every structure comes once."""
        return self.structures / self.batch


def plan(run: Run, folder: str | Path = "data/results") -> pd.DataFrame:
    """What ``run`` would take: a row per figure, with ``what``, ``value`` and ``follows from``.

    Raises DataError where a benchmark is not stored or lacks what is needed.
    """
    data, step = _rows("data", folder), _rows("step", folder)
    store = _one(data, implementation="s.gather(rows)")
    disk = _one(data, implementation="s.gather(rows), nothing cached")
    size = store["store_mb"] * 2**20 / store["structures"]
    read = disk["read_mb"] * 2**20 / disk["drawn"]
    drawing = {"from memory": store, "from the disk": disk}
    seconds = {k: row["draw_s"] / row["drawn"] * run.share for k, row in drawing.items()}
    counted, parameters = _counted()
    computing = counted * run.share / (run.tflops * 1e12)
    exchange = 2 * 4 * parameters / (run.network * 1e9) if run.nodes > 1 else 0.0
    steps = run.steps_per_epoch * run.epochs
    cpu = _one(step, case="egnn step", implementation="potkit", precision="float32")
    atoms = store["atoms"] / store["structures"]
    slow = run.structures * run.epochs * atoms * cpu["median_s"] / cpu["atoms"]
    rows = [
        ("on disk", _bytes(size * run.structures), f"{size:.0f} bytes a structure, measured"),
        ("a step reads", _bytes(size * run.batch), f"{run.batch:,} structures, all processes"),
        (
            "a step reads from the disk, nothing cached",
            _bytes(read * run.batch),
            f"{_bytes(read)} a structure, measured: whole pages, and what is read ahead",
        ),
        ("steps of an epoch", f"{run.steps_per_epoch:,.0f}", "structures / batch"),
        ("steps of the run", f"{steps:,.0f}", f"{run.epochs:g} epochs"),
    ]
    for where, taken in seconds.items():
        row = drawing[where]
        how = f"{run.share:g} structures; {row['drawn']:.0f} of {row['structures']:,.0f} measured"
        rows.append((f"a process draws its share {where}", _time(taken), how))
    rows += [
        (
            "a GPU computes its share",
            _time(computing),
            f"{counted / 1e9:.2f} · 10⁹ operations a structure, counted; "
            f"{run.tflops:g} TFLOP/s, assumed",
        ),
        (
            "gradients between nodes",
            _time(exchange),
            f"{parameters:,} weights of 4 bytes, there and back; {run.network:g} GB/s, assumed",
        ),
    ]
    for where, taken in seconds.items():
        hours = steps * (taken + computing + exchange) / 3600
        rows.append((f"hours, drawn {where}", f"{hours:,.3g}", "one after the other, no overlap"))
    rows.append(
        (
            "hours on the CPU of the benchmark",
            f"{slow / 3600:,.3g}",
            f"{1e6 * cpu['median_s'] / cpu['atoms']:.0f} µs an atom, measured with "
            f"{cpu['threads']} threads",
        )
    )
    return pd.DataFrame(rows, columns=["what", "value", "follows from"])


def beginning(run: Run, folder: str | Path = "data/results") -> pd.DataFrame:
    """What every process does before its first step, in proportion to the structures: a row each,
    with the time measured and that for ``run``. Raises DataError as `plan`.
    """
    rows = []
    total = 0.0
    for row in _rows("data", folder):
        if not row["case"].startswith("before the first step"):
            continue
        scaled = row["median_s"] / row["structures"] * run.structures
        total += scaled
        rows.append(
            {
                "what": row["implementation"],
                "measured": f"{_time(row['median_s'])} for {row['structures']:,.0f}",
                f"{run.structures:,} structures": _time(scaled),
            }
        )
    if not rows:
        raise DataError("bench-data.json has no rows of what comes before the first step")
    rows.append({"what": "all", "measured": "", f"{run.structures:,} structures": _time(total)})
    return pd.DataFrame(rows)


def origin(*names: str, folder: str | Path = "data/results") -> str:
    """By which commands the benchmarks ``names`` were made, and where, in a line each."""
    lines = []
    for name in names:
        how = json.loads((Path(folder) / f"bench-{name}.json").read_text())
        lines.append(
            f"Measured by `{how['command']}` on {how['hardware']}, commit {how['commit']}."
        )
    return "\n".join(lines)


@functools.cache
def _counted() -> tuple[float, int]:
    """Operations per structure of a step of EGNN (preset denoise-paper), and its weights."""
    from .. import models
    from ..datasets import load
    from ..objectives import Denoise

    model = models.build("egnn", preset="denoise-paper", seed=0)
    step = operations.of_step(model, load(COUNTED_ON), Denoise(sigma=0.2), COUNTED)
    return step / COUNTED, model.n_parameters()


def _rows(name: str, folder: str | Path) -> list[dict[str, Any]]:
    path = Path(folder) / f"bench-{name}.json"
    if not path.is_file():
        raise DataError(f"{path}: no such stored benchmark")
    return json.loads(path.read_text())["rows"]


def _one(rows: Iterable[dict[str, Any]], **wanted: str) -> dict[str, Any]:
    """The first of ``rows`` in which all columns ``wanted`` are so."""
    for row in rows:
        if all(row.get(column) == value for column, value in wanted.items()):
            return row
    raise DataError(f"no row of {', '.join(wanted.values())} in the stored benchmark")


def _bytes(count: float) -> str:
    """Three digits with kB, MB, GB or TB."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f} B"


def _time(seconds: float) -> str:
    """Two digits with µs, ms, s, min or h."""
    for unit, size in (("h", 7200), ("min", 120), ("s", 0.1), ("ms", 1e-4), ("µs", 1e-9)):
        if seconds >= size:
            return f"{seconds / IN_SECONDS[unit]:.2g} {unit}"
    return "0 s"
