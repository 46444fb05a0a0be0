"""What data cost: reading the public layout, opening a large store, building batches. Run by
``potkit bench data``.

Rivals get the same structures with the same fields, in memory, built before the clock starts.
Opening a store is measured in fresh processes, as a user would see them in ``top``: resident memory
includes Python, torch and PyG, and the note says how much of it they take. The store may be of any
size that the disk takes (``structures``); it is written at once, and removed at the end.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError
from ..structures.store import Structures

COLUMNS = [
    "case",
    "implementation",
    "median_s",
    "spread_s",
    "ratio",
    "peak_mb",
    "structures",
    "atoms",
    "drawn",
    "draw_s",
    "store_mb",
    "read_mb",
    "note",
]
SIZES = ("structures", "atoms", "drawn", "draw_s", "store_mb", "read_mb")
CHECKED = 100_000  # structures whose check before a run is timed; it takes longest, and is linear
SPARE = 0.1  # share of a disk's free space that a store leaves
# how a few structures of a store are drawn -> what has to be imported for it
WAYS = {
    "s[rows]": "import potkit; potkit.Structures",
    "s.gather(rows)": "import potkit; potkit.Structures; import torch",
    "s.batch(rows)": "import potkit; potkit.Structures; import potkit.structures.batch",
}
_PROBE = """
import json, sys, time
def memory():
    with open("/proc/self/status") as file:
        lines = dict(line.split(":", 1) for line in file)
    return {k: int(lines[k].split()[0]) / 1024 for k in ("VmRSS", "RssAnon", "RssFile", "VmHWM")}
def fetched():  # bytes that came from the disk, not from the cache of the system
    try:
        with open("/proc/self/io") as file:
            return int(dict(line.split(":", 1) for line in file)["read_bytes"])
    except OSError:
        return None
path, count, draw, imports = sys.argv[1:]
exec(imports)
import numpy as np
read, before, start = fetched(), memory(), time.perf_counter()
s = potkit.Structures.open(path)
opened = time.perf_counter()
rows = np.random.default_rng(0).integers(0, len(s), int(count))
drawn = eval(draw)
ended, after, end = time.perf_counter(), memory(), fetched()
print(json.dumps({
    "seconds": ended - start, "draw": ended - opened, "before": before, "after": after,
    "structures": len(s), "atoms": int(s.ptr[-1]),
    "read": None if end is None or read is None else end - read,
}))
"""


def run(device: str = "cpu", threads: int = 1, repeats: int = 5, **options: Any):
    """A DataFrame with a row per case and implementation; times are medians over ``repeats``,
    spread is max − min.

    ``ratio``: how many times faster than the first implementation of the case. ``peak_mb``: peak
    resident memory of a process that does only this, where it was measured so. ``structures``,
    ``atoms`` and ``store_mb``: what the large store holds; ``draw_s``: the time without opening it;
    ``read_mb``: what came from the disk for the ``drawn`` structures.

    ``options``: ``structures`` (size of the large store, default 1 000 000), ``draw`` (structures
    drawn from it, 256), ``batch_sizes`` (32, 256), ``name`` (the set batches are built of,
    "ani-mini"), ``workdir``. Raises DataError where the disk is too small for the store.
    """
    import pandas as pd
    import torch

    torch.set_num_threads(threads)
    known = {
        "structures": 1_000_000,
        "draw": 256,
        "batch_sizes": (32, 256),
        "name": "ani-mini",
        "workdir": None,
    }
    if unknown := sorted(set(options) - set(known)):
        raise DataError(f"bench data has no option {unknown[0]!r} (it has: {', '.join(known)})")
    chosen = known | options
    source = _source(chosen["name"])
    rows = reading(repeats)
    with tempfile.TemporaryDirectory(dir=chosen["workdir"]) as folder:
        path = large_store(source, Path(folder) / "store", chosen["structures"])
        rows += opening(path, chosen["draw"], repeats)
        rows += beginning(path, repeats)
    for size in chosen["batch_sizes"]:
        rows += batches(source, int(size), repeats, device, chosen["workdir"])
    return pd.DataFrame(rows, columns=COLUMNS)


def _source(name: str) -> Structures:
    from ..datasets import load

    mapped = load(name)
    return mapped[np.arange(len(mapped))]


def _timed(work: Callable[[], Any], repeats: int, warm: bool = True) -> list[float]:
    if warm:
        work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def _row(
    case: str,
    implementation: str,
    seconds: list[float],
    first: float | None,
    peak: float = np.nan,
    note: str = "",
    **sizes: float,
) -> dict[str, Any]:
    """A row of the table; ``first``: median of the implementation that ratios refer to;
    ``sizes``: other columns.
    """
    median = float(np.median(seconds)) if seconds else np.nan
    return {
        "case": case,
        "implementation": implementation,
        "median_s": median,
        "spread_s": max(seconds) - min(seconds) if seconds else np.nan,
        "ratio": np.nan if first is None else first / median,
        "peak_mb": peak,
        **{column: sizes.get(column, np.nan) for column in SIZES},
        "note": note,
    }


def reading(repeats: int) -> list[dict]:
    """The alkanes in ANI-1's HDF5 layout: h5py alone (every array loaded, nothing checked or
    converted), and potkit.
    """
    from ..datasets import read, registry

    record = registry.record("ani1-alkanes")
    try:
        folder = registry.raw_path(record)
    except DataError as error:
        return [_row("read 97 629 alkanes", "potkit", [], None, note=str(error))]
    import h5py

    def array(_: str, node: Any) -> Any:
        return node[()] if isinstance(node, h5py.Dataset) else None

    def plain() -> None:
        for path in sorted(folder.rglob("*.h5")):
            with h5py.File(path) as file:
                file.visititems(array)

    floor = _timed(plain, repeats)
    ours = _timed(lambda: read(folder, "ani1", **record.options), repeats)
    first = float(np.median(floor))
    case = f"read {len(read(folder, 'ani1', **record.options)):,} alkanes".replace(",", " ")
    return [
        _row(
            case,
            "h5py, arrays only",
            floor,
            first,
            note="nothing checked, converted or packed: the floor",
        ),
        _row(case, "potkit.read", ours, first, note="limit set for potkit: 5 s"),
    ]


def large_store(source: Structures, path: Path, structures: int) -> Path:
    """Write a store of at least ``structures`` structures: ``source`` over and over, each copy
    shaken anew (0.01 Å). Raises DataError where the disk has no room for it.
    """
    from ..structures.storage import StoreWriter

    size = sum(array.nbytes for array in source.arrays().values()) / len(source)
    needed, free = size * structures, shutil.disk_usage(path.parent).free
    if needed > (1 - SPARE) * free:
        raise DataError(
            f"bench data: a store of {structures:,} structures takes {needed / 1e9:.1f} GB, and "
            f"{path.parent} has {free / 1e9:.1f} GB free: ask for fewer (--structures), or name "
            "a folder on another disk by TMPDIR"
        )
    rng = np.random.default_rng(0)
    with StoreWriter(path) as writer:
        while writer.n_structures < structures:
            part = source[: min(len(source), structures - writer.n_structures)]
            arrays = part.arrays()
            arrays["pos"] = arrays["pos"] + 0.01 * rng.standard_normal(part.pos.shape, np.float32)
            writer.append(arrays)
        writer.finish(source.info)
    return path


def opening(path: Path, draw: int, repeats: int) -> list[dict]:
    """Open the store ``path`` and draw ``draw`` structures at random, in fresh processes, in three
    ways; and in one way when nothing of the store is in the system's cache.
    """
    rows: list[dict] = []
    first = None
    ways = [(way, way, imports) for way, imports in WAYS.items()]
    if hasattr(os, "posix_fadvise"):
        way = "s.gather(rows)"
        ways.append((f"{way}, nothing cached", way, WAYS[way]))
    for name, way, imports in ways:
        probes = []
        for _ in range(max(1, min(repeats, 5))):
            if name != way:
                _forget(path)
            probes.append(_probe(path, draw, way, imports))
        seconds = [probe["seconds"] for probe in probes]
        first = first or float(np.median(seconds))
        fetched = [np.nan if p["read"] is None else p["read"] / 2**20 for p in probes]
        sizes = {
            "structures": probes[-1]["structures"],
            "atoms": probes[-1]["atoms"],
            "drawn": draw,
            "draw_s": float(np.median([probe["draw"] for probe in probes])),
            "store_mb": sum(f.stat().st_size for f in path.iterdir()) / 2**20,
            "read_mb": float(np.median(fetched)),
        }
        case = f"open {sizes['structures']:,} structures, draw {draw}".replace(",", " ")
        peak = max(probe["after"]["VmHWM"] for probe in probes)
        note = f"{_resident(probes[-1])}; the store has {sizes['store_mb']:.0f} MB"
        if name != way:
            note += f", of which {sizes['read_mb']:.0f} MB were read from the disk"
        rows.append(_row(case, name, seconds, first, peak, note, **sizes))
    return rows


def _forget(path: Path) -> None:
    """Drop the files of a store from the system's cache, so that the next reader asks the disk."""
    for part in path.iterdir():
        with open(part, "rb") as file:
            os.fsync(file.fileno())  # what is still to be written stays in the cache
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def beginning(path: Path, repeats: int) -> list[dict]:
    """What each process of a run does with the store ``path`` before its first step, and the order
    of an epoch that it draws once.
    """
    from ..structures.neighbors import check_overlaps
    from ..training.step import batch_indices

    mapped = Structures.open(path)
    few = mapped[: min(len(mapped), CHECKED)]
    drawn = itertools.count()
    works = {
        "fingerprint": (mapped, lambda: Structures.open(path).fingerprint()),
        "elements": (mapped, lambda: mapped.elements),
        "finite numbers": (mapped, mapped.validate),
        "atoms too close": (few, lambda: check_overlaps(few)),
        # another seed each time: the order of an epoch is kept
        "order of an epoch": (mapped, lambda: batch_indices(0, 1, len(mapped), next(drawn))),
    }
    rows = []
    for name, (structures, work) in works.items():
        seconds = _timed(work, max(1, min(repeats, 3)), warm=False)
        sizes = {"structures": len(structures), "atoms": int(structures.ptr[-1])}
        case = f"before the first step, {len(structures):,} structures".replace(",", " ")
        rows.append(_row(case, name, seconds, None, **sizes))
    return rows


def _resident(probe: dict[str, Any]) -> str:
    """What opening a store added to the resident memory of its process, in words."""
    before, after = probe["before"], probe["after"]
    added = {key: after[key] - before[key] for key in ("VmRSS", "RssAnon", "RssFile")}
    return (
        f"resident {after['VmRSS']:.0f} MB, of which {before['VmRSS']:.0f} MB are Python and "
        f"imports before opening; potkit adds {added['VmRSS']:.0f} MB "
        f"(anonymous {added['RssAnon']:.0f}, file-backed {added['RssFile']:.0f})"
    )


def _probe(path: Path, draw: int, way: str, imports: str) -> dict[str, Any]:
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-c", _PROBE, str(path), str(draw), way, imports]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise DataError(f"bench data: {way} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout)


def batches(
    source: Structures, size: int, repeats: int, device: str, workdir: str | Path | None
) -> list[dict]:
    """Batches of ``size`` over one shuffled epoch: PyG's DataLoader over Data objects, potkit in
    memory, potkit from a store.

    Seconds per batch. The Data objects hold what a potkit batch holds and are made beforehand; on a
    GPU the time includes the copy there (the DataLoader's batches are copied, potkit gathers on the
    device).
    """
    import torch
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader

    def finish() -> None:
        if device != "cpu":
            torch.cuda.synchronize()

    whole = source.batch()
    per_atom = [k for k in ("z", "pos", "forces", "molecule", "mask") if k in whole]
    per_structure = [k for k in ("energy", "cell", "pbc", "charge", "system") if k in whole]
    graphs = []
    for i, (start, end) in enumerate(itertools.pairwise(source.ptr.tolist())):
        fields = {k: whole[k][start:end].clone() for k in per_atom}
        fields |= {k: whole[k][i : i + 1].clone() for k in per_structure}
        graphs.append(Data(**fields, num_nodes=end - start))
    few = [Data(z=g.z, pos=g.pos, energy=g.energy, num_nodes=g.num_nodes) for g in graphs]
    count = -(-len(source) // size)

    def loader(data: list) -> None:
        for batch in DataLoader(data, batch_size=size, shuffle=True):
            batch.to(device)
        finish()

    def potkit(structures: Structures) -> None:
        order = np.random.default_rng(0).permutation(len(structures))
        for start in range(0, len(order), size):
            structures.batch(order[start : start + size], device=device)
        finish()

    case = f"batch of {size} on {device}"
    with tempfile.TemporaryDirectory(dir=workdir) as folder:
        mapped = Structures.open(source.save(Path(folder) / "store"))
        resident = source.to(device)
        works = {
            "PyG DataLoader": (lambda: loader(graphs), "the same fields as potkit's batch"),
            "PyG DataLoader, z pos energy only": (
                lambda: loader(few),
                "fewer fields than potkit's batch",
            ),
            "potkit, in memory": (
                lambda: potkit(resident),
                "goal: 20 times faster than PyG with the same fields",
            ),
            "potkit, from a store": (
                lambda: potkit(mapped),
                "rows read from the file (page cache), nothing held in memory",
            ),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        # in turn, so that all see the same load; the first round warms up
        for turn in range(repeats + 1):
            for name, (work, _) in works.items():
                (lasted,) = _timed(work, 1, warm=False)
                if turn:
                    seconds[name].append(lasted / count)
    first = float(np.median(seconds["PyG DataLoader"]))
    return [_row(case, name, seconds[name], first, note=note) for name, (_, note) in works.items()]
