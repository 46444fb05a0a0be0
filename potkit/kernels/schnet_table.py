"""SchNet's filters from a table, interpolated.

A filter depends on the distance only, so with many pairs it is made at some distances. The filter
network y(d) is smooth on the scale Δ of the radial basis' centres. On nodes d_n = n h it is
computed with its first two derivatives (u, s, A₁, A₂ as in schnet_pairs.py; σ the derivative of
ssp):

    y = A₂ s + a₂,   h y' = h A₂ (σ u'),   h² y'' = h² A₂ (σ (1 − σ) u'² + σ u'')

In the cell between two nodes, the polynomial of fifth degree that shares these six with it
(Hermite's) stands for y. With T_0n … T_5n its coefficients in t = d / h − n and f the envelope of
the exact distance, the filter of pair p in cell n is

    W_p = Σ_m C_pm T_mn,   C_pm = f(d_p) t_pᵐ,   m = 0 … 5

It has continuous second derivatives in d, and forces and their training see the derivatives of this
very function: energies are conserved. At h ≤ Δ / 5 it differs from y by 2·10⁻⁸, its slope by 4·10⁻⁷
of the largest, about what float32 rounds. (The table is computed in float64: its coefficients are
small differences.) A power of two as h makes d / h exact. The products now cost as much as there
are nodes, 161 at most with 32 centres and 5 Å, however many pairs.

The convolution c_i = Σ_j x_j ⊙ W_ij is linear in x, C and T, and so are its derivatives:
schnet_table.cpp goes through the pairs for them; C follows the distances and T the weights in
ordinary operations.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor
from torch.nn.functional import linear

from ..models.graph import Graph
from ..models.layers import shifted_softplus
from ..models.schnet import SchNet
from .autograd import through_plain, wanted_inputs
from .schnet import filtered
from .schnet_pairs import Pairs, Radial, Shape, convolve, filter_weights, outer, pairs_of, slope_of

# polynomials of t in [0, 1] by their coefficients of 1, t, … t⁵; each has one of value, slope and
# curvature at 0, then at 1, and none else
HERMITE = [
    [1.0, 0.0, 0.0, -10.0, 15.0, -6.0],
    [0.0, 1.0, 0.0, -6.0, 8.0, -3.0],
    [0.0, 0.0, 0.5, -1.5, 1.5, -0.5],
    [0.0, 0.0, 0.0, 10.0, -15.0, 6.0],
    [0.0, 0.0, 0.0, -4.0, 7.0, -3.0],
    [0.0, 0.0, 0.0, 0.5, -1.0, 0.5],
]
# of u over a cell: ssp, whose scale is 1, is then resolved as well as the basis (slopes to 1e-6)
STEEPEST = 0.5


def interactions(network: SchNet, h: Tensor, graph: Graph) -> Tensor:  # [N, F] -> [N, F]
    """`SchNet.interactions` of models/schnet.py, float32 on the CPU.

    The graph is one that `schnet_pairs.is_paired`.
    """
    envelope = functools.partial(network.envelope, cutoff=network.cutoff)
    scale = network.cutoff / (len(network.basis.centers) - 1)
    grid = Grid(pairs_of(graph), network.basis, envelope, scale)
    for layer in network.layers:
        h = h + layer.update(grid.convolve(layer.project(h), *filter_weights(layer)))
    return h


class Grid:
    """Nodes around the distances of some pairs, and each pair's place among them.

    Made once per step for all layers. ``basis`` and ``envelope`` are functions of distances [P];
    ``scale`` (Å) is how far apart the basis' centres are.
    """

    def __init__(self, pairs: Pairs, basis: Shape, envelope: Shape, scale: float) -> None:
        self.pairs, self.basis, self.envelope = pairs, basis, envelope
        self.spacing = 2.0 ** math.floor(math.log2(scale / 5))  # Å
        d = pairs.distance
        with torch.autocast(d.device.type, enabled=False):
            scaled = d / self.spacing
            # t stays NaN, and its filter with it
            left = scaled.detach().floor().nan_to_num(0.0, 0.0, 0.0)
            low, high = (int(x) for x in left.aminmax()) if len(d) else (0, 0)
            self.n_nodes = high - low + 2
            self.cell = (left - low).long()
            t = scaled - left
            powers = [envelope(d)]
            for _ in range(5):
                powers.append(powers[-1] * t)
            self.weight = torch.stack(powers, 1)  # C [P, 6]
            self.nodes = self.spacing * torch.arange(
                low, high + 2, dtype=torch.float64, device=d.device
            )

    @property
    def pays(self) -> bool:
        """Whether the table has fewer rows than the pairs have filters."""
        return 3 * self.n_nodes < len(self.pairs.i)

    @functools.cached_property
    def radial(self) -> Radial:
        """The basis at the pairs themselves, for filters made one by one."""
        return Radial(
            self.pairs.distance, self.basis, self.envelope, slopes=self.pairs.distance.requires_grad
        )

    @functools.cached_property
    def parts(self) -> tuple[Tensor, Tensor, Tensor]:
        """e, h e', h² e'' at the nodes: [M + 1, K] float64 each."""
        h, slope = self.spacing, slope_of(self.basis)
        with torch.no_grad():
            curvature = slope_of(slope)(self.nodes)
            return self.basis(self.nodes), h * slope(self.nodes), h**2 * curvature

    def table(self, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> tuple[Tensor, Tensor]:
        """T [6, M, F], and the largest change of u over a cell (by its slope at the nodes)."""
        return _Table.apply(a1, b1, a2, b2, *self.parts)

    def convolve(self, x: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
        """Σ_j x_j ⊙ W_ij by the kernels, [N, F] float32 -> [N, F].

        Where a table is too coarse or does not pay, without one.
        """
        i, j = self.pairs.i, self.pairs.j
        if self.pays:
            # slopes need more digits than bfloat16 has
            with torch.autocast(x.device.type, enabled=False):
                table, steepest = self.table(a1, b1, a2, b2)
                if float(steepest) <= STEEPEST:
                    return interpolated(x.to(table.dtype), self.weight, table, self.cell, i, j)
        return filtered(x, self.radial, a1, b1, a2, b2, i, j)


def ends(
    a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor, e: Tensor, e1: Tensor, e2: Tensor
) -> tuple[Tensor, Tensor]:
    """y, h y', h² y'' at the nodes [3, M + 1, F], and h u'.

    ``e``, ``e1``, ``e2`` as in `Grid.parts`.
    """
    u, u1, u2 = linear(e, a1, b1), linear(e1, a1), linear(e2, a1)
    sigma = torch.sigmoid(u)
    s2 = sigma * ((1 - sigma) * u1.square() + u2)
    y = linear(torch.stack([shifted_softplus(u), sigma * u1, s2]), a2)
    zero = torch.zeros_like(b2)
    return y + torch.stack([b2, zero, zero])[:, None], u1


def coefficients(y: Tensor) -> Tensor:
    """T [6, M, F] of the polynomials with `ends` y [3, M + 1, F]."""
    both_ends = torch.cat([y[:, :-1], y[:, 1:]])  # [6, M, F]
    return (y.new_tensor(HERMITE).T @ both_ends.flatten(1)).view_as(both_ends)


class _Table(torch.autograd.Function):
    """T, from the weights.

    Forward in float64 because its coefficients are small differences, backward in the weights' own
    type.
    """

    @staticmethod
    def forward(ctx, a1, b1, a2, b2, e, e1, e2):
        ctx.save_for_backward(a1, b1, a2, b2, e, e1, e2)
        y, u1 = ends(*(w.double() for w in (a1, b1, a2, b2)), e, e1, e2)
        steepest = u1.abs().max()
        ctx.mark_non_differentiable(steepest)
        return coefficients(y).to(a1.dtype), steepest

    @staticmethod
    def backward(ctx, grad, _):
        weights, parts = ctx.saved_tensors[:4], [e.to(grad.dtype) for e in ctx.saved_tensors[4:]]
        with torch.autocast(grad.device.type, enabled=False):
            if not torch.is_grad_enabled():
                return *_table_backward(grad, weights, parts), None, None, None

            def plain(*weights):
                return (coefficients(ends(*weights, *parts)[0]),)

            grads = through_plain(plain, weights, wanted_inputs(ctx)[:4], (grad,))
            return *grads, None, None, None


def _table_backward(
    grad: Tensor, weights: tuple[Tensor, ...], parts: list[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients of the weights for that of T: `ends` and `coefficients` backwards."""
    (a1, b1, a2, _), (e, e1, e2) = weights, parts
    u, u1, u2 = linear(e, a1, b1), e1 @ a1.T, e2 @ a1.T
    sigma = torch.sigmoid(u)
    bend = sigma * (1 - sigma)
    s = torch.stack([shifted_softplus(u), sigma * u1, bend * u1.square() + sigma * u2])
    d_ends = (grad.new_tensor(HERMITE) @ grad.flatten(1)).view_as(grad)
    dy = torch.zeros_like(s)
    dy[:, :-1] += d_ends[:3]
    dy[:, 1:] += d_ends[3:]
    ds, ds1, ds2 = dy @ a2
    du = ds * sigma + bend * (ds1 * u1 + ds2 * (u2 + (1 - 2 * sigma) * u1.square()))
    da1 = du.T @ e + (ds1 * sigma + 2 * ds2 * bend * u1).T @ e1 + (ds2 * sigma).T @ e2
    return da1, du.sum(0), dy.flatten(0, 1).T @ s.flatten(0, 1), dy[0].sum(0)


def interpolated(
    x: Tensor, weight: Tensor, table: Tensor, cell: Tensor, i: Tensor, j: Tensor
) -> Tensor:
    """c_i = Σ_j x_j ⊙ Σ_m C_pm T_mn over pairs p = (i, j), and the same for j.

    x [N, F], C [P, 6], T [6, M, F], cell n [P] -> [N, F]
    """
    return _Interpolated.apply(x, weight, table, cell, i, j)


class _Interpolated(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, table, cell, i, j):
        x, weight, table = x.contiguous(), weight.contiguous(), table.contiguous()
        ctx.save_for_backward(x, weight, table, cell, i, j)
        return torch.ops.potkit.table_forward(x, weight, table, cell, i, j)

    @staticmethod
    def backward(ctx, g):
        *floats, cell, i, j = ctx.saved_tensors
        wanted = wanted_inputs(ctx)[:3]
        if torch.is_grad_enabled() and wanted[2]:

            def formulas(x, weight, table):
                return (convolve(x, (weight.T[:, :, None] * table[:, cell]).sum(0), i, j),)

            return *through_plain(formulas, floats, wanted, (g,)), None, None, None
        if torch.is_grad_enabled():
            grads = *_Slopes.apply(g, *floats, cell, i, j), None
        else:
            grads = torch.ops.potkit.table_backward(
                g.contiguous(), *floats, cell, i, j, *wanted[1:]
            )
        kept = [grad if asked else None for grad, asked in zip(grads, wanted, strict=True)]
        return *kept, None, None, None


class _Slopes(torch.autograd.Function):
    """Gradients of x and C: dx = convolve(g, W), dC_m = Σ_F outer(g, x) ⊙ T_m."""

    @staticmethod
    def forward(ctx, g, x, weight, table, cell, i, j):
        g = g.contiguous()
        ctx.save_for_backward(g, x, weight, table, cell, i, j)
        return torch.ops.potkit.table_backward(g, x, weight, table, cell, i, j, True, False)[:2]

    @staticmethod
    def backward(ctx, up, rate):
        *floats, cell, i, j = ctx.saved_tensors
        wanted = wanted_inputs(ctx)[:4]
        if torch.is_grad_enabled():

            def formulas(g, x, weight, table):
                filters = (weight.T[:, :, None] * table[:, cell]).sum(0)
                return convolve(g, filters, i, j), (outer(g, x, i, j) * table[:, cell]).sum(2).T

            return *through_plain(formulas, floats, wanted, (up, rate)), None, None, None
        grads = torch.ops.potkit.table_again(
            up.contiguous(), rate.contiguous(), *floats, cell, i, j, wanted[2]
        )
        kept = [grad if asked else None for grad, asked in zip(grads, wanted, strict=True)]
        return *kept, None, None, None
