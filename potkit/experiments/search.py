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
from collections.abc import Iterator, Sequence
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
        numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
        if not numbers or min(values) <= 0:
            raise ConfigError(
                f"experiment: search_beyond needs positive numbers to go beyond; search {key} has "
                f"{', '.join(map(str, values))}"
            )


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
    if best not in (min(tried), max(tried)):
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
            tried = []
            beyond = [
                t.choice
                for t, _ in of_experiment
                if (t.kind, t.arm, t.labels) == ("finetune", arm, labels)
            ]
            for choice in dict.fromkeys([*values(e, arm), *beyond]):
                ended = [
                    r
                    for t, r in of_experiment
                    if (t.kind, t.arm, t.labels, t.choice) == ("finetune", arm, labels, choice)
                ]
                logs = [np.log(r["best"]) for r in ended if r["status"] == "ok"]
                whole = len(logs) == len(e.tuning_seeds)
                score = float(np.mean(logs)) if whole else float("inf")
                spread = float(np.std(logs, ddof=1)) if whole and len(logs) > 1 else float("nan")
                tried.append((score, spread, len(logs), choice, ended))
            # of all tuning seeds together: what the choice rests on
            judges = sum(len(e.labelled(labels, seed)[1]) for seed in e.tuning_seeds)
            best = min(range(len(tried)), key=lambda k: tried[k][0])
            if not np.isfinite(tried[best][0]):
                error = next((r["error"] for *_, rs in tried for r in rs if r["error"]), "")
                raise TrainingError(f"search for {arm}: every value failed; the first: {error}")
            for k, (score, spread, seeds, choice, _) in enumerate(tried):
                rows.append(
                    {
                        **e.columns,
                        "experiment": i,
                        "arm": arm,
                        "labels": labels,
                        **dict(choice),
                        "choice": choice,
                        "score": score,
                        "score_sd": spread,
                        "seeds": seeds,
                        "valid_structures": judges,
                        "chosen": k == best,
                        "at_edge": k == best and _at_edge(choice, [c for *_, c, _ in tried]),
                    }
                )
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
        tried = []
        for choice, runs in part.groupby(settings, sort=False, dropna=False):
            good = runs[runs["status"] == "ok"]
            logs = np.log(good["best"].to_numpy(np.float64))
            whole = len(good) == len(runs)
            named = tuple((k, v) for k, v in zip(settings, choice, strict=True) if pd.notna(v))
            tried.append(
                {
                    **dict(named),
                    "score": float(logs.mean()) if whole else float("inf"),
                    "score_sd": float(logs.std(ddof=1)) if whole and len(logs) > 1 else np.nan,
                    "seeds": len(good),
                    "valid_structures": int(runs["valid_structures"].sum()),
                    "choice": named,
                }
            )
        best = min(range(len(tried)), key=lambda k: tried[k]["score"])
        choices = [row.pop("choice") for row in tried]
        edge = _at_edge(choices[best], choices)
        for k, row in enumerate(tried):
            ends = {"chosen": k == best, "at_edge": k == best and edge}
            rows.append(dict(zip(group, key, strict=True)) | row | ends)
    return pd.DataFrame(rows)


def _at_edge(best: Choice, tried: Sequence[Choice]) -> bool:
    """Whether a setting's best value is the smallest or largest of those ``tried``."""
    for key, value in best:
        of_key = [dict(choice)[key] for choice in tried]
        if value in (min(of_key), max(of_key)):
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
    settings = [c for c in scores.columns if c in MAY_SEARCH]
    for row in scores[scores["chosen"]].to_dict("records") if len(scores) else ():
        choice = in_words(tuple((k, row[k]) for k in settings if row[k] == row[k]))
        edge = " (at the edge of what was tried)" if row["at_edge"] else ""
        texts.append(f"{row['arm']}, {row['labels']} labels: {choice or 'nothing to choose'}{edge}")
    return texts
