"""The parts built on e3nn's irreps: against e3nn's own tensor product, and under random
rotations of random irreps.
"""

from __future__ import annotations

import copy

import pytest
import torch
from e3nn import o3

from potkit.models.equivariant import (
    Coupling,
    RadialNet,
    SelfInteraction,
    gather,
    harmonics,
    irreps,
    sum_edges,
)

KINDS = [(degree, parities) for degree in (1, 2, 3) for parities in ("natural", "both", "none")]


@pytest.fixture(autouse=True)
def float64():
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def random(kinds, n, channels):
    return {ir: torch.randn(n, ir.dim, channels) for ir in kinds}


def flat(x):
    """e3nn's layout: irrep by irrep, channel by channel."""
    return torch.cat([v.transpose(1, 2).flatten(1) for v in x.values()], 1)


def turned(x, matrix):
    return {ir: torch.einsum("mk,nkc->nmc", ir.D_from_matrix(matrix), v) for ir, v in x.items()}


def test_irreps():
    assert [str(i) for i in irreps(2)] == ["0e", "1o", "2e"]
    assert [str(i) for i in irreps(1, "both")] == ["0e", "0o", "1o", "1e"]
    assert [str(i) for i in irreps(1, "none")] == ["0e", "1e"]


@pytest.mark.parametrize("degree", [1, 3, 6])
def test_harmonics(degree):
    """l = 1 is x, y, z; |Y_l|² = 2l + 1; lengths do not matter."""
    v = torch.randn(9, 3)
    y = harmonics(degree, v)
    torch.testing.assert_close(y[:, 1:4], v / v.norm(dim=1, keepdim=True) * 3**0.5)
    for l in range(degree + 1):  # noqa: E741 (the literature's letter)
        torch.testing.assert_close(
            y[:, l * l : (l + 1) ** 2].square().sum(1), torch.full((9,), 2.0 * l + 1)
        )
    torch.testing.assert_close(harmonics(degree, 7.3 * v), y)


@pytest.mark.parametrize("degree, parities", KINDS)
def test_coupling_is_the_tensor_product_of_e3nn(degree, parities):
    """Path by path, mode "uvu", equal weights: the same numbers."""
    kinds, edges, channels = irreps(degree, parities), 7, 3
    coupling = Coupling(kinds, 2 * degree, kinds, parity=parities != "none")
    sphere = o3.Irreps.spherical_harmonics(2 * degree, p=1 if parities == "none" else -1)
    middle, instructions = [], []
    for o in coupling.irreps_out:
        for a, i in enumerate(kinds):
            for b, (_, J) in enumerate(sphere):
                if o in i * J:
                    instructions.append((a, b, len(middle), "uvu", True))
                    middle.append((channels, o))
    f, y = random(kinds, edges, channels), harmonics(2 * degree, torch.randn(edges, 3))
    theirs = o3.TensorProduct(
        [(channels, i) for i in kinds],
        sphere,
        middle,
        instructions,
        path_normalization="none",
        shared_weights=False,
    )
    weights = torch.randn(edges, theirs.weight_numel)
    expected = theirs(flat(f), y, weights)

    products = coupling(coupling.kernels(y), f)
    assert {o: v.shape[2] for o, v in products.items()} == {
        o: n * channels for o, n in coupling.paths.items()
    }
    parts = weights.split([n * channels for n in coupling.paths.values()], 1)
    found = [
        (v * w[:, None]).unflatten(2, (-1, channels)).permute(0, 2, 3, 1).flatten(1)
        for v, w in zip(products.values(), parts, strict=True)
    ]
    torch.testing.assert_close(torch.cat(found, 1), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("degree, parities", KINDS)
def test_coupling_and_self_interaction_turn_with_their_input(degree, parities):
    kinds, edges = irreps(degree, parities), 11
    coupling = Coupling(kinds, degree, kinds, parity=parities != "none")
    mix = SelfInteraction({o: 4 * n for o, n in coupling.paths.items()}, dict.fromkeys(kinds, 5))
    f, vector = random(kinds, edges, 4), torch.randn(edges, 3)

    def layer(x, v):
        return mix(coupling(coupling.kernels(harmonics(degree, v)), x))

    matrices = [o3.rand_matrix() for _ in range(3)]
    # with parity, reflections as well
    matrices += [] if parities == "none" else [-m for m in matrices]
    before = layer(f, vector)
    for m in matrices:
        after = layer(turned(f, m), vector @ m.T)
        for ir, value in turned(before, m).items():
            torch.testing.assert_close(after[ir], value, rtol=0, atol=1e-12)


def test_variance_is_kept():
    """Random features of variance 1 give products of variance about 1, on average over
    directions.
    """
    kinds = irreps(3)
    coupling = Coupling(kinds, 6, kinds)
    products = coupling(
        coupling.kernels(harmonics(6, torch.randn(4000, 3))), random(kinds, 4000, 2)
    )
    for ir, value in products.items():
        assert value.shape == (4000, ir.dim, 2 * coupling.paths[ir])
        torch.testing.assert_close(
            value.square().mean((0, 1)), torch.ones(value.shape[2]), rtol=0.2, atol=0
        )
    net = RadialNet([8, 64, 64, 100])
    variance = net(torch.randn(2000, 8)).var()
    assert 0.5 < variance < 2.0
    assert not net(torch.zeros(1, 8)).any()


def test_paths_that_do_not_exist_are_dropped():
    first = Coupling([o3.Irrep("0e")], 2, irreps(2, "both"))
    assert [str(o) for o in first.irreps_out] == ["0e", "1o", "2e"]
    assert list(first.paths.values()) == [1, 1, 1]
    assert [str(o) for o in Coupling(first.irreps_out, 2, irreps(2, "both")).irreps_out] == [
        "0e",
        "1o",
        "1e",
        "2e",
        "2o",
    ]


def test_constants_are_exact_in_every_dtype():
    """Coefficients are kept in float64 and cast on use, also in a copy, and not saved with a
    model.
    """
    coupling = copy.deepcopy(Coupling(irreps(2), 2, irreps(2)))
    v = torch.randn(5, 3)
    single = coupling.kernels(harmonics(2, v.float()))
    double = coupling.kernels(harmonics(2, v))
    for ir, kernel in double.items():
        assert kernel.dtype == torch.float64 and single[ir].dtype == torch.float32
        torch.testing.assert_close(single[ir].double(), kernel, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            kernel, Coupling(irreps(2), 2, irreps(2)).kernels(harmonics(2, v))[ir], rtol=0, atol=0
        )


def test_kernels_made_in_inference_mode_serve_training():
    coupling, y = Coupling(irreps(1), 1, irreps(1)), harmonics(1, torch.randn(4, 3))
    with torch.inference_mode():
        coupling.kernels(y)
    x = y.clone().requires_grad_(True)
    sum(k.square().sum() for k in coupling.kernels(x).values()).backward()
    assert torch.isfinite(x.grad).all()


def test_sums_over_edges():
    x, receiver = random(irreps(2), 6, 3), torch.tensor([0, 0, 2, 2, 2, 4])
    total = sum_edges(x, receiver, 5)
    for ir, value in x.items():
        expected = torch.stack([value[receiver == i].sum(0) for i in range(5)])
        torch.testing.assert_close(total[ir], expected)
    nothing = sum_edges({ir: v[:0] for ir, v in x.items()}, receiver[:0], 2)
    assert all(v.shape == (2, ir.dim, 3) and not v.any() for ir, v in nothing.items())
    assert torch.equal(gather(x, receiver)[irreps(1)[1]], x[irreps(1)[1]][receiver])


def test_second_derivatives():
    """Products of products: what training on forces differentiates."""
    kinds = irreps(1)
    coupling = Coupling(kinds, 2, kinds)

    def energy(vector, *features):
        f = dict(zip(kinds, features, strict=True))
        f = coupling(coupling.kernels(harmonics(2, vector)), f)
        return sum(v.sin().sum() for v in f.values())

    inputs = [
        torch.randn(2, 3, requires_grad=True),
        *(v.requires_grad_(True) for v in random(kinds, 2, 1).values()),
    ]
    assert torch.autograd.gradcheck(energy, inputs) and torch.autograd.gradgradcheck(energy, inputs)
