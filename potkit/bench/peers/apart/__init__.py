"""Peers that need an environment of their own, each a process that is asked for one piece of work
at a time.

`potkit bench peers NAME` makes the environment (`environments.py`); `rivals` starts the peer's
script in it (`workers/`) with a network as large as potkit's (`matches.py`) and gives it to the
comparison. Their weights are others, so outputs are not compared; atoms and edges must be the same.

A new peer is an entry of PEERS, a file of versions in ``requirements/``, a script in ``workers/``
and a function per network in ``matches.py``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....errors import ConfigError, DataError
from ....models.base import Potential
from ....structures.store import Structures
from ...common import Rival
from . import matches
from .environments import Environment
from .matches import Match, Matching
from .worker import Worker

WORKERS = Path(__file__).parent / "workers"
SLOW = 20.0  # s of one piece of work, for which FEW rounds must do
FEW = 2


@dataclasses.dataclass(frozen=True)
class PeerApart:
    """A peer, its environment, the script that serves it, and its networks by potkit's."""

    environment: Environment
    script: str
    networks: dict[str, tuple[Matching, ...]]
    calculator: str = ""  # what to know of the one that moves atoms

    @property
    def name(self) -> str:
        """The name under which it is installed."""
        return self.environment.name

    def command(self) -> list[str]:
        """How its process is started."""
        return [str(self.environment.python), str(WORKERS / "start.py"), self.script]


PEERS = (
    PeerApart(
        Environment("graph-pes", ("graph-pes", "torch")),
        "serve_graph_pes",
        {
            "schnet": (matches.graph_pes_schnet,),
            "painn": (matches.graph_pes_painn,),
            "nequip": (matches.graph_pes_nequip,),
        },
        "its calculator finds neighbours within 1 Å more, anew once an atom has moved by 0.5 Å",
    ),
    PeerApart(
        Environment("mace-torch", ("mace-torch", "torch")),
        "serve_mace",
        {"nequip": (matches.mace_torch,)},
        "its calculator finds neighbours at every step and works out the stress, too",
    ),
    PeerApart(
        Environment("mlip", ("mlip",)),
        "serve_mlip",
        {"nequip": (matches.mlip_nequip, matches.mlip_mace)},
        "its calculator finds neighbours at every step",
    ),
)
NAMES = tuple(peer.name for peer in PEERS)


@dataclasses.dataclass(frozen=True)
class Task:
    """What a peer is asked to do: ``work`` is finetune, md or evaluate, as in `potkit bench`."""

    work: str
    threads: int
    batch: int = 1  # structures at a time, of evaluate
    steps: int = 0  # of md
    time_step: float = 0.0  # fs, of md
    velocities: np.ndarray | None = None  # [N, 3] in ASE's unit, of md


def named(names: Sequence[str]) -> list[PeerApart]:
    """The peers of these names. Raises ConfigError for one that there is not."""
    if unknown := [name for name in names if name not in NAMES]:
        raise ConfigError(f"peer {unknown[0]!r} is not one of {', '.join(NAMES)}")
    return [peer for peer in PEERS if peer.name in names]


def chosen(
    names: Sequence[str] | None, device: str, say: Callable[[str], None] = lambda text: None
) -> list[PeerApart]:
    """The peers of these ``names``, or without any all that are set up; who is left out is said
    in one line. Raises ConfigError for a named one that is not set up, and for one on a GPU.
    """
    if names:
        for peer in named(names):
            if (state := peer.environment.state()) != "ready":
                raise ConfigError(
                    f"--peer {peer.name}: its environment is {state}; "
                    f"make it by `potkit bench peers {peer.name}`"
                )
        if device != "cpu":
            raise ConfigError(f"--peer {names[0]} is measured on a CPU only, not with {device}")
        return named(names)
    if names is not None or device != "cpu":
        return []
    ready = [peer for peer in PEERS if peer.environment.state() == "ready"]
    if missing := [peer.name for peer in PEERS if peer not in ready]:
        say(f"without {', '.join(missing)}: `potkit bench peers {' '.join(missing)}` gets them")
    return ready


@contextlib.contextmanager
def rivals(
    peers: Sequence[PeerApart],
    case: str,
    model: Potential,
    structures: Structures,
    task: Task,
    say: Callable[[str], None] = lambda text: None,
) -> Iterator[list[Rival]]:
    """Within, the processes of ``peers`` that have a network like ``model``, the one of ``case``.

    Raises DataError where one finds other edges than potkit, and ConfigError where one fails.
    """
    batch = structures.batch()
    edges = len(model.graph(batch, batch.pos).sender)
    with contextlib.ExitStack() as stack:
        found = []
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="potkit-bench-"))
        path = Path(folder) / "structures.npz"
        write(path, structures, task.velocities)
        for peer in peers:
            for matching in peer.networks.get(case, ()):
                match = matching(model)
                say(f"{case}: {peer.name} builds and compiles {match.network}")
                worker = stack.enter_context(
                    Worker(
                        f"{peer.name} {match.network}",
                        peer.command(),
                        settings(task, match, structures, path),
                        task.threads,
                    )
                )
                notes = [match.note, peer.calculator if task.work == "md" else ""]
                found.append(rival(worker, notes, task, model.n_parameters(), edges))
        yield found


def settings(task: Task, match: Match, structures: Structures, path: Path) -> dict[str, Any]:
    """What a worker is started with."""
    return {
        "structures": str(path),
        "work": task.work,
        "threads": task.threads,
        "batch": task.batch,
        "steps": task.steps,
        "time_step": task.time_step,
        "elements": sorted({int(z) for z in np.asarray(structures.z)}),
        "network": match.network,
        "options": match.options,
    }


def write(path: Path, structures: Structures, velocities: np.ndarray | None = None) -> None:
    """Structures and labels as a file of arrays, for a process that does not know potkit."""
    cell = structures.cell
    arrays = {
        "z": structures.z,
        "pos": structures.pos,
        "ptr": structures.ptr,
        "pbc": structures.pbc,
        "cell": np.zeros((len(structures), 3, 3)) if cell is None else cell,
        "energy": structures.energy,
        "forces": structures.forces,
    }
    if velocities is not None:
        arrays["velocities"] = velocities
    np.savez(path, **{name: np.asarray(array) for name, array in arrays.items()})


def rival(worker: Worker, notes: Sequence[str], task: Task, parameters: int, edges: int) -> Rival:
    """A worker as part of a comparison; its note has sizes beside potkit's, and ``notes``."""
    sizes = worker.sizes
    if sizes["edges"] != edges:
        raise DataError(f"bench: {worker.name} finds {sizes['edges']} edges, potkit {edges}")
    parts = [
        f"{worker.name} {sizes.get('version', '')}".strip() + ", a process of its own: "
        f"other weights, {sizes['parameters']:,} parameters (potkit {parameters:,}), "
        "the same atoms and edges"
    ]
    parts += [note for note in notes if note]
    if task.work != "md":
        parts.append(f"batch and neighbours alone take it {1e3 * sizes['prepare_s']:.2g} ms")
    if sizes["first_s"] > 2 * sizes["last_s"] + 1:
        parts.append(f"its first call took {sizes['first_s']:.0f} s")
    rounds = FEW if sizes["last_s"] > SLOW else None
    return Rival(
        worker.name, worker.go, note="; ".join(parts), rounds=rounds, peak_mb=worker.peak_mb
    )
