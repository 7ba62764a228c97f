"""Correcting slices of a finished run: only the bricks that change are written anew."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from zarrmask.contrast import detected_window
from zarrmask.correcting.corrections import Correction, side_of, store_of
from zarrmask.correcting.finished import FinishedRun, open_run
from zarrmask.correcting.rewriting import find_changes, recall
from zarrmask.errors import OutputError, SettingsError, ZarrmaskError
from zarrmask.given.filling import fill_keyframes, sighting_of
from zarrmask.given.masks import GivenMasks, open_given
from zarrmask.masking import SettledMasks
from zarrmask.masking.layers import LayeredMasks
from zarrmask.planning.plan import Plan, make_plan
from zarrmask.planning.room import check_room
from zarrmask.progress import Reporter
from zarrmask.pyramid import Shape
from zarrmask.records.journal import CORRECTING
from zarrmask.records.record import warnings_of
from zarrmask.running.finish import finish_run
from zarrmask.running.looking import detect_keyframes, record_of
from zarrmask.running.model import detectors_of, find_checkpoint
from zarrmask.running.opening import refuse_worker, to_be_seen
from zarrmask.running.session import forecast_of, shared_disk
from zarrmask.running.writing import write_pyramids
from zarrmask.settings import Settings, read_settings
from zarrmask.storage.digest import sha256
from zarrmask.storage.flush import flush_all
from zarrmask.storage.place import (
    Place,
    output_place,
    place_of,
    printable,
    reached,
    remove,
    written_command,
)
from zarrmask.workers.crew import Crew, CrewRequest, find_crew
from zarrmask.workers.vitals import at_work

ENTERED = ("identity", "state", "corrections", "pending")
"""Keys of a record that others change: a run, another correction."""


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
        By what their masks are dilated instead; as of `zarrmask.run`.
    erode : float or str
        By what less they are dilated than they are; beyond that they shrink.
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
    weights = {
        name: str(Path(path).absolute())
        for name, path in _given({"checkpoint": checkpoint, "config": config}).items()
    }
    how = {"detect-every": detect_every, "mirrored": mirrored}
    detect = _given({"score": score, **weights, **how})
    asked = _given({"from": hold, "dilate": dilate, "erode": erode, "undo": undo or None})
    if masks is not None:
        asked["masks"] = {"path": printable(place_of(masks)), "first": first}
    if detect:
        asked["detect"] = detect
    _require_one(asked, z, first)
    with reached(place):
        there = open_run(place)
    span = _undone(there).z if undo else there.span(z or (None, None))
    taken = _taken(there, span, asked, masks, reporter)
    if undo:
        reporter.say(f"taking back: {' '.join(_undone(there).arguments)}")
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
    given, redetection = taken.given, taken.redetection
    seen = to_be_seen(there.journal, there.source, *(given.local if given else []))
    with reached(place), there.journal.lock():
        correction, writing = _begin(there, taken.correction, reporter)
        with at_work(crew, place, seen, reporter) as (client, *_):
            reaches = span if hold is None else (min(span[0], hold), max(span[1], hold + 1))
            before = there.masks(client, reaches, reporter)
            number = len(there.corrections)
            if not writing:
                if hold is not None:
                    correction = _keep_held(there, correction, before, hold)
                elif given is not None:
                    store, filling = store_of(place, number), there.journal.ledger.stage("filling")
                    fill_keyframes(client, given, there.shape, store, filling, reporter)
                elif redetection is not None:
                    detected = _detect(client, there, redetection, crew.patience, reporter)
                    correction = replace(correction, detected=detected)
            if undo:
                after = there.without_last().masks(client, span, reporter)
            else:
                after = before.covered(*there.layers(client, before, number, correction, reporter))
            start, stop = (end - there.first - there.plan.origin[0] for end in span)
            comparing = there.journal.ledger.stage("comparing")
            changed, voxels = find_changes(
                client, there.plan, slice(start, stop), before, after, comparing, reporter
            )
            _enter(there, correction, CORRECTING)
            _write(client, there, changed, after, crew, reporter)
        record = _corrected(there, replace(correction, bricks=len(changed), voxels=voxels))
        finish_run(there.journal, record, there.pyramids, there.plan, reporter)
        if undo:
            remove(store_of(place, number - 1).path)
    return record


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _require_one(
    asked: Mapping[str, Any], z: str | tuple[int | None, int | None] | None, first: int | None
) -> None:
    """Refuse what says nothing to do, or several things, or not where."""
    detect = asked.get("detect", {})
    if len(asked) != 1 or ("config" in detect and "checkpoint" not in detect):
        several = f"{len(asked)} things are asked for at once ({', '.join(asked)}); "
        raise SettingsError(
            (several if len(asked) > 1 else "")
            + "say what to do: one of --from, --dilate, --erode, --masks and --undo, or some of "
            "--score, --checkpoint (with its --config), --detect-every and --mirrored"
        )
    if first is not None and "masks" not in asked:
        raise SettingsError("--first goes with --masks only; leave it out")
    if "undo" in asked and z is not None:
        raise SettingsError("--undo takes back the last correction, whatever it was; leave --z out")
    if "undo" not in asked and z is None:
        raise SettingsError("say on which slices: --z A:B (--z : is all of them)")


def _undone(there: FinishedRun) -> Correction:
    """The correction that is taken back."""
    if there.stopped is not None and "undo" not in there.stopped.how:
        raise _unfinished(there)
    if not there.corrections:
        raise OutputError(f"{there.place} has no corrections: there is nothing to undo")
    return there.corrections[-1]


@dataclass(frozen=True)
class Taken:
    """A correction that is asked for, and what it takes.

    Attributes
    ----------
    correction : Correction
    given : GivenMasks, optional
    redetection : Redetection, optional
    numbers : (k,) int64
        Slice numbers of the masks that are given.
    """

    correction: Correction
    given: GivenMasks | None = None
    redetection: Redetection | None = None
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))


def _taken(
    there: FinishedRun,
    span: tuple[int, int],
    asked: Mapping[str, Any],
    masks: str | Place | None,
    reporter: Reporter,
) -> Taken:
    """Open what a correction takes.

    One that was stopped while it wrote has all of it in the run's folder: it is finished even if
    that is gone where it was.

    Raises
    ------
    ZarrmaskError
        Where that cannot be.
    """
    try:
        return _opened(there, span, asked, masks)
    except (ZarrmaskError, OSError) as error:
        stopped = there.stopped
        if stopped is None or not _is_asked_for(stopped, Correction(span, asked)):
            raise
        reporter.warn(f"{error}\nit is finished with what was there when it began")
        numbers = store_of(there.place, len(there.corrections)).numbers()
        return Taken(stopped, numbers=np.array(numbers, np.int64))


def _is_asked_for(stopped: Correction, asked: Correction) -> bool:
    """Whether a correction that was stopped is the one that is asked for, by what was typed."""
    if "masks" in stopped.how.keys() & asked.how.keys():  # of a run's folder its masks were taken
        masks = asked.how["masks"]
        if masks["path"] == stopped.how["masks"].get("asked"):
            path = stopped.how["masks"]["path"]
            asked = replace(asked, how={"masks": {**masks, "path": path}})
    return stopped.arguments == asked.arguments


def _opened(
    there: FinishedRun,
    span: tuple[int, int],
    asked: Mapping[str, Any],
    masks: str | Place | None,
) -> Taken:
    how = dict(asked)
    given = redetection = None
    for name in {"dilate", "erode"} & how.keys():
        how[name] = read_settings(dilate=how[name]).dilate
        there.kernel(how[name])  # refuses micrometres of a stack that states no voxel size
    if masks is not None:
        first, typed = how["masks"]["first"], how["masks"]["path"]
        begins = {span[1] - span[0]: span[0], there.plan.shape[0]: there.plan.first}
        given = open_given(masks, there.source, first, begins, there.crop, of_run=True).needed(
            *span
        )
        how["masks"] = {
            **given.record(),
            "first": first,
            "asked": typed,
            "fingerprint": given.fingerprint(),
        }
    elif "from" in how:
        there.span((how["from"], how["from"] + 1), "from")
    elif "detect" in how:
        redetection = redetection_of(there, span, how["detect"])
        how["detect"] = {**how["detect"], **redetection.weights(how["detect"])}
    correction = Correction(span, json.loads(json.dumps(how)))
    if given is None:
        return Taken(correction, redetection=redetection)
    return Taken(correction, given, redetection, given.numbers)


@dataclass(frozen=True)
class Redetection:
    """How some slices of a run are detected on anew.

    Attributes
    ----------
    settings : Settings
        The run's, but for what is asked for.
    checkpoint : Path
    plan : Plan
        Of these slices alone.
    """

    settings: Settings
    checkpoint: Path
    plan: Plan

    def weights(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """What the record keeps of the checkpoint, and of its config, where they were asked for."""
        files = {"checkpoint": self.checkpoint, "config": self.settings.model}
        return {
            name: {"path": str(file), "sha256": sha256(file)}
            for name, file in files.items()
            if name in asked and file is not None
        }


def redetection_of(
    there: FinishedRun, span: tuple[int, int], asked: Mapping[str, Any]
) -> Redetection:
    """Work out how slices of a run are detected on anew; see `redo`.

    Raises
    ------
    ZarrmaskError
        Where settings, checkpoint or stack do not allow that.
    """
    changes: dict[str, Any] = {"z": span}
    if "score" in asked:
        changes["score"] = asked["score"]
    if "detect-every" in asked:
        changes["every"] = asked["detect-every"]
    if "mirrored" in asked:
        changes["mirrored"] = asked["mirrored"]
    if "checkpoint" in asked:
        config = asked.get("config")
        changes["checkpoint"] = Path(asked["checkpoint"])
        changes["model"] = None if config is None else Path(config)
    same = there.settings.model_dump(exclude=set(changes))
    settings = read_settings(**{**same, **changes})
    if there.record["window"] is not None and there.rescaling is None:
        raise OutputError(
            f"the stack of {there.place} is gone, and its volume has other grey values, on which "
            "nothing can be detected as the run did. Put the stack back"
        )
    checkpoint, before = find_checkpoint(settings), there.record["checkpoint"]
    if before and "checkpoint" not in asked and sha256(checkpoint) != before["sha256"]:
        raise OutputError(
            f"the weights in {checkpoint} have changed since the run detected with them; put them "
            f"back, or take them as they are: --checkpoint {checkpoint}"
        )
    return Redetection(settings, checkpoint, make_plan(there.source, settings))


def _detect(
    client: Client,
    there: FinishedRun,
    redetection: Redetection,
    patience: float,
    reporter: Reporter,
) -> dict[str, Any]:
    """Detect anew; what is found goes to the correction's store, and what to say of it is given."""
    *_, found = detect_keyframes(
        client,
        there.source,
        redetection.plan,
        detected_window(there.record),
        detectors_of(client, redetection.settings, redetection.checkpoint, reporter, patience),
        store_of(there.place, len(there.corrections)),
        there.journal.ledger.stage("anew"),
        reporter,
    )
    told = record_of(found, redetection.plan.numbers)
    for warning in warnings_of(told):
        reporter.warn(warning)
    return told


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


def _begin(
    there: FinishedRun, correction: Correction, reporter: Reporter
) -> tuple[Correction, bool]:
    """Enter a correction in the record, or find it there.

    One that was stopped before it wrote anything makes way for another.

    Returns
    -------
    correction : Correction
        That one, or as it was entered by the same command.
    writing : bool
        Whether its masks are all there, and some of what follows from them may be written.

    Raises
    ------
    OutputError
        Where another one was stopped while it wrote, or the run is not as it was opened.
    """
    place, journal, record = there.place, there.journal, there.journal.read() or {}
    if any(record.get(name) != there.record.get(name) for name in ENTERED):
        raise OutputError(f"{place} has just been corrected by others; give the command again")
    going_on = f"{place} is being corrected; going on with what is missing"
    stopped = Correction.from_json(record["pending"]) if "pending" in record else None
    if stopped is not None and record["state"] == CORRECTING:
        if stopped.arguments != correction.arguments:
            raise _unfinished(there)
        reporter.say(going_on)
        if not stopped.same_as(correction):
            reporter.warn(
                "what it takes has changed since; it is finished with what was there when it began"
            )
        return stopped, True
    if stopped is not None and stopped.same_as(correction):
        reporter.say(going_on)
    else:
        masks = store_of(place, len(there.corrections))
        for left in (journal.ledger.folder, journal.scratch, masks.path):
            remove(left)
        _enter(there, correction, record["state"])
    return correction, False


def _unfinished(there: FinishedRun) -> OutputError:
    return OutputError(
        f"another correction of {there.place} was stopped, which has to be finished first: "
        + there.record["pending"]["command"]
    )


def _enter(there: FinishedRun, correction: Correction, state: str) -> None:
    """Enter a correction that has been begun in the record, with the command that finishes it."""
    command = written_command(["zarrmask", "redo", str(there.place), *correction.arguments])
    pending = {**correction.to_json(), "command": command}
    there.journal.write({**there.record, "state": state, "pending": pending})


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
    written = {name: one for name, one in there.outputs.items() if not one.finished}
    made = [pyramid.create() for pyramid in written.values()]
    if any(made):
        ledger.forget()  # somebody removed what it speaks of
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


def _corrected(there: FinishedRun, correction: Correction) -> dict[str, Any]:
    """The record of a run that has been corrected once more."""
    record = {name: value for name, value in there.record.items() if name != "pending"}
    voxels: Mapping[str, int] = record["voxels"]
    kept = voxels["kept"] + correction.voxels
    record |= {
        "state": "finished",
        "voxels": {"total": voxels["total"], "kept": kept, "removed": voxels["total"] - kept},
    }
    if "undo" in correction.how:
        left = record.pop("corrections")[:-1]
        return {**record, "corrections": left} if left else record
    return {**record, "corrections": [one.to_json() for one in (*there.corrections, correction)]}
