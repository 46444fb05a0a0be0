"""The extended XYZ reader: known values, the many spellings, one-line errors, agreement with ASE,
and the real files.
"""

from __future__ import annotations

import numpy as np
import pytest

from potkit import units
from potkit.datasets import read
from potkit.errors import ConfigError, DataError

WATER = """3
Properties=species:S:1:pos:R:3:forces:R:3 energy=-2070.5 charge=-1 pbc="F F F" \
virial="1 2 3 4 5 6 7 8 9"
O 0.0 0.0 0.0 0.1 -0.2 0.3
H 0.96 0.0 0.0 0.0 0.0 0.0
H -0.24 0.93 0.0 -0.1 0.2 -0.3
"""
BOX = """2
Lattice="5.0 0 0 0 6.0 0 0.5 0 7.0" Properties=species:S:1:pos:R:3:mass:R:1:force:R:3 Energy=-3.25
Na 0 0 0 23.0 1 2 3
Cl 2.5 0 0 35.5 -1 -2 -3
"""


def test_known_values(tmp_path):
    path = tmp_path / "no-suffix"
    path.write_text(WATER + BOX + "\n")
    s = read(path, dtype=np.float64)
    assert len(s) == 2 and s.z.tolist() == [8, 1, 1, 11, 17]
    assert s.system_names() == ["H2O", "ClNa"] and s.charge.tolist() == [-1, 0]
    np.testing.assert_array_equal(s.energy, [-2070.5, -3.25])
    np.testing.assert_array_equal(
        s.forces[[0, 2, 4]], [[0.1, -0.2, 0.3], [-0.1, 0.2, -0.3], [-1, -2, -3]]
    )
    np.testing.assert_array_equal(s.pos[1:3], [[0.96, 0, 0], [-0.24, 0.93, 0]])
    assert s.pbc.tolist() == [[False] * 3, [True] * 3]  # a Lattice without pbc is periodic
    np.testing.assert_array_equal(s.cell[1], [[5, 0, 0], [0, 6, 0], [0.5, 0, 7]])


@pytest.mark.parametrize("before", ["\n", " \n\n", "\ufeff", "\ufeff\n"])
def test_blank_lines_and_a_mark_before_the_first_frame(tmp_path, before):
    """Through ASE, labels under other names and units would be lost."""
    from potkit.datasets.formats import guess

    path = tmp_path / "a.xyz"
    path.write_text(before + WATER + BOX, encoding="utf-8")
    assert guess(path) == "extxyz"
    s = read(path)
    assert len(s) == 2 and s.energy.tolist() == [-2070.5, -3.25]


def test_a_box_that_does_not_repeat_is_dropped(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(WATER.replace('pbc="F', 'Lattice="9 0 0 0 9 0 0 0 9" pbc="F'))
    s = read(path)
    assert s.cell is None and not s.pbc.any()


def test_agrees_with_ase(tmp_path):
    """Written by ASE in both of its ways: labels in a calculator, and labels as plain info and
    arrays.
    """
    from ase import Atoms
    from ase.calculators.singlepoint import SinglePointCalculator
    from ase.io import write

    rng, frames = np.random.default_rng(0), []
    for i in range(30):
        n = int(rng.integers(1, 9))
        atoms = Atoms(
            rng.choice(["H", "C", "Br", "U"], n),
            rng.normal(size=(n, 3)) * 5,
            cell=[9, 10, 11],
            pbc=[True, i % 2 == 0, True],
        )
        energy = float(rng.normal())
        forces = rng.normal(size=(n, 3))
        if i % 3:
            atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        else:
            atoms.info["energy"] = energy
            atoms.set_array("forces", forces)
        frames.append((atoms, energy, forces))
    path = tmp_path / "ase.xyz"
    write(path, [a for a, _, _ in frames], format="extxyz")
    s = read(path, dtype=np.float64, isolated_atoms="keep")
    assert len(s) == 30
    for i, (atoms, energy, forces) in enumerate(frames):
        one = s[i]
        assert one.z.tolist() == atoms.numbers.tolist()
        assert one.energy[0] == pytest.approx(energy, abs=1e-12)
        np.testing.assert_allclose(one.pos, atoms.positions, atol=1e-8)
        np.testing.assert_allclose(one.forces, forces, atol=1e-8)
        np.testing.assert_allclose(one.cell[0], atoms.cell.array, atol=1e-8)
        assert one.pbc[0].tolist() == atoms.pbc.tolist()


def test_many_frames_cross_blocks(tmp_path, monkeypatch):
    from potkit.datasets.formats import extxyz

    path = tmp_path / "a.xyz"
    path.write_text((WATER + BOX) * 40 + WATER * 40)
    whole = read(path)
    monkeypatch.setattr(extxyz, "BLOCK", 200)
    parts = read(path)
    assert len(whole) == 120
    for name, array in whole.arrays().items():
        np.testing.assert_array_equal(array, getattr(parts, name))


def test_keys_and_units_can_be_forced(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(
        WATER.replace("energy=-2070.5", "energy=-2070.5 mp2=-76.1").replace("forces:R:3", "f2:R:3")
    )
    s = read(
        path,
        energy_key="mp2",
        energy_unit="Hartree",
        forces_key="f2",
        forces_unit="Hartree/Bohr",
        dtype=np.float64,
    )
    assert s.energy[0] == pytest.approx(-76.1 * units.HARTREE, rel=1e-14)
    np.testing.assert_allclose(s.forces[0], np.array([0.1, -0.2, 0.3]) * units.HARTREE / units.BOHR)


def test_energy_may_be_missing_only_when_allowed(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(WATER + WATER.replace("energy=-2070.5", ""))
    with pytest.raises(DataError, match="frame 1: has no 'energy'"):
        read(path, require=("energy",))
    s = read(path, missing_labels="drop")
    assert s.energy is None
    assert s.forces is not None
    assert "energy left out: 1 of 2" in s.info["notes"][0]
    with pytest.raises(DataError, match="frame 0: has no 'forces'"):
        path.write_text(WATER.replace("forces:R:3", "junk:R:3"))
        read(path, require=("energy", "forces"))
    with pytest.raises(ConfigError, match="require"):
        read(path, require=("charges",))


@pytest.mark.parametrize(
    "old, new, words",
    [
        ("H 0.96", "Hx 0.96", ["frame 1", "unknown element 'Hx'", "atom 1"]),
        ("-0.24 0.93", "nan 0.93", ["frame 1", "position of atom 2", "not a finite"]),
        ("0.1 -0.2 0.3", "0.1 inf 0.3", ["frame 1", "force of atom 0"]),
        ("-0.24 0.93", "-0.24 zero", ["frame 1, atom 2", "column 3", "'zero'"]),
        (
            "H 0.96 0.0 0.0 0.0",
            "H 0.96 0.0 0.0",
            ["frame 1, atom 1", "expected 7 columns, found 6"],
        ),
        ("0.3\nH 0.96", "0.3 9\nH 0.96", ["frame 1, atom 0", "expected 7 columns, found 8"]),
        ("energy=-2070.5", "energy=nan", ["frame 1", "energy=nan"]),
        ("energy=-2070.5", "energy=low", ["frame 1", "energy='low'"]),
        ("energy=-2070.5", "energy=-47700.0", ["frame 1", "kcal/mol", "energy_unit="]),
        ("H -0.24 0.93 0.0 -0.1 0.2 -0.3\n", "", ["frame 1", "ends after 2 of 3 atoms"]),
        ("3\nProp", "three\nProp", ["frame 1", "number of atoms", "'three'"]),
        ('pbc="F F F"', 'pbc="T T T"', ["frame 1", "no Lattice"]),
        ('pbc="F F F"', 'Lattice="1 2 3"', ["frame 1", "not nine numbers"]),
        ("pos:R:3", "pos:R:2", ["frame 1", "no pos:R:3"]),
        ("species:S:1:", "", ["frame 1", "neither species nor Z"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, words):
    path = tmp_path / "bad.xyz"
    assert old in WATER
    path.write_text(WATER + WATER.replace(old, new, 1))
    with pytest.raises(DataError) as error:
        read(path)
    assert "\n" not in str(error.value)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_folder_of_files(tmp_path):
    (tmp_path / "b.xyz").write_text(BOX)
    (tmp_path / "a.xyz").write_text(WATER)
    (tmp_path / "README.md").write_text("not data")
    s = read(tmp_path)
    assert len(s) == 2 and s.z[:3].tolist() == [8, 1, 1]
    (tmp_path / "junk").write_bytes(b"\x00\x01")
    with pytest.raises(DataError, match=r"junk: content is in no known format"):
        read(tmp_path)


def test_real_files(reference_data):
    bpa = read(reference_data / "3bpa" / "train_300K.xyz")
    assert len(bpa) == 500 and set(bpa.n_atoms) == {27} and bpa.cell is None
    assert bpa.energy[0] == pytest.approx(-17660.461737861464, abs=1e-9)
    assert np.abs(bpa.forces).max() < 20 and 0.5 < np.sqrt(np.mean(bpa.forces**2)) < 2  # eV/Å
    peptides = read(reference_data / "spice-dipeptides")
    assert len(peptides) == 600 and peptides.forces is not None
    per_atom = peptides.energy / peptides.n_atoms
    assert -4.7 < per_atom.min() < per_atom.max() < -4.2  # eV, atomisation energies


def test_real_file_agrees_with_ase(reference_data):
    from ase.io import read as ase_read

    path = reference_data / "spice-dipeptides" / "spice-dipep-dipolar_val.xyz"
    s = read(path, dtype=np.float64)
    frames = ase_read(path, ":")
    assert len(s) == len(frames)
    np.testing.assert_array_equal(s.z, np.concatenate([f.numbers for f in frames]))
    np.testing.assert_allclose(s.pos, np.concatenate([f.positions for f in frames]), atol=1e-12)
    np.testing.assert_allclose(
        s.forces, np.concatenate([f.arrays["force"] for f in frames]), atol=1e-12
    )
    np.testing.assert_allclose(s.energy, [f.get_potential_energy() for f in frames], atol=1e-9)
