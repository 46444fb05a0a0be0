"""The implementations potkit is measured against, one file each.

A peer takes potkit's batch and (where it can) potkit's weights. A new one is one file with a
function ``peer(model, device)``, and one entry in PEERS.
"""

from __future__ import annotations

from collections.abc import Callable

from ...models.base import Potential
from ...structures.store import Structures
from . import egnn_pytorch, nequip, plain_egnn, pyg_schnet, torchmd_net
from .base import Peer, edges_of, minus_gradient, package
from .cases import PeerPotential, batch_of, copy_of, least_operations, reference, wake
from .torchmd_net import copy_torchmd_et

# network -> its peers, the one that ratios refer to first
PEERS: dict[str, tuple[Callable[[Potential, str], Peer | None], ...]] = {
    "egnn": (plain_egnn.peer, egnn_pytorch.peer),
    "torchmd_et": (torchmd_net.peer,),
    "schnet": (pyg_schnet.peer,),
    "nequip": (nequip.peer,),
    "painn": (),
}

__all__ = [
    "PEERS",
    "Peer",
    "PeerPotential",
    "batch_of",
    "copy_of",
    "copy_torchmd_et",
    "edges_of",
    "least_operations",
    "minus_gradient",
    "of",
    "package",
    "reference",
    "wake",
]


def of(case: str, model: Potential, structures: Structures, device: str) -> list[Peer]:
    """The peers of ``case`` that are installed and take ``structures``, the one that ratios refer
    to first.
    """
    peers = [make(model, device) for make in PEERS[case]]
    repeats = bool(structures.pbc.any())
    return [peer for peer in peers if peer is not None and (peer.periodic or not repeats)]
