"""The registry: records that hold together, sets found by name, downloads from a local server, and
what can go wrong with them.
"""

from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import multiprocessing
import re
import shutil
import tarfile
import threading
import zipfile
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np
import pytest

from potkit.datasets import archives, formats, load, names, recipes, records, registry
from potkit.datasets import fetch as fetching
from potkit.datasets.records import Record, Remote
from potkit.errors import ConfigError, DataError
from potkit.structures.elements import SYMBOLS


def test_records_hold_together():
    assert len({r.name for r in records.RECORDS}) == len(records.RECORDS)
    for r in records.RECORDS:
        assert r.kind in ("embedded", "reference", "public"), r.name
        assert all(e in SYMBOLS for e in r.elements.split()), r.name
        assert r.citation and all(c in records.CITATIONS for c in r.citation), r.name
        assert r.format is None or r.format in formats.FORMATS, r.name
        assert r.level and r.split and r.used_for, r.name
        for f in r.files:
            assert f.checksum is None or re.fullmatch(
                r"sha256:[0-9a-f]{64}|md5:[0-9a-f]{32}", f.checksum
            ), (r.name, f.path)
            assert f.url is None or f.url.startswith("http"), (r.name, f.path)
    known = {r.name for r in records.RECORDS}
    assert {
        "ani-1",
        "ani-1x",
        "iso17",
        "spice-1",
        "md22",
        "rmd17",
        "rpbe-water",
        "ani-mini",
        "tip3p-mini",
    } <= known
    for entry in records.CITATIONS.values():
        assert entry.startswith("@") and entry.count("{") == entry.count("}")


@pytest.mark.parametrize(
    "r", [r for r in records.RECORDS if r.kind != "embedded"], ids=lambda r: r.name
)
def test_no_field_of_a_public_set_is_missing(r):
    for name in (
        "title",
        "level",
        "citation",
        "elements",
        "atoms",
        "molecules",
        "structures",
        "licence",
        "source",
        "files",
        "format",
        "read_from",
        "split",
        "used_for",
    ):
        assert getattr(r, name), f"{r.name}: {name} is missing"
    assert r.source.startswith("http")
    assert 1 <= r.atoms[0] <= r.atoms[1]
    assert r.structures >= r.molecules >= 1
    assert all(f.url for f in r.files) or r.kind == "reference", r.name
    # public: recorded at the first download
    assert all(f.checksum for f in r.files) or r.kind == "public", r.name
    assert set(r.parts) <= {f.path for f in r.files}
    papers = ("denoise paper", "masked paper", "not in the papers", "real data", "reader")
    assert any(word in r.used_for for word in papers), r.used_for
    entry = registry.bibtex(r.name)
    assert all(word in entry for word in ("author", "title", "year"))


def test_every_set_of_both_papers_has_an_embedded_counterpart():
    embedded = {r.name for r in records.RECORDS if r.kind == "embedded"}
    assert {
        "ani-mini",
        "spice-mini",
        "md22-mini",
        "iso17-mini",
        "rmd17-mini",
        "tip3p-mini",
        "water-mini",
    } <= embedded
    # what is embedded can be made again
    assert embedded == set(recipes.RECIPES)
    for r in records.RECORDS:
        if r.kind == "embedded":
            assert r.title and r.level and r.split and r.used_for
            assert r.licence == "MIT" and len(r.files) == 1


def unpacked(raw: Path, archive: str) -> None:
    """Mark all files below ``raw`` as those of ``archive``, of which there is no more than the
    name.
    """
    names = [p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file()]
    members = {name: archives._state(raw / name) for name in names}
    (raw / archive).write_bytes(b"")
    archives.marker_of(raw / archive).write_text(
        json.dumps({"format": archives.FORMAT, "archive": "", "members": members})
    )


def rmd17(tmp_path, monkeypatch, **index):
    """The revised MD17 in its published layout: a folder of .npz and index files that count from 0
    within each molecule.
    """
    raw = tmp_path / "cache/rmd17/raw"
    (raw / "rmd17/npz_data").mkdir(parents=True)
    (raw / "rmd17/splits").mkdir()
    rng = np.random.default_rng(0)
    for name, z, n in (
        ("ethanol", [6, 6, 8, 1, 1, 1, 1, 1, 1], 10),
        ("uracil", [6, 6, 7, 6, 7, 6, 8, 8, 1, 1, 1, 1], 8),
    ):
        arrays = {
            "coords": rng.normal(size=(n, len(z), 3)),
            "energies": rng.normal(size=n) - 1e5,
            "forces": rng.normal(size=(n, len(z), 3)),
        }
        np.savez(raw / f"rmd17/npz_data/rmd17_{name}.npz", nuclear_charges=np.array(z), **arrays)
    for part, rows in ({"train": "0\n5\n2\n", "test": "7\n1\n"} | index).items():
        (raw / f"rmd17/splits/index_{part}_01.csv").write_text(rows)
    unpacked(raw, "rmd17.tar.bz2")
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("POTKIT_REFERENCE_DATA", raising=False)
    monkeypatch.setattr(fetching, "verify", lambda *_: None)  # the archive is a stand-in
    return registry.load("rmd17")


def test_published_index_files_count_within_each_molecule(tmp_path, monkeypatch):
    s = rmd17(tmp_path, monkeypatch)
    assert s.system_names() == ["ethanol", "uracil"] and s.lies_in(tmp_path / "cache/rmd17/packed")
    parts = registry.published_split("rmd17", s)
    assert parts["train"].tolist() == [0, 2, 5, 10, 12, 15]
    assert parts["test"].tolist() == [1, 7, 11, 17]
    with pytest.raises(DataError, match=r"index_train_02.csv: no such index file"):
        registry.published_split("rmd17", s, fold=2)
    with pytest.raises(
        ConfigError, match="'md22' has no published split; recommended: 80/10/10, per molecule"
    ):
        registry.published_split("md22", s)


def test_an_index_file_that_points_past_the_end(tmp_path, monkeypatch):
    s = rmd17(tmp_path, monkeypatch, test="7\n9\n")
    fault = (
        r"index_test_01.csv: line 2: index 9 points outside the 8 structures "
        r".counted from 0. of uracil"
    )
    with pytest.raises(DataError, match=fault):
        registry.published_split("rmd17", s)


def test_of_several_functionals_the_one_of_the_set_is_read(tmp_path, monkeypatch):
    raw = tmp_path / "rpbe-water/raw"
    (raw / "training-data_H2O").mkdir(parents=True)
    block = "begin\natom 0 0 0 H 0 0 0 0 0\nenergy {}\ncharge 0\nend\n"
    for k, name in enumerate(("BLYP", "BLYP-D3", "RPBE", "RPBE-D3")):
        (raw / f"training-data_H2O/input.data.{name}").write_text(block.format(-k))
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path))
    monkeypatch.delenv("POTKIT_REFERENCE_DATA", raising=False)
    monkeypatch.setattr(fetching, "verify", lambda *_: None)
    assert registry.load("rpbe-water").energy.tolist() == [pytest.approx(-3 * 27.211386, abs=1e-5)]
    shutil.rmtree(tmp_path / "rpbe-water/packed")
    (raw / "training-data_H2O/input.data.RPBE-D3").unlink()
    with pytest.raises(
        DataError, match=r"0 files fit .*, expected one of training-data_H2O/input.data.BLYP, "
    ):
        registry.load("rpbe-water")


def test_names_and_bibtex():
    frame = names()
    assert list(frame["name"]) == [r.name for r in records.RECORDS]
    row = frame.set_index("name").loc["ani-1x"]
    assert row["structures"] == 5_496_771
    assert row["elements"] == "H C N O"
    assert row["licence"] == "CC0"
    assert "10.1038/s41597-020-0473-z" in registry.bibtex("ani-1x")


def test_unknown_and_missing(monkeypatch, tmp_path):
    known = ", ".join(r.name for r in records.RECORDS)
    with pytest.raises(ConfigError, match=f"^unknown data set 'ani-2': known are {known}$"):
        load("ani-2")
    monkeypatch.delenv("POTKIT_REFERENCE_DATA", raising=False)
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path))
    with pytest.raises(DataError, match="POTKIT_REFERENCE_DATA is not set"):
        load("spice-dipeptides")
    with pytest.raises(DataError, match="potkit data fetch spice-1"):
        load("spice-1")
    with pytest.raises(ConfigError, match="embedded"):
        registry.fetch("ani-mini")
    with pytest.raises(ConfigError, match=r"no file 'x.npz'"):
        registry.fetch("md22", files=["x.npz"])


@pytest.mark.parametrize("name", [r.name for r in records.RECORDS if r.kind == "embedded"])
def test_embedded_sets_open(name):
    s = load(name)
    assert s.info["name"] == name and s.energy is not None and s.forces is not None
    row = names().set_index("name").loc[name]
    assert row["structures"] == len(s) and row["state"] == "ready"


def test_real_sets_by_name(reference_data, monkeypatch, tmp_path):
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path))
    for r in records.RECORDS:
        if r.kind == "reference":
            s = load(r.name)  # verifies the sha256 of every file
            assert len(s) == r.structures
            # boxes of one molecule: a system is a formula
            boxes = {"rpbe-water-sample": 3, "rpbe-water-n2p2": 7, "rpbe-d3-water-n2p2": 7}
            assert len(np.unique(s.system)) == boxes.get(r.name, r.molecules), r.name
            assert (int(s.n_atoms.min()), int(s.n_atoms.max())) == r.atoms
            assert (s.energy is not None) == r.labelled, r.name
            assert {SYMBOLS[z] for z in s.elements} == set(r.elements.split()), r.name
            assert (s.forces is not None) == r.forces and (s.cell is not None) == r.periodic
            assert s.info["name"] == r.name and s.info["level"] == r.level
    assert len(load("3bpa", files=["train_mixedT.xyz"])) == 500
    with pytest.raises(
        ConfigError, match=r"no file 'test.xyz' to read alone .it has: train_300K.xyz"
    ):
        load("3bpa", files=["test.xyz"])
    near = load("ani1-alkanes", max_energy=5.0)
    assert 0 < len(near) < 97_629
    registry.convert("3bpa")
    packed = load("3bpa")
    assert isinstance(packed.pos.base, np.memmap) or isinstance(packed.pos, np.memmap)
    assert len(packed) == 1000
    # made once more of the files, not of the store that is there
    monkeypatch.setattr(registry.Structures, "open", None)
    registry.convert("3bpa")


# -- downloads, from a server on this machine ----------------------------------------------------


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; understands ranges; breaks off after ``limit`` bytes the first time if
    asked to.
    """

    limit: ClassVar[dict[str, int]] = {}  # bytes
    busy: ClassVar[dict[str, int]] = {}  # how many times it says so
    ranges = True
    seen: ClassVar[list[tuple[str, str | None]]] = []  # paths and ranges that were asked for

    def do_GET(self):
        path = Path(self.directory) / self.path.lstrip("/")
        Handler.seen.append((self.path, self.headers.get("Range")))
        if Handler.busy.get(self.path):
            Handler.busy[self.path] -= 1
            self.send_error(503)
            return
        if not path.is_file():
            self.send_error(404)
            return
        content = path.read_bytes()
        tag = f'"{hashlib.sha256(content).hexdigest()[:8]}"'
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(asked[1]) if asked else 0
        if not Handler.ranges or self.headers.get("If-Range", tag) != tag:
            start = 0
        if start >= len(content) and start:
            self.send_error(416)
            return
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("ETag", tag)
        self.end_headers()
        stop = Handler.limit.pop(self.path, None)
        self.wfile.write(content[start : None if stop is None else start + stop])
        if stop is not None:
            self.wfile.flush()
            self.connection.close()

    def log_message(self, *_):
        pass


@pytest.fixture()
def server(tmp_path, monkeypatch):
    root = tmp_path / "served"
    root.mkdir()
    monkeypatch.setattr(fetching, "PAUSE", 0.01)
    Handler.limit = {}
    Handler.busy = {}
    Handler.ranges = True
    Handler.seen = []
    handler = functools.partial(Handler, directory=str(root))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as httpd:
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
    with pytest.raises(
        DataError, match=r"a.bin: checksum mismatch: expected sha256:.*, found sha256:"
    ):
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
    # the rest only
    assert len(Handler.seen) == 2 and 0 < int(Handler.seen[1][1][6:-1]) <= 1_500_000
    assert sorted(f.name for f in (tmp_path / "cache").iterdir()) in (["big"], [".lock", "big"])


def test_a_download_cut_short_in_an_earlier_session_goes_on(server, tmp_path):
    root, url = server
    content = np.random.default_rng(0).bytes(100_000)
    (root / "big").write_bytes(content)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/big.part").write_bytes(content[:60_000])
    fetching.fetch(tmp_path / "cache", (Remote("big", f"{url}/big", sha(content)),), progress=False)
    assert Handler.seen == [("/big", "bytes=60000-")]
    assert (tmp_path / "cache/big").read_bytes() == content


def test_a_file_that_changed_in_between_is_not_glued_together(server, tmp_path, monkeypatch):
    root, url = server
    (root / "big").write_bytes(b"old" * 100_000)
    Handler.limit["/big"] = 150_000
    files = (Remote("big", f"{url}/big"),)
    with monkeypatch.context() as impatient:
        impatient.setattr(fetching, "RETRIES", 1)
        with pytest.raises(DataError, match=r"download failed .*; fetch again to resume"):
            fetching.fetch(tmp_path / "cache", files, progress=False)
    assert 0 < (tmp_path / "cache/big.part").stat().st_size <= 150_000
    (root / "big").write_bytes(b"new" * 100_000)
    fetching.fetch(tmp_path / "cache", files, progress=False)
    assert (tmp_path / "cache/big").read_bytes() == b"new" * 100_000
    assert {p.name for p in (tmp_path / "cache").iterdir()} - {".lock"} == {"big", "checksums.json"}


def test_a_server_without_ranges_starts_over(server, tmp_path):
    root, url = server
    content = np.random.default_rng(0).bytes(200_000)
    (root / "big").write_bytes(content)
    Handler.ranges = False
    Handler.limit["/big"] = 100_000
    fetching.fetch(tmp_path / "cache", (Remote("big", f"{url}/big", sha(content)),), progress=False)
    assert (tmp_path / "cache/big").read_bytes() == content


def test_a_busy_server_is_asked_again_a_dead_one_given_up(server, tmp_path):
    root, url = server
    (root / "a").write_bytes(b"content")
    Handler.busy["/a"] = 2
    fetching.fetch(tmp_path / "cache", (Remote("a", f"{url}/a", sha(b"content")),), progress=False)
    assert len(Handler.seen) == 3
    Handler.busy["/b"] = 99
    Handler.seen = []
    with pytest.raises(DataError, match=r"download failed .HTTPError: 503.*fetch again to resume"):
        fetching.fetch(tmp_path / "cache", (Remote("b", f"{url}/b"),), progress=False)
    assert len(Handler.seen) == fetching.RETRIES


def test_a_slow_line_that_gets_on_is_not_given_up(server, tmp_path, monkeypatch):
    root, url = server
    content = np.random.default_rng(0).bytes(1_000_000)
    (root / "big").write_bytes(content)
    monkeypatch.setattr(fetching, "CHUNK", 10_000)
    Handler.limit = Always("/big", 60_000)
    fetching.fetch(tmp_path / "cache", (Remote("big", f"{url}/big", sha(content)),), progress=False)
    assert (tmp_path / "cache/big").read_bytes() == content and len(Handler.seen) > fetching.RETRIES


class Always(dict):
    """A limit that is never used up."""

    def __init__(self, path: str, size: int) -> None:
        super().__init__({path: size})

    def pop(self, path, default=None):
        return self.get(path, default)


def test_wrong_checksum_keeps_nothing(server, tmp_path):
    root, url = server
    (root / "a").write_bytes(b"not what was promised")
    with pytest.raises(
        DataError, match=r"checksum mismatch: http.*/a did not hash to sha256:"
    ) as error:
        fetching.fetch(
            tmp_path / "cache", (Remote("a", f"{url}/a", sha(b"promised")),), progress=False
        )
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


@pytest.mark.parametrize("kind", ["gz", "bz2", "xz", "zip"])
@pytest.mark.parametrize("how", ["cut", "garbled"])
def test_a_damaged_archive_is_named_and_its_checksum_not_recorded(server, tmp_path, kind, how):
    root, url = server
    content = np.random.default_rng(0).bytes(200_000)
    if kind == "zip":
        with zipfile.ZipFile(tmp_path / "whole", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("set/data.bin", content)
    else:
        (tmp_path / "data.bin").write_bytes(content)
        with tarfile.open(tmp_path / "whole", f"w:{kind}") as archive:
            archive.add(tmp_path / "data.bin", "set/data.bin")
    whole = (tmp_path / "whole").read_bytes()
    name = f"set.{kind}"
    middle = len(whole) // 2
    bad = whole[:middle] if how == "cut" else whole[:middle] + bytes(500) + whole[middle + 500 :]
    (root / name).write_bytes(bad)
    files = (Remote(name, f"{url}/{name}", unpack=True),)
    with pytest.raises(
        DataError,
        match=f"{name}: archive is truncated or damaged .*; it was removed, fetch it again",
    ) as error:
        fetching.fetch(tmp_path / "cache", files, progress=False)
    assert "\n" not in str(error.value) and fetching.recorded(tmp_path / "cache") == {}
    assert not [p for p in (tmp_path / "cache").iterdir() if p.name != ".lock"]
    (root / name).write_bytes(whole)
    fetching.fetch(tmp_path / "cache", files, progress=False)
    assert (tmp_path / "cache/set/data.bin").read_bytes() == content
    assert fetching.recorded(tmp_path / "cache") == {name: sha(whole)}


def test_server_without_the_file(server, tmp_path):
    _, url = server
    with pytest.raises(
        DataError, match=r"download failed .HTTPError: 404.*fetch again to resume"
    ) as error:
        fetching.fetch(tmp_path / "cache", (Remote("a", f"{url}/none"),), progress=False)
    assert "\n" not in str(error.value)


def test_full_disk(server, tmp_path):
    """A part file that leads to /dev/full: the kernel itself says that there is no space."""
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    root, url = server
    (root / "a").write_bytes(b"x" * 1000)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache/a.part").symlink_to("/dev/full")
    with pytest.raises(
        DataError,
        match=r"cache: cannot be written .No space left on device.; fetch again to resume",
    ) as error:
        fetching.fetch(tmp_path / "cache", (Remote("a", f"{url}/a"),), progress=False)
    assert "\n" not in str(error.value) and not (tmp_path / "cache/a").exists()
    (tmp_path / "cache/a.part").unlink()  # space again
    fetching.fetch(tmp_path / "cache", (Remote("a", f"{url}/a"),), progress=False)
    assert (tmp_path / "cache/a").read_bytes() == b"x" * 1000


def _fetch_in_a_process(folder, url, checksum):
    fetching.fetch(Path(folder), (Remote("big", url, checksum),), progress=False)


def test_two_processes_fetch_the_same_file(server, tmp_path):
    root, url = server
    content = np.random.default_rng(0).bytes(2_000_000)
    (root / "big").write_bytes(content)
    context = multiprocessing.get_context("fork")
    arguments = (tmp_path / "cache", f"{url}/big", sha(content))
    processes = [context.Process(target=_fetch_in_a_process, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0] and len(Handler.seen) == 1
    assert (tmp_path / "cache/big").read_bytes() == content


def test_fetch_unpack_convert_load(server, tmp_path, monkeypatch):
    """A public set from its address to a memory-mapped store, by name."""
    root, url = server
    with h5py.File(tmp_path / "ani_gdb_s01.h5", "w") as file:
        coordinates = np.random.default_rng(0).normal(size=(6, 3, 3))
        file["gdb11_s01/gdb11_s01-0/coordinates"] = coordinates.astype(np.float32)
        file["gdb11_s01/gdb11_s01-0/energies"] = np.full(6, -76.4)
        file["gdb11_s01/gdb11_s01-0/species"] = np.array([b"O", b"H", b"H"])
    with tarfile.open(root / "ani.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "ani_gdb_s01.h5", "ANI-1_release/ani_gdb_s01.h5")
        readme = tarfile.TarInfo("ANI-1_release/README")
        archive.addfile(readme, io.BytesIO(b""))
    checksum = sha((root / "ani.tar.gz").read_bytes())
    record = Record(
        name="tiny",
        kind="public",
        title="test",
        level="none",
        citation=("ani1",),
        elements="H O",
        files=(Remote("ani.tar.gz", f"{url}/ani.tar.gz", checksum, unpack=True),),
        format="ani1",
        read_from="ANI-1_release",
    )
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
