"""ForceNet as in the masked paper's code (arXiv 2402.15921; Hu et al. 2021, arXiv 2103.01436).

    s(x)  = (sin 1.1⁰x, sin 1.1¹x, …)                             power-sine basis
    h_i   = W s(a_i) + w + embed'(flag_i)
    D_ij  = max(10⁻³, (d, d − ρ_j, d − ρ_i, d − ρ_i − ρ_j) / r_c)
    b_ij  = Y_lm(r̂_ij) ⊗ (V s(D_ij) + v),   l < max_n
    F_ij  = cos(πd / 2r_c) φ(U b_ij + u, h_j, h_i)                filter conditioned on both atoms
    h_i   ← h_i + ψ(Σ_j F_ij ⊙ W' h_j + c ⊙ W' h_i)               ψ has a BatchNorm
    g_i   = swish(W'' h_i + w'')
    E     = a · Σ_i g_i + b,   "forces" = Linear–BatchNorm–swish–Linear(3) of g_i
r_ij is the minimum image of x_j − x_i. a_i are nine element properties scaled to [0, 1], ρ atomic
(not covalent) radii in Å; both stand in the state dict. Y_lm are complex spherical harmonics: those
of m = 0, then the real parts of m > 0, then their imaginary parts.

Published faults that stand here:
- "all-oxygen": types are taken for a data set that says 0 for hydrogen; they are 10 and 21 for H
  and O, so every atom becomes oxygen in properties and radius (and Br⁻, row 0, hydrogen). The
  network cannot tell hydrogen from oxygen.
- "no-basis-gradient": Y_lm pass through NumPy in float32, so they have no derivative.
- "mask-shift": where flags are given, unflagged atoms get row 0 of the flag's embedding;
  fine-tuning gives none.
- "pooled": the energy is one linear layer of the SUM, so its constant b does not grow with the
  number of atoms.
- Nothing is invariant under rotation (ForceNet's own choice); cos(πd / 2r_c) has a slope at the
  cutoff.
The code knows periodic boxes only; free molecules go through it here without minimum images.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from e3nn import o3
from torch import Tensor, nn

from ..base import Features
from ..faults import of
from ..layers import sum_over
from .common import CodeGraph, DirectForces, PooledEnergy, Published, minimum_image

SETTINGS: dict[str, Any] = dict(  # the paper's; 3.4 Å
    hidden_channels=128,
    decoder_hidden_channels=128,
    num_interactions=5,
    cutoff=3.4,
    num_freqs=50,
    max_n=3,
    depth_mlp_edge=2,
    depth_mlp_node=1,
)
ALIASES = {
    "hidden": "hidden_channels",
    "decoder_hidden": "decoder_hidden_channels",
    "interactions": "num_interactions",
}
WITHOUT_EFFECT = (
    "num_atoms",
    "bond_feat_dim",
    "num_targets",
    "training",
    "otf_graph",
    "use_pbc",
    "pretrain_return",
)
FIXED = {
    "feat": "full",
    "basis": "sphallmul",
    "activation_str": "swish",
    "ablation": "none",
    "decoder_type": "mlp",
    "decoder_activation_str": "swish",
}
NAMES = (
    ("energy_mlp.", "energy_head.0."),
    ("decoder.decoder.", "vector_readout."),
    ("", "backbone."),
)
UNUSED: tuple[str, ...] = ()
PROPERTIES, DISTANCES, ROWS = 9, 4, 101
HYDROGEN, OXYGEN = 1, 8
# What the code's tables hold for the only two elements the network can see, for a network with new
# weights: radii in Å, and group, period, electronegativity, covalent radius, valence electrons,
# ionisation energy, electron affinity, block and atomic volume, each scaled to [0, 1].
RADII = {HYDROGEN: 0.25, OXYGEN: 0.60}
SCALED_PROPERTIES = {
    HYDROGEN: (0.0, 0.0, 1.0, 0.0138889, 0.0, 0.4689656, 0.8773833, 0.0, 0.1452599),
    OXYGEN: (
        0.8823529,
        0.1666667,
        0.4174016,
        0.1759259,
        0.4545455,
        0.4699137,
        0.9077066,
        0.3333333,
        0.1437309,
    ),
}


class PowerSine(nn.Module):
    """s(x): [M, K] -> [M, frequencies · K], frequencies outer."""

    def __init__(self, features: int, frequencies: int) -> None:
        super().__init__()
        powers = 1.1 ** torch.arange(frequencies, dtype=torch.get_default_dtype())
        self.register_buffer("freq_filter", powers.repeat_interleave(features)[None])

    def forward(self, x: Tensor) -> Tensor:
        """s(x) of every entry: [M, K] -> [M, frequencies · K]."""
        return torch.sin(x.repeat(1, self.freq_filter.shape[1] // x.shape[1]) * self.freq_filter)


class NodeBasis(nn.Module):
    """s(a_i)."""

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.smearing = PowerSine(PROPERTIES, frequencies)

    def forward(self, properties: Tensor) -> Tensor:
        """s(a_i): [N, 9] -> [N, 9 · frequencies]."""
        return self.smearing(properties)


class EdgeBasis(nn.Module):
    """b_ij from distances [E, 4] and harmonics [E, max_n²]: [E, 4 · max_n²], harmonics outer."""

    def __init__(self, frequencies: int) -> None:
        super().__init__()
        self.smearing_sine = PowerSine(DISTANCES, frequencies)
        self.lin = nn.Linear(DISTANCES * frequencies, DISTANCES)

    def forward(self, distances: Tensor, harmonics: Tensor) -> Tensor:
        """b_ij of every edge: [E, 4] and [E, max_n²] -> [E, 4 · max_n²]."""
        radial = self.lin(self.smearing_sine(distances))
        return (harmonics[:, :, None] * radial[:, None]).flatten(1)


@torch.no_grad()  # "no-basis-gradient"
def complex_harmonics(direction: Tensor, max_n: int) -> Tensor:
    """Y_lm of l < ``max_n`` in the order of the module's docstring, [E, 3] -> [E, max_n²].

    Rounded to float32, as in the code.
    """
    # e3nn's polar axis is y and its azimuth runs from z to x; its real harmonics are √2 Re and
    # √2 Im of the complex ones, without their (−1)ᵐ
    turned = direction[:, [1, 2, 0]]
    real = o3.spherical_harmonics(
        list(range(max_n)), turned, normalize=True, normalization="integral"
    )
    orders = [(n, m) for n in range(max_n) for m in range(1, n + 1)]  # n for the literature's l
    phase = real.new_tensor([(-1) ** m / math.sqrt(2.0) for _, m in orders])
    zero = real[:, [n * n + n for n in range(max_n)]]
    cosine = real[:, [n * n + n + m for n, m in orders]] * phase
    sine = real[:, [n * n + n - m for n, m in orders]] * phase
    return torch.cat([zero, cosine, sine], 1).float().to(direction.dtype)


class Interaction(nn.Module):
    """The change of h; see the module's docstring."""

    def __init__(self, hidden: int, basis: int, edge_depth: int, node_depth: int) -> None:
        super().__init__()
        self.lin_basis = nn.Linear(basis, hidden)
        filter_layers: list[nn.Module] = [nn.Linear(3 * hidden, hidden)]
        for _ in range(edge_depth):
            filter_layers += [nn.SiLU(), nn.Linear(hidden, hidden)]
        self.mlp_edge = nn.Sequential(*filter_layers)
        self.lin = nn.Linear(hidden, hidden)
        self.center_W = nn.Parameter(torch.empty(1, hidden))
        nn.init.xavier_uniform_(self.center_W)
        update_layers: list[nn.Module] = [nn.Linear(hidden, hidden)]
        for _ in range(node_depth):
            update_layers += [nn.BatchNorm1d(hidden), nn.SiLU(), nn.Linear(hidden, hidden)]
        self.mlp_trans = nn.Sequential(*update_layers)

    def forward(
        self,
        h: Tensor,  # [N, F]
        basis: Tensor,  # [E, 4 · max_n²]
        envelope: Tensor,  # [E, 1]
        sender: Tensor,
        receiver: Tensor,
    ) -> Tensor:
        """What the neighbours and the atom itself change in h: [N, F] -> [N, F]."""
        seen = torch.cat([self.lin_basis(basis), h[sender], h[receiver]], 1)
        weight = self.mlp_edge(seen) * envelope  # [E, F]
        x = self.lin(h)
        return self.mlp_trans(sum_over(x[sender] * weight, receiver, len(h)) + self.center_W * x)


class ForceNet(nn.Module):
    """The backbone: `CodeGraph` -> `Features`.

    Scalars are [N, decoder_hidden_channels]; they are not invariant under rotation.
    """

    n_vector_features = 0
    gives_displacement = False
    boxes = True
    faults = of("forcenet", "masked-paper")
    formal_charges = False  # read through `CodeGraph.type`
    stacks = ("interactions",)
    symmetries = frozenset({"translation", "permutation"})

    def __init__(
        self,
        hidden_channels: int,
        decoder_hidden_channels: int,
        num_interactions: int,
        cutoff: float,
        num_freqs: int,
        max_n: int,
        depth_mlp_edge: int,
        depth_mlp_node: int,
    ) -> None:
        super().__init__()
        self.cutoff, self.n_features, self.max_n = cutoff, decoder_hidden_channels, max_n
        # by atomic number; a state dict has all rows
        radii, properties = torch.zeros(ROWS), torch.zeros(ROWS, PROPERTIES)
        for z, radius in RADII.items():
            radii[z], properties[z] = radius, torch.tensor(SCALED_PROPERTIES[z])
        self.register_buffer("atom_radii", radii)
        self.register_buffer("atom_map", properties)
        self.embedding = nn.Sequential(
            NodeBasis(num_freqs), nn.Linear(PROPERTIES * num_freqs, hidden_channels)
        )
        self.mask_embedding = nn.Embedding(2, hidden_channels)
        self.basis_fun = EdgeBasis(num_freqs)
        self.interactions = nn.ModuleList(
            Interaction(hidden_channels, DISTANCES * max_n**2, depth_mlp_edge, depth_mlp_node)
            for _ in range(num_interactions)
        )
        self.lin = nn.Linear(hidden_channels, decoder_hidden_channels)

    def forward(self, graph: CodeGraph) -> Features:
        """Scalars g_i [N, decoder_hidden_channels], not invariant under rotation."""
        sender, receiver = graph.sender, graph.receiver
        z = torch.where(graph.type == 0, HYDROGEN, OXYGEN)  # "all-oxygen"
        h = self.embedding(self.atom_map[z])
        if graph.mask is not None:
            h = h + self.mask_embedding(graph.mask)  # "mask-shift"
        box = None if graph.box is None else graph.box[graph.batch[receiver]]  # [E, 3]
        vector = minimum_image(graph.pos[sender] - graph.pos[receiver], box)
        d = torch.linalg.vector_norm(vector, dim=1) + 1e-8
        from_sender, from_receiver = self.atom_radii[z[sender]], self.atom_radii[z[receiver]]
        gaps = [d, d - from_sender, d - from_receiver, d - from_sender - from_receiver]
        distances = (torch.stack(gaps, 1) / self.cutoff).clamp(min=1e-3)  # [E, 4]
        harmonics = complex_harmonics(vector / d[:, None], self.max_n)
        basis = self.basis_fun(distances, harmonics)
        envelope = torch.cos(d * (0.5 * math.pi / self.cutoff))[:, None]
        for interaction in self.interactions:
            h = h + interaction(h, basis, envelope, sender, receiver)
        return Features(nn.functional.silu(self.lin(h)))


def sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """The settings that a state dict tells."""
    decoder, hidden = state["lin.weight"].shape
    first = "interactions.0."
    blocks = [int(k.split(".")[1]) for k in state if k.startswith("interactions.")]
    edge = [k for k in state if k.startswith(f"{first}mlp_edge.") and k.endswith(".weight")]
    node = [k for k in state if k.startswith(f"{first}mlp_trans.") and k.endswith(".running_mean")]
    return dict(
        hidden_channels=hidden,
        decoder_hidden_channels=decoder,
        num_interactions=1 + max(blocks),
        num_freqs=state["basis_fun.smearing_sine.freq_filter"].shape[1] // DISTANCES,
        max_n=math.isqrt(state[f"{first}lin_basis.weight"].shape[1] // DISTANCES),
        depth_mlp_edge=len(edge) - 1,
        depth_mlp_node=len(node),
    )


def network(**settings: Any) -> Published:
    """The network with new weights, under the published code's names of settings."""
    width = settings["decoder_hidden_channels"]
    forces = DirectForces(
        nn.Linear(width, width), nn.BatchNorm1d(width), nn.SiLU(), nn.Linear(width, 3)
    )
    outputs = ("energy", "vector", "forces")
    head = PooledEnergy(nn.Linear(width, 1))
    return Published(
        ForceNet(**settings), head, forces, vector="direct", forces="vector", outputs=outputs
    )
