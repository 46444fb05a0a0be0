"""Networks recorded as TorchScript: the same numbers at any size, and a line for what cannot be."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch_geometric.nn import SchNet

import potkit
from potkit import models
from potkit.errors import ConfigError
from potkit.models import CurrentGraph, adapt, traced
from potkit.testing.contract import examples

REFERENCES = {1: -13.0, 6: -1000.0, 7: -1500.0, 8: -2000.0}  # eV


def network(name, **options):
    model = potkit.build(name, **{"seed": 0, **options}).double().eval()
    return model.set_references(REFERENCES, 2.0)


def of_sizes(cutoff):
    return [examples(cutoff), examples(cutoff, periodic=True, seed=1), examples(cutoff)[:1]]


@pytest.mark.parametrize("name", potkit.models.names())
def test_every_network_is_recorded_and_answers_alike_at_other_sizes(name):
    """`trace` compares; here with structures it has not seen, and after the file was reopened."""
    model = network(name)
    recorded = traced.trace(model, of_sizes(model.cutoff))
    batch = examples(model.cutoff, periodic=True, seed=5).batch(dtype=torch.float64)
    expected = model(batch, ("energy", "energies", "forces"))
    inputs = traced.edges_of(batch, model.cutoff)
    energies, forces = recorded(*inputs)
    if model.forces_mode == "gradient":
        assert forces.shape == (0, 3)
        forces = -torch.autograd.grad(energies.sum(), inputs[1])[0]
    torch.testing.assert_close(energies, expected.energies, rtol=0, atol=1e-9)
    torch.testing.assert_close(forces, expected.forces, rtol=0, atol=1e-9)
    total = torch.zeros(4, dtype=torch.float64).index_add(0, batch.batch, energies)
    torch.testing.assert_close(total, expected.energy, rtol=0, atol=1e-9)
    # torch's own operations only: nothing of an extension's, nothing of Python's
    kinds = {node.kind().split("::")[0] for node in recorded.inlined_graph.nodes()}
    assert kinds <= {"aten", "prim"}
    assert not recorded.inlined_graph.findAllNodes("prim::PythonOp")


class Pairs(nn.Module):
    """A network of a user's own, with an energy per atom."""

    cutoff = 4.0

    def __init__(self):
        super().__init__()
        self.element = nn.Embedding(100, 4)

    def forward(self, z, pos, batch, edge_index, edge_weight):
        sender, receiver = edge_index
        pairs = (self.element(z)[sender] * self.element(z)[receiver]).sum(1)
        terms = pairs * models.layers.polynomial_envelope(edge_weight, self.cutoff)
        return models.layers.sum_over(terms, receiver, z.shape[0])


def test_an_adapted_network_is_recorded_too():
    model = adapt(Pairs(), energy="answer", max_element=99).double()
    traced.trace(model, of_sizes(4.0))
    assert traced.reach(model) == 4.0


class CountsAtoms(nn.Module):
    """Does something else with many atoms than with few, as Python sees them."""

    cutoff = 4.0

    def forward(self, z, pos, batch, edge_index, edge_weight):
        terms = torch.exp(-edge_weight)
        if len(z) > 10:
            terms = 2 * terms
        return torch.zeros(len(z), dtype=pos.dtype).index_add(0, edge_index[1], terms)


@pytest.mark.filterwarnings("ignore")
def test_a_network_that_looks_at_sizes_is_refused():
    model = adapt(CountsAtoms(), energy="answer", max_element=99)
    model.backbone.register_parameter("unused", nn.Parameter(torch.zeros(1)))
    with pytest.raises(ConfigError, match=r"depends on the structure|at other sizes") as raised:
        traced.trace(model.double(), of_sizes(4.0))
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.filterwarnings("ignore")
def test_one_energy_per_structure_is_no_sum_over_atoms():
    schnet = SchNet(8, 8, 1, 6, 4.0, interaction_graph=CurrentGraph())
    with pytest.raises(ConfigError, match="says one energy per structure"):
        traced.check_traceable(adapt(schnet, energy="answer", max_element=99))
    traced.trace(adapt(schnet, features="lin1", max_element=99).double(), of_sizes(4.0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(name="egnn", preset="denoise-paper", faithful=True), "no sum over atoms"),
        (dict(name="gns", faults=("wrapped-positions",)), "wrapped-positions"),
        (dict(name="schnet", faults=("neighbours-32",)), "neighbours-32"),
        (dict(name="schnet", charge=True), "total charges"),
        (dict(name="schnet", formal_charges=True), "formal charges"),
    ],
)
def test_what_needs_more_than_neighbours_is_named(options, message):
    with pytest.raises(ConfigError, match=message):
        traced.check_traceable(potkit.build(**options))


@pytest.mark.parametrize(
    ("name", "layers", "rounds"), [("egnn", 1, 1), ("egnn", 3, 3), ("torchmd_et", 2, 3)]
)
def test_reach_is_the_cutoff_times_the_rounds_of_messages(name, layers, rounds):
    """ET embeds neighbours once before its layers."""
    model = network(name, layers=layers)
    assert traced.reach(model) == pytest.approx(rounds * model.cutoff)


def test_shares_of_the_energy_add_up_with_a_shift():
    model = network("painn").set_references(REFERENCES, 2.0, shift=7.0)
    batch = examples(model.cutoff).batch(dtype=torch.float64)
    prediction = model(batch, ("energy", "energies"))
    total = torch.zeros(3, dtype=torch.float64).index_add(0, batch.batch, prediction.energies)
    torch.testing.assert_close(total, prediction.energy, rtol=0, atol=1e-9)
    without = network("painn")(batch, ("energies",)).energies
    counts = torch.bincount(batch.batch)
    torch.testing.assert_close(prediction.energies - without, (7.0 / counts)[batch.batch].double())
