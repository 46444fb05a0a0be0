"""Networks as metatomic models: a recorded graph (`models.traced`) between metatomic's types.

Importing this imports metatomic. Annotations are types here, not text: TorchScript reads them.
"""

# ruff: noqa: UP006, UP035, UP045  # metatomic asks for typing's names in `forward`

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch
from metatensor.torch import Labels, TensorBlock, TensorMap
from metatomic.torch import (
    AtomisticModel,
    ModelCapabilities,
    ModelMetadata,
    ModelOutput,
    NeighborListOptions,
    System,
)

FORCES = "non_conservative_force"  # metatomic's name for forces that are read out directly
OWN_LIBRARIES = ("metatensor_torch", "metatomic_torch")


class EnergyOfSystems(torch.nn.Module):
    """A recorded graph as a metatomic model: energies in eV, forces that are no derivatives in
    eV/Å.

    Forces and stress of other networks are the engine's derivatives by positions and cell.
    """

    def __init__(self, recorded: torch.jit.ScriptModule, cutoff: float, shift: bool) -> None:
        super().__init__()
        self.recorded = recorded
        self.options = NeighborListOptions(cutoff=cutoff, full_list=True, strict=True)
        self.shift = shift  # whether energies of atoms hold a share of a structure's shift

    def requested_neighbor_lists(self) -> List[NeighborListOptions]:
        """One list of all pairs, both ways, within the cutoff."""
        return [self.options]

    def forward(
        self,
        systems: List[System],
        outputs: Dict[str, ModelOutput],
        selected_atoms: Optional[Labels] = None,
    ) -> Dict[str, TensorMap]:
        """Energies, of structures or of atoms, and direct forces: what of ``outputs`` there is."""
        z: List[torch.Tensor] = []
        pos: List[torch.Tensor] = []
        owner: List[torch.Tensor] = []
        index: List[torch.Tensor] = []  # of each atom in its system
        sender: List[torch.Tensor] = []
        receiver: List[torch.Tensor] = []
        shift: List[torch.Tensor] = []
        first: List[int] = []
        count = 0
        device = systems[0].positions.device
        for i, system in enumerate(systems):
            n = len(system)
            pairs = system.get_neighbor_list(self.options).samples.values.to(torch.int64)
            z.append(system.types.to(torch.int64))
            pos.append(system.positions)
            owner.append(torch.full([n], i, dtype=torch.int64, device=device))
            index.append(torch.arange(n, dtype=torch.int64, device=device))
            receiver.append(pairs[:, 0] + count)
            sender.append(pairs[:, 1] + count)
            shift.append(pairs[:, 2:].to(system.cell.dtype) @ system.cell)
            first.append(count)
            count += n
        batch = torch.cat(owner)
        positions = torch.cat(pos)
        receivers = torch.cat(receiver)
        order = torch.argsort(receivers, stable=True)
        energies, forces = self.recorded(
            torch.cat(z),
            positions,
            batch,
            torch.cat(sender)[order],
            receivers[order],
            torch.cat(shift)[order],
            torch.zeros(len(systems), dtype=positions.dtype, device=device),
        )
        kept = torch.ones_like(batch, dtype=torch.bool)
        if selected_atoms is not None:
            chosen = selected_atoms.values.to(torch.int64)
            starts = torch.tensor(first, dtype=torch.int64, device=device)
            kept = torch.zeros_like(kept)
            kept[starts[chosen[:, 0]] + chosen[:, 1]] = True
            if self.shift and not bool(kept.all()):
                raise RuntimeError(
                    "this network adds a constant to the energy of every structure, of which "
                    "selected atoms have no share: run it without domain decomposition"
                )
        rows = torch.nonzero(kept).flatten()
        atoms = Labels(
            ["system", "atom"], torch.stack([batch, torch.cat(index)], 1)[rows].to(torch.int32)
        )
        single = torch.zeros([1, 1], dtype=torch.int32, device=device)
        key = Labels(["_"], single)
        components = torch.jit.annotate(List[Labels], [])

        results: Dict[str, TensorMap] = {}
        if "energy" in outputs:
            if outputs["energy"].sample_kind == "atom":
                samples, values = atoms, energies[rows]
            else:
                every = torch.arange(len(systems), dtype=torch.int32, device=device)
                samples = Labels(["system"], every[:, None])
                values = torch.zeros(len(systems), dtype=energies.dtype, device=device)
                values = values.index_add(0, batch[rows], energies[rows])
            values = values.to(positions.dtype)[:, None]
            block = TensorBlock(values, samples, components, Labels(["energy"], single))
            results["energy"] = TensorMap(key, [block])
        if "non_conservative_force" in outputs:
            axes = torch.arange(3, dtype=torch.int32, device=device)
            block = TensorBlock(
                forces[rows][:, :, None],
                atoms,
                [Labels(["xyz"], axes[:, None])],
                Labels(["non_conservative_force"], single),
            )
            results["non_conservative_force"] = TensorMap(key, [block])
        return results


def write(
    path: Path,
    recorded: torch.jit.ScriptModule,
    *,
    name: str,
    cutoff: float,
    interaction_range: float,
    elements: list[int],
    direct_forces: bool,
    shift: bool,
    dtype: torch.dtype,
    device: str,
    description: str,
) -> None:
    """Write ``recorded`` as a metatomic model to ``path``; lengths in Å, energies in eV."""
    module = EnergyOfSystems(recorded, cutoff, shift).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather export than script
        # "atom": of structures, too
        outputs = {"energy": ModelOutput(unit="eV", sample_kind="atom")}
        if direct_forces:
            outputs[FORCES] = ModelOutput(unit="eV/angstrom", sample_kind="atom")
        capabilities = ModelCapabilities(
            outputs=outputs,
            atomic_types=elements,
            interaction_range=interaction_range,
            length_unit="angstrom",
            supported_devices=[device],
            dtype=str(dtype).removeprefix("torch."),
        )
        metadata = ModelMetadata(name=name, description=description)
        model = AtomisticModel(module, metadata, capabilities)
        with _own_libraries_only():
            _save(model, path)


def _save(model: AtomisticModel, path: Path) -> None:
    """As ``model.save``, but that a full disk raises OSError: torch's own writer of files ends the
    whole process there.
    """
    made = io.BytesIO()
    original = torch.jit.save

    def into_memory(module: torch.jit.ScriptModule, file: str, **more: Any) -> None:
        original(module, made, **more)

    torch.jit.save = into_memory
    try:
        model.save(str(path))
    finally:
        torch.jit.save = original
    path.write_bytes(made.getbuffer())


@contextlib.contextmanager
def _own_libraries_only() -> Iterator[None]:
    """Within, metatomic takes down its own libraries only as what the model needs.

    It writes every library that torch has loaded into the file, and an engine refuses a model whose
    libraries it lacks; a recorded graph calls nothing of torch-scatter's or others'.
    """
    loaded = set(torch.ops.loaded_libraries)
    own = {path for path in loaded if any(name in path for name in OWN_LIBRARIES)}
    torch.ops.loaded_libraries.intersection_update(own)
    try:
        yield
    finally:
        torch.ops.loaded_libraries.update(loaded)
