"""Downloads: resumed where they stopped, verified, unpacked, one process at a time. Built on
pooch.
"""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pooch
import requests
from filelock import FileLock, Timeout

from ..errors import DataError
from ..structures import storage
from .records import Remote

CHUNK = 1 << 16  # bytes; what arrived of a chunk is lost when the line breaks
RETRIES = 5  # attempts in a row that bring nothing
PAUSE = 1.0  # seconds before the second attempt, doubled for each further one
RETRIED = (408, 425, 429, 500, 502, 503, 504)  # answers that may be another one later
OPENERS = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
# what the first download of a file without a published checksum hashed to
RECORDED = "checksums.json"


def _matches(path: Path, checksum: str) -> bool:
    kind, _, value = checksum.partition(":")
    return pooch.file_hash(str(path), alg=kind) == value


def recorded(folder: Path) -> dict[str, str]:
    """The checksums that first downloads left in ``folder``."""
    path = folder / RECORDED
    try:
        return json.loads(path.read_text()) if path.exists() else {}
    except ValueError as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def verify(folder: Path, files: Sequence[Remote]) -> None:
    """Raise DataError naming the first file that is missing, or does not hash to its published
    or recorded checksum.
    """
    known = recorded(folder)
    for file in files:
        path, expected = folder / file.path, file.checksum or known.get(file.path)
        if not path.is_file():
            raise DataError(f"{path}: missing")
        if expected and not _matches(path, expected):
            kind = expected.partition(":")[0]
            found = f"{kind}:{pooch.file_hash(str(path), alg=kind)}"
            raise DataError(
                f"{path}: checksum mismatch: expected {expected}, found {found}; delete the file and fetch it again"
            )


class _Resuming:
    """A pooch downloader that keeps what it got in ``part`` and asks the server for the rest.

    Beside it lies what the server said about the version of the file (ETag or date): of a file that
    changed in between, the server sends the whole again, so that two versions are never glued
    together.
    """

    def __init__(self, part: Path, progress: bool) -> None:
        self.part, self.progress = part, progress
        self.version = part.with_name(part.name + ".version")

    def __call__(
        self, url: str, output_file: Any, _pooch: Any = None, check_only: bool = False
    ) -> None:
        failures = 0
        while True:
            before = self._have()
            try:
                self._some(url, before)
                break
            except requests.RequestException as error:
                reply = error.response
                if reply is not None and reply.status_code not in RETRIED:
                    raise
                failures = 1 if self._have() > before else failures + 1  # getting on is no failure
                if failures >= RETRIES:
                    raise
                time.sleep(PAUSE * 2 ** (failures - 1))
        os.replace(self.part, output_file)
        self.version.unlink(missing_ok=True)

    def _have(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _some(self, url: str, have: int) -> None:
        """One request; what arrives goes into ``part``. Raises requests' errors if that is not
        all.
        """
        from tqdm.auto import tqdm

        headers = {"Range": f"bytes={have}-"} if have else {}
        if have and self.version.exists():
            headers["If-Range"] = self.version.read_text()
        with requests.get(url, stream=True, timeout=60, headers=headers) as reply:
            if reply.status_code == 416:  # nothing is left to ask for: it was complete
                return
            reply.raise_for_status()
            have = have if reply.status_code == 206 else 0  # 200: the server starts over
            total = have + int(reply.headers.get("content-length", 0))
            if version := reply.headers.get(
                "etag", reply.headers.get("last-modified", "")
            ).removeprefix("W/"):
                self.version.write_text(version)
            look = {
                "unit": "B",
                "unit_scale": True,
                "desc": self.part.stem,
                "disable": not self.progress,
            }
            with (
                open(self.part, "ab" if have else "wb") as file,
                tqdm(total=total or None, initial=have, **look) as bar,
            ):
                for chunk in reply.iter_content(CHUNK):
                    file.write(chunk)
                    bar.update(len(chunk))
            if total > self._have():
                raise requests.ConnectionError(f"ended after {self._have()} of {total} bytes")

    def forget(self) -> None:
        """Remove what was downloaded."""
        self.part.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)


def fetch(folder: Path, files: Sequence[Remote], progress: bool = True) -> None:
    """Bring ``files`` into ``folder``: download what is missing, verify, unpack archives.

    Two processes may ask at once: the second waits for the first. Raises DataError for a server
    that fails, a checksum that does not match (the file is removed) and a full disk; a later call
    resumes.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / ".lock", timeout=24 * 3600):
            for file in files:
                _fetch_one(folder, file, progress)
    except Timeout as error:
        raise DataError(
            f"{folder}: another process has been fetching for a day; remove {folder / '.lock'} if there is none"
        ) from error
    except requests.RequestException as error:
        first = str(error).splitlines()[0]
        raise DataError(
            f"{folder}: download failed ({type(error).__name__}: {first}); fetch again to resume"
        ) from error
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror or error}); fetch again to resume"
        ) from error


def _fetch_one(folder: Path, file: Remote, progress: bool) -> None:
    path = folder / file.path
    known = recorded(folder)
    expected = file.checksum or known.get(file.path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        pooch.get_logger().setLevel("WARNING")  # the bar says enough
        downloader = _Resuming(part, progress)
        try:
            pooch.retrieve(
                file.url, expected, fname=path.name, path=path.parent, downloader=downloader
            )
        except ValueError as error:
            downloader.forget()
            raise DataError(
                f"{path}: checksum mismatch: {file.url} did not hash to {expected}; nothing was kept"
            ) from error
    elif expected and not _matches(path, expected):
        raise DataError(
            f"{path}: checksum mismatch: expected {expected}; delete the file and fetch it again"
        )
    if file.unpack:
        _unpack(folder, path)
    if expected is None:  # of an archive only once it has proved whole
        known[file.path] = f"sha256:{pooch.file_hash(str(path))}"
        with storage.replacing(folder / RECORDED) as temporary:
            temporary.write_text(json.dumps(known, indent=1))


def _unpack(folder: Path, path: Path) -> None:
    """Unpack ``path`` into ``folder`` once; a half-unpacked archive is unpacked again."""
    done = path.with_name(f".{path.name}.unpacked")
    if done.exists():
        return
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(folder)
        else:
            with open(path, "rb") as file:
                head = file.read(6)
            opener = next((o for magic, o in OPENERS.items() if head.startswith(magic)), open)
            with opener(path, "rb") as stream, tarfile.open(fileobj=stream, mode="r|") as archive:
                archive.extractall(folder, filter="data")
                # to the end, where the archive's own checksum is compared
                while stream.read(CHUNK):
                    pass
    except (
        tarfile.TarError,
        zipfile.BadZipFile,
        EOFError,
        zlib.error,
        lzma.LZMAError,
        OSError,
    ) as error:
        if isinstance(error, OSError) and error.errno is not None:  # not the archive, the disk
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(
            f"{path}: archive is truncated or damaged ({reason}); delete it and fetch it again"
        ) from error
    done.touch()


def clear(folder: Path) -> None:
    """Remove a set's downloads."""
    shutil.rmtree(folder, ignore_errors=True)
