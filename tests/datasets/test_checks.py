"""The health report: healthy sets pass, each illness is seen."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import potkit
from potkit import units
from potkit.datasets.checks import (
    box_widths,
    check,
    force_slope,
    require_wide_boxes,
    shortest_distances,
)
from potkit.errors import DataError
from potkit.structures.store import Structures

rng = np.random.default_rng(0)


def springs(n: int = 200, factor: float = 1.0) -> Structures:
    """A diatomic on a spring: E = ½ k (d − d₀)², forces times ``factor``, a slow trajectory."""
    d = 1.1 + 0.1 * np.sin(np.arange(n) * 0.05) + 1e-4 * rng.normal(size=n)
    pos = np.zeros((n, 2, 3))
    pos[:, 1, 0] = d
    energy = 0.5 * 30 * (d - 1.1) ** 2 - 1000.0
    forces = np.zeros((n, 2, 3))
    forces[:, 1, 0] = -30 * (d - 1.1) * factor
    forces[:, 0, 0] = -forces[:, 1, 0]
    return Structures(
        np.tile([6, 1], n), pos.reshape(-1, 3), np.arange(n + 1) * 2, energy, forces.reshape(-1, 3)
    )


def row(frame, what: str):
    return frame.set_index("check").loc[what]


def test_healthy():
    frame = check(springs(), duplicates=False)
    assert frame.attrs["healthy"] and set(frame["verdict"]) == {"ok"}
    assert row(frame, "ΔE over −F·Δx")["value"] == pytest.approx(1.0, abs=0.01)


@pytest.mark.parametrize(
    "factor, slope",
    [(-1.0, -1.0), (units.BOHR, 1 / units.BOHR), (units.KCAL_MOL, 1 / units.KCAL_MOL)],
)
def test_wrong_sign_or_unit_of_forces(factor, slope):
    frame = check(springs(factor=factor), duplicates=False)
    assert row(frame, "ΔE over −F·Δx")["verdict"] == "bad" and not frame.attrs["healthy"]
    assert force_slope(springs(factor=factor))[0] == pytest.approx(slope, rel=0.01)


def test_not_finite_and_overlapping():
    s = springs(10)
    s.pos[3] = np.nan
    s.energy[7] = np.inf
    s.pos[11] = s.pos[10] + 0.01
    frame = check(s, duplicates=False)
    assert row(frame, "pos not finite")["value"] == 1
    assert row(frame, "pos not finite")["where"] == "structures 1"
    assert row(frame, "energy not finite")["where"] == "structures 7"
    assert row(frame, "overlapping atoms (< 0.1 Å)")["value"] == 1
    # counted in the set that was given
    assert row(frame, "shortest distance")["where"] == "structure 5"
    assert not frame.attrs["healthy"]


def test_outlier_duplicate_and_length_unit():
    s = springs(100)
    s.energy[42] += 50
    s.pos[1::2, 0] += 0.01 * np.arange(100)  # no frame like another but the two made so
    s.pos[20:22] = s.pos[10:12]
    frame = check(s)
    assert "structures 42" in row(frame, "energy outliers (> 20 robust σ)")["where"]
    assert "structure 42" in row(frame, "highest energy above its system's lowest")["where"]
    assert row(frame, "duplicate pairs")["value"] == 1
    assert "5=10" in row(frame, "duplicate pairs")["where"]
    s = springs(50)
    s.pos *= 1 / units.BOHR
    assert row(check(s, duplicates=False), "typical shortest distance")["verdict"] == "look"
    s = springs(50)
    s.energy /= units.KCAL_MOL
    assert row(check(s, duplicates=False), "energy unit")["value"] == "kcal/mol"


def test_shortest_distances_with_and_without_box():
    pos = np.array(
        [[0.1, 0, 0], [9.8, 0, 0], [5, 5, 5], [1, 1, 1], [2, 1, 1], [1, 1, 1.5], [0, 0, 0]]
    )
    cell = np.stack([np.eye(3) * 10, np.zeros((3, 3)), np.zeros((3, 3))])
    s = Structures(
        np.ones(7), pos, [0, 3, 6, 7], cell=cell, pbc=[[True] * 3, [False] * 3, [False] * 3]
    )
    np.testing.assert_allclose(shortest_distances(s), [0.3, 0.5, np.inf], atol=1e-12)


def test_widths_of_boxes():
    cells = np.stack(
        [
            np.diag([5.0, 6, 7]),
            [[5, 0, 0], [4, 3, 0], [0, 0, 9]],
            np.diag([2.0, 8, 9]),
            np.zeros((3, 3)),
        ]
    )
    pbc = [[True] * 3, [True] * 3, [False, True, True], [False] * 3]
    s = Structures(
        np.ones(4), np.zeros((4, 3)), range(5), cell=cells, pbc=pbc, info={"name": "boxes"}
    )
    # the sheared cell: volume 135 Å3 over its largest face, 9 × 5 Å2 -> 3 Å; the slab counts its
    # periodic vectors only
    np.testing.assert_allclose(box_widths(s), [5.0, 3.0, 8.0, np.inf])
    require_wide_boxes(s, 1.5)
    fault = (
        r"^boxes: structure 1: its periodic box is 3.00 Å wide, "
        r"less than twice the cutoff of 1.6 Å .1 of 4 s"
    )
    with pytest.raises(DataError, match=fault):
        require_wide_boxes(s, 1.6)
    with pytest.raises(DataError, match=r"^a.xyz: structure 0: .*2 of 4 structures"):
        require_wide_boxes(s, 2.6, "a.xyz")
    frame = check(s, duplicates=False, cutoff=1.6)
    assert row(frame, "narrowest periodic box")["value"] == 3.0
    assert row(frame, "boxes narrower than 2 × 1.6 Å")["where"] == "structures 1"


def test_real_sets(reference_data):
    from potkit.datasets import read

    for path in (
        "3bpa/train_300K.xyz",
        "spice-dipeptides",
        "rpbe-water",
        "ani1-alkanes/nms/C2H6_DFT+Force_NMS.h5",
    ):
        frame = check(read(reference_data / path))
        assert frame.attrs["healthy"], frame


def test_slabs_without_a_third_vector_are_checked_and_compared(tmp_path):
    """Of no length or dependent where nothing repeats: fine. Where it should repeat: bad."""
    text = (
        '2\nLattice="{lattice}" pbc="{pbc}" energy=-1 Properties=species:S:1:pos:R:3:forces:R:3\n'
        "H 0 0 0 0 0 0.1\nH 0 0 {z} 0 0 -0.1\n"
    )
    cells = {
        "slab": ("5 0 0 0 5 0 0 0 0", "T T F", "ok"),
        "dependent": ("5 0 0 0 5 0 5 5 0", "T T F", "ok"),
        "zero": ("0 0 0 0 0 0 0 0 0", "T T T", "bad"),
        "dependent, periodic": ("5 0 0 5 0 0 0 5 0", "T T F", "bad"),
    }
    for name, (lattice, pbc, wanted) in cells.items():
        path = tmp_path / f"{name}.xyz"
        frames = [text.format(lattice=lattice, pbc=pbc, z=z) for z in (0.8, 0.81)]
        path.write_text("".join(frames))
        s = potkit.read(path)
        with warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            table = check(s)
            found = potkit.datasets.duplicates.leakage(s, s) if wanted == "ok" else ()
        rows = table[table["check"] == "cells without volume"]["verdict"].tolist()
        assert rows == [wanted] or (wanted == "ok" and not rows), name
        if wanted == "ok":
            assert len(found) == 2
