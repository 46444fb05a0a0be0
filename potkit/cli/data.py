"""The commands ``potkit data …``: what data sets there are, what is in them, making, fetching,
checking and splitting them.
"""

from __future__ import annotations

import functools
import glob
import inspect
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ..errors import ConfigError, DataError
from . import streams

data_app = typer.Typer(
    help="Data sets: what there is, what is in them, making and splitting them.",
    no_args_is_help=True,
)

DataArgument = Annotated[
    str,
    Argument(
        help="a registered data set, or a file or folder in a known format", metavar="NAME|PATH"
    ),
]
FormatOption = Annotated[
    str | None, Option("--format", help="the file's format, where the content does not tell")
]


_READING: dict[str, tuple[str, str]] = {  # option of `potkit.read` -> what it is for
    "energy_key": ("NAME", "what the file calls the energy, where it is not to be guessed"),
    "forces_key": ("NAME", "what the file calls the forces; none: read none"),
    "stress_key": ("NAME", "what the file calls the stress, or its virial; none: read none"),
    "energy_unit": ("UNIT", "of the file's energies: eV, hartree, kcal/mol, kJ/mol …"),
    "forces_unit": ("UNIT", "of the file's forces; default: energy unit over length unit"),
    "length_unit": ("UNIT", "of the file's positions: angstrom, bohr, nm"),
    "type_map": ("ELEMENTS", "of DeePMD and LAMMPS: the elements in the order of the types"),
    "missing_labels": ("keep|stop|drop", "where only some structures have energies or forces"),
    "isolated_atoms": ("references|keep", "what single atoms among larger structures become"),
    "waters": ("yes|no", "of extended xyz: number the molecules of water, to mask by molecule"),
}
YES_OR_NO = {"yes": True, "no": False}


def reads_files(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of `_READING`, which it gets together as ``reading``."""
    own = inspect.signature(command, eval_str=True)
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[str | None, Option(metavar=metavar, help=text)],
        )
        for name, (metavar, text) in _READING.items()
    ]

    @functools.wraps(command)
    def with_options(**values):
        given = {name: values.pop(name) for name in _READING}
        reading: dict[str, Any] = {k: value for k, value in given.items() if value is not None}
        if "waters" in reading:
            if reading["waters"] not in YES_OR_NO:
                raise ConfigError(f"--waters must be yes or no, got {reading['waters']!r}")
            reading["waters"] = YES_OR_NO[reading["waters"]]
        return command(**values, reading=reading)

    kept = [p for name, p in own.parameters.items() if name != "reading"]
    kept = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in kept]
    with_options.__signature__ = own.replace(parameters=[*kept, *options])
    with_options.__annotations__ = {p.name: p.annotation for p in (*kept, *options)}
    return with_options


def _structures(data: str, format: str | None = None, reading: dict[str, str] | None = None):
    """A registered set by name, else whatever lies at the path; a user's own file is checked before
    anything is cut out of it, so that an error names the structure by its place in the file.
    """
    structures, from_file = _opened(data, format, reading)
    if from_file:
        from potkit.structures.neighbors import check_geometry

        check_geometry(structures)
    return structures


def _beside(name: str, data: str, format: str | None, reading: dict[str, str] | None):
    """`_structures` of a set that is used beside ``data``. How files are read is said for those of
    the user: a registered set beside one needs none of it.
    """
    from potkit.datasets.registry import is_name

    if is_name(name) and not is_name(data):
        return _structures(name)
    return _structures(name, format, reading)


def _opened(data: str, format: str | None = None, reading: dict[str, str] | None = None):
    """The structures, and whether they come from a user's file, not from a registered set."""
    import potkit
    from potkit.datasets.registry import is_name

    if is_name(data) and (format is None or not Path(data).exists()):
        given = ["format"] * (format is not None) + list(reading or {})
        if given:
            raise ConfigError(
                f"--{given[0].replace('_', '-')} is for files of your own; {data!r} is "
                "a registered set, whose names and units are known"
            )
        return potkit.load(data), False
    from potkit.datasets.reading import UnitWarning, report

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnitWarning)  # a line of the report says it
        structures = potkit.read(_existing(data), format=format, **(reading or {}))
    for line in report(structures):
        streams.say_aside(line)
    return structures, True


def check_source(data: str | None) -> None:
    """Raise ConfigError where ``data`` is neither a registered set nor something on the disk; it
    imports little, so that a wrong name is said at once.
    """
    from potkit.datasets.records import RECORDS

    if data is None:
        return
    name, _, part = data.partition("/")
    known = {record.name for record in RECORDS}
    if data not in known and not (part and name in known):  # a part: `load` knows which there are
        _existing(data)


def _existing(data: str) -> str | list[str]:
    """A file, a folder, a glob, or several of them with commas between."""
    from potkit.datasets.records import RECORDS

    several = data.split(",")
    if len(several) > 1 and not Path(data).exists():
        if "" in map(str.strip, several):
            raise ConfigError(f"{data!r}: a name is missing beside a comma")
        return [one for name in several for one in [_existing(name)]]
    if not Path(data).exists() and not glob.has_magic(data):
        names = ", ".join(r.name for r in RECORDS)
        raise ConfigError(
            f"{data!r} is neither a file or folder nor a data set; data sets: {names}"
        )
    return data


@data_app.command("list")
def data_list(
    name: Annotated[
        str | None,
        Argument(help="tell everything about this one: files, checksums, split, use, citation"),
    ] = None,
    cite: Annotated[bool, Option("--cite", help="BibTeX entries as well")] = False,
) -> None:
    """The registered data sets: size, elements, level of theory, licence, and whether they are
    on this machine.
    """
    import pandas as pd

    from potkit.datasets import names, registry

    if name is not None:
        print(registry.describe(name))
        return
    table = names()
    columns = [
        "name",
        "kind",
        "structures",
        "molecules",
        "atoms",
        "elements",
        "level",
        "forces",
        "licence",
        "state",
    ]
    with pd.option_context("display.width", None):
        print(table[columns].to_string(index=False, na_rep="?"))
    if cite:
        print("\n" + "\n\n".join(dict.fromkeys(registry.bibtex(name) for name in table["name"])))


@data_app.command("info")
@reads_files
def data_info(data: DataArgument, format: FormatOption = None, reading: Any = None) -> None:
    """What is in a data set or file: a row per system."""
    structures = _structures(data, format, reading)
    print(structures)
    print(
        structures.summary().to_string(
            index=False, float_format=lambda value: f"{value:.4f}", max_rows=60
        )
    )


@data_app.command("make")
def data_make(
    name: Annotated[str, Argument(help="a recipe: ani-mini, tip3p-mini, …")],
    out: Annotated[
        Path | None, Option(help="an .h5 file or a folder; default: NAME.h5 in data/ here")
    ] = None,
    scale: Annotated[str, Option(help="size relative to the embedded set, or 'paper'")] = "1",
    jobs: Annotated[int, Option(help="processes")] = 1,
    seed: Annotated[int, Option(help="seed of all random numbers")] = 0,
    finished: Annotated[
        bool,
        Option("--finished", help="make nothing more: write the set of the parts that are done"),
    ] = False,
) -> None:
    """Generate an embedded data set, at any size; a broken generation goes on where it stopped."""
    from potkit.datasets import recipes

    target = out or Path("data") / f"{name}.h5"
    made = recipes.make(name, out=target, scale=scale, jobs=jobs, seed=seed, finished=finished)
    print(made)
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
@reads_files
def data_convert(
    data: Annotated[
        str,
        Argument(
            help="a data set whose files are on this machine, or a file or folder",
            metavar="NAME|PATH",
        ),
    ],
    out: Annotated[
        Path | None, Option(help="the store, a folder; a registered set goes into the cache")
    ] = None,
    format: FormatOption = None,
    reading: Any = None,
) -> None:
    """Pack a data set into the form that opens at once (memory-mapped), in memory that does not
    grow with it.
    """
    from potkit.datasets import registry

    if data in [r.name for r in registry.RECORDS] and format is None:
        if out is not None:
            raise ConfigError(
                "--out is for files of your own: a registered set is packed into the cache "
                "(POTKIT_DATA)"
            )
        print(registry.convert(data))
        return
    if out is None:
        raise ConfigError(f"--out is needed to pack {data!r}, which is not a registered set")
    print(registry.pack(_existing(data), out, format, progress=True, **(reading or {})))


@data_app.command("check")
@reads_files
def data_check(
    data: DataArgument,
    cutoff: Annotated[
        float | None, Option(help="Å; boxes narrower than twice this are an error")
    ] = None,
    format: FormatOption = None,
    reading: Any = None,
) -> None:
    """A health report: counts, magnitudes, units, NaN, atoms on top of each other, net forces,
    duplicates. Exit code 1 if unwell.
    """
    from potkit.datasets import checks

    if cutoff is not None and not 0 < cutoff < float("inf"):
        raise ConfigError(f"--cutoff must be a positive number, got {cutoff}")
    structures, _ = _opened(data, format, reading)
    report = checks.check(structures, cutoff=cutoff)
    print(structures)
    print(report.to_string(index=False))
    print(f"fingerprint: {structures.fingerprint()}")
    if not report.attrs["healthy"]:
        raise DataError(f"{data}: the report above has rows that are bad")
    if cutoff is not None:
        checks.require_wide_boxes(structures, cutoff, data)


@data_app.command("leakage")
@reads_files
def data_leakage(
    first: Annotated[
        str, Argument(help="what is trained on, such as the pretraining set", metavar="NAME|PATH")
    ],
    second: Annotated[str, Argument(help="what is tested on", metavar="NAME|PATH")],
    tolerance: Annotated[float, Option(help="Å")] = 1e-3,
    distance: Annotated[
        bool, Option("--distance", help="also how near they lie (dRMSD), beside neighbours in time")
    ] = False,
    out: Annotated[Path | None, Option(help="write the pairs to this CSV file")] = None,
    format: FormatOption = None,
    reading: Any = None,
) -> None:
    """Which structures of the second set are in the first as well, however turned, shifted or
    reordered; a periodic box that was turned is not found. Exit code 1 if any are. Options of
    reading are for those of the two that are files.
    """
    from potkit.datasets import splits
    from potkit.datasets.duplicates import PAIRS
    from potkit.structures.outputs import check
    from potkit.structures.storage import replacing

    if out is not None:
        check(out, PAIRS)
    trained, tested = _two_sets(first, second, format, reading)
    leaked = splits.leakage(trained, tested, tolerance)
    if distance:
        near = splits.leakage_by_distance(trained, tested)
        print(near.to_string(index=False, float_format=lambda value: f"{value:.3f}"))
        print(near.attrs["message"])
    if len(leaked):
        print("pairs that are the same, by system of the second set:")
        counts = leaked["system"].value_counts().rename_axis("system").reset_index(name="pairs")
        print(counts.to_string(index=False, max_rows=20))
    else:
        print(leaked.attrs["message"])
    if out is not None:
        with replacing(out, PAIRS) as temporary:
            leaked.to_csv(temporary, index=False)
    if len(leaked):
        raise DataError(f"{second}: {leaked.attrs['message']}")


def _two_sets(first: str, second: str, format: str | None, reading: dict[str, str]):
    """Both sets; ``format`` and ``reading`` are for those that are files."""
    from potkit.datasets.registry import is_name

    registered = [is_name(name) for name in (first, second)]
    if all(registered):
        return _opened(first, format, reading)[0], _opened(second, format, reading)[0]
    return tuple(
        _opened(name)[0] if known else _opened(name, format, reading)[0]
        for name, known in zip((first, second), registered, strict=True)
    )


@data_app.command("split")
@reads_files
def data_split(
    data: DataArgument,
    out: Annotated[Path, Option(help="where the indices go (.npz)")],
    fractions: Annotated[str, Option(help="shares of train, valid and test")] = "0.8,0.1,0.1",
    by: Annotated[
        str,
        Option(
            help="structure, system, structure-within-system, block, "
            "or published (the set's own split)"
        ),
    ] = "structure",
    block: Annotated[
        int | None,
        Option(help="successive structures in a block; default: a twentieth of each system"),
    ] = None,
    gap: Annotated[int, Option(help="structures left out between blocks of different parts")] = 0,
    seed: Annotated[int, Option(help="seed of the permutation")] = 0,
    fold: Annotated[int, Option(help="which of several published splits")] = 1,
    format: FormatOption = None,
    reading: Any = None,
) -> None:
    """Draw a train / valid / test split and write it to a file that names the data it belongs
    to.
    """
    from potkit.datasets import registry, splits
    from potkit.structures.outputs import check

    check(out, splits.SPLIT)
    if by != "block" and (block is not None or gap):
        raise ConfigError(f"{'--gap' if gap else '--block'} is for --by block, not for --by {by}")
    if by != "published" and fold != 1:
        raise ConfigError(f"--fold is for --by published, not for --by {by}")
    if by == "published":
        structures = _structures(data, format, reading)
        parts = registry.published_split(data, structures, fold)
        splits.save_indices(out, structures, parts, by=by, fold=fold)
        print(f"{out}: " + ", ".join(f"{name} {len(rows)}" for name, rows in parts.items()))
        return
    try:
        shares = [float(share) for share in fractions.split(",")]
    except ValueError:
        raise ConfigError(
            f"--fractions {fractions!r} is not a list of numbers such as 0.8,0.1,0.1"
        ) from None
    if not any(shares):
        raise ConfigError(f"--fractions {fractions}: no part would have a structure")
    if len(shares) != 3:
        raise ConfigError(f"--fractions needs three shares (train, valid, test), got {len(shares)}")
    structures = _structures(data, format, reading)
    drawn = splits.split(structures, shares, seed=seed, by=by, block=block, gap=gap)
    parts = dict(zip(("train", "valid", "test"), drawn, strict=True))
    about = {"block": block, "gap": gap} if by == "block" else {}
    splits.save_indices(out, structures, parts, by=by, fractions=shares, seed=seed, **about)
    print(f"{out}: " + ", ".join(f"{name} {len(rows)}" for name, rows in parts.items()))
