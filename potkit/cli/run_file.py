"""One YAML file for a training run: sections data, model, objective and training.

    data: {data: my.xyz, labels: 200}
    model: {init: runs/pretrained}
    objective: {name: supervised, forces: 10}
    training: {steps: 2000, lr: 1.0e-3}

`potkit pretrain --config FILE` and `potkit finetune --config FILE` read it; an option beside it
goes before what it says. A file of training settings alone (no sections) is read as `training`.
`potkit config` prints what may stand in it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ..errors import ConfigError
from ..structures import settings as plain
from ..training.config import TrainConfig

SECTIONS = ("data", "model", "objective", "training")


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PretrainData(_Section):
    """What is trained on."""

    data: str | None = Field(None, description="a registered data set, or a file or folder")
    format: str | None = Field(
        None, description="the file's format; default: told from its content"
    )


class FinetuneData(PretrainData):
    """What is trained, validated and tested on."""

    valid: str | None = Field(
        None, description="validation data, a set or a file; default: a tenth of data"
    )
    test: str | None = Field(None, description="data to evaluate on at the end")
    split: Path | None = Field(
        None, description="train, valid and test of data, made by `potkit data split`"
    )
    labels: int | None = Field(
        None,
        gt=0,
        strict=True,  # neither true nor "5"
        description="label budget: use only so many of the training structures",
    )
    references: str | None = Field(
        None,
        description="what is taken off the energies: least-squares, isolated, none, a table of "
        "isolated atoms by level of theory, or a file; default: as training says",
    )


class PretrainModel(_Section):
    """The network."""

    name: str | None = Field(None, description="network; default: egnn, or that of init")
    preset: str = Field("small", description="small, denoise-paper, masked-paper, …")
    options: dict[str, Any] = Field({}, description="options of the network, over its preset")


class FinetuneModel(PretrainModel):
    """The network, and where its weights come from."""

    init: Path | None = Field(
        None, description="checkpoint or run folder to start from; default: from scratch"
    )
    parts: list[str] | None = Field(
        None,
        description="what to take over from init; default: what the card of pretrained weights "
        "says, else backbone",
    )


class ObjectiveSection(BaseModel):
    """What is learned; further keys are settings of the objective."""

    model_config = ConfigDict(extra="allow", frozen=True)

    name: str | None = Field(
        None, description="objective; default: denoise for pretrain, supervised for finetune"
    )


class PretrainFile(_Section):
    """Settings of `potkit pretrain`."""

    data: PretrainData = PretrainData()
    model: PretrainModel = PretrainModel()
    objective: ObjectiveSection = ObjectiveSection()
    training: dict[str, Any] = {}


class FinetuneFile(_Section):
    """Settings of `potkit finetune`."""

    data: FinetuneData = FinetuneData()
    model: FinetuneModel = FinetuneModel()
    objective: ObjectiveSection = ObjectiveSection()
    training: dict[str, Any] = {}


def read(kind: type[BaseModel], path: Path | None) -> Any:
    """The settings in ``path``, of ``kind``; all defaults without a file. Raises ConfigError that
    names the file and everything wrong in it.
    """
    if path is None:
        return kind()
    values = plain.read(path)
    values = {} if values is None else values
    if not isinstance(values, dict):
        raise ConfigError(
            f"{path}: expected settings as 'key: value' lines, found {type(values).__name__}"
        )
    if not values.keys() & set(SECTIONS):
        values = {"training": values}
    plain.check_plain(values, str(path))
    try:
        # a section of which nothing is said is an empty one
        sections = {str(key): {} if value is None else value for key, value in values.items()}
        settings = kind(**sections)
    except ValidationError as error:
        lines = "; ".join(_problem(kind, problem) for problem in error.errors())
        raise ConfigError(f"{path}: {lines}") from None
    try:
        TrainConfig(**{str(key): value for key, value in settings.training.items()})
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    return settings


def _problem(kind: type[BaseModel], problem: dict[str, Any]) -> str:
    where = [str(part) for part in problem["loc"]]
    key = ".".join(where)
    if problem["type"] != "extra_forbidden":
        message = problem["msg"]
        return f"{key}: {message[0].lower() + message[1:]}, got {problem['input']!r}"
    known = kind.model_fields
    if len(where) > 1:
        known = known[where[0]].annotation.model_fields
    near = difflib.get_close_matches(where[-1], known, 1)
    hint = f" (did you mean {near[0]!r}?)" if near else f"; there are {', '.join(known)}"
    return f"unknown key {key!r}{hint}"


def described(kind: type[BaseModel]) -> Iterator[tuple[str, str, str, str, str]]:
    """Section, key, type, default and meaning of every setting of ``kind`` but those of networks
    and objectives.
    """
    for section, field in kind.model_fields.items():
        fields = (TrainConfig if section == "training" else field.annotation).model_fields
        for key, setting in fields.items():
            default = "none" if setting.default is None else str(setting.default)
            yield section, key, _type(setting.annotation), default, setting.description or ""


def _type(annotation: Any) -> str:
    """A type as a reader of YAML calls it."""
    text = getattr(annotation, "__name__", str(annotation))
    if getattr(annotation, "__args__", None):
        text = str(annotation)
    for old, new in (("typing.", ""), ("pathlib.", ""), (" | None", ""), ("NoneType", "none")):
        text = text.replace(old, new)
    if text.startswith("Literal["):
        text = " | ".join(word.strip(" '") for word in text[8:-1].split(","))
    return text
