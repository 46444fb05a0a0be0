"""AnisotropicDenoise: noise that is small along bonds, larger across them, and its own per element.

Atoms do not vibrate the same way in all directions: a bond gives much less along itself than
across. Isotropic noise wide enough to reach across breaks bonds. AniDS (Liu et al. 2025, arXiv
2510.22123) learns a covariance per atom; here it is written down, as that of atoms held by springs.
Every atom i of the clean structure x gets its own precision matrix, with r̂_ij the directions and
w_ij ∈ [0, 1] the strengths of its bonds:

    x̃ = x + ε,                    ε_i ~ N(0, Σ_i(x))
    Σ_i(x)⁻¹ = σ_z⁻² A_i
    A_i = 1 + κ Σ_j w_ij r̂_ij r̂_ijᵀ,    κ = 1/ρ² − 1

For an atom with one bond the standard deviation is σ_z across and ρ σ_z along it; an atom bonded on
all sides moves less in all directions. w falls smoothly from 1 to 0 between 1.15 and 1.35 times the
sum of the covalent radii; σ_z depends on the element.

The target is a score. For given x the law of x̃ is exactly Gaussian, so ∇ log p(x̃|x) = −Σ(x)⁻¹ε
whatever Σ depends on, and by Vincent (2011)

    v*_i = −σ_z² Σ_i(x)⁻¹ ε_i = −A_i ε_i    (Å)
    E[v*_i | x̃] = σ_z² ∇_i log p(x̃)

What a network trained on |v − v*|² tends to is the score of the noised data, a force up to a
constant per element. −ε would not do: its mean, E[−Σ Σ⁻¹ε | x̃], mixes the unknown Σ(x) into it.
(Frad, Feng et al. 2023, arXiv 2307.10683, meets the same difficulty with noise on torsions, and
leaves that part out of the target; with a density in closed form nothing has to be left out.) A
weight that depends on x would spoil this; the loss is

    L = Σ_i |v_i − v*_i|²/σ_z² / Σ_i tr A_i

which is 1 for predicting zero, since E|v*|² = σ_z² tr A.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..models.base import Prediction
from ..models.layers import sum_over
from ..structures.batch import Batch
from ..structures.elements import MAX_Z, SYMBOLS
from ..structures.geometry import bonded_edges
from .base import Objective, Term, positive

# distances in sums of covalent radii: a full bond below the one, none above the other
BONDED = 1.15
FREE = 1.35


@dataclasses.dataclass(frozen=True)
class AnisotropicDenoise(Objective):
    """Noise of ``sigma`` Å across bonds and ``along`` · sigma along them.

    ``along`` is ρ in (0, 1]; 1 gives isotropic noise. ``elements`` replaces sigma for some
    elements: {symbol: σ in Å}, for instance what `noise_scale.propose_sigma` says per element. The
    vector read-out predicts v* in Å (see the module). Raises ConfigError for values out of range or
    unknown elements.
    """

    name: ClassVar[str] = "anisotropic-denoise"
    outputs: ClassVar[tuple[str, ...]] = ("vector",)

    sigma: float = 0.2
    along: float = 0.5
    elements: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        positive(self.name, sigma=self.sigma, along=self.along)
        if self.along > 1:
            raise ConfigError(f"{self.name}: along must be in (0, 1], got {self.along!r}")
        if not isinstance(self.elements, Mapping):
            raise ConfigError(
                f"{self.name}: elements must be a table symbol: σ, got {self.elements!r}"
            )
        for symbol, value in self.elements.items():
            if symbol not in SYMBOLS[1:]:
                raise ConfigError(f"{self.name}: unknown element {symbol!r}")
            positive(self.name, **{f"elements.{symbol}": value})
        object.__setattr__(self, "elements", dict(self.elements))

    def corrupt(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Noise of its own covariance on every atom, drawn from the bonds of the clean structure.

        Sets ``target`` v* [N, 3] Å, ``noise_scale`` σ_z [N] Å and ``stiffness`` tr A [N].
        """
        pos = batch.pos
        normal = torch.randn(pos.shape, generator=generator, dtype=pos.dtype, device=pos.device)
        table = torch.full((MAX_Z + 1,), float(self.sigma), dtype=pos.dtype)
        for symbol, value in self.elements.items():
            table[SYMBOLS.index(symbol)] = value
        sigma = table.to(pos.device)[batch.z]  # [N]
        precision = bond_precision(batch, self.along**-2 - 1.0)  # [N, 3, 3]
        # with A = L Lᵀ, L⁻ᵀ n has covariance A⁻¹
        factor = torch.linalg.cholesky(precision)
        shaped = torch.linalg.solve_triangular(factor.mT, normal[..., None], upper=True)[..., 0]
        noise = sigma[:, None] * shaped  # [N, 3]
        new = copy.copy(batch)
        new.drop_edges()
        new.pos = pos + noise
        new.target = -(precision @ noise[..., None])[..., 0]
        new.noise_scale = sigma
        new.stiffness = precision.diagonal(dim1=1, dim2=2).sum(1)  # tr A, [N]
        return new

    def terms(self, prediction: Prediction, batch: Batch) -> list[Term]:
        """The loss of the module without unit, and the plain mean square in Å² as a metric."""
        squared = (prediction.vector - batch.target).square().sum(1)
        relative = squared / batch.noise_scale.square()
        return [
            Term("score_error", relative.sum(), batch.stiffness.sum()),
            Term("score_mse", squared.detach().sum(), batch.target.numel(), 0.0),
        ]

    def to_dict(self) -> dict[str, Any]:
        """As `Objective.to_dict`; the elements sorted, so that their order tells no runs apart."""
        return {**super().to_dict(), "elements": dict(sorted(self.elements.items()))}


def bond_precision(batch: Batch, kappa: float) -> Tensor:
    """A_i = 1 + κ Σ_j w_ij r̂_ij r̂_ijᵀ of every atom, [N, 3, 3] without unit, symmetric with
    eigenvalues ≥ 1.
    """
    eye = torch.eye(3, dtype=batch.pos.dtype, device=batch.pos.device).expand(len(batch.z), 3, 3)
    if kappa == 0 or not len(batch.z):
        return eye
    (_, receiver), vector, radii = bonded_edges(batch, FREE)
    distance = vector.square().sum(1).sqrt()
    stretch = (distance / radii - BONDED) / (FREE - BONDED)
    weight = 0.5 * (1.0 + torch.cos(math.pi * stretch.clamp(0.0, 1.0)))  # [E]
    direction = vector / distance[:, None]
    outer = weight[:, None, None] * direction[:, :, None] * direction[:, None]
    return eye + kappa * sum_over(outer, receiver, len(batch.z))
