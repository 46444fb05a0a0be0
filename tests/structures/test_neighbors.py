"""Neighbour lists against ASE and matscipy, the three ways against each other, and the mistakes
they must name.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import primitive_neighbor_list

from potkit.errors import ConfigError, DataError
from potkit.structures import neighbors
from potkit.structures.store import Structures, concatenate

TRICLINIC = np.array([[4.0, 0.0, 0.0], [1.3, 3.7, 0.0], [-0.8, 0.9, 4.4]])
# far shorter than the cutoff along one vector
NEEDLE = np.array([[1.1, 0.2, 0.0], [0.0, 9.0, 0.0], [0.3, 0.0, 7.0]])
FLAT = np.array([[5.0, 0.0, 0.0], [4.5, 1.0, 0.0], [0.0, 0.0, 6.0]])  # two vectors almost parallel
CASES = {
    "free": (None, (False, False, False)),
    "cubic": (np.diag([6.0, 6.0, 6.0]), (True, True, True)),
    "triclinic": (TRICLINIC, (True, True, True)),
    "left-handed": (TRICLINIC[[1, 0, 2]], (True, True, True)),
    "needle": (NEEDLE, (True, True, True)),
    "flat": (FLAT, (True, True, True)),
    "slab": (TRICLINIC, (True, True, False)),
    "slab across": (TRICLINIC, (False, True, True)),
    "wire": (TRICLINIC, (False, True, False)),
    "wire without other vectors": (np.diag([0.0, 3.0, 0.0]), (False, True, False)),
}
WAYS = {"vesin": neighbors._by_vesin, "cells": neighbors._cell_list}


def structure(case, n=12, seed=0):
    """Random atoms, many of them outside the box."""
    cell, pbc = CASES[case]
    rng = np.random.default_rng(seed)
    pos = rng.normal(scale=3.0, size=(n, 3))
    return Structures(
        rng.integers(1, 9, n),
        pos,
        [0, n],
        cell=None if cell is None else cell[None],
        pbc=np.array([pbc]),
    )


def rows(edges, shifts):
    """Edges as a sorted array of (receiver, sender, shift): for comparison without regard to
    order, counting duplicates.
    """
    sender, receiver = edges.numpy()
    shifts = np.zeros((len(sender), 3), int) if shifts is None else shifts.numpy()
    table = np.column_stack([receiver, sender, shifts])
    return table[np.lexsort(table.T[::-1])]


def reference(s, cutoff, package):
    cell = np.eye(3) if s.cell is None else s.cell[0].copy()
    pbc = s.pbc[0]
    for axis in np.flatnonzero(~pbc):  # what is not periodic needs some cell all the same
        cell[axis] = np.eye(3)[axis] if np.linalg.matrix_rank(cell) < 3 else cell[axis]
    if package == "ase":
        i, j, shift = primitive_neighbor_list("ijS", pbc, cell, s.pos, cutoff)
    else:
        matscipy = pytest.importorskip("matscipy.neighbours")
        atoms = Atoms(s.z, s.pos, cell=cell, pbc=pbc)
        i, j, shift = matscipy.neighbour_list("ijS", atoms, cutoff)
    table = np.column_stack([i, j, shift])
    return table[np.lexsort(table.T[::-1])]


def edge_rows(search, s, cutoff):
    """What `rows` says of the edges that ``search`` finds."""
    batch = s.batch(dtype=torch.float64)
    pbc = batch.pbc if s.cell is not None else None
    return rows(*search(batch.pos, batch.batch, batch.ptr, cutoff, batch.cell, pbc))


@pytest.mark.parametrize("package", ["ase", "matscipy"])
@pytest.mark.parametrize("cutoff", [1.7, 3.4, 5.0])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("way", WAYS)
def test_agrees_with_other_packages(way, case, cutoff, package):
    s = structure(case)
    expected = reference(s, cutoff, package)
    assert len(expected)
    np.testing.assert_array_equal(edge_rows(WAYS[way], s, cutoff), expected)


@pytest.mark.parametrize("way", ["all pairs", *WAYS])
def test_batch_of_free_structures(way):
    parts = [structure("free", n, seed=n) for n in (1, 7, 2, 30, 1)]
    batch = concatenate(parts).batch(dtype=torch.float64)
    if way == "all pairs":
        edges = neighbors._all_pairs(batch.pos, batch.batch, batch.ptr, 3.0, batch.max_atoms)
    else:
        edges, shifts = WAYS[way](batch.pos, batch.batch, batch.ptr, 3.0, None, None)
        assert not shifts.any()
    starts = batch.ptr[:-1].tolist()
    expected = [
        reference(part, 3.0, "ase")[:, :2] + start
        for part, start in zip(parts, starts, strict=True)
    ]
    np.testing.assert_array_equal(rows(edges, None)[:, :2], np.concatenate(expected))
    assert (edges[1].diff() >= 0).all()


def test_mixed_batch_and_edge_vectors():
    """All kinds of periodicity in one batch: both ways give the same edges, by receiver, and
    vectors with the right lengths.
    """
    parts = [structure(case, 5 + k, seed=k) for k, case in enumerate(CASES)]
    batch = concatenate(parts).batch(dtype=torch.float64)
    first, second = (
        search(batch.pos, batch.batch, batch.ptr, 4.0, batch.cell, batch.pbc)
        for search in WAYS.values()
    )
    np.testing.assert_array_equal(rows(*first), rows(*second))
    for edges, _ in (first, second):
        assert (edges[1].diff() >= 0).all()
        assert torch.equal(batch.batch[edges[0]], batch.batch[edges[1]])
    batch = neighbors.attach(batch, 4.0)
    sender, receiver = batch.edge_index
    vector = batch.pos[sender] + batch.edge_shift - batch.pos[receiver]
    length = vector.norm(dim=1)
    assert len(length) == len(rows(*first)) and (length < 4.0).all() and (length > 0).all()
    # every edge has its opposite
    there = torch.column_stack([sender, receiver, (vector * 1e6).round()])
    back = torch.column_stack([receiver, sender, (-vector * 1e6).round()])
    assert {tuple(r) for r in there.tolist()} == {tuple(r) for r in back.tolist()}


def test_images_are_counted_not_dropped():
    """One atom in a cube of 2 Å: within 3.5 Å it has 6 + 12 + 8 images of itself (2, 2.83, 3.46
    Å).
    """
    one = Structures([18], [[0.3, 0.1, -7.0]], [0, 1], cell=2.0 * np.eye(3)[None], pbc=[[True] * 3])
    for search in WAYS.values():
        table = edge_rows(search, one, 3.5)
        assert len(table) == 26
        assert (table[:, :2] == 0).all()
        assert len(np.unique(table[:, 2:], axis=0)) == 26


def test_choice_of_the_way(monkeypatch):
    """Small free structures take all pairs, large ones and periodic ones do not; the edges are the
    same.
    """
    big = structure("free", neighbors.DENSE_LIMIT + 40).batch(dtype=torch.float64)
    edges, shifts = neighbors.neighbor_list(big.pos, big.batch, big.ptr, 2.0)
    dense = neighbors._all_pairs(big.pos, big.batch, big.ptr, 2.0, big.max_atoms)
    assert shifts is None
    np.testing.assert_array_equal(rows(edges, None), rows(dense, None))
    monkeypatch.setattr(neighbors, "_all_pairs", None)
    small = structure("cubic").batch(dtype=torch.float64)
    _, shifts = neighbors.neighbor_list(
        small.pos, small.batch, small.ptr, 3.0, small.cell, small.pbc
    )
    assert shifts.shape[1] == 3


def test_nothing_to_find():
    nothing = structure("cubic")[:0].batch()
    assert neighbors.attach(nothing, 5.0).edge_index.shape == (2, 0)
    empty = structure("free")[:0].batch()
    assert neighbors.attach(empty, 5.0).edge_index.shape == (2, 0)
    alone = Structures([1, 8], [[0.0, 0.0, 0.0], [50.0, 0.0, 0.0]], [0, 1, 2])
    assert neighbors.attach(alone.batch(), 5.0).edge_index.shape == (2, 0)
    for search in WAYS.values():
        assert edge_rows(search, alone, 5.0).shape == (0, 5)
        assert edge_rows(search, structure("cubic", 3)[:0], 5.0).shape == (0, 5)
    wide = Structures([1], np.zeros((1, 3)), [0, 1], cell=20 * np.eye(3)[None], pbc=[[True] * 3])
    batch = neighbors.attach(wide.batch(), 5.0)
    assert batch.edge_index.shape == (2, 0) and batch.edge_shift.shape == (0, 3)


@pytest.mark.parametrize("cutoff", [0.0, -2.0, float("nan")])
def test_cutoff_must_be_positive(cutoff):
    batch = structure("free").batch()
    with pytest.raises(ConfigError, match="cutoff must be positive, got"):
        neighbors.neighbor_list(batch.pos, batch.batch, batch.ptr, cutoff)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("pbc", [(True, True, True), (True, True, False)])
def test_cell_without_volume_names_the_structure(way, pbc):
    flat = TRICLINIC.copy()
    flat[1] = 2 * flat[0]  # no area either
    cells = np.stack([TRICLINIC, flat])
    bad = Structures(
        [1, 1], np.zeros((2, 3)), [0, 1, 2], cell=cells, pbc=[(True, True, True), pbc]
    ).batch(dtype=torch.float64)
    with pytest.raises(
        DataError, match="structure 1 of the batch is periodic but its cell has no volume"
    ):
        WAYS[way](bad.pos, bad.batch, bad.ptr, 3.0, bad.cell, bad.pbc)


def test_attach_keeps_edges_of_the_same_cutoff():
    batch = neighbors.attach(structure("cubic").batch(), 3.0)
    edges = batch.edge_index
    assert neighbors.attach(batch, 3.0).edge_index is edges
    assert neighbors.attach(batch, 2.0).edge_index.shape[1] < edges.shape[1]


def test_float32_positions():
    s = structure("triclinic")
    batch = s.batch(dtype=torch.float32)
    first, second = (
        search(batch.pos, batch.batch, batch.ptr, 3.4, batch.cell, batch.pbc)
        for search in WAYS.values()
    )
    np.testing.assert_array_equal(rows(*first), rows(*second))


@pytest.mark.parametrize("names", [["triclinic"], ["triclinic", "cubic"]])
def test_shifts_stay_exact_within_autocast(names):
    """A matrix product would round them to bfloat16, by hundredths of an Å."""
    batch = concatenate([structure(case) for case in names]).batch(dtype=torch.float32)
    plain = neighbors.attach(copy.copy(batch), 3.4)
    with torch.autocast("cpu", torch.bfloat16):
        within = neighbors.attach(copy.copy(batch), 3.4)
    assert within.edge_shift.dtype == torch.float32
    assert torch.equal(within.edge_shift, plain.edge_shift)
    _, shifts = neighbors.neighbor_list(
        batch.pos, batch.batch, batch.ptr, 3.4, batch.cell, batch.pbc
    )
    cell = batch.cell.double()[batch.batch[plain.edge_index[1]]]
    exact = torch.einsum("ea,eab->eb", shifts.double(), cell)
    torch.testing.assert_close(plain.edge_shift.double(), exact, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("threads", ["1", "2"])
def test_order_of_edges(threads, monkeypatch):
    """By receiver, then by sender, in structures on both sides of 2¹⁶ atoms, however many threads
    vesin takes; images of a pair come in the same order each time.
    """
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    rng = np.random.default_rng(0)
    large = Structures(
        np.ones(70_000, int),
        rng.uniform(0, 90.0, (70_000, 3)),
        [0, 70_000],
        cell=90.0 * np.eye(3)[None],
        pbc=[[True] * 3],
    )
    batch = concatenate([structure("needle"), large]).batch()
    arguments = (batch.pos, batch.batch, batch.ptr, 2.0, batch.cell, batch.pbc)
    edges, shifts = neighbors.neighbor_list(*arguments)
    sender, receiver = edges
    by_receiver = receiver.diff() > 0
    by_sender = (receiver.diff() == 0) & (sender.diff() >= 0)
    assert (by_receiver | by_sender).all()
    assert not shifts.dtype.is_floating_point
    again, same = neighbors.neighbor_list(*arguments)
    assert torch.equal(edges, again) and torch.equal(shifts, same)


def test_overlaps_are_named():
    good = [structure("cubic", 4, seed=k) for k in range(3)]
    bad = Structures(
        [6, 1, 8],
        [[0, 0, 0], [2, 2, 2.0], [5.95, 0, 6.0]],
        [0, 3],
        cell=6 * np.eye(3)[None],
        pbc=[[True] * 3],
    )
    neighbors.check_overlaps(concatenate(good))
    joined = concatenate([*good, bad, good[0]])
    joined.info["name"] = "heap"
    for chunk in (20_000, 1):
        with pytest.raises(
            DataError, match=r"heap: atoms 0 and 2 of structure 3 are closer than 0.1 Å"
        ):
            neighbors.check_overlaps(joined, chunk_atoms=chunk)
    neighbors.check_overlaps(joined, limit=0.01)
    neighbors.check_overlaps(joined[:0])


@pytest.mark.parametrize("apart", [0.099, 0.101, 0.5, 1.2])
@pytest.mark.parametrize("limit", [0.1, 1.0])
def test_overlaps_end_at_the_limit(apart, limit):
    pos = [[0, 0, 0], [apart, 0, 0], [3, 3, 3.0]]
    free = Structures([6, 1, 8], pos, [0, 3])
    box = Structures([6, 1, 8], pos, [0, 3], cell=7 * np.eye(3)[None], pbc=[[True] * 3])
    for structures in (free, box):
        if apart < limit:
            with pytest.raises(DataError, match=f"atoms 0 and 1 .* closer than {limit} Å"):
                neighbors.check_overlaps(structures, limit=limit)
        else:
            neighbors.check_overlaps(structures, limit=limit)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_gpu_finds_the_same():
    parts = [structure(case, 40, seed=k) for k, case in enumerate(CASES)]
    batch = concatenate(parts).batch(dtype=torch.float64)
    arguments = (batch.pos, batch.batch, batch.ptr, 4.0, batch.cell, batch.pbc)
    on_gpu = [a.cuda() if isinstance(a, torch.Tensor) else a for a in arguments]
    edges, shifts = neighbors.neighbor_list(*on_gpu)
    expected = rows(*neighbors.neighbor_list(*arguments))
    np.testing.assert_array_equal(rows(edges.cpu(), shifts.cpu()), expected)
