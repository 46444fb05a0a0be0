"""Noise scales and the Gaussian assumption, on data whose law is known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from tiny import one_line, rotations, water

import potkit
from potkit.analysis import local_vibrations, noise_scale
from potkit.errors import ConfigError, DataError

TETRAHEDRON = np.array([[0, 0, 0], [1, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1.0]])
METHANE = 1.09 / math.sqrt(3) * TETRAHEDRON


def thermal(shape, z, n, width, seed=0, law=None, turn=True) -> potkit.Structures:
    """``n`` copies of ``shape`` with Gaussian displacements of ``width`` Å (per axis, or an array
    per atom), turned and moved at random.
    """
    rng = np.random.default_rng(seed)
    shape = np.broadcast_to(shape, (n, *np.shape(shape)[-2:]))
    unit_noise = rng.normal(size=shape.shape) if law is None else law(rng, shape.shape)
    pos = shape + unit_noise * np.reshape(width, (-1, 1))
    if turn:
        pos = pos @ rotations(n, rng).swapaxes(1, 2) + rng.normal(scale=3.0, size=(n, 1, 3))
    ptr = shape.shape[1] * np.arange(n + 1)
    return potkit.Structures(np.tile(z, n), pos.reshape(-1, 3), ptr, info={"name": "known"})


def thermal_width(structures: potkit.Structures) -> float:
    """What the thermal method says of all atoms, Å."""
    return noise_scale.propose_sigma(structures).table.loc["thermal", "all"]


def peroxide(dihedral: np.ndarray) -> np.ndarray:
    """H–O–O–H at the given dihedral angles, [n, 4, 3] Å."""
    pos = np.zeros((len(dihedral), 4, 3))
    pos[:, 0] = [-0.17, 0.95, 0]
    pos[:, 2] = [1.45, 0, 0]
    pos[:, 3, 0] = 1.62
    pos[:, 3, 1] = 0.95 * np.cos(dihedral)
    pos[:, 3, 2] = 0.95 * np.sin(dihedral)
    return pos


# -- amplitudes ----------------------------------------------------------------------------------
@pytest.mark.parametrize("width", [0.01, 0.05])
def test_amplitudes_of_a_known_gaussian_are_found(width):
    structures = thermal(METHANE, [6, 1, 1, 1, 1], 2000, width)
    proposal = noise_scale.propose_sigma(structures, limit=2000)
    # 2000·9 degrees of freedom: 0.5 %, and second order
    assert proposal.table.loc["thermal", "all"] == pytest.approx(width, rel=0.02)
    for element in "CH":
        assert proposal.table.loc["thermal", element] == pytest.approx(width, rel=0.04)
    assert proposal.weights.sum() == pytest.approx(5.0)  # every atom counts once
    # all vibrations have λ = width²: a share q of the noise is explained where σ² = q/(1 − q) λ
    for share in (0.5, 0.9):
        sigma = noise_scale.propose_sigma(structures, "harmonic", share=share, limit=2000).sigma
        assert sigma == pytest.approx(width * math.sqrt(share / (1 - share)), rel=0.03)
    assert proposal.explained(3 * width) == pytest.approx(0.9, abs=0.005)
    # 6 of 15 coordinates are rigid motion
    assert proposal.unexplained(np.array([3 * width])) == pytest.approx([1 - 0.6 * 0.9], abs=0.005)


def test_turning_about_bonds_is_no_vibration():
    angle = np.random.default_rng(1).uniform(0, 2 * np.pi, 800)
    structures = thermal(peroxide(angle), [1, 8, 8, 1], 800, 0.02)
    assert thermal_width(structures) == pytest.approx(0.02, rel=0.05)
    # of 500 copies drawn from 800 one in twenty intervals is wider than the threshold
    verdicts = noise_scale.gaussian_test(structures)["verdict"]
    assert verdicts.isin(["Gaussian", "Gaussian or nearly"]).all()
    whole = noise_scale.gaussian_test(structures, frame="structure").set_index("element")
    assert whole.loc["H", "rms (Å)"] > 0.15 and whole.loc["H", "verdict"] == "no"


def test_the_harmonic_share_is_what_the_best_linear_denoiser_reaches():
    """Vibrations of different widths: regress the noise on the noisy coordinates and compare the
    explained variance.
    """
    rng = np.random.default_rng(0)
    widths = np.array([0.02, 0.05, 0.1])
    x = rng.normal(size=(40_000, 3)) * widths
    for sigma in (0.03, 0.12):
        eps = rng.normal(size=x.shape) * sigma
        y = x + eps
        best = y * (eps * y).sum(0) / (y * y).sum(0)
        reached = 1 - np.square(eps - best).mean() / sigma**2
        share = noise_scale.explained(sigma, widths**2, np.ones(3))
        assert share == pytest.approx(reached, abs=0.01)


def test_molecules_in_a_box_share_their_star_across_the_boundary():
    box = water(30)
    rigid = noise_scale.propose_sigma(box)
    assert rigid.method == "neighbours" and "rigid" in rigid.reason and len(rigid.modes) == 0
    # nearly every atom's nearest neighbour is a bond away
    assert rigid.sigma == pytest.approx(0.1 * 0.9572 / math.sqrt(3), rel=1e-2)
    assert np.isnan(rigid.unexplained(0.1)) and rigid.range[0] == pytest.approx(rigid.sigma)
    pos = box.pos + np.random.default_rng(2).normal(scale=0.03, size=box.pos.shape)
    side = box.cell[0, 0, 0]
    moving = potkit.Structures(
        box.z,
        np.mod(pos, side),
        box.ptr,
        cell=box.cell,
        pbc=box.pbc,
        molecule=box.molecule,
        info=box.info,
    )
    assert noise_scale.propose_sigma(moving).method == "harmonic"
    assert thermal_width(moving) == pytest.approx(0.03, rel=0.05)
    (star,) = local_vibrations.stars(moving, limit=10_000)
    assert star.u.shape == (240, 3, 3)  # 30 boxes of 8 molecules
    with pytest.raises(DataError, match="rigid"):
        noise_scale.gaussian_test(box)


def test_the_ceiling_is_where_a_bond_looks_like_no_bond():
    structures = thermal(METHANE, [6, 1, 1, 1, 1], 20, 1e-6)
    hh = np.linalg.norm(METHANE[1] - METHANE[2])
    ceiling = noise_scale.propose_sigma(structures).table.loc["ceiling"]
    assert ceiling["H"] == pytest.approx((hh - 1.09) / math.sqrt(8), rel=1e-4)
    assert np.isnan(ceiling["C"])  # carbon is bonded to all other atoms
    soft = noise_scale.propose_sigma(thermal(METHANE, [6, 1, 1, 1, 1], 200, 0.09))
    assert soft.sigma <= soft.range[1] and "ceiling" in soft.reason


def test_different_orders_of_atoms_and_chiral_copies_are_kept_apart():
    a = thermal(METHANE, [6, 1, 1, 1, 1], 100, 0.02)
    b = thermal(METHANE[[1, 0, 2, 3, 4]], [1, 6, 1, 1, 1], 100, 0.02, seed=1)
    assert thermal_width(a + b) == pytest.approx(0.02, rel=0.05)
    mean = METHANE - METHANE.mean(0)
    mirrored = np.stack([mean, mean * [1, 1, -1]])
    u, _ = local_vibrations.align(mirrored)
    assert np.abs(u).max() > 0.3  # a mirror image is not turned into its original


def test_broken_bonds_and_other_orders_of_atoms_do_not_count_as_vibrations():
    rng, n, width = np.random.default_rng(3), 1000, 0.02
    ethane = np.array(
        [
            [0, 0, 0.0],
            [1.53, 0, 0],
            *([-0.39, 1.03 * math.cos(t), 1.03 * math.sin(t)] for t in (0, 2.1, 4.2)),
            *([1.92, 1.03 * math.cos(t), 1.03 * math.sin(t)] for t in (1, 3.1, 5.2)),
        ]
    )
    other = ethane[[0, 1, 5, 6, 2, 7, 3, 4]]  # hydrogens in another order, on the other carbon
    broken = ethane.copy()
    broken[7] += [1.0, 0, 0]
    shapes = np.stack([ethane] * 500 + [other] * 300 + [broken] * 200)
    mixed = thermal(shapes, [6, 6, 1, 1, 1, 1, 1, 1], n, width)
    shuffled = mixed[rng.permutation(n)]
    assert thermal_width(shuffled) == pytest.approx(width, rel=0.06)
    assert (noise_scale.gaussian_test(shuffled)["verdict"] == "Gaussian").all()
    # the same bonds, the other hand
    swapped = thermal(
        np.stack([METHANE] * 750 + [METHANE[[0, 2, 1, 3, 4]]] * 250), [6, 1, 1, 1, 1], n, width
    )
    assert noise_scale.propose_sigma(swapped).table.loc["thermal", "all"] == pytest.approx(
        width, rel=0.06
    )


# -- the Gaussian test ---------------------------------------------------------------------------
LAWS = {
    "normal": (None, "Gaussian"),
    "uniform": (lambda rng, shape: rng.uniform(-math.sqrt(3), math.sqrt(3), shape), "no"),
    "two minima": (
        lambda rng, shape: rng.choice([-1.0, 1.0], shape) + 0.3 * rng.normal(size=shape),
        "no",
    ),
    "heavy tails": (lambda rng, shape: rng.standard_t(3, shape) / math.sqrt(3), "no"),
}


@pytest.mark.parametrize("law", LAWS)
def test_laws_are_told_apart_by_the_size_of_the_deviation(law):
    """Straight on the numbers (no turning, whose projections mix neighbouring displacements)."""
    draw, verdict = LAWS[law]
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 800)) if draw is None else draw(rng, (40, 800))
    effect, low, high = noise_scale.shape_effect(list(x), np.zeros(40))
    assert low <= effect <= high and noise_scale.shape_verdict(low, high) == verdict, (
        low,
        effect,
        high,
    )


def test_gaussian_vibrations_pass_and_jumping_atoms_do_not():
    vibrating = thermal(METHANE, [6, 1, 1, 1, 1], 500, 0.03)
    good = noise_scale.gaussian_test(vibrating).set_index("element")
    assert list(good.index) == ["all", "H", "C"] and (good["verdict"] == "Gaussian").all()
    assert (good["rejected (%)"] < 40).all() and abs(good.loc["all", "kurtosis"]) < 0.15
    assert good.loc["all", "KS"] == pytest.approx(good.loc["all", "by chance"], abs=0.01)
    two = LAWS["two minima"][0]
    moving = thermal(peroxide(np.zeros(1000)), [1, 8, 8, 1], 1000, [0.12, 0, 0, 0.12], law=two)
    bad = noise_scale.gaussian_test(moving, limit=1000).set_index("element")
    assert (
        bad.loc["H", "verdict"] == "no"
        and bad.loc["H", "kurtosis"] < -0.5
        and bad.loc["H", "rejected (%)"] > 50
    )


def test_more_data_do_not_change_the_verdict():
    """What p-values of all data would do: the deviation stays the same size."""
    law = LAWS["heavy tails"][0]
    effects = []
    for n in (400, 4000):
        table = noise_scale.gaussian_test(
            thermal(METHANE, [6, 1, 1, 1, 1], n, 0.02, law=law), limit=n
        ).iloc[0]
        effects.append(table["effect"])
    assert effects[0] == pytest.approx(effects[1], abs=0.02)


def draw(law: str, rng, shape):
    laws = {
        "normal": rng.normal,
        "uniform": lambda size: rng.uniform(-1, 1, size),
        "t5": lambda size: rng.standard_t(5, size),
    }
    return laws[law](size=shape)


@pytest.mark.parametrize(
    "law, size, words",
    [
        ("normal", 0.0, {"Gaussian", "Gaussian or nearly"}),
        ("uniform", 0.2004, {"no"}),
        ("t5", 0.1337, {"nearly", "nearly or no"}),
    ],
)
def test_the_effect_is_the_same_at_every_number_of_displacements(law, size, words):
    """Of many systems: 30 displacements an axis say what 500 say, and 20 give the same size but no
    interval. What KS has beyond chance does not.
    """
    for n, axes in ((20, 3000), (30, 2000), (60, 1000), (500, 400)):
        rng = np.random.default_rng(n)
        series = list(draw(law, rng, (axes, n)))
        effect, low, high = noise_scale.shape_effect(series, np.repeat(np.arange(axes // 4), 4))
        assert effect**2 == pytest.approx(size**2, abs=0.008)
        if n < 30:
            assert (low, high) == (0.0, np.inf)
            assert noise_scale.shape_verdict(low, high) == "not told"
            continue
        assert high - low < 0.15, n
        assert noise_scale.shape_verdict(low, high) in words | {"not told"} and (
            n < 60 or noise_scale.shape_verdict(low, high) in words
        )
        if n >= 60:  # the other way of finding the interval, over blocks
            again = noise_scale.shape_effect(series, np.zeros(axes))
            assert (
                again[0] == pytest.approx(effect, abs=0.02)
                and again[1] <= size + 0.01
                and again[2] >= size - 0.01
            )


@pytest.mark.parametrize("systems, n", [(20, 30), (12, 60), (1, 100)])
@pytest.mark.parametrize("law, size", [("normal", 0.0), ("uniform", 0.2004)])
def test_the_interval_of_the_effect_covers(law, size, systems, n):
    hits = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        owners = np.repeat(np.arange(systems), 6 if systems > 1 else 12)
        _, low, high = noise_scale.shape_effect(list(draw(law, rng, (len(owners), n))), owners)
        hits.append(low <= size + 1e-4 and size - 1e-4 <= high)
    assert np.mean(hits) > 0.9


def test_verdicts_from_intervals():
    said = [
        noise_scale.shape_verdict(*ends)
        for ends in ((0, 0.02), (0.06, 0.14), (0.16, 0.2), (0, 0.1), (0.1, 0.2), (0, 0.2))
    ]
    assert said == ["Gaussian", "nearly", "no", "Gaussian or nearly", "nearly or no", "not told"]
    with pytest.raises(DataError, match="at least 20"):
        noise_scale.shape_effect([np.zeros(19)], np.zeros(1))


def test_l_moments_of_known_laws():
    rng = np.random.default_rng(0)
    assert noise_scale.l_moments(rng.uniform(0, 1, 400_000)) == pytest.approx(
        [1 / 2, 1 / 6, 0, 0, 0, 0], abs=1e-3
    )
    normal = noise_scale.l_moments(rng.normal(size=400_000))
    assert normal[1] == pytest.approx(1 / math.sqrt(math.pi), abs=2e-3)
    assert normal[2:] / normal[1] == pytest.approx(noise_scale.NORMAL_RATIOS, abs=3e-3)
    # the exponential law's: 1/2, 1/6, 1/12, 1/20, 1/30; and of six numbers by all of their subsets
    # of two
    exponential = noise_scale.l_moments(rng.exponential(size=400_000))
    assert exponential[1:] == pytest.approx([1 / 2, 1 / 6, 1 / 12, 1 / 20, 1 / 30], abs=5e-3)
    six = rng.normal(size=6)
    differences = [abs(a - b) / 2 for i, a in enumerate(six) for b in six[:i]]
    assert noise_scale.l_moments(six)[1] == pytest.approx(np.mean(differences))


def test_the_free_share_is_shown():
    found = noise_scale.propose_sigma(thermal(METHANE, [6, 1, 1, 1, 1], 500, 0.03))
    shares = found.by_share()
    assert (
        found.share == 0.9
        and shares[0.9] == pytest.approx(found.sigma, rel=0.05)
        and shares.is_monotonic_increasing
    )
    assert shares[0.5] == pytest.approx(0.03, rel=0.05)  # equal variances of noise and vibration
    assert (
        "for a chosen share of 0.9 (others: 0.5: 0.0" in repr(found)
        and "chosen share" in found._repr_html_()
    )
    assert "share" not in repr(
        noise_scale.propose_sigma(thermal(METHANE, [6, 1, 1, 1, 1], 500, 0.03), "thermal")
    )


def test_histogram_data_are_standardised():
    table = noise_scale.displacements(thermal(METHANE, [6, 1, 1, 1, 1], 300, 0.03))
    spread = table.groupby("axis")["standardised"].std(ddof=0)
    assert np.allclose(spread, 1.0) and set(table["element"]) == {"C", "H"}
    assert table["displacement (Å)"].std() < 0.05


# -- whatever else -------------------------------------------------------------------------------
def test_the_same_data_and_seed_give_the_same_answer():
    structures = thermal(METHANE, [6, 1, 1, 1, 1], 600, 0.05)
    first, again, other = (
        noise_scale.propose_sigma(structures, limit=100, seed=seed).sigma for seed in (0, 0, 1)
    )
    assert first == again != other
    table = noise_scale.gaussian_test(structures, limit=100)
    assert table.equals(noise_scale.gaussian_test(structures, limit=100))


def test_single_structures_fall_back_on_neighbours_and_say_why():
    proposal = noise_scale.propose_sigma(thermal(METHANE, [6, 1, 1, 1, 1], 3, 0.02))
    assert proposal.method == "neighbours" and "fewer than 10" in proposal.reason
    assert "neighbours" in repr(proposal) and "<table" in proposal._repr_html_()
    objective = potkit.AnisotropicDenoise(sigma=proposal.sigma, elements=proposal.per_element)
    assert objective.elements.keys() == {"H", "C"}


@pytest.mark.parametrize(
    "call, error, word",
    [
        (lambda s: noise_scale.propose_sigma(s, "guess"), ConfigError, "guess"),
        (lambda s: noise_scale.propose_sigma(s, share=1.0), ConfigError, "share"),
        (lambda s: noise_scale.gaussian_test(s, "molecule"), ConfigError, "molecule"),
        (lambda s: noise_scale.propose_sigma(s, "harmonic"), DataError, "known"),
        (lambda s: noise_scale.gaussian_test(s), DataError, "known"),
    ],
)
def test_mistakes_are_named(call, error, word):
    with pytest.raises(error) as caught:
        call(thermal(METHANE, [6, 1, 1, 1, 1], 3, 0.02))
    assert word in one_line(caught.value)


def test_atoms_without_neighbours_say_nothing():
    alone = potkit.Structures([18], np.zeros((1, 3)), [0, 1])
    with pytest.raises(DataError, match="neighbour"):
        noise_scale.propose_sigma(alone)


def test_embedded_molecules():
    """ani-mini: the proposal lies among the σ that notebook 02 finds useful, 0.05 to 0.2 Å, and
    vibrations are Gaussian nearly.
    """
    structures = potkit.load("ani-mini")
    structures = structures[np.isin(structures.system, np.unique(structures.system)[::8])]
    proposal = noise_scale.propose_sigma(structures)
    assert proposal.method == "harmonic" and 0.08 < proposal.sigma < 0.2
    low, high = proposal.range
    assert 0.03 < low < proposal.sigma < high < 0.35
    assert proposal.per_element["H"] > proposal.per_element["C"]  # light atoms move more
    table = noise_scale.gaussian_test(structures).set_index("element")
    assert table.loc["all", "verdict"] in ("Gaussian", "nearly")


def test_reference_molecules(reference_data):
    """3BPA at 300 K: one molecule in several conformers, Gaussian in its stars and not as a whole.
    Ethane up to bond breaking is wider.
    """
    bpa = potkit.read(reference_data / "3bpa" / "train_300K.xyz")
    assert noise_scale.propose_sigma(bpa).sigma == pytest.approx(0.10, abs=0.02)
    # 0.04 (0.02 to 0.06): about the bound, and said so
    found = noise_scale.gaussian_test(bpa).loc[0]
    assert found["verdict"] in ("Gaussian", "Gaussian or nearly") and found["high"] < 0.07
    assert noise_scale.gaussian_test(bpa, "structure").loc[0, "verdict"] == "no"
    alkanes = potkit.read(reference_data / "ani1-alkanes" / "core")
    wide = noise_scale.propose_sigma(alkanes)
    assert wide.sigma > 0.15 and wide.sigma <= wide.range[1]
    # molecular dynamics from two files with different orders of atoms: vibrations as narrow as in
    # one of them
    moving = noise_scale.propose_sigma(potkit.read(reference_data / "ani1-alkanes" / "md"))
    assert 0.02 < moving.table.loc["thermal", "all"] < 0.05


def test_copies_are_drawn_from_the_whole_file():
    """A file in the order of temperature: the first half is cold, the second hot."""
    rng = np.random.default_rng(0)
    rest = potkit.load("ani-mini")[:1]
    n = 400
    width = np.repeat([0.01, 0.1], n // 2)[:, None, None]
    pos = np.asarray(rest.pos)[None] + width * rng.normal(size=(n, len(rest.z), 3))
    frames = potkit.Structures(
        np.tile(rest.z, n), pos.reshape(-1, 3), np.arange(n + 1) * len(rest.z)
    )
    few = next(iter(local_vibrations.stars(frames, limit=100)))
    spread = few.u.std(axis=(1, 2))
    hot = (spread > 0.04).mean()
    assert 0.3 < hot < 0.7
