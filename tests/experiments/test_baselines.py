"""Predictions without a network, and the mark on networks that are worse."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

import potkit
from potkit.cli import main as cli
from potkit.errors import ConfigError, DataError
from potkit.experiments import baselines
from potkit.experiments import experiment as experiments
from potkit.report import blocks
from potkit.report import tables as report
from potkit.structures.store import Structures


@pytest.fixture(scope="module")
def parts():
    return potkit.load("spice-mini").split((100, 20), seed=0)


def test_composition_and_zero_forces_are_what_they_say(parts):
    train, test = parts
    errors = baselines.errors(train, test)
    assert errors["zero forces"] == {
        "forces_mae": pytest.approx(np.abs(test.forces).mean(), rel=1e-6),
        "forces_rmse": pytest.approx(np.sqrt(np.square(np.float64(test.forces)).mean()), rel=1e-6),
    }
    counts = [
        np.stack([np.bincount(s.z[a:b], minlength=60) for a, b in pairwise(s.ptr)]) for s in parts
    ]
    solution = np.linalg.lstsq(counts[0].astype(float), train.energy, rcond=None)[0]
    expected = np.abs(counts[1] @ solution - test.energy).mean()
    assert (
        errors["composition"]["energy_mae"] == pytest.approx(expected, rel=1e-6)
        and "forces_mae" not in errors["composition"]
    )


def test_xtb_is_exact_on_labels_of_its_own(parts):
    """spice-mini is labelled by GFN2-xTB, so the method as it is has no error but rounding."""
    pytest.importorskip("tblite")
    errors = baselines.errors(parts[0][:30], parts[1][:6], ["GFN2-xTB"])["GFN2-xTB"]
    assert errors["forces_mae"] < 1e-3 and errors["energy_mae"] < 5e-3


def test_xtb_in_a_box_is_periodic():
    pytest.importorskip("tblite")
    z = [8, 1, 1]
    pos = np.array([[0.0, 0, 0], [0.76, 0.59, 0], [-0.76, 0.59, 0]])
    cell = np.eye(3)[None] * 5.0
    free, boxed, moved = (
        Structures(z, pos + shift, [0, 3], cell=c, pbc=None if c is None else [[True] * 3])
        for shift, c in ((0.0, None), (0.0, cell), (2.4, cell))
    )
    energies = [baselines.xtb(s)[0][0] for s in (free, boxed, moved)]
    assert (
        energies[1] == pytest.approx(energies[2], abs=1e-4)
        and abs(energies[0] - energies[1]) > 1e-3
    )


@pytest.mark.parametrize(
    "call, error, word",
    [
        (lambda a, b: baselines.errors(a, b, ["mean"]), ConfigError, "no baseline 'mean'"),
        (lambda a, b: baselines.errors(a[:0], b), DataError, "to train on"),
        (lambda a, b: baselines.errors(a[a.n_atoms < 0], b), DataError, "to train on"),
    ],
)
def test_mistakes_are_named(parts, call, error, word):
    with pytest.raises(error, match=word):
        call(*parts)


def summary(energies=(0.5, 0.3), forces=(0.4, 0.2)):
    rows = [
        {
            "labels": 10,
            "arm": arm,
            "metric": metric,
            "seeds": 3,
            "seconds": 1.0,
            "mean": value,
            "low": np.nan,
            "high": np.nan,
        }
        for metric, values in (("forces_mae", forces), ("energy_mae", energies))
        for arm, value in zip(("scratch", "denoise"), values, strict=True)
    ]
    return pd.DataFrame(rows)


def known(composition=0.4, zero=0.7):
    rows = [("composition", "energy_mae", composition), ("zero forces", "forces_mae", zero)]
    return pd.DataFrame([{"labels": 10, "baseline": b, "metric": m, "mean": v} for b, m, v in rows])


def test_a_network_worse_than_a_baseline_is_marked():
    table = report.wide(summary(), baselines=known()).set_index("arm")
    assert table["energy MAE (meV)"].to_dict() == {
        "scratch": "500.0 †",
        "denoise": "300.0",
        "composition": "400.0",
        "zero forces": "",
    }
    assert table.loc["zero forces", "force MAE (meV/Å)"] == "700.0" and "†" not in "".join(
        table["force MAE (meV/Å)"]
    )
    beside = report.across(summary(), "energy_mae", known())
    assert list(beside) == ["labels; energy MAE (meV)", "scratch", "denoise", "composition"]
    assert beside.iloc[0].tolist() == [10, "500.0 †", "300.0", "400.0"]
    assert report.wide(summary())["arm"].tolist() == ["scratch", "denoise"]


def test_stored_baselines_stand_in_the_documents(tmp_path):
    report.store(summary(), "study", "potkit compare study.yaml", tmp_path)
    report.store(known(), "study-baselines", "potkit baselines study.yaml", tmp_path)
    for kind in ("results", "across"):
        text = blocks.fill(f"<!-- {kind}: study -->\n<!-- end -->", tmp_path)
        assert "500.0 †" in text and "† a larger mean error" in text and "composition" in text


SPEC = """
name: tiny
model: {name: egnn, preset: small, hidden: 8, layers: 1}
train: {data: ani-mini, limit: 60}
test: {data: ani-mini, limit: 30, systems: [C, CC]}
labels: [20, 40]
seeds: [0, 1]
longer: null
"""


def test_baselines_of_an_experiment_have_its_labels(tmp_path, capsys):
    (tmp_path / "tiny.yaml").write_text(SPEC)
    with pytest.raises(SystemExit) as ended:
        cli.main(["baselines", str(tmp_path / "tiny.yaml"), "--out", str(tmp_path)])
    assert not ended.value.code and "composition" in capsys.readouterr().out
    table, how = report.stored("tiny-baselines", tmp_path)
    assert how["command"].startswith("potkit baselines") and table["labels"].unique().tolist() == [
        20,
        40,
    ]
    structures = potkit.load("ani-mini")
    experiment = experiments.Experiment(
        model={"name": "egnn"},
        train=structures[:60],
        test=structures[60:90],
        labels=[20],
        seeds=[0, 1],
        longer=None,
    )
    row = baselines.of_experiments([experiment]).set_index(["baseline", "metric"])["mean"]
    each = []
    for seed in (0, 1):
        train, valid = experiment.labelled(20, seed)
        each.append(baselines.errors(train + valid, experiment.test)["composition"]["energy_mae"])
    assert row["composition", "energy_mae"] == pytest.approx(np.sqrt(each[0] * each[1]))


# -- rows that are written down ------------------------------------------------------------------
@pytest.mark.parametrize("rows, written", [([3], "3"), ([8, 0, 1, 2, 11, 8], "0-2 8 11")])
def test_rows_are_written_as_stretches(rows, written):
    assert baselines._ranges(rows) == written
    assert baselines._rows(written, 12, "a set").tolist() == sorted(set(rows))


@pytest.mark.parametrize(
    "written, said", [("0-x", "rows such as"), ("", "rows such as"), ("4 12", "row 12 is beyond")]
)
def test_rows_that_are_none_are_told(written, said):
    with pytest.raises(DataError, match=f"a set: {said}"):
        baselines._rows(written, 12, "a set")
