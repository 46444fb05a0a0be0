"""The table of element properties: complete, plausible, blanks filled by the stated rule and no
other.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.data import covalent_radii as cordero

from potkit.structures.element_properties import (
    PROPERTIES,
    covalent_radii,
    element_properties,
    is_tabulated,
)

COLUMN = {name: i for i, name in enumerate(PROPERTIES)}


def value(z, name):
    return float(element_properties()[z, COLUMN[name]])


def test_complete():
    table = element_properties()
    assert table.shape == (119, 9) and table.dtype == torch.float64
    assert torch.isfinite(table).all() and not table[0].any()
    assert len({tuple(row) for row in table[1:].tolist()}) == 118  # no two elements look the same


def test_periodic_table_rules():
    table = element_properties()[1:]
    period, group, block = (table[:, COLUMN[n]] for n in ("period", "group", "block"))
    assert torch.bincount(period.long()).tolist() == [0, 2, 8, 8, 18, 18, 32, 32]
    assert torch.bincount(block.long()).tolist() == [14, 36, 40, 28]
    assert group.min() == 1 and group.max() == 18 and (group[[5, 13, 31, 49, 81, 113]] == 14).all()
    assert [value(z, "valence") for z in (1, 6, 7, 8, 9, 11, 17, 26)] == [1, 4, 5, 6, 7, 1, 7, 8]


@pytest.mark.parametrize(
    "z, name, expected",
    [
        (1, "ionisation_energy", 13.598),
        (2, "ionisation_energy", 24.587),
        (55, "ionisation_energy", 3.894),
        (9, "electronegativity", 3.98),
        (6, "electronegativity", 2.55),
        (17, "electron_affinity", 3.613),
        (1, "electron_affinity", 0.754),
        (1, "polarizability", 4.507),
        (79, "electronegativity", 2.4),
    ],
)
def test_published_values(z, name, expected):
    assert value(z, name) == pytest.approx(expected, abs=1e-3)
    assert is_tabulated()[z, COLUMN[name]]


def test_radii_agree_with_an_independent_set():
    """Pyykkö's radii against Cordero's (in ASE): two definitions, the same atoms."""
    pyykko = covalent_radii()[1:97].numpy()
    assert np.corrcoef(pyykko, cordero[1:97])[0, 1] > 0.9
    assert np.abs(pyykko - cordero[1:97]).max() < 0.45
    assert abs(float(covalent_radii()[6]) - 0.75) < 1e-12


def test_blanks_are_filled_by_rule():
    known = is_tabulated()
    assert not known[0].any() and known[1:, COLUMN["covalent_radius"]].all()
    blank = {
        name: torch.nonzero(~known[1:, i]).flatten().add(1).tolist() for name, i in COLUMN.items()
    }
    assert blank["group"] == [*range(58, 72), *range(90, 104)]
    assert all(value(z, "group") == 3 for z in blank["group"])
    assert all(value(z, "electron_affinity") == 0 for z in blank["electron_affinity"])
    assert 7 in blank["electron_affinity"]
    # only Xe has one
    assert all(
        value(z, "electronegativity") == value(54, "electronegativity")
        for z in (2, 10, 18, 36, 86, 118)
    )
    assert value(104, "electronegativity") == value(72, "electronegativity")  # Rf from Hf
    assert value(61, "electronegativity") == value(60, "electronegativity")  # Pm from Nd
    assert value(117, "ionisation_energy") == value(85, "ionisation_energy")  # Ts from At
