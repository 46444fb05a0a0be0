"""What the fuzz tests of the readers share: small valid files, ways to spoil them, and the judge.

A file is spoiled as bytes (any format), as text (words of it replaced) or as arrays (the arrays it
is written from replaced by others, before it is written).
"""

from __future__ import annotations

import faulthandler
import io
import os
import resource
import signal
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ase.db
import ase.io
import h5py
import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

import potkit
from potkit.errors import PotkitError
from potkit.structures.arrays import SINGLE

SECONDS = 10  # of processor time: others may need the machine as well
PATIENCE = 90  # s that pass at most, for a reader that waits
MEMORY = 2 << 30  # bytes a reader may ask for

# --- how much is tried ---------------------------------------------------------------------------


def examples_tried() -> int:
    """How many times as many examples as `make test` tries (POTKIT_FUZZ)."""
    return int(os.environ.get("POTKIT_FUZZ", "1"))


def minutes() -> float:
    """Minutes per format and settings model (POTKIT_FUZZ_MINUTES); 0 for a number of examples
    instead.
    """
    return float(os.environ.get("POTKIT_FUZZ_MINUTES", "0"))


def some(examples: int, **more: Any) -> settings:
    """Hypothesis' settings for so many ``examples`` in `make test`: there always the same ones."""
    return settings(
        max_examples=examples * examples_tried(),
        derandomize=examples_tried() == 1 and not minutes(),
        database=None,
        suppress_health_check=list(HealthCheck),
        **more,
    )


COUNTS: Counter = Counter()  # (what, "refused" or "taken") -> examples


def count(what: str, made: Any) -> None:
    """Note an example of ``what``, refused where nothing was ``made`` of it."""
    COUNTS[what, "refused" if made is None else "taken"] += 1


def for_minutes(check: Callable[[], Any], what: str) -> None:
    """``check`` once, or again and again for the minutes that were asked for; says how many
    examples of ``what`` it has tried (`pytest -rP` shows it).
    """
    start = time.monotonic()
    try:
        check()
        while time.monotonic() < start + 60 * minutes():
            check()
    finally:
        refused, taken = COUNTS[what, "refused"], COUNTS[what, "taken"]
        seconds = time.monotonic() - start
        print(f"{what}: {refused + taken} in {seconds:.0f} s, {refused} refused, {taken} taken")


def again(what: str) -> Callable[[Callable[[], Any]], Callable[[], None]]:
    """Makes of a test of hypothesis one that obeys the minutes (see `for_minutes`)."""

    def wrap(check: Callable[[], Any]) -> Callable[[], None]:
        def test() -> None:
            for_minutes(check, what)

        return test

    return wrap


# --- the judge -----------------------------------------------------------------------------------


TIMERS = {
    signal.SIGPROF: (signal.ITIMER_PROF, SECONDS),
    signal.SIGALRM: (signal.ITIMER_REAL, PATIENCE),
}


class Hang(BaseException):
    """A reader that took longer than SECONDS. Within a library of C's nothing can be raised: such a
    reader ends the whole process after twice PATIENCE, with the lines that it stands at.
    """


@contextmanager
def limited() -> Iterator[None]:
    """At most SECONDS and MEMORY within; numbers that a type cannot hold make no noise."""
    late = []

    def too_long(number: int, frame: Any) -> None:
        late.append(number)  # what is raised while garbage is collected is lost
        raise Hang

    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    handlers = {number: signal.signal(number, too_long) for number in TIMERS}
    for timer, seconds in TIMERS.values():
        signal.setitimer(timer, seconds)
    faulthandler.dump_traceback_later(2 * PATIENCE, exit=True, file=sys.__stderr__)
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, before[1]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            yield
    except Hang:
        pass  # told below, as a failure of the example
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
        faulthandler.cancel_dump_traceback_later()
        for number, (timer, _) in TIMERS.items():
            signal.setitimer(timer, 0)
            signal.signal(number, handlers[number])
    if late:
        seconds = SECONDS if late[0] == signal.SIGPROF else PATIENCE
        raise AssertionError(f"more than {seconds} s")


def judged(call: Callable[[], Any], culprit: str, folder: Path) -> Any:
    """What ``call`` returns, or None where it raises potkit's error in one line that names
    ``culprit``. Nothing may come into ``folder``, and nothing may go.
    """
    before = sorted(folder.rglob("*"))
    made = None
    with limited():
        try:
            made = call()
        except PotkitError as error:
            line = str(error)
            assert line and line.isprintable() and len(line) < 3000, line
            assert culprit in line, f"{line!r} does not name {culprit}"
    assert sorted(folder.rglob("*")) == before
    return made


def read(path: Path, **options: Any) -> potkit.Structures | None:
    """``path`` as `potkit.read` reads it, or None where it says why not. What is read can be
    trusted: every number is finite, or the set says so when it is looked at.
    """

    def both() -> potkit.Structures:
        made = potkit.read(path, **options)
        try:
            made.validate()
        except PotkitError as error:
            if made.info.get("source_format"):  # a store alone is not looked at when it is opened
                raise AssertionError(f"read, and then: {error}") from error
            return None
        return made

    made = judged(both, path.stem, path.parent)
    if made is not None:
        assert len(made) and (made.n_atoms > 0).all()
        assert made.z.min() >= 1 and np.abs(made.pos).max() <= SINGLE
    return made


def same(a: potkit.Structures, b: potkit.Structures) -> bool:
    """Whether both mean the same, to single precision."""
    for name, one in a.arrays().items():
        other = b.arrays().get(name)
        if other is None or one.shape != other.shape:
            return False
        if not np.allclose(one, other, rtol=1e-5, atol=1e-5, equal_nan=True):
            return False
    return a.arrays().keys() == b.arrays().keys()


# --- small valid files ---------------------------------------------------------------------------

WATER = np.array([[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]])  # Å
Z = np.array([8, 1, 1], np.uint8)
N = 3  # structures
HARTREE = np.array([-76.4, -76.39, -76.41])
EV = HARTREE * 27.211386
KCAL = HARTREE * 627.5095


def positions() -> np.ndarray:
    """[N, 3, 3] Å"""
    return WATER + np.random.default_rng(0).normal(0, 0.02, (N, 3, 3))


def forces() -> np.ndarray:
    """[N, 3, 3] in any unit"""
    return np.random.default_rng(1).normal(0, 0.1, (N, 3, 3))


def _columns(k: int, what: np.ndarray | None = None) -> str:
    values = positions()[k] if what is None else np.hstack([positions()[k], what[k]])
    rows = zip("OHH", values, strict=True)
    return "\n".join(f"{s} " + " ".join(f"{x:.8f}" for x in row) for s, row in rows)


def _frames(comment: Callable[[int], str], what: np.ndarray | None = None) -> bytes:
    return "".join(f"3\n{comment(k)}\n{_columns(k, what)}\n" for k in range(N)).encode()


def extxyz() -> dict[str, bytes]:
    layout = "Properties=species:S:1:pos:R:3:forces:R:3"
    lattice = 'Lattice="9.0 0.0 0.0 0.0 9.0 0.0 0.0 0.0 9.0" pbc="T T T"'
    stress = 'stress="0.1 0.2 0.3 0.0 0.0 0.0"'
    comment = f"{layout} {lattice} {stress} charge=0"
    return {"f.extxyz": _frames(lambda k: f"{comment} energy={EV[k]:.6f}", forces())}


def xyz() -> dict[str, bytes]:
    return {"f.xyz": _frames(lambda k: "a comment")}


def sgdml_xyz() -> dict[str, bytes]:
    return {"f.xyz": _frames(lambda k: f"{KCAL[k]:.6f}", forces())}


def qm22() -> dict[str, bytes]:
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("f.xyz", _frames(lambda k: f"{HARTREE[k]:.6f}", forces()))
    return {"f.zip": out.getvalue()}


def runner() -> dict[str, bytes]:
    lines = []
    for k in range(N):
        lines += ["begin", "comment x"]
        lines += [f"lattice {row[0]} {row[1]} {row[2]}" for row in 17.0 * np.eye(3)]
        for s, p, f in zip("OHH", positions()[k] / 0.529177, forces()[k], strict=True):
            numbers = "{:.6f} {:.6f} {:.6f} {} 0.0 0.0 {:.6f} {:.6f} {:.6f}"
            lines.append("atom " + numbers.format(*p, s, *f))
        lines += [f"energy {HARTREE[k]}", "charge 0.0", "end"]
    return {"input.data": "\n".join(lines).encode() + b"\n"}


def frames() -> list[Atoms]:
    """As ASE holds them."""
    out = []
    for k in range(N):
        atoms = Atoms(Z, positions()[k], cell=9.0 * np.eye(3), pbc=True)
        atoms.calc = SinglePointCalculator(atoms, energy=EV[k], forces=forces()[k])
        out.append(atoms)
    return out


def _by_ase(name: str, **options: Any) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        one = options.pop("one", False)
        ase.io.write(folder / name, frames()[0] if one else frames(), **options)

    return write


def _database(name: str) -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        with ase.db.connect(folder / name, use_lock_file=False) as base:
            for atoms in frames():
                base.write(atoms, system="water", data={"more": [1.0, 2.0]})

    return write


def iso17(folder: Path) -> None:
    for name in ("reference.db", "test_within.db"):
        with ase.db.connect(folder / name, use_lock_file=False) as base:
            for k, atoms in enumerate(frames()):
                atoms.calc = None
                base.write(atoms, total_energy=EV[k], data={"atomic_forces": forces()[k]})
    (folder / "train_ids.txt").write_text("1\n2\n")
    (folder / "validation_ids.txt").write_text("3\n")


def structures() -> potkit.Structures:
    return potkit.Structures(
        z=np.tile(Z, N),
        pos=positions().reshape(-1, 3).astype(np.float32),
        ptr=np.arange(N + 1) * 3,
        energy=EV,
        forces=forces().reshape(-1, 3).astype(np.float32),
        info={"name": "water", "systems": ["water"]},
    )


def packed(folder: Path) -> None:
    """Gzipped."""
    import gzip

    (folder / "f.xyz.gz").write_bytes(gzip.compress(xyz()["f.xyz"]))


# --- files made of arrays ------------------------------------------------------------------------

Arrays = dict[str, Any]


def _text(words: Any) -> np.ndarray:
    return np.array(words, h5py.string_dtype())


ANI1 = {"g/m/coordinates": positions(), "g/m/energies": HARTREE, "g/m/species": _text([*"OHH"])}
ANI1 |= {"g/m/forces": forces()}
ANI1X = {
    "OH2/coordinates": positions(),
    "OH2/atomic_numbers": Z,
    "OH2/wb97x_dz.energy": HARTREE,
    "OH2/wb97x_dz.forces": forces(),
}
SPICE = {
    "m/conformations": positions(),
    "m/atomic_numbers": Z,
    "m/formation_energy": HARTREE / 100,
    "m/dft_total_gradient": forces(),
    "m/mbis_charges": np.tile(np.array([-0.8, 0.4, 0.4])[None, :, None], (N, 1, 1)),
    "m/smiles": _text(["[O:1]([H:2])[H:3]"]),
    "m/subset": _text(["waters"]),
}
CONFORMERS = {"m/conformations": positions() / 10, "m/smiles": _text(["[O:1]([H:2])[H:3]"])}
SGDML = {"R": positions(), "E": KCAL, "F": forces(), "z": Z, "lattice": 9.0 * np.eye(3)}
RMD17 = {"coords": positions(), "energies": KCAL, "forces": forces(), "nuclear_charges": Z}
TIP3P = {"pos": WATER, "energy": np.array(-40.0), "forces": forces()[0]}
DEEPMD = {
    "coord": positions().reshape(N, -1),
    "box": np.tile(9.0 * np.eye(3).reshape(-1), (N, 1)),
    "energy": EV,
    "force": forces().reshape(N, -1),
    "virial": np.tile(np.eye(3).reshape(-1), (N, 1)),
    "real_atom_types": np.tile([0, 1, 1], (N, 1)),
}
STORE = {name: np.array(array) for name, array in structures().arrays().items()}


class Link:
    """In place of an array: something of HDF5's that is none. ``make(group, name)`` puts it there,
    instead of the ``array``.
    """

    def __init__(self, make: Callable[[h5py.Group, str, np.ndarray], Any], array: Any) -> None:
        self.make = make
        self.array = array


def write_hdf5(path: Path, arrays: Arrays, attributes: dict[str, Any] | None = None) -> None:
    with h5py.File(path, "w") as file:
        for key, value in (attributes or {}).items():
            file.attrs[key] = value
        for name, array in arrays.items():
            group, _, key = name.rpartition("/")
            group = file.require_group(group) if group else file
            if isinstance(array, Link):
                array.make(group, key, array.array)
            else:
                data = group.create_dataset(key, data=array)
                if key == "conformations" and "m/formation_energy" in arrays:
                    data.attrs["units"] = "angstrom"


def write_npz(path: Path, arrays: Arrays) -> None:
    with open(path, "wb") as file:
        np.savez_compressed(file, **arrays)


def write_deepmd(path: Path, arrays: Arrays) -> None:
    (path / "set.000").mkdir(parents=True)
    (path / "type.raw").write_text("0 1 1")
    (path / "type_map.raw").write_text("O H")
    for name, array in arrays.items():
        np.save(path / "set.000" / f"{name}.npy", array)


def write_store(path: Path, arrays: Arrays) -> None:
    structures().save(path)
    for name in STORE:
        (path / f"{name}.npy").unlink()
    for name, array in arrays.items():
        np.save(path / f"{name}.npy", array)


def write_store_file(path: Path, arrays: Arrays) -> None:
    structures().save(path)
    with h5py.File(path) as file:
        header = file.attrs["potkit"]
    write_hdf5(path, arrays, {"potkit": header})


# name -> (arrays, how they are written, the file's name)
OF_ARRAYS: dict[str, tuple[Arrays, Callable[[Path, Arrays], None], str]] = {
    "ani1": (ANI1, write_hdf5, "f.h5"),
    "ani1x": (ANI1X, write_hdf5, "f.h5"),
    "spice": (SPICE, write_hdf5, "f.hdf5"),
    "spice-conformers": (CONFORMERS, write_hdf5, "f.hdf5"),
    "sgdml": (SGDML, write_npz, "f.npz"),
    "rmd17": (RMD17, write_npz, "f.npz"),
    "tip3p-npz": (TIP3P, write_npz, "f.npz"),
    "deepmd": (DEEPMD, write_deepmd, "f"),
    "store": (STORE, write_store, "f"),
    "store-file": (STORE, write_store_file, "f.h5"),
}


def _files(write: Callable[[Path], None]) -> dict[str, bytes]:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder)
        files = [f for f in sorted(folder.rglob("*")) if f.is_file()]
        return {f.relative_to(folder).as_posix(): f.read_bytes() for f in files}


def _of_arrays(name: str) -> Callable[[], dict[str, bytes]]:
    arrays, write, file = OF_ARRAYS[name]
    return lambda: _files(lambda folder: write(folder / file, arrays))


# name -> a function that gives the valid files, and what is read of them
FILES: dict[str, tuple[Callable[[], dict[str, bytes]], str]] = {
    "extxyz": (extxyz, "f.extxyz"),
    "xyz": (xyz, "f.xyz"),
    "sgdml-xyz": (sgdml_xyz, "f.xyz"),
    "qm22": (qm22, "f.zip"),
    "runner": (runner, "input.data"),
    "packed": (lambda: _files(packed), "f.xyz.gz"),
    "ase-db": (lambda: _files(_database("f.db")), "f.db"),
    "ase-json": (lambda: _files(_database("f.json")), "f.json"),
    "ase-cif": (lambda: _files(_by_ase("f.cif")), "f.cif"),
    "ase-traj": (lambda: _files(_by_ase("f.traj")), "f.traj"),
    "ase-vasp": (lambda: _files(_by_ase("POSCAR", format="vasp", one=True)), "POSCAR"),
    "iso17": (lambda: _files(iso17), ""),
    **{name: (_of_arrays(name), OF_ARRAYS[name][2]) for name in OF_ARRAYS},
}


# --- ways to spoil bytes -------------------------------------------------------------------------

RUNS = [b"\xff" * 4, b"\0" * 8, b"\x7f" + b"\xff" * 7, b"\0", b"\n", b'"', b"\xc3\xa9", b"-", b" "]
WORDS = [
    *("nan", "inf", "-inf", "1e400", "1e30", "-1", "0", "1000000000", "1000000000000", "9" * 30),
    *("x", "é", "²", "1_0", "1.5", "0x10", "", "T", "1e-1", "Q", "[", "{}", "pos:R:3", '"'),
]
PLACE = st.floats(0, 1, exclude_max=True)
BYTES = st.lists(
    st.one_of(
        st.tuples(st.just("flip"), PLACE, st.integers(1, 255)),
        st.tuples(st.just("put"), PLACE, st.sampled_from(RUNS)),
        st.tuples(st.just("insert"), PLACE, st.sampled_from(RUNS)),
        st.tuples(st.just("cut"), PLACE, st.none()),
        st.tuples(st.just("drop"), PLACE, st.integers(1, 64)),
        st.tuples(st.just("twice"), PLACE, st.integers(1, 200)),
        st.tuples(st.just("word"), PLACE, st.sampled_from(WORDS)),
    ),
    min_size=1,
    max_size=3,
)


def spoiled(data: bytes, steps: list[tuple[str, float, Any]]) -> bytes:
    """``data`` after each of ``steps`` of BYTES."""
    for what, place, value in steps:
        at = int(place * len(data))
        if what == "flip" and data:
            data = data[:at] + bytes([data[at] ^ value]) + data[at + 1 :]
        elif what == "put":
            data = data[:at] + value + data[at + len(value) :]
        elif what == "insert":
            data = data[:at] + value + data[at:]
        elif what == "cut":
            data = data[:at]
        elif what == "drop":
            data = data[:at] + data[at + value :]
        elif what == "twice":
            data = data[: at + value] + data[at:]
        elif what == "word" and (words := data.split(b" ")):
            words[int(place * len(words))] = value.encode()
            data = b" ".join(words)
    return data


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


# --- ways to spoil arrays ------------------------------------------------------------------------


def _with(array: np.ndarray, value: Any, dtype: Any = None) -> np.ndarray:
    out = np.array(array, dtype or array.dtype)
    out.reshape(-1)[-1] = value
    return out


# the array holds the same numbers, in another type or order of bytes: read as if nothing was
KEPT: dict[str, Callable[[np.ndarray], Any]] = {
    "float64": lambda a: a.astype(np.float64),
    "big-endian": lambda a: a.astype(a.dtype.newbyteorder(">")),
    "Fortran's order": np.asfortranarray,
}
# numbers replaced by what are none, or by numbers that are none of this array: always refused
WRONG: dict[str, Callable[[np.ndarray], Any]] = {
    "complex": lambda a: a + 1j,
    "text": lambda a: np.array(a.astype(float).tolist()).astype("S8"),
    "flags": lambda a: np.zeros(a.shape, bool),
    "records": lambda a: np.zeros(a.shape, [("x", "f8"), ("y", "f8")]),
    "infinite": lambda a: _with(a, np.inf, np.float64),
    "beyond single precision": lambda a: _with(a, 1e300, np.float64),
    "empty": lambda a: np.empty((0, *a.shape[1:]), a.dtype),
    "a row more": lambda a: np.concatenate([a, a[-1:]]) if a.ndim else np.array([1.0, 2.0]),
    "an axis more": lambda a: np.stack([a, a], -1),
    "dates": lambda a: np.zeros(a.shape, "M8[s]"),
}
# of arrays of whole numbers
NOT_WHOLE: dict[str, Callable[[np.ndarray], Any]] = {
    "a fraction": lambda a: _with(a, 1.5, np.float64),
    "too large": lambda a: _with(a, 300, np.int64),
    "negative": lambda a: _with(a, -5, np.int64),
    "NaN": lambda a: _with(a, np.nan, np.float64),
}


def _cycle(group: h5py.Group, name: str, array: np.ndarray) -> None:
    group[name] = group


def _claims(group: h5py.Group, name: str, array: np.ndarray) -> None:
    shape = (10**9, *np.shape(array)[1:])
    group.create_dataset(name, shape, "f8", chunks=(1000, *np.shape(array)[1:]))


def _claims_packed(group: h5py.Group, name: str, array: np.ndarray) -> None:
    shape = (10**12, *np.shape(array)[1:])
    chunks = (1000, *np.shape(array)[1:])
    data = group.create_dataset(name, shape, "f8", chunks=chunks, compression="gzip")
    data[:1] = 1.0


def _claims_whole(group: h5py.Group, name: str, array: np.ndarray) -> None:
    group.create_dataset(name, (10**9, 3), "f8")


def _virtual(group: h5py.Group, name: str, array: np.ndarray) -> None:
    layout = h5py.VirtualLayout(np.shape(array) or (1,), "f8")
    layout[:] = h5py.VirtualSource("elsewhere.h5", "x", shape=np.shape(array) or (1,))
    group.create_virtual_dataset(name, layout)


def _external(group: h5py.Group, name: str, array: np.ndarray) -> None:
    shape = np.shape(array) or (1,)
    group.create_dataset(name, shape, "f8", external=[("elsewhere.raw", 0, h5py.h5f.UNLIMITED)])


def _vlen(group: h5py.Group, name: str, array: np.ndarray) -> None:
    group.create_dataset(name, (2,), h5py.vlen_dtype(np.float64))


def _enum(group: h5py.Group, name: str, array: np.ndarray) -> None:
    kind = h5py.enum_dtype({"A": 0, "B": 1}, basetype="i1")
    group.create_dataset(name, np.shape(array), kind)


def _unwritten(group: h5py.Group, name: str, array: np.ndarray) -> None:
    group.create_dataset(name, np.shape(array), np.asarray(array).dtype)


# what HDF5 has that is no array: always refused
LINKS: dict[str, Callable[[h5py.Group, str, np.ndarray], Any]] = {
    "a link back": _cycle,
    "a group": lambda group, name, array: group.create_group(name),
    "a link to nowhere": lambda g, name, array: g.__setitem__(name, h5py.SoftLink("/nowhere")),
    "a link out": lambda g, name, array: g.__setitem__(name, h5py.ExternalLink("x.h5", "/x")),
    "no values": lambda g, name, array: g.create_dataset(name, data=h5py.Empty("f8")),
    "10^9 rows": _claims,
    "10^12 packed rows": _claims_packed,
    "10^9 rows in one piece": _claims_whole,
    "values elsewhere": _virtual,
    "values in a raw file": _external,
    "rows of any length": _vlen,
    "an enumeration": _enum,
    "a named type": lambda g, name, array: g.__setitem__(name, np.dtype("f8")),
    "references": lambda g, name, array: g.create_dataset(name, data=g.ref, dtype=h5py.ref_dtype),
    "never written": _unwritten,
}


def share(ways: dict[str, Any], number: int, of: int) -> dict[str, Any]:
    """All ``ways`` in `make fuzz`, else every ``of``-th, from another one on by ``number``."""
    if examples_tried() > 1 or minutes():
        return ways
    return {name: way for k, (name, way) in enumerate(ways.items()) if (k + number) % of == 0}
