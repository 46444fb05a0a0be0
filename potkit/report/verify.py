"""Whether what is stored follows from its runs: tables, intervals and verdicts recomputed, and the
documents' blocks filled again.

A stored experiment NAME has its runs in NAME-runs.csv; NAME.csv (`statistics.summarise`),
NAME-effects.csv (`statistics.effects`), NAME-curves.csv (`report.curves`) and NAME-convergence.csv
(`convergence.table`) are derived from them and from nothing else. Runs are stored with six
significant digits, so numbers agree where they differ by no more than those digits allow; numbers
inside words by one in their last place.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import DataError
from ..experiments import convergence, statistics
from ..structures.storage import replacing
from . import blocks, provenance
from . import tables as report

DOCUMENTS = ("README.md", "RESULTS.md")
RELATIVE, PERCENT = 1e-4, 2e-3  # a changed sixth digit of an error moves a change by up to 0.001 %
NUMBER = re.compile(r"[-−+]?\d+(?:\.\d+)?")


@dataclasses.dataclass(frozen=True)
class Verification:
    """What `verify` found. ``differences``: a row per cell (or line of a document) that does not
    follow from the runs.
    """

    tables: list[str]  # recomputed
    cells: int
    documents: list[str]
    without_runs: list[str]  # stored tables that nothing stored could recompute
    differences: pd.DataFrame  # where, row, column, stored, recomputed

    @property
    def holds(self) -> bool:
        """Whether all that could be recomputed is what is stored."""
        return not len(self.differences)

    def __str__(self) -> str:
        size = f"{len(self.tables)} tables ({self.cells} cells)"
        text = f"{size} and {len(self.documents)} documents recomputed: "
        text += "no difference" if self.holds else f"{len(self.differences)} differences"
        if self.without_runs:
            text += f"\nnothing stored recomputes: {', '.join(self.without_runs)}"
        return text


def _summary(runs: pd.DataFrame) -> pd.DataFrame:
    return statistics.summarise(runs, statistics.METRICS, by=statistics.grouping(runs))


def _curves(runs: pd.DataFrame) -> pd.DataFrame:
    good = runs[runs["status"] == "ok"]
    metric = "energy_mae" if good["forces_mae"].isna().all() else "forces_mae"
    return report.curves(runs, metric)


DERIVED: dict[str, Callable[[pd.DataFrame], pd.DataFrame]] = {
    "": _summary,
    "-effects": statistics.effects,
    "-curves": _curves,
    "-convergence": convergence.table,
}


def experiments(folder: str | Path = "data/results") -> dict[str, list[str]]:
    """The experiments with stored runs in ``folder``: name -> which derived tables are stored
    beside ("", "-effects", "-curves").
    """
    folder = Path(folder)
    names = [p.name.removesuffix("-runs.csv") for p in sorted(folder.glob("*-runs.csv"))]
    return {n: [end for end in DERIVED if (folder / f"{n}{end}.csv").is_file()] for n in names}


def stored_runs(name: str, folder: str | Path = "data/results") -> pd.DataFrame:
    """The runs of a stored experiment, with the primary contrast it declared. Raises DataError if
    there are none.
    """
    runs, how = report.stored(f"{name}-runs", folder)
    about = Path(folder) / f"{name}.json"
    if about.is_file():
        how = json.loads(about.read_text())
    declared = how.get("experiment") or {}
    cells = declared if isinstance(declared, list) else [declared]
    contrasts = [c["primary"] for c in cells if c.get("primary")]
    if contrasts:
        runs.attrs["primary"] = contrasts[0]
    return runs


def verify(folder: str | Path = "data/results", root: str | Path = ".") -> Verification:
    """Recompute every derived table in ``folder`` and every block of the documents in ``root`` that
    shows one.

    Raises DataError where there is no such folder, or nothing to verify in it.
    """
    folder, root = Path(folder), Path(root)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of stored results")
    names = experiments(folder)
    if not names:
        raise DataError(f"{folder}: no stored runs (NAME-runs.csv) to recompute anything from")
    rows: list[dict[str, Any]] = []
    tables = []
    cells = 0
    for name, endings in names.items():
        runs = stored_runs(name, folder)
        for ending in endings:
            stored, _ = report.stored(name + ending, folder)
            again = _as_stored(DERIVED[ending](runs))
            rows += [{"where": f"{name}{ending}.csv", **d} for d in differences(stored, again)]
            tables.append(name + ending)
            cells += stored.size
    known = {*tables, *(f"{name}-runs" for name in names)}
    alone = [p.stem for p in sorted(folder.glob("*.csv")) if p.stem not in known]
    documents = [d for d in DOCUMENTS if (root / d).is_file()]
    for document in documents:
        text = (root / document).read_text()
        try:
            rows += [{"where": document, **d} for d in _lines(text, blocks.fill(text, folder))]
        except DataError as error:
            # a block names a table that is not there, or not what it should be
            row = {"where": document, "row": "", "column": "block"}
            rows.append(row | {"stored": "", "recomputed": str(error)})
    columns = ["where", "row", "column", "stored", "recomputed"]
    return Verification(tables, cells, documents, alone, pd.DataFrame(rows, columns=columns))


def rewrite(folder: str | Path = "data/results", root: str | Path = ".") -> list[Path]:
    """Derive the stored tables from their runs anew, and fill the documents' blocks; the paths of
    what changed.

    Where the runs come from stays in a table's JSON; "derived" says what made the table of them.
    """
    folder, root = Path(folder), Path(root)
    changed = []
    for name, endings in experiments(folder).items():
        runs = stored_runs(name, folder)
        for ending in endings:
            path = folder / f"{name}{ending}.csv"
            stored, how = report.stored(name + ending, folder)
            table = DERIVED[ending](runs)
            if not differences(stored, _as_stored(table)):
                continue
            how["derived"] = {
                "command": "potkit verify --rewrite",
                "commit": provenance.commit(),
                "from": f"{name}-runs.csv",
            }
            with replacing(path, report.RESULT) as temporary:
                table.to_csv(temporary, index=False, float_format="%.6g")
            with replacing(path.with_suffix(".json"), report.ORIGIN) as temporary:
                text = json.dumps(how, indent=1, default=str, ensure_ascii=False)
                temporary.write_text(text + "\n")
            changed.append(path)
    for document in (root / d for d in DOCUMENTS):
        if not document.is_file():
            continue
        text = document.read_text()
        filled = blocks.fill(text, folder)
        if filled != text:
            with replacing(document, blocks.PAGE) as temporary:
                temporary.write_text(filled)
            changed.append(document)
    return changed


# -- comparing -----------------------------------------------------------------------------------
def _as_stored(table: pd.DataFrame) -> pd.DataFrame:
    """``table`` as it is when read back from the file that `report.store` writes."""
    import io

    text = table.to_csv(index=False, float_format="%.6g")
    return pd.read_csv(io.StringIO(text))


def differences(stored: pd.DataFrame, again: pd.DataFrame) -> list[dict[str, Any]]:
    """Where two tables differ: a dict per cell with row, column, stored and recomputed."""
    out: list[dict[str, Any]] = []

    def differ(row: Any, column: Any, before: Any, after: Any) -> None:
        out.append({"row": row, "column": column, "stored": before, "recomputed": after})

    for column in stored.columns.symmetric_difference(again.columns):
        here = "missing" if column not in stored else "there"
        there = "missing" if column not in again else "there"
        differ("", column, here, there)
    if len(stored) != len(again):
        differ("", "rows", len(stored), len(again))
        return out
    for column in [c for c in stored if c in again]:
        absolute = PERCENT if "%" in str(column) else 1e-12
        cells = zip(stored[column], again[column], strict=True)
        for row, (before, after) in enumerate(cells):
            if not _agree(before, after, absolute):
                differ(row, column, before, after)
    return out


def _agree(before: Any, after: Any, absolute: float) -> bool:
    if pd.isna(before) or pd.isna(after):
        return bool(pd.isna(before) and pd.isna(after))
    if isinstance(before, str) or isinstance(after, str):
        return _words_agree(str(before), str(after))
    return bool(np.isclose(float(before), float(after), rtol=RELATIVE, atol=absolute))


def _words_agree(before: str, after: str) -> bool:
    """Whether two texts are the same but for the last places of the numbers in them."""
    if NUMBER.sub("#", before) != NUMBER.sub("#", after):
        return False
    for a, b in zip(NUMBER.findall(before), NUMBER.findall(after), strict=True):
        places = len(a.partition(".")[2])
        values = [float(x.replace("−", "-")) for x in (a, b)]
        if abs(values[0] - values[1]) > 1.01 * 10.0**-places:
            return False
    return True


def _lines(before: str, after: str) -> list[dict[str, Any]]:
    old, new = before.splitlines(), after.splitlines()
    longest = max(len(old), len(new))
    old, new = (lines + ["(no line)"] * (longest - len(lines)) for lines in (old, new))
    pairs = enumerate(zip(old, new, strict=True), start=1)
    return [
        {"row": number, "column": "line", "stored": a, "recomputed": b}
        for number, (a, b) in pairs
        if a != b
    ]
