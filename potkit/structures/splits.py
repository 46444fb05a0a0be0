"""Disjoint rows of a set: by structure, by system, or within each system; seeded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError, DataError
from .settings import seed as checked_seed

if TYPE_CHECKING:
    from .store import Structures

BY = ("structure", "system", "structure-within-system", "block")
ROUNDING = ("drawn", "floor")
Part = float | int | None


def split(
    structures: Structures,
    fractions: Sequence[Part] = (0.8, 0.1, 0.1),
    seed: int = 0,
    by: str = "structure",
    block: int | None = None,
    gap: int = 0,
    rounding: str = "drawn",
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
    ``rounding``: where a share is no whole number, who gets what is left is "drawn" at random (so
    that small systems do not all lose the same part), or "floor": shares are rounded down, and the
    first part has the rest (denoise paper's code: 80/10/10 of 19 structures are 17/1/1).
    Raises ConfigError for shares that do not fit, DataError if there are too few structures.
    """
    parts = _check(fractions)
    if by not in BY:
        raise ConfigError(f"by must be one of {', '.join(BY)}, got {by!r}")
    if rounding not in ROUNDING:
        raise ConfigError(f"rounding must be one of {', '.join(ROUNDING)}, got {rounding!r}")
    seed = checked_seed(seed, "seed of a split")
    rng = np.random.default_rng(seed)
    if by == "structure":
        return _cut(np.arange(len(structures)), parts, rng, "structures", rounding)
    if by == "system":
        systems = np.unique(structures.system)
        chosen = _cut(systems, parts, rng, "systems", rounding)
        return tuple(np.flatnonzero(np.isin(structures.system, c)) for c in chosen)
    if by == "block":
        return _by_block(structures, parts, seed, block, gap, rounding)
    names = structures.system_names()
    per_system = []
    for system, rows in by_system(structures):
        # a random stream for each system: adding a system leaves the split of the others as it was
        rng = np.random.default_rng([seed, system])
        per_system.append(_cut(rows, parts, rng, f"structures of {names[system]}", rounding))
    return _joined(per_system, len(parts))


def _by_block(
    structures: Structures,
    parts: list[Part],
    seed: int,
    block: int | None,
    gap: int,
    rounding: str,
) -> tuple[np.ndarray, ...]:
    names, out = structures.system_names(), []
    for system, rows in by_system(structures):
        length = max(1, len(rows) // 20) if block is None else block
        if length < 1 or not 0 <= gap < length:
            raise ConfigError(
                f"{names[system]}: a block of {length} structures cannot have a gap of {gap} "
                "beside it"
            )
        count = max(1, len(rows) // length)
        if count < len(parts):
            raise DataError(
                f"{names[system]}: {len(rows)} structures are {count} blocks of {length}, too few "
                f"for {len(parts)} parts"
            )
        # a short rest joins the last block
        of_row = np.minimum(np.arange(len(rows)) // length, count - 1)
        rng = np.random.default_rng([seed, system])
        chosen = _cut(np.arange(count), parts, rng, f"blocks of {names[system]}", rounding)
        part = np.full(count, -1)
        for number, blocks in enumerate(chosen):
            part[blocks] = number
        part = part[of_row]
        kept = part >= 0
        for edge in np.flatnonzero(np.diff(part)):  # between structure edge and the next
            kept[max(0, edge + 1 - gap) : edge + 1 + gap] = False
        out.append(tuple(rows[kept & (part == number)] for number in range(len(parts))))
    return _joined(out, len(parts))


def _joined(per_system: list[tuple[np.ndarray, ...]], count: int) -> tuple[np.ndarray, ...]:
    """The ``count`` parts of all systems together, each rising; empty where there is no system."""
    nothing = np.empty(0, np.int64)
    return tuple(
        np.sort(np.concatenate([nothing, *(parts[number] for parts in per_system)]))
        for number in range(count)
    )


def by_system(structures: Structures) -> list[tuple[int, np.ndarray]]:
    """For each system in use: its number and the rows of its structures, both rising."""
    order = np.argsort(structures.system, kind="stable")
    systems, first = np.unique(structures.system[order], return_index=True)
    if not len(systems):
        return []
    return list(zip(systems.tolist(), np.split(order, first[1:]), strict=True))


def _check(fractions: Sequence[Part]) -> list[Part]:
    parts = list(fractions)
    shares = [p for p in parts if isinstance(p, (float, np.floating))]
    counts = [p for p in parts if isinstance(p, (int, np.integer)) and not isinstance(p, bool)]
    rests = parts.count(None)
    if not parts or len(shares) + len(counts) + rests != len(parts) or rests > 1:
        raise ConfigError(f"a split is a list of shares, counts and at most one None, got {parts}")
    if any(not 0 <= p <= 1 for p in shares) or sum(shares) > 1 + 1e-9 or any(p < 0 for p in counts):
        raise ConfigError(
            "shares of a split lie in 0…1 and add up to at most 1, counts are not negative, got "
            f"{parts}"
        )
    return parts


def _cut(
    rows: np.ndarray,
    parts: list[Part],
    rng: np.random.Generator,
    what: str,
    rounding: str,
) -> tuple[np.ndarray, ...]:
    rows = rng.permutation(rows)

    def size(part: Part) -> float:
        if part is None:
            return 0.0
        return float(part) * len(rows) if isinstance(part, (float, np.floating)) else part

    exact = np.array([size(part) for part in parts])
    sizes = np.floor(exact + 1e-9).astype(np.int64)
    rest = np.clip(exact - sizes, 0.0, None)
    left = round(rest.sum())
    if left and rounding == "floor":
        if None not in parts:
            sizes[0] += left
    elif left:  # drawn, not rounded: else every system of five structures would lose the same part
        sizes[rng.choice(len(parts), size=left, replace=False, p=rest / rest.sum())] += 1
    if sizes.sum() > len(rows):
        raise DataError(f"split asks for {int(sizes.sum())} of {len(rows)} {what}")
    if None in parts:
        sizes[parts.index(None)] = len(rows) - sizes.sum()
    bounds = itertools.pairwise(np.cumsum([0, *sizes]))
    return tuple(np.sort(rows[start:end]) for start, end in bounds)
