"""Error while a run trains: how fast each arm converges."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import ConfigError, DataError
from ..experiments import time_curves as curves
from . import figures
from . import tables as report

AGAINST = {
    "step": "fine-tuning steps",
    "operations": "operations of fine-tuning",
    "seconds": "seconds of fine-tuning",
}


def time_curves(
    table: pd.DataFrame,
    against: str = "step",
    metric: str = "forces_mae",
    title: str | None = None,
) -> go.Figure:
    """Validation error against fine-tuning ``against`` ("step", "operations" or "seconds"), one
    line an arm, a panel per experiment and label budget; both axes logarithmic.

    ``table`` is one of `experiments.time_curves.of_experiments`. Lines are geometric means over
    seeds, bands their 95 % intervals (none for one seed). What pretraining cost before is not on
    the axis. Raises ConfigError for another ``against``, DataError where the runs have not logged
    ``metric`` or operations were not counted.
    """
    if against not in AGAINST:
        raise ConfigError(f"time curves: against {against!r} is none of {', '.join(AGAINST)}")
    measure = f"valid_{metric}"
    if not len(table) or table[measure].isna().all():
        raise DataError(f"time curves: no run has logged a validation error {metric}")
    if table[against].isna().all():
        raise DataError("time curves: operations were not counted (longer: operations)")
    shown = curves.over_seeds(table, measure)
    by = [c for c in shown.columns[: list(shown.columns).index("step")] if c != "arm"]
    panels = list(shown.groupby(by, sort=False))
    label, unit, scale = report.UNITS[metric]
    chart = make_subplots(
        cols=len(panels),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        column_titles=[_name(by, key) for key, _ in panels],
    )
    arms = list(dict.fromkeys(shown["arm"]))
    style = figures.looks(arms)
    for column, (_, part) in enumerate(panels, 1):
        for arm in arms:
            rows = part[part["arm"] == arm].sort_values("step")
            if not len(rows):
                continue
            colour, symbol = style[arm]
            band = rows.dropna(subset=["low", "high"])
            if len(band):
                ends = np.concatenate([band["high"], band["low"][::-1]])
                chart.add_scatter(
                    x=np.concatenate([band[against], band[against][::-1]]),
                    y=scale * ends,
                    mode="lines",
                    fill="toself",
                    fillcolor=colour,
                    opacity=0.12,
                    line=dict(width=0),
                    hoverinfo="skip",
                    legendgroup=arm,
                    showlegend=False,
                    row=1,
                    col=column,
                )
            chart.add_scatter(
                x=rows[against],
                y=scale * rows["mean"],
                name=arm,
                legendgroup=arm,
                mode="lines+markers",
                line=dict(color=colour, width=2),
                marker=dict(symbol=symbol, size=7),
                showlegend=column == 1,
                hovertemplate=f"{arm}, %{{x:.4g}}: %{{y:.4g}} {unit}<extra></extra>",
                row=1,
                col=column,
            )
    # bands of two or three seeds may span decades, and must not make lines of the curves
    bottom, top = scale * shown["mean"].min() / 1.5, scale * shown["mean"].max() * 1.5
    figures._plain_log_ticks(chart, [bottom, top])
    span = shown.loc[shown[against] > 0, against]
    decades = 10.0 ** np.arange(np.floor(np.log10(span.min())), np.log10(span.max()) + 1)
    ticks = np.sort(np.outer([1, 2, 5], decades).ravel())
    chart.update_xaxes(
        type="log",
        title_text=AGAINST[against],
        tickvals=ticks,
        ticktext=[f"{tick:,.0f}" if tick < 1e6 else f"{tick:.0e}" for tick in ticks],
    )
    chart.update_yaxes(type="log", range=np.log10([bottom, top]))
    chart.update_yaxes(title_text=f"validation {label} ({unit})", col=1)
    return chart.update_layout(
        template="potkit",
        title=title,
        width=max(figures.SIZE[0], 120 + 400 * len(panels)),
        height=figures.SIZE[1],
    )


def _name(by: list[str], key: tuple) -> str:
    words = [
        f"{value} labels" if b == "labels" else str(value) for b, value in zip(by, key, strict=True)
    ]
    return ", ".join(words)
