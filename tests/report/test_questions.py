"""docs/questions.md: every row is there, and what it points to exists."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "questions.md").read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split(" | ")]
    for line in TEXT.splitlines()
    if line.startswith("| ") and not line.startswith(("| #", "| item", "| ---"))
]
NUMBERED = [f"N{k}" for k in range(1, 19)] + [f"O{k}" for k in range(1, 8)]
NUMBERED += [f"T{k}" for k in range(1, 16)]


def test_no_row_is_left_out():
    assert [row[0] for row in ROWS if re.fullmatch(r"[NOT]\d+", row[0])] == NUMBERED
    assert all(len(row) in (3, 4) for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_a_row_points_to_exists(row):
    named = re.findall(r"`([^`]+)`", row[-1])
    assert named or row[0].startswith("schemes")
    for target in named:
        path, _, test = target.partition("::")
        file = ROOT / path
        assert file.is_file(), target
        if test:
            assert re.search(rf"^def {test}\(", file.read_text(encoding="utf-8"), re.M), target


@pytest.mark.parametrize("row", [r for r in ROWS if len(r) == 4], ids=lambda row: row[0])
def test_an_answer_says_what_was_done(row):
    words = r"(?:Done|Switch(?:es)?|Kept|A guess|They were)\b"
    assert re.match(words, row[2]), row[2]


def test_switches_that_are_named_exist():
    from potkit.models import faults as network_faults
    from potkit.objectives import faults as objective_faults

    known = set(network_faults.FAULTS) | set(objective_faults.FAULTS)
    named = {w for row in ROWS for w in re.findall(r"Switch(?:es:)? `([\w-]+)`", row[-2])}
    assert len(named) > 10 and named <= known
