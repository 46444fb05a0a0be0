"""Ctrl-C, SIGTERM and SIGHUP met between two steps, where what is written is whole."""

from __future__ import annotations

import signal
import threading

from ..structures import endings


class Stop:
    """Turns Ctrl-C, SIGTERM and SIGHUP into a request that is met between two steps, so the state
    written is a whole one.

    Only in the main thread of a single process; several processes would stop at different steps,
    they keep the usual signals.
    """

    def __init__(self, world_size: int = 1) -> None:
        self.asked = False
        self.old = {}
        if world_size == 1 and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, *endings.requests()):
                self.old[number] = signal.signal(number, self._ask)

    def _ask(self, *_: object) -> None:
        if self.asked:  # the second request does not wait
            raise KeyboardInterrupt
        self.asked = True

    def restore(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self.old.items():
            signal.signal(number, handler)
