"""Nine properties of every element, from hydrogen to oganesson: the node input of ForceNet.

The table `elements.csv` was written with mendeleev 1.3.0 (a database of published values) and
holds, in this order,
    group, period, block (s p d f), valence electrons (outside the noble-gas core and filled inner d
    and f shells), electronegativity (Pauling), covalent radius (Å, single bonds, Pyykkö and Atsumi
    2009), first ionisation energy (eV, NIST), electron affinity (eV), static dipole polarizability
    (bohr³, Schwerdtfeger and Nagle 2018).
These are the properties of CGCNN and ForceNet but for the last, which replaces "atomic volume": the
molar volume of the element at room temperature says nothing about an atom of a gas, the
polarizability is the volume of the free atom.

A blank in the table is a value that does not exist or was never measured. `element_properties`
fills blanks by rule, so that no element reaches a network as NaN: f elements stand in group 3; an
electron affinity that is missing is 0 (no bound anion);
anything else is taken from the nearest element of the same group and block that has it (nearest
period, then nearest number).
"""

from __future__ import annotations

import csv
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .store import MAX_Z

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


@lru_cache(maxsize=1)
def _table() -> tuple[tuple[float | None, ...], ...]:
    """118 rows of the nine properties as they stand in the file; None where it is blank."""
    with (Path(__file__).parent / "elements.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    if [int(r["number"]) for r in rows] != list(range(1, MAX_Z + 1)):
        raise RuntimeError(
            f"elements.csv must list the elements 1 to {MAX_Z} in order"
        )  # a broken installation

    def number(row: dict[str, str], name: str) -> float | None:
        if name == "block":
            return float(BLOCKS.index(row[name]))
        return float(row[name]) if row[name] else None

    return tuple(tuple(number(r, name) for name in PROPERTIES) for r in rows)


def is_tabulated() -> Tensor:
    """True where the file has a value, [119, 9] bool; row 0 (no element) is False."""
    known = [[v is not None for v in row] for row in _table()]
    return torch.tensor([[False] * len(PROPERTIES)] + known)


def element_properties() -> Tensor:
    """The nine `PROPERTIES` by atomic number with blanks filled, [119, 9] float64, units of the
    module's docstring; row 0 is 0.
    """
    rows = [list(row) for row in _table()]
    group, period, block = (PROPERTIES.index(n) for n in ("group", "period", "block"))
    for row in rows:
        if row[group] is None:
            row[group] = 3.0
        affinity = PROPERTIES.index("electron_affinity")
        row[affinity] = row[affinity] or 0.0
    filled = [list(row) for row in rows]
    for i, row in enumerate(rows):
        relatives = [
            k
            for k, other in enumerate(rows)
            if other[group] == row[group] and other[block] == row[block]
        ]
        if (
            row[period] == 1 and row[group] == 18
        ):  # helium is an s element; its relatives are the other noble gases
            relatives = [k for k, other in enumerate(rows) if other[group] == 18]
        for column, value in enumerate(row):
            if value is None:
                known = [k for k in relatives if rows[k][column] is not None]
                nearest = min(known, key=lambda k: (abs(rows[k][period] - row[period]), abs(k - i)))
                filled[i][column] = rows[nearest][column]
    return torch.tensor([[0.0] * len(PROPERTIES)] + filled, dtype=torch.float64)


def covalent_radii() -> Tensor:
    """Single-bond covalent radii in Å by atomic number, [119] float64; entry 0 is 0."""
    return element_properties()[:, PROPERTIES.index("covalent_radius")]
