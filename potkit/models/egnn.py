"""EGNN: E(n)-equivariant graph network (Satorras, Hoogeboom, Welling, ICML 2021, arXiv 2102.09844),
as both papers set it.

Per layer, with r_ij = x_i − x_j and d_ij its length (equations 3–6 of the paper; ⊙ a gate, f_c a
smooth cutoff):
    m_ij = φ_e(h_i, h_j, d_ij²),   m_ij ← σ(a·m_ij) m_ij                 (attention gate: denoise paper only)
    x_i  ← x_i + Σ_j r_ij/d_ij · tanh φ_x(m_ij) · f_c                      (tanh: denoise paper only)
    h_i  ← h_i + φ_h(h_i, Σ_j m_ij f_c)                                    (residual)

What differs from the authors' codes: f_c, which neither has, makes energy and forces continuous
when a neighbour crosses the cutoff; the energy MLP acts per atom, so the energy is extensive.
``faithful=True`` undoes both (no f_c; features are summed over atoms before the MLP, as in the
denoise paper's code). Differences are normalised without detaching d_ij, so −∂E/∂x is the true
derivative. ``radial`` > 0 replaces d² as edge input by that many Bessel functions (ours; the papers
have 0).
The first layer of φ_e is linear in (h_i, h_j, d²), so W[h_i, h_j, d²] = W_i h_i + W_j h_j + w d²:
two products per atom instead of one twice as wide per edge, the same numbers.

Parameters: denoise-paper 2 400 779, masked-paper 610 182, small 130 441 (counted by a test).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .base import Features, Graph
from .egnn_edges import edge_block, plain
from .layers import AtomEmbedding, BesselBasis, in_blocks, mlp, polynomial_envelope, sum_over

PRESETS = {
    "denoise-paper": dict(
        hidden=256, layers=5, attention=True, tanh=True, cutoff=5.0, vector="coordinate"
    ),
    "masked-paper": dict(
        hidden=128,
        layers=5,
        attention=False,
        tanh=False,
        cutoff=3.4,
        vector="gradient",
        head_norm=True,
    ),
    "small": dict(
        hidden=64, layers=4, attention=True, tanh=True, radial=8, cutoff=5.0, vector="coordinate"
    ),
}


class Layer(nn.Module):
    """One message-passing layer; see the module's docstring."""

    def __init__(self, hidden: int, radial: int, attention: bool, tanh: bool) -> None:
        super().__init__()
        self.from_receiver = nn.Linear(hidden, hidden, bias=False)
        self.from_sender = nn.Linear(hidden, hidden, bias=False)
        self.from_distance = nn.Linear(max(radial, 1), hidden)
        # Bessel functions are about 0.35 in size: without this, distances start out as a whisper
        # among the atoms' terms
        if radial:
            with torch.no_grad():
                self.from_distance.weight.mul_(5.0)
        self.message = mlp([hidden, hidden], last=True)
        self.gate = nn.Linear(hidden, 1) if attention else None
        self.coordinate = mlp([hidden, hidden, 1])
        # start as (almost) the identity on coordinates
        nn.init.xavier_uniform_(self.coordinate[-1].weight, gain=0.001)
        nn.init.zeros_(self.coordinate[-1].bias)
        self.update = mlp([2 * hidden, hidden, hidden])
        self.tanh = tanh

    def forward(
        self,
        h: Tensor,  # [N, F]
        x: Tensor,  # [N, 3]
        vector: Tensor,  # [E, 3] x_j − x_i
        distance: Tensor,  # [E]
        edge: Tensor,  # [E, R] d² or radial functions of d
        envelope: Tensor | None,  # [E, 1]
        sender: Tensor,
        receiver: Tensor,
        blocked: bool,  # go through the edges in blocks, see `egnn_edges`
    ) -> tuple[Tensor, Tensor]:
        # in the whole layer only these two products are with [h_i, h_j]; the bias of the first
        # joins the one per atom
        p = self.from_receiver(h) + self.from_distance.bias
        q = self.from_sender(h)
        gate = (None, None) if self.gate is None else (self.gate.weight, self.gate.bias)
        first, last = self.coordinate[0], self.coordinate[2]
        weights = (
            self.from_distance.weight,
            self.message[0].weight,
            self.message[0].bias,
            *gate,
            first.weight,
            first.bias,
            last.weight,
            last.bias,
        )
        run = edge_block if blocked else plain
        total, weight = run(p, q, edge, envelope, weights, sender, receiver)  # [N, F], [E]
        weight = (torch.tanh(weight) if self.tanh else weight)[:, None]
        if envelope is not None:
            weight = weight * envelope
        x = x + sum_over(-vector / (distance[:, None] + 1e-8) * weight, receiver, x.shape[0])
        h = h + self.update(torch.cat([h, total], -1))
        return h, x


class EGNN(nn.Module):
    """The backbone: `Graph` -> `Features` with scalars [N, hidden] and the displacement x_L − x
    [N, 3] in Å.
    """

    n_vector_features = 0
    kernel_order = 1  # kernels serve first derivatives: see potkit.compiling
    gives_displacement = True
    faithful_pooled = True  # the denoise paper sums features over atoms before the energy MLP

    def __init__(
        self,
        hidden: int = 256,
        layers: int = 5,
        cutoff: float = 5.0,
        attention: bool = True,
        tanh: bool = True,
        radial: int = 0,
        charge: bool = False,
        faithful: bool = False,
    ) -> None:
        super().__init__()
        if hidden < 1 or layers < 1 or radial < 0:
            raise ConfigError(
                f"EGNN needs hidden ≥ 1, layers ≥ 1, radial ≥ 0, got {hidden}, {layers}, {radial}"
            )
        self.cutoff, self.n_features, self.faithful = cutoff, hidden, faithful
        self.embedding = AtomEmbedding(hidden, charge)
        self.basis = BesselBasis(radial, cutoff) if radial else None
        self.layers = nn.ModuleList(Layer(hidden, radial, attention, tanh) for _ in range(layers))

    def forward(self, graph: Graph) -> Features:
        h, x = self.embedding(graph), graph.pos
        envelope = (
            None if self.faithful else polynomial_envelope(graph.distance, self.cutoff)[:, None]
        )
        vector, distance = graph.vector, graph.distance
        blocked = in_blocks(h, twice=self.training and graph.pos.requires_grad)
        for i, layer in enumerate(self.layers):
            # later layers see the moved atoms; the edges and their envelope stay those of the input
            if i:
                vector = x[graph.sender] - x[graph.receiver]
                vector = vector if graph.shift is None else vector + graph.shift
                distance = (vector.square().sum(1) + 1e-12).sqrt()
            edge = distance.square()[:, None] if self.basis is None else self.basis(distance)
            h, x = layer(
                h, x, vector, distance, edge, envelope, graph.sender, graph.receiver, blocked
            )
        return Features(h, displacement=x - graph.pos)
