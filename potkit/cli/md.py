"""The command that lets a trained network move atoms: `potkit md`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer import Argument, Option

from ..errors import CheckpointError, ConfigError
from .data import FormatOption, _structures, check_source, reads_files


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command("md")(reads_files(md))


def md(
    run: Annotated[Path, Argument(help="a run folder or a checkpoint", metavar="RUN")],
    start: Annotated[
        str,
        Option(
            "--start",
            help="what to start from: a file, or a registered data set",
            metavar="FILE|NAME",
        ),
    ],
    frame: Annotated[
        int, Option(help="which structure of --start, counted from 0; -1 is the last")
    ] = -1,
    ensemble: Annotated[
        str, Option(help="nvt: Langevin thermostat; nve: velocity Verlet, energy is kept")
    ] = "nvt",
    temperature: Annotated[
        float, Option(help="K, of the thermostat and of the velocities at the start")
    ] = 300.0,
    timestep: Annotated[float, Option(help="fs")] = 0.5,
    steps: Annotated[
        int, Option(help="in all; more than a finished simulation has let it go on")
    ] = 10_000,
    friction: Annotated[float, Option(help="of the thermostat, 1/fs")] = 0.01,
    seed: Annotated[int, Option(help="seed of velocities and thermostat")] = 0,
    every: Annotated[int, Option(help="steps from one stored frame to the next")] = 20,
    max_temperature: Annotated[
        float | None,
        Option(
            help="K; hotter, the structure is taken to have blown up; default: five times the "
            "temperature, at least 1500"
        ),
    ] = None,
    device: Annotated[str, Option(help="cpu or cuda")] = "cpu",
    threads: Annotated[int | None, Option(help="threads of the CPU; default: torch's")] = None,
    compile: Annotated[
        bool,
        Option(
            "--compile",
            help="compiled code, made in up to a minute at first use; float32, which keeps the "
            "energy less well",
        ),
    ] = False,
    out: Annotated[
        Path, Option(help="folder of the simulation; a half-finished one goes on")
    ] = Path("runs/md"),
    format: FormatOption = None,
    reading: Any = None,
) -> None:
    """Molecular dynamics with a trained network: trajectory.extxyz and energies.csv in --out.

    A structure that blows up (a bond breaks, atoms fuse, the temperature runs away, a prediction
    is no number) ends it with one line; what was written stays.
    """
    if not run.exists():
        raise CheckpointError(f"{run}: no such checkpoint")
    check_source(start)

    from potkit.structures.outputs import check
    from potkit.training.dynamics import SIMULATION, MDConfig, simulate

    check(out, SIMULATION)
    config = MDConfig(
        ensemble=ensemble,
        temperature=temperature,
        timestep=timestep,
        steps=steps,
        friction=friction,
        seed=seed,
        every=every,
        max_temperature=max_temperature,
    )
    structures = _structures(start, format, reading)
    if not -len(structures) <= frame < len(structures):
        raise ConfigError(f"--frame {frame}: {start} has {len(structures)} structures")
    row = frame % len(structures)
    done = simulate(
        run,
        structures[row : row + 1],
        config,
        out,
        device=device,
        compile=compile,
        n_threads=threads,
    )
    print(done)
    print(f"trajectory: {done.trajectory}")
