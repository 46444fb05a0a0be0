"""Stored tables follow from stored runs; what was changed by hand is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from potkit.cli import main as cli
from potkit.errors import DataError
from potkit.report import blocks, verify

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "data" / "results"


@pytest.fixture
def copied(tmp_path):
    """One stored experiment with all its derived tables, and a document that shows one of them."""
    name = "denoise-dipeptides-curve"
    for path in RESULTS.glob(f"{name}*"):
        shutil.copy(path, tmp_path / path.name)
    block = f"# Results\n<!-- effects: {name}-effects -->\n<!-- end -->\n"
    (tmp_path / "README.md").write_text(blocks.fill(block, tmp_path))
    return tmp_path, name


def test_everything_committed_follows_from_its_runs():
    found = verify.verify(RESULTS, ROOT)
    assert found.holds, "potkit verify --rewrite\n" + found.differences.to_string()
    assert len(found.tables) >= 14 and found.cells > 10_000 and "README.md" in found.documents


def test_a_number_changed_by_hand_is_named(copied):
    folder, name = copied
    assert verify.verify(folder, folder).holds
    table = pd.read_csv(folder / f"{name}.csv")
    table.loc[3, "mean"] *= 1.001
    table.to_csv(folder / f"{name}.csv", index=False)
    text = (folder / f"{name}-curves.csv").read_text()
    assert "66 (< 25 to > 400)" in text
    (folder / f"{name}-curves.csv").write_text(text.replace("66 (< 25", "56 (< 25"))
    document = folder / "README.md"
    document.write_text(document.read_text().replace("+2 %", "+1 %", 1))
    found = verify.verify(folder, folder)
    assert found.differences["where"].tolist() == [f"{name}.csv", f"{name}-curves.csv", "README.md"]
    first = found.differences.iloc[0]
    assert (first["row"], first["column"]) == (3, "mean")
    assert found.differences.iloc[1]["recomputed"] == "66 (< 25 to > 400)"
    assert "3 differences" in str(found)


def test_runs_that_changed_are_noticed_and_rewritten(copied):
    folder, name = copied
    runs = pd.read_csv(folder / f"{name}-runs.csv")
    runs.loc[0, "forces_mae"] *= 1.2
    runs.to_csv(folder / f"{name}-runs.csv", index=False)
    assert not verify.verify(folder, folder).holds
    before = json.loads((folder / f"{name}.json").read_text())
    written = {path.name for path in verify.rewrite(folder, folder)}
    assert written >= {f"{name}.csv", f"{name}-effects.csv", "README.md"}
    assert verify.verify(folder, folder).holds and not verify.rewrite(folder, folder)
    after = json.loads((folder / f"{name}.json").read_text())
    assert after.pop("derived")["from"] == f"{name}-runs.csv"
    before.pop("derived", None)
    assert after == before, "where the runs come from stays"


def test_a_missing_column_or_row_is_a_difference():
    table = pd.DataFrame({"a": [1.0, 2.0], "change_%": [0.001, None]})
    assert not verify.differences(table, table.assign(**{"change_%": [0.002, None]}))
    assert verify.differences(table, table.drop(columns="a"))[0]["recomputed"] == "missing"
    assert verify.differences(table, table[:1])[0]["column"] == "rows"
    assert verify.differences(table, table.assign(**{"change_%": [0.001, 1.0]}))


@pytest.mark.parametrize(
    "before, after, agree",
    [
        ("66 (< 25 to > 400)", "67 (< 25 to > 400)", True),
        ("66 (< 25 to > 400)", "68 (< 25 to > 400)", False),
        ("66 (< 25 to > 400)", "66 (25 to > 400)", False),
        ("-0.20 (-0.31 to 0.02)", "-0.21 (-0.31 to 0.02)", True),
        ("not told from 0 (−15 to +13 %)", "not told from 0 (−15 to −13 %)", False),
    ],
)
def test_words_agree_but_for_the_last_place(before, after, agree):
    assert verify._words_agree(before, after) is agree


def test_tables_without_runs_are_listed(copied):
    folder, name = copied
    (folder / "alone.csv").write_text("a\n1\n")
    assert verify.verify(folder, folder).without_runs == ["alone", f"{name}-baselines"]


def test_the_command_says_what_differs(copied, capsys):
    folder, name = copied
    where = ["--results", str(folder), "--root", str(folder)]
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", *where])
    assert not ended.value.code and "no difference" in capsys.readouterr().out
    runs = pd.read_csv(folder / f"{name}-runs.csv")
    runs[runs["seed"] < 2].to_csv(folder / f"{name}-runs.csv", index=False)
    with pytest.raises(SystemExit) as ended:
        cli.main(["verify", *where])
    assert ended.value.code == 1 and "do not follow from the stored runs" in capsys.readouterr().err
    with pytest.raises(DataError, match="no such folder"):
        verify.verify(folder / "nowhere")
    with pytest.raises(DataError, match="no stored runs"):
        (folder / "empty").mkdir()
        verify.verify(folder / "empty")


def test_tables_of_stored_predictions_are_rewritten_too(tmp_path):
    for path in RESULTS.glob("calibration*"):
        shutil.copy(path, tmp_path / path.name)
    shutil.copy(RESULTS / "study-denoise-runs.csv", tmp_path)  # verify wants runs of something
    shutil.copy(RESULTS / "study-denoise-runs.json", tmp_path)
    table = pd.read_csv(tmp_path / "calibration-ensembles.csv")
    right = table["high"].copy()
    table.loc[0, "high"] *= 1.1
    table.to_csv(tmp_path / "calibration-ensembles.csv", index=False)
    [written] = verify.rewrite(tmp_path, tmp_path)
    assert written.name == "calibration-ensembles.csv"
    again = pd.read_csv(written)["high"]
    pd.testing.assert_series_equal(again, right)
