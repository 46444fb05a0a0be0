"""Molecules and clusters from SMILES: first geometries, force fields, and whether bonds still hold
(RDKit).

A SMILES with dots is a cluster: every fragment is embedded by itself and placed, randomly turned,
in contact with those before it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ...units import KCAL_MOL

# positions [N,3] Å -> energy eV, forces [N,3] eV/Å
Force = Callable[[np.ndarray], tuple[float, np.ndarray]]
CONTACT = 2.3  # Å between the nearest atoms of two fragments at the start
BROKEN = 1.5  # a bond longer than this times the sum of its covalent radii is no bond any more
FUSED = 0.75  # two atoms not bonded come no nearer than this times it


class Species:
    """One chemical species. ``z`` [N], ``molecule`` [N] (fragment of each atom), ``bonds`` [B,2],
    ``charge``, ``masses`` (u).

    Atoms stand in RDKit's order, hydrogens last. Raises ValueError for a SMILES that RDKit cannot
    read.
    """

    def __init__(self, smiles: str) -> None:
        from rdkit import Chem, RDLogger

        RDLogger.DisableLog("rdApp.*")
        heavy = Chem.MolFromSmiles(smiles)
        if heavy is None:
            raise ValueError("RDKit cannot read the SMILES")
        self.smiles = smiles
        self.rdkit = Chem.AddHs(heavy)
        atoms = list(self.rdkit.GetAtoms())
        table = Chem.GetPeriodicTable()
        self.z = np.array([a.GetAtomicNum() for a in atoms])
        self.masses = np.array([a.GetMass() for a in atoms])
        self.radii = np.array([table.GetRcovalent(int(k)) for k in self.z])
        self.charge = Chem.GetFormalCharge(self.rdkit)
        ends = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx()) for b in self.rdkit.GetBonds()]
        self.bonds = np.array(ends, int).reshape(-1, 2)
        self.molecule = np.zeros(len(self.z), int)
        for k, members in enumerate(Chem.GetMolFrags(self.rdkit)):
            self.molecule[list(members)] = k

    def embed(self, rng: np.random.Generator) -> np.ndarray:
        """A first geometry [N,3] in Å: ETKDG per fragment, relaxed by its force field. Raises
        ValueError.
        """
        from rdkit import Chem

        positions = np.zeros((len(self.z), 3))
        for k, fragment in enumerate(Chem.GetMolFrags(self.rdkit, asMols=True)):
            x = _embed_one(fragment, int(rng.integers(2**31 - 1)))
            before = positions[self.molecule < k]
            positions[self.molecule == k] = _beside(before, x, rng) if k else x - x.mean(0)
        return positions

    def force_field(self) -> Force | None:
        """MMFF94 where it has all parameters, else UFF (which has no charges), else None; between
        all fragments too.
        """
        from rdkit.Chem import AllChem

        rdkit = type(self.rdkit)(self.rdkit)
        rdkit.RemoveAllConformers()
        rdkit.AddConformer(_conformer(len(self.z)))
        if AllChem.MMFFHasAllMoleculeParams(rdkit):
            properties = AllChem.MMFFGetMoleculeProperties(rdkit)
            field = AllChem.MMFFGetMoleculeForceField(
                rdkit, properties, ignoreInterfragInteractions=False
            )
            self.field_name = "MMFF94"
        elif AllChem.UFFHasAllMoleculeParams(rdkit):
            field = AllChem.UFFGetMoleculeForceField(
                rdkit, vdwThresh=100.0, ignoreInterfragInteractions=False
            )
            self.field_name = "UFF"
        else:
            self.field_name = "none"
            return None
        field.Initialize()

        def force(x: np.ndarray) -> tuple[float, np.ndarray]:
            flat = x.ravel().tolist()
            # first: RDKit's gradient uses the distances that the last energy left behind
            energy = field.CalcEnergy(flat)
            return energy * KCAL_MOL, -np.array(field.CalcGrad(flat)).reshape(-1, 3) * KCAL_MOL

        return force

    def intact(self, positions: np.ndarray) -> bool:
        """Whether every bond is there and no two other atoms have come to bonding distance."""
        gaps = np.linalg.norm(positions[:, None] - positions, axis=-1)
        reach = self.radii[:, None] + self.radii
        i, j = self.bonds.T
        if (gaps[i, j] > BROKEN * reach[i, j]).any():
            return False
        gaps[i, j] = gaps[j, i] = np.inf
        np.fill_diagonal(gaps, np.inf)
        return bool((gaps > FUSED * reach).all())


def _conformer(atoms: int):
    from rdkit import Chem

    return Chem.Conformer(atoms)


def _embed_one(fragment, seed: int) -> np.ndarray:
    from rdkit.Chem import AllChem

    if fragment.GetNumAtoms() == 1:
        return np.zeros((1, 3))
    if (
        AllChem.EmbedMolecule(fragment, randomSeed=seed) != 0
        and AllChem.EmbedMolecule(fragment, randomSeed=seed, useRandomCoords=True) != 0
    ):
        raise ValueError("RDKit finds no geometry")
    if AllChem.MMFFHasAllMoleculeParams(fragment):
        AllChem.MMFFOptimizeMolecule(fragment, maxIters=2000)
    elif AllChem.UFFHasAllMoleculeParams(fragment):
        AllChem.UFFOptimizeMolecule(fragment, maxIters=2000)
    return fragment.GetConformer().GetPositions()


def _beside(placed: np.ndarray, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """``x`` turned at random and moved along a random direction until it touches ``placed``;
    nearest of several tries.
    """
    from scipy.spatial.transform import Rotation

    best, nearest = x, np.inf
    for _ in range(12):
        quaternion = rng.normal(size=4)
        direction = rng.normal(size=3)
        turned = Rotation.from_quat(quaternion).apply(x - x.mean(0))
        direction /= np.linalg.norm(direction)
        centre = placed.mean(0)
        for distance in np.arange(0.0, 60.0, 0.1):
            moved = turned + centre + distance * direction
            if np.linalg.norm(moved[:, None] - placed, axis=-1).min() >= CONTACT:
                break
        if distance < nearest:
            best, nearest = moved, distance
    return best
