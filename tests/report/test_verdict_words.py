"""No verdict without its interval, in what is generated from stored runs and in what is written."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from potkit.experiments import convergence, planning, statistics
from potkit.report import blocks, sentences

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "RESULTS.md", "docs/statistics.md")
JUDGING = ("verdicts", "moved", "calibrated", "choice", "saved", "convergence", "audit")
VERDICT = re.compile(
    r"\b(?:better|worse|(?:more|less) is gained|not told|do as well as"
    r"|scratch is (?:not )?converged)"
)
INTERVAL = re.compile(r"\([^()]*\bto\b[^()]*\)")
# words that judge without saying how well it is known
FLAT = re.compile(
    r"\b(?:does nothing|do nothing|changed nothing|changes nothing|no effect|(?:does|do) not help"
    r"|beats?|outperforms?|wins|no better than|helps|improves|superior|significant(?:ly)?)\b"
)
HARMLESS = (
    "potkit helps you",
    "not which\none wins",
    "which is not the same as no effect",
)


def judged() -> list[tuple[str, str]]:
    """The lines of all generated blocks that judge, with the page they stand in."""
    found = []
    for page in PAGES:
        for block in blocks.BLOCK.finditer((ROOT / page).read_text()):
            if block[1] in JUDGING:
                lines = block[0].splitlines()[1:-1]
                found += [(page, line) for line in lines if line.startswith(("- ", "| "))]
    return found


def test_every_generated_verdict_has_its_interval():
    verdicts = 0
    for page, line in judged():
        # a row of a table is one verdict; in a sentence each is a clause
        clauses = (
            [line] if line.startswith("|") else re.split(r"; (?!a seed left out|the change)", line)
        )
        for clause in clauses:
            if VERDICT.search(clause):
                verdicts += 1
                why = "what labels are worth is not told" in clause and "slope" in line
                alone = "single seed" in clause or "seed of" in clause
                assert INTERVAL.search(clause) or why or alone, f"{page}: {clause}"
    assert verdicts > 100


def markdown_of(notebook: Path) -> str:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")


@pytest.mark.parametrize("page", ["README.md", "RESULTS.md", "notebooks"])
def test_nothing_that_is_written_judges_without_numbers(page):
    if page == "notebooks":
        texts = {n.name: markdown_of(n) for n in sorted((ROOT / page).glob("*.ipynb"))}
        # and what their code prints
        texts |= {t.name: t.read_text() for t in sorted((ROOT / page / "text").glob("*.py"))}
    else:
        texts = {page: (ROOT / page).read_text()}
    for name, text in texts.items():
        for harmless in HARMLESS:
            text = text.replace(harmless, "")
        for line in text.splitlines():
            found = FLAT.search(line)
            assert not found or INTERVAL.search(line), f"{name}: {found[0]!r} in {line!r}"


def test_studies_of_three_seeds_are_what_README_says_of_them():
    """Every interval of pretrained holds 0, all of longer training lie below."""
    text = (ROOT / "README.md").read_text()
    (block,) = [m for m in blocks.BLOCK.finditer(text) if m[1] == "studies"]
    rows = [[c.strip() for c in line.split("|")[1:-1]] for line in block[0].splitlines()[3:-1]]
    three = [row for row in rows if row[5] == "3"]
    assert len(three) > 5

    def ends(cell: str) -> tuple[float, float]:
        low, high = re.search(r"\(([+-]\d+) to ([+-]\d+)\)", cell).groups()
        return float(low), float(high)

    assert all(ends(row[6])[0] < 0 < ends(row[6])[1] for row in three)
    longer = {(row[0], row[1]): ends(row[7]) for row in three}
    assert all(high < 0 for _, high in longer.values())


# -- what seeds can see --------------------------------------------------------------------------
def test_what_seeds_see_is_what_they_see():
    """Power and half width of a comparison, from the intervals of a table, and by simulation."""
    rng = np.random.default_rng(0)
    logs = np.log(0.9) + rng.normal(0, 0.08, (4000, 3))
    ends = np.array([statistics.interval(row) for row in logs])
    told = np.mean(ends[:, 2] < 0) + np.mean(ends[:, 1] > 0)
    assert planning.power(np.log(0.9), 0.08, 3) == pytest.approx(told, abs=0.02)
    assert planning.power(-planning.detectable(0.08, 3), 0.08, 3) == pytest.approx(0.8)
    assert planning.power(0.0, 0.08, 3) == pytest.approx(0.05)

    half = np.log1p(0.2)
    row = {"arm": "denoise", "against": "scratch", "metric": "forces_mae", "seeds": 3}
    row |= {"change_%": 0.0, "change_low_%": 100 * np.expm1(-half), "change_high_%": 20.0}
    said = sentences.sight(pd.DataFrame([row]))
    deviation = half / 4.303 * np.sqrt(3)  # t(0.975; 2)
    wide = 100 * np.expm1(planning.expected_half_width(deviation, 3))
    assert said.startswith("What 3 pretrainings see of force MAE at the spread of these runs")
    assert f"± {wide:.0f} % on average" in said and "in 80." in said
    row |= {"change_low_%": np.nan, "change_high_%": np.nan}
    assert sentences.sight(pd.DataFrame([row])) == ""


def test_sentences_on_convergence_have_the_interval():
    row = {"data": "ani", "labels": 50, "metric": "forces_mae", "seeds": 6, "times": 2.0}
    row |= {"change_%": -8.0, "change_low_%": -11.0, "change_high_%": -5.0, "margin_%": 3.0}
    row |= {"verdict": convergence.FALLING, "interval_%": 4.0, "within_interval": False}
    said = sentences.converged(pd.DataFrame([row]))
    assert said.startswith(
        "- ani, 50 labels: scratch is not converged: twice the steps change the "
    )
    assert "force MAE of scratch by −8.0 % (−11.0 to −5.0 %; the change itself lies outside" in said


# -- the page of intervals -----------------------------------------------------------------------
PAGE = (ROOT / "docs" / "statistics.md").read_text()


def listed() -> dict[str, str]:
    """The intervals that the page lists, and the test that it names for each."""
    table = PAGE.split("## The intervals")[1].split("Not intervals")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| ")][2:]
    return {row[0].strip(): row[-1].strip() for row in rows}


def test_every_interval_that_is_listed_was_measured_and_covers():
    """The stored covers (`make coverage`) are of the same intervals, and within bounds."""
    assert blocks.fill(PAGE, ROOT / "data" / "results") == PAGE, "fill docs/statistics.md"
    covers = pd.read_csv(ROOT / "data" / "results" / "coverage.csv", dtype={"n": str})
    names = {name.split(", all at once, ")[0] for name in covers["interval"]}
    few = {"rate of few ends"}
    assert names - few == {name.removesuffix(", all at once") for name in listed()}
    over_seeds = covers[covers["n"].isin(["3", "5", "8", "11"])]
    wide = over_seeds["interval"].str.contains("ends|candidates|targets")
    assert over_seeds["low"].min() > 0.9
    plain = over_seeds[~wide]
    assert (plain["low"] > 0.93 - plain["chance"]).all()
    assert (plain["high"] < 0.97 + plain["chance"]).all()
    assert (abs(plain["mean"] - 0.95) < 0.01 + plain["chance"]).all()


def test_the_tests_that_the_page_names_exist():
    there = "".join(path.read_text() for path in (ROOT / "tests").glob("*/test_*.py"))
    for named in re.findall(r"`(test_\w+)`", PAGE):
        assert f"def {named}(" in there, named
    for named in re.findall(r"`(tests/[\w/]+\.py)`", PAGE):
        assert (ROOT / named).is_file(), named
