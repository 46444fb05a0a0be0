"""The recipes after SPICE, MD22, ISO17, rMD17 and RPBE water: tiny generations, and the committed
sets.
"""

from __future__ import annotations

import functools

import numpy as np
import pytest
from test_recipes import DATA, needs

from potkit.datasets import recipes, registry, splits
from potkit.datasets.recipes import (
    common,
    iso17_mini,
    md22_mini,
    rmd17_mini,
    spice_mini,
    trajectories,
    water_mini,
)
from potkit.datasets.recipes.species import Species
from potkit.datasets.recipes.spice_systems import SUBSETS
from potkit.datasets.recipes.xtb import XTB
from potkit.datasets.records import RECORDS
from potkit.errors import DataError
from potkit.structures.elements import SYMBOLS, formula
from potkit.structures.store import Structures
from potkit.units import BOHR

MOLECULAR = [r.name for r in RECORDS if r.kind == "embedded" and r.level.startswith("GFN2-xTB")]
ALL = [r.name for r in RECORDS if r.kind == "embedded"]


@functools.cache
def committed(name: str) -> Structures:
    return Structures.open(DATA / f"{name}.h5").validate()


def smiles_of(made: Structures) -> list[str]:
    """The SMILES of every system."""
    return [made.info.get("smiles", {}).get(name, name) for name in made.system_names()]


def labeller(one: Structures):
    """The model that labelled a structure."""
    if one.cell is not None:
        return water_mini.Water("amoeba", len(one.z) // 3, float(one.cell[0, 0, 0]))
    return XTB(one.z, one.pos.astype(float) / BOHR, charge=int(one.charge[0])).label


def check_labels(one: Structures, step: float = 5e-4) -> None:
    """Energy and forces are the model's at the stored positions, and the forces are the energy's
    central difference.
    """
    label = labeller(one)
    x = one.pos.astype(np.float64)
    energy, forces = label(x)
    assert abs(energy - one.energy[0]) < 1e-5 * len(x)
    np.testing.assert_allclose(forces, one.forces, atol=4e-4)
    direction = np.random.default_rng(0).normal(size=x.shape)
    ahead, _ = label(x + step * direction)
    behind, _ = label(x - step * direction)
    slope = (ahead - behind) / (2 * step)
    largest = max(1.0, float(np.abs(one.forces).max()))
    assert abs(slope + (direction * one.forces).sum()) < 2e-3 * np.sqrt(len(x)) * largest


# -- plans ---------------------------------------------------------------------------------------


def test_at_scale_paper_the_plans_have_the_papers_sizes():
    def total(module):
        return sum(task["frames"] for task in module.plan("paper", 0))

    assert total(rmd17_mini) == 10 * 100_000
    assert total(spice_mini) == 1_132_808
    assert total(water_mini) == 7_241
    assert total(iso17_mini) == 5_000 * len(iso17_mini.ISOMERS)
    assert total(md22_mini) == 85_109 + 69_753 + 20_001 + 27_272


@pytest.mark.parametrize(
    "module",
    [rmd17_mini, spice_mini, water_mini, iso17_mini, md22_mini],
    ids=lambda m: m.RECIPE.name,
)
def test_tasks_are_many_small_and_named_apart(module):
    tasks = module.plan(2.0, 0)
    assert len({t["label"] for t in tasks}) == len(tasks) and max(t["frames"] for t in tasks) <= 100
    once = module.plan(1.0, 0)
    assert sum(t["frames"] for t in tasks) == 2 * sum(t["frames"] for t in once)
    assert {t["label"] for t in once} <= {t["label"] for t in tasks}


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        (
            "rmd17-mini",
            {"molecules": ["water"]},
            "rmd17-mini: no molecule called 'water'; there are aspirin",
        ),
        (
            "md22-mini",
            {"molecules": ["buckyball"]},
            "md22-mini: no molecule called 'buckyball'; there are Ac-Ala3-NHMe",
        ),
        (
            "water-mini",
            {"boxes": [[8, -1.0, 300]]},
            "water-mini: box 0: .* must be positive, got 8, -1.0, 300",
        ),
    ],
)
def test_wrong_options_get_one_line(tmp_path, monkeypatch, name, options, words):
    monkeypatch.setattr(common, "require", lambda recipe: None)
    with pytest.raises(DataError, match=words):
        recipes.make(name, tmp_path / "x.h5", progress=False, **options)


# -- the systems ---------------------------------------------------------------------------------


@needs("rdkit")
def test_the_systems_of_spice_mini():
    systems = [s for members in SUBSETS.values() for s in members]
    species = [Species(s) for s in systems]
    elements = {SYMBOLS[z] for s in species for z in s.z}
    assert len(set(systems)) == len(systems) >= 150
    assert {"F", "P", "S", "Cl", "Br", "I", "Li", "Na", "K"} <= elements and len(elements) >= 12
    assert {s.charge for s in species} >= {-1, 0, 1}
    assert all((s.z.sum() - s.charge) % 2 == 0 for s in species)  # closed shells
    assert all(a.GetNumRadicalElectrons() == 0 for s in species for a in s.rdkit.GetAtoms())
    assert max(len(s.z) for s in species) < 50


@needs("rdkit")
def test_the_isomers_are_isomers():
    from rdkit import Chem

    assert {formula(Species(s).z) for s in iso17_mini.ISOMERS} == {"C7H10O2"}
    assert len({Chem.CanonSmiles(s) for s in iso17_mini.ISOMERS}) == len(iso17_mini.ISOMERS) >= 12
    assert set(iso17_mini.UNSEEN) < set(iso17_mini.ISOMERS)


@needs("rdkit")
def test_the_molecules_of_md17_and_md22():
    formulas = {name: formula(Species(s).z) for name, s in rmd17_mini.MOLECULES.items()}
    assert formulas == {
        "aspirin": "C9H8O4",
        "azobenzene": "C12H10N2",
        "benzene": "C6H6",
        "ethanol": "C2H6O",
        "malonaldehyde": "C3H4O2",
        "naphthalene": "C10H8",
        "paracetamol": "C8H9NO2",
        "salicylic": "C7H6O3",
        "toluene": "C7H8",
        "uracil": "C4H4N2O2",
    }
    sizes = {name: len(Species(m.smiles).z) for name, m in md22_mini.MOLECULES.items()}
    assert sizes == {"Ac-Ala3-NHMe": 42, "DHA": 56, "AT-AT": 60, "stachyose": 87}


@needs("rdkit")
def test_base_pairs_are_paired_and_stacked():
    species = Species(md22_mini.MOLECULES["AT-AT"].smiles)
    x = md22_mini.stacked_pairs()
    assert species.intact(x) and len(set(species.molecule)) == 4
    heavy = [np.flatnonzero((species.molecule == k) & (species.z > 1)) for k in range(4)]
    for a, t in ((0, 1), (2, 3)):
        for i, j, length in md22_mini.HYDROGEN_BONDS:
            assert abs(np.linalg.norm(x[heavy[a][i]] - x[heavy[t][j]]) - length) < 0.15
            assert {species.z[heavy[a][i]], species.z[heavy[t][j]]} <= {7, 8}
    rise = x[np.concatenate(heavy[2:])][:, 2].mean() - x[np.concatenate(heavy[:2])][:, 2].mean()
    assert abs(rise - md22_mini.RISE) < 0.3
    over = np.linalg.norm((x[heavy[0]].mean(0) - x[heavy[3]].mean(0))[:2])  # adenine over thymine
    assert over < np.linalg.norm((x[heavy[0]].mean(0) - x[heavy[2]].mean(0))[:2])


# -- tiny generations ----------------------------------------------------------------------------


@needs("rdkit", "tblite")
@pytest.mark.parametrize(
    ("name", "settings", "counts"),
    [
        ("rmd17-mini", {"scale": 0.01, "molecules": ["benzene"]}, [3]),
        ("iso17-mini", {"scale": 0.03, "isomers": ["CC(=O)C1CCCC1=O"]}, [3]),
        ("md22-mini", {"scale": 0.005, "molecules": ["Ac-Ala3-NHMe"], "steps": 2}, [2]),
        (
            "spice-mini",
            {"scale": 0.19, "systems": ["[Na+].[Cl-]", "[Cl-].CO", "CBr", "[X"]},
            [4, 4, 4],
        ),
    ],
)
def test_tiny_generation(tmp_path, name, settings, counts):
    made = recipes.make(name, tmp_path / "x.h5", progress=False, **settings).validate()
    assert np.bincount(made.system).tolist() == counts and made.info["name"] == name
    check_labels(made[len(made) - 1])
    for k in range(len(made)):
        one = made[k]
        assert Species(smiles_of(made)[one.system[0]]).intact(one.pos.astype(float))
        assert np.abs(one.pos.astype(float).mean(0)).max() < common.GRID  # centred
    text = (tmp_path / "x.md").read_text()
    assert "Frames dropped: " in text and "GFN2-xTB" in text
    if name == "spice-mini":
        assert list(made.info["failures"]) == ["[X"] and set(made.charge.tolist()) == {0, -1}
        chloride = made[made.system == 1]
        assert chloride.molecule[: chloride.n_atoms[0]].tolist() == [0, 1, 1, 1, 1, 1, 1]
        energies = made.energy[made.system == 2]
        assert energies[1::2].max() < energies[::2].min()  # every second one is relaxed
    if name == "iso17-mini":
        assert splits.parts(made)["test_other"].tolist() == [0, 1, 2]


@needs("openmm")
def test_tiny_water(tmp_path):
    settings = dict(scale=0.1, boxes=[[8, 1.0, 300]], equilibration=100, progress=False)
    made = recipes.make("water-mini", tmp_path / "x.h5", **settings).validate()
    again = recipes.make("water-mini", tmp_path / "y.h5", **settings)
    assert len(made) == 2 and made.n_atoms.tolist() == [24, 24] and made.pbc.all()
    np.testing.assert_array_equal(made.pos, again.pos)
    check_labels(made[0], step=2e-4)
    x = made[1].pos.astype(float)
    box = float(made.cell[1, 0, 0])
    assert water_mini.whole(x)
    centres = x.reshape(-1, 3, 3).mean(1)
    assert ((centres > -1e-3) & (centres < box + 1e-3)).all()
    assert abs(8 * 18.01528 / 6.02214076e23 / (box * 1e-8) ** 3 - 1.0) < 1e-3  # g/cm³
    # one more copy along each axis is the same crystal: the energy of a small box does not depend
    # on how it is repeated
    energy, forces = water_mini.Water("amoeba", 8, box)(x)
    more, other = water_mini.Water("amoeba", 8, box, copies=3)(x)
    assert abs(energy - more) < 8 * 2e-4
    np.testing.assert_allclose(forces, other, atol=5e-3)
    moved = x.reshape(-1, 3, 3).copy()
    moved[3] += [box, 0, -2 * box]
    assert abs(water_mini.Water("amoeba", 8, box)(moved.reshape(-1, 3))[0] - energy) < 1e-3


@needs("openmm")
def test_the_label_of_water_is_no_sum_over_pairs():
    """Three molecules far from their images: induction makes the energy differ from the sum over
    pairs and singles.
    """
    box = 16.0
    one = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]])
    places = np.array([[5.0, 5.0, 5.0], [7.8, 5.0, 5.0], [6.0, 7.6, 5.4]])
    three = [one + place for place in places]

    def energy(chosen):
        value, _ = water_mini.Water("amoeba", len(chosen), box)(np.concatenate(chosen))
        return value

    single = energy(three[:1])
    pairs = sum(energy([three[i], three[j]]) - 2 * single for i, j in ((0, 1), (0, 2), (1, 2)))
    assert abs(energy(three) - 3 * single - pairs) > 5e-3


# -- the committed sets --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ALL)
def test_committed_set_is_found_by_name(name):
    made = registry.load(name)
    row = registry.names().set_index("name").loc[name]
    assert len(made) == row["structures"] and row["state"] == "ready"
    assert [SYMBOLS[z] for z in made.elements] == sorted(row["elements"].split(), key=SYMBOLS.index)
    assert np.isfinite(made.pos).all()
    assert np.isfinite(made.forces).all()
    assert np.isfinite(made.energy).all()
    owner = np.repeat(np.arange(len(made)), made.n_atoms)
    net = np.stack([np.bincount(owner, made.forces[:, k]) for k in range(3)])
    assert np.abs(net).max() < 2e-2 and np.abs(made.forces).max() < 30


@pytest.mark.parametrize("name", MOLECULAR)
def test_committed_molecules_are_bound_and_whole(name):
    made = committed(name)
    free = np.zeros(100)
    for symbol, energy in made.info["atomic_energies"].items():
        free[SYMBOLS.index(symbol)] = energy
    owner = np.repeat(np.arange(len(made)), made.n_atoms)
    bound = (made.energy - np.bincount(owner, free[made.z])) / made.n_atoms
    many = made.n_atoms > 2
    # eV per atom; a wrong unit would be far off
    assert bound.min() > -12 and bound[many].max() < 0.5
    for k in np.random.default_rng(0).permutation(len(made))[:100]:
        gaps = trajectories.pair_distances(made[int(k)].pos.astype(float)[None])
        assert gaps.min() > 0.65


@needs("rdkit", "tblite")
@pytest.mark.parametrize("name", MOLECULAR)
def test_committed_labels_are_gfn2_xtb(name):
    made = committed(name)
    small = np.flatnonzero(made.n_atoms <= 45)
    for k in np.random.default_rng(1).choice(small, 2 if name == "md22-mini" else 4, replace=False):
        one = made[int(k)]
        check_labels(one)
        species = Species(smiles_of(made)[one.system[0]])
        assert (species.z == one.z).all()
        assert species.charge == one.charge[0]
        assert (species.molecule == one.molecule).all()
        assert species.intact(one.pos.astype(float))


@needs("rdkit", "tblite")
def test_committed_ion_pairs_come_out_of_the_recipe(tmp_path):
    """Ion pairs only: dynamics magnify the last bit of a sum, which may differ from one processor
    to the next.
    """
    made = recipes.make(
        "spice-mini", tmp_path / "x.h5", systems=["[Na+].[K+]", "[Na+].[Cl-]"], progress=False
    )
    whole = committed("spice-mini")
    for k, name in enumerate(made.system_names()):
        fresh = made[made.system == k]
        stored = whole[whole.system == whole.system_names().index(name)]
        np.testing.assert_allclose(fresh.pos, stored.pos, atol=1e-3)
        np.testing.assert_allclose(fresh.energy, stored.energy, atol=1e-4)


@needs("openmm")
def test_committed_labels_are_amoeba():
    made = committed("water-mini")
    for waters in (8, 64):
        check_labels(made[int(np.flatnonzero(made.n_atoms == 3 * waters)[5])], step=2e-4)


def test_committed_spice_mini():
    made = committed("spice-mini")
    assert len(made) >= 4_000 and len(made.system_names()) >= 150 and len(made.elements) >= 12
    symbols = {SYMBOLS[z] for z in made.elements}
    assert {"F", "P", "S", "Cl", "Br", "I", "Li", "Na", "K"} <= symbols
    assert (made.charge == 0).any() and (made.charge < 0).any() and (made.charge > 0).any()
    subsets = made.info["subsets"]
    assert set(subsets) == set(made.system_names()) and set(subsets.values()) == set(SUBSETS)
    counts = np.bincount(made.system)
    assert counts.min() >= 5 and np.median(counts) == spice_mini.FRAMES


def test_committed_md22_mini():
    made = committed("md22-mini")
    assert made.system_names() == list(md22_mini.MOLECULES)
    assert (np.bincount(made.system) >= 300).all()
    for name, row in made.info["dynamics"].items():
        assert abs(row["energy lag 1"]) < 0.25 and row["shape lag 1"] < 0.9, name  # decorrelated
        assert 0.85 < row["above minimum (eV)"] / row["equipartition (eV)"] < 1.2, name


def test_committed_iso17_mini():
    made = committed("iso17-mini")
    assert len(made.system_names()) >= 12 and {formula(one.z) for one in made[::50]} == {"C7H10O2"}
    parts = registry.published_split("iso17-mini")
    assert list(parts) == list(iso17_mini.PARTS) and sum(map(len, parts.values())) == len(made)
    systems = {part: set(made.system[rows].tolist()) for part, rows in parts.items()}
    assert systems["train"] == systems["valid"] == systems["test_within"]
    assert len(systems["test_other"]) == len(iso17_mini.UNSEEN)
    assert not systems["test_other"] & systems["train"]
    names = made.system_names()
    assert {names[k] for k in systems["test_other"]} == set(iso17_mini.UNSEEN)
    for name, row in made.info["dynamics"].items():
        assert 0.85 < row["above minimum (eV)"] / row["equipartition (eV)"] < 1.15, name
    seen = sum(len(parts[part]) for part in ("train", "valid", "test_within"))
    assert 0.65 < len(parts["train"]) / seen < 0.75


def test_committed_rmd17_mini():
    made = committed("rmd17-mini")
    assert made.system_names() == list(rmd17_mini.MOLECULES)
    assert (np.bincount(made.system) >= 300).all()
    for name, row in made.info["dynamics"].items():
        assert 0.9 < row["above minimum (eV)"] / row["equipartition (eV)"] < 1.1, name
        assert 460 < row["kinetic temperature (K)"] < 520, name


def test_committed_water_mini():
    made = committed("water-mini")
    waters = made.n_atoms // 3
    assert len(made) >= 1_500 and set(waters.tolist()) == {8, 16, 32, 48, 64} and made.pbc.all()
    assert (made.z.reshape(-1, 3) == [8, 1, 1]).all()
    volume = np.linalg.det(made.cell)
    density = waters * 18.01528 / 6.02214076e23 / (volume * 1e-24)
    np.testing.assert_allclose([density.min(), density.max()], [0.7, 1.3], atol=2e-3)
    of_box = np.array([made.info["temperatures"][name] for name in made.system_names()])
    kelvin = of_box[made.system]
    per_water = made.energy / waters
    assert per_water.min() > -0.5 and per_water.max() < 0.2
    big = waters == 64
    means = [per_water[big & (kelvin == t)].mean() for t in sorted(set(kelvin.tolist()))]
    assert (np.diff(means) > 0).all()  # hotter water is less bound
    oxygen, hydrogen, _ = made.pos.astype(float).reshape(-1, 3, 3).swapaxes(0, 1)
    length = np.linalg.norm(hydrogen - oxygen, axis=-1)
    assert length.min() > 0.75 and length.max() < 1.3 and 0.94 < length.mean() < 1.0
