"""Downloaded archives: unpacked beside the place, moved into place whole, then marked as done.

The marker ``.NAME.unpacked`` is written last and lists what was unpacked, so it alone decides
whether an archive that `fetch` brought is ready. Until then members lie in
``.NAME.potkit-unpacking``, which only this module makes and removes: none stands half under its
final name. A file that stands in a member's place and is not the member's is never overwritten.
"""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError
from ..structures import storage
from . import kinds

FORMAT = "potkit-unpacked"


class Damaged(Exception):
    """An archive cannot be read to its end."""


def marker_of(path: Path) -> Path:
    """The file that says that the archive ``path`` is unpacked, and which members it had."""
    return path.with_name(f".{path.name}.unpacked")


def workplace_of(path: Path) -> Path:
    """The folder the archive ``path`` is unpacked into before its members are moved."""
    return path.with_name(f".{path.name}.potkit-unpacking")


def members_of(path: Path) -> dict[str, list[int]]:
    """What the marker of ``path`` lists; empty without a marker.

    The names of the members, relative to the set's folder -> [bytes, time of change in ns].
    """
    return _marker(path).get("members", {})


def _marker(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(marker_of(path).read_text())
        if content["format"] != FORMAT:
            return {}
        content["members"] = {
            str(name): [int(size), int(time)] for name, (size, time) in content["members"].items()
        }
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}  # also the empty markers of potkit before it listed the members
    return content


def lacking(folder: Path, path: Path, expected: Sequence[str], by_hand: bool = False) -> str | None:
    """What keeps the archive ``path`` from being unpacked whole, in words; None if nothing does.

    Where there is a marker, it decides: every member that it lists is there with its size. Without
    a marker the files in ``folder`` were not unpacked by potkit, and they are complete if each of
    the ``expected`` patterns fits one, unless the archive itself lies beside them in a folder of
    `fetch`: that is how unpacking looks that was killed. In a user's own folder (``by_hand``),
    where potkit never unpacks, an archive beside its files says nothing.
    """
    unfinished = f"{path} is not unpacked to its end"
    if not by_hand and workplace_of(path).exists():
        return unfinished  # also beside a marker: readers of folders would find members twice
    members = members_of(path)
    for name, (size, _) in members.items():
        if _size(folder / name) != size:
            return f"{folder / name}, unpacked from {path.name}, is missing or was changed"
    if members:
        return None
    old = marker_of(path).exists()  # of potkit before the marker listed the members
    if not by_hand and path.exists() and not old:
        return unfinished
    if not expected:
        return f"{path} is not unpacked"
    for pattern in expected:
        if not any(folder.glob(pattern)):
            return f"{folder / pattern} is missing"
    return None


def _size(path: Path) -> int | None:
    try:
        return path.lstat().st_size
    except (FileNotFoundError, NotADirectoryError):
        return None


def unpack(folder: Path, path: Path, checksum: str, reserved: Collection[str]) -> None:
    """Unpack ``path`` into ``folder``, unless its marker says that this was done.

    ``checksum``: the archive's, which the marker must name. ``reserved``: names in ``folder`` that
    no member may take. Raises Damaged for an archive that cannot be read to its end; DataError for
    a member in whose place another file stands. Nothing of the archive is left then.
    """
    marker, workplace = marker_of(path), workplace_of(path)
    before = _marker(path)
    if before.get("archive") == checksum and lacking(folder, path, ()) is None:
        return
    shutil.rmtree(workplace, ignore_errors=True)  # of an unpacking that was killed
    workplace.mkdir()
    try:
        _extract(path, workplace)
        members = _move(workplace, folder, before.get("members", {}), reserved, marker)
    finally:
        shutil.rmtree(workplace, ignore_errors=True)
    content = {"format": FORMAT, "archive": checksum, "members": members}
    with storage.replacing(marker) as temporary:
        temporary.write_text(json.dumps(content, indent=1))


def _extract(path: Path, workplace: Path) -> None:
    try:
        with open(path, "rb") as file:
            head = file.read(6)
        if head.startswith(b"PK"):
            with zipfile.ZipFile(path) as archive:
                archive.extractall(workplace)
            return
        opener = next(
            (opener for magic, opener in kinds.OPENERS.items() if head.startswith(magic)), open
        )
        fault = kinds.fault(path, "a.tar") if opener is open else None
        if fault is not None:  # in a tar by itself no checksum shows that it was cut short
            raise Damaged(fault)
        with opener(path, "rb") as stream, kinds.tarfile.open(fileobj=stream, mode="r|") as archive:
            archive.extractall(workplace, filter="data")
            while stream.read(kinds.CHUNK):
                pass  # to the end, where the archive's own checksum is compared
    except kinds.UNREADABLE as error:
        if isinstance(error, OSError) and error.errno is not None:  # not the archive, the disk
            raise
        raise Damaged((str(error).splitlines() or [type(error).__name__])[0]) from error


def _move(
    workplace: Path,
    folder: Path,
    before: dict[str, list[int]],
    reserved: Collection[str],
    marker: Path,
) -> dict[str, list[int]]:
    """Move all files below ``workplace`` to their places in ``folder``.

    First all places are looked at, so that nothing is moved where one is taken. ``before``: members
    of another version of the archive, which go or are replaced if nobody has changed them.
    Returns what the marker is to list.
    """
    names = sorted(_files(workplace))
    if not names:
        raise Damaged("it holds no files")
    moved = []
    for name in names:
        if name in reserved:
            raise DataError(
                f"{folder / name}: the archive holds a file of this name, "
                "which potkit keeps for its own notes"
            )
        source, target = workplace / name, folder / name
        if not os.path.lexists(target):
            moved.append(name)
        elif not _same(source, target):
            if not (_starts(source, target) or before.get(name) == _state(target)):
                raise DataError(
                    f"{target}: is in the way of a file of the archive and differs from it; "
                    "move it away and fetch again"
                )
            moved.append(name)
    marker.unlink(missing_ok=True)
    for name in moved:
        source, target = workplace / name, folder / name
        if not source.is_symlink():
            _flush(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
    for name in before.keys() - set(names):  # what the other version had and this one has not
        if _size(folder / name) is not None and _state(folder / name) == before[name]:
            (folder / name).unlink()
    return {name: _state(folder / name) for name in names}


def _files(workplace: Path) -> list[str]:
    """All files and links below ``workplace``, relative to it."""
    names = []
    for parent, folders, files in os.walk(workplace):
        links = [f for f in folders if os.path.islink(os.path.join(parent, f))]
        names += [os.path.relpath(os.path.join(parent, name), workplace) for name in files + links]
    return names


def _state(path: Path) -> list[int]:
    status = path.lstat()
    return [status.st_size, status.st_mtime_ns]


def _same(a: Path, b: Path) -> bool:
    if a.is_symlink() or b.is_symlink():
        return a.is_symlink() and b.is_symlink() and os.readlink(a) == os.readlink(b)
    return b.is_file() and a.stat().st_size == b.stat().st_size and _starts(a, b)


def _starts(whole: Path, beginning: Path) -> bool:
    """Whether ``whole`` starts with all of ``beginning``.

    That is what a killed unpacking left before members were moved whole.
    """
    if whole.is_symlink() or beginning.is_symlink() or not beginning.is_file():
        return False
    with open(whole, "rb") as a, open(beginning, "rb") as b:
        while piece := b.read(kinds.CHUNK):
            if a.read(len(piece)) != piece:
                return False
    return True


def _flush(path: Path) -> None:
    """Bring a file to the disk, so that no power failure leaves it empty under its final name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(folder: Path, path: Path) -> None:
    """Remove what `unpack` made of ``path`` in ``folder``; the archive stays.

    That is: members that the marker lists and nobody has changed since, folders that are empty
    then, the marker, and what a killed unpacking left.
    """
    shutil.rmtree(workplace_of(path), ignore_errors=True)
    members = members_of(path)
    for name, state in members.items():
        target = folder / name
        if _inside(folder, target) and os.path.lexists(target) and _state(target) == state:
            target.unlink()
    for parent in sorted({p for name in members for p in Path(name).parents}, reverse=True):
        _remove_if_empty(folder / parent, folder)
    if members or (marker_of(path).is_file() and not marker_of(path).stat().st_size):
        marker_of(path).unlink(missing_ok=True)


def _inside(folder: Path, target: Path) -> bool:
    return Path(os.path.abspath(target)).is_relative_to(os.path.abspath(folder))


def _remove_if_empty(path: Path, folder: Path) -> None:
    if path == folder or path.is_symlink() or not path.is_dir():
        return
    try:
        path.rmdir()
    except OSError:  # something of somebody else's is in it
        return
