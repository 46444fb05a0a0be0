"""The machinery of the molecular recipes: force fields, dynamics, and what is measured along it."""

from __future__ import annotations

import numpy as np
import pytest
from test_recipes import needs

from potkit.datasets import references
from potkit.datasets.recipes import dynamics, trajectories, xtb
from potkit.datasets.recipes.species import Species
from potkit.structures.elements import SYMBOLS
from potkit.units import AMU, BOHR, BOLTZMANN, HARTREE


def slope_error(force, x: np.ndarray, step: float = 1e-4) -> float:
    """Relative difference of the forces and the central difference of the energy along one random
    direction.
    """
    direction = np.random.default_rng(3).normal(size=x.shape)
    ahead, _ = force(x + step * direction)
    behind, _ = force(x - step * direction)
    slope = (ahead - behind) / (2 * step)
    _, forces = force(x)
    return abs(slope + (direction * forces).sum()) / np.linalg.norm(forces)


@needs("rdkit")
@pytest.mark.parametrize(
    ("smiles", "name"), [("CC(N)=O", "MMFF94"), ("[I-].O.O", "UFF"), ("[Na+].CO", "MMFF94")]
)
def test_force_field_is_the_derivative_of_its_energy(smiles, name):
    species = Species(smiles)
    x = species.embed(np.random.default_rng(0))
    # so near that the springs pull
    field = trajectories.held(species.force_field(), species, radius=1.0)
    assert species.field_name == name
    # RDKit's gradient remembers the last geometry: a second one must come out right too
    for k in range(3):
        y = x + 0.05 * np.random.default_rng(k).normal(size=x.shape)
        assert slope_error(field, y) < 1e-4
        # springs between fragments pull no centre
        np.testing.assert_allclose(field(y)[1].sum(0), 0, atol=1e-6)


def test_ties_pull_only_beyond_their_reach():
    def free(x):
        return 0.0, np.zeros_like(x)

    force = trajectories.tied(free, np.array([[0, 1], [1, 2]]), reach=2.0, stiffness=0.5)
    x = np.array([[0.0, 0, 0], [3.0, 0, 0], [3.0, 1.5, 0]])
    energy, forces = force(x)
    assert energy == 0.5 * (3.0 - 2.0) ** 2
    np.testing.assert_allclose(forces, [[1.0, 0, 0], [-1.0, 0, 0], [0, 0, 0]])
    assert slope_error(force, x + 0.1) < 1e-6


@needs("rdkit")
def test_clusters_are_embedded_in_contact():
    species = Species("[Cl-].CNC(C)=O.O")
    assert species.charge == -1 and species.molecule.max() == 2 and SYMBOLS[species.z[0]] == "Cl"
    x = species.embed(np.random.default_rng(0))
    assert species.intact(x)
    for k in range(1, 3):
        placed = x[species.molecule < k]
        fragment = x[species.molecule == k]
        assert 2.2 < np.linalg.norm(placed[:, None] - fragment, axis=-1).min() < 2.7
    broken = x.copy()
    hydrogen = np.flatnonzero((species.molecule == 2) & (species.z == 1))[0]
    oxygen = np.flatnonzero((species.molecule == 2) & (species.z == 8))[0]
    broken[hydrogen] += 1.5 * (x[hydrogen] - x[oxygen])
    assert not species.intact(broken)
    broken[hydrogen] = x[0] + [0.6, 0, 0]  # on top of the chloride
    assert not species.intact(broken)
    with pytest.raises(ValueError, match="cannot read"):
        Species("[X")


def test_langevin_obeys_boltzmann_at_a_long_step():
    """In a harmonic well BAOAB's positions are exact at any stable step; here ω·dt is 0.9."""
    masses = np.full(400, 12.0)
    kelvin = 500.0
    stiffness = (0.9 / dynamics.STEP) ** 2 * 12.0 * AMU
    calls = []

    def spring(x):
        calls.append(1)
        return 0.5 * stiffness * (x**2).sum(), -stiffness * x

    walker = dynamics.Langevin(spring, np.zeros((400, 3)), masses, kelvin, np.random.default_rng(0))
    walker.run(40, 0.1)
    squares, temperatures = [], []
    for _ in range(60):
        walker.run(5, 0.1)
        squares.append((walker.positions**2).mean())
        temperatures.append(walker.kinetic_temperature)
    assert len(calls) == 1 + 40 + 300
    assert abs(np.mean(squares) * stiffness / (BOLTZMANN * kelvin) - 1) < 0.03
    # the velocities of BAOAB are not exact at such a step
    assert abs(np.mean(temperatures) / kelvin - 1) < 0.25
    assert np.isclose(walker.energy, spring(walker.positions)[0])


def test_thermal_velocities_and_heavy_hydrogens():
    masses = dynamics.heavy_masses(np.array([1.008] * 3000 + [15.999] * 3000))
    assert set(masses.tolist()) == {dynamics.HYDROGEN, 15.999}
    v = dynamics.thermal_velocities(masses, 300.0, np.random.default_rng(0))
    energy = 0.5 * masses[:, None] * AMU * v**2
    for half in (slice(0, 3000), slice(3000, None)):
        assert abs(energy[half].mean() / (BOLTZMANN * 300 / 2) - 1) < 0.05


def test_lag_one_knows_its_answer():
    rng = np.random.default_rng(0)
    series = np.zeros((20_000, 2))
    for t in range(1, len(series)):
        series[t] = 0.7 * series[t - 1] + rng.normal(size=2)
    assert abs(dynamics.lag_one(series) - 0.7) < 0.02
    assert abs(dynamics.lag_one(rng.normal(size=20_000))) < 0.03
    assert dynamics.lag_one(np.ones(10)) == 0.0 and dynamics.lag_one(np.zeros(2)) == 0.0
    frames = np.array([[[0.0, 0, 0], [3, 4, 0], [0, 0, 1]]])
    np.testing.assert_allclose(dynamics.pair_distances(frames), [[5, 1, 26**0.5]])


def test_quench_finds_the_minimum():
    def parabola(x):
        return ((x - 1) ** 2).sum(), -2 * (x - 1)

    x, energy = dynamics.quench(parabola, np.zeros((4, 3)), slope=1e-6)
    np.testing.assert_allclose(x, 1, atol=1e-6)
    assert abs(energy) < 1e-10


@needs("tblite")
def test_following_a_trajectory_gives_the_same_labels():
    z = np.array([8, 1, 1, 11])
    x = np.array([[0.0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0], [0.4, -2.0, 0.5]])
    model = xtb.XTB(z, x / BOHR, charge=1)
    rng = np.random.default_rng(0)
    for _ in range(3):
        x = x + 0.02 * rng.normal(size=x.shape)
        loose, loose_forces = model.follow(x)
        energy, forces = model.label(x)
        fresh, gradient = xtb.XTB(z, x / BOHR, charge=1)(x / BOHR)
        assert abs(energy - fresh * HARTREE) < 1e-6 and abs(loose - energy) < 1e-3
        np.testing.assert_allclose(forces, -gradient * HARTREE / BOHR, atol=1e-4)
        np.testing.assert_allclose(loose_forces, forces, atol=2e-2)
    assert slope_error(model.label, x, 1e-3) < 1e-3


@needs("tblite")
def test_reference_energies_are_those_of_tblite():
    """The table of `references` is what tblite gives for free atoms; all molecules of the embedded
    sets are bound against it.
    """
    table = references.isolated_atoms("gfn2-xtb")
    made = {SYMBOLS.index(s): e for s, e in xtb.atomic_energies().items()}
    assert table.keys() == made.keys()
    assert all(abs(table[z] - made[z]) < 2e-6 for z in table)
