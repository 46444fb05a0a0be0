"""Building and loading the kernels: damage, other people's files, no compiler, kills, full disks.

The real library is built once (by the fixture ``compiled_kernels``, in the user's cache) and
copied. A script stands in for the compiler where a test builds: it "compiles" by copying that
library, or does what the test needs of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from chores import child, until, wait
from tiny import one_line

import potkit
from potkit.errors import ConfigError
from potkit.kernels import build

LOAD = """
from potkit import kernels
from potkit.errors import ConfigError
try:
    kernels.load()
    import torch
    print("loaded", torch.ops.potkit.egnn_forward)
except ConfigError as error:
    print("ConfigError", error)
"""

COPYING = """
for last; do :; done  # -o FILE comes last
case "$last" in
    *.o) touch "$last";;
    *) cp {library} "$last" && chmod 775 "$last" || exit 1;;  # as a linker under umask 002
esac
"""


# -- what the tests share
@pytest.fixture(scope="session")
def finished(compiled_kernels, tmp_path_factory) -> Path:
    """A copy of this machine's finished library, in a folder of its own, record beside it."""
    copy = tmp_path_factory.mktemp("finished")
    for name in (build.LIBRARY, build.RECORD):
        shutil.copy(build.folder() / name, copy / name)
    return copy / build.LIBRARY


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """The folder of this machine's kernels, in a cache where nothing has been built."""
    monkeypatch.setenv("POTKIT_KERNELS", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPATH", str(Path(potkit.__file__).parents[1]))
    monkeypatch.delenv("CXX", raising=False)
    return build.folder()


@pytest.fixture
def opened(monkeypatch) -> list[bytes]:
    """Checksums of the libraries that would have been loaded: in this process there may be one."""
    contents = []

    def note(library, file):
        file.seek(0)
        contents.append(file.read())

    monkeypatch.setattr(build, "_open_library", note)
    return contents


def prebuilt(cache: Path, finished: Path) -> Path:
    cache.mkdir(parents=True, mode=0o755)
    cache.chmod(0o755)
    for name in (build.LIBRARY, build.RECORD):
        shutil.copy(finished.with_name(name), cache / name)
    return cache / build.LIBRARY


def compiler(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def copying(tmp_path, finished, monkeypatch) -> Path:
    """A compiler that makes the finished library, named by CXX."""
    made = compiler(tmp_path / "copying", COPYING.format(library=finished))
    monkeypatch.setenv("CXX", str(made))
    return made


def load() -> None:
    build.load.__wrapped__()  # as if for the first time


def refusal(path: Path | None = None) -> str:
    """The one line with which loading stops; no build folder, and no library, is left of it."""
    with pytest.raises(ConfigError) as caught:
        load()
    if path is not None:
        assert not list(path.rglob(f"{build.BUILD_PREFIX}*"))
    return one_line(caught.value)


def in_new_process(code: str = LOAD) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)


# -- a damaged library
def cut_short(library: Path) -> str:
    size = library.stat().st_size
    os.truncate(library, size // 3)
    return f"has {size // 3} bytes instead of {size}"


def emptied(library: Path) -> str:
    os.truncate(library, 0)
    return "has 0 bytes instead of"


def garbage(library: Path) -> str:
    library.write_bytes(os.urandom(library.stat().st_size))
    return "does not match its checksum"


def one_bit(library: Path) -> str:
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)
    return "does not match its checksum"


def without_record(library: Path) -> str:
    library.with_name(build.RECORD).unlink()
    return "has no readable checksum beside it"


def record_cut_short(library: Path) -> str:
    os.truncate(library.with_name(build.RECORD), 20)
    return "has no readable checksum beside it"


def record_of_another_kind(library: Path) -> str:
    library.with_name(build.RECORD).write_text("[1, 2]")
    return "has no readable checksum beside it"


DAMAGES = [
    cut_short,
    emptied,
    garbage,
    one_bit,
    without_record,
    record_cut_short,
    record_of_another_kind,
]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_library_is_built_anew(cache, finished, copying, opened, damage):
    library = prebuilt(cache, finished)
    fault = damage(library)
    with pytest.warns(UserWarning) as caught:
        load()
    [message] = [str(warning.message) for warning in caught]
    assert message.startswith(f"{library} {fault}") and message.endswith("has to be built anew")
    assert "\n" not in message
    assert opened == [finished.read_bytes()], "the damaged one must not be loaded, nor any twice"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load()  # and that was that
    assert len(opened) == 2


def test_a_library_cut_short_does_not_kill_the_process(cache, finished, copying):
    cut_short(prebuilt(cache, finished))
    done = in_new_process()
    assert done.returncode == 0 and done.stdout.strip() == "loaded potkit.egnn_forward"
    assert done.stderr.count("built anew") == 1


def test_a_sound_library_that_cannot_be_loaded_is_one_line(cache, finished, copying):
    """A library that was damaged before its checksum was taken, as a broken compiler makes it."""
    library = prebuilt(cache, finished)
    library.write_text("not a library")
    checksum = hashlib.blake2b(b"not a library", digest_size=32).hexdigest()
    record = {"bytes": 13, "blake2b": checksum}
    library.with_name(build.RECORD).write_text(json.dumps(record))
    done = in_new_process()
    assert done.stdout.startswith(f"ConfigError compile: {library} could not be loaded (")
    assert done.stdout.count("\n") == 1 and "remove it to have it built anew" in done.stdout
    assert not done.stderr


def test_what_is_built_is_flushed_before_it_is_moved(cache, copying, opened, monkeypatch):
    events, replace, fsync = [], os.replace, os.fsync

    def noted_replace(source, target):
        events.append(("moved", Path(target).name))
        replace(source, target)

    def noted_fsync(descriptor):
        events.append(("flushed", Path(os.readlink(f"/proc/self/fd/{descriptor}")).name))
        fsync(descriptor)

    monkeypatch.setattr(os, "replace", noted_replace)
    monkeypatch.setattr(os, "fsync", noted_fsync)
    load()
    assert events == [
        ("flushed", build.LIBRARY),
        ("flushed", build.RECORD),
        ("moved", build.RECORD),
        ("moved", build.LIBRARY),
        ("flushed", cache.name),
    ]
    assert {path.name for path in cache.iterdir()} == {build.LIBRARY, build.RECORD, build.LOCK}


def test_what_is_built_is_closed_to_the_writing_of_others(cache, copying, opened):
    before = os.umask(0o002)  # as many systems have it for their users
    try:
        load()
    finally:
        os.umask(before)
    for path in (cache, cache / build.LIBRARY):
        assert path.stat().st_mode & 0o777 == 0o755, path
    load()
    assert len(opened) == 2


# -- no compiler
def test_no_compiler_in_the_path_is_said(cache, tmp_path, monkeypatch):
    python = tmp_path / "bin" / "python"  # PATH is searched after the folder of this Python
    python.parent.mkdir()
    python.symlink_to(sys.executable)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setenv("PATH", str(tmp_path))
    text = refusal()
    assert text.startswith("compile: no C++ compiler found (none of c++, g++, clang++ is in PATH);")
    assert text.endswith("install one, name it in CXX, or set compile to false")
    assert not cache.parent.exists(), "nothing is made that would then lie about"
    compiler(tmp_path / "clang++", "echo the error: of clang; exit 3")
    assert "(the error: of clang)" in refusal(cache)


@pytest.mark.parametrize("name", ["/nonexistent/g++", "no-such-compiler -O2", '"g++', "''"])
def test_a_compiler_that_does_not_exist_is_named(cache, monkeypatch, name):
    monkeypatch.setenv("CXX", name)
    text = refusal()
    assert text.startswith(f"compile: no C++ compiler found (CXX is {name!r}, which is no program)")
    assert text.endswith("or set compile to false") and not cache.parent.exists()


def test_no_compiler_stops_a_command_with_that_line_alone(cache, tmp_path, monkeypatch):
    """In a process of its own, since torch's warnings and ninja's log went past Python."""
    monkeypatch.setenv("CXX", "/nonexistent/g++")
    done = in_new_process()
    assert done.stdout.startswith("ConfigError compile: no C++ compiler found")
    assert not done.stderr


@pytest.mark.parametrize(
    "script, reason",
    [
        ("echo a.cpp:1: error: no AVX >&2; echo error: second; exit 1", "a.cpp:1: error: no AVX"),
        ("echo ld: cannot find -lc10; echo collect2: error: ld; exit 1", "ld: cannot find -lc10"),
        ("exit 7", "cxx ended with code 7"),
        ("kill -9 $$", "cxx ended with code -9"),
    ],
)
def test_the_reason_of_a_compiler_that_fails(cache, tmp_path, monkeypatch, script, reason):
    path = compiler(tmp_path / "cxx", script)
    monkeypatch.setenv("CXX", str(path))
    text = refusal(cache).replace(f"{path.parent}/", "")
    assert text == f"compile: the kernels could not be compiled ({reason}); set compile to false"


def test_a_program_that_is_none_is_named(cache, tmp_path, monkeypatch):
    path = tmp_path / "cxx"
    path.write_bytes(b"\0no program")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    assert f"{path}: Exec format error" in refusal(cache)


def test_words_of_cxx_are_kept_apart(cache, copying, finished, opened, monkeypatch):
    launcher = compiler(copying.with_name("launcher"), 'exec "$@"')
    monkeypatch.setenv("CXX", f"{launcher} {copying}")
    load()
    assert opened == [finished.read_bytes()]


# -- other people's files
def as_another_user(status: os.stat_result, owner: int, mode: int) -> os.stat_result:
    fields = list(status)
    fields[0], fields[4] = (status.st_mode & ~0o777) | mode, owner
    return os.stat_result(fields)


@pytest.mark.parametrize("what", ["library", "folder"])
@pytest.mark.parametrize(
    "owner, mode, refused",
    [
        ("own", 0o755, None),
        ("own", 0o700, None),
        ("root", 0o755, None),
        ("other", 0o755, "belongs to user 54321"),
        ("other", 0o700, "belongs to user 54321"),
        ("own", 0o775, "can be written to by others (mode 775)"),
        ("own", 0o757, "can be written to by others (mode 757)"),
        ("root", 0o777, "can be written to by others (mode 777)"),
    ],
)
def test_owner_and_mode_are_looked_at_as_ssh_does(
    cache, finished, opened, monkeypatch, what, owner, mode, refused
):
    library = prebuilt(cache, finished)
    path = library if what == "library" else cache
    check = build._check_owner
    number = {"own": os.geteuid(), "root": 0, "other": 54321}[owner]

    def seen(looked_at, status):
        check(looked_at, as_another_user(status, number, mode) if looked_at == path else status)

    monkeypatch.setattr(build, "_check_owner", seen)
    if refused is None:
        load()
        assert len(opened) == 1
        return
    text = refusal()
    assert text.startswith(f"compile: {path} {refused}") and not opened
    assert text.endswith("set POTKIT_KERNELS to a folder of your own")


@pytest.mark.parametrize("what", ["library", "folder"])
def test_files_that_others_can_write_to_are_refused(cache, finished, opened, what):
    library = prebuilt(cache, finished)
    path = library if what == "library" else cache
    for mode in (0o775, 0o757):
        path.chmod(mode)
        assert f"{path} can be written to by others (mode {mode:o})" in refusal() and not opened
    path.chmod(0o755)
    load()
    assert opened


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
@pytest.mark.parametrize("what", ["library", "folder"])
def test_files_of_another_user_are_refused(cache, finished, opened, copying, what):
    library = prebuilt(cache, finished)
    path = library if what == "library" else cache
    os.chown(path, 54321, 54321)
    assert f"{path} belongs to user 54321, whose code would run as yours" in refusal()
    library.unlink()  # nothing is built into a folder of somebody else's either
    if what == "folder":
        assert f"{cache} belongs to user 54321" in refusal() and not library.exists()
    assert not opened


def test_a_library_exchanged_after_the_check_is_not_loaded(cache, finished, monkeypatch):
    """What is run is the file that was looked at, whatever has its name by then."""
    library = prebuilt(cache, finished)
    loaded, check = [], build._checksum

    def checked(file):
        checksum = check(file)
        other = library.with_name("other")
        other.write_text("somebody else's")
        os.replace(other, library)
        return checksum

    monkeypatch.setattr(build, "_checksum", checked)
    monkeypatch.setattr(build.ctypes, "CDLL", lambda name: loaded.append(Path(name).read_bytes()))
    load()
    assert loaded == [finished.read_bytes()] and library.read_text() == "somebody else's"


# -- folders that cannot be written
@pytest.fixture
def without_rights() -> Iterator[Path]:
    """A folder that `as_nobody` can read; those of pytest are closed to other users."""
    with tempfile.TemporaryDirectory(prefix="potkit-test-") as name:
        Path(name).chmod(0o755)
        yield Path(name)


def as_nobody(work) -> int:
    """The exit code of ``work``, done in a process for which rights are not waived as for root."""

    def unprivileged():

        if os.geteuid() == 0:
            os.setgroups([])
            os.setgid(54321)
            os.setuid(54321)
        work()

    return wait(child(unprivileged))


def test_prebuilt_kernels_are_read_without_a_lock(without_rights, finished, opened, monkeypatch):
    monkeypatch.setenv("POTKIT_KERNELS", str(without_rights))
    library = prebuilt(build.folder(), finished)
    library.parent.chmod(0o555)
    without_rights.chmod(0o555)
    content = finished.read_bytes()

    def work():
        with pytest.raises(PermissionError):
            (library.parent / "new").touch()
        load()
        assert opened == [content]

    assert as_nobody(work) == 0
    assert not (library.parent / build.LOCK).exists()
    library.parent.chmod(0o755)


@pytest.mark.parametrize("state", ["nothing there", "damaged", "cannot be read"])
def test_a_folder_that_cannot_be_written_is_named(
    without_rights, finished, opened, monkeypatch, state
):
    monkeypatch.setenv("POTKIT_KERNELS", str(without_rights))
    monkeypatch.setenv("CXX", "cp")  # any program; a build never gets that far
    where = build.folder()
    if state != "nothing there":
        library = prebuilt(where, finished)
        if state == "damaged":
            os.truncate(library, 10)
        else:
            library.chmod(0o000)
        where.chmod(0o555)
    without_rights.chmod(0o555)

    def work():
        warns = pytest.warns(UserWarning, match="has 10 bytes instead of")
        with warns if state == "damaged" else contextlib.nullcontext():
            text = refusal()
        assert not opened and f"({where}" in text and "Permission denied)" in text, text
        deed = "loaded" if state == "cannot be read" else "compiled"
        assert text.startswith(f"compile: the kernels could not be {deed} (")
        remedy = "set POTKIT_KERNELS to a folder that can be written, or set compile to false"
        assert text.endswith(remedy), text

    assert as_nobody(work) == 0
    if where.exists():
        where.chmod(0o755)


@pytest.mark.parametrize("below", [".", "deeper/still"])
def test_a_cache_that_is_a_file_is_named(tmp_path, copying, monkeypatch, below):
    (tmp_path / "file").touch()
    monkeypatch.setenv("POTKIT_KERNELS", str(tmp_path / "file" / below))
    assert f"({tmp_path / 'file'}" in refusal()


# -- full disks
SAYING = """
case " $* " in
    *" -c "*) for last; do :; done; touch "$last";;
    *) echo "/usr/bin/ld: final link failed: No space left on device" >&2; exit 1;;
esac
"""


def test_a_disk_that_is_full_for_the_compiler(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "cxx", SAYING)))
    text = refusal(cache)
    assert f"({cache}: No space left on device)" in text and not list(cache.glob("*.so"))


@pytest.mark.parametrize("at", ["mkdtemp", "fsync"])
def test_a_disk_that_is_full_for_python(cache, copying, opened, monkeypatch, at):
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(*{"mkdtemp": (tempfile, "mkdtemp"), "fsync": (os, "fsync")}[at], full)
    text = refusal(cache)
    assert f"({cache}: No space left on device)" in text and not list(cache.glob("*.so"))
    monkeypatch.undo()


def test_a_disk_that_is_full(cache, tmp_path, finished, monkeypatch):
    """A real one, of 64 kB, where this user may mount it."""
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "cxx", COPYING.format(library=finished))))
    cache.mkdir(parents=True)
    mount = f"mount -t tmpfs -o size=64k,mode=755 tmpfs {cache.parent}"
    unshare = ["unshare", *([] if os.geteuid() == 0 else ["--map-root-user"]), "--mount", "sh"]
    command = [*unshare, "-c", f'{mount} || exit 77; "$@"; find {cache.parent}', "sh"]
    try:
        run = [*command, sys.executable, "-c", LOAD]
        done = subprocess.run(run, check=False, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        pytest.skip("no unshare")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip("mounting is not allowed")
    said, *files = done.stdout.splitlines()
    assert said.startswith("ConfigError compile: the kernels could not be compiled ("), done
    assert f"({cache}: No space left on device);" in said and not done.stderr
    assert {Path(name).name for name in files} <= {cache.parent.name, cache.name, build.LOCK}


# -- kills
# as g++ and cc1plus: a driver that waits for a child, both of which would go on for minutes
WAITING = 'sleep 300 & echo $$ $! >> "{pids}"; touch "$TMPDIR/half"; wait'

BUILDING = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from potkit import kernels
print("building", flush=True)
kernels.load()
"""


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        return state != "Z"
    return False


def started(pids: Path, number: int) -> list[int]:
    until(lambda: pids.is_file() and len(pids.read_text().split()) >= number, 60)
    return [int(word) for word in pids.read_text().split()]


def gone(pids: list[int]) -> bool:
    return until(lambda: not any(map(alive, pids)), 10)


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks processes up in /proc")
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_no_compiler_outlives_a_killed_build(cache, tmp_path, monkeypatch, number):
    pids = tmp_path / "pids"
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "cxx", WAITING.format(pids=pids))))
    monkeypatch.setenv("MAX_JOBS", "2")
    with open(tmp_path / "log", "w") as log:
        process = subprocess.Popen([sys.executable, "-c", BUILDING], stdout=log, stderr=log)
    try:
        compilers = started(pids, 4)
        assert len(compilers) == 4 and all(map(alive, compilers)), "two drivers and their children"
        assert list(cache.glob(f"{build.BUILD_PREFIX}*/half"))
    finally:
        process.send_signal(number)
        assert process.wait(30)
    assert gone(compilers), "compilers go on after the process that asked for them"
    assert until(lambda: not list(cache.glob(f"{build.BUILD_PREFIX}*")), 10)
    assert len(pids.read_text().split()) == 4, "and none was started afterwards"


def test_no_compiler_outlives_an_interrupted_cell(cache, tmp_path, monkeypatch):
    """Ctrl-C in a notebook: the process stays, the build does not."""
    pids = tmp_path / "pids"
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "cxx", WAITING.format(pids=pids))))
    monkeypatch.setenv("MAX_JOBS", "1")

    def interrupt(number, frame):
        if not pids.exists():  # the compiler is not there yet
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            return
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    try:
        with pytest.raises(KeyboardInterrupt):
            load()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(started(pids, 2)) == 2 and gone(started(pids, 2))
    assert {path.name for path in cache.iterdir()} <= {build.LOCK}


def test_compilers_end_with_the_first_that_fails(cache, tmp_path, monkeypatch):
    pids = tmp_path / "pids"
    failing = f'if mkdir "{tmp_path}/first" 2>/dev/null; then {WAITING}; else sleep 0.3; exit 5; fi'
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "cxx", failing.format(pids=pids))))
    monkeypatch.setenv("MAX_JOBS", "2")
    begin = time.monotonic()
    assert "cxx ended with code 5" in refusal(cache)
    assert time.monotonic() - begin < 60 and gone(started(pids, 2))


def test_the_next_build_removes_what_killed_ones_left(cache, copying, opened):
    """Its own kind only, by the mark: neither other names, nor files, nor what a link leads to."""
    cache.mkdir(parents=True)
    left = cache / f"{build.BUILD_PREFIX}abcd1234"
    (left / "deep").mkdir(parents=True)
    (left / "deep" / "egnn.o").write_text("half")
    elsewhere = cache.parent / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.txt").write_text("x")
    (cache / f"{build.BUILD_PREFIX}link").symlink_to(elsewhere)
    (cache / "tmp1234").mkdir()
    (cache / "notes.txt").write_text("mine")
    load()
    assert not left.exists() and opened
    assert (elsewhere / "thesis.txt").read_text() == "x"
    assert (cache / "tmp1234").is_dir() and (cache / "notes.txt").read_text() == "mine"


def test_two_processes_build_once(cache, tmp_path, finished, monkeypatch):
    noted = f'echo x >> "{tmp_path}/calls"; sleep 0.2; {COPYING.format(library=finished)}'
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "cxx", noted)))
    command = [sys.executable, "-c", LOAD]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [p.communicate(timeout=120)[0].split()[0] for p in both] == ["loaded", "loaded"]
    sources = len(list(build.HERE.glob("*.cpp")))
    assert (tmp_path / "calls").read_text().count("x") == sources + 1
