"""Profile paper against the papers: settings typed once with their source, splits, and what each
data set gets; and that what is a guess says so.
"""

from __future__ import annotations

import ast
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import potkit
from potkit.datasets import splits
from potkit.experiments import yaml_form
from potkit.experiments.experiment import Experiment
from potkit.experiments.given_validation import GivenValidation
from potkit.notebooks import dynamics_profiles, profiles, runner
from potkit.training.config import TrainConfig
from potkit.training.normalization import normalization

BOOKS = {p.name[:2]: p for p in Path(__file__).parents[2].glob("notebooks/[0-9]*.ipynb")}
SHARED = {"MOLECULES": profiles.MOLECULES, "WATER": profiles.WATER, "RMD17": profiles.RMD17}

# The papers and their published configurations: D denoise, M masked. Numbers are typed here once
# and nowhere read from the profiles.
ANI = dict(
    batch_size=256,  # D §3.2
    lr=2e-4,  # D configuration
    min_lr=1e-7,  # D configuration
    weight_decay=0.0,  # D §3.2
    clip=None,  # no clipping in D's code
    optimizer="adamw",  # D §3.2
    schedule="cosine",  # D §3.2
    validate_epochs=1,  # D code
)
LABELS = dict(epochs=10, warmup=0.03, flat=0.07)  # D §3.2; 0.3 and 0.7 epochs, D configuration
STORED = dict(epochs=50, warmup=0.006, flat=0.014)  # D §3.2
WATER = dict(
    batch_size=16,  # M §2.5
    lr=1e-4,  # M §2.5
    min_lr=1e-7,  # M §2.5
    weight_decay=1e-4,  # M §2.5
    clip=None,  # no clipping in M's code
    warmup=0.0,  # M configuration
    flat=0.0,  # M configuration
    schedule="cosine",  # M configuration
    validate_epochs=1,  # M code
)
MD17 = WATER | dict(batch_size=32, min_lr=5e-5)  # M §3.5
PRETRAINING = {
    ("MOLECULES", "ani-1 + ani-1x"): ANI | dict(epochs=5, warmup=0.14, flat=0.06),  # D §3.2
    # M §2.5; Adam with L2, M pretraining code
    ("WATER", "rpbe-water"): WATER | dict(epochs=100, optimizer="adam", valid_fraction=0.1),
    ("WATER", "tip3p-mini"): WATER | dict(epochs=25, batch_size=10, optimizer="adam"),
    ("RMD17", "rmd17"): MD17 | dict(epochs=15, optimizer="adam"),  # M §3.5
}
AS_STORED = ANI | STORED | dict(references="none", normalization="mean-std")  # D code
FINETUNING = {
    # D code: isolated atoms for ANI only
    ("MOLECULES", "ani-1"): ANI | LABELS | dict(references="isolated", normalization="mean-std"),
    ("MOLECULES", "ani-1x"): ANI | LABELS | dict(references="isolated", normalization="mean-std"),
    ("MOLECULES", "iso17"): AS_STORED,
    ("MOLECULES", "spice-1"): AS_STORED,
    ("MOLECULES", "md22"): AS_STORED,
    # M §2.5; AdamW and normalisation, M fine-tuning code
    ("WATER", "rpbe-water"): WATER
    | dict(epochs=300, references="none", normalization="per-atom-mean-std", optimizer="adamw"),
    ("WATER", "tip3p-mini"): WATER
    | dict(
        epochs=50, batch_size=10, references="none", normalization="mean-std", optimizer="adamw"
    ),
    # M §3.5
    ("RMD17", "rmd17"): MD17
    | dict(epochs=200, references="none", normalization="mean-std", optimizer="adam"),
}
LOSSES = {
    "MOLECULES": dict(energy=1, forces=0, loss_function="mse"),  # D §2.5
    "WATER": dict(energy=1, forces=500, loss_function="l1"),  # M configuration
    "RMD17": dict(energy=15, forces=40, loss_function="l1"),  # M §3.5
}


def paper(shared: str) -> SimpleNamespace:
    return SimpleNamespace(**SHARED[shared]["paper"])


def named(name: str) -> SimpleNamespace:
    """What `profiles.for_set` looks at of a data set."""
    return SimpleNamespace(info={"name": name})


@pytest.mark.parametrize("stage, table", [("pretrain", PRETRAINING), ("finetune", FINETUNING)])
def test_training_is_the_papers(stage, table):
    for (shared, data), expected in table.items():
        config = TrainConfig(**profiles.for_set(paper(shared), named(data), stage))
        wrong = {k: getattr(config, k) for k, v in expected.items() if getattr(config, k) != v}
        assert not wrong, (stage, shared, data, wrong)


@pytest.mark.parametrize("shared", SHARED)
def test_losses_are_the_papers(shared):
    assert paper(shared).supervised == LOSSES[shared]


def test_scratch_longer_of_the_masked_paper_counts_steps():
    """300 + 100 and 50 + 25 epochs, its Fig. 2."""
    run = paper("WATER")
    assert run.longer == "steps"
    for data, n, total in (("rpbe-water", 5_866, 400), ("tip3p-mini", 8_000, 75)):
        # both stages train on what the split leaves for training
        stages = [
            TrainConfig(**profiles.for_set(run, named(data), s)) for s in ("pretrain", "finetune")
        ]
        steps = sum(config.total_steps(n) for config in stages)
        assert steps * stages[0].batch_size / n == pytest.approx(total, rel=1e-3)


@pytest.mark.parametrize("number", sorted(BOOKS))
def test_no_paper_profile_clips_gradients(number, monkeypatch):
    """Also not where a notebook changes the shared settings."""
    monkeypatch.delenv("POTKIT_PROFILE", raising=False)
    source = runner.tagged(BOOKS[number], "setup")[0]
    space: dict[str, Any] = {}
    exec(runner.tagged(BOOKS[number], "parameters")[0], space)
    space["profile"] = "paper"
    for statement in ast.parse(source).body:
        exec(compile(ast.Module([statement], []), number, "exec"), space)
        if "run" in space:
            break
    run = space["run"]
    tables = [vars(run), getattr(run, "organic", {})]
    if number == "09":  # its networks are those of other notebooks
        tables = [vars(dynamics_profiles._shared("MOLECULES", run))]
    found = [t[stage] for t in tables for stage in ("pretrain", "finetune") if stage in t]
    assert all("clip" in table and table["clip"] is None for table in found)
    assert found or number == "01"


# -- guesses -------------------------------------------------------------------------------------
def entry(settings: dict[str, Any], key: str) -> Any:
    """The setting that a dotted key names, such as by_set.md22.finetune.epochs; else KeyError."""
    for word in key.split("."):
        settings = settings[word]
    return settings


@pytest.mark.parametrize("shared", SHARED)
@pytest.mark.parametrize("profile", runner.PROFILES)
@pytest.mark.parametrize("table", ["guesses", "remarks"])
def test_guesses_and_remarks_name_settings(shared, profile, table):
    settings = SHARED[shared][profile]
    for key, reason in settings[table].items():
        entry(settings, key)
        assert len(reason.split()) >= 5, f"{key}: a reason in words"


def test_what_nobody_states_is_marked():
    assert "by_set.md22.finetune.epochs" in profiles.MOLECULES["paper"]["guesses"]
    assert "network.preset" in profiles.RMD17["paper"]["guesses"]
    with pytest.raises(KeyError):
        entry(profiles.MOLECULES["paper"], "by_set.md23.finetune.epochs")


# -- splits --------------------------------------------------------------------------------------
def renamed(name: str, source: str, first: int | None = None) -> potkit.Structures:
    """The first structures (or all) of an embedded set under the name of the public one it stands
    for.
    """
    s = potkit.load(source)
    s = s if first is None else s[:first]
    s.info["name"] = name
    return s


def counts(s: potkit.Structures, systems: int) -> list[int]:
    return np.bincount(s.system, minlength=systems).tolist()


def test_the_denoise_papers_split_within_each_molecule():
    whole = renamed("ani-1x", "ani-mini", 3000)
    run = paper("MOLECULES")
    pool, test = profiles.pool_and_test(run, whole)
    experiment = profiles.experiment(
        SimpleNamespace(**vars(run) | {"labels": [1.0], "seeds": [0]}),
        "cpu",
        model={"name": "egnn"},
        train=pool,
        test=test,
    )
    assert isinstance(experiment, GivenValidation)
    train, valid = experiment.labelled(experiment.labels[0], seed=0)
    n = max(whole.system) + 1
    size = np.array(counts(whole, n))
    tenth = np.floor(0.1 * size).astype(int)
    assert counts(valid, n) == counts(test, n) == tenth.tolist()
    assert counts(train, n) == (size - 2 * tenth).tolist()
    everything = np.concatenate([train.energy, valid.energy, test.energy])
    assert sorted(everything) == sorted(whole.energy)
    assert experiment.finetune_config.references == "isolated"


@pytest.mark.parametrize("profile", ["smoke", "quick"])
@pytest.mark.parametrize("shared", ["MOLECULES", "WATER"])
def test_other_profiles_split_as_before(shared, profile):
    run = SimpleNamespace(**SHARED[shared][profile])
    whole = potkit.load(run.data)
    pool, test = profiles.pool_and_test(run, whole)
    before = whole.split(tuple(run.parts), seed=0, by=run.split)
    assert [x.fingerprint() for x in (pool, test)] == [x.fingerprint() for x in before]
    experiment = profiles.experiment(
        SimpleNamespace(**vars(run) | {"labels": [20]}),
        "cpu",
        model={"name": "egnn"},
        train=pool,
        test=test,
    )
    assert type(experiment) is Experiment
    assert experiment.finetune_config == TrainConfig(**run.finetune, device="cpu")


STAND_INS = {
    "ani-1": ("ani-mini", 400),
    "ani-1x": ("ani-mini", 500),
    "iso17": ("iso17-mini", None),
    "spice-1": ("spice-mini", 400),
    "md22": ("md22-mini", None),
    "rpbe-water": ("water-mini", None),
    "tip3p-mini": ("tip3p-mini", None),
    "rmd17": ("rmd17-mini", None),
}


@pytest.fixture(autouse=True)
def figures_elsewhere(monkeypatch, tmp_path):
    """Cells that draw before anything is trained must not leave pictures in the checkout."""
    monkeypatch.setenv("POTKIT_FIGURES", str(tmp_path / "figures"))


def in_profile_paper(number: str, monkeypatch, upto: str) -> dict[str, Any]:
    """The names of a notebook in profile paper after its set-up and the cells up to the one that
    assigns ``upto``; embedded sets stand for the public ones.
    """

    def stand_in(data: str, read: dict | None = None) -> potkit.Structures:
        name = "tip3p-mini" if data == "$POTKIT_DATA/tip3p.h5" else data
        s = renamed(name, *STAND_INS[name])
        if name == "md22":  # a molecule that the embedded set does not have
            systems = s.system_names()
            s.info["systems"] = ["buckyball-catcher" if x == "DHA" else x for x in systems]
        return s

    monkeypatch.setattr(yaml_form, "named_or_file", stand_in)
    monkeypatch.delenv("POTKIT_PROFILE", raising=False)
    space: dict[str, Any] = {}
    exec(runner.tagged(BOOKS[number], "parameters")[0], space)
    space |= {"profile": "paper", "device": "cpu"}
    for source in runner.tagged(BOOKS[number], "setup"):
        exec(source, space)
    for cell in runner.read(BOOKS[number]).cells:
        tags = cell.metadata.get("tags", [])
        if cell.cell_type != "code" or tags or runner.CHECKED in cell.source:
            continue
        for statement in ast.parse(cell.source).body:
            names = {getattr(t, "id", None) for t in getattr(statement, "targets", [])}
            names |= {getattr(statement, "name", None)}
            exec(compile(ast.Module([statement], []), number, "exec"), space)
            if upto in names:
                return space
    raise AssertionError(f"notebook {number} has no {upto}")


def test_notebook_04_trains_on_the_published_split_of_iso17(monkeypatch):
    space = in_profile_paper("04", monkeypatch, "experiment")
    whole = renamed("iso17", "iso17-mini")
    rows = splits.parts(whole)
    experiment = space["experiment"]("iso17", "schnet")
    train, valid = experiment.labelled(experiment.labels[0], seed=0)
    for got, part in ((train, "train"), (valid, "valid"), (experiment.test, "test_other")):
        assert sorted(got.energy) == sorted(whole.energy[rows[part]]), part
    chosen = {
        name: space["experiment"](name, "schnet").finetune_config.references
        for name in space["targets"]
    }
    assert set(chosen.values()) == {"none"} and len(chosen) > 3


def test_notebook_06_keeps_the_seeds_of_tip3p_apart(monkeypatch):
    space = in_profile_paper("06", monkeypatch, "experiment")
    tip3p, rpbe = (space["experiment"](name, "egnn") for name in ("TIP3P", "RPBE-D3"))
    train, valid = tip3p.labelled(tip3p.labels[0], seed=0)
    seeds = [set(s.system) for s in (train, valid, tip3p.test)]
    assert [len(x) for x in seeds] == [8, 1, 1] and len(set.union(*seeds)) == 10
    assert (tip3p.pretrain_config.epochs, tip3p.pretrain_config.batch_size) == (25, 10)
    assert tip3p.finetune_config.normalization == "mean-std"
    train, valid = rpbe.labelled(rpbe.labels[0], seed=0)
    n = len(train) + len(valid) + len(rpbe.test)
    shares = np.array([len(train), len(valid), len(rpbe.test)]) / n
    np.testing.assert_allclose(shares, [0.81, 0.09, 0.10], atol=2 / n)
    assert (rpbe.pretrain_config.epochs, rpbe.pretrain_config.batch_size) == (100, 16)


@pytest.mark.parametrize("number, cases", [("02", 1), ("03", 1), ("05", 4)])
def test_other_notebooks_fit_their_data_in_profile_paper(number, cases, monkeypatch):
    """A whole budget is the papers' split, and its training part can be normalised."""
    space = in_profile_paper(number, monkeypatch, "experiment")
    made = space["experiment"]
    experiments = [made(name) for name in space["targets"]] if callable(made) else [made]
    assert len(experiments) == cases
    for e in experiments:
        assert isinstance(e, GivenValidation)
        train, valid = e.labelled(e.labels[-1], seed=0)
        assert len(train) + len(valid) == len(e.train)
        assert len(valid) == pytest.approx(len(e.test), rel=0.15, abs=2)
        wanted = {"ani-1x": "isolated"}.get(e.train.info["name"], "none")
        assert e.finetune_config.references == wanted
        assert normalization(train, e.finetune_config).scale > 0


def test_the_labels_of_every_set_can_be_normalised_as_its_profile_says(monkeypatch):
    """Isolated atoms are known where they are asked for; the stand-ins have the same elements."""
    for shared, data in FINETUNING:
        s = renamed(data, *STAND_INS[data])
        config = TrainConfig(**profiles.for_set(paper(shared), s, "finetune"))
        assert normalization(s, config).scale > 0
