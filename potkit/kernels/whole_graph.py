"""Energy and its derivatives as one graph, for training (torch.compile can differentiate it again)
and for predictions.

Forces −∂E/∂x are a derivative already, and training on them takes a second one, which torch.compile
cannot do for code that calls autograd. So `Potential.forward` is traced first (make_fx): what comes
out is a flat graph of torch's core operations in which the first derivative is spelled out. That
graph torch.compile takes like any other code, and autograd differentiates it once more.

Numbers of atoms, edges and structures stay symbols in it, so one graph serves batches of all sizes;
weights are the network's own tensors, changed in place by the optimizer. In a grid of experiments
many networks are alike but for their weights: where a graph may be shared, these are inputs of it,
and tracing, one to two seconds for each run, is done once in a process.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import operator
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ..errors import ConfigError
from ..models.base import Potential, Prediction
from ..models.replaceable import plain_only
from ..structures import neighbors
from ..structures.arrays import rows_per
from ..structures.batch import Batch
from . import egnn_operations, torchmd_et_operations, used

OWN_PASS = "post_grad_custom_post_pass"  # Inductor's option: the last change of its graphs
# Inductor's options that leave out its checks of shapes and strides, some sixty in a prediction:
# 0.1 ms of 1.75 (SchNet) and 2.55 ms (EGNN) for energy and forces of 26 atoms
BARE = {"size_asserts": False, "alignment_asserts": False}
# what `Potential.forward` reads of a batch
READ = (
    "z",
    "pos",
    "batch",
    "ptr",
    "edge_index",
    "edge_shift",
    "cell",
    "pbc",
    "charge",
    "mask",
    "force_input",
    "force_given",
)
# Sizes of the batch that is traced. Nothing of its content matters, but two sizes that are equal
# get one symbol: these are like no other, nor like the 2 and 3 of edges and axes.
ATOMS, EDGES, STRUCTURES = 101, 1009, 7
RELATIVE = {torch.float64: 1e-9, torch.float32: 1e-4}  # largest difference, in the answer's size
CHECKED = 2  # batches on which a new graph is held to the network
MOST_SHARED = 16  # graphs kept in a process for networks that are alike
# compilations of one graph: sizes of 1 are another case for torch, frozen weights are, too
MOST_COMPILATIONS = 16


# replaceable functions whose kernels are operations of graphs
IN_GRAPHS = (
    "egnn.messages",
    "torchmd_et.attention",
    "torchmd_et.neighbors",
    "torchmd_et.update",
)


def _by_kernels(pos: Tensor) -> bool:
    return pos.device.type == "cpu" and pos.dtype == torch.float32


class WholeGraph:
    """Stands in for calls of ``model``: for training those whose outputs are derivatives of the
    energy, with ``predictions`` instead those where nothing is differentiated afterwards.

    ``kernels``: in float32 on a CPU those that are operations of graphs stand in for plain
    functions. ``shared``: graphs are kept in the process, and serve every network with the same
    recipe and weights of the same names and shapes. ``backend`` is torch.compile's.
    ``compilations`` counts how often it was called. What it does not serve is left to the network.

    The first batches of a graph are compared with what the network itself says, in training
    derivatives by the weights included. Calls raise ConfigError for a network that cannot be traced
    or compiled, and for one that answers otherwise then.
    """

    def __init__(
        self,
        model: Potential,
        backend: str = "inductor",
        predictions: bool = False,
        kernels: bool = False,
        shared: bool = False,
    ) -> None:
        self.model = model
        self.kernels = kernels
        # a network without a recipe may differ from another in what is no tensor
        self.shared = shared and not predictions and getattr(model, "recipe", None) is not None
        self.backend = backend
        self.predictions = predictions
        self.compilations = 0
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._modules = tuple(model.modules())

    def __call__(self, batch: Batch, outputs: Sequence[str] | None = None) -> Prediction:
        """As `Potential.forward`."""
        outputs = ("energy", "vector") if outputs is None else tuple(outputs)
        model = self.model
        if not self._serves(outputs):
            return model.forward(batch, outputs)
        batch = neighbors.attach(copy.copy(batch), model.cutoff)
        if not batch.edge_index.shape[1]:
            return model.forward(batch, outputs)
        tensors = {name: getattr(batch, name, None) for name in READ}
        tensors = {name: value for name, value in tensors.items() if value is not None}
        periodic = getattr(batch, "periodic", True)
        # a batch norm that is held, in a frozen backbone, is another graph than one that is trained
        modes = tuple(module.training for module in self._modules)
        key = (outputs, tuple(tensors), periodic, modes, batch.pos.dtype, batch.pos.device)
        graph = self._graphs.get(key)
        if graph is not None and graph.checked >= CHECKED:
            return self._run(graph, tensors)
        # before it is traced: what a network makes at its first call and keeps (e3nn's spherical
        # harmonics do) would be made of the trace's tensors, which hold no numbers
        with _buffers_kept(model):
            own = self._answer(lambda: model.forward(batch, outputs))
        if graph is None:
            graph = self._graphs[key] = self._made(key, tensors, outputs, periodic)
        try:
            self._check(graph, tensors, own)
        except ConfigError:
            if not self.shared:
                raise
            # that of a network alike in recipe and weights which differs in something else
            self.shared = False
            graph = self._graphs[key] = self._trace(tensors, outputs, periodic)
            self._check(graph, tensors, own)
        graph.checked += 1
        return self._run(graph, tensors)

    def _made(
        self,
        key: tuple[Any, ...],
        tensors: dict[str, Tensor],
        outputs: tuple[str, ...],
        periodic: bool,
    ) -> _Graph:
        """The graph of ``outputs``, traced or, where it may be shared, found."""
        if not self.shared:
            return self._trace(tensors, outputs, periodic)
        state = _state(self.model)
        alike = tuple((n, t.shape, t.dtype, t.requires_grad) for n, t in state.items())
        recipe = json.dumps(self.model.recipe, sort_keys=True, default=str)
        key = (recipe, alike, self.kernels, self.backend, *key)
        if key not in _SHARED:
            _SHARED[key] = self._trace(tensors, outputs, periodic)
            if len(_SHARED) > MOST_SHARED:
                _SHARED.pop(next(iter(_SHARED)))
        of = _SHARED[key]
        return _Graph(of.function, of.fields, of.names, [state[name] for name in of.names])

    def _serves(self, outputs: Sequence[str]) -> bool:
        if self.predictions:
            # the network leaves inference mode and calls again where it needs derivatives
            return not (torch.is_grad_enabled() or torch.is_inference_mode_enabled())
        return torch.is_grad_enabled() and self.model.by_gradient(outputs)

    def _trace(
        self, tensors: dict[str, Tensor], outputs: tuple[str, ...], periodic: bool
    ) -> _Graph:
        """The graph of ``outputs`` for batches that have what ``tensors`` names."""
        names, model = tuple(tensors), self.model
        if getattr(model.backbone, "formal_charges", False):
            raise ConfigError(
                "config: compile does not serve networks that read formal charges of atoms; set "
                "compile to false"
            )
        fields: list[str] = []  # of the prediction, those that are there

        def forward(*values: Tensor) -> list[Tensor]:
            content = dict(zip(names, values, strict=True))
            content |= {"cutoff": model.cutoff, "periodic": periodic}
            with torch.set_grad_enabled(not self.predictions):
                prediction = model.forward(Batch.of(content), outputs)
            given = {k: v for k, v in prediction._asdict().items() if v is not None}
            fields[:] = given
            return list(given.values())

        examples = [_example(name, value) for name, value in tensors.items()]
        trace = make_fx(
            forward,
            decomposition_table=_decompositions(),
            tracing_mode="symbolic",
            _allow_non_fake_inputs=True,
        )
        try:
            with self._stand_ins(tensors), _buffers_kept(model), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                traced = trace(*examples)
        except Exception as error:  # whatever a network does that cannot be traced
            raise self._refused("traced", error) from error
        _spell_out_lengths(traced)
        _detach_statistics(traced)
        names = _lift(traced, _state(model)) if self.shared else ()
        torch._dynamo.config.recompile_limit = max(
            torch._dynamo.config.recompile_limit, MOST_COMPILATIONS
        )
        function = torch.compile(traced, backend=self._compile, fullgraph=True)
        return _Graph(function, tuple(fields), names)

    @contextlib.contextmanager
    def _stand_ins(self, tensors: dict[str, Tensor]) -> Iterator[None]:
        """Within, kernels that are operations of graphs stand in for plain functions, where they
        serve the network and ``tensors``; nothing else does.
        """
        if not (self.kernels and _by_kernels(tensors["pos"])):
            with plain_only():
                yield
            return
        egnn_operations.register()
        torchmd_et_operations.register()
        with plain_only(but=IN_GRAPHS), used():
            yield

    def _compile(self, graph: torch.fx.GraphModule, examples: list[Any]) -> Callable[..., Any]:
        self.compilations += 1
        if self.backend != "inductor":
            return torch._dynamo.lookup_backend(self.backend)(graph, examples)
        from .scatters import ScattersApart  # brings Inductor

        options = {OWN_PASS: ScattersApart()} | (BARE if self.predictions else {})
        return torch._inductor.compile(graph, examples, options=options)

    def _run(self, graph: _Graph, tensors: dict[str, Tensor]) -> Prediction:
        for name, value in tensors.items():
            for axis in _changing(name):
                torch._dynamo.maybe_mark_dynamic(value, axis)
        try:
            values = graph.function(*graph.state, *tensors.values())
        except (torch._dynamo.exc.TorchDynamoException, torch._inductor.exc.CppCompileError) as e:
            raise self._refused("compiled", e) from e
        return Prediction(
            **{"energy": None, "vector": None} | dict(zip(graph.fields, values, strict=True))
        )

    def _refused(self, what: str, error: Exception) -> ConfigError:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        name = type(self.model.backbone).__name__
        return ConfigError(
            f"compile: {name} cannot be {what} with −∂E/∂x: {lines[0]}; set compile to false"
        )

    def _answer(self, predict: Callable[[], Prediction]) -> _Answer:
        """What ``predict`` says and, in training, the derivatives of that by the weights."""
        prediction = predict()
        if self.predictions:
            return _Answer(prediction, {})
        weights = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        gradients = _gradients(prediction, list(weights.values()))
        return _Answer(prediction, dict(zip(weights, gradients, strict=True)))

    def _check(self, graph: _Graph, tensors: dict[str, Tensor], own: _Answer) -> None:
        """Raise ConfigError where the graph and the network, which gave ``own``, differ in what
        they predict or in the derivatives of that by the weights.
        """
        with _buffers_kept(self.model):
            compiled = self._answer(lambda: self._run(graph, tensors))
        relative = RELATIVE[tensors["pos"].dtype]
        for quantity, wanted in own.prediction._asdict().items():
            if wanted is not None:
                got = getattr(compiled.prediction, quantity)
                self._compare(quantity, got, wanted, relative)
        # one size for all: what a single weight's derivative is rounded by comes from the others
        known = (g for g in own.gradients.values() if g is not None)
        size = max((float(g.abs().max()) for g in known), default=0.0)
        for name, wanted in own.gradients.items():
            got = compiled.gradients[name]
            if got is not None and wanted is not None:
                self._compare(f"derivatives by {name}", got, wanted, relative, size)
            elif got is not wanted:  # zero is as good as none
                value = got if wanted is None else wanted
                zero = torch.zeros_like(value)
                self._compare(f"derivatives by {name}", value, zero, relative, size)

    def _compare(
        self, quantity: str, got: Tensor, wanted: Tensor, relative: float, size: float | None = None
    ) -> None:
        got, wanted = got.detach(), wanted.detach()
        known = wanted.isfinite()  # a stress is NaN without a cell, an energy after divergence
        if not known.any():
            return
        size = 1 + float(wanted[known].abs().max()) if size is None else size
        worst = float((got - wanted)[known].abs().max())
        if not worst <= relative * size:
            name = type(self.model.backbone).__name__
            raise ConfigError(
                f"compile: {name}, compiled, has other {quantity} than the network itself (by "
                f"{worst:.1e}, of {size:.1e}): set compile to false"
            )


class _Answer(NamedTuple):
    """A prediction and its derivatives by the weights, by their names; None where it has none."""

    prediction: Prediction
    gradients: dict[str, Tensor | None]


@contextlib.contextmanager
def _buffers_kept(model: Potential) -> Iterator[None]:
    """Afterwards every buffer of ``model`` is as it was: what is called within is a trial, whose
    batch must not be counted among a batch norm's.
    """
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in before:
                if not torch.equal(buffer, value):
                    buffer.copy_(value)


class _Graph:
    """A compiled function of the tensors of a batch, and the fields of `Prediction` it gives.

    ``names``: weights and buffers that it takes before these; ``state``: those of one network.
    """

    def __init__(
        self,
        function: Callable[..., list[Tensor]],
        fields: tuple[str, ...],
        names: tuple[str, ...] = (),
        state: Sequence[Tensor] = (),
    ) -> None:
        self.function = function
        self.fields = fields
        self.names = names
        self.state = state
        self.checked = 0


_SHARED: dict[tuple[Any, ...], _Graph] = {}  # without a state, the oldest first


def _state(model: Potential) -> dict[str, Tensor]:
    """Weights and buffers of ``model`` by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _lift(traced: torch.fx.GraphModule, state: dict[str, Tensor]) -> tuple[str, ...]:
    """Make inputs of those tensors of ``state`` that are constants of the graph; their names, in
    the order of the inputs, which stand before the others.
    """
    graph = traced.graph
    known = {id(tensor): name for name, tensor in state.items()}
    first = next(iter(graph.nodes))
    inputs: dict[str, torch.fx.Node] = {}
    for node in list(graph.find_nodes(op="get_attr")):
        name = known.get(id(getattr(traced, node.target)))
        if name is None:
            continue
        if name not in inputs:
            with graph.inserting_before(first):
                inputs[name] = graph.placeholder(f"state_{len(inputs)}")
            inputs[name].meta = dict(node.meta)
        node.replace_all_uses_with(inputs[name])
        graph.erase_node(node)
    traced.recompile()
    traced.delete_all_unused_submodules()
    return tuple(inputs)


def _gradients(prediction: Prediction, weights: list[Tensor]) -> list[Tensor | None]:
    """Derivatives by ``weights`` of one number into which all that is predicted goes."""
    values = [v for v in prediction if v is not None and v.requires_grad]
    total = sum(torch.where(v.isfinite(), v, 0.0).double().square().mean() for v in values)
    return list(torch.autograd.grad(total, weights, allow_unused=True))


def _decompositions() -> dict[Any, Callable[..., Any]]:
    """Torch's core ones, and those of operations whose derivative reads more than their result.

    native_layer_norm also gives mean and deviation, which torch differentiates as constants: right
    for the first derivative, wrong for one that was spelled out by them and is taken once more. So
    do the others; `nn.BatchNorm1d` in training is _native_batch_norm_legit.
    """
    aten = torch.ops.aten
    both = torch._decomp.get_decompositions(
        [
            aten.native_layer_norm,
            aten.native_group_norm,
            aten.native_batch_norm,
            aten._native_batch_norm_legit,
        ]
    )
    return {**torch._decomp.core_aten_decompositions(), **both}


def _spell_out_lengths(traced: torch.fx.GraphModule) -> None:
    """Write every number of elements in the graph as a product of sizes, which torch.compile takes.

    torch-geometric's scatter asks for it where torch-scatter is missing.
    """
    aten, graph = torch.ops.aten, traced.graph
    for node in graph.find_nodes(op="call_function", target=aten.sym_numel.default):
        (array,) = node.args
        with graph.inserting_before(node):
            sizes = [
                graph.call_function(aten.sym_size.int, (array, axis))
                for axis in range(array.meta["val"].ndim)
            ]
            product = functools.reduce(
                lambda a, b: graph.call_function(operator.mul, (a, b)), sizes, 1
            )
        node.replace_all_uses_with(product)
        graph.erase_node(node)
    traced.recompile()


def _detach_statistics(traced: torch.fx.GraphModule) -> None:
    """Have what the graph writes into a buffer (running statistics of a batch norm) carry no
    derivative into the next step, as is so for the operation that was decomposed.
    """
    aten, graph = torch.ops.aten, traced.graph
    for node in graph.find_nodes(op="call_function", target=aten.copy_.default):
        if node.args[0].op != "get_attr":
            continue
        with graph.inserting_before(node):
            node.update_arg(1, graph.call_function(aten.detach.default, (node.args[1],)))
    traced.recompile()


def _changing(name: str) -> tuple[int, ...]:
    """Which axes of a batch's array ``name`` change from batch to batch."""
    return (1,) if name == "edge_index" else (0,)


def _example(name: str, value: Tensor) -> Tensor:
    """Zeros shaped and typed like ``value``, of the sizes that are traced."""
    sizes = {"atom": ATOMS, "structure": STRUCTURES, "edge": EDGES, "size": STRUCTURES + 1}
    shape = list(value.shape)
    for axis in _changing(name):
        shape[axis] = sizes[rows_per(name)]
    return value.new_zeros(shape)
