"""How good a model is: errors of energy and forces per structure, per system and overall; and
the model as an ASE calculator.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..analysis.error_breakdown import centred, energy_errors
from ..errors import ConfigError, DataError
from ..kernels.compiling import for_predictions
from ..models import Potential
from ..structures.geometry import volumes
from ..structures.outputs import Kind, head
from ..structures.settings import count, shown
from ..structures.store import Structures
from . import checkpoints
from .memory import Limit
from .run_folder import Run

FIRST_COLUMNS = "system,atoms,energy,predicted_energy"  # of `Evaluation.structures` as CSV
ERRORS = Kind("a table of `potkit evaluate`", lambda path: head(path).startswith(FIRST_COLUMNS))
TABLES = ("structures", "systems", "predicted_forces")
FAULTS = ("normalizer-lost",)  # published faults of evaluation that `evaluate` repeats


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Errors of a model on labelled structures, in eV, eV/Å and eV/Å³, over the whole set and in
    tables with a row per structure and per system. The tables have stress_mae and stress_rmse
    (eV/Å³) where structures have a stress.
    """

    energy_mae: float  # NaN where the structures have no energies
    energy_rmse: float
    forces_mae: float  # NaN where the structures have no forces
    forces_rmse: float
    n_structures: int
    # DataFrame: system, atoms, energy, predicted_energy (eV), forces_mae, forces_rmse (eV/Å)
    structures: Any
    # DataFrame: system, structures, energy_mae, energy_rmse, forces_mae, forces_rmse,
    # energy_mae_per_atom (eV/atom), relative_energy_mae (eV, centred in the system)
    systems: Any
    # over the nine components of labelled structures; NaN where there is none
    stress_mae: float = float("nan")
    stress_rmse: float = float("nan")
    # [A,3] predicted forces (eV/Å), where `evaluate` was asked to keep them
    predicted_forces: np.ndarray | None = None

    def summary(self) -> Any:
        """What papers print, as a DataFrame: MAE and RMSE of the energy per atom (meV/atom) and of
        the force components (meV/Å), those there are; columns quantity, mae, rmse, unit.
        """
        import pandas as pd

        table = self.structures
        error = ((table["predicted_energy"] - table["energy"]) / table["atoms"]).to_numpy()
        mae, rmse = 1e3 * _mean(np.abs(error)), 1e3 * _mean(error**2) ** 0.5
        rows = [] if np.isnan(mae) else [("energy per atom", mae, rmse, "meV/atom")]
        if not np.isnan(self.forces_mae):
            rows.append(("forces", 1e3 * self.forces_mae, 1e3 * self.forces_rmse, "meV/Å"))
        return pd.DataFrame(rows, columns=["quantity", "mae", "rmse", "unit"])

    def energies(self) -> dict[str, float]:
        """Mean absolute errors of total energies, per atom, and of relative energies, which are
        centred in each system (see `analysis.error_breakdown`): energy_mae, energy_mae_per_atom,
        relative_energy_mae.
        """
        table = self.structures.dropna(subset=["energy"])
        error = (table["predicted_energy"] - table["energy"]).to_numpy()
        return energy_errors(error, table["atoms"].to_numpy(), table["system"].to_numpy())

    def to_dict(self) -> dict[str, float]:
        """The numbers of the whole set, in eV, eV/Å and (where there are any) eV/Å³, without the
        two tables.
        """
        names = [field.name for field in dataclasses.fields(self)]
        absent = ("stress_mae", "stress_rmse") if np.isnan(self.stress_mae) else ()
        return {name: getattr(self, name) for name in names if name not in (*TABLES, *absent)}

    def __repr__(self) -> str:
        energy = f"MAE {1e3 * self.energy_mae:.2f} RMSE {1e3 * self.energy_rmse:.2f} meV"
        forces = f"MAE {1e3 * self.forces_mae:.2f} RMSE {1e3 * self.forces_rmse:.2f} meV/Å"
        errors = f"energy {energy}" if not np.isnan(self.energy_mae) else "no energies"
        if not np.isnan(self.forces_mae):
            errors += f", forces {forces}"
        if not np.isnan(self.stress_mae):
            mae, rmse = self.stress_mae, self.stress_rmse
            errors += f", stress MAE {1e3 * mae:.3f} RMSE {1e3 * rmse:.3f} meV/Å³"
            errors += f" (MAE {in_gpa(mae):.4f} RMSE {in_gpa(rmse):.4f} GPa)"
        return f"Evaluation({self.n_structures} structures: {errors})"


def in_gpa(stress: float) -> float:
    """A stress in eV/Å³ in GPa."""
    from ase.units import GPa

    return stress / GPa


def checked_device(device: str | torch.device) -> torch.device:
    """``device`` if this machine has it. Raises ConfigError."""
    try:
        device = torch.device(device)
        if device.type == "cuda":
            found = torch.cuda.device_count() if torch.cuda.is_available() else 0
            if (device.index or 0) >= found:
                raise ConfigError(f"device {device}: this machine has {found} CUDA devices")
        torch.empty(0, device=device)
    except (RuntimeError, TypeError, AssertionError, NotImplementedError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ConfigError(f"device {shown(device)}: not to be used here ({reason})") from None
    return device


def predict(
    model: Potential,
    structures: Structures,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    outputs=("energy", "forces"),
    compile: bool = False,
) -> dict[str, np.ndarray]:
    """What ``model`` says of ``structures``: energy [S] float64 eV, forces and vector [A,3],
    stress [S,3,3] eV/Å³ (NaN where a structure has no cell), as asked for by ``outputs``.

    Where memory is short, fewer than ``batch_size`` structures go through the network at once, with
    a warning. ``compile``: through compiled code, which takes up to a minute to make when it is
    first used: the kernels of EGNN, SchNet and TorchMD-Net ET in float32 on a CPU
    (`potkit.kernels`), else torch.compile; ConfigError for a network that cannot be compiled.
    """
    batch_size = count(batch_size, "batch_size")
    device = checked_device(device or model.like().device)
    model.check_elements(structures.elements)
    model.check_charges(torch.tensor(structures.charge))
    dtype = model.like().dtype
    was_training = model.training
    quick = for_predictions(model, compile, device, dtype)  # raises before the model is moved
    model.to(device).eval()
    parts: dict[str, list[np.ndarray]] = {name: [] for name in outputs}
    limit = Limit(batch_size, "evaluation")
    start = 0

    def answer(size: int) -> int:
        rows = np.arange(start, min(start + size, len(structures)))
        prediction = model(structures.batch(rows, device, dtype), outputs)
        # all of them before any is kept: memory may run out in between
        answers = {name: getattr(prediction, name).cpu().numpy() for name in outputs}
        for name, values in answers.items():
            parts[name].append(values)
        return len(rows)

    with torch.no_grad(), quick:
        while start < len(structures):
            start += limit.attempt(batch_size, answer)
    model.train(was_training)
    predicted = {name: np.concatenate(p) if p else np.zeros(0) for name, p in parts.items()}
    for name, values in predicted.items():
        finite = np.isfinite(values.reshape(len(values), -1)).all(1)
        if name == "stress":
            finite |= _volumes(structures) == 0
        if finite.all():
            continue
        row = int(np.argmin(finite))
        if name not in ("energy", "stress"):  # the structure of that atom
            row = int(np.searchsorted(structures.ptr, row, "right")) - 1
        raise DataError(
            f"{structures.info.get('name', 'structures')}: the predicted {name} of structure {row} "
            "is not a finite number; are its positions finite and its atoms apart?"
        )
    return predicted


def _volumes(structures: Structures) -> np.ndarray:
    """Volumes [S] Å³ of cells, 0 where a structure has no stress."""
    cell = None if structures.cell is None else torch.from_numpy(np.array(structures.cell))
    return volumes(cell, torch.from_numpy(np.array(structures.pbc))).numpy()


def evaluate(
    model: Potential | str | Path | Run,
    structures: Structures,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    compile: bool = False,
    faults: Sequence[str] = (),
    keep_forces: bool = False,
) -> Evaluation:
    """Errors of ``model`` (a network, checkpoint or run) on ``structures``, which need energies or
    forces, and may have stresses; of a partly labelled set each structure counts with what it has.

    Means over structures for energy, over atoms and axes for forces, over labelled structures and
    components for stress (of networks that have one). ``compile`` as in `predict`.
    ``keep_forces``: also what is predicted for every atom. ``faults`` of the published codes, off
    by default (see `objectives.faults`): "normalizer-lost" evaluates the weights without the
    reference energies and scale that were saved with them. Raises DataError without labels,
    CheckpointError for a network without energies, ConfigError for an unknown fault.
    """
    import pandas as pd

    unknown = [name for name in faults if name not in FAULTS]
    if unknown:
        raise ConfigError(f"no fault {unknown[0]!r} of evaluation; there is {', '.join(FAULTS)}")
    model = _trained(model)
    if "normalizer-lost" in faults:
        model = copy.deepcopy(model).set_references({})
    if not (structures.labelled("energy") | structures.labelled("forces")).any():
        raise DataError(
            f"{structures.info.get('name', 'structures')}: no labelled structures to evaluate on"
        )
    structures.validate()
    with_forces = structures.forces is not None
    stressed = np.zeros(len(structures), bool)
    if structures.stress is not None and model.has_stress:
        stressed = np.isfinite(structures.stress).all((1, 2)) & (_volumes(structures) > 0)
    outputs = ["energy"] + ["forces"] * with_forces + ["stress"] * bool(stressed.any())
    predicted = predict(model, structures, batch_size, device, outputs, compile)
    # NaN where a structure has no energy or no forces: left out of the means
    energy = structures.energy
    energy = np.full(len(structures), np.nan) if energy is None else energy
    error = predicted["energy"] - energy
    names = np.array(structures.system_names())
    table = {
        "system": names[structures.system],
        "atoms": structures.n_atoms,
        "energy": energy,
        "predicted_energy": predicted["energy"],
    }
    sizes = structures.n_atoms
    if with_forces:
        delta = predicted["forces"].astype(np.float64) - structures.forces
        owner = np.repeat(np.arange(len(structures)), sizes)
        absolute = np.bincount(owner, np.abs(delta).sum(1), len(structures))
        squared = np.bincount(owner, np.square(delta).sum(1), len(structures))
        table |= {
            "forces_mae": absolute / (3 * sizes),
            "forces_rmse": np.sqrt(squared / (3 * sizes)),
        }
    else:
        absolute = squared = np.full(len(structures), np.nan)
    relative = np.full(len(structures), np.nan)
    known = ~np.isnan(error)
    relative[known] = np.abs(centred(error[known], structures.system[known]))
    if stressed.any():
        off = predicted["stress"].astype(np.float64) - structures.stress  # NaN without a label
        off[~stressed] = np.nan
        table |= {
            "stress_mae": np.abs(off).mean((1, 2)),
            "stress_rmse": np.sqrt(np.square(off).mean((1, 2))),
        }
    raw = pd.DataFrame(
        {
            "system": table["system"],
            "energy_absolute": np.abs(error),
            "energy_per_atom": np.abs(error) / sizes,
            "energy_relative": relative,
            "energy_squared": error**2,
            "forces_absolute": absolute,
            "forces_squared": squared,
            "axes": np.where(np.isnan(absolute), np.nan, 3.0 * sizes),
        }
    )
    groups = raw.groupby("system", sort=False)
    total = groups[["forces_absolute", "forces_squared", "axes"]].sum(min_count=1)
    systems = pd.DataFrame(
        {
            "structures": groups.size(),
            "energy_mae": groups["energy_absolute"].mean(),
            "energy_rmse": np.sqrt(groups["energy_squared"].mean()),
            "forces_mae": total["forces_absolute"] / total["axes"],
            "forces_rmse": np.sqrt(total["forces_squared"] / total["axes"]),
            "energy_mae_per_atom": groups["energy_per_atom"].mean(),
            "relative_energy_mae": groups["energy_relative"].mean(),
        }
    ).reset_index()
    n_axes = raw["axes"].sum(min_count=1)
    of_stress = {}
    if stressed.any():
        by = [table["system"], table["stress_mae"], table["stress_rmse"] ** 2]
        means = pd.DataFrame(dict(zip(("system", "mae", "square"), by, strict=True)))
        means = means.groupby("system", sort=False).mean()
        systems["stress_mae"] = means["mae"].to_numpy()
        systems["stress_rmse"] = np.sqrt(means["square"].to_numpy())
        of_stress["stress_mae"] = float(table["stress_mae"][stressed].mean())
        of_stress["stress_rmse"] = float(np.sqrt(np.square(off[stressed]).mean()))
    return Evaluation(
        energy_mae=_mean(np.abs(error)),
        energy_rmse=_mean(error**2) ** 0.5,
        forces_mae=float(np.nansum(absolute) / n_axes),
        forces_rmse=float(np.sqrt(np.nansum(squared) / n_axes)),
        n_structures=len(structures),
        structures=pd.DataFrame(table),
        systems=systems,
        predicted_forces=predicted["forces"] if keep_forces and with_forces else None,
        **of_stress,
    )


def _mean(values: np.ndarray) -> float:
    """The mean of those that are numbers; NaN if none is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else float("nan")


def calculator(
    checkpoint: str | Path | Run | Potential | Sequence[str | Path | Run | Potential],
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    compile: bool | None = None,
):
    """An ASE Calculator of a checkpoint, run or model: energy and free_energy in eV, energies of
    atoms in eV, forces in eV/Å, stress in eV/Å³ (Voigt's order, positive under tension) where atoms
    have a cell.

    A list of them is an ensemble: its calculator has the members' means, and as energy_std,
    forces_std, stress_std and energies_std their sample standard deviation, in the same units
    (``calc.results["forces_std"]``, or ``calc.get_property("forces_std", atoms)``).
    ``dtype``: float64 by default, which keeps dynamics conservative; with ``compile``, which makes
    code as in `predict`, float32. Where nothing is said of ``compile`` it is compiled in its
    precision as soon as its predictions have taken half a minute, if the machine has a compiler:
    numbers then change in the last digits. False: never. It can be pickled, and works inside
    ``torch.inference_mode``.

    A network that reads total charges takes that of ``atoms.info["charge"]`` (e), 0 where it is not
    there. ASE's initial charges of atoms are not read: where they add up to anything else, and
    ``info`` says nothing, a prediction raises DataError.

    Raises CheckpointError for a checkpoint that cannot be read or has no energies, ConfigError for
    an empty list, a device that is not there, and networks that cannot be compiled where
    ``compile``.
    """
    from .ase_calculator import PotkitCalculator

    several = isinstance(checkpoint, Iterable) and not isinstance(checkpoint, (str, nn.Module))
    members = list(checkpoint) if several else [checkpoint]
    if not members:
        raise ConfigError("calculator: the list of checkpoints is empty")
    dtype = dtype or (torch.float32 if compile else torch.float64)
    place = checked_device(device)
    with torch.inference_mode(False):
        # copies of their own: weights that nobody trains cost nothing in −∂E/∂x
        models = [open_model(member).to(place, dtype).requires_grad_(False) for member in members]
    return PotkitCalculator(models, device, dtype, compile)


def open_model(checkpoint: str | Path | Run | Potential) -> Potential:
    """The trained network of a checkpoint or run; a copy of one that is given as such.

    Raises CheckpointError for one without energies, ConfigError for what is none of these.
    """
    model = _trained(checkpoint)
    return copy.deepcopy(model).eval() if model is checkpoint else model


def _trained(source: str | Path | Run | Potential) -> Potential:
    """The network that ``source`` is or holds; raises as `open_model` does."""
    if not isinstance(source, (str, Path, Run, nn.Module)):
        raise ConfigError(f"a checkpoint, a run or a network is needed, got {shown(source)}")
    source = source.checkpoint if isinstance(source, Run) else source
    checkpoints.require_energies(source)
    return source if isinstance(source, nn.Module) else checkpoints.load(source)
