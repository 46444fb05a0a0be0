"""RuNNer input.data, DeePMD folders and the masked paper's per-frame .npz; and which atoms are one
water.
"""

from __future__ import annotations

import numpy as np
import pytest

from potkit import units
from potkit.datasets import read
from potkit.datasets.formats import guess
from potkit.errors import DataError
from potkit.structures.geometry import water_molecules

BLOCK = """begin
comment a water and its image
lattice     20.0  0.0   0.0
lattice      0.0 20.0   0.0
lattice      1.0  0.0  20.0
atom   0.1  0.0  0.0  O  -0.2  0.0   0.01  0.02  0.03
atom  19.5  1.5  0.0  H   0.1  0.0   0.0   0.0   0.0
atom   1.8  0.0  0.2  H   0.1  0.0  -0.01 -0.02 -0.03
energy  -76.25
charge    0.0
end
"""


def test_runner_known_values(tmp_path):
    path = tmp_path / "anything"
    without_box = [line for line in BLOCK.splitlines() if not line.startswith("lattice")]
    ion = "\n".join(without_box).replace("charge    0.0", "charge  -1.0")
    path.write_text("# made by hand\n" + BLOCK + ion + "\n")
    assert guess(path) == "runner"
    s = read(path, dtype=np.float64)
    assert len(s) == 2
    assert s.z.tolist() == [8, 1, 1] * 2
    assert s.pbc.tolist() == [[True] * 3, [False] * 3]
    assert s.charge.tolist() == [0, -1]
    np.testing.assert_allclose(s.energy, [-76.25 * units.HARTREE] * 2, rtol=1e-15)
    np.testing.assert_allclose(s.pos[1], np.array([19.5, 1.5, 0]) * units.BOHR, rtol=1e-15)
    np.testing.assert_allclose(
        s.cell[0], np.array([[20, 0, 0], [0, 20, 0], [1, 0, 20]]) * units.BOHR, rtol=1e-15
    )
    np.testing.assert_allclose(
        s.forces[0], np.array([0.01, 0.02, 0.03]) * units.HARTREE / units.BOHR, rtol=1e-15
    )


def test_runner_without_energy_is_geometries_alone(tmp_path):
    path = tmp_path / "input.data"
    path.write_text(BLOCK.replace("energy  -76.25\n", "", 1))
    s = read(path)
    assert s.energy is None and s.forces is None and len(s) == 1


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("lattice      1.0  0.0  20.0\n", "", ["block at line 1", "2 lattice lines"]),
        (
            "lattice      1.0  0.0  20.0",
            "lattice 1.0 0.0",
            ["line 5", "expected 3 numbers, found 2"],
        ),
        ("  O  ", "  Q  ", ["unknown element 'Q'", "atom 0"]),
        ("atom  19.5  1.5", "atom  19.5  x1.5", ["line 7", "'x1.5' is not a number"]),
        ("atom  19.5  1.5", "atom  19.5  nan", ["position or force of atom 1"]),
        (" 0.1  0.0   0.0   0.0   0.0", "", ["line 7", "10 entries, found 5"]),
        ("end\n", "", ["ends inside the block that began at line 1"]),
        ("charge ", "colour ", ["line 10", "'colour'"]),
        ("comment", "begin", ["line 2", "begin inside"]),
    ],
)
def test_runner_errors(tmp_path, old, new, words):
    path = tmp_path / "input.data"
    assert old in BLOCK
    path.write_text(BLOCK.replace(old, new, 1))
    with pytest.raises(DataError) as error:
        read(path, format="runner")
    assert "\n" not in str(error.value)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_runner_folder(tmp_path):
    with pytest.raises(DataError, match=r"needs one input.data, found none"):
        read(tmp_path, format="runner")
    (tmp_path / "a").mkdir()
    (tmp_path / "a/input.data").write_text(BLOCK)
    assert guess(tmp_path) == "runner" and len(read(tmp_path)) == 1
    (tmp_path / "input.data.2").write_text(BLOCK)
    with pytest.raises(DataError, match=r"found a/input.data, input.data.2"):
        read(tmp_path, format="runner")


def test_runner_is_named_by_its_folder(tmp_path, monkeypatch):
    (tmp_path / "water").mkdir()
    (tmp_path / "water/input.data").write_text(BLOCK)
    monkeypatch.chdir(tmp_path / "water")
    assert read("input.data").info["name"] == "water"
    (tmp_path / "water/input.data").write_text("\ufeff\n" + BLOCK, encoding="utf-8")
    assert guess(tmp_path / "water/input.data") == "runner" and len(read("input.data")) == 1


def test_real_runner(reference_data):
    s = read(reference_data / "rpbe-water", dtype=np.float64)
    assert len(s) == 20 and s.pbc.all() and set(s.n_atoms.tolist()) == {48, 96, 192}
    assert s.cell[0, 0, 0] == pytest.approx(24.623508 * 0.529177210544, rel=1e-12)
    per_molecule = 3 * s.energy / s.n_atoms / units.HARTREE
    assert (np.abs(per_molecule + 76.56) < 0.02).all()  # Hartree per water
    assert np.abs(np.add.reduceat(s.forces, s.ptr[:-1])).max() < 1e-3
    assert 0.5 < np.sqrt(np.mean(s.forces**2)) < 3
    for i in range(len(s)):  # O–H bonds within the molecules found, and each has three atoms
        one = s[i]
        assert (np.bincount(one.molecule) == 3).all()


def deepmd(folder, n=3, nopbc=False, **changes):
    rng = np.random.default_rng(0)
    part = folder / "set.000"
    part.mkdir(parents=True)
    (folder / "type.raw").write_text("0\n1\n1\n")
    (folder / "type_map.raw").write_text("O\nH\n")
    arrays = {
        "coord": rng.normal(size=(n, 9)),
        "energy": np.arange(n) - 10.0,
        "force": rng.normal(size=(n, 9)),
        "box": np.tile(np.eye(3).reshape(1, 9) * 12, (n, 1)),
    } | changes
    if nopbc:
        (folder / "nopbc").touch()
        arrays["box"] = None
    for name, array in arrays.items():
        if array is not None:
            np.save(part / f"{name}.npy", array)
    return {k: v for k, v in arrays.items() if v is not None}


def test_deepmd_known_values(tmp_path):
    first = deepmd(tmp_path / "a" / "box")
    second = deepmd(tmp_path / "b", n=2, nopbc=True)
    assert guess(tmp_path) == "deepmd"
    s = read(tmp_path, dtype=np.float64)
    assert len(s) == 5 and s.z.tolist() == [8, 1, 1] * 5 and s.system_names() == ["a/box", "b"]
    np.testing.assert_array_equal(s.energy, [-10, -9, -8, -10, -9])
    np.testing.assert_array_equal(s.pos[:9].reshape(3, 9), first["coord"])
    np.testing.assert_array_equal(s.forces[9:].reshape(2, 9), second["force"])
    assert s.pbc.all(1).tolist() == [True] * 3 + [False] * 2
    assert s.cell[0].tolist() == (np.eye(3) * 12).tolist()


def test_deepmd_mixed_types_and_type_map(tmp_path):
    deepmd(tmp_path, real_atom_types=np.array([[0, 1, 1], [1, 1, 0], [0, 0, 0]]))
    (tmp_path / "type_map.raw").unlink()
    with pytest.raises(DataError, match=r"no type_map.raw, .*; give type_map"):
        read(tmp_path)
    assert read(tmp_path, type_map=["S", "Na"]).z.reshape(3, 3).tolist() == [
        [16, 11, 11],
        [11, 11, 16],
        [16, 16, 16],
    ]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"energy": np.zeros(2)}, ["energy.npy", "(2,)", "(3,)"]),
        ({"force": np.zeros((3, 6))}, ["force.npy", "(3, 6)"]),
        ({"coord": np.zeros((3, 12))}, ["coord.npy", "(3, 12)", "(3, 3, 3)"]),
        ({"coord": np.zeros((0, 9))}, ["coord.npy", "no frames"]),
        ({"box": None}, ["box.npy", "missing"]),
        ({"force": np.full((3, 9), np.nan)}, ["force of frame 0"]),
        ({"real_atom_types": np.full((3, 3), 2)}, ["type 2 is not in the type map"]),
    ],
)
def test_deepmd_errors(tmp_path, changes, words):
    deepmd(tmp_path, **changes)
    with pytest.raises(DataError) as error:
        read(tmp_path)
    for word in [str(tmp_path), *words]:
        assert word in str(error.value)


def frame(path, **changes):
    pos = np.array(
        [[1.0, 1, 1], [1.9572, 1, 1], [0.76, 1.93, 1], [19.9, 5, 5], [0.8, 5, 5], [19.66, 5.93, 5]]
    )
    arrays = {
        "pos": pos,
        "energy": np.array(-40.0),
        "forces": np.arange(18.0).reshape(6, 3),
    } | changes
    np.savez(path, **{k: v for k, v in arrays.items() if v is not None})
    return pos


def test_tip3p_frames(tmp_path):
    for seed in (0, 10, 2):
        for i in (0, 1):
            pos = frame(tmp_path / f"data_{seed}_{i}.npz", energy=np.array(-40.0 - seed - 0.5 * i))
    assert guess(tmp_path) == "tip3p-npz"
    s = read(tmp_path, dtype=np.float64)
    assert s.system_names() == ["seed-0", "seed-2", "seed-10"]
    assert s.system.tolist() == [0, 0, 1, 1, 2, 2]
    assert s.z[:6].tolist() == [8, 1, 1, 8, 1, 1] and s.molecule[:6].tolist() == [0, 0, 0, 1, 1, 1]
    kj = 1.0 / 96.48533212331  # eV
    np.testing.assert_allclose(
        s.energy, np.array([-40, -40.5, -42, -42.5, -50, -50.5]) * kj, rtol=1e-12
    )
    # per nm
    np.testing.assert_allclose(s.forces[:6], np.arange(18.0).reshape(6, 3) * kj / 10, rtol=1e-12)
    np.testing.assert_array_equal(s.pos[:6], pos)
    assert s.pbc.all() and s.cell[3].tolist() == (np.eye(3) * 20).tolist()
    train, test = s.split((2, 1), by="system")
    assert len(train) == 4 and len(test) == 2


def test_keys_that_anybody_uses_are_no_water(tmp_path):
    """A single file is three-site water by its name, or where it holds one frame and no more."""
    frame(tmp_path / "data_0_1.npz", seed=np.array(0))
    frame(tmp_path / "any.npz")
    assert guess(tmp_path / "data_0_1.npz") == guess(tmp_path / "any.npz") == "tip3p-npz"
    frame(tmp_path / "methane.npz", numbers=np.array([6, 1, 1, 1, 1, 1]))
    frame(tmp_path / "frames.npz", pos=np.zeros((2, 6, 3)))
    for name in ("methane.npz", "frames.npz"):
        assert guess(tmp_path / name) is None
        with pytest.raises(DataError, match="in no known format"):
            read(tmp_path / name)
    assert read(tmp_path / "methane.npz", format="tip3p-npz").z.tolist() == [8, 1, 1] * 2


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"forces": np.zeros((3, 3))}, ["forces have shape (3, 3)"]),
        ({"energy": np.zeros(2)}, ["energy has shape (2,)"]),
        ({"pos": np.zeros((5, 3))}, ["(5, 3)", "3 m"]),
        ({"forces": None}, ["has no 'forces'"]),
        ({"energy": np.array(np.nan)}, ["energy of entry 0"]),
        ({"pos": np.arange(18.0).reshape(6, 3)}, ["order is not O H H"]),
    ],
)
def test_tip3p_errors(tmp_path, changes, words):
    frame(tmp_path / "data_0_0.npz")
    frame(tmp_path / "data_0_1.npz", **changes)
    with pytest.raises(DataError) as error:
        read(tmp_path)
    for word in ["data_0_1.npz", *words]:
        assert word in str(error.value)


def test_water_molecules():
    cell, pbc = np.eye(3) * 10, np.ones(3, bool)
    z = np.array([1, 8, 1, 8, 1, 1])
    pos = np.array([[9.8, 0, 0], [0.3, 0, 0], [5.9, 5, 5], [5, 5, 5], [0.3, 0.9, 0], [5, 5.9, 5]])
    assert water_molecules(z, pos, cell, pbc).tolist() == [0, 0, 1, 1, 0, 1]
    pos[5] = [0.3, 0, 0.9]
    assert water_molecules(z, pos, cell, pbc) is None  # H3O and OH
    assert water_molecules(np.array([8, 1, 6]), pos[:3], cell, pbc) is None
