"""The stage of a run that detects.

In rounds where keyframes place themselves, and again where one contradicts those around it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, TypeAlias

import dask.array as da
import numpy as np
from distributed import Client
from numpy.typing import NDArray

from zarrmask import tasks
from zarrmask.blocks import results
from zarrmask.detection.inputs import NetworkInput, Window
from zarrmask.errors import ZarrmaskError
from zarrmask.ledger import Ledger
from zarrmask.masking import Doubt, Keyframes, KeyframeStore, Sighting, seek
from zarrmask.masking.sighting import REPLACED
from zarrmask.plan import Plan
from zarrmask.progress import Reporter, listed
from zarrmask.second_look import LARGEST
from zarrmask.stack import Source
from zarrmask.stages import keyframe_runs, lazy_slices

MOST_LOSSES = 5
"""Times that detectors are lost, one after another, without a slice seen between them."""
FIRST, SECOND = "detecting", "redetecting"
"""Stages of a run, and of its ledger."""

Load: TypeAlias = Callable[[], Sequence[Any]]


def detect_keyframes(
    client: Client,
    source: Source,
    plan: Plan,
    window: Window,
    detectors: Sequence[Any],
    load: Load,
    store: KeyframeStore,
    ledger: Ledger,
    reporter: Reporter,
) -> Keyframes:
    """Detect where the plan wants it; what was found goes to `store`.

    What the ledger knows is not detected again, and all that follows from it is decided again.

    Parameters
    ----------
    detectors : sequence
        Actors, if some are loaded already.
    load : callable
        Loads them. Dask does not make an actor anew when its worker dies.
    ledger : Ledger
        Of the run.
    """
    if store.reserve(len(plan.placing.first), *source.shape[1:]):
        for stage in (FIRST, SECOND):
            ledger.stage(stage).forget()  # somebody removed what it speaks of
    eyes = _Eyes(client, source, plan, window, detectors, load, store, ledger, reporter)
    found = seek(plan.placing, eyes.look, eyes.look_again if plan.mends else None)
    store.write_sightings(plan.numbers[found.positions], found.sightings, found.states)
    return found


def record_of(found: Keyframes, numbers: NDArray[np.int64]) -> dict[str, Any]:
    """What a run's record keeps of its keyframes.

    Parameters
    ----------
    found : Keyframes
    numbers : (c,) int64
        Slice numbers of the candidates.
    """
    of_place = numbers[found.positions].tolist()
    odd: dict[str, list[dict[str, Any]]] = {"redone": [], "replaced": []}
    for one in found.odd:
        sides = (None if side is None else of_place[side] for side in (one.before, one.behind))
        entry = {"z": of_place[one.place], "why": one.why, "between": list(sides)}
        if one.by is None:
            odd["replaced"].append(entry)
        else:
            odd["redone"].append({**entry, "by": one.by})
    used = [place for place, state in enumerate(found.states) if state != REPLACED]
    return {
        "count": len(found.positions),
        "used": len(used),
        "without_detection": sorted(
            of_place[place] for place in used if not len(found.sightings[place].scores)
        ),
        **odd,
    }


def warnings_of(record: Mapping[str, Any]) -> list[str]:
    """What a person should look at, from what `record_of` gives."""
    warnings = []
    if empty := record["without_detection"]:
        warnings.append(
            f"nothing was found on {len(empty)} of {record['used']} keyframes; look at these, "
            f"unless the object ends there: {listed(empty)}"
        )
    if replaced := [one["z"] for one in record["replaced"]]:
        warnings.append(
            f"{len(replaced)} of {record['count']} keyframes contradict those around them, however "
            f"they are looked at, and are not used: {listed(replaced)}"
        )
    if redone := [one["z"] for one in record["redone"]]:
        warnings.append(
            f"{len(redone)} of {record['count']} keyframes contradicted those around them, and do "
            f"not since they were detected anew: {listed(redone)}"
        )
    return warnings


@dataclass
class _Eyes:
    """Detectors on a cluster, and what they are to look at; see `detect_keyframes`."""

    client: Client
    source: Source
    plan: Plan
    window: Window
    detectors: Sequence[Any]
    load: Load
    store: KeyframeStore
    ledger: Ledger
    reporter: Reporter
    losses: int = 0
    order: list[int] = field(default_factory=list)

    def look(self, positions: Sequence[int], first: int) -> list[Sighting]:
        """See `zarrmask.masking.seeking.Look`."""
        self.order += positions
        self.store.reserve(len(self.order), *self.source.shape[1:])
        places = list(range(first, first + len(positions)))
        entries = self._entries(FIRST, places, np.array(places), tasks.detect)
        return [Sighting.from_json(entry) for entry in entries]

    def look_again(self, doubts: Sequence[Doubt]) -> list[tuple[str, Sighting] | None]:
        """See `zarrmask.masking.seeking.LookAgain`."""
        questions = np.empty(len(doubts), object)
        questions[:] = doubts
        places = [doubt.place for doubt in doubts]
        entries = self._entries(SECOND, places, questions, tasks.detect_anew, LARGEST)
        return [
            None if entry is None else (entry["by"], Sighting.from_json(entry)) for entry in entries
        ]

    def _entries(
        self, stage: str, places: list[int], questions: NDArray, task: Any, scale: float = 1.0
    ) -> list[Any]:
        """What the ledger says of some keyframes, once a task has seen those that it lacks.

        Parameters
        ----------
        questions : (k,) array
            What the task is told with each keyframe.
        scale : float
            By how much more than usual of a slice the network may see.
        """
        ledger = self.ledger.stage(stage)
        while missing := ledger.missing(places):
            self.detectors = self.detectors or self.load()
            network_input: NetworkInput = self.detectors[0].input().result()
            seen = network_input.scaled(scale).shape(*self.source.shape[1:])
            indices = self.plan.keyframes[[self.order[places[n]] for n in missing]]
            workers = len(self.client.nthreads())
            slices = lazy_slices(keyframe_runs(self.source, indices, seen, workers))
            asked = questions[missing].reshape(-1, 1, 1)
            looks = da.map_blocks(
                task,
                slices,
                da.from_array(asked, chunks=(slices.chunks[0], 1, 1)),
                detectors=self.detectors,
                network_input=network_input,
                ledger=ledger,
                shape=self.source.shape[1:],
                window=self.window,
                store=self.store,
                drop_axis=[1, 2],
                dtype=bool,
                meta=np.empty(0, bool),
            )
            try:
                done, pixels = len(places) - len(missing), prod(slices.shape[1:])
                size = len(places) * pixels * slices.dtype.itemsize
                with self.reporter.stage(
                    stage, len(places), "slices", before=done, size=size
                ) as advance:
                    results(self.client, [looks], advance)
            except (OSError, RuntimeError, ValueError) as error:
                if "Actor" not in str(error):
                    raise
                progress = len(ledger.missing(places)) < len(missing)
                self.losses = 1 if progress else self.losses + 1
                if self.losses > MOST_LOSSES:
                    raise ZarrmaskError(
                        f"workers were lost with their detectors {self.losses} times, and no slice "
                        "was seen between them, most likely for want of memory; use fewer "
                        "--workers, or workers with more memory, then run the same command again: "
                        "it goes on"
                    ) from None
                self.reporter.say("a worker was lost with its detector; detectors are loaded anew")
                self.detectors = []
        entries = ledger.results()
        return [entries[str(place)] for place in places]
