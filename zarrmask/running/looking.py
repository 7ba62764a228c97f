"""The stage of a run that detects.

In rounds where keyframes place themselves, and again where one contradicts those around it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from heapq import heappop, heappush
from math import prod
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
from distributed import Client
from numpy.typing import NDArray

from zarrmask.detection.inputs import NetworkInput, Window
from zarrmask.errors import ZarrmaskError
from zarrmask.masking import Answer, Ask, Doubt, Keyframes, KeyframeStore, Sighting, seek
from zarrmask.masking.sighting import REPLACED
from zarrmask.planning.plan import Plan
from zarrmask.planning.reading import RUNS_A_WORKER, KeyframeRuns, keyframe_runs
from zarrmask.progress import Advance, Reporter
from zarrmask.records.ledger import Ledger
from zarrmask.running import tasks
from zarrmask.running.reading import lazy_slices
from zarrmask.running.second_look import LARGEST
from zarrmask.stack import Source
from zarrmask.workers.blocks import computed
from zarrmask.workers.detectors import INTERVAL, Detectors

MOST_LOSSES = 5
"""Times that detectors are lost, one after another, without a slice seen between them."""
FIRST, SECOND = "detecting", "redetecting"
"""Stages of the ledger."""
TOGETHER, AHEAD = 8, 16
"""While bricks are written, a task looks at this many slices at most, one after the other, and this
many tasks are handed in for each detector: for slices in the network, and those read meanwhile."""

_Key: TypeAlias = tuple[int, str]
"""A position, and the ledger's stage that has the answer."""


def detect_keyframes(
    client: Client,
    source: Source,
    plan: Plan,
    window: Window,
    detectors: Detectors,
    store: KeyframeStore,
    ledger: Ledger,
    reporter: Reporter,
    *,
    shares: bool = False,
) -> Iterator[Keyframes]:
    """Detect where the plan wants it; what was found goes to `store`.

    What the ledger knows is not detected again, and all that follows from it is decided again.

    Parameters
    ----------
    detectors : Detectors
        Those that are loaded already are let go when all is detected, though these are not.
    ledger : Ledger
        Of the run.
    shares : bool
        Whether the workers write bricks meanwhile.

    Yields
    ------
    Keyframes
        Whenever more of them are settled; the last are complete.
    """
    if store.reserve(len(plan.keyframes), *source.shape[1:]):
        for stage in (FIRST, SECOND):
            ledger.stage(stage).forget()  # somebody removed what it speaks of
    taken = detectors.taken_over()
    eyes = _Eyes(client, source, plan, window, taken, store, ledger, reporter, shares)
    for found in seek(plan.placing, eyes.looks, mends=plan.mends):
        if found.complete:
            store.write_sightings(plan.numbers, found.sightings, found.states, found.positions)
        yield found


def record_of(found: Keyframes, numbers: NDArray[np.int64]) -> dict[str, Any]:
    """What a run's record keeps of its keyframes.

    Parameters
    ----------
    found : Keyframes
    numbers : (c,) int64
        Slice numbers of the candidates.
    """
    odd: dict[str, list[dict[str, Any]]] = {"redone": [], "replaced": []}
    for one in found.odd:
        sides = (None if side is None else int(numbers[side]) for side in (one.before, one.behind))
        entry = {"z": int(numbers[one.position]), "why": one.why, "between": list(sides)}
        if one.by is None:
            odd["replaced"].append(entry)
        else:
            odd["redone"].append({**entry, "by": one.by})
    seen = zip(numbers[found.positions].tolist(), found.sightings, found.states, strict=True)
    return {
        "count": len(found.positions),
        "used": len(found.used),
        "without_detection": [
            z for z, sighting, state in seen if state != REPLACED and not len(sighting.scores)
        ],
        **odd,
    }


@dataclass
class _Eyes:
    """Detectors on a cluster, and what they are to look at; see `detect_keyframes`."""

    client: Client
    source: Source
    plan: Plan
    window: Window
    detectors: Detectors
    store: KeyframeStore
    ledger: Ledger
    reporter: Reporter
    shares: bool
    losses: int = 0
    answered: int = 0
    wanted: dict[_Key, Ask] = field(default_factory=dict)
    """What is asked for and not answered."""
    free: list[_Key] = field(default_factory=list)
    """A heap of what of it nobody looks at."""

    def looks(self, ask: Callable[[], Sequence[Ask]]) -> Iterator[tuple[Ask, Answer]]:
        """See `zarrmask.masking.seeking.Looker`."""
        while True:
            known = self._entries()
            self.free = []
            yield from self._known(list(self.wanted.values()), known)
            while asks := ask():
                yield from self._known(asks, known)
            if not self.wanted:
                return
            self.detectors.load()
            before = self.answered
            try:
                network_input = self.detectors.network_input()
                with self._shown() as advance:
                    for seen, entries in self._computed(network_input):
                        self.detectors.top_up()
                        advance(len(seen))
                        for one, entry in zip(seen, entries, strict=True):
                            yield self._answered(one, entry)
                        still = len(self.wanted)
                        while asks := ask():
                            yield from self._known(asks, known)
                        advance(0, len(self.wanted) - still)
                return
            except (OSError, RuntimeError, ValueError) as error:
                if "Actor" not in str(error):
                    raise
                self.losses = 1 if self.answered > before else self.losses + 1
                if self.losses > MOST_LOSSES:
                    raise ZarrmaskError(
                        f"workers were lost with their detectors {self.losses} times, and no slice "
                        "was seen between them, most likely for want of memory; use fewer "
                        "--workers, or workers with more memory, then run the same command again: "
                        "it goes on"
                    ) from None
                self.reporter.say("a worker was lost with its detector; what it had is done again")
                time.sleep(INTERVAL)  # the scheduler may not have noticed yet

    def _entries(self) -> dict[_Key, Any]:
        """All that the ledger knows."""
        return {
            (int(position), stage): entry
            for stage in (FIRST, SECOND)
            for position, entry in self.ledger.stage(stage).results().items()
        }

    def _known(
        self, asks: Sequence[Ask], known: Mapping[_Key, Any]
    ) -> Iterator[tuple[Ask, Answer]]:
        """Answer what the ledger knows; the rest is wanted."""
        for one in asks:
            self.wanted[_key(one)] = one
            if _key(one) in known:
                yield self._answered(one, known[_key(one)])
            else:
                heappush(self.free, _key(one))

    def _answered(self, one: Ask, entry: Any) -> tuple[Ask, Answer]:
        """Say what the ledger's entry says."""
        del self.wanted[_key(one)]
        self.answered += 1
        if isinstance(one, Doubt):
            return one, None if entry is None else (entry["by"], Sighting.from_json(entry))
        return one, Sighting.from_json(entry)

    def _shown(self) -> AbstractContextManager[Advance]:
        """Show how many slices were looked at, of those that are wanted so far."""
        total, pixels = self.answered + len(self.wanted), prod(self.source.shape[1:])
        size = total * pixels * self.source.dtype.itemsize
        return self.reporter.stage(FIRST, total, "slices", before=self.answered, size=size)

    def _computed(
        self, network_input: NetworkInput
    ) -> Iterator[tuple[list[Ask], NDArray[np.object_]]]:
        """Look at what is wanted, whenever it comes to be; gives what the ledger gets, by task.

        Where bricks are written meanwhile, half of the workers' threads stay free for them. One
        task more than that waits, so that no brick takes the place of one that is done.
        """
        asked: list[list[list[Ask]]] = []

        def begin() -> da.Array | None:
            if not self.free:
                return None
            asks, runs = self._chosen(network_input)
            of_tasks = zip(np.cumsum(runs.lengths).tolist(), runs.lengths, strict=True)
            asked.append([asks[end - length : end] for end, length in of_tasks])
            return self._looks(asks, runs, network_input)

        def at_once() -> int:
            if not self.shares:
                return len((FIRST, SECOND))
            half: int = sum(self.client.nthreads().values()) // 2
            each = max(AHEAD, 2 * self.detectors.together)  # a task asks for slice after slice
            return min(half, each * len(self.detectors)) + 1

        for layer, task, entries in computed(
            self.client, begin, at_once=at_once, priority=int(self.shares)
        ):
            yield asked[layer][task], entries

    def _chosen(self, network_input: NetworkInput) -> tuple[list[Ask], KeyframeRuns]:
        """Choose what to look at next, of one kind; say how it is read.

        All, unless bricks are written meanwhile: then what the first task reads.
        """
        if self.shares:
            workers, most = 1, min(len(self.free), RUNS_A_WORKER * TOGETHER)
        else:
            workers, most = len(self.client.nthreads()), len(self.free)
        keys = [heappop(self.free) for _ in range(most)]
        stage = keys[0][1]
        chosen = [key for key in keys if key[1] == stage]
        scaled = network_input.scaled(LARGEST) if stage == SECOND else network_input.read
        indices = self.plan.keyframes[[position for position, _ in chosen]]
        seen = scaled.shape(*self.source.shape[1:])
        runs = keyframe_runs(self.source, indices, seen, workers)
        if self.shares:
            runs = runs.first()
        chosen = chosen[: len(runs.indices)]
        for key in set(keys) - set(chosen):
            heappush(self.free, key)
        return [self.wanted[key] for key in chosen], runs

    def _looks(
        self, asks: Sequence[Ask], runs: KeyframeRuns, network_input: NetworkInput
    ) -> da.Array:
        """Look at some slices, as a lazy array of what the ledger gets."""
        slices = lazy_slices(runs)
        questions = np.empty(len(asks), object)
        questions[:] = asks
        return da.map_blocks(
            tasks.detect_anew if isinstance(asks[0], Doubt) else tasks.detect,
            slices,
            da.from_array(questions.reshape(-1, 1, 1), chunks=(slices.chunks[0], 1, 1)),
            detectors=self.detectors.directory,
            network_input=network_input,
            ledger=self.ledger.stage(_key(asks[0])[1]),
            shape=self.source.shape[1:],
            window=self.window,
            store=self.store,
            drop_axis=[1, 2],
            dtype=object,
            meta=np.empty(0, object),
        )


def _key(one: Ask) -> _Key:
    return (one.position, SECOND) if isinstance(one, Doubt) else (one, FIRST)
