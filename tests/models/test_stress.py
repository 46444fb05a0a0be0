"""Stress, the derivative of the energy by strain, against differences and Lennard-Jones."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase.build import bulk
from ase.calculators.lj import LennardJones
from torch import nn

import potkit
from potkit import kernels, models
from potkit.errors import ConfigError
from potkit.kernels import replacements
from potkit.models import adapt
from potkit.models.layers import sum_over
from potkit.structures.store import Structures
from potkit.testing import contract


def gradient(name: str, **options) -> models.Potential:
    return models.build(name, vector="gradient", forces="gradient", **options)


# -- against finite differences --------------------------------------------------------------------
@pytest.mark.parametrize("name", models.names())
def test_every_network_with_derivative_forces(name):
    """Skewed box, slab, wire and a free structure: in one batch, and each alone."""
    report = contract.check_model(gradient(name), checks=["stress"])
    assert report.claimed.all() and (report.residual < 1e-6).all()
    assert set(report.structures) == {"free", "periodic"}


@pytest.mark.parametrize("name", ["schnet", "egnn", "torchmd_et"])
def test_blocks_have_the_same_stress(name, monkeypatch):
    """What stands in for large batches, here for a small one, in float64."""
    monkeypatch.setattr(replacements, "pays", lambda graph, width: True)
    monkeypatch.setattr(replacements, "SCARCE", 0)
    assert (contract.check_model(gradient(name), checks=["stress"]).residual < 1e-6).all()


@pytest.mark.parametrize("name", ["schnet", "egnn", "torchmd_et"])
def test_compiled_kernels_have_the_same_stress(name):
    """They are there in float32 only: as near as that is."""
    model = contract.prepared(gradient(name), torch.float32)
    batch = contract.examples(model.cutoff, periodic=True).batch(dtype=torch.float32)
    with torch.no_grad():
        plain = model(batch, ("stress",)).stress
        with kernels.used():
            compiled = model(batch, ("stress",)).stress
    held = plain.isfinite()
    assert torch.equal(held, compiled.isfinite()) and held.sum() == 27
    assert (plain - compiled)[held].abs().max() < 1e-4 * plain[held].abs().max()


def test_stress_changes_neither_energy_nor_forces():
    model = contract.prepared(gradient("painn"))
    batch = contract.examples(model.cutoff, periodic=True).batch(dtype=torch.float64)
    with torch.no_grad():
        without = model(batch, ("energy", "forces"))
        both = model(batch, ("energy", "forces", "stress"))
    assert torch.equal(without.energy, both.energy) and torch.equal(without.forces, both.forces)
    assert without.stress is None and torch.equal(both.stress[:3], both.stress[:3].mT)
    assert both.stress[3].isnan().all()  # the free one


def test_a_batch_that_has_its_edges_and_inference_mode():
    from potkit.structures.neighbors import attach

    model = contract.prepared(gradient("schnet"))
    batch = contract.examples(model.cutoff, periodic=True).batch(dtype=torch.float64)
    expected = model(batch, ("stress",)).stress[:3]
    batch = attach(batch, model.cutoff)
    torch.testing.assert_close(model(batch, ("stress",)).stress[:3], expected)
    with torch.inference_mode():
        batch = contract.examples(model.cutoff, periodic=True).batch(dtype=torch.float64)
        torch.testing.assert_close(model(batch, ("stress",)).stress[:3], expected)


def test_references_and_scale():
    model = contract.prepared(gradient("egnn"))
    batch = contract.examples(model.cutoff, periodic=True).batch(dtype=torch.float64)
    plain = model(batch, ("stress",)).stress[:3]
    model.set_references({1: -13.6, 6: -1000.0, 7: -1.0, 8: -2.0}, scale=3.0, shift=5.0)
    torch.testing.assert_close(model(batch, ("stress",)).stress[:3], 3 * plain)


def test_direct_forces_have_none():
    model = models.build("gns", forces="vector")
    batch = contract.examples(model.cutoff, periodic=True).batch()
    with pytest.raises(ConfigError, match="derivative of the energy by strain") as caught:
        model(batch, ("energy", "stress"))
    assert len(str(caught.value).splitlines()) == 1


def test_wrapped_positions_are_strained_with_their_box():
    model = gradient("gns", faults=("wrapped-positions",))
    report = contract.check_model(model, checks=["stress"])
    assert (report.residual < 1e-6).all()


# -- against ASE -----------------------------------------------------------------------------------
class Pairs(nn.Module):
    """Lennard-Jones cut off and shifted as ASE's, from positions and shifts or from distances."""

    def __init__(self, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.epsilon = nn.Parameter(torch.tensor(0.4, dtype=torch.float64))

    def pairs(self, distance, receiver, n):
        inverse = (2.3 / distance) ** 6
        at_cutoff = (2.3 / self.cutoff) ** 6
        energy = inverse**2 - inverse - (at_cutoff**2 - at_cutoff)
        return sum_over(2 * self.epsilon * energy, receiver, n)  # half of 4 ε: each pair twice


class FromDistances(Pairs):
    def forward(self, z, edge_index, edge_weight):
        return self.pairs(edge_weight, edge_index[1], len(z))


class FromPositions(Pairs):
    def forward(self, z, pos, edge_index, edge_shift):
        sender, receiver = edge_index
        vector = pos[sender] - pos[receiver]
        vector = vector if edge_shift is None else vector + edge_shift
        return self.pairs(vector.norm(dim=1), receiver, len(z))


@pytest.mark.parametrize("kind", [FromDistances, FromPositions])
def test_lennard_jones_against_ase(kind):
    atoms = bulk("Cu", cubic=True)
    rng = np.random.default_rng(0)
    atoms.set_cell(atoms.cell @ (np.eye(3) + 0.05 * rng.normal(size=(3, 3))), scale_atoms=True)
    atoms.positions += 0.1 * rng.normal(size=(4, 3))
    atoms.calc = LennardJones(sigma=2.3, epsilon=0.4, rc=5.0)
    ours = atoms.copy()
    ours.calc = potkit.calculator(adapt(kind(5.0), energy=lambda out: out))
    assert ours.get_potential_energy() == pytest.approx(atoms.get_potential_energy(), rel=1e-10)
    assert abs(atoms.get_stress()).max() > 1e-2
    np.testing.assert_allclose(ours.get_stress(), atoms.get_stress(), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(ours.get_forces(), atoms.get_forces(), rtol=1e-8, atol=1e-10)


def test_an_adapted_network_passes_the_contract():
    model = adapt(FromPositions(5.0), energy=lambda out: out)
    boxes = Structures.from_ase([bulk("Cu", cubic=True), bulk("Cu")])
    boxes.pos = boxes.pos + 0.1 * np.random.default_rng(1).normal(size=boxes.pos.shape)
    report = contract.check_model(model, boxes, checks=["stress"])
    assert (report.residual < 1e-6).all()
