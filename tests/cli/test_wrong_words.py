"""What a newcomer types by mistake, in every command: one line that names it, nothing written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import typer
from test_cli import extxyz, one_line

import potkit
from potkit.cli import main as cli

HUGE = str(10**30)
RUNS = "arm,seed,labels,status,seconds,forces_mae\n" + "".join(
    f"{arm},{seed},10,ok,1.0,{error + 0.01 * seed}\n"
    for arm, error in (("scratch", 0.3), ("denoise", 0.2))
    for seed in range(3)
)
SPEC = """
name: tiny
model: {name: egnn, preset: small, hidden: 8, layers: 1}
train: {data: data.xyz}
test: {data: data.xyz}
labels: [8]
seeds: [0, 1]
finetune: {steps: 2, batch_size: 4, progress: false, device: cpu}
"""
GRID = """
pretrain_on: {data: data.xyz}
arms: {noise: {objective: denoise, sigma: 0.1}}
"""


def commands(group=None, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The words of every command there is."""
    group = group or typer.main.get_command(cli.app)
    if not hasattr(group, "commands"):
        return [path]
    return [c for name, one in group.commands.items() for c in commands(one, (*path, name))]


def numbers_of(command: tuple[str, ...]) -> list[str]:
    """The options of a benchmark that count something."""
    group = typer.main.get_command(cli.app)
    for word in command:
        group = group.commands[word]
    counted = {"--threads", "--repeats", "--batch", "--steps", "--hidden", "--structures"}
    return [p.opts[0] for p in group.params if p.opts[0] in counted]


@pytest.fixture
def laid(here) -> Path:
    """A folder with a newcomer's files, most of them not what a command wants."""
    extxyz(here / "data.xyz", 12)
    (here / "spec.yaml").write_text(SPEC)
    (here / "grid.yaml").write_text(SPEC + GRID)
    (here / "runs.csv").write_text(RUNS)
    (here / "empty.csv").write_text("")
    (here / "binary.csv").write_bytes(bytes(range(256)) * 20)
    (here / "user").mkdir()
    (here / "user/notes.txt").write_text("mine")
    (here / "loop").symlink_to("loop")
    return here


def content(folder: Path) -> dict[str, bytes]:
    files = [p for p in folder.rglob("*") if p.is_file()]
    return {str(p): p.read_bytes() for p in files} | {str(p): b"" for p in folder.rglob("*/")}


@pytest.mark.parametrize("command", commands(), ids=" ".join)
@pytest.mark.parametrize(
    ("word", "told"),
    [("", "'' is empty"), ("-", "'-' stands for no file"), ("--nope", "--nope")],
)
def test_words_that_no_command_has(run, laid, command, word, told):
    before = content(laid)
    assert told in one_line(run(*command, word))
    assert content(laid) == before


@pytest.mark.parametrize("words", [["--out", ""], ["--out="], ["--out", " "], ["--out", "-"]])
def test_an_empty_value_names_its_option(run, laid, words):
    """Without a line of its own it would be the working directory."""
    before = content(laid)
    assert one_line(run("data", "convert", "data.xyz", *words)).startswith("error: --out: ")
    assert content(laid) == before


@pytest.mark.parametrize("command", [c for c in commands() if c[0] == "bench"], ids=" ".join)
def test_numbers_of_benchmarks_have_limits(run, laid, command):
    for option in numbers_of(command):
        assert f"{option} must be at most" in one_line(run(*command, option, HUGE))
        assert f"{option} must be at least 1, got -1" in one_line(run(*command, option, "-1"))


PLAN = ["plan", "runs.csv", "--arm", "denoise", "--against", "scratch"]
COMPARE = ["compare", "spec.yaml"]
SPLIT = ["data", "split", "data.xyz", "--out", "s.npz"]
CARDS = ["--command", "c", "--commit", "0"]
WRONG = [
    (["plan", "empty.csv"], "empty.csv: not a table in CSV"),
    (["plan", "binary.csv"], "binary.csv: not a table"),
    ([*PLAN, "--pretrain-hours", "nan"], "pretrain_hours must be"),
    ([*PLAN, "--finetune-hours", "-1"], "finetune_hours must be"),
    ([*PLAN, "--finetune-hours", "1e400"], "finetune_hours must be"),
    ([*PLAN, "--draws", HUGE], "--draws must be a whole number"),
    ([*PLAN, "--draws", "0"], "--draws must be a whole number"),
    ([*PLAN, "--budgets", HUGE], "--budgets must be a whole number"),
    ([*COMPARE, "--jobs", "0"], "--jobs must be a whole number"),
    ([*COMPARE, "--jobs", HUGE], "--jobs must be a whole number"),
    ([*COMPARE, "--interval", "nonsense"], "method of an interval"),
    ([*COMPARE, "--tflops", "nan"], "--tflops must be a positive number"),
    ([*COMPARE, "--figure", "loop.png/x.png"], "--figure loop.png/x.png: there is no folder"),
    ([*COMPARE, "--out", "data.xyz/below"], "data.xyz/below: cannot be written"),
    (["verify", "--results", ".", "--root", "nope"], "nope: no such folder of documents"),
    (["bench", "data", "--json", "loop"], "loop"),
    (["bench", "networks", "--experiment", "spec.yaml"], "tiny.csv: no such stored result"),
    (["weights", "make", "spec.yaml", "--store", "nope", *CARDS], "--store nope: no such folder"),
    (
        ["weights", "make", "grid.yaml", "--store", "user", *CARDS],
        "--store user: holds no finished",
    ),
    (["weights", "pack", "user", "x", *CARDS[:-1], "a\nb"], "commit: 'a\\nb' is no text of one"),
    (["run", "."], "no such notebook"),
    (["run", "a**b"], "a**b: no such notebook"),
    (["data", "check", "data.xyz", "--cutoff", "1e400"], "--cutoff must be a positive number"),
    (["data", "leakage", "data.xyz", "data.xyz", "--tolerance", "nan"], "the tolerance must be"),
    (["data", "leakage", "data.xyz", "data.xyz", "--tolerance", "-1"], "the tolerance must be"),
    ([*SPLIT, "--gap", "-1"], "--gap is for --by block"),
    ([*SPLIT, "--block", "0"], "--block is for --by block"),
    ([*SPLIT, "--fold", "2"], "--fold is for --by published"),
    ([*SPLIT, "--fractions", "0,0,0"], "--fractions 0,0,0: no part"),
    (["data", "info", "data.xyz", "--energy-key", "nope"], "forces goes with 'nope'"),
    (["data", "make", "ani-mini", "--seed", str(2**64), "--out", "x.h5"], "seed must be"),
    (["finetune", "--data", "data.xyz", "--parts", "nope"], "--parts nope: there is no --init"),
    (["evaluate", "data.xyz", "--data", "data.xyz", "--split", "user"], "user: no such split"),
]


@pytest.mark.parametrize(("words", "told"), WRONG, ids=[" ".join(words)[:60] for words, _ in WRONG])
def test_what_once_went_wrong(run, laid, words, told):
    before = content(laid)
    assert told in one_line(run(*words))
    assert content(laid) == before


def test_a_grid_that_cannot_be_stored_is_not_run(run, laid, monkeypatch):
    """Not even root writes where the system says no; what is missing is said before the work."""
    mkdir = Path.mkdir

    def refused(self, *arguments, **options):
        if self.parent == laid / "user":
            raise OSError(30, os.strerror(30))
        return mkdir(self, *arguments, **options)

    monkeypatch.setattr(Path, "mkdir", refused)
    line = one_line(run(*COMPARE, "--out", "user/results"))
    assert line == "error: user/results: cannot be written (Read-only file system)"
    assert not (laid / "runs").exists()


def test_numerics_says_why_no_run_ended_well(run, laid):
    spec = (laid / "spec.yaml").read_text().replace("steps: 2,", "steps: 2, lr: 1.0e+300,")
    (laid / "spec.yaml").write_text(spec)
    code, _, err = run("numerics", "spec.yaml")
    last = err.splitlines()[-1]
    assert code == 1 and "the first that failed: " in last and "is not a finite number" in last


def test_a_network_s_whole_numbers_are_whole():
    for option in ("hidden", "layers", "radial"):
        with pytest.raises(potkit.errors.ConfigError, match=f"{option} must be a whole number"):
            potkit.build("egnn", **{option: 2.0})
