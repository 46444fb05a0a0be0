"""docs/scale.md: its tables follow from the stored benchmarks, nothing else on it is a measured
number, and mistakes in its settings are told.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from potkit.errors import ConfigError, DataError
from potkit.report import at_scale, blocks

ROOT = Path(__file__).resolve().parents[2]
RESULTS_FOLDER = ROOT / "data" / "results"
PAGE = (ROOT / "docs" / "scale.md").read_text()
MEASURED = re.compile(r"\d\s*(?:%|±|GB\b|MB\b|ms\b|s\b|min\b|hours)")


@pytest.fixture
def counted(monkeypatch):
    """Without the seconds that counting a step takes: 10⁹ operations a structure, 10⁶ weights."""
    monkeypatch.setattr(at_scale, "_counted", lambda: (1e9, 1_000_000))


@pytest.fixture
def folder(tmp_path):
    """Benchmarks with round numbers: 400 bytes a structure of 10 atoms, 1 ms for a draw of 100."""
    store = {
        "structures": 1000,
        "atoms": 10_000,
        "drawn": 100,
        "draw_s": 1e-3,
        "store_mb": 400_000 / 2**20,
        "read_mb": 0.0,
    }
    before = {"case": "before the first step, 1 000 structures", "structures": 1000}
    rows = [
        {"implementation": "s.gather(rows)", "case": "open", **store},
        {
            "implementation": "s.gather(rows), nothing cached",
            "case": "open",
            **store,
            "draw_s": 0.1,
            "read_mb": 800_000 / 2**20,
        },
        {**before, "implementation": "fingerprint", "median_s": 2e-3},
        {**before, "implementation": "order of an epoch", "median_s": 1e-3},
    ]
    step = {
        "case": "egnn step",
        "implementation": "potkit",
        "precision": "float32",
        "median_s": 1.0,
        "atoms": 1000,
        "threads": 2,
    }
    (tmp_path / "bench-data.json").write_text(json.dumps({"rows": rows}))
    (tmp_path / "bench-step.json").write_text(json.dumps({"rows": [step]}))
    return tmp_path


def test_the_page_is_filled_from_what_is_stored():
    kinds = [kind for kind, _ in blocks.BLOCK.findall(PAGE)]
    assert kinds == ["scale", "beginning"]
    assert blocks.fill(PAGE, RESULTS_FOLDER) == PAGE, "fill docs/scale.md: make pages"


def test_no_measured_number_is_typed_by_hand():
    prose = re.sub(r"```.*?```|`[^`\n]*`", "", blocks.BLOCK.sub("", PAGE), flags=re.DOTALL)
    assert not MEASURED.findall(prose)


def test_the_settings_of_the_page_are_those_of_its_commands():
    (name,) = [name for kind, name in blocks.BLOCK.findall(PAGE) if kind == "scale"]
    run = at_scale.Run.of(name)
    assert f"epochs: {run.epochs:g}" in PAGE and f"batch_size: {run.batch}" in PAGE
    assert f"--nodes={run.nodes} --ntasks-per-node={run.devices}" in PAGE
    assert f"--nnodes {run.nodes} --nproc-per-node {run.devices}" in PAGE


def test_figures_follow_from_the_benchmarks(counted, folder):
    run = at_scale.Run(
        structures=10**6, nodes=2, devices=5, batch=1000, epochs=3.6, tflops=0.1, network=0.008
    )
    table = at_scale.plan(run, folder).set_index("what")["value"]
    assert table["on disk"] == "400 MB"
    assert table["a step reads"] == "400 kB"
    assert table["a step reads from the disk, nothing cached"] == "8 MB"
    assert table["steps of an epoch"] == "1,000" and table["steps of the run"] == "3,600"
    assert table["a process draws its share from memory"] == "1 ms"
    assert table["a process draws its share from the disk"] == "0.1 s"
    assert table["a GPU computes its share"] == "1 s"
    assert table["gradients between nodes"] == "1 s"
    # 3600 steps of 1 ms + 1 s + 1 s, and of 0.1 s + 1 s + 1 s
    assert table["hours, drawn from memory"] == "2" and table["hours, drawn from the disk"] == "2.1"
    # 3.6 · 10⁶ structures of 10 atoms at 1 ms an atom
    assert table["hours on the CPU of the benchmark"] == "10"


def test_one_machine_sends_no_gradients_over_a_network(counted, folder):
    table = at_scale.plan(at_scale.Run(nodes=1), folder).set_index("what")["value"]
    assert table["gradients between nodes"] == "0 s"


def test_what_comes_first_grows_with_the_set(folder):
    table = at_scale.beginning(at_scale.Run(structures=10**6), folder)
    assert list(table["what"]) == ["fingerprint", "order of an epoch", "all"]
    assert list(table["1,000,000 structures"]) == ["2 s", "1 s", "3 s"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("structures=0", "structures must be a positive number, got 0"),
        ("gpus=4", "'gpus=4' is not NAME=NUMBER"),
        ("nodes=many", "nodes is no number: 'many'"),
        ("batch=8,nodes=4,devices=8", "a batch of 8 cannot be shared by 32 processes"),
    ],
)
def test_settings_without_sense_are_told(text, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        at_scale.Run.of(text)


def test_a_benchmark_that_is_missing_or_old_is_told(counted, folder):
    content = json.loads((folder / "bench-data.json").read_text())
    content["rows"] = content["rows"][:1]
    (folder / "bench-data.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"no row of s\.gather"):
        at_scale.plan(at_scale.Run(), folder)
    with pytest.raises(DataError, match="no rows of what comes before the first step"):
        at_scale.beginning(at_scale.Run(), folder)
    (folder / "bench-step.json").unlink()
    with pytest.raises(DataError, match="no such stored benchmark"):
        at_scale.plan(at_scale.Run(), folder)
