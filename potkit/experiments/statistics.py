"""Means over seeds with honest intervals, learning curves, and what pretraining saves in labels.

Intervals are Student's t at 95 % over seeds: with 3 seeds the factor is 4.3, not 1.96. The
bootstrap, which assumes no distribution, is there for many seeds; of 3 seeds it knows no more than
their range, and its intervals are too narrow. Relative changes are paired: the two arms of one seed
share their labelled structures and initial heads, so their ratio varies less than either error
does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy import optimize, stats

from ..errors import ConfigError

METRICS = ("energy_mae", "energy_rmse", "forces_mae", "forces_rmse")
DRAWS = 10_000


def interval(
    values: Sequence[float], confidence: float = 0.95, method: str = "t"
) -> tuple[float, float, float]:
    """Mean and interval (low, high) of the mean by ``method`` "t" or "bootstrap" (percentiles);
    NaN bounds for fewer than two values.
    """
    values = np.asarray(values, np.float64)
    mean = float(values.mean()) if len(values) else float("nan")
    if method not in ("t", "bootstrap"):
        raise ConfigError(f"method of an interval must be 't' or 'bootstrap', got {method!r}")
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    if method == "bootstrap":
        low, high = np.quantile(
            values[_resamples(len(values))].mean(1), [0.5 - confidence / 2, 0.5 + confidence / 2]
        )
        return mean, float(low), float(high)
    half = float(
        stats.t.ppf(0.5 + confidence / 2, len(values) - 1)
        * values.std(ddof=1)
        / np.sqrt(len(values))
    )
    return mean, mean - half, mean + half


def _resamples(n: int, draws: int = DRAWS) -> np.ndarray:
    """[draws, n] seeds drawn with replacement, the same at every call."""
    return np.random.default_rng(0).integers(0, n, (draws, n))


def grouping(table: pd.DataFrame) -> list[str]:
    """What tells experiments apart in a table of `experiments.run` or of `summarise`: the
    columns before "arm", and the label budget.
    """
    before = list(table.columns[: list(table.columns).index("arm")]) if "arm" in table else []
    return table.attrs.get("by") or [
        *(c for c in before if c != "labels"),
        *(["labels"] if "labels" in table else []),
    ]


def summarise(
    runs: pd.DataFrame,
    metrics: Sequence[str] = METRICS,
    baseline: str = "scratch",
    by: Sequence[str] = ("labels",),
    method: str = "t",
) -> pd.DataFrame:
    """A row per group, arm and metric: seeds, mean, low, high, and the paired change against
    ``baseline`` in %.

    ``runs`` has columns arm, seed, ``by`` and the metrics. The change of a seed is log(error /
    baseline error); mean and interval of the logs are turned back into per cent, so that halving
    and doubling weigh alike. ``effect`` is "better" or "worse" where that interval does not contain
    0, else "unclear"; ``better_seeds`` counts the seeds whose error fell. Failed runs are left out
    and their number stands in ``failed``. ``method``: see `interval`.
    """
    rows, by = [], list(by)
    good = runs[runs["status"] == "ok"] if "status" in runs else runs
    for group, part in runs.groupby(by, sort=False, observed=True):
        part_ok = good.loc[good.index.intersection(part.index)]
        base = part_ok[part_ok["arm"] == baseline].set_index("seed")
        for arm in part["arm"].unique():
            own = part_ok[part_ok["arm"] == arm].set_index("seed")
            for metric in metrics:
                if metric not in own or own[metric].isna().all():
                    continue
                mean, low, high = interval(own[metric], method=method)
                row = dict(zip(by, group)) | {
                    "arm": arm,
                    "metric": metric,
                    "seeds": len(own),
                    "mean": mean,
                    "low": low,
                    "high": high,
                }
                row["failed"] = int((part["arm"] == arm).sum() - len(own))
                if arm != baseline:
                    both = own.index.intersection(base.index)
                    logs = np.log(
                        own.loc[both, metric].to_numpy() / base.loc[both, metric].to_numpy()
                    )
                    row |= _change(logs, method)
                    row["better_seeds"] = int((logs < 0).sum())
                row["seconds"] = float(
                    own["seconds"].mean() + own.get("pretrain_seconds", pd.Series([0.0])).mean()
                )
                rows.append(row)
    table = pd.DataFrame(rows)
    table.attrs["by"] = by
    return table


# -- over all label budgets ----------------------------------------------------------------------
def effects(
    runs: pd.DataFrame,
    metrics: Sequence[str] = ("forces_mae", "energy_mae"),
    against: Sequence[str] = ("scratch", "scratch-longer"),
    by: Sequence[str] | None = None,
    method: str = "t",
) -> pd.DataFrame:
    """What each arm brings over all label budgets: a row per arm, metric and baseline of
    ``against`` that the table has.

    The change of a seed is the mean over budgets of log(error / baseline error); ``change_%`` and
    its interval come from these numbers, one per seed. The runs of one seed share pretraining and
    nested labels, so they are not independent: a seed counts once, however many budgets there are,
    and only where it has all of them. ``effect`` as in `summarise`. The change against
    scratch-longer answers whether pretraining was worth its cost. ``by``: further columns that tell
    experiments apart (default: what before "arm").
    """
    rows = []
    for metric in metrics:
        if metric not in runs or runs[metric].isna().all():
            continue
        for group, wide in _curves(runs, metric, grouping(runs) if by is None else by):
            names = list(dict.fromkeys(wide.index.get_level_values("arm")))
            for baseline in (b for b in against if b in names):
                base = np.log(wide.loc[baseline])
                for arm in (n for n in names if n not in against[: 1 + against.index(baseline)]):
                    logs = (np.log(wide.loc[arm]) - base).dropna().mean(axis=1)
                    row = group | {
                        "arm": arm,
                        "metric": metric,
                        "against": baseline,
                        "seeds": len(logs),
                        "budgets": wide.shape[1],
                    }
                    if len(logs):
                        rows.append(row | _change(logs, method))
    return pd.DataFrame(rows)


def _change(logs: Sequence[float], method: str) -> dict[str, Any]:
    """Mean change in % with its interval, of the seeds' log(error / baseline error); "better" or
    "worse" where it leaves out 0.
    """
    mean, low, high = (100.0 * float(np.expm1(v)) for v in interval(logs, method=method))
    clear = np.isfinite(low) and low * high > 0
    effect = ("better" if mean < 0 else "worse") if clear else "unclear"
    return {"change_%": mean, "change_low_%": low, "change_high_%": high, "effect": effect}


# -- learning curves -----------------------------------------------------------------------------
def _curves(
    runs: pd.DataFrame, metric: str, by: Sequence[str]
) -> Iterator[tuple[dict[str, Any], pd.DataFrame]]:
    """Per group: the errors as a table with a row per (arm, seed) and a column per label budget;
    failed runs are NaN.
    """
    for column in ("arm", "seed", "labels", metric):
        if column not in runs:
            raise ConfigError(
                f"a learning curve needs the column {column!r}; the table has {', '.join(map(str, runs))}"
            )
    good = runs[runs["status"] == "ok"] if "status" in runs else runs
    good = good.astype({"arm": object})
    by = [b for b in by if b != "labels"]
    for group, part in good.groupby(by, sort=False) if by else [((), good)]:
        wide = part.pivot_table(index=["arm", "seed"], columns="labels", values=metric, sort=False)
        yield dict(zip(by, group if isinstance(group, tuple) else (group,))), wide[sorted(wide)]


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
        whole, budgets = wide.dropna(), wide.columns.to_numpy(np.float64)
        if len(budgets) < 2:
            raise ConfigError(
                f"a learning curve needs at least two label budgets, the table has {len(budgets)}"
            )
        x = np.log(budgets) - np.log(budgets).mean()
        logs = np.log(whole.to_numpy())
        slopes = pd.Series((logs @ x) / (x @ x), index=whole.index)
        for arm in dict.fromkeys(wide.index.get_level_values("arm")):
            if arm not in slopes.index.get_level_values("arm"):
                continue
            own, middle = slopes[arm], logs[whole.index.get_level_values("arm") == arm]
            slope, low, high = interval(own, method=method)
            level, level_low, level_high = interval(middle.mean(1), method=method)
            misfit = middle.mean(0) - level - slope * x
            row = group | {
                "arm": arm,
                "metric": metric,
                "seeds": len(own),
                "budgets": len(budgets),
                "slope": slope,
                "slope_low": low,
                "slope_high": high,
                "at": float(np.exp(np.log(budgets).mean())),
                "error_at": float(np.exp(level)),
                "error_low": float(np.exp(level_low)),
                "error_high": float(np.exp(level_high)),
                "misfit_%": 100.0 * float(np.sqrt(np.mean(misfit**2))),
            }
            if arm != baseline and baseline in slopes.index.get_level_values("arm"):
                both = own.index.intersection(slopes[baseline].index)
                change = interval(own[both] - slopes[baseline][both], method=method)
                row |= dict(zip(("slope_change", "slope_change_low", "slope_change_high"), change))
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
    ``needs`` by a bootstrap over seeds, drawn for both arms together; ``low_relation`` and
    ``high_relation`` say ">" or "<" where a bound lies outside. ``saved`` = needs − labels and
    ``factor`` = needs / labels are bounds in the same sense. Only seeds with all runs of both arms
    count.
    """
    rows = []
    for group, wide in _curves(runs, metric, grouping(runs) if by is None else by):
        budgets = wide.columns.to_numpy(np.float64)
        names = list(dict.fromkeys(wide.index.get_level_values("arm")))
        if baseline not in names:
            raise ConfigError(
                f"there is no arm {baseline!r} to compare with; there are {', '.join(names)}"
            )
        base = wide.loc[baseline].dropna()
        for arm in names:
            own = wide.loc[arm].dropna()
            both = own.index.intersection(base.index)
            if arm == baseline or not len(both):
                continue
            # [seeds, budgets]
            a, b = np.log(own.loc[both].to_numpy()), np.log(base.loc[both].to_numpy())
            draws = _resamples(len(both), 2000)
            drawn = (
                np.array([_needs(budgets, b[d].mean(0), a[d].mean(0)) for d in draws])
                if len(both) > 1
                else None
            )
            for i, (labels, needs) in enumerate(
                zip(budgets, _needs(budgets, b.mean(0), a.mean(0)))
            ):
                row = group | {
                    "arm": arm,
                    "metric": metric,
                    "labels": int(labels),
                    "seeds": len(both),
                }
                row["relation"], row["needs"] = _outside(needs, budgets)
                if drawn is not None:
                    tail = 0.5 - confidence / 2
                    ends = (
                        np.quantile(drawn[:, i], [tail], method="lower")[0],
                        np.quantile(drawn[:, i], [1 - tail], method="higher")[0],
                    )
                    for name, end in zip(("low", "high"), ends):
                        row[f"{name}_relation"], row[name] = _outside(end, budgets)
                row["saved"], row["factor"] = row["needs"] - labels, row["needs"] / labels
                rows.append(row)
    return pd.DataFrame(rows)


def _needs(budgets: np.ndarray, base: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Labels at which the falling curve ``base`` (logs of errors) has ``wanted`` (logs); −inf
    and inf where it never has.
    """
    falling = optimize.isotonic_regression(base, increasing=False).x
    # the fewest labels at which it is as good: of a flat piece the left end
    keep = np.concatenate([[True], np.diff(falling) < -1e-12])
    error, labels = falling[keep], np.log(budgets[keep])
    found = np.exp(np.interp(wanted, error[::-1], labels[::-1]))
    return np.where(
        wanted > error[0] + 1e-12, -np.inf, np.where(wanted < error[-1] - 1e-12, np.inf, found)
    )


def _outside(needs: float, budgets: np.ndarray) -> tuple[str, float]:
    if np.isfinite(needs):
        return "=", float(needs)
    return (">", float(budgets[-1])) if needs > 0 else ("<", float(budgets[0]))


def needs_in_words(row: Any) -> str:
    """What one row of `labels_saved` says baseline needs: "121 (96 to > 400)"."""

    def say(relation: str, value: float) -> str:
        return f"{'' if relation == '=' else relation + ' '}{value:.0f}"

    text = say(row["relation"], row["needs"])
    if not isinstance(row.get("low_relation"), str):  # a single seed has no interval
        return text
    return f"{text} ({say(row['low_relation'], row['low'])} to {say(row['high_relation'], row['high'])})"


def saved_in_words(row: Any) -> str:
    """One row of `labels_saved` as a sentence: "50 labels do as well as 121 (96 to > 400) from
    scratch".
    """
    return f"{row['labels']:.0f} labels do as well as {needs_in_words(row)} from scratch"
