"""Read-outs: from a backbone's `Features` to the energy of each atom, or to one vector per atom."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from .graph import Features, Graph
from .layers import ShiftedSoftplus, glorot, mlp, sum_over

# from features to the energy of an atom, by the name of the read-out option ``head``
HEADS: dict[str, Callable[[int], nn.Module]] = {
    "mlp": lambda features: mlp([features, features, 1]),
    # Schütt et al. 2018, SchNet
    "schnet": lambda features: mlp([features, max(features // 2, 1), 1], ShiftedSoftplus),
    # denoise paper, SE(3)-Transformer
    "relu": lambda features: mlp([features, features, 1], nn.ReLU),
    # masked paper, GNS and ForceNet
    "gns": lambda features: mlp([features, features, features, 1], nn.ReLU),
    "forcenet": lambda features: nn.Sequential(glorot(features, 1)),
}
# from features to three numbers, the decoder that goes with a ``head``; where there is none, "mlp"
DECODERS: dict[str, Callable[[int], nn.Module]] = {
    "mlp": lambda features: mlp([features, features, 3]),
    "gns": lambda features: mlp([features, features, features, 3], nn.ReLU),
    "forcenet": lambda features: nn.Sequential(
        glorot(features, features), nn.BatchNorm1d(features), nn.SiLU(), glorot(features, 3)
    ),
}


class AtomicEnergy(nn.Module):
    """Energy of each atom from its features by an MLP, [N, F] -> [N].

    It is dimensionless; `Potential` scales it to eV. ``norm`` puts a LayerNorm first (masked
    paper). ``pooled`` sums features over the structure before the MLP ("mean": averages them), as
    the denoise paper's code does: then the energy is not size-extensive; [N, F] -> [S]. ``head``
    names the MLP, one of `HEADS`. Raises ConfigError for a ``head`` or ``pooled`` that is unknown.
    """

    def __init__(
        self,
        features: int,
        norm: bool = False,
        pooled: bool | str = False,
        head: str = "mlp",
    ) -> None:
        super().__init__()
        if pooled not in (False, True, "mean"):
            raise ConfigError(f"pooled must be True, False or 'mean', got {pooled!r}")
        if head not in HEADS:
            raise ConfigError(f"unknown energy head {head!r}; there are {', '.join(HEADS)}")
        self.pooled, self.kind = pooled, head
        self.norm = nn.LayerNorm(features) if norm else nn.Identity()
        self.mlp = HEADS[head](features)

    def forward(self, features: Tensor, graph: Graph) -> Tensor:
        """Energies of atoms [N], or of structures [S] if ``pooled``, without a unit."""
        if self.pooled:
            features = sum_over(features, graph.batch, graph.n_structures)
        if self.pooled == "mean":
            count = torch.bincount(graph.batch, minlength=graph.n_structures).clamp(min=1)
            features = features / count[:, None]
        return self.mlp(self.norm(features))[:, 0]


class GradientVector(nn.Module):
    """−∂E/∂x of the (dimensionless) energy head.

    Denoise paper for SchNet and SE(3)-Transformer, masked paper for EGNN.
    """

    needs = "scalar"

    def forward(self, features: Features, graph: Graph, energy: Tensor, keep_graph: bool) -> Tensor:
        """−∂E/∂x [N, 3] of the atoms' energies [N]; ``keep_graph``: to be differentiated again."""
        return -torch.autograd.grad(
            energy.sum(), graph.pos, create_graph=keep_graph, retain_graph=True
        )[0]


class CoordinateVector(nn.Module):
    """The coordinate update x_L − x of the message-passing layers (denoise paper, EGNN)."""

    needs = "displacement"

    def forward(
        self, features: Features, graph: Graph, energy: Tensor | None, keep_graph: bool
    ) -> Tensor:
        """The displacement [N, 3] Å of ``features``; no energy is needed."""
        return features.displacement


class DirectVector(nn.Module):
    """From scalars to three numbers (GNS, ForceNet); not rotation-equivariant.

    ``head`` names the energy head that the decoder goes with, see `DECODERS`.
    """

    needs = "scalar"

    def __init__(self, features: int, head: str = "mlp") -> None:
        super().__init__()
        self.mlp = DECODERS.get(head, DECODERS["mlp"])(features)

    def forward(
        self, features: Features, graph: Graph, energy: Tensor | None, keep_graph: bool
    ) -> Tensor:
        """Three numbers per atom, [N, F] -> [N, 3]; no energy is needed."""
        return self.mlp(features.scalar)


class GatedBlock(nn.Module):
    """Gated equivariant block: scalars see vector norms, vectors are gated by scalars.

    Schütt et al. 2021, PaiNN fig. 3.
    """

    def __init__(self, scalars: int, vectors: int, out_scalars: int, out_vectors: int) -> None:
        super().__init__()
        self.mix = nn.Linear(vectors, vectors + out_vectors, bias=False)
        self.split = (vectors, out_vectors)
        self.net = mlp([scalars + vectors, scalars, out_scalars + out_vectors])
        self.out = (out_scalars, out_vectors)

    def forward(
        self,
        scalar: Tensor,  # [N, F]
        vector: Tensor,  # [N, 3, F']
    ) -> tuple[Tensor, Tensor]:
        """Scalars [N, out_scalars] and vectors [N, 3, out_vectors]."""
        for_norm, for_gate = self.mix(vector).split(self.split, dim=-1)
        # the small term keeps the derivative finite for vanishing vectors
        norm = (for_norm.square().sum(1) + 1e-12).sqrt()
        scalar, gate = self.net(torch.cat([scalar, norm], -1)).split(self.out, dim=-1)
        return nn.functional.silu(scalar), for_gate * gate[:, None]


class GatedVector(nn.Module):
    """Two gated equivariant blocks -> one vector per atom (denoise paper, TorchMD-Net ET)."""

    needs = "vector"

    def __init__(self, features: int, vector_features: int) -> None:
        super().__init__()
        half = max(features // 2, 1)
        self.first = GatedBlock(features, vector_features, half, half)
        self.second = GatedBlock(half, half, 1, 1)

    def forward(
        self, features: Features, graph: Graph, energy: Tensor | None, keep_graph: bool
    ) -> Tensor:
        """One vector per atom from scalars [N, F] and vectors [N, 3, F']: [N, 3]."""
        scalar, vector = self.first(features.scalar, features.vector)
        _, vector = self.second(scalar, vector)
        return vector[..., 0]


class NoiseReadout(nn.Module):
    """A second vector read-out beside the potential's own, of the same kind.

    One that is a gradient has an energy head of its own. Where forces come from the potential's
    vector read-out or energy head, noise and forces would contradict each other there.
    """

    def __init__(self, readout: nn.Module, head: AtomicEnergy | None) -> None:
        super().__init__()
        self.readout, self.head = readout, head

    def forward(self, features: Features, graph: Graph, keep_graph: bool) -> Tensor:
        """The second vector [N, 3] of each atom, from its features."""
        energy = None if self.head is None else self.head(features.scalar, graph)
        return self.readout(features, graph, energy, keep_graph)


READOUTS = {
    "gradient": GradientVector,
    "coordinate": CoordinateVector,
    "direct": DirectVector,
    "gated": GatedVector,
}
