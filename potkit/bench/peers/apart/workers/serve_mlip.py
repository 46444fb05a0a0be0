"""Networks of mlip, in JAX: its graphs, padded batches, step of training and calculator."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
import optax
from ase import Atoms
from mlip.data import ChemicalSystem, DatasetInfo
from mlip.data.helpers.dynamically_batch import dynamically_batch
from mlip.graph import Graph
from mlip.models import ForceField, Mace, Nequip
from mlip.models.loss import MSELoss
from mlip.simulation.ase.mlip_ase_calculator import MLIPForceFieldASECalculator
from mlip.training.ema import exponentially_moving_average
from mlip.training.training_state import init_training_state
from mlip.training.training_step import make_train_step
from serving import Work, batches, dynamics

PACKAGE = "mlip"
NETWORKS = {"NequIP": Nequip, "MACE": Mace}
SPARE = 1.25  # room for more edges than at the start of a simulation, as its own engine has


def build_force_field(settings: dict[str, Any]) -> ForceField:
    """A network of the kind and size in ``settings``, with random weights."""
    network = NETWORKS[settings["network"]]
    options = dict(settings["options"])
    info = DatasetInfo(
        atomic_energies_map=dict.fromkeys(settings["elements"], 0.0),
        graph_cutoff_angstrom=options.pop("cutoff"),
        avg_num_neighbors=options.pop("neighbors"),
        avg_r_min_angstrom=1.0,
    )
    return ForceField.from_mlip_network(network(network.Config(**options), info))


def graph_of(atoms: Atoms, cutoff: float) -> Graph:
    """A structure with its labels and its edges within ``cutoff`` Å, found anew."""
    periodic = bool(atoms.pbc.any())
    system = ChemicalSystem(
        atomic_numbers=atoms.numbers,
        positions=atoms.positions,
        energy=atoms.info["energy"],
        forces=atoms.arrays["forces"],
        cell=np.array(atoms.cell) if periodic else None,
        pbc=tuple(atoms.pbc.tolist()) if periodic else None,
    )
    return Graph.from_chemical_system(system, cutoff)


def batch_of(structures: list[Atoms], cutoff: float, sizes: dict[str, int]) -> Graph:
    """A batch padded to ``sizes``, with edges found anew."""
    graphs = [graph_of(atoms, cutoff) for atoms in structures]
    return next(dynamically_batch(graphs, **sizes))


def sizes_of(parts: list[list[Atoms]], cutoff: float) -> dict[str, int]:
    """Sizes to which all ``parts`` are padded, one structure and atom more than they have."""
    graphs = [[graph_of(atoms, cutoff) for atoms in part] for part in parts]
    return {
        "n_node": max(sum(int(g.n_node[0]) for g in part) for part in graphs) + 1,
        "n_edge": max(sum(int(g.n_edge[0]) for g in part) for part in graphs),
        "n_graph": max(len(part) for part in graphs) + 1,
    }


def trainer(field: ForceField, fresh: Any, structures: int) -> Any:
    """A function that trains the network by one step of the package's own on a fresh batch."""
    optimizer = optax.adamw(1e-7, weight_decay=0.0)
    average = exponentially_moving_average()
    loss = MSELoss(forces_weight_schedule=lambda _: 100.0)
    train = make_train_step(field.predictor, loss, optimizer, average, structures)
    state = init_training_state(field.params, optimizer, average)

    def step() -> None:
        nonlocal state
        state, _ = jax.block_until_ready(train(state, fresh(), 0))

    return step


def evaluator(field: ForceField, fresh: list[Any]) -> Any:
    """A function that finds the mean absolute errors of energy and forces over batches."""
    predict = jax.jit(field)

    def work() -> Any:
        wrong = []
        for of_a_batch in fresh:
            batch = of_a_batch()
            predicted = predict(batch)
            graphs, atoms = np.asarray(batch.graph_mask()), np.asarray(batch.node_mask())
            energy = np.asarray(predicted.energy) - np.asarray(batch.globals.energy)
            forces = np.asarray(predicted.forces) - np.asarray(batch.nodes.forces)
            wrong.append((np.abs(energy[graphs]).mean(), np.abs(forces[atoms]).mean()))
        return np.mean(wrong, axis=0)

    return work


def build(settings: dict[str, Any], structures: list[Atoms]) -> Work:
    """The work that ``settings`` ask for."""
    field = build_force_field(settings)
    cutoff = field.cutoff_distance
    parameters = sum(leaf.size for leaf in jax.tree_util.tree_leaves(field.params))
    edges = sum(int(graph_of(atoms, cutoff).n_edge[0]) for atoms in structures)
    parts = [structures]
    if settings["work"] == "evaluate":
        parts = batches(structures, settings["batch"])
    sizes = sizes_of(parts, cutoff)
    fresh = [functools.partial(batch_of, part, cutoff, sizes) for part in parts]
    if settings["work"] == "finetune":
        run = trainer(field, fresh[0], len(structures))
    elif settings["work"] == "evaluate":
        run = evaluator(field, fresh)
    else:
        start = structures[0]
        calculator = MLIPForceFieldASECalculator(start, SPARE, field)
        moved = (start, calculator, settings["steps"], settings["time_step"])
        run = functools.partial(dynamics, *moved)
    return Work(run, lambda: [batch() for batch in fresh], parameters, edges)
