"""ωB97X/6-31G(d) through PySCF, the level of 3BPA and Transition1x.

Functional: J.-D. Chai, M. Head-Gordon, J. Chem. Phys. 128, 084106 (2008), doi:10.1063/1.2834918.
Program: Q. Sun et al., J. Chem. Phys. 153, 024109 (2020), doi:10.1063/5.0006074.

"6-31G(d)" names two basis sets: with six Cartesian d functions (Gaussian: ANI-1, ANI-1x, COMP6) or
with five spherical ones (ORCA: 3BPA, Transition1x). These are the five spherical ones.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from ...structures.elements import SYMBOLS
from ...units import BOHR, HARTREE

METHOD = "wB97X/6-31G(d), five d functions, PySCF"
FUNCTIONAL = "wb97x"
BASIS = "6-31g*"
GRID_LEVEL = 2  # PySCF's, of 0 to 9
TOLERANCE = 1e-9  # Hartree, of the SCF energy
CYCLES = 100
UNPAIRED = {"H": 1, "C": 2, "N": 3, "O": 2}  # electrons of the free atoms' ground states


class Unconverged(RuntimeError):
    """The SCF found no solution."""


class DFT:
    """Closed-shell ωB97X/6-31G(d) of one neutral molecule, with density fitting.

    Each call starts from the density of the last one that converged, which saves a few cycles and
    moves the energy by less than the SCF's tolerance.
    """

    def __init__(self, z: np.ndarray, fitted: bool = True, grid_level: int = GRID_LEVEL) -> None:
        self.z = np.asarray(z, int)
        self.fitted = fitted
        self.grid_level = grid_level
        self._density: np.ndarray | None = None

    def __call__(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy (eV) and forces [N,3] (eV/Å) at ``positions`` [N,3] (Å). Raises Unconverged."""
        field = mean_field(self.z, positions, 0, self.fitted, self.grid_level)
        energy = field.kernel(dm0=self._density)
        if not field.converged and self._density is not None:
            energy = field.kernel()
        if not field.converged:
            raise Unconverged(f"no SCF solution after {CYCLES} cycles")
        self._density = field.make_rdm1()
        derivatives = field.nuc_grad_method()
        derivatives.grid_response = True  # else the forces are not quite the energy's derivative
        gradient = derivatives.kernel()
        return float(energy) * HARTREE, -np.asarray(gradient) * (HARTREE / BOHR)


def mean_field(z: np.ndarray, positions: np.ndarray, unpaired: int, fitted: bool, grid_level: int):
    """PySCF's Kohn-Sham object of a molecule; ``positions`` [N,3] in Å, ``unpaired`` electrons."""
    from pyscf import dft, gto, lib

    lib.num_threads(1)
    atoms = list(zip(np.asarray(z).tolist(), np.asarray(positions) / BOHR, strict=True))
    molecule = gto.M(atom=atoms, unit="Bohr", basis=BASIS, cart=False, spin=unpaired, verbose=0)
    field = dft.UKS(molecule) if unpaired else dft.RKS(molecule)
    if fitted:
        field = field.density_fit()
    field.xc = FUNCTIONAL
    field.grids.level = grid_level
    field.conv_tol = TOLERANCE
    field.max_cycle = CYCLES
    return field


@lru_cache
def atomic_energies() -> dict[str, float]:
    """Energies (eV) of isolated atoms at this level (UKS) in their ground-state multiplicity, by
    element symbol. Raises Unconverged.
    """
    origin = np.zeros((1, 3))
    energies = {}
    for symbol, unpaired in UNPAIRED.items():
        z = np.array([SYMBOLS.index(symbol)])
        field = mean_field(z, origin, unpaired, True, GRID_LEVEL)
        energy = field.kernel()
        if not field.converged:
            raise Unconverged(f"atom {symbol}: no SCF solution after {CYCLES} cycles")
        energies[symbol] = round(float(energy) * HARTREE, 6)
    return energies
