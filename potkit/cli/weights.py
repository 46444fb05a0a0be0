"""The commands ``potkit weights …``: pretrained weights that ship, and those that others made."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from ..errors import CheckpointError, ConfigError, DataError

weights_app = typer.Typer(
    help="Pretrained weights: those that ship, and those of others.", no_args_is_help=True
)


@weights_app.callback()
def weights() -> None:
    """Pretrained weights: those that ship, and those of others."""


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


@weights_app.command("list")
def weights_list() -> None:
    """The weights that ship with potkit, for `finetune --init NAME`."""
    from ..training import pretrained

    for name in pretrained.names():
        print(pretrained.card(name))


@weights_app.command("pack")
def weights_pack(
    run: Annotated[Path, Argument(help="folder of a finished pretraining")],
    name: Annotated[str, Argument(help="name of the weights")],
    command: Annotated[str, Option(help="what made the run, for the card")],
    commit: Annotated[str, Option(help="commit of potkit that made the run, for the card")],
    licence: Annotated[str, Option(help="licence of the weights")] = "MIT",
    out: Annotated[Path | None, Option(help="folder; default: that of the shipped ones")] = None,
) -> None:
    """Make named weights and their card of a finished pretraining."""
    from ..training import pretrained

    print(pretrained.pack(run, name, command, commit, out, licence))


@weights_app.command("make")
def weights_make(
    file: Annotated[Path, Argument(help="experiment that was run, such as weights.yaml")],
    store: Annotated[Path, Option(help="where its runs are")],
    command: Annotated[str, Option(help="what made the runs, for the cards")],
    commit: Annotated[str, Option(help="commit of potkit that made the runs, for the cards")],
    target: Annotated[
        str | None, Option(help="name of the set it fine-tunes on, for the cards")
    ] = None,
) -> None:
    """Make named weights, with errors after fine-tuning, of an experiment's finished runs.

    They go beside those that ship; weights that are there already stay as they are.
    """
    from ..experiments import packing, yaml_form

    experiments = yaml_form.read(file).experiments(store)
    if not store.is_dir():
        raise ConfigError(f"--store {store}: no such folder of runs")
    made, left = packing.pack(experiments, command, commit, target=target)
    for card in made:
        print(card)
    for name, why in left.items():
        print(f"{name}: not made: {why}")
    if not made and packing.UNFINISHED in left.values():
        raise DataError(f"--store {store}: holds no finished runs of {file}, nothing was made")
