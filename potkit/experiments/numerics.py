"""How much of the spread over seeds is numerics: the same runs with one and with two threads, or
with the instructions of one processor and of another.

Training is bit-equal for the same seed, threads and processor. With another number of threads (or
another processor) sums are rounded in another order, and training carries such differences on: a
chaotic map. What they come to is a spread no choice of seeds removes, and what two machines may
differ by. Small networks are not split over threads at all, and then only instructions differ.

Another processor is had on the same machine: torch brings its vector code for several generations
of instructions, and ATEN_CPU_CAPABILITY (default, avx2, avx512) chooses among those the processor
has. Sums over a vector of eight numbers are other ones than those over sixteen.

The logarithms of the errors of S pretrainings in k ways (thread counts, instructions) are a one-way
layout of random effects: what a seed has in every way, plus numerics. With the mean squares MSB
between seeds (S − 1 degrees of freedom) and MSW within them (S (k − 1)),

    numerics = √MSW                         of a single run; for two counts √(Σ d² / 2S)
    spread   = √((MSB + (k − 1) MSW) / k)   of a single run over seeds
    share    = numerics² / spread²          of the variance over seeds

The interval of numerics is that of χ². The share is 1 − the intraclass correlation, and its
interval the exact one of F = MSB/MSW (Shrout & Fleiss 1979, ICC(1, 1)), cut at 0 and 1. Label draws
of one pretraining share it, and so its numerics, so the first draw of each pretraining counts.
Experiments of a grid share runs (scratch under several objectives is one run): each run counts in
the first of them only. Forces and energies of one network are two columns, not two experiments.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ..errors import ConfigError
from ..structures.outputs import read_json
from . import experiment as experiments
from .experiment import Experiment
from .statistics import DRAW, METRICS, UNIT, grouping, nested

THREADS = "threads"
INSTRUCTIONS = "instructions"
WAYS = {THREADS: "threads", INSTRUCTIONS: "instructions"}  # column of the runs -> what it counts
CAPABILITY = "ATEN_CPU_CAPABILITY"
LAST_DIGIT = 5e-7  # of logarithms: runs are stored with six significant digits


def measure(
    grid: Sequence[Experiment],
    threads: Sequence[int] = (1, 2),
    progress: bool = True,
    instructions: Sequence[str] = (),
) -> pd.DataFrame:
    """The runs of ``grid`` once for each number of ``threads``, in this process: a table of
    `experiments.run` with the column "threads".

    ``instructions``: instead of threads the sets of instructions to compare ("default", "avx2",
    "avx512"), each in processes of its own; the column is "instructions" then.

    The runs lie in folders threads-1, threads-2, … (instructions-avx2, …) of the experiments'
    store, since neither is part of a run's identity. Raises ConfigError for fewer than two of
    either, for instructions that this processor does not have, or for a comparison in which
    scratch-longer is as long as a measured time (its steps would differ).
    """
    named = list(dict.fromkeys(word.lower() for word in instructions))
    if instructions and len(named) < 2:
        raise ConfigError(f"numerics needs two sets of instructions to compare, got {named}")
    if not named and (len(set(threads)) < 2 or min(threads, default=0) < 1):
        raise ConfigError(f"numerics needs two numbers of threads to compare, got {list(threads)}")
    if any(e.longer == "time" and e.objectives for e in grid):
        raise ConfigError(
            "numerics compares runs of the same steps: longer must be 'steps' or null, not 'time'"
        )
    tables = []
    for way in named or threads:
        column = INSTRUCTIONS if named else THREADS
        there = [dataclasses.replace(e, store=Path(e.store) / f"{column}-{way}") for e in grid]
        if named:
            # new processes: torch looks at the variable once, when it starts
            there = [dataclasses.replace(e, jobs=max(2, e.jobs)) for e in there]
            with _capability(way):
                runs = experiments.run(there, progress)
            _check_instructions(there, runs, way)
        else:
            there = [dataclasses.replace(e, jobs=1, threads=way) for e in there]
            runs = experiments.run(there, progress)
        runs.insert(list(runs.columns).index("arm"), column, way)
        tables.append(runs.astype({"arm": object}))
    return pd.concat(tables, ignore_index=True)


@contextmanager
def _capability(instructions: str) -> Iterator[None]:
    """Processes started in here use these instructions."""
    before = os.environ.get(CAPABILITY)
    os.environ[CAPABILITY] = instructions
    try:
        yield
    finally:
        if before is None:
            del os.environ[CAPABILITY]
        else:
            os.environ[CAPABILITY] = before


def _check_instructions(grid: Sequence[Experiment], runs: pd.DataFrame, asked: str) -> None:
    """Raises ConfigError where a run says that it had other instructions: torch takes the best
    that there are for a name it does not know or a processor does not have.
    """
    for name in runs.loc[runs["status"] == "ok", "run"]:
        for experiment in grid:
            about = Path(experiment.store) / name / "run.json"
            had = read_json(about)["machine"]["cpu_capability"] if about.is_file() else asked
            if had.lower() != asked:
                raise ConfigError(
                    f"instructions {asked!r}: the runs had {had.lower()!r}; this processor has no "
                    "others, or torch knows no such name"
                )


def _way(runs: pd.DataFrame) -> str:
    """The column that tells the ways of the same seed apart. Raises ConfigError without one."""
    for column in WAYS:
        if column in runs:
            return column
    raise ConfigError("numerics: the runs say neither threads nor instructions")


def summarise(runs: pd.DataFrame, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """A row per experiment, label budget, arm and metric of a table of `measure`: seeds
    (pretrainings), spread_%, numerics_% and share_% of the variance over seeds with their 95 %
    intervals (see the module), largest_% difference of a single run between successive ways, equal,
    how many of these differences are 0 to the last stored digit, and between ("1 and 2 threads").
    Where all are equal, there are no intervals.

    A run that several experiments share stands in the first of them only, and of the label draws of
    a pretraining the first counts whose runs all ended well. Raises ConfigError where there is
    nothing to compare.
    """
    column = _way(runs)
    by = [c for c in grouping(runs) if c != column]
    ways = " and ".join(map(str, dict.fromkeys(runs[column])))
    good = nested(runs)
    if "run" in good:
        good = good.drop_duplicates([column, "run"])
    rows = []
    for key, part in good.groupby([*by, "arm"], sort=False, observed=True):
        for metric in metrics:
            if metric not in part or part[metric].isna().all():
                continue
            wide = part.pivot_table(index=[UNIT, DRAW], columns=column, values=metric).dropna()
            if wide.shape[1] < 2 or not len(wide):
                continue
            logs = np.log(wide.groupby(level=UNIT).first().to_numpy())  # [seeds, ways]
            differences = np.abs(np.diff(logs, axis=1))
            equal = int((differences < LAST_DIGIT).sum())
            found = components(logs)
            if equal == differences.size:
                # no differences at all are no sample of a spread: how many seeds were equal says
                # what is known
                ends = (n for n in found if n.endswith(("low_%", "high_%")))
                found |= dict.fromkeys(ends, np.nan)
            rows.append(
                dict(zip([*by, "arm"], key, strict=True))
                | {"metric": metric, "seeds": len(logs)}
                | {name: 100 * value for name, value in found.items()}
                | {
                    "largest_%": 100 * float(np.expm1(differences.max())),
                    "equal": equal,
                    "between": f"{ways} {WAYS[column]}",
                }
            )
    if not rows:
        failures = runs.loc[runs["status"] != "ok", "error"] if "error" in runs else ()
        why = f"; the first that failed: {failures.iloc[0]}" if len(failures) else ""
        raise ConfigError(f"numerics: no seed has a finished run in each way{why}")
    return pd.DataFrame(rows)


def components(
    logs: np.ndarray,  # [seeds, ways]
) -> dict[str, float]:
    """spread_%, numerics_% and share_% of `summarise` with their intervals, as shares of 1; what a
    single seed does not tell is NaN.
    """
    seeds, counts = logs.shape
    within = float(logs.var(axis=1, ddof=1).mean())
    freedom = seeds * (counts - 1)
    ends = np.sqrt(within * freedom / stats.chi2.ppf([0.975, 0.025], freedom))
    out = dict.fromkeys(("spread_%", *_named("numerics"), *_named("share")), np.nan)
    out |= zip(_named("numerics"), (float(np.sqrt(within)), *map(float, ends)), strict=True)
    if seeds == 1:
        return out
    between = counts * float(logs.mean(axis=1).var(ddof=1))
    both = between + (counts - 1) * within
    out["spread_%"] = float(np.sqrt(both / counts))
    # counts / (F + counts − 1) with F and its two ends, multiplied out: the spread within seeds may
    # be 0
    ratio = np.array([1.0, *stats.f.ppf([0.025, 0.975], seeds - 1, freedom)])
    if both > 0:
        shares = counts * within * ratio / (between + (counts - 1) * within * ratio)
        out |= zip(_named("share"), map(float, np.minimum(shares, 1.0)), strict=True)
    return out


def _named(name: str) -> tuple[str, str, str]:
    return f"{name}_%", f"{name}_low_%", f"{name}_high_%"
