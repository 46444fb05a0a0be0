"""Objectives beyond the papers: laws of σ, anisotropic noise, force-conditioned denoising, Noisy
Nodes, bonded targets.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny import egnn, equal, generator, molecules, one_line, unlisted, weights

import potkit
from potkit import objectives
from potkit.errors import ConfigError, DataError
from potkit.models import Prediction
from potkit.structures.neighbors import attach
from potkit.training import checkpoints, loop
from potkit.training import step as steps

Z = 5.0  # standard deviations: one false alarm in 10⁶


def chain(n: int, cell: bool = False) -> potkit.Structures:
    """``n`` times C–H with the bond along a random axis, 1.09 Å; with ``cell`` across the face
    of a box.
    """
    rng = np.random.default_rng(0)
    axis = rng.normal(size=(n, 3))
    axis /= np.linalg.norm(axis, axis=1, keepdims=True)
    pos = np.stack([np.zeros((n, 3)), 1.09 * axis], 1).reshape(-1, 3)
    if not cell:
        return potkit.Structures(np.tile([6, 1], n), pos, 2 * np.arange(n + 1))
    box = np.tile(8.0 * np.eye(3), (n, 1, 1))
    return potkit.Structures(
        np.tile([6, 1], n),
        np.mod(pos, 8.0),
        2 * np.arange(n + 1),
        cell=box,
        pbc=np.ones((n, 3), bool),
    )


# -- laws of σ -----------------------------------------------------------------------------------
def test_sigma_from_a_range_is_log_uniform_and_one_per_structure():
    low, high, n = 0.05, 0.4, 4000
    batch = molecules(n).batch(dtype=torch.float64)
    new = potkit.Denoise(sigma=(low, high)).corrupt(batch, generator())
    sigma = new.noise_scale[new.ptr[:-1]]
    assert torch.equal(new.noise_scale, sigma[new.batch])  # the same for all atoms of a structure
    assert low <= float(sigma.min()) < 1.02 * low and 0.98 * high < float(sigma.max()) <= high
    place = ((sigma / low).log() / math.log(high / low)).numpy()  # uniform in [0, 1]
    assert abs(place.mean() - 0.5) < Z / math.sqrt(12 * n)
    assert abs(place.var() - 1 / 12) < Z * math.sqrt(1 / 180 / n)
    normal = new.target / new.noise_scale[:, None]
    assert abs(float(normal.square().mean()) - 1) < Z * math.sqrt(2 / normal.numel())
    assert torch.allclose(new.pos, batch.pos - new.target, atol=1e-14)


def test_sigma_by_system_and_data_set():
    structures = molecules(2000)  # systems CH2O and C2H4 in turn
    objective = potkit.Denoise(sigma={"CH2*": 0.05, "tiny*": 0.3})
    objective.check(structures)
    new = objective.corrupt(structures.batch(dtype=torch.float64), generator())
    # the second fits no pattern by its own name, but by the set's
    for system, sigma in ((0, 0.05), (1, 0.3)):
        part = new.target[torch.from_numpy(structures.system).long()[new.batch] == system]
        variance = float(part.square().mean())
        assert variance == pytest.approx(sigma**2, rel=Z * math.sqrt(2 / part.numel()))
    shuffled = objective.corrupt(structures.batch([1, 0, 3], dtype=torch.float64), generator())
    assert shuffled.noise_scale[shuffled.ptr[:-1]].tolist() == pytest.approx([0.3, 0.05, 0.3])
    with pytest.raises(DataError) as caught:
        potkit.Denoise(sigma={"CH2*": 0.05}).check(structures)
    assert "C2H4" in one_line(caught.value) and "CH2*" in str(caught.value)
    both = structures[:4] + potkit.Structures(
        [8, 1, 1], np.eye(3), [0, 3], info={"name": "one water"}
    )
    potkit.Denoise(sigma={"one water*": 0.1, "C*": 0.2}).check(
        both.__class__(both.z, both.pos, both.ptr, system=both.system, info=both.info)
    )


def test_each_structure_counts_the_same_whatever_its_sigma():
    """Weighted by 1/σ²: predicting zero gets 1 for small and for large noise alike."""
    objective = potkit.Denoise(sigma=(0.01, 1.0))
    batch = objective.corrupt(molecules(4000).batch(dtype=torch.float64), generator())
    loss, metrics = objective.loss(Prediction(None, torch.zeros_like(batch.pos)), batch)
    assert float(loss) == pytest.approx(1.0, abs=Z * math.sqrt(2 / batch.pos.numel()))
    assert float(metrics["noise_mse"]) == pytest.approx(float(batch.target.square().mean()))
    plain = potkit.Denoise(sigma=(0.01, 1.0), normalize=False)
    raw, _ = plain.loss(Prediction(None, torch.zeros_like(batch.pos)), batch)
    assert float(raw) == pytest.approx(float(batch.target.square().mean()))


def test_settings_that_came_later_do_not_change_the_identity_of_earlier_runs():
    assert potkit.Masked(ratio=0.5).to_dict() == {
        "objective": "masked",
        "ratio": 0.5,
        "elements": (1,),
        "by": "molecule",
    }
    assert potkit.Denoise().to_dict() == {
        "objective": "denoise",
        "sigma": 0.2,
        "zero_mean": False,
        "normalize": True,
        "faithful": False,
    }
    assert potkit.Masked(by="atom", target="bonded", flag=False).to_dict()["flag"] is False


# -- known posterior means -----------------------------------------------------------------------
LENGTH = 1.0


def bonds(n: int, width: float, seed: int = 0, stiffness: float | None = None) -> potkit.Structures:
    """N–O in all directions u: atoms at ±LENGTH u/2 plus Gaussian displacements of ``width`` Å; or,
    with ``stiffness``, only along u, with the forces ∓stiffness (bond length − LENGTH) u.
    """
    rng = np.random.default_rng(seed)
    u = rng.normal(size=(n, 1, 3))
    u /= np.linalg.norm(u, axis=2, keepdims=True)
    sign = np.array([-1.0, 1.0])[:, None]
    forces = None
    if stiffness is None:
        pos = sign * LENGTH * u / 2 + rng.normal(scale=width, size=(n, 2, 3))
    else:
        stretch = rng.normal(scale=width, size=(n, 1, 1))
        pos = sign * (LENGTH + stretch) * u / 2
        forces = (-stiffness * stretch * sign * u).reshape(-1, 3)
    z = np.tile([7, 8], n)
    return potkit.Structures(z, pos.reshape(-1, 3), 2 * np.arange(n + 1), forces=forces)


def train(model, objective, structures, n_steps: int, rate: float = 1e-2, size: int = 128):
    """The loss falls over ``n_steps`` batches; the answer on a batch of structures that were not
    trained on.
    """
    random, rng = generator(), np.random.default_rng(0)
    optimizer = torch.optim.Adam(model.parameters(), rate)
    rest = len(structures) - 512
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = rate * (1 - step / n_steps)
        batch = structures.batch(rng.choice(rest, size), dtype=torch.float32)
        noisy = objective.corrupt(batch, random)
        loss = objective.loss(model(noisy, objective.needed()), noisy)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    batch = structures.batch(np.arange(rest, rest + 512), dtype=torch.float32)
    noisy = objective.corrupt(batch, generator(99))
    with torch.no_grad():
        return noisy, model(noisy, objective.needed())


def shrunken(noisy, sigma: float, width: float) -> torch.Tensor:
    """−E[ε|x̃] for structures of `bonds`. The noisy difference y is, for given u, N(LENGTH u, τ²),
    τ² = 2(σ² + s²), and u follows a von Mises–Fisher law around ŷ with κ = LENGTH |y|/τ²; so ∇ log
    p(y) = −(y − LENGTH (coth κ − 1/κ) ŷ)/τ², and the way back is σ² times that.
    """
    y = (noisy.pos[1::2] - noisy.pos[::2]).double()
    r, tau2 = y.norm(dim=1, keepdim=True), 2 * (sigma**2 + width**2)
    kappa = LENGTH * r / tau2
    back = -(sigma**2 / tau2) * (y - LENGTH * (1 / torch.tanh(kappa) - 1 / kappa) * y / r)
    return torch.stack([-back, back], 1).reshape(-1, 3)


def distance(vector: torch.Tensor, expected: torch.Tensor) -> float:
    return float((vector.double() - expected).square().mean() / expected.square().mean())


def test_denoiser_of_a_gaussian_around_a_minimum_is_its_posterior_mean():
    sigma = width = 0.15
    model = egnn(hidden=16, radial=8)
    noisy, answer = train(model, potkit.Denoise(sigma=sigma), bonds(4096, width), 250)
    assert distance(answer.vector, shrunken(noisy, sigma, width)) < 0.06
    # not the way back to the minimum: half of it belongs to the data
    assert distance(answer.vector, shrunken(noisy, sigma, 0.0)) > 0.15


def test_forces_tell_where_the_clean_structure_was():
    """Length and direction of the clean bond follow from the force, so all noise but the
    translation, one half, can be known. Without forces turning cannot be told, and stretching in
    part: even for bonds that do not stretch at all the least loss is 1 less the variance of the
    posterior mean.
    """
    sigma, width = 0.1, 0.1
    structures = bonds(4096, width, stiffness=20.0)
    objective = potkit.ForceConditionedDenoise(sigma=sigma, probability=1.0, energy=0, forces=0)
    model = potkit.build(
        "torchmd_et", hidden=16, layers=2, radial=8, heads=2, cutoff=4.0, seed=0, force_input=True
    )
    model.set_references({}, 2.0)  # the root mean square force
    noisy, answer = train(model, objective, structures, 120)
    loss = float(objective.loss(answer, noisy)[0])
    without = 1 - float(shrunken(noisy, sigma, 0.0).square().mean()) / sigma**2
    assert without > 0.75 and 0.45 < loss < 0.65, (loss, without)


def test_anisotropic_denoiser_is_the_score():
    """One bond of fixed length and unknown direction u: everything by quadrature over u.

    Given u the difference y of the two atoms is N(L u, 2Σ(u)), Σ = σ²(1 + κ u uᵀ)⁻¹. The target's
    mean is v₂ = −½ E[A(u)(y − L u) | y], which must be σ² ∇_y log p(y), the score (a), and what a
    trained network says (b).
    """
    sigma, along, length = 0.15, 0.5, 1.09
    kappa = along**-2 - 1
    structures = chain(4096)
    cosines, w = np.polynomial.legendre.leggauss(400)

    def law(r: np.ndarray):  # |y| -> log p(y), and the component of v₂ along ŷ
        c = r[:, None] * cosines - length  # along u; y − L u has the component r sin across
        across = r[:, None] ** 2 * (1 - cosines**2)
        weight = w * np.exp(-((1 + kappa) * c**2 + across) / (4 * sigma**2))
        total = weight.sum(1)
        # A (y − L u) = (1 + κ) c u + across-part; its component along ŷ, where ŷ·u = cos
        pull = (1 + kappa) * c * cosines + r[:, None] * (1 - cosines**2)
        return np.log(total), -0.5 * (weight * pull).sum(1) / total

    r = np.linspace(0.6, 1.6, 11)
    slope = (law(r + 1e-5)[0] - law(r - 1e-5)[0]) / 2e-5
    # (a): the target's mean is the score
    np.testing.assert_allclose(law(r)[1], sigma**2 * slope, rtol=1e-6, atol=1e-9)
    # and not simply the way back to the bond length
    assert not np.allclose(law(r)[1], (length - r) / 2, atol=0.02)

    model = egnn(hidden=16, radial=8)
    objective = potkit.AnisotropicDenoise(sigma=sigma, along=along)
    noisy, answer = train(model, objective, structures, 250)
    y = (noisy.pos[1::2] - noisy.pos[::2]).double()
    length_now = y.norm(dim=1, keepdim=True)
    best = torch.from_numpy(law(length_now[:, 0].numpy())[1])[:, None] * y / length_now
    assert distance(answer.vector, torch.stack([-best, best], 1).reshape(-1, 3)) < 0.06


# -- anisotropic noise ---------------------------------------------------------------------------
@pytest.mark.parametrize("cell", [False, True])
def test_noise_is_small_along_a_bond_and_as_asked_for_across(cell):
    n, sigma, along, hydrogen = 4000 if cell else 20_000, 0.1, 0.4, 0.2
    batch = chain(n, cell).batch(dtype=torch.float64)
    objective = potkit.AnisotropicDenoise(sigma=sigma, along=along, elements={"H": hydrogen})
    new = objective.corrupt(batch, generator())
    noise = new.pos - batch.pos
    axis = batch.pos[1::2] - batch.pos[::2]
    axis = (axis - 8.0 * (axis / 8.0).round() if cell else axis) / 1.09
    for first, width in ((0, sigma), (1, hydrogen)):
        part = noise[first::2]
        parallel = (part * axis).sum(1)
        across = part - parallel[:, None] * axis
        variance_along = float(parallel.square().mean())
        variance_across = float(across.square().sum(1).mean())
        assert variance_along == pytest.approx((along * width) ** 2, rel=Z * math.sqrt(2 / n))
        assert variance_across == pytest.approx(2 * width**2, rel=Z * math.sqrt(1 / n))
        # v* = −σ² Σ⁻¹ ε: stretched along the bond by 1/ρ², as it is across
        target = new.target[first::2]
        expected = -across - parallel[:, None] * axis / along**2
        torch.testing.assert_close(target, expected, atol=1e-12, rtol=0)
        product = float((part * target).sum(1).mean())
        assert product == pytest.approx(-3 * width**2, rel=Z * math.sqrt(2 / (3 * n)))
    loss, metrics = objective.loss(Prediction(None, 0 * new.pos), new)
    assert float(loss) == pytest.approx(1.0, abs=0.05)
    assert float(metrics["score_mse"]) == pytest.approx(float(new.target.square().mean()))


def test_without_bonds_or_stiffness_the_noise_is_isotropic():
    apart = potkit.Structures([6, 1], np.array([[0, 0, 0], [3.0, 0, 0]]), [0, 2])
    free = apart.batch(dtype=torch.float64)
    bonded = chain(1).batch(dtype=torch.float64)
    for batch, along in ((free, 0.2), (bonded, 1.0)):
        new = potkit.AnisotropicDenoise(sigma=0.1, along=along).corrupt(batch, generator(4))
        plain = potkit.Denoise(sigma=0.1).corrupt(batch, generator(4))
        torch.testing.assert_close(new.pos, plain.pos, atol=1e-14, rtol=0)
        torch.testing.assert_close(new.target, plain.target, atol=1e-14, rtol=0)
    assert objectives.anisotropic.bond_precision(chain(1).batch([]), 3.0).shape == (0, 3, 3)


def test_bonds_fade_out_smoothly_and_add_up():
    radii = 0.75 + 0.32  # Å, single-bond radii of C and H (Pyykkö, Atsumi)
    for stretch, weight in ((1.0, 1.0), (1.15, 1.0), (1.25, 0.5), (1.35, 0.0), (2.0, 0.0)):
        pos = np.array([[0, 0, 0], [stretch * radii, 0, 0]])
        structure = potkit.Structures([6, 1], pos, [0, 2])
        precision = objectives.anisotropic.bond_precision(structure.batch(dtype=torch.float64), 3.0)
        expected = torch.tensor([1 + 3 * weight, 1.0, 1.0], dtype=torch.float64)
        torch.testing.assert_close(precision[0], torch.diag(expected), atol=1e-9, rtol=0)
    corners = np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1.0]])
    methane = potkit.Structures([6, 1, 1, 1, 1], 1.09 / math.sqrt(3) * corners, [0, 5])
    precision = objectives.anisotropic.bond_precision(methane.batch(dtype=torch.float64), 3.0)
    expected = (1 + 4 * 3 / 3) * torch.eye(3, dtype=torch.float64)
    torch.testing.assert_close(precision[0], expected, atol=1e-12, rtol=0)


# -- masked: parents -----------------------------------------------------------------------------
def test_bonded_targets_point_from_parents_to_what_they_lost():
    structures = molecules(300)
    batch = structures.batch(dtype=torch.float64)
    plain = potkit.Masked(ratio=0.5, by="atom").corrupt(batch, generator(3))
    new = potkit.Masked(ratio=0.5, by="atom", target="bonded", flag=True).corrupt(
        batch, generator(3)
    )
    assert torch.equal(new.pos, plain.pos)  # the same atoms are gone
    assert torch.equal(new.mask.bool(), new.has_target) and not plain.mask.any()
    several = 0
    for s in range(300):
        before, after = batch.pos[batch.batch == s].numpy(), new.pos[new.batch == s].numpy()
        z, target, has = (a[new.batch == s].numpy() for a in (new.z, new.target, new.has_target))
        lost = np.array([p for p in before if not (after == p).all(1).any()]).reshape(-1, 3)
        heavy = np.flatnonzero(z > 1)
        distances = np.linalg.norm(lost[:, None] - after[heavy], axis=2)  # [lost, heavy]
        parent = heavy[distances.argmin(1)]
        assert (z[has] == 6).all()  # in formaldehyde and ethylene every hydrogen sits on a carbon
        assert set(np.flatnonzero(has)) == set(parent)
        for i in set(parent):
            several += (parent == i).sum() > 1
            way = (lost[parent == i] - after[i]).mean(0)
            np.testing.assert_allclose(target[i], way, atol=1e-12)
        assert not target[~has].any()
    assert several > 20
    flagged = potkit.Masked(ratio=0.5, by="atom", flag=True).corrupt(batch, generator(3))
    assert torch.equal(flagged.mask, new.mask) and torch.equal(flagged.target, plain.target)


def test_a_parent_may_be_light_where_nothing_heavy_is_left_and_lie_across_the_boundary():
    hydrogen = potkit.Structures(
        [1, 1, 1],
        np.array([[0.1, 0, 0], [9.6, 0, 0], [5.0, 0, 0]]),
        [0, 3],
        cell=10 * np.eye(3)[None],
        pbc=[[True] * 3],
    )
    first = torch.tensor([0])  # of the first structure
    point = torch.tensor([[9.9, 0, 0.0]], dtype=torch.float64)
    batch = hydrogen.batch(dtype=torch.float64)
    parent, way = objectives.masked.nearest_heavy(batch, point, first)
    assert parent.tolist() == [0]
    assert way[0, 0].item() == pytest.approx(-0.2)
    water = potkit.Structures(
        [8, 1, 1], np.array([[0, 0, 0], [0.96, 0, 0], [-0.24, 0.93, 0]]), [0, 3]
    )
    point = torch.tensor([[0.9, 0.1, 0.0]], dtype=torch.float64)
    batch = water.batch(dtype=torch.float64)
    parent, _ = objectives.masked.nearest_heavy(batch, point, first)
    assert parent.tolist() == [0]  # the oxygen, although a hydrogen is nearer


def test_flags_can_be_left_out_and_any_mix_of_elements_masked():
    batch = molecules(400).batch(dtype=torch.float64)
    new = potkit.Masked(ratio=0.3, elements=("H", "O"), by="atom").corrupt(batch, generator())
    for element in (1, 8):
        n, left = int((batch.z == element).sum()), int((new.z == element).sum())
        assert abs(n - left - 0.3 * n) < Z * math.sqrt(0.21 * n)
    assert int((new.z == 6).sum()) == int((batch.z == 6).sum())
    assert not potkit.Masked(ratio=0.5, flag=False).corrupt(batch, generator()).mask.any()
    assert potkit.Masked(ratio=0.5).corrupt(batch, generator()).mask.any()


# -- force-conditioned ---------------------------------------------------------------------------
def test_forces_are_given_where_noise_is_and_nowhere_else():
    n, p, r = 4000, 0.4, 0.7
    batch = molecules(n).batch(dtype=torch.float64)
    new = potkit.ForceConditionedDenoise(sigma=0.1, probability=p, atoms=r).corrupt(
        batch, generator()
    )
    moved = (new.pos != batch.pos).any(1)
    assert torch.equal(moved, new.has_target) and torch.equal(moved, new.force_given)
    assert torch.equal(new.force_input[moved], batch.forces[moved])
    assert not new.force_input[~moved].any()
    assert torch.allclose(new.target, batch.pos - new.pos, atol=1e-14)
    # labels stay those of the clean structure
    assert torch.equal(new.forces, batch.forces) and torch.equal(new.energy, batch.energy)
    touched = torch.zeros(n, dtype=torch.bool).index_put_((batch.batch[moved],), torch.tensor(True))
    # of 4 and 6 atoms; that none moves is possible
    chance = p * (1 - 0.5 * ((1 - r) ** 4 + (1 - r) ** 6))
    assert abs(int(touched.sum()) - n * chance) < Z * math.sqrt(n * chance * (1 - chance))
    share = moved.double().mean()
    assert abs(float(share) - p * r) < Z * math.sqrt(p / n)
    noise = new.target[moved]
    variance = float(noise.square().mean())
    assert variance == pytest.approx(0.01, rel=Z * math.sqrt(2 / noise.numel()))


def test_force_conditioned_loss_against_numpy():
    objective = potkit.ForceConditionedDenoise(
        sigma=0.1, probability=0.5, atoms=0.6, weight=0.7, energy=2.0, forces=3.0
    )
    batch = objective.corrupt(molecules(12).batch(dtype=torch.float64), generator(2))
    torch.manual_seed(0)
    e = torch.randn(12, dtype=torch.float64)
    f, v = torch.randn_like(batch.pos), torch.randn_like(batch.pos)
    loss, metrics = objective.loss(Prediction(e, None, f, v), batch)
    m = batch.has_target
    assert 0 < int(m.sum()) < len(m)
    energy = (e - batch.energy).abs().mean()
    force = (f - batch.forces).abs()[~m].mean()
    noise = ((v - batch.target)[m] ** 2).mean()
    assert float(loss) == pytest.approx(
        float(2 * energy + 3 * force + 0.7 * noise / 0.01), rel=1e-9
    )
    assert float(metrics["forces_mae"]) == pytest.approx(float(force))
    assert float(metrics["noise_mse"]) == pytest.approx(float(noise))


@pytest.mark.parametrize("network", ["schnet", "torchmd_et", "gns"])
def test_a_network_not_given_forces_does_not_depend_on_the_encoder(network):
    special = {"schnet": {"filters": 8}, "torchmd_et": {"heads": 2}, "gns": {}}
    options = {"hidden": 8, "layers": 1, "radial": 4, **special[network]}
    model = potkit.build(network, cutoff=4.0, seed=0, **options)
    before = model(molecules(3).batch(dtype=torch.float32), ("energy", "forces"))
    assert "force_encoder" not in model.parts(("vector",))
    model.extend((), ("forces",), seed=1)
    after = model(molecules(3).batch(dtype=torch.float32), ("energy", "forces"))
    assert torch.equal(before.energy, after.energy) and torch.equal(before.forces, after.forces)
    assert "force_encoder" in model.parts(("vector",))
    batch = potkit.ForceConditionedDenoise(probability=1.0).corrupt(
        molecules(3).batch(dtype=torch.float32), generator()
    )
    told = model(batch, ("vector",)).vector
    batch.force_input = -batch.force_input
    assert not torch.allclose(told, model(batch, ("vector",)).vector, rtol=1e-3)
    # forces of one structure are no business of the others, in whatever way they are stored
    batch.force_given = batch.batch == 0
    mixed = model(batch, ("vector",)).vector
    batch.force_given = batch.batch < 0
    none = model(batch, ("vector",)).vector
    assert torch.equal(mixed[batch.batch > 0], none[batch.batch > 0])
    assert not torch.equal(mixed, none)
    del batch.force_input
    assert torch.equal(none, model(batch, ("vector",)).vector)
    other = potkit.build(network, cutoff=4.0, seed=0, force_input=True, **options)
    assert other.force_encoder.state_dict().keys() == model.force_encoder.state_dict().keys()


def test_missing_forces_are_an_error_before_training(tmp_path):
    bare = potkit.Structures(
        [6, 8], np.eye(2, 3), [0, 2], energy=[1.0], info={"name": "no forces here"}
    )
    for objective in (
        potkit.ForceConditionedDenoise(),
        potkit.ForceConditionedDenoise(energy=0, forces=0),
    ):
        with pytest.raises(DataError) as caught:
            potkit.pretrain(egnn(), bare, objective, out=tmp_path / "r")
        assert "forces" in one_line(caught.value) and "no forces here" in str(caught.value)
    batch = potkit.ForceConditionedDenoise(probability=1.0).corrupt(
        molecules(2).batch(), generator()
    )
    with pytest.raises(ConfigError, match="force_input=True"):
        egnn()(batch, ("vector",))
    with pytest.raises(ConfigError, match="noise_readout=True"):
        egnn()(batch_without_forces(), ("noise",))


def batch_without_forces():
    return molecules(2).batch()


# -- noisy nodes ---------------------------------------------------------------------------------
def test_noisy_nodes_show_every_structure_clean_and_noisy():
    batch = attach(molecules(500).batch(dtype=torch.float64), 4.0)
    new = potkit.NoisyNodes(sigma=0.1).corrupt(batch, generator())
    n, s = len(batch.z), 500
    assert new.num_graphs == 2 * s
    assert torch.equal(new.ptr[1:] - new.ptr[:-1], torch.bincount(new.batch))
    assert torch.equal(new.pos[:n], batch.pos)
    assert not new.target[:n].any()
    assert not new.has_target[:n].any()
    assert new.has_target[n:].all()
    noise = new.pos[n:] - batch.pos
    torch.testing.assert_close(new.target[n:], -noise, atol=1e-14, rtol=0)
    assert float(noise.square().mean()) == pytest.approx(0.01, rel=Z * math.sqrt(2 / noise.numel()))
    assert torch.equal(new.z[n:], batch.z)
    assert torch.equal(new.energy[s:], batch.energy)
    assert new.has_label.tolist() == [True] * s + [False] * s
    single = potkit.NoisyNodes(sigma=0.1, beside=False).corrupt(batch, generator())
    assert single.num_graphs == s
    assert single.has_label.all()
    assert torch.allclose(single.pos, new.pos[n:])


def test_noisy_nodes_loss_is_the_supervised_one_plus_the_noise():
    structures = molecules(6)
    plain = potkit.Supervised(energy=2.0, forces=3.0)
    both = potkit.NoisyNodes(energy=2.0, forces=3.0, sigma=0.1, weight=0.5)
    batch = both.corrupt(structures.batch(dtype=torch.float64), generator())
    n = len(batch.z) // 2
    torch.manual_seed(0)
    e = torch.randn(12, dtype=torch.float64)
    f, v = torch.randn_like(batch.pos), torch.randn_like(batch.pos)
    clean = structures.batch(dtype=torch.float64)
    supervised, _ = plain.loss(Prediction(e[:6], None, f[:n]), clean)
    noise = (v - batch.target)[n:].square().mean() / 0.01
    loss, _ = both.loss(Prediction(e, None, f, v), batch)
    assert float(loss) == pytest.approx(float(supervised + 0.5 * noise), rel=1e-10)
    assert both.validation() == plain


@pytest.mark.parametrize("network", ["schnet", "gns"])
def test_noise_and_forces_are_said_by_different_weights(network):
    """Where −∂E/∂x or the direct vector is the force, the noise must come from elsewhere."""
    model = potkit.build(network, cutoff=4.0, seed=0, hidden=8, layers=1, radial=4)
    model.extend(("noise",))
    assert model.parts(("energy", "noise")) >= {"backbone", "noise_readout"}
    assert "vector_readout" not in model.parts(("noise",))
    prediction = model(molecules(3).batch(dtype=torch.float32), ("forces", "noise"))
    assert prediction.vector is None
    assert not torch.allclose(prediction.noise, prediction.forces, atol=1e-3)
    gradient = torch.autograd.grad(
        prediction.noise.square().sum(), list(model.energy_head.parameters()), allow_unused=True
    )
    assert all(g is None for g in gradient)


# -- in training ---------------------------------------------------------------------------------
TASKS = [
    potkit.Denoise(sigma=(0.05, 0.2)),
    potkit.Denoise(sigma={"CH2O": 0.1, "*": 0.2}),
    potkit.AnisotropicDenoise(sigma=0.1),
    potkit.ForceConditionedDenoise(),
    potkit.NoisyNodes(),
    potkit.Masked(ratio=0.5, by="atom", target="bonded", flag=True),
]
# without noise and masks; masks and noise at once are for water
ELSEWHERE = [potkit.Supervised(), potkit.MaskedDenoise()]
TASKS += unlisted(*TASKS, *ELSEWHERE)


@pytest.mark.parametrize("objective", TASKS, ids=lambda o: o.name)
def test_a_resumed_run_draws_the_same_corruption(tmp_path, objective):
    """Stopped after 3 of 6 steps by an exception, then started anew: the same weights as without
    the stop.
    """
    config = potkit.TrainConfig(
        steps=6, batch_size=3, progress=False, device="cpu", checkpoint_every=1, micro_batch=None
    )
    structures, kind = molecules(8), type(objective)
    original = kind.corrupt
    drawn = []

    class Stop(Exception):
        pass

    def corrupt(self, batch, generator=None):
        drawn.append(0)
        if len(drawn) == 4:
            raise Stop
        return original(self, batch, generator)

    def train(out):
        return loop.fit(prepared(objective), structures, objective, config, out)

    whole = train(tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        patch.setattr(kind, "corrupt", corrupt)
        train(tmp_path / "stopped")
    resumed = train(tmp_path / "stopped")
    assert equal(weights(whole.model), weights(resumed.model))


def prepared(objective):
    model = egnn()
    if objective.labels():
        model.set_references({1: 0.0, 6: 0.0, 8: 0.0}, 3.0)
    return model


def test_the_same_step_draws_the_same_numbers_and_another_step_others():
    batch, random = molecules(4).batch(), torch.Generator()
    for objective in TASKS:
        first, again, later = (
            objective.corrupt(batch, steps.draw(random, 0, step, 0)) for step in (3, 3, 4)
        )
        assert torch.equal(first.pos, again.pos) and torch.equal(first.target, again.target)
        assert first.pos.shape != later.pos.shape or not torch.equal(first.pos, later.pos)


def test_force_conditioned_pretraining_leaves_a_backbone_for_fine_tuning(tmp_path):
    config = potkit.TrainConfig(steps=4, batch_size=4, progress=False, device="cpu")
    run = potkit.pretrain(
        egnn(), molecules(24), potkit.ForceConditionedDenoise(), config, tmp_path / "p"
    )
    assert float(run.model.scale) == pytest.approx(
        float(np.sqrt(np.mean(molecules(24).forces ** 2)))
    )
    loaded = checkpoints.load(run.checkpoint)
    assert loaded.force_encoder is not None
    assert loaded.noise_readout is not None
    assert loaded.recipe["options"]["force_input"]
    tuned = potkit.finetune(
        egnn(3),
        molecules(12),
        molecules(4, seed=1),
        config,
        run,
        tmp_path / "f",
        potkit.NoisyNodes(),
    )
    assert tuned.model.force_encoder is None and tuned.model.noise_readout is not None
    rows = tuned.metrics
    # labels choose the best state
    assert {"noise_mse", "forces_mae", "valid_forces_mae"} <= set(rows)
    assert "valid_noise_mse" not in set(rows)
    plain = potkit.finetune(
        egnn(3), molecules(12), molecules(4, seed=1), config, run, tmp_path / "g"
    )
    assert plain.model.noise_readout is None


def test_experiments_and_their_files_take_every_objective():
    from potkit.experiments import yaml_form

    spec = yaml_form.ExperimentSpec(
        name="x",
        model={"name": "egnn", "hidden": 8, "layers": 1},
        labels=[10],
        train={"data": "ani-mini", "limit": 20},
        test={"data": "ani-mini", "limit": 5},
        pretrain_on={"data": "ani-mini", "limit": 20},
        arms={
            "range": {"objective": "denoise", "sigma": [0.05, 0.2]},
            "table": {"objective": "denoise", "sigma": {"C*": 0.1, "*": [0.1, 0.3]}},
            "anisotropic": {"objective": "anisotropic-denoise", "elements": {"H": 0.2}},
            "dens": {"objective": "force-conditioned-denoise"},
            "bonded": {"objective": "masked", "by": "atom", "target": "bonded", "flag": True},
        },
        supervised={"objective": "noisy-nodes", "sigma": 0.05},
    )
    experiment = spec.experiment()
    assert experiment.supervised == potkit.NoisyNodes(sigma=0.05)
    assert experiment.objectives["range"] == potkit.Denoise(sigma=(0.05, 0.2))
    assert experiment.objectives["table"].sigma == {"C*": 0.1, "*": (0.1, 0.3)}
    assert experiment.objectives["dens"] == potkit.ForceConditionedDenoise()


def test_a_foreign_network_says_that_it_takes_no_forces():
    class Foreign(torch.nn.Module):
        cutoff = 4.0

        def forward(self, z, pos):
            return pos.square().sum(1, keepdim=True)

    with pytest.raises(ConfigError, match="AtomEmbedding"):
        potkit.models.adapt(Foreign(), features=lambda out: out).extend((), ("forces",))


def test_memory_saving_parts_give_the_same_gradient(tmp_path):
    ends = []
    for size in (None, 2):
        config = potkit.TrainConfig(
            steps=2,
            batch_size=6,
            progress=False,
            device="cpu",
            micro_batch=size,
            precision="64-true",
        )
        ends.append([])
        for objective in (
            potkit.NoisyNodes(),
            potkit.ForceConditionedDenoise(atoms=0.5),
            potkit.AnisotropicDenoise(),
            TASKS[1],
        ):
            run = loop.fit(
                prepared(objective),
                molecules(9),
                objective,
                config,
                tmp_path / f"{objective.name}-{size}",
            )
            ends[-1].append(weights(run.model))
    for whole, parts in zip(*ends, strict=True):
        assert all(torch.allclose(v, parts[k], rtol=1e-9, atol=1e-12) for k, v in whole.items())


@pytest.mark.gpu
@pytest.mark.parametrize("objective", TASKS, ids=lambda o: o.name)
def test_corruption_and_loss_stay_on_the_gpu(objective):
    model = prepared(objective).extend(objective.needed(), objective.inputs).cuda()
    new = objective.corrupt(
        molecules(6).batch(device="cuda", dtype=torch.float32),
        torch.Generator("cuda").manual_seed(0),
    )
    again = objective.corrupt(
        molecules(6).batch(device="cuda", dtype=torch.float32),
        torch.Generator("cuda").manual_seed(0),
    )
    assert new.pos.is_cuda and new.target.is_cuda and torch.equal(new.pos, again.pos)
    loss, _ = objective.loss(model(new, objective.needed()), new)
    loss.backward()
    assert loss.is_cuda and bool(loss.isfinite())


def test_noisy_nodes_are_judged_by_all_that_they_learn():
    """Validation has the weight of the stress, too."""
    task = objectives.NoisyNodes(energy=0, forces=0, stress=100.0, sigma=0.1)
    assert task.validation() == objectives.Supervised(energy=0, forces=0, stress=100.0)


def test_a_read_out_of_noise_needs_a_head_to_be_made_like():
    model = egnn(vector="gradient")
    model.energy_head = torch.nn.Identity()
    with pytest.raises(ConfigError, match="Identity is not potkit's AtomicEnergy"):
        model.extend(("noise",))
