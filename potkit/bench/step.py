"""One pretraining step, potkit beside others: corrupt + neighbours + forward + backward +
optimizer, on the same structures.

Each case is a network in the denoise paper's setting (NequIP in its own paper's, with −∂E/∂x as its
vector). Rivals get the same weights, and the outputs are compared before the clock starts; where a
package computes something else (egnn-pytorch's edge network is twice as wide and wider), it says so
and only times.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .. import kernels
from ..kernels.compiling import has_kernels
from ..objectives import Denoise
from ..structures.store import Structures
from . import peers
from .common import COLUMNS, Rival, alkanes, bfloat16_is_fast, check_device, compare, matmul_rate

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
    graph = model.graph(corrupted, corrupted.pos)
    n_edges = len(graph.sender)
    flops = peers.least_operations(model, n_edges)
    rivals = []
    for rival in peers.of(case, model, structures, device):
        step = trainer(rival.module, structures, device, rival.predict, fused=False)
        output = (lambda r=rival: r.predict(r.module, corrupted)) if rival.same else None
        rivals.append(
            Rival(rival.name, step, output, note=rival.note, rounds=None if rival.same else 2)
        )
    kernel = has_kernels(model, ("vector",), device)
    precisions = [("float32", None)] + (
        [("bfloat16", torch.bfloat16)] if bfloat16_is_fast(device) else []
    )
    for precision, low in precisions:
        rate = matmul_rate(n_edges, hidden, low or torch.float32, device) if flops else None
        best = matmul_rate(1024, hidden, low or torch.float32, device) if flops else None
        for compiled in (
            (False, True)
            if compile and (kernel or not model.by_gradient(("vector",)))
            else (False,)
        ):
            own = peers.copy_of(model, compile=compiled and not kernel)
            predict = lambda m, b, low=low: potkit_vector(m, b, low, device)
            within = with_kernels if compiled and kernel else (lambda work: work)
            # its filters are interpolated: that product is not made per pair any more
            from_table = compiled and kernel and case == "schnet"
            bound = flops and not from_table
            rivals.append(
                Rival(
                    "potkit, compiled" if compiled else "potkit",
                    within(trainer(own, structures, device, predict, fused=True)),
                    within(lambda m=own, p=predict: p(m, corrupted)),
                    precision,
                    roofline=flops / rate if bound else None,
                    note="filters interpolated from a table over the distance"
                    if from_table
                    else (
                        f"{precision} roofline: {flops / 1e9:.0f} GFLOP at {rate / 1e9:.0f} GFLOP/s, as products [{n_edges}, {hidden}] × "
                        f"[{hidden}, {hidden}] run here (in cache, [1024, {hidden}]: {best / 1e9:.0f})"
                    )
                    if bound
                    else "",
                )
            )
    return rivals, {"atoms": len(corrupted.pos), "edges": n_edges}


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
