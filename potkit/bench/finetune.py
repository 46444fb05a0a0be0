"""One step of training on energies and forces, potkit beside others: batch + neighbours + forward +
−∂E/∂x + the derivatives of both by the weights + optimizer.

Molecules as large as 3BPA (of ani-mini) and periodic boxes of 64 waters (of water-mini). Rivals get
the same weights, labels, loss and optimizer, and their forces are compared before the clock starts.
Peers with an environment of their own have networks of the same size, see `peers.apart`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.compiling import BACKEND, has_kernels, in_graphs
from ..objectives import Supervised
from ..structures.store import Structures
from . import peers
from .common import COLUMNS, SYSTEMS, Rival, check_device, compare
from .peers import apart
from .step import with_kernels

CASES = ("egnn", "torchmd_et", "schnet", "painn", "nequip")
OUTPUTS = ("energy", "forces")
BATCH = {"molecules": 8, "boxes": 2}  # structures per step


def run(
    device: str = "cpu",
    threads: int = 1,
    repeats: int = 7,
    cases: tuple[str, ...] = CASES,
    systems: Sequence[str] = tuple(SYSTEMS),
    batch: int | None = None,
    hidden: int = 128,
    compile: bool = False,
    memory: bool = True,
    peer_names: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
):
    """A DataFrame, a row per network, system and implementation; see `common.compare`.

    ``systems`` of `SYSTEMS`; ``batch`` structures per step (default: 8 molecules, 2 boxes; NequIP
    fewer, see `peers.batch_of`), networks of width ``hidden``. ``compile`` adds potkit's compiled
    code, as `TrainConfig.compile` has it. ``peer_names``: see `apart.chosen`.
    """
    import pandas as pd

    check_device(device, threads)
    others = apart.chosen(peer_names, device, say)
    task = apart.Task("finetune", threads)
    rows = []
    for system in systems:
        for case in cases:
            n = peers.batch_of(case, batch or BATCH[system], device)
            structures = SYSTEMS[system](n)
            rivals, sizes = contenders(case, structures, device, hidden, compile)
            model = peers.reference(case, hidden)
            with apart.rivals(others, case, model, structures, task, say) as guests:
                rows += compare(
                    f"{case} finetune, {n} {system}",
                    [*rivals, *guests],
                    repeats,
                    device,
                    threads,
                    tolerance=1e-4,
                    memory=memory,
                    say=say,
                    **sizes,
                )
    return pd.DataFrame(rows, columns=COLUMNS)


def contenders(
    case: str, structures: Structures, device: str, hidden: int, compile: bool
) -> tuple[list[Rival], dict[str, int]]:
    """The implementations of one case, the peers first, and the numbers of atoms and edges of its
    batch.
    """
    torch.manual_seed(0)
    model = peers.reference(case, hidden).to(device)
    structures.to(device)
    batch = structures.batch(device=device)
    edges = model.graph(batch, batch.pos).sender
    rivals = []
    for peer in peers.of(case, model, structures, device):
        note = peer.note if peer.same else f"{peer.note}; other weights"
        module = peers.PeerPotential(case, model, peer).to(device)
        output = functools.partial(_forces, module, structures, device) if peer.same else None
        step = trainer(module, module, structures, device)
        rounds = None if peer.same else 2
        rivals.append(Rival(peer.name, step, output, note=note, rounds=rounds))
    twin = peers.copy_of(model)
    predict = functools.partial(twin, outputs=OUTPUTS)
    output = functools.partial(_forces, predict, structures, device)
    step = trainer(twin, predict, structures, device)
    rivals.append(Rival("potkit", step, output))
    kernels = has_kernels(model, OUTPUTS, device)
    if compile and kernels and not in_graphs(model):
        rivals.append(Rival("potkit, compiled", with_kernels(step), with_kernels(output)))
    elif compile:
        from ..kernels.whole_graph import WholeGraph

        twin = peers.copy_of(model)
        whole = WholeGraph(twin, BACKEND, kernels=kernels)
        predict = functools.partial(whole, outputs=OUTPUTS)
        output = functools.partial(_forces, predict, structures, device)
        step = trainer(twin, predict, structures, device)
        note = "energy and forces as one graph"
        if kernels:
            note += " that calls kernels"
        rivals.append(Rival("potkit, compiled", step, output, note=note))
    return rivals, {"atoms": len(batch.z), "edges": len(edges)}


def _forces(predict: Callable[[Any], Any], structures: Structures, device: str) -> Tensor:
    """Forces [N, 3] eV/Å before anything is trained."""
    return predict(structures.batch(device=device)).forces


def trainer(
    module: nn.Module, predict: Callable[[Any], Any], structures: Structures, device: str
) -> Callable[[], None]:
    """A function that trains ``module`` by one step on energies and forces of a freshly built
    batch; ``predict`` gives its `Prediction`. The rate is small: a clock sees the same network.
    """
    objective = Supervised(energy=1, forces=100, loss_function="mse")
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-7, weight_decay=0.0, fused=True)
    module.train()

    def step() -> None:
        batch = structures.batch(device=device)
        loss, _ = objective.loss(predict(batch), batch)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    return step
