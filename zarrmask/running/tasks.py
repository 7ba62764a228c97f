"""What runs on the workers: each function is one task, and takes and gives little.

They are mapped over small arrays that say which keyframe or brick is theirs; they read and write
what belongs to it themselves, and enter it in the ledger when all of it is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from math import prod
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from zarrmask.detection.closer import look_closer
from zarrmask.detection.detections import Detections, union_mask
from zarrmask.detection.inputs import NetworkInput, Window, to_8bit
from zarrmask.grey import Rescaling, sample
from zarrmask.masking import (
    FieldStore,
    KeyframeStore,
    Masks,
    RegionMasks,
    Sighting,
    cost,
    cut_out,
)
from zarrmask.planning.reading import PIECE, reads_by_tile
from zarrmask.pyramid import (
    BrickGrid,
    Pyramid,
    Region,
    Shape,
    Step,
    brick_key,
    shifted,
    sides,
    tiles,
    within,
)
from zarrmask.records.ledger import Ledger
from zarrmask.running.second_look import MEANS
from zarrmask.storage.buffers import buffer
from zarrmask.storage.flush import flush_all

if TYPE_CHECKING:
    from zarrmask.detection.actors import Directory
    from zarrmask.stack import Source


def grey_values(slices: NDArray) -> NDArray[np.object_]:
    """Sample a slice: (1, y, x) to one object, (n,) of the slices' dtype."""
    out = np.empty(1, object)
    out[0] = sample(slices[0])
    return out


def detect(
    keyframes: NDArray,
    places: NDArray[np.object_],
    *,
    shape: tuple[int, int],
    detectors: Directory,
    network_input: NetworkInput,
    window: Window,
    store: KeyframeStore,
    ledger: Ledger,
) -> NDArray[np.object_]:
    """Find the object on some keyframes, and keep its masks.

    The slices are read and shrunk here; only the network's small image goes to the detector's
    actor, and only boxes and patches come back.

    Parameters
    ----------
    keyframes : (k, y, x) uint8, uint16, int16 or float32
        Slices, or coarser forms of them.
    places : (k, 1, 1) of int
        Which of the candidates they are.
    shape : (height, width)
        Of a slice, pixels; masks and boxes are in these.

    Returns
    -------
    (k,) of dict
        What goes to the ledger: each `Sighting` as JSON.
    """
    from zarrmask.detection.actors import ask

    entries = np.empty(len(places), object)
    for n, (image, place) in enumerate(zip(keyframes, places.ravel().tolist(), strict=True)):
        grey = to_8bit(image, window)
        prepared = network_input.prepare(grey, shape)
        asked = partial(ask, detectors.nearest(place), "detect")
        found = look_closer(asked(prepared, shape), grey, shape, network_input, asked)
        mask, sighting = _seen(found, prepared, shape)
        store.write_mask(place, mask)
        entries[n] = sighting.to_json()
        flush_all()
        ledger.enter(place, entries[n])
    return entries


def detect_anew(
    keyframes: NDArray,
    doubts: NDArray[np.object_],
    *,
    shape: tuple[int, int],
    detectors: Directory,
    network_input: NetworkInput,
    window: Window,
    store: KeyframeStore,
    ledger: Ledger,
) -> NDArray[np.object_]:
    """Look at some keyframes by all other means, and keep what fits those around them best.

    Where nothing fits better than what was seen first, that stays, and the ledger says None.

    Parameters
    ----------
    keyframes, shape
        As of `detect`.
    doubts : (k, 1, 1) of Doubt
        Of the keyframes.

    Returns
    -------
    (k,) of dict or None
        What goes to the ledger.
    """
    from zarrmask.detection.actors import ask

    entries = np.empty(len(doubts), object)
    for n, (image, doubt) in enumerate(zip(keyframes, doubts.ravel(), strict=True)):
        detector = detectors.nearest(doubt.position)
        lowest = cost(doubt.before, doubt.sighting, doubt.behind, doubt.usual)
        for means in MEANS:
            prepared = means.prepare(image, window, network_input, shape)
            found = ask(detector, "detect", prepared, shape).above(means.score)
            mask, sighting = _seen(found, prepared, shape)
            if (costs := cost(doubt.before, sighting, doubt.behind, doubt.usual)) < lowest:
                lowest, entries[n] = costs, {"by": means.name, **sighting.to_json()}
                store.write_mask(doubt.position, mask)
        flush_all()
        ledger.enter(doubt.position, entries[n])
    return entries


def _seen(
    found: Detections, image: NDArray[np.uint8], shape: tuple[int, int]
) -> tuple[NDArray[np.uint8], Sighting]:
    """Mask of what was found on an image of a slice, and what there is to say of it."""
    mask = union_mask(found, shape)
    return mask, Sighting.of_mask(mask, found.boxes, found.scores, image)


def measure_fields(
    first: NDArray[np.int64],
    *,
    store: KeyframeStore,
    positions: NDArray[np.int64],
    fields: FieldStore,
    ledger: Ledger,
) -> NDArray[np.bool_]:
    """Measure how far from the edges of their masks the cells of some keyframes are; one for each.

    Parameters
    ----------
    first : (1,) int64
        Place of the first of them; see `FieldStore.write`.
    positions : (k,) int64
        Where in the store all keyframes are.
    """
    place = int(first[0])
    count = fields.write(place, store.masks(), positions)
    flush_all()
    ledger.enter(place, None)
    return np.ones(count, bool)


def write_brick(
    index: NDArray[np.int64],
    *,
    source: Source,
    origin: Shape,
    grid: BrickGrid,
    outputs: Mapping[str, Pyramid],
    masks: Masks | None,
    rescaling: Rescaling | None,
    ledger: Ledger,
    anew: bool = False,
) -> NDArray[np.bool_]:
    """Read a brick of the stack once and write it to every output, at levels 0 and 1.

    Where the mask is empty and the volume is not wanted, nothing is read. The number of voxels
    inside the mask goes to the ledger.

    Parameters
    ----------
    index : (1, 3) int64
        Place of the brick in the grid.
    source : Source
        The stack.
    origin : (z, y, x)
        Index in the stack of the outputs' first voxel.
    grid : BrickGrid
        The outputs' bricks.
    outputs : mapping
        What is written, of "volume", "mask" and "masked".
    masks : Masks or None
        Where the object is, in indices of the stack; None where the volume alone is written.
    rescaling : Rescaling or None
        What becomes of grey values; None leaves them as they are.
    ledger : Ledger
    anew : bool
        Whether what is there of the brick has to go first.
    """
    brick = brick_at(index)
    ledger.take_back([brick_key(brick)])  # a result that is lost is made again
    region = grid.region(brick)
    if anew:
        for pyramid in outputs.values():
            if not pyramid.finished:
                pyramid.clear(0, region)
    inside = masks.region(*shifted(region, origin)) if masks is not None else None
    file = next(iter(outputs.values())).format.file
    by_tile = reads_by_tile(source, origin, file)
    whole = None if by_tile else shifted(region, origin)
    z, y, x = sides(region)
    room = min(z, file), min(y, file), x
    read = _reader(source, whole, origin, rescaling, room)
    kept = 0
    for step in tiles(region, grid.step[:2]):
        with ExitStack() as writing:
            steps = {
                name: writing.enter_context(pyramid.step(0, step))
                for name, pyramid in outputs.items()
            }
            for tile in tiles(step, (file, file)):
                voxels = None
                if "volume" in steps:
                    voxels = read(tile)
                    steps["volume"].write(tile, voxels)
                if inside is not None:
                    part = inside.part(*within(tile, region)[:2])
                    kept += _write_inside(tile, part, steps, read, voxels)
                for one in steps.values():
                    one.settle()
            for one in steps.values():
                one.finish()
    flush_all()
    ledger.enter(brick_key(brick), kept)
    return np.ones(1, bool)


def _write_inside(
    tile: Region,
    masks: RegionMasks,
    steps: Mapping[str, Step],
    read: Callable[[Region], NDArray],
    voxels: NDArray | None,
) -> int:
    """Write a tile's mask and what is inside it, and count that; `voxels` are read if need be."""
    z, y, x = tile
    mask, masked, volume = steps["mask"], steps["masked"], steps.get("volume")
    runs = masks.columns(mask.file, PIECE)
    if not runs:
        return 0
    first = 0
    if voxels is None:
        first = runs[0][0].start
        voxels = read((z, y, slice(x.start + first, x.start + runs[-1][0].stop)))
    room = *sides(tile)[:2], min(max(PIECE, mask.file), sides(tile)[2])
    kept = 0
    # What shares the volume's files comes last: it waits for them.
    for columns, full in sorted(runs, key=itemgetter(1)):
        piece = (z, y, slice(x.start + columns.start, x.start + columns.stop))
        seen = voxels[:, :, columns.start - first : columns.stop - first]
        if full:
            mask.fill(piece, 255)
            kept += prod(sides(piece))
            if volume is not None:
                masked.repeat(piece, seen, volume)
                continue
        masked.settle()
        # In one block: zarr would make one of it, in fresh memory.
        cut = buffer("cut", sides(piece), seen.dtype, room=room)
        if full:
            cut[...] = seen
        else:
            mask.settle()
            inside = buffer("inside", sides(piece), np.uint8, room=room)
            masks.fill(inside, columns)
            mask.write(piece, inside)
            cut_out(seen, inside, cut)
            kept += int(np.count_nonzero(inside))
        masked.write(piece, cut)
    return kept


def _reader(
    source: Source,
    whole: Region | None,
    origin: Shape,
    rescaling: Rescaling | None,
    room: Shape,
) -> Callable[[Region], NDArray]:
    """Give what reads parts of a brick, into one buffer; of `whole`, read at once, if it is given.

    No part has larger sides than `room`.

    Fresh memory would cost more than the work that is done in it.
    """
    decoded: list[NDArray] = []

    def read(region: Region) -> NDArray:
        voxels = buffer("voxels", sides(region), source.dtype, room=room)
        region = shifted(region, origin)
        if whole is None:
            source.read_into(voxels, *region)
        else:
            if not decoded:
                decoded.append(buffer("decoded", sides(whole), source.dtype))
                source.read_into(decoded[0], *whole)
            voxels[...] = decoded[0][within(region, whole)]
        if rescaling is None:
            return voxels
        rescaled = buffer("rescaled", sides(region), rescaling.dtype, room=room)
        rescaling(voxels, rescaled)
        return rescaled

    return read


def write_coarser(
    index: NDArray[np.int64],
    *,
    pyramid: Pyramid,
    level: int,
    grid: BrickGrid,
    ledger: Ledger,
    anew: bool = False,
) -> NDArray[np.bool_]:
    """Write a brick of the level that the pass before handed over, and of the next.

    Parameters
    ----------
    index : (1, 3) int64
        Place of the brick in the grid.
    anew : bool
        Whether what is there of the brick has to go first.
    """
    brick = brick_at(index)
    ledger.take_back([brick_key(brick)])
    if anew:
        pyramid.clear(level, grid.region(brick))
    for region in tiles(grid.region(brick), grid.step[:2]):
        with pyramid.step(level, region) as writing:
            writing.write(region, np.asarray(pyramid.handed_over(level)[region]))
            writing.finish()
    flush_all()
    ledger.enter(brick_key(brick), None)
    return np.ones(1, bool)


def brick_at(index: NDArray[np.int64]) -> tuple[int, int, int]:
    """Place of a brick of which an array, (1, 3), holds the indices."""
    z, y, x = index[0].tolist()
    return z, y, x
