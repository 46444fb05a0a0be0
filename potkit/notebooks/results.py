"""What a notebook's comparison leaves behind: its runs as tables, and pictures and sentences that
are made of these tables alone, so that `potkit verify` recomputes whatever the notebook shows.

    kept = notebooks.keep_runs(run, experiments, runs, "noise-scale", "02_noise_scale")
    kept.chart("changes", "02_noise_scale", title="…")
    kept.say("verdicts")

Stored are NAME-runs, NAME (`statistics.summarise`), NAME-effects, NAME-baselines, NAME-convergence
(where scratch was trained for twice the steps, too), NAME-test-errors (the errors of each test
structure) and NAME-test, in data/results where the figures go to figures/
(`potkit run --inplace`), else beside the figures. `keep_ensembles` stores what the members of
ensembles over seeds say (NAME-predictions), how well they tell their errors (NAME-ensembles), and
how that differs between arms (NAME-contrasts). `keep_simulations` stores what became of the
copies that networks moved (NAME-simulations), how well they ran (NAME-measures), and how that
differs between arms (NAME-changes). `study` shows what a long comparison stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from ..errors import ConfigError
from ..experiments import (
    baselines,
    calibration,
    convergence,
    simulations,
    statistics,
    structure_errors,
    time_curves,
)
from ..experiments import experiment as experiments
from ..experiments.choosing import Choice
from ..experiments.experiment import Experiment
from ..report import blocks, figures, stored_figures
from ..report import tables as report
from . import runner

UNTOLD = (
    "*Profile smoke: networks of a few steps, so there are no verdicts here; "
    "`quick` and `paper` have them.*"
)
NOT_LOOKED_AT = (
    "No arm without pretraining has twice the steps of scratch: whether scratch is converged was "
    "not looked at."
)


@dataclasses.dataclass(frozen=True)
class Kept:
    """The stored comparison ``name`` in ``folder``, as `keep_runs` wrote it for ``profile``."""

    name: str
    folder: Path
    profile: str

    def table(self, ending: str = "") -> pd.DataFrame:
        """A stored table: the summary, or that with ``ending`` ("-runs", "-effects", "-test")."""
        return report.stored(self.name + ending, self.folder)[0]

    def markdown(self, kind: str, ending: str = "") -> str:
        """The block ``kind`` (see `report.blocks.fill`) of the tables stored under this name;
        verdicts and choices have none in profile smoke.
        """
        if self.profile == "smoke" and kind in (
            "verdicts",
            "choice",
            "saved",
            "calibrated",
            "moved",
            "convergence",
        ):
            return UNTOLD
        if kind == "convergence" and not (self.folder / f"{self.name}-convergence.csv").is_file():
            return NOT_LOOKED_AT
        empty = f"<!-- {kind}: {self.name}{ending} -->\n<!-- end -->"
        return blocks.fill(empty, self.folder)

    def say(self, *kinds: str) -> None:
        """Show blocks in a notebook, one below the other."""
        from IPython.display import Markdown, display

        for kind in kinds:
            display(Markdown(self.markdown(kind)))

    def chart(self, kind: str, figure: str, **options: Any) -> None:
        """Draw a picture of the stored tables (see `report.stored_figures`), show it and save it as
        ``figure``.
        """
        figures.show(stored_figures.draw(kind, self.name, self.folder, **options), figure)


def study(name: str) -> Kept:
    """The comparison ``name`` in the checkout's data/results, as it is stored: it takes hours to
    make. Raises DataError where there is none.
    """
    folder = runner._root() / "data" / "results"
    report.stored(name, folder)
    return Kept(name, folder, "study")


def keep_runs(
    run: SimpleNamespace,
    grid: Experiment | Sequence[Experiment],
    runs: pd.DataFrame,
    name: str,
    notebook: str,
    contrasts: Sequence[tuple[str, str]] | None = None,
    primary: Mapping[str, str] | None = None,
    block: Mapping[str, int] | None = None,
    tidy: Callable[[pd.DataFrame], pd.DataFrame] | None = None,
    over_time: bool = False,
) -> Kept:
    """Store finished ``runs`` of ``grid`` (of `experiments.run`) and all that follows from them
    under ``name``.

    ``run``: the notebook's settings. ``contrasts``: the (arm, baseline) pairs that are asked about
    (default: every arm against scratch and scratch-longer), and ``primary`` the one declared before
    the runs; see `statistics.effects`. ``block``: see `structure_errors.of_experiments`. ``tidy``
    is applied to each table, to name arms and columns as the notebook does. ``over_time``: store
    the validation errors while the runs trained, too. Raises ConfigError for a contrast between
    arms that there are not, and as `report.store` does.
    """
    several = [grid] if isinstance(grid, Experiment) else list(grid)
    tidy = tidy or (lambda table: table)
    told = tidy(runs)
    for column in ("pretrain_seed", "label_draw"):
        if column in runs and column not in told:
            raise ConfigError(f"tidying lost the column {column!r} of the runs")
    known = set(told["arm"])
    for pair in contrasts or ():
        if strange := set(pair) - known:
            raise ConfigError(f"contrast: no arm {min(strange)!r}; there are {', '.join(known)}")
    declared = primary or runs.attrs.get("primary")
    told.attrs = {}
    if declared:
        told.attrs["primary"] = dict(declared)
    if contrasts:
        told.attrs["contrasts"] = list(contrasts)
    trivial, drawn = _trivial(several, tidy)
    errors = tidy(structure_errors.of_experiments(several, runs, structure_errors.MOST, block))
    folder = runner.results_folder(run.profile)
    command = runner.command(notebook, run.profile)

    def store(table: pd.DataFrame, ending: str, **notes: Any) -> None:
        report.store(table, f"{name}{ending}", command, folder, **notes)

    store(told, "-runs")
    # what follows is made of what was stored: six digits, as `verify` reads them
    again = report.stored(f"{name}-runs", folder)[0]
    again.attrs = dict(told.attrs)
    by = statistics.grouping(again)
    summary = statistics.summarise(again, statistics.METRICS, by=by)
    if len(trivial):
        store(trivial, "-baselines", drawn=drawn)
        summary = baselines.mark(summary, report.stored(f"{name}-baselines", folder)[0])
    notes: dict[str, Any] = {"leakage": runs.attrs.get("leakage", [])}
    if declared:
        notes["primary"] = dict(declared)
    if contrasts:
        notes["contrasts"] = [list(pair) for pair in contrasts]
    store(summary, "", **notes)
    effects = statistics.effects(again)
    if len(effects):
        store(effects, "-effects")
    checked = convergence.table(again)
    if len(checked):  # scratch with twice the steps or more is among the arms
        store(checked, "-convergence")
    if over_time:
        store(tidy(time_curves.of_experiments(several, runs)), "-time-curves")
    store(errors, "-test-errors")
    # of what was stored, rounded as it is
    errors = report.stored(f"{name}-test-errors", folder)[0]
    store(structure_errors.summarise(errors), "-test")
    store(structure_errors.breakdowns(errors), "-breakdown")
    return Kept(name, folder, run.profile)


def _trivial(
    several: Sequence[Experiment], tidy: Callable[[pd.DataFrame], pd.DataFrame]
) -> tuple[pd.DataFrame, list[dict[str, Any]]]:
    """The baselines as the notebook names their columns, and the structures that they were made of
    (`baselines.drawn`) under the same names.
    """
    tables = [baselines.of_experiments([one]) for one in several]
    numbered = [table.assign(number=i) for i, table in enumerate(tables) if len(table)]
    if not numbered:
        return pd.DataFrame(), []
    table = tidy(pd.concat(numbered, ignore_index=True))
    drawn = baselines.drawn(several)
    names = list(table.columns[: list(table.columns).index("labels")])
    kept = []
    for number, part in table.groupby("number", sort=False) if drawn else ():
        kept.append(drawn[number] | {"columns": part[names].iloc[0].to_dict()})
    return table.drop(columns="number"), kept


def keep_ensembles(
    run: SimpleNamespace,
    grid: Experiment | Sequence[Experiment],
    runs: pd.DataFrame,
    name: str,
    notebook: str,
    primary: Mapping[str, str] | None = None,
) -> Kept:
    """Store what the ensembles over seeds of finished ``runs`` of ``grid`` say of the test sets,
    and how well they tell their own errors, under ``name``.

    ``primary``: the contrast declared before the runs; see `calibration.contrasts`. Raises
    ConfigError where it names an arm that there is not, and as `report.store` does.
    """
    several = [grid] if isinstance(grid, Experiment) else list(grid)
    notes = _declared(primary, runs)
    folder = runner.results_folder(run.profile)
    command = runner.command(notebook, run.profile)
    table = calibration.predictions(several, runs, calibration.MOST)
    report.store(table, f"{name}-predictions", command, folder, runs=list(runs["run"]), **notes)
    # what follows is made of what was stored, rounded as it is
    again = report.stored(f"{name}-predictions", folder)[0]
    again.attrs = notes
    report.store(calibration.summarise(again), f"{name}-ensembles", command, folder)
    report.store(calibration.contrasts(again), f"{name}-contrasts", command, folder)
    return Kept(name, folder, run.profile)


def _declared(primary: Mapping[str, str] | None, runs: pd.DataFrame) -> dict[str, Any]:
    """The contrast declared before ``runs``, as a note to what is stored of them. Raises
    ConfigError where it names an arm that there is not.
    """
    if not primary:
        return {}
    known = dict.fromkeys(runs["arm"])
    if strange := {primary["arm"], primary["against"]} - set(known):
        raise ConfigError(f"contrast: no arm {min(strange)!r}; there are {', '.join(known)}")
    return {"primary": dict(primary)}


def keep_simulations(
    run: SimpleNamespace,
    grid: Sequence[Experiment],
    runs: pd.DataFrame,
    cases: Sequence[simulations.Case],
    name: str,
    notebook: str,
    primary: Mapping[str, str] | None = None,
) -> Kept:
    """Let the networks of finished ``runs`` of ``grid`` move the ``cases``, one for each
    experiment, and store what became of them under ``name``.

    ``primary``: the contrast declared before the runs; see `simulations.effects`. Raises
    ConfigError where it names an arm that there is not, and as `simulations.trajectories` and
    `report.store` do.
    """
    notes = _declared(primary, runs)
    folder = runner.results_folder(run.profile)
    command = runner.command(notebook, run.profile)
    table = simulations.trajectories(grid, runs, cases, run.jobs)
    report.store(table, f"{name}-simulations", command, folder, runs=list(runs["run"]), **notes)
    # what follows is made of what was stored, rounded as it is
    again = report.stored(f"{name}-simulations", folder)[0]
    again.attrs = notes
    report.store(simulations.summarise(again), f"{name}-measures", command, folder)
    report.store(simulations.effects(again), f"{name}-changes", command, folder)
    return Kept(name, folder, run.profile)


def keep_choice(
    run: SimpleNamespace, choice: Choice, runs: pd.DataFrame, name: str, notebook: str
) -> Kept:
    """Store the runs on validation molecules that made a ``choice`` (`profiles.choose`), with their
    summary.
    """
    folder = runner.results_folder(run.profile)
    command = runner.command(notebook, run.profile)
    report.store(runs, f"{name}-runs", command, folder)
    again = report.stored(f"{name}-runs", folder)[0]
    size = f"{choice.structures} structures of {choice.molecules} systems"
    report.store(experiments.compare(again), name, command, folder, validation=size)
    return Kept(name, folder, run.profile)
