"""ASE databases in general and ISO17's folder."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from potkit.datasets import read
from potkit.datasets.formats import guess, iso17
from potkit.errors import DataError

rng = np.random.default_rng(0)


def frame(symbols="CO2", **kwargs) -> Atoms:
    return Atoms(symbols, rng.normal(size=(len(Atoms(symbols)), 3)) * 2, **kwargs)


def test_known_values(tmp_path):
    path, frames = tmp_path / "base.db", [frame(), frame("NaCl", cell=[4, 5, 6], pbc=True), frame()]
    forces = [rng.normal(size=(len(f), 3)) for f in frames]
    with connect(path) as base:
        for i, f in enumerate(frames):
            f.set_initial_charges([-(i % 2)] + [0] * (len(f) - 1))
            f.calc = SinglePointCalculator(f, energy=-10.0 - i, forces=forces[i])
            base.write(f, name=f"m{i % 2}")
    (tmp_path / "nameless").write_bytes(path.read_bytes())
    for file in (path, tmp_path / "nameless"):
        assert guess(file) == "ase-db"
        s = read(file, dtype=np.float64)
        np.testing.assert_array_equal(s.energy, [-10, -11, -12])
        np.testing.assert_array_equal(s.pos, np.concatenate([f.positions for f in frames]))
        np.testing.assert_array_equal(s.forces, np.concatenate(forces))
        assert s.system_names() == ["m0", "m1"] and s.system.tolist() == [0, 1, 0] and s.charge.tolist() == [0, -1, 0]
        assert s.pbc.all(1).tolist() == [False, True, False] and np.diag(s.cell[1]).tolist() == [4, 5, 6]


def test_errors(tmp_path):
    path = tmp_path / "base.db"
    with connect(path) as base:
        base.write(frame(), total_energy=-3.0)
        base.write(frame(), colour=1)
    with pytest.raises(DataError, match="row 2: has no energy .*colour"):
        read(path)
    assert len(read(path, require=None)) == 2
    with connect(tmp_path / "b.db") as base:
        base.write(frame(), total_energy=-3.0, data={"atomic_forces": np.zeros((2, 3))})
    with pytest.raises(DataError, match=r"row 1: forces have shape \(2, 3\), expected \(3, 3\)"):
        read(tmp_path / "b.db")
    with connect(tmp_path / "c.db") as base:
        broken = frame()
        broken.positions[2, 1] = np.nan
        base.write(broken, total_energy=-3.0)
    with pytest.raises(DataError, match="row 1: position of atom 2"):
        read(tmp_path / "c.db")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises(DataError, match="not a readable ASE database") as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def make_iso17(folder, train="2\n4\n1\n", valid="3\n"):
    folder.mkdir()
    for name, n, shift in (("reference.db", 4, 0), ("test_within.db", 2, 10), ("test_other.db", 1, 20)):
        with connect(folder / name) as base:
            for i in range(n):
                atoms = frame("C7O2H10")
                data = {"atomic_forces": np.full((19, 3), 0.1 * (i + 1))}
                base.write(atoms, total_energy=-11500.0 - shift - i, data=data)
    (folder / "train_ids.txt").write_text(train)
    (folder / "validation_ids.txt").write_text(valid)


def test_iso17(tmp_path):
    folder = tmp_path / "iso17"
    make_iso17(folder)
    assert guess(folder) == "iso17"
    s = read(folder, dtype=np.float64)
    assert len(s) == 7 and set(s.n_atoms) == {19}
    split = iso17.parts(s)
    assert {k: s.energy[v].tolist() for k, v in split.items()} == {
        "train": [-11500, -11501, -11503], "valid": [-11502], "test_within": [-11510, -11511], "test_other": [-11520],
    }  # fmt: skip
    np.testing.assert_allclose(s.forces[19:38], 0.2)
    assert len(read(folder, part="valid")) == 1


@pytest.mark.parametrize(
    "ids, words",
    [("1\n5\n", "line 2: index 5 points outside the 4"), ("0\n", "line 1: index 0"), ("1\n1\n", "line 2: index 1 comes twice")],
)
def test_iso17_ids_that_do_not_fit(tmp_path, ids, words):
    make_iso17(tmp_path / "iso17", train=ids)
    with pytest.raises(DataError, match=words) as error:
        read(tmp_path / "iso17")
    assert "train_ids.txt" in str(error.value)
    (tmp_path / "iso17" / "reference.db").unlink()
    with pytest.raises(DataError, match="reference.db: missing"):
        read(tmp_path / "iso17", format="iso17", part="train")
