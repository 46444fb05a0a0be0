"""Files spoiled at random: one line that names the file, or read as what they are.

POTKIT_FUZZ is how many times as many examples are tried, POTKIT_FUZZ_MINUTES for how many minutes
each format is tried (`make fuzz`, which says how many examples that were); without either, each
array meets only a share of what may stand in its place. What once went wrong stands below as a test
of its own.

Accepted on purpose: numbers in another type or order of bytes (`KEPT`); whole numbers written as
reals; energies [n, 1] in sGDML's files; positions of TIP3P's files in any shape of 3 m · 3 numbers;
labels that are not there; rows of ANI-1x with NaN, which are dropped and counted; a byte that makes
a number another number. A store is opened without looking at its values: `Structures.validate`
does.
"""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from functools import cache
from pathlib import Path

import ase.io
import mutations as m
import numpy as np
import pytest
import yaml
from hypothesis import Phase, example, given
from hypothesis import strategies as st
from test_settings import ODD, SPEC, replaced

import potkit
from potkit.datasets import splits
from potkit.experiments import yaml_form
from potkit.training import checkpoints

# the judge has a deadline; what fails is spoiled little enough to be read as it is
short = m.some(8, deadline=None, phases=(Phase.explicit, Phase.generate))
ACCEPTED = {
    # the total charge is that of the SMILES then: charges of SPICE's files may not have converged
    ("spice", "m/mbis_charges", "infinite"),
    # the total charge is the median over the conformations
    ("spice", "m/mbis_charges", "beyond single precision"),
    # one conformation more
    ("spice-conformers", "m/conformations", "a row more"),
}


@cache
def valid(name: str) -> dict[str, bytes]:
    return m.FILES[name][0]()


@pytest.mark.parametrize("name", m.FILES)
def test_valid_files_are_read(name, tmp_path):
    m.write_files(tmp_path, valid(name))
    made = m.read(tmp_path / m.FILES[name][1])
    assert made is not None and len(made) == {"ase-vasp": 1, "tip3p-npz": 1, "iso17": 6}.get(
        name, m.N
    )


@pytest.mark.parametrize("name", m.FILES)
def test_spoiled_bytes(name):
    files = valid(name)

    @short
    @given(which=st.sampled_from(sorted(files)), steps=m.BYTES)
    def check(which, steps):
        with tempfile.TemporaryDirectory() as folder:
            place = Path(folder) / "place"
            m.write_files(place, files | {which: m.spoiled(files[which], steps)})
            made = m.read(place / m.FILES[name][1])
            m.count(name, made)

    m.for_minutes(check, name)


def tried(name: str, key: str, value, folder: Path):
    arrays, write, file = m.OF_ARRAYS[name]
    arrays = dict(arrays)
    arrays.pop(key)
    if value is not None:
        arrays[key] = value
    write(folder / file, arrays)
    return m.read(folder / file)


NUMBERS = [
    (name, key)
    for name, (arrays, _, _) in m.OF_ARRAYS.items()
    for key, array in arrays.items()
    if array.dtype.kind in "fiu"
]
WHOLE = [(name, key) for name, key in NUMBERS if m.OF_ARRAYS[name][0][key].dtype.kind in "iu"]
OF_HDF5 = [
    (name, key) for name, (arrays, _, file) in m.OF_ARRAYS.items() for key in arrays if ".h" in file
]


@pytest.mark.parametrize(("name", "key"), NUMBERS)
def test_arrays_of_another_kind(name, key, tmp_path):
    array = m.OF_ARRAYS[name][0][key]
    number = NUMBERS.index((name, key))
    (tmp_path / "meant").mkdir()
    meant = tried(name, key, array, tmp_path / "meant")
    for k, (what, change) in enumerate(m.share(m.KEPT, number, 3).items()):
        (tmp_path / f"kept-{k}").mkdir()
        made = tried(name, key, change(array), tmp_path / f"kept-{k}")
        assert made is not None and m.same(made, meant), what
    for k, (what, change) in enumerate(m.share(m.WRONG, number, 3).items()):
        if (name, key, what) in ACCEPTED:
            continue
        (tmp_path / f"wrong-{k}").mkdir()
        try:
            value = change(array)
            made = tried(name, key, value, tmp_path / f"wrong-{k}")
        except TypeError as error:
            assert "No conversion path" in str(error), error  # HDF5 has no dates
            continue
        assert made is None, what
    (tmp_path / "absent").mkdir()
    tried(name, key, None, tmp_path / "absent")


@pytest.mark.parametrize(("name", "key"), WHOLE)
@pytest.mark.parametrize("what", m.NOT_WHOLE)
def test_whole_numbers_are_whole(name, key, what, tmp_path):
    array = m.OF_ARRAYS[name][0][key]
    if key in ("system", "charge", "molecule") and what in ("too large", "negative"):
        return  # they may be
    assert tried(name, key, m.NOT_WHOLE[what](array), tmp_path) is None


@pytest.mark.parametrize(("name", "key"), OF_HDF5)
def test_what_hdf5_has_besides_arrays(name, key, tmp_path):
    array = m.OF_ARRAYS[name][0][key]
    number = OF_HDF5.index((name, key))
    for k, (what, make) in enumerate(m.share(m.LINKS, number, 3).items()):
        (tmp_path / f"{k}").mkdir()
        assert tried(name, key, m.Link(make, array), tmp_path / f"{k}") is None, what


# --- what is no set of structures ----------------------------------------------------------------


@cache
def checkpoint() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        model = potkit.build("egnn", hidden=8, layers=1)
        return checkpoints.save(Path(folder) / "c.safetensors", model).read_bytes()


HEADER = [
    *((), ("format_version",), ("recipe",), ("recipe", "name"), ("recipe", "preset")),
    *(("recipe", "options"), ("recipe", "options", "hidden"), ("recipe", "options", "layers")),
    *(("recipe", "options", "cutoff"), ("units",)),
]


def test_spoiled_checkpoints():
    @short
    @given(steps=m.BYTES)
    @example(steps=[("put", 0.0, b"\x7f" + b"\xff" * 7)])
    def check(steps):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "c.safetensors"
            path.write_bytes(m.spoiled(checkpoint(), steps))
            made = m.judged(lambda: checkpoints.load(path), "c.safetensors", Path(folder))
            m.count("checkpoint", made)

    m.for_minutes(check, "checkpoint")


def load_with(folder: Path, place, value):
    """The checkpoint with ``value`` at ``place`` of its header."""
    data = checkpoint()
    size = int.from_bytes(data[:8], "little")
    outer = json.loads(data[8 : 8 + size])
    inner = json.loads(outer["__metadata__"]["potkit"])
    outer["__metadata__"]["potkit"] = json.dumps(replaced(inner, place, value))
    text = json.dumps(outer).encode()
    path = folder / "c.safetensors"
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])
    return m.judged(lambda: checkpoints.load(path), "c.safetensors", folder)


@pytest.mark.parametrize("place", HEADER, ids=".".join)
def test_other_values_in_headers_of_checkpoints(place, tmp_path):
    for value in (None, True, -1, 10**30, 1.5, "x", "../x", [], {}, [[1]], "os.system", 2**40):
        load_with(tmp_path, place, value)


@m.again("header of a checkpoint")
@short
@given(place=st.sampled_from(HEADER), value=ODD)
def test_spoiled_headers_of_checkpoints(place, value):
    with tempfile.TemporaryDirectory() as folder:
        m.count("header of a checkpoint", load_with(Path(folder), place, value))


def test_spoiled_splits():
    s = m.structures()
    with tempfile.TemporaryDirectory() as folder:
        path = splits.save_indices(Path(folder) / "s.npz", s, {"train": np.array([0, 1])})
        data = path.read_bytes()

    @short
    @given(steps=m.BYTES)
    def check(steps):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "s.npz"
            path.write_bytes(m.spoiled(data, steps))
            made = m.judged(lambda: splits.load_indices(path, s), "s.npz", Path(folder))
            m.count("split", made)
            if made is not None:
                assert all(rows.dtype.kind in "iu" for rows in made.values())

    m.for_minutes(check, "split")


@pytest.mark.parametrize(
    "rows",
    [
        *([0.5], ["0"], [True], [-1], [3], [2**40], [[0]], 0, [0, 0], np.zeros(1, "M8[s]")),
        np.zeros(1, complex),
    ],
)
def test_splits_of_other_kinds(rows, tmp_path):
    s = m.structures()
    path = splits.save_indices(tmp_path / "s.npz", s, {"train": np.asarray(rows)})
    assert m.judged(lambda: splits.load_indices(path, s), "s.npz", tmp_path) is None


def test_spoiled_specs():
    text = yaml.safe_dump(SPEC).encode()

    @short
    @given(steps=m.BYTES)
    def check(steps):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "spec.yaml"
            path.write_bytes(m.spoiled(text, steps))
            made = m.judged(lambda: yaml_form.read(path), "spec.yaml", Path(folder))
            m.count("spec", made)

    m.for_minutes(check, "spec")


# --- what once went wrong ------------------------------------------------------------------------

TRILLION = b"(1000000000000,), }"
ONCE = {
    "a name in .npz that takes in what follows": (
        "sgdml",
        "f.npz",
        b"\x05\x00\x14\x00R.npy",
        b"\x05\x03\x14\x00R.npy",
    ),
    "a count that ASE follows to the end": ("sgdml-xyz", "f.xyz", b"3\n", b"1000000000000\n"),
    "a count of thirty digits": ("xyz", "f.xyz", b"3\n", b"9" * 30 + b"\n"),
    "a count of other digits": ("xyz", "f.xyz", b"3\n", "²\n".encode()),
    "columns without end": ("extxyz", "f.extxyz", b"forces:R:3", b"forces:R:1000000000000"),
    "columns twice": ("extxyz", "f.extxyz", b"forces:R:3", b"pos:R:3"),
    "an id too large": ("iso17", "validation_ids.txt", b"3", b"1e30"),
    "an id of other digits": ("iso17", "validation_ids.txt", b"3", "²".encode()),
    "a database that is none": ("iso17", "reference.db", b"SQLite", b"sqLite"),
    "a header of .npy that is no Python": ("store", "f/ptr.npy", b"(4,)", b"1e30"),
    "a header of .npy that does not end": ("deepmd", "f/set.000/energy.npy", b"}", b" "),
    "10^12 rows in .npy": ("deepmd", "f/set.000/energy.npy", b"(3,), }" + b" " * 12, TRILLION),
    "10^12 rows in a store": ("store", "f/energy.npy", b"(3,), }" + b" " * 12, TRILLION),
    "a store without its info": ("store", "f/potkit.json", b'"info"', b'"other"'),
    "names of systems that are none": ("store", "f/potkit.json", b'"water"\n', b"[1]\n"),
    "a position beyond single precision": ("runner", "input.data", b"0.0 0.0 ", b"1e300 0.0 "),
    "a cell that is no number": ("runner", "input.data", b"lattice 17.0", b"lattice nan"),
    "a cell beyond all numbers": (
        "runner",
        "input.data",
        b"lattice 17.0 0.0",
        b"lattice 1e300 1.0",
    ),
    "a cell that is no array": ("ase-json", "f.json", b'"cell": {', b'"cell": {"a": 1}, "b": {'),
    "a first frame that does not begin": ("runner", "input.data", b"begin", b"\x1fegin"),
    "a first frame that does not begin, and a cell that is no number": (
        "runner",
        "input.data",
        b"begin\ncomment x\nlattice 17.0",
        b"\x1fegin\ncomment x\nlattice nan",
    ),
    "a database whose tables have names that are no text": (
        "ase-db",
        "f.db",
        b"tablesystems",
        b"tablesyste\xb2s",
    ),
    "a frame without positions": ("ase-json", "f.json", b'"positions"', b'"\xc3\xa9sitions"'),
    "a frame without a cell": ("ase-json", "f.json", b'"cell"', b'"ce\xc3"'),
    "a box of two numbers": ("ase-json", "f.json", b'"pbc": {"__nd', b'"pbc": [true], "x": {"__nd'),
    "a stress that is a text": ("ase-json", "f.json", b'"energy":', b'"stress": "a", "energy":'),
    "a stress of two numbers": ("ase-json", "f.json", b'"energy":', b'"stress": [1, 2], "energy":'),
    "damaged gzip": ("packed", "f.xyz.gz", b"\x03", b"\xff"),
}


@pytest.mark.parametrize("what", ONCE)
def test_what_once_went_wrong(what, tmp_path):
    name, file, old, new = ONCE[what]
    files = valid(name)
    assert old in files[file]
    m.write_files(tmp_path / "place", files | {file: files[file].replace(old, new, 1)})
    assert m.read(tmp_path / "place" / m.FILES[name][1]) is None


def test_once_too_large_to_cast(tmp_path):
    """ASE's own files: positions that single precision cannot hold."""
    frame = m.frames()[0]
    frame.positions[0, 0] = 1e60
    frame.write(tmp_path / "f.traj")
    assert m.read(tmp_path / "f.traj") is None


@pytest.mark.parametrize("number", [-1, 119, 2**40])
def test_elements_that_are_none_read_through_ase(number, tmp_path):
    frame = m.frames()[0]
    frame.numbers[0] = number
    with ase.io.Trajectory(tmp_path / "f.traj", "w") as file:
        file.write(frame)
    assert m.read(tmp_path / "f.traj") is None


@pytest.mark.parametrize("name", ["sgdml", "rmd17", "tip3p-npz"])
def test_npz_that_claims_what_it_does_not_hold(name, tmp_path):
    arrays, _, file = m.OF_ARRAYS[name]
    for key in arrays:
        with zipfile.ZipFile(tmp_path / file, "w") as archive:
            for other, array in arrays.items():
                out = io.BytesIO()
                shape = (10**12, *array.shape[1:]) if other == key else array.shape
                header = {"descr": array.dtype.str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(out, header)
                out.write(array.tobytes())
                archive.writestr(f"{other}.npy", out.getvalue())
        assert m.read(tmp_path / file) is None, key


@pytest.mark.parametrize("name", ["store-file", "spice", "spice-conformers", "ani1"])
@pytest.mark.parametrize("number, size", [(0, 0), (5, 2**64 - 16)])
def test_texts_of_hdf5_that_have_no_end(name, number, size, tmp_path):
    """HDF5 itself never comes back from these, and no signal's handler runs meanwhile."""
    [(file, data)] = valid(name).items()
    at = data.index(b"GCOL") + 16
    # the texts in the heap, then the free space
    while int.from_bytes(data[at : at + 2], "little"):
        at += 16 + (int.from_bytes(data[at + 8 : at + 16], "little") + 7) // 8 * 8
    spoiled = number.to_bytes(2, "little") + bytes(6) + size.to_bytes(8, "little")
    (tmp_path / file).write_bytes(data[:at] + spoiled + data[at + 16 :])
    assert m.read(tmp_path / file) is None


@pytest.mark.parametrize("name", ["ani1", "ani1x", "spice", "spice-conformers"])
@pytest.mark.parametrize("word", ["g\ng", "g\r\x1b[31mg", "g\u2028g"])
def test_names_that_are_no_line(name, word, tmp_path):
    """A damaged name of a group or data set stands in the message, and that stays one line."""
    arrays, write, file = m.OF_ARRAYS[name]
    for key in m.share(arrays, 0, 3):
        group, _, what = key.rpartition("/")
        for number, other in enumerate((f"{group}/{word}", f"{group}{word}/{what}")):
            folder = tmp_path / f"{what}-{number}"
            folder.mkdir()
            renamed = {other if k == key else k: array for k, array in arrays.items()}
            write(folder / file, renamed)
            m.read(folder / file)


def test_texts_of_hdf5_are_read_where_bytes_look_like_a_heap(tmp_path):
    """Numbers that happen to begin as a heap does are no damage."""
    arrays, write, file = m.OF_ARRAYS["spice"]
    looks = np.frombuffer(b"GCOL\x01" + bytes(3) + b"\xff" * 16, np.uint8)
    write(tmp_path / file, arrays | {"m/more": looks})
    assert b"GCOL\x01\0\0\0\xff" in (tmp_path / file).read_bytes()
    assert m.read(tmp_path / file) is not None
