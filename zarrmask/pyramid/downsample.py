"""Halving a block: by the mean for images, by the maximum for masks. Arithmetic only."""

from __future__ import annotations

from functools import cache
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.storage.buffers import CACHED
from zarrmask.storage.files import Region

_DEPTHS = {np.dtype(np.uint8): cv2.CV_8U, np.dtype(np.uint16): cv2.CV_16U}


def halve(block: NDArray, by: str, out: NDArray | None = None) -> NDArray:
    """Halve a block by its "mean" or "max"; see `halve_mean` and `halve_max`."""
    return halve_mean(block, out) if by == "mean" else halve_max(block, out)


def halve_mean(block: NDArray, out: NDArray | None = None) -> NDArray:
    """Mean of 2 x 2 x 2 voxels, rounded half up.

    Parameters
    ----------
    block : (z, y, x) uint8 or uint16
        Starts at even indices of its level. Odd sizes end at the volume's border, where a voxel
        is the mean of those that exist.
    out : array of the result's shape and dtype, optional
        Where the result goes.

    Returns
    -------
    (ceil(z / 2), ceil(y / 2), ceil(x / 2)) array of the same dtype
        `(sum + n // 2) // n` over the n voxels that exist.
    """
    if out is None:
        out = np.empty(_halved(block.shape), block.dtype)
    for part, into in _in_cache(block, out):
        for before, after, count in _corners(part.shape):
            mean = _mean_of_eight if count == 8 else _mean
            mean(part[before], into[after])
    return out


def halve_max(block: NDArray, out: NDArray | None = None) -> NDArray:
    """Maximum of 2 x 2 x 2 voxels, so that no mask voxel is lost.

    Parameters
    ----------
    block : (z, y, x) array
        Starts at even indices of its level; odd sizes end at the volume's border.
    out : array of the result's shape and dtype, optional
        Where the result goes.

    Returns
    -------
    (ceil(z / 2), ceil(y / 2), ceil(x / 2)) array of the same dtype
    """
    if out is None:
        out = np.empty(_halved(block.shape), block.dtype)
    for part, into in _in_cache(block, out):
        # Along x last: there is least left to be picked apart.
        for axis in (0, 1):
            part = _in_pairs(np.maximum, part, axis)
        into[...] = _in_pairs(np.maximum, part, 2)
    return out


def _halved(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple((size + 1) // 2 for size in shape)


def _in_cache(block: NDArray, out: NDArray) -> list[tuple[NDArray, NDArray]]:
    """Cut a block, and the halved one likewise, into two slices by some rows."""
    depth, height, width = block.shape
    rows = max(2, CACHED // (2 * max(width, 1) * block.itemsize) // 2 * 2)
    return [
        (block[z : z + 2, y : y + rows], out[z // 2 : z // 2 + 1, y // 2 : (y + rows) // 2])
        for z, y in product(range(0, depth, 2), range(0, height, rows))
    ]


def _mean_of_eight(block: NDArray, out: NDArray) -> None:
    """Mean of two slices of even sides, by OpenCV's wide instructions.

    A mean of eight is a whole number of eighths: float32 has room for those and for the sixteenth
    that lets halves be rounded up, not to even.
    """
    total = cv2.add(block[0], block[1], dtype=cv2.CV_32F)
    quarter = cv2.resize(total, out.shape[:0:-1], interpolation=cv2.INTER_AREA)
    cv2.addWeighted(quarter, 0.5, quarter, 0, 1 / 16, out[0], _DEPTHS[out.dtype])


def _mean(block: NDArray, out: NDArray) -> None:
    """Mean of a block whose sides are even, or 1 at the volume's border."""
    total = block.astype(np.uint32)
    for axis in range(3):
        total = _in_pairs(np.add, total, axis)
    count = block.size // out.size
    out[...] = (total + count // 2) // count


def _in_pairs(combine: np.ufunc, block: NDArray, axis: int) -> NDArray:
    """Combine neighbours along an axis; an odd one out at the end stays as it is."""
    size, before = block.shape[axis], (slice(None),) * axis
    first, second = (*before, slice(0, size // 2 * 2, 2)), (*before, slice(1, None, 2))
    out: NDArray = combine(block[first], block[second])
    if size % 2:
        out = np.concatenate([out, block[(*before, slice(-1, None))]], axis)
    return out


@cache
def _corners(shape: tuple[int, ...]) -> list[tuple[Region, Region, int]]:
    """Cut a block into that of even sides and what is behind it.

    Returns
    -------
    list of (region, region, int)
        Where a part lies, where it goes when it is halved, and how many voxels become one there.
    """
    axes = []
    for size in shape:
        half, even = size // 2, size // 2 * 2
        parts = [(slice(0, even), slice(0, half), 2)] if half else []
        axes.append(parts + ([(slice(even, size), slice(half, None), 1)] if size % 2 else []))
    return [
        ((z[0], y[0], x[0]), (z[1], y[1], x[1]), z[2] * y[2] * x[2]) for z, y, x in product(*axes)
    ]
