"""What a network has to beat: predictions that need no network.

    composition   least squares of the energies over how many atoms of each element there are, on
                  the labelled structures
    zero forces   every force is 0
    GFN2-xTB      a semi-empirical method as it is (Bannwarth, Ehlert & Grimme 2019; by tblite,
                  where it is installed), its total energies shifted to those of the labels by
                  least squares over composition on the labelled structures

All use the labels a network would have, validation included, and are judged on the same test set.
`report.wide` and `report.across` show them beside the arms, and mark an arm whose mean error is
above one of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .. import units
from ..datasets.references import ReferenceEnergies
from ..errors import ConfigError, DataError
from ..structures.store import Structures, concatenate

if TYPE_CHECKING:
    from .experiment import Experiment

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
    kept for the next call.
    """
    key = structures.fingerprint()
    if key not in _computed:
        _computed[key] = _xtb(structures)
    return _computed[key]


# by the fingerprint of the structures: the same test set comes with every draw of labels
_computed: dict[str, tuple[np.ndarray, np.ndarray]] = {}


def _xtb(structures: Structures) -> tuple[np.ndarray, np.ndarray]:
    try:
        from tblite.interface import Calculator
    except ImportError:
        raise ConfigError(
            "the baseline GFN2-xTB needs tblite: pip install 'potkit[generate]'"
        ) from None
    energy = np.empty(len(structures))
    forces = np.empty((len(structures.z), 3))
    for i in range(len(structures)):
        atoms = slice(structures.ptr[i], structures.ptr[i + 1])
        pos = np.asarray(structures.pos[atoms], np.float64) / units.BOHR
        periodic = structures.pbc[i]
        box: dict[str, Any] = {}
        if structures.cell is not None and periodic.any():
            box = {"lattice": structures.cell[i] / units.BOHR, "periodic": periodic}
        charge = float(structures.charge[i])
        try:
            calculator = Calculator("GFN2-xTB", structures.z[atoms].astype(int), pos, charge, **box)
            calculator.set("verbosity", 0)
            result = calculator.singlepoint()
        except RuntimeError as error:
            name = structures.info.get("name", "structures")
            raise DataError(f"{name}: structure {i}: GFN2-xTB failed ({error})") from None
        energy[i] = result.get("energy") * units.HARTREE
        forces[atoms] = -result.get("gradient") * units.HARTREE / units.BOHR
    return energy, forces


BASELINES: dict[str, Callable[[Structures, Structures], Predicted]] = {
    "composition": composition,
    "zero forces": zero_forces,
    "GFN2-xTB": gfn2_xtb,
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

    ``mean`` is the geometric mean over the draws of labels that the networks had, in eV or eV/Å.
    """
    rows = []
    for experiment in experiments:
        for count in experiment.labels:
            seeds = [
                experiment.finetune_seed(s, d)
                for s in experiment.seeds
                for d in range(experiment.draws)
            ]
            drawn = [concatenate(list(experiment.labelled(count, seed))) for seed in seeds]
            each = [errors(train, experiment.test, names) for train in drawn]
            for name in names:
                for metric in each[0][name]:
                    logs = [np.log(one[name][metric]) for one in each]
                    about = {"labels": count, "baseline": name, "metric": metric}
                    rows.append(
                        {**experiment.columns, **about, "mean": float(np.exp(np.mean(logs)))}
                    )
    return pd.DataFrame(rows)
