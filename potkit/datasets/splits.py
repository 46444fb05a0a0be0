"""Splits and label budgets: seeded, nested where they should be, written to disk with a name and
the hash of what they split.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError, DataError
from ..structures import storage
from ..structures.store import Structures
from .duplicates import distinct, leakage, leakage_by_distance, leakage_report
from .formats.common import load_npz

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
BY = ("structure", "system", "structure-within-system", "block")
Part = float | int | None


def split(
    structures: Structures,
    fractions: Sequence[Part] = (0.8, 0.1, 0.1),
    seed: int = 0,
    by: str = "structure",
    block: int | None = None,
    gap: int = 0,
) -> tuple[np.ndarray, ...]:
    """Disjoint index arrays (each rising), one per entry of ``fractions``.

    An entry is a share (float, of what is split), a count (int), or None for all that is left.
    Shares and counts are of structures for "structure"; of systems, none of which lands in two
    parts, for "system" (unseen molecules, or whole trajectories); of each system's structures,
    drawn independently for each system, for "structure-within-system" (both papers);
    of blocks of ``block`` successive structures (default: a twentieth) of each system for "block":
    in a trajectory, whose structures stand in the order of time, a test structure then has no
    training structure beside it but at a block's ends, where ``gap`` structures are left out on
    both sides.
    Raises ConfigError for shares that do not fit, DataError if there are too few structures.
    """
    parts = _check(fractions)
    if by not in BY:
        raise ConfigError(f"by must be one of {', '.join(BY)}, got {by!r}")
    if by == "structure":
        return _cut(np.arange(len(structures)), parts, np.random.default_rng(seed), "structures")
    if by == "system":
        systems = np.unique(structures.system)
        chosen = _cut(systems, parts, np.random.default_rng(seed), "systems")
        return tuple(np.flatnonzero(np.isin(structures.system, c)) for c in chosen)
    names, out = structures.system_names(), []
    if by == "block":
        return _by_block(structures, parts, seed, block, gap)
    for system, rows in by_system(structures):
        # a stream of its own for each system: adding a system leaves the split of the others as it
        # was
        out.append(
            _cut(
                rows, parts, np.random.default_rng([seed, system]), f"structures of {names[system]}"
            )
        )
    return tuple(np.sort(np.concatenate(part)) for part in zip(*out))


def _by_block(
    structures: Structures, parts: list[Part], seed: int, block: int | None, gap: int
) -> tuple[np.ndarray, ...]:
    names, out = structures.system_names(), []
    for system, rows in by_system(structures):
        length = max(1, len(rows) // 20) if block is None else block
        if length < 1 or not 0 <= gap < length:
            raise ConfigError(
                f"{names[system]}: a block of {length} structures cannot have a gap of {gap} beside it"
            )
        count = max(1, len(rows) // length)
        if count < len(parts):
            raise DataError(
                f"{names[system]}: {len(rows)} structures are {count} blocks of {length}, too few for {len(parts)} parts"
            )
        # a short rest joins the last block
        of_row = np.minimum(np.arange(len(rows)) // length, count - 1)
        rng = np.random.default_rng([seed, system])
        chosen = _cut(np.arange(count), parts, rng, f"blocks of {names[system]}")
        part = np.full(count, -1)
        for number, blocks in enumerate(chosen):
            part[blocks] = number
        part = part[of_row]
        kept = part >= 0
        for edge in np.flatnonzero(np.diff(part)):  # between structure edge and the next
            kept[max(0, edge + 1 - gap) : edge + 1 + gap] = False
        out.append(tuple(rows[kept & (part == number)] for number in range(len(parts))))
    return tuple(np.sort(np.concatenate(part)) for part in zip(*out))


def by_system(structures: Structures) -> list[tuple[int, np.ndarray]]:
    """For each system in use: its number and the rows of its structures, both rising."""
    order = np.argsort(structures.system, kind="stable")
    systems, first = np.unique(structures.system[order], return_index=True)
    return [(int(s), rows) for s, rows in zip(systems, np.split(order, first[1:]))]


def _check(fractions: Sequence[Part]) -> list[Part]:
    parts = list(fractions)
    shares = [p for p in parts if isinstance(p, (float, np.floating))]
    counts = [p for p in parts if isinstance(p, (int, np.integer)) and not isinstance(p, bool)]
    if (
        not parts
        or len(shares) + len(counts) + parts.count(None) != len(parts)
        or parts.count(None) > 1
    ):
        raise ConfigError(f"a split is a list of shares, counts and at most one None, got {parts}")
    if any(not 0 <= p <= 1 for p in shares) or sum(shares) > 1 + 1e-9 or any(p < 0 for p in counts):
        raise ConfigError(
            f"shares of a split lie in 0…1 and add up to at most 1, counts are not negative, got {parts}"
        )
    return parts


def _cut(
    rows: np.ndarray, parts: list[Part], rng: np.random.Generator, what: str
) -> tuple[np.ndarray, ...]:
    rows = rng.permutation(rows)
    exact = np.array(
        [
            0.0 if p is None else float(p) * len(rows) if isinstance(p, (float, np.floating)) else p
            for p in parts
        ]
    )
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.clip(exact - sizes, 0.0, None)
    left = int(round(rest.sum()))
    if left:  # drawn, not rounded: else every system of five structures would lose the same part
        sizes[rng.choice(len(parts), size=left, replace=False, p=rest / rest.sum())] += 1
    if sizes.sum() > len(rows):
        raise DataError(f"split asks for {int(sizes.sum())} of {len(rows)} {what}")
    if None in parts:
        sizes[parts.index(None)] = len(rows) - sizes.sum()
    ends = np.cumsum(sizes)
    return tuple(np.sort(rows[end - size : end]) for end, size in zip(ends, sizes))


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
    order, out = np.argsort(rank, kind="stable"), {}
    for size in sizes:
        share = isinstance(size, (float, np.floating))
        count = int(round(size * n)) if share else int(size)
        if (share and not 0 < size <= 1) or not 1 <= count <= n:
            raise DataError(f"label budget {size}: {count} of {n} structures")
        out[size] = np.sort(order[:count])
    return out


def save_indices(
    path: str | Path, structures: Structures, parts: Mapping[str, np.ndarray], **about: Any
) -> Path:
    """Write named index arrays with the fingerprint of ``structures`` (one .npz); ``about`` says
    how they were drawn.
    """
    path = Path(path)
    header = {
        "format": "potkit-split",
        "structures": len(structures),
        "name": structures.info.get("name", "unnamed"),
    }
    header |= {"fingerprint": structures.fingerprint(), "about": about}
    with storage.replacing(path) as temporary:
        with open(temporary, "wb") as file:
            np.savez_compressed(
                file,
                header=np.array(json.dumps(header, default=str)),
                **{k: np.asarray(v) for k, v in parts.items()},
            )
    return path


def load_indices(path: str | Path, structures: Structures) -> dict[str, np.ndarray]:
    """What `save_indices` wrote. Raises DataError if it was made for other structures."""
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path}: no such split file")
    arrays = load_npz(path)
    try:
        header = json.loads(str(arrays.pop("header")))
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{path}: not a split file of potkit (keys: {', '.join(arrays) or 'none'})"
        ) from error
    if header["fingerprint"] != structures.fingerprint():
        raise DataError(
            f"{path}: made for {header['name']} ({header['structures']} structures, {header['fingerprint']}), "
            f"these are {structures.info.get('name', 'unnamed')} ({len(structures)}, {structures.fingerprint()})"
        )
    return arrays


def mark_parts(structures: Structures, counts: Mapping[str, int]) -> Structures:
    """Note in ``structures.info`` that its first rows are one published part, the next another
    …; `parts` finds them again.
    """
    ends = np.cumsum(list(counts.values()))
    rows = {name: [int(end) - count, int(end)] for (name, count), end in zip(counts.items(), ends)}
    structures.info["parts"] = {"rows": rows, "of": _order(structures)}
    return structures


def _order(structures: Structures) -> str:
    """A hash of the energies in their order: another selection or order has another."""
    source = structures.system if structures.energy is None else structures.energy
    return f"{len(structures)}-{hashlib.blake2b(np.ascontiguousarray(source).data, digest_size=8).hexdigest()}"


def parts(structures: Structures) -> dict[str, np.ndarray]:
    """The parts that were published with the set: name -> rows. Raises DataError if there are
    none, or the set was cut since.
    """
    known, name = structures.info.get("parts"), structures.info.get("name", "structures")
    if not known:
        raise DataError(f"{name}: no published parts are known; draw a split of your own")
    if known["of"] != _order(structures):
        raise DataError(
            f"{name}: cut or reordered since it was read: take its published parts first, then cut"
        )
    return {part: np.arange(*bounds) for part, bounds in known["rows"].items()}


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
            try:
                rows.append(
                    int(word)
                    if word.lstrip("+-").isdigit()
                    else int(float(word))
                    if float(word).is_integer()
                    else _no(word)
                )
            except (ValueError, OverflowError):
                raise DataError(f"{path}: line {line}: {word!r} is not a whole number") from None
            lines.append(line)
    out = np.array(rows, np.int64) - base
    bad = (out < 0) | (out >= n)
    if bad.any():
        i = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"{path}: line {lines[i]}: index {rows[i]} points outside the {n} structures (counted from {base})"
        )
    _, first = np.unique(out, return_index=True)
    if len(first) < len(out):
        i = int(np.setdiff1d(np.arange(len(out)), first)[0])
        raise DataError(f"{path}: line {lines[i]}: index {rows[i]} comes twice")
    return out


def _no(word: str) -> int:
    raise ValueError(word)
