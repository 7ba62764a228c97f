"""Halving a block: by the mean for images, by the maximum for masks. Arithmetic only."""

from __future__ import annotations

from functools import cache
from itertools import product

import numpy as np
from numpy.typing import NDArray

CACHED = 2**19
"""Bytes of two slices that are halved at a time: what is made of them stays in a core's cache."""


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
        total = _pairs_along_x(part)
        for axis in (1, 0):
            total = _in_pairs(np.add, total, axis)
        for region, count in _voxels_behind(part.shape):
            mean = total[region]
            if count > 1:
                mean += mean.dtype.type(count // 2)
                mean >>= mean.dtype.type(count.bit_length() - 1)
            into[region] = mean
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


def _pairs_along_x(block: NDArray) -> NDArray:
    """Sum of neighbours along x, in twice the bits: eight voxels' sum fits.

    Two voxels that lie side by side are seen as one number of twice the bits, and that is taken
    apart: strides of two voxels would be four times slower.
    """
    dtype = np.dtype(f"u{2 * block.itemsize}")
    width = block.shape[2]
    if width % 2 or block.strides[2] != block.itemsize or block.strides[1] % dtype.itemsize:
        return _in_pairs(np.add, block.astype(dtype), 2)
    both = block.view(dtype)
    bits = dtype.type(8 * block.itemsize)
    first: NDArray = both & dtype.type(2 ** int(bits) - 1)
    first += both >> bits
    return first


def _in_pairs(combine: np.ufunc, block: NDArray, axis: int) -> NDArray:
    """Combine neighbours along an axis; an odd one out at the end stays as it is."""
    size, before = block.shape[axis], (slice(None),) * axis
    first, second = (*before, slice(0, size // 2 * 2, 2)), (*before, slice(1, None, 2))
    out: NDArray = combine(block[first], block[second])
    if size % 2:
        out = np.concatenate([out, block[(*before, slice(-1, None))]], axis)
    return out


@cache
def _voxels_behind(shape: tuple[int, ...]) -> list[tuple[tuple[slice, ...], int]]:
    """Regions of the halved block with the number of voxels that each of theirs stands for."""
    axes = []
    for size in shape:
        parts = [(slice(0, size // 2), 2)] if size > 1 else []
        axes.append(parts + ([(slice(size // 2, None), 1)] if size % 2 else []))
    return [
        (tuple(part for part, _ in corner), int(np.prod([count for _, count in corner])))
        for corner in product(*axes)
    ]
