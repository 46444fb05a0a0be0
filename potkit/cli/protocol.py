"""What `potkit compare` prints and stores beside a grid's means: what the search chose, whether the
baseline is converged, error against time, and errors structure by structure.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import CheckpointError, DataError

if TYPE_CHECKING:
    import pandas as pd

    from ..experiments.experiment import Experiment

PARTS = ("choices", "convergence", "time-curves", "tries")
STRUCTURES = ("test-errors", "test", "breakdown")


class Protocol(NamedTuple):
    """Tables that stand beside a comparison; empty ones where an experiment does not ask."""

    choices: pd.DataFrame
    convergence: pd.DataFrame
    time_curves: pd.DataFrame
    tries: pd.DataFrame

    def store(self, name: str, command: str, out: Path) -> None:
        """NAME-choices.csv, NAME-convergence.csv, NAME-time-curves.csv and NAME-tries.csv, of those
        there are.
        """
        from ..report import tables as report

        for part, table in zip(PARTS, self, strict=True):
            if len(table):
                report.store(table, f"{name}-{part}", command, out)

    def say(self) -> None:
        """Print what was chosen, and whether scratch is converged."""
        from ..experiments import convergence

        if len(self.choices):
            print(
                "settings tried, on validation structures of seeds that are not reported: score is "
                "the mean log validation loss"
            )
            print(self.choices.to_string(index=False, float_format=lambda value: f"{value:.4g}"))
        for line in convergence.lines(self.convergence):
            print(line)

    def draw(self, figure: Path, title: str) -> list[Path]:
        """The curves against time as a figure beside ``figure``: NAME-time; nothing without."""
        from ..report import gallery, time_figures

        against = "step" if self.time_curves["operations"].isna().all() else "operations"
        try:
            chart = time_figures.time_curves(self.time_curves, against, title=title)
        except DataError:  # a grid on energies alone has logged no force errors
            chart = time_figures.time_curves(self.time_curves, against, "energy_mae", title)
        return gallery.draw(chart, beside(figure))


def beside(figure: Path) -> Path:
    """The name of the figure of curves against time."""
    return figure.with_stem(f"{figure.stem}-time")


def of(grid: Sequence[Experiment], runs: pd.DataFrame) -> Protocol:
    """The protocol's tables of a grid that was run."""
    import pandas as pd

    from ..experiments import convergence, search, statistics, time_curves
    from ..report import tables as report

    tries = pd.DataFrame(runs.attrs.get("tries", []))
    if len(tries):
        # of what is stored, rounded as it is, so that `verify` makes the same of it
        tries = report.as_stored(tries)
    return Protocol(
        search.of_tries(tries) if len(tries) else pd.DataFrame(),
        convergence.table(runs, by=statistics.grouping(runs)),
        time_curves.of_experiments(grid, runs),
        tries,
    )


def store_structures(
    grid: Sequence[Experiment],
    runs: pd.DataFrame,
    groups: Sequence[Mapping[str, Sequence[str]]],
    name: str,
    command: str,
    out: Path,
) -> None:
    """NAME-test-errors.csv, and what follows from it: NAME-test.csv and NAME-breakdown.csv. Says
    so, and stores none, where a run's errors structure by structure are not to be had any more.
    """
    from ..experiments import structure_errors
    from ..report import tables as report

    try:
        errors = structure_errors.of_experiments(grid, runs, structure_errors.MOST, groups=groups)
    except CheckpointError as error:
        print(f"no errors structure by structure: {error}", file=sys.stderr)
        return
    # what follows is made of what was stored, rounded as it is
    errors = report.as_stored(errors)
    derived = structure_errors.summarise(errors), structure_errors.breakdowns(errors)
    for ending, table in zip(STRUCTURES, (errors, *derived), strict=True):
        report.store(table, f"{name}-{ending}", command, out)
