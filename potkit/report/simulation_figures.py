"""Pictures of how the networks of a comparison run, drawn from the stored simulations of an
experiment (NAME-simulations; see `experiments.simulations`).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..experiments import simulations, statistics
from . import figures
from . import tables as report

SIMULATIONS, MEASURES, CHANGES = "-simulations", "-measures", "-changes"
WIDE, HIGH = 430, 330  # pixels of one panel
GREY = "#8A8A8A"


def sizes(name: str, folder: str | Path = "data/results") -> str:
    """ "3 networks an arm; ethanol: 8 copies of each for 0.4 ps; …" of stored simulations; "6
    networks of 2 pretrainings an arm" where label draws are nested in pretrainings.
    """
    told = []
    table, _ = report.stored(name + SIMULATIONS, folder)
    for group, part in _groups(table):
        nvt = part[part["ensemble"] == "nvt"]
        count, length = nvt["copy"].nunique(), nvt["length"].max()
        told.append(f"{group} labels: {count} copies of each for {length:g} ps")
    networks = table[table["arm"] != simulations.REFERENCE]
    number = f"{networks['seed'].nunique()} networks"
    if statistics.UNIT in networks:
        number += f" of {networks[statistics.UNIT].nunique()} pretrainings"
    return f"{number} an arm; {'; '.join(told)}"


def _groups(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Each experiment and label budget."""
    by = statistics.grouping(table)
    return [(", ".join(map(str, k)), part) for k, part in table.groupby(by, sort=False)]


def _arms(part: pd.DataFrame) -> list[str]:
    return [a for a in dict.fromkeys(part["arm"]) if a != simulations.REFERENCE]


def held(name: str, folder: Path, title: str) -> go.Figure:
    """How long the copies of each network ran on average, against its force error; a panel for each
    experiment. The dashed line is the length of the simulations.
    """
    groups = _groups(report.stored(name + SIMULATIONS, folder)[0])
    chart = make_subplots(1, len(groups), column_titles=[g for g, _ in groups])
    for column, (_, part) in enumerate(groups, 1):
        at = dict(row=1, col=column)
        style = figures.looks(_arms(part))
        nvt = part[part["ensemble"] == "nvt"]
        for arm in _arms(part):
            of = nvt[nvt["arm"] == arm].groupby("seed")[["forces_mae", "held"]].mean()
            colour, symbol = style[arm]
            chart.add_scatter(
                x=1e3 * of["forces_mae"],
                y=of["held"],
                mode="markers",
                name=arm,
                legendgroup=arm,
                showlegend=column == 1,
                marker=dict(color=colour, symbol=symbol, size=11),
                **at,
            )
        length = float(nvt["length"].max())
        chart.add_hline(y=length, line=dict(color=GREY, dash="dash"), **at)
        chart.update_yaxes(range=[0, 1.1 * length], **at)
        chart.update_xaxes(title_text="force MAE (meV/Å)", rangemode="tozero", **at)
    chart.update_yaxes(title_text="mean time a copy ran (ps)", col=1)
    return chart.update_layout(
        template="potkit", title=title, width=120 + WIDE * len(groups), height=190 + HIGH
    )


def survival(name: str, folder: Path, title: str) -> go.Figure:
    """The share of copies that still run, over time: bold of an arm, thin of each network."""
    groups = _groups(report.stored(name + SIMULATIONS, folder)[0])
    chart = make_subplots(1, len(groups), column_titles=[g for g, _ in groups])
    for column, (_, part) in enumerate(groups, 1):
        style = figures.looks(_arms(part))
        nvt = part[part["ensemble"] == "nvt"]
        for arm in _arms(part):
            of = nvt[nvt["arm"] == arm]
            lines = [(rows, 1, f"{arm}, seed {seed}") for seed, rows in of.groupby("seed")]
            for rows, width, label in [*lines, (of, 3.5, arm)]:
                x, y = simulations.survival(rows)
                chart.add_scatter(
                    x=x,
                    y=y,
                    mode="lines",
                    name=label,
                    legendgroup=arm,
                    showlegend=column == 1 and label == arm,
                    line=dict(color=style[arm][0], width=width, shape="hv"),
                    row=1,
                    col=column,
                )
    chart.update_xaxes(title_text="time (ps)").update_yaxes(range=[-0.02, 1.05])
    chart.update_yaxes(title_text="share of copies that run", col=1)
    return chart.update_layout(
        template="potkit", title=title, width=120 + WIDE * len(groups), height=190 + HIGH
    )


def distributions(name: str, folder: Path, title: str) -> go.Figure:
    """Bond lengths, and radial distributions where there are some, of each arm and of the
    reference; a panel for each.
    """
    table, _ = report.stored(name + SIMULATIONS, folder)
    panels = []
    for group, part in _groups(table):
        known = simulations.pooled(part[part["arm"] == simulations.REFERENCE])
        panels += [(group.split(",")[0], part, pair) for pair in known]
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    titles = [f"{group}: {pair}" for group, _, pair in panels]
    chart = make_subplots(rows, columns, subplot_titles=titles, vertical_spacing=0.3 / rows)
    for k, (_, part, pair) in enumerate(panels):
        at = dict(row=1 + k // columns, col=1 + k % columns)
        style = figures.looks(_arms(part))
        networks = part[part["ensemble"].isin(["nvt", simulations.REFERENCE])]
        for arm in [simulations.REFERENCE, *_arms(part)]:
            found = simulations.pooled(networks[networks["arm"] == arm])
            if pair not in found:
                continue
            x, y = _curve(pair, *found[pair])
            colour = GREY if arm == simulations.REFERENCE else style[arm][0]
            chart.add_scatter(
                x=x,
                y=y,
                mode="lines",
                name=arm,
                legendgroup=arm,
                showlegend=k == 0,
                line=dict(color=colour, width=2),
                fill="tozeroy" if arm == simulations.REFERENCE else None,
                **at,
            )
        chart.update_xaxes(title_text="distance (Å)", **at)
        y_title = "g(r)" if pair.startswith("g ") else "density (1/Å)"
        chart.update_yaxes(title_text=y_title, rangemode="tozero", **at)
    return chart.update_layout(
        template="potkit", title=title, width=120 + 340 * columns, height=170 + 290 * rows
    )


def _curve(pair: str, centres: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A histogram as a density of bins of 0.02 Å where it is not empty; g(r) as it is."""
    if pair.startswith("g "):
        return centres, counts / simulations.SCALE
    pairs = counts.reshape(-1, 2).sum(axis=1)
    middles = centres.reshape(-1, 2).mean(axis=1)
    density = pairs / max(pairs.sum(), 1.0) / (middles[1] - middles[0])
    there = np.flatnonzero(pairs)
    shown = slice(max(there[0] - 1, 0), there[-1] + 2) if len(there) else slice(0, 1)
    return middles[shown], density[shown]
