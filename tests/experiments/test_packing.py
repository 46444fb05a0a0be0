"""Weights with cards of an experiment's finished runs."""

from __future__ import annotations

import pytest
from grids import grid

import potkit
from potkit.errors import ConfigError
from potkit.experiments import experiment, packing, tasks
from potkit.structures.outputs import read_json
from potkit.training import checkpoints

MADE = {"command": "potkit compare", "commit": "0" * 40}


def small(store, **changes):
    """Two arms with pretrainings on some of ani-mini, one of them on its labels."""
    changes = {
        "objectives": {"denoise": potkit.Denoise(sigma=0.1), "cheap-labels": potkit.Supervised()},
        "parts": {"cheap-labels": ["backbone", "energy_head"]},
        "variants": {},
        "seeds": [0],
        "pretrain_on": potkit.load("ani-mini")[:40],
    } | changes
    return grid(store, **changes)


def test_finished_pretrainings_become_weights_once(tmp_path):
    made = small(tmp_path / "store")
    out = tmp_path / "weights"
    cards, left = packing.pack([made], **MADE, out=out)
    assert cards == [] and set(left.values()) == {"its runs are not finished"}

    experiment.run(made, progress=False)
    cards, left = packing.pack([made], **MADE, out=out, target="few")
    assert left == {}
    names = [packing.name_of(made, arm) for arm in ("denoise", "cheap-labels")]
    assert [card.name for card in cards] == names
    assert [card.parts for card in cards] == [["backbone"], ["backbone", "energy_head"]]
    assert [card.labels for card in cards] == [None, "GFN2-xTB"]

    count = made.labels[0]
    for arm, card in zip(made.objectives, cards, strict=True):
        task = tasks.Task("finetune", arm, 0, count)
        folder = tasks.finetune_folder(made, task)
        scores = read_json(folder / f"test-{made.test.fingerprint()}.json")
        told = card.fine_tuned[f"few, {count} labels, force MAE (eV/Å)"]
        assert told == pytest.approx(scores["forces_mae"], abs=1e-6)
        assert checkpoints.load(out / f"{card.name}.safetensors").n_parameters() == card.parameters

    cards, left = packing.pack([made], **MADE, out=out)
    assert cards == [] and left == dict.fromkeys(names, "is there already")


def test_without_a_pretraining_there_is_nothing_to_pack(tmp_path):
    none = small(tmp_path, objectives={}, parts={}, pretrain_on=None)
    with pytest.raises(ConfigError, match="no arm has a pretraining"):
        packing.pack([none], **MADE, out=tmp_path / "weights")
