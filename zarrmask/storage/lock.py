"""Keeping a second run off an output: a lock that goes with the process, or lapses after it."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path

from upath import UPath

from zarrmask.errors import OutputError
from zarrmask.storage.place import Place, hasty

BEAT = 15.0
"""Seconds between two signs of life of the lock at a URL."""
LAPSE = 60.0
"""Seconds without one after which it is nobody's."""
SETTLE = 2.0
"""Seconds in which two that came at once see who was the last."""
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP}
"""What file systems say that are mounted without locks: NFS, Lustre, others."""


@contextmanager
def hold(lock: Place, out: Place) -> Iterator[None]:
    """Hold an output.

    Parameters
    ----------
    lock : Place
        The lock's file; at a URL it is removed at the end, in a folder it is left.
    out : Place
        What it stands for, to be named.

    Raises
    ------
    OutputError
        Where another run holds it, or, at a URL, took it over while this one was suspended; where
        its file system has no locks.
    """
    with _hold_file(lock, out) if isinstance(lock, Path) else _hold_object(lock, out):
        yield


@contextmanager
def _hold_file(path: Path, out: Place) -> Iterator[None]:
    with ExitStack() as opened:
        try:
            file = opened.enter_context(path.open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino != os.fstat(file.fileno()).st_ino:
                raise BlockingIOError  # the holder before finished and removed it
        except (BlockingIOError, FileNotFoundError):
            raise OutputError(
                f"{out} is in use by another zarrmask; wait for it, or name another output"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            path.unlink()  # of a run that was refused
            raise OutputError(
                f"{out} lies on a file system without locks ({error.strerror}), where nothing "
                "keeps a second run off it; have it mounted with them (NFS: a lock service runs; "
                "Lustre: flock), or name another output"
            ) from None
        yield


@contextmanager
def _hold_object(lock: UPath, out: Place) -> Iterator[None]:
    content = json.dumps(
        {"owner": uuid.uuid4().hex, "host": socket.gethostname(), "process": os.getpid()}
    ).encode()
    lock = hasty(lock)
    _take(lock, content, out)
    pulse = _Pulse(lock, content)
    pulse.start()
    try:
        with _interruptible(pulse):
            yield
        if pulse.lost:  # no other thread than the main one can be interrupted
            raise OutputError(_taken_over(out))
    except KeyboardInterrupt:
        if not pulse.lost:
            raise
        raise OutputError(_taken_over(out)) from None
    finally:
        pulse.stop()
        with suppress(Exception):  # what went wrong before is to be told; a lock lapses
            if _read(lock) == content:
                lock.fs.rm_file(lock.path)


@contextmanager
def _interruptible(pulse: _Pulse) -> Iterator[None]:
    """Let a pulse interrupt this thread where Ctrl-C is ignored too, as behind a shell's `&`."""
    before = signal.getsignal(signal.SIGINT)
    if not pulse.in_main or before not in (signal.SIG_IGN, signal.SIG_DFL):
        yield
        return

    def interrupt(*_: object) -> None:
        if pulse.lost or before == signal.SIG_DFL:
            raise KeyboardInterrupt

    signal.signal(signal.SIGINT, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _take(lock: UPath, content: bytes, out: Place) -> None:
    """Make the lock ours, or refuse to."""
    now, exclusive = _probe(lock.with_name(f"probe-{uuid.uuid4().hex}"))
    held = _read(lock)
    if held is not None:
        left = LAPSE - (now - _modified(lock)).total_seconds()
        if left > 0:
            raise OutputError(_in_use(out, held, left))
        lock.fs.rm_file(lock.path)
    if not _put(lock, content, exclusive):
        raise OutputError(_in_use(out, _read(lock), LAPSE))
    if held is not None or not exclusive:  # another may be doing the same
        time.sleep(SETTLE)
        if (now_held := _read(lock)) != content:
            raise OutputError(_in_use(out, now_held, LAPSE))


def _taken_over(out: Place) -> str:
    return (
        f"{out} was taken over by another zarrmask, because this one gave no sign of life for "
        f"{LAPSE:.0f} s; it goes on there"
    )


def _in_use(out: Place, held: bytes | None, left: float) -> str:
    try:
        holder = json.loads(held or b"")
        who = f" (process {int(holder['process'])} on {holder['host']!s})"
    except (ValueError, KeyError, TypeError):
        who = ""
    return (
        f"{out} is in use by another zarrmask{who}; wait for it, or name another "
        f"output. If that one was killed, its lock lapses in {max(left, 1):.0f} s: run the same "
        "command again then"
    )


def _probe(place: UPath) -> tuple[datetime, bool]:
    """Write, and remove, a file: the time it is there, and whether a put can be conditional.

    What keeps the output from being written is met here, before anything is computed.
    """
    place.fs.pipe_file(place.path, b"")
    try:
        exclusive = False
        try:
            place.fs.pipe_file(place.path, b"", mode="create")
        except FileExistsError:
            exclusive = True
        except (OSError, TypeError, NotImplementedError, ValueError):
            pass  # it does not know what it was asked
        return _modified(place), exclusive
    finally:
        place.fs.rm_file(place.path)


def _put(lock: UPath, content: bytes, exclusive: bool) -> bool:
    try:
        lock.fs.pipe_file(lock.path, content, **({"mode": "create"} if exclusive else {}))
    except FileExistsError:
        return False
    return True


def _read(lock: UPath) -> bytes | None:
    try:
        return bytes(lock.fs.cat_file(lock.path))
    except FileNotFoundError:
        return None


def _modified(place: UPath) -> datetime:
    modified: datetime = place.fs.modified(place.path)
    return modified


class _Pulse:
    """Renews a lock until it is stopped, or finds it taken over; then it interrupts the run."""

    def __init__(self, lock: UPath, content: bytes) -> None:
        self.lost = False
        self._lock, self._content = lock, content
        self._done = threading.Event()
        self.in_main = threading.current_thread() is threading.main_thread()
        self._owner = threading.get_ident()
        self._thread = threading.Thread(target=self._renew, name="lock", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._done.set()
        self._thread.join()

    def _renew(self) -> None:
        while not self._done.wait(BEAT):
            with suppress(Exception):  # the next beat may get through
                if _read(self._lock) == self._content:
                    self._lock.fs.pipe_file(self._lock.path, self._content)
                    continue
                self.lost = True
                if self.in_main:
                    signal.pthread_kill(self._owner, signal.SIGINT)
                return
