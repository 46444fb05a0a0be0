"""Adapted networks that are named by import path: saved, opened again, and refused where their
module was not allowed.
"""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap
import uuid

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import potkit
from potkit import models
from potkit.cli import main as cli
from potkit.errors import CheckpointError, ConfigError
from potkit.models import import_paths
from potkit.testing import contract
from potkit.training import checkpoints

NETWORKS = '''
    """A module of a user's own."""

    import os
    from os import system

    import torch
    from torch_geometric.nn import SchNet

    from potkit.models import CurrentGraph


    def make(hidden, layers=1):
        torch.manual_seed(0)
        return SchNet(hidden, hidden, layers, 8, 4.0, interaction_graph=CurrentGraph())


    def fails():
        raise KeyError("no such thing")


    def not_a_module():
        return 3


    class Settings:
        pass
'''


@pytest.fixture
def networks(tmp_path, monkeypatch):
    """The name of a module that can be imported, and nothing that is allowed."""
    name = f"networks_{uuid.uuid4().hex[:8]}"
    (tmp_path / f"{name}.py").write_text(textwrap.dedent(NETWORKS).lstrip())
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(import_paths, "_allowed", set())
    yield name
    sys.modules.pop(name, None)


def adapted(networks, **options):
    options = {"energy": "answer", "max_element": 99} | options
    return models.adapt(f"{networks}:make", arguments={"hidden": 16}, **options)


def changed(path, out, **options):
    """A copy of a checkpoint whose recipe has other ``options``."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["potkit"])
    header["recipe"]["options"] |= options
    save_file(load_file(path), out, metadata={"potkit": json.dumps(header)})
    return out


@pytest.mark.parametrize("options", [{}, dict(energy=None, features="lin1", head_norm=True)])
def test_an_adapted_network_is_saved_and_opened_again(networks, tmp_path, options):
    model = adapted(networks, **options).set_references({1: -13.0, 6: -1000.0}, 2.0)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.01 * torch.randn_like(p))
    path = checkpoints.save(tmp_path / "own.safetensors", model)
    models.allow(networks)
    opened = checkpoints.load(path)
    batch = contract.examples(4.0, periodic=True, elements=(1, 6)).batch()
    for ours, again in zip(
        model.energy_and_forces(batch), opened.energy_and_forces(batch), strict=True
    ):
        assert torch.equal(ours, again)
    assert opened.recipe == model.recipe and bool((again.abs() > 0).any())
    # what is opened can be saved again, and sent to another process
    assert checkpoints.load(checkpoints.save(tmp_path / "again.safetensors", opened))
    pickle.loads(pickle.dumps(potkit.calculator(path)))


def test_a_maker_alone_can_be_allowed(networks, tmp_path):
    path = checkpoints.save(tmp_path / "own.safetensors", adapted(networks))
    models.allow(f"{networks}:fails")
    with pytest.raises(CheckpointError, match="was not allowed"):
        checkpoints.load(path)
    models.allow(f"{networks}:make")
    checkpoints.load(path)


def test_what_was_not_allowed_is_not_imported(networks, tmp_path):
    path = checkpoints.save(tmp_path / "own.safetensors", adapted(networks))
    del sys.modules[networks]
    with pytest.raises(CheckpointError, match=rf"allow\('{networks}'\)") as raised:
        checkpoints.load(path)
    assert networks not in sys.modules
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("target", "arguments", "message"),
    [
        ("os:system", {"command": "touch TRACE"}, "os, which was not allowed"),
        ("posix:system", {"command": "touch TRACE"}, "posix, which was not allowed"),
        ("NETWORKS:system", {"command": "touch TRACE"}, "neither a class nor a function"),
        ("NETWORKS:os.system", {"command": "touch TRACE"}, "not an import path"),
        ("NETWORKS.os:system", {"command": "touch TRACE"}, "which was not allowed"),
        ("NETWORKS:SchNet", {}, "is defined in torch_geometric"),
        ("NETWORKS:Settings", {}, "not of torch modules"),
        ("NETWORKS:not_a_module", {}, "makes int"),
        ("NETWORKS:fails", {}, "no such thing"),
        ("NETWORKS:absent", {}, "has no absent"),
        ("NETWORKS:make", {"width": 3}, "width"),
        ("NETWORKS:make", ["touch TRACE"], "must be a dict"),
        (7, {}, "not an import path"),
    ],
)
def test_a_malicious_header_is_one_line_and_runs_nothing(
    networks, tmp_path, target, arguments, message
):
    path = checkpoints.save(tmp_path / "own.safetensors", adapted(networks))
    models.allow(networks)
    trace = tmp_path / "was-run"
    arguments = json.loads(json.dumps(arguments).replace("TRACE", str(trace)))
    module = target.replace("NETWORKS", networks) if isinstance(target, str) else target
    bad = changed(path, tmp_path / "bad.safetensors", module=module, arguments=arguments)
    with pytest.raises(CheckpointError, match=message) as raised:
        checkpoints.load(bad)
    assert not trace.exists() and len(str(raised.value).splitlines()) == 1


def test_options_that_adapt_does_not_have_are_refused(networks, tmp_path):
    path = checkpoints.save(tmp_path / "own.safetensors", adapted(networks))
    models.allow(networks)
    bad = changed(path, tmp_path / "bad.safetensors", backbone="os.system")
    with pytest.raises(CheckpointError, match="no option 'backbone'"):
        checkpoints.load(bad)
    bad = changed(path, tmp_path / "bad.safetensors", energy=["os.system"])
    with pytest.raises(CheckpointError, match="names or indices"):
        checkpoints.load(bad)


def test_mistakes_when_a_network_is_named(networks):
    with pytest.raises(ConfigError, match="is a function, which no checkpoint can hold"):
        adapted(networks, energy=lambda out: out)
    with pytest.raises(ConfigError, match="must be a dict of numbers"):
        models.adapt(f"{networks}:make", arguments={"hidden": torch.tensor(1)}, energy="answer")
    with pytest.raises(ConfigError, match="go with an import path"):
        models.adapt(torch.nn.Linear(1, 1), arguments={}, energy="answer")
    with pytest.raises(ConfigError, match="cannot be imported"):
        models.adapt("no_such_module_here:make", energy="answer")
    with pytest.raises(ConfigError, match="is not the name of a module"):
        models.allow("my networks")


def test_from_a_shell(networks, tmp_path, capsys):
    """Refused in one line; with --allow-module the same command opens it."""
    model = adapted(networks).set_references({1: -13.0, 6: -1000.0, 7: -1500.0, 8: -2000.0})
    path = checkpoints.save(tmp_path / "own.safetensors", model)
    out = tmp_path / "weights.safetensors"
    words = ["export", str(path), "--format", "torch-sim", "--out", str(out)]
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    error = capsys.readouterr().err.strip()
    assert ended.value.code == 1 and error.startswith("error: ") and "not allowed" in error
    assert len(error.splitlines()) == 1 and not out.exists()
    # in a process of its own: what is allowed there is allowed nowhere else
    command = [sys.executable, "-m", "potkit", "--allow-module", networks, *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    assert out.exists()
