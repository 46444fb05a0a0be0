"""An experiment written down in YAML: what `potkit compare FILE` runs and what a stored result names as its origin.

    name: alkanes-to-3bpa
    model: {name: egnn, preset: small}
    pretrain_on: {data: ani1-alkanes, near_minimum: 6.0}        # a registered set or a file; limit in eV, optional
    train: {data: $POTKIT_REFERENCE_DATA/3bpa/train_300K.xyz}
    test: {data: $POTKIT_REFERENCE_DATA/3bpa/train_mixedT.xyz, without: $POTKIT_REFERENCE_DATA/3bpa/train_300K.xyz}
    labels: [50, 200]
    seeds: [0, 1, 2]
    arms:                                                       # name: objective and its settings
      denoise 0.1 Å: {objective: denoise, sigma: 0.1}
    pretrain: {steps: 4000, batch_size: 32}                     # TrainConfig
    finetune: {steps: 600, batch_size: 8}
    supervised: {energy: 1, forces: 10}                         # optional
    longer: time                                                # optional; time, steps or null
    vectors: {denoise 0.1 Å: gradient}                          # optional; read-out an arm is pretrained with
    parts: {denoise 0.1 Å: [backbone, energy_head]}             # optional; what an arm takes over (default: the backbone)
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from . import datasets, objectives
from .config import TrainConfig
from .datasets import splits
from .datasets.filters import near_minimum
from .errors import ConfigError, DataError
from .experiments import Experiment
from .structures import Structures


def named_or_file(data: str) -> Structures:
    """A registered set by its name, else the structures at a path; $VARIABLES of the environment are filled in."""
    path = os.path.expandvars(data)
    if "$" in path:
        raise DataError(f"{data}: set the environment variable it names")
    if path in set(datasets.names()["name"]):
        return datasets.load(path)
    return datasets.read(path)


class DataSpec(BaseModel):
    """A set by name or path ($VARIABLES are filled in), and which of its structures."""

    model_config = ConfigDict(extra="forbid")
    data: str
    near_minimum: float | None = None  # eV
    systems: list[str] | None = None
    limit: int | None = None  # at most so many structures, drawn with seed 0
    without: str | None = None  # leave out what is also in this set (same system and geometry): a test set must be unseen

    def load(self) -> Structures:
        """The structures. Raises DataError where a variable is not set, nothing is found or nothing is left."""
        found = named_or_file(self.data)
        if self.near_minimum is not None:
            found = near_minimum(found, self.near_minimum)
        if self.systems is not None:
            names = found.system_names()
            missing = [s for s in self.systems if s not in names]
            if missing:
                raise DataError(f"{self.data}: no system {missing[0]!r}; there are {', '.join(names[:10])} …")
            found = found[[names[i] in self.systems for i in found.system]]
        if self.without is not None:
            leaked = splits.leakage(named_or_file(self.without), found)["b"]
            found = found[np.setdiff1d(np.arange(len(found)), leaked)]
        if self.limit is not None and self.limit < len(found):
            found = found.split((self.limit,), seed=0)[0]
        if not len(found):
            raise DataError(f"{self.data}: no structure is left after the filters")
        return found


class ExperimentSpec(BaseModel):
    """The fields of the module's example; `experiment` turns them into an `Experiment`."""

    model_config = ConfigDict(extra="forbid")
    name: str
    model: dict[str, Any]
    train: DataSpec
    test: DataSpec
    labels: list[int]
    arms: dict[str, dict[str, Any]] = {}
    pretrain_on: DataSpec | None = None
    seeds: list[int] = [0, 1, 2]
    pretrain: dict[str, Any] = {}
    finetune: dict[str, Any] = {}
    supervised: dict[str, Any] = {}
    longer: str | None = "time"
    valid_fraction: float = 0.1
    vectors: dict[str, str] = {}
    parts: dict[str, list[str]] = {}

    def experiment(self, store: str | Path = "runs/store", jobs: int = 1, **changes: Any) -> Experiment:
        """Load the data and check every setting; raises ConfigError or DataError naming what is wrong."""
        if "name" not in self.model:
            raise ConfigError("model: give its name, such as {name: egnn, preset: small}")
        values = dict(
            model=self.model, labels=self.labels, seeds=self.seeds, longer=self.longer, valid_fraction=self.valid_fraction,
            objectives={arm: objectives.from_dict(v) for arm, v in self.arms.items()}, vectors=self.vectors, parts=self.parts,
            pretrain_config=TrainConfig(**self.pretrain), finetune_config=TrainConfig(**self.finetune),
            supervised=objectives.from_dict({"objective": "supervised", **self.supervised}),
        )  # fmt: skip
        train, test = self.train.load(), self.test.load()
        pretrain_on = self.pretrain_on.load() if self.pretrain_on else None
        built = Experiment(train=train, test=test, pretrain_on=pretrain_on, store=store, jobs=jobs, **{**values, **changes})
        built.build(0)  # a misspelt model option stops here, not in the first run
        return built


def read(path: str | Path) -> ExperimentSpec:
    """The experiment in a YAML file. Raises ConfigError naming the file and everything wrong in it."""
    try:
        values = yaml.safe_load(Path(path).read_text())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type(values).__name__}")
    try:
        return ExperimentSpec(**values)
    except ValidationError as error:
        problems = [f"{'.'.join(map(str, p['loc']))}: {p['msg'].lower()}" for p in error.errors()]
        raise ConfigError(f"{path}: {'; '.join(problems)}") from None
