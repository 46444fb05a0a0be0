"""What a network says of itself: declared by all, with defaults for what need not be said."""

from __future__ import annotations

import pytest
from torch import nn

from potkit import models
from potkit.errors import ConfigError
from potkit.models import Backbone, Features, Network, Potential, faults
from potkit.models.graph import SYMMETRIES


class Bare(nn.Module):
    """A network of a user's own, without a base class."""

    def __init__(self, **says):
        super().__init__()
        self.element = nn.Embedding(119, 4)
        for name, value in says.items():
            setattr(self, name, value)

    def forward(self, graph):
        return Features(self.element(graph.z))


@pytest.mark.parametrize("name", models.names())
def test_every_network_declares_everything(name):
    backbone = models.build(name).backbone
    assert isinstance(backbone, Network)
    assert all(hasattr(backbone, attribute) for attribute in Backbone.__annotations__)
    assert backbone.symmetries <= SYMMETRIES
    assert all(isinstance(getattr(backbone, stack), nn.ModuleList) for stack in backbone.stacks)


def test_what_is_not_said_has_its_default():
    backbone = Potential(Bare(cutoff=3.0, n_features=4)).backbone
    for attribute in Backbone.__annotations__:
        if attribute not in ("cutoff", "n_features"):
            assert getattr(backbone, attribute) == getattr(Network, attribute)
    said = Potential(Bare(cutoff=3.0, n_features=4, max_element=9)).backbone
    assert said.max_element == 9


@pytest.mark.parametrize("missing", ["cutoff", "n_features"])
def test_what_must_be_said_is_named(missing):
    says = {"cutoff": 3.0, "n_features": 4}
    del says[missing]
    with pytest.raises(ConfigError, match=f"Bare has no attribute {missing}: a backbone needs"):
        Potential(Bare(**says))


@pytest.mark.parametrize("name", models.names())
def test_a_network_with_faults_says_so(name):
    assert models.build(name).backbone.faults == ()
    if not faults.of(name):  # neither paper published it
        return
    faithful = models.build(name, faithful=True)
    assert faithful.backbone.faults == faults.of(name, "small")
    assert faithful.energy_head.pooled == faults.pooling(faithful.backbone.faults)


def test_by_gradient():
    """Which outputs are derivatives of the energy, so that training on them differentiates
    twice.
    """
    egnn, schnet, gns = (models.build(n) for n in ("egnn", "schnet", "gns"))
    assert egnn.by_gradient(("energy", "forces")) and not egnn.by_gradient(("energy", "vector"))
    assert schnet.by_gradient(("vector",)) and schnet.by_gradient(("noise",))
    assert not schnet.by_gradient(("energy",))
    assert not gns.by_gradient(("energy", "forces", "vector"))
