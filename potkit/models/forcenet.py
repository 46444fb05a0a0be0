"""ForceNet (Hu et al. 2021, arXiv 2103.01436), as the masked paper sets it: filters that see
direction and both atoms.

With a_i nine element properties scaled to [0, 1] (`elements`), ρ covalent radii, f_c a smooth
cutoff and s(x) = (sin 1.1⁰x, sin 1.1¹x, …) the basis "powersine":
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

What differs from the authors' codes: f_c is a polynomial, not cos(πd / 2r_c), whose slope does not
vanish at the cutoff; D_ij is not clipped at 10⁻³ (a sine does not mind a negative argument, and a
clip has a kink); BatchNorm, which makes a structure depend on its batch, is LayerNorm.
``faithful=True`` undoes all three and brings back the masked paper's fault: every atom is mapped to
oxygen, in properties and radii. The first layer of φ is linear in (U b, h_i, h_j), so its products
with h are taken per atom, not per edge: the same numbers.

Parameters: masked-paper 710 952, small 168 680 (counted by a test).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from e3nn import o3
from torch import Tensor, nn

from ..errors import ConfigError
from ..structures.element_properties import covalent_radii, element_properties
from . import faults as published_faults
from .graph import Features, Graph, Network
from .layers import AtomEmbedding, mlp, polynomial_envelope, sum_over

PRESETS = {
    "masked-paper": dict(
        hidden=128, layers=5, cutoff=3.4, max_n=3, frequencies=50, vector="direct", forces="vector"
    ),
    "small": dict(
        hidden=64, layers=4, cutoff=5.0, max_n=3, frequencies=50, vector="direct", forces="vector"
    ),
}
OXYGEN = 8


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

    def __init__(self, hidden: int, basis: int, norm: type[nn.Module]) -> None:
        super().__init__()
        # φ: three parts of its first layer, then the rest. Nothing stands between U and its part,
        # so both are one matrix
        self.from_edge = nn.Linear(basis, hidden)
        self.from_sender = nn.Linear(hidden, hidden, bias=False)
        self.from_receiver = nn.Linear(hidden, hidden, bias=False)
        self.filter = nn.Sequential(nn.SiLU(), *mlp([hidden] * 3))
        self.linear = nn.Linear(hidden, hidden)  # W'
        self.own = nn.Parameter(torch.randn(hidden) / math.sqrt(hidden))  # w
        self.update = nn.Sequential(  # ψ
            nn.Linear(hidden, hidden), norm(hidden), nn.SiLU(), nn.Linear(hidden, hidden)
        )

    def forward(
        self,
        h: Tensor,  # [N, F]
        edge: Tensor,  # [E, 4·max_n²] b_ij
        envelope: Tensor,  # [E, 1] f_c
        graph: Graph,
    ) -> Tensor:
        """ψ of the messages' sum and the atom's own: [N, F]."""
        joint = self.from_edge(edge) + self.from_sender(h)[graph.sender]
        joint = joint + self.from_receiver(h)[graph.receiver]
        weight = self.filter(joint)  # [E, F]
        x = self.linear(h)
        message = x[graph.sender] * (weight * envelope)
        return self.update(sum_over(message, graph.receiver, h.shape[0]) + self.own * x)


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
        charge: bool = False,
        faults: Sequence[str] = (),
    ) -> None:
        super().__init__()
        if min(hidden, layers, max_n, frequencies) < 1:
            raise ConfigError(
                "ForceNet needs hidden, layers, max_n and frequencies ≥ 1, "
                f"got {hidden}, {layers}, {max_n}, {frequencies}"
            )
        self.faults = published_faults.check("forcenet", faults)
        self.faithful = faithful = bool(self.faults)
        self.cutoff, self.n_features = cutoff, hidden
        # for flag and charge; the element part is replaced
        self.embedding = AtomEmbedding(hidden, charge)
        self.embedding.element = PropertyEmbedding(hidden, frequencies)
        radii = covalent_radii().to(torch.get_default_dtype())
        self.register_buffer("radii", radii, persistent=False)
        self.degrees = list(range(max_n))
        self.basis = PowerSine(frequencies)
        self.radial = nn.Linear(4 * frequencies, 4)  # V
        norm = nn.BatchNorm1d if faithful else nn.LayerNorm
        self.layers = nn.ModuleList(Interaction(hidden, 4 * max_n**2, norm) for _ in range(layers))
        self.decode = mlp([hidden, hidden], last=True)

    def forward(self, graph: Graph) -> Features:
        """Decoded scalars [N, F], not invariant under rotation."""
        if self.faithful:
            graph = graph._replace(z=torch.full_like(graph.z, OXYGEN))
            envelope = torch.cos(graph.distance * (0.5 * math.pi / self.cutoff))[:, None]
        else:
            envelope = polynomial_envelope(graph.distance, self.cutoff)[:, None]  # [E, 1]
        h, edge = self.embedding(graph), self.edge_basis(graph)
        for layer in self.layers:
            h = h + layer(h, edge, envelope, graph)
        return Features(self.decode(h))

    def edge_basis(self, graph: Graph) -> Tensor:
        """b_ij [E, 4·max_n²]."""
        d, radii = graph.distance, self.radii[graph.z]
        rho_i, rho_j = radii[graph.receiver], radii[graph.sender]
        distances = torch.stack([d, d - rho_i, d - rho_j, d - rho_i - rho_j], -1) / self.cutoff
        if self.faithful:
            distances = distances.clamp(min=1e-3)
        angular = o3.spherical_harmonics(
            self.degrees, graph.vector, normalize=True, normalization="component"
        )  # [E, max_n²]
        radial = self.radial(self.basis(distances))  # [E, 4]
        return (angular[:, :, None] * radial[:, None]).flatten(1)
