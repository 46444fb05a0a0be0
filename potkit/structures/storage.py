"""How packed arrays lie on disk: a folder of .npy files, which can be memory-mapped, or one
compressed HDF5 file. Written under a temporary name, then moved.
"""

from __future__ import annotations

import json
import mmap
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from ..errors import DataError
from .arrays import PER_ATOM

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


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error).splitlines()[0]


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends well, and is
    removed when it does not.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({_reason(error)})") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink()


def save(path: Path, arrays: dict[str, np.ndarray], info: dict[str, Any]) -> Path:
    """Write ``arrays`` and ``info`` to ``path``: one HDF5 file if it ends in .h5, else a folder."""
    header = _header(info)
    with replacing(path) as temporary:
        if path.suffix == ".h5":
            # built in memory: HDF5 cannot close a file whose disk is full, and says so many times
            with h5py.File(temporary.name, "w", driver="core", backing_store=False) as file:
                file.attrs["potkit"] = header
                compressed = {"compression": "gzip", "compression_opts": 9, "shuffle": True}
                for name, array in arrays.items():
                    options = compressed if array.size else {}
                    file.create_dataset(name, data=array, **options)
                file.flush()
                temporary.write_bytes(file.id.get_file_image())
        else:
            temporary.mkdir()
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array)
            (temporary / "potkit.json").write_text(header)
    return path


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
        self._folder = self._stack.enter_context(replacing(self.path))
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
            raise DataError(f"{self.path}: cannot be written ({_reason(error)})") from error

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
                file.write(np.ascontiguousarray(array, dtype).data)
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


def remove_leftovers(path: Path) -> None:
    """Remove what writers of ``path`` left beside it when they were killed. Only where no other
    process writes it.
    """
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _header(info: dict[str, Any]) -> str:
    header = {"format": "potkit-structures", "version": FORMAT_VERSION, "info": info}
    return json.dumps(header, default=str, indent=1)


def is_packed(path: Path) -> bool:
    """Whether ``path`` was written by `save`."""
    if path.is_dir():
        return (path / "potkit.json").is_file()
    try:
        with h5py.File(path, "r") as file:
            return "potkit" in file.attrs
    except OSError:
        return False


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
            arrays = {f.stem: np.load(f, mmap_mode="c" if mmap else None) for f in files}
            for array in arrays.values():
                array.flags.writeable = not mmap
        else:
            with h5py.File(path, "r") as file:
                header = json.loads(file.attrs["potkit"])
                names = [name for name in file if only is None or name in only]
                arrays = {name: file[name][()] for name in names}
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: not a readable potkit store ({str(error).splitlines()[0]})"
        ) from error
    if header.get("version") != FORMAT_VERSION:
        raise DataError(
            f"{path}: store version {header.get('version')}, this potkit reads version "
            f"{FORMAT_VERSION}"
        )
    return arrays, header["info"]
