"""Recipe of `iso17-mini`: isomers of C7H10O2 at 500 K, by GFN2-xTB dynamics, some held out as
unseen.

ISO17 (K. T. Schütt et al., NeurIPS 30, 2017) holds 5 000 steps of dynamics at 500 K of each of 129
isomers of C7O2H10. A fifth of the isomers is test_other: never seen in training. Of the others four
steps in five are the reference database, the fifth is test_within. `arrange` puts this set into the
same parts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...structures.store import Structures
from .common import Recipe
from .dynamics import HYDROGEN, STEP
from .rmd17_mini import blocks
from .species import Species
from .trajectories import by_system, dropped_note, follow, markdown, rng_of
from .xtb import CAVEAT, METHOD, atomic_energies

# SMILES: chains and rings of one or two of the families alcohol, ether, ketone, aldehyde, ester,
# acid and lactone
ISOMERS = (
    "CC1=CC(=O)CCC1O",
    "O=C1CCCC(=O)CC1",
    "COC1=CC(=O)CCC1",
    "CC1(C)CC(=O)C=CO1",
    "CCOC(=O)C=CC=C",
    "CC1CC=CC(=O)OC1",
    "OC(=O)C1CCC=CC1",
    "CC(=O)C1CCCC1=O",
    "C=CC(=O)CCC(C)=O",
    "O=CCCCC=CC=O",
    "C1CC2(C=C1)OCCO2",
    "CC(C)(O)C#CC(C)=O",
    "COC(=O)C1CC1C=C",
    "OCC#CCCCC=O",
    "CC1=C(C(C)=O)CCO1",
    "OC1CCC2(CC2)C1=O",
)
# of families that others have: a fifth, as in ISO17
UNSEEN = ("COC1=CC(=O)CCC1", "CC(=O)C1CCCC1=O", "OCC#CCCCC=O")
TEMPERATURE = 500.0  # K
FRAMES = 100  # per isomer at scale 1
PAPER_FRAMES = 5_000
BLOCK = 100  # frames of one trajectory
EVERY = 10  # steps between frames; ISO17's own are 1 fs apart
FRICTION = 0.01  # 1/fs
FIELD_STEPS = 1500
EQUILIBRATION = 150
PARTS = ("train", "valid", "test_within", "test_other")


def arrange(made: Structures) -> Structures:
    """The set in the order of ISO17's parts, which it then knows (`potkit.datasets.splits.parts`).

    All frames of the isomers `UNSEEN` are test_other. Of every other isomer the last fifth of each
    trajectory is test_within and the tenth before it valid, so that parts lie apart in time.
    """
    from ..splits import mark_parts

    rows: dict[str, list[np.ndarray]] = {part: [] for part in PARTS}
    for k, name in enumerate(made.system_names()):
        of_isomer = np.flatnonzero(made.system == k)
        if name in UNSEEN:
            rows["test_other"].append(of_isomer)
            continue
        ends = np.cumsum(blocks(len(of_isomer), BLOCK))
        for trajectory in np.split(of_isomer, ends[:-1]):
            test = len(trajectory) - round(0.2 * len(trajectory))
            valid = test - round(0.1 * len(trajectory))
            rows["train"].append(trajectory[:valid])
            rows["valid"].append(trajectory[valid:test])
            rows["test_within"].append(trajectory[test:])
    nothing = np.zeros(0, int)
    parts = {part: np.concatenate([nothing, *pieces]) for part, pieces in rows.items()}
    ordered = made[np.concatenate(list(parts.values()))]
    return mark_parts(ordered, {part: len(chosen) for part, chosen in parts.items()})


def plan(scale: float | str, seed: int, isomers: Sequence[str] = ISOMERS) -> list[dict[str, Any]]:
    """A task per trajectory. ``isomers``: SMILES."""
    total = PAPER_FRAMES if scale == "paper" else max(1, round(scale * FRAMES))
    return [
        {"label": f"{smiles} {k}", "smiles": smiles, "frames": frames, "seed": seed}
        for smiles in isomers
        for k, frames in enumerate(blocks(total, BLOCK))
    ]


def work(task: dict[str, Any]) -> Structures:
    """One trajectory."""
    return follow(
        Species(task["smiles"]),
        task["smiles"],
        rng_of(task["seed"], task["label"]),
        task["frames"],
        temperature=TEMPERATURE,
        every=EVERY,
        friction=FRICTION,
        field_steps=FIELD_STEPS,
        equilibration=EQUILIBRATION,
    )


def describe(tasks: list[dict[str, Any]], infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Level of theory, reference energies, the isomers held out, and how the dynamics went."""
    table = by_system(infos, TEMPERATURE)
    unseen = [name for name in table if name in UNSEEN]
    quoted = {f"`{name}`": row for name, row in table.items()}
    return {
        "level_of_theory": METHOD,
        "temperature": TEMPERATURE,
        "atomic_energies": atomic_energies(),
        "minimum_energies": {name: row["lowest minimum (eV)"] for name, row in table.items()},
        "unseen": unseen,
        "dynamics": table,
        "tables": {"How the dynamics went": markdown(quoted, "isomer")},
        "notes": [
            (
                f"Held out as unseen isomers: {', '.join(f'`{s}`' for s in unseen)}. "
                '`potkit.datasets.registry.published_split("iso17-mini")` gives the rows of train, '
                "valid, test_within and test_other, as ISO17 has them."
            ),
            (
                f"A frame every {EVERY} steps of {STEP:g} fs with hydrogens of {HYDROGEN:g} u; "
                "energy lag 1 and shape lag 1 are the correlations of neighbouring frames' "
                "energies and pair distances."
            ),
            (
                "Above minimum: mean potential energy of the frames over that of quenched last "
                "frames; a harmonic molecule would have the equipartition value."
            ),
            (
                "Kinetic temperature: BAOAB's velocities are a few per cent too slow at this step "
                "in stiff bonds; its positions are not."
            ),
            "Stereocentres that the SMILES leaves open are chosen at random in each trajectory.",
            dropped_note(infos),
            CAVEAT,
        ],
    }


RECIPE = Recipe(
    name="iso17-mini",
    title="isomers of C7H10O2, dynamics at 500 K, three isomers held out, GFN2-xTB",
    story=(
        f"{len(ISOMERS)} isomers of C7H10O2 of many families, each embedded by RDKit (ETKDG), run "
        f"through {FIELD_STEPS * STEP * 1e-3:g} ps of force-field dynamics (MMFF94) at "
        f"{TEMPERATURE:g} K, then {METHOD} (tblite) Langevin dynamics at {TEMPERATURE:g} K "
        f"(BAOAB): {EQUILIBRATION} steps with friction 0.05/fs, then a frame every {EVERY} steps "
        f"with friction {FRICTION:g}/fs. Hydrogens weigh {HYDROGEN:g} u, which lets the step be "
        f"{STEP:g} fs and leaves the distribution of positions as it is. {FRAMES} frames per "
        f"isomer at scale 1, in trajectories of {BLOCK}; {PAPER_FRAMES:,}, ISO17's number, at "
        "scale paper. Positions are centred and rounded first, then labelled with total energies "
        "and forces."
    ),
    packages=("rdkit", "tblite", "scipy"),
    plan=plan,
    work=work,
    describe=describe,
    arrange=arrange,
)
