"""EGNN's messages in one autograd function, by blocks of edges that stay in the processor's cache.

Written out operation by operation, a layer makes some thirty arrays [E, F], each larger than the
cache: time goes into memory, not arithmetic, and autograd keeps most of them. Here a block of
`BLOCK` edges goes through all operations before the next one starts. Kept for the backward pass are
only the inputs of the two activations behind a matrix product (``a`` and ``c`` below); what costs
no product is computed again. Notation, per edge, with P = W_i h_i + b and Q = W_j h_j per atom, the
names of models/egnn.py being message (W₂, b₂), gate (w_g, b_g) and coordinate (W_c, b_c, w_x, b_x):

    u = P_i + Q_j + W_d e_ij,   a = W₂ silu(u) + b₂,   m = silu(a) · g with g = σ(w_g·silu(a) + b_g)
    c = W_c m + b_c,   t = w_x·silu(c) + b_x,   M_i = Σ_j f_ij m_ij;   returned are t and M

Products run in bfloat16 under autocast; sums over edges, the gate and the gradients of all weights
are float32. The derivative of the backward pass (to train on −∂E/∂x) is taken of the plain
function.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.egnn import Layer
from ..models.graph import Graph
from .autograd import low_precision, through_plain, with_weights

BLOCK = 2048  # edges; × 256 channels × 4 bytes is 2 MB an array, of which a handful are in use
WEIGHTS = (
    "from_distance.weight",  # W_d [F, R]
    "message.0.weight",  # W₂ [F, F]
    "message.0.bias",  # b₂ [F]
    "gate.weight",  # w_g [1, F]
    "gate.bias",  # b_g [1]
    "coordinate.0.weight",  # W_c [F, F]
    "coordinate.0.bias",  # b_c [F]
    "coordinate.2.weight",  # w_x [1, F]
    "coordinate.2.bias",  # b_x [1], or none
)


def messages(
    layer: Layer,
    receiver_part: Tensor,  # [N, F] P
    sender_part: Tensor,  # [N, F] Q
    edge: Tensor,  # [E, R] e
    envelope: Tensor | None,  # [E, 1] f
    graph: Graph,
) -> tuple[Tensor, Tensor]:
    """`Layer.messages` of models/egnn.py."""
    return apply(_InBlocks, layer, receiver_part, sender_part, edge, envelope, graph)


def apply(
    function: type[torch.autograd.Function],
    layer: Layer,
    receiver_part: Tensor,
    sender_part: Tensor,
    edge: Tensor,
    envelope: Tensor | None,
    graph: Graph,
) -> tuple[Tensor, Tensor]:
    """Call an autograd function of this notation, outside of autocast, with the layer's weights."""
    device, full = receiver_part.device.type, layer.from_distance.weight.dtype
    low = low_precision(device, full)
    weights = dict(layer.named_parameters(remove_duplicate=False))
    keep = torch.is_grad_enabled()  # within the function it never is
    with torch.autocast(device, enabled=False):
        return function.apply(
            layer,
            graph,
            low,
            keep,
            receiver_part.to(full),
            sender_part.to(full),
            edge.to(full),
            envelope,
            *(weights.get(name) for name in WEIGHTS),
        )


FIRST = 4  # inputs of the functions before p, which have no gradient
ENVELOPE = FIRST + 3


def through_the_plain_function(ctx, inputs: list[Tensor | None], d_t: Tensor, d_total: Tensor):
    """Gradients of all inputs, differentiable."""

    def function(p, q, edge, envelope, *weights):
        given = dict(zip(WEIGHTS, weights, strict=True))
        plain = Layer.messages.plain
        return with_weights(plain, ctx.layer, given, p, q, edge, envelope, ctx.graph)

    wanted = ctx.needs_input_grad[FIRST:]
    return *(None,) * FIRST, *through_plain(function, inputs, wanted, (d_t, d_total))


class _InBlocks(torch.autograd.Function):
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
        sender, receiver = graph.sender, graph.receiver
        n_edges, width = len(sender), p.shape[1]
        keep = keep and any(ctx.needs_input_grad)
        a_all = p.new_empty(n_edges if keep else BLOCK, width, dtype=low)
        c_all = torch.empty_like(a_all)
        t = p.new_empty(n_edges)
        gate = None if w_g is None else p.new_empty(n_edges, 1)
        total = torch.zeros_like(p)
        w2t, b2l = w2.to(low).T, b2.to(low)
        wct, bcl = w_c.to(low).T, b_c.to(low)
        w_xl = w_x.to(low).T
        w_gl = None if w_g is None else w_g.to(low).T
        buffers = _Buffers(p, low, 4)
        table = torch.cat([p, q])
        rows = _rows(p, sender, receiver)
        for start in range(0, n_edges, BLOCK):
            here = slice(start, min(start + BLOCK, n_edges))
            size = here.stop - start
            kept = here if keep else slice(0, size)
            a, c = a_all[kept], c_all[kept]
            u, s = _first(buffers, table, rows[2 * start : 2 * here.stop], edge[here], w_d, size)
            torch.addmm(b2l, s, w2t, out=a)
            m = torch.ops.aten.silu.out(a, out=s)
            if gate is not None:
                g = gate[here]
                torch.sigmoid(torch.mm(m, w_gl).to(p.dtype).add_(b_g), out=g)
                m.mul_(g)
            torch.addmm(bcl, m, wct, out=c)
            torch.mul(m, 1.0 if envelope is None else envelope[here], out=u)
            total.index_add_(0, receiver[here], u)
            # thin products are quicker than torch.mv
            t[here] = torch.mm(torch.ops.aten.silu.out(c, out=s), w_xl)[:, 0]
        if b_x is not None:
            t += b_x
        ctx.layer, ctx.graph, ctx.low = layer, graph, low
        if keep:
            weights = w_d, w2, b2, w_g, b_g, w_c, b_c, w_x, b_x
            ctx.save_for_backward(p, q, edge, envelope, *weights, a_all, c_all, gate)
        return t, total

    @staticmethod
    def backward(ctx, d_t, d_total):
        *inputs, a_all, c_all, gate = ctx.saved_tensors
        if torch.is_grad_enabled():
            return through_the_plain_function(ctx, inputs, d_t, d_total)
        p, q, edge, envelope, *weights = inputs
        w_d, w2, _, w_g, _, w_c, _, w_x, _ = weights
        sender, receiver = ctx.graph.sender, ctx.graph.receiver
        low, full = ctx.low, p.dtype
        dp, dq, d_edge = torch.zeros_like(p), torch.zeros_like(q), torch.empty_like(edge)
        d_envelope = torch.empty_like(envelope) if ctx.needs_input_grad[ENVELOPE] else None
        grads = [None if w is None else torch.zeros_like(w) for w in weights]
        dw_d, dw2, db2, dw_g, db_g, dw_c, db_c, dw_x, db_x = grads
        w2l, wcl, w_xl, d_tl = w2.to(low), w_c.to(low), w_x.to(low), d_t.to(low)
        same = low == full
        ones = p.new_ones(BLOCK, dtype=low)
        buffers = _Buffers(p, low, 6)
        table = torch.cat([p, q])
        rows = _rows(p, sender, receiver)
        for start in range(0, len(sender), BLOCK):
            here = slice(start, min(start + BLOCK, len(sender)))
            size = here.stop - start
            i, j, a, c = receiver[here], sender[here], a_all[here], c_all[here]
            u, s = _first(buffers, table, rows[2 * start : 2 * here.stop], edge[here], w_d, size)
            one = ones[:size]
            x, y, m = buffers.low[1][:size], buffers.low[2][:size], buffers.low[3][:size]
            z = buffers.full[1][:size]
            # t = w_x·silu(c) + b_x
            dw_x[0] += torch.mv(torch.ops.aten.silu.out(c, out=x).T, d_tl[here])
            torch.mul(d_tl[here][:, None], w_xl, out=x)
            dc = torch.ops.aten.silu_backward.grad_input(x, c, grad_input=y)
            # c = W_c m + b_c and M = Σ f m, with m = silu(a) g
            torch.ops.aten.silu.out(a, out=m)
            gated = m if gate is None else torch.mul(m, gate[here], out=x)
            _accumulate(dw_c, dc, gated, same)
            db_c += torch.mv(dc.T, one)
            dm = torch.mm(dc, wcl, out=buffers.low[4][:size])
            torch.index_select(d_total, 0, i, out=z)
            if d_envelope is not None:
                d_envelope[here] = (gated * z).sum(1, keepdim=True)
            if envelope is not None:
                z.mul_(envelope[here])
            z.add_(dm)
            if gate is not None:
                g = gate[here]
                torch.mul(z, m, out=buffers.full[2][:size])
                d_logit = buffers.full[2][:size].sum(1, keepdim=True) * (g * (1 - g))
                dw_g += torch.mm(d_logit.T.to(low), m)
                db_g += d_logit.sum()
                z.mul_(g).addr_(d_logit[:, 0], w_g[0])
            # a = W₂ silu(u) + b₂
            dz = z if same else x.copy_(z)
            da = torch.ops.aten.silu_backward.grad_input(dz, a, grad_input=y)
            _accumulate(dw2, da, s, same)
            db2 += torch.mv(da.T, one)
            ds = torch.mm(da, w2l, out=z if same else x)
            if not same:
                ds = z.copy_(ds)
            du = torch.ops.aten.silu_backward.grad_input(ds, u, grad_input=z)
            dp.index_add_(0, i, du)
            dq.index_add_(0, j, du)
            torch.mm(du, w_d, out=d_edge[here])
            dw_d.addmm_(du.T, edge[here])
        if db_x is not None:
            db_x += d_t.sum()
        return *(None,) * FIRST, dp, dq, d_edge, d_envelope, *grads


class _Buffers:
    """Room for one block, used again for every block."""

    def __init__(self, like: Tensor, low: torch.dtype, n: int) -> None:
        width = like.shape[1]
        self.full = [like.new_empty(BLOCK, width) for _ in range(3)]
        self.low = [like.new_empty(BLOCK, width, dtype=low) for _ in range(n)]
        self.bags = torch.arange(0, 2 * BLOCK, 2, dtype=torch.int32)


def _rows(p: Tensor, sender: Tensor, receiver: Tensor) -> Tensor:
    """For each edge the two rows of the table [P, Q] that make its u: [2E]."""
    return torch.stack([receiver, sender + p.shape[0]], 1).flatten().int()


def _first(
    buffers: _Buffers, table: Tensor, rows: Tensor, edge: Tensor, w_d: Tensor, size: int
) -> tuple[Tensor, Tensor]:
    """u and silu(u) of a block.

    A bag of two embeddings is two look-ups and their sum in one pass.
    """
    s = buffers.low[0][:size]
    u = torch.embedding_bag(table, rows, buffers.bags[:size], mode=0)[0]
    if edge.shape[1] == 1:
        u.addcmul_(edge, w_d.T)
    else:
        u.addmm_(edge, w_d.T)
    if s.dtype == u.dtype:
        torch.ops.aten.silu.out(u, out=s)
    else:
        s.copy_(torch.ops.aten.silu.out(u, out=buffers.full[1][:size]))
    return u, s


def _accumulate(total: Tensor, grad: Tensor, value: Tensor, same: bool) -> None:
    """total += gradᵀ value; the sum over blocks is in float32 whatever the product's precision."""
    if same:
        total.addmm_(grad.T, value)
    else:
        total += torch.mm(grad.T, value)
