"""Experiments whose validation structures are given, not drawn: by a published split, or by a
split of one's own into training, validation and test.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from ..datasets import splits
from ..errors import ConfigError
from ..structures.store import Structures
from .experiment import Experiment


@dataclasses.dataclass(frozen=True)
class GivenValidation(Experiment):
    """An `Experiment` in which rows ``valid_rows`` of ``train`` validate and its others train.

    A label budget still counts both: of ``count`` labels the share that ``valid_rows`` has of
    ``train`` is drawn from these, so that a budget of all structures is the split as it was given.
    ``valid_fraction`` is that share. Raises ConfigError for rows that ``train`` does not have, that
    come twice, or that leave nothing to train on.
    """

    valid_rows: Sequence[int] | np.ndarray = ()

    def __post_init__(self) -> None:
        rows = np.unique(np.asarray(self.valid_rows, dtype=np.int64))
        n = len(self.train)
        if not 0 < len(rows) < n or len(rows) < len(self.valid_rows):
            raise ConfigError(
                f"experiment: {len(self.valid_rows)} rows to validate on, of {n} structures: some "
                "must be left to train on, and none may come twice"
            )
        if rows[0] < 0 or rows[-1] >= n:
            wrong = rows[-1] if rows[-1] >= n else rows[0]
            raise ConfigError(f"experiment: row {wrong} to validate on, of {n} structures")
        object.__setattr__(self, "valid_rows", rows)
        object.__setattr__(self, "valid_fraction", len(rows) / n)
        super().__post_init__()

    def labelled(self, count: int, seed: int) -> tuple[Structures, Structures]:
        """Training and validation structures of a label budget: nested in the budget, disjoint
        from each other.
        """
        others = np.setdiff1d(np.arange(len(self.train)), self.valid_rows)
        n_valid = round(count * self.valid_fraction)
        # both need a structure, and neither has more than there are
        least, most = max(1, count - len(others)), min(len(self.valid_rows), count - 1)
        n_valid = min(max(n_valid, least), most)

        def draw(rows: np.ndarray, size: int) -> Structures:
            part = self.train[rows]
            return part[splits.label_budget(part, [size], seed=seed)[size]]

        return draw(others, count - n_valid), draw(self.valid_rows, n_valid)
