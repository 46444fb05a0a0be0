"""A health report for a set of structures: does it hold what it says, in the units it says?"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import DataError
from ..structures.elements import SYMBOLS
from ..structures.geometry import minimum_image
from ..structures.store import Structures
from . import label_checks
from .duplicates import pairs
from .formats.common import energy_unit_from_size
from .splits import by_system

OVERLAP = 0.1  # Å
PAIR_BUDGET = 60_000_000  # interatomic distances looked at before sampling
SAMPLED = 200_000  # structures the duplicate search looks at


def shortest_distances(structures: Structures, rows: np.ndarray | None = None) -> np.ndarray:
    """The shortest distance in each structure (minimum image where periodic), [len(rows)] Å; inf
    for a single atom.
    """
    rows = np.arange(len(structures)) if rows is None else np.asarray(rows)
    sizes = structures.n_atoms[rows]
    out = np.full(len(rows), np.inf)
    periodic = structures.pbc[rows].any(1)
    for n in np.unique(sizes[~periodic]):
        if n < 2:
            continue
        first, second = np.triu_indices(n, 1)
        of_size = np.flatnonzero((sizes == n) & ~periodic)
        for chunk in np.array_split(of_size, len(of_size) * len(first) // 2_000_000 + 1):
            atoms = structures.ptr[rows[chunk]][:, None] + np.arange(n)
            pos = structures.pos[atoms.reshape(-1)].reshape(-1, n, 3).astype(np.float64)
            if len(chunk):
                out[chunk] = np.sqrt(np.square(pos[:, first] - pos[:, second]).sum(-1).min(1))
    for k in np.flatnonzero(periodic):
        i = rows[k]
        pos = np.asarray(structures.pos[structures.ptr[i] : structures.ptr[i + 1]], np.float64)
        first, second = np.triu_indices(len(pos), 1)
        if not len(first):
            continue
        step = minimum_image(pos[first] - pos[second], structures.cell[i], structures.pbc[i])
        out[k] = np.sqrt(np.square(step).sum(1).min())
    return out


def box_widths(structures: Structures) -> np.ndarray:
    """The smallest distance between opposite faces of each periodic box, along its periodic
    vectors, [S] Å; inf without a box.
    """
    out = np.full(len(structures), np.inf)
    if structures.cell is None:
        return out
    for i in np.flatnonzero(structures.pbc.any(1)):
        pbc = structures.pbc[i]
        # 1 / |columns of the inverse| are the heights; of slabs and wires within the plane or line
        # of the periodic vectors
        out[i] = 1.0 / np.linalg.norm(np.linalg.pinv(structures.cell[i][pbc]), axis=0).max()
    return out


def require_wide_boxes(structures: Structures, cutoff: float, where: str | None = None) -> None:
    """Raise DataError that names the first structure whose periodic box is narrower than twice
    ``cutoff`` (Å).

    potkit's neighbour lists count every image, so such a box is no error here; codes of the minimum
    image convention miss neighbours, and an atom that meets its own image is not what a liquid is.
    """
    widths = box_widths(structures)
    narrow = np.flatnonzero(widths < 2 * cutoff * (1 - 1e-9))  # a box of just that width will do
    if len(narrow):
        first = int(narrow[0])
        name = where or structures.info.get("name", "structures")
        raise DataError(
            f"{name}: structure {first}: its periodic box is {widths[first]:.2f} Å wide, less than "
            f"twice the cutoff of {cutoff:g} Å ({len(narrow)} of {len(structures)} structures): "
            "an atom has more than one image of another as neighbour"
        )


def force_slope(
    structures: Structures, seed: int = 0, per_system: int = 300
) -> tuple[float, float, int]:
    """How energies change along the forces: slope of ΔE over −F̄·Δx, correlation, and the number of
    pairs it comes from.

    1 where forces are −dE/dx in the units of the energies; −1 where they are gradients; 1.889 where
    Bohr was taken for Å. Pairs are neighbours in a system (no atom moved by more than 0.25 Å) with
    the same order of atoms; (nan, nan, n) if fewer than 20 exist.
    """
    x, y, _ = label_checks.neighbour_pairs(structures, seed, per_system)
    if len(x) < label_checks.FEWEST_PAIRS or x.std() == 0 or y.std() == 0:
        return np.nan, np.nan, len(x)
    return float((x * y).sum() / (x * x).sum()), float(np.corrcoef(x, y)[0, 1]), len(x)


def check(structures: Structures, duplicates: bool = True, cutoff: float | None = None):
    """A DataFrame with a row per question: check, value, unit, verdict ("ok", "look", "bad") and
    where to look.

    Counts, values that are not finite, overlapping atoms and bond lengths, widths of periodic boxes
    (at least twice ``cutoff``, Å?), energy per atom, force scale, net force, sign and units of the
    labels (see `label_checks`), outliers and duplicates. Nothing is raised: what is wrong is in the
    table (``frame.attrs["healthy"]``).
    """
    import pandas as pd

    rows: list[dict[str, Any]] = []

    def add(what: str, value: Any, unit: str = "", verdict: str = "ok", where: str = "") -> None:
        row = {"check": what, "value": value, "unit": unit, "verdict": verdict, "where": where}
        rows.append(row)

    s = structures
    sizes = s.n_atoms
    add("structures", len(s))
    add("systems", len(np.unique(s.system)))
    add("elements", " ".join(SYMBOLS[z] for z in s.elements))
    span = f"{sizes.min()}–{sizes.max()}" if len(s) else "0"
    add("atoms per structure", span, verdict="ok" if len(s) and sizes.min() else "bad")
    finite = np.ones(len(s), bool)
    for name in ("pos", "energy", "forces", "cell"):
        array = getattr(s, name)
        if array is None:
            verdict = {"pos": "bad", "cell": "ok"}.get(name, "look")
            add(f"{name} present", "no", verdict=verdict)
            continue
        good = np.isfinite(np.asarray(array).reshape(len(array), -1)).all(1)
        if name in ("pos", "forces"):
            owner = np.searchsorted(s.ptr, np.flatnonzero(~good), "right") - 1
            good = np.ones(len(s), bool)
            good[owner] = False
        if name in s.partly_labelled:
            unlabelled = ~s.labelled(name)
            add(f"without {name}", int(unlabelled.sum()), "structures", "look", _rows(unlabelled))
            good |= unlabelled
        finite &= good
        add(
            f"{name} not finite",
            int((~good).sum()),
            "structures",
            "ok" if good.all() else "bad",
            _rows(~good),
        )
    if s.cell is not None and s.pbc.any():
        flat = _without_volume(s)
        where = _rows(flat) + (": periodic vectors are zero or dependent" if flat.any() else "")
        add(
            "cells without volume",
            int(flat.sum()),
            "structures",
            "bad" if flat.any() else "ok",
            where,
        )
        finite &= ~flat
    s = s if finite.all() else s[finite]
    original = np.flatnonzero(finite)
    if not len(s):
        return _report(pd.DataFrame(rows))
    _distances(s, original, add)
    if s.cell is not None and s.pbc.any():
        _boxes(s, original, add, cutoff)
    for label, look in (("energy", _energies), ("forces", _forces)):
        have = s.labelled(label)
        if have.any():
            look(s if have.all() else s[have], original[have], add)
    if s.labelled("forces").any():
        _sign_and_units(s, add)
    if duplicates:
        n = min(len(s), SAMPLED)
        drawn = np.sort(np.random.default_rng(0).permutation(len(s))[:n])
        twice = pairs(s[drawn], limit=200_000)
        note = "" if n == len(s) else f"of {n} structures drawn; "
        examples = ", ".join(f"{i}={j}" for i, j in original[drawn[twice[:3]]])
        verdict = "look" if len(twice) else "ok"
        add("duplicate pairs", len(twice), "pairs", verdict, note + examples)
    return _report(pd.DataFrame(rows))


def _without_volume(s: Structures) -> np.ndarray:
    """[S] bool: structures whose periodic vectors span nothing; the others of a slab or wire may be
    anything.
    """
    out = np.zeros(len(s), bool)
    for i in np.flatnonzero(s.pbc.any(1) & np.isfinite(s.cell).all((1, 2))):
        vectors = s.cell[i][s.pbc[i]]
        out[i] = np.linalg.det(vectors @ vectors.T) < 1e-12
    return out


def _report(frame):
    frame.attrs["healthy"] = not (frame["verdict"] == "bad").any()
    return frame


def _rows(mask: np.ndarray) -> str:
    """The first rows where ``mask`` holds, as text."""
    rows = np.flatnonzero(mask)
    if not len(rows):
        return ""
    return "structures " + ", ".join(map(str, rows[:3])) + (" …" if len(rows) > 3 else "")


def _distances(s: Structures, original: np.ndarray, add) -> None:
    cost = np.cumsum(s.n_atoms.astype(np.int64) ** 2 // 2)
    rows = np.arange(len(s))
    if cost[-1] > PAIR_BUDGET:
        affordable = max(1, int(len(s) * PAIR_BUDGET / cost[-1]))
        rows = np.unique(np.linspace(0, len(s) - 1, affordable).astype(np.int64))
    shortest = shortest_distances(s, rows)
    many = np.isfinite(shortest)
    if not many.any():
        return
    note = "" if len(rows) == len(s) else f" of {len(rows)} structures drawn"
    least = int(np.argmin(shortest))
    verdict = "ok"
    if shortest[least] < 0.5:
        verdict = "bad" if shortest[least] < OVERLAP else "look"
    add(
        "shortest distance",
        round(float(shortest[least]), 4),
        "Å",
        verdict,
        f"structure {original[rows[least]]}{note}",
    )
    close = shortest < OVERLAP
    add(
        "overlapping atoms (< 0.1 Å)",
        int(close.sum()),
        "structures",
        "bad" if close.any() else "ok",
        _rows(close),
    )
    typical = float(np.median(shortest[many]))
    with_hydrogen = 1 in s.elements and len(s.elements) > 1
    low, high = (0.65, 1.35) if with_hydrogen else (0.6, 4.0)
    if low < typical < high:
        add("typical shortest distance", round(typical, 4), "Å")
    else:
        doubt = f"expected {low}–{high} Å: is the length unit right?"
        add("typical shortest distance", round(typical, 4), "Å", "look", doubt)


def _boxes(s: Structures, original: np.ndarray, add, cutoff: float | None) -> None:
    widths = box_widths(s)
    least = int(np.argmin(widths))
    add(
        "narrowest periodic box",
        round(float(widths[least]), 3),
        "Å",
        "ok" if widths[least] > 2 * OVERLAP else "bad",
        f"structure {original[least]}",
    )
    if cutoff is not None:
        narrow = widths < 2 * cutoff * (1 - 1e-9)
        add(
            f"boxes narrower than 2 × {cutoff:g} Å",
            int(narrow.sum()),
            "structures",
            "look" if narrow.any() else "ok",
            _rows(np.isin(np.arange(original[-1] + 1), original[narrow])),
        )


def _energies(s: Structures, original: np.ndarray, add) -> None:
    per_atom = s.energy / s.n_atoms
    add(
        "energy per atom",
        f"{per_atom.min():.3f} … {np.median(per_atom):.3f} … {per_atom.max():.3f}",
        "eV",
        "look" if per_atom.max() > 0 else "ok",
    )
    middle = int(np.argsort(per_atom)[len(s) // 2])
    unit = energy_unit_from_size(s.z[s.ptr[middle] : s.ptr[middle + 1]], float(s.energy[middle]))
    if unit not in (None, "ev"):
        doubt = "total energies of this size would be that unit, not eV"
        add("energy unit", unit, verdict="look", where=doubt)
    above = 0.0  # eV
    worst = 0
    outliers = np.zeros(len(s), bool)
    for _, rows in by_system(s):
        energy = s.energy[rows]
        if np.ptp(s.n_atoms[rows]):  # several sizes in one system: compare per atom
            energy = per_atom[rows] * s.n_atoms[rows].mean()
        spread = np.median(np.abs(energy - np.median(energy))) * 1.4826
        outliers[rows] = np.abs(energy - np.median(energy)) > 20 * max(spread, 1e-6)
        top = int(np.argmax(energy))
        if energy[top] - energy.min() > above:
            above = float(energy[top] - energy.min())
            worst = int(rows[top])
    add(
        "highest energy above its system's lowest",
        round(above, 3),
        "eV",
        "look" if above > 20 else "ok",
        f"structure {original[worst]}",
    )
    add(
        "energy outliers (> 20 robust σ)",
        int(outliers.sum()),
        "structures",
        "look" if outliers.any() else "ok",
        _rows(np.isin(np.arange(original[-1] + 1), original[outliers])),
    )


def _forces(s: Structures, original: np.ndarray, add) -> None:
    forces = np.asarray(s.forces, np.float64)
    norm = np.sqrt(np.square(forces).sum(1))
    rms = float(np.sqrt(np.mean(np.square(forces))))
    add("force rms (component)", round(rms, 4), "eV/Å", "ok" if 1e-3 < rms < 30 else "look")
    top = int(np.argmax(norm))
    owner = int(np.searchsorted(s.ptr, top, "right")) - 1
    add(
        "largest force",
        round(float(norm[top]), 3),
        "eV/Å",
        "look" if norm[top] > 100 else "ok",
        f"structure {original[owner]}, atom {top - int(s.ptr[owner])}",
    )
    net = np.abs(np.add.reduceat(forces, s.ptr[:-1], axis=0)).max(1) / np.sqrt(s.n_atoms)
    worst = int(np.argmax(net))
    add(
        "largest net force / √atoms",
        round(float(net[worst]), 5),
        "eV/Å",
        "look" if net[worst] > 0.05 * max(rms, 1e-9) else "ok",
        f"structure {original[worst]}",
    )


def _sign_and_units(s: Structures, add) -> None:
    """What energies and a cheap model say of the forces; see `label_checks`."""
    verdict = label_checks.judge(s)
    wrong = verdict.state == "wrong"
    for e in verdict.evidence:
        if np.isnan(e.value):
            add(e.question, "not to be told", where=e.detail)
            continue
        where = e.detail
        if np.isfinite(e.low):
            where = f"95 % interval {e.low:.3g} … {e.high:.3g}; {where}"
        where += "; 1 if right" if e.counts else "; too loose to tell"
        add(e.question, float(f"{e.value:.4g}"), "", "ok" if e.fits or not wrong else "bad", where)
    states = {"right": "ok", "wrong": "bad", "unclear": "look", "cannot be told": "look"}
    add("sign and units of the labels", verdict.state, "", states[verdict.state], verdict.says)
