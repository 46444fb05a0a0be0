"""One pretraining step, potkit beside others: corrupt + neighbours + forward + backward +
optimizer, on the same structures.

Each case is a network in the denoise paper's setting (NequIP in its own paper's, with −∂E/∂x as its
vector). Rivals get the same weights, and the outputs are compared before the clock starts; where a
package computes something else (egnn-pytorch's edge network is twice as wide and wider), it says so
and only times.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels.compiling import has_kernels
from ..objectives import Denoise
from ..structures.store import Structures
from . import peers
from .common import COLUMNS, Rival, alkanes, check_device, compare, matmul_rate, precisions

CASES = ("egnn", "torchmd_et", "schnet", "nequip")


def run(
    device: str = "cpu",
    threads: int = 1,
    repeats: int = 5,
    cases: tuple[str, ...] = CASES,
    batch: int = 64,
    hidden: int = 256,
    compile: bool = False,
    memory: bool = True,
    say: Callable[[str], None] = lambda text: None,
):
    """A DataFrame, a row per case and implementation; see `common.compare` for the columns.

    ``batch`` structures per step (`peers.batch_of`), networks of width ``hidden``; ``compile`` adds
    potkit with its option of that name.
    """
    import pandas as pd

    check_device(device, threads)
    rows = []
    for case in cases:
        structures, source = alkanes(peers.batch_of(case, batch, device))
        rivals, sizes = contenders(case, structures, device, hidden, compile)
        rivals[0].note = "; ".join(filter(None, [source, rivals[0].note]))
        rows += compare(
            f"{case} step", rivals, repeats, device, threads, memory=memory, say=say, **sizes
        )
    return pd.DataFrame(rows, columns=COLUMNS)


def contenders(
    case: str, structures: Structures, device: str, hidden: int, compile: bool
) -> tuple[list[Rival], dict[str, int]]:
    """The implementations of one case, the peers first, and the numbers of atoms and edges of
    its batch.
    """
    torch.manual_seed(0)
    model = peers.reference(case, hidden).to(device)
    peers.wake(model)
    clean = structures.batch(device=device)
    corrupted = Denoise(sigma=0.2).corrupt(clean, torch.Generator(device).manual_seed(0))
    n_edges = len(model.graph(corrupted, corrupted.pos).sender)
    rivals = []
    for peer in peers.of(case, model, structures, device):
        step = trainer(peer.module, structures, device, peer.predict, fused=False)
        output = functools.partial(peer.predict, peer.module, corrupted) if peer.same else None
        rounds = None if peer.same else 2
        rivals.append(Rival(peer.name, step, output, note=peer.note, rounds=rounds))
    kernel = has_kernels(model, ("vector",), device)
    compilable = kernel or not model.by_gradient(("vector",))
    for precision, low in precisions(device):
        predict = functools.partial(potkit_vector, low=low, device=device)
        bound = Roofline.of(model, n_edges, hidden, low, device)
        for compiled in (False, True) if compile and compilable else (False,):
            twin = peers.copy_of(model, compile=compiled and not kernel)
            rival = Rival(
                "potkit, compiled" if compiled else "potkit",
                trainer(twin, structures, device, predict, fused=True),
                functools.partial(predict, twin, corrupted),
                precision,
            )
            if compiled and kernel:
                rival.work, rival.output = with_kernels(rival.work), with_kernels(rival.output)
            if compiled and kernel and case == "schnet":
                # its filters' product is not made per pair any more, so nothing bounds its time
                rival.note = "filters interpolated from a table over the distance"
            elif bound is not None:
                rival.roofline = bound.seconds
                rival.note = f"{precision} roofline: {bound}"
            rivals.append(rival)
    return rivals, {"atoms": len(corrupted.pos), "edges": n_edges}


@dataclasses.dataclass(frozen=True)
class Roofline:
    """The least time that the products per edge can take, at the rate products run here."""

    operations: float
    rate: float  # operations per second over all edges
    rate_in_cache: float  # and of 1024 rows
    n_edges: int
    hidden: int

    @classmethod
    def of(
        cls, model: Any, n_edges: int, hidden: int, low: torch.dtype | None, device: str
    ) -> Roofline | None:
        """Measured here; None for a network whose operations are not known."""
        operations = peers.least_operations(model, n_edges)
        if not operations:
            return None
        dtype = low or torch.float32
        rate = matmul_rate(n_edges, hidden, dtype, device)
        rate_in_cache = matmul_rate(1024, hidden, dtype, device)
        return cls(operations, rate, rate_in_cache, n_edges, hidden)

    @property
    def seconds(self) -> float:
        """The least time."""
        return self.operations / self.rate

    def __str__(self) -> str:
        return (
            f"{self.operations / 1e9:.0f} GFLOP at {self.rate / 1e9:.0f} GFLOP/s, as products "
            f"[{self.n_edges}, {self.hidden}] × [{self.hidden}, {self.hidden}] run here "
            f"(in cache, [1024, {self.hidden}]: {self.rate_in_cache / 1e9:.0f})"
        )


def with_kernels(work: Callable[[], Any]) -> Callable[[], Any]:
    """``work`` as under `TrainConfig.compile` on a CPU, for networks that have kernels."""

    def done() -> Any:
        with kernels.used():
            return work()

    return done


def potkit_vector(
    model: torch.nn.Module, batch: Any, low: torch.dtype | None, device: str
) -> Tensor:
    """The vector read-out, under autocast if ``low`` is given."""
    with torch.autocast(device, low or torch.bfloat16, enabled=low is not None):
        return model(batch, ("vector",)).vector.float()


def trainer(
    module: torch.nn.Module,
    structures: Structures,
    device: str,
    predict: Callable[[Any, Any], Tensor],
    fused: bool,
) -> Callable[[], None]:
    """A function that trains ``module`` by one step: new noise on a freshly built batch, all
    edges found anew.
    """
    objective = Denoise(sigma=0.2)
    generator = torch.Generator(device).manual_seed(1)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.0, fused=fused or None)
    structures.to(device)
    module.train()

    def step() -> None:
        batch = objective.corrupt(structures.batch(device=device), generator)
        loss = (predict(module, batch) - batch.target).square().mean()
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss, inputs=parameters) if fused else loss.backward()
        optimizer.step()

    return step
