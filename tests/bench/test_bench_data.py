"""`potkit bench data` at a size that takes seconds: the table is complete and says what was
measured. Times are not judged.
"""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from tiny import molecules

from potkit.bench import data
from potkit.errors import DataError
from potkit.structures.store import Structures


def test_large_store_holds_shaken_copies(tmp_path):
    s = molecules(10, dtype=np.float32)
    big = Structures.open(data.large_store(s, tmp_path / "store", 37))
    assert len(big) == 37
    assert np.array_equal(big.energy[10:20], s.energy)
    assert np.array_equal(big.z[: s.ptr[-1]], s.z)
    step = big.pos[: s.ptr[-1]] - s.pos
    assert 0.005 < step.std() < 0.02 and not np.array_equal(big[:10].pos, big[10:20].pos)


def test_opening_is_measured_in_processes_of_their_own(tmp_path, monkeypatch):
    monkeypatch.delitem(data.WAYS, "s.batch(rows)")  # importing PyG takes seconds
    path = data.large_store(molecules(20, dtype=np.float32), tmp_path / "store", 400)
    rows = data.opening(path, 16, 1)
    names = [r["implementation"] for r in rows]
    assert names[:2] == list(data.WAYS) and list(rows[0]) == data.COLUMNS
    assert names[2:] in ([], ["s.gather(rows), nothing cached"])
    for row in rows:
        assert 0 < row["draw_s"] < row["median_s"] < 60
        assert row["peak_mb"] > 20
        assert row["structures"] == 400 and row["drawn"] == 16
        assert row["atoms"] == Structures.open(path).ptr[-1]
        assert "anonymous" in row["note"]
        assert "the store has" in row["note"]
    assert rows[0]["peak_mb"] < rows[1]["peak_mb"]  # the second imports torch


def test_what_comes_before_the_first_step(tmp_path):
    path = data.large_store(molecules(10, dtype=np.float32), tmp_path / "store", 50)
    rows = data.beginning(path, 2)
    names = [r["implementation"] for r in rows]
    assert names == [
        "fingerprint",
        "elements",
        "finite numbers",
        "atoms too close",
        "order of an epoch",
    ]
    assert all(r["structures"] == 50 and 0 < r["median_s"] < 60 for r in rows)
    assert list(rows[0]) == data.COLUMNS


def test_a_disk_without_room_is_told_before_anything_is_written(tmp_path, monkeypatch):
    s = molecules(10, dtype=np.float32)
    size = sum(a.nbytes for a in s.arrays().values()) / 10
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(data.shutil, "disk_usage", lambda path: usage._replace(free=100 * size))
    with pytest.raises(DataError, match=r"a store of 95 structures takes .* has .* GB free"):
        data.large_store(s, tmp_path / "store", 95)
    assert not any(tmp_path.iterdir())
    assert len(Structures.open(data.large_store(s, tmp_path / "store", 80))) == 80


def test_batches_are_compared_with_the_same_fields():
    rows = data.batches(molecules(40, dtype=np.float32), 8, 2, "cpu", None)
    assert rows[0]["implementation"] == "PyG DataLoader" and rows[0]["ratio"] == 1.0
    assert all(
        r["case"] == "batch of 8 on cpu" and r["median_s"] > 0 and r["ratio"] > 0 for r in rows
    )
    assert len(rows) == 4


def test_without_the_real_files_the_table_says_so(monkeypatch):
    monkeypatch.delenv("POTKIT_REFERENCE_DATA", raising=False)
    monkeypatch.setenv("POTKIT_DATA", "/nowhere")
    (row,) = data.reading(1)
    assert np.isnan(row["median_s"]) and "ani1-alkanes" in row["note"]
    with pytest.raises(DataError, match="bench data has no option 'size'"):
        data.run(size=3)
