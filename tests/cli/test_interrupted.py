"""Ctrl-C while the command is still importing, and before it minds it itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

import potkit
from potkit.cli import main as cli

PRESSED = """
import signal, sys
class Pressed:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv.pop():
            signal.raise_signal(signal.SIGINT)
        sys.argv.append({name!r})
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv = ["potkit", {name!r}]
sys.meta_path.insert(0, Pressed())
from potkit.__main__ import main
main()
"""


@pytest.mark.parametrize("name", ["typer", "potkit.cli.report"])
def test_ctrl_c_during_imports_is_one_line(name):
    environment = {**os.environ, "PYTHONPATH": str(Path(potkit.__file__).parents[1])}
    command = [sys.executable, "-c", PRESSED.format(name=name)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 130
    assert done.stderr == "error: interrupted\n"


def test_ctrl_c_inside_a_command_is_one_line(monkeypatch, capsys):
    app = typer.Typer()

    @app.command()
    def wait() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "app", app)
    with pytest.raises(SystemExit) as stop:
        cli.main([])
    assert stop.value.code == 130 and capsys.readouterr().err == "error: interrupted\n"


def test_before_the_command_minds_ctrl_c_next_to_nothing_is_imported():
    """What is imported on the way to it, without the modules of the interpreter's own start."""
    code = "import sys; before = {*sys.modules}; import potkit; print(*{*sys.modules} - before)"
    environment = {"PYTHONPATH": str(Path(potkit.__file__).parents[1])}
    command = [sys.executable, "-S", "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert "potkit" in done.stdout.split()
    slow = {"typing", "types", "importlib.util", "importlib.abc", "pathlib", "dataclasses"}
    assert not slow & {*done.stdout.split()}, done.stdout
