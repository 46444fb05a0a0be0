"""Checkpoints: one safetensors file that rebuilds the network, and the transfer of weights from one
network to another.

A file holds the weights (``model.*``), for resuming also the averaged weights (``ema.*``) and the
optimizer (``optimizer.*``), and in its header, as JSON: format version, how to build the network,
step, settings, objective, data hash, units. Files are written to a temporary name and moved, so
there is never half a checkpoint under its name.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import pickle
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as serialized
from torch import Tensor, nn

from .. import objectives
from ..errors import CheckpointError
from ..models import Potential, backbone_options, rebuild
from ..structures.outputs import Kind, is_temporary
from ..structures.storage import replacing

FORMAT_VERSION = 1
UNITS = {"length": "Å", "energy": "eV", "forces": "eV/Å"}
PARTS = ("backbone", "energy_head", "vector_readout")


def _is_checkpoint(path: Path) -> bool:
    """Whether the header of ``path`` is that of a checkpoint of potkit; its tensors may be
    damaged.
    """
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return (
            size < path.stat().st_size and "potkit" in json.loads(file.read(size))["__metadata__"]
        )


CHECKPOINT = Kind("a checkpoint of potkit", _is_checkpoint)


IMPORTED_FILE = "best.safetensors"  # what `find` looks for first in a folder


def _is_imported(path: Path) -> bool:
    names = [name for name in os.listdir(path) if not is_temporary(name)]
    return names == [IMPORTED_FILE] and "imported" in read(path / IMPORTED_FILE)[1]


IMPORTED = Kind("a folder of weights that potkit imported", _is_imported, folder=True)


def save(
    path: str | Path,
    model: Potential,
    header: dict[str, Any] | None = None,
    extra: dict[str, Tensor] | None = None,
    kind: Kind = CHECKPOINT,
) -> Path:
    """Write ``model`` (weights, references, scale, how to build it) with ``header`` and further
    tensors to ``path``.

    Raises DataError where ``path`` holds anything but a checkpoint; ``kind`` is for those who know
    better what lies there.
    """
    if not hasattr(model, "recipe"):
        raise CheckpointError(
            "this model was not made by potkit.build, so a checkpoint could not rebuild it; "
            "set model.recipe"
        )
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()} | (extra or {})
    tensors = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    head = {
        "format_version": FORMAT_VERSION,
        "recipe": model.recipe,
        "units": UNITS,
        **(header or {}),
    }
    with replacing(Path(path), kind) as temporary:
        save_file(tensors, temporary, metadata={"potkit": json.dumps(head, default=str)})
    return Path(path)


def save_file(tensors: dict[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write ``tensors`` with ``metadata`` to ``path``.

    Not by safetensors' own `save_file`: it makes a temporary file beside ``path`` under a name of
    its own, which nobody would remove after a kill, and lets only its owner read the result.
    """
    path.write_bytes(serialized(tensors, metadata))


def find(path: str | Path) -> Path:
    """The checkpoint file meant by ``path``: the file itself, or the best (else the last) of a
    run's folder.
    """
    path = Path(path)
    try:
        if path.is_file():
            return path
        if not path.is_dir():
            raise CheckpointError(f"{path}: no such checkpoint")
        for name in ("best.safetensors", "last.safetensors"):
            if (path / name).is_file():
                return path / name
    except OSError as error:  # a folder one may not look into
        raise CheckpointError(f"{path}: cannot be read ({error.strerror or error})") from None
    raise CheckpointError(
        f"{path}: this folder holds no checkpoint (best.safetensors or last.safetensors)"
    )


def read(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and header of a checkpoint. Raises CheckpointError for a file that is missing,
    broken or not potkit's.
    """
    path = find(path)
    try:
        with path.open("rb"):  # safetensors calls a file it may not read "no such file"
            pass
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            text = metadata["potkit"]
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except KeyError:
        raise CheckpointError(
            f"{path}: a safetensors file, but not a checkpoint of potkit"
        ) from None
    except OSError as error:
        reason = error.strerror or str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be read ({reason})") from None
    except (SafetensorError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a readable checkpoint ({str(error).splitlines()[0]})"
        ) from None
    return tensors, _header(path, text, tensors)


class _Recipe(BaseModel):
    """How a network is built again: what `potkit.build` is given."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: str = Field(max_length=200)
    preset: str = Field(max_length=200)
    options: dict[str, Any]


class _Progress(BaseModel):
    """The part of a run's state that is no tensor."""

    step: int = Field(ge=0)
    seconds: float = Field(ge=0)
    best: float  # infinite before the first validation
    window: dict[str, tuple[float, float]]
    micro_batch: int | None = Field(None, gt=0)


class _Header(BaseModel):
    """What every checkpoint's header holds; more is welcome."""

    model_config = ConfigDict(extra="allow", strict=True)

    format_version: int
    recipe: _Recipe
    state: Annotated[_Progress | None, Field(strict=False)] = None


LARGEST = 1024  # a size that a header may name without a tensor that has it


def _header(path: Path, text: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The checked header: its words are of the right kind, and its sizes those of the tensors.

    Raises CheckpointError. Nothing that a header names is imported or run.
    """
    try:
        header = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: its header is not JSON ({reason})") from None
    version = header.get("format_version") if isinstance(header, dict) else None
    if isinstance(header, dict) and version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: format version {version}, this potkit reads {FORMAT_VERSION}"
        )
    try:
        _Header.model_validate(header)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "header"
        raise CheckpointError(f"{path}: its header is damaged: {where}: {problem['msg']}") from None
    dimensions = [size for tensor in tensors.values() for size in tensor.shape]
    limit = max([LARGEST, *dimensions])
    for name, value in header["recipe"]["options"].items():
        largest = max(_whole_numbers(value), default=0)
        if largest > limit or (name == "layers" and largest > len(tensors)):
            raise CheckpointError(
                f"{path}: its header is damaged: {name} of {largest} does not belong to the "
                f"{len(tensors)} tensors of this file"
            )
    return header


def _whole_numbers(value: Any) -> Iterator[int]:
    """Every whole number in nested lists and tables."""
    if isinstance(value, bool):
        return
    if isinstance(value, int):
        yield abs(value)
    elif isinstance(value, dict):
        yield from itertools.chain.from_iterable(map(_whole_numbers, value.values()))
    elif isinstance(value, (list, tuple)):
        yield from itertools.chain.from_iterable(map(_whole_numbers, value))


def build_again(header: dict[str, Any], source: str | Path) -> Potential:
    """The network a header describes, with new weights. Raises CheckpointError."""
    recipe = header["recipe"]
    try:
        model = rebuild(recipe)
    except (TypeError, ValueError, ArithmeticError, LookupError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{source}: its header builds no network ({reason})") from None
    model.recipe = recipe
    return model


def read_pickled(path: str | Path) -> dict[str, Tensor]:
    """A state dict that torch.save wrote. Only tensors are unpickled, no code of the file is run.

    Raises CheckpointError for a file that is missing, broken, or holds anything but named tensors.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise CheckpointError(
            f"{path}: refused, for it holds more than tensors and unpickling that could run any "
            "code; save model.state_dict() where it was made"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, LookupError):
        raise CheckpointError(f"{path}: not a whole file of torch.save") from None
    if not isinstance(state, dict):
        raise CheckpointError(f"{path}: holds {type(state).__name__}, not a state dict")
    for key, value in state.items():
        if not isinstance(value, Tensor):
            raise CheckpointError(
                f"{path}: {key!r} is {type(value).__name__}, not a tensor; a state dict is wanted"
            )
    return state


def weights(tensors: dict[str, Tensor], prefix: str = "model.") -> dict[str, Tensor]:
    """The part of a checkpoint's tensors under ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def load(path: str | Path, device: str | torch.device = "cpu") -> Potential:
    """The network a checkpoint holds, built again with its weights, in evaluation mode."""
    tensors, header = read(path)
    model = build_again(header, find(path))
    restore(model, weights(tensors), str(find(path)))
    model.trained_on = header.get("objective")
    return model.to(device).eval()


def require_energies(source: str | Path | Potential) -> None:
    """Raise CheckpointError for what was only pretrained, a checkpoint or a network: it has no
    energies yet.

    A network that was loaded or trained says so by its ``trained_on``, the objective as a table.
    Weights that do not say what they were trained on are believed.
    """
    if isinstance(source, nn.Module):
        described, name = getattr(source, "trained_on", None), "this network"
        way_out = "potkit.finetune, or model.trained_on = None if it was trained elsewhere"
    else:
        described, name = read(source)[1].get("objective"), str(find(source))
        way_out = "potkit finetune --init"
    if not isinstance(described, dict):
        return
    needed = objectives.from_dict(described).needed()
    if not {"energy", "forces"} & set(needed):
        raise CheckpointError(
            f"{name}: was only pretrained ({described.get('objective', 'no labels')}) and "
            f"has no energies or forces yet; fine-tune it on labels first ({way_out})"
        )


def restore(model: Potential, state: dict[str, Tensor], source: str) -> None:
    """Load a complete state; every tensor must be there and fit. Raises CheckpointError with the
    first that does not.
    """
    if "shift" in state and model.shift is None:  # of labels normalised by their mean
        model.shift = torch.zeros_like(model.scale)
    current = model.state_dict()
    for key in sorted(current.keys() ^ state.keys()):
        problem = "missing" if key in current else "not part of this network"
        raise CheckpointError(f"{source}: tensor {key} is {problem}")
    for key, value in current.items():
        if value.shape != state[key].shape:
            raise CheckpointError(
                f"{source}: {key} has shape {tuple(state[key].shape)}, "
                f"the network's has {tuple(value.shape)}"
            )
    if any(
        state[key].dtype == torch.float64 and value.dtype == torch.float32
        for key, value in current.items()
    ):
        model.double()
    model.load_state_dict(state)


@dataclasses.dataclass(frozen=True)
class TransferReport:
    """What `transfer` did, tensor by tensor."""

    source: str
    copied: list[str]
    new: list[str]
    mismatched: list[str]

    def __str__(self) -> str:
        def group(keys: list[str]) -> str:
            parts: dict[str, int] = {}
            for key in keys:
                parts[key.split(".")[0]] = parts.get(key.split(".")[0], 0) + 1
            return ", ".join(f"{n} of {k}" for k, n in parts.items()) or "none"

        return (
            f"transfer from {self.source}: copied {group(self.copied)}; "
            f"new {group(self.new)}; did not fit {group(self.mismatched)}"
        )


def transfer(
    model: Potential,
    path: str | Path,
    parts: Sequence[str] = ("backbone",),
    allow: Sequence[str] = (),
) -> TransferReport:
    """Copy ``parts`` of a checkpoint into ``model`` in place; everything else stays as it was
    initialised.

    The backbone alone is what the denoise paper's text takes over (message-passing weights, a new
    energy MLP). Its code loads the whole state dict, energy head included: ("backbone",
    "energy_head"). The masked paper's code loads all as well.

    The parts must have the same tensors in both, of the same shapes, except those whose name starts
    with one of ``allow``; without ``allow`` the backbones must also agree in options that leave no
    trace in shapes, such as the cutoff. Raises CheckpointError naming the network, the option or
    the first tensor that does not fit; then nothing has been copied.
    """
    for part in parts:
        if part not in PARTS:
            raise CheckpointError(f"unknown part {part!r}; there are {', '.join(PARTS)}")
    tensors, header = read(path)
    source = str(find(path))
    stored_name = header["recipe"]["name"]
    model_name = getattr(model, "recipe", {}).get("name")
    if model_name != stored_name:
        raise CheckpointError(
            f"{source} holds {stored_name}, the model is {model_name}: "
            "weights of one network do not fit another"
        )
    state = weights(tensors)
    target = model.state_dict(keep_vars=True)  # shared tensors keep all their names
    prefixes = tuple(f"{part}." for part in parts)
    copied, new, mismatched = [], [], []
    for key, value in target.items():
        if not key.startswith(prefixes):
            new.append(key)
        elif key in state and state[key].shape == value.shape:
            copied.append(key)
        else:
            mismatched.append(key)
    # say, a checkpoint with more layers
    extra = [key for key in state if key.startswith(prefixes) and key not in target]
    # startswith(()) is False, so that without ``allow`` none is excused
    stop = [key for key in mismatched + extra if not key.startswith(tuple(allow))]
    if stop:
        key = stop[0]
        stored, needed = "is missing", "the network has no such tensor"
        if key in state:
            stored = f"has shape {tuple(state[key].shape)}"
        if key in target:
            needed = f"the network's has shape {tuple(target[key].shape)}"
        raise CheckpointError(f"{source}: {key} {stored}, {needed}")
    if "backbone" in parts and not allow:
        options = backbone_options(model.recipe)
        stored_options = backbone_options(header["recipe"])
        for key in sorted(options.keys() | stored_options.keys()):
            if options.get(key) != stored_options.get(key):
                raise CheckpointError(
                    f"{source} was made with {key}={stored_options.get(key)}, "
                    f"the model has {key}={options.get(key)}: not the same network"
                )
    with torch.no_grad():
        for key in copied:
            target[key].copy_(state[key])
    return TransferReport(source, copied, new, mismatched)
