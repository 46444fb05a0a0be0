"""Benchmarks: how fast potkit is beside other implementations, measured the same way.

Run by ``potkit bench``; a file for each case, and in `peers` one for each other implementation.
"""

import os

# the profiler, which measures memory here, reports its start and stop otherwise
os.environ.setdefault("KINETO_LOG_LEVEL", "99")
# and that it does not know what was allocated before it
os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
