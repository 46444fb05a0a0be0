"""A run in one YAML file, what `potkit config` says of it, and how soon mistakes are said."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_cli import QUICK, SMALL, extxyz

from potkit.cli import run_file
from potkit.errors import ConfigError
from potkit.training.config import TrainConfig

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_the_examples_of_the_documentation_run(run, here):
    """With their own settings but for size: a tiny network, two steps, few structures."""
    extxyz(here / "my.xyz", 40)
    tiny = ["--set", "hidden=8", "--set", "layers=2", "--steps", 2, *QUICK]
    code, _, err = run("pretrain", "--config", DOCS / "pretrain.yaml", "--data", "my.xyz", *tiny)
    assert code == 0, err
    example = DOCS / "finetune.yaml"
    code, out, err = run("finetune", "--config", example, "--labels", 8, "--steps", 2, *QUICK)
    assert code == 0, err
    values = yaml.safe_load(example.read_text())
    header = json.loads((here / "runs/finetune/run.json").read_text())["header"]
    assert header["config"]["lr"] == values["training"]["lr"]
    assert header["config"]["steps"] == 2 and header["task"] == "finetune"
    assert header["objective"]["forces"] == values["objective"]["forces"]
    assert "valid: Evaluation(4 structures" in out and "meV/atom" in out
    report = here / "runs/finetune/report"
    stored = json.loads((report / "valid.json").read_text())
    assert stored["structures"] == 4 and stored["errors"][1]["unit"] == "meV/Å"
    assert stored["errors"][1]["mae"] == pytest.approx(1e3 * stored["eV"]["forces_mae"])
    for name in ("training", "valid-parity"):
        assert "plotly" in (report / f"{name}.html").read_text()
        assert (report / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    # the run can still be replaced, figures included
    code, _, err = run("finetune", "--data", "my.xyz", "--steps", 1, "--force", *SMALL)
    assert code == 0, err


def test_a_file_of_training_settings_alone_is_read_as_before(tmp_path):
    (tmp_path / "train.yaml").write_text("lr: 0.01\nsteps: 5\n")
    settings = run_file.read(run_file.FinetuneFile, tmp_path / "train.yaml")
    assert settings.training == {"lr": 0.01, "steps": 5}


@pytest.mark.parametrize(
    "text, message",
    [
        ("data: {dta: my.xyz}", "unknown key 'data.dta' (did you mean 'data'?)"),
        ("data: {data: a}\nmodle: {}", "unknown key 'modle' (did you mean 'model'?)"),
        ("data: {labels: -1}", "data.labels: input should be greater than 0, got -1"),
        ("training: {batchsize: 3}", "unknown key 'batchsize' (did you mean 'batch_size'?)"),
        ("data: [", "not YAML"),
        ("- data", "expected settings as 'key: value' lines, found list"),
    ],
)
def test_what_is_wrong_in_a_file_is_said(tmp_path, text, message):
    (tmp_path / "run.yaml").write_text(text)
    with pytest.raises(ConfigError) as error:
        run_file.read(run_file.FinetuneFile, tmp_path / "run.yaml")
    assert message in str(error.value) and "run.yaml: " in str(error.value)


def test_config_prints_every_setting(run):
    code, out, err = run("config", "finetune")
    assert code == 0, err
    for key, field in TrainConfig.model_fields.items():
        assert f"  {key}: " in out and field.description.split()[0] in out
    for word in ("init:", "labels:", "sigma:", "hidden:", "backbone"):
        assert word in out
    assert run("config", "evaluate")[0] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["finetune", "--data", "none.xyz"],
        ["finetune", "--data", "ani-mini", "--lr", "-1"],
        ["finetune", "--data", "ani-mini", "--config", "none.yaml"],
        ["finetune", "--data", "ani-mini", "--init", "nowhere"],
        ["pretrain", "--data", "ani-mini", "--config-set", "batchsize=3"],
        ["evaluate", "nowhere", "--data", "ani-mini"],
    ],
)
def test_mistakes_are_said_before_torch_is_imported(tmp_path, arguments):
    program = (
        "import sys\nfrom potkit.cli.main import main\n"
        "try:\n    main(sys.argv[1:])\n"
        "finally:\n    print('torch' in sys.modules or 'pandas' in sys.modules)\n"
    )
    command = [sys.executable, "-c", program, *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.startswith("error: "), done.stderr
    assert done.stdout == "False\n"
