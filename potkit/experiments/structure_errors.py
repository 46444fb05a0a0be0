"""The errors of finished networks structure by structure, and what they say of a test set: whole
structures, per atom, relative energies, forces, each with its interval over molecules.

A table of runs has one number per network and metric. What the test set leaves open, how many
structures it is worth, and energies in other ways than per structure cannot be recomputed from it,
but can from the errors of each structure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..analysis.error_breakdown import centred
from ..structures.store import Structures
from ..training.evaluation import evaluate
from . import clusters
from .statistics import grouping

if TYPE_CHECKING:
    from .experiment import Experiment

STRETCH = ", stretch "  # what the name of a cluster has, if it is not all of a system
ERRORS = ("energy_mae", "relative_energy_mae", "forces_mae")
# metric -> name, unit, factor from eV and eV/Å
NAMES = {
    "forces_mae": ("force MAE", "meV/Å", 1e3),
    "energy_mae": ("energy MAE per structure", "meV", 1e3),
    "energy_mae_per_atom": ("energy MAE per atom", "meV/atom", 1e3),
    "relative_energy_mae": ("relative energy MAE", "meV", 1e3),
}


def of_experiments(
    experiments: Sequence[Experiment],
    runs: pd.DataFrame,
    limit: int | None = None,
    block: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """The errors of each test structure, averaged over the runs of an arm and label budget.

    Columns: those that tell experiments apart, labels, arm, structure (its number in the test set),
    cluster (its molecule, or stretch of trajectory), atoms, energy_mae (|ΔE|, eV),
    relative_energy_mae (eV, centred in the system; NaN where it has one structure) and forces_mae
    (eV/Å, NaN without labels). ``limit``: of a larger test set only so many structures.
    ``block``: name of a data set -> length of its trajectories' stretches, in structures of the
    test set. The networks come from the experiments' stores: raises CheckpointError where one is
    not there any more.
    """
    tables = []
    for experiment, test, finished in clusters.tested(experiments, runs, limit):
        names = _cluster_names(test, (block or {}).get(test.info.get("name", "")))
        for (labels, arm), part in finished.groupby(["labels", "arm"], sort=False, observed=True):
            folders = [Path(experiment.store) / run for run in part["run"]]
            each = [_errors(folder, test) for folder in folders]
            mean = {c: np.mean([e[c] for e in each], axis=0) for c in ERRORS}
            about = {**experiment.columns, "labels": labels, "arm": arm}
            where = {"structure": range(len(test)), "cluster": names, "atoms": test.n_atoms}
            tables.append(pd.DataFrame({**about, **where, **mean}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _cluster_names(test: Structures, block: int | None) -> list[str]:
    """A name for the cluster of each structure: its system, with a number where it is a stretch."""
    names = [test.system_names()[i] for i in test.system]
    if block is None:
        return names
    numbers = clusters.clusters_of(test, block)
    return [f"{name}{STRETCH}{number}" for name, number in zip(names, numbers, strict=True)]


def _errors(folder: Path, test: Structures) -> dict[str, np.ndarray]:  # [S] each
    table = evaluate(folder, test).structures
    error = (table["predicted_energy"] - table["energy"]).to_numpy()
    return {
        "energy_mae": np.abs(error),
        "relative_energy_mae": np.abs(centred(error, table["system"].to_numpy())),
        "forces_mae": table["forces_mae"].to_numpy(np.float64),
    }


def summarise(errors: pd.DataFrame, baseline: str = "scratch") -> pd.DataFrame:
    """What the test set says of a table of `of_experiments`: a row per arm, label budget and metric
    of `NAMES`.

    Columns: mean, low, high (eV, eV/atom or eV/Å; `clusters.sampled_mean`), structures, clusters,
    design_effect, effective, of ("systems" or "stretches": what the clusters are), and the change
    against ``baseline`` in % with its interval over the clusters. These intervals are about other
    molecules, for networks as they are; those over seeds stand in the tables of `statistics`.
    """
    by = grouping(errors)
    rows = []
    for key, part in errors.groupby(by, sort=False, observed=True):
        group = dict(zip(by, key, strict=True))
        arms = dict(iter(part.groupby("arm", sort=False, observed=True)))
        for arm, table in arms.items():
            for metric in NAMES:
                values, weights, owner = _values(table, metric)
                if not len(values) or not values.sum() > 0:
                    continue
                row: dict[str, Any] = {**group, "arm": arm, "metric": metric}
                # two clusters of the same errors have no spread to divide by, and no interval
                with np.errstate(invalid="ignore", divide="ignore"):
                    row |= dataclasses.asdict(clusters.sampled_mean(values, owner, weights))
                    row["of"] = _kind(owner)
                    if arm != baseline and baseline in arms:
                        base, *_ = _values(arms[baseline], metric)
                        change = clusters.sampled_change(values, base, owner, weights)
                        row |= {"change_%": change.mean, "change_low_%": change.low}
                        row["change_high_%"] = change.high
                rows.append(row)
    return pd.DataFrame(rows)


def _kind(clusters_of: np.ndarray) -> str:
    """ "systems" or "stretches": what the clusters are."""
    return "stretches" if any(STRETCH in str(name) for name in clusters_of) else "systems"


def _values(table: pd.DataFrame, metric: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Errors, weights and clusters of the structures that have a number for ``metric``."""
    values = table["energy_mae"] / table["atoms"] if metric == "energy_mae_per_atom" else None
    values = (table[metric] if values is None else values).to_numpy(np.float64)
    weights = table["atoms"] if metric == "forces_mae" else pd.Series(1.0, index=table.index)
    known = np.isfinite(values)
    return values[known], weights.to_numpy(np.float64)[known], table["cluster"].to_numpy()[known]
