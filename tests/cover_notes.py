"""What the simulations of intervals measure, written down where POTKIT_COVERAGE_NOTES names a file,
and the stored table made of it: `python tests/cover_notes.py NOTES CASES` (see `make coverage`).
"""

from __future__ import annotations

import os
import sys

import numpy as np
import pandas as pd


def note(interval: str, n: int | str, cover: float, cases: int) -> None:
    """That an ``interval`` of ``n`` seeds (or of what it is over) held the truth in the share
    ``cover`` of so many cases.
    """
    path = os.environ.get("POTKIT_COVERAGE_NOTES")
    if path:
        with open(path, "a") as file:
            file.write(f"{interval}|{n}|{cover:.4f}|{cases}\n")


def table(path: str) -> pd.DataFrame:
    """A row per interval and n: the smallest and the largest cover over all truths, the mean, how
    many truths, and the cases of each.
    """
    rows = pd.read_csv(path, sep="|", names=["interval", "n", "cover", "cases"], dtype={"n": str})
    rows["order"] = rows["n"].str.extract(r"(\d+)")[0].astype(int)
    by = rows.groupby(["interval", "order", "n"])
    found = by.agg(
        low=("cover", "min"),
        high=("cover", "max"),
        mean=("cover", "mean"),
        truths=("cover", "size"),
        cases=("cases", "min"),
    )
    found["chance"] = 1.96 * np.sqrt(0.95 * 0.05 / found["cases"])
    return found.reset_index().drop(columns="order")


if __name__ == "__main__":
    from potkit.report import tables

    tables.store(
        table(sys.argv[1]), "coverage", f"make coverage CASES={sys.argv[2]}", "data/results"
    )
