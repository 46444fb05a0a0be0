"""What peers written in torch share: threads, a step of training, the loop of an evaluation, and
the memory it all takes.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

# energies [S] eV and forces [N, 3] eV/Å: predicted, then labels
Compared = tuple[Tensor, Tensor, Tensor, Tensor]


def set_up(threads: int) -> None:
    """So many threads, float32, and the same start every time."""
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)


def count(network: nn.Module) -> int:
    """Parameters that are trained."""
    return sum(p.numel() for p in network.parameters() if p.requires_grad)


def trainer(network: nn.Module, compared: Callable[[], Compared]) -> Callable[[], None]:
    """A function that trains ``network`` by one step on the energies and forces that ``compared``
    predicts for a fresh batch. The rate is small: a clock sees the same network.
    """
    network.train()
    parameters = [p for p in network.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-7, weight_decay=0.0, fused=True)

    def step() -> None:
        energy, forces, energy_label, forces_label = compared()
        loss = (energy - energy_label).square().mean()
        loss = loss + 100 * (forces - forces_label).square().mean()
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()

    return step


def evaluator(compared: list[Callable[[], Compared]]) -> Callable[[], Any]:
    """A function that finds the mean absolute errors of energy and forces over batches."""

    def work() -> Any:
        wrong = []
        for of_a_batch in compared:
            energy, forces, energy_label, forces_label = of_a_batch()
            in_energy = float((energy.detach() - energy_label).abs().mean())
            wrong.append((in_energy, float((forces.detach() - forces_label).abs().mean())))
        return np.mean(wrong, axis=0)

    return work


def peak_memory(work: Callable[[], Any]) -> float:
    """MB that one call of ``work`` has allocated through torch at its peak, beyond what was there
    before: as potkit measures its own.
    """
    gc.collect()
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
        work()
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = np.cumsum([e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())] or [0])
    return float(max(held.max(), 0)) / 2**20
