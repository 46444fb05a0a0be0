"""How packed arrays lie on disk: a folder of .npy files (memory-mappable) or one compressed HDF5 file. Written, then moved."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Iterator

import h5py
import numpy as np

from .errors import DataError

FORMAT_VERSION = 1


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside ``path`` that takes its place when the block ends well, and is removed when it does not."""
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        if temporary.is_dir() and path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink()


def save(path: Path, arrays: dict[str, np.ndarray], info: dict[str, Any]) -> Path:
    """Write ``arrays`` and ``info`` to ``path`` (one HDF5 file if it ends in .h5, else a folder)."""
    header = json.dumps({"format": "potkit-structures", "version": FORMAT_VERSION, "info": info}, default=str, indent=1)
    with replacing(path) as temporary:
        if path.suffix == ".h5":
            with h5py.File(temporary, "w") as file:
                file.attrs["potkit"] = header
                for name, array in arrays.items():
                    options = dict(compression="gzip", compression_opts=9, shuffle=True) if array.size else {}
                    file.create_dataset(name, data=array, **options)
        else:
            temporary.mkdir()
            for name, array in arrays.items():
                np.save(temporary / f"{name}.npy", array)
            (temporary / "potkit.json").write_text(header)
    return path


def is_packed(path: Path) -> bool:
    """Whether ``path`` was written by `save`."""
    if path.is_dir():
        return (path / "potkit.json").is_file()
    try:
        with h5py.File(path, "r") as file:
            return "potkit" in file.attrs
    except OSError:
        return False


def open_(path: Path, mmap: bool = True) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays and the info that `save` wrote. Raises DataError for a missing, truncated or foreign file."""
    if not path.exists():
        raise DataError(f"{path}: no such file or folder")
    try:
        if path.is_dir():
            header = json.loads((path / "potkit.json").read_text())
            # copy-on-write: torch wants writable memory, the file stays as it is
            arrays = {f.stem: np.load(f, mmap_mode="c" if mmap else None) for f in sorted(path.glob("*.npy"))}
        else:
            with h5py.File(path, "r") as file:
                header = json.loads(file.attrs["potkit"])
                arrays = {name: dataset[()] for name, dataset in file.items()}
    except (OSError, EOFError, KeyError, ValueError) as error:
        raise DataError(f"{path}: not a readable potkit store ({str(error).splitlines()[0]})") from error
    if header.get("version") != FORMAT_VERSION:
        raise DataError(f"{path}: store version {header.get('version')}, this potkit reads version {FORMAT_VERSION}")
    return arrays, header["info"]
