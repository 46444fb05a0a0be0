"""Neighbour lists for packed batches: every pair closer than the cutoff, all periodic images
counted, none cut off silently.

Three ways to the same edges, chosen by what is cheapest where the batch lies. Small free molecules:
each atom against all atoms of its structure, in one tensor operation. Large or periodic structures
on the CPU: vesin, structure by structure. The same on a GPU: a sorted cell list in tensor code,
linear in the number of atoms. The last two also handle boxes smaller than the cutoff (several
images of one pair) and slabs and wires (periodic along one or two vectors only).

Edges run from a sender j to a receiver i and are sorted by receiver; edge vectors are x_j + shift −
x_i.
"""

from __future__ import annotations

import itertools

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor
from vesin import NeighborList

from ..errors import ConfigError, DataError
from .batch import Batch
from .store import Structures

DENSE_LIMIT = 200  # atoms in the largest structure up to which all pairs are cheaper than cells
OVERLAP = 0.1  # Å; two atoms closer than this are a broken structure, not physics
# Å; overlaps are looked for among pairs this close: shorter than bonds, so that there are few, and
# wide enough that vesin's cells, which have the width of the cutoff, are not mostly empty
NEARBY = 0.8


def neighbor_list(
    pos: Tensor,  # [N, 3] Å
    batch: Tensor,  # [N] structure of each atom, rising
    ptr: Tensor,  # [S + 1]
    cutoff: float,  # Å
    cell: Tensor | None = None,  # [S, 3, 3] Å, rows are lattice vectors
    pbc: Tensor | None = None,  # [S, 3] bool
    max_atoms: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """``edge_index`` [2, E] (sender, receiver) and integer cell shifts [E, 3] (None for free
    structures).

    Raises ConfigError for a cutoff that is not positive, DataError for a periodic structure whose
    cell has no volume.
    """
    if not cutoff > 0:
        raise ConfigError(f"cutoff must be positive, got {cutoff}")
    pos = pos.detach()
    if max_atoms is None:
        max_atoms = int((ptr[1:] - ptr[:-1]).max()) if len(ptr) > 1 else 0
    periodic = cell is not None and pbc is not None
    if not periodic and max_atoms <= DENSE_LIMIT:
        return _all_pairs(pos, batch, ptr, cutoff, max_atoms), None
    search = _by_vesin if pos.device.type == "cpu" else _cell_list
    if periodic:
        return search(pos, batch, ptr, cutoff, cell, pbc)
    edges, _ = search(pos, batch, ptr, cutoff, None, None)
    return edges, None


def _all_pairs(pos: Tensor, batch: Tensor, ptr: Tensor, cutoff: float, max_atoms: int) -> Tensor:
    partner = torch.arange(max_atoms, device=pos.device)
    start = ptr[batch]
    count = (ptr[1:] - ptr[:-1])[batch]
    sender = start[:, None] + partner  # [N, max_atoms]
    inside = partner < count[:, None]
    there = sender.clamp(max=max(len(pos) - 1, 0))
    distance2 = torch.zeros_like(sender, dtype=pos.dtype)
    for x in pos.T.contiguous():  # one coordinate after the other: a sum over three numbers is slow
        distance2 += (x[there] - x[:, None]).square_()
    atom = torch.arange(len(pos), device=pos.device)[:, None]
    close = inside & (distance2 < cutoff * cutoff) & (sender != atom)
    receiver, slot = torch.nonzero(close, as_tuple=True)
    return torch.stack([start[receiver] + slot, receiver])


def _by_vesin(
    pos: Tensor,  # [N, 3] Å
    batch: Tensor,  # [N]
    ptr: Tensor,  # [S + 1]
    cutoff: float,  # Å
    cell: Tensor | None,  # [S, 3, 3] Å
    pbc: Tensor | None,  # [S, 3] bool
) -> tuple[Tensor, Tensor]:
    # each pair once takes vesin half as long as both directions
    search = NeighborList(cutoff=cutoff, full_list=False, sorted=False)
    points = pos.double().numpy()
    number = np.int32 if len(pos) < 2**31 else np.int64
    pairs = [np.zeros((0, 2), number)]
    shifts = [np.zeros((0, 3), np.int32)]
    for s, (a, b) in enumerate(itertools.pairwise(ptr.tolist())):
        box = np.zeros((3, 3)) if cell is None else cell[s].double().numpy()
        along = [False] * 3 if pbc is None else pbc[s].tolist()
        # of slabs and wires only the periodic vectors count; vesin ends the process if they are
        # dependent
        periodic = box[along]
        if any(along) and np.linalg.det(periodic @ periodic.T) < 1e-12:
            raise DataError(
                f"structure {s} of the batch is periodic but its cell has no volume: {box.tolist()}"
            )
        if b == a:
            continue
        # without a copy: these lie in memory of vesin's that the next call writes anew
        found, shift = search.compute(points[a:b], box, along, "PS", copy=False)
        pairs.append(found.astype(number) + number(a))
        shifts.append(shift.copy())
    return _both_directions(np.concatenate(pairs), np.concatenate(shifts), len(pos))


def _both_directions(
    pairs: np.ndarray,  # [P, 2] receiver and sender, each pair once
    shifts: np.ndarray,  # [P, 3]
    n_atoms: int,
) -> tuple[Tensor, Tensor]:
    """Both edges of every pair, by receiver and then sender: [2, 2P] and their shifts [2P, 3].

    Several images of a pair stay in their order. Sorted by two counting sorts, in a time linear in
    the number of edges: SciPy's change of a sparse matrix from rows to columns is one.
    """
    n_edges = 2 * len(pairs)
    if not n_edges:
        return torch.zeros(2, 0, dtype=torch.long), torch.from_numpy(shifts)
    receiver = pairs.reshape(-1)  # edges 2k and 2k + 1 are pair k and its opposite
    sender = pairs[:, ::-1].reshape(-1)
    # a row for each edge, with a single entry in the column of its sender
    rows = np.arange(n_edges + 1, dtype=np.int32 if n_edges < 2**31 - 1 else np.int64)
    entries = (np.zeros(n_edges, np.int8), sender, rows)
    by_sender = csr_array(entries, shape=(n_edges, n_atoms)).tocsc()
    edge = by_sender.indices
    # a row for each sender, with the numbers of its edges in the columns of their receivers
    entries = (edge, receiver.take(edge), by_sender.indptr)
    by_receiver = csr_array(entries, shape=(n_atoms, n_atoms)).tocsc()
    edges = np.empty((2, n_edges), np.int64)
    edges[0] = by_receiver.indices
    edges[1] = np.repeat(np.arange(n_atoms), np.diff(by_receiver.indptr))
    edge = by_receiver.data
    shifts = shifts.take(edge >> 1, 0)
    shifts *= (1 - 2 * (edge & 1))[:, None]
    return torch.from_numpy(edges), torch.from_numpy(shifts)


def complete_cells(
    cell: Tensor | None, pbc: Tensor | None, n: int, like: Tensor
) -> tuple[Tensor, Tensor]:
    """Cells with three independent vectors: those that are not periodic are replaced by unit
    vectors normal to the rest.
    """
    eye = torch.eye(3, dtype=like.dtype, device=like.device).expand(n, 3, 3)
    if cell is None or pbc is None:
        return eye.clone(), torch.zeros(n, 3, dtype=torch.bool, device=like.device)
    full = torch.where(pbc[:, :, None], cell.to(like.dtype), eye)
    partly = torch.nonzero(pbc.any(1) & ~pbc.all(1)).flatten().tolist()
    for s in partly:  # slabs and wires are rare: a plain loop
        keep = pbc[s]
        _, _, right = torch.linalg.svd(full[s][keep].double(), full_matrices=True)
        full[s, ~keep] = right[int(keep.sum()) :].to(like.dtype)
    return full, pbc


def _cell_list(
    pos: Tensor,  # [N, 3] Å
    batch: Tensor,  # [N]
    ptr: Tensor,  # [S + 1]
    cutoff: float,  # Å
    cell: Tensor | None,  # [S, 3, 3] Å
    pbc: Tensor | None,  # [S, 3] bool
) -> tuple[Tensor, Tensor]:
    n_structures = len(ptr) - 1
    device = pos.device
    if not len(pos):
        no_edges = torch.zeros(2, 0, dtype=torch.long, device=device)
        return no_edges, torch.zeros(0, 3, dtype=torch.long, device=device)
    box, periodic = complete_cells(cell, pbc, n_structures, pos)
    volume = torch.linalg.det(box.double()).abs()
    if bool((volume < 1e-6).any()):
        bad = int(torch.nonzero(volume < 1e-6)[0])
        raise DataError(
            f"structure {bad} of the batch is periodic but its cell has no volume: "
            f"{box[bad].tolist()}"
        )
    inverse = torch.linalg.inv(box.double())
    height = 1.0 / inverse.norm(dim=1)  # [S, 3] distance between opposite faces
    fraction = (pos.double()[:, None] @ inverse[batch])[:, 0]  # [N, 3]
    wrap = torch.where(periodic[batch], fraction.floor(), torch.zeros_like(fraction))
    fraction = fraction - wrap
    # free directions: shift and stretch the cell so that it just holds the atoms
    index = batch[:, None].expand(-1, 3)
    infinite = torch.full((n_structures, 3), torch.inf, dtype=torch.float64, device=device)
    low = infinite.scatter_reduce(0, index, fraction, "amin")
    high = (-infinite).scatter_reduce(0, index, fraction, "amax")
    low = torch.where(periodic | ~low.isfinite(), 0.0, low)
    span = torch.where(periodic | ~high.isfinite(), 1.0, (high - low).clamp(min=1e-9))
    length = height * span
    # where there is more than one cell, each is at least as wide as the cutoff
    n_cells = (length / cutoff).floor().clamp(1, 2**20).long()  # [S, 3]
    # how many cells to look at on each side
    reach = torch.where(periodic, (cutoff * n_cells / length).ceil(), (n_cells > 1).double()).long()
    place = ((fraction - low[batch]) / span[batch] * n_cells[batch]).floor().long()
    place = torch.minimum(place.clamp(min=0), n_cells[batch] - 1)  # [N, 3]
    per_structure = n_cells.prod(1)
    first = torch.cumsum(per_structure, 0) - per_structure

    def cell_id(where: Tensor, owner: Tensor) -> Tensor:
        x, y, z = where.unbind(-1)
        _, n_y, n_z = n_cells[owner].unbind(-1)
        return first[owner] + (x * n_y + y) * n_z + z

    ids, order = torch.sort(cell_id(place, batch), stable=True)
    ranges = [torch.arange(-r, r + 1, device=device) for r in reach.amax(0).tolist()]
    offsets = torch.cartesian_prod(*ranges).reshape(-1, 3)  # [O, 3]
    there = place[:, None] + offsets  # [N, O, 3]
    n = n_cells[batch][:, None]
    image = torch.where(
        periodic[batch][:, None],
        torch.div(there, n, rounding_mode="floor"),
        torch.zeros_like(there),
    )
    there = there - image * n
    inside = ((there >= 0) & (there < n)).all(-1)
    within_reach = (offsets.abs()[None] <= reach[batch][:, None]).all(-1)
    neighbour = cell_id(there, batch[:, None].expand(-1, len(offsets)))
    begin = torch.searchsorted(ids, neighbour)
    end = torch.searchsorted(ids, neighbour, right=True)
    count = torch.where(inside & within_reach, end - begin, 0)  # [N, O]
    flat = count.flatten()
    # every candidate sender: which (atom, offset) it belongs to, and its place among those
    pair = torch.repeat_interleave(torch.arange(flat.numel(), device=device), flat)
    rank = torch.arange(len(pair), device=device) - (torch.cumsum(flat, 0) - flat)[pair]
    receiver = torch.div(pair, len(offsets), rounding_mode="floor")
    sender = order[begin.flatten()[pair] + rank]
    shift = image.reshape(-1, 3)[pair] - wrap[sender].long() + wrap[receiver].long()
    vector = pos[sender] - pos[receiver]
    if cell is not None:
        vector = vector + _in_angstrom(shift, cell.to(pos.dtype), batch, receiver)
    itself = (sender == receiver) & (shift == 0).all(1)
    keep = torch.nonzero((vector.square().sum(1) < cutoff * cutoff) & ~itself).flatten()
    return torch.stack([sender[keep], receiver[keep]]), shift[keep]


def _in_angstrom(
    shifts: Tensor,  # [E, 3] whole numbers
    cell: Tensor,  # [S, 3, 3] Å
    batch: Tensor,  # [N] structure of each atom
    receiver: Tensor,  # [E]
) -> Tensor:
    """Cell shifts as vectors [E, 3] Å.

    No matrix product: within autocast it would be rounded to bfloat16, and on GPUs that are allowed
    to, to tf32, by hundredths of an Å in a box of 15 Å.
    """
    x, y, z = shifts.to(cell.dtype)[:, :, None].unbind(1)  # [E, 1] each
    vectors = cell if len(cell) == 1 else cell[batch[receiver]]  # [1 or E, 3, 3]
    a, b, c = vectors.unbind(1)
    return torch.addcmul(torch.addcmul(x * a, y, b), z, c)


def attach(batch: Batch, cutoff: float) -> Batch:
    """Give ``batch`` its edges within ``cutoff`` (``edge_index`` [2,E]; ``edge_shift`` [E,3] in Å
    or None) unless it has them.
    """
    if batch.edge_index is not None and batch.cutoff == cutoff:
        return batch
    periodic = batch.cell is not None and getattr(batch, "periodic", True)
    edges, shifts = neighbor_list(
        batch.pos,
        batch.batch,
        batch.ptr,
        cutoff,
        batch.cell if periodic else None,
        batch.pbc if periodic else None,
        getattr(batch, "max_atoms", None),
    )
    batch.edge_index = edges
    batch.cutoff = cutoff
    batch.edge_shift = None
    if shifts is not None:
        cell = batch.cell.to(batch.pos.dtype)
        batch.edge_shift = _in_angstrom(shifts, cell, batch.batch, edges[1])
    return batch


# fingerprints of sets that were looked at: reading, training and the runs of a grid share them
_sound: set[str] = set()


def check_geometry(structures: Structures) -> Structures:
    """Raise DataError for numbers that are not finite or atoms on top of each other; return
    ``structures``. The same content is looked at once in a process.
    """
    if structures.fingerprint() not in _sound:
        check_overlaps(structures.validate())
        _sound.add(structures.fingerprint())
    return structures


def check_overlaps(
    structures: Structures, limit: float = OVERLAP, chunk_atoms: int = 20_000
) -> None:
    """Raise DataError that names the first two atoms closer than ``limit`` Å (periodic images
    included).
    """
    atoms = np.arange(0, int(structures.ptr[-1]) + chunk_atoms, chunk_atoms)
    rows = np.searchsorted(structures.ptr, atoms, "left")
    bounds = np.unique(np.clip(rows, 0, len(structures)))
    for a, b in itertools.pairwise(bounds):
        batch = structures.batch(np.arange(a, b), dtype=torch.float64)
        batch = attach(batch, max(limit, NEARBY))
        j, i = batch.edge_index
        apart = batch.pos[j] - batch.pos[i]
        if batch.edge_shift is not None:
            apart += batch.edge_shift
        overlaps = batch.edge_index[:, apart.norm(dim=1) < limit]
        if overlaps.shape[1]:
            j, i = overlaps[:, 0].tolist()
            s = int(batch.batch[i])
            start = int(batch.ptr[s])
            name = structures.info.get("name", "structures")
            raise DataError(
                f"{name}: atoms {i - start} and {j - start} of structure {a + s} "
                f"are closer than {limit} Å"
            )
