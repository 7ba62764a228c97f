"""The detectors of a run, on workers that come and go: one on each GPU, else one on each worker."""

from __future__ import annotations

import copy
import time
from collections.abc import Collection, Mapping, Sequence, Set
from concurrent.futures import CancelledError
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from distributed import Actor, Client, Future
from distributed.scheduler import KilledWorker

from zarrmask.detection.actors import (
    LOST,
    DetectorActor,
    DetectorLostError,
    DetectorSpec,
    Directory,
    ask,
)
from zarrmask.errors import ZarrmaskError
from zarrmask.progress import Reporter
from zarrmask.workers.cluster import PATIENCE, waiting

if TYPE_CHECKING:
    from zarrmask.detection.devices import Kind
    from zarrmask.detection.inputs import NetworkInput

ATTEMPTS = 5
"""Times that workers may die of loading before there is a detector; those of a machine at once."""
INTERVAL = 1.0
"""Seconds between two looks at who has come."""
FIRST = 1000
"""Priority of loading: before all that asks a detector."""
ACCELERATORS: tuple[Kind, ...] = ("cuda", "mps")
"""Kinds, as names of their devices begin; "auto" takes the first that any worker sees."""
NAMES = {"cuda": "a CUDA GPU", "mps": "an Apple GPU (MPS)", "cpu": "a processor"}


@dataclass(frozen=True)
class Seat:
    """Where a detector is, or may be.

    Attributes
    ----------
    worker : str
        Its address.
    unit : str
        Identity of what computes: workers on one machine may see the same GPU.
    device : str
        As torch names it on that worker: "cpu", "cuda:0".
    """

    worker: str
    unit: str
    device: str


def vacant(
    seen: Mapping[str, Sequence[tuple[str, str]]], taken: Collection[Seat] = ()
) -> list[Seat]:
    """Where detectors are missing: one on each unit, on a worker that sees it.

    Workers of dask-cuda see all GPUs, each another one first: that one is its own.

    Parameters
    ----------
    seen : mapping
        Worker's address to identity and device of what it sees; see
        `zarrmask.detection.devices.accelerators`.
    taken : collection of Seat
        Where there is one.

    Examples
    --------
    >>> both = [("first", "cuda:0"), ("second", "cuda:1")]
    >>> [(seat.worker, seat.device) for seat in vacant({"a": both, "b": both, "c": []})]
    [('a', 'cuda:0'), ('b', 'cuda:1')]
    >>> turned = {"a": [("second", "cuda:0"), ("first", "cuda:1")], "b": both}
    >>> [(seat.worker, seat.device) for seat in vacant(turned)]
    [('a', 'cuda:0'), ('b', 'cuda:0')]
    >>> [(seat.worker, seat.unit) for seat in vacant(turned, [Seat("b", "first", "cuda:0")])]
    [('a', 'second')]
    """
    seen_by: dict[str, list[tuple[int, str, str]]] = {}
    for worker, units in seen.items():
        for turn, (unit, device) in enumerate(units):
            seen_by.setdefault(unit, []).append((turn, worker, device))
    for seat in taken:
        seen_by.pop(seat.unit, None)
    workers = [seat.worker for seat in taken]
    seats: list[Seat] = []
    for unit, candidates in seen_by.items():
        _, worker, device = min(candidates, key=lambda one: (workers.count(one[1]), one[0]))
        workers.append(worker)
        seats.append(Seat(worker, unit, device))
    return seats


class Detectors:
    """Detectors on a cluster, which live as long as this does.

    Dask makes no actor anew whose worker dies, and none for a worker that comes.

    Parameters
    ----------
    client : Client
    spec : DetectorSpec
    reporter : Reporter
    asked : "auto", "cpu", "cuda" or "mps"
        "auto" takes GPUs if any worker sees one when detectors are loaded for the first time.
    kind : "cpu", "cuda" or "mps", optional
        What that came to in an earlier session: nothing else will do.
    patience : float
        Seconds to wait for a worker that has this kind, where there is none any more.

    Attributes
    ----------
    kind : "cpu", "cuda", "mps" or None
        What they work on, all of them; settled when they are loaded for the first time.
    """

    def __init__(
        self,
        client: Client,
        spec: DetectorSpec,
        reporter: Reporter,
        asked: Kind = "auto",
        kind: Kind | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self.kind = "cpu" if kind is None and asked == "cpu" else kind
        self._client, self._spec, self._reporter = client, spec, reporter
        self._asked, self._patience = asked, patience
        self._name = f"detector-{uuid4().hex}"
        self._actors: dict[Future, Seat] = {}
        self._seen: dict[str, list[tuple[str, str]]] = {}
        self._refusals: dict[str, BaseException] = {}
        self._looked, self._count = 0.0, 0

    def __len__(self) -> int:
        """How many can be asked."""
        return len(self._loaded)

    @property
    def directory(self) -> Directory:
        """Where they are, for the tasks that ask them."""
        places = ((str(actor.key), seat.worker) for actor, seat in self._loaded.items())
        return Directory(self._name, tuple(places))

    def network_input(self) -> NetworkInput:
        """How a slice becomes what the network sees.

        Raises
        ------
        DetectorLostError
            Where the detector that is asked is gone. Dask may raise an OSError or a RuntimeError.
        """
        if not (places := self.directory.places):
            raise DetectorLostError(LOST)
        key, worker = places[0]
        with self._client.as_current():
            seen: NetworkInput = ask(Actor(DetectorActor, worker, key), "input")
        return seen

    def taken_over(self) -> Detectors:
        """Give all that there are to another, which lets go of them when it goes."""
        other = copy.copy(self)
        self._actors = {}
        return other

    def load(self) -> None:
        """Wait until there is a detector: where there is none, for all that there can be.

        Raises
        ------
        CheckpointError
            From the workers, where the checkpoint cannot be loaded.
        SettingsError
            Where no worker has the device, the precision or the backend that was asked for.
        ZarrmaskError
            Where workers die of it; where none has come by then that has what the others had.
        """
        self._look()
        if not self._loaded:
            with self._reporter.stage("loading detectors", 1, "checkpoint") as advance:
                self._wait()
                advance(1)

    def top_up(self) -> None:
        """Load detectors on workers that have come, without waiting for them.

        Looks now and then, however often it is called. A worker that cannot have one is named: its
        tasks ask those of others.
        """
        if time.monotonic() - self._looked < INTERVAL:
            return
        known, before = set(self._refusals), self._count
        self._look()
        if self._count > before:
            self._reporter.say(f"detectors on workers that came: {self._count} in all")
        for worker in self._refusals.keys() - known:
            self._reporter.say(f"no detector on worker {worker}: {self._refusals[worker]}")

    @property
    def together(self) -> int:
        """How many slices one takes together."""
        return self._spec.together(self.kind or "cpu")

    @property
    def _loaded(self) -> dict[Future, Seat]:
        return {actor: at for actor, at in self._actors.items() if actor.status == "finished"}

    def _wait(self) -> None:
        deaths, since = 0, None
        here = self._client.submit(_here, pure=False)  # whoever comes first does it
        while True:
            if not self._client.nthreads():
                here.result()
            if here.status == "cancelled":  # nobody waits any more; see `let_go`
                raise CancelledError(here.key)
            deaths += self._look() > 0
            if deaths >= ATTEMPTS:
                raise ZarrmaskError(
                    f"workers died {deaths} times while the detector was loaded, most likely for "
                    "want of memory; use fewer --workers, or workers with more memory, then run "
                    "the same command again"
                )
            for refusal in self._refusals.values():
                raise refusal
            if self._actors and len(self) == len(self._actors):
                return
            lacks = self.kind if self._seen and not self._actors else None
            since = self._still_waiting(lacks, since) if lacks else None
            time.sleep(0.1)

    def _still_waiting(self, kind: Kind, since: float | None) -> float:
        """Wait for a worker of the run's kind; gives since when, and says so at first."""
        patience = self._patience if self._client.cluster is None else 0.0  # nobody joins ours
        if since is None:
            since = time.monotonic()
            if patience:
                told = f"no worker has {NAMES[kind]}, on which this run detects"
                self._reporter.say(f"{told}; {waiting(patience)}")
        if time.monotonic() - since >= patience:
            raise ZarrmaskError(
                f"none of the {len(self._seen)} workers that are there has {NAMES[kind]}, "
                "on which this run began to detect; elsewhere last digits would differ. Start a "
                "worker that has one, then run the same command again: it goes on. With more "
                "--patience it waits longer"
            )
        return since

    def _look(self) -> int:
        """Let go of detectors that are lost, and begin to load those that are missing.

        Gives how many workers were lost that were asked for one, or what they see.
        """
        workers = set(self._client.nthreads())
        count = len(self._actors)
        self._refusals = {at: why for at, why in self._refusals.items() if at in workers}
        self._actors = {
            actor: at for actor, at in self._actors.items() if self._lives(actor, at, workers)
        }
        lost = count - len(self._actors) + self._ask_what_is_seen(workers)
        seen = {at: units for at, units in self._seen.items() if at not in self._refusals}
        for seat in vacant(seen, self._actors.values()):
            actor = self._client.submit(
                DetectorActor,
                self._spec,
                seat.device,
                actor=True,
                workers=[seat.worker],
                key=f"{self._name}-{uuid4().hex}",
                priority=FIRST,
            )
            self._actors[actor] = seat
        self._looked, self._count = time.monotonic(), len(self)
        return lost

    def _lives(self, actor: Future, seat: Seat, workers: Set[str]) -> bool:
        """Whether a detector is there, or may still come to be."""
        if actor.status == "cancelled":
            raise CancelledError(actor.key)
        if actor.status == "error":
            error = actor.exception()
            if not isinstance(error, KilledWorker) and LOST not in str(error):
                self._refusals[seat.worker] = error
        # Nothing comes of an actor whose worker dies meanwhile, not even an error.
        pending = actor.status == "pending" and seat.worker in workers
        return pending or actor.status == "finished"

    def _ask_what_is_seen(self, workers: Set[str]) -> int:
        """Ask workers that came; gives how many were lost meanwhile. Settles the kind."""
        self._seen = {at: units for at, units in self._seen.items() if at in workers}
        new, lost = workers - self._seen.keys(), 0
        if self.kind != "cpu" and new:
            answers: dict[str, Any] = self._client.run(
                accelerators_here, self.kind or self._asked, workers=[*new], on_error="return"
            )
            for worker, answer in answers.items():
                if isinstance(answer, OSError):
                    lost += 1
                    continue
                if isinstance(answer, Exception):
                    self._refusals[worker] = answer
                self._seen[worker] = [] if isinstance(answer, Exception) else answer
        if self.kind is None and workers and workers <= self._seen.keys():
            self._settle()
        if self.kind == "cpu":
            self._seen = {worker: [(worker, "cpu")] for worker in workers}
        return lost

    def _settle(self) -> None:
        """Settle the kind by what all workers see."""
        devices = [device for units in self._seen.values() for _, device in units]
        there = (one for one in ACCELERATORS if any(name.startswith(one) for name in devices))
        kind: Kind = next(there, "cpu")
        if self._asked not in ("auto", kind):
            from zarrmask.detection.devices import no_accelerator

            raise no_accelerator(self._asked)
        self.kind = kind
        for worker, units in self._seen.items():
            self._seen[worker] = [one for one in units if one[1].startswith(kind)]


def accelerators_here(kind: Kind) -> list[tuple[str, str]]:
    """See `zarrmask.detection.devices.accelerators`; it takes torch."""
    from zarrmask.detection.devices import accelerators

    return accelerators(kind)


def _here() -> None:
    """What a worker does as soon as there is one; until then it is waited for."""
