"""Settings mutated at random: one line that names the culprit, or taken as they were meant.

POTKIT_FUZZ is how many times as many examples are tried (`make fuzz` tries many). What once went
wrong stands below as an example of its own.
"""

from __future__ import annotations

import copy
import math
import os

import pytest
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import potkit
from potkit import objectives
from potkit.errors import ConfigError, PotkitError
from potkit.experiments import yaml_form
from potkit.notebooks.runner import parse_parameter
from potkit.structures.settings import parse

TIMES = int(os.environ.get("POTKIT_FUZZ", "1"))
short = settings(
    max_examples=60 * TIMES,
    deadline=10_000,  # ms
    derandomize=TIMES == 1,
    database=None,
    suppress_health_check=list(HealthCheck),
)

ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**31, 2**63, 2**64, 10**30, 10**400, -1, 100_000]),
    st.floats(),
    st.text(max_size=6),
    st.sampled_from(["1e-1", "nan", "\0", "../x", "true", "ü" * 200, "a\nb"]),
    st.lists(st.integers(-1, 2), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(-1, 2), max_size=2),
)
SPEC = {
    "name": "x",
    "model": {"name": "egnn", "preset": "small", "hidden": 8, "layers": 1},
    "pretrain_on": {"data": "ani-mini", "limit": 20},
    "train": {"data": "ani-mini", "limit": 20},
    "test": {"data": "ani-mini", "part": {"fractions": [0.5, 0.5], "index": 1}},
    "labels": [4, 0.5],
    "seeds": [0, 1],
    "arms": {"denoise": {"objective": "denoise", "sigma": 0.1}},
    "pretrain": {"steps": 2},
    "finetune": {"steps": 2, "lr": 0.001},
    "grid": {"rate": {"low": {}, "high": {"finetune": {"lr": 0.01}}}},
}


def places(value, at=()):
    """Where in ``value`` something can be replaced."""
    yield at
    inner = list(value.items()) if isinstance(value, dict) else []
    inner += list(enumerate(value)) if isinstance(value, list) else []
    for key, item in inner:
        yield from places(item, (*at, key))


def replaced(value, at, by):
    if not at:
        return by
    out = copy.copy(value)
    out[at[0]] = replaced(value[at[0]], at[1:], by)
    return out


def refused(call, *arguments, **options):
    """What ``call`` returns, or None where it raises potkit's error, in one line."""
    try:
        return call(*arguments, **options)
    except PotkitError as error:
        line = str(error)
        assert line and "\n" not in line and len(line) < 3000
        return None


@short
@given(name=st.sampled_from(sorted(potkit.TrainConfig.model_fields)), value=ODD)
@example(name="steps", value=10**30)
@example(name="steps", value=True)
@example(name="seed", value=2**64)
@example(name="seed", value=10**5000)
@example(name="devices", value=100_000)
@example(name="lr", value=math.nan)
@example(name="isolated_energies", value={"H": math.inf})
def test_training_settings(name, value):
    if (config := refused(potkit.TrainConfig, **{name: value})) is None:
        return
    kept = getattr(config, name)
    if isinstance(value, (int, float)) and name not in ("compile", "resident", "progress"):
        assert kept == value and not isinstance(value, bool)
    text = yaml.safe_dump(config.model_dump(), sort_keys=False)
    assert potkit.TrainConfig(**parse(text, "config")) == config


@short
@given(at=st.sampled_from(list(places(SPEC))), value=ODD)
@example(at=("grid",), value=[1])
@example(at=("grid", "rate", "low"), value=3)
@example(at=("finetune",), value=3)
@example(at=("seeds",), value=[-1])
@example(at=("seeds", 0), value=2**64)
@example(at=("labels", 0), value=True)
@example(at=("arms", "denoise", "objective"), value=[1])
def test_experiments(at, value):
    spec = replaced(SPEC, at, value)
    if not isinstance(spec, dict):
        return
    read = refused(yaml_form.GridSpec, spec)
    if read is None:
        return
    for _, one in read.specs:
        for arm in one.arms.values():
            refused(objectives.from_dict, {k: v for k, v in arm.items() if k != "vector"})
        refused(potkit.TrainConfig, **{str(k): v for k, v in one.finetune.items()})


@short
@given(
    name=st.sampled_from(["sigma", "zero_mean", "normalize", "faithful", "faults", "objective"]),
    value=ODD,
)
@example(name="objective", value=[])
@example(name="objective", value={})
@example(name="sigma", value=math.nan)
@example(name="sigma", value="1e-1")
@example(name="sigma", value=[1])
@example(name="zero_mean", value=[0])
def test_objectives(name, value):
    made = refused(objectives.from_dict, {"objective": "denoise", name: value})
    if made is not None:
        assert objectives.from_dict(made.to_dict()).to_dict() == made.to_dict()


@short
@given(
    name=st.sampled_from(["hidden", "layers", "cutoff", "vector", "charge", "faults", "seed"]),
    value=ODD,
)
@example(name="hidden", value=-1)
@example(name="hidden", value=2**63)
@example(name="seed", value=-1)
@example(name="seed", value=2**64)
@example(name="cutoff", value="far")
@example(name="cutoff", value="0")
@example(name="cutoff", value=True)
def test_networks(name, value):
    if name in ("hidden", "layers") and isinstance(value, int) and 3 < value < 10**6:
        return  # large, and allowed
    model = refused(potkit.build, "egnn", **({"hidden": 8, "layers": 1} | {name: value}))
    if model is not None and name in ("hidden", "layers", "cutoff"):
        assert model.recipe["options"][name] == value and not isinstance(value, bool)


@short
@given(text=st.text(max_size=40))
@example(text="- " * 500 + "1")
@example(text="[" * 5000)
@example(text="{a: 1, a: 2}")
@example(text="? [1]\n: 2")
@example(text="&a [*a]")
@example(text="a: 2024-99-99")
@example(text="a: \0")
@example(text="!!python/object:os.system {}")
@example(text="1" * 5000)
@example(text="!!int x")
@example(text="!!float [1]")
@example(text="<<: 3")
def test_texts(text):
    refused(parse, text, "settings")
    refused(parse_parameter, "x", text)


def test_aliases_cannot_make_a_text_grow_without_end():
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    with pytest.raises(ConfigError, match="more than 100,000 values"):
        parse("\n".join(lines), "bomb.yaml")
    assert parse("{a: &x [1, 2], b: *x}", "few") == {"a": [1, 2], "b": [1, 2]}


@pytest.mark.parametrize("text", ["1e-1", "1E-1", "1.0e-1", ".1", "+1e-1", "0.1"])
def test_numbers_are_those_of_yaml_1_2(text):
    assert parse(text, "x") == float(text) and parse(f"[{text}]", "x") == [float(text)]
    assert parse_parameter("sigmas", f"[{text}, 5e-2]") == [float(text), 0.05]
    assert objectives.from_dict(parse(f"{{objective: denoise, sigma: {text}}}", "x")).sigma == 0.1


@pytest.mark.parametrize("word", ["1e", "e5", "1e5x", "0x1g", "a1e5"])
def test_words_stay_words(word):
    assert parse(word, "x") == word
