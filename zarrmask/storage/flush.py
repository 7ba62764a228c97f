"""Bringing files onto the disk while the work goes on, so that it outlasts a power cut.

A file that was written lies in the machine's memory for half a minute. A ledger that called it
finished would, after a power cut, be believed.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

THREADS = 4  # disks do several things at a time

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="flush")
_mine = threading.local()


def flush_soon(*paths: Path) -> None:
    """Begin to bring files onto the disk; one that is not there is none to bring."""
    _pending().extend(_threads.submit(_flush, path) for path in paths)


def flush_all() -> None:
    """Wait until all files are on the disk that this thread has begun to bring there.

    Raises
    ------
    OSError
        Where one cannot be.
    """
    pending = _pending()
    _mine.pending = []
    for one in pending:
        one.result()


def _pending() -> list[Future[None]]:
    if not hasattr(_mine, "pending"):
        _mine.pending = []
    pending: list[Future[None]] = _mine.pending
    return pending


def _flush(path: Path) -> None:
    with suppress(FileNotFoundError):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
