"""The compiled messages of TorchMD-Net ET against the same formulas in float64 and against the
operations they replace.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from tiny import molecules, water

from potkit import kernels, models
from potkit.kernels import torchmd_et, torchmd_et_blocks
from potkit.kernels.autograd import with_weights
from potkit.kernels.torchmd_et import filters_named
from potkit.models import Graph
from potkit.models.torchmd_et import Edges, Layer, TorchMDET
from potkit.objectives import Denoise
from potkit.structures.store import concatenate

FLOATS = ("pos", "centres", "q", "k", "s", "v", "weight", "bias")
pytestmark = pytest.mark.usefixtures("compiled_kernels")


@pytest.fixture
def set_threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def problem(sizes, width=32, heads=4, radial=9, vectors=True, missing=0.0, seed=0):
    """Molecules of the given sizes, each atom a neighbour of all others save a share of
    ``missing`` edges, and random inputs.
    """
    g = torch.Generator().manual_seed(seed)
    n, first = sum(sizes), torch.tensor([0, *sizes]).cumsum(0)
    same = torch.zeros(n, n, dtype=torch.bool)
    for start, end in itertools.pairwise(first):
        same[start:end, start:end] = True
    same.fill_diagonal_(False)
    receiver, sender = torch.nonzero(
        same & (torch.rand(n, n, generator=g) >= missing)
    ).T.contiguous()

    def draw(*shape):
        return torch.randn(*shape, generator=g)

    inputs = {
        "pos": 1.5 * draw(n, 3),
        "centres": draw(radial).abs(),
        "q": draw(n, width),
        "k": draw(n, width),
        "s": draw(n, 3 * width),
        "v": draw(n, 3, width) if vectors else None,
        "weight": draw(4 * width, radial) / radial**0.5,
        "bias": draw(4 * width),
    }
    return inputs, sender, receiver, heads


def edges_of(n_atoms, sender, receiver, basis, envelope, direction, own_basis=None):
    """Edges of which only the atoms and these arrays are looked at."""
    zeros, none = torch.zeros(n_atoms, dtype=torch.long), torch.zeros(n_atoms, 3)
    graph = Graph(
        zeros,
        none,
        zeros,
        1,
        sender,
        receiver,
        none[sender],
        none[sender, 0],
        None,
        None,
        zeros[:1],
    )
    return Edges(graph, envelope, basis, direction, own_basis)


def attention(function):
    """``function``, which is `Layer.attention` or stands in for it, of a layer with the given
    weights.
    """

    def of(
        q,
        k,
        s,
        v,
        basis,
        envelope,
        direction,
        weight,
        bias,
        own_basis,
        sender,
        receiver,
        heads,
        damped,
    ):
        layer = Layer(q.shape[1], heads, basis.shape[1], damped, first=v is None).to(q.dtype)
        edges = edges_of(len(q), sender, receiver, basis, envelope, direction, own_basis)
        return with_weights(function, layer, filters_named(weight, bias), q, k, s, v, edges)

    return of


def compiled_sums(*args):
    return attention(counted)(*args)


def counted(layer, q, k, s, v, edges):
    """By the kernel, after a look at how it puts edges together."""
    together = torchmd_et.pieces(edges)
    assert torch.equal(together[together >= 0].sort().values, torch.arange(len(edges.basis)))
    return torchmd_et.attention(layer, q, k, s, v, edges)


in_blocks = attention(torchmd_et_blocks.attention)  # what the network does without the kernel
exactly = attention(Layer.attention.plain)


def results(
    inputs,
    sender,
    receiver,
    heads,
    damped=True,
    function=compiled_sums,
    dtype=torch.float32,
    low=False,
    order=None,
):
    """Both sums of the messages and the gradients of everything they depend on, positions
    included.
    """
    x = {
        name: None if t is None else t.clone().to(dtype).requires_grad_()
        for name, t in inputs.items()
    }
    vector = x["pos"][receiver] - x["pos"][sender]
    distance = vector.square().sum(1).sqrt()[:, None]
    envelope = torch.exp(-0.2 * distance**2)
    basis = envelope * torch.exp(-((distance - x["centres"]) ** 2))
    per_edge = [basis, envelope, vector / distance, sender, receiver]
    if order is not None:
        per_edge = [t[order] for t in per_edge]
    basis, envelope, direction, sender, receiver = per_edge
    own_basis = torch.exp(-(x["centres"] ** 2))[None]
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        scalar, vector = function(
            x["q"],
            x["k"],
            x["s"],
            x["v"],
            basis,
            envelope,
            direction,
            x["weight"],
            x["bias"],
            own_basis,
            sender,
            receiver,
            heads,
            damped,
        )
    weights = [
        torch.sin(torch.arange(1.0, t.numel() + 1)).to(dtype).view_as(t) for t in (scalar, vector)
    ]
    ((scalar * weights[0]).sum() + (vector * weights[1]).sum()).backward()
    grads = {name: x[name].grad for name in FLOATS if x[name] is not None}
    return {"scalar": scalar.detach(), "sum of vectors": vector.detach(), **grads}


def largest_difference(found, expected):
    assert found.keys() == expected.keys()
    return max(
        float(
            (found[name].double() - expected[name].double()).abs().max()
            / expected[name].abs().max().clamp(min=1e-30)
        )
        for name in expected
    )


PROBLEMS = {
    "molecules": dict(sizes=[9, 2, 14, 1, 11]),
    "no vectors yet": dict(sizes=[9, 7, 5], vectors=False),
    "some edges one way only": dict(sizes=[12, 10, 8], missing=0.4),
    "odd widths": dict(sizes=[6, 9, 7], width=21, heads=3, radial=5),
    "heads of 16 and 32": dict(sizes=[8, 8], width=64, heads=4, radial=32),
    "width of the paper": dict(sizes=[13, 17], width=256, heads=8, radial=32),
    "more than a block": dict(sizes=[40]),
    "one edge": dict(sizes=[2], missing=0.5, seed=2),
}


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("damped", [True, False])
def test_equals_the_formulas(name, damped):
    given = problem(**PROBLEMS[name])
    assert len(given[1]) == 1 if name == "one edge" else len(given[1]) > 20
    exact = results(*given, damped, exactly, torch.float64)
    found = results(*given, damped)
    assert largest_difference(found, exact) < 5e-6
    assert largest_difference(found, results(*given, damped, in_blocks)) < 1e-5
    assert found["sum of vectors"].abs().max() > 1e-2 and found["pos"].abs().max() > 1e-2


def test_no_edges():
    given = problem([1, 1, 1])
    assert len(given[1]) == 0
    assert (
        largest_difference(results(*given), results(*given, function=exactly, dtype=torch.float64))
        < 5e-6
    )


@pytest.mark.parametrize("name", ["molecules", "some edges one way only", "width of the paper"])
def test_bfloat16_products(name):
    """Under autocast the filters' product is in bfloat16: off by its rounding, and not by more."""
    given = problem(**PROBLEMS[name])
    difference = largest_difference(
        results(*given, low=True), results(*given, function=exactly, dtype=torch.float64)
    )
    assert 1e-5 < difference < 1.5e-2


def test_any_order_of_edges():
    """Receivers that do not rise: the same sums."""
    given = problem([7, 9], missing=0.2)
    order = torch.randperm(len(given[1]), generator=torch.Generator().manual_seed(1))
    exact = results(*given, function=exactly, dtype=torch.float64)
    assert largest_difference(results(*given, order=order), exact) < 5e-6


def test_equal_edges_that_are_not_opposite():
    """Two images of one neighbour at the same distance, as in a crystal: edges of equal basis
    but different direction are kept apart.
    """
    g = torch.Generator().manual_seed(0)
    inputs, *_ = problem([2])
    q, k, s, v, weight, bias = (inputs[name] for name in ("q", "k", "s", "v", "weight", "bias"))
    receiver, sender = torch.tensor([0, 0, 1, 1]), torch.tensor([1, 1, 0, 0])
    # the last is the opposite of the second, which is not the first
    along = torch.tensor([[1.0, 0, 0], [-1, 0, 0], [0, 1, 0], [1, 0, 0]])
    per_edge = [
        torch.rand(1, 9, generator=g).expand(4, 9).clone(),
        torch.rand(4, 1, generator=g),
        along,
    ]
    found = []
    for function, dtype in ((exactly, torch.float64), (compiled_sums, torch.float32)):
        x = [
            t.to(dtype).clone().requires_grad_()
            for t in (q, k, s, v, *per_edge, weight, bias, torch.ones(1, 9))
        ]
        out = torch.cat([t.flatten() for t in function(*x, sender, receiver, 4, True)])
        grads = torch.autograd.grad((out * torch.arange(out.numel())).sum(), x)
        of_basis = {"alone": grads[4][[0, 2]], "pair": grads[4][[1, 3]].sum(0)}
        found.append(
            {"out": out.detach()} | of_basis | {k: g for k, g in enumerate(grads) if k != 4}
        )
    assert largest_difference(found[1], found[0]) < 5e-6


@pytest.mark.parametrize(
    "sizes",
    [[45], [9, 2, 14, 1, 11], [1, 2]],
    ids=["one large system", "molecules", "fewer edges than threads"],
)
def test_threads_agree(sizes, set_threads):
    """Cut between molecules, or, where there is no such cut, threads share atoms and add what they
    have in the end. Twice the same is bit by bit the same.
    """
    given, found = problem(sizes, missing=0.3 if len(sizes) < 2 else 0.0), []
    for threads in (1, 2, 2, 3):
        set_threads(threads)
        found.append(results(*given))
    assert all(torch.equal(found[1][name], found[2][name]) for name in found[1])
    assert (
        largest_difference(found[1], found[0]) < 5e-6
        and largest_difference(found[3], found[0]) < 5e-6
    )


def wave(t):
    """A weight for every entry of an array, so that no mistake cancels."""
    return torch.sin(1.0 + torch.arange(t.numel(), dtype=t.dtype)).view_as(t)


def second(
    inputs,
    sender,
    receiver,
    heads,
    damped=True,
    function=compiled_sums,
    dtype=torch.float32,
    low=False,
    of_weights_only=False,
    order=None,
):
    """As when training on −∂E/∂x: derivatives by what positions change go into the score beside the
    sums. All second derivatives, or those by the weights and what is trained like them.
    """
    x = {n: None if t is None else t.clone().to(dtype).requires_grad_() for n, t in inputs.items()}
    vector = (x["pos"][receiver] - x["pos"][sender]).detach()
    distance = vector.square().sum(1).sqrt()[:, None]
    envelope = torch.exp(-0.2 * distance**2)
    basis = envelope * torch.exp(-((distance - x["centres"].detach()) ** 2))
    order = torch.arange(len(sender)) if order is None else order
    per_edge = envelope, vector / distance, sender, receiver
    envelope, direction, sender, receiver = (t[order] for t in per_edge)
    # a row for both edges of a pair of atoms: of each of them the kernel gives half
    pair = torch.minimum(sender, receiver) * len(x["pos"]) + torch.maximum(sender, receiver)
    of_pair, row = pair.unique(return_inverse=True)
    rows = torch.zeros(len(of_pair), basis.shape[1], dtype=dtype).index_copy(0, row, basis[order])
    per_edge = {"basis": rows, "envelope": envelope, "direction": direction}
    x |= {name: t.detach().clone().requires_grad_() for name, t in per_edge.items()}
    x["own_basis"] = torch.exp(-(x["centres"].detach() ** 2))[None].requires_grad_()
    changing = "q", "k", "s", "v", "basis", "envelope", "direction"
    trained = "weight", "bias", "own_basis", "basis"
    names = changing[:4], changing[4:], trained[:3]
    given = [x["basis"][row] if n == "basis" else x[n] for group in names for n in group]
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        sums = function(*given, sender, receiver, heads, damped)
    score = sum((t * wave(t)).sum() + 0.1 * t.square().sum() for t in sums)
    present = [name for name in changing if x[name] is not None]
    slopes = torch.autograd.grad(score, [x[name] for name in present], create_graph=True)
    score = sum((s * wave(s)).sum() + 0.1 * s.square().sum() for s in slopes)
    score = score + sum(t.sin().sum() for t in sums)
    wanted = trained if of_weights_only else [*present, *trained[:3]]
    found = torch.autograd.grad(score, [x[name] for name in wanted])
    return {
        **{f"first, by {n}": s.detach() for n, s in zip(present, slopes, strict=True)},
        **dict(zip(wanted, found, strict=True)),
    }


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("damped", [True, False])
@pytest.mark.parametrize("of_weights_only", [False, True], ids=["all", "weights"])
def test_second_derivatives(name, damped, of_weights_only):
    """By the weights only (training), and by everything (Hessians)."""
    given = problem(**PROBLEMS[name])
    options = dict(damped=damped, of_weights_only=of_weights_only)
    exact = second(*given, **options, function=exactly, dtype=torch.float64)
    assert largest_difference(second(*given, **options), exact) < 1e-5
    assert exact["weight"].abs().max() > 1e-2


def test_second_derivatives_of_edges_in_any_order(set_threads):
    given = problem([7, 9], missing=0.2)
    order = torch.randperm(len(given[1]), generator=torch.Generator().manual_seed(1))
    exact = second(*given, function=exactly, dtype=torch.float64, order=order)
    for threads in (1, 3):
        set_threads(threads)
        assert largest_difference(second(*given, order=order), exact) < 1e-5


def test_second_derivatives_in_bfloat16_are_no_further_from_the_truth():
    given = problem([13, 17], width=64, heads=4, radial=32)
    exact = second(*given, function=exactly, dtype=torch.float64)
    errors = []
    for function in (exactly, compiled_sums):
        found = second(*given, function=function, low=True)
        errors.append([float((found[n] - exact[n]).norm() / exact[n].norm()) for n in exact])
    assert 0 < max(errors[1]) < 0.02
    assert sum(errors[1]) < sum(errors[0])


def test_third_derivatives_go_through_the_formulas():
    found = []
    for function, dtype in ((exactly, torch.float64), (compiled_sums, torch.float32)):
        inputs, sender, receiver, heads = problem([5, 4])
        x = {name: t.to(dtype).requires_grad_() for name, t in inputs.items()}
        vector = x["pos"][receiver] - x["pos"][sender]
        distance = vector.square().sum(1).sqrt()[:, None]
        envelope = torch.exp(-0.2 * distance**2)
        basis = envelope * torch.exp(-((distance - x["centres"]) ** 2))
        per_edge = basis, envelope, vector / distance
        weights = x["weight"], x["bias"], torch.exp(-(x["centres"] ** 2))[None]
        atoms = x["q"], x["k"], x["s"], x["v"]
        sums = function(*atoms, *per_edge, *weights, sender, receiver, heads, True)
        score = sum((t * wave(t)).sum() for t in sums)
        for _ in range(2):
            (slope,) = torch.autograd.grad(score, x["pos"], create_graph=True)
            score = (slope * wave(slope)).sum()
        score.backward()
        found.append({name: t.grad for name, t in x.items()})
    assert largest_difference(found[1], found[0]) < 1e-4


def test_training_on_forces_goes_through_the_kernels():
    """Energy and forces, and the derivative of both by every weight."""
    model = models.build("torchmd_et", "small", vector="gradient").train()
    batch = molecules(3).batch()

    def gradients():
        prediction = model(batch, ("energy", "forces"))
        loss = prediction.energy.square().sum() + prediction.forces.sin().square().sum()
        weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
        found = torch.autograd.grad(
            loss, list(weights.values()), allow_unused=True, materialize_grads=True
        )
        return torch.cat([g.flatten() for g in found])

    plain = gradients()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with kernels.used(), torch.profiler.profile(activities=activities) as profile:
        found = gradients()
    called = {event.key for event in profile.key_averages()}
    names = "", "neighbours_", "update_"
    assert {f"potkit::torchmd_et_{name}slopes_backward" for name in names} <= called
    assert float((found - plain).abs().max()) < 1e-5 * float(plain.abs().max())


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
def test_network_and_its_gradients(faithful, low):
    """A whole network on noisy molecules and a periodic box; ``faithful`` cuts neighbours off,
    which leaves edges one way only.
    """
    torch.manual_seed(0)
    model = models.build("torchmd_et", hidden=64, layers=2, heads=4, faithful=faithful).train()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
    structures = concatenate([molecules(4), water(1)])
    batch = Denoise(sigma=0.1).corrupt(structures.batch(), torch.Generator().manual_seed(0))
    found = []
    for kernel, precision in ((False, False), (True, low), (False, low)):
        model.zero_grad()
        with kernels.used(kernel), torch.autocast("cpu", torch.bfloat16, enabled=precision):
            out = model(batch, ("vector",)).vector.float()
        out.square().sum().backward()
        found.append(
            {"out": out.detach()}
            | {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        )
    # bfloat16: not further off than without the kernel
    bound = 1.3 * largest_difference(found[2], found[0]) if low else 1e-5
    assert largest_difference(found[1], found[0]) < bound


@pytest.mark.parametrize("low", [False, True], ids=["float32", "bfloat16"])
def test_neighbours(low):
    inputs, sender, receiver, _ = problem([9, 2, 14], width=24, missing=0.2)
    found = []
    for kernel, dtype in ((False, torch.float64), (True, torch.float32)):
        x = {
            name: inputs[name].to(dtype).clone().requires_grad_()
            for name in ("pos", "centres", "q")
        }
        weight, bias = (
            inputs[name][:24].to(dtype).clone().requires_grad_() for name in ("weight", "bias")
        )
        vector = x["pos"][receiver] - x["pos"][sender]
        distance = vector.square().sum(1).sqrt()[:, None]
        envelope = torch.exp(-0.2 * distance**2)
        basis = envelope * torch.exp(-((distance - x["centres"]) ** 2))
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            edges = edges_of(25, sender, receiver, basis, envelope, vector / distance)
            network = TorchMDET(24, 1, 9, 4).to(dtype)
            given = {"neighbor_filter.weight": weight, "neighbor_filter.bias": bias}
            function = torchmd_et.neighbors if kernel else TorchMDET.neighbors.plain
            out = with_weights(function, network, given, x["q"], edges)
        assert out.dtype == dtype or low
        results, score = {"out": out.detach()}, (out * wave(out)).sum()
        # by what positions change as when training on −∂E/∂x, then by everything
        (slope,) = torch.autograd.grad(score, x["pos"], create_graph=True)
        score = score + (slope * wave(slope)).sum()
        everything = {**x, "weight": weight, "bias": bias}
        for order in ("second", "third"):
            grads = torch.autograd.grad(
                score, list(everything.values()), create_graph=order == "second"
            )
            results |= {f"{order}, {n}": g.detach() for n, g in zip(everything, grads, strict=True)}
            score = sum((g * wave(g)).sum() for g in grads)
        found.append(results)
    assert largest_difference(found[1], found[0]) < (3e-2 if low else 1e-5)


def plain_update(layer, out, mixed, vector, edges):
    return Layer.update.plain(layer, out.to(vector.dtype), mixed.to(vector.dtype), vector, edges)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("width", [16, 21])
def test_update(dtype, width):
    g = torch.Generator().manual_seed(0)
    given = [
        torch.randn(11, *shape, generator=g) for shape in ((3 * width,), (3, 3 * width), (3, width))
    ]
    found = []
    layer = Layer(width, 1, 9, damped=True, first=False)
    for function in (plain_update, torchmd_et.update):
        x = [
            t.to(d).requires_grad_()
            for t, d in zip(given, (dtype, dtype, torch.float32), strict=True)
        ]
        dx, dv = function(layer, *x, None)
        assert dx.dtype == dv.dtype == torch.float32
        results = {"x": dx.detach(), "v": dv.detach()}
        score = dx.sin().sum() + dv.cos().sum()
        for order in ("first", "second", "third"):
            grads = torch.autograd.grad(score, x, create_graph=True)
            assert [g.dtype for g in grads] == [t.dtype for t in x]
            results |= {f"{order}, {k}": g.detach() for k, g in enumerate(grads)}
            score = sum((g * wave(g)).sum() for g in grads)
        found.append(results)
    bound = 5e-6 if dtype == torch.float32 else 3e-2
    assert largest_difference(found[1], found[0]) < bound
