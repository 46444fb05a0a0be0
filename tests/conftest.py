"""What all tests share: one thread a process, the reference data, and which marked tests this
machine can run.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # several test processes share the cores

import numpy as np
import pytest
import torch

torch.set_num_threads(1)
# as in a background job, or under nohup: the processes that tests interrupt would inherit it
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def reference_data() -> Path:
    """The folder with pieces of the public sets in their original formats; skips where
    POTKIT_REFERENCE_DATA is not set.
    """
    folder = os.environ.get("POTKIT_REFERENCE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("POTKIT_REFERENCE_DATA does not name a folder with the reference data")
    return Path(folder)


@pytest.fixture(scope="session")
def repository() -> Path:
    """The checkout that is being tested."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.fixture(autouse=True)
def _own_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user may have set in the shell must not decide a test."""
    for name in ("POTKIT_PROFILE", "POTKIT_FIGURES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def compiled_kernels() -> None:
    """The kernels, compiled if they have not been; skips where that cannot be done."""
    from potkit import kernels
    from potkit.errors import ConfigError

    try:
        kernels.load()
    except ConfigError as error:
        pytest.skip(str(error))


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request) -> Iterator[int]:
    """The test with one thread and with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)
