"""Headers of checkpoints that are not what they should be: one line each, nothing imported or run,
and files that the group may read.
"""

from __future__ import annotations

import json
import os
import stat

import pytest
import torch
from safetensors.torch import save_file
from tiny import egnn, one_line

from potkit.errors import CheckpointError
from potkit.training import checkpoints

GOOD = {
    "format_version": 1,
    "recipe": {"name": "egnn", "preset": "small", "options": {"hidden": 8, "layers": 2}},
}


def recipe(**changes) -> dict:
    return {**GOOD, "recipe": {**GOOD["recipe"], **changes}}


HEADERS = {
    "null": "null",
    "list": "[]",
    "string": '"egnn"',
    "number": "3",
    "not JSON": "{",
    "deep": "[" * 100_000 + "]" * 100_000,
    "no recipe": {"format_version": 1},
    "recipe is a list": {"format_version": 1, "recipe": ["egnn"]},
    "no name": {"format_version": 1, "recipe": {"preset": "small", "options": {}}},
    "no options": {"format_version": 1, "recipe": {"name": "egnn", "preset": "small"}},
    "name is a list": recipe(name=["egnn"]),
    "name is a number": recipe(name=7),
    "preset is a list": recipe(preset=["small"]),
    "preset is null": recipe(preset=None),
    "options are a string": recipe(options="hidden=8"),
    "options are a list": recipe(options=[8]),
    "unknown network": recipe(name="os"),
    "a module's name": recipe(name="os:system"),
    "unknown preset": recipe(preset="large"),
    "unknown option": recipe(options={"colour": "red"}),
    "cutoff is text": recipe(options={"hidden": 8, "layers": 2, "cutoff": "5"}),
    "cutoff is a list": recipe(options={"hidden": 8, "layers": 2, "cutoff": [5]}),
    "cutoff is null": recipe(options={"hidden": 8, "layers": 2, "cutoff": None}),
    "hidden is text": recipe(options={"hidden": "8", "layers": 2}),
    "hidden is negative": recipe(options={"hidden": -8, "layers": 2}),
    "huge width": recipe(options={"hidden": 10**9, "layers": 2}),
    "huge depth": recipe(options={"hidden": 8, "layers": 10**9}),
    "too deep": recipe(options={"hidden": 8, "layers": 900}),
    "more words": {**GOOD, "recipe": {**GOOD["recipe"], "code": "import os"}},
    "state is a list": {**GOOD, "state": []},
    "state is not counted": {**GOOD, "state": {"step": "3", "seconds": 1.0, "best": 1.0}},
    "other version": {**GOOD, "format_version": 99},
    "version is text": {**GOOD, "format_version": "1"},
}


@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_a_damaged_header_is_one_line(tmp_path, header):
    model = egnn()
    path = tmp_path / "model.safetensors"
    text = header if isinstance(header, str) else json.dumps(header)
    tensors = {f"model.{k}": v.contiguous().clone() for k, v in model.state_dict().items()}
    save_file(tensors, path, metadata={"potkit": text})
    for use in (checkpoints.load, lambda p: checkpoints.transfer(egnn(), p)):
        try:
            use(path)
        except CheckpointError as error:
            line = one_line(error)
            assert str(path) in line and len(line) < 400
        else:  # taking over weights needs no network to be built
            assert use is not checkpoints.load


def test_more_in_a_header_is_welcome(tmp_path):
    path = checkpoints.save(tmp_path / "m.safetensors", egnn(), {"note": "mine", "step": 3})
    assert checkpoints.read(path)[1]["note"] == "mine"


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_the_umask_decides_who_may_read_a_checkpoint(tmp_path, mask, mode):
    before = os.umask(mask)
    try:
        path = checkpoints.save(tmp_path / "m.safetensors", egnn())
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_file_one_may_not_read_is_called_so(tmp_path, monkeypatch):
    path = checkpoints.save(tmp_path / "m.safetensors", egnn())
    original = type(path).open

    def refused(self, *args, **kwargs):  # also root, who may read all
        if self == path:
            raise PermissionError(13, os.strerror(13), str(self))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(type(path), "open", refused)
    with pytest.raises(CheckpointError, match="Permission denied"):
        checkpoints.read(path)


def test_weights_survive(tmp_path):
    model = egnn()
    loaded = checkpoints.load(checkpoints.save(tmp_path / "m.safetensors", model))
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)
