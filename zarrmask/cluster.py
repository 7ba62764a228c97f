"""Where the work runs: a local Dask cluster of its own, or the cluster at an address."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import dask
import dask.system
from distributed import Client, LocalCluster

from zarrmask.errors import ZarrmaskError

# Ctrl-C goes to all processes of a terminal: the client alone is to stop, and to stop the workers.
_PRELOAD = (
    "import atexit, cv2, logging, signal, sys; cv2.setNumThreads(1)\n"
    "signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
    # When a store fails, the client tells of it: not each request that a worker leaves behind, too.
    "atexit.register(setattr, sys, 'unraisablehook', lambda _: None)\n"
    "atexit.register(logging.disable)\n"
)

TIMEOUT = "30s"
"""How long a scheduler may take to answer."""
PATIENCE = 60
"""Seconds that the first worker of a named cluster may take to come."""


@contextmanager
def connect(scheduler: str | None = None, workers: int | None = None) -> Iterator[Client]:
    """Connect to a Dask cluster.

    Parameters
    ----------
    scheduler : str, optional
        Address of a running cluster's scheduler. Without it a local cluster is started, and closed
        at the end: processes with one thread each, on 127.0.0.1 only.
    workers : int, optional
        Processes of the local cluster; one a core by default.

    Raises
    ------
    ZarrmaskError
        Where no scheduler answers, or it has no worker.
    """
    if scheduler is not None:
        if workers is not None:
            raise ZarrmaskError(
                "a cluster at --scheduler has its own workers; leave --workers out, or --scheduler"
            )
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # losses are told of here
        try:
            client = Client(scheduler, timeout=TIMEOUT)
        except (OSError, ValueError) as error:
            raise ZarrmaskError(
                f"no Dask scheduler answers at {scheduler}: {error}\n"
                "start one with `dask scheduler`, or leave --scheduler out to work on this machine"
            ) from None
        with client:
            _await_worker(client, scheduler)
            yield client
        return
    if workers is None:
        workers = dask.system.CPU_COUNT
    threads = max(1, dask.system.CPU_COUNT // workers)
    settings = {
        "distributed.nanny.environ.RAYON_NUM_THREADS": threads,  # of zarrs
        "distributed.worker.multiprocessing-method": "spawn",  # zarrs does not survive a fork
        "distributed.worker.memory.spill": False,  # no result here is worth a disk's time
        "distributed.worker.memory.target": False,
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=_dashboard(),
            preload=[_PRELOAD],
            silence_logs=logging.CRITICAL,  # what a task raises is told of here
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def _dashboard() -> str:
    """Dask's usual port where it is free, else any."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", 8787))
        except OSError:
            return "127.0.0.1:0"
    return "127.0.0.1:8787"


def _await_worker(client: Client, scheduler: str) -> None:
    try:
        client.wait_for_workers(1, timeout=PATIENCE)
    except TimeoutError:
        raise ZarrmaskError(
            f"the Dask cluster at {scheduler} has no worker after {PATIENCE} s; start some with "
            f"`dask worker {scheduler}`"
        ) from None
