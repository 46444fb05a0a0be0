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


# -- shapes
def _forward_shapes(
    p, q, edge, envelope, w_d_t, w2, b2, w_g, b_g, w_c, b_c, w_x, b_x, sender, receiver, keep
):
    n_edges, width = edge.shape[0], p.shape[1]
    rows = n_edges if keep else 0
    a = w2.new_empty(rows, width)
    gate = p.new_empty(0 if w_g is None else n_edges, 1)
    return _like(p), p.new_empty(n_edges), a, torch.empty_like(a), gate


def _slopes_shapes(
    p,
    q,
    edge,
    envelope,
    w_d_t,
    w2,
    w_g,
    b_g,
    w_c,
    w_x,
    sender,
    receiver,
    a,
    c,
    gate,
    d_total,
    d_t,
    keep,
):
    rows, width = edge.shape[0] if keep else 0, p.shape[1]
    z, ds = p.new_empty(rows, width), a.new_empty(rows, width)
    return _like(p), _like(q), _like(edge), _envelope(edge, envelope is not None), z, ds


def _backward_shapes(
    p,
    q,
    edge,
    envelope,
    w_d_t,
    w2,
    w_g,
    b_g,
    w_c,
    w_x,
    b_x,
    sender,
    receiver,
    a,
    c,
    gate,
    d_total,
    d_t,
    d_a,
    d_c,
    need_envelope,
):
    width = p.shape[1]
    bias = p.new_empty(width)
    return (
        _like(p),
        _like(q),
        _like(edge),
        _envelope(edge, need_envelope),
        p.new_empty(width, edge.shape[1]),
        p.new_empty(width, width),
        bias,
        p.new_empty(1, width),
        p.new_empty(1),
        p.new_empty(width, width),
        torch.empty_like(bias),
        p.new_empty(1, width),
        p.new_empty(1),
    )


def _slopes_backward_shapes(
    up_p,
    up_q,
    up_edge,
    up_envelope,
    p,
    q,
    edge,
    envelope,
    w_d_t,
    w2,
    w_g,
    w_c,
    w_x,
    sender,
    receiver,
    a,
    c,
    gate,
    d_total,
    d_t,
    z,
    ds,
):
    width = p.shape[1]
    rows = 0 if d_t is None else edge.shape[0]
    return (
        _like(p),
        _like(q),
        _like(edge),
        _envelope(edge, envelope is not None),
        p.new_empty(width, edge.shape[1]),
        p.new_empty(width, width),
        p.new_empty(1, width),
        p.new_empty(1),
        p.new_empty(width, width),
        p.new_empty(1, width),
        _like(p),
        p.new_empty(rows),
        _like(a),
        c.new_empty(rows, width),
    )


def _like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _envelope(edge: Tensor, there: bool) -> Tensor:
    return edge.new_empty(edge.shape[0] if there else 0, 1)


# -- derivatives
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
    *inputs, a, c, gate = ctx.saved_tensors
    p, q, edge, envelope, w_d_t, w2, _, w_g, b_g, w_c, _, w_x, b_x, sender, receiver = inputs
    given = contiguous(d_t, d_a, d_c)
    d_total = torch.zeros_like(p) if d_total is None else d_total.contiguous()
    weights = w_d_t, w2, w_g, b_g, w_c, w_x, b_x
    dp, dq, d_edge, d_envelope, dw_d, dw2, db2, dw_g, db_g, *rest = operations.egnn_backward(
        p,
        q,
        edge,
        envelope,
        *weights,
        sender,
        receiver,
        a,
        c,
        gate,
        d_total,
        *given,
        envelope is not None,
    )
    if envelope is None:
        d_envelope = None
    if w_g is None:
        dw_g = db_g = None
    # none for the indices and ``keep``
    return dp, dq, d_edge, d_envelope, dw_d.T, dw2, db2, dw_g, db_g, *rest, None, None, None


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
    *inputs, z, ds = ctx.saved_tensors
    p, q, edge, envelope, w_d_t, w2, w_g, _, w_c, w_x, *rest = inputs
    sender, receiver, a, c, gate, d_total, d_t = rest
    up_p = torch.zeros_like(p) if up_p is None else up_p
    up_q = torch.zeros_like(q) if up_q is None else up_q
    up_edge = torch.zeros_like(edge) if up_edge is None else up_edge
    dp, dq, d_edge, d_envelope, dw_d, dw2, dw_g, db_g, dw_c, dw_x, d_up, dd_t, da, dc = (
        operations.egnn_slopes_backward(
            *contiguous(up_p, up_q, up_edge, up_envelope),
            p,
            q,
            edge,
            envelope,
            w_d_t,
            w2,
            w_g,
            w_c,
            w_x,
            sender,
            receiver,
            a,
            c,
            gate,
            d_total,
            d_t,
            z,
            ds,
        )
    )
    if envelope is None:
        d_envelope = None
    if w_g is None:
        dw_g = db_g = None
    if d_t is None:
        dw_c = dw_x = dd_t = dc = None
    weights = dw_d.T, dw2, dw_g, db_g, dw_c, dw_x
    # none for the indices, the gate (which is one of a) and ``keep``
    return dp, dq, d_edge, d_envelope, *weights, None, None, da, dc, None, d_up, dd_t, None


def contiguous(*tensors: Tensor | None) -> list[Tensor | None]:
    """Each of them as one piece of memory, as the kernels want it."""
    return [None if x is None else x.contiguous() for x in tensors]
