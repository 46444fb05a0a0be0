"""ForceNet (Hu et al. 2021, arXiv 2103.01436), as the masked paper sets it: filters that see
direction and both atoms.

With a_i nine element properties scaled to [0, 1] (`elements`), ρ radii of the atoms, f_c a cutoff
and s(x) = (sin 1.1⁰x, sin 1.1¹x, …) the basis "powersine":
    nodes     h_i  = W s(a_i)
    edges     D_ij = (d, d − ρ_i, d − ρ_j, d − ρ_i − ρ_j) / r_c
              b_ij = Y_lm(r̂_ij) ⊗ V s(D_ij),  l < max_n         the basis "sphallmul"
    message   F_ij = f_c(d_ij) φ(U b_ij, h_i, h_j)              a filter conditioned on the nodes
                                                                (section 3.2)
    update    h_i  ← h_i + ψ(Σ_j F_ij ⊙ W' h_j + w ⊙ W' h_i)    continuous-filter convolution with
                                                                self message
    decode    σ(W'' h_i)      from which the read-outs make three numbers (force-centric) and an
                              atomic energy

What it lacks: Y_lm enters as plain numbers, so nothing is invariant or equivariant under rotation
and reflection (the paper rotates its training data at random instead). Translation and permutation
hold exactly.

The preset "masked-paper" has the paper's parts: ρ are Slater's atomic radii (H 0.25, O 0.60 Å),
D_ij is clipped at 10⁻³, f_c = cos(πd / 2r_c), which vanishes at r_c with a slope, ψ and the force
decoder have a BatchNorm, so that in training a structure depends on the others of its batch (and of
its part, where memory is short and a batch goes through in parts), all linear layers start as
Glorot and Bengio's (Xavier), forces are Linear–BatchNorm–SiLU–Linear of the decoded features and
the energy is one linear layer of theirs (``head="forcenet"``).
What differs from the masked paper there, by our choice: that linear layer acts per atom, so the
energy is extensive, its constant included; the polarizability of the atom replaces the atomic
volume among the nine properties, and their values are those of `element_properties` (the code has
other electronegativities and covalent radii: H 1.0 and 0.014, O 0.42 and 0.18 of the scale);
elements that Slater does not list have their covalent radius; harmonics are real.
The published code has these faults (see `faults`): "all-oxygen", in properties and radii,
"no-basis-gradient" (Y_lm without gradients), "pooled" (the energy's constant does not grow with the
number of atoms) and "mask-shift". ``faithful=True`` switches on all of them, and then the network
computes what the code does, given its table of properties (a test compares). The cutoff of 3.4 Å
is the paper's for water (its code has 3.5).

The constructor's defaults and "small" are ours: ρ covalent radii, D_ij as it is (a sine does not
mind a negative argument, and a clip has a kink), a polynomial f_c without a slope at the cutoff,
LayerNorm for BatchNorm, torch's initial weights, MLPs for read-outs; and nothing stands between U
and its part of φ's first layer, so both are one matrix. The first layer of φ is linear in (U b,
h_i, h_j), so its products with h are taken per atom, not per edge: the same numbers.

Parameters: masked-paper 777 256, small 168 680 (counted by a test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from ..errors import ConfigError
from ..structures.element_properties import atomic_radii, covalent_radii, element_properties
from . import faults as published_faults
from .equivariant import MAX_DEGREE
from .graph import Features, Graph, Network
from .layers import AtomEmbedding, mlp, polynomial_envelope, sum_over

PRESETS = {
    "masked-paper": dict(
        hidden=128,
        layers=5,
        cutoff=3.4,
        max_n=3,
        frequencies=50,
        radii="atomic",
        clip=True,
        envelope="quarter-cosine",
        norm="batch",
        basis_layer=True,
        xavier=True,
        head="forcenet",
        vector="direct",
        forces="vector",
    ),
    "small": dict(
        hidden=64, layers=4, cutoff=5.0, max_n=3, frequencies=50, vector="direct", forces="vector"
    ),
}
OXYGEN = 8


def quarter_cosine(distance: Tensor, cutoff: float) -> Tensor:
    """cos(π d / 2 cutoff): 1 at 0, 0 at the cutoff, where it has a slope. [E] Å -> [E]"""
    return torch.cos(distance * (0.5 * math.pi / cutoff))


RADII = {"covalent": covalent_radii, "atomic": atomic_radii}
ENVELOPES = {"polynomial": polynomial_envelope, "quarter-cosine": quarter_cosine}
NORMS = {"layer": nn.LayerNorm, "batch": nn.BatchNorm1d}


class PowerSine(nn.Module):
    """s(x) with ``size`` frequencies: [M, K] -> [M, K·size] (appendix on basis functions)."""

    def __init__(self, size: int) -> None:
        super().__init__()
        powers = 1.1 ** torch.arange(size, dtype=torch.float64)
        self.register_buffer("powers", powers.to(torch.get_default_dtype()), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """s(x) of every entry: [M, K] -> [M, K·size]."""
        return torch.sin(x[:, :, None] * self.powers).flatten(1)


class PropertyEmbedding(nn.Module):
    """Atomic numbers [N] -> h [N, hidden], by the properties a and their basis."""

    def __init__(self, hidden: int, frequencies: int) -> None:
        super().__init__()
        table = element_properties()[1:]  # [118, 9]
        low, high = table.amin(0), table.amax(0)
        scaled = torch.cat([torch.zeros(1, table.shape[1]), (table - low) / (high - low)])
        self.register_buffer("table", scaled.to(torch.get_default_dtype()), persistent=False)
        self.basis = PowerSine(frequencies)
        self.linear = nn.Linear(table.shape[1] * frequencies, hidden)  # W

    def forward(self, z: Tensor) -> Tensor:
        """h of atomic numbers: [N] -> [N, hidden]."""
        return self.linear(self.basis(self.table))[z]  # once per element, then gathered


class Interaction(nn.Module):
    """Message and update: the change of h."""

    def __init__(
        self, hidden: int, basis: int, norm: type[nn.Module], basis_layer: bool, xavier: bool
    ) -> None:
        super().__init__()
        self.embed_basis = nn.Linear(basis, hidden) if basis_layer else None  # U
        # φ: three parts of its first layer, then the rest. Without U, its part is both in one
        self.from_edge = nn.Linear(hidden if basis_layer else basis, hidden)
        self.from_sender = nn.Linear(hidden, hidden, bias=False)
        self.from_receiver = nn.Linear(hidden, hidden, bias=False)
        self.filter = nn.Sequential(nn.SiLU(), *mlp([hidden] * 3))
        self.linear = nn.Linear(hidden, hidden)  # W'
        self.own = nn.Parameter(torch.randn(hidden) / math.sqrt(hidden))  # w
        self.update = nn.Sequential(  # ψ
            nn.Linear(hidden, hidden), norm(hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )
        if xavier:
            start_as_xavier(self)
            # φ's first layer is one matrix of three times as many inputs
            for part in (self.from_edge, self.from_sender, self.from_receiver):
                inputs = 2 * hidden + self.from_edge.in_features
                bound = math.sqrt(6 / (inputs + hidden))
                nn.init.uniform_(part.weight, -bound, bound)
            nn.init.xavier_uniform_(self.own[None])

    def forward(
        self,
        h: Tensor,  # [N, F]
        edge: Tensor,  # [E, 4·max_n²] b_ij
        envelope: Tensor,  # [E, 1] f_c
        graph: Graph,
    ) -> Tensor:
        """ψ of the messages' sum and the atom's own: [N, F]."""
        basis = edge if self.embed_basis is None else self.embed_basis(edge)
        joint = self.from_edge(basis) + self.from_sender(h)[graph.sender]
        joint = joint + self.from_receiver(h)[graph.receiver]
        weight = self.filter(joint)  # [E, F]
        x = self.linear(h)
        message = x[graph.sender] * (weight * envelope)
        return self.update(sum_over(message, graph.receiver, h.shape[0]) + self.own * x)


def start_as_xavier(module: nn.Module) -> None:
    """Glorot and Bengio's initial weights for all linear layers of ``module``, biases 0."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class ForceNet(Network):
    """The backbone: `Graph` -> `Features`: scalars [N, hidden], not invariant under rotation."""

    symmetries = frozenset({"translation", "permutation"})

    def __init__(
        self,
        hidden: int = 128,
        layers: int = 5,
        cutoff: float = 3.4,
        max_n: int = 3,
        frequencies: int = 50,
        radii: str = "covalent",
        clip: bool = False,
        envelope: str = "polynomial",
        norm: str = "layer",
        basis_layer: bool = False,
        xavier: bool = False,
        charge: bool = False,
        faults: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if min(hidden, layers, max_n, frequencies) < 1:
            raise ConfigError(
                "ForceNet needs hidden, layers, max_n and frequencies ≥ 1, "
                f"got {hidden}, {layers}, {max_n}, {frequencies}"
            )
        if max_n > MAX_DEGREE + 1:
            raise ConfigError(f"ForceNet has max_n up to {MAX_DEGREE + 1}, got {max_n}")
        for name, value, known in (
            ("radii", radii, RADII),
            ("envelope", envelope, ENVELOPES),
            ("norm", norm, NORMS),
        ):
            if value not in known:
                raise ConfigError(f"unknown {name} {value!r}; there are {', '.join(known)}")
        self.faults = published_faults.check("forcenet", faults)
        self.cutoff, self.n_features, self.clip = cutoff, hidden, clip
        self.smooth = not clip
        self.envelope = ENVELOPES[envelope]
        # for flag and charge; the element part is replaced
        self.embedding = AtomEmbedding(hidden, charge, faults=self.faults)
        self.embedding.element = PropertyEmbedding(hidden, frequencies)
        table = RADII[radii]().to(torch.get_default_dtype())
        self.register_buffer("radii", table, persistent=False)
        self.degrees = list(range(max_n))
        self.basis = PowerSine(frequencies)
        self.radial = nn.Linear(4 * frequencies, 4)  # V
        sizes = hidden, 4 * max_n**2, NORMS[norm]
        self.layers = nn.ModuleList(Interaction(*sizes, basis_layer, xavier) for _ in range(layers))
        self.decode = mlp([hidden, hidden], last=True)
        if xavier:
            for part in (self.embedding.element, self.radial, self.decode):
                start_as_xavier(part)

    def forward(self, graph: Graph) -> Features:
        """Decoded scalars [N, F], not invariant under rotation."""
        if "all-oxygen" in self.faults:
            graph = graph._replace(z=torch.full_like(graph.z, OXYGEN))
        envelope = self.envelope(graph.distance, self.cutoff)[:, None]  # [E, 1]
        h, edge = self.embedding(graph), self.edge_basis(graph)
        for layer in self.layers:
            h = h + layer(h, edge, envelope, graph)
        return Features(self.decode(h))

    def edge_basis(self, graph: Graph) -> Tensor:
        """b_ij [E, 4·max_n²]."""
        d, radii = graph.distance, self.radii[graph.z]
        rho_i, rho_j = radii[graph.receiver], radii[graph.sender]
        distances = torch.stack([d, d - rho_i, d - rho_j, d - rho_i - rho_j], -1) / self.cutoff
        if self.clip:
            distances = distances.clamp(min=1e-3)
        vector = graph.vector.detach() if "no-basis-gradient" in self.faults else graph.vector
        angular = o3.spherical_harmonics(
            self.degrees, vector, normalize=True, normalization="component"
        )  # [E, max_n²]
        radial = self.radial(self.basis(distances))  # [E, 4]
        return (angular[:, :, None] * radial[:, None]).flatten(1)
