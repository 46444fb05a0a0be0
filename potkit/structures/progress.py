"""Progress bars: shown to a person who watches, not written into log files; and which of several
processes speaks.
"""

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


# what torchrun, Slurm and Lightning Fabric tell the processes they start; Fabric's own launcher
# gives no RANK, only the place on its machine and, of several machines, which one it is
RANKS = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")


def first_process() -> bool:
    """Whether this is the first, or the only one, of the processes that a launcher started."""
    return all(os.environ.get(name, "0") in ("", "0") for name in RANKS)


def bar(*, shown: bool = True, **options: Any):
    """A tqdm bar with ``options``, hidden where ``shown`` is false or nobody watches."""
    from tqdm.auto import tqdm

    return tqdm(disable=not shown or hidden(), **options)
