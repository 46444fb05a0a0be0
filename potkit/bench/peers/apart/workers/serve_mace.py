"""MACE of mace-torch: its data, its loader's collation, its calculator."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch
import torch_steps
from ase import Atoms
from mace import data, modules
from mace.calculators import MACECalculator
from mace.tools import AtomicNumberTable
from mace.tools.torch_geometric.batch import Batch
from serving import Work, batches, dynamics

PACKAGE = "mace-torch"
KEYS = data.KeySpecification(
    info_keys={"energy": "energy"},
    arrays_keys={"forces": "forces"},
)


def build_network(options: dict[str, Any], elements: list[int]) -> torch.nn.Module:
    """A MACE as the package's own training builds it, for ``elements``."""
    from e3nn.o3 import Irreps  # after mace, which makes torch read e3nn's file of constants

    block = modules.interaction_classes["RealAgnosticResidualInteractionBlock"]
    return modules.ScaleShiftMACE(
        r_max=options["cutoff"],
        num_bessel=options["radial"],
        num_polynomial_cutoff=5,
        max_ell=options["max_ell"],
        interaction_cls=block,
        interaction_cls_first=block,
        num_interactions=options["layers"],
        num_elements=len(elements),
        hidden_irreps=Irreps(
            [
                (options["channels"], (degree, (-1) ** degree))
                for degree in range(options["degree"] + 1)
            ]
        ),
        MLP_irreps=Irreps("16x0e"),
        atomic_energies=np.zeros(len(elements)),
        avg_num_neighbors=options["neighbors"],
        atomic_numbers=elements,
        correlation=options["correlation"],
        gate=torch.nn.functional.silu,
        atomic_inter_scale=1.0,
        atomic_inter_shift=0.0,
    )


def batch_of(structures: list[Atoms], table: AtomicNumberTable, cutoff: float) -> Batch:
    """A batch with edges within ``cutoff`` Å, found anew."""
    parts = []
    for atoms in structures:
        config = data.config_from_atoms(atoms, KEYS)
        parts.append(data.AtomicData.from_config(config, z_table=table, cutoff=cutoff))
    return Batch.from_data_list(parts)


def compared(
    network: torch.nn.Module, structures: list[Atoms], table: AtomicNumberTable, training: bool
) -> torch_steps.Compared:
    """What the network predicts for a fresh batch, and its labels."""
    batch = batch_of(structures, table, float(network.r_max))
    predicted = network(batch.to_dict(), training=training, compute_force=True)
    return predicted["energy"], predicted["forces"], batch.energy, batch.forces


def build(settings: dict[str, Any], structures: list[Atoms]) -> Work:
    """The work that ``settings`` ask for, with a network of their size."""
    torch_steps.set_up(settings["threads"])
    table = AtomicNumberTable(settings["elements"])
    network = build_network(settings["options"], settings["elements"])
    cutoff = settings["options"]["cutoff"]
    prepare = functools.partial(batch_of, structures, table, cutoff)
    edges = prepare().edge_index.shape[1]
    parameters = torch_steps.count(network)
    parts = batches(structures, settings["batch"])
    if settings["work"] == "finetune":
        fresh = functools.partial(compared, network, structures, table, training=True)
        run = torch_steps.trainer(network, fresh)
    elif settings["work"] == "evaluate":
        network.eval()
        run = torch_steps.evaluator(
            [functools.partial(compared, network, part, table, training=False) for part in parts]
        )
        prepare = functools.partial(lambda: [batch_of(part, table, cutoff) for part in parts])
    else:
        calculator = MACECalculator(models=[network.eval()], default_dtype="float32")
        moved = (structures[0], calculator, settings["steps"], settings["time_step"])
        run = functools.partial(dynamics, *moved)
    return Work(run, prepare, parameters, edges, torch_steps.peak_memory)
