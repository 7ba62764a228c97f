"""Small JPEGs of a stack's slices, to detect or to paint masks on where the stack is not."""

from __future__ import annotations

from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from zarrmask.contrast import settle_contrast
from zarrmask.detection.inputs import Window, to_8bit
from zarrmask.errors import SettingsError
from zarrmask.images.numbered import (
    PROXIES,
    ImageFolder,
    ImageFormat,
    fitted,
    local_folder,
)
from zarrmask.planning.memory import detecting_bytes
from zarrmask.planning.plan import make_plan
from zarrmask.planning.reading import keyframe_runs
from zarrmask.progress import Reporter
from zarrmask.running.opening import changed_meanwhile, refuse_worker
from zarrmask.running.reading import lazy_slices, sample_greys
from zarrmask.settings import read_settings
from zarrmask.stack import open_source
from zarrmask.storage.place import Place
from zarrmask.workers.blocks import results
from zarrmask.workers.crew import CrewRequest, find_crew
from zarrmask.workers.vitals import at_work


def proxy(
    stack: str | Place,
    folder: str | Path,
    *,
    side: int = 1600,
    quality: int = 90,
    every: int = 1,
    detect_window: str | tuple[float, float] | None = None,
    z: str | tuple[int | None, int | None] | None = None,
    allow_missing: bool | None = None,
    scheduler: str | None = None,
    workers: int | None = None,
    memory: str | int | None = None,
    patience: str | float | None = None,
    overwrite: bool = False,
    reporter: Reporter | None = None,
) -> dict[str, Any]:
    """Write small JPEGs of a stack's slices, named by their numbers.

    Parameters
    ----------
    stack : path, URL or UPath
        As `zarrmask.run` takes it.
    folder : path
        Folder to make, or to go on in: images that are there are not written again.
    side : int
        Pixels of the longer side, at most.
    quality : int
        Of the JPEGs, 1 to 100.
    every : int
        Write only every n-th slice.
    detect_window, z, allow_missing, scheduler, workers, memory, patience, overwrite, reporter
        As `zarrmask.run` takes them.

    Returns
    -------
    dict
        What `proxy.json` in the folder holds.

    Raises
    ------
    ZarrmaskError
        What was found, what was expected, and what to do.
    """
    refuse_worker()
    reporter = reporter or Reporter()
    settings = read_settings(
        every=every,
        propagate="hold",  # nothing between the slices is made: the last one is not asked for
        detect_window=detect_window,
        z=z,
        allow_missing=allow_missing,
    )
    target = ImageFolder(local_folder(folder), PROXIES, ("jpg",))
    if side < 1 or not 1 <= quality <= 100:
        raise SettingsError(f"side {side}, quality {quality}; expected 1 or more, and 1 to 100")
    source = open_source(stack, allow_missing=settings.allow_missing)
    target.keep_apart(source.path)
    if source.dtype.kind != "u" and settings.detect_window == "seed":
        raise SettingsError(
            f"the stack is {source.dtype}; say which grey values become black and white, "
            "--detect-window LO HI, or --detect-window auto for percentiles"
        )
    plan = make_plan(source, settings)
    form = ImageFormat("jpg", quality=quality)
    shape = smaller((source.shape[1], source.shape[2]), side)
    form.require_fit(shape)
    pixels = len(plan.keyframes) * prod(source.shape[1:])
    whole = {"slices": len(plan.keyframes), "voxel_bytes": pixels * source.dtype.itemsize}
    crew = find_crew(CrewRequest(scheduler, workers, memory, patience), reporter)
    runs = keyframe_runs(source, plan.keyframes, shape, crew.workers)
    reading = max(
        detecting_bytes(
            (span.stop - span.start, *runs.source.shape[1:]),
            length,
            prod(shape),
            runs.source.block,
            source.dtype.itemsize,
        )
        for span, length in zip(runs.spans(), runs.lengths, strict=True)
    )
    crew = fitted(crew, {"shrinking a slice": (reading, len(runs.lengths))})
    fingerprint = source.fingerprint()
    identity = {
        "input": {"fingerprint": fingerprint},
        "shape": list(shape),
        "quality": quality,
        "every": every,
        "z": [plan.first, plan.stop],
        "detect_window": settings.detect_window,
    }

    def write(missing: NDArray[np.int64]) -> None:
        indices = plan.keyframes[np.isin(plan.numbers, missing)]
        journal = target.journal
        with at_work(crew, journal.out, [journal.held], reporter) as (client, *_):
            sample = partial(sample_greys, client, source, plan.keyframes, reporter)
            contrast = settle_contrast(
                journal.once, source.dtype, settings, sample, reporter, detecting=True
            )
            slices = lazy_slices(keyframe_runs(source, indices, shape, crew.workers))
            numbers = da.from_array(missing[:, None, None], chunks=(slices.chunks[0], 1, 1))
            written = da.map_blocks(
                write_proxies,
                slices,
                numbers,
                window=contrast.detected,
                shape=shape,
                form=form,
                folder=target.path,
                drop_axis=[1, 2],
                dtype=bool,
                meta=np.empty(0, bool),
            )
            with reporter.stage("writing", len(missing), "slices") as advance:
                results(client, [written], advance)
        source.forget()
        if source.fingerprint() != fingerprint:
            raise changed_meanwhile(source, target.path)

    return target.fill(
        plan.numbers,
        form,
        identity,
        write,
        lambda count: (0, count * prod(shape)),
        {"stack": {"path": source.path, "shape": list(source.shape), **whole}},
        overwrite=overwrite,
        reporter=reporter,
    )


def smaller(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """Shape of a slice shrunk to a longer side; never enlarged.

    Examples
    --------
    >>> smaller((8096, 7888), 1600), smaller((720, 1280), 1600)
    ((1600, 1559), (720, 1280))
    """
    scale = min(1.0, side / max(shape))
    height, width = (max(1, round(edge * scale)) for edge in shape)
    return height, width


def write_proxies(
    slices: NDArray,
    numbers: NDArray[np.int64],
    *,
    window: Window,
    shape: tuple[int, int],
    form: ImageFormat,
    folder: Path,
) -> NDArray[np.bool_]:
    """Write the JPEGs of some slices (k, y, x), by their numbers (k, 1, 1).

    They are shrunk by the filter that a detector's images are.
    """
    height, width = shape
    for image, number in zip(slices, numbers.ravel().tolist(), strict=True):
        grey = Image.fromarray(to_8bit(image, window))
        small = grey.resize((width, height), Image.Resampling.BILINEAR)
        form.write(folder / form.name(number), np.asarray(small))
    return np.ones(len(numbers), bool)
