"""What a checkpoint holds, what is taken over from it, and what is refused."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest
import torch
from chores import child, wait
from safetensors.torch import save_file
from tiny import egnn, equal, molecules, one_line, weights

import potkit
from potkit import TrainConfig
from potkit.errors import CheckpointError, DataError
from potkit.structures import outputs
from potkit.training import checkpoints


@pytest.fixture
def saved(tmp_path) -> Path:
    return checkpoints.save(
        tmp_path / "model.safetensors",
        egnn(seed=3).set_references({1: -13.6, 6: -1029.0, 8: -2041.98}, 0.7),
    )


# -- save and load -------------------------------------------------------------------------------
def test_a_loaded_model_is_the_saved_one(saved):
    original = egnn(seed=3).set_references({1: -13.6, 6: -1029.0, 8: -2041.98}, 0.7)
    copy = checkpoints.load(saved)
    assert equal(weights(original), weights(copy))
    assert copy.recipe == original.recipe
    assert not copy.training
    structures = molecules(3)
    first, second = potkit.predict(original, structures), potkit.predict(copy, structures)
    assert (first["energy"] == second["energy"]).all()
    assert (first["forces"] == second["forces"]).all()
    # the known elements travel with the weights
    with pytest.raises(DataError, match="no reference energy for N"):
        copy.check_elements([1, 7])


def test_the_header_says_what_is_in_the_file(saved):
    tensors, header = checkpoints.read(saved)
    assert header["format_version"] == 1 and header["units"]["forces"] == "eV/Å"
    assert header["recipe"]["name"] == "egnn" and header["recipe"]["options"]["hidden"] == 8
    assert all(k.startswith("model.") for k in tensors)


def test_float64_models_come_back_as_float64(tmp_path):
    model = egnn().double()
    copy = checkpoints.load(checkpoints.save(tmp_path / "m.safetensors", model))
    assert equal(weights(model), weights(copy))


def test_a_folder_means_its_best_checkpoint(tmp_path):
    checkpoints.save(tmp_path / "last.safetensors", egnn(seed=1))
    assert checkpoints.find(tmp_path).name == "last.safetensors"
    checkpoints.save(tmp_path / "best.safetensors", egnn(seed=2))
    assert equal(weights(checkpoints.load(tmp_path)), weights(egnn(seed=2)))


# -- transfer ------------------------------------------------------------------------------------
def test_transfer_copies_the_parts_asked_for_and_lists_the_rest(saved):
    model = egnn(seed=5)
    before, stored = weights(model), weights(checkpoints.load(saved))
    report = checkpoints.transfer(model, saved)
    after = weights(model)
    for key, value in after.items():
        source = stored if key.startswith("backbone.") else before
        assert torch.equal(value, source[key]), key
    assert sorted(report.copied) == sorted(k for k in after if k.startswith("backbone."))
    assert sorted(report.copied + report.new) == sorted(after) and report.mismatched == []
    text = str(report)
    assert f"{len(report.copied)} of backbone" in text
    assert "of energy_head" in text
    assert str(saved) in text
    checkpoints.transfer(model, saved, parts=("backbone", "energy_head"))
    assert all(
        torch.equal(v, stored[k])
        for k, v in weights(model).items()
        if k.startswith(("backbone.", "energy_head."))
    )


@pytest.mark.parametrize("option, value", [("cutoff", 3.25), ("tanh", False)])
def test_options_that_leave_no_trace_in_shapes_must_agree(saved, option, value):
    model = egnn(seed=5, **{option: value})
    before = weights(model)
    with pytest.raises(CheckpointError, match=option) as caught:
        checkpoints.transfer(model, saved)
    assert str(value) in one_line(caught.value) and equal(before, weights(model))


def test_transfer_skips_only_what_was_allowed(saved):
    model = egnn(seed=5, radial=4)  # the first layer of the edge network sees four numbers, not one
    stored = weights(checkpoints.load(saved))
    allow = ["backbone.layers.0.from_distance", "backbone.layers.1.from_distance", "backbone.basis"]
    report = checkpoints.transfer(model, saved, allow=allow)
    assert sorted(report.mismatched) == ["backbone.basis.frequencies"] + [
        f"backbone.layers.{i}.from_distance.weight" for i in (0, 1)
    ]
    key = "backbone.embedding.element.weight"
    assert torch.equal(weights(model)[key], stored[key])


BROKEN = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("weights"),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "one byte short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "header cut": lambda path: path.write_bytes(path.read_bytes()[:20]),
    "foreign": lambda path: save_file({"a": torch.zeros(3)}, path),
    "foreign with metadata": lambda path: save_file(
        {"a": torch.zeros(3)}, path, metadata={"format": "pt"}
    ),
    "no JSON": lambda path: save_file({"a": torch.zeros(3)}, path, metadata={"potkit": "{"}),
    "newer": lambda path: save_file(
        {"a": torch.zeros(3)}, path, metadata={"potkit": json.dumps({"format_version": 99})}
    ),
    "layers": lambda path: checkpoints.save(path, egnn(layers=3)),
    "fewer layers": lambda path: checkpoints.save(path, egnn(layers=1)),
    "width": lambda path: checkpoints.save(path, egnn(hidden=9)),
    "radial": lambda path: checkpoints.save(path, egnn(radial=4)),
    "network": lambda path: checkpoints.save(path, _renamed("schnet")),
}


def _renamed(name: str):
    model = egnn()
    model.recipe = {**model.recipe, "name": name}
    return model


@pytest.mark.parametrize("how", BROKEN)
def test_a_checkpoint_that_does_not_fit_leaves_the_model_alone(saved, how, tmp_path):
    BROKEN[how](saved)
    model = egnn(seed=5)
    before = weights(model)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.transfer(model, saved)
    text = one_line(caught.value)
    assert "model.safetensors" in text and equal(before, weights(model))
    words = {
        "missing": ["no such"],
        "width": ["(9,)", "(8,)"],
        "network": ["schnet", "egnn"],
        "newer": ["99"],
        "layers": ["backbone.layers.2"],
        "fewer layers": ["backbone.layers.1"],
        "foreign": ["not a checkpoint of potkit"],
    }
    assert all(w in text for w in words.get(how, []))
    config = TrainConfig(steps=1, progress=False)
    with pytest.raises(CheckpointError):
        potkit.finetune(model, molecules(4), config=config, init=saved, out=tmp_path / "r")
    assert equal(before, weights(model)) and not (tmp_path / "r").exists()


@pytest.mark.parametrize("how", ["missing", "truncated", "foreign"])
def test_loading_a_broken_file_is_one_line(saved, how):
    BROKEN[how](saved)
    with pytest.raises(CheckpointError) as caught:
        checkpoints.load(saved)
    one_line(caught.value)


def test_restore_wants_every_tensor(saved):
    tensors, _ = checkpoints.read(saved)
    state = checkpoints.weights(tensors)
    model = egnn(seed=5)
    before = weights(model)
    key = "backbone.layers.1.gate.weight"
    for broken, word in (
        ({k: v for k, v in state.items() if k != key}, "missing"),
        ({**state, "backbone.more": torch.zeros(1)}, "backbone.more"),
        ({**state, key: torch.zeros(1, 9)}, "(1, 9)"),
    ):
        with pytest.raises(CheckpointError) as caught:
            checkpoints.restore(model, broken, "here")
        assert word in one_line(caught.value) and equal(before, weights(model))


def test_an_empty_folder_an_unknown_part_and_a_model_without_recipe(tmp_path, saved):
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        checkpoints.find(_mkdir(tmp_path / "void"))
    with pytest.raises(CheckpointError, match="'head'"):
        checkpoints.transfer(egnn(), saved, parts=("head",))
    bare = potkit.Potential(egnn().backbone)
    with pytest.raises(CheckpointError, match="recipe"):
        checkpoints.save(tmp_path / "bare.safetensors", bare)
    assert not (tmp_path / "bare.safetensors").exists()


def _mkdir(path: Path) -> Path:
    path.mkdir()
    return path


def test_a_kill_in_the_middle_of_writing_leaves_only_names_that_are_swept(tmp_path):
    """The system kills a process whose file grows beyond the limit."""

    def write() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1_000, 1_000))
        checkpoints.save(tmp_path / "c.safetensors", egnn())

    assert wait(child(write)) == -signal.SIGXFSZ
    left = [path.name for path in tmp_path.iterdir()]
    assert len(left) == 1 and outputs.is_temporary(left[0], tmp_path / "c.safetensors")
    checkpoints.save(tmp_path / "c.safetensors", egnn())
    assert [path.name for path in tmp_path.iterdir()] == ["c.safetensors"]
