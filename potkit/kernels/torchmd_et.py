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
pointwise and all sums are float32.

Two derivatives go through the kernels, as training on −∂E/∂x takes them: the first without
gradients of weights (`_AttentionSlopes` and the like), whose own backward pass is in
torchmd_et_slopes.cpp. All others are taken of the plain functions.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import custom_bwd, custom_fwd
from torch.nn.functional import linear, silu

from ..models.torchmd_et import Edges, Layer, TorchMDET
from .autograd import (
    contiguous,
    low_precision,
    or_zeros,
    through_plain,
    wanted_inputs,
    with_weights,
)
from .once import once

# forward passes here run outside autocast and cast on their own; backward passes must, too, also
# where they are called within it
_forward, _backward = custom_fwd(device_type="cpu"), custom_bwd(device_type="cpu")


@once
def pieces(edges: Edges) -> Tensor:
    """Edges [E] put together two by two, each number once: [E, 2].

    −1 stands beside an edge that stays alone, and in all rows after the last pair.
    """
    graph = edges.graph
    return torch.ops.potkit.torchmd_et_pieces(
        edges.basis.detach().contiguous(),
        edges.direction.detach().contiguous(),
        graph.sender.contiguous(),
        graph.receiver.contiguous(),
        graph.z.shape[0],
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
        rest = None, None
        wanted = wanted_inputs(ctx)[:10]
        if not any(wanted[6:9]):  # of the weights, and of an atom's distance to itself
            *slopes, dv = _AttentionSlopes.apply(
                *given, d_scalar, d_vector, logits, own_logits, layer, edges
            )
            slopes = (x if asked else None for x, asked in zip(slopes, wanted, strict=False))
            return *slopes, None, None, None, dv, *rest
        if torch.is_grad_enabled():
            plain = functools.partial(_plain_attention, layer, edges)
            return *through_plain(plain, given, wanted, (d_scalar, d_vector)), *rest
        weight, bias, own_basis, _ = given[6:]
        need_envelope, need_direction = wanted[4:6]
        own_pre = linear(own_basis, weight, bias)
        found = torch.ops.potkit.torchmd_et_backward(
            *_prepared(given, silu(own_pre), edges),
            layer.heads,
            layer.damped,
            logits,
            own_logits,
            d_scalar.contiguous(),
            d_vector.contiguous(),
            need_envelope,
            need_direction,
            True,
        )
        return *_as_inputs(found, given, own_pre, need_envelope, need_direction), *rest


class _AttentionSlopes(torch.autograd.Function):
    """Gradients of q, k, s, the basis, the envelope, the direction and v (None without vectors)."""

    @staticmethod
    @_forward
    def forward(ctx, *arguments):
        *given, d_scalar, d_vector, logits, own_logits, layer, edges = arguments
        weight, bias, own_basis, v = given[6:]
        d_scalar, d_vector = d_scalar.contiguous(), d_vector.contiguous()
        dq, dk, ds, dv, d_basis, d_envelope, d_direction, *_ = torch.ops.potkit.torchmd_et_backward(
            *_prepared(given, silu(linear(own_basis, weight, bias)), edges),
            layer.heads,
            layer.damped,
            logits,
            own_logits,
            d_scalar,
            d_vector,
            True,
            True,
            False,
        )
        ctx.layer, ctx.edges = layer, edges
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*given, d_scalar, d_vector, logits, own_logits)
        return dq, dk, ds, d_basis, d_envelope, d_direction, None if v is None else dv

    @staticmethod
    @_backward
    def backward(ctx, *ups):
        *inputs, logits, own_logits = ctx.saved_tensors
        *given, d_scalar, d_vector = inputs
        layer, edges = ctx.layer, ctx.edges
        rest = None, None, None, None
        wanted = wanted_inputs(ctx, [x is not None for x in inputs] + [False] * 4)[:12]
        if torch.is_grad_enabled():
            plain = functools.partial(_plain_slopes, ATTENTION, layer, edges)
            return *through_plain(plain, inputs, wanted, ups), *rest
        q, k, s, basis, envelope, direction, weight, bias, own_basis, v = given
        shaped = q, k, s, basis, envelope, direction, v
        dot_q, dot_k, dot_s, *of_edges, dot_v = or_zeros(ups, shaped, weight.dtype)
        own_pre = linear(own_basis, weight, bias)
        need_envelope, need_direction = wanted[4:6]
        *found, d_x, d_v = torch.ops.potkit.torchmd_et_slopes_backward(
            dot_q,
            dot_k,
            dot_s,
            dot_v,
            *of_edges,
            *_prepared(given, silu(own_pre), edges),
            layer.heads,
            layer.damped,
            logits,
            own_logits,
            d_scalar,
            d_vector,
            need_envelope,
            need_direction,
        )
        gradients = _as_inputs(found, given, own_pre, need_envelope, need_direction)
        return *gradients, d_x, d_v, *rest


def _as_inputs(
    found: Sequence[Tensor],
    given: Sequence[Tensor | None],
    own_pre: Tensor,
    need_envelope: bool,
    need_direction: bool,
) -> tuple[Tensor | None, ...]:
    """A kernel's gradients in the order of `_Attention`'s inputs ``given``; none by what nobody
    asks for or is not there. Those of atoms' own filters, ``own_pre`` before the activation, go to
    weight, bias and own basis.
    """
    dq, dk, ds, dv, d_basis, d_envelope, d_direction, d_weight, d_bias, d_own = found
    weight, _, own_basis, v = given[6:]
    d_pre = torch.ops.aten.silu_backward(d_own, own_pre)
    return (
        dq,
        dk,
        ds,
        d_basis,
        d_envelope if need_envelope else None,
        d_direction if need_direction else None,
        d_weight.addmm_(d_pre.T, own_basis),
        d_bias.add_(d_pre[0]),
        d_pre @ weight,
        None if v is None else dv,
    )


def _plain_attention(
    layer: Layer,
    edges: Edges,
    q: Tensor,
    k: Tensor,
    s: Tensor,
    basis: Tensor,
    envelope: Tensor,
    direction: Tensor,
    weight: Tensor,
    bias: Tensor,
    own_basis: Tensor,
    v: Tensor | None,
) -> tuple[Tensor, Tensor]:
    return with_weights(
        Layer.attention.plain,
        layer,
        filters_named(weight, bias),
        *(t.to(weight.dtype) for t in (q, k, s)),
        v,
        Edges(edges.graph, envelope, basis, direction, own_basis),
    )


def _prepared(
    given: Sequence[Tensor | None], own: Tensor, edges: Edges
) -> tuple[Tensor | None, ...]:
    """The kernel's arguments: all contiguous, the filters' weight in the products' precision."""
    q, k, s, basis, envelope, direction, weight, bias, _, v = contiguous(*given)
    atoms = q, k, s, v
    weights = weight.to(q.dtype), bias, own
    indices = edges.graph.sender.contiguous(), edges.graph.receiver.contiguous(), pieces(edges)
    return *atoms, basis, envelope, direction, *weights, *indices


class _Neighbors(torch.autograd.Function):
    @staticmethod
    @_forward
    def forward(ctx, h, basis, envelope, weight, bias, network, edges, low):
        given = contiguous(h, basis, envelope, weight, bias)
        ctx.network, ctx.edges, ctx.low = network, edges, low
        ctx.save_for_backward(*given)
        return torch.ops.potkit.torchmd_et_neighbours_forward(*_filtered_by(given, edges, low))

    @staticmethod
    @_backward
    def backward(ctx, grad):
        given = ctx.saved_tensors
        network, edges = ctx.network, ctx.edges
        rest = None, None, None
        wanted = wanted_inputs(ctx)[:5]
        if not any(wanted[3:]):
            slopes = _NeighborsSlopes.apply(*given, grad, network, edges, ctx.low)
            slopes = (x if asked else None for x, asked in zip(slopes, wanted, strict=False))
            return *slopes, None, None, *rest
        if torch.is_grad_enabled():
            plain = functools.partial(_plain_neighbors, network, edges)
            return *through_plain(plain, given, wanted, (grad,)), *rest
        need_envelope = wanted[2]
        dh, d_basis, d_envelope, d_weight, d_bias = torch.ops.potkit.torchmd_et_neighbours_backward(
            *_filtered_by(given, edges, ctx.low), grad.contiguous(), need_envelope, True
        )
        return dh, d_basis, d_envelope if need_envelope else None, d_weight, d_bias, *rest


class _NeighborsSlopes(torch.autograd.Function):
    """Gradients of h, the basis and the envelope."""

    @staticmethod
    @_forward
    def forward(ctx, h, basis, envelope, weight, bias, grad, network, edges, low):
        given = h, basis, envelope, weight, bias
        grad = grad.contiguous()
        ctx.network, ctx.edges, ctx.low = network, edges, low
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*given, grad)
        dh, d_basis, d_envelope, *_ = torch.ops.potkit.torchmd_et_neighbours_backward(
            *_filtered_by(given, edges, low), grad, True, False
        )
        return dh, d_basis, d_envelope

    @staticmethod
    @_backward
    def backward(ctx, *ups):
        inputs = ctx.saved_tensors
        *given, grad = inputs
        network, edges = ctx.network, ctx.edges
        rest = None, None, None
        wanted = wanted_inputs(ctx)[:6]
        if torch.is_grad_enabled():
            plain = functools.partial(_plain_slopes, NEIGHBORS, network, edges)
            return *through_plain(plain, inputs, wanted, ups), *rest
        dots = or_zeros(ups, given[:3], grad.dtype)
        need_envelope = wanted[2]
        dh, d_basis, d_envelope, d_weight, d_bias, d_grad = (
            torch.ops.potkit.torchmd_et_neighbours_slopes_backward(
                *dots, *_filtered_by(given, edges, ctx.low), grad, need_envelope
            )
        )
        d_envelope = d_envelope if need_envelope else None
        return dh, d_basis, d_envelope, d_weight, d_bias, d_grad, *rest


def _plain_neighbors(
    network: TorchMDET,
    edges: Edges,
    h: Tensor,
    basis: Tensor,
    envelope: Tensor,
    weight: Tensor,
    bias: Tensor,
) -> tuple[Tensor]:
    given = {"neighbor_filter.weight": weight, "neighbor_filter.bias": bias}
    near = dataclasses.replace(edges, basis=basis, envelope=envelope)
    return (with_weights(TorchMDET.neighbors.plain, network, given, h, near),)


def _filtered_by(given: Sequence[Tensor], edges: Edges, low: torch.dtype) -> tuple[Tensor, ...]:
    """The arguments of the kernel for equation 3, the weight in the precision of the product."""
    h, basis, envelope, weight, bias = given
    indices = edges.graph.sender.contiguous(), edges.graph.receiver.contiguous(), pieces(edges)
    return h, basis, envelope, weight.to(low), bias, *indices


class _Update(torch.autograd.Function):
    @staticmethod
    @_forward
    def forward(ctx, out, mixed, vector, layer, edges):
        out, mixed, vector = contiguous(out, mixed, vector)
        ctx.layer, ctx.edges = layer, edges
        ctx.save_for_backward(out, mixed)
        return torch.ops.potkit.torchmd_et_update_forward(out, mixed, vector)

    @staticmethod
    @_backward
    def backward(ctx, d_x, d_v):
        d_out, d_mixed = _UpdateSlopes.apply(*ctx.saved_tensors, d_x, d_v, ctx.layer, ctx.edges)
        return d_out, d_mixed, d_v, None, None


class _UpdateSlopes(torch.autograd.Function):
    """Gradients of the outputs' and the vectors' projections."""

    @staticmethod
    @_forward
    def forward(ctx, out, mixed, d_x, d_v, layer, edges):
        d_x, d_v = contiguous(d_x, d_v)
        ctx.layer, ctx.edges = layer, edges
        ctx.save_for_backward(out, mixed, d_x, d_v)
        return torch.ops.potkit.torchmd_et_update_backward(out, mixed, d_x, d_v)

    @staticmethod
    @_backward
    def backward(ctx, *ups):
        inputs = ctx.saved_tensors
        if torch.is_grad_enabled():
            plain = functools.partial(_plain_slopes, UPDATE, ctx.layer, ctx.edges)
            wanted = wanted_inputs(ctx)[:4]
            return *through_plain(plain, inputs, wanted, ups), None, None
        gradients = torch.ops.potkit.torchmd_et_update_slopes_backward(*contiguous(*ups), *inputs)
        return *gradients, None, None


def _plain_update(layer: Layer, edges: Edges, out: Tensor, mixed: Tensor) -> tuple[Tensor, Tensor]:
    """Without the vectors, which are only added."""
    full = layer.out.weight.dtype
    none = torch.zeros((), dtype=full)
    return Layer.update.plain(layer, out.to(full), mixed.to(full), none, edges)


# -- first derivatives by positions in ordinary operations, to be differentiated without end
class _Slopes(NamedTuple):
    """What is differentiated: a plain function of a module, edges and ``n_inputs`` tensors, by
    those of them that positions change.
    """

    plain: Callable[..., tuple[Tensor, ...]]
    n_inputs: int
    changing: tuple[int, ...]


ATTENTION = _Slopes(_plain_attention, 10, (0, 1, 2, 3, 4, 5, 9))
NEIGHBORS = _Slopes(_plain_neighbors, 5, (0, 1, 2))
UPDATE = _Slopes(_plain_update, 2, (0, 1))


def _plain_slopes(
    slopes: _Slopes, module: nn.Module, edges: Edges, *inputs: Tensor | None
) -> list[Tensor | None]:
    """Gradients by the changing inputs; after the function's inputs come what is given for its
    results.
    """
    given, ups = inputs[: slopes.n_inputs], inputs[slopes.n_inputs :]
    results = slopes.plain(module, edges, *given)
    chosen = [given[k] for k in slopes.changing if given[k] is not None]
    # an unused one has zeros
    options = dict(create_graph=True, allow_unused=True, materialize_grads=True)
    found = iter(torch.autograd.grad(results, chosen, ups, **options))
    return [None if given[k] is None else next(found) for k in slopes.changing]
