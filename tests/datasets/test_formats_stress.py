"""Stress through the store, HDF5, extended XYZ, ASE and DeePMD, against ASE and by hand."""

from __future__ import annotations

import ase.db
import ase.io
import numpy as np
import pytest
from ase.build import bulk
from ase.calculators.lj import LennardJones
from ase.calculators.singlepoint import SinglePointCalculator
from ase.stress import full_3x3_to_voigt_6_stress, voigt_6_to_full_3x3_stress

from potkit.datasets import formats
from potkit.errors import DataError
from potkit.structures.store import Structures, concatenate


def frames() -> list:
    """Two strained boxes of copper, labelled by Lennard-Jones."""
    out = []
    for seed in (0, 1):
        atoms = bulk("Cu", cubic=True)
        strain = 0.05 * np.random.default_rng(seed).normal(size=(3, 3))
        atoms.set_cell(atoms.cell @ (np.eye(3) + strain), scale_atoms=True)
        atoms.calc = LennardJones(sigma=2.3, epsilon=0.4, rc=5.0)
        results = {
            "energy": atoms.get_potential_energy(),
            "forces": atoms.get_forces(),
            "stress": atoms.get_stress(),
        }
        atoms.calc = SinglePointCalculator(atoms, **results)
        out.append(atoms)
    return out


def stresses(atoms: list) -> np.ndarray:
    return np.array([a.get_stress(voigt=False) for a in atoms])


def test_atoms_and_back():
    atoms = frames()
    s = Structures.from_ase(atoms)
    np.testing.assert_allclose(s.stress, stresses(atoms))
    np.testing.assert_allclose(
        [a.get_stress() for a in s.to_ase()], [a.get_stress() for a in atoms]
    )
    del atoms[1].calc.results["stress"]
    some = Structures.from_ase(atoms)
    assert np.isfinite(some.stress[0]).all() and np.isnan(some.stress[1]).all()
    assert "stress" not in some.to_ase()[1].calc.results
    joined = concatenate([Structures.from_ase([bulk("Cu")]), s])
    assert np.isnan(joined.stress[0]).all()
    np.testing.assert_array_equal(joined.stress[1:], s.stress)
    np.testing.assert_array_equal(joined[[2]].batch().stress[0], s.stress[1].astype(np.float32))


@pytest.mark.parametrize("name", ["store", "store.h5"])
def test_stores(tmp_path, name):
    s = Structures.from_ase(frames())
    plain = Structures.from_ase([bulk("Cu")])
    opened = Structures.open(s.save(tmp_path / name))
    np.testing.assert_array_equal(opened.stress, s.stress)
    assert opened.fingerprint() == s.fingerprint() and "stress" not in plain.arrays()
    assert "stress" in repr(opened)


def test_a_stress_in_part_is_an_error():
    s = Structures.from_ase(frames())
    s.stress[1, 0, 0] = np.nan
    with pytest.raises(DataError, match="stress of structure 1"):
        s.validate()


def test_extxyz_as_ase_writes_it(tmp_path):
    atoms = frames()
    ase.io.write(tmp_path / "a.xyz", atoms, format="extxyz")
    s = formats.read(tmp_path / "a.xyz")
    np.testing.assert_allclose(s.stress, stresses(atoms), atol=1e-7)
    assert s.info["units"]["stress"] == "eV/Å³"


@pytest.mark.parametrize("key", ["stress", "REF_stress", "virial", "virials"])
@pytest.mark.parametrize("voigt", [False, True])
def test_extxyz_keys(tmp_path, key, voigt):
    lines = []
    for atoms in frames():
        value = atoms.get_stress(voigt=False)
        if "virial" in key:
            value = -value * atoms.get_volume()
        value = full_3x3_to_voigt_6_stress(value) if voigt else value.T.ravel()
        cell = " ".join(map(repr, atoms.cell.array.ravel().tolist()))
        label = " ".join(map(repr, value.tolist()))
        lines += [
            "4",
            f'Lattice="{cell}" Properties=species:S:1:pos:R:3 energy=1.0 {key}="{label}"',
        ]
        lines += [f"Cu {x} {y} {z}" for x, y, z in atoms.positions.tolist()]
    path = tmp_path / "a.xyz"
    path.write_text("\n".join(lines) + "\n")
    np.testing.assert_allclose(formats.read(path).stress, stresses(frames()), atol=1e-12)
    path.write_text(path.read_text().replace(f'{key}="', f'{key}="1.0 ', 1))
    with pytest.raises(DataError, match=f"frame 0: {key}=.* is not six or nine"):
        formats.read(path)


def test_a_free_frame_has_none(tmp_path):
    path = tmp_path / "a.xyz"
    nine = "1 0 0 0 1 0 0 0 1"
    head = f'Properties=species:S:1:pos:R:3 energy=-2.0 pbc="F F F" virial="{nine}"'
    path.write_text(f"1\n{head}\nCu 0 0 0\n")
    assert formats.read(path).stress is None


@pytest.mark.parametrize("virial", [False, True])
def test_ase_databases(tmp_path, virial):
    atoms = frames()
    with ase.db.connect(tmp_path / "a.db") as base:
        for one in atoms:
            data = {}
            if virial:
                stress = one.calc.results.pop("stress")
                data["virial"] = -voigt_6_to_full_3x3_stress(stress) * one.get_volume()
            base.write(one, data=data)
    s = formats.read(tmp_path / "a.db")
    np.testing.assert_allclose(s.stress, stresses(frames()), atol=1e-12)


def test_deepmd_virial(tmp_path):
    atoms = frames()
    (tmp_path / "type.raw").write_text("0\n" * 4)
    (tmp_path / "type_map.raw").write_text("Cu\n")
    part = tmp_path / "set.000"
    part.mkdir()
    volume = np.array([a.get_volume() for a in atoms])
    arrays = {
        "coord": np.array([a.positions.ravel() for a in atoms]),
        "box": np.array([a.cell.array.ravel() for a in atoms]),
        "energy": np.array([a.get_potential_energy() for a in atoms]),
        "virial": (-stresses(atoms) * volume[:, None, None]).reshape(2, 9),
    }
    for name, array in arrays.items():
        np.save(part / f"{name}.npy", array)
    np.testing.assert_allclose(formats.read(tmp_path).stress, stresses(atoms), atol=1e-12)
