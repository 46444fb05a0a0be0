"""The signals by which others ask a process to end: SIGTERM, and SIGHUP of a closed terminal."""

from __future__ import annotations

import signal


def requests() -> list[signal.Signals]:
    """Those that this process listens to: Windows has no SIGHUP, ``nohup`` ignores it."""
    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
