"""How those who work are: how many processes there are, who was lost or came back, their memory."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping, Sequence, Set
from concurrent.futures import CancelledError
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from distributed import Client, span
from distributed.client import ClosedClientError
from distributed.comm import CommClosedError

from zarrmask.errors import ZarrmaskError, sized
from zarrmask.progress import Reporter
from zarrmask.storage.place import Place, printable
from zarrmask.workers.blocks import let_go
from zarrmask.workers.cluster import PATIENCE, come_to_rest, connect, waiting
from zarrmask.workers.crew import Crew
from zarrmask.workers.peak_memory import PeakMemory

INTERVAL = 1.0
"""Seconds between two looks: a question of some bytes a worker to the scheduler."""
NOTICE = 5.0
"""Seconds in which a client learns that its scheduler is gone."""


@dataclass
class Roll:
    """Who is there, by names that no two processes share.

    Attributes
    ----------
    present : set of str
        At the last call.
    most : int
        Workers that were there at once, at most.
    lost, regained : int
        Since the first call. Whoever comes while another is missing stands in for that one.
    """

    present: Set[str] = field(default_factory=frozenset)
    most: int = 0
    lost: int = 0
    regained: int = 0

    def call(self, present: Set[str]) -> None:
        """Take note of who is there now."""
        self.lost += len(self.present - present)
        arrived = len(present - self.present) if self.most else 0
        self.regained += min(arrived, self.lost - self.regained)
        self.present = frozenset(present)
        self.most = max(self.most, len(present))

    def __str__(self) -> str:
        """Say it in a few words.

        Examples
        --------
        >>> str(Roll(frozenset("abc"), most=4, lost=2, regained=1))
        '3 of 4 workers (2 lost, 1 regained)'
        """
        there = f"{len(self.present)} of {self.most} workers"
        return there + (f" ({self.lost} lost, {self.regained} regained)" if self.lost else "")

    def record(self) -> dict[str, int]:
        """Give it for JSON."""
        return {"most": self.most, "lost": self.lost, "regained": self.regained}


class Workshop(NamedTuple):
    """A crew at work.

    Attributes
    ----------
    client : Client
        Connected to it.
    roll : Roll
        Who is there.
    memory : PeakMemory
        Of this process and those that it started.
    """

    client: Client
    roll: Roll
    memory: PeakMemory


@contextmanager
def at_work(
    crew: Crew, out: Place, seen: Sequence[Place], reporter: Reporter
) -> Iterator[Workshop]:
    """Connect to a crew, and look after it; see `zarrmask.workers.cluster.connect` and `watched`.

    What it still does for a session that was stopped is waited for: it might write, or enter in the
    ledger, what this one removes.

    Parameters
    ----------
    crew : Crew
        As `zarrmask.workers.crew.find_crew` found it.
    out : Place
        What is written, and held.
    seen : sequence of Place
        What it is to see.
    reporter : Reporter
    """
    with (
        PeakMemory() as memory,
        connect(crew, seen, reporter) as client,
        watched(client, reporter, memory, crew.patience) as roll,
        # One for all: the scheduler never forgets any, nor what workers measured.
        span(f"zarrmask {printable(out)}"),
    ):
        if not crew.local:
            come_to_rest(client, reporter)
        if "dashboard" in client.scheduler_info()["services"]:
            reporter.say(f"dashboard: {client.dashboard_link}")
        yield Workshop(client, roll, memory)


@contextmanager
def watched(
    client: Client, reporter: Reporter, memory: PeakMemory, patience: float = PATIENCE
) -> Iterator[Roll]:
    """Look after the workers meanwhile: the reporter shows how they are, and says who is lost.

    Whatever waits for them in vain is ended: nothing else has to mind how long it waits.

    Parameters
    ----------
    client : Client
        Of the cluster that they belong to.
    reporter : Reporter
    memory : PeakMemory
        Of this process and those that it started.
    patience : float
        Seconds to wait for a worker where none is left.

    Raises
    ------
    ZarrmaskError
        Where none has come by then, or the scheduler is gone, or was restarted.
    """
    roll = Roll()
    done = threading.Event()
    elsewhere = 0
    alone: float | None = None
    """Since when there has been nobody."""
    forsaken = False

    def look() -> None:
        nonlocal elsewhere, alone, forsaken
        workers: Mapping[str, int] = client.run_on_scheduler(_workers)
        before = roll.lost, roll.regained
        roll.call(workers.keys())
        elsewhere = 0 if client.cluster is not None else sum(workers.values())
        if (roll.lost, roll.regained) != before:
            reporter.say(f"{roll}")
        if roll.present:
            alone = None
        elif alone is None:
            alone = time.monotonic()
            reporter.say(f"no worker is left; {waiting(patience)}")
        forsaken = forsaken or (alone is not None and time.monotonic() - alone > patience)
        if forsaken:  # again and again: more may be asked for meanwhile
            let_go(client)

    def watch() -> None:
        while not done.wait(INTERVAL):
            try:
                look()
            except Exception:  # it is busy, or gone, which those who need it will tell
                if client.status != "running":
                    return

    watcher = threading.Thread(target=watch, name="vitals", daemon=True)
    try:
        look()
        reporter.vitals = lambda: f"{sized(memory.now + elsewhere)} memory, {roll}"
        watcher.start()
        try:
            yield roll
        finally:
            done.set()
            watcher.join(INTERVAL)  # one that asks a scheduler which is gone takes longer
        with suppress(Exception):  # the work is done, whoever is there
            look()  # who came since the last time
    except (CancelledError, ClosedClientError, OSError, RuntimeError) as error:
        if forsaken:
            raise ZarrmaskError(
                "no worker has come back; start some, then run the same command again: it goes on. "
                "With more --patience it waits longer"
            ) from None
        if isinstance(error, CancelledError) and client.status == "running":
            raise ZarrmaskError(
                "all that the Dask cluster had to do was cancelled: it, or its scheduler, was "
                "restarted; run the same command again: it goes on"
            ) from None
        if isinstance(error, CancelledError) or has_lost(client, error):
            raise ZarrmaskError(
                "the Dask scheduler is gone; start it again, then run the same command: it goes on"
            ) from None
        raise
    finally:
        reporter.vitals = str


def has_lost(client: Client, error: Exception) -> bool:
    """Whether a client has lost its scheduler; who asks may learn of it before it does."""
    end = time.monotonic() + NOTICE
    while isinstance(error, CommClosedError) and client.status == "running":
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return bool(client.status != "running")


def _workers(dask_scheduler: Any) -> dict[str, int]:
    """Memory in bytes of each worker's process, by a name that it alone has; on the scheduler."""
    return {
        worker.server_id: int(worker.metrics.get("memory", 0))
        for worker in dask_scheduler.workers.values()
    }
