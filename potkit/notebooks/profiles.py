"""Settings that several notebooks share, so that one finds the other's finished runs in the run
store; see `notebooks.settings`.

`MOLECULES` belongs to notebooks 02, 04, 05 and 07 (denoise), `WATER` to 03 and 06 (masked), `RMD17`
to 06. quick is made for minutes on two cores: a small network and few steps, in which a difference
shows at the same fine-tuning budget; σ is what `noise.propose_sigma` reads from the structures of
`ani-mini` alone (0.12 Å), rounded to the nearest value of notebook 02's scan. paper has the papers'
networks, data sets, epochs and rates: denoise paper §2.5 and §3, masked paper §2.5 and Table 1.
Entries of ``pretrain`` and ``finetune`` are those of `TrainConfig`; ``data`` are registered sets or
files.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from .. import models
from ..errors import PotkitError
from ..experiments import yaml_form
from ..experiments.experiment import Experiment
from ..objectives import Supervised
from ..structures.store import Structures, concatenate
from ..training.config import TrainConfig
from . import runner

MOLECULES: dict[str, dict[str, Any]] = {
    "smoke": dict(
        model="egnn",
        preset="small",
        sigma=0.1,
        seeds=[0, 1],
        networks=dict(
            egnn=dict(hidden=16, layers=2, cutoff=4.0, vector="gradient"),
            painn=dict(hidden=8, layers=1, cutoff=3.0, vector="gradient"),
        ),
        data="ani-mini",
        pretrain_data=[],
        n_pretrain=200,
        n_test=40,
        parts=[0.8, 0.2],
        split="system",
        pretrain=dict(steps=2, batch_size=8, lr=2e-3),
        finetune=dict(steps=2, batch_size=8, lr=5e-3),
        supervised=dict(energy=1, forces=100, loss_function="mse"),
        longer="steps",
        jobs=1,
    ),
    "quick": dict(
        model="egnn",
        preset="small",
        sigma=0.1,
        seeds=[0, 1, 2],
        networks=dict(
            egnn=dict(hidden=32, layers=2, cutoff=4.0, vector="gradient"),
            painn=dict(hidden=32, layers=2, cutoff=4.0, vector="gradient"),
        ),
        data="ani-mini",
        pretrain_data=[],
        n_pretrain=8000,
        n_test=300,
        parts=[0.8, 0.2],
        split="system",
        pretrain=dict(steps=400, batch_size=16, lr=5e-3, validate_every=200, eval_batch_size=256),
        finetune=dict(steps=200, batch_size=8, lr=5e-3, eval_batch_size=256),
        supervised=dict(energy=1, forces=100, loss_function="mse"),
        longer="steps",
        jobs=2,
    ),
    "paper": dict(
        model="egnn",
        preset="denoise-paper",
        sigma=0.2,
        seeds=[0, 1, 2],
        networks=dict(schnet={}, se3_transformer={}, egnn={}, torchmd_et={}),
        data="ani-1x",
        pretrain_data=["ani-1", "ani-1x"],
        n_pretrain=None,
        n_test=None,
        parts=[0.9, 0.1],
        split="structure-within-system",
        pretrain=dict(epochs=5, batch_size=256, lr=2e-4, warmup=0.14, flat=0.06),
        finetune=dict(epochs=10, batch_size=256, lr=2e-4, warmup=0.03, flat=0.07),
        supervised=dict(energy=1, forces=0, loss_function="mse"),
        longer="time",
        jobs=1,
    ),
}

WATER: dict[str, dict[str, Any]] = {
    "smoke": dict(
        model="egnn",
        preset="small",
        seeds=[0, 1],
        networks=dict(
            egnn=dict(hidden=8, layers=1, radial=8, cutoff=2.5, vector="gradient"),
            gns=dict(
                hidden=8, layers=1, radial=4, cutoff=2.5, vector="gradient", forces="gradient"
            ),
        ),
        data="water-mini",
        n_pretrain=40,
        n_test=6,
        parts=[0.8, 0.2],
        split="system",
        pretrain=dict(steps=2, batch_size=2, lr=2e-3),
        finetune=dict(steps=2, batch_size=2, lr=5e-3),
        supervised=dict(energy=1, forces=100, loss_function="mse"),
        longer="steps",
        jobs=1,
    ),
    "quick": dict(
        model="egnn",
        preset="small",
        seeds=[0, 1, 2],
        networks=dict(
            egnn=dict(hidden=24, layers=2, radial=8, cutoff=3.4, vector="gradient"),
            gns=dict(hidden=32, layers=2, cutoff=3.4, vector="gradient", forces="gradient"),
        ),
        data="water-mini",
        n_pretrain=None,
        n_test=60,
        parts=[0.8, 0.2],
        split="system",
        pretrain=dict(steps=250, batch_size=2, lr=5e-3, validate_every=125, eval_batch_size=16),
        finetune=dict(steps=150, batch_size=2, lr=5e-3, validate_every=30, eval_batch_size=16),
        supervised=dict(energy=1, forces=100, loss_function="mse"),
        longer="steps",
        jobs=2,
    ),
    "paper": dict(
        model="egnn",
        preset="masked-paper",
        seeds=[0, 1, 2, 3],
        networks=dict(egnn={}, gns={}, forcenet={}),
        data="rpbe-water",
        n_pretrain=None,
        n_test=None,
        parts=[0.9, 0.1],
        split="structure",
        pretrain=dict(epochs=100, batch_size=16, lr=1e-4, warmup=0.0, flat=0.0, weight_decay=1e-4),
        finetune=dict(epochs=300, batch_size=16, lr=1e-4, warmup=0.0, flat=0.0, weight_decay=1e-4),
        supervised=dict(energy=1, forces=500, loss_function="l1"),
        longer="time",
        jobs=1,
    ),
}


# Table 2 of the masked paper: pretrained on all molecules together, fine-tuned one by one.
RMD17: dict[str, dict[str, Any]] = {
    "smoke": dict(
        data="rmd17-mini",
        molecules=["ethanol"],
        network=dict(name="egnn", hidden=8, layers=1, cutoff=3.0, vector="gradient"),
        ratio=0.5,
        sigma=0.1,
        parts=[0.8, None],
        n_pretrain=60,
        n_test=8,
        labels=[10],
        valid_fraction=0.1,
        pretrain=dict(steps=2, batch_size=8),
        finetune=dict(steps=2, batch_size=8),
        supervised=dict(energy=1, forces=100, loss_function="mse"),
    ),
    "quick": dict(
        data="rmd17-mini",
        molecules=["ethanol", "aspirin"],
        network=dict(name="egnn", hidden=32, layers=2, cutoff=4.0, vector="gradient"),
        ratio=0.5,
        sigma=0.1,
        parts=[0.8, None],
        n_pretrain=3000,
        n_test=60,
        labels=[50],
        valid_fraction=0.1,
        pretrain=dict(steps=300, batch_size=16, lr=5e-3, validate_every=150, eval_batch_size=128),
        finetune=dict(steps=150, batch_size=8, lr=5e-3, eval_batch_size=64),
        supervised=dict(energy=1, forces=100, loss_function="mse"),
    ),
    "paper": dict(
        data="rmd17",
        molecules=[
            "uracil",
            "benzene",
            "naphthalene",
            "aspirin",
            "malonaldehyde",
            "ethanol",
            "toluene",
            "salicylic",
        ],
        network=dict(name="egnn", preset="masked-paper"),
        ratio=0.5,
        sigma=0.5,
        parts=[51_000, None],
        n_pretrain=None,
        n_test=None,
        labels=[51_000],
        valid_fraction=1 / 51,
        pretrain=dict(epochs=15, batch_size=32, lr=1e-4, min_lr=5e-5, warmup=0.0, flat=0.0),
        finetune=dict(epochs=200, batch_size=32, lr=1e-4, min_lr=5e-5, warmup=0.0, flat=0.0),
        supervised=dict(energy=15, forces=40, loss_function="l1"),
    ),
}


def network(run: SimpleNamespace, name: str | None = None) -> dict[str, Any]:
    """The network ``name`` (default: ``run.model``) as an `Experiment` takes it, with the
    profile's options; it is built once as a check.
    """
    name = name or run.model
    chosen = {"name": name, "preset": run.preset} | run.networks.get(name, {})
    models.build(**chosen)
    return chosen


def at_most(structures: Structures, count: int | None, seed: int = 0) -> Structures:
    """``structures``, or ``count`` of them drawn at random where there are more; all of them for
    None.
    """
    return (
        structures
        if count is None or count >= len(structures)
        else structures.split((count,), seed=seed)[0]
    )


def common(structures: Structures, share: float) -> Structures:
    """The structures made of elements that at least ``share`` of all structures have: few labels
    cannot teach a rare element.
    """
    owner = np.repeat(np.arange(len(structures)), structures.n_atoms)
    kept = [
        z
        for z in structures.elements
        if len(np.unique(owner[structures.z == z])) >= share * len(structures)
    ]
    rows = np.setdiff1d(np.arange(len(structures)), owner[~np.isin(structures.z, kept)])
    return structures if len(rows) == len(structures) else structures[rows]


def complete(runs: pd.DataFrame) -> pd.DataFrame:
    """``runs`` as `experiments.run` returned them. Raises PotkitError with the first reason if
    any failed; finished ones stay in the store.
    """
    failed = runs[runs["status"] != "ok"]
    if len(failed):
        first = failed.iloc[0]
        raise PotkitError(
            f"{len(failed)} of {len(runs)} runs failed; the first, {first['arm']}: {first['error']}"
        )
    return runs


def parts(
    run: SimpleNamespace, structures: Structures | None = None
) -> tuple[Structures, Structures]:
    """(pool, test) of ``structures`` (default: the set ``run.data``) by ``run.parts`` and
    ``run.split``, ``run.n_test`` of them to test on.
    """
    structures = yaml_form.named_or_file(run.data) if structures is None else structures
    pool, test = structures.split(tuple(run.parts), seed=0, by=run.split)
    return pool, at_most(test, run.n_test)


def unlabelled(run: SimpleNamespace, pool: Structures) -> Structures:
    """What ``run`` pretrains on: the sets ``run.pretrain_data``, or ``pool`` if none is named
    (then test structures stay unseen).
    """
    named = getattr(run, "pretrain_data", [])
    whole = concatenate([yaml_form.named_or_file(name) for name in named]) if named else pool
    return at_most(whole, run.n_pretrain)


def budgets(labels: Sequence[float | int], structures: Structures) -> list[int]:
    """Label budgets as numbers of structures: a float is a share of ``structures``."""
    return [round(x * len(structures)) if isinstance(x, float) else int(x) for x in labels]


def experiment(run: SimpleNamespace, device: str = "auto", **given: Any) -> Experiment:
    """The experiment that a notebook's settings describe; what is ``given`` goes before them.

    From ``run`` come label budgets, seeds, the settings of pretraining and fine-tuning, the loss,
    how scratch-longer is counted, and the number of processes; finished runs lie in the notebooks'
    run store. ``given`` are further arguments of `Experiment`: model, train, test, objectives, …
    """
    from_settings = dict(
        labels=budgets(run.labels, given["train"]),
        seeds=run.seeds,
        pretrain_config=TrainConfig(**run.pretrain, device=device),
        finetune_config=TrainConfig(**run.finetune, device=device),
        supervised=Supervised(**run.supervised),
        longer=run.longer,
        store=runner.store(),
        jobs=run.jobs,
    )
    return Experiment(**from_settings | given)
