"""An experiment written down in YAML: what `potkit compare FILE` runs and what a stored result
names as its origin.

    name: alkanes-to-3bpa
    model: {name: egnn, preset: small}
    # a registered set or a file; limit in eV, optional
    pretrain_on: {data: ani1-alkanes, near_minimum: 6.0}
    # or {data: ani-mini, part: {fractions: [0.8, 0.2], by: system, index: 0}}: see SplitPart
    # or {data: iso17, published: train}: a part that was published with the set
    # or {data: [ani-1, ani-1x]}: several sets together
    train: {data: $POTKIT_REFERENCE_DATA/3bpa/train_300K.xyz}
    # or a file whose names and units are given: {data: my.xyz, read: {energy_key: E_pbe,
    # energy_unit: kcal/mol}}, see `potkit.read`
    # optional: what validates; else valid_fraction (0.1) of each label budget, drawn at random or,
    # with valid_by, from structures that a split by structure-within-system, system … set aside
    valid: {data: iso17, published: valid}
    test:
      data: $POTKIT_REFERENCE_DATA/3bpa/train_mixedT.xyz
      without: $POTKIT_REFERENCE_DATA/3bpa/train_300K.xyz
      # optional; what only the order of the set's structures says: a column, and its values with
      # the number of successive structures that have each. Errors are broken down by it
      groups: {temperature: {300 K: 167, 600 K: 167, 1200 K: 166}}
    # whole numbers, or shares such as 0.05 of all there is to train and validate on (1.0: all)
    labels: [50, 200]
    seeds: [0, 1, 2]
    # optional; draws of labels nested in each seed's pretraining
    draws: 1
    # optional; the contrast declared before the runs: with scratch, scratch-longer or another arm
    primary: {arm: denoise 0.1 Å, against: scratch-longer, metric: forces_mae}
    # name: objective and its settings; or a variant (see potkit.experiments.arms)
    # the read-out it is pretrained with (vector), parts that are taken over, and an arm whose
    # pretraining it goes on from (after) may stand there too
    arms:
      denoise 0.1 Å: {objective: denoise, sigma: 0.1}
      cheap labels: {objective: supervised, parts: [backbone, energy_head]}
      then denoise: {objective: denoise, sigma: 0.1, vector: gradient, after: cheap labels}
      # no pretraining here: shipped weights (`potkit weights list`), a run's folder or a file
      shipped: {weights: egnn-small-denoise}
      frozen first: {like: denoise 0.1 Å, freeze: 0.3}
      layer-wise: {like: denoise 0.1 Å, layer_decay: 0.7}
    pretrain: {steps: 4000, batch_size: 32}            # TrainConfig
    finetune: {steps: 600, batch_size: 8, references: isolated, normalization: mean-std}
    supervised: {energy: 1, forces: 10}                # optional
    # optional; what scratch-longer's further steps are counted in: operations, time, steps or null
    longer: operations
    # optional; settings of fine-tuning chosen for each arm: see potkit.experiments.search
    search: {lr: [1.0e-3, 3.0e-3]}
    tuning_seeds: [100, 101]
    search_at: 50
    search_beyond: 2                                   # optional; values beyond an end that is best
    valid_min: 5                                       # optional; see Experiment
    convergence: true                                  # optional; scratch with twice the steps, too
    threads: 1                                         # optional; of each run, on a CPU
    # optional; read-out an arm is pretrained with
    vectors: {denoise 0.1 Å: gradient}
    # optional; what an arm takes over (default: the backbone)
    parts: {denoise 0.1 Å: [backbone, energy_head]}
    # optional; why a setting is as it is, by its name; kept with the results
    notes: {finetune.steps: a guess}
    # optional; a column each, all combinations, with what differs from above: settings are added to
    # pretrain, finetune, supervised, arms, vectors, parts and notes, all else is replaced
    grid:
      network:
        egnn: {}
        et: {model: {name: torchmd_et, preset: small}, finetune: {lr: 1.0e-3}}
      data:
        3bpa: {}
        dipeptides: {train: {data: …}, test: {data: …}, labels: [25, 100]}
    # optional; combinations of the grid that are left out: those with all values that are named
    without: [{network: et, data: dipeptides}]
"""

from __future__ import annotations

import itertools
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .. import datasets, objectives
from ..analysis.error_breakdown import labels_by_geometry
from ..datasets import formal_charges, registry, splits
from ..datasets.filters import near_minimum
from ..errors import ConfigError, DataError
from ..structures import settings
from ..structures.outputs import plain_name
from ..structures.store import Structures, concatenate
from ..training.config import TrainConfig
from . import stand_ins
from .dry_run import FINETUNING, PRETRAINING, SEARCH, Planned
from .experiment import Experiment
from .given_validation import GivenValidation


def named_or_file(data: str, read: dict[str, Any] | None = None) -> Structures:
    """A registered set by its name, else the structures at a path or glob; $VARIABLES of the
    environment are filled in. ``read``: options of `potkit.read`, for files.
    """
    path = os.path.expandvars(data)
    if "$" in path:
        raise DataError(f"{data}: set the environment variable it names")
    if registry.is_name(path):
        if read:
            raise ConfigError(f"{data}: is a registered set, {next(iter(read))} is for files")
        return datasets.load(path)
    return datasets.read(path, **(read or {}))


# what a number is, and true and false are not
NUMBERS = (
    "labels seeds valid_fraction draws tuning_seeds search_at valid_min threads "
    "fractions index seed block gap near_minimum limit"
).split()


class _Spec(BaseModel):
    """Unknown settings are refused, and true or false where a number is due."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _numbers(cls, values: Any) -> Any:
        for name in NUMBERS if isinstance(values, dict) else ():
            if any(isinstance(value, bool) for _, value in settings.walk(values.get(name))):
                raise ValueError(f"{name} must not be true or false")
        return values


Seed = Annotated[int, Field(ge=0, le=settings.LARGEST_SEED)]
Count = Annotated[int, Field(ge=1, le=settings.LARGEST)]


class SplitPart(_Spec):
    """Part ``index`` of a split into ``fractions``: the training half and the test half of one
    set name the same split.

    A fraction is a share (0.8), a count (8) or null for the rest: of structures, of systems, of
    each system's structures, or of blocks, as ``by`` says. See `potkit.structures.splits.split`.
    """

    fractions: list[int | float | None]
    index: int = Field(ge=0)
    by: Literal["structure", "system", "structure-within-system", "block"] = "structure"
    seed: Seed = 0
    # of shares that are no whole number: by chance, or down with the rest for the first part
    rounding: Literal["drawn", "floor"] = "drawn"
    # successive structures in a block, and how many are left out at its ends
    block: int | None = Field(None, ge=1)
    gap: int = Field(0, ge=0)

    def of(self, structures: Structures) -> Structures:
        """This part of ``structures``; raises ConfigError where there is no such part."""
        if self.index >= len(self.fractions):
            raise ConfigError(
                f"part: index {self.index}, but there are {len(self.fractions)} fractions"
            )
        rows = splits.split(
            structures, self.fractions, self.seed, self.by, self.block, self.gap, self.rounding
        )
        return structures[rows[self.index]]


class DataSpec(_Spec):
    """A set by name or path ($VARIABLES are filled in), and which of its structures."""

    data: str | list[str]
    # names and units of a file: energy_key, forces_key, energy_unit, length_unit …
    read: dict[str, Any] | None = None
    published: str | None = None  # the part of this name, of the split published with the set
    near_minimum: float | None = None  # eV
    systems: list[str] | None = None
    limit: Count | None = None  # at most so many structures, drawn with seed 0
    part: SplitPart | None = None  # one part of a split
    # leave out what is also in this set (same system and geometry): a test set must be unseen
    without: str | None = None
    # for networks that read them: 0 for every atom, or those of SMILES as names of systems;
    # default: as the set has them
    formal_charges: Literal["neutral", "system-names"] | None = None

    def load(self) -> Structures:
        """The structures. Raises DataError where a variable is not set, nothing is found or
        nothing is left.
        """
        structures = self._whole()
        if self.published is not None:
            structures = self._published_part(structures)
        if self.near_minimum is not None:
            structures = near_minimum(structures, self.near_minimum)
        if self.systems is not None:
            names = structures.system_names()
            missing = [s for s in self.systems if s not in names]
            if missing:
                raise DataError(
                    f"{self.data}: no system {missing[0]!r}; there are {', '.join(names[:10])} …"
                )
            structures = structures[[names[i] in self.systems for i in structures.system]]
        if self.without is not None:
            leaked = splits.leakage(named_or_file(self.without), structures)["b"]
            structures = structures[np.setdiff1d(np.arange(len(structures)), leaked)]
        if self.part is not None:
            structures = self.part.of(structures)
        if self.limit is not None and self.limit < len(structures):
            structures = structures.split((self.limit,), seed=0)[0]
        if not len(structures):
            raise DataError(f"{self.data}: no structure is left after the filters")
        if self.formal_charges == "neutral":
            return formal_charges.neutral(structures)
        if self.formal_charges == "system-names":
            return formal_charges.from_system_names(structures)
        return structures

    def _whole(self) -> Structures:
        if isinstance(self.data, str):
            return named_or_file(self.data, self.read)
        if not self.data:
            raise ConfigError("data: a list of sets needs at least one")
        return concatenate([named_or_file(name, self.read) for name in self.data], missing="drop")

    def _published_part(self, structures: Structures) -> Structures:
        if not isinstance(self.data, str):
            raise ConfigError(f"{', '.join(self.data)}: a published part is one of a single set")
        if self.data in set(datasets.names()["name"]):
            parts = registry.published_split(self.data, structures)
        else:
            parts = splits.parts(structures)
        if self.published not in parts:
            raise DataError(
                f"{self.data}: no published part {self.published!r}; there are {', '.join(parts)}"
            )
        return structures[parts[self.published]]


class TestSpec(DataSpec):
    """What a comparison tests on, with ``groups`` of its structures to break errors down by: name
    of a column -> label -> how many successive structures of the whole set have it.
    """

    groups: dict[str, dict[str, Count]] = {}

    def labels_of(self, test: Structures) -> dict[str, list[str]]:
        """The label of each structure of ``test``, which was loaded from this, in each column.

        Raises ConfigError where the numbers are not those of the set's structures, or a column has
        a name that tables of errors have already.
        """
        if not self.groups:
            return {}
        whole = self._whole()
        found = {}
        for column, counts in self.groups.items():
            if column in COLUMNS:
                raise ConfigError(f"groups.{column}: tables of errors have such a column already")
            named = [label for label, count in counts.items() for _ in range(count)]
            if len(named) != len(whole):
                raise ConfigError(
                    f"groups.{column}: labels for {len(named)} structures, but {self.data} has "
                    f"{len(whole)}"
                )
            found[column] = labels_by_geometry(test, whole, named)
        return found


# of tables of errors structure by structure
COLUMNS = ("arm", "labels", "structure", "cluster", "atoms", "formula", "element", "size")

# in a grid added to, not replaced
ADDED = ("pretrain", "finetune", "supervised", "arms", "vectors", "parts", "notes")
# of an arm, not of its objective
OF_ARM = ("vector", "parts", "after")


def _of_arms(arms: dict[str, dict[str, Any]], key: str) -> dict[str, Any]:
    """Arm -> what it says under ``key``, for arms that do."""
    return {arm: settings[key] for arm, settings in arms.items() if key in settings}


class ExperimentSpec(_Spec):
    """The fields of the module's example but ``grid``; `experiment` turns them into an
    `Experiment`.
    """

    name: str
    model: dict[str, Any]
    train: DataSpec
    test: TestSpec
    labels: list[int | float]
    arms: dict[str, dict[str, Any]] = {}
    pretrain_on: DataSpec | None = None
    seeds: list[Seed] = [0, 1, 2]
    pretrain: dict[str, Any] = {}
    finetune: dict[str, Any] = {}
    supervised: dict[str, Any] = {}
    longer: str | None = "operations"
    valid_fraction: float = Field(0.1, ge=0, lt=1)
    valid: DataSpec | None = None
    valid_by: Literal["structure", "system", "structure-within-system", "block"] | None = None
    vectors: dict[str, str] = {}
    parts: dict[str, list[str]] = {}
    draws: Count = 1
    primary: dict[str, str] | None = None
    search: dict[str, list[Any]] = {}
    tuning_seeds: list[Seed] = []
    search_at: int | None = None
    search_beyond: int = Field(0, ge=0)
    valid_min: Count = 1
    convergence: bool = False
    threads: int | None = Field(None, ge=1)
    notes: dict[str, str] = {}

    def experiment(
        self,
        store: str | Path = "runs/store",
        jobs: int = 1,
        loaded: dict[str, Structures] | None = None,
        **changes: Any,
    ) -> Experiment:
        """Load the data (or find it in ``loaded``) and check every setting; raises ConfigError
        or DataError naming what is wrong.
        """
        loaded = {} if loaded is None else loaded

        def load(spec: DataSpec) -> Structures:
            key = spec.model_dump_json()
            if key not in loaded:
                loaded[key] = spec.load()
            return loaded[key]

        if "name" not in self.model:
            raise ConfigError("model: give its name, such as {name: egnn, preset: small}")
        given = self._given()
        own = {arm: v for arm, v in self.arms.items() if "like" not in v and arm not in given}
        values = dict(
            model=self.model,
            seeds=self.seeds,
            longer=self.longer,
            valid_fraction=self.valid_fraction,
            objectives={
                arm: objectives.from_dict({k: v for k, v in settings.items() if k not in OF_ARM})
                for arm, settings in own.items()
            },
            variants={arm: v for arm, v in self.arms.items() if "like" in v},
            vectors=self.vectors | _of_arms(own, "vector"),
            parts=self.parts | _of_arms(own | given, "parts"),
            weights=_of_arms(given, "weights"),
            after=_of_arms(own, "after"),
            pretrain_config=TrainConfig(**self.pretrain),
            finetune_config=TrainConfig(**self.finetune),
            draws=self.draws,
            primary=self.primary,
            search=self.search,
            tuning_seeds=self.tuning_seeds,
            search_at=self.search_at,
            search_beyond=self.search_beyond,
            valid_min=self.valid_min,
            convergence=self.convergence,
            threads=self.threads,
            supervised=objectives.from_dict({"objective": "supervised", **self.supervised}),
        )
        train, test = load(self.train), load(self.test)
        pretrain_on = load(self.pretrain_on) if self.pretrain_on else None
        kind: type[Experiment] = Experiment
        if self.valid is not None or self.valid_by is not None:
            kind = GivenValidation
            valid = load(self.valid) if self.valid is not None else None
            train, values["valid_rows"] = self._with_validation(train, valid)
        values["labels"] = [self._budget(labels, train) for labels in self.labels]
        built = kind(
            train=train,
            test=test,
            pretrain_on=pretrain_on,
            store=store,
            jobs=jobs,
            **{**values, **changes},
        )
        built.build(0)  # a misspelt model option stops here, not in the first run
        for arm in built.vectors:
            try:
                built.build(0, arm)
            except ConfigError as error:
                raise ConfigError(f"experiment: arm {arm!r}: {error}") from None
        return built

    def _given(self) -> dict[str, dict[str, Any]]:
        """The arms that start from given weights. Raises ConfigError where one says more than
        which, and which ``parts`` of them.
        """
        given = {arm: v for arm, v in self.arms.items() if "weights" in v}
        for arm, values in given.items():
            if strange := values.keys() - {"weights", "parts"}:
                raise ConfigError(
                    f"arms.{arm}: with weights there is nothing to pretrain, so no {min(strange)}"
                )
            if not isinstance(values["weights"], str) or not values["weights"].strip():
                raise ConfigError(f"arms.{arm}.weights: give a name or a path")
        return given

    def counted(self) -> list[dict[str, Any]]:
        """Runs and steps that follow from the settings alone, rows of `dry_run.Planned`; no steps
        where they are counted in epochs or in what pretraining costs.
        """
        pretrain, finetune = TrainConfig(**self.pretrain), TrainConfig(**self.finetune)
        own = [arm for arm, v in self.arms.items() if not {"like", "weights"} & v.keys()]
        n_seeds = len(self.seeds) + len(self.tuning_seeds)
        rows: list[dict[str, Any]] = []
        if own:
            runs = len(own) * n_seeds
            steps = np.nan if pretrain.epochs else runs * pretrain.steps
            rows.append({"part": PRETRAINING, "labels": 0, "runs": runs, "steps": steps})
        longer = bool(own and self.longer)
        for labels in self.labels:
            arms = 1 + len(self.arms) + longer
            runs = (arms + self.convergence) * len(self.seeds) * self.draws
            steps = np.nan
            if not (finetune.epochs or longer):
                steps = (
                    (arms + 2 * self.convergence) * len(self.seeds) * self.draws * finetune.steps
                )
            rows.append({"part": FINETUNING, "labels": labels, "runs": runs, "steps": steps})
            if self.search and self.search_at in (None, labels):
                tried = int(np.prod([len(values) for values in self.search.values()]))
                runs = arms * tried * len(self.tuning_seeds)
                rows.append({"part": SEARCH, "labels": labels, "runs": runs})
        return rows

    def _with_validation(
        self, train: Structures, valid: Structures | None
    ) -> tuple[Structures, np.ndarray]:
        """What there is to train and validate on, and its rows that validate."""
        if valid is None:
            shares = (1 - self.valid_fraction, self.valid_fraction)
            return train, splits.split(train, shares, by=self.valid_by)[1]
        if self.valid_by is not None:
            raise ConfigError("valid names what validates, so valid_by has nothing to split")
        both = concatenate([train, valid])
        return both, np.arange(len(train), len(both))

    @staticmethod
    def _budget(labels: float, train: Structures) -> int:
        """A label budget as a number of structures."""
        if isinstance(labels, int):
            return labels
        if not 0 < labels <= 1:
            raise ConfigError(
                f"labels: {labels} is neither a whole number of structures nor a share up to 1.0"
            )
        return round(labels * len(train))


MOST_CELLS = 10_000  # experiments of a grid


class GridSpec:
    """An experiment per combination of the ``grid``'s columns, or a single one."""

    def __init__(self, values: dict[str, Any]) -> None:
        values = dict(values)
        settings.check_plain(values, "experiment")
        grid = values.pop("grid", None) or {}
        without = values.pop("without", None) or []
        if not isinstance(grid, dict):
            raise ConfigError(f"grid: expected columns, got {settings.shown(grid)}")
        sizes = [len(cells) for cells in grid.values() if isinstance(cells, dict)]
        if math.prod(sizes) > MOST_CELLS:
            raise ConfigError(f"grid: {math.prod(sizes)} experiments, more than {MOST_CELLS}")
        for column, cells in grid.items():
            for name, changes in cells.items() if isinstance(cells, dict) else ():
                if not isinstance(changes, dict | None):
                    raise ConfigError(
                        f"grid.{column}.{name}: expected settings, got {settings.shown(changes)}"
                    )
            known = column in ("arm", "seed", "labels", "metric")
            if known or not isinstance(cells, dict) or not cells:
                raise ConfigError(
                    f"grid.{column}: expected a name that is no column yet, "
                    "with the settings of each of its values"
                )
        self.name = values.get("name", "")
        # results are stored under it; what is no text is told below
        if isinstance(self.name, str) and self.name:
            plain_name(self.name)
        self.specs: list[tuple[dict[str, str], ExperimentSpec]] = []
        left_out = _left_out(without, grid)
        for cell in itertools.product(*(cells.items() for cells in grid.values())):
            names = {column: str(name) for column, (name, _) in zip(grid, cell, strict=True)}
            if any(some.items() <= names.items() for some in left_out):
                continue
            merged = dict(values)
            for _, changes in cell:
                for key, value in (changes or {}).items():
                    if key in ADDED and isinstance(value, dict):
                        before = merged.get(key) or {}
                        if not isinstance(before, dict):
                            raise ConfigError(
                                f"{key}: expected settings, got {settings.shown(before)}"
                            )
                        value = {**before, **value}
                    merged[key] = value
            try:
                self.specs.append((names, ExperimentSpec(**{str(k): v for k, v in merged.items()})))
            except ValidationError as error:
                where = "".join(f"grid {column} {name}: " for column, name in names.items())
                raise ConfigError(
                    "; ".join(
                        f"{where}{'.'.join(map(str, p['loc']))}: {p['msg'].lower()}"
                        for p in error.errors()
                    )
                ) from None
        if not self.specs:
            raise ConfigError("without: nothing of the grid is left")

    def experiments(
        self, store: str | Path = "runs/store", jobs: int = 1, **changes: Any
    ) -> list[Experiment]:
        """The experiments, their data loaded once; raises ConfigError or DataError naming what
        is wrong.
        """
        loaded: dict[str, Structures] = {}
        return [
            spec.experiment(store, jobs, loaded, columns=columns, **changes)
            for columns, spec in self.specs
        ]

    def groups(self, grid: Sequence[Experiment]) -> list[dict[str, list[str]]]:
        """For each of the experiments (`experiments`) the groups of its test structures. Raises
        ConfigError as `TestSpec.labels_of` does, or for a group that is a column of the grid.
        """
        found = []
        for (columns, spec), made in zip(self.specs, grid, strict=True):
            if taken := set(columns) & set(spec.test.groups):
                raise ConfigError(f"groups.{min(taken)}: is a column of the grid already")
            found.append(spec.test.labels_of(made.test))
        return found

    def planned(self, store: str | Path = "runs/store") -> list[Planned]:
        """The experiments for a dry run. Where data are missing: estimates from their records and
        from stand-ins, else what the settings alone tell.

        Raises ConfigError for settings that are wrong.
        """
        loaded: dict[str, Structures] = {}
        made = []
        for columns, spec in self.specs:
            try:
                experiment = spec.experiment(store, 1, loaded, columns=columns)
                made.append(Planned(columns, experiment))
            except (DataError, OSError) as error:
                estimate = stand_ins.of(spec, store, loaded, columns)
                if estimate is None:
                    made.append(Planned(columns, None, str(error), spec.counted()))
                else:
                    made.append(Planned(columns, estimate.experiment, estimate=estimate))
        return made

    def experiment(
        self, store: str | Path = "runs/store", jobs: int = 1, **changes: Any
    ) -> Experiment:
        """The one experiment of a file without a grid."""
        if len(self.specs) != 1:
            raise ConfigError(
                f"{self.name}: a grid of {len(self.specs)} experiments; use experiments()"
            )
        return self.experiments(store, jobs, **changes)[0]

    def model_dump(self) -> Any:
        """All settings, for the record."""
        dumped = [
            {**({"grid": columns} if columns else {}), **spec.model_dump()}
            for columns, spec in self.specs
        ]
        return dumped[0] if len(dumped) == 1 else dumped


def _left_out(without: Any, grid: dict[str, dict[Any, Any]]) -> list[dict[str, str]]:
    """Values by column, as the file's ``without`` lists them. Raises ConfigError for others."""
    if not isinstance(without, list) or not all(isinstance(w, dict) and w for w in without):
        raise ConfigError(
            "without: expected a list of combinations such as {network: et, data: 3bpa}, "
            f"got {settings.shown(without)}"
        )
    values = {str(column): {str(name) for name in cells} for column, cells in grid.items()}
    found = [{str(column): str(name) for column, name in some.items()} for some in without]
    for column, name in (pair for some in found for pair in some.items()):
        if name not in values.get(column, ()):
            raise ConfigError(f"without: the grid has no {column} {name}")
    return found


def read(path: str | Path) -> GridSpec:
    """The experiment, or grid of them, in a YAML file. Raises ConfigError naming the file and
    everything wrong in it.
    """
    values = settings.read(path)
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected 'key: value' lines, found {type(values).__name__}")
    try:
        return GridSpec(values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
