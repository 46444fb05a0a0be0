"""Units. Inside potkit lengths are Å, energies eV, forces eV/Å; this is the only file with
conversion factors.

Multiply by a factor to come in, divide to go out: ``energy_eV = energy_hartree * HARTREE``. Convert
in float64, before any cast.
Source: CODATA 2022 recommended values (NIST); the calorie is the thermochemical one (4.184 J
exactly).
"""

from __future__ import annotations

from .errors import DataError

HARTREE = 27.211386245981  # eV
BOHR = 0.529177210544  # Å
AVOGADRO = 6.02214076e23  # 1/mol, exact
ELEMENTARY_CHARGE = 1.602176634e-19  # C, exact; so 1 eV in J
BOLTZMANN = 1.380649e-23 / ELEMENTARY_CHARGE  # eV/K
KJ_MOL = 1000.0 / (AVOGADRO * ELEMENTARY_CHARGE)  # eV
KCAL_MOL = 4.184 * KJ_MOL  # eV
NM = 10.0  # Å
AMU = 1.66053906892e-27 / ELEMENTARY_CHARGE * 1e10  # eV fs²/Å² (kg -> eV s²/m² -> eV fs²/Å²)
MEV = 1e-3  # eV

ENERGY = {
    "ev": 1.0,
    "mev": MEV,
    "hartree": HARTREE,
    "ha": HARTREE,
    "kcal/mol": KCAL_MOL,
    "kj/mol": KJ_MOL,
    "rydberg": HARTREE / 2,
}
LENGTH = {
    "angstrom": 1.0,
    "angstroms": 1.0,
    "å": 1.0,
    "ang": 1.0,
    "bohr": BOHR,
    "nm": NM,
    "nanometer": NM,
    "nanometers": NM,
}


KINDS = {  # what a unit may be asked to be -> how one is written
    "energy": "an energy, such as eV or kcal/mol",
    "length": "a length, such as angstrom or bohr",
    "forces": "an energy over a length, such as eV/angstrom or hartree/bohr",
}


def factor(unit: str, kind: str | None = None) -> float:
    """The factor that turns a value in ``unit`` into eV, Å or eV/Å.

    ``unit`` is an energy ("kcal/mol"), a length ("bohr") or energy/length ("hartree/bohr",
    "kcal/mol/Å"). ``kind``: what it must be, of KINDS. Raises DataError for a unit that is not
    known, or is of another kind.
    """
    found, value = _read(unit)
    if kind is not None and found != kind:
        raise DataError(f"{unit!r} is no unit of {kind}: that is {KINDS[kind]}")
    return value


def _read(unit: str) -> tuple[str, float]:
    """Of which kind ``unit`` is, and its factor. Raises DataError."""
    name = unit.strip().lower()
    if name in ENERGY:
        return "energy", ENERGY[name]
    if name in LENGTH:
        return "length", LENGTH[name]
    head, _, tail = name.rpartition("/")
    if head in ENERGY and tail in LENGTH:
        return "forces", ENERGY[head] / LENGTH[tail]
    raise DataError(
        f"unknown unit {unit!r}: energies are {sorted(ENERGY)}, lengths {sorted(LENGTH)}, forces "
        "energy/length"
    )
