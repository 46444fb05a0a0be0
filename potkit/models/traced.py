"""A network as a graph of torch's own operations, which runs without potkit and without Python.

`trace` records what a `Potential` does with atoms and edges that it is given, by torch.jit.trace.
Nothing in that depends on sizes: the neighbour list, which does, is an input. The result is held to
the network itself on structures of other sizes than those it was recorded on, free and periodic.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..structures import neighbors
from ..structures.batch import Batch
from ..structures.geometry import edge_vectors
from ..structures.store import Structures
from .base import Potential
from .graph import Graph

# faults of published codes that ask for more of a structure than its edges, or for their order
BEYOND_EDGES = ("neighbours-32", "wrapped-positions")
CHAIN = 24  # atoms; more than any network here has rounds of messages
RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-4}  # largest difference, in the answer's size


class FromEdges(nn.Module):
    """What a potential says of atoms and edges: energies of atoms and, read out directly, forces.

    Forces of a network with −∂E/∂x are left to whoever calls: the sum of the energies is
    differentiated by ``pos`` (and, for a stress, ``shift``).
    """

    def __init__(self, model: Potential) -> None:
        super().__init__()
        self.model = model

    def forward(
        self,
        z: Tensor,  # [N] atomic numbers
        pos: Tensor,  # [N, 3] Å
        batch: Tensor,  # [N] structure of each atom, rising
        sender: Tensor,  # [E] j
        receiver: Tensor,  # [E] i, rising
        shift: Tensor,  # [E, 3] Å
        charge: Tensor,  # [S] e; its length says how many structures there are
    ) -> tuple[Tensor, Tensor]:
        """Energies [N] eV, float64, and forces [N, 3] eV/Å ([0, 3] where they are −∂E/∂x)."""
        model = self.model
        vector = edge_vectors(pos, sender, receiver, shift)
        graph = Graph(
            z=z,
            pos=pos,
            batch=batch,
            n_structures=charge.shape[0],
            sender=sender,
            receiver=receiver,
            vector=vector,
            distance=vector.square().sum(1).sqrt(),
            shift=shift,
            mask=None,
            charge=charge,
        )
        features = model.backbone(graph)
        atomic = model.energy_head(features.scalar, graph)
        energies = model.shares(atomic, graph)
        if model.forces_mode == "gradient":
            return energies, pos.new_zeros(0, 3)
        vector = model.vector_readout(features, graph, atomic, False)
        return energies, vector * model.scale.to(pos.dtype)


def check_traceable(model: Potential) -> None:
    """Raise ConfigError for a network that needs more of a structure than atoms and edges."""
    name = type(model.backbone).__name__
    model.check_shares()
    check_charges(model)
    beyond = [fault for fault in model.backbone.faults if fault in BEYOND_EDGES]
    if beyond:
        raise ConfigError(
            f"export: {name} has the fault {', '.join(beyond)} of its published code, which cannot "
            "be had from a neighbour list"
        )


def check_charges(model: Potential) -> None:
    """Raise ConfigError for a network that reads charges, which engines do not give."""
    name = type(model.backbone).__name__
    if model.needs_formal_charges:
        raise ConfigError(
            f"export: {name} reads formal charges of atoms, which engines do not give"
        )
    if model.reads_charge:
        raise ConfigError(f"export: {name} reads total charges, which no engine gives")


def trace(model: Potential, examples: Sequence[Structures]) -> torch.jit.ScriptModule:
    """``model`` as TorchScript, with the inputs and answers of `FromEdges`.

    It is recorded on the first of ``examples`` and compared with ``model`` on all; they should
    differ in size. Computes in the dtype and on the device that ``model`` has, which stays as it
    is. Raises ConfigError for a network that cannot be recorded, or answers otherwise then.
    """
    check_traceable(model)
    name = type(model.backbone).__name__
    like = model.like()
    module = FromEdges(copy.deepcopy(model).eval()).requires_grad_(False)
    batches = [s.batch(device=like.device, dtype=like.dtype) for s in examples]
    with warnings.catch_warnings(), torch.inference_mode(False), torch.enable_grad():
        # sizes of tensors are recorded as such, and torch says that it would rather export
        warnings.simplefilter("ignore")
        inputs = edges_of(batches[0], model.cutoff)
        try:
            recorded = torch.jit.trace(module, inputs, check_trace=False)
        except Exception as error:  # whatever a network does that cannot be recorded
            reason = str(error).strip().splitlines() or [type(error).__name__]
            raise ConfigError(
                f"export: {name} cannot be recorded by torch.jit: {reason[0]}"
            ) from error
        for batch in batches * 2:  # what has run twice, TorchScript optimises
            _compare(model, recorded, batch, name)
    return recorded


def edges_of(batch: Batch, cutoff: float) -> tuple[Tensor, ...]:
    """The inputs of `FromEdges` for ``batch``, with edges within ``cutoff`` Å."""
    batch = neighbors.attach(copy.copy(batch), cutoff)
    sender, receiver = batch.edge_index
    shift = batch.edge_shift
    if shift is None:
        shift = batch.pos.new_zeros(len(sender), 3)
    pos = batch.pos.detach().clone().requires_grad_(True)
    charge = pos.new_zeros(batch.num_graphs)
    return batch.z, pos, batch.batch, sender, receiver, shift, charge


def reach(model: Potential, element: int = 1) -> float:
    """How far (Å) an atom's energy depends on others: the cutoff times the rounds of messages.

    Measured: on a chain of atoms of which each hears the next one only, by the derivative of the
    first one's energy. Infinite where the chain's end takes part.
    """
    n = CHAIN
    module = FromEdges(copy.deepcopy(model).eval().double()).requires_grad_(False)
    device = model.references.device
    generator = torch.Generator().manual_seed(0)
    pos = 0.1 * model.cutoff * torch.rand(n, 3, generator=generator, dtype=torch.float64)
    pos[:, 0] += 0.6 * model.cutoff * torch.arange(n)
    structures = Structures(np.full(n, element), pos.numpy(), np.array([0, n]))
    with torch.inference_mode(False), torch.enable_grad():
        batch = structures.batch(device=device, dtype=torch.float64)
        inputs = edges_of(batch, model.cutoff)
        energies = module(*inputs)[0]
        gradient = torch.autograd.grad(energies[0], inputs[1])[0]
    felt = torch.nonzero(gradient.abs().sum(1)).flatten()
    furthest = int(felt.max()) if len(felt) else 0
    return math.inf if furthest == n - 1 else max(furthest, 1) * model.cutoff


def _compare(model: Potential, recorded: torch.jit.ScriptModule, batch: Batch, name: str) -> None:
    """Raise ConfigError where ``recorded`` and ``model`` differ in energies or forces."""
    inputs = edges_of(batch, model.cutoff)
    try:
        energies, forces = recorded(*inputs)
        if model.forces_mode == "gradient":
            forces = -torch.autograd.grad(energies.sum(), inputs[1])[0]
    except RuntimeError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ConfigError(
            f"export: {name}, recorded, does not run at other sizes: {reason}"
        ) from error
    with torch.no_grad():
        expected = model(batch, ("energies", "forces"))
    limit = RELATIVE[batch.pos.dtype]
    pairs = {"energies": (energies, expected.energies), "forces": (forces, expected.forces)}
    for quantity, (got, wanted) in pairs.items():
        difference = float((got - wanted).abs().max())
        if not difference <= limit * (1 + float(wanted.abs().max())):
            raise ConfigError(
                f"export: {name}, recorded by torch.jit, has other {quantity} than the network "
                f"itself (by {difference:.1e}): what it does depends on the structure it is given"
            )
