"""The commands ``potkit bench …``: potkit beside the code people would otherwise use, measured
in one run on this machine.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ..errors import ConfigError
from ..structures.outputs import Kind, check, check_folder, is_provenance, read_json
from ..structures.settings import shown

bench_app = typer.Typer(
    help="How fast potkit is beside other packages, on this machine.", no_args_is_help=True
)

Device = Annotated[str, Option(help="cpu or cuda")]
Threads = Annotated[int, Option(help="threads of the CPU")]
Repeats = Annotated[int, Option(help="rounds in which all implementations take turns")]
Json = Annotated[
    Path | None,
    Option("--json", help="write the table and how it was made to this file", metavar="PATH"),
]
FigureOption = Annotated[
    Path | None,
    Option(
        "--figure",
        help="write the figure to this .png, .svg or .html (with a .png beside it)",
        metavar="PATH",
    ),
]
System = Annotated[
    list[str] | None, Option(help="molecules or boxes (of 64 waters), repeatable; default: both")
]
Kernels = Annotated[
    bool,
    Option(
        "--compile",
        help="also potkit with its kernels (the first call compiles for a minute or more)",
    ),
]
ForceCases = Annotated[
    list[str] | None,
    Option(
        "--case",
        help="one network of egnn, torchmd_et, schnet, painn, nequip, repeatable; default: all",
    ),
]
Cases = Annotated[
    list[str] | None,
    Option(
        "--case", help="one network of egnn, torchmd_et, schnet, nequip, repeatable; default: all"
    ),
]
Peers = Annotated[
    list[str] | None,
    Option(
        "--peer",
        help="peer with an environment of its own (`potkit bench peers`), repeatable, or none; "
        "default: all that are set up",
    ),
]
MOST_THREADS = 1024
MOST_REPEATS = 10_000
MOST = 1_000_000  # structures, atoms and steps of a benchmark
MOST_STORED = 1_000_000_000  # structures of a store that is written
SHOWN = {
    "median_s": "{:.4g}",
    "spread_s": "{:.2g}",
    "ratio": "{:.2f}",
    "ratio_low": "{:.2f}",
    "ratio_high": "{:.2f}",
    "agreement": "{:.0e}",
    "over_roofline": "{:.2f}",
    "peak_mb": "{:.0f}",
    "per_atom_us": "{:.3g}",
    "per_second": "{:.0f}",
    "ms_per_step": "{:.3g}",
    "potkit_s": "{:.4g}",
    "other_s": "{:.4g}",
    "speedup": "{:.2f}",
    "us_per_atom": "{:.3g}",
    "supervised_ms": "{:.0f}",
    "denoise_ms": "{:.0f}",
    "us_per_edge": "{:.3g}",
    "kb_per_atom": "{:.3g}",
    "kb_per_edge": "{:.3g}",
    "time_exponent": "{:.2f}",
    "memory_exponent": "{:.2f}",
    "gpu_busy": "{:.2f}",
    "structures": "{:.0f}",
    "atoms": "{:.0f}",
    "drawn": "{:.0f}",
    "draw_s": "{:.4g}",
    "store_mb": "{:.0f}",
    "read_mb": "{:.1f}",
}


def _is_bench(path: Path) -> bool:
    content = read_json(path)
    return is_provenance(content) and isinstance(content["rows"], list)


BENCH = Kind("a stored benchmark of `potkit bench`", _is_bench)


def _say(text: str) -> None:
    print(f"bench: {text}", file=sys.stderr, flush=True)


def _run(
    name: str,
    json_path: Path | None,
    device: str,
    threads: int,
    repeats: int,
    figure: Path | None = None,
    **options: Any,
) -> None:
    """Run benchmark ``name``, print its table, and write it and its figure if asked to."""
    import importlib

    from ..bench.common import check_device
    from ..report import gallery

    _within(repeats, "--repeats", MOST_REPEATS)
    _within(threads, "--threads", MOST_THREADS)
    _within(options.get("batch"), "--batch")
    _within(options.get("steps"), "--steps")
    above = None if json_path is None else Path(os.path.realpath(json_path)).parent
    if above is not None and not above.is_dir():
        raise ConfigError(f"--json {json_path}: there is no folder {above}")
    gallery.check(figure)
    if json_path is not None:
        check(json_path, BENCH)
    check_device(device, threads)
    case = importlib.import_module(f"potkit.bench.{name}")
    table = case.run(device=device, threads=threads, repeats=repeats, **options)
    written: list[Path] = []
    if json_path is not None:  # before anything is printed: whoever reads may be gone
        _write(json_path, table)
        written.append(json_path)
    if figure is not None:
        written += gallery.draw(case.figure(table), figure)
    print(f"potkit bench {name}: {device}, {threads} thread{'s' * (threads > 1)}, {repeats} rounds")
    shown = table.drop(columns=["device", "threads", "note"], errors="ignore")
    print(shown.to_string(index=False, na_rep="", formatters=_formats(table)))
    if {"case", "implementation", "precision"} <= set(table):
        _print_standings(table)
    for note in dict.fromkeys(note for note in table.get("note", []) if note):
        print(f"  {note}")
    for path in written:
        print(f"written: {path}")


def _print_standings(table: Any) -> None:
    """Who is fastest in each case, where potkit has somebody to be compared with."""
    from ..report.tables import standings

    fastest = standings(table)
    if fastest.empty or fastest["speedup"].isna().all():
        return
    print("fastest in float32; speedup: how many times as fast as the fastest other potkit is")
    print(fastest.to_string(index=False, na_rep="", formatters=_formats(fastest)))


def _formats(table: Any) -> dict[str, Callable[[float], str]]:
    def shown(form: str) -> Callable[[float], str]:
        return lambda value: "" if value != value else form.format(value)

    return {column: shown(form) for column, form in SHOWN.items() if column in table}


def _write(path: Path, table: Any) -> None:
    """The rows with command, commit, hardware and versions, as JSON; missing numbers are null."""
    from ..report import provenance
    from ..structures.storage import replacing

    command = "potkit " + shlex.join(sys.argv[1:])
    content = {
        "command": command,
        **provenance.made_by(),
        "rows": json.loads(table.to_json(orient="records", double_precision=10)),
    }
    with replacing(path, BENCH) as temporary:
        temporary.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")


@bench_app.command()
def data(
    device: Device = "cpu",
    threads: Threads = 2,
    repeats: Repeats = 5,
    structures: Annotated[
        int, Option(help="structures of the large store, about 0.4 GB a million")
    ] = 1_000_000,
    draw: Annotated[int, Option(help="structures drawn from it at random")] = 256,
    json: Json = None,
) -> None:
    """Reading, opening and batching structures, beside h5py and PyG's DataLoader."""
    _run(
        "data",
        json,
        device,
        threads,
        repeats,
        structures=_within(structures, "--structures", MOST_STORED),
        draw=_within(draw, "--draw"),
    )


@bench_app.command()
def neighbors(
    device: Device = "cpu", threads: Threads = 2, repeats: Repeats = 7, json: Json = None
) -> None:
    """Neighbour lists beside vesin and matscipy."""
    _run("neighbors", json, device, threads, repeats, say=_say)


@bench_app.command()
def step(
    device: Device = "cpu",
    threads: Threads = 2,
    repeats: Repeats = 7,
    case: Cases = None,
    batch: Annotated[int, Option(help="structures per step")] = 64,
    compile: Annotated[
        bool,
        Option(
            "--compile",
            help="also potkit with `compile: true` (its first call compiles for a minute or more)",
        ),
    ] = False,
    json: Json = None,
) -> None:
    """A whole pretraining step of EGNN, TorchMD-Net ET and SchNet in the denoise paper's
    setting, and of NequIP.
    """
    _run(
        "step",
        json,
        device,
        threads,
        repeats,
        cases=_cases(case),
        batch=batch,
        compile=compile,
        say=_say,
    )


@bench_app.command()
def infer(
    device: Device = "cpu",
    threads: Threads = 2,
    repeats: Repeats = 5,
    case: Cases = None,
    batch: Annotated[int, Option(help="structures at a time")] = 64,
    compile: Kernels = False,
    json: Json = None,
) -> None:
    """Energy and forces of the same networks."""
    _run(
        "infer",
        json,
        device,
        threads,
        repeats,
        cases=_cases(case),
        batch=batch,
        compile=compile,
        say=_say,
    )


@bench_app.command()
def finetune(
    device: Device = "cpu",
    threads: Threads = 2,
    repeats: Repeats = 7,
    case: ForceCases = None,
    system: System = None,
    batch: Annotated[
        int | None, Option(help="structures per step; default: 8 molecules, 2 boxes")
    ] = None,
    hidden: Annotated[int, Option(help="width of the networks")] = 128,
    compile: Kernels = False,
    peer: Peers = None,
    json: Json = None,
) -> None:
    """A step of training on energies and forces, of molecules and of boxes of water."""
    _run(
        "finetune",
        json,
        device,
        threads,
        repeats,
        cases=_cases(case, "finetune"),
        systems=_systems(system),
        batch=_within(batch, "--batch"),
        hidden=_within(hidden, "--hidden"),
        compile=compile,
        peer_names=_peers(peer),
        say=_say,
    )


@bench_app.command()
def md(
    device: Device = "cpu",
    threads: Threads = 2,
    repeats: Repeats = 7,
    case: ForceCases = None,
    system: System = None,
    steps: Annotated[int, Option(help="steps of dynamics in a round")] = 50,
    hidden: Annotated[int, Option(help="width of the networks")] = 64,
    preset: Annotated[
        str | None, Option(help="networks of this preset instead, as small, with −∂E/∂x")
    ] = None,
    compile: Kernels = False,
    peer: Peers = None,
    json: Json = None,
) -> None:
    """Molecular dynamics of one molecule and of one box of 64 waters, through ASE."""
    _run(
        "md",
        json,
        device,
        threads,
        repeats,
        cases=_cases(case, "md"),
        systems=_systems(system),
        steps=_within(steps, "--steps"),
        hidden=_within(hidden, "--hidden"),
        preset=preset,
        compile=compile,
        peer_names=_peers(peer),
        say=_say,
    )


@bench_app.command()
def evaluate(
    device: Device = "cpu",
    threads: Threads = 2,
    repeats: Repeats = 5,
    case: ForceCases = None,
    structures: Annotated[int, Option(help="molecules")] = 128,
    batch: Annotated[int, Option(help="structures at a time")] = 64,
    hidden: Annotated[int, Option(help="width of the networks")] = 128,
    compile: Kernels = False,
    peer: Peers = None,
    json: Json = None,
) -> None:
    """Errors of energy and forces over a labelled set, as `potkit evaluate` finds them."""
    _run(
        "evaluate",
        json,
        device,
        threads,
        repeats,
        cases=_cases(case, "evaluate"),
        structures=_within(structures, "--structures"),
        batch=_within(batch, "--batch"),
        hidden=_within(hidden, "--hidden"),
        compile=compile,
        peer_names=_peers(peer),
        say=_say,
    )


@bench_app.command()
def start(
    device: Device = "cpu", threads: Threads = 2, repeats: Repeats = 5, json: Json = None
) -> None:
    """Import, the message about a missing file and the first training step, in fresh processes."""
    _run("start", json, device, threads, repeats, say=_say)


@bench_app.command()
def scaling(
    device: Device = "cpu",
    threads: Threads = 2,
    repeats: Repeats = 3,
    model: Annotated[str, Option(help="network")] = "egnn",
    sweep: Annotated[
        list[str] | None, Option(help="atoms, batch or width, repeatable; default: all")
    ] = None,
    figure: FigureOption = None,
    json: Json = None,
) -> None:
    """How time and memory of a step grow with atoms per structure, batch size and width, and the
    exponents of that.
    """
    given = {"sweeps": tuple(sweep)} if sweep else {}
    _run("scaling", json, device, threads, repeats, figure, model=model, say=_say, **given)


@bench_app.command()
def epoch(
    device: Device = "cpu",
    threads: Threads = 2,
    repeats: Annotated[int, Option(help="epochs of each network, in turn")] = 1,
    case: Annotated[
        list[str] | None, Option(help="network, repeatable; default: egnn, torchmd_et and schnet")
    ] = None,
    preset: Annotated[str, Option(help="preset of the networks, such as small")] = "denoise-paper",
    data: Annotated[str, Option(help="registered data set")] = "ani-mini",
    batch: Annotated[int, Option(help="structures per step")] = 256,
    steps: Annotated[
        int | None, Option(help="stop after so many steps; default: a whole epoch")
    ] = None,
    precision: Annotated[str, Option(help="32-true, bf16-mixed or tf32")] = "32-true",
    compile: Annotated[bool, Option("--compile", help="with `compile: true`")] = False,
    json: Json = None,
) -> None:
    """Structures per second of a pretraining epoch through the real loop, and the share of it in
    which a GPU is busy.
    """
    options = {"cases": tuple(case)} if case else {}
    options |= dict(
        preset=preset, data=data, batch=batch, steps=steps, precision=precision, compile=compile
    )
    _run("epoch", json, device, threads, repeats, say=_say, **options)


@bench_app.command()
def networks(
    device: Device = "cpu",
    threads: Threads = 1,
    repeats: Repeats = 9,
    experiment: Annotated[
        Path | None,
        Option(
            help="YAML of compared networks, whose NAME.csv lies beside it: errors beside costs"
        ),
    ] = None,
    json: Json = None,
) -> None:
    """Parameters and time of a step of every network, small preset; on request beside the errors
    of a stored comparison.
    """
    _run("networks", json, device, threads, repeats, experiment=experiment, say=_say)


@bench_app.command()
def peers(
    names: Annotated[
        list[str] | None, Argument(help="peers to set up; without, says which there are")
    ] = None,
    again: Annotated[bool, Option("--again", help="also where it is set up already")] = False,
    cuda: Annotated[
        bool, Option("--cuda", help="also where pip would bring packages for GPUs")
    ] = False,
) -> None:
    """Environments of their own for peers that do not go along with potkit's packages; finetune,
    md and evaluate then measure them, too.
    """
    from ..bench.peers import apart

    for peer in apart.named(names or []):
        environment = peer.environment
        if environment.state() == "ready" and not again:
            continue
        environment.make(cuda, _say)
    for peer in apart.PEERS:
        environment = peer.environment
        state = environment.state()
        where = (
            f"in {environment.folder}" if state == "ready" else f"`potkit bench peers {peer.name}`"
        )
        print(f"{peer.name}: {state} {where} (beside {', '.join(peer.networks)})")


@bench_app.command("all")
def everything(
    device: Device = "cpu",
    threads: Threads = 2,
    json: Annotated[
        Path | None, Option("--json", help="folder for bench-NAME.json", metavar="FOLDER")
    ] = None,
) -> None:
    """Steps, fine-tuning, dynamics, inference, evaluation, neighbours, scaling, data and the
    start, one after the other.
    """
    commands = (step, finetune, md, infer, evaluate, neighbors, scaling, data)
    if device == "cpu":
        commands += (start,)
    if json is not None:
        check_folder(json)
        for command in commands:
            check(json / f"bench-{command.__name__}.json", BENCH)
        json.mkdir(parents=True, exist_ok=True)
    for command in commands:
        name = command.__name__
        command(
            device=device,
            threads=threads,
            json=None if json is None else json / f"bench-{name}.json",
        )


def _cases(given: list[str] | None, name: str = "step") -> tuple[str, ...]:
    """The networks of benchmark ``name`` that are asked for; all without."""
    import importlib

    cases = importlib.import_module(f"potkit.bench.{name}").CASES
    if unknown := [c for c in given or [] if c not in cases]:
        raise ConfigError(f"--case {unknown[0]!r} is not one of {', '.join(cases)}")
    return tuple(given or cases)


def _systems(given: list[str] | None) -> tuple[str, ...]:
    from ..bench.common import SYSTEMS

    if unknown := [s for s in given or [] if s not in SYSTEMS]:
        raise ConfigError(f"--system {unknown[0]!r} is not one of {', '.join(SYSTEMS)}")
    return tuple(given or SYSTEMS)


def _peers(given: list[str] | None) -> tuple[str, ...] | None:
    """The peers with an environment of their own that are asked for: none, some, or (None) all
    that are set up.
    """
    from ..bench.peers import apart

    if given and "none" in given:
        return ()
    if unknown := [name for name in given or [] if name not in apart.NAMES]:
        raise ConfigError(f"--peer {unknown[0]!r} is not one of {', '.join(apart.NAMES)}, none")
    return tuple(given) if given else None


def _within(value: int | None, option: str, most: int = MOST) -> int | None:
    """``value`` of ``option``, if it is one that can be measured."""
    if value is not None and value < 1:
        raise ConfigError(f"{option} must be at least 1, got {value}")
    if value is not None and value > most:
        raise ConfigError(f"{option} must be at most {most:,}, got {shown(value)}")
    return value
