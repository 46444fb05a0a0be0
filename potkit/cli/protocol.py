"""What `potkit compare` prints and stores of a grid's protocol: what the search chose, whether the
baseline is converged, error against time.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..errors import DataError

if TYPE_CHECKING:
    import pandas as pd

    from ..experiments.experiment import Experiment

PARTS = ("choices", "convergence", "time-curves")


class Protocol(NamedTuple):
    """Tables that stand beside a comparison; empty ones where an experiment does not ask."""

    choices: pd.DataFrame
    convergence: pd.DataFrame
    time_curves: pd.DataFrame

    def store(self, name: str, command: str, out: Path) -> None:
        """NAME-choices.csv, NAME-convergence.csv and NAME-time-curves.csv, of those there are."""
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

    from ..experiments import convergence, statistics, time_curves

    return Protocol(
        pd.DataFrame(runs.attrs.get("choices", [])),
        convergence.table(runs, by=statistics.grouping(runs)),
        time_curves.of_experiments(grid, runs),
    )
