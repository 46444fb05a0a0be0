"""Formal charges of sets whose files do not have them."""

from __future__ import annotations

import numpy as np
import pytest

import potkit
from potkit.datasets.formal_charges import from_system_names, neutral
from potkit.errors import DataError
from potkit.models.published_codes.common import atom_types, type_table
from potkit.structures.store import Structures


def test_neutral_atoms_of_neutral_structures():
    s = Structures([8, 1, 1, 6], np.zeros((4, 3)) + np.arange(4)[:, None], [0, 3, 4])
    out = neutral(s)
    assert out.formal_charge.tolist() == [0] * 4 and s.formal_charge is None
    ion = Structures([8, 1], np.eye(3)[:2], [0, 2], charge=[-1], info={"name": "ions"})
    with pytest.raises(DataError, match=r"ions: structure 0 has charge -1"):
        neutral(ion)


def test_formal_charges_of_spice_mini_follow_from_its_names():
    """Every pair of element and charge there is one of the denoise paper's 28 atom types."""
    pytest.importorskip("rdkit")
    s = potkit.load("spice-mini")
    rows = np.concatenate([np.flatnonzero(s.system == k)[:1] for k in np.unique(s.system)])
    part = from_system_names(s[rows])
    sums = np.add.reduceat(part.formal_charge.astype(int), part.ptr[:-1])
    assert sums.tolist() == part.charge.tolist()
    neutral_overall = np.repeat(part.charge == 0, part.n_atoms)
    assert np.any(part.formal_charge[neutral_overall] != 0)  # ion pairs and zwitterions
    types = atom_types(part.batch(), type_table())  # raises for a pair that is not among them
    assert len(types.unique()) == 24
    # without formal charges the same atoms have fewer types, where they have any at all
    assert len(np.unique(part.z)) == 15


@pytest.mark.parametrize(
    "z, charge, name, words",
    [
        ([8, 1, 1], 0, "water", "no SMILES"),
        ([1, 8, 1], 0, "O", "H O H, its SMILES O H H"),
        ([8, 1, 1], 1, "O", "charge [+]1, its SMILES [+]0"),
    ],
)
def test_names_that_do_not_fit_are_named(z, charge, name, words):
    pytest.importorskip("rdkit")
    s = Structures(z, np.eye(3), [0, 3], charge=[charge], info={"name": "set", "systems": [name]})
    with pytest.raises(DataError, match=rf"set: system '{name}'.*{words}"):
        from_system_names(s)
