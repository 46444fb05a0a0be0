"""Splits that were published with a data set: index files, and the parts noted when it was read;
and what may be pretrained on beside a split.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..errors import ConfigError, DataError
from ..structures.store import Structures

# published faults of a split that `pretraining_rows` repeats
FAULTS = ("test-in-pretraining",)


def mark_parts(structures: Structures, counts: Mapping[str, int]) -> Structures:
    """Note in ``structures.info`` that its first rows are one published part, the next another …;
    `parts` finds them again.
    """
    rows: dict[str, list[int]] = {}
    end = 0
    for name, count in counts.items():
        rows[name] = [end, end + int(count)]
        end += int(count)
    structures.info["parts"] = {"rows": rows, "of": _order(structures)}
    return structures


def _order(structures: Structures) -> str:
    """A hash of the energies in their order: another selection or order has another."""
    source = structures.system if structures.energy is None else structures.energy
    digest = hashlib.blake2b(np.ascontiguousarray(source).data, digest_size=8).hexdigest()
    return f"{len(structures)}-{digest}"


def parts(structures: Structures) -> dict[str, np.ndarray]:
    """The parts that were published with the set: name -> rows. Raises DataError if there are
    none, or the set was cut since.
    """
    known = structures.info.get("parts")
    name = structures.info.get("name", "structures")
    if not known:
        raise DataError(f"{name}: no published parts are known; draw a split of your own")
    if known["of"] != _order(structures):
        raise DataError(
            f"{name}: cut or reordered since it was read: take its published parts first, then cut"
        )
    return {part: np.arange(*bounds) for part, bounds in known["rows"].items()}


def pretraining_rows(
    n: int, held_out: np.ndarray | Sequence[int], faults: Sequence[str] = ()
) -> np.ndarray:
    """The rows of a set of ``n`` structures that may be pretrained on: all but ``held_out``, those
    that fine-tuning validates or tests on.

    The denoise paper's code (arXiv 2303.02216) draws pretraining's part of every molecule, 95 %,
    apart from the 10 % it tests on, so that about 95 % of the test structures were seen, without
    labels: ``faults=("test-in-pretraining",)`` repeats that, leaving nothing out. Raises DataError
    for rows that are not there, ConfigError for another fault.
    """
    unknown = [name for name in faults if name not in FAULTS]
    if unknown:
        raise ConfigError(f"no fault {unknown[0]!r} of a split; there is {', '.join(FAULTS)}")
    held = np.asarray(held_out, np.int64).reshape(-1)
    wrong = held[(held < 0) | (held >= n)]
    if len(wrong):
        raise DataError(f"held_out: row {int(wrong[0])} is not one of the {n} structures")
    kept = np.ones(n, bool)
    if "test-in-pretraining" not in faults:
        kept[held] = False
    return np.flatnonzero(kept)


def published(path: str | Path, n: int, base: int = 0) -> np.ndarray:
    """The rows in an index file published with a data set: one whole number per line or comma,
    counted from ``base``.

    rMD17's index files count from 0, ISO17's id files from 1. Raises DataError naming the line of
    what is no number, points past the ``n`` structures there are, or comes twice.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such index file")
    rows, lines = [], []
    for line, text in enumerate(path.read_text().splitlines(), start=1):
        for word in text.replace(",", " ").split():
            row = _whole_number(word)
            if row is None:
                raise DataError(f"{path}: line {line}: {word!r} is not a whole number")
            rows.append(row)
            lines.append(line)
    out = np.array([max(-(2**62), min(row, 2**62)) for row in rows], np.int64) - base
    bad = (out < 0) | (out >= n)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{path}: line {lines[i]}: index {rows[i]} points outside the {n} structures (counted "
            f"from {base})"
        )
    _, first = np.unique(out, return_index=True)
    if len(first) < len(out):
        i = int(np.setdiff1d(np.arange(len(out)), first)[0])
        raise DataError(f"{path}: line {lines[i]}: index {rows[i]} comes twice")
    return out


def _whole_number(word: str) -> int | None:
    """The number ``word`` writes, such as 12 or 1.2e1; None if it is not a whole one."""
    digits = word[1:] if word[:1] in ("+", "-") else word
    if word.isascii() and digits.isdigit() and len(digits) < 1000:  # of more Python makes no number
        return int(word)
    try:
        value = float(word)
    except ValueError:
        return None
    return int(value) if value.is_integer() else None
