"""Networks that are not ours: any torch module that maps a PyG batch to energy or atoms' features.

    from torch_geometric.nn import SchNet
    foreign = SchNet(cutoff=5.0, interaction_graph=CurrentGraph())
    model = adapt(foreign, features="lin1")
    model = adapt(foreign, energy=lambda out: out)

`CurrentGraph` shows it potkit's neighbour list, periodic images included. In the first case what
enters its layer ``lin1`` are the features, with our energy head on them; in the second its own
energy is used as it is. The result is a `Potential` like any other: −∂E/∂x, denoising, masking,
transfer of the backbone, the contract suite.

    model = adapt("my_networks:make", arguments={"hidden": 64}, features="lin1")

names what makes the module instead (`import_paths`). Then a checkpoint of it can be opened again,
by whoever allows my_networks.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import ConfigError
from ..structures.batch import Batch
from ..structures.elements import MAX_Z
from . import import_paths
from .base import Potential
from .graph import Features, Graph, Network
from .layers import sum_over

Select = str | int | Callable[[Any], Tensor]
WHOLE = "answer"  # selects the network's answer itself, where that is a tensor
PREFIX = "adapted "  # of a recipe's name
GIVEN = (
    "z",
    "pos",
    "batch",
    "edge_index",
    "edge_weight",
    "edge_vec",
    "edge_shift",
    "mask",
    "charge",
    "data",
)


class CurrentGraph(nn.Module):
    """Stands in for a network's own neighbour search.

    f(pos, batch) answers (edge_index [2, E], distances [E] Å) of potkit's graph.
    """

    graph: Graph | None = None

    def forward(self, pos: Tensor, batch: Tensor) -> tuple[Tensor, Tensor]:
        """The edges of the graph that is being worked on, whatever ``pos`` and ``batch`` are."""
        if self.graph is None:
            raise RuntimeError(
                "CurrentGraph answers only inside a network wrapped by potkit.models.adapt"
            )
        return torch.stack([self.graph.sender, self.graph.receiver]), self.graph.distance


class EnergyFromFeatures(nn.Module):
    """Energy head for networks that say the energy themselves: the last feature, [N, F] -> [N].

    ``divided``: it is one energy per structure, shared out evenly, which says nothing of an atom.
    """

    pooled = False

    def __init__(self, divided: bool) -> None:
        super().__init__()
        self.divided = divided

    def forward(self, features: Tensor, graph: Graph) -> Tensor:
        """The last feature of each atom: [N, F] -> [N], in the potential's scale."""
        return features[:, -1]


class Adapted(Network):
    """A foreign module as a backbone; made by `adapt`."""

    def __init__(
        self,
        module: nn.Module,
        cutoff: float,
        features: Select | None,
        energy: Select | None,
        vectors: Select | None,
    ):
        super().__init__()
        self.module, self.cutoff = module, cutoff
        self.n_features = self.n_vector_features = 0  # `adapt` finds them out
        self._select = {"features": features, "energy": energy, "vectors": vectors}
        self._arguments = _arguments(module)
        self.reads_charge = "charge" in self._arguments
        self._stand_ins = [m for m in module.modules() if isinstance(m, CurrentGraph)]
        layers = dict(module.named_modules())
        self._inside = {k: s for k, s in self._select.items() if isinstance(s, str) and s in layers}

    def forward(self, graph: Graph) -> Features:
        """What the foreign module says of ``graph``: scalars [N, F], vectors [N, 3, F'] or None.

        Raises ConfigError where a part of its answer is missing or has the wrong shape.
        """
        return self.fitted(self.parts(graph), graph)

    def fitted(self, parts: dict[str, Tensor], graph: Graph) -> Features:
        """``parts`` as `Features`. Raises ConfigError for one of the wrong shape."""
        n, name = graph.z.shape[0], type(self.module).__name__
        scalar = []
        if "features" in parts:
            scalar.append(_fit(parts["features"], (n, None), "features", name))
        if "energy" in parts:
            scalar.append(_per_atom(parts["energy"], graph, name))
        vector = None
        if "vectors" in parts:
            vector = _fit(parts["vectors"], (n, 3, None), "vectors", name)
        return Features(torch.cat(scalar, -1), vector=vector)

    def parts(self, graph: Graph) -> dict[str, Tensor]:
        """What the foreign module says of ``graph``, in its own shapes: some of "features",
        "energy", "vectors".

        Raises ConfigError for what is not there or no tensor.
        """
        caught: dict[str, Tensor] = {}
        hooks = [
            self.module.get_submodule(name).register_forward_pre_hook(
                lambda _, args, kind=kind: caught.update({kind: args[0]})
            )
            for kind, name in self._inside.items()
        ]
        for stand_in in self._stand_ins:
            stand_in.graph = graph
        try:
            out = self.module(*_inputs(graph, self._arguments))
        finally:
            for hook in hooks:
                hook.remove()
            for stand_in in self._stand_ins:
                stand_in.graph = None
        parts: dict[str, Tensor] = {}
        for kind, select in self._select.items():
            if kind in self._inside:
                parts[kind] = caught.get(kind)
            elif select is not None:
                parts[kind] = _pick(out, select, kind)
        for kind, value in parts.items():
            if not isinstance(value, Tensor):
                raise ConfigError(
                    f"{kind}={self._select[kind]!r} of {type(self.module).__name__} gives "
                    f"{type(value).__name__}, not a tensor"
                )
        return parts


def _arguments(module: nn.Module) -> list[str]:
    """Names of the inputs of ``module.forward`` that a graph has; ["data"] if it takes a batch."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    names = []
    # "batch" alone is a whole batch; beside z and pos, the owner of each atom
    if [p.name for p in positional] == ["batch"]:
        return ["data"]
    for p in positional:
        if p.name in GIVEN:
            names.append(p.name)
        elif p.default is p.empty:
            if len(positional) == 1 or not any(q.name in GIVEN for q in positional):
                return ["data"]
            raise ConfigError(
                f"{type(module).__name__}.forward needs {p.name!r}, which the bridge cannot give; "
                f"it can give {', '.join(GIVEN)}"
            )
        else:
            # an optional input the bridge does not know, and all after it: left to their defaults
            break
    return names


def _inputs(graph: Graph, names: list[str]) -> list[Any]:
    values = {
        "z": graph.z,
        "pos": graph.pos,
        "batch": graph.batch,
        "edge_weight": graph.distance,
        "edge_vec": graph.vector,
        "edge_shift": graph.shift,
        "mask": graph.mask,
        "charge": graph.charge,
    }
    if "edge_index" in names or "data" in names:
        values["edge_index"] = torch.stack([graph.sender, graph.receiver])
    if "data" in names:
        counts = torch.bincount(graph.batch, minlength=graph.n_structures)
        data = Batch(
            ptr=torch.cat([counts.new_zeros(1), counts.cumsum(0)]),
            **{k: v for k, v in values.items() if v is not None},
        )
        data.edge_attr, data.x = graph.distance[:, None], graph.z[:, None]
        data.num_nodes = graph.z.shape[0]
        values["data"] = data
    return [values[n] for n in names]


def _pick(out: Any, select: Select, kind: str) -> Any:
    if callable(select):
        return select(out)
    if select == WHOLE and isinstance(out, Tensor):
        return out
    try:
        if isinstance(select, str) and not isinstance(out, dict):
            return getattr(out, select)
        return out[select]
    except (AttributeError, KeyError, IndexError, TypeError):
        answer = type(out).__name__
        raise ConfigError(
            f"{kind}={select!r}: neither a part of the network's answer ({answer}) "
            "nor a layer of it"
        ) from None


def _fit(value: Tensor, shape: tuple[int | None, ...], kind: str, name: str) -> Tensor:
    """``value``, if it has ``shape``, in which None stands for any size."""
    fits = value.ndim == len(shape) and all(
        needed in (None, size) for needed, size in zip(shape, value.shape, strict=True)
    )
    if not fits:
        needed = ", ".join("any" if size is None else str(size) for size in shape)
        raise ConfigError(f"{kind} of {name} must have shape ({needed}), got {tuple(value.shape)}")
    return value


def _per_atom(energy: Tensor, graph: Graph, name: str) -> Tensor:
    """[N, 1] energies of atoms.

    An energy of a structure is shared out evenly: its sum and derivative stay as they are.
    """
    flat = energy.flatten()
    n, s = graph.z.shape[0], graph.n_structures
    if energy.shape[0] == n and flat.shape == (n,) and n != s:
        return flat[:, None]
    if flat.shape != (s,):
        raise ConfigError(
            f"energy of {name} must have shape ({s},) or ({n},), got {tuple(energy.shape)}"
        )
    counts = sum_over(torch.ones_like(graph.z, dtype=flat.dtype), graph.batch, s)
    return (flat / counts.clamp(min=1))[graph.batch][:, None]


def adapt(
    module: nn.Module | str,
    *,
    arguments: dict[str, Any] | None = None,
    features: Select | None = None,
    energy: Select | None = None,
    vectors: Select | None = None,
    cutoff: float | None = None,
    symmetries: Iterable[str] | None = None,
    max_element: int = MAX_Z,
    **readouts: Any,
) -> Potential:
    """Wrap ``module`` as a `Potential`.

    ``module`` is a torch module, or the import path "package.module:name" of the class or function
    that makes one of ``arguments`` (JSON: numbers, texts, lists, dicts). Only in the latter case
    can a checkpoint be opened again, once the module is allowed (`potkit.models.allow`); functions
    of the answer cannot be written to one.
    ``features`` [N, F], ``energy`` ([S], [S, 1], [N] or [N, 1], in the potential's scale) and
    ``vectors`` [N, 3, F'] each say where the quantity is found: the name of a layer (what enters
    it), a key, attribute or index of the answer, "answer" for the answer itself, or a function of
    the answer. With ``energy`` the network's own energy is used, else our energy head acts on
    ``features``; one energy per structure has no shares of atoms. The module is called with those
    of z, pos, batch, edge_index, edge_weight, edge_vec, edge_shift, mask, charge that its forward
    names, or with one PyG batch. ``cutoff`` (Å) defaults to the module's attribute; ``symmetries``
    are those it claims (default: all); ``max_element`` is the largest atomic number it knows;
    ``readouts`` are `Potential`'s (vector, forces, head_norm).
    Sizes are found by one call on a water molecule.
    Raises ConfigError where something is missing or has the wrong shape.
    """
    source = module if isinstance(module, str) else None
    selects = {"features": features, "energy": energy, "vectors": vectors}
    if source is not None:
        arguments = import_paths.check_arguments(arguments or {}, source)
        written = [kind for kind, select in selects.items() if callable(select)]
        if written:
            raise ConfigError(
                f"{written[0]} of {source} is a function, which no checkpoint can hold: "
                f'give the name of a layer, a key or index of the answer, or "{WHOLE}"'
            )
        module = import_paths.construct(source, arguments)
    elif arguments is not None:
        raise ConfigError("adapt: arguments= go with an import path, not with a module")
    name = type(module).__name__
    if features is None and energy is None:
        raise ConfigError(
            f"adapting {name} needs features= or energy=: say where they are found in its answer"
        )
    if cutoff is None and not isinstance(cutoff := getattr(module, "cutoff", None), (int, float)):
        raise ConfigError(f"{name} has no attribute cutoff: give cutoff= in Å")
    if not cutoff > 0:
        raise ConfigError(f"cutoff must be positive, got {cutoff}")
    backbone = Adapted(module, float(cutoff), features, energy, vectors)
    backbone.max_element = max_element
    if symmetries is not None:
        backbone.symmetries = frozenset(symmetries)
    probe = _water(module, float(cutoff))
    with torch.no_grad():
        parts = backbone.parts(probe)
        seen = backbone.fitted(parts, probe)
    backbone.n_features = seen.scalar.shape[1]
    backbone.n_vector_features = 0 if seen.vector is None else seen.vector.shape[2]
    model = Potential(backbone, **readouts)
    if energy is not None:
        # water has three atoms in its one structure
        model.energy_head = EnergyFromFeatures(divided=parts["energy"].numel() == 1)
    model.to(probe.pos.device, probe.pos.dtype)
    model.references, model.scale = model.references.double(), model.scale.double()
    # without a source enough to save and transfer weights, not to build the network again
    options = {}
    if source is not None:
        options = {"module": source, "arguments": arguments, **selects}
        options |= {"cutoff": float(cutoff), "max_element": max_element, **readouts}
        options["symmetries"] = sorted(backbone.symmetries)
    model.recipe = {"name": PREFIX + name, "preset": "", "options": options}
    return model


def rebuild(recipe: dict[str, Any]) -> Potential:
    """The adapted network, with new weights, that a stored recipe stands for.

    Raises ConfigError for one without an import path, one whose module was not allowed
    (`import_paths.allow`; then nothing is imported), and for options that `adapt` does not have.
    """
    options = dict(recipe["options"])
    name = recipe["name"].removeprefix(PREFIX)
    if "module" not in options:
        raise ConfigError(
            f"{recipe['name']} was made of a module in memory; to be opened again, it must be "
            f"adapted by import path: adapt('package.module:{name}', arguments=…)"
        )
    source = options.pop("module")
    import_paths.check_allowed(source)
    known = inspect.signature(adapt).parameters.keys() | inspect.signature(Potential).parameters
    unknown = options.keys() - (known - {"module", "backbone", "readouts"})
    if unknown:
        raise ConfigError(f"{recipe['name']} has no option {', '.join(map(repr, sorted(unknown)))}")
    selects = [options.get(kind) for kind in ("features", "energy", "vectors")]
    if not all(select is None or isinstance(select, (str, int)) for select in selects):
        raise ConfigError(f"{recipe['name']}: what it reads must be names or indices: {selects}")
    model = adapt(source, **options)
    if model.recipe["name"] != recipe["name"]:
        raise ConfigError(f"{source} now makes {type(model.backbone.module).__name__}, not {name}")
    return model


def _water(module: nn.Module, cutoff: float) -> Graph:
    like = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
    device = like.device
    pos = torch.tensor(
        [[0.0, 0.0, 0.0], [0.96, 0.0, 0.0], [-0.24, 0.93, 0.0]], dtype=like.dtype, device=device
    )
    sender, receiver = torch.tensor([[1, 2, 0, 2, 0, 1], [0, 0, 1, 1, 2, 2]], device=device)
    vector = pos[sender] - pos[receiver]
    distance = vector.norm(dim=1)
    kept = distance < cutoff
    zeros = torch.zeros(3, dtype=torch.long, device=device)
    return Graph(
        z=torch.tensor([8, 1, 1], device=device),
        pos=pos,
        batch=zeros,
        n_structures=1,
        sender=sender[kept],
        receiver=receiver[kept],
        vector=vector[kept],
        distance=distance[kept],
        shift=None,
        mask=zeros,
        charge=torch.zeros(1, dtype=like.dtype, device=device),
    )
