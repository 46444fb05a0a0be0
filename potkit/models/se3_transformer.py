"""SE(3)-Transformer (Fuchs, Worrall, Fischer, Welling, NeurIPS 2020, arXiv 2006.10503), as the
denoise paper sets it.

Features of atom i are f_i = ⊕_l f_i^l, some channels of every degree l. With the kernel (equations
8 and 9; φ a learned function of the distance, Q Clebsch-Gordan coefficients)
    W^{lk}(r) = Σ_J φ_J^{lk}(|r|) Σ_m Y_Jm(r̂) Q_Jm^{lk}
a layer is attention over neighbours (equations 10 to 12), its channels split into heads, then a
linear map (W^l's part on f_i^l is the self-interaction) and a nonlinearity:
    q_i    = ⊕_l W_Q^l f_i^l
    k_ij   = ⊕_l Σ_k W_K^{lk}(r_ij) f_j^k
    v_ij^l = Σ_k W_V^{lk}(r_ij) f_j^k
    α_ij   = f_c(d_ij) exp(q_i·k_ij) / (1 + Σ_j' f_c(d_ij') exp(q_i·k_ij'))
    f_i^l  ← W^l [f_i^l, Σ_j α_ij v_ij^l]
    f_i^l  ← gate(f_i^l)
and the last layer is a plain convolution to scalars:
    s_i    = W f_i^0 + Σ_j f_c(d_ij) Σ_k W^{0k}(r_ij) f_j^k
W_K and W_V act on the same products f_j ⊗ Y (see `equivariant`), so keys and values come from one
kernel.

What differs from the authors' codes. f_c and the 1 in the denominator (an atom attends to nobody
with weight 1) make everything continuous at the cutoff and right for an atom without neighbours; α
without them jumps. Only couplings that respect parity are kept (l + k + J even), so that mirror
images have the same energy; the paper's network distinguishes them. The norm nonlinearity
f/|f|·MLP(|f|) is not continuous where f passes zero; here f^l (1 + MLP(ñ)) with ñ = √(|f|² + 0.01)
per channel. Per-path radial networks share their hidden layers. Edges enter once. The energy is a
sum over atoms, as the paper says; the published code averages, which `Potential` does not offer
(`pooled` sums features). ``faithful=True``: no f_c, no 1, and no parity. ``radial`` > 1 feeds φ
that many Gaussians of the distance in place of the distance (ours; the published code has the
distance, ``radial=0``).

Parameters: denoise-paper 120 337, small 50 121 (counted by a test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from . import faults as published_faults
from .equivariant import (
    ByIrrep,
    Coupling,
    Irrep,
    RadialNet,
    SelfInteraction,
    gather,
    harmonics,
    irreps,
    sum_edges,
)
from .graph import SYMMETRIES, Features, Graph, Network
from .layers import AtomEmbedding, GaussianBasis, mlp, polynomial_envelope, sum_over

PRESETS = {
    "denoise-paper": dict(
        channels=8, max_degree=3, layers=3, heads=2, division=4, radial=0, cutoff=5.0
    ),
    "small": dict(channels=8, max_degree=2, layers=2, heads=2, division=4, radial=16, cutoff=5.0),
}
SCALAR = Irrep(0, 1)


class Kernel(nn.Module):
    """Equations 8 and 9: Σ_k W^{lk}(r_ij) f_j^k for the degrees l of ``outputs``."""

    def __init__(
        self,
        coupling: Coupling,
        channels: int,
        outputs: dict[Irrep, int],  # channels of each degree
        radial: int,
        hidden: int,
    ) -> None:
        super().__init__()
        self.coupling, self.outputs = coupling, outputs
        self.fan_in = {ir: coupling.paths[ir] * channels for ir in outputs}
        self.sizes = [self.fan_in[ir] * n for ir, n in outputs.items()]
        self.radial = RadialNet([max(radial, 1), hidden, hidden, sum(self.sizes)], bias=True)  # φ
        with torch.no_grad():  # start with variance about 1, however many products are summed
            for part, fan_in in zip(
                self.radial[-1].weight.split(self.sizes), self.fan_in.values(), strict=True
            ):
                part.mul_(fan_in**-0.5)

    def forward(
        self,
        kernels: ByIrrep,  # Σ_m Y_Jm(r̂) Q_Jm of the coupling
        f: ByIrrep,  # {k: [E, 2k+1, C]} of the senders
        edge: Tensor,  # [E, R]
    ) -> ByIrrep:
        """The message of every edge: {k: [E, 2k+1, C]} -> {l: [E, 2l+1, outputs[l]]}."""
        products = self.coupling(kernels, f)  # {l: [E, 2l+1, paths·C]}
        phi = dict(zip(self.outputs, self.radial(edge).split(self.sizes, 1), strict=True))
        phi = {ir: p.unflatten(1, (self.fan_in[ir], -1)) for ir, p in phi.items()}
        return {ir: torch.bmm(products[ir], phi[ir]) for ir in self.outputs}


def attention_weights(
    logits: Tensor,  # [E, heads] q_i·k_ij
    envelope: Tensor | None,  # [E, 1] f_c
    receiver: Tensor,
    size: int,
) -> Tensor:
    """α [E, heads]; a plain softmax over the neighbours if there is no ``envelope``."""
    index = receiver[:, None].expand_as(logits)
    # subtracting any constant per atom leaves α as it is: the largest logit, or 0, keeps exp in
    # range; no derivative needed
    start = 0.0 if envelope is not None else -torch.inf
    largest = logits.new_full((size, logits.shape[1]), start)
    largest = largest.scatter_reduce(0, index, logits.detach(), "amax")
    weight = torch.exp(logits - largest[receiver])
    if envelope is not None:
        weight = weight * envelope
    total = sum_over(weight, receiver, size)
    if envelope is not None:
        total = total + torch.exp(-largest)
    return weight / total[receiver]


class Attention(nn.Module):
    """Equations 10 to 12 with heads, then the linear map to ``channels`` per degree."""

    def __init__(
        self,
        coupling: Coupling,
        channels_in: int,
        channels: int,
        heads: int,
        division: int,
        radial: int,
        hidden: int,
    ) -> None:
        super().__init__()
        before = dict.fromkeys(coupling.irreps_in, channels_in)
        after = dict.fromkeys(coupling.irreps_out, channels)
        # channels per degree of queries, keys and values, all heads together
        self.width, self.heads = channels // division, heads
        self.query = SelfInteraction(before, dict.fromkeys(before, self.width))  # W_Q
        # W_V everywhere, W_K where there are queries
        values_and_keys = {ir: self.width * (2 if ir in before else 1) for ir in after}
        self.kernel = Kernel(coupling, channels_in, values_and_keys, radial, hidden)
        self.merge = SelfInteraction(
            {ir: before.get(ir, 0) + self.width for ir in after}, after
        )  # W

    def forward(
        self,
        f: ByIrrep,  # {l: [N, 2l+1, C]}
        kernels: ByIrrep,
        edge: Tensor,  # [E, R]
        envelope: Tensor | None,  # [E, 1]
        sender: Tensor,
        receiver: Tensor,
    ) -> ByIrrep:
        """The attended features: {l: [N, 2l+1, C]} -> {l: [N, 2l+1, channels]}."""
        n = f[SCALAR].shape[0]
        queries = gather(self.query(f), receiver)  # {l: [E, 2l+1, width]}
        values_and_keys = self.kernel(kernels, gather(f, sender), edge)
        values = {ir: x[..., : self.width] for ir, x in values_and_keys.items()}
        logits, features = 0.0, 0
        for ir, q in queries.items():
            k = values_and_keys[ir][..., self.width :]
            logits = logits + (q * k).sum(1).unflatten(1, (self.heads, -1)).sum(-1)  # [E, heads]
            features += ir.dim * self.width // self.heads
        alpha = attention_weights(logits / math.sqrt(features), envelope, receiver, n)
        alpha = alpha.repeat_interleave(self.width // self.heads, 1)[:, None]  # [E, 1, width]
        attended = sum_edges({ir: v * alpha for ir, v in values.items()}, receiver, n)
        both = {ir: torch.cat([f[ir], x], -1) if ir in f else x for ir, x in attended.items()}
        return self.merge(both)


class NormGate(nn.Module):
    """The nonlinearity: scalars through a residual MLP, other degrees scaled by 1 + MLP(ñ)."""

    def __init__(self, coupling: Coupling, channels: int) -> None:
        super().__init__()
        self.scalar = nn.Sequential(nn.LayerNorm(channels), *mlp([channels] * 3))
        self.gates = nn.ModuleDict(
            {str(ir): mlp([channels] * 3) for ir in coupling.irreps_out if ir != SCALAR}
        )

    def forward(self, f: ByIrrep) -> ByIrrep:
        """The gated features, {l: [N, 2l+1, channels]} as before."""
        out = {SCALAR: f[SCALAR] + self.scalar(f[SCALAR])}
        for name, gate in self.gates.items():
            x = f[Irrep(name)]
            norm = (x.square().sum(1, keepdim=True) + 0.01).sqrt()  # curvature finite at 0
            out[Irrep(name)] = x + x * gate(norm)
        return out


class SE3Transformer(Network):
    """The backbone: `Graph` -> `Features`.

    Scalars are [N, channels·(max_degree+1)], vectors the l = 1 channels [N, 3, channels].
    """

    stacks = ("attention", "gates")

    def __init__(
        self,
        channels: int = 8,
        max_degree: int = 3,
        layers: int = 3,
        heads: int = 2,
        division: int = 4,
        radial: int = 0,
        radial_hidden: int = 32,
        cutoff: float = 5.0,
        charge: bool = False,
        faults: Sequence[str] = (),
    ) -> None:
        super().__init__()
        least = min(channels, max_degree, layers, heads, division, radial_hidden)
        if least < 1 or radial < 0 or radial == 1:
            raise ConfigError(
                "SE3Transformer needs channels, max_degree, layers, heads, division, "
                "radial_hidden ≥ 1 and radial 0 or ≥ 2"
            )
        if channels % (division * heads):
            raise ConfigError(
                "SE3Transformer needs channels divisible by division × heads, "
                f"got {channels} by {division} × {heads}"
            )
        self.faults = published_faults.check("se3_transformer", faults)
        self.faithful = faithful = bool(self.faults)
        self.cutoff, self.radial = cutoff, radial
        self.n_features, self.n_vector_features = channels * (max_degree + 1), channels
        if faithful:
            self.symmetries = SYMMETRIES - {"reflection"}
        kinds = irreps(max_degree, "none" if faithful else "natural")
        self.vector_irrep = kinds[1]
        self.degree = 2 * max_degree  # degrees l and k couple through J up to l + k
        self.couplings = {  # layers with the same coupling share its kernels
            "first": Coupling([SCALAR], self.degree, kinds, parity=not faithful),
            "middle": Coupling(kinds, self.degree, kinds, parity=not faithful),
            "last": Coupling(kinds, self.degree, [SCALAR], parity=not faithful),
        }
        self.embedding = AtomEmbedding(self.n_features, charge)
        self.basis = GaussianBasis(radial, cutoff) if radial else None
        self.attention, self.gates = nn.ModuleList(), nn.ModuleList()
        for i in range(layers):
            coupling = self.couplings["middle" if i else "first"]
            width = channels if i else self.n_features
            self.attention.append(
                Attention(coupling, width, channels, heads, division, radial, radial_hidden)
            )
            self.gates.append(NormGate(coupling, channels))
        self.own = nn.Linear(channels, self.n_features)
        self.last = Kernel(
            self.couplings["last"], channels, {SCALAR: self.n_features}, radial, radial_hidden
        )

    def forward(self, graph: Graph) -> Features:
        """Scalars [N, channels·(max_degree+1)] and vectors [N, 3, channels]."""
        sender, receiver, n = graph.sender, graph.receiver, graph.z.shape[0]
        sphere = harmonics(self.degree, graph.vector)  # [E, (2·max_degree+1)²]
        kernels = {name: c.kernels(sphere) for name, c in self.couplings.items()}
        edge = graph.distance[:, None] / self.cutoff  # [E, R]
        if self.basis is not None:
            edge = self.basis(graph.distance) * (0.75 * math.sqrt(self.radial))  # mean square 1
        envelope = None
        if not self.faithful:
            envelope = polynomial_envelope(graph.distance, self.cutoff)[:, None]  # [E, 1]
        f = {SCALAR: self.embedding(graph)[:, None]}  # {l: [N, 2l+1, channels]}
        for i, (attention, gate) in enumerate(zip(self.attention, self.gates, strict=True)):
            f = attention(f, kernels["middle" if i else "first"], edge, envelope, sender, receiver)
            if i == 0 and graph.extra_vector is not None:
                f[self.vector_irrep] = f[self.vector_irrep] + graph.extra_vector
            f = gate(f)
        message = self.last(kernels["last"], gather(f, sender), edge)[SCALAR][:, 0]
        if envelope is not None:
            message = message * envelope
        total = sum_over(message, receiver, n) / math.sqrt(n_typical(self.cutoff))
        scalar = self.own(f[SCALAR][:, 0]) + total  # s_i
        return Features(nn.functional.silu(scalar), f[self.vector_irrep])


def n_typical(cutoff: float) -> float:
    """Neighbours of an atom in dense matter (0.1 atoms/Å³): the scale of a sum over them."""
    return 0.1 * 4 / 3 * math.pi * cutoff**3
