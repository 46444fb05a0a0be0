"""Uncertainty from ensembles: how far networks of several seeds disagree, and whether that tells
how wrong they are.

The denoise paper asks (S6) how repeatable fine-tuned networks are; the same runs, which differ in
initial heads, order of the data and the draw of labels, make an ensemble (Lakshminarayanan et al.
2017, arXiv 1612.01474). With M members and their predictions y_m

    mean ȳ = Σ y_m / M,   spread s = √(Σ (y_m − ȳ)² / (M − 1)),   error e = ȳ − label

- correlation: of |e| with s, by ranks (Spearman) and of their logarithms (Pearson). A Gaussian
  error of known, varying scale does not reach 1.
- coverage: the share of labels within k(p)·s·``scale`` of the mean, where k(p) encloses the
  probability p. If the label were one more draw from what the members are drawn from (Gaussian),
  e/(s √(1 + 1/M)) would follow Student's t with M − 1 degrees of freedom, whose k is larger than
  the Gaussian's where members are few: of three, one spread encloses 0.52, not 0.68. Calibration is
  perfect where the share equals p; the miscalibration area is the mean of |share − p| over p (Tran
  et al. 2020, arXiv 1912.10066): 0 to about 0.5.
- ``scale``: median(|e|/s)/k(½), the factor that brings the spreads up to the errors (all members
  may be wrong together); fitted to other data than it is judged on. Not √mean(e²/s²): with three
  members 1/s² has no mean, and a few small spreads decide.

`calibration` has more of it for finished experiments, with intervals over molecules.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from ..errors import ConfigError, DataError
from ..models import Potential
from ..structures.store import Structures
from ..training import checkpoints
from ..training.evaluation import predict
from .statistics import grouping

LEVELS = np.linspace(0.05, 0.95, 19)  # probabilities at which coverage is looked at
FLOOR = 1e-12  # spreads below this (eV or eV/Å) are taken for this


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """What the members of an ensemble say of ``structures``: mean and spread, in eV (energies,
    [S]) and eV/Å (forces, [A, 3]).
    """

    members: int
    structures: Structures
    energy: np.ndarray  # [S]
    energy_spread: np.ndarray  # [S]
    forces: np.ndarray | None  # [A, 3]
    forces_spread: np.ndarray | None  # [A, 3]

    def errors(self, quantity: str = "forces") -> tuple[np.ndarray, np.ndarray]:
        """Errors of the mean and spreads, flat: of energies [S], or of all components of forces
        [3A]. Raises DataError without labels.
        """
        if quantity not in ("energy", "forces"):
            raise ConfigError(f"quantity must be 'energy' or 'forces', got {quantity!r}")
        label = getattr(self.structures, quantity)
        mean = getattr(self, quantity)
        if label is None or mean is None:
            name = self.structures.info.get("name", "structures")
            raise DataError(f"{name}: no {quantity} to compare the ensemble with")
        spread = np.maximum(getattr(self, f"{quantity}_spread"), FLOOR)
        return (mean - np.asarray(label, np.float64)).ravel(), spread.ravel()

    def table(self) -> pd.DataFrame:
        """A row per structure: system, atoms, error and spread of the energy (eV); root mean
        squares over its atoms for forces (eV/Å).
        """
        s = self.structures
        rows = {
            "system": np.array(s.system_names())[s.system],
            "atoms": s.n_atoms,
            "energy_spread": self.energy_spread,
        }
        if s.energy is not None:
            rows["energy_error"] = self.energy - s.energy
        if self.forces is not None:

            def rms(x: np.ndarray) -> np.ndarray:
                return np.sqrt(np.add.reduceat(np.square(x).sum(1), s.ptr[:-1]) / (3 * s.n_atoms))

            rows["forces_spread"] = rms(self.forces_spread)
            if s.forces is not None:
                rows["forces_error"] = rms(self.forces - np.asarray(s.forces, np.float64))
        return pd.DataFrame(rows)


def ensemble(
    members: Sequence[Potential | str | Path],
    structures: Structures,
    batch_size: int = 64,
    device: str | None = None,
) -> Ensemble:
    """Predictions of ``members`` (networks, checkpoints or run folders) for ``structures``.
    Raises ConfigError for fewer than two.
    """
    if len(members) < 2:
        raise ConfigError(f"an ensemble needs at least two networks, got {len(members)}")
    outputs = ("energy", "forces") if structures.forces is not None else ("energy",)
    said: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
    for member in members:
        model = member if isinstance(member, Potential) else checkpoints.load(member)
        for name, values in predict(model, structures, batch_size, device, outputs).items():
            said[name].append(np.asarray(values, np.float64))
    parts = {name: (np.mean(v, 0), np.std(v, 0, ddof=1)) for name, v in said.items()}
    return Ensemble(len(members), structures, *parts["energy"], *parts.get("forces", (None, None)))


def from_runs(
    runs: pd.DataFrame,
    store: str | Path,
    structures: Structures,
    by: Sequence[str] | None = None,
    device: str | None = None,
) -> dict[tuple, Ensemble]:
    """The ensembles over seeds in a table of `experiments.run`, with the networks in ``store``:
    (labels, arm) -> Ensemble.

    ``by``: further columns that tell experiments apart, put first in the keys. Groups with fewer
    than two finished runs are left out. Raises CheckpointError where the store does not have a run
    any more.
    """
    by = grouping(runs) if by is None else list(by)
    good = runs[runs["status"] == "ok"] if "status" in runs else runs
    ensembles = {}
    for key, part in good.groupby([*by, "arm"], sort=False, observed=True):
        if len(part) > 1:
            folders = [Path(store) / run for run in part["run"]]
            ensembles[key] = ensemble(folders, structures, device=device)
    return ensembles


def enclosing(levels: np.ndarray | float, members: int | None = None) -> np.ndarray:
    """k(p): how many spreads enclose the label with probability p; of a Gaussian known exactly
    where ``members`` is None.
    """
    upper = 0.5 + np.asarray(levels) / 2
    if members is None:
        return stats.norm.ppf(upper)
    return stats.t.ppf(upper, members - 1) * np.sqrt(1.0 + 1.0 / members)


def scale(error: np.ndarray, spread: np.ndarray, members: int | None = None) -> float:
    """By what spreads must be multiplied for half of the errors to lie where half of them
    should; 1 where that is so already.
    """
    return float(np.median(np.abs(error) / np.maximum(spread, FLOOR)) / enclosing(0.5, members))


def coverage(
    error: np.ndarray, spread: np.ndarray, members: int | None = None, levels: np.ndarray = LEVELS
) -> pd.DataFrame:
    """A row per probability p of ``levels``: k(p) and the share of |e| ≤ k·s."""
    k = enclosing(levels, members)
    ratio = np.abs(error) / np.maximum(spread, FLOOR)
    return pd.DataFrame(
        {"expected": levels, "k": k, "observed": [float(np.mean(ratio <= x)) for x in k]}
    )


def binned(error: np.ndarray, spread: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """Equally filled bins of rising spread: rms spread, rms error, and the number of values in
    each. A calibrated ensemble has both equal.
    """
    order = np.array_split(np.argsort(spread, kind="stable"), min(bins, len(spread)))

    def rms(values: np.ndarray) -> float:
        return float(np.sqrt(np.mean(np.square(values))))

    rows = [[rms(spread[part]), rms(error[part]), len(part)] for part in order]
    return pd.DataFrame(rows, columns=["spread", "error", "values"])


def summarise(
    ensembles: Ensemble | dict[tuple, Ensemble],
    quantity: str = "forces",
    calibrate_on: float = 0.5,
    seed: int = 0,
    names: Sequence[str] = ("labels", "arm"),
) -> pd.DataFrame:
    """A row per ensemble (whose key's parts are called ``names``): error and spread (rms), their
    correlation, coverage at one and two spreads, miscalibration area, scale.

    Errors and spreads in eV or eV/Å. ``scale`` is found on a share ``calibrate_on`` of the
    structures drawn with ``seed``, and all else is judged on the rest, ``…_scaled`` with that
    factor. Raises DataError where there are fewer than four structures to share out, ConfigError
    where a key has more or fewer parts than ``names``.
    """
    if isinstance(ensembles, Ensemble):
        ensembles = {(): ensembles}
    rows = []
    for key, one in ensembles.items():
        # a single ensemble has no key and so none of the names
        if key and len(key) != len(names):
            raise ConfigError(f"the ensemble {key} needs a name for each part, got {tuple(names)}")
        group = dict(zip(names, key, strict=True)) if key else {}
        n = len(one.structures)
        if n < 4:
            raise DataError(f"calibration needs at least 4 labelled structures, got {n}")
        error, spread = one.errors(quantity)
        owner = np.arange(n)  # the structure of each value
        if quantity == "forces":
            owner = np.repeat(owner, 3 * one.structures.n_atoms)
        chosen = np.zeros(n, bool)
        chosen[np.random.default_rng(seed).permutation(n)[: max(1, round(calibrate_on * n))]] = True
        first = chosen[owner]
        factor = scale(error[first], spread[first], one.members)
        e, s = error[~first], spread[~first]
        plain = coverage(e, s, one.members)
        scaled = coverage(e, factor * s, one.members)
        rows.append(
            group
            | {
                "quantity": quantity,
                "members": one.members,
                "values": len(e),
                "rmse": float(np.sqrt(np.mean(e**2))),
                "rms_spread": float(np.sqrt(np.mean(s**2))),
                "spearman": float(stats.spearmanr(np.abs(e), s).statistic),
                "log_pearson": float(
                    stats.pearsonr(np.log(np.abs(e) + FLOOR), np.log(s)).statistic
                ),
                "within_1": float(np.mean(np.abs(e) <= s)),
                "within_2": float(np.mean(np.abs(e) <= 2 * s)),
                "area": float(np.mean(np.abs(plain["observed"] - plain["expected"]))),
                "scale": factor,
                "area_scaled": float(np.mean(np.abs(scaled["observed"] - scaled["expected"]))),
            }
        )
    return pd.DataFrame(rows)
