"""How `potkit bench` measures: the same structures for all, repeats in turn (A, B, A, B, …),
medians with their spread, memory, roofline.

Machines get slower and faster while one measures; taken in turn, all implementations see the same
weather, and a ratio of medians holds where times do not: ``ratio`` is the median of the ratios
within a round, ``ratio_low`` and ``ratio_high`` are their quartiles.
"""

from __future__ import annotations

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..structures.store import Structures, concatenate
from ..training.memory import keep_freed_memory

COLUMNS = [
    "case",
    "implementation",
    "precision",
    "median_s",
    "spread_s",
    "ratio",
    "ratio_low",
    "ratio_high",
    "agreement",
    "over_roofline",
    "peak_mb",
    "atoms",
    "edges",
    "device",
    "threads",
    "note",
]
ALKANES = "C4H10 C5H12 C6H14 C7H16"


@dataclasses.dataclass
class Rival:
    """One implementation in a comparison: ``work`` does the thing once; ``output`` says what it
    computes, for the check.
    """

    name: str
    work: Callable[[], Any]
    output: Callable[[], Tensor | None] | None = None
    precision: str = "float32"
    note: str = ""
    roofline: float | None = None  # s, least time its matrix products can take
    rounds: int | None = None  # take part in so many rounds only, for what is very slow
    # its memory, where `peak_memory` of this process does not see it
    peak_mb: Callable[[], float] | None = None


class Seconds(float):
    """Seconds that a piece of work took where it was done: in another process, which timed it."""


def alkanes(n: int = 64, seed: int = 0) -> tuple[Structures, str]:
    """``n`` MD frames of C4–C7 alkanes and where they are from; without the files, frames of the
    embedded set, and it is said.
    """
    from ..datasets import load

    try:
        return _alkanes_of_files(n, seed), "alkanes C4–C7"
    except DataError as error:
        frames = load("ani-mini")
        rows = np.random.default_rng(seed).choice(len(frames), n, replace=len(frames) < n)
        return frames[np.sort(rows)], f"frames of ani-mini instead of alkanes ({error})"


def _alkanes_of_files(n: int, seed: int) -> Structures:
    from ..datasets import read, registry

    folder = registry.raw_path(registry.record("ani1-alkanes"))
    dynamics = sorted(folder.rglob("*_DFT_aseMD.h5"))
    files = [path for path in dynamics if path.name.split("_")[0] in ALKANES.split()]
    if not files:
        raise DataError(f"{folder}: no molecular dynamics of {ALKANES}")
    rng = np.random.default_rng(seed)
    parts = []
    for k, path in enumerate(files):  # as many of each file as fit into n
        share = n // len(files) + (k >= len(files) - n % len(files))
        frames = read(path, format="ani1")
        parts.append(frames[np.sort(rng.choice(len(frames), share, replace=False))])
    return concatenate(parts)


def water_like(
    n_atoms: int, seed: int = 0, density: float = 0.1, spacing: float = 0.9
) -> Structures:
    """A periodic cube of ``n_atoms`` atoms (H and O) at ``density`` atoms/Å³, on a shaken
    lattice so that none come closer than ``spacing`` Å.
    """
    side = (n_atoms / density) ** (1 / 3)
    per_side = int(np.ceil(n_atoms ** (1 / 3)))
    step = side / per_side
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*[np.arange(per_side)] * 3, indexing="ij"), -1).reshape(-1, 3)
    pos = (grid[rng.permutation(len(grid))[:n_atoms]] + 0.5) * step
    reach = max(step - spacing, 0.0) / 2
    pos = pos + rng.uniform(-reach, reach, pos.shape)
    z = np.where(np.arange(n_atoms) % 3 == 0, 8, 1)
    return Structures(
        z,
        pos,
        [0, n_atoms],
        cell=side * np.eye(3)[None],
        pbc=np.ones((1, 3), bool),
        info={"name": "water-like box"},
    )


def molecules(n: int) -> Structures:
    """The ``n`` largest molecules of ani-mini (26 atoms; 3BPA has 27), with energies and forces."""
    from ..datasets import load

    frames = load("ani-mini")
    largest = np.argsort(-frames.n_atoms, kind="stable")[:n]
    return frames[np.sort(largest)]


def water_boxes(n: int, waters: int = 64) -> Structures:
    """``n`` frames of periodic boxes of ``waters`` molecules, of water-mini, with energies and
    forces. Raises DataError where there are not as many.
    """
    from ..datasets import load

    frames = load("water-mini")
    rows = np.flatnonzero(frames.n_atoms == 3 * waters)[:n]
    if len(rows) < n:
        raise DataError(f"water-mini has {len(rows)} boxes of {waters} waters, not {n}")
    return frames[rows]


# what is computed in the cases with forces -> n -> n structures of it
SYSTEMS: dict[str, Callable[[int], Structures]] = {"molecules": molecules, "boxes": water_boxes}


def check_device(device: str, threads: int) -> None:
    """Set the number of threads, and on a CPU have memory kept as training does. Raises
    ConfigError for a device that is not there.
    """
    if device not in ("cpu", "cuda"):
        raise ConfigError(f"--device must be cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch finds no GPU here")
    if threads < 1:
        raise ConfigError(f"--threads must be at least 1, got {threads}")
    torch.set_num_threads(threads)
    if device == "cpu":
        keep_freed_memory()


def bfloat16_is_fast(device: str) -> bool:
    """Whether the device multiplies bfloat16 matrices in hardware."""
    if device == "cuda":
        return torch.cuda.is_bf16_supported()
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def precisions(device: str) -> list[tuple[str, torch.dtype | None]]:
    """Name and autocast type of the precisions worth timing: float32 (no autocast), and bfloat16
    where it is fast.
    """
    full: list[tuple[str, torch.dtype | None]] = [("float32", None)]
    return [*full, ("bfloat16", torch.bfloat16)] if bfloat16_is_fast(device) else full


def timed(work: Callable[[], Any], device: str = "cpu") -> float:
    """Seconds of one call, those that it gives itself if it gives `Seconds`; on a GPU from idle
    to idle.
    """
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    result = work()
    if device == "cuda":
        torch.cuda.synchronize()
    elapsed = time.perf_counter() - start
    return float(result) if isinstance(result, Seconds) else elapsed


def in_turn(
    works: Sequence[Callable[[], Any]],
    repeats: int,
    device: str = "cpu",
    rounds: Sequence[int | None] = (),
) -> np.ndarray:
    """Seconds [repeats, len(works)], measured in rounds after one call each to warm up; every
    second round runs backwards.

    ``rounds``: the number of rounds in which each takes part (None: all); NaN stands for the
    others.
    """
    limits = [repeats if limit is None else limit for limit in rounds or [None] * len(works)]
    for work in works:
        work()
    gc.collect()
    gc.disable()  # the collector's pauses would fall on whoever is running
    try:
        seconds = np.full((repeats, len(works)), np.nan)
        for turn in range(repeats):
            order = range(len(works)) if turn % 2 == 0 else reversed(range(len(works)))
            for k in order:
                if turn < limits[k]:
                    seconds[turn, k] = timed(works[k], device)
        return seconds
    finally:
        gc.enable()


def peak_memory(work: Callable[[], Any], device: str = "cpu") -> float:
    """MB that one call of ``work`` has allocated through torch at its peak, beyond what was there
    before.

    On a GPU from the allocator's own counter. On the CPU from the profiler's record of every
    allocation and release, which unlike the resident memory of the process does not depend on what
    the C library gives back and when.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())] or [0])
    return float(max(held.max(), 0)) / 2**20


def _peak_mb(rival: Rival, device: str) -> float:
    return peak_memory(rival.work, device) if rival.peak_mb is None else rival.peak_mb()


def matmul_rate(
    rows: int = 1024, width: int = 256, dtype: torch.dtype = torch.float32, device: str = "cpu"
) -> float:
    """Operations per second of the three products of a layer's step, [rows, width] × [width, width]
    and its two derivatives.

    With ``rows`` the number of edges this is the rate of an operation at a time over all edges;
    with 1024 all stays in the cache.
    """
    x = torch.randn(rows, width, device=device).to(dtype)
    w = torch.randn(width, width, device=device).to(dtype)
    y, total = torch.empty_like(x), torch.zeros_like(w)
    calls = max(1, 8_192 // rows)

    def products() -> None:
        for _ in range(calls):
            torch.mm(x, w.T, out=y)
            torch.mm(x, w, out=y)
            torch.mm(y.T, x, out=total)

    seconds = in_turn([products], 5, device)
    return calls * 3 * 2 * rows * width * width / float(np.median(seconds))


def agreement(reference: Tensor, other: Tensor) -> float:
    """Largest difference over the largest entry of ``reference``."""
    reference, other = reference.detach().double(), other.detach().double()
    if reference.shape != other.shape:
        raise DataError(f"outputs have shapes {tuple(reference.shape)} and {tuple(other.shape)}")
    return float((reference - other).abs().max() / reference.abs().max().clamp(min=1e-30))


def compare(
    case: str,
    rivals: Sequence[Rival],
    repeats: int,
    device: str,
    threads: int,
    tolerance: float = 1e-5,
    memory: bool = True,
    say: Callable[[str], None] = lambda text: None,
    **sizes: int,
) -> list[dict[str, Any]]:
    """Rows of the table for one case. ``ratio`` is the first rival's time over each one's own, the
    median over rounds.

    Outputs are checked before anything is timed: float32 implementations with an ``output`` must
    agree with the first one to ``tolerance`` of its largest entry, else DataError; the difference
    of other precisions is reported.
    """
    reference = rivals[0].output() if rivals[0].output else None
    differences = []
    for rival in rivals:
        difference = np.nan
        if rival.output and reference is not None:
            difference = agreement(reference, rival.output())
        compared = rival.output is not None and reference is not None
        # not: > , which NaN would pass
        if rival.precision == "float32" and compared and not difference <= tolerance:
            raise DataError(
                f"{case}: {rival.name} differs from {rivals[0].name} by {difference:.1e}, "
                f"more than {tolerance:.0e}"
            )
        differences.append(difference)
    say(f"{case}: outputs agree; {repeats} rounds of {', '.join(r.name for r in rivals)}")
    seconds = in_turn([r.work for r in rivals], repeats, device, [r.rounds for r in rivals])
    rows = []
    for k, rival in enumerate(rivals):
        taken = seconds[~np.isnan(seconds[:, k]), k]  # of the rounds it took part in
        median = float(np.median(taken))
        low, ratio, high = np.nanquantile(seconds[:, 0] / seconds[:, k], [0.25, 0.5, 0.75])
        rows.append(
            {
                "case": case,
                "implementation": rival.name,
                "precision": rival.precision,
                "median_s": median,
                "spread_s": float(np.ptp(taken)),
                "ratio": float(ratio),
                "ratio_low": float(low),
                "ratio_high": float(high),
                "agreement": differences[k],
                "over_roofline": median / rival.roofline if rival.roofline else np.nan,
                "peak_mb": _peak_mb(rival, device) if memory else np.nan,
                "device": device,
                "threads": threads,
                "note": rival.note,
                **sizes,
            }
        )
    return rows
