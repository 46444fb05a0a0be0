"""Recipe of `ani-mini`: small H C N O molecules out of equilibrium, sampled as ANI-1 was, at
GFN2-xTB.

Per molecule: SMILES -> RDKit embedding (ETKDG, MMFF94 or else UFF) -> GFN2-xTB minimum (BFGS) ->
Hessian by central differences of the gradient -> normal modes -> random displacements -> GFN2-xTB
energy and forces of the stored positions.

Sampling (J. S. Smith, O. Isayev, A. E. Roitberg, Sci. Data 4, 170193, 2017,
doi:10.1038/sdata.2017.193): numbers c_i >= 0 with a sum uniform in [0, 1] are dealt at random to
the modes; mode i is displaced by

    R_i = ± sqrt(3 c_i N k_B T / K_i)

along its normalised Cartesian vector, so that the harmonic energy is at most 3/2 N k_B T (N atoms).
As in ANI-1, T falls with size and there is one conformer per molecule. Differences: force constants
are floored at `K_FLOOR`, because the straight line along a soft torsion would stretch bonds before
it turns anything; structures more than `ENERGY_WINDOW` above the minimum, or with two atoms closer
than `CLOSEST`, are dropped and counted.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...structures.store import Structures
from ...units import BOHR, BOLTZMANN, HARTREE, KCAL_MOL
from .ani_molecules import MOLECULES
from .common import Recipe, joined, on_grid
from .xtb import CAVEAT, METHOD, XTB, atomic_energies

PER_HEAVY_ATOM = 10  # structures of a molecule with n heavy atoms at scale 1: 10 (n + 1)
PAPER_PER_MOLECULE = 430  # ANI-1: 24 687 809 conformations of 57 462 molecules
TEMPERATURES = {1: 2000.0, 2: 1500.0, 3: 1000.0}  # K, by heavy atoms
TEMPERATURE = 600.0  # K, from four heavy atoms on
K_FLOOR = 0.3  # eV/Å², the smallest force constant a mode is sampled with (0.05 mdyn/Å)
ENERGY_WINDOW = 275.0 * KCAL_MOL  # eV above the minimum
CLOSEST = 0.5  # Å
GRADIENT = 5e-5  # Hartree/Bohr, largest component at the minimum (2.6e-3 eV/Å)
STEP = 5e-3  # Bohr, for the Hessian
FLAT = 1e-4  # Hartree/Bohr²: what noise in a flat torsion may give


def embed(smiles: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A first geometry: atomic numbers [N], positions [N,3] (Å), masses [N] (u), bonds [N,N] bool.

    Raises ValueError for a SMILES that RDKit cannot read or embed.
    """
    from rdkit import Chem, RDLogger
    from rdkit.Chem import AllChem

    RDLogger.DisableLog("rdApp.*")
    molecule = Chem.MolFromSmiles(smiles)
    if molecule is None:
        raise ValueError("RDKit cannot read the SMILES")
    molecule = Chem.AddHs(molecule)
    if (
        AllChem.EmbedMolecule(molecule, randomSeed=seed) != 0
        and AllChem.EmbedMolecule(molecule, randomSeed=seed, useRandomCoords=True) != 0
    ):
        raise ValueError("RDKit finds no geometry")
    if AllChem.MMFFHasAllMoleculeParams(molecule):
        AllChem.MMFFOptimizeMolecule(molecule, maxIters=2000)
    else:
        AllChem.UFFOptimizeMolecule(molecule, maxIters=2000)
    z = np.array([a.GetAtomicNum() for a in molecule.GetAtoms()])
    positions = molecule.GetConformer().GetPositions()
    masses = np.array([a.GetMass() for a in molecule.GetAtoms()])
    bonds = Chem.GetAdjacencyMatrix(molecule).astype(bool)
    return z, positions, masses, bonds


def check_bonds(z: np.ndarray, positions: np.ndarray, bonds: np.ndarray) -> None:
    """Raise ValueError unless just the bonded pairs are at bonding distance; positions in Å."""
    from rdkit.Chem import GetPeriodicTable

    radius = np.array([GetPeriodicTable().GetRcovalent(int(k)) for k in z])
    close = distances(positions) < 1.25 * (radius[:, None] + radius)
    np.fill_diagonal(close, False)
    if (close != bonds).any():
        i, j = np.argwhere(close != bonds)[0]
        change = "makes" if close[i, j] else "breaks"
        raise ValueError(f"GFN2-xTB {change} the bond of atoms {i} and {j}")


def distances(positions: np.ndarray) -> np.ndarray:
    """All pair distances [N,N]."""
    return np.linalg.norm(positions[:, None] - positions, axis=-1)


def minimize(xtb: XTB, start: np.ndarray) -> tuple[np.ndarray, float]:
    """Positions (Bohr) and energy (Hartree) of the minimum near ``start``. Raises ValueError."""
    from scipy.optimize import minimize as bfgs

    def target(x: np.ndarray) -> tuple[float, np.ndarray]:
        energy, gradient = xtb(x)
        return energy, gradient.ravel()

    options = {"gtol": GRADIENT, "maxiter": 500}
    positions = start
    for _ in range(3):  # a line search that stalls is started afresh
        result = bfgs(target, positions.ravel(), jac=True, method="BFGS", options=options)
        positions = result.x.reshape(-1, 3)
        slope = np.abs(result.jac).max()
        if slope <= GRADIENT:
            return positions, float(result.fun)
    raise ValueError(f"no minimum: gradient {slope:.1e} Hartree/Bohr left")


def hessian(xtb: XTB, positions: np.ndarray) -> np.ndarray:
    """Symmetric second derivatives [3N,3N] in Hartree/Bohr² by central differences of the
    gradient.
    """
    size = positions.size
    rows = np.empty((size, size))
    for i in range(size):
        shift = np.zeros(size)
        shift[i] = STEP
        shift = shift.reshape(-1, 3)
        _, ahead = xtb(positions + shift)
        _, behind = xtb(positions - shift)
        rows[i] = ((ahead - behind) / (2 * STEP)).ravel()
    return (rows + rows.T) / 2


def normal_modes(
    second: np.ndarray, positions: np.ndarray, masses: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Force constants [M] and normalised Cartesian mode vectors [M,N,3]; M = 3N-6, or 3N-5 if
    linear.

    Translations and rotations are projected out of the mass-weighted Hessian. The force constant of
    mode vector e is eᵀ H e, in the unit of ``second``; it may be negative at a saddle point.
    """
    centred = positions - np.average(positions, axis=0, weights=masses)
    translations = [np.tile(axis, (len(masses), 1)) for axis in np.eye(3)]
    rotations = [np.cross(axis, centred) for axis in np.eye(3)]
    weight = np.repeat(np.sqrt(masses), 3)
    rigid = np.array([motion.ravel() * weight for motion in translations + rotations])
    left, sizes, _ = np.linalg.svd(rigid.T)
    rank = int((sizes > 1e-3 * sizes[0]).sum())
    inner = left[:, rank:]  # [3N,M], orthonormal, what is neither translation nor rotation
    _, vectors = np.linalg.eigh(inner.T @ (second / np.outer(weight, weight)) @ inner)
    modes = (inner @ vectors).T / weight
    modes /= np.linalg.norm(modes, axis=1, keepdims=True)
    return np.einsum("mi,ij,mj->m", modes, second, modes), modes.reshape(len(modes), -1, 3)


def find_minimum(
    xtb: XTB, start: np.ndarray, masses: np.ndarray
) -> tuple[np.ndarray, float, np.ndarray, np.ndarray]:
    """Positions, energy, force constants and modes (Bohr, Hartree) of a minimum; steps off saddle
    points.

    Raises ValueError if only saddle points, or no stationary point, are found.
    """
    positions = start
    for attempt in range(4):
        positions, energy = minimize(xtb, positions)
        force_constants, modes = normal_modes(hessian(xtb, positions), positions, masses)
        if force_constants.min() > -FLAT:
            return positions, energy, force_constants, modes
        positions = positions + (0.3 + 0.1 * attempt) * modes[int(force_constants.argmin())]
    raise ValueError(
        f"only a saddle point, force constant {force_constants.min():.1e} Hartree/Bohr²"
    )


def displacements(
    rng: np.random.Generator, force_constants: np.ndarray, modes: np.ndarray, temperature: float
) -> np.ndarray:
    """One random displacement [N,3] in Å; ``force_constants`` in eV/Å² (see the module's
    docstring).
    """
    shares = rng.uniform() * rng.dirichlet(np.ones(len(modes)))
    signs = rng.choice([-1.0, 1.0], len(modes))
    size = np.sqrt(
        3 * shares * modes.shape[1] * BOLTZMANN * temperature / np.maximum(force_constants, K_FLOOR)
    )
    return np.tensordot(signs * size, modes, axes=1)


def plan(
    scale: float | str, seed: int, molecules: Sequence[str] = MOLECULES
) -> list[dict[str, Any]]:
    """A task per molecule. ``molecules``: SMILES, default the recipe's own list."""
    return [
        {"label": smiles, "smiles": smiles, "scale": scale, "seed": seed} for smiles in molecules
    ]


def work(task: dict[str, Any]) -> Structures:
    """All structures of one molecule; none, and the reason as ``info["failure"]``, if it has no
    usable minimum.
    """
    smiles = task["smiles"]
    # seeded by the SMILES, not by its place in the list: adding a molecule changes no other one
    rng = np.random.default_rng([task["seed"], zlib.crc32(smiles.encode())])
    info: dict[str, Any] = {"systems": [smiles]}
    try:
        z, start, masses, bonds = embed(smiles, int(rng.integers(2**31 - 1)))
        xtb = XTB(z, start / BOHR)
        positions, lowest, force_constants, modes = find_minimum(xtb, start / BOHR, masses)
        check_bonds(z, positions * BOHR, bonds)
    except (ValueError, RuntimeError) as error:  # tblite's SCC failure is a RuntimeError
        info["failure"] = str(error).splitlines()[0]
        return _pack(np.zeros(0, int), [], [], [], info)
    heavy = int((z > 1).sum())
    temperature = TEMPERATURES.get(heavy, TEMPERATURE)
    if task["scale"] == "paper":
        n_structures = PAPER_PER_MOLECULE
    else:
        n_structures = max(1, round(task["scale"] * PER_HEAVY_ATOM * (heavy + 1)))
    positions = positions * BOHR
    lowest = lowest * HARTREE
    force_constants = force_constants * HARTREE / BOHR**2
    pairs = np.triu_indices(len(z), 1)
    kept, energies, forces = [], [], []
    dropped = {"scc": 0, "close": 0, "energy": 0}
    for _ in range(n_structures):
        stored = on_grid(positions + displacements(rng, force_constants, modes, temperature))
        if distances(stored.astype(float))[pairs].min(initial=np.inf) < CLOSEST:
            dropped["close"] += 1
            continue
        try:
            energy, gradient = xtb(stored.astype(np.float64) / BOHR)
        except RuntimeError:
            dropped["scc"] += 1
            continue
        if not energy * HARTREE - lowest < ENERGY_WINDOW:
            dropped["energy"] += 1
            continue
        kept.append(stored)
        energies.append(round(energy * HARTREE, 6))
        forces.append(on_grid(-gradient * HARTREE / BOHR))
    info |= {"dropped": dropped, "minimum_energy": round(lowest, 6), "temperature": temperature}
    info["floored_modes"] = int((force_constants < K_FLOOR).sum())
    info["modes"] = len(modes)
    return _pack(z, kept, energies, forces, info)


def _pack(
    z: np.ndarray,
    pos: list[np.ndarray],
    energy: list[float],
    forces: list[np.ndarray],
    info: dict[str, Any],
) -> Structures:
    return Structures(
        z=np.tile(z, len(pos)),
        pos=joined(pos),
        ptr=np.arange(len(pos) + 1) * len(z),
        energy=np.array(energy, float),
        forces=joined(forces),
        info=info,
    )


def describe(tasks: list[dict[str, Any]], infos: list[dict[str, Any]]) -> dict[str, Any]:
    """Level of theory, reference energies, and what was dropped."""
    paired = zip(tasks, infos, strict=True)
    failures = {task["smiles"]: info["failure"] for task, info in paired if "failure" in info}
    good = [info for info in infos if "failure" not in info]
    reasons = ("scc", "close", "energy")
    dropped = {reason: sum(info["dropped"][reason] for info in good) for reason in reasons}
    floored = sum(info["floored_modes"] for info in good)
    modes = sum(info["modes"] for info in good)
    given_up = "".join(f"; `{smiles}` ({why})" for smiles, why in failures.items())
    notes = [
        f"Molecules given up: {len(failures)} of {len(tasks)}{given_up}.",
        (
            f"Structures dropped: {dropped['scc']} without SCC convergence, {dropped['close']} "
            f"with two atoms closer than {CLOSEST} Å, {dropped['energy']} more than "
            f"{ENERGY_WINDOW:.2f} eV (275 kcal/mol) above the minimum."
        ),
        (
            f"Force constants floored at {K_FLOOR} eV/Å²: {floored} of {modes} modes, so soft "
            "torsions are sampled less than ANI-1 would."
        ),
        (
            "Structures of one molecule share a system number and a minimum: a split by structure "
            "has seen every test molecule."
        ),
        CAVEAT,
    ]
    return {
        "level_of_theory": METHOD,
        "atomic_energies": atomic_energies(),
        "minimum_energies": {i["systems"][0]: i["minimum_energy"] for i in good},
        "temperatures": {i["systems"][0]: i["temperature"] for i in good},
        "dropped": dropped,
        "failures": failures,
        "notes": notes,
    }


RECIPE = Recipe(
    name="ani-mini",
    title="small H C N O molecules out of equilibrium, sampled along normal modes, GFN2-xTB",
    story=(
        f"Molecules from a list of {len(MOLECULES)} SMILES (1 to 8 heavy atoms) are embedded by "
        f"RDKit (ETKDG, MMFF94 or UFF), relaxed at {METHOD} (tblite, BFGS to {GRADIENT:g} "
        "Hartree/Bohr), and their normal modes taken from a central-difference Hessian. Random "
        "displacements along the modes follow ANI-1 (Smith, Isayev, Roitberg, Sci. Data 4, 170193, "
        "2017): R_i = ± sqrt(3 c_i N k_B T / K_i), the c_i summing to a number uniform in [0, 1]; "
        f"T = 2000, 1500, 1000 K for 1, 2, 3 heavy atoms, {TEMPERATURE:g} K for more. "
        f"{PER_HEAVY_ATOM} structures × (heavy atoms + 1) per molecule at scale 1; "
        f"{PAPER_PER_MOLECULE} per molecule, ANI-1's mean, at scale paper. Positions are rounded "
        "first, then labelled with total energies and forces."
    ),
    packages=("rdkit", "tblite", "scipy"),
    plan=plan,
    work=work,
    describe=describe,
)
