"""The recipe of `dft-mini`, its level of theory, and the committed set."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from test_recipes import DATA, needs
from toy_recipe import TOY, toy_work

from potkit.datasets import recipes, references
from potkit.datasets.recipes import ani_mini, common, dft, dft_mini, dft_molecules
from potkit.structures.elements import SYMBOLS
from potkit.structures.store import Structures
from potkit.units import BOHR

# ethynyldiazene out of its minimum, Å; energy (eV) and forces (eV/Å) without density fitting on
# PySCF's grid level 5
Z = np.array([6, 6, 7, 7, 1, 1])
POSITIONS = np.array(
    [
        [1.6381, -0.1003, -0.6849],
        [0.4752, -0.3310, -0.4810],
        [-0.7584, -0.5076, -0.2897],
        [-1.5340, 0.4769, -0.2732],
        [2.5443, 0.0865, -0.9726],
        [-2.5046, 0.3201, -0.1065],
    ]
)
TIGHT_FORCES = np.array(
    [
        [-4.4439, -1.2023, 1.0922],
        [4.2213, 1.6268, -0.7486],
        [-6.6525, -1.5737, 1.2470],
        [2.7534, 1.9442, -0.5435],
        [5.1451, 0.9607, -1.3173],
        [-1.0234, -1.7557, 0.2702],
    ]
)
TIGHT_ENERGY = -5079.826300


# -- the molecules -------------------------------------------------------------------------------


@needs("rdkit")
def test_no_molecule_or_formula_is_shared_with_ani_mini():
    from rdkit import Chem
    from rdkit.Chem.rdMolDescriptors import CalcMolFormula

    def known(smiles):
        return [Chem.MolFromSmiles(s) for s in smiles]

    ours = known(dft_molecules.MOLECULES + dft_molecules.LARGE)
    theirs = known(ani_mini.MOLECULES)
    assert all(m is not None for m in ours)
    canonical = {Chem.MolToSmiles(m) for m in ours}
    assert len(canonical) == len(ours)
    assert not canonical & {Chem.MolToSmiles(m) for m in theirs}
    assert not {CalcMolFormula(m) for m in ours} & {CalcMolFormula(m) for m in theirs}


@needs("rdkit")
def test_molecules_are_of_the_promised_kind():
    from rdkit import Chem

    lists = [(dft_molecules.MOLECULES, 3, 12, 130), (dft_molecules.LARGE, 13, 20, 12)]
    for smiles, fewest, most, count in lists:
        molecules = [Chem.AddHs(Chem.MolFromSmiles(s)) for s in smiles]
        assert len(molecules) >= count
        assert all(fewest <= m.GetNumAtoms() <= most for m in molecules)
        assert {a.GetSymbol() for m in molecules for a in m.GetAtoms()} <= set("HCNO")
        assert not any(Chem.GetFormalCharge(m) for m in molecules)
        assert not any(a.GetNumRadicalElectrons() for m in molecules for a in m.GetAtoms())


def test_every_beginning_of_the_order_is_representative():
    tasks = dft_mini.plan(1.0, 0)
    everything = dft_molecules.MOLECULES + dft_molecules.LARGE
    assert sorted(task["smiles"] for task in tasks) == sorted(everything)
    heavy = np.array([sum(c in "CNOcno" for c in task["smiles"]) for task in tasks])
    large = np.array([task["large"] for task in tasks])
    for share in (0.25, 0.5, 0.75):
        first = slice(0, round(share * len(tasks)))
        assert abs(heavy[first].mean() - heavy.mean()) < 0.3
        assert abs(large[first].sum() - share * large.sum()) <= 1
    assert dft_mini.plan(1.0, 0) == tasks != dft_mini.plan(1.0, 1)
    small = [task["structures"] for task in tasks if not task["large"]]
    assert sum(small) >= 1_200


# -- the level of theory -------------------------------------------------------------------------


@needs("pyscf")
def test_labels_agree_with_tighter_settings():
    energy, forces = dft.DFT(Z)(POSITIONS)
    assert abs(energy - TIGHT_ENERGY) < 3e-3
    assert np.abs(forces - TIGHT_FORCES).mean() < 3e-3
    np.testing.assert_allclose(forces.sum(0), 0, atol=1e-5)  # the grid moves with the atoms


@needs("pyscf")
def test_forces_are_derivatives_and_the_last_density_does_not_matter():
    z = np.array([8, 1, 1])
    x = np.array([[0.0, 0, 0], [1.0, 0.1, 0], [-0.25, 0.9, 0]])
    method = dft.DFT(z)
    energy, forces = method(x)
    direction = np.random.default_rng(0).normal(size=x.shape)
    ahead, _ = method(x + 1e-3 * direction)
    behind, _ = method(x - 1e-3 * direction)
    assert abs((ahead - behind) / 2e-3 + (direction * forces).sum()) < 1e-3
    again, again_forces = method(x)
    assert abs(again - energy) < 1e-6
    np.testing.assert_allclose(again_forces, forces, atol=5e-4)


@needs("pyscf")
def test_no_solution_is_said(monkeypatch):
    monkeypatch.setattr(dft, "CYCLES", 1)
    with pytest.raises(dft.Unconverged, match="1 cycles"):
        dft.DFT(np.array([8, 1, 1]))([[0.0, 0, 0], [1.0, 0.1, 0], [-0.25, 0.9, 0]])


@needs("pyscf")
def test_free_atoms_are_those_of_3bpa():
    """ORCA's isolated atoms, which come with 3BPA: the same five d functions."""
    orca = references.isolated_atoms("wB97X/6-31G(d), 3BPA")
    ours = {SYMBOLS.index(symbol): energy for symbol, energy in dft.atomic_energies().items()}
    assert ours.keys() == orca.keys()
    assert all(abs(ours[z] - orca[z]) < 3e-3 for z in orca)


# -- the recipe ----------------------------------------------------------------------------------


def test_another_state_is_noticed():
    kept = dft_mini.consistent(np.array([-10.0, -10.2, -9.9, -7.0]))
    assert kept.tolist() == [True, True, True, False]
    assert dft_mini.consistent(np.zeros(0)).shape == (0,)


@needs("rdkit", "tblite", "pyscf")
def test_a_tiny_set(tmp_path):
    options = dict(molecules=["N=[N+]=[N-]", "[X"], large=["O"], progress=False)
    made = recipes.make("dft-mini", tmp_path / "x.h5", scale=0.2, **options).validate()
    assert np.bincount(made.n_atoms)[3:].tolist() == [1, 2]
    assert made.info["large"] == ["O"] and list(made.info["failures"]) == ["[X"]
    water = made[made.n_atoms == 3]
    energy, forces = dft.DFT(water.z)(water.pos.astype(float))
    assert abs(energy - water.energy[0]) < 1e-5
    np.testing.assert_allclose(forces, water.forces, atol=1e-3)
    assert "five d functions" in (tmp_path / "x.md").read_text()


def test_a_costly_set_goes_on_from_what_is_finished(tmp_path):
    done: list[int] = []

    def two_parts(task: dict) -> Structures:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(task["k"])
        return toy_work(task)

    def counted(task: dict) -> Structures:
        done.append(task["k"])
        return toy_work(task)

    costly = dataclasses.replace(TOY, costly=True)
    out, whole = tmp_path / "toy.h5", tmp_path / "whole" / "toy.h5"
    with pytest.raises(KeyboardInterrupt):
        common.generate(dataclasses.replace(costly, work=two_parts), out, progress=False)
    partial = common.generate(costly, out, progress=False, finished=True)
    assert len(partial) == 4 and partial.info["missing_parts"] == 2
    assert "2 of 4 parts" in out.with_suffix(".md").read_text()
    parts = tmp_path / "toy.h5.parts"
    assert len(list(parts.iterdir())) == 2  # still there for the generation that makes them
    for part in list(parts.iterdir()):
        part.unlink()
    made = common.generate(dataclasses.replace(costly, work=counted), out, progress=False)
    assert done == [0, 1, 2, 3]  # each once: the first two came out of the partial set
    expected = common.generate(costly, whole, progress=False)
    assert np.array_equal(made.pos, expected.pos) and np.array_equal(made.energy, expected.energy)
    assert made.system.tolist() == expected.system.tolist() == [0, 0, 1, 1, 2, 2]
    assert "missing_parts" not in made.info and not parts.exists()
    # another seed takes nothing over
    done.clear()
    common.generate(dataclasses.replace(costly, work=counted), out, seed=1, progress=False)
    assert done == [0, 1, 2, 3]


# -- the committed set ---------------------------------------------------------------------------


def test_committed_dft_mini():
    made = Structures.open(DATA / "dft-mini.h5").validate()
    assert set(made.elements) <= {1, 6, 7, 8}
    planned = dft_mini.plan(1.0, 0)
    parts = made.info["parts"]
    order = [task["label"] for task in planned]
    assert list(parts) == order[: len(parts)]  # a beginning of the whole
    assert len(parts) + made.info.get("missing_parts", 0) == len(planned)
    large = np.isin(made.system, [made.info["systems"].index(s) for s in made.info["large"]])
    assert (made.n_atoms[large] >= 13).all() and (made.n_atoms[~large] <= 12).all()
    owner = np.repeat(np.arange(len(made)), made.n_atoms)
    net = np.stack([np.bincount(owner, made.forces[:, k]) for k in range(3)])
    assert np.abs(net).max() < 1e-3  # what rounding leaves
    free = np.zeros(9)
    free[[1, 6, 7, 8]] = [made.info["atomic_energies"][s] for s in "HCNO"]
    bound = (made.energy - np.bincount(owner, free[made.z])) / made.n_atoms
    assert bound.min() > -8 and bound.max() < -1.5  # eV per atom; a wrong unit would be far off
    assert 0.5 < np.sqrt(np.mean(made.forces.astype(float) ** 2)) < 3  # eV/Å


@needs("tblite")
def test_committed_labels_resemble_the_cheap_method():
    made = Structures.open(DATA / "dft-mini.h5")
    ours, cheap = [], []
    for one in made[:: max(1, len(made) // 20)]:
        _, forces = ani_mini.XTB(one.z, one.pos / BOHR).label(one.pos)
        ours.append(one.forces.ravel())
        cheap.append(forces.ravel())
    ours, cheap = np.concatenate(ours), np.concatenate(cheap)
    # 0.91 over the first 42 molecules, azides and N₂O among them, which GFN2-xTB knows badly
    assert np.corrcoef(ours, cheap)[0, 1] > 0.85
