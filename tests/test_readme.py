"""The README says what the repository holds: its table is a stored result, its links lead somewhere, its commands exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from potkit import report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_result_tables_are_the_stored_ones():
    assert "<!-- results: " in README
    assert report.fill(README, ROOT / "data" / "results") == README, "fill the README again: potkit.report.fill"


def test_local_links_and_pictures_exist():
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", README) if not link.startswith("http")]
    assert links and not [link for link in links if not (ROOT / link).exists()]


def test_first_screen_says_what_it_is_and_how_to_run_it():
    top = "\n".join(README.splitlines()[:25])
    assert all(word in top for word in ("denoise", "masked", "make reproduce", "make test", ".png"))


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^potkit (\w+) [-a-zN]", README, re.MULTILINE)) | {"compare"}))
def test_commands_exist(command):
    from typer.main import get_command

    from potkit.cli import app

    assert command in get_command(app).commands
