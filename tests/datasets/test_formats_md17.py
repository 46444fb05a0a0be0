"""MD17, rMD17 and MD22: both sets of names in .npz, both header styles in .xyz, kcal/mol, and what
can be wrong.
"""

from __future__ import annotations

import warnings

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


WATER = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])


def test_an_xyz_that_describes_itself_keeps_cell_charge_and_columns(tmp_path):
    """As sGDML's own converter writes periodic sets; other columns in another order."""
    lattice = 'Lattice="9 0 0 1 8 0 0 0 7"'
    rows = [[*pos, *force] for pos, force in zip(WATER, np.arange(9.0).reshape(3, 3), strict=True)]

    def text(columns: str, order: list[int], more: str = "") -> str:
        atoms = [
            " ".join([symbol, *(str(row[k]) for k in order)])
            for symbol, row in zip("OHH", rows, strict=True)
        ]
        return "\n".join(["3", f'{lattice} Energy="-47700.0"{more}{columns}', *atoms]) + "\n"

    plain = [0, 1, 2, 3, 4, 5]
    swapped = [3, 4, 5, 0, 1, 2]
    files = {
        "described": text(" Properties=species:S:1:pos:R:3:force:R:3", plain, " charge=-1"),
        "swapped": text(" Properties=species:S:1:force:R:3:pos:R:3", swapped, " charge=-1"),
        "usual": text("", plain, " charge=-1"),
    }
    for name, content in files.items():
        path = tmp_path / f"{name}.xyz"
        path.write_text(content)
        assert guess(path) == "md17"
        s = read(path, dtype=np.float64)
        np.testing.assert_array_equal(s.pos, WATER)
        np.testing.assert_allclose(s.forces, np.arange(9.0).reshape(3, 3) * KCAL, rtol=1e-9)
        np.testing.assert_allclose(s.energy, [-47700.0 * KCAL], rtol=1e-9)
        np.testing.assert_array_equal(s.cell[0], [[9, 0, 0], [1, 8, 0], [0, 0, 7]])
        assert s.pbc.all() and s.charge.tolist() == [-1] and s.system_names() == [name]
    path.write_text(text("", plain).replace("-47700.0", "-76.3"))
    with pytest.raises(DataError, match=r"frame 0: Energy -76\.3 is the size of Hartree"):
        read(path, format="md17")


def test_a_number_alone_is_an_energy_only_by_its_size(tmp_path):
    """The steps of a trajectory, and its velocities, are neither energies nor forces."""
    from potkit.datasets.reading import report

    path = tmp_path / "trajectory.xyz"
    frame = "3\n{}\nO 0 0 0 1 2 3\nH 0.96 0 0 4 5 6\nH -0.24 0.93 0 7 8 9\n"
    path.write_text(frame.format(0) + frame.format(10))
    assert guess(path) == "extxyz"
    s = read(path)
    assert len(s) == 2 and s.energy is None and s.forces is None
    assert "not read: unnamed (column of three reals per atom)" in report(s)
    assert read(path, format="md17", energy_unit="kcal/mol").energy is not None
    path.write_text(frame.format("-47700.0"))
    assert guess(path) == "md17" and read(path).forces is not None
    path.write_text(frame.format("nan"))
    with pytest.raises(DataError, match="energy=nan is not a finite number"):
        read(path)


def test_energies_of_no_known_size_are_doubted(tmp_path):
    """Water by pseudopotentials in eV, in a file that names no unit."""
    from potkit.datasets.reading import UnitWarning

    path = tmp_path / "w.npz"
    arrays = {"R": WATER[None], "z": np.array([8, 1, 1]), "E": [-14.2], "F": np.zeros((1, 3, 3))}
    np.savez(path, **arrays)
    with pytest.warns(UnitWarning, match=r"w.npz names no unit: taken for kcal/mol, .*\(-14.2\)"):
        s = read(path)
    assert "energy_unit=eV" in "\n".join(s.info["notes"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert read(path, energy_unit="eV").energy.tolist() == [-14.2]
        np.savez(path, **arrays, e_unit=np.array("eV"))
        assert read(path).energy.tolist() == [-14.2]
        np.savez(path, **(arrays | {"E": [-47700.0]}))
        assert "notes" not in read(path).info
