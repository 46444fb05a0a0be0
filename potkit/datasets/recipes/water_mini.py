"""Recipe of `water-mini`: periodic boxes of 8 to 64 flexible waters, labelled by the many-body
model AMOEBA.

It stands in for the RPBE-D3 water of T. Morawietz et al. (PNAS 113, 8368, 2016,
doi:10.1073/pnas.1602375113), which the masked paper uses: boxes of several sizes, densities and
temperatures. AMOEBA (P. Ren, J. W. Ponder, J. Phys. Chem. B 107, 5933, 2003, doi:10.1021/jp027815+;
OpenMM's amoeba2018.xml) has flexible molecules, multipoles and mutually induced dipoles, so its
energy is no sum over pairs.

All boxes obey one and the same potential: electrostatics by particle-mesh Ewald, van der Waals up
to `CUTOFF` with the long-range correction. A box narrower than twice the cutoff is repeated until
it is not; energy and forces are then those of one copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import DataError
from ...structures.store import Structures
from ...units import AVOGADRO, KJ_MOL, NM
from .common import Recipe, joined, on_grid
from .dynamics import HYDROGEN, STEP, Langevin, heavy_masses, quench
from .tip3p_mini import random_start, topology_of
from .trajectories import BRANCH_FRICTION, EQUILIBRATION_FRICTION, FIELD_FRICTION, rng_of

CUTOFF = 5.5  # Å
DENSITIES = (0.7, 0.85, 1.0, 1.15, 1.3)  # g/cm³
TEMPERATURES = (300.0, 350.0, 400.0, 500.0, 700.0)  # K
# waters: densities, temperatures
SIZES: dict[int, tuple[tuple[float, ...], tuple[float, ...]]] = {
    8: (DENSITIES, TEMPERATURES),
    16: ((0.85, 1.0, 1.15), (300.0, 500.0)),
    32: ((1.0,), (300.0, 500.0)),
    48: ((0.7, 0.85, 1.0), TEMPERATURES),  # up to here wide enough to need no copies
    64: (DENSITIES, TEMPERATURES),
}
BOXES = tuple(
    (waters, density, kelvin)
    for waters, (densities, kelvins) in SIZES.items()
    for density in densities
    for kelvin in kelvins
)
FRAMES = 21  # per box at scale 1
PAPER_FRAMES = 7_241
EQUILIBRATION = 1000  # steps of the classical model before the first frame
EVERY = 80  # steps of it between frames
STEPS = 6  # damped steps of AMOEBA that end in a frame
# thresholds of induced dipoles (Debye) and Ewald forces (relative)
LABEL = (1e-5, 1e-4)
DYNAMICS = (1e-3, 1e-3)


def edge(waters: int, density: float) -> float:
    """Edge (Å) of the cube that holds ``waters`` at ``density`` (g/cm³)."""
    grams = 18.01528 / AVOGADRO
    return round((waters * grams / density) ** (1 / 3) * 1e8, 4)


class Water:
    """A model of water in a cube of edge ``box`` (Å). Called with positions [3·waters,3] Å: energy
    eV, forces [3·waters,3] eV/Å.

    ``model``: "amoeba" (Reference platform, double precision), or "classical", flexible TIP3P.
    ``thresholds``: of the induced dipoles and of the Ewald sum. ``copies`` along each axis;
    default: as many as the cutoff needs.
    """

    def __init__(
        self,
        model: str,
        waters: int,
        box: float,
        thresholds: tuple[float, float] = LABEL,
        copies: int | None = None,
    ) -> None:
        import openmm

        self.copies = copies or int(np.ceil(2 * CUTOFF / box))
        self.box = box
        self.count = 3 * waters
        shifts = np.stack(np.meshgrid(*[np.arange(self.copies)] * 3, indexing="ij"), -1)
        self._shifts = shifts.reshape(-1, 1, 3) * box
        n_copies = len(self._shifts)
        system = _system(model, waters * n_copies, self.copies * box, thresholds)
        name, settings = {
            "amoeba": ("Reference", {}),
            "classical": ("CPU", {"Threads": "1", "DeterministicForces": "true"}),
        }[model]
        platform = openmm.Platform.getPlatform(name)
        self._context = openmm.Context(system, openmm.VerletIntegrator(1e-3), platform, settings)

    def __call__(self, positions: np.ndarray) -> tuple[float, np.ndarray]:
        """Energy (eV) and forces [3·waters,3] (eV/Å) of one copy at ``positions`` (Å)."""
        everything = (np.asarray(positions, np.float64) + self._shifts).reshape(-1, 3)
        self._context.setPositions(everything / NM)
        state = self._context.getState(energy=True, forces=True)
        energy = state.getPotentialEnergy()._value * KJ_MOL / len(self._shifts)
        return energy, state.getForces(asNumpy=True)._value[: self.count] * (KJ_MOL / NM)


def _system(model: str, waters: int, box: float, thresholds: tuple[float, float]):
    """OpenMM's system of ``waters`` flexible molecules in a cube of edge ``box`` (Å)."""
    from openmm import AmoebaVdwForce, app

    topology = topology_of(waters, box)
    settings = dict(
        nonbondedMethod=app.PME,
        nonbondedCutoff=CUTOFF / NM,
        rigidWater=False,
        constraints=None,
        removeCMMotion=False,
        ewaldErrorTolerance=thresholds[1],
    )
    if model == "classical":
        return app.ForceField("tip3p.xml").createSystem(topology, **settings)
    system = app.ForceField("amoeba2018.xml").createSystem(
        topology,
        vdwCutoff=CUTOFF / NM,
        polarization="mutual",
        mutualInducedTargetEpsilon=thresholds[0],
        **settings,
    )
    for index in reversed(range(system.getNumForces())):
        force = system.getForce(index)
        if isinstance(force, AmoebaVdwForce):
            system.addForce(_of_two_types(force))
            system.removeForce(index)
        elif _terms(force) == 0:
            # torsions and the like: OpenMM takes 10 s to prepare them even where there are none
            system.removeForce(index)
    return system


def _of_two_types(force):
    """The same van der Waals force with its long-range correction, over the types that occur.

    amoeba2018.xml declares 106 types, and OpenMM integrates the correction of every pair of them:
    0.9 s per box.
    """
    from openmm import AmoebaVdwForce

    made = AmoebaVdwForce()
    made.setPotentialFunction(force.getPotentialFunction())
    made.setSigmaCombiningRule(force.getSigmaCombiningRule())
    made.setEpsilonCombiningRule(force.getEpsilonCombiningRule())
    made.setNonbondedMethod(force.getNonbondedMethod())
    made.setCutoffDistance(force.getCutoffDistance())
    made.setUseDispersionCorrection(True)
    for k in range(force.getNumParticles()):
        parent, _, _, reduction, _, kind, _ = force.getParticleParameters(k)
        sigma, epsilon = force.getParticleTypeParameters(kind)
        made.addParticle(parent, sigma, epsilon, reduction)
        made.setParticleExclusions(k, force.getParticleExclusions(k))
    return made


def _terms(force) -> int:
    """How many bonds, angles, torsions or particles an OpenMM force acts on."""
    kinds = ("Bonds", "Angles", "Torsions", "TorsionTorsions", "Particles", "Multipoles")
    counters = [getattr(force, f"getNum{kind}", None) for kind in kinds]
    return sum(counter() for counter in counters if counter is not None)


def wrapped(positions: np.ndarray, box: float) -> np.ndarray:
    """Whole molecules, moved so that their centres lie in the cell."""
    molecules = positions.reshape(-1, 3, 3)
    return (molecules - box * np.floor(molecules.mean(1, keepdims=True) / box)).reshape(-1, 3)


def whole(positions: np.ndarray) -> bool:
    """Whether every O-H bond is there: within 0.75 and 1.3 Å."""
    water = positions.reshape(-1, 3, 3)
    length = np.linalg.norm(water[:, 1:] - water[:, :1], axis=-1)
    return bool(length.min() > 0.75 and length.max() < 1.3)


def plan(
    scale: float | str,
    seed: int,
    boxes: Sequence[Sequence[float]] = BOXES,
    equilibration: int = EQUILIBRATION,
) -> list[dict[str, Any]]:
    """A task per box. ``boxes``: (waters, density in g/cm³, temperature in K); ``equilibration``
    in steps.
    """
    tasks = []
    for k, (waters, density, kelvin) in enumerate(boxes):
        if not (waters == int(waters) > 0 and density > 0 and kelvin > 0):
            raise DataError(
                f"water-mini: box {k}: waters, density and temperature must be positive, got "
                f"{waters}, {density}, {kelvin}"
            )
        if scale == "paper":
            frames = PAPER_FRAMES // len(boxes) + (k < PAPER_FRAMES % len(boxes))
        else:
            frames = max(1, round(scale * FRAMES))
        label = f"{int(waters)} waters, {density:g} g/cm³, {kelvin:g} K"
        tasks.append(
            {
                "label": label,
                "waters": int(waters),
                "density": float(density),
                "temperature": float(kelvin),
                "frames": frames,
                "equilibration": int(equilibration),
                "seed": seed,
            }
        )
    return tasks


def work(task: dict[str, Any]) -> Structures:
    """All frames of one box."""
    rng = rng_of(task["seed"], task["label"])
    waters, kelvin = task["waters"], task["temperature"]
    box = edge(waters, task["density"])
    classical = Water("classical", waters, box, DYNAMICS)
    amoeba = Water("amoeba", waters, box, DYNAMICS)
    label = Water("amoeba", waters, box)
    masses = heavy_masses(np.tile([15.999, 1.008, 1.008], waters))
    sites = int(np.ceil(round(waters ** (1 / 3), 6)))  # along an edge: as few as hold the waters
    start, _ = quench(classical, random_start(waters, box, sites, rng), steps=300, slope=0.5)
    walker = Langevin(classical, start, masses, kelvin, rng)
    walker.run(task["equilibration"], EQUILIBRATION_FRICTION)
    frames, energies, forces, kelvins = [], [], [], []
    dropped = 0
    for _ in range(2 * task["frames"]):
        if len(frames) == task["frames"]:
            break
        walker.run(EVERY, FIELD_FRICTION)
        twig = Langevin(amoeba, walker.positions, masses, kelvin, rng)
        twig.run(STEPS, BRANCH_FRICTION)
        stored = on_grid(wrapped(twig.positions, box))
        if not whole(stored.astype(np.float64)):
            dropped += 1
            continue
        energy, force = label(stored)
        kelvins.append(twig.kinetic_temperature)
        frames.append(stored)
        energies.append(round(energy, 6))
        forces.append(on_grid(force))
    count = len(frames)
    return Structures(
        z=np.tile([8, 1, 1], count * waters),
        pos=joined(frames),
        ptr=np.arange(count + 1) * 3 * waters,
        energy=np.array(energies),
        forces=joined(forces),
        cell=np.tile(np.eye(3) * box, (count, 1, 1)),
        pbc=np.ones((count, 3), bool),
        molecule=np.tile(np.repeat(np.arange(waters), 3), count),
        info={
            "systems": [task["label"]],
            "kinetic_temperature": float(np.mean(kelvins or [0.0])),
            "dropped": dropped,
            "energy_per_water": float(np.mean(energies or [0.0]) / waters),
            "copies": label.copies,
        },
    )


def describe(tasks: list[dict[str, Any]], infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Level of theory and how the dynamics went."""
    boxes = list(zip(tasks, infos, strict=True))
    ratio = np.array([info["kinetic_temperature"] / task["temperature"] for task, info in boxes])
    rows = [
        "| waters | boxes | copies | edge (Å) | mean energy per water (eV) |",
        "| ---: | ---: | ---: | --- | --- |",
    ]
    for waters in dict.fromkeys(t["waters"] for t in tasks):
        of_size = [(task, info) for task, info in boxes if task["waters"] == waters]
        edges = [edge(waters, task["density"]) for task, _ in of_size]
        energies = [info["energy_per_water"] for _, info in of_size]
        copies = sorted({info["copies"] ** 3 for _, info in of_size})
        rows.append(
            f"| {waters} | {len(of_size)} | {', '.join(map(str, copies))} | "
            f"{min(edges):.2f} to {max(edges):.2f} | {min(energies):.3f} to {max(energies):.3f} |"
        )
    return {
        "level_of_theory": f"AMOEBA (amoeba2018), PME, van der Waals cutoff {CUTOFF:g} Å",
        "temperatures": {t["label"]: t["temperature"] for t in tasks},
        "tables": {"The boxes": "\n".join(rows)},
        "notes": [
            (
                "No bond ever breaks in AMOEBA: there is no proton transfer, unlike in the RPBE-D3 "
                "set; there is no ice either."
            ),
            (
                "O-H bonds and angles are those of AMOEBA at the box's temperature as far as "
                f"{STEPS} damped steps bring them there; where the molecules lie is decided by the "
                "classical model (flexible TIP3P)."
            ),
            (
                f"Frames of one box are {EVERY * STEP * 1e-3:g} ps of classical dynamics apart; a "
                "box is a system of its own."
            ),
            (
                "Kinetic temperature of the damped steps over that of the thermostat: mean "
                f"{ratio.mean():.3f}, per box {ratio.min():.3f} to {ratio.max():.3f}."
            ),
            (
                "Frames dropped, an O-H bond outside 0.75 to 1.3 Å: "
                f"{sum(i['dropped'] for i in infos)}."
            ),
            (
                "Boxes of 8 to 32 waters are narrower than twice the cutoff of many networks: "
                "neighbour lists must count several images of one atom (potkit's do)."
            ),
            (
                "The energy of molecules far apart is close to zero: there are no energies of "
                "atoms in it."
            ),
        ],
    }


RECIPE = Recipe(
    name="water-mini",
    title="periodic boxes of 8 to 64 flexible waters, 0.7 to 1.3 g/cm³, 300 to 700 K, AMOEBA",
    story=(
        f"{len(BOXES)} cubes of {', '.join(map(str, SIZES))} waters at densities of "
        f"{DENSITIES[0]:g} to {DENSITIES[-1]:g} g/cm³ and temperatures of {TEMPERATURES[0]:g} to "
        f"{TEMPERATURES[-1]:g} K. Molecules start on random sites of a grid, randomly turned; "
        f"flexible TIP3P (OpenMM) is minimised and runs Langevin dynamics (BAOAB, {STEP:g} fs "
        f"steps, hydrogens of {HYDROGEN:g} u) for {EQUILIBRATION * STEP * 1e-3:g} ps. Every "
        f"{EVERY * STEP * 1e-3:g} ps a copy with new thermal velocities runs {STEPS} steps of "
        f"AMOEBA Langevin dynamics with a friction of {BRANCH_FRICTION:g}/fs and is kept: {FRAMES} "
        f"frames per box at scale 1, {PAPER_FRAMES:,} in all, as many as RPBE-D3 water has, at "
        "scale paper. Molecules are made whole and positions rounded first, then labelled in "
        f"double precision: AMOEBA with mutual induction (to {LABEL[0]:g} Debye), particle-mesh "
        f"Ewald (tolerance {LABEL[1]:g}), van der Waals cutoff {CUTOFF:g} Å with long-range "
        "correction. Boxes narrower than twice the cutoff are repeated, so that all obey the same "
        "potential."
    ),
    packages=("openmm", "scipy"),
    plan=plan,
    work=work,
    describe=describe,
)
