"""Where a result comes from: the commit or version of potkit, the hardware, the versions of what
it uses.
"""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from ..training.run_folder import versions

CHECKOUT = Path(__file__).resolve().parents[2]


def hardware() -> str:
    """The device results were made on, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    model = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        pass
    return f"{os.cpu_count()} cores of {model}"


def commit() -> str:
    """The commit of potkit a result was made with ("+changes" if the package's files differ).

    Outside a checkout of potkit it is the version. Nobody else's repository is asked: not the one
    the user stands in, and not one that an installed package happens to lie in.
    """
    version = f"version {versions()['potkit']}"
    if not ((CHECKOUT / ".git").exists() and (CHECKOUT / "potkit" / "__init__.py").is_file()):
        return version
    try:
        head = _git("rev-parse", "--short=12", "HEAD")
        changes = _git("status", "--porcelain", "potkit")
    except (OSError, subprocess.CalledProcessError):
        return version
    return head + ("+changes" if changes else "")


def _git(*arguments: str) -> str:
    """What git says in potkit's checkout, without running programs that a configuration names."""
    command = ["git", "-c", "core.fsmonitor=false", "-c", "core.hooksPath=/dev/null", *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}
    environment |= {"GIT_OPTIONAL_LOCKS": "0", "GIT_CEILING_DIRECTORIES": str(CHECKOUT.parent)}
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def made_by() -> dict[str, Any]:
    """Commit, hardware and versions, as they stand beside every stored result."""
    return {"commit": commit(), "hardware": hardware(), "versions": versions()}
