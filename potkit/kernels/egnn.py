"""EGNN's messages by the compiled kernels of egnn.cpp.

Formulas and notation are those of egnn_blocks.py. The derivative of the backward pass is taken of
the plain function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.egnn import Layer
from ..models.graph import Graph
from .egnn_blocks import ENVELOPE, FIRST, apply, through_the_plain_function


def messages(
    layer: Layer,
    receiver_part: Tensor,  # [N, F]
    sender_part: Tensor,  # [N, F]
    edge: Tensor,  # [E, R]
    envelope: Tensor | None,  # [E, 1]
    graph: Graph,
) -> tuple[Tensor, Tensor]:
    """`Layer.messages` of models/egnn.py, float32 on the CPU."""
    return apply(_Compiled, layer, receiver_part, sender_part, edge, envelope, graph)


def _or_zero(bias: Tensor | None, weight: Tensor) -> Tensor:
    """The bias of the last coordinate layer, which need not have one: [1]."""
    return weight.new_zeros(1) if bias is None else bias


class _Compiled(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx,
        layer,
        graph,
        low,
        keep,
        p,
        q,
        edge,
        envelope,
        w_d,
        w2,
        b2,
        w_g,
        b_g,
        w_c,
        b_c,
        w_x,
        b_x,
    ):
        keep = keep and any(ctx.needs_input_grad)
        total, t, a, c, gate = torch.ops.potkit.egnn_forward(
            p,
            q,
            edge,
            envelope,
            w_d.T.contiguous(),
            w2.to(low),
            b2.to(low),
            w_g,
            b_g,
            w_c.to(low),
            b_c.to(low),
            w_x,
            _or_zero(b_x, w_x),
            graph.sender,
            graph.receiver,
            keep,
        )
        ctx.layer, ctx.graph, ctx.low = layer, graph, low
        if keep:
            weights = w_d, w2, b2, w_g, b_g, w_c, b_c, w_x, b_x
            ctx.save_for_backward(p, q, edge, envelope, *weights, a, c, gate)
        return t, total

    @staticmethod
    def backward(ctx, d_t, d_total):
        *inputs, a, c, gate = ctx.saved_tensors
        if torch.is_grad_enabled():
            return through_the_plain_function(ctx, inputs, d_t, d_total)
        p, q, edge, envelope, w_d, w2, _, w_g, b_g, w_c, _, w_x, b_x = inputs
        need_envelope = ctx.needs_input_grad[ENVELOPE]
        dp, dq, d_edge, d_envelope, dw_d, dw2, db2, dw_g, db_g, *rest = (
            torch.ops.potkit.egnn_backward(
                p,
                q,
                edge,
                envelope,
                w_d.T.contiguous(),
                w2.to(ctx.low),
                w_g,
                b_g,
                w_c.to(ctx.low),
                w_x,
                _or_zero(b_x, w_x),
                ctx.graph.sender,
                ctx.graph.receiver,
                a,
                c,
                gate,
                d_total.contiguous(),
                d_t.contiguous(),
                need_envelope,
            )
        )
        if not need_envelope:
            d_envelope = None
        if w_g is None:
            dw_g = db_g = None
        if b_x is None:
            rest[-1] = None
        weights = dw_d, dw2, db2, dw_g, db_g, *rest
        return *(None,) * FIRST, dp, dq, d_edge, d_envelope, *weights
