"""Settings of notebook 08 in its profiles, and the experiments that they make of the two audits'
specs, data/results/audit-choices.yaml and audit-faults.yaml.

study is the specs as they are. smoke and quick are the same grids on embedded structures with
GFN2-xTB labels and for few steps: they show that the machinery runs, and carry no conclusion.
paper is the faults' grid with the denoise paper's own EGNN, steps and rates (`profiles.MOLECULES`)
on ANI-1x, for energies; nobody has run it yet.
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd

from ..errors import ConfigError, DataError
from ..experiments import experiment as experiments
from ..experiments import yaml_form
from ..experiments.experiment import Experiment
from ..report import tables
from ..structures import settings as plain
from . import profiles, runner

STUDIES = {"audit-choices": "choices of ours", "audit-faults": "published faults"}
BASE = "as it is"
SIZES = ("hidden", "layers", "cutoff")  # of the specs' networks


def _part(data: str, index: int, by: str, *fractions: float | None) -> dict[str, Any]:
    part = {"fractions": list(fractions), "index": index, "by": by, "rounding": "floor"}
    return {"data": data, "part": part}


_MINI = {
    "pretrain_on": _part("ani-mini", 0, "system", 0.8, None),
    "train": _part("ani-mini", 0, "system", 0.8, None),
    "test": _part("ani-mini", 1, "system", 0.8, None),
}
_ANI_1X = {
    name: _part("ani-1x", index, "structure-within-system", 0.8, 0.1, None)
    for name, index in (("pretrain_on", 0), ("train", 0), ("valid", 1), ("test", 2))
}
_PAPER = profiles.MOLECULES["paper"]
_NO_RATE = dict(eval_batch_size=256, lr=2e-3)

# ``settings``: those of each spec that run, all of them where the list is empty. ``data``: parts
# of the spec that are replaced. ``network``: its sizes, the preset's own where there are none.
# ``pretrain`` and ``finetune`` take the place of the spec's where they are not empty. ``metric``:
# what the picture is about.
AUDIT: dict[str, dict[str, Any]] = {
    "smoke": dict(
        settings={"audit-choices": [], "audit-faults": []},
        data=_MINI,
        limits=dict(pretrain_on=60, train=60, test=10),
        network=dict(hidden=8, layers=1, cutoff=4.0),
        labels=[10],
        seeds=[0],
        pretrain=dict(steps=2, batch_size=4) | _NO_RATE,
        finetune=dict(steps=2, batch_size=4) | _NO_RATE,
        supervised=dict(energy=1, forces=100, loss_function="mse"),
        sigma=0.1,
        metric="forces_mae",
        jobs=1,
    ),
    "quick": dict(
        settings={
            "audit-choices": [BASE, "sum over neighbours"],
            "audit-faults": [BASE, "wrong sign"],
        },
        data=_MINI,
        limits=dict(pretrain_on=2000, train=2000, test=100),
        network=dict(hidden=32, layers=3, cutoff=4.0),
        labels=[50],
        seeds=[0, 1, 2],
        pretrain=dict(steps=200, batch_size=16, validate_every=200) | _NO_RATE,
        finetune=dict(steps=200, batch_size=4, validate_every=50) | _NO_RATE,
        supervised=dict(energy=1, forces=100, loss_function="mse"),
        sigma=0.1,
        metric="forces_mae",
        jobs=2,
    ),
    "study": dict(
        settings={"audit-choices": [], "audit-faults": []},
        data={},
        limits={},
        network=dict(hidden=32, layers=3, cutoff=4.0),
        labels=[50],
        seeds=[0, 1, 2, 3, 4, 5],
        pretrain={},
        finetune={},
        supervised=dict(energy=1, forces=100, loss_function="mse"),
        sigma=0.1,
        metric="forces_mae",
        jobs=2,
    ),
    "paper": dict(
        settings={"audit-faults": []},
        data=_ANI_1X,
        limits={},
        network={},
        labels=[1.0],
        seeds=[0, 1, 2, 3, 4, 5],
        pretrain=_PAPER["pretrain"],
        finetune=_PAPER["finetune"] | _PAPER["by_set"].get("ani-1x", {}).get("finetune", {}),
        supervised=_PAPER["supervised"],
        sigma=_PAPER["sigma"],
        metric="energy_mae",  # the paper trains on energies alone
        jobs=1,
    ),
}


def folder() -> Path:
    """Where the specs and the stored runs lie."""
    return runner._root() / "data" / "results"


def stored(name: str) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The runs that a study stored, and its provenance. Raises DataError where there are none."""
    runs, _ = tables.stored(f"{name}-runs", folder())
    return runs, tables.stored(name, folder())[1]


def described(runs: pd.DataFrame, how: dict[str, Any]) -> dict[str, Any]:
    """What a stored study is made of: settings, seeds, labels, test structures, steps, hours."""
    first = how["experiment"][0]
    stages = {stage: first[stage] for stage in ("pretrain", "finetune")}
    trained = runs.drop_duplicates("run")  # an arm that a setting leaves alone is trained once
    seconds = trained["seconds"].sum() + trained["pretrain_seconds"].sum()
    about: dict[str, Any] = {"settings": runs["setting"].nunique(), "seeds": runs["seed"].nunique()}
    about |= {"labels": ", ".join(map(str, first["labels"]))}
    about |= {"test structures": int(runs["n_test"].max())}
    for stage, config in stages.items():
        about[f"{stage} steps × batch"] = f"{config['steps']} × {config['batch_size']}"
    return about | {"hours": round(seconds / 3600, 2), "commit": how["commit"]}


def values(run: SimpleNamespace, name: str, device: str | None = None) -> dict[str, Any]:
    """The spec ``name`` as the settings ``run`` change it, in the YAML form.

    ``device``: default what the spec says. Raises DataError where there is no such spec,
    ConfigError for a setting it does not have.
    """
    path = folder() / f"{name}.yaml"
    if not path.is_file():
        raise DataError(f"{path}: no such spec; notebook 08 needs a checkout of the repository")
    made = plain.read(path) | run.data
    for part, limit in run.limits.items():
        made[part] = made[part] | {"limit": limit}
    made |= {"labels": run.labels, "seeds": run.seeds, "supervised": run.supervised}
    for stage in ("pretrain", "finetune"):
        made[stage] = getattr(run, stage) or made[stage]
        if device is not None:
            made[stage] = made[stage] | {"device": device}
    made["model"] = _sized(made["model"], run.network)
    made["arms"] = _noised(made["arms"], run.sigma)
    known = made["grid"]["setting"]
    unknown = set(run.settings[name]) - known.keys()
    if unknown:
        raise ConfigError(f"{name} has no setting {min(unknown)!r}; it has {', '.join(known)}")
    wanted = run.settings[name] or list(known)
    made["grid"] = {"setting": {s: _fitted(known[s], run) for s in known if s in wanted}}
    return made


def _sized(model: dict[str, Any], sizes: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in model.items() if key not in SIZES} | sizes


def _noised(arms: dict[str, Any], sigma: float) -> dict[str, Any]:
    return {arm: options | {"sigma": sigma} for arm, options in arms.items()}


def _fitted(changes: dict[str, Any], run: SimpleNamespace) -> dict[str, Any]:
    """A setting's changes for the network and the data of ``run``.

    The specs' energies of isolated atoms are those of 3BPA's level of theory; other data have their
    own.
    """
    fitted = dict(changes)
    if "model" in fitted:
        fitted["model"] = _sized(fitted["model"], run.network)
    if "arms" in fitted:
        fitted["arms"] = _noised(fitted["arms"], run.sigma)
    if run.data and "finetune" in fitted:
        kept = {k: v for k, v in fitted["finetune"].items() if k != "isolated_energies"}
        fitted["finetune"] = kept
    return fitted


def run_all(grid: dict[str, list[Experiment]]) -> dict[str, pd.DataFrame]:
    """The runs of each spec; the two share their base, which is trained once. Raises PotkitError
    where a run failed.
    """
    return {name: profiles.complete(experiments.run(parts)) for name, parts in grid.items()}


def grid(run: SimpleNamespace, device: str | None = None) -> dict[str, list[Experiment]]:
    """Spec -> its experiments, on the settings ``run`` of a profile; finished runs lie in the
    notebooks' store.

    Raises as `values` and `experiments.yaml_form` do.
    """
    return {
        name: yaml_form.GridSpec(values(run, name, device)).experiments(
            store=runner.store(), jobs=run.jobs
        )
        for name in run.settings
    }
