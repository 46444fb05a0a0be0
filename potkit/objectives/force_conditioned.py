"""ForceConditionedDenoise: denoising of non-equilibrium structures told their forces (DeNS).

Liao, Smidt, Shuaibi, Das 2024 (arXiv 2403.09549). Off a minimum many clean structures may lie
behind a noisy one; the forces F(x) of the clean structure say which. Training data must have
forces. A structure is corrupted with probability p (``probability``), and of a corrupted structure
each atom with probability r (``atoms``; the paper's partially corrupted structures):

    corrupted atoms (m_i = 1):  x̃_i = x_i + ε_i,  ε_i ~ N(0, σ²I),  f_i given to the network
    all others (m_i = 0):       x̃_i = x_i,                          no force given

    L = w_E ℓ(E(x) − Ê(x̃, m F))
      + w_F · mean over m_i = 0 of ℓ(F_i(x) − F̂_i)
      + λ · mean over m_i = 1 of |ε̂_i − ε_i|²/σ²

so the energy of the clean structure is asked for always, forces where they were not given away,
noise where there is any. Forces enter in units of their root mean square over the training set; how
each network takes them is said in `models.force_encoder`. ε̂ is a read-out of its own (``noise``,
−ε in Å), as in the paper, because the forces' read-out may be the pretraining's; with ``energy =
forces = 0`` (denoising only, ``probability`` 1) it is the usual vector read-out. After pretraining
the backbone is used like any other: the encoder adds nothing where no forces are given.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from ..errors import ConfigError
from ..models.base import Prediction
from ..structures.batch import Batch
from ..structures.store import Structures
from .base import Objective, Term, positive, require
from .denoise import Range, checked_sigma, draw_sigma
from .supervised import LOSSES, Supervised


@dataclasses.dataclass(frozen=True)
class ForceConditionedDenoise(Objective):
    """DeNS with noise of ``sigma`` Å (a number or a range), p ``probability``, r ``atoms``, λ
    ``weight``, and the weights of `Supervised`.

    Raises ConfigError for settings out of range; `check` raises DataError for structures without
    forces (or energies, if ``energy`` is not 0).
    """

    name: ClassVar[str] = "force-conditioned-denoise"
    inputs: ClassVar[tuple[str, ...]] = ("forces",)

    sigma: Range = 0.1
    probability: float = 0.5
    atoms: float = 1.0
    weight: float = 1.0
    energy: float = 1.0
    forces: float = 10.0
    loss_function: str = "l1"
    per_atom: bool = False

    def __post_init__(self) -> None:
        sigma = checked_sigma(self.name, self.sigma)
        if isinstance(sigma, dict):
            raise ConfigError(
                f"{self.name}: sigma must be a number or (low, high), got {self.sigma!r}"
            )
        object.__setattr__(self, "sigma", sigma)
        positive(self.name, probability=self.probability, atoms=self.atoms, weight=self.weight)
        for setting, value in (("probability", self.probability), ("atoms", self.atoms)):
            if value > 1:
                raise ConfigError(f"{self.name}: {setting} must be in (0, 1], got {value!r}")
        if self._labelled:
            self.validation()  # checks weights and loss
        elif self.loss_function not in LOSSES or min(self.energy, self.forces) < 0:
            raise ConfigError(
                f"{self.name}: energy and forces must not be negative, "
                f"loss_function one of {', '.join(LOSSES)}"
            )

    @property
    def _labelled(self) -> bool:
        return self.energy != 0 or self.forces != 0

    def needed(self) -> tuple[str, ...]:
        """What has a weight, and a vector for the noise: one of its own beside trained forces."""
        weights = {"energy": self.energy, "forces": self.forces}
        trained = [name for name, weight in weights.items() if weight != 0]
        return (*trained, "noise" if self._labelled else "vector")

    def labels(self) -> tuple[str, ...]:
        """Forces always, since the network is told them; energies if they are trained."""
        return ("energy", "forces") if self.energy else ("forces",)

    def validation(self) -> Objective:
        """Energy and forces of clean structures, if they are trained at all."""
        if not self._labelled:
            return self
        return Supervised(self.energy, self.forces, self.loss_function, self.per_atom)

    def check(self, structures: Structures) -> None:
        """Raise DataError if the labels that are needed are missing."""
        require(self.name, structures, self.labels())

    def corrupt(self, batch: Batch, generator: torch.Generator | None = None) -> Batch:
        """Noise on the atoms m_i = 1, the only ones with a force in ``force_input`` [N, 3] eV/Å.

        Sets ``has_target`` and ``force_given`` m [N], ``target`` −ε [N, 3] Å and ``noise_scale``
        σ [N] Å.
        """
        pos = batch.pos

        def share(n: int) -> Tensor:
            return torch.rand(n, generator=generator, device=pos.device, dtype=torch.float64)

        noise = torch.randn(pos.shape, generator=generator, dtype=pos.dtype, device=pos.device)
        chosen = share(batch.num_graphs) < self.probability  # [S]
        moved = share(len(batch.z)) < self.atoms  # [N]
        new = copy.copy(batch)
        new.drop_edges()
        new.has_target = chosen[batch.batch] & moved
        new.noise_scale = draw_sigma(self.sigma, batch, generator)[batch.batch]  # [N]
        noise = torch.where(new.has_target[:, None], new.noise_scale[:, None] * noise, 0.0)
        new.pos = pos + noise
        new.target = -noise
        new.force_given = new.has_target
        new.force_input = torch.where(new.has_target[:, None], batch.forces.to(pos.dtype), 0.0)
        return new

    def terms(self, prediction: Prediction, batch: Batch) -> list[Term]:
        """The three summands of L; those with labels as in `Supervised`, the noise in units of σ².

        Energies count for every structure, forces for atoms that were not told theirs.
        """
        terms = []
        if self._labelled:
            terms = self.validation().terms(prediction, batch, atoms=~batch.has_target)
        guess = prediction.noise if self._labelled else prediction.vector
        squared = (guess - batch.target).square().sum(1) * batch.has_target  # [N] Å²
        relative = squared / batch.noise_scale.square()
        count = 3 * batch.has_target.sum()
        return [
            *terms,
            Term("noise_relative", relative.sum(), count, self.weight),
            Term("noise_mse", squared.detach().sum(), count, 0.0),
        ]
