"""Faster versions of the networks' work on edges; `replacements` says what stands in, and when.

Written operation by operation, a layer makes dozens of arrays [E, F], each larger than the cache.
``egnn_blocks``, ``torchmd_et_blocks`` and ``schnet_pairs`` go through the edges in blocks that stay
in the cache, with PyTorch's operations; each of the ten or twenty operations on a block is then a
call of its own, and threads meet after each. ``egnn``, ``torchmd_et`` and ``schnet`` are the same
loops in C++ with the operations between two matrix products fused, and every thread goes its own
way through its own blocks. Matrix products stay PyTorch's. ``schnet_table`` does without most
products. The compiled ones are for `TrainConfig.compile` on a CPU.

The sources are compiled at first use (one to three minutes, by the C++ compiler that torch-scatter
is built with) and kept in the user's cache, or in the folder that POTKIT_KERNELS names. Nothing
compiled is used unless asked for; the plain functions of models/ remain the reference.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pooch
import torch
from filelock import FileLock
from torch import Tensor

from ..errors import ConfigError

HERE = Path(__file__).parent
FLAGS = [
    "-O3",
    "-march=native",
    "-std=c++20",
    "-fopenmp",
    "-ffp-contract=fast",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-fno-signed-zeros",
]
# or GCC makes a second copy of exp_ for values it clamps, and works out both in every vector
FLAGS.append("-fno-thread-jumps")
if platform.machine() in ("x86_64", "AMD64"):
    # compilers older than the processor hold back; without AVX-512 it says nothing
    FLAGS.append("-mprefer-vector-width=512")

_active = False


def folder() -> Path:
    """Where this machine's kernels are kept: one folder per version of torch, kind of processor
    and state of the sources.
    """
    # homes are shared by machines of different kinds, on which code for another one would crash
    info = Path("/proc/cpuinfo")
    flags = (
        next(
            (
                line
                for line in info.read_text().splitlines()
                if line.startswith(("flags", "Features"))
            ),
            "",
        )
        if info.is_file()
        else ""
    )
    parts = [torch.__version__, platform.machine(), platform.processor(), flags, *FLAGS]
    parts += [path.read_text() for path in sorted(HERE.glob("*.[ch]*"))]
    root = os.environ.get("POTKIT_KERNELS") or Path(pooch.os_cache("potkit")) / "kernels"
    return (
        Path(root).expanduser()
        / hashlib.blake2b("\n".join(parts).encode(), digest_size=8).hexdigest()
    )


@functools.cache
def load() -> None:
    """Compile the kernels if that has not been done, and make ``torch.ops.potkit`` out of them.

    Raises ConfigError where there is no compiler, or it does not succeed, or the folder cannot be
    written.
    """
    from torch.utils import cpp_extension

    try:
        where = folder()
        where.mkdir(parents=True, exist_ok=True)
        with FileLock(where / "potkit.lock"):
            made = where / "potkit_kernels.so"
            if made.is_file():
                torch.ops.load_library(made)
                return
            # in a folder of its own and moved at the end: what a killed process leaves behind (half
            # a library, torch's lock) is never found
            with tempfile.TemporaryDirectory(dir=where) as build, _quiet():
                sources = [str(path) for path in sorted(HERE.glob("*.cpp"))]
                options = dict(
                    extra_cflags=FLAGS,
                    extra_ldflags=["-fopenmp"],
                    build_directory=build,
                    is_python_module=False,
                )
                cpp_extension.load(made.stem, sources, **options)
                os.replace(Path(build) / made.name, made)
    except (RuntimeError, OSError, subprocess.SubprocessError) as error:
        lines = str(error).splitlines() or [type(error).__name__]
        reason = next((line for line in lines if "error:" in line), lines[0]).strip()
        raise ConfigError(
            f"compile: the kernels could not be compiled ({reason[:160]}); set compile to false"
        ) from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says about compilers, and with the programs of this Python's
    environment (ninja) in the path.
    """
    before = os.environ.get("PATH", "")
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), before])
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
            yield
    finally:
        os.environ["PATH"] = before


@contextlib.contextmanager
def used(wanted: bool = True) -> Iterator[None]:
    """Within, networks that have kernels use them (on CPU tensors of float32). Raises
    ConfigError as `load` does.
    """
    global _active
    if wanted:
        load()
    before, _active = _active, wanted
    try:
        yield
    finally:
        _active = before


def wanted(like: Tensor) -> bool:
    """Whether an operation on ``like`` is to go through a kernel."""
    return _active and like.device.type == "cpu" and like.dtype == torch.float32
