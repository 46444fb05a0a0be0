"""`Potential`: a backbone with its read-outs, a batch in and a `Prediction` out.

It owns, once for all networks, what is not the network's own: the neighbour list, the sum over
atoms, reference energies, the derivatives −∂E/∂x and ∂E/∂ε, and the vector read-out that
pretraining uses.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensor

from ..errors import ConfigError, DataError
from ..structures import neighbors
from ..structures.batch import Batch
from ..structures.elements import MAX_Z, SYMBOLS
from ..structures.geometry import edge_vectors, volumes
from ..structures.settings import shown
from .force_encoder import ForceEncoder
from .graph import Backbone, Features, Graph, Prediction, declare
from .layers import MAX_CHARGE, MAX_FORMAL_CHARGE, AtomEmbedding, sum_over
from .readouts import READOUTS, AtomicEnergy, DirectVector, GradientVector, NoiseReadout

NO_STRESS = "this network has no stress: it reads its forces out, or knows rectangular boxes only"


class Potential(nn.Module):
    """A backbone with its read-outs: maps a batch to `Prediction`.

    ``backbone`` is a `Backbone`: a `Network`, or any module with attributes ``cutoff`` (Å) and
    ``n_features``; what else it does not say of itself gets the defaults of `Network`.
    ``vector`` names the read-out of the pretraining target; ``forces`` is "gradient" (−∂E/∂x) or
    "vector" (the vector read-out is trained on forces, as in force-centric networks).
    ``force_input`` adds an input for forces (`force_encoder.ForceEncoder`), ``noise_readout`` a
    second vector read-out; training adds both where an objective needs them (`extend`).
    ``head_norm``, ``pooled`` and ``head`` are `AtomicEnergy`'s.
    Buffers: ``references`` [119] float64 eV per element, ``scale`` eV, ``shift`` eV per structure
    (None where there is none).
    Raises ConfigError for read-outs that do not exist or need what the backbone does not make.
    """

    def __init__(
        self,
        backbone: Backbone,
        *,
        vector: str = "gradient",
        forces: str = "gradient",
        head_norm: bool = False,
        pooled: bool | str = False,
        head: str = "mlp",
        force_input: bool = False,
        noise_readout: bool = False,
    ) -> None:
        super().__init__()
        if vector not in READOUTS:
            raise ConfigError(
                f"unknown vector read-out {vector!r}; there are {', '.join(READOUTS)}"
            )
        if forces not in ("gradient", "vector"):
            raise ConfigError(f"forces must be 'gradient' or 'vector', got {forces!r}")
        declare(backbone)
        needs, kind = READOUTS[vector].needs, type(backbone).__name__
        if needs == "displacement" and not backbone.gives_displacement:
            raise ConfigError(
                f"vector='coordinate' needs coordinate updates, which {kind} does not make"
            )
        if needs == "vector" and not backbone.n_vector_features:
            raise ConfigError(
                f"vector='gated' needs equivariant features, which {kind} does not have"
            )
        self.backbone = backbone
        self.embeds_charge = any(
            isinstance(part, AtomEmbedding) and part.charge is not None
            for part in backbone.modules()
        )
        self.cutoff = float(backbone.cutoff)
        self.energy_head = AtomicEnergy(backbone.n_features, head_norm, pooled, head)
        # a vector that is −∂E/∂x is what forces by gradient are
        forces = "gradient" if vector == "gradient" else forces
        self.vector_mode, self.forces_mode, self.head_norm = vector, forces, head_norm
        self.vector_readout = self._make_vector_readout()
        self.force_encoder = self._make_force_encoder() if force_input else None
        self.noise_readout = self._make_noise_readout() if noise_readout else None
        references = torch.zeros(MAX_Z + 1, dtype=torch.float64)
        self.register_buffer("references", references)
        self.register_buffer("known", references.bool())  # elements that have a reference
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))
        # None is in no state dict: checkpoints without a shift stay as they were
        self.register_buffer("shift", None)

    def _apply(self, fn, recurse: bool = True) -> Potential:
        # what moves or casts a model ends here; in float32, reference energies of 10³ eV would be
        # rounded by 1e-4 eV
        exact = {name: getattr(self, name) for name in ("references", "scale", "shift")}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            setattr(self, name, None if value is None else value.to(self.known.device))
        return self

    # -- normalisation
    def set_references(
        self, energies: dict[int, float], scale: float = 1.0, shift: float = 0.0
    ) -> Potential:
        """Reference energies in eV per atomic number, the unit (eV) in which the head speaks, and
        what is added to every structure's energy (eV), however many atoms it has.

        Returns self. Raises DataError for a scale that is not positive and finite, or a shift that
        is not finite.
        """
        if not (scale > 0 and torch.isfinite(torch.tensor(scale))):
            raise DataError(f"the energy scale must be a positive number, got {scale}")
        if not torch.isfinite(torch.tensor(shift)):
            raise DataError(f"the energy shift must be a finite number, got {shift}")
        self.references.zero_()
        self.known.zero_()
        for z, energy in energies.items():
            self.references[z] = energy
            self.known[z] = True
        self.scale.fill_(scale)
        self.shift = self.scale.new_tensor(shift) if shift else None
        return self

    def check_elements(self, z: Sequence[int]) -> None:
        """Raise DataError naming elements without a reference energy, once references were set."""
        if not bool(self.known.any()):
            return
        missing = [SYMBOLS[i] for i in z if not bool(self.known[i])]
        if missing:
            known = [SYMBOLS[i] for i in torch.nonzero(self.known).flatten().tolist()]
            raise DataError(
                f"no reference energy for {', '.join(missing)}: "
                f"the model was trained with {', '.join(known)}"
            )

    def check_charges(self, charge: Tensor) -> None:
        """Raise DataError for total charges [S] (e) that the network has no embedding for."""
        if not self.embeds_charge:
            return
        beyond = torch.nonzero(charge.round().abs() > MAX_CHARGE).flatten()
        if len(beyond):
            s = int(beyond[0])
            raise DataError(
                f"structure {s} has charge {int(charge[s]):+d}; the network knows -{MAX_CHARGE} to "
                f"+{MAX_CHARGE}"
            )

    # -- what the network has and reads
    @property
    def has_stress(self) -> bool:
        """Whether there is a stress: forces are −∂E/∂x, and cells may be sheared."""
        return self.forces_mode == "gradient"

    @property
    def has_shares(self) -> bool:
        """Whether the energy is a sum over atoms, so that each atom has a share of it."""
        return not (self.energy_head.pooled or getattr(self.energy_head, "divided", False))

    @property
    def reads_charge(self) -> bool:
        """Whether the energy depends on the structure's total charge."""
        return self.embeds_charge or getattr(self.backbone, "reads_charge", False)

    @property
    def needs_formal_charges(self) -> bool:
        """Whether it has to be told the formal charges of atoms."""
        return self.backbone.formal_charges

    # -- forward
    def graph(self, batch: Batch, pos: Tensor, strain: Tensor | None = None) -> Graph:
        """The graph of ``batch`` at positions ``pos`` [N, 3] (differentiable).

        ``strain`` [S, 3, 3], symmetric and zero, is what positions and cells are differentiated by:
        x (1 + ε) and the same for the cell's rows. Edges are made if the batch has none. Raises
        ConfigError for a batch with forces to be read by a network that has no input for them,
        DataError for a network that reads formal charges where the batch has none, and for a
        formal or total charge that it does not know.
        """
        # a tracer's tensors hold no numbers; on a GPU every step would wait for them, and `fit`,
        # `predict` and the calculator have checked the whole set
        if batch.charge.device.type == "cpu" and not isinstance(batch.charge, FakeTensor):
            self.check_charges(batch.charge)
        if batch.edge_index is None or batch.cutoff != self.cutoff:
            batch = neighbors.attach(copy.copy(batch), self.cutoff)
        sender, receiver = batch.edge_index
        boxes = batch.cell is not None and getattr(batch, "periodic", True)
        shift, cell = batch.edge_shift, batch.cell if boxes else None
        if strain is not None:
            pos = _strained(pos, strain[batch.batch])
            shift = None if shift is None else _strained(shift, strain[batch.batch[receiver]])
            cell = None if cell is None else cell + cell @ strain
        vector = edge_vectors(pos, sender, receiver, shift)
        graph = Graph(
            z=batch.z,
            pos=pos,
            batch=batch.batch,
            n_structures=batch.ptr.shape[0] - 1,
            sender=sender,
            receiver=receiver,
            vector=vector,
            distance=vector.square().sum(1).sqrt(),
            shift=shift,
            mask=batch.mask,
            charge=batch.charge,
            formal_charge=self._formal_charge(batch),
            periodic=batch.pbc.any(1) if boxes else None,
            cell=cell,
            pbc=batch.pbc if boxes else None,
        )
        if batch.force_input is None:
            return graph
        if self.force_encoder is None:
            raise ConfigError(
                "the objective gives forces to a network without an input for them: "
                "build it with force_input=True"
            )
        forces = batch.force_input / self.scale.to(pos.dtype)
        extra, extra_vector = self.force_encoder(graph, forces, batch.force_given)
        return graph._replace(extra=extra, extra_vector=extra_vector)

    def _formal_charge(self, batch: Batch) -> Tensor | None:
        charge = getattr(batch, "formal_charge", None)
        if not self.backbone.formal_charges:
            return charge
        if charge is None:
            raise DataError(
                "the network reads formal charges, which the data does not have: give "
                "formal_charge for every atom, or build it with formal_charges=False"
            )
        beyond = torch.nonzero(charge.abs() > MAX_FORMAL_CHARGE).flatten()
        if len(beyond):
            i = int(beyond[0])
            raise DataError(
                f"atom {i} of the batch is {SYMBOLS[int(batch.z[i])]} with formal charge "
                f"{int(charge[i]):+d}; the network knows -{MAX_FORMAL_CHARGE} to "
                f"+{MAX_FORMAL_CHARGE}"
            )
        return charge

    def forward(self, batch: Batch, outputs: Sequence[str] | None = None) -> Prediction:
        """Predict ``outputs`` (default: energy and vector) for ``batch``, which stays as it is.

        Raises ConfigError for outputs that do not exist, a stress of a network whose forces are no
        derivatives, and energies of atoms where the energy is no sum over them.
        """
        outputs = ("energy", "vector") if outputs is None else outputs
        _check_outputs(outputs)
        if "stress" in outputs and self.forces_mode == "vector":
            raise ConfigError(
                "stress is the derivative of the energy by strain, and this network reads its "
                "forces out directly: build it with forces='gradient'"
            )
        if "energies" in outputs:
            self.check_shares()
        if torch.is_inference_mode_enabled() and self.by_gradient(outputs):
            with torch.inference_mode(False), torch.no_grad():
                return self(_differentiable(batch), outputs)
        by_gradient = self.by_gradient(outputs)
        by_readout = "vector" in outputs or ("forces" in outputs and self.forces_mode == "vector")
        # under no_grad derivatives are still taken, but nothing is kept for a second one
        keep = torch.is_grad_enabled()
        with torch.set_grad_enabled(keep or by_gradient):
            pos = batch.pos
            if by_gradient and not pos.requires_grad:
                pos = pos.detach().requires_grad_(True)
            strain = None
            if "stress" in outputs:
                strain = pos.new_zeros(batch.num_graphs, 3, 3, requires_grad=True)
            symmetric = None if strain is None else (strain + strain.mT) / 2
            graph = self.graph(batch, pos, symmetric)
            features = self.backbone(graph)

            atomic = vector = energy = forces = noise = displacement = stress = energies = None
            if {"energy", "energies"} & set(outputs) or by_gradient:
                atomic = self.energy_head(features.scalar, graph)
            if by_readout:
                vector = self.vector_readout(features, graph, atomic, keep)
            if "noise" in outputs:
                noise = self._noise(features, graph, keep)
            if "displacement" in outputs:
                displacement = self._displacement(features)
            if "energy" in outputs:
                energy = self._total(atomic, graph)
            if "energies" in outputs:
                energies = self.shares(atomic, graph)
            if "forces" in outputs and self.forces_mode == "vector":
                forces = vector * self.scale.to(pos.dtype)
            elif "forces" in outputs or strain is not None:
                by = [graph.pos] if strain is None else [graph.pos, strain]
                gradient = torch.autograd.grad(
                    atomic.sum(), by, create_graph=keep, retain_graph=True
                )
                if "forces" in outputs:
                    forces = -gradient[0] * self.scale.to(pos.dtype)
                if strain is not None:
                    stress = self._per_volume(gradient[1], batch)
        asked = vector if "vector" in outputs else None
        prediction = Prediction(energy, asked, forces, noise, displacement, stress, energies)
        if keep:
            return prediction
        return Prediction(*(None if value is None else value.detach() for value in prediction))

    def _total(self, atomic: Tensor, graph: Graph) -> Tensor:
        # total energies of 10⁴ eV do not fit float32 to 1e-3 eV: sum and add references in float64
        atomic = atomic.double()
        if not self.energy_head.pooled:
            atomic = sum_over(atomic, graph.batch, graph.n_structures)
        references = sum_over(self.references[graph.z], graph.batch, graph.n_structures)
        energy = atomic * self.scale + references
        return energy if self.shift is None else energy + self.shift

    def check_shares(self) -> None:
        """Raise ConfigError for a network whose energy is not a sum over atoms."""
        if self.has_shares:
            return
        why = "says one energy per structure"
        if self.energy_head.pooled:
            why = "pools the features of a structure before its energy head (pooled)"
        raise ConfigError(
            f"energies of atoms: this network {why}, so its energy is no sum over atoms"
        )

    def shares(
        self,
        atomic: Tensor,  # [N] what the energy head says
        graph: Graph,
    ) -> Tensor:  # [N] eV, float64
        """Each atom's share of the energy, its reference included.

        They add up to the energy: a shift of the structure's is divided evenly.
        """
        energies = atomic.double() * self.scale + self.references[graph.z]
        if self.shift is None:
            return energies
        ones = torch.ones_like(energies)
        atoms = sum_over(ones, graph.batch, graph.n_structures)  # [S]
        return energies + self.shift / atoms[graph.batch]

    def _per_volume(
        self,
        gradient: Tensor,  # [S, 3, 3] ∂E/∂ε, without a unit
        batch: Batch,
    ) -> Tensor:  # [S, 3, 3] eV/Å³
        volume = volumes(batch.cell, batch.pbc)[:, None, None].to(gradient.dtype)
        held = volume > 0
        stress = gradient * self.scale.to(gradient.dtype) / torch.where(held, volume, 1.0)
        return torch.where(held, stress, torch.nan)

    def energy_and_forces(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Total energy [S] float64 eV and forces [N, 3] eV/Å.

        Differentiable in training mode only.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            prediction = self(batch, ("energy", "forces"))
        return prediction.energy, prediction.forces

    def by_gradient(self, outputs: Sequence[str]) -> bool:
        """Whether any of ``outputs`` is −∂E/∂x or a stress: training differentiates twice."""
        if "stress" in outputs or ("forces" in outputs and self.forces_mode == "gradient"):
            return True
        return ("vector" in outputs or "noise" in outputs) and self.vector_mode == "gradient"

    def parts(self, outputs: Sequence[str]) -> set[str]:
        """Which of backbone, energy_head, vector_readout … take part in predicting ``outputs``."""
        used = {"backbone"}
        by_energy = {"energy", "energies", "stress"} | (
            {"forces"} if self.forces_mode == "gradient" else set()
        )
        if by_energy & set(outputs):
            used.add("energy_head")
        if "vector" in outputs or ("forces" in outputs and self.forces_mode == "vector"):
            used.add("energy_head" if self.vector_mode == "gradient" else "vector_readout")
        if "noise" in outputs:
            used.add("noise_readout")
        if self.force_encoder is not None:  # without forces in the batch it has no gradient
            used.add("force_encoder")
        return used

    # -- parts that only some objectives need
    def _make_vector_readout(self) -> nn.Module:
        readout, backbone = READOUTS[self.vector_mode], self.backbone
        if readout is GradientVector:
            return readout()
        if readout is DirectVector:
            return readout(backbone.n_features, self._own_head("a direct read-out").kind)
        sizes = {
            "scalar": (backbone.n_features,),
            "vector": (backbone.n_features, backbone.n_vector_features),
            "displacement": (),
        }
        return readout(*sizes[readout.needs])

    def _own_head(self, what: str) -> AtomicEnergy:
        if not isinstance(self.energy_head, AtomicEnergy):
            raise ConfigError(
                f"{what} is made like the energy head, and {type(self.energy_head).__name__} is "
                "not potkit's AtomicEnergy; give the network a vector read-out of its own"
            )
        return self.energy_head

    def _make_noise_readout(self) -> nn.Module:
        readout, head = self._make_vector_readout(), None
        if self.vector_mode == "gradient":
            own = self._own_head("a read-out of noise")
            head = AtomicEnergy(self.backbone.n_features, self.head_norm, own.pooled, own.kind)
        return NoiseReadout(readout, head)

    def _make_force_encoder(self) -> nn.Module:
        backbone = self.backbone
        embedding = next((m for m in backbone.modules() if isinstance(m, AtomEmbedding)), None)
        if embedding is None:
            raise ConfigError(
                "force_input needs a network whose atoms are embedded by potkit's AtomEmbedding, "
                f"which {type(backbone).__name__} does not have"
            )
        return ForceEncoder(
            len(embedding.flag),
            backbone.n_vector_features,
            self.cutoff,
            components="rotation" not in backbone.symmetries,
        )

    def _noise(self, features: Features, graph: Graph, keep: bool) -> Tensor:
        if self.noise_readout is None:
            raise ConfigError(
                "the objective asks for a second vector read-out: "
                "build the network with noise_readout=True"
            )
        return self.noise_readout(features, graph, keep)

    def _displacement(self, features: Features) -> Tensor:
        kind = type(self.backbone).__name__
        if not self.backbone.gives_displacement:
            raise ConfigError(
                "the objective reads noise from coordinate updates beside the vector read-out, "
                f"which {kind} does not make; egnn does"
            )
        if self.vector_mode == "coordinate":
            raise ConfigError(
                f"the objective asks for two read-outs, and both are the coordinate updates of "
                f"{kind}: build it with vector='gradient'"
            )
        return features.displacement

    def extend(
        self, outputs: Sequence[str], inputs: Sequence[str] = (), seed: int = 0
    ) -> Potential:
        """Add what an objective asks for and this model lacks.

        That is a read-out for "noise" among ``outputs`` and an input for "forces" among ``inputs``.
        New weights follow ``seed``, all others stay. The recipe says so too, for checkpoints.
        Returns self.
        """
        lacking = {
            "force_input": "forces" in inputs and self.force_encoder is None,
            "noise_readout": "noise" in outputs and self.noise_readout is None,
        }
        like = self.like()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            if lacking["force_input"]:
                self.force_encoder = self._make_force_encoder().to(like)
            if lacking["noise_readout"]:
                self.noise_readout = self._make_noise_readout().to(like)
        if any(lacking.values()) and hasattr(self, "recipe"):
            added = {name: True for name, missing in lacking.items() if missing}
            self.recipe = {**self.recipe, "options": {**self.recipe["options"], **added}}
        return self

    def depths(self) -> dict[str, int]:
        """How far each parameter is from the input.

        0 for the embedding and all else before the layers, i for the i-th of the L layers (what
        follows the last counts with it), L + 1 for the read-outs. The layers are what the
        backbone's attribute ``stacks`` names: one ModuleList, or several that are walked through
        together. Raises ConfigError for a backbone that has none of them.
        """
        depths, top = {}, 0
        for name, _ in self.backbone.named_parameters():
            stack = next((s for s in self.backbone.stacks if name.startswith(f"{s}.")), None)
            depth = top if stack is None else int(name[len(stack) + 1 :].split(".")[0]) + 1
            depths[f"backbone.{name}"] = depth
            top = max(top, depth)
        if not top:
            raise ConfigError(
                f"{type(self.backbone).__name__} does not tell where its layers are; "
                "give it an attribute stacks with the names of its ModuleLists"
            )
        readouts = [name for name, _ in self.named_parameters() if name not in depths]
        return depths | dict.fromkeys(readouts, top + 1)

    def like(self) -> Tensor:
        """A tensor of the device and precision that this network computes in: a parameter, or a
        buffer where it has none, as a classical potential.
        """
        tensors = itertools.chain(self.parameters(), self.backbone.buffers(), self.buffers())
        return next(tensor for tensor in tensors if tensor.is_floating_point())

    def n_parameters(self) -> int:
        """How many numbers are trained."""
        return sum(p.numel() for p in self.parameters())

    def extra_repr(self) -> str:
        """What ``print`` says of the potential beside its parts: read-outs, cutoff and size."""
        return (
            f"vector={self.vector_mode}, forces={self.forces_mode}, cutoff={self.cutoff} Å, "
            f"{self.n_parameters():,} parameters"
        )


def _check_outputs(outputs: Sequence[str]) -> None:
    """Raise ConfigError for what is no list of quantities that a `Prediction` has."""
    known = ", ".join(Prediction._fields)
    if isinstance(outputs, str):
        raise ConfigError(f"outputs must be a list of names, got {outputs!r}; there are {known}")
    for name in outputs:
        if name not in Prediction._fields:
            raise ConfigError(f"no output {shown(name)}; there are {known}")


def _strained(rows: Tensor, strain: Tensor) -> Tensor:
    """``rows`` [M, 3] Å times 1 + ``strain`` [M, 3, 3]."""
    # no product of matrices: in half precision, or TF32, its derivative would round positions
    return rows + (rows[:, :, None] * strain).sum(1)


def _differentiable(batch: Batch) -> Batch:
    """``batch`` with copies of those tensors that were made in inference mode: nothing can be
    differentiated by or through the originals.
    """
    new = copy.copy(batch)
    for key, value in batch.to_dict().items():
        if isinstance(value, Tensor) and value.is_inference():
            setattr(new, key, value.clone())
    return new
