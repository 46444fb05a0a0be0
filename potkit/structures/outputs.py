"""Whether a path may be written: one rule for all that potkit writes, so that nothing of a user's
is lost.

potkit writes where nothing is, into an empty folder, and over something of the kind that is to be
written: a store over a store, a figure over a figure. Whatever else lies there stays, and one line
names it (`check`). Each writer has a `Kind`, which tells by their content the files it wrote
before. What is written lies under a name that carries potkit's mark until it is whole
(`temporary`), and only names with that mark are ever swept. The mark says which process writes, so
that the next writer of a place can tell what a killed one left (`abandoned`).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..errors import ConfigError, DataError

# the place's name; system, process and start of its writer, where those are known; a random number
_TEMPORARY = re.compile(
    r"\.(.*)\.potkit-(?:([0-9a-f]{8})-([0-9a-f]+)-([0-9a-f]+)-)?[0-9a-f]{8}\.tmp", re.DOTALL
)
_LONGEST = 200  # bytes of a name that its temporary name keeps; file systems allow 255 in all
_FORBIDDEN = set("/\\<>:\"'|?*")


@dataclass(frozen=True)
class Kind:
    """What a writer writes: its name in messages, and how earlier ones are told from others' files.

    ``recognise``: whether what lies at a path is of this kind and holds nothing else; it may raise
    OSError, ValueError, LookupError or TypeError for what is not. ``folder``: it is a folder.
    ``replaced``: that folder is replaced as a whole, not written into.
    """

    name: str
    recognise: Callable[[Path], bool]
    folder: bool = False
    replaced: bool = False


PART = Kind("a part of something larger that was looked at as a whole", lambda path: True)


def check(path: str | Path, kind: Kind) -> Path:
    """The place that ``path`` names, links followed (but for a `PART`), if something of ``kind``
    may be written there.

    Raises DataError, in one line that says what is there, for anything but: nothing, an empty
    folder where ``kind`` is one, or something of ``kind``. Nothing is changed.
    """
    place = Path(os.path.realpath(path))
    if kind is PART:  # its name is potkit's, what a link of that name points to need not be
        place = Path(os.path.realpath(Path(path).parent)) / Path(path).name
    while (there := _at(path)) is not None:
        problem = _problem(place, kind, there.st_mode)
        if problem is None:
            return place
        now = _at(path)
        if now is not None and os.path.samestat(now, there):  # else another process is replacing it
            raise DataError(f"{path}: {problem}")
    return place


def _at(path: str | Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({reason(error)})") from error


def _problem(place: Path, kind: Kind, mode: int) -> str | None:
    """Why nothing of ``kind`` may be written at ``place``, where something of ``mode`` is; None if
    it may.
    """
    if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode)):
        return f"cannot be written (it is a device or a pipe, {kind.name} needs a place on a disk)"
    if stat.S_ISDIR(mode) != kind.folder:
        there, expected = ("file", "folder") if kind.folder else ("folder", "file")
        return f"cannot be written (it is a {there}, {kind.name} is a {expected})"
    if not kind.folder:
        if is_a(kind, place):
            return None
        return f"this file is not {kind.name}, and potkit replaces no other; choose another name"
    try:
        names = os.listdir(place)
    except OSError as error:
        return f"cannot be written ({reason(error)})"
    if not all(is_temporary(name) for name in names) and not is_a(kind, place):
        return f"this folder is not {kind.name}, and it holds {some(names)}; choose another name"
    if kind.replaced and _works_in(place):
        return f"the working directory would be replaced; name a new folder for {kind.name}"
    return None


def is_a(kind: Kind, path: Path) -> bool:
    """Whether what lies at ``path`` is of ``kind``; False for what cannot be read."""
    try:
        return kind.recognise(path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def check_folder(path: str | Path, to_write: bool = False) -> None:
    """Raise DataError where ``path`` is neither a folder to put files into, each looked at by
    itself, nor a place for a new one.

    ``to_write``: something will be written, after work that would be lost; so it is tried in the
    nearest folder that is there.
    """
    try:
        if not stat.S_ISDIR(os.stat(path).st_mode):
            raise DataError(f"{path}: cannot be written (it is a file, not a folder)")
    except FileNotFoundError:
        pass
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({reason(error)})") from error
    if not to_write:
        return
    there = Path(os.path.realpath(path))
    while not there.is_dir():
        there = there.parent
    trial = temporary(there / "trial")
    try:
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({reason(error)})") from error


def plain_name(name: str, what: str = "name") -> str:
    """``name`` itself, if files can be called so. Raises ConfigError for an empty, hidden or very
    long one, and for paths.
    """
    strange = [c for c in name if c in _FORBIDDEN or not c.isprintable()]
    too_long = len(name.encode("utf-8", "replace")) > _LONGEST
    if not name.strip() or name.startswith(".") or strange or too_long:
        raise ConfigError(f"{what} {name[:60]!r} is not a plain file name")
    return name


def some(names: Iterable[str], most: int = 3) -> str:
    """The first few of ``names`` in words, and how many more there are."""
    known = sorted(names)
    shown = ["".join(c if c.isprintable() else "?" for c in name) for name in known[:most]]
    return ", ".join(shown) + (f" and {len(known) - most} more" if len(known) > most else "")


def reason(error: OSError) -> str:
    """What the operating system says of ``error``, in one line."""
    if error.errno:
        return os.strerror(error.errno)
    return (str(error).splitlines() or [type(error).__name__])[0]


def _works_in(place: Path) -> bool:
    try:
        return Path.cwd().is_relative_to(place)
    except OSError:  # it was deleted
        return False


# -- names that carry potkit's mark --------------------------------------------------------------
def temporary(place: Path) -> Path:
    """A new name beside ``place`` for what is not whole yet."""
    started = _started(os.getpid())
    owner = f"{_system()}-{os.getpid():x}-{started:x}-" if started is not None else ""
    return place.with_name(f".{_shortened(place)}.potkit-{owner}{uuid.uuid4().hex[:8]}.tmp")


def abandoned(name: str, of: Path) -> bool:
    """Whether ``name`` is one that `temporary` gave to a writer of the place ``of`` which is dead.

    False where that cannot be known: a process of another computer that shares the file system, or
    of another container, or from before this computer was started.
    """
    match = _TEMPORARY.fullmatch(name)
    if match is None or match[1] != _shortened(of) or match[2] is None or match[2] != _system():
        return False
    return _started(int(match[3], 16)) != int(match[4], 16)


@lru_cache(maxsize=1)
def _system() -> str:
    """Eight digits for this start of this computer, and the process numbers seen in here."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text()
        numbers = os.readlink("/proc/self/ns/pid")
    except OSError:  # no Linux
        return "0" * 8
    return hashlib.sha256(f"{boot} {numbers}".encode()).hexdigest()[:8]


def _started(process: int) -> int | None:
    """When ``process`` was started, in clock ticks since the computer was (field 22 of proc(5)'s
    stat); None where there is none, or no way to tell.
    """
    try:
        text = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return None
    state, *fields = text.rpartition(b")")[2].split()  # the name of the program may hold anything
    return None if state in b"ZX" else int(fields[18])


def is_temporary(name: str, of: Path | None = None) -> bool:
    """Whether ``name`` is one that `temporary` gave (to the writer of the place ``of``)."""
    match = _TEMPORARY.fullmatch(name)
    return match is not None and (of is None or match[1] == _shortened(of))


def lock_name(place: Path) -> Path:
    """The lock beside ``place`` that its writer holds."""
    return place.with_name(f".{_shortened(place)}.potkit.lock")


def _shortened(place: Path) -> str:
    return os.fsencode(place.name)[:_LONGEST].decode("utf-8", "ignore")


# -- what recognisers share ----------------------------------------------------------------------
def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file; an empty one where it holds something else. Raises OSError or
    ValueError.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("lists within lists without end") from None
    return value if isinstance(value, dict) else {}


def head(path: Path, size: int = 4000) -> str:
    """The first ``size`` bytes of a file as text."""
    with path.open("rb") as file:
        return file.read(size).decode("utf-8", "replace")


def is_provenance(value: dict[str, Any]) -> bool:
    """Whether a JSON object says how potkit made a result: by which command, with which versions,
    on what.
    """
    made_by = value.get("versions")
    return (
        isinstance(made_by, dict)
        and "potkit" in made_by
        and isinstance(value.get("command"), str)
        and "hardware" in value
    )
