"""Whether a file is what its name promises, and whole as far as its kind can tell.

For downloads without a published checksum.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import struct
import sys
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import h5py

# members of archives may lead nowhere but into their folder: Python's own tarfile sees to that from
# 3.11.4 on, and Debian 12 has 3.11.2
if sys.version_info >= (3, 11, 4):
    import tarfile
else:
    from backports import tarfile

CHUNK = 1 << 20  # bytes read at once
HEAD = 4096  # bytes that are looked at to tell the kind
OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
# what the readers of these kinds raise for files that are cut short, garbled or encrypted
UNREADABLE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    OSError,
    RuntimeError,
    ValueError,
)


def _is_tar(head: bytes) -> bool:
    return head[257:262] == b"ustar"


def _is_hdf5(head: bytes) -> bool:
    # the signature stands at 0 or, behind a block of the user's, at 512, 1024, 2048 …
    return any(head[at : at + 8] == b"\x89HDF\r\n\x1a\n" for at in (0, 512, 1024, 2048))


def _is_text(head: bytes) -> bool:
    return b"\0" not in head and not head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<")


def _read_zip(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        damaged = archive.testzip()
    return None if damaged is None else f"its member {damaged} is damaged"


def _read_packed(path: Path) -> str | None:
    """To the end, where gzip, bzip2 and xz keep the checksum of what they hold."""
    head = _head(path)
    opener = next(opener for magic, opener in OPENERS.items() if head.startswith(magic))
    with opener(path, "rb") as stream:
        while stream.read(CHUNK):
            pass
    return None


def _read_tar(path: Path) -> str | None:
    with tarfile.open(path, "r:") as archive:
        archive.getmembers()
    # tarfile takes a file that ends behind any member; a whole one ends with two empty blocks
    with open(path, "rb") as file:
        file.seek(-1024, os.SEEK_END)
        return "its end is missing" if any(file.read()) else None


def _read_hdf5(path: Path) -> str | None:
    with h5py.File(path, "r"):  # the superblock knows where the file ends
        return None


def _read_sqlite(path: Path) -> str | None:
    """By the number of pages in its header (https://www.sqlite.org/fileformat.html, 1.3.7)."""
    with open(path, "rb") as file:
        head = file.read(100)
    page = int.from_bytes(head[16:18], "big")
    page = 65536 if page == 1 else page
    counted = head[24:28] == head[92:96]  # older versions of sqlite did not keep the number up
    pages = int.from_bytes(head[28:32], "big") if counted else 1
    size = path.stat().st_size
    if len(head) < 100 or size < pages * page:
        return f"it ends after {size} of {pages * page} bytes"
    return None


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    ``fits``: whether its first bytes are such a file's. ``read``: what is wrong with the whole,
    raising UNREADABLE or answering in words; None where a file of this kind that was cut short
    looks like a whole one.
    """

    name: str
    suffixes: tuple[str, ...]
    fits: Callable[[bytes], bool]
    read: Callable[[Path], str | None] | None = None


KINDS = (
    Kind(
        "a zip archive",
        (".zip", ".npz"),
        lambda head: head.startswith((b"PK\x03\x04", b"PK\x05\x06")),
        _read_zip,
    ),
    Kind("a gzip file", (".gz", ".tgz"), lambda head: head.startswith(b"\x1f\x8b"), _read_packed),
    Kind("a bzip2 file", (".bz2", ".tbz2"), lambda head: head.startswith(b"BZh"), _read_packed),
    Kind(
        "an xz file", (".xz", ".txz"), lambda head: head.startswith(b"\xfd7zXZ\x00"), _read_packed
    ),
    Kind("a tar archive", (".tar",), _is_tar, _read_tar),
    Kind("an HDF5 file", (".h5", ".hdf5"), _is_hdf5, _read_hdf5),
    Kind(
        "an SQLite database",
        (".db",),
        lambda head: head.startswith(b"SQLite format 3\0"),
        _read_sqlite,
    ),
    Kind("a text", (".xyz", ".extxyz", ".data", ".csv", ".txt", ".json", ".yaml"), _is_text),
)


def kind_of(name: str) -> Kind | None:
    """The kind that a file of this name should be; None for a suffix that promises nothing."""
    suffix = Path(name).suffix.lower()
    return next((kind for kind in KINDS if suffix in kind.suffixes), None)


def tells_its_end(name: str) -> bool:
    """Whether a file of this name shows by itself that it is whole."""
    kind = kind_of(name)
    return kind is not None and kind.read is not None


def _head(path: Path) -> bytes:
    with open(path, "rb") as file:
        return file.read(HEAD)


def wrong_kind(path: Path, name: str) -> str | None:
    """Why ``path`` cannot be a file called ``name``, by its first bytes; None if it can."""
    head = _head(path)
    if not head:
        return "it is empty"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n")[:16].lower()
    if start.startswith((b"<!doctype html", b"<html")):
        return "it is an HTML page, not data"
    if start.startswith(b"<?xml"):
        return "it is an XML page, not data"
    kind = kind_of(name)
    if kind is not None and not kind.fits(head):
        return f"it is not {kind.name}: it begins with {head[:16]!r}"
    return None


def fault(path: Path, name: str) -> str | None:
    """Why ``path`` cannot be the whole of a file called ``name``, in words; None if it can be.

    Reads all of it.
    """
    if (reason := wrong_kind(path, name)) is not None:
        return reason
    kind = kind_of(name)
    if kind is None or kind.read is None:
        return None
    try:
        reason = kind.read(path)
    except UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:  # the disk, not the file
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
    return None if reason is None else f"it is {kind.name} that is cut short or damaged ({reason})"
