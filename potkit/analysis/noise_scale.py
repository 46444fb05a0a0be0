"""How far atoms move by themselves: a noise scale σ from the data alone, and a test of the Gaussian
assumption behind denoising.

Denoising takes a structure for the centre of a Gaussian. Whether it is one, and how wide, can be
seen in the data, in the displacements of atoms in their `stars`. Systems with several conformers,
structures with broken bonds and boxes of molecules are dealt with there.
"""

from __future__ import annotations

import dataclasses
import html

import numpy as np
import pandas as pd
import torch
from scipy import stats
from scipy.special import ndtr

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
        return f"SigmaProposal(σ = {self.sigma:.3f} Å by {self.method}; {per}; {self.reason})"

    def _repr_html_(self) -> str:
        headline = f"<p><b>σ = {self.sigma:.3f} Å</b> ({html.escape(self.reason)})</p>"
        return headline + self.table.to_html(float_format="%.3f")


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
    harmonic    the σ at which a denoiser that knows all vibrations exactly explains most of the
                noise, a ``share`` of 0.9: for a vibration of variance λ the posterior mean of the
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
    return SigmaProposal(float(sigma), chosen, per, table, reason, modes, weights, rigid)


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
        low, high = -5.0, 2.0  # log₁₀ Å
        for _ in range(50):
            middle = 0.5 * (low + high)
            if explained(10.0**middle, values[chosen], weights[chosen]) < share:
                low = middle
            else:
                high = middle
        return 10.0**middle

    sigmas = {"all": solve(np.ones(len(z), bool))}
    for e in np.unique(z):
        sigmas[SYMBOLS[e]] = solve(z == e)
    return sigmas, values, weights


def _neighbours(structures: Structures, limit: int, seed: int) -> dict[str, dict[str, float]]:
    """Rows "neighbours" and "ceiling" of the table, from structures drawn until there are about 20
    000 atoms.
    """
    order = np.random.default_rng(seed).permutation(len(structures))[:limit]
    rows = np.sort(order[: 1 + int((np.cumsum(structures.n_atoms[order]) < 20_000).sum())])
    batch = attach(structures.batch(rows, dtype=torch.float64), 4.0)
    sender, receiver = batch.edge_index
    distance = edge_vectors(batch).norm(dim=1)
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
# Kolmogorov–Smirnov distances beyond chance: below the first a normal law for all purposes, above
# the second none
CLOSE = 0.015
FAR = 0.04


def displacements(
    structures: Structures, frame: str = "local", limit: int = 500, seed: int = 0
) -> pd.DataFrame:
    """Displacements of all atoms along the axes of their own covariance, [element, axis,
    displacement (Å), standardised], for histograms.

    ``axis`` numbers the axes through all atoms and stars. Directions in which turning leaves no
    freedom, or nothing moves, are left out. Standardised means divided by the axis's standard
    deviation: a mixture of wide and narrow Gaussians must not pass for one law with heavy tails.
    Raises DataError where no system has 10 structures or nothing moves.
    """
    elements, series, widths = [], [], []
    for star in stars(structures, frame, limit, seed):
        for a in np.flatnonzero(star.own):
            u = star.u[:, a] - star.u[:, a].mean(0)
            spread, axes = np.linalg.eigh(u.T @ u / len(u))
            kept = spread > max(1e-4 * spread[-1], 0.01 * RIGID**2)
            series.extend((u @ axes[:, kept]).T)
            widths.extend(np.sqrt(spread[kept]))
            elements += [SYMBOLS[star.z[a]]] * int(kept.sum())
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
    skew, kurtosis    mean over axes of the absolute third moment and of the excess fourth; a
                      Gaussian has 0 (the first a little above it, by chance)
    KS                mean over axes of the Kolmogorov–Smirnov distance to the normal law of the
                      same variance, that is the largest difference between the two distribution
                      functions: an effect size, which more data make more certain but not larger
    by chance         what that mean is for Gaussian samples of the same sizes (drawn with ``seed``)
    rejected (%)      in how many axes Shapiro and Wilk's test at 5 % rejects a subsample of
                      ``subsample`` displacements; 5 for Gaussians
    verdict           "Gaussian" if KS is at most 0.015 above chance, "nearly" up to 0.04, else "no"
                      (a uniform law is 0.045 above)

    There is no p-value of all data: with 10⁵ numbers every test rejects every real distribution for
    deviations that matter to no one, so the size of the deviation decides, and a test is asked only
    in samples of a fixed, small size, where its answers can be compared between sets. What is
    tested is the motion in the data, of which the analogy of noise and forces speaks; the noise
    added in training is Gaussian always. Raises as `displacements`.
    """
    rng = np.random.default_rng(seed)
    table = displacements(structures, frame, limit, seed)
    axis = table["axis"].to_numpy()
    starts = np.flatnonzero(np.diff(axis, prepend=-1))
    element = table["element"].astype(str).to_numpy()[starts]  # of each axis
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
        rejected = [stats.shapiro(rng.permutation(x)[:subsample]).pvalue < 0.05 for x in tried]
        rows.append(
            {
                "element": name,
                "axes": len(chosen),
                "rms (Å)": np.sqrt(square),
                "skew": skew,
                "kurtosis": kurtosis,
                "KS": ks,
                "by chance": expected,
                "rejected (%)": 100.0 * float(np.mean(rejected)),
                "verdict": _verdict(ks - expected),
            }
        )
    return pd.DataFrame(rows)


def _verdict(beyond_chance: float) -> str:
    if beyond_chance <= CLOSE:
        return "Gaussian"
    return "nearly" if beyond_chance <= FAR else "no"


def _ks(x: np.ndarray) -> float:
    """Kolmogorov–Smirnov distance of standardised numbers to N(0, 1)."""
    n = len(x)
    law = ndtr(np.sort(x))
    return float(max((law - np.arange(n) / n).max(), (np.arange(1, n + 1) / n - law).max()))


def _ks_by_chance(n: int, rng: np.random.Generator) -> float:
    x = rng.normal(size=(200, n))
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    return float(np.mean([_ks(row) for row in x]))
