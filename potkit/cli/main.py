"""The command ``potkit``: what the module does, from a shell. Commands import what they need when
they run, so help is quick.

A mistake of the user (PotkitError) is one line on stderr and exit code 1; ``potkit --debug …``
shows the traceback instead.
"""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ..errors import CheckpointError, ConfigError, DataError, PotkitError
from ..structures import endings
from ..structures.progress import first_process
from . import report, streams
from .bench import FigureOption, bench_app
from .config import register as register_config
from .data import FormatOption, _beside, _structures, check_source, data_app, reads_files
from .export import register as register_export
from .md import register as register_md
from .plan import register
from .specs import register as register_specs
from .weights import weights_app

DEFAULT_STORE = Path("runs/store")
INTERRUPTED = 130  # what typer makes of Ctrl-C that a command does not mind itself

app = typer.Typer(
    help="Self-supervised pretraining of neural potentials.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(data_app, name="data")
app.add_typer(bench_app, name="bench")
app.add_typer(weights_app, name="weights")
register(app)
register_specs(app)
register_config(app)
register_export(app)
register_md(app)

DataOption = Annotated[
    str | None,
    Option(
        "--data",
        help="a registered data set, or a file or folder; or in the file of --config",
        metavar="NAME|PATH",
    ),
]
PresetOption = Annotated[
    str | None, Option(help="small, denoise-paper or masked-paper; default: small")
]
ModelSet = Annotated[
    list[str] | None,
    Option("--set", help="one option of the network, repeatable", metavar="KEY=VALUE"),
]
ObjectiveSet = Annotated[
    list[str] | None,
    Option("--objective-set", help="one setting of the objective, repeatable", metavar="KEY=VALUE"),
]
ConfigOption = Annotated[
    Path | None,
    Option(
        "--config",
        help="settings as YAML: sections data, model, objective and training, or training settings "
        "alone (`potkit config` prints them); options go before it",
    ),
]
ConfigSet = Annotated[
    list[str] | None,
    Option("--config-set", help="any other training setting, repeatable", metavar="KEY=VALUE"),
]
Steps = Annotated[int | None, Option(help="optimizer steps")]
BatchSize = Annotated[int | None, Option(help="structures per step, over all devices together")]
Rate = Annotated[float | None, Option("--lr", help="learning rate after warm-up")]
Seed = Annotated[int | None, Option(help="seed of weights, batches and corruption")]
Device = Annotated[str | None, Option(help="auto, cpu or cuda")]
Devices = Annotated[
    int | None, Option(help="processes per machine, each with its own GPU (or share of the CPU)")
]
Nodes = Annotated[int | None, Option("--num-nodes", help="machines")]
Force = Annotated[
    bool,
    Option(
        "--force",
        help="replace another run of potkit's in the folder; nothing else is ever replaced",
    ),
]
Log = Annotated[
    str | None,
    Option(help="tensorboard: the metrics also go to the folder tensorboard/ of the run"),
]
Extend = Annotated[
    int | None,
    Option(
        min=1,
        metavar="STEPS",
        help="train the finished run in --out by so many more steps, in the folder OUT-plusSTEPS; "
        "the other options as when it was made",
    ),
]
FiguresOption = Annotated[
    bool, Option("--figures/--no-figures", help="store errors and figures in the run's folder")
]
Precision = Annotated[str | None, Option(help="32-true, 64-true, bf16-mixed or tf32")]


# --- small helpers ------------------------------------------------------------------------------


def _say(text: object) -> None:
    """Print once, however many processes a launcher started."""
    if first_process():
        print(text, flush=True)


# what keys that have an option of their own stand for
OWN = {"name": "the network's name (--model)", "preset": "--preset", "seed": "--seed"}


def _assignments(
    option: str, pairs: list[str] | None, reserved: Sequence[str] = ()
) -> dict[str, Any]:
    """KEY=VALUE strings as a dict; values are read as YAML. ``reserved`` keys have an option of
    their own.
    """
    result = {}
    for pair in pairs or []:
        from ..notebooks.runner import parse_parameter

        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"{option} {pair!r} is not KEY=VALUE")
        if key in reserved:
            raise ConfigError(
                f"{option} {key}: {OWN.get(key, key)} is given by an option of its own"
            )
        if key in result:
            raise ConfigError(f"{option} {key}: given twice")
        result[key] = parse_parameter(key, text, option)
    return result


def _config(file: Path | dict[str, Any] | None, options: list[str] | None, **overrides: Any):
    """The training settings: defaults, then the file, then single settings."""
    from ..training.config import TrainConfig

    base = TrainConfig.from_yaml(file) if isinstance(file, Path) else TrainConfig(**(file or {}))
    changes = _assignments("--config-set", options) | {
        name: value for name, value in overrides.items() if value is not None
    }
    if "steps" in changes and "epochs" not in changes:
        changes["epochs"] = None  # steps asked for here mean more than the file's epochs
    return base.replace(**changes)


def _objective(name: str, options: list[str] | None, **shortcuts: Any):
    from potkit import objectives

    given = {key: value for key, value in shortcuts.items() if value is not None}
    return objectives.from_dict(
        {"objective": name, **given, **_assignments("--objective-set", options, ["objective"])}
    )


def _model(
    name: str | None,
    preset: str,
    options: list[str] | None,
    seed: int,
    init: Path | None = None,
    given: dict[str, Any] | None = None,
):
    """A new network with seeded weights; without ``name`` of the architecture that ``init``
    holds, else egnn.
    """
    import torch

    import potkit

    torch.manual_seed(seed)
    if name is None and init is not None:
        if options or given:
            raise ConfigError(
                "--set changes the network of --model; without --model it is the one in --init"
            )
        return potkit.checkpoints.build_again(potkit.checkpoints.read(init)[1], init)
    own = {**(given or {}), **_assignments("--set", options, ["name", "preset", "seed"])}
    return potkit.build(name or "egnn", preset=preset, **own)


def _data_of(data: str | None, file: Any, config: Path | None) -> str:
    """The data that an option or the file of settings names; looked for before anything heavy is
    imported.
    """
    data = data or file.data.data
    if data is None:
        where = f" and {config} has no data: data" if config else ""
        raise typer.BadParameter(f"--data is missing{where}")
    check_source(data)
    return data


def _objective_of(
    file: Any, name: str | None, options: list[str] | None, default: str, **shortcuts: Any
):
    """The objective of the options, over that of the file unless they name another."""
    same = name in (None, file.objective.name or default)
    given = dict(file.objective.model_extra or {}) if same else {}
    given |= {key: value for key, value in shortcuts.items() if value is not None}
    return _objective(name or file.objective.name or default, options, **given)


def _network_of(
    file: Any,
    name: str | None,
    preset: str | None,
    options: list[str] | None,
    seed: int,
    init: Path | None = None,
):
    """The network of the options, over that of the file unless they name another."""
    same = name in (None, file.model.name)
    given = file.model.options if same else {}
    return _model(
        name or file.model.name,
        preset or (file.model.preset if same else "small"),
        options,
        seed,
        init,
        given,
    )


def _finished(run: Any) -> None:
    _say(run)
    _say(f"weights: {run.checkpoint}")


# --- training -----------------------------------------------------------------------------------


@app.command()
@reads_files
def pretrain(
    data: DataOption = None,
    objective: Annotated[
        str | None, Option(help="self-supervised objective; default: denoise")
    ] = None,
    sigma: Annotated[
        float | None, Option(help="noise scale in Å, for objectives with noise")
    ] = None,
    ratio: Annotated[
        float | None, Option(help="mask ratio in (0, 1], for objectives that mask")
    ] = None,
    objective_set: ObjectiveSet = None,
    model: Annotated[str | None, Option(help="network; default: egnn")] = None,
    preset: PresetOption = None,
    model_set: ModelSet = None,
    config: ConfigOption = None,
    config_set: ConfigSet = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    seed: Seed = None,
    device: Device = None,
    devices: Devices = None,
    nodes: Nodes = None,
    precision: Precision = None,
    log: Log = None,
    format: FormatOption = None,
    out: Annotated[Path, Option(help="folder of the run; a half-finished one goes on")] = Path(
        "runs/pretrain"
    ),
    extend: Extend = None,
    force: Force = False,
    reading: Any = None,
) -> None:
    """Pretrain a network on structures without looking at their labels."""
    from . import run_file

    file = run_file.read(run_file.PretrainFile, config)
    settings = _config(
        file.training,
        config_set,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        device=device,
        devices=devices,
        nodes=nodes,
        precision=precision,
        log=log,
    )
    data = _data_of(data, file, config)
    format = format or file.data.format

    import potkit
    from potkit.structures import outputs
    from potkit.training import run_folder

    outputs.check(out, run_folder.RUN)
    task = _objective_of(file, objective, objective_set, "denoise", sigma=sigma, ratio=ratio)
    network = _network_of(file, model, preset, model_set, settings.seed)
    _finished(
        potkit.pretrain(
            network,
            _structures(data, format, reading),
            task,
            settings,
            out=out,
            overwrite=force,
            extend=extend,
        )
    )


@app.command()
@reads_files
def finetune(
    data: DataOption = None,
    init: Annotated[
        Path | None,
        Option(
            help="checkpoint, run folder or pretrained weights (`potkit weights list`) to start "
            "from; without it: from scratch"
        ),
    ] = None,
    valid: Annotated[
        str | None, Option(help="validation data; default: a tenth of --data", metavar="NAME|PATH")
    ] = None,
    test: Annotated[
        str | None, Option(help="data to evaluate on at the end", metavar="NAME|PATH")
    ] = None,
    split: Annotated[
        Path | None, Option(help="train, valid and test of --data, made by `potkit data split`")
    ] = None,
    labels: Annotated[
        int | None, Option(help="label budget: use only so many of the training structures")
    ] = None,
    parts: Annotated[
        str | None,
        Option(help="what to take over from --init; default: what its card says, else backbone"),
    ] = None,
    references: Annotated[
        str | None,
        Option(
            help="what is taken off the energies: least-squares, isolated, none, a table of "
            "isolated atoms by level of theory, or a file; default: as the settings say"
        ),
    ] = None,
    objective: Annotated[
        str | None, Option(help="objective with labels; default: supervised")
    ] = None,
    objective_set: ObjectiveSet = None,
    model: Annotated[str | None, Option(help="network; default: that of --init, else egnn")] = None,
    preset: PresetOption = None,
    model_set: ModelSet = None,
    config: ConfigOption = None,
    config_set: ConfigSet = None,
    steps: Steps = None,
    batch_size: BatchSize = None,
    lr: Rate = None,
    seed: Seed = None,
    device: Device = None,
    devices: Devices = None,
    nodes: Nodes = None,
    precision: Precision = None,
    log: Log = None,
    format: FormatOption = None,
    out: Annotated[Path, Option(help="folder of the run; a half-finished one goes on")] = Path(
        "runs/finetune"
    ),
    extend: Extend = None,
    force: Force = False,
    reading: Any = None,
    figures: FiguresOption = True,
) -> None:
    """Train a network on labels, from scratch or from pretrained weights.

    Errors on the validation (and test) structures are printed and stored in the folder report/ of
    the run, with predictions against labels and the course of training as figures.
    """
    from . import run_file

    file = run_file.read(run_file.FinetuneFile, config)
    references = references or file.data.references
    word = "least-squares" if references == "fit" else references
    choices = ("least-squares", "isolated", "none")
    settings = _config(
        file.training,
        config_set,
        steps=steps,
        batch_size=batch_size,
        lr=lr,
        seed=seed,
        device=device,
        devices=devices,
        nodes=nodes,
        precision=precision,
        log=log,
        references=word if word in choices else None,
    )
    if split and valid:
        raise ConfigError("--split brings its own validation part; leave --valid away")
    # what an option says goes before what the file says of the same
    split = split or (None if valid else file.data.split)
    valid = valid or (None if split else file.data.valid)
    if split and valid:
        raise ConfigError(f"{config}: data: split brings its own validation part; leave valid away")
    data = _data_of(data, file, config)
    test = test or file.data.test
    for name in (valid, test):
        check_source(name)
    init = init or file.model.init
    if parts and init is None:
        raise ConfigError(f"--parts {parts}: there is no --init to take them over from")
    if init is not None and not init.exists():  # the name of pretrained weights, or a mistake
        from potkit.training import pretrained

        init = pretrained.resolve(init)
    if split is not None and not split.is_file():
        raise ConfigError(f"{split}: no such split file")
    labels = labels if labels is not None else file.data.labels
    format = format or file.data.format

    import potkit
    from potkit.datasets import splits
    from potkit.structures import outputs
    from potkit.training import run_folder

    outputs.check(out, run_folder.RUN)
    structures = _structures(data, format, reading)
    # without options it is the library's choice, which leaves forces out where there are none
    asked = objective or objective_set or file.objective.name or file.objective.model_extra
    task = _objective_of(file, objective, objective_set, "supervised") if asked else None
    tested = _beside(test, data, format, reading) if test else None
    if split:
        rows = splits.load_indices(split, structures)
        train = structures[splits.part(rows, "train", split)]
        held = structures[splits.part(rows, "valid", split)]
        tested = tested if test else structures[splits.part(rows, "test", split)]
    elif valid:
        train = structures
        held = _beside(valid, data, format, reading)
    else:
        train, held = structures.split((0.9, 0.1), seed=settings.seed)
    if labels is not None:
        train = train[splits.label_budget(train, [labels], seed=settings.seed)[labels]]
    network = _network_of(file, model, preset, model_set, settings.seed, init)
    run = potkit.finetune(
        network,
        train,
        held,
        settings,
        init=init,
        out=out,
        objective=task,
        references=None if word in choices else word,
        parts=tuple(parts.split(",") if parts else file.model.parts or ()) or None,
        overwrite=force,
        extend=extend,
    )
    _finished(run)
    if not first_process():
        return
    if figures:
        report.course(run.path)
    for name, part in (("valid", held), ("test", tested)):
        if part is not None and len(part):
            result = potkit.evaluate(run.model, part, keep_forces=True)
            report.errors(run.path if figures else None, name, result, part, run.model)


@app.command()
@reads_files
def evaluate(
    checkpoint: Annotated[Path, Argument(help="a checkpoint or a run folder")],
    data: Annotated[
        str,
        Option("--data", help="a registered data set, or a file or folder", metavar="NAME|PATH"),
    ],
    split: Annotated[
        Path | None, Option(help="evaluate only the test part of this split of --data")
    ] = None,
    batch_size: Annotated[int, Option(help="structures at a time")] = 64,
    device: Annotated[str, Option(help="cpu or cuda")] = "cpu",
    compile: Annotated[
        bool, Option("--compile", help="compiled code, made in up to a minute at first use")
    ] = False,
    out: Annotated[
        Path | None, Option(help="write the errors per structure to this CSV file")
    ] = None,
    format: FormatOption = None,
    reading: Any = None,
    figures: FiguresOption = True,
) -> None:
    """Errors of a trained network, overall and per system; those of a run folder are stored in its
    folder report/, with predictions against labels as a figure.
    """
    if not checkpoint.exists():
        raise CheckpointError(f"{checkpoint}: no such checkpoint")
    check_source(data)
    if split is not None and not split.is_file():
        raise ConfigError(f"{split}: no such split file")

    import potkit
    from potkit.datasets import splits
    from potkit.structures.outputs import check
    from potkit.structures.storage import replacing
    from potkit.training import checkpoints
    from potkit.training.evaluation import ERRORS

    if out:
        check(out, ERRORS)
    checkpoints.require_energies(checkpoint)
    model = checkpoints.load(checkpoint)
    structures = _structures(data, format, reading)
    if split:
        structures = structures[splits.part(splits.load_indices(split, structures), "test", split)]
    result = potkit.evaluate(
        model, structures, batch_size=batch_size, device=device, compile=compile, keep_forces=True
    )
    if out:  # before anything is printed: whoever reads may be gone
        with replacing(out, ERRORS) as temporary:
            result.structures.to_csv(temporary, index=False)
    run = checkpoint if figures and (checkpoint / "summary.json").is_file() else None
    report.errors(run, report.name_of(data, split), result, structures, model)
    print("errors per system, energy in eV, forces in eV/Å, stress (if any) in eV/Å³")
    print(
        result.systems.to_string(
            index=False, float_format=lambda value: f"{value:.4f}", max_rows=60
        )
    )


@app.command()
def compare(
    experiment: Annotated[
        Path,
        Argument(
            help="an experiment in YAML, or a paper's table or figure by name (`potkit specs`)",
            metavar="FILE|NAME",
        ),
    ],
    store: Annotated[
        Path, Option(help="folder of finished runs, which are not run again")
    ] = DEFAULT_STORE,
    jobs: Annotated[int, Option(help="runs side by side, spread over the GPUs there are")] = 1,
    dask: Annotated[
        str | None,
        Option(help="hand the runs to the Dask scheduler at this address", metavar="ADDRESS"),
    ] = None,
    interval: Annotated[
        str, Option(help="95 % intervals by t or bootstrap (6 seeds or more)")
    ] = "t",
    ensembles: Annotated[
        bool,
        Option(
            "--ensembles",
            help="also how well the spread over seeds tells the error, and with --out the "
            "members' errors (NAME-predictions.csv)",
        ),
    ] = False,
    xtb: Annotated[
        bool, Option("--xtb", help="GFN2-xTB as it is beside the networks (needs tblite)")
    ] = False,
    out: Annotated[
        Path | None,
        Option(help="folder for NAME.csv, NAME-runs.csv and NAME.json (command, commit, hardware)"),
    ] = None,
    dry_run: Annotated[
        bool, Option("--dry-run", help="only print what the grid would cost: runs, steps, hours")
    ] = False,
    tflops: Annotated[
        float,
        Option(help="what a GPU is assumed to sustain, 10^12 operations per second (--dry-run)"),
    ] = 1.0,
    figure: FigureOption = None,
    smoke: Annotated[
        bool,
        Option("--smoke", help="try it in seconds: tiny networks, two steps, embedded data"),
    ] = False,
) -> None:
    """Scratch against pretrained: run an experiment's grid and print means, 95 % intervals and
    relative changes.
    """
    from ..experiments import baselines as trivial
    from ..experiments import calibration, shipped, statistics
    from ..experiments import dry_run as dry
    from ..experiments import experiment as experiments
    from ..report import gallery, sentences, tables
    from ..structures import outputs
    from ..structures.settings import count
    from . import protocol

    statistics.check_method(interval)
    count(jobs, "--jobs", most=experiments.MOST_JOBS)
    if not 0 < tflops < float("inf"):
        raise ConfigError(f"--tflops must be a positive number, got {tflops}")
    gallery.check(figure)
    gallery.check(figure and protocol.beside(figure))
    outputs.check_folder(store)
    spec = shipped.read(experiment)
    # before any network is trained: without intervals there would be verdicts all the same
    statistics.check_method(interval, min(len(cell.seeds) for _, cell in spec.specs))
    if smoke:
        spec = shipped.smoke(spec)
    if dry_run:
        print(dry.in_words(dry.table(spec.planned(store)), tflops))
        return
    if out is not None:
        outputs.check_folder(out, to_write=True)
        tables.check_results(
            out,
            spec.name,
            *(
                f"{spec.name}-{part}"
                for part in (
                    *("runs", "predictions", "ensembles", "contrasts"),
                    *("curves", "effects", "baselines", *protocol.PARTS),
                    *protocol.STRUCTURES,
                )
            ),
        )
    grid = spec.experiments(store=store, jobs=jobs)
    groups = spec.groups(grid)
    if ensembles:
        try:
            calibration.check(grid)
        except DataError as error:
            if not smoke:
                raise
            print(f"--ensembles is not tried: {error}", file=sys.stderr)
            ensembles = False
    # before any network is trained: what is missing is said now
    known = trivial.of_experiments(grid, [*trivial.TRIVIAL, *([trivial.XTB] if xtb else [])])
    for line in known.attrs["left_out"]:
        print(line, file=sys.stderr)
    for line in experiments.unseen_elements(grid):
        print(line, file=sys.stderr)
    runs = experiments.run(grid, client=dask)
    # what is told follows from what is stored, rounded as it is, so that `verify` makes the same
    about, runs = runs.attrs, tables.as_stored(runs)
    runs.attrs = about
    good = runs[runs["status"] == "ok"]
    failures = runs.loc[runs["status"] != "ok", "error"]
    if good.empty:
        raise PotkitError(f"none of the {len(runs)} runs ended well; the first: {failures.iloc[0]}")
    summary = experiments.compare(runs, method=interval)
    if len(known):
        summary = trivial.mark(summary, known)
    effects = statistics.effects(runs, method=interval)
    if len(effects) and not smoke:  # seeds whose runs failed are no seeds of an interval
        statistics.check_method(interval, int(effects["seeds"].min()))
    curve = None
    metric = "energy_mae" if good["forces_mae"].isna().all() else "forces_mae"
    if len(several := statistics.with_budgets(runs, 3)):
        curve = tables.curves(several, metric)
    members = calibration.predictions(grid, runs, calibration.MOST) if ensembles else None
    told = {}  # ending -> what follows from the predictions
    if members is not None and len(members):
        members = tables.as_stored(members)
        told["ensembles"] = calibration.summarise(members)
        told["contrasts"] = calibration.contrasts(members)
    stood_by = protocol.of(grid, runs)
    written: list[Path] = []
    if out is not None:  # before anything is printed: whoever reads may be gone
        options = f"{' --ensembles' if ensembles else ''}{' --xtb' if xtb else ''}"
        options += " --smoke" if smoke else ""
        options += f" --interval {interval}" if interval != "t" else ""
        options += f" --store {store}" if store != DEFAULT_STORE else ""
        command = f"potkit compare {experiment}{options} --out {out}"
        notes = {"experiment": spec.model_dump(), "leakage": runs.attrs["leakage"]}
        # by which `verify` derives the tables again
        by_method = {"interval": interval} if interval != "t" else {}
        notes |= by_method
        tables.store(runs, f"{spec.name}-runs", command, out)
        for ending, table in {"predictions": members, **told}.items() if told else ():
            if len(table):  # there are no contrasts of a single arm
                tables.store(table, f"{spec.name}-{ending}", command, out)
        if curve is not None:
            tables.store(curve, f"{spec.name}-curves", command, out)
        if len(effects):
            tables.store(effects, f"{spec.name}-effects", command, out, **by_method)
        stood_by.store(spec.name, command, out)
        protocol.store_structures(grid, runs, groups, spec.name, command, out)
        if len(known):
            tables.store(known, f"{spec.name}-baselines", command, out)
        written.append(tables.store(summary, spec.name, command, out, **notes))
    if figure is not None:
        from ..report import figures

        title = f"Error against label budget ({spec.name})"
        written += gallery.draw(
            figures.learning_curves(summary, title, known if len(known) else None, runs), figure
        )
        if len(stood_by.time_curves):
            title = f"Validation error while fine-tuning ({spec.name})"
            written += stood_by.draw(figure, title)
    if smoke:
        if len(failures):
            first = failures.iloc[0]
            raise PotkitError(f"{len(failures)} of {len(runs)} runs failed; the first: {first}")
        print(f"{spec.name}: all {len(runs)} runs ended well; their numbers say nothing")
        return
    shown = tables.wide(summary, baselines=known if len(known) else None).to_string(index=False)
    print(shown)
    if tables.MARK in shown:
        print(f"{tables.MARK} a larger mean error than a prediction that needs no network")
    if not runs.attrs["leakage"]:  # what leaks was said while the runs went on
        print("no test structure is among those to pretrain on or to train on")
    stood_by.say()
    if len(effects):
        by = "" if interval == "t" else f"intervals by {interval}, verdicts by t; "
        print(
            f"over all label budgets ({by}** told from 0, with all comparisons of the table "
            "counted):"
        )
        print(tables.effects(effects).to_string(index=False))
    if curve is not None:
        print(
            f"learning curves of {metric}: slope, and the labels training from scratch needs to "
            "do as well"
        )
        print(curve.to_string(index=False))
    if told:
        print(sentences.ensembles(told["ensembles"]))
        if len(told["contrasts"]):
            print(sentences.calibrated(told["contrasts"]))
    elif ensembles:
        print("no ensembles: every arm has a single finished run")
    for path in written:
        print(f"written: {path}")
    if len(failures):
        raise PotkitError(
            f"{len(failures)} of {len(runs)} runs failed, the table has only the others; the "
            f"first: {failures.iloc[0]}"
        )


# --- notebooks ----------------------------------------------------------------------------------


@app.command()
def run(
    notebooks: Annotated[
        list[str] | None, Argument(help="notebooks or globs; default: all in notebooks/")
    ] = None,
    profile: Annotated[
        str, Option(help="smoke (seconds), quick (minutes), study (hours), paper (GPUs)")
    ] = "quick",
    parameter: Annotated[
        list[str] | None,
        Option(
            "-p", "--parameter", help="set a notebook's parameter, repeatable", metavar="NAME VALUE"
        ),
    ] = None,
    out: Annotated[
        Path | None, Option(help="folder of the executed copies; default: runs/notebooks/PROFILE")
    ] = None,
    inplace: Annotated[
        bool,
        Option("--inplace", help="store the outputs in the notebooks and the figures in figures/"),
    ] = False,
) -> None:
    """Execute notebooks one after the other, go on after a failure, and say how each ended."""
    from ..notebooks import runner

    outcomes = runner.execute(notebooks or (), profile, _assignments("-p", parameter), out, inplace)
    failed = [o.notebook for o in outcomes if o.error]
    if failed:
        raise PotkitError(f"{len(failed)} of {len(outcomes)} notebooks failed: {', '.join(failed)}")


# --- the command itself -------------------------------------------------------------------------


def _version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        from .. import __version__

        print(f"potkit {__version__} (torch {version('torch')}, Python {sys.version.split()[0]})")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="show versions and stop")
    ] = False,
    debug: Annotated[bool, Option("--debug", help="show the traceback of an error")] = False,
    allow_module: Annotated[
        list[str] | None,
        Option(
            help="a Python module whose networks a checkpoint may name (see `adapt`), repeatable",
            metavar="MODULE",
        ),
    ] = None,
) -> None:
    """Self-supervised pretraining of neural potentials."""
    if allow_module:
        from ..models import allow

        allow(*allow_module)


def _joined(arguments: list[str]) -> list[str]:
    """``-p NAME VALUE`` as ``-p NAME=VALUE``: typer knows no repeatable option of two values."""
    words = list(arguments)
    for i in reversed(range(len(words) - 2)):
        if words[i] in ("-p", "--parameter") and "=" not in words[i + 1]:
            words[i + 1 : i + 3] = [f"{words[i + 1]}={words[i + 2]}"]
    return words


def _check_words(words: list[str]) -> None:
    """Raise ConfigError for an empty word (a shell variable that is not set: it would be the
    working directory, or as if the option were not there) and for "-", which stands for no file
    here.
    """
    for i, word in enumerate(words):
        option, equals, value = word.partition("=")
        if not (equals and option.startswith("--")):
            option, value = words[i - 1] if i else "", word
        where = f"{option}: " if option.startswith("--") else f"word {i + 1}: "
        if not value.strip():
            raise ConfigError(f"{where}{value!r} is empty (a shell variable that is not set?)")
        if value == "-":
            raise ConfigError(
                f"{where}'-' stands for no file here: potkit neither reads from a pipe nor prints "
                "what it stores; name a file (./- if it is called so)"
            )


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Within, SIGTERM and a closed terminal end the command as Ctrl-C does: what is half-written is
    removed.
    """

    def end(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)  # the second request does not wait
        raise SystemExit(128 + number)

    main_thread = threading.current_thread() is threading.main_thread()
    ours = [
        number
        for number in endings.requests()
        if main_thread and signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


def _usage(error: Any) -> str:
    """What is wrong with the words of a command, in one line, and which command it is."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else "potkit"
    text = " ".join(str(error.format_message()).split())
    return f"{text[:1].lower()}{text[1:].rstrip('.')} (`{command} --help` shows what there is)"


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a PotkitError ends it with one line on stderr and exit code 1."""
    streams.prepare()
    arguments = _joined(list(sys.argv[1:] if arguments is None else arguments))
    try:
        streams.check_surroundings()
        _check_words(arguments)
        with _ended_in_order():
            code = app(args=arguments, prog_name="potkit", standalone_mode=False)
        sys.stdout.flush()  # at the interpreter's end nobody could say what went wrong
        if code == INTERRUPTED:
            print("error: interrupted", file=sys.stderr)
        raise SystemExit(code if isinstance(code, int) else 0)
    except (PotkitError, OSError) as error:
        if "--debug" in arguments:
            raise
        if isinstance(error, BrokenPipeError):
            streams.let_go()
        text = str(error)
        if isinstance(error, OSError) and error.filename:
            text = f"{error.filename}: {error.strerror}"
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(1) from None
    except Exception as error:  # typer's own: an option or a word that no command has
        if not hasattr(error, "format_message") or "--debug" in arguments:
            raise
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            raise SystemExit(0) from None
        print(f"error: {_usage(error)}", file=sys.stderr)
        raise SystemExit(1) from None
