"""Pretrained weights of an experiment's finished runs: each pretraining with a card that says what
was measured after fine-tuning it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..structures.outputs import read_json
from ..training import pretrained
from .experiment import Experiment
from .tasks import Task, finetune_folder, pretrain_folder

# column of a run's errors -> its words on a card
ERRORS = {"forces_mae": "force MAE (eV/Å)", "energy_mae": "energy MAE (eV)"}


UNFINISHED = "its runs are not finished"  # why weights were not made


def name_of(experiment: Experiment, arm: str) -> str:
    """What the weights of an arm are called: network, preset and arm."""
    network, preset = experiment.model["name"], experiment.model.get("preset", "small")
    return f"{network}-{preset}-{arm}"


def pack(
    experiments: Sequence[Experiment],
    command: str,
    commit: str,
    out: str | Path | None = None,
    target: str | None = None,
) -> tuple[list[pretrained.Card], dict[str, str]]:
    """Make weights of the first seed of each arm that has a pretraining, from the runs in the store
    of ``experiments``.

    ``command`` and ``commit`` made the runs. ``target``: what the set that is fine-tuned on is
    called on a card; default: its name. Returns the new cards, and why others were not made, by
    name. Raises ConfigError where no experiment pretrains.
    """
    made: list[pretrained.Card] = []
    left: dict[str, str] = {}
    out = Path(out or pretrained.folder())
    if not any(e.objectives for e in experiments):
        raise ConfigError("experiment: no arm has a pretraining whose weights could be packed")
    for experiment in experiments:
        seed = experiment.seeds[0]
        for arm in experiment.objectives:
            name = name_of(experiment, arm)
            run = pretrain_folder(experiment, arm, seed)
            if (out / f"{name}.json").exists():
                left[name] = "is there already"
                continue
            errors = _errors(experiment, arm, seed, target)
            if errors is None or not (run / "summary.json").is_file():
                left[name] = UNFINISHED
                continue
            parts = experiment.arms[arm].parts
            card = pretrained.pack(run, name, command, commit, out, fine_tuned=errors, parts=parts)
            made.append(card)
    return made, left


def _errors(
    experiment: Experiment, arm: str, seed: int, target: str | None
) -> dict[str, float] | None:
    """Errors of an arm after fine-tuning, by what they are; None where a run is not finished."""
    where = target or experiment.train.info.get("name", "unnamed")
    errors: dict[str, float] = {}
    for labels in experiment.labels:
        folder = finetune_folder(experiment, Task("finetune", arm, seed, labels))
        path = folder / f"test-{experiment.test.fingerprint()}.json"
        if not path.is_file():
            return None
        row: dict[str, Any] = read_json(path)
        for column, words in ERRORS.items():
            errors[f"{where}, {labels} labels, {words}"] = round(float(row[column]), 6)
    return errors
