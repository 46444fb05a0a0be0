"""Dynamics of one structure: neighbours that serve many steps give the forces of fresh ones."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from tiny import egnn, molecules, water

import potkit
from potkit.errors import DataError
from potkit.training.ase_calculator import FREE_SKIN, SKIN, SMALL, Neighborhood

SETS = {"free": molecules, "periodic": water}


@pytest.fixture(scope="module")
def model() -> potkit.Potential:
    return egnn(radial=4).double()


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every list of neighbours that is made."""
    made: list[int] = []
    original = Neighborhood.__init__

    def counted(self, atoms, batch, cutoff) -> None:
        made.append(len(atoms))
        original(self, atoms, batch, cutoff)

    monkeypatch.setattr(Neighborhood, "__init__", counted)
    return made


def fresh(model, atoms) -> np.ndarray:
    atoms = atoms.copy()
    atoms.calc = potkit.calculator(model)
    return atoms.get_forces()


def prepared(model, kind: str):
    atoms = SETS[kind](1).to_ase()[0]
    atoms.calc = potkit.calculator(model)
    atoms.get_forces()
    return atoms


@pytest.mark.parametrize("kind", SETS)
def test_forces_are_those_of_a_fresh_list(model, made, kind):
    atoms = prepared(model, kind)
    rng = np.random.default_rng(0)
    for _ in range(5):
        atoms.positions += rng.uniform(-0.02, 0.02, atoms.positions.shape)
        kept = atoms.get_forces()
        assert made == [len(atoms)]
        np.testing.assert_allclose(kept, fresh(model, atoms), atol=1e-12)
        made.pop()


@pytest.mark.parametrize(("kind", "skin"), [("free", FREE_SKIN), ("periodic", SKIN)])
def test_an_atom_that_moved_by_half_the_skin_makes_a_new_list(model, made, kind, skin):
    atoms = prepared(model, kind)
    atoms.positions[0, 0] += skin / 2 - 1e-6
    atoms.get_forces()
    assert len(made) == 1
    atoms.positions[0, 0] += 2e-6
    atoms.get_forces()
    assert len(made) == 2


def test_neighbors_that_come_in_from_the_skin_are_heard(model, made):
    atoms = molecules(1).to_ase()[0][:2]
    atoms.positions = [[0.0, 0.0, 0.0], [model.cutoff + 0.1, 0.0, 0.0]]
    atoms.calc = potkit.calculator(model)
    assert not atoms.get_forces().any()
    atoms.positions[1, 0] = model.cutoff - 0.1
    kept = atoms.get_forces()
    assert len(made) == 1 and kept.any()
    np.testing.assert_allclose(kept, fresh(model, atoms), atol=1e-14)


def test_all_pairs_of_a_small_free_structure_are_kept(model, made):
    """A molecule that turns inside out needs no new list; a larger structure does."""
    atoms = prepared(model, "free")
    atoms.positions = -2.0 * atoms.positions[::-1]
    np.testing.assert_allclose(atoms.get_forces(), fresh(model, atoms), atol=1e-12)
    assert made == [len(atoms)] * 2  # the second is the fresh one's
    many = atoms.copy()
    many.cell = [10.0, 10.0, 10.0]
    many = many.repeat((SMALL // len(atoms) + 1, 1, 1))
    many.calc = potkit.calculator(model)
    assert len(many) > SMALL and many.get_forces().any()
    assert many.calc._neighborhood.skin == SKIN


def _longer_cell(atoms) -> None:
    atoms.set_cell(atoms.cell.array * 1.01)


def _open_side(atoms) -> None:
    atoms.pbc = [True, True, False]


def _other_element(atoms) -> None:
    atoms.numbers[0] = 6


@pytest.mark.parametrize("change", [_longer_cell, _open_side, _other_element])
def test_whatever_else_changes_makes_a_new_list(model, made, change):
    atoms = prepared(model, "periodic")
    change(atoms)
    forces = atoms.get_forces()
    assert len(made) == 2
    np.testing.assert_allclose(forces, fresh(model, atoms), atol=1e-12)


def test_positions_that_are_not_numbers_are_still_an_error(model):
    atoms = prepared(model, "free")
    atoms.positions[0, 0] = np.nan
    with pytest.raises(DataError):
        atoms.get_forces()


def test_a_calculator_is_pickled_without_its_neighbors(model):
    atoms = prepared(model, "free")
    again = pickle.loads(pickle.dumps(atoms.calc))
    assert again._neighborhood is None
    expected = atoms.get_forces()
    copied = atoms.copy()
    copied.calc = again
    np.testing.assert_array_equal(copied.get_forces(), expected)


def test_its_weights_are_not_trained(model):
    calculator = potkit.calculator(model)
    assert not any(p.requires_grad for p in calculator.models[0].parameters())
    assert all(p.requires_grad for p in model.parameters())
    assert isinstance(next(model.parameters()), torch.nn.Parameter)
