"""Planning with sets that are not on this machine: how large they are, from their records, and
which embedded set stands in for them where something must be computed.

Only a dry run uses it: nothing is trained on a stand-in without `--smoke`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..datasets import registry
from ..datasets.recipes import tip3p_mini
from ..datasets.records import Record
from ..errors import ConfigError, DataError
from ..structures.store import Structures

if TYPE_CHECKING:
    from .experiment import Experiment
    from .yaml_form import DataSpec, ExperimentSpec, SplitPart

TIP3P = "$POTKIT_DATA/tip3p.h5"
# what stands in for a set of the papers
STAND_INS = {
    "ani-1": "ani-mini",
    "ani-1x": "ani-mini",
    "iso17": "iso17-mini",
    "spice-1": "spice-mini",
    "md22": "md22-mini",
    "rmd17": "rmd17-mini",
    "rpbe-water": "water-mini",
    TIP3P: "tip3p-mini",
}
# elements of ani-mini; other sets are stood in for by one with more of them
HCNO = frozenset("H C N O".split())
# of a stand-in are taken so many structures: a step is counted and measured on some of them
DRAWN = 64


class Size(NamedTuple):
    """How many structures there are, their mean number of atoms (None: not known), and whether
    there may be fewer.
    """

    structures: int
    atoms: float | None
    at_most: bool = False


class Estimate(NamedTuple):
    """What is planned for an experiment without its data.

    ``experiment`` has stand-ins in place of what is missing, and label budgets of its own that
    ``labels`` translates; ``trained_on``: its budget -> structures that train. ``pretraining`` and
    ``training``: how many atoms a structure has, relative to the stand-in. ``missing``: set -> a
    line about it.
    """

    experiment: Experiment
    labels: dict[int, int]
    trained_on: dict[int, int]
    pretrain_on: int
    pretraining: float
    training: float
    missing: dict[str, str]


def of(
    spec: ExperimentSpec, store: str | Path, loaded: dict[str, Structures], columns: dict[str, str]
) -> Estimate | None:
    """The estimate for ``spec``; None where no missing set explains that it cannot be loaded, or
    one that is missing has no record.
    """
    data = {key: getattr(spec, key) for key in ("pretrain_on", "train", "valid", "test")}
    given = {key: one for key, one in data.items() if one is not None}
    absent = list(dict.fromkeys(name for one in given.values() for name in _absent(one)))
    if not absent or not all(_recorded(name) for name in absent):
        return None
    charges = bool(spec.model.get("formal_charges"))
    changes: dict[str, Any] = {
        key: _stood_in(one, charges) for key, one in given.items() if _absent(one)
    }
    sizes = {key: size(one, loaded) for key, one in given.items()}
    whole = sizes["train"].structures
    n_valid = 0
    if spec.valid is not None:
        # parts published with one set are in the upper bound already
        published = spec.train.published and spec.valid.published
        n_valid = 0 if published and spec.train.data == spec.valid.data else None
        n_valid = sizes["valid"].structures if n_valid is None else n_valid
        whole += n_valid
    budgets = [spec._budget(share, range(whole)) for share in spec.labels]
    stood_in = spec.model_copy(update=changes)
    pool = _load(stood_in.train, loaded)
    if len(pool) < len(budgets) + 2:
        return None
    # distinct names for the budgets, whatever the size of the stand-in
    keys = range(len(pool) - len(budgets) + 1, len(pool) + 1)
    own: dict[str, Any] = {"labels": list(keys)}
    if spec.search_at is not None and spec.search_at in budgets:
        own["search_at"] = keys[budgets.index(spec.search_at)]
    experiment = stood_in.experiment(store, 1, loaded, columns=columns, **own)
    share = spec.valid_fraction if spec.valid is None else n_valid / whole
    least = spec.valid_min if spec.valid is None else 0
    trained = [max(1, budget - max(least, round(share * budget))) for budget in budgets]
    pretraining = sizes.get("pretrain_on", Size(0, None))
    at_most = {n for k, one in given.items() if sizes[k].at_most for n in _absent(one)}
    return Estimate(
        experiment,
        dict(zip(keys, budgets, strict=True)),
        dict(zip(keys, trained, strict=True)),
        _after_validation(pretraining.structures, experiment.pretrain_config.valid_fraction),
        _relative(pretraining, experiment.pretrain_on),
        _relative(sizes["train"], pool),
        {name: _line(name, name in at_most) for name in absent},
    )


def _load(data: DataSpec, loaded: dict[str, Structures]) -> Structures:
    """As `ExperimentSpec.experiment` finds it."""
    key = data.model_dump_json()
    if key not in loaded:
        loaded[key] = data.load()
    return loaded[key]


def _after_validation(n: int, share: float) -> int:
    """See `operations.trained_on`."""
    return n if n < 20 or not share else round(n * (1 - share))


def _relative(planned: Size, structures: Structures | None) -> float:
    if structures is None or planned.atoms is None:
        return 1.0
    return planned.atoms / float(structures.n_atoms.mean())


def size(data: DataSpec, loaded: dict[str, Structures]) -> Size:
    """How large ``data`` is: loaded where it is there, else planned from the records."""
    if not _absent(data):
        there = _load(data, loaded)
        return Size(len(there), float(there.n_atoms.mean()))
    names = [data.data] if isinstance(data.data, str) else data.data
    at_most = data.published is not None or data.near_minimum is not None
    at_most |= data.without is not None
    # structures and atoms of each system, or of a whole set, and how many systems that is
    rows: list[tuple[int, float | None, int]] = []
    for name in names:
        own = _rows(name)
        if data.systems is not None:
            known = _systems(name)
            own = [(*known[s], 1) for s in data.systems if s in known] or own
            at_most |= not known
        rows += own
    if data.part is not None:
        rows = _part(rows, data.part)
    total = sum(n for n, _, _ in rows)
    known_atoms = [n * atoms for n, atoms, _ in rows if atoms is not None]
    mean = sum(known_atoms) / total if total and len(known_atoms) == len(rows) else None
    total = total if data.limit is None else min(total, data.limit)
    return Size(max(total, 1), mean, at_most)


def _part(
    rows: list[tuple[int, float | None, int]], part: SplitPart
) -> list[tuple[int, float | None, int]]:
    """Each row's share of a part of a split."""
    if part.index >= len(part.fractions):
        raise ConfigError(
            f"part: index {part.index}, but there are {len(part.fractions)} fractions"
        )
    floor = part.rounding == "floor"
    if part.by == "structure-within-system":
        return [
            (_cut(n, part.fractions, part.index, floor, systems), atoms, systems)
            for n, atoms, systems in rows
        ]
    of = sum(systems for *_, systems in rows) if part.by == "system" else sum(n for n, *_ in rows)
    share = _cut(of, part.fractions, part.index, floor) / of
    return [(round(n * share), atoms, systems) for n, atoms, systems in rows]


def _cut(
    n: int, fractions: Sequence[float | int | None], index: int, floor: bool, times: int = 1
) -> int:
    """Size of part ``index`` of ``n`` structures; whole numbers count ``times`` over."""
    exact = [
        0.0 if f is None else f * n if isinstance(f, float) else float(f * times) for f in fractions
    ]
    whole = [int(np.floor(size + 1e-9)) for size in exact]
    if None in fractions:
        whole[fractions.index(None)] = max(0, n - sum(whole))
    elif floor:
        whole[0] += round(sum(exact) - sum(whole))
    else:
        whole = [round(size) for size in exact]
    return min(n, whole[index])


def _absent(data: DataSpec | None) -> list[str]:
    """The sets of ``data`` that are not on this machine."""
    if data is None:
        return []
    names = [data.data] if isinstance(data.data, str) else list(data.data)
    return [name for name in [*names, *([data.without] if data.without else [])] if _away(name)]


def _away(name: str) -> bool:
    path = os.path.expandvars(name)
    if "$" in path:
        return True
    if not registry.is_name(path):
        return not Path(path).exists()
    record = registry.record(path.partition("/")[0])
    if record.kind == "embedded":
        return registry.embedded_path(record) is None
    if registry.packed_path(record).exists():
        return False
    try:
        registry.raw_path(record)
    except DataError:
        return True
    return False


def _record(name: str) -> Record | None:
    return registry.record(name.partition("/")[0]) if registry.is_name(name) else None


def _recorded(name: str) -> bool:
    """Whether it is known how large a missing set is."""
    record = _record(name)
    return name == TIP3P or (record is not None and record.structures is not None)


def _systems(name: str) -> dict[str, tuple[int, float]]:
    record = _record(name)
    return {} if record is None else dict(record.systems)


def _rows(name: str) -> list[tuple[int, float | None, int]]:
    """Structures, mean number of atoms (None: not known) and number of systems of a set, in one
    row, or of each of its systems.
    """
    if name == TIP3P:
        seeds, frames = tip3p_mini.SEEDS, tip3p_mini.PAPER_FRAMES
        return [(seeds * frames, float(3 * 258), seeds)]
    if not _away(name):
        there = registry.load(name)
        return [(len(there), float(there.n_atoms.mean()), len(there.system_names()))]
    record = _record(name)
    assert record is not None and record.structures is not None
    if record.systems:
        return [(n, atoms, 1) for n, atoms in record.systems.values()]
    same = record.atoms is not None and record.atoms[0] == record.atoms[1]
    return [(record.structures, record.atoms[0] if same else None, record.molecules or 1)]


def stand_in(name: str) -> str:
    """The embedded set that stands in for a set that is missing."""
    if name in STAND_INS:
        return STAND_INS[name]
    record = _record(name)
    if record is None or record.kind == "embedded":
        return name
    if record.periodic or "water" in record.name:
        return "water-mini"
    return "ani-mini" if HCNO.issuperset(record.elements.split()) else "spice-mini"


def _stood_in(data: DataSpec, charges: bool) -> DataSpec:
    """A few structures of the stand-ins, of the same systems where they have them."""
    names = [data.data] if isinstance(data.data, str) else list(data.data)
    sets = list(dict.fromkeys(stand_in(name) if _away(name) else name for name in names))
    systems = None
    if data.systems is not None:
        there = {s for name in sets for s in registry.load(name).system_names()}
        systems = [s for s in data.systems if s in there] or None
    how = "neutral" if charges else None
    if charges and "spice-mini" in sets:  # it has ions, whose names tell their charges
        systems, how = ["CC(=O)[O-].O"], "system-names"
    return data.model_copy(
        update=dict(
            data=sets[0] if len(sets) == 1 else sets,
            published=None,
            near_minimum=None,
            systems=systems,
            part=None,
            without=None,
            limit=DRAWN,
            # which values they have changes no count
            formal_charges=how,
        )
    )


def _line(name: str, at_most: bool) -> str:
    """What is said about a missing set."""
    rows = _rows(name)
    total = sum(n for n, *_ in rows)
    mini = stand_in(name)
    atoms = [n * a for n, a, _ in rows if a is not None]
    if len(atoms) == len(rows):
        scaled = f"scaled to its mean of {sum(atoms) / total:.3g} atoms, or to that of its systems"
        if len(rows) == 1:
            scaled = f"scaled to its {atoms[0] / total:.0f} atoms"
    else:
        scaled = "taken as having as many atoms in a structure, for its record has no mean"
    bound = "; after its filters there are fewer, so counts are upper bounds" if at_most else ""
    return (
        f"{name}: {total} structures; {mini} stands in for it, {scaled}{bound}; `{_command(name)}`"
    )


def _command(name: str) -> str:
    if name == TIP3P:
        return f"potkit data make tip3p-mini --scale paper --out {TIP3P}"
    record = _record(name)
    if record is not None and record.kind == "reference" and not any(f.url for f in record.files):
        return f"potkit data info {record.name}"
    return f"potkit data fetch {name.partition('/')[0]}"
