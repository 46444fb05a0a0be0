"""TorchMD-Net ET by the compiled kernels of kernels/torchmd_et*.cpp: nothing of size [E, F] is ever
written to memory.

`summed` is the messages; formulas and notation are those of models/torchmd_et_edges.py. What every
atom says to itself (d = 0, no direction, f_c = 1) is part of the sums here. The filters D depend on
the distance only: edges i → j and j → i share one row of them. Such edges are found by their
directions, which must be exactly opposite, and their rows of the basis, which must be equal; each
gets half of the row's gradient, so that gradients through the distance (positions, cell, the basis'
own parameters) are what they would be edge by edge. `neighbours` is equation 3 of
models/torchmd_et.py, with filters shared in the same way; `changes` is equations 8 and 9.

Under autocast the product that makes the filters and the atoms' q, k, s are bfloat16; everything
pointwise and all sums are float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.amp import custom_bwd, custom_fwd
from torch.nn.functional import linear, silu

from .layers import sum_over, through_plain, wanted_inputs
from .torchmd_et_edges import messages, plain


def pieces(
    basis: Tensor, direction: Tensor, sender: Tensor, receiver: Tensor, n_atoms: int
) -> Tensor:
    """Edges [E] put together two by two, each number once: [P, 2], −1 beside an edge that stays
    alone. The same for all layers.
    """
    edges = (t.detach().contiguous() for t in (basis, direction, sender, receiver))
    return torch.ops.potkit.torchmd_et_pieces(*edges, n_atoms)


def summed(
    q: Tensor,  # [N, F]
    k: Tensor,  # [N, F]
    s: Tensor,  # [N, 3F]
    v: Tensor | None,  # [N, 3, F]
    basis: Tensor,  # [E, K]
    envelope: Tensor,  # [E, 1]
    direction: Tensor,  # [E, 3]
    weight: Tensor,  # [4F, K]
    bias: Tensor,  # [4F]
    own_basis: Tensor,  # [1, K], at distance 0
    sender: Tensor,  # [E]
    receiver: Tensor,  # [E]
    together: Tensor,  # [P, 2] of `pieces`
    heads: int,
    damped: bool,
) -> tuple[Tensor, Tensor]:
    """Sums of the messages over the neighbours of each atom and the atom itself: [N, F] and [N,
    3, F], float32.
    """
    full, low = weight.dtype, _precision(weight)
    with torch.autocast("cpu", enabled=False):
        v = None if v is None else v.to(full)
        return _Summed.apply(
            q.to(low),
            k.to(low),
            s.to(low),
            basis.to(full),
            envelope,
            direction,
            weight,
            bias,
            own_basis.to(full),
            v,
            sender,
            receiver,
            together,
            heads,
            damped,
        )


def neighbours(
    h: Tensor,  # [N, F]
    basis: Tensor,  # [E, K]
    envelope: Tensor,  # [E, 1]
    weight: Tensor,  # [F, K]
    bias: Tensor,  # [F]
    sender: Tensor,  # [E]
    receiver: Tensor,  # [E]
    together: Tensor,  # [P, 2] of `pieces`
) -> Tensor:
    """Σ_j h_j ⊙ (W e_ij + w) f_c: [N, F]."""
    low = _precision(weight)
    with torch.autocast("cpu", enabled=False):
        return _Neighbours.apply(
            h.to(weight.dtype),
            basis.to(weight.dtype),
            envelope,
            weight,
            bias,
            sender,
            receiver,
            together,
            low,
        )


def changes(
    out: Tensor,  # [N, 3F]
    mix: Tensor,  # [N, 3, 3F]
    vector: Tensor,  # [N, 3, F]
) -> tuple[Tensor, Tensor]:
    """Δx = q¹ + q² ⊙ ⟨u¹, u²⟩ [N, F] and Δv = vector + q³ ⊙ u³ [N, 3, F], float32; out is (q¹,
    q², q³), mix is (u¹, u², u³).
    """
    low = out.dtype if out.dtype == mix.dtype == torch.bfloat16 else vector.dtype
    with torch.autocast("cpu", enabled=False):
        return _Changes.apply(out.to(low), mix.to(low), vector)


def _precision(weight: Tensor) -> torch.dtype:
    """That of products: bfloat16 under its autocast, else that of the weights."""
    low = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    return low if low == torch.bfloat16 else weight.dtype


def formulas(
    q, k, s, basis, envelope, direction, weight, bias, own_basis, v, sender, receiver, heads, damped
) -> tuple[Tensor, Tensor]:
    """`summed` in ordinary operations, differentiable any number of times."""
    q, k, s = (t.to(weight.dtype) for t in (q, k, s))
    scalar, vector = plain(
        q, k, s, v, basis, envelope, direction, weight, bias, sender, receiver, heads, damped
    )
    own, own_vector = messages(
        q, k, s, v, own_basis, torch.ones_like(own_basis[:, :1]), None, weight, bias, heads, damped
    )
    return scalar + own, vector if own_vector is None else vector + own_vector


# forward passes here run outside autocast and cast on their own; backward passes must, too, also
# where they are called within it
_forward, _backward = custom_fwd(device_type="cpu"), custom_bwd(device_type="cpu")


class _Summed(torch.autograd.Function):
    @staticmethod
    @_forward
    def forward(
        ctx,
        q,
        k,
        s,
        basis,
        envelope,
        direction,
        weight,
        bias,
        own_basis,
        v,
        sender,
        receiver,
        together,
        heads,
        damped,
    ):
        given = (
            q,
            k,
            s,
            basis,
            envelope,
            direction,
            weight,
            bias,
            own_basis,
            v,
            sender,
            receiver,
            together,
        )
        own = silu(linear(own_basis, weight, bias))
        scalar, vector, *logits = torch.ops.potkit.torchmd_et_forward(
            *_prepared(given, own), heads, damped
        )
        ctx.heads, ctx.damped = heads, damped
        ctx.save_for_backward(*given, *logits)
        return scalar, vector

    @staticmethod
    @_backward
    def backward(ctx, d_scalar, d_vector):
        *given, logits, own_logits = ctx.saved_tensors
        rest = None, None, None, None, None
        if torch.is_grad_enabled():
            *tensors, sender, receiver, _ = given

            def function(*tensors):
                return formulas(*tensors, sender, receiver, ctx.heads, ctx.damped)

            return *through_plain(
                function, tensors, ctx.needs_input_grad[:10], (d_scalar, d_vector)
            ), *rest
        weight, bias, own_basis, v = given[6:10]
        need_envelope, need_direction = wanted_inputs(ctx)[4:6]
        own_pre = linear(own_basis, weight, bias)
        kept = logits, own_logits, d_scalar.contiguous(), d_vector.contiguous()
        dq, dk, ds, dv, d_basis, d_envelope, d_direction, d_weight, d_bias, d_own = (
            torch.ops.potkit.torchmd_et_backward(
                *_prepared(given, silu(own_pre)),
                ctx.heads,
                ctx.damped,
                *kept,
                need_envelope,
                need_direction,
            )
        )
        d_pre = torch.ops.aten.silu_backward(d_own, own_pre)
        d_weight.addmm_(d_pre.T, own_basis)
        d_bias += d_pre[0]
        d_envelope, d_direction = (
            d_envelope if need_envelope else None,
            d_direction if need_direction else None,
        )
        return (
            dq,
            dk,
            ds,
            d_basis,
            d_envelope,
            d_direction,
            d_weight,
            d_bias,
            d_pre @ weight,
            None if v is None else dv,
            *rest,
        )


def _prepared(given: tuple[Tensor | None, ...], own: Tensor) -> list[Tensor | None]:
    """The kernel's arguments: everything contiguous, the filters' weight in the precision of the
    product.
    """
    q, k, s, basis, envelope, direction, weight, bias, _, v, *indices = (
        None if t is None else t.contiguous() for t in given
    )
    return [q, k, s, v, basis, envelope, direction, weight.to(q.dtype), bias, own, *indices]


def plain_neighbours(h, basis, envelope, weight, bias, sender, receiver) -> Tensor:
    """`neighbours` in ordinary operations."""
    return sum_over(h[sender] * linear(basis, weight, bias) * envelope, receiver, h.shape[0])


class _Neighbours(torch.autograd.Function):
    @staticmethod
    @_forward
    def forward(ctx, h, basis, envelope, weight, bias, sender, receiver, together, low):
        ctx.low = low
        given = [
            t.contiguous() for t in (h, basis, envelope, weight, bias, sender, receiver, together)
        ]
        ctx.save_for_backward(*given)
        given[3] = weight.to(low).contiguous()
        return torch.ops.potkit.torchmd_et_neighbours_forward(*given)

    @staticmethod
    @_backward
    def backward(ctx, grad):
        h, basis, envelope, weight, bias, sender, receiver, together = ctx.saved_tensors
        rest = None, None, None, None
        if torch.is_grad_enabled():

            def function(*tensors):
                return (plain_neighbours(*tensors, sender, receiver),)

            return *through_plain(
                function, (h, basis, envelope, weight, bias), ctx.needs_input_grad[:5], (grad,)
            ), *rest
        need_envelope = wanted_inputs(ctx)[2]
        dh, d_basis, d_envelope, d_weight, d_bias = torch.ops.potkit.torchmd_et_neighbours_backward(
            h,
            basis,
            envelope,
            weight.to(ctx.low),
            bias,
            sender,
            receiver,
            together,
            grad.contiguous(),
            need_envelope,
        )
        return dh, d_basis, d_envelope if need_envelope else None, d_weight, d_bias, *rest


def plain_changes(out, mix, vector) -> tuple[Tensor, Tensor]:
    """`changes` in ordinary operations."""
    q1, q2, q3 = out.to(vector.dtype).chunk(3, -1)
    u1, u2, u3 = mix.to(vector.dtype).chunk(3, -1)
    return q1 + q2 * (u1 * u2).sum(1), vector + q3[:, None] * u3


class _Changes(torch.autograd.Function):
    @staticmethod
    @_forward
    def forward(ctx, out, mix, vector):
        out, mix, vector = out.contiguous(), mix.contiguous(), vector.contiguous()
        ctx.save_for_backward(out, mix, vector)
        return torch.ops.potkit.torchmd_et_update_forward(out, mix, vector)

    @staticmethod
    @_backward
    def backward(ctx, d_x, d_v):
        out, mix, vector = ctx.saved_tensors
        if torch.is_grad_enabled():
            return tuple(
                through_plain(plain_changes, (out, mix, vector), ctx.needs_input_grad, (d_x, d_v))
            )
        d_out, d_mix = torch.ops.potkit.torchmd_et_update_backward(
            out, mix, d_x.contiguous(), d_v.contiguous()
        )
        return d_out, d_mix, d_v
