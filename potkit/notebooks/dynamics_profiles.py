"""Settings of notebook 09 in its profiles, and the experiments and simulations that they make.

Two systems: molecules of a set after rMD17, and a box of water that neither pretraining nor
fine-tuning sees. Networks, pretraining and its data are those of `profiles.MOLECULES` and
`profiles.WATER`, so that the run store has what notebooks 03 to 06 pretrained. study and paper have
not been run yet; paper has molecules alone, since the temperatures of its water are not in its
file.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from ..datasets import splits
from ..errors import ConfigError
from ..experiments import yaml_form
from ..experiments.experiment import Experiment
from ..experiments.simulations import Case, Plan
from ..objectives import Denoise
from ..structures.store import Structures
from . import profiles

BOX = "32 waters, 1 g/cm³, 300 K"  # of the boxes that `profiles.WATER` tests on
_MOLECULE = dict(temperature=500.0)  # K, that of the set
_WATER = dict(temperature=300.0, radial=("O", "O"))

# ``parts``: shares of a molecule's frames to draw labels from, and to test on and to compare with;
# ``plans``: see `simulations.Plan`.
DYNAMICS: dict[str, dict[str, Any]] = {
    "smoke": dict(
        data="rmd17-mini",
        molecules=["ethanol"],
        box=BOX,
        sigma=0.1,
        labels=[10],
        seeds=[0, 1],
        parts=[0.5, None],
        block="block",
        steps={},
        plans=dict(
            molecule=_MOLECULE | dict(nvt=0.03, nve=0.03, copies=2),
            water=_WATER | dict(nvt=0.03, nve=0.03, copies=1, nve_step=1.0),
        ),
        jobs=1,
    ),
    "quick": dict(
        data="rmd17-mini",
        molecules=["ethanol"],
        box=BOX,
        sigma=0.1,
        labels=[50],
        seeds=[0, 1, 2],
        parts=[0.5, None],
        block="block",
        steps={},
        plans=dict(
            molecule=_MOLECULE | dict(nvt=0.4, nve=0.1, copies=8),
            water=_WATER | dict(nvt=0.2, nve=0.05, copies=2),
        ),
        jobs=2,
    ),
    "study": dict(
        data="rmd17-mini",
        molecules=["ethanol", "aspirin"],
        box=BOX,
        sigma=0.1,
        labels=[50],
        seeds=[0, 1, 2, 3, 4, 5],
        parts=[0.5, None],
        block="block",
        steps=dict(steps=2000),
        plans=dict(
            molecule=_MOLECULE | dict(nvt=10.0, nve=5.0, copies=16),
            water=_WATER | dict(nvt=10.0, nve=2.0, copies=4),
        ),
        jobs=2,
    ),
    "paper": dict(
        data="rmd17",
        molecules=["ethanol", "aspirin"],
        box="",
        sigma=0.2,
        labels=[950],
        seeds=[0, 1, 2],
        parts=[0.5, None],
        block="structure-within-system",
        steps={},
        plans=dict(molecule=_MOLECULE | dict(nvt=300.0, nve=10.0, copies=5)),
        jobs=1,
    ),
}


def _shared(name: str, run: SimpleNamespace) -> SimpleNamespace:
    """The settings that other notebooks have, with labels, seeds and arms of ``run``."""
    profile = "quick" if run.profile == "study" else run.profile
    settings = dict(getattr(profiles, name)[profile])
    settings["finetune"] = settings["finetune"] | run.steps
    if name == "MOLECULES" and run.profile == "paper":
        settings["supervised"] = dict(energy=1, forces=100, loss_function="mse")
    own = dict(labels=run.labels, seeds=run.seeds, jobs=run.jobs, longer=None, profile=profile)
    return SimpleNamespace(**settings | own)


def _molecules(run: SimpleNamespace, device: str) -> list[tuple[Experiment, Case]]:
    shared = _shared("MOLECULES", run)
    unlabelled = profiles.unlabelled(shared, profiles.parts(shared)[0])
    out = []
    for molecule in run.molecules:
        frames = yaml_form.DataSpec(data=run.data, systems=[molecule]).load()
        train, test = splits.split(frames, tuple(run.parts), by=run.block)
        seen = frames[test]
        experiment = profiles.experiment(
            shared,
            device,
            model=profiles.network(shared),
            columns={"system": molecule},
            pretrain_on=unlabelled,
            objectives={"denoise": Denoise(sigma=run.sigma)},
            train=frames[train],
            test=profiles.at_most(seen, shared.n_test),
        )
        out.append((experiment, _case(seen, run.plans["molecule"])))
    return out


def _water(run: SimpleNamespace, device: str) -> tuple[Experiment, Case]:
    shared = _shared("WATER", run)
    pool, test = profiles.pool_and_test(shared, yaml_form.named_or_file(shared.data))
    names = np.array(test.system_names(), dtype=object)
    box = test[names[test.system] == run.box]
    if not len(box):
        raise ConfigError(f"{shared.data}: no box {run.box!r} among those that are tested on")
    experiment = profiles.experiment(
        shared,
        device,
        model=profiles.network(shared),
        columns={"system": "water"},
        pretrain_on=profiles.unlabelled(shared, pool),
        objectives={"denoise": Denoise(sigma=run.sigma, normalize=shared.normalize)},
        train=pool,
        test=profiles.at_most(test, shared.n_test),
    )
    return experiment, _case(box, run.plans["water"])


def _case(frames: Structures, plan: dict[str, Any]) -> Case:
    return Case(frames, frames, Plan(**plan))


def cases(run: SimpleNamespace, device: str = "auto") -> tuple[list[Experiment], list[Case]]:
    """The experiments of a profile's settings ``run``, and what the networks of each move.

    Raises ConfigError or DataError for a molecule, a box or a σ that cannot be.
    """
    pairs = _molecules(run, device)
    if run.box:
        pairs.append(_water(run, device))
    return [e for e, _ in pairs], [c for _, c in pairs]
