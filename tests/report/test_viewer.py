"""The three-dimensional view: every atom is there, bonds are the bonds, the box has its edges,
and frames follow the slider.
"""

from __future__ import annotations

import numpy as np
import pytest

import potkit
from potkit.errors import DataError
from potkit.report import figures, structures_3d
from potkit.structures.store import Structures

WATER = np.array([[0.0, 0.0, 0.117], [0.0, 0.757, -0.469], [0.0, -0.757, -0.469]])


def box_of_waters(shift=(0.0, 0.0, 0.0)) -> Structures:
    """Two waters in a 6 Å cube, wrapped into it, the first one across a face when shifted."""
    pos = np.concatenate([WATER, WATER + 3.0]) + np.asarray(shift)
    return Structures(
        [8, 1, 1] * 2,
        pos % 6.0,
        [0, 6],
        cell=np.eye(3)[None] * 6.0,
        pbc=np.ones((1, 3), bool),
        molecule=[0] * 3 + [1] * 3,
    )


def by_name(chart) -> dict:
    return {trace.name: trace for trace in chart.data}


def lengths(trace) -> np.ndarray:
    points = np.stack([trace.x, trace.y, trace.z], 1).reshape(-1, 3, 3)
    assert np.isnan(points[:, 2].astype(float)).all()
    return np.linalg.norm(points[:, 0] - points[:, 1], axis=1)


def test_ethanol_has_its_atoms_bonds_and_symbols():
    ase_build = pytest.importorskip("ase.build")
    molecule = Structures.from_ase([ase_build.molecule("CH3CH2OH")])
    pairs = structures_3d.bonds(molecule.z, molecule.pos, structures_3d.STRETCH)
    degree = np.bincount(pairs.ravel(), minlength=9)
    assert len(pairs) == 8 and sorted(degree.tolist()) == [1] * 6 + [2, 4, 4]
    traces = by_name(figures.structure3d(molecule))
    assert list(traces) == ["bonds", "O", "C", "H"]
    assert {name: len(traces[name].x) for name in ("O", "C", "H")} == {"O": 1, "C": 2, "H": 6}
    assert set(traces["H"].text) == {"H"} and traces["H"].mode == "markers+text"
    rows = np.asarray(traces["C"].customdata)
    np.testing.assert_allclose(
        np.stack([traces["C"].x, traces["C"].y, traces["C"].z], 1), molecule.pos[rows], atol=1e-4
    )
    assert len({traces[name].marker.color for name in ("O", "C", "H")}) == 3
    assert traces["O"].marker.size > traces["H"].marker.size


def test_elements_beyond_the_common_ones_have_colour_and_radius():
    chart = structures_3d.structure3d(Structures([3, 53, 20], np.diag([0.0, 4.0, 8.0]), [0, 3]))
    assert [t.name for t in chart.data] == ["bonds", "I", "Ca", "Li"] and len(chart.data[0].x) == 0


@pytest.mark.parametrize("shift", [(0, 0, 0), (0.2, 0.3, 0.1)])
def test_molecules_are_whole_in_a_box_of_twelve_edges(shift):
    structures = box_of_waters(shift)
    # wrapped: some atoms lie at the other side
    assert (structures.pos.max() - structures.pos.min()) > 5
    traces = by_name(structures_3d.structure3d(structures))
    drawn = lengths(traces["bonds"]) + structures_3d._radius(8) + structures_3d._radius(1)
    np.testing.assert_allclose(drawn, [0.957] * 4, atol=2e-3)
    np.testing.assert_allclose(lengths(traces["box"]), 6.0)
    assert len(lengths(traces["box"])) == 12


def test_many_atoms_carry_no_text():
    structures = potkit.load("tip3p-mini")[0]
    traces = by_name(structures_3d.structure3d(structures))
    assert traces["O"].mode == "markers" and len(traces["O"].x) == 258
    assert len(lengths(traces["bonds"])) == 516


def test_frames_get_a_slider_that_moves_atoms_and_bonds():
    frames = Structures(
        [8, 1, 1] * 3,
        np.concatenate([WATER, 1.1 * WATER, 0.9 * WATER]),
        [0, 3, 6, 9],
        energy=[-1.0, -0.5, -0.25],
    )
    chart = structures_3d.structure3d(frames)
    assert [f.name for f in chart.frames] == ["0", "1", "2"]
    assert [s.label for s in chart.layout.sliders[0].steps] == [
        "0: 0.000 eV",
        "1: 0.500 eV",
        "2: 0.750 eV",
    ]
    hydrogens = [t.name for t in chart.data].index("H")
    np.testing.assert_allclose(chart.frames[1].data[hydrogens].y, 1.1 * WATER[1:, 1], atol=1e-4)
    assert list(chart.frames[1].traces) == [0, 1, 2]
    assert chart.frames[2].data[0].x is not None and len(chart.frames[2].data[0].x) == 6


def test_single_atoms_and_the_same_bytes_twice():
    one = Structures([2], np.zeros((1, 3)), [0, 1])
    assert structures_3d.structure3d(one).to_json() == structures_3d.structure3d(one).to_json()
    structures = box_of_waters()
    assert (
        structures_3d.structure3d(structures).to_json()
        == structures_3d.structure3d(structures).to_json()
    )


def test_nothing_to_show_and_frames_of_different_atoms_are_errors():
    two = Structures([8, 1, 1, 8], np.concatenate([WATER, WATER[:1]]), [0, 3, 4])
    with pytest.raises(DataError, match="structure 1 has other atoms than structure 0"):
        structures_3d.structure3d(two)
    with pytest.raises(DataError, match="no structure"):
        structures_3d.structure3d(two[:0])
