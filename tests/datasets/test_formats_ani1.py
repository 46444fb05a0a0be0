"""The ANI-1 HDF5 reader: known values in the public layout, every kind of damage, and the real
alkane files.
"""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest

from potkit import units
from potkit.datasets import read
from potkit.datasets.checks import force_slope
from potkit.errors import ConfigError, DataError

WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])  # Å
ENERGY = -76.4  # Hartree


def write(path: Path, groups: dict[str, dict]) -> Path:
    with h5py.File(path, "w") as file:
        for name, arrays in groups.items():
            group = file.create_group(name)
            for key, value in arrays.items():
                group.create_dataset(key, data=value)
    return path


def water(n: int = 4, **changes) -> dict:
    group = {
        "coordinates": np.stack([WATER + 0.01 * i for i in range(n)]).astype(np.float32),
        "coordinatesHE": np.stack([WATER * 2]).astype(np.float32),
        "energies": ENERGY + 0.001 * np.arange(n),
        "energiesHE": np.array([-75.0]),
        "species": np.array([b"O", b"H", b"H"]),
        "smiles": np.array([b"C", b"O"]),  # names methanol: it must not matter
    }
    return {k: v for k, v in (group | changes).items() if v is not None}


def methane() -> dict:
    return {
        "coordinates": np.arange(30, dtype=np.float64).reshape(2, 5, 3),
        "energies": np.array([-40.5, -40.4]),
        "species": np.array([b"C", b"H", b"H", b"H", b"H"]),
        "smiles": np.array([b"C"]),
    }


def test_known_values(tmp_path):
    path = write(
        tmp_path / "a", {"gdb11_s01/gdb11_s01-2": water(), "gdb11_s01/gdb11_s01-0": methane()}
    )  # no .h5: content decides
    s = read(path)
    assert len(s) == 6 and s.system_names() == ["gdb11_s01-0", "gdb11_s01-2"]
    assert s.n_atoms.tolist() == [5, 5, 3, 3, 3, 3] and s.system.tolist() == [0, 0, 1, 1, 1, 1]
    assert s.z[10:13].tolist() == [8, 1, 1]
    assert s.energy.dtype == np.float64
    np.testing.assert_allclose(
        s.energy[2:], (ENERGY + 0.001 * np.arange(4)) * units.HARTREE, rtol=1e-15
    )
    np.testing.assert_allclose(s.pos[10:13], WATER, atol=1e-7)
    assert s.forces is None and s.cell is None and s.pos.dtype == np.float32
    assert read(path, dtype=np.float64).pos.dtype == np.float64


def test_high_energy_and_composition(tmp_path):
    path = write(tmp_path / "a.h5", {"m-0": water(), "m-1": water()})
    assert len(read(path)) == 8
    assert read(path).system_names() == ["m-0", "m-1"]
    everything = read(path, high_energy=True, systems="composition")
    assert len(everything) == 10 and everything.system_names() == ["H2O"]
    low = read(path, high_energy=True, max_energy=1.0)
    assert len(low) == 8 and np.ptp(low.energy) < 1.0


def test_forces_are_hartree_per_bohr(tmp_path):
    forces = np.full((4, 3, 3), 0.5)
    s = read(write(tmp_path / "a.h5", {"m": water(forces=forces)}))
    np.testing.assert_allclose(s.forces, 0.5 * units.HARTREE / units.BOHR, rtol=1e-6)


def test_folder_with_the_same_group_name_for_two_molecules(tmp_path):
    write(tmp_path / "a.h5", {"gdb11_s02-0": water()})
    (tmp_path / "sub").mkdir()
    write(tmp_path / "sub" / "b.h5", {"gdb11_s02-0": methane()})
    s = read(tmp_path)
    assert s.system_names() == ["gdb11_s02-0", "gdb11_s02-0 (CH4)"]
    assert s.system.tolist() == [0] * 4 + [1] * 2


def test_forces_that_only_some_groups_have(tmp_path):
    path = write(tmp_path / "a.h5", {"m-0": water(forces=np.zeros((4, 3, 3))), "m-1": water()})
    assert read(path).labelled("forces").tolist() == 4 * [True] + 4 * [False]
    s = read(path, missing_labels="drop")
    assert s.forces is None and s.info["notes"] == ["forces left out: 4 of 8 structures have none"]


@pytest.mark.parametrize(
    "group, words",
    [
        (water(energies=np.zeros(3)), ["/g/m", "energies", "(3,)", "4 conformations"]),
        (water(coordinates=np.zeros((4, 2, 3))), ["/g/m", "(4, 2, 3)", "3 species"]),
        (water(species=np.array([b"O", b"H", b"Xx"])), ["/g/m", "unknown element 'Xx'", "atom 2"]),
        (
            water(species=np.array([[b"O", b"H", b"H"]] * 3 + [[b"H", b"O", b"H"]])),
            ["/g/m", "row 3", "order"],
        ),
        (water(energies=None), ["/g/m", "no 'energies'", "coordinates"]),
        (water(coordinates=None, coordinatesHE=None), ["/g/m", "no 'coordinates'"]),
        (
            water(coordinates=np.zeros((0, 3, 3)), energies=np.zeros(0)),
            ["/g/m", "no conformations", "(0, 3, 3)"],
        ),
        (
            water(species=np.array([], "S1"), coordinates=np.zeros((4, 0, 3))),
            ["/g/m", "species is empty"],
        ),
        (
            water(energies=np.array([0, 1, np.nan, 2])),
            ["/g/m", "energies of row 2", "not a finite"],
        ),
        (
            water(coordinates=np.where(np.arange(36).reshape(4, 3, 3) == 20, np.inf, 1.0)),
            ["/g/m", "coordinates of row 2"],
        ),
        (water(forces=np.zeros((4, 3, 2))), ["/g/m", "forces", "(4, 3, 2)"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, group, words):
    path = write(tmp_path / "bad.h5", {"g/m": group})
    with pytest.raises(DataError) as error:
        read(path, format="ani1")
    assert "\n" not in str(error.value)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_truncated_and_corrupted(tmp_path):
    path = write(tmp_path / "a.h5", {"g/m": water(2000)})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="truncated or damaged") as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)
    with h5py.File(path, "w") as file:
        data = file.create_dataset(
            "g/m/coordinates", data=np.zeros((2000, 3, 3)), compression="gzip", chunks=(500, 3, 3)
        )
        file.create_dataset("g/m/energies", data=np.zeros(2000))
        file.create_dataset("g/m/species", data=np.array([b"O", b"H", b"H"]))
        offset = data.id.get_chunk_info(2).byte_offset
    content = bytearray(path.read_bytes())
    content[offset : offset + 8] = b"\xff" * 8
    path.write_bytes(content)
    with pytest.raises(DataError, match="/g/m/coordinates cannot be read"):
        read(path)


def test_missing_empty_and_unknown(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read(tmp_path / "none.h5")
    (tmp_path / "empty.h5").touch()
    with pytest.raises(DataError, match="empty"):
        read(tmp_path / "empty.h5")
    path = write(tmp_path / "a.h5", {"g": {"apples": np.zeros(3)}})
    with pytest.raises(DataError, match=r"unknown layout .*apples"):
        read(path)
    with pytest.raises(ConfigError, match="no option 'colour'"):
        read(write(tmp_path / "b.h5", {"m": water()}), colour=1)
    with pytest.raises(ConfigError, match="unknown format 'anni'"):
        read(path, format="anni")


def test_real_alkanes(reference_data):
    folder = reference_data / "ani1-alkanes"
    s = read(folder, systems="composition")
    assert len(s) == 97_629 and s.elements == [1, 6]
    assert s.system_names() == [
        "CH4",
        "C2H6",
        "C2H4",
        "C2H2",
        "C3H8",
        "C4H10",
        "C5H12",
        "C6H14",
        "C7H16",
    ]
    # methane at its minimum: −40.52 Hartree; nothing is 50 eV above the lowest of its kind, nothing
    # below it by units
    assert abs(s.energy[s.system == 0].min() / units.HARTREE + 40.5) < 0.1
    assert s.n_atoms.sum() == len(s.pos)


def test_real_forces_agree_with_energy_differences(reference_data):
    s = read(reference_data / "ani1-alkanes" / "nms" / "C2H6_DFT+Force_NMS.h5", dtype=np.float64)
    slope, correlation, n = force_slope(s)
    assert n > 1000 and abs(slope - 1) < 0.02 and correlation > 0.99
