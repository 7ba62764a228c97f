"""How the processes of a local cluster begin: forked from one that has imported what they need.

Forked ones begin at once, also after one that died, and share the memory of their modules.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker

import dask

WRITING = ("dask.array", "distributed", "distributed.nanny", "zarrmask.running.tasks")
DETECTOR = "zarrmask.detection.load"
DETECTING = (*WRITING, DETECTOR)
"""What is imported once. None of it begins a thread, which a fork would lack; zarrs does: workers
import it themselves."""
LAST = "zarrmask.workers.frozen"

# Else it would be taken for dead, and go on beside the one that replaces it. PR_SET_PDEATHSIG is 1.
ENDS_WITH_ITS_PARENT = "import ctypes, signal; ctypes.CDLL(None).prctl(1, signal.SIGKILL)\n"
"""What a worker that was forked does first."""

LONGEST_FOLDER = 70
"""Bytes: in it lies the socket by which forks are asked for, whose path may have 107."""

BEFORE_START = "distributed.nanny.pre-spawn-environ"
# Chunks go from thread to thread: glibc would keep as many of them for each thread.
ENVIRONMENT = {f"{BEFORE_START}.MALLOC_ARENA_MAX": 2}
"""Settings of Dask for what a process has to find when it begins."""

_imported: tuple[str, ...] | None = None  # by the process that there is; Python has one at most


def shared_imports(wanted: tuple[str, ...] = WRITING) -> tuple[str, ...]:
    """What workers that begin now share: what is wanted, or what was when the first began.

    Nothing where they are not forked, or nothing is wanted. A fork is safe on Linux alone:
    elsewhere libraries of the system begin threads.
    """
    folder = os.fsencode(tempfile.gettempdir())
    if not wanted or sys.platform != "linux" or len(folder) > LONGEST_FOLDER:
        return ()
    return _imported or wanted


def make_ready(wanted: tuple[str, ...] = WRITING) -> str:
    """Begin the process that workers are forked from, unless there is one; it imports meanwhile.

    Returns
    -------
    str
        How workers begin, as Dask calls it.
    """
    global _imported
    imported = shared_imports(wanted)
    if not imported:
        return "spawn"
    multiprocessing.get_context("forkserver").set_forkserver_preload([*imported, LAST])
    with dask.config.set(ENVIRONMENT), uninterrupted():
        for name, value in dask.config.get(BEFORE_START).items():
            os.environ.setdefault(name, str(value))  # as Dask's nanny does
        forkserver.ensure_running()
    _imported = imported
    return "forkserver"


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Put Ctrl-C off: threads and processes that are started meanwhile never see it.

    It goes to all processes of a terminal, and workers that only begin would each die of it, aloud.
    """
    resource_tracker.ensure_running()  # or it begins later, and lets Ctrl-C in
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
