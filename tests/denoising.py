"""A few steps of denoising on fixed small structures: whether a network learns at all."""

from __future__ import annotations

import torch

import potkit
from potkit.testing import contract


def losses(model, steps: int = 40, rate: float = 3e-3, sigma: float = 0.3) -> list[float]:
    """Denoising loss (1 = predicting zero) before each of ``steps`` Adam steps, always on the same
    noise.
    """
    objective = potkit.Denoise(sigma=sigma)
    clean = contract.examples(model.cutoff).batch()
    batch = objective.corrupt(clean, torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(model.parameters(), rate)
    history = []
    for _ in range(steps):
        loss = objective.loss(model(batch, objective.outputs), batch)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(float(loss.detach()))
    return history
