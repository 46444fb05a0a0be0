"""How long one waits before anything happens: import, the message about a missing file, the first
training step. Each in a fresh process, beside other packages.

Files are in the system's cache: the first round warms up.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import ConfigError
from .common import COLUMNS, Rival, check_device, compare

# implementation -> the package it needs and what is done
IMPORTS = {
    "torch": ("torch", "import torch"),
    "PyG SchNet": ("torch_geometric", "from torch_geometric.nn import SchNet"),
    "torchmd-net": ("torchmdnet", "import torchmdnet.models.model"),
    "nequip": ("nequip", "import nequip.nn"),
    "potkit": ("potkit", "import potkit"),
    "potkit.build": ("potkit", "import potkit; potkit.build"),
}
MISSING = "no-such-file.yaml"
# the command a package is started by, told to train by a file that is not there
ERRORS = {
    "torchmd-train": (
        "torchmdnet",
        f"import sys; sys.argv[1:] = ['--conf', '{MISSING}']; "
        "from torchmdnet.scripts.train import main; main()",
    ),
    "nequip-train": (
        "nequip",
        f"import sys; sys.argv[1:] = ['-cn', '{MISSING}']; "
        "from nequip.scripts.train import main; main()",
    ),
    "potkit pretrain": (
        "potkit",
        f"import sys; sys.argv[1:] = ['pretrain', '--config', '{MISSING}']; "
        "from potkit.cli.main import main; main()",
    ),
}
# PyG's SchNet of the size of potkit's small one
_PEER_STEP = """
import torch
from torch_geometric.nn import SchNet
torch.manual_seed(0)
number = torch.arange({structures}).repeat_interleave({atoms})
edges = [
    (n * {atoms} + i, n * {atoms} + j)
    for n in range({structures}) for i in range({atoms}) for j in range({atoms}) if i != j
]
sender, receiver = torch.tensor(edges).T
def all_pairs(pos, batch):
    return torch.stack([sender, receiver]), (pos[sender] - pos[receiver]).norm(dim=1)
model = SchNet({width}, {width}, {layers}, {basis}, {cutoff}, interaction_graph=all_pairs)
optimizer = torch.optim.AdamW(model.parameters())
pos = torch.randn(len(number), 3, requires_grad=True)
energy = model(torch.full((len(number),), 6), pos, number)
forces = -torch.autograd.grad(energy.sum(), pos, create_graph=True)[0]
(energy.square().mean() + forces.square().mean()).backward()
optimizer.step()
"""
_OUR_STEP = """
import potkit, torch
frames = potkit.load("ani-mini")[:{structures}]
model = potkit.build("schnet", "small", seed=0)
optimizer = torch.optim.AdamW(model.parameters())
batch = frames.batch()
loss, _ = potkit.Supervised().loss(model(batch, ("energy", "forces")), batch)
loss.backward()
optimizer.step()
"""


def run(
    device: str = "cpu",
    threads: int = 1,
    repeats: int = 5,
    parts: Sequence[str] = ("import", "first error", "first step"),
    say: Callable[[str], None] = lambda text: None,
):
    """A DataFrame, a row per part and implementation, of the packages that are installed.

    Raises ConfigError for a part that there is not and for a GPU: nothing here uses one.
    """
    import pandas as pd

    check_device(device, threads)
    if device != "cpu":
        raise ConfigError("bench start: nothing here uses a GPU; leave --device out")
    works = {"import": IMPORTS, "first error": ERRORS, "first step": steps()}
    if unknown := [part for part in parts if part not in works]:
        raise ConfigError(f"bench start: no part {unknown[0]!r}; there are {', '.join(works)}")
    rows = []
    for part in parts:
        rivals = [
            Rival(name, process(code, threads, MISSING if part == "first error" else ""))
            for name, (package, code) in works[part].items()
            if importlib.util.find_spec(package)
        ]
        rows += compare(f"start: {part}", rivals, repeats, device, threads, memory=False, say=say)
    return pd.DataFrame(rows, columns=COLUMNS)


def steps(structures: int = 8) -> dict[str, tuple[str, str]]:
    """implementation -> its package and the code of its first step on energies and forces."""
    from .. import models

    small = models.build("schnet", "small", seed=0)
    sizes = {
        "width": small.backbone.n_features,
        "layers": len(small.backbone.layers),
        "basis": len(small.backbone.basis.centers),
        "cutoff": small.cutoff,
        "atoms": 18,
        "structures": structures,
    }
    return {
        "PyG SchNet": ("torch_geometric", _PEER_STEP.format(**sizes)),
        "potkit SchNet": ("potkit", _OUR_STEP.format(structures=structures)),
    }


def process(code: str, threads: int, error: str = "") -> Callable[[], None]:
    """A function that runs ``code`` in a fresh Python; ConfigError if that does not end as it
    should: well, or with an ``error`` that says so much.
    """
    environment = os.environ | {
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
        "OMP_NUM_THREADS": str(threads),
    }

    def work() -> None:
        command = [sys.executable, "-c", code]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if bool(done.returncode) != bool(error) or error not in done.stderr:
            said = (done.stderr.strip() or "no message").splitlines()[-1]
            raise ConfigError(f"bench start: a process ended with {done.returncode}: {said}")

    return work
