"""Compiled code for a network, where it can be had.

It is asked for by `TrainConfig.compile`, and by ``compile`` of `evaluate` and `calculator`.

On a CPU a backbone that has kernels (`potkit.kernels`) uses them; ``kernel_order`` of its class
says how many derivatives they serve: 2 where training on −∂E/∂x goes through them too. Everything
else goes through torch.compile. Where targets are −∂E/∂x that is energy and derivative as one graph
(`whole_graph`), else the backbone only: batches, neighbour lists and read-outs stay as they are.
Predictions use kernels or nothing: they are over before torch.compile is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import torch

from .. import kernels
from ..errors import ConfigError
from ..models.base import Potential

BACKEND = "inductor"  # of torch.compile, for energy and derivatives as one graph


def compile_backbone(model: Potential) -> Potential:
    """Have ``model``'s backbone compiled when it is first called.

    Returns ``model``, changed in place; weights are untouched. Not for what is trained on
    derivatives of the energy: torch.compile cannot differentiate its own code twice.
    """
    # a changed number of atoms or edges must not mean compiling again; plain functions are traced,
    # see `models.replaceable`
    torch._dynamo.config.cache_size_limit = max(torch._dynamo.config.cache_size_limit, 16)
    model.backbone.compile(dynamic=True)
    return model


def has_kernels(model: Potential, outputs: Sequence[str], device: str) -> bool:
    """Whether ``model`` has kernels to be trained with on ``outputs``.

    ``device`` is "cpu" or "cuda".
    """
    return device == "cpu" and model.backbone.kernel_order >= 1 + model.by_gradient(outputs)


@contextlib.contextmanager
def compiled(
    model: Potential,
    outputs: Sequence[str],
    wanted: bool,
    device: str = "cpu",
    precision: str = "32-true",
) -> Iterator[Potential]:
    """``model`` with compiled code if ``wanted``; afterwards as it was.

    Raises ConfigError where there can be none.
    """
    if not wanted:
        yield model
    elif has_kernels(model, outputs, device):
        if precision == "64-true":
            raise ConfigError(
                "config: compile has no kernels for precision 64-true on a CPU; "
                "set compile to false"
            )
        with kernels.used():
            yield model
    elif model.by_gradient(outputs):
        if precision == "bf16-mixed":
            raise ConfigError(
                "config: compile of targets that are −∂E/∂x is not for precision bf16-mixed; "
                "set compile to false"
            )
        from .whole_graph import (
            WholeGraph,
        )  # brings torch.compile: a second that others do not wait

        # an nn.Module asks this before its `forward`
        model._compiled_call_impl = WholeGraph(model, BACKEND)
        try:
            yield model
        finally:
            model._compiled_call_impl = None
    else:
        compile_backbone(model)
        try:
            yield model
        finally:
            model.backbone._compiled_call_impl = None


def for_predictions(
    model: Potential, wanted: bool, device: torch.device | str, dtype: torch.dtype
) -> contextlib.AbstractContextManager[None]:
    """Within, predictions of ``model`` go through kernels if ``wanted``.

    Raises ConfigError where there are none for it.
    """
    where = torch.device(device).type
    if wanted and not (has_kernels(model, ("energy",), where) and dtype == torch.float32):
        what, kind = type(model.backbone).__name__, str(dtype).removeprefix("torch.")
        raise ConfigError(
            "compile: there are kernels for EGNN, SchNet and TorchMD-Net ET in float32 on a CPU, "
            f"not for {what} in {kind} on {where}"
        )
    return kernels.used(wanted) if wanted else contextlib.nullcontext()
