"""SchNet's compiled convolutions over pairs, with filters one by one and from a table, against
the formulas: values and derivatives.
"""

from __future__ import annotations

import functools
import math

import pytest
import torch

from potkit import kernels, models
from potkit.kernels import schnet_pairs, schnet_table
from potkit.kernels.schnet import filtered
from potkit.models.layers import BesselBasis, GaussianBasis, cosine_envelope, polynomial_envelope
from potkit.testing import contract

CUTOFF = 4.0
MANY = [(20, 500, 40, 8), (7, 200, 5, 3)]  # so many pairs that a table pays
# atoms, pairs, width, radial
SIZES = [(5, 0, 16, 4), (3, 1, 16, 4), (30, 300, 40, 8), (7, 200, 5, 3)]


pytestmark = pytest.mark.usefixtures("compiled_kernels")


def inputs(n_atoms, n_pairs, width, radial, dtype=torch.float32, in_order=True):
    """x, distance and the four weights, which all want gradients; atoms i and j of each pair.

    i rises if ``in_order``; i and j are sometimes the same.
    """
    generator = torch.Generator().manual_seed(width + n_pairs)

    def numbers(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x = numbers(n_atoms, width)
    uniform = torch.rand(n_pairs, generator=generator, dtype=torch.float64)
    distance = 0.8 + (CUTOFF - 0.8) * uniform
    weights = [
        numbers(width, radial),
        numbers(width),
        width**-0.5 * numbers(width, width),
        numbers(width),
    ]
    i, j = torch.randint(n_atoms, (2, n_pairs), generator=generator)
    if in_order:
        i = i.sort().values
    return [t.float().to(dtype).requires_grad_() for t in (x, distance, *weights)], i, j


def convolution(
    floats, i, j, kernel=None, slopes=True, basis=GaussianBasis, envelope=cosine_envelope
):
    """By the kernel that makes filters one by one or, if ``kernel`` is None and none is wanted,
    by the functions of schnet_pairs.py.
    """
    x, distance, *weights = floats
    distance = distance if slopes else distance.detach()
    radial = schnet_pairs.Radial(
        distance,
        basis(weights[0].shape[1], CUTOFF).to(x.dtype),
        functools.partial(envelope, cutoff=CUTOFF),
        slopes,
    )
    if kernels.wanted(distance) if kernel is None else kernel:
        return filtered(x, radial, *weights, i, j)
    return schnet_pairs.convolve(x, schnet_pairs.filters(radial, *weights), i, j)


def wave(t):
    """A weight for every entry of an array, so that no mistake cancels."""
    return torch.sin(1.0 + torch.arange(t.numel(), dtype=t.dtype)).view_as(t)


def first(floats, i, j, function=convolution, **options):
    c = function(floats, i, j, **options)
    wanted = floats if options.get("slopes", True) else [floats[0], *floats[2:]]
    return [c.detach(), *torch.autograd.grad((c * wave(c)).sum() + 0.1 * c.square().sum(), wanted)]


def second(floats, i, j, by=slice(None), function=convolution, **options):
    """As when training on −∂E/∂x: derivatives by x and distance go into the score beside the
    value.
    """
    c = function(floats, i, j, **options)
    slopes = torch.autograd.grad(
        (c * wave(c)).sum() + 0.1 * c.square().sum(), floats[:2], create_graph=True
    )
    score = (c.sin()).sum() + sum((s * wave(s)).sum() + 0.1 * s.square().sum() for s in slopes)
    return [*(s.detach() for s in slopes), *torch.autograd.grad(score, floats[by])]


def assert_close(found, expected, tolerance=1e-5):
    for k, (a, b) in enumerate(zip(found, expected, strict=True)):
        assert a.shape == b.shape, k
        if b.numel():
            assert float((a.double() - b.double()).detach().abs().max()) <= tolerance * max(
                float(b.detach().abs().max()), 1e-3
            ), k


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("slopes", [True, False], ids=["slopes", "no slopes"])
def test_value_and_first_derivatives(size, slopes, threads):
    exact = first(*inputs(*size, dtype=torch.float64), slopes=slopes)
    with kernels.used():
        assert_close(first(*inputs(*size), slopes=slopes), exact)


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_second_derivatives(size, threads):
    """By the weights only (training), and by positions too (Hessians)."""
    exact = second(*inputs(*size, dtype=torch.float64))
    with kernels.used():
        assert_close(second(*inputs(*size)), exact)
        assert_close(second(*inputs(*size), by=slice(2, None)), [*exact[:2], *exact[4:]])


@pytest.mark.parametrize("basis", [GaussianBasis, BesselBasis])
def test_other_shapes_and_atoms_out_of_order(basis, threads):
    options = dict(basis=basis, envelope=polynomial_envelope)
    exact = second(*inputs(20, 150, 20, 8, torch.float64, in_order=False), **options)
    with kernels.used():
        assert_close(second(*inputs(20, 150, 20, 8, in_order=False), **options), exact, 2e-5)


def test_third_derivatives_go_through_the_formulas():
    def third(floats, i, j):
        c = convolution(floats, i, j)
        slopes = torch.autograd.grad((c * wave(c)).sum(), floats, create_graph=True)
        bent = torch.autograd.grad(
            sum((s * wave(s)).sum() for s in slopes), floats, create_graph=True
        )
        return [
            *(b.detach() for b in bent),
            *torch.autograd.grad(sum((b * wave(b)).sum() for b in bent), floats),
        ]

    exact = third(*inputs(6, 12, 8, 4, torch.float64))
    with kernels.used():
        assert_close(third(*inputs(6, 12, 8, 4)), exact, 1e-4)


def test_the_graph_can_be_gone_through_again_and_in_parts():
    floats, i, j = inputs(20, 90, 16, 8)
    with kernels.used():
        c = convolution(floats, i, j)
    slopes = torch.autograd.grad((c * wave(c)).sum(), floats[:2], create_graph=True)
    score = sum((s * wave(s)).sum() for s in slopes)
    once = torch.autograd.grad(score, floats, retain_graph=True)
    torch.autograd.grad(score, [floats[0]], retain_graph=True)
    assert all(
        torch.equal(a, b) for a, b in zip(once, torch.autograd.grad(score, floats), strict=True)
    )
    with kernels.used(), torch.no_grad():
        assert torch.equal(convolution(floats, i, j), c)


def test_bfloat16_is_no_further_from_the_truth(threads):
    floats, i, j = inputs(30, 400, 64, 32)
    exact = second(floats, i, j, by=slice(2, None))
    errors = []
    for kernel in (False, True):
        with kernels.used(kernel), torch.autocast("cpu", torch.bfloat16):
            found = second(floats, i, j, by=slice(2, None))
        errors.append([float((a - b).norm() / b.norm()) for a, b in zip(found, exact, strict=True)])
    assert 0 < max(errors[1]) < 0.02
    assert sum(errors[1]) < 1.1 * sum(errors[0])


def test_activation_at_the_ends_of_the_range():
    """ssp is the kernel's own: it must neither overflow nor lose small numbers, and a NaN must
    come out as one.
    """
    u = torch.cat(
        [
            torch.tensor([-200.0, -88.0, -30.0, -1e-3, 0.0, 1e-3, 30.0, 88.0, 200.0]),
            torch.linspace(-12, 12, 4001),
        ]
    )
    n = len(u)
    floats = [
        torch.ones(2, n),
        torch.tensor([1.0]),
        torch.zeros(n, 3),
        u,
        torch.eye(n),
        torch.zeros(n),
    ]
    i, j = torch.tensor([1]), torch.tensor([0])
    with kernels.used(), torch.no_grad():
        found = convolution(floats, i, j)
        floats[3] = u.index_fill(0, torch.tensor([4]), math.nan)
        assert torch.isnan(convolution(floats, i, j)).any()
    f = cosine_envelope(torch.tensor(1.0, dtype=torch.float64), CUTOFF)
    expected = f * (torch.nn.functional.softplus(u.double()) - math.log(2.0))
    torch.testing.assert_close(found, expected.float().expand(2, n), rtol=3e-7, atol=1.5e-7)


# -- filters from a table ------------------------------------------------------------------------
def smooth(size, dtype=torch.float32):
    """`inputs` with filters no steeper than those of a network."""
    floats, i, j = inputs(*size)
    with torch.no_grad():
        floats[2] *= 0.3
    return [t.detach().to(dtype).requires_grad_() for t in floats], i, j


def from_table(floats, i, j, slopes=True, basis=GaussianBasis):
    """By `schnet_table.Grid` within `kernels.used`, else by the functions of schnet_pairs.py."""
    x, distance, *weights = floats
    distance, centers = distance if slopes else distance.detach(), weights[0].shape[1]
    if not kernels.wanted(distance):
        return convolution(floats, i, j, slopes=slopes, basis=basis)
    envelope = functools.partial(cosine_envelope, cutoff=CUTOFF)
    return schnet_table.Grid(
        schnet_pairs.Pairs(i, j, distance), basis(centers, CUTOFF), envelope, CUTOFF / (centers - 1)
    ).convolve(x, *weights)


@pytest.fixture
def only_tables(monkeypatch):
    """Filters made one by one are an error."""
    monkeypatch.setattr(schnet_table, "filtered", None)


@pytest.mark.parametrize("size", MANY, ids=str)
def test_table_value_and_derivatives(size, threads, only_tables):
    for slopes in (True, False):
        exact = first(*smooth(size, torch.float64), slopes=slopes, function=from_table)
        with kernels.used():
            assert_close(first(*smooth(size), slopes=slopes, function=from_table), exact)
    exact = second(*smooth(size, torch.float64), function=from_table)
    with kernels.used():
        assert_close(
            second(*smooth(size), by=slice(2, None), function=from_table), [*exact[:2], *exact[4:]]
        )
        # Hessians: third derivatives of y
        assert_close(second(*smooth(size), function=from_table), exact, 1e-4)


def test_table_is_as_near_as_its_page_says():
    """32 centres within 5 Å, weights as SchNet begins, all in float64: what remains is the
    interpolation's own error.
    """
    torch.manual_seed(0)
    layer = models.build("schnet", "denoise-paper", layers=1).backbone.layers[0].double()
    weights = [
        layer.filter_in.weight,
        layer.filter_in.bias,
        layer.filter_out.weight,
        layer.filter_out.bias,
    ]
    distance = torch.linspace(0.5, 4.9999, 3001, dtype=torch.float64)
    index, basis = torch.zeros(len(distance), dtype=torch.long), GaussianBasis(32, 5.0).double()
    grid = schnet_table.Grid(
        schnet_pairs.Pairs(index, index, distance), basis, torch.ones_like, 5 / 31
    )
    assert grid.spacing == 1 / 32 and grid.n_nodes <= 161
    with torch.no_grad():
        table, steepest = grid.table(*weights)
        assert steepest < 0.2 * schnet_table.STEEPEST
        found = (grid.weight.T[:, :, None] * table[:, grid.cell]).sum(0)
        # m t^(m − 1), with the envelope 1
        lower = torch.cat([torch.zeros(len(distance), 1), grid.weight[:, :5]], 1)
        rising = torch.arange(6) * lower
        slope = (rising.T[:, :, None] * table[:, grid.cell]).sum(0) / grid.spacing
        (y, dy), _ = schnet_pairs.plain_outputs(
            schnet_pairs.Radial(distance, basis, torch.ones_like, True),
            distance,
            *weights,
            slopes=True,
        )
    assert (found - y).abs().max() < 2.5e-8 * y.abs().max()
    assert (slope - dy).abs().max() < 5e-7 * dy.abs().max()


def test_interpolated_convolution_by_itself():
    """Any C and T, also up to third derivatives, and of the table, which only tests want them
    of.
    """
    generator = torch.Generator().manual_seed(0)
    cell = torch.randint(4, (90,), generator=generator)
    i, j = torch.randint(12, (2, 90), generator=generator)
    i = i.sort().values
    numbers = [torch.randn(*s, generator=generator) for s in ((12, 20), (90, 6), (6, 4, 20))]

    def formula(x, weight, table, cell, i, j):
        return schnet_pairs.convolve(x, (weight.T[:, :, None] * table[:, cell]).sum(0), i, j)

    def derivatives(function, dtype, by):
        floats = [t.to(dtype).requires_grad_() for t in numbers]
        c = function(*floats, cell, i, j)
        found, score = [c], (c * wave(c)).sum() + 0.1 * c.square().sum()
        for _ in range(3):
            grads = torch.autograd.grad(score, floats[by], create_graph=True)
            found += grads
            score = sum((g * wave(g)).sum() + 0.01 * g.square().sum() for g in grads)
        found += torch.autograd.grad(score, floats)
        return [t.detach() for t in found]

    for by in (slice(0, 2), slice(None)):
        exact = derivatives(formula, torch.float64, by)
        with kernels.used():
            assert_close(derivatives(schnet_table.interpolated, torch.float32, by), exact, 2e-5)


def test_derivatives_of_the_table_itself():
    floats, i, j = smooth((5, 40, 4, 3), torch.float64)
    _, distance, *weights = floats
    grid = schnet_table.Grid(
        schnet_pairs.Pairs(i, j, distance.detach()),
        GaussianBasis(3, CUTOFF).double(),
        torch.ones_like,
        CUTOFF / 2,
    )
    assert torch.autograd.gradcheck(lambda *w: grid.table(*w)[0], weights)
    assert torch.autograd.gradgradcheck(lambda *w: grid.table(*w)[0], weights)


@pytest.mark.parametrize("why", ["few pairs", "steep filters"])
def test_no_table_where_it_does_not_serve(why, monkeypatch):
    floats, i, j = smooth((20, 20, 8, 8) if why == "few pairs" else (20, 500, 8, 8))
    with torch.no_grad():
        floats[2] *= 100.0 if why == "steep filters" else 1.0
    exact = convolution([t.double() for t in floats], i, j)
    monkeypatch.setattr(schnet_table, "interpolated", None)
    with kernels.used():
        assert_close([from_table(floats, i, j)], [exact], 2e-5)


def test_table_in_bfloat16_and_not_a_number(threads, only_tables):
    floats, i, j = smooth((30, 500, 32, 8))
    exact = second(floats, i, j, by=slice(2, None), function=from_table)
    with kernels.used(), torch.autocast("cpu", torch.bfloat16):
        found = second(floats, i, j, by=slice(2, None), function=from_table)
    assert_close(found, exact)  # what bfloat16 costs is left to the products with atoms' features
    with torch.no_grad():
        floats[1][7] = math.nan
    with kernels.used():
        found = from_table(floats, i, j)
    touched = torch.zeros(30, dtype=torch.bool)
    touched[i[7]] = touched[j[7]] = True
    assert torch.equal(torch.isnan(found).any(1), touched)


KERNELS = {
    False: {
        "potkit::filtered_forward",
        "potkit::filtered_slopes",
        "potkit::filtered_slopes_backward",
        "potkit::filtered_backward",
    },
    True: {"potkit::table_forward", "potkit::table_backward", "potkit::table_again"},
}


@pytest.mark.parametrize("table", [False, True], ids=["one by one", "table"])
@pytest.mark.parametrize("periodic", [False, True])
def test_network_on_molecules_and_crystals(periodic, table, monkeypatch):
    """Energy, forces and what training on forces asks of every weight, as PyTorch's operations
    find them in float64.
    """
    torch.manual_seed(0)
    model = contract.prepared(
        models.build("schnet", "denoise-paper", hidden=16, filters=24, layers=3, radial=12)
    )
    structures = contract.examples(5.0, periodic)
    monkeypatch.setattr(schnet_table.Grid, "pays", table)

    def results(dtype):
        own = model.to(dtype)
        prediction = own(structures.batch(dtype=dtype), ("energy", "forces"))
        score = (
            (prediction.forces * wave(prediction.forces)).sum()
            + prediction.forces.square().sum()
            + prediction.energy.sum()
        )
        weights = [p for p in own.parameters() if p.requires_grad]
        found = torch.autograd.grad(score, weights, allow_unused=True)
        return [
            prediction.energy.detach(),
            prediction.forces.detach(),
            *(g for g in found if g is not None),
        ]

    exact = results(torch.float64)
    with kernels.used(), torch.profiler.profile() as profile:
        found = results(torch.float32)
    assert KERNELS[table] <= {e.key for e in profile.key_averages()}
    assert_close(found, exact, 2e-5)
