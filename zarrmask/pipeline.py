"""The way through: stack, keyframes, detection, masks, bricks, pyramids, report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from distributed import Client

from zarrmask.cluster import connect, find_crew
from zarrmask.contrast import rescaling, settle_contrast
from zarrmask.digest import sha256
from zarrmask.finish import describe_pyramids, finish_run
from zarrmask.forecast import Forecast
from zarrmask.journal import Journal
from zarrmask.looking import detect_keyframes, record_of, warnings_of
from zarrmask.masking import (
    FieldStore,
    HeldMasks,
    InterpolatedMasks,
    Keyframes,
    KeyframeStore,
    Masks,
)
from zarrmask.memory import PeakMemory, sized
from zarrmask.model import find_checkpoint, load_detectors, model_of
from zarrmask.opening import input_identity, keep_apart, open_input, refuse_worker, to_be_seen
from zarrmask.outputs import converted_pyramids, referenced_volume, require_outputs, run_pyramids
from zarrmask.place import Place, output_place, reached, written_command
from zarrmask.plan import Plan, make_plan
from zarrmask.progress import Reporter
from zarrmask.record import run_record, voxel_counts
from zarrmask.session import as_begun, forecast_of, require_room, shared_disk
from zarrmask.settings import Settings, read_settings
from zarrmask.stack import Source
from zarrmask.stages import (
    measure_fields,
    sample_greys,
    write_pyramids,
)
from zarrmask.trial import measure_hours
from zarrmask.vitals import watched

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


def run(
    stack: str | Place,
    out: str | Place,
    *,
    config: str | Path | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    command: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Mask a stack: detect the object on keyframes, write volume, mask and masked volume.

    Parameters
    ----------
    stack : path
        Folder of numbered slices, multipage TIFF, zarr array or OME-Zarr.
    out : path, URL or UPath
        Folder to make, or to go on in; at a URL also "folders" of a bucket that exists.
    config : path, optional
        YAML of settings, or a detectron2 config.
    scheduler, workers
        See `zarrmask.cluster.connect`.
    memory : str or int, optional
        What all processes may use together: bytes, or "8GB"; see `zarrmask.cluster.find_crew`.
    overwrite : bool
        Replace what another run of zarrmask left in `out`.
    reporter : Reporter, optional
        Where progress and warnings go.
    command : sequence of str, optional
        The command line that this is, for the record; secrets in its URLs are left out.
    **options
        Fields of `zarrmask.settings.Settings`; they beat `config`.

    Returns
    -------
    dict
        The run's record, as `run.json` holds it.

    Raises
    ------
    ZarrmaskError
        What was found, what was expected, and what to do.
    """
    refuse_worker()
    place = output_place(out)
    reporter = reporter or Reporter()
    settings = read_settings(Path(config) if config else None, **options)
    checkpoint = find_checkpoint(settings)
    source = open_input(stack, settings.allow_missing, reporter)
    plan = make_plan(source, settings)
    identity = _identity(source, settings, checkpoint)
    journal = Journal.of_run(place)
    volume = referenced_volume(stack, source, plan, settings)
    pyramids = run_pyramids(journal, plan, source, settings, referenced=volume is not None)
    keep_apart(source, journal)
    crew = find_crew(scheduler, workers, memory)
    forecast = forecast_of(source, plan, pyramids, crew, settings, checkpoint)
    with reached(place), journal.lock():
        state = journal.check(identity, overwrite=overwrite)
        if state == "finished":
            require_outputs(place, pyramids.values(), journal.others)
            reporter.say(f"{place} is finished already; --overwrite would make it anew")
            return journal.read() or {}
        if state == "unfinished":
            reporter.say(f"{place} is unfinished; going on with what is missing")
            forecast = as_begun(journal, forecast)
        require_room(forecast, journal, state, reporter)
        workers = None if scheduler else forecast.crew.workers
        with (
            PeakMemory() as measured,
            connect(scheduler, workers, to_be_seen(journal, source, checkpoint)) as client,
            watched(client, reporter, measured) as roll,
        ):
            reporter.say(f"dashboard: {client.dashboard_link}")
            store = KeyframeStore(place / "keyframes.zarr")
            load = partial(load_detectors, client, settings, checkpoint, reporter)
            detectors = load() if state == "new" else []  # a bad checkpoint leaves nothing behind
            if state == "new":
                journal.start(identity)
                forecast = as_begun(journal, forecast)
            plan = forecast.plan
            sample = partial(sample_greys, client, source, plan.keyframes, reporter)
            contrast = settle_contrast(
                journal, source.dtype, settings, sample, reporter, detecting=True
            )
            window, ledger = contrast.detected, journal.ledger
            found = detect_keyframes(
                client, source, plan, window, detectors, load, store, ledger, reporter
            )
            del detectors
            keyframes = record_of(found, plan.numbers)
            for warning in warnings_of(keyframes):
                reporter.warn(warning)
            masks = _masks(client, journal, store, found, source, plan, reporter)
            writing = journal.ledger.stage("writing")
            with shared_disk(journal, scheduler) as disk:
                become = rescaling(source.dtype, settings, contrast)
                kept = write_pyramids(
                    client, source, plan, pyramids, masks, become, disk, writing, reporter
                )
        record = {
            **run_record(source, settings, plan, checkpoint, identity),
            **({"command": written_command(command)} if command else {}),
            "resumed": state == "unfinished",
            "volume": volume,
            "detect_window": contrast.detected,
            "window": contrast.written,
            "keyframes": keyframes,
            "voxels": voxel_counts(plan, kept),
            "stages": [vars(stage) for stage in reporter.stages],
            "plan": forecast.record(),
            "peak_memory_bytes": measured.peak,
            "workers": roll.record(),
            "warnings": reporter.warnings,
        }
        finish_run(place, journal, record, pyramids, plan, reporter)
    return record


def convert(
    stack: str | Place,
    out: str | Place,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    memory: str | int | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    **options: Any,
) -> Place:
    """Write a stack as an OME-Zarr pyramid, without a mask.

    Parameters are those of `run`; of the settings those of the output count.

    Returns
    -------
    Path or UPath
        The OME-Zarr.
    """
    refuse_worker()
    place = output_place(out)
    reporter = reporter or Reporter()
    settings = read_settings(**options)
    source = open_input(stack, settings.allow_missing, reporter)
    plan = make_plan(source, settings)
    identity = {
        "settings": json.loads(settings.model_dump_json(include=CONVERTED)),
        "input": {"fingerprint": source.fingerprint()},
    }
    journal = Journal.of_conversion(place, settings.ngff)
    pyramids = converted_pyramids(journal, plan, source, settings)
    keep_apart(source, journal)
    crew = find_crew(scheduler, workers, memory)
    forecast = forecast_of(source, plan, pyramids, crew, settings, None)
    with reached(place), journal.lock():
        state = journal.check(identity, overwrite=overwrite)
        if state == "finished":
            require_outputs(place, pyramids.values())
            reporter.say(f"{place} is finished already; --overwrite would make it anew")
            return place
        if state == "unfinished":
            forecast = as_begun(journal, forecast)
        require_room(forecast, journal, state, reporter)
        workers = None if scheduler else forecast.crew.workers
        with (
            PeakMemory() as measured,
            connect(scheduler, workers, to_be_seen(journal, source)) as client,
            watched(client, reporter, measured),
        ):
            reporter.say(f"dashboard: {client.dashboard_link}")
            if state == "new":
                journal.start(identity)
                forecast = as_begun(journal, forecast)
            plan = forecast.plan
            sample = partial(sample_greys, client, source, plan.keyframes, reporter)
            contrast = settle_contrast(
                journal, source.dtype, settings, sample, reporter, detecting=False
            )
            writing = journal.ledger.stage("writing")
            become = rescaling(source.dtype, settings, contrast)
            with shared_disk(journal, scheduler) as disk:
                write_pyramids(
                    client, source, plan, pyramids, None, become, disk, writing, reporter
                )
        reporter.say(
            f"peak memory: {sized(measured.peak)}; predicted were {sized(forecast.memory.total)}"
        )
        describe_pyramids({place.stem: pyramids["volume"]}, plan)
        record = {"state": "finished", "identity": identity, "window": contrast.written}
        journal.finish(record)
    return place


def foresee(
    stack: str | Path,
    out: str | Place,
    *,
    conversion: bool = False,
    measure: bool = False,
    config: str | Path | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    memory: str | int | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> tuple[Forecast, float | None]:
    """Say what a run, or a conversion, will take; without `measure` no pixel is read.

    Parameters are those of `run`.

    Returns
    -------
    forecast : Forecast
    hours : float or None
        That it will take, where they were to be measured.
    """
    place = output_place(out)
    settings = read_settings(Path(config) if config else None, **options)
    source = open_input(stack, settings.allow_missing, reporter or Reporter())
    plan = make_plan(source, settings)
    checkpoint = None if conversion else find_checkpoint(settings)
    if conversion:
        journal = Journal.of_conversion(place, settings.ngff)
        pyramids = converted_pyramids(journal, plan, source, settings)
    else:
        journal = Journal.of_run(place)
        referenced = referenced_volume(stack, source, plan, settings) is not None
        pyramids = run_pyramids(journal, plan, source, settings, referenced=referenced)
    keep_apart(source, journal)
    crew = find_crew(scheduler, workers, memory)
    forecast = forecast_of(source, plan, pyramids, crew, settings, checkpoint)
    if not measure:
        return forecast, None
    session = {"scheduler": scheduler, "workers": workers, "memory": memory, **options}
    work = partial(convert, stack) if conversion else partial(run, stack, config=config)
    return forecast, measure_hours(forecast, place, partial(work, **session))


def _identity(source: Source, settings: Settings, checkpoint: Path) -> dict[str, Any]:
    """What makes a run this one: settings, input, weights. No path: a moved stack is the same."""
    config, _ = model_of(settings, checkpoint)
    exclude = {"checkpoint", "model", "allow_missing", "device"}
    return {
        "settings": json.loads(settings.model_dump_json(exclude=exclude)),
        "input": input_identity(source),
        "checkpoint": sha256(checkpoint),
        "model": hashlib.sha256(repr(config).encode()).hexdigest() if config else None,
    }


def _masks(
    client: Client,
    journal: Journal,
    store: KeyframeStore,
    found: Keyframes,
    source: Source,
    plan: Plan,
    reporter: Reporter,
) -> Masks:
    """The masks of all slices, by the rule that was chosen."""
    shape, used = source.shape[1:], store.used()
    indices = plan.keyframes[found.positions[used]]
    if plan.propagate == "hold":
        return HeldMasks(store, indices, used, shape, plan.side)
    fields = FieldStore(journal.scratch / "fields.zarr", shape)
    measure_fields(client, store, used, fields, journal.ledger.stage("measuring"), reporter)
    return InterpolatedMasks(fields, indices, store.areas()[used], plan.side / 2)
