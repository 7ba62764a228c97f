"""How much memory a run takes, as measured.

What is counted is the sum over its processes with shared pages counted once (PSS).
"""

from __future__ import annotations

import threading
import time
from types import TracebackType

import psutil


def memory_in_use() -> int:
    """Bytes held by this process and all it started (proportional set sizes, where known)."""
    total = 0
    me = psutil.Process()
    for process in [me, *me.children(recursive=True)]:
        try:
            memory = process.memory_full_info()
            total += getattr(memory, "pss", memory.uss)  # Linux alone knows what is shared
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue
    return total


class PeakMemory:
    """Context that samples `memory_in_use` and keeps the highest.

    The kernel counts a process's pages one by one, which takes longer the more there are: sampling
    takes no more than a `SHARE` of a core, be there two workers or a hundred. That it waits for its
    turn on a busy machine does not count: a short run would be over before a second sample.

    Attributes
    ----------
    peak, now : int
        Bytes: the highest, and the latest.
    """

    SHARE = 1 / 30

    def __init__(self, interval: float = 0.5) -> None:
        self.peak = self.now = 0
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
            start = time.thread_time()
            self.now = memory_in_use()
            self.peak = max(self.peak, self.now)
            took = time.thread_time() - start
            if self._done.wait(max(self._interval, took / self.SHARE)):
                return
