"""README and RESULTS say what the repository holds: their tables are the stored ones, their links
lead somewhere, their commands exist, and no result is typed by hand.
"""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from potkit.errors import DataError
from potkit.report import blocks, tables

ROOT = Path(__file__).resolve().parents[2]
RESULTS_FOLDER = ROOT / "data" / "results"
README = (ROOT / "README.md").read_text()
FILLED = ("README.md", "RESULTS.md")
PAGES = (
    *FILLED,
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/papers.md",
    "docs/questions.md",
)
# "12 %", "1.5 ± 0.2", "300 meV", "twice as fast" in numbers: what only a stored table may say
A_RESULT = re.compile(r"\d\s*%|±|\d\s*(?:meV|ms\b|times as|to [+−-]?\d+ %)")


def prose(text: str) -> str:
    """A page without generated blocks and code."""
    return re.sub(r"```.*?```|`[^`\n]*`", "", blocks.BLOCK.sub("", text), flags=re.DOTALL)


def anchors(text: str) -> set[str]:
    """The names GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.DOTALL), re.M)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("page", FILLED)
def test_tables_are_the_stored_ones(page):
    text = (ROOT / page).read_text()
    assert blocks.BLOCK.search(text)
    assert blocks.fill(text, RESULTS_FOLDER) == text, f"fill {page} again: potkit.report.fill"


def test_a_changed_number_is_noticed():
    table = (ROOT / "RESULTS.md").read_text()
    block = next(m for m in blocks.BLOCK.finditer(table) if m[1] == "across")
    changed = block[0].replace("1", "2", 1)
    assert changed != block[0] and blocks.fill(changed, RESULTS_FOLDER) == block[0]


@pytest.mark.parametrize("page", FILLED)
def test_every_marker_is_a_block_that_is_filled(page):
    """A misspelt kind or a lost end would leave a table that nobody checks."""
    text = (ROOT / page).read_text()
    filled = blocks.BLOCK.findall(text)
    markers = re.findall(r"<!-- (\w+):", text)
    assert len(filled) == len(markers) == text.count("<!-- end -->")


def test_every_stored_study_stands_in_results():
    """A comparison that is stored and shown nowhere would be a result left out."""
    named = {name for _, name in blocks.BLOCK.findall((ROOT / "RESULTS.md").read_text())}
    stored = {path.stem for path in RESULTS_FOLDER.glob("*.yaml")}
    assert stored - named == set()


@pytest.mark.parametrize("page", FILLED)
def test_no_result_is_typed_by_hand(page):
    text = prose((ROOT / page).read_text()).replace("95 % interval", "interval")
    assert not [line for line in text.splitlines() if A_RESULT.search(line)]
    assert A_RESULT.search("denoising lowers them by 15 %") and A_RESULT.search("300 meV")


def test_what_the_readme_says_about_its_table_holds():
    """ "The studies of three seeds tell no change by pretraining from 0"."""
    names = next(name for kind, name in blocks.BLOCK.findall(README) if kind == "studies")
    studies = blocks.studies(names.split(","), RESULTS_FOLDER)
    changes = studies.loc[studies["seeds"] == 3, "pretrained"]
    bounds = [re.search(r"\(([+-]\d+) to ([+-]\d+)\)", change).groups() for change in changes]
    assert bounds and all(int(low) < 0 < int(high) for low, high in bounds)


def test_what_the_readme_says_of_the_audit_holds():
    """A gain as it is, with an interval off zero, that is gone with the published sign."""
    audit = blocks.studies(["audit-faults"], RESULTS_FOLDER).set_index("network")["pretrained"]
    bounds = {name: re.search(r"\(([+-]\d+) to ([+-]\d+)\)", row) for name, row in audit.items()}
    assert int(bounds["as it is"][2]) < 0 < int(bounds["wrong sign"][2])


@pytest.mark.parametrize("page", PAGES)
def test_no_page_claims_that_something_does_nothing(page):
    words = r"does nothing|did nothing|brings nothing|changed nothing|still nothing|no effect\b"
    text = prose((ROOT / page).read_text()).replace("not the same as no effect", "")
    assert not re.search(words, " ".join(text.split()))


@pytest.mark.parametrize("page", PAGES)
def test_local_links_pictures_and_anchors_exist(page):
    path = ROOT / page
    links = re.findall(r"\]\(([^)\s]+)\)", path.read_text())
    local = [link for link in links if not link.startswith("http")]
    assert local
    for link in local:
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{page}: {link}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{page}: {link}"


def test_readme_is_short_and_opens_with_how_to_use_it():
    lines = README.splitlines()
    assert len(lines) <= 200
    top = "\n".join(lines[:25])
    assert all(word in top for word in ("denoise", "masked", "make reproduce", "make test", ".png"))
    screens = "\n".join(lines[:70])
    assert all(word in screens for word in ("potkit.pretrain(", "potkit pretrain ", "**Contents**"))


def test_the_example_runs_and_draws_from_many_molecules(tmp_path, monkeypatch):
    """The first block of Python, on a twentieth of the set and with a few steps."""
    import potkit

    code = re.search(r"```python\n(.*?)```", README, re.DOTALL)[1]
    code, changed = re.subn(r"steps=\d+", "steps=2, progress=False, device='cpu'", code)
    assert changed == 2
    monkeypatch.chdir(tmp_path)
    whole = potkit.load("ani-mini")
    small = whole[::20]
    monkeypatch.setattr(potkit, "load", lambda name: {"ani-mini": small}[name])
    known = {}
    exec(compile(code, "README", "exec"), known)
    assert len(known["train"]) == 200 and len(known["valid"]) == 20
    drawn, _ = whole.split((0.8, 0.2), seed=0, by="system")[0].split((200, 20), seed=0)
    assert len(set(drawn.system.tolist())) > 50  # not the first few molecules of the file
    assert known["errors"].n_structures == len(known["test"]) > 100
    assert len(known["atoms"].get_forces()) == len(known["atoms"])


def test_readme_lists_every_notebook():
    listed = re.findall(r"\]\(notebooks/([^)]+\.ipynb)\)", README)
    assert listed == sorted(path.name for path in (ROOT / "notebooks").glob("*.ipynb"))


def test_settings_need_an_experiment():
    _, how = tables.stored("data-efficiency", RESULTS_FOLDER)
    with pytest.raises(DataError, match="has no settings of an experiment"):
        blocks.settings(how)


def commands() -> list[str]:
    """The potkit commands that the pages show."""
    texts = [(ROOT / page).read_text() for page in PAGES]
    shown = re.findall(r"(?:^|`|-m )potkit ([a-z]+)\b", "\n".join(texts), re.MULTILINE)
    return sorted(set(shown))


@pytest.mark.parametrize("command", commands())
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
    assert table.iloc[0].tolist() == [
        10,
        "500.0 [490.0 to 510.0]",
        "400.0 [390.0 to 410.0] (-20 %)",
        "",
    ]
    assert table.iloc[1].tolist() == [
        20,
        "300.0 [290.0 to 310.0]",
        "200.0 [190.0 to 210.0] (-33 %)",
        "250.0 [240.0 to 260.0] (-17 %)",
    ]
