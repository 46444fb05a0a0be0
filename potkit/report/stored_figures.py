"""Pictures that are drawn from stored tables and from nothing else, and say so: each carries in its
layout what it shows of which experiment, so that `verify` can draw it again and compare.

Every picture says below its title over how many seeds the points are means, and on how many
structures of how many molecules they were tested.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from ..errors import ConfigError
from ..experiments import statistics
from . import calibration_figures, figures, simulation_figures, time_figures
from . import tables as report
from .sentences import SHOWN, worth

# "energy MAE" in a picture is one of whole structures, and says so
TITLES = {
    "forces_mae": "force MAE (meV/Å)",
    "energy_mae": "energy MAE per structure (meV)",
}
CHANGES = {
    "forces_mae": "change of force MAE (%)",
    "energy_mae": "change of energy MAE (%)",
}


def draw(kind: str, name: str, folder: str | Path = "data/results", **options: Any) -> go.Figure:
    """The picture ``kind`` (one of `KINDS`) of the stored experiment ``name``.

    Raises ConfigError for an unknown kind, DataError where nothing of that name is stored.
    """
    if kind not in KINDS:
        raise ConfigError(
            f"no picture {kind!r} of a stored experiment; there are {', '.join(KINDS)}"
        )
    chart = KINDS[kind](name, Path(folder), **options)
    below = sizes
    if kind in OF_ENSEMBLES:
        below = calibration_figures.sizes
    elif kind in OF_SIMULATIONS:
        below = simulation_figures.sizes
    elif kind == "breakdown":
        below = _sizes_of_groups
    elif kind == "time":
        below = _sizes_in_time
    title = f"{chart.layout.title.text or ''}<br><sub>{below(name, folder)}</sub>"
    chart.update_layout(
        title=dict(text=title, y=1, yanchor="top", pad=dict(t=28)),
        meta={"potkit": {"kind": kind, "name": name, "options": options}},
        margin=dict(t=74 + 24 * title.count("<br>")),
    )
    return chart


def sizes(name: str, folder: str | Path = "data/results") -> str:
    """The size of an experiment: "means over 3 seeds (dots), 95 % intervals over these", below it
    "tested on 300 structures of 78 systems, worth 93".
    """
    summary, how = report.stored(name, folder)
    seeds = sorted(set(summary["seeds"]))
    number = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
    text = f"means over {number} seeds (dots), 95 % intervals over these"
    if "validation" in how:
        return f"{text}; validated on {how['validation']}"
    if not (Path(folder) / f"{name}-test.csv").is_file():
        return text
    test, _ = report.stored(f"{name}-test", folder)
    by = [c for c in test.columns[: list(test.columns).index("arm")] if c != "labels"]
    parts = test.groupby(by, sort=False) if by else [((), test)]
    told = list(dict.fromkeys(worth(part) for _, part in parts))
    if len(told) > 3:
        numbers = [worth(part).split(",")[0] for _, part in parts]
        told = list(dict.fromkeys(numbers))
    return f"{text}<br>tested on {'; '.join(told)}"


def _sizes_of_groups(name: str, folder: str | Path = "data/results") -> str:
    """`sizes` of a picture whose intervals are those over the systems in a group."""
    text = sizes(name, folder)
    seeds, _, tested = text.partition("<br>")
    seeds = seeds.replace(" (dots), 95 % intervals over these", "")
    return f"{seeds}, 95 % intervals over the systems (or stretches) in a group<br>{tested}"


# -- kinds ---------------------------------------------------------------------------------------
def _summary(name: str, folder: Path, metric: str, labels: int | None = None) -> pd.DataFrame:
    """The rows of one metric of a stored summary, at one label budget (default: the largest), with
    a column "group" of what tells experiments apart.
    """
    table, _ = report.stored(name, folder)
    by = [c for c in table.columns[: list(table.columns).index("arm")] if c != "labels"]
    table = table[table["metric"] == metric]
    budget = table["labels"].max() if labels is None else labels
    if by and labels is None:
        # each experiment's own largest budget
        budget = table.groupby(by)["labels"].transform("max")
    table = table[table["labels"] == budget]
    return table.assign(group=[", ".join(str(r[b]) for b in by) for r in table.to_dict("records")])


def _seeds(
    name: str, folder: Path, metric: str, shown: pd.DataFrame, baseline: str = "scratch"
) -> pd.DataFrame:
    """The single seeds (`statistics.by_seed`, errors in meV and meV/Å) behind the rows ``shown`` of
    a stored summary, with its column "group" where it has one.
    """
    runs, _ = report.stored(f"{name}-runs", folder)
    table = statistics.by_seed(runs, metric, baseline)
    table = table.assign(error=1e3 * table["error"])
    by = [c for c in shown.columns[: list(shown.columns).index("arm")] if c in table]
    keys = list(dict.fromkeys([*by, "labels", "arm"]))
    kept = shown[[*keys, *(c for c in ("group",) if c in shown)]]
    kept, table = (t.astype({c: str for c in keys if c != "labels"}) for t in (kept, table))
    return table.merge(kept, on=keys)


def _as_change(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` with the change against scratch in the place of the error."""
    return table.assign(
        mean=table["change_%"], low=table["change_low_%"], high=table["change_high_%"]
    )


def _as_error(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` in meV and meV/Å."""
    return table.assign(**{c: 1e3 * table[c] for c in ("mean", "low", "high")})


def _changes(
    name: str,
    folder: Path,
    title: str,
    metric: str = "forces_mae",
    arms: Sequence[str] | None = None,
    group: str | None = None,
) -> go.Figure:
    """The change of every arm against scratch, experiment by experiment; of ``group`` alone arm by
    arm.
    """
    table = _as_change(_summary(name, folder, metric))
    table = table[table["arm"] != "scratch"]
    if arms is not None:
        table = table[table["arm"].isin(arms)]
    if group is not None:
        table = table[table["group"] == group].sort_values("mean", ascending=False)
    one = table["group"].nunique() == 1
    chart = figures.figure("", CHANGES[metric], title)
    style = figures.looks(list(dict.fromkeys(table["arm"])))
    seeds = _seeds(name, folder, metric, table)
    for k, (arm, rows) in enumerate(table.groupby("arm", sort=False)):
        colour, symbol = style[arm]
        chart.add_scatter(
            x=[arm] if one else rows["group"],
            y=rows["mean"],
            error_y=figures._interval(rows, "mean", "low", "high", colour),
            mode="markers",
            name=arm,
            marker=dict(color=colour, symbol=symbol, size=11),
            offsetgroup=None if one else str(k),
            showlegend=not one,
        )
        dots = seeds[seeds["arm"] == arm]
        x = [arm] * len(dots) if one else dots["group"]
        where = {} if one else dict(offsetgroup=str(k))
        figures.add_seeds(chart, x, dots["change_%"], dots["seed"], arm, colour, **where)
    chart.add_hline(y=0, line=dict(color="black", width=1), annotation_text="scratch")
    if not one:
        chart.update_layout(scattermode="group", scattergap=0.4)
    places = table["arm" if one else "group"].nunique()
    # room at the right for the word "scratch", which would lie on a marker there
    chart.update_xaxes(type="category", range=[-0.5, 1.11 * places - 0.5])
    return chart.update_layout(height=figures.SIZE[1] + 80)  # names below the axis are long


def _errors(
    name: str,
    folder: Path,
    title: str,
    metric: str = "forces_mae",
    arms: Sequence[str] | None = None,
) -> go.Figure:
    """The errors of every arm (or of ``arms``) beside those of the baselines that need no
    network.
    """
    table = _as_error(_summary(name, folder, metric))
    if arms is not None:
        table = table[table["arm"].isin(arms)]
    seeds = _seeds(name, folder, metric, table)
    path = folder / f"{name}-baselines.csv"
    if path.is_file():
        known, _ = report.stored(f"{name}-baselines", folder)
        known = known[(known["metric"] == metric) & known["labels"].isin(table["labels"])]
        by = [c for c in known if c not in ("labels", "baseline", "metric", "mean")]
        group = [", ".join(str(r[b]) for b in by) for r in known.to_dict("records")]
        known = known.assign(group=group, arm=known["baseline"], mean=1e3 * known["mean"])
        table = pd.concat([table, known])
    chart = figures.bars(table, "group", y_title=TITLES[metric], title=title)
    for trace in chart.data:
        if trace.name in figures.BASELINES:
            trace.marker.color = "#BBBBBB"
    for arm, dots in seeds.groupby("arm", sort=False):
        at = dots["group"], dots["error"], dots["seed"]
        figures.add_seeds(chart, *at, arm, "#1A1A1A", offsetgroup=arm)
    chart.update_layout(scattermode="group")
    return chart.update_layout(height=figures.SIZE[1] + 80)


def _scan(
    name: str,
    folder: Path,
    title: str,
    values: Mapping[str, float],
    x_title: str,
    metric: str = "forces_mae",
    what: str = "change",
    log_x: bool = True,
    marks: Mapping[str, float] | None = None,
) -> go.Figure:
    """An arm's change against scratch (or its error) over the setting it has in ``values``; band
    and lines are scratch and scratch-longer.
    """
    table = _summary(name, folder, metric).set_index("arm")
    shown = _as_change(table) if what == "change" else _as_error(table)
    points = shown.loc[[a for a in values if a in shown.index], ["mean", "low", "high"]]
    points = points.assign(setting=[values[a] for a in points.index])
    reference = (0.0, 0.0, 0.0)
    if what != "change":
        reference = tuple(shown.loc["scratch", ["mean", "low", "high"]])
    chart = figures.scan(
        points,
        "setting",
        x_title=x_title,
        y_title=CHANGES[metric] if what == "change" else TITLES[metric],
        title=title,
        reference=reference,
        log_x=log_x,
        marks=marks,
    )
    dots = _seeds(name, folder, metric, table.reset_index())
    dots = dots[dots["arm"].isin(values)]
    at = [values[arm] for arm in dots["arm"]], dots["change_%" if what == "change" else "error"]
    figures.add_seeds(chart, *at, dots["seed"], "seeds", figures.OKABE_ITO["blue"])
    if "scratch-longer" in shown.index:
        longer = shown.loc["scratch-longer"]
        orange = figures.OKABE_ITO["orange"]
        span = [points["setting"].min(), points["setting"].max()]
        # its interval is a band, as that of scratch
        chart.add_scatter(
            x=[*span, *span[::-1]],
            y=[longer["low"]] * 2 + [longer["high"]] * 2,
            fill="toself",
            fillcolor="rgba(230,159,0,0.2)",
            mode="lines",
            line=dict(width=0),
            name="scratch-longer, interval",
            showlegend=False,
            hoverinfo="skip",
        )
        chart.add_scatter(
            x=span,
            y=[longer["mean"]] * 2,
            mode="lines",
            line=dict(color=orange, dash="dash", width=2),
            name="scratch-longer",
        )
    return chart


def _curves(name: str, folder: Path, title: str) -> go.Figure:
    """Errors over label budgets, forces above energies, with the baselines."""
    summary, _ = report.stored(name, folder)
    path = folder / f"{name}-baselines.csv"
    known = report.read(path) if path.is_file() else None
    runs, _ = report.stored(f"{name}-runs", folder)
    chart = figures.learning_curves(summary, title, known, runs)
    return chart.for_each_yaxis(
        lambda axis: (
            axis.update(title_text=TITLES["energy_mae"])
            if axis.title.text == "energy MAE (meV)"
            else None
        )
    )


def _gain(
    name: str, folder: Path, title: str, metric: str = "forces_mae", group: str | None = None
) -> go.Figure:
    """The change of each arm against scratch over label budgets."""
    table, _ = report.stored(name, folder)
    by = [c for c in table.columns[: list(table.columns).index("arm")] if c != "labels"]
    if group is not None:
        table = table[[", ".join(str(r[b]) for b in by) == group for r in table.to_dict("records")]]
    table = _as_change(table[(table["metric"] == metric) & (table["arm"] != "scratch")])
    chart = figures.learning_curve(table, "labels", y_title=CHANGES[metric], log=False, title=title)
    style = figures.looks(list(dict.fromkeys(table["arm"])))
    for arm, dots in _seeds(name, folder, metric, table).groupby("arm", sort=False):
        at = dots["labels"], dots["change_%"], dots["seed"]
        figures.add_seeds(chart, *at, arm, style[arm][0])
    ticks = sorted(table["labels"].unique())
    chart.update_xaxes(type="log", tickvals=ticks, ticktext=[str(t) for t in ticks])
    chart.add_hline(y=0, line=dict(color="black", dash="dash", width=1.5))
    return chart


def _breakdown(
    name: str,
    folder: Path,
    title: str,
    by: str = "molecule",
    metric: str = "forces_mae",
    group: str | None = None,
) -> go.Figure:
    """Errors of every arm in groups of the test structures (see `structure_errors.breakdown`), of
    the experiment ``group`` alone where it is given; of molecules those with the largest. Intervals
    are those over the systems in a group.
    """
    table, _ = report.stored(f"{name}-breakdown", folder)
    kinds = list(dict.fromkeys(table["by"]))
    if by not in kinds:
        raise ConfigError(f"{name}: no errors by {by!r}; there are {', '.join(kinds)}")
    columns = list(table.columns[: list(table.columns).index("arm")])
    of = [c for c in columns if c not in ("by", "group", "labels")]
    table = _as_error(table[(table["by"] == by) & (table["metric"] == metric)].copy())
    table["experiment"] = [", ".join(str(r[c]) for c in of) for r in table.to_dict("records")]
    if group is not None:
        table = table[table["experiment"] == group]
    elif of:
        table["group"] = table["group"] + ", " + table["experiment"]
    if by == "molecule":
        order = table[table["arm"] == "scratch"].sort_values("mean", ascending=False)["group"]
        shown = list(order)[:SHOWN]
        table = table[table["group"].isin(shown)]
        table = table.sort_values("group", key=lambda names: names.map(shown.index), kind="stable")
    unit = TITLES.get(metric, f"{metric} (meV)")
    chart = figures.bars(table, "group", y_title=unit, title=title)
    return chart.update_layout(height=figures.SIZE[1] + 80)


def _saved(
    name: str, folder: Path, title: str, metric: str = "forces_mae", baseline: str = "scratch"
) -> go.Figure:
    """What each budget is worth to ``baseline``; bounds beyond the budgets are open."""
    runs, _ = report.stored(f"{name}-runs", folder)
    by = [c for c in statistics.grouping(runs) if c != "labels"]
    table = statistics.labels_saved(runs, metric, by, baseline)
    return figures.labels_saved(table[~table["arm"].isin(("scratch", "scratch-longer"))], title)


# kinds that show NAME-predictions, which no table NAME has to stand beside
OF_ENSEMBLES: dict[str, Callable[..., go.Figure]] = {
    "reliability": calibration_figures.reliability,
    "coverage": calibration_figures.coverage,
    "calibration": calibration_figures.summary,
}
# kinds that show NAME-simulations
OF_SIMULATIONS: dict[str, Callable[..., go.Figure]] = {
    "held": simulation_figures.held,
    "survival": simulation_figures.survival,
    "distributions": simulation_figures.distributions,
}


def _time(
    name: str, folder: Path, title: str, against: str = "step", metric: str = "forces_mae"
) -> go.Figure:
    """Validation error against steps (or operations, seconds) of fine-tuning, a line an arm."""
    table, _ = report.stored(f"{name}-time-curves", folder)
    return time_figures.time_curves(table, against, metric, title)


def _sizes_in_time(name: str, folder: str | Path = "data/results") -> str:
    table, _ = report.stored(f"{name}-time-curves", folder)
    return f"means over {table['pretrain_seed'].nunique()} seeds, bands 95 % intervals over these"


KINDS: dict[str, Callable[..., go.Figure]] = {
    "time": _time,
    **OF_ENSEMBLES,
    **OF_SIMULATIONS,
    "changes": _changes,
    "errors": _errors,
    "scan": _scan,
    "curves": _curves,
    "gain": _gain,
    "saved": _saved,
    "breakdown": _breakdown,
}
