"""The README says what the repository holds: its table is a stored result, its links lead
somewhere, its commands exist.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from potkit.report import blocks, tables

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()


def test_result_tables_are_the_stored_ones():
    assert "<!-- results: " in README
    assert blocks.fill(README, ROOT / "data" / "results") == README, (
        "fill the README again: potkit.report.fill"
    )


def test_local_links_and_pictures_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_first_screen_says_what_it_is_and_how_to_run_it():
    top = "\n".join(README.splitlines()[:25])
    assert all(word in top for word in ("denoise", "masked", "make reproduce", "make test", ".png"))


@pytest.mark.parametrize(
    "command", sorted(set(re.findall(r"^potkit (\w+) [-a-zN]", README, re.MULTILINE)) | {"compare"})
)
def test_commands_exist(command):
    from typer.main import get_command

    from potkit.cli.main import app

    assert command in get_command(app).commands


def test_arms_side_by_side():
    """Two budgets and three arms, one of them missing at one budget: every number stands in its
    arm's column.
    """
    rows = [
        (10, "scratch", 0.5, None),
        (10, "pretrained", 0.4, -20.0),
        (20, "scratch", 0.3, None),
        (20, "pretrained", 0.2, -33.3),
        (20, "longer", 0.25, -16.7),
    ]
    summary = pd.DataFrame(
        [
            {
                "labels": n,
                "arm": arm,
                "metric": "forces_mae",
                "seeds": 3,
                "seconds": 1.0,
                "mean": mean,
                "low": mean - 0.01,
                "high": mean + 0.01,
                "change_%": change,
            }
            for n, arm, mean, change in rows
        ]
    )
    table = tables.across(summary)
    assert list(table.columns) == ["labels; force MAE (meV/Å)", "scratch", "pretrained", "longer"]
    assert table.iloc[0].tolist() == [10, "500.0 ± 10.0", "400.0 ± 10.0 (-20 %)", ""]
    assert table.iloc[1].tolist() == [
        20,
        "300.0 ± 10.0",
        "200.0 ± 10.0 (-33 %)",
        "250.0 ± 10.0 (-17 %)",
    ]
