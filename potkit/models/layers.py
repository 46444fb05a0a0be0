"""Parts that several networks share: sums over neighbours, smooth cutoffs, radial bases,
embeddings, small MLPs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch_geometric.utils import scatter

from ..structures.elements import MAX_Z

MAX_CHARGE = 10  # e; total charges from −10 to 10 have an embedding of their own


def sum_over(values: Tensor, index: Tensor, size: int) -> Tensor:
    """Sum the rows of ``values`` [E, …] that share an ``index`` [E] into [size, …]."""
    return scatter(values, index, dim=0, dim_size=size, reduce="sum")


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
            return _SiLUBackward.apply(outer, x), outer * grad * s * (1 - s) * (2 + x - 2 * x * s)
        second = torch.addcmul(x, x, s, value=-2.0).add_(2.0).mul_(outer).mul_(grad)
        return torch.ops.aten.silu_backward(outer, x), torch.ops.aten.sigmoid_backward.grad_input(
            second, s, grad_input=second
        )


def silu(x: Tensor) -> Tensor:
    """x σ(x). As torch's, but its second derivative (needed to train on forces) is one formula
    instead of a graph of products, worked out in place where no third is wanted: first the one,
    then the other saved 11 and 14 % of a force training step of EGNN small (16 molecules, one CPU
    thread). Differentiable any number of times.
    """
    return _SiLU.apply(x)


class SiLU(nn.Module):
    """`silu` as a module."""

    def forward(self, x: Tensor) -> Tensor:
        return silu(x)


def mlp(
    widths: Sequence[int],
    activation: Callable[[], nn.Module] = SiLU,
    last: bool = False,
    norm: bool = False,
) -> nn.Sequential:
    """Linear layers of the given widths with ``activation`` between (and after, if ``last``);
    ``norm`` ends with LayerNorm.
    """
    layers: list[nn.Module] = []
    for i, (a, b) in enumerate(zip(widths[:-1], widths[1:])):
        layers.append(nn.Linear(a, b))
        if last or i < len(widths) - 2:
            layers.append(activation())
    if norm:
        layers.append(nn.LayerNorm(widths[-1]))
    return nn.Sequential(*layers)


def polynomial_envelope(distance: Tensor, cutoff: float, power: int = 6) -> Tensor:
    """Smooth step from 1 at 0 to 0 at ``cutoff`` with two vanishing derivatives there (Gasteiger
    et al. 2020, DimeNet eq. 8).
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
    """½(1 + cos(π d / cutoff)) inside, 0 outside (Behler 2011); its second derivative jumps at
    the cutoff.
    """
    return (
        0.5
        * (torch.cos(distance * (math.pi / cutoff)) + 1.0)
        * (distance < cutoff).to(distance.dtype)
    )


def first_neighbors(receiver: Tensor, limit: int, size: int) -> Tensor:
    """Which edges stay when every atom keeps its first ``limit`` neighbours only: a mask [E] for
    ``receiver`` [E], rising.

    No network should do this; it is what the denoise paper's code did, kept for `faithful` options.
    """
    count = torch.bincount(receiver, minlength=size)
    start = torch.cumsum(count, 0) - count
    return torch.arange(len(receiver), device=receiver.device) - start[receiver] < limit


def in_blocks(like: Tensor, twice: bool) -> bool:
    """Whether work on edges is to go through them in blocks that stay in the cache, or an operation
    at a time over all of them.

    The latter on a GPU, whose caches are small and whose launches are slow; under torch.compile,
    which fuses operations itself; and where ``twice`` says that derivatives of derivatives will be
    wanted: blocks keep too little for them and would be computed again.
    """
    return like.device.type == "cpu" and not twice and not torch.compiler.is_compiling()


def wanted_inputs(ctx) -> list[bool]:
    """Which inputs' gradients a backward pass of an autograd function really uses; torch's own list
    says yes to all that could ever be.

    For functions whose tensor inputs come first and are never None; other inputs after them are
    left out of the list.
    """
    known = getattr(torch._C, "_will_engine_execute_node", None)
    if known is None:
        return list(ctx.needs_input_grad)

    def used(node) -> bool:
        try:
            return node is None or known(node)
        except RuntimeError:  # not told for a leaf that autograd.grad was asked for: then it is
            return True

    return [
        need and used(node) for need, (node, _) in zip(ctx.needs_input_grad, ctx.next_functions)
    ]


def through_plain(
    function: Callable[..., Sequence[Tensor | None]],
    inputs: Sequence[Tensor | None],
    wanted: Sequence[bool],
    grads: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The backward pass of ``function`` in differentiable operations: for autograd functions whose
    own is not differentiable.

    ``grads`` belong to the outputs (None: not used). Inputs may depend on each other; each gets its
    own part only.
    """
    aliases = [None if x is None else x.view_as(x) for x in inputs]
    outputs = [(o, g) for o, g in zip(function(*aliases), grads) if o is not None and g is not None]
    asked = [a for a, w in zip(aliases, wanted) if w]
    found = iter(
        torch.autograd.grad(
            [o for o, _ in outputs],
            asked,
            [g for _, g in outputs],
            create_graph=True,
            allow_unused=True,
        )
    )
    return [next(found) if w else None for w in wanted]


class GaussianBasis(nn.Module):
    """exp(−(d − μ_k)² / 2Δ²) with ``size`` centres from 0 to ``cutoff`` (Schütt et al. 2018,
    SchNet). [E] Å -> [E, size].
    """

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.register_buffer("centers", torch.linspace(0.0, cutoff, size))
        self.coefficient = -0.5 / (cutoff / (size - 1)) ** 2

    def forward(self, distance: Tensor) -> Tensor:
        return torch.exp(self.coefficient * (distance[:, None] - self.centers) ** 2)


class BesselBasis(nn.Module):
    """√(2/c) sin(kπ d / c) / d, k = 1 … size (Gasteiger et al. 2020, DimeNet eq. 7). [E] Å ->
    [E, size].
    """

    def __init__(self, size: int, cutoff: float) -> None:
        super().__init__()
        self.cutoff = cutoff
        self.register_buffer("frequencies", torch.arange(1, size + 1) * (math.pi / cutoff))

    def forward(self, distance: Tensor) -> Tensor:
        d = distance[:, None]
        return math.sqrt(2.0 / self.cutoff) * torch.sin(self.frequencies * d) / d


class AtomEmbedding(nn.Module):
    """A learned vector per element (the whole periodic table), plus one for flagged atoms and, if
    asked for, one per total charge.

    The flag's vector is added where ``mask`` is 1 only, so a network that never sees a flag does
    not depend on it.
    """

    def __init__(self, hidden: int, charge: bool = False) -> None:
        super().__init__()
        self.element = nn.Embedding(MAX_Z + 1, hidden)
        self.flag = nn.Parameter(torch.randn(hidden) / math.sqrt(hidden))
        self.charge = nn.Embedding(2 * MAX_CHARGE + 1, hidden) if charge else None

    def forward(self, graph) -> Tensor:
        h = self.element(graph.z)  # [N, hidden]
        if graph.mask is not None:
            h = h + graph.mask.to(h.dtype)[:, None] * self.flag
        if self.charge is not None:
            level = graph.charge.round().long().clamp(-MAX_CHARGE, MAX_CHARGE) + MAX_CHARGE
            h = h + self.charge(level)[graph.batch]
        return h if graph.extra is None else h + graph.extra
