"""Recipe of `dft-mini`: small H C N O molecules out of equilibrium, labelled by density functional
theory: ωB97X/6-31G(d), the level of 3BPA.

Geometries are drawn as in `ani-mini` (see there: minimum and normal modes at GFN2-xTB, random
displacements after ANI-1), from molecules whose formulas `ani-mini` does not have. A structure
further than ani-mini's energy window above the minimum, with two atoms too close, without SCF
solution, or whose energy is not that of the state its neighbours are in, is dropped and counted.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...structures.store import Structures
from ...units import BOHR, HARTREE
from . import dft
from .ani_mini import (
    CLOSEST,
    ENERGY_WINDOW,
    TEMPERATURE,
    TEMPERATURES,
    check_bonds,
    displacements,
    distances,
    embed,
    find_minimum,
)
from .common import Recipe, joined, on_grid
from .dft_molecules import LARGE, MOLECULES
from .xtb import XTB

PER_MOLECULE = 9  # structures at scale 1
PER_LARGE = 3
PAPER_PER_MOLECULE = 430  # ANI-1: 24 687 809 conformations of 57 462 molecules
# eV: how far DFT minus GFN2-xTB of a structure may be from its molecule's median. Beyond that the
# SCF has found another state.
ODD = 1.0
# against frame 0 of 3BPA at 300 K, mean absolute difference of the force components, eV/Å
AGAINST_3BPA = 3.854e-3


def interleaved(classes: Sequence[Sequence[str]], rng: np.random.Generator) -> list[str]:
    """One order of all molecules in which every beginning holds each class by its share."""
    placed = []
    for members in classes:
        shuffled = rng.permutation(len(members))
        places = (np.arange(len(members)) + rng.uniform(size=len(members))) / len(members)
        placed += [(place, members[k]) for place, k in zip(places, shuffled, strict=True)]
    return [smiles for _, smiles in sorted(placed)]


def ordered(small: Sequence[str], large: Sequence[str], seed: int) -> list[str]:
    """The molecules in the order they are made: sizes mixed, so that an unfinished set resembles
    the finished one.
    """
    by_length: dict[int, list[str]] = defaultdict(list)
    for smiles in small:
        # atoms C, N and O: near enough to mix sizes, without RDKit
        by_length[sum(letter in "CNOcno" for letter in smiles)].append(smiles)
    classes = [by_length[size] for size in sorted(by_length)]
    return interleaved([*classes, list(large)], np.random.default_rng(seed))


def plan(
    scale: float | str,
    seed: int,
    molecules: Sequence[str] = MOLECULES,
    large: Sequence[str] = LARGE,
) -> list[dict[str, Any]]:
    """A task per molecule. ``molecules`` and ``large``, those to test on: SMILES."""
    tasks = []
    for smiles in ordered(molecules, large, seed):
        if scale == "paper":
            n_structures = PAPER_PER_MOLECULE
        else:
            n_structures = max(1, round(scale * (PER_LARGE if smiles in large else PER_MOLECULE)))
        task = {"label": smiles, "smiles": smiles, "structures": n_structures, "seed": seed}
        tasks.append(task | {"large": smiles in large})
    return tasks


def work(task: dict[str, Any]) -> Structures:
    """All structures of one molecule; none, and the reason as ``info["failure"]``, if it has no
    usable minimum.
    """
    smiles = task["smiles"]
    # seeded by the SMILES, not by its place in the list: adding a molecule changes no other one
    rng = np.random.default_rng([task["seed"], zlib.crc32(smiles.encode())])
    info: dict[str, Any] = {"systems": [smiles], "large": task["large"]}
    try:
        z, start, masses, bonds = embed(smiles, int(rng.integers(2**31 - 1)))
        xtb = XTB(z, start / BOHR)
        minimum, lowest, force_constants, modes = find_minimum(xtb, start / BOHR, masses)
        check_bonds(z, minimum * BOHR, bonds)
    except (ValueError, RuntimeError) as error:  # tblite's SCC failure is a RuntimeError
        info["failure"] = str(error).splitlines()[0]
        return _pack(np.zeros(0, int), [], info)
    temperature = TEMPERATURES.get(int((z > 1).sum()), TEMPERATURE)
    force_constants = force_constants * HARTREE / BOHR**2
    pairs = np.triu_indices(len(z), 1)
    method = dft.DFT(z)
    made: list[tuple[np.ndarray, float, np.ndarray, float]] = []
    dropped = {"scf": 0, "close": 0, "energy": 0, "odd": 0}
    for _ in range(task["structures"]):
        shift = displacements(rng, force_constants, modes, temperature)
        positions = on_grid(minimum * BOHR + shift)
        stored = positions.astype(np.float64)  # what is labelled
        if distances(stored)[pairs].min() < CLOSEST:
            dropped["close"] += 1
            continue
        try:
            cheap, _ = xtb(stored / BOHR)
        except RuntimeError:  # tblite's
            dropped["scf"] += 1
            continue
        if not (cheap - lowest) * HARTREE < ENERGY_WINDOW:
            dropped["energy"] += 1
            continue
        try:
            energy, forces = method(stored)
        except dft.Unconverged:
            dropped["scf"] += 1
            continue
        made.append((positions, round(energy, 6), on_grid(forces), cheap * HARTREE))
    kept = consistent(np.array([energy - cheap for _, energy, _, cheap in made]))
    dropped["odd"] = int((~kept).sum())
    info |= {"dropped": dropped, "temperature": temperature}
    frames = [frame for frame, keep in zip(made, kept, strict=True) if keep]
    return _pack(z, frames, info)


def consistent(offset: np.ndarray) -> np.ndarray:
    """Which structures of a molecule are in the state of most; ``offset`` [S] is DFT minus GFN2-xTB
    (eV).
    """
    if not len(offset):
        return np.zeros(0, bool)
    return np.abs(offset - np.median(offset)) < ODD


def _pack(z: np.ndarray, frames: list[tuple], info: dict[str, Any]) -> Structures:
    return Structures(
        z=np.tile(z, len(frames)),
        pos=joined([positions for positions, *_ in frames]),
        ptr=np.arange(len(frames) + 1) * len(z),
        energy=np.array([energy for _, energy, *_ in frames], float),
        forces=joined([forces for _, _, forces, _ in frames]),
        info=info,
    )


def describe(tasks: list[dict[str, Any]], infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Level of theory, reference energies, which systems are the large ones, what was dropped."""
    paired = zip(tasks, infos, strict=True)
    failures = {task["smiles"]: info["failure"] for task, info in paired if "failure" in info}
    good = [info for info in infos if "failure" not in info]
    dropped = {
        reason: sum(info["dropped"][reason] for info in good)
        for reason in ("scf", "close", "energy", "odd")
    }
    large = [info["systems"][0] for info in good if info["large"]]
    given_up = "".join(f"; `{smiles}` ({why})" for smiles, why in failures.items())
    names = ", ".join(f"`{smiles}`" for smiles in large) or "none yet"
    notes = [
        (
            "Five spherical d functions, as ORCA has them (3BPA, Transition1x); ANI-1, ANI-1x and "
            "COMP6 were made with six Cartesian ones, which is another level."
        ),
        f"Larger molecules, to test on (`info['large']`): {names}.",
        f"Molecules given up: {len(failures)} of {len(tasks)}{given_up}.",
        (
            f"Structures dropped: {dropped['scf']} without SCF convergence, {dropped['close']} "
            f"with two atoms closer than {CLOSEST} Å, {dropped['energy']} more than "
            f"{ENERGY_WINDOW:.2f} eV above the minimum at GFN2-xTB, {dropped['odd']} whose DFT "
            f"minus GFN2-xTB energy is more than {ODD:g} eV from the molecule's median."
        ),
        (
            "Closed-shell solutions are taken as they are: whether an open-shell one lies lower "
            "was not looked at."
        ),
        (
            "Structures of one molecule share a system number and a minimum: a split by structure "
            "has seen every test molecule."
        ),
        (
            f"The same settings differ by {AGAINST_3BPA * 1000:.1f} meV/Å (mean absolute force "
            "component) from ORCA's forces of the first 300 K frame of 3BPA, and by 5 meV in its "
            "energy of 27 atoms."
        ),
    ]
    return {
        "level_of_theory": dft.METHOD,
        "atomic_energies": dft.atomic_energies(),
        "temperatures": {info["systems"][0]: info["temperature"] for info in good},
        "large": large,
        "dropped": dropped,
        "failures": failures,
        "notes": notes,
    }


RECIPE = Recipe(
    name="dft-mini",
    title="small H C N O molecules out of equilibrium, sampled along normal modes, real DFT",
    story=(
        f"Molecules from a list of {len(MOLECULES)} SMILES of 3 to 12 atoms, and {len(LARGE)} of "
        "13 to 20 to test on; none has the formula of a molecule of ani-mini. Geometries are drawn "
        "as in ani-mini: RDKit, minimum and normal modes at GFN2-xTB, random displacements along "
        "the modes after ANI-1 at 2000, 1500, 1000 K for 1, 2, 3 heavy atoms, "
        f"{TEMPERATURE:g} K for more; {PER_MOLECULE} per molecule at scale 1, {PER_LARGE} of the "
        f"larger ones; {PAPER_PER_MOLECULE}, ANI-1's mean, at scale paper. Positions are rounded "
        "first, then labelled with total energies and forces by PySCF: ωB97X/6-31G(d), five d "
        f"functions, density fitting, grid level {dft.GRID_LEVEL} with its response in the forces, "
        f"SCF to {dft.TOLERANCE:g} Hartree. Molecules are made in an order fixed by the seed in "
        "which sizes are mixed, so that an unfinished set is a beginning of the finished one."
    ),
    packages=("rdkit", "tblite", "scipy", "pyscf"),
    plan=plan,
    work=work,
    describe=describe,
    costly=True,
)
