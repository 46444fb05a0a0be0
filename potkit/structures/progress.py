"""Progress bars: shown to a person who watches, not written into log files."""

from __future__ import annotations

import os
import sys
from typing import Any


def hidden() -> bool:
    """Whether bars are not to be shown: TQDM_DISABLE is set (to anything but 0), or stderr is
    neither a terminal nor a notebook.
    """
    if os.environ.get("TQDM_DISABLE", "0") not in ("", "0"):
        return True
    stream = sys.stderr
    if stream is None or type(stream).__module__.startswith("ipykernel"):
        return stream is None
    try:
        return not stream.isatty()
    except ValueError:  # it was closed
        return True


def bar(*, shown: bool = True, **options: Any):
    """A tqdm bar with ``options``, hidden where ``shown`` is false or nobody watches."""
    from tqdm.auto import tqdm

    return tqdm(disable=not shown or hidden(), **options)
