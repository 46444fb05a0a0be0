"""The experiments that come with the package: one for every table and figure of the two papers that
is a run, with the papers' settings (denoise: arXiv 2303.02216, masked: arXiv 2402.15921).

They are the YAML files in specs/. Comments there give the source of each value; what is a guess, or
not as in the paper, stands in ``notes``. `smoke` makes any of them small enough to be tried in
seconds, on data that come with the package.
"""

from __future__ import annotations

import copy
import difflib
from pathlib import Path
from typing import Any

import pandas as pd

from ..errors import ConfigError
from . import yaml_form
from .stand_ins import STAND_INS
from .yaml_form import DataSpec, ExperimentSpec, GridSpec, TestSpec

FOLDER = Path(__file__).with_name("specs")

# the widths of each network in `smoke`; other options stay
TINY: dict[str, dict[str, Any]] = {
    "schnet": dict(hidden=8, filters=8, layers=1, radial=4, cutoff=2.5),
    "egnn": dict(hidden=8, layers=1, cutoff=2.5),
    "torchmd_et": dict(hidden=8, layers=1, radial=4, heads=2, cutoff=2.5),
    "painn": dict(hidden=8, layers=1, radial=4, cutoff=2.5),
    "se3_transformer": dict(channels=4, max_degree=1, layers=1, heads=1, division=2, cutoff=2.0),
    "gns": dict(hidden=8, layers=1, cutoff=2.5),
    "forcenet": dict(hidden=8, layers=1, frequencies=4, max_n=1, cutoff=2.0),
    "nequip": dict(channels=4, max_degree=1, layers=1, radial=4, radial_hidden=4, cutoff=2.5),
}
# structures of each kind in `smoke`, for small molecules and, in a few, for boxes of many atoms
SIZES = dict(pretrain_on=24, train=6, valid=3, test=3)
FEW = dict(pretrain_on=2, train=3, valid=2, test=1)
BOXES = ("tip3p-mini",)
# of SPICE's stand-in: acetate and a water
ION = "CC(=O)[O-].O"
# counts of structures beyond this are made for sets that are larger than the stand-ins
LARGE = 100


def names() -> list[str]:
    """The names of all shipped experiments."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def find(text: str | Path) -> Path:
    """The file that ``text`` names: a file of that path, else the shipped experiment of that name.

    Raises ConfigError for what is neither, with the shipped names that are like it.
    """
    path = Path(text)
    if path.exists():
        return path
    known = names()
    if str(text) in known:
        return FOLDER / f"{text}.yaml"
    parts_of = [name for name in known if path.stem in name]
    near = parts_of[:4] or difflib.get_close_matches(path.stem, known, 3, 0.7)
    hint = f"did you mean {' or '.join(near)}?" if near else "`potkit specs` lists those there are"
    raise ConfigError(f"{text}: neither a file nor an experiment that comes with potkit; {hint}")


def read(name: str | Path) -> GridSpec:
    """The experiment, or grid of them, that ``name`` names. Raises ConfigError as `find` and
    `yaml_form.read` do.
    """
    return yaml_form.read(find(name))


def title(name: str) -> str:
    """The first line of a shipped experiment: which table or figure it is."""
    lines = find(name).read_text(encoding="utf-8").splitlines()
    return lines[0].removeprefix("# ")


def table() -> pd.DataFrame:
    """A row per shipped experiment: its name, how many experiments its grid has, data sets, and
    what it is.
    """
    rows = []
    for name in names():
        grid = read(name)
        sets = dict.fromkeys(s for _, spec in grid.specs for s in _sets(spec.train))
        rows.append(
            {
                "name": name,
                "experiments": len(grid.specs),
                "data": ", ".join(sets),
                "what": title(name),
            }
        )
    return pd.DataFrame(rows)


def smoke(spec: GridSpec) -> GridSpec:
    """``spec`` with tiny networks, two steps a run, one seed, and a few structures of the embedded
    sets: what there is to go wrong goes wrong in seconds.

    All else stays: arms, read-outs, the form of the split, normalisation, rates; and the network
    where an arm starts from given weights, which fit no other. Sets that come with the package, and
    files, are only cut. Raises ConfigError for networks that are not known.
    """
    small = copy.copy(spec)
    small.name = f"{spec.name}-smoke"
    small.specs = [(columns, _smoke(one)) for columns, one in spec.specs]
    return small


def _smoke(spec: ExperimentSpec) -> ExperimentSpec:
    values = spec.model_dump()
    name = values["model"].get("name")
    if name not in TINY:
        raise ConfigError(f"smoke: no small form of the network {name!r} is known")
    boxes = any(_stand_in(s) in BOXES for s in _sets(spec.train))
    sizes = FEW if boxes else SIZES
    charges = bool(spec.model.get("formal_charges"))
    data = {key: _few(getattr(spec, key), size, charges) for key, size in sizes.items()}
    given = any("weights" in arm for arm in spec.arms.values())
    steps = dict(epochs=None, steps=2, batch_size=2, eval_batch_size=4)
    steps |= dict(validate_every=None, validate_epochs=None)
    values |= {
        "name": f"{spec.name}-smoke",
        "model": values["model"] if given else values["model"] | TINY[name],
        "labels": [4] if len(spec.labels) == 1 else [4, 5],
        "seeds": [0],
        "pretrain": values["pretrain"] | steps | dict(device="cpu"),
        "finetune": values["finetune"] | steps | dict(device="cpu"),
        **{key: part.model_dump() for key, part in data.items() if part is not None},
    }
    return ExperimentSpec(**values)


def _sets(data: DataSpec) -> list[str]:
    return [data.data] if isinstance(data.data, str) else data.data


def _stand_in(name: str) -> str:
    return STAND_INS.get(name, name)


def _few(data: DataSpec | None, size: int, charges: bool) -> DataSpec | None:
    """``size`` structures of the stand-ins of ``data``, with formal ``charges`` or as they are."""
    if data is None:
        return None
    sets = list(dict.fromkeys(map(_stand_in, _sets(data))))
    changes: dict[str, Any] = dict(data=sets[0] if len(sets) == 1 else sets)
    limit = size if data.limit is None else min(size, data.limit)
    changes["limit"] = limit
    stood_in = sets != _sets(data)
    if stood_in and isinstance(data, TestSpec):
        changes["groups"] = {}  # of the structures of another set
    if stood_in and data.systems is not None:
        changes["systems"] = _known_systems(sets, data.systems)
    if stood_in and data.part is not None:
        sizes = [n for n in data.part.fractions if isinstance(n, int)]
        if any(n > LARGE for n in sizes):
            shares = [0.8, 0.1, 0.1] if len(data.part.fractions) == 3 else [0.9, 0.1]
            changes["part"] = data.part.model_copy(update=dict(fractions=shares))
    if stood_in and sets == ["spice-mini"]:
        # few structures have few of its elements, and what trains must have all that are tested
        changes["systems"] = [ION]
        # the stand-in has no charges of atoms, but names from which they follow
        changes["formal_charges"] = "system-names" if charges else None
    return data.model_copy(update=changes)


def _known_systems(sets: list[str], systems: list[str]) -> list[str]:
    """Those of ``systems`` that the stand-ins have, or the first that they have."""
    structures = [yaml_form.named_or_file(name) for name in sets]
    known = [name for s in structures for name in s.system_names()]
    return [name for name in systems if name in known] or known[:1]
