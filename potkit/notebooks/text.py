"""Notebooks as text, so that a change can be reviewed line by line: notebooks/text/NAME.py beside
notebooks/NAME.ipynb.

The text is the percent format of jupytext (a cell begins with ``# %%``) without outputs and without
metadata but the tags. The notebook is the source; the text follows it. ::

    python -m potkit.notebooks.text           write the texts of all notebooks anew
    python -m potkit.notebooks.text --check   only say where they differ, and fail there
    python -m potkit.notebooks.text --back    the other way: bring edited texts into the notebooks

On the way back a cell keeps its outputs where its source is the same; cells that are new or edited
have none until `potkit run --inplace`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from ..errors import DataError, PotkitError
from ..structures.outputs import Kind, head, read_json
from ..structures.storage import replacing
from . import runner

FOLDER = "text"
FORMAT = "py:percent"
KEPT = {"notebook_metadata_filter": "-all", "cell_metadata_filter": "tags,-all"}


def _is_twin(path: Path) -> bool:
    cells = [line for line in head(path).splitlines() if line.startswith("# %%")]
    return bool(cells)


TWIN = Kind("the text of a notebook", _is_twin)
NOTEBOOK = Kind("a notebook", lambda path: "cells" in read_json(path))


def twin(notebook: str | Path) -> Path:
    """Where the text of a notebook lies."""
    notebook = Path(notebook)
    return notebook.parent / FOLDER / f"{notebook.stem}.py"


def render(notebook: Any) -> str:
    """A notebook (nbformat 4) as text."""
    import jupytext
    import nbformat

    cells = [dict(cell) for cell in notebook.cells]
    bare = nbformat.from_dict(dict(notebook) | {"cells": cells, "metadata": {"jupytext": KEPT}})
    return jupytext.writes(bare, fmt=FORMAT)


def write(notebooks: Iterable[str | Path] = ()) -> list[Path]:
    """Write the texts of ``notebooks`` (default: all); returns those that changed.

    Texts that have no notebook (any more) are left where they are; `differences` names them.
    Raises DataError for a missing or unreadable notebook.
    """
    chosen = [Path(path) for path in notebooks]
    changed = []
    for path in chosen or runner.find():
        text = render(runner.read(path))
        target = twin(path)
        if target.is_file() and target.read_text() == text:
            continue
        target.parent.mkdir(exist_ok=True)
        with replacing(target, TWIN) as temporary:
            temporary.write_text(text)
        changed.append(target)
    return changed


def take_back(notebooks: Iterable[str | Path] = ()) -> list[Path]:
    """Bring the texts' sources and tags into the notebooks; returns the notebooks that changed.

    Raises DataError where a notebook has no text.
    """
    import jupytext
    import nbformat

    changed = []
    for path in [Path(p) for p in notebooks] or runner.find():
        source = twin(path)
        if not source.is_file():
            raise DataError(f"{source}: no such text; `python -m potkit.notebooks.text` writes it")
        before = runner.read(path)
        edited = jupytext.reads(source.read_text(), fmt=FORMAT)
        if render(edited) == render(before):
            continue
        _keep_outputs(edited, before)
        with replacing(path, NOTEBOOK) as temporary:
            nbformat.write(runner.clean(edited), temporary)
        changed.append(path)
    return changed


def _keep_outputs(edited: Any, before: Any) -> None:
    """Give each code cell of ``edited`` the outputs of the cell that had exactly its source.

    (jupytext's own merge also matches cells that resemble each other: outputs of other code.)
    """
    executed: dict[str, list[Any]] = {}
    for cell in before.cells:
        if cell.cell_type == "code":
            executed.setdefault(cell.source, []).append(cell)
    for cell in edited.cells:
        if cell.cell_type == "code" and executed.get(cell.source):
            old = executed[cell.source].pop(0)
            cell.outputs = old.outputs
            cell.execution_count = old.execution_count


def differences(notebooks: Iterable[str | Path] = ()) -> list[str]:
    """A line for every text that is missing, differs from its notebook, or has none."""
    chosen = [Path(path) for path in notebooks]
    lines = []
    for path in chosen or runner.find():
        text = twin(path)
        if not text.is_file():
            lines.append(f"{text}: missing")
        elif text.read_text() != render(runner.read(path)):
            lines.append(f"{text}: differs from {path.name}")
    if not chosen:
        lines += [f"{text}: has no notebook" for text in _orphans(runner.find())]
    return lines


def _orphans(notebooks: Sequence[Path]) -> list[Path]:
    """Texts beside ``notebooks`` that belong to none of them."""
    twins = {twin(path) for path in notebooks}
    folders = {text.parent for text in twins}
    return sorted(t for folder in folders for t in folder.glob("*.py") if t not in twins)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit code."""
    parser = argparse.ArgumentParser(prog="python -m potkit.notebooks.text")
    parser.add_argument("notebooks", nargs="*", help="default: all notebooks of the repository")
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--check", action="store_true", help="only say where texts differ")
    way.add_argument("--back", action="store_true", help="bring edited texts into the notebooks")
    options = parser.parse_args(arguments)
    try:
        if options.check:
            lines = differences(options.notebooks)
            print("\n".join(lines) or "notebooks and texts agree")
            return int(bool(lines))
        changed = (take_back if options.back else write)(options.notebooks)
    except PotkitError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print("\n".join(f"written: {path}" for path in changed) or "notebooks and texts agree")
    if not options.notebooks:
        for text in _orphans(runner.find()):
            print(f"{text}: has no notebook; delete it if it is of no use any more")
    return 0


if __name__ == "__main__":
    sys.exit(main())
