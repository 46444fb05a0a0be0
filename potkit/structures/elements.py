"""Chemical elements: their symbols by atomic number, and formulas."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..errors import DataError

if TYPE_CHECKING:
    from .store import Structures

SYMBOLS = (
    "X H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As "
    "Se Br Kr Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd "
    "Tb Dy Ho Er Tm Yb Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U Np Pu Am "
    "Cm Bk Cf Es Fm Md No Lr Rf Db Sg Bh Hs Mt Ds Rg Cn Nh Fl Mc Lv Ts Og"
).split()
MAX_Z = len(SYMBOLS) - 1  # 118


def atomic_number(element: int | str) -> int:
    """The atomic number of a symbol; a number is returned as it is. Raises DataError."""
    if not isinstance(element, str):
        return element
    if element not in SYMBOLS[1:]:
        raise DataError(f"unknown element {element!r}")
    return SYMBOLS.index(element)


def formula(z: np.ndarray) -> str:
    """Hill formula of atomic numbers, such as C2H6O: carbon, hydrogen, then by the alphabet."""
    counts = np.bincount(np.asarray(z, np.int64), minlength=MAX_Z + 1)
    present = np.flatnonzero(counts).tolist()

    def hill(number: int) -> tuple[int, str]:
        first = (6, 1) if counts[6] else ()  # carbon and hydrogen lead only if there is carbon
        return first.index(number) if number in first else len(first), SYMBOLS[number]

    def term(number: int) -> str:
        return SYMBOLS[number] + (str(counts[number]) if counts[number] > 1 else "")

    return "".join(term(number) for number in sorted(present, key=hill))


def composition(structures: Structures, elements: list[int] | None = None) -> np.ndarray:
    """How many atoms of each element, [S, len(elements)] int64; default: the elements there are."""
    elements = structures.elements if elements is None else elements
    column = np.full(MAX_Z + 1, -1)
    column[elements] = np.arange(len(elements))
    owner = np.repeat(np.arange(len(structures)), structures.n_atoms)
    at = column[structures.z]
    counted = at >= 0
    shape = (len(structures), len(elements))
    places = owner[counted] * len(elements) + at[counted]
    return np.bincount(places, minlength=shape[0] * shape[1]).reshape(shape)
