"""Whether what is stored follows from its runs: tables, intervals and verdicts recomputed, and the
documents' blocks filled again.

A stored experiment NAME has its runs in NAME-runs.csv; NAME.csv (`statistics.summarise`),
NAME-effects.csv (`statistics.effects`), NAME-curves.csv (`report.curves`) and NAME-convergence.csv
(`convergence.table`) are derived from them and, for the baselines named in NAME.csv, from
NAME-baselines.csv. The picture figures/NAME.html shows NAME.csv. Runs are stored with six
significant digits, so numbers agree where they differ by no more than those digits allow; numbers
inside words by one in their last place. NAME-baselines.csv follows from the data, drawn as
NAME.yaml says or as NAME-baselines.json wrote it down (`baselines.drawn`); it is recomputed where
the data are embedded, else on demand.

Pictures that `stored_figures.draw` made say what they show, and are drawn again; so are the blocks
(`blocks.fill`) that the cells of notebooks put out. NAME-test.csv and NAME-breakdown.csv follow
from NAME-test-errors.csv (`structure_errors`), NAME-choices.csv from NAME-tries.csv (`search`),
NAME-ensembles.csv and NAME-contrasts.csv from NAME-predictions.csv (`calibration`),
NAME-measures.csv and NAME-changes.csv from NAME-simulations.csv (`simulations`).
NAME-time-curves.csv (logs of the runs) and coverage.csv (`make coverage`) are as they were
measured.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..datasets.records import RECORDS
from ..errors import DataError
from ..experiments import (
    baselines,
    calibration,
    convergence,
    numerics,
    search,
    simulations,
    statistics,
    structure_errors,
    yaml_form,
)
from ..structures.storage import replacing
from . import blocks, figures, gallery, pages, provenance, stored_figures
from . import tables as report

if TYPE_CHECKING:
    import plotly.graph_objects as go

DOCUMENTS = (
    "README.md",
    "RESULTS.md",
    "docs/papers.md",
    "docs/scale.md",
    "docs/statistics.md",
    "docs/weights.md",
)
MEASURED = ("-time-curves", "coverage")  # tables that follow from nothing that is stored
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
    pictures: list[str]  # whose points were compared with the tables
    without_runs: list[str]  # stored tables that nothing stored could recompute
    differences: pd.DataFrame  # where, row, column, stored, recomputed
    with_data: Sequence[str] = ()  # those of ``without_runs`` that follow from data not embedded

    @property
    def holds(self) -> bool:
        """Whether all that could be recomputed is what is stored."""
        return not len(self.differences)

    def __str__(self) -> str:
        size = f"{len(self.tables)} tables ({self.cells} cells)"
        shown = f"{len(self.documents)} documents and {len(self.pictures)} pictures"
        text = f"{size}, {shown} recomputed: "
        text += "no difference" if self.holds else f"{len(self.differences)} differences"
        others = [name for name in self.without_runs if name not in self.with_data]
        if self.with_data:
            text += f"\nrecomputed with the reference data (--data): {', '.join(self.with_data)}"
        if others:
            text += f"\nnothing stored recomputes: {', '.join(others)}"
        return text


def _summary(runs: pd.DataFrame, known: pd.DataFrame | None) -> pd.DataFrame:
    summary = statistics.summarise(
        runs,
        statistics.METRICS,
        by=statistics.grouping(runs),
        method=runs.attrs.get("interval", "t"),
    )
    return summary if known is None else baselines.mark(summary, known)


def _effects(runs: pd.DataFrame, known: pd.DataFrame | None) -> pd.DataFrame:
    return statistics.effects(runs, method=runs.attrs.get("interval", "t"))


def _curves(runs: pd.DataFrame, known: pd.DataFrame | None) -> pd.DataFrame:
    good = runs[runs["status"] == "ok"]
    metric = "energy_mae" if good["forces_mae"].isna().all() else "forces_mae"
    return report.curves(statistics.with_budgets(runs, 3), metric)


def _convergence(runs: pd.DataFrame, known: pd.DataFrame | None) -> pd.DataFrame:
    return convergence.table(runs)


# how a table follows from the runs and, where they are stored, the baselines
DERIVED: dict[str, Callable[[pd.DataFrame, pd.DataFrame | None], pd.DataFrame]] = {
    "": _summary,
    "-effects": _effects,
    "-curves": _curves,
    "-convergence": _convergence,
}


# tables that follow from another one than runs: ending of the one they follow from, their own
OTHERS: dict[tuple[str, str], Callable[[pd.DataFrame], pd.DataFrame]] = {
    ("-threads", ""): numerics.summarise,
    ("-instructions", ""): numerics.summarise,
    ("-errors", ""): structure_errors.summarise,
    ("-test-errors", "-breakdown"): structure_errors.breakdowns,
    ("-tries", "-choices"): search.of_tries,
    ("-predictions", "-ensembles"): calibration.summarise,
    ("-predictions", "-contrasts"): calibration.contrasts,
    ("-simulations", "-measures"): simulations.summarise,
    ("-simulations", "-changes"): simulations.effects,
}


def others(folder: str | Path = "data/results") -> list[tuple[str, str, Callable]]:
    """(name, name of its source, how it follows) of each stored table in `OTHERS`."""
    found = []
    for (source, own), derive in OTHERS.items():
        for path in sorted(Path(folder).glob(f"*{source}.csv")):
            name = path.stem.removesuffix(source) + own
            if path.with_name(f"{name}.csv").is_file():
                found.append((name, path.stem, derive))
    return found


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
        how = report.origin(about)
    declared = how.get("experiment") or {}
    cells = declared if isinstance(declared, list) else [declared]
    contrasts = [c["primary"] for c in [*cells, how] if c.get("primary")]
    if contrasts:
        runs.attrs["primary"] = contrasts[0]
    runs.attrs["interval"] = how.get("interval", "t")
    if how.get("contrasts"):
        runs.attrs["contrasts"] = [tuple(pair) for pair in how["contrasts"]]
    return runs


def stored_baselines(name: str, folder: str | Path = "data/results") -> pd.DataFrame | None:
    """What the networks of a stored experiment have to beat (`baselines.of_experiments`), or None
    where it is not stored.
    """
    path = Path(folder) / f"{name}-baselines.csv"
    return report.read(path) if path.is_file() else None


def picture(name: str, folder: str | Path = "data/results") -> go.Figure:
    """The learning curves of a stored experiment, from its tables."""
    summary, _ = report.stored(name, folder)
    title = f"Error against label budget ({name})"
    runs, _ = report.stored(f"{name}-runs", folder)
    return figures.learning_curves(summary, title, stored_baselines(name, folder), runs)


def verify(
    folder: str | Path = "data/results", root: str | Path = ".", data: bool = False
) -> Verification:
    """Recompute every derived table in ``folder``, every block of the documents in ``root`` and of
    what its notebooks put out, and the points of the pictures in figures/ there.

    Baselines that need no other method are recomputed where the data are embedded. ``data``: all
    baselines, from the data their experiments name (GFN2-xTB takes minutes).
    Raises DataError where there is no such folder, nothing to verify in it, or no such data.
    """
    folder, root = Path(folder), Path(root)
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder of stored results")
    if not root.is_dir():
        raise DataError(f"{root}: no such folder of documents")
    names = experiments(folder)
    if not names:
        raise DataError(f"{folder}: no stored runs (NAME-runs.csv) to recompute anything from")
    rows: list[dict[str, Any]] = []
    tables = []
    pictures = []
    cells = 0
    for name, endings in names.items():
        runs, known = stored_runs(name, folder), stored_baselines(name, folder)
        for ending in endings:
            stored, _ = report.stored(name + ending, folder)
            again = report.as_stored(DERIVED[ending](runs, known))
            rows += [{"where": f"{name}{ending}.csv", **d} for d in differences(stored, again)]
            tables.append(name + ending)
            cells += stored.size
        make = None if known is None else _baselines_again(name, folder, data)
        if known is not None and make is not None:
            if not data:  # GFN2-xTB takes minutes
                known = known[known["baseline"].isin(baselines.TRIVIAL)].reset_index(drop=True)
            where = f"{name}-baselines.csv"
            rows += [{"where": where, **d} for d in _made_again(known, make, data)]
            tables.append(f"{name}-baselines")
            cells += known.size
        page = root / "figures" / f"{name}.html"
        if page.is_file() and "" in endings:
            drawn = pages.points(page.read_text(encoding="utf-8"))
            again_drawn = pages.points_of(picture(name, folder))
            where = f"figures/{name}.html"
            rows += [{"where": where, **d} for d in _points_differ(drawn, again_drawn)]
            pictures.append(where)
    sources = {f"{name}-runs" for name in names}
    for name, source, derive in others(folder):
        stored, _ = report.stored(name, folder)
        again = report.as_stored(derive(_source(source, folder)))
        rows += [{"where": f"{name}.csv", **d} for d in differences(stored, again)]
        tables.append(name)
        cells += stored.size
        sources.add(source)
    known_tables = {*tables, *sources}
    stems = [p.stem for p in sorted(folder.glob("*.csv")) if not p.stem.endswith(MEASURED)]
    alone = [stem for stem in stems if stem not in known_tables]
    specs = {f"{p.stem}-baselines" for p in folder.glob("*.yaml")}
    with_data = [stem for stem in alone if stem in specs]
    documents = [d for d in DOCUMENTS if (root / d).is_file()]
    for document in documents:
        text = (root / document).read_text()
        try:
            rows += [{"where": document, **d} for d in _lines(text, blocks.fill(text, folder))]
        except DataError as error:
            # a block names a table that is not there, or not what it should be
            row = {"where": document, "row": "", "column": "block"}
            rows.append(row | {"stored": "", "recomputed": str(error)})
    for path in sorted((root / "figures").glob("*.html")):
        text = path.read_text(encoding="utf-8")
        shown = pages.shows(text) if pages.draws(text) else None
        if shown is not None:
            where = f"figures/{path.name}"
            rows += [{"where": where, **d} for d in _redrawn(text, shown, folder)]
            pictures.append(where)
    for path in sorted((root / "notebooks").glob("*.ipynb")):
        said = [text for text in _said(path) if blocks.BLOCK.search(text)]
        where = f"notebooks/{path.name}"
        for text in said:
            try:
                lines = _lines(text, blocks.fill(text, folder))
            except DataError as error:
                lines = [{"row": "", "column": "block", "stored": "", "recomputed": str(error)}]
            rows += [{"where": where, **d} for d in lines]
        documents += [where] if said else []
    columns = ["where", "row", "column", "stored", "recomputed"]
    found = pd.DataFrame(rows, columns=columns)
    return Verification(tables, cells, documents, pictures, alone, found, with_data)


def _source(name: str, folder: Path) -> pd.DataFrame:
    """A stored table that others follow from, with the contrast that was declared for it."""
    table, how = report.stored(name, folder)
    if how.get("primary"):
        table.attrs["primary"] = how["primary"]
    return table


def _redrawn(page: str, shown: dict[str, Any], folder: Path) -> list[dict[str, Any]]:
    """Where a page's points are not those of the same picture drawn from the stored tables."""
    try:
        again = stored_figures.draw(shown["kind"], shown["name"], folder, **shown["options"])
    except DataError as error:
        return [{"row": "", "column": "picture", "stored": "", "recomputed": str(error)}]
    return _points_differ(pages.points(page), pages.points_of(again))


def _said(notebook: Path) -> list[str]:
    """The Markdown that the cells of a notebook put out."""
    texts = []
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        for output in cell.get("outputs", []):
            text = output.get("data", {}).get("text/markdown")
            if text is not None:
                texts.append(text if isinstance(text, str) else "".join(text))
    return texts


def _all_embedded(path: Path) -> bool:
    """Whether an experiment in YAML trains and tests on sets that come with potkit alone."""
    specs = [cell for _, cell in yaml_form.read(path).specs]
    named = [part for cell in specs for part in (cell.train, cell.test, cell.valid) if part]
    embedded = {record.name for record in RECORDS if record.kind == "embedded"}
    return all(isinstance(part.data, str) and part.data in embedded for part in named)


def _baselines_again(
    name: str, folder: Path, data: bool
) -> Callable[[Sequence[str]], pd.DataFrame] | None:
    """How the stored baselines called so follow from the data, or None where the data are not at
    hand (``data``: where they are not named either).
    """
    spec = folder / f"{name}.yaml"
    if spec.is_file() and (data or _all_embedded(spec)):
        return lambda called: baselines.of_spec(yaml_form.read(spec), called)
    about = folder / f"{name}-baselines.json"
    drawn = report.origin(about).get("drawn") if about.is_file() else None
    if drawn:
        return lambda called: baselines.of_drawn(drawn, called)
    return None


def _made_again(
    known: pd.DataFrame, make: Callable[[Sequence[str]], pd.DataFrame], data: bool
) -> list[dict[str, Any]]:
    """Where stored baselines are not those that ``make`` gives of their names. Embedded data that
    are not what they were are a difference; others (``data``) raise DataError.
    """
    try:
        again = report.as_stored(make(list(dict.fromkeys(known["baseline"]))))
    except DataError as error:
        if data:
            raise
        return [{"row": "", "column": "data", "stored": "", "recomputed": str(error)}]
    return differences(known, again)


def rewrite(folder: str | Path = "data/results", root: str | Path = ".") -> list[Path]:
    """Derive the stored tables anew from what they follow from, draw the pictures that differ, and
    fill the documents' blocks; the paths of what changed.

    Where the runs come from stays in a table's JSON; "derived" says what made the table of them.
    What notebooks put out is made anew by executing them (`potkit run --inplace`).
    """
    folder, root = Path(folder), Path(root)
    changed = []
    for name, endings in experiments(folder).items():
        runs, known = stored_runs(name, folder), stored_baselines(name, folder)
        for ending in endings:
            table = DERIVED[ending](runs, known)
            changed += _rewritten(name + ending, table, f"{name}-runs", folder)
        page = root / "figures" / f"{name}.html"
        if page.is_file() and "" in endings:
            drawn = pages.points(page.read_text(encoding="utf-8"))
            chart = picture(name, folder)
            if _points_differ(drawn, pages.points_of(chart)):
                changed += gallery.draw(chart, page)
    for name, source, derive in others(folder):
        changed += _rewritten(name, derive(_source(source, folder)), source, folder)
    for page in sorted((root / "figures").glob("*.html")):
        text = page.read_text(encoding="utf-8")
        shown = pages.shows(text) if pages.draws(text) else None
        if shown is not None and _redrawn(text, shown, folder):
            options = shown["options"]
            chart = stored_figures.draw(shown["kind"], shown["name"], folder, **options)
            changed += gallery.draw(chart, page)
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


def _rewritten(name: str, table: pd.DataFrame, source: str, folder: Path) -> list[Path]:
    """Store ``table`` as ``name`` if what is stored differs; the path, if so."""
    path = folder / f"{name}.csv"
    stored, how = report.stored(name, folder)
    if not differences(stored, report.as_stored(table)):
        return []
    how["derived"] = {
        "command": "potkit verify --rewrite",
        "commit": provenance.commit(),
        "from": f"{source}.csv",
    }
    with replacing(path, report.RESULT) as temporary:
        table.to_csv(temporary, index=False, float_format="%.6g")
    with replacing(path.with_suffix(".json"), report.ORIGIN) as temporary:
        text = json.dumps(how, indent=1, default=str, ensure_ascii=False)
        temporary.write_text(text + "\n")
    return [path]


# -- comparing -----------------------------------------------------------------------------------
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


def _points_differ(
    stored: dict[str, np.ndarray], again: dict[str, np.ndarray]
) -> list[dict[str, Any]]:
    """Where two pictures differ: a dict per series of numbers of one of their lines."""
    out = []
    for series in dict.fromkeys([*stored, *again]):
        before, after = stored.get(series), again.get(series)
        if before is None or after is None:
            there = ["missing" if values is None else "there" for values in (before, after)]
        elif before.shape == after.shape and np.allclose(
            before, after, rtol=RELATIVE, atol=1e-9, equal_nan=True
        ):
            continue
        else:
            there = [np.array2string(values, precision=5) for values in (before, after)]
        line, _, column = series.rpartition(" ")
        out.append({"row": line, "column": column, "stored": there[0], "recomputed": there[1]})
    return out


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
