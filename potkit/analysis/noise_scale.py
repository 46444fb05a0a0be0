"""How far atoms move by themselves: a noise scale σ from the data alone, and a test of the Gaussian
assumption behind denoising.

Denoising takes a structure for the centre of a Gaussian. Whether it is one, and how wide, can be
seen in the data, in the displacements of atoms in their `stars`. Systems with several conformers,
structures with broken bonds and boxes of molecules are dealt with there.
"""

from __future__ import annotations

import dataclasses
import html
from collections.abc import Sequence

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.special import comb, ndtr

from ..errors import ConfigError, DataError
from ..structures.element_properties import covalent_radii
from ..structures.elements import SYMBOLS
from ..structures.geometry import edge_vectors
from ..structures.neighbors import attach
from ..structures.store import Structures
from .local_vibrations import BOND, FEWEST, Star, stars

RIGID = 0.005  # Å; vibrations smaller than this are not there (rigid water models)
LINDEMANN = 0.1  # of the distance to the nearest neighbour: where solids melt (Lindemann 1910)


# -- a noise scale -------------------------------------------------------------------------------
@dataclasses.dataclass(frozen=True)
class SigmaProposal:
    """What `propose_sigma` found: ``sigma`` (Å) by ``method``, per element, and what every method
    says (``table``, Å).
    """

    sigma: float
    method: str
    per_element: dict[str, float]
    table: pd.DataFrame
    reason: str
    modes: np.ndarray  # [M] Å², variances of the vibrations the harmonic method knows
    weights: np.ndarray  # [M] how many atoms stand behind each
    rigid: float  # share of coordinates that are a structure's translation and rotation
    share: float = 0.9  # what the harmonic method was asked to explain: a choice, not a measurement

    def explained(self, sigma: float | np.ndarray) -> np.ndarray:
        """Share of noise of ``sigma`` Å on vibrations that the best denoiser for harmonic ones
        explains: mean of σ²/(σ² + λ) over their variances λ.
        """
        return explained(sigma, self.modes, self.weights)

    def unexplained(self, sigma: float | np.ndarray) -> np.ndarray:
        """The loss (`Denoise`, normalised) of that denoiser: noise that moves or turns a structure
        as a whole cannot be told, either.
        """
        return 1.0 - (1.0 - self.rigid) * self.explained(sigma)

    def by_share(self, shares: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95)) -> pd.Series:
        """σ (Å) of the harmonic method for other shares: how far the proposal hangs on the one
        that was chosen. NaN without vibrations.
        """
        values = [
            _sigma_of_share(s, self.modes, self.weights) if len(self.modes) else np.nan
            for s in shares
        ]
        return pd.Series(values, index=pd.Index(shares, name="share explained"), name="σ (Å)")

    @property
    def range(self) -> tuple[float, float]:
        """From the width of the vibrations (rigid: Lindemann's σ) to where noise hides the bonds
        (Å): what a scan should span. NaN where the data do not tell.
        """
        column = self.table["all"]
        low = "thermal" if len(self.modes) else "neighbours"
        return float(column.get(low, np.nan)), float(column.get("ceiling", np.nan))

    def __repr__(self) -> str:
        per = ", ".join(f"{k} {v:.3f}" for k, v in self.per_element.items())
        how = f"{self.method}{self._choice()}"
        return f"SigmaProposal(σ = {self.sigma:.3f} Å by {how}; {per}; {self.reason})"

    def _choice(self) -> str:
        """That the share is free, and what it does, in words; nothing for methods without one."""
        if self.method != "harmonic":
            return ""
        others = ", ".join(
            f"{share:g}: {sigma:.3f}"
            for share, sigma in self.by_share().items()
            if share != self.share
        )
        return f" for a chosen share of {self.share:g} (others: {others})"

    def _repr_html_(self) -> str:
        table = self.table.to_html(float_format="%.3f")
        how = html.escape(f"by {self.method}{self._choice()} ({self.reason})")
        return f"<p><b>σ = {self.sigma:.3f} Å</b> {how}</p>{table}"


METHODS = ("thermal", "harmonic", "neighbours")


def explained(sigma: float | np.ndarray, modes: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Weighted mean over ``modes`` λ [M] of σ²/(σ² + λ), for every ``sigma``; NaN without any."""
    if not len(modes):
        return np.full(np.shape(sigma), np.nan)
    square = np.square(np.asarray(sigma, float))[..., None]
    return (square / (square + modes) * weights).sum(-1) / weights.sum()


def propose_sigma(
    structures: Structures,
    method: str | None = None,
    share: float = 0.9,
    limit: int = 500,
    seed: int = 0,
) -> SigmaProposal:
    """A noise scale for ``structures`` without a trial run, from the data alone.

    thermal     root mean square displacement per axis of an atom in its star, the median over
                atoms: noise as wide as the vibrations
    harmonic    the σ at which a denoiser that knows all vibrations exactly explains a ``share`` of
                the noise. The share is free, and 0.9 a choice: σ is six times larger for 0.95 than
                for 0.5 on ani-mini
                (`SigmaProposal.by_share`). For a vibration of variance λ the posterior mean of the
                noise is σ²/(σ² + λ) of what is seen, and so is the share that it explains. Smaller
                noise drowns in the vibrations, and there is little to learn but their mean; larger
                noise only leaves their neighbourhood
    neighbours  Lindemann's: root mean square displacement of a tenth of the distance to the nearest
                atom, σ = 0.1 d/√3. Knows no temperature; for single structures and rigid molecules

    ``method=None`` takes harmonic, or neighbours where there are no vibrations to be seen (fewer
    than 10 structures of everything, or rigid molecules); never more than the "ceiling", which is
    also in the table: the σ at which one standard deviation of noise lets a bond seem as long as
    the shortest distance to an atom that is not bonded, (d_free − d_bond)/(2√2). In periodic boxes,
    vibrations are those within molecules. Raises ConfigError for an unknown method, DataError for a
    method the data cannot answer.
    """
    if method not in (None, *METHODS):
        raise ConfigError(f"unknown method {method!r}; there are {', '.join(METHODS)}")
    if not 0 < share < 1:
        raise ConfigError(f"share must be between 0 and 1, got {share}")
    name = structures.info.get("name", "structures")
    local_stars = list(stars(structures, "local", limit, seed))
    rows: dict[str, dict[str, float]] = {}
    modes = weights = np.zeros(0)
    why_not = f"fewer than {FEWEST} structures of each system"
    if local_stars:
        rows["thermal"] = _thermal(local_stars)
        rows["harmonic"], modes, weights = _harmonic(local_stars, share)
        why_not = ""
        if rows["thermal"]["all"] < RIGID:
            why_not = f"no vibrations above {RIGID} Å, the molecules are rigid"
    rows |= _neighbours(structures, limit, seed)
    if why_not:
        modes = weights = np.zeros(0)
        if method in ("thermal", "harmonic"):
            raise DataError(f"{name}: method {method!r} finds no vibrations: {why_not}")
    reason = why_not or f"{len(local_stars)} stars of {name}"
    chosen = method or ("neighbours" if why_not else "harmonic")
    if chosen not in rows or not np.isfinite(rows[chosen]["all"]):
        raise DataError(f"{name}: no atom has a neighbour, so the data say nothing about σ")
    sigma = rows[chosen]["all"]
    ceiling = rows.get("ceiling", {"all": np.inf})["all"]
    if method is None and sigma > ceiling:
        reason = f"{reason}; at the ceiling, {chosen} alone says {sigma:.3f}"
        sigma = ceiling
    whole_motions = np.where(structures.pbc.any(1), 3, 6)  # of a structure: moving, and turning
    rigid = float(np.mean(whole_motions / (3 * structures.n_atoms).clip(6)))
    columns = ["all", *(SYMBOLS[z] for z in structures.elements)]
    table = pd.DataFrame(rows, columns=list(rows)).T.reindex(columns=columns)
    table.index.name = "σ in Å by"
    per = {k: float(v) for k, v in table.loc[chosen].items() if k != "all" and np.isfinite(v)}
    return SigmaProposal(float(sigma), chosen, per, table, reason, modes, weights, rigid, share)


def _by_element(z: np.ndarray, values: np.ndarray) -> dict[str, float]:
    return {"all": float(values.mean())} | {
        SYMBOLS[e]: float(values[z == e].mean()) for e in np.unique(z)
    }


def _thermal(local_stars: list[Star]) -> dict[str, float]:
    z = np.concatenate([s.z[s.own] for s in local_stars])
    width = np.sqrt(np.concatenate([s.variances()[s.own] for s in local_stars]))
    return {"all": float(np.median(width))} | {
        SYMBOLS[e]: float(np.median(width[z == e])) for e in np.unique(z)
    }


def _harmonic(
    local_stars: list[Star], share: float
) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """σ at which ``share`` is explained, for all and per element, where a vibration counts by the
    atoms' part in it; all λ and weights.
    """
    values, z, weights = [], [], []  # a row per (vibration, atom)
    for star in local_stars:
        modes, shares = star.modes()
        shares = (shares / star.left())[:, star.own]  # every atom has weight 1
        values.append(np.repeat(modes, star.own.sum()))
        z.append(np.tile(star.z[star.own], len(modes)))
        weights.append(shares.ravel())
    values, z, weights = (np.concatenate(part) for part in (values, z, weights))

    def solve(chosen: np.ndarray) -> float:
        return _sigma_of_share(share, values[chosen], weights[chosen])

    sigmas = {"all": solve(np.ones(len(z), bool))}
    for e in np.unique(z):
        sigmas[SYMBOLS[e]] = solve(z == e)
    return sigmas, values, weights


def _sigma_of_share(share: float, modes: np.ndarray, weights: np.ndarray) -> float:
    """The σ (Å) at which ``share`` of the noise is explained, by bisection of its logarithm."""
    low, high = -5.0, 2.0  # log₁₀ Å
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (
            (middle, high) if explained(10.0**middle, modes, weights) < share else (low, middle)
        )
    return 10.0**middle


def _neighbours(structures: Structures, limit: int, seed: int) -> dict[str, dict[str, float]]:
    """Rows "neighbours" and "ceiling" of the table, from structures drawn until there are about 20
    000 atoms.
    """
    order = np.random.default_rng(seed).permutation(len(structures))[:limit]
    rows = np.sort(order[: 1 + int((np.cumsum(structures.n_atoms[order]) < 20_000).sum())])
    batch = attach(structures.batch(rows, dtype=torch.float64), 4.0)
    sender, receiver = batch.edge_index
    distance = edge_vectors(batch.pos, sender, receiver, batch.edge_shift).norm(dim=1)
    radii = covalent_radii()[batch.z]
    n = len(batch.z)
    bonded = distance < BOND * (radii[sender] + radii[receiver])

    def per_atom(kept: torch.Tensor, how: str, start: float) -> np.ndarray:
        """The smallest or largest of each atom's distances among those ``kept``, [N] Å."""
        out = torch.full((n,), start, dtype=torch.float64)
        return out.scatter_reduce(0, receiver[kept], distance[kept], how).numpy()

    z = batch.z.numpy()
    nearest = per_atom(distance > 0, "amin", np.inf)
    gap = per_atom(~bonded, "amin", np.inf) - per_atom(bonded, "amax", -np.inf)
    out = {}
    if np.isfinite(nearest).any():
        kept = np.isfinite(nearest)
        out["neighbours"] = _by_element(z[kept], LINDEMANN / np.sqrt(3.0) * nearest[kept])
    if np.isfinite(gap).any():
        kept = np.isfinite(gap)
        out["ceiling"] = _by_element(z[kept], gap[kept] / np.sqrt(8.0))
    return out


# -- the Gaussian assumption ---------------------------------------------------------------------
# the size of a deviation from the normal law, in standard deviations: one for all purposes below
# the first, none above the second
# (logistic 0.08, Student's t of 5 degrees of freedom 0.13, Laplace 0.19, uniform 0.20, of 3 degrees
# 0.27)
SMALL, LARGE = 0.05, 0.15
ORDERS = 6  # L-moments that are compared: those from the third on
# displacements in the smallest block: the sixth L-moment needs six and scatters widely with so few
FEWEST_IN_BLOCK = 10
ENOUGH = 3 * FEWEST_IN_BLOCK  # displacements along an axis for an interval: three blocks
BLOCK = 20  # displacements in a block where there are enough: high L-moments of a few scatter
FEW_SYSTEMS = 8  # from so many on the interval is one over systems


def displacements(
    structures: Structures, frame: str = "local", limit: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Displacements of all atoms along the axes of their own covariance, [element, system, axis,
    displacement (Å), standardised], for histograms.

    ``axis`` numbers the axes through all atoms and stars. Directions in which turning leaves no
    freedom, or nothing moves, are left out. Standardised means divided by the axis's standard
    deviation: a mixture of wide and narrow Gaussians must not pass for one law with heavy tails.
    Raises DataError where no system has 10 structures or nothing moves.
    """
    elements, systems, series, widths = [], [], [], []
    for star in stars(structures, frame, limit, seed):
        for a in np.flatnonzero(star.own):
            u = star.u[:, a] - star.u[:, a].mean(0)
            spread, axes = np.linalg.eigh(u.T @ u / len(u))
            kept = spread > max(1e-4 * spread[-1], 0.01 * RIGID**2)
            series.extend((u @ axes[:, kept]).T)
            widths.extend(np.sqrt(spread[kept]))
            elements += [SYMBOLS[star.z[a]]] * int(kept.sum())
            systems += [star.system] * int(kept.sum())
    if not series:
        name = structures.info.get("name", "structures")
        raise DataError(
            f"{name}: nothing to test, fewer than {FEWEST} structures of each system or rigid "
            "molecules"
        )
    sizes = [len(x) for x in series]
    displacement = np.concatenate(series)
    return pd.DataFrame(
        {
            "element": pd.Categorical(np.repeat(elements, sizes)),
            "system": np.repeat(systems, sizes),
            "axis": np.repeat(np.arange(len(series)), sizes),
            "displacement (Å)": displacement,
            "standardised": displacement / np.repeat(widths, sizes),
        }
    )


def gaussian_test(
    structures: Structures,
    frame: str = "local",
    limit: int = 500,
    subsample: int = 60,
    seed: int = 0,
) -> pd.DataFrame:
    """Whether atoms move as Gaussians do, a row per element and one for all. Columns:

    axes              how many directions of motion (up to three per atom), each with up to
                      ``limit`` displacements
    rms (Å)           of the displacements along them
    effect            how far the laws along the axes are from normal laws of the same place and
                      width: root mean square difference of their quantiles in standard deviations
                      (Wasserstein distance), as far as L-moments to the sixth order tell. An effect
                      size: estimated without bias by chance (see `shape_effect`), so that 20
                      displacements and 10 000 of one law give the same number on average (to a
                      tenth; to some hundredths from 60 on). 0.20 for a uniform law, 0.13 for
                      Student's t of 5 degrees of freedom
    low, high         its 95 % interval, which is what more data make narrower; 0 to infinity where
                      no axis has 30 displacements. Axes with fewer do not count where some have
    verdict           from that interval alone: "Gaussian" where it lies below 0.05, "no" above
                      0.15, "nearly" between; "Gaussian or nearly", "nearly or no" or "not told"
                      where it reaches over these bounds, or where there are too few displacements
    skew, kurtosis    mean over axes of the absolute third moment and of the excess fourth; a
                      Gaussian has 0 (the first a little above it, by chance)
    KS                mean over axes of the Kolmogorov–Smirnov distance to the normal law of the
                      same variance
    by chance         what that mean is for Gaussian samples of the same sizes (drawn with
                      ``seed``); what KS has beyond it still depends on the number of displacements
    rejected (%)      in how many axes Shapiro and Wilk's test at 5 % rejects a subsample of
                      ``subsample`` displacements (or all where there are fewer, so it compares only
                      sets with as many); 5 for Gaussians
    There is no p-value of all data: with 10⁵ numbers every test rejects every real distribution for
    deviations that matter to no one.
    What is tested is the motion in the data, of which the analogy of noise and forces speaks; the
    noise added in training is Gaussian always. Raises as `displacements`.
    """
    rng = np.random.default_rng(seed)
    table = displacements(structures, frame, limit, seed)
    axis = table["axis"].to_numpy()
    starts = np.flatnonzero(np.diff(axis, prepend=-1))
    element = table["element"].astype(str).to_numpy()[starts]  # of each axis
    system = table["system"].to_numpy()[starts]
    series = np.split(table["standardised"].to_numpy(), starts[1:])
    displaced = np.split(table["displacement (Å)"].to_numpy(), starts[1:])
    chance = {n: _ks_by_chance(n, rng) for n in {len(x) for x in series}}
    moments = np.array(
        [
            [_ks(x), chance[len(x)], abs(np.mean(x**3)), np.mean(x**4) - 3.0, np.mean(d**2)]
            for x, d in zip(series, displaced, strict=True)
        ]
    )
    names = [SYMBOLS[e] for e in structures.elements if SYMBOLS[e] in element]
    if len(names) > 1:
        names.insert(0, "all")
    rows = []
    for name in names:
        chosen = np.flatnonzero((element == name) | (name == "all"))
        ks, expected, skew, kurtosis, square = moments[chosen].mean(0)
        tried = [series[i] for i in rng.permutation(chosen)[:500]]
        long = [i for i in chosen if len(series[i]) >= ENOUGH] or [
            i for i in chosen if len(series[i]) >= 2 * FEWEST_IN_BLOCK
        ]
        effect, low, high = (
            shape_effect([series[i] for i in long], system[long])
            if long
            else (np.nan, np.nan, np.nan)
        )
        rejected = [stats.shapiro(rng.permutation(x)[:subsample]).pvalue < 0.05 for x in tried]
        rows.append(
            {
                "element": name,
                "axes": len(chosen),
                "rms (Å)": np.sqrt(square),
                "effect": effect,
                "low": low,
                "high": high,
                "skew": skew,
                "kurtosis": kurtosis,
                "KS": ks,
                "by chance": expected,
                "rejected (%)": 100.0 * float(np.mean(rejected)),
                "verdict": shape_verdict(low, high),
            }
        )
    return pd.DataFrame(rows)


def shape_verdict(low: float, high: float) -> str:
    """What an interval of `shape_effect` says: "Gaussian", "nearly", "no", or between which of
    them it leaves the choice.
    """
    words = ("Gaussian", "nearly", "no")
    first, last = (int(np.searchsorted((SMALL, LARGE), end, side="left")) for end in (low, high))
    if not np.isfinite(low + high) or last - first == 2:
        return "not told"
    return words[first] if first == last else f"{words[first]} or {words[last]}"


def shape_effect(
    series: list[np.ndarray],  # displacements along each axis, in the order of the data
    systems: np.ndarray,  # [axes] whose axes they are
    confidence: float = 0.95,
) -> tuple[float, float, float]:
    """How far the laws along axes are from normal laws, with its interval: (effect, low, high); see
    `gaussian_test`.

    With quantiles x(u) = Σ (2r − 1) λ_r P_{r−1}(2u − 1) (Hosking 1990, equation 2.8: L-moments λ_r,
    Legendre polynomials P) the mean square difference to the normal law of the same λ₁ and λ₂ is
    Σ_{r ≥ 3} (2r − 1) (λ_r − τ_r λ₂)², where τ_r are the normal law's ratios, and its standard
    deviation is λ₂ √π. An axis's displacements are cut into blocks; block k gives unbiased
    estimates v_k of the terms' roots, and the mean of v_k · v_l over k ≠ l has the sum for its
    expectation, whatever the size of a block: chance adds to squares, not to products of
    independent blocks. Divided by π l₂², where l₂ is the blocks' mean, it would still come out too
    small by a share of some seven over the number of displacements where tails are heavy; the
    jackknife over blocks (Quenouille 1956) takes that off from 30 displacements on, where there are
    three blocks. It matters because it does not average out over axes, however many there are.

    The interval of the mean square over axes is Student's t over systems, or, of fewer than 8, over
    the blocks (jackknife): the axes of a system move together, in the same structures, so that many
    axes are not many independent numbers. Of fewer than 30 displacements along an axis there is no
    interval (0 to infinity). Raises DataError for an axis with fewer than 20 displacements.
    """
    shortest = min(map(len, series), default=0)
    if shortest < 2 * FEWEST_IN_BLOCK:
        raise DataError(
            f"the shape of a law needs at least {2 * FEWEST_IN_BLOCK} displacements along each "
            f"axis, got {shortest}"
        )
    names, number = np.unique(systems, return_inverse=True)
    if len(names) >= FEW_SYSTEMS:
        squares = [_unbiased(*_squares(x, _blocks(len(x)))) for x in series]
        total, count = np.bincount(number, squares), np.bincount(number)
        mean = total.sum() / count.sum()
        freedom = len(names) - 1
        left = total - mean * count
        error = np.sqrt(np.square(left).sum() * len(names) / freedom) / count.sum()
    else:
        blocks = _blocks(shortest)
        each = [_squares(x, blocks) for x in series]
        without = np.mean([values for _, values in each], axis=0)  # [blocks], or none of them
        mean, freedom = _unbiased(np.mean([square for square, _ in each]), without), blocks - 1
        if shortest >= ENOUGH:
            error = np.sqrt(freedom / blocks * np.square(without - without.mean()).sum())
    if shortest < ENOUGH:
        # of two blocks chance stays in the estimate, and many axes do not average it out
        return float(np.sqrt(max(mean, 0.0))), 0.0, np.inf
    half = stats.t.ppf(0.5 + confidence / 2, freedom) * error
    effect, low, high = (float(np.sqrt(max(v, 0.0))) for v in (mean, mean - half, mean + half))
    return effect, low, high


def _blocks(n: int) -> int:
    """Into how many blocks n displacements are cut: three, which the jackknife needs, where they
    are not too small for it.
    """
    fewest = 3 if n >= 3 * FEWEST_IN_BLOCK else 2
    return int(np.clip(n // BLOCK, fewest, 10))


def _squares(
    x: np.ndarray,  # [n]
    blocks: int,
) -> tuple[float, np.ndarray]:
    """Square of the effect along an axis, from all blocks of ``x`` and without each of them
    [blocks] ([0] of two, which cannot do without one); see `_unbiased`.
    """
    orders = np.arange(3, ORDERS + 1)
    parts = np.array([l_moments(part) for part in np.array_split(x, blocks)])
    roots = np.sqrt(2 * orders - 1) * (parts[:, 2:] - NORMAL_RATIOS * parts[:, 1:2])
    products = roots @ roots.T  # [blocks, blocks]
    np.fill_diagonal(products, 0.0)
    pairs = blocks * (blocks - 1)
    if blocks == 2:
        width = l_moments(x)[1]
        return float(products.sum() / pairs / (np.pi * width**2)), np.zeros(0)
    widths = parts[:, 1]  # [blocks]
    rest = (widths.sum() - widths) / (blocks - 1)
    left = products.sum() - 2 * products.sum(1)  # the products without each block
    pairs_left = (blocks - 1) * (blocks - 2)
    return (
        float(products.sum() / pairs / (np.pi * widths.mean() ** 2)),
        left / pairs_left / (np.pi * np.square(rest)),
    )


def _unbiased(
    square: float,
    without: np.ndarray,  # [blocks] the same without each block, or none
) -> float:
    """``square`` less the bias that the jackknife finds."""
    blocks = len(without)
    return square if not blocks else blocks * square - (blocks - 1) * without.mean()


def l_moments(x: np.ndarray) -> np.ndarray:
    """Unbiased L-moments of the orders 1 to 6, [6], in the unit of ``x`` (Hosking 1990,
    equations 2.3 and 3.1).
    """
    x, n = np.sort(x), len(x)
    rank, weight, weighted = np.arange(n), np.ones(n), []
    for r in range(ORDERS):
        weighted.append(np.mean(x * weight))
        weight = weight * (rank - r) / (n - 1 - r) if r < ORDERS - 1 else weight
    return LEGENDRE @ weighted


def _legendre(orders: int) -> np.ndarray:
    """[orders, orders]: coefficients of the shifted Legendre polynomials P_r(2u − 1), a row
    each, of rising powers of u.
    """
    out = np.zeros((orders, orders))
    for r in range(orders):
        for k in range(r + 1):
            out[r, k] = (-1.0) ** (r - k) * comb(r, k) * comb(r + k, k)
    return out


LEGENDRE = _legendre(ORDERS)
# L-moments of the normal law over its second, r = 3 to 6 (exact for 3 to 5; the sixth by
# quadrature)
NORMAL_RATIOS = np.array([0.0, 30.0 / np.pi * np.arctan(np.sqrt(2.0)) - 9.0, 0.0, 0.0436611539])


def _ks(x: np.ndarray) -> float:
    """Kolmogorov–Smirnov distance of standardised numbers to N(0, 1)."""
    n = len(x)
    law = ndtr(np.sort(x))
    return float(max((law - np.arange(n) / n).max(), (np.arange(1, n + 1) / n - law).max()))


def _ks_by_chance(n: int, rng: np.random.Generator) -> float:
    x = rng.normal(size=(200, n))
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    return float(np.mean([_ks(row) for row in x]))
