"""Figures: one plotly template, a few general plots with intervals, and their export as interactive
HTML and as PNG.

The colours are those of Okabe and Ito (2008), which stay apart for colour-blind readers; an arm has
the same colour and the same marker in every figure. Tidy DataFrames come in (one row a point, with
columns for the mean and the two ends of its interval).

Axis titles carry the unit in brackets: "force MAE (meV/Å)".
"""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio
from plotly.offline import get_plotlyjs, get_plotlyjs_version
from plotly.subplots import make_subplots

from ..errors import ConfigError
from ..experiments import statistics
from ..structures.outputs import PART, Kind, check, check_folder, head, is_a, plain_name
from ..structures.storage import replacing
from . import tables as report
from .picture_export import image, is_png, marked, picture_is_marked, wanted
from .structures_3d import structure3d as structure3d  # a figure like the others

OKABE_ITO = {
    "blue": "#0072B2",
    "vermillion": "#D55E00",
    "green": "#009E73",
    "purple": "#CC79A7",
    "orange": "#E69F00",
    "sky": "#56B4E9",
    "black": "#000000",
}
# Arms keep their looks across figures; any other name gets the next free colour.
ARMS = {
    "": (OKABE_ITO["blue"], "square"),  # a figure of one line only
    "scratch": (OKABE_ITO["black"], "circle"),
    "scratch-longer": (OKABE_ITO["orange"], "diamond"),
    "denoise": (OKABE_ITO["blue"], "square"),
    "pretrained": (OKABE_ITO["blue"], "square"),
    "masked": (OKABE_ITO["vermillion"], "triangle-up"),
    "both": (OKABE_ITO["purple"], "star"),
}
SPARE = [
    OKABE_ITO[name] for name in ("green", "sky", "purple", "orange", "vermillion", "blue", "black")
]
SYMBOLS = ["cross", "x", "pentagon", "hexagon", "star-diamond", "hourglass", "bowtie"]
SIZE = (860, 500)  # pixels of a figure

_axis = dict(
    showline=True,
    linecolor="#333333",
    mirror=True,
    ticks="outside",
    gridcolor="#E3E3E3",
    zeroline=False,
    automargin=True,
)
pio.templates["potkit"] = go.layout.Template(
    layout=dict(
        font=dict(family="Open Sans, Helvetica, Arial, sans-serif", size=15, color="#1A1A1A"),
        title=dict(font=dict(size=18), x=0.02, xanchor="left"),
        colorway=[
            OKABE_ITO[name]
            for name in ("blue", "vermillion", "green", "purple", "orange", "sky", "black")
        ],
        paper_bgcolor="white",
        plot_bgcolor="white",
        xaxis=_axis,
        yaxis=_axis,
        legend=dict(bgcolor="rgba(255,255,255,0.8)", bordercolor="#CCCCCC", borderwidth=1),
        margin=dict(l=80, r=30, t=60, b=65),
        width=SIZE[0],
        height=SIZE[1],
        hovermode="closest",
    )
)


def looks(arms: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Colour and marker of each arm; the same arm looks the same in every figure."""
    taken = {ARMS[arm][0] for arm in arms if arm in ARMS}
    colours = [c for c in SPARE if c not in taken] or SPARE
    table = {}
    spare = 0
    for arm in arms:
        if arm in ARMS:
            table[arm] = ARMS[arm]
        else:
            table[arm] = (colours[spare % len(colours)], SYMBOLS[spare % len(SYMBOLS)])
            spare += 1
    return table


def figure(x_title: str, y_title: str, title: str | None = None) -> go.Figure:
    """An empty figure in the template, for what the plots below do not cover."""
    return go.Figure(
        layout=dict(template="potkit", title=title, xaxis_title=x_title, yaxis_title=y_title)
    )


def _groups(
    table: pd.DataFrame, arm: str | None, columns: Sequence[str]
) -> list[tuple[str, pd.DataFrame]]:
    missing = [name for name in (*columns, *([arm] if arm else [])) if name not in table.columns]
    if missing:
        raise ConfigError(
            f"the table to plot has no column {', '.join(map(repr, missing))}; "
            f"it has {', '.join(map(str, table))}"
        )
    if arm is None:
        return [("", table)]
    return [(str(name), rows) for name, rows in table.groupby(arm, sort=False)]


def _interval(
    rows: pd.DataFrame, y: str, low: str, high: str, colour: str
) -> dict[str, Any] | None:
    if low not in rows or high not in rows:
        return None
    return dict(
        type="data",
        symmetric=False,
        array=rows[high] - rows[y],
        arrayminus=rows[y] - rows[low],
        color=colour,
        thickness=1.6,
        width=5,
    )


def learning_curve(
    table: pd.DataFrame,
    x: str,
    y: str = "mean",
    arm: str | None = "arm",
    low: str = "low",
    high: str = "high",
    x_title: str = "labelled structures",
    y_title: str = "force MAE (meV/Å)",
    title: str | None = None,
    log: bool = True,
) -> go.Figure:
    """Error against a budget, one line an arm, with its intervals; both axes logarithmic, ticks
    at the budgets.
    """
    groups = _groups(table, arm, (x, y))
    style = looks([name for name, _ in groups])
    chart = figure(x_title, y_title, title)
    for name, rows in groups:
        rows = rows.sort_values(x)
        colour, symbol = style[name]
        chart.add_scatter(
            x=rows[x],
            y=rows[y],
            error_y=_interval(rows, y, low, high, colour),
            name=name,
            mode="lines+markers",
            line=dict(color=colour, width=2.5),
            marker=dict(symbol=symbol, size=10),
            showlegend=bool(name),
        )
    if log:
        ticks = sorted(table[x].unique())
        chart.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
        chart.update_yaxes(type="log")
        shown = [table[column].to_numpy(float) for column in (y, low, high) if column in table]
        _plain_log_ticks(chart, np.concatenate(shown))
    return chart


# the dot of one seed, to be seen on bars, on lines and on its own interval
SEED = dict(size=7, symbol="circle", opacity=0.7, line=dict(color="white", width=1.5))


def add_seeds(
    chart: go.Figure, x: Any, y: Any, seeds: Sequence, arm: str, colour: str, **options: Any
) -> None:
    """Dots for the single seeds behind a mean and its interval."""
    chart.add_scatter(
        x=x,
        y=y,
        mode="markers",
        marker=dict(color=colour, **SEED),
        name=f"{arm}, seeds",
        legendgroup=arm,
        showlegend=False,
        customdata=list(seeds),
        hovertemplate=f"{arm}, seed %{{customdata}}: %{{y:.4g}}<extra></extra>",
        **options,
    )


def learning_curves(
    summary: pd.DataFrame,
    title: str | None = None,
    baselines: pd.DataFrame | None = None,
    runs: pd.DataFrame | None = None,
) -> go.Figure:
    """All learning curves of a grid (a table of `statistics.summarise`): a column of panels per
    experiment, a row per metric (force and energy MAE), one line an arm with its intervals, set
    apart sideways so that they can be told from each other. Logarithmic axes, shared along rows.

    ``baselines``: a table of `baselines.of_experiments`. Each is a dashed line (or a word at the
    upper edge, where it lies far above all arms), and an arm that is worse than one of them has an
    open marker. ``runs``: those that the summary is of; each of their seeds is a dot.
    """
    by = [b for b in statistics.grouping(summary) if b != "labels"]
    metrics = [m for m in ("forces_mae", "energy_mae") if (summary["metric"] == m).any()]
    groups = [("", summary)]
    if by:
        parts = summary.groupby(by, sort=False)
        groups = [(" ".join(map(str, key)), part) for key, part in parts]
    arms = list(dict.fromkeys(summary["arm"]))
    style = looks(arms)
    budgets = sorted(summary["labels"].unique())
    chart = make_subplots(
        rows=len(metrics),
        cols=len(groups),
        shared_xaxes=True,
        shared_yaxes="rows",
        vertical_spacing=0.06,
        horizontal_spacing=0.04,
        column_titles=[name for name, _ in groups] if by else None,
    )
    for i, metric in enumerate(metrics, 1):
        label, unit, scale = report.UNITS[metric]
        value = f"%{{y:.4g}} {unit}"
        shown = summary[summary["metric"] == metric].assign(
            **{c: scale * summary[c] for c in ("mean", "low", "high")}
        )
        lows = shown["low"][shown["low"] > 0.2 * shown["mean"]]
        ends = [*shown[["mean", "high"]].stack(), *lows]
        reach = FAR * max(ends)
        if baselines is not None:
            levels = scale * baselines.loc[baselines["metric"] == metric, "mean"]
            ends += [level for level in levels if 0 < level <= reach]
        seeds = None if runs is None else statistics.by_seed(runs, metric)
        if seeds is not None:
            seeds = seeds.assign(error=scale * seeds["error"])
            ends += list(seeds["error"])
        bottom, top = min(ends) / 1.1, max(ends) * 1.1
        _plain_log_ticks(chart, ends, row=i)
        # an interval to below 0 leaves the panel, whose axis is logarithmic
        shown["low"] = shown["low"].clip(lower=0.1 * bottom)
        for j, (_, part) in enumerate(groups, 1):
            for k, arm in enumerate(arms):
                aside = 1.035 ** (k - (len(arms) - 1) / 2)
                of_line = shown.index.isin(part.index) & (shown["arm"] == arm)
                rows = shown[of_line].sort_values("labels")
                colour, symbol = style[arm]
                worse = rows["worse_than"].astype(object).fillna("") if "worse_than" in rows else []
                symbols = [f"{symbol}-open" if names else symbol for names in worse]
                chart.add_scatter(
                    x=rows["labels"] * aside,
                    y=rows["mean"],
                    error_y=_interval(rows, "mean", "low", "high", colour),
                    name=arm,
                    legendgroup=arm,
                    mode="lines+markers",
                    line=dict(color=colour, width=2),
                    marker=dict(symbol=symbols or symbol, size=9),
                    showlegend=i == j == 1,
                    customdata=rows["labels"],
                    hovertemplate=f"{arm}, %{{customdata}} labels: {value}<extra></extra>",
                    row=i,
                    col=j,
                )
                if seeds is not None:
                    dots = seeds[seeds["arm"] == arm]
                    for column in by:
                        dots = dots[dots[column].astype(str) == str(part[column].iloc[0])]
                    place = dict(row=i, col=j)
                    x = dots["labels"] * aside
                    add_seeds(chart, x, dots["error"], dots["seed"], arm, colour, **place)
            if baselines is not None and len(part):
                first = part.iloc[0].to_dict() | {"metric": metric}
                _add_baselines(chart, baselines, first, scale, reach, (i, j))
        chart.update_yaxes(type="log", range=np.log10([bottom, top]), row=i)
        chart.update_yaxes(title_text=f"{label} ({unit})", row=i, col=1)
    chart.update_xaxes(type="log", tickvals=budgets, ticktext=[f"{t:g}" for t in budgets])
    chart.update_xaxes(title_text="labelled structures", row=len(metrics))
    return chart.update_layout(
        template="potkit",
        title=title,
        width=max(SIZE[0], 120 + 430 * len(groups)),
        height=140 + 330 * len(metrics),
    )


FAR = 2.5  # times the largest error of a row of panels: a baseline above is a word, not a line
BASELINES = {"composition": "dash", "zero forces": "dot", "GFN2-xTB": "dashdot"}


def _add_baselines(
    chart: go.Figure,
    baselines: pd.DataFrame,
    row: dict[str, Any],
    scale: float,
    reach: float,
    panel: tuple[int, int],
) -> None:
    """Draw into one panel the baselines of the experiment and metric of ``row``."""
    by = [c for c in baselines if c not in ("labels", "baseline", "metric", "mean")]
    here = baselines[baselines["metric"] == row["metric"]]
    for column in by:
        here = here[here[column].astype(str) == str(row[column])]
    above = []
    for name, rows in here.groupby("baseline", sort=False):
        rows = rows.sort_values("labels")
        levels = scale * rows["mean"].to_numpy()
        if levels.max() > reach:
            above.append(f"{name} {levels.min():.0f}")
            continue
        chart.add_scatter(
            x=rows["labels"],
            y=levels,
            name=name,
            legendgroup=name,
            mode="lines" if len(rows) > 1 else "markers+text",  # a line needs two budgets
            marker=dict(symbol="line-ew", size=44, line=dict(color="#777777", width=1.5)),
            text=name,
            textposition="middle right",
            textfont=dict(size=12, color="#555555"),
            line=dict(color="#777777", width=1.5, dash=BASELINES.get(name, "longdash")),
            showlegend=not any(trace.name == name for trace in chart.data),
            row=panel[0],
            col=panel[1],
        )
    if above:
        chart.add_annotation(
            text="above: " + ", ".join(above),
            x=0.98,
            xref="x domain",
            xanchor="right",
            y=0.98,
            yref="y domain",
            yanchor="top",
            showarrow=False,
            font=dict(size=12, color="#555555"),
            row=panel[0],
            col=panel[1],
        )


def labels_saved(saved: pd.DataFrame, title: str | None = "Labels saved") -> go.Figure:
    """What each budget is worth to a baseline (a table of `statistics.labels_saved`), a line per
    arm and experiment.

    A closed bound ends in a cap; an open one, beyond the budgets that were tried, in an arrow at
    the edge, without a cap. What is not given (the baseline does not fall with labels) is left out
    and named in the title.
    """
    known = saved[saved["given"].astype(bool)]
    columns = list(saved.columns)
    by = columns[: columns.index("metric")]
    baseline = saved["against"].iloc[0]
    named = title or f"Labels of {baseline} for the error of an arm"
    chart = figure("labels of the arm", "labels for the same error", named)
    style = looks(list(dict.fromkeys(saved["arm"])))
    budgets = sorted(saved["labels"].unique())
    for key, part in known.groupby(by, sort=False):
        name = " ".join(map(str, key))
        colour, _ = style[part["arm"].iloc[0]]
        inside = part["relation"] == "="
        symbols = np.where(
            inside,
            "circle",
            np.where(part["relation"] == ">", "triangle-up-open", "triangle-down-open"),
        )
        chart.add_scatter(
            x=part["labels"],
            y=part["needs"],
            mode="lines+markers",
            name=name,
            legendgroup=name,
            line=dict(color=colour),
            marker=dict(symbol=symbols, size=11, color=colour),
        )
        for side, arrow in (("low", "arrow-down"), ("high", "arrow-up")):
            ends = part[part[f"{side}_relation"] != ""]
            shown = ["line-ew" if r == "=" else arrow for r in ends[f"{side}_relation"]]
            x, y = [], []
            for _, r in ends.iterrows():
                x += [r["labels"], r["labels"], None]
                y += [r["needs"], r[side], None]
            bar = dict(legendgroup=name, showlegend=False, hoverinfo="skip")
            chart.add_scatter(x=x, y=y, mode="lines", line=dict(color=colour, width=1.5), **bar)
            caps = dict(symbol=shown, size=11, color=colour, line=dict(color=colour, width=2))
            chart.add_scatter(
                x=ends["labels"],
                y=ends[side],
                mode="markers",
                marker=caps,
                name=f"{name}, {side}",
                **bar,
            )
    chart.add_scatter(
        x=budgets, y=budgets, mode="lines", name="as many", line=dict(color="black", dash="dash")
    )
    if len(known) < len(saved):
        left = saved[~saved["given"].astype(bool)]
        note = f"not told for {len(left)} of {len(saved)}: {left['why'].iloc[0]}"
        chart.update_layout(title=dict(text=f"{title or ''}<br><sub>{note}</sub>"))
    ticks = dict(type="log", tickvals=budgets, ticktext=[f"{b:g}" for b in budgets])
    chart.update_xaxes(**ticks)
    return chart.update_yaxes(**ticks)


def _plain_log_ticks(chart: go.Figure, values: Sequence[float], row: int | None = None) -> None:
    """Ticks 1-2-5 in plain numbers, on all y axes or those of a row: plotly's own over less than
    a decade are bare digits that nobody reads.
    """
    values = np.asarray(values, float)
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) == 0:
        return
    decades = range(int(np.floor(np.log10(values.min()))), int(np.ceil(np.log10(values.max()))) + 1)
    steps = (1, 2, 5) if len(decades) > 2 else (1, 1.5, 2, 3, 4, 5, 7)
    ticks = [s * 10.0**d for d in decades for s in steps]
    chart.update_yaxes(tickvals=ticks, ticktext=[f"{t:g}" for t in ticks], row=row)


def scan(
    table: pd.DataFrame,
    x: str,
    y: str = "mean",
    arm: str | None = None,
    low: str = "low",
    high: str = "high",
    x_title: str = "noise scale σ (Å)",
    y_title: str = "force MAE (meV/Å)",
    title: str | None = None,
    log_x: bool = True,
    reference: tuple[float, float, float] | None = None,
    marks: Mapping[str, float] | None = None,
) -> go.Figure:
    """Error against one setting (σ, mask ratio).

    ``reference`` is mean, low, high without pretraining, drawn as a band; ``marks`` are named
    values of the setting, drawn as vertical lines (the estimator's proposal, the paper's choice).
    """
    chart = learning_curve(table, x, y, arm, low, high, x_title, y_title, title, log=False)
    if log_x:
        ticks = sorted(table[x].unique())
        chart.update_xaxes(type="log", tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    if reference is not None:
        mean, bottom, top = reference
        chart.add_hrect(
            y0=bottom, y1=top, fillcolor="#777777", opacity=0.2, line_width=0, layer="below"
        )
        chart.add_hline(
            y=mean,
            line=dict(color=OKABE_ITO["black"], dash="dash", width=2),
            annotation_text="scratch",
        )
    for position, (name, value) in enumerate((marks or {}).items()):
        chart.add_vline(x=value, line=dict(color=OKABE_ITO["vermillion"], dash="dot", width=2))
        # on a logarithmic axis an annotation is placed by its logarithm, a line by its value
        chart.add_annotation(
            x=float(np.log10(value)) if log_x else value,
            y=1.0 - 0.07 * position,
            yref="paper",
            text=f"{name} {value:.2g}",
            showarrow=False,
            xanchor="left",
            xshift=4,
            bgcolor="rgba(255,255,255,0.8)",
        )
    return chart


def bars(
    table: pd.DataFrame,
    x: str,
    y: str = "mean",
    arm: str = "arm",
    low: str = "low",
    high: str = "high",
    x_title: str = "",
    y_title: str = "force MAE (meV/Å)",
    title: str | None = None,
) -> go.Figure:
    """Arms side by side for each value of ``x`` (data set, network, molecule), with their
    intervals.
    """
    groups = _groups(table, arm, (x, y))
    style = looks([name for name, _ in groups])
    chart = figure(x_title, y_title, title)
    for name, rows in groups:
        chart.add_bar(
            x=rows[x].astype(str),
            y=rows[y],
            # seen on every bar colour and on white
            error_y=_interval(rows, y, low, high, "#8A8A8A"),
            name=name,
            offsetgroup=name,
            marker=dict(color=style[name][0], line=dict(color="white", width=1)),
        )
    chart.update_xaxes(type="category")
    return chart


def distribution(
    values: Mapping[str, Any],
    x_title: str,
    bins: int = 80,
    limits: tuple[float, float] | None = None,
    y_title: str = "probability density",
    title: str | None = None,
) -> go.Figure:
    """Densities of several samples (name -> numbers) as steps over common bins. ``limits`` cut
    the axis, not the normalisation.
    """
    samples = {name: np.asarray(v, dtype=float).ravel() for name, v in values.items()}
    empty = [name for name, v in samples.items() if len(v) == 0 or not np.isfinite(v).all()]
    if empty:
        raise ConfigError(f"distribution: {', '.join(empty)} is empty or not finite")
    if limits is None:
        limits = (min(v.min() for v in samples.values()), max(v.max() for v in samples.values()))
    edges = np.linspace(*limits, bins + 1)
    chart = figure(x_title, y_title, title)
    for (name, sample), colour in zip(samples.items(), colours(len(samples)), strict=True):
        counts, _ = np.histogram(sample, bins=edges)
        density = counts / (len(sample) * np.diff(edges))
        chart.add_scatter(
            x=edges,
            y=np.append(density, density[-1]),
            name=name,
            mode="lines",
            line=dict(shape="hv", width=2, color=colour),
        )
    return chart


def rdf(
    curves: Mapping[str, tuple[Any, Any]],
    title: str | None = None,
    y_title: str = "pair distribution g(r)",
) -> go.Figure:
    """Pair distributions: name -> (distances in Å, values), as lines."""
    chart = figure("distance r (Å)", y_title, title)
    for (name, (r, g)), colour in zip(curves.items(), colours(len(curves)), strict=True):
        chart.add_scatter(
            x=np.asarray(r),
            y=np.asarray(g),
            name=name,
            mode="lines",
            line=dict(width=2, color=colour),
        )
    return chart


def calibration(tables: Mapping[str, pd.DataFrame], title: str | None = None) -> go.Figure:
    """Share of labels within an interval against the probability it claims (name ->
    `uncertainty.coverage`); the diagonal is perfect.
    """
    chart = figure("probability the ensemble claims", "share of labels inside", title)
    chart.add_scatter(
        x=[0, 1],
        y=[0, 1],
        mode="lines",
        name="perfect",
        line=dict(color="#8A8A8A", dash="dash", width=2),
    )
    style = looks(list(tables))
    for name, rows in tables.items():
        colour, symbol = style[name]
        chart.add_scatter(
            x=rows["expected"],
            y=rows["observed"],
            name=name,
            mode="lines+markers",
            line=dict(color=colour, width=2.5),
            marker=dict(symbol=symbol, size=7),
        )
    return chart.update_xaxes(range=[0, 1]).update_yaxes(range=[0, 1])


def error_against_spread(
    tables: Mapping[str, pd.DataFrame], unit: str = "eV/Å", title: str | None = None
) -> go.Figure:
    """Rms error against rms spread in bins of rising spread (name -> `uncertainty.binned`),
    logarithmic; on the diagonal both are equal.
    """
    chart = figure(f"spread of the ensemble ({unit})", f"error of its mean ({unit})", title)
    parts = [rows[["spread", "error"]].to_numpy(float).ravel() for rows in tables.values()]
    both = np.concatenate(parts)
    ends = [float(both[both > 0].min()), float(both.max())]
    chart.add_scatter(
        x=ends, y=ends, mode="lines", name="equal", line=dict(color="#8A8A8A", dash="dash", width=2)
    )
    style = looks(list(tables))
    for name, rows in tables.items():
        colour, symbol = style[name]
        chart.add_scatter(
            x=rows["spread"],
            y=rows["error"],
            name=name,
            mode="lines+markers",
            line=dict(color=colour, width=2.5),
            marker=dict(symbol=symbol, size=8),
        )
    return chart.update_xaxes(type="log").update_yaxes(type="log")


def noise_explained(
    proposal: Any,
    sigmas: Sequence[float],
    measured: Mapping[str, tuple[Sequence[float], Sequence[float]]] | None = None,
    title: str | None = None,
) -> go.Figure:
    """Share of the noise that a denoiser can tell, against σ (Å), of an
    `analysis.noise_scale.SigmaProposal`: with all vibrations known, and what rigid motion leaves of
    it, which no network can tell.

    ``measured``: name -> (σ, share explained) of trained networks. Vertical lines stand at the σ of
    several shares, of which the proposal's is one: a choice.
    """
    sigmas = np.asarray(sigmas, float)
    chart = figure("noise scale σ (Å)", "share of the noise explained", title)
    lines = {
        "all vibrations known": (proposal.explained(sigmas), "dash"),
        f"less rigid motion ({100 * proposal.rigid:.0f} % of coordinates)": (
            1.0 - proposal.unexplained(sigmas),
            "solid",
        ),
    }
    for name, (values, dash) in lines.items():
        chart.add_scatter(
            x=sigmas,
            y=values,
            name=name,
            mode="lines",
            line=dict(color=OKABE_ITO["black"], dash=dash, width=2),
        )
    style = looks(list(measured or {}))
    for name, (x, y) in (measured or {}).items():
        colour, symbol = style[name]
        chart.add_scatter(
            x=list(x),
            y=list(y),
            name=name,
            mode="markers",
            marker=dict(symbol=symbol, size=11, color=colour),
        )
    for share, sigma in proposal.by_share().items():
        if not np.isfinite(sigma):
            continue
        chosen = proposal.method == "harmonic" and share == proposal.share
        chart.add_vline(
            x=sigma,
            line=dict(color=OKABE_ITO["vermillion"], dash="dot", width=2.5 if chosen else 1),
        )
        chart.add_annotation(
            x=float(np.log10(sigma)),
            y=0.02,
            yref="paper",
            text=f"{share:g}{' (chosen)' if chosen else ''}",
            textangle=-90,
            showarrow=False,
            xanchor="right",
            yanchor="bottom",
        )
    return chart.update_xaxes(type="log").update_yaxes(range=[0, 1])


def breakdown(
    tables: Mapping[str, pd.DataFrame], column: str = "forces_mae", title: str | None = None
) -> go.Figure:
    """Errors by molecule, element, size or temperature (arm -> a table of
    `analysis.error_breakdown.breakdown`), arms side by side; the number of structures of a group
    stands below its name.
    """
    parts = []
    titles = {
        **{m: f"{name} ({unit})" for m, (name, unit, _) in report.UNITS.items()},
        "energy_mae_per_atom": "energy MAE per atom (meV/atom)",
        "relative_energy_mae": "relative energy MAE (meV)",
    }
    for arm, table in tables.items():
        if column not in table:
            raise ConfigError(f"no column {column!r} to draw; there are {', '.join(table)}")
        names = [
            f"{r['group']}<br><sub>{r['structures']} structures</sub>"
            for r in table.to_dict("records")
        ]
        parts.append(pd.DataFrame({"group": names, "mean": 1e3 * table[column], "arm": arm}))
    joined = pd.concat(parts, ignore_index=True)
    return bars(joined, "group", y_title=titles.get(column, column), title=title)


def break_even(row: Any, title: str | None = None) -> go.Figure:
    """Cost of labels and pretraining against the number of targets, of one row of
    `break_even.in_labels`: from scratch, and pretrained once; where the lines cross, pretraining
    has paid. The band is the interval of what scratch needs.

    Raises ConfigError for a row without an answer.
    """
    if not row["given"] or row["relation"] != "=":
        raise ConfigError("nothing to draw: what scratch needs for the same error is not known")
    per_label = row["saved_hours"] / (row["needs"] - row["labels"])
    end = 3 * row["targets"] if np.isfinite(row["targets"]) else 10.0
    targets = np.linspace(0, max(3.0, end), 50)
    chart = figure("target systems", "labels and pretraining (hours)", title)
    if row["low_relation"] == "=" and row["high_relation"] == "=":
        low, high = (targets * row[side] * per_label for side in ("low", "high"))
        chart.add_scatter(
            x=[*targets, *targets[::-1]],
            y=[*low, *high[::-1]],
            fill="toself",
            mode="lines",
            line=dict(width=0),
            fillcolor="rgba(0,0,0,0.12)",
            name="scratch, 95 % interval",
        )
    costs = {
        row["against"]: targets * row["needs"] * per_label,
        row["arm"]: row["pretrain_hours"] + targets * row["labels"] * per_label,
    }
    style = looks(list(costs))
    for name, values in costs.items():
        chart.add_scatter(
            x=targets,
            y=values,
            name=name,
            mode="lines",
            line=dict(color=style[name][0], width=2.5),
        )
    return chart


def colours(count: int) -> list[str]:
    """``count`` colours of the template, for traces added by hand; they repeat after seven."""
    cycle = list(pio.templates["potkit"].layout.colorway)
    return [cycle[i % len(cycle)] for i in range(count)]


# --- export -------------------------------------------------------------------------------------


def folder() -> Path:
    """Where figures go: POTKIT_FIGURES if set (``potkit run`` sets it), else figures/ of this
    repository or working directory.
    """
    if os.environ.get("POTKIT_FIGURES"):
        return Path(os.environ["POTKIT_FIGURES"])
    above = Path(__file__).resolve().parents[2]
    return (above if (above / "pyproject.toml").is_file() else Path.cwd()) / "figures"


MARK = '<meta name="generator" content="potkit">'
_BEFORE_MARKS = re.compile(
    r'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>[^<]*</title>\n'
    r'<script src="plotly\.min\.js"></script>\n<script>window\.Plotly \|\| document\.write'
)


def _is_page(path: Path) -> bool:
    start = head(path)
    return MARK in start or _BEFORE_MARKS.match(start) is not None


PAGE = Kind("a figure's page that potkit made", _is_page)


def _is_picture(path: Path) -> bool:
    """Whether a picture carries potkit's mark, or is that of a page beside it from before either
    had one.
    """
    picture = path.read_bytes()
    page = path.with_suffix(".html")
    return picture_is_marked(picture) or (
        is_png(picture) and is_a(PAGE, page) and MARK not in head(page)
    )


PICTURE = Kind("a picture that potkit made", _is_picture)


def check_figure(name: str, to: str | Path | None = None) -> Path:
    """The folder that `save` would write NAME.html and NAME.png into. Raises DataError where it
    could not.
    """
    plain_name(name, "figure name")
    if not re.fullmatch(r"\w[\w.+-]*", name):  # it becomes an element's id as well
        raise ConfigError(f"figure name {name!r} is not a plain file name")
    target = Path(to) if to else folder()
    check_folder(target)
    check(target / f"{name}.html", PAGE)
    check(target / f"{name}.png", PICTURE)
    return target


def save(
    chart: go.Figure, name: str, to: str | Path | None = None, png: bytes | None = None
) -> Path:
    """Write NAME.html (interactive) and NAME.png into ``to`` (default `folder`); returns the PNG's
    path. An earlier figure of that name is replaced; raises DataError where another file has it.

    The page takes plotly.min.js from beside it, which is written here once and not committed (5
    MB); where it is missing, as in a fresh clone, the page loads the same version from plotly's own
    server. Same figure, same bytes.
    """
    target = check_figure(name, to)
    target.mkdir(parents=True, exist_ok=True)
    script = target / "plotly.min.js"
    if not script.exists():
        with replacing(script, PART) as temporary:
            temporary.write_text(get_plotlyjs(), encoding="utf-8")
    # the picture first: one from before marks is known for potkit's by the page beside it
    if png or wanted():
        with replacing(target / f"{name}.png", PICTURE) as temporary:
            temporary.write_bytes(marked(png or image(chart)))
    save_page(chart, name, target)
    return target / f"{name}.png"


def save_page(chart: go.Figure, name: str, target: Path) -> Path:
    """Only NAME.html of what `save` writes, which needs no exporter of pictures."""
    with replacing(target / f"{name}.html", PAGE) as temporary:
        temporary.write_text(_page(chart, name), encoding="utf-8")
    return target / f"{name}.html"


def _page(chart: go.Figure, name: str) -> str:
    body = chart.to_html(include_plotlyjs=False, full_html=False, div_id=name, auto_play=False)
    remote = f"https://cdn.plot.ly/plotly-{get_plotlyjs_version()}.min.js"
    title = html.escape(chart.layout.title.text or name)
    fallback = f"document.write('<script src=\"{remote}\"><\\/script>')"
    return (
        "<!doctype html>\n"
        f'<html lang="en"><head><meta charset="utf-8">{MARK}<title>{title}</title>\n'
        '<script src="plotly.min.js"></script>\n'
        f"<script>window.Plotly || {fallback}</script>\n"
        f"</head><body>\n{body}\n</body></html>\n"
    )


def bundle(chart: go.Figure, png: bytes | None) -> dict[str, Any]:
    """What a notebook stores for a figure: plotly's own data for where JavaScript runs, a PNG
    for where it does not (GitHub).
    """
    return {
        "application/vnd.plotly.v1+json": {
            **json.loads(chart.to_json()),
            "config": {"displaylogo": False},
        },
        **({"image/png": base64.b64encode(png).decode()} if png else {}),
        "text/plain": f"figure: {chart.layout.title.text or chart.layout.yaxis.title.text or ''}",
    }


def show(chart: go.Figure, name: str | None = None) -> None:
    """Show the figure in a notebook, interactive and with a PNG behind it; with ``name`` save it
    as well.
    """
    from IPython.display import display

    if name:
        save(chart, name)
    # JupyterLab shows the picture at its own size until the mouse enters and the interactive figure
    # takes its place: same size, then
    display(bundle(chart, image(chart, scale=1) if wanted() else None), raw=True)
