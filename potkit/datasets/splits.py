"""Splits and label budgets: seeded, nested where they should be, written to disk with a name and
the hash of what they split.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..structures import storage
from ..structures.array_files import read_npz
from ..structures.outputs import Kind
from ..structures.splits import BY, by_system, split
from ..structures.store import Structures
from .duplicates import distinct, leakage, leakage_by_distance, leakage_report
from .published_splits import mark_parts, parts, published

__all__ = [
    "BY",
    "by_system",
    "distinct",
    "label_budget",
    "leakage",
    "leakage_by_distance",
    "leakage_report",
    "load_indices",
    "mark_parts",
    "parts",
    "published",
    "save_indices",
    "split",
]


def label_budget(
    structures: Structures,
    sizes: Sequence[float | int],
    seed: int = 0,
    by: str = "structure-within-system",
) -> dict[float | int, np.ndarray]:
    """Nested subsets: for each size (a share in (0, 1] or a count) rows such that the smaller lies
    inside the larger.

    "structure-within-system" keeps every system's share at every size; "structure" draws from all
    alike. Rows are rising.
    """
    if by not in ("structure", "structure-within-system"):
        raise ConfigError(f"by must be 'structure' or 'structure-within-system', got {by!r}")
    n = len(structures)
    rank = np.empty(n)
    groups = by_system(structures) if by == "structure-within-system" else [(0, np.arange(n))]
    for system, rows in groups:
        rng = np.random.default_rng([seed, system, 1])
        rank[rows] = (rng.permutation(len(rows)) + rng.random()) / len(rows)
    order = np.argsort(rank, kind="stable")
    budgets: dict[float | int, np.ndarray] = {}
    for size in sizes:
        share = isinstance(size, (float, np.floating))
        count = round(size * n) if share else int(size)
        if (share and not 0 < size <= 1) or not 1 <= count <= n:
            raise DataError(f"label budget {size}: {count} of {n} structures")
        budgets[size] = np.sort(order[:count])
    return budgets


def _is_split(path: Path) -> bool:
    header = json.loads(str(read_npz(path, ["header"], texts=["header"])["header"]))
    return header["format"] == SPLIT_FORMAT


SPLIT_FORMAT = "potkit-split"
SPLIT = Kind("a split that potkit wrote", _is_split)


def save_indices(
    path: str | Path, structures: Structures, parts: Mapping[str, np.ndarray], **about: Any
) -> Path:
    """Write named index arrays with the fingerprint of ``structures`` (one .npz); ``about`` says
    how they were drawn. An earlier split at ``path`` is replaced; raises DataError where there is
    another file.
    """
    path = Path(path)
    header = {
        "format": SPLIT_FORMAT,
        "structures": len(structures),
        "name": structures.info.get("name", "unnamed"),
        "fingerprint": structures.fingerprint(),
        "about": about,
    }
    header |= {"fingerprint": structures.fingerprint(), "about": about}
    text = np.array(json.dumps(header, default=str))
    arrays = {name: np.asarray(rows) for name, rows in parts.items()}
    # by a file, since NumPy would add .npz to the temporary name
    with storage.replacing(path, SPLIT) as temporary, open(temporary, "wb") as file:
        np.savez_compressed(file, header=text, **arrays)
    return path


def load_indices(path: str | Path, structures: Structures) -> dict[str, np.ndarray]:
    """What `save_indices` wrote. Raises DataError if it was made for other structures."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such split file")
    arrays = read_npz(path, texts=["header"])
    try:
        header = json.loads(str(arrays.pop("header")))
    except (KeyError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: not a split file of potkit (keys: {', '.join(arrays) or 'none'})"
        ) from error
    needed = {"fingerprint", "name", "structures"}
    if not isinstance(header, dict) or not needed <= header.keys():
        raise DataError(f"{path}: its header is damaged; `potkit data split` writes it anew")
    for name, rows in arrays.items():
        if rows.dtype.kind not in "iu" or rows.ndim != 1:
            raise DataError(f"{path}: {name} holds no row numbers ({rows.dtype}, {rows.ndim}-D)")
    if header["fingerprint"] != structures.fingerprint():
        raise DataError(
            f"{path}: made for {header['name']} ({header['structures']} structures, "
            f"{header['fingerprint']}), these are {structures.info.get('name', 'unnamed')} "
            f"({len(structures)}, {structures.fingerprint()})"
        )
    for name, rows in arrays.items():
        if len(rows) and not (int(rows.min()) >= 0 and int(rows.max()) < len(structures)):
            raise DataError(f"{path}: {name} names rows beyond the {len(structures)} structures")
        if len(np.unique(rows)) < len(rows):
            raise DataError(f"{path}: {name} names a row twice")
    return arrays


def part(parts: Mapping[str, np.ndarray], name: str, path: str | Path) -> np.ndarray:
    """The rows of a split's part. Raises DataError where it has no such part."""
    if name not in parts:
        raise DataError(f"{path}: no part {name!r}; there are {', '.join(parts) or 'none'}")
    return parts[name]
