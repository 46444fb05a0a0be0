"""What the papers' codes did to labels, to be repeated where its effect is measured."""

from __future__ import annotations

import numpy as np

from .. import units
from ..errors import DataError
from ..structures.store import Structures

PER_HARTREE = 627.5  # kcal/mol, as the denoise paper's code has it; 627.5095 is right


def float32_labels(structures: Structures) -> Structures:
    """``structures`` with energies rounded as the denoise paper's code rounds them: fault
    "float32-labels" (arXiv 2303.02216, dataset_ani1.py).

    It holds total energies (Hartree) in float32, multiplies by 627.5 and then takes isolated atoms
    off: between 256 and 512 Hartree the labels come in steps of 0.02 kcal/mol. The factor itself
    cancels against that of the isolated atoms, so energies (eV) come back in true units. Raises
    DataError where there are none.
    """
    if structures.energy is None:
        name = structures.info.get("name", "the structures")
        raise DataError(f"{name} have no energies to round")
    total = (structures.energy / units.HARTREE).astype(np.float32)
    label = (total * np.float32(PER_HARTREE)).astype(np.float64)  # kcal/mol
    rounded = label / PER_HARTREE * units.HARTREE
    arrays = structures.arrays() | {"energy": rounded}
    faults = [*structures.info.get("faults", []), "float32-labels"]
    return Structures(**arrays, info={**structures.info, "faults": faults})
