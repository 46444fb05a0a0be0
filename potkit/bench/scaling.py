"""How the cost of a step grows: with atoms per structure, structures per batch, and width; time and
peak memory per atom.

Atoms per structure: periodic boxes at the density of water, 10 000 atoms in a batch of any of them,
so that only the size of a structure changes. Flat lines are what one wants.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from .. import models
from ..errors import ConfigError
from ..structures.store import Structures, concatenate
from . import peers
from .common import alkanes, check_device, in_turn, peak_memory, water_like
from .step import potkit_vector, trainer

COLUMNS = [
    "sweep",
    "value",
    "model",
    "atoms",
    "edges",
    "median_s",
    "spread_s",
    "us_per_atom",
    "us_per_edge",
    "peak_mb",
    "kb_per_atom",
    "kb_per_edge",
    "time_exponent",
    "memory_exponent",
    "device",
    "threads",
]
SWEEPS = ("atoms", "batch", "width")


def run(
    device: str = "cpu",
    threads: int = 1,
    repeats: int = 3,
    model: str = "egnn",
    sweeps: tuple[str, ...] = SWEEPS,
    atoms: tuple[int, ...] = (10, 30, 100, 300, 1_000, 3_000, 10_000),
    batches: tuple[int, ...] = (1, 4, 16, 64, 256),
    widths: tuple[int, ...] = (32, 64, 128, 256, 512),
    total: int = 10_000,
    cutoff: float = 3.4,
    say: Callable[[str], None] = lambda text: None,
):
    """A DataFrame, a row per sweep and value: a pretraining step of the ``small`` preset (of
    `peers.reference` in the sweep over widths).

    ``total``: atoms in a batch of the sweep over structure sizes, as far as whole structures allow.
    """
    import pandas as pd

    check_device(device, threads)
    if unknown := set(sweeps) - set(SWEEPS):
        raise ConfigError(
            f"bench scaling has no sweep {unknown.pop()!r} (it has: {', '.join(SWEEPS)})"
        )
    rows = []
    for sweep in sweeps:
        torch.manual_seed(0)
        if sweep == "atoms":
            boxes = {
                n: concatenate([water_like(n, seed) for seed in range(max(1, total // n))])
                for n in atoms
            }
            runs = [(n, models.build(model, cutoff=cutoff), s) for n, s in boxes.items()]
        elif sweep == "batch":
            runs = [(n, models.build(model), alkanes(n)[0]) for n in batches]
        else:
            runs = [(width, peers.reference(model, width), alkanes(16)[0]) for width in widths]
        say(f"{model}: {len(runs)} values of {sweep}, {repeats} rounds")
        rows += _sweep(sweep, model, runs, device, threads, repeats)
    return exponents(pd.DataFrame(rows))[COLUMNS]


def _sweep(
    sweep: str,
    name: str,
    runs: Sequence[tuple[int, models.Potential, Structures]],
    device: str,
    threads: int,
    repeats: int,
) -> list[dict]:
    """Rows of a sweep, whose values take turns: a machine that gets slower in the meantime must
    not look like growth.
    """
    rows, steps = [], []
    for value, model, structures in runs:
        model = model.to(device)
        batch = structures.batch(device=device)
        edges = len(model.graph(batch, batch.pos).sender)
        predict = functools.partial(potkit_vector, low=None, device=device)
        steps.append(trainer(model, structures, device, predict, fused=True))
        rows.append(
            {
                "sweep": sweep,
                "value": value,
                "model": name,
                "atoms": len(batch.pos),
                "edges": edges,
                "device": device,
                "threads": threads,
            }
        )
    seconds = in_turn(steps, repeats, device)
    for row, step, taken in zip(rows, steps, seconds.T, strict=True):
        row |= {
            "median_s": float(np.median(taken)),
            "spread_s": float(np.ptp(taken)),
            "peak_mb": peak_memory(step, device),
        }
        for what in ("atom", "edge"):
            row[f"us_per_{what}"] = 1e6 * row["median_s"] / max(row[f"{what}s"], 1)
            row[f"kb_per_{what}"] = 1024 * row["peak_mb"] / max(row[f"{what}s"], 1)
    return rows


def exponents(table: Any) -> Any:
    """``table`` with the columns time_exponent and memory_exponent: k of cost ∝ size^k, by least
    squares in logarithms over each sweep.

    Size is the number of atoms of a structure (cost: that of one structure), of structures in a
    batch (cost: of the batch) or the width (cost: of a step). Stands in the last row of each sweep;
    sweeps of fewer than two sizes have none.
    """
    table = table.assign(time_exponent=np.nan, memory_exponent=np.nan)
    for sweep, part in table.groupby("sweep", sort=False):
        if part["value"].nunique() < 2:
            continue
        # from one atom's share to the cost of the whole
        times = part["value"] if sweep != "width" else 1.0
        sizes = np.log(part["value"].astype(float))
        costs = {"time_exponent": part["us_per_atom"], "memory_exponent": part["kb_per_atom"]}
        for column, cost in costs.items():
            exponent, _ = np.polyfit(sizes, np.log(cost * times), 1)
            table.loc[part.index[-1], column] = exponent
    return table


TITLES = {
    "atoms": "atoms per structure",
    "batch": "structures per batch",
    "width": "width of the network",
}
# column of the table, title of its axis, column of its exponent, and word for it, from the top
PANELS = (
    ("us_per_atom", "time per atom (µs)", "time_exponent", "time"),
    ("kb_per_atom", "memory per atom (kB)", "memory_exponent", "memory"),
)
OF_WHAT = {"atoms": " of a structure ∝ n", "batch": " of a batch ∝ n", "width": " ∝ w"}


def figure(table: Any) -> Any:
    """A plotly figure of a table of `run`: time and memory per atom over each sweep, logarithmic
    in both axes, the same scale in a row.
    """
    from plotly.subplots import make_subplots

    sweeps = [sweep for sweep in SWEEPS if (table["sweep"] == sweep).any()]
    chart = make_subplots(
        rows=len(PANELS),
        cols=len(sweeps),
        vertical_spacing=0.08,
        horizontal_spacing=0.03,
        shared_xaxes=True,
        shared_yaxes=True,
    )
    for col, sweep in enumerate(sweeps, 1):
        _draw_sweep(chart, table[table["sweep"] == sweep], sweep, col)
    for row, (column, title, *_) in enumerate(PANELS, 1):
        low, high = float(table[column].min()), float(table[column].max())
        middle = np.log10(low * high) / 2
        # a decade at least: noise is not to look like growth
        reach = max(np.log10(high / low) / 2 + 0.15, 0.65)
        ticks = [m * 10.0**k for k in range(-3, 9) for m in (1, 2, 5)]
        chart.update_yaxes(
            type="log",
            range=[middle - reach, middle + reach + 0.1],
            tickvals=ticks,
            ticktext=[_plain(t) for t in ticks],
            row=row,
        )
        chart.update_yaxes(title_text=title, row=row, col=1)
    name, threads = table["model"].iloc[0], int(table["threads"].iloc[0])
    on_cpu = table["device"].iloc[0] == "cpu"
    where = f"{threads} CPU thread{'s' * (threads > 1)}" if on_cpu else "GPU"
    title = f"Cost of a pretraining step: {name}, {where}"
    return chart.update_layout(template="potkit", title=title, width=1100, height=640, margin_b=80)


def _draw_sweep(chart: Any, part: Any, sweep: str, col: int) -> None:
    """The rows of one sweep into column ``col``: a line in each panel, with its exponent."""
    import plotly.graph_objects as go

    from ..report import figures

    colours = figures.colours(len(PANELS))
    for row, (column, title, exponent, word) in enumerate(PANELS, 1):
        line = go.Scatter(
            x=part["value"],
            y=part[column],
            mode="lines+markers",
            line_color=colours[row - 1],
            marker_size=8,
            name=title,
            showlegend=False,
        )
        chart.add_trace(line, row=row, col=col)
        slope = part[exponent].dropna()
        if len(slope):
            chart.add_annotation(
                text=f"{word}{OF_WHAT[sweep]}<sup>{slope.iloc[0]:.2f}</sup>",
                row=row,
                col=col,
                xref="x domain",
                yref="y domain",
                x=0.97,
                y=0.97,
                xanchor="right",
                yanchor="top",
                showarrow=False,
                font_size=13,
            )
    values = [int(v) for v in part["value"]]
    shown = values[:: -(-len(values) // 5)]  # five numbers fit
    chart.update_xaxes(
        type="log",
        range=[np.log10(min(values) / 1.4), np.log10(max(values) * 1.4)],
        tickvals=shown,
        ticktext=[_plain(v) for v in shown],
        tickangle=0,
        col=col,
    )
    chart.update_xaxes(title_text=TITLES[sweep], row=len(PANELS), col=col)


def _plain(value: float) -> str:
    """10 000 for 10000, with a thin space."""
    return f"{value:,.10g}".replace(",", "\u2009")
