"""The map of the two papers: nothing of them is left out, what it names exists, its numbers are the
stored ones.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from potkit.errors import DataError
from potkit.experiments import shipped
from potkit.models import faults as network_faults
from potkit.objectives import faults as objective_faults
from potkit.report import blocks, paper_map, tables

ROOT = Path(__file__).resolve().parents[2]
RESULTS_FOLDER = ROOT / "data" / "results"
PAGE = ROOT / "docs" / "papers.md"
# what the two papers have; S4 to S6 are named in the text
EXPECTED = {
    "denoise": [
        "Table 1",
        "Table 2",
        "Figure 1",
        "Figure 2",
        "Figure 3",
        "Figure 4",
        "Figure 5",
        "S4",
        "S5",
        "S6",
    ],
    "masked": [
        "Table 1, RPBE",
        "Table 1, TIP3P",
        "Table 2",
        "Figure 1",
        "Figure 2",
        "Figure 3",
        "§3.2: convergence",
        "Table 1: spread",
        "§3.1: batches",
        "§3.2: ForceNet",
        "§2.2: oxygen",
        "§3.5, S1: ratio",
    ],
}


@pytest.mark.parametrize("paper", EXPECTED)
def test_no_table_or_figure_is_left_out(paper):
    names = [item.name for item in paper_map.ITEMS if item.paper == paper]
    for expected in EXPECTED[paper]:
        assert any(name.startswith(expected) for name in names), expected


def test_every_shipped_experiment_is_in_the_map():
    """And every one that the map names is shipped."""
    named = {name for item in paper_map.ITEMS for name in item.specs}
    assert named == set(shipped.names())


@pytest.mark.parametrize("item", paper_map.ITEMS, ids=lambda item: f"{item.paper} {item.name}")
def test_what_an_item_names_exists(item):
    if item.notebook:
        assert (ROOT / "notebooks" / f"{item.notebook}.ipynb").is_file()
    for figure in item.figures:
        assert (ROOT / "figures" / f"{figure}.png").is_file(), figure
    for name, arms in item.stored.items():
        assert (RESULTS_FOLDER / f"{name}.csv").is_file(), name
        assert paper_map.ours_in_words(name, arms, RESULTS_FOLDER, item.only.get(name))
    assert item.only.keys() <= item.stored.keys()
    assert all(name.startswith(item.paper) for name in item.specs)
    assert paper_map.theirs_in_words(item)
    assert bool(item.specs) == bool(item.needs), "what is a run needs something"


def test_a_stored_run_of_its_own_goes_first(tmp_path):
    """Once an experiment of a paper has been run, the map says its numbers, and needs no more."""
    summary = pd.DataFrame(
        [
            dict(arm="scratch", labels=9, metric="energy_mae", seeds=2, mean=1.0),
            dict(arm="denoise", labels=9, metric="energy_mae", seeds=2, mean=0.8),
        ]
    ).assign(low=0.5, high=1.5, seconds=1.0, failed=0)
    summary["change_%"] = [float("nan"), -20.0]
    summary["change_low_%"], summary["change_high_%"] = -30.0, -10.0
    tables.store(summary, "denoise-figure5", "a command", tmp_path)
    words = paper_map.ours_in_words("denoise-figure5", None, tmp_path)
    assert words == "`denoise-figure5` at 9 labels, energy MAE: denoise -20 % (-30 to -10)"
    for name in {name for item in paper_map.ITEMS for name in item.stored}:
        for path in RESULTS_FOLDER.glob(f"{name}*"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    row = paper_map.table(tmp_path).set_index("item").loc["Figure 5: the noise scale σ"]
    assert row["ours"].startswith(words) and row["not run here, needs"] == ""
    assert "near it: `alkanes-to-3bpa`" in row["ours"]


def test_numbers_are_the_stored_ones():
    effects, _ = tables.stored("masked-water-effects", RESULTS_FOLDER)
    row = effects[
        (effects.model == "egnn")
        & (effects.arm == "masked")
        & (effects.metric == "forces_mae")
        & (effects.against == "scratch")
    ].iloc[0]
    words = paper_map.ours_in_words("masked-water", ("masked",), RESULTS_FOLDER)
    assert f"egnn masked {row['change_%']:+.0f} %" in words
    runs = pd.read_csv(RESULTS_FOLDER / "masked-water-runs.csv")
    part = runs[(runs.model == "gns") & (runs.labels == 200) & (runs.arm == "masked")]
    spread = paper_map.ours_in_words("masked-water", ("spread of masked",), RESULTS_FOLDER)
    assert f"→ ± {1e3 * part.forces_rmse.std():.1f} meV/Å (3 seeds), gns" not in spread
    assert f"→ ± {1e3 * part.forces_rmse.std():.1f} meV/Å (3 seeds)" in spread
    with pytest.raises(DataError, match="no arm of masked O"):
        paper_map.ours_in_words("masked-water", ("masked O",), RESULTS_FOLDER)


def test_only_the_cells_that_belong_to_an_item():
    only = {"target": ("ani1x",)}
    words = paper_map.ours_in_words("study-denoise", ("denoise",), RESULTS_FOLDER, only)
    assert "ani1x egnn denoise" in words and "3bpa" not in words
    whole = paper_map.ours_in_words("study-denoise", ("denoise",), RESULTS_FOLDER)
    assert "ani1x egnn denoise" in whole and "3bpa" in whole
    with pytest.raises(DataError, match="no arm of denoise"):
        paper_map.ours_in_words(
            "study-denoise", ("denoise",), RESULTS_FOLDER, {"target": ("none",)}
        )


def test_the_page_is_filled_from_the_tables():
    text = PAGE.read_text(encoding="utf-8")
    assert blocks.fill(text, RESULTS_FOLDER) == text, "fill docs/papers.md: potkit.report.fill"
    kinds = re.findall(r"<!-- (\w+): (\S+) -->", text)
    assert set(kinds) == {
        ("map", "denoise"),
        ("map", "masked"),
        ("departures", "networks"),
        ("departures", "other"),
        ("departures", "denoise-paper"),
        ("departures", "masked-paper"),
        ("departures", "presets"),
        ("departures", "notes"),
    }
    assert text.count("<!-- end -->") == len(kinds)


def test_every_fault_stands_there_with_its_switch_and_test():
    text = PAGE.read_text(encoding="utf-8")
    for name, fault in network_faults.FAULTS.items():
        assert f'faults=("{name}",)' in text and f"tests/{fault.shown_by}" in text
    for name, fault in objective_faults.FAULTS.items():
        assert f"| {name}: " in text
        assert fault.shown_by or fault.how.startswith("no switch")


def test_every_note_of_a_shipped_experiment_stands_there():
    text = PAGE.read_text(encoding="utf-8")
    for name in shipped.names():
        for _, spec in shipped.read(name).specs:
            assert all(why in text for why in spec.notes.values()), name


def test_an_unknown_block_is_refused():
    with pytest.raises(DataError, match="got elsewhere"):
        blocks.fill("<!-- departures: elsewhere -->\n<!-- end -->")
