"""Minimum images against all images, edge vectors, bonds; the batch's against NumPy's."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from tiny import molecules

import potkit
from potkit.structures import geometry
from potkit.structures.neighbors import attach

CELLS = {
    "cube": np.eye(3) * 6.0,
    "box": np.diag([4.0, 6.0, 9.0]),
    "monoclinic": np.array([[6.0, 0, 0], [0, 7.0, 0], [-2.5, 0, 8.0]]),
    "hexagonal": np.array([[5.0, 0, 0], [-2.5, 2.5 * np.sqrt(3.0), 0], [0, 0, 9.0]]),
    "skewed": np.array([[5.0, 0, 0], [4.4, 5.0, 0], [4.9, 4.1, 5.0]]),
}
CELLS["long"] = np.array([[4.0, 0, 0], [8.0, 14.0, 0], [0, 3.0, 16.0]])  # 60°, sides unlike
PERIODIC = [(True, True, True), (True, True, False), (False, True, False)]


def shortest_of_all(step: np.ndarray, cell: np.ndarray, pbc: tuple[bool, ...]) -> np.ndarray:
    """The length of the shortest of all images of each step, tried one by one, [n] Å."""
    best = np.full(len(step), np.inf)
    for image in itertools.product(*[range(-12, 13) if along else (0,) for along in pbc]):
        best = np.minimum(best, np.linalg.norm(step + np.array(image) @ cell, axis=1))
    return best


@pytest.mark.parametrize("pbc", PERIODIC, ids=["box", "slab", "wire"])
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
def test_minimum_images_are_the_shortest_however_skewed_the_cell(cell, pbc, rng):
    step = rng.normal(scale=8.0, size=(200, 3))
    shortest = geometry.minimum_image(step, cell, np.array(pbc))
    expected = shortest_of_all(step, cell, pbc)
    np.testing.assert_allclose(np.linalg.norm(shortest, axis=1), expected, atol=1e-9)


def test_a_cell_for_each_row_gives_what_one_cell_after_the_other_gives(rng):
    cells = np.stack([CELLS["cube"], CELLS["skewed"]])
    pbc = np.array(PERIODIC[:2])
    step = rng.normal(scale=8.0, size=(2, 5, 3))
    together = geometry.minimum_image(step, cells, pbc)
    for row in range(2):
        alone = geometry.minimum_image(step[row], cells[row], pbc[row])
        np.testing.assert_allclose(together[row], alone, atol=1e-12)


@pytest.mark.parametrize("name", CELLS)
def test_minimum_images_of_a_batch_are_those_of_arrays(name, rng):
    cell = CELLS[name]
    structures = potkit.Structures(
        np.full(4, 8),
        rng.normal(size=(4, 3)),
        [0, 2, 4],
        cell=np.stack([cell, cell]),
        pbc=np.array(PERIODIC[:2]),
    )
    batch = structures.batch(dtype=torch.float64)
    step = rng.normal(scale=8.0, size=(300, 3))
    owner = np.arange(300) % 2
    shortest = geometry.minimum_image_of(torch.from_numpy(step), batch, torch.from_numpy(owner))
    for row in range(2):
        length = shortest_of_all(step[owner == row], cell, PERIODIC[row])
        of_structure = shortest.numpy()[owner == row]
        np.testing.assert_allclose(np.linalg.norm(of_structure, axis=1), length, atol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_minimum_images_of_a_batch_are_exact_in_any_cell(seed):
    rng = np.random.default_rng(seed)
    reduced = np.diag(rng.uniform(4.0, 7.0, 3)) + rng.normal(scale=0.8, size=(3, 3))
    shear = np.eye(3, dtype=int)
    shear[1, 0], shear[2, 0], shear[2, 1] = rng.integers(-3, 4, 3)
    cell = shear @ reduced  # the same lattice, its vectors far from the shortest
    pbc = [(True, True, True), (True, True, False), (True, False, False)]
    structures = potkit.Structures(
        np.full(3, 8), np.zeros((3, 3)), [0, 1, 2, 3], cell=np.stack([cell] * 3), pbc=np.array(pbc)
    )
    batch = structures.batch(dtype=torch.float64)
    step = rng.normal(scale=6.0, size=(150, 3))
    owner = np.arange(150) % 3
    found = geometry.minimum_image_of(torch.from_numpy(step), batch, torch.from_numpy(owner))
    for row in range(3):
        expected = shortest_of_all(step[owner == row], reduced, pbc[row])
        length = np.linalg.norm(found.numpy()[owner == row], axis=1)
        np.testing.assert_allclose(length, expected, atol=1e-9)
        moved = (found.numpy() - step)[owner == row] @ np.linalg.inv(cell)
        np.testing.assert_allclose(moved, np.round(moved), atol=1e-9)  # a lattice vector


def test_edge_vectors_are_differences_of_positions_across_the_faces():
    structures = potkit.Structures(
        [8, 8],
        np.array([[0.2, 0, 0], [5.8, 0, 0]]),
        [0, 2],
        cell=CELLS["cube"][None],
        pbc=np.ones((1, 3), bool),
    )
    batch = attach(structures.batch(dtype=torch.float64), 1.0)
    vectors = geometry.edge_vectors(batch.pos, *batch.edge_index, batch.edge_shift)
    receiver = batch.edge_index[1]
    expected = torch.tensor([[-0.4, 0, 0], [0.4, 0, 0]], dtype=torch.float64)[receiver]
    torch.testing.assert_close(vectors, expected)
    moved = batch.pos + torch.tensor([[0.1, 0, 0], [0, 0, 0]], dtype=torch.float64)
    shorter = geometry.edge_vectors(moved, *batch.edge_index, batch.edge_shift)
    torch.testing.assert_close(shorter.norm(dim=1), torch.full((2,), 0.5, dtype=torch.float64))


def test_bonds_of_a_batch_are_those_of_each_structure():
    structures = molecules(6)
    batch = structures.batch(dtype=torch.float64)
    (sender, receiver), vectors, sums = geometry.bonded_edges(batch, 1.25)
    pairs = []
    for i in range(len(structures)):
        first, last = structures.ptr[i], structures.ptr[i + 1]
        bonds = geometry.bonds(structures.z[first:last], structures.pos[first:last], 1.25)
        pairs += [(a + first, b + first) for a, b in bonds.tolist()]
    upper = receiver > sender
    assert len(pairs)
    assert sorted(pairs) == sorted(
        zip(sender[upper].tolist(), receiver[upper].tolist(), strict=True)
    )
    assert (vectors.norm(dim=1) < 1.25 * sums).all() and batch.edge_index is None


def test_no_atoms_have_no_bonds():
    assert geometry.bonds(np.zeros(0, int), np.zeros((0, 3)), 1.25).shape == (0, 2)


@pytest.mark.parametrize("rows", [[0, 1], [0], [], [0, 1, 2]])
def test_no_images_along_a_vector_of_no_length(rows):
    cell = np.zeros((3, 3))
    cell[rows, rows] = 5.0
    step = np.array([[4.0, 4.0, 4.0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = geometry.minimum_image(step, cell, np.ones(3, bool))
    wanted = [[-1.0 if k in rows else 4.0 for k in range(3)]]
    np.testing.assert_allclose(found, wanted, atol=1e-12)
