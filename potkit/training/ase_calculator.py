"""The calculator of `potkit.calculator`: a class of its own module, so that it can be pickled and
sent to other processes. Importing this imports ASE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from ..errors import DataError
from ..kernels.compiling import for_predictions
from ..models import Potential
from ..structures.geometry import volumes
from ..structures.store import Structures


class PotkitCalculator(Calculator):
    """A `Potential` as an ASE calculator; `potkit.calculator` makes one.

    energy and free_energy (the same: there are no electrons to smear) in eV, forces [N, 3] in eV/Å;
    stress [6] in eV/Å³, Voigt's order xx, yy, zz, yz, xz, xy, positive under tension, of atoms
    whose cell repeats and has a volume. A network that reads its forces out directly has no stress.
    """

    implemented_properties: ClassVar[list[str]] = ["energy", "free_energy", "forces", "stress"]

    def __init__(self, model: Potential, device: str | torch.device, dtype: torch.dtype, compile):
        super().__init__()
        self.model, self.device, self.dtype, self.compile = model, device, dtype, compile
        if model.forces_mode == "vector":
            self.implemented_properties = ["energy", "free_energy", "forces"]

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = all_changes,
    ) -> None:
        """All that there is for ``atoms``, at once, into ``results``.

        Raises DataError for an element without a reference energy and for predictions that are not
        finite numbers, ASE's PropertyNotImplementedError for a stress without a cell.
        """
        super().calculate(atoms, properties, system_changes)
        bare = self.atoms.copy()
        bare.calc = None
        structures = Structures.from_ase([bare])
        self.model.check_elements(structures.elements)
        # what is made in inference mode cannot be differentiated
        with torch.inference_mode(False):
            results = self._predict(structures)
        if "stress" in properties and "stress" not in results:
            raise PropertyNotImplementedError(
                "stress: the atoms have no cell that repeats and has a volume"
            )
        self.results = results

    def _predict(self, structures: Structures) -> dict:
        batch = structures.batch(device=self.device, dtype=self.dtype)
        outputs = ["energy", "forces"]
        if self.model.forces_mode == "gradient" and bool(volumes(batch.cell, batch.pbc)[0] > 0):
            outputs.append("stress")
        with torch.no_grad(), for_predictions(self.model, self.compile, self.device, self.dtype):
            prediction = self.model(batch, outputs)
        answers = {name: getattr(prediction, name) for name in outputs}
        if not all(bool(answer.isfinite().all()) for answer in answers.values()):
            raise DataError(
                f"the predicted {' or '.join(outputs)} are not finite numbers; are all atoms apart?"
            )
        energy = float(answers["energy"][0])
        results = {"energy": energy, "free_energy": energy}
        results["forces"] = answers["forces"].cpu().numpy()
        if "stress" in answers:
            stress = answers["stress"][0].double().cpu().numpy()
            results["stress"] = full_3x3_to_voigt_6_stress(stress)
        return results
