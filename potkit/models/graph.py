"""What goes into a network (`Graph`), what comes out (`Features`), and what it says of itself.

A network proper (a *backbone*) sees a `Graph` and returns `Features`; it knows neither batches nor
neighbour lists nor what it is trained on. `Potential` (base.py) turns features into a `Prediction`.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor, nn

from ..errors import ConfigError
from ..structures.elements import MAX_Z

SYMMETRIES = frozenset({"translation", "rotation", "reflection", "permutation"})


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
    formal_charge: Tensor | None = None  # [N] e, of each atom
    periodic: Tensor | None = None  # [S] whether a structure repeats; None: none does
    cell: Tensor | None = None  # [S, 3, 3] Å, rows are the box's edges; None: no structure has one
    pbc: Tensor | None = None  # [S, 3] along which of them it repeats
    extra: Tensor | None = None  # [N, F] added to the atoms' embedding by a force encoder
    extra_vector: Tensor | None = None  # [N, 3, F'] added to the vectors that the first layer makes


class Features(NamedTuple):
    """What a backbone says about each atom."""

    scalar: Tensor  # [N, F] invariant
    vector: Tensor | None = None  # [N, 3, F'] equivariant
    displacement: Tensor | None = None  # [N, 3] Å, coordinate update x_L − x


class Prediction(NamedTuple):
    """What a `Potential` predicts; None for what was not asked for."""

    energy: Tensor | None  # [S] eV, float64
    vector: Tensor | None  # [N, 3] the vector read-out
    forces: Tensor | None = None  # [N, 3] eV/Å
    # [N, 3] a second vector read-out, for objectives that denoise while energy and forces are
    # trained
    noise: Tensor | None = None
    # [N, 3] Å, the coordinate update x_L − x beside the vector read-out
    displacement: Tensor | None = None
    # [S, 3, 3] eV/Å³, 1/V ∂E/∂ε: symmetric, positive where the structure is under tension (ASE's
    # sign); NaN for structures without a cell
    stress: Tensor | None = None
    # [N] eV, float64: each atom's share of ``energy``, its element's reference included
    energies: Tensor | None = None


class Backbone(Protocol):
    """What `Potential` asks of a network, and what it says of itself.

    `Network` has defaults for all but ``cutoff`` and ``n_features``.
    """

    cutoff: float  # Å
    n_features: int  # F
    n_vector_features: int  # F', 0 for a network without vectors
    gives_displacement: bool  # whether `Features.displacement` is there
    # the ModuleLists that hold its layers; several are walked through together
    stacks: tuple[str, ...]
    # those of `SYMMETRIES` it claims to have; `potkit.testing` holds it to them
    symmetries: frozenset[str]
    # how many derivatives compiled kernels serve: 2 where training on −∂E/∂x goes through them
    kernel_order: int
    # whether they are operations of compiled graphs
    kernels_in_graphs: bool
    max_element: int  # largest atomic number it knows
    smooth: bool  # whether nothing in it has a kink, as ReLU does: derivatives hold everywhere
    # which faults of the published code it has (see `faults`)
    faults: tuple[str, ...]
    formal_charges: bool  # whether it reads formal charges of atoms

    def __call__(self, graph: Graph) -> Features:
        """What the network says of each atom of ``graph``."""


class Network(nn.Module):
    """A `Backbone` that only says where it differs from most; base class of the networks here."""

    cutoff: float
    n_features: int
    n_vector_features = 0
    gives_displacement = False
    stacks: tuple[str, ...] = ("layers",)
    symmetries = SYMMETRIES
    kernel_order = 0
    kernels_in_graphs = False
    max_element = MAX_Z
    smooth = True
    faults: tuple[str, ...] = ()
    formal_charges = False


def declare(module: nn.Module) -> None:
    """Give a backbone that is no `Network` the defaults of what it does not say of itself.

    Raises ConfigError naming what has no default and is missing.
    """
    for name in Backbone.__annotations__:
        if hasattr(module, name):
            continue
        if not hasattr(Network, name):
            raise ConfigError(
                f"{type(module).__name__} has no attribute {name}: "
                "a backbone needs cutoff (Å) and n_features"
            )
        setattr(module, name, getattr(Network, name))
