"""What a simulation is asked: whether the structure still is what it was, whether its energy is
kept, and whether it visits what it should.

A bond is *broken* when its length differs by more than `STRETCHED` from that at the start: X. Fu,
Z. Wu, W. Wang, T. Xie, S. Keten, R. Gomez-Bombarelli, T. Jaakkola, "Forces are not Enough",
Transactions on Machine Learning Research 2023, arXiv 2210.07237, section 4, who stop the dynamics
of molecules at the same 0.5 Å. Two atoms are *fused* when they are closer than `FUSED` times the
sum of their covalent radii: no thermal vibration brings them there.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import numpy as np
import torch
from scipy.stats import wasserstein_distance

from ..errors import DataError
from ..structures.elements import SYMBOLS
from ..structures.geometry import bonded_edges
from ..structures.store import Structures

BONDED = 1.3  # times the sum of covalent radii: what counts as a bond at the start
STRETCHED = 0.5  # Å, of a bond against its length at the start
FUSED = 0.6  # times the sum of covalent radii


class BondWatch:
    """The bonds of ``structures`` at the start of a simulation, and what became of them.

    ``first``, ``second`` [B]: the bonded atoms, rows of the packed arrays; ``owner`` [B]: the
    structure of each bond; ``start`` [B] Å: its length; ``pair`` [B]: its elements, such as "C–H".
    Positions are followed as a simulation moves them, that is without wrapping them into the cell;
    cells stay as they are. A bond to an atom's own image is not followed.
    """

    def __init__(self, structures: Structures) -> None:
        self._structures = structures
        self._batch = structures.batch(dtype=torch.float64)
        (sender, receiver), vector, _ = bonded_edges(self._batch, BONDED)
        once = sender < receiver
        self.first = sender[once].numpy()
        self.second = receiver[once].numpy()
        pos = self._batch.pos.numpy()
        # from the receiver to the sender, over the cell's faces where the bond goes over them
        self._shift = vector[once].numpy() - (pos[self.first] - pos[self.second])  # [B, 3] Å
        self.start = self.lengths(pos)
        self.owner = self._batch.batch.numpy()[self.first]
        z = self._batch.z.numpy()
        pairs = zip(z[self.first].tolist(), z[self.second].tolist(), strict=True)
        self.pair = np.array([_pair(*pair) for pair in pairs], dtype=object)

    def of(self, kept: np.ndarray) -> BondWatch:
        """That of the structures in the rows ``kept`` alone."""
        return BondWatch(self._structures[kept])

    def lengths(self, pos: np.ndarray) -> np.ndarray:
        """The length of every bond, [B] Å, at ``pos`` [A, 3] Å."""
        return np.linalg.norm(pos[self.first] - pos[self.second] + self._shift, axis=1)

    def problems(self, pos: np.ndarray) -> list[str]:
        """What is wrong with each structure at ``pos`` [A, 3] Å, in words; "" where nothing is.

        "positions are not finite", "the bond C0–H4 is broken (2.31 Å, 1.09 Å at the start)" or
        "the atoms H3 and H7 are fused (0.21 Å apart)"; atoms are counted within their structure.
        """
        ptr = self._batch.ptr.numpy()
        said = [""] * (len(ptr) - 1)
        owner = self._batch.batch.numpy()
        for s in np.unique(owner[~np.isfinite(pos).all(axis=1)]):
            said[s] = "positions are not finite"
        lengths = self.lengths(pos)
        far = np.abs(lengths - self.start) > STRETCHED
        for b in np.flatnonzero(far):
            s = self.owner[b]
            if not said[s]:
                names = f"{self._name(self.first[b])}–{self._name(self.second[b])}"
                said[s] = (
                    f"the bond {names} is broken ({lengths[b]:.2f} Å, {self.start[b]:.2f} Å "
                    "at the start)"
                )
        for i, j, distance in self._fused(pos, [not text for text in said]):
            s = owner[i]
            if not said[s]:
                said[s] = (
                    f"the atoms {self._name(i)} and {self._name(j)} are fused "
                    f"({distance:.2f} Å apart)"
                )
        return said

    def _fused(self, pos: np.ndarray, whole: list[bool]) -> list[tuple[int, int, float]]:
        """Pairs of atoms, and their distance (Å), of structures that are ``whole`` so far."""
        batch = copy.copy(self._batch)
        kept = np.array(whole)[self._batch.batch.numpy()]
        # those that are not are put back, so that no neighbour search sees them
        batch.pos = torch.where(
            torch.from_numpy(kept)[:, None], torch.from_numpy(pos), self._batch.pos
        )
        (sender, receiver), vector, _ = bonded_edges(batch, FUSED)
        distance = vector.norm(dim=1)
        return [
            (int(i), int(j), float(d))
            for i, j, d in zip(sender, receiver, distance, strict=True)
            if i <= j and kept[i]
        ]

    def _name(self, atom: int) -> str:
        """Element and number of an atom within its structure, such as "C0"."""
        start = self._batch.ptr[self._batch.batch[atom]]
        return f"{SYMBOLS[int(self._batch.z[atom])]}{atom - int(start)}"


def _pair(*elements: int) -> str:
    """A bond's elements as chemists write them, carbon first and hydrogen last: "C–H", "O–H"."""
    first, second = sorted(elements, key=lambda z: (z != 6, z == 1, z))
    return f"{SYMBOLS[first]}–{SYMBOLS[second]}"


def drift(
    time: np.ndarray,  # [T] ps
    energy: np.ndarray,  # [T] eV, the total
    atoms: int,
) -> float:
    """How fast the total energy of a simulation without thermostat runs away: the slope of the
    least-squares line, in meV per atom and ps, with its sign.

    Raises DataError for fewer than three points.
    """
    if len(time) < 3:
        raise DataError(f"a drift needs at least three points in time, got {len(time)}")
    slope, _ = np.polyfit(np.asarray(time) - np.mean(time), np.asarray(energy) - energy[0], 1)
    return float(1e3 * slope / atoms)


def distance_of_histograms(
    centres: np.ndarray,  # [K] the bins' middles
    counts: np.ndarray,  # [K]
    reference: np.ndarray,  # [K] counts of the reference in the same bins
) -> float:
    """How far the values of one histogram have to be moved on average to make the other, in the
    unit of ``centres``: the Wasserstein distance of order 1.

    NaN where one of them is empty.
    """
    if not np.sum(counts) or not np.sum(reference):
        return float("nan")
    return float(wasserstein_distance(centres, centres, counts, reference))


def distance_of_curves(
    curve: np.ndarray,  # [K] values in bins of equal width
    reference: np.ndarray,  # [K]
) -> float:
    """The mean absolute difference of two curves, such as radial distributions."""
    return float(np.mean(np.abs(np.asarray(curve) - np.asarray(reference))))


def bond_histograms(
    watch: BondWatch,
    frames: np.ndarray,  # [T, A, 3] Å
    edges: np.ndarray,  # [K + 1] Å
) -> Mapping[str, np.ndarray]:
    """Counts [K] of the bond lengths in ``frames``, by the bond's elements ("C–H" …)."""
    lengths = np.array([watch.lengths(pos) for pos in frames])  # [T, B] Å
    return {
        pair: np.histogram(lengths[:, watch.pair == pair], bins=edges)[0]
        for pair in sorted(set(watch.pair))
    }
