"""The calculator of `potkit.calculator`: a class of its own module, so that it can be pickled and
sent to other processes. Importing this imports ASE.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator, PropertyNotImplementedError, all_changes
from ase.stress import full_3x3_to_voigt_6_stress

from ..errors import DataError
from ..kernels.compiling import for_predictions
from ..models import Potential
from ..structures.geometry import volumes
from ..structures.store import Structures

SPREAD = "_std"  # what follows the name of a quantity whose spread over members it is


class PotkitCalculator(Calculator):
    """A `Potential`, or an ensemble of them, as an ASE calculator; `potkit.calculator` makes one.

    energy and free_energy (the same: there are no electrons to smear) in eV, forces [N, 3] in eV/Å;
    energies [N] in eV, each atom's share of the energy, where the energy is a sum over atoms;
    stress [6] in eV/Å³, Voigt's order xx, yy, zz, yz, xz, xy, positive under tension, of atoms
    whose cell repeats and has a volume. A network that reads its forces out directly has no stress.

    Of an ensemble these are the members' means. Beside them stand energy_std, forces_std [N, 3],
    stress_std [6] and energies_std [N]: the sample standard deviation over the members, component
    by component, in the same units. What one member lacks the ensemble lacks.
    """

    implemented_properties: ClassVar[list[str]] = [
        "energy",
        "free_energy",
        "forces",
        "energies",
        "stress",
    ]

    def __init__(
        self,
        models: Sequence[Potential],
        device: str | torch.device,
        dtype: torch.dtype,
        compile: bool,
    ) -> None:
        super().__init__()
        self.models = list(models)
        self.device, self.dtype, self.compile = device, dtype, compile
        had = ["energy", "forces"]
        if not any(model.energy_head.pooled for model in self.models):
            had.append("energies")
        if all(model.forces_mode == "gradient" for model in self.models):
            had.append("stress")
        spread = [name + SPREAD for name in had] if len(self.models) > 1 else []
        self.quantities = had
        self.implemented_properties = ["energy", "free_energy", *had[1:], *spread]

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
        for model in self.models:
            model.check_elements(structures.elements)
        # what is made in inference mode cannot be differentiated
        with torch.inference_mode(False):
            answers = [self._predict(model, structures) for model in self.models]
        results = {
            name: np.mean([answer[name] for answer in answers], axis=0) for name in answers[0]
        }
        if len(answers) > 1:
            results |= {
                name + SPREAD: np.std([answer[name] for answer in answers], axis=0, ddof=1)
                for name in answers[0]
            }
        for name in {"energy", "energy" + SPREAD} & results.keys():
            results[name] = float(results[name])
        results["free_energy"] = results["energy"]
        asked = {name.removesuffix(SPREAD) for name in properties}
        if "stress" in asked and "stress" not in results:
            raise PropertyNotImplementedError(
                "stress: the atoms have no cell that repeats and has a volume"
            )
        self.results = results

    def _predict(self, model: Potential, structures: Structures) -> dict[str, np.ndarray]:
        batch = structures.batch(device=self.device, dtype=self.dtype)
        outputs = list(self.quantities)
        if "stress" in outputs and not bool(volumes(batch.cell, batch.pbc)[0] > 0):
            outputs.remove("stress")
        with torch.no_grad(), for_predictions(model, self.compile, self.device, self.dtype):
            prediction = model(batch, outputs)
        answers = {name: getattr(prediction, name) for name in outputs}
        if not all(bool(answer.isfinite().all()) for answer in answers.values()):
            raise DataError(
                f"the predicted {' or '.join(outputs)} are not finite numbers; are all atoms apart?"
            )
        results = {name: answer.double().cpu().numpy() for name, answer in answers.items()}
        results["energy"] = results["energy"][0]
        if "stress" in results:
            results["stress"] = full_3x3_to_voigt_6_stress(results["stress"][0])
        return results
