"""Values that mean something else in a store's arrays are refused, each with its field and row."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator

from potkit.errors import DataError
from potkit.structures.storage import StoreWriter
from potkit.structures.store import Structures

POS = np.arange(9.0).reshape(3, 3)


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def made(**changes):
    """Two structures of two atoms and one."""
    return Structures(**({"z": [8, 1, 1], "pos": POS, "ptr": [0, 2, 3]} | changes))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"z": [8, 1.5, 1]}, "z of structure 0, atom 1, is 1.5, not a whole number"),
        ({"z": ["O", "H", "H"]}, "z of structure 0, atom 0, is 'O' (<U1), not a whole number"),
        ({"z": [8, np.nan, 1]}, "z of structure 0, atom 1, is nan, not a whole number"),
        ({"z": [8, 1, None]}, "z of structure 0, atom 0, is 8 (object), not a whole number"),
        ({"z": [True, True, True]}, "z of structure 0, atom 0, is True (bool), not a whole number"),
        ({"pos": POS + 1j}, "pos of structure 0, atom 0, is 1j (complex128), not a number"),
        ({"pos": POS.astype(str)}, "pos of structure 0, atom 0, is '0.0' (<U32), not a number"),
        ({"pos": [[0, 0, 0], [1, 1], [2, 2, 2]]}, "pos: its rows have different lengths"),
        ({"ptr": [0, 1.5, 3]}, "ptr in row 1 is 1.5, not a whole number"),
        ({"charge": [0.5, 0]}, "charge of structure 0 is 0.5, not a whole number"),
        ({"charge": [0, np.nan]}, "charge of structure 1 is nan, not a whole number"),
        ({"charge": [0, 70000]}, "charge of structure 1 is 70000, not in -32768…32767"),
        ({"charge": [0, -1e300]}, "charge of structure 1 is -1e+300, not in -32768…32767"),
        ({"charge": [10**30, 0]}, "charge of structure 0 is 10000000000000"),
        ({"formal_charge": [0, 0, 200]}, "formal_charge of structure 1, atom 0, is 200, not in"),
        ({"system": [0, 2**40]}, "system of structure 1 is 1099511627776, not in"),
        ({"energy": ["low", "high"]}, "energy of structure 0 is 'low' (<U4), not a number"),
        ({"pbc": np.full((2, 3), 0.5), "cell": np.ones((2, 3, 3))}, "pbc of structure 0 is 0.5"),
    ],
)
def test_wrong_values_are_refused_in_one_line(changes, message):
    with pytest.raises(DataError) as error:
        made(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_values_that_mean_the_same_are_taken():
    s = made(z=[8.0, 1.0, 1.0], charge=[-0.9999999, 1], pbc=[[0, 0, 0], [0, 0, 0]], energy=[1, 2])
    assert s.z.tolist() == [8, 1, 1] and s.charge.tolist() == [-1, 1]
    assert s.energy.dtype == np.float64 and not s.pbc.any()


@pytest.mark.parametrize("charge", [None, np.array([1]), "1", True, 0.4, 70000, np.nan, 10**400])
def test_charges_of_atoms_that_are_none_are_refused(charge):
    frames = [Atoms("H"), Atoms("H2", [[0, 0, 0], [0, 0, 0.8]])]
    frames[1].info["charge"] = charge
    with pytest.raises(DataError, match=r"^charge of structure 1 is .*, not "):
        Structures.from_ase(frames)
    frames[1].info["charge"] = -0.9999999
    assert Structures.from_ase(frames).charge.tolist() == [0, -1]


@pytest.mark.parametrize("name", ["pos", "forces", "energy"])
def test_what_single_precision_cannot_hold_is_named(name, tmp_path):
    values = {
        "pos": POS.copy(),
        "forces": np.zeros((3, 3)),
        "energy": np.zeros(2),
    }
    values[name][-1] = -1e39
    where = "structure 1" + ("" if name == "energy" else ", atom 0,")
    with pytest.raises(DataError, match=f"{name} of {where.rstrip(',')} is beyond ±3.4e"):
        made(**values).validate()
    if name == "energy":
        return
    with pytest.raises(DataError, match=f"{name} of {where} is -1e"):
        frames = [Atoms("OH", values["pos"][:2]), Atoms("H", values["pos"][2:])]
        for frame, forces in zip(frames, np.split(values["forces"], [2]), strict=True):
            frame.calc = SinglePointCalculator(frame, energy=0.0, forces=forces)
        Structures.from_ase(frames, dtype=np.float32)


def test_a_store_that_gets_too_large_a_number_is_not_written(tmp_path):
    small = made(pos=POS.astype(np.float32)).arrays()
    with pytest.raises(DataError, match="pos in row 2 is 1e"), StoreWriter(tmp_path / "s") as out:
        out.append(small)
        out.append(small | {"pos": np.where(np.arange(3)[:, None] == 2, 1e39, POS)})
    assert list(tmp_path.iterdir()) == []
