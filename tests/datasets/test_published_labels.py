"""What the papers' codes did to labels."""

from __future__ import annotations

import numpy as np
import pytest

from potkit import units
from potkit.datasets.published_labels import float32_labels
from potkit.errors import DataError
from potkit.structures.store import Structures

KCAL = units.HARTREE / 627.5  # eV, as the published code has it


def made(hartree: np.ndarray) -> Structures:
    n = len(hartree)
    return Structures(
        np.tile([6, 1], n),
        np.zeros((2 * n, 3)) + np.arange(2 * n)[:, None],
        2 * np.arange(n + 1),
        energy=hartree * units.HARTREE,
        info={"name": "made"},
    )


def test_float32_labels_are_total_energies_rounded():
    """Against the published steps in NumPy; differences below float32's step of a total vanish."""
    rng = np.random.default_rng(0)
    hartree = -384.0 + 1e-4 * rng.normal(size=400)  # conformations 0.06 kcal/mol apart
    s = made(hartree)
    rounded = float32_labels(s)
    expected = hartree.astype(np.float32) * np.float32(627.5)
    np.testing.assert_allclose(rounded.energy / KCAL, expected, rtol=1e-12)
    error = (rounded.energy - s.energy) / KCAL
    assert 0.005 < np.sqrt(np.mean(error**2)) < 0.016 and np.abs(error).max() < 0.04
    assert len(np.unique(rounded.energy)) < 40 and len(np.unique(s.energy)) == 400
    assert rounded.info["faults"] == ["float32-labels"] and "faults" not in s.info
    np.testing.assert_array_equal(rounded.pos, s.pos)


def test_no_energies_to_round():
    s = made(np.full(3, -40.0))
    with pytest.raises(DataError, match="made have no energies"):
        float32_labels(Structures(s.z, s.pos, s.ptr, info=s.info))
