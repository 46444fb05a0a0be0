"""Foreign networks behind the adapter: torch-geometric's SchNet, a module that takes a whole
batch, torchmd-net's ET.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch_geometric.nn import SchNet

from potkit import models
from potkit.errors import CheckpointError, ConfigError
from potkit.models import CurrentGraph, Potential, adapt
from potkit.objectives import Denoise
from potkit.testing import contract
from potkit.training import calculator as calculator_of
from potkit.training import checkpoints
from potkit.training.config import TrainConfig
from potkit.training.loop import pretrain

KNOWN = 99  # elements torch-geometric's SchNet has an embedding for


def foreign(hidden=16):
    torch.manual_seed(0)
    return SchNet(hidden, hidden, 2, 12, 5.0, interaction_graph=CurrentGraph())


OWN = dict(energy=lambda out: out)


@pytest.mark.parametrize("options", [dict(features="lin1"), OWN, OWN | dict(features="lin1")])
def test_foreign_schnet_keeps_the_contract(options):
    model = adapt(foreign(), max_element=KNOWN, **options)
    assert isinstance(model, Potential)
    report = contract.check_model(model)
    assert set(report.structures) == {"free", "periodic"} and report.claimed.all()


def test_energy_is_the_networks_own():
    """With ``energy`` the total is what the network says; with ``features`` it is our head on
    what enters its layer ``lin1``.
    """
    module = foreign()
    batch = contract.examples(5.0, periodic=True).batch()
    model = adapt(module, energy=lambda out: out)
    graph = model.graph(batch, batch.pos)
    direct = copy.deepcopy(module)
    direct.interaction_graph.graph = graph
    with torch.no_grad():
        torch.testing.assert_close(
            model(batch).energy.float(), direct(batch.z, batch.pos, batch.batch)[:, 0]
        )

        headed = adapt(module, features="lin1")
        seen = []
        direct.lin1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        direct(batch.z, batch.pos, batch.batch)
        atomic = headed.energy_head.mlp(seen[0])[:, 0]
        expected = torch.zeros(4).index_add(0, batch.batch, atomic)
        torch.testing.assert_close(headed(batch).energy.float(), expected)
    assert headed.backbone.n_features == 16


def test_denoise_pretraining_through_minus_gradient_and_transfer(tmp_path):
    model = adapt(foreign(32), features="lin1", vector="gradient")
    objective, structures = Denoise(sigma=0.1), contract.examples(5.0)
    corrupted = objective.corrupt(structures.batch([0, 1]), torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(120):
        loss, _ = objective.loss(model(corrupted, objective.outputs), corrupted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]

    config = TrainConfig(steps=3, batch_size=3, progress=False, device="cpu")
    path = pretrain(model, structures, objective, config, out=tmp_path / "run").checkpoint
    other = adapt(foreign(32), features="lin1")
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    head = other.energy_head.mlp[0].weight.clone()
    report = checkpoints.transfer(other, path)
    assert not report.mismatched and all(k.startswith("backbone.") for k in report.copied)
    assert torch.equal(other.backbone.module.lin1.weight, model.backbone.module.lin1.weight)
    assert torch.equal(other.energy_head.mlp[0].weight, head)
    with pytest.raises((ConfigError, CheckpointError), match="adapted SchNet"):
        checkpoints.load(path)


class WholeBatch(nn.Module):
    """Takes one PyG batch, answers a dictionary with atomic energies, features and vectors."""

    cutoff = 4.0

    def __init__(self):
        super().__init__()
        self.element = nn.Embedding(119, 6)

    def forward(self, batch):
        sender, receiver = batch.edge_index
        envelope = models.layers.polynomial_envelope(batch.edge_weight, self.cutoff)[:, None]
        n = batch.z.shape[0]
        message = torch.cos(batch.edge_attr) * self.element(batch.z)[sender] * envelope
        features = self.element(batch.z) + models.layers.sum_over(message, receiver, n)
        vectors = models.layers.sum_over(batch.edge_vec[:, :, None] * message[:, None], receiver, n)
        return {"features": features, "vectors": vectors, "energy": features.square().sum(1)}


def test_module_that_takes_a_batch_and_answers_a_dictionary():
    torch.manual_seed(0)
    model = adapt(
        WholeBatch(),
        features="features",
        vectors="vectors",
        energy="energy",
        vector="gated",
        forces="gradient",
    )
    assert model.backbone.n_vector_features == 6 and model.cutoff == 4.0
    assert contract.check_model(model).passed.all()


def test_one_energy_per_structure_has_no_shares_of_atoms():
    batch = contract.examples(4.0).batch()
    whole = adapt(foreign(), energy="answer", max_element=KNOWN)
    with pytest.raises(ConfigError, match="says one energy per structure, so its energy is no sum"):
        whole(batch, ("energies",))
    assert not whole.has_shares
    by_atom = adapt(WholeBatch(), energy="energy")
    assert by_atom.has_shares
    found = by_atom(batch, ("energy", "energies"))
    total = torch.zeros(batch.num_graphs, dtype=torch.float64)
    torch.testing.assert_close(total.index_add(0, batch.batch, found.energies), found.energy)
    atoms = contract.examples(4.0).to_ase()[0]
    calculator = calculator_of(whole)
    calculator.calculate(atoms)
    assert "energies" not in {*calculator.results, *calculator.implemented_properties}
    calculator = calculator_of(by_atom)
    calculator.calculate(atoms)
    assert calculator.results["energies"].shape == (len(atoms),)


@pytest.mark.peers
def test_torchmd_net_joins_too():
    package = pytest.importorskip(
        "torchmdnet.models.torchmd_et", reason="the torchmd-net package is not installed"
    )
    torch.manual_seed(0)
    module = package.TorchMD_ET(
        16,
        2,
        8,
        num_heads=4,
        max_z=119,
        vector_cutoff=True,
        max_num_neighbors=64,
        dtype=torch.float64,
    )
    module.distance_expansion.double()
    model = adapt(module, features=0, vectors=1, cutoff=5.0, vector="gated", max_element=118)
    # its neighbour search is its own: free structures only, and no second derivative
    checks = [
        "rotation",
        "reflection",
        "permutation",
        "batch_independence",
        "finite_differences",
        "cutoff_continuity",
    ]
    assert contract.check_model(model, periodic=False, checks=checks).passed.all()


# -- mistakes ------------------------------------------------------------------------------------
class Strange(nn.Module):
    cutoff = 5.0

    def __init__(self, answer):
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.answer = answer

    def forward(self, z, pos, batch):
        return self.answer


@pytest.mark.parametrize(
    "answer, options, message",
    [
        (None, {}, "adapting Strange needs features= or energy="),
        (
            torch.zeros(5),
            dict(energy=lambda out: out),
            r"energy of Strange must have shape \(1,\) or \(3,\), got \(5,\)",
        ),
        (
            torch.zeros(3),
            dict(features=lambda out: out),
            r"features of Strange must have shape \(3, any\), got \(3,\)",
        ),
        (
            torch.zeros(3, 2),
            dict(features=lambda out: out, vectors=lambda out: out),
            r"vectors of Strange must .* \(3, 3, any\)",
        ),
        (
            {"e": 1},
            dict(energy="energy"),
            "energy='energy': neither a part of the network's answer",
        ),
        (
            {"energy": 1},
            dict(energy="energy"),
            "energy='energy' of Strange gives int, not a tensor",
        ),
        ((), dict(features=3), "features=3: neither a part"),
    ],
)
def test_mistakes_are_named(answer, options, message):
    with pytest.raises(ConfigError, match=message):
        adapt(Strange(answer), **options)


def test_arguments_and_cutoff():
    class Needs(nn.Module):
        def forward(self, z, pos, temperature):
            return z

    class NoCutoff(nn.Module):
        def forward(self, z, pos, batch):
            return z

    missing = r"Needs\.forward needs 'temperature', which the bridge cannot give"
    with pytest.raises(ConfigError, match=missing + "; it can give z, pos"):
        adapt(Needs(), energy=0, cutoff=5.0)
    with pytest.raises(ConfigError, match="NoCutoff has no attribute cutoff: give cutoff= in Å"):
        adapt(NoCutoff(), energy=0)
    with pytest.raises(ConfigError, match="cutoff must be positive, got 0"):
        adapt(NoCutoff(), energy=0, cutoff=0)
    with pytest.raises(RuntimeError, match="only inside a network wrapped by"):
        foreign()(torch.tensor([1, 1]), torch.rand(2, 3), torch.zeros(2, dtype=torch.long))
