"""How packed arrays lie on disk: a folder of .npy files, which can be memory-mapped, or one
compressed HDF5 file. Written under a temporary name, then moved.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from filelock import FileLock, Timeout

from ..errors import Busy, DataError
from . import outputs
from .array_files import check_texts, first_line, load_hdf5, open_hdf5, read_npy, require_numbers
from .arrays import PER_ATOM, cast
from .outputs import PART, Kind, reason

FORMAT = "potkit-structures"
FORMAT_VERSION = 1
SCAN = 1 << 22  # entries looked at at once, so that checking a large set needs no large temporary


@dataclass(frozen=True)
class Rows:
    """The rows of ``array``, which is mapped from ``path``, read by call instead of through the
    mapping.

    A mapping is the wrong tool for a few rows from all over a large file: the kernel maps whole
    folios around each of them, up to 2 MB, so that 256 random structures of a set bring nearly all
    of it into resident memory.
    """

    array: np.ndarray
    path: Path
    offset: int  # bytes before the first row

    def take(self, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        """The rows ``starts[i] … starts[i] + counts[i]`` one run after the other, as a new array.
        Raises DataError.
        """
        starts, counts = starts[counts > 0], counts[counts > 0]
        out = np.empty((int(counts.sum()), *self.array.shape[1:]), self.array.dtype)
        if not out.size:
            return out
        width = out.nbytes // len(out)  # bytes of a row
        # runs that touch are read as one
        first = np.flatnonzero(np.concatenate([[True], starts[1:] != starts[:-1] + counts[:-1]]))
        sizes = np.add.reduceat(counts, first) * width
        places = starts[first] * width + self.offset
        buffer = memoryview(out.reshape(-1).view(np.uint8))
        try:
            file = os.open(self.path, os.O_RDONLY)
            try:
                filled = 0
                for place, size in zip(places.tolist(), sizes.tolist(), strict=True):
                    self._fill(file, place, buffer[filled : filled + size])
                    filled += size
            finally:
                os.close(file)
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror or error})") from error
        return out

    def _fill(self, file: int, place: int, buffer: memoryview) -> None:
        """Read ``buffer`` full from byte ``place`` on; the system may hand over less at once."""
        end = place + len(buffer)
        while len(buffer):
            n_read = os.preadv(file, [buffer], place)
            if not n_read:
                raise DataError(f"{self.path}: ends before byte {end}: the file is truncated")
            place += n_read
            buffer = buffer[n_read:]


def pieces(array: np.ndarray, overlap: int = 0) -> Iterator[np.ndarray]:
    """``array`` in runs of SCAN entries (and ``overlap`` more, shared with the next run)."""
    return (array[i : i + SCAN + overlap] for i in range(0, len(array), SCAN))


def spread(starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The numbers starts[i], starts[i] + 1 … starts[i] + counts[i] − 1, one run after the other."""
    ends = np.cumsum(counts)
    return np.repeat(starts - ends + counts, counts) + np.arange(ends[-1] if len(ends) else 0)


def writeable(array: np.ndarray) -> np.ndarray:
    """A view that torch takes without a warning; the pages of a mapped store are copy-on-write,
    the file is safe.
    """
    view = np.asarray(array).view()
    owner = array if array.base is None else array.base
    if not view.flags.writeable and isinstance(owner, (np.memmap, mmap.mmap)):
        view.flags.writeable = True
    return view


# -- what a store is, for those who would replace it ---------------------------------------------
def _is_store_folder(path: Path) -> bool:
    """Whether ``path`` is a folder that `save` or `StoreWriter` wrote, with nothing of anybody
    else's in it.
    """
    from .arrays import ARRAYS

    known = {"potkit.json", *(f"{name}.npy" for name in ARRAYS)}
    with os.scandir(path) as entries:
        for entry in entries:
            ours = entry.name in known or outputs.is_temporary(entry.name)
            if not (ours and entry.is_file(follow_symlinks=False)):
                return False
    return outputs.read_json(path / "potkit.json").get("format") == FORMAT


def _is_store_file(path: Path) -> bool:
    from .arrays import ARRAYS

    check_texts(path)
    with h5py.File(path, "r") as file:
        return json.loads(file.attrs["potkit"])["format"] == FORMAT and set(file) <= set(ARRAYS)


STORE = Kind("a store of potkit's", _is_store_folder, folder=True, replaced=True)
STORE_FILE = Kind("a store of potkit's (.h5)", _is_store_file)


# -- writing: under a temporary name, then moved -------------------------------------------------
@contextmanager
def replacing(path: str | Path, kind: Kind = PART) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends well, and is
    removed when it does not. What killed writers of ``path`` left beside it goes, too.

    Raises DataError, before the block and again before anything is moved, where `outputs.check`
    lets nothing of ``kind`` be written; and for what the operating system refuses, such as a full
    disk. A link is followed: what it points to is replaced.
    """
    place = outputs.check(path, kind)
    temporary = outputs.temporary(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep_abandoned(place, kind)
        yield temporary
        outputs.check(place, kind)  # it may have taken hours
        _move(temporary, place, path, kind)
        if kind.replaced:
            _sweep_abandoned(place)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({reason(error)})") from error
    finally:
        sweep(temporary)


def _move(temporary: Path, place: Path, path: str | Path, kind: Kind) -> None:
    """Give ``temporary`` the name ``place``. A folder that is there goes aside first, is looked at
    once more, and only then removed.
    """
    aside: list[Path] = []
    try:
        while not _moved(temporary, place, kind):
            old = outputs.temporary(place)
            with suppress(FileNotFoundError):  # another process was quicker
                os.replace(place, old)
                aside.append(old)
            if aside and not outputs.is_a(kind, aside[-1]):  # something came into it meanwhile
                raise DataError(f"{path}: changed while it was to be replaced; it is left as it is")
    except BaseException:
        if aside and not place.exists():
            os.replace(aside.pop(), place)
        raise
    for old in aside:
        for file in old.iterdir():
            file.unlink()  # of the store: it was looked at under this name, which nobody else knows
        old.rmdir()


def _moved(temporary: Path, place: Path, kind: Kind) -> bool:
    """Move ``temporary`` over a file, an empty folder or nothing; False where a folder that is to
    be replaced is in the way.
    """
    try:
        os.replace(temporary, place)
    except OSError as error:
        if kind.replaced and error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        raise
    return True


def sweep(temporary: Path) -> None:
    """Remove what lies under a name with potkit's mark, if anything does."""
    with suppress(OSError):
        if temporary.is_dir() and not temporary.is_symlink():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            temporary.unlink()


def _sweep_abandoned(place: Path, keep: Kind | None = None) -> None:
    """Remove what killed writers of ``place`` left beside it, but for a whole folder of the kind
    ``keep``: a kill between two moves leaves the only copy under such a name.
    """
    with suppress(OSError), os.scandir(place.parent) as entries:
        for entry in entries:
            if not outputs.abandoned(entry.name, place):
                continue
            left = Path(entry.path)
            whole = keep is not None and keep.replaced and outputs.is_a(keep, left)
            if not whole and entry.stat(follow_symlinks=False).st_uid == os.geteuid():
                sweep(left)


@contextmanager
def workspace(path: str | Path) -> Iterator[Path]:
    """A folder beside ``path`` for work in progress, removed at the end however it comes; after a
    kill, when the next one is made. Raises DataError where it cannot be made.
    """
    place = Path(os.path.realpath(path))
    folder = outputs.temporary(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        _sweep_abandoned(place)
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({reason(error)})") from error
    try:
        yield folder
    finally:
        sweep(folder)


@contextmanager
def only_writer(path: str | Path) -> Iterator[None]:
    """Hold ``path`` while it is written. Raises Busy if another process does; the operating system
    lets go when a process dies.
    """
    lock_path = outputs.lock_name(Path(os.path.realpath(path)))
    lock = FileLock(lock_path, timeout=0)
    try:
        lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise Busy(
            f"{path}: another process is writing it; wait for it or choose another name"
        ) from None
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({reason(error)})") from error
    try:
        yield
    finally:
        with suppress(OSError):
            lock_path.unlink()
        lock.release()


def remove_leftovers(path: Path) -> None:
    """Remove what writers of ``path`` left beside it when they were killed. Only where no other
    process writes it.
    """
    place = Path(os.path.realpath(path))
    if not place.parent.is_dir():
        return
    for left in list(place.parent.iterdir()):
        if outputs.is_temporary(left.name, place):
            sweep(left)
    sweep(outputs.lock_name(place))


def save(path: Path, arrays: dict[str, np.ndarray], info: dict[str, Any]) -> Path:
    """Write ``arrays`` and ``info`` to ``path``: one HDF5 file if it ends in .h5, else a folder."""
    header = _header(info)
    if path.suffix == ".h5":
        compressed = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
        # built in memory: HDF5 cannot close a file whose disk is full, and says so many times
        with (
            replacing(path, STORE_FILE) as temporary,
            h5py.File(temporary.name, "w", driver="core", backing_store=False) as file,
        ):
            file.attrs["potkit"] = header
            for name, array in arrays.items():
                file.create_dataset(name, data=array, **(compressed if array.size else {}))
            file.flush()
            temporary.write_bytes(file.id.get_file_image())
    else:
        with replacing(path, STORE) as temporary:
            temporary.mkdir()
            for name, array in arrays.items():
                _write_array(temporary / f"{name}.npy", array)
            (temporary / "potkit.json").write_text(header)
    return path


class _Stream:
    """A file that numpy does not know for one: it writes past Python else, and a full disk is only
    told by a count of bytes.
    """

    def __init__(self, file: Any) -> None:
        self.write = file.write


def _write_array(path: Path, array: np.ndarray) -> None:
    """As `numpy.save`, but that an error of the disk says what it is."""
    with open(path, "wb") as file:
        np.lib.format.write_array(_Stream(file), array, allow_pickle=False)


class StoreWriter:
    """A store folder that grows block by block, so that a set of any size is packed in bounded
    memory.

    Use it in a ``with`` block: until `finish`, everything lies under a temporary name beside
    ``path``, which goes when the block fails. Raises DataError for blocks that do not fit together
    and for a full disk.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.n_structures = 0
        self.n_atoms = 0
        # name -> file, dtype, shape of a row
        self._arrays: dict[str, tuple[Any, np.dtype, tuple[int, ...]]] = {}
        self._stack = ExitStack()
        self._finished = False

    def __enter__(self) -> StoreWriter:
        self._folder = self._stack.enter_context(replacing(self.path, STORE))
        with self._writing():
            self._folder.mkdir()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: Any) -> None:
        for file, _, _ in self._arrays.values():
            with suppress(OSError):
                file.close()
        if error is not None or self._finished:
            self._stack.__exit__(kind, error, trace)
            return
        unfinished = DataError(f"{self.path}: left unfinished")
        self._stack.__exit__(DataError, unfinished, trace)
        raise unfinished

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise DataError(f"{self.path}: cannot be written ({reason(error)})") from error

    def append(self, arrays: dict[str, np.ndarray]) -> None:
        """Add structures; ``arrays`` as `Structures.arrays` gives them, with ``ptr`` from 0. Every
        block has the same arrays.
        """
        if not self._arrays:
            with self._writing():
                for name, array in arrays.items():
                    file = open(self._folder / f"{name}.npy", "wb")  # noqa: SIM115 (closed at exit)
                    self._arrays[name] = (file, array.dtype, array.shape[1:])
                    self._header(name, 0)
                self._arrays["ptr"][0].write(np.zeros(1, np.int64).tobytes())
        if arrays.keys() != self._arrays.keys():
            raise DataError(
                f"{self.path}: a block has the arrays {sorted(arrays)}, those before "
                f"{sorted(self._arrays)}"
            )
        with self._writing():
            for name, array in arrays.items():
                file, dtype, row = self._arrays[name]
                if array.shape[1:] != row:
                    raise DataError(
                        f"{self.path}: rows of {name} have shape {array.shape[1:]}, those before "
                        f"{row}"
                    )
                if name == "ptr":
                    array = array[1:] + self.n_atoms
                file.write(np.ascontiguousarray(cast(name, array, dtype)).data)
        self.n_structures += len(arrays["ptr"]) - 1
        self.n_atoms += int(arrays["ptr"][-1])

    def _header(self, name: str, rows: int) -> None:
        file, dtype, row = self._arrays[name]
        file.seek(0)  # numpy leaves room in the header for the number of rows to grow
        content = {
            "descr": np.lib.format.dtype_to_descr(dtype),
            "fortran_order": False,
            "shape": (rows, *row),
        }
        np.lib.format.write_array_header_1_0(file, content)

    def finish(self, info: dict[str, Any], drop: Sequence[str] = ()) -> Path:
        """Complete the store, without the arrays ``drop``; it takes its place when the ``with``
        block ends.
        """
        with self._writing():
            for name, (file, _, _) in self._arrays.items():
                rows = self.n_atoms if name in PER_ATOM else self.n_structures
                if name == "ptr":
                    rows += 1
                self._header(name, rows)
                file.close()
            for name in drop:
                (self._folder / f"{name}.npy").unlink()
            (self._folder / "potkit.json").write_text(_header(info))
        self._finished = True
        return self.path


def set_info(path: Path, info: dict[str, Any]) -> None:
    """Give the store folder ``path`` another ``info``; the arrays stay as they are."""
    with replacing(path / "potkit.json") as temporary:
        temporary.write_text(_header(info))


def _header(info: dict[str, Any]) -> str:
    return json.dumps(
        {"format": FORMAT, "version": FORMAT_VERSION, "info": info}, default=str, indent=1
    )


def is_packed(path: Path) -> bool:
    """Whether ``path`` was written by `save`."""
    if path.is_dir():
        return (path / "potkit.json").is_file()
    try:
        with h5py.File(path, "r") as file:
            return "potkit" in file.attrs
    except (OSError, RuntimeError, ValueError, KeyError):
        return False


def _check_header(header: Any, path: Path) -> None:
    """Raise DataError where the header of a store is not what `_header` writes."""
    info = header.get("info") if isinstance(header, dict) else None
    if not isinstance(info, dict):
        raise DataError(f"{path}: not a readable potkit store (its header is damaged)")
    for name in ("systems", "partly_labelled", "notes", "unread", "isolated_atoms"):
        if not isinstance(info.get(name, []), list):
            raise DataError(f"{path}: its header is damaged: {name} is no list")
    for name in ("systems", "partly_labelled"):
        if not all(isinstance(item, str) for item in info.get(name, [])):
            raise DataError(f"{path}: its header is damaged: {name} holds more than text")


def open_(
    path: Path, mmap: bool = True, only: Sequence[str] | None = None
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays (those named in ``only``, if given) and the info that `save` wrote. Raises
    DataError for a file that is missing, truncated or foreign.
    """
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    try:
        if path.is_dir():
            header = json.loads((path / "potkit.json").read_text())
            # copy-on-write pages, since torch wants memory that could be written, yet marked as
            # read-only
            files = [f for f in sorted(path.glob("*.npy")) if only is None or f.stem in only]
            arrays = {f.stem: read_npy(f, "c" if mmap else None) for f in files}
            for array in arrays.values():
                array.flags.writeable = not mmap
        else:
            check_texts(path)
            with open_hdf5(path) as file:
                header = json.loads(file.attrs["potkit"])
                names = [name for name in file if only is None or name in only]
                arrays = {name: load_hdf5(file.get(name), path, kinds="fiub") for name in names}
    except DataError as error:
        reason = str(error).removeprefix(f"{path}: ")
        raise DataError(f"{path}: not a readable potkit store ({reason})") from error
    except (OSError, EOFError, KeyError, ValueError, TypeError, RecursionError) as error:
        raise DataError(f"{path}: not a readable potkit store ({first_line(error)})") from error
    for name, array in arrays.items():
        require_numbers(array, f"{path}: {name}", "fiub")
    _check_header(header, path)
    if header.get("version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: store version {header.get('version')}, this potkit reads version "
            f"{FORMAT_VERSION}"
        )
    return arrays, header["info"]
