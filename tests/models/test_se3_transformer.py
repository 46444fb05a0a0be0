"""SE(3)-Transformer: its equations evaluated atom by atom with e3nn, its symmetries, smooth
attention, and that it learns.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from denoising import losses
from e3nn import o3

from potkit import models
from potkit.errors import ConfigError
from potkit.models.equivariant import Coupling, gather, harmonics, irreps
from potkit.models.layers import polynomial_envelope
from potkit.models.se3_transformer import Attention, Kernel, NormGate, attention_weights
from potkit.structures.store import Structures
from potkit.testing import contract

SMALL = dict(channels=4, heads=2, division=2, layers=2, radial_hidden=8)


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(preset="small", **options):
    torch.manual_seed(0)
    return models.build("se3_transformer", preset, **{**SMALL, **options})


def flat(x):
    """e3nn's layout."""
    return torch.cat([v.transpose(1, 2).flatten(1) for v in x.values()], 1)


def edges(n=5, count=9):
    """A few edges among n atoms, no neighbour for the last."""
    pairs = torch.tensor([(j, i) for i in range(n - 1) for j in range(n) if i != j])
    chosen = pairs[torch.randperm(len(pairs))[:count].sort().values]
    return chosen[:, 0], chosen[:, 1], torch.randn(count, 3)


def test_published_setting():
    model = models.build("se3_transformer", "denoise-paper")
    backbone = model.backbone
    assert (len(backbone.attention), backbone.n_vector_features, model.cutoff) == (3, 8, 5.0)
    assert [str(ir) for ir in backbone.couplings["middle"].irreps_out] == ["0e", "1o", "2e", "3o"]
    assert all((a.heads, a.width) == (2, 8 // 4) for a in backbone.attention)
    assert (model.vector_mode, model.forces_mode) == ("gradient", "gradient")


def test_kernel_is_a_fully_connected_tensor_product():
    """Equations 8 and 9: the same numbers as e3nn's tensor product with one weight matrix per
    edge and path.
    """
    kinds, channels, width, count = irreps(2), 3, 2, 6
    coupling = Coupling(kinds, 4, kinds)
    kernel = Kernel(coupling, channels, dict.fromkeys(kinds, width), 1, 8)
    f = {ir: torch.randn(count, ir.dim, channels) for ir in kinds}
    y, edge = harmonics(4, torch.randn(count, 3)), torch.rand(count, 1)
    sphere = o3.Irreps.spherical_harmonics(4)
    instructions = []
    for n, o in enumerate(kinds):  # our order: output, input, degree of the harmonics
        for a, i in enumerate(kinds):
            instructions += [
                (a, b, n, "uvw", True) for b, (_, J) in enumerate(sphere) if o in i * J
            ]
    theirs = o3.TensorProduct(
        [(channels, i) for i in kinds],
        sphere,
        [(width, i) for i in kinds],
        instructions,
        path_normalization="none",
        shared_weights=False,
    )
    weights = kernel.radial(edge)
    assert weights.shape[1] == theirs.weight_numel
    torch.testing.assert_close(
        flat(kernel(coupling.kernels(y), f, edge)),
        theirs(flat(f), y, weights),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("smooth", [True, False])
def test_attention_atom_by_atom(smooth):
    """Equations 10 to 12, one atom, one head, one neighbour at a time."""
    kinds, channels = irreps(1), 4
    coupling = Coupling(kinds, 2, kinds)
    layer = Attention(coupling, channels, channels, heads=2, division=2, radial=1, hidden=8)
    sender, receiver, vector = edges()
    f = {ir: torch.randn(5, ir.dim, channels) for ir in kinds}
    kernels, edge = coupling.kernels(harmonics(2, vector)), torch.rand(len(sender), 1)
    envelope = torch.rand(len(sender), 1) if smooth else None
    found = layer(f, kernels, edge, envelope, sender, receiver)

    q, both = layer.query(f), layer.kernel(kernels, gather(f, sender), edge)
    for i in range(5):
        neighbors = torch.nonzero(receiver == i).flatten().tolist()
        attended = {ir: torch.zeros(ir.dim, 2) for ir in kinds}
        for head in range(2):  # each head has one of the two channels of every degree
            logits = [
                sum((q[ir][i, :, head] * both[ir][n, :, 2 + head]).sum() for ir in kinds)
                / math.sqrt(1 + 3)
                for n in neighbors
            ]
            numerator = [
                torch.exp(s) * (float(envelope[n]) if smooth else 1.0)
                for s, n in zip(logits, neighbors, strict=True)
            ]
            denominator = sum(numerator) + smooth
            for weight, n in zip(numerator, neighbors, strict=True):
                for ir in kinds:
                    attended[ir][:, head] += weight / denominator * both[ir][n, :, head]
        for ir in kinds:
            expected = (
                torch.cat([f[ir][i], attended[ir]], -1) @ layer.merge.linear[str(ir)].weight.T
            )
            torch.testing.assert_close(found[ir][i], expected, rtol=1e-10, atol=1e-12)


def test_attention_weights():
    logits, receiver = torch.randn(6, 2) * 5, torch.tensor([0, 0, 0, 1, 1, 3])
    hard = attention_weights(logits, None, receiver, 4)
    for i in (0, 1, 3):
        torch.testing.assert_close(hard[receiver == i], torch.softmax(logits[receiver == i], 0))
    soft = attention_weights(logits, torch.ones(6, 1), receiver, 4)
    total = torch.zeros(4, 2).index_add(0, receiver, soft)
    assert (total < 1).all() and not total[2].any()  # atom 2 has no neighbours
    for shift in (-800.0, 800.0):  # exp alone would be 0 or infinite
        far = attention_weights(logits + shift, torch.ones(6, 1), receiver, 4)
        assert torch.isfinite(far).all() and (
            far.max() < 1e-300 if shift < 0 else torch.allclose(far, hard)
        )
    # a neighbour that leaves takes its weight along smoothly, also when it is the only one
    leaving = torch.tensor([[1.0], [1.0], [1e-14], [1.0], [1.0], [1e-14]])
    left = attention_weights(logits, leaving, receiver, 4)
    assert left[2].max() < 1e-8 and left[5].max() < 1e-8


@pytest.mark.parametrize("faithful", [False, True])
def test_layers_turn_with_their_input(faithful):
    """Attention and gate on random irreps; without parity (faithful) only for proper rotations."""
    kinds, channels = irreps(3, "none" if faithful else "natural"), 4
    coupling = Coupling(kinds, 6, kinds, parity=not faithful)
    layer, gate = Attention(coupling, channels, channels, 2, 2, 1, 8), NormGate(coupling, channels)
    sender, receiver, vector = edges()
    f = {ir: torch.randn(5, ir.dim, channels) for ir in kinds}
    edge = vector.norm(dim=1, keepdim=True) / 5
    envelope = None if faithful else polynomial_envelope(edge[:, 0], 1.0)[:, None]

    def apply(x, v):
        return gate(layer(x, coupling.kernels(harmonics(6, v)), edge, envelope, sender, receiver))

    def turned(x, m):
        return {ir: torch.einsum("mk,nkc->nmc", ir.D_from_matrix(m), v) for ir, v in x.items()}

    before, rotation = apply(f, vector), o3.rand_matrix()
    for m in (rotation, -rotation):
        after = apply(turned(f, m), vector @ m.T)
        error = max(
            float((after[ir] - v).detach().abs().max()) for ir, v in turned(before, m).items()
        )
        assert (error > 1e-3) if faithful and m is not rotation else (error < 1e-12)


def test_mirror_images():
    """Default: a chiral molecule and its mirror image have one energy. Faithful: the network
    tells them apart.
    """
    rng = np.random.default_rng(3)
    pos = np.array(
        [[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    ) * 0.9 + 0.1 * rng.normal(size=(5, 3))
    pair = Structures(
        np.tile([6, 1, 7, 8, 9], 2), np.concatenate([pos, pos * [1, 1, -1]]), np.array([0, 5, 10])
    )
    difference = {}
    for faithful in (False, True):
        energy = contract.evaluate(contract.prepared(build(faithful=faithful)), pair)["energy"]
        difference[faithful] = abs(float(energy[0] - energy[1]))
    assert difference[False] < 1e-13 and difference[True] > 1e-7


@pytest.mark.parametrize("vector", ["gradient", "gated"])
def test_contract_of_the_published_kind(vector):
    """Degrees 0 to 3, distance input; the gated read-out takes the l = 1 channels as x, y, z."""
    checks = [
        "translation",
        "rotation",
        "reflection",
        "permutation",
        "supercell",
        "cutoff_continuity",
        "isolated_atom",
    ]
    report = contract.check_model(build("denoise-paper", vector=vector), checks=checks)
    assert (
        report.claimed.all() and report[report.check != "cutoff_continuity"].residual.max() < 1e-11
    )


def test_faithful_variant():
    model = build("denoise-paper", faithful=True, layers=1, max_degree=2)
    assert model.backbone.symmetries == {"translation", "rotation", "permutation"}
    report = contract.check_model(model, checks=["rotation", "cutoff_continuity"])
    jump = report[report.check == "cutoff_continuity"]
    assert not jump.claimed.any() and jump.residual.max() > 1e-2


def test_made_in_float32_exact_in_float64():
    """Coupling coefficients are not rounded with the weights; a copy and a state dict carry on."""
    torch.set_default_dtype(torch.float32)
    model = build()
    assert not any("coupling" in key for key in model.state_dict())
    again = build()
    again.load_state_dict(model.state_dict())
    structures = contract.examples(model.cutoff)
    contract.evaluate(contract.prepared(model, torch.float32), structures)
    first, second = (
        contract.evaluate(contract.prepared(copy.deepcopy(m)), structures) for m in (model, again)
    )
    assert torch.equal(first["forces"], second["forces"])
    report = contract.check_model(model, checks=["rotation", "reflection"], periodic=False)
    assert report.residual.max() < 1e-11


def test_learns():
    torch.set_default_dtype(torch.float32)
    seen = losses(build(channels=8), rate=5e-3)
    assert seen[-1] < 0.5 < 0.7 < seen[0]  # 1 is what predicting zero gets


@pytest.mark.parametrize("options", [dict(heads=3), dict(division=3), dict(channels=2)])
def test_channels_must_divide(options):
    with pytest.raises(ConfigError, match="channels divisible by division × heads"):
        build(**options)


@pytest.mark.parametrize(
    "options", [dict(max_degree=0), dict(channels=0), dict(layers=0), dict(radial=1)]
)
def test_bad_options(options):
    with pytest.raises(ConfigError, match="SE3Transformer needs"):
        build(**options)
