"""The command ``potkit export``: a trained network for other programs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from ..errors import CheckpointError, ConfigError


class Format(StrEnum):
    """What is written."""

    METATOMIC = "metatomic"
    TORCH_SIM = "torch-sim"


class Precision(StrEnum):
    """In what the exported network computes."""

    FLOAT32 = "float32"
    FLOAT64 = "float64"


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("export")(export)


def export(
    run: Annotated[Path, Argument(help="a run's folder, or a checkpoint")],
    out: Annotated[Path, Option(help="the file to write: .pt for metatomic, .safetensors else")],
    format: Annotated[
        Format,
        Option(help="metatomic: for LAMMPS, ASE, …; torch-sim: weights for `torch_sim_model`"),
    ] = Format.METATOMIC,
    dtype: Annotated[Precision, Option(help="in what it computes")] = Precision.FLOAT64,
    device: Annotated[str, Option(help="cpu or cuda: where a metatomic model runs")] = "cpu",
) -> None:
    """Write a fine-tuned network for another program."""
    if not run.exists():
        raise CheckpointError(f"{run}: no such checkpoint")
    if format is Format.METATOMIC and out.suffix != ".pt":
        raise ConfigError(f"--out {out}: engines expect a metatomic model to end in .pt")

    import torch

    from ..training import export as exports

    path = exports.export(run, out, format.value, dtype=getattr(torch, dtype.value), device=device)
    print(f"{format.value}: {path}")
