"""Geometry of atoms, each thing once: minimum images, edge vectors, bonds, molecules, isomers.

Functions of NumPy arrays serve readers, which do without torch; functions of batches serve networks
and objectives, on the device of the batch.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError
from .arrays import FLAT
from .element_properties import covalent_radii_array

if TYPE_CHECKING:
    from torch import Tensor

    from .batch import Batch


# --- minimum images -----------------------------------------------------------------------------


def minimum_image(step: np.ndarray, cell: np.ndarray | None, pbc: np.ndarray) -> np.ndarray:
    """``step`` [..., 3] Å brought to its shortest image along the periodic directions.

    ``cell`` [3, 3] and ``pbc`` [3], or one of each per row: [n, 3, 3] and [n, 3] for ``step`` [n,
    k, 3]. Right angles are a matter of rounding; any other cell goes through ASE's search over the
    images of its Minkowski-reduced form, and is exact however skewed it is.
    """
    pbc = np.asarray(pbc, bool)
    if cell is None or not pbc.any():
        return step
    cell = np.asarray(cell, np.float64)
    pbc = pbc & cell.any(-1)  # along a vector of no length there are no images
    if cell.ndim == 3 and not _rectangular(cell, pbc):
        per_structure = zip(step, cell, pbc, strict=True)
        return np.stack([minimum_image(*one) for one in per_structure])
    if not _rectangular(cell, pbc):
        from ase.geometry import complete_cell, find_mic

        # a vector without repeat must stand upright on the others, or ASE rounds along it
        with np.errstate(invalid="ignore", divide="ignore"):  # NaN of vectors that are dependent
            upright = complete_cell(np.where(pbc[:, None], cell, 0.0))
        try:
            if not np.isfinite(upright).all():
                raise ArithmeticError
            shortest, _ = find_mic(np.reshape(step, (-1, 3)), upright, pbc)
        except (ValueError, RuntimeError, ArithmeticError, np.linalg.LinAlgError):
            raise DataError(
                f"a periodic cell has no shortest images: {np.round(cell, 3).tolist()} Å"
            ) from None
        return shortest.reshape(np.shape(step))
    full = np.where(pbc[..., None], cell, np.eye(3))
    if cell.ndim == 3:
        pbc = pbc[:, None]
    return step - (np.round(step @ np.linalg.inv(full)) * pbc) @ full


def _rectangular(cell: np.ndarray, pbc: np.ndarray) -> bool:
    """Whether the periodic vectors stand at right angles, and the others' places are free."""
    full = np.where(pbc[..., None], cell, np.eye(3))
    products = full @ np.swapaxes(full, -1, -2)
    lengths = np.sqrt(np.einsum("...ii->...i", products))
    cosines = products / (lengths[..., :, None] * lengths[..., None, :])
    return bool(np.abs(cosines - np.eye(3)).max() < 1e-10)


def minimum_image_of(
    vector: Tensor,  # [M, 3] Å
    batch: Batch,
    owner: Tensor,  # [M] the structure each vector belongs to
) -> Tensor:
    """The shortest periodic image of each ``vector`` in the cell of its structure, [M, 3].

    The best of 27 images around the rounded one, in the Minkowski-reduced form of the cell: exact
    however skewed it is. Only cells that are not reduced yet are brought to it, each once.
    """
    import torch

    from .neighbors import complete_cells

    if batch.cell is None or not getattr(batch, "periodic", True):
        return vector
    cell, pbc = complete_cells(batch.cell, batch.pbc, batch.ptr.shape[0] - 1, vector)
    cell = _reduced(cell, pbc)
    cell, pbc = cell[owner], pbc[owner]
    fraction = (vector[:, None] @ torch.linalg.inv(cell))[:, 0]  # [M, 3]
    image = torch.where(pbc, fraction.round(), torch.zeros_like(fraction))
    rounded = vector - (image[:, None] @ cell)[:, 0]
    # no step first: where several images are equally short, the rounded one stays
    steps = sorted(itertools.product((0, -1, 1), repeat=3), key=lambda step: step != (0, 0, 0))
    around = torch.tensor(steps, dtype=vector.dtype, device=vector.device)  # [27, 3]
    allowed = torch.where(pbc[:, None], around, torch.zeros_like(around))  # [M, 27, 3]
    candidates = rounded[:, None] + allowed @ cell  # [M, 27, 3]
    shortest = candidates.square().sum(-1).argmin(1)
    return candidates[torch.arange(len(vector), device=vector.device), shortest]


def _reduced(cell: Tensor, pbc: Tensor) -> Tensor:
    """The Minkowski-reduced form of complete cells [S, 3, 3]; cells that have it stay as they are.

    Three vectors are reduced when no sum of them with factors −1, 0 and 1 is shorter than the
    longest of those it contains; only the periodic ones are looked at and changed.
    """
    import torch
    from ase.geometry import minkowski_reduce

    factors = [f for f in itertools.product((0, 1, -1), repeat=3) if np.count_nonzero(f) > 1]
    sums = torch.tensor(factors, dtype=cell.dtype, device=cell.device)  # [20, 3]
    length2 = cell.square().sum(-1)  # [S, 3]
    longest = torch.where(sums[None] != 0, length2[:, None], 0.0).amax(-1)  # [S, 20]
    periodic = (pbc[:, None] | (sums[None] == 0)).all(-1)
    # 1e-5: float32 knows a hexagonal cell's 120° no better
    shorter = (sums @ cell).square().sum(-1) < longest * (1 - 1e-5)
    skewed = torch.nonzero((shorter & periodic).any(1)).flatten()
    if not len(skewed):
        return cell
    rows = torch.cat([cell[skewed].flatten(1), pbc[skewed].to(cell.dtype)], 1).double().cpu()
    distinct, place = np.unique(rows.numpy(), axis=0, return_inverse=True)
    forms = []
    for row in distinct:
        try:
            form, _ = minkowski_reduce(row[:9].reshape(3, 3), row[9:] > 0)
        except (RuntimeError, ValueError):  # a cell without volume, say of a broken file
            form = row[:9].reshape(3, 3)
        forms.append(form)
    cell = cell.clone()
    cell[skewed] = torch.from_numpy(np.stack(forms)[place.reshape(-1)]).to(cell)
    return cell


# --- volumes ------------------------------------------------------------------------------------


def volumes(
    cell: Tensor | None,  # [S, 3, 3] Å, rows are lattice vectors
    pbc: Tensor,  # [S, 3] bool
) -> Tensor:
    """The volume of each structure's cell, [S] Å³: what a stress is per.

    Zero for a structure that does not repeat, or whose three vectors span nothing: it has no
    stress. That of a slab or wire counts its vacuum, as in ASE.
    """
    import torch

    if cell is None:
        return torch.zeros(pbc.shape[0], dtype=torch.float64, device=pbc.device)
    a, b, c = cell.double().unbind(1)
    volume = (torch.linalg.cross(a, b) * c).sum(1).abs()
    return torch.where(pbc.any(1) & (volume > FLAT), volume, 0.0)


# --- edges and bonds ----------------------------------------------------------------------------


def edge_vectors(
    pos: Tensor,  # [N, 3] Å
    sender: Tensor,  # [E] j
    receiver: Tensor,  # [E] i
    shift: Tensor | None,  # [E, 3] Å, None without periodic boundaries
) -> Tensor:
    """x_j + shift − x_i of every edge, [E, 3] Å."""
    vector = pos[sender] - pos[receiver]
    return vector if shift is None else vector + shift


def bonded_edges(batch: Batch, stretch: float) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs of atoms closer than ``stretch`` times the sum of their covalent radii.

    Returns edges [2, B] (sender, receiver; each bond both ways), vectors [B, 3] Å and the sums of
    radii [B] Å. Periodic images count; the batch keeps the edges it has.
    """
    import torch

    from .neighbors import attach

    table = torch.as_tensor(covalent_radii_array(), device=batch.pos.device)
    radii = table.to(batch.pos.dtype)[batch.z]
    bare = copy.copy(batch).drop_edges()
    reach = 2 * stretch * float(radii.max()) if len(radii) else 1.0
    near = attach(bare, reach)
    sender, receiver = near.edge_index
    vector = edge_vectors(near.pos, sender, receiver, near.edge_shift)
    sums = radii[sender] + radii[receiver]
    kept = vector.square().sum(1).sqrt() < stretch * sums
    return near.edge_index[:, kept], vector[kept], sums[kept]


def bonds(z: np.ndarray, pos: np.ndarray, stretch: float) -> np.ndarray:
    """Bonded pairs [B, 2] (i < j, rising) of atoms z [A] at pos [A, 3] Å, without periodic images.

    As `bonded_edges`, for readers and pictures.
    """
    from scipy.spatial import cKDTree

    radii = covalent_radii_array()[np.asarray(z, int)]
    if not len(radii):
        return np.zeros((0, 2), int)
    pairs = cKDTree(pos).query_pairs(2 * stretch * float(radii.max()), output_type="ndarray")
    length = np.linalg.norm(pos[pairs[:, 0]] - pos[pairs[:, 1]], axis=1)
    kept = pairs[length < stretch * (radii[pairs[:, 0]] + radii[pairs[:, 1]])]
    return kept[np.lexsort(kept.T[::-1])]


# --- molecules and isomers ----------------------------------------------------------------------


def water_molecules(
    z: np.ndarray, pos: np.ndarray, cell: np.ndarray | None, pbc: np.ndarray
) -> np.ndarray | None:
    """Molecule number of each atom [a] of a structure of water: every hydrogen goes to its nearest
    oxygen.

    None if it is not water, that is if there are other elements or an oxygen does not get exactly
    two hydrogens (dissociated, a proton on its way, or an ion).
    """
    oxygen = np.flatnonzero(z == 8)
    hydrogen = np.flatnonzero(z == 1)
    if not len(oxygen) or len(hydrogen) != 2 * len(oxygen) or len(z) != 3 * len(oxygen):
        return None
    pos = np.asarray(pos, np.float64)
    step = minimum_image(pos[hydrogen][:, None] - pos[oxygen], cell, pbc)  # [2 O, O, 3] Å
    nearest = np.square(step).sum(-1).argmin(1)
    if (np.bincount(nearest, minlength=len(oxygen)) != 2).any():
        return None
    molecule = np.empty(len(z), np.int32)
    molecule[oxygen] = np.arange(len(oxygen))
    molecule[hydrogen] = nearest
    return molecule


def bond_graph(z: np.ndarray, pos: np.ndarray, scale: float = 1.3) -> tuple[np.ndarray, np.ndarray]:
    """Heavy atoms as a graph: colour [h] (atomic number, hydrogens at it) and adjacency [h,h] bool
    of one molecule without box.

    Two heavy atoms are bonded if closer than ``scale`` times the sum of their covalent radii: at
    1.3 a C–C bond may stretch by 0.4 Å, seven standard deviations at 500 K. A hydrogen belongs to
    its nearest heavy atom however far it has swung, so vibrations do not change the graph.
    """
    heavy = z > 1
    pos = np.asarray(pos, np.float64)
    points = pos[heavy]
    numbers = z[heavy].astype(np.int64)
    bonded = np.zeros((len(numbers), len(numbers)), bool)
    first, second = bonds(numbers, points, scale).T
    bonded[first, second] = bonded[second, first] = True
    hydrogens = np.zeros(len(numbers), np.int64)
    if len(numbers) and (~heavy).any():
        nearest = np.square(pos[~heavy][:, None] - points).sum(-1).argmin(1)
        hydrogens = np.bincount(nearest, minlength=len(numbers))
    return numbers * 100 + hydrogens, bonded


def graph_key(colour: np.ndarray, bonded: np.ndarray) -> str:
    """Eight hex digits that are the same for the same graph however its atoms are numbered.

    Colour refinement (Weisfeiler and Leman 1968) that starts from element, hydrogens and the
    numbers of closed walks of length 3 … 8 through an atom; those walks tell apart ring systems
    that refinement alone does not, such as decalin and bicyclopentyl.
    """
    steps = bonded.astype(np.int64)
    power = steps @ steps
    walks = []
    for _ in range(6):
        power = power @ steps
        walks.append(np.diagonal(power))
    per_atom = np.column_stack([colour, *walks])  # [h, 1 + 6]
    labels = [_hash(tuple(int(number) for number in row)) for row in per_atom]
    neighbours = [np.flatnonzero(row) for row in bonded]
    for _ in range(len(labels)):
        labels = [
            _hash((label, *sorted(labels[j] for j in near)))
            for label, near in zip(labels, neighbours, strict=True)
        ]
    return _hash(tuple(sorted(labels)))


def _hash(content: tuple) -> str:
    return hashlib.blake2b(repr(content).encode(), digest_size=4).hexdigest()
