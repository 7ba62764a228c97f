"""Masking a stack with masks that are given: no model, no detection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from distributed import Client

from zarrmask.errors import SettingsError, StackError, counted, listed
from zarrmask.given.filling import copying_of, fill_keyframes
from zarrmask.given.masks import GivenMasks, open_given
from zarrmask.masking import HeldMasks, KeyframeStore, Placing, SettledMasks, kernel_side
from zarrmask.planning.plan import Plan, make_plan
from zarrmask.progress import Reporter
from zarrmask.records.journal import Journal
from zarrmask.records.record import outcome, run_record, written_by
from zarrmask.running.finish import FOR_METADATA, FOR_REPORT, finish_run
from zarrmask.running.job import CONVERTED, Job, refuse_others
from zarrmask.running.opening import (
    input_identity,
    keep_apart,
    open_input,
    refuse_worker,
    to_be_seen,
)
from zarrmask.running.outputs import referenced_volume, run_pyramids
from zarrmask.settings import Settings, read_settings
from zarrmask.stack import Source
from zarrmask.storage.place import Place, output_place
from zarrmask.workers.ahead import import_ahead
from zarrmask.workers.crew import CrewRequest

APPLIED = CONVERTED | {"volume", "links"}
"""Settings, beside the dilation, that decide what comes out."""


def apply(
    stack: str | Place,
    masks: str | Place,
    out: str | Place,
    *,
    first: int | None = None,
    dilate: float | str | None = None,
    erode: float | str | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    memory: str | int | None = None,
    patience: str | float | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
    command: Sequence[str] = (),
    **options: Any,
) -> dict[str, Any]:
    """Mask a stack with given masks: write what `zarrmask.run` writes, without a model.

    A mask counts for its slice and those after it, until the next; slices before the first have
    none.

    Parameters
    ----------
    stack, out : path, URL or UPath
        As for `zarrmask.run`.
    masks : path, URL or UPath
        A folder of numbered PNGs or TIFFs, a TIFF volume, a zarr array or an OME-Zarr of labels, or
        the folder of another run. What is above 0 is inside. Masks of smaller slices, such as
        proxies, are enlarged by their smooth edge.
    first : int, optional
        Number of the slice that a volume's first mask is for; see `open_given`.
    dilate, erode : float or str, optional
        Side of the square kernel by which masks grow or shrink: percent of the slice's longer side,
        or micrometres, as "150um".
    scheduler, workers, memory, patience, overwrite, reporter, command
        As for `zarrmask.run`.
    **options
        Fields of `zarrmask.settings.Settings` that decide what is written.

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
    refuse_others(options, APPLIED, "given masks have")
    if dilate and erode:
        raise SettingsError("masks are dilated or eroded; give --dilate or --erode")
    place = output_place(out)
    reporter = reporter or Reporter()
    settings = read_settings(**options, dilate=erode or dilate or 0, propagate="hold")
    source, settings = open_input(stack, settings, reporter)
    given = open_given(masks, source, first)
    beyond = given.numbers[given.numbers > source.numbers[-1]]
    sampled = make_plan(source, settings)
    given = given.needed(sampled.first, sampled.stop)
    job = _job(stack, source, given, place, settings, sampled, erodes=bool(erode))
    journal = job.journal
    request = CrewRequest(scheduler, workers, memory, patience)
    session = job.session(request, reporter, overwrite=overwrite)
    with session.held(overwrite=overwrite) as begun:
        if not begun:
            return journal.read() or {}
        import_ahead(FOR_METADATA, FOR_REPORT)
        with session.working(to_be_seen(journal, source, *given.local)) as client:
            session.start(begun=written_by(command))
            plan, shape = session.plan, (source.shape[1], source.shape[2])
            contrast = session.contrast(sampled.keyframes, detecting=False)
            store = KeyframeStore(place / "keyframes.zarr")
            _fill(client, given, shape, store, job, reporter)
            empty = store.without_detection()
            _warn(reporter, plan.first, plan.stop - 1, given.numbers, beyond, empty)
            places = store.used()
            held = HeldMasks(store, plan.keyframes, places, store.areas()[places], shape, plan.side)
            settled = [SettledMasks(held)]
            kept = session.bridging(lambda source: session.write(source, settled, contrast))
        record = {
            **run_record(source, settings, plan, None, session.identity),
            **session.record(),
            **written_by(command),
            **outcome(plan, job.volume, contrast, kept),
            "settings": job.identity["settings"],
            "masks": given.record(),
            "keyframes": {"count": len(plan.keyframes), "without_detection": empty},
        }
        finish_run(journal, record, job.pyramids, plan, reporter)
    return record


def _job(
    stack: str | Place,
    source: Source,
    given: GivenMasks,
    out: Place,
    settings: Settings,
    plan: Plan,
    *,
    erodes: bool,
) -> Job:
    """Check what it takes to mask a stack with masks; its plan has their slices as keyframes."""
    shape = source.shape[1], source.shape[2]
    side = kernel_side(*shape, settings.dilate, plan.voxel_size)
    plan = replace(
        plan,
        placing=Placing(given.numbers - int(source.numbers[0])),
        numbers=given.numbers,
        side=-side if erodes else side,
    )
    used = json.loads(settings.model_dump_json(include=APPLIED))
    used |= {"erode" if erodes else "dilate": settings.dilate, "propagate": "hold"}
    numbers = [int(given.numbers[0]), int(given.numbers[-1]), len(given.numbers)]
    identity = {
        "settings": used,
        "input": input_identity(source),
        "masks": {"fingerprint": given.fingerprint(), "numbers": numbers},
    }
    journal = Journal.of_run(out)
    volume = referenced_volume(stack, source, plan, settings)
    pyramids = run_pyramids(journal, plan, source, settings, referenced=volume is not None)
    keep_apart(source, journal)
    keep_apart(given.source, journal)
    copying = copying_of(given, shape)
    return Job(journal, source, settings, plan, pyramids, identity, volume, copying=copying)


def _fill(
    client: Client,
    given: GivenMasks,
    shape: tuple[int, int],
    store: KeyframeStore,
    job: Job,
    reporter: Reporter,
) -> None:
    """Copy the masks, which are to stay as they are meanwhile."""
    try:
        fill_keyframes(client, given, shape, store, job.journal.ledger.stage("filling"), reporter)
    except StackError as error:
        raise StackError(
            f"{error}\nrepair these masks, then give the same command with --overwrite"
        ) from None
    given.source.forget()
    if given.fingerprint() != job.identity["masks"]["fingerprint"]:
        raise StackError(
            f"{given.source.path} was changed while it was read; give the same command with "
            "--overwrite"
        )


def _warn(
    reporter: Reporter,
    first: int,
    last: int,
    numbers: np.ndarray,
    beyond: np.ndarray,
    empty: list[int],
) -> None:
    """Warn of slices without a mask, or with one from far away, and of masks without a slice."""
    if len(beyond):
        reporter.warn(
            f"{counted(len(beyond), 'masks')} of slices that the stack does not have, left out: "
            + listed(beyond.tolist())
        )
    if first < numbers[0]:
        reporter.warn(
            f"slices {first} to {numbers[0] - 1} come before the first mask, so they are empty"
        )
    if last - numbers[-1] > np.diff(numbers, prepend=numbers[0]).max():
        reporter.warn(
            f"slices {numbers[-1] + 1} to {last} come after the last mask, and hold it: where they "
            f"are to be empty, give an empty mask for slice {numbers[-1] + 1}"
        )
    if empty:
        reporter.warn(
            f"{len(empty)} of {len(numbers)} given masks are empty, and so are the slices that "
            f"hold them: {listed(empty)}"
        )
