"""TorchMD-Net ET by the compiled kernels of torchmd_et*.cpp: nothing of size [E, F] is ever written
to memory.

`attention` has the formulas and notation of torchmd_et_blocks.py. What every atom says to itself
(d = 0, no direction, f_c = 1) is part of its sums. The filters D depend on the distance only: edges
i → j and j → i share one row of them. Such edges are found by their directions, which must be
exactly opposite, and their rows of the basis, which must be equal; each gets half of the row's
gradient, so that gradients through the distance (positions, cell, the basis' own parameters) are
what they would be edge by edge. `neighbors` is equation 3 of models/torchmd_et.py, with filters
shared in the same way; `update` is equations 8 and 9.

Under autocast the product that makes the filters and the atoms' q, k, s are bfloat16; everything
pointwise and all sums are float32. Derivatives of the backward passes are taken of the plain
functions.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.nn.functional import linear, silu

from ..models.torchmd_et import Edges, Layer, TorchMDET
from .autograd import low_precision, through_plain, wanted_inputs, with_weights
from .once import once

# forward passes here run outside autocast and cast on their own; backward passes must, too, also
# where they are called within it
_forward, _backward = custom_fwd(device_type="cpu"), custom_bwd(device_type="cpu")


@once
def pieces(edges: Edges) -> Tensor:
    """Edges [E] put together two by two, each number once: [P, 2].

    −1 stands beside an edge that stays alone.
    """
    graph = edges.graph
    return torch.ops.potkit.torchmd_et_pieces(
        edges.basis.detach().contiguous(),
        edges.direction.detach().contiguous(),
        graph.sender.contiguous(),
        graph.receiver.contiguous(),
        len(graph.z),
    )


def attention(
    layer: Layer,
    q: Tensor,  # [N, F]
    k: Tensor,  # [N, F]
    s: Tensor,  # [N, 3F]
    v: Tensor | None,  # [N, 3, F]
    edges: Edges,
) -> tuple[Tensor, Tensor]:
    """`Layer.attention` of models/torchmd_et.py, float32 on the CPU."""
    weight, bias = layer.filter_weights()
    full, low = weight.dtype, _precision(weight)
    with torch.autocast("cpu", enabled=False):
        return _Attention.apply(
            q.to(low),
            k.to(low),
            s.to(low),
            edges.basis.to(full),
            edges.envelope,
            edges.direction,
            weight,
            bias,
            edges.own_basis.to(full),
            None if v is None else v.to(full),
            layer,
            edges,
        )


def neighbors(network: TorchMDET, h: Tensor, edges: Edges) -> Tensor:  # [N, F] -> [N, F]
    """`TorchMDET.neighbors` of models/torchmd_et.py, float32 on the CPU."""
    weight, bias = network.neighbor_filter.weight, network.neighbor_filter.bias
    full, low = weight.dtype, _precision(weight)
    with torch.autocast("cpu", enabled=False):
        return _Neighbors.apply(
            h.to(full), edges.basis.to(full), edges.envelope, weight, bias, network, edges, low
        )


def update(
    layer: Layer,
    out: Tensor,  # [N, 3F]
    mixed: Tensor,  # [N, 3, 3F]
    vector: Tensor,  # [N, 3, F]
    edges: Edges,
) -> tuple[Tensor, Tensor]:
    """`Layer.update` of models/torchmd_et.py, float32 on the CPU."""
    low = out.dtype if out.dtype == mixed.dtype == torch.bfloat16 else vector.dtype
    with torch.autocast("cpu", enabled=False):
        return _Update.apply(out.to(low), mixed.to(low), vector, layer, edges)


def _precision(weight: Tensor) -> torch.dtype:
    """That of products: bfloat16 under its autocast, else that of the weights."""
    low = low_precision("cpu", weight.dtype)
    return low if low == torch.bfloat16 else weight.dtype


def filters_named(weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    """`Layer.filter_weights` backwards: the layer's weights by name."""
    width = len(bias) // 4
    return {
        "key_distance.weight": weight[:width],
        "value_distance.weight": weight[width:],
        "key_distance.bias": bias[:width],
        "value_distance.bias": bias[width:],
    }


class _Attention(torch.autograd.Function):
    @staticmethod
    @_forward
    def forward(ctx, q, k, s, basis, envelope, direction, weight, bias, own_basis, v, layer, edges):
        given = q, k, s, basis, envelope, direction, weight, bias, own_basis, v
        own = silu(linear(own_basis, weight, bias))
        scalar, vector, *logits = torch.ops.potkit.torchmd_et_forward(
            *_prepared(given, own, edges), layer.heads, layer.damped
        )
        ctx.layer, ctx.edges = layer, edges
        ctx.save_for_backward(*given, *logits)
        return scalar, vector

    @staticmethod
    @_backward
    def backward(ctx, d_scalar, d_vector):
        *given, logits, own_logits = ctx.saved_tensors
        layer, edges = ctx.layer, ctx.edges
        if torch.is_grad_enabled():

            def plain(q, k, s, basis, envelope, direction, weight, bias, own_basis, v):
                return with_weights(
                    Layer.attention.plain,
                    layer,
                    filters_named(weight, bias),
                    *(t.to(weight.dtype) for t in (q, k, s)),
                    v,
                    Edges(edges.graph, envelope, basis, direction, own_basis),
                )

            wanted = ctx.needs_input_grad[:10]
            return *through_plain(plain, given, wanted, (d_scalar, d_vector)), None, None
        weight, bias, own_basis, v = given[6:]
        need_envelope, need_direction = wanted_inputs(ctx)[4:6]
        own_pre = linear(own_basis, weight, bias)
        dq, dk, ds, dv, d_basis, d_envelope, d_direction, d_weight, d_bias, d_own = (
            torch.ops.potkit.torchmd_et_backward(
                *_prepared(given, silu(own_pre), edges),
                layer.heads,
                layer.damped,
                logits,
                own_logits,
                d_scalar.contiguous(),
                d_vector.contiguous(),
                need_envelope,
                need_direction,
            )
        )
        d_pre = torch.ops.aten.silu_backward(d_own, own_pre)
        d_weight.addmm_(d_pre.T, own_basis)
        d_bias += d_pre[0]
        return (
            dq,
            dk,
            ds,
            d_basis,
            d_envelope if need_envelope else None,
            d_direction if need_direction else None,
            d_weight,
            d_bias,
            d_pre @ weight,
            None if v is None else dv,
            None,
            None,
        )


def _prepared(
    given: tuple[Tensor | None, ...], own: Tensor, edges: Edges
) -> tuple[Tensor | None, ...]:
    """The kernel's arguments: all contiguous, the filters' weight in the products' precision."""
    q, k, s, basis, envelope, direction, weight, bias, _, v = (
        None if t is None else t.contiguous() for t in given
    )
    atoms = q, k, s, v
    weights = weight.to(q.dtype), bias, own
    indices = edges.graph.sender.contiguous(), edges.graph.receiver.contiguous(), pieces(edges)
    return *atoms, basis, envelope, direction, *weights, *indices


class _Neighbors(torch.autograd.Function):
    @staticmethod
    @_forward
    def forward(ctx, h, basis, envelope, weight, bias, network, edges, low):
        given = [t.contiguous() for t in (h, basis, envelope, weight, bias)]
        ctx.network, ctx.edges, ctx.low = network, edges, low
        ctx.save_for_backward(*given)
        return torch.ops.potkit.torchmd_et_neighbours_forward(*_filtered_by(given, edges, low))

    @staticmethod
    @_backward
    def backward(ctx, grad):
        given = ctx.saved_tensors
        network, edges = ctx.network, ctx.edges
        rest = None, None, None
        if torch.is_grad_enabled():

            def plain(h, basis, envelope, weight, bias):
                given = {"neighbor_filter.weight": weight, "neighbor_filter.bias": bias}
                near = dataclasses.replace(edges, basis=basis, envelope=envelope)
                return (with_weights(TorchMDET.neighbors.plain, network, given, h, near),)

            return *through_plain(plain, given, ctx.needs_input_grad[:5], (grad,)), *rest
        need_envelope = wanted_inputs(ctx)[2]
        dh, d_basis, d_envelope, d_weight, d_bias = torch.ops.potkit.torchmd_et_neighbours_backward(
            *_filtered_by(given, edges, ctx.low), grad.contiguous(), need_envelope
        )
        return dh, d_basis, d_envelope if need_envelope else None, d_weight, d_bias, *rest


def _filtered_by(given: tuple[Tensor, ...], edges: Edges, low: torch.dtype) -> tuple[Tensor, ...]:
    """The arguments of the kernel for equation 3, the weight in the precision of the product."""
    h, basis, envelope, weight, bias = given
    indices = edges.graph.sender.contiguous(), edges.graph.receiver.contiguous(), pieces(edges)
    return h, basis, envelope, weight.to(low), bias, *indices


class _Update(torch.autograd.Function):
    @staticmethod
    @_forward
    def forward(ctx, out, mixed, vector, layer, edges):
        out, mixed, vector = out.contiguous(), mixed.contiguous(), vector.contiguous()
        ctx.layer, ctx.edges = layer, edges
        ctx.save_for_backward(out, mixed, vector)
        return torch.ops.potkit.torchmd_et_update_forward(out, mixed, vector)

    @staticmethod
    @_backward
    def backward(ctx, d_x, d_v):
        given = ctx.saved_tensors
        if torch.is_grad_enabled():

            def plain(out, mixed, vector):
                full = vector.dtype
                return Layer.update.plain(
                    ctx.layer, out.to(full), mixed.to(full), vector, ctx.edges
                )

            wanted = ctx.needs_input_grad[:3]
            return *through_plain(plain, given, wanted, (d_x, d_v)), None, None
        d_out, d_mixed = torch.ops.potkit.torchmd_et_update_backward(
            given[0], given[1], d_x.contiguous(), d_v.contiguous()
        )
        return d_out, d_mixed, d_v, None, None
