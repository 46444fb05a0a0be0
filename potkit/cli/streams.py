"""Where the command prints to: terminals of any encoding, closed streams."""

from __future__ import annotations

import os
import sys

from ..errors import ConfigError
from ..structures.progress import first_process


def prepare() -> None:
    """Make stdout and stderr take any text, whatever was closed and whatever the encoding.

    Characters a terminal does not know are replaced. A closed stream becomes the null device, also
    its descriptor: else the next file opened would get the number, and warnings be written into it.
    """
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, which is this one
    for name, number in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is None:
            stream = os.fdopen(number, "w", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def let_go() -> None:
    """Where nobody reads stdout any more, what is left in it goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)


def check_surroundings() -> None:
    """Raise ConfigError where the working directory or the folder for temporary files is gone."""
    try:
        os.getcwd()
    except OSError:
        raise ConfigError("the working directory no longer exists; change to another") from None
    temporary = os.environ.get("TMPDIR")
    if temporary and not os.path.isdir(temporary):
        raise ConfigError(
            f"TMPDIR={temporary}: no such folder for temporary files; make it or unset TMPDIR"
        )


def say_aside(text: str) -> None:
    """Print to stderr once, however many processes a launcher started: what is no result."""
    if first_process():
        print(text, file=sys.stderr, flush=True)
