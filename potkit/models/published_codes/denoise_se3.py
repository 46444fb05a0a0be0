# ruff: noqa: E741 (k, l and J are the degrees' letters in the papers and in the tensors' names)
"""SE(3)-Transformer as in the denoise paper's code (arXiv 2303.02216; Fuchs et al. 2006.10503).

Features f_i^l of every degree l = 0 … 3, [channels, 2l+1]. For each pair of degrees k → l a kernel
    W^{lk}(r) = Σ_J φ_J^{lk}(|r|) Σ_m Q_Jm^{lk} Y_Jm(r̂),     r = x_i − x_j in Å,  ‖Q_J‖ = 1
with φ an MLP of its own, (0, 0, 0, 0, |r|) → 32 → 32 → values, LayerNorm and ReLU between. A layer
is attention, its channels split among heads, with kernels of keys and values apart, then a norm
non-linearity:
    q_i  = ⊕_l W_Q^l f_i^l,   k_ij = ⊕_l Σ_k W_K^{lk} f_j^k,   v_ij^l = Σ_k W_V^{lk} f_j^k
    α_ij = softmax_j( q_i · k_ij / √(components of ALL heads) )
    f_i^l ← W^l [Σ_j α_ij v_ij^l, f_i^l]
    f_i^l ← ReLU(LayerNorm |f_i^l|) f_i^l / |f_i^l|
After the last layer a convolution to scalars and a head of two layers:
    s_i  = mean_j ( Σ_k W^{0k} f_j^k + W f_i^0 ),   E = φ_E(mean_i s_i),   ε̂ = −∂E/∂x
At the paper's settings it has 239 057 weights (a test counts them). Only rotations are respected:
l + k + J may be odd, so mirror images differ.

What could not be compared. The code needs libraries that no longer install, so there are no numbers
to hold this file to. It was written from the paper and a reading of the code; sizes and names of
tensors are the code's. Symmetry fixes each of the 44 Q_J^{lk} up to its SIGN, which the code takes
from a singular value decomposition on the machine where it first runs, and does not save with the
weights. That decomposition gives other signs for half of them when its input changes by 10⁻¹⁵, so
the authors' signs cannot be computed again. Here they are those of e3nn's Wigner 3j symbols;
``negative_q`` turns those it names ("111 213": k, l, J = 1, 1, 1 and 2, 1, 3). A network trained
here is not affected; what the PUBLISHED WEIGHTS predict here may be wrong in any term.

Published faults that stand here:
- "no-basis-gradient": Y is computed without gradients, so −∂E/∂x lacks all angular terms.
- "average-pooling": features are averaged over atoms (the paper says summed), so the energy does
  not even grow with the system.
- "no-envelope": nothing vanishes at the cutoff.
- "bare-norm": features are divided by their norm however small it is, so they jump at zero.
- "logits-by-all-heads": logits of one head are divided by the √ of the components of all heads.
- "neighbours-32": the search stops after ``max_num_neighbors`` + 1 atoms in index order, the atom
  itself counted.
- "edges-twice": both directions are added to edges that run both ways; each counts twice where no
  limit was met, once or twice else.
- "wrong-sign": pretraining compares −∂E/∂x with +noise; that is the objective's matter.
- An atom without neighbours loses all its features, its own term included.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from ...errors import ConfigError
from ..base import Features
from ..faults import of
from ..layers import sum_over
from .common import CodeGraph, Published, first_in_index_order, mean_over

SETTINGS: dict[str, Any] = dict(  # the configuration beside the published weights
    num_layers=3,
    atom_feature_size=28,
    num_channels=8,
    num_degrees=4,
    edge_dim=4,
    div=4,
    pooling="avg",
    n_heads=2,
    cutoff=5.0,
    max_num_neighbors=32,
    negative_q="",
)
NOTE = (
    "the signs of its coupling matrices are not in the weights and could not be recovered, so it "
    "may not predict what it was trained to; see potkit/models/published_codes/denoise_se3.py"
)
WITHOUT_EFFECT = ("auto_grad",)
NAMES = (("FCblock.", "energy_head."), ("", "backbone."))
UNUSED: tuple[str, ...] = ()
MIDDLE = 32  # width of the radial networks

ByDegree = dict[int, Tensor]  # {l: [N or E, channels, 2l+1]}
Fiber = Mapping[int, int]  # channels by degree


# --- the kernel's angular part


def degrees_between(k: int, l: int) -> range:
    """The J that couple degrees k and l."""
    return range(abs(k - l), k + l + 1)


def couplings(degree: int, negative: str) -> dict[tuple[int, int], Tensor]:
    """Q by (k, l): [2l+1, 2k+1, J, (2·degree+1)²], the last axis being all harmonics' components.

    ``negative`` names the (k, l, J) whose sign is turned, three digits each. Raises ConfigError for
    one that does not exist.
    """
    turned = set(negative.split())
    table = {}
    for k in range(degree + 1):
        for l in range(degree + 1):
            between = degrees_between(k, l)
            q = torch.zeros(
                2 * l + 1, 2 * k + 1, len(between), (2 * degree + 1) ** 2, dtype=torch.float64
            )
            for n, J in enumerate(between):
                sign = -1.0 if f"{k}{l}{J}" in turned else 1.0
                turned.discard(f"{k}{l}{J}")
                q[:, :, n, J * J : (J + 1) ** 2] = sign * o3.wigner_3j(l, k, J, dtype=torch.float64)
            table[k, l] = q
    if turned:
        raise ConfigError(
            f"denoise-se3: negative_q names {min(turned)}, which is no coupling k l J "
            f"of degrees up to {degree}"
        )
    return table


class Basis:
    """What all kernels share: the angular part of each pair of degrees, and distances."""

    def __init__(
        self, vector: Tensor, degree: int, edge_dim: int, table: dict[tuple[int, int], Tensor]
    ) -> None:
        with torch.no_grad():  # "no-basis-gradient"
            harmonics = o3.spherical_harmonics(
                list(range(2 * degree + 1)), vector, normalize=True, normalization="integral"
            )
            # the code takes the polar angle from the other pole: (−1)ᴶ, as if edges were reversed
            parity = [(-1.0) ** J for J in range(2 * degree + 1) for _ in range(2 * J + 1)]
            harmonics = harmonics * harmonics.new_tensor(parity)
            self.angular = {  # {(k, l): [E, 2l+1, 2k+1, J]}
                pair: torch.einsum("em,abjm->eabj", harmonics, q.to(harmonics))
                for pair, q in table.items()
            }
        distance = vector.square().sum(1, keepdim=True).sqrt()
        nothing = distance.new_zeros(len(distance), edge_dim)  # the code's data have no bonds
        self.radial = torch.cat([nothing, distance], 1)  # [E, edge_dim + 1]


# --- layers


class Norm(nn.Module):
    """A LayerNorm under the code's name."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.bn = nn.LayerNorm(features)

    def forward(self, x: Tensor) -> Tensor:
        """The LayerNorm over the last axis: [M, features] -> [M, features]."""
        return self.bn(x)


class RadialFunction(nn.Module):
    """φ^{lk}: [E, edge_dim + 1] -> [E, channels out, channels in, J]."""

    def __init__(
        self, frequencies: int, channels_in: int, channels_out: int, edge_dim: int
    ) -> None:
        super().__init__()
        self.shape = (channels_out, channels_in, frequencies)
        self.net = nn.Sequential(
            nn.Linear(edge_dim + 1, MIDDLE),
            Norm(MIDDLE),
            nn.ReLU(),
            nn.Linear(MIDDLE, MIDDLE),
            Norm(MIDDLE),
            nn.ReLU(),
            nn.Linear(MIDDLE, math.prod(self.shape)),
        )
        for layer in (0, 3, 6):
            nn.init.kaiming_uniform_(self.net[layer].weight)

    def forward(self, x: Tensor) -> Tensor:
        """φ of every edge's inputs [E, edge_dim + 1]: [E, channels out, channels in, J]."""
        return self.net(x).unflatten(1, self.shape)


class PairwiseKernel(nn.Module):
    """W^{lk} f_j^k: [E, channels in, 2k+1] -> [E, channels out, 2l+1]."""

    def __init__(self, k: int, channels_in: int, l: int, channels_out: int, edge_dim: int) -> None:
        super().__init__()
        self.pair = (k, l)
        self.rp = RadialFunction(len(degrees_between(k, l)), channels_in, channels_out, edge_dim)

    def forward(self, features: Tensor, basis: Basis) -> Tensor:
        """The message on every edge: [E, channels in, 2k+1] -> [E, channels out, 2l+1]."""
        # [E, 2l+1, channels in, J]
        turned = torch.einsum("eabj,ecb->eacj", basis.angular[self.pair], features)
        return torch.einsum("edcj,eacj->eda", self.rp(basis.radial), turned)


class Convolution(nn.Module):
    """Σ_k W^{lk} f_j^k on every edge for all l of the output (the code's GConvSE3Partial)."""

    def __init__(self, before: Fiber, after: Fiber, edge_dim: int) -> None:
        super().__init__()
        self.before, self.after = before, after
        self.kernel_unary = nn.ModuleDict(
            {
                f"({k},{l})": PairwiseKernel(k, before[k], l, after[l], edge_dim)
                for k in before
                for l in after
            }
        )

    def forward(self, f: ByDegree, basis: Basis, sender: Tensor) -> ByDegree:
        """The messages of every edge: {k: [N, channels, 2k+1]} -> {l: [E, channels, 2l+1]}."""
        seen = {k: f[k][sender] for k in self.before}
        return {
            l: sum(self.kernel_unary[f"({k},{l})"](seen[k], basis) for k in self.before)
            for l in self.after
        }


class LinearMap(nn.Module):
    """W^l f^l for every degree of the output, no bias (the code's G1x1SE3)."""

    def __init__(self, before: Fiber, after: Fiber) -> None:
        super().__init__()
        self.transform = nn.ParameterDict(
            {
                str(l): nn.Parameter(torch.randn(after[l], before[l]) / math.sqrt(before[l]))
                for l in after
            }
        )

    def forward(self, f: ByDegree) -> ByDegree:
        """{l: [N, channels in, 2l+1]} -> {l: [N, channels out, 2l+1]}."""
        return {int(l): weight @ f[int(l)] for l, weight in self.transform.items()}


def by_heads(f: ByDegree, heads: int) -> Tensor:
    """Channels of all degrees side by side, split among heads: [N, heads, components]."""
    return torch.cat([f[l].flatten(1).unflatten(1, (heads, -1)) for l in sorted(f)], -1)


class Attention(nn.Module):
    """One attention layer with its skip connection (the code's GSE3Res)."""

    def __init__(self, before: Fiber, after: Fiber, edge_dim: int, div: int, heads: int) -> None:
        super().__init__()
        values = {l: int(channels // div) for l, channels in after.items()}
        keys = {l: channels for l, channels in values.items() if l in before}
        if any(channels < 1 or channels % heads for channels in values.values()):
            raise ConfigError(
                "denoise-se3: num_channels / div must be a multiple of n_heads, "
                f"got {max(after.values())} / {div} and {heads}"
            )
        self.heads = heads
        # of all heads, not of one
        self.components = sum(channels * (2 * l + 1) for l, channels in keys.items())
        self.GMAB = nn.ModuleDict(
            {
                "v": Convolution(before, values, edge_dim),
                "k": Convolution(before, keys, edge_dim),
                "q": LinearMap(before, keys),
            }
        )
        joined = {l: channels + before.get(l, 0) for l, channels in values.items()}
        self.project = LinearMap(joined, after)

    def forward(self, f: ByDegree, basis: Basis, sender: Tensor, receiver: Tensor) -> ByDegree:
        """The attended features: {l: [N, channels in, 2l+1]} -> {l: [N, channels, 2l+1]}."""
        n = len(f[0])
        value = self.GMAB["v"](f, basis, sender)
        # both [E, heads, components / heads]
        key = by_heads(self.GMAB["k"](f, basis, sender), self.heads)
        query = by_heads(self.GMAB["q"](f), self.heads)[receiver]
        logits = (query * key).sum(-1) / math.sqrt(self.components)  # [E, heads]
        weight = softmax_over(logits, receiver, n)
        out = {}
        for l, v in value.items():
            weighted = v.unflatten(1, (self.heads, -1)) * weight[:, :, None, None]
            attended = sum_over(weighted.flatten(1, 2), receiver, n)  # [N, channels, 2l+1]
            out[l] = torch.cat([attended, f[l]], 1) if l in f else attended
        return self.project(out)


def softmax_over(logits: Tensor, receiver: Tensor, size: int) -> Tensor:
    """exp(logits) [E, heads] over their sum for each receiver."""
    index = receiver[:, None].expand_as(logits)
    # taking the largest off keeps exp in range and leaves the quotient as it is
    lowest = logits.new_full((size, logits.shape[1]), -torch.inf)
    largest = lowest.scatter_reduce(0, index, logits.detach(), "amax")
    weight = torch.exp(logits - largest[receiver])
    return weight / sum_over(weight, receiver, size)[receiver]


class NormNonlinearity(nn.Module):
    """f ← ReLU(LayerNorm |f|) f / |f| for every degree (the code's GNormSE3)."""

    def __init__(self, fiber: Fiber) -> None:
        super().__init__()
        self.transform = nn.ModuleDict(
            {str(l): nn.Sequential(Norm(m), nn.ReLU()) for l, m in fiber.items()}
        )

    def forward(self, f: ByDegree, *_: Any) -> ByDegree:
        """New norms for {l: [N, channels, 2l+1]}; what other blocks are given too is not used."""
        out = {}
        for l, x in f.items():
            norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp(min=1e-12)
            out[l] = self.transform[str(l)](norm[..., 0])[..., None] * (x / norm)
        return out


class ToScalars(Convolution):
    """The last convolution, with the atom's own term in every message: the mean over neighbours."""

    def __init__(self, before: Fiber, channels: int, edge_dim: int) -> None:
        super().__init__(before, {0: channels}, edge_dim)
        self.kernel_self = nn.ParameterDict(
            {"0": nn.Parameter(torch.randn(1, channels, before[0]) / math.sqrt(before[0]))}
        )

    def forward(self, f: ByDegree, basis: Basis, sender: Tensor, receiver: Tensor) -> ByDegree:
        """{l: [N, channels, 2l+1]} -> {0: [N, channels, 1]}."""
        own = self.kernel_self["0"] @ f[0]  # [N, channels, 1]
        message = super().forward(f, basis, sender)[0] + own[receiver]
        return {0: mean_over(message, receiver, len(f[0]))}


class SE3Transformer(nn.Module):
    """The backbone: `CodeGraph` -> `Features` with scalars [N, num_channels · num_degrees]."""

    n_vector_features = 0
    gives_displacement = False
    boxes = False
    faults = of("se3_transformer", "denoise-paper")
    formal_charges = False  # read through `CodeGraph.type`
    stacks = ("Gblock",)
    symmetries = frozenset({"translation", "rotation"})

    def __init__(
        self,
        num_layers: int,
        atom_feature_size: int,
        num_channels: int,
        num_degrees: int,
        edge_dim: int,
        div: int,
        n_heads: int,
        cutoff: float,
        max_num_neighbors: int,
        negative_q: str,
    ) -> None:
        super().__init__()
        self.cutoff, self.max_num_neighbors, self.edge_dim = cutoff, max_num_neighbors, edge_dim
        self.n_features, self.types = num_channels * num_degrees, atom_feature_size
        self.degree = num_degrees - 1
        self.table = couplings(self.degree, negative_q)
        middle = dict.fromkeys(range(num_degrees), num_channels)
        self.Gblock = nn.ModuleList()
        before: Fiber = {0: atom_feature_size}
        for _ in range(num_layers):
            self.Gblock.append(Attention(before, middle, edge_dim, div, n_heads))
            self.Gblock.append(NormNonlinearity(middle))
            before = middle
        self.Gblock.append(ToScalars(middle, self.n_features, edge_dim))

    def edges(self, graph: CodeGraph) -> tuple[Tensor, Tensor, Tensor | None]:
        """Sender, receiver and shift after the limit, and each edge reversed ("edges-twice")."""
        kept, _ = first_in_index_order(
            graph.sender, graph.receiver, len(graph.z), self.max_num_neighbors + 1
        )
        sender, receiver = graph.sender[kept], graph.receiver[kept]
        shift = None if graph.shift is None else torch.cat([graph.shift[kept], -graph.shift[kept]])
        return torch.cat([sender, receiver]), torch.cat([receiver, sender]), shift

    def forward(self, graph: CodeGraph) -> Features:
        """Scalars s_i [N, num_channels · num_degrees]."""
        sender, receiver, shift = self.edges(graph)
        vector = graph.pos[receiver] - graph.pos[sender]
        vector = vector if shift is None else vector - shift
        basis = Basis(vector, self.degree, self.edge_dim, self.table)
        one_hot = nn.functional.one_hot(graph.type, self.types).to(vector.dtype)
        f = {0: one_hot[:, :, None]}  # {l: [N, channels, 2l+1]}
        for block in self.Gblock:
            f = block(f, basis, sender, receiver)
        return Features(f[0][:, :, 0])


class PooledHead(nn.Sequential):
    """Features averaged ("average-pooling") or the largest taken, then an MLP: [N, F] -> [S]."""

    pooled = True

    def __init__(self, features: int, pooling: str) -> None:
        super().__init__(nn.Linear(features, features), nn.ReLU(), nn.Linear(features, 1))
        self.pooling = pooling

    def forward(self, features: Tensor, graph: CodeGraph) -> Tensor:
        """Energies of structures: [N, F] -> [S]."""
        if self.pooling == "avg":
            pooled = mean_over(features, graph.batch, graph.n_structures)
        else:
            lowest = features.new_full((graph.n_structures, features.shape[1]), -torch.inf)
            pooled = lowest.scatter_reduce(
                0, graph.batch[:, None].expand_as(features), features, "amax"
            )
        return super().forward(pooled)[:, 0]


def sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """The settings that a state dict tells."""
    blocks = 1 + max(int(k.split(".")[1]) for k in state if k.startswith("Gblock."))
    types = state["Gblock.0.GMAB.q.transform.0"].shape[1]
    projections = [k for k in state if k.startswith("Gblock.0.project.transform.")]
    channels, joined = state["Gblock.0.project.transform.0"].shape
    radial = state["Gblock.0.GMAB.v.kernel_unary.(0,0).rp.net.0.weight"]
    return dict(
        num_layers=(blocks - 1) // 2,
        atom_feature_size=types,
        num_channels=channels,
        num_degrees=len(projections),
        div=channels // (joined - types),
        edge_dim=radial.shape[1] - 1,
    )


def network(*, pooling: str, **settings: Any) -> Published:
    """The network with new weights, under the published code's names of settings."""
    if pooling not in ("avg", "max"):
        raise ConfigError(f"denoise-se3: pooling must be avg or max, got {pooling!r}")
    backbone = SE3Transformer(**settings)
    return Published(backbone, PooledHead(backbone.n_features, pooling), vector="gradient")
