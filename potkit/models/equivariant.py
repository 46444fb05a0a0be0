"""Equivariant parts on e3nn's irreps: tensor products with spherical harmonics, self-interactions,
sums over neighbours.

Features are held by irrep, ``{Irrep: [N, 2l+1, channels]}``, channels last, so that everything
linear is one matrix product per irrep. The components within an irrep are e3nn's; those of l = 1
are x, y, z (asserted by a test).

A tensor product f ⊗ Y of a neighbour's features with the spherical harmonics of the edge is what
`e3nn.o3.TensorProduct` computes path by path. Here the Clebsch-Gordan coefficients are first
contracted with Y, once per step for all layers, into the basis kernels of the SE(3)-Transformer
(Fuchs et al. 2020, equation 9); a layer's product is then one batched matrix product per irrep of
f. Same numbers (a test compares), about a tenth of the time, and no float32 constants in a model
that was moved to float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping

import torch
from e3nn import o3
from torch import Tensor, nn

from .layers import sum_over

MAX_DEGREE = 12  # of e3nn's spherical harmonics


class Irrep(o3.Irrep):
    """e3nn's irrep, with the length of the tuple that it is: torch.compile asks for that."""

    def __len__(self) -> int:
        return 2


ByIrrep = dict[Irrep, Tensor]


def irreps(degree: int, parities: str = "natural") -> tuple[Irrep, ...]:
    """Irreps up to ``degree``.

    "natural": those of spherical harmonics, 0e 1o 2e …; "both": e and o of each; "none": all e,
    which means that parity is ignored and only rotations are respected.
    """
    out = []
    for order in range(degree + 1):
        parity = (-1) ** order
        out += {
            "natural": [Irrep(order, parity)],
            "both": [Irrep(order, parity), Irrep(order, -parity)],
            "none": [Irrep(order, 1)],
        }[parities]
    return tuple(out)


def harmonics(degree: int, vector: Tensor) -> Tensor:
    """Real spherical harmonics of the directions of ``vector`` [E, 3] up to ``degree``.

    [E, (degree+1)²], |Y_l|² = 2l + 1.
    """
    return o3.spherical_harmonics(
        list(range(degree + 1)), vector, normalize=True, normalization="component"
    )


class Coupling:
    """All couplings of features with spherical harmonics.

    (f ⊗ Y)_o = Σ over the paths (i, J) -> o that the selection rules allow.

    ``irreps_in`` are those of f, ``degree`` the largest J, ``irreps_out`` those wanted; with
    ``parity=False`` the harmonics count as even, to go with irreps that ignore parity. ``paths[o]``
    counts the paths into o, ``irreps_out`` keeps those that have one.
    Coefficients are normalised as e3nn's ("component"): entries of variance 1 give entries of
    variance 1, path by path.
    """

    def __init__(
        self,
        irreps_in: Iterable[Irrep],
        degree: int,
        irreps_out: Iterable[Irrep],
        parity: bool = True,
    ) -> None:
        self.irreps_in, wanted = tuple(irreps_in), tuple(irreps_out)
        sphere = [Irrep(J, (-1) ** J if parity else 1) for J in range(degree + 1)]
        slices = [slice(J * J, (J + 1) ** 2) for J in range(degree + 1)]
        allowed = {
            (i, o): [J for J, s in enumerate(sphere) if o in i * s]
            for i in self.irreps_in
            for o in wanted
        }
        self.paths = {o: sum(len(allowed[i, o]) for i in self.irreps_in) for o in wanted}
        self.irreps_out = tuple(o for o in wanted if self.paths[o])
        self.paths = {o: self.paths[o] for o in self.irreps_out}
        self._allowed, self._cast = allowed, {}
        # [(degree+1)², Σ_o (2l_o+1)·paths(i,o), 2l_i+1], float64
        self._constants: dict[Irrep, Tensor] = {}
        for i in self.irreps_in:
            blocks = []
            for o in self.irreps_out:
                block = torch.zeros(
                    (degree + 1) ** 2, o.dim, len(allowed[i, o]), i.dim, dtype=torch.float64
                )
                for n, J in enumerate(allowed[i, o]):
                    c = o3.wigner_3j(i.l, J, o.l, dtype=torch.float64)  # [2l_i+1, 2J+1, 2l_o+1]
                    block[slices[J], :, n] = c.permute(1, 2, 0) * math.sqrt(o.dim)
                blocks.append(block.flatten(1, 2))
            self._constants[i] = torch.cat(blocks, 1)

    def is_like(self, other: Coupling) -> bool:
        """Whether irreps before and after are those of ``other``."""
        return self.irreps_in == other.irreps_in and self.irreps_out == other.irreps_out

    def kernels(self, harmonics: Tensor) -> ByIrrep:
        """Basis kernels of every edge from its harmonics [E, (degree+1)²].

        {i: [E, Σ_o (2l_o+1)·paths, 2l_i+1]}
        """
        key = (harmonics.dtype, harmonics.device)
        if key not in self._cast:
            with torch.inference_mode(False):  # what is kept must also serve a later training step
                self._cast[key] = {
                    i: c.to(dtype=key[0], device=key[1]) for i, c in self._constants.items()
                }
        return {
            i: (harmonics @ c.flatten(1)).unflatten(1, c.shape[1:])
            for i, c in self._cast[key].items()
        }

    def __call__(self, kernels: ByIrrep, features: Mapping[Irrep, Tensor]) -> ByIrrep:
        """f ⊗ Y per edge: features {i: [E, 2l+1, C]} -> {o: [E, 2l+1, paths[o]·C]}.

        Of the last axis, i is outermost, J next, channels innermost.
        """
        parts: dict[Irrep, list[Tensor]] = {o: [] for o in self.irreps_out}
        for i in self.irreps_in:
            products = torch.bmm(kernels[i], features[i])  # [E, Σ_o (2l_o+1)·paths, C]
            paths = {o: len(self._allowed[i, o]) for o in self.irreps_out}
            blocks = products.split([o.dim * n for o, n in paths.items()], 1)
            for (o, n), block in zip(paths.items(), blocks, strict=True):
                if n:
                    parts[o].append(block.reshape(block.shape[0], o.dim, n * block.shape[-1]))
        return {o: torch.cat(p, -1) for o, p in parts.items()}


class SelfInteraction(nn.Module):
    """A linear map of channels per irrep, no bias, for the irreps on both sides.

    {o: [N, 2l+1, C]} -> {o: [N, 2l+1, C']}
    """

    def __init__(self, channels_in: Mapping[Irrep, int], channels_out: Mapping[Irrep, int]) -> None:
        super().__init__()
        both = [ir for ir in channels_out if channels_in.get(ir)]
        self.linear = nn.ModuleDict(
            {str(ir): nn.Linear(channels_in[ir], channels_out[ir], bias=False) for ir in both}
        )
        for layer in self.linear.values():
            nn.init.normal_(layer.weight, std=layer.in_features**-0.5)

    def forward(self, x: Mapping[Irrep, Tensor]) -> ByIrrep:
        """Mix the channels of each irrep: {o: [N, 2l+1, C]} -> {o: [N, 2l+1, C']}."""
        return {Irrep(name): layer(x[Irrep(name)]) for name, layer in self.linear.items()}


class RadialNet(nn.Sequential):
    """SiLU MLP of a radial basis that starts with outputs of variance about 1.

    Without ``bias`` it vanishes where the basis does.
    """

    def __init__(self, widths: list[int], bias: bool = False) -> None:
        layers: list[nn.Module] = []
        for n, (a, b) in enumerate(itertools.pairwise(widths)):
            linear = nn.Linear(a, b, bias=bias)
            gain = 1.0 if n == 0 else 1.68  # restores the variance that SiLU takes
            nn.init.normal_(linear.weight, std=gain * a**-0.5)
            layers += [linear, nn.SiLU()]
        super().__init__(*layers[:-1])


def gather(x: Mapping[Irrep, Tensor], index: Tensor) -> ByIrrep:
    """Rows ``index`` of features of every irrep."""
    return {ir: value[index] for ir, value in x.items()}


def sum_edges(x: Mapping[Irrep, Tensor], receiver: Tensor, size: int) -> ByIrrep:
    """Sum edge features of all irreps over the edges of each receiver, in one scatter."""
    flat = sum_over(torch.cat([value.flatten(1) for value in x.values()], 1), receiver, size)
    parts = flat.split([value.shape[1] * value.shape[2] for value in x.values()], 1)
    return {
        ir: part.unflatten(1, value.shape[1:])
        for (ir, value), part in zip(x.items(), parts, strict=True)
    }
