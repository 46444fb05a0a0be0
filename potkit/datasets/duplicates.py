"""The same geometry twice: within a set, or in a training and a test set at once (leakage), or
nearly so.

Two structures count as the same when composition and all interatomic distances agree; order of the
atoms, place, orientation and handedness do not matter, but a periodic box that was turned is not
found. Candidates come from a few numbers per structure that such changes leave alone, computed in
one sweep over the packed arrays and looked up in a tree; candidates are then compared distance by
distance or, in periodic boxes, atom by atom.
"""

from __future__ import annotations

import numpy as np

from ..errors import ConfigError
from ..structures.elements import MAX_Z, composition
from ..structures.geometry import minimum_image
from ..structures.outputs import Kind, head
from ..structures.store import Structures

CHUNK = 50_000  # structures at once
# directions in which two elements weigh differently; irrational steps keep them from cancelling
_WEIGHTS = 1.0 + np.modf(np.arange(MAX_Z + 1) * np.sqrt(2.0))[0]  # [119]
FLAT = 1e-9  # Å³; a cell of less has no volume
_WAVES = np.array(
    [[1, 0, 0], [0, 1, 0], [0, 0, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1], [2, 1, 0], [1, 1, 1]], float
)


def invariants(structures: Structures) -> np.ndarray:
    """[S, 8] float64 (Å): numbers that order, place and (without cell) orientation of the atoms do
    not change.

    Without periodic boundaries: moments of the distances from the centre, plain and weighted by
    element. With them: structure factors of the eight longest waves, which wrapping and translation
    leave alone (a turned box counts as another). An atom that moves by d Å changes no number by
    more than about d, whatever the shape of the box; a vacuum beside a slab or wire is no matter.
    """
    out = np.empty((len(structures), 8))
    for start in range(0, len(structures), CHUNK):
        rows = slice(start, min(start + CHUNK, len(structures)))
        ptr = structures.ptr[rows.start : rows.stop + 1]
        atoms = slice(ptr[0], ptr[-1])
        out[rows] = _moments(structures.z[atoms], structures.pos[atoms], ptr - ptr[0])
    if structures.cell is not None:
        for i in np.flatnonzero(structures.pbc.any(1)):
            out[i] = _waves(structures, int(i))
    return out


def _moments(z: np.ndarray, pos: np.ndarray, ptr: np.ndarray) -> np.ndarray:
    pos = np.asarray(pos, np.float64)
    weight = _WEIGHTS[z]
    sizes = np.diff(ptr)
    starts = ptr[:-1]

    def mean(values: np.ndarray) -> np.ndarray:
        total = np.add.reduceat(values, starts, axis=0)
        return total / sizes.reshape(-1, *[1] * (total.ndim - 1))

    def spread(centre: np.ndarray) -> np.ndarray:
        return np.sqrt(np.square(pos - np.repeat(centre, sizes, axis=0)).sum(1))

    plain = spread(mean(pos))
    weighted = spread(mean(pos * weight[:, None]) / mean(weight)[:, None])
    columns = [
        mean(plain),
        np.sqrt(mean(plain**2)),
        np.cbrt(mean(plain**3)),
        mean(plain * weight),
        mean(weighted),
        np.cbrt(mean(weighted**3)),
        mean(weighted * weight),
        np.maximum.reduceat(plain, starts),
    ]
    return np.stack(columns, axis=1)


def _waves(structures: Structures, i: int) -> np.ndarray:
    from ase.geometry import complete_cell

    a, b = structures.ptr[i], structures.ptr[i + 1]
    cell, pbc = structures.cell[i], structures.pbc[i]
    if not pbc.all() or abs(np.linalg.det(cell)) < FLAT:
        # a slab or wire: what does not repeat stands upright on what does, whatever the vacuum;
        # rounded, so that the noise of a wire's vector does not turn the two beside it
        repeating = np.where(pbc[:, None], np.round(cell, 6) + 0.0, 0.0)
        with np.errstate(invalid="ignore", divide="ignore"):
            cell = complete_cell(repeating)
        # vectors that depend on each other complete to NaN
        if not np.isfinite(cell).all() or abs(np.linalg.det(cell)) < FLAT:
            cell = np.eye(3)
    pos = np.asarray(structures.pos[a:b], np.float64)
    fractional = np.linalg.solve(cell.T, pos.T).T
    phases = np.exp(2j * np.pi * fractional @ _WAVES.T)  # [a, 8]
    factor = np.abs(phases.T @ _WEIGHTS[structures.z[a:b]])
    # Å, of each wave: so that a step of d Å changes a number by about d, in elongated boxes as well
    lengths = 1.0 / np.linalg.norm(_WAVES @ np.linalg.inv(cell).T, axis=1)
    return factor / (2 * np.pi * np.sqrt(b - a)) * lengths


def _key(structures: Structures) -> np.ndarray:
    """A number per structure that is the same only for the same composition and directions that
    repeat.
    """
    generator = np.random.default_rng(7)
    element_weights = generator.integers(1, 2**40, MAX_Z)
    pbc_weights = generator.integers(1, 2**30, 3)
    elements = list(range(1, MAX_Z + 1))
    key = np.empty(len(structures), np.int64)
    for start in range(0, len(structures), CHUNK):
        rows = slice(start, start + CHUNK)
        part = structures[rows]
        key[rows] = composition(part, elements) @ element_weights
        key[rows] += part.pbc @ pbc_weights
    return key


def _places(structures: Structures) -> np.ndarray:
    """[S, 17] Å: `invariants`, and the vectors along which the structure repeats (else zeros: a box
    around a molecule is no property of it).
    """
    cells = np.zeros((len(structures), 9))
    if structures.cell is not None:
        vectors = np.where(structures.pbc[:, :, None], structures.cell, 0.0)
        cells = vectors.reshape(-1, 9)
    return np.concatenate([invariants(structures), cells], axis=1)


def _distances(s: Structures, rows: np.ndarray) -> np.ndarray:
    """[k, n(n-1)/2]: the distances in each of k structures of one composition, sorted within each
    pair of elements.
    """
    n = int(s.n_atoms[rows[0]])
    atoms = s.ptr[rows][:, None] + np.arange(n)
    atoms = np.take_along_axis(atoms, np.argsort(s.z[atoms], axis=1, kind="stable"), axis=1)
    z = s.z[atoms[0]].astype(np.int64)
    pos = np.asarray(s.pos[atoms.reshape(-1)], np.float64).reshape(-1, n, 3)
    first, second = np.triu_indices(n, 1)
    kind = z[first] * 200 + z[second]
    out = np.linalg.norm(pos[:, first] - pos[:, second], axis=-1)
    for k in np.unique(kind):
        columns = np.flatnonzero(kind == k)
        out[:, columns] = np.sort(out[:, columns], axis=1)
    return out


def _same(
    a: Structures, rows_a: np.ndarray, b: Structures, rows_b: np.ndarray, tol: float
) -> np.ndarray:
    """For each candidate pair, whether all distances between atoms agree within 2 tol, or, in a
    box, the places of all atoms after one translation. [P] bool.
    """
    same = np.zeros(len(rows_a), bool)
    periodic = a.pbc[rows_a].any(1) | b.pbc[rows_b].any(1)
    for k in np.flatnonzero(periodic):
        same[k] = _same_in_box(a, int(rows_a[k]), b, int(rows_b[k]), tol)
    todo = np.flatnonzero(~periodic)
    n = int(a.n_atoms[rows_a[0]]) if len(rows_a) else 0
    if n < 2:
        same[todo] = True
        return same
    for chunk in np.array_split(todo, len(todo) * n * n // 8_000_000 + 1):
        if len(chunk):
            unique_a, at_a = np.unique(rows_a[chunk], return_inverse=True)
            unique_b, at_b = np.unique(rows_b[chunk], return_inverse=True)
            difference = _distances(a, unique_a)[at_a] - _distances(b, unique_b)[at_b]
            same[chunk] = np.abs(difference).max(1) <= 2 * tol
    return same


def _same_in_box(a: Structures, i: int, b: Structures, j: int, tol: float) -> bool:
    """Whether a translation brings every atom of structure ``i`` of ``a`` onto one of its element
    of ``j`` of ``b`` within 2 tol, their cells being the same.

    The structures are laid on each other by an atom of the rarest element, at first with the atoms
    in the order they have.
    """
    if not np.array_equal(a.pbc[i], b.pbc[j]):
        return False
    z, other = (s.z[s.ptr[k] : s.ptr[k + 1]] for s, k in ((a, i), (b, j)))
    pos, goal = (
        np.asarray(s.pos[s.ptr[k] : s.ptr[k + 1]], np.float64) for s, k in ((a, i), (b, j))
    )
    cell, pbc = a.cell[i], a.pbc[i]

    def apart(steps: np.ndarray) -> np.ndarray:
        return np.linalg.norm(minimum_image(steps, cell, pbc), axis=-1)

    if np.array_equal(z, other) and (apart(pos - pos[0] - (goal - goal[0])) <= 2 * tol).all():
        return True
    elements, counts = np.unique(z, return_counts=True)
    rarest = elements[np.argmin(counts)]
    first = int(np.flatnonzero(z == rarest)[0])
    for target in np.flatnonzero(other == rarest):
        moved = pos - pos[first] + goal[target]
        if _each_has_a_partner(moved, z, goal, other, apart, 2 * tol):
            return True
    return False


def _each_has_a_partner(
    pos: np.ndarray, z: np.ndarray, goal: np.ndarray, other: np.ndarray, apart, within: float
) -> bool:
    """Whether each atom lies ``within`` Å of one of its element, each of another."""
    free = np.ones(len(goal), bool)
    for place, element in zip(pos, z, strict=True):
        near = np.flatnonzero(free & (other == element))
        if not len(near):
            return False
        distance = apart(goal[near] - place)
        best = int(np.argmin(distance))
        if distance[best] > within:
            return False  # for most translations at one of the first atoms
        free[near[best]] = False
    return True


def pairs(
    a: Structures, b: Structures | None = None, tol: float = 1e-3, limit: int = 1_000_000
) -> np.ndarray:
    """Rows (i, j) of structures that are the same within ``tol`` Å: i of ``a``, j of ``b``; without
    ``b``, i < j of ``a``.

    [P, 2] int64. At most ``limit`` pairs are returned: a set of copies of one structure has
    quadratically many. Raises ConfigError for a ``tol`` that is no length.
    """
    from scipy.spatial import cKDTree

    if not 0 <= tol < np.inf:
        raise ConfigError(f"the tolerance must be a length in Å, 0 or more, got {tol}")
    inside = b is None
    key_a = _key(a)
    if inside:
        b, key_b = a, key_a
    else:
        key_b = _key(b)
        # what is alone in its set has no partner: of a large set only few structures are looked at
        # closely
        shared_a = np.flatnonzero(np.isin(key_a, key_b))
        shared_b = np.flatnonzero(np.isin(key_b, key_a))
        if len(shared_a) < len(a) or len(shared_b) < len(b):
            among_shared = pairs(a[shared_a], b[shared_b], tol, limit)
            return np.stack([shared_a[among_shared[:, 0]], shared_b[among_shared[:, 1]]], axis=1)
    places_a = _places(a)
    places_b = places_a if inside else _places(b)
    near = 2.0 * tol * _WEIGHTS.max()  # an atom moved by tol moves the centre too
    equal = [np.zeros((0, 2), np.int64)]
    n_equal = 0
    for key in np.intersect1d(key_a, key_b):
        rows_a = np.flatnonzero(key_a == key)
        rows_b = np.flatnonzero(key_b == key)
        tree_a = cKDTree(places_a[rows_a])
        if inside:
            candidates = tree_a.query_pairs(near, p=np.inf, output_type="ndarray").astype(np.int64)
        else:
            tree_b = cKDTree(places_b[rows_b])
            partners = tree_a.query_ball_tree(tree_b, near, p=np.inf)
            both = [(i, j) for i, partners_of_i in enumerate(partners) for j in partners_of_i]
            candidates = np.array(both, np.int64).reshape(-1, 2)
        i = rows_a[candidates[:, 0]]
        j = rows_b[candidates[:, 1]]
        same = _same(a, i, b, j, tol)
        equal.append(np.stack([i[same], j[same]], axis=1))
        n_equal += int(same.sum())
        if n_equal >= limit:
            break
    joined = np.concatenate(equal)[:limit]
    return joined[np.lexsort((joined[:, 1], joined[:, 0]))]


LIMIT = 1_000_000  # pairs that are looked for at once

PAIRS = Kind(
    "a table of `potkit data leakage`",
    lambda path: head(path).split("\n")[0].strip() == "a,b,system",
)


def leakage(a: Structures, b: Structures, tol: float = 1e-3):
    """A DataFrame of the structures of ``b`` (say the test set) that are also in ``a`` (say the
    pretraining set).

    Columns: a, b (row numbers), system (its name in ``b``). ``frame.attrs["message"]`` says in one
    line how much leaks.
    """
    import pandas as pd

    in_a, in_b = pairs(a, b, tol, LIMIT).T
    names = b.system_names()
    systems = [names[system] for system in b.system[in_b]]
    frame = pd.DataFrame({"a": in_a, "b": in_b, "system": systems})
    n = len(np.unique(in_b))
    percent = 100 * n / max(len(b), 1)
    frame.attrs["message"] = (
        f"{'at least ' * (len(frame) == LIMIT)}{n} of {len(b)} structures ({percent:.2f} %) are in "
        f"both sets within {tol} Å"
    )
    return frame


def leakage_report(test: Structures, tol: float = 1e-3, **others: Structures):
    """A DataFrame with a row per set in ``others`` (pretrain=…, train=…): how many structures of
    ``test`` are in it as well.

    Columns: set, structures, in_test (structures of ``test`` found there), share (of ``test``),
    message.
    """
    import pandas as pd

    rows = []
    for name, other in others.items():
        leaked = leakage(other, test, tol)
        n = int(leaked["b"].nunique())
        rows.append(
            {
                "set": name,
                "structures": len(other),
                "in_test": n,
                "share": n / max(len(test), 1),
                "message": f"{name}: {leaked.attrs['message']}",
            }
        )
    return pd.DataFrame(rows, columns=["set", "structures", "in_test", "share", "message"])


def distinct(structures: Structures, tol: float = 1e-3) -> np.ndarray:
    """The rows that remain (rising) when of every group of equal structures only the first is
    kept.
    """
    rows = np.arange(len(structures))
    while True:  # as long as there may be more pairs than were looked for
        left = structures if len(rows) == len(structures) else structures[rows]
        found = pairs(left, None, tol, LIMIT)
        keep = np.ones(len(rows), bool)
        # rising in i: a structure that went does not take others with it
        for i, j in found:
            if keep[i]:
                keep[j] = False
        rows = rows[keep]
        if len(found) < LIMIT:
            return rows


# -- leakage by distance -------------------------------------------------------------------------
QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


def _pair_distances(s: Structures, rows: np.ndarray) -> np.ndarray:
    """[len(rows), n(n-1)/2] Å: distances between all atoms in their order, nearest images in
    periodic boxes; one kind of atoms.
    """
    n = int(s.n_atoms[rows[0]])
    first, second = np.triu_indices(n, 1)
    out = np.empty((len(rows), len(first)))
    for k, i in enumerate(rows):
        pos = np.asarray(s.pos[s.ptr[i] : s.ptr[i + 1]], np.float64)
        step = pos[first] - pos[second]
        if s.cell is not None:
            step = minimum_image(step, s.cell[i], s.pbc[i])
        out[k] = np.linalg.norm(step, axis=1)
    return out


def _kinds(s: Structures) -> dict[tuple, np.ndarray]:
    """Rows by their sequence of elements: structures whose atoms correspond one to one."""
    kinds: dict[tuple, list[int]] = {}
    for i in range(len(s)):
        z = tuple(s.z[s.ptr[i] : s.ptr[i + 1]].tolist())
        kinds.setdefault(z, []).append(i)
    return {z: np.array(rows) for z, rows in kinds.items()}


def nearest(a: Structures, b: Structures, chunk: int = 200) -> np.ndarray:
    """For each structure of ``b`` the dRMSD (Å) to the nearest of ``a``, [len(b)]; inf where ``a``
    has none with the same atoms.

    dRMSD is the root mean square difference of all distances between atoms: place, orientation and
    handedness do not matter, the order of the atoms does, as in trajectories it is the same.
    Structures of one atom are 0 apart.
    """
    out, known = np.full(len(b), np.inf), _kinds(a)
    for z, rows in _kinds(b).items():
        if z not in known:
            continue
        if len(z) < 2:
            out[rows] = 0.0
            continue
        ours = _pair_distances(b, rows)
        for some in np.array_split(known[z], -(-len(known[z]) // chunk)):
            theirs = _pair_distances(a, some)
            square = (
                np.square(ours).sum(1)[:, None] + np.square(theirs).sum(1) - 2 * ours @ theirs.T
            )
            square = np.maximum(square.min(1), 0.0) / ours.shape[1]
            out[rows] = np.minimum(out[rows], np.sqrt(square))
    return out


def steps_in_time(structures: Structures) -> np.ndarray:
    """dRMSD (Å) between neighbours in the order of ``structures`` that belong to one system and
    have the same atoms.
    """
    out = []
    for i in range(len(structures) - 1):
        pair = structures[i : i + 2]
        same = pair.system[0] == pair.system[1] and pair.n_atoms[0] == pair.n_atoms[1] > 1
        if same and np.array_equal(*np.split(pair.z, 2)):
            one, other = _pair_distances(pair, np.arange(2))
            out.append(np.sqrt(np.mean(np.square(one - other))))
    return np.array(out)


def leakage_by_distance(
    train: Structures,
    test: Structures,
    trajectory: Structures | None = None,
    most: int = 500,
    seed: int = 0,
):
    """How near test structures lie to training (or pretraining) structures, beside how far
    neighbours in time are apart.

    A DataFrame with a row for each: set, structures, beyond (test structures with no training
    structure of the same atoms, which are left out), and quantiles of the dRMSD in Å ("5 %" to "95
    %"). A test set whose structures lie as near to training as to their own neighbour in time tests
    interpolation within a trajectory. ``trajectory``: the whole set in the order of time (default:
    ``test`` in its order). At most ``most`` test structures and time steps are looked at, drawn
    with ``seed``. ``frame.attrs``: "distances" (of every test structure drawn), "steps", and
    "message" in one line.
    """
    import pandas as pd

    rng = np.random.default_rng(seed)
    drawn = np.sort(rng.permutation(len(test))[:most])
    distances = nearest(train, test[drawn])
    within = distances[np.isfinite(distances)]
    whole = test if trajectory is None else trajectory
    start = int(rng.integers(0, max(1, len(whole) - most)))
    steps = steps_in_time(whole[start : start + most + 1])
    rows = []
    for name, values in (("test to nearest training", within), ("neighbours in time", steps)):
        row = {"set": name, "structures": len(values), "beyond": 0}
        for q in QUANTILES:
            row[f"{100 * q:.0f} %"] = float(np.quantile(values, q)) if len(values) else np.nan
        rows.append(row)
    rows[0]["beyond"] = int(len(distances) - len(within))
    frame = pd.DataFrame(rows)
    frame.attrs["distances"], frame.attrs["steps"] = distances, steps
    frame.attrs["message"] = _said(within, steps, len(distances))
    return frame


def _said(within: np.ndarray, steps: np.ndarray, drawn: int) -> str:
    if not len(within):
        return f"none of {drawn} test structures has a training structure of the same atoms"
    text = (
        f"test structures lie {np.median(within):.3f} Å (median dRMSD) from the nearest training "
        "structure"
    )
    if len(within) < drawn:
        text += f" ({drawn - len(within)} of {drawn} have none of the same atoms)"
    if not len(steps):
        return text
    share = float(np.mean(within <= np.median(steps)))
    text += f", neighbours in time {np.median(steps):.3f} Å apart"
    return f"{text}; {100 * share:.0f} % lie nearer to training than that"
