"""Pictures of how ensembles over seeds tell their own errors, drawn from the stored predictions of
an experiment (NAME-predictions) and the statistics that follow from them (NAME-ensembles).
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..experiments import calibration, statistics
from . import figures
from . import tables as report

PREDICTIONS, ENSEMBLES, CONTRASTS = "-predictions", "-ensembles", "-contrasts"
QUANTITIES = {"forces": ("forces", "meV/Å"), "energy": ("energies", "meV")}
PERFECT = dict(color="#8A8A8A", dash="dash", width=2)
WIDE, HIGH = 430, 330  # pixels of one panel


def sizes(name: str, folder: str | Path = "data/results") -> str:
    """ "ensembles of 3 seeds, 100 labels; judged on 150 structures of 39 systems, 95 % intervals
    over these" of a stored experiment.
    """
    table, _ = report.stored(name + ENSEMBLES, folder)
    members, labels, structures, clusters = (
        _range(table[column]) for column in ("members", "labels", "structures", "clusters")
    )
    text = f"ensembles of {members} seeds, {labels} labels<br>judged on {structures} structures"
    if set(table["of"]) != {"structures"}:
        text += f" of {clusters} {' or '.join(dict.fromkeys(table['of']))}"
    return f"{text}, 95 % intervals over these"


def _range(values: pd.Series) -> str:
    low, high = values.min(), values.max()
    return f"{low}" if low == high else f"{low} to {high}"


def _ensembles(name: str, folder: Path) -> dict[tuple[str, str], dict[str, calibration.Members]]:
    """(experiment and label budget, quantity) -> arm -> its ensemble."""
    table, _ = report.stored(name + PREDICTIONS, folder)
    found: dict[tuple[str, str], dict[str, calibration.Members]] = {}
    for (*group, arm, quantity), one in calibration.ensembles(table).items():
        found.setdefault((", ".join(map(str, group)), quantity), {})[arm] = one
    return found


def _panels(
    groups: list[str], columns: list[str], title: str, several: bool
) -> tuple[go.Figure, dict[str, int]]:
    """A row of panels per group, and the row of each."""
    chart = make_subplots(
        rows=len(groups),
        cols=len(columns),
        column_titles=columns,
        row_titles=groups if several else None,
        horizontal_spacing=0.12,
        vertical_spacing=0.16 / len(groups),
    )
    chart.update_layout(
        template="potkit",
        title=title,
        width=max(figures.SIZE[0], 100 + WIDE * len(columns)),
        height=190 + HIGH * len(groups),
    )
    return chart, {group: row for row, group in enumerate(groups, 1)}


def reliability(name: str, folder: Path, title: str) -> go.Figure:
    """Rms error against rms spread in bins of rising spread, a panel for forces and one for
    energies; on the diagonal both are equal.
    """
    found = _ensembles(name, folder)
    groups = list(dict.fromkeys(group for group, _ in found))
    quantities = [q for q in QUANTITIES if any(q == known for _, known in found)]
    columns = [QUANTITIES[q][0] for q in quantities]
    chart, rows = _panels(groups, columns, title, len(groups) > 1)
    for (group, quantity), arms in found.items():
        at = dict(row=rows[group], col=quantities.index(quantity) + 1)
        style = figures.looks(list(arms))
        ends: list[float] = []
        for k, (arm, one) in enumerate(arms.items()):
            colour, symbol = style[arm]
            table = 1e3 * calibration.reliability(one)
            ends += [*table[["spread", "error", "low", "high"]].to_numpy().ravel()]
            chart.add_scatter(
                x=table["spread"] * 1.01 ** (k - (len(arms) - 1) / 2),
                y=table["error"],
                error_y=figures._interval(table, "error", "low", "high", colour),
                name=arm,
                legendgroup=arm,
                showlegend=at == dict(row=1, col=1),
                mode="lines+markers",
                line=dict(color=colour, width=2),
                marker=dict(symbol=symbol, size=8),
                **at,
            )
        ends = [min(e for e in ends if e > 0), max(ends)]
        chart.add_scatter(
            x=ends,
            y=ends,
            mode="lines",
            name="equal",
            legendgroup="equal",
            showlegend=at == dict(row=1, col=1),
            line=PERFECT,
            **at,
        )
        unit = QUANTITIES[quantity][1]
        chart.update_xaxes(type="log", title_text=f"spread of the seeds ({unit})", **at)
        chart.update_yaxes(type="log", title_text=f"error of their mean ({unit})", **at)
        _plain_ticks(chart, at)
    return chart


def _plain_ticks(chart: go.Figure, at: dict[str, int]) -> None:
    """Ticks 1-2-5 in plain numbers on both axes of a panel."""
    ticks = [m * 10.0**d for d in range(-2, 6) for m in (1, 2, 5)]
    plain = dict(tickvals=ticks, ticktext=[f"{t:g}" for t in ticks])
    chart.update_xaxes(**plain, **at)
    chart.update_yaxes(**plain, **at)


def coverage(name: str, folder: Path, title: str) -> go.Figure:
    """Share of labels inside an interval against the probability it claims, a column for forces
    and one for energies; above as the ensembles are, below after the recalibration by one factor.
    """
    found = _ensembles(name, folder)
    stored, _ = report.stored(name + ENSEMBLES, folder)
    by = statistics.grouping(stored)
    stored = stored.assign(group=[", ".join(str(r[b]) for b in by) for r in _rows(stored)])
    groups = list(dict.fromkeys(group for group, _ in found))
    quantities = [q for q in QUANTITIES if any(q == known for _, known in found)]
    stages = {"as it is": ("observed", ""), "after one factor": ("scaled", "_scaled")}
    names = [
        f"{group}, {stage}" if len(groups) > 1 else stage for group in groups for stage in stages
    ]
    columns = [QUANTITIES[q][0] for q in quantities]
    chart, rows = _panels(names, columns, title, True)
    for (group, quantity), arms in found.items():
        style = figures.looks(list(arms))
        for stage, (column, ending) in stages.items():
            row = rows[f"{group}, {stage}" if len(groups) > 1 else stage]
            at = dict(row=row, col=quantities.index(quantity) + 1)
            first = at == dict(row=1, col=1)
            chart.add_scatter(
                x=[0, 1],
                y=[0, 1],
                mode="lines",
                name="perfect",
                legendgroup="perfect",
                showlegend=first,
                line=PERFECT,
                **at,
            )
            for arm, one in arms.items():
                colour, symbol = style[arm]
                table = calibration.curve(one)
                chart.add_scatter(
                    x=table["expected"],
                    y=table[column],
                    name=arm,
                    legendgroup=arm,
                    showlegend=False,
                    mode="lines",
                    line=dict(color=colour, width=2),
                    **at,
                )
                here = stored[
                    (stored[["group", "arm", "quantity"]] == [group, arm, quantity]).all(axis=1)
                ]
                here = here.set_index("statistic").loc[[i + ending for i in calibration.INSIDE]]
                chart.add_scatter(
                    x=calibration.NOMINAL,
                    y=here["value"],
                    error_y=figures._interval(here, "value", "low", "high", colour),
                    name=arm,
                    legendgroup=arm,
                    showlegend=first,
                    mode="markers",
                    marker=dict(symbol=symbol, size=8, color=colour),
                    **at,
                )
    chart.update_xaxes(range=[0, 1]).update_yaxes(range=[0, 1])
    chart.update_xaxes(title_text="probability the ensemble claims", row=len(names))
    return chart.update_yaxes(title_text="share of labels inside", col=1)


def summary(name: str, folder: Path, title: str) -> go.Figure:
    """Rank correlation of |error| and spread, miscalibration area and NLL of each arm with their
    intervals, a row of panels for forces and one for energies; open markers are before the
    recalibration.
    """
    table, _ = report.stored(name + ENSEMBLES, folder)
    by = statistics.grouping(table)
    several = len(table.groupby(by)) > 1
    where = [", ".join(str(r[b]) for b in by) for r in _rows(table)]
    said = [QUANTITIES[q][0] for q in table["quantity"]]
    table = table.assign(
        row=[f"{g}, {q}" if several else q for g, q in zip(where, said, strict=True)]
    )
    columns = {
        "rank correlation": ("spearman",),
        "miscalibration area (open: as it is)": ("area", "area_scaled"),
        "NLL in nats (open: as it is)": ("nll", "nll_scaled"),
    }
    names = list(dict.fromkeys(table["row"]))
    chart, rows = _panels(names, list(columns), title, True)
    style = figures.looks(list(dict.fromkeys(table["arm"])))
    for (group, arm), part in table.groupby(["row", "arm"], sort=False):
        part = part.set_index("statistic")
        colour, symbol = style[arm]
        for column, shown in enumerate(columns.values(), 1):
            at = dict(row=rows[group], col=column)
            for k, statistic in enumerate(shown):
                before = len(shown) > 1 and k == 0
                here = part.loc[[statistic]]
                chart.add_scatter(
                    x=[arm],
                    y=here["value"],
                    error_y=figures._interval(here, "value", "low", "high", colour),
                    name=f"{arm}, {statistic}",
                    mode="markers",
                    marker=dict(color=colour, symbol=symbol + "-open" * before, size=10),
                    offsetgroup=str(k),
                    showlegend=False,
                    **at,
                )
            if "spearman" in shown:
                chart.add_hline(y=0, line=dict(color="black", width=1), **at)
            else:
                chart.update_yaxes(rangemode="tozero" if "area" in shown else "normal", **at)
    chart.update_layout(scattermode="group", scattergap=0.5)
    return chart.update_xaxes(type="category")


def _rows(table: pd.DataFrame) -> list[dict]:
    return table.to_dict("records")
