"""How the processes of a local cluster begin: forked from one that has imported what they need.

Forked ones begin at once, also after one that died, and share the memory of their modules.
"""

from __future__ import annotations

import atexit
import multiprocessing
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from typing import Any

import dask

from zarrmask.workers.frozen import WANTED

WRITING = ("dask.array", "distributed", "distributed.nanny", "zarrmask.running.tasks")
DETECTOR = "zarrmask.detection.load"
DETECTING = (*WRITING, DETECTOR)
"""What is imported once. None of it begins a thread, which a fork would lack; zarrs does: workers
import it themselves."""

LONGEST_FOLDER = 70
"""Bytes: in it lies the socket by which forks are asked for, whose path may have 107."""

OF_DASK = "dask-scratch-space"
"""In the names of folders that Dask looks for modules in; each of its processes has its own."""

BEFORE_START = "distributed.nanny.pre-spawn-environ"
# Chunks go from thread to thread: glibc would keep as many of them for each thread.
ENVIRONMENT = {f"{BEFORE_START}.MALLOC_ARENA_MAX": 2}
"""Settings of Dask for what a process has to find when it begins."""


@dataclass(frozen=True)
class Origin:
    """The process that workers are forked from; Python has one at most.

    Attributes
    ----------
    process, client : int
        Its number, and that of the process that began it, which alone may ask it for forks.
    imported : tuple of str
        Modules.
    path : tuple of str
        Where it looked for modules.
    environment : frozenset of str
        Names of the variables that it got from the client, or for itself alone; what Dask's
        settings add, workers get, too.
    """

    process: int | None
    client: int
    imported: tuple[str, ...]
    path: tuple[str, ...]
    environment: frozenset[str]

    def serves(self) -> bool:
        """Whether workers of this process find in it what they would import themselves."""
        now = (_process_id(), os.getpid(), _path())
        return now == (self.process, self.client, self.path)


_origin: Origin | None = None
_possible = sys.platform == "linux"  # elsewhere libraries of the system begin threads


def shared_imports(wanted: tuple[str, ...] = WRITING) -> tuple[str, ...]:
    """What workers that begin now share: what is wanted, or what was when the first began.

    Nothing where they are not forked, or nothing is wanted.
    """
    if not wanted or not _possible:
        return ()
    if _origin is not None:
        return _origin.imported if _origin.serves() else ()
    folder = os.fsencode(tempfile.gettempdir())
    # A path with a colon cannot be told, and a Python that heeds no environment is told nothing.
    told = not sys.flags.ignore_environment and not any(os.pathsep in place for place in _path())
    is_free = _process_id() is None  # else what the user's own program began stands there
    return wanted if len(folder) <= LONGEST_FOLDER and told and is_free else ()


def make_ready(wanted: tuple[str, ...] = WRITING) -> str:
    """Begin the process that workers are forked from, unless there is one; it imports meanwhile.

    Returns
    -------
    str
        How workers begin, as Dask calls it.
    """
    global _origin, _possible
    imported = shared_imports(wanted)
    if not imported:
        return "spawn"
    if _origin is not None:
        return "forkserver"
    with dask.config.set(ENVIRONMENT):
        before_start = dask.config.get(BEFORE_START)
    given = {name: str(value) for name, value in before_start.items() if value is not None}
    # Modules are looked for where this process does; not in the folder that it happens to be in.
    own = {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(_path()), WANTED: " ".join(wanted)}
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["zarrmask.workers.frozen"])
    with uninterrupted(), _environment({**given, **os.environ, **own}):
        try:
            forkserver.ensure_running()
        except OSError:  # not every file system knows sockets
            _possible = False
            return "spawn"
    names = frozenset({*os.environ, *own})
    _origin = Origin(_process_id(), os.getpid(), imported, _path(), names)
    atexit.register(_end, _origin)
    return "forkserver"


def leave_to_workers() -> None:
    """Let a process that replaces one that was killed import nothing: workers do it themselves.

    Its environment is not settled here: it might find other modules. Dask settles what is imported
    with its first worker; it is asked for that before.
    """
    from distributed.utils import get_mp_context

    with dask.config.set({"distributed.worker.multiprocessing-method": "forkserver"}):
        get_mp_context().set_forkserver_preload([])


def forked_first() -> str:
    """What a worker that was forked does first, as Python.

    Its environment becomes this process's: Dask hands on what is there, and takes nothing away. And
    it ends with the one that it was forked from: else it would be taken for dead, and go on beside
    the worker that replaces it.
    """
    gone = sorted(_origin.environment - set(os.environ)) if _origin else []
    return (
        f"import ctypes, os, signal\nfor name in {gone}: os.environ.pop(name, None)\n"
        "ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # 1 is PR_SET_PDEATHSIG\n"
    )


def _path() -> tuple[str, ...]:
    """Where this process looks for modules, but for what Dask adds while it has a cluster."""
    return tuple(place for place in map(str, sys.path) if OF_DASK not in place)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the environment for what begins meanwhile."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in set(variables) - set(before):
            del os.environ[name]
        os.environ.update(before)


def _process_id() -> int | None:
    process: Any = forkserver._forkserver
    number: int | None = process._forkserver_pid
    return number


def _end(origin: Origin) -> None:
    """End what workers were forked from, though it may not have imported all yet.

    It holds open what this process writes to: of a command that stops early, who reads what it says
    would go on waiting.
    """
    process = _process_id()
    if process is not None and (process, os.getpid()) == (origin.process, origin.client):
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


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
