"""What a correction was asked for, and what it takes: opened and checked before it begins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarrmask.correcting.corrections import Correction, store_of
from zarrmask.correcting.finished import FinishedRun
from zarrmask.errors import OutputError, SettingsError, ZarrmaskError
from zarrmask.given.masks import GivenMasks, open_given
from zarrmask.planning.plan import Plan, make_plan
from zarrmask.progress import Reporter
from zarrmask.running.model import find_checkpoint
from zarrmask.settings import Settings, read_settings
from zarrmask.storage.digest import sha256
from zarrmask.storage.place import Place, place_of, printable

WEIGHTS = ("checkpoint", "config")
DETECTING = ("score", *WEIGHTS, "detect-every", "mirrored")
"""What asks to detect anew, in the order in which a command says it."""


def asked_for(
    z: str | tuple[int | None, int | None] | None, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What `Correction.how` says of a correction that is asked for.

    Parameters
    ----------
    z : "A:B" or (int or None, int or None), optional
        As of `zarrmask.redo`.
    options : mapping
        Its others, by their names on the command line; None where one is not given.

    Raises
    ------
    SettingsError
        Where that is nothing to do, or several things, or not where.
    """
    given = {name: value for name, value in options.items() if value is not None}
    for name in given.keys() & {*WEIGHTS}:
        given[name] = str(Path(given[name]).absolute())
    first = given.pop("first", None)
    detect = {name: given.pop(name) for name in DETECTING if name in given}
    if "masks" in given:
        given["masks"] = {"path": printable(place_of(given["masks"])), "first": first}
    if detect:
        given["detect"] = detect
    _require_one(given, z, first)
    return given


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


def taken_by(
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
        taken = _opened(there, span, asked, masks)
    except (ZarrmaskError, OSError) as error:
        stopped = there.stopped
        if stopped is None or not _is_asked_for(stopped, Correction(span, asked)):
            raise
        reporter.warn(f"{error}\nit is finished with what was there when it began")
        numbers = store_of(there.place, len(there.corrections)).numbers()
        return Taken(stopped, numbers=np.array(numbers, np.int64))
    for doubt in _doubts(there, span, taken):
        reporter.warn(doubt)
    return taken


def _doubts(there: FinishedRun, span: tuple[int, int], taken: Taken) -> Iterator[str]:
    """What may not be as it was meant, of what can be done."""
    start, stop = span
    if taken.redetection is not None and "masks" in there.record:
        yield (
            f"the masks that were given for slices {start} to {stop - 1} give way to what the "
            "detector finds"
        )
    if taken.given is None:
        return
    first = int(taken.numbers[0])
    until = min((n for n in taken.numbers.tolist() if n > start), default=stop)
    if first < start and until > start:
        told = f"slice {start}" if until == start + 1 else f"slices {start} to {until - 1}"
        yield f"there is no mask of slice {start}: {told} as the one of slice {first}, before them"
    elif first > start:
        yield f"the first mask is of slice {first}: slices {start} to {first - 1} stay as they are"


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
