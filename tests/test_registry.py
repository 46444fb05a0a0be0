"""The registry: records that hold together, sets found by name, downloads from a local server, and what can go wrong with
them."""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import multiprocessing
import re
import tarfile
import threading
from pathlib import Path

import h5py
import numpy as np
import pytest

from potkit.datasets import fetch as fetching
from potkit.datasets import formats, load, names, records, registry
from potkit.datasets.records import Record, Remote
from potkit.errors import ConfigError, DataError
from potkit.structures import SYMBOLS


def test_records_hold_together():
    assert len({r.name for r in records.RECORDS}) == len(records.RECORDS)
    for r in records.RECORDS:
        assert r.kind in ("embedded", "reference", "public"), r.name
        assert all(e in SYMBOLS for e in r.elements.split()), r.name
        assert r.citation and all(c in records.CITATIONS for c in r.citation), r.name
        assert r.format is None or r.format in formats.FORMATS, r.name
        assert r.level and r.split and r.used_for, r.name
        for f in r.files:
            assert f.checksum is None or re.fullmatch(r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", f.checksum), (r.name, f.path)
            assert f.url is None or f.url.startswith("http"), (r.name, f.path)
    known = {r.name for r in records.RECORDS}
    assert {"ani-1", "ani-1x", "iso17", "spice-1", "md22", "rmd17", "rpbe-water", "ani-mini", "tip3p-mini"} <= known
    for entry in records.CITATIONS.values():
        assert entry.startswith("@") and entry.count("{") == entry.count("}")


def test_names_and_bibtex():
    frame = names()
    assert list(frame["name"]) == [r.name for r in records.RECORDS]
    row = frame.set_index("name").loc["ani-1x"]
    assert row["structures"] == 5_496_771 and row["elements"] == "H C N O" and row["licence"] == "CC0"
    assert "10.1038/s41597-020-0473-z" in registry.bibtex("ani-1x")


def test_unknown_and_missing(monkeypatch, tmp_path):
    with pytest.raises(ConfigError, match="unknown data set 'ani-2': known are ani-mini"):
        load("ani-2")
    monkeypatch.delenv("POTKIT_REFERENCE_DATA", raising=False)
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="POTKIT_REFERENCE_DATA is not set"):
        load("spice-dipeptides")
    with pytest.raises(DataError, match="potkit data fetch spice-1"):
        load("spice-1")
    with pytest.raises(ConfigError, match="embedded"):
        registry.fetch("ani-mini")
    with pytest.raises(ConfigError, match="no file 'x.npz'"):
        registry.fetch("md22", files=["x.npz"])


@pytest.mark.parametrize("name", ["ani-mini", "tip3p-mini"])
def test_embedded_sets_open(name):
    r = registry.record(name)
    if registry.embedded_path(r) is None:
        pytest.skip(f"{name} is not in this checkout")
    s = load(name)
    assert s.info["name"] == name and s.energy is not None and s.forces is not None
    row = names().set_index("name").loc[name]
    assert row["structures"] == len(s) and row["state"] == "ready"


def test_real_sets_by_name(reference_data, monkeypatch, tmp_path):
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path))
    for r in records.RECORDS:
        if r.kind == "reference":
            s = load(r.name)  # verifies the sha256 of every file
            assert len(s) == r.structures and len(np.unique(s.system)) == (3 if r.name == "rpbe-water-sample" else r.molecules)
            assert (int(s.n_atoms.min()), int(s.n_atoms.max())) == r.atoms
            assert (s.forces is not None) == r.forces and (s.cell is not None) == r.periodic
            assert s.info["name"] == r.name and s.info["level"] == r.level
    assert len(load("3bpa", files=["train_mixedT.xyz"])) == 500
    with pytest.raises(ConfigError, match="no file 'test.xyz' to read alone .it has: train_300K.xyz"):
        load("3bpa", files=["test.xyz"])
    near = load("ani1-alkanes", max_energy=5.0)
    assert 0 < len(near) < 97_629
    registry.convert("3bpa")
    packed = load("3bpa")
    assert isinstance(packed.pos.base, np.memmap) or isinstance(packed.pos, np.memmap)
    assert len(packed) == 1000


# -- downloads, from a server on this machine -----------------------------------------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; understands ranges; breaks off after ``limit`` bytes the first time if asked to."""

    limit: dict[str, int] = {}
    seen: list[tuple[str, str | None]] = []

    def do_GET(self):
        path = Path(self.directory) / self.path.lstrip("/")
        Handler.seen.append((self.path, self.headers.get("Range")))
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        start = int(match[1]) if (match := re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")) else 0
        if start >= len(content) and start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = Handler.limit.pop(self.path, None)
        self.wfile.write(content[start : None if stop is None else start + stop])
        if stop is not None:
            self.wfile.flush()
            self.connection.close()

    def log_message(self, *_):
        pass


@pytest.fixture()
def server(tmp_path):
    root = tmp_path / "served"
    root.mkdir()
    Handler.limit, Handler.seen = {}, []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(root))) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield root, f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()
        thread.join()


def sha(content: bytes) -> str:
    return "sha256:" + hashlib.sha256(content).hexdigest()


def test_download_verifies_and_is_not_repeated(server, tmp_path):
    root, url = server
    (root / "a.bin").write_bytes(b"x" * 1000)
    files = (Remote("sub/a.bin", f"{url}/a.bin", sha(b"x" * 1000)),)
    for _ in range(2):
        fetching.fetch(tmp_path / "cache", files, progress=False)
    assert (tmp_path / "cache/sub/a.bin").read_bytes() == b"x" * 1000 and len(Handler.seen) == 1
    fetching.verify(tmp_path / "cache", files)
    (tmp_path / "cache/sub/a.bin").write_bytes(b"y" * 1000)
    with pytest.raises(DataError, match="a.bin: checksum mismatch: expected sha256:.*, found sha256:"):
        fetching.verify(tmp_path / "cache", files)
    with pytest.raises(DataError, match="checksum mismatch"):
        fetching.fetch(tmp_path / "cache", files, progress=False)


def test_interrupted_download_goes_on(server, tmp_path):
    root, url = server
    content = np.random.default_rng(0).bytes(3_000_000)
    (root / "big").write_bytes(content)
    Handler.limit["/big"] = 1_500_000
    fetching.fetch(tmp_path / "cache", (Remote("big", f"{url}/big", sha(content)),), progress=False)
    assert (tmp_path / "cache/big").read_bytes() == content
    assert len(Handler.seen) == 2 and 0 < int(Handler.seen[1][1][6:-1]) <= 1_500_000  # the rest only
    assert sorted(f.name for f in (tmp_path / "cache").iterdir()) in (["big"], [".lock", "big"])


def test_a_download_cut_short_in_an_earlier_session_goes_on(server, tmp_path):
    root, url = server
    content = np.random.default_rng(0).bytes(100_000)
    (root / "big").write_bytes(content)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/big.part").write_bytes(content[:60_000])
    fetching.fetch(tmp_path / "cache", (Remote("big", f"{url}/big", sha(content)),), progress=False)
    assert Handler.seen == [("/big", "bytes=60000-")] and (tmp_path / "cache/big").read_bytes() == content


def test_wrong_checksum_keeps_nothing(server, tmp_path):
    root, url = server
    (root / "a").write_bytes(b"not what was promised")
    with pytest.raises(DataError, match="checksum mismatch: http.*/a did not hash to sha256:") as error:
        fetching.fetch(tmp_path / "cache", (Remote("a", f"{url}/a", sha(b"promised")),), progress=False)
    assert "\n" not in str(error.value)
    assert not [f for f in (tmp_path / "cache").iterdir() if f.name != ".lock"]


def test_first_checksum_is_recorded(server, tmp_path):
    root, url = server
    (root / "a").write_bytes(b"first")
    files = (Remote("a", f"{url}/a"),)
    fetching.fetch(tmp_path / "cache", files, progress=False)
    assert fetching.recorded(tmp_path / "cache") == {"a": sha(b"first")}
    (tmp_path / "cache/a").unlink()
    (root / "a").write_bytes(b"second")
    with pytest.raises(DataError, match="checksum mismatch"):
        fetching.fetch(tmp_path / "cache", files, progress=False)


def test_server_without_the_file(server, tmp_path):
    _, url = server
    with pytest.raises(DataError, match="download failed .HTTPError: 404.*fetch again to resume") as error:
        fetching.fetch(tmp_path / "cache", (Remote("a", f"{url}/none"),), progress=False)
    assert "\n" not in str(error.value)


def test_full_disk(server, tmp_path, monkeypatch):
    root, url = server
    (root / "a").write_bytes(b"x" * 1000)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetching.os, "replace", full)
    with pytest.raises(DataError, match="cannot be written .No space left on device"):
        fetching.fetch(tmp_path / "cache", (Remote("a", f"{url}/a"),), progress=False)
    assert not (tmp_path / "cache/a").exists()


def _fetch_in_a_process(folder, url, checksum):
    fetching.fetch(Path(folder), (Remote("big", url, checksum),), progress=False)


def test_two_processes_fetch_the_same_file(server, tmp_path):
    root, url = server
    content = np.random.default_rng(0).bytes(2_000_000)
    (root / "big").write_bytes(content)
    context = multiprocessing.get_context("fork")
    work = [context.Process(target=_fetch_in_a_process, args=(tmp_path / "cache", f"{url}/big", sha(content))) for _ in range(2)]
    for p in work:
        p.start()
    for p in work:
        p.join(60)
    assert [p.exitcode for p in work] == [0, 0] and len(Handler.seen) == 1
    assert (tmp_path / "cache/big").read_bytes() == content


def test_fetch_unpack_convert_load(server, tmp_path, monkeypatch):
    """A public set from its address to a memory-mapped store, by name."""
    root, url = server
    with h5py.File(tmp_path / "ani_gdb_s01.h5", "w") as file:
        file["gdb11_s01/gdb11_s01-0/coordinates"] = np.random.default_rng(0).normal(size=(6, 3, 3)).astype(np.float32)
        file["gdb11_s01/gdb11_s01-0/energies"] = np.full(6, -76.4)
        file["gdb11_s01/gdb11_s01-0/species"] = np.array([b"O", b"H", b"H"])
    with tarfile.open(root / "ani.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "ani_gdb_s01.h5", "ANI-1_release/ani_gdb_s01.h5")
        readme = tarfile.TarInfo("ANI-1_release/README")
        archive.addfile(readme, io.BytesIO(b""))
    checksum = sha((root / "ani.tar.gz").read_bytes())
    record = Record(
        "tiny", "public", "test", "none", ("ani1",), "H O", files=(Remote("ani.tar.gz", f"{url}/ani.tar.gz", checksum, unpack=True),),
        format="ani1", read_from="ANI-1_release",
    )  # fmt: skip
    monkeypatch.setattr(registry, "RECORDS", (record,))
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("POTKIT_REFERENCE_DATA", raising=False)
    assert names()["state"].tolist() == ["missing"]
    with pytest.raises(DataError, match="potkit data fetch tiny"):
        load("tiny")
    folder = registry.fetch("tiny", progress=False)
    assert (folder / "ANI-1_release/ani_gdb_s01.h5").is_file()
    s = load("tiny")
    assert len(s) == 6 and s.info["name"] == "tiny" and isinstance(s.pos, np.memmap)
    assert names()["state"].tolist() == ["ready"]
    assert load("tiny", systems="composition").system_names() == ["H2O"]
    (folder / "ani.tar.gz").write_bytes(b"")
    assert len(load("tiny")) == 6  # the store is enough
    with pytest.raises(DataError, match="checksum mismatch"):
        load("tiny", systems="composition")
