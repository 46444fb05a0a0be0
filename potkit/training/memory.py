"""When memory is short: a batch goes through the network in parts, and the gradients add up to that
of the whole batch.

A batch is corrupted as a whole and then cut between structures, so the numbers that are drawn do
not depend on the parts. Each part's terms are divided by the counts of the whole batch: Σ_parts
∇(total_part / count) = ∇(total / count), the same gradient to rounding.

By hand, since gradient accumulation in libraries averages the means of parts, which is another
gradient where parts hold different numbers of atoms, and none of them halves a part that does not
fit.
"""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable
from typing import TypeVar

import torch

from ..errors import TrainingError
from ..models import Prediction
from ..structures.batch import Batch

T = TypeVar("T")
# of `mallopt` in the C library of GNU: what is asked for in larger pieces, or lies free at the end
# of the heap beyond that, goes back to the system at once; ordinarily 32 MB
TRIM_THRESHOLD, MMAP_THRESHOLD, KEPT = -1, -3, 1 << 30


def keep_freed_memory() -> bool:
    """Have this process keep the memory of freed arrays up to a GB for the next ones; whether that
    could be set.

    For steps on a CPU: the arrays over the edges of some ten thousand atoms have more than 32 MB,
    and would be fetched from the system anew, page by page, in every operation of every step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # another C library
        return False
    # older libraries take no more than 32 MB: then nothing is changed, as either would be set alone
    return bool(mallopt(MMAP_THRESHOLD, KEPT)) and bool(mallopt(TRIM_THRESHOLD, KEPT))


class Limit:
    """How many structures go through a network at once (None: all); `attempt` halves it when the
    device runs out of memory.
    """

    def __init__(self, size: int | None = None, what: str = "training") -> None:
        self.size, self.what = size, what

    def attempt(self, n: int, work: Callable[[int], T]) -> T:
        """``work(size)`` with at most ``n`` structures at once, tried again with half as many while
        memory is short; says so.

        Raises TrainingError when a single structure is too large.
        """
        while True:
            size = min(self.size or n, n)
            try:
                return work(size)
            except (torch.OutOfMemoryError, RuntimeError) as error:
                if not out_of_memory(error):
                    raise
                told = str(error).splitlines()[0][:200] if str(error) else "no further message"
            # outside the except block: the error's traceback holds the tensors of the failed
            # attempt
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            if size <= 1:
                raise TrainingError(
                    f"{self.what}: a single structure does not fit the device's memory ({told})"
                )
            self.size = (size + 1) // 2
            warnings.warn(
                f"{self.what}: out of memory with {size} structures at once, "
                f"going on with {self.size} ({told})",
                stacklevel=3,
            )


def out_of_memory(error: BaseException) -> bool:
    """Whether ``error`` says that a device (or the CPU's allocator) has no memory left."""
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def blank(batch: Batch, outputs: tuple[str, ...]) -> Prediction:
    """Zeros in the place of a prediction: what an objective counts follows from the batch alone,
    and is needed before the first part.
    """
    energy = batch.pos.new_zeros(batch.num_graphs, dtype=torch.float64)
    vector = batch.pos.new_zeros(batch.z.shape[0], 3)
    stress = batch.pos.new_zeros(batch.num_graphs, 3, 3)
    per_structure = {"energy": energy, "stress": stress}
    zeros = {name: per_structure.get(name, vector) for name in outputs}
    return Prediction(**{name: zeros.get(name) for name in Prediction._fields})
