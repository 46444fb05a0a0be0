"""Nothing of a user's is deleted, overwritten or taken for something else, whatever writes and
wherever it is told to write.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import get_args, get_type_hints

import ase.io
import h5py
import nbformat
import numpy as np
import pandas as pd
import pytest
import torch
import typer
from chores import child, until, wait
from nbformat.v4 import new_code_cell, new_notebook
from PIL import Image
from plotly import graph_objects
from published_weights import published_state
from tiny import egnn, molecules, one_line
from toy_recipe import TOY

import potkit
from potkit.cli import main as cli
from potkit.cli.bench import BENCH
from potkit.datasets import duplicates, recipes, registry, splits
from potkit.datasets.formats.packer import packing_into
from potkit.datasets.recipes import common, sheet
from potkit.errors import Busy, ConfigError, DataError, PotkitError
from potkit.experiments import experiment as experiments
from potkit.experiments import tasks, yaml_form
from potkit.notebooks import runner
from potkit.report import figures, gallery, picture_export
from potkit.report import tables as report
from potkit.structures import outputs
from potkit.structures.storage import STORE, STORE_FILE, StoreWriter, only_writer, replacing
from potkit.training import checkpoints, config, evaluation, run_folder

ROOT = Path(potkit.__file__).parents[1]
TINY = potkit.TrainConfig(steps=2, batch_size=2, progress=False, device="cpu")
SMALL = [
    "--set",
    "hidden=8",
    "--set",
    "layers=1",
    "--steps",
    "2",
    "--batch-size",
    "2",
    "--device",
    "cpu",
    "--config-set",
    "progress=false",
]
SPEC = """
name: tiny
model: {name: egnn, preset: small, hidden: 8, layers: 1}
train: {data: data/source.xyz}
test: {data: data/source.xyz}
labels: [4]
seeds: [0]
finetune: {steps: 1, batch_size: 2, device: cpu, progress: false}
"""
COMMAND = typer.main.get_command(cli.app)  # built once: typer builds it anew at every call
CHART = graph_objects.Figure(
    graph_objects.Scatter(x=[0, 1], y=[0, 1]), {"title": {"text": "a line"}}
)
TABLE = pd.DataFrame(
    {"case": ["a"], "median_s": [1.0], "device": ["cpu"], "threads": [1], "note": [""]}
)


def lay(folder: Path) -> None:
    """A user's files, many of them with the names of potkit's own."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (
        "thesis.txt",
        "best.safetensors",
        "last.safetensors",
        "previous.safetensors",
        "metrics.jsonl",
        "run.lock",
        "pos.npy",
        "README.md",
        "set.md",
        "set",
        "curve.svg",
        "plotly.min.js",
        ".best.safetensors.0123abcd.tmp",
        ".set.h5.mine.tmp",
    ):
        (folder / name).write_text(f"mine: {name}")
    for name in (
        "summary.json",
        "run.json",
        "potkit.json",
        "tiny.json",
        "curve.json",
        "toy.json",
        *(f"bench-{n}.json" for n in BENCHES),
    ):
        (folder / name).write_text(json.dumps({"result": 42, "command": "mine", "name": name}))
    for name in (
        "errors.csv",
        "pairs.csv",
        "tiny.csv",
        "tiny-runs.csv",
        "tiny-baselines.csv",
        "curve.csv",
    ):
        (folder / name).write_text("name,value\nmine,1\n")
    (folder / "config.yaml").write_text("lr: 0.1  # mine\nsteps: 7\n")
    (folder / "curve.html").write_text("<!doctype html>\n<title>mine</title>")
    Image.new("P", (4, 4), 3).save(folder / "curve.png")
    np.savez(folder / "split.npz", header=np.array('{"format": "mine"}'), train=np.arange(3))
    with h5py.File(folder / "set.h5", "w") as file:
        file["pos"] = np.zeros(3)
    nbformat.write(
        new_notebook(cells=[new_code_cell("mine = 1", id="mine")]), folder / "mini.ipynb"
    )
    for below in ("set.h5.parts", "set.parts", "figures", "results"):
        (folder / below).mkdir()
        (folder / below / "notes.txt").write_text("mine")


BENCHES = (
    "step",
    "finetune",
    "md",
    "infer",
    "evaluate",
    "neighbors",
    "scaling",
    "data",
    "start",
    "epoch",
    "networks",
)


def contents(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below ``folder``; links are not followed, but told."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = os.readlink(path).encode()
        elif path.is_file():
            found[name] = path.read_bytes()
    return found


def untouched(before: dict[str, bytes], folder: Path) -> None:
    after = contents(folder)
    lost = [name for name in before if name not in after]
    changed = [name for name in before if name in after and after[name] != before[name]]
    assert not lost and not changed, f"lost: {lost}, changed: {changed}"
    assert not [
        name
        for name in after
        if outputs.is_temporary(Path(name).name) or name.endswith(".potkit.lock")
    ]


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A run of potkit's."""
    return potkit.pretrain(
        egnn(),
        molecules(4),
        potkit.Denoise(sigma=0.1),
        TINY,
        tmp_path_factory.mktemp("runs") / "weights",
    ).path


@pytest.fixture
def project(tmp_path_factory, weights) -> Path:
    """A user's folder: data, a folder of foreign files, a link to it, a specification, a notebook,
    and one run of potkit's.
    """
    base = tmp_path_factory.mktemp("project")
    (base / "data").mkdir()
    ase.io.write(base / "data/source.xyz", molecules(8).to_ase(), format="extxyz")
    lay(base / "data")
    lay(base / "precious")
    (base / "link").symlink_to("precious")
    (base / "spec.yaml").write_text(SPEC)
    (base / "thesis.txt").write_text("mine")
    (base / "README.md").write_text("# My project")
    first = new_code_cell('profile = "quick"', id="first", metadata={"tags": ["parameters"]})
    nbformat.write(
        new_notebook(cells=[first, new_code_cell("print(profile)", id="second")]),
        base / "mini.ipynb",
    )
    shutil.copytree(weights, base / "weights")
    potkit.checkpoints.save(base / "tuned.safetensors", egnn())
    torch.save(published_state("denoise-egnn"), base.parent / "model.pth")
    return base


@pytest.fixture
def here(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.setenv("POTKIT_PICTURES", "1")
    monkeypatch.setattr(
        picture_export,
        "_export",
        lambda chart, scale, kind: _png() if kind == "png" else b"<svg></svg>",
    )
    monkeypatch.setitem(recipes.RECIPES, "toy", TOY)
    monkeypatch.setattr(cli, "app", COMMAND)
    return project


def _png() -> bytes:
    from io import BytesIO

    file = BytesIO()
    Image.new("RGB", (4, 4), (1, 2, 3)).save(file, "png")
    return file.getvalue()


def targets(folder: Path) -> list[Path]:
    """What a user may give as output by mistake: folders of all kinds, a link, and each of the
    foreign files, also through the link.
    """
    files = sorted(name for name in os.listdir(folder / "precious"))
    places = [
        Path(p)
        for p in (
            "precious",
            "link",
            ".",
            "..",
            "data",
            "data/..",
            "weights/..",
            "data/source.xyz",
            "mini.ipynb",
            "/dev/null",
        )
    ]
    return [
        *places,
        folder / "precious",
        *(Path("precious") / f for f in files),
        Path("link/thesis.txt"),
    ]


# -- every command -------------------------------------------------------------------------------
INPUTS = {
    ("pretrain", "config"),
    ("finetune", "config"),
    ("finetune", "init"),
    ("finetune", "split"),
    ("evaluate", "checkpoint"),
    ("evaluate", "split"),
    ("compare", "experiment"),
    ("bench networks", "experiment"),
    ("weights import", "file"),
    ("weights pack", "run"),
    ("weights make", "file"),
    ("weights make", "store"),
    ("export", "run"),
    ("md", "run"),
    ("plan", "runs"),
    ("baselines", "experiment"),
    ("numerics", "experiment"),
    ("verify", "results"),
    ("verify", "root"),
}
# the command line of every output of every command, but for the output itself; what else it writes
# goes where nothing of a user's is
LINES: dict[tuple[str, str], list[str]] = {
    ("pretrain", "--out"): ["--data", "data/source.xyz", *SMALL],
    ("finetune", "--out"): ["--data", "data/source.xyz", *SMALL],
    ("evaluate", "--out"): ["tuned.safetensors", "--data", "data/source.xyz"],
    ("md", "--out"): ["tuned.safetensors", "--start", "data/source.xyz", "--steps", "2"],
    ("export", "--out"): ["tuned.safetensors", "--format", "torch-sim"],
    ("compare", "--store"): ["spec.yaml"],
    ("compare", "--out"): ["spec.yaml", "--store", "STORE"],
    ("compare", "--figure"): ["spec.yaml", "--store", "STORE"],
    ("run", "--out"): ["mini.ipynb", "--profile", "smoke"],
    ("baselines", "--out"): ["spec.yaml"],
    ("numerics", "--store"): ["spec.yaml"],
    ("numerics", "--out"): ["spec.yaml", "--store", "STORE"],
    ("data make", "--out"): ["toy"],
    ("weights import", "--out"): ["denoise-egnn", "../model.pth"],
    ("weights pack", "--out"): ["weights", "mine", "--command", "this", "--commit", "that"],
    ("data convert", "--out"): ["data/source.xyz"],
    ("data leakage", "--out"): ["data/source.xyz", "data/source.xyz"],
    ("data split", "--out"): ["data/source.xyz"],
    ("bench scaling", "--figure"): [],
    ("bench all", "--json"): [],
    **{(f"bench {name}", "--json"): [] for name in BENCHES},
}
# a folder of a user's is a good place for these: they put files of their own names into it, and
# look at each
INTO = {
    ("compare", "--store"),
    ("compare", "--out"),
    ("baselines", "--out"),
    ("numerics", "--store"),
    ("numerics", "--out"),
    ("run", "--out"),
    ("bench all", "--json"),
}


def paths_of(app: typer.Typer, name: str = "") -> Iterator[tuple[str, str, str]]:
    """Command, parameter and option of everything that a command line takes as a path."""
    for group in app.registered_groups:
        yield from paths_of(group.typer_instance, f"{group.name} ")
    for command in app.registered_commands:
        called = command.name or command.callback.__name__.replace("_", "-")
        for parameter, hint in get_type_hints(command.callback, include_extras=True).items():
            if "Path" in str(hint):
                decls = next(
                    (getattr(part, "param_decls", None) for part in get_args(hint)[1:]), None
                )
                yield name + called, parameter, (decls or [f"--{parameter}"])[-1]


def test_every_output_of_every_command_is_tried():
    """A new option with a path is an input, or it is tried below."""
    found = {
        (command, option)
        for command, parameter, option in paths_of(cli.app)
        if (command, parameter) not in INPUTS
    }
    assert found == LINES.keys()


def call(line: list[str]) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(line)
    return stop.value.code or 0


@pytest.fixture
def quick_benches(monkeypatch):
    """Benchmarks that measure nothing."""
    import importlib

    for name in BENCHES:
        module = importlib.import_module(f"potkit.bench.{name}")
        monkeypatch.setattr(module, "run", lambda **_: TABLE)
        monkeypatch.setattr(module, "figure", lambda table: CHART, raising=False)


@pytest.mark.parametrize("command, option", LINES)
def test_no_command_touches_foreign_files(here, command, option, quick_benches, capsys, tmp_path):
    line = [
        str(tmp_path / "store") if word == "STORE" else word
        for word in [*command.split(), *LINES[command, option]]
    ]
    before = contents(here)
    for target in targets(here):
        capsys.readouterr()
        inside = (
            (command, option) in INTO and target.is_dir() and not (target / "tiny.csv").exists()
        )
        if inside:  # it would be right to put files here: done elsewhere
            continue
        code = call([*line, option, str(target)])
        error = capsys.readouterr().err
        untouched(before, here)
        store = (command, option) in (("compare", "--store"), ("numerics", "--store"))
        assert code == 1 or store, f"{target}: {error}"
        one_error = error.startswith("error: ") and error.count("\n") == 1
        assert one_error or store, error
        assert Path("/dev/null").is_char_device()
    new = {name.split("/")[0] for name in contents(here).keys() - before.keys()}
    assert not new or store, new


FRESH = {
    "--figure": ["new.html", "new.png", "new.svg"],
    "--json": ["new.json"],
    "--store": ["new-store"],
    "--out": ["new"],
}


# weights that were imported or named once are not exchanged for others under the same name
KEPT = {("weights import", "--out"), ("weights pack", "--out")}


@pytest.mark.parametrize("command, option", [key for key in LINES if key not in KEPT])
def test_what_a_command_wrote_it_replaces(here, command, option, quick_benches, capsys, tmp_path):
    """The same command twice, also into an empty folder and through a link: its own files are no
    obstacle.
    """
    line = [
        str(tmp_path / "store") if word == "STORE" else word
        for word in [*command.split(), *LINES[command, option]]
    ]
    expected = 1 if command == "data leakage" else 0  # the pairs are there, and that is an error
    for number, name in enumerate(FRESH[option]):
        target = tmp_path / f"{number}" / name
        target.parent.mkdir()
        for _ in range(2):
            assert call([*line, option, str(target)]) == expected, capsys.readouterr().err
            assert target.exists() and (target.is_dir() or target.stat().st_size)
        link = target.with_name(f"link{target.suffix}")
        link.symlink_to(target.name)
        assert call([*line, option, str(link)]) == expected, capsys.readouterr().err
        assert link.is_symlink() and target.exists()
        if target.is_dir():
            (tmp_path / "empty").mkdir()
            assert call([*line, option, str(tmp_path / "empty")]) == expected, (
                capsys.readouterr().err
            )
            assert os.listdir(tmp_path / "empty")


def test_another_run_takes_away_only_what_a_run_wrote_into_its_report(tmp_path):
    run = potkit.finetune(egnn(), molecules(4), molecules(2), TINY, out=tmp_path / "run")
    report = run.path / "report"
    report.mkdir()
    for name in ("valid.json", "valid-parity.html", "training.png", "plotly.min.js"):
        (report / name).write_text("of the run")
    for name in ("mine.json", "notes.txt"):
        (report / name).write_text("mine")
    again = TINY.replace(seed=TINY.seed + 1)
    potkit.finetune(egnn(), molecules(4), molecules(2), again, out=run.path, overwrite=True)
    assert sorted(os.listdir(report)) == ["mine.json", "notes.txt"]


# -- every public writer -------------------------------------------------------------------------
def _stream(path: Path) -> None:
    with StoreWriter(path) as writer:
        writer.append(molecules(2).arrays())
        writer.finish({})


def _grid(path: Path) -> None:
    tiny = {"name": "egnn", "preset": "small", "hidden": 8, "layers": 1}
    s = molecules(8)
    experiment = experiments.Experiment(
        tiny,
        s[:4],
        s[4:],
        [4],
        seeds=[0],
        finetune_config=TINY.replace(steps=1),
        longer=None,
        store=path,
    )
    experiments.run(experiment, progress=False)


def _pack(path: Path) -> None:
    with packing_into(path):
        potkit.read("data/source.xyz")


def _kind(path: Path) -> str:
    return path.suffix if path.suffix in (".png", ".svg", ".html") else ".svg"


WRITERS: dict[str, Callable[[Path], object]] = {
    "Structures.save": lambda path: molecules(2).save(path),
    "StoreWriter": _stream,
    "packing_into": _pack,
    "registry.pack": lambda path: registry.pack("data/source.xyz", path),
    "pretrain": lambda path: potkit.pretrain(
        egnn(), molecules(4), potkit.Denoise(sigma=0.1), TINY, path
    ),
    "pretrain, overwrite": lambda path: potkit.pretrain(
        egnn(), molecules(4), potkit.Denoise(sigma=0.1), TINY, path, overwrite=True
    ),
    "finetune, overwrite": lambda path: potkit.finetune(
        egnn(), molecules(4), None, TINY, out=path, overwrite=True
    ),
    "experiments.run": _grid,
    "checkpoints.save": lambda path: checkpoints.save(path, egnn()),
    "TrainConfig.to_yaml": lambda path: TINY.to_yaml(path),
    "splits.save_indices": lambda path: splits.save_indices(
        path, molecules(2), {"train": np.arange(2)}
    ),
    "report.store": lambda path: report.store(TABLE, "curve", "potkit compare x.yaml", path),
    "plots.save": lambda path: figures.save(CHART, "curve", path),
    "gallery.write": lambda path: gallery.write(path),
    "gallery.draw": lambda path: gallery.draw(
        CHART, path / "curve.png" if path.is_dir() else path.parent / f"curve{_kind(path)}"
    ),
    "notebooks.execute": lambda path: runner.execute(
        ["mini.ipynb"], "smoke", out=path, report=lambda line: None
    ),
    "recipes.make": lambda path: recipes.make("toy", path, progress=False),
    "write_index": lambda path: sheet.write_index(path),
}


@pytest.mark.parametrize("name", WRITERS)
def test_no_writer_touches_foreign_files(here, name):
    before = contents(here)
    refused = 0
    for target in targets(here):
        if (
            name in ("experiments.run", "notebooks.execute")
            and target.is_dir()
            and target.name not in ("precious", "link")
        ):
            continue  # folders without their names in them: a good place
        place = target if target.is_dir() else target.parent
        if (
            name in ("plots.save", "report.store", "gallery.draw")
            and not (place / "curve.png").exists()
        ):
            continue
        if (
            name in ("gallery.write", "write_index")
            and target.is_dir()
            and not (target / "README.md").exists()
        ):
            continue
        try:
            WRITERS[name](target)
        except PotkitError as error:
            one_line(error)
            refused += 1
        untouched(before, here)
    assert refused or name == "experiments.run"
    new = contents(here).keys() - before.keys()
    assert all(path.split("/", 1)[1].startswith("finetune-") for path in new), new


def test_a_readme_of_a_users_is_not_taken_for_the_gallery(here, tmp_path):
    (tmp_path / "README.md").write_text("# My project")
    gallery.draw(CHART, tmp_path / "new.html")
    assert (tmp_path / "README.md").read_text() == "# My project" and (
        tmp_path / "new.png"
    ).is_file()
    (tmp_path / "README.md").unlink()
    gallery.write(tmp_path)
    gallery.draw(CHART, tmp_path / "other.html")
    assert "other.png" in (tmp_path / "README.md").read_text()


def test_notebooks_keep_results_beside_foreign_ones(here, tmp_path, monkeypatch):
    monkeypatch.setenv("POTKIT_FIGURES", str(tmp_path / "figures"))
    (tmp_path / "results").mkdir()
    (tmp_path / "results/curve.csv").write_text("mine")
    with pytest.raises(DataError, match=r"curve.csv: this file is not a stored result"):
        runner.keep(TABLE, "curve", "01_explore_datasets", "quick")
    assert (
        runner.keep(TABLE, "other", "01_explore_datasets", "quick")
        == tmp_path / "results/other.csv"
    )
    assert (tmp_path / "results/curve.csv").read_text() == "mine"


def test_a_notebook_edited_while_it_ran_keeps_the_edit(tmp_path, monkeypatch):
    cells = [
        new_code_cell('profile = "quick"', metadata={"tags": ["parameters"]}),
        new_code_cell("1"),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "mini.ipynb")
    monkeypatch.setattr(runner, "_root", lambda: tmp_path)
    original = runner._execute_one

    def edited(path, target, values):
        outcome = original(path, target, values)
        path.write_text(path.read_text().replace('"1"', '"edited"'))
        return outcome

    monkeypatch.setattr(runner, "_execute_one", edited)
    [outcome] = runner.execute([tmp_path / "mini.ipynb"], inplace=True, report=lambda line: None)
    assert (
        "changed while it was executed" in outcome.error
        and '"edited"' in (tmp_path / "mini.ipynb").read_text()
    )


# -- what is recognised --------------------------------------------------------------------------
KINDS = {
    "store": STORE,
    "store file": STORE_FILE,
    "run": run_folder.RUN,
    "checkpoint": checkpoints.CHECKPOINT,
    "settings": config.SETTINGS,
    "result": report.RESULT,
    "origin": report.ORIGIN,
    "benchmark": BENCH,
    "page": figures.PAGE,
    "picture": figures.PICTURE,
    "gallery": gallery.GALLERY,
    "notebook": runner.EXECUTED,
    "split": splits.SPLIT,
    "sheet": sheet.SHEET,
    "index": sheet.INDEX,
    "parts": common.PARTS,
    "errors": evaluation.ERRORS,
    "pairs": duplicates.PAIRS,
    "measured": tasks.MEASURED,
}


@pytest.mark.parametrize("name", KINDS)
def test_no_kind_takes_a_foreign_file_for_its_own(project, name, tmp_path):
    lay(tmp_path)
    for path in [project, *tmp_path.iterdir(), project / "data/source.xyz", project / "mini.ipynb"]:
        assert not outputs.is_a(KINDS[name], path), path


def test_files_of_the_present_version_are_recognised(repository):
    """Everything committed can be made anew by the command that made it."""
    seen = dict.fromkeys(
        (
            "result",
            "origin",
            "benchmark",
            "page",
            "picture",
            "gallery",
            "store file",
            "sheet",
            "index",
        ),
        0,
    )

    def is_own(name: str, path: Path) -> None:
        assert outputs.is_a(KINDS[name], path), path
        others = [k for k in KINDS if k != name and path.is_file() and outputs.is_a(KINDS[k], path)]
        assert not others or (name, others) == ("origin", ["result"]), (path, others)
        seen[name] += 1

    for path in sorted((repository / "data/results").glob("*.json")):
        is_own("benchmark" if path.name.startswith("bench-") else "origin", path)
    for path in sorted((repository / "data/results").glob("*.csv")):
        is_own("result", path)
    for path in sorted((repository / "figures").glob("*.html")):
        is_own("page", path)
    for path in sorted((repository / "figures").glob("*.png")):
        is_own("picture", path)
    for path in sorted((repository / "data").glob("*-mini.h5")):
        is_own("store file", path)
        is_own("sheet", path.with_suffix(".md"))
    is_own("gallery", repository / "figures/README.md")
    is_own("index", repository / "data/README.md")
    assert all(seen.values()), seen
    for path in sorted(
        (repository / "notebooks").glob("*.ipynb")
    ):  # a source, not an executed copy
        assert not outputs.is_a(runner.EXECUTED, path)


def test_pictures_say_who_made_them_and_look_the_same(tmp_path):
    plain = _png()
    png = picture_export.marked(plain)
    assert (
        png != plain
        and picture_export.picture_is_marked(png)
        and not picture_export.picture_is_marked(plain)
        and picture_export.marked(png) == png
    )
    (tmp_path / "a.png").write_bytes(png)
    with Image.open(tmp_path / "a.png") as image:
        image.verify()  # checksums of all chunks
    with Image.open(tmp_path / "a.png") as image:
        assert image.text == {"Software": "potkit"} and image.getpixel((0, 0)) == (1, 2, 3)
    svg = picture_export.marked(b"<svg></svg>")
    assert (
        picture_export.picture_is_marked(svg)
        and not picture_export.picture_is_marked(b"<svg></svg>")
        and picture_export.marked(svg) == svg
    )
    (tmp_path / "b.png").write_bytes(
        plain
    )  # from before pictures were marked: its page, unmarked as well, vouches for it
    assert not outputs.is_a(figures.PICTURE, tmp_path / "b.png")
    (tmp_path / "b.html").write_text(figures._page(CHART, "b"))
    assert outputs.is_a(figures.PAGE, tmp_path / "b.html") and not outputs.is_a(
        figures.PICTURE, tmp_path / "b.png"
    )
    (tmp_path / "b.html").write_text(figures._page(CHART, "b").replace(figures.MARK, ""))
    assert outputs.is_a(figures.PAGE, tmp_path / "b.html") and outputs.is_a(
        figures.PICTURE, tmp_path / "b.png"
    )


def test_every_writer_says_what_it_writes_and_nothing_else_removes_folders():
    """`replacing` without a kind looks at nothing: it is for files in a folder that is potkit's as
    a whole, such as the cache.
    """
    without, trees = [], []
    for path in sorted((ROOT / "potkit").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            called = node.func if isinstance(node, ast.Call) else None
            name = getattr(called, "attr", getattr(called, "id", ""))
            if name == "replacing" and len(node.args) + len(node.keywords) < 2:
                without.append(str(path.relative_to(ROOT / "potkit")))
            if name == "rmtree":
                trees.append(str(path.relative_to(ROOT / "potkit")))
    cached = ("datasets/fetch", "datasets/archives", "kernels/")
    assert [p for p in without if not p.startswith(cached)] == [
        "structures/storage.py"
    ]  # `set_info`, in a store
    assert [p for p in trees if not p.startswith(cached)] == [
        "structures/storage.py"
    ]  # under a name with potkit's mark


# -- stores --------------------------------------------------------------------------------------
def test_a_store_with_anything_else_in_it_is_left_as_it_is(tmp_path):
    store = molecules(3).save(tmp_path / "store")
    for name in ("thesis.txt", ".hidden", "more.npy"):
        (store / name).write_text("mine")
        with pytest.raises(
            DataError,
            match=rf"store: this folder is not a store .*holds .*({re.escape(name)}|and \d more)",
        ):
            molecules(4).save(store)
        assert (store / name).read_text() == "mine" and (store / "pos.npy").is_file()
        (store / name).unlink()
    (store / "thesis").mkdir()
    with pytest.raises(DataError, match="not a store"):
        molecules(4).save(store)
    (store / "thesis").rmdir()
    molecules(4).save(store)
    assert len(potkit.Structures.open(store)) == 4 and os.listdir(tmp_path) == ["store"]


def test_a_file_that_comes_while_a_store_is_replaced_stays(tmp_path, monkeypatch):
    """At the last moment, when the old store has gone aside: it comes back, with the file in it."""
    store = molecules(3).save(tmp_path / "store")
    original = os.replace

    def slow(source, target):
        if Path(source) == store:
            (store / "thesis.txt").write_text("mine")
        original(source, target)

    monkeypatch.setattr(os, "replace", slow)
    with pytest.raises(DataError, match="changed while it was to be replaced"):
        molecules(4).save(store)
    assert (
        os.listdir(tmp_path) == ["store"]
        and (store / "thesis.txt").read_text() == "mine"
        and len(np.load(store / "ptr.npy")) == 4
    )


def test_a_store_is_replaced_through_a_link_and_while_it_is_mapped(tmp_path):
    store = molecules(3).save(tmp_path / "store")
    (tmp_path / "link").symlink_to("store")
    mapped = potkit.Structures.open(store)
    (mapped + molecules(2, seed=1)).save(tmp_path / "link")
    assert (
        (tmp_path / "link").is_symlink()
        and len(potkit.Structures.open(store)) == 5
        and np.isfinite(mapped.pos).all()
    )
    mapped.save(store)
    assert len(potkit.Structures.open(store)) == 3 and sorted(os.listdir(tmp_path)) == [
        "link",
        "store",
    ]


def test_the_working_directory_is_not_replaced(tmp_path, monkeypatch):
    ase.io.write(tmp_path / "a.xyz", molecules(4).to_ase(), format="extxyz")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for out in (".", tmp_path / "empty"):
        with pytest.raises(DataError, match="the working directory would be replaced"):
            registry.pack("../a.xyz", out)
    registry.pack("../a.xyz", "store")
    assert sorted(os.listdir()) == ["store"]


def test_the_folder_of_the_source_and_its_parents(tmp_path, monkeypatch, capsys):
    ase.io.write(tmp_path / "a.xyz", molecules(4).to_ase(), format="extxyz")
    monkeypatch.chdir(tmp_path)
    for out in (".", "..", "a.xyz", str(tmp_path)):
        assert call(["data", "convert", "a.xyz", "--out", out]) == 1
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and error.startswith(f"error: {out}: "), error
    assert os.listdir(tmp_path) == ["a.xyz"]


def _eight(work: Callable[[], object], tmp_path: Path) -> list[str]:
    """``work`` in eight processes at once: what each ended with, "" where it ended well."""

    def told(number: int) -> None:
        error = ""
        assert until((tmp_path / "go").exists, 30)
        try:
            work()
        except PotkitError as caught:
            error = one_line(caught)
        (tmp_path / f"told-{number}").write_text(error)

    pids = [child(lambda n=n: told(n)) for n in range(8)]
    (tmp_path / "go").touch()
    assert [wait(pid) for pid in pids] == [0] * 8
    return [(tmp_path / f"told-{n}").read_text() for n in range(8)]


def test_eight_conversions_into_one_place_at_once(tmp_path):
    ase.io.write(tmp_path / "a.xyz", molecules(40).to_ase(), format="extxyz")
    (tmp_path / "out").mkdir()
    for _ in range(3):  # first there is nothing, then a store
        errors = _eight(lambda: registry.pack(tmp_path / "a.xyz", tmp_path / "out/store"), tmp_path)
        assert "" in errors and all(
            not e or "store: another process is writing it" in e for e in errors
        ), errors
        assert len(potkit.Structures.open(tmp_path / "out/store").validate()) == 40 and os.listdir(
            tmp_path / "out"
        ) == ["store"]


def test_eight_savers_into_one_place_at_once(tmp_path):
    s = molecules(40)
    (tmp_path / "out").mkdir()
    for _ in range(3):
        assert (
            _eight(lambda: [s.save(tmp_path / "out/store") for _ in range(5)], tmp_path) == [""] * 8
        )
        assert len(potkit.Structures.open(tmp_path / "out/store").validate()) == 40 and os.listdir(
            tmp_path / "out"
        ) == ["store"]


def test_who_holds_a_place_is_waited_for(tmp_path):
    ase.io.write(tmp_path / "a.xyz", molecules(4).to_ase(), format="extxyz")
    with (
        only_writer(tmp_path / "store"),
        pytest.raises(Busy, match="store: another process is writing it"),
    ):
        registry.pack(tmp_path / "a.xyz", tmp_path / "store")
    registry.pack(tmp_path / "a.xyz", tmp_path / "store")
    assert sorted(os.listdir(tmp_path)) == ["a.xyz", "store"]


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_conversion_that_is_asked_to_end_leaves_nothing(tmp_path, how):
    ase.io.write(tmp_path / "a.xyz", molecules(60).to_ase(), format="extxyz")
    code = (
        "import sys, time; from potkit.cli import main as cli; "
        "from potkit.datasets.formats import packer; packer.HELD = 1\n"
        "write = packer.Packer._write\n"
        "def slow(self):\n    write(self); print('block', flush=True); time.sleep(0.2)\n"
        "packer.Packer._write = slow\ncli.main(['data', 'convert', 'a.xyz', '--out', 'store'])"
    )
    command = [sys.executable, "-c", code]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    assert process.stdout.readline() == b"block\n"
    assert len(os.listdir(tmp_path)) == 3  # the half store and its lock
    process.send_signal(how)
    assert process.wait(30) in ((128 + how,) if how != signal.SIGINT else (1, 130))
    assert os.listdir(tmp_path) == ["a.xyz"] and b"Traceback" not in process.stderr.read()


def test_the_bar_names_the_set(tmp_path, capfd, monkeypatch):
    ase.io.write(tmp_path / "a.xyz", molecules(4).to_ase(), format="extxyz")
    (tmp_path / "b").mkdir()
    monkeypatch.setattr("potkit.structures.progress.hidden", lambda: False)  # as on a terminal
    registry.pack(tmp_path / "a.xyz", tmp_path / "b/packed", progress=True)
    assert "packing packed:" in capfd.readouterr().err


# -- names ---------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    "write",
    [
        lambda p: molecules(2).save(p),
        lambda p: TINY.to_yaml(p),
        lambda p: registry.pack("a.xyz", p),
    ],
    ids=["store", "settings", "pack"],
)
def test_long_names(tmp_path, monkeypatch, write, recwarn):
    monkeypatch.chdir(tmp_path)
    ase.io.write("a.xyz", molecules(4).to_ase(), format="extxyz")
    for name in ("x" * 255, "å" * 127):  # as long as names can be
        write(Path(name))
        write(Path(name))
        assert Path(name).exists() and len(os.listdir()) == 2
        if Path(name).is_dir():
            shutil.rmtree(name)
        else:
            Path(name).unlink()
    with pytest.raises(DataError) as caught:
        write(Path("x" * 256))
    assert "cannot be written (File name too long)" in one_line(caught.value)
    assert os.listdir() == ["a.xyz"]


def test_a_long_name_is_one_line_of_the_command(tmp_path):
    ase.io.write(tmp_path / "a.xyz", molecules(4).to_ase(), format="extxyz")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "potkit", "data", "convert", "a.xyz", "--out", "x" * 256]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert (
        done.returncode == 1
        and done.stderr == f"error: {'x' * 256}: cannot be written (File name too long)\n"
    )


@pytest.mark.parametrize(
    "name",
    [
        "../../s/escaped",
        "a/b",
        "..",
        ".hidden",
        "a\nb",
        "x" * 300,
        'x"onclick="alert(1)',
        "<script>",
        " ",
    ],
)
def test_experiments_have_plain_names(tmp_path, name):
    import yaml

    (tmp_path / "spec.yaml").write_text(yaml.safe_dump({**yaml.safe_load(SPEC), "name": name}))
    with pytest.raises(ConfigError, match=r"spec.yaml: name .* is not a plain file name") as caught:
        yaml_form.read(tmp_path / "spec.yaml")
    one_line(caught.value)
    with pytest.raises(ConfigError, match="not a plain file name"):
        report.store(TABLE, name, "potkit compare x.yaml", tmp_path / "out")
    with pytest.raises(ConfigError, match="not a plain file name"):
        figures.save(CHART, name, tmp_path / "out")
    assert os.listdir(tmp_path) == ["spec.yaml"]


def test_pipes_and_devices(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(
        DataError, match="pipe: a pipe or a device, which can be read only once; write it to a file"
    ):
        potkit.read(tmp_path / "pipe")  # without waiting for who would write into it
    with pytest.raises(DataError, match=r"pipe: cannot be written \(it is a device or a pipe"):
        TINY.to_yaml(tmp_path / "pipe")
    with pytest.raises(DataError, match=r"/dev/null: cannot be written \(it is a device or a pipe"):
        TINY.to_yaml("/dev/null")
    assert (tmp_path / "pipe").is_fifo() and Path("/dev/null").is_char_device()


# -- runs ----------------------------------------------------------------------------------------
def train(out: Path, overwrite: bool = False, steps: int = 2, **settings) -> potkit.Run:
    return potkit.pretrain(
        egnn(),
        molecules(4),
        potkit.Denoise(sigma=0.1),
        TINY.replace(steps=steps, **settings),
        out,
        overwrite=overwrite,
    )


def test_a_run_without_its_identity_is_told_by_the_hash(tmp_path):
    out = tmp_path / "run"
    whole = train(out)
    (out / "run.json").unlink()
    assert train(out).summary == whole.summary  # the same run: found
    before = contents(out)
    with pytest.raises(ConfigError, match=r"run holds another run .*hash in summary.json"):
        train(out, lr=0.01)
    untouched(before, out)
    (out / "summary.json").write_text("{")
    with pytest.raises(DataError, match="not a run of potkit's"):
        train(out)
    (out / "summary.json").unlink()
    with pytest.raises(
        DataError,
        match=r"run: this folder is not a run .*holds best.safetensors, config.yaml",
    ):
        train(out)
    (out / "summary.json").write_text('{"steps": 2, "seconds": 1.0, "best": null}')
    with pytest.raises(DataError, match="not a run of potkit's"):
        train(out)


def test_a_summary_of_another_run_is_not_taken_for_this_one(tmp_path):
    one = train(tmp_path / "one")
    other = train(tmp_path / "other", lr=0.01)
    shutil.copy(other.path / "summary.json", one.path / "summary.json")
    with pytest.raises(ConfigError, match=r"one holds another run .*hash in summary.json"):
        train(one.path)
    (one.path / "summary.json").write_text("{")
    with pytest.raises(ConfigError, match=r"summary.json: not readable"):
        train(one.path)


def test_a_link_in_a_run_is_replaced_not_followed(tmp_path):
    run = train(tmp_path / "run")
    (tmp_path / "mine").write_text("mine")
    (run.path / "summary.json").unlink()
    for name in ("last.safetensors", "summary.json", "metrics.jsonl"):
        (run.path / name).unlink(missing_ok=True)
        (run.path / name).symlink_to(tmp_path / "mine") if name != "summary.json" else None
    with pytest.warns(UserWarning, match="starting anew"):
        assert train(run.path).summary["steps"] == 2
    assert (tmp_path / "mine").read_text() == "mine" and not (
        run.path / "last.safetensors"
    ).is_symlink()


def test_another_run_is_overwritten_only_when_asked_and_alone(tmp_path):
    out = tmp_path / "run"
    train(out)
    (out / "notes.txt").write_text("mine")
    train(out)  # the same run: what lies beside it is no obstacle
    before = contents(out)
    with pytest.raises(ConfigError, match=r"another run .*different config.lr"):
        train(out, lr=0.01)
    with pytest.raises(DataError, match=r"beside it there is notes.txt"):
        train(out, overwrite=True, lr=0.01)
    untouched(before, out)
    (out / "notes.txt").unlink()
    again = train(out, overwrite=True, steps=3, lr=0.01)
    assert (
        again.summary["steps"] == 3
        and json.loads((out / "run.json").read_text())["identity"]["config"]["lr"] == 0.01
    )
    weights = (out / "best.safetensors").read_bytes()
    assert (
        train(out, overwrite=True, steps=3, lr=0.01).summary == again.summary
    )  # the same run again: found, not made anew
    assert (out / "best.safetensors").read_bytes() == weights


def test_the_weights_to_start_from_are_not_overwritten(tmp_path):
    run = train(tmp_path / "run")
    with pytest.raises(ConfigError, match="holds the weights to start from"):
        potkit.finetune(
            egnn(), molecules(4), None, TINY, init=run, out=tmp_path / "run", overwrite=True
        )
    assert (tmp_path / "run/best.safetensors").is_file()


def test_force_of_the_command(project, tmp_path, capsys):
    line = [
        "pretrain",
        "--data",
        str(project / "data/source.xyz"),
        *SMALL,
        "--out",
        str(tmp_path / "run"),
    ]
    assert call(line) == 0
    capsys.readouterr()
    assert (
        call([*line, "--lr", "0.01"]) == 1
        and "holds another run (different config.lr)" in capsys.readouterr().err
    )
    assert call([*line, "--lr", "0.01", "--force"]) == 0
    lay(tmp_path / "mine")
    before = contents(tmp_path / "mine")
    assert call([*line[:-1], str(tmp_path / "mine"), "--force"]) == 1
    untouched(before, tmp_path / "mine")


def test_a_run_killed_before_its_first_file_goes_on(tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    (out / "run.lock").touch()
    (out / ".run.json.potkit-0123abcd.tmp").write_text("{")
    (out / ".notes.tmp").write_text("mine")
    with pytest.raises(DataError, match=r"holds .notes.tmp"):
        train(out)
    (out / ".notes.tmp").unlink()
    assert train(out).summary["steps"] == 2 and not list(out.glob(".*"))
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked/run.lock").write_text("mine")
    with pytest.raises(DataError, match="not a run of potkit's"):
        train(tmp_path / "locked")


def test_a_finished_pretraining_of_another_identity_is_not_found_in_a_store(tmp_path):
    from grids import grid

    experiment = grid(tmp_path, variants={}, longer=None, seeds=[0])
    executor = tasks.Executor([experiment])
    task = tasks.Task("pretrain", "denoise", 0)
    row = executor(task)
    assert row["status"] == "ok" and executor.stored(task)["best"] == row["best"]
    folder = tasks.pretrain_folder(experiment, "denoise", 0)
    summary = json.loads((folder / "summary.json").read_text())
    (folder / "summary.json").write_text(json.dumps(summary | {"hash": "0" * 16}))
    assert executor.stored(task) is None
    (folder / "run.json").unlink()
    assert executor.stored(task) is None
    row = executor(task)
    assert row["status"] == "failed" and "holds another run" in row["error"]


# -- full disks ----------------------------------------------------------------------------------
@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """A file system of ``size``; skips where none may be mounted."""
    path.mkdir()
    if os.name != "posix":
        pytest.skip("no file system may be mounted here")
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(path)]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", str(path)], check=True)


ON_A_FULL_DISK: dict[str, Callable[[Path], object]] = {
    "store": lambda disk: molecules(2000).save(disk / "out"),
    "store file": lambda disk: molecules(2000).save(disk / "out.h5"),
    "StoreWriter": lambda disk: _stream_many(disk / "out"),
    "checkpoint": lambda disk: checkpoints.save(disk / "out.safetensors", egnn(hidden=64)),
    "run": lambda disk: potkit.pretrain(
        egnn(hidden=64), molecules(4), potkit.Denoise(sigma=0.1), TINY, disk / "out"
    ),
    "split": lambda disk: splits.save_indices(
        disk / "out.npz", molecules(2), {"a": np.random.default_rng(0).integers(0, 2**60, 20_000)}
    ),
    "result": lambda disk: report.store(
        pd.DataFrame({"x": np.random.default_rng(0).random(20_000)}), "out", "potkit", disk
    ),
    "page": lambda disk: figures.save(CHART, "out", disk, png=_png()),
    "recipe": lambda disk: recipes.make("toy", disk / "out", progress=False, parts=40),
    "settings": lambda disk: [TINY.to_yaml(disk / f"out-{n}.yaml") for n in range(100)],
}


def _stream_many(path: Path) -> None:
    with StoreWriter(path) as writer:
        for _ in range(20):
            writer.append(molecules(200).arrays())
        writer.finish({})


@pytest.mark.parametrize("name", ON_A_FULL_DISK)
def test_a_full_disk_is_one_line_with_the_path(tmp_path, monkeypatch, name):
    monkeypatch.setitem(recipes.RECIPES, "toy", TOY)
    with small_disk(tmp_path / "disk", "60k") as disk:
        (disk / "thesis.txt").write_text("mine")
        with pytest.raises(PotkitError) as caught:
            ON_A_FULL_DISK[name](disk)
        text = one_line(caught.value)
        assert str(disk / "out") in text or str(disk / "plotly.min.js") in text, text
        assert "No space left on device" in text, text
        left = [p for p in disk.rglob("*") if outputs.is_temporary(p.name)]
        assert not left and (disk / "thesis.txt").read_text() == "mine"


def test_a_notebook_on_a_full_disk_leaves_the_earlier_copy(tmp_path):
    cells = [
        new_code_cell('profile = "quick"', metadata={"tags": ["parameters"]}),
        new_code_cell("print('x' * 200_000)"),
    ]
    nbformat.write(new_notebook(cells=cells[:1]), tmp_path / "mini.ipynb")
    with small_disk(tmp_path / "disk", "150k") as disk:
        [outcome] = runner.execute(
            [tmp_path / "mini.ipynb"], "smoke", out=disk, report=lambda line: None
        )
        assert not outcome.error
        before = (disk / "mini.ipynb").read_bytes()
        nbformat.write(new_notebook(cells=cells), tmp_path / "mini.ipynb")
        [outcome] = runner.execute(
            [tmp_path / "mini.ipynb"], "smoke", out=disk, report=lambda line: None
        )
        assert "No space left on device" in outcome.error
        assert (disk / "mini.ipynb").read_bytes() == before and os.listdir(disk) == ["mini.ipynb"]


@pytest.mark.parametrize("name", ["store", "store.h5"])
def test_a_limit_on_the_size_of_files_is_told_as_such(tmp_path, name):
    """Without a file system to fill: the operating system refuses the file, and numpy would only
    count bytes.
    """
    import resource

    s = molecules(2000)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(DataError) as caught:
            s.save(tmp_path / name)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
    assert one_line(
        caught.value
    ) == f"{tmp_path / name}: cannot be written (File too large)" and not os.listdir(tmp_path)


def test_arrays_lie_on_disk_as_numpy_writes_them(tmp_path):
    store = molecules(7).save(tmp_path / "store")
    for name, array in molecules(7).arrays().items():
        np.save(tmp_path / "plain.npy", array)
        assert (store / f"{name}.npy").read_bytes() == (tmp_path / "plain.npy").read_bytes()


def test_what_replaces_is_whole_or_not_there(tmp_path):
    (tmp_path / "a.txt").write_text("old")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]
