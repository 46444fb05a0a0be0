"""The arrays of a packed store and of a batch, declared once: which have a row per atom, which one
per structure.

Whoever cuts, joins, masks or copies a batch asks here, so that a new array is never left out in
silence: one that is not declared is an error.
"""

from __future__ import annotations

from typing import Any

import numpy as np

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


SINGLE = float(np.finfo(np.float32).max)  # the largest number of single precision
WHOLE_WITHIN = 1e-3  # e; a total charge that was summed from partial ones is whole only so nearly


def cast(name: str, value: Any, dtype: Any, ptr: np.ndarray | None = None) -> np.ndarray:
    """``value`` as an array of ``dtype`` that means the same; an array of that type is returned as
    it is.

    Real numbers become whole ones only where they are whole (total charges to a thousandth), and
    none may be too large for the type; NaN and infinity stay in arrays of real numbers. Raises
    DataError naming the field, the row and, of rows per atom, with ``ptr`` the structure.
    """
    dtype = np.dtype(dtype)
    try:
        array = value if isinstance(value, np.ndarray) else np.asarray(value)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"{name}: its rows have different lengths or are no numbers") from None
    if array.dtype == dtype:
        return array
    if not array.size:
        return array.astype(dtype)
    kinds = "bui" if dtype.kind == "b" else "uif"
    if array.dtype.kind not in kinds and not (dtype.kind == "b" and array.dtype.kind == "f"):
        first = array.reshape(-1)[0]
        first = first.item() if hasattr(first, "item") else first
        wanted = "true or false" if dtype.kind == "b" else "a number"
        if dtype.kind in "iu":
            wanted = "a whole number"
        raise DataError(
            f"{name}{_place(name, 0, ptr)} is {_short(first)} ({array.dtype}), not {wanted}"
        )
    if dtype.kind == "b":
        return _only(name, array, (array == 0) | (array == 1), "true or false", ptr).astype(bool)
    if dtype.kind == "f":
        if array.dtype.itemsize <= dtype.itemsize or array.dtype.kind != "f":
            return array.astype(dtype)
        top = np.finfo(dtype).max
        fits = ~(np.isfinite(array) & (np.abs(array) > top))
        _only(name, array, fits, f"within ±{top:.2g}, as {dtype} holds", ptr)
        return array.astype(dtype)
    if array.dtype.kind == "f":
        whole = np.round(array)
        near = WHOLE_WITHIN if name == "charge" else 0.0
        with np.errstate(invalid="ignore"):
            good = np.abs(array - whole) <= near  # False for NaN and infinity
        _only(name, array, good, "a whole number", ptr)
        array = whole
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    _only(name, array, (array >= low) & (array <= high), f"in {low}…{high}", ptr)
    return array.astype(dtype)


def _only(
    name: str, array: np.ndarray, good: np.ndarray, wanted: str, ptr: np.ndarray | None
) -> np.ndarray:
    """``array`` where all of it is ``good``; else DataError with the first that is not."""
    if good.all():
        return array
    at = np.unravel_index(int(np.argmin(good)), array.shape)
    row = int(at[0]) if at else 0
    raise DataError(f"{name}{_place(name, row, ptr)} is {_short(array[at].item())}, not {wanted}")


def _place(name: str, row: int, ptr: np.ndarray | None) -> str:
    if name in PER_STRUCTURE:
        return f" of structure {row}"
    if name in PER_ATOM and ptr is not None and row < ptr[-1]:
        owner = int(np.searchsorted(ptr, row, "right")) - 1
        return f" of structure {owner}, atom {row - int(ptr[owner])},"
    return f" in row {row}"


def _short(value: Any) -> str:
    """``value`` in at most 40 characters of one line."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 40 else f"{text[:37]}…"
