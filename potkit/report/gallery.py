"""Figures made outside notebooks, and the page that shows every exported figure:
figures/README.md, one picture after the other.
"""

from __future__ import annotations

import html
import os
import re
from pathlib import Path
from typing import Any

from ..errors import ConfigError
from ..structures.outputs import Kind, head, is_a
from ..structures.outputs import check as check_output
from ..structures.storage import replacing

_HEAD = "# Figures"
_WORDS = (
    "What the notebooks export, made by `potkit run --inplace` (profile quick), "
    "and what `potkit compare` and `potkit bench` drew with"
)
GALLERY = Kind(
    "a gallery of figures that potkit wrote",
    lambda path: head(path).startswith(f"{_HEAD}\n\n{_WORDS}"),
)
_TITLE = re.compile(r"<title>(.*?)</title>", re.DOTALL)


def entries(folder: str | Path) -> list[tuple[str, str]]:
    """Name and title of every figure in ``folder`` (NAME.html, written by `figures.save`), sorted
    by name.
    """
    figures = []
    for page in sorted(Path(folder).glob("*.html")):
        title = _TITLE.search(page.read_text(encoding="utf-8")[:4000])
        words = html.unescape(title[1]) if title else page.stem
        # lines of a title are told apart by <br>, smaller ones are in <sub>
        words = re.sub(r"</?sub>", "", words.replace("<br>", "; "))
        figures.append((page.stem, words.strip()))
    return figures


def write(folder: str | Path, notebooks: str | Path | None = None) -> Path:
    """Write README.md into ``folder``: title, picture and link of each figure, under the notebook
    whose number its name begins with.

    ``notebooks``: the folder of the notebooks, for the links (default: notebooks/ beside
    ``folder``). Same figures, same bytes. Raises DataError where there is another README.md.
    """
    folder = Path(folder)
    below = Path(notebooks or folder.parent / "notebooks")
    books = {book.name[:2]: book for book in sorted(below.glob("[0-9][0-9]_*.ipynb"))}
    lines = [
        _HEAD,
        "",
        _WORDS,
        "`--figure`. A picture links to its interactive page; download the page to turn and zoom "
        "it (it loads plotly.js from beside it or from",
        "plotly's server).",
    ]
    last = None
    for name, title in entries(folder):
        number = name[:2]
        if number != last:
            book = books.get(number)
            head = f"[{book.stem}](../{book.parent.name}/{book.name})" if book else "Other figures"
            lines += ["", f"## {head}"]
            last = number
        pictures = (f"{name}.{kind}" for kind in ("png", "svg"))
        picture = next((p for p in pictures if (folder / p).is_file()), None)
        title = title.replace("<", "&lt;").replace("[", r"\[").replace("]", r"\]")
        lines += ["", f"**{title}** · [`{name}.html`]({name}.html)"]
        lines += ["", f"[![{title}]({picture})]({name}.html)"] if picture else []
    with replacing(folder / "README.md", GALLERY) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder / "README.md"


def check(path: Path | None) -> None:
    """Raise ConfigError or DataError for a ``--figure`` that no figure can be written to, before
    anything is run.
    """
    if path is None:
        return
    from . import figures

    if path.suffix not in (".png", ".svg", ".html"):
        raise ConfigError(f"--figure {path}: expected a name that ends in .png, .svg or .html")
    above = Path(os.path.realpath(path)).parent  # `resolve` raises where links go in a circle
    if not above.is_dir():
        raise ConfigError(f"--figure {path}: there is no folder {above}")
    if path.suffix == ".html":
        figures.check_figure(path.stem, path.parent)
    else:
        check_output(path, figures.PICTURE)


def draw(chart: Any, path: Path) -> list[Path]:
    """A picture; or a page with a picture beside it, and both in the gallery of the folder if
    potkit wrote one. The files written.
    """
    from . import figures, picture_export

    if path.suffix != ".html":
        with replacing(path, figures.PICTURE) as temporary:
            image = picture_export.image(chart, kind=path.suffix[1:])
            temporary.write_bytes(picture_export.marked(image))
        return [path]
    figures.save(chart, path.stem, path.parent)
    if is_a(GALLERY, path.parent / "README.md"):
        write(path.parent)
    return [path, path.with_suffix(".png")]
