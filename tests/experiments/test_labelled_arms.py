"""Arms that are pretrained on labels, and pretrainings that go on from one another."""

from __future__ import annotations

import pytest
import yaml
from grids import TINY, grid
from tiny import equal, one_line, weights

import potkit
from potkit.errors import ConfigError
from potkit.experiments import experiment, tasks, yaml_form
from potkit.training import checkpoints

OBJECTIVES = {
    "denoise": potkit.Denoise(sigma=0.1),
    "cheap labels": potkit.Supervised(),
}
CHAIN = {"denoise": OBJECTIVES["denoise"], "denoise, then labels": potkit.Supervised()}


def chained(store, **changes):
    after = {"denoise, then labels": "denoise"}
    changes = {"objectives": CHAIN, "after": after, "variants": {}, "seeds": [0]} | changes
    return grid(store, **changes)


def test_an_arm_pretrained_on_labels_with_and_without_its_heads(tmp_path):
    made = grid(
        tmp_path,
        objectives=OBJECTIVES,
        variants={
            "cheap labels, heads": {"like": "cheap labels", "parts": ["backbone", "energy_head"]}
        },
        seeds=[0],
    )
    table = experiment.run(made, progress=False).set_index("arm")
    assert (table["status"] == "ok").all(), table["error"].tolist()
    errors = table["forces_mae"]
    assert errors.nunique() == 5  # no two arms ended the same
    assert table.loc["cheap labels, heads", "pretrain_seconds"] > 0


def test_a_pretraining_goes_on_from_another(tmp_path):
    made = chained(tmp_path)
    table = experiment.run(made, progress=False).set_index("arm")
    assert (table["status"] == "ok").all(), table["error"].tolist()
    # both pretrainings, 4 steps each, in steps and in seconds
    assert table.loc["scratch-longer", "steps"] == 4 + 8
    seconds = table["pretrain_seconds"]
    assert seconds["denoise, then labels"] > seconds["denoise"] > 0
    first, second = (tasks.pretrain_folder(made, arm, 0) for arm in CHAIN)
    assert first.is_dir() and second.is_dir()
    again = experiment.run(made, progress=False).set_index("arm")
    assert again["pretrain_seconds"].equals(seconds)


def test_the_second_pretraining_starts_at_the_first_ones_weights(tmp_path):
    still = potkit.TrainConfig(
        steps=1, batch_size=4, lr=1e-12, min_lr=0.0, progress=False, device="cpu"
    )
    made = chained(tmp_path, pretrain_config=still, seeds=[3])
    executor = tasks.Executor([made])
    assert executor(tasks.Task("pretrain", "denoise, then labels", 3))["status"] == "ok"
    first, second = (checkpoints.load(tasks.pretrain_folder(made, arm, 3)) for arm in CHAIN)
    backbones = [
        {k: v for k, v in weights(model).items() if k.startswith("backbone.")}
        for model in (first, second)
    ]
    assert backbones[0] and all(
        backbones[0][k].allclose(backbones[1][k], atol=1e-6) for k in backbones[0]
    )
    assert not equal(weights(second), weights(made.build(4)))


def test_what_a_chain_changes_is_another_run_and_nothing_else_is(tmp_path):
    """A pretraining without a chain keeps its name, beside one with it too."""
    alone = grid(tmp_path, objectives=CHAIN)
    after = chained(tmp_path)
    names = [tasks.pretrain_folder(e, "denoise", 0).name for e in (alone, after)]
    assert names[0] == names[1]
    names = [tasks.pretrain_folder(e, "denoise, then labels", 0).name for e in (alone, after)]
    assert names[0] != names[1]


@pytest.mark.parametrize("earlier", ["scratch", "nobody", "denoise, then labels"])
def test_a_chain_needs_an_arm_before_it(tmp_path, earlier):
    with pytest.raises(ConfigError, match="no arm with a pretraining that stands before") as caught:
        chained(tmp_path, after={"denoise, then labels": earlier})
    one_line(caught.value)


def test_an_arm_says_in_yaml_what_it_takes_over_and_goes_on_from(tmp_path):
    spec = {
        "name": "arms",
        "model": TINY,
        "pretrain_on": {"data": "ani-mini", "limit": 30},
        "train": {"data": "ani-mini", "limit": 30},
        "test": {"data": "ani-mini", "limit": 40},
        "labels": [10],
        "arms": {
            "cheap labels": {"objective": "supervised", "parts": ["backbone", "energy_head"]},
            "both": {
                "objective": "denoise",
                "sigma": 0.1,
                "vector": "gradient",
                "after": "cheap labels",
            },
        },
    }
    path = tmp_path / "arms.yaml"
    path.write_text(yaml.safe_dump(spec, allow_unicode=True, sort_keys=False))
    made = yaml_form.read(path).experiment()
    assert made.arms["cheap labels"].parts == ("backbone", "energy_head")
    assert made.arms["both"].after == "cheap labels" and made.vectors == {"both": "gradient"}
    assert made.objectives["both"] == potkit.Denoise(sigma=0.1)
