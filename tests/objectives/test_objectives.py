"""Corruption statistics, targets, losses."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny import ANGLE, BOND, HH, egnn, generator, molecules, one_line, unlisted, water

import potkit
from potkit import objectives
from potkit.errors import ConfigError, DataError
from potkit.models import Prediction
from potkit.structures.neighbors import attach

ALL = [
    potkit.Denoise(sigma=0.1),
    potkit.Denoise(sigma=0.3, zero_mean=True, normalize=False),
    potkit.Masked(ratio=0.5),
    potkit.Masked(ratio=0.4, by="atom"),
    potkit.Masked(ratio=0.4, by="atom", target="bonded", flag=True),
    potkit.MaskedDenoise(ratio=0.3, sigma=0.05),
    potkit.MaskedDenoise(ratio=0.3, by="atom", target="bonded"),
    potkit.MaskedDenoise(ratio=0.3, sigma=0.05, form="published", faults=("floor",)),
    potkit.Masked(ratio=0.4, by="atom", faults=("constant-one", "mask-direction")),
    potkit.Denoise(sigma=(0.05, 0.2)),
    potkit.Denoise(sigma={"system-*": 0.1, "*": (0.1, 0.3)}),
    potkit.AnisotropicDenoise(sigma=0.1, along=0.3, elements={"H": 0.15}),
]
LABELLED = [
    potkit.ForceConditionedDenoise(sigma=(0.05, 0.2), atoms=0.7, loss_function="huber"),
    potkit.ForceConditionedDenoise(energy=0, forces=0, probability=1.0),
    potkit.NoisyNodes(weight=0.3),
    potkit.NoisyNodes(beside=False, forces=0.0),
]
OTHERS = [o for o in unlisted(*ALL, *LABELLED) if not isinstance(o, potkit.Supervised)]
LABELLED += [o for o in OTHERS if o.labels()]
ALL += [o for o in OTHERS if not o.labels()]
Z = 5.0  # every statistical bound below is this many standard deviations: one false alarm in 10⁶


def snapshot(batch) -> dict:
    return {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in batch.to_dict().items()}


def equal(a, b) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else bool(np.all(a == b))


def same(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)


def loss_of(objective, vector, batch) -> float:
    """The loss of a vector read-out that says ``vector``."""
    return float(objective.loss(Prediction(None, vector), batch)[0])


# -- every objective -----------------------------------------------------------------------------
@pytest.mark.parametrize("objective", [*ALL, *LABELLED], ids=repr)
def test_corruption_follows_the_generator_and_leaves_the_batch(objective):
    structures = molecules(3) if objective in LABELLED else water(3)
    batch = attach(structures.batch(dtype=torch.float64), 3.0)
    before = snapshot(batch)
    first, again, other = (objective.corrupt(batch, generator(s)) for s in (1, 1, 2))
    assert same(before, snapshot(batch))
    assert torch.equal(first.pos, again.pos) and torch.equal(first.target, again.target)
    assert first.pos.shape != other.pos.shape or not torch.equal(first.pos, other.pos)
    # edges of the clean structure must not be used
    assert first.edge_index is None and first.edge_shift is None
    assert batch.edge_index is not None
    for rows in (first.z, first.batch, first.mask, first.target):
        assert len(rows) == len(first.pos) == int(first.ptr[-1])


@pytest.mark.parametrize(
    "objective",
    [
        *ALL,
        *LABELLED,
        potkit.Supervised(energy=2.0, forces=3.0, loss_function="huber", per_atom=True),
    ],
    ids=repr,
)
def test_settings_survive_a_dictionary(objective):
    import json

    assert objectives.from_dict(json.loads(json.dumps(objective.to_dict()))) == objective


@pytest.mark.parametrize(
    "objective",
    [
        *ALL,
        *LABELLED,
        potkit.Supervised(forces=3.0),
        potkit.Supervised(per_atom=True, loss_function="mse"),
    ],
    ids=repr,
)
def test_parts_of_a_batch_add_up_to_the_whole(objective):
    of_molecules = objective.labels() or getattr(objective, "by", "") == "atom"
    structures = molecules(7) if of_molecules else water(7)
    batch = objective.corrupt(structures.batch(dtype=torch.float64), generator(3))
    torch.manual_seed(0)
    n = batch.num_graphs  # with a second copy of each structure: 14
    prediction = Prediction(
        torch.randn(n, dtype=torch.float64),
        *(torch.randn_like(batch.pos) for _ in Prediction._fields[1:-1]),
    )
    loss, metrics = objective.loss(prediction, batch)
    arrays = {k: v for k, v in batch.to_dict().items() if isinstance(v, torch.Tensor)}
    del arrays["ptr"], arrays["batch"]
    terms: dict[str, list] = {}
    for a, b in ((0, 2), (2, 3), (3, n)):
        i, j = int(batch.ptr[a]), int(batch.ptr[b])
        cut = {k: v[i:j] if len(v) == len(batch.pos) else v[a:b] for k, v in arrays.items()}
        cut |= {"has_energy": None, "has_forces": None}
        part = SimpleNamespace(**cut, ptr=batch.ptr[a : b + 1] - i, batch=batch.batch[i:j] - a)
        answer = Prediction(prediction.energy[a:b], *(p[i:j] for p in prediction[1:-1]))
        for term in objective.terms(answer, part):
            terms.setdefault(term.name, []).append(term)
    sum_of_means = 0.0
    for name, parts in terms.items():
        mean = sum(float(t.total) for t in parts) / sum(float(t.count) for t in parts)
        sum_of_means += parts[0].weight * mean
        finish = parts[0].finish
        reported = finish(mean) if finish else mean
        assert reported == pytest.approx(float(metrics[name]), rel=1e-12)
    assert sum_of_means == pytest.approx(float(loss), rel=1e-12)


# -- denoise -------------------------------------------------------------------------------------
@pytest.mark.parametrize("sigma", [0.02, 0.5])
def test_noise_is_normal_with_the_width_asked_for(sigma):
    n = 20_000
    structures = potkit.Structures(
        np.ones(n), np.random.default_rng(0).normal(size=(n, 3)), np.array([0, n])
    )
    batch = structures.batch(dtype=torch.float64)
    new = potkit.Denoise(sigma=sigma).corrupt(batch, generator(1))
    # the way back, as a force would point
    assert torch.allclose(new.target, batch.pos - new.pos, atol=1e-14, rtol=0)
    published = potkit.Denoise(sigma=sigma, faithful=True).corrupt(batch, generator(1))
    assert torch.equal(published.pos, new.pos) and torch.equal(published.target, -new.target)
    noise = -new.target.numpy() / sigma
    assert (abs(noise.mean(0)) < Z / math.sqrt(n)).all()
    assert (abs(noise.var(0) - 1) < Z * math.sqrt(2 / n)).all()
    assert (abs((noise**4).mean(0) - 3) < Z * math.sqrt(96 / n)).all()  # var(x⁴) = 105 − 9
    assert (abs(np.corrcoef(noise.T) - np.eye(3)) < Z / math.sqrt(n)).all()  # axes are independent
    assert abs(np.mean(noise[1:] * noise[:-1])) < Z / math.sqrt(3 * n)  # and so are atoms


def test_zero_mean_noise_moves_no_structure_as_a_whole():
    structures = molecules(4000)
    new = potkit.Denoise(sigma=0.2, zero_mean=True).corrupt(
        structures.batch(dtype=torch.float64), generator()
    )
    for s in range(0, 4000, 500):
        assert new.target[new.ptr[s] : new.ptr[s + 1]].sum(0).abs().max() < 1e-14
    for kind, n in ((0, 4), (1, 6)):  # what is left has variance σ²(1 − 1/n)
        part = new.target[(torch.from_numpy(structures.system).long() == kind)[new.batch]]
        degrees = 3 * (n - 1) / n * len(part)
        variance = float(part.square().mean())
        assert variance == pytest.approx(0.04 * (1 - 1 / n), rel=Z * math.sqrt(2 / degrees))


def test_denoise_loss_against_numpy():
    batch = potkit.Denoise(sigma=0.2).corrupt(molecules(3).batch(dtype=torch.float64), generator())
    guess = torch.randn_like(batch.pos)
    mse = np.mean((guess.numpy() - batch.target.numpy()) ** 2)
    plain = loss_of(potkit.Denoise(sigma=0.2, normalize=False), guess, batch)
    assert plain == pytest.approx(mse, rel=1e-12)
    loss, metrics = potkit.Denoise(sigma=0.2).loss(Prediction(None, guess), batch)
    assert float(loss) == pytest.approx(mse / 0.04, rel=1e-12)
    assert float(metrics["noise_mse"]) == pytest.approx(mse, rel=1e-12)


def test_trained_denoiser_is_the_posterior_mean():
    """Diatomics of one bond length L: given the noisy difference y the clean one has mean L·(coth κ
    − 1/κ)·ŷ, κ = L|y|/2σ².

    (The direction of the bond follows a von Mises–Fisher law around ŷ; the noise of the difference
    has variance 2σ².) Half of y − that mean is the best guess for the noise of each atom, and with
    its sign turned for the way back.
    """
    length, sigma, n = 1.0, 0.2, 256
    rng = np.random.default_rng(0)
    axis = rng.normal(size=(n, 3))
    axis *= length / np.linalg.norm(axis, axis=1, keepdims=True)
    pos = np.stack([-axis / 2, axis / 2], 1).reshape(-1, 3)
    structures = potkit.Structures(np.tile([7, 8], n), pos, 2 * np.arange(n + 1))
    model, objective = egnn(hidden=16, radial=8), potkit.Denoise(sigma=sigma)
    batch, random = structures.batch(), generator()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for step in range(400):
        optimizer.param_groups[0]["lr"] = 1e-2 * (1 - step / 400)
        noisy = objective.corrupt(batch, random)
        loss = objective.loss(model(noisy, ("vector",)), noisy)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    noisy = objective.corrupt(batch, generator(99))
    with torch.no_grad():
        guess = model(noisy, ("vector",)).vector.double()
    y = (noisy.pos[1::2] - noisy.pos[::2]).double()
    r = y.norm(dim=1, keepdim=True)
    kappa = length * r / (2 * sigma**2)
    best = 0.5 * (y - length * (1 / torch.tanh(kappa) - 1 / kappa) * y / r)
    expected = torch.stack([best, -best], 1).reshape(-1, 3)
    error = (guess - expected).square().mean() / expected.square().mean()
    assert error < 0.03, f"{float(error):.4f} of the posterior mean's variance is not explained"


# -- masked, by molecule -------------------------------------------------------------------------
@pytest.mark.parametrize("ratio", [0.25, 0.5, 0.9, 1.0])
def test_masked_takes_one_hydrogen_from_exactly_that_share_of_molecules(ratio):
    structures = water(5, per_side=3)
    batch = structures.batch(dtype=torch.float64)
    new = potkit.Masked(ratio=ratio).corrupt(batch, generator())
    n_chosen = round(ratio * 27)
    for s in range(5):
        rows = slice(int(new.ptr[s]), int(new.ptr[s + 1]))
        z, molecule, mask = new.z[rows], new.molecule[rows], new.mask[rows]
        left = torch.bincount(molecule, minlength=27)
        assert sorted(left.tolist()) == [2] * n_chosen + [3] * (27 - n_chosen)
        assert int((z == 8).sum()) == 27  # no oxygen went
        # the two atoms left in such a molecule, and no others
        assert torch.equal(mask, (left == 2)[molecule].long())
        assert torch.equal(new.has_target[rows], mask.bool())
    assert torch.equal(new.target[~new.has_target], torch.zeros_like(new.target[~new.has_target]))
    assert torch.equal(new.ptr[1:] - new.ptr[:-1], torch.bincount(new.batch))


def cosines(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosines between the rows of two arrays [n, 3]."""
    return (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


def test_masked_target_is_the_shortest_way_to_the_lost_hydrogen_across_the_boundary():
    """Ideal TIP3P water: the target of O is 0.9572 Å at 104.52° to the remaining O–H, that of H
    is the H–H distance.
    """
    structures = water(6, per_side=2)
    batch = structures.batch(dtype=torch.float64)
    new = potkit.Masked(ratio=1.0).corrupt(batch, generator())
    assert bool(new.has_target.all())
    target, pos, side = new.target.numpy(), new.pos.numpy(), float(new.cell[0, 0, 0])
    oxygen, hydrogen = np.flatnonzero(new.z == 8), np.flatnonzero(new.z == 1)
    assert (hydrogen == oxygen + 1).all()
    np.testing.assert_allclose(np.linalg.norm(target[oxygen], axis=1), BOND, atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(target[hydrogen], axis=1), HH, atol=1e-12)
    bond = pos[hydrogen] - pos[oxygen]
    crossing = abs(bond).max(1) > side / 2
    bond -= side * np.round(bond / side)
    cosine = cosines(target[oxygen], bond)
    np.testing.assert_allclose(cosine, math.cos(math.radians(ANGLE)), atol=1e-12)
    # the two targets of a molecule point to the same place, which is where a hydrogen was
    np.testing.assert_allclose(target[oxygen], bond + target[hydrogen], atol=1e-12)
    end = np.mod(pos[oxygen] + target[oxygen], side)
    was = batch.pos[batch.z == 1].numpy()
    owner = new.batch[oxygen].numpy()
    per = len(was) // 6
    for place, s in zip(end, owner, strict=True):
        delta = was[s * per : (s + 1) * per] - place
        assert np.linalg.norm(delta - side * np.round(delta / side), axis=1).min() < 1e-10
    # the test is void unless bonds do cross the box, and unless some targets need the minimum image
    across = abs(target[oxygen] + pos[oxygen] - end).max(1) > side / 2
    assert crossing.sum() >= 5 and across.sum() >= 5


def test_masked_target_in_a_triclinic_cell_and_along_a_single_periodic_vector():
    cell = np.array([[0.0, 5.0, 0.0], [5.0, 1.0, 0.0], [1.0, 0.5, 6.0]])
    shape = BOND * np.array(
        [[0, 0, 0], [1.0, 0, 0], [math.cos(math.radians(ANGLE)), math.sin(math.radians(ANGLE)), 0]]
    )
    for pbc in ([True, True, True], [True, False, False], [True, True, False]):
        shift = np.array([[0, 0, 0], [1, -2, 1], [-1, 1, 3]]) * pbc @ cell
        structures = potkit.Structures([8, 1, 1], shape + shift, [0, 3], cell=cell[None], pbc=[pbc])
        new = potkit.Masked(ratio=1.0).corrupt(structures.batch(dtype=torch.float64), generator())
        lengths = sorted(new.target.norm(dim=1).tolist())
        assert lengths == pytest.approx([BOND, HH], abs=1e-12), pbc


def test_free_and_periodic_structures_in_one_batch():
    free = potkit.Structures([8, 1, 1], np.array([[0, 0, 0], [30.0, 0, 0], [0, 40.0, 0]]), [0, 3])
    new = potkit.Masked(ratio=1.0).corrupt(
        (water(1) + free).batch(dtype=torch.float64), generator()
    )
    far = new.target[new.batch == 1].norm(dim=1)
    assert sorted(far.tolist()) == pytest.approx(sorted([50.0, float(far.min())]))
    assert float(far.min()) in (30.0, 40.0)


def test_masked_chance_is_the_same_for_both_hydrogens_and_all_molecules():
    n = 400
    structures = water(n, per_side=2)
    batch = structures.batch(dtype=torch.float64)
    # which atom of its box; found again through the positions
    tag = torch.arange(len(batch.z)) % 24
    new = potkit.Masked(ratio=0.25).corrupt(batch, generator())  # 2 of 8 molecules
    kept = {tuple(p) for p in new.pos.tolist()}
    lost = tag.numpy()[[tuple(p) not in kept for p in batch.pos.tolist()]]
    assert len(lost) == 2 * n and not (lost % 3 == 0).any()
    first = int((lost % 3 == 1).sum())
    assert abs(first - n) < Z * math.sqrt(2 * n / 4)
    counts = np.bincount(lost // 3, minlength=8)
    p = 2 / 8
    assert (abs(counts - n * p) < Z * math.sqrt(n * p * (1 - p))).all(), counts


def test_masked_chance_does_not_depend_on_the_size_of_a_molecule():
    """Water (3 atoms) and ethane-like (8 atoms) side by side, one of the two loses a hydrogen."""
    n = 2000
    rng = np.random.default_rng(0)
    z, molecule = [8, 1, 1, 6, 6, 1, 1, 1, 1, 1, 1], [0] * 3 + [1] * 8
    structures = potkit.Structures(
        np.tile(z, n),
        rng.normal(size=(11 * n, 3)),
        11 * np.arange(n + 1),
        molecule=np.tile(molecule, n),
    )
    new = potkit.Masked(ratio=0.5).corrupt(structures.batch(dtype=torch.float64), generator())
    small = int(((new.molecule == 0) & (new.mask == 1)).sum()) / 2
    assert abs(small - n / 2) < Z * math.sqrt(n / 4), small


def test_masked_elements_by_symbol_and_only_those():
    structures = molecules(6)
    assert potkit.Masked(elements=("H", 8)).elements == (1, 8)
    assert potkit.Masked(elements="C").elements == (6,)
    assert potkit.Masked(elements=6).elements == (6,)
    assert potkit.Masked(elements=np.int64(1)) == potkit.Masked()
    assert potkit.Masked(elements=np.array([1, 8])).elements == (1, 8)
    for written in (["H"], "H", [1], 1):
        read = objectives.from_dict({"objective": "masked", "elements": written})
        assert read.to_dict() == potkit.Masked().to_dict()
    new = potkit.Masked(ratio=1.0, elements=("C",)).corrupt(structures.batch(), generator())
    batch = structures.batch()
    for z in (1, 6, 8):
        assert int((new.z == z).sum()) == int((batch.z == z).sum()) - (6 if z == 6 else 0)


def test_masked_never_takes_the_only_atom_of_a_molecule():
    structures = potkit.Structures([1, 8, 1, 1], np.eye(4, 3), [0, 4], molecule=[0, 1, 1, 1])
    for seed in range(20):
        new = potkit.Masked(ratio=1.0).corrupt(structures.batch(), generator(seed))
        assert new.molecule.tolist() == [0, 1, 1] and new.mask.tolist() == [0, 1, 1]


def test_masked_loss_against_numpy_and_its_extremes():
    objective = potkit.Masked(ratio=0.5)
    batch = objective.corrupt(water(2).batch(dtype=torch.float64), generator())
    guess = torch.randn_like(batch.pos)
    flag = batch.mask.bool()
    cosine = cosines(batch.target[flag].numpy(), guess[flag].numpy())
    assert loss_of(objective, guess, batch) == pytest.approx(1 - cosine.mean(), rel=1e-10)
    for factor, loss in ((3.0, 0.0), (-0.1, 2.0), (0.0, 1.0)):  # only the direction counts
        assert loss_of(objective, factor * batch.target, batch) == pytest.approx(loss, abs=1e-12)


def test_masked_loss_has_finite_derivatives_for_a_vanishing_prediction():
    objective = potkit.Masked(ratio=0.5)
    batch = objective.corrupt(water(1).batch(), generator())
    guess = torch.zeros_like(batch.pos, requires_grad=True)
    objective.loss(Prediction(None, guess), batch)[0].backward()
    assert bool(guess.grad.isfinite().all())


# -- masked, by atom -----------------------------------------------------------------------------
def test_masked_by_atom_takes_each_hydrogen_with_the_probability_asked_for():
    structures = molecules(3000)
    batch = structures.batch(dtype=torch.float64)
    hydrogens = int((batch.z == 1).sum())
    for ratio in (0.25, 0.75):
        new = potkit.Masked(ratio=ratio, by="atom").corrupt(batch, generator())
        gone = hydrogens - int((new.z == 1).sum())
        assert abs(gone - ratio * hydrogens) < Z * math.sqrt(hydrogens * ratio * (1 - ratio))
        assert int((new.z != 1).sum()) == int((batch.z != 1).sum())
        assert int(new.mask.sum()) == 0  # no flag in this setting
    everything = potkit.Masked(ratio=1.0, by="atom").corrupt(batch, generator())
    assert not bool((everything.z == 1).any())


def test_masked_by_atom_targets_the_farthest_lost_atom():
    structures = molecules(60)
    batch = structures.batch(dtype=torch.float64)
    new = potkit.Masked(ratio=0.4, by="atom").corrupt(batch, generator(5))
    untouched = 0
    for s in range(60):
        before, after = batch.pos[batch.batch == s].numpy(), new.pos[new.batch == s].numpy()
        lost = np.array([p for p in before if not (after == p).all(1).any()]).reshape(-1, 3)
        target, has = new.target[new.batch == s].numpy(), new.has_target[new.batch == s]
        if not len(lost):
            assert not bool(has.any()) and not target.any()
            untouched += 1
            continue
        assert bool(has.all())
        way = lost[None] - after[:, None]
        farthest = np.linalg.norm(way, axis=2).argmax(1)
        np.testing.assert_allclose(target, way[np.arange(len(after)), farthest], atol=1e-14)
    assert untouched > 0  # at this ratio some structures lose nothing


def test_masked_by_atom_without_any_loss_scores_zero():
    objective = potkit.Masked(ratio=1e-9, by="atom")
    batch = objective.corrupt(molecules(2).batch(), generator())
    guess = torch.randn_like(batch.pos, requires_grad=True)
    loss, _ = objective.loss(Prediction(None, guess), batch)
    loss.backward()
    assert loss.item() == 0.0 and not bool(guess.grad.any())


def test_masked_by_atom_never_empties_a_structure():
    structures = potkit.Structures(
        [1, 1, 8, 1, 1], np.random.default_rng(0).normal(size=(5, 3)), [0, 2, 5]
    )
    new = potkit.Masked(ratio=1.0, by="atom").corrupt(structures.batch(), generator())
    assert new.ptr.tolist() == [0, 2, 3]
    assert new.has_target.tolist() == [False, False, True]


# -- masked and denoise together -----------------------------------------------------------------
def test_masked_denoise_targets_and_loss():
    """Flagged atoms point from where they are now to where the hydrogen was, the others to where
    they were themselves.
    """
    sigma, weight = 0.1, 0.7
    objective, structures = potkit.MaskedDenoise(ratio=0.5, sigma=sigma, weight=weight), water(200)
    batch = structures.batch(dtype=torch.float64)
    clean = potkit.Masked(ratio=0.5).corrupt(batch, generator(7))
    new = objective.corrupt(batch, generator(7))
    assert torch.equal(new.z, clean.z) and torch.equal(new.mask, clean.mask)
    noise, flag = new.pos - clean.pos, new.mask.bool()
    torch.testing.assert_close(new.target[~flag], -noise[~flag], atol=1e-12, rtol=0)
    hydrogen = clean.pos[flag] + clean.target[flag]
    torch.testing.assert_close(new.pos[flag] + new.target[flag], hydrogen, atol=1e-12, rtol=0)
    assert abs(float(noise.square().mean()) / sigma**2 - 1) < Z * math.sqrt(2 / noise.numel())
    guess = torch.randn_like(new.pos)
    g, d, m = guess.numpy(), new.target.numpy(), flag.numpy()
    cosine = cosines(g[m], d[m])
    expected = 1 - cosine.mean() + weight * np.mean((g[~m] - d[~m]) ** 2) / sigma**2
    assert loss_of(objective, guess, new) == pytest.approx(expected, rel=1e-10)


# -- supervised ----------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["mse", "l1", "huber"])
@pytest.mark.parametrize("per_atom", [False, True])
def test_supervised_loss_against_numpy(kind, per_atom):
    structures = molecules(5)
    batch = structures.batch(dtype=torch.float64)
    rng = np.random.default_rng(1)
    de, df = rng.normal(scale=0.02, size=5), rng.normal(scale=0.02, size=structures.pos.shape)
    prediction = Prediction(
        torch.from_numpy(structures.energy + de), None, torch.from_numpy(structures.forces + df)
    )

    def huber(x):
        return np.where(abs(x) < 0.01, x**2 / 2, 0.01 * (abs(x) - 0.005))

    shape = {"mse": np.square, "l1": np.abs, "huber": huber}[kind]
    trained = de / structures.n_atoms if per_atom else de
    objective = potkit.Supervised(energy=2.0, forces=5.0, loss_function=kind, per_atom=per_atom)
    loss, metrics = objective.loss(prediction, batch)
    assert float(loss) == pytest.approx(2 * shape(trained).mean() + 5 * shape(df).mean(), rel=1e-9)
    expected = {"energy_mae": abs(de).mean(), "energy_rmse": math.sqrt((de**2).mean())}
    expected |= {"forces_mae": abs(df).mean(), "forces_rmse": math.sqrt((df**2).mean())}
    assert {k: float(metrics[k]) for k in expected} == pytest.approx(expected, rel=1e-9)


def test_supervised_asks_only_for_what_it_scores():
    assert potkit.Supervised(energy=1, forces=0).needed() == ("energy",)
    assert "forces" in potkit.Supervised(energy=0, forces=1).needed()
    batch = molecules(2).batch()
    loss, metrics = potkit.Supervised(forces=0).loss(Prediction(batch.energy + 1.0, None), batch)
    assert float(loss) == pytest.approx(1.0) and "forces_mae" not in metrics


def test_energies_keep_their_digits_in_single_precision():
    """A difference of 1 meV at −10⁵ eV is seen although the network runs in float32."""
    batch = molecules(4, offset=-1e5).batch(dtype=torch.float32)
    assert batch.energy.dtype == torch.float64
    _, metrics = potkit.Supervised(forces=0).loss(Prediction(batch.energy + 1e-3, None), batch)
    assert float(metrics["energy_mae"]) == pytest.approx(1e-3, rel=1e-5)


# -- mistakes ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "make, word",
    [
        (lambda: potkit.Denoise(sigma=0), "sigma"),
        (lambda: potkit.Denoise(sigma=-0.1), "-0.1"),
        (lambda: potkit.Denoise(sigma=float("nan")), "nan"),
        (lambda: potkit.Denoise(sigma=float("inf")), "inf"),
        (lambda: potkit.Denoise(sigma="0.2"), "sigma"),
        (lambda: potkit.Masked(ratio=0), "(0, 1]"),
        (lambda: potkit.Masked(ratio=1.0001), "1.0001"),
        (lambda: potkit.Masked(ratio=-0.5), "-0.5"),
        (lambda: potkit.Masked(ratio=float("nan")), "nan"),
        (lambda: potkit.Masked(elements=("Xx",)), "Xx"),
        (lambda: potkit.Masked(elements=(0,)), "elements"),
        (lambda: potkit.Masked(elements=(119,)), "119"),
        (lambda: potkit.Masked(elements=()), "elements"),
        (lambda: potkit.Masked(elements=None), "got None"),
        (lambda: potkit.Masked(elements=True), "got True"),
        (lambda: potkit.Masked(elements=("X",)), "elements"),
        (lambda: potkit.Masked(faults=None), "got None"),
        (lambda: potkit.Masked(faults=3), "got 3"),
        (lambda: potkit.Denoise(faults=None), "got None"),
        (lambda: objectives.from_dict({"objective": "masked", "elements": ["Xx"]}), "Xx"),
        (lambda: objectives.from_dict({"objective": "masked", "elements": [1.0]}), "1.0"),
        (lambda: objectives.from_dict({"objective": "masked", "elements": [True]}), "True"),
        (lambda: potkit.Masked(by="residue"), "residue"),
        (lambda: potkit.MaskedDenoise(sigma=0), "sigma"),
        (lambda: potkit.MaskedDenoise(weight=-1.0), "weight"),
        (lambda: potkit.MaskedDenoise(by="atom"), "by"),
        (lambda: potkit.Masked(by="atom", target="nearest"), "nearest"),
        (lambda: potkit.Masked(target="bonded"), "bonded"),
        (lambda: potkit.Masked(flag="yes"), "flag"),
        (lambda: potkit.Denoise(sigma=(0.2, 0.1)), "rise"),
        (lambda: potkit.Denoise(sigma=(0.1, 0.2, 0.3)), "range"),
        (lambda: potkit.Denoise(sigma=(0.0, 0.1)), "low"),
        (lambda: potkit.Denoise(sigma={}), "empty"),
        (lambda: potkit.Denoise(sigma={"CH4": -1}), "CH4"),
        (lambda: potkit.AnisotropicDenoise(along=1.5), "along"),
        (lambda: potkit.AnisotropicDenoise(along=0), "along"),
        (lambda: potkit.AnisotropicDenoise(elements={"Xx": 0.1}), "Xx"),
        (lambda: potkit.AnisotropicDenoise(elements={"H": 0}), "elements.H"),
        (lambda: potkit.AnisotropicDenoise(elements=("H",)), "table"),
        (lambda: potkit.ForceConditionedDenoise(probability=1.1), "probability"),
        (lambda: potkit.ForceConditionedDenoise(atoms=0), "atoms"),
        (lambda: potkit.ForceConditionedDenoise(sigma={"*": 0.1}), "sigma"),
        (lambda: potkit.ForceConditionedDenoise(energy=-1), "energy"),
        (
            lambda: potkit.ForceConditionedDenoise(energy=0, forces=0, loss_function="l3"),
            "loss_function",
        ),
        (lambda: potkit.NoisyNodes(weight=0), "weight"),
        (lambda: potkit.NoisyNodes(energy=0, forces=0), "all weights"),
        (lambda: potkit.Supervised(energy=-1), "energy"),
        (lambda: potkit.Supervised(energy=0, forces=0), "all weights"),
        (lambda: potkit.Supervised(forces=float("nan")), "forces"),
        (lambda: potkit.Supervised(loss_function="l3"), "l3"),
        (lambda: objectives.from_dict({"objective": "denoising"}), "denoising"),
        (lambda: objectives.from_dict({"objective": "denoise", "sigm": 0.1}), "sigm"),
    ],
)
def test_impossible_settings_are_named(make, word):
    with pytest.raises(ConfigError) as caught:
        make()
    assert word in one_line(caught.value)


@pytest.mark.parametrize("by", ["molecule", "atom"])
def test_a_set_without_any_hydrogen_is_an_error_a_batch_without_is_not(by):
    structures = potkit.Structures([6, 8, 8], np.eye(3), [0, 3])
    objective = potkit.Masked(by=by)
    with pytest.raises(DataError) as caught:
        objective.check(structures)
    text = one_line(caught.value)
    assert "H" in text and "C, O" in text
    new = objective.corrupt(structures.batch(), generator())
    assert new.num_nodes == 3 and not new.has_target.any() and not new.mask.any()
    loss, _ = objective.loss(Prediction(None, torch.ones(3, 3, requires_grad=True), None), new)
    assert loss == 0


def one_molecule(periodic: bool) -> potkit.Structures:
    """A box of water whose molecules nobody has numbered, and what is in it without the box."""
    s = water(2)
    cell, pbc = (s.cell, s.pbc) if periodic else (None, None)
    return potkit.Structures(s.z, s.pos, s.ptr, cell=cell, pbc=pbc, info=s.info)


@pytest.mark.parametrize(
    "objective",
    [
        potkit.Masked(),
        potkit.MaskedDenoise(),
        potkit.MaskedDenoise(form="published", faults=("floor",)),
    ],
)
def test_boxes_without_molecule_numbers_are_not_masked_by_molecule(objective):
    with pytest.raises(DataError) as caught:
        objective.check(one_molecule(periodic=True))
    text = one_line(caught.value)
    assert "ideal water have no molecule numbers" in text and "one H whatever the ratio" in text
    assert "waters=True" in text and "by='atom'" in text
    objective.check(water(2))
    potkit.Masked(by="atom").check(one_molecule(periodic=True))


@pytest.mark.filterwarnings("error")
def test_free_structures_of_one_molecule_are_masked_by_molecule_with_a_warning():
    structures = one_molecule(periodic=False)
    with pytest.warns(UserWarning, match="each loses one H or O whatever the ratio is; by='atom'"):
        potkit.Masked(ratio=0.9, elements=("H", "O")).check(structures)
    potkit.Masked(by="atom").check(structures)
    structures.molecule = np.arange(len(structures.z), dtype=np.int32) % 2
    potkit.Masked().check(structures)


def test_masked_denoise_needs_more_than_one_molecule():
    with pytest.raises(DataError, match="none is left to denoise"):
        potkit.MaskedDenoise(ratio=0.5).check(potkit.Structures([8, 1, 1], np.eye(3), [0, 3]))
    potkit.MaskedDenoise(ratio=0.5).check(
        potkit.Structures([8, 1, 1], np.eye(3), [0, 3], molecule=[0, 1, 1])
    )


def test_missing_labels_are_an_error():
    structures = potkit.Structures([6, 8], np.eye(2, 3), [0, 2], energy=[1.0])
    batch = structures.batch()
    with pytest.raises(DataError, match="forces"):
        potkit.Supervised().loss(Prediction(batch.energy, None, batch.pos), batch)
