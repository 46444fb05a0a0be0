"""The experiments that come with the package: all can be built, shrunk, on embedded data; some are
run; names are found and misspelt ones answered.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from potkit.cli.main import main
from potkit.datasets import splits
from potkit.errors import ConfigError
from potkit.experiments import experiment, shipped, yaml_form
from potkit.experiments.given_validation import GivenValidation

RDKIT = "denoise-figure2-spice"  # its stand-in's formal charges are read from names by RDKit
# run by a test; between them all networks, both waters, published parts, shares of labels, longer
RUN = (
    "denoise-table2",
    "denoise-figure2-iso17",
    RDKIT,
    "denoise-figure4",
    "masked-table1-rpbe",
    "masked-text-ratio",
)


def small(name: str) -> yaml_form.GridSpec:
    if name == RDKIT:
        pytest.importorskip("rdkit")
    return shipped.smoke(shipped.read(name))


@pytest.mark.parametrize("name", shipped.names())
def test_every_one_can_be_built_on_embedded_data(name, tmp_path):
    whole = shipped.read(name)
    built = small(name).experiments(store=tmp_path)
    assert len(built) == len(whole.specs)
    for e, (_, spec) in zip(built, whole.specs, strict=True):
        assert isinstance(e, GivenValidation), "train and valid are named"
        assert set(spec.arms) == set(e.objectives)
        assert len(e.train) <= 10 and len(e.test) <= 4
        assert e.finetune_config.steps == 2 and e.finetune_config.epochs is None
        assert e.finetune_config.lr == spec.finetune["lr"], "what is no size stays"


@pytest.mark.parametrize("name", RUN)
def test_some_are_run(name, tmp_path):
    grid = small(name)
    built = grid.experiments(store=tmp_path)
    runs = experiment.run(built, progress=False)
    assert (runs["status"] == "ok").all(), runs["error"].unique()
    assert len(runs) == sum(len(e.labels) * len(e.arms) for e in built)
    assert np.isfinite(runs["energy_rmse"]).all()


def test_scratch_trains_longer_in_figure_2(tmp_path):
    """The masked paper's 400 epochs: the pretraining's steps on top."""
    grid = small("masked-figure2")
    grid.specs = [s for s in grid.specs if s[0] == {"data": "RPBE", "model": "egnn"}]
    runs = experiment.run(grid.experiments(store=tmp_path), progress=False)
    assert (runs["status"] == "ok").all(), runs["error"].unique()
    steps = runs.set_index("arm")["steps"]
    assert steps["scratch-longer"] == 4 and steps["scratch"] == steps["masked"] == 2


@pytest.mark.parametrize("name", shipped.names())
def test_first_line_name_and_sources(name):
    text = shipped.find(name).read_text(encoding="utf-8")
    paper = "Denoise" if name.startswith("denoise") else "Masked"
    assert shipped.title(name).startswith(f"{paper} paper, ") and shipped.title(name).endswith(".")
    assert re.search(rf"^name: {name}$", text, re.M)
    letter = paper[0]
    for key in ("epochs", "batch_size", "lr", "min_lr", "weight_decay", "clip", "warmup", "flat"):
        lines = re.findall(rf"^  {key}: .*$", text, re.M)
        assert len(lines) == 2, "pretrain and finetune"
        assert all(re.search(rf"# .*(?:\b{letter}\b|a guess)", line) for line in lines), lines


def command(*words: str) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(words))
    assert not end.value.code


def guesses_in(text: str) -> int:
    settings = text.partition("\nnotes:")[0]
    return sum("guess" in line for line in settings.splitlines()[3:])


@pytest.mark.parametrize("name", shipped.names())
def test_a_guess_is_one_in_its_notes_too(name):
    """Comments are for people, notes go into the record of the results."""
    text = shipped.find(name).read_text(encoding="utf-8")
    notes = [note for _, spec in shipped.read(name).specs for note in spec.notes.values()]
    assert bool(guesses_in(text)) <= any("guess" in note for note in notes)


def test_pretraining_of_the_masked_paper_sees_no_test_structure(tmp_path):
    """Its splits for pretraining and fine-tuning are written apart and must fit together."""
    for name, stand_in in (
        ("masked-table1-rpbe", "water-mini"),
        ("masked-table1-tip3p", "tip3p-mini"),
        ("masked-table2", "rmd17-mini"),
    ):
        _, spec = shipped.read(name).specs[0]
        structures = yaml_form.named_or_file(stand_in)

        def energies(data, structures=structures):
            part = data.part
            if part.fractions[0] in (50_000, 51_000):  # a thousandth of rMD17's
                counts = [n and n // 1000 for n in part.fractions]
                part = part.model_copy(update=dict(fractions=counts))
            rows = splits.split(
                structures, part.fractions, part.seed, part.by, rounding=part.rounding
            )
            return set(rows[part.index])

        learned = energies(spec.train) | energies(spec.valid)
        assert energies(spec.pretrain_on) == learned
        assert not learned & energies(spec.test)


def test_a_file_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert shipped.find("denoise-table2") == shipped.FOLDER / "denoise-table2.yaml"
    Path("denoise-table2").write_text("name: mine\n")
    assert shipped.find("denoise-table2") == Path("denoise-table2")


@pytest.mark.parametrize(
    "text, words",
    [
        ("denoise-tabel2", "did you mean denoise-table2?"),
        ("maskd-figure3.yaml", "did you mean masked-figure3"),
        ("figure2", "denoise-figure2-iso17 or denoise-figure2-spice or masked-figure2?"),
        ("nothing", "`potkit specs` lists those there are"),
    ],
)
def test_an_unknown_name_is_one_clear_line(text, words, capsys):
    with pytest.raises(ConfigError, match="neither a file nor an experiment"):
        shipped.find(text)
    with pytest.raises(SystemExit):
        main(["compare", text])
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_the_list_has_a_line_each(capsys):
    command("specs")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == shipped.names()
    assert set(shipped.table()["name"]) == set(shipped.names())


def test_missing_data_say_how_to_get_them(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("POTKIT_DATA", str(tmp_path))
    monkeypatch.delenv("POTKIT_REFERENCE_DATA", raising=False)
    with pytest.raises(SystemExit):
        main(["compare", "denoise-table2", "--store", str(tmp_path / "store")])
    assert "potkit data fetch ani-1" in capsys.readouterr().err


def test_smoke_from_the_command_line(capsys, tmp_path):
    """Stored under a name of its own, so that it never stands for the real one."""
    store, out = str(tmp_path / "store"), str(tmp_path / "out")
    command("compare", "masked-text-oxygen", "--smoke", "--store", store, "--out", out)
    said = capsys.readouterr().out
    assert "all 3 runs ended well; their numbers say nothing" in said
    assert "%" not in said and "meV" not in said, "no verdict"
    assert (tmp_path / "out" / "masked-text-oxygen-smoke.csv").is_file()


def test_smoke_takes_any_experiment(repository, tmp_path):
    """Also one that names no validation structures, on data that come with the package."""
    whole = shipped.read(repository / "data" / "results" / "masked-water.yaml")
    built = shipped.smoke(whole).experiments(store=tmp_path)
    assert [e.columns for e in built] == [columns for columns, _ in whole.specs]
    assert all(len(e.train) == 6 and e.labels == [4, 5] for e in built)


def test_smoke_needs_a_network_it_knows():
    columns, spec = shipped.read("denoise-figure5").specs[0]
    grid = shipped.read("denoise-figure5")
    grid.specs = [(columns, spec.model_copy(update=dict(model={"name": "mine"})))]
    with pytest.raises(ConfigError, match="no small form of the network 'mine'"):
        shipped.smoke(grid)


def test_they_are_in_the_wheel(repository, monkeypatch):
    """What setuptools takes along as data of the package."""
    setuptools = pytest.importorskip("setuptools")
    from setuptools.command.build_py import build_py

    monkeypatch.chdir(repository)
    distribution = setuptools.Distribution()
    distribution.parse_config_files()
    command = build_py(distribution)
    command.finalize_options()
    command.manifest_files = {}  # what git knows does not count
    taken = {Path(file).name for file in command.find_data_files("potkit", "potkit")}
    assert {f"{name}.yaml" for name in shipped.names()} <= taken


def test_several_sets_and_formal_charges_in_yaml(tmp_path):
    both = yaml_form.DataSpec(data=["ani-mini", "iso17-mini"], limit=5, formal_charges="neutral")
    structures = both.load()
    assert len(structures) == 5 and not structures.formal_charge.any()
    with pytest.raises(ConfigError, match="one of a single set"):
        yaml_form.DataSpec(data=["iso17-mini", "ani-mini"], published="train").load()
    with pytest.raises(ConfigError, match="at least one"):
        yaml_form.DataSpec(data=[]).load()
