"""The numbers the two papers print, to stand beside ours.

denoise: Wang, Xu, Li, Barati Farimani, J. Chem. Theory Comput. 19, 5077 (2023), DOI
10.1021/acs.jctc.3c00289, arXiv 2303.02216.

masked: Zhang, Li, Barati Farimani, AIP Advances 14(9) (2024), DOI 10.1063/5.0202647, arXiv
2402.15921.

They are kept as printed (published_numbers.csv), in the papers' own units; ``std`` is the standard
deviation over the masked paper's four seeds, the denoise paper prints none. A row whose metric ends
in "change" is a relative change in per cent against scratch, as the paper gives it; `changes`
computes the same from the printed values.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from .. import units
from ..errors import ConfigError
from ..experiments.statistics import grouping

MODELS = {
    "schnet": "SchNet",
    "se3_transformer": "SE(3)-Transformer",
    "egnn": "EGNN",
    "torchmd_et": "TorchMD-Net",
    "gns": "GNS",
    "forcenet": "ForceNet",
}
KEYS = ["paper", "table", "data", "model", "arm", "ratio_or_sigma", "quantity", "metric", "labels"]


@lru_cache(maxsize=1)
def _read() -> pd.DataFrame:
    words = "paper table data model arm quantity metric unit labels note".split()
    path = Path(__file__).with_name("published_numbers.csv")
    rows = pd.read_csv(path, dtype=dict.fromkeys(words, str))
    rows[words] = rows[words].fillna("")
    return rows


def table(**where: Any) -> pd.DataFrame:
    """All printed numbers, or those whose columns equal the given values: ``table(paper="masked",
    data="TIP3P")``.

    Columns: paper, table, data, model, arm (scratch, denoise, masked), ratio_or_sigma (mask ratio,
    or σ in Å), quantity (energy, forces, or a count), metric, value, std, unit, labels (share of
    the training set), note. Raises ConfigError for an unknown column or a value that occurs
    nowhere.
    """
    rows = _read()
    chosen = pd.Series(True, index=rows.index)
    for name, value in where.items():
        if name not in rows.columns:
            raise ConfigError(
                f"papers.table has no column {name!r}; it has {', '.join(rows.columns)}"
            )
        equal = rows[name] == value
        if not equal.any():
            known = sorted(set(rows[name].dropna()) - {""})
            raise ConfigError(
                f"no paper prints {name}={value!r}; known: {', '.join(map(str, known))}"
            )
        chosen &= equal
    return rows[chosen].reset_index(drop=True)


def value(**where: Any) -> tuple[float, float]:
    """The one printed number that ``where`` singles out, and its standard deviation (NaN where
    none is printed).
    """
    rows = table(**where)
    if len(rows) != 1:
        described = ", ".join(f"{k}={v!r}" for k, v in where.items())
        raise ConfigError(f"{described} singles out {len(rows)} printed numbers, not one")
    return float(rows.value[0]), float(rows["std"][0])


def beside(
    summary: pd.DataFrame,
    paper: str,
    data: str | Mapping[str, str],
    model: str | Mapping[str, str] = MODELS,
    arms: Mapping[str, str] | None = None,
    labels: str = "all",
) -> pd.DataFrame:
    """The printed numbers beside the rows of `statistics.summarise` that measured the same, all in
    the paper's units.

    ``data`` and ``model`` are the paper's names, or mappings from ours, which then stand in the
    summary's columns of these names. ``arms`` maps our arms to scratch, denoise or masked ("denoise
    0.2 Å" is taken for denoise by itself). ``labels``: the paper's share of the training set.
    Columns: ours with its interval, ``printed`` with its std, both arms' change against scratch in
    %, and the table it is from. Rows the paper has nothing for are left out; ConfigError if that
    leaves none. Whether splits, widths and training are the same only the caller knows.
    """
    rows = []
    printed = table(paper=paper)
    printed = printed[(printed.labels == labels) & printed.metric.isin(["MAE", "RMSE"])]
    for _, measured in summary.iterrows():
        quantity, metric = str(measured["metric"]).rsplit("_", 1)
        arm = _arm_of_paper(measured["arm"], arms)
        same = printed[
            (printed.data == _name_of_paper(data, measured.get("data")))
            & (printed.model == _name_of_paper(model, measured.get("model")))
            & (printed.quantity == quantity)
            & (printed.metric == metric.upper())
        ]
        for _, number in same[same.arm == arm].iterrows():
            factor = units.factor(number.unit)
            scratch = same[(same.arm == "scratch") & (same.table == number.table)].value
            change = float("nan")
            if len(scratch) and arm != "scratch":
                change = 100 * (number.value / scratch.iloc[0] - 1)
            rows.append(
                {
                    **{column: measured[column] for column in grouping(summary)},
                    "arm": measured["arm"],
                    "quantity": f"{quantity} {number.metric}",
                    "unit": number.unit,
                    "ours": measured["mean"] / factor,
                    "low": measured["low"] / factor,
                    "high": measured["high"] / factor,
                    "printed": number.value,
                    "printed_std": number["std"],
                    "change_%": measured.get("change_%", float("nan")),
                    "printed_change_%": change,
                    "source": f"{paper} paper, {number.table}, {number.data}, {number.model}",
                }
            )
    if not rows:
        raise ConfigError(
            f"the {paper} paper prints nothing for these rows "
            f"(data {data!r}, model {model!r}, labels {labels!r})"
        )
    return pd.DataFrame(rows)


def _name_of_paper(names: str | Mapping[str, str], ours: Any) -> str | None:
    return names.get(ours) if isinstance(names, Mapping) else names


def _arm_of_paper(arm: Any, arms: Mapping[str, str] | None) -> str | None:
    """The paper's arm for one of ours; without a mapping the first word of our name."""
    if arms is None:
        return str(arm).split(" ")[0]
    return arms.get(arm)


def changes() -> pd.DataFrame:
    """Relative change in per cent of each pretrained number against scratch in the same table;
    beside it what the paper prints (NaN where it prints none). ``mean_of`` counts the rows behind a
    paper's average.
    """
    rows = _read()
    same = ["paper", "table", "data", "model", "quantity", "metric", "labels"]
    numbers = rows[~rows.metric.str.endswith("change") & (rows.metric != "count")]
    scratch = numbers[numbers.arm == "scratch"].set_index(same).value
    arms = numbers[numbers.arm != "scratch"].set_index(same)
    arms = arms[arms.index.isin(scratch.index)]
    computed = 100 * (arms.value / scratch.reindex(arms.index) - 1)
    result = arms[["arm", "ratio_or_sigma"]].assign(computed=computed, mean_of=1).reset_index()
    printed = rows[rows.metric.str.endswith("change")].assign(
        metric=lambda r: r.metric.str.removesuffix(" change")
    )
    averages = [_average(result, row) for _, row in printed.iterrows()]
    averages = pd.DataFrame([average for average in averages if average is not None])
    result = pd.concat([result, averages], ignore_index=True)
    on = [*same, "arm"]
    printed = printed[[*on, "value"]].rename(columns={"value": "printed"})
    return result.merge(printed, on=on, how="left")


def _average(single: pd.DataFrame, printed: pd.Series) -> dict[str, Any] | None:
    """The mean that a printed average stands for, from the single rows of the same paper."""
    rows = single[
        (single.paper == printed.paper)
        & (single.quantity == printed.quantity)
        & (single.metric == printed.metric)
    ]
    if printed.model == "average of 4":
        rows = rows[(rows.table == printed.table) & (rows.data == printed.data)]
    elif printed.note.startswith("mean of the two sets"):
        rows = rows[(rows.table == "Table 1") & (rows.model == printed.model)]
    elif printed.note.startswith("mean of the molecules"):
        rows = rows[rows.table == "Table 2"]
    else:
        return None
    if rows.empty:  # the single numbers stand only in a figure
        return None
    return {**printed[[*KEYS]].to_dict(), "computed": rows.computed.mean(), "mean_of": len(rows)}
