"""How the cost of a step grows: with atoms per structure, structures per batch, and width; time and peak memory per atom.

Atoms per structure: periodic boxes at the density of water, about 12 000 atoms' worth of structures at most in a batch, so that only the size of
a structure changes. Flat lines are what one wants.
"""

from __future__ import annotations

from typing import Any, Callable

import numpy as np
import torch

from .. import models
from ..errors import ConfigError
from ..structures import concatenate
from . import peers
from .common import alkanes, check_device, in_turn, peak_memory, water_like
from .step import potkit_vector, trainer

COLUMNS = [
    "sweep", "value", "model", "atoms", "edges", "median_s", "spread_s", "us_per_atom", "us_per_edge", "peak_mb", "kb_per_atom",
    "kb_per_edge", "device", "threads",
]  # fmt: skip
SWEEPS = ("atoms", "batch", "width")


def run(
    device: str = "cpu", threads: int = 1, repeats: int = 3, model: str = "egnn", sweeps: tuple[str, ...] = SWEEPS,
    atoms: tuple[int, ...] = (10, 30, 100, 300, 1_000, 3_000, 10_000), batches: tuple[int, ...] = (1, 4, 16, 64, 256),
    widths: tuple[int, ...] = (32, 64, 128, 256, 512), total: int = 2_000, cutoff: float = 3.4, say: Callable[[str], None] = lambda text: None,
):  # fmt: skip
    """A DataFrame, a row per sweep and value: a pretraining step of the ``small`` preset (of denoise-paper in the sweep over widths).

    ``total``: atoms in a batch of the sweep over structure sizes, as far as whole structures allow.
    """
    import pandas as pd

    check_device(device, threads)
    if unknown := set(sweeps) - set(SWEEPS):
        raise ConfigError(f"bench scaling has no sweep {unknown.pop()!r} (it has: {', '.join(SWEEPS)})")
    rows = []
    if "atoms" in sweeps:
        for n in atoms:
            boxes = concatenate([water_like(n, seed) for seed in range(max(1, total // n))])
            rows.append(_row("atoms", n, model, boxes, device, threads, repeats, say, preset="small", cutoff=cutoff))
    if "batch" in sweeps:
        for n in batches:
            rows.append(_row("batch", n, model, alkanes(n)[0], device, threads, repeats, say, preset="small"))
    if "width" in sweeps:
        structures, _ = alkanes(16)
        for width in widths:
            rows.append(_row("width", width, model, structures, device, threads, repeats, say, preset="denoise-paper", **peers.sized(model, width)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _row(sweep, value, name, structures, device, threads, repeats, say, preset, **options) -> dict[str, Any]:
    say(f"{name}, {sweep} = {value}")
    torch.manual_seed(0)
    model = models.build(name, preset, **options).to(device)
    batch = structures.batch(device=device)
    edges = len(model.graph(batch, batch.pos).sender)
    step = trainer(model, structures, device, lambda m, b: potkit_vector(m, b, None, device), fused=True)
    seconds = in_turn([step], repeats, device)[:, 0]
    median, n = float(np.median(seconds)), len(batch.pos)
    memory = peak_memory(step, device)
    return {
        "sweep": sweep, "value": value, "model": name, "atoms": n, "edges": edges, "median_s": median, "spread_s": float(np.ptp(seconds)),
        "us_per_atom": 1e6 * median / n, "us_per_edge": 1e6 * median / max(edges, 1), "peak_mb": memory, "kb_per_atom": 1024 * memory / n,
        "kb_per_edge": 1024 * memory / max(edges, 1), "device": device, "threads": threads,
    }  # fmt: skip


def figure(table: Any) -> Any:
    """A plotly figure of a table of `run`: time and memory per atom over each sweep, logarithmic in both axes."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = {"atoms": "atoms per structure", "batch": "structures per batch", "width": "width of the network"}
    sweeps = [s for s in SWEEPS if (table["sweep"] == s).any()]
    made = make_subplots(rows=2, cols=len(sweeps), vertical_spacing=0.12)
    for k, sweep in enumerate(sweeps, 1):
        part = table[table["sweep"] == sweep]
        for row, column in ((1, "us_per_atom"), (2, "kb_per_atom")):
            made.add_trace(go.Scatter(x=part["value"], y=part[column], mode="lines+markers", showlegend=False), row=row, col=k)
        made.update_xaxes(title_text=titles[sweep], row=2, col=k)
    made.update_xaxes(type="log")
    made.update_yaxes(type="log", rangemode="tozero")
    made.update_yaxes(title_text="time per atom (µs)", row=1, col=1)
    made.update_yaxes(title_text="peak memory per atom (kB)", row=2, col=1)
    return made
