"""Errors of energy and forces over a labelled set, as `potkit evaluate` finds them, potkit beside
others with the same weights.

potkit's side is the whole of `potkit.evaluate`: checks, batches, neighbours, predictions, tables of
errors. A peer's is the loop people write: batches (potkit's), neighbours, predictions, two means.
Peers with an environment of their own do the same with networks of the same size, see
`peers.apart`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..models import Potential
from ..structures.store import Structures
from . import peers
from .common import COLUMNS, Rival, check_device, compare, molecules
from .finetune import CASES
from .peers import apart


def run(
    device: str = "cpu",
    threads: int = 1,
    repeats: int = 5,
    cases: tuple[str, ...] = CASES,
    structures: int = 128,
    batch: int = 64,
    hidden: int = 128,
    compile: bool = False,
    memory: bool = True,
    peer_names: Sequence[str] | None = None,
    say: Callable[[str], None] = lambda text: None,
):
    """A DataFrame, a row per network and implementation, with structures ``per_second``; the
    predicted forces are compared first. See `common.compare`.

    ``structures`` molecules of ani-mini (NequIP fewer, see `peers.batch_of`) in batches of
    ``batch``; networks of width ``hidden``; ``compile`` adds potkit's compiled code;
    ``peer_names``: see `apart.chosen`.
    """
    import pandas as pd

    check_device(device, threads)
    others = apart.chosen(peer_names, device, say)
    task = apart.Task("evaluate", threads, batch)
    rows = []
    for case in cases:
        n = peers.batch_of(case, structures, device)
        labelled = molecules(n)
        torch.manual_seed(0)
        model = peers.reference(case, hidden).to(device).eval()
        rivals = []
        for peer in peers.of(case, model, labelled, device):
            if peer.same:
                module = peers.PeerPotential(case, model, peer).to(device).eval()
                work = _loop(module, labelled, batch, device)
                rivals.append(Rival(peer.name, work, work, note=peer.note))
        work = _ours(model, labelled, batch, device)
        rivals.append(Rival("potkit", work, work))
        if compile:
            work = _ours(model, labelled, batch, device, compile=True)
            rivals.append(Rival("potkit, compiled", work, work))
        whole = labelled.batch(device=device)
        edges = len(model.graph(whole, whole.pos).sender)
        with apart.rivals(others, case, model, labelled, task, say) as guests:
            compared = compare(
                f"{case} evaluate, {n} molecules",
                [*rivals, *guests],
                repeats,
                device,
                threads,
                tolerance=1e-4,
                memory=memory,
                say=say,
                atoms=len(whole.z),
                edges=edges,
            )
        rows += [row | {"per_second": n / row["median_s"]} for row in compared]
    return pd.DataFrame(rows, columns=[*COLUMNS, "per_second"])


def _loop(
    module: nn.Module, structures: Structures, size: int, device: str
) -> Callable[[], Tensor]:
    """A function that finds a peer's mean absolute errors, and gives its forces [N, 3] eV/Å."""

    def work() -> Tensor:
        forces, wrong = [], []
        for start in range(0, len(structures), size):
            rows = np.arange(start, min(start + size, len(structures)))
            batch = structures.batch(rows, device=device)
            prediction = module(batch)
            forces.append(prediction.forces.cpu())
            energy = (prediction.energy.detach() - batch.energy).abs().mean()
            wrong.append((float(energy), float((prediction.forces - batch.forces).abs().mean())))
        np.mean(wrong, axis=0)
        return torch.cat(forces)

    return work


def _ours(
    model: Potential, structures: Structures, size: int, device: str, compile: bool = False
) -> Callable[[], Tensor]:
    """A function that evaluates ``model``, and gives its forces [N, 3] eV/Å."""
    from ..training.evaluation import evaluate

    def work() -> Tensor:
        errors = evaluate(model, structures, size, device, compile=compile, keep_forces=True)
        return torch.from_numpy(errors.predicted_forces)

    return work
