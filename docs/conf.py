"""Settings of the documentation site: `make docs`. Nothing is fetched, notebooks are shown as they
are stored.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import potkit

HERE = Path(__file__).parent
ROOT = HERE.parent

project = "potkit"
author = "The potkit developers"
project_copyright = author
version = release = potkit.__version__

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build", "conf.py"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 4
nb_execution_mode = "off"
suppress_warnings = [
    "myst.header",
    "mystnb.unknown_mime_type",
    "misc.highlighting_failure",
]
default_role = "code"  # docstrings name things in single backquotes
autodoc_member_order = "bysource"
autodoc_typehints = "none"
html_theme = "sphinx_book_theme"
html_title = f"potkit {version}"
html_theme_options = {"show_toc_level": 2, "home_page_in_toc": True}


def _outward_links(app, page: str, source: list[str]) -> None:
    """Links of pages that are read beside the code as well: those to notebooks lead to the site's
    copies, those to other files of the repository become plain text. What is not there stays, so
    that the build fails on it.
    """
    folder = (HERE / page).parent

    def replaced(link: re.Match) -> str:
        text, target = link[1], link[2].partition("#")[0]
        file = (folder / target).resolve()
        if not target.startswith("../") or not file.exists() or file.is_relative_to(HERE):
            return link[0]
        if file.parent == ROOT / "notebooks" and file.suffix == ".ipynb":
            return f"[{text}]({os.path.relpath(HERE / 'notebooks' / file.name, folder)})"
        return text

    source[0] = re.sub(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)", replaced, source[0])


def setup(app) -> None:
    """Called by Sphinx."""
    app.connect("source-read", _outward_links)


def _notebooks() -> None:
    """Copies of the notebooks below docs/, where the site can take them from."""
    target = HERE / "notebooks"
    target.mkdir(exist_ok=True)
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        shutil.copyfile(notebook, target / notebook.name)


def _commands() -> None:
    """The reference of the command line, from the command itself."""
    from typer.main import get_command

    from potkit.cli.main import app as command_line

    lines = ["# Command line", "", "Made from the command itself; `potkit COMMAND --help` says it."]
    root = get_command(command_line)

    def describe(command, name: str, depth: int) -> None:
        lines.extend(["", f"{'#' * depth} {name}", "", " ".join((command.help or "").split()), ""])
        for parameter in command.params:
            if parameter.name in ("help", "install_completion", "show_completion"):
                continue
            names = ", ".join(parameter.opts + parameter.secondary_opts)
            meaning = " ".join((getattr(parameter, "help", "") or "").split())
            default = parameter.default
            known = default not in (None, False, ()) and not callable(default)
            shown = f" (default: `{default}`)" if known and default != ... else ""
            lines.append(f"- `{names}`: {meaning}{shown}")
        for child, sub in getattr(command, "commands", {}).items():
            describe(sub, f"{name} {child}", min(depth + 1, 4))

    for child, sub in root.commands.items():
        describe(sub, f"potkit {child}", 2)
    (HERE / "reference").mkdir(exist_ok=True)
    (HERE / "reference" / "command-line.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _settings() -> None:
    """The settings of a run's YAML file, as `potkit config` has them."""
    from potkit.cli import run_file

    lines = ["# Settings of a run", ""]
    for name, kind in (("pretrain", run_file.PretrainFile), ("finetune", run_file.FinetuneFile)):
        lines += [f"## potkit {name} --config FILE", ""]
        lines += ["```{literalinclude} ../" + f"{name}.yaml", ":language: yaml", "```", ""]
        for section, key, typed, default, meaning in run_file.described(kind):
            if name == "finetune" or section != "training":
                lines.append(f"- `{section}: {key}` ({typed}; default {default}): {meaning}")
        lines.append("")
    (HERE / "reference" / "settings.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def _interface() -> None:
    """A page per room, from the docstrings of what its modules have at the top."""
    from potkit import _EXPORTS

    lines = ["# Python", "", "What `import potkit` gives, by room.", ""]
    for room in sorted({module.split(".")[0] for module in _EXPORTS.values()}):
        lines += [f"## {room}", "", "```{eval-rst}"]
        for name, module in _EXPORTS.items():
            if module.split(".")[0] == room:
                kind = "autoclass" if name[0].isupper() else "autofunction"
                lines.append(f".. {kind}:: potkit.{name}")
                lines += ["   :members:", ""] if kind == "autoclass" else [""]
        lines += ["```", ""]
    (HERE / "reference" / "python.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


_notebooks()
_commands()
_settings()
_interface()
