"""How much of the spread over seeds is numerics: the same runs with one and with two threads.

Training is bit-equal for the same seed, threads and processor. With another number of threads (or
another processor) sums are rounded in another order, and training carries such differences on: a
chaotic map. What they come to is a spread no choice of seeds removes, and what two machines may
differ by. With d = log(error) of a run with one thread minus that with the other, over S seeds

    numerics = √(Σ d² / 2S)      of a single run, S degrees of freedom
    spread   = standard deviation of log(error) over seeds, pooled over the thread counts

and their ratio squared is the share of the variance over seeds that is numerics. Forces and
energies of one network are two columns, not two experiments.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ..errors import ConfigError
from . import experiment as experiments
from .experiment import Experiment
from .statistics import METRICS, grouping

THREADS = "threads"
LAST_DIGIT = 5e-7  # of logarithms: runs are stored with six significant digits


def measure(
    grid: Sequence[Experiment], threads: Sequence[int] = (1, 2), progress: bool = True
) -> pd.DataFrame:
    """The runs of ``grid`` once for each number of ``threads``, in this process: a table of
    `experiments.run` with the column "threads".

    The runs lie in folders threads-1, threads-2, … of the experiments' store, since the number of
    threads is no part of a run's identity. Raises ConfigError for fewer than two numbers, or for a
    comparison in which scratch-longer is as long as a measured time (its steps would differ).
    """
    if len(set(threads)) < 2 or min(threads, default=0) < 1:
        raise ConfigError(f"numerics needs two numbers of threads to compare, got {list(threads)}")
    if any(e.longer == "time" and e.objectives for e in grid):
        raise ConfigError(
            "numerics compares runs of the same steps: longer must be 'steps' or null, not 'time'"
        )
    tables = []
    for number in threads:
        there = [
            dataclasses.replace(
                e, store=Path(e.store) / f"{THREADS}-{number}", jobs=1, threads=number
            )
            for e in grid
        ]
        runs = experiments.run(there, progress)
        by = list(runs.columns).index("arm")
        runs.insert(by, THREADS, number)
        tables.append(runs.astype({"arm": object}))
    return pd.concat(tables, ignore_index=True)


def summarise(runs: pd.DataFrame, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """A row per experiment, label budget, arm and metric of a table of `measure`: seeds, spread_%,
    numerics_% with its 95 % interval (χ², a degree of freedom a seed and pair of thread counts),
    share_% of the variance over seeds, largest_% difference of a single seed, and equal, how many
    seeds are the same to the last stored digit.

    Of more than two thread counts, successive ones are compared. A seed counts where all its runs
    ended well. Raises ConfigError where there is nothing to compare.
    """
    by = [c for c in grouping(runs) if c != THREADS]
    good = runs[runs["status"] == "ok"] if "status" in runs else runs
    rows = []
    for key, part in good.groupby([*by, "arm"], sort=False):
        for metric in metrics:
            if metric not in part or part[metric].isna().all():
                continue
            wide = part.pivot_table(index="seed", columns=THREADS, values=metric).dropna()
            if wide.shape[1] < 2 or not len(wide):
                continue
            logs = np.log(wide.to_numpy())  # [seeds, thread counts]
            differences = np.diff(logs, axis=1).ravel()
            n = len(differences)
            square = float(np.square(differences).sum())
            numerics = np.sqrt(square / (2 * n))
            ends = np.sqrt(square / (2 * stats.chi2.ppf([0.975, 0.025], n)))
            # a single seed has no spread
            spread = float(np.sqrt(logs.var(axis=0, ddof=1).mean())) if len(wide) > 1 else np.nan
            rows.append(
                dict(zip([*by, "arm"], key, strict=True))
                | {
                    "metric": metric,
                    "seeds": len(wide),
                    "spread_%": 100 * spread,
                    "numerics_%": 100 * float(numerics),
                    "numerics_low_%": 100 * float(ends[0]),
                    "numerics_high_%": 100 * float(ends[1]),
                    "share_%": 100 * float(numerics**2 / spread**2) if spread > 0 else np.nan,
                    "largest_%": 100 * float(np.expm1(np.abs(differences).max())),
                    "equal": int((np.abs(differences) < LAST_DIGIT).sum()),
                }
            )
    if not rows:
        raise ConfigError("numerics: no seed has a finished run with each number of threads")
    return pd.DataFrame(rows)
