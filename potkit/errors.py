"""What potkit raises when the user (not the code) is at fault: always one line, naming the
culprit.
"""

from __future__ import annotations


class PotkitError(Exception):
    """A mistake that one line can explain; the command line prints that line and exits with 1.

    Names that files bring along may hold line ends and other control characters; they are not
    shown.
    """

    def __str__(self) -> str:
        text = super().__str__()
        return text if text.isprintable() else "".join(map(_shown, text))

    def _render_traceback_(self) -> list[str]:
        """What IPython shows in a notebook instead of a traceback."""
        return [f"{type(self).__name__}: {self}"]


def _shown(character: str) -> str:
    """``character`` as it may stand in a line."""
    if character.isprintable():
        return character
    return " " if character.isspace() else "?"


class DataError(PotkitError, ValueError):
    """A file, an array or a structure is not what it should be."""


class ConfigError(PotkitError, ValueError):
    """A setting is unknown, misspelt or outside its range."""


class CheckpointError(PotkitError, ValueError):
    """A checkpoint is missing, broken, or belongs to another network."""


class TrainingError(PotkitError, RuntimeError):
    """Training cannot go on, for instance because the loss is not a number."""


class SimulationError(PotkitError, RuntimeError):
    """A simulation cannot go on: the structure is no longer what it was."""


class Interrupted(TrainingError):
    """Ctrl-C or SIGTERM, or the Dask scheduler of a grid is lost: what is done is written, the same
    call goes on from there. Ends a grid, not only its run.
    """


class Busy(TrainingError):
    """Another process trains in this folder, or writes this store, right now."""
