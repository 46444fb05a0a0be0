"""The packed store: selecting, joining, files, ASE, batches, and the mistakes it names."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import bulk, molecule

from potkit.errors import DataError
from potkit.models import build
from potkit.structures import storage
from potkit.structures import store as structures
from potkit.structures.batch import cut, doubled, keep_atoms
from potkit.structures.elements import SYMBOLS, formula
from potkit.structures.store import Structures, concatenate


def water(n=4, name="water", seed=0, **options):
    """n structures: water and methane by turns, with every kind of array, in boxes for odd ones if
    ``periodic``.
    """
    rng = np.random.default_rng(seed)
    z = [[8, 1, 1] if i % 2 == 0 else [6, 1, 1, 1, 1] for i in range(n)]
    ptr = np.cumsum([0] + [len(one) for one in z])
    atoms = ptr[-1]
    periodic = options.pop("periodic", False)
    return Structures(
        np.concatenate(z) if n else np.zeros(0, int),
        rng.normal(size=(atoms, 3)),
        ptr,
        energy=rng.normal(size=n) - 2000,
        forces=rng.normal(size=(atoms, 3)),
        cell=np.tile(8.0 * np.eye(3), (n, 1, 1)) if periodic else None,
        pbc=np.arange(n)[:, None] % 2 * np.ones(3) > 0 if periodic else None,
        charge=rng.integers(-1, 2, n),
        system=np.arange(n) % 2,
        molecule=np.concatenate([np.arange(len(one)) % 2 for one in z]) if n else None,
        info={"name": name, "systems": ["water", "methane"], "level": "test"},
        **options,
    )


def same(a, b):
    left, right = a.arrays(), b.arrays()
    return left.keys() == right.keys() and all(
        np.array_equal(left[k], right[k]) and left[k].dtype == right[k].dtype for k in left
    )


# -- selecting and joining -----------------------------------------------------------------------
def test_selecting():
    s = water(6, periodic=True)
    assert len(s) == 6 and s.n_atoms.tolist() == [3, 5] * 3 and s.elements == [1, 6, 8]
    for rows, chosen in (
        (slice(1, 5, 2), [1, 3]),
        ([4, 0, 0], [4, 0, 0]),
        (np.array([True, False] * 3), [0, 2, 4]),
        (torch.tensor([5, 2]), [5, 2]),
        (range(2), [0, 1]),
        (slice(None, None, -1), [5, 4, 3, 2, 1, 0]),
    ):
        part = s[rows]
        assert len(part) == len(chosen)
        for k, i in enumerate(chosen):
            a, b = s.ptr[i], s.ptr[i + 1]
            c, d = part.ptr[k], part.ptr[k + 1]
            for name in ("z", "pos", "forces", "molecule"):
                assert np.array_equal(getattr(part, name)[c:d], getattr(s, name)[a:b])
            for name in ("energy", "cell", "pbc", "charge", "system"):
                assert np.array_equal(getattr(part, name)[k], getattr(s, name)[i])
    assert same(s[-1], s[5]) and same(s[np.int64(2)], s[[2]])
    assert [len(one) for one in s] == [1] * 6
    with pytest.raises(IndexError, match="structure 6 of 6"):
        s[6]
    s[0].pos[:] = 0  # a copy
    assert s.pos[:3].any()


def test_joining():
    a, b = water(3), water(2, seed=1)
    joined = a + b
    assert len(joined) == 5
    assert same(joined[:3], a)
    assert same(joined[3:], b)
    assert joined.info == a.info
    unlabelled = Structures(b.z, b.pos, b.ptr, info={"name": "bare"})
    mixed = concatenate([a, unlabelled])
    assert mixed.info["name"] == "water + bare"
    assert mixed.labelled("energy").tolist() == [True] * 3 + [False] * 2
    assert np.array_equal(mixed.energy[:3], a.energy) and np.isnan(mixed.forces[-1]).all()
    dropped = concatenate([a, unlabelled], missing="drop")
    assert dropped.energy is None and dropped.forces is None
    assert mixed.system_names() == ["water", "methane", "bare:system-0"]
    assert mixed.system.tolist() == [0, 1, 0, 2, 2]
    half = concatenate([a, water(2, periodic=True)])
    assert not half.cell[:3].any() and half.pbc.tolist() == [[False] * 3] * 4 + [[True] * 3]
    with pytest.raises(DataError, match="nothing to join"):
        concatenate([])


def test_systems_are_matched_by_name():
    a, b = water(2), water(2)
    b.info["systems"] = ["methane", "ethane"]
    joined = a + b
    names = [joined.system_names()[i] for i in joined.system]
    assert names == ["water", "methane", "methane", "ethane"]


# -- files ---------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["folder", "file.h5"])
@pytest.mark.parametrize("periodic", [False, True])
def test_save_and_open(tmp_path, name, periodic):
    s = water(5, periodic=periodic)
    s.info["note"] = "Å, eV"
    path = s.save(tmp_path / "deep" / name)
    again = Structures.open(path)
    assert same(s, again) and again.info == s.info and again.fingerprint() == s.fingerprint()
    assert [p.name for p in path.parent.iterdir()] == [name]  # no temporary left
    s[:2].save(path)  # written over
    assert len(Structures.open(path)) == 2
    bare = Structures(s.z, s.pos.astype(np.float32), s.ptr)
    assert same(bare, Structures.open(bare.save(path))) and Structures.open(path).energy is None
    nothing = s[:0]
    assert same(nothing, Structures.open(nothing.save(path)))


@pytest.mark.parametrize("small", [0, 1 << 30])
def test_memory_map(tmp_path, monkeypatch, small):
    monkeypatch.setattr(structures, "MAPPED", small)
    s = water(5)
    path = s.save(tmp_path / "folder")
    mapped = Structures.open(path)
    read = Structures.open(path, mmap=False)
    assert isinstance(mapped.pos, np.memmap) and not isinstance(read.pos, np.memmap)
    with pytest.raises(ValueError, match="read-only"):
        mapped.pos[:] = 0
    for rows in ([1, 3], [4, 0, 1, 2, 2], [], slice(1, 4), np.arange(5) % 2 == 1):
        assert same(mapped[rows], s[rows]) and not isinstance(mapped[rows].pos, np.memmap)
    for rows in ([1, 3], [4, 0, 1, 2, 2], [], None):
        from_file = mapped.batch(rows).to_dict()
        from_memory = s.batch(rows).to_dict()
        assert from_file.keys() == from_memory.keys()
        for name, value in from_file.items():
            if torch.is_tensor(value):
                assert torch.equal(value, from_memory[name]), name
    assert torch.equal(mapped.to("cpu").batch([1, 3]).pos, s.batch([1, 3]).pos)
    mapped[[0]].pos[:] = 0  # a copy
    assert same(Structures.open(path), s)


def test_few_rows_are_read_many_are_mapped(tmp_path, monkeypatch):
    s = water(9, periodic=True)
    mapped = Structures.open(s.save(tmp_path / "folder"))
    assert same(mapped[[3, 1]], s[[3, 1]])  # small arrays: through the mapping
    monkeypatch.setattr(structures, "MAPPED", 0)
    calls = []
    take = storage.Rows.take

    def counted(self, *arguments):
        calls.append(self.path.name)
        return take(self, *arguments)

    monkeypatch.setattr(storage.Rows, "take", counted)
    assert same(mapped[[3, 1]], s[[3, 1]])
    assert set(calls) == {p.name for p in (tmp_path / "folder").glob("*.npy")}
    monkeypatch.setattr(structures, "RUNS", 1)
    calls.clear()
    assert same(mapped[[3, 1]], s[[3, 1]])
    assert torch.equal(mapped.batch([3, 1]).pos, s.batch([3, 1]).pos)
    assert not set(calls) - {"ptr.npy"}
    mapped.pos = mapped.pos + 1  # a changed array is not read from the file any more
    monkeypatch.undo()
    assert np.array_equal(mapped[[3, 1]].pos, s[[3, 1]].pos + 1)


def test_a_mapped_store_travels_by_name(tmp_path):
    s = water(400, periodic=True)
    mapped = Structures.open(s.save(tmp_path / "folder"))
    text = pickle.dumps(mapped)
    assert len(text) < 1000 < len(pickle.dumps(s))
    assert same(pickle.loads(text), s)
    assert pickle.loads(text).info == s.info
    mapped.pos = mapped.pos + 1
    assert np.array_equal(pickle.loads(pickle.dumps(mapped)).pos, s.pos + 1)


def test_a_store_cut_while_it_is_open(tmp_path, monkeypatch):
    monkeypatch.setattr(structures, "MAPPED", 0)
    path = water(100).save(tmp_path / "folder")
    mapped = Structures.open(path)
    whole = (path / "pos.npy").read_bytes()
    (path / "pos.npy").write_bytes(whole[:2000])
    with pytest.raises(DataError, match=r"pos.npy: ends before byte \d+: the file is truncated"):
        mapped.batch([90])


def test_a_store_with_foreign_values_is_found_by_validate(tmp_path):
    path = water(3).save(tmp_path / "folder")
    np.save(path / "z.npy", np.array([8, 1, 1, 6, 1, 0, 1, 1, 8, 1, 1], np.uint8))
    with pytest.raises(DataError, match="structure 1: atomic number 0 of atom 2"):
        Structures.open(path).validate()
    np.save(path / "ptr.npy", np.array([0, 8, 3, 11]))
    with pytest.raises(DataError, match="ptr is not a rising array"):
        Structures.open(path).validate()


def test_opening_and_cutting_need_no_torch_and_gathering_no_pyg(tmp_path):
    water(5).save(tmp_path / "folder")
    code = (
        "import sys\n"
        "import potkit\n"
        "s = potkit.Structures.open('folder')\n"
        "s[[4, 1]].energy\n"
        "assert 'torch' not in sys.modules\n"
        "s.gather([4, 1])\n"
        "assert 'torch' in sys.modules\n"
        "assert 'torch_geometric' not in sys.modules"
    )
    root = str(Path(structures.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": root},
    )
    assert done.returncode == 0, done.stderr


def test_broken_files_are_named(tmp_path):
    with pytest.raises(DataError, match="nowhere: no such file or folder"):
        Structures.open(tmp_path / "nowhere")
    (tmp_path / "text.h5").write_text("not HDF5")
    with pytest.raises(DataError, match=r"text.h5: not a readable potkit store"):
        Structures.open(tmp_path / "text.h5")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="empty: not a readable potkit store"):
        Structures.open(tmp_path / "empty")
    whole = water(200).save(tmp_path / "cut.h5")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    with pytest.raises(DataError, match=r"cut.h5: not a readable potkit store"):
        Structures.open(whole)
    folder = water(3).save(tmp_path / "folder")
    header = json.loads((folder / "potkit.json").read_text())
    (folder / "potkit.json").write_text(json.dumps(header | {"version": 99}))
    with pytest.raises(DataError, match="store version 99, this potkit reads version 1"):
        Structures.open(folder)


def test_fingerprint_follows_content_only():
    s = water(4)
    assert s.fingerprint() == water(4, name="renamed").fingerprint() and len(s.fingerprint()) == 16
    changed = [
        water(4, seed=1),
        water(3),
        water(4, periodic=True),
        s[[1, 0, 2, 3]],
        Structures(s.z, s.pos, s.ptr),
    ]
    small = water(4)
    small.forces[3, 1] += 1e-9
    assert len({s.fingerprint(), *(c.fingerprint() for c in [*changed, small])}) == 7


# -- ASE -----------------------------------------------------------------------------------------
def test_ase_round_trip():
    s = water(4, periodic=True)
    frames = s.to_ase()
    assert frames[1].get_potential_energy() == s.energy[1]
    assert np.array_equal(frames[1].get_forces(), s.forces[3:8])
    assert frames[0].pbc.tolist() == [False] * 3 and frames[1].cell.lengths().tolist() == [8.0] * 3
    again = Structures.from_ase(frames, info={"name": "water", "level": "test"})
    assert same(s, again)


def charged(n=4, **options):
    """As `water`, with formal charges."""
    s = water(n, **options)
    values = np.arange(len(s.z)) % 3 - 1
    return Structures(**s.arrays(), info=s.info | {}, formal_charge=values)


@pytest.mark.parametrize("name", ["store", "store.h5"])
def test_formal_charges_are_kept(tmp_path, name):
    """Through files, selection, joining, ASE and batches, one number per atom."""
    s = charged()
    values = s.formal_charge
    assert values.dtype == np.int8 and values.shape == (len(s.z),)
    s.save(tmp_path / name)
    again = Structures.open(tmp_path / name)
    assert same(again, s) and again.fingerprint() == s.fingerprint()
    np.testing.assert_array_equal(s[[2, 1]].formal_charge, [*values[8:11], *values[3:8]])
    np.testing.assert_array_equal((s + s).formal_charge, np.tile(values, 2))
    assert (s + water()).formal_charge is None  # not known for all
    back = Structures.from_ase(s.to_ase(), info=s.info)
    np.testing.assert_array_equal(back.formal_charge, values)
    frames = s.to_ase()
    del frames[1].arrays["formal_charge"]
    assert Structures.from_ase(frames).formal_charge is None
    batch = s.batch([1, 2])
    assert batch.formal_charge.dtype == torch.long
    assert batch.formal_charge.tolist() == values[3:11].tolist()
    assert [len(part.formal_charge) for part in cut(batch, 1)] == [5, 3]
    assert doubled(batch).formal_charge.tolist() == 2 * values[3:11].tolist()
    kept, rows = keep_atoms(batch, batch.z != 1)
    assert kept.formal_charge.tolist() == batch.formal_charge[rows].tolist()


def test_structures_without_formal_charges_say_so():
    s = water()
    assert s.formal_charge is None and "formal_charge" not in s.arrays()
    assert s.batch().formal_charge is None and "formal_charge" not in s.batch()
    with pytest.raises(DataError, match="formal_charge must have shape"):
        Structures(**s.arrays(), formal_charge=np.zeros(2))


def test_formal_charges_reach_the_graph():
    model = build("egnn", "small", seed=0)
    s = charged()
    batch = s.batch(dtype=torch.float32)
    assert model.graph(batch, batch.pos).formal_charge.tolist() == s.formal_charge.tolist()
    plain = water().batch(dtype=torch.float32)
    assert model.graph(plain, plain.pos).formal_charge is None


def test_from_ase_alone():
    frames = [molecule("H2O"), bulk("Cu"), molecule("CH4")]
    s = Structures.from_ase(frames)
    assert s.n_atoms.tolist() == [3, 1, 5]
    assert s.energy is None
    assert s.pbc[1].all()
    assert s.system_names() == ["H2O", "Cu", "CH4"]
    assert not s.cell[0].any() and np.allclose(s.cell[1], frames[1].cell.array)
    assert len(Structures.from_ase(frames[0])) == 1 and len(Structures.from_ase([])) == 0
    labelled = water(2).to_ase()
    partly = Structures.from_ase([molecule("H2O"), labelled[1]])
    assert partly.labelled("energy").tolist() == [False, True]
    assert partly.energy[1] == labelled[1].get_potential_energy()
    labelled[1].calc = None
    labelled[1].positions[2] = np.nan
    with pytest.raises(DataError, match="pos of structure 1, atom 2 is not a finite number"):
        Structures.from_ase(labelled)


# -- batches -------------------------------------------------------------------------------------
@pytest.mark.parametrize("periodic", [False, True])
def test_batch_equals_a_loop(periodic):
    s = water(6, periodic=periodic)
    rows = [5, 0, 0, 3]
    batch = s.batch(rows, dtype=torch.float64)
    parts = {n: [] for n in ("z", "pos", "forces", "molecule", "batch")}
    for k, i in enumerate(rows):
        a, b = s.ptr[i], s.ptr[i + 1]
        for n in ("z", "pos", "forces", "molecule"):
            parts[n].append(getattr(s, n)[a:b])
        parts["batch"].append(np.full(b - a, k))
    for n, expected in parts.items():
        assert np.array_equal(batch[n].numpy(), np.concatenate(expected))
    for n in ("energy", "charge", "system", *(("cell", "pbc") if periodic else ())):
        assert np.array_equal(batch[n].numpy(), getattr(s, n)[rows])
    assert batch.ptr.tolist() == [0, 5, 8, 11, 16]
    assert batch.num_graphs == 4
    assert batch.max_atoms == 5
    assert batch.mask.shape == (16,) and not batch.mask.any() and batch.periodic == periodic
    assert batch.z.dtype == batch.molecule.dtype == torch.long
    assert batch.energy.dtype == torch.float64


def test_batch_types_and_what_is_missing():
    s = water(3)
    batch = s.batch()
    assert batch.pos.dtype == batch.forces.dtype == torch.float32
    assert batch.energy.dtype == torch.float64
    assert batch.cell is None
    assert batch.target is None and batch.edge_index is None
    with pytest.raises(AttributeError):
        _ = batch.colour
    bare = Structures(s.z, s.pos, s.ptr).batch([1])
    assert bare.energy is None and bare.forces is None and bare.num_graphs == 1
    batch.pos += 1  # gathered, not a view of the store
    assert torch.equal(s.batch().pos, batch.pos - 1) or torch.allclose(
        s.batch().pos, batch.pos - 1, atol=1e-6
    )
    empty = s.batch([])
    assert empty.num_graphs == 0 and empty.pos.shape == (0, 3) and empty.max_atoms == 0
    moved = s.to("cpu").batch([2, 1])
    assert torch.equal(moved.pos, s[[2, 1]].batch().pos)
    for bad in ([0, 3], [-1]):
        with pytest.raises(DataError, match=f"batch asks for structure {bad[-1]} of 3"):
            s.batch(bad)


# -- what is not right ---------------------------------------------------------------------------
@pytest.mark.parametrize(
    "change, message",
    [
        (dict(ptr=[1, 3]), "ptr must be a rising array that starts at 0"),
        (dict(ptr=[0, 3, 2]), "ptr must be a rising array that starts at 0"),
        (dict(pos=np.zeros((3, 2))), r"pos must have shape \(3, 3\), got \(3, 2\)"),
        (dict(z=[1, 1]), r"z must have shape \(3,\), got \(2,\)"),
        (dict(energy=[1.0, 2.0]), r"energy must have shape \(1,\), got \(2,\)"),
        (dict(forces=np.zeros((2, 3))), r"forces must have shape \(3, 3\), got \(2, 3\)"),
        (dict(cell=np.eye(3)), r"cell must have shape \(1, 3, 3\), got \(3, 3\)"),
        (dict(pbc=[[True] * 3]), "pbc is true somewhere but no cell was given"),
        (dict(z=[8, 0, 1]), "structure 0: atomic number 0 of atom 1 is not in 1…118"),
        (dict(z=[8, 1, 119]), "structure 0: atomic number 119 of atom 2 is not in 1…118"),
    ],
)
def test_wrong_arrays(change, message):
    arguments = dict(z=[8, 1, 1], pos=np.eye(3), ptr=[0, 3]) | change
    with pytest.raises(DataError, match=message):
        Structures(**arguments)


@pytest.mark.parametrize(
    "name, message",
    [
        ("pos", "pos of structure 1, atom 2"),
        ("forces", "forces of structure 1, atom 2"),
        ("energy", "energy of structure 1 "),
        ("cell", "cell of structure 1 "),
    ],
)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_numbers_that_are_none(name, message, value):
    s = water(4, periodic=True)
    assert s.validate() is s
    getattr(s, name)[5 if name in ("pos", "forces") else 1] = value
    with pytest.raises(DataError, match=f"water: {message}.*is not a finite number"):
        s.validate()


def test_structure_without_atoms():
    with pytest.raises(DataError, match="structures: structure 1 has no atoms"):
        Structures([1, 1], np.eye(3)[:2], [0, 1, 1, 2]).validate()


# -- looks ---------------------------------------------------------------------------------------
def test_summary_and_repr():
    s = water(5)
    table = s.summary().set_index("system")
    assert table.loc["water", "formula"] == "H2O" and table.loc["methane", "formula"] == "CH4"
    assert table.structures.tolist() == [3, 2] and table.atoms.tolist() == [3, 5]
    np.testing.assert_allclose(
        table.loc["methane", "energy mean (eV/atom)"], s.energy[1::2].mean() / 5
    )
    np.testing.assert_allclose(
        table.loc["water", "forces rms (eV/Å)"], np.sqrt(np.mean(s[::2].forces ** 2))
    )
    assert repr(s) == (
        "Structures(water: 5 structures of 2 systems, 3–5 atoms, elements H C O, "
        "with energy, forces)"
    )
    assert "<table" in s._repr_html_()
    nothing = s[:0]
    assert "0 structures" in repr(nothing) and len(nothing.summary()) == 0


def test_formula_and_symbols():
    assert formula([6, 6, 1, 1, 1, 1, 1, 1, 8]) == "C2H6O"
    assert formula([8, 1, 1]) == "H2O"
    assert formula([11, 17]) == "ClNa"
    from ase.data import chemical_symbols

    assert chemical_symbols[:119] == SYMBOLS
