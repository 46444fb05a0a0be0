"""What the numbers of a network mean in eV: reference energies, a unit, and a mean.

    E = scale · Σ_i e_i + Σ_i reference(z_i) + shift
    F = −∂E/∂x = −scale · ∂(Σ_i e_i)/∂x

e_i is what the network says of atom i. All of it follows from the labels of the training part
(`TrainConfig`: ``references``, ``isolated_energies``, ``normalization``) and is kept with the
weights. With R_s the energy of structure s of n_s atoms less its references:

    forces             scale: root mean square force; where there are none, std of R_s/n_s
    mean-std           scale: std of R_s;     shift: mean of R_s
    per-atom-mean-std  scale: std of R_s/n_s; the mean of R_s/n_s is added to every reference
    none               scale: 1 eV

A standard deviation std has n − 1 in its denominator, as in the papers' codes (that of "forces"
has n). The denoise paper's code takes isolated atoms off ANI's energies and nothing off the others,
then "mean-std" (arXiv 2303.02216); the masked paper's code takes nothing off, then "mean-std" for
TIP3P and rMD17 (arXiv 2402.15921). For RPBE it divides by the std of R_s/n_s, and takes the mean of
R_s/n_s off once, however many atoms a structure has; here it is taken off for every atom.

A shift per structure makes an energy that is not additive over structures far apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..datasets.references import ReferenceEnergies
from ..errors import ConfigError, DataError
from ..models import Potential
from ..structures.store import Structures
from .config import TrainConfig


class Normalization(NamedTuple):
    """Reference energies in eV by atomic number, scale in eV, shift in eV per structure."""

    references: dict[int, float]
    scale: float
    shift: float = 0.0

    def put_into(self, model: Potential) -> None:
        """Make ``model`` speak so."""
        model.set_references(self.references, self.scale, self.shift)


def normalization(
    structures: Structures,
    config: TrainConfig,
    references: ReferenceEnergies | None = None,
    labels: Sequence[str] = ("energy", "forces"),
) -> Normalization:
    """What the labels of ``structures``, the training part, ask for under ``config``.

    ``references`` go before those of ``config``; ``labels`` are those an objective reads: without
    energies among them there are no references. Raises ConfigError where ``config`` asks for the
    mean of energies that are not read, DataError where energies do not differ or the energy of an
    isolated atom is not known.
    """
    if structures.energy is not None and structures.partly_labelled:
        with_energy = structures[structures.labelled("energy")]
    else:
        with_energy = structures
    if "energy" not in labels:
        if config.normalization in ("mean-std", "per-atom-mean-std"):
            raise ConfigError(
                f"config: normalization {config.normalization} needs energies, which this "
                "objective does not read"
            )
        return Normalization({}, 1.0 if config.normalization == "none" else _unit(structures))
    chosen = references or ReferenceEnergies.choose(
        with_energy, config.references, config.isolated_energies
    )
    table = chosen.table
    if structures.partly_labelled:  # an element that only structures without an energy have
        table = dict.fromkeys(structures.elements, 0.0) | table
    if config.normalization == "none":
        return Normalization(table, 1.0)
    if config.normalization == "forces" and structures.forces is not None:
        return Normalization(table, _unit(structures))
    structures = with_energy
    left = structures.energy - chosen.energy(structures)
    if config.normalization == "forces":
        return Normalization(table, max(float(np.std(left / structures.n_atoms)), 1e-3))
    if config.normalization == "mean-std":
        return Normalization(table, _spread(structures, left), float(left.mean()))
    per_atom = left / structures.n_atoms
    mean = float(per_atom.mean())
    shifted = {z: energy + mean for z, energy in table.items()}
    return Normalization(shifted, _spread(structures, per_atom))


def _unit(structures: Structures) -> float:
    """The root mean square force of the structures that have forces, eV/Å; 1 where none has."""
    forces = structures.forces
    if forces is None:  # stress alone
        return 1.0
    if "forces" in structures.partly_labelled:
        forces = forces[np.repeat(structures.labelled("forces"), structures.n_atoms)]
    return max(float(np.sqrt(np.mean(np.square(forces, dtype=np.float64)))), 1e-3)


def _spread(structures: Structures, energies: np.ndarray) -> float:
    spread = float(energies.std(ddof=1)) if len(energies) > 1 else 0.0
    if not spread > 1e-9:
        name = structures.info.get("name", "structures")
        raise DataError(
            f"{name}: the energies of the {len(energies)} training structures do not differ, so "
            "they have no standard deviation to be divided by; use normalization: forces or none"
        )
    return spread
