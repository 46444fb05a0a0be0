"""Stars: how atoms move about their bonded neighbours, whatever the molecule as a whole does.

Molecules turn and twist, so displacements are measured locally. A *star* is an atom with the atoms
bonded to it (bonds: closer than 1.25 sums of covalent radii in the structure of lowest energy;
structures in which one of these is stretched to more than 1.5 sums, because it broke or because the
atoms come in another order, are looked at by themselves). All copies of a star, over the structures
of a system, are turned onto their mean (generalised Procrustes: Kabsch 1976, Gower 1975), and what
is left are bond lengths and angles, vibrations about one shape in every conformer; turning about
bonds drops out. In a box of molecules the same star of all molecules of a kind is one star, and
bonds reach across the cell's faces. ``frame="structure"`` takes the whole molecule for one star
instead, which is right for a single conformer only.

Turning a star of k atoms takes 6 of its 3k degrees of freedom away (5 of 6 for two atoms).
Amplitudes are corrected for that: with P the projector onto what is left, s_i² = ⟨|u_i|²⟩ / tr P_ii
per axis, exact to first order where all atoms of the star move alike.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np
import torch

from ..errors import ConfigError
from ..structures.element_properties import covalent_radii
from ..structures.geometry import bonded_edges, minimum_image
from ..structures.store import Structures

# in sums of covalent radii: atoms closer than the first are bonded, and a bond of the reference
# structure is broken where it is longer than the second
BOND = 1.25
BROKEN = 1.5
FEWEST = 10  # copies of a star below which it is left out
MOST = 200  # systems that are looked at; more are drawn from


@dataclasses.dataclass(frozen=True)
class Star:
    """Displacements u [n, k, 3] (Å) of k atoms from their ``mean`` shape [k, 3] (centred) in n
    copies, in the frame of the mean shape.

    ``own``: those of the k atoms that are counted here and in no other star (the centre, and atoms
    without other bonds).
    """

    system: int
    z: np.ndarray  # [k] atomic numbers
    u: np.ndarray  # [n, k, 3] Å
    mean: np.ndarray  # [k, 3] Å
    own: np.ndarray  # [k] bool

    @property
    def freedom(self) -> int:
        """Degrees of freedom that turning and moving leave: 3k − 6, or 1 for two atoms."""
        return max(3 * len(self.z) - 6, 1)

    def left(self) -> np.ndarray:
        """tr P_ii, [k]: of the three degrees of freedom of each atom, how many turning and moving
        leave.
        """
        k = len(self.z)
        translations = np.broadcast_to(np.eye(3), (k, 3, 3))
        rotations = np.cross(np.eye(3), self.mean[:, None])
        rigid = np.concatenate([translations, rotations], 1)  # [k, 6, 3]
        basis, size, _ = np.linalg.svd(rigid.swapaxes(1, 2).reshape(-1, 6), full_matrices=False)
        taken = basis[:, size > 1e-6 * size[0]].reshape(k, 3, -1)
        return 3.0 - np.square(taken).sum((1, 2))

    def variances(self) -> np.ndarray:
        """Corrected variance per axis of every atom, [k] Å²."""
        return np.square(self.u).sum(2).mean(0) / self.left()

    def modes(self) -> tuple[np.ndarray, np.ndarray]:
        """Vibrations: variances λ (Å²) along the eigenvectors of the covariance of all coordinates,
        [m], and each atom's share in them, [m, k].

        Of the 3k eigenvectors those are left out that turning took away. Shares of a vibration add
        up to 1.
        """
        flat = self.u.reshape(len(self.u), -1)
        values, vectors = np.linalg.eigh(flat.T @ flat / len(flat))
        shares = np.square(vectors.T.reshape(len(values), -1, 3)).sum(2)
        return np.clip(values[::-1][: self.freedom], 0.0, None), shares[::-1][: self.freedom]


# -- stars ---------------------------------------------------------------------------------------
def align(copies: np.ndarray, rounds: int = 3) -> tuple[np.ndarray, np.ndarray]:
    """Turn ``copies`` [n, k, 3] of one shape onto their mean; (displacements [n, k, 3], mean [k,
    3]), both Å, in the mean's frame.
    """
    x = copies - copies.mean(1, keepdims=True)
    mean = x[0]
    for _ in range(rounds):
        left, _, right = np.linalg.svd(x.swapaxes(1, 2) @ mean)
        turn = left @ right
        # where that is a mirror image, the last axis is turned round: proper rotations only
        flip = np.sign(np.linalg.det(turn)) - 1.0  # [n], 0 or −2
        turn += flip[:, None, None] * (left[:, :, 2:] @ right[:, 2:])
        x = x @ turn
        mean = x.mean(0)
    return x - mean, mean


def stars(
    structures: Structures, frame: str = "local", limit: int = 500, seed: int = 0
) -> Iterator[Star]:
    """The stars of ``structures``; those with fewer than 10 copies are left out.

    Of more than 200 systems some are drawn (by ``seed``), and so are ``limit`` copies of each star.
    Raises ConfigError for an unknown ``frame`` ("local" or "structure").
    """
    if frame not in ("local", "structure"):
        raise ConfigError(f"frame must be 'local' or 'structure', got {frame!r}")
    rng = np.random.default_rng(seed)
    # by kind of star: copies [n, k, 3], elements [k], own [k], system
    by_kind: dict[tuple, list[tuple[np.ndarray, np.ndarray, np.ndarray, int]]] = {}
    kinds = _same_atoms(structures)
    for rows in [kinds[i] for i in np.sort(rng.permutation(len(kinds))[:MOST])]:
        atoms = slice(*structures.ptr[rows[0] : rows[0] + 2])
        z = structures.z[atoms]
        molecule = structures.molecule[atoms]
        system = int(structures.system[rows[0]])
        several = bool(np.ptp(molecule))
        rows = rows[np.sort(rng.permutation(len(rows))[: 4 * limit])]
        while len(rows) >= FEWEST or (several and len(rows)):
            reference = rows[0]
            if structures.energy is not None:
                energy = np.asarray(structures.energy[rows], np.float64)
                reference = rows[np.argmin(np.where(np.isnan(energy), np.inf, energy))]
            bonded = _bonds(structures, reference)
            whole = _unbroken(structures, rows, bonded, z)
            chosen = rows[whole]
            if len(chosen) > limit:  # not the first: a file may stand in the order of temperature
                chosen = np.sort(rng.permutation(chosen)[:limit])
            rows = rows[~whole]
            for kind, members, own in _members(bonded, z, molecule, frame):
                copies = _steps(structures, chosen, members[:1], members)
                key = kind if several else (system, int(reference), *kind)
                by_kind.setdefault(key, []).append((copies, z[members].astype(int), own, system))
    for parts in by_kind.values():
        copies = _one_hand(np.concatenate([part[0] for part in parts]))
        if len(copies) >= FEWEST:
            copies = copies[np.sort(rng.permutation(len(copies))[:limit])]
            displacements, mean = align(copies)
            _, z, own, system = parts[0]
            yield Star(system, z, displacements, mean, own)


def _same_atoms(structures: Structures) -> list[np.ndarray]:
    """Rows of structures that have the same system and the same elements in the same order."""
    kinds: dict[tuple, list[int]] = {}
    for i, system in enumerate(structures.system.tolist()):
        elements = structures.z[structures.ptr[i] : structures.ptr[i + 1]]
        kinds.setdefault((system, elements.tobytes()), []).append(i)
    return [np.array(rows) for rows in kinds.values()]


def _steps(
    structures: Structures, rows: np.ndarray, start: np.ndarray, end: np.ndarray
) -> np.ndarray:
    """Ways from atoms ``start`` to atoms ``end`` of structures ``rows``, [n, k, 3] Å, by the
    shortest periodic image.
    """
    first = structures.ptr[rows][:, None]
    ends = np.asarray(structures.pos[first + end], np.float64)
    steps = ends - np.asarray(structures.pos[first + start], np.float64)
    if structures.cell is None:
        return steps
    return minimum_image(steps, structures.cell[rows], structures.pbc[rows])


def _unbroken(
    structures: Structures, rows: np.ndarray, bonded: list[list[int]], z: np.ndarray
) -> np.ndarray:
    """Which structures have all the bonds, [n] bool."""
    bonds = [(i, j) for i, near in enumerate(bonded) for j in near if i < j]
    pairs = np.array(bonds, int).reshape(-1, 2)
    radii = covalent_radii().numpy()[z]
    length = np.linalg.norm(_steps(structures, rows, pairs[:, 0], pairs[:, 1]), axis=2)
    return (length < BROKEN * radii[pairs].sum(1)).all(1)


def _one_hand(copies: np.ndarray) -> np.ndarray:
    """Without the mirror images of the majority (equal atoms in another order, or an inverted
    centre), where the shape has a hand.
    """
    if copies.shape[1] < 4:
        return copies
    a, b, c = (copies[:, i] for i in (1, 2, 3))
    lengths = [np.linalg.norm(v, axis=1) for v in (a, b, c)]
    volume = np.einsum("ni,ni->n", a, np.cross(b, c)) / np.prod(lengths, axis=0)
    clear = np.abs(volume) > 0.2  # a tetrahedron's is 0.77, a planar centre's 0
    sign = 1.0 if (volume > 0.2).sum() >= (volume < -0.2).sum() else -1.0
    return copies[volume * sign > 0.2] if clear.mean() > 0.9 else copies


def _bonds(structures: Structures, row: int) -> list[list[int]]:
    """The atoms bonded to each atom of structure ``row``, rising."""
    batch = structures.batch([row], dtype=torch.float64)
    edges, _, _ = bonded_edges(batch, BOND)
    bonded: list[set[int]] = [set() for _ in batch.z]
    for sender, receiver in edges.T.tolist():
        bonded[receiver].add(sender)
    return [sorted(s - {i}) for i, s in enumerate(bonded)]


def _members(
    bonded: list[list[int]], z: np.ndarray, molecule: np.ndarray, frame: str
) -> Iterator[tuple[tuple, np.ndarray, np.ndarray]]:
    """(kind, atoms, own) of every star: same kind, same molecule and same place in it."""
    place = np.empty(len(z), int)
    elements: dict[int, bytes] = {}  # of each molecule
    for m in np.unique(molecule):
        inside = np.flatnonzero(molecule == m)
        place[inside] = np.arange(len(inside))
        elements[m] = z[inside].tobytes()
        if frame == "structure" and len(inside) > 1:
            yield (elements[m],), inside, np.ones(len(inside), bool)
    if frame == "structure":
        return
    for i, near in enumerate(bonded):
        if not near or (len(near) == 1 and (len(bonded[near[0]]) > 1 or near[0] < i)):
            continue  # it is an end, and counted in its neighbour's star
        members = np.array([i, *near])
        own = np.array([True, *(len(bonded[j]) == 1 for j in near)])
        yield (elements[molecule[i]], tuple(place[members])), members, own
