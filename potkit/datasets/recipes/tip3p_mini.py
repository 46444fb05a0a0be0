"""Recipe of `tip3p-mini`: the masked paper's classical water, 258 TIP3P molecules in a 20 Å cube,
by OpenMM.

The system is that of the paper (arXiv:2402.15921, §3.1): periodic, cutoff 10 Å, NVT at 300 K with a
Nosé-Hoover chain, random initial positions, a frame every 50 steps, split by seed. What the paper
leaves out is taken from the generator the same group published with GAMD (repository
BaratiLab/GAMD, dataset/generate_tip3p_data.py): openmmtools' WaterBox with its defaults, that is
rigid molecules, PME, Lennard-Jones switched off over the last 1.5 Å with the long-range correction;
2 fs steps; chain of 10, friction 1/ps, 5 multiple time steps, 5 Suzuki-Yoshida weights.

Rigid or flexible: rigid (`rigid=True`) is what that generator does and what TIP3P means. The labels
are then the energy without bond and angle terms and its gradient, without constraint forces: forces
inside a molecule are absent, every O-H is 0.9572 Å and every H-O-H angle 104.52°. With
`rigid=False` the bonds and angles of OpenMM's tip3p.xml are harmonic springs, are part of the
labels, and the step is 0.5 fs.

Start: molecules on random sites of a 7 × 7 × 7 grid, randomly turned, energy-minimised, then
Langevin dynamics and Nosé-Hoover dynamics for `equilibration_ps` each before frame 0. Frames hold
whole molecules whose centres lie in the cell.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ...structures.store import Structures
from ...units import KJ_MOL, NM
from .common import Recipe, on_grid

WATERS = 258
BOX = 20.0  # Å
CUTOFF = 10.0  # Å, half the box: the most that OpenMM accepts
SWITCH = 8.5  # Å, where Lennard-Jones begins to be switched off
TEMPERATURE = 300.0  # K
FRICTION = 1.0  # 1/ps
STEP_FS = {True: 2.0, False: 0.5}  # by rigid
EVERY = 50  # steps between frames
FRAMES = 60  # per seed at scale 1
PAPER_FRAMES = 1000
SEEDS = 10
SITES = 7  # per edge of the grid the molecules start from
# TIP3P's geometry, Å and rad (Jorgensen et al. 1983, doi:10.1063/1.445869)
OH = 0.9572
HOH = np.deg2rad(104.52)


def topology_of(waters: int, box: float):
    """OpenMM's topology of ``waters`` molecules, O H H each, in a cube of edge ``box`` (Å)."""
    from openmm import app, unit

    topology = app.Topology()
    chain = topology.addChain()
    oxygen = app.Element.getByAtomicNumber(8)
    hydrogen = app.Element.getByAtomicNumber(1)
    for _ in range(waters):
        residue = topology.addResidue("HOH", chain)
        o = topology.addAtom("O", oxygen, residue)
        h1 = topology.addAtom("H1", hydrogen, residue)
        h2 = topology.addAtom("H2", hydrogen, residue)
        topology.addBond(o, h1)
        topology.addBond(o, h2)
    topology.setPeriodicBoxVectors(np.eye(3) * box / NM * unit.nanometer)
    return topology


def build_system(rigid: bool, tolerance: float, dynamic: bool):
    """OpenMM's topology and system of the set's box.

    ``tolerance`` is PME's relative force error; ``dynamic`` has the drift of the centre removed.
    """
    from openmm import NonbondedForce, app

    topology = topology_of(WATERS, BOX)
    system = app.ForceField("tip3p.xml").createSystem(
        topology,
        nonbondedMethod=app.PME,
        nonbondedCutoff=CUTOFF / NM,
        rigidWater=rigid,
        constraints=None,
        ewaldErrorTolerance=tolerance,
        removeCMMotion=dynamic,
    )
    force = next(f for f in system.getForces() if isinstance(f, NonbondedForce))
    force.setUseSwitchingFunction(True)
    force.setSwitchingDistance(SWITCH / NM)
    force.setUseDispersionCorrection(True)
    return topology, system


def random_start(waters: int, box: float, sites: int, rng: np.random.Generator) -> np.ndarray:
    """Positions [3·waters, 3] in Å, O H H per molecule, randomly turned, on random sites of a grid
    of ``sites`` along each edge of the cube.
    """
    from scipy.spatial.transform import Rotation

    corners = np.stack(np.meshgrid(*[np.arange(sites)] * 3, indexing="ij"), -1).reshape(-1, 3)
    grid = (corners + 0.5) * box / sites
    chosen = grid[rng.permutation(len(grid))[:waters]]
    water = np.array([[0.0, 0, 0], [OH, 0, 0], [OH * np.cos(HOH), OH * np.sin(HOH), 0]])
    quaternions = rng.normal(size=(waters, 4))  # normalised Gaussians are uniform rotations
    turned = np.einsum("wij,aj->wai", Rotation.from_quat(quaternions).as_matrix(), water)
    return (turned + chosen[:, None]).reshape(-1, 3)


def plan(
    scale: float | str,
    seed: int,
    rigid: bool = True,
    seeds: int = SEEDS,
    equilibration_ps: float = 10.0,
) -> list[dict[str, Any]]:
    """A task per trajectory, of ``seeds``; each equilibrates twice ``equilibration_ps`` (see the
    module).
    """
    frames = PAPER_FRAMES if scale == "paper" else max(1, round(scale * FRAMES))
    common = {
        "frames": frames,
        "rigid": bool(rigid),
        "equilibration_ps": float(equilibration_ps),
        "seed": seed,
    }
    return [{"label": f"seed-{k}", "trajectory": k, **common} for k in range(seeds)]


def work(task: dict[str, Any]) -> Structures:
    """One trajectory: start, equilibrate, sample, label."""
    import openmm

    rng = np.random.default_rng([task["seed"], task["trajectory"]])
    # from 1, since OpenMM takes 0 for "choose one yourself"
    seeds = [int(rng.integers(1, 2**31 - 1)) for _ in range(3)]
    rigid = task["rigid"]
    step = STEP_FS[rigid] * 1e-3  # ps
    cpu = openmm.Platform.getPlatform("CPU")
    settings = {"Threads": "1", "DeterministicForces": "true"}
    _, system = build_system(rigid, 5e-4, dynamic=True)
    steps = round(task["equilibration_ps"] / step)

    langevin = openmm.LangevinMiddleIntegrator(TEMPERATURE, 5 * FRICTION, step)
    langevin.setRandomNumberSeed(seeds[0])
    context = openmm.Context(system, langevin, cpu, settings)
    context.setPositions(random_start(WATERS, BOX, SITES, rng) / NM)
    openmm.LocalEnergyMinimizer.minimize(context, 10.0, 1000)
    context.setVelocitiesToTemperature(TEMPERATURE, seeds[1])
    langevin.step(steps)
    state = context.getState(getPositions=True)

    chain = openmm.NoseHooverIntegrator(TEMPERATURE, FRICTION, step, 10, 5, 5)
    context = openmm.Context(system, chain, cpu, settings)
    context.setPositions(state.getPositions())
    context.setVelocitiesToTemperature(TEMPERATURE, seeds[2])
    chain.step(steps)

    free = system.getNumParticles() * 3 - system.getNumConstraints() - 3
    boltzmann = openmm.unit.MOLAR_GAS_CONSTANT_R
    label = Labeller(rigid)
    frames, energies, forces, temperatures = [], [], [], []
    for frame in range(task["frames"]):
        if frame:
            chain.step(EVERY)
        state = context.getState(getPositions=True, getEnergy=True, enforcePeriodicBox=True)
        temperature = 2 * state.getKineticEnergy() / (free * boltzmann)
        temperatures.append(float(temperature / openmm.unit.kelvin))
        stored = on_grid(state.getPositions(asNumpy=True)._value * NM)
        energy, force = label(stored)
        frames.append(stored)
        energies.append(round(energy, 6))
        forces.append(on_grid(force))
    count = len(frames)
    return Structures(
        z=np.tile([8, 1, 1], count * WATERS),
        pos=np.concatenate(frames),
        ptr=np.arange(count + 1) * 3 * WATERS,
        energy=np.array(energies),
        forces=np.concatenate(forces),
        cell=np.tile(np.eye(3) * BOX, (count, 1, 1)),
        pbc=np.ones((count, 3), bool),
        molecule=np.tile(np.repeat(np.arange(WATERS), 3), count),
        info={"systems": [task["label"]], "temperatures": temperatures},
    )


class Labeller:
    """Energy (eV) and forces (eV/Å) of stored positions (Å) in double precision (OpenMM's Reference
    platform).
    """

    def __init__(self, rigid: bool) -> None:
        import openmm

        _, system = build_system(rigid, 1e-5, dynamic=False)
        platform = openmm.Platform.getPlatform("Reference")
        self._context = openmm.Context(system, openmm.VerletIntegrator(1e-3), platform)

    def __call__(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy (eV) and forces [3·WATERS, 3] (eV/Å) at ``positions`` [3·WATERS, 3] (Å)."""
        self._context.setPositions(positions.astype(np.float64) / NM)
        state = self._context.getState(getEnergy=True, getForces=True)
        energy = state.getPotentialEnergy()._value * KJ_MOL
        return energy, state.getForces(asNumpy=True)._value * (KJ_MOL / NM)


def describe(tasks: list[dict[str, Any]], infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Level of theory and how the trajectories went."""
    rigid = tasks[0]["rigid"]
    means = {info["systems"][0]: np.mean(info["temperatures"]) for info in infos}
    kelvin = np.array(list(means.values()))
    step = STEP_FS[rigid]
    notes = [
        (
            f"{'Rigid' if rigid else 'Flexible'} molecules, steps of {step:g} fs, a frame every "
            f"{EVERY} steps ({EVERY * step:g} fs): neighbouring frames are correlated."
        ),
        (
            "System number k is trajectory (seed) k: split by system to test on trajectories never "
            "seen; the masked paper takes 8/1/1."
        ),
        (
            f"Kinetic temperature, mean over all frames: {kelvin.mean():.1f} K; per trajectory "
            f"{kelvin.min():.1f} to {kelvin.max():.1f} K."
        ),
        "Molecules are whole: their centres lie in the cell, atoms may stick out of it.",
    ]
    if rigid:
        notes.append(
            "Energy and forces hold no intramolecular terms: a model that learns them sees nothing "
            "that keeps a molecule together."
        )
    return {
        "level_of_theory": f"TIP3P ({'rigid' if rigid else 'flexible'}), PME, cutoff {CUTOFF:g} Å",
        "temperature": TEMPERATURE,
        "mean_temperatures": {name: round(float(mean), 2) for name, mean in means.items()},
        "notes": notes,
    }


RECIPE = Recipe(
    name="tip3p-mini",
    title="258 TIP3P waters in a 20 Å cube, NVT at 300 K, OpenMM",
    story=(
        "The classical water of the masked-pretraining paper (arXiv:2402.15921): 258 TIP3P "
        f"molecules in a 20 Å periodic cube, PME, cutoff {CUTOFF:g} Å (Lennard-Jones switched off "
        f"from {SWITCH:g} Å, with long-range correction), NVT at {TEMPERATURE:g} K by a "
        f"Nosé-Hoover chain of 10, a frame every {EVERY} steps. Each of {SEEDS} trajectories "
        "starts from its own random positions and orientations, minimised, then equilibrated by "
        "Langevin and by Nosé-Hoover dynamics (10 ps each) before frame 0. Molecules are rigid, as "
        "in the generator the same group published with GAMD (openmmtools WaterBox defaults); "
        f"option `rigid=False` makes them flexible. {FRAMES} frames per trajectory at scale 1, "
        f"{PAPER_FRAMES} at scale paper. Dynamics on OpenMM's CPU platform; labels, total "
        "potential energy and forces of the rounded positions, in double precision on its "
        "Reference platform with PME tolerance 1e-5."
    ),
    packages=("openmm", "scipy"),
    plan=plan,
    work=work,
    describe=describe,
)
