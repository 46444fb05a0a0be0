"""What a network has to beat: predictions that need no network.

    composition   least squares of the energies over how many atoms of each element there are, on
                  the labelled structures
    zero forces   every force is 0
    GFN2-xTB      a semi-empirical method as it is (Bannwarth, Ehlert & Grimme 2019; by tblite,
                  where it is installed), its total energies shifted to those of the labels by
                  least squares over composition on the labelled structures

All use the labels a network would have, validation included, and are judged on the same test set.
`mark` names beside each arm the baselines it is worse than; tables and pictures of `report` show
both. `drawn` writes down which structures of an embedded set were labelled and tested on, so that
`of_drawn` can recompute the baselines where nothing else of an experiment is stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import units
from ..datasets import registry
from ..datasets.records import RECORDS
from ..datasets.references import ReferenceEnergies
from ..errors import ConfigError, DataError
from ..structures.store import Structures, concatenate

if TYPE_CHECKING:
    from .experiment import Experiment
    from .yaml_form import GridSpec

Predicted = tuple[np.ndarray | None, np.ndarray | None]  # energies [S] eV, forces [A, 3] eV/Å


def composition(train: Structures, test: Structures) -> Predicted:
    """Energies by least squares over composition. Raises DataError for an element that no labelled
    structure has.
    """
    return ReferenceEnergies.fit(train).energy(test), None


def zero_forces(train: Structures, test: Structures) -> Predicted:
    """No force on any atom."""
    return None, np.zeros((len(test.z), 3))


def gfn2_xtb(train: Structures, test: Structures) -> Predicted:
    """GFN2-xTB as it is; energies shifted by least squares over composition on ``train``.

    Raises ConfigError where tblite is not installed, DataError naming a structure whose electrons
    do not converge.
    """
    energy, forces = xtb(test)
    semi_empirical, _ = xtb(train)
    shift = Structures(train.z, train.pos, train.ptr, energy=train.energy - semi_empirical)
    return energy + ReferenceEnergies.fit(shift).energy(test), forces


def xtb(structures: Structures) -> tuple[np.ndarray, np.ndarray]:
    """GFN2-xTB's total energies [S] (eV) and forces [A, 3] (eV/Å), one structure after the other;
    each is computed once, however many draws of labels it is in.
    """
    energy = np.empty(len(structures))
    forces = np.empty((len(structures.z), 3))
    for i in range(len(structures)):
        one = structures[i : i + 1]
        key = _geometry(one)
        if key not in _computed:
            name = structures.info.get("name", "structures")
            _computed[key] = _xtb(one, f"{name}: structure {i}")
        atoms = slice(structures.ptr[i], structures.ptr[i + 1])
        energy[i], forces[atoms] = _computed[key]
    return energy, forces


_computed: dict[bytes, tuple[float, np.ndarray]] = {}  # by `_geometry`: eV, [atoms, 3] eV/Å


def _geometry(one: Structures) -> bytes:
    """What GFN2-xTB is told of a single structure, as a key."""
    cell = b"" if one.cell is None else np.asarray(one.cell, np.float64).tobytes()
    parts = [
        np.asarray(one.z, np.int64).tobytes(),
        np.asarray(one.pos, np.float64).tobytes(),
        np.asarray(one.charge, np.float64).tobytes(),
        np.asarray(one.pbc, bool).tobytes(),
        cell,
    ]
    return hashlib.blake2b(b"|".join(parts), digest_size=16).digest()


def _xtb(one: Structures, name: str) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces [atoms, 3] (eV/Å) of a single structure, called ``name`` in errors."""
    try:
        from tblite.interface import Calculator
    except ImportError:
        raise ConfigError(
            "the baseline GFN2-xTB needs tblite: pip install 'potkit[generate]'"
        ) from None
    pos = np.asarray(one.pos, np.float64) / units.BOHR
    periodic = one.pbc[0]
    box: dict[str, Any] = {}
    if one.cell is not None and periodic.any():
        box = {"lattice": one.cell[0] / units.BOHR, "periodic": periodic}
    try:
        calculator = Calculator(
            "GFN2-xTB", one.z.astype(int), pos, charge=float(one.charge[0]), **box
        )
        calculator.set("verbosity", 0)
        result = calculator.singlepoint()
    except RuntimeError as error:
        raise DataError(f"{name}: GFN2-xTB failed ({error})") from None
    energy = float(result.get("energy")) * units.HARTREE
    return energy, -result.get("gradient") * units.HARTREE / units.BOHR


XTB = "GFN2-xTB"
BASELINES: dict[str, Callable[[Structures, Structures], Predicted]] = {
    "composition": composition,
    "zero forces": zero_forces,
    XTB: gfn2_xtb,
}
TRIVIAL = ("composition", "zero forces")


def errors(
    train: Structures, test: Structures, names: Sequence[str] = TRIVIAL
) -> dict[str, dict[str, float]]:
    """Errors on ``test`` of the baselines called ``names``, as `Evaluation` has them (eV, eV/Å);
    only what each predicts.

    Raises ConfigError for an unknown name, DataError for structures without labels.
    """
    for name in names:
        if name not in BASELINES:
            raise ConfigError(f"no baseline {name!r}; there are {', '.join(BASELINES)}")
    for what, structures in (("train", train), ("test", test)):
        if structures.energy is None or not len(structures):
            raise DataError(f"baselines: no labelled structures to {what} on")
    table: dict[str, dict[str, float]] = {}
    for name in names:
        energy, forces = BASELINES[name](train, test)
        metrics: dict[str, float] = {}
        if energy is not None:
            error = energy - test.energy
            metrics |= {
                "energy_mae": np.abs(error).mean(),
                "energy_rmse": np.sqrt(np.square(error).mean()),
            }
        if forces is not None and test.forces is not None:
            error = forces - np.asarray(test.forces, np.float64)
            metrics |= {
                "forces_mae": np.abs(error).mean(),
                "forces_rmse": np.sqrt(np.square(error).mean()),
            }
        table[name] = {metric: float(value) for metric, value in metrics.items()}
    return table


def of_experiments(
    experiments: Sequence[Experiment], names: Sequence[str] = TRIVIAL
) -> pd.DataFrame:
    """The baselines of each experiment at each label budget: columns that tell experiments apart,
    labels, baseline, metric, mean.

    ``mean`` is the geometric mean over the draws of labels that the networks had, in eV or eV/Å. A
    baseline that a draw does not allow (an element without a label) is left out at that budget, and
    ``attrs["left_out"]`` has a line that says why.
    """
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for experiment in experiments:
        for count in experiment.labels:
            about = {**experiment.columns, "labels": count}
            draws = _draws(experiment, count)
            rows += _of_draws(about, draws, experiment.test, names, left_out)
    table = pd.DataFrame(rows)
    table.attrs["left_out"] = left_out
    return table


def _draws(experiment: Experiment, count: int) -> list[Structures]:
    """The labelled structures of every run of an arm at a label budget, validation included."""
    seeds = [
        experiment.finetune_seed(s, d) for s in experiment.seeds for d in range(experiment.draws)
    ]
    return [concatenate(list(experiment.labelled(count, seed))) for seed in seeds]


def _of_draws(
    about: Mapping[str, Any],
    draws: Sequence[Structures],
    test: Structures,
    names: Sequence[str],
    left_out: list[str],
) -> list[dict[str, Any]]:
    """The rows of one experiment and label budget; a line joins ``left_out`` for each baseline that
    a draw does not allow.
    """
    rows = []
    for name in names:
        try:
            each = [errors(train, test, [name])[name] for train in draws]
        except DataError as error:
            *where, labels = about.values()
            there = " ".join([*map(str, where), f"{labels} labels"])
            left_out.append(f"{there}: no baseline {name}: {error}")
            continue
        for metric in each[0]:
            # an error of 0 (labels that are the method's own) stays 0
            with np.errstate(divide="ignore"):
                logs = np.log([one[metric] for one in each])
            mean = float(np.exp(np.mean(logs)))
            rows.append({**about, "baseline": name, "metric": metric, "mean": mean})
    return rows


def of_spec(spec: GridSpec, names: Sequence[str] = TRIVIAL) -> pd.DataFrame:
    """`of_experiments` of an experiment in YAML, without the structures it would pretrain on."""
    loaded: dict[str, Structures] = {}
    no_network = {
        "arms": {},
        "vectors": {},
        "parts": {},
        "pretrain_on": None,
        "primary": None,
        "longer": None,
    }
    experiments = [
        cell.model_copy(update=no_network).experiment(loaded=loaded, columns=columns)
        for columns, cell in spec.specs
    ]
    return of_experiments(experiments, names)


# -- which structures they were made of -----------------------------------------------------------
def drawn(experiments: Sequence[Experiment]) -> list[dict[str, Any]]:
    """Which structures each experiment's labels were drawn as and which it was tested on, as JSON
    has it; [] where some are not in a set that comes with potkit.

    A dict per experiment: columns, data (the set), fingerprint (of the whole set, as
    `Structures.fingerprint`), test (rows of the set, "0-5 8 11"), labelled (label budget -> the
    rows of each draw). Of structures that are alike in all arrays the first row stands.
    """
    found: list[dict[str, Any]] = []
    known: dict[str, dict[bytes, int]] = {}
    for experiment in experiments:
        name = experiment.test.info.get("name")
        if name not in _embedded():
            return []
        whole = registry.load(name)
        rows = known.setdefault(name, {})
        if not rows:  # from the last, so that the first of equals stays
            rows |= {key: i for i, key in reversed(list(enumerate(_contents(whole))))}
        try:
            test = [rows[key] for key in _contents(experiment.test)]
            labelled = {
                str(count): [
                    _ranges([rows[key] for key in _contents(one)])
                    for one in _draws(experiment, count)
                ]
                for count in experiment.labels
            }
        except KeyError:
            return []
        of_set = {"data": name, "fingerprint": whole.fingerprint()}
        drawn_rows = {"test": _ranges(test), "labelled": labelled}
        found.append({"columns": dict(experiment.columns), **of_set, **drawn_rows})
    return found


def of_drawn(
    experiments: Sequence[Mapping[str, Any]], names: Sequence[str] = TRIVIAL
) -> pd.DataFrame:
    """`of_experiments` of what `drawn` wrote down, from the sets that come with potkit.

    Raises DataError where such a set is not there, or not the one it was.
    """
    rows: list[dict[str, Any]] = []
    left_out: list[str] = []
    for one in experiments:
        if one["data"] not in _embedded():
            raise DataError(f"{one['data']}: no such set comes with potkit")
        whole = registry.load(one["data"])
        if whole.fingerprint() != one["fingerprint"]:
            raise DataError(
                f"{one['data']}: the set is not the one that labels were drawn from "
                f"(fingerprint {whole.fingerprint()}, then {one['fingerprint']})"
            )
        test = whole[_rows(one["test"], len(whole), one["data"])]
        for count, draws in one["labelled"].items():
            about = {**one["columns"], "labels": int(count)}
            taken = [whole[_rows(draw, len(whole), one["data"])] for draw in draws]
            rows += _of_draws(about, taken, test, names, left_out)
    table = pd.DataFrame(rows)
    table.attrs["left_out"] = left_out
    return table


def _embedded() -> set[str]:
    return {record.name for record in RECORDS if record.kind == "embedded"}


def _contents(structures: Structures) -> list[bytes]:
    """A key of each structure, of all that a baseline is told: elements, positions, labels."""
    of_atoms = [structures.z, structures.pos]
    if structures.forces is not None:
        of_atoms.append(structures.forces)
    of_structures = [] if structures.energy is None else [structures.energy]
    keys = []
    for i, (start, end) in enumerate(pairwise(structures.ptr)):
        digest = hashlib.blake2b(digest_size=16)
        for array in of_atoms:
            digest.update(np.ascontiguousarray(array[start:end]))
        for array in of_structures:
            digest.update(np.ascontiguousarray(array[i : i + 1]))
        keys.append(digest.digest())
    return keys


def _ranges(rows: Sequence[int]) -> str:
    """Numbers of rows, sorted, as people write them: "0-5 8 11"."""
    ordered = np.unique(rows)
    stretches = np.split(ordered, np.flatnonzero(np.diff(ordered) > 1) + 1)
    ends = [(s[0], s[-1]) for s in stretches if len(s)]
    return " ".join(f"{a}" if a == b else f"{a}-{b}" for a, b in ends)


def _rows(ranges: str, count: int, name: str) -> np.ndarray:
    """The rows that `_ranges` wrote down of a set of ``count`` structures."""
    try:
        ends = [[int(end) for end in part.split("-")] for part in ranges.split()]
        rows = np.concatenate([np.arange(part[0], part[-1] + 1) for part in ends])
    except ValueError:
        raise DataError(f"{name}: rows such as '0-5 8 11' were expected, got {ranges!r}") from None
    if rows.max() >= count:
        raise DataError(f"{name}: row {rows.max()} is beyond its {count} structures")
    return rows


# -- beside networks -----------------------------------------------------------------------------
def beside(baselines: pd.DataFrame, row: Mapping[str, Any]) -> pd.DataFrame:
    """The rows of a table of `of_experiments` that belong to one row of a summary: the same
    experiment, label budget and metric.
    """
    here = baselines[baselines["metric"] == row["metric"]]
    for column in [c for c in baselines if c not in ("baseline", "metric", "mean")]:
        if column not in row:
            raise ConfigError(
                f"the baselines are told apart by {column!r}, which the table beside them has not"
            )
        here = here[here[column].astype(str) == str(row[column])]
    return here


def mark(summary: pd.DataFrame, baselines: pd.DataFrame) -> pd.DataFrame:
    """``summary`` (of `statistics.summarise`) with the column "worse_than": the baselines with a
    smaller error than an arm's mean, joined by "; ", or "".

    Raises ConfigError where the two tables tell experiments apart by other columns.
    """
    worse = []
    for row in summary.to_dict("records"):
        known = beside(baselines, row)
        worse.append("; ".join(known.loc[known["mean"] < row["mean"], "baseline"]))
    marked = summary.assign(worse_than=worse)
    marked.attrs = dict(summary.attrs)
    return marked
