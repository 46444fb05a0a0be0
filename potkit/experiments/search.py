"""The search of the protocol: every arm's rate (or other settings) chosen by the same small search,
on validation structures of seeds that are not reported.

    search: {lr: [3.0e-4, 1.0e-3, 3.0e-3]}     all combinations, where several settings are named
    tuning_seeds: [100, 101]                   pretraining, labels and heads of their own
    search_at: 50                              the label budget to search at; default: each
    search_beyond: 2                           values tried beyond either end, where the best is one

For each arm, scratch and scratch-longer included, each value is tried on each tuning seed. A try's
score is the logarithm of its best validation loss; the lowest mean over the tuning seeds is chosen,
and the reported seeds run with it. Test structures are not evaluated at all.

While an arm's best value of a setting is the smallest or largest that was tried, the search goes on
beyond it, at the ratio of the two values at that end, until the best has a worse one on both sides
or ``search_beyond`` values were added there. Every arm goes on by the same rule.

A budget of 10 labels has one or two validation structures: too few to choose by. What counts is
their number over all tuning seeds, so such budgets want more tuning seeds or ``search_at`` a larger
budget; ``valid_min`` sets the fewest validation structures of a budget (they count as labels).
"""

from __future__ import annotations

import itertools
import numbers
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import ConfigError, TrainingError
from .arms import LONGER, MAY_CHANGE
from .tasks import Task, in_words

if TYPE_CHECKING:
    from .experiment import Experiment

Choice = tuple[tuple[str, Any], ...]
# (experiment, arm, label budget) -> what was chosen
Choices = dict[tuple[int, str, int], Choice]
MAY_SEARCH = (*MAY_CHANGE, "steps")


def check(experiment: Experiment) -> None:
    """Raise ConfigError for a search that cannot be done or would not be fair."""
    if bool(experiment.search) != bool(experiment.tuning_seeds):
        raise ConfigError("experiment: search and tuning_seeds go together: give both or neither")
    for key, values in experiment.search.items():
        if key not in MAY_SEARCH:
            raise ConfigError(f"experiment: search {key!r} is none of {', '.join(MAY_SEARCH)}")
        if isinstance(values, str) or not isinstance(values, Sequence) or len(values) < 2:
            raise ConfigError(f"experiment: search {key}: give two or more values")
        for value in values:
            try:
                experiment.finetune_config.replace(**{key: value})
            except ConfigError as error:
                raise ConfigError(f"experiment: search: {error}") from None
        if len(set(values)) < len(values):
            raise ConfigError(f"experiment: search {key} has a value twice")
    _check_beyond(experiment)
    if "steps" in experiment.search and experiment.finetune_config.epochs is not None:
        raise ConfigError("experiment: search steps, or give epochs to all arms: not both")
    if experiment.search and experiment.objectives and experiment.longer == "time":
        raise ConfigError(
            "experiment: with a search scratch-longer is counted in operations or steps "
            "(longer: operations), for seconds differ from one call to the next"
        )
    both = set(experiment.tuning_seeds) & set(experiment.seeds)
    if both:
        raise ConfigError(
            f"experiment: seed {min(both)} is a tuning seed and a reported one: what is reported "
            "must not have chosen anything"
        )
    if experiment.search_at is not None and experiment.search_at not in experiment.labels:
        raise ConfigError(
            f"experiment: search_at {experiment.search_at} is none of the label budgets "
            f"{', '.join(map(str, experiment.labels))}"
        )


def _check_beyond(experiment: Experiment) -> None:
    if experiment.search_beyond < 0:
        raise ConfigError(
            f"experiment: search_beyond must be 0 or more, got {experiment.search_beyond}"
        )
    if not experiment.search_beyond:
        return
    for key, values in experiment.search.items():
        if not _ordered(values) or min(values) <= 0:
            raise ConfigError(
                f"experiment: search_beyond needs positive numbers to go beyond; search {key} has "
                f"{', '.join(map(str, values))}"
            )


def _ordered(values: Iterable[Any]) -> bool:
    """Whether ``values`` are all numbers, of which one is the smallest: a schedule is a word, and
    clip may be None.
    """
    return all(isinstance(v, numbers.Real) and not isinstance(v, bool) for v in values)


def values(experiment: Experiment, arm: str) -> list[Choice]:
    """What is tried for ``arm``: all combinations of the search, but for settings that the arm
    itself fixes.
    """
    fixed = experiment.arms[arm].finetune if arm in experiment.arms else {}
    keys = [key for key in experiment.search if key not in fixed]
    if arm == LONGER:  # its steps follow from what pretraining costs
        keys = [key for key in keys if key != "steps"]
    return [
        tuple(zip(keys, combination, strict=True))
        for combination in itertools.product(*(experiment.search[key] for key in keys))
    ]


def pretrainings(grid: Sequence[Experiment]) -> Iterator[Task]:
    """The pretrainings that the search starts from."""
    for i, e in enumerate(grid):
        for arm in e.objectives if e.search else ():
            for seed in e.tuning_seeds:
                yield Task("pretrain", arm, seed, experiment=i, tuning=True)


def tries(
    grid: Sequence[Experiment], arms: Sequence[str] | None = None, steps: dict | None = None
) -> Iterator[Task]:
    """The fine-tunings of the search, of ``arms`` (default: all but scratch-longer).

    ``steps``: of scratch-longer, by experiment and label budget.
    """
    for i, e in enumerate(grid):
        if not e.search:
            continue
        for arm in e.arms if arms is None else arms:
            for count in budgets(e):
                n = steps.get((i, count)) if steps else None
                for choice in values(e, arm):
                    for seed in e.tuning_seeds:
                        yield Task("finetune", arm, seed, count, n, i, 0, choice, True)


def further(
    grid: Sequence[Experiment], scores: pd.DataFrame, steps: dict | None = None
) -> list[Task]:
    """The tries that come next, beyond what `table` has; [] where the search has ended.

    ``steps``: of scratch-longer, by experiment and label budget.
    """
    tasks = []
    for row in scores[scores["chosen"]].to_dict("records") if len(scores) else ():
        e = grid[row["experiment"]]
        arm, labels = row["arm"], row["labels"]
        same = scores["experiment"].eq(row["experiment"])
        same &= scores["arm"].eq(arm) & scores["labels"].eq(labels)
        tried = [dict(choice) for choice in scores.loc[same, "choice"]]
        n = steps.get((row["experiment"], labels)) if steps and arm == LONGER else None
        best = dict(row["choice"])
        for key, value in best.items():
            beyond = _beyond(e, key, value, {choice[key] for choice in tried})
            if beyond is None or best | {key: beyond} in tried:
                continue
            choice = tuple((best | {key: beyond}).items())
            for seed in e.tuning_seeds:
                task = Task("finetune", arm, seed, labels, n, row["experiment"], 0, choice, True)
                tasks.append(task)
    return tasks


def _beyond(experiment: Experiment, key: str, best: Any, tried: set[Any]) -> Any:
    """The value of ``key`` to try next; None where the best lies inside, or enough were tried."""
    if not experiment.search_beyond or best not in (min(tried), max(tried)):
        return None
    # from the best outwards: the first two give the ratio
    outwards = sorted(tried, reverse=best == min(tried))[-2:]
    given = experiment.search[key]
    added = sum(v > max(given) if best == max(tried) else v < min(given) for v in tried)
    if added >= experiment.search_beyond:
        return None
    value = outwards[1] ** 2 / outwards[0]
    if all(isinstance(v, int) for v in given):
        whole = round(value)
        return whole if whole >= 1 and whole not in tried else None
    return float(f"{value:.6g}")  # 0.004, not 0.004000000000000001


def budgets(experiment: Experiment) -> list[int]:
    """The label budgets at which is searched."""
    at = experiment.search_at
    return list(experiment.labels) if at is None else [at]


def table(grid: Sequence[Experiment], done: dict[Task, dict[str, Any]]) -> pd.DataFrame:
    """A row per experiment, arm, budget and tried value: ``choice``, ``score`` (mean over the
    tuning seeds of log(best validation loss)), ``score_sd`` over them, ``seeds`` that ended well,
    ``valid_structures`` of all tuning seeds together, ``chosen``.

    ``at_edge``: the chosen value of a setting is the smallest or largest that was tried, so a wider
    search might choose another. Raises TrainingError where every value of an arm failed.
    """
    rows = []
    for i, e in enumerate(grid):
        of_experiment = [(t, r) for t, r in done.items() if t.tuning and t.experiment == i]
        cells = dict.fromkeys((t.arm, t.labels) for t, _ in of_experiment if t.kind == "finetune")
        for arm, labels in cells:
            logs: dict[Choice, list[float]] = {choice: [] for choice in values(e, arm)}
            for t, r in of_experiment:
                if (t.kind, t.arm, t.labels) == ("finetune", arm, labels):
                    of_choice = logs.setdefault(t.choice, [])
                    of_choice += [np.log(r["best"])] if r["status"] == "ok" else []
            scored = _scored(logs, len(e.tuning_seeds))
            if not any(np.isfinite(row["score"]) for row in scored):
                said = (r["error"] for t, r in of_experiment if (t.arm, t.labels) == (arm, labels))
                error = next((text for text in said if text), "")
                raise TrainingError(f"search for {arm}: every value failed; the first: {error}")
            # of all tuning seeds together: what the choice rests on
            judges = sum(len(e.labelled(labels, seed)[1]) for seed in e.tuning_seeds)
            about = {**e.columns, "experiment": i, "arm": arm, "labels": labels}
            for choice, row in zip(logs, scored, strict=True):
                ends = {key: row.pop(key) for key in ("chosen", "at_edge")}
                known = {**dict(choice), "choice": choice, **row, "valid_structures": judges}
                rows.append(about | known | ends)
    return pd.DataFrame(rows)


def tries_table(grid: Sequence[Experiment], done: dict[Task, dict[str, Any]]) -> pd.DataFrame:
    """A row per run of the search: the experiment's columns, arm, labels, the settings tried, seed,
    ``best`` (validation loss), ``valid_structures`` it was scored on, status, run.
    """
    rows = []
    for task, row in done.items():
        if not (task.tuning and task.kind == "finetune"):
            continue
        e = grid[task.experiment]
        rows.append(
            {
                **e.columns,
                "arm": task.arm,
                "labels": task.labels,
                **dict(task.choice),
                "seed": task.seed,
                "best": row.get("best", float("nan")),
                "valid_structures": len(e.labelled(task.labels, task.seed)[1]),
                "status": row["status"],
                "run": row.get("run", ""),
            }
        )
    return pd.DataFrame(rows)


def of_tries(tries: pd.DataFrame) -> pd.DataFrame:
    """What follows from a table of `tries_table`: that of `table`, without its columns experiment
    and choice.
    """
    columns = list(tries.columns)
    group = columns[: columns.index("labels") + 1]
    settings = columns[columns.index("labels") + 1 : columns.index("seed")]
    rows = []
    for key, part in tries.groupby(group, sort=False):
        logs: dict[Choice, list[float]] = {}
        judges = []
        for values_tried, runs in part.groupby(settings, sort=False, dropna=False):
            pairs = zip(settings, values_tried, strict=True)
            choice = tuple((name, value) for name, value in pairs if pd.notna(value))
            good = runs.loc[runs["status"] == "ok", "best"]
            logs[choice] = list(np.log(good.to_numpy(np.float64)))
            judges.append(int(runs["valid_structures"].sum()))
        seeds = part["seed"].nunique()
        for choice, row, structures in zip(logs, _scored(logs, seeds), judges, strict=True):
            ends = {name: row.pop(name) for name in ("chosen", "at_edge")}
            known = {**dict(choice), **row, "valid_structures": structures}
            rows.append(dict(zip(group, key, strict=True)) | known | ends)
    return pd.DataFrame(rows)


def _scored(logs: Mapping[Choice, Sequence[float]], seeds: int) -> list[dict[str, Any]]:
    """Of each choice score, score_sd, seeds, chosen and at_edge (see `table`), from the logarithms
    of its best validation losses; a choice that did not end well with all ``seeds`` has none.
    """
    rows = []
    for known in logs.values():
        whole = len(known) == seeds
        score = float(np.mean(known)) if whole else float("inf")
        spread = float(np.std(known, ddof=1)) if whole and seeds > 1 else float("nan")
        rows.append({"score": score, "score_sd": spread, "seeds": len(known)})
    best = min(range(len(rows)), key=lambda k: rows[k]["score"])
    choices = list(logs)
    edge = _at_edge(choices[best], choices)
    ends = ({"chosen": k == best, "at_edge": k == best and edge} for k in range(len(rows)))
    return [row | end for row, end in zip(rows, ends, strict=True)]


def _at_edge(best: Choice, tried: Sequence[Choice]) -> bool:
    """Whether a setting's best value is the smallest or largest of those ``tried``; of settings
    that are not all numbers there is none.
    """
    for key, value in best:
        of_key = [dict(choice).get(key) for choice in tried]
        if _ordered(of_key) and value in (min(of_key), max(of_key)):
            return True
    return False


def chosen(grid: Sequence[Experiment], scores: pd.DataFrame) -> Choices:
    """What each arm runs with at each label budget."""
    found: Choices = {}
    for row in scores[scores["chosen"]].to_dict("records") if len(scores) else ():
        e = grid[row["experiment"]]
        for labels in e.labels if e.search_at is not None else [row["labels"]]:
            found[row["experiment"], row["arm"], labels] = row["choice"]
    return found


def lines(scores: pd.DataFrame) -> list[str]:
    """One line per choice, for the terminal; choices at the edge of what was tried are named."""
    texts = []
    for row in scores[scores["chosen"]].to_dict("records") if len(scores) else ():
        choice = in_words(row["choice"])
        edge = " (at the edge of what was tried)" if row["at_edge"] else ""
        texts.append(f"{row['arm']}, {row['labels']} labels: {choice or 'nothing to choose'}{edge}")
    return texts
