"""What a person wants to see of a trained network: its errors, predictions against labels, and how
training went, as files in the folder of the run.

    report/NAME.json            errors in eV, and as papers print them (`Evaluation.summary`)
    report/NAME-parity.html     predictions against labels, and the same as PNG
    report/training.html        loss and errors against steps, and the same as PNG
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from ..errors import DataError, PotkitError
from ..structures.outputs import Kind, read_json
from ..structures.storage import replacing
from ..structures.store import Structures
from ..training.evaluation import Evaluation
from . import figures

POINTS = 5000  # drawn at most; errors are those of all
ERRORS = Kind("errors that potkit stored", lambda path: "potkit_errors" in read_json(path))


def parity(
    result: Evaluation, structures: Structures, references: np.ndarray, title: str | None = None
) -> go.Figure:
    """Predictions of ``result`` against the labels of ``structures``: energies per atom, less the
    reference energies of the network (``references`` [elements] eV by atomic number: without that
    all would lie on one line), and force components if `evaluate` kept them.
    """
    table = result.structures
    sizes = table["atoms"].to_numpy()
    owner = np.repeat(np.arange(len(sizes)), sizes)
    base = np.bincount(owner, references[structures.z], len(sizes))
    of_energy = [
        (table[column].to_numpy() - base) / sizes for column in ("energy", "predicted_energy")
    ]
    panels = [("energy per atom less references (eV/atom)", of_energy)]
    if np.isnan(of_energy[0]).all():  # without labels there is nothing to compare
        panels = []
    if result.predicted_forces is not None:
        labels = np.asarray(structures.forces, float).ravel()
        panels.append(("force components (eV/Å)", [labels, result.predicted_forces.ravel()]))
    rows = result.summary()
    chart = make_subplots(
        1,
        len(panels),
        horizontal_spacing=0.13,
        subplot_titles=[
            f"MAE {row.mae:.3g}, RMSE {row.rmse:.3g} {row.unit}" for row in rows.itertuples()
        ],
    )
    chart.update_layout(template="potkit", title=title, width=520 * len(panels), height=540)
    blue, red = figures.colours(2)
    for column, (name, (label, predicted)) in enumerate(panels, start=1):
        labelled = np.isfinite(label)
        label, predicted = label[labelled], predicted[labelled]
        shown = np.arange(len(label))
        if len(shown) > POINTS:
            shown = np.sort(np.random.default_rng(0).choice(shown, POINTS, replace=False))
        ends = [float(min(label.min(), predicted.min())), float(max(label.max(), predicted.max()))]
        chart.add_scatter(
            x=label[shown],
            y=predicted[shown],
            mode="markers",
            marker=dict(color=blue, size=5, opacity=0.5),
            showlegend=False,
            row=1,
            col=column,
        )
        chart.add_scatter(
            x=ends, y=ends, mode="lines", line=dict(color=red), showlegend=False, row=1, col=column
        )
        chart.update_xaxes(title=f"label: {name}", row=1, col=column)
        chart.update_yaxes(title="predicted", row=1, col=column)
    return chart


def training(metrics: pd.DataFrame, title: str | None = None) -> go.Figure:
    """Loss, and validation errors where there are any, against steps; logarithmic."""
    panels = [("loss", {"training": "loss", "validation": "valid_loss"})]
    if "valid_energy_mae" in metrics:
        panels.append(("energy MAE (eV)", {"validation": "valid_energy_mae"}))
    if "valid_forces_mae" in metrics:
        panels.append(("force MAE (eV/Å)", {"validation": "valid_forces_mae"}))
    chart = make_subplots(1, len(panels), horizontal_spacing=0.1)
    chart.update_layout(template="potkit", title=title, width=120 + 400 * len(panels), height=440)
    colour = dict(zip(("training", "validation"), figures.colours(2), strict=True))
    for column, (name, lines) in enumerate(panels, start=1):
        for part, key in lines.items():
            if key not in metrics:
                continue
            rows = metrics[metrics[key].notna()]
            chart.add_scatter(
                x=rows["step"],
                y=rows[key],
                name=part,
                mode="lines+markers" if len(rows) < 40 else "lines",
                line=dict(color=colour[part]),
                showlegend=column == 1,
                row=1,
                col=column,
            )
        # what an objective may take below 0 has no logarithm
        shown = np.concatenate([metrics[key].dropna() for key in lines.values() if key in metrics])
        chart.update_yaxes(title=name, type="log" if (shown > 0).all() else "linear", col=column)
        chart.update_xaxes(title="step", col=column)
    return chart


def plain(text: str) -> str:
    """A data set's name or a file's as part of a file name."""
    return re.sub(r"[^\w.+-]+", "-", Path(text).name).strip("-.") or "data"


def write_training(run: Path) -> list[Path]:
    """Draw the learning curves of the run in folder ``run``. The files written."""
    metrics = pd.read_json(run / "metrics.jsonl", lines=True)
    return _draw(training(metrics, f"Training of {run.name}"), "training", run / "report")


def write_errors(
    run: Path, name: str, result: Evaluation, structures: Structures, references: np.ndarray
) -> list[Path]:
    """Store the errors ``result`` on ``structures`` and draw them, under ``name`` in the folder
    ``run``. The files written.
    """
    folder = run / "report"
    folder.mkdir(parents=True, exist_ok=True)
    stored: dict[str, Any] = {
        "potkit_errors": name,
        "data_fingerprint": structures.fingerprint(),
        "structures": result.n_structures,
        "errors": result.summary().to_dict("records"),
        "eV": result.to_dict(),
    }
    path = folder / f"{name}.json"
    with replacing(path, ERRORS) as temporary:
        temporary.write_text(json.dumps(stored, indent=1, ensure_ascii=False) + "\n", "utf-8")
    chart = parity(result, structures, references, f"Predictions against labels: {name}")
    return [path, *_draw(chart, f"{name}-parity", folder)]


def _draw(chart: go.Figure, name: str, folder: Path) -> list[Path]:
    """The page, and the picture where pictures can be made."""
    page, picture = folder / f"{name}.html", folder / f"{name}.png"
    try:
        figures.save(chart, name, folder)
    except DataError:
        raise
    except PotkitError:  # no kaleido here; the page needs none
        figures.save_page(chart, name, folder)
    return [path for path in (page, picture) if path.is_file()]
