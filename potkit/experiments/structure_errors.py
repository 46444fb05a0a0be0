"""The errors of finished networks structure by structure, and what they say of a test set: whole
structures, per atom, relative energies, forces, each with its interval over molecules.

A table of runs has one number per network and metric. What the test set leaves open, how many
structures it is worth, energies in other ways than per structure, and errors by molecule, element,
size or temperature cannot be recomputed from it, but can from the errors of each structure.
Every run of a grid keeps them in its folder of the run store:

    test-HASH.csv    a row per structure of the test set of that fingerprint, in its order:
                     energy_error (predicted − label, eV), forces_mae (eV/Å), and forces_mae_C, … of
                     the atoms of each element (empty where the structure has none)
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..analysis.error_breakdown import centred, size_groups
from ..errors import ConfigError, DataError
from ..structures import splits
from ..structures.elements import SYMBOLS, formula
from ..structures.outputs import PART
from ..structures.storage import replacing
from ..structures.store import Structures
from ..training.evaluation import Evaluation, evaluate
from . import clusters
from .statistics import grouping

if TYPE_CHECKING:
    from .experiment import Experiment

FEWEST = 8  # clusters from which on intervals over them are known to cover (`test_coverage`)
MOST = 3000  # test structures whose errors are stored one by one; ANI-1x would be gigabytes
OF_ELEMENT = "forces_mae_"  # begins the names of errors by element: forces_mae_C
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
    groups: Sequence[Mapping[str, Sequence[Any]]] | None = None,
) -> pd.DataFrame:
    """The errors of each test structure, averaged over the runs of an arm and label budget.

    Columns: those that tell experiments apart, labels, arm, structure (its number in the test set),
    cluster (its molecule, or stretch of trajectory), atoms, energy_mae (|ΔE|, eV),
    relative_energy_mae (eV, centred in the system; NaN where it has one structure), forces_mae
    (eV/Å, NaN without labels), formula ("C4H10"), and forces_mae_C, … (eV/Å, of the atoms of an
    element; NaN where there are none). ``limit``: of a larger test set only so many structures.
    ``block``: name of a data set -> length of its trajectories' stretches, in structures of the
    test set. ``groups``: for each experiment further columns, which stand before the errors: a
    label for each structure of its test set, such as its temperature.

    The errors are those that the runs kept in the experiments' stores, or of their networks there:
    raises CheckpointError where a store has neither any more.
    """
    tables = []
    groups = [{}] * len(experiments) if groups is None else groups
    each_tested = zip(clusters.tested(experiments, runs), groups, strict=True)
    for (experiment, test, finished), labels in each_tested:
        rows = None
        if limit is not None and limit < len(test):
            rows = splits.split(test, (limit,), seed=0)[0]
        asked = test if rows is None else test[rows]
        about_each = {
            "structure": range(len(asked)),
            "cluster": _cluster_names(asked, (block or {}).get(test.info.get("name", ""))),
            "atoms": asked.n_atoms,
            "formula": [formula(asked.z[a:b]) for a, b in itertools.pairwise(asked.ptr)],
        }
        for column, label in labels.items():
            about_each[column] = np.asarray(label, object)[slice(None) if rows is None else rows]
        for (budget, arm), part in finished.groupby(["labels", "arm"], sort=False, observed=True):
            folders = [Path(experiment.store) / run for run in part["run"]]
            each = [_errors(folder, test, rows) for folder in folders]
            mean = {c: np.mean([e[c] for e in each], axis=0) for c in each[0]}
            about = {**experiment.columns, "labels": budget, "arm": arm}
            tables.append(pd.DataFrame({**about, **about_each, **mean}))
    return pd.concat(tables, ignore_index=True) if tables else pd.DataFrame()


def _cluster_names(test: Structures, block: int | None) -> list[str]:
    """A name for the cluster of each structure: its system, with a number where it is a stretch."""
    names = [test.system_names()[i] for i in test.system]
    if block is None:
        return names
    numbers = clusters.clusters_of(test, block)
    return [f"{name}{STRETCH}{number}" for name, number in zip(names, numbers, strict=True)]


def of_evaluation(evaluation: Evaluation, test: Structures) -> pd.DataFrame:
    """A row per structure of ``test``: energy_error (eV), forces_mae (eV/Å), and forces_mae_C, … of
    the atoms of each element, NaN where there are none or no labels.

    ``evaluation`` is that of the same structures, with the forces of all atoms kept for errors by
    element.
    """
    table = evaluation.structures
    columns = {"energy_error": table["predicted_energy"] - table["energy"]}
    known = "forces_mae" in table
    columns["forces_mae"] = table["forces_mae"] if known else np.full(len(table), np.nan)
    predicted = evaluation.predicted_forces
    if predicted is not None:
        of_atom = np.abs(predicted.astype(np.float64) - test.forces).mean(1)  # [A]
        owner = np.repeat(np.arange(len(test)), test.n_atoms)
        for z in test.elements:
            here = test.z == z
            total = np.bincount(owner[here], of_atom[here], len(test))
            count = np.bincount(owner[here], minlength=len(test)).astype(float)
            mean = np.divide(total, count, out=np.full(len(test), np.nan), where=count > 0)
            columns[f"{OF_ELEMENT}{SYMBOLS[z]}"] = mean
    return pd.DataFrame(columns)


def keep(folder: Path, test: Structures, evaluation: Evaluation) -> Path:
    """Write test-HASH.csv into the folder of a run; its path."""
    path = folder / f"test-{test.fingerprint()}.csv"
    with replacing(path, PART) as temporary:
        of_evaluation(evaluation, test).to_csv(temporary, index=False, float_format="%.6g")
    return path


def kept(folder: Path, test: Structures) -> pd.DataFrame | None:
    """What `keep` wrote of ``test`` into the folder of a run, or None where it is not there, not
    whole, or of an earlier potkit.
    """
    try:
        table = pd.read_csv(folder / f"test-{test.fingerprint()}.csv")
    except (OSError, ValueError):
        return None
    return table if "energy_error" in table and len(table) == len(test) else None


def _errors(
    folder: Path,
    test: Structures,
    rows: np.ndarray | None,  # those of ``test`` that are asked for; all for None
) -> dict[str, np.ndarray]:  # [S] each
    table = kept(folder, test)
    asked = test if rows is None else test[rows]
    if table is None:
        table = of_evaluation(evaluate(folder, asked, keep_forces=True), asked)
    elif rows is not None:
        table = table.iloc[rows]
    error = table["energy_error"].to_numpy(np.float64)
    errors = {
        "energy_mae": np.abs(error),
        "relative_energy_mae": np.abs(centred(error, asked.system)),
    }
    of_forces = [name for name in table if name.startswith("forces_mae")]
    return errors | {name: table[name].to_numpy(np.float64) for name in of_forces}


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


def breakdown(errors: pd.DataFrame, by: str, baseline: str = "scratch") -> pd.DataFrame:
    """Where the errors of a table of `of_experiments` come from: `summarise` of each group of
    structures, in columns by and group before it.

    ``by``: "molecule"; "element" (forces on its atoms only: an energy belongs to no element);
    "size", the number of atoms, in at most four groups of about as many structures; or any other
    column of ``errors``, such as temperature. Relative energies are centred over the whole set.
    A group of fewer than `FEWEST` clusters has no intervals.
    Raises ConfigError for a column that is not there, DataError for errors by element of a table
    that has none.
    """
    tables = [
        summarise(part, baseline).assign(by=by, group=group)
        for group, part in _groups(errors, by)
        if len(part)
    ]
    table = pd.concat(tables, ignore_index=True)
    if "clusters" in table:
        ends = [c for c in table if c in ("low", "high", "change_low_%", "change_high_%")]
        table.loc[table["clusters"] < FEWEST, ends] = np.nan
    return table[["by", "group", *(c for c in table if c not in ("by", "group"))]]


def breakdowns(errors: pd.DataFrame, baseline: str = "scratch") -> pd.DataFrame:
    """`breakdown` by molecule, element and size, and by the groups that ``errors`` name (columns
    between formula and errors, such as temperature), at the largest label budget of each
    experiment. There is none by size where all structures have one.
    """
    others = [c for c in grouping(errors) if c != "labels"]
    parts = errors.groupby(others, sort=False) if others else [((), errors)]
    columns = list(errors)
    asked = ["molecule", "size"]
    asked += ["element"] if any(name.startswith(OF_ELEMENT) for name in columns) else []
    if "formula" in errors:
        asked += columns[columns.index("formula") + 1 : columns.index(ERRORS[0])]
    tables = []
    for by in asked:
        for _, part in parts:  # sizes are grouped in each experiment by itself
            most = part[part["labels"] == part["labels"].max()]
            one_size = most["atoms"].nunique() == 1
            unknown = by in most and most[by].isna().all()  # a group of another experiment's
            if not unknown and not (by == "size" and one_size):
                tables.append(breakdown(most, by, baseline))
    return pd.concat(tables, ignore_index=True)


def _groups(errors: pd.DataFrame, by: str) -> Iterator[tuple[str, pd.DataFrame]]:
    """The groups' names, in the order to show them in, with their part of ``errors``."""
    if by == "molecule":
        names = errors["cluster"].str.split(STRETCH, regex=False).str[0]
        yield from errors.groupby(names, sort=False)
    elif by == "size":
        words = np.array(size_groups(errors["atoms"]))
        for word in dict.fromkeys(words[np.argsort(errors["atoms"], kind="stable")]):  # small first
            yield word, errors[words == word]
    elif by == "element":
        columns = [name for name in errors if name.startswith(OF_ELEMENT)]
        if not columns:
            raise DataError("errors by element: this table has no errors of single elements")
        for column in columns:
            element = column.removeprefix(OF_ELEMENT)
            atoms = errors["formula"].map(lambda text, e=element: _count(text, e))
            unknown = dict.fromkeys(("energy_mae", "relative_energy_mae"), np.nan)
            part = errors.assign(forces_mae=errors[column], atoms=atoms, **unknown)
            yield element, part[atoms > 0]
    elif by in errors:
        for value, part in errors.groupby(by, sort=False):
            yield str(value), part
    else:
        raise ConfigError(f"errors by {by!r}: the table has no such column")


def _count(text: str, element: str) -> int:
    """How many atoms of ``element`` a formula has."""
    found = re.search(rf"{element}(?![a-z])(\d*)", text)
    return int(found.group(1) or 1) if found else 0


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
