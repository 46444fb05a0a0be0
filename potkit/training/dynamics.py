"""Molecular dynamics with a trained network, for the simple case: one structure, ASE's velocity
Verlet (NVE) or Langevin thermostat (NVT), in a folder that can be taken up again.

    md.json               what is simulated: weights, structure, settings; versions and machine
    trajectory.extxyz     a frame every `every` steps: positions (Å), momenta (ASE's units), forces
                          (eV/Å), energy (eV); ASE and `potkit.read` read it
    energies.csv          beside each frame: time (ps), energies (eV), temperature (K)
    state.npz             positions, momenta and random state to go on from
    summary.json          written last: how it ended

Positions are not wrapped into the cell. What is random follows from the seed alone and is stored,
so a simulation that was killed goes on to the same trajectory, bit by bit on the same machine with
the same number of threads.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from filelock import FileLock, Timeout

from ..analysis.dynamics import BondWatch, drift
from ..errors import (
    Busy,
    CheckpointError,
    ConfigError,
    DataError,
    Interrupted,
    SimulationError,
)
from ..models import Potential
from ..structures import settings
from ..structures.outputs import PART, Kind, check, is_temporary, read_json
from ..structures.progress import bar
from ..structures.storage import replacing
from ..structures.store import Structures
from .evaluation import calculator, checked_device
from .repeatable import repeatable, threads
from .run_folder import differences, identity_hash, machine, versions, weights_hash, write_json
from .stopping import Stop

if TYPE_CHECKING:
    import pandas as pd
    from ase import Atoms
    from ase.md.md import MolecularDynamics

ENSEMBLES = ("nvt", "nve")
COLUMNS = ("step", "time_ps", "potential_eV", "kinetic_eV", "total_eV", "temperature_K")
LOOK = 10  # steps between two looks at bonds and temperature, if frames are further apart
SECONDS = 2.0  # between two states that are written
HOTTER = 5.0  # times the temperature asked for, or `COLDEST`, is taken for a structure in pieces
COLDEST = 300.0  # K


@dataclasses.dataclass(frozen=True)
class MDConfig:
    """Settings of a simulation; all problems raise ConfigError."""

    ensemble: str = "nvt"  # "nvt" (Langevin) or "nve" (velocity Verlet)
    temperature: float = 300.0  # K, of the thermostat and of the velocities at the start
    timestep: float = 0.5  # fs
    steps: int = 10_000
    friction: float = 0.01  # 1/fs, of the thermostat
    seed: int = 0  # of velocities and thermostat
    every: int = 20  # steps from frame to frame
    max_temperature: float | None = None  # K; None: five times the temperature, at least 1500 K

    def __post_init__(self) -> None:
        if self.ensemble not in ENSEMBLES:
            raise ConfigError(
                f"ensemble must be {' or '.join(ENSEMBLES)}, got {settings.shown(self.ensemble)}"
            )
        settings.count(self.steps, "steps")
        settings.count(self.every, "every")
        settings.seed(self.seed)
        _in_range(self.temperature, "temperature", 0.0, 1e6, "K")
        _in_range(self.timestep, "timestep", 1e-6, 100.0, "fs")
        _in_range(self.friction, "friction", 0.0, 1.0, "1/fs")
        if self.max_temperature is not None:
            _in_range(self.max_temperature, "max_temperature", self.temperature, 1e9, "K")

    @property
    def hottest(self) -> float:
        """The kinetic temperature (K) at which a simulation is stopped."""
        if self.max_temperature is not None:
            return self.max_temperature
        return HOTTER * max(self.temperature, COLDEST)

    def identity(self) -> dict[str, Any]:
        """What decides the trajectory: all but its length, and friction where there is none."""
        kept = dataclasses.asdict(self) | {"max_temperature": self.hottest}
        del kept["steps"]
        if self.ensemble == "nve":
            del kept["friction"]
        return kept


def _in_range(value: Any, name: str, low: float, high: float, unit: str) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not low <= value <= high:  # NaN is not, either
        raise ConfigError(
            f"{name} must be a number in {low:g}…{high:g} {unit}, got {settings.shown(value)}"
        )


@dataclasses.dataclass(frozen=True)
class Simulation:
    """A simulation that came to its end: its folder and how it ended."""

    path: Path
    summary: dict[str, Any]

    @property
    def trajectory(self) -> Path:
        """The file with the frames."""
        return self.path / "trajectory.extxyz"

    @property
    def energies(self) -> pd.DataFrame:
        """Energies (eV) and temperature (K) of every frame."""
        import pandas as pd

        return pd.read_csv(self.path / "energies.csv")

    def __repr__(self) -> str:
        table = self.energies
        length = table["time_ps"].iloc[-1]
        text = f"Simulation({self.path}: {self.summary['steps']} steps, {length:g} ps"
        text += f", {table['temperature_K'].mean():.0f} K on average"
        if self.summary["ensemble"] == "nve" and len(table) >= 3:
            slope = drift(table["time_ps"], table["total_eV"], self.summary["atoms"])
            text += f", energy drifts {slope:+.3g} meV/atom/ps"
        return text + ")"


def simulate(
    model: Potential | str | Path,
    start: Structures,
    config: MDConfig | None = None,
    out: str | Path = "runs/md",
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    compile: bool = False,
    n_threads: int | None = None,
    progress: bool = True,
) -> Simulation:
    """Move ``start``, one structure, by the forces of ``model`` (or of a checkpoint), and keep the
    trajectory in the folder ``out``.

    Velocities are drawn at ``config.temperature``; the total momentum is zero at the start of an
    NVE simulation. A finished simulation of the same identity is found, a broken one goes on, a
    finished one goes on to more ``steps``; a folder with anything else is an error and left as it
    is. ``device``, ``dtype`` and ``compile`` as in `potkit.calculator`; ``n_threads`` of torch,
    default: as many as it has.

    Raises SimulationError in one line where the structure blows up: a prediction or position is
    not finite, the temperature exceeds ``config.hottest``, a bond breaks or atoms fuse (see
    `analysis.dynamics`). What was written until then stays, and says so when it is asked for again.
    Raises Interrupted after Ctrl-C, with the state written; ConfigError, DataError or
    CheckpointError for wrong settings, folders and files; Busy while another process simulates in
    ``out``.
    """
    config = config or MDConfig()
    if len(start) != 1:
        raise DataError(f"a simulation starts from one structure, got {len(start)}")
    checked_device(device)
    if n_threads is not None:
        settings.count(n_threads, "threads", most=4096)
    folder = Path(out)
    check(folder, SIMULATION)
    with threads(n_threads):
        calc = calculator(model, device, dtype, compile)
        (network,) = calc.models
        network.check_elements(start.elements)
        identity = {
            "model": getattr(network, "recipe", {"name": type(network).__name__}),
            "weights": weights_hash(network),
            "start": start.fingerprint(),
            "config": config.identity(),
            "dtype": str(calc.dtype).removeprefix("torch."),
            "compile": compile,
        }
        run = _Run(folder, identity, config, progress)
        if (found := run.found()) is not None:
            return found
        with run.lock(), repeatable(torch.device(device).type):
            if (found := run.found()) is not None:  # by another process, while we were looking
                return found
            return run.go(start, calc)


def _is_simulation(path: Path) -> bool:
    names = [name for name in os.listdir(path) if not is_temporary(name)]
    if names == ["run.lock"]:
        return (path / "run.lock").stat().st_size == 0
    about = read_json(path / "md.json")
    return isinstance(about["identity"], dict) and "potkit" in about["versions"]


SIMULATION = Kind("a simulation of potkit's", _is_simulation, folder=True)


class _Run:
    """A simulation in its folder."""

    def __init__(
        self, path: Path, identity: dict[str, Any], config: MDConfig, progress: bool
    ) -> None:
        self.path, self.config, self.progress = path, config, progress
        self.identity = json.loads(json.dumps(identity, default=str))
        self.about = path / "md.json"
        self.trajectory = path / "trajectory.extxyz"
        self.energies = path / "energies.csv"
        self.state = path / "state.npz"
        self.summary = path / "summary.json"
        if self.about.is_file():
            differs = differences(read_json(self.about)["identity"], self.identity)
            if differs:
                raise ConfigError(
                    f"{path} holds another simulation (different {', '.join(differs)}); "
                    "choose another folder or delete it"
                )

    def found(self) -> Simulation | None:
        """The simulation if it came to its end already. Raises SimulationError where the structure
        blew up.
        """
        if not self.summary.is_file():
            return None
        about = read_json(self.summary)
        if about["stopped"]:
            raise SimulationError(f"{self.path}: {about['stopped']}")
        if about["steps"] < self.config.steps:
            return None
        self._say(f"this simulation is finished ({about['steps']} steps), not repeated")
        return Simulation(self.path, about)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the folder; raises Busy if another process does."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock = FileLock(self.path / "run.lock", timeout=0)
            lock.acquire()
        except Timeout:
            raise Busy(
                f"{self.path}: another process simulates in this folder; wait for it or choose "
                "another"
            ) from None
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror or error})"
            ) from error
        try:
            yield
        finally:
            # before release: whoever comes next finds what is finished and needs no lock
            if self.summary.is_file():
                (self.path / "run.lock").unlink(missing_ok=True)
            lock.release()

    def go(self, start: Structures, calc: Any) -> Simulation:
        """Simulate from the last state, or from ``start``."""
        (atoms,) = start.to_ase()
        atoms.calc = calc
        watch = BondWatch(start)
        (wrong,) = watch.problems(atoms.positions)
        if wrong:
            raise DataError(f"the structure to start from: {wrong}")
        atoms.get_forces()  # what the network cannot do is said before anything is written
        for name in [n for n in os.listdir(self.path) if is_temporary(n)]:
            (self.path / name).unlink(missing_ok=True)
        if not self.about.is_file():
            self._begin()
        rng = np.random.default_rng(self.config.seed)
        step = self._resume(atoms, rng)
        if step is None:
            step = 0
            self._draw_velocities(atoms, rng)
            self._cut(0, 0)
            self._store(atoms, 0)
            self._keep(atoms, rng, 0)
        elif step < self.config.steps:
            self._say(f"goes on after step {step} of {self.config.steps}")
        began = time.perf_counter()
        step, problem = self._move(atoms, rng, watch, step)
        about = {
            "steps": step,
            "stopped": problem,
            "seconds": time.perf_counter() - began,  # since it was taken up
            "ensemble": self.config.ensemble,
            "atoms": len(atoms),
            "hash": identity_hash(self.identity),
        }
        write_json(self.summary, about)
        if problem:
            raise SimulationError(f"{self.path}: {problem}")
        return Simulation(self.path, about)

    def _begin(self) -> None:
        about = {
            "identity": self.identity,
            "hash": identity_hash(self.identity),
            "settings": dataclasses.asdict(self.config),
            "versions": versions(),
            "machine": machine(),
        }
        write_json(self.about, about)

    def _move(
        self, atoms: Atoms, rng: np.random.Generator, watch: BondWatch, step: int
    ) -> tuple[int, str]:
        """Take the steps after ``step``; the last one, and how the structure blew up ("" if it did
        not).
        """
        config = self.config
        dynamics = _dynamics(atoms, rng, config)
        look = min(LOOK, config.every)
        kept_at = time.perf_counter()
        stop = Stop()
        shown = bar(total=config.steps, initial=step, desc="md", shown=self.progress)
        try:
            while step < config.steps:
                step += 1
                try:
                    dynamics.step()
                except DataError as error:  # of the calculator: predictions are not finite
                    return step, _stopped(step, config, str(error))
                shown.update()
                frame = step % config.every == 0
                if step % look == 0 or frame:
                    problem = _problem(atoms, watch, config)
                    if problem:
                        self._store(atoms, step)
                        return step, _stopped(step, config, problem)
                if frame:
                    self._store(atoms, step)
                    if not shown.disable:
                        shown.set_postfix_str(f"{atoms.get_temperature():.0f} K")
                if time.perf_counter() - kept_at > SECONDS:
                    self._keep(atoms, rng, step)
                    kept_at = time.perf_counter()
                if stop.asked and step < config.steps:
                    self._keep(atoms, rng, step)
                    raise Interrupted(
                        f"{self.path}: interrupted after step {step}; the same call goes on "
                        "from there"
                    )
        finally:
            stop.restore()
            shown.close()
        self._keep(atoms, rng, step)
        if step % config.every:  # beside the others, and cut off if this goes on to more steps
            self._store(atoms, step)
        return step, ""

    def _draw_velocities(self, atoms: Atoms, rng: np.random.Generator) -> None:
        """Maxwell-Boltzmann velocities; without a thermostat the whole stays where it is."""
        from ase import units

        masses = atoms.get_masses()[:, None]  # u
        width = np.sqrt(masses * units.kB * self.config.temperature)
        momenta = rng.standard_normal((len(atoms), 3)) * width
        if self.config.ensemble == "nve" and len(atoms) > 1:
            momenta -= masses * momenta.sum(axis=0) / masses.sum()
            # what is left has the temperature that was asked for
            kinetic = float((momenta**2 / masses).sum() / 2)
            wanted = 1.5 * len(atoms) * units.kB * self.config.temperature
            momenta *= math.sqrt(wanted / kinetic) if kinetic else 0.0
        atoms.set_momenta(momenta)

    # -- what is on the disk ---------------------------------------------------------------------
    def _store(self, atoms: Atoms, step: int) -> None:
        """Append a frame and its row."""
        from ase import units
        from ase.io import write

        potential, kinetic = atoms.get_potential_energy(), atoms.get_kinetic_energy()
        picoseconds = step * self.config.timestep / 1000
        frame = atoms.copy()
        frame.info = {"step": step, "time_ps": picoseconds, "energy": potential}
        frame.arrays["forces"] = atoms.get_forces()
        columns = ["symbols", "positions", "momenta", "forces"]
        temperature = kinetic / (1.5 * units.kB * len(atoms))
        row = (potential, kinetic, potential + kinetic, temperature)
        with self._writing():
            with self.trajectory.open("a", encoding="utf-8") as file:
                write(file, frame, format="extxyz", columns=columns)
            with self.energies.open("a", encoding="utf-8") as file:
                # every digit: the total is what a drift is read from
                numbers = ",".join(repr(float(value)) for value in row)
                file.write(f"{step},{picoseconds:.9g},{numbers}\n")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Within, what the disk refuses is said in a line that names the folder."""
        try:
            yield
        except OSError as error:
            raise DataError(
                f"{self.path}: cannot be written ({error.strerror or error})"
            ) from error

    def _keep(self, atoms: Atoms, rng: np.random.Generator, step: int) -> None:
        """Write the state to go on from, with how far the other files belong to it."""
        with replacing(self.state, PART) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                step=step,
                positions=atoms.positions,
                momenta=atoms.get_momenta(),
                random=json.dumps(rng.bit_generator.state),
                sizes=[self.trajectory.stat().st_size, self.energies.stat().st_size],
            )

    def _resume(self, atoms: Atoms, rng: np.random.Generator) -> int | None:
        """Take up the stored state; its step, None where there is none."""
        if not self.state.is_file():
            return None
        try:
            with np.load(self.state, allow_pickle=False) as state:
                step, sizes = int(state["step"]), state["sizes"].tolist()
                positions, momenta = state["positions"], state["momenta"]
                random = json.loads(str(state["random"]))
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise CheckpointError(
                f"{self.state}: damaged ({' '.join(str(error).split())}); choose another folder"
            ) from None
        atoms.positions[:] = positions
        atoms.set_momenta(momenta)
        rng.bit_generator.state = random
        self._cut(*sizes)
        return step

    def _cut(self, frames: int, rows: int) -> None:
        """Cut the files to the bytes that belong to a state; what comes after is made again."""
        for path, size in ((self.trajectory, frames), (self.energies, rows)):
            if size and (not path.is_file() or path.stat().st_size < size):
                raise CheckpointError(f"{path}: shorter than its state says; choose another folder")
            with self._writing(), path.open("ab") as file:
                file.truncate(size)
        if rows:
            return
        with self._writing():
            self.energies.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")

    def _say(self, text: str) -> None:
        """One line on stderr: stdout may be a pipe."""
        if self.progress:
            print(f"{self.path}: {text}", file=sys.stderr, flush=True)


def _dynamics(atoms: Atoms, rng: np.random.Generator, config: MDConfig) -> MolecularDynamics:
    from ase import units
    from ase.md.langevin import Langevin
    from ase.md.verlet import VelocityVerlet

    timestep = config.timestep * units.fs
    if config.ensemble == "nve":
        return VelocityVerlet(atoms, timestep)
    return Langevin(
        atoms,
        timestep,
        temperature_K=config.temperature,
        friction=config.friction / units.fs,
        fixcm=False,  # with it the temperature is not quite right
        rng=rng,
    )


def _problem(atoms: Atoms, watch: BondWatch, config: MDConfig) -> str:
    """What is wrong with the structure; "" where nothing is."""
    (said,) = watch.problems(atoms.positions)
    if said:
        return said
    temperature = atoms.get_temperature()
    if not temperature <= config.hottest:
        return f"the temperature is {temperature:.0f} K, above {config.hottest:.0f} K"
    return ""


def _stopped(step: int, config: MDConfig, why: str) -> str:
    picoseconds = step * config.timestep / 1000
    return f"the structure blew up at step {step} ({picoseconds:g} ps): {why}; frames are kept"
