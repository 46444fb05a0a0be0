"""GNS as in the masked paper's code (arXiv 2402.15921; Sanchez-Gonzalez et al., arXiv 2002.09405).

With r_ij the minimum image of x_j − x_i and all φ MLPs with ReLU:
    v_i  = φ_V(x_i, embed(type_i) + embed'(flag_i)),   e_ij = φ_e(r_ij / r_c, |r_ij| / r_c)
  each step:
    v_i  ← v_i + φ_v(Σ_j φ_m(v_i, v_j, e_ij), v_i)
    e_ij ← 2 e_ij
  and at last:
    E    = Σ_i φ_E(v_i),   "forces" = φ_F(v_i)
φ_V, φ_e, φ_v and φ_m end with a LayerNorm. The forces are also the direction of the masked
objective.

Published faults that stand here:
- "edges-doubled": the message-passing library hands the edges' INPUT back, not what φ_m made of
  them, and the residual adds it once more: after ten steps edges are 1024 times what they were, and
  the paper's e_ij ← e_ij + φ_m is never done.
- "wrapped-positions": positions in Å, wrapped into the box, are inputs of the nodes: shifting or
  turning a structure changes energy and forces.
- "no-envelope": nothing vanishes at the cutoff.
- "mask-shift": where flags are given, unflagged atoms get row 0 of the flag's embedding;
  fine-tuning gives none.
The code knows periodic boxes only; free molecules go through it here without wrapping.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor, nn

from ..base import Features
from ..faults import of
from ..layers import sum_over
from .common import AtomEnergy, CodeGraph, DirectForces, Published, minimum_image

SETTINGS: dict[str, Any] = dict(  # the paper's; 3.4 Å
    latent_dim=128,
    nmessage_passing_steps=10,
    nmlp_layers=2,
    mlp_hidden_dim=128,
    connectivity_radius=3.4,
    nparticle_types=100,
    particle_type_embedding_size=128,
)
ALIASES = {
    "latent": "latent_dim",
    "steps": "nmessage_passing_steps",
    "mlp_layers": "nmlp_layers",
    "mlp_width": "mlp_hidden_dim",
    "radius": "connectivity_radius",
}
WITHOUT_EFFECT = ("nnode_in", "device", "use_pbc", "pretrain_return")
FIXED = {"particle_dimensions": 3, "nedge_in": 4}
NAMES = (
    ("_encode_process_decode._decoder.energy_fn.", "energy_head."),
    ("_encode_process_decode._decoder.force_fn.", "vector_readout."),
    ("", "backbone."),
)
UNUSED: tuple[str, ...] = ()


def mlp_parts(inputs: int, hidden: int, layers: int, outputs: int) -> dict[str, nn.Module]:
    """``layers`` hidden layers with ReLU and a linear one, named as in the code: NN-0, Act-0, …"""
    widths = [inputs, *[hidden] * layers, outputs]
    parts: dict[str, nn.Module] = {}
    for i, (before, after) in enumerate(itertools.pairwise(widths)):
        parts[f"NN-{i}"] = nn.Linear(before, after)
        parts[f"Act-{i}"] = nn.ReLU() if i < layers else nn.Identity()
    return parts


def filled(sequence: nn.Sequential, parts: dict[str, nn.Module]) -> nn.Sequential:
    """``sequence`` with ``parts`` under their names."""
    for name, part in parts.items():
        sequence.add_module(name, part)
    return sequence


def normed_mlp(inputs: int, hidden: int, layers: int, outputs: int) -> nn.Sequential:
    """An MLP with a LayerNorm at its end."""
    return nn.Sequential(
        filled(nn.Sequential(), mlp_parts(inputs, hidden, layers, outputs)), nn.LayerNorm(outputs)
    )


class NodesAndEdges(nn.Module):
    """Two networks, for nodes and for edges: of the encoder and of each step."""

    def __init__(
        self, node_inputs: int, edge_inputs: int, latent: int, hidden: int, layers: int
    ) -> None:
        super().__init__()
        self.node_fn = normed_mlp(node_inputs, hidden, layers, latent)
        self.edge_fn = normed_mlp(edge_inputs, hidden, layers, latent)


class Step(NodesAndEdges):
    """One message-passing step of the processor."""

    def forward(
        self, v: Tensor, e: Tensor, sender: Tensor, receiver: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The atoms' features v [N, F] and the edges' e [E, F] after this step."""
        message = self.edge_fn(torch.cat([v[receiver], v[sender], e], 1))  # [E, F]
        total = sum_over(message, receiver, len(v))
        v = v + self.node_fn(torch.cat([total, v], 1))
        return v, e + e  # "edges-doubled"; e + message would be the paper's


class GNS(nn.Module):
    """The backbone: `CodeGraph` -> `Features`.

    Scalars are [N, latent_dim]; they change when the structure is moved or turned.
    """

    n_vector_features = 0
    gives_displacement = False
    boxes = True
    faults = of("gns", "masked-paper")
    formal_charges = False  # read through `CodeGraph.type`
    stacks = ("_encode_process_decode._processor.gnn_stacks",)
    symmetries = frozenset({"permutation"})

    def __init__(
        self,
        latent_dim: int,
        nmessage_passing_steps: int,
        nmlp_layers: int,
        mlp_hidden_dim: int,
        connectivity_radius: float,
        nparticle_types: int,
        particle_type_embedding_size: int,
    ) -> None:
        super().__init__()
        self.cutoff, self.n_features = connectivity_radius, latent_dim
        self._particle_type_embedding = nn.Embedding(nparticle_types, particle_type_embedding_size)
        self._mask_embedding = nn.Embedding(2, particle_type_embedding_size)
        processor = nn.Module()
        processor.gnn_stacks = nn.ModuleList(
            Step(2 * latent_dim, 3 * latent_dim, latent_dim, mlp_hidden_dim, nmlp_layers)
            for _ in range(nmessage_passing_steps)
        )
        self._encode_process_decode = nn.Module()  # only for the names in the state dict
        self._encode_process_decode._encoder = NodesAndEdges(
            3 + particle_type_embedding_size, 4, latent_dim, mlp_hidden_dim, nmlp_layers
        )
        self._encode_process_decode._processor = processor

    def forward(self, graph: CodeGraph) -> Features:
        """Scalars v_i [N, latent_dim], which change when the structure is moved or turned."""
        encoder = self._encode_process_decode._encoder
        steps = self._encode_process_decode._processor.gnn_stacks
        sender, receiver, pos = graph.sender, graph.receiver, graph.pos
        box = None if graph.box is None else graph.box[graph.batch]  # [N, 3]
        if box is not None:  # the code's data sets wrap positions before the network sees them
            length = torch.where(box.isfinite(), box, 1.0)
            pos = torch.where(box.isfinite(), torch.remainder(pos, length), pos)
        kind = self._particle_type_embedding(graph.type)
        if graph.mask is not None:
            kind = kind + self._mask_embedding(graph.mask)  # "mask-shift"
        edge_box = None if box is None else box[receiver]  # [E, 3]
        vector = minimum_image(pos[sender] - pos[receiver], edge_box) / self.cutoff
        distance = torch.linalg.vector_norm(vector, dim=1, keepdim=True) + 1e-8
        v = encoder.node_fn(torch.cat([pos, kind], 1))  # [N, F]
        e = encoder.edge_fn(torch.cat([vector, distance], 1))  # [E, F]
        for step in steps:
            v, e = step(v, e, sender, receiver)
        return Features(v)


def sizes(state: dict[str, Tensor]) -> dict[str, Any]:
    """The settings that a state dict tells."""
    types, embedding = state["_particle_type_embedding.weight"].shape
    head = "_encode_process_decode._decoder.energy_fn."
    width, latent = state[f"{head}NN-0.weight"].shape
    steps = [
        int(k.split(".")[3])
        for k in state
        if k.startswith("_encode_process_decode._processor.gnn_stacks.")
    ]
    return dict(
        latent_dim=latent,
        nmessage_passing_steps=1 + max(steps),
        nmlp_layers=sum(k.startswith(head) and k.endswith(".weight") for k in state) - 1,
        mlp_hidden_dim=width,
        nparticle_types=types,
        particle_type_embedding_size=embedding,
    )


def network(**settings: Any) -> Published:
    """The network with new weights, under the published code's names of settings."""
    sides = settings["latent_dim"], settings["mlp_hidden_dim"], settings["nmlp_layers"]
    energy = filled(AtomEnergy(), mlp_parts(*sides, 1))
    forces = filled(DirectForces(), mlp_parts(*sides, 3))
    outputs = ("energy", "vector", "forces")
    return Published(
        GNS(**settings), energy, forces, vector="direct", forces="vector", outputs=outputs
    )
