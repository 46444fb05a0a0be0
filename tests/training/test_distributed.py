"""Two processes on the CPU (gloo, over the loopback interface only) do what one process with the
whole batch does.
"""

from __future__ import annotations

import dataclasses
import json
import os
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from tiny import egnn, molecules, water

import potkit
from potkit import TrainConfig
from potkit.training import checkpoints, loop
from potkit.training import step as steps

SCRIPT = """
import json, os, sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], f"{sys.argv[1]}/training"]
import torch
import potkit
from potkit import TrainConfig, training
from tiny import egnn, molecules, water
from test_distributed import runs

out, rank = Path(sys.argv[2]), int(os.environ["RANK"])


def shorten():
    # on this process the derivative of more than one structure at once does not fit, as if its
    # memory were smaller
    original, sizes = potkit.Potential.forward, []
    backward = torch.Tensor.backward

    def forward(model, batch, outputs=None):
        sizes.append(batch.num_graphs)
        return original(model, batch, outputs)

    def refused(tensor, *args, **kwargs):
        if sizes[-1] > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return backward(tensor, *args, **kwargs)

    def undo():
        potkit.Potential.forward = original
        torch.Tensor.backward = backward

    potkit.Potential.forward = forward
    torch.Tensor.backward = refused
    return undo


ends = {}
for name, (model, structures, valid, objective, config) in runs().items():
    if name == "different starts":  # a script that forgot to seed: the first process counts
        model = egnn(seed=rank)
    undo = shorten() if name == "in parts" and rank == 0 else None
    try:
        run = training.fit(model, structures, objective, config, out / name, valid)
    except Exception as error:
        ends[name] = f"{type(error).__name__}: {error}"
        continue
    if undo is not None:
        undo()
        assert json.loads((run.path / "summary.json").read_text())["micro_batch"] == 1
    ends[name] = {
        key: value.tolist()
        for key, value in run.model.state_dict().items()
        if key.startswith(("backbone", "energy_head"))
    }
(out / f"rank{rank}.json").write_text(json.dumps(ends))
"""


@dataclasses.dataclass(frozen=True)
class NowAndThen(potkit.Supervised):
    """Shows the flag of atoms in batches with an odd number of structures only: one process uses
    its weight, the other does not.
    """

    def corrupt(self, batch, generator):
        batch = super().corrupt(batch, generator)
        if batch.num_graphs % 2:
            batch.mask = torch.ones_like(batch.z)
        return batch


def runs() -> dict:
    """Name -> model, structures, validation, objective, config; the same in every process."""
    base = dict(
        batch_size=6,
        lr=3e-3,
        precision="64-true",
        progress=False,
        device="cpu",
        log_every=1,
        clip=0.5,
    )
    uneven = molecules(13)  # structures of 4 and 6 atoms: the shares of a batch differ in atoms
    return {
        "supervised": (
            egnn(),
            uneven,
            molecules(5, seed=1),
            potkit.Supervised(),
            TrainConfig(steps=8, **base),
        ),
        # decay must not touch the weights that only the coordinate read-out uses; an odd batch is
        # shared unevenly
        "energies": (
            egnn(),
            uneven,
            None,
            potkit.Supervised(forces=0.0, loss_function="mse"),
            TrainConfig(
                steps=6, ema=0.8, weight_decay=0.1, **{**base, "batch_size": 5, "clip": None}
            ),
        ),
        # each process cuts its share; only the first has to try again, the other waits for it, and
        # counts are exchanged once
        "in parts": (
            egnn(),
            uneven,
            molecules(5, seed=1),
            potkit.Supervised(loss_function="mse"),
            TrainConfig(steps=4, freeze=0.5, layer_decay=0.7, **base),
        ),
        "denoise": (
            egnn(),
            uneven,
            molecules(4, seed=1),
            potkit.Denoise(sigma=0.1),
            TrainConfig(steps=4, ema=0.9, **base),
        ),
        "masked": (egnn(), water(6), None, potkit.Masked(ratio=0.5), TrainConfig(steps=3, **base)),
        "different starts": (
            egnn(),
            uneven,
            uneven,
            potkit.Supervised(),
            TrainConfig(steps=4, ema=0.9, **base),
        ),
        # batches of 5 are shared as 3 and 2: only the first process uses the flag's weight
        "one uses": (
            egnn(),
            uneven,
            None,
            NowAndThen(loss_function="mse"),
            TrainConfig(steps=4, weight_decay=0.5, **{**base, "batch_size": 5}),
        ),
        "too small a batch": (
            egnn(),
            uneven,
            None,
            potkit.Denoise(sigma=0.1),
            TrainConfig(steps=2, **{**base, "batch_size": 1}),
        ),
    }


@pytest.fixture(scope="module")
def two(tmp_path_factory) -> Path:
    """The folder in which two processes have made all the runs."""
    out = tmp_path_factory.mktemp("two")
    (out / "script.py").write_text(textwrap.dedent(SCRIPT))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        k: v
        for k, v in os.environ.items()
        if not k.startswith(("SLURM", "RANK", "WORLD", "MASTER", "CUDA"))
    }
    environment |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = str(Path(potkit.__file__).parents[1])
    launch = "-m torch.distributed.run --nproc-per-node 2 --rdzv-backend static".split()
    launch += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    script = [str(out / "script.py"), str(Path(__file__).parents[1]), str(out)]
    command = [sys.executable, *launch, *script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment)
    assert done.returncode == 0, done.stderr[-4000:]
    return out


def both(two: Path, name: str) -> list[dict[str, torch.Tensor]]:
    ends = [json.loads((two / f"rank{r}.json").read_text())[name] for r in (0, 1)]
    assert all(isinstance(end, dict) for end in ends), ends
    return [{k: torch.tensor(v, dtype=torch.float64) for k, v in end.items()} for end in ends]


@pytest.mark.parametrize("name", ["supervised", "energies", "in parts", "different starts"])
def test_two_processes_end_with_the_weights_of_one(two, name, tmp_path):
    model, structures, valid, objective, config = runs()[name]
    start = {k: v.double() for k, v in model.state_dict().items()}
    alone = loop.fit(model, structures, objective, config, tmp_path, valid)
    end = alone.model.state_dict()
    first, second = both(two, name)
    moved = 0.0
    for key in first:
        assert torch.equal(first[key], second[key])
        torch.testing.assert_close(first[key], end[key], atol=1e-10, rtol=0)
        moved = max(moved, float((end[key] - start[key]).abs().max()))
    assert moved > 1e-4  # and they have gone somewhere
    # every number that was written down is that of the whole batch, not of the first process's
    # share
    summary = json.loads((two / name / "summary.json").read_text())
    together = potkit.Run(two / name, alone.model, summary).metrics
    for column in set(alone.metrics) - {"seconds"}:
        shared, single = (torch.tensor(table[column]) for table in (together, alone.metrics))
        torch.testing.assert_close(shared, single, atol=1e-9, rtol=1e-8)


@pytest.mark.parametrize("name", ["denoise", "masked"])
def test_pretraining_keeps_the_processes_together(two, name):
    first, second = both(two, name)
    start = {k: v.double() for k, v in egnn().state_dict().items()}
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert max(float((first[k] - start[k]).abs().max()) for k in first) > 1e-4
    best = checkpoints.load(two / name).state_dict()
    assert all(torch.equal(first[k], best[k]) for k in first)


def test_what_one_process_uses_is_trained_on_both(two):
    first, second = both(two, "one uses")
    start = {k: v.double() for k, v in egnn().state_dict().items()}
    assert all(torch.equal(first[k], second[k]) for k in first)
    assert (first["backbone.embedding.flag"] - start["backbone.embedding.flag"]).abs().max() > 1e-4


@pytest.mark.parametrize("others", [False, True])
def test_the_optimizer_leaves_alone_what_nobody_used(others):
    """With momentum and weight decay, as if its gradient had been None, and from its next use on
    as if nothing had been; else trained.
    """
    torch.manual_seed(0)
    gradients = torch.randn(4, 3)
    ends = []
    for guarded in (True, False):
        a, b = (torch.nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in "ab")
        optimizer = torch.optim.AdamW([a, b], lr=0.1, weight_decay=0.5, fused=True)
        for k, gradient in enumerate(gradients.double()):
            idle = k in (0, 2)
            a.grad = gradient.clone()
            if not idle or others:
                b.grad = gradient
            else:
                b.grad = torch.zeros(3, dtype=torch.float64) if guarded else None
            with steps._untouched(optimizer, {b: torch.tensor(others)} if guarded and idle else {}):
                optimizer.step()
        ends.append([a, b, *optimizer.state[b].values()])
    for guarded, plain in zip(*ends, strict=True):
        torch.testing.assert_close(guarded, plain, rtol=0, atol=0)
    assert torch.equal(ends[0][0], ends[0][1]) == others


def test_corruption_differs_between_the_processes(tmp_path):
    """The noise of a step follows from (seed, step, process)."""
    generator = torch.Generator()
    states = {
        steps.draw(generator, 0, step, rank).initial_seed()
        for step in range(50)
        for rank in range(8)
    }
    assert len(states) == 400


def test_a_batch_too_small_to_share_is_an_error(two):
    for rank in (0, 1):
        told = json.loads((two / f"rank{rank}.json").read_text())["too small a batch"]
        assert told.startswith("ConfigError")
        assert "batch of 1 cannot be shared by 2 processes" in told
