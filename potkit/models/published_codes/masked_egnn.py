"""EGNN as in the masked paper's code (arXiv 2402.15921): other inputs, head and box.

    h_i  = embed(type_i) + embed'(flag_i)            (flags where the masked objective gives them)
the layers of `denoise_egnn`, in boxes with r_ij the minimum image of x_i − x_j, then
    E    = Σ_i φ_E(LayerNorm h_i),   "forces" = −∂E/∂x by autograd
The forces are also the direction of the masked objective.

Published faults that stand here:
- "detached-norm": the length that normalises r_ij is a constant to autograd, so "forces" are not
  −∂E/∂x (about 5 % off).
- "no-envelope": nothing vanishes at the cutoff; energy and forces jump when a neighbour crosses it.
- "mask-shift": where flags are given, unflagged atoms get row 0 of the flag's embedding;
  fine-tuning gives none, so the inputs of all atoms shift between the two stages.
- "neighbours-32": free molecules are cut as in `denoise_egnn`, periodic boxes are not.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ..base import Features
from ..faults import of
from . import denoise_egnn
from .common import AtomEnergy, CodeGraph, Published

# the published configuration for water; its cutoff is 3.5 Å, the paper's 3.4 Å
SETTINGS: dict[str, Any] = dict(
    hidden_channels=128,
    n_layers=5,
    residual=True,
    attention=False,
    normalize=True,
    tanh=False,
    cutoff=3.5,
    max_atom_type=28,
    max_num_neighbors=32,
)
# ``use_pbc``: the batch says what is periodic
WITHOUT_EFFECT = ("max_chirality_type", "pretrain_return", "denoise_return", "use_pbc")
NAMES, UNUSED = denoise_egnn.NAMES, denoise_egnn.UNUSED
sizes = denoise_egnn.sizes


class EGNN(denoise_egnn.EGNN):
    """The backbone: `CodeGraph` -> `Features`.

    Scalars are [N, hidden_channels], the displacement x_L − x [N, 3] in Å.
    """

    boxes = True
    faults = of("egnn", "masked-paper")

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.mask_embedding = nn.Embedding(settings["max_atom_type"], settings["hidden_channels"])
        self.out_norm = nn.LayerNorm(settings["hidden_channels"])

    def forward(self, graph: CodeGraph) -> Features:
        """Scalars [N, F], normalised, and displacements x_L − x [N, 3] Å."""
        kept, box = self.heard(graph), None
        if graph.box is not None:
            box = graph.box[graph.batch]  # [N, 3]
            kept = kept | box[graph.receiver].isfinite().all(1)  # no limit in boxes
        sender, receiver = graph.sender[kept], graph.receiver[kept]
        box = None if box is None else box[receiver]
        h, x = self.type_embedding(graph.type), graph.pos
        if graph.mask is not None:
            h = h + self.mask_embedding(graph.mask)  # "mask-shift"
        for layer in self.gcl:
            h, x = layer(h, x, receiver, sender, None, box)
        return Features(self.out_norm(h), displacement=x - graph.pos)


def network(**settings: Any) -> Published:
    """The network with new weights, under the published code's names of settings."""
    hidden = settings["hidden_channels"]
    head = AtomEnergy(nn.Linear(hidden, hidden), nn.SiLU(), nn.Linear(hidden, 1))
    return Published(
        EGNN(**settings), head, vector="gradient", outputs=("energy", "vector", "forces")
    )
