"""GFN2-xTB through tblite, as all molecular recipes use it.

C. Bannwarth, S. Ehlert, S. Grimme, J. Chem. Theory Comput. 15, 1652 (2019),
doi:10.1021/acs.jctc.8b01176.
"""

from __future__ import annotations

from contextlib import suppress
from functools import lru_cache

import numpy as np

from ...structures.elements import SYMBOLS
from ...units import BOHR, HARTREE

METHOD = "GFN2-xTB"
CAVEAT = (  # of every data sheet
    "GFN2-xTB is a semi-empirical method: good for comparing learning methods, not for chemistry "
    "to 1 kcal/mol."
)
# tblite's SCC thresholds relative to their defaults: of labels, and along a trajectory, where
# forces are off by 1 to 2 meV/Å, little beside the thermostat's noise
ACCURACY = 0.05
FOLLOWING = 10.0
UNPAIRED = {  # unpaired electrons of the free atoms' ground states
    "H": 1,
    "Li": 1,
    "B": 1,
    "C": 2,
    "N": 3,
    "O": 2,
    "F": 1,
    "Na": 1,
    "Mg": 0,
    "Si": 2,
    "P": 3,
    "S": 2,
    "Cl": 1,
    "K": 1,
    "Ca": 0,
    "Br": 1,
    "I": 1,
}


class XTB:
    """GFN2-xTB of one molecule. Called, it speaks tblite's units (Bohr, Hartree); its methods Å,
    eV and eV/Å.
    """

    def __init__(self, z: np.ndarray, positions: np.ndarray, uhf: int = 0, charge: int = 0) -> None:
        self._arguments = (np.asarray(z), np.asarray(positions, float), charge, uhf)
        self._calculator = self._new(ACCURACY)
        self._follower = None
        self._last = None
        self.calls = 0

    def _new(self, accuracy: float):
        from tblite.interface import Calculator

        z, positions, charge, uhf = self._arguments
        calculator = Calculator(METHOD, z, positions, charge=charge, uhf=uhf)
        calculator.set("verbosity", 0)
        calculator.set("accuracy", accuracy)
        return calculator

    def __call__(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy, and its gradient [N,3]. Each call starts afresh, so only the positions matter."""
        self._calculator.update(positions=np.asarray(positions, float).reshape(-1, 3))
        result = self._calculator.singlepoint()
        self.calls += 1
        return float(result.get("energy")), np.array(result.get("gradient"))

    def label(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy (eV) and forces [N,3] (eV/Å) at positions in Å. RuntimeError: no SCC convergence.

        The SCC starts from the wavefunction of the last `follow`, which saves time and changes 1e-9
        eV.
        """
        self._calculator.update(positions=np.asarray(positions, np.float64).reshape(-1, 3) / BOHR)
        result = None
        if self._last:
            with suppress(RuntimeError):  # then from the start
                result = self._calculator.singlepoint(self._last, copy=True)
        if result is None:
            result = self._calculator.singlepoint()
        self.calls += 1
        return _energy_and_forces(result)

    def follow(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """As `label`, but looser and from the wavefunction of the last call: for steps along a
        trajectory.
        """
        if self._follower is None:
            self._follower = self._new(FOLLOWING)
        self._follower.update(positions=np.asarray(positions, np.float64).reshape(-1, 3) / BOHR)
        before, self._last = self._last, None  # after a failure the next call starts afresh
        try:
            result = self._follower.singlepoint(before)
        except RuntimeError:
            if before is None:
                raise
            result = self._follower.singlepoint()
        self._last = result
        self.calls += 1
        return _energy_and_forces(result)


def _energy_and_forces(result) -> tuple[float, np.ndarray]:
    """Energy (eV) and forces [N,3] (eV/Å) of tblite's result."""
    energy = float(result.get("energy")) * HARTREE
    return energy, -np.array(result.get("gradient")) * (HARTREE / BOHR)


@lru_cache
def atomic_energies() -> dict[str, float]:
    """GFN2-xTB energies (eV) of isolated atoms in their ground-state multiplicity, by element
    symbol.
    """
    origin = np.zeros((1, 3))
    energies = {}
    for symbol, unpaired in UNPAIRED.items():
        energy, _ = XTB(np.array([SYMBOLS.index(symbol)]), origin, unpaired)(origin)
        energies[symbol] = round(energy * HARTREE, 6)
    return energies
