"""Denoise: predict the Gaussian noise that was added to non-equilibrium structures.

Wang, Xu, Li, Barati Farimani, J. Chem. Theory Comput. 2023 (arXiv 2303.02216), eq. 7; Zaidi et al.
2023 (arXiv 2206.00133).

    x̃ = x + ε,    ε ~ N(0, σ² I)
    L = mean over atoms and axes of (ε̂(z, x̃) − ε)²

For Gaussian p(x̃|x) the score is −ε/σ² (Vincent 2011): the way back, −ε, is what a force would be
up to a constant. So the vector read-out v speaks for ε̂ = −v, and the target stored in the batch is
−ε = x − x̃. For a read-out −∂E/∂x this gives an energy with its minimum at the clean structure. Both
papers' codes have v = +ε, a maximum there: the denoise paper's for all networks, the masked paper's
for its denoise baseline, which reads −∂E/∂x; ``faults=("wrong-sign",)`` repeats that. For read-outs
that are not a gradient the sign is a matter of taste. Periodic structures are not wrapped back into
the box, which the masked paper does: neighbour lists do not depend on it, and the target is never
wrapped. A network that reads absolute positions, such as GNS, has to wrap them itself.

The denoise paper's code sums over atoms and axes (``faults=("sum",)``), the masked paper's takes
the mean; neither divides by σ² (``normalize=False``).

σ need not be one number. Per structure s it may follow from its system, or be drawn log-uniformly
from a range (as in DeNS, arXiv 2403.09549). With ``normalize`` each structure is weighted by
1/σ_s², L = mean of |v + ε|²/σ_s², which is least at

    v = −E[ε/σ²|x̃] / E[σ⁻²|x̃] = ∇ log p(x̃) / E[σ⁻²|x̃]

along the score of the mixture over all σ, as for one σ; without ``normalize`` the largest σ decide
alone.
"""

from __future__ import annotations

import copy
import dataclasses
import fnmatch
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError, DataError
from ..models.base import Prediction
from ..models.layers import sum_over
from ..structures.batch import Batch
from ..structures.store import Origin, Structures
from .base import LATER, Objective, Term, positive
from .faults import check

Range = float | tuple[float, float]
Sigma = Range | Mapping[str, Range]


@dataclasses.dataclass(frozen=True)
class Denoise(Objective):
    """Gaussian noise of standard deviation ``sigma`` (Å); ``zero_mean`` removes each structure's
    net translation from it.

    ``sigma``: a number; (low, high), drawn log-uniformly for every structure anew; or a table
    {pattern: either}, where patterns (as of file names, "*" for the rest) are held against the name
    of a structure's system, then against the name of the data set; the first that fits counts. The
    vector read-out predicts the way back, −ε in Å. ``normalize`` divides the loss by σ², so that 1
    is what predicting zero gets at any σ (the papers have False; for a single σ it changes the loss
    scale, not the minimum). ``faults`` of the published codes, off by default: "wrong-sign", "sum"
    (see `objectives.faults`); ``faithful`` is an older word for "wrong-sign". Raises ConfigError
    unless sigma > 0, and for unknown faults.
    """

    name: ClassVar[str] = "denoise"
    outputs: ClassVar[tuple[str, ...]] = ("vector",)

    sigma: Sigma = 0.2
    zero_mean: bool = False
    normalize: bool = True
    faithful: bool = False
    faults: tuple[str, ...] = dataclasses.field(default=(), metadata=LATER)

    def __post_init__(self) -> None:
        object.__setattr__(self, "sigma", checked_sigma("denoise", self.sigma))
        object.__setattr__(self, "faults", check(self.name, self.faults))

    def check(self, structures: Structures) -> None:
        """Raise DataError naming a system that has no σ."""
        if isinstance(self.sigma, dict):
            data = str(structures.info.get("name", ""))
            names = structures.system_names()
            for system in dict.fromkeys(names[i] for i in structures.system):
                look_up(self.sigma, system, data)

    def corrupt(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Noise on every atom; ``target`` is −ε [N, 3] Å ("wrong-sign": +ε).

        Where σ is not one number, ``noise_scale`` [N] Å says each atom's.
        """
        pos = batch.pos
        noise = torch.randn(pos.shape, generator=generator, dtype=pos.dtype, device=pos.device)
        new = copy.copy(batch)
        new.drop_edges()
        if isinstance(self.sigma, float):
            noise = self.sigma * noise
        else:
            new.noise_scale = draw_sigma(self.sigma, batch, generator)[batch.batch]  # [N]
            noise = new.noise_scale[:, None] * noise
        if self.zero_mean:
            noise = without_translation(noise, batch)
        new.pos = pos + noise
        wrong_sign = self.faithful or "wrong-sign" in self.faults
        new.target = noise if wrong_sign else -noise
        return new

    def terms(self, prediction: Prediction, batch: Batch) -> list[Term]:
        """The mean over atoms and axes ("sum": the batch's sum), in units of σ² with ``normalize``,
        else in Å².
        """
        squared = (prediction.vector - batch.target).square()  # [N, 3] Å²
        # a batch counts once; several processes average their sums, as they would gradients
        count = 1 if "sum" in self.faults else batch.target.numel()
        if not self.normalize:
            return [Term("noise_mse", squared.sum(), count)]
        if isinstance(self.sigma, float):
            return [Term("noise_mse", squared.sum(), count, self.sigma**-2)]
        relative = squared / batch.noise_scale.square()[:, None]
        return [
            Term("noise_relative", relative.sum(), count),
            Term("noise_mse", squared.detach().sum(), count, 0.0),
        ]


def checked_sigma(owner: str, sigma: Any) -> Sigma:
    """``sigma`` as float, (low, high) or a dict of those; ConfigError where a number is not
    positive or a range not rising.
    """
    if isinstance(sigma, Mapping):
        if not sigma:
            raise ConfigError(f"{owner}: the table of sigma is empty")
        return {
            str(pattern): checked_sigma(f"{owner}: {pattern}", value)
            for pattern, value in sigma.items()
        }
    if isinstance(sigma, (list, tuple)):
        if len(sigma) != 2:
            raise ConfigError(f"{owner}: a range of sigma is (low, high), got {sigma!r}")
        positive(owner, **{"sigma (low)": sigma[0], "sigma (high)": sigma[1]})
        if not sigma[0] < sigma[1]:
            raise ConfigError(f"{owner}: a range of sigma must rise, got {sigma!r}")
        return float(sigma[0]), float(sigma[1])
    positive(owner, sigma=sigma)
    return float(sigma)


def look_up(table: Mapping[str, Range], system: str, data: str) -> Range:
    """The entry of ``table`` for a structure of ``system`` in the set ``data``. Raises DataError
    if no pattern fits.
    """
    for name in (system, data):
        for pattern, value in table.items():
            if fnmatch.fnmatchcase(name, pattern):
                return value
    raise DataError(
        f"denoise: no sigma for system {system!r} of {data or 'the structures'}; "
        f"patterns: {', '.join(table)} ('*' fits all)"
    )


def draw_sigma(sigma: Sigma, batch: Batch, generator: torch.Generator | None) -> Tensor:
    """σ of every structure, [S] Å."""
    n_structures, device = batch.num_graphs, batch.pos.device
    ranges = [sigma] * n_structures
    if isinstance(sigma, dict):
        origin: Origin | None = batch.origin
        if origin is None:
            raise ConfigError(
                "denoise: a table of sigma needs batches made by Structures.batch, "
                "which know their systems"
            )
        ranges = [look_up(sigma, system, origin.name) for system in origin.systems]
    bounds = [r if isinstance(r, tuple) else (r, r) for r in ranges]
    logarithms = [[math.log(lowest), math.log(highest)] for lowest, highest in bounds]
    table = torch.tensor(logarithms, dtype=torch.float64).reshape(-1, 2).to(device)
    low, high = table.unbind(1)  # [S]
    share = torch.rand(n_structures, generator=generator, dtype=torch.float64, device=device)
    return (low + share * (high - low)).exp().to(batch.pos.dtype)


def without_translation(noise: Tensor, batch: Batch) -> Tensor:
    """``noise`` [N, 3] less its mean over each structure."""
    counts = (batch.ptr[1:] - batch.ptr[:-1]).to(noise.dtype).clamp(min=1)
    mean = sum_over(noise, batch.batch, len(counts)) / counts[:, None]  # [S, 3]
    return noise - mean[batch.batch]
