"""The model of `potkit.torch_sim_model`. Importing this imports torch-sim."""

from __future__ import annotations

import torch
from torch import Tensor
from torch_sim.models.interface import ModelInterface

from ..errors import DataError
from ..kernels.compiling import ForPredictions
from ..models import Potential
from ..models.base import NO_STRESS
from ..structures.batch import Batch


class PotkitModel(ModelInterface):
    """A `Potential` as torch-sim's model interface; `potkit.torch_sim_model` makes one.

    energy [S] eV, forces [N, 3] eV/Å, stress [S, 3, 3] eV/Å³, energies [N] eV of atoms (not of a
    network whose energy is no sum over atoms). Positions are taken as they come, wrapped or not.
    """

    def __init__(
        self,
        model: Potential,
        device: torch.device | str,
        dtype: torch.dtype,
        compile: bool,
        compute_forces: bool,
        compute_stress: bool,
    ) -> None:
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self._device, self._dtype = torch.device(device), dtype
        self._quick = ForPredictions(self.model, compile, device, dtype)
        self._compute_forces, self._compute_stress = compute_forces, compute_stress
        self._memory_scales_with = "n_atoms_x_density"

    @property
    def compute_forces(self) -> bool:
        """Whether forces are computed."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, wanted: bool) -> None:
        self._compute_forces = wanted

    @property
    def compute_stress(self) -> bool:
        """Whether stresses are computed; only by a network that has them."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, wanted: bool) -> None:
        if wanted and not self.model.has_stress:
            raise NotImplementedError(NO_STRESS)
        self._compute_stress = wanted

    def forward(self, state, **_) -> dict[str, Tensor]:
        """Energies, forces and stress of every system of ``state`` (a SimState or its fields).

        Raises DataError for elements without a reference energy, positions in another dtype, and
        predictions that are not finite numbers.
        """
        batch = self.batch(state)
        outputs = ["energy"]
        if self.model.has_shares:
            outputs.append("energies")
        if self.compute_forces:
            outputs.append("forces")
        if self.compute_stress:
            outputs.append("stress")
        with (
            torch.inference_mode(False),
            torch.no_grad(),
            self._quick,
        ):
            prediction = self.model(batch, outputs)
        results = {name: getattr(prediction, name) for name in outputs}
        wrong = [n for n in outputs if n != "stress" and not bool(results[n].isfinite().all())]
        if wrong:
            raise DataError(
                f"the predicted {' or '.join(wrong)} are not finite numbers; are all atoms apart?"
            )
        return {name: value.to(self._dtype) for name, value in results.items()}

    def batch(self, state) -> Batch:
        """The systems of ``state`` as a batch; torch-sim holds lattice vectors as columns."""
        fields = state if isinstance(state, dict) else vars(state)
        pos, owner = fields["positions"], fields.get("system_idx")
        if owner is None:
            owner = fields.get("_system_idx")
        if pos.dtype != self._dtype:
            raise DataError(
                f"the state has {str(pos.dtype).removeprefix('torch.')} positions, the model "
                f"computes in {str(self._dtype).removeprefix('torch.')}"
            )
        z = fields["atomic_numbers"].long()
        self.model.check_elements(torch.unique(z).tolist())
        if owner is None:
            owner = torch.zeros_like(z)
        cell = fields["cell"].mT.contiguous()
        n = cell.shape[0]
        counts = torch.bincount(owner, minlength=n)
        pbc = torch.as_tensor(fields["pbc"], dtype=torch.bool, device=pos.device)
        return Batch.of(
            {
                "z": z,
                "pos": pos.detach().clone(),
                "batch": owner.long(),
                "ptr": torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
                "cell": cell.to(pos.dtype),
                "pbc": pbc.expand(n, 3) if pbc.ndim < 2 else pbc,
                "charge": pos.new_zeros(n),
                "mask": torch.zeros_like(z),
                "num_nodes": len(z),
                "max_atoms": int(counts.max()) if n else 0,
                "periodic": bool(pbc.any()),
            }
        )
