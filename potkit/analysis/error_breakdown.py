"""Where a model's errors come from: by molecule, by element, by size, or by any label of the
structures such as their temperature; and energies in the three ways that people compare them.

    total       |E − E_label| of a structure: grows with its number of atoms, and holds a constant
                of each composition that no force can tell
    per atom    the same over the number of atoms
    relative    |e − ē|, where e = E − E_label and ē is its mean over the structures of the same
                system in the set: what is left for barriers and conformers. A system with a single
                structure has none

Everything is in eV and eV/Å.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from ..datasets import duplicates
from ..errors import ConfigError, DataError
from ..structures.elements import SYMBOLS
from ..structures.store import Structures

BY = ("system", "element", "size")


def centred(
    error: np.ndarray,  # [S]
    system: np.ndarray,  # [S] names or numbers
) -> np.ndarray:  # [S]
    """``error`` less its mean over each system; NaN where a system has one structure only, and
    where the error is NaN, for want of a label.
    """
    number = np.unique(np.asarray(system), return_inverse=True)[1]
    known = np.isfinite(error)
    count = np.bincount(number, known)
    with np.errstate(invalid="ignore", divide="ignore"):  # systems without any label
        mean = np.bincount(number, np.where(known, error, 0.0)) / count
    return np.where(count[number] > 1, error - mean[number], np.nan)


def energy_errors(
    error: np.ndarray,  # [S] eV, predicted less label
    atoms: np.ndarray,  # [S]
    system: np.ndarray,  # [S]
) -> dict[str, float]:
    """Mean absolute errors of energies: energy_mae (eV), energy_mae_per_atom (eV/atom),
    relative_energy_mae (eV; NaN where no system has two structures). Of structures with a label:
    where the error is NaN there is none.
    """
    relative = centred(error, system)
    known = relative[np.isfinite(relative)]
    labelled = np.isfinite(error)
    error, atoms = error[labelled], atoms[labelled]
    return {
        "energy_mae": float(np.abs(error).mean()) if len(error) else float("nan"),
        "energy_mae_per_atom": (
            float(np.mean(np.abs(error) / atoms)) if len(error) else float("nan")
        ),
        "relative_energy_mae": float(np.abs(known).mean()) if len(known) else float("nan"),
    }


def breakdown(
    structures: Structures,
    predicted: Mapping[str, np.ndarray],
    by: str | Sequence = "system",
    sizes: Sequence[int] | None = None,
) -> pd.DataFrame:
    """The errors of ``predicted`` (energy [S] eV and, where there are some, forces [A, 3] eV/Å, as
    `training.evaluation.predict` returns them) in groups of the labelled ``structures``.

    ``by``: "system"; "element" (forces on its atoms only: an energy belongs to no element); "size",
    the number of atoms, in bins that begin at ``sizes`` (default: four equally filled ones); or a
    label for each structure [S], such as its temperature. Columns: group, structures, atoms,
    energy_mae, energy_mae_per_atom, relative_energy_mae (see `energy_errors`), forces_mae,
    forces_rmse. Relative energies are centred over the whole set, not within groups.

    Raises DataError without labels, ConfigError for an unknown ``by`` or labels of another number.
    """
    if structures.energy is None or not len(structures):
        name = structures.info.get("name", "structures")
        raise DataError(f"{name}: no labelled structures to break errors down on")
    delta = None  # [A, 3]
    if predicted.get("forces") is not None and structures.forces is not None:
        delta = np.asarray(predicted["forces"], np.float64) - structures.forces
    if isinstance(by, str) and by == "element":
        return _by_element(structures, delta)
    names = _groups(structures, by, sizes)
    error = np.asarray(predicted["energy"], np.float64) - structures.energy
    relative = centred(error, structures.system)
    atoms = structures.n_atoms
    owner = np.repeat(np.arange(len(structures)), atoms)
    rows = []
    for name in dict.fromkeys(names):
        chosen = np.array([n == name for n in names])
        row = {"group": name, "structures": int(chosen.sum()), "atoms": int(atoms[chosen].sum())}
        row |= energy_errors(error[chosen], atoms[chosen], structures.system[chosen])
        known = relative[chosen][np.isfinite(relative[chosen])]
        row["relative_energy_mae"] = float(np.abs(known).mean()) if len(known) else np.nan
        row |= _force_errors(None if delta is None else delta[chosen[owner]])
        rows.append(row)
    return pd.DataFrame(rows)


def _groups(structures: Structures, by: str | Sequence, sizes: Sequence[int] | None) -> list:  # [S]
    """The group of each structure, groups in the order in which they are to stand first seen."""
    if not isinstance(by, str):
        labels = list(by)
        if len(labels) != len(structures):
            raise ConfigError(
                f"a label for each structure: {len(structures)}, but there are {len(labels)}"
            )
        return labels
    if by == "system":
        names = structures.system_names()
        return [names[i] for i in structures.system]
    if by != "size":
        raise ConfigError(f"errors break down by {', '.join(BY)} or labels, got {by!r}")
    return size_groups(structures.n_atoms, sizes)


def size_groups(
    atoms: np.ndarray,  # [S]
    sizes: Sequence[int] | None = None,
) -> list[str]:  # [S]
    """ "19 atoms" or "19 to 24 atoms" for each structure, in bins that begin at ``sizes`` (default:
    four equally filled ones). Raises ConfigError for a structure below the first.
    """
    atoms = np.asarray(atoms)
    starts = np.unique(np.quantile(atoms, [0, 0.25, 0.5, 0.75]).astype(int))
    if sizes is not None:
        starts = np.unique(np.asarray(sizes, int))
    if atoms.min() < starts[0]:
        raise ConfigError(
            f"sizes begin at {starts[0]} atoms, but there is a structure of {atoms.min()}"
        )
    place = np.searchsorted(starts, atoms, side="right") - 1
    ends = [*(starts[1:] - 1), atoms.max()]
    words = [
        f"{a} atoms" if a >= b else f"{a} to {b} atoms" for a, b in zip(starts, ends, strict=True)
    ]
    return [words[i] for i in place]


def _by_element(structures: Structures, delta: np.ndarray | None) -> pd.DataFrame:
    if delta is None:
        raise DataError("errors by element are those of forces, and there are none to compare")
    rows = []
    owner = np.repeat(np.arange(len(structures)), structures.n_atoms)
    for z in structures.elements:
        chosen = structures.z == z
        row = {"group": SYMBOLS[z], "structures": len(np.unique(owner[chosen]))}
        rows.append(row | {"atoms": int(chosen.sum())} | _force_errors(delta[chosen]))
    return pd.DataFrame(rows)


def _force_errors(delta: np.ndarray | None) -> dict[str, float]:
    if delta is not None:
        delta = delta[np.isfinite(delta).all(1)]  # of atoms with a label
    if delta is None or not len(delta):
        return {"forces_mae": float("nan"), "forces_rmse": float("nan")}
    return {
        "forces_mae": float(np.abs(delta).mean()),
        "forces_rmse": float(np.sqrt(np.square(delta).mean())),
    }


def labels_by_geometry(
    structures: Structures,
    source: Structures,
    labels: Sequence,
) -> list:  # [S]
    """The label in ``source`` [its structures] of each of ``structures``, which are among them: for
    what a file says by the order of its frames only.

    3BPA's mixed file, for example, has 300 K, 600 K and 1 200 K one after the other and no field
    that says so. Raises DataError for a structure that ``source`` does not have, ConfigError for
    labels of another number.
    """
    labels = list(labels)
    if len(labels) != len(source):
        raise ConfigError(f"a label for each structure: {len(source)}, but got {len(labels)}")
    found = {there: here for here, there in duplicates.pairs(source, structures).tolist()}
    missing = [i for i in range(len(structures)) if i not in found]
    if missing:
        name = structures.info.get("name", "structures")
        raise DataError(
            f"{name}: structure {missing[0]} is not in {source.info.get('name', 'the source')}"
        )
    return [labels[found[i]] for i in range(len(structures))]
