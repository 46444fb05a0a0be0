"""Are forces −dE/dx, and in which units? What the data themselves tell.

Two kinds of evidence, each a number that is 1 where all is right. *Relative*, how energies change
over how the forces say they do: between neighbouring structures (ΔE over −F̄·Δx), or, where none lie
near each other, over the energy of pair potentials fitted to the forces. *Absolute*, the forces
over those of a cheap model: how bonds to hydrogen stretch, or GFN2-xTB. A wrong sign is −1 in both,
a wrong unit a factor; `judge` names the sign and units that fit all evidence best.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_array

from .. import units
from ..structures.element_properties import covalent_radii_array
from ..structures.elements import SYMBOLS, composition
from ..structures.geometry import minimum_image
from ..structures.splits import by_system
from ..structures.store import Structures
from .formats.common import unit_of_totals

NEAR = 0.25  # Å; neighbours are structures in which no coordinate differs by more
FEWEST_PAIRS = 20  # of neighbouring structures
SYSTEMS = 60  # looked at for neighbours
SAMPLED = 300  # structures the pair potentials are fitted to
ATOMS = 6000  # of these structures together; of few elements more
REACH = 4.0  # Å; of the pair potentials
WIDTH = 0.22  # of their Gaussians, in the logarithm of the distance
SPARE = 12  # energy differences that are left when the zero of each isomer is taken off
XTB_TOTAL = 240  # atoms of all structures that GFN2-xTB looks at
XTB_ATOMS = 60  # GFN2-xTB of larger structures takes too long

# −dF/dd of a bond X–H over which forces of any level scatter by a third, eV/Å²: 5, 6.5 and
# 7.8 mdyn/Å, the harmonic force constants of methane, ammonia and water
STRETCHING = {6: 31.0, 7: 41.0, 8: 48.0}
BOND = {6: 1.09, 7: 1.01, 8: 0.97}  # Å

FORCE_UNITS = (
    "eV/Å",
    "hartree/bohr",
    "hartree/Å",
    "eV/bohr",
    "kcal/mol/Å",
    "kcal/mol/bohr",
    "kJ/mol/Å",
    "kJ/mol/nm",
    "meV/Å",
)
ENERGY_UNITS = ("eV", "hartree", "kcal/mol", "kJ/mol")


@dataclass(frozen=True)
class Evidence:
    """One answer of the data: ``value`` is 1 where labels are right, within [low, high] (95 %).

    ``absolute``: it compares forces with known ones, not with the energies. ``tolerance``: by which
    factor (as a logarithm) right labels may be off. ``counts``: whether it is strong enough to be
    believed; ``detail`` says what it comes from, or why there is none (``value`` is NaN then).
    """

    question: str
    value: float = math.nan
    low: float = math.nan
    high: float = math.nan
    tolerance: float = 0.3
    absolute: bool = False
    counts: bool = False
    detail: str = ""

    @property
    def plain(self) -> bool:
        """Whether no right labels give this: another sign, or off by four times the tolerance (a
        factor of 1.8 between neighbouring structures), by a factor of seven at most.
        """
        far = min(4 * self.tolerance, 2.0)
        return self.counts and (self.value < 0 or abs(math.log(self.value)) > far)

    @property
    def fits(self) -> bool:
        """Whether it is what right labels give, as far as it tells."""
        if not self.counts:
            return True
        return self.value > 0 and abs(math.log(self.value)) < 2 * self.tolerance


class Verdict(NamedTuple):
    """What the evidence says: ``state`` is "right", "wrong", "unclear" or "cannot be told"."""

    state: str
    says: str
    evidence: tuple[Evidence, ...]


def judge(structures: Structures, thorough: bool = True, seed: int = 0) -> Verdict:
    """Sign and unit of the forces (and units of the energies), as far as the data tell.

    Looks at a sample: seconds at most, whatever the size. ``thorough`` asks GFN2-xTB too, where it
    is installed and nothing quicker told. Structures without one of the labels are left out.
    """
    s = structures
    if s.forces is None or not len(s):
        return Verdict("cannot be told", "there are no forces", ())
    have = np.flatnonzero(s.labelled("forces"))
    if not len(have):
        return Verdict("cannot be told", "there are no forces", ())
    rng = np.random.default_rng(seed)
    drawn = s[np.sort(np.random.default_rng([seed, 1]).permutation(have)[:SAMPLED])]
    if not np.any(drawn.forces):
        return Verdict("cannot be told", "all forces are 0", ())
    evidence = []
    totals = None
    if s.energy is not None and len(both := have[s.labelled("energy")[have]]):
        part = s if len(both) == len(s) else s[both]
        evidence.append(along_neighbours(part, seed))
        if not evidence[0].counts:
            evidence.append(over_pair_potentials(part, rng))
        totals = unit_of_totals(part)
    evidence.append(over_bonds_to_hydrogen(drawn))
    if thorough and not (evidence[-1].counts and any(e.counts for e in evidence[:-1])):
        evidence.append(over_xtb(drawn, rng))
    return _verdict(tuple(evidence), totals)


# --- what fits the evidence ----------------------------------------------------------------------


def _verdict(evidence: tuple[Evidence, ...], totals: str | None) -> Verdict:
    believed = [e for e in evidence if e.counts]
    if not believed:
        reasons = "; ".join(e.detail for e in evidence if e.detail)
        return Verdict("cannot be told", reasons, evidence)
    fits = []
    for energy, forces, sign in itertools.product(ENERGY_UNITS, FORCE_UNITS, (1, -1)):
        cost = _unlikely(energy, forces, sign, totals)
        for e in believed:
            expected = sign / units.factor(forces)
            if not e.absolute:
                expected = sign * units.factor(forces) / units.factor(energy)
            if e.value * expected <= 0:
                cost += 9.0
                continue
            cost += min(9.0, (math.log(e.value / expected) / e.tolerance) ** 2)
        fits.append((cost, energy, forces, sign))
    fits.sort(key=lambda fit: fit[0])
    best = fits[0]
    right = next(fit for fit in fits if fit[1:] == ("eV", "eV/Å", 1))
    if right[0] <= min(best[0] + 2.0, 4.0 * len(believed)):
        questions = " and ".join(e.question for e in believed)
        if all(e.absolute for e in believed):
            questions += "; whether the energies have that unit is not told"
        elif not any(e.absolute for e in believed):
            questions += "; both labels might be in another unit"
        return Verdict("right", f"told by {questions}", evidence)
    if best[0] > 4.0 + 4.0 * len(believed):
        return Verdict("unclear", "no sign and unit fits what the data tell", evidence)
    if not any(e.plain for e in believed):
        doubt = f"{_named(*best[1:])}? or these are forces of another kind than expected"
        return Verdict("unclear", doubt, evidence)
    alike = [fit for fit in fits if fit[0] < best[0] + 0.7 and fit is not right]
    return Verdict("wrong", " or ".join(_named(*fit[1:]) for fit in alike[:3]), evidence)


def _unlikely(energy: str, forces: str, sign: int, totals: str | None) -> float:
    """How far-fetched such a mistake is, as a cost beside that of the evidence."""
    cost = 0.0
    if sign < 0:
        cost += 1.0
    if forces != "eV/Å":
        cost += 1.0
    if energy != "eV":
        cost += 1.0
        # one mistake, not two: both labels as the program printed them
        cost -= 0.9 if forces.startswith(energy + "/") else 0.0
    if sign < 0 and forces not in ("eV/Å", "hartree/bohr"):
        cost += 1.0
    if forces in ("eV/bohr", "kcal/mol/bohr", "meV/Å", "hartree/Å"):
        cost += 0.3
    if totals is not None and energy.lower() != totals:
        cost += 6.0
    return cost


def _named(energy: str, forces: str, sign: int) -> str:
    parts = []
    if sign < 0:
        parts.append("the forces are gradients, +dE/dx: turn their sign")
    if forces != "eV/Å":
        of = "gradients" if sign < 0 else "forces"
        parts.append(f"the {of} are in {forces}: forces_unit={forces.replace('Å', 'angstrom')}")
    if energy != "eV":
        parts.append(f"the energies are in {energy}: energy_unit={energy}")
    return " and ".join(parts) or "sign and units are right"


# --- energies against forces ---------------------------------------------------------------------


def along_neighbours(structures: Structures, seed: int = 0, per_system: int = 300) -> Evidence:
    """ΔE over −F̄·Δx between structures of a system that lie within `NEAR` of each other, the same
    atoms in the same order; shortest images where periodic.
    """
    question = "ΔE over −F·Δx"
    x, y, steps = neighbour_pairs(structures, seed, per_system)
    if len(x) >= FEWEST_PAIRS and not (x.std() and y.std()):
        return Evidence(question, detail="energies of neighbouring structures do not differ")
    if len(x) < FEWEST_PAIRS:
        reason = (
            f"{len(x)} pairs of structures lie within {NEAR:g} Å of each other, "
            f"{FEWEST_PAIRS} are needed"
        )
        return Evidence(question, detail=reason)
    value, low, high = _slope(x, y)
    correlation = float(np.corrcoef(x, y)[0, 1])
    # the trapezoid rule is bent by anharmonicity where steps are wide
    wide = float(np.median(steps)) > 0.1
    detail = f"{len(x)} pairs, correlation {correlation:.3f}"
    return Evidence(
        question, value, low, high, 0.3 if wide else 0.15, False, abs(correlation) > 0.8, detail
    )


def neighbour_pairs(
    structures: Structures, seed: int = 0, per_system: int = 300
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """−F̄·Δx (eV), ΔE (eV) and the largest step of a coordinate (Å) of pairs of neighbours, [n]
    each.
    """
    s = structures
    rng = np.random.default_rng(seed)
    work, change, steps = [], [], []
    systems = [rows for _, rows in by_system(s) if len(rows) > 1]
    if len(systems) > SYSTEMS:
        systems = [systems[k] for k in np.sort(rng.permutation(len(systems))[:SYSTEMS])]
    for rows in systems:
        start = int(rng.integers(0, max(1, len(rows) - per_system)))
        rows = rows[start : start + per_system]
        a = int(s.n_atoms[rows[0]])
        rows = rows[s.n_atoms[rows] == a]
        atoms = (s.ptr[rows][:, None] + np.arange(a)).reshape(-1)
        z = s.z[atoms].reshape(-1, a)
        same = (z == z[0]).all(1)
        rows = rows[same]
        pos = np.asarray(s.pos[atoms], np.float64).reshape(-1, a, 3)[same]
        forces = np.asarray(s.forces[atoms], np.float64).reshape(-1, a, 3)[same]
        energy = s.energy[rows]
        pbc = s.pbc[rows]
        for i in range(0, len(pos), max(1, len(pos) // 100)):
            step = pos - pos[i]
            fits = np.ones(len(rows), bool)
            if s.cell is not None and pbc[i].any():
                # in another box the energy differs by the work of the stress as well
                fits = np.abs(s.cell[rows] - s.cell[rows[i]]).max((1, 2)) < 1e-6
                step[fits] = minimum_image(step[fits], s.cell[rows[i]], pbc[i])
            far = np.abs(step).max((1, 2))
            far[(far < 1e-6) | ~fits] = np.inf
            j = int(np.argmin(far))
            if far[j] < NEAR:
                work.append(-0.5 * np.sum((forces[i] + forces[j]) * step[j]))
                change.append(energy[j] - energy[i])
                steps.append(far[j])
    return np.array(work), np.array(change), np.array(steps)


def _slope(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """The slope of y over x through the origin, and its 95 % interval by the jackknife over ten
    parts.
    """
    part = np.arange(len(x)) % 10
    xy = np.bincount(part, x * y, 10)
    xx = np.bincount(part, x * x, 10)
    value = xy.sum() / xx.sum()
    left = xx.sum() - xx
    used = left > 0
    without = (xy.sum() - xy)[used] / left[used]
    n = len(without)
    error = math.sqrt((n - 1) / n * np.square(without - without.mean()).sum())
    wide = 2.262 * error  # Student's t of nine degrees of freedom
    return float(value), float(value - wide), float(value + wide)


class _Pairs(NamedTuple):
    """Pairs of atoms of a sample within `REACH`, each once."""

    owner: np.ndarray  # [P] structure
    first: np.ndarray  # [P] atom
    second: np.ndarray  # [P] atom
    vector: np.ndarray  # [P, 3] Å, second − first
    distance: np.ndarray  # [P] Å


def _pairs(s: Structures) -> _Pairs:
    from vesin import NeighborList

    search = NeighborList(cutoff=REACH, full_list=False, sorted=False)
    found: list[tuple[np.ndarray, ...]] = []
    for i in range(len(s)):
        a, b = int(s.ptr[i]), int(s.ptr[i + 1])
        box = np.zeros((3, 3)) if s.cell is None else np.asarray(s.cell[i], np.float64)
        points = np.ascontiguousarray(s.pos[a:b], np.float64)
        pair, vector = search.compute(points, box, s.pbc[i].tolist(), "PD")
        found.append((np.full(len(pair), i), *(pair.astype(np.int64).T + a), vector))
    owner, first, second, vector = (np.concatenate(part) for part in zip(*found, strict=True))
    return _Pairs(owner, first, second, vector, np.linalg.norm(vector, axis=1))


def over_pair_potentials(structures: Structures, rng: np.random.Generator) -> Evidence:
    """Energies over those of pair potentials that were fitted to the forces alone: a line integral
    through what the forces know, across structures that do not lie near each other.

    Compared are structures of one isomer (as many bonds of each kind), whose zero is taken off.
    """
    question = "ΔE over a pair potential's, fitted to the forces"
    s = _sample(structures, rng)
    pairs = _pairs(s)
    kept = pairs.distance > 0.3
    if not kept.any():
        return Evidence(question, detail="no two atoms lie near each other")
    pairs = _Pairs(*(part[kept] for part in pairs))
    column = _kinds(s, pairs)
    energy_of, forces_of = _design(s, pairs, column, int(column.max()) + 1)
    observed = np.asarray(s.forces, np.float64).reshape(-1)
    normal = forces_of.T @ forces_of
    ridge = 1e-6 * np.trace(normal) / len(normal)
    normal[np.diag_indices_from(normal)] += ridge
    weights = np.linalg.solve(normal, forces_of.T @ observed)
    explained = np.corrcoef(forces_of @ weights, observed)[0, 1] if observed.std() else 0.0
    predicted = energy_of @ weights  # [S] eV
    x, y = _without_zero(s, pairs, predicted)
    if len(x) < SPARE:
        reason = f"{len(x)} structures whose energies can be compared, {SPARE} are needed"
        return Evidence(question, detail=reason)
    # a structure that was torn apart would decide alone
    near = np.abs(y) < 8 * max(float(np.median(np.abs(y))), 1e-9)
    x, y = x[near], y[near]
    if len(x) < SPARE or not x.std() or not y.std():
        return Evidence(question, detail="energies do not differ")
    value, low, high = _slope(x, y)
    correlation = float(np.corrcoef(x, y)[0, 1])
    detail = (
        f"{len(x)} structures, correlation {correlation:.3f}, the fit's with forces {explained:.3f}"
    )
    # what the fit lacks flattens the line, or makes it steeper
    strength = correlation if explained > 0.7 else 0.0
    tolerance, counts = _strength(strength, len(x), 0.3, 0.7)
    return Evidence(question, value, low, high, tolerance, False, counts, detail)


def _strength(
    correlation: float, count: int, tolerance: float, strong: float
) -> tuple[float, bool]:
    """The tolerance of an answer, and whether it counts: a loose correlation tells the sign and
    large factors only, a chance one nothing.
    """
    if abs(correlation) >= strong:
        return tolerance, True
    return 1.3, abs(correlation) > 0.5 and abs(correlation) * math.sqrt(count) > 4


def _sample(structures: Structures, rng: np.random.Generator) -> Structures:
    """Up to `SAMPLED` structures of `ATOMS` atoms, whole systems rather than one of each."""
    s = structures
    order: list[np.ndarray] = []
    systems = [rows for _, rows in by_system(s)]
    systems = [systems[k] for k in rng.permutation(len(systems))]
    systems.sort(key=len, reverse=True)
    most = ATOMS if len(s.elements) > 3 else 3 * ATOMS
    atoms = n = 0
    for rows in systems:
        take = rng.permutation(rows)[: max(12, SAMPLED // 8 if len(systems) > 1 else SAMPLED)]
        size = max(1, int(s.n_atoms[take].max()))
        take = take[: min(len(take), max(0, (most - atoms) // size), SAMPLED - n)]
        if not len(take):
            break
        order.append(take)
        atoms += int(s.n_atoms[take].sum())
        n += len(take)
    rows = np.sort(np.concatenate(order)) if order else np.arange(min(len(s), SPARE))
    return s[rows]


def _kinds(s: Structures, pairs: _Pairs) -> np.ndarray:
    """Which pair of elements each pair is, [P], numbered without gaps."""
    one, two = s.z[pairs.first].astype(int), s.z[pairs.second].astype(int)
    code = np.minimum(one, two) * 128 + np.maximum(one, two)
    return np.unique(code, return_inverse=True)[1].reshape(-1)


def _design(
    s: Structures, pairs: _Pairs, column: np.ndarray, kinds: int
) -> tuple[np.ndarray, np.ndarray]:
    """Energies [S, K] and forces [3 A, K] of every Gaussian of every kind of pair, at weight 1."""
    r = pairs.distance
    centres = np.arange(math.log(0.7), math.log(REACH), WIDTH)  # of log r
    inside = 0.5 * (1 + np.cos(math.pi * r / REACH))
    inside_slope = -0.5 * math.pi / REACH * np.sin(math.pi * r / REACH)
    arm = (np.log(r)[:, None] - centres) / WIDTH
    bump = np.exp(-0.5 * arm**2)
    value = bump * inside[:, None]  # [P, C]
    slope = bump * inside_slope[:, None] - bump * arm / WIDTH / r[:, None] * inside[:, None]
    c = len(centres)
    energy = np.zeros((len(s), kinds * c))
    forces = np.zeros((len(s.z), 3, kinds * c))
    unit = pairs.vector / r[:, None]
    for k in range(kinds):
        rows = np.flatnonzero(column == k)
        where = slice(k * c, (k + 1) * c)
        pull = unit[rows, :, None] * slope[rows, None, :]  # +dφ/dr along the pair: force on first
        ones, place = np.ones(len(rows)), np.arange(len(rows))
        shape = (len(s.z), len(rows))
        to_first = csr_array((ones, (pairs.first[rows], place)), shape)
        to_second = csr_array((ones, (pairs.second[rows], place)), shape)
        pulls = (to_first - to_second) @ pull.reshape(len(rows), -1)
        forces[:, :, where] = pulls.reshape(len(s.z), 3, c)
        of_structure = csr_array((ones, (pairs.owner[rows], place)), (len(s), len(rows)))
        energy[:, where] = of_structure @ value[rows]
    return energy, forces.reshape(-1, kinds * c)


def _without_zero(
    s: Structures, pairs: _Pairs, predicted: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """``predicted`` [S] and the energies (eV), less the zero of each isomer: that of structures of
    one system with as many bonds of each kind. Where hardly two are of one isomer, the zero is a
    sum over atoms and bonds.
    """
    radii = covalent_radii_array()[s.z.astype(int)]
    bonded = pairs.distance < 1.3 * (radii[pairs.first] + radii[pairs.second])
    column = _kinds(s, pairs)
    bonds = np.zeros((len(s), int(column.max()) + 1), np.int64)
    np.add.at(bonds, (pairs.owner[bonded], column[bonded]), 1)
    key = np.column_stack([s.system.astype(np.int64), s.n_atoms.astype(np.int64), bonds])
    group = np.unique(key, axis=0, return_inverse=True)[1].reshape(-1)
    counts = np.bincount(group)
    several = counts[group] > 1
    if int((counts[counts > 1] - 1).sum()) >= SPARE:
        x, y = (v - (np.bincount(group, v) / counts)[group] for v in (predicted, s.energy))
        return x[several], y[several]
    zero = np.column_stack([composition(s), bonds]).astype(np.float64)
    if np.linalg.matrix_rank(zero) + SPARE > len(s):
        return np.empty(0), np.empty(0)
    both = np.column_stack([predicted, s.energy])
    rest = both - zero @ np.linalg.lstsq(zero, both, rcond=None)[0]
    return rest[:, 0], rest[:, 1]


# --- forces against known ones -------------------------------------------------------------------


def over_bonds_to_hydrogen(structures: Structures) -> Evidence:
    """How steeply the force along C–H, N–H and O–H bonds rises as they stretch, over what it is in
    methane, ammonia and water.
    """
    question = "stretching of bonds to hydrogen"
    s = structures
    if 1 not in s.elements or not set(STRETCHING) & set(s.elements):
        return Evidence(question, absolute=True, detail="no bonds of C, N or O to hydrogen")
    most = np.flatnonzero(np.cumsum(s.n_atoms) <= ATOMS)
    s = s[: max(1, len(most))]
    pairs = _pairs(s)
    # a hydrogen on its way from one atom to another feels both
    close = pairs.distance < 1.5
    touched = np.bincount(pairs.first[close], minlength=len(s.z))
    touched += np.bincount(pairs.second[close], minlength=len(s.z))
    shared = (touched > 1) & (s.z == 1)
    values, weights, shares = [], [], []
    for heavy, constant in STRETCHING.items():
        stretched, pull = _along_bonds(s, pairs, shared, heavy)
        if len(stretched) < 40 or stretched.std() < 0.005 or not pull.std():
            continue
        centre = stretched - stretched.mean()
        values.append(-(centre * pull).sum() / np.square(centre).sum() / constant)
        weights.append(len(stretched))
        shares.append(-np.corrcoef(stretched, pull)[0, 1])
    if not values:
        return Evidence(
            question, absolute=True, detail="too few bonds to hydrogen, or none that stretch"
        )
    value, correlation = (float(np.average(v, weights=weights)) for v in (values, shares))
    detail = f"{sum(weights)} bonds, correlation {correlation:.3f}"
    tolerance, counts = _strength(correlation, sum(weights), 0.35, 0.8)
    return Evidence(question, value, math.nan, math.nan, tolerance, True, counts, detail)


def _along_bonds(
    s: Structures, pairs: _Pairs, shared: np.ndarray, heavy: int
) -> tuple[np.ndarray, np.ndarray]:
    """Lengths (Å) of bonds of ``heavy`` to hydrogen, near their rest, and the force (eV/Å) on the
    hydrogen away from its partner.
    """
    z = s.z
    one, two = z[pairs.first], z[pairs.second]
    of_kind = ((one == 1) & (two == heavy)) | ((one == heavy) & (two == 1))
    near = of_kind & (np.abs(pairs.distance - BOND[heavy]) < 0.12)
    rows = np.flatnonzero(near & ~shared[pairs.first] & ~shared[pairs.second])
    outward = np.where((z[pairs.second[rows]] == 1)[:, None], 1, -1) * pairs.vector[rows]
    hydrogen = np.where(z[pairs.second[rows]] == 1, pairs.second[rows], pairs.first[rows])
    forces = np.asarray(s.forces, np.float64)[hydrogen]
    return pairs.distance[rows], (forces * outward).sum(1) / pairs.distance[rows]


def over_xtb(structures: Structures, rng: np.random.Generator) -> Evidence:
    """The forces over those of GFN2-xTB, on a few small structures without a box; needs tblite."""
    question = "forces over GFN2-xTB's"
    s = structures
    try:
        import tblite.interface  # noqa: F401
    except ImportError:
        return Evidence(question, absolute=True, detail="tblite is not installed")
    from .recipes.xtb import XTB

    fits = (s.n_atoms > 1) & (s.n_atoms <= XTB_ATOMS) & ~s.pbc.any(1)
    given, known = [], []
    order = rng.permutation(np.flatnonzero(fits))
    for i in order[np.cumsum(s.n_atoms[order]) <= XTB_TOTAL]:
        atoms = slice(int(s.ptr[i]), int(s.ptr[i + 1]))
        z = s.z[atoms]
        if z.max() > 86:
            continue
        charge = int(s.charge[i])
        pos = np.asarray(s.pos[atoms], np.float64)
        try:
            _, forces = XTB(z, pos / units.BOHR, (int(z.sum()) - charge) % 2, charge).label(pos)
        except RuntimeError:  # no convergence
            continue
        given.append(np.asarray(s.forces[atoms], np.float64).reshape(-1))
        known.append(forces.reshape(-1))
    if not given:
        reason = (
            f"no structure without a box of up to {XTB_ATOMS} atoms that GFN2-xTB can do "
            f"({SYMBOLS[1]} to {SYMBOLS[86]})"
        )
        return Evidence(question, absolute=True, detail=reason)
    x, y = np.concatenate(known), np.concatenate(given)
    if len(x) < 12 or not x.std() or not y.std():
        return Evidence(question, absolute=True, detail="too few forces to compare")
    value, low, high = _slope(x, y)
    correlation = float(np.corrcoef(x, y)[0, 1])
    detail = f"{len(given)} structures, correlation {correlation:.3f}"
    tolerance, counts = _strength(correlation, len(x), 0.25, 0.8)
    return Evidence(question, value, low, high, tolerance, True, counts, detail)
