"""ANI-1x and SPICE readers on files written in the public layouts with values known in advance,
and on damaged ones.
"""

from __future__ import annotations

from pathlib import Path

import ase.io
import h5py
import numpy as np
import pytest

from potkit import units
from potkit.datasets import read
from potkit.datasets.formats import guess
from potkit.datasets.formats.spice import charge_of, formal_charges_of
from potkit.errors import ConfigError, DataError

rng = np.random.default_rng(0)
POS = rng.normal(size=(4, 3, 3)).astype(np.float32)
FORCES = rng.normal(size=(4, 3, 3)).astype(np.float32)


def write(path: Path, groups: dict[str, dict]) -> Path:
    with h5py.File(path, "w") as file:
        for name, arrays in groups.items():
            for key, value in arrays.items():
                if value is not None:
                    value, unit = value if isinstance(value, tuple) else (value, None)
                    data = file.create_dataset(f"{name}/{key}", data=value)
                    if unit:
                        data.attrs["units"] = unit
    return path


def ani1x(**changes) -> dict:
    energy = np.array([-76.4, -76.3, np.nan, -76.2])
    forces = FORCES.copy()
    forces[1, 2, 0] = np.nan
    return {
        "atomic_numbers": np.array([8, 1, 1], np.uint8),
        "coordinates": POS,
        "wb97x_dz.energy": energy,
        "wb97x_dz.forces": forces,
        "wb97x_dz.dipole": np.full((4, 3), np.nan),
        "ccsd(t)_cbs.energy": np.array([np.nan, np.nan, -76.35, np.nan]),
    } | changes


def test_ani1x_known_values(tmp_path):
    path = write(
        tmp_path / "x",
        {
            "H2O1": ani1x(),
            "C1H4": {
                "atomic_numbers": np.array([6, 1, 1, 1, 1], np.uint8),
                "coordinates": np.ones((2, 5, 3), np.float32),
                "wb97x_dz.energy": np.array([-40.5, -40.4]),
                "wb97x_dz.forces": np.zeros((2, 5, 3), np.float32),
            },
        },
    )
    assert guess(path) == "ani1x"
    s = read(path)
    assert s.system_names() == ["C1H4", "H2O1"] and s.system.tolist() == [0, 0, 1, 1]
    np.testing.assert_allclose(
        s.energy, np.array([-40.5, -40.4, -76.4, -76.2]) * units.HARTREE, rtol=1e-15
    )
    # Hartree/Å, not /Bohr
    np.testing.assert_allclose(
        s.forces[10:].reshape(2, 3, 3), FORCES[[0, 3]] * units.HARTREE, rtol=1e-6
    )
    np.testing.assert_array_equal(s.pos[10:].reshape(2, 3, 3), POS[[0, 3]])
    assert s.info["notes"] == ["2 conformations without wb97x_dz energy and forces dropped"]
    ccsd = read(path, level="ccsd(t)_cbs")
    assert len(ccsd) == 1
    assert ccsd.forces is None
    assert ccsd.energy[0] == pytest.approx(-76.35 * units.HARTREE)
    assert "5 conformations" in ccsd.info["notes"][0]
    assert len(read(path, forces=False)) == 5
    with pytest.raises(ConfigError, match=r"no level 'b3lyp' .*ccsd.*wb97x_dz"):
        read(path, level="b3lyp")


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"wb97x_dz.energy": np.zeros(3)}, ["wb97x_dz.energy", "(3,)"]),
        ({"wb97x_dz.forces": np.zeros((4, 2, 3))}, ["wb97x_dz.forces", "(4, 2, 3)"]),
        ({"coordinates": np.zeros((4, 2, 3))}, ["coordinates", "(4, 2, 3)", "3 atomic_numbers"]),
        ({"coordinates": np.zeros((0, 3, 3))}, ["no conformations"]),
        (
            {"coordinates": np.where(np.arange(36).reshape(4, 3, 3) == 30, np.nan, 0)},
            ["coordinates of row 3"],
        ),
        ({"atomic_numbers": np.array([8, 1, 200])}, ["unknown element", "200", "atom 2"]),
        ({"atomic_numbers": None}, ["no 'atomic_numbers'"]),
    ],
)
def test_ani1x_errors(tmp_path, changes, words):
    path = write(tmp_path / "x.h5", {"H2O1": ani1x(**changes)})
    with pytest.raises(DataError) as error:
        read(path, format="ani1x")
    assert "\n" not in str(error.value)
    for word in [str(path), "/H2O1", *words]:
        assert word in str(error.value)


def spice(**changes) -> dict:
    return {
        "subset": np.array([b"SPICE Dipeptides Single Points Dataset v1.2"]),
        "smiles": np.array([b"[H:2][O-:1]"]),
        "atomic_numbers": np.array([8, 1], np.int16),
        "conformations": (POS[:, :2], "bohr"),
        "formation_energy": (np.array([-0.1, -0.2, -0.3, -0.4]), "hartree"),
        "dft_total_energy": (np.array([-75.1, -75.2, -75.3, -75.4]), "hartree"),
        "dft_total_gradient": (FORCES[:, :2], "hartree/bohr"),
        "scf_dipole": np.zeros((4, 3)),
    } | changes


def test_spice_known_values(tmp_path):
    path = write(
        tmp_path / "SPICE",
        {
            "water": spice(),
            "ion": spice(
                subset=np.array([b"SPICE Ion Pairs Single Points Dataset v1.1"]),
                atomic_numbers=np.array([11, 35], np.int16),
                smiles=np.array([b"[Na+:1].[Br-:2]"]),
            ),
        },
    )
    assert guess(path) == "spice"
    s = read(path, dtype=np.float64)
    assert s.system_names() == ["ion", "water"] and s.charge.tolist() == [0] * 4 + [-1] * 4
    assert s.z.reshape(8, 2)[[0, 4]].tolist() == [[11, 35], [8, 1]]
    np.testing.assert_allclose(s.energy[4:], np.array([-0.1, -0.2, -0.3, -0.4]) * units.HARTREE)
    np.testing.assert_allclose(s.pos.reshape(8, 2, 3)[4:], POS[:, :2] * units.BOHR, rtol=1e-7)
    np.testing.assert_allclose(
        s.forces.reshape(8, 2, 3)[4:], -FORCES[:, :2] * units.HARTREE / units.BOHR, rtol=1e-6
    )  # a gradient
    assert read(path, energy="total").energy[0] == pytest.approx(-75.1 * units.HARTREE)
    assert len(read(path, subsets=["dipeptides"])) == 4
    with pytest.raises(ConfigError, match=r"no subset matches .*Ion Pairs"):
        read(path, subsets=["DES370K"])
    limit = np.sort(np.abs(s.forces).reshape(8, -1).max(1))[3]
    few = read(path, max_force=float(limit) + 1e-4)
    assert len(few) == 4 and "4 conformations" in few.info["notes"][0]


def test_spice_version_2_spelling_units_and_charges(tmp_path):
    """Names with blanks, lengths in Å said by the attribute, charge from MBIS."""
    group = spice(
        smiles=None,
        formation_energy=None,
        dft_total_energy=None,
        conformations=(POS[:, :2], "angstrom"),
    )
    group |= {
        "formation energy": (np.full(4, -0.1), "hartree"),
        "mbis_charges": np.tile([[0.4], [0.61]], (4, 1, 1)),
    }
    s = read(write(tmp_path / "s2.hdf5", {"m": group}), dtype=np.float64)
    np.testing.assert_allclose(s.pos.reshape(4, 2, 3), POS[:, :2], rtol=1e-7)
    assert s.charge.tolist() == [1] * 4


def test_spice_skips_groups_without_conformations(tmp_path):
    path = write(tmp_path / "s.hdf5", {"good": spice(), "hollow": spice(conformations=np.zeros(0))})
    s = read(path)
    assert len(s) == 4 and "/hollow skipped" in s.info["notes"][0]


# glycine's zwitterion, its atoms numbered in another order than they are written
ZWITTERION = "[H:8][N+:1]([H:9])([H:10])[C:2]([H:6])([H:7])[C:3](=[O:4])[O-:5]"
ZWITTERION_Z = np.array([7, 6, 6, 8, 8, 1, 1, 1, 1, 1], np.int16)


def zwitterion(**changes) -> dict:
    pos = np.random.default_rng(1).normal(size=(2, 10, 3))
    return {
        "subset": np.array([b"SPICE Amino Acid"]),
        "smiles": np.array([ZWITTERION.encode()]),
        "atomic_numbers": ZWITTERION_Z,
        "conformations": (pos, "bohr"),
        "formation_energy": (np.array([-1.0, -1.1]), "hartree"),
    } | changes


def test_spice_formal_charges_stand_at_the_atoms_that_the_smiles_numbers(tmp_path):
    pytest.importorskip("rdkit")
    s = read(write(tmp_path / "s.hdf5", {"a": zwitterion(), "b": spice()}))
    assert s.z[:10].tolist() == ZWITTERION_Z.tolist()
    assert s.formal_charge.dtype == np.int8
    assert s.formal_charge.tolist() == 2 * [1, 0, 0, 0, -1, 0, 0, 0, 0, 0] + 4 * [-1, 0]
    assert s.charge.tolist() == [0, 0, -1, -1, -1, -1]
    sums = np.add.reduceat(s.formal_charge.astype(int), s.ptr[:-1])
    assert sums.tolist() == s.charge.tolist()
    assert not any("formal" in note for note in s.info.get("notes", [])) and "faults" not in s.info
    bare = read(tmp_path / "s.hdf5", formal_charges=False)
    assert bare.formal_charge is None and bare.charge.tolist() == s.charge.tolist()


@pytest.mark.parametrize("smiles, note", [(None, "formal_charge left out"), ("[O-]", "numbered")])
def test_spice_formal_charges_are_left_out_where_a_group_does_not_say_them(tmp_path, smiles, note):
    pytest.importorskip("rdkit")
    one = spice(smiles=None if smiles is None else np.array([smiles.encode()]))
    s = read(write(tmp_path / "s.hdf5", {"a": zwitterion(), "b": one}))
    assert s.formal_charge is None and any(note in said for said in s.info["notes"])


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"atomic_numbers": ZWITTERION_Z[::-1].copy()}, ["atom 0", "H", "N"]),
        ({"smiles": np.array([ZWITTERION.replace(":10]", ":9]").encode()])}, ["1 to 10"]),
        ({"smiles": np.array([b"[H:1"])}, ["cannot read"]),
        ({"mbis_charges": np.full((2, 10, 1), 0.1)}, ["+0", "+1"]),
    ],
)
def test_spice_a_smiles_that_does_not_fit_is_named(tmp_path, changes, words):
    pytest.importorskip("rdkit")
    path = write(tmp_path / "s.hdf5", {"gly": zwitterion(**changes)})
    with pytest.raises(DataError) as error:
        read(path)
    for word in [str(path), "/gly", *words]:
        assert word in str(error.value)
    assert read(path, formal_charges=False).formal_charge is None


def test_spice_without_rdkit_says_what_to_do(tmp_path, monkeypatch):
    path = write(tmp_path / "s.hdf5", {"gly": zwitterion()})
    monkeypatch.setattr("potkit.datasets.formats.spice.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install rdkit.*formal_charges=False"):
        read(path)
    assert len(read(path, formal_charges=False)) == 2


def test_the_fault_smiles_order_puts_elements_on_wrong_atoms(tmp_path):
    """RDKit keeps the heavy atoms in the order they are written and adds the hydrogens last: here
    coordinates of a hydrogen get nitrogen, and so on; the composition stays.
    """
    pytest.importorskip("rdkit")
    # written with a hydrogen first, numbered in the order it is written
    smiles = "[H:1][N+:2]([H:3])([H:4])[C:5]([H:6])([H:7])[C:8](=[O:9])[O-:10]"
    z = np.array([1, 7, 1, 1, 6, 1, 1, 6, 8, 8], np.int16)
    group = zwitterion(smiles=np.array([smiles.encode()]), atomic_numbers=z)
    path = write(tmp_path / "s.hdf5", {"gly": group})
    right, wrong = read(path), read(path, faults=("smiles-order",))
    assert right.z[:10].tolist() == z.tolist()
    assert right.formal_charge[:10].tolist() == [0, 1, 0, 0, 0, 0, 0, 0, 0, -1]
    assert wrong.z[:10].tolist() == [7, 6, 6, 8, 8, 1, 1, 1, 1, 1]
    assert wrong.formal_charge[:10].tolist() == [1, 0, 0, 0, -1, 0, 0, 0, 0, 0]
    assert int((right.z[:10] != wrong.z[:10]).sum()) == 8
    np.testing.assert_array_equal(right.pos, wrong.pos)
    np.testing.assert_array_equal(right.energy, wrong.energy)
    assert wrong.info["faults"] == ["smiles-order"]
    assert sorted(right.z) == sorted(wrong.z) and right.fingerprint() != wrong.fingerprint()
    with pytest.raises(ConfigError, match="smiles-order"):
        read(path, faults=("rdkit-order",))


def test_real_smiles_of_spice_agree_with_their_atoms_and_not_with_rdkits_order(reference_data):
    """Nine of ten molecules of the public subsets have wrong elements by the published fault."""
    pytest.importorskip("rdkit")
    from potkit.datasets.formats.spice import _in_smiles_order

    wrong = []
    for file in ("spice_des370k_monomers.xyz", "spice_dipeptides.xyz", "spice_pubchem.xyz"):
        for frame in ase.io.read(reference_data / "spice-subsets" / file, ":"):
            if "smiles" not in frame.info:
                continue
            z = frame.numbers.astype(np.uint8)
            formal = formal_charges_of(frame.info["smiles"], z, file)  # raises where they disagree
            assert int(formal.sum()) == int(frame.info["total_charge"])
            elements, _ = _in_smiles_order(frame.info["smiles"], z, formal, file)
            wrong.append((elements != z).any())
    assert len(wrong) > 100 and np.mean(wrong) > 0.9, (len(wrong), np.mean(wrong))


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"formation_energy": None}, ["has no 'formation_energy'"]),
        ({"formation_energy": np.zeros(5)}, ["formation_energy", "(5,)"]),
        ({"dft_total_gradient": np.zeros((4, 3, 3))}, ["dft_total_gradient", "(4, 3, 3)"]),
        ({"conformations": (POS, "bohr")}, ["conformations have shape (4, 3, 3)"]),
        ({"conformations": (POS[:, :2], "furlong")}, ["furlong"]),
        (
            {"dft_total_energy": np.zeros(4), "formation_energy": np.array([0, np.nan, 0, 0])},
            ["formation_energy of row 1"],
        ),
        ({"mbis_charges": np.full((4, 2, 1), 0.25)}, ["mbis_charges", "0.50"]),
    ],
)
def test_spice_errors(tmp_path, changes, words):
    path = write(tmp_path / "s.hdf5", {"water": spice(**changes)})
    with pytest.raises(DataError) as error:
        read(path)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    "smiles, charge",
    [
        ("CCO", 0),
        ("[Na+:1]", 1),
        ("[Ca+2]", 2),
        ("[Mg++]", 2),
        ("[O-:1][H:2]", -1),
        ("[N+:1]([H:2])([H])([H])[C:3][C](=O)[O-:12]", 0),
        ("[C@@H:3](N)C", 0),
        ("[13C-2:4]", -2),
    ],
)
def test_charge_of_smiles(smiles, charge):
    assert charge_of(smiles) == charge


def test_packed_store_is_read_too(tmp_path):
    s = read(write(tmp_path / "s.hdf5", {"water": spice()}))
    for name in ("store", "store.h5"):
        s.save(tmp_path / name)
        again = read(tmp_path / name)
        assert guess(tmp_path / name) == "potkit" and again.fingerprint() == s.fingerprint()
