"""SchNet over pairs: filters and their slopes, once for each pair {i, j} instead of each edge.

A filter W(d) is the same for i → j and j → i, so half the edges will do. Training on −∂E/∂x also
needs W'(d) and, backward, W''(d). Through automatic differentiation the filter network is gone
through three times, an operation at a time. Here W and V = dW/dd come out of one pass over the
pairs in blocks that stay in the cache (with e(d) the radial basis, f(d) the envelope, ssp the
activation, A₁, a₁ = filter_in and A₂, a₂ = filter_out of models/schnet.py):

    u = A₁ e + a₁,    s = ssp(u),       y = A₂ s + a₂,    W = f y
    u' = A₁ e',       s' = σ(u) u',     y' = A₂ s',       V = f' y + f y'

The derivative of W by d is V, so forces cost no further product; `filters` links the two, exactly
and up to second derivatives. Any higher ones, and derivatives taken with ``create_graph`` by
weights, go through the same formulas in ordinary operations.

`convolve` and `outer` are the two sums over pairs; each is the derivative of the other, so they can
be differentiated without end:
    convolve(x, W)_i = Σ_j x_j ⊙ W_ij       outer(a, x)_ij = a_i ⊙ x_j + a_j ⊙ x_i
"""

from __future__ import annotations

import functools
import math
import threading
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, softplus

from ..models.graph import Graph
from ..models.layers import shifted_softplus
from ..models.schnet import Interaction, SchNet
from .autograd import low_precision, through_plain, wanted_inputs

BLOCK = 1024  # pairs; × 2 × 256 channels × 4 bytes is 2 MB an array


class Pairs(NamedTuple):
    """Each pair once: atoms i and j [P], and its distance [P] Å."""

    i: Tensor
    j: Tensor
    distance: Tensor


def interactions(network: SchNet, h: Tensor, graph: Graph) -> Tensor:  # [N, F] -> [N, F]
    """`SchNet.interactions` of models/schnet.py, for a graph that `is_paired`."""
    pairs = pairs_of(graph)
    envelope = functools.partial(network.envelope, cutoff=network.cutoff)
    slopes = pairs.distance.requires_grad
    radial = Radial(pairs.distance, network.basis, envelope, slopes)
    for layer in network.layers:
        weight = filters(radial, *filter_weights(layer))
        x = layer.project(h).to(weight.dtype)
        h = h + layer.update(convolve(x, weight, pairs.i, pairs.j))
    return h


def filter_weights(layer: Interaction) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A₁ [F, K], a₁ [F], A₂ [F, F], a₂ [F] of an interaction block."""
    first, second = layer.filter_in, layer.filter_out
    return first.weight, first.bias, second.weight, second.bias


# -- pairs
def is_paired(graph: Graph) -> bool:
    """Whether every edge has its reverse, and an atom's edges to its own images theirs."""
    if not is_symmetric(graph.sender, graph.receiver):
        return False
    if graph.shift is None:
        return True
    own = graph.sender == graph.receiver  # the checksum does not see those
    return bool(2 * (own & _ahead(graph.vector)).sum() == own.sum())


def is_symmetric(sender: Tensor, receiver: Tensor) -> bool:
    """Whether every edge between two atoms has its reverse, told by a checksum.

    It is wrong with probability 2⁻⁶⁴ on lists that were not made to fool it.
    """
    a = sender * 0x5851F42D4C957F2D + 0x14057B7EF767814F
    b = receiver * 0x5851F42D4C957F2D + 0x14057B7EF767814F
    forth = (a ^ (a >> 29)) * (b ^ (b >> 31)) * (a + 3 * b)
    back = (b ^ (b >> 29)) * (a ^ (a >> 31)) * (b + 3 * a)
    return int((forth - back).sum()) == 0


def pairs_of(graph: Graph) -> Pairs:
    """One edge of each pair of a graph that `is_paired`.

    Of an atom and its own images, those on one side.
    """
    sender, receiver = graph.sender, graph.receiver
    one_way = sender < receiver
    if graph.shift is not None:
        one_way = one_way | ((sender == receiver) & _ahead(graph.vector))
    rows = torch.nonzero(one_way).flatten()
    return Pairs(receiver[rows], sender[rows], graph.distance[rows])


def _ahead(vector: Tensor) -> Tensor:
    """Of a vector and its opposite, true for one: [E, 3] -> [E]."""
    x, y, z = vector.detach().unbind(1)
    return (x > 0) | ((x == 0) & ((y > 0) | ((y == 0) & (z > 0))))


# -- sums over pairs
def convolve(x: Tensor, weight: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """Σ_j x_j ⊙ W_ij for all atoms: x [N, F], weight [P, F] -> [N, F]."""
    return _Convolve.apply(x, weight, i, j)


def outer(a: Tensor, x: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """a_i ⊙ x_j + a_j ⊙ x_i: [N, F], [N, F] -> [P, F]."""
    return _Outer.apply(a, x, i, j)


class _Convolve(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, i, j):
        ctx.save_for_backward(x, weight, i, j)
        total, room = torch.zeros_like(x), x.new_empty(BLOCK, x.shape[1])
        for start in range(0, len(i), BLOCK):
            here = slice(start, start + BLOCK)
            left, right, part = i[here], j[here], weight[here]
            message = room[: len(left)]
            total.index_add_(0, left, torch.index_select(x, 0, right, out=message).mul_(part))
            total.index_add_(0, right, torch.index_select(x, 0, left, out=message).mul_(part))
        return total

    @staticmethod
    def backward(ctx, grad):
        x, weight, i, j = ctx.saved_tensors
        wanted = wanted_inputs(ctx)
        return (
            convolve(grad, weight, i, j) if wanted[0] else None,
            outer(grad, x, i, j) if wanted[1] else None,
            None,
            None,
        )


class _Outer(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, x, i, j):
        ctx.save_for_backward(a, x, i, j)
        out = a.new_empty(len(i), a.shape[1])
        rooms = [a.new_empty(BLOCK, a.shape[1]) for _ in range(2)]
        for start in range(0, len(i), BLOCK):
            here = slice(start, start + BLOCK)
            left, right = i[here], j[here]
            one, other = (room[: len(left)] for room in rooms)
            torch.index_select(a, 0, left, out=one)
            torch.mul(one, torch.index_select(x, 0, right, out=other), out=out[here])
            torch.index_select(a, 0, right, out=one)
            out[here].addcmul_(one, torch.index_select(x, 0, left, out=other))
        return out

    @staticmethod
    def backward(ctx, grad):
        a, x, i, j = ctx.saved_tensors
        wanted = wanted_inputs(ctx)
        return (
            convolve(x, grad, i, j) if wanted[0] else None,
            convolve(a, grad, i, j) if wanted[1] else None,
            None,
            None,
        )


# -- filters
Shape = Callable[[Tensor], Tensor]  # of distances [P]


class Radial:
    """The radial basis e and the envelope f at the distances of all pairs, with their slopes.

    Made once per step for all layers. ``basis`` and ``envelope`` are the functions; ``slopes`` says
    whether derivatives by the distance will be wanted.
    """

    def __init__(self, distance: Tensor, basis: Shape, envelope: Shape, slopes: bool) -> None:
        self.distance, self.basis, self.envelope, self.slopes = distance, basis, envelope, slopes
        with torch.no_grad():
            d = distance.detach()
            parts, f = self.shapes(d, 2 if slopes else 1)
            self.parts = torch.stack(parts, 1)  # [P, 1 or 2, K]
            self.f = [x[:, None] for x in f]  # each [P, 1]

    def shapes(self, d: Tensor, order: int) -> tuple[list[Tensor], list[Tensor]]:
        """e, e', … and f, f', …: ``order`` of each, [P, K] and [P].

        Differentiable where gradients are recorded.
        """
        e, f = [self.basis], [self.envelope]
        for _ in range(order - 1):
            e.append(slope_of(e[-1]))
            f.append(slope_of(f[-1]))
        return [function(d) for function in e], [function(d) for function in f]


_forward = threading.RLock()  # slopes of slopes nest


def slope_of(function: Shape) -> Shape:
    """The derivative, by forward differentiation, of a function of each distance by itself."""

    def slope(d: Tensor) -> Tensor:
        # forward differentiation counts its levels for the whole process, not for each thread
        with _forward:
            return torch.func.jvp(function, (d,), (torch.ones_like(d),))[1]

    return slope


def filters(radial: Radial, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor) -> Tensor:
    """W [P, F] of the filter network with weights a1 [F, K], b1 [F], a2 [F, F], b2 [F].

    Differentiable by them and the distances.
    """
    device = radial.parts.device.type
    low = low_precision(device, radial.parts.dtype)
    with torch.autocast(device, enabled=False):
        return _Filters.apply(radial.distance, a1, b1, a2, b2, radial, low)[0]


def plain_outputs(
    radial: Radial, d: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor, slopes: bool
) -> tuple[list[Tensor], list[Tensor]]:
    """y and f, with ``slopes`` also y' and f', in ordinary operations: each [P, F] and [P, 1]."""
    e, f = radial.shapes(d, 2 if slopes else 1)
    u = linear(e[0], a1, b1)
    y = [linear(shifted_softplus(u), a2, b2)]
    if slopes:
        y.append(linear(torch.sigmoid(u) * linear(e[1], a1), a2))
    return y, [x[:, None] for x in f]


def plain_filters(
    radial: Radial, d: Tensor, a1: Tensor, b1: Tensor, a2: Tensor, b2: Tensor, slopes: bool
) -> tuple[Tensor, Tensor | None]:
    """W and V (None without ``slopes``) in ordinary operations."""
    y, f = plain_outputs(radial, d, a1, b1, a2, b2, slopes)
    return f[0] * y[0], f[1] * y[0] + f[0] * y[1] if slopes else None


class _Filters(torch.autograd.Function):
    @staticmethod
    def forward(ctx, distance, a1, b1, a2, b2, radial, low):
        n, order, _ = radial.parts.shape
        width = a2.shape[0]
        weight = a2.new_empty(n, width)
        slope = a2.new_empty(n, width) if order == 2 else None
        rooms = _Rooms(a1, a2, low, order)
        for start in range(0, n, BLOCK):
            here = slice(start, min(start + BLOCK, n))
            _, s, _ = rooms.inner(radial.parts[here], a1, b1)
            y = rooms.product(s)
            y[:, 0].add_(b2)
            f = [x[here] for x in radial.f]
            torch.mul(y[:, 0], f[0], out=weight[here])
            if order == 2:
                torch.mul(y[:, 0], f[1], out=slope[here])
                slope[here].addcmul_(y[:, 1], f[0])
        ctx.radial, ctx.low = radial, low
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(distance, a1, b1, a2, b2, slope)
        return weight, slope

    @staticmethod
    def backward(ctx, d_weight, d_slope):
        distance, a1, b1, a2, b2, slope = ctx.saved_tensors
        radial = ctx.radial
        wanted = wanted_inputs(ctx)
        if d_weight is None and d_slope is None:
            return (None,) * 7
        if torch.is_grad_enabled() and (d_slope is not None or any(wanted[1:5])):
            plain = functools.partial(plain_filters, radial, slopes=d_slope is not None)
            inputs = distance, a1, b1, a2, b2
            grads = d_weight, d_slope
            return *through_plain(plain, inputs, wanted[:5], grads), None, None
        by_distance = (d_weight * slope).sum(1) if wanted[0] and d_weight is not None else None
        if not any(wanted[1:5]) and d_slope is None:
            return by_distance, None, None, None, None, None, None
        second, da1, db1, da2, db2 = _backward(
            radial, ctx.low, a1, b1, a2, b2, d_weight, d_slope, wanted[0]
        )
        if second is not None:
            by_distance = second if by_distance is None else by_distance + second
        return by_distance, da1, db1, da2, db2, None, None


class _Rooms:
    """Arrays for one block, used again for every block.

    Rows of a value and its slope lie next to each other.
    """

    def __init__(self, a1: Tensor, a2: Tensor, low: torch.dtype, order: int, n: int = 3) -> None:
        self.order, self.same = order, low == a1.dtype
        self.full = [a1.new_empty(BLOCK, order, a2.shape[0]) for _ in range(n)]
        self.low = [a1.new_empty(BLOCK, order, a2.shape[0], dtype=low) for _ in range(3)]
        self.a2, self.a2t = a2.to(low), a2.to(low).T

    def inner(self, parts: Tensor, a1: Tensor, b1: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """u and s (with u', s' behind them) of a block, and an array whose first rows are σ(u)."""
        u, s, spare = (room[: len(parts)] for room in self.full[:3])
        torch.mm(parts.flatten(0, 1), a1.T, out=u.flatten(0, 1))
        u[:, 0].add_(b1)
        torch.sigmoid(u[:, 0], out=spare[:, 0])
        s[:, 0].copy_(softplus(u[:, 0])).sub_(math.log(2.0))
        if self.order == 2:
            torch.mul(u[:, 1], spare[:, 0], out=s[:, 1])
        return u, s, spare

    def product(self, s: Tensor) -> Tensor:
        """A₂ s for values and slopes in one product."""
        size = len(s)
        given = s if self.same else self.low[0][:size].copy_(s)
        out = self.low[1][:size]
        torch.mm(given.flatten(0, 1), self.a2t, out=out.flatten(0, 1))
        return out if self.same else self.full[0][:size].copy_(out)


def _backward(radial, low, a1, b1, a2, b2, d_weight, d_slope, by_distance):
    """For the gradients of W and V those of the weights, and of the distances through V."""
    n, order, _ = radial.parts.shape
    if d_slope is None:
        order = 1
    same = low == a1.dtype
    da1, db1, da2, db2 = (torch.zeros_like(w) for w in (a1, b1, a2, b2))
    curvature = None
    second = a2.new_empty(n) if by_distance and order == 2 else None
    if second is not None:
        e2, f2 = radial.shapes(radial.distance.detach(), 3)
        curvature = e2[2], f2[2][:, None]
    rooms = _Rooms(a1, a2, low, order, 4)
    ones = a1.new_ones(BLOCK)
    for start in range(0, n, BLOCK):
        here = slice(start, min(start + BLOCK, n))
        size = here.stop - start
        parts, f = radial.parts[here, :order], [x[here] for x in radial.f]
        if not parts.is_contiguous():
            parts = parts.contiguous()
        u, s, sigma = rooms.inner(parts, a1, b1)
        sigma = sigma[:, 0]
        # dy = f dW + f' dV, dy' = f dV
        dy = rooms.full[3][:size]
        if d_weight is not None:
            torch.mul(d_weight[here], f[0], out=dy[:, 0])
        else:
            dy[:, 0].zero_()
        if order == 2:
            torch.mul(d_slope[here], f[0], out=dy[:, 1])
            dy[:, 0].addcmul_(d_slope[here], f[1])
        db2.addmv_(dy[:, 0].T, ones[:size])
        if same:
            dy_l = dy
            da2.addmm_(dy.flatten(0, 1).T, s.flatten(0, 1))
        else:
            dy_l = rooms.low[0][:size].copy_(dy)
            s_l = rooms.low[1][:size].copy_(s)
            da2 += torch.mm(dy_l.flatten(0, 1).T, s_l.flatten(0, 1))
        ds = rooms.low[2][:size]
        torch.mm(dy_l.flatten(0, 1), rooms.a2, out=ds.flatten(0, 1))
        if not same:
            ds = dy.copy_(ds)
        # s = ssp(u), s' = σ u'
        du = s  # no longer needed, unless for the curvature
        if order == 2:
            slope_grad = ds[:, 1]
            if second is not None:
                second[here] = _by_curvature(
                    d_slope[here], a2, b2, f, curvature, here, s, sigma, u, a1, slope_grad
                )
            bend = sigma * (1 - sigma)
            torch.mul(ds[:, 0], sigma, out=du[:, 0])
            du[:, 0].add_(bend.mul_(u[:, 1]).mul_(slope_grad))
            torch.mul(slope_grad, sigma, out=du[:, 1])
        else:
            torch.mul(ds[:, 0], sigma, out=du[:, 0])
        db1.addmv_(du[:, 0].T, ones[:size])
        da1.addmm_(du.flatten(0, 1).T, parts.flatten(0, 1))
    return second, da1, db1, da2, db2


def _by_curvature(d_slope, a2, b2, f, curvature, here, s, sigma, u, a1, slope_grad) -> Tensor:
    """Σ dV (f'' y + 2 f' y' + f y'') of a block; dV A₂ is the only product made for it alone."""
    e2, f2 = curvature
    through = d_slope @ a2
    y = (through * s[:, 0]).sum(1) + d_slope @ b2
    slope = (through * s[:, 1]).sum(1)
    bent = sigma * (1 - sigma) * u[:, 1].square() + sigma * (e2[here] @ a1.T)
    return f2[here][:, 0] * y + 2 * f[1][:, 0] * slope + (slope_grad * bent).sum(1)
