"""Energy and forces for given structures, as in evaluation and molecular dynamics: potkit beside
others, same weights.

Neighbour lists are part of it. ``per_second`` is structures per second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels.compiling import has_kernels
from . import peers
from .common import COLUMNS, Rival, alkanes, check_device, compare, precisions
from .step import CASES, with_kernels


def run(
    device: str = "cpu",
    threads: int = 1,
    repeats: int = 5,
    cases: tuple[str, ...] = CASES,
    batch: int = 64,
    hidden: int = 256,
    compile: bool = False,
    memory: bool = True,
    say: Callable[[str], None] = lambda text: None,
):
    """A DataFrame, a row per network and implementation; outputs that are compared are the
    forces. ``compile`` adds potkit's kernels.
    """
    import pandas as pd

    check_device(device, threads)
    rows = []
    for case in cases:
        at_once = peers.batch_of(case, batch, device)
        structures, source = alkanes(at_once)
        torch.manual_seed(0)
        model = peers.reference(case, hidden).to(device).eval()
        structures.to(device)
        rivals = []
        for peer in peers.of(case, model, structures, device):
            if peer.same:
                module = peers.PeerPotential(case, model, peer).to(device).eval()
                work = _forces(module, structures, device)
                rivals.append(Rival(peer.name, work, work, note=peer.note))
        for precision, low in precisions(device):
            work = _ours(model, structures, device, low)
            rivals.append(Rival("potkit", work, work, precision))
            if compile and has_kernels(model, ("energy",), device):
                quick = with_kernels(work)
                rivals.append(Rival("potkit, compiled", quick, quick, precision))
        rivals[0].note = "; ".join(filter(None, [source, rivals[0].note]))
        clean = structures.batch(device=device)
        edges = model.graph(clean, clean.pos).sender
        compared = compare(
            f"{case} energy and forces",
            rivals,
            repeats,
            device,
            threads,
            tolerance=1e-4,
            memory=memory,
            say=say,
            atoms=len(clean.pos),
            edges=len(edges),
        )
        rows += [row | {"per_second": at_once / row["median_s"]} for row in compared]
    return pd.DataFrame(rows, columns=[*COLUMNS, "per_second"])


def _forces(module: nn.Module, structures: Any, device: str) -> Callable[[], Tensor]:
    """A function that gives −∂E/∂x of a peer's network, [N, 3] eV/Å."""

    def work() -> Tensor:
        return module(structures.batch(device=device)).forces

    return work


def _ours(
    model: nn.Module, structures: Any, device: str, low: torch.dtype | None
) -> Callable[[], Tensor]:
    """A function that gives potkit's forces [N, 3] eV/Å, under autocast if ``low`` is given."""

    def work() -> Tensor:
        autocast = torch.autocast(device, low or torch.bfloat16, enabled=low is not None)
        with torch.no_grad(), autocast:
            return model.energy_and_forces(structures.batch(device=device))[1].float()

    return work
