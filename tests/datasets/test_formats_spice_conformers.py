"""Conformations of SPICE without labels: elements by the map numbers of the SMILES, nm."""

from __future__ import annotations

import h5py
import numpy as np
import pytest

from potkit.datasets import read
from potkit.datasets.formats import guess
from potkit.datasets.formats.spice_conformers import atoms_of
from potkit.errors import ConfigError, DataError

# methanol and water; atom 1 is the carbon, atom 2 the oxygen, though the text begins otherwise
METHANOL = "[O:2]([C:1]([H:3])([H:4])[H:5])[H:6]"
WATER = "[H:9][O:8][H:7]"


def write(path, groups, units="nanometers"):
    with h5py.File(path, "w") as file:
        for name, (smiles, pos) in groups.items():
            file[f"{name}/smiles"] = [smiles]
            data = file.create_dataset(f"{name}/conformations", data=np.asarray(pos, np.float32))
            if units:
                data.attrs["units"] = units
    return path


def test_elements_follow_the_map_numbers(tmp_path):
    pos = np.arange(4 * 9 * 3).reshape(4, 9, 3) / 10
    path = write(tmp_path / "a.hdf5", {"MOH": (f"{METHANOL}.{WATER}", pos)})
    assert guess(path) == "spice-conformers"
    s = read(path, dtype=np.float64)
    assert len(s) == 4 and s.z[:9].tolist() == [6, 8, 1, 1, 1, 1, 1, 8, 1]
    assert s.molecule[:9].tolist() == [0] * 6 + [1] * 3
    assert s.system_names() == ["MOH, CH6O2"]
    assert s.energy is None and s.forces is None and s.cell is None
    np.testing.assert_allclose(s.pos, pos.reshape(-1, 3) * 10, rtol=1e-6)  # nm -> Å


@pytest.mark.parametrize(
    "smiles, symbols",
    [
        ("[H:3][Cl:1]", None),
        ("[Br:1][C@@:2]([F:3])([Cl:4])[H:5]", [35, 6, 9, 17, 1]),
        ("[c:1]1[n:2]([H:6])[s:3][c:4][c:5]1", [6, 7, 16, 6, 6, 1]),
        ("[nH:1]", [7]),
        ("[N+:2]([H:1])([H:3])([H:4])[H:5]", [1, 7, 1, 1, 1]),
        ("[O-:1].[2H:2]", [8, 1]),
        ("[O:1]([H:2])[H:2]", None),
        ("C[H:1]", None),
        ("[H:1][O]", None),
        ("[Xx:1]", None),
    ],
)
def test_smiles(smiles, symbols):
    if symbols is None:
        with pytest.raises(DataError, match=r"^here: ") as error:
            atoms_of(smiles, "here")
        assert "\n" not in str(error.value)
    else:
        assert atoms_of(smiles, "here")[0].tolist() == symbols


def test_only_some_elements(tmp_path):
    water, chloride = np.zeros((2, 3, 3)), np.zeros((3, 2, 3))
    groups = {"O": ("[H:2][O:1][H:3]", water), "Cl": ("[H:2][Cl:1]", chloride)}
    path = write(tmp_path / "a.hdf5", groups)
    assert read(path).system_names() == ["Cl", "O"]
    s = read(path, elements="H C N O")
    assert s.system_names() == ["O"] and len(s) == 2
    assert s.info["notes"] == ["1 molecules with other elements than H C N O left out"]
    with pytest.raises(ConfigError, match="elements names 'Q', which is no element"):
        read(path, elements=["H", "Q"])
    with pytest.raises(DataError, match="holds no structures"):
        read(path, elements="C")


def test_charges_and_units(tmp_path):
    ammonium = "[N+:1]([H:2])([H:3])([H:4])[H:5]"
    path = write(tmp_path / "a.hdf5", {"N": (ammonium, np.ones((1, 5, 3)))}, units="angstrom")
    s = read(path)
    assert s.charge.tolist() == [1] and s.pos[0, 0] == 1.0
    path = write(tmp_path / "b.hdf5", {"N": (ammonium, np.ones((1, 5, 3)))}, units=None)
    assert read(path).pos[0, 0] == 10.0  # nm where nothing is said
    path = write(tmp_path / "c.hdf5", {"N": (ammonium, np.ones((1, 5, 3)))}, units="furlong")
    with pytest.raises(DataError, match="unknown unit 'furlong'"):
        read(path)


@pytest.mark.parametrize(
    "smiles, pos, message",
    [
        ("[H:2][O:1][H:3]", np.zeros((2, 4, 3)), r"shape (2, 4, 3), 3 atoms of smiles ask"),
        ("[H:2][O:1][H:3]", np.full((2, 3, 3), np.nan), "conformations of row 0 is not a finite"),
        ("[H:2][O:1][H:4]", np.zeros((2, 3, 3)), "map numbers of smiles are not 1 … 3"),
    ],
)
def test_errors(tmp_path, smiles, pos, message):
    path = write(tmp_path / "a.hdf5", {"O": (smiles, pos)})
    with pytest.raises(DataError) as error:
        read(path)
    assert message in str(error.value) and f"{path}: group /O" in str(error.value)


def test_labelled_spice_is_another_format(tmp_path):
    path = write(tmp_path / "a.hdf5", {"O": ("[H:2][O:1][H:3]", np.zeros((1, 3, 3)))})
    with h5py.File(path, "a") as file:
        file["O/atomic_numbers"] = [8, 1, 1]
    assert guess(path) == "spice"
