"""How files call energies and forces, and which energy belongs to which forces.

A name is a word for the label, alone or with the name of a method before or behind it:
``REF_energy``, ``dft_force``, ``forces_REF``, ``energy_xtb``, ``TotEnergy``; upper and lower case
do not matter. What stands beside the word is the *family*. Energy and forces are taken from one
family: energies of one method beside forces of another would be a fault nobody sees.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from ...errors import DataError

ENERGY_WORDS = (
    "energy",
    "total_energy",
    "tot_energy",
    "totenergy",
    "totalenergy",
    "potential_energy",
    "potentialenergy",
    "free_energy",
    "freeenergy",
    "energies",
    "etot",
    "toten",
)
FORCES_WORDS = ("forces", "force", "atomic_forces")
# beside the word, these make another quantity of it
OTHER_QUANTITIES = set(
    "weight weights config std var variance error err mae rmse uncertainty unit units atom atoms "
    "per kinetic kin interaction formation binding cohesive atomization adsorption reaction hull "
    "above correction dispersion disp vdw zpe zero shift mean max min norm rms fmax constant "
    "relative delta local node descriptor".split()
)
# of several whole families these go first, in this order; predictions go last
FIRST = ("", "ref", "dft")
PREDICTIONS = {"mace", "pred", "predicted", "ml", "nn", "nnp", "gap", "nequip", "model"}


class Chosen(NamedTuple):
    """The names that are read; None where there is none."""

    energy: str | None
    forces: str | None


def family(key: str, words: Iterable[str]) -> str | None:
    """What stands beside one of ``words`` in ``key``, "" if nothing does; None if ``key`` is not
    such a label.
    """
    name = re.sub(r"[-. ]+", "_", key.strip().lower())
    for word in sorted(words, key=len, reverse=True):
        if name == word:
            return ""
        rest = None
        if name.startswith(word + "_"):
            rest = name[len(word) + 1 :]
        elif name.endswith("_" + word):
            rest = name[: -len(word) - 1]
        if rest is not None:
            return None if OTHER_QUANTITIES & set(rest.split("_")) else rest
    return None


def families(keys: Iterable[str], words: Iterable[str]) -> dict[str, str]:
    """Family -> its key, for all of ``keys`` that are such a label; "energy" goes before
    "free_energy".
    """
    order = list(words)
    found: dict[str, tuple[int, str]] = {}
    for key in keys:
        if (name := family(key, order)) is None:
            continue
        bare = re.sub(r"[-. ]+", "_", key.strip().lower())
        rank = order.index(bare) if bare in order else 0
        if name not in found or rank < found[name][0]:
            found[name] = (rank, key)
    return {name: key for name, (_, key) in found.items()}


def choose(
    energy_keys: Iterable[str],
    forces_keys: Iterable[str],
    where: str,
    energy_key: str | None = None,
    forces_key: str | None = None,
) -> Chosen:
    """Which of the keys of a structure are its energy and its forces.

    ``energy_key`` and ``forces_key`` force one, and the other is looked for in the same family.
    Raises DataError where several methods would do, or the energy's is not that of the forces.
    """
    if "none" in (energy_key, forces_key):
        return choose(
            () if energy_key == "none" else energy_keys,
            () if forces_key == "none" else forces_keys,
            where,
            None if energy_key == "none" else energy_key,
            None if forces_key == "none" else forces_key,
        )
    energies = families(energy_keys, ENERGY_WORDS)
    forces = families(forces_keys, FORCES_WORDS)
    if energy_key is not None and forces_key is not None:
        return Chosen(energy_key, forces_key)
    if energy_key is not None:
        own = family(energy_key, ENERGY_WORDS)
        return Chosen(energy_key, _partner(energy_key, own, energies, forces, where, "forces"))
    if forces_key is not None:
        own = family(forces_key, FORCES_WORDS)
        return Chosen(_partner(forces_key, own, forces, energies, where, "energy"), forces_key)
    whole = [name for name in energies if name in forces]
    if whole:
        name = _first(whole, energies, where)
        return Chosen(energies[name], forces[name])
    if not forces:
        name = _first(list(energies), energies, where) if energies else None
        return Chosen(energies.get(name), None)
    if not energies:
        return Chosen(None, forces[_first(list(forces), forces, where)])
    # an energy without a method's name goes with the only forces there are, and the reverse
    if len(forces) == len(energies) == 1 and "" in (*forces, *energies):
        return Chosen(*energies.values(), *forces.values())
    raise DataError(
        f"{where}: the energies ({', '.join(energies.values())}) and the forces "
        f"({', '.join(forces.values())}) are not of one method by their names; give energy_key= "
        "and forces_key= (--energy-key, --forces-key)"
    )


def _first(names: list[str], keys: dict[str, str], where: str) -> str:
    """The family to read, of several."""
    for name in FIRST:
        if name in names:
            return name
    references = [name for name in names if not PREDICTIONS & set(name.split("_"))] or names
    if len(references) == 1:
        return references[0]
    raise DataError(
        f"{where}: labels of several methods ({', '.join(keys[name] for name in references)}); "
        "give energy_key= and forces_key= (--energy-key, --forces-key) of the one to read"
    )


def _partner(
    given: str,
    own: str | None,
    same: dict[str, str],
    other: dict[str, str],
    where: str,
    what: str,
) -> str | None:
    """The key of the other label that belongs to the one that was ``given``, of family ``own``."""
    if own is not None and own in other:
        return other[own]
    # of no family of its own: the only other label there is, unless that has a partner already
    free = [name for name in other if name not in same]
    if not other:
        return None
    if len(free) == 1 and len(other) == 1 and (own in (None, "") or free == [""]):
        return other[free[0]]
    if own is None and len(other) == 1 and not same:
        return next(iter(other.values()))
    keys = ", ".join(other.values())
    option = {"energy": "energy_key", "forces": "forces_key"}[what]
    raise DataError(
        f"{where}: which {what} goes with {given!r}? there is {keys}; give "
        f"{option}= (--{option.replace('_', '-')}), which may be 'none'"
    )
