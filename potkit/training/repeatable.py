"""The same numbers from run to run: on a CPU with several threads torch sums in an order that
changes, unless it is asked not to.

Of the operations that the networks use this is the one behind the gradient of ``x[index]``:
`index_put_` with ``accumulate=True``, whose threads add float32 numbers to one place in the order
in which they come (for more than some 30 000 numbers). Pretraining hardly uses it;
training on forces differentiates through it twice, and two runs of one seed ended with weights that
differed by 2e-7. In torch's deterministic mode it takes the edges in their order, as with one
thread. The number of threads itself still decides how products of matrices are summed: runs are
bit-equal for the same number of threads on the same processor.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch

_lock = threading.Lock()
_inside = 0  # how many trainings want the mode
_before = (False, False, True)  # what there was before the first of them


@contextmanager
def repeatable(device: str) -> Iterator[None]:
    """Within, sums on the CPU do not depend on the order of threads. One thread needs nothing; on a
    GPU nothing changes: it would take other, slower algorithms.

    The mode is the whole process's, and several threads may train in one process (Dask's do): the
    last one out puts it back.
    """
    global _inside, _before
    if device != "cpu" or torch.get_num_threads() == 1:
        yield
        return
    with _lock:
        if not _inside:
            fill = torch.utils.deterministic.fill_uninitialized_memory
            _before = (
                torch.are_deterministic_algorithms_enabled(),
                torch.is_deterministic_algorithms_warn_only_enabled(),
                fill,
            )
            torch.use_deterministic_algorithms(True, warn_only=True)
            # costs time, and nothing here reads such memory
            torch.utils.deterministic.fill_uninitialized_memory = False
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                torch.use_deterministic_algorithms(_before[0], warn_only=_before[1])
                torch.utils.deterministic.fill_uninitialized_memory = _before[2]


@contextmanager
def threads(number: int | None) -> Iterator[None]:
    """Within, torch has so many threads in this process; as many as it has for None."""
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
