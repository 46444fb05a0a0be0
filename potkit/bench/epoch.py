"""A whole epoch of pretraining through `potkit.pretrain`, with the data resident on the device:
structures per second, and how busy a GPU is.

What a step alone leaves out is here: the loop, its metrics, the order of the data, the writing of
the result. Busy is the share of the time in which the GPU runs at least one kernel (copies do not
count), over some steps in the middle of a second, shorter run under torch's profiler; the profiler
costs time itself, so the share is rather too small. On a CPU it is left empty.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .. import datasets, models
from ..errors import ConfigError
from ..objectives import Denoise, Objective
from ..structures.store import Structures
from ..training import loop
from ..training.config import TrainConfig
from .common import check_device

COLUMNS = [
    "case",
    "preset",
    "precision",
    "compiled",
    "batch",
    "structures",
    "atoms",
    "steps",
    "median_s",
    "spread_s",
    "per_second",
    "gpu_busy",
    "device",
    "threads",
    "note",
]
WARM, WATCHED = 5, 20  # steps before the profiler starts, and under it


def run(
    device: str = "cpu",
    threads: int = 1,
    repeats: int = 1,
    cases: tuple[str, ...] = ("egnn", "torchmd_et", "schnet"),
    preset: str = "denoise-paper",
    data: str = "ani-mini",
    batch: int = 256,
    steps: int | None = None,
    precision: str = "32-true",
    compile: bool = False,
    say: Callable[[str], None] = lambda text: None,
):
    """A DataFrame, a row per network: an epoch over ``data`` (or its first ``steps`` steps),
    ``repeats`` times, the networks in turn.

    ``median_s`` and ``per_second`` are of the loop, from its first step to its last; the data are
    on the device before, and a few steps have warmed it up. Raises ConfigError for a preset a
    network does not have.
    """
    import pandas as pd

    check_device(device, threads)
    if batch < 1 or (steps is not None and steps < 1):
        wrong = batch if batch < 1 else steps
        raise ConfigError(f"bench epoch: batch and steps must be at least 1, got {wrong}")
    structures = datasets.load(data)
    length = {"epochs": 1.0} if steps is None else {"steps": steps}
    config = TrainConfig(
        **length,
        batch_size=batch,
        lr=1e-4,
        precision=precision,
        compile=compile,
        device=device,
        progress=False,
        log_every=50,
        checkpoint_every=10**9,
    )
    total = config.total_steps(len(structures))
    networks = {case: models.build(case, preset, seed=0) for case in cases}
    warming = config.replace(epochs=None, steps=min(3, total))
    for case, model in networks.items():
        say(f"{case}: warming up")
        epoch(model, structures, Denoise(sigma=0.2), warming)
    seconds = np.zeros((repeats, len(networks)))
    for k in range(repeats):
        for j, (case, model) in enumerate(networks.items()):
            say(f"{case}: round {k + 1} of {repeats}, {total} steps")
            seconds[k, j] = epoch(model, structures, Denoise(sigma=0.2), config)
    used = total * min(batch, len(structures))
    rows = []
    name = structures.info.get("name", data)
    note = f"{name}, {len(structures)} structures, resident on the device"
    for (case, model), taken in zip(networks.items(), seconds.T, strict=True):
        median = float(np.median(taken))
        rows.append(
            {
                "case": case,
                "preset": preset,
                "precision": precision,
                "compiled": compile,
                "batch": batch,
                "structures": used,
                "atoms": round(used * len(structures.z) / len(structures)),
                "steps": total,
                "median_s": median,
                "spread_s": float(np.ptp(taken)),
                "per_second": used / median,
                "gpu_busy": busy(model, structures, config) if device == "cuda" else np.nan,
                "device": device,
                "threads": threads,
                "note": note,
            }
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def epoch(
    model: models.Potential, structures: Structures, objective: Any, config: TrainConfig
) -> float:
    """Seconds of the training loop of a pretraining run over all ``structures``, nothing set aside;
    the run's folder is not kept.

    The loop reads the last loss before it ends, so its clock stops when the device has finished.
    """
    with tempfile.TemporaryDirectory() as folder:
        done = loop.pretrain(
            model, structures, objective, config, Path(folder) / "run", valid=structures[:0]
        )
        return float(done.summary["seconds"])


class Watched:
    """An objective that calls ``watch`` with the number of the step whenever a step corrupts its
    batch; else as it was.
    """

    def __init__(self, objective: Objective, watch: Callable[[int], None]) -> None:
        self._objective, self._watch, self._step = objective, watch, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._objective, name)

    def corrupt(self, batch: Any, generator: torch.Generator | None = None) -> Any:
        """Tell ``watch``, then corrupt as the objective does."""
        self._watch(self._step)
        self._step += 1
        return self._objective.corrupt(batch, generator)


def busy(model: models.Potential, structures: Structures, config: TrainConfig) -> float:
    """Share of the wall time in which the GPU computes, over `WATCHED` steps after `WARM`; the
    host waits for it at both ends only.
    """
    profiler = torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA])
    clock: list[float] = []

    def watch(step: int) -> None:
        if step in (WARM, WARM + WATCHED):
            torch.cuda.synchronize()
            if step == WARM:
                profiler.start()
            clock.append(time.perf_counter())
            if step != WARM:
                profiler.stop()

    short = config.replace(epochs=None, steps=WARM + WATCHED + 1, log_every=10**9)
    epoch(model, structures, Watched(Denoise(sigma=0.2), watch), short)
    events = profiler.profiler.kineto_results.events()
    kernels = [
        (e.start_ns(), e.start_ns() + e.duration_ns())
        for e in events
        if e.activity_type() == "kernel"
    ]
    return covered(kernels) / 1e9 / (clock[1] - clock[0])


def covered(intervals: Iterable[tuple[int, int]]) -> int:
    """Length of the union of intervals (start, end): kernels that run side by side count once."""
    total, reached = 0, None
    for start, end in sorted(intervals):
        if reached is None or start > reached:
            reached = start
        if end > reached:
            total, reached = total + end - reached, end
    return total
