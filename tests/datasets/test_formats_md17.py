"""MD17, rMD17 and MD22: both sets of names in .npz, both header styles in .xyz, kcal/mol, and what
can be wrong.
"""

from __future__ import annotations

import numpy as np
import pytest

from potkit.datasets import read
from potkit.datasets.formats import guess
from potkit.errors import DataError

# eV; from Faraday's constant, so that dividing instead of multiplying (×532) shows
KCAL = 4184.0 / 96485.33212331
Z = np.array([6, 6, 8, 1, 1, 1, 1, 1, 1], np.uint8)  # ethanol
rng = np.random.default_rng(0)
POS = rng.normal(size=(5, 9, 3))
FORCES = rng.normal(size=(5, 9, 3)) * 30
ENERGY = -97208.0 + np.arange(5)  # kcal/mol, the size ethanol has


def sgdml(**changes) -> dict:
    return {
        "R": POS,
        "E": ENERGY[:, None],
        "F": FORCES,
        "z": Z,
        "name": np.array("ethanol"),
        "type": np.array("d"),
        "theory": np.array("unknown"),
    } | changes


def revised(**changes) -> dict:
    return {
        "nuclear_charges": Z,
        "coords": POS,
        "energies": ENERGY,
        "forces": FORCES,
        "old_indices": np.arange(5),
        "old_energies": ENERGY + 1,
        "old_forces": FORCES * 2,
    } | changes


def check(s) -> None:
    assert len(s) == 5 and s.z.reshape(5, 9).tolist() == [Z.tolist()] * 5
    np.testing.assert_allclose(s.energy, ENERGY * KCAL, rtol=1e-9)
    np.testing.assert_allclose(s.forces.reshape(5, 9, 3), FORCES * KCAL, rtol=1e-9)
    np.testing.assert_allclose(s.pos.reshape(5, 9, 3), POS, rtol=1e-12)
    assert -4300 < s.energy[0] < -4200  # eV: ethanol has about −4215


@pytest.mark.parametrize(
    "arrays, name", [(sgdml(), "ethanol"), (revised(), "ethanol"), (sgdml(E=ENERGY), "ethanol")]
)
def test_npz(tmp_path, arrays, name):
    path = tmp_path / "rmd17_ethanol.npz"
    np.savez(path, **arrays)
    s = read(path, dtype=np.float64)
    assert guess(path) == "md17" and s.system_names() == [name]
    check(s)


def test_units_named_in_the_file_are_believed(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(
        path,
        **sgdml(E=ENERGY * KCAL, F=FORCES * KCAL, e_unit=np.array("eV"), r_unit=np.array("Ang")),
    )
    check(read(path, dtype=np.float64))


def test_old_labels(tmp_path):
    path = tmp_path / "rmd17_ethanol.npz"
    np.savez_compressed(path, **revised())
    s = read(path, old=True, dtype=np.float64)
    np.testing.assert_allclose(s.energy, (ENERGY + 1) * KCAL, rtol=1e-9)
    np.savez(path, **sgdml())
    with pytest.raises(DataError, match="no old_energies"):
        read(path, old=True)


@pytest.mark.parametrize("style", ["bare", "Energy=", 'Energy="'])
def test_xyz(tmp_path, style):
    symbols = {6: "C", 8: "O", 1: "H"}
    lines = []
    for energy, pos, forces in zip(ENERGY, POS, FORCES, strict=True):
        comments = {
            "bare": f"{energy:.8f}",
            "Energy=": f"Energy={energy:.8f} Properties=species:S:1:pos:R:3:forces:R:3",
            'Energy="': f'Energy="{energy:.8f}" Properties=species:S:1:pos:R:3:forces:R:3',
        }
        lines += ["9", comments[style]]
        for z, row in zip(Z.tolist(), np.hstack([pos, forces]), strict=True):
            lines.append(" ".join([symbols[z], *(f"{value:.14f}" for value in row)]))
    path = tmp_path / "md22_thing.xyz"
    path.write_text("\n".join(lines) + "\n")
    assert guess(path) == "md17"
    s = read(path, dtype=np.float64)
    check(s)
    assert s.system_names() == ["thing"]
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(DataError, match="frame 4: the file ends after 8 of 9 atoms"):
        read(path)


def test_the_same_header_in_electronvolt_is_extended_xyz(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text("1\nEnergy=-13.6 Properties=species:S:1:pos:R:3:forces:R:3\nH 0 0 0 0 0 0\n")
    assert guess(path) == "extxyz" and read(path).energy[0] == -13.6


def test_folder_of_molecules(tmp_path):
    np.savez(tmp_path / "rmd17_a.npz", **revised())
    np.savez(
        tmp_path / "rmd17_b.npz",
        **revised(nuclear_charges=Z[:3], coords=POS[:, :3], forces=FORCES[:, :3]),
    )
    s = read(tmp_path)
    assert s.system_names() == ["a", "b"] and s.n_atoms.tolist() == [9] * 5 + [3] * 5


def test_labels_may_be_missing(tmp_path):
    np.savez(tmp_path / "e.npz", R=POS, z=Z, E=ENERGY)
    np.savez(tmp_path / "r.npz", R=POS, z=Z)
    energies = read(tmp_path / "e.npz")
    assert energies.forces is None and len(energies.energy) == 5
    assert read(tmp_path / "r.npz").energy is None


@pytest.mark.parametrize(
    "arrays, words",
    [
        (sgdml(E=ENERGY[:4]), ["E has shape (4,)", "5 frames"]),
        (sgdml(F=FORCES[:, :8]), ["F has shape (5, 8, 3)"]),
        (sgdml(R=POS[:, :8]), ["R has shape (5, 8, 3)", "9 atomic numbers"]),
        (sgdml(R=np.zeros((0, 9, 3))), ["holds no frames"]),
        (
            sgdml(z=np.array([6, 0, 8, 1, 1, 1, 1, 1, 1])),
            ["unknown element", "atomic number 0", "atom 1"],
        ),
        (
            sgdml(F=np.where(np.arange(135).reshape(5, 9, 3) == 100, np.nan, FORCES)),
            ["F of frame 3"],
        ),
        (revised(energies=np.array([1, 2, np.inf, 4, 5])), ["energies of frame 2"]),
        ({"R": POS, "E": ENERGY}, ["has no 'z'"]),
        ({"a": POS}, ["nuclear_charges", "it has: a"]),
    ],
)
def test_errors(tmp_path, arrays, words):
    path = tmp_path / "x.npz"
    np.savez(path, **arrays)
    with pytest.raises(DataError) as error:
        read(path, format="md17")
    assert "\n" not in str(error.value)
    for word in [str(path), *words]:
        assert word in str(error.value)


def test_truncated_npz(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, **sgdml())
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(DataError, match="truncated or damaged"):
        read(path, format="md17")


def test_an_xyz_in_electronvolt_is_not_taken_for_kcal(tmp_path):
    """Ethanol's energy in eV as the only number of the comment."""
    path = tmp_path / "ethanol.xyz"
    rows = [
        f"{'CCOHHHHHH'[k]} {' '.join(map(str, [*POS[0, k], *FORCES[0, k]]))}" for k in range(len(Z))
    ]
    path.write_text(f"9\n{ENERGY[0] * KCAL}\n" + "\n".join(rows) + "\n")
    with pytest.raises(DataError, match=r"frame 0: energy -421\d.* the size of eV, not kcal/mol"):
        read(path)
    assert read(path, energy_unit="ev").energy[0] == pytest.approx(ENERGY[0] * KCAL)
