"""The nequip package with potkit's weights: every layer and the forces agree, with and without
parity; and it trains in the benchmark.
"""

from __future__ import annotations

import pytest
import torch

from potkit import models
from potkit.bench import common, infer, peers, step
from potkit.objectives import Denoise

pytest.importorskip("nequip", reason="the package nequip is not installed")
pytestmark = pytest.mark.peers
OPTIONS = dict(channels=4, radial_hidden=8, attributes=3, vector="gradient", vectors=False)


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    "options",
    [
        dict(parity=False, layers=2, cutoff=5.0),
        dict(parity=True, layers=4, radial=5, neighbors=7.0),
    ],
)
def test_all_layers_agree(options):
    from potkit.bench.peers import nequip

    torch.manual_seed(0)
    model = models.build("nequip", "paper", **{**OPTIONS, **options})
    peer = nequip.peer(model, "cpu")
    batch = Denoise().corrupt(common.alkanes(2)[0].batch(), torch.Generator().manual_seed(0))
    ours, theirs = [], []  # per layer: features by irrep; irreps and features side by side

    def keep_ours(module, inputs, out):
        ours.append(out)

    def keep_theirs(module, inputs, out):
        theirs.append((module.irreps_out["node_features"], out["node_features"].clone()))

    for k, layer in enumerate(model.backbone.layers):
        layer.register_forward_hook(keep_ours)
        getattr(peer.module.network, f"layer{k}").register_forward_hook(keep_theirs)
    vector = step.potkit_vector(model, batch, None, "cpu")
    assert common.agreement(vector, peer.predict(peer.module, batch)) < 1e-5
    assert len(ours) == options["layers"]
    for features, (kinds, flat) in zip(ours, theirs, strict=True):
        assert len(features) == len(kinds)
        for part, (channels, ir) in zip(kinds.slices(), kinds, strict=True):
            block = flat[:, part].unflatten(1, (channels, ir.dim)).transpose(1, 2)
            assert common.agreement(features[ir], block) < 1e-5


def test_reference_is_the_papers():
    model = peers.reference("nequip", 256)
    assert model.recipe["options"] == models.presets("nequip")["paper"] | {
        "vector": "gradient",
        "vectors": False,
    }


def test_same_number_of_weights():
    """All but the vector of flagged atoms, which the package does not know."""
    model = models.build("nequip", "paper", **OPTIONS, layers=2)
    (peer,) = peers.of("nequip", model, common.alkanes(1)[0], "cpu")
    theirs = sum(p.numel() for p in peer.module.parameters())
    assert theirs == model.n_parameters() - model.backbone.embedding.flag.numel()


def test_in_the_benchmarks(monkeypatch):
    small = models.build("nequip", "paper", **OPTIONS, layers=2)
    monkeypatch.setattr(peers, "reference", lambda case, hidden: small)
    table = step.run(
        threads=1, repeats=1, cases=("nequip",), batch=32, hidden=16, memory=False, compile=True
    )
    assert list(table["implementation"])[:2] == ["nequip", "potkit"]
    assert (table.iloc[:2]["agreement"] < 1e-5).all()
    assert table["atoms"].max() < 50  # two structures, a sixteenth of 32
    table = infer.run(threads=1, repeats=1, cases=("nequip",), batch=32, hidden=16, memory=False)
    assert (table.iloc[:2]["agreement"] < 1e-4).all()
    assert table["per_second"].iloc[0] == pytest.approx(2 / table["median_s"].iloc[0])
