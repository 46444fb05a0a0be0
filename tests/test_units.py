"""Units: what they are worth, and of which kind they must be."""

import pytest

from potkit import units
from potkit.datasets.formats.common import chosen_units
from potkit.errors import DataError


@pytest.mark.parametrize(
    ("unit", "kind"),
    [
        ("bohr", "energy"),
        ("eV/angstrom", "energy"),
        ("hartree", "length"),
        ("hartree", "forces"),
        ("nm", "forces"),
    ],
)
def test_a_unit_of_another_kind_is_refused(unit, kind):
    with pytest.raises(DataError, match=f"'{unit}' is no unit of {kind}"):
        units.factor(unit, kind)
    with pytest.raises(DataError, match=f"'{unit}' is no unit of {kind}"):
        chosen_units(
            **{"length_unit": None, "energy_unit": None, "forces_unit": None}
            | {f"{kind}_unit": unit}
        )


def test_units_of_the_right_kind():
    assert units.factor("kcal/mol", "energy") == units.KCAL_MOL
    assert units.factor("Bohr", "length") == units.BOHR
    assert units.factor("kcal/mol/nm", "forces") == units.KCAL_MOL / 10
    with pytest.raises(DataError, match="unknown unit 'furlong'"):
        units.factor("furlong", "length")
