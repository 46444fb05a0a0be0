"""Recipe of `spice-mini`: molecules, ions and clusters of many elements, sampled as SPICE was, at
GFN2-xTB.

SPICE (P. Eastman et al., Sci. Data 10, 11, 2023, doi:10.1038/s41597-022-01882-6) took conformations
from force-field dynamics at 500 K and, for half of them, stopped a minimisation after a few steps.
Here a frame of force-field dynamics ends in a few damped GFN2-xTB steps (`trajectories.branch`);
every second one is then relaxed by `RELAXATION` steps of minimisation. Ion pairs are set at random
distances instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...structures.store import Structures
from ...units import BOHR
from .common import Recipe
from .dynamics import HYDROGEN, STEP, quench
from .rmd17_mini import blocks
from .species import Species
from .spice_systems import SUBSETS
from .trajectories import BRANCH_FRICTION, Frames, branch, dropped_note, field_of, rng_of
from .xtb import CAVEAT, METHOD, XTB, atomic_energies

TEMPERATURE = 500.0  # K
FRAMES = 22  # per system at scale 1
PAPER_STRUCTURES = 1_132_808
BLOCK = 22  # frames of one trajectory
EVERY = 150  # steps of the force field between frames
EQUILIBRATION = 600
STEPS = 3  # damped steps of GFN2-xTB
RELAXATION = 5  # iterations of L-BFGS for every second frame
RADIUS = {2: 3.5}  # Å, by the number of fragments: how far their centres may be from the common one
RADIUS_MORE = 5.0
DISTANCES = (0.85, 2.5)  # of ion pairs, in sums of covalent radii


def plan(
    scale: float | str, seed: int, systems: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """A task per trajectory. ``systems``: SMILES; default all of `spice_systems.SUBSETS`."""
    everything = [smiles for members in SUBSETS.values() for smiles in members]
    subset_of = {smiles: subset for subset, members in SUBSETS.items() for smiles in members}
    chosen = everything if systems is None else systems
    tasks = []
    for k, smiles in enumerate(chosen):
        if scale == "paper":
            share, rest = divmod(PAPER_STRUCTURES, len(chosen))
            total = share + (k < rest)
        else:
            total = max(1, round(scale * FRAMES))
        subset = subset_of.get(smiles, "Small molecules")
        for trajectory, frames in enumerate(blocks(total, BLOCK)):
            label = f"{smiles} {trajectory}"
            task = {"label": label, "smiles": smiles, "subset": subset, "frames": frames}
            tasks.append(task | {"seed": seed})
    return tasks


def work(task: dict[str, Any]) -> Structures:
    """One trajectory; nothing, and the reason as ``info["failure"]``, if the system cannot be
    built.
    """
    rng = rng_of(task["seed"], task["label"])
    info = {"systems": [task["smiles"]]}
    try:
        species = Species(task["smiles"])
        if task["subset"] == "Ion Pairs":
            return _ion_pair(species, task["smiles"], rng, task["frames"])
        start = species.embed(rng)
        xtb = XTB(species.z, start / BOHR, charge=species.charge)
        field = field_of(species, xtb, RADIUS.get(species.molecule.max() + 1, RADIUS_MORE))

        def finish(k: int, positions: np.ndarray) -> np.ndarray:
            return quench(xtb.follow, positions, steps=RELAXATION)[0] if k % 2 else positions

        return branch(
            species,
            task["smiles"],
            rng,
            task["frames"],
            temperature=TEMPERATURE,
            every=EVERY,
            equilibration=EQUILIBRATION,
            steps=STEPS,
            field=field,
            xtb=xtb,
            start=start,
            finish=finish,
            measure=False,
        )
    except (ValueError, RuntimeError) as error:  # RDKit's and tblite's
        empty = np.zeros((0, 3), np.float32)
        info["failure"] = (str(error).splitlines() or ["no reason given"])[0]
        return Structures(
            z=np.zeros(0, int), pos=empty, ptr=[0], energy=np.zeros(0), forces=empty, info=info
        )


def _ion_pair(species: Species, system: str, rng: np.random.Generator, frames: int) -> Structures:
    """Two ions at distances uniform in `DISTANCES`, along random directions."""
    xtb = XTB(species.z, np.array([[0.0, 0, 0], [0, 0, 3.0]]) / BOHR, charge=species.charge)
    made = Frames(species, xtb)
    for _ in range(2 * frames):
        if len(made.positions) == frames:
            break
        between = rng.normal(size=3)
        between *= rng.uniform(*DISTANCES) * species.radii.sum() / np.linalg.norm(between)
        made.add(np.stack([-between / 2, between / 2]))
    return made.pack(system, {"field": "none"})


def describe(tasks: list[dict[str, Any]], infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Level of theory, reference energies, the subsets, and what was dropped."""
    failures: dict[str, str] = {}
    empty: list[str] = []
    good: list[tuple[dict[str, Any], dict[str, Any]]] = []
    for task, info in zip(tasks, infos, strict=True):
        if "failure" in info:
            failures[task["smiles"]] = info["failure"]
        elif info.get("frames"):
            good.append((task, info))
        else:
            empty.append(task["smiles"])
    rows = ["| subset | systems | structures | atoms |", "| --- | ---: | ---: | --- |"]
    for subset in dict.fromkeys(task["subset"] for task, _ in good):
        members = [(task, info) for task, info in good if task["subset"] == subset]
        systems = len({task["smiles"] for task, _ in members})
        frames = sum(info["frames"] for _, info in members)
        atoms = [info["atoms"] for _, info in members]
        rows.append(f"| {subset} | {systems} | {frames:,} | {min(atoms)} to {max(atoms)} |")
    fields = {name: sum(i["field"] == name for _, i in good) for name in ("MMFF94", "UFF", "none")}
    apart = sum(i["dropped"]["scc"] for t, i in good if t["subset"] == "Ion Pairs")
    reasons = [*failures.items(), *((smiles, "no frame kept") for smiles in empty)]
    given_up = "".join(f"; `{smiles}` ({reason})" for smiles, reason in reasons)
    return {
        "level_of_theory": METHOD,
        "temperature": TEMPERATURE,
        "atomic_energies": atomic_energies(),
        "subsets": {t["smiles"]: t["subset"] for t, _ in good},
        "failures": failures,
        "tables": {"Subsets": "\n".join(rows)},
        "notes": [
            f"Systems given up: {len(failures) + len(empty)}{given_up}.",
            (
                f"{dropped_note([info for _, info in good])} {apart} of the latter are ion pairs, "
                "mostly beyond two sums of covalent radii: few of their distances reach the upper "
                "limit."
            ),
            (
                f"Trajectories by MMFF94: {fields['MMFF94']}, by UFF, which has no charges: "
                f"{fields['UFF']}, ion pairs and others without a force field: {fields['none']}. "
                "In the force-field part springs hold the fragments of a cluster together (centres "
                f"within {RADIUS[2]:g} Å of the common one for two, {RADIUS_MORE:g} Å for more); "
                "no label contains them."
            ),
            (
                f"Within a system every second structure is relaxed by {RELAXATION} steps of "
                "minimisation: energies are not those of one temperature."
            ),
            (
                "Energies are total, relative to GFN2-xTB's valence-only zero; charged systems are "
                "as they are (`charge`), without any correction, and the energies of isolated "
                "atoms are those of neutral ones."
            ),
            CAVEAT,
        ],
    }


RECIPE = Recipe(
    name="spice-mini",
    title="small molecules, dimers, hydrated ions, dipeptides, solvated amino acids, GFN2-xTB",
    story=(
        f"{sum(map(len, SUBSETS.values()))} systems in subsets after SPICE's: "
        f"{', '.join(SUBSETS)}. Fragments are embedded by RDKit (ETKDG) and put beside each other, "
        "randomly turned. Force-field Langevin dynamics (MMFF94, or UFF where MMFF94 lacks "
        f"parameters; {TEMPERATURE:g} K, BAOAB with {STEP:g} fs steps and hydrogens of "
        f"{HYDROGEN:g} u) is equilibrated for {EQUILIBRATION * STEP * 1e-3:g} ps; every "
        f"{EVERY * STEP * 1e-3:g} ps a copy with new thermal velocities runs {STEPS} steps of "
        f"{METHOD} (tblite) Langevin dynamics with a friction of {BRANCH_FRICTION:g}/fs and is "
        f"kept, every second one after {RELAXATION} steps of minimisation, as SPICE did. Ion pairs "
        f"are set at random distances, {DISTANCES[0]:g} to {DISTANCES[1]:g} sums of covalent "
        f"radii. {FRAMES} structures per system at scale 1; {PAPER_STRUCTURES:,} in all, as many "
        "as SPICE 1.1.3 has, at scale paper. Positions are centred and rounded first, then "
        "labelled with total energies and forces."
    ),
    packages=("rdkit", "tblite", "scipy"),
    plan=plan,
    work=work,
    describe=describe,
)
