"""Pretrained weights by name: two files each, NAME.safetensors and its card NAME.json.

They lie in data/weights of the checkout; a wheel holds copies (`datasets.wheel`). A card says what
the weights were trained on and how, and carries the checksum of its file.

Torch is imported where it is needed, so that a wrong name is said at once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from ..errors import CheckpointError, ConfigError, DataError
from ..structures.elements import SYMBOLS
from ..structures.outputs import PART, plain_name, read_json
from ..structures.settings import check_plain, walk
from ..structures.storage import replacing

if TYPE_CHECKING:
    import pandas as pd

    from ..models import Potential


class Card(BaseModel):
    """What is known of pretrained weights. Å for lengths.

    ``labels``: the level of theory of the labels that were read; None: trained without labels.
    ``parts``: what a fine-tuning takes over where it is not told otherwise. ``fine_tuned``: errors
    after fine-tuning, by what they are; None: not measured.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    name: str
    network: str
    preset: str
    options: dict[str, Any]
    parameters: int
    data: str
    data_fingerprint: str
    elements: list[str]
    objective: dict[str, Any]
    labels: str | None = None
    parts: list[str] = ["backbone"]
    sigma: float | list[float] | dict[str, float] | None
    cutoff: float | None
    steps: int
    seed: int
    validation_loss: float | None
    run: str
    command: str
    commit: str
    licence: str
    fine_tuned: dict[str, float] | None
    sha256: str

    @model_validator(mode="after")
    def _shown_in_a_line(self) -> Card:
        check_plain(self.model_dump(), "card")
        for name, value in walk(self.model_dump()):
            if isinstance(value, str) and not value.isprintable():
                raise ValueError(f"{name}: no text of one line")
        if not isinstance(self.objective.get("objective"), str):
            raise ValueError("objective: without its name")
        return self

    def __str__(self) -> str:
        sigma = "" if self.sigma is None else f", sigma {self.sigma} Å"
        labels = "" if self.labels is None else f" on {self.labels} labels"
        return (
            f"{self.name}: {self.network} {self.preset}, {self.parameters:,} weights, "
            f"cutoff {self.cutoff} Å; {self.objective['objective']}{labels}{sigma}, "
            f"{self.steps} steps on "
            f"{self.data} ({' '.join(self.elements)})"
        )


def folder() -> Path:
    """Where the weights lie: data/weights of the checkout, else the installed package's copies."""
    package = Path(__file__).resolve().parents[1]
    places = [package.parent / "data" / "weights", package / "datasets" / "embedded" / "weights"]
    return next((place for place in places if place.is_dir()), places[0])


def names() -> list[str]:
    """The names there are, sorted."""
    return sorted(file.stem for file in folder().glob("*.json"))


def card(name: str) -> Card:
    """The card of weights. Raises ConfigError for an unknown name, CheckpointError for a card that
    is damaged.
    """
    if name not in names():
        raise ConfigError(f"no pretrained weights {name!r}; there are {', '.join(names())}")
    path = folder() / f"{name}.json"
    try:
        about = Card.model_validate(read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = "".join(f"{part}: " for part in first["loc"])
        raise CheckpointError(f"{path}: damaged ({where}{first['msg']})") from None
    except (OSError, ValueError, ConfigError) as error:
        raise CheckpointError(f"{path}: damaged ({str(error).splitlines()[0]})") from None
    if about.name != name:
        raise CheckpointError(f"{path}: damaged (the card of {about.name})")
    return about


def file(name: str) -> Path:
    """The checkpoint of weights, whole by its card's checksum. Raises ConfigError for an unknown
    name, CheckpointError for a file that is missing or changed.
    """
    about = card(name)
    path = folder() / f"{name}.safetensors"
    if not path.is_file():
        raise CheckpointError(f"{path}: missing")
    if checksum(path) != about.sha256:
        raise CheckpointError(f"{path}: not the file that its card describes (checksum)")
    return path


def pretrained(name: str) -> Potential:
    """The network of pretrained weights, in evaluation mode, with its card as ``card``.

    Fine-tune it before its energies or forces are used: it has seen no labels, or only those of
    the fast method on its card. Raises ConfigError for an unknown name, CheckpointError for a
    damaged file.
    """
    from . import checkpoints

    model = checkpoints.load(file(name))
    model.card = card(name)
    return model


def resolve(init: str | Path) -> Path:
    """The path that ``init`` means: itself where there is such a file or folder, else that of
    weights by name.

    Raises CheckpointError where it is neither.
    """
    path = Path(init)
    if path.exists():
        return path
    if str(init) in names():
        return file(str(init))
    known = ", ".join(names()) or "none"
    raise CheckpointError(
        f"{init}: no such checkpoint, run folder or pretrained weights (there are: {known})"
    )


def _card_of(source: Path) -> Card | None:
    """The card of the checkpoint ``source``, if it is one of the weights by name."""
    if source.parent.resolve() != folder().resolve() or source.stem not in names():
        return None
    return card(source.stem)


def parts_of(source: Path) -> tuple[str, ...]:
    """What a fine-tuning takes over of ``source``: what its card says, else the backbone."""
    about = _card_of(source)
    return ("backbone",) if about is None else tuple(about.parts)


def table() -> pd.DataFrame:
    """A row per weights: name, size, what it was pretrained with, errors after fine-tuning.

    Text, as people read it, all of it from the cards.
    """
    import pandas as pd

    rows = []
    for name in names():
        about = card(name)
        sigma = "" if about.sigma is None else f", σ {about.sigma} Å"
        with_what = f"{about.objective['objective']}{sigma}"
        if about.labels is not None:
            with_what = f"{about.labels} energies and forces"
        row = {
            "name": name,
            "weights": f"{about.parameters:,}",
            "pretrained with": with_what,
            "steps": str(about.steps),
        }
        for what, error in (about.fine_tuned or {}).items():
            row[what] = f"{error:.3f}"
        rows.append(row)
    return pd.DataFrame(rows).fillna("not measured")


class UnseenElements(UserWarning):
    """Weights are fine-tuned on elements that they were not pretrained on."""


def unseen(source: Path, elements: Sequence[int]) -> str:
    """A line that says which of ``elements`` (atomic numbers) the weights in ``source`` have not
    seen; "" where there are none. Weights without a card say nothing.
    """
    about = _card_of(source)
    seen = about.elements if about else []
    new = [SYMBOLS[z] for z in elements if SYMBOLS[z] not in seen]
    if about is None or not new:
        return ""
    return (
        f"{source.stem} was not pretrained on {', '.join(new)} (only on {', '.join(seen)}): "
        "what it knows of these elements is still random"
    )


def check_elements(source: Path, elements: Sequence[int]) -> None:
    """Warn with `UnseenElements` where `unseen` has something to say."""
    line = unseen(source, elements)
    if line:
        warnings.warn(line, UnseenElements, stacklevel=3)


def pack(
    run: str | Path,
    name: str,
    command: str,
    commit: str,
    out: str | Path | None = None,
    licence: str = "MIT",
    fine_tuned: dict[str, float] | None = None,
    parts: Sequence[str] = ("backbone",),
) -> Card:
    """Make weights with a card of a finished pretraining in the folder ``run``.

    ``command`` and ``commit`` made the run; ``licence`` is that of the weights. ``fine_tuned``:
    errors after fine-tuning, by what they are. ``out``: a folder, default that of the shipped ones.
    ``parts``: what a fine-tuning takes over by default.

    Raises DataError for a folder that is no finished pretraining, ConfigError for a name that is
    taken, a text that is no line, or where the run's data set is unknown, so that its elements are.
    """
    from .. import objectives
    from ..datasets import registry
    from . import checkpoints

    run, out = Path(run), Path(out or folder())
    plain_name(name)
    for what, text in (("command", command), ("commit", commit), ("licence", licence)):
        if not text.isprintable():
            raise ConfigError(f"{what}: {text!r} is no text of one line")
    if not (run / "summary.json").is_file():
        raise DataError(f"{run}: not a finished run (no summary.json)")
    source = run / "best.safetensors"
    _, header = checkpoints.read(source)
    if header.get("task") != "pretrain":
        raise DataError(f"{run}: not a pretraining, but {header.get('task', 'something else')}")
    places = [out / f"{name}{suffix}" for suffix in (".safetensors", ".json")]
    for place in places:
        if place.exists():
            raise ConfigError(f"{place} is there already; choose another name or delete it")
    if not registry.is_name(header["data"]):
        raise ConfigError(f"{run}: its data, {header['data']}, is no data set that has a name")
    summary = read_json(run / "summary.json")
    recipe, options = header["recipe"], header["recipe"]["options"]
    structures = registry.load(header["data"])
    labels = None
    if objectives.from_dict(header["objective"]).labels():
        labels = structures.info.get("level_of_theory", "unnamed")
    about = Card(
        name=name,
        network=recipe["name"],
        preset=recipe["preset"],
        options=options,
        parameters=checkpoints.build_again(header, source).n_parameters(),
        data=header["data"],
        data_fingerprint=header["data_fingerprint"],
        elements=[SYMBOLS[z] for z in structures.elements],
        objective=header["objective"],
        labels=labels,
        parts=list(parts),
        sigma=header["objective"].get("sigma"),
        cutoff=options.get("cutoff"),
        steps=summary["steps"],
        seed=header["config"]["seed"],
        validation_loss=summary["best"],
        run=summary["hash"],
        command=command,
        commit=commit,
        licence=licence,
        fine_tuned=fine_tuned,
        sha256=checksum(source),
    )
    out.mkdir(parents=True, exist_ok=True)
    with replacing(places[0], PART) as temporary:
        shutil.copyfile(source, temporary)
    with replacing(places[1], PART) as temporary:
        temporary.write_text(json.dumps(about.model_dump(), indent=1) + "\n", encoding="utf-8")
    return about


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
