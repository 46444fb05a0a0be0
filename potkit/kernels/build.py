"""Compiling the kernels at first use, keeping them in a cache, and loading them: `load`.

What lies in the cache is run as code of the user's, so it is looked at first. A library is loaded
only if its size and checksum are those written down beside it when it was finished; one that was
cut short by a power failure, emptied or replaced is built anew, with a warning. As ssh does with
keys, a library (or its folder) that belongs to another user than this one or root, or that others
can write to, is refused.

Kernels are used only where somebody asked for them (``compile: true``, ``--compile``). Whatever
keeps them from being built therefore stops the run with one line; nothing goes on without them
silently.

A wheel holds the sources and no library: one is made for the instructions of the processor at hand,
and loads beside one version of torch only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import hashlib
import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import pooch
import torch
from filelock import FileLock

from ..errors import ConfigError

HERE = Path(__file__).parent
FLAGS = [
    "-O3",
    "-march=native",
    "-std=c++20",
    "-fopenmp",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
    # or GCC makes a second copy of exp_ for values it clamps, and works out both in every vector
    "-fno-thread-jumps",
]
if platform.machine() in ("x86_64", "AMD64"):
    # compilers older than the processor hold back; without AVX-512 it says nothing
    FLAGS.append("-mprefer-vector-width=512")
LINK_FLAGS = ["-shared", "-fopenmp", "-lc10", "-ltorch_cpu", "-ltorch"]
if sys.platform == "darwin":
    LINK_FLAGS += ["-undefined", "dynamic_lookup"]

LIBRARY = "potkit_kernels.so"
RECORD = "potkit_kernels.json"  # size and checksum of the library
LOCK = "potkit.lock"
BUILD_PREFIX = ".potkit-build-"  # folders of builds; those that killed builds left are removed
COMPILERS = ("c++", "g++", "clang++")


def folder() -> Path:
    """Where this machine's kernels are kept, in the cache or in POTKIT_KERNELS.

    One folder per version of torch, kind of processor, set of flags and state of the sources.
    """
    parts = [torch.__version__, platform.machine(), platform.processor(), _processor_flags()]
    parts += [*FLAGS, *LINK_FLAGS]
    parts += [path.read_text(encoding="utf-8") for path in sorted(HERE.glob("*.[ch]*"))]
    name = hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
    root = os.environ.get("POTKIT_KERNELS") or Path(pooch.os_cache("potkit")) / "kernels"
    return Path(root).expanduser() / name


def _processor_flags() -> str:
    """The instructions this processor has, as Linux lists them; elsewhere "".

    Homes are shared by machines of different kinds, on which code for another one would crash.
    """
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")


@functools.cache
def load() -> None:
    """Make ``torch.ops.potkit`` out of the kernels, which are compiled if that has not been done.

    A finished library is read without a lock, so its folder need not be writable. One that is
    damaged is built anew, with a warning. Raises ConfigError, in one line, where there is no
    compiler or it does not succeed, where the folder cannot be written, and where the library or
    its folder belongs to somebody else or can be written to by others.
    """
    library = folder() / LIBRARY
    with _one_line(library, "loaded"):
        fault = _load_finished(library)
    if fault is None:
        return
    if fault:
        warnings.warn(f"{library} {fault}: it has to be built anew", stacklevel=2)
    compiler = find_compiler()  # before anything is made that a refusal would leave
    with _one_line(library, "compiled"), _locked(library.parent):
        fault = _load_finished(library)  # another process may have built it meanwhile
        if fault is None:
            return
        _build(library, compiler)
        fault = _load_finished(library)
    if fault is not None:
        raise ConfigError(
            f"compile: {library} {fault or 'is gone'} just after it was built; set compile to false"
        )


# -- finding and checking
def _load_finished(library: Path) -> str | None:
    """Load ``library`` and return None, or return its fault ("" where there is no library).

    Raises ConfigError where it is not this user's to trust, or sound and yet cannot be loaded.
    """
    try:
        _check_owner(library.parent, os.stat(library.parent))
        with open(library, "rb") as file:
            fault = _fault(library, file)
            if fault is None:
                _open_library(library, file)
            return fault
    except (FileNotFoundError, NotADirectoryError):
        return ""


def _fault(library: Path, file: BinaryIO) -> str | None:
    """What is wrong with ``library``, opened as ``file``, in words; None for a sound one."""
    status = os.fstat(file.fileno())
    _check_owner(library, status)
    record = _record(library.with_name(RECORD))
    if record is None:
        return "has no readable checksum beside it"
    if status.st_size != record["bytes"]:
        return f"has {status.st_size} bytes instead of {record['bytes']}"
    if _checksum(file) != record["blake2b"]:
        return "does not match its checksum"
    return None


def _open_library(library: Path, file: BinaryIO) -> None:
    """Run the code of ``file``, which is ``library``, as it was looked at. Raises ConfigError."""
    # by the open file, not by its name, under which somebody may have put another one meanwhile;
    # not by /proc/self, since two libraries of one name are one to the system's loader
    opened = Path(f"/proc/{os.getpid()}/fd/{file.fileno()}")
    try:
        ctypes.CDLL(str(opened if opened.exists() else library))
    except OSError as error:
        reason = " ".join(str(error).split()).replace(str(opened), library.name)
        raise ConfigError(
            f"compile: {library} could not be loaded ({reason[:160]}); "
            "remove it to have it built anew, or set compile to false"
        ) from None


def _check_owner(path: Path, status: os.stat_result) -> None:
    """Raise ConfigError unless only this user or root could have written ``path``."""
    remedy = "set POTKIT_KERNELS to a folder of your own"
    if status.st_uid not in (0, os.geteuid()):
        owner = _user_name(status.st_uid)
        raise ConfigError(
            f"compile: {path} belongs to {owner}, whose code would run as yours; {remedy}"
        )
    if status.st_mode & 0o022:
        raise ConfigError(
            f"compile: {path} can be written to by others (mode {status.st_mode & 0o777:03o}), "
            f"whose code would run as yours; {remedy}"
        )


def _user_name(number: int) -> str:
    import pwd  # here, because not every system that can import potkit has it

    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"user {number}"


def _record(path: Path) -> dict[str, object] | None:
    """Size and checksum as they were written down, or None where nothing of that kind is."""
    try:
        record = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return None
    return record if isinstance(record, dict) and record.keys() >= {"bytes", "blake2b"} else None


def _checksum(file: BinaryIO) -> str:
    return hashlib.file_digest(file, functools.partial(hashlib.blake2b, digest_size=32)).hexdigest()


# -- building
@contextlib.contextmanager
def _locked(where: Path) -> Iterator[None]:
    """``where``, made if need be, while no other process builds in it."""
    where.parent.mkdir(parents=True, exist_ok=True)
    where.mkdir(mode=0o755, exist_ok=True)  # never open to a group, whatever the umask
    with FileLock(where / LOCK):
        yield


def _build(library: Path, compiler: list[str]) -> None:
    """Compile all sources and put the library and its record in place. The lock must be held."""
    where = library.parent
    _sweep(where)
    with tempfile.TemporaryDirectory(prefix=BUILD_PREFIX, dir=where) as temporary:
        build = Path(temporary)
        made = build / LIBRARY
        _run(*_commands(compiler, build, made), build)
        os.chmod(made, made.stat().st_mode & ~0o022)
        with open(made, "rb+") as file:
            os.fsync(file.fileno())
            record = {"bytes": made.stat().st_size, "blake2b": _checksum(file)}
        with open(build / RECORD, "w") as file:
            json.dump(record, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(build / RECORD, where / RECORD)  # first, for a library without one is damaged
        os.replace(made, library)
        _flush_folder(where)


def _sweep(where: Path) -> None:
    """Remove the folders that killed builds left; only those, by their mark."""
    for left in where.glob(f"{BUILD_PREFIX}*"):
        if left.is_dir() and not left.is_symlink():
            shutil.rmtree(left, ignore_errors=True)


def _flush_folder(where: Path) -> None:
    """Have the names in ``where`` survive a power failure."""
    descriptor = os.open(where, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _path() -> str:
    """PATH with the programs of this Python's environment, whether it was activated or not."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])


def find_compiler() -> list[str]:
    """The words that call the C++ compiler: those of CXX, or the first that is there of COMPILERS.

    Raises ConfigError where there is none.
    """
    asked = os.environ.get("CXX", "").strip()
    if asked:
        with contextlib.suppress(ValueError):  # a quote without its partner
            words = shlex.split(asked)
            if shutil.which(words[0], path=_path()):
                return words
        raise ConfigError(
            f"compile: no C++ compiler found (CXX is {asked!r}, which is no program); "
            "correct or unset CXX, or set compile to false"
        )
    for name in COMPILERS:
        if shutil.which(name, path=_path()):
            return [name]
    raise ConfigError(
        f"compile: no C++ compiler found (none of {', '.join(COMPILERS)} is in PATH); "
        "install one, name it in CXX, or set compile to false"
    )


def _commands(compiler: list[str], build: Path, made: Path) -> tuple[list[list[str]], list[str]]:
    """The commands that compile one source each, the longest first, and the one that links."""
    torch_folder = Path(torch.__file__).parent
    sources = sorted(HERE.glob("*.cpp"), key=lambda path: path.stat().st_size, reverse=True)
    objects = [str(build / f"{source.stem}.o") for source in sources]
    compile_flags = [*FLAGS, "-fPIC", "-isystem", str(torch_folder / "include")]
    compile_commands = [
        [*compiler, *compile_flags, "-c", str(source), "-o", target]
        for source, target in zip(sources, objects, strict=True)
    ]
    libraries = f"-L{torch_folder / 'lib'}"
    return compile_commands, [*compiler, *objects, libraries, *LINK_FLAGS, "-o", str(made)]


def _run(compile_commands: list[list[str]], link_command: list[str], build: Path) -> None:
    """Run the commands in processes that end with this one. Raises ConfigError or OSError."""
    environment = {
        **os.environ,
        "PATH": _path(),
        "TMPDIR": str(build),  # what a killed compiler leaves goes with the folder
        "LC_ALL": "C",  # "error:" in English, for the line that is shown
    }
    for commands in (compile_commands, [link_command]):
        job = {
            "parent": os.getpid(),
            "folder": str(build),
            "commands": commands,
            "workers": _workers(),
        }
        supervisor = subprocess.Popen(
            [sys.executable, "-I", "-S", str(HERE / "supervise.py"), json.dumps(job)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a group of its own, which can be ended as a whole
        )
        try:
            output = supervisor.communicate()[0].decode(errors="replace")
        except BaseException:  # Ctrl-C, or whatever a signal's handler raises
            with contextlib.suppress(ProcessLookupError):
                os.killpg(supervisor.pid, signal.SIGKILL)
            supervisor.wait()
            raise
        if supervisor.returncode:
            raise _failure(output, build)


def _workers() -> int:
    """How many compilers run at once: MAX_JOBS, as for torch's own extensions, or one per core."""
    asked = os.environ.get("MAX_JOBS", "")
    if asked.isdecimal() and int(asked):
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _failure(output: str, build: Path) -> Exception:
    """What to raise for compilers that ended badly after having said ``output``."""
    if "No space left on device" in output:
        return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(build.parent))
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    lines = lines or ["the compiler was killed"]
    # "collect2: error: ld returned 1 exit status" comes after what the linker itself had to say
    errors = [line for line in lines if "error:" in line and not line.startswith("collect2")]
    reason = (errors or lines)[0]
    return ConfigError(
        f"compile: the kernels could not be compiled ({reason[:160]}); set compile to false"
    )


@contextlib.contextmanager
def _one_line(library: Path, deed: str) -> Iterator[None]:
    """Turn what the operating system refuses into a ConfigError that names the path."""
    try:
        yield
    except OSError as error:
        path = error.filename or library.parent
        reason = error.strerror or " ".join(str(error).split())
        raise ConfigError(
            f"compile: the kernels could not be {deed} ({path}: {reason}); "
            "set POTKIT_KERNELS to a folder that can be written, or set compile to false"
        ) from None
