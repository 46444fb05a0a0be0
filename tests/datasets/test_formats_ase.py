"""ASE databases in general and ISO17's folder."""

from __future__ import annotations

import itertools
import re
from functools import lru_cache

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect

from potkit.datasets import read
from potkit.datasets.formats import ase_db, guess, iso17
from potkit.errors import DataError
from potkit.structures.geometry import bond_graph, graph_key

rng = np.random.default_rng(0)


def frame(symbols="CO2", **kwargs) -> Atoms:
    return Atoms(symbols, rng.normal(size=(len(Atoms(symbols)), 3)) * 2, **kwargs)


def test_known_values(tmp_path):
    path = tmp_path / "base.db"
    frames = [frame(), frame("NaCl", cell=[4, 5, 6], pbc=True), frame()]
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
        assert s.system_names() == ["m0", "m1"]
        assert s.system.tolist() == [0, 1, 0]
        assert s.charge.tolist() == [0, -1, 0]
        assert s.pbc.all(1).tolist() == [False, True, False]
        assert np.diag(s.cell[1]).tolist() == [4, 5, 6]


def test_errors(tmp_path):
    path = tmp_path / "base.db"
    with connect(path) as base:
        base.write(frame(), total_energy=-3.0)
        base.write(frame(), colour=1)
    with pytest.raises(DataError, match=r"row 2: has no energy .*colour"):
        read(path, require=("energy",))
    assert read(path).labelled("energy").tolist() == [True, False]
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


def test_an_energy_by_its_key_without_forces(tmp_path):
    path = tmp_path / "base.db"
    with connect(path) as base:
        base.write(frame(), total=-3.0)
        base.write(frame(), total=-4.0)
    s = read(path, energy_key="total")
    assert s.energy.tolist() == [-3.0, -4.0] and s.forces is None
    with connect(tmp_path / "both.db") as base:
        atoms = frame()
        atoms.calc = SinglePointCalculator(atoms, energy=-10.0, forces=np.ones((3, 3)))
        base.write(atoms, total=-3.0)
    with pytest.raises(DataError, match="which forces goes with 'total'"):
        read(tmp_path / "both.db", energy_key="total")


@pytest.mark.parametrize("atoms", [frame(), frame("C70")], ids=["small", "large"])
def test_json_databases_whose_first_row_is_gone(tmp_path, atoms):
    """Rows deleted, and rows so long that the positions come late."""
    path = tmp_path / "base.json"
    forces = rng.normal(size=(len(atoms), 3))
    atoms.calc = SinglePointCalculator(atoms, energy=1.0, forces=forces)
    with connect(path, use_lock_file=False) as base:
        for i in range(3):
            base.write(atoms, total=-10.0 - i, data={"f": forces})
        base.delete([1])
    for text in (path.read_text(), "\n " + path.read_text()):
        path.write_text(text)
        assert guess(path) == "ase-db"
        s = read(path, energy_key="total", forces_key="f", dtype=np.float64)
        assert s.energy.tolist() == [-11.0, -12.0]
        np.testing.assert_allclose(s.forces[: len(atoms)], forces)


ISOMERS = {  # heavy atoms of three C7O2H10 as they are bonded, hydrogens at each
    "ester": (
        "CCCCCCOCO",
        [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 6), (6, 7), (7, 8)],
        [3, 0, 0, 2, 2, 2, 0, 1, 0],
    ),
    "ring": (
        "CCCCCCCOO",
        [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (5, 6), (6, 7), (6, 8)],
        [2, 1, 1, 2, 2, 1, 0, 0, 1],
    ),
    "fused": (
        "CCCCCCCOO",
        [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (5, 0), (2, 5), (4, 6), (6, 7), (0, 8)],
        [2, 2, 1, 1, 1, 1, 1, 0, 1],
    ),
}


@lru_cache
def heavy_atoms(name: str) -> np.ndarray:
    """Places in which just the bonded heavy atoms are close: springs of 1.45 Å along the bonds,
    all others pushed to 2.6 Å.
    """
    elements, bonds, _ = ISOMERS[name]
    n = len(elements)
    bonded = np.zeros((n, n), bool)
    for i, j in bonds:
        bonded[i, j] = bonded[j, i] = True
    pos = np.random.default_rng(1).normal(size=(n, 3))
    for _ in range(2000):
        d = pos[:, None] - pos
        r = np.linalg.norm(d, axis=-1) + np.eye(n)
        pull = np.where(bonded, 1.45 - r, np.clip(2.6 - r, 0, None)) * (1 - np.eye(n))
        pos = pos + 0.1 * (pull[..., None] * d / r[..., None]).sum(1)
    return pos


def isomer(name: str, seed: int) -> Atoms:
    """A geometry of the isomer with hydrogens, shaken, its atoms in a random order."""
    elements, _, hydrogens = ISOMERS[name]
    local = np.random.default_rng(seed)
    pos = heavy_atoms(name)
    centre = pos.mean(0)
    symbols = list(elements)
    points = [*pos]
    for i, count in enumerate(hydrogens):
        for k in range(count):
            out = pos[i] - centre + 0.4 * np.array([k == 0, k == 1, k == 2])
            symbols.append("H")
            points.append(pos[i] + 1.09 * out / np.linalg.norm(out))
    assert len(symbols) == 19
    order = local.permutation(19)
    shaken = np.array(points) + local.normal(scale=0.03, size=(19, 3))
    return Atoms([symbols[i] for i in order], shaken[order])


def make_iso17(folder, train="2\n4\n1\n", valid="3\n"):
    """The published layout: rows of reference.db alternate between two isomers, test_other.db
    holds a third.
    """
    folder.mkdir()
    names = {
        "reference.db": ["ester", "ring"] * 2,
        "test_within.db": ["ester", "ring"],
        "test_other.db": ["fused"],
    }
    for shift, (name, kinds) in enumerate(names.items()):
        with connect(folder / name) as base:
            for i, kind in enumerate(kinds):
                data = {"atomic_forces": np.full((19, 3), 0.1 * (i + 1))}
                energy = -11500.0 - 10 * shift - i
                base.write(isomer(kind, 10 * shift + i), total_energy=energy, data=data)
    (folder / "train_ids.txt").write_text(train)
    (folder / "validation_ids.txt").write_text(valid)


def test_iso17(tmp_path, monkeypatch):
    monkeypatch.setattr(ase_db, "PAGE", 2)  # rows come in several pages
    folder = tmp_path / "iso17"
    make_iso17(folder)
    assert guess(folder) == "iso17"
    s = read(folder, dtype=np.float64)
    assert len(s) == 7 and set(s.n_atoms) == {19}
    split = iso17.parts(s)
    assert {k: s.energy[v].tolist() for k, v in split.items()} == {
        "train": [-11500, -11501, -11503],
        "valid": [-11502],
        "test_within": [-11510, -11511],
        "test_other": [-11520],
    }
    np.testing.assert_allclose(s.forces[19:38], 0.2)
    # reference rows 1 and 3 are the ester, 2 and 4 the ring: atoms shuffled and shaken, yet one
    # system each
    assert s.system.tolist() == [0, 1, 1, 0, 0, 1, 2] and len(set(s.system_names())) == 3
    assert all(re.fullmatch("C7H10O2 [0-9a-f]{8}", name) for name in s.system_names())
    seen = {part: set(s.system[rows].tolist()) for part, rows in split.items()}
    assert not seen["test_other"] & (seen["train"] | seen["valid"] | seen["test_within"])
    with pytest.raises(DataError, match="iso17: cut or reordered since it was read"):
        iso17.parts(s[::-1])
    assert len(read(folder, part="valid")) == 1
    assert read(folder, systems="part").system_names() == [
        "train",
        "valid",
        "test_within",
        "test_other",
    ]


def test_bond_graphs_do_not_depend_on_numbering_and_tell_isomers_apart():
    keys = set()
    for name in ISOMERS:
        shaken = [isomer(name, seed) for seed in range(6)]
        of_isomer = {graph_key(*bond_graph(a.numbers, a.positions)) for a in shaken}
        assert len(of_isomer) == 1
        keys |= of_isomer
    assert len(keys) == 3


def test_decalin_and_bicyclopentyl_are_told_apart():
    """Plain colour refinement takes them for the same."""

    def ring(*atoms):
        return list(itertools.pairwise((*atoms, atoms[0])))

    decalin = ring(0, 1, 2, 3, 4, 5) + ring(0, 6, 7, 8, 9, 5)[:-1]
    bicyclopentyl = [*ring(0, 1, 2, 3, 4), *ring(5, 6, 7, 8, 9), (0, 5)]
    keys = set()
    for bonds in (decalin, bicyclopentyl):
        bonded = np.zeros((10, 10), bool)
        for i, j in bonds:
            bonded[i, j] = bonded[j, i] = True
        assert bonded.sum() == 22
        keys.add(graph_key(600 + 4 - bonded.sum(1), bonded))
    assert len(keys) == 2


@pytest.mark.parametrize(
    "ids, words",
    [
        ("1\n5\n", "line 2: index 5 points outside the 4"),
        ("0\n", "line 1: index 0"),
        ("1\n1\n", "line 2: index 1 comes twice"),
    ],
)
def test_iso17_ids_that_do_not_fit(tmp_path, ids, words):
    make_iso17(tmp_path / "iso17", train=ids)
    with pytest.raises(DataError, match=words) as error:
        read(tmp_path / "iso17")
    assert "train_ids.txt" in str(error.value)
    (tmp_path / "iso17" / "reference.db").unlink()
    with pytest.raises(DataError, match=r"reference.db: missing"):
        read(tmp_path / "iso17", format="iso17", part="train")


def test_a_box_without_edges_names_its_file(tmp_path):
    path = tmp_path / "POSCAR"
    zeros = "0 0 0\n" * 3
    path.write_text(f"H2O\n1.0\n{zeros}O H\n1 2\nDirect\n{zeros}")
    with pytest.raises(DataError, match="POSCAR: pbc is true somewhere but no cell was given"):
        read(path)
