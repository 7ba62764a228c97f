"""Correcting slices of a finished run: only the bricks that change are written anew."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from zarrmask.contrast import detected_window
from zarrmask.correcting.asked import Redetection, Taken, asked_for, taken_by
from zarrmask.correcting.corrections import FOLDER, Correction, side_of, store_of
from zarrmask.correcting.entry import begin, corrected, enter, undone
from zarrmask.correcting.finished import FinishedRun, open_run
from zarrmask.correcting.rewriting import find_changes, recall
from zarrmask.given.filling import fill_keyframes, sighting_of
from zarrmask.masking import SettledMasks
from zarrmask.masking.layers import LayeredMasks
from zarrmask.planning.room import check_room
from zarrmask.progress import Reporter
from zarrmask.pyramid import Shape
from zarrmask.records.journal import CORRECTING
from zarrmask.records.record import warnings_of
from zarrmask.running.finish import finish_run
from zarrmask.running.looking import detect_keyframes, record_of
from zarrmask.running.model import detectors_of
from zarrmask.running.opening import refuse_worker, to_be_seen
from zarrmask.running.session import forecast_of, shared_disk
from zarrmask.running.writing import make_pyramids, write_pyramids
from zarrmask.storage.flush import flush_all
from zarrmask.storage.place import Place, output_place, reached, remove
from zarrmask.workers.crew import Crew, CrewRequest, find_crew
from zarrmask.workers.vitals import at_work


def redo(
    run: str | Place,
    *,
    z: str | tuple[int | None, int | None] | None = None,
    hold: int | None = None,
    dilate: float | str | None = None,
    erode: float | str | None = None,
    masks: str | Place | None = None,
    first: int | None = None,
    score: float | None = None,
    checkpoint: str | Path | None = None,
    config: str | Path | None = None,
    detect_every: str | int | None = None,
    mirrored: bool | None = None,
    undo: bool = False,
    scheduler: str | None = None,
    workers: int | None = None,
    memory: str | int | None = None,
    patience: str | float | None = None,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Correct the masks of some slices of a finished run, and all that follows from them.

    One thing is asked for: `hold`, `dilate`, `erode`, `masks`, to detect anew, or `undo`.

    Parameters
    ----------
    run : path, URL or UPath
        The run's folder.
    z : "A:B" or (int or None, int or None)
        Slice numbers, B excluded; needed but to undo.
    hold : int
        Number of a slice whose mask, as it is, they all get (`--from`).
    dilate : float or str
        How much they are dilated from now on, as `dilate` of `zarrmask.run`.
    erode : float or str
        How much less they are dilated than now; below nothing they are eroded.
    masks : path, URL or UPath
        Masks for them, as `zarrmask.apply` takes them, or as large as what the run wrote; not
        dilated. Slices before the first one stay as they are.
    first : int, optional
        Number of the slice that a volume's first mask is for; by default the first of the range, of
        the run or of the stack, whichever has as many slices.
    score, checkpoint, detect_every, mirrored : optional
        Detect on these slices anew, with what is given of these, and else as the run did: `score`,
        `checkpoint`, `every` and `mirrored` of `zarrmask.run`.
    config : path, optional
        detectron2 config of that checkpoint.
    undo : bool
        Take the last correction back: all is as it was before.
    scheduler, workers, memory, patience, reporter
        As for `zarrmask.run`.

    Returns
    -------
    dict
        The run's record, with this correction the last of its `corrections`.

    Raises
    ------
    ZarrmaskError
        What was found, what was expected, and what to do.
    """
    refuse_worker()
    place = output_place(run)
    reporter = reporter or Reporter()
    asked = asked_for(
        z,
        {
            "from": hold,
            "dilate": dilate,
            "erode": erode,
            "undo": undo or None,
            "masks": masks,
            "first": first,
            "score": score,
            "checkpoint": checkpoint,
            "config": config,
            "detect-every": detect_every,
            "mirrored": mirrored,
        },
    )
    with reached(place):
        there = open_run(place)
    span = undone(there).z if undo else there.span(z or (None, None))
    taken = taken_by(there, span, asked, masks, reporter)
    if undo:
        reporter.say(f"taking back: {' '.join(undone(there).arguments)}")
    elif (
        there.stopped is None
        and there.corrections
        and there.corrections[-1].same_as(taken.correction)
    ):
        reporter.warn(
            "the last correction was the same, and is finished: this one comes on top of it "
            "(--undo takes back the last)"
        )
    request = CrewRequest(scheduler, workers, memory, patience)
    crew = find_crew(request, reporter, detects=taken.redetection is not None)
    held = held_at_once(there, span, taken.numbers)
    crew = _fitted(crew, there, taken.redetection, held, reporter)
    seen = to_be_seen(there.journal, there.source, *(taken.given.local if taken.given else []))
    with reached(place), there.journal.lock():
        correction, writing = begin(there, taken.correction, reporter)
        with at_work(crew, place, seen, reporter) as (client, *_):
            reaches = span if hold is None else (min(span[0], hold), max(span[1], hold + 1))
            before = there.masks(client, reaches, reporter)
            number = len(there.corrections)
            if not writing:
                if hold is not None:
                    correction = _keep_held(there, correction, before, hold)
                correction = _keep_taken(client, there, correction, taken, crew, reporter)
            if undo:
                after = there.without_last().masks(client, span, reporter)
            else:
                after = before.covered(*there.layers(client, before, number, correction, reporter))
            start, stop = (end - there.first - there.plan.origin[0] for end in span)
            comparing = there.journal.ledger.stage("comparing")
            changed, voxels = find_changes(
                client, there.plan, slice(start, stop), before, after, comparing, reporter
            )
            enter(there, correction, CORRECTING)
            _write(client, there, changed, after, crew, reporter)
        record = corrected(there, replace(correction, bricks=len(changed), voxels=voxels))
        finish_run(there.journal, record, there.pyramids, there.plan, reporter)
        if undo:
            remove(store_of(place, number - 1).path if number > 1 else place / FOLDER)
    return record


def _keep_taken(
    client: Client,
    there: FinishedRun,
    correction: Correction,
    taken: Taken,
    crew: Crew,
    reporter: Reporter,
) -> Correction:
    """Keep masks that are given, or that are detected anew, for a correction."""
    store, ledger = store_of(there.place, len(there.corrections)), there.journal.ledger
    if taken.given is not None:
        filling = ledger.stage("filling")
        fill_keyframes(client, taken.given, there.shape, store, filling, reporter)
    if (anew := taken.redetection) is None:
        return correction
    *_, found = detect_keyframes(
        client,
        there.source,
        anew.plan,
        detected_window(there.record),
        detectors_of(client, anew.settings, anew.checkpoint, reporter, crew.patience),
        store,
        ledger.stage("anew"),
        reporter,
    )
    told = record_of(found, anew.plan.numbers)
    for warning in warnings_of(told):
        reporter.warn(warning)
    return replace(correction, detected=told)


def held_at_once(there: FinishedRun, span: tuple[int, int], given: NDArray[np.int64]) -> int:
    """Count the masks of whole slices, at most, that a brick is compared by, as it was and becomes.

    Parameters
    ----------
    there : FinishedRun
    span : (int, int)
        Slice numbers that are corrected, the second excluded.
    given : (k,) int64
        Slice numbers of the masks that they get.
    """
    first, deep = there.plan.first, there.plan.grid.brick[0]

    def densest(numbers: NDArray[np.int64]) -> int:
        """Most of them in one brick, and the one before, which holds on."""
        bricks = np.maximum(numbers - first, 0) // deep
        return int(np.bincount(bricks).max()) + 1 if len(numbers) else 0

    start, stop = ((end - first) // deep for end in (span[0], span[1] - 1))
    before = 0
    for number, correction in enumerate(there.corrections):
        mine, last = ((end - first) // deep for end in (correction.z[0], correction.z[1] - 1))
        if correction.how.keys() & {"masks", "from"} and mine <= stop and last >= start:
            store = store_of(there.place, number)
            before += densest(np.array(store.numbers(), np.int64)[store.used()])
    return 2 * before + densest(given)


def _fitted(
    crew: Crew,
    there: FinishedRun,
    redetection: Redetection | None,
    held: int,
    reporter: Reporter,
) -> Crew:
    """Who does it, if the memory will do."""
    settings, checkpoint = there.settings, None
    if redetection is not None:
        settings, checkpoint = redetection.settings, redetection.checkpoint
    settings = settings.model_copy(update={"overlap": False})  # what changes is found first
    forecast = forecast_of(
        there.source, there.plan, there.outputs, crew, settings, checkpoint, held
    )
    for warning in check_room(forecast, there.place, 0.0):  # of bricks, few are written
        reporter.warn(warning)
    return forecast.crew


def _keep_held(
    there: FinishedRun, correction: Correction, masks: LayeredMasks, number: int
) -> Correction:
    """Keep the mask of a slice, as it is, for a correction."""
    index = number - there.first
    height, width = there.shape
    mask = np.zeros((1, height, width), np.uint8)
    masks.region(slice(index, index + 1), slice(0, height), slice(0, width)).fill(
        mask, slice(0, width)
    )
    store = store_of(there.place, len(there.corrections))
    store.reserve(1, height, width)
    store.write_mask(0, mask[0])
    flush_all()
    store.write_sightings(np.array(correction.z[:1]), [sighting_of(mask[0])])
    (layer,) = masks.among(index, index + 1)
    return replace(correction, grown=side_of(layer))


def _write(
    client: Client,
    there: FinishedRun,
    changed: list[Shape],
    masks: LayeredMasks,
    crew: Crew,
    reporter: Reporter,
) -> None:
    """Write bricks anew, and what is made of them."""
    journal, plan = there.journal, there.plan
    ledger = journal.ledger.stage("rewriting")
    written = make_pyramids(there.outputs, ledger)
    recall(client, plan, written, changed, ledger.stage("recalling"), reporter)
    with shared_disk(journal, crew) as disk:
        write_pyramids(
            client,
            there.source,
            plan,
            there.outputs,
            [SettledMasks(masks)],
            there.rescaling,
            disk,
            ledger.stage("writing"),
            reporter,
            changed,
        )
