"""SE(3)-Transformer: its equations evaluated atom by atom with e3nn, its symmetries, smooth
attention, that with all faults it is the published network, what each fault does, and that it
learns.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
from denoising import losses
from e3nn import o3
from faulty import TOLERANCE, jump, largest, needed, of_kind, pair, same_layers
from published_weights import made_up
from test_published import batch_of, crowd, relative
from torch import nn

from potkit import Potential, models
from potkit.errors import ConfigError, DataError
from potkit.models import published_codes
from potkit.models.equivariant import Coupling, gather, harmonics, irreps
from potkit.models.layers import polynomial_envelope
from potkit.models.se3_transformer import (
    Attention,
    Kernel,
    NormGate,
    NormNonlinearity,
    PairwiseKernel,
    attention_weights,
    mean_with_own,
)
from potkit.structures.elements import SYMBOLS
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
    assert [str(ir) for ir in backbone.couplings["middle"].irreps_out] == ["0e", "1e", "2e", "3e"]
    assert all((a.heads, a.width) == (2, 8 // 4) for a in backbone.attention)
    assert (model.vector_mode, model.forces_mode) == ("gradient", "gradient")
    code = models.build("published/denoise-se3", "published").backbone
    flag = backbone.embedding.flag
    assert sum(p.numel() for p in model.parameters()) - flag.numel() == 239_057
    ours = sum(p.numel() for p in backbone.parameters()) - flag.numel()
    assert ours == sum(p.numel() for p in code.parameters())
    # one for each pair of degrees, in keys, values and the last layer
    first, middle = 4 + 1, 16 + 16
    radial = [m for m in backbone.modules() if isinstance(m, PairwiseKernel)]
    assert sum(len(m.radial) for m in radial) == first + 2 * middle + 4
    assert [type(layer) for layer in model.energy_head.mlp] == [nn.Linear, nn.ReLU, nn.Linear]


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


def test_pairwise_kernel_is_the_papers():
    """Equations 8 and 9 for one edge at a time, with norms of 1 for Q and for Y on the sphere."""
    kinds, channels, width = irreps(2, "none"), 3, 2
    coupling = Coupling(kinds, 4, kinds, parity=False)
    kernel = PairwiseKernel(coupling, channels, dict.fromkeys(kinds, width), 8)
    vector = torch.randn(4, 3)
    edge = torch.cat([torch.zeros(4, 4), vector.norm(dim=1, keepdim=True)], 1)
    f = {ir: torch.randn(4, ir.dim, channels) for ir in kinds}
    found = kernel(coupling(coupling.kernels(harmonics(4, vector)), f), edge)
    for n in range(4):
        for o in kinds:
            expected = torch.zeros(o.dim, width)
            for i in kinds:
                degrees = range(abs(i.l - o.l), i.l + o.l + 1)
                phi = kernel.radial[f"{i.l},{o.l}"](edge[n : n + 1])
                phi = phi.reshape(width, channels, len(degrees))
                for a, J in enumerate(degrees):
                    y = o3.spherical_harmonics(J, vector[n], True, normalization="integral")
                    w = torch.einsum("abm,m->ab", o3.wigner_3j(o.l, i.l, J), y)
                    expected += w @ f[i][n] @ phi[:, :, a].T
            torch.testing.assert_close(found[o][n], expected, rtol=1e-10, atol=1e-12)


def test_norm_nonlinearity():
    """New norms, old directions; with bare norms a feature that passes zero jumps."""
    kinds = irreps(1, "none")
    coupling = Coupling(kinds, 2, kinds, parity=False)
    x = {ir: torch.randn(3, ir.dim, 4) for ir in kinds}
    for bare in (False, True):
        layer = NormNonlinearity(coupling, 4, bare)
        for norm in layer.norms.values():
            norm.bias.data.fill_(0.3)
        out = layer(x)
        for ir in kinds:
            length = x[ir].square().sum(1) + (0.0 if bare else 1e-4)
            length = length.sqrt()
            centred = length - length.mean(1, keepdim=True)
            normed = centred / (centred.square().mean(1, keepdim=True) + 1e-5).sqrt() + 0.3
            expected = torch.relu(normed)[:, None] * x[ir] / length[:, None]
            torch.testing.assert_close(out[ir], expected, rtol=1e-10, atol=1e-12)
        tiny = layer({ir: 1e-9 * v for ir, v in x.items()})
        assert bool(tiny[kinds[1]].abs().max() > 0.1) is bare


def test_mean_with_own():
    own, message = torch.randn(3, 2), torch.randn(3, 2)
    receiver, near = torch.tensor([0, 0, 1]), torch.tensor([[1.0], [0.5], [1.0]])
    smooth = mean_with_own(own, message, near, receiver)
    torch.testing.assert_close(smooth[0], own[0] + (message[0] + 0.5 * message[1]) / 2.5)
    torch.testing.assert_close(smooth[2], own[2])
    plain = mean_with_own(own, message, None, receiver)
    torch.testing.assert_close(plain[0], own[0] + (message[0] + message[1]) / 2)
    assert not plain[2].any()  # no neighbour, no own term


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


@pytest.mark.parametrize("pairwise", [False, True])
@pytest.mark.parametrize("smooth", [False, True])
def test_layers_turn_with_their_input(smooth, pairwise):
    """Attention and gate on random irreps; without parity (pairwise) only for proper rotations."""
    kinds, channels = irreps(3, "none" if pairwise else "natural"), 4
    coupling = Coupling(kinds, 6, kinds, parity=not pairwise)
    layer = Attention(coupling, channels, channels, 2, 2, 1, 8, pairwise)
    gate = NormGate(coupling, channels)
    if pairwise:
        gate = NormNonlinearity(coupling, channels, bare=False)
    sender, receiver, vector = edges()
    f = {ir: torch.randn(5, ir.dim, channels) for ir in kinds}
    distance = vector.norm(dim=1, keepdim=True) / 5
    edge = torch.cat([torch.zeros(9, 4), distance], 1) if pairwise else distance
    envelope = polynomial_envelope(distance[:, 0], 1.0)[:, None] if smooth else None

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
        assert (error > 1e-3) if pairwise and m is not rotation else (error < 1e-12)


def test_mirror_images():
    """Ours: a chiral molecule and its mirror image have one energy. The paper's network tells them
    apart.
    """
    rng = np.random.default_rng(3)
    pos = np.array(
        [[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]
    ) * 0.9 + 0.1 * rng.normal(size=(5, 3))
    two = Structures(
        np.tile([6, 1, 7, 8, 9], 2), np.concatenate([pos, pos * [1, 1, -1]]), np.array([0, 5, 10])
    )
    difference = {}
    for preset in ("small", "shared-kernels", "denoise-paper"):
        energy = contract.evaluate(contract.prepared(build(preset)), two)["energy"]
        difference[preset] = abs(float(energy[0] - energy[1]))
    assert max(difference["small"], difference["shared-kernels"]) < 1e-13
    assert difference["denoise-paper"] > 1e-7


@pytest.mark.parametrize("vector", ["gradient", "gated"])
@pytest.mark.parametrize("preset", ["denoise-paper", "shared-kernels"])
def test_contract_of_the_published_kind(vector, preset):
    """Degrees 0 to 3, distance input; the gated read-out takes the l = 1 channels as x, y, z."""
    checks = [
        "translation",
        "rotation",
        "reflection",
        "permutation",
        "supercell",
        "cutoff_continuity",
    ]
    model = build(preset, vector=vector)
    if preset == "denoise-paper":
        assert model.backbone.symmetries == {"translation", "rotation", "permutation"}
        checks.remove("reflection")
    else:
        checks.append("isolated_atom")
    report = contract.check_model(model, checks=checks)
    assert (
        report.claimed.all() and report[report.check != "cutoff_continuity"].residual.max() < 1e-11
    )


def test_contract_of_the_paper_preset():
    """It keeps what it claims; ReLU has kinks, but derivatives are right up to those."""
    checks = [check for check in contract.CHECKS if check != "isolated_atom"]  # needs all elements
    report = contract.check_model(build("denoise-paper", max_degree=2), checks=checks)
    derivatives = report[report.check.str.endswith(("differences", "derivatives"))]
    assert not derivatives.claimed.any() and derivatives.residual.median() < 1e-3
    claimed = {"rotation", "translation", "permutation", "extensivity", "cutoff_continuity"}
    assert claimed <= set(report[report.claimed].check)


# --- the published network


def twin(code: Potential) -> Potential:
    """Ours with all faults and the weights of ``code``."""
    sizes = code.recipe["options"]
    model = models.build(
        "se3_transformer",
        "denoise-paper",
        faithful=True,
        channels=sizes["num_channels"],
        max_degree=sizes["num_degrees"] - 1,
        layers=sizes["num_layers"],
        heads=sizes["n_heads"],
        division=sizes["div"],
        cutoff=sizes["cutoff"],
    )
    model.double().eval()
    ours, theirs = model.backbone, code.backbone
    blocks = list(theirs.Gblock)
    with torch.no_grad():
        for i, (layer, gate) in enumerate(zip(ours.attention, ours.gates, strict=True)):
            block, norm = blocks[2 * i], blocks[2 * i + 1]
            copy_kernel(layer.key, block.GMAB["k"])
            copy_kernel(layer.value, block.GMAB["v"])
            for ir, linear in layer.query.linear.items():
                linear.weight.copy_(block.GMAB["q"].transform[ir[0]])
            for ir, linear in layer.merge.linear.items():
                attended, own = block.project.transform[ir[0]].tensor_split([layer.width], 1)
                linear.weight.copy_(torch.cat([own, attended], 1))
            for ir, part in gate.norms.items():
                same_layers(part, norm.transform[ir[0]])
        copy_kernel(ours.last, blocks[-1])
        ours.own.weight.copy_(blocks[-1].kernel_self["0"][0])
        same_layers(model.energy_head, code.energy_head)
    return model


def copy_kernel(ours: PairwiseKernel, theirs: nn.Module) -> None:
    for name, network in ours.radial.items():
        same_layers(network, theirs.kernel_unary[f"({name})"])


def made_up_code():
    """With a head that hears its features: its energies differ from structure to structure."""
    code = made_up("denoise-se3")
    with torch.no_grad():
        for part in of_kind(code.energy_head, nn.Linear):
            part.bias.add_(0.3)
    few, many = (code(batch_of(*crowd(n))).energy.item() for n in (12, 60))
    assert abs(few - many) > 1e-4 * abs(many)
    return code


def test_faithful_computes_what_the_published_network_does():
    """Where no neighbour limit is met and where all are; periodic images included."""
    code = made_up_code()
    model = twin(code)
    z, pos = crowd(60)
    for batch in (batch_of(*crowd(12)), batch_of(z, pos), batch_of(z, pos, (6.0, 5.5, 5.0))):
        assert largest(model, code, batch, ("energy", "vector")) < TOLERANCE


def test_every_fault_is_needed_for_that():
    changes = needed(twin(made_up_code()), batch_of(*crowd(60)), ("energy", "vector"))
    assert tuple(changes) == models.faults.of("se3_transformer", "denoise-paper")
    assert min(changes.values()) > 100 * TOLERANCE, changes


def test_types_are_pairs_of_element_and_charge():
    """The published network sees formal charges; ours does where it is told to."""
    code = made_up_code()
    options = dict(twin(code).recipe["options"], formal_charges=True)
    faults = options.pop("faults")
    options.pop("pooled")
    model = models.build("se3_transformer", "denoise-paper", faults=faults, **options)
    model.double().eval()
    model.load_state_dict(twin(code).state_dict())
    batch = batch_of(*crowd(14))
    batch.formal_charge = (batch.z == 7).long() - (batch.z == 8).long()
    assert largest(model, code, batch, ("energy", "vector")) < TOLERANCE
    graph = model.graph(batch, batch.pos)
    rows = [
        published_codes.common.ATOM_TYPES.index((SYMBOLS[int(z)], int(charge)))
        for z, charge in zip(batch.z, batch.formal_charge, strict=True)
    ]
    assert torch.equal(model.backbone.embedding(graph), torch.eye(28)[rows])
    batch.formal_charge[0] = 2
    with pytest.raises(DataError, match=r"atom 0 of the batch is C with formal charge \+2, which"):
        model(batch)


def test_forces_as_an_input():
    """What a force encoder adds has the width of the one-hot vectors."""
    model = build("denoise-paper", force_input=True)
    batch = batch_of(*crowd(6))
    batch.force_input, batch.force_given = torch.randn(6, 3), torch.ones(6, dtype=torch.bool)
    told = model(batch, ("energy",)).energy
    batch.force_given[:] = False
    assert told != model(batch, ("energy",)).energy


def test_elements_without_a_type_are_named():
    silicon = batch_of([14, 8], [[0.0, 0, 0], [1.6, 0, 0]])
    with pytest.raises(
        DataError, match=r"atom 0 of the batch is Si .* with formal_charges=True.* or one_hot=False"
    ):
        build("denoise-paper").double()(silicon)
    assert torch.isfinite(build("denoise-paper", one_hot=False).double()(silicon).energy).all()


# --- each fault alone


def alone(fault: str, **options) -> tuple[Potential, Potential]:
    sizes = dict(SMALL, max_degree=2)
    return pair("se3_transformer", "denoise-paper", fault, **{**sizes, **options})


def test_average_pooling():
    """Two copies far apart have the energy of one, not of two."""
    faulty = contract.prepared(build("denoise-paper", faults=("average-pooling",)))
    right = contract.prepared(build("denoise-paper"))
    z, pos = crowd(8)
    two = batch_of(np.tile(z, 2), np.concatenate([pos, pos + np.array([100.0, 0, 0])]))
    for model, times in ((faulty, 1), (right, 2)):
        one = model(batch_of(z, pos)).energy.item()
        assert model(two).energy.item() == pytest.approx(times * one, rel=1e-10)


def test_no_basis_gradient():
    """The energy is the same, its derivative lacks the angular terms."""
    faulty, right = alone("no-basis-gradient")
    batch = batch_of(*crowd(10))
    assert largest(faulty, right, batch, ("energy",)) == 0
    assert largest(faulty, right, batch, ("forces",)) > 0.1
    z, pos = crowd(10)
    step, numeric = 1e-5, np.zeros(3)
    for axis in range(3):
        energies = []
        for sign in (1, -1):
            moved = pos.copy()
            moved[4, axis] += sign * step
            energies.append(right(batch_of(z, moved)).energy.item())
        numeric[axis] = (energies[1] - energies[0]) / (2 * step)
    off = [relative(m(batch, ("forces",)).forces[4], numeric) for m in (faulty, right)]
    assert off[0] > 0.1 and off[1] < 1e-3  # ReLU leaves kinks


def test_neighbours():
    """A dense structure's energy depends on the order of its atoms; a loose one's does not."""
    faulty, right = alone("neighbours-32")
    (z, pos), order = crowd(60), np.random.default_rng(1).permutation(60)
    whole, cut, other = (
        m(batch_of(z[rows], pos[rows])).energy.item()
        for m, rows in ((right, np.arange(60)), (faulty, np.arange(60)), (faulty, order))
    )
    assert right(batch_of(z[order], pos[order])).energy.item() == pytest.approx(whole, rel=1e-10)
    assert abs(cut - whole) > 1e-6 * abs(whole) and abs(cut - other) > 1e-6 * abs(whole)
    assert largest(faulty, right, batch_of(*crowd(20)), ("energy", "vector")) < 1e-12


def test_edges_twice():
    """Every edge counts twice, also those across the boundary of a box."""
    faulty, right = alone("edges-twice")
    for box in (None, (6.0, 5.5, 5.0)):
        batch = batch_of(*crowd(10), box)
        assert largest(faulty, right, batch, ("energy", "vector")) > 1e-6
        graph = right.graph(batch, batch.pos)
        doubled = models.se3_transformer.faulty_edges(graph, ("edges-twice",))
        assert len(doubled.sender) == 2 * len(graph.sender)
        ends = doubled.pos[doubled.sender] - doubled.pos[doubled.receiver]
        if box is not None:
            ends = ends + doubled.shift
        torch.testing.assert_close(ends, doubled.vector)


def test_no_envelope():
    """The energy jumps at the cutoff, and a lone atom loses its own term."""
    faulty, right = alone("no-envelope")

    def angle(distance):
        return batch_of([8, 1, 6], [[0.0, 0, 0], [0.6, 0.8, 0], [distance, 0, 0]])

    jumps = [jump(model, angle, ("energy", "vector")) for model in (faulty, right)]
    assert jumps[0] > 1e-3 > 1e-6 > jumps[1]
    alone_in_space = [
        {z: m(batch_of([z], np.zeros((1, 3)))).energy.item() for z in (1, 8)}
        for m in (faulty, right)
    ]
    assert alone_in_space[0][1] == alone_in_space[0][8]
    assert alone_in_space[1][1] != alone_in_space[1][8]


def test_bare_norm():
    """The energy jumps where an atom passes the middle between two like ones."""
    faulty, right = alone("bare-norm")

    def row(away):
        return batch_of([6, 8, 6], [[-1.2, 0, 0], [away, 0, 0], [1.2, 0, 0]])

    jumps = []
    for model in (faulty, right):
        with torch.no_grad():
            middle, beside, far = (model(row(away)).energy.item() for away in (0, 1e-6, 0.3))
        jumps.append(abs(beside - middle) / abs(far - middle))
    assert jumps[0] > 1e-2 > 1e-6 > jumps[1]


def test_logits_by_all_heads():
    """Logits are divided by the root of twice as many components where there are two heads."""
    faulty, right = alone("logits-by-all-heads")
    for a, b in zip(faulty.backbone.attention, right.backbone.attention, strict=True):
        assert a.features == 2 * b.features
    assert [a.features for a in right.backbone.attention] == [1, 1 + 3 + 5]
    assert largest(faulty, right, batch_of(*crowd(20)), ("energy", "vector")) > 1e-6


def test_faults_of_ours():
    """The lighter network can have them, too, but for bare norms: it divides by none."""
    model = build("small", faithful=True)
    assert model.backbone.faults == models.faults.of("se3_transformer")
    assert model.energy_head.pooled == "mean"
    report = contract.check_model(model, checks=["rotation", "cutoff_continuity"])
    jumps = report[report.check == "cutoff_continuity"]
    assert not jumps.claimed.any() and jumps.residual.max() > 1e-2
    faulty, right = pair("se3_transformer", "small", "bare-norm", **SMALL)
    assert largest(faulty, right, batch_of(*crowd(20)), ("energy", "vector")) == 0


# --- ours


def test_recipes_older_than_the_paper_preset_of_today():
    """What was called the paper's is now "shared-kernels"."""
    options = dict(channels=8, max_degree=3, layers=3, heads=2, division=4, radial=0, cutoff=5.0)
    recipe = {"name": "se3_transformer", "preset": "denoise-paper", "options": options}
    model, now = models.rebuild(recipe), models.build("se3_transformer", "shared-kernels")
    assert model.n_parameters() == now.n_parameters() == 120_337
    assert [k for k, _ in model.named_parameters()] == [k for k, _ in now.named_parameters()]


def test_weights_of_a_seed_stay():
    """Of the preset that is ours: stored runs started from these."""
    torch.set_default_dtype(torch.float32)
    weights = models.build("se3_transformer", seed=0).parameters()
    assert sum(float(p.detach().double().sum()) for p in weights) == pytest.approx(
        -16.65725197659569, rel=1e-6
    )


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


@pytest.mark.parametrize(
    "options, message",
    [
        (dict(kernels="many"), "unknown kernels 'many'; there are shared, pairwise"),
        (dict(kernels="pairwise"), "with kernels='pairwise' reads .r. only: radial is 0"),
    ],
)
def test_kernels_that_there_are_not(options, message):
    with pytest.raises(ConfigError, match=message):
        build(**options)
