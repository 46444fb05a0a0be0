"""Downloads from servers that fail in all the ways servers do; what is a user's stays.

The plain ways of a download stand in test_registry.py.
"""

from __future__ import annotations

import errno
import hashlib
import http.server
import io
import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import tarfile
import threading
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import chores
import h5py
import numpy as np
import pytest

from potkit.datasets import archives, kinds, names, records, registry
from potkit.datasets import fetch as fetching
from potkit.datasets.records import Record, Remote
from potkit.errors import DataError

CONTENT = np.random.default_rng(0).bytes(300_000)
TEXT = "".join(f"H {i}.0 0.0 0.0\n" for i in range(20_000)).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    """Gives the answers of ``script`` one after the other, the last one again and again."""

    script: ClassVar[dict] = {}
    asked: ClassVar[list] = []

    def do_GET(self):
        Handler.asked.append((self.path, dict(self.headers)))
        answers = Handler.script[self.path]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        answer(self)

    def answer(self, status: int, body: bytes = b"", **headers: object) -> None:
        """Send it as it is said, true or not, and hang up.

        ``a_b`` is the header a-b; None leaves it out.
        """
        self.send_response(status)
        for key, value in ({"content_length": len(body)} | headers).items():
            if value is not None:
                self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_):
        pass


def says(status: int, body: bytes = b"", **headers: object):
    """An answer that does not depend on what was asked."""
    return lambda handler: handler.answer(status, body, **headers)


def good(content: bytes, limit: int | None = None, honest: bool = True, **headers: object):
    """The answer of a server that knows ranges; it hangs up after ``limit`` bytes.

    One that is not ``honest`` ignores If-Range.
    """

    def answer(handler):
        match = re.fullmatch(r"bytes=(\d+)-", handler.headers.get("Range", ""))
        start = int(match[1]) if match else 0
        condition = handler.headers.get("If-Range")
        if honest and condition not in (None, headers.get("etag"), headers.get("last_modified")):
            start = 0
        if start >= len(content):
            handler.answer(416, content_range=f"bytes */{len(content)}")
            return
        body = content[start:]
        span = (
            {"content_range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        )
        handler.answer(
            206 if start else 200, body[:limit], **{"content_length": len(body)} | span | headers
        )

    return answer


def chunked(body: bytes, end: bool = True, **headers: object):
    """The body in chunks; without the last, empty one if it does not ``end``."""
    pieces = [body[i : i + 50_000] for i in range(0, len(body), 50_000)]
    wire = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + (
        b"0\r\n\r\n" if end else b""
    )

    def answer(handler):
        handler.protocol_version = "HTTP/1.1"
        handler.answer(200, wire, content_length=None, transfer_encoding="chunked", **headers)

    return answer


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(fetching, "PAUSE", 0.001)
    Handler.script = {}
    Handler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


@pytest.fixture
def site(server, tmp_path):
    """One file called ``name``, what the server answers, and a folder to fetch it into."""
    folder = tmp_path / "cache"

    def fetch(name: str, *answers, checksum: str | None = None, unpack: bool = False) -> Path:
        if answers:
            Handler.script[f"/{name}"] = list(answers)
            Handler.asked = []
        remote = Remote(name, f"{server}/{name}", checksum, unpack)
        fetching.fetch(folder, (remote,), progress=False)
        return folder / name

    def refused(match: str, name: str, *answers, **options) -> str:
        with pytest.raises(DataError, match=match) as error:
            fetch(name, *answers, **options)
        assert "\n" not in str(error.value)
        return str(error.value)

    def part(name: str, content: bytes, **version: object) -> None:
        """What an earlier session left: its part, and what the server had said then."""
        folder.mkdir(exist_ok=True)
        (folder / f"{name}.part").write_bytes(content)
        if version:
            note = {"url": version.pop("url", f"{server}/{name}"), "version": version}
            text = json.dumps(note)
            (folder / f"{name}.part.version").write_text(text)

    return SimpleNamespace(folder=folder, fetch=fetch, refused=refused, part=part, url=server)


def left(folder: Path) -> list[str]:
    """All files but the lock."""
    return sorted(
        p.relative_to(folder).as_posix()
        for p in folder.rglob("*")
        if not p.is_dir() and p.name != ".lock"
    )


def sha(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def ranges() -> list[str | None]:
    return [headers.get("Range") for _, headers in Handler.asked]


# -- ranges

WRONG_RANGES = {
    "an earlier start": {"content_range": "bytes 0-299999/300000"},
    "a later start": {"content_range": "bytes 100100-299999/300000"},
    "another length": {"content_range": "bytes 100000-299999/310000"},
    "no length": {"content_range": "bytes 100000-299999/*"},
    "no range": {},
    "nonsense": {"content_range": "100000-"},
}


@pytest.mark.parametrize("wrong", WRONG_RANGES)
@pytest.mark.parametrize(
    "version",
    [{"etag": '"1"'}, {"last_modified": "Thu, 26 Nov 2026 00:00:00 GMT"}, {}],
    ids=["etag", "date", "none"],
)
def test_a_range_that_was_not_asked_for_is_not_glued_on(site, wrong, version):
    broken = good(CONTENT, limit=100_000, **version)
    path = site.fetch(
        "a.bin",
        broken,
        says(206, b"x" * 200_000, **WRONG_RANGES[wrong], **version),
        good(CONTENT, **version),
    )
    if wrong == "no length":  # the length was announced before: nothing contradicts this one
        assert path.stat().st_size == 300_000 and ranges() == [None, "bytes=100000-"]
    else:
        assert path.read_bytes() == CONTENT and ranges() == [None, "bytes=100000-", None]


def test_a_server_that_only_ever_sends_wrong_ranges_is_given_up(site):
    answer = says(206, CONTENT[1000:], content_range="bytes 1000-299999/300000")
    site.refused(
        "download failed .the server answered with 'bytes 1000-299999/300000' where byte 0 and",
        "a.bin",
        answer,
    )
    assert len(Handler.asked) == fetching.RETRIES and left(site.folder) == []


def test_an_unasked_range_is_the_whole_only_if_it_says_so(site):
    answers = [
        says(206, CONTENT[:1000], content_range="bytes 0-999/300000", etag='"1"'),
        good(CONTENT, etag='"1"'),
    ]
    assert site.fetch("a.bin", *answers).read_bytes() == CONTENT and ranges() == [
        None,
        "bytes=1000-",
    ]
    whole = says(206, CONTENT, content_range="bytes 0-299999/300000")
    assert site.fetch("b.bin", whole).read_bytes() == CONTENT


def test_more_than_was_announced(site):
    long = says(206, b"x" * 250_000, content_range="bytes 100000-299999/300000")
    path = site.fetch("a.bin", good(CONTENT, limit=100_000), long, good(CONTENT))
    assert path.read_bytes() == CONTENT and ranges() == [None, "bytes=100000-", None]


# -- which version a part is of


@pytest.mark.parametrize(
    "known",
    [
        {},
        {"total": 250_000},
        {"etag": '"old"', "total": 300_000},
        {"modified": "old", "total": 300_000},
        {"url": "other", "total": 300_000},
    ],
    ids=str,
)
def test_a_part_of_another_version_is_started_over(site, known):
    """Also where the server ignores If-Range, and where it sends neither tag nor date."""
    site.part("a.bin", b"old" * 30_000, **known)
    tagged = {"etag": '"new"', "last_modified": "new"} if len(known) > 1 else {}
    answer = good(CONTENT, honest=False, **tagged)
    assert site.fetch("a.bin", answer).read_bytes() == CONTENT
    assert ranges()[-1] is None and left(site.folder) == ["a.bin", "checksums.json"]


@pytest.mark.parametrize(
    "known, headers",
    [
        ({"total": 300_000}, {}),
        ({"etag": '"1"'}, {"etag": '"1"'}),
        ({"etag": 'W/"1"'}, {"etag": '"1"'}),
        ({"modified": "Thu", "total": 300_000}, {"last_modified": "Thu"}),
    ],
    ids=str,
)
def test_a_part_of_this_version_is_gone_on_with(site, known, headers):
    site.part("a.bin", CONTENT[:100_000], **known)
    assert site.fetch("a.bin", good(CONTENT, **headers)).read_bytes() == CONTENT and ranges() == [
        "bytes=100000-"
    ]


def test_a_note_of_older_potkit_or_of_half_a_line_binds_nothing(site):
    for text in ('"etag"', "Thu, 26 Nov 2026 00:00:00 GMT", '{"url": "http', ""):
        site.part("a.bin", b"old" * 1000)
        (site.folder / "a.bin.part.version").write_text(text)
        assert site.fetch("a.bin", good(CONTENT)).read_bytes() == CONTENT and ranges() == [None]
        (site.folder / "a.bin").unlink()
        (site.folder / "checksums.json").unlink()


def test_with_a_checksum_any_part_is_gone_on_with_and_started_over_if_it_was_of_another_version(
    site,
):
    site.part("a.bin", CONTENT[:100_000])
    assert site.fetch(
        "a.bin", good(CONTENT), checksum=sha(CONTENT)
    ).read_bytes() == CONTENT and ranges() == ["bytes=100000-"]
    site.part("b.bin", b"old" * 30_000)
    assert site.fetch(
        "b.bin", good(CONTENT), checksum=sha(CONTENT)
    ).read_bytes() == CONTENT and ranges() == ["bytes=90000-", None]


@pytest.mark.parametrize("size", [300_000, 310_000, 400_000])
def test_a_part_as_long_as_the_file_or_longer(site, size):
    """The server refuses the range: the part is whole only if it has the length it then says."""
    site.part("a.bin", (CONTENT + b"x" * 100_000)[:size], etag='"1"')
    assert site.fetch("a.bin", good(CONTENT, etag='"1"')).read_bytes() == CONTENT
    assert ranges() == [f"bytes={size}-"] + ([None] if size > 300_000 else [])


def test_a_refused_range_without_a_length_tells_nothing(site):
    site.part("a.bin", b"x" * 300_000, etag='"1"')
    assert site.fetch("a.bin", says(416), good(CONTENT)).read_bytes() == CONTENT and ranges() == [
        "bytes=300000-",
        None,
    ]


def test_a_part_longer_than_announced_is_started_over_and_a_whole_one_not_asked_for(site):
    site.part("a.bin", b"x" * 310_000, etag='"1"', total=300_000)
    assert site.fetch("a.bin", good(CONTENT, etag='"1"')).read_bytes() == CONTENT and ranges() == [
        None
    ]
    site.part("b.bin", CONTENT, etag='"1"', total=300_000)
    assert site.fetch("b.bin", says(500)).read_bytes() == CONTENT and ranges() == []


# -- answers that are not the file

HTML = b"\n <!DOCTYPE html><html><body>Please log in</body></html>"
S3 = b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'
ANSWERS = {
    "empty": (says(200), "it is empty"),
    "no length, empty": (says(200, content_length=None), "it is empty"),
    "204": (says(204), "answered 204 No Content, not with the file"),
    "202": (says(202), "answered 202 Accepted, not with the file"),
    "304": (says(304), "answered 304"),
    "html": (says(200, HTML), "it is an HTML page, not data"),
    "xml": (says(200, S3), "it is an XML page, not data"),
}


@pytest.mark.parametrize("name", ["a.npz", "a.tar.gz", "a.xyz", "a.bin"])
@pytest.mark.parametrize("case", ANSWERS)
def test_an_answer_without_the_file_is_not_kept(site, case, name):
    answer, match = ANSWERS[case]
    site.refused(match, name, answer, unpack=name.endswith(".gz"))
    assert left(site.folder) == [] and fetching.recorded(site.folder) == {}


def samples(folder: Path) -> dict[str, bytes]:
    """A whole file of each kind."""
    folder.mkdir()
    np.savez(folder / "a.npz", x=np.random.default_rng(0).normal(size=20_000))
    with zipfile.ZipFile(folder / "a.zip", "w") as archive:
        archive.writestr("data", CONTENT)
    for mode, name in {
        "w": "a.tar",
        "w:gz": "a.tar.gz",
        "w:bz2": "a.tar.bz2",
        "w:xz": "a.tar.xz",
    }.items():
        with tarfile.open(folder / name, mode) as archive:
            member = tarfile.TarInfo("data")
            member.size = len(CONTENT)
            archive.addfile(member, io.BytesIO(CONTENT))
    with h5py.File(folder / "a.h5", "w") as file:
        file["x"] = np.frombuffer(CONTENT, np.uint8)
    with sqlite3.connect(folder / "a.db") as database:
        database.execute("create table t (x blob)")
        database.execute("insert into t values (?)", (CONTENT,))
    database.close()
    (folder / "a.xyz").write_bytes(TEXT)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


KINDS = ["a.npz", "a.zip", "a.tar", "a.tar.gz", "a.tar.bz2", "a.tar.xz", "a.h5", "a.db", "a.xyz"]


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_by_its_first_bytes_and_its_end(site, tmp_path, name):
    whole = samples(tmp_path / "samples")
    other = whole["a.h5" if name != "a.h5" else "a.zip"]
    site.refused("is not the file: it is not .*: it begins with b'", name, good(other))
    short = whole[name][: len(whole[name]) * 2 // 3]
    if name != "a.xyz":  # half a text looks like a whole one if that is the length announced
        line = site.refused("is not the whole file", name, good(short))
        assert "cut short or damaged" in line
    assert left(site.folder) == []
    assert site.fetch(name, good(whole[name])).read_bytes() == whole[name]
    assert fetching.recorded(site.folder)[name].startswith("sha256:")


@pytest.mark.parametrize("name", KINDS)
def test_a_body_without_length_is_taken_only_where_its_end_can_be_told(site, tmp_path, name):
    """HTTP/1.0 without Content-Length: a broken line looks like the end."""
    whole = samples(tmp_path / "samples")[name]
    short = whole[: len(whole) * 2 // 3]
    expected = (
        "whether this is all of it cannot be told; nothing was kept"
        if name == "a.xyz"
        else "cut short or damaged"
    )
    site.refused(expected, name, says(200, short, content_length=None))
    assert left(site.folder) == []
    if name == "a.xyz":
        site.refused(expected, name, says(200, whole, content_length=None))
        site.fetch(name, says(200, whole, content_length=None), checksum=sha(whole))
    else:
        site.fetch(name, says(200, whole, content_length=None))
    assert (site.folder / name).read_bytes() == whole


def test_chunks_without_an_end_are_not_the_whole(site):
    answers = [chunked(TEXT[:100_000], end=False, etag='"1"'), good(TEXT, etag='"1"')]
    assert site.fetch("a.xyz", *answers).read_bytes() == TEXT and ranges() == [
        None,
        "bytes=100000-",
    ]
    site.refused("download failed .*; fetch again to resume", "b.xyz", chunked(TEXT, end=False))
    assert not (site.folder / "b.xyz").exists() and "b.xyz" not in fetching.recorded(site.folder)
    # without a version the part is started over
    assert site.fetch("b.xyz", chunked(TEXT)).read_bytes() == TEXT


def test_less_than_was_announced_is_asked_for_again(site):
    assert (
        site.fetch("a.xyz", good(TEXT, limit=1000), good(TEXT, limit=5000), good(TEXT)).read_bytes()
        == TEXT
    )
    assert ranges() == [None, "bytes=1000-", "bytes=6000-"]
    site.refused(
        "b.xyz: download failed .ProtocolError after 0 bytes.; fetch again to resume",
        "b.xyz",
        good(TEXT, limit=0),
    )
    assert len(Handler.asked) == fetching.RETRIES and not (site.folder / "b.xyz").exists()


def test_a_gz_that_the_server_calls_an_encoding_stays_as_it_is(site, tmp_path):
    whole = samples(tmp_path / "samples")["a.tar.gz"]
    assert site.fetch("a.tar.gz", good(whole, content_encoding="x-gzip")).read_bytes() == whole
    site.refused(
        "sent packed .gzip. although it was asked for as it is",
        "a.xyz",
        good(whole, content_encoding="gzip"),
    )


@pytest.mark.parametrize(
    "target", ["file:///etc/hostname", "ftp://127.0.0.1/a.bin", "data:text/plain,x"]
)
@pytest.mark.parametrize("checksum", [None, "sha256:" + "0" * 64])
def test_a_redirect_to_another_scheme_is_named(site, target, checksum):
    line = site.refused(
        re.escape(f"redirects to {target!r}, which is neither http nor https"),
        "a",
        says(302, location=target),
        checksum=checksum,
    )
    assert "checksum" not in line and left(site.folder) == []


def test_a_redirect_within_the_net_is_followed(site):
    Handler.script["/b"] = [good(CONTENT)]
    assert site.fetch("a", says(302, location="/b")).read_bytes() == CONTENT


def test_an_html_page_in_the_place_of_a_file_with_a_checksum(site):
    line = site.refused(
        "checksum mismatch: http.*/a.h5 did not hash to",
        "a.h5",
        says(200, HTML),
        checksum="md5:" + "0" * 32,
    )
    assert "it is an HTML page, not data; nothing was kept" in line


# -- retries


def test_a_server_that_asks_to_wait_is_waited_for_but_not_for_hours(site, monkeypatch):
    waited = []
    monkeypatch.setattr(fetching.urllib3.util.retry.time, "sleep", waited.append)
    site.fetch("a", says(503, retry_after=7), says(429, retry_after=86_400), good(CONTENT))
    assert [seconds for seconds in waited if seconds > 1] == [7, fetching.PATIENCE]


def test_nobody_listens(site):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))  # not listening
        url = f"http://127.0.0.1:{free.getsockname()[1]}/a"
        line = r"download failed .ConnectionError: .*; fetch again to resume"
        with pytest.raises(DataError, match=line) as error:
            fetching.fetch(site.folder, (Remote("a", url),), progress=False)
    assert "\n" not in str(error.value)


def test_a_server_that_falls_silent_is_asked_for_the_rest(site, monkeypatch):
    monkeypatch.setattr(fetching, "PATIENCE", 0.2)

    def silent(handler):
        good(CONTENT, limit=100_000, etag='"1"')(handler)
        time.sleep(0.6)

    assert site.fetch("a", silent, good(CONTENT, etag='"1"')).read_bytes() == CONTENT
    assert ranges() == [None, f"bytes={fetching.CHUNK}-"]  # what had arrived of a chunk is lost


# -- kills


def _killed_in(work, number: int) -> None:
    pid = chores.child(work)
    assert chores.wait(pid) == -number


def test_sigterm_in_the_middle(site):
    """No half file under its final name; the next one goes on with the part."""
    stop = threading.Event()

    def slow(handler):
        good(CONTENT, limit=200_000, etag='"1"')(handler)
        stop.wait(20)

    Handler.script["/a"] = [slow, good(CONTENT, etag='"1"')]
    pid = chores.child(lambda: site.fetch("a"))
    part = site.folder / "a.part"
    assert chores.until(lambda: part.exists() and part.stat().st_size > 100_000, 20)
    os.kill(pid, signal.SIGTERM)
    assert chores.wait(pid) == -signal.SIGTERM
    stop.set()
    have = part.stat().st_size
    assert left(site.folder) == ["a.part", "a.part.version"]
    assert site.fetch("a").read_bytes() == CONTENT and ranges()[-1] == f"bytes={have}-"
    assert left(site.folder) == ["a", "checksums.json"]


def tar(members: dict[str, bytes], mode: str = "w:gz") -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode) as archive:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return stream.getvalue()


def ani1_file(tmp_path: Path, group: str, n: int) -> bytes:
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file[f"{group}/{group}-0/coordinates"] = (
            np.random.default_rng(n).normal(size=(n, 3, 3)).astype(np.float32)
        )
        file[f"{group}/{group}-0/energies"] = np.full(n, -76.4)
        file[f"{group}/{group}-0/species"] = np.array([b"O", b"H", b"H"])
    return (tmp_path / "one.h5").read_bytes()


@pytest.fixture
def tiny(server, tmp_path, monkeypatch):
    """A registered set in ANI-1's layout, without a checksum: files of 3, 4, 5 and 6 structures."""
    members = {
        f"ANI-1_release/ani_gdb_s0{k}.h5": ani1_file(tmp_path, f"s{k}", k + 2) for k in range(1, 5)
    }
    Handler.script["/tiny.tar.gz"] = [good(tar(members))]
    remote = Remote(
        "tiny.tar.gz", f"{server}/tiny.tar.gz", None, unpack=True, members=tuple(members)
    )
    record = Record(
        "tiny",
        "public",
        "t",
        "none",
        ("ani1",),
        "H O",
        files=(remote,),
        format="ani1",
        read_from="ANI-1_release",
    )
    monkeypatch.setattr(registry, "RECORDS", (record,))
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("POTKIT_REFERENCE_DATA", raising=False)
    return SimpleNamespace(raw=tmp_path / "cache/tiny/raw", members=members, record=record)


def state() -> str:
    return names()["state"].tolist()[0]


def _dying(number: int, module, name: str):
    """``module.name``, which kills its process when it is called for the ``number``-th time."""
    real = getattr(module, name)
    calls = []

    def dying(*arguments, **options):
        calls.append(name)
        if len(calls) == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments, **options)

    return dying


@pytest.mark.parametrize(
    "where, number",
    [("_extract", 1), ("_move", 1), ("_flush", 1), ("_flush", 3), ("_flush", 4), ("_state", 2)],
    ids=[
        "before it",
        "unpacked, not moved",
        "none moved",
        "two of four moved",
        "three of four moved",
        "no marker",
    ],
)
def test_killed_while_unpacking(tiny, where, number):
    """The archive is whole, the marker missing: not ready, whatever files are there.

    The next fetch needs no server.
    """

    def work():
        setattr(archives, where, _dying(number, archives, where))
        registry.fetch("tiny", progress=False)

    _killed_in(work, signal.SIGKILL)
    assert (tiny.raw / "tiny.tar.gz").is_file() and state() == "missing"
    with pytest.raises(
        DataError,
        match=r"complete: .*tiny.tar.gz is not unpacked to its end; `potkit data fetch tiny`",
    ):
        registry.load("tiny")
    assert not registry.packed_path(tiny.record).exists()
    Handler.script["/tiny.tar.gz"] = [says(404)]
    registry.fetch("tiny", progress=False)
    assert state() == "ready" and len(registry.load("tiny")) == 3 + 4 + 5 + 6
    assert left(tiny.raw) == sorted(
        [".tiny.tar.gz.unpacked", "tiny.tar.gz", "checksums.json", *tiny.members]
    )


def test_what_an_older_potkit_left_half_unpacked(tiny):
    """Members that were written in place: two whole, one cut short.

    Only what starts as the member does is replaced.
    """
    registry.fetch("tiny", progress=False)
    archives.marker_of(tiny.raw / "tiny.tar.gz").unlink()
    first, _, third, fourth = (tiny.raw / name for name in tiny.members)
    third.write_bytes(third.read_bytes()[:1000])
    fourth.unlink()
    assert state() == "missing"
    inode = first.stat().st_ino
    registry.fetch("tiny", progress=False)
    assert len(registry.load("tiny")) == 18 and first.stat().st_ino == inode


def test_the_empty_marker_of_an_older_potkit_says_ready_if_all_files_are_there(tiny):
    registry.fetch("tiny", progress=False)
    archives.marker_of(tiny.raw / "tiny.tar.gz").write_text("")
    assert state() == "ready"
    (tiny.raw / list(tiny.members)[2]).unlink()
    assert state() == "missing"
    registry.fetch("tiny", progress=False)
    assert (
        state() == "ready"
        and archives.members_of(tiny.raw / "tiny.tar.gz").keys() == tiny.members.keys()
    )


def test_what_is_unpacked_is_not_unpacked_again(tiny, monkeypatch):
    registry.fetch("tiny", progress=False)
    monkeypatch.setattr(archives, "_extract", None)
    registry.fetch("tiny", progress=False)
    assert state() == "ready"


def test_a_member_that_went_later(tiny):
    registry.fetch("tiny", progress=False)
    (tiny.raw / list(tiny.members)[1]).unlink()
    assert state() == "missing"
    with pytest.raises(
        DataError,
        match=r"complete: .*ani_gdb_s02.h5, unpacked from tiny.tar.gz, is missing or was changed",
    ):
        registry.load("tiny")
    registry.fetch("tiny", progress=False)
    assert len(Handler.asked) == 1 and len(registry.load("tiny")) == 18


def test_the_archive_may_go_once_it_is_unpacked(tiny):
    registry.fetch("tiny", progress=False)
    (tiny.raw / "tiny.tar.gz").unlink()
    registry.fetch("tiny", progress=False)
    assert len(Handler.asked) == 1 and state() == "ready" and len(registry.load("tiny")) == 18


ARCHIVES = [(r, f) for r in records.RECORDS for f in r.files if f.unpack]


def test_every_registered_archive_says_what_is_read_from_it():
    assert {r.name for r, _ in ARCHIVES} == {"ani-1", "iso17", "rmd17", "rpbe-water"}
    assert all(f.members for _, f in ARCHIVES)


@pytest.mark.parametrize("r, file", ARCHIVES, ids=lambda value: getattr(value, "name", ""))
def test_when_a_registered_archive_is_ready(r, file, tmp_path, monkeypatch):
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path / "cache"))
    monkeypatch.setenv("POTKIT_REFERENCE_DATA", str(tmp_path / "reference"))

    def ready() -> bool:
        return names().set_index("name").loc[r.name, "state"] == "ready"

    members = [
        re.sub(r"\[(.)[^]]*\]", r"\1", m).replace("**/", "sub/").replace("*", "x")
        for m in file.members
    ]
    for root in (tmp_path / "cache" / r.name / "raw", tmp_path / "reference" / r.name):
        by_hand = "reference" in root.parts
        root.mkdir(parents=True)
        assert not ready()
        for k, name in enumerate(members):  # unpacked by hand: ready with the last one
            assert not ready(), (name, k)
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text("x")
        assert ready()
        # the archive beside it: in fetch's folder that is what a killed unpacking leaves
        (root / file.path).write_text("x")
        assert ready() == by_hand
        shutil.rmtree(root)


# -- a user's files


def test_a_file_in_a_members_place_is_not_overwritten(site):
    whole = tar({"set/a.txt": b"member", "set/b.txt": b"member"})
    (site.folder / "set").mkdir(parents=True)
    (site.folder / "set/b.txt").write_text("thesis")
    site.refused(
        "set/b.txt: is in the way of a file of the archive and differs from it",
        "t.tar.gz",
        good(whole),
        unpack=True,
    )
    assert (site.folder / "set/b.txt").read_text() == "thesis" and not (
        site.folder / "set/a.txt"
    ).exists()
    (site.folder / "set/b.txt").rename(site.folder / "thesis.txt")
    site.fetch("t.tar.gz", unpack=True)
    assert len(Handler.asked) == 1 and (site.folder / "set/b.txt").read_bytes() == b"member"


@pytest.mark.parametrize(
    "name", ["checksums.json", ".lock", "t.tar.gz", ".t.tar.gz.unpacked", "t.tar.gz.part"]
)
def test_an_archive_cannot_write_potkits_own_notes(site, name):
    site.refused(
        f"{name}: the archive holds a file of this name",
        "t.tar.gz",
        good(tar({"a": b"x", name: b"{}"})),
        unpack=True,
    )
    assert not (site.folder / "a").exists() and fetching.recorded(site.folder) == {}


def test_an_archive_that_leads_outside(site, tmp_path):
    site.refused(
        "archive is truncated or damaged .*; it was removed",
        "t.tar.gz",
        good(tar({"a": b"x", "../out": b"x"})),
        unpack=True,
    )
    assert left(site.folder) == [] and not (tmp_path / "out").exists()
    outside = tmp_path / "outside"  # a whole path is taken as one below the folder
    site.fetch("u.tar.gz", good(tar({str(outside): b"x"})), unpack=True)
    assert not outside.exists() and (site.folder / outside.relative_to("/")).read_bytes() == b"x"


def test_a_damaged_archive_of_the_users_is_left_to_them(site):
    site.folder.mkdir()
    (site.folder / "t.tar.gz").write_bytes(tar({"a": CONTENT})[:-1000])
    site.refused(
        "archive is truncated or damaged .*; delete it and fetch it again", "t.tar.gz", unpack=True
    )
    assert left(site.folder) == ["t.tar.gz"]
    (site.folder / "b.npz").write_bytes(HTML)
    site.refused("b.npz: it is an HTML page, not data; delete it", "b.npz")
    assert left(site.folder) == ["b.npz", "t.tar.gz"]


@pytest.mark.parametrize("mode, name", [("w:gz", "t.tar.gz"), ("w", "t.tar")])
def test_a_damaged_archive_leaves_nothing_and_the_next_is_fetched_afresh(site, mode, name):
    whole = tar({"set/a": CONTENT[:100_000], "set/b": CONTENT[100_000:]}, mode)
    first = 512 + 100_352  # header and body of the first member, in blocks of 512
    cut = whole[: len(whole) - 60_000] if mode == "w:gz" else whole[:first]
    for _ in range(2):
        site.refused(
            "archive is truncated or damaged .*; it was removed, fetch it again",
            name,
            good(cut),
            unpack=True,
        )
        assert left(site.folder) == []
    site.fetch(name, good(whole), unpack=True)
    assert (site.folder / "set/b").read_bytes() == CONTENT[100_000:] and ranges() == [None]


def test_downloaded_whole_and_killed_before_it_proved_damaged(site):
    """The note about the version marks the archive as ours until then."""
    cut = tar({"set/a": CONTENT})[:-1000]

    def work():
        archives.unpack = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        site.fetch("t.tar.gz", unpack=True)

    Handler.script["/t.tar.gz"] = [good(cut)]
    _killed_in(work, signal.SIGKILL)
    site.refused("it was removed, fetch it again", "t.tar.gz", unpack=True)
    assert left(site.folder) == []


def test_a_file_put_beside_a_part_is_the_users(site):
    site.part("t.tar.gz", b"half", etag='"1"')
    (site.folder / "t.tar.gz").write_bytes(tar({"a": CONTENT})[:-1000])
    site.refused("archive is truncated or damaged .*; delete it and", "t.tar.gz", unpack=True)
    with pytest.warns(UserWarning, match=r"left as they are: t\.tar\.gz$"):
        fetching.clear(site.folder, (Remote("t.tar.gz", f"{site.url}/t.tar.gz", unpack=True),))
    assert left(site.folder) == ["t.tar.gz"]


def test_a_full_disk_while_unpacking(site, monkeypatch):
    whole = tar({"set/a": CONTENT})

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as disk:
        disk.setattr(kinds.tarfile, "copyfileobj", full)
        site.refused(
            "cannot be written .No space left on device.; fetch again to resume",
            "t.tar.gz",
            good(whole),
            unpack=True,
        )
    assert left(site.folder) == ["t.tar.gz", "t.tar.gz.part.version"]
    site.fetch("t.tar.gz", unpack=True)
    assert len(Handler.asked) == 1 and (site.folder / "set/a").read_bytes() == CONTENT


def test_two_processes_fetch_and_unpack_the_same_archive(site):
    whole = tar({"set/a": CONTENT, "set/b": CONTENT})
    Handler.script["/t.tar.gz"] = [good(whole)]
    pids = [chores.child(lambda: site.fetch("t.tar.gz", unpack=True)) for _ in range(2)]
    assert [chores.wait(pid) for pid in pids] == [0, 0] and len(Handler.asked) == 1
    assert left(site.folder) == [
        ".t.tar.gz.unpacked",
        "checksums.json",
        "set/a",
        "set/b",
        "t.tar.gz",
    ]


def test_another_version_of_an_archive_replaces_its_members_but_not_changed_ones(site):
    old = tar({"a": b"old", "b": b"old", "gone": b"old"})
    new = tar({"a": b"newer", "b": b"newer"})
    site.fetch("t.tar.gz", good(old), unpack=True)
    for name in ("t.tar.gz", "checksums.json"):
        (site.folder / name).unlink()
    site.fetch("t.tar.gz", unpack=True)  # unpacked is enough
    assert (site.folder / "a").read_bytes() == b"old"
    (site.folder / "t.tar.gz").write_bytes(new)
    (site.folder / "b").write_bytes(b"mine")
    site.refused("cache/b: is in the way", "t.tar.gz", unpack=True)
    assert (site.folder / "a").read_bytes() == b"old" and (
        site.folder / "b"
    ).read_bytes() == b"mine"
    (site.folder / "b").unlink()
    site.fetch("t.tar.gz", unpack=True)
    assert (site.folder / "a").read_bytes() == b"newer" == (site.folder / "b").read_bytes()
    assert not (site.folder / "gone").exists()


@pytest.mark.parametrize("text", ["[]", '{"a": 1}', "null", "{", '"x"'])
def test_a_table_of_checksums_that_is_none(site, text):
    site.folder.mkdir()
    (site.folder / "checksums.json").write_text(text)
    site.refused("checksums.json: cannot be read", "a", good(b"x"))


# -- clear


def remotes(site) -> tuple[Remote, ...]:
    url = site.url
    return (
        Remote("t.tar.gz", f"{url}/t.tar.gz", None, unpack=True),
        Remote("sub/b.xyz", f"{url}/b.xyz"),
        Remote("c.xyz", f"{url}/c.xyz"),
    )


def test_clear_removes_what_was_fetched(site):
    Handler.script = {
        "/t.tar.gz": [good(tar({"set/deep/a": b"x", "d": b"y"}))],
        "/b.xyz": [good(TEXT)],
        "/c.xyz": [good(TEXT)],
    }
    fetching.fetch(site.folder, remotes(site), progress=False)
    site.part("c.xyz", b"half", etag="1")
    archives.workplace_of(site.folder / "t.tar.gz").mkdir()
    fetching.clear(site.folder, remotes(site))
    assert not site.folder.exists()
    fetching.clear(site.folder, remotes(site))  # nothing there is nothing to remove


def test_clear_leaves_what_is_a_users(site):
    Handler.script = {
        "/t.tar.gz": [good(tar({"set/deep/a": b"x", "set/e": b"x", "d": b"y"}))],
        "/b.xyz": [good(TEXT)],
        "/c.xyz": [good(TEXT)],
    }
    fetching.fetch(site.folder, remotes(site), progress=False)
    users = {
        "set/deep/thesis.txt": b"mine",
        "notes": b"mine",
        "c.xyz": b"mine",
        "d": b"z",
        ".hidden.tmp": b"mine",
    }
    for name, content in users.items():
        (site.folder / name).write_bytes(content)
    with pytest.warns(
        UserWarning, match=r"cache: left as they are: .*set/deep/thesis.txt|and 1 more"
    ) as told:
        fetching.clear(site.folder, remotes(site))
    assert len(told) == 1 and "\n" not in str(told[0].message)
    assert {name: (site.folder / name).read_bytes() for name in users} == users
    assert left(site.folder) == sorted([*users, "checksums.json"])  # c.xyz still has one
    assert fetching.recorded(site.folder).keys() == {"c.xyz"}


def test_clear_of_a_folder_that_is_not_fetchs(tmp_path):
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/thesis.txt").write_text("x")
    (tmp_path / "precious/c.xyz").write_text("x")
    with pytest.warns(UserWarning, match="left as they are: c.xyz, thesis.txt$"):
        fetching.clear(tmp_path / "precious", (Remote("c.xyz", "http://nowhere"),))
    assert left(tmp_path / "precious") == ["c.xyz", "thesis.txt"]


def test_kinds_of_all_registered_files():
    """Whatever has no published checksum is of a kind whose first bytes and end are known."""
    for r in records.RECORDS:
        for file in r.files:
            if r.kind == "public" and file.checksum is None:
                assert kinds.tells_its_end(file.path), (r.name, file.path)
