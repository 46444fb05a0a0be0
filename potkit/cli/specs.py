"""The command that lists the experiments that come with potkit: a paper's table or figure each."""

from __future__ import annotations

import typer


def register(app: typer.Typer) -> None:
    """Add the command to ``app``."""
    app.command()(specs)


def specs() -> None:
    """List the papers' tables and figures that `potkit compare NAME` runs, a line each."""
    from ..experiments import shipped

    width = max(map(len, shipped.names()))
    for name in shipped.names():
        print(f"{name:<{width}}  {shipped.title(name)}")
