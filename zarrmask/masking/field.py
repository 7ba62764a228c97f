"""A mask as a signed distance to its edge, which can be interpolated. Arithmetic only.

Shape-based interpolation: Raya & Udupa, "Shape-based interpolation of multidimensional objects",
IEEE Transactions on Medical Imaging 9 (1990), doi:10.1109/42.52980.
"""

from __future__ import annotations

from math import ceil, floor

import cv2
import numpy as np
from numpy.typing import NDArray

LONGEST = 1536
"""Cells along a slice's longer side, at most. A detector's masks are patches of 28 x 28 to 160 x
160 pixels a box: they hold no detail that this would lose."""
UNITS = 16
"""Units of distance in a cell: fields are whole numbers of them."""
REACH = 0.015
"""How far an edge may move between two keyframes, as part of a slice's longer side."""
NOWHERE = np.int16(-2000 * UNITS)
"""Distance where no edge is in sight; no two cells are as far apart."""


def cell_side(height: int, width: int) -> int:
    """Side of a field's square cells, pixels: odd.

    Halfway between whole distances lies nothing that is interpolated between cells of an odd side:
    OpenCV rounds halves up or down by where in an array they are, and so by the region.

    Examples
    --------
    >>> cell_side(720, 1000), cell_side(8096, 7888)
    (1, 7)
    """
    return ceil(max(height, width) / LONGEST) // 2 * 2 + 1


def cells(shape: tuple[int, int], side: int) -> tuple[int, int]:
    """Shape of a field whose cells of this side cover a slice."""
    return ceil(shape[0] / side), ceil(shape[1] / side)


def coarse_mask(mask: NDArray[np.uint8], side: int) -> NDArray[np.bool_]:
    """Which cells the object covers by half or more.

    Parameters
    ----------
    mask : (y, x) uint8
        255 where the object is, else 0.
    side : int
        Of a cell, pixels.

    Returns
    -------
    (y', x') bool
        See `cells`.
    """
    if side == 1:
        return mask > 0
    rows, columns = cells((mask.shape[0], mask.shape[1]), side)
    below, right = rows * side - mask.shape[0], columns * side - mask.shape[1]
    whole = cv2.copyMakeBorder(mask, 0, below, 0, right, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA)) > 127


def distance_to_zero(mask: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Distance of each pixel to the nearest that is 0, the same bits wherever it is taken.

    Not so by Intel's IPP, which OpenCV turns to where it has one thread: its last digits depend on
    where in memory a mask lies. The setting is the calling thread's own.

    Parameters
    ----------
    mask : (y, x) uint8

    Returns
    -------
    (y, x) float32
        Pixels.
    """
    was_used = cv2.ipp.useIPP()
    cv2.ipp.setUseIPP(False)
    try:
        distance = cv2.distanceTransform(mask, cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
    finally:
        cv2.ipp.setUseIPP(was_used)
    return np.asarray(distance, np.float32)


def signed_distance(inside: NDArray[np.bool_]) -> NDArray[np.int16]:
    """Distance of each cell's centre to the object's edge, positive inside.

    The edge runs between cells. The slice's border is no edge: the object may go on beyond it.

    Parameters
    ----------
    inside : (y, x) bool

    Returns
    -------
    (y, x) int16
        In 1 / `UNITS` of a cell, no farther than `NOWHERE`; `-NOWHERE` where all is inside,
        `NOWHERE` where nothing is.
    """
    if inside.all() or not inside.any():
        return np.full(inside.shape, -NOWHERE if inside.all() else NOWHERE, np.int16)
    seen = inside.view(np.uint8)
    within, beyond = distance_to_zero(seen), distance_to_zero(1 - seen)
    to_centre = cv2.addWeighted(within, UNITS, beyond, -UNITS, 0, dtype=cv2.CV_16S)
    half = np.int16(UNITS // 2)
    distance = np.asarray(to_centre, np.int16) + np.where(inside, -half, half)
    return np.clip(distance, NOWHERE, -NOWHERE, out=distance)


def pieces_apart(one: NDArray[np.bool_], other: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pieces of either mask that share no cell with the other mask: (y, x) bool.

    Interpolation would let them vanish half-way.
    """
    apart = np.zeros(one.shape, bool)
    for mask, against in ((one, other), (other, one)):
        count, pieces = cv2.connectedComponents(mask.view(np.uint8), connectivity=8)
        shared = np.zeros(count, bool)
        shared[pieces[against]] = True
        shared[0] = True  # what is no piece
        apart |= ~shared[pieces]
    return apart


def parts_apart(
    one: NDArray[np.bool_],
    other: NDArray[np.bool_],
    fields: tuple[NDArray[np.int16], NDArray[np.int16]],
) -> NDArray[np.bool_]:
    """What of either mask interpolation must not take away: (y, x) bool.

    Pieces that the other lacks, and parts that lie farther than `REACH` from the other mask: a
    mouth that opens, an arm that ends. All else of either mask stays within `REACH` of what is
    interpolated; so a mask that grows by as much, as it does by default, holds both masks whole on
    all slices between them.

    Parameters
    ----------
    one, other : (y, x) bool
    fields : pair of (y, x) int16
        Theirs; see `signed_distance`.
    """
    apart = pieces_apart(one, other)
    reach = int(REACH * max(one.shape) * UNITS)
    for mask, field in ((one, fields[1]), (other, fields[0])):
        far = mask & (field < -reach)
        if far.any():  # with what joins it to the other mask
            apart |= mask & (signed_distance(far) > -reach - UNITS)
    return apart


def between(
    one: NDArray[np.int16], other: NDArray[np.int16], place: float, kept: NDArray[np.int16] | None
) -> NDArray[np.int16]:
    """Field of a slice between two keyframes.

    Parameters
    ----------
    one, other : (y, x) int16
        Their fields.
    place : float
        Where the slice lies, from 0 at the one to 1 at the other.
    kept : (y, x) int16, optional
        Field of what is there all the way from the one to the other.
    """
    if place == 0:
        return one
    field = np.asarray(cv2.addWeighted(one, 1 - place, other, place, 0), np.int16)
    return field if kept is None else np.maximum(field, kept)


def cells_around(start: int, stop: int, side: int, count: int) -> slice:
    """Cells that pixels from `start` to before `stop` are interpolated from, of so many."""
    first = (2 * start + 1 - side) // (2 * side)
    last = (2 * stop - 1 - side) // (2 * side) + 1
    return slice(max(0, first), min(count, last + 1))


def threshold(growth: float, side: int) -> int:
    """What a field is above where a mask that has grown lies: in 1 / `UNITS` of a cell.

    Parameters
    ----------
    growth : float
        Pixels; below zero it shrinks.
    side : int
        Of a cell, pixels.
    """
    return floor(-growth * UNITS / side)


def enlarged(
    field: NDArray[np.int16],
    threshold: int,
    side: int,
    offset: tuple[int, int],
    out: NDArray[np.uint8],
) -> None:
    """Write where a field, enlarged bilinearly, is above a threshold: 255 there, else 0.

    Parameters
    ----------
    field : (y', x') int16
        The cells around the pixels; see `cells_around`.
    threshold : int
        In 1 / `UNITS` of a cell.
    side : int
        Of a cell, pixels.
    offset : (y, x)
        Of the first pixel from the first cell's upper left corner, pixels.
    out : (y, x) uint8
    """
    large = field
    if side > 1:
        size = field.shape[1] * side, field.shape[0] * side
        large = np.asarray(cv2.resize(field, size, interpolation=cv2.INTER_LINEAR))
    rows, columns = (slice(at, at + size) for at, size in zip(offset, out.shape, strict=True))
    np.greater(large[rows, columns], threshold, out=out.view(bool))
    np.negative(out, out=out)  # 1 becomes 255


def grown(mask: NDArray[np.uint8], growth: float) -> NDArray[np.uint8]:
    """Give a keyframe's own mask as it is where masks are interpolated.

    Parameters
    ----------
    mask : (y, x) uint8
        As detected; not 0 inside.
    growth : float
        Pixels; below zero it shrinks.

    Returns
    -------
    (y, x) uint8
        0 or 255.
    """
    height, width = mask.shape
    side = cell_side(height, width)
    out = np.empty((height, width), np.uint8)
    inside = np.where(mask, np.uint8(255), np.uint8(0))
    field = signed_distance(coarse_mask(inside, side))
    enlarged(field, threshold(growth, side), side, (0, 0), out)
    return out
