"""Nine properties of every element, from hydrogen to oganesson: the node input of ForceNet.

The table `element_properties.csv` was written with mendeleev 1.3.0 (a database of published values)
and holds, in this order,

    group
    period
    block                           s p d f
    valence electrons               outside the noble-gas core and filled inner d and f shells
    electronegativity               Pauling
    covalent radius                 Å, single bonds, Pyykkö and Atsumi 2009
    first ionisation energy         eV, NIST
    electron affinity               eV
    static dipole polarizability    bohr³, Schwerdtfeger and Nagle 2018

These are the properties of CGCNN and ForceNet but for the last, which replaces "atomic volume": the
molar volume of the element at room temperature says nothing about an atom of a gas, the
polarizability is the volume of the free atom.

A blank in the table is a value that does not exist or was never measured. `element_properties`
fills blanks by rule, so that no element reaches a network as NaN: f elements stand in group 3; an
electron affinity that is missing is 0 (no bound anion); anything else is taken from the nearest
element of the same group and block that has it (nearest period, then nearest number).
"""

from __future__ import annotations

import csv
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from .elements import MAX_Z

if TYPE_CHECKING:
    from torch import Tensor

TABLE = Path(__file__).with_name("element_properties.csv")
PROPERTIES = (
    "group",
    "period",
    "block",
    "valence",
    "electronegativity",
    "covalent_radius",
    "ionisation_energy",
    "electron_affinity",
    "polarizability",
)
BLOCKS = "spdf"
# Slater, J. Chem. Phys. 41, 3199 (1964): atomic radii in pm, from element to element as they rise
SLATER_RADII = {
    1: (25,),
    3: (145, 105, 85, 70, 65, 60, 50),
    11: (180, 150, 125, 110, 100, 100, 100),
    19: (220, 180, 160, 140, 135, 140, 140, 140, 135, 135, 135, 135, 130, 125, 115, 115, 115),
    37: (235, 200, 180, 155, 145, 145, 135, 130, 135, 140, 160, 155, 155, 145, 145, 140, 140),
    55: (260, 215, 195, 185, 185, 185, 185, 185, 185, 180, 175, 175, 175, 175, 175, 175, 175),
    72: (155, 145, 135, 135, 130, 135, 135, 135, 150, 190, 180, 160, 190),
    88: (215, 195, 180, 180, 175, 175, 175, 175),
}


@lru_cache(maxsize=1)
def _table() -> tuple[tuple[float | None, ...], ...]:
    """118 rows of the nine properties as they stand in the file; None where it is blank."""
    with TABLE.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if [int(r["number"]) for r in rows] != list(range(1, MAX_Z + 1)):  # a broken installation
        raise RuntimeError(f"{TABLE.name} must list the elements 1 to {MAX_Z} in order")

    def number(row: dict[str, str], name: str) -> float | None:
        if name == "block":
            return float(BLOCKS.index(row[name]))
        return float(row[name]) if row[name] else None

    return tuple(tuple(number(r, name) for name in PROPERTIES) for r in rows)


@lru_cache(maxsize=1)
def _filled() -> np.ndarray:
    """The table with blanks filled by the rules of the module's docstring, [119, 9] float64."""
    rows = [list(row) for row in _table()]
    group, period, block = (PROPERTIES.index(n) for n in ("group", "period", "block"))
    affinity = PROPERTIES.index("electron_affinity")
    for row in rows:
        if row[group] is None:
            row[group] = 3.0
        row[affinity] = row[affinity] or 0.0

    def distance(first: int, second: int) -> tuple[float, int]:
        """Between elements: in periods, then in numbers."""
        return abs(rows[first][period] - rows[second][period]), abs(first - second)

    filled = [list(row) for row in rows]
    for i, row in enumerate(rows):
        # helium is an s element, yet its relatives are the other noble gases
        helium = row[period] == 1 and row[group] == 18
        relatives = [
            k
            for k, other in enumerate(rows)
            if other[group] == row[group] and (helium or other[block] == row[block])
        ]
        relatives.sort(key=partial(distance, i))
        for column, value in enumerate(row):
            if value is None:
                values = [rows[k][column] for k in relatives]
                filled[i][column] = next(v for v in values if v is not None)
    return np.array([[0.0] * len(PROPERTIES), *filled], np.float64)


def is_tabulated() -> Tensor:
    """True where the file has a value, [119, 9] bool; row 0 (no element) is False."""
    import torch

    known = [[value is not None for value in row] for row in _table()]
    return torch.tensor([[False] * len(PROPERTIES), *known])


def element_properties() -> Tensor:
    """The nine `PROPERTIES` by atomic number with blanks filled, [119, 9] float64, units of the
    module's docstring; row 0 is 0.
    """
    import torch

    return torch.tensor(_filled())


def covalent_radii() -> Tensor:
    """Single-bond covalent radii in Å by atomic number, [119] float64; entry 0 is 0."""
    return element_properties()[:, PROPERTIES.index("covalent_radius")]


def atomic_radii() -> Tensor:
    """Slater's empirical atomic radii in Å by atomic number, [119] float64; entry 0 is 0.

    What he does not list (noble gases, At, Fr, and elements beyond Am) has its covalent radius.
    """
    radii = covalent_radii()
    for first, rising in SLATER_RADII.items():
        for z, radius in enumerate(rising, first):
            radii[z] = radius / 100.0
    return radii


def covalent_radii_array() -> np.ndarray:
    """`covalent_radii` as a NumPy array, for code that does without torch."""
    return _filled()[:, PROPERTIES.index("covalent_radius")].copy()
