"""The commands ``potkit data …``: what data sets there are, what is in them, making, fetching, checking and splitting them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from .errors import ConfigError, DataError

data_app = typer.Typer(help="Data sets: what there is, what is in them, making and splitting them.", no_args_is_help=True)

DataArgument = Annotated[str, Argument(help="a registered data set, or a file or folder in a known format", metavar="NAME|PATH")]
FormatOption = Annotated[str | None, Option("--format", help="the file's format, where the content does not tell")]


def _structures(data: str, format: str | None = None):
    """A registered set by name, else whatever lies at the path; a user's own file is checked before anything is cut out of it,
    so that an error names the structure by its place in the file."""
    import potkit
    from potkit.datasets import names
    from potkit.neighbors import check_overlaps

    known = list(names()["name"])
    if data in known and format is None:
        return potkit.load(data)
    if not Path(data).exists():
        raise ConfigError(f"{data!r} is neither a file or folder nor a data set; data sets: {', '.join(known)}")
    structures = potkit.read(data, format=format).validate()
    check_overlaps(structures)
    return structures


@data_app.command("list")
def data_list(cite: Annotated[bool, Option("--cite", help="BibTeX entries as well")] = False) -> None:
    """The registered data sets: size, elements, level of theory, licence, and whether they are on this machine."""
    import pandas as pd

    from potkit.datasets import names, registry

    table = names()
    columns = ["name", "kind", "structures", "molecules", "atoms", "elements", "level", "forces", "licence", "state"]
    with pd.option_context("display.width", None):
        print(table[columns].to_string(index=False, na_rep="?"))
    if cite:
        print("\n" + "\n\n".join(dict.fromkeys(registry.bibtex(name) for name in table["name"])))


@data_app.command("info")
def data_info(data: DataArgument, format: FormatOption = None) -> None:
    """What is in a data set or file: a row per system."""
    structures = _structures(data, format)
    print(structures)
    print(structures.summary().to_string(index=False, float_format=lambda value: f"{value:.4f}", max_rows=60))


@data_app.command("make")
def data_make(
    name: Annotated[str, Argument(help="a recipe: ani-mini, tip3p-mini, …")],
    out: Annotated[Path | None, Option(help="an .h5 file or a folder; default: NAME.h5 in data/ here")] = None,
    scale: Annotated[str, Option(help="size relative to the embedded set, or 'paper'")] = "1",
    jobs: Annotated[int, Option(help="processes")] = 1,
    seed: Annotated[int, Option(help="seed of all random numbers")] = 0,
) -> None:
    """Generate an embedded data set, at any size; a broken generation goes on where it stopped."""
    from potkit.datasets import recipes

    target = out or Path("data") / f"{name}.h5"
    print(recipes.make(name, out=target, scale=scale, jobs=jobs, seed=seed))
    print(f"written: {target}")


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, Argument(help="a public data set")],
    file: Annotated[list[str] | None, Option(help="only this file of it, repeatable")] = None,
) -> None:
    """Download a public data set once, with its checksum."""
    from potkit.datasets import registry

    print(registry.fetch(name, file))


@data_app.command("convert")
def data_convert(name: Annotated[str, Argument(help="a data set whose files are on this machine")]) -> None:
    """Pack a data set into the form that opens at once (memory-mapped)."""
    from potkit.datasets import registry

    print(registry.convert(name))


@data_app.command("check")
def data_check(data: DataArgument, format: FormatOption = None) -> None:
    """A health report: counts, magnitudes, units, NaN, atoms on top of each other, net forces, duplicates. Exit code 1 if unwell."""
    from potkit.datasets import checks

    structures = _structures(data, format)
    report = checks.check(structures)
    print(structures)
    print(report.to_string(index=False))
    print(f"fingerprint: {structures.fingerprint()}")
    if not report.attrs["healthy"]:
        raise DataError(f"{data}: the report above has rows that are bad")


@data_app.command("split")
def data_split(
    data: DataArgument,
    out: Annotated[Path, Option(help="where the indices go (.npz)")],
    fractions: Annotated[str, Option(help="shares of train, valid and test")] = "0.8,0.1,0.1",
    by: Annotated[str, Option(help="structure, system, or structure-within-system")] = "structure",
    seed: Annotated[int, Option(help="seed of the permutation")] = 0,
    format: FormatOption = None,
) -> None:
    """Draw a train / valid / test split and write it to a file that names the data it belongs to."""
    from potkit.datasets import splits

    try:
        shares = [float(share) for share in fractions.split(",")]
    except ValueError:
        raise ConfigError(f"--fractions {fractions!r} is not a list of numbers such as 0.8,0.1,0.1") from None
    if len(shares) != 3:
        raise ConfigError(f"--fractions needs three shares (train, valid, test), got {len(shares)}")
    structures = _structures(data, format)
    parts = dict(zip(("train", "valid", "test"), splits.split(structures, shares, seed=seed, by=by)))
    splits.save_indices(out, structures, parts, by=by, fractions=shares, seed=seed)
    print(f"{out}: " + ", ".join(f"{name} {len(rows)}" for name, rows in parts.items()))
