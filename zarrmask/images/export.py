"""Slices of a run's outputs as numbered images, as the scripts that zarrmask replaces left them."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from dask.delayed import delayed
from distributed import Client
from numpy.typing import NDArray

from zarrmask.contrast import detected_window
from zarrmask.errors import OutputError, SettingsError
from zarrmask.images.numbered import (
    EXPORTED,
    FORMATS,
    ImageFolder,
    ImageFormat,
    fitted,
    local_folder,
)
from zarrmask.images.slabs import Slab, fill, filled, pieces, slab_depth
from zarrmask.planning.crop import crop
from zarrmask.planning.memory import decoding_bytes
from zarrmask.progress import Advance, Reporter
from zarrmask.pyramid import read_metadata, sides
from zarrmask.records.damage import is_unchanged
from zarrmask.records.journal import Journal, finished_record
from zarrmask.running.opening import refuse_worker
from zarrmask.settings import read_settings
from zarrmask.stack import SLABS, Source, open_source
from zarrmask.storage.place import Place, place_of, printable, reached
from zarrmask.workers.blocks import one_task_each, results
from zarrmask.workers.crew import CrewRequest, find_crew
from zarrmask.workers.vitals import at_work

WHAT = ("masked", "mask", "volume")
ALL_GREYS = (0.0, 65535.0)


def export(
    run: str | Place,
    folder: str | Path,
    *,
    what: str = "masked",
    format: str = "tif",
    lzw: bool = False,
    quality: int = 95,
    window: str | tuple[float, float] | None = None,
    level: int = 0,
    z: str | tuple[int | None, int | None] | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    memory: str | int | None = None,
    patience: str | float | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Write an output of a finished run as one image a slice, named by its number.

    Parameters
    ----------
    run : path, URL or UPath
        The run's folder.
    folder : path
        Folder to make, or to go on in: images that are there are not written again.
    what : "masked", "mask" or "volume"
    format : "tif", "jpg" or "png"
        TIFF and PNG have the bits of the output; JPEG has 8.
    lzw : bool
        Whether TIFFs are compressed (LZW, which loses nothing).
    quality : int
        Of JPEGs, 1 to 100.
    window : (lo, hi), optional
        Grey values of 16 bits that the 8 of a JPEG span; by default those that the run's detector
        saw, or all of them.
    level : int
        Of the pyramid; an image of level n is named by the first of the 2^n slices it stands for.
    z : "A:B" or (int or None, int or None), optional
        Slice numbers, B excluded.
    scheduler, workers, memory, patience, overwrite, reporter
        See `zarrmask.run`.

    Returns
    -------
    dict
        What `export.json` in the folder holds.

    Raises
    ------
    ZarrmaskError
        What was found, what was expected, and what to do.
    """
    refuse_worker()
    reporter = reporter or Reporter()
    settings = read_settings(z=z, window=window)
    _check_options(what, format, lzw, quality, settings.window)
    target = ImageFolder(local_folder(folder), EXPORTED)
    place = place_of(run)
    with reached(place, to_be="read"):
        record = finished_record(place)
        volume = _opened(place, record, what, level)
    # The stack, too: corrections read it once more.
    target.keep_apart(volume.source.path, record["input"]["path"])
    if settings.window is not None and volume.source.dtype == np.uint8:
        raise SettingsError(
            f"window: {what} has 8 bits already, and a JPEG keeps them; leave --window out"
        )
    chosen = volume.numbers[_within(volume, settings.z, record["z"])]
    size = record.get("voxel_size_um")
    form = ImageFormat(format, lzw, quality, pixel=size and size * 2**level)
    form.require_fit((volume.source.shape[1], volume.source.shape[2]))
    if format == "jpg" and what == "mask":
        reporter.warn("JPEG blurs the mask's edge; TIFF and PNG keep it")
    elif format == "jpg" and volume.source.dtype == np.uint16:
        low, high = _window(record, settings.window)
        reporter.say(f"grey values {low:g} to {high:g} become 0 to 255")
        form = replace(form, window=(low, high))
    crew = fitted(
        find_crew(CrewRequest(scheduler, workers, memory, patience), reporter),
        _memory(volume, len(chosen)),
    )
    identity = {
        "run": record["identity"],
        "corrections": record.get("corrections", []),
        "what": what,
        "level": level,
        "z": [int(chosen[0]), int(chosen[-1]) + 1],
        "format": format,
        **({"lzw": lzw} if format == "tif" else {}),
        **({"quality": quality, "window": form.window} if format == "jpg" else {}),
    }

    def write(missing: NDArray[np.int64]) -> None:
        shutil.rmtree(target.scratch, ignore_errors=True)  # of a session that was stopped
        journal = target.journal
        with (
            at_work(crew, journal.out, [journal.held], reporter) as (client, *_),
            reporter.stage("writing", len(missing), "slices") as advance,
        ):
            _write(client, volume, missing, form, target.path, target.scratch, advance)
        if not _is_as_it_was(place, record, record["volume"] if what == "volume" else None):
            for number in missing.tolist():
                (target.path / form.name(number)).unlink(missing_ok=True)
            raise OutputError(
                f"{printable(place)} was corrected or made anew while it was read, so what was "
                "written of it now is gone; give the same command again, with --overwrite if "
                "the folder already held images"
            )

    return target.fill(
        chosen,
        form,
        identity,
        write,
        partial(_space, volume, form),
        {},
        overwrite=overwrite,
        reporter=reporter,
    )


def _is_as_it_was(run: Place, record: Mapping[str, Any], given: str | None) -> bool:
    """Whether a finished run, and a stack that is read as its volume, are what they were."""
    now = Journal.of_run(run).read() or {}
    same = all(now.get(key) == record.get(key) for key in ("state", "identity", "corrections"))
    return same and (given is None or is_unchanged(open_source(given), record))


def _check_options(what: str, format: str, lzw: bool, quality: int, window: object) -> None:
    problems = []
    if what not in WHAT:
        problems.append(f"what: {what!r}; expected one of {', '.join(WHAT)}")
    if format not in FORMATS:
        problems.append(f"format: {format!r}; expected one of {', '.join(FORMATS)}")
    if lzw and format != "tif":
        problems.append(f"lzw goes with tif; {format} has a compression of its own")
    if not 1 <= quality <= 100:
        problems.append(f"quality: {quality}; expected 1 to 100")
    if window is not None and format != "jpg":
        problems.append(f"window goes with jpg; {format} keeps all grey values")
    elif window == "auto":
        problems.append("window: 'auto'; expected two grey values LO HI")
    if problems:
        raise SettingsError(
            "this cannot be exported:\n" + "\n".join(f"  {line}" for line in problems)
        )


@dataclass(frozen=True)
class Volume:
    """A level of an output.

    Attributes
    ----------
    source : Source
        What is read.
    first : int
        Number of its first slice in the stack.
    step : int
        Slices of the stack that a slice of it stands for.
    """

    source: Source
    first: int
    step: int

    @property
    def numbers(self) -> NDArray[np.int64]:
        """Its slices' numbers in the stack, each that of the first that it stands for."""
        return np.arange(self.source.shape[0], dtype=np.int64) * self.step + self.first

    @property
    def slab(self) -> int:
        """Slices that are turned from chunks to rows at once."""
        return slab_depth(self.source.block, self.source.shape[0])

    @property
    def slice_bytes(self) -> int:
        """Bytes of a slice."""
        return prod(self.source.shape[1:]) * self.source.dtype.itemsize


def _opened(place: Place, record: Mapping[str, Any], what: str, level: int) -> Volume:
    given = record["volume"] if what == "volume" else None
    path = place / f"{what}.zarr" if given is None else place_of(given)
    if given is None and not path.exists():
        hint = "; the run did not write it: the stack is the volume" if what == "volume" else ""
        raise OutputError(f"{path} is not there{hint}")
    if given is not None and not is_unchanged(open_source(given), record):
        raise OutputError(
            f"the volume of {printable(place)} is its stack {given}, which has changed since the "
            "run read it; put it back"
        )
    datasets = read_metadata(path)["datasets"]
    if not 0 <= level < len(datasets):
        raise SettingsError(f"--level {level}: {path} has levels 0 to {len(datasets) - 1}")
    return Volume(open_source(path / datasets[level]["path"]), record["z"][0], 2**level)


def _within(volume: Volume, wanted: tuple[int | None, int | None], there: list[int]) -> slice:
    """Which of a level's slices are wanted: those that stand for any of these numbers."""
    first, stop = crop("z", wanted, (there[0], there[1]), "run")
    begin = np.searchsorted(volume.numbers + volume.step, first, "right")
    return slice(int(begin), int(np.searchsorted(volume.numbers, stop)))


def _window(record: Mapping[str, Any], given: Any) -> tuple[float, float]:
    """Grey values that JPEGs span: what the detector saw, if the output has the stack's own."""
    if given is not None:
        return given[0], given[1]
    detected = detected_window(record)
    return ALL_GREYS if record["window"] is not None or detected == "seed" else detected


def _memory(volume: Volume, count: int) -> dict[str, tuple[int, int]]:
    """Bytes that tasks take, and how many there are."""
    source = volume.source
    depth, itemsize = volume.slab, source.dtype.itemsize
    regions = list(pieces(slice(0, depth), source.shape, source.block, itemsize))
    largest = sides(max(regions, key=lambda region: prod(sides(region))))
    reading = prod(largest) * itemsize + decoding_bytes(largest, source.block, itemsize)
    tasks = len(regions) * -(-count // depth)
    return {
        "reading a part of a slab": (reading, tasks),
        "writing a slice": (3 * volume.slice_bytes, count),
    }


def _space(volume: Volume, form: ImageFormat, count: int) -> tuple[int, int]:
    """Bytes that so many slices take on the disk, with scratch files, at least and at most."""
    scratch = min(SLABS * volume.slab, count) * volume.slice_bytes
    itemsize = 1 if form.suffix == "jpg" else volume.source.dtype.itemsize
    images = count * prod(volume.source.shape[1:]) * itemsize
    least = images if form.suffix == "tif" and not form.lzw else 0
    return least, images + scratch


def _write(
    client: Client,
    volume: Volume,
    numbers: NDArray[np.int64],
    form: ImageFormat,
    folder: Path,
    scratch: Path,
    advance: Advance,
) -> None:
    """Write the images of some slices slab by slab; the next one is read meanwhile."""
    source, depth = volume.source, volume.slab
    plane = source.shape[1], source.shape[2]
    indices = (numbers - volume.first) // volume.step
    slabs = [
        Slab(scratch / f"{wanted[0]}.raw", slice(wanted[0], wanted[-1] + 1), plane, source.dtype)
        for place in np.unique(indices // depth)
        for wanted in [indices[indices // depth == place].tolist()]
    ]

    def layers() -> Iterator[da.Array]:
        lazy = delayed(source, traverse=False)
        for slab in slabs:
            wanted = numbers[(indices >= slab.slices.start) & (indices < slab.slices.stop)]
            regions = pieces(slab.slices, source.shape, source.block, source.dtype.itemsize)
            read = [delayed(fill)(lazy, region, slab) for region in regions]
            yield one_task_each(
                wanted,
                write_slice,
                slab=delayed(filled)(read),
                volume=delayed(volume, traverse=False),
                form=form,
                folder=folder,
            )

    def remove(place: int) -> None:
        slabs[place].path.unlink(missing_ok=True)

    results(client, layers(), advance, at_once=SLABS, finished=remove)


def write_slice(
    number: NDArray[np.int64], *, slab: Slab, volume: Volume, form: ImageFormat, folder: Path
) -> NDArray[np.bool_]:
    """Write the image of a slice, (1,) its number, from the slab that it is in."""
    (one,) = number.tolist()
    form.write(folder / form.name(one), slab.take((one - volume.first) // volume.step))
    return np.ones(1, bool)
