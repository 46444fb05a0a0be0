"""Means over seeds with honest intervals, learning curves, and what pretraining saves in labels.

Intervals are Student's t at 95 % over seeds: with 3 seeds the factor is 4.3, not 1.96. The
bootstrap is there for six seeds and more; of fewer it knows no more than their range. Errors are
averaged as logarithms (geometric means), because their logarithms are what is near to normal, and
because a ratio of geometric means is the mean ratio. Relative changes are paired: the two arms of
one seed share their labelled structures and initial heads. That narrows the interval of energies
(less so of forces, whose arms are hardly correlated) and is right in any case.

The unit of every interval is a pretraining. Where several draws of labels are nested in each
(columns "pretrain_seed" and "label_draw" of `experiments.run`), their logarithms are averaged
first, and t goes over pretrainings. `tests/test_coverage.py` holds every interval to what it says
on data with a known truth.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ..errors import ConfigError
from . import planning
from .arms import DOUBLED, LONGER, SCRATCH
from .labels_saved import bounded, needs_in_words, needs_interval, saved_in_words
from .planning import enough

__all__ = [
    "METRICS",
    "astray",
    "by_seed",
    "change",
    "effects",
    "enough",
    "grouping",
    "holm",
    "interval",
    "labels_saved",
    "learning_curves",
    "log_ratios",
    "metric_of",
    "needs_in_words",
    "over_budgets",
    "p_value",
    "run_counts",
    "saved_in_words",
    "summarise",
    "typical",
    "verdict",
]
METRICS = ("energy_mae", "energy_rmse", "forces_mae", "forces_rmse")
DRAWS = 10_000


def check_method(method: str, seeds: int | None = None) -> None:
    """Raise ConfigError for a ``method`` of which `interval` knows nothing, or one that gives no
    interval of so few ``seeds``.
    """
    if method not in ("t", "bootstrap"):
        raise ConfigError(f"method of an interval must be 't' or 'bootstrap', got {method!r}")
    if method == "bootstrap" and seeds is not None and seeds < planning.FEWEST:
        raise ConfigError(
            f"intervals by bootstrap need {planning.FEWEST} seeds or more with all their runs, "
            f"got {seeds}: take those by t"
        )


def interval(
    values: Sequence[float], confidence: float = 0.95, method: str = "t"
) -> tuple[float, float, float]:
    """Mean and interval (low, high) of the mean by ``method`` "t" or "bootstrap".

    The bootstrap's ends are percentiles further out than the nominal ones, by what t and n − 1 ask
    for (Hesterberg 2015, doi 10.1080/00031305.2015.1089789, expanded percentiles). The bounds are
    NaN for fewer than two values, of the bootstrap for fewer than `FEWEST`, whose range covers too
    little. Raises ConfigError for an unknown method.
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean()) if len(values) else float("nan")
    check_method(method)
    n = len(values)
    if n < (planning.FEWEST if method == "bootstrap" else 2):
        return mean, float("nan"), float("nan")
    factor = float(stats.t.ppf(0.5 + confidence / 2, n - 1))
    if method == "bootstrap":
        tail = stats.norm.cdf(-np.sqrt(n / (n - 1)) * factor)
        low, high = np.quantile(values[_resamples(n)].mean(1), [tail, 1 - tail])
        return mean, float(low), float(high)
    half = factor * float(values.std(ddof=1) / np.sqrt(n))
    return mean, mean - half, mean + half


def _resamples(n: int, draws: int = DRAWS) -> np.ndarray:
    """[draws, n] seeds drawn with replacement, the same at every call."""
    return np.random.default_rng(0).integers(0, n, (draws, n))


def grouping(table: pd.DataFrame) -> list[str]:
    """What tells experiments apart in a table of `experiments.run` or of `summarise`.

    That is the columns before "arm", and the label budget.
    """
    before = list(table.columns[: list(table.columns).index("arm")]) if "arm" in table else []
    budget = ["labels"] if "labels" in table else []
    return table.attrs.get("by") or [*(c for c in before if c != "labels"), *budget]


def metric_of(runs: pd.DataFrame) -> str:
    """The metric a comparison is about: forces, or energies where no finished run has a force
    error.
    """
    good = runs[runs["status"] == "ok"] if "status" in runs else runs
    nothing = "forces_mae" not in good or good["forces_mae"].isna().all()
    return "energy_mae" if nothing else "forces_mae"


def with_budgets(runs: pd.DataFrame, least: int) -> pd.DataFrame:
    """Of ``runs`` those of experiments in which runs with ``least`` label budgets or more ended
    well.
    """
    by = [b for b in grouping(runs) if b != "labels"]
    labels = runs["labels"].where(runs["status"] == "ok") if "status" in runs else runs["labels"]
    if not by:
        return runs if labels.nunique() >= least else runs.iloc[:0]
    budgets = labels.groupby([runs[name] for name in by], observed=True).transform("nunique")
    return runs[budgets >= least]


# -- pretrainings and the draws nested in them ---------------------------------------------------
UNIT, DRAW = "pretrain_seed", "label_draw"


def nested(runs: pd.DataFrame) -> pd.DataFrame:
    """Finished ``runs`` with the columns pretrain_seed and label_draw; tables without them have one
    draw for each seed.
    """
    good = runs[runs["status"] == "ok"] if "status" in runs else runs
    missing = {} if UNIT in good else {UNIT: good["seed"]}
    missing |= {} if DRAW in good else {DRAW: 0}
    return good.assign(**missing)


def _by_unit(table: pd.DataFrame | pd.Series) -> Any:
    """The mean over label draws for each pretraining of ``table``, whose index holds both."""
    return table.groupby(level=UNIT, sort=False).mean()


# -- label budget by label budget ----------------------------------------------------------------
def summarise(
    runs: pd.DataFrame,
    metrics: Sequence[str] = METRICS,
    baseline: str = "scratch",
    by: Sequence[str] = ("labels",),
    method: str = "t",
) -> pd.DataFrame:
    """A row per group, arm and metric: seeds, mean, low, high, and the paired change against
    ``baseline`` in %.

    ``runs`` has columns arm, seed, ``by`` and the metrics, and may have pretrain_seed and
    label_draw. ``mean`` is the geometric mean of the errors over seeds; its interval and that of
    the change, log(error / baseline error), come from logarithms and are turned back, so that
    halving and doubling weigh alike and no interval reaches below 0. ``seeds`` counts pretrainings.
    ``effect`` is "better" or "worse" where the interval of the change leaves out 0, else "unclear"
    (one comparison alone: see `effects` for verdicts on many); ``better_seeds`` counts the seeds
    whose error fell. Failed runs are left out and their number stands in ``failed``; where a
    metric is NaN, the seed does not count in that row. ``method``: see `interval`.
    """
    rows = []
    by = list(by)
    # an index that repeats (tables put together) would mix the runs of several experiments
    runs = runs.reset_index(drop=True)
    good = nested(runs)
    for group, part in runs.groupby(by, sort=False, observed=True):
        part_ok = good.loc[good.index.intersection(part.index)]
        base = part_ok[part_ok["arm"] == baseline].set_index([UNIT, DRAW])
        for arm in part["arm"].unique():
            of_arm = part_ok[part_ok["arm"] == arm].set_index([UNIT, DRAW])
            for metric in metrics:
                if metric not in of_arm or of_arm[metric].isna().all():
                    continue
                logs = _by_unit(np.log(of_arm[metric])).dropna()
                mean, low, high = np.exp(interval(logs, method=method))
                row = dict(zip(by, group, strict=True))
                row |= {"arm": arm, "metric": metric, "seeds": len(logs)}
                row |= {"mean": mean, "low": low, "high": high}
                row["failed"] = int((part["arm"] == arm).sum() - len(of_arm))
                if arm != baseline:
                    both = of_arm.index.intersection(base.index)
                    ratios = np.log(of_arm.loc[both, metric] / base.loc[both, metric])
                    ratios = _by_unit(ratios).dropna().to_numpy()
                    row |= change(ratios, method)
                    row["better_seeds"] = int((ratios < 0).sum())
                before = of_arm.get("pretrain_seconds", pd.Series([0.0]))
                row["seconds"] = float(of_arm["seconds"].mean() + before.mean())
                rows.append(row)
    table = pd.DataFrame(rows)
    table.attrs["by"] = by
    return table


def by_seed(
    runs: pd.DataFrame, metric: str, baseline: str = "scratch", by: Sequence[str] | None = None
) -> pd.DataFrame:
    """What the means of `summarise` are means of: a row per group, arm and pretraining with seed,
    error (that of its draws, a geometric mean; eV or eV/Å) and change_% against ``baseline`` (NaN
    where that has no such run).
    """
    by = grouping(runs) if by is None else list(by)
    rows = []
    for group, part in nested(runs).groupby(by, sort=False, observed=True):
        about = dict(zip(by, group, strict=True))
        logs = np.log(part.set_index(["arm", UNIT, DRAW])[metric]).dropna()
        arms = [arm for arm in part["arm"].unique() if arm in logs.index]
        base = logs.loc[baseline] if baseline in arms else logs.iloc[:0].droplevel(0)
        for arm in arms:
            errors = _by_unit(logs.loc[arm])
            changes = _by_unit((logs.loc[arm] - base).dropna())
            for seed, error in errors.items():
                change = 100 * np.expm1(changes.get(seed, np.nan))
                row = {"arm": arm, "seed": seed, "error": np.exp(error), "change_%": change}
                rows.append(about | row)
    return pd.DataFrame(rows)


FAR = 3.0  # times the median of its arm: an error that spoils a mean
JUDGES = 3  # runs of an arm and group, from which on a median tells one of them from the others


def astray(runs: pd.DataFrame, metrics: Sequence[str] = METRICS) -> pd.DataFrame:
    """Runs that ended, but badly: an error of more than `FAR` times the median of the same arm and
    group. Columns: those of the group, arm, seed, label_draw (where a pretraining has several),
    error, metric, median (eV or eV/Å), times.

    Runs are taken one by one: a mean over label draws would hide a bad one. Of fewer than `JUDGES`
    none can be listed, since the median lies half way to each (see `run_counts`). A mean of
    logarithms bears such a run better than one of errors does, but it is drawn to it; the median is
    not. What is listed here is not left out of anything.
    """
    by = grouping(runs)
    good = nested(runs)
    draw = [DRAW] if good[DRAW].nunique() > 1 else []
    rows = []
    for metric in metrics:
        if metric not in good or good[metric].isna().all():
            continue
        known = good[good[metric].notna()]
        for group, part in known.groupby(by, sort=False, observed=True):
            about = dict(zip(by, group, strict=True))
            for arm in part["arm"].unique():
                of_arm = part[part["arm"] == arm]
                median = of_arm[metric].median()
                for run in of_arm[of_arm[metric] > FAR * median].to_dict("records"):
                    row = about | {"arm": arm, "seed": run[UNIT]}
                    row |= {name: run[name] for name in draw}
                    row |= {"error": run[metric], "metric": metric, "median": median}
                    rows.append(row | {"times": run[metric] / median})
    return pd.DataFrame(rows)


def run_counts(runs: pd.DataFrame) -> pd.DataFrame:
    """How many ``runs`` of each group and arm ended well. Columns: those of the group, arm, runs.

    Where there are fewer than `JUDGES`, `astray` can list nothing.
    """
    counts = nested(runs).groupby([*grouping(runs), "arm"], sort=False, observed=True).size()
    return counts.reset_index(name="runs")


# -- over all label budgets ----------------------------------------------------------------------
def effects(
    runs: pd.DataFrame,
    metrics: Sequence[str] = ("forces_mae", "energy_mae"),
    against: Sequence[str] = ("scratch", "scratch-longer"),
    by: Sequence[str] | None = None,
    method: str = "t",
    primary: Mapping[str, str] | None = None,
    contrasts: Collection[tuple[str, str]] | None = None,
) -> pd.DataFrame:
    """What each arm brings over all label budgets: a row per arm, metric and baseline of
    ``against`` that the table has.

    The change of a seed is the mean over budgets of log(error / baseline error); ``change_%`` and
    its interval come from these numbers, one per seed. The runs of one seed share pretraining and
    nested labels, so they are not independent: a seed counts once, however many budgets and label
    draws there are, and only where it has all budgets. ``effect`` as in `summarise`. The change
    against scratch-longer answers whether pretraining was worth its cost. ``by``: further columns
    that tell experiments apart (default: what before "arm").

    ``primary``: the one contrast that was declared before the runs, {"arm", "against", "metric"}
    (default: what `experiments.run` noted), which may compare two arms. ``family`` says "primary"
    or "others", and each is adjusted by Holm (1979) on its own: ``p`` is the paired t test's,
    ``p_holm`` adjusted, and ``verdict`` follows from it: "better", "worse" or "not told from 0
    (−15 to +13 %)". That interval is at the level Holm tests at, so it always holds 0. A table
    without a declared contrast is one family. Verdicts are by t, whatever ``method`` the intervals
    beside them have (`interval`).

    ``contrasts``: only these (arm, baseline), instead of every arm against every baseline (default:
    what the runs' attributes note). A variant is compared with its own control so, and a family has
    no questions that nobody asks. Of runs with given weights (`Experiment.weights`) a column
    ``weights`` says which: an arm's intervals are then over seeds of one and the same pretraining.
    """
    asked = runs.attrs.get("contrasts") if contrasts is None else contrasts
    primary = dict((runs.attrs.get("primary") if primary is None else primary) or {})
    general = list(against)  # baselines of every arm
    general_metrics = list(metrics)
    if asked:
        asked = {tuple(pair) for pair in asked}
        against = [*against, *sorted({b for _, b in asked} - set(against))]
    elif primary and primary["against"] not in (SCRATCH, LONGER, *general):
        against = [*against, primary["against"]]
    if primary:  # what was declared is answered, whatever else is asked
        metrics = [*metrics, *({primary["metric"]} - set(metrics))]
        if asked:
            asked.add((primary["arm"], primary["against"]))
            against = [*against, *({primary["against"]} - set(against))]
    rows = []
    ratios = []  # [seeds] of each row: log(error / baseline error)
    for metric in metrics:
        if metric not in runs or runs[metric].isna().all():
            continue
        for group, wide in _curves(runs, metric, grouping(runs) if by is None else by):
            arms = dict.fromkeys(wide.index.get_level_values("arm"))
            # the check of convergence is no contrast that anybody asked for, unless they did: it
            # would only take level from the others
            hidden = {DOUBLED} - {name for pair in asked or () for name in pair}
            names = [arm for arm in arms if arm not in hidden]
            for baseline in (b for b in against if b in names):
                base = np.log(wide.loc[baseline])
                earlier = against[: 1 + against.index(baseline)]
                compared = [n for n in names if n not in earlier]
                if baseline not in general:  # an arm, to which the declared contrast compares one
                    compared = [n for n in names if n == primary.get("arm")]
                if asked:
                    compared = [n for n in names if (n, baseline) in asked]
                if metric not in general_metrics:
                    declared = (primary["arm"], primary["against"])
                    compared = [n for n in compared if (n, baseline) == declared]
                for arm in compared:
                    logs = _by_unit((np.log(wide.loc[arm]) - base).dropna().mean(axis=1))
                    if not len(logs):
                        continue
                    contrast = {"arm": arm, "metric": metric, "against": baseline}
                    row = group | contrast | {"seeds": len(logs), "budgets": wide.shape[1]}
                    row |= change(logs, method)
                    row["family"] = "primary" if contrast == primary else "others"
                    rows.append(row)
                    ratios.append(logs.to_numpy())
    table = pd.DataFrame(rows)
    if not rows:
        return table
    if "weights" in runs:
        names = [*table.columns[: list(table.columns).index("arm")], "arm"]
        table = table.merge(runs[[*names, "weights"]].drop_duplicates(names), "left", on=names)
    table["p"] = [p_value(logs) for logs in ratios]
    for _, part in table.groupby("family"):
        adjusted, levels = holm(part["p"])
        table.loc[part.index, "p_holm"] = adjusted
        tested = zip(part.index, levels, strict=True)
        verdicts = [verdict(ratios[i], 1 - level) for i, level in tested]
        table.loc[part.index, "verdict"] = verdicts
    table.attrs["interval"] = method  # that of the intervals: verdicts follow from t
    return table


def over_budgets(runs: pd.DataFrame, metric: str = "forces_mae") -> pd.DataFrame:
    """The logarithms of the errors of one experiment, averaged over label budgets and draws: a row
    per pretraining, a column per arm.

    A pretraining has a number where it has all budgets, else NaN. Raises ConfigError for a table of
    several experiments.
    """
    curves = list(_curves(runs, metric, grouping(runs)))
    if len(curves) != 1:
        raise ConfigError(f"a table of {len(curves)} experiments; take one of them")
    wide = np.log(curves[0][1].dropna())
    arms = wide.index.get_level_values("arm")
    # a draw counts where every arm of its pretraining has it
    drawn = wide.groupby(level=[UNIT, DRAW]).size() == arms.nunique()
    with_all = drawn.groupby(level=UNIT).transform("any")
    kept = [
        drawn[unit, draw] or not with_all[unit, draw] for unit, draw in wide.index.droplevel("arm")
    ]
    wide = wide[kept]
    means = {arm: _by_unit(part.loc[arm].mean(axis=1)) for arm, part in wide.groupby(level="arm")}
    return pd.DataFrame(means)


def typical(logs: Sequence[float]) -> dict[str, float]:
    """Geometric mean of the errors whose logarithms these are, with its interval: mean, low,
    high.
    """
    known = np.asarray(logs, np.float64)
    mean, low, high = np.exp(interval(known[np.isfinite(known)]))
    return {"mean": float(mean), "low": float(low), "high": float(high)}


def change(logs: Sequence[float], method: str = "t") -> dict[str, Any]:
    """Mean change in % with its interval, of the seeds' log(error / baseline error); "better" or
    "worse" where it leaves out 0.
    """
    return change_within(*interval(logs, method=method))


def change_within(mean: float, low: float, high: float) -> dict[str, Any]:
    """`change` of a mean logarithm and the ends of its interval."""
    mean, low, high = (100.0 * float(np.expm1(v)) for v in (mean, low, high))
    effect = "unclear"
    if np.isfinite(low) and low * high > 0:
        effect = "better" if mean < 0 else "worse"
    return {"change_%": mean, "change_low_%": low, "change_high_%": high, "effect": effect}


# -- verdicts ------------------------------------------------------------------------------------
def p_value(logs: Sequence[float]) -> float:
    """Two-sided p of Student's t test that the mean of ``logs`` is 0; NaN for fewer than two."""
    logs = np.asarray(logs, np.float64)
    if len(logs) < 2:
        return float("nan")
    error = logs.std(ddof=1) / np.sqrt(len(logs))
    if error == 0:
        return float(logs.mean() == 0)
    return float(2 * stats.t.sf(abs(logs.mean()) / error, len(logs) - 1))


def holm(p: Sequence[float], level: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Adjusted p values of a family (Holm 1979), and the level at which each is tested: two arrays
    of ``p``'s length.

    What is told from 0 at ``level`` for the whole family has p ≤ its own level. Holm stops at the
    first that is not; it and all after it get its level. NaN stays NaN and does not count.
    """
    p = np.asarray(p, np.float64)
    adjusted = np.full(len(p), np.nan)
    levels = np.full(len(p), level)
    order = np.flatnonzero(np.isfinite(p))
    order = order[np.argsort(p[order], kind="stable")]
    largest = 0.0
    stopped = None  # the level at which the first is not told from 0
    for rank, i in enumerate(order):
        left = len(order) - rank
        largest = max(largest, min(1.0, left * p[i]))
        adjusted[i] = largest
        if stopped is None and p[i] > level / left:
            stopped = level / left
        levels[i] = level / left if stopped is None else stopped
    return adjusted, levels


def verdict(logs: Sequence[float], confidence: float = 0.95) -> str:
    """What log(error / baseline error) of the seeds say: "better", "worse" or "not told from 0 (−15
    to +13 %)".

    Never that there is no effect: an interval that holds 0 holds other numbers, too.
    """
    return said(*interval(logs, confidence))


def said(mean: float, low: float, high: float) -> str:
    """`verdict` of a mean logarithm and the ends of its interval."""
    if np.isnan(low):
        return "not told from 0 (a single seed has no interval)"
    if low * high > 0:
        return "better" if mean < 0 else "worse"
    low, high = (f"{100 * np.expm1(v):+.0f}".replace("-", "−") for v in (low, high))
    return f"not told from 0 ({low} to {high} %)"


# -- designs -------------------------------------------------------------------------------------
def contrast(
    runs: pd.DataFrame,
    arm: str | None = None,
    against: str | None = None,
    metric: str | None = None,
) -> dict[str, str]:
    """What is compared: what is given, else what the experiment declared
    (``runs.attrs["primary"]``).

    Without either: the only arm that is pretrained, against scratch-longer where there is one, in
    forces. Raises ConfigError where that leaves a choice, or names what the table does not have.
    """
    declared = dict(runs.attrs.get("primary") or {})
    names = list(dict.fromkeys(runs["arm"]))
    longer = "scratch-longer" if "scratch-longer" in names else "scratch"
    pretrained = [n for n in names if n not in ("scratch", "scratch-longer", DOUBLED)]
    arm = arm or declared.get("arm") or (pretrained[0] if len(pretrained) == 1 else None)
    if arm is None:
        raise ConfigError(f"several arms could be compared ({', '.join(pretrained)}): name one")
    against = against or declared.get("against") or longer
    metric = metric or declared.get("metric") or "forces_mae"
    for name in (arm, against):
        if name not in names:
            raise ConfigError(f"there is no arm {name!r} to compare; there are {', '.join(names)}")
    return {"arm": arm, "against": against, "metric": metric}


def log_ratios(
    runs: pd.DataFrame, arm: str, against: str, metric: str, by: Sequence[str] | None = None
) -> Iterator[tuple[dict[str, Any], np.ndarray]]:
    """Per experiment: log(error of ``arm`` / error of ``against``), [pretrainings, label budgets,
    draws].

    Pretrainings with all their runs count; where some have more draws than others, the draws that
    all have.
    """
    for group, wide in _curves(runs, metric, grouping(runs) if by is None else by):
        known = set(wide.index.get_level_values("arm"))
        if not {arm, against} <= known:
            continue
        logs = (np.log(wide.loc[arm]) - np.log(wide.loc[against])).dropna()
        units = [part.to_numpy() for _, part in logs.groupby(level=UNIT, sort=False)]
        draws = min(map(len, units), default=0)
        values = [u[:draws].T for u in units]  # [budgets, draws] each
        yield group, np.stack(values) if values else np.empty((0, wide.shape[1], 0))


def plan(
    runs: pd.DataFrame,
    arm: str | None = None,
    against: str | None = None,
    metric: str | None = None,
    half_width: float = 0.05,
    pretrain_hours: float | None = None,
    finetune_hours: float | None = None,
    draws: Sequence[int] = (1, 2, 3, 4, 5),
    budgets: int = 1,
    assurance: float | None = None,
    fewest: int = planning.FEWEST,
    by: Sequence[str] | None = None,
) -> pd.DataFrame:
    """How many pretrainings × label draws reach ``half_width`` (0.05: ± 5 %) with the fewest hours,
    from a pilot's ``runs``.

    A row per experiment and number of draws D: the contrast (see `contrast`), the pilot's spread of
    log ratios ``between_%`` pretrainings and ``within_%`` one (over its draws and label budgets),
    that of a single run with its interval (``total_%``, ``total_low_%``, ``total_high_%``), and of
    the design ``pretrainings``, ``draws``, the expected ``half_width_%`` and ``hours``; ``best``
    marks the cheapest, ``enough`` says whether the pilot itself meets the stop rule. Hours of a
    pretraining and of one draw's fine-tunings (both arms) are the pilot's own means unless given.
    ``budgets``: label budgets the contrast will be averaged over. See `planning` for the
    rest. Raises ConfigError or DataError where the pilot does not tell.
    """
    compared = contrast(runs, arm, against, metric)
    rows = []
    by = grouping(runs) if by is None else list(by)
    for group, values in log_ratios(runs, **compared, by=by):
        spread = planning.spread(values)
        here = runs
        for column, value in group.items():
            here = here[here[column] == value]
        before, after = _hours(here, **compared)
        before = before if pretrain_hours is None else pretrain_hours
        after = after if finetune_hours is None else finetune_hours
        table = planning.designs(
            spread.between,
            spread.within,
            half_width,
            before,
            after,
            draws,
            fewest,
            assurance,
            budgets,
        )
        pilot = group | compared | {"pilot": spread.units}
        for name in ("between", "within", "total"):
            pilot[f"{name}_%"] = 100 * getattr(spread, name)
        pilot |= {"total_low_%": 100 * spread.low, "total_high_%": 100 * spread.high}
        pilot["enough"] = enough(values.mean(axis=(1, 2)), half_width, fewest)
        rows += [pilot | row for row in table.to_dict("records")]
    return pd.DataFrame(rows)


def _hours(runs: pd.DataFrame, arm: str, against: str, metric: str) -> tuple[float, float]:
    """Mean hours of the pretraining of both arms together, and of their fine-tuning."""
    good = nested(runs)
    of_arm, of_baseline = (good[good["arm"] == name] for name in (arm, against))
    before = 0.0
    if "pretrain_seconds" in good:  # the baseline may be pretrained, too
        before = sum(
            np.nan_to_num(part["pretrain_seconds"].mean()) for part in (of_arm, of_baseline)
        )
    after = float(of_arm["seconds"].mean() + of_baseline["seconds"].mean())
    return before / 3600, after / 3600


# -- learning curves -----------------------------------------------------------------------------
def _curves(
    runs: pd.DataFrame, metric: str, by: Sequence[str]
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Per group: the errors with a row per (arm, pretrain_seed, label_draw) and a column per label
    budget; failed runs are NaN.
    """
    for column in ("arm", "seed", "labels", metric):
        if column not in runs:
            columns = ", ".join(map(str, runs))
            raise ConfigError(
                f"a learning curve needs the column {column!r}; the table has {columns}"
            )
    good = nested(runs).astype({"arm": object})
    by = [b for b in by if b != "labels"]
    for group, part in good.groupby(by, sort=False) if by else [((), good)]:
        wide = part.pivot_table(
            index=["arm", UNIT, DRAW], columns="labels", values=metric, sort=False
        )
        group = group if isinstance(group, tuple) else (group,)
        yield dict(zip(by, group, strict=True)), wide[sorted(wide)]


def learning_curves(
    runs: pd.DataFrame,
    metric: str = "forces_mae",
    by: Sequence[str] | None = None,
    baseline: str = "scratch",
    method: str = "t",
) -> pd.DataFrame:
    """The power law error = a · labels^slope of each arm, fitted to the logarithms, seed by seed.

    ``slope`` with its interval over seeds; ``slope_change`` is the paired difference to
    ``baseline`` (above 0: the arms come together with more labels, so pretraining helps least where
    labels are many); ``at`` is the geometric mean of the budgets and ``error_at`` the fitted error
    there; ``misfit_%`` the rms deviation of the budgets' mean errors from the fitted line, which
    tells whether it is one. A seed counts where it has all budgets. ``by``: further columns that
    tell experiments apart (default: what before "arm").
    """
    rows = []
    for group, wide in _curves(runs, metric, grouping(runs) if by is None else by):
        whole = wide.dropna()
        budgets = wide.columns.to_numpy(np.float64)
        if len(budgets) < 2:
            raise ConfigError(
                f"a learning curve needs at least two label budgets, the table has {len(budgets)}"
            )
        x = np.log(budgets) - np.log(budgets).mean()
        logs = np.log(whole)
        slopes = pd.Series((logs.to_numpy() @ x) / (x @ x), index=whole.index)
        known = set(slopes.index.get_level_values("arm"))
        for arm in dict.fromkeys(wide.index.get_level_values("arm")):
            if arm not in known:
                continue
            of_arm = _by_unit(slopes[arm])  # [seeds]
            middle = _by_unit(logs.loc[arm]).to_numpy()  # [seeds, budgets]
            slope, low, high = interval(of_arm, method=method)
            level, level_low, level_high = interval(middle.mean(1), method=method)
            misfit = middle.mean(0) - level - slope * x
            row = group | {"arm": arm, "metric": metric}
            row |= {"seeds": len(of_arm), "budgets": len(budgets)}
            row |= {"slope": slope, "slope_low": low, "slope_high": high}
            row |= {"at": float(np.exp(np.log(budgets).mean())), "error_at": float(np.exp(level))}
            row |= {"error_low": float(np.exp(level_low)), "error_high": float(np.exp(level_high))}
            row["misfit_%"] = 100.0 * float(np.sqrt(np.mean(misfit**2)))
            if arm != baseline and baseline in known:
                paired = _by_unit((slopes[arm] - slopes[baseline]).dropna())
                change = interval(paired, method=method)
                names = ("slope_change", "slope_change_low", "slope_change_high")
                row |= dict(zip(names, change, strict=True))
            rows.append(row)
    return pd.DataFrame(rows)


def labels_saved(
    runs: pd.DataFrame,
    metric: str = "forces_mae",
    by: Sequence[str] | None = None,
    baseline: str = "scratch",
    confidence: float = 0.95,
) -> pd.DataFrame:
    """How many labels ``baseline`` needs for the error each arm has, for each arm and label budget.

    Errors are geometric means over seeds; the baseline's curve is made to fall (isotonic
    regression) and interpolated between its budgets on logarithmic axes. Nothing is extrapolated:
    where an arm is better than the baseline's largest budget, ``relation`` is ">" and ``needs``
    that budget, where it is worse than the smallest, "<" and that. ``low`` and ``high`` bound
    ``needs`` by inverting the paired t interval (see `labels_saved`); ``low_relation`` and
    ``high_relation`` say ">" or "<" where a bound lies outside, so is open. ``saved`` = needs −
    labels and ``factor`` = needs / labels are bounds in the same sense. Only seeds with all runs of
    both arms count.

    All this is ``given`` only where the baseline is limited by labels: where its own slope's
    interval lies below 0. Else there is no answer (a flat curve has any error at any budget), the
    numbers are NaN, the relations empty and ``why`` says so.
    """
    rows = []
    for group, wide in _curves(runs, metric, grouping(runs) if by is None else by):
        budgets = wide.columns.to_numpy(np.float64)
        names = list(dict.fromkeys(wide.index.get_level_values("arm")))
        if baseline not in names:
            raise ConfigError(
                f"there is no arm {baseline!r} to compare with; there are {', '.join(names)}"
            )
        base = np.log(wide.loc[baseline].dropna())
        limited = _not_limited(baseline, budgets, _by_unit(base).to_numpy(), confidence)
        for arm in names:
            of_arm = np.log(wide.loc[arm].dropna())
            both = of_arm.index.intersection(base.index)
            if arm == baseline or not len(both):
                continue
            a = _by_unit(of_arm.loc[both]).to_numpy()  # [seeds, budgets]
            b = _by_unit(base.loc[both]).to_numpy()
            why = limited
            if not why and len(b) < 2:
                why = f"{len(b)} seed of {arm} with all budgets: it has no interval"
            for i, labels in enumerate(budgets):
                row = group | {"arm": arm, "metric": metric, "labels": int(labels), "seeds": len(b)}
                row |= {"against": baseline, "given": not why, "why": why}
                ends = needs_interval(budgets, b, a[:, i], confidence)
                for name, end in zip(("needs", "low", "high"), ends, strict=True):
                    relation = "relation" if name == "needs" else f"{name}_relation"
                    if why or np.isnan(end):
                        row[relation] = ""
                        row[name] = np.nan
                    else:
                        row[relation], row[name] = bounded(end, budgets)
                row["saved"] = row["needs"] - labels
                row["factor"] = row["needs"] / labels
                rows.append(row)
    return pd.DataFrame(rows)


def _not_limited(baseline: str, budgets: np.ndarray, logs: np.ndarray, confidence: float) -> str:
    """Why labels do not limit the baseline, as far as its curves ``logs`` [seeds, budgets] tell; ""
    where they do.
    """
    if len(budgets) < 2:
        return "a single label budget has no slope"
    if len(logs) < 2:
        return f"{len(logs)} seed of {baseline} with all budgets: its slope has no interval"
    x = np.log(budgets) - np.log(budgets).mean()
    slope, low, high = interval(logs @ x / (x @ x), confidence)
    if high < 0:
        return ""
    numbers = f"slope {slope:+.2f}, {low:+.2f} to {high:+.2f}"
    return f"more labels are not told to help {baseline} ({numbers})"
