"""Being asked to stop while something goes on that is not to be torn."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

TWICE = 2.0
"""Seconds within which a second signal says no more than the first."""


class Stop:
    """Waits for SIGINT and SIGTERM, so that an iteration is not torn; a later one stops at once.

    Ctrl-C comes twice to what torchrun started: from the terminal, and from torchrun.

    Attributes
    ----------
    asked : bool
        Whether one has come.
    """

    def __init__(self) -> None:
        self.asked = False
        self._number: int = signal.SIGINT
        self._since = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self.asked and now - self._since > TWICE:
            self.now()
        if not self.asked:
            self.asked, self._number, self._since = True, number, now

    def now(self) -> None:
        """Do what the signal would have done at once."""
        handler = self._before.get(self._number)
        if callable(handler):
            handler(self._number, None)
        raise KeyboardInterrupt
