"""The contract suite: what any network must satisfy before its energies mean anything.

`check_model` runs every check on small random structures (free, and periodic with boxes smaller
than the cutoff) and returns a table of residuals; it raises AssertionError naming what fails. A
network of one's own is held to it by one call:

    report = potkit.testing.check_model(potkit.Potential(MyBackbone()))

Residuals are relative: the largest difference over the largest value of the same quantity, in
float64 unless told otherwise.

Which symmetries a network has it says itself, by the class attribute ``symmetries`` (default: all
four). What a network does not claim is measured and reported but not asserted: other symmetries,
the extensivity of a pooled energy, the derivatives of a network with kinks (``smooth``), what the
faults of a published code break (`models.faults`), and everything named in ``measure``.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..models import faults
from ..models.base import Potential
from ..models.graph import SYMMETRIES as SYMMETRIES  # what a network may claim
from ..structures.elements import MAX_Z
from ..structures.geometry import volumes
from ..structures.store import Structures
from .sample_structures import examples

QUANTITIES = ("energy", "forces", "vector")
VECTORS = ("forces", "vector")  # those with a row per atom
EXACT = "exact"  # up to rounding
DERIVATIVE = "derivative"  # up to the error of fourth-order central differences
CONTINUITY = "continuity"  # up to the change over a step of 1e-6 of the cutoff
# relative
TOLERANCES = {
    torch.float64: {EXACT: 1e-8, DERIVATIVE: 1e-6, CONTINUITY: 1e-4},
    torch.float32: {EXACT: 1e-3, DERIVATIVE: 5e-2, CONTINUITY: 1e-2},
}
Residuals = dict[str, float]


def _with(structures: Structures, pos: np.ndarray, cell: np.ndarray | None = None) -> Structures:
    """The same structures at other positions, without labels."""
    s = structures
    return Structures(
        s.z,
        pos,
        s.ptr,
        cell=s.cell if cell is None else cell,
        pbc=s.pbc,
        charge=s.charge,
        molecule=s.molecule,
        formal_charge=s.formal_charge,
    )


# -- evaluation ----------------------------------------------------------------------------------
def prepared(
    model: nn.Module, dtype: torch.dtype = torch.float64, perturb: float = 0.1, seed: int = 0
) -> Potential:
    """A copy of ``model`` for testing: in ``dtype``, evaluation mode, without reference energies
    and scale (they hide errors).

    ``perturb`` is the standard deviation of noise added to biases, scales and all other parameters
    of one dimension: an untrained network starts with many zeros and ones, which hide faults that
    come out in training.
    """
    model = model if isinstance(model, Potential) else Potential(model)
    model = copy.deepcopy(model).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    for p in model.parameters():
        if perturb and p.ndim == 1 and p.is_floating_point():
            noise = perturb * torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.data += noise.to(p)
    model.references = torch.zeros(MAX_Z + 1, dtype=torch.float64, device=model.references.device)
    model.scale = torch.ones((), dtype=torch.float64, device=model.scale.device)
    model.shift = None
    return model


def _batch(model: Potential, structures: Structures):
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float64)
    return structures.batch(device=model.references.device, dtype=dtype)


def evaluate(model: Potential, structures: Structures) -> dict[str, Tensor]:
    """energy [S], forces [N,3], vector [N,3] of ``structures``, without gradients, on the CPU."""
    with torch.no_grad():
        prediction = model(_batch(model, structures), QUANTITIES)
    return {q: getattr(prediction, q).double().cpu() for q in QUANTITIES}


def _relative(value: Tensor, expected: Tensor, scale: Tensor | None = None) -> float:
    """Largest difference over the largest entry of ``scale`` (default: of ``expected``)."""
    if value.shape != expected.shape:
        return float("inf")
    if not expected.numel():
        return 0.0
    difference = (value - expected).abs().max()
    size = (expected if scale is None else scale).abs().max()
    if difference == 0:
        return 0.0
    if not torch.isfinite(difference) or not size > 0:
        return float("inf")
    return float(difference / size)


def _compare(values: dict[str, Tensor], expected: dict[str, Tensor]) -> Residuals:
    return {q: _relative(values[q], expected[q]) for q in QUANTITIES}


# -- the checks: each returns a residual per quantity --------------------------------------------
def check_shapes(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """Shapes, float64 energy, finite numbers that depend on the positions; an empty batch gives
    empty answers. 0 or inf.
    """
    n, s = int(structures.ptr[-1]), len(structures)
    with torch.no_grad():
        prediction = model(_batch(model, structures), QUANTITIES)
        nothing = model(_batch(model, structures[:0]), QUANTITIES)
    shapes = {"energy": (s,), "forces": (n, 3), "vector": (n, 3)}
    residuals = {}
    for q, shape in shapes.items():
        value, empty = getattr(prediction, q), getattr(nothing, q)
        shaped = value.shape == shape and empty.shape == (0, *shape[1:])
        finite = bool(torch.isfinite(value).all())
        fine = shaped and finite and bool(value.abs().max() > 0)
        residuals[q] = 0.0 if fine else float("inf")
    if prediction.energy.dtype != torch.float64:
        residuals["energy"] = float("inf")
    return residuals


def check_input_not_mutated(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """The batch after the call equals the batch before it, and a second call gives the same
    answer.
    """
    batch = _batch(model, structures)
    before = {}
    for key, value in batch.to_dict().items():
        before[key] = value.clone() if isinstance(value, Tensor) else copy.copy(value)
    with torch.no_grad():
        first = model(batch, QUANTITIES)
        second = model(batch, QUANTITIES)
    after = batch.to_dict()
    if before.keys() != after.keys() or not all(_equal(before[k], after[k]) for k in before):
        return dict.fromkeys(QUANTITIES, float("inf"))
    return {q: _relative(getattr(second, q), getattr(first, q)) for q in QUANTITIES}


def _equal(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, Tensor) else np.array_equal(a, b)


def check_translation(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """Moving each structure as a whole changes nothing."""
    step = np.random.default_rng(seed).normal(scale=5.0, size=(len(structures), 3))
    moved = _with(structures, structures.pos + np.repeat(step, structures.n_atoms, axis=0))
    return _compare(evaluate(model, moved), evaluate(model, structures))


def _turned(model: Potential, structures: Structures, matrix: np.ndarray) -> Residuals:
    cell = None if structures.cell is None else structures.cell @ matrix.T
    expected = evaluate(model, structures)
    for q in VECTORS:
        expected[q] = expected[q] @ torch.from_numpy(matrix.T)
    return _compare(evaluate(model, _with(structures, structures.pos @ matrix.T, cell)), expected)


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """A rotation matrix [3,3], uniformly distributed."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def check_rotation(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """Energies stay, forces and vectors turn with the structure (and its box)."""
    return _turned(model, structures, random_rotation(np.random.default_rng(seed)))


def check_reflection(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """The same for a mirror plane in a random direction."""
    normal = random_rotation(np.random.default_rng(seed))[0]
    return _turned(model, structures, np.eye(3) - 2 * np.outer(normal, normal))


def check_permutation(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """Renumbering the atoms of each structure renumbers forces and vectors and leaves the
    energy.
    """
    rng = np.random.default_rng(seed)
    bounds = itertools.pairwise(structures.ptr)
    order = np.concatenate([start + rng.permutation(end - start) for start, end in bounds])
    s = structures
    shuffled = Structures(
        s.z[order],
        s.pos[order],
        s.ptr,
        cell=s.cell,
        pbc=s.pbc,
        charge=s.charge,
        molecule=s.molecule[order],
        formal_charge=None if s.formal_charge is None else s.formal_charge[order],
    )
    expected = evaluate(model, structures)
    for q in ("forces", "vector"):
        expected[q] = expected[q][order]
    return _compare(evaluate(model, shuffled), expected)


def check_batch_independence(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """A structure evaluated alone gives what it gives beside others."""
    alone = [evaluate(model, structures[i]) for i in range(len(structures))]
    together = {q: torch.cat([one[q] for one in alone]) for q in QUANTITIES}
    return _compare(together, evaluate(model, structures))


def _doubled(
    model: Potential, cases: Iterable[tuple[Structures, np.ndarray, np.ndarray | None]]
) -> Residuals:
    """Each structure against itself and a copy moved by a step, in the given box: twice the
    energy, the same forces.
    """
    doubles, singles = [], []
    for one, step, cell in cases:
        ptr = np.array([0, 2 * int(one.ptr[-1])])
        pos = np.concatenate([one.pos, one.pos + step])
        double = Structures(np.tile(one.z, 2), pos, ptr, cell=cell, pbc=one.pbc)
        doubles.append(evaluate(model, double))
        singles.append(evaluate(model, one))
    if not doubles:
        return {}
    values = {q: torch.cat([double[q] for double in doubles]) for q in QUANTITIES}
    expected = {q: torch.cat([single[q].repeat(2, 1) for single in singles]) for q in VECTORS}
    expected["energy"] = 2 * torch.cat([single["energy"] for single in singles])
    return _compare(values, expected)


def check_extensivity(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """Two copies far apart have twice the energy and the same forces (free structures only)."""
    step = np.array([100.0 * model.cutoff, 0.0, 0.0])
    return _doubled(model, ((one, step, None) for one in structures if not one.pbc.any()))


def check_periodic_image(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """Moving single atoms by lattice vectors changes nothing (periodic structures only)."""
    if not structures.pbc.any():
        return {}
    owner = np.repeat(np.arange(len(structures)), structures.n_atoms)
    hops = np.random.default_rng(seed).integers(-2, 3, (len(owner), 3)) * structures.pbc[owner]
    step = np.einsum("ni,nij->nj", hops, structures.cell[owner])
    moved = _with(structures, structures.pos + step)
    return _compare(evaluate(model, moved), evaluate(model, structures))


def check_supercell(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """A box doubled along a periodic direction has twice the energy per box and the same forces
    (periodic structures only).
    """
    axes = [(one, axis) for one in structures for axis in np.flatnonzero(one.pbc[0])]
    stretch = 1.0 + np.eye(3)[:, :, None]  # the row of a lattice vector times two
    cases = ((one, one.cell[0, axis], one.cell * stretch[axis]) for one, axis in axes)
    return _doubled(model, cases)


def check_isolated_atom(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """Every element alone: finite energy, no force; finite gradients for training with such atoms
    in the batch. 0 or inf.

    A direct vector read-out may give a lone atom any vector; it only has to be finite.
    """
    top = model.backbone.max_element
    alone = Structures(np.arange(1, top + 1), np.zeros((top, 3)), np.arange(top + 1))
    out = evaluate(model, alone)
    residuals = {q: 0.0 if bool(torch.isfinite(out[q]).all()) else float("inf") for q in QUANTITIES}
    for q in VECTORS:
        zero = model.vector_mode != "direct" or (q == "forces" and model.forces_mode == "gradient")
        if zero and float(out[q].abs().max()) > 1e-12:
            residuals[q] = float("inf")
    far = structures.pos[:3] * 100.0  # three atoms that do not see each other, and a pair
    pair = np.array([[0.0, 0.0, 0.0], [0.0, 0.0, 0.3 * model.cutoff]])
    mixed = Structures(np.array([1, 6, 8, 1, 8]), np.concatenate([far, pair]), np.array([0, 3, 5]))
    for q in QUANTITIES:
        model.zero_grad(set_to_none=True)
        prediction = model(_batch(model, mixed), (q,))
        getattr(prediction, q).square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        if not all(bool(torch.isfinite(g).all()) for g in gradients):
            residuals[q] = float("inf")
    model.zero_grad(set_to_none=True)
    return residuals


def check_cutoff_continuity(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """Energy, forces and vector do not jump when an atom crosses the cutoff.

    An atom stands one millionth of the cutoff inside and outside. The jump is divided by the
    largest change that this atom makes anywhere between 0.4 cutoffs and the cutoff.
    """
    direction = random_rotation(np.random.default_rng(seed))[0]
    rest = np.array([[0.0, 0.0, 0.0], [-0.3, 0.1, 0.0], [-0.25, -0.3, 0.1]]) * model.cutoff
    # the other two lie behind the first, farther than the cutoff from the visitor
    rest = rest @ _facing(direction).T
    step = 1e-6 if next(model.parameters()).dtype == torch.float64 else 1e-4
    distances = [1 - step, 1 + step, 2.0, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.97]
    visitors = [distance * model.cutoff * direction for distance in distances]
    pos = np.concatenate([[*rest, visitor] for visitor in visitors])
    box, periodic = None, None
    # the same in boxes so wide that no image is seen, the group across their corner
    if structures.pbc.any():
        side = 9.0 * model.cutoff
        box = np.tile(side * np.eye(3), (len(distances), 1, 1))
        periodic = np.ones((len(distances), 3), bool)
        pos = pos % side
    z = np.tile([8, 6, 1, 7], len(distances))
    line = Structures(z, pos, 4 * np.arange(len(distances) + 1), cell=box, pbc=periodic)
    residuals = {}
    for q, value in evaluate(model, line).items():
        inside, outside, away, *near = value.reshape(len(distances), -1)
        effect = torch.stack([v - away for v in near])
        residuals[q] = _relative(inside, outside, effect)
    return residuals


def _facing(direction: np.ndarray) -> np.ndarray:
    """A rotation that takes the x axis to ``direction``."""
    basis = np.linalg.qr(np.stack([direction, [0.3, 0.5, -0.8], [0.7, -0.6, 0.1]], axis=1))[0]
    basis[:, 0] = direction
    basis[:, 2] *= np.sign(np.linalg.det(basis))
    return basis


# fourth-order central first derivative
STENCIL = ((-2, 1 / 12), (-1, -8 / 12), (1, 8 / 12), (2, -1 / 12))


def _step(model: Potential) -> float:
    # norms of equivariant features bend sharply where a feature vanishes: the step must be short
    return 1e-4 if next(model.parameters()).dtype == torch.float64 else 3e-2


def _displaced(one: Structures, h: float) -> Structures:
    """Copies of one structure: every coordinate at every point of the stencil, [3n × 4]
    structures.
    """
    n = int(one.ptr[-1])
    offsets = h * np.array([k for k, _ in STENCIL])
    steps = np.einsum("cj,k->ckj", np.eye(3 * n), offsets).reshape(-1, n, 3)
    copies = len(steps)
    cell = None if one.cell is None else np.repeat(one.cell, copies, 0)
    pos = (one.pos[None] + steps).reshape(-1, 3)
    return Structures(
        np.tile(one.z, copies),
        pos,
        n * np.arange(copies + 1),
        cell=cell,
        pbc=np.repeat(one.pbc, copies, 0),
    )


def check_finite_differences(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """Forces are minus the numerical derivative of the energy, for every coordinate of every
    structure.
    """
    h = _step(model)
    weights = torch.tensor([w for _, w in STENCIL], dtype=torch.float64) / h
    numerical = []
    for one in structures:
        energies = evaluate(model, _displaced(one, h))["energy"].reshape(-1, len(STENCIL))
        numerical.append(-(energies @ weights))
    forces = evaluate(model, structures)["forces"].flatten()
    return {"forces": _relative(forces, torch.cat(numerical))}


def check_second_derivatives(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """Derivatives of forces and vector by positions (all) and of their squared sum by parameters
    (three random directions) agree with finite differences: what training on −∂E/∂x needs. Uses the
    smallest structure.
    """
    one = structures[int(np.argmin(structures.n_atoms))]
    double = next(model.parameters()).dtype == torch.float64
    h = (0.3 if double else 1.0) * _step(model)
    weights = torch.tensor([w for _, w in STENCIL], dtype=torch.float64) / h
    displaced = evaluate(model, _displaced(one, h))
    parameters = [p for p in model.parameters() if p.requires_grad]
    generator = torch.Generator().manual_seed(seed)
    residuals = {}
    for q in VECTORS:
        stencils = displaced[q].reshape(3 * one.n_atoms[0], len(STENCIL), -1)
        numerical = torch.einsum("ckv,k->cv", stencils, weights)
        batch = _batch(model, one)
        batch.pos.requires_grad_(True)
        rows = []
        for component in getattr(model(batch, (q,)), q).flatten():
            (row,) = torch.autograd.grad(component, batch.pos, retain_graph=True, allow_unused=True)
            rows.append(torch.zeros_like(batch.pos) if row is None else row)
        worst = _relative(torch.stack(rows).flatten(1).T.double().cpu(), numerical)
        gradients = torch.autograd.grad(_square(model, one, q), parameters, allow_unused=True)
        squares = torch.stack([g.square().sum() for g in gradients if g is not None])
        size = squares.sum().sqrt().reshape(1).cpu()
        # in float32 the differences of a loss drown in rounding
        for _ in range(3 if double else 0):
            direction = [
                torch.randn(p.shape, generator=generator, dtype=p.dtype).to(p.device)
                for p in parameters
            ]
            analytic = sum(
                (gradient * along).sum()
                for gradient, along in zip(gradients, direction, strict=True)
                if gradient is not None
            )
            estimate = _derivative_along(model, one, q, parameters, direction)
            worst = max(worst, _relative(analytic.cpu().reshape(1), torch.tensor([estimate]), size))
        residuals[q] = worst
    return residuals


def _square(model: Potential, one: Structures, quantity: str) -> Tensor:
    return getattr(model(_batch(model, one), (quantity,)), quantity).square().sum()


def _derivative_along(
    model: Potential,
    one: Structures,
    quantity: str,
    parameters: list[nn.Parameter],
    direction: list[Tensor],
) -> float:
    """The numerical derivative of `_square` by the parameters, along ``direction``."""
    h = 5e-6
    before = [parameter.detach().clone() for parameter in parameters]
    total = 0.0
    for k, weight in STENCIL:
        with torch.no_grad():
            for parameter, along in zip(parameters, direction, strict=True):
                parameter.add_(along, alpha=k * h)
            total += weight * float(_square(model, one, quantity))
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
    return total / h


# -- stress --------------------------------------------------------------------------------------
def strained(one: Structures, strains: np.ndarray) -> Structures:
    """Copies of one structure, positions and cell times 1 + ε for each ε of ``strains`` [K, 3, 3]
    (symmetric): K structures.
    """
    n, copies = int(one.ptr[-1]), len(strains)
    factors = np.eye(3) + strains
    return Structures(
        np.tile(one.z, copies),
        np.einsum("na,kab->knb", one.pos, factors).reshape(-1, 3),
        n * np.arange(copies + 1),
        cell=np.einsum("ia,kab->kib", one.cell[0], factors),
        pbc=np.repeat(one.pbc, copies, 0),
        charge=np.repeat(one.charge, copies),
        molecule=np.tile(one.molecule, copies),
        formal_charge=None if one.formal_charge is None else np.tile(one.formal_charge, copies),
    )


def _numerical_stress(model: Potential, one: Structures, h: float) -> Tensor:
    """1/V ∂E/∂ε by differences of strained structures, [3, 3] eV/Å³; NaN without a cell."""
    volume = 0.0 if one.cell is None else float(volumes(torch.tensor(one.cell), _pbc(one))[0])
    if not volume:
        return torch.full((3, 3), torch.nan, dtype=torch.float64)
    pairs = list(itertools.combinations_with_replacement(range(3), 2))
    strains = np.zeros((len(pairs), len(STENCIL), 3, 3))
    for row, (a, b) in enumerate(pairs):
        for column, (k, _) in enumerate(STENCIL):
            strains[row, column, a, b] += k * h / 2
            strains[row, column, b, a] += k * h / 2
    energies = evaluate(model, strained(one, strains.reshape(-1, 3, 3)))["energy"]
    weights = torch.tensor([w for _, w in STENCIL], dtype=torch.float64) / h
    slopes = energies.reshape(len(pairs), len(STENCIL)) @ weights / volume
    stress = torch.empty(3, 3, dtype=torch.float64)
    for (a, b), slope in zip(pairs, slopes, strict=True):
        stress[a, b] = stress[b, a] = slope
    return stress


def _pbc(structures: Structures) -> Tensor:
    return torch.from_numpy(np.array(structures.pbc))


def check_stress(model: Potential, structures: Structures, seed: int = 0) -> Residuals:
    """The stress is the numerical derivative of the energy by strain, over the volume, all
    structures in one batch and each alone; those without a cell have NaN.

    A network whose forces are no derivatives must refuse. 0 or inf there and without cells.
    """

    def answer(some: Structures) -> Tensor:
        with torch.no_grad():
            return model(_batch(model, some), ("stress",)).stress.double().cpu()

    if model.forces_mode == "vector":
        try:
            answer(structures)
        except ConfigError:
            return {"stress": 0.0}
        return {"stress": float("inf")}
    h = _step(model) / model.cutoff  # atoms a cutoff away from the origin move by the step
    numerical = torch.stack([_numerical_stress(model, one, h) for one in structures])
    held = numerical.isfinite().all(-1).all(-1)
    worst = 0.0
    for stress in (answer(structures), torch.cat([answer(one) for one in structures])):
        if not bool(stress[~held].isnan().all()):
            return {"stress": float("inf")}
        worst = max(worst, _relative(stress[held], numerical[held]))
    return {"stress": worst}


# -- the suite -----------------------------------------------------------------------------------
# name: (function, kind of tolerance, symmetries without which it cannot hold)
CHECKS: dict[str, tuple[Callable[..., Residuals], str, frozenset[str]]] = {
    "shapes": (check_shapes, EXACT, frozenset()),
    "input_not_mutated": (check_input_not_mutated, EXACT, frozenset()),
    "translation": (check_translation, EXACT, frozenset({"translation"})),
    "rotation": (check_rotation, EXACT, frozenset({"rotation"})),
    "reflection": (check_reflection, EXACT, frozenset({"reflection"})),
    "permutation": (check_permutation, EXACT, frozenset({"permutation"})),
    "batch_independence": (check_batch_independence, EXACT, frozenset()),
    "extensivity": (check_extensivity, EXACT, frozenset({"translation"})),
    "periodic_image": (check_periodic_image, EXACT, frozenset({"translation"})),
    "supercell": (check_supercell, EXACT, frozenset({"translation"})),
    "isolated_atom": (check_isolated_atom, EXACT, frozenset()),
    "cutoff_continuity": (check_cutoff_continuity, CONTINUITY, frozenset()),
    "finite_differences": (check_finite_differences, DERIVATIVE, frozenset()),
    "second_derivatives": (check_second_derivatives, DERIVATIVE, frozenset()),
    "stress": (check_stress, DERIVATIVE, frozenset()),
}
# make or need free structures: not run on periodic ones
ONCE = frozenset({"isolated_atom", "extensivity"})


def claimed(model: Potential, check: str, quantity: str) -> bool:
    """Whether ``model`` claims that ``quantity`` passes ``check`` (see the module's docstring)."""
    lacking = set(CHECKS[check][2] - model.backbone.symmetries)
    by_readout = quantity == "vector" or (quantity == "forces" and model.forces_mode == "vector")
    if by_readout and model.vector_mode == "direct" and check in ("rotation", "reflection"):
        lacking.add(check)
    if model.energy_head.pooled and check in ("extensivity", "supercell"):
        lacking.add(check)
    derivatives = ("finite_differences", "second_derivatives", "stress")
    # what refuses a stress does so whatever its derivatives are like
    derived = check in derivatives and not (check == "stress" and model.forces_mode == "vector")
    if not model.backbone.smooth and derived:
        lacking.add(check)
    broken = faults.broken(model.backbone.faults)
    if check in broken or (check == "stress" and derived and "finite_differences" in broken):
        lacking.add(check)
    if model.forces_mode == "vector" and check == "finite_differences":
        lacking.add(check)
    return not lacking


def check_model(
    model: nn.Module,
    structures: Structures | None = None,
    periodic: bool = True,
    checks: Iterable[str] | None = None,
    measure: Iterable[str] = (),
    dtype: torch.dtype = torch.float64,
    perturb: float = 0.1,
    seed: int = 0,
    strict: bool = True,
) -> Any:
    """Hold ``model`` (a `Potential`, or a backbone) to the contract; the model itself is left as it
    is.

    ``structures`` replace the random ones; ``periodic`` adds periodic structures; ``checks``
    selects (default: all of `CHECKS`); ``measure`` names checks to report without asserting;
    ``perturb``: see `prepared`. Returns a DataFrame with the columns check, structures, quantity,
    residual, tolerance, claimed, passed. Raises AssertionError that lists what fails unless
    ``strict`` is false, ConfigError for an unknown check.
    """
    import pandas as pd

    names = list(CHECKS if checks is None else checks)
    measure = set(measure)
    unknown = [n for n in (*names, *measure) if n not in CHECKS]
    if unknown:
        raise ConfigError(
            f"unknown check {', '.join(map(repr, unknown))}; there are {', '.join(CHECKS)}"
        )
    model = prepared(model, dtype, perturb, seed)
    if structures is not None:
        sets = {"given": structures}
    else:
        sets = {"free": examples(model.cutoff, False, seed)}
        if periodic:
            sets["periodic"] = examples(model.cutoff, True, seed)
    rows = []
    for where, some in sets.items():
        for name in names:
            if where == "periodic" and name in ONCE:
                continue
            function, kind, _ = CHECKS[name]
            for quantity, residual in function(model, some, seed=seed).items():
                tolerance = TOLERANCES[dtype][kind]
                asserted = name not in measure and claimed(model, name, quantity)
                passed = residual <= tolerance
                rows.append((name, where, quantity, residual, tolerance, asserted, passed))
    columns = ["check", "structures", "quantity", "residual", "tolerance", "claimed", "passed"]
    report = pd.DataFrame(rows, columns=columns)
    failed = report[report.claimed & ~report.passed]
    if strict and len(failed):
        lines = [
            f"{r.check} ({r.structures}, {r.quantity}): {r.residual:.1e} > {r.tolerance:.0e}"
            for r in failed.itertuples()
        ]
        raise AssertionError(f"{type(model.backbone).__name__} fails " + "; ".join(lines))
    return report
