"""How much memory a run takes: the sum over its processes, shared pages counted once."""

from __future__ import annotations

import threading
from types import TracebackType

import psutil


def memory_in_use() -> int:
    """Bytes held by this process and all it started (summed proportional set size)."""
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total


class PeakMemory:
    """Context that samples `memory_in_use` and keeps the highest.

    Attributes
    ----------
    peak : int
        Bytes.
    """

    def __init__(self, interval: float = 0.5) -> None:
        self.peak = 0
        self._interval = interval
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._done.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.peak = max(self.peak, memory_in_use())
            if self._done.wait(self._interval):
                return
