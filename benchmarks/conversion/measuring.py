"""What one command takes: seconds with the `sync` behind it, time on the processors, memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

SAMPLED_EVERY = 0.1  # seconds
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)
FOLDER = Path(__file__).parents[1]
"""Where the package of this module lies: the programs of the benchmark are found there."""


@dataclass(frozen=True)
class Cost:
    """What a command took.

    Attributes
    ----------
    seconds : float
        From its start to the end of the `sync` that follows it.
    sync : float
        Of these, seconds of the `sync`.
    cpu : float
        Processor seconds of it and all it started.
    peak : int or None
        Highest sum, over its processes, of their proportional set sizes, bytes; None where it was
        not watched.
    said : str
        Its standard output.
    """

    seconds: float
    sync: float
    cpu: float
    peak: int | None
    said: str


def measure(command: Sequence[str], *, memory: bool = False) -> Cost:
    """Run a command and the `sync` behind it; memory is watched only where asked: it costs time.

    Raises
    ------
    RuntimeError
        Where it fails: with the end of what it said.
    """
    paths = [str(FOLDER), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryFile() as output, tempfile.TemporaryFile() as errors:
        os.sync()
        before = _adopting()
        start = time.perf_counter()
        process = subprocess.Popen(command, stdout=output, stderr=errors, env=environment)
        watch = Watch(process.pid) if memory else None
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        finally:
            peak = watch.stop() if watch else None
        process.returncode = os.waitstatus_to_exitcode(status)
        ended = time.perf_counter()
        os.sync()
        synced = time.perf_counter()
        output.seek(0)
        errors.seek(0)
        if process.returncode:
            message = errors.read().decode(errors="replace")[-2000:].strip()
            name = " ".join(str(part) for part in command[:4])
            raise RuntimeError(f"`{name} ...` ended with {process.returncode}:\n{message}")
        said = output.read().decode(errors="replace")
    used = [usage, *(os.wait4(pid, 0)[2] for pid in _adopting() - before)]
    cpu = sum(each.ru_utime + each.ru_stime for each in used)
    return Cost(synced - start, synced - ended, cpu, peak, said)


def _adopting() -> set[int]:
    """The children of this process, among them, on Linux, those that a child left behind.

    What a command forked its workers from outlives it for a moment, and knows their processor time.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(SUBREAPER, 1)
    return {child.pid for child in psutil.Process().children()}


class Watch:
    """Samples the memory of a process and all it started, until it is stopped."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._peak = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()

    def stop(self) -> int:
        """Give the highest sum, bytes."""
        self._done.set()
        self._thread.join()
        return self._peak

    def _sample(self) -> None:
        while not self._done.is_set():
            self._peak = max(self._peak, tree_memory(self._pid))
            self._done.wait(SAMPLED_EVERY)


def forget(stack: Path) -> None:
    """Let the page cache drop a stack, so that it is read from the disk."""
    os.sync()
    for path in stack.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def tree_memory(pid: int) -> int:
    """Bytes held by a process and all it started, shared pages counted once."""
    total = 0
    try:
        processes = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.Error:
            continue
    return total
