"""SE(3)-Transformer (Fuchs, Worrall, Fischer, Welling, NeurIPS 2020, arXiv 2006.10503), as the
denoise paper sets it, and a lighter one of ours.

Features of atom i are f_i = ⊕_l f_i^l, some channels of every degree l. With the kernel (equations
8 and 9; φ a learned function of the distance, Q Clebsch-Gordan coefficients)
    W^{lk}(r) = Σ_J φ_J^{lk}(|r|) Σ_m Y_Jm(r̂) Q_Jm^{lk}
a layer is attention over neighbours (equations 10 to 12), its channels split into heads, then a
linear map (W^l's part on f_i^l is the self-interaction) and a nonlinearity:
    q_i    = ⊕_l W_Q^l f_i^l
    k_ij   = ⊕_l Σ_k W_K^{lk}(r_ij) f_j^k
    v_ij^l = Σ_k W_V^{lk}(r_ij) f_j^k
    α_ij   = f_c(d_ij) exp(q_i·k_ij / √n) / (1 + Σ_j' f_c(d_ij') exp(q_i·k_ij' / √n))
    f_i^l  ← W^l [f_i^l, Σ_j α_ij v_ij^l]
    f_i^l  ← g(f_i^l)
n is the number of components of q in one head. The last layer is a convolution to scalars:
    s_i    = W f_i^0 + Σ_j f_c(d_ij) Σ_k W^{0k}(r_ij) f_j^k / Z_i

``kernels="pairwise"`` is the denoise paper's network, in the preset "denoise-paper". Every pair of
degrees has radial networks φ of its own, keys and values apart: (0, 0, 0, 0, |r| in Å) → 32 → 32 →
values with LayerNorm and ReLU between (the zeros stand for features of bonds, which no data set
has). Couplings of all parities are kept, so mirror images differ. f_i^0 starts as a one-hot vector
of the 28 types, pairs of element and formal charge. With ñ_i = √(|f_i^l|² + 10⁻⁴) per channel
    g(f^l) = ReLU(LayerNorm ñ) f^l / ñ,     Z_i = 1 + Σ_j f_c(d_ij)
so s_i is a mean over neighbours. The head (``head="relu"``) has one hidden layer with ReLU.
By our choice: f_c, the 1 in α_ij and in Z_i (an atom attends to nobody with weight 1) and the 10⁻⁴,
which together make everything continuous, at the cutoff and where a feature passes zero, and right
for an atom without neighbours; n of one head; the sum of atomic energies, as the paper says.
The published code has these faults (see `faults`): "no-envelope" (no f_c, no 1; an atom without
neighbours loses its own term), "bare-norm" (no 10⁻⁴), "logits-by-all-heads" (n of all heads
together), "no-basis-gradient" (Y without gradients), "neighbours-32" (each atom hears the first 33
in index order, itself counted), "edges-twice" and "average-pooling". ``faithful=True`` switches on
all of them, and then the network computes what the code does (a test compares) up to the signs of
Q, which the code does not save (see `published_codes.denoise_se3`).

``kernels="shared"`` (the default, the presets "small" and "shared-kernels") is ours, with less than
half the weights. All radial networks of a layer share their hidden layers (SiLU, |r| / r_c, or
``radial`` > 1 Gaussians of it), keys and values come from one kernel, l + k + J is even, so that
mirror images have the same energy, elements have learned vectors, and
    g(f^0) = f^0 + MLP(LayerNorm f^0),     g(f^l) = f^l (1 + MLP(ñ)),     ñ = √(|f^l|² + 0.01)
    Z = √(neighbours in dense matter),     s_i ← SiLU(s_i)
It can have the same faults, but for "bare-norm", since it never divides by a norm.

Parameters: denoise-paper 239 085 (the published 239 057, and 28 of the flag), shared-kernels
120 337, small 50 121 (counted by a test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..structures.elements import MAX_Z, SYMBOLS
from . import faults as published_faults
from .equivariant import (
    MAX_DEGREE,
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
from .layers import (
    MAX_FORMAL_CHARGE,
    AtomEmbedding,
    GaussianBasis,
    first_neighbors,
    keep_edges,
    mlp,
    polynomial_envelope,
    sum_over,
)
from .published_codes.common import ATOM_TYPES

PRESETS = {
    "denoise-paper": dict(
        channels=8,
        max_degree=3,
        layers=3,
        heads=2,
        division=4,
        cutoff=5.0,
        kernels="pairwise",
        one_hot=True,
        head="relu",
    ),
    "shared-kernels": dict(
        channels=8, max_degree=3, layers=3, heads=2, division=4, radial=0, cutoff=5.0
    ),
    "small": dict(channels=8, max_degree=2, layers=2, heads=2, division=4, radial=16, cutoff=5.0),
}
SCALAR = Irrep(0, 1)
BONDS = 4  # features of bonds in the published code, all zero
FAULTY_SEARCH = 33  # atoms that an atom hears, itself counted, in the published code


class FixedRows(nn.Module):
    """Rows of a table that is not trained, where an embedding's would be."""

    def __init__(self, rows: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", rows, persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        """[N] -> [N, F]."""
        return self.weight[index]


class OneHot(AtomEmbedding):
    """Atoms start as one-hot vectors of the 28 types: pairs of element and formal charge.

    The flag's vector, and with ``charge`` the total charge's, are learned and added. Without
    ``formal_charges`` atoms are neutral.
    """

    def __init__(self, charge: bool, formal_charges: bool) -> None:
        super().__init__(len(ATOM_TYPES), charge)
        neutral = torch.zeros(MAX_Z + 1, len(ATOM_TYPES))
        change = torch.zeros(MAX_Z + 1, 2 * MAX_FORMAL_CHARGE + 1, len(ATOM_TYPES))
        known = torch.zeros(MAX_Z + 1, 2 * MAX_FORMAL_CHARGE + 1, dtype=torch.bool)
        for row, (symbol, level) in enumerate(ATOM_TYPES):
            z = SYMBOLS.index(symbol)
            known[z, level + MAX_FORMAL_CHARGE] = True
            change[z, level + MAX_FORMAL_CHARGE, row] = 1.0
            if level == 0:
                neutral[z, row] = 1.0
        self.register_buffer("known", known, persistent=False)
        self.element = FixedRows(neutral)
        if formal_charges:
            ions = (change - neutral[:, None])[:, [0, 1, 3, 4]]  # −2, −1, 1, 2
            self.ion = FixedRows(ions.flatten(0, 1))

    def forward(self, graph: Graph) -> Tensor:
        """The features with which the atoms start: [N, 28]. Raises DataError for other types."""
        level = torch.zeros_like(graph.z)
        if self.ion is not None:
            level = graph.formal_charge.round().long()
        unknown = torch.nonzero(~self.known[graph.z, level + MAX_FORMAL_CHARGE]).flatten()
        if len(unknown):
            i = int(unknown[0])
            way_out = "one_hot=False"
            if self.ion is None:
                way_out = f"formal_charges=True, if the atom is an ion, or {way_out}"
            raise DataError(
                f"atom {i} of the batch is {SYMBOLS[int(graph.z[i])]} with formal charge "
                f"{int(level[i]):+d}, which is none of the 28 types of the denoise paper's code: "
                f"build the network with {way_out}"
            )
        return super().forward(graph)


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


class PairwiseKernel(nn.Module):
    """Equations 8 and 9 with a radial network of its own for every pair of degrees k, l."""

    def __init__(
        self,
        coupling: Coupling,
        channels: int,
        outputs: dict[Irrep, int],  # channels of each degree
        hidden: int,
    ) -> None:
        super().__init__()
        self.outputs, self.inputs, self.channels = outputs, coupling.irreps_in, channels
        self.radial = nn.ModuleDict(  # φ
            {
                self.pair(k, ir): radial_network(
                    n * channels * (2 * min(k.l, ir.l) + 1),  # as many J couple k and l
                    hidden,
                )
                for ir, n in outputs.items()
                for k in self.inputs
            }
        )

    @staticmethod
    def pair(k: Irrep, l: Irrep) -> str:  # noqa: E741 (the degrees' letters in the paper)
        """The name of a radial network."""
        return f"{k.l},{l.l}"

    def forward(
        self,
        products: ByIrrep,  # {l: [E, 2l+1, paths·C]} of the coupling with the senders' features
        edge: Tensor,  # [E, BONDS + 1]
    ) -> ByIrrep:
        """The message of every edge: {l: [E, 2l+1, outputs[l]]}."""
        out = {}
        for ir, n in self.outputs.items():
            phi = []
            for k in self.inputs:
                values = self.radial[self.pair(k, ir)](edge).unflatten(1, (n, self.channels, -1))
                phi.append(values.permute(0, 3, 2, 1).flatten(1, 2))  # [E, J·C, n]
            # Y and Q of norm 1, as in the published code; those of `Coupling` have components of
            # variance 1
            norm = (4 * math.pi * ir.dim) ** -0.5
            out[ir] = torch.bmm(products[ir], torch.cat(phi, 1)) * norm
        return out


def radial_network(outputs: int, hidden: int) -> nn.Sequential:
    """φ of a pair of degrees: [E, BONDS + 1] -> [E, outputs]."""
    network = nn.Sequential(
        nn.Linear(BONDS + 1, hidden),
        nn.LayerNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.LayerNorm(hidden),
        nn.ReLU(),
        nn.Linear(hidden, outputs),
    )
    for layer in network[::3]:
        nn.init.kaiming_uniform_(layer.weight)
    return network


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
        pairwise: bool = False,
        scale_by_all_heads: bool = False,  # fault "logits-by-all-heads"
    ) -> None:
        super().__init__()
        before = dict.fromkeys(coupling.irreps_in, channels_in)
        after = dict.fromkeys(coupling.irreps_out, channels)
        # channels per degree of queries, keys and values, all heads together
        self.width, self.heads = channels // division, heads
        self.query = SelfInteraction(before, dict.fromkeys(before, self.width))  # W_Q
        self.coupling, self.pairwise = coupling, pairwise
        # W_V everywhere, W_K where there are queries
        if pairwise:
            values, keys = dict.fromkeys(after, self.width), dict.fromkeys(before, self.width)
            self.value = PairwiseKernel(coupling, channels_in, values, hidden)
            self.key = PairwiseKernel(coupling, channels_in, keys, hidden)
        else:
            values_and_keys = {ir: self.width * (2 if ir in before else 1) for ir in after}
            self.kernel = Kernel(coupling, channels_in, values_and_keys, radial, hidden)
        in_one_head = sum(ir.dim for ir in before) * self.width // heads
        self.features = in_one_head * (heads if scale_by_all_heads else 1)  # n
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
        keys, values = self.keys_and_values(kernels, gather(f, sender), edge)
        logits = 0.0
        for ir, q in queries.items():
            product = (q * keys[ir]).sum(1)
            logits = logits + product.unflatten(1, (self.heads, -1)).sum(-1)  # [E, heads]
        alpha = attention_weights(logits / math.sqrt(self.features), envelope, receiver, n)
        alpha = alpha.repeat_interleave(self.width // self.heads, 1)[:, None]  # [E, 1, width]
        attended = sum_edges({ir: v * alpha for ir, v in values.items()}, receiver, n)
        both = {ir: torch.cat([f[ir], x], -1) if ir in f else x for ir, x in attended.items()}
        return self.merge(both)

    def keys_and_values(
        self,
        kernels: ByIrrep,
        f: ByIrrep,  # {k: [E, 2k+1, C]} of the senders
        edge: Tensor,  # [E, R]
    ) -> tuple[ByIrrep, ByIrrep]:
        """k_ij and v_ij of every edge: {l: [E, 2l+1, width]}."""
        if self.pairwise:
            products = self.coupling(kernels, f)
            return self.key(products, edge), self.value(products, edge)
        both = self.kernel(kernels, f, edge)
        keys = {ir: x[..., self.width :] for ir, x in both.items()}
        return keys, {ir: x[..., : self.width] for ir, x in both.items()}


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


class NormNonlinearity(nn.Module):
    """The published nonlinearity, of every degree: the norms of all channels through a LayerNorm
    and ReLU, directions as they are. ``bare``: fault "bare-norm".
    """

    def __init__(self, coupling: Coupling, channels: int, bare: bool) -> None:
        super().__init__()
        self.bare = bare
        self.norms = nn.ModuleDict({str(ir): nn.LayerNorm(channels) for ir in coupling.irreps_out})

    def forward(self, f: ByIrrep) -> ByIrrep:
        """Features with new norms, {l: [N, 2l+1, channels]} as before."""
        out = {}
        for ir, x in f.items():
            if self.bare:
                norm = torch.linalg.vector_norm(x, dim=1, keepdim=True).clamp(min=1e-12)
            else:
                norm = (x.square().sum(1, keepdim=True) + 1e-4).sqrt()  # ñ
            out[ir] = nn.functional.relu(self.norms[str(ir)](norm)) * (x / norm)
        return out


def faulty_edges(graph: Graph, faults: Sequence[str]) -> Graph:
    """The edges with the faults "neighbours-32" and "edges-twice" of ``faults``."""
    if "neighbours-32" in faults:
        graph = keep_edges(graph, first_neighbors(graph, FAULTY_SEARCH)[0])
    if "edges-twice" in faults:
        shift = graph.shift
        graph = graph._replace(
            sender=torch.cat([graph.sender, graph.receiver]),
            receiver=torch.cat([graph.receiver, graph.sender]),
            vector=torch.cat([graph.vector, -graph.vector]),
            distance=graph.distance.repeat(2),
            shift=None if shift is None else torch.cat([shift, -shift]),
        )
    return graph


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
        kernels: str = "shared",
        one_hot: bool = False,
        charge: bool = False,
        formal_charges: bool = False,
        faults: Sequence[str] = (),
    ) -> None:
        super().__init__()
        least = min(channels, max_degree, layers, heads, division, radial_hidden)
        if least < 1 or radial < 0 or radial == 1:
            raise ConfigError(
                "SE3Transformer needs channels, max_degree, layers, heads, division, "
                "radial_hidden ≥ 1 and radial 0 or ≥ 2"
            )
        if 2 * max_degree > MAX_DEGREE:  # as far as two degrees couple
            raise ConfigError(
                f"SE3Transformer has max_degree up to {MAX_DEGREE // 2}, got {max_degree}"
            )
        if channels % (division * heads):
            raise ConfigError(
                "SE3Transformer needs channels divisible by division × heads, "
                f"got {channels} by {division} × {heads}"
            )
        if kernels not in ("shared", "pairwise"):
            raise ConfigError(f"unknown kernels {kernels!r}; there are shared, pairwise")
        if kernels == "pairwise" and radial:
            raise ConfigError("SE3Transformer with kernels='pairwise' reads |r| only: radial is 0")
        self.faults = published_faults.check("se3_transformer", faults)
        self.pairwise = pairwise = kernels == "pairwise"
        self.smooth = not pairwise  # whose radial networks and norms go through ReLU
        self.cutoff, self.radial, self.formal_charges = cutoff, radial, formal_charges
        self.n_features, self.n_vector_features = channels * (max_degree + 1), channels
        if pairwise:
            self.symmetries = SYMMETRIES - {"reflection"}
        kinds = irreps(max_degree, "none" if pairwise else "natural")
        self.vector_irrep = kinds[1]
        self.degree = 2 * max_degree  # degrees l and k couple through J up to l + k
        self.couplings = {  # layers with the same coupling share its kernels
            "first": Coupling([SCALAR], self.degree, kinds, parity=not pairwise),
            "middle": Coupling(kinds, self.degree, kinds, parity=not pairwise),
            "last": Coupling(kinds, self.degree, [SCALAR], parity=not pairwise),
        }
        if one_hot:
            self.embedding = OneHot(charge, formal_charges)
        else:
            self.embedding = AtomEmbedding(self.n_features, charge, formal_charges)
        first = len(self.embedding.flag)  # channels of f_i^0 before the first layer
        self.basis = GaussianBasis(radial, cutoff) if radial else None
        self.attention, self.gates = nn.ModuleList(), nn.ModuleList()
        all_heads = "logits-by-all-heads" in self.faults
        for i in range(layers):
            coupling = self.couplings["middle" if i else "first"]
            width = channels if i else first
            sizes = coupling, width, channels, heads, division, radial, radial_hidden
            self.attention.append(Attention(*sizes, pairwise, all_heads))
            if pairwise:
                gate = NormNonlinearity(coupling, channels, "bare-norm" in self.faults)
            else:
                gate = NormGate(coupling, channels)
            self.gates.append(gate)
        self.own = nn.Linear(channels, self.n_features, bias=not pairwise)
        last, outputs = self.couplings["last"], {SCALAR: self.n_features}
        if pairwise:
            nn.init.normal_(self.own.weight, std=channels**-0.5)
            self.last = PairwiseKernel(last, channels, outputs, radial_hidden)
        else:
            self.last = Kernel(last, channels, outputs, radial, radial_hidden)

    def forward(self, graph: Graph) -> Features:
        """Scalars [N, channels·(max_degree+1)] and vectors [N, 3, channels]."""
        graph = faulty_edges(graph, self.faults)
        sender, receiver = graph.sender, graph.receiver
        kernels, edge = self.kernels(graph), self.edge_inputs(graph)
        envelope = None
        if "no-envelope" not in self.faults:
            envelope = polynomial_envelope(graph.distance, self.cutoff)[:, None]  # [E, 1]
        f = {SCALAR: self.embedding(graph)[:, None]}  # {l: [N, 2l+1, channels]}
        for i, (attention, gate) in enumerate(zip(self.attention, self.gates, strict=True)):
            f = attention(f, kernels["middle" if i else "first"], edge, envelope, sender, receiver)
            if i == 0 and graph.extra_vector is not None:
                f[self.vector_irrep] = f[self.vector_irrep] + graph.extra_vector
            f = gate(f)
        own = self.own(f[SCALAR][:, 0])
        seen = gather(f, sender)
        if self.pairwise:
            products = self.couplings["last"](kernels["last"], seen)
            message = self.last(products, edge)[SCALAR][:, 0]
            scalar = mean_with_own(own, message, envelope, receiver)  # s_i
        else:
            message = self.last(kernels["last"], seen, edge)[SCALAR][:, 0]
            damped = message if envelope is None else message * envelope
            total = sum_over(damped, receiver, own.shape[0]) / math.sqrt(n_typical(self.cutoff))
            scalar = nn.functional.silu(own + total)  # s_i
        return Features(scalar, f[self.vector_irrep])

    def kernels(self, graph: Graph) -> dict[str, ByIrrep]:
        """Σ_m Y_Jm(r̂) Q_Jm of every edge, for each kind of layer."""
        vector = graph.vector
        if "no-basis-gradient" in self.faults:
            vector = vector.detach()
        sphere = harmonics(self.degree, vector)  # [E, (2·max_degree+1)²]
        return {name: c.kernels(sphere) for name, c in self.couplings.items()}

    def edge_inputs(self, graph: Graph) -> Tensor:
        """What φ sees of each edge: [E, R]."""
        distance = graph.distance[:, None]
        if self.pairwise:
            return torch.cat([distance.new_zeros(distance.shape[0], BONDS), distance], 1)
        if self.basis is not None:
            scale = 0.75 * math.sqrt(self.radial)  # mean square 1
            return self.basis(graph.distance) * scale
        return distance / self.cutoff


def mean_with_own(
    own: Tensor,  # [N, F]
    message: Tensor,  # [E, F]
    envelope: Tensor | None,  # [E, 1] f_c
    receiver: Tensor,
) -> Tensor:
    """The atoms' own terms with the mean of their messages: [N, F].

    Without ``envelope`` a plain mean, in which the own term is part of every message.
    """
    n = own.shape[0]
    if envelope is not None:
        count = 1.0 + sum_over(envelope, receiver, n)  # Z_i
        return own + sum_over(message * envelope, receiver, n) / count
    count = torch.bincount(receiver, minlength=n)[:, None].clamp(min=1)
    return sum_over(message + own[receiver], receiver, n) / count


def n_typical(cutoff: float) -> float:
    """Neighbours of an atom in dense matter (0.1 atoms/Å³): the scale of a sum over them."""
    return 0.1 * 4 / 3 * math.pi * cutoff**3
