"""Frames of molecular dynamics with GFN2-xTB labels: what the recipes after MD17, ISO17, MD22 and
SPICE share.

Two ways to a frame, by what a gradient costs. `follow`: one GFN2-xTB trajectory, a frame every so
many steps. `branch`: one force-field trajectory, cheap and therefore long; every so many steps a
copy of it runs a few strongly damped GFN2-xTB steps, in which bonds and angles forget the force
field, and becomes a frame. Slow coordinates (torsions, contacts) of `branch` keep the force field's
distribution.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np

from ...structures.store import Structures
from ...units import BOHR, BOLTZMANN
from .common import joined, on_grid
from .dynamics import Langevin, heavy_masses, lag_one, pair_distances, quench
from .species import Force, Species
from .xtb import XTB

FIELD_FRICTION = 0.01  # 1/fs
EQUILIBRATION_FRICTION = 0.05
BRANCH_FRICTION = 0.25  # a C-H stretch with a hydrogen of 4 u is then close to critically damped


def rng_of(seed: int, label: str) -> np.random.Generator:
    """Dice of one task, by its label and not by its place: adding a task changes no other one."""
    return np.random.default_rng([seed, zlib.crc32(label.encode())])


class Frames:
    """Collects labelled frames of one species; a frame is rounded first and labelled then, centred
    on its mean.
    """

    def __init__(self, species: Species, xtb: XTB) -> None:
        self.species = species
        self._xtb = xtb
        self.positions: list[np.ndarray] = []
        self.energies: list[float] = []
        self.forces: list[np.ndarray] = []
        self.dropped = {"bonds": 0, "scc": 0}

    def add(self, positions: np.ndarray) -> bool:
        """Keep a frame, unless a bond has changed or the SCC does not converge (counted in
        ``dropped``).
        """
        stored = on_grid(positions - positions.mean(0))
        if not self.species.intact(stored.astype(np.float64)):
            self.dropped["bonds"] += 1
            return False
        try:
            energy, forces = self._xtb.label(stored)
        except RuntimeError:
            self.dropped["scc"] += 1
            return False
        self.positions.append(stored)
        self.energies.append(round(energy, 6))
        self.forces.append(on_grid(forces))
        return True

    def pack(self, system: str, info: dict[str, Any]) -> Structures:
        """All frames as `Structures` of one system; ``info`` gains how neighbouring frames
        correlate and what was dropped.
        """
        count = len(self.positions)
        atoms = len(self.species.z)
        frames = np.array(self.positions, np.float64).reshape(count, atoms, 3)
        info = {
            "systems": [system],
            "dropped": self.dropped,
            "frames": count,
            "atoms": atoms,
            "mean_energy": float(np.mean(self.energies)) if count else None,
            "energy_lag": lag_one(np.array(self.energies)),
            "shape_lag": lag_one(pair_distances(frames)) if count else 0.0,
        } | info
        return Structures(
            z=np.tile(self.species.z, count),
            pos=joined(self.positions),
            ptr=np.arange(count + 1) * atoms,
            energy=np.array(self.energies),
            forces=joined(self.forces),
            charge=np.full(count, self.species.charge),
            molecule=np.tile(self.species.molecule, count),
            info=info,
        )


def held(force: Force, species: Species, radius: float, stiffness: float = 0.05) -> Force:
    """``force`` plus springs (eV/Å²) that pull fragments back whose centre is further than
    ``radius`` from the cluster's.
    """
    owner = species.molecule
    size = np.bincount(owner)

    def with_walls(x: np.ndarray) -> tuple[float, np.ndarray]:
        energy, forces = force(x)
        centres = np.stack([np.bincount(owner, x[:, k]) for k in range(3)], 1) / size[:, None]
        away = centres - centres.mean(0)
        distance = np.linalg.norm(away, axis=1)
        beyond = np.maximum(distance - radius, 0.0)
        pull = -2 * stiffness * (beyond / np.maximum(distance, 1e-9))[:, None] * away
        pull -= pull.mean(0)  # the centre moves with the fragments
        return energy + stiffness * (beyond**2).sum(), forces + (pull / size[:, None])[owner]

    return with_walls if len(size) > 1 else force


def tied(force: Force, pairs: np.ndarray, reach: float, stiffness: float = 0.5) -> Force:
    """``force`` plus springs (eV/Å²) between the atoms of ``pairs`` [P,2] that are further apart
    than ``reach`` Å.
    """
    i, j = np.asarray(pairs).T

    def with_ties(x: np.ndarray) -> tuple[float, np.ndarray]:
        energy, forces = force(x)
        away = x[i] - x[j]
        distance = np.linalg.norm(away, axis=1)
        beyond = np.maximum(distance - reach, 0.0)
        pull = -2 * stiffness * (beyond / distance)[:, None] * away
        forces = forces.copy()
        np.add.at(forces, i, pull)
        np.subtract.at(forces, j, pull)
        return energy + stiffness * (beyond**2).sum(), forces

    return with_ties


def field_of(species: Species, xtb: XTB, radius: float) -> Force:
    """The force field that moves the species between frames, with `held` fragments; GFN2-xTB where
    there is none.
    """
    return held(species.force_field() or xtb.follow, species, radius)


def equilibrated(
    species: Species,
    rng: np.random.Generator,
    field: Force,
    temperature: float,
    steps: int,
    start: np.ndarray | None = None,
) -> Langevin:
    """Force-field dynamics after ``steps`` steps from an embedded geometry (or ``start``). Raises
    ValueError.
    """
    positions = species.embed(rng) if start is None else start
    positions, _ = quench(field, positions, steps=200, slope=0.3)
    walker = Langevin(field, positions, heavy_masses(species.masses), temperature, rng)
    walker.run(steps, EQUILIBRATION_FRICTION)
    return walker


def follow(
    species: Species,
    system: str,
    rng: np.random.Generator,
    frames: int,
    *,
    temperature: float,
    every: int,
    friction: float,
    field_steps: int,
    equilibration: int,
    start: np.ndarray | None = None,
) -> Structures:
    """``frames`` frames of one GFN2-xTB trajectory, ``every`` steps apart.

    After a change of bonds it goes on from the last good frame. The quenched energy of the last
    frame is left in ``info``.
    """
    first = species.embed(rng) if start is None else start
    xtb = XTB(species.z, first / BOHR, charge=species.charge)
    field = field_of(species, xtb, np.inf)
    warm = equilibrated(species, rng, field, temperature, field_steps, first).positions
    walker = Langevin(xtb.follow, warm, heavy_masses(species.masses), temperature, rng)
    walker.run(equilibration, EQUILIBRATION_FRICTION)
    made = Frames(species, xtb)
    kelvin = []
    good = walker.positions.copy()
    for _ in range(2 * frames):
        if len(made.positions) == frames:
            break
        walker.run(every, friction)
        kelvin.append(walker.kinetic_temperature)
        if made.add(walker.positions):
            good = walker.positions.copy()
        else:
            walker.restart(good)
    return made.pack(system, _thermometer(made, xtb, float(np.mean(kelvin))))


def branch(
    species: Species,
    system: str,
    rng: np.random.Generator,
    frames: int,
    *,
    temperature: float,
    every: int,
    equilibration: int,
    steps: int,
    field: Force,
    xtb: XTB,
    start: np.ndarray | None = None,
    finish: Callable[[int, np.ndarray], np.ndarray] | None = None,
    measure: bool = True,
) -> Structures:
    """``frames`` frames of ``steps`` damped GFN2-xTB steps each, from a force-field trajectory,
    ``every`` steps apart.

    ``finish(k, positions)``, if given, makes the k-th frame out of what those steps end with.
    """
    walker = equilibrated(species, rng, field, temperature, equilibration, start)
    made = Frames(species, xtb)
    kelvin = []
    masses = heavy_masses(species.masses)
    for k in range(2 * frames):
        if len(made.positions) == frames:
            break
        walker.run(every, FIELD_FRICTION)
        try:
            twig = Langevin(xtb.follow, walker.positions, masses, temperature, rng)
            twig.run(steps, BRANCH_FRICTION)
            kelvin.append(twig.kinetic_temperature)
            made.add(twig.positions if finish is None else finish(k, twig.positions))
        except RuntimeError:
            made.dropped["scc"] += 1
    info = _thermometer(made, xtb, float(np.mean(kelvin or [0.0]))) if measure else {}
    return made.pack(system, info | {"field": species.field_name})


def _thermometer(made: Frames, xtb: XTB, kelvin: float) -> dict[str, Any]:
    """How warm the frames are: the kinetic temperature, and the energy of the last frame's own
    minimum.
    """
    if not made.positions:
        return {}
    _, lowest = quench(xtb.follow, made.positions[-1].astype(np.float64))
    return {
        "kinetic_temperature": kelvin,
        "minimum_energy": round(lowest, 6),
        "last_energy": made.energies[-1],
    }


def equipartition(atoms: int, temperature: float) -> float:
    """Mean potential energy (eV) above the minimum of a harmonic molecule: (3N - 6) k_B T / 2."""
    return (3 * atoms - 6) * BOLTZMANN * temperature / 2


def by_system(infos: list[dict[str, Any]], temperature: float) -> dict[str, dict[str, float]]:
    """Per system, over its trajectories: frames, energy above the minimum per equipartition's,
    correlations of neighbours.

    The minimum is the mean over the trajectories of the quenched last frames.
    """
    table: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(i["systems"][0] for i in infos):
        runs = [i for i in infos if i["systems"][0] == name and i["frames"]]
        if not runs:
            continue
        minima = [run["minimum_energy"] for run in runs]
        above = _mean_over_frames(runs, "mean_energy") - float(np.mean(minima))
        table[name] = {
            "frames": int(sum(run["frames"] for run in runs)),
            "lowest minimum (eV)": round(min(minima), 4),
            "above minimum (eV)": round(above, 3),
            "equipartition (eV)": round(equipartition(runs[0]["atoms"], temperature), 3),
            "kinetic temperature (K)": round(_mean_over_frames(runs, "kinetic_temperature"), 1),
            "energy lag 1": round(_mean_over_frames(runs, "energy_lag"), 2),
            "shape lag 1": round(_mean_over_frames(runs, "shape_lag"), 2),
        }
    return table


def _mean_over_frames(runs: list[dict[str, Any]], key: str) -> float:
    """Mean of ``key`` over trajectories, each counted by its frames."""
    return float(np.average([run[key] for run in runs], weights=[run["frames"] for run in runs]))


def markdown(table: dict[str, dict[str, float]], head: str) -> str:
    """A table of `by_system` as Markdown for the data sheet."""
    columns = list(next(iter(table.values())))
    lines = [f"| {head} | {' | '.join(columns)} |", f"| --- |{' ---: |' * len(columns)}"]
    lines += [
        f"| {name} | {' | '.join(f'{row[c]:,}' for c in columns)} |" for name, row in table.items()
    ]
    return "\n".join(lines)


def dropped_note(infos: list[dict[str, Any]]) -> str:
    """What was left out, as a sentence."""
    dropped = [info["dropped"] for info in infos if "dropped" in info]
    bonds = sum(reasons["bonds"] for reasons in dropped)
    scc = sum(reasons["scc"] for reasons in dropped)
    return f"Frames dropped: {bonds} with a bond broken or made, {scc} without SCC convergence."
