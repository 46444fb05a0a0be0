"""Stores that grow on disk: the same content as one packed in memory, nothing left behind by
failures, kills and full disks.
"""

from __future__ import annotations

import gzip
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import h5py
import numpy as np
import pytest
from chores import child, wait
from tiny import molecules, one_line

import potkit
from potkit.datasets import formats, read, reading, registry
from potkit.datasets.formats import packer as packing
from potkit.datasets.formats.packer import packing_into
from potkit.errors import ConfigError, DataError
from potkit.structures import outputs
from potkit.structures.storage import StoreWriter, remove_leftovers, replacing
from potkit.structures.store import Structures, concatenate

ROOT = str(Path(potkit.__file__).parents[1])


def same(a: Structures, b: Structures) -> bool:
    left, right = a.arrays(), b.arrays()
    return left.keys() == right.keys() and all(
        np.array_equal(left[k], right[k], equal_nan=left[k].dtype.kind == "f")
        and left[k].dtype == right[k].dtype
        for k in left
    )


def ani1(path: Path, groups: int = 12, n: int = 50) -> Path:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for k in range(groups):
            a = 3 + k % 4
            file[f"g/m-{k:02d}/coordinates"] = rng.normal(size=(n, a, 3)).astype(np.float32)
            file[f"g/m-{k:02d}/energies"] = rng.normal(size=n) - 76
            file[f"g/m-{k:02d}/species"] = np.array([b"O"] + [b"H"] * (a - 1))
    return path


# -- the writer ----------------------------------------------------------------------------------
def test_blocks_become_one_store(tmp_path):
    parts = [molecules(5), molecules(1, seed=1), molecules(40, seed=2)]
    with StoreWriter(tmp_path / "store") as writer:
        for part in parts:
            writer.append(part.arrays())
        assert writer.n_structures == 46 and not (tmp_path / "store").exists()
        writer.finish({"name": "grown"}, drop=["charge"])
    s = Structures.open(tmp_path / "store")
    whole = concatenate(parts)
    assert all(np.array_equal(a, s.arrays()[k]) for k, a in whole.arrays().items())
    assert s.info == {"name": "grown"}
    assert [p.name for p in tmp_path.iterdir()] == ["store"]
    assert not (tmp_path / "store/charge.npy").exists()


def test_blocks_that_do_not_fit(tmp_path):
    without_forces = {k: v for k, v in molecules(2).arrays().items() if k != "forces"}
    fault = r"store: a block has the arrays .*'z'., those before .*'forces'"
    with pytest.raises(DataError, match=fault), StoreWriter(tmp_path / "store") as writer:
        writer.append(molecules(2).arrays())
        writer.append(without_forces)
    with (
        pytest.raises(DataError, match="left unfinished"),
        StoreWriter(tmp_path / "store") as writer,
    ):
        writer.append(molecules(2).arrays())
    assert not list(tmp_path.iterdir())


def test_leftovers_of_killed_writers_are_removed(tmp_path):
    (tmp_path / ".store.potkit-1234abcd.tmp").mkdir()
    (tmp_path / ".store.potkit-1234abcd.tmp/pos.npy").write_bytes(b"half")
    others = [
        ".other.potkit-1234abcd.tmp",
        ".store.1234abcd.tmp",
        ".store.mine.tmp",
        ".store.potkit-notes.tmp",
    ]
    for name in others:  # another writer's, and what a user may have called so
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path / "store")
    assert sorted(p.name for p in tmp_path.iterdir()) == others


# -- readers that pack into a store --------------------------------------------------------------
@pytest.mark.parametrize("held", [1, 3_000, 1 << 30])
def test_packing_into_a_store_gives_what_reading_gives(tmp_path, monkeypatch, held):
    path = ani1(tmp_path / "a.h5")
    plain = read(path)
    monkeypatch.setattr(packing, "HELD", held)
    with packing_into(tmp_path / "store"):
        packed = read(path)
    assert same(plain, packed)
    assert packed.info == plain.info
    assert packed.lies_in(tmp_path / "store")
    assert not plain.lies_in(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "store"]
    assert same(read(path), plain)  # and the next reading is in memory again


def test_labels_that_only_some_have_and_boxes_are_kept_right(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "HELD", 1)
    frame = "1\nProperties=species:S:1:pos:R:3 {}\nH 0 0 0\n"
    path = tmp_path / "a.xyz"
    path.write_text(
        frame.format("energy=-13.0")
        + frame.format('Lattice="4 0 0 0 4 0 0 0 4"')
        + frame.format("energy=-14.0")
    )
    plain = read(path, require=None)
    with packing_into(tmp_path / "store"):
        packed = read(path, require=None)
    assert same(plain, packed)
    assert packed.labelled("energy").tolist() == [True, False, True]
    assert packed.cell[1, 0, 0] == 4
    assert packed.info == plain.info


def test_a_reader_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "HELD", 1)
    path = ani1(tmp_path / "a.h5")
    with h5py.File(path, "a") as file:
        file["g/m-07/energies"][3] = np.nan
    with pytest.raises(DataError, match="group /g/m-07: energies of row 3 is not a finite number"):
        registry.pack(path, tmp_path / "store")
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]
    with pytest.raises(ConfigError, match=r"store.h5: a store is a folder"):
        registry.pack(path, tmp_path / "store.h5")


def test_what_is_filtered_or_joined_afterwards_is_packed_too(tmp_path):
    (tmp_path / "in").mkdir()
    for k in "ab":
        molecules(3, seed=ord(k)).save(tmp_path / "in" / f"{k}.h5")
    registry.pack(tmp_path / "in", tmp_path / "store")
    assert same(Structures.open(tmp_path / "store"), read(tmp_path / "in"))
    path = ani1(tmp_path / "a.h5")
    registry.pack(path, tmp_path / "near", max_energy=30.0)
    near = Structures.open(tmp_path / "near")
    assert same(near, read(path, max_energy=30.0)) and 0 < len(near) < 600


def test_memory_does_not_grow_with_the_set(tmp_path):
    """A set of 120 MB, packed by a process of its own: what it needs beyond reading a tiny set
    stays far below that.
    """
    big = ani1(tmp_path / "big.h5", groups=400, n=3500)
    small = ani1(tmp_path / "small.h5")
    code = (
        "import resource, sys\n"
        "from potkit.datasets import registry\n"
        "from potkit.datasets.formats import packer\n"
        "packer.HELD = 4 << 20\n"
        "registry.pack(sys.argv[1], sys.argv[2])\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)"
    )
    peaks = []
    for path in (small, big):
        command = [sys.executable, "-c", code, str(path), str(tmp_path / f"{path.stem}-store")]
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            env={"PYTHONPATH": ROOT, "OMP_NUM_THREADS": "1"},
        )
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout))
    size = sum(p.stat().st_size for p in (tmp_path / "big-store").iterdir()) / 2**20
    assert size > 120 and peaks[1] - peaks[0] < 60, (peaks, size)


# -- kills and full disks ------------------------------------------------------------------------
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_conversion_is_made_again(tmp_path, how):
    path = ani1(tmp_path / "a.h5", groups=40)
    code = (
        "import sys, time\n"
        "from potkit.datasets import registry\n"
        "from potkit.datasets.formats import packer\n"
        "packer.HELD = 1\n"
        "write = packer.Packer._write\n"
        "def slow(self):\n"
        "    write(self)\n"
        "    print('block', flush=True)\n"
        "    time.sleep(0.2)\n"
        "packer.Packer._write = slow\n"
        "registry.pack(sys.argv[1], sys.argv[2])"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "store")]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"PYTHONPATH": ROOT}
    )
    for _ in range(3):
        assert process.stdout.readline() == b"block\n"
    process.send_signal(how)
    assert process.wait(30) != 0 and not (tmp_path / "store").exists()
    left = [p for p in tmp_path.iterdir() if p.name != "a.h5"]
    # names no one opens, which say whose they are
    assert all(".potkit" in p.name and p.name[0] == "." for p in left)
    # only a kill leaves the half store and its lock
    assert [p.is_dir() for p in sorted(left)] == ([True, False] if how == signal.SIGKILL else [])
    registry.pack(path, tmp_path / "store")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "store"]
    assert same(Structures.open(tmp_path / "store"), read(path))


def killed(path: Path, moves: int = 0) -> list[Path]:
    """What a process leaves beside ``path`` that is killed after so many moves of a `save`."""

    def dying() -> None:
        replace, left = os.replace, iter(range(moves))

        def counted(*places) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*places)

        os.replace = counted
        molecules(2).save(path)

    assert wait(child(dying)) == -signal.SIGKILL
    left = [p for p in path.parent.iterdir() if outputs.is_temporary(p.name, path)]
    assert left
    return left


@pytest.mark.parametrize("name", ["store", "store.h5", "a name of 200 bytes" + "x" * 181])
def test_the_next_writer_removes_what_a_killed_one_left(tmp_path, name):
    path = tmp_path / name
    left = [p.name for p in killed(path)]
    others = [".store.potkit-1234abcd.tmp", f".other{left[0]}", ".store.tmp"]
    for other in others:  # of a writer that may live, of another place, and a user's
        (tmp_path / other[-250:]).write_text("mine")
    molecules(2).save(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*(o[-250:] for o in others), name])


def test_what_a_living_writer_works_on_stays(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as mine:
        mine.write_text("mine")
        with replacing(path) as other:
            other.write_text("other")
        assert path.read_text() == "other" and mine.is_file()
    assert path.read_text() == "mine" and list(tmp_path.iterdir()) == [path]


def test_a_store_whose_replacement_was_killed_stays_until_another_is_whole(tmp_path):
    path = tmp_path / "store"
    molecules(3).save(path)
    before = len(Structures.open(path))
    left = killed(
        path, moves=2
    )  # in vain, for a store is there; aside with it; and then into place
    assert not path.exists() and len(left) == 2
    with pytest.raises(ZeroDivisionError), StoreWriter(path):
        raise ZeroDivisionError
    assert sorted(len(Structures.open(p)) for p in left) == sorted([2, before])
    molecules(2).save(path)
    assert list(tmp_path.iterdir()) == [path]


def test_what_was_unpacked_by_a_killed_reader_is_removed(tmp_path, monkeypatch):
    packed = tmp_path / "a.xyz.gz"
    packed.write_bytes(gzip.compress(b"1\n\nH 0 0 0\n"))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))

    def dying() -> None:
        reading._read_one = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        reading._unpacked(packed, None, {})

    assert wait(child(dying)) == -signal.SIGKILL
    assert [p.name for p in scratch.glob(".unpacked*/*")] == ["a.xyz"]
    assert len(read(packed)) == 1 and not list(scratch.iterdir())


@pytest.mark.parametrize("name", ["store", "store.h5"])
def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path, name):
    """A limit on the size of files, set by the kernel, stands for the disk."""
    molecules(400).save(tmp_path / "whole.h5")
    code = (
        "import resource, signal, sys\n"
        "import potkit\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "s = potkit.Structures.open('whole.h5')\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
        "try:\n"
        "    s.save(sys.argv[1])\n"
        "except potkit.errors.DataError as error:\n"
        "    print(error)"
    )
    command = [sys.executable, "-c", code, name]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={"PYTHONPATH": ROOT}
    )
    assert len(done.stdout.splitlines()) == 1 and f"{name}: cannot be written" in done.stdout, (
        done.stdout + done.stderr
    )
    assert [p.name for p in tmp_path.iterdir()] == ["whole.h5"]


def test_a_full_disk_while_packing(tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "HELD", 1)

    class Full:
        def __init__(self, file):
            self.file, self.left = file, 5_000

        def write(self, data):
            self.left -= memoryview(data).nbytes
            if self.left < 0:
                raise OSError(28, os.strerror(28))
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    import builtins

    from potkit.structures import storage

    full_disk = lambda *arguments: Full(builtins.open(*arguments))  # noqa: E731, SIM115
    monkeypatch.setattr(storage, "open", full_disk, raising=False)
    with pytest.raises(DataError) as error:
        registry.pack(ani1(tmp_path / "a.h5"), tmp_path / "store")
    assert "store: cannot be written (No space left on device)" in one_line(error.value)
    assert [p.name for p in tmp_path.iterdir()] == ["a.h5"]


def _convert(cache: str) -> None:
    os.environ["POTKIT_DATA"] = cache
    registry.convert("tiny", progress=False)


def test_eight_processes_convert_the_same_set(tmp_path, monkeypatch):
    import multiprocessing

    from potkit.datasets.records import Record, Remote

    raw = tmp_path / "cache/tiny/raw"
    raw.mkdir(parents=True)
    ani1(raw / "a.h5")
    (tmp_path / "cache/tiny/.packed.potkit-0123abcd.tmp").mkdir()  # of a conversion that was killed
    record = Record(
        name="tiny",
        kind="public",
        title="test",
        level="none",
        citation=("ani1",),
        elements="H O",
        files=(Remote("a.h5", "http://nowhere"),),
        read_from="a.h5",
        format="ani1",
        structures=600,
    )
    monkeypatch.setattr(registry, "RECORDS", (record,))
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("POTKIT_REFERENCE_DATA", raising=False)
    fork = multiprocessing.get_context("fork")
    cache = str(tmp_path / "cache")
    processes = [fork.Process(target=_convert, args=(cache,)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 8
    s = registry.load("tiny")
    assert same(s, read(raw / "a.h5"))
    assert s.lies_in(tmp_path / "cache/tiny/packed")
    assert s.info["name"] == "tiny"
    assert sorted(p.name for p in (tmp_path / "cache/tiny").iterdir()) == [
        ".convert.lock",
        "packed",
        "raw",
    ]
    written = (tmp_path / "cache/tiny/packed/pos.npy").stat().st_mtime_ns
    registry.load("tiny")
    # opened, not packed again
    assert (tmp_path / "cache/tiny/packed/pos.npy").stat().st_mtime_ns == written
    assert formats.guess(tmp_path / "cache/tiny/packed") == "potkit"
