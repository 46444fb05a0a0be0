"""Settings that several notebooks share, so that one finds the other's finished runs in the run
store; see `notebooks.settings`.

`MOLECULES` belongs to notebooks 02, 04, 05 and 07 (denoise), `WATER` to 03 and 06 (masked), `RMD17`
to 06; `SEARCHED` has steps and rates of 02, 03, 06 and 07 in quick.

quick is made for minutes on two cores: a small network and few steps. Its σ of 0.1 Å is the value
of notebook 02's scan nearest to what `noise.propose_sigma` reads from the structures that
`ani-mini` has to pretrain on (0.125 Å for a share of 0.9, a choice; 0.06 to 0.19 Å for shares of
0.7 to 0.95). It was fixed when an earlier scan on notebook 02's test molecules was known, so gains
of it that are measured on these may flatter a little; notebook 02 itself chooses on validation
molecules.

"scratch-longer" is counted in operations in all of them, but for the masked paper's own arm of its
Fig. 2, which is counted in epochs.

paper has the papers' networks, data sets, splits, epochs, rates, optimizers and normalisation of
labels: denoise paper (arXiv 2303.02216) §2.5 and §3, masked paper (arXiv 2402.15921) §2.5, Table 1
and Table 2, and their published configurations. What is nowhere stated stands in ``guesses``; where
paper and code contradict each other, or where the choice is ours, ``remarks`` says which is taken.
Both are tables from the setting (``by_set.md22.finetune.epochs``) to the reason.

Entries of ``pretrain`` and ``finetune`` are those of `TrainConfig`; ``data`` are registered sets or
files. ``parts`` are shares to learn from and to test on, or to train on, to validate on and to test
on; ``by_set`` has, by the name of a data set, what is different for it: ``pretrain`` and
``finetune`` (added), ``parts`` and ``split`` (instead), or ``published``, the names of the parts
that were published with it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from .. import models
from ..datasets import registry, splits
from ..errors import PotkitError
from ..experiments import choosing, yaml_form
from ..experiments import experiment as experiments
from ..experiments.experiment import Experiment
from ..experiments.given_validation import GivenValidation
from ..objectives import Objective, Supervised
from ..structures.store import Structures, concatenate
from ..training.config import TrainConfig
from . import runner

LEARN = ("train", "valid")  # the parts of a pool that is split for good

# what the denoise paper does with energies that it takes as they are stored; 0.3 epochs of warm-up
# and 0.7 at full rate
_AS_STORED = dict(epochs=50, warmup=0.006, flat=0.014, references="none")

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
        rounding="drawn",
        pretrain=dict(steps=2, batch_size=8, lr=2e-3),
        finetune=dict(steps=2, batch_size=8, lr=5e-3),
        supervised=dict(energy=1, forces=100, loss_function="mse"),
        longer="operations",
        jobs=1,
        by_set={},
        guesses={},
        remarks={},
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
        rounding="drawn",
        pretrain=dict(steps=400, batch_size=16, lr=5e-3, validate_every=200, eval_batch_size=256),
        finetune=dict(steps=200, batch_size=8, lr=5e-3, eval_batch_size=256),
        supervised=dict(energy=1, forces=100, loss_function="mse"),
        longer="operations",
        jobs=2,
        by_set={},
        guesses={},
        remarks={},
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
        parts=[0.8, 0.1, 0.1],
        split="structure-within-system",
        rounding="floor",
        pretrain=dict(
            epochs=5,
            batch_size=256,
            lr=2e-4,
            warmup=0.14,
            flat=0.06,
            clip=None,
            validate_epochs=1,
        ),
        # ANI: isolated atoms taken off, then mean and standard deviation of the training part
        finetune=dict(
            epochs=10,
            batch_size=256,
            lr=2e-4,
            warmup=0.03,
            flat=0.07,
            clip=None,
            validate_epochs=1,
            references="isolated",
            normalization="mean-std",
        ),
        supervised=dict(energy=1, forces=0, loss_function="mse"),
        longer="operations",
        jobs=1,
        by_set={
            "iso17": dict(published=["train", "valid", "test_other"], finetune=_AS_STORED),
            "spice-1": dict(finetune=_AS_STORED),
            "md22": dict(finetune=_AS_STORED),
        },
        guesses={
            "by_set.md22.finetune.epochs": "the paper has epochs of its own for each molecule, in "
            "its Supplementary Information S2; here as for SPICE and ISO17",
            "finetune.batch_size": "stated for all but MD22, which has settings for each molecule",
            "finetune.lr": "stated for all but MD22, which has settings for each molecule",
        },
        remarks={
            "seeds": "ours; the paper has one run of each, repeated in S6",
            "sigma": "the target is −ε, so that −∂E/∂x is a force; the published code has +ε, "
            "Denoise(faithful=True). The loss is divided by σ², in the published code it is not, "
            "which AdamW without weight decay and clipping does not see",
            "pretrain_data": "the paper's: all conformations, those that fine-tuning tests on "
            "among them; potkit reports them as leakage",
            "pretrain.warmup": "the published configuration's: 0.7 epochs, then 0.3 at full rate; "
            "the rate rises from 0, in the published code from min_lr",
            "finetune.warmup": "the published configuration's: 0.3 epochs, then 0.7 at full rate; "
            "the rate rises from 0, in the published code from min_lr",
            "networks": "message-passing weights are transferred, as the paper says; its code "
            "takes over the energy head too. Networks see elements; the published code has "
            "formal charges as well, which matters on SPICE",
            "parts": "a label budget counts validation structures and takes its share of them; in "
            "the paper's Fig. 4 smaller budgets keep the whole validation part",
            "longer": "ours; the paper has no such arm",
        },
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
        rounding="drawn",
        normalize=True,
        pretrain=dict(steps=2, batch_size=2, lr=2e-3),
        finetune=dict(steps=2, batch_size=2, lr=5e-3),
        supervised=dict(energy=1, forces=100, loss_function="mse"),
        longer="operations",
        jobs=1,
        by_set={},
        guesses={},
        remarks={},
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
        rounding="drawn",
        normalize=True,
        pretrain=dict(steps=250, batch_size=2, lr=5e-3, validate_every=125, eval_batch_size=16),
        finetune=dict(steps=150, batch_size=2, lr=5e-3, validate_every=30, eval_batch_size=16),
        supervised=dict(energy=1, forces=100, loss_function="mse"),
        longer="operations",
        jobs=2,
        by_set={},
        guesses={},
        remarks={},
    ),
    "paper": dict(
        model="egnn",
        preset="masked-paper",
        seeds=[0, 1, 2, 3],
        networks=dict(egnn={}, gns={}, forcenet={}),
        data="rpbe-water",
        n_pretrain=None,
        n_test=None,
        parts=[0.81, 0.09, 0.1],
        split="structure",
        rounding="floor",
        normalize=False,
        pretrain=dict(
            epochs=100,
            batch_size=16,
            lr=1e-4,
            warmup=0.0,
            flat=0.0,
            weight_decay=1e-4,
            clip=None,
            validate_epochs=1,
            optimizer="adam",
            valid_fraction=0.1,
        ),
        finetune=dict(
            epochs=300,
            batch_size=16,
            lr=1e-4,
            warmup=0.0,
            flat=0.0,
            weight_decay=1e-4,
            clip=None,
            validate_epochs=1,
            references="none",
            normalization="per-atom-mean-std",
        ),
        supervised=dict(energy=1, forces=500, loss_function="l1"),
        # 400 epochs on RPBE and 75 on TIP3P, the paper's Fig. 2
        longer="steps",
        jobs=1,
        # the name that its recipe gives TIP3P water, also at the paper's size
        by_set={
            "tip3p-mini": dict(
                parts=[0.8, 0.1, 0.1],
                split="system",  # a system is a seed
                pretrain=dict(epochs=25, batch_size=10),
                finetune=dict(epochs=50, batch_size=10, normalization="mean-std"),
            ),
        },
        guesses={},
        remarks={
            "preset": "cutoff 3.4 Å, the paper's; the published configurations have 3.5 Å",
            "pretrain.optimizer": "the published code's, with weight decay as an L2 term; the "
            "paper says AdamW",
            "pretrain.valid_fraction": "a tenth of what there is to learn from, drawn anew; the "
            "published code validates both stages on the same tenth",
            "finetune.lr": "falls to 1e-7 as the paper says; the published code has 5e-5",
            "finetune.normalization": "the mean energy per atom is taken off for every atom; the "
            "published code takes it off once from the energy of the whole structure",
            "normalize": "the denoise loss is not divided by σ², as in the published code; with "
            "weight decay as an L2 term that matters",
            "longer": "the paper's Fig. 2; its other figures and tables have no such arm",
        },
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
        split="block",
        n_pretrain=60,
        n_test=8,
        labels=[10],
        valid_fraction=0.1,
        pretrain=dict(steps=2, batch_size=8),
        finetune=dict(steps=2, batch_size=8),
        supervised=dict(energy=1, forces=100, loss_function="mse"),
        guesses={},
        remarks={},
    ),
    "quick": dict(
        data="rmd17-mini",
        molecules=["ethanol", "aspirin"],
        network=dict(name="egnn", hidden=32, layers=2, cutoff=4.0, vector="gradient"),
        ratio=0.5,
        sigma=0.1,
        parts=[0.8, None],
        split="block",
        n_pretrain=3000,
        n_test=60,
        labels=[50],
        valid_fraction=0.1,
        pretrain=dict(steps=300, batch_size=16, lr=5e-3, validate_every=150, eval_batch_size=128),
        finetune=dict(steps=150, batch_size=8, lr=5e-3, eval_batch_size=64),
        supervised=dict(energy=1, forces=100, loss_function="mse"),
        guesses={},
        remarks={},
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
        split="structure-within-system",
        n_pretrain=None,
        n_test=None,
        labels=[51_000],
        valid_fraction=1 / 51,
        pretrain=dict(
            epochs=15,
            batch_size=32,
            lr=1e-4,
            min_lr=5e-5,
            warmup=0.0,
            flat=0.0,
            weight_decay=1e-4,
            clip=None,
            validate_epochs=1,
            optimizer="adam",
            valid_fraction=1 / 51,
        ),
        finetune=dict(
            epochs=200,
            batch_size=32,
            lr=1e-4,
            min_lr=5e-5,
            warmup=0.0,
            flat=0.0,
            weight_decay=1e-4,
            clip=None,
            validate_epochs=1,
            optimizer="adam",
            references="none",
            normalization="mean-std",
        ),
        supervised=dict(energy=15, forces=40, loss_function="l1"),
        guesses={
            "network.preset": "its cutoff of 3.4 Å is stated for water; for rMD17 none is stated",
            "pretrain.weight_decay": "in the published configurations; the paper states none for "
            "rMD17",
            "finetune.weight_decay": "in the published configurations; the paper states none for "
            "rMD17",
        },
        remarks={
            "finetune.optimizer": "the paper's Adam; the published code fine-tunes with AdamW",
            "pretrain.valid_fraction": "1 000 of 51 000 structures of a molecule, drawn anew; the "
            "published code validates both stages on the same ones",
            "sigma": "ours, as for water; the paper has no denoise arm on rMD17",
        },
    ),
}


# Steps and rates of quick in notebooks 02 and 07, 03 and 06, and of 06 on rMD17: see `searched`.
# The rate of fine-tuning is one for all arms: of rates a factor of two apart one of its neighbours
# is the best of scratch, scratch-longer and denoise (on water of masked, too), on seeds that no
# notebook reports (data/studies/quick-rates.yaml).
# EGNN's steps are compiled, two to three times as fast.
SEARCHED: dict[str, dict[str, Any]] = {
    "molecules": dict(
        pretrain=dict(steps=600, batch_size=16, lr=2e-3, validate_every=300, eval_batch_size=256),
        finetune=dict(steps=600, batch_size=4, lr=5e-3, eval_batch_size=256),
    ),
    "water": dict(
        pretrain=dict(steps=400, batch_size=2, lr=2e-3, validate_every=200, eval_batch_size=16),
        finetune=dict(steps=400, batch_size=2, lr=5e-3, validate_every=40, eval_batch_size=16),
    ),
    "rmd17": dict(
        pretrain=dict(steps=600, batch_size=16, lr=2e-3, validate_every=300, eval_batch_size=128),
        finetune=dict(steps=600, batch_size=4, lr=5e-3, eval_batch_size=64),
    ),
}
# networks of which weights ship, as these were pretrained (data/studies/weights.yaml)
SHIPPED = {
    name: dict(cutoff=4.0, vector="gradient")
    for name in ("egnn", "schnet", "torchmd_et", "painn", "nequip")
}
COMPILED = ["egnn"]  # networks that have kernels, of those in these notebooks


def searched(which: str) -> dict[str, dict[str, Any]]:
    """The profiles of ``which`` ("molecules", "water" or "rmd17") with the steps and rates of
    `SEARCHED` in quick, where steps of the networks `COMPILED` are compiled.
    """
    common = {"molecules": MOLECULES, "water": WATER, "rmd17": RMD17}[which]
    plain = {profile: settings | {"compiled": []} for profile, settings in common.items()}
    return plain | {"quick": common["quick"] | SEARCHED[which] | {"compiled": COMPILED}}


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


def metric(run: SimpleNamespace) -> str:
    """What the notebook's comparisons are about: forces, or energies where nothing else is
    trained.
    """
    return "forces_mae" if run.supervised["forces"] else "energy_mae"


def choose(
    run: SimpleNamespace, experiment: Experiment, candidates: Mapping[str, Objective]
) -> tuple[choosing.Choice, pd.DataFrame]:
    """The best of ``candidates`` on molecules held out from the pool of ``experiment``, and the
    runs that say so; see `choosing.choose`. The test set has no part in it.

    Label budgets that are shares are those of what is left of the pool. Raises as `choosing.choose`
    does, and where a run failed.
    """
    given = {f.name: getattr(experiment, f.name) for f in dataclasses.fields(Experiment)}
    rest, _ = choosing.validation_molecules(experiment.train)
    plain = Experiment(**given | {"labels": budgets(run.labels, rest)})
    trial = choosing.on_validation(plain, candidates, limit=run.n_test)
    runs = complete(experiments.run(trial))
    return choosing.ranked(runs, list(candidates), metric(run), trial), runs


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


def for_set(run: SimpleNamespace, structures: Structures, name: str) -> Any:
    """The setting ``name`` of ``run`` for ``structures``: that of their data set in ``run.by_set``,
    if it has one there; entries of a table are added.
    """
    common_to_all = getattr(run, name)
    own = getattr(run, "by_set", {}).get(structures.info.get("name"), {})
    if name not in own:
        return common_to_all
    return common_to_all | own[name] if isinstance(own[name], dict) else own[name]


def pool_and_test(
    run: SimpleNamespace, structures: Structures, split: str | None = None
) -> tuple[Structures, Structures]:
    """(pool, test) of ``structures`` by the settings ``parts``, ``rounding`` and ``split`` (or the
    ``split`` given) of ``run``, or by the parts that were published with their data set.

    Where there are three parts the pool is what to train on, then what to validate on;
    `experiment` keeps them apart.
    """
    name = structures.info.get("name")
    own = getattr(run, "by_set", {}).get(name, {})
    if "published" in own:
        published = registry.published_split(name, structures)
        rows = [published[part] for part in own["published"]]
    else:
        rows = splits.split(
            structures,
            tuple(for_set(run, structures, "parts")),
            by=own.get("split", split or run.split),
            rounding=getattr(run, "rounding", "drawn"),
        )
    *learn, test = rows
    pool = structures[np.concatenate(learn)]
    if len(learn) == 2:
        splits.mark_parts(pool, dict(zip(LEARN, map(len, learn), strict=True)))
    return pool, structures[test]


def parts(
    run: SimpleNamespace, structures: Structures | None = None
) -> tuple[Structures, Structures]:
    """`pool_and_test` of ``structures`` (default: the set ``run.data``), ``run.n_test`` of them to
    test on.
    """
    structures = yaml_form.named_or_file(run.data) if structures is None else structures
    pool, test = pool_and_test(run, structures)
    return pool, at_most(test, run.n_test)


def unlabelled(run: SimpleNamespace, pool: Structures) -> Structures:
    """What ``run`` pretrains on: the sets ``run.pretrain_data``, or ``pool`` if none is named
    (then test structures stay unseen).
    """
    named = getattr(run, "pretrain_data", [])
    whole = concatenate([yaml_form.named_or_file(n) for n in named], "drop") if named else pool
    return at_most(whole, run.n_pretrain)


def budgets(labels: Sequence[float | int], structures: Structures) -> list[int]:
    """Label budgets as numbers of structures: a float is a share of ``structures``."""
    return [round(x * len(structures)) if isinstance(x, float) else int(x) for x in labels]


def experiment(run: SimpleNamespace, device: str = "auto", **given: Any) -> Experiment:
    """The experiment that a notebook's settings describe; what is ``given`` goes before them.

    From ``run`` come label budgets, seeds, the settings of pretraining and fine-tuning (those of
    their data set, where ``run.by_set`` has some; compiled for the networks ``run.compiled``), the
    loss, how scratch-longer is counted, and the number of processes; finished runs lie in the
    notebooks' run store. ``given`` are further arguments of `Experiment`: model, train, test,
    objectives, … Of a pool in two parts, as `pool_and_test` makes it, the second validates.
    """
    train = given["train"]
    pretrained_on = train if given.get("pretrain_on") is None else given["pretrain_on"]
    stages = [for_set(run, pretrained_on, "pretrain"), for_set(run, train, "finetune")]
    if given.get("model", {}).get("name") in getattr(run, "compiled", []):
        stages = [{"compile": True} | stage for stage in stages]
    pretraining, finetuning = (TrainConfig(**stage, device=device) for stage in stages)
    from_settings = dict(
        labels=budgets(run.labels, train),
        seeds=run.seeds,
        pretrain_config=pretraining,
        finetune_config=finetuning,
        supervised=Supervised(**run.supervised),
        longer=run.longer,
        store=runner.store(),
        jobs=run.jobs,
    )
    known = train.info.get("parts", {}).get("rows", {})
    if tuple(known) != LEARN:
        return Experiment(**from_settings | given)
    rows = splits.parts(train)[LEARN[1]]
    return GivenValidation(**from_settings | given, valid_rows=rows)
