"""The contract suite applied to every registered network, and the suite itself applied to
networks with known faults.
"""

from __future__ import annotations

import importlib

import numpy as np
import pytest
import torch
from torch import nn

from potkit import models
from potkit.errors import ConfigError, DataError
from potkit.models import Features, Potential
from potkit.models.layers import polynomial_envelope, sum_over
from potkit.structures.store import Structures
from potkit.testing import contract

PRESETS = [(name, preset) for name in models.names() for preset in models.presets(name)]
QUICK = (
    "shapes",
    "rotation",
    "reflection",
    "permutation",
    "batch_independence",
    "supercell",
    "cutoff_continuity",
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# -- every network -------------------------------------------------------------------------------
@pytest.mark.parametrize("name", models.names())
def test_contract(name):
    report = contract.check_model(models.build(name))
    assert set(report.structures) == {"free", "periodic"}
    assert set(report.check) == set(contract.CHECKS)
    assert report[report.claimed].passed.all()


@pytest.mark.parametrize("name", models.names())
def test_contract_with_derivative_forces(name):
    """Whatever a preset says: −∂E/∂x of every network is the derivative of its energy, and can
    itself be differentiated.
    """
    model = models.build(name, vector="gradient", forces="gradient")
    report = contract.check_model(
        model, checks=["finite_differences", "second_derivatives", "isolated_atom"]
    )
    assert report.claimed.all()


@pytest.mark.slow
@pytest.mark.parametrize("name, preset", [p for p in PRESETS if p[1] != "small"])
def test_contract_of_published_sizes(name, preset):
    report = contract.check_model(models.build(name, preset), checks=QUICK)
    assert report[report.claimed].passed.all()


@pytest.mark.parametrize("name, preset", PRESETS)
def test_docstring_counts_the_parameters(name, preset):
    module = importlib.import_module("potkit.models." + models.MODELS[name].split(":")[0])
    count = f"{models.build(name, preset).n_parameters():,}".replace(",", " ")
    assert f"{preset} {count}" in " ".join(module.__doc__.split())


@pytest.mark.parametrize("name", models.names())
def test_float32_is_close_to_float64(name):
    model = models.build(name)
    structures = contract.examples(model.cutoff, periodic=True)
    exact = contract.evaluate(contract.prepared(model), structures)
    rounded = contract.evaluate(contract.prepared(model, torch.float32), structures)
    for quantity, value in exact.items():
        assert (rounded[quantity] - value).abs().max() < 1e-3 * value.abs().max() + 1e-6


@pytest.mark.parametrize("name", models.names())
def test_every_parameter_of_a_used_part_learns(name):
    """The loss reaches all parameters of the parts that `Potential.parts` names, flags included."""
    model = contract.prepared(models.build(name))
    batch = contract.examples(model.cutoff).batch(dtype=torch.float64)
    batch.mask[::2] = 1
    prediction = model(batch, ("energy", "vector"))
    (prediction.energy.square().sum() + prediction.vector.square().sum()).backward()
    used = model.parts(("energy", "vector"))
    silent = [
        k
        for k, p in model.named_parameters()
        if k.split(".")[0] in used and (p.grad is None or not bool((p.grad != 0).any()))
    ]
    assert not silent


@pytest.mark.parametrize("name", models.names())
def test_flagged_atoms_are_seen(name):
    model = contract.prepared(models.build(name))
    batch = contract.examples(model.cutoff).batch(dtype=torch.float64)
    with torch.no_grad():
        plain = model(batch).energy
        batch.mask[0] = 1
        flagged = model(batch).energy
        batch.mask = None
        without = model(batch).energy
    assert plain[0] != flagged[0]
    assert torch.equal(plain[1:], flagged[1:])
    assert torch.equal(plain, without)


def test_charge_embedding():
    for name in models.names():
        model = contract.prepared(models.build(name, charge=True))
        structures = contract.examples(model.cutoff)
        neutral = contract.evaluate(model, structures)["energy"]
        structures.charge[1] = -1
        charged = contract.evaluate(model, structures)["energy"]
        assert charged[1] != neutral[1] and torch.equal(charged[[0, 2]], neutral[[0, 2]])


@pytest.mark.parametrize("periodic", [False, True])
@pytest.mark.parametrize("name", models.names())
def test_empty_batch(name, periodic):
    """A filter may leave nothing: the answer is nothing, in the right shapes.

    Its derivatives are zero.
    """
    model = contract.prepared(models.build(name), torch.float32)
    batch = contract.examples(model.cutoff, periodic=periodic)[:0].batch()
    prediction = model(batch, ("energy", "vector", "forces"))
    energy, vector, forces = prediction.energy, prediction.vector, prediction.forces
    assert energy.shape == (0,)
    assert vector.shape == forces.shape == (0, 3)
    loss = energy.sum() + vector.square().sum() + forces.square().sum()
    loss.backward()
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


@pytest.mark.parametrize("name", models.names())
def test_box_smaller_than_the_cutoff(name):
    """One water molecule in a cube of 3.2 Å sees its own images: per molecule the same energy as
    eight of them in a cube twice as wide.
    """
    model = contract.prepared(models.build(name))
    water = np.array([[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.76, 0.59, 0.0]])
    corners = 3.2 * np.array([[i, j, k] for i in (0, 1) for j in (0, 1) for k in (0, 1)])
    pos = np.concatenate([water, (corners[:, None] + water).reshape(-1, 3)])
    boxes = Structures(
        z=[8, 1, 1] * 9,
        pos=pos,
        ptr=[0, 3, 27],
        cell=[3.2 * np.eye(3), 6.4 * np.eye(3)],
        pbc=[[True] * 3] * 2,
    )
    found = contract.evaluate(model, boxes)
    assert model.cutoff > 3.2 and abs(8 * found["energy"][0] - found["energy"][1]) < 1e-9 * abs(
        found["energy"][1]
    )
    assert (found["forces"][3:].reshape(8, 3, 3) - found["forces"][:3]).abs().max() < 1e-9


# -- bad input -----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", models.names())
def test_bad_options_are_named(name):
    with pytest.raises(ConfigError, match="unknown preset 'huge' of " + name):
        models.build(name, "huge")
    with pytest.raises(ConfigError, match=name + " has no option 'colour'"):
        models.build(name, colour=3)
    with pytest.raises(ConfigError, match="cutoff must be positive, got -1"):
        models.build(name, cutoff=-1.0)
    with pytest.raises(ConfigError, match="layers"):
        models.build(name, layers=0)


@pytest.mark.parametrize(
    ("name", "option", "largest"),
    [("se3_transformer", "max_degree", 6), ("nequip", "max_degree", 12), ("forcenet", "max_n", 13)],
)
def test_degrees_beyond_the_spherical_harmonics_there_are(name, option, largest):
    with pytest.raises(ConfigError, match=f"has {option} up to {largest}, got {largest + 1}"):
        models.build(name, **{option: largest + 1})
    if name != "nequip":  # whose couplings up to there take minutes
        model = models.build(name, **{option: largest, "layers": 1})
        batch = contract.examples(model.cutoff).batch()
        assert bool(model(batch, ("energy",)).energy.isfinite().all())


def test_outputs_that_there_are_not():
    model = models.build("egnn", hidden=8, layers=1)
    batch = contract.examples(model.cutoff).batch()
    known = "there are energy, vector, forces, noise, displacement, stress, energies"
    with pytest.raises(ConfigError, match=f"must be a list of names, got 'energy'; {known}$"):
        model(batch, "energy")
    for wrong in (["energy", "force"], [None]):
        with pytest.raises(ConfigError, match=f"no output {wrong[-1]!r}; {known}$"):
            model(batch, wrong)


def test_unknown_names():
    with pytest.raises(ConfigError, match=r"unknown model 'egnm'; there are .*egnn"):
        models.build("egnm")
    with pytest.raises(ConfigError, match="unknown vector read-out 'up'"):
        models.build("egnn", vector="up")
    with pytest.raises(ConfigError, match="needs coordinate updates, which SchNet does not make"):
        models.build("schnet", vector="coordinate")
    with pytest.raises(ConfigError, match="needs equivariant features, which EGNN does not have"):
        models.build("egnn", vector="gated")
    with pytest.raises(ConfigError, match="unknown check 'taste'; there are shapes"):
        contract.check_model(models.build("egnn"), checks=["taste"])


@pytest.mark.parametrize("z", [0, 119])
def test_impossible_element(z):
    with pytest.raises(
        DataError, match=f"structure 1: atomic number {z} of atom 0 is not in 1…118"
    ):
        Structures([1, z], [[0.0, 0.0, 0.0], [0.0, 0.0, 1.0]], [0, 1, 2])


# -- the suite finds faults ----------------------------------------------------------------------
class Toy(nn.Module):
    """A little message-passing network that is right, but for the ``fault`` it is told to have."""

    n_features, n_vector_features, gives_displacement, cutoff = 4, 0, False, 4.0

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.element, self.radial = nn.Embedding(119, 4), nn.Linear(2, 4)

    def forward(self, graph):
        sender, receiver = graph.sender, graph.receiver
        vector, distance = graph.vector, graph.distance
        n = len(graph.z)
        if self.fault == "periodic_image":
            vector = graph.pos[sender] - graph.pos[receiver]
            distance = (vector.square().sum(1) + 0.01).sqrt()
        if self.fault == "stress" and graph.shift is not None:
            vector = graph.pos[sender] - graph.pos[receiver] + graph.shift.detach()
            distance = vector.square().sum(1).sqrt()
        if self.fault == "finite_differences":
            distance = distance.detach() * 0.9 + 0.1 * distance
        if self.fault == "second_derivatives":
            distance = _NoSecondDerivative.apply(distance)
        envelope = polynomial_envelope(distance, self.cutoff)
        if self.fault == "cutoff_continuity":
            envelope = envelope + 0.01
        m = (
            torch.tanh(self.radial(torch.stack([distance, distance**2], -1)))
            * self.element(graph.z)[sender]
        )
        h = sum_over(m * envelope[:, None], receiver, n) + self.element(graph.z)
        h = h + 0.1 * torch.tanh(h)
        if self.fault == "translation":
            h = h + 0.1 * graph.pos[:, :1]
        if self.fault == "rotation":
            h = h + 0.1 * sum_over(vector[:, :1] ** 2 * envelope[:, None], receiver, n)
        # a triple product of three different weighted sums of directions
        if self.fault == "reflection":
            parts = [
                vector * (envelope * torch.cos(k * distance) * graph.z[sender])[:, None]
                for k in range(3)
            ]
            sums = [sum_over(part, receiver, n) for part in parts]
            h = h + (torch.linalg.cross(sums[0], sums[1]) * sums[2]).sum(1, keepdim=True)
        if self.fault == "permutation":
            h = h * (1 + 0.01 * torch.arange(n)[:, None])
        if self.fault == "batch_independence":
            h = h - h.mean(0) if n else h
        if self.fault in ("extensivity", "supercell"):
            counts = sum_over(torch.ones_like(h), graph.batch, graph.n_structures)
            h = h / counts[graph.batch]
        if self.fault == "isolated_atom":
            count = sum_over(torch.ones_like(distance), receiver, n)
            h = h / count[:, None]
        if self.fault == "input_not_mutated":
            graph.z[:1] = 1
        if self.fault == "shapes":
            h = h * torch.inf
        return Features(h)


class _NoSecondDerivative(torch.autograd.Function):
    """The identity with a right first and a wrong second derivative, as hand-written backward
    functions often have.
    """

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * 0.5 + gradient.detach() * 0.5


def test_right_toy_passes():
    report = contract.check_model(Toy())
    assert report.passed.all()


@pytest.mark.parametrize("fault", contract.CHECKS)
def test_each_check_finds_its_fault(fault):
    with pytest.raises(AssertionError, match=f"Toy fails .*{fault}"):
        contract.check_model(Toy(fault), checks=[fault])


def test_lacking_symmetries_are_measured_not_asserted():
    toy = Toy("rotation")
    toy.symmetries = {"translation", "permutation"}
    report = contract.check_model(toy)
    turned = report[report.check == "rotation"]
    assert not turned.claimed.any() and (turned.residual > 1e-4).all()
    report = contract.check_model(Toy("rotation"), measure=["rotation", "reflection"])
    assert set(report[~report.passed].check) == {"rotation", "reflection"}


def test_check_model_leaves_the_model_alone():
    model = (
        models.build("egnn", hidden=16, layers=2)
        .set_references({1: -13.6, 8: -2000.0}, scale=2.0)
        .train()
    )
    before = {k: v.clone() for k, v in model.state_dict().items()}
    contract.check_model(model, checks=["second_derivatives", "isolated_atom"])
    after = model.state_dict()
    assert model.training and all(
        torch.equal(v, after[k]) and v.dtype == after[k].dtype for k, v in before.items()
    )
    assert all(p.grad is None for p in model.parameters())


def test_given_structures_and_direct_forces():
    given = Structures(
        [8, 1, 1, 6, 8],
        [[0, 0, 0], [0, 0, 0.96], [0.93, 0, -0.2], [0, 0, 0], [0, 0, 1.2]],
        [0, 3, 5],
    )
    report = contract.check_model(Potential(Toy(), vector="direct", forces="vector"), given)
    assert set(report.structures) == {"given"}
    unclaimed = report[~report.claimed]
    assert set(zip(unclaimed.check, unclaimed.quantity, strict=True)) == {
        (check, quantity)
        for check in ("rotation", "reflection")
        for quantity in ("forces", "vector")
    } | {("finite_differences", "forces")}
