"""What a simulation is asked, against what is known: an ideal gas, a harmonic bond, made-up
histories.
"""

from __future__ import annotations

import numpy as np
import pytest
from tiny import water

import potkit
from potkit.analysis import distributions, dynamics
from potkit.errors import DataError

WATER = np.array([[0.0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])  # Å


def pair(distance: float) -> potkit.Structures:
    """Two molecules of water, ``distance`` Å apart."""
    pos = np.concatenate([WATER, WATER + np.array([0, 0, distance])])
    return potkit.Structures(np.array([8, 1, 1] * 2), pos, np.array([0, 6]))


# -- radial distribution -------------------------------------------------------------------------
def test_an_ideal_gas_has_no_structure(rng):
    """g(r) of points without order is 1 at every distance, within what counting allows."""
    frames, atoms, side = 40, 200, 10.0
    gas = potkit.Structures(
        z=np.full(frames * atoms, 8),
        pos=rng.uniform(0, side, (frames * atoms, 3)),
        ptr=atoms * np.arange(frames + 1),
        cell=np.tile(side * np.eye(3), (frames, 1, 1)),
        pbc=np.ones((frames, 3), bool),
    )
    centres, g = distributions.radial_distribution(gas, "O", "O", cutoff=5.0, bins=10)
    shell = 4 / 3 * np.pi * np.diff(np.linspace(0, 5, 11) ** 3)
    pairs = frames * atoms * (atoms - 1) / 2 * shell / side**3  # expected, each counted once
    assert np.abs((g - 1) * np.sqrt(pairs)).max() < 4
    assert centres[-1] == pytest.approx(4.75)
    assert abs(g[4:] - 1).max() < 0.05


# -- drift ---------------------------------------------------------------------------------------
def test_drift_is_the_slope_per_atom(rng):
    time = np.linspace(0, 2, 400)  # ps
    wiggle = 1e-3 * np.sin(2 * np.pi * 20 * time)  # of the integrator, whole periods
    assert dynamics.drift(time, -500 + 0.012 * time + wiggle, 6) == pytest.approx(2.0, abs=0.05)
    assert dynamics.drift(time, np.full(400, -500.0), 6) == pytest.approx(0, abs=1e-9)
    # ten thousand eV of atoms' own energy do not cost digits
    assert dynamics.drift(time, -1e4 + 1e-6 * time, 1) == pytest.approx(1e-3, rel=1e-4)
    with pytest.raises(DataError, match="three points"):
        dynamics.drift(time[:2], time[:2], 1)


# -- bonds ---------------------------------------------------------------------------------------
def test_bonds_are_those_at_the_start():
    watch = dynamics.BondWatch(pair(3.0))
    bonds = {tuple(sorted(b)) for b in zip(watch.first, watch.second, strict=True)}
    assert bonds == {(0, 1), (0, 2), (3, 4), (3, 5)}
    assert set(watch.pair) == {"O–H"} and watch.owner.tolist() == [0] * 4
    np.testing.assert_allclose(watch.start, np.linalg.norm(WATER[1]), rtol=1e-12)


@pytest.mark.parametrize("by, broken", [(0.45, False), (0.55, True), (-0.45, False)])
def test_a_bond_breaks_beyond_half_an_angstrom(by, broken):
    start = pair(3.0)
    watch = dynamics.BondWatch(start)
    pos = np.array(start.pos, float)
    direction = WATER[1] / np.linalg.norm(WATER[1])
    pos[1] += by * direction
    (said,) = watch.problems(pos)
    if broken:
        length = np.linalg.norm(WATER[1]) + by
        assert said == f"the bond O0–H1 is broken ({length:.2f} Å, 0.96 Å at the start)"
    elif by > 0:
        assert said == ""
    else:  # short of broken, but one inside the other
        assert "fused" in said


def test_fused_atoms_and_lost_positions_are_named():
    start = potkit.concatenate([pair(3.0), pair(3.0), pair(3.0)])
    watch = dynamics.BondWatch(start)
    pos = np.array(start.pos, float)
    assert watch.problems(pos) == ["", "", ""]
    pos[6 + 3 : 6 + 6] -= [0, 0, 2.7]  # the second pair's second molecule
    pos[13, 1] = np.nan
    said = watch.problems(pos)
    assert said[0] == ""
    assert said[1] == "the atoms O0 and O3 are fused (0.30 Å apart)"
    assert said[2] == "positions are not finite"


def test_a_bond_over_a_face_of_the_cell_is_followed():
    """A molecule that stands on the face, and one that a simulation carried out of the cell."""
    box = water(1, per_side=2, seed=3)
    assert len(dynamics.BondWatch(box).start) == 16
    watch = dynamics.BondWatch(box)
    np.testing.assert_allclose(watch.start, 0.9572, atol=1e-5)
    crossing = np.linalg.norm(watch._shift, axis=1) > 0
    assert crossing.any()  # else this tests nothing
    moved = np.array(box.pos, float) + np.array([20.0, -3.0, 0.5])  # unwrapped
    assert watch.problems(moved) == [""]
    np.testing.assert_allclose(watch.lengths(moved), watch.start, atol=1e-9)
    one = int(np.flatnonzero(crossing)[0])
    first, second = watch.first[one], watch.second[one]
    bond = moved[first] - moved[second] + watch._shift[one]
    moved[first] += 0.6 * bond / np.linalg.norm(bond)
    assert "broken (1.56 Å, 0.96 Å at the start)" in watch.problems(moved)[0]


# -- distributions -------------------------------------------------------------------------------
def test_histograms_that_are_shifted_are_as_far_apart_as_the_shift():
    edges = np.linspace(0.5, 2.0, 151)
    centres = (edges[1:] + edges[:-1]) / 2
    counts = np.exp(-(((centres - 1.1) / 0.03) ** 2))
    shifted = np.roll(counts, 5)
    distance = dynamics.distance_of_histograms
    assert distance(centres, counts, shifted) == pytest.approx(0.05, rel=1e-6)
    assert distance(centres, counts, 7 * counts) == pytest.approx(0, abs=1e-9)
    assert np.isnan(distance(centres, counts, 0 * counts))
    assert dynamics.distance_of_curves([1, 2, 1], [1, 1, 1]) == pytest.approx(1 / 3)


def test_bond_histograms_count_every_bond_of_every_frame():
    start = pair(3.0)
    watch = dynamics.BondWatch(start)
    edges = np.linspace(0.5, 2.0, 16)
    frames = np.array([start.pos, np.array(start.pos) * 1.5], float)
    counts = dynamics.bond_histograms(watch, frames, edges)
    assert set(counts) == {"O–H"} and counts["O–H"].sum() == 8
    assert counts["O–H"][4] == 4 and counts["O–H"][9] == 4  # 0.96 and 1.44 Å


def test_distance_of_two_harmonic_bonds():
    """Lengths that a harmonic bond visits: the distance to a Gaussian of another width is the
    difference of the widths times √(2/π).
    """
    edges = np.linspace(0.5, 1.7, 2401)
    centres = (edges[1:] + edges[:-1]) / 2

    def gauss(width):
        return np.exp(-0.5 * ((centres - 1.1) / width) ** 2)

    found = dynamics.distance_of_histograms(centres, gauss(0.05), gauss(0.03))
    assert found == pytest.approx(0.02 * np.sqrt(2 / np.pi), rel=1e-3)


def test_images_of_an_atom_count_in_small_cells(rng):
    """Two atoms in a cell narrower than the cutoff: g(r) is 1 on average."""
    frames, side = 300, 4.0
    cells = potkit.Structures(
        z=np.full(2 * frames, 8),
        pos=rng.uniform(0, side, (2 * frames, 3)),
        ptr=2 * np.arange(frames + 1),
        cell=np.tile(side * np.eye(3), (frames, 1, 1)),
        pbc=np.ones((frames, 3), bool),
    )
    _, g = distributions.radial_distribution(cells, "O", "O", cutoff=19.0, bins=10)
    shell = np.diff(np.linspace(0, 19, 11) ** 3)  # images of one atom stand at few distances
    assert (g * shell).sum() / shell.sum() == pytest.approx(1.0, abs=0.03)


def test_energies_that_are_missing_hide_no_others():
    structures = potkit.load("ani-mini")[:6]
    structures.energy = structures.energy.copy()
    before = distributions.energy_above_minimum(structures)
    structures.energy[np.argmax(before)] = np.nan
    after = distributions.energy_above_minimum(structures)
    assert np.isnan(after).sum() == 1
    assert np.allclose(after[np.isfinite(after)], before[np.isfinite(after)])
