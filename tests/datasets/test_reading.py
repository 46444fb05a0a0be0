"""Reading what people have: names, units, no labels, some labels, isolated atoms, ASE's formats."""

import gzip

import h5py
import numpy as np
import pytest
from ase import Atoms, units
from ase.build import bulk, molecule
from ase.calculators.emt import EMT
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write

import potkit
from potkit.datasets import checks, duplicates, registry
from potkit.datasets.formats import label_names
from potkit.datasets.formats.common import unit_of_totals
from potkit.datasets.reading import report
from potkit.errors import ConfigError, DataError
from potkit.structures.store import Structures, concatenate

# --- names -------------------------------------------------------------------------------------


def frame(comment: str, columns: str = "", values: str = "") -> str:
    return (
        f'2\n{comment} pbc="F F F" Properties=species:S:1:pos:R:3{columns}\n'
        f"H 0 0 0 {values}\nH 0 0 0.75 {values}\n"
    )


@pytest.mark.parametrize(
    ("energy", "forces"),
    [
        ("energy", "forces"),
        ("REF_energy", "REF_forces"),
        ("DFT_energy", "DFT_forces"),
        ("dft_energy", "dft_force"),
        ("energy_REF", "forces_REF"),
        ("MACE_energy", "MACE_forces"),
        ("TotEnergy", "force"),
        ("free_energy", "forces"),
        ("energy_xtb", "forces_xtb"),
        ("energy", "dft_force"),
    ],
)
def test_labels_are_found_under_the_names_of_others(tmp_path, energy, forces):
    path = tmp_path / "a.xyz"
    path.write_text(frame(f"{energy}=-31.7", f":{forces}:R:3", "0.1 0.2 0.3"))
    s = potkit.read(path, dtype=np.float64)
    assert s.energy.tolist() == [-31.7]
    assert np.array_equal(s.forces, [[0.1, 0.2, 0.3]] * 2)
    assert s.info["labels"] == {"energy": energy, "forces": forces}


def test_energy_and_forces_are_of_one_method():
    choose = label_names.choose
    # the pair, not the energy that happens to have the plainest name
    assert choose(["energy", "REF_energy"], ["REF_forces"], "a") == ("REF_energy", "REF_forces")
    assert choose(["energy", "MACE_energy"], ["MACE_forces", "forces"], "a") == ("energy", "forces")
    assert choose(["DFT_energy"], ["DFT_forces"], "a", "DFT_energy") == ("DFT_energy", "DFT_forces")
    assert choose(["x_energy"], ["x_forces"], "a", forces_key="none") == ("x_energy", None)
    assert choose(["energy_weight", "energy_per_atom"], [], "a") == (None, None)
    with pytest.raises(DataError, match="not of one method"):
        choose(["energy_xtb"], ["dft_forces"], "a")
    with pytest.raises(DataError, match="several methods"):
        choose(["b3lyp_energy", "pbe_energy"], ["b3lyp_forces", "pbe_forces"], "a")


def test_frames_of_different_methods_are_refused(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(frame("energy=-31.7") + frame("pbe_energy=-31.0"))
    with pytest.raises(DataError, match="different methods"):
        potkit.read(path)


def test_a_column_that_is_not_read_is_named(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(frame('energy=-31.7 virial="1 0 0 0 1 0 0 0 1"', ":F_dft:R:3", "0.1 0.2 0.3"))
    s = potkit.read(path)
    assert s.forces is None
    text = "\n".join(report(s))
    assert "F_dft (column of three reals per atom)" in text
    assert "1 with energy, 0 with forces" in text
    assert potkit.read(path, forces_key="F_dft").forces.shape == (2, 3)
    with pytest.raises(DataError, match="no frame has forces under 'F_pbe'"):
        potkit.read(path, forces_key="F_pbe")


# --- units -------------------------------------------------------------------------------------


def test_forces_follow_the_energy_unit(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(frame("energy=-730.0", ":forces:R:3", "1 2 3"))
    s = potkit.read(path, dtype=np.float64, energy_unit="kcal/mol")
    factor = units.kcal / units.mol
    assert s.energy[0] == pytest.approx(-730.0 * factor, rel=1e-7)
    assert np.allclose(s.forces[0], np.array([1, 2, 3]) * factor, rtol=1e-7)
    s = potkit.read(path, dtype=np.float64, energy_unit="hartree", length_unit="bohr")
    assert np.allclose(s.forces[0], np.array([1, 2, 3]) * units.Hartree / units.Bohr, rtol=1e-6)
    assert s.pos[1, 2] == pytest.approx(0.75 * units.Bohr, rel=1e-7)


def test_totals_in_hartree_are_named(tmp_path):
    frames = []
    for name in ("CH4", "H2O", "C2H6", "CH3OH", "C2H4"):
        a = molecule(name)
        z = a.numbers
        total = -0.6 * (z == 1).sum() - 37.85 * (z == 6).sum() - 75.1 * (z == 8).sum()
        a.calc = SinglePointCalculator(a, energy=total)
        frames.append(a)
    write(tmp_path / "a.xyz", frames)
    assert "Hartree" in "\n".join(report(potkit.read(tmp_path / "a.xyz")))
    right = potkit.read(tmp_path / "a.xyz", energy_unit="hartree")
    assert "Hartree" not in "\n".join(report(right))
    for a in frames:
        a.calc.results["energy"] *= units.Hartree
    write(tmp_path / "b.xyz", frames)
    assert "Hartree" not in "\n".join(report(potkit.read(tmp_path / "b.xyz")))


def test_runner_takes_any_unit_and_doubts_the_assumed(tmp_path):
    path = tmp_path / "input.data"
    water = molecule("H2O")
    atoms = "\n".join(
        f"atom {x} {y} {z} {e} 0 0 0.1 0.2 0.3"
        for (x, y, z), e in zip(water.positions, water.symbols, strict=True)
    )
    path.write_text(f"begin\n{atoms}\nenergy -2081.0\ncharge 0\nend\n")
    s = potkit.read(path, dtype=np.float64, length_unit="angstrom", energy_unit="eV")
    assert np.allclose(s.pos, water.positions)
    assert s.energy.tolist() == [-2081.0]
    assert np.allclose(s.forces[0], [0.1, 0.2, 0.3])
    assert "notes" not in s.info
    notes = "\n".join(potkit.read(path).info["notes"])
    assert "length_unit=angstrom" in notes
    assert "energy_unit=eV" in notes


def test_units_in_the_metadata_of_a_database_are_believed(tmp_path):
    ethanol = molecule("CH3CH2OH")
    with connect(tmp_path / "e.db") as db:
        db.metadata = {
            "_property_unit_dict": {"energy": "kcal/mol", "forces": "kcal/mol/Ang"},
            "_distance_unit": "Ang",
        }
        db.write(ethanol, data={"energy": np.array([-97080.0]), "forces": np.ones((9, 3))})
    s = potkit.read(tmp_path / "e.db", dtype=np.float64)
    factor = units.kcal / units.mol
    assert s.energy[0] == pytest.approx(-97080 * factor, rel=1e-7)
    assert np.allclose(s.forces, factor, rtol=1e-7)
    with connect(tmp_path / "f.db") as db:
        db.write(ethanol, data={"energy": -97080.0})
    with pytest.raises(DataError, match="size of kcal/mol"):
        potkit.read(tmp_path / "f.db")


def test_a_lattice_of_sgdml_has_its_vectors_in_columns(tmp_path):
    lattice = np.array([[5.0, 1, 0], [0, 6, 0], [0, 0, 7]])
    pos = np.random.default_rng(0).normal(size=(3, 2, 3))
    content = {"R": np.asfortranarray(pos), "z": np.array([1, 1]), "F": pos, "lattice": lattice}
    unit = np.array(b"kcal/mol")
    name = np.array(None, dtype=object)
    np.savez(tmp_path / "a.npz", E=np.full(3, -730.0), e_unit=unit, name=name, **content)
    s = potkit.read(tmp_path / "a.npz", dtype=np.float64)
    assert np.array_equal(s.cell[2], lattice.T)
    assert s.pbc.all()
    assert np.allclose(s.pos.reshape(3, 2, 3), pos)
    water = {"R": np.zeros((1, 3, 3)), "F": np.zeros((1, 3, 3)), "z": np.array([8, 1, 1])}
    np.savez(tmp_path / "b.npz", E=np.array([-2080.0]), **water)
    with pytest.raises(DataError, match="size of eV, not kcal/mol"):
        potkit.read(tmp_path / "b.npz")
    assert potkit.read(tmp_path / "b.npz", energy_unit="eV").energy.tolist() == [-2080.0]


def test_an_experiment_names_keys_and_units(tmp_path):
    from potkit.experiments.yaml_form import DataSpec

    (tmp_path / "a.xyz").write_text(frame("E=-730.0", ":F:R:3", "1 2 3"))
    read = {"energy_key": "E", "forces_key": "F", "energy_unit": "kcal/mol"}
    s = DataSpec(data=str(tmp_path / "a.xyz"), read=read).load()
    assert s.energy[0] == pytest.approx(-730.0 * units.kcal / units.mol, rel=1e-7)
    assert s.forces[0, 2] == pytest.approx(3 * units.kcal / units.mol, rel=1e-6)
    with pytest.raises(ConfigError, match="registered set"):
        DataSpec(data="rmd17-mini", read=read).load()


def test_exponents_without_a_dot_are_numbers():
    from potkit.notebooks import parse_parameter
    from potkit.structures import settings

    assert parse_parameter("sigmas", "[1e-1, 5e-2]") == [0.1, 0.05]
    assert settings.parse("{sigma: 1e-1, name: e1}", "a") == {"sigma": 0.1, "name": "e1"}


# --- slabs -------------------------------------------------------------------------------------


def test_cells_without_volume_are_a_row(tmp_path):
    from potkit.datasets import checks, splits

    slab = 'Lattice="5 0 0 0 5 0 0 0 {}" pbc="T T {}" energy=-1 Properties=species:S:1:pos:R:3'
    text = "2\n{}\nH 0 0 0\nH 0 0 0.8\n"
    (tmp_path / "slab.xyz").write_text(text.format(slab.format(0, "F")))
    (tmp_path / "flat.xyz").write_text(text.format(slab.format(0, "T")))
    s = potkit.read(tmp_path / "slab.xyz")
    assert checks.check(s).attrs["healthy"]
    assert len(splits.leakage(s, s)) == 1
    report = checks.check(potkit.read(tmp_path / "flat.xyz"))
    row = report.set_index("check").loc["cells without volume"]
    assert row["value"] == 1 and row["verdict"] == "bad"
    assert not report.attrs["healthy"]


# --- without labels ----------------------------------------------------------------------------


def test_plain_xyz_and_blank_lines(tmp_path):
    path = tmp_path / "geometry.xyz"
    water = "3\nwater, conformer 2\nO 0 0 0\nH 0.96 0 0\nH -0.24 0.93 0\n"
    path.write_text(water + "\n\n" + water + "\n")
    s = potkit.read(path, dtype=np.float64)
    assert len(s) == 2
    assert s.energy is None and s.forces is None
    assert s.pos[4].tolist() == [0.96, 0, 0]
    path.write_text(water + "\nthe end\n")
    with pytest.raises(DataError, match="expected the number of atoms"):
        potkit.read(path)


def test_files_lists_globs_folders_and_archives(tmp_path):
    folder = tmp_path / "all"
    folder.mkdir()
    frames = [molecule("H2O"), molecule("CH4")]
    for i, a in enumerate(frames):
        write(folder / f"{i}.xyz", a)
    assert len(potkit.read(folder)) == 2
    assert len(potkit.read(str(folder / "*.xyz"))) == 2
    assert len(potkit.read([folder / "1.xyz", folder / "0.xyz", folder])) == 4
    with pytest.raises(DataError, match="no file fits"):
        potkit.read(str(folder / "*.cif"))
    with gzip.open(tmp_path / "a.xyz.gz", "wb") as file:
        file.write((folder / "0.xyz").read_bytes())
    assert np.allclose(potkit.read(tmp_path / "a.xyz.gz").pos, frames[0].positions, atol=1e-6)


def test_what_no_own_reader_knows_goes_through_ase(tmp_path):
    frames = []
    for k in range(3):
        a = bulk("Cu", cubic=True)
        a.rattle(0.05, seed=k)
        a.calc = EMT()
        a.get_forces()
        a.get_potential_energy()
        frames.append(a)
    write(tmp_path / "a.traj", frames)
    s = potkit.read(tmp_path / "a.traj", dtype=np.float64)
    assert np.allclose(s.energy, [a.get_potential_energy() for a in frames], atol=1e-9)
    assert np.allclose(s.forces, np.concatenate([a.get_forces() for a in frames]), atol=1e-9)
    assert np.allclose(s.cell[1], frames[1].cell.array)
    held = [a.get_stress(voigt=False) for a in frames]
    write(tmp_path / "b.traj", frames)
    assert np.allclose(potkit.read(tmp_path / "b.traj").stress, held, atol=1e-9)
    write(tmp_path / "POSCAR", frames[0], format="vasp")
    assert np.allclose(potkit.read(tmp_path / "POSCAR").pos, frames[0].positions, atol=1e-5)
    write(tmp_path / "a.cif", frames[0])
    assert potkit.read(tmp_path / "a.cif").energy is None
    (tmp_path / "a.bin").write_bytes(b"\x00\x01nonsense")
    with pytest.raises(DataError, match=r"a\.bin"):
        potkit.read(tmp_path / "a.bin")
    with pytest.raises(ConfigError, match="no option 'subsets'"):
        potkit.read(tmp_path / "a.traj", subsets=["x"])


DUMP = """ITEM: TIMESTEP
{}
ITEM: NUMBER OF ATOMS
3
ITEM: BOX BOUNDS pp pp pp
0 10
0 10
0 10
ITEM: ATOMS {}x y z fx fy fz
"""


def dump(columns: str, *values: str) -> str:
    """Two frames of water as LAMMPS writes them, with ``columns`` and their ``values`` in front."""
    places = ("0 0 0 0.1 0.2 0.3", "0.96 0 0 0 0 0", "-0.24 0.93 0 0 0 0")
    atoms = "".join(f"{v} {p}\n" for v, p in zip(values, places, strict=True))
    return "".join(DUMP.format(step, columns) + atoms for step in (0, 10))


def test_types_of_lammps_are_no_elements(tmp_path):
    """ASE takes them for atomic numbers, and makes up energies beside the forces."""
    path = tmp_path / "a.lammpstrj"
    path.write_text(dump("id type ", "1 1", "2 2", "3 2"))
    with pytest.raises(DataError, match=r"its types are \[1, 2\]; give type_map="):
        potkit.read(path)
    s = potkit.read(path, type_map="O H", dtype=np.float64)
    assert s.z.tolist() == [8, 1, 1] * 2
    assert s.energy is None and s.forces[0].tolist() == [0.1, 0.2, 0.3]
    assert potkit.read(path, type_map=["O", "H"], format="ase:lammps-dump-text").z[0] == 8
    for wrong, words in (("O", "type 2 is not in the type map"), ("O X", "unknown element 'X'")):
        with pytest.raises(DataError, match=words):
            potkit.read(path, type_map=wrong)
    path.write_text(dump("id type element ", "1 1 O", "2 2 H", "3 2 H"))
    s = potkit.read(path)
    assert s.z.tolist() == [8, 1, 1] * 2 and s.energy is None
    path.write_text(dump("id mass ", "1 15.999", "2 1.008", "3 1.008"))
    assert potkit.read(path).z.tolist() == [8, 1, 1] * 2
    with pytest.raises(DataError, match="frame 0 has no types"):
        potkit.read(path, type_map="O H")
    with pytest.raises(DataError, match="no frame has energy under 'energy'"):
        potkit.read(path, energy_key="energy")


def test_types_of_lammps_data_files(tmp_path):
    path = tmp_path / "water.data"
    box = "water\n\n3 atoms\n2 atom types\n0 10 xlo xhi\n0 10 ylo yhi\n0 10 zlo zhi\n\n"
    atoms = "Atoms # atomic\n\n1 1 0 0 0\n2 2 0.96 0 0\n3 2 -0.24 0.93 0\n"
    path.write_text(box + atoms)
    with pytest.raises(DataError, match=r"its types are \[1, 2\]"):
        potkit.read(path, format="ase:lammps-data")
    s = potkit.read(path, format="ase:lammps-data", type_map="O H")
    assert s.z.tolist() == [8, 1, 1]
    path.write_text(box + "Masses\n\n1 15.999\n2 1.008\n\n" + atoms)
    assert potkit.read(path, format="ase:lammps-data").z.tolist() == [8, 1, 1]


def test_every_molecule_of_an_sdf_file_is_read(tmp_path):
    texts = []
    for name in ("H2O", "CH4", "CH3OH"):
        write(tmp_path / "one.sdf", molecule(name))
        texts.append((tmp_path / "one.sdf").read_text())
    path = tmp_path / "all.sdf"
    path.write_text("".join(texts) + "\n")
    s = potkit.read(path)
    assert s.system_names() == ["H2O", "CH4", "CH4O"] and s.n_atoms.tolist() == [3, 5, 6]
    counts = "  0  0  0     0  0            999 V3000"
    path.write_text(texts[0] + f"x\n\n\n{counts}\nM  END\n$$$$\n")
    with pytest.raises(DataError, match="molecule 1: it is in V3000"):
        potkit.read(path)
    path.write_text(texts[0] + "x\n\n\nnonsense\n$$$$\n" + texts[1])
    with pytest.raises(DataError, match=r"all\.sdf: molecule 1: .*ASE cannot read it"):
        potkit.read(path)


@pytest.mark.parametrize("value", ["PBE", None, True, [[1.0], [2.0, 3.0]]])
def test_what_is_no_number_is_no_energy(tmp_path, value):
    atoms = molecule("H2O")
    atoms.info["energy_source"] = value
    write(tmp_path / "a.traj", atoms)
    assert potkit.read(tmp_path / "a.traj").energy is None
    with pytest.raises(DataError, match=r"a\.traj: no frame has energy under 'energy_source'"):
        potkit.read(tmp_path / "a.traj", energy_key="energy_source")
    atoms.info["energy_dft"] = np.float32(-3.5)
    write(tmp_path / "a.traj", atoms)
    assert potkit.read(tmp_path / "a.traj").energy.tolist() == [-3.5]


def test_conformers_of_spice_are_in_nm(tmp_path):
    path = tmp_path / "a.h5"
    pos = np.random.default_rng(0).normal(size=(2, 3, 3))
    with h5py.File(path, "w") as file:
        group = file.create_group("water")
        group["smiles"] = ["[H:2][O:1][H:3]"]
        group["conformations"] = pos
    s = potkit.read(path, dtype=np.float64)
    assert s.z[:3].tolist() == [8, 1, 1]
    assert np.allclose(s.pos.reshape(2, 3, 3), 10 * pos)


# --- some labels, isolated atoms -----------------------------------------------------------------


def test_each_structure_keeps_what_it_has(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(frame("energy=-31.7", ":forces:R:3", "1 2 3") + frame("energy=-31.6"))
    s = potkit.read(path)
    assert s.labelled("forces").tolist() == [True, False]
    assert np.array_equal(s.forces[:2], [[1, 2, 3]] * 2)
    assert np.isnan(s.forces[2:]).all()
    assert "1 with forces; each is trained on what it has" in report(s)[0]
    s.validate()
    with pytest.raises(DataError, match="1 of 2 structures have no forces"):
        potkit.read(path, missing_labels="stop")
    dropped = potkit.read(path, missing_labels="drop")
    assert dropped.forces is None and "forces left out" in dropped.info["notes"][0]
    # a store, a slice, a join and ASE keep it
    again = potkit.Structures.open(s.save(tmp_path / "store"))
    assert again[1:].labelled("forces").tolist() == [False]
    assert (again + dropped).labelled("forces").tolist() == [True, False, False, False]
    assert [sorted(a.calc.results) for a in s.to_ase()] == [["energy", "forces"], ["energy"]]
    s.forces[0, 1] = np.nan  # half a label is a fault
    with pytest.raises(DataError, match="forces of structure 0"):
        s.validate()


ISOLATED = "1\nProperties=species:S:1:pos:R:3 energy={} {}\nH 0 0 0\n"


def test_isolated_atoms_become_references(tmp_path):
    rest = frame("energy=-31.7", ":forces:R:3", "1 2 3")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.xyz").write_text(ISOLATED.format(-13.6, 'pbc="F F F"'))
    (folder / "b.xyz").write_text(rest)
    box = 'Lattice="4 0 0 0 4 0 0 0 4" pbc="T T T"'
    (tmp_path / "a.xyz").write_text(
        ISOLATED.format(-13.6, f"config_type=IsolatedAtom {box}") + rest
    )
    for path in (folder, tmp_path / "a.xyz"):
        s = potkit.read(path)
        assert len(s) == 1
        assert s.forces is not None and not s.partly_labelled
        assert s.info["atomic_energies"] == {"H": -13.6}
        assert "1 isolated atoms are reference energies" in "\n".join(report(s))
        assert len(potkit.read(path, isolated_atoms="keep")) == 2
    # a crystal of one atom per cell is none, nor are atoms alone in the file
    (tmp_path / "b.xyz").write_text(ISOLATED.format(-3.0, box) + rest)
    assert len(potkit.read(tmp_path / "b.xyz")) == 2
    assert len(potkit.read(folder / "a.xyz")) == 1


def test_atoms_that_were_kept_stay_in_the_store(tmp_path):
    rest = frame("energy=-31.7", ":forces:R:3", "1 2 3")
    path = tmp_path / "a.xyz"
    path.write_text(rest + ISOLATED.format(-13.6, 'pbc="F F F"'))
    kept = potkit.read(path, isolated_atoms="keep")
    stores = [kept.save(tmp_path / "store"), kept.save(tmp_path / "store.h5")]
    stores.append(registry.pack(path, tmp_path / "packed", isolated_atoms="keep"))
    for store in stores:
        s = potkit.read(store)
        assert len(s) == 2 and "stored" not in s.info
    # beside a file, whose atoms become references
    both = potkit.read([path, stores[0]])
    assert both.n_atoms.tolist() == [2, 2, 1] and both.info["atomic_energies"] == {"H": -13.6}


# --- from ASE ----------------------------------------------------------------------------------


def test_labels_belong_to_their_frame():
    calc = EMT()
    frames = []
    for x in (0.0, 0.1, 0.2):
        a = bulk("Cu", cubic=True)
        a.positions[0, 0] += x
        a.calc = calc
        a.get_potential_energy()
        frames.append(a)
    s = potkit.Structures.from_ase(frames)
    assert np.allclose(s.energy, [a.get_potential_energy() for a in frames])
    moved = molecule("H2O")
    moved.calc = SinglePointCalculator(moved, energy=-1.0)
    moved.positions += np.eye(3)
    with pytest.raises(DataError, match="moved or changed"):
        potkit.Structures.from_ase([moved])


def test_a_charge_that_is_nearly_whole_is_rounded():
    atoms = Atoms("H", info={"charge": -0.9999999})
    assert potkit.Structures.from_ase([atoms]).charge.tolist() == [-1]


def test_charges_are_rounded(tmp_path):
    path = tmp_path / "a.xyz"
    path.write_text(frame("energy=-31.7 charge=-0.9999999"))
    assert potkit.read(path).charge.tolist() == [-1]
    path.write_text(frame("energy=-31.7 charge=70000"))
    with pytest.raises(DataError, match="charge 70000 is not a whole number"):
        potkit.read(path)
    atoms = Atoms("H", info={"charge": -0.9999999})
    assert potkit.Structures.from_ase([atoms]).charge.tolist() == [-1]


@pytest.mark.parametrize("given", [0.5, 70000, None, np.array([1]), [1, 2], "x"])
def test_other_charges_are_refused(given):
    with pytest.raises(DataError, match="charge"):
        potkit.Structures.from_ase([Atoms("H", info={"charge": given})])


# --- DeePMD ------------------------------------------------------------------------------------


def deepmd(folder, names, types, energy, real=None, frames=1):
    part = folder / "set.000"
    part.mkdir(parents=True)
    (folder / "type.raw").write_text(types)
    (folder / "nopbc").write_text("")
    if names:
        (folder / "type_map.raw").write_text(names)
    n = len(types.split())
    pos = np.random.default_rng(0).uniform(0, 4, (frames, 3 * n))
    np.save(part / "coord.npy", pos)
    np.save(part / "energy.npy", energy)
    np.save(part / "force.npy", pos)
    if real is not None:
        np.save(part / "real_atom_types.npy", real)
    return pos.reshape(frames, n, 3)


def test_deepmd_as_it_comes(tmp_path):
    deepmd(tmp_path / "scalar", "O H", "0 1 1", np.array(-14.0))
    assert potkit.read(tmp_path / "scalar").energy.tolist() == [-14.0]
    real = np.array([[0, 1, 1], [0, 1, -1]])
    pos = deepmd(tmp_path / "padded", "O H", "0 0 0", np.array([-14.0, -8.0]), real, frames=2)
    s = potkit.read(tmp_path / "padded", dtype=np.float64)
    assert s.z.tolist() == [8, 1, 1, 8, 1]
    assert np.array_equal(s.forces[3:], pos[1, :2])
    deepmd(tmp_path / "names", "OW HW", "0 1 1", np.array([-14.0]))
    with pytest.raises(DataError, match=r"type_map= .* OW HW"):
        potkit.read(tmp_path / "names")
    assert potkit.read(tmp_path / "names", type_map="O H").z.tolist() == [8, 1, 1]
    assert potkit.read(tmp_path / "names", type_map=["H", "O"]).z.tolist() == [1, 8, 8]
    deepmd(tmp_path / "none", "", "0 1 1", np.array([-14.0]))
    with pytest.raises(DataError, match=r"its types are \[0, 1\]"):
        potkit.read(tmp_path / "none")


# --- stress by name, labels that are not there, doubted units -------------------------------------


def test_stress_key(tmp_path):
    """The name says whether it is a stress or a virial; units follow the energy."""
    lattice = 'Lattice="4 0 0 0 4 0 0 0 5" pbc="T T T" Properties=species:S:1:pos:R:3 energy=-1'
    path = tmp_path / "cu.xyz"
    path.write_text(
        f'1\n{lattice} my_stress="1 2 3 4 5 6" my_virial="8 0 0 0 8 0 0 0 8"\nCu 0 0 0\n'
    )
    plain = potkit.read(path, isolated_atoms="keep")
    assert plain.stress is None and "my_stress (stress)" in plain.info["unread"]
    by_name = potkit.read(path, stress_key="my_stress", isolated_atoms="keep")
    assert by_name.stress[0].tolist() == [[1, 6, 5], [6, 2, 4], [5, 4, 3]]
    assert not any("my_stress" in name for name in by_name.info.get("unread", []))
    virial = potkit.read(path, stress_key="my_virial", isolated_atoms="keep")
    assert virial.stress[0] == pytest.approx(-0.1 * np.eye(3))
    scaled = potkit.read(
        path, stress_key="my_virial", energy_unit="kcal/mol", isolated_atoms="keep"
    )
    assert scaled.stress[0] == pytest.approx(-0.1 * (units.kcal / units.mol) * np.eye(3), rel=1e-6)
    assert potkit.read(path, stress_key="none", isolated_atoms="keep").stress is None
    with pytest.raises(DataError, match="no frame has a stress under 'sigma'"):
        potkit.read(path, stress_key="sigma")


def test_stress_key_through_ase_and_in_databases(tmp_path):
    atoms = Atoms("Cu2", [[0, 0, 0], [0, 0, 2.5]], cell=[4, 4, 5], pbc=True)
    atoms.info["my_virial"] = 8 * np.eye(3)
    write(tmp_path / "cu.traj", atoms)
    with connect(tmp_path / "cu.db") as database:
        database.write(atoms, data={"my_virial": 8 * np.eye(3)})
    for name in ("cu.traj", "cu.db"):
        s = potkit.read(tmp_path / name, stress_key="my_virial")
        assert s.stress[0] == pytest.approx(-0.1 * np.eye(3)), name
        assert potkit.read(tmp_path / name).stress is None


def test_hdf5_without_energies_is_geometries(tmp_path):
    """What pretraining asks for; a file that has one of SPICE's two energies is still asked."""
    pos = np.array([[[0, 0, 0], [0, 0, 1.1]]] * 3) + np.arange(3)[:, None, None] * 0.01
    with h5py.File(tmp_path / "spice.h5", "w") as file:
        group = file.create_group("co")
        group["atomic_numbers"] = [6, 8]
        group["conformations"] = pos / units.Bohr
    with h5py.File(tmp_path / "ani1.h5", "w") as file:
        group = file.create_group("gdb/co")
        group["species"] = np.array([b"C", b"O"])
        group["coordinates"] = pos
    with h5py.File(tmp_path / "ani1x.h5", "w") as file:
        group = file.create_group("CO")
        group["atomic_numbers"] = [6, 8]
        group["coordinates"] = pos
    for name in ("spice", "ani1", "ani1x"):
        s = potkit.read(tmp_path / f"{name}.h5")
        assert s.energy is None and s.forces is None and s.z.tolist() == [6, 8] * 3, name
        assert s.info["source_format"] == name
        assert s.pos.reshape(3, 2, 3) == pytest.approx(pos, abs=1e-6), name
    with h5py.File(tmp_path / "spice.h5", "a") as file:
        file["co/dft_total_energy"] = [-1.0, -1.0, -1.0]
    with pytest.raises(DataError, match="has no 'formation_energy'"):
        potkit.read(tmp_path / "spice.h5")
    with h5py.File(tmp_path / "ani1.h5", "a") as file:
        file["gdb/co/energy"] = [-1.0, -1.0, -1.0]  # not as ANI-1 calls it
    with pytest.raises(DataError, match="has no 'energies'"):
        potkit.read(tmp_path / "ani1.h5")


# --- packing and folders: nothing lost, nothing left out ------------------------------------------


def _frames(path, count, unlabelled=0):
    """``count`` frames of hydrogen, the last of them without labels."""
    labelled = frame("energy=-31.7", ":forces:R:3", "0.1 0.2 0.3") * (count - unlabelled)
    path.write_text(labelled + frame("note=1") * unlabelled)


def test_packing_that_fails_late_leaves_what_was_there(tmp_path):
    """The first file alone must not take the place of a store: the second is broken."""
    _frames(tmp_path / "run1.xyz", 3)
    _frames(tmp_path / "old.xyz", 5)
    registry.pack(tmp_path / "old.xyz", tmp_path / "store")
    (tmp_path / "run2.xyz").write_text("2\nenergy=1\nH 0 0 0\n")
    with pytest.raises(DataError, match=r"run2.xyz"):
        registry.pack(str(tmp_path / "run*.xyz"), tmp_path / "store")
    assert len(Structures.open(tmp_path / "store")) == 5
    _frames(tmp_path / "partly.xyz", 4, unlabelled=1)
    with pytest.raises(DataError, match=r"1 of 4 structures have no energy"):
        registry.pack(tmp_path / "partly.xyz", tmp_path / "store", missing_labels="stop")
    assert len(Structures.open(tmp_path / "store")) == 5
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "old.xyz",
        "partly.xyz",
        "run1.xyz",
        "run2.xyz",
        "store",
    ]


@pytest.mark.parametrize("policy", ["keep", "drop"])
def test_a_packed_set_is_what_reading_gives(tmp_path, policy):
    path = tmp_path / "partly.xyz"
    _frames(path, 4, unlabelled=1)
    plain = potkit.read(path, missing_labels=policy)
    packed = Structures.open(registry.pack(path, tmp_path / "store", missing_labels=policy))
    assert packed.arrays().keys() == plain.arrays().keys()
    assert (packed.energy is None) == (policy == "drop")
    assert packed.partly_labelled == plain.partly_labelled
    packed.validate()


def test_the_unit_of_totals_where_few_have_an_element():
    """Those that are looked at, the first 5000 with an energy, may lack an element of the set."""
    one = Structures(np.array([8, 1, 1]), np.eye(3), np.array([0, 3]), np.array([-76.4]))
    other = Structures(np.array([16, 1, 1]), np.eye(3), np.array([0, 3]))
    both = concatenate([one, one, other])
    assert unit_of_totals(both) == "hartree"


def test_a_folder_of_several_formats_is_read_file_by_file(tmp_path):
    for name in ("a.h5", "b.hdf5"):
        with h5py.File(tmp_path / name, "w") as file:
            group = file.create_group("h2")
            group["coordinates"] = np.array([[[0.0, 0, 0], [0, 0, 0.75]]])
            group["energies"] = np.array([-1.17])
            group["species"] = np.array([b"H", b"H"])
    assert len(potkit.read(tmp_path)) == 2
    _frames(tmp_path / "c.xyz", 3)
    assert len(potkit.read(tmp_path)) == 5


def test_folders_inside_a_folder_are_named(tmp_path):
    (tmp_path / "inner").mkdir()
    (tmp_path / ".hidden").mkdir()
    _frames(tmp_path / "a.xyz", 2)
    _frames(tmp_path / "inner" / "b.xyz", 3)
    s = potkit.read(tmp_path)
    assert len(s) == 2
    assert f"folders inside {tmp_path.name} are not read: inner" in report(s)
    arrays = {"R": np.eye(3)[None], "z": np.array([8, 1, 1]), "E": np.array([-47700.0])}
    (tmp_path / "a.xyz").unlink()
    np.savez(tmp_path / "a.npz", **arrays)
    assert "are not read: inner" in "\n".join(report(potkit.read(tmp_path)))


def test_a_folder_of_one_spice_file(tmp_path):
    with h5py.File(tmp_path / "SPICE.hdf5", "w") as file:
        group = file.create_group("h2")
        group["conformations"] = np.array([[[0.0, 0, 0], [0, 0, 1.4]]])
        group["atomic_numbers"] = np.array([1, 1])
        group["formation_energy"] = np.array([-0.17])
        group["dft_total_energy"] = np.array([-1.17])
        group["dft_total_gradient"] = np.zeros((1, 2, 3))
        group["smiles"] = np.array([b"[H:1][H:2]"])
        group["subset"] = np.array([b"one"])
    assert len(potkit.read(tmp_path)) == len(potkit.read(tmp_path / "SPICE.hdf5")) == 1


@pytest.mark.parametrize(
    "comment", ["methane charge 0", "virial stress", "name of a system", "pbc"]
)
def test_words_of_a_plain_comment_say_nothing(tmp_path, comment):
    path = tmp_path / "plain.xyz"
    path.write_text(f"2\n{comment}\nH 0 0 0\nH 0 0 0.75\n")
    s = potkit.read(path)
    assert s.system_names() == ["H2"] and s.stress is None and s.charge.tolist() == [0]
    assert "unread" not in s.info


# --- checks ---------------------------------------------------------------------------------------


def test_the_geometry_of_unlabelled_structures_is_checked(tmp_path):
    path = tmp_path / "partly.xyz"
    _frames(path, 4, unlabelled=1)
    path.write_text(path.read_text() + frame("note=1").replace("0.75", "0.01"))
    rows = checks.check(potkit.read(path)).set_index("check")
    assert rows.loc["overlapping atoms (< 0.1 Å)", "value"] == 1
    assert rows.loc["without energy", "value"] == 2


def _boxed(pbc, cell, count=1, seed=0):
    pos = np.random.default_rng(seed).uniform(0, 4, (count, 3, 3))
    return Structures(
        np.tile([8, 1, 1], count),
        pos.reshape(-1, 3),
        np.arange(count + 1) * 3,
        cell=np.tile(np.diag(cell), (count, 1, 1)),
        pbc=np.tile(pbc, (count, 3)),
    )


def test_a_box_that_does_not_repeat_is_no_difference():
    boxed, bare = _boxed(False, [9.0, 9, 9]), _boxed(False, [9.0, 9, 9])
    bare.cell = None
    assert len(duplicates.pairs(boxed, bare)) == 1
    periodic = _boxed(True, [9.0, 9, 9])
    assert len(duplicates.pairs(periodic, boxed)) == 0
    assert len(duplicates.pairs(periodic, _boxed(True, [9.5, 9, 9]))) == 0
    # on both sides of where a rounded cell would jump
    near = _boxed(True, [12.4445] * 3), _boxed(True, [12.4445001] * 3)
    assert len(duplicates.pairs(*near)) == 1


def test_more_copies_than_pairs_are_looked_for(monkeypatch):
    copies = concatenate([_boxed(False, [9.0] * 3)] * 12)
    monkeypatch.setattr(duplicates, "LIMIT", 5)
    assert duplicates.distinct(copies).tolist() == [0]
    assert duplicates.leakage(copies, copies).attrs["message"].startswith("at least ")
