"""The attention of TorchMD-Net ET in one autograd function that goes through the edges in blocks
which stay in the processor's cache.

As in egnn_blocks.py: an operation at a time over all edges, a layer makes some forty arrays [E, F],
each through main memory. Here nothing of size [E, F] outlives its block; the backward pass computes
the block again, which costs one thin product (the radial basis has 32 columns) beside many
operations saved. What depends on one atom only (q, k, s, v) comes in per atom. Notation as in
models/torchmd_et.py, per edge, with D = silu(W e + w) the four filters of keys and values in one
product:

    κ, s³, s¹, s² = (k_j, s_j) ⊙ D,   l = Σ_{channels of a head} q_i κ,   A = silu(l) f_c,
    x_i = Σ_j A s³,   v_i = Σ_j s¹ ⊙ v_j + s² ⊙ r_ij/d_ij      (s¹, s² times f_c if ``damped``)

What an atom says to itself is added in ordinary operations. The derivative of the backward pass is
taken of the plain function.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..models.graph import Graph
from ..models.layers import silu, sum_over
from ..models.torchmd_et import Edges, Layer
from .autograd import through_plain, wanted_inputs

BLOCK = 256  # edges; × 1024 channels × 4 bytes is 1 MB for the widest arrays


def attention(
    layer: Layer,
    q: Tensor,  # [N, F]
    k: Tensor,  # [N, F]
    s: Tensor,  # [N, 3F]
    v: Tensor | None,  # [N, 3, F]
    edges: Edges,
) -> tuple[Tensor, Tensor]:
    """`Layer.attention` of models/torchmd_et.py."""
    weight, bias = layer.filter_weights()
    device, full = q.device.type, weight.dtype
    own_scalar, own_vector = layer.own_message(q, k, s, v, edges, weight, bias)
    with torch.autocast(device, enabled=False):
        parts = (k, s) if v is None else (k, s, v.flatten(1))
        table = torch.cat([part.to(full) for part in parts], 1)  # [N, 4F or 7F]
        sums = _InBlocks.apply(
            q.to(full),
            table,
            edges.basis.to(full),
            edges.envelope,
            edges.direction,
            weight,
            bias,
            layer,
            edges.graph,
        )
    scalar, vector = sums.split([q.shape[1], 3 * q.shape[1]], 1)
    vector = vector.unflatten(1, (3, -1))
    return scalar + own_scalar, vector if own_vector is None else vector + own_vector


def _plain(
    layer: Layer,
    graph: Graph,
    q: Tensor,  # [N, F]
    table: Tensor,  # [N, 4F or 7F]
    basis: Tensor,
    envelope: Tensor,
    direction: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor]:
    """The sums over edges in ordinary operations: [N, 4F]."""
    n, width = q.shape
    of_sender = table[graph.sender]
    scalar, vector = layer.message(
        q[graph.receiver],
        of_sender[:, :width],
        of_sender[:, width : 4 * width],
        of_sender[:, 4 * width :].unflatten(1, (3, width)) if table.shape[1] > 4 * width else None,
        silu(linear(basis, weight, bias)),
        envelope,
        direction,
    )
    sums = torch.cat([scalar, vector.flatten(1)], 1)
    return (sum_over(sums, graph.receiver, n),)


class _InBlocks(torch.autograd.Function):
    @staticmethod
    def forward(ctx, q, table, basis, envelope, direction, weight, bias, layer, graph):
        sender, receiver, heads, damped = graph.sender, graph.receiver, layer.heads, layer.damped
        f, wide = q.shape[1], table.shape[1]
        total = q.new_zeros(q.shape[0], 4 * f)
        a_room, b_room, c_room = (q.new_empty(BLOCK, n) for n in (4 * f, wide, 4 * f))
        q_room = q.new_empty(BLOCK, f)
        logits = q.new_empty(len(sender), heads)
        weight_t = weight.T
        for start in range(0, len(sender), BLOCK):
            here = slice(start, min(start + BLOCK, len(sender)))
            size = here.stop - start
            i, j, c = receiver[here], sender[here], c_room[:size]
            filters = torch.addmm(bias, basis[here], weight_t, out=a_room[:size])
            torch.ops.aten.silu_(filters)
            b = torch.index_select(table, 0, j, out=b_room[:size])
            b[:, : 4 * f].mul_(filters)
            key, s3, s1, s2 = b[:, : 4 * f].chunk(4, 1)
            q_i = torch.index_select(q, 0, i, out=q_room[:size]).mul_(key)
            logit = torch.sum(q_i.view(size, heads, -1), -1, out=logits[here])
            attention = torch.nn.functional.silu(logit) * envelope[here]
            torch.mul(
                s3.unflatten(1, (heads, -1)),
                attention[:, :, None],
                out=c[:, :f].unflatten(1, (heads, -1)),
            )
            if damped:
                b[:, 2 * f : 4 * f].mul_(envelope[here])
            along = direction[here]
            for axis in range(3):
                part = c[:, (axis + 1) * f : (axis + 2) * f]
                torch.mul(s2, along[:, axis, None], out=part)
                if wide > 4 * f:
                    part.addcmul_(s1, b[:, (axis + 4) * f : (axis + 5) * f])
            total.index_add_(0, i, c)
        ctx.layer, ctx.graph = layer, graph
        ctx.save_for_backward(q, table, basis, envelope, direction, weight, bias, logits)
        return total

    @staticmethod
    def backward(ctx, d_total):
        *inputs, logits = ctx.saved_tensors
        layer, graph = ctx.layer, ctx.graph
        sender, receiver, heads, damped = graph.sender, graph.receiver, layer.heads, layer.damped
        if torch.is_grad_enabled():
            plain = functools.partial(_plain, layer, graph)
            return *through_plain(plain, inputs, wanted_inputs(ctx)[:7], (d_total,)), None, None
        q, table, basis, envelope, direction, weight, bias = inputs
        need_envelope, need_direction = wanted_inputs(ctx)[3:5]
        f, wide = q.shape[1], table.shape[1]
        dq, d_table, d_basis = torch.zeros_like(q), torch.zeros_like(table), torch.empty_like(basis)
        d_envelope = torch.zeros_like(envelope) if need_envelope else None
        d_direction = torch.empty_like(direction) if need_direction else None
        d_weight, d_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        g_room, pre_room, filter_room, w_room = (q.new_empty(BLOCK, 4 * f) for _ in range(4))
        b_room, q_room, t_room = (q.new_empty(BLOCK, n) for n in (wide, f, f))
        ones, weight_t, total_grad = q.new_ones(BLOCK), weight.T, d_total.contiguous()
        for start in range(0, len(sender), BLOCK):
            here = slice(start, min(start + BLOCK, len(sender)))
            size = here.stop - start
            i, j, env, along = receiver[here], sender[here], envelope[here], direction[here]
            t = t_room[:size]
            pre = torch.addmm(bias, basis[here], weight_t, out=pre_room[:size])
            filters = torch.ops.aten.silu.out(pre, out=filter_room[:size])
            b = torch.index_select(table, 0, j, out=b_room[:size])
            g = torch.index_select(total_grad, 0, i, out=g_room[:size])
            q_i = torch.index_select(q, 0, i, out=q_room[:size])
            w = torch.mul(
                b[:, : 4 * f], filters, out=w_room[:size]
            )  # κ, s³, s¹, s²; each part becomes its own gradient below
            key, s3, s1, s2 = w.chunk(4, 1)
            by_head = (heads, f // heads)
            # x_i = Σ A s³ with A = silu(l) f_c
            g_x = g[:, :f]
            d_attention = torch.mul(g_x, s3, out=t).view(size, *by_head).sum(-1)
            silu_l = torch.nn.functional.silu(logits[here])
            if need_envelope:
                d_envelope[here] += (d_attention * silu_l).sum(1, keepdim=True)
            torch.mul(
                g_x.unflatten(1, by_head), (silu_l * env)[:, :, None], out=s3.unflatten(1, by_head)
            )
            # l = Σ q_i κ
            d_logit = torch.ops.aten.silu_backward(d_attention * env, logits[here])[:, :, None]
            torch.mul(key.unflatten(1, by_head), d_logit, out=t.view(size, *by_head))
            dq.index_add_(0, i, t)
            torch.mul(q_i.view(size, *by_head), d_logit, out=key.unflatten(1, by_head))
            # v_i = Σ s¹ v_j + s² r/d
            if need_direction or (need_envelope and damped):
                scaled = env if damped else 1.0
                along_s2 = torch.stack(
                    [(g[:, (a + 1) * f : (a + 2) * f] * s2).sum(1) for a in range(3)], 1
                )
                if need_direction:
                    d_direction[here] = along_s2 * scaled
                if need_envelope and damped:
                    d_envelope[here] += (along_s2 * along).sum(1, keepdim=True)
            d_s1, d_s2 = s1, s2
            torch.mul(g[:, f : 2 * f], along[:, 0, None], out=d_s2)
            for axis in (1, 2):
                d_s2.add_(
                    torch.mul(g[:, (axis + 1) * f : (axis + 2) * f], along[:, axis, None], out=t)
                )
            if wide > 4 * f:
                g_v, v_j = g[:, f:].unflatten(1, (3, f)), b[:, 4 * f :].unflatten(1, (3, f))
                s1_full = torch.mul(s1, env, out=q_i) if damped else q_i.copy_(s1)
                torch.mul(g_v[:, 0], v_j[:, 0], out=d_s1)
                d_s1.addcmul_(g_v[:, 1], v_j[:, 1]).addcmul_(g_v[:, 2], v_j[:, 2])
                if need_envelope and damped:
                    kept = b[:, 2 * f : 3 * f] * filters[:, 2 * f : 3 * f]
                    d_envelope[here] += (d_s1 * kept).sum(1, keepdim=True)
                torch.mul(g_v, s1_full[:, None], out=v_j)
            else:
                d_s1.zero_()
            if damped:
                w[:, 2 * f :].mul_(env)
            # (κ, s) = (k_j, s_j) ⊙ silu(W e + w)
            d_filters = torch.mul(w, b[:, : 4 * f], out=g)
            torch.mul(w, filters, out=b[:, : 4 * f])
            d_table.index_add_(0, j, b)
            d_pre = torch.ops.aten.silu_backward.grad_input(d_filters, pre, grad_input=pre)
            d_weight.addmm_(d_pre.T, basis[here])
            d_bias.addmv_(d_pre.T, ones[:size])
            torch.mm(d_pre, weight, out=d_basis[here])
        return dq, d_table, d_basis, d_envelope, d_direction, d_weight, d_bias, None, None
