"""Molecular dynamics through ASE's calculators, potkit beside others: neighbours + energy + forces,
a structure at a time.

One molecule (of ani-mini, 26 atoms) and one periodic box of 64 waters (of water-mini), moved by
ASE's velocity Verlet from the same start with the same velocities. Rivals have the same weights;
the forces where the atoms end are compared before the clock starts. Peers with an environment of
their own have networks of the same size and move the atoms by their own calculators, see
`peers.apart`.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from .. import models
from ..models.replaceable import plain_only
from ..structures.store import Structures
from . import peers
from .common import COLUMNS, SYSTEMS, Rival, check_device, compare, matmul_rate
from .finetune import CASES
from .peers import apart

TIME_STEP = 0.5  # fs
TEMPERATURE = 300.0  # K, of the velocities at the start


def run(
    device: str = "cpu",
    threads: int = 1,
    repeats: int = 7,
    cases: tuple[str, ...] = CASES,
    systems: Sequence[str] = tuple(SYSTEMS),
    steps: int = 50,
    hidden: int = 64,
    preset: str | None = None,
    compile: bool = False,
    memory: bool = False,
    peer_names: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
):
    """A DataFrame, a row per network, system and implementation; ``median_s`` is of ``steps``
    steps, ``ms_per_step`` of one. See `common.compare`.

    ``systems`` of `SYSTEMS`, one structure each; ``hidden``: width of the networks; ``preset``:
    networks of that preset instead, beside which peers with the same weights are left out;
    ``compile`` adds potkit's compiled code; ``peer_names``: see `apart.chosen`.
    """
    import pandas as pd

    check_device(device, threads)
    others = apart.chosen(peer_names, device, say)
    rows = []
    for system in systems:
        structures = SYSTEMS[system](1)
        speeds = started(structures).get_velocities()
        task = apart.Task("md", threads, steps=steps, time_step=TIME_STEP, velocities=speeds)
        for case in cases:
            model, name, alone = _network(case, hidden, preset)
            rivals, sizes = contenders(case, model, structures, device, steps, compile, alone)
            with apart.rivals(others, case, model, structures, task, say) as guests:
                compared = compare(
                    f"{name} md, one of {system}",
                    [*rivals, *guests],
                    repeats,
                    device,
                    threads,
                    tolerance=1e-4,
                    memory=memory,
                    say=say,
                    **sizes,
                )
            rows += [row | {"ms_per_step": 1e3 * row["median_s"] / steps} for row in compared]
    return pd.DataFrame(rows, columns=[*COLUMNS, "ms_per_step"])


def _network(case: str, hidden: int, preset: str | None) -> tuple[models.Potential, str, bool]:
    """The network of a case, what it is called, and whether it stands alone."""
    torch.manual_seed(0)
    if preset is None:
        return peers.reference(case, hidden), case, False
    return models.build(case, preset, vector="gradient"), f"{case} {preset}", True


def contenders(
    case: str,
    model: models.Potential,
    structures: Structures,
    device: str,
    steps: int,
    compile: bool,
    alone: bool = False,
) -> tuple[list[Rival], dict[str, int]]:
    """The implementations of one case, the peers first unless it stands ``alone``, and the numbers
    of atoms and edges.
    """
    from ..training.evaluation import calculator

    model = model.to(device).eval()
    batch = structures.batch(device=device)
    sizes = {"atoms": len(batch.z), "edges": len(model.graph(batch, batch.pos).sender)}
    rivals = []
    for peer in [] if alone else peers.of(case, model, structures, device):
        if peer.same:
            module = peers.PeerPotential(case, model, peer).to(device).eval()
            note = f"{peer.note}; its batch is kept, its neighbours are found at every step"
            move = functools.partial(dynamics, structures, peer_calculator(module, batch), steps)
            rivals.append(Rival(peer.name, move, move, note=note))
    ours = calculator(model, device=device, dtype=torch.float32, compile=False)
    move = functools.partial(dynamics, structures, ours, steps)
    least = steps * least_time(model, batch, device)
    rivals.append(Rival("potkit", move, move, roofline=least))
    if compile:
        ours = calculator(model, device=device, dtype=torch.float32, compile=True)
        move = functools.partial(dynamics, structures, ours, steps)
        rivals.append(Rival("potkit, compiled", move, move, roofline=least))
    return rivals, sizes


def least_time(model: models.Potential, batch: Any, device: str) -> float:
    """The seconds that the matrix products of one energy and its forces take at the rate measured
    for products as long as the list of edges.
    """
    from ..experiments.operations import Counter

    with plain_only(), Counter() as counter:
        model(copy.copy(batch), ("energy", "forces"))
    edges = len(model.graph(batch, batch.pos).sender)
    rate = matmul_rate(max(edges, 1), model.backbone.n_features, device=device)
    return counter.operations / rate


def started(structures: Structures) -> Any:
    """The first structure as ASE's atoms, with Maxwell and Boltzmann's velocities."""
    from ase import units

    (atoms,) = structures[:1].to_ase()
    speeds = np.sqrt(units.kB * TEMPERATURE / atoms.get_masses())[:, None]
    atoms.set_velocities(speeds * np.random.default_rng(0).standard_normal((len(atoms), 3)))
    return atoms


def dynamics(structures: Structures, calculator: Any, steps: int) -> Tensor:
    """Forces on the atoms of the first structure after ``steps`` steps of velocity Verlet, [N, 3]
    eV/Å.
    """
    from ase import units
    from ase.md.verlet import VelocityVerlet

    atoms = started(structures)
    atoms.calc = calculator
    VelocityVerlet(atoms, TIME_STEP * units.fs).run(steps)
    return torch.from_numpy(atoms.get_forces())


def peer_calculator(module: nn.Module, batch: Any) -> Any:
    """An ASE calculator of a `PeerPotential`: ``batch`` is kept and gets each step's positions,
    which is the least that has to be done.
    """
    from ase.calculators.calculator import Calculator, all_changes

    class PeerCalculator(Calculator):
        implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

        def calculate(
            self,
            atoms: Any = None,
            properties: Sequence[str] = ("energy",),
            system_changes: Sequence[str] = all_changes,
        ) -> None:
            super().calculate(atoms, properties, system_changes)
            batch.pos = torch.as_tensor(self.atoms.positions).to(batch.pos)
            prediction = module(batch)
            self.results = {
                "energy": float(prediction.energy[0].detach()),
                "forces": prediction.forces.cpu().numpy(),
            }

    return PeerCalculator()
