"""The arrays of a packed store and of a batch, declared once: which have a row per atom, which one
per structure.

Whoever cuts, joins, masks or copies a batch asks here, so that a new array is never left out in
silence: one that is not declared is an error.
"""

from __future__ import annotations

from ..errors import DataError

# the packed store
PER_ATOM = ("z", "pos", "forces", "molecule", "formal_charge")
PER_STRUCTURE = ("energy", "cell", "pbc", "charge", "system", "stress")
ARRAYS = ("ptr", *PER_ATOM, *PER_STRUCTURE)
LABELS = ("energy", "forces", "stress")
# of these, what a set names where only some structures have it; a stress is just NaN there
MAIN_LABELS = ("energy", "forces")

FLAT = 1e-6  # Å³; a cell of no more volume than this is none, and a structure in it has no stress

# a batch: the arrays above, and what networks and objectives add
EDGES = ("edge_index", "edge_shift", "cutoff")
SIZES = ("ptr", "num_nodes", "max_atoms", "periodic")
_rows: dict[str, str] = {
    **dict.fromkeys(PER_ATOM, "atom"),
    **dict.fromkeys(PER_STRUCTURE, "structure"),
    "batch": "atom",  # [N] structure of each atom
    "mask": "atom",  # [N] 1 where an objective flagged the atom
    "target": "atom",  # [N, 3] what the vector read-out is to predict
    "has_target": "atom",  # [N] bool
    "noise_target": "atom",  # [N, 3] Å what a second read-out is to predict
    "noise_scale": "atom",  # [N] Å
    "stiffness": "atom",  # [N] trace of the precision of anisotropic noise
    "force_input": "atom",  # [N, 3] eV/Å, forces an objective shows the network
    "force_given": "atom",  # [N] bool
    "has_label": "structure",  # [S] bool
    # of partly labelled sets: which structures have the label; the others' rows are NaN
    "has_energy": "structure",  # [S] bool
    "has_forces": "structure",  # [S] bool
    "indices": "structure",  # [S] rows of the set the batch was cut from
    "origin": "structure",  # `Origin`: names for error messages
    **dict.fromkeys(EDGES, "edge"),
    **dict.fromkeys(SIZES, "size"),
}


def declare(name: str, per: str) -> None:
    """Declare an array of batches of one's own: its rows are ``per`` "atom" or "structure"."""
    if per not in ("atom", "structure"):
        raise DataError(f"rows of {name} must be per 'atom' or per 'structure', got {per!r}")
    if _rows.get(name, per) != per:
        raise DataError(f"{name} has a row per {_rows[name]} already")
    _rows[name] = per


def rows_per(name: str) -> str:
    """What the rows of a batch's array ``name`` belong to: "atom", "structure", "edge" or "size".

    Raises DataError for a name that was not declared.
    """
    if name not in _rows:
        raise DataError(
            f"{name} of the batch is not declared: potkit.structures.arrays.declare({name!r}, "
            "per='atom' or 'structure') says how it is cut and joined"
        )
    return _rows[name]
