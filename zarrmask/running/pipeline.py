"""The way through: stack, keyframes, detection, masks, bricks, pyramids, report."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from zarrmask.errors import sized
from zarrmask.planning.forecast import Forecast
from zarrmask.planning.outlook import Outlook
from zarrmask.progress import Reporter
from zarrmask.records.journal import differences
from zarrmask.records.record import outcome, run_record, warnings_of, written_by
from zarrmask.running.cutout import found_and_written
from zarrmask.running.finish import (
    FOR_METADATA,
    FOR_REPORT,
    finish_run,
    flush_metadata,
    write_pyramid_metadata,
)
from zarrmask.running.job import CONVERTED, Job, conversion_job, refuse_others, run_job
from zarrmask.running.looking import record_of
from zarrmask.running.model import detectors_of
from zarrmask.running.opening import refuse_worker, to_be_seen
from zarrmask.running.session import as_begun, recognised
from zarrmask.running.trial import measure_hours
from zarrmask.running.writing import bricks_left
from zarrmask.settings import read_settings
from zarrmask.storage.place import Place, output_place
from zarrmask.workers.ahead import import_ahead
from zarrmask.workers.crew import CrewRequest, find_crew
from zarrmask.workers.gpus import on_gpus


def run(
    stack: str | Place,
    out: str | Place,
    *,
    config: str | Path | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    gpus: bool = False,
    memory: str | int | None = None,
    patience: str | float | None = None,
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
    scheduler : str, optional
        Address of a running Dask cluster's scheduler; without it this machine does the work.
    workers : int, optional
        Processes of this machine; by default as many as do best.
    gpus : bool
        Work in one process on each GPU of this machine, by dask-cuda's cluster.
    memory : str or int, optional
        What all processes may use together: bytes, or "8GB"; by default what this machine has
        available, or what the cluster's workers are limited to.
    patience : str or float, optional
        How long to wait for a worker where none is left, before stopping so that the same call goes
        on: seconds, or "10m"; ten minutes by default.
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
    job = run_job(stack, place, on_gpus(settings) if gpus else settings, reporter)
    journal, checkpoint = job.journal, job.checkpoint
    assert checkpoint is not None, "a run has a detector"
    request = CrewRequest(scheduler, workers, memory, patience, gpus)
    session = job.session(request, reporter, overwrite=overwrite)
    with session.held(overwrite=overwrite) as begun:
        if not begun:
            return journal.read() or {}
        import_ahead(FOR_METADATA, FOR_REPORT)
        with session.working(to_be_seen(journal, job.source, checkpoint)) as client:
            patience, device = session.forecast.crew.patience, session.device
            detectors = detectors_of(client, job.settings, checkpoint, reporter, patience, device)
            if not session.resumed:
                detectors.load()  # a bad one leaves nothing behind
            session.start(detectors.kind, written_by(command))
            plan = session.plan
            contrast = session.contrast(plan.keyframes, detecting=True)
            found, kept = session.bridging(
                partial(found_and_written, client, session, detectors, contrast)
            )
            keyframes = record_of(found, plan.numbers)
            for warning in warnings_of(keyframes):
                reporter.warn(warning)
        record = {
            **run_record(job.source, job.settings, plan, checkpoint, session.identity),
            **session.record(),
            **written_by(command),
            **outcome(plan, job.volume, contrast, kept),
            "keyframes": keyframes,
        }
        finish_run(journal, record, job.pyramids, plan, reporter)
    return record


def convert(
    stack: str | Place,
    out: str | Place,
    *,
    scheduler: str | None = None,
    workers: int | None = None,
    memory: str | int | None = None,
    patience: str | float | None = None,
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
    refuse_others(options, CONVERTED, "a conversion has")
    place = output_place(out)
    reporter = reporter or Reporter()
    job = conversion_job(stack, place, read_settings(**options), reporter)
    request = CrewRequest(scheduler, workers, memory, patience)
    session = job.session(request, reporter, overwrite=overwrite)
    with session.held(overwrite=overwrite) as begun:
        if not begun:
            return place
        import_ahead(FOR_METADATA)
        with session.working(to_be_seen(job.journal, job.source)):
            session.start()
            plan = session.plan
            contrast = session.contrast(plan.keyframes, detecting=False)
            session.bridging(lambda source: session.write(source, None, contrast))
        peak, predicted = session.peak_memory, session.forecast.memory.total
        reporter.say(f"peak memory: {sized(peak)}; predicted were {sized(predicted)}")
        write_pyramid_metadata({place.stem: job.pyramids["volume"]}, plan)
        flush_metadata(job.pyramids)
        record = {
            "state": "finished",
            "identity": session.identity,
            "window": contrast.written,
            "missing": list(job.source.missing),
        }
        job.journal.finish(record | session.damage.record())
    return place


def foresee(
    stack: str | Place,
    out: str | Place,
    *,
    conversion: bool = False,
    measure: bool = False,
    config: str | Path | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    gpus: bool = False,
    memory: str | int | None = None,
    patience: str | float | None = None,
    reporter: Reporter | None = None,
    **options: Any,
) -> Outlook:
    """Say what a run, or a conversion, will take; without `measure` no pixel is read.

    Parameters
    ----------
    conversion : bool
        Of `convert`, not of `run`.
    measure : bool
        Whether a piece of the stack is worked on, to tell how long all of it will take.
    stack, out, config, scheduler, workers, gpus, memory, patience, reporter, **options
        Those of `run`.

    Returns
    -------
    Outlook
        Its `forecast` has tasks, files, bytes and memory.

    Raises
    ------
    ZarrmaskError
        What was found, what was expected, and what to do.
    """
    if conversion:
        others = {"config": config, "gpus": gpus or None}
        refuse_others({**options, **others}, CONVERTED, "a conversion has")
    place = output_place(out)
    reporter = reporter or Reporter()
    settings = read_settings(Path(config) if config else None, **options)
    settings = on_gpus(settings) if gpus else settings
    prepared = conversion_job if conversion else run_job
    job = prepared(stack, place, settings, reporter)
    request = CrewRequest(scheduler, workers, memory, patience, gpus)
    crew = find_crew(request, reporter, detects=not conversion)
    forecast, left, told = _begun(job, job.forecast(crew))
    if told:
        reporter.say(told)
    if not measure:
        return Outlook(forecast, left, None)
    who = {"scheduler": scheduler, "workers": workers, "memory": memory, "patience": patience}
    work = partial(convert, stack) if conversion else partial(run, stack, config=config, gpus=gpus)
    if "volume" not in job.pyramids and not conversion:
        options["volume"] = False  # a piece of a pyramid does not serve as the volume
    hours = measure_hours(forecast, place, partial(work, **who, **options))
    return Outlook(forecast, left, hours)


def _begun(job: Job, forecast: Forecast) -> tuple[Forecast, float, str | None]:
    """Give the forecast and what is left of an output that has been begun, and words for that."""
    journal = job.journal
    record = journal.read()
    state = record["state"] if record else None
    if record is None or not (
        state == "finished" or (state == "unfinished" and "bricks" in record)
    ):
        return forecast, 1.0, None
    now = recognised(journal, job.source, job.identity)
    if unlike := differences(record["identity"], json.loads(json.dumps(now))):
        told = f"{journal.out} is {state}, and was begun with other settings or input: "
        return forecast, 1.0, told + "; ".join(unlike)
    if state == "finished":
        return forecast, 0.0, f"{journal.out} is finished already; what follows is of a new one"
    forecast = as_begun(journal, forecast)
    left = bricks_left(journal.ledger.stage("writing"), forecast.plan)
    told = (
        f"{journal.out} is unfinished: the command that began it goes on with it, and "
        f"{left:.0%} of its bricks are to be written; what follows is of all of them"
    )
    return forecast, left, told
