"""The faults of the two papers' published codes, one name each, and what each of them does.

Networks here have none of them. Each can be switched on alone, to measure its effect, or all that a
paper's code has of a network together:

    potkit.build("egnn", "denoise-paper", faults=("pooled", "detached-norm"))
    potkit.build("egnn", "denoise-paper", faithful=True)       # the same as faults=of("egnn", …)

With all of them a preset computes what the published code computes, for the same weights (tests
compare it with `published_codes`). ``neighbours-32`` has one name for all networks, though each
code stops at a number of its own: SchNet, ET and SE(3)-Transformer ask for 32, EGNN for 33. What
the numbers count is said in each network's docstring.

A network takes ``faults`` in its constructor, holds them against this table by `check`, and keeps
them as its attribute of that name. "pooled" and "average-pooling" are matters of the energy
read-out: `models.build` hands them on to it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from ..errors import ConfigError

DENOISE, MASKED = "denoise-paper", "masked-paper"


@dataclass(frozen=True)
class Fault:
    """A fault of a published code.

    ``networks`` says which presets have it: {network: presets}. ``source`` is the published code's
    file and line. ``shown_by`` is the test that shows its effect, FILE::NAME below tests/.
    ``breaks`` are the checks of `potkit.testing` that a network need not pass any more.
    """

    name: str
    does: str
    networks: Mapping[str, tuple[str, ...]]
    source: str
    shown_by: str
    breaks: tuple[str, ...] = ()


_TABLE = (
    Fault(
        "pooled",
        "Features are summed over the atoms of a structure before the energy MLP, so the energy of "
        "two molecules far apart is not the sum of theirs.",
        {"egnn": (DENOISE,), "torchmd_et": (DENOISE,), "forcenet": (MASKED,)},
        "denoise paper's code, models/egnn.py and its ET, forward; masked paper's code, "
        "models/forcenet.py:517-528 (its MLP is one linear layer, so only its constant shows it)",
        "models/test_faults.py::test_pooled",
        breaks=("extensivity", "supercell"),
    ),
    Fault(
        "average-pooling",
        "Features are averaged over the atoms of a structure before the energy MLP (the paper says "
        "summed), so the energy does not grow with the system.",
        {"se3_transformer": (DENOISE,)},
        "denoise paper's code, configuration of the SE(3)-Transformer (pooling: avg)",
        "models/test_se3_transformer.py::test_average_pooling",
        breaks=("extensivity", "supercell"),
    ),
    Fault(
        "no-envelope",
        "Messages do not vanish at the cutoff, so the energy jumps when a neighbour crosses it.",
        {
            "egnn": (DENOISE, MASKED),
            "torchmd_et": (DENOISE,),
            "se3_transformer": (DENOISE,),
            "gns": (MASKED,),
        },
        "denoise paper's code, models/egnn.py:68-96; masked paper's code, models/egnn.py:90-122",
        "models/test_faults.py::test_no_envelope",
        breaks=("cutoff_continuity",),
    ),
    Fault(
        "neighbours-32",
        "The neighbour search stops after so many atoms in index order, without a word: in dense "
        "structures the energy depends on the order of atoms and jumps when one more comes near.",
        {
            "egnn": (DENOISE, MASKED),
            "schnet": (DENOISE,),
            "torchmd_et": (DENOISE,),
            "se3_transformer": (DENOISE,),
        },
        "denoise paper's code, models/egnn.py:159-165, models/se3transformer.py:132-141; SchNet "
        "and ET: the default max_num_neighbors=32 of radius_graph",
        "models/test_faults.py::test_neighbours",
        breaks=("cutoff_continuity", "permutation", "supercell"),
    ),
    Fault(
        "detached-norm",
        "The length that normalises differences of positions is a constant to autograd, so −∂E/∂x "
        "is not the derivative of the energy.",
        {"egnn": (DENOISE, MASKED)},
        "denoise paper's code, models/egnn.py:96; masked paper's code, models/egnn.py:103, 122",
        "models/test_faults.py::test_detached_norm",
        breaks=("finite_differences", "second_derivatives"),
    ),
    Fault(
        "mask-shift",
        "Where atoms of a structure are flagged, all others get a vector of their own added (row 0 "
        "of the mask embedding); fine-tuning has no flags, so its inputs are shifted.",
        {"egnn": (MASKED,), "gns": (MASKED,), "forcenet": (MASKED,)},
        "masked paper's code, models/egnn.py:218-223",
        "models/test_faults.py::test_mask_shift",
    ),
    Fault(
        "edges-doubled",
        "Edges are doubled at every step instead of updated by their network.",
        {"gns": (MASKED,)},
        "masked paper's code, models/GNS.py:175-178, 203-224",
        "models/test_gns.py::test_edges_doubled",
    ),
    Fault(
        "wrapped-positions",
        "Positions in Å, wrapped into the box, are inputs of the nodes: shifting a structure "
        "changes its energy.",
        {"gns": (MASKED,)},
        "masked paper's code, learned_simulator.py:168-171",
        "models/test_gns.py::test_wrapped_positions",
        breaks=("translation", "periodic_image", "supercell", "extensivity"),
    ),
    Fault(
        "no-basis-gradient",
        "Spherical harmonics are computed without gradients, so −∂E/∂x lacks all angular terms.",
        {"se3_transformer": (DENOISE,), "forcenet": (MASKED,)},
        "denoise paper's code, models/se3transformer.py:162, modules.py:88",
        "models/test_se3_transformer.py::test_no_basis_gradient",
        breaks=("finite_differences", "second_derivatives"),
    ),
    Fault(
        "bare-norm",
        "Features are divided by their norm, however small it is, so the energy jumps where they "
        "pass zero, as for an atom in the middle between two like ones.",
        {"se3_transformer": (DENOISE,)},
        "denoise paper's code, GNormSE3",
        "models/test_se3_transformer.py::test_bare_norm",
        breaks=("second_derivatives",),
    ),
    Fault(
        "logits-by-all-heads",
        "Attention logits of one head are divided by the square root of the components of all "
        "heads together, so attention is flatter than meant.",
        {"se3_transformer": (DENOISE,)},
        "denoise paper's code, modules.py:728",
        "models/test_se3_transformer.py::test_logits_by_all_heads",
    ),
    Fault(
        "edges-twice",
        "Both directions are added to edges that run both ways, so each counts twice.",
        {"se3_transformer": (DENOISE,)},
        "denoise paper's code, models/se3transformer.py:132-141",
        "models/test_se3_transformer.py::test_edges_twice",
    ),
    Fault(
        "all-oxygen",
        "Every atom is mapped to oxygen, in properties and radius: the network cannot tell "
        "elements apart.",
        {"forcenet": (MASKED,)},
        "masked paper's code, models/forcenet.py (types 10 and 21 taken for its own numbering)",
        "models/test_forcenet.py::test_all_oxygen",
    ),
)
FAULTS: dict[str, Fault] = {fault.name: fault for fault in _TABLE}

# what faithful=True meant before faults had names: recipes stored then are built as they were
_FORMERLY = {
    "schnet": ("neighbours-32",),
    "egnn": ("no-envelope",),
    "torchmd_et": ("no-envelope", "neighbours-32"),
}


def of(network: str, preset: str | None = None) -> tuple[str, ...]:
    """The faults of the published code of a network at ``preset``, or at any without ``preset``.

    A preset that no paper has ("small") counts as the first paper's that has the network. A network
    that neither paper published has none.
    """
    having = {f.name: f.networks[network] for f in FAULTS.values() if network in f.networks}
    if preset is None:
        return tuple(having)
    published = [p for p in (DENOISE, MASKED) if any(p in presets for presets in having.values())]
    if preset not in published:
        preset = published[0] if published else preset
    return tuple(name for name, presets in having.items() if preset in presets)


def check(network: str, faults: str | Collection[str]) -> tuple[str, ...]:
    """``faults``, a name or several, in the table's order.

    Raises ConfigError for one that is unknown or that the network's published code does not have.
    """
    if not isinstance(faults, (str, list, tuple, set, frozenset)):
        raise ConfigError(f"faults of {network} must be a list of names, got {faults!r}")
    given, known = [faults] if isinstance(faults, str) else list(faults), of(network)
    wrong = [name for name in given if name not in known]
    if wrong:
        has = ", ".join(known) if known else "none: neither paper published it"
        raise ConfigError(f"{network} has no published fault {wrong[0]!r}; it has {has}")
    return tuple(name for name in known if name in given)


def formerly(network: str, preset: str) -> tuple[str, ...]:
    """What ``faithful=True`` meant in a recipe stored before faults had names (but for "pooled",
    which such a recipe says itself); where that is not known, what it means now.
    """
    return _FORMERLY.get(network, of(network, preset))


def pooling(faults: Iterable[str]) -> bool | str:
    """The read-out option ``pooled`` that ``faults`` ask for."""
    if "average-pooling" in faults:
        return "mean"
    return "pooled" in faults


def broken(faults: Iterable[str]) -> frozenset[str]:
    """The checks of `potkit.testing` that a network with ``faults`` need not pass."""
    return frozenset(check for name in faults for check in FAULTS[name].breaks)
