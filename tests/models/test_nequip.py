"""NequIP: a layer against e3nn's tensor product with the same weights, parity, shared kernels,
and that it learns.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from denoising import losses
from e3nn import o3
from e3nn.math import normalize2mom as unit

from potkit import models
from potkit.errors import ConfigError
from potkit.models.equivariant import Coupling, harmonics, irreps
from potkit.models.nequip import SCALAR, VECTOR, Layer
from potkit.testing import contract

SMALL = dict(channels=4, layers=2, radial_hidden=8, attributes=3)


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def build(preset="small", **options):
    torch.manual_seed(0)
    return models.build("nequip", preset, **{**SMALL, **options})


def flat(x):
    """e3nn's layout."""
    return torch.cat([v.transpose(1, 2).flatten(1) for v in x.values()], 1)


def layer_input(kinds, n=5, channels=4):
    pairs = torch.tensor([(j, i) for i in range(n - 1) for j in range(n) if i != j])
    x = {ir: torch.randn(n, ir.dim, channels) for ir in kinds}
    return (
        x,
        torch.randn(n, 3),
        pairs[:, 0],
        pairs[:, 1],
        torch.randn(len(pairs), 3),
        torch.randn(len(pairs), 8),
    )


@pytest.mark.parametrize("parities", ["natural", "both"])
def test_layer_is_built_of_e3nn_parts(parities):
    """Convolution, linear maps, self-connection and gate put together from e3nn's modules, with
    our weights in them.
    """
    kinds, channels = irreps(2, parities), 4
    coupling = Coupling(kinds, 2, kinds)
    layer = Layer(coupling, channels, attributes=3, radial=8, hidden=8, neighbors=9.0)
    x, attributes, sender, receiver, vector, edge = layer_input(kinds)
    y = harmonics(2, vector)
    found = layer(x, attributes, coupling.kernels(y), edge, sender, receiver)

    sphere, before = o3.Irreps.spherical_harmonics(2), o3.Irreps([(channels, i) for i in kinds])
    middle, instructions = [], []
    for o in coupling.irreps_out:
        for a, i in enumerate(kinds):
            for b, (_, J) in enumerate(sphere):
                if o in i * J:
                    instructions.append((a, b, len(middle), "uvu", True))
                    middle.append((channels, o))
    product = o3.TensorProduct(
        before, sphere, middle, instructions, path_normalization="none", shared_weights=False
    )
    wanted = o3.Irreps(
        [(layer.collect.linear[str(o)].out_features, o) for o in coupling.irreps_out]
    )

    def linear(irreps_in, maps, normalization):
        """An o3.Linear that holds our matrices: its own 1/√(fan in) is divided out."""
        made = o3.Linear(irreps_in, maps["out"])
        weights = []
        for ins in made.instructions:
            o = made.irreps_out[ins.i_out].ir
            matrix, start = maps[o], normalization[ins.i_in]
            weights.append(
                matrix[:, start : start + ins.path_shape[0]].T.flatten() / ins.path_weight
            )
        with torch.no_grad():
            made.weight.copy_(torch.cat(weights))
        return made

    ours = {o: layer.linear.linear[str(o)].weight for o in kinds}
    first = linear(before, {**ours, "out": before}, [0] * len(before))
    starts, seen = [], {}
    for mul, o in middle:
        starts.append(seen.get(o, 0))
        seen[o] = starts[-1] + mul
    collect = {o: layer.collect.linear[str(o)].weight for o in coupling.irreps_out}
    second = linear(o3.Irreps(middle), {**collect, "out": wanted}, starts)
    messages = product(first(flat(x))[sender], y, layer.radial(edge) / 3.0)  # √9 neighbours
    new = second(torch.zeros(5, messages.shape[1]).index_add(0, receiver, messages))
    # self-connection: x ⊗ a, then a matrix
    for part, o in zip(wanted.slices(), coupling.irreps_out, strict=True):
        both = (
            torch.einsum("nmc,na->nmca", x[o], attributes).flatten(2)
            @ layer.own.linear[str(o)].weight.T
        )
        new[:, part] = (new[:, part] + both.transpose(1, 2).flatten(1)) / 2**0.5
    values = {
        o: new[:, part].unflatten(1, (-1, o.dim))
        for part, o in zip(wanted.slices(), coupling.irreps_out, strict=True)
    }
    scalars = values[SCALAR][..., 0]
    for o, value in found.items():
        if o == SCALAR:
            expected = unit(torch.nn.functional.silu)(scalars[:, :channels])[:, None]
        elif o.l == 0:
            expected = unit(torch.tanh)(values[o][..., 0])[:, None]
        else:
            k = layer.gated.index(o) + 1
            expected = (
                values[o] * unit(torch.sigmoid)(scalars[:, k * channels : (k + 1) * channels, None])
            ).transpose(1, 2)
        # their factors come from random numbers
        torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("parities", ["natural", "both"])
def test_layer_turns_with_its_input(parities):
    kinds = irreps(3, parities)
    coupling = Coupling(kinds, 3, kinds)
    layer = Layer(coupling, 4, attributes=3, radial=8, hidden=8, neighbors=9.0)
    x, attributes, sender, receiver, vector, edge = layer_input(kinds)

    def apply(f, v):
        return layer(f, attributes, coupling.kernels(harmonics(3, v)), edge, sender, receiver)

    def turned(f, m):
        return {ir: torch.einsum("mk,nkc->nmc", ir.D_from_matrix(m), v) for ir, v in f.items()}

    before, rotation = apply(x, vector), o3.rand_matrix()
    for m in (rotation, -rotation):
        after = apply(turned(x, m), vector @ m.T)
        for ir, value in turned(before, m).items():
            torch.testing.assert_close(after[ir], value, rtol=0, atol=1e-12)


def test_what_layers_reach():
    """Parity: what cannot be made yet is not carried; the last layer makes scalars and vectors;
    equal layers share kernels.
    """
    backbone = build(parity=True, layers=5).backbone
    reached = [[str(ir) for ir in c.irreps_out] for c in backbone.couplings]
    assert reached[0] == ["0e", "1o", "2e"] and reached[1] == ["0e", "1o", "1e", "2e", "2o"]
    assert reached[2] == reached[3] == ["0e", "0o", "1o", "1e", "2e", "2o"] and reached[4] == [
        "0e",
        "1o",
    ]
    assert len({id(c) for c in build(layers=5).backbone.couplings}) == 3  # first, three alike, last
    assert (backbone.n_features, backbone.n_vector_features) == (4, 4)


@pytest.mark.parametrize("parity", [False, True])
def test_contract(parity):
    report = contract.check_model(build(parity=parity, layers=4 if parity else 2))
    assert report.claimed.all()
    assert report[report.check.isin(["rotation", "reflection"])].residual.max() < 1e-11


def test_pseudoscalars_are_made():
    """With parity there are 0o features: they change sign in the mirror image of a chiral
    structure.
    """
    model = contract.prepared(build(parity=True, layers=4))
    rng = np.random.default_rng(0)
    batch = contract.examples(5.0).batch(dtype=torch.float64)
    seen = []
    model.backbone.layers[2].register_forward_hook(
        lambda _, inputs, out: seen.append(out[o3.Irrep("0o")])
    )
    normal = torch.from_numpy(contract.random_rotation(rng)[0])
    with torch.no_grad():
        model(batch)
        batch.pos = batch.pos - 2 * (batch.pos @ normal)[:, None] * normal
        model(batch)
    assert seen[0].abs().max() > 1e-4
    torch.testing.assert_close(seen[1], -seen[0], rtol=0, atol=1e-12)


def test_vectors_are_x_y_z():
    """On two atoms every vector feature lies along the bond."""
    model = contract.prepared(build())
    batch = contract.examples(5.0).batch([0], dtype=torch.float64)
    one = contract.examples(5.0)[0]
    pair = type(one)(
        one.z[:2], np.array([[0.0, 0.0, 0.0], [0.3, -1.1, 0.7]]), np.array([0, 2])
    ).batch(dtype=torch.float64)
    assert o3.Irrep("1o") == VECTOR and batch.num_graphs == 1
    with torch.no_grad():
        vectors = model.backbone(model.graph(pair, pair.pos)).vector  # [2, 3, channels]
    bond = pair.pos[1] - pair.pos[0]
    across = torch.linalg.cross(vectors, bond[None, :, None].expand_as(vectors), dim=1)
    assert vectors.abs().max() > 1e-3 and across.abs().max() < 1e-12


def test_without_vectors():
    """Scalars alone at the end: the same energy as with vectors beside them, and no read-out
    that would need them.
    """
    both, alone = build(vector="gradient"), build(vector="gradient", vectors=False)
    state = both.state_dict()
    layer = both.backbone.layers[-1]
    kept = {
        k: state[k] for k in alone.state_dict() if state[k].shape == alone.state_dict()[k].shape
    }
    assert set(alone.state_dict()) - set(kept) == {
        f"backbone.layers.1.{n}.weight" for n in ("radial.4", "collect.linear.0e", "own.linear.0e")
    }
    scalar = layer.widths[SCALAR]
    for name, weight in (
        ("radial.4", layer.radial[4].weight[:scalar]),
        ("collect.linear.0e", layer.collect.linear["0e"].weight[:4]),
        ("own.linear.0e", layer.own.linear["0e"].weight[:4]),
    ):
        kept[f"backbone.layers.1.{name}.weight"] = weight
    alone.load_state_dict(kept)
    batch = contract.examples(5.0).batch(dtype=torch.float64)
    torch.testing.assert_close(alone(batch, ("vector",)).vector, both(batch, ("vector",)).vector)
    with pytest.raises(ConfigError, match="equivariant features"):
        build(vectors=False)


def test_learns():
    torch.set_default_dtype(torch.float32)
    seen = losses(models.build("nequip", "small", channels=8, layers=2), steps=40, rate=3e-3)
    assert seen[-1] < 0.5 < 0.7 < seen[0]  # 1 is what predicting zero gets


@pytest.mark.parametrize(
    "options",
    [dict(channels=0), dict(max_degree=0), dict(layers=0), dict(radial=0), dict(neighbors=0.0)],
)
def test_bad_options(options):
    with pytest.raises(ConfigError, match="NequIP needs"):
        build(**options)
