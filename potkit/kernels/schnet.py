"""SchNet's filters and convolution over pairs in one, by the compiled kernels of schnet.cpp.

Filters are never written to memory. In the words of schnet_pairs.py, with x [N, F] the atoms'
features, the convolution is

    c_i = Σ_j x_j ⊙ W_ij,   W = f (y + a₂),   y = A₂ ssp(u),   u = A₁ e + a₁

(here a₂ is added where y is used). `filtered` returns c. Kept are y and its slope y' = dy/dd of
each pair, as the product made them (bfloat16 under autocast). They are a second output, because
−∂E/∂x needs them: with g the gradient of c, and V = f' (y + a₂) + f y'

    dx = convolve(g, W),   dd = Σ_F outer(g, x) ⊙ V

This is one more autograd function, of g, x, y, y' and d. Its own backward pass (training on −∂E/∂x)
gives gradients for y and y'; `filtered`'s adds those of c to them, so that each product is made
once for both. So far everything is a kernel; still higher derivatives go through the formulas in
ordinary operations.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .autograd import low_precision, through_plain, wanted_inputs
from .schnet_pairs import Radial, convolve, outer, plain_outputs


def filtered(
    x: Tensor, radial: Radial, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor, i: Tensor, j: Tensor
) -> Tensor:
    """``convolve(x, filters(radial, a1, b1, a2, b2), i, j)`` of schnet_pairs.py: [N, F].

    In float32 on the CPU.
    """
    low = low_precision("cpu", a2.dtype)
    with torch.autocast("cpu", enabled=False):
        keep = torch.is_grad_enabled()  # inside the function it never is
        return _Filtered.apply(
            x.to(a2.dtype), radial.distance, a1, b1, a2, b2, radial, low, keep, i, j
        )[0]


class _Filtered(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, distance, a1, b1, a2, b2, radial, low, keep, i, j):
        x = x.contiguous()
        keep = keep and any(ctx.needs_input_grad)
        c, y = torch.ops.potkit.filtered_forward(
            x, radial.parts, *_envelope(radial), a1, b1, a2.to(low), b2, i, j, keep
        )
        ctx.radial, ctx.low = radial, low
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, distance, a1, b1, a2, b2, i, j, y)
        return c, y

    @staticmethod
    def backward(ctx, d_c, d_y):
        x, distance, a1, b1, a2, b2, i, j, y = ctx.saved_tensors
        radial, none = ctx.radial, (None,) * 5
        wanted = wanted_inputs(ctx)
        if d_c is None and d_y is None:
            return (None,) * 11
        if d_y is None and radial.slopes and not any(wanted[2:6]):
            dx, d_distance = _Slopes.apply(d_c, x, y, distance, b2.detach(), radial, i, j)
            return dx if wanted[0] else None, d_distance if wanted[1] else None, *(None,) * 4, *none
        if torch.is_grad_enabled():

            def plain(x, d, a1, b1, a2, b2):
                y, f = plain_outputs(radial, d, a1, b1, a2, b2, radial.slopes)
                return convolve(x, f[0] * y[0], i, j), torch.stack(y, 1).to(ctx.low)

            inputs = x, distance, a1, b1, a2, b2
            return *through_plain(plain, inputs, wanted[:6], (d_c, d_y)), *none
        d_c = torch.zeros_like(x) if d_c is None else d_c.contiguous()
        bent = None  # e''
        if wanted[1] and d_y is not None:
            bent = radial.shapes(distance.detach(), 3)[0][2]
        dx, d_distance, *weights = torch.ops.potkit.filtered_backward(
            d_c,
            None if d_y is None else d_y.contiguous(),
            x,
            y,
            radial.parts,
            bent,
            *_envelope(radial),
            a1,
            b1,
            a2.to(ctx.low),
            b2,
            i,
            j,
            wanted[0],
            wanted[1],
        )
        return dx if wanted[0] else None, d_distance if wanted[1] else None, *weights, *none


class _Slopes(torch.autograd.Function):
    """dx and dd of the module's docstring.

    The bias a₂ comes without gradient: `_Filtered` takes it from that of y.
    """

    @staticmethod
    def forward(ctx, g, x, y, distance, b2, radial, i, j):
        g = g.contiguous()
        ctx.radial = radial
        ctx.save_for_backward(g, x, y, distance, b2, i, j)
        return torch.ops.potkit.filtered_slopes(g, x, y, *_envelope(radial), b2, i, j)

    @staticmethod
    def backward(ctx, up, rate):
        g, x, y, distance, b2, i, j = ctx.saved_tensors
        radial, none = ctx.radial, (None,) * 4
        wanted = wanted_inputs(ctx)[:4]
        if torch.is_grad_enabled():

            def plain(g, x, y, d):
                f, f1 = (s[:, None] for s in radial.shapes(d, 2)[1])
                value = y[:, 0].to(x.dtype) + b2
                slope = f1 * value + f * y[:, 1].to(x.dtype)
                return convolve(g, f * value, i, j), (outer(g, x, i, j) * slope).sum(1)

            return *through_plain(plain, (g, x, y, distance), wanted, (up, rate)), *none
        up, rate = up.contiguous(), rate.contiguous()
        dg, dx, dy = torch.ops.potkit.filtered_slopes_backward(
            up, rate, g, x, y, *_envelope(radial), b2, i, j
        )
        d_distance = None
        if wanted[3]:  # Hessians only: what the envelope's slopes add, operation by operation
            _, f1, f2 = radial.shapes(distance.detach(), 3)[1]
            value = y[:, 0].to(x.dtype) + b2
            bent = f2[:, None] * value + f1[:, None] * y[:, 1].to(x.dtype)
            d_distance = f1 * (outer(up, g, i, j) * value).sum(1)
            d_distance = d_distance + rate * (outer(g, x, i, j) * bent).sum(1)
        return dg, dx, dy, d_distance, *none


def _envelope(radial: Radial) -> tuple[Tensor, Tensor | None]:
    """f [P, 1] and f', if there are slopes."""
    return radial.f[0], radial.f[1] if radial.slopes else None
