"""Recipe of `rmd17-mini`: the ten molecules of rMD17 at 500 K, by GFN2-xTB dynamics.

MD17 (S. Chmiela et al., Sci. Adv. 3, e1603015, 2017, doi:10.1126/sciadv.1603015) sampled each
molecule at 500 K; rMD17 (A. S. Christensen, O. A. von Lilienfeld, Mach. Learn.: Sci. Technol. 1,
045018, 2020) computed 100 000 of its frames again. Here each molecule has independent trajectories
of `BLOCK` frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import DataError
from ...structures.store import Structures
from .common import Recipe
from .dynamics import HYDROGEN, STEP
from .species import Species
from .trajectories import by_system, dropped_note, follow, markdown, rng_of
from .xtb import CAVEAT, METHOD, atomic_energies

MOLECULES = {
    "aspirin": "CC(=O)Oc1ccccc1C(=O)O",
    "azobenzene": "c1ccc(cc1)/N=N/c1ccccc1",
    "benzene": "c1ccccc1",
    "ethanol": "CCO",
    "malonaldehyde": "O=CCC=O",
    "naphthalene": "c1ccc2ccccc2c1",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "salicylic": "OC(=O)c1ccccc1O",
    "toluene": "Cc1ccccc1",
    "uracil": "O=c1cc[nH]c(=O)[nH]1",
}
TEMPERATURE = 500.0  # K
FRAMES = 300  # per molecule at scale 1
PAPER_FRAMES = 100_000
BLOCK = 100  # frames of one trajectory
EVERY = 25  # steps between frames
FRICTION = 0.01  # 1/fs
FIELD_STEPS = 1500  # of the force field, so that trajectories do not start alike
EQUILIBRATION = 150  # steps of GFN2-xTB before the first frame


def blocks(total: int, block: int) -> list[int]:
    """``total`` frames cut into trajectories of at most ``block``, of nearly equal length."""
    count = -(-total // block)
    return [total // count + (k < total % count) for k in range(count)]


def plan(
    scale: float | str, seed: int, molecules: Sequence[str] = tuple(MOLECULES)
) -> list[dict[str, Any]]:
    """A task per trajectory. ``molecules``: names out of the ten."""
    for name in molecules:
        if name not in MOLECULES:
            raise DataError(
                f"rmd17-mini: no molecule called {name!r}; there are {', '.join(MOLECULES)}"
            )
    total = PAPER_FRAMES if scale == "paper" else max(1, round(scale * FRAMES))
    return [
        {"label": f"{name}-{k}", "molecule": name, "frames": frames, "seed": seed}
        for name in molecules
        for k, frames in enumerate(blocks(total, BLOCK))
    ]


def work(task: dict[str, Any]) -> Structures:
    """One trajectory."""
    return follow(
        Species(MOLECULES[task["molecule"]]),
        task["molecule"],
        rng_of(task["seed"], task["label"]),
        task["frames"],
        temperature=TEMPERATURE,
        every=EVERY,
        friction=FRICTION,
        field_steps=FIELD_STEPS,
        equilibration=EQUILIBRATION,
    )


def describe(tasks: list[dict[str, Any]], infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Level of theory, reference energies, and how the dynamics went."""
    table = by_system(infos, TEMPERATURE)
    return {
        "level_of_theory": METHOD,
        "temperature": TEMPERATURE,
        "smiles": {name: MOLECULES[name] for name in table},
        "atomic_energies": atomic_energies(),
        "minimum_energies": {name: row["lowest minimum (eV)"] for name, row in table.items()},
        "dynamics": table,
        "tables": {"How the dynamics went": markdown(table, "molecule")},
        "notes": [
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
            dropped_note(infos),
            (
                "A molecule is a system; its trajectories are independent and lie one after the "
                f"other ({BLOCK} frames each at most)."
            ),
            CAVEAT,
        ],
    }


RECIPE = Recipe(
    name="rmd17-mini",
    title="the ten molecules of rMD17, dynamics at 500 K, GFN2-xTB",
    story=(
        f"Each molecule of rMD17 is embedded by RDKit (ETKDG), runs {FIELD_STEPS * STEP * 1e-3:g} "
        f"ps of force-field dynamics (MMFF94) at {TEMPERATURE:g} K so that trajectories start from "
        f"different conformations, then {METHOD} (tblite) Langevin dynamics at {TEMPERATURE:g} K "
        f"(BAOAB): {EQUILIBRATION} steps with friction 0.05/fs, then a frame every {EVERY} steps "
        f"with friction {FRICTION:g}/fs. Hydrogens weigh {HYDROGEN:g} u, which lets the step be "
        f"{STEP:g} fs and leaves the distribution of positions as it is. {FRAMES} frames per "
        f"molecule at scale 1, in trajectories of {BLOCK}; {PAPER_FRAMES:,} at scale paper. "
        "Positions are centred and rounded first, then labelled with total energies and forces."
    ),
    packages=("rdkit", "tblite", "scipy"),
    plan=plan,
    work=work,
    describe=describe,
)
