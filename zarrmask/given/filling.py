"""Filling a keyframe store with masks that are given, instead of detecting."""

from __future__ import annotations

from collections.abc import Iterator
from math import ceil, prod
from typing import NamedTuple

import numpy as np
from dask.delayed import delayed
from distributed import Client
from numpy.typing import NDArray

from zarrmask.given.masks import GivenMasks
from zarrmask.masking import KeyframeStore, Sighting, enlarged_mask, read_together
from zarrmask.masking.keyframe_store import ROWS_A_CHUNK
from zarrmask.planning.forecast import Copying
from zarrmask.planning.memory import decoding_bytes
from zarrmask.progress import Reporter
from zarrmask.records.ledger import Ledger
from zarrmask.storage.flush import flush_all
from zarrmask.workers.blocks import one_task_each, results

READ_BYTES = 2**28
"""Of labels that a task reads at once."""
BAND_BYTES = 2**29
"""Of masks that a task holds until it has read all their columns."""
MASKS_A_LOOK = 8
"""A task of its own for each of 27,000 would have the client keep more than it is worth."""


class Part(NamedTuple):
    """Masks that are read at once.

    Attributes
    ----------
    first, stop : int
        Their places.
    top, bottom : int
        Rows of the store's masks.
    columns : int
        That are read at once.
    """

    first: int
    stop: int
    top: int
    bottom: int
    columns: int


def parts(given: GivenMasks, shape: tuple[int, int]) -> Iterator[Part]:
    """Cut masks into what a task copies, so that next to nothing is decoded twice.

    Masks that are stored in chunks of several slices are copied in bands of rows, as many as
    their chunks are deep, and read some columns at a time, of whole chunks; those of another size
    than their slices, and images, whole.

    Parameters
    ----------
    given : GivenMasks
    shape : (height, width)
        Of the store's masks, pixels.
    """
    depth, rows, across = given.source.block
    width, itemsize = given.shape[1], given.source.dtype.itemsize
    banded = given.shape == shape and rows < shape[0]
    if banded:
        height, span = min(ROWS_A_CHUNK, shape[0]), depth
        most = max(1, BAND_BYTES // (height * width))
        columns = max(1, READ_BYTES // (span * height * itemsize * across)) * across
    else:
        height, columns, most = shape[0], width, depth
        span = max(1, READ_BYTES // (prod(given.shape) * itemsize))
    first = 0
    for length in read_together(given.indices, depth, span, most):
        for top in range(0, shape[0], height):
            yield Part(first, first + length, top, min(top + height, shape[0]), columns)
        first += length


def _rows_read(given: GivenMasks, part: Part, shape: tuple[int, int]) -> slice:
    """Rows of the masks as they are given."""
    return slice(part.top, part.bottom) if given.shape == shape else slice(0, given.shape[0])


def copying_of(given: GivenMasks, shape: tuple[int, int]) -> Copying:
    """Say what copying some masks takes; parameters are those of `parts`."""
    itemsize, block = given.source.dtype.itemsize, given.source.block
    most = 0
    there = list(parts(given, shape))
    for part in there:
        first, last = given.indices[part.first], given.indices[part.stop - 1]
        rows = _rows_read(given, part, shape)
        height = rows.stop - rows.start
        region = int(last - first) + 1, height, min(part.columns, given.shape[1])
        working = max(decoding_bytes(region, block, itemsize), 2 * prod(shape))
        masks = (part.stop - part.first) * height * given.shape[1]
        most = max(most, prod(region) * itemsize + working + masks)
    return Copying(most, len(there), ceil(len(given.numbers) / MASKS_A_LOOK))


def fill_keyframes(
    client: Client,
    given: GivenMasks,
    shape: tuple[int, int],
    store: KeyframeStore,
    ledger: Ledger,
    reporter: Reporter,
) -> None:
    """Copy given masks to a keyframe store, at the slices' size; what the ledger has is there."""
    copying, looking = ledger.stage("copying"), ledger.stage("looking")
    if store.reserve(len(given.numbers), *shape):
        ledger.forget()  # somebody removed what it speaks of
    there = list(parts(given, shape))
    missing = [there[n] for n in copying.missing(_key(part) for part in there)]
    if missing:
        copies = one_task_each(
            np.array(missing, np.int64),
            copy_masks,
            given=delayed(given, traverse=False),
            shape=shape,
            store=store,
            ledger=copying,
        )
        with reporter.stage("copying masks", len(missing), "parts") as advance:
            results(client, [copies], advance)
    places = np.array(looking.missing(range(len(given.numbers))), np.int64)
    if len(places):
        looks = one_task_each(places, look_at_masks, of=MASKS_A_LOOK, store=store, ledger=looking)
        with reporter.stage("looking at masks", len(places), "masks") as advance:
            results(client, [looks], advance)
    every = range(len(given.numbers))
    found = looking.results(every)
    sightings = [Sighting.from_json(found[str(n)]) for n in every]
    store.write_sightings(given.numbers, sightings)


def copy_masks(
    part: NDArray[np.int64],
    *,
    given: GivenMasks,
    shape: tuple[int, int],
    store: KeyframeStore,
    ledger: Ledger,
) -> NDArray[np.bool_]:
    """Read a part of some masks, (1, 5) a `Part`, enlarge it if need be, and keep it."""
    one = Part(*part[0].tolist())
    indices = given.indices[one.first : one.stop]
    first, stop = int(indices[0]), int(indices[-1]) + 1
    rows, width = _rows_read(given, one, shape), given.shape[1]
    masks = np.empty((len(indices), rows.stop - rows.start, width), np.uint8)
    for left in range(0, width, one.columns):
        columns = slice(left, min(left + one.columns, width))
        labels = given.source[first:stop, rows, columns]
        for mask, index in zip(masks, indices - first, strict=True):
            mask[:, columns] = np.where(labels[index] > 0, np.uint8(255), np.uint8(0))
    for place, mask in enumerate(masks, start=one.first):
        if given.crop is not None:
            whole = np.zeros(shape, np.uint8)
            whole[given.crop] = mask
            mask = whole
        elif given.shape != shape:
            mask = enlarged_mask(mask, shape)
        store.write_rows(place, one.top, mask)
    flush_all()
    ledger.enter(_key(one), None)
    return np.ones(1, bool)


def look_at_masks(
    places: NDArray[np.int64], *, store: KeyframeStore, ledger: Ledger
) -> NDArray[np.bool_]:
    """Enter in the ledger what there is to say of masks, (n,) their places; see `sighting_of`."""
    masks = store.masks()
    for place in places.tolist():
        ledger.enter(place, sighting_of(np.asarray(masks[place], np.uint8)).to_json())
    return np.ones(len(places), bool)


def sighting_of(mask: NDArray[np.uint8]) -> Sighting:
    """Say of a mask (y, x) what is said of what was detected: a box, of score 1."""
    rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
    boxes = np.empty((0, 4), np.float32)
    if len(rows):
        edges = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        boxes = np.array([edges], np.float32)
    scores = np.ones(len(boxes), np.float32)
    return Sighting.of_mask(mask, boxes, scores)


def _key(part: Part) -> str:
    return f"{part.first}-{part.stop}-{part.top}"
