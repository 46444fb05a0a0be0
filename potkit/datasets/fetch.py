"""Downloads: resumed where they stopped, verified, unpacked, one process at a time. Built on pooch."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import zipfile
from pathlib import Path
from typing import Any, Sequence

import pooch
import requests
from filelock import FileLock, Timeout

from .. import storage
from ..errors import DataError
from .records import Remote

CHUNK = 1 << 20
RETRIES = 5
RECORDED = "checksums.json"  # what the first download of a file without a published checksum hashed to


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
    """Raise DataError naming the first file that is missing, or does not hash to its published or recorded checksum."""
    known = recorded(folder)
    for file in files:
        path, expected = folder / file.path, file.checksum or known.get(file.path)
        if not path.is_file():
            raise DataError(f"{path}: missing")
        if expected and not _matches(path, expected):
            kind = expected.partition(":")[0]
            found = f"{kind}:{pooch.file_hash(str(path), alg=kind)}"
            raise DataError(f"{path}: checksum mismatch: expected {expected}, found {found}; delete the file and fetch it again")


class _Resuming:
    """A pooch downloader that keeps what it got in ``part`` and asks the server for the rest."""

    def __init__(self, part: Path, progress: bool) -> None:
        self.part, self.progress = part, progress

    def __call__(self, url: str, output_file: Any, _pooch: Any = None, check_only: bool = False) -> None:
        from tqdm.auto import tqdm

        for attempt in range(RETRIES):
            have = self.part.stat().st_size if self.part.exists() else 0
            try:
                with requests.get(url, stream=True, timeout=60, headers={"Range": f"bytes={have}-"} if have else {}) as reply:
                    if reply.status_code == 416:  # nothing is left to ask for: it was complete
                        break
                    reply.raise_for_status()
                    if reply.status_code != 206:  # the server starts over
                        have = 0
                    total = have + int(reply.headers.get("content-length", 0))
                    with (
                        open(self.part, "ab" if have else "wb") as file,
                        tqdm(
                            total=total or None,
                            initial=have,
                            unit="B",
                            unit_scale=True,
                            desc=self.part.stem,
                            disable=not self.progress,
                        ) as bar,
                    ):
                        for chunk in reply.iter_content(CHUNK):
                            file.write(chunk)
                            bar.update(len(chunk))
                    if total and self.part.stat().st_size < total:
                        raise requests.ConnectionError(f"ended after {self.part.stat().st_size} of {total} bytes")
                break
            except requests.HTTPError:
                raise
            except requests.RequestException:
                if attempt == RETRIES - 1:
                    raise
        os.replace(self.part, output_file)


def fetch(folder: Path, files: Sequence[Remote], progress: bool = True) -> None:
    """Bring ``files`` into ``folder``: download what is missing, verify, unpack archives.

    Two processes may ask at once: the second waits for the first. Raises DataError for a server that fails, a checksum that
    does not match (the file is removed) and a full disk; a later call resumes.
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
        raise DataError(f"{folder}: download failed ({type(error).__name__}: {first}); fetch again to resume") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror or error}); fetch again to resume") from error


def _fetch_one(folder: Path, file: Remote, progress: bool) -> None:
    path = folder / file.path
    known = recorded(folder)
    expected = file.checksum or known.get(file.path)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(path.name + ".part")
        pooch.get_logger().setLevel("WARNING")  # the bar says enough
        try:
            pooch.retrieve(file.url, expected, fname=path.name, path=path.parent, downloader=_Resuming(part, progress))
        except ValueError as error:
            part.unlink(missing_ok=True)
            raise DataError(f"{path}: checksum mismatch: {file.url} did not hash to {expected}; nothing was kept") from error
    elif expected and not _matches(path, expected):
        raise DataError(f"{path}: checksum mismatch: expected {expected}; delete the file and fetch it again")
    if expected is None:
        known[file.path] = f"sha256:{pooch.file_hash(str(path))}"
        with storage.replacing(folder / RECORDED) as temporary:
            temporary.write_text(json.dumps(known, indent=1))
    if file.unpack:
        _unpack(folder, path)


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
            with tarfile.open(path) as archive:
                archive.extractall(folder, filter="data")
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: archive is truncated or damaged ({error})") from error
    done.touch()


def clear(folder: Path) -> None:
    """Remove a set's downloads."""
    shutil.rmtree(folder, ignore_errors=True)
