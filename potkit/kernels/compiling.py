"""Compiled code for a network, where it can be had.

It is asked for by `TrainConfig.compile`, and by ``compile`` of `evaluate` and `calculator`.

On a CPU a backbone that has kernels (`potkit.kernels`) uses them; ``kernel_order`` of its class
says how many derivatives they serve: 2 where training on −∂E/∂x goes through them too. Everything
else goes through torch.compile. Where targets are −∂E/∂x that is energy and derivative as one graph
(`whole_graph`), else the backbone only: batches, neighbour lists and read-outs stay as they are.
Predictions go through kernels or the one graph.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from .. import kernels
from ..errors import ConfigError
from ..models.base import Potential
from .build import find_compiler

KEPT = "_for_predictions"  # attribute of a network: what was compiled for it
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


def require_compiler(device: torch.device | str) -> None:
    """Raise ConfigError, in one line, where there is nothing to compile for a CPU with."""
    if torch.device(device).type == "cpu":
        find_compiler()


def has_compiler(device: torch.device | str) -> bool:
    """Whether torch.compile can make code for ``device`` here."""
    try:
        require_compiler(device)
    except ConfigError:
        return False
    return torch.device(device).type == "cpu" or torch.utils._triton.has_triton()


def in_graphs(model: Potential, precision: str = "32-true") -> bool:
    """Whether kernels of ``model`` are better called from the one graph of energy and derivative.

    They are where they are operations of graphs (`egnn_operations`, `torchmd_et_operations`): a
    training step of EGNN small on four molecules of ani-mini with 15 atoms took 52 ms uncompiled,
    39 ms by its kernels, 29 ms as a graph and 23 ms as a graph that calls the kernels; one of
    TorchMD-Net ET small on four molecules with 26 atoms 85, 34, 57 and 25 ms (one thread of a busy
    machine).
    """
    return model.backbone.kernels_in_graphs and precision == "32-true"


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
    by_gradient = model.by_gradient(outputs)
    kernels_serve = has_kernels(model, outputs, device)
    # kernels are float32, the graph is of any type
    as_graph = by_gradient and (
        not kernels_serve or precision == "64-true" or in_graphs(model, precision)
    )
    if not wanted:
        yield model
    elif kernels_serve and not as_graph:
        if precision == "64-true":
            raise ConfigError(
                "config: compile has no kernels for precision 64-true on a CPU; "
                "set compile to false"
            )
        with kernels.used():
            yield model
    elif by_gradient:
        if precision == "bf16-mixed":
            raise ConfigError(
                "config: compile of targets that are −∂E/∂x is not for precision bf16-mixed; "
                "set compile to false"
            )
        from .whole_graph import (
            WholeGraph,
        )  # brings torch.compile: a second that others do not wait

        # an nn.Module asks this before its `forward`
        in_graph = kernels_serve and in_graphs(model, precision)
        model._compiled_call_impl = WholeGraph(model, BACKEND, kernels=in_graph, shared=True)
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


class ForPredictions(contextlib.AbstractContextManager[None]):
    """Within, predictions of ``model`` go through compiled code if ``wanted``; it is entered as
    often as one likes, and compiled once.

    Kernels where there are any for the network, in float32 on a CPU; else, and for ``single``
    structures, energy and derivatives as one graph (`whole_graph`), compiled by torch.compile at
    the first prediction. Calls raise ConfigError for a network that cannot be compiled.
    """

    def __init__(
        self,
        model: Potential,
        wanted: bool,
        device: torch.device | str,
        dtype: torch.dtype,
        single: bool = False,
    ) -> None:
        self.model, self.wanted, self.device, self.dtype = model, wanted, device, dtype
        self.single = single
        self._graph: Callable[..., Any] | None = None
        where = torch.device(device).type
        # of one molecule calls are what takes time: kernels are many, the graph is one
        self._by_kernels = wanted and not single and predicts_by_kernels(model, where, dtype)
        if wanted and not self._by_kernels:
            # brings torch.compile: a second that others do not wait
            from .whole_graph import WholeGraph

            self._graph = WholeGraph(model, BACKEND, predictions=True)
        self._entered: list[contextlib.ExitStack] = []
        with self:
            pass  # builds the kernels, or says why not, before anything is predicted

    def __reduce__(self) -> tuple[Any, ...]:
        # neither copied nor sent elsewhere: compiled again there
        return ForPredictions, (self.model, self.wanted, self.device, self.dtype, self.single)

    def __enter__(self) -> None:
        stack = contextlib.ExitStack()
        if self._by_kernels:
            stack.enter_context(kernels.used())
        if self._graph is not None:
            before = self.model._compiled_call_impl
            stack.callback(setattr, self.model, "_compiled_call_impl", before)
            # an nn.Module asks this before its `forward`
            self.model._compiled_call_impl = self._graph
        self._entered.append(stack)

    def __exit__(self, *error: object) -> None:
        self._entered.pop().close()


def predicts_by_kernels(model: Potential, device: str, dtype: torch.dtype) -> bool:
    """Whether there are kernels for predictions of ``model``; ``device`` is "cpu" or "cuda"."""
    return has_kernels(model, ("energy",), device) and dtype == torch.float32


def for_predictions(
    model: Potential, wanted: bool, device: torch.device | str, dtype: torch.dtype
) -> ForPredictions:
    """`ForPredictions` of ``model``; what was compiled is kept with it for the next call.

    Weights that change in place are followed. Other tensors in their place mean compiling again.
    """
    tensors = (*model.parameters(), *model.buffers())
    kept = model.__dict__.get(KEPT, _Kept()).made
    if kept is not None and (kept.wanted, kept.device, kept.dtype) == (wanted, device, dtype):
        of = model.__dict__[KEPT].tensors
        if len(of) == len(tensors) and all(a is b for a, b in zip(of, tensors, strict=True)):
            return kept
    made = ForPredictions(model, wanted, device, dtype)
    if wanted:
        model.__dict__[KEPT] = _Kept(made, tensors)
    return made


class _Kept:
    """What was compiled for a network whose parameters and buffers were ``tensors``; a copy of the
    network has none of it.
    """

    def __init__(
        self, made: ForPredictions | None = None, tensors: tuple[torch.Tensor, ...] = ()
    ) -> None:
        self.made, self.tensors = made, tensors

    def __reduce__(self) -> tuple[Any, ...]:
        return _Kept, ()
