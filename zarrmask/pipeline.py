"""The way through: stack, keyframes, detection, masks, bricks, pyramids, report."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import platform
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from distributed import Client

from zarrmask import __version__
from zarrmask.cluster import Crew, connect, find_crew
from zarrmask.contrast import needs_sample, output_dtype, rescaling, settle_contrast
from zarrmask.detection.actors import Recipe, start_detectors
from zarrmask.detection.config import ModelConfig, config_file, interpret, read_fields
from zarrmask.detection.config_file import read_documents
from zarrmask.detection.inputs import NetworkInput
from zarrmask.detection.shapes import infer_documents
from zarrmask.digest import sha256
from zarrmask.errors import CheckpointError, OutputError, ZarrmaskError
from zarrmask.finish import describe_pyramids, finish_run
from zarrmask.forecast import Forecast, Network
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
from zarrmask.place import Place, output_place, reached, written_command
from zarrmask.plan import Plan, make_plan, mask_format, output_format
from zarrmask.progress import Reporter, listed
from zarrmask.pyramid import BrickGrid, Format, Pyramid, read_metadata
from zarrmask.room import check_room, scratch_disk
from zarrmask.settings import Settings, read_settings
from zarrmask.shipped import DEFAULT_CHECKPOINT
from zarrmask.stack import Source, open_source
from zarrmask.stages import (
    bricks_left,
    measure_fields,
    sample_greys,
    write_pyramids,
)
from zarrmask.trial import measure_hours
from zarrmask.vitals import watched

TOLD_EVERY = 5.0  # seconds
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
PACKAGES = ("dask", "distributed", "numpy", "ome-zarr", "tifffile", "torch", "torchvision", "zarr")


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
    _refuse_worker()
    place = output_place(out)
    reporter = reporter or Reporter()
    settings = read_settings(Path(config) if config else None, **options)
    checkpoint = _checkpoint(settings)
    source = _open(stack, settings.allow_missing, reporter)
    plan = make_plan(source, settings)
    identity = _identity(source, settings, checkpoint)
    journal = Journal.of_run(place)
    volume = _referenced(stack, source, plan, settings)
    pyramids = _pyramids(journal, plan, source, settings, referenced=volume is not None)
    _keep_apart(source, journal)
    crew = find_crew(scheduler, workers, memory)
    forecast = _forecast(source, plan, pyramids, crew, settings, checkpoint)
    with reached(place), journal.lock():
        state = journal.check(identity, overwrite=overwrite)
        if state == "finished":
            _still_there(place, pyramids.values(), journal.others)
            reporter.say(f"{place} is finished already; --overwrite would make it anew")
            return journal.read() or {}
        if state == "unfinished":
            reporter.say(f"{place} is unfinished; going on with what is missing")
            forecast = _as_begun(journal, forecast)
        _check_room(forecast, journal, state, reporter)
        workers = None if scheduler else forecast.crew.workers
        with (
            PeakMemory() as measured,
            connect(scheduler, workers, _seen(journal, source, checkpoint)) as client,
            watched(client, reporter, measured) as roll,
        ):
            reporter.say(f"dashboard: {client.dashboard_link}")
            store = KeyframeStore(place / "keyframes.zarr")
            load = partial(_load_detectors, client, settings, checkpoint, reporter)
            detectors = load() if state == "new" else []  # a bad checkpoint leaves nothing behind
            if state == "new":
                journal.start(identity)
                forecast = _as_begun(journal, forecast)
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
            with _disk(journal, scheduler) as disk:
                become = rescaling(source.dtype, settings, contrast)
                kept = write_pyramids(
                    client, source, plan, pyramids, masks, become, disk, writing, reporter
                )
        record = {
            **_record(source, settings, plan, checkpoint, identity),
            **({"command": written_command(command)} if command else {}),
            "resumed": state == "unfinished",
            "volume": volume,
            "detect_window": contrast.detected,
            "window": contrast.written,
            "keyframes": keyframes,
            "voxels": _voxels(plan, kept),
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
    _refuse_worker()
    place = output_place(out)
    reporter = reporter or Reporter()
    settings = read_settings(**options)
    source = _open(stack, settings.allow_missing, reporter)
    plan = make_plan(source, settings)
    identity = {
        "settings": json.loads(settings.model_dump_json(include=CONVERTED)),
        "input": {"fingerprint": source.fingerprint()},
    }
    journal = Journal.of_conversion(place, settings.ngff)
    pyramids = _converted(journal, plan, source, settings)
    _keep_apart(source, journal)
    crew = find_crew(scheduler, workers, memory)
    forecast = _forecast(source, plan, pyramids, crew, settings, None)
    with reached(place), journal.lock():
        state = journal.check(identity, overwrite=overwrite)
        if state == "finished":
            _still_there(place, pyramids.values())
            reporter.say(f"{place} is finished already; --overwrite would make it anew")
            return place
        if state == "unfinished":
            forecast = _as_begun(journal, forecast)
        _check_room(forecast, journal, state, reporter)
        workers = None if scheduler else forecast.crew.workers
        with (
            PeakMemory() as measured,
            connect(scheduler, workers, _seen(journal, source)) as client,
            watched(client, reporter, measured),
        ):
            reporter.say(f"dashboard: {client.dashboard_link}")
            if state == "new":
                journal.start(identity)
                forecast = _as_begun(journal, forecast)
            plan = forecast.plan
            sample = partial(sample_greys, client, source, plan.keyframes, reporter)
            contrast = settle_contrast(
                journal, source.dtype, settings, sample, reporter, detecting=False
            )
            writing = journal.ledger.stage("writing")
            become = rescaling(source.dtype, settings, contrast)
            with _disk(journal, scheduler) as disk:
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
    source = _open(stack, settings.allow_missing, reporter or Reporter())
    plan = make_plan(source, settings)
    checkpoint = None if conversion else _checkpoint(settings)
    if conversion:
        journal = Journal.of_conversion(place, settings.ngff)
        pyramids = _converted(journal, plan, source, settings)
    else:
        journal = Journal.of_run(place)
        referenced = _referenced(stack, source, plan, settings) is not None
        pyramids = _pyramids(journal, plan, source, settings, referenced=referenced)
    _keep_apart(source, journal)
    crew = find_crew(scheduler, workers, memory)
    forecast = _forecast(source, plan, pyramids, crew, settings, checkpoint)
    if not measure:
        return forecast, None
    session = {"scheduler": scheduler, "workers": workers, "memory": memory, **options}
    work = partial(convert, stack) if conversion else partial(run, stack, config=config)
    return forecast, measure_hours(forecast, place, partial(work, **session))


def _forecast(
    source: Source,
    plan: Plan,
    pyramids: Mapping[str, Pyramid],
    crew: Crew,
    settings: Settings,
    checkpoint: Path | None,
) -> Forecast:
    """What a run with a checkpoint, or a conversion without, will take."""
    samples = needs_sample(source.dtype, settings, detecting=checkpoint is not None)
    network = None if checkpoint is None else _network(settings, checkpoint)
    rescales = settings.window is not None
    return Forecast(source, plan, pyramids, crew, network, samples, rescales).fitted()


def _network(settings: Settings, checkpoint: Path) -> Network:
    _, seen = _model(settings, checkpoint)
    return Network(checkpoint.stat().st_size, seen)


def _as_begun(journal: Journal, forecast: Forecast) -> Forecast:
    """The forecast with the bricks that the run's first session settled on: finished ones count."""
    grid = forecast.plan.grid
    z, y, x = journal.once("bricks", lambda: list(grid.brick))
    return forecast.with_bricks(BrickGrid(grid.shape, (z, y, x), grid.step))


def _check_room(forecast: Forecast, journal: Journal, state: str, reporter: Reporter) -> None:
    """Refuse to begin where memory or space will not do; see `check_room`."""
    replaces = state == "new" and journal.read() is not None
    left = bricks_left(journal.ledger.stage("writing"), forecast.plan) if state != "new" else 1.0
    for warning in check_room(forecast, journal.out, None if replaces else left):
        reporter.warn(warning)


@contextmanager
def _disk(journal: Journal, scheduler: str | None) -> Iterator[Path | None]:
    """Give a folder that all workers see: beside the output, else on the machine they share."""
    if isinstance(journal.scratch, Path):
        yield journal.scratch
    elif scheduler is None:
        with TemporaryDirectory(prefix="zarrmask-", dir=scratch_disk()) as folder:
            yield Path(folder)
    else:
        yield None


def _refuse_worker() -> None:
    """Refuse to run where a script that lacks its guard is imported by its own workers."""
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        raise ZarrmaskError(
            'call zarrmask below `if __name__ == "__main__":`; its workers import your script'
        )


def _open(stack: str | Place, allow_missing: bool, reporter: Reporter) -> Source:
    """Open and check the stack, and say what was found."""
    told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > TOLD_EVERY:
            told = time.monotonic()
            reporter.say(f"checking headers: {done} of {total}")

    source = open_source(stack, allow_missing=allow_missing, progress=progress)
    z, y, x = source.shape
    reporter.say(f"{source.path}: {source.kind}, {z} x {y} x {x} {source.dtype}")
    if source.missing:
        reporter.warn(
            f"{len(source.missing)} slices are missing and read as zeros: " + listed(source.missing)
        )
    return source


def _keep_apart(source: Source, journal: Journal) -> None:
    """Refuse an output that would replace its own input, or lie within it.

    Raises
    ------
    OutputError
        Where they overlap, or the output's name cannot be written down.
    """
    try:
        str(journal.out).encode()
    except UnicodeEncodeError:
        raise OutputError(f"the output's name {str(journal.out)!r} is not valid UTF-8") from None
    inputs = _places(source)
    for written in (*journal.pyramids, *journal.others):
        target = str(written.resolve())
        replaced = any(_within(path, target) for path in inputs)
        within = "zarr" in source.kind.lower() and any(_within(target, path) for path in inputs)
        if replaced or within:
            raise OutputError(
                f"{written} would overwrite the stack that is read, {source.path}; "
                "name another output"
            )


def _places(source: Source) -> set[str]:
    """Where a stack lies, and, as these may be links, where the levels of a pyramid do."""
    if "://" in source.path:
        return {source.path.rstrip("/")}
    place = Path(source.path)
    return {str(path.resolve()) for path in (place, *place.glob("[0-9]*"))}


def _seen(journal: Journal, source: Source, *others: Path) -> list[Place]:
    """What all workers are to see."""
    stack = [] if "://" in source.path else [Path(source.path)]
    return [journal.held, *stack, *others]


def _within(place: str, folder: str) -> bool:
    return f"{place}/".startswith(f"{folder}/")


def _record(
    source: Source,
    settings: Settings,
    plan: Plan,
    checkpoint: Path | None,
    identity: Mapping[str, Any],
) -> dict[str, Any]:
    """What of a finished run's record was known before it began."""
    return {
        "zarrmask": __version__,
        "state": "finished",
        "identity": identity,
        "input": _describe(source),
        "settings": json.loads(settings.model_dump_json()),
        "z": [plan.first, plan.stop],
        "shape": list(plan.shape),
        "voxel_size_um": plan.voxel_size,
        "dilation_pixels": plan.side,
        "checkpoint": checkpoint and {"path": str(checkpoint), "sha256": identity["checkpoint"]},
        "versions": _versions(settings),
    }


def _versions(settings: Settings) -> dict[str, str]:
    packages = (*PACKAGES, "detectron2") if settings.backend == "detectron2" else PACKAGES
    versions = {"python": platform.python_version()}
    for package in packages:
        with suppress(PackageNotFoundError):  # of a cluster's workers alone
            versions[package] = version(package)
    return versions


def _voxels(plan: Plan, kept: int) -> dict[str, int]:
    total = prod(plan.shape)
    return {"total": total, "kept": kept, "removed": total - kept}


def _describe(source: Source) -> dict[str, Any]:
    return {
        "path": source.path,
        "kind": source.kind,
        "shape": list(source.shape),
        "dtype": str(source.dtype),
        "voxel_size_um": source.voxel_size,
        "missing": list(source.missing),
    }


def _checkpoint(settings: Settings) -> Path:
    checkpoint = settings.checkpoint or DEFAULT_CHECKPOINT
    if not checkpoint.is_file():
        raise CheckpointError(f"there is no checkpoint {checkpoint}; name one with --checkpoint")
    if settings.classes is not None:
        if file := config_file(checkpoint, settings.model):
            documents = read_documents(file)
        else:
            from zarrmask.detection.checkpoint import read_checkpoint  # it takes torch

            documents = infer_documents(read_checkpoint(checkpoint).shapes, str(checkpoint))
        (count,) = read_fields(documents, str(file or checkpoint), "classes")
        ModelConfig(classes=count).require_classes(settings.classes, str(checkpoint))
    return checkpoint


def _identity(source: Source, settings: Settings, checkpoint: Path) -> dict[str, Any]:
    """What makes a run this one: settings, input, weights. No path: a moved stack is the same."""
    config, _ = _model(settings, checkpoint)
    exclude = {"checkpoint", "model", "allow_missing", "device"}
    return {
        "settings": json.loads(settings.model_dump_json(exclude=exclude)),
        "input": {
            "shape": list(source.shape),
            "dtype": str(source.dtype),
            "missing": list(source.missing),
            "fingerprint": source.fingerprint(),
        },
        "checkpoint": sha256(checkpoint),
        "model": _digest(repr(config).encode()) if config else None,
    }


def _model(settings: Settings, checkpoint: Path) -> tuple[object, NetworkInput]:
    """The config that goes with a checkpoint, and what its network sees.

    Of the config all that may change the result; nothing where the weights tell what they are.
    """
    file = config_file(checkpoint, settings.model)
    documents = read_documents(file) if file else []
    config: object = documents
    if documents and settings.backend == "torchvision":  # detectron2 understands more
        config = interpret(documents, str(file))
    return config, NetworkInput(*read_fields(documents, str(file), "min_size", "max_size"))


def _load_detectors(
    client: Client, settings: Settings, checkpoint: Path, reporter: Reporter
) -> list[Any]:
    """Start the detectors; see `start_detectors`."""
    recipe = Recipe(
        checkpoint,
        settings.model,
        settings.score,
        settings.classes,
        settings.backend,
        settings.precision,
    )
    with reporter.stage("loading detectors", 1, "checkpoint") as advance:
        detectors = start_detectors(client, recipe, settings.device)
        advance(1)
    return detectors


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


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


def _still_there(out: Place, pyramids: Iterable[Pyramid], others: Sequence[Place] = ()) -> None:
    arrays = (pyramid.path / "0" / pyramid.format.array_file for pyramid in pyramids)
    paths = [*arrays, *others]
    if gone := [str(path).removeprefix(f"{out}/") for path in paths if not path.exists()]:
        raise OutputError(
            f"{out} was finished, but {', '.join(gone)} is gone; --overwrite makes it anew"
        )


def _pyramids(
    journal: Journal, plan: Plan, source: Source, settings: Settings, *, referenced: bool
) -> dict[str, Pyramid]:
    """The outputs of a run by name."""
    form, dtype = output_format(settings), output_dtype(source.dtype, settings)
    kinds = {
        "volume": (dtype, "mean", form),
        "mask": ("uint8", "max", mask_format(form)),
        "masked": (dtype, "mean", form),
    }
    return {
        name: _pyramid(journal.out / f"{name}.zarr", journal, plan, *kind, links=settings.links)
        for name, kind in kinds.items()
        if name != "volume" or (settings.volume is not False and not referenced)
    }


def _converted(
    journal: Journal, plan: Plan, source: Source, settings: Settings
) -> dict[str, Pyramid]:
    """The output of a conversion by name."""
    form, dtype = output_format(settings), output_dtype(source.dtype, settings)
    return {"volume": _pyramid(journal.out, journal, plan, dtype, "mean", form)}


def _pyramid(
    path: Place,
    journal: Journal,
    plan: Plan,
    dtype: str,
    reduce: str,
    form: Format,
    *,
    links: bool = False,
) -> Pyramid:
    return Pyramid(path, journal.scratch / path.name, plan.shape, dtype, reduce, form, links)


def _referenced(stack: object, source: Source, plan: Plan, settings: Settings) -> str | None:
    """Path of the input where it is itself a pyramid that serves as the volume, else None."""
    changed = settings.window is not None or plan.shape != source.shape
    if source.kind != "OME-Zarr" or settings.volume is not None or changed:
        return None
    if str(stack) != source.path and "://" in source.path:
        return None  # what is recorded, without secrets, would not open it again
    multiscale = read_metadata(source.path)
    serves = len(multiscale["axes"]) == 3 and len(multiscale["datasets"]) > 1
    return source.path if serves else None
