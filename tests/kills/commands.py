"""The long commands on tiny inputs, each in a process of its own that needs no imports, and what
two of their results must have in common.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import ase.io
import nbformat
import pandas as pd
from chores import child
from nbformat.v4 import new_code_cell, new_notebook
from tiny import egnn, molecules
from toy_recipe import TOY

import potkit
from potkit.cli import main as cli
from potkit.datasets import recipes
from potkit.training import checkpoints

NETWORK = ["--set", "hidden=8", "--set", "layers=1"]
TRAINING = [
    *("--steps", "20", "--batch-size", "4", "--device", "cpu", "--config-set", "progress=false"),
    *("--config-set", "checkpoint_every=3", "--config-set", "validate_every=5"),
    *("--config-set", "ema=0.9"),
]
SPEC = """
name: tiny
model: {name: egnn, preset: small, hidden: 8, layers: 1}
train: {data: source.xyz}
test: {data: source.xyz}
labels: [8]
seeds: [0, 1]
pretrain_on: {data: source.xyz}
arms: {denoise: {objective: denoise, sigma: 0.1}}
longer: steps
pretrain: {steps: 6, batch_size: 4, device: cpu, progress: false, checkpoint_every: 2}
finetune: {steps: 6, batch_size: 4, device: cpu, progress: false, checkpoint_every: 2}
"""
# the command line of each; what it writes lies in out/
COMMANDS: dict[str, list[str]] = {
    "pretrain": ["pretrain", "--data", "source.xyz", *NETWORK, *TRAINING, "--out", "out/run"],
    "finetune": [
        *("finetune", "--data", "source.xyz", *NETWORK, *TRAINING, "--no-figures"),
        *("--out", "out/run"),
    ],
    "compare": ["compare", "spec.yaml", "--store", "out/store", "--out", "out/results"],
    "data make": ["data", "make", "toy", "--out", "out/toy.h5"],
    "data convert": ["data", "convert", "source.xyz", "--out", "out/store"],
    "evaluate": [
        "evaluate",
        "out/run-to-evaluate",
        "--data",
        "source.xyz",
        "--out",
        "out/errors.csv",
    ],
    "md": [
        *("md", "tuned.safetensors", "--start", "source.xyz", "--temperature", "10"),
        *("--steps", "60", "--every", "3", "--out", "out/md"),
    ],
    "export": ["export", "tuned.safetensors", "--out", "out/network.pt"],
    "data split": ["data", "split", "source.xyz", "--out", "out/split.npz"],
    "run": ["run", "mini.ipynb", "--profile", "smoke", "--out", "out/notebooks"],
}
# another time, another run of the same: not what must be equal
OF_THE_CLOCK = re.compile(r".*seconds.*|date|command|commit|hardware|state|metadata|id")


def lay(folder: Path) -> None:
    """Put into ``folder`` what the commands read."""
    folder.mkdir(parents=True, exist_ok=True)
    structures = molecules(40)
    ase.io.write(folder / "source.xyz", structures.to_ase(), format="extxyz")
    (folder / "spec.yaml").write_text(SPEC)
    checkpoints.save(folder / "tuned.safetensors", egnn())
    config = potkit.TrainConfig(steps=2, batch_size=4, progress=False, device="cpu")
    potkit.finetune(egnn(), structures[:8], structures[8:], config, out=folder / "finished")
    first = new_code_cell('profile = "quick"', id="first", metadata={"tags": ["parameters"]})
    cells = [first, new_code_cell("print(profile)", id="second")]
    nbformat.write(new_notebook(cells=cells), folder / "mini.ipynb")


def begin(line: list[str], folder: Path, before: Callable[[], None] = lambda: None) -> int:
    """The process that runs ``potkit LINE`` in ``folder``, its output in out.txt and err.txt there;
    in it, ``before`` comes first.
    """

    def work() -> None:
        os.setsid()
        os.chdir(folder)
        for name, number in (("out.txt", 1), ("err.txt", 2)):
            file = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
            os.dup2(file, number)
            os.close(file)
        sys.stdout = os.fdopen(1, "w", encoding="utf-8", closefd=False)
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
        recipes.RECIPES["toy"] = TOY
        before()
        code = 0
        try:
            cli.main(line)
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
        except BaseException:
            import traceback

            traceback.print_exc()
            code = 99  # the command ends with a line, whatever comes
        with suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)

    return child(work)


def said(folder: Path) -> str:
    """What the last command in ``folder`` wrote to stderr."""
    return (folder / "err.txt").read_text(errors="replace")


def alive(group: int) -> bool:
    """Whether a process of this group lives."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def results(out: Path) -> dict[str, Any]:
    """What lies in ``out``, by name: contents without what the clock decides."""
    paths = [path for path in sorted(out.rglob("*")) if path.is_file()]
    return {str(path.relative_to(out)): _content(path) for path in paths}


def differences(made: dict[str, Any], expected: dict[str, Any]) -> list[str]:
    """The names in which two results differ."""
    names = sorted(made.keys() | expected.keys())
    return [name for name in names if made.get(name) != expected.get(name)]


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        tensors, header = checkpoints.read(path)
        bits = {
            name: (str(value.dtype), value.numpy().tobytes()) for name, value in tensors.items()
        }
        return bits, _without_clock(header)
    if path.suffix in (".json", ".ipynb"):
        return _without_clock(json.loads(path.read_text()))
    if path.suffix == ".jsonl":
        return [_without_clock(json.loads(line)) for line in path.read_text().splitlines()]
    if path.suffix == ".csv":
        table = pd.read_csv(path)
        return table.drop(columns=[c for c in table if OF_THE_CLOCK.fullmatch(c)]).to_csv()
    if path.suffix in (".pt", ".md", ".html"):  # archives, texts and pages tell times and places
        return path.name
    return path.read_bytes()


def _without_clock(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if not OF_THE_CLOCK.fullmatch(key)}
        return {key: _without_clock(item) for key, item in kept.items()}
    return [_without_clock(item) for item in value] if isinstance(value, list) else value
