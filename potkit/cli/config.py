"""The command that says what can be set: `potkit config`."""

from __future__ import annotations

import textwrap
from typing import Annotated

import typer
from typer import Argument

from ..errors import ConfigError


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("config")(config)


def config(
    command: Annotated[
        str, Argument(help="pretrain or finetune", metavar="[pretrain|finetune]")
    ] = "finetune",
) -> None:
    """All settings of a YAML file for `pretrain --config` or `finetune --config`: meaning, type and
    default.
    """
    from . import run_file

    kinds = {"pretrain": run_file.PretrainFile, "finetune": run_file.FinetuneFile}
    if command not in kinds:
        raise ConfigError(f"{command!r} has no settings file; there are {', '.join(kinds)}")
    last = ""
    for section, key, kind, default, meaning in run_file.described(kinds[command]):
        if section != last:
            print(f"{section}:")
            last = section
        print(f"  {key}: {default}    # {kind}")
        print(textwrap.fill(meaning, 90, initial_indent=" " * 6, subsequent_indent=" " * 6))
    _objectives()
    _networks()


def _objectives() -> None:
    import dataclasses

    from ..objectives import OBJECTIVES

    print("\nsettings of objectives (further keys of `objective`):")
    for name, kind in OBJECTIVES.items():
        print(f"  {name}: " + " ".join((kind.__doc__ or "").split()))
        for field in dataclasses.fields(kind):
            print(f"    {field.name}: {field.default}    # {field.type}")


def _networks() -> None:
    import inspect

    from .. import models

    print("\noptions of networks (under `model: options`), with the constructor's defaults:")
    for name in models.names():
        print(f"  {name} (presets {', '.join(models.presets(name))}):")
        for option in inspect.signature(models.network(name)).parameters.values():
            default = "" if option.default is option.empty else str(option.default)
            print(f"    {option.name}: {default}    # {option.annotation}")
