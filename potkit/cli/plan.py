"""The commands around a study's numbers: how many runs it needs (plan), what it has to beat
(baselines), how much of its spread is numerics, and whether what is stored follows from its runs
(verify).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from typer import Argument, Option

from ..errors import ConfigError, DataError

if TYPE_CHECKING:
    import pandas as pd

MOST_DRAWS = 10_000  # of labels in a pretraining, and of label budgets
FolderOption = Annotated[Path, Option("--results", help="folder of stored results")]


def register(app: typer.Typer) -> None:
    """Add these commands to ``app``."""
    app.command()(plan)
    app.command()(verify)
    app.command()(baselines)
    app.command()(numerics)


def plan(
    runs: Annotated[Path, Argument(help="a pilot's runs: NAME-runs.csv of `potkit compare --out`")],
    arm: Annotated[str | None, Option(help="arm to plan for; default: the declared one")] = None,
    against: Annotated[str | None, Option(help="arm it is compared with")] = None,
    metric: Annotated[str | None, Option(help="error that is compared")] = None,
    half_width: Annotated[float, Option(help="wanted half width of the 95 % interval, in %")] = 5.0,
    pretrain_hours: Annotated[
        float | None, Option(help="of one pretraining; default: the pilot's mean")
    ] = None,
    finetune_hours: Annotated[
        float | None,
        Option(help="of one draw's fine-tunings, both arms; default: the pilot's mean"),
    ] = None,
    draws: Annotated[int, Option(help="most draws of labels in a pretraining")] = 5,
    budgets: Annotated[int, Option(help="label budgets the contrast will be averaged over")] = 1,
    assurance: Annotated[
        float | None, Option(help="reach it with this probability; default: on average")
    ] = None,
) -> None:
    """How many pretrainings, and label draws in each, reach an interval with the fewest hours."""
    from ..experiments import statistics
    from ..structures.settings import count

    count(draws, "--draws", most=MOST_DRAWS)
    count(budgets, "--budgets", most=MOST_DRAWS)
    table = statistics.plan(
        _pilot(runs),
        arm,
        against,
        metric,
        half_width / 100,
        pretrain_hours,
        finetune_hours,
        range(1, draws + 1),
        budgets,
        assurance,
    )
    if not len(table):
        raise DataError(f"{runs}: no experiment has both arms")
    columns = list(table.columns)
    by = columns[: columns.index("arm")]
    for key, part in table.groupby(by, sort=False) if by else [((), table)]:
        print(_in_words(part, " ".join(map(str, key))))
        shown = part[["pretrainings", "draws", "half_width_%", "hours", "best"]]
        print(
            shown.assign(best=shown["best"].map({True: "cheapest", False: ""})).to_string(
                index=False, float_format=lambda value: f"{value:.3g}"
            )
        )


def _pilot(path: Path) -> pd.DataFrame:
    """The runs in a file, with the contrast their experiment declared where its record lies
    beside.
    """
    from ..report import tables
    from ..report import verify as verification

    if not path.is_file():
        raise DataError(f"{path}: no such file")
    if path.name.endswith("-runs.csv") and path.with_suffix(".json").is_file():
        return verification.stored_runs(path.name.removesuffix("-runs.csv"), path.parent)
    table = tables.read(path)
    missing = {"arm", "seed", "labels", "seconds"} - set(table)
    if missing:
        raise DataError(f"{path}: not a table of runs, it has no column {min(missing)!r}")
    return table


def _in_words(part: pd.DataFrame, name: str) -> str:
    """What the pilot of one experiment knows."""
    import math

    r = part.iloc[0]
    text = f"{name + ': ' if name else ''}{r['arm']} against {r['against']}, {r['metric']}: "
    text += (
        f"spread of a run {r['total_%']:.1f} % ({r['total_low_%']:.1f} to {r['total_high_%']:.1f})"
    )
    if math.isnan(r["within_%"]):
        text += ", one run a pretraining: what further draws would bring is not told"
    else:
        text += f", between pretrainings {r['between_%']:.1f} %, within {r['within_%']:.1f} %"
    pilot = f" ({r['pilot']} pretrainings in the pilot"
    return text + pilot + ("; enough already)" if r["enough"] else ")")


def verify(
    results: FolderOption = Path("data/results"),
    root: Annotated[Path, Option(help="folder of README.md and RESULTS.md")] = Path("."),
    rewrite: Annotated[
        bool,
        Option("--rewrite", help="store what the runs say, draw pictures, fill the documents"),
    ] = False,
    data: Annotated[
        bool, Option("--data", help="also the baselines, from the data their experiments name")
    ] = False,
) -> None:
    """Recompute every stored table, interval and verdict from the stored runs, and say what
    differs.
    """
    from ..report import verify as verification

    if rewrite:
        for path in verification.rewrite(results, root):
            print(f"written: {path}")
    verified = verification.verify(results, root, data)
    print(verified)
    if not verified.holds:
        print(verified.differences.head(40).to_string(index=False, max_colwidth=60))
        raise DataError(
            f"{len(verified.differences)} stored numbers do not follow from the stored runs; "
            "if the runs are right: potkit verify --rewrite"
        )


def baselines(
    experiment: Annotated[Path, Argument(help="an experiment in YAML; see potkit.specs")],
    xtb: Annotated[bool, Option("--xtb", help="GFN2-xTB as well (needs tblite)")] = False,
    out: Annotated[Path | None, Option(help="folder for NAME-baselines.csv and its record")] = None,
) -> None:
    """What networks have to beat: errors of predictions without a network, on an experiment's
    labels and test set.
    """
    from ..experiments import baselines as trivial
    from ..experiments import yaml_form
    from ..report import tables as report
    from ..structures import outputs

    spec = yaml_form.read(experiment)
    if out is not None:
        outputs.check_folder(out, to_write=True)
        report.check_results(out, f"{spec.name}-baselines")
    names = [*trivial.TRIVIAL, *([trivial.XTB] if xtb else [])]
    table = trivial.of_spec(spec, names)
    for line in table.attrs["left_out"]:
        print(line, file=sys.stderr)
    if table.empty:
        raise DataError(f"{experiment}: no baseline applies")
    shown = table.pivot(
        index=[c for c in table if c not in ("metric", "mean")], columns="metric", values="mean"
    )
    print("errors in eV and eV/Å")
    print(
        shown.reset_index().to_string(
            index=False, float_format=lambda value: f"{value:.4f}", na_rep=""
        )
    )
    if out is not None:
        command = f"potkit baselines {experiment}{' --xtb' if xtb else ''} --out {out}"
        print(f"written: {report.store(table, f'{spec.name}-baselines', command, out)}")


def numerics(
    experiment: Annotated[Path, Argument(help="an experiment in YAML; see potkit.specs")],
    threads: Annotated[
        list[int] | None, Option(help="numbers of threads, repeatable; default: 1 and 2")
    ] = None,
    instructions: Annotated[
        list[str] | None,
        Option(
            help="instead of threads: sets of instructions (default, avx2, avx512), repeatable, as "
            "another processor would have them"
        ),
    ] = None,
    store: Annotated[
        Path, Option(help="folder of finished runs, in one folder for each number of threads")
    ] = Path("runs/numerics"),
    out: Annotated[
        Path | None, Option(help="folder for NAME.csv, NAME-threads.csv or NAME-instructions.csv")
    ] = None,
) -> None:
    """How much of the spread over seeds is numerics: the same runs with one and two threads, or
    with the instructions of one processor and of another."""
    from ..experiments import numerics as same_seed
    from ..experiments import yaml_form
    from ..report import tables as report
    from ..structures import outputs

    outputs.check_folder(store)
    if threads and instructions:
        raise ConfigError("--threads and --instructions are two measurements; give one of them")
    spec = yaml_form.read(experiment)
    ways = f"{spec.name}-{same_seed.INSTRUCTIONS if instructions else same_seed.THREADS}"
    if out is not None:
        outputs.check_folder(out, to_write=True)
        report.check_results(out, spec.name, ways)
    grid = spec.experiments(store=store)
    runs = same_seed.measure(grid, tuple(threads or (1, 2)), instructions=instructions or ())
    # of what is stored, rounded as it is, so that `verify` makes the same of it
    table = same_seed.summarise(report.as_stored(runs))
    written: list[Path] = []
    if out is not None:
        asked = "".join(f" --threads {n}" for n in threads or ())
        asked += "".join(f" --instructions {name}" for name in instructions or ())
        command = f"potkit numerics {experiment}{asked} --out {out}"
        report.store(runs, ways, command, out)
        written.append(report.store(table, spec.name, command, out, experiment=spec.model_dump()))
    spread = table["between"].iloc[0]
    print(f"spreads of log errors in %: over seeds, and of one seed between {spread}")
    print(table.to_string(index=False, float_format=lambda value: f"{value:.3g}"))
    for path in written:
        print(f"written: {path}")
