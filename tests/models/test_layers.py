"""Parts that networks share: what atoms start with, and neighbour searches that stop too early."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from tiny import one_line

from potkit import models
from potkit.errors import DataError
from potkit.models.layers import AtomEmbedding, first_neighbors
from potkit.structures.store import Structures
from potkit.testing import contract

SIZES = {
    "schnet": dict(hidden=16, filters=12, layers=2, radial=10),
    "egnn": dict(hidden=16, layers=2),
    "torchmd_et": dict(hidden=16, layers=2, heads=4, radial=8),
}
AMMONIUM = Structures(
    [7, 1, 1, 1, 1],
    0.6 * np.array([[0, 0, 0], [1, 1, 1], [-1, -1, 1], [-1, 1, -1], [1, -1, -1]], float),
    [0, 5],
    charge=[1],
)


def batch_with(formal_charge):
    batch = AMMONIUM.batch(dtype=torch.float64)
    batch.formal_charge = torch.tensor(formal_charge)
    return batch


# --- formal charges


@pytest.mark.parametrize("name", SIZES)
def test_a_network_with_formal_charges_tells_ions_from_atoms(name):
    model = contract.prepared(
        models.build(name, "denoise-paper", seed=0, formal_charges=True, **SIZES[name])
    )
    with torch.no_grad():
        energies = [
            model(batch_with(charges), ("energy",)).energy.item()
            for charges in ([0] * 5, [1, 0, 0, 0, 0], [0, 1, 0, 0, 0], [-1, 0, 0, 0, 0])
        ]
    for a, b in itertools.combinations(energies, 2):
        assert abs(a - b) > 1e-6 * abs(a)


@pytest.mark.parametrize("name", SIZES)
def test_without_the_option_formal_charges_change_nothing(name):
    model = models.build(name, "denoise-paper", seed=0, **SIZES[name]).double()
    assert not model.backbone.formal_charges and model.backbone.embedding.ion is None
    neutral, charged = batch_with([0] * 5), batch_with([1, 0, 0, 0, 0])
    assert torch.equal(model(neutral).energy, model(charged).energy)
    with_ions = models.build(name, "denoise-paper", formal_charges=True, **SIZES[name])
    rows = with_ions.n_parameters() - model.n_parameters()
    embeddings = 2 if name == "torchmd_et" else 1  # of the atom and of its neighbours
    assert rows == embeddings * 119 * 4 * 16


def test_every_pair_of_element_and_charge_is_a_type_of_its_own():
    embedding = AtomEmbedding(8, formal_charges=True)
    levels = (-2, -1, 0, 1, 2)
    pairs = [(z, q) for z in range(119) for q in levels]
    z, charge = torch.tensor(pairs).T
    graph = contract.prepared(models.build("schnet", hidden=8, filters=8)).graph(
        batch_with([0] * 5), AMMONIUM.batch(dtype=torch.float64).pos
    )
    graph = graph._replace(z=z, formal_charge=charge, mask=None, extra=None)
    h = embedding(graph)
    assert len(torch.unique(h, dim=0)) == len(pairs)
    neutral = charge == 0
    assert torch.equal(h[neutral], embedding.element.weight)


def test_what_is_missing_or_unknown_is_said_in_one_line():
    model = models.build("egnn", "denoise-paper", formal_charges=True, **SIZES["egnn"]).double()
    with pytest.raises(DataError) as caught:
        model(AMMONIUM.batch(dtype=torch.float64))
    assert "reads formal charges, which the data does not have" in one_line(caught.value)
    with pytest.raises(DataError) as caught:
        model(batch_with([0, 0, 3, 0, 0]))
    message = "atom 2 of the batch is H with formal charge +3; the network knows -2 to +2"
    assert message in one_line(caught.value)


# --- total charges


@pytest.mark.parametrize("name", ["schnet", "painn"])
def test_a_total_charge_without_an_embedding_is_named(name):
    model = models.build(name, seed=0, charge=True).double()
    batch = AMMONIUM[[0, 0]].batch(dtype=torch.float64)
    for known in (10, -10):
        batch.charge = torch.tensor([1.0, known])
        assert bool(model(batch).energy.isfinite().all())
    for beyond in (11, -11):
        batch.charge = torch.tensor([1.0, beyond])
        with pytest.raises(DataError) as caught:
            model(batch)
        message = f"structure 1 has charge {beyond:+d}; the network knows -10 to +10"
        assert one_line(caught.value) == message
    assert bool(models.build(name, seed=0).double()(batch).energy.isfinite().all())


# --- neighbour searches


@pytest.mark.parametrize("sending", [False, True])
@pytest.mark.parametrize("limit", [3, 6, 20])
def test_first_neighbors_go_by_index_whatever_the_order_of_edges(limit, sending):
    """Against a search written out atom by atom, on edges in any order."""
    rng = np.random.default_rng(0)
    n = 12
    near = np.triu(rng.random((n, n)) < 0.7, 1)
    near |= near.T
    sender, receiver = (torch.from_numpy(x) for x in np.nonzero(near))
    order = torch.from_numpy(rng.permutation(len(sender)))
    graph = contract.prepared(models.build("schnet", hidden=8, filters=8)).graph(
        batch_with([0] * 5), AMMONIUM.batch(dtype=torch.float64).pos
    )
    graph = graph._replace(
        z=torch.ones(n, dtype=torch.long), sender=sender[order], receiver=receiver[order]
    )
    kept, own = first_neighbors(graph, limit, sending)
    ends = (graph.receiver, graph.sender)
    owner, other = ends[::-1] if sending else ends
    for i in range(n):
        first = [j for j in range(n) if j == i or near[i, j]][:limit]
        found = sorted(other[kept & (owner == i)].tolist())
        assert found == [j for j in first if j != i]
        assert bool(own[i]) == (i in first)
