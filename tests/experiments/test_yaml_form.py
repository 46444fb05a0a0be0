"""The YAML form says the papers' splits and settings: within systems, published parts, validation
of its own, shares of labels.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from tiny import molecules, one_line

import potkit
from potkit.datasets import splits
from potkit.datasets.references import LEVELS, ReferenceEnergies
from potkit.errors import ConfigError, DataError
from potkit.experiments import experiment, yaml_form
from potkit.experiments.experiment import Experiment
from potkit.experiments.given_validation import GivenValidation
from potkit.training import checkpoints

TINY = {"name": "egnn", "preset": "small", "hidden": 8, "layers": 1, "radial": 4, "cutoff": 3.0}
PAPER = dict(fractions=[0.8, 0.1, 0.1], by="structure-within-system", rounding="floor")


def built(tmp_path: Path, **changes) -> Experiment:
    values = dict(name="x", model=TINY, seeds=[0], longer=None, labels=[10])
    path = tmp_path / "x.yaml"
    path.write_text(yaml.safe_dump(values | changes))
    return yaml_form.read(path).experiment(store=tmp_path / "store")


@pytest.fixture
def own(tmp_path) -> str:
    """A set of two systems with 19 structures each."""
    s = molecules(38)
    s.system = np.repeat([0, 1], 19).astype(s.system.dtype)
    s = potkit.Structures(
        s.z, s.pos, s.ptr, s.energy, s.forces, system=s.system, info={"systems": ["a", "b"]}
    )
    s.save(tmp_path / "own.h5")
    return str(tmp_path / "own.h5")


def test_the_denoise_papers_split(tmp_path, own):
    parts = [dict(data=own, part=PAPER | {"index": k}) for k in range(3)]
    e = built(tmp_path, train=parts[0], valid=parts[1], test=parts[2], labels=[1.0, 0.5])
    assert isinstance(e, GivenValidation)
    assert (len(e.train), len(e.test), e.labels) == (36, 2, [36, 18])
    train, valid = e.labelled(36, seed=0)
    assert np.bincount(train.system).tolist() == [17, 17]
    assert np.bincount(valid.system).tolist() == [1, 1]
    known = set(e.train.energy) | set(e.test.energy)
    assert known == set(potkit.read(own).energy), "all structures, each once"


def test_validation_within_systems(tmp_path, own):
    e = built(
        tmp_path,
        train={"data": own},
        test={"data": own},
        valid_by="structure-within-system",
        valid_fraction=0.2,
        labels=[38],
    )
    _, valid = e.labelled(38, seed=1)
    assert set(np.bincount(valid.system)) <= {3, 4}, "a fifth of each system's 19"
    whole = built(
        tmp_path, train={"data": own}, test={"data": own}, valid_by="system", valid_fraction=0.5
    )
    train, valid = whole.labelled(20, seed=0)
    assert not set(train.system) & set(valid.system)
    plain = built(tmp_path, train={"data": own}, test={"data": own})
    assert type(plain) is Experiment


def test_published_parts(tmp_path):
    whole = potkit.load("iso17-mini")
    rows = splits.parts(whole)
    data = {k: {"data": "iso17-mini", "published": k} for k in ("train", "valid", "test_other")}
    e = built(
        tmp_path, train=data["train"], valid=data["valid"], test=data["test_other"], labels=[1.0]
    )
    train, valid = e.labelled(e.labels[0], seed=0)
    assert (len(train), len(valid), len(e.test)) == (910, 130, 300)
    assert set(valid.energy) == set(whole.energy[rows["valid"]])
    assert set(e.test.energy) == set(whole.energy[rows["test_other"]])
    with pytest.raises(DataError, match="'test'; there are train, valid, test_within, test_other"):
        built(tmp_path, train=data["train"], test={"data": "iso17-mini", "published": "test"})
    with pytest.raises(ConfigError, match="'ani-mini' has no published split"):
        built(tmp_path, train=data["train"], test={"data": "ani-mini", "published": "test"})


def test_published_parts_of_a_file(tmp_path):
    path = str(tmp_path / "marked.h5")
    splits.mark_parts(molecules(20), {"train": 14, "test": 6}).save(path)
    train, test = ({"data": path, "published": part} for part in ("train", "test"))
    e = built(tmp_path, train=train, test=test)
    assert (len(e.train), len(e.test)) == (14, 6)


def test_seeds_as_systems(tmp_path):
    """TIP3P in the masked paper: eight seeds to train on, one to validate, one to test."""
    parts = [
        {"data": "tip3p-mini", "part": {"fractions": [8, 1, 1], "by": "system", "index": k}}
        for k in range(3)
    ]
    e = built(tmp_path, train=parts[0], valid=parts[1], test=parts[2], labels=[1.0])
    train, valid = e.labelled(e.labels[0], seed=0)
    systems = [{s.system_names()[i] for i in s.system} for s in (train, valid, e.test)]
    assert [len(x) for x in systems] == [8, 1, 1]
    assert len(set.union(*systems)) == 10


def test_settings_of_labels_reach_the_runs(tmp_path, own):
    finetune = dict(
        references="isolated",
        isolated_energies={"H": -1.0, "C": -2.0, "O": -3.0},
        normalization="mean-std",
        optimizer="adam",
    )
    e = built(tmp_path, train={"data": own}, test={"data": own}, finetune=finetune)
    assert all(getattr(e.finetune_config, k) == v for k, v in finetune.items())


def test_a_comparison_normalises_as_it_says(tmp_path):
    """The denoise paper's two steps, from YAML to the weights of a run in the store."""
    e = built(
        tmp_path,
        train={"data": "ani-mini", "limit": 60},
        test={"data": "ani-mini", "limit": 5},
        labels=[40],
        supervised={"forces": 0},
        finetune=dict(
            steps=2, batch_size=4, device="cpu", references="isolated", normalization="mean-std"
        ),
    )
    row = experiment.run(e, progress=False).iloc[0]
    assert row["status"] == "ok", row["error"]
    model = checkpoints.load(tmp_path / "store" / row["run"])
    train, _ = e.labelled(40, seed=0)
    assert float(model.references[6]) == pytest.approx(LEVELS["GFN2-xTB"][6])
    left = train.energy - ReferenceEnergies.from_isolated("GFN2-xTB").energy(train)
    assert float(model.shift) == pytest.approx(left.mean())
    assert float(model.scale) == pytest.approx(left.std(ddof=1))


def test_groups_by_the_order_of_a_file(tmp_path, own):
    """What only the order of a file says follows its structures through filters and splits."""
    part = dict(data=own, part=PAPER | {"index": 0})
    groups = {"half": {"early": 19, "late": 19}}
    path = tmp_path / "x.yaml"
    values = dict(name="x", model=TINY, seeds=[0], longer=None, labels=[10])
    path.write_text(yaml.safe_dump(values | dict(train=part, test=part | dict(groups=groups))))
    spec = yaml_form.read(path)
    grid = spec.experiments(store=tmp_path / "store")
    [found] = spec.groups(grid)
    names = [grid[0].test.system_names()[i] for i in grid[0].test.system]
    assert found == {"half": [{"a": "early", "b": "late"}[name] for name in names]}
    wrong = {"half": {"early": 5}}, {"atoms": {"early": 38}}
    for groups, words in zip(wrong, ("5 structures, but .* has 38", "already"), strict=True):
        path.write_text(yaml.safe_dump(values | dict(train=part, test=part | dict(groups=groups))))
        with pytest.raises(ConfigError, match=words):
            yaml_form.read(path).groups(grid)


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(labels=[1.5]), "labels: 1.5"),
        (dict(valid={"data": "OWN"}, valid_by="system"), "valid_by has nothing to split"),
        (dict(valid_by="molecule"), "valid_by"),
        (dict(finetune={"references": "isolatd"}), "references"),
        (dict(test={"data": "OWN", "part": {"fractions": [1.0], "index": 1}}), "index 1"),
        (
            dict(test={"data": "OWN", "part": {"fractions": [1.0], "index": 0, "rounding": "up"}}),
            "rounding",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(tmp_path, own, changes, words):
    filled = yaml.safe_load(yaml.safe_dump(changes).replace("OWN", own))
    with pytest.raises(ConfigError) as caught:
        built(tmp_path, **{"train": {"data": own}, "test": {"data": own}, **filled})
    assert words in one_line(caught.value)


NOISE = {"objective": "denoise", "sigma": 0.1}


@pytest.mark.parametrize(
    "changes, words",
    [
        (dict(model=TINY | {"seed": 3}), "model has a seed"),
        (dict(finetune={"devices": 2}), "finetune.devices is 2"),
        (dict(pretrain={"nodes": 2}), "pretrain.nodes is 2"),
        (dict(arms={"a": NOISE | {"parts": None}}), "arm 'a': parts is a list"),
        (dict(arms={"a": NOISE | {"parts": "backbone"}}), "got 'backbone'"),
        (dict(arms={"a": NOISE | {"parts": [["backbone"]]}}), "takes over ['backbone']"),
        (dict(arms={"a": NOISE | {"parts": []}}), "arm 'a': parts is a list"),
        (dict(arms={"a": {"weights": "egnn-small-denoise", "parts": None}}), "parts is a list"),
        (dict(arms={"b": NOISE, "a": {"like": "b", "parts": "backbone"}}), "got 'backbone'"),
        (dict(arms={"b": NOISE, "a": {"like": "b", "parts": None}}), "arm 'a': parts is a list"),
        (dict(arms={"b": NOISE, "a": {"like": ["scratch"]}}), "is like ['scratch']"),
        (dict(arms={"b": NOISE, "a": NOISE | {"after": ["b"]}}), "goes on after ['b']"),
        (dict(arms={"a": NOISE | {"vector": "gradiant"}}), "arm 'a': unknown vector read-out"),
        (dict(arms={"a": NOISE | {"vector": ["gradient"]}}), "arm 'a': "),
        (dict(arms={"a": NOISE}, vectors={"a": "gradiant"}), "arm 'a': unknown vector read-out"),
        (dict(search={"lr": [[1], [2]]}, tuning_seeds=[5]), "search: config: lr"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_mistakes_in_arms_are_one_line_before_any_run(tmp_path, own, changes, words):
    data = {"data": own}
    with pytest.raises(ConfigError) as caught:
        built(tmp_path, train=data, test=data, pretrain_on=data, **changes)
    assert words in one_line(caught.value)


def test_combinations_of_the_grid_that_are_left_out(own):
    values = dict(name="x", model=TINY, longer=None, labels=[10], train={"data": own})
    values |= {"test": {"data": own}}
    names = {"a": {}, "b": {}}
    values["grid"] = {"network": names, "target": names, "width": {8: {}, 16: {}}}
    without = [{"network": "a", "target": "b"}, {"network": "b", "target": "b", "width": 16}]
    left = [tuple(columns.values()) for columns, _ in _specs(values | {"without": without})]
    every = [tuple(columns.values()) for columns, _ in _specs(values)]
    assert len(every) == 8
    assert set(every) - set(left) == {("a", "b", "8"), ("a", "b", "16"), ("b", "b", "16")}
    assert [cell for cell in every if cell in left] == left, "in the same order"


def _specs(values):
    return yaml_form.GridSpec(values).specs


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ([{"network": "c"}], "without: the grid has no network c"),
        ([{"net": "a"}], "without: the grid has no net a"),
        ([{}], "expected a list of combinations"),
        ({"network": "a"}, "expected a list of combinations"),
        ([{"network": "a"}, {"network": "b"}], "nothing of the grid is left"),
    ],
)
def test_what_cannot_be_left_out(own, without, said):
    values = dict(name="x", model=TINY, longer=None, labels=[10], train={"data": own})
    values |= {"test": {"data": own}, "grid": {"network": {"a": {}, "b": {}}}, "without": without}
    with pytest.raises(ConfigError, match=said) as error:
        yaml_form.GridSpec(values)
    one_line(error.value)
