"""`potkit bench data` at a size that takes seconds: the table is complete and says what was
measured. Times are not judged.
"""

from __future__ import annotations

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


def test_opening_is_measured_in_processes_of_their_own(monkeypatch):
    monkeypatch.delitem(data.WAYS, "s.batch(rows)")  # importing PyG takes seconds
    rows = data.opening(molecules(20, dtype=np.float32), 400, 16, 1, None)
    assert [r["implementation"] for r in rows] == list(data.WAYS) and list(rows[0]) == data.COLUMNS
    for row in rows:
        assert 0 < row["median_s"] < 60
        assert row["peak_mb"] > 20
        assert "anonymous" in row["note"]
        assert "the store has" in row["note"]
    assert rows[0]["peak_mb"] < rows[1]["peak_mb"]  # the second imports torch


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
