"""The commands ``potkit weights …``: weights that were not made here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from ..errors import CheckpointError, ConfigError

weights_app = typer.Typer(help="Weights that others made.", no_args_is_help=True)


@weights_app.callback()
def weights() -> None:
    """Weights that others made."""


@weights_app.command("import")
def weights_import(
    name: Annotated[str, Argument(help="network of a published code: denoise-egnn, masked-gns, …")],
    file: Annotated[
        Path, Argument(help="its state dict as torch.save wrote it, such as model.pth")
    ],
    out: Annotated[Path, Option(help="folder for the checkpoint, to be used as --init")],
    setting: Annotated[
        list[str] | None,
        Option(
            "--set",
            help="a setting of the published code that the weights do not tell, repeatable",
            metavar="KEY=VALUE",
        ),
    ] = None,
) -> None:
    """Make a checkpoint of a published network's weights, for `finetune --init` and `evaluate`."""
    from ..models import published, published_codes
    from ..notebooks.runner import parse_parameter
    from ..structures import outputs
    from ..training import checkpoints

    settings = {}
    for pair in setting or []:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {pair!r} is not KEY=VALUE")
        settings[key] = parse_parameter(key, text, "--set")
    outputs.check(out, checkpoints.IMPORTED)
    target = out / checkpoints.IMPORTED_FILE
    if target.exists():
        raise ConfigError(f"{target} is there already; choose another folder or delete it")
    code = published_codes.code(name)
    state = checkpoints.read_pickled(file)
    try:
        model = published(name, state, **settings)
    except CheckpointError as error:
        raise CheckpointError(f"{file}: {error}") from None
    origin = {"imported": {"file": file.name, "network": name}}
    checkpoints.save(target, model, origin, kind=outputs.PART)
    print(f"{name}: {model.n_parameters():,} weights")
    told = code.sizes(state)
    for key, value in model.recipe["options"].items():
        if key in told:
            source = "from the weights"
        elif key in settings:
            source = "given"
        else:
            source = "as published, the weights do not tell"
        print(f"  {key}: {value} ({source})")
    if hasattr(code, "NOTE"):
        print(f"note: {code.NOTE}")
    print(f"weights: {target}")
