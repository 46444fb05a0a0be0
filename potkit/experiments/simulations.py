"""Do the networks of a comparison run? Several copies of a structure are moved by each finished
network, and it is kept when each one ended and why, how its energy drifted, and where its bonds and
neighbours were.

The copies of a network go through it as one batch. NVE is velocity Verlet; NVT is Langevin's
equation in the BAOAB splitting (`datasets.recipes.dynamics`), whose positions obey Boltzmann's law
where forces are harmonic, at any stable step. `training.dynamics` does the same for one structure,
with ASE; tests compare the two.

A copy ends where a bond breaks or atoms fuse (`analysis.dynamics`), where it is hotter than
`HOTTEST` times the temperature, or where a prediction is no number. Its frames until then count.

`MEASURES`, one number for each network, smaller is better:

- ends_per_ps: (ends + 1/2) / time that copies ran, of NVT. The half is Jeffreys' prior of a rate: a
  network without an end has no rate of 0, but one below what the time allows to see. Where no copy
  of any arm ended there is nothing to compare, and it is NaN;
- drift: mean |slope of the total energy| of NVE copies that ran to the end, meV/atom/ps;
- bonds: how far the bond lengths of NVT lie from the reference's (Wasserstein distance, Å, a mean
  over kinds of bond);
- radial: mean |difference| of a radial distribution to the reference's.

The reference are structures sampled at the same temperature with the method that labelled them.
`compared` puts them into the tables of `statistics`, so that intervals, families and verdicts are
those of every comparison here.
"""

from __future__ import annotations

import dataclasses
import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from ase.data import atomic_masses
from scipy import special, stats

from ..analysis.distributions import radial_distribution
from ..analysis.dynamics import (
    BondWatch,
    bond_histograms,
    distance_of_curves,
    distance_of_histograms,
    drift,
)
from ..datasets.recipes.dynamics import Langevin
from ..errors import ConfigError, DataError, PotkitError
from ..models import Potential
from ..structures.outputs import Kind, read_json
from ..structures.progress import bar
from ..structures.storage import replacing
from ..structures.store import Structures, concatenate
from ..training import checkpoints
from ..training.run_folder import identity_hash, weights_hash
from . import scheduler, statistics

if TYPE_CHECKING:
    from .experiment import Experiment

MEASURES = ("ends_per_ps", "drift", "bonds", "radial")
REFERENCE = "reference"  # the arm that the reference's rows have
HOTTEST = 5.0  # times the temperature
FEW = 3  # ends of a network
LEVEL = 0.05  # what has a larger p by itself is told in no family
BOND_EDGES = np.linspace(0.6, 2.2, 161)  # Å
RADIAL_BINS = 50
SCALE = 1000  # of a radial distribution that is stored in whole numbers


@dataclasses.dataclass(frozen=True)
class Plan:
    """How long, how hot and how often. Raises ConfigError for what does not fit together."""

    temperature: float  # K
    nvt: float  # ps
    nve: float  # ps
    copies: int = 8
    nvt_step: float = 1.0  # fs
    nve_step: float = 0.5  # fs
    friction: float = 0.01  # 1/fs
    look: float = 10.0  # fs from one look at bonds and energies to the next
    settle: float = 0.2  # share of NVT before frames count
    radial: tuple[str, str] | None = None  # elements of a radial distribution, for boxes

    def __post_init__(self) -> None:
        numbers = dataclasses.asdict(self)
        for name in ("temperature", "nvt", "nve", "nvt_step", "nve_step", "look"):
            if not numbers[name] > 0:
                raise ConfigError(f"plan: {name} must be positive, got {numbers[name]}")
        if self.copies < 1:
            raise ConfigError(f"plan: copies must be at least 1, got {self.copies}")
        if not 0 <= self.settle < 1:
            raise ConfigError(f"plan: settle must be in [0, 1), got {self.settle}")
        for length in (self.nvt, self.nve):
            if 1000 * length < 3 * self.look:
                raise ConfigError(f"plan: {length} ps are fewer than three looks of {self.look} fs")


@dataclasses.dataclass(frozen=True)
class Case:
    """What the networks of an experiment move: ``starts`` and ``reference``, structures of one
    system, and the plan.
    """

    starts: Structures
    reference: Structures
    plan: Plan

    def __post_init__(self) -> None:
        if not len(self.starts) or not len(self.reference):
            raise DataError("a case needs structures to start from and a reference")
        z = self.starts[:1].z
        for part in (self.starts, self.reference):
            same = len(part.z) == len(part) * len(z)
            if not same or (part.z.reshape(len(part), -1) != z).any():
                raise DataError(
                    "the structures of a case must be of one system, with the same order of atoms"
                )

    def copies(self) -> Structures:
        """As many starts as the plan has copies, evenly over those there are, again from the first
        where they do not suffice.
        """
        count, there = self.plan.copies, len(self.starts)
        rows = np.arange(count) * there // count if count <= there else np.arange(count) % there
        return self.starts[rows]


# -- moving --------------------------------------------------------------------------------------
@dataclasses.dataclass
class History:
    """What became of one copy: at each look the time (ps), total energy (eV), temperature (K) and
    positions [A, 3] Å.
    """

    time: list[float] = dataclasses.field(default_factory=list)
    total: list[float] = dataclasses.field(default_factory=list)
    temperature: list[float] = dataclasses.field(default_factory=list)
    frames: list[np.ndarray] = dataclasses.field(default_factory=list)
    held: float = 0.0  # ps
    why: str = ""  # it ended; "" where it ran to the end


class _Forces:
    """Energies [S] eV and forces [A, 3] eV/Å of packed copies, by a network in float64."""

    def __init__(self, model: Potential, copies: Structures) -> None:
        self.model = model
        # a network may have nothing to train
        first = next(chain(model.parameters(), model.buffers()), None)
        device = "cpu" if first is None else first.device
        self.batch = copies.batch(device=device, dtype=torch.float64)
        self.start = np.array(copies.pos, np.float64)
        self.owner = np.repeat(np.arange(len(copies)), copies.n_atoms)

    def __call__(self, pos: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """NaN for copies whose positions are no numbers; no neighbour search sees these."""
        lost = np.zeros(self.owner[-1] + 1, bool)
        lost[self.owner[~np.isfinite(pos).all(axis=1)]] = True
        atoms = lost[self.owner]
        shown = np.where(atoms[:, None], self.start, pos)
        self.batch.drop_edges().pos = torch.from_numpy(shown).to(self.batch.z.device)
        with torch.no_grad():
            said = self.model(self.batch, ["energy", "forces"])
        energy = np.where(lost, np.nan, said.energy.double().cpu().numpy())
        forces = said.forces.double().cpu().numpy()
        return energy, np.where(atoms[:, None], np.nan, forces)


def move(
    model: Potential,
    copies: Structures,
    temperature: float,  # K
    length: float,  # ps
    step: float,  # fs
    friction: float,  # 1/fs; 0: NVE
    look: float,  # fs
    seed: Any,
) -> list[History]:
    """Move ``copies``, structures of one system, by ``model`` (in float64) from velocities of
    ``temperature``, and say what became of each.
    """
    n_atoms = int(copies.n_atoms[0])
    masses = atomic_masses[copies.z]
    watch = BondWatch(copies)
    rng = np.random.default_rng(seed)
    system = Langevin(_Forces(model, copies), copies.pos, masses, temperature, rng)
    histories = [History() for _ in range(len(copies))]
    running = np.arange(len(copies))
    stride = max(1, round(look / step))
    steps = max(stride, round(1000 * length / step))
    _note(system, histories, running, n_atoms, 0.0)
    done = 0
    while done < steps and len(running):
        count = min(stride, steps - done)
        system.run(count, friction, step)
        done += count
        picoseconds = done * step / 1000
        said = _ended(system, watch, n_atoms, temperature)
        for row, why in zip(running, said, strict=True):
            histories[row].held = picoseconds
            histories[row].why = why
        kept = np.flatnonzero([not why for why in said])
        if len(kept) < len(running):
            if not len(kept):
                break
            running = running[kept]
            copies = copies[kept]
            watch = watch.of(kept)
            system = _without(system, model, copies, kept, n_atoms)
        _note(system, histories, running, n_atoms, picoseconds)
    return histories


def _note(
    system: Langevin, histories: list[History], running: np.ndarray, n_atoms: int, at: float
) -> None:
    """What the copies that run look like, ``at`` ps."""
    temperature, kinetic = _kinetic(system, n_atoms)
    frames = system.positions.reshape(-1, n_atoms, 3).copy()
    for i, row in enumerate(running):
        history = histories[row]
        history.time.append(at)
        history.total.append(float(system.energy[i] + kinetic[i]))
        history.temperature.append(float(temperature[i]))
        history.frames.append(frames[i])


def _kinetic(system: Langevin, n_atoms: int) -> tuple[np.ndarray, np.ndarray]:
    """Temperature (K) and kinetic energy (eV) of each copy."""
    from ..units import AMU, BOLTZMANN

    twice = (system.masses[:, None] * AMU * system.velocities**2).reshape(-1, 3 * n_atoms).sum(1)
    return twice / (3 * n_atoms * BOLTZMANN), twice / 2


def _ended(system: Langevin, watch: BondWatch, n_atoms: int, temperature: float) -> list[str]:
    """Why each copy ends here; "" where it goes on."""
    said = watch.problems(system.positions)
    hot, _ = _kinetic(system, n_atoms)
    for i in range(len(said)):
        if said[i]:
            continue
        if not np.isfinite(system.energy[i]) or not np.isfinite(hot[i]):
            said[i] = "a prediction is not finite"
        elif hot[i] > HOTTEST * temperature:
            said[i] = f"the temperature is {hot[i]:.0f} K"
    return said


def _without(
    system: Langevin, model: Potential, copies: Structures, kept: np.ndarray, n_atoms: int
) -> Langevin:
    """The dynamics of the copies that go on."""
    rows = (kept[:, None] * n_atoms + np.arange(n_atoms)).ravel()
    velocities = system.velocities[rows]
    new = Langevin(
        _Forces(model, copies),
        system.positions[rows],
        system.masses[rows],
        system.temperature,
        system.rng,
    )
    new.velocities = velocities
    return new


# -- tables --------------------------------------------------------------------------------------
def trajectories(
    experiments: Sequence[Experiment],
    runs: pd.DataFrame,
    cases: Sequence[Case],
    jobs: int = 1,
    progress: bool = True,
) -> pd.DataFrame:
    """What became of every copy that the finished networks of ``experiments`` moved, of the
    reference's halves, and where bonds and neighbours were: a row each.

    ``runs`` is the table of `experiments.run`, ``cases`` has one for each experiment. Columns:
    those that tell experiments apart, labels, arm, seed, forces_mae (eV/Å, on the test set),
    ensemble ("nvt", "nve"; "reference"), copy, length and held (ps), why (it ended), drift
    (meV/atom/ps), temperature (K), frames, seconds, histograms (see `unpacked`). What was simulated
    before lies in the experiments' store and is not simulated again. Raises PotkitError with the
    first reason where a simulation failed.
    """
    if len(cases) != len(experiments):
        raise ConfigError(f"{len(experiments)} experiments, but {len(cases)} cases")
    tables: list[dict[str, Any]] = []
    tasks: list[Task] = []
    heads: list[dict[str, Any]] = []
    # a pretraining counts once, however many draws it has
    nested = any(experiment.draws > 1 for experiment in experiments)
    for number, (experiment, case) in enumerate(zip(experiments, cases, strict=True)):
        finished = runs[runs["status"] == "ok"]
        for column, value in experiment.columns.items():
            finished = finished[finished[column] == value]
        for run in finished.to_dict("records"):
            head = dict(experiment.columns) | {k: run[k] for k in ("labels", "arm", "seed")}
            if nested:
                head |= {k: run[k] for k in (statistics.UNIT, statistics.DRAW)}
            head["forces_mae"] = run["forces_mae"]
            heads.append(head)
            tasks.append(Task(str(Path(experiment.store) / run["run"]), number))
        labels = finished["labels"].iloc[0] if len(finished) else 0
        head = dict(experiment.columns) | {"labels": labels, "arm": REFERENCE, "seed": 0}
        if nested:
            head |= {statistics.UNIT: 0, statistics.DRAW: 0}
        head["forces_mae"] = 0.0
        tables += [head | row for row in _of_reference(case)]
    simulator = Simulator(cases)
    place: Any = (
        scheduler.Processes(simulator, jobs)
        if jobs > 1 and len(tasks) > 1
        else scheduler.Serial(simulator)
    )
    with place, bar(total=len(tasks), desc="simulations", shown=progress) as shown:
        done = place.map(tasks, shown.update)
    for head, task in zip(heads, tasks, strict=True):
        answer = done[task]
        if answer["status"] != "ok":
            raise PotkitError(f"{head['arm']}, seed {head['seed']}: {answer['error']}")
        tables += [head | row for row in answer["rows"]]
    return pd.DataFrame(tables)


@dataclasses.dataclass(frozen=True)
class Task:
    """The simulations of one network: its run folder, and the number of its case."""

    run: str
    case: int


def _is_kept(path: Path) -> bool:
    return "rows" in read_json(path) and "identity" in read_json(path)


KEPT = Kind("the simulations of a network", _is_kept)


class Simulator:
    """Does the simulations of networks, here or (it can be pickled) elsewhere; each once."""

    def __init__(self, cases: Sequence[Case]) -> None:
        self.cases = list(cases)

    def __call__(self, task: Task) -> dict[str, Any]:
        """The rows of a network: {"status": "ok", "rows": …}, or "failed" with the error."""
        try:
            return {"status": "ok", "rows": self._found(task)}
        except PotkitError as error:
            return {"status": "failed", "error": str(error)}

    def _found(self, task: Task) -> list[dict[str, Any]]:
        case = self.cases[task.case]
        model = checkpoints.load(task.run)
        identity = {
            "weights": weights_hash(model),
            "starts": case.copies().fingerprint(),
            "plan": dataclasses.asdict(case.plan),
            "edges": [float(BOND_EDGES[0]), float(BOND_EDGES[-1]), len(BOND_EDGES)],
        }
        path = Path(task.run).parent / f"moved-{identity_hash(identity)}.json"
        if path.is_file():
            return read_json(path)["rows"]
        # weights that nobody trains cost nothing in −∂E/∂x
        rows = simulated(model.double().requires_grad_(False), case)
        with replacing(path, KEPT) as temporary:
            temporary.write_text(json.dumps({"identity": identity, "rows": rows}))
        return rows


def simulated(model: Potential, case: Case, seed: int = 0) -> list[dict[str, Any]]:
    """A row for each copy of a case that ``model``, in float64, moves: NVT, then NVE.

    The velocities and the thermostat's dice are the same for every network.
    """
    plan, copies = case.plan, case.copies()
    atoms = int(copies.n_atoms[0])
    rows = []
    for ensemble, length, step, friction in (
        ("nvt", plan.nvt, plan.nvt_step, plan.friction),
        ("nve", plan.nve, plan.nve_step, 0.0),
    ):
        began = time.perf_counter()
        histories = move(
            model, copies, plan.temperature, length, step, friction, plan.look, (seed, len(rows))
        )
        seconds = (time.perf_counter() - began) / len(copies)
        for number, history in enumerate(histories):
            row: dict[str, Any] = {"ensemble": ensemble, "copy": number, "length": length}
            row |= {"held": history.held, "why": history.why}
            row["drift"] = math.nan
            if ensemble == "nve" and not history.why:
                row["drift"] = drift(np.array(history.time), np.array(history.total), atoms)
            row["temperature"] = float(np.mean(history.temperature))
            frames = [
                frame
                for at, frame in zip(history.time, history.frames, strict=True)
                if at >= plan.settle * plan.nvt
            ]
            frames = frames if ensemble == "nvt" else []
            row |= {"frames": len(frames), "seconds": seconds}
            row["histograms"] = _of_frames(frames, copies[number : number + 1], plan)
            rows.append(row)
    return rows


def _of_reference(case: Case) -> Iterator[dict[str, Any]]:
    """A row for each half of the reference; one where it has a single structure."""
    size = len(case.reference)
    for number, rows in enumerate(np.array_split(np.arange(size), min(2, size))):
        part = case.reference[rows]
        counts = bond_histograms(BondWatch(part), np.array(part.pos, np.float64)[None], BOND_EDGES)
        row = {"ensemble": REFERENCE, "copy": number, "length": 0.0, "held": 0.0, "why": ""}
        row |= {"drift": math.nan, "temperature": case.plan.temperature, "frames": len(part)}
        row |= {"seconds": 0.0, "histograms": _packed(counts, part, case.plan)}
        yield row


def _of_frames(frames: list[np.ndarray], start: Structures, plan: Plan) -> str:
    """The histograms of frames [A, 3] Å that ``start`` went through; "" without any."""
    if not frames:
        return ""
    counts = bond_histograms(BondWatch(start), np.array(frames), BOND_EDGES)
    boxes = start
    if plan.radial is not None:
        boxes = _at(concatenate([start] * len(frames)), np.concatenate(frames))
    return _packed(counts, boxes, plan)


def _packed(counts: Mapping[str, np.ndarray], boxes: Structures, plan: Plan) -> str:
    """Histograms in a cell: counts of bond lengths, "C–H|0.6|2.2|0 3 …", and, as ``plan`` asks for
    it, a radial distribution of ``boxes`` times `SCALE`, "g O–O|0|4.9|0 912 …"; by semicolons.
    """
    parts = [_cell(pair, BOND_EDGES[0], BOND_EDGES[-1], each) for pair, each in counts.items()]
    if plan.radial is not None:
        cutoff = float(np.floor(10 * np.diagonal(boxes.cell[0]).min() / 2) / 10)
        _, g = radial_distribution(boxes, *plan.radial, cutoff=cutoff, bins=RADIAL_BINS)
        name = "g " + "–".join(plan.radial)
        parts.append(_cell(name, 0.0, cutoff, np.rint(SCALE * g).astype(int)))
    return ";".join(parts)


def _at(structures: Structures, pos: np.ndarray) -> Structures:
    """``structures`` with other positions."""
    return Structures(
        z=structures.z, pos=pos, ptr=structures.ptr, cell=structures.cell, pbc=structures.pbc
    )


def _cell(name: str, low: float, high: float, counts: np.ndarray) -> str:
    return f"{name}|{low:g}|{high:g}|" + " ".join(map(str, counts))


def unpacked(cell: str) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The histograms in a cell of `trajectories`: name -> bin centres [K] Å, counts [K].

    Raises DataError for what is no such cell.
    """
    out = {}
    for part in str(cell).split(";") if isinstance(cell, str) and cell else []:
        try:
            name, low, high, numbers = part.split("|")
            counts = np.array(numbers.split(), dtype=np.float64)
            edges = np.linspace(float(low), float(high), len(counts) + 1)
        except ValueError as error:
            raise DataError(f"not a histogram: {part[:60]!r} ({error})") from error
        out[name] = (edges[1:] + edges[:-1]) / 2, counts
    return out


# -- what the tables say -------------------------------------------------------------------------
def pooled(rows: pd.DataFrame) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The histograms of several rows together: counts added, radial distributions averaged over
    frames.
    """
    out: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    total = 0
    for cell, frames in zip(rows["histograms"], rows["frames"], strict=True):
        total += int(frames)
        for name, (centres, counts) in unpacked(cell).items():
            weighted = counts * frames if name.startswith("g ") else counts
            out[name] = centres, out[name][1] + weighted if name in out else weighted
    return {
        name: (centres, values / total if name.startswith("g ") else values)
        for name, (centres, values) in out.items()
    }


def distances(
    found: Mapping[str, tuple[np.ndarray, np.ndarray]],
    reference: Mapping[str, tuple[np.ndarray, np.ndarray]],
) -> dict[str, float]:
    """``bonds`` (Å) and ``radial`` of `MEASURES`, between two sets of histograms; NaN where there
    are none.
    """
    bonds, radial = [], []
    for name, (centres, expected) in reference.items():
        if name not in found:
            continue
        counts = found[name][1]
        if name.startswith("g "):
            radial.append(distance_of_curves(counts, expected) / SCALE)
        else:
            bonds.append(distance_of_histograms(centres, counts, expected))
    mean = {"bonds": bonds, "radial": radial}
    return {name: float(np.mean(v)) if v else math.nan for name, v in mean.items()}


def measures(table: pd.DataFrame) -> pd.DataFrame:
    """`MEASURES` and forces_mae of each network in a table of `trajectories`, a row each, in the
    form of `experiments.run`; beside them its ``ends`` in NVT and the ``ps`` that copies ran.
    """
    by = [*statistics.grouping(table)]
    keys = ["arm", "seed", *(c for c in (statistics.UNIT, statistics.DRAW) if c in table)]
    rows = []
    for group, here in table.groupby(by, sort=False):
        reference = pooled(here[here["arm"] == REFERENCE])
        networks = here[here["arm"] != REFERENCE]
        ended = (networks["ensemble"] == "nvt") & _why(networks).ne("")
        for network, part in networks.groupby(keys, sort=False):
            nvt, nve = (part[part["ensemble"] == e] for e in ("nvt", "nve"))
            row = dict(zip(by, group, strict=True)) | dict(zip(keys, network, strict=True))
            row["status"] = "ok"
            row["forces_mae"] = part["forces_mae"].iloc[0]
            row |= {"ends": int(_why(nvt).ne("").sum()), "ps": float(nvt["held"].sum())}
            row["ends_per_ps"] = (row["ends"] + 0.5) / row["ps"] if ended.any() else math.nan
            kept = nve["drift"].dropna().abs()
            row["drift"] = kept.mean() if len(kept) else math.nan
            row |= distances(pooled(nvt), reference)
            row["seconds"] = part["seconds"].sum()
            rows.append(row)
    return pd.DataFrame(rows)


def _why(rows: pd.DataFrame) -> pd.Series:
    """Why copies ended, "" where they did not (which a file holds as nothing)."""
    return rows["why"].fillna("").astype(str)


def summarise(table: pd.DataFrame) -> pd.DataFrame:
    """Means over seeds of `MEASURES` and forces_mae with their intervals, and changes against
    scratch: `statistics.summarise` of a table of `trajectories`.

    Where networks ended fewer than `FEW` times each on average, their logarithms are too few
    different numbers for Student's t (without any end they are all the same). There the interval of
    ends_per_ps also holds that of a Poisson law for all networks together (Garwood 1936).
    """
    found = measures(table)
    by = statistics.grouping(table)
    summary = statistics.summarise(found, ("forces_mae", *MEASURES), by=by)
    for i, row in summary[summary["metric"] == "ends_per_ps"].iterrows():
        here = found[(found[[*by, "arm"]] == row[[*by, "arm"]]).all(axis=1)]
        summary.loc[i, ["low", "high"]] = with_few(
            here["ends"], here["ps"], row["low"], row["high"]
        )
    return summary


def with_few(
    ends: Sequence[int], ps: Sequence[float], low: float, high: float
) -> tuple[float, float]:
    """The interval ``low`` to ``high`` of a rate of ``ends`` of several networks in ``ps`` each,
    as wide as a Poisson law asks for where there are fewer than `FEW` ends for each.
    """
    count = np.sum(ends)
    if np.isnan(low) or count >= FEW * len(ends):
        return low, high
    exact = stats.chi2.ppf([0.025, 0.975], [2 * count, 2 * count + 2]) / 2 / np.sum(ps)
    return min(low, np.nan_to_num(exact[0])), max(high, exact[1])


def effects(table: pd.DataFrame) -> pd.DataFrame:
    """Changes of `MEASURES` by every arm against scratch and scratch-longer with their verdicts:
    `statistics.effects` of a table of `trajectories`.

    Few ends are few different numbers: three networks without an end and three with one each have
    no spread, and t is sure of the change. Where it tells one of ends_per_ps alone (p ≤ 0.05), and
    the networks of an arm ended fewer than `FEW` times each on average, counting has to tell it,
    too: p is the larger of both tests', and the interval reaches as far as both (`Counts`).

    ``table.attrs["primary"]``: the contrast that was declared before the runs.
    """
    found = measures(table)
    found.attrs = {k: v for k, v in table.attrs.items() if k in ("primary", "contrasts")}
    told = statistics.effects(found, MEASURES)
    few = dict(_of_few_ends(told, found))
    return _judged_again(told, few) if few else told


@dataclasses.dataclass(frozen=True)
class Counts:
    """Ends of all networks of an arm in the ``ps`` that their copies ran, and of a baseline's."""

    ends: int
    ps: float
    base_ends: int
    base_ps: float

    def tails(self) -> tuple[float, float]:
        """How likely so few ends of the arm, and so many, are of all there were if both had one
        rate: each falls to the arm with its share of the time (Przyborowski & Wilenski 1940).
        """
        total, share = self.ends + self.base_ends, self.ps / (self.ps + self.base_ps)
        few = stats.binom.cdf(self.ends, total, share)
        many = stats.binom.sf(self.ends - 1, total, share)
        return float(few), float(many)

    def rates_apart(self, confidence: float = 0.95) -> tuple[float, float]:
        """The interval of log(rate of the arm / rate of the baseline) that leaves out 0 where a
        tail is smaller than (1 − ``confidence``) / 2 (Clopper & Pearson 1934); −inf and inf where
        one had no end.
        """
        tail = (1 - confidence) / 2
        low = stats.beta.ppf(tail, self.ends, self.base_ends + 1) if self.ends else 0.0
        high = stats.beta.ppf(1 - tail, self.ends + 1, self.base_ends) if self.base_ends else 1.0
        of_times = math.log(self.base_ps / self.ps)
        return float(special.logit(low)) + of_times, float(special.logit(high)) + of_times

    def p_of_both(self, mean: float, p: float) -> float:
        """The larger two-sided p of the t test, ``p`` of a ``mean`` log ratio, and of `tails`; on
        the side where both speak for a change.
        """
        of_t = (p / 2, 1 - p / 2) if mean < 0 else (1 - p / 2, p / 2)
        return min(1.0, 2 * min(max(pair) for pair in zip(of_t, self.tails(), strict=True)))


def _of_few_ends(told: pd.DataFrame, found: pd.DataFrame) -> Iterator[tuple[Any, Counts]]:
    """The rows of ``told`` in which t alone tells a change of ends, of which there are few."""
    if not len(told):
        return
    by = list(told.columns[: list(told.columns).index("arm")])
    alone = told[(told["metric"] == "ends_per_ps") & (told["p"] <= LEVEL)]
    for i, row in alone.iterrows():
        here = found
        for column in by:
            here = here[here[column] == row[column]]
        arms = [here[here["arm"] == row[name]] for name in ("arm", "against")]
        if min(networks["ends"].mean() for networks in arms) < FEW:
            arm, base = (networks[["ends", "ps"]].sum() for networks in arms)
            yield i, Counts(int(arm["ends"]), arm["ps"], int(base["ends"]), base["ps"])


def _judged_again(told: pd.DataFrame, few: Mapping[Any, Counts]) -> pd.DataFrame:
    """``told`` with p, interval and verdict of its rows of ``few`` ends held to both tests, and
    with what follows from that for the others of their families.
    """
    told = told.copy()
    logs = np.log1p(told[["change_%", "change_low_%", "change_high_%"]] / 100).to_numpy()
    of_rows = dict(zip(told.index, logs, strict=True))

    def within(i: Any, confidence: float) -> tuple[float, float, float]:
        """Mean logarithm and interval of a row."""
        mean, _, high = of_rows[i]
        freedom = told.loc[i, "seeds"] - 1
        wider = stats.t.ppf(0.5 + confidence / 2, freedom) / stats.t.ppf(0.975, freedom)
        low, high = mean - wider * (high - mean), mean + wider * (high - mean)
        if i in few:
            exact = few[i].rates_apart(confidence)
            low, high = min(low, exact[0]), max(high, exact[1])
        return mean, low, high

    for i, counts in few.items():
        told.loc[i, "p"] = counts.p_of_both(of_rows[i][0], told.loc[i, "p"])
        for name, value in statistics.change_within(*within(i, 0.95)).items():
            told.loc[i, name] = value
    for _, part in told.groupby("family"):
        adjusted, levels = statistics.holm(part["p"])
        told.loc[part.index, "p_holm"] = adjusted
        for i, level in zip(part.index, levels, strict=True):
            told.loc[i, "verdict"] = statistics.said(*within(i, 1 - level))
    return told


def survival(rows: pd.DataFrame, points: int = 200) -> tuple[np.ndarray, np.ndarray]:
    """Times (ps) and the share of copies in ``rows`` that still run then; all have one length."""
    length = float(rows["length"].max())
    at = np.linspace(0, length, points + 1)
    ends = np.where(_why(rows).ne(""), rows["held"], np.inf)
    return at, (ends[None] > at[:, None]).mean(axis=1)
