"""The contract of every network: graph in, features out; and the read-outs that turn features into
energy, forces and vectors.

A network proper (a *backbone*) only sees a `Graph` and returns `Features`. `Potential` owns the
rest, once for all networks: the neighbour list, the sum over atoms, reference energies, the
derivative −∂E/∂x, and the vector read-out that pretraining uses.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..errors import ConfigError, DataError
from ..structures import neighbors
from ..structures.batch import Batch
from ..structures.elements import MAX_Z, SYMBOLS
from .layers import AtomEmbedding, mlp, sum_over
from .read_in import ForceEncoder


class Graph(NamedTuple):
    """What a backbone sees of a batch; built once per step."""

    z: Tensor  # [N] atomic numbers
    pos: Tensor  # [N, 3] Å
    batch: Tensor  # [N] structure of each atom
    n_structures: int
    sender: Tensor  # [E] j
    receiver: Tensor  # [E] i, rising
    vector: Tensor  # [E, 3] Å, x_j + shift − x_i
    distance: Tensor  # [E] Å
    shift: Tensor | None  # [E, 3] Å, None without periodic boundaries
    mask: Tensor | None  # [N] 1 where an objective flagged the atom
    charge: Tensor  # [S] e
    extra: Tensor | None = None  # [N, F] added to the atoms' embedding by a read-in
    extra_vector: Tensor | None = None  # [N, 3, F'] added to the vectors that the first layer makes


class Features(NamedTuple):
    """What a backbone says about each atom."""

    scalar: Tensor  # [N, F] invariant
    vector: Tensor | None = None  # [N, 3, F'] equivariant
    displacement: Tensor | None = None  # [N, 3] Å, coordinate update x_L − x


class Prediction(NamedTuple):
    """energy [S] float64 eV, vector [N,3] (the vector read-out), forces [N,3] eV/Å; None for what
    was not asked for.

    noise [N,3]: a second vector read-out, for objectives that denoise while energy and forces are
    trained.
    """

    energy: Tensor | None
    vector: Tensor | None
    forces: Tensor | None = None
    noise: Tensor | None = None


class AtomicEnergy(nn.Module):
    """Energy of each atom from its features by an MLP [N, F] -> [N] (dimensionless; `Potential`
    scales it to eV).

    ``norm`` puts a LayerNorm first (masked paper). ``pooled`` sums features over the structure
    before the MLP, as the denoise paper's code does: then the energy is not size-extensive; [N, F]
    -> [S].
    """

    def __init__(self, features: int, norm: bool = False, pooled: bool = False) -> None:
        super().__init__()
        self.pooled = pooled
        self.norm = nn.LayerNorm(features) if norm else nn.Identity()
        self.mlp = mlp([features, features, 1])

    def forward(self, features: Tensor, graph: Graph) -> Tensor:
        if self.pooled:
            features = sum_over(features, graph.batch, graph.n_structures)
        return self.mlp(self.norm(features))[:, 0]


class GradientVector(nn.Module):
    """−∂E/∂x of the (dimensionless) energy head: denoise paper for SchNet and SE(3)-Transformer,
    masked paper for EGNN.
    """

    needs = "scalar"

    def forward(self, features: Features, graph: Graph, energy: Tensor, keep_graph: bool) -> Tensor:
        return -torch.autograd.grad(
            energy.sum(), graph.pos, create_graph=keep_graph, retain_graph=True
        )[0]


class CoordinateVector(nn.Module):
    """The coordinate update x_L − x of the message-passing layers (denoise paper, EGNN)."""

    needs = "displacement"

    def forward(
        self, features: Features, graph: Graph, energy: Tensor | None, keep_graph: bool
    ) -> Tensor:
        return features.displacement


class DirectVector(nn.Module):
    """An MLP from invariant features to three numbers (GNS, ForceNet decoders); not
    rotation-equivariant.
    """

    needs = "scalar"

    def __init__(self, features: int) -> None:
        super().__init__()
        self.mlp = mlp([features, features, 3])

    def forward(
        self, features: Features, graph: Graph, energy: Tensor | None, keep_graph: bool
    ) -> Tensor:
        return self.mlp(features.scalar)


class GatedBlock(nn.Module):
    """Gated equivariant block (Schütt et al. 2021, PaiNN fig. 3): scalars see vector norms,
    vectors are gated by scalars.
    """

    def __init__(self, scalars: int, vectors: int, out_scalars: int, out_vectors: int) -> None:
        super().__init__()
        self.mix = nn.Linear(vectors, vectors + out_vectors, bias=False)
        self.split = (vectors, out_vectors)
        self.net = mlp([scalars + vectors, scalars, out_scalars + out_vectors])
        self.out = (out_scalars, out_vectors)

    # [N, F], [N, 3, F']
    def forward(self, scalar: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
        seen, moved = self.mix(vector).split(self.split, dim=-1)
        # the small term keeps the derivative finite for vanishing vectors
        norm = (seen.square().sum(1) + 1e-12).sqrt()
        scalar, gate = self.net(torch.cat([scalar, norm], -1)).split(self.out, dim=-1)
        return nn.functional.silu(scalar), moved * gate[:, None]


class GatedVector(nn.Module):
    """Two gated equivariant blocks on (scalars, vectors) -> one vector per atom (denoise paper,
    TorchMD-Net ET).
    """

    needs = "vector"

    def __init__(self, features: int, vector_features: int) -> None:
        super().__init__()
        half = max(features // 2, 1)
        self.first = GatedBlock(features, vector_features, half, half)
        self.second = GatedBlock(half, half, 1, 1)

    def forward(
        self, features: Features, graph: Graph, energy: Tensor | None, keep_graph: bool
    ) -> Tensor:
        return self.second(*self.first(features.scalar, features.vector))[1][..., 0]


class NoiseReadout(nn.Module):
    """A vector read-out beside the potential's own, of the same kind; one that is a gradient has an
    energy head of its own.

    Where forces come from the potential's vector read-out or energy head, noise and forces would
    contradict each other there.
    """

    def __init__(self, readout: nn.Module, head: AtomicEnergy | None) -> None:
        super().__init__()
        self.readout, self.head = readout, head

    def forward(self, features: Features, graph: Graph, keep_graph: bool) -> Tensor:
        return self.readout(
            features,
            graph,
            None if self.head is None else self.head(features.scalar, graph),
            keep_graph,
        )


READOUTS = {
    "gradient": GradientVector,
    "coordinate": CoordinateVector,
    "direct": DirectVector,
    "gated": GatedVector,
}
OUTPUTS = ("energy", "vector", "forces", "noise")


class Potential(nn.Module):
    """A backbone with its read-outs: maps a batch to `Prediction`.

    ``backbone`` has attributes ``cutoff`` (Å), ``n_features`` (F), ``n_vector_features`` (F' or 0),
    ``gives_displacement`` (bool), and ``stacks`` where its layers are not in ``layers`` (see
    `depths`).
    ``vector`` names the read-out of the pretraining target; ``forces`` is "gradient" (−∂E/∂x) or
    "vector" (the vector read-out is trained on forces, as in force-centric networks).
    ``force_input`` adds an input for forces (`read_in.ForceEncoder`), ``noise_readout`` a second
    vector read-out; training adds both where an objective needs them (`extend`).
    Buffers: ``references`` [119] float64 eV per element, ``scale`` eV.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        vector: str = "gradient",
        forces: str = "gradient",
        head_norm: bool = False,
        pooled: bool = False,
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
        readout = READOUTS[vector]
        if readout.needs == "displacement" and not backbone.gives_displacement:
            raise ConfigError(
                f"vector='coordinate' needs coordinate updates, which {type(backbone).__name__} does not make"
            )
        if readout.needs == "vector" and not backbone.n_vector_features:
            raise ConfigError(
                f"vector='gated' needs equivariant features, which {type(backbone).__name__} does not have"
            )
        self.backbone = backbone
        self.cutoff = float(backbone.cutoff)
        self.energy_head = AtomicEnergy(backbone.n_features, head_norm, pooled)
        self.vector_mode, self.forces_mode = vector, forces
        self.vector_readout = self._make_vector_readout()
        self.force_encoder = self._make_force_encoder() if force_input else None
        self.noise_readout = self._make_noise_readout() if noise_readout else None
        self.register_buffer("references", torch.zeros(MAX_Z + 1, dtype=torch.float64))
        # elements that have a reference
        self.register_buffer("known", torch.zeros(MAX_Z + 1, dtype=torch.bool))
        self.register_buffer("scale", torch.ones((), dtype=torch.float64))

    def _apply(self, fn, recurse: bool = True) -> Potential:
        # what moves or casts a model ends here; reference energies of 10³ eV would be rounded by
        # 1e-4 eV in float32
        exact = {name: getattr(self, name) for name in ("references", "scale")}
        super()._apply(fn, recurse)
        for name, value in exact.items():
            setattr(self, name, value.to(self.known.device))
        return self

    # -- normalisation ----------------------------------------------------------------------------
    def set_references(self, energies: dict[int, float], scale: float = 1.0) -> Potential:
        """Reference energies in eV per atomic number, and the unit (eV) in which the head
        speaks. Returns self.
        """
        if not (scale > 0 and torch.isfinite(torch.tensor(scale))):
            raise DataError(f"the energy scale must be a positive number, got {scale}")
        self.references.zero_()
        self.known.zero_()
        for z, value in energies.items():
            self.references[z], self.known[z] = value, True
        self.scale.fill_(scale)
        return self

    def check_elements(self, z: Sequence[int]) -> None:
        """Raise DataError naming elements this model has no reference energy for, once
        references were set.
        """
        missing = [SYMBOLS[i] for i in z if bool(self.known.any()) and not bool(self.known[i])]
        if missing:
            known = [SYMBOLS[i] for i in torch.nonzero(self.known).flatten().tolist()]
            raise DataError(
                f"no reference energy for {', '.join(missing)}: the model was trained with {', '.join(known)}"
            )

    # -- forward ----------------------------------------------------------------------------------
    def graph(self, batch: Batch, pos: Tensor) -> Graph:
        """The graph of ``batch`` at positions ``pos`` [N,3] (differentiable); edges are made if
        the batch has none.
        """
        if batch.edge_index is None or batch.cutoff != self.cutoff:
            batch = neighbors.attach(copy.copy(batch), self.cutoff)
        sender, receiver = batch.edge_index
        vector = pos[sender] - pos[receiver]
        if batch.edge_shift is not None:
            vector = vector + batch.edge_shift
        graph = Graph(
            batch.z,
            pos,
            batch.batch,
            batch.ptr.shape[0] - 1,
            sender,
            receiver,
            vector,
            vector.square().sum(1).sqrt(),
            batch.edge_shift,
            batch.mask,
            batch.charge,
        )
        if batch.force_input is None:
            return graph
        if self.force_encoder is None:
            raise ConfigError(
                "the objective gives forces to a network without an input for them: build it with force_input=True"
            )
        extra, vectors = self.force_encoder(
            graph, batch.force_input / self.scale.to(pos.dtype), batch.force_given
        )
        return graph._replace(extra=extra, extra_vector=vectors)

    def forward(self, batch: Batch, outputs: Sequence[str] | None = None) -> Prediction:
        """Predict ``outputs`` (default: energy and vector) for ``batch``, which is left as it
        is.
        """
        outputs = ("energy", "vector") if outputs is None else outputs
        by_gradient = ("forces" in outputs and self.forces_mode == "gradient") or (
            ("vector" in outputs or "noise" in outputs) and self.vector_mode == "gradient"
        )
        by_readout = "vector" in outputs or ("forces" in outputs and self.forces_mode == "vector")
        # under no_grad the derivatives are still taken, but nothing is kept for a second one
        keep = torch.is_grad_enabled()
        with torch.set_grad_enabled(torch.is_grad_enabled() or by_gradient):
            pos = (
                batch.pos.detach().requires_grad_(True)
                if by_gradient and not batch.pos.requires_grad
                else batch.pos
            )
            graph = self.graph(batch, pos)
            features = self.backbone(graph)
            atomic = (
                self.energy_head(features.scalar, graph)
                if "energy" in outputs or by_gradient
                else None
            )
            vector = self.vector_readout(features, graph, atomic, keep) if by_readout else None
            noise = self._noise(features, graph, keep) if "noise" in outputs else None
            energy = forces = None
            if "energy" in outputs:
                energy = self._total(atomic, graph)
            if "forces" in outputs:
                scale = self.scale.to(pos.dtype)
                if self.forces_mode == "vector":
                    forces = vector * scale
                else:
                    forces = (
                        -torch.autograd.grad(
                            atomic.sum(), graph.pos, create_graph=keep, retain_graph=True
                        )[0]
                        * scale
                    )
        if not keep:
            energy, vector, forces, noise = (
                None if t is None else t.detach() for t in (energy, vector, forces, noise)
            )
        return Prediction(energy, vector if "vector" in outputs else None, forces, noise)

    def _total(self, atomic: Tensor, graph: Graph) -> Tensor:
        # total energies of 10⁴ eV do not fit float32 to 1e-3 eV: sum and add references in float64
        atomic = atomic.double()
        summed = (
            atomic if self.energy_head.pooled else sum_over(atomic, graph.batch, graph.n_structures)
        )
        return summed * self.scale + sum_over(
            self.references[graph.z], graph.batch, graph.n_structures
        )

    def energy_and_forces(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Total energy [S] float64 eV and forces [N,3] eV/Å; differentiable in training mode
        only.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.training):
            prediction = self(batch, ("energy", "forces"))
        return prediction.energy, prediction.forces

    def parts(self, outputs: Sequence[str]) -> set[str]:
        """Which of backbone, energy_head, vector_readout take part in predicting ``outputs``."""
        used = {"backbone"}
        if "energy" in outputs or ("forces" in outputs and self.forces_mode == "gradient"):
            used.add("energy_head")
        if "vector" in outputs or ("forces" in outputs and self.forces_mode == "vector"):
            used.add("energy_head" if self.vector_mode == "gradient" else "vector_readout")
        if "noise" in outputs:
            used.add("noise_readout")
        # without forces in the batch it has no gradient
        return used if self.force_encoder is None else used | {"force_encoder"}

    # -- parts that only some objectives need -----------------------------------------------------
    def _make_vector_readout(self) -> nn.Module:
        readout, backbone = READOUTS[self.vector_mode], self.backbone
        sizes = {
            "scalar": (backbone.n_features,),
            "vector": (backbone.n_features, backbone.n_vector_features),
            "displacement": (),
        }
        return readout() if readout is GradientVector else readout(*sizes[readout.needs])

    def _make_noise_readout(self) -> nn.Module:
        norm, pooled = (
            isinstance(getattr(self.energy_head, "norm", None), nn.LayerNorm),
            self.energy_head.pooled,
        )
        own = self.vector_mode == "gradient"
        return NoiseReadout(
            self._make_vector_readout(),
            AtomicEnergy(self.backbone.n_features, norm, pooled) if own else None,
        )

    def _make_force_encoder(self) -> nn.Module:
        kind = type(self.backbone).__name__
        if not any(isinstance(m, AtomEmbedding) for m in self.backbone.modules()):
            raise ConfigError(
                f"force_input needs a network whose atoms are embedded by potkit's AtomEmbedding, which {kind} does not have"
            )
        free = "rotation" not in getattr(self.backbone, "symmetries", ("rotation",))
        return ForceEncoder(
            self.backbone.n_features, self.backbone.n_vector_features, self.cutoff, free
        )

    def _noise(self, features: Features, graph: Graph, keep: bool) -> Tensor:
        if self.noise_readout is None:
            raise ConfigError(
                "the objective asks for a second vector read-out: build the network with noise_readout=True"
            )
        return self.noise_readout(features, graph, keep)

    def extend(
        self, outputs: Sequence[str], inputs: Sequence[str] = (), seed: int = 0
    ) -> Potential:
        """Add what an objective asks for and this model lacks: "noise" among ``outputs``, "forces"
        among ``inputs``.

        New weights follow ``seed``, all others stay. The recipe says so too, for checkpoints.
        Returns self.
        """
        lacking = {
            "force_input": "forces" in inputs and self.force_encoder is None,
            "noise_readout": "noise" in outputs and self.noise_readout is None,
        }
        like = next(p for p in self.parameters() if p.is_floating_point())
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
        """How far each parameter is from the input: 0 the embedding and all else before the layers,
        i the i-th of the L layers (what follows the last counts with it), L + 1 the read-outs.

        The layers are what the backbone's attribute ``stacks`` names (default: ("layers",)): one
        ModuleList, or several that are walked through together. Raises ConfigError for a backbone
        that has none of them.
        """
        stacks, depths, top = getattr(self.backbone, "stacks", ("layers",)), {}, 0
        for name, _ in self.backbone.named_parameters():
            stack = next((s for s in stacks if name.startswith(f"{s}.")), None)
            depth = top if stack is None else int(name[len(stack) + 1 :].split(".")[0]) + 1
            depths[f"backbone.{name}"], top = depth, max(top, depth)
        if not top:
            kind = type(self.backbone).__name__
            raise ConfigError(
                f"{kind} does not tell where its layers are; give it an attribute stacks with the names of its ModuleLists"
            )
        return depths | {n: top + 1 for n, _ in self.named_parameters() if n not in depths}

    def n_parameters(self) -> int:
        return sum(p.numel() for p in self.parameters())

    def extra_repr(self) -> str:
        return f"vector={self.vector_mode}, forces={self.forces_mode}, cutoff={self.cutoff} Å, {self.n_parameters():,} parameters"
