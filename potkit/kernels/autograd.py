"""What the autograd functions of this room share: gradients that are wanted, plain derivatives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn


def wanted_inputs(ctx, tensors: Sequence[bool] | None = None) -> list[bool]:
    """Which inputs' gradients a backward pass of an autograd function really uses.

    torch's own list says yes to all that could ever be. ``tensors`` says which inputs were tensors;
    without it those come first, and others, after them, are left out of the answer.
    """
    will_run = getattr(torch._C, "_will_engine_execute_node", None)
    if will_run is None:
        return list(ctx.needs_input_grad)

    def used(node) -> bool:
        try:
            return node is None or will_run(node)
        except RuntimeError:
            return True  # torch does not say so of a leaf that autograd.grad was asked for

    if tensors is None:
        # not strict: torch's list goes on with the inputs that are no tensors
        inputs = zip(ctx.needs_input_grad, ctx.next_functions, strict=False)
        return [needed and used(node) for needed, (node, _) in inputs]
    nodes = iter(ctx.next_functions)
    following = [next(nodes)[0] if is_tensor else None for is_tensor in tensors]
    return [
        needed and used(node) for needed, node in zip(ctx.needs_input_grad, following, strict=True)
    ]


def through_plain(
    function: Callable[..., Sequence[Tensor | None]],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The backward pass of ``function`` in differentiable operations.

    It is for autograd functions whose own is not differentiable. ``grads`` belong to the outputs
    (None: not used). Inputs may depend on each other; each gets its own part only.
    """
    aliases = [None if x is None else x.view_as(x) for x in inputs]
    outputs = [
        (out, grad)
        for out, grad in zip(function(*aliases), grads, strict=True)
        if out is not None and grad is not None
    ]
    gradients = iter(
        torch.autograd.grad(
            [out for out, _ in outputs],
            [alias for alias, asked in zip(aliases, wanted, strict=True) if asked],
            [grad for _, grad in outputs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(gradients) if asked else None for asked in wanted]


class _Call(nn.Module):
    """``function`` of a module as a module itself."""

    def __init__(self, function: Callable[..., Any], module: nn.Module) -> None:
        super().__init__()
        self.function, self.module = function, module

    def forward(self, *args: Any) -> Any:
        return self.function(self.module, *args)


def with_weights(
    function: Callable[..., Any],
    module: nn.Module,
    weights: Mapping[str, Tensor | None],
    *args: Any,
) -> Any:
    """``function(module, *args)`` with ``weights`` in place of the module's own.

    None stands for a weight that it does not have.
    """
    given = {f"module.{name}": w for name, w in weights.items() if w is not None}
    return torch.func.functional_call(_Call(function, module), given, args)


def low_precision(device: str, full: torch.dtype) -> torch.dtype:
    """The type of matrix products: that of autocast, or ``full`` where there is none."""
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else full


def or_zeros(
    ups: Sequence[Tensor | None], like: Sequence[Tensor | None], dtype: torch.dtype
) -> list[Tensor | None]:
    """What is given for the gradients of ``like``, as the kernels want it: zeros where nothing is,
    none where there is no such input.
    """
    return contiguous(
        *(
            None if x is None else torch.zeros_like(x, dtype=dtype) if up is None else up
            for up, x in zip(ups, like, strict=True)
        )
    )


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """Each of them as one piece of memory, as the kernels want it."""
    return [None if x is None else x.contiguous() for x in tensors]
