"""What is to be done, checked and not begun: a run, a conversion, masks that are given."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from zarrmask.errors import SettingsError
from zarrmask.planning.forecast import Copying, Forecast
from zarrmask.planning.plan import Plan, make_plan
from zarrmask.progress import Reporter
from zarrmask.pyramid import Pyramid
from zarrmask.records.journal import Journal
from zarrmask.running.model import config_identity, find_checkpoint
from zarrmask.running.opening import input_identity, keep_apart, open_input, position_identity
from zarrmask.running.outputs import converted_pyramids, referenced_volume, run_pyramids
from zarrmask.running.session import Session, forecast_of, needs_nobody
from zarrmask.settings import Settings
from zarrmask.stack import Source
from zarrmask.storage.digest import sha256
from zarrmask.storage.place import Place
from zarrmask.workers.crew import Crew, CrewRequest, find_crew

CONVERTED = {
    "z",
    "y",
    "x",
    "dtype",
    "window",
    "ngff",
    "chunk",
    "levels",
    "compressor",
    "voxel_size",
}
"""Settings that decide what a conversion writes."""

READING = {"allow_missing", "on_bad_slice"}
"""Settings that decide how the stack is read."""

LATER = {"threads": 1, "batch": 1, "mirrored": False}
"""Settings that came later; runs from before went by these, which leave an identity as it was."""


@dataclass(frozen=True)
class Job:
    """What is to be done with a stack.

    Attributes
    ----------
    journal : Journal
        Of the output.
    source : Source
    settings : Settings
    plan : Plan
    pyramids : mapping
        What is written, by name.
    identity : mapping
        What makes the output this one's.
    volume : str or None
        Path of the input, where that serves as the volume.
    checkpoint : Path or None
        Of the detector, where there is one.
    copying : Copying or None
        Of masks that are given.
    """

    journal: Journal
    source: Source
    settings: Settings
    plan: Plan
    pyramids: Mapping[str, Pyramid]
    identity: Mapping[str, Any]
    volume: str | None = None
    checkpoint: Path | None = None
    copying: Copying | None = None

    def forecast(self, crew: Crew) -> Forecast:
        """What it will take of those who do it."""
        return forecast_of(
            self.source,
            self.plan,
            self.pyramids,
            crew,
            self.settings,
            self.checkpoint,
            copying=self.copying,
        )

    def session(self, request: CrewRequest, reporter: Reporter, *, overwrite: bool) -> Session:
        """Find who does it, if there is anything to do.

        Raises
        ------
        ZarrmaskError
            Where the output is another's, or nobody is found who can.
        """
        if needs_nobody(self.journal, self.source, self.identity, overwrite=overwrite):
            request = replace(request, scheduler=None, gpus=False)
        crew = find_crew(request, reporter, detects=self.checkpoint is not None)
        return Session(
            self.journal,
            self.identity,
            self.source,
            self.settings,
            self.pyramids,
            self.forecast(crew),
            reporter,
        )


def run_job(stack: str | Place, out: Place, settings: Settings, reporter: Reporter) -> Job:
    """Open and check what a run takes.

    Raises
    ------
    ZarrmaskError
        What was found, what was expected, and what to do.
    """
    checkpoint = find_checkpoint(settings)
    source, settings = open_input(stack, settings, reporter)
    plan = make_plan(source, settings)
    identity = _run_identity(source, settings, checkpoint)
    journal = Journal.of_run(out)
    volume = referenced_volume(stack, source, plan, settings)
    pyramids = run_pyramids(journal, plan, source, settings, referenced=volume is not None)
    keep_apart(source, journal)
    return Job(journal, source, settings, plan, pyramids, identity, volume, checkpoint)


def refuse_others(options: Mapping[str, Any], known: Collection[str], who: str) -> None:
    """Refuse settings that would change nothing.

    Raises
    ------
    SettingsError
    """
    given = {name for name, value in options.items() if value is not None}
    if others := sorted(given - {*known} - READING):
        raise SettingsError(f"{who} no settings {', '.join(others)}; leave them out")


def conversion_job(stack: str | Place, out: Place, settings: Settings, reporter: Reporter) -> Job:
    """Open and check what a conversion takes; see `run_job`."""
    source, settings = open_input(stack, settings, reporter)
    plan = make_plan(source, settings)
    identity = {
        "settings": json.loads(settings.model_dump_json(include=CONVERTED)),
        "input": {**position_identity(source), "fingerprint": source.fingerprint()},
    }
    journal = Journal.of_conversion(out, settings.ngff)
    pyramids = converted_pyramids(journal, plan, source, settings)
    keep_apart(source, journal)
    return Job(journal, source, settings, plan, pyramids, identity)


def _run_identity(source: Source, settings: Settings, checkpoint: Path) -> dict[str, Any]:
    """What makes a run this one: settings, input, weights. No path: a moved stack is the same.

    The kind of device, where it is not named, is settled when detectors are loaded.
    """
    exclude = {"checkpoint", "model", "allow_missing", "on_bad_slice", "device", "overlap"}
    exclude |= {name for name, value in LATER.items() if getattr(settings, name) == value}
    return {
        "settings": json.loads(settings.model_dump_json(exclude=exclude)),
        "input": input_identity(source),
        "checkpoint": sha256(checkpoint),
        "model": config_identity(settings, checkpoint),
        "device": None if settings.device == "auto" else settings.device,
    }
