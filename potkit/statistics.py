"""Means over seeds with honest intervals.

Intervals are Student's t at 95 % over seeds: with 3 seeds the factor is 4.3, not 1.96. Relative changes are paired: the two arms of one
seed share their labelled structures and initial heads, so their ratio varies less than either error does.
"""

from __future__ import annotations

from typing import Sequence

import numpy as np
import pandas as pd
from scipy import stats

METRICS = ("energy_mae", "energy_rmse", "forces_mae", "forces_rmse")


def interval(values: Sequence[float], confidence: float = 0.95) -> tuple[float, float, float]:
    """Mean and t interval (low, high) of the mean; NaN bounds for fewer than two values."""
    values = np.asarray(values, np.float64)
    mean = float(values.mean()) if len(values) else float("nan")
    if len(values) < 2:
        return mean, float("nan"), float("nan")
    half = float(stats.t.ppf(0.5 + confidence / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))
    return mean, mean - half, mean + half


def summarise(
    runs: pd.DataFrame, metrics: Sequence[str] = METRICS, baseline: str = "scratch", by: Sequence[str] = ("labels",)
) -> pd.DataFrame:
    """A row per group, arm and metric: seeds, mean, low, high, and the paired change against ``baseline`` in %.

    ``runs`` has columns arm, seed, ``by`` and the metrics. The change of a seed is log(error / baseline error); mean and interval of
    the logs are turned back into per cent, so that halving and doubling weigh alike. ``effect`` is "better" or "worse" where that
    interval does not contain 0, else "unclear". Failed runs are left out and their number stands in ``failed``.
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
                mean, low, high = interval(own[metric])
                row = dict(zip(by, group)) | {"arm": arm, "metric": metric, "seeds": len(own), "mean": mean, "low": low, "high": high}
                row["failed"] = int((part["arm"] == arm).sum() - len(own))
                if arm != baseline:
                    both = own.index.intersection(base.index)
                    change = interval(np.log(own.loc[both, metric].to_numpy() / base.loc[both, metric].to_numpy()))
                    row |= {k: 100.0 * float(np.expm1(v)) for k, v in zip(("change_%", "change_low_%", "change_high_%"), change)}
                    clear = np.isfinite(row["change_low_%"]) and row["change_low_%"] * row["change_high_%"] > 0
                    row["effect"] = ("better" if row["change_%"] < 0 else "worse") if clear else "unclear"
                row["seconds"] = float(own["seconds"].mean() + own.get("pretrain_seconds", pd.Series([0.0])).mean())
                rows.append(row)
    return pd.DataFrame(rows)
