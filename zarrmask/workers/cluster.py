"""Where the work runs: a local Dask cluster of its own, or the cluster at an address."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import dask
import dask.system
from distributed import Client, LocalCluster, Worker

from zarrmask import __version__
from zarrmask.errors import ZarrmaskError, first_of
from zarrmask.progress import Reporter
from zarrmask.storage.pipelines import ENCODERS_IN_ALL
from zarrmask.storage.place import Place
from zarrmask.workers.gpus import gpu_cluster
from zarrmask.workers.processes import (
    ENVIRONMENT,
    forked_first,
    leave_to_workers,
    make_ready,
    uninterrupted,
)

if TYPE_CHECKING:
    from zarrmask.workers.crew import Crew

# Ctrl-C goes to all processes of a terminal: the client alone is to stop, and to stop the workers.
_PRELOAD = (
    "import atexit, cv2, logging, signal, sys; cv2.setNumThreads(1)\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    # When a store fails, the client tells of it: not each request that a worker leaves behind, too.
    "atexit.register(setattr, sys, 'unraisablehook', lambda _: None)\n"
    "atexit.register(logging.disable)\n"
    # What the first tasks need, before there are any: imported while they are unpickled in another
    # thread, modules would be seen half made.
    "import dask.array, zarrmask.running.tasks\n"
)

TIMEOUT = "30s"
"""How long a scheduler may take to answer."""
STARTS = 3
"""Times that workers of this machine are started, where one of them dies as it begins."""
PATIENCE = 600.0
"""Seconds to wait for a worker where there is none: a machine boots meanwhile, or a cluster brings
another GPU; where nobody comes, what the client holds is free again soon, and nothing is lost."""
MOST_NAMED = 5
"""Workers that an error names."""
LATER = ("safetensors", "torch", "zarrs")
"""Modules that workers import once they need them."""


def waiting(patience: float) -> str:
    """Say that one waits.

    Examples
    --------
    >>> waiting(600)
    'waiting up to 0:10:00 for one to come'
    """
    return f"waiting up to {timedelta(seconds=round(patience, 1))} for one to come"


@contextmanager
def connect(crew: Crew, seen: Sequence[Place], reporter: Reporter) -> Iterator[Client]:
    """Connect to a Dask cluster: the crew's, or processes of this machine, closed at the end.

    Parameters
    ----------
    crew : Crew
        Those of this machine listen on 127.0.0.1 only; on GPUs each has its own, see
        `zarrmask.workers.gpus`.
    seen : sequence of Place
        What the workers of a cluster that was named are to see; see `require_sight`.
    reporter : Reporter
        Where it says that it waits for the first worker.

    Raises
    ------
    ZarrmaskError
        Where no scheduler answers, or it has no worker, or one that does not see all that.
    """
    if crew.scheduler is not None:
        with reach(crew.scheduler, crew.patience, reporter) as client:
            require_sight(client, seen)
            yield client
        return
    method = "spawn" if crew.gpus else make_ready(crew.imported)
    preload = _PRELOAD
    if method != "spawn":
        leave_to_workers()
        preload = forked_first() + _PRELOAD
    settings = {
        f"distributed.nanny.environ.{ENCODERS_IN_ALL}": crew.encoders,
        **ENVIRONMENT,
        "distributed.worker.multiprocessing-method": method,
        "distributed.worker.profile.enabled": False,  # it looks at every thread every 10 ms
    }
    with ExitStack() as stack:
        stack.enter_context(dask.config.set(settings))
        with uninterrupted():
            cluster = stack.enter_context(
                started(
                    gpu_cluster if crew.gpus else LocalCluster,
                    n_workers=crew.workers,
                    threads_per_worker=crew.threads,
                    host="127.0.0.1",
                    dashboard_address="127.0.0.1:0",
                    memory_limit=None,  # what a worker takes is settled beforehand: see `Forecast`
                    preload=[preload],
                    env=dict(os.environ),  # as it is now, not when forking was prepared
                    silence_logs=logging.CRITICAL,  # what a task raises is told of here
                )
            )
        yield stack.enter_context(Client(cluster))


def started(kind: Callable[..., LocalCluster], **how: Any) -> LocalCluster:
    """Start a cluster of this machine; again where one of its processes dies as it begins.

    Later Dask replaces those that die.

    Raises
    ------
    ZarrmaskError
        Where they die each time.
    """
    for _ in range(STARTS):
        try:
            return kind(**how)
        except RuntimeError as error:
            if "Nanny failed to start" not in str(error):
                raise
    raise ZarrmaskError(
        f"{how['n_workers']} workers were started {STARTS} times, and each time one died at once: "
        "most likely for want of memory (see the system's log), or it was killed. Take fewer "
        "(--workers), or give them more; then run the same command again: it goes on"
    )


def require_sight(client: Client, paths: Sequence[Place]) -> None:
    """Refuse a cluster that lacks what zarrmask needs, has another zarrmask or sees other files.

    Parameters
    ----------
    client : Client
    paths : sequence of Place
        What there is, of what a run reads and writes; URLs are the same everywhere.

    Raises
    ------
    ZarrmaskError
        With the workers, and what they lack or do not see.
    """
    try:
        _require_same("the scheduler", client.run_on_scheduler(_version))
    except ModuleNotFoundError as error:
        raise _lacking("the scheduler", error) from None
    wanted = [str(path) for path in paths if isinstance(path, Path)]
    answers: dict[str, Any] = client.run(_equipment, wanted, on_error="return")
    unseen: dict[str, list[str]] = {}
    for worker, answer in answers.items():
        if isinstance(answer, OSError):
            continue  # it is lost: others work
        if isinstance(answer, Exception):
            # What cannot even be unpickled comes as an Exception that quotes the error.
            lacking = isinstance(answer, ModuleNotFoundError) or "No module" in str(answer)
            raise _lacking(f"the worker {worker}", answer) if lacking else answer
        version, unseen[worker] = answer
        _require_same(f"the worker {worker}", version)
    blind = {worker: lacking for worker, lacking in unseen.items() if lacking}
    if blind:
        lines = [f"{worker}: {', '.join(lacking)}" for worker, lacking in blind.items()]
        raise ZarrmaskError(
            f"{len(blind)} of the cluster's {len(unseen)} workers do not see what is read or "
            "written; have it under the same path everywhere (a shared file system), or at a URL:\n"
            + "\n".join(f"  {line}" for line in first_of(lines, MOST_NAMED))
        )


INSTALL = "install the same zarrmask, with what it needs, on the scheduler and on all workers"


def _lacking(who: str, error: Exception) -> ZarrmaskError:
    found = re.search("No module named '([^']+)'", str(error))
    name = getattr(error, "name", None) or (found[1] if found else error)
    return ZarrmaskError(f"{who} of the cluster lacks the module {name}; {INSTALL}")


def _require_same(who: str, version: str) -> None:
    if version != __version__:
        raise ZarrmaskError(
            f"{who} of the cluster has zarrmask {version}, this is {__version__}; {INSTALL}"
        )


def _version() -> str:
    """Of zarrmask; where it is not installed, this cannot even be unpickled."""
    return __version__


def _equipment(paths: Sequence[str]) -> tuple[str, list[str]]:
    """A worker's version of zarrmask, if it has what that needs, and what the worker cannot see."""
    import_module("zarrmask.running.tasks")
    for name in LATER:
        if find_spec(name) is None:
            raise ModuleNotFoundError(name, name=name)
    return _version(), [path for path in paths if not Path(path).exists()]


@contextmanager
def reach(scheduler: str, patience: float, reporter: Reporter) -> Iterator[Client]:
    """Connect to a cluster that is there."""
    for name in ("distributed", "distributed.client", "tornado.application"):
        logging.getLogger(name).setLevel(logging.CRITICAL)  # losses are told of here
    try:
        client = Client(scheduler, timeout=TIMEOUT)
    except (OSError, ValueError) as error:
        raise ZarrmaskError(
            f"no Dask scheduler answers at {scheduler}: {error}\n"
            "start one with `dask scheduler`, or leave --scheduler out to work on this machine"
        ) from None
    with client:
        if not client.nthreads():
            reporter.say(f"the Dask cluster at {scheduler} has no worker; {waiting(patience)}")
            _await_worker(client, scheduler, patience)
        yield client


def _await_worker(client: Client, scheduler: str, patience: float) -> None:
    try:
        client.wait_for_workers(1, timeout=patience)
    except TimeoutError:
        raise ZarrmaskError(
            f"the Dask cluster at {scheduler} has no worker; start some with "
            f"`dask worker {scheduler}`, then run the same command again, with more --patience if "
            "they take longer to come"
        ) from None


def come_to_rest(client: Client, reporter: Reporter, seconds: float = 600.0) -> None:
    """Wait until no worker works on anything of this span, or of another of its name.

    What is cancelled goes on until it is done, even where who handed it in is gone. What others do
    on the same cluster is theirs.

    Parameters
    ----------
    client : Client
    reporter : Reporter
        Where it says that it waits.
    seconds : float
        How long to wait at most.

    Raises
    ------
    ZarrmaskError
        If some go on for longer.
    """
    name = dask.get_annotations()["span"]["name"]
    end, quiet, told = time.monotonic() + seconds, 0, False
    while True:
        busy = any(client.run(_works_on, name, on_error="ignore").values())
        quiet = 0 if busy else quiet + 1
        if quiet == 2:  # the word that there is nothing to do may have been on its way
            return
        if busy and not told:
            reporter.say("workers are still at what was cancelled; waiting for them")
            told = True
        if time.monotonic() > end:
            raise ZarrmaskError(
                f"workers go on with what was cancelled {seconds:g} s ago; stop them, then run the "
                "same command again: it goes on"
            )
        time.sleep(0.1)


def _works_on(span: Sequence[str], dask_worker: Worker) -> bool:
    """Whether a worker has anything to do of a span."""
    state = dask_worker.state
    return any(
        tuple((task.annotations or {}).get("span", {}).get("name", ())) == tuple(span)
        for tasks in (state.executing, state.long_running, state.ready)
        for task in tasks
    )
