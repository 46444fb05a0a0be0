"""Disjoint rows of a set: by structure, by system, or within each system; seeded."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..errors import ConfigError, DataError

if TYPE_CHECKING:
    from .store import Structures

BY = ("structure", "system", "structure-within-system")
Part = float | int | None


def split(
    structures: Structures,
    fractions: Sequence[Part] = (0.8, 0.1, 0.1),
    seed: int = 0,
    by: str = "structure",
) -> tuple[np.ndarray, ...]:
    """Disjoint index arrays (each rising), one per entry of ``fractions``.

    An entry is a share (float, of what is split), a count (int), or None for all that is left.
    Shares and counts are of structures for "structure"; of systems, none of which lands in two
    parts, for "system" (unseen molecules, or whole trajectories); of each system's structures,
    drawn independently for each system, for "structure-within-system" (both papers). Raises
    ConfigError for shares that do not fit, DataError if there are too few structures.
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
    names = structures.system_names()
    per_system = []
    for system, rows in by_system(structures):
        # a random stream for each system: adding a system leaves the split of the others as it was
        rng = np.random.default_rng([seed, system])
        per_system.append(_cut(rows, parts, rng, f"structures of {names[system]}"))
    return tuple(np.sort(np.concatenate(part)) for part in zip(*per_system, strict=True))


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
    rows: np.ndarray, parts: list[Part], rng: np.random.Generator, what: str
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
    if left:  # drawn, not rounded: else every system of five structures would lose the same part
        sizes[rng.choice(len(parts), size=left, replace=False, p=rest / rest.sum())] += 1
    if sizes.sum() > len(rows):
        raise DataError(f"split asks for {int(sizes.sum())} of {len(rows)} {what}")
    if None in parts:
        sizes[parts.index(None)] = len(rows) - sizes.sum()
    bounds = itertools.pairwise(np.cumsum([0, *sizes]))
    return tuple(np.sort(rows[start:end]) for start, end in bounds)
