"""Arrays in NumPy's and HDF5's files: their kind, shape and size are looked at before memory is
asked for, so that a file which claims what it does not hold is refused at once.
"""

from __future__ import annotations

import math
import os
import re
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO

import h5py
import numpy as np

from ..errors import DataError

NUMBERS = "fiu"  # kinds of NumPy types that are real numbers
# a file may unpack to this many times its size where that is more than LARGE bytes; positions do
# not pack better than ten to one, and a packed run of zeros does a thousand
RATIO = 100
LARGE = 1 << 28
HEAP = re.compile(b"GCOL\x01")  # where HDF5 keeps texts of any length: its mark and version
HEAP_HEADER = 16  # bytes, as those before each of its texts
LONGEST_REASON = 200  # characters of what a library says of a file
BLOCK = 1 << 22  # bytes of a file looked at at once
UNREADABLE = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    NotImplementedError,  # a zip method or flag of which Python knows nothing
    OSError,
    OverflowError,
    RuntimeError,  # an encrypted member
    SyntaxError,  # the header of .npy is Python's
    tokenize.TokenError,
    TypeError,
    ValueError,
)


def first_line(error: BaseException) -> str:
    """What ``error`` says, in one line: its beginning, since some quote whole files."""
    line = (str(error).splitlines() or [type(error).__name__])[0]
    return line if len(line) <= LONGEST_REASON else line[: LONGEST_REASON - 1] + "…"


def check_claim(claimed: int, held: int, packed: bool, where: str, shape: Any) -> None:
    """Raise DataError where an array claims ``claimed`` bytes that the ``held`` bytes of its file
    cannot be, be they ``packed`` or not.
    """
    enough = held * RATIO if packed else held
    if claimed > max(enough, LARGE if packed else 0):
        raise DataError(
            f"{where} claims to have shape {shape}, but the file has no room for it: it is "
            "truncated or damaged"
        )


def kind_of(dtype: np.dtype) -> str:
    """What arrays of this type hold, in words."""
    if dtype.names:
        return f"records of {', '.join(dtype.names[:4])}"
    words = {
        "b": "true and false",
        "c": "complex numbers",
        "S": "text",
        "U": "text",
        "O": "objects",
        "V": "bytes without a meaning",
        "M": "dates",
        "m": "spans of time",
    }
    return words.get(dtype.kind, f"numbers ({dtype})")


def require_numbers(array: Any, where: str, kinds: str = NUMBERS) -> Any:
    """``array`` if it holds real numbers (``kinds`` of NumPy's types). Raises DataError that begins
    with ``where``.
    """
    if array.dtype.kind not in kinds:
        raise DataError(f"{where} holds {kind_of(array.dtype)}, expected real numbers")
    return array


def npy_header(
    file: BinaryIO, held: int, packed: bool, where: str
) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether in Fortran's order, and type of the .npy array that ``file`` is at.

    ``held``: bytes there are of it. Raises DataError that begins with ``where`` for a header that
    claims more, and for pickled objects; ValueError for what is no header.
    """
    version = np.lib.format.read_magic(file)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read_header is None:
        raise ValueError(f"version {version} of .npy")
    shape, fortran, dtype = read_header(file)
    if dtype.hasobject:
        raise DataError(
            f"{where} is a pickled object, which is not read because unpickling can run any code; "
            "save it as numbers or text"
        )
    if any(size < 0 for size in shape):
        raise ValueError(f"shape {shape}")
    check_claim(math.prod(shape) * max(1, dtype.itemsize), held, packed, where, shape)
    return shape, fortran, dtype


def read_npy(path: Path, mmap_mode: str | None = None) -> np.ndarray:
    """The array of an .npy file. Raises DataError naming the file where it is damaged or claims
    more than the file holds.
    """
    try:
        with open(path, "rb") as file:
            npy_header(file, path.stat().st_size, False, f"{path}: the array")
        return np.load(path, mmap_mode=mmap_mode, allow_pickle=False)
    except DataError:
        raise
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read ({first_line(error)})") from error


@contextmanager
def npz_member(
    archive: zipfile.ZipFile, key: str, path: Path
) -> Iterator[tuple[BinaryIO, tuple[int, ...], bool, np.dtype]]:
    """The array ``key`` of an open .npz file: the open member behind its header, and what the
    header says.
    """
    name = f"{key}.npy"
    member = archive.getinfo(name)
    packed = member.compress_type != zipfile.ZIP_STORED
    size = path.stat().st_size
    check_claim(member.file_size, min(size, member.compress_size), packed, f"{path}: {key}", "?")
    with archive.open(name) as file:
        yield file, *npy_header(file, member.file_size, False, f"{path}: {key}")


def read_npz(
    path: Path, keys: Sequence[str] = (), texts: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """The arrays of an .npz file, only ``keys`` that exist, if given: real numbers, and those in
    ``texts`` anything but objects. Raises DataError naming file and array.
    """
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            names = [name[:-4] for name in archive.namelist() if name.endswith(".npy")]
            for key in names:
                if keys and key not in keys:
                    continue
                with npz_member(archive, key, path) as (_, _, _, dtype):
                    if key not in texts:
                        require_numbers(np.empty(0, dtype), f"{path}: {key}")
                with archive.open(f"{key}.npy") as file:
                    arrays[key] = np.lib.format.read_array(file, allow_pickle=False)
    except DataError:
        raise
    except (*UNREADABLE, KeyError) as error:
        raise DataError(
            f"{path}: .npz file is truncated or damaged ({first_line(error)})"
        ) from error
    return arrays


# --- HDF5 ----------------------------------------------------------------------------------------


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """An HDF5 file open for reading; whatever HDF5 complains about within the block becomes one
    line that names the file.
    """
    try:
        file = h5py.File(path, "r")
    except (OSError, RuntimeError, ValueError) as error:
        raise DataError(
            f"{path}: HDF5 file is truncated or damaged ({first_line(error)})"
        ) from error
    try:
        with file:
            yield file
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, DataError) or not _of_hdf5(error):
            raise
        raise DataError(f"{path}: HDF5 file is damaged ({first_line(error)})") from error


def _of_hdf5(error: BaseException) -> bool:
    """Whether h5py raised it, and not code that uses h5py."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and "h5py" in trace.tb_frame.f_code.co_filename


def walk_groups(file: h5py.File, path: Path) -> Iterator[tuple[h5py.Group, list[str]]]:
    """Every group of ``file`` once, at any depth and in file order, with the names in it that are
    no groups. Links that lead back are not followed; one that leads nowhere, or out of the file,
    raises DataError.
    """
    stack: list[h5py.Group] = [file]
    seen = {_address(file)}
    while stack:
        group = stack.pop()
        below: list[h5py.Group] = []
        others: list[str] = []
        for name in group:
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise DataError(f"{path}: {group.name}/{name} lies in another file; copy it here")
            if isinstance(link, h5py.SoftLink) and group.get(name) is None:
                raise DataError(f"{path}: {group.name}/{name} is a link that leads nowhere")
            if group.get(name, getclass=True) is not h5py.Group:
                others.append(name)
                continue
            inner = group[name]
            address = _address(inner)
            if address not in seen:
                seen.add(address)
                below.append(inner)
        yield group, others
        stack.extend(reversed(below))


def _address(group: h5py.Group) -> int:
    return h5py.h5o.get_info(group.id).addr


def check_texts(path: Path) -> None:
    """Raise DataError where HDF5 would look for the texts of the file ``path`` without end.

    Texts of any length lie in global heaps, and HDF5 goes through a heap from each object to the
    next by the size that stands there. A damaged one of no size (in all, with what is added to it)
    keeps the library (2.0) in a loop that nothing but the end of the process stops. Call it before
    such a text is read: whole file, once, and again only when the file has changed.

    Source: HDF5 File Format Specification 3.0, III.E "Disk Format: Level 1E - Global Heap".
    """
    try:
        with open(path, "rb") as file:
            now = os.fstat(file.fileno())
            endless = _endless_heap(str(path), now.st_ino, now.st_size, now.st_mtime_ns)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error
    if endless is not None:
        raise DataError(
            f"{path}: HDF5 file is damaged (the texts at byte {endless} have no end; if other "
            "programs read it, h5repack writes it anew)"
        )


@lru_cache(maxsize=64)
def _endless_heap(path: str, inode: int, size: int, changed: int) -> int | None:
    """The first byte of a global heap that has no end, None if all have one. The arguments but
    ``path`` say which file it was.
    """
    with open(path, "rb") as file:
        for start in range(0, size, BLOCK):
            block = os.pread(file.fileno(), BLOCK + 4, start)  # a mark may lie across two blocks
            for mark in HEAP.finditer(block):
                if not _ends(file, start + mark.start()):
                    return start + mark.start()
    return None


def _ends(file: BinaryIO, at: int) -> bool:
    """Whether the global heap at byte ``at`` comes to its end (or to a size that HDF5 refuses)."""
    header = os.pread(file.fileno(), HEAP_HEADER, at)
    size = int.from_bytes(header[8:], "little")
    left = os.fstat(file.fileno()).st_size - at
    if len(header) < HEAP_HEADER or size > left:
        return True  # refused
    heap = os.pread(file.fileno(), size, at)
    place = HEAP_HEADER
    while place + HEAP_HEADER <= size:
        number = int.from_bytes(heap[place : place + 2], "little")
        needed = int.from_bytes(heap[place + 8 : place + HEAP_HEADER], "little")
        if number:  # number 0 is the free space, whose size counts its header
            needed = HEAP_HEADER + (needed + 7) // 8 * 8
        needed %= 1 << 64  # as the library adds
        if needed == 0:
            return False
        place += needed
    return True


def load_hdf5(
    data: h5py.Dataset, path: Path, text: bool = False, kinds: str = NUMBERS
) -> np.ndarray:
    """The content of ``data``: real numbers (``kinds`` of NumPy's types), or text.

    Raises DataError that names file and data set: no data set at all, another kind, more claimed
    than the file holds, values in other files, damage.
    """
    if not isinstance(data, h5py.Dataset):
        name = getattr(data, "name", None) or "what should be an array"
        raise DataError(f"{path}: {name} is no data set")
    where = f"{path}: {data.name}"
    if data.shape is None:
        raise DataError(f"{where} has no values")
    dtype = data.dtype  # once: it is made anew each time it is asked for
    strings = h5py.check_string_dtype(dtype) is not None
    if text and not (strings or dtype.kind in "SU"):
        raise DataError(f"{where} holds {kind_of(dtype)}, expected text")
    if not text:
        require_numbers(data, where, kinds)
    if h5py.check_enum_dtype(dtype) is not None:
        raise DataError(f"{where} holds names of an enumeration, expected real numbers")
    _check_held(data, where)
    if strings:
        check_texts(path)
    try:
        return data[()]
    except (OSError, RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise DataError(f"{where} cannot be read, the file is damaged ({first_line(error)})") from (
            error
        )


def _check_held(data: h5py.Dataset, where: str) -> None:
    """Raise DataError where ``data`` claims values that were never written."""
    shape = data.shape
    claimed = math.prod(shape) * data.dtype.itemsize
    if not claimed:
        return
    made = data.id.get_create_plist()
    layout = made.get_layout()
    if layout == h5py.h5d.VIRTUAL or made.get_external_count():
        raise DataError(f"{where} has its values in other files; copy them into this one")
    packed = made.get_nfilters() > 0
    held = data.id.get_storage_size()
    if held == 0:
        check_claim(claimed, 0, False, where, shape)
    check_claim(claimed, held, packed, where, shape)
    if layout == h5py.h5d.CHUNKED and packed:
        sizes = zip(shape, data.chunks, strict=True)
        needed = math.prod(-(-size // chunk) for size, chunk in sizes)
        if data.id.get_num_chunks() < needed:
            raise DataError(f"{where}: {data.id.get_num_chunks()} of {needed} chunks were written")
