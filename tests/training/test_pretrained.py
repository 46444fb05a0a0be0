"""Pretrained weights by name: what ships, how it is made, and what is refused."""

from __future__ import annotations

import hashlib
import json
import shutil
import string
import warnings
from pathlib import Path

import pytest
import torch
from ase.io import write
from tiny import egnn, equal, molecules, one_line, weights

import potkit
from potkit import Denoise, TrainConfig
from potkit.cli import main as cli
from potkit.datasets import registry
from potkit.errors import CheckpointError, ConfigError, DataError
from potkit.report import blocks
from potkit.training import pretrained

STEPS = TrainConfig(steps=2, batch_size=4, progress=False, device="cpu")
MADE = {"command": "potkit pretrain", "commit": "0" * 40}


@pytest.fixture
def run(tmp_path):
    """A finished pretraining of two steps on a few molecules of ani-mini."""
    structures = potkit.load("ani-mini")[:40]
    return potkit.pretrain(egnn(), structures, Denoise(sigma=0.1), STEPS, out=tmp_path / "run")


@pytest.fixture
def shipped(tmp_path, monkeypatch):
    """A copy of the shipped weights that a test may change."""
    copy = tmp_path / "weights"
    shutil.copytree(pretrained.folder(), copy)
    monkeypatch.setattr(pretrained, "folder", lambda: copy)
    return copy


def command(*arguments) -> None:
    """Run potkit's command line, which must succeed."""
    with pytest.raises(SystemExit) as stop:
        cli.main([str(argument) for argument in arguments])
    assert stop.value.code == 0


SHIPPED = pretrained.names()
# what a card may leave open: without labels there is no level of theory, without noise no σ
MAY_BE_OPEN = {"labels", "sigma"}


# -- what ships ----------------------------------------------------------------------------------
@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_have_a_complete_card(name):
    card = pretrained.card(name)
    left_open = {key for key, value in card.model_dump().items() if value is None}
    assert left_open <= MAY_BE_OPEN
    assert card.name == name and (card.sigma is None) != (card.labels is None)
    assert card.sha256 == hashlib.sha256(pretrained.file(name).read_bytes()).hexdigest()
    assert ("energy_head" in card.parts) == (card.labels is not None)
    assert len(card.commit) == 40 and set(card.commit) <= set(string.hexdigits)
    assert card.fine_tuned and all(0 < error < 10 for error in card.fine_tuned.values())  # eV


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_open_and_say_numbers(name):
    model = potkit.pretrained(name)
    assert model.n_parameters() == model.card.parameters
    batch = potkit.load("ani-mini")[::2500].batch(dtype=torch.float32)
    energy, forces = model.energy_and_forces(batch)
    assert energy.isfinite().all() and forces.isfinite().all()
    assert forces.shape == batch.pos.shape and forces.abs().max() > 0


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_weights_are_fine_tuned_by_name(name, tmp_path):
    """With the parts on the card: told so, the run is the same."""
    model = potkit.pretrained(name)
    parts = tuple(model.card.parts)
    runs = [
        potkit.finetune(
            potkit.pretrained(name),
            molecules(8),
            None,
            STEPS,
            init=name,
            out=tmp_path / out,
            **told,
        )
        for out, told in (("card", {}), ("told", {"parts": parts}))
    ]
    assert equal(weights(runs[0].model), weights(runs[1].model))
    assert runs[0].summary["steps"] == STEPS.steps


@pytest.mark.parametrize(("network", "size"), [("egnn", 130_441), ("schnet", 86_657)])
def test_shipped_weights_are_what_their_card_says(network, size):
    model = potkit.pretrained(f"{network}-small-denoise")
    card = model.card
    assert model.recipe["name"] == card.network == network
    assert model.n_parameters() == card.parameters == size
    assert (card.data, card.elements) == ("ani-mini", ["H", "C", "N", "O"])
    assert (card.sigma, card.steps, card.seed, card.cutoff) == (0.1, 5000, 0, 4.0)
    assert model.recipe["options"]["cutoff"] == card.cutoff
    assert not model.training


def test_shipped_weights_are_small():
    assert sum(file.stat().st_size for file in pretrained.folder().iterdir()) < 15e6


@pytest.mark.parametrize("network", ["egnn", "schnet"])
def test_shipped_weights_see_noise(network):
    """As well as on their validation molecules; a network that says nothing has a loss of 1."""
    model = potkit.pretrained(f"{network}-small-denoise")
    task = Denoise(sigma=0.1)
    clean = potkit.load("ani-mini")[::200].batch(dtype=torch.float32)
    batch = task.corrupt(clean, torch.Generator().manual_seed(0))
    predicted = model(batch, ("vector",)).vector.detach()
    way_back = clean.pos - batch.pos  # Å
    left = float((predicted - way_back).square().mean() / way_back.square().mean())
    assert left == pytest.approx(model.card.validation_loss, rel=0.15)


def test_list_names_them(capsys):
    command("weights", "list")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == SHIPPED
    assert {"egnn-small-denoise", "schnet-small-denoise"} <= set(SHIPPED)


def test_the_page_has_the_cards_numbers():
    page = Path(__file__).resolve().parents[2] / "docs" / "weights.md"
    text = page.read_text()
    assert blocks.fill(text) == text, "fill docs/weights.md: python -m potkit.report.blocks"
    for name in SHIPPED:
        errors = pretrained.card(name).fine_tuned
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert all(f"{error:.3f}" in row for error in errors.values())


# -- from a name to a fine-tuned network ---------------------------------------------------------
def test_finetune_starts_from_a_name(tmp_path):
    name = "egnn-small-denoise"
    given = [name, pretrained.file(name)]
    runs = []
    for number, init in enumerate(given):
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # elements are known
            model = potkit.pretrained(name)
            runs.append(
                potkit.finetune(
                    model, molecules(8), None, STEPS, init=init, out=tmp_path / str(number)
                )
            )
    assert equal(weights(runs[0].model), weights(runs[1].model))
    assert runs[0].summary["hash"] == runs[1].summary["hash"]


def test_finetune_takes_the_name_on_the_command_line(tmp_path, capsys):
    data = tmp_path / "data.extxyz"
    write(data, molecules(12).to_ase())
    options = "--steps 2 --batch-size 4 --device cpu --no-figures".split()
    files = ["--data", data, "--out", tmp_path / "run"]
    command("finetune", *files, "--init", "schnet-small-denoise", *options)
    assert "copied" in capsys.readouterr().err
    assert potkit.checkpoints.load(tmp_path / "run").recipe["name"] == "schnet"
    with pytest.raises(SystemExit) as stop:
        cli.main(["finetune", "--data", str(data), "--init", "egnn-large", "--out", str(tmp_path)])
    assert stop.value.code == 1
    said = capsys.readouterr().err
    assert said.startswith("error: egnn-large: no such checkpoint") and said.count("\n") == 1


def test_a_new_element_is_named_in_one_line():
    with pytest.warns(UserWarning, match=r"was not pretrained on S \(only on H, C, N, O\)") as said:
        pretrained.check_elements(pretrained.file("egnn-small-denoise"), [1, 6, 16])
    assert len(said) == 1 and "\n" not in str(said[0].message)


def test_a_path_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert pretrained.resolve("schnet-small-denoise") == pretrained.file("schnet-small-denoise")
    (tmp_path / "schnet-small-denoise").mkdir()
    assert str(pretrained.resolve("schnet-small-denoise")) == "schnet-small-denoise"


def test_heads_come_over_where_the_card_says_so(run, tmp_path, monkeypatch):
    """Weights trained on cheap labels: the first forces are theirs."""
    structures = potkit.load("ani-mini")[:40]
    labelled = potkit.pretrain(
        egnn(), structures, potkit.Supervised(), STEPS, out=tmp_path / "labelled"
    )
    out = tmp_path / "weights"
    both = ("backbone", "energy_head")
    monkeypatch.setattr(pretrained, "folder", lambda: out)
    card = pretrained.pack(labelled.path, "cheap", **MADE, parts=both)
    assert (card.labels, card.sigma, card.parts) == ("GFN2-xTB", None, list(both))
    assert pretrained.pack(run.path, "noise", **MADE).labels is None
    assert "GFN2-xTB labels" in str(card)
    still = STEPS.replace(lr=1e-12, min_lr=0.0)
    tuned = potkit.finetune(egnn(), molecules(8), None, still, init="cheap", out=tmp_path / "tuned")
    batch = molecules(8).batch(dtype=torch.float32)
    forces = [model.energy_and_forces(batch)[1] for model in (tuned.model, labelled.model)]
    assert torch.allclose(*forces, atol=1e-4)
    assert pretrained.parts_of(pretrained.file("noise")) == ("backbone",)
    assert pretrained.parts_of(run.checkpoint) == ("backbone",)


# -- packing -------------------------------------------------------------------------------------
def test_packed_weights_are_those_of_the_run(run, tmp_path, monkeypatch):
    out = tmp_path / "weights"
    arguments = ["weights", "pack", run.path, "mine", "--out", out]
    arguments += [f"--{key}={value}" for key, value in MADE.items()]
    command(*arguments)
    monkeypatch.setattr(pretrained, "folder", lambda: out)
    model = potkit.pretrained("mine")
    assert equal(weights(model), weights(run.model))
    card = json.loads((out / "mine.json").read_text())
    assert card["run"] == run.summary["hash"] and card["steps"] == 2 and card["sigma"] == 0.1
    assert card["commit"] == MADE["commit"] and card["licence"] == "MIT"
    with pytest.raises(ConfigError, match="there already"):
        pretrained.pack(run.path, "mine", **MADE, out=out)


def test_what_is_no_finished_pretraining_is_refused(run, tmp_path):
    tuned = potkit.finetune(egnn(), molecules(8), None, STEPS, out=tmp_path / "tuned")
    with pytest.raises(DataError, match="not a pretraining, but finetune"):
        pretrained.pack(tuned.path, "mine", **MADE, out=tmp_path / "out")
    (run.path / "summary.json").unlink()
    with pytest.raises(DataError, match="not a finished run"):
        pretrained.pack(run.path, "mine", **MADE, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_data_without_a_name_is_refused(tmp_path):
    """Which elements it had could not be told."""
    run = potkit.pretrain(egnn(), molecules(8), Denoise(sigma=0.1), STEPS, out=tmp_path / "run")
    assert not registry.is_name(molecules(8).info.get("name", ""))
    with pytest.raises(ConfigError, match="no data set that has a name"):
        pretrained.pack(run.path, "mine", **MADE, out=tmp_path / "out")


# -- mistakes ------------------------------------------------------------------------------------
def test_unknown_names_list_the_known():
    known = ", ".join(SHIPPED)
    with pytest.raises(ConfigError, match=known) as error:
        potkit.pretrained("egnn-large")
    one_line(error.value)
    with pytest.raises(CheckpointError, match=known) as error:
        pretrained.resolve("egnn-large")
    one_line(error.value)


def test_a_changed_file_is_refused(shipped):
    path = shipped / "egnn-small-denoise.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(CheckpointError, match="checksum"):
        potkit.pretrained("egnn-small-denoise")
    path.unlink()
    with pytest.raises(CheckpointError, match="missing"):
        potkit.pretrained("egnn-small-denoise")
    (shipped / "egnn-small-denoise.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged") as error:
        pretrained.card("egnn-small-denoise")
    one_line(error.value)


def test_a_card_has_a_table_of_sigma():
    """`Denoise(sigma={"*": 0.2, "H": 0.1})`: a σ per element."""
    card = pretrained.card(pretrained.names()[0])
    own = pretrained.Card(**(card.model_dump() | {"sigma": {"*": 0.2, "H": 0.1}}))
    assert "sigma {'*': 0.2, 'H': 0.1} Å" in str(own)
