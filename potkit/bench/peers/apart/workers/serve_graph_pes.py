"""Networks of graph-pes: its graphs, its collation, its calculator."""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch_steps
from ase import Atoms
from graph_pes import AtomicGraph, GraphPESModel, models
from graph_pes.atomic_graph import number_of_edges, to_batch
from graph_pes.utils.calculator import GraphPESCalculator
from serving import Work, batches, dynamics

PACKAGE = "graph-pes"
NETWORKS = {"SchNet": models.SchNet, "PaiNN": models.PaiNN, "NequIP": models.ZEmbeddingNequIP}


def batch_of(structures: list[Atoms], cutoff: float) -> AtomicGraph:
    """A batch with edges within ``cutoff`` Å, found anew."""
    return to_batch([AtomicGraph.from_ase(atoms, cutoff) for atoms in structures])


def compared(
    network: GraphPESModel, structures: list[Atoms], cutoff: float
) -> torch_steps.Compared:
    """What the network predicts for a fresh batch, and its labels."""
    batch = batch_of(structures, cutoff)
    predicted = network.predict(batch, ["energy", "forces"])
    labels = batch.properties
    return predicted["energy"], predicted["forces"], labels["energy"], labels["forces"]


def build(settings: dict[str, Any], structures: list[Atoms]) -> Work:
    """The work that ``settings`` ask for, with a network of its kind and size."""
    torch_steps.set_up(settings["threads"])
    network = NETWORKS[settings["network"]](**settings["options"])
    cutoff = float(network.cutoff)
    whole = batch_of(structures, cutoff)
    with torch.no_grad():
        network(whole)  # makes the parameters of the elements
    prepare = functools.partial(batch_of, structures, cutoff)
    parts = batches(structures, settings["batch"])
    if settings["work"] == "finetune":
        fresh = functools.partial(compared, network, structures, cutoff)
        run = torch_steps.trainer(network, fresh)
    elif settings["work"] == "evaluate":
        network.eval()
        run = torch_steps.evaluator(
            [functools.partial(compared, network, part, cutoff) for part in parts]
        )
        prepare = functools.partial(lambda: [batch_of(part, cutoff) for part in parts])
    else:
        calculator = GraphPESCalculator(network)  # moves and trains nothing; its own skin
        moved = (structures[0], calculator, settings["steps"], settings["time_step"])
        run = functools.partial(dynamics, *moved)
    return Work(
        run,
        prepare,
        torch_steps.count(network),
        number_of_edges(whole),
        torch_steps.peak_memory,
    )
