"""The long commands where something is scarce: room on the disk, open files, a home."""

from __future__ import annotations

import os
import resource
import shutil
from pathlib import Path

import commands
import pytest
from chores import child, wait

from potkit.structures import outputs

HOMES = {"none": None, "missing": "/nonexistent"}
QUICK = ("data convert", "md")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("limits") / "inputs"
    assert wait(child(lambda: commands.lay(folder))) == 0
    return folder


@pytest.fixture
def laid(inputs, tmp_path):
    """Makes folders of this name with the inputs and an out/ with a run to evaluate."""

    def make(name: str) -> Path:
        shutil.copytree(inputs, tmp_path / name)
        shutil.copytree(inputs / "finished", tmp_path / name / "out/run-to-evaluate")
        return tmp_path / name

    return make


def one_line(text: str) -> bool:
    return text.startswith("error: ") and text.count("\n") == 1


@pytest.mark.parametrize("name", ["data convert", "md", "export"])
def test_a_full_disk_is_one_line_and_the_next_call_ends_well(name, laid):
    """A limit on the size of files, set by the kernel, stands for the disk."""
    whole = laid("whole")
    assert wait(commands.begin(commands.COMMANDS[name], whole)) == 0, commands.said(whole)
    expected = commands.results(whole / "out")
    full = 0
    for size in (300, 9_000):
        folder = laid(f"{size}")
        limits = (size, size)
        code = wait(
            commands.begin(
                commands.COMMANDS[name],
                folder,
                lambda: resource.setrlimit(resource.RLIMIT_FSIZE, limits),  # noqa: B023
            )
        )
        said = commands.said(folder)
        assert code == 0 or (code == 1 and one_line(said)), f"{size} bytes: {code} {said}"
        assert not code or "out/" in said, said  # which file
        left = [path.name for path in (folder / "out").rglob("*")]
        assert not list(filter(outputs.is_temporary, left)), left
        full += code
        assert wait(commands.begin(commands.COMMANDS[name], folder)) == 0, commands.said(folder)
        assert not commands.differences(commands.results(folder / "out"), expected)
    assert full


@pytest.mark.parametrize("name", QUICK)
def test_64_open_files_are_enough(name, laid):
    def few() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    folder = laid("few")
    assert wait(commands.begin(commands.COMMANDS[name], folder, few)) == 0, commands.said(folder)


@pytest.mark.parametrize("home", HOMES)
@pytest.mark.parametrize("name", QUICK)
def test_no_command_needs_a_home(name, home, laid):
    def homeless() -> None:
        os.environ.pop("HOME", None)
        if HOMES[home]:
            os.environ["HOME"] = HOMES[home]

    folder = laid("homeless")
    code = wait(commands.begin(commands.COMMANDS[name], folder, homeless))
    assert code == 0, commands.said(folder)


@pytest.mark.parametrize("name", ["Å 原子 '\"$x", "n" * 230, "n" * 256, "/".join(["d" * 200] * 25)])
@pytest.mark.parametrize("command", QUICK)
def test_names_of_any_letters_and_length(command, name, laid):
    """Written, or refused in a line."""
    folder = laid("named")
    line = list(commands.COMMANDS[command])
    out = Path(line[-1])
    line[-1] = f"out/{name}{out.suffix}"
    code = wait(commands.begin(line, folder))
    too_long = len(name) > 250
    assert code == int(too_long), commands.said(folder)
    if too_long:
        said = commands.said(folder)
        assert one_line(said) and "File name too long" in said
    else:
        assert (folder / line[-1]).exists()
