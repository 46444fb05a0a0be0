"""Downloads: resumed where they stopped, verified, unpacked, one process at a time.

Of a file with a published checksum the checksum decides. Of one without, the server's own words
are held against each other (length, ranges, version), and the file against its kind; only what was
whole is recorded as the good one.
"""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import pooch
import requests
import urllib3
from filelock import FileLock, Timeout
from requests.adapters import HTTPAdapter
from urllib3.util import Retry

from ..errors import DataError
from ..structures import storage
from ..structures.progress import bar as progress_bar
from . import archives, kinds
from .records import Remote

CHUNK = 1 << 16  # bytes; what arrived of a chunk is lost when the line breaks
RETRIES = 5  # attempts in a row that bring nothing
PAUSE = 1.0  # seconds: the unit of the pauses between attempts, which double
PATIENCE = 60.0  # seconds without a byte, and the longest pause that a server may ask for
RETRIED = (202, 408, 425, 429, 500, 502, 503, 504)  # answers that may be another one later
# what the first download of a file without a published checksum hashed to
RECORDED = "checksums.json"
LOCK = ".lock"


def _hash(path: Path, kind: str = "sha256") -> str:
    return f"{kind}:{pooch.file_hash(str(path), alg=kind)}"


def _matches(path: Path, checksum: str) -> bool:
    return _hash(path, checksum.partition(":")[0]) == checksum


def recorded(folder: Path) -> dict[str, str]:
    """The checksums that first downloads left in ``folder``.

    Raises DataError where they cannot be read.
    """
    path = folder / RECORDED
    try:
        known = json.loads(path.read_text()) if path.exists() else {}
        if not isinstance(known, dict) or not all(
            re.fullmatch(r"\w+:[0-9a-f]+", str(v)) for v in known.values()
        ):
            raise ValueError("not a table of checksums")
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    return known


def lacking(folder: Path, files: Sequence[Remote], by_hand: bool = False) -> str | None:
    """What keeps ``files`` from being complete in ``folder``, in words; None if nothing does.

    A file is complete if it is there: it gets its name when it is whole. For archives see
    `archives.lacking`, also for ``by_hand``: the folder is a user's, not one of `fetch`.
    """
    for file in files:
        path = folder / file.path
        if file.unpack:
            reason = archives.lacking(folder, path, file.members, by_hand)
        else:
            reason = None if path.is_file() else f"{path} is missing"
        if reason is not None:
            return reason
    return None


def verify(folder: Path, files: Sequence[Remote]) -> None:
    """Raise DataError for the first of ``files`` that is missing or has another checksum.

    The published one, or the one recorded at the first download. An archive may be gone where it
    was unpacked.
    """
    known = recorded(folder)
    for file in files:
        path = folder / file.path
        expected = file.checksum or known.get(file.path)
        if not path.is_file():
            if file.unpack and lacking(folder, [file], by_hand=True) is None:
                continue
            raise DataError(f"{path}: missing")
        if expected and not _matches(path, expected):
            actual = _hash(path, expected.partition(":")[0])
            raise DataError(
                f"{path}: checksum mismatch: expected {expected}, found {actual}; "
                "delete the file and fetch it again"
            )


class _Broken(Exception):
    """The answer ended early, or was not to what was asked; another may be better."""


class _Retry(Retry):
    """urllib3's, with a limit to how long a server may ask to wait."""

    def get_retry_after(self, response: Any) -> float | None:
        """The seconds that the server asks for, PATIENCE at most."""
        seconds = super().get_retry_after(response)
        return None if seconds is None else min(seconds, PATIENCE)


def _session() -> requests.Session:
    """A session that repeats requests until an answer begins.

    That is: when connecting fails, and when a server says that it is busy.
    """
    retry = _Retry(
        total=RETRIES - 1,
        status_forcelist=RETRIED,
        backoff_factor=PAUSE,
        raise_on_status=False,  # the last answer comes back, and is named
    )
    session = requests.Session()
    for scheme in ("http://", "https://"):
        session.mount(scheme, HTTPAdapter(max_retries=retry))
    session.hooks["response"].append(_stay_with_http)
    return session


def _stay_with_http(reply: requests.Response, **_: Any) -> None:
    """Refuse to be led from the net to files of this machine, or to other protocols."""
    if not reply.is_redirect:
        return
    target = urljoin(reply.url, reply.headers["location"])
    if urlsplit(target).scheme.lower() not in ("http", "https"):
        raise DataError(
            f"{reply.url}: redirects to {target[:200]!r}, which is neither http nor https: "
            "not followed"
        )


def _content_range(reply: requests.Response) -> tuple[int | None, int | None]:
    """The first byte that an answer holds and the length of the whole file; None if unsaid.

    "bytes 500-999/1000", "bytes 500-999/*", or "bytes */1000" with a refusal (RFC 9110, 14.4).
    """
    match = re.fullmatch(
        r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", reply.headers.get("content-range", "").strip()
    )
    first, total = match.groups() if match else (None, None)
    return first and int(first), total and int(total)


def _version(reply: requests.Response, total: int | None) -> dict[str, Any]:
    """What an answer says about the version of the file it is of."""
    version = {
        "etag": reply.headers.get("etag"),
        "modified": reply.headers.get("last-modified"),
        "total": total,
    }
    return {key: value for key, value in version.items() if value is not None}


def _differ(version: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two answers were about different versions, by anything that both say.

    Servers may call one version weak in one answer and strong in the other.
    """
    both = version.keys() & other.keys()
    return any(
        str(version[key]).removeprefix("W/") != str(other[key]).removeprefix("W/") for key in both
    )


class _Download:
    """One file on its way.

    ``part`` holds what has arrived; ``version`` beside it what the server said about the file it is
    a part of (ETag, date, length), so that two versions are never glued together: a part that
    nothing binds to a version is started over, unless a checksum will judge the whole
    (``checked``). ``version`` stays until the file has proved good: it says that potkit brought it.

    urllib3 repeats requests until an answer begins (`_session`). What it cannot do is done here: an
    answer that breaks off is gone on with where it stopped, and as long as each attempt brings
    something, none counts as failed.
    """

    def __init__(self, url: str, part: Path, checked: bool, progress: bool = False) -> None:
        self.url = url
        self.part = part
        self.checked = checked
        self.progress = progress
        self.version = part.with_name(part.name + ".version")
        self.ranges = True  # ask for the rest only, until the server shows that it cannot do that
        self.unbound = False  # gone on with a part that may be of another version
        self.ended = False  # whether the length or the last chunk says that the answer was whole

    def run(self) -> None:
        """Download until ``part`` is whole, as far as the server tells.

        Raises requests' errors, and DataError for answers that are not the file.
        """
        failures = 0
        with _session() as session:
            while True:
                before = self._size()
                try:
                    self._ask(session)
                    return
                except _Broken as error:
                    got_on = self._size() > before
                    failures = 1 if got_on else failures + 1
                    if failures >= RETRIES:
                        raise DataError(
                            f"{self.url}: download failed ({error}); fetch again to resume"
                        ) from error
                    time.sleep(PAUSE * 2 ** (failures - 1))

    def forget(self) -> None:
        """Remove what was downloaded, and what is known about it."""
        self.part.unlink(missing_ok=True)
        self.version.unlink(missing_ok=True)

    def unproved(self) -> bool:
        """Whether the file under its final name came from an earlier `fetch`, killed afterwards.

        Beside a ``part`` it was not: then a user has put it there, weary of waiting.
        """
        return self.version.exists() and not self.part.exists()

    def _size(self) -> int:
        return self.part.stat().st_size if self.part.exists() else 0

    def _known(self) -> dict[str, Any]:
        """The version that ``part`` is of; empty if that is not known."""
        try:
            known = json.loads(self.version.read_text())
            return known["version"] if known["url"] == self.url else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _resumable(self, known: dict[str, Any]) -> int:
        """How many bytes of ``part`` can be gone on with."""
        size = self._size()
        if not self.ranges or not (known or self.checked):
            return 0
        return size if size <= known.get("total", size) else 0

    def _ask(self, session: requests.Session) -> None:
        """One request; what arrives goes into ``part``. Raises _Broken if that is not all."""
        known = self._known()
        start = self._resumable(known)
        if start and start == known.get("total"):  # killed when all had arrived
            self.ended = True
            return
        # ranges and lengths are of the file as it is, not of what is packed on the way
        headers = {"Accept-Encoding": "identity"}
        if start:
            self.unbound |= not known
            headers["Range"] = f"bytes={start}-"
            etag = known.get("etag", "")
            weak = etag.startswith("W/")  # which ranges may not be asked by: RFC 9110, 13.1.5
            condition = known.get("modified") if weak else etag or known.get("modified")
            if condition:
                headers["If-Range"] = condition
        with session.get(self.url, stream=True, timeout=PATIENCE, headers=headers) as reply:
            if reply.status_code == 416 and start:
                self._beyond_the_end(reply, known, start)
            elif reply.status_code == 206:
                self._go_on(reply, known, start)
            elif reply.status_code == 200:
                length = reply.headers.get("content-length", "")
                self._receive(reply, 0, int(length) if length.isdigit() else None)
            else:
                reply.raise_for_status()
                answer = f"{reply.status_code} {reply.reason or ''}".rstrip()
                raise DataError(f"{self.url}: answered {answer}, not with the file")

    def _beyond_the_end(self, reply: requests.Response, known: dict[str, Any], start: int) -> None:
        """Nothing is left to ask for: either ``part`` was whole, or it is not of this file."""
        total = _content_range(reply)[1]
        if total != start or known.get("total", total) != total:
            self._start_over(
                f"has {'fewer' if total is None else total} bytes, {start} had arrived"
            )
        self.ended = True

    def _go_on(self, reply: requests.Response, known: dict[str, Any], start: int) -> None:
        """An answer with a part of the file: is it the one that was asked for, of this version?"""
        first, total = _content_range(reply)
        if total is None and start:
            total = known.get("total")
        if first != start or total is None:
            said = reply.headers.get("content-range", "no Content-Range")
            self._start_over(
                f"answered with {said[:80]!r} where byte {start} and the following were asked for"
            )
        if start and _differ(_version(reply, total), known):
            self._start_over("sent another version of the file")
        self._receive(reply, start, total)

    def _start_over(self, reason: str) -> None:
        self.forget()
        self.ranges = False
        raise _Broken(f"the server {reason}")

    def _receive(self, reply: requests.Response, start: int, total: int | None) -> None:
        """Write the body of ``reply`` to ``part``, from byte ``start``.

        Raises _Broken unless it ends at ``total``.
        """
        encoding = reply.headers.get("content-encoding", "identity").lower()
        # some servers call it an encoding that a file is packed by itself
        packed_itself = self.part.stem.endswith((".gz", ".tgz"))
        if encoding != "identity" and not packed_itself:
            raise DataError(
                f"{self.url}: sent packed ({encoding}) although it was asked for as it is"
            )
        bar = progress_bar(
            total=total,
            initial=start,
            unit="B",
            unit_scale=True,
            desc=self.part.stem,
            shown=self.progress,
        )
        with open(self.part, "ab" if start else "wb") as file, bar:
            if not start:  # now that the old part is gone
                note = {"url": self.url, "version": _version(reply, total)}
                self.version.write_text(json.dumps(note))
            try:
                # not decoded, as requests would: a .gz stays one whatever the server calls it
                for chunk in reply.raw.stream(CHUNK, decode_content=False):
                    file.write(chunk)
                    bar.update(len(chunk))
            except urllib3.exceptions.HTTPError as error:  # the line; an OSError is the disk's
                file.flush()
                raise _Broken(f"{type(error).__name__} after {self._size()} bytes") from error
            file.flush()
            os.fsync(file.fileno())
        size = self._size()
        if total is not None and size > total:
            self._start_over(f"sent {size} bytes of {total}")
        if total is not None and size < total:
            raise _Broken(f"ended after {size} of {total} bytes")
        self.ended = total is not None or bool(getattr(reply.raw, "chunked", False))


def fetch(folder: Path, files: Sequence[Remote], progress: bool = True) -> None:
    """Bring ``files`` into ``folder``: download what is missing, verify, unpack archives.

    Two processes may ask at once: the second waits for the first. Raises DataError for a server
    that fails, a checksum that does not match, an answer that is not the file or not the whole of
    it (none of which is kept), an archive that cannot be unpacked (removed if it was downloaded
    here) and a full disk; a later call resumes.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / LOCK, timeout=24 * 3600):
            storage.remove_leftovers(folder / RECORDED)
            for file in files:
                _fetch_one(folder, file, files, progress)
    except Timeout as error:
        raise DataError(
            f"{folder}: another process has been fetching for a day; "
            f"remove {folder / LOCK} if there is none"
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


def _download_of(path: Path, url: str | None, checked: bool, progress: bool = False) -> _Download:
    return _Download(url or "", path.with_name(path.name + ".part"), checked, progress)


def _fetch_one(folder: Path, file: Remote, files: Sequence[Remote], progress: bool) -> None:
    path = folder / file.path
    expected = file.checksum or recorded(folder).get(file.path)
    if file.unpack and not path.exists() and lacking(folder, [file]) is None:
        return  # unpacked before, and the archive removed to save space
    download = _download_of(path, file.url, expected is not None, progress)
    ours = not path.exists() or download.unproved()  # else a user has put it here
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        download.run()
        if expected and download.unbound and not _matches(download.part, expected):
            download.forget()  # the part was of another version
            download.run()
        _accept(download, path, file, expected)
        os.replace(download.part, path)
    elif expected and not _matches(path, expected):
        raise DataError(
            f"{path}: checksum mismatch: expected {expected}; delete the file and fetch it again"
        )
    elif expected is None and (
        fault := kinds.wrong_kind(path, file.path) if file.unpack else kinds.fault(path, file.path)
    ):
        raise DataError(f"{path}: {fault}; delete it and fetch it again")
    checksum = expected or _hash(path)
    if file.unpack:
        _unpack(folder, path, checksum, files, ours)
    if expected is None:  # of an archive only once it has proved whole
        _record(folder, recorded(folder) | {file.path: checksum})
    download.forget()


def _record(folder: Path, known: dict[str, str]) -> None:
    with storage.replacing(folder / RECORDED) as temporary:
        temporary.write_text(json.dumps(known, indent=1))


def _accept(download: _Download, path: Path, file: Remote, expected: str | None) -> None:
    """Raise DataError, and forget the download, unless it is all of the file that was asked for."""
    if expected is not None:
        if _matches(download.part, expected):
            return
        fault = kinds.wrong_kind(download.part, file.path)
        reason = f"checksum mismatch: {file.url} did not hash to {expected}" + (
            f": {fault}" if fault else ""
        )
    elif fault := kinds.wrong_kind(download.part, file.path):
        reason = f"{file.url} is not the file: {fault}"
    elif file.unpack:
        return  # whether an archive is whole shows when it is unpacked
    elif fault := kinds.fault(download.part, file.path):
        reason = f"{file.url} is not the whole file: {fault}"
    elif not download.ended and not kinds.tells_its_end(file.path):
        reason = (
            f"{file.url} was sent without its length, and no checksum is published: "
            "whether this is all of it cannot be told"
        )
    else:
        return
    download.forget()
    raise DataError(f"{path}: {reason}; nothing was kept")


def _unpack(folder: Path, path: Path, checksum: str, files: Sequence[Remote], ours: bool) -> None:
    """Unpack ``path``. Raises DataError for a damaged one, which is removed if it is ``ours``."""
    reserved = {RECORDED, LOCK}
    for file in files:
        download = _download_of(folder / file.path, file.url, False)
        notes = (
            folder / file.path,
            download.part,
            download.version,
            archives.marker_of(folder / file.path),
        )
        reserved |= {note.relative_to(folder).as_posix() for note in notes}
    try:
        archives.unpack(folder, path, checksum, reserved)
    except archives.Damaged as error:
        advice = "delete it and fetch it again"
        if ours:
            path.unlink()
            _download_of(path, None, False).forget()
            advice = "it was removed, fetch it again"
        raise DataError(f"{path}: archive is truncated or damaged ({error}); {advice}") from error


def clear(folder: Path, files: Sequence[Remote]) -> None:
    """Remove what `fetch` brought of ``files`` into ``folder``, and nothing else.

    A file of the set goes if it hashes to its published or recorded checksum, so that it can be
    fetched again; an unpacked member if the marker lists it and nobody has changed it. A warning of
    one line says what stays.
    """
    if not folder.is_dir():
        return
    try:
        _clear(folder, files)
    except Timeout as error:
        raise DataError(f"{folder}: another process is fetching into it") from error
    except OSError as error:
        raise DataError(f"{folder}: cannot be cleared ({error.strerror or error})") from error
    if folder.is_dir():
        stays = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if not p.is_dir())
        shown = ", ".join(stays[:5]) + (f" and {len(stays) - 5} more" if len(stays) > 5 else "")
        warnings.warn(f"{folder}: left as they are: {shown or 'empty folders'}", stacklevel=2)


def _clear(folder: Path, files: Sequence[Remote]) -> None:
    with FileLock(folder / LOCK, timeout=PATIENCE):
        known = recorded(folder)
        for file in files:
            path = folder / file.path
            expected = file.checksum or known.get(file.path)
            download = _download_of(path, file.url, False)
            if file.unpack:
                archives.remove(folder, path)
            ours = download.unproved() or (expected and path.is_file() and _matches(path, expected))
            if ours:
                path.unlink(missing_ok=True)
            download.forget()
            if not path.exists():
                known.pop(file.path, None)
        if known:
            _record(folder, known)
        else:
            (folder / RECORDED).unlink(missing_ok=True)
        # while it is held, so that who waits for it sees that it is gone
        (folder / LOCK).unlink(missing_ok=True)
    for parent in sorted({(folder / file.path).parent for file in files} | {folder}, reverse=True):
        if parent.is_dir() and not any(parent.iterdir()):
            parent.rmdir()
