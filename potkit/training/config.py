"""Training settings: validated, written to YAML and read back the same."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from ..errors import ConfigError
from ..structures import settings
from ..structures.elements import SYMBOLS
from ..structures.outputs import Kind
from ..structures.storage import replacing

# what does not change the numbers a run ends with, or only where and how often they are written
NOT_IDENTITY = {
    "device",
    "devices",
    "nodes",
    "log_every",
    "checkpoint_every",
    "progress",
    "resident",
    "micro_batch",
    "log",
    "check_labels",
}
# settings that came later: at their defaults they are left out of the identity, so that earlier
# runs are still found
LATER = (
    "freeze",
    "layer_decay",
    "compile",
    "optimizer",
    "references",
    "isolated_energies",
    "normalization",
    "valid_fraction",
    "validate_epochs",
)


MOST_DEVICES = 1024  # processes of one machine


class TrainConfig(BaseModel):
    """Settings of one training run, pretraining or fine-tuning alike. Unknown keys and
    impossible values raise ConfigError.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    steps: int = Field(1000, gt=0, description="optimizer steps of the whole run")
    epochs: float | None = Field(
        None, gt=0, description="if given, replaces steps: passes over the training structures"
    )
    batch_size: int = Field(32, gt=0, description="structures per step, over all devices together")
    lr: float = Field(1e-3, gt=0, description="learning rate after warm-up")
    min_lr: float = Field(1e-7, ge=0, description="learning rate at the end of the cosine")
    warmup: float = Field(
        0.05, ge=0, le=1, description="share of the steps in which the rate rises from 0"
    )
    flat: float = Field(
        0.05,
        ge=0,
        le=1,
        description="share of the steps, after warm-up, at the full rate before the cosine",
    )
    schedule: Literal["cosine", "constant"] = Field(
        "cosine", description="what follows the flat part"
    )
    optimizer: Literal["adamw", "adam"] = Field(
        "adamw",
        description="adamw: weight decay apart from the gradient; adam: weight decay as an L2 term "
        "of the gradient",
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay; see optimizer")
    clip: float | None = Field(10.0, gt=0, description="largest gradient norm; none: no clipping")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="decay of the moving average of the weights that is validated and kept; 0: off",
    )
    freeze: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of the steps, from the first, in which the backbone stays as it is",
    )
    layer_decay: float = Field(
        1.0,
        gt=0,
        le=1,
        description="rate of each layer over the next one's; read-outs have the full rate; 1: off",
    )
    references: Literal["least-squares", "isolated", "none"] = Field(
        "least-squares",
        description="what is taken off the energies of labels, per element: a fit to the training "
        "part, the energies of isolated atoms, or nothing",
    )
    isolated_energies: dict[str, float] | None = Field(
        None,
        description="for references: isolated, eV by symbol; default: those of the data set",
    )
    normalization: Literal["forces", "mean-std", "per-atom-mean-std", "none"] = Field(
        "forces",
        description="unit of the network's energy and forces: the root mean square force (spread "
        "of energies per atom where there are none); the standard deviation of the energies left "
        "by references, their mean taken off, per structure or per atom; or 1 eV",
    )
    valid_fraction: float = Field(
        0.05,
        ge=0,
        lt=1,
        description="share of the structures that pretraining sets aside for validation; "
        "fine-tuning is given its own",
    )
    seed: int = Field(
        0,
        ge=0,
        le=settings.LARGEST_SEED,
        description="order of batches and corruption; weights are seeded where they are made",
    )
    validate_every: int | None = Field(
        None,
        gt=0,
        le=settings.LARGEST,
        description="steps between validations; default: ten in a run",
    )
    validate_epochs: float | None = Field(
        None,
        gt=0,
        description="if given, replaces validate_every: passes over the training structures "
        "between validations",
    )
    checkpoint_every: int | None = Field(
        None,
        gt=0,
        le=settings.LARGEST,
        description="steps between checkpoints to resume from; default: as validations",
    )
    log_every: int = Field(50, gt=0, description="steps between rows of the metrics file")
    eval_batch_size: int | None = Field(
        None,
        gt=0,
        le=settings.LARGEST,
        description="structures per validation batch; default: twice batch_size",
    )
    micro_batch: int | None = Field(
        None,
        gt=0,
        le=settings.LARGEST,
        description="structures per forward pass, their gradients added up to that of the batch; "
        "default: all at once",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="auto: a GPU if there is one"
    )
    devices: int = Field(
        1,
        gt=0,
        le=MOST_DEVICES,
        description="processes per node, each with its own GPU (or share of the CPU)",
    )
    nodes: int = Field(1, gt=0, le=100_000, description="machines")
    precision: Literal["32-true", "64-true", "bf16-mixed", "tf32"] = Field(
        "32-true",
        description="arithmetic of the network; "
        "tf32: float32 with products of 10-bit mantissas, on GPUs that have them",
    )
    compile: bool = Field(
        False,
        description="compiled code: on a CPU kernels for the edges of EGNN, TorchMD-Net ET and "
        "SchNet where they serve the targets; else torch.compile, which takes about a minute",
    )
    resident: bool = Field(True, description="keep the packed training data on the device")
    progress: bool = Field(
        True, description="show a progress bar on a terminal, and say when a run goes on"
    )
    check_labels: bool = Field(
        True,
        description="fine-tuning refuses forces of wrong sign and labels of wrong units, where the "
        "labels tell",
    )
    log: Literal["none", "tensorboard"] = Field(
        "none",
        description="where the rows of metrics.jsonl go as well: tensorboard, to the folder "
        "tensorboard/ of the run",
    )

    def __init__(self, **values: Any) -> None:
        for name, value in settings.walk(values):
            # pydantic takes true for 1
            field = name.split(".")[0].split("[")[0]
            known = type(self).model_fields.keys() - {
                "compile",
                "resident",
                "progress",
                "check_labels",
            }
            if isinstance(value, bool) and field in known:
                raise ConfigError(f"config: {name}: must not be true or false, got {value}")
            if isinstance(value, int) and abs(value) > settings.LARGEST and field != "seed":
                raise ConfigError(f"config: {name}: {settings.shown(value)} is too large")
        settings.check_plain(values, "config", also=lambda value: isinstance(value, np.generic))
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ConfigError("config: " + "; ".join(_problem(p) for p in error.errors())) from None

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.warmup + self.flat > 1:
            raise ValueError(f"warmup + flat must not exceed 1, got {self.warmup} + {self.flat}")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr ({self.min_lr}) must not exceed lr ({self.lr})")
        if self.isolated_energies is not None:
            if self.references != "isolated":
                raise ValueError(
                    "isolated_energies are for references: isolated, "
                    f"got references: {self.references}"
                )
            unknown = [symbol for symbol in self.isolated_energies if symbol not in SYMBOLS[1:]]
            if unknown:
                raise ValueError(f"isolated_energies: {unknown[0]!r} is no element's symbol")
        return self

    def replace(self, **changes: Any) -> TrainConfig:
        """A copy with some settings changed, validated again."""
        # only what was set: whether a setting was chosen is remembered
        return TrainConfig(**{**self.model_dump(exclude_unset=True), **changes})

    def total_steps(self, n_structures: int) -> int:
        """Steps of the run on ``n_structures`` training structures."""
        if self.epochs is None:
            return self.steps
        return max(1, round(self.epochs * n_structures / min(self.batch_size, n_structures)))

    def steps_between_validations(self, n_structures: int) -> int:
        """How many steps lie between validations of a run on ``n_structures``."""
        if self.validate_epochs is None:
            return self.validate_every or max(1, self.total_steps(n_structures) // 10)
        return max(
            1, round(self.validate_epochs * n_structures / min(self.batch_size, n_structures))
        )

    def identity(self) -> dict[str, Any]:
        """The settings that decide the result; two runs that share them (and data, model,
        objective) are the same run.
        """
        kept = self.model_dump(exclude=NOT_IDENTITY)
        for key in LATER:
            if kept[key] == type(self).model_fields[key].default:
                del kept[key]
        return kept

    def to_yaml(self, path: str | Path, kind: Kind | None = None) -> Path:
        """Write all settings to ``path``; `from_yaml` reads them back equal.

        Raises DataError where ``path`` holds anything but what this wrote, such as settings written
        by hand; ``kind`` is for those who know better what lies there.
        """
        with replacing(Path(path), kind or SETTINGS) as temporary:
            temporary.write_text(_dumped(self.model_dump()))
        return Path(path)

    @classmethod
    def from_yaml(cls, path: str | Path) -> TrainConfig:
        """Settings from a YAML file. Raises ConfigError naming the file and everything wrong in
        it.
        """
        values = settings.read(path)
        if not isinstance(values, dict | None):
            raise ConfigError(
                f"{path}: expected settings as 'key: value' lines, found {type(values).__name__}"
            )
        try:
            return cls(**{str(k): v for k, v in (values or {}).items()})
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from None


def _dumped(values: dict[str, Any]) -> str:
    return yaml.safe_dump(values, sort_keys=False)


def _is_dumped(path: Path) -> bool:
    """Whether `TrainConfig.to_yaml` wrote ``path``: known settings in its form, to the byte, and
    not just some of them.
    """
    text = path.read_text(encoding="utf-8")
    try:
        values = settings.parse(text, str(path))
    except ConfigError:
        return False
    known = isinstance(values, dict) and values.keys() <= TrainConfig.model_fields.keys()
    return known and len(values) > len(TrainConfig.model_fields) // 2 and _dumped(values) == text


SETTINGS = Kind("settings that TrainConfig.to_yaml wrote", _is_dumped)


def _problem(problem: dict[str, Any]) -> str:
    """One of pydantic's complaints in a line."""
    key = ".".join(map(str, problem["loc"]))
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(key, TrainConfig.model_fields, 1)
        if near:
            return f"unknown key {key!r} (did you mean {near[0]!r}?)"
        return f"unknown key {key!r}; there are {', '.join(TrainConfig.model_fields)}"
    message = problem["msg"].removeprefix("Value error, ")
    if not key:  # of several settings together
        return message
    got = settings.shown(problem["input"])
    return f"{key}: {message[0].lower() + message[1:]}, got {got}"
