"""Settings mutated at random: one line that names the culprit, or taken as they were meant.

POTKIT_FUZZ is how many times as many examples are tried, POTKIT_FUZZ_MINUTES for how many minutes
each settings model is tried (`make fuzz` says how many that were). What once went wrong stands
below as an example of its own.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import json
import math
import tempfile
from pathlib import Path

import mutations as m
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

import potkit
from potkit import models, notebooks, objectives
from potkit.cli import run_file
from potkit.errors import ConfigError, PotkitError
from potkit.experiments import yaml_form
from potkit.notebooks.runner import parse_parameter
from potkit.structures.settings import parse
from potkit.training import pretrained

short = m.some(60, deadline=None)  # the judge has one

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
FLAGS = ("compile", "resident", "progress", "check_labels")  # 0 and 1 are as good as a word
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


def judged(what, call, *arguments, **options):
    """As `refused`, within 10 s and 2 GB; counted as an example of ``what``."""
    with m.limited():
        made = refused(call, *arguments, **options)
    m.count(what, made)
    return made


@m.again("training settings")
@short
@given(name=st.sampled_from(sorted(potkit.TrainConfig.model_fields)), value=ODD)
@example(name="steps", value=10**30)
@example(name="steps", value=True)
@example(name="seed", value=2**64)
@example(name="seed", value=10**5000)
@example(name="devices", value=100_000)
@example(name="lr", value=math.nan)
@example(name="isolated_energies", value={"H": math.inf})
@example(name="check_labels", value=0)
def test_training_settings(name, value):
    if (config := judged("training settings", potkit.TrainConfig, **{name: value})) is None:
        return
    kept = getattr(config, name)
    if isinstance(value, (int, float)):
        assert kept == value and (name in FLAGS or not isinstance(value, bool))
    text = yaml.safe_dump(config.model_dump(), sort_keys=False)
    assert potkit.TrainConfig(**parse(text, "config")) == config


@m.again("experiment")
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
    read = judged("experiment", yaml_form.GridSpec, spec)
    if read is None:
        return
    for _, one in read.specs:
        for arm in one.arms.values():
            refused(objectives.from_dict, {k: v for k, v in arm.items() if k != "vector"})
        refused(potkit.TrainConfig, **{str(k): v for k, v in one.finetune.items()})


OF_OBJECTIVES = [
    (kind, field.name)
    for kind, cls in objectives.OBJECTIVES.items()
    for field in dataclasses.fields(cls)
]


@m.again("objective")
@short
@given(of=st.sampled_from([*OF_OBJECTIVES, ("denoise", "objective")]), value=ODD)
@example(of=("denoise", "objective"), value=[])
@example(of=("denoise", "objective"), value={})
@example(of=("denoise", "sigma"), value=math.nan)
@example(of=("denoise", "sigma"), value="1e-1")
@example(of=("denoise", "sigma"), value=[1])
@example(of=("denoise", "zero_mean"), value=[0])
def test_objectives(of, value):
    kind, name = of
    made = judged("objective", objectives.from_dict, {"objective": kind, name: value})
    if made is not None:
        assert objectives.from_dict(made.to_dict()).to_dict() == made.to_dict()
        if name != "objective" and isinstance(value, (int, float)):
            kept = getattr(made, name)
            assert kept == value and type(kept) in (type(value), float)


# a small network of each, so that what is tried decides how long it takes
SMALL = {
    "gns": {"hidden": 8, "layers": 1},
    "nequip": {"channels": 4, "layers": 1, "max_degree": 1},
    "se3_transformer": {"channels": 4, "layers": 1, "max_degree": 1, "heads": 1},
    "torchmd_et": {"hidden": 8, "layers": 1, "heads": 2},
}
OF_NETWORKS = [
    (network, option)
    for network in models.MODELS
    for option in (
        *inspect.signature(models.network(network)).parameters,
        *models.READOUT_OPTIONS,
        *("charge", "faults", "faithful", "seed", "preset"),
    )
]


@m.again("network")
@short
@given(of=st.sampled_from(OF_NETWORKS), value=ODD)
@example(of=("egnn", "hidden"), value=-1)
@example(of=("egnn", "hidden"), value=2**63)
@example(of=("egnn", "seed"), value=-1)
@example(of=("egnn", "seed"), value=2**64)
@example(of=("egnn", "cutoff"), value="far")
@example(of=("egnn", "cutoff"), value="0")
@example(of=("egnn", "cutoff"), value=True)
@example(of=("gns", "radial"), value=268527156.0)
@example(of=("schnet", "cutoff"), value=1e-235)
@example(of=("schnet", "cutoff"), value=3.4e38)
def test_networks(of, value):
    network, name = of
    if isinstance(value, int) and 3 < value < 10**6 and name not in ("seed", "preset"):
        return  # large, and allowed
    options = {"hidden": 8, "layers": 1} | SMALL.get(network, {}) | {name: value}
    own = {*inspect.signature(models.network(network)).parameters, *models.READOUT_OPTIONS}
    options = {key: kept for key, kept in options.items() if key in own or key == name}
    model = judged("network", potkit.build, network, **options)
    if model is not None and name in ("hidden", "layers", "cutoff"):
        assert model.recipe["options"][name] == value and not isinstance(value, bool)


FILE = {
    "data": {
        **{"data": "my.xyz", "format": "xyz", "valid": "v.xyz", "test": "t.xyz"},
        **{"split": "s.npz", "labels": 5, "references": "isolated"},
    },
    "model": {
        **{"name": "egnn", "preset": "small", "options": {"hidden": 8}, "init": "runs/x"},
        **{"parts": ["backbone"]},
    },
    "objective": {"name": "supervised", "forces": 10},
    "training": {"steps": 2, "lr": 0.001},
}


@m.again("file of --config")
@short
@given(at=st.sampled_from(list(places(FILE))), value=ODD)
@example(at=("data", "labels"), value=True)
@example(at=("data", "labels"), value="5")
@example(at=("data", "data"), value="\0")
@example(at=("data",), value=False)
@example(at=("model", "options", "hidden"), value=10**400)
def test_files_of_settings(at, value):
    text = yaml.safe_dump(replaced(FILE, at, value), allow_unicode=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "settings.yaml"
        path.write_text(text, encoding="utf-8")
        made = judged("file of --config", run_file.read, run_file.FinetuneFile, path)
    if made is None or len(at) != 2 or at[0] not in ("data", "model") or value is None:
        return
    kept = getattr(getattr(made, at[0]), at[1])
    assert kept == (Path(value) if isinstance(kept, Path) else value) and not isinstance(kept, bool)


CARD = {
    **{"name": "weights", "network": "egnn", "preset": "small", "options": {"hidden": 8}},
    **{"parameters": 100, "data": "ani-mini", "data_fingerprint": "0" * 16, "elements": ["H"]},
    **{"objective": {"objective": "denoise", "sigma": 0.1}, "labels": None, "parts": ["backbone"]},
    **{"sigma": 0.1, "cutoff": 5.0, "steps": 10, "seed": 0, "validation_loss": 0.5, "run": "x"},
    **{"command": "potkit", "commit": "0", "licence": "MIT", "fine_tuned": {"3bpa": 1.0}},
    "sha256": "0" * 64,
}


@m.again("card of pretrained weights")
@short
@given(at=st.sampled_from(list(places(CARD))), value=ODD)
def test_cards(at, value):
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(pretrained, "folder", lambda: Path(folder))
        text = json.dumps(replaced(CARD, at, value))
        (Path(folder) / "weights.json").write_text(text)
        made = judged("card of pretrained weights", pretrained.card, "weights")
        if made is not None:
            assert str(made).isprintable()
            assert made == pretrained.Card(**replaced(CARD, at, value))


@m.again("settings of a simulation")
@short
@given(
    name=st.sampled_from([field.name for field in dataclasses.fields(potkit.MDConfig)]), value=ODD
)
@example(name="steps", value=True)
@example(name="seed", value=2**64)
@example(name="temperature", value=math.nan)
@example(name="temperature", value=10**400)
def test_simulations(name, value):
    made = judged("settings of a simulation", potkit.MDConfig, **{name: value})
    if made is not None:
        assert getattr(made, name) is value and not isinstance(value, bool)


PROFILE = dict(seeds=[0, 1], steps=20, lr=0.1, device="cpu", figures=True, arms={"a": 1})


@m.again("parameter of a notebook")
@short
@given(name=st.sampled_from(sorted(PROFILE)), value=ODD)
@example(name="steps", value=True)
@example(name="figures", value=1)
def test_parameters_of_notebooks(name, value):
    tables = dict(smoke=PROFILE, quick=PROFILE, paper=PROFILE)
    made = judged("parameter of a notebook", notebooks.settings, "smoke", **tables, **{name: value})
    if made is not None and value is not None:
        assert getattr(made, name) is value and isinstance(value, bool) == (name == "figures")


@m.again("text of settings")
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
    judged("text of settings", parse, text, "settings")
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
