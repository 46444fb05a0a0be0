"""What each network costs: parameters, one supervised step with forces, one denoising step, on
the same frames of ani-mini.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from .. import models
from ..datasets import load
from ..datasets.references import ReferenceEnergies
from ..errors import ConfigError
from ..experiments import yaml_form
from ..experiments.experiment import Experiment
from ..objectives import Denoise, Objective, Supervised
from ..report import tables as report
from ..structures.store import Structures
from .common import check_device, in_turn


def run(
    device: str = "cpu",
    threads: int = 1,
    repeats: int = 9,
    networks: Sequence[str] = (),
    preset: str = "small",
    batch: int = 16,
    experiment: str | Path | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> pd.DataFrame:
    """A row per network: parameters, milliseconds of a step (median; quartiles of the supervised
    one). All are timed in turn.

    A step is batch, corruption, neighbours, forward, backward and optimizer. ``supervised_ms``:
    energy and forces are trained. With ``experiment``, a YAML file of networks compared by
    `potkit compare` whose NAME.csv lies beside it, the rows of `study` instead.
    """
    check_device(device, threads)
    networks = list(networks) or models.names()
    unknown = sorted(set(networks) - set(models.names()))
    if unknown:
        raise ConfigError(f"unknown network {unknown[0]!r}; there are {', '.join(models.names())}")
    compared = None if experiment is None else _compared(Path(experiment))  # before any minute
    frames = load("ani-mini")
    frames = frames[np.sort(np.random.default_rng(0).choice(len(frames), batch, replace=False))]
    frames.to(device)
    rows, works = [], []
    for name in networks:
        model = models.build(name, preset, seed=0).to(device)
        rows.append({"network": name, "preset": preset, "parameters": model.n_parameters()})
        works += [
            step(model, frames, Supervised(energy=1, forces=100), device),
            step(model, frames, Denoise(sigma=0.1), device),
        ]
    say(f"{len(networks)} networks, {repeats} rounds")
    times = 1e3 * in_turn(works, repeats, device)
    for k, row in enumerate(rows):
        low, median, high = np.quantile(times[:, 2 * k], [0.25, 0.5, 0.75])
        row |= {
            "supervised_ms": median,
            "supervised_ms_low": low,
            "supervised_ms_high": high,
            "denoise_ms": float(np.median(times[:, 2 * k + 1])),
            "structures": batch,
            "atoms": len(frames.z),
            "device": device,
            "threads": threads,
        }
    costs = pd.DataFrame(rows)
    return costs if compared is None else study(costs, *compared)


def _compared(path: Path) -> tuple[pd.DataFrame, dict[int, dict[str, float]]]:
    """The stored summary of the experiment in ``path``, and per label budget the errors of no
    network.
    """
    spec = yaml_form.read(path)
    summary, _ = report.stored(spec.name, path.parent)
    first = spec.experiments()[0]
    return summary, {labels: nothing(first, labels) for labels in first.labels}


def nothing(experiment: Experiment, labels: int) -> dict[str, float]:
    """Errors of no network at all: energies by least squares over the composition of the
    training structures, no forces.
    """
    train, _ = experiment.labelled(labels, experiment.seeds[0])
    error = experiment.test.energy - ReferenceEnergies.fit(train).energy(experiment.test)
    forces = np.abs(experiment.test.forces)
    return {
        "energy_mae": float(np.abs(error).mean()),
        "energy_rmse": float((error**2).mean() ** 0.5),
        "forces_mae": float(forces.mean()),
        "forces_rmse": float((forces**2).mean() ** 0.5),
    }


def step(
    model: models.Potential, structures: Structures, objective: Objective, device: str
) -> Callable[[], Any]:
    """A function that trains ``model`` by one step; the rate is small, so that a hundred steps
    leave it as it is for a clock.
    """
    parts = model.parts(objective.needed())
    trained = [p for n, p in model.named_parameters() if n.split(".")[0] in parts]
    optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)
    generator = torch.Generator(device).manual_seed(0)

    def once() -> None:
        model.train()
        corrupted = objective.corrupt(structures.batch(device=device), generator)
        loss, _ = objective.loss(model(corrupted, objective.needed()), corrupted)
        grads = torch.autograd.grad(loss, trained, allow_unused=True)
        for parameter, grad in zip(trained, grads, strict=True):
            parameter.grad = grad
        optimizer.step()

    return once


def study(
    costs: pd.DataFrame,
    summary: pd.DataFrame,
    without: Mapping[int, dict[str, float]] | None = None,
) -> pd.DataFrame:
    """Costs beside errors: a row per network and label budget, from `run` and the summary of
    `potkit compare` with a grid of networks.

    ``without``: label budget -> errors of no network, which get a row "none".

    Columns mean, low and high of each metric (eV, eV/Å), seeds, parameters and milliseconds. Raises
    ConfigError where the summary has no column ``network`` or a network that was not timed.
    """
    if "network" not in summary:
        raise ConfigError("the summary has no column network: it is not of a grid of networks")
    strange = sorted(set(summary["network"]) - set(costs["network"]))
    if strange:
        raise ConfigError(f"no cost was measured for {strange[0]!r}")
    errors = summary.pivot(
        index=["network", "labels", "seeds"], columns="metric", values=["mean", "low", "high"]
    )
    errors.columns = [
        metric if kind == "mean" else f"{metric}_{kind}" for kind, metric in errors.columns
    ]
    columns = ["network", "parameters", "supervised_ms", "denoise_ms"]
    table = errors.reset_index().merge(costs[columns], on="network")
    rows = [
        {"network": "none", "labels": labels, "parameters": 0} | values
        for labels, values in (without or {}).items()
    ]
    if rows:
        table = pd.concat([table, pd.DataFrame(rows)], ignore_index=True)
    return table.sort_values(["labels", "forces_mae"]).reset_index(drop=True)
