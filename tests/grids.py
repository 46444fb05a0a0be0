"""Tiny grids of runs, for tests that are about the grid and not about what is learnt."""

from __future__ import annotations

from pathlib import Path

from tiny import molecules

import potkit
from potkit.experiments import experiment

TINY = {"name": "egnn", "preset": "small", "hidden": 8, "layers": 2, "radial": 4, "cutoff": 3.0}
DATA = molecules(40)


def grid(store: str | Path, **changes) -> experiment.Experiment:
    """2 seeds × (1 pretraining + 4 fine-tunings of 4 steps)."""
    config = potkit.TrainConfig(
        steps=4, batch_size=4, progress=False, device="cpu", checkpoint_every=2, validate_every=4
    )
    values = dict(
        model=TINY,
        train=DATA[:24],
        test=DATA[24:],
        labels=[10],
        pretrain_on=DATA[:24],
        seeds=[0, 1],
        store=store,
        longer="steps",
        objectives={"denoise": potkit.Denoise(sigma=0.1)},
        pretrain_config=config,
        finetune_config=config,
        variants={"frozen": {"like": "denoise", "freeze": 0.5}},
    )
    return experiment.Experiment(**{**values, **changes})


def numbers(table):
    """What must not depend on how, where and how often a grid was run: all but seconds."""
    table = table.drop(columns=["seconds", "pretrain_seconds"])
    return table.astype({"arm": str}).reset_index(drop=True)
