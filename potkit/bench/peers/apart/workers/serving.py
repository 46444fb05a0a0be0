"""A worker's side of the protocol: lines of JSON on standard input and output.

The first line that comes in holds the settings. The answer to it, after the work has been done a
few times (which compiles what compiles), says how large everything is. Each ``go`` is then answered
by the seconds that one piece of work took, ``memory`` by its peak; the end of the input ends the
process. A failure is one line with the key ``error``.
"""

from __future__ import annotations

import dataclasses
import gc
import importlib
import importlib.metadata
import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from ase import Atoms, units
from ase.md.verlet import VelocityVerlet

WARM_UPS = 3  # calls after the first, before the clock counts
LONG = 10.0  # s, of a call that is not repeated that often


@dataclasses.dataclass
class Work:
    """One piece of work, and the sizes of what it works on."""

    run: Callable[[], object]
    prepare: Callable[[], object]  # neighbours and batch alone, a part of ``run``
    parameters: int
    edges: int
    peak_mb: Callable[[Callable[[], object]], float] | None = None


def read_structures(path: str) -> list[Atoms]:
    """The structures of a file that potkit wrote, with their labels in ``info`` and ``arrays``
    under the names ``energy`` (eV) and ``forces`` (eV/Å), and with velocities where it has some.
    """
    with np.load(path) as file:
        arrays = dict(file)
    structures = []
    for k, (start, end) in enumerate(zip(arrays["ptr"][:-1], arrays["ptr"][1:], strict=True)):
        atoms = Atoms(arrays["z"][start:end], arrays["pos"][start:end])
        if arrays["pbc"][k].any():
            atoms.set_cell(arrays["cell"][k])
            atoms.set_pbc(arrays["pbc"][k])
        atoms.info["energy"] = float(arrays["energy"][k])
        atoms.arrays["forces"] = arrays["forces"][start:end]
        if "velocities" in arrays:
            atoms.set_velocities(arrays["velocities"][start:end])
        structures.append(atoms)
    return structures


def dynamics(start: Atoms, calculator: Any, steps: int, time_step: float) -> np.ndarray:
    """Forces [N, 3] eV/Å after ``steps`` steps of velocity Verlet of ``time_step`` fs."""
    atoms = start.copy()
    atoms.calc = calculator
    VelocityVerlet(atoms, time_step * units.fs).run(steps)
    return atoms.get_forces()


def batches(structures: list[Any], size: int) -> list[list[Any]]:
    """``structures`` in lists of ``size``, the last one shorter."""
    return [structures[start : start + size] for start in range(0, len(structures), size)]


def serve(module: str) -> None:
    """Answer potkit's process until it closes the line. ``module`` has a function ``build``:
    (settings, structures) -> `Work`, and the name PACKAGE under which the peer is installed.
    """
    # Ctrl-C goes to all processes of a terminal; potkit's ends this one by closing the line
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what packages print, also while they are imported, is not among the answers

    def answer(**content: Any) -> None:
        print(json.dumps(content), file=answers, flush=True)

    try:
        settings = json.loads(sys.stdin.readline())
        peer = importlib.import_module(module)
        work = peer.build(settings, read_structures(settings["structures"]))
        first, last = warm_up(work.run)
        gc.collect()
        gc.disable()  # as in potkit's process while it measures
        answer(
            version=importlib.metadata.version(peer.PACKAGE),
            first_s=first,
            last_s=last,
            prepare_s=min(seconds(work.prepare) for _ in range(3)),
            parameters=int(work.parameters),
            edges=int(work.edges),
        )
        for line in sys.stdin:
            if line.strip() == "go":
                answer(seconds=seconds(work.run))
            elif line.strip() == "memory":
                answer(peak_mb=None if work.peak_mb is None else work.peak_mb(work.run))
            else:
                answer(error=f"unknown request {line.strip()!r}")
    except Exception as error:
        answer(error=f"{type(error).__name__}: {error}")
        raise


def warm_up(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the first and of the last of a few calls: what torch scripts is compiled in the
    first and once more in the second, what JAX traces in the first.
    """
    first = last = seconds(work)
    for _ in range(WARM_UPS):
        last = seconds(work)
        if last > LONG:
            break
    return first, last


def seconds(work: Callable[[], object]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start
