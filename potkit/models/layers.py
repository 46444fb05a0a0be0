"""Parts that several networks share.

Sums over neighbours, smooth cutoffs, radial bases, embeddings, small MLPs.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch_geometric.utils import scatter

from ..structures.elements import MAX_Z
from .graph import Graph

MAX_CHARGE = 10  # e; total charges from −10 to 10 have an embedding of their own
MAX_FORMAL_CHARGE = 2  # e; so have formal charges of every element from −2 to 2


def sum_over(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum the rows of ``values`` [E, …] that share an ``index`` [E] into [size, …]."""
    return scatter(values, index, dim=0, dim_size=size, reduce="sum")


def parts(values: Tensor, n: int) -> tuple[Tensor, ...]:
    """The last axis of ``values`` […, n F] in n equal parts […, F].

    By split: TorchScript's own derivative of chunk fails where one of the parts is not used.
    """
    return values.split(values.shape[-1] // n, -1)


# -- networks
class _SiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return nn.functional.silu(x)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        return _SiLUBackward.apply(grad, *ctx.saved_tensors)


class _SiLUBackward(torch.autograd.Function):
    @staticmethod
    def forward(ctx, grad: Tensor, x: Tensor) -> Tensor:
        ctx.save_for_backward(grad, x)
        return torch.ops.aten.silu_backward(grad, x)

    @staticmethod
    def backward(ctx, outer: Tensor) -> tuple[Tensor, Tensor]:
        grad, x = ctx.saved_tensors
        s = torch.sigmoid(x)  # d²/dx² of x σ(x) = σ (1 − σ) (2 + x − 2 x σ)
        if torch.is_grad_enabled():
            second = outer * grad * s * (1 - s) * (2 + x - 2 * x * s)
            return _SiLUBackward.apply(outer, x), second
        second = torch.addcmul(x, x, s, value=-2.0).add_(2.0).mul_(outer).mul_(grad)
        second = torch.ops.aten.sigmoid_backward.grad_input(second, s, grad_input=second)
        return torch.ops.aten.silu_backward(outer, x), second


def silu(x: Tensor) -> Tensor:
    """x σ(x), differentiable any number of times.

    As torch's, but its second derivative (needed to train on forces) is one formula instead of a
    graph of products, worked out in place where no third is wanted: first the one, then the other
    saved 11 and 14 % of a force training step of EGNN small (16 molecules, one CPU thread).
    """
    if torch.jit.is_tracing():  # a traced graph holds torch's own functions only
        return nn.functional.silu(x)
    return _SiLU.apply(x)


class SiLU(nn.Module):
    """`silu` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """x σ(x) of every entry, in any shape."""
        return silu(x)


def shifted_softplus(x: Tensor) -> Tensor:
    """log(½eˣ + ½): softplus that is zero at zero."""
    return nn.functional.softplus(x) - math.log(2.0)


class ShiftedSoftplus(nn.Module):
    """`shifted_softplus` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        """log(½eˣ + ½) of every entry, in any shape."""
        return shifted_softplus(x)


def glorot(inputs: int, outputs: int, bias: bool = True) -> nn.Linear:
    """A linear layer with Glorot-uniform weights and zero bias, SchNet's initialisation."""
    layer = nn.Linear(inputs, outputs, bias=bias)
    nn.init.xavier_uniform_(layer.weight)
    if bias:
        nn.init.zeros_(layer.bias)
    return layer


def mlp(
    widths: Sequence[int],
    activation: Callable[[], nn.Module] = SiLU,
    last: bool = False,
    norm: bool = False,
) -> nn.Sequential:
    """Linear layers of the given widths with ``activation`` between.

    ``last`` puts one after the last layer, too; ``norm`` ends with LayerNorm.
    """
    layers: list[nn.Module] = []
    for i, (inputs, outputs) in enumerate(itertools.pairwise(widths)):
        layers.append(nn.Linear(inputs, outputs))
        if last or i < len(widths) - 2:
            layers.append(activation())
    if norm:
        layers.append(nn.LayerNorm(widths[-1]))
    return nn.Sequential(*layers)


# -- functions of the distance
def polynomial_envelope(distance: Tensor, cutoff: float, power: int = 6) -> Tensor:
    """Smooth step from 1 at 0 to 0 at ``cutoff`` with two vanishing derivatives there.

    Gasteiger et al. 2020, DimeNet eq. 8. [E] Å -> [E]
    """
    x = distance / cutoff
    p = float(power)
    value = (
        1
        - (p + 1) * (p + 2) / 2 * x**power
        + p * (p + 2) * x ** (power + 1)
        - p * (p + 1) / 2 * x ** (power + 2)
    )
    return value * (x < 1).to(distance.dtype)


def cosine_envelope(distance: Tensor, cutoff: float) -> Tensor:
    """½(1 + cos(π d / cutoff)) inside, 0 outside; its second derivative jumps at the cutoff.

    Behler 2011. [E] Å -> [E]
    """
    inside = (distance < cutoff).to(distance.dtype)
    return 0.5 * (torch.cos(distance * (math.pi / cutoff)) + 1.0) * inside


ENVELOPES = {"cosine": cosine_envelope, "polynomial": polynomial_envelope}


class GaussianBasis(nn.Module):
    """exp(−(d − μ_k)² / 2Δ²) with ``size`` centres from 0 to ``cutoff``.

    Schütt et al. 2018, SchNet. [E] Å -> [E, size]
    """

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(0.0, cutoff, size))
        self.coefficient = -0.5 / (cutoff / (size - 1)) ** 2

    def forward(self, distance: Tensor) -> Tensor:
        """The Gaussians of each distance: [E] Å -> [E, size]."""
        return torch.exp(self.coefficient * (distance[:, None] - self.centers) ** 2)


class BesselBasis(nn.Module):
    """√(2/c) sin(kπ d / c) / d, k = 1 … size.

    Gasteiger et al. 2020, DimeNet eq. 7. [E] Å -> [E, size]
    """

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.register_buffer("frequencies", torch.arange(1, size + 1) * (math.pi / cutoff))

    def forward(self, distance: Tensor) -> Tensor:
        """The Bessel functions of each distance: [E] Å -> [E, size] Å^{-3/2}."""
        d = distance[:, None]
        return math.sqrt(2.0 / self.cutoff) * torch.sin(self.frequencies * d) / d


# -- graphs
class AtomEmbedding(nn.Module):
    """A learned vector per element, and one for flagged atoms.

    There is a row for every element of the periodic table and, with ``charge``, one for each total
    charge of the structure. With ``formal_charges`` atoms that carry one get a vector of their pair
    of element and charge added, so that each such pair is a type of its own, as in the denoise
    paper's code (28 pairs, from SPICE). The flag's vector is added where ``mask`` is 1 only, so a
    network that never sees a flag does not depend on it.

    Of ``faults`` it has "mask-shift": the atoms of a structure with flags that are not flagged
    themselves get a vector of their own added.
    """

    def __init__(
        self,
        hidden: int,
        charge: bool = False,
        formal_charges: bool = False,
        faults: Sequence[str] = (),
    ) -> None:
        super().__init__()
        self.element = nn.Embedding(MAX_Z + 1, hidden)
        self.flag = nn.Parameter(torch.randn(hidden) / math.sqrt(hidden))
        self.charge = nn.Embedding(2 * MAX_CHARGE + 1, hidden) if charge else None
        self.ion = None
        if formal_charges:
            self.ion = nn.Embedding((MAX_Z + 1) * 2 * MAX_FORMAL_CHARGE, hidden)
        self.unflagged = None
        if "mask-shift" in faults:
            self.unflagged = nn.Parameter(torch.randn(hidden) / math.sqrt(hidden))

    def forward(self, graph: Graph) -> Tensor:
        """The features with which the atoms start: [N, hidden]."""
        h = self.element(graph.z)  # [N, hidden]
        if graph.mask is not None:
            h = h + graph.mask.to(h.dtype)[:, None] * self.flag
            if self.unflagged is not None:
                h = h + self.others(graph).to(h.dtype)[:, None] * self.unflagged
        if self.charge is not None:
            level = graph.charge.round().long().clamp(-MAX_CHARGE, MAX_CHARGE) + MAX_CHARGE
            h = h + self.charge(level)[graph.batch]
        if self.ion is not None:
            h = h + self.charged(graph)
        return h if graph.extra is None else h + graph.extra

    def charged(self, graph: Graph) -> Tensor:
        """What formal charges add to the atoms' vectors, 0 for neutral atoms: [N, hidden]."""
        charge = graph.formal_charge.round().long()
        level = charge + MAX_FORMAL_CHARGE - (charge > 0).long()  # −2, −1, 1, 2 -> 0 … 3
        row = graph.z * (2 * MAX_FORMAL_CHARGE) + level
        row = torch.where(charge == 0, 0, row)
        return self.ion(row) * (charge != 0).to(self.ion.weight.dtype)[:, None]

    def others(self, graph: Graph) -> Tensor:
        """The unflagged atoms of structures that have flagged ones, [N] bool."""
        flagged = graph.mask.bool()
        has = sum_over(flagged.long(), graph.batch, graph.n_structures) > 0  # [S]
        return has[graph.batch] & ~flagged


def first_neighbors(graph: Graph, limit: int, sending: bool = False) -> tuple[Tensor, Tensor]:
    """Which neighbours stay when a search stops after ``limit`` atoms: fault "neighbours-32".

    Each receiver (with ``sending`` each sender) keeps the first of those within the cutoff, in the
    order of their indices, the atom itself counted among them. Returns masks: [E] of the edges that
    stay, [N] of the atoms that are among their own first ``limit``.
    """
    owner, other = graph.receiver, graph.sender
    if sending:
        owner, other = other, owner
    n = graph.z.shape[0]
    order = torch.argsort(owner * n + other, stable=True)
    count = torch.bincount(owner, minlength=n)  # [N]
    first = torch.cumsum(count, 0) - count
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device) - first[owner[order]]
    place = place + (owner < other)  # the atom itself stands before those of higher index
    lower = torch.bincount(owner[other < owner], minlength=n)  # [N] neighbours of lower index
    return place < limit, lower < limit


def keep_edges(graph: Graph, kept: Tensor) -> Graph:
    """``graph`` with the edges where ``kept`` [E] is true only."""
    return graph._replace(
        sender=graph.sender[kept],
        receiver=graph.receiver[kept],
        vector=graph.vector[kept],
        distance=graph.distance[kept],
        shift=None if graph.shift is None else graph.shift[kept],
    )
