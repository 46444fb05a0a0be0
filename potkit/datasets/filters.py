"""Choosing structures by what they are."""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError, DataError
from ..structures.elements import composition
from ..structures.store import Structures


def near_minimum(structures: Structures, limit: float) -> Structures:
    """The structures whose energy is at most ``limit`` eV above the lowest of the same composition
    in the set.

    Normal-mode samples taken up to bond breaking hold a few structures tens of eV up, which no
    potential for bound molecules wants. Looks at energies only, so it needs labels; raises
    DataError without them.
    """
    if structures.energy is None:
        raise DataError(
            f"{structures.info.get('name', 'structures')}: a limit on energy needs energies"
        )
    if not limit > 0:
        raise ConfigError(f"the limit above the minimum must be positive, got {limit} eV")
    _, group = np.unique(composition(structures), axis=0, return_inverse=True)
    group = group.reshape(-1)
    lowest = np.full(int(group.max(initial=-1)) + 1, np.inf)
    np.fmin.at(lowest, group, structures.energy)  # of partly labelled sets some are NaN: left out
    return structures[structures.energy - lowest[group] <= limit]


def unseen_formulas(structures: Structures, *others: Structures) -> Structures:
    """The structures whose formula no structure of ``others`` has: a test on molecules that neither
    pretraining nor training has seen, not even as an isomer.

    `splits.leakage` finds the same geometry, which two sets of one molecule seldom share. Looks at
    atomic numbers only. Raises ConfigError without ``others``; the result may be empty.
    """
    if not others:
        raise ConfigError("unseen_formulas needs the sets whose formulas are to be left out")
    seen = {formula for other in others for formula in _formulas(other)}
    return structures[np.array([f not in seen for f in _formulas(structures)], bool)]


def _formulas(structures: Structures) -> list[bytes]:
    """What the atoms of each structure are, in an order of its own."""
    bounds = zip(structures.ptr[:-1], structures.ptr[1:], strict=True)
    return [np.sort(structures.z[start:stop]).tobytes() for start, stop in bounds]
