"""Recipe of `md22-mini`: four molecules of MD22 at 500 K, with GFN2-xTB energies and forces.

MD22 (S. Chmiela et al., Sci. Adv. 9, eadf0873, 2023, doi:10.1126/sciadv.adf0873) holds dynamics of
seven large molecules at 400 to 500 K. The four up to 87 atoms are here; a gradient of the others
costs too much for a set that anyone can make again. See `trajectories.branch` for how a frame comes
about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...errors import DataError
from ...structures.store import Structures
from ...units import BOHR
from .common import Recipe
from .dynamics import HYDROGEN, STEP
from .rmd17_mini import blocks
from .species import Species
from .trajectories import (
    BRANCH_FRICTION,
    branch,
    by_system,
    dropped_note,
    field_of,
    markdown,
    rng_of,
    tied,
)
from .xtb import CAVEAT, METHOD, XTB, atomic_energies

ADENINE = "Nc1ncnc2[nH]cnc12"
THYMINE = "Cc1c[nH]c(=O)[nH]c1=O"
# adenine's atom, thymine's atom, Å: N1...H-N3 and N6-H...O4
HYDROGEN_BONDS = ((2, 6, 2.85), (0, 8, 2.95))
REACH = 3.1  # Å, how long those may become in the force-field part
RISE = 3.4  # Å, from pair to pair
TWIST = np.deg2rad(216.0)  # B-DNA's 36°, and half a turn that puts adenine over thymine


@dataclass(frozen=True)
class Molecule:
    """One of the set's molecules."""

    smiles: str
    paper: int  # frames in MD22
    radius: float = np.inf  # Å, keeps its fragments together, see `trajectories.held`


MOLECULES = {
    "Ac-Ala3-NHMe": Molecule("CC(=O)N[C@@H](C)C(=O)N[C@@H](C)C(=O)N[C@@H](C)C(=O)NC", 85_109),
    "DHA": Molecule(r"CC/C=C\C/C=C\C/C=C\C/C=C\C/C=C\C/C=C\CCC(=O)O", 69_753),
    "AT-AT": Molecule(f"{ADENINE}.{THYMINE}.{ADENINE}.{THYMINE}", 20_001, 4.0),
    "stachyose": Molecule(
        (
            "OC[C@H]1O[C@H](OC[C@H]2O[C@H](OC[C@H]3O[C@H](O[C@]4(CO)O[C@H](CO)[C@@H](O)[C@@H]4O)"
            "[C@H](O)[C@@H](O)[C@@H]3O)[C@H](O)[C@@H](O)[C@H]2O)[C@H](O)[C@@H](O)[C@H]1O"
        ),
        27_272,
    ),
}
TEMPERATURE = 500.0  # K
FRAMES = 300  # per molecule at scale 1
BLOCK = 75  # frames of one force-field trajectory
EVERY = 500  # steps of the force field between frames
EQUILIBRATION = 2500  # steps of the force field before the first
STEPS = 4  # damped steps of GFN2-xTB that end in a frame


def pair_of_bases() -> tuple[np.ndarray, int]:
    """Adenine and thymine, flat, with Watson and Crick's two hydrogen bonds: positions [30,3] Å,
    hydrogens last within each.

    The second value is the number of atoms of adenine.
    """
    rng = np.random.default_rng(0)
    adenine = _flat(Species(ADENINE).embed(rng))
    thymine = _flat(Species(THYMINE).embed(rng))
    of_adenine = [i for i, _, _ in HYDROGEN_BONDS]
    of_thymine = [j for _, j, _ in HYDROGEN_BONDS]
    along = adenine[of_adenine[1]] - adenine[of_adenine[0]]
    outward = np.cross(along, [0.0, 0.0, 1.0])
    side = np.sign(outward @ (adenine[of_adenine].mean(0) - adenine.mean(0)))
    outward *= side / np.linalg.norm(outward)
    lengths = np.array([[length] for _, _, length in HYDROGEN_BONDS])
    target = adenine[of_adenine] + outward * lengths  # where thymine's two atoms belong
    x, y, _ = target[1] - target[0]
    best, widest = thymine, 0.0
    for face in (thymine, thymine * [1.0, -1.0, 1.0]):
        x_now, y_now, _ = face[of_thymine[1]] - face[of_thymine[0]]
        placed = face @ _about_z(np.arctan2(y, x) - np.arctan2(y_now, x_now)).T
        placed += target.mean(0) - placed[of_thymine].mean(0)
        gap = np.linalg.norm(placed[:, None] - adenine, axis=-1).min()
        if gap > widest:
            best, widest = placed, gap
    return np.concatenate([adenine, best]), len(adenine)


def stacked_pairs() -> np.ndarray:
    """Positions [60,3] (Å) of two stacked pairs, in the order of the SMILES' atoms."""
    pair, _ = pair_of_bases()
    pair = pair - pair.mean(0)
    upper = pair @ _about_z(TWIST).T + [0.0, 0.0, RISE]
    made = np.concatenate([pair, upper])
    heavy = np.tile(np.concatenate([Species(ADENINE).z, Species(THYMINE).z]) > 1, 2)
    # RDKit appends all hydrogens of a cluster at the end, fragment by fragment
    return np.concatenate([made[heavy], made[~heavy]])


def hydrogen_bonds(species: Species) -> np.ndarray:
    """Atoms [4,2] at the ends of the hydrogen bonds of the two pairs."""
    heavy = [np.flatnonzero((species.molecule == k) & (species.z > 1)) for k in range(4)]
    ends = []
    for adenine, thymine in ((heavy[0], heavy[1]), (heavy[2], heavy[3])):
        ends += [(adenine[i], thymine[j]) for i, j, _ in HYDROGEN_BONDS]
    return np.array(ends)


def _flat(x: np.ndarray) -> np.ndarray:
    """``x`` turned so that its plane is z = 0."""
    x = x - x.mean(0)
    axes = np.linalg.svd(x, full_matrices=False)[2]
    return x @ (axes * np.linalg.det(axes)).T


def _about_z(angle: float) -> np.ndarray:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin, 0.0], [sin, cos, 0.0], [0.0, 0.0, 1.0]])


def plan(
    scale: float | str, seed: int, molecules: Sequence[str] = tuple(MOLECULES), steps: int = STEPS
) -> list[dict[str, Any]]:
    """A task per trajectory. ``molecules``: names out of the four; ``steps`` of GFN2-xTB per
    frame.
    """
    tasks = []
    for name in molecules:
        if name not in MOLECULES:
            raise DataError(
                f"md22-mini: no molecule called {name!r}; there are {', '.join(MOLECULES)}"
            )
        total = MOLECULES[name].paper if scale == "paper" else max(1, round(scale * FRAMES))
        for k, frames in enumerate(blocks(total, BLOCK)):
            task = {"label": f"{name}-{k}", "molecule": name, "frames": frames}
            tasks.append(task | {"steps": int(steps), "seed": seed})
    return tasks


def work(task: dict[str, Any]) -> Structures:
    """One trajectory."""
    name = task["molecule"]
    rng = rng_of(task["seed"], task["label"])
    species = Species(MOLECULES[name].smiles)
    start = stacked_pairs() if name == "AT-AT" else species.embed(rng)
    xtb = XTB(species.z, start / BOHR)
    field = field_of(species, xtb, MOLECULES[name].radius)
    if name == "AT-AT":
        field = tied(field, hydrogen_bonds(species), REACH)
    return branch(
        species,
        name,
        rng,
        task["frames"],
        temperature=TEMPERATURE,
        every=EVERY,
        equilibration=EQUILIBRATION,
        steps=task["steps"],
        field=field,
        xtb=xtb,
        start=start,
    )


def describe(tasks: list[dict[str, Any]], infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Level of theory, reference energies, and how the dynamics went."""
    table = by_system(infos, TEMPERATURE)
    steps = tasks[0]["steps"]
    return {
        "level_of_theory": METHOD,
        "temperature": TEMPERATURE,
        "smiles": {name: MOLECULES[name].smiles for name in table},
        "atomic_energies": atomic_energies(),
        "minimum_energies": {name: row["lowest minimum (eV)"] for name, row in table.items()},
        "dynamics": table,
        "tables": {"How the dynamics went": markdown(table, "molecule")},
        "notes": [
            (
                f"Bonds and angles are those of GFN2-xTB at {TEMPERATURE:g} K as far as {steps} "
                "damped steps bring them there; torsions and contacts are those of the force field "
                "(MMFF94): GFN2-xTB would populate conformers differently."
            ),
            (
                "Above minimum: mean potential energy of the frames over that of quenched last "
                "frames; a harmonic molecule would have the equipartition value."
            ),
            (
                "Energy lag 1 and shape lag 1: correlations of neighbouring frames' energies and "
                f"pair distances, {EVERY * STEP * 1e-3:g} ps of force-field dynamics apart."
            ),
            (
                "AT-AT: two stacked Watson-Crick pairs, adenine over thymine, which MMFF94 would "
                "take apart at this temperature: in the force-field part springs act on hydrogen "
                f"bonds beyond {REACH:g} Å and on bases whose centre is beyond "
                f"{MOLECULES['AT-AT'].radius:g} Å from the common one. No label contains them."
            ),
            dropped_note(infos),
            "A molecule is a system; its trajectories are independent and lie one after the other.",
            CAVEAT,
        ],
    }


RECIPE = Recipe(
    name="md22-mini",
    title="four molecules of MD22 (42 to 87 atoms), dynamics at 500 K, GFN2-xTB",
    story=(
        "Ac-Ala3-NHMe, docosahexaenoic acid (DHA), two stacked adenine-thymine pairs (AT-AT) and "
        f"stachyose. Force-field Langevin dynamics (MMFF94 by RDKit, {TEMPERATURE:g} K, BAOAB with "
        f"{STEP:g} fs steps and hydrogens of {HYDROGEN:g} u) starts from an embedded geometry and "
        f"is equilibrated for {EQUILIBRATION * STEP * 1e-3:g} ps. Every {EVERY * STEP * 1e-3:g} ps "
        f"a copy with new thermal velocities runs {STEPS} steps of {METHOD} (tblite) Langevin "
        f"dynamics at {TEMPERATURE:g} K with a friction of {BRANCH_FRICTION:g}/fs, in which the "
        f"stiff modes settle on the labelled surface, and is kept: {FRAMES} frames per molecule at "
        f"scale 1, in trajectories of {BLOCK}; MD22's own numbers at scale paper. Positions are "
        "centred and rounded first, then labelled with total energies and forces."
    ),
    packages=("rdkit", "tblite", "scipy"),
    plan=plan,
    work=work,
    describe=describe,
)
