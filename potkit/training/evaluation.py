"""How good a model is: errors of energy and forces per structure, per system and overall; and
the model as an ASE calculator.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from ..analysis.error_breakdown import centred, energy_errors
from ..errors import ConfigError, DataError
from ..kernels.compiling import for_predictions
from ..models import Potential
from ..structures.outputs import Kind, head
from ..structures.settings import count, shown
from ..structures.store import Structures
from . import checkpoints
from .memory import Limit

FIRST_COLUMNS = "system,atoms,energy,predicted_energy"  # of `Evaluation.structures` as CSV
ERRORS = Kind("a table of `potkit evaluate`", lambda path: head(path).startswith(FIRST_COLUMNS))
TABLES = ("structures", "systems")
FAULTS = ("normalizer-lost",)  # published faults of evaluation that `evaluate` repeats


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Errors of a model on labelled structures, in eV and eV/Å, over the whole set and in tables
    with a row per structure and per system.
    """

    energy_mae: float
    energy_rmse: float
    forces_mae: float  # NaN where the structures have no forces
    forces_rmse: float
    n_structures: int
    # DataFrame: system, atoms, energy, predicted_energy (eV), forces_mae, forces_rmse (eV/Å)
    structures: Any
    # DataFrame: system, structures, energy_mae, energy_rmse, forces_mae, forces_rmse,
    # energy_mae_per_atom (eV/atom), relative_energy_mae (eV, centred in the system)
    systems: Any

    def energies(self) -> dict[str, float]:
        """Mean absolute errors of total energies, per atom, and of relative energies, which are
        centred in each system (see `analysis.error_breakdown`): energy_mae, energy_mae_per_atom,
        relative_energy_mae.
        """
        table = self.structures
        error = (table["predicted_energy"] - table["energy"]).to_numpy()
        return energy_errors(error, table["atoms"].to_numpy(), table["system"].to_numpy())

    def to_dict(self) -> dict[str, float]:
        """The numbers of the whole set, in eV and eV/Å, without the two tables."""
        names = [field.name for field in dataclasses.fields(self)]
        return {name: getattr(self, name) for name in names if name not in TABLES}

    def __repr__(self) -> str:
        energy = f"MAE {1e3 * self.energy_mae:.2f} RMSE {1e3 * self.energy_rmse:.2f} meV"
        forces = f"MAE {1e3 * self.forces_mae:.2f} RMSE {1e3 * self.forces_rmse:.2f} meV/Å"
        errors = f"energy {energy}"
        if not np.isnan(self.forces_mae):
            errors += f", forces {forces}"
        return f"Evaluation({self.n_structures} structures: {errors})"


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
    """What ``model`` says of ``structures``: energy [S] float64 eV, forces and vector [A,3] as
    asked for by ``outputs``.

    Where memory is short, fewer than ``batch_size`` structures go through the network at once, with
    a warning. ``compile``: by the kernels of EGNN, SchNet and TorchMD-Net ET on a CPU
    (`potkit.kernels`; the first call builds them); ConfigError where there are none.
    """
    batch_size = count(batch_size, "batch_size")
    device = checked_device(device or next(model.parameters()).device)
    model.check_elements(structures.elements)
    dtype = next(model.parameters()).dtype
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
        if np.isfinite(values).all():
            continue
        row = int(np.argmin(np.isfinite(values.reshape(len(values), -1)).all(1)))
        if name != "energy":  # the structure of that atom
            row = int(np.searchsorted(structures.ptr, row, "right")) - 1
        raise DataError(
            f"{structures.info.get('name', 'structures')}: the predicted {name} of structure {row} "
            "is not a finite number; are its positions finite and its atoms apart?"
        )
    return predicted


def evaluate(
    model: Potential | str | Path,
    structures: Structures,
    batch_size: int = 64,
    device: str | torch.device | None = None,
    compile: bool = False,
    faults: Sequence[str] = (),
) -> Evaluation:
    """Errors of ``model`` (or the model in a checkpoint) on ``structures``, which need energies and
    may have forces.

    Means over structures for energy, over atoms and axes for forces. ``compile`` as in `predict`.
    ``faults`` of the published codes, off by default (see `objectives.faults`): "normalizer-lost"
    evaluates the weights without the reference energies and scale that were saved with them. Raises
    DataError without labels, ConfigError for an unknown fault.
    """
    import pandas as pd

    unknown = [name for name in faults if name not in FAULTS]
    if unknown:
        raise ConfigError(f"no fault {unknown[0]!r} of evaluation; there is {', '.join(FAULTS)}")
    if not isinstance(model, torch.nn.Module):
        model = checkpoints.load(model)
    if "normalizer-lost" in faults:
        model = copy.deepcopy(model).set_references({})
    if structures.energy is None or not len(structures):
        raise DataError(
            f"{structures.info.get('name', 'structures')}: no labelled structures to evaluate on"
        )
    structures.validate()
    with_forces = structures.forces is not None
    outputs = ("energy", "forces") if with_forces else ("energy",)
    predicted = predict(model, structures, batch_size, device, outputs, compile)
    error = predicted["energy"] - structures.energy
    names = np.array(structures.system_names())
    table = {
        "system": names[structures.system],
        "atoms": structures.n_atoms,
        "energy": structures.energy,
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
    raw = pd.DataFrame(
        {
            "system": table["system"],
            "energy_absolute": np.abs(error),
            "energy_per_atom": np.abs(error) / sizes,
            "energy_relative": np.abs(centred(error, structures.system)),
            "energy_squared": error**2,
            "forces_absolute": absolute,
            "forces_squared": squared,
            "axes": 3 * sizes,
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
    n_axes = 3 * int(sizes.sum())
    return Evaluation(
        energy_mae=float(np.abs(error).mean()),
        energy_rmse=float(np.sqrt(np.mean(error**2))),
        forces_mae=float(absolute.sum() / n_axes),
        forces_rmse=float(np.sqrt(squared.sum() / n_axes)),
        n_structures=len(structures),
        structures=pd.DataFrame(table),
        systems=systems,
    )


def calculator(
    checkpoint: str | Path | Potential,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    compile: bool = False,
):
    """An ASE Calculator (energy in eV, forces in eV/Å) of a checkpoint or a model.

    ``dtype``: float64 by default, which keeps dynamics conservative; with ``compile``, which is as
    in `predict`, float32.
    """
    from ase.calculators.calculator import Calculator, all_changes

    if isinstance(checkpoint, torch.nn.Module):
        model = copy.deepcopy(checkpoint)
    else:
        model = checkpoints.load(checkpoint)
    dtype = dtype or (torch.float32 if compile else torch.float64)
    model = model.to(checked_device(device), dtype).eval()
    with for_predictions(model, compile, device, dtype):
        pass  # builds the kernels, or says why not, here and not in the middle of a simulation

    class PotkitCalculator(Calculator):
        implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

        def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
            super().calculate(atoms, properties, system_changes)
            bare = self.atoms.copy()
            bare.calc = None
            structures = Structures.from_ase([bare])
            model.check_elements(structures.elements)
            batch = structures.batch(device=device, dtype=dtype)
            with for_predictions(model, compile, device, dtype):
                energy, forces = model.energy_and_forces(batch)
            if not (bool(energy.isfinite().all()) and bool(forces.isfinite().all())):
                raise DataError(
                    "the predicted energy or forces are not finite numbers; are all atoms apart?"
                )
            self.results = {"energy": float(energy[0]), "forces": forces.cpu().numpy()}

    return PotkitCalculator()
