"""The entry of a correction in a run's record: begun, gone on with, finished."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from zarrmask.correcting.corrections import Correction, store_of
from zarrmask.correcting.finished import FinishedRun
from zarrmask.errors import OutputError
from zarrmask.progress import Reporter
from zarrmask.records.journal import CORRECTING
from zarrmask.storage.place import remove, written_command

ENTERED = ("identity", "state", "corrections", "pending")
"""Keys of a record that others change: a run, another correction."""


def undone(there: FinishedRun) -> Correction:
    """The correction that is taken back."""
    if there.stopped is not None and "undo" not in there.stopped.how:
        raise _unfinished(there)
    if not there.corrections:
        raise OutputError(f"{there.place} has no corrections: there is nothing to undo")
    return there.corrections[-1]


def begin(
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
        enter(there, correction, record["state"])
    return correction, False


def _unfinished(there: FinishedRun) -> OutputError:
    return OutputError(
        f"another correction of {there.place} was stopped, which has to be finished first: "
        + there.record["pending"]["command"]
    )


def enter(there: FinishedRun, correction: Correction, state: str) -> None:
    """Enter a correction that has been begun in the record, with the command that finishes it."""
    command = written_command(["zarrmask", "redo", str(there.place), *correction.arguments])
    pending = {**correction.to_json(), "command": command}
    there.journal.write({**there.record, "state": state, "pending": pending})


def corrected(there: FinishedRun, correction: Correction) -> dict[str, Any]:
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
