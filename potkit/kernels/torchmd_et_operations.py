"""TorchMD-Net ET's kernels as operations of graphs that torch.compile compiles: the shapes of what
they give, and their derivatives.

As in egnn_operations.py: a graph of energy and forces holds the forward passes and the first
derivatives by positions as calls of operations, and torch.compile differentiates those. There are
no third derivatives.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .autograd import contiguous, or_zeros
from .build import load

operations = torch.ops.potkit


@functools.cache
def register() -> None:
    """Make the operations known to torch.compile; once. Raises ConfigError as `build.load` does."""
    load()
    fakes = {
        "pieces": _pieces_shape,
        "forward": _forward_shapes,
        "backward": _backward_shapes,
        "slopes_backward": _slopes_backward_shapes,
        "neighbours_forward": _neighbours_shape,
        "neighbours_backward": _neighbours_backward_shapes,
        "neighbours_slopes_backward": _neighbours_slopes_backward_shapes,
        "update_forward": _update_shapes,
        "update_backward": _update_backward_shapes,
        "update_slopes_backward": _update_slopes_backward_shapes,
    }
    derivatives = {
        "forward": (_keep_forward, _forward_derivative),
        "backward": (_keep_backward, _backward_derivative),
        "neighbours_forward": (_keep, _neighbours_derivative),
        "neighbours_backward": (_keep_flagged, _neighbours_backward_derivative),
        "update_forward": (_keep, _update_derivative),
        "update_backward": (_keep, _update_backward_derivative),
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"potkit::torchmd_et_{name}", fake)
    for name, (keep, derivative) in derivatives.items():
        torch.library.register_autograd(
            f"potkit::torchmd_et_{name}", derivative, setup_context=keep
        )


# -- shapes: arguments in the order of the operations, those that no shape depends on left out
def _pieces_shape(basis, direction, sender, receiver, n_atoms):
    return sender.new_empty(sender.shape[0], 2)


def _forward_shapes(q, k, s, v, basis, *others):
    *_, sender, _, _, heads, _ = others
    n, width = q.shape
    logits = basis.new_empty(sender.shape[0], heads)
    sums = basis.new_empty(n, width), basis.new_empty(n, 3, width)
    return *sums, logits, basis.new_empty(n, heads)


def _backward_shapes(q, k, s, v, basis, envelope, direction, weight, *others):
    *_, need_envelope, need_direction, need_weights = others
    needed = need_envelope, need_direction, need_weights
    return _gradients(q, v, basis, weight, *needed)


def _slopes_backward_shapes(*arguments):
    given = arguments[7:]  # after what is given for the gradients
    q, _, _, v, basis, _, _, weight, *others = given
    *_, need_envelope, need_direction = others
    found = _gradients(q, v, basis, weight, need_envelope, need_direction, True)
    n, width = q.shape
    return *found, basis.new_empty(n, width), basis.new_empty(n, 3, width)


def _gradients(q, v, basis, weight, need_envelope, need_direction, need_weights):
    n, width = q.shape
    n_edges = basis.shape[0]
    empty = basis.new_empty
    return (
        empty(n, width),
        empty(n, width),
        empty(n, 3 * width),
        empty(0 if v is None else n, 3, width),
        torch.empty_like(basis),
        empty(n_edges if need_envelope else 0, 1),
        empty(n_edges if need_direction else 0, 3),
        empty(weight.shape[0], weight.shape[1] if need_weights else 0),
        empty(4 * width),
        empty(1, 4 * width),
    )


def _neighbours_shape(h, *others):
    return torch.empty_like(h)


def _neighbours_backward_shapes(h, basis, envelope, weight, bias, *others):
    *_, need_envelope, need_weights = others
    d_envelope = basis.new_empty(basis.shape[0] if need_envelope else 0, 1)
    d_weight = basis.new_empty(weight.shape[0], weight.shape[1] if need_weights else 0)
    of_h, of_basis, of_bias = (torch.empty_like(x) for x in (h, basis, bias))
    return of_h, of_basis, d_envelope, d_weight, of_bias


def _neighbours_slopes_backward_shapes(dot_h, dot_basis, dot_envelope, *others):
    h, *_, need_envelope = others
    found = _neighbours_backward_shapes(*others[:-1], need_envelope, True)
    return *found, torch.empty_like(h)


def _update_shapes(out, mixed, vector):
    return vector.new_empty(vector.shape[0], vector.shape[2]), torch.empty_like(vector)


def _update_backward_shapes(out, mixed, d_x, d_v):
    return torch.empty_like(out), torch.empty_like(mixed)


def _update_slopes_backward_shapes(dot_out, dot_mixed, out, mixed, d_x, d_v):
    return tuple(torch.empty_like(x) for x in (out, mixed, d_x, d_v))


# -- derivatives of the messages
def _keep_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, heads, damped = inputs
    *_, logits, own_logits = output
    ctx.heads, ctx.damped = heads, damped
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, logits, own_logits)


def _forward_derivative(
    ctx: Any, d_scalar: Tensor | None, d_vector: Tensor | None, *_: None
) -> tuple[Tensor | None, ...]:
    """By all inputs of `torchmd_et_forward`."""
    *inputs, logits, own_logits = ctx.saved_tensors
    q, v = inputs[0], inputs[3]
    n, width = q.shape
    d_scalar = q.new_zeros(n, width) if d_scalar is None else d_scalar
    d_vector = q.new_zeros(n, 3, width) if d_vector is None else d_vector
    dq, dk, ds, dv, *others = operations.torchmd_et_backward(
        *inputs,
        ctx.heads,
        ctx.damped,
        logits,
        own_logits,
        *contiguous(d_scalar, d_vector),
        True,
        True,
        True,
    )
    # none for the indices, the pieces and the settings
    return dq, dk, ds, None if v is None else dv, *others, *(None,) * 5


def _keep_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, heads, damped, logits, own_logits, d_scalar, d_vector, _, _, _ = inputs
    ctx.heads, ctx.damped = heads, damped
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors, logits, own_logits, d_scalar, d_vector)


def _backward_derivative(ctx: Any, *ups: Tensor | None) -> tuple[Tensor | None, ...]:
    """By all inputs of `torchmd_et_backward`, where no weights' gradients were wanted of it."""
    *inputs, logits, own_logits, d_scalar, d_vector = ctx.saved_tensors
    v = inputs[3]
    dots = or_zeros(ups[:7], inputs[:7], d_scalar.dtype)
    dq, dk, ds, dv, *others, d_x, d_v = operations.torchmd_et_slopes_backward(
        *dots,
        *inputs,
        ctx.heads,
        ctx.damped,
        logits,
        own_logits,
        d_scalar,
        d_vector,
        True,
        True,
    )
    # the logits are functions of the other inputs, and their part is in those
    none = (None,) * 7  # for indices, pieces, settings and logits
    return dq, dk, ds, None if v is None else dv, *others, *none, d_x, d_v, None, None, None


# -- derivatives of the neighbour embedding
def _keep(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _keep_flagged(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    *tensors, _, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*tensors)


def _neighbours_derivative(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """By all inputs of `torchmd_et_neighbours_forward`."""
    found = operations.torchmd_et_neighbours_backward(
        *ctx.saved_tensors, grad.contiguous(), True, True
    )
    return *found, None, None, None


def _neighbours_backward_derivative(ctx: Any, *ups: Tensor | None) -> tuple[Tensor | None, ...]:
    """By all inputs of `torchmd_et_neighbours_backward`, where the weight's gradient was not wanted
    of it.
    """
    inputs = ctx.saved_tensors
    dots = or_zeros(ups[:3], inputs[:3], inputs[0].dtype)
    *found, d_grad = operations.torchmd_et_neighbours_slopes_backward(*dots, *inputs, True)
    return *found, None, None, None, d_grad, None, None


# -- derivatives of the update
def _update_derivative(ctx: Any, d_x: Tensor, d_v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """By the inputs of `torchmd_et_update_forward`."""
    out, mixed, _ = ctx.saved_tensors
    d_x, d_v = contiguous(d_x, d_v)
    return *operations.torchmd_et_update_backward(out, mixed, d_x, d_v), d_v


def _update_backward_derivative(ctx: Any, up_out: Tensor, up_mixed: Tensor) -> tuple[Tensor, ...]:
    """By the inputs of `torchmd_et_update_backward`."""
    ups = contiguous(up_out, up_mixed)
    return operations.torchmd_et_update_slopes_backward(*ups, *ctx.saved_tensors)
