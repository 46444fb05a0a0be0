"""torch.compile on a network's backbone, where it can be had: `TrainConfig.compile`.

Only the backbone is compiled (fixed code, changing sizes); batches, neighbour lists and read-outs stay as they are, and so do the names of
all weights. torch.compile cannot be differentiated twice, so training on −∂E/∂x has no use for it, and it says so.
"""

from __future__ import annotations

import contextlib
from typing import Iterator, Sequence

import torch

from .errors import ConfigError
from .models.base import Potential


def compile_backbone(model: Potential, outputs: Sequence[str]) -> Potential:
    """Have ``model``'s backbone compiled when it is first called. Returns ``model``, changed in place; weights are untouched.

    ``outputs`` are those it will be trained on. Raises ConfigError where they are derivatives of the energy.
    """
    by_gradient = ("forces" in outputs and model.forces_mode == "gradient") or (
        ("vector" in outputs or "noise" in outputs) and model.vector_mode == "gradient"
    )
    if by_gradient:
        wanted = ", ".join(o for o in outputs if o != "energy")
        raise ConfigError(
            f"config: compile does not work for {wanted} as −∂E/∂x: torch.compile cannot be differentiated twice; set compile to false"
        )
    # a changed number of atoms or edges must not mean compiling again; plain formulas are chosen by `models.layers.in_blocks`
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 16)
    model.backbone.compile(dynamic=True)
    return model


@contextlib.contextmanager
def compiled(model: Potential, outputs: Sequence[str], wanted: bool) -> Iterator[Potential]:
    """``model`` with its backbone compiled if ``wanted``; afterwards as it was."""
    if wanted:
        compile_backbone(model, outputs)
    try:
        yield model
    finally:
        if wanted:
            model.backbone._compiled_call_impl = None
