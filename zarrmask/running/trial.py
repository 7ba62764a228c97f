"""A short piece of the work, done to see how long all of it takes."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable
from math import prod
from typing import Any

from rich.console import Console

from zarrmask.planning.forecast import Forecast
from zarrmask.progress import Reporter
from zarrmask.pyramid import Shape
from zarrmask.records.journal import Journal
from zarrmask.storage.place import Place, is_local, remove

PIECE_BYTES = 2**30
"""Bytes of voxels that are read for it, about."""
PIECE_SIDE = 256
KEYFRAMES_A_HAND = 2


def measure_hours(forecast: Forecast, out: Place, work: Callable[..., Any]) -> float:
    """Do a piece of the work beside its output, remove it, and say how long all of it will take.

    The start and the report count once, detecting by keyframes, writing by voxels; what is still on
    its way to the disk is waited for.

    Parameters
    ----------
    forecast : Forecast
    out : Place
        Where the output will be.
    work : callable
        Does it: takes an output, and `z`, `y`, `every` and `reporter` as `zarrmask.run` does.

    Returns
    -------
    float
        Hours.
    """
    plan, crew = forecast.plan, forecast.crew
    hands = crew.workers * crew.threads
    z, y = middle_piece(plan.shape, forecast.source.block, forecast.source.dtype.itemsize, hands)
    every = max(1, len(z) // (KEYFRAMES_A_HAND * hands))
    reporter = Reporter(Console(quiet=True))
    folder = out.parent
    while is_local(folder) and not folder.exists():
        folder = folder.parent
    tried = folder / f"zarrmask-trial-{uuid.uuid4().hex}.zarr"
    begun = time.monotonic()
    try:
        work(
            tried,
            z=(plan.first + z.start, plan.first + z.stop),
            y=(plan.origin[1] + y.start, plan.origin[1] + y.stop),
            reporter=reporter,
            **({"every": every} if forecast.detects else {}),
        )
        done = time.monotonic()
        os.sync()
        syncing = time.monotonic() - done
    finally:
        for left in (tried, Journal.of_conversion(tried).work):
            remove(left)
    seconds = {stage.name: stage.seconds for stage in reporter.stages}
    items = {stage.name: stage.items for stage in reporter.stages}
    detecting = seconds.get("detecting", 0.0)
    writing = sum(taken for name, taken in seconds.items() if name.startswith("writing"))
    once = done - begun - detecting - writing
    if detecting:
        # Fewer tasks than hands leave some idle, which in the run are not.
        busy = min(1, items["detecting"] / hands)
        detecting *= busy * forecast.keyframes / items["detecting"]
    share = prod(plan.shape) / (len(z) * len(y) * plan.shape[2])
    writing = (writing * min(1, items["writing"] / hands) + syncing) * share
    return (once + detecting + writing) / 3600


def middle_piece(shape: Shape, block: Shape, itemsize: int, hands: int) -> tuple[range, range]:
    """Choose slices and rows from the middle, where there is most to do, in a brick for each hand.

    Where slices are decoded in large pieces, all rows of few slices; else some rows of many.

    Examples
    --------
    >>> middle_piece((27_000, 8_096, 8_096), (1, 1, 8_096), 2, hands=2)
    (range(13312, 13440), range(3584, 4096))
    >>> middle_piece((27_000, 8_096, 8_096), (1, 8_096, 8_096), 2, hands=2)
    (range(13496, 13504), range(0, 8096))
    """
    depth, height, width = shape
    if block[1] > PIECE_SIDE:
        slices = max(1, PIECE_BYTES // (height * width * itemsize))
        return _middle(depth, slices, 1), range(height)
    rows = _middle(height, PIECE_SIDE * hands, PIECE_SIDE)
    fits = PIECE_BYTES // (len(rows) * width * itemsize) >= PIECE_SIDE
    return _middle(depth, PIECE_SIDE if fits else PIECE_SIDE // 2, PIECE_SIDE), rows


def _middle(size: int, length: int, step: int) -> range:
    """A piece of an axis of at most a length, beginning at a multiple of a step."""
    length = min(length, size)
    start = (size - length) // 2 // step * step
    return range(start, start + length)
