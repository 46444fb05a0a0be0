"""Settings: what is accepted, what is refused and how it is said."""

from __future__ import annotations

import pytest
from tiny import one_line

from potkit import TrainConfig
from potkit.errors import ConfigError
from potkit.training.run_folder import identity_hash

FULL = dict(
    steps=7,
    epochs=1.5,
    batch_size=3,
    lr=2e-4,
    min_lr=1e-7,
    warmup=0.3,
    flat=0.2,
    schedule="constant",
    weight_decay=1e-4,
    clip=None,
    ema=0.99,
    seed=5,
    validate_every=2,
    checkpoint_every=3,
    log_every=4,
    eval_batch_size=6,
    device="cpu",
    devices=2,
    nodes=3,
    precision="64-true",
    resident=False,
    progress=False,
    log="tensorboard",
    check_labels=False,
    freeze=0.2,
    layer_decay=0.8,
    micro_batch=2,
    compile=True,
    optimizer="adam",
    references="isolated",
    isolated_energies={"H": -13.6, "C": -1029.5},
    normalization="mean-std",
    valid_fraction=0.1,
    validate_epochs=0.5,
)


def test_yaml_round_trip_of_every_setting(tmp_path):
    assert set(FULL) == set(TrainConfig.model_fields)  # a new setting belongs into this test
    defaults = TrainConfig()
    assert all(FULL[k] != getattr(defaults, k) for k in FULL if k not in ("min_lr",))
    for config in (TrainConfig(**FULL), defaults):
        assert TrainConfig.from_yaml(config.to_yaml(tmp_path / "deep" / "config.yaml")) == config


def test_settings_that_came_later_leave_earlier_runs_where_they_are():
    """The hash of the defaults is that of potkit 0.1.0; a stored run would not be found under
    another.
    """
    assert identity_hash(TrainConfig().identity()) == "f57ec950d22208b5"
    for change in (
        {"freeze": 0.1},
        {"layer_decay": 0.9},
        {"optimizer": "adam"},
        {"references": "none"},
        {"references": "isolated", "isolated_energies": {"H": -1.0}},
        {"normalization": "mean-std"},
        {"valid_fraction": 0.1},
        {"validate_epochs": 1.0},
    ):
        assert identity_hash(TrainConfig(**change).identity()) != "f57ec950d22208b5"


def test_yaml_by_hand(tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("lr: 1e-4   # YAML reads this as text\nsteps: 10\nclip: null\n")
    config = TrainConfig.from_yaml(path)
    assert (config.lr, config.steps, config.clip) == (1e-4, 10, None)
    path.write_text("")
    assert TrainConfig.from_yaml(path) == TrainConfig()


def test_every_setting_is_described():
    assert all(field.description for field in TrainConfig.model_fields.values())


@pytest.mark.parametrize(
    "values, words",
    [
        ({"larning_rate": 1, "steps": 1}, ["'larning_rate'"]),
        ({"batchsize": 4}, ["'batchsize'", "did you mean 'batch_size'?"]),
        ({"qqq": 4}, ["'qqq'", "there are steps, epochs"]),
        ({"steps": 0}, ["steps", "got 0"]),
        ({"lr": -1.0}, ["lr", "-1.0"]),
        ({"lr": float("nan")}, ["lr", "nan"]),
        ({"lr": "fast"}, ["lr", "fast"]),
        ({"schedule": "linear"}, ["schedule", "'cosine' or 'constant'", "linear"]),
        ({"warmup": 0.7, "flat": 0.4}, ["warmup + flat", "0.7", "0.4"]),
        ({"lr": 1e-5, "min_lr": 1e-4}, ["min_lr", "0.0001", "1e-05"]),
        ({"ema": 1.0}, ["ema", "1.0"]),
        ({"device": "tpu"}, ["device", "tpu"]),
        ({"steps": 2.5}, ["steps", "2.5"]),
        ({"references": "isolatd"}, ["references", "'isolated'", "isolatd"]),
        ({"normalization": "std"}, ["normalization", "'mean-std'", "std"]),
        ({"optimizer": "sgd"}, ["optimizer", "'adamw' or 'adam'", "sgd"]),
        ({"isolated_energies": {"H": 1.0}}, ["isolated_energies", "references: isolated"]),
        (
            {"references": "isolated", "isolated_energies": {"Hx": 1.0}},
            ["isolated_energies", "'Hx'"],
        ),
        ({"references": "isolated", "isolated_energies": {"H": "low"}}, ["H", "low"]),
    ],
)
def test_impossible_settings_are_named(values, words):
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**values)
    text = one_line(caught.value)
    assert all(w in text for w in words), text


def test_all_problems_are_told_at_once(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("steps: -3\nbatchsize: 4\nprecision: 16-true\nema: 2\n")
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_yaml(path)
    text = one_line(caught.value)
    assert str(path) in text
    for word in (
        "steps",
        "-3",
        "'batchsize'",
        "did you mean 'batch_size'?",
        "precision",
        "16-true",
        "ema",
    ):
        assert word in text


@pytest.mark.parametrize(
    "content, word",
    [
        (b"steps: [1,\n", "not YAML"),
        (b"- 1\n- 2\n", "list"),
        (b"just words", "str"),
        (b"\xff\xfe\x00steps", "not a text file"),
        (b"1: 2", "'1'"),
    ],
)
def test_unreadable_files_are_named(tmp_path, content, word):
    path = tmp_path / "c.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        TrainConfig.from_yaml(path)
    assert word in one_line(caught.value) and "c.yaml" in str(caught.value)


def test_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "none.yaml", tmp_path):
        with pytest.raises(ConfigError, match="cannot be read"):
            TrainConfig.from_yaml(path)


def test_settings_do_not_change_behind_ones_back():
    config = TrainConfig()
    with pytest.raises(Exception, match="frozen"):
        config.steps = 3
    assert config.replace(steps=3).steps == 3 and config.steps == TrainConfig().steps
    with pytest.raises(ConfigError, match="steps"):
        config.replace(steps=-3)


def test_epochs_become_steps():
    assert TrainConfig(steps=77).total_steps(10) == 77
    assert TrainConfig(epochs=5, batch_size=32).total_steps(3200) == 500
    assert TrainConfig(epochs=2, batch_size=32).total_steps(100) == 6  # 200 / 32
    # batches are never larger than the set
    assert TrainConfig(epochs=3, batch_size=32).total_steps(10) == 3
    assert TrainConfig(epochs=0.001).total_steps(10) == 1


def test_validations_come_by_steps_or_by_epochs():
    assert TrainConfig(steps=77).steps_between_validations(10) == 7
    assert TrainConfig(steps=77, validate_every=3).steps_between_validations(10) == 3
    each = TrainConfig(epochs=50, batch_size=32, validate_epochs=1, validate_every=3)
    assert each.steps_between_validations(3200) == 100
    assert each.replace(epochs=None, steps=9).steps_between_validations(10) == 1
    assert TrainConfig(validate_epochs=0.01).steps_between_validations(10) == 1


def test_identity_leaves_out_what_cannot_change_the_result():
    base = TrainConfig()
    for change in (
        {"device": "cpu"},
        {"log_every": 3},
        {"checkpoint_every": 9},
        {"progress": False},
        {"resident": False},
    ):
        assert base.replace(**change).identity() == base.identity()
    for change in (
        {"lr": 1e-5},
        {"seed": 1},
        {"precision": "64-true"},
        {"ema": 0.9},
        {"batch_size": 3},
        {"validate_every": 3},
    ):
        assert base.replace(**change).identity() != base.identity()
