"""Where a fine-tuning starts: exactly at the pretrained network if its heads are carried over, and
at energies that fit the labels.

A network says E = scale · Σ_i e_i + Σ_i reference(z_i) (see `normalization`). Heads that were
trained on labels mean e_i in the unit of those labels. Taken over with another unit, all forces of
the first step would be off by the ratio of the two. So the unit comes with the heads, and what is
fitted anew are the references: least squares of what the network leaves of the labels over
composition, for the levels of theory differ by about that.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from .. import objectives
from ..datasets.references import ReferenceEnergies
from ..models import Potential
from ..structures.store import Structures
from . import checkpoints
from .config import TrainConfig
from .normalization import Normalization

FITTED = 1.0  # eV per atom; a fit of references leaves less of any labels of one level of theory
BINDING = 10.0  # eV per atom; no substance is bound more strongly, as isolated atoms count


def carried_unit(model: Potential, source: str | Path, parts: Sequence[str]) -> float | None:
    """The unit (eV) of the heads that ``parts`` of checkpoint ``source`` bring to ``model``; None
    where no head that was trained on energies or forces is among them.
    """
    reads_forces = "vector_readout" if model.forces_mode == "vector" else "energy_head"
    if not {"energy_head", reads_forces} <= set(parts):
        return None
    tensors, header = checkpoints.read(source)
    described = header.get("objective")
    if not isinstance(described, dict):  # imported weights do not say what they were trained on
        return None
    trained = objectives.from_dict(described).needed()
    if not {"energy", "forces"} & set(trained):
        return None
    return float(checkpoints.weights(tensors)["scale"])


def with_carried_heads(
    model: Potential, train: Structures, start: Normalization, unit: float, fit: bool
) -> Normalization:
    """``start`` with the unit of the heads that ``model`` has taken over, and references fitted to
    what it leaves of the energies of ``train`` if ``fit``.
    """
    if not fit:
        return start._replace(scale=unit)
    elements = train.elements
    train = train[train.labelled("energy")] if train.partly_labelled else train
    nothing = dict.fromkeys(elements, 0.0)
    model.set_references(nothing, unit)
    left = train.energy - _energies(model, train)
    unexplained = copy.copy(train)
    unexplained.energy = left
    references = ReferenceEnergies.fit(unexplained)
    return Normalization(nothing | references.table, unit)


@torch.no_grad()
def _energies(model: Potential, structures: Structures, at_once: int = 64) -> np.ndarray:
    """[S] float64 eV."""
    was_training = model.training
    model.eval()
    like = model.like()
    parts = []
    for first in range(0, len(structures), at_once):
        rows = np.arange(first, min(first + at_once, len(structures)))
        batch = structures.batch(rows, like.device, like.dtype)
        parts.append(model(batch, ("energy",)).energy.cpu().numpy())
    model.train(was_training)
    return np.concatenate(parts)


def check_references(
    start: Normalization, structures: Structures, config: TrainConfig, fitted: bool
) -> float:
    """The median over ``structures`` of what references leave of their energies, eV per atom; a
    warning in one line where that is more than interaction can be.

    ``fitted``: to labels of the training part; else they are of isolated atoms, which leave the
    binding energy.
    """
    if config.references == "none":  # all is left, and meant to be
        return 0.0
    if structures.partly_labelled or structures.energy is None:
        structures = structures[structures.labelled("energy")]
        if not len(structures):
            return 0.0
    references = ReferenceEnergies(start.references).energy(structures) + start.shift
    per_atom = np.abs(structures.energy - references) / structures.n_atoms
    left = float(np.median(per_atom))
    if left > (FITTED if fitted else BINDING):
        name = structures.info.get("name", "structures")
        how = "fitted to the training part" if fitted else "of isolated atoms"
        warnings.warn(
            f"{name}: the first error in energy is {left:.3g} eV per atom, before the network says "
            f"anything: the reference energies ({how}) are of another level of theory than these "
            "labels",
            stacklevel=3,
        )
    return left
