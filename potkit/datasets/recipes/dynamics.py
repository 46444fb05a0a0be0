"""Langevin dynamics at constant temperature, for any force, and what is measured along it.

Only positions are kept, and at one temperature they have the same distribution whatever the masses
are. The recipes use that: hydrogen weighs `HYDROGEN` u, and the step can be 2 fs.
"""

from __future__ import annotations

import numpy as np

from ...units import AMU, BOLTZMANN
from .species import Force

HYDROGEN = 4.0  # u
STEP = 2.0  # fs; with that hydrogen a C-H stretch takes 20 fs


def heavy_masses(masses: np.ndarray) -> np.ndarray:
    """Masses (u) of the dynamics: hydrogens get `HYDROGEN`."""
    return np.where(masses < 2.5, HYDROGEN, masses)


def thermal_velocities(
    masses: np.ndarray, temperature: float, rng: np.random.Generator
) -> np.ndarray:
    """Maxwell-Boltzmann velocities [N,3] in Å/fs; ``masses`` in u."""
    width = np.sqrt(BOLTZMANN * temperature / (masses * AMU))  # [N] Å/fs
    return rng.normal(size=(len(masses), 3)) * width[:, None]


class Langevin:
    """Dynamics of one structure: ``positions`` [N,3] Å, ``velocities`` [N,3] Å/fs, ``energy`` eV,
    ``forces`` eV/Å.

    BAOAB splitting (B. Leimkuhler, C. Matthews, J. Chem. Phys. 138, 174102, 2013,
    doi:10.1063/1.4802990): in a harmonic well the positions obey Boltzmann's law exactly at any
    stable step.
    """

    def __init__(
        self,
        force: Force,
        positions: np.ndarray,
        masses: np.ndarray,
        temperature: float,
        rng: np.random.Generator,
    ) -> None:
        self.force = force
        self.masses = masses
        self.temperature = temperature
        self.rng = rng
        self.restart(positions)

    def restart(self, positions: np.ndarray) -> None:
        """Go on from other positions, with new thermal velocities."""
        self.positions = np.array(positions, np.float64)
        self.velocities = thermal_velocities(self.masses, self.temperature, self.rng)
        self.energy, self.forces = self.force(self.positions)

    def run(self, steps: int, friction: float, step: float = STEP) -> None:
        """Move ``steps`` steps of ``step`` fs, with ``friction`` in 1/fs."""
        kick = step / 2 / (self.masses * AMU)[:, None]
        keep = np.exp(-friction * step)
        noise = np.sqrt((1 - keep**2) * BOLTZMANN * self.temperature / (self.masses * AMU))[:, None]
        for _ in range(steps):
            self.velocities += kick * self.forces
            self.positions += step / 2 * self.velocities
            dice = self.rng.normal(size=self.velocities.shape)
            self.velocities = keep * self.velocities + noise * dice
            self.positions += step / 2 * self.velocities
            self.energy, self.forces = self.force(self.positions)
            self.velocities += kick * self.forces

    @property
    def kinetic_temperature(self) -> float:
        """Of the present velocities, in K."""
        twice_kinetic = (self.masses[:, None] * AMU * self.velocities**2).sum()  # eV
        return float(twice_kinetic / (3 * len(self.masses) * BOLTZMANN))


def quench(
    force: Force, positions: np.ndarray, steps: int = 60, slope: float = 0.03
) -> tuple[np.ndarray, float]:
    """Positions and energy of the minimum below, to a largest force of ``slope`` eV/Å or as far as
    ``steps`` lead (L-BFGS).
    """
    from scipy.optimize import minimize

    def target(x: np.ndarray) -> tuple[float, np.ndarray]:
        energy, forces = force(x.reshape(-1, 3))
        return energy, -forces.ravel()

    start = np.asarray(positions, np.float64).ravel()
    options = {"gtol": slope, "maxiter": steps, "maxfun": 2 * steps, "maxcor": 20}
    result = minimize(target, start, jac=True, method="L-BFGS-B", options=options)
    return result.x.reshape(-1, 3), float(result.fun)


def lag_one(values: np.ndarray) -> float:
    """Correlation of neighbours in a series [T] or [T,K]: summed covariance over summed variance; 0
    if too short.
    """
    values = np.asarray(values, np.float64).reshape(len(values), -1)
    if len(values) < 3:
        return 0.0
    centred = values - values.mean(0)
    variance = (centred**2).mean(0).sum()
    return float((centred[1:] * centred[:-1]).mean(0).sum() / variance) if variance > 0 else 0.0


def pair_distances(frames: np.ndarray) -> np.ndarray:
    """Distances of all pairs, [T, N(N-1)/2], of frames [T,N,3]: what a frame looks like, whatever
    its orientation.
    """
    i, j = np.triu_indices(frames.shape[1], 1)
    return np.linalg.norm(frames[:, i] - frames[:, j], axis=-1)
