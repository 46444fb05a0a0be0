"""EGNN's kernels as operations of graphs that torch.compile compiles: the shapes of what they give,
and their derivatives.

A graph of energy and forces (`whole_graph`) holds the forward pass and the first derivative as
calls of `egnn_forward` and `egnn_slopes`; what torch.compile has to differentiate is those two.
There are no third derivatives.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from .autograd import contiguous
from .build import load

operations = torch.ops.potkit


@functools.cache
def register() -> None:
    """Make the operations known to torch.compile; once. Raises ConfigError as `build.load` does."""
    load()
    fakes = {
        "egnn_forward": _forward_shapes,
        "egnn_backward": _backward_shapes,
        "egnn_slopes": _slopes_shapes,
        "egnn_slopes_backward": _slopes_backward_shapes,
    }
    for name, fake in fakes.items():
        torch.library.register_fake(f"potkit::{name}", fake)
    torch.library.register_autograd(
        "potkit::egnn_forward", _forward_derivative, setup_context=_keep_forward
    )
    torch.library.register_autograd(
        "potkit::egnn_slopes", _slopes_derivative, setup_context=_keep_slopes
    )


# -- shapes: arguments in the order of the operations, those that no shape depends on left out
def _forward_shapes(p, q, edge, envelope, w_d_t, w2, b2, w_g, *others):
    *_, keep = others
    n_edges, width = edge.shape[0], p.shape[1]
    a = w2.new_empty(n_edges if keep else 0, width)
    gate = p.new_empty(0 if w_g is None else n_edges, 1)
    return _like(p), p.new_empty(n_edges), a, torch.empty_like(a), gate


def _slopes_shapes(p, q, edge, envelope, w_d_t, w2, *others):
    *_, keep = others
    rows, width = edge.shape[0] if keep else 0, p.shape[1]
    z, ds = p.new_empty(rows, width), w2.new_empty(rows, width)
    return _like(p), _like(q), _like(edge), _envelope(edge, envelope is not None), z, ds


def _backward_shapes(p, q, edge, *others):
    *_, need_envelope = others
    width, radial = p.shape[1], edge.shape[1]
    weights = [(width, radial), (width, width), (width,), (1, width), (1,)]
    weights += [(width, width), (width,), (1, width), (1,)]
    of_inputs = _like(p), _like(q), _like(edge), _envelope(edge, need_envelope)
    return *of_inputs, *(p.new_empty(shape) for shape in weights)


def _slopes_backward_shapes(up_p, up_q, up_edge, up_envelope, p, q, edge, envelope, *others):
    *_, a, c, _, _, d_t, _, _ = others
    width, radial = p.shape[1], edge.shape[1]
    rows = 0 if d_t is None else edge.shape[0]
    weights = [(width, radial), (width, width), (1, width), (1,), (width, width), (1, width)]
    of_inputs = _like(p), _like(q), _like(edge), _envelope(edge, envelope is not None)
    of_weights = (p.new_empty(shape) for shape in weights)
    return *of_inputs, *of_weights, _like(p), p.new_empty(rows), _like(a), c.new_empty(rows, width)


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _envelope(edge: Tensor, there: bool) -> Tensor:
    return edge.new_empty(edge.shape[0] if there else 0, 1)


# -- derivatives
def message_gradients(
    p: Tensor,
    q: Tensor,
    edge: Tensor,
    envelope: Tensor | None,
    w_d_t: Tensor,
    w2: Tensor,
    w_g: Tensor | None,
    *others: Any,  # as `egnn_backward` has them, from b_g to the gate
    d_total: Tensor | None,
    d_t: Tensor | None,
    d_a: Tensor | None,
    d_c: Tensor | None,
    need_envelope: bool,
) -> list[Tensor | None]:
    """By P, Q, e, f, W_d, W₂, b₂, w_g, b_g, W_c, b_c, w_x and b_x, from what is given for M, t, a
    and c; none by what is not there.
    """
    d_total = torch.zeros_like(p) if d_total is None else d_total
    ups = contiguous(d_total, d_t, d_a, d_c)
    inputs = p, q, edge, envelope, w_d_t, w2, w_g, *others
    found = list(operations.egnn_backward(*inputs, *ups, need_envelope))
    if not need_envelope:
        found[3] = None
    if w_g is None:
        found[7] = found[8] = None
    return found


def slope_gradients(
    ups: tuple[Tensor | None, ...],  # given for dP, dQ, de and df
    p: Tensor,
    q: Tensor,
    edge: Tensor,
    envelope: Tensor | None,
    w_d_t: Tensor,
    w2: Tensor,
    w_g: Tensor | None,
    *others: Any,  # as `egnn_slopes_backward` has them, from w_c to ds
) -> list[Tensor | None]:
    """By P, Q, e, f, W_d, W₂, w_g, b_g, W_c, w_x, D, d, a and c; none by what is not there."""
    up_p, up_q, up_edge, up_envelope = ups
    up_p = torch.zeros_like(p) if up_p is None else up_p
    up_q = torch.zeros_like(q) if up_q is None else up_q
    up_edge = torch.zeros_like(edge) if up_edge is None else up_edge
    inputs = p, q, edge, envelope, w_d_t, w2, w_g, *others
    given = contiguous(up_p, up_q, up_edge, up_envelope)
    found = list(operations.egnn_slopes_backward(*given, *inputs))
    *_, d_t, _, _ = others
    if envelope is None:
        found[3] = None
    if w_g is None:
        found[6] = found[7] = None
    if d_t is None:
        found[8] = found[9] = found[11] = found[13] = None
    return found


def _keep_forward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *_, a, c, gate = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:-1], a, c, gate)


def _forward_derivative(
    ctx: Any,
    d_total: Tensor | None,
    d_t: Tensor | None,
    d_a: Tensor | None,
    d_c: Tensor | None,
    d_gate: None,
) -> tuple[Tensor | None, ...]:
    """By all inputs of `egnn_forward`."""
    p, q, edge, envelope, w_d_t, w2, _, w_g, b_g, w_c, _, w_x, b_x, *rest = ctx.saved_tensors
    weights = w_d_t, w2, w_g, b_g, w_c, w_x, b_x
    dp, dq, d_edge, d_envelope, dw_d, *others = message_gradients(
        p,
        q,
        edge,
        envelope,
        *weights,
        *rest,  # indices, a, c and the gate
        d_total=d_total,
        d_t=d_t,
        d_a=d_a,
        d_c=d_c,
        need_envelope=envelope is not None,
    )
    # none for the indices and ``keep``
    return dp, dq, d_edge, d_envelope, dw_d.T, *others, None, None, None


def _keep_slopes(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *_, z, ds = output
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*inputs[:-1], z, ds)


def _slopes_derivative(
    ctx: Any,
    up_p: Tensor | None,
    up_q: Tensor | None,
    up_edge: Tensor | None,
    up_envelope: Tensor | None,
    up_z: None,
    up_ds: None,
) -> tuple[Tensor | None, ...]:
    """By all inputs of `egnn_slopes`."""
    p, q, edge, envelope, w_d_t, w2, w_g, _, *rest = ctx.saved_tensors
    ups = up_p, up_q, up_edge, up_envelope
    inputs = p, q, edge, envelope, w_d_t, w2, w_g, *rest
    *of_inputs, dw_d, dw2, dw_g, db_g, dw_c, dw_x, d_up, dd_t, da, dc = slope_gradients(
        ups, *inputs
    )
    weights = dw_d.T, dw2, dw_g, db_g, dw_c, dw_x
    # none for the indices, the gate (which is one of a) and ``keep``
    return *of_inputs, *weights, None, None, da, dc, None, d_up, dd_t, None
