"""EGNN's messages by the kernels of egnn.cpp and egnn_slopes.cpp, up to second derivatives.

Formulas and notation are those of egnn_blocks.py. −∂E/∂x needs the backward pass without gradients
of weights. With v = silu(a), m = g v, and D and d the gradients of M and t, it is, per edge,

    dc = d w_x ⊙ silu'(c),         z = W_cᵀ dc + f D_i,       df = D_i·m
    dl = z·v g (1 − g),            da = (g z + dl w_g) ⊙ silu'(a)
    ds = W₂ᵀ da,                   du = ds ⊙ silu'(u)
    dP_i = Σ_j du,                 dQ_j = Σ_i du,             de = W_dᵀ du

This is an autograd function of its own (`_Slopes`), of D, d, the inputs, the weights, a and c. Its
backward pass (training on −∂E/∂x) is one forward differentiation, along what is given for dP, dQ,
de and df (u̇, ȧ, … below), and the formulas above differentiated once more:

    u̇ = Ṗ_i + Q̇_j + W_d ė,   ȧ = W₂ (silu'(u) ⊙ u̇),   ċ = W_c ṁ,   ṁ = ġ v + g v̇

Gradients of a and c go back through the outputs of the first function, which adds those of t and M
to them, so that each product is made once for both. z and ds are kept. Still higher derivatives go
through the formulas in ordinary operations.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

from ..models.egnn import Layer
from ..models.graph import Graph
from .autograd import contiguous, through_plain, wanted_inputs
from .egnn_blocks import FIRST, apply
from .egnn_operations import message_gradients, slope_gradients

N_INPUTS = 4  # P, Q, e and f; the weights follow


def messages(
    layer: Layer,
    receiver_part: Tensor,  # [N, F]
    sender_part: Tensor,  # [N, F]
    edge: Tensor,  # [E, R]
    envelope: Tensor | None,  # [E, 1]
    graph: Graph,
) -> tuple[Tensor, Tensor]:
    """`Layer.messages` of models/egnn.py, float32 on the CPU."""
    return apply(_Compiled, layer, receiver_part, sender_part, edge, envelope, graph)[:2]


def _or_zero(bias: Tensor | None, weight: Tensor) -> Tensor:
    """The bias of the last coordinate layer, which need not have one: [1]."""
    return weight.new_zeros(1) if bias is None else bias


class _Compiled(torch.autograd.Function):
    """t [E] and M [N, F]; and a and c [E, F], which are for `_Slopes`."""

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
        p, q, edge = p.contiguous(), q.contiguous(), edge.contiguous()
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
        ctx.graph, ctx.low = graph, low
        ctx.set_materialize_grads(False)
        if keep:
            weights = w_d, w2, b2, w_g, b_g, w_c, b_c, w_x, b_x
            ctx.save_for_backward(p, q, edge, envelope, *weights, a, c, gate)
        return t, total, a, c

    @staticmethod
    def backward(ctx, d_t, d_total, d_a, d_c):
        *inputs, a, c, gate = ctx.saved_tensors
        given = [x is not None for x in inputs]
        wanted = wanted_inputs(ctx, [False] * FIRST + given)[FIRST:]
        none = (None,) * FIRST
        if d_t is None and d_total is None and d_a is None and d_c is None:
            return *none, *(None,) * len(inputs)
        p, q, edge, envelope, w_d, w2, _, w_g, b_g, w_c, _, w_x, b_x = inputs
        first_time = d_a is None and d_c is None
        if first_time and not any(wanted[N_INPUTS:]):
            d_total = torch.zeros_like(p) if d_total is None else d_total
            weights = w_d, w2, w_g, b_g, w_c, w_x
            keep = torch.is_grad_enabled()
            slopes = _Slopes.apply(
                ctx.graph, ctx.low, gate, keep, d_t, d_total, p, q, edge, envelope, *weights, a, c
            )
            slopes = [x if asked else None for x, asked in zip(slopes, wanted, strict=False)]
            return *none, *slopes, *(None,) * (len(inputs) - N_INPUTS)
        if torch.is_grad_enabled():

            def plain(*inputs):
                return _plain_messages(ctx.graph, *inputs)

            gradients = through_plain(plain, inputs, wanted, (d_t, d_total, d_a, d_c))
            return *none, *gradients
        gradients = message_gradients(
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
            d_total=d_total,
            d_t=d_t,
            d_a=d_a,
            d_c=d_c,
            need_envelope=wanted[N_INPUTS - 1],
        )
        if b_x is None:
            gradients[-1] = None
        return *none, *gradients


class _Slopes(torch.autograd.Function):
    """dP and dQ [N, F], de [E, R] and df [E, 1] (None without envelope) of the module's docstring.

    ``keep``: it will be differentiated.
    """

    FIRST = 4  # inputs before d, which have no gradient

    @staticmethod
    def forward(
        ctx,
        graph,
        low,
        gate,
        keep,
        d_t,
        d_total,
        p,
        q,
        edge,
        envelope,
        w_d,
        w2,
        w_g,
        b_g,
        w_c,
        w_x,
        a,
        c,
    ):
        d_total = d_total.contiguous()
        (d_t,) = contiguous(d_t)
        dp, dq, d_edge, d_envelope, z, ds = torch.ops.potkit.egnn_slopes(
            p,
            q,
            edge,
            envelope,
            w_d.T.contiguous(),
            w2.to(low),
            w_g,
            b_g,
            w_c.to(low),
            w_x,
            graph.sender,
            graph.receiver,
            a,
            c,
            gate,
            d_total,
            d_t,
            keep,
        )
        ctx.graph, ctx.low = graph, low
        weights = w_d, w2, w_g, b_g, w_c, w_x
        ctx.save_for_backward(d_t, d_total, p, q, edge, envelope, *weights, a, c, gate, z, ds)
        return dp, dq, d_edge, None if envelope is None else d_envelope

    @staticmethod
    def backward(ctx, up_p, up_q, up_edge, up_envelope):
        *inputs, gate, z, ds = ctx.saved_tensors
        d_t, d_total, p, q, edge, envelope, w_d, w2, w_g, _, w_c, w_x, a, c = inputs
        none = (None,) * _Slopes.FIRST
        if torch.is_grad_enabled():

            def plain(*inputs):
                return _plain_slopes(ctx.graph, *inputs)

            wanted = [asked and x is not None for x, asked in _asked(ctx, inputs)]
            ups = up_p, up_q, up_edge, up_envelope
            return *none, *through_plain(plain, inputs, wanted, ups)
        *found, d_up, dd_t, da, dc = slope_gradients(
            (up_p, up_q, up_edge, up_envelope),
            p,
            q,
            edge,
            envelope,
            w_d.T.contiguous(),
            w2.to(ctx.low),
            w_g,
            w_c.to(ctx.low),
            w_x,
            ctx.graph.sender,
            ctx.graph.receiver,
            a,
            c,
            gate,
            d_total,
            d_t,
            z,
            ds,
        )
        return *none, dd_t, d_up, *found, da, dc


def _asked(ctx, inputs):
    """Each input with whether torch wants its gradient."""
    return zip(inputs, ctx.needs_input_grad[_Slopes.FIRST :], strict=True)


# -- the same in ordinary operations, to be differentiated without end
def _plain_messages(
    graph: Graph,
    p: Tensor,  # [N, F]
    q: Tensor,  # [N, F]
    edge: Tensor,  # [E, R]
    envelope: Tensor | None,  # [E, 1]
    w_d: Tensor,
    w2: Tensor,
    b2: Tensor,
    w_g: Tensor | None,
    b_g: Tensor | None,
    w_c: Tensor,
    b_c: Tensor,
    w_x: Tensor,
    b_x: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """t [E], M [N, F], a and c [E, F]."""
    u = p[graph.receiver] + q[graph.sender] + linear(edge, w_d)
    a = linear(silu(u), w2, b2)
    m = silu(a)
    if w_g is not None:
        m = m * torch.sigmoid(linear(m, w_g, b_g))
    c = linear(m, w_c, b_c)
    t = linear(silu(c), w_x, b_x)[:, 0]
    if envelope is not None:
        m = m * envelope
    return t, torch.zeros_like(p).index_add(0, graph.receiver, m), a, c


def _plain_slopes(
    graph: Graph,
    d_t: Tensor | None,  # [E]
    d_total: Tensor,  # [N, F]
    p: Tensor,  # [N, F]
    q: Tensor,  # [N, F]
    edge: Tensor,  # [E, R]
    envelope: Tensor | None,  # [E, 1]
    w_d: Tensor,
    w2: Tensor,
    w_g: Tensor | None,
    b_g: Tensor | None,
    w_c: Tensor,
    w_x: Tensor,
    a: Tensor,  # [E, F]
    c: Tensor,  # [E, F]
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dP and dQ [N, F], de [E, R] and df [E, 1]."""
    v, up = silu(a), d_total[graph.receiver]
    g = torch.ones_like(v[:, :1]) if w_g is None else torch.sigmoid(linear(v, w_g, b_g))
    z = up if envelope is None else envelope * up
    if d_t is not None:
        z = z + (d_t[:, None] * w_x * _silu_slope(c)) @ w_c
    dv = g * z
    if w_g is not None:
        dv = dv + (z * v).sum(1, keepdim=True) * g * (1 - g) * w_g
    u = p[graph.receiver] + q[graph.sender] + linear(edge, w_d)
    du = ((dv * _silu_slope(a)) @ w2) * _silu_slope(u)
    dp = torch.zeros_like(p).index_add(0, graph.receiver, du)
    dq = torch.zeros_like(q).index_add(0, graph.sender, du)
    d_envelope = None if envelope is None else (up * v * g).sum(1, keepdim=True)
    return dp, dq, du @ w_d, d_envelope


def _silu_slope(x: Tensor) -> Tensor:
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))
