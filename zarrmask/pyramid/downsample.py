"""Halving a block: by the mean for images, by the maximum for masks. Arithmetic only."""

from __future__ import annotations

from itertools import product

import numpy as np
from numpy.typing import NDArray


def halve(block: NDArray, by: str) -> NDArray:
    """Halve a block by its "mean" or "max"; see `halve_mean` and `halve_max`."""
    return halve_mean(block) if by == "mean" else halve_max(block)


def halve_mean(block: NDArray) -> NDArray:
    """Mean of 2 x 2 x 2 voxels, rounded half up.

    Parameters
    ----------
    block : (z, y, x) uint8 or uint16
        Starts at even indices of its level. Odd sizes end at the volume's border, where a voxel
        is the mean of those that exist.

    Returns
    -------
    (ceil(z / 2), ceil(y / 2), ceil(x / 2)) array of the same dtype
        `(sum + n // 2) // n` over the n voxels that exist.
    """
    dtype = block.dtype
    total = block
    for axis in range(3):
        # Eight uint8 fit in uint16, eight uint16 in uint32.
        total = _in_pairs(np.add, total, axis, np.uint16 if dtype == np.uint8 else np.uint32)
    out = np.empty(total.shape, dtype)
    for region, count in _voxels_behind(block.shape):
        part = total[region]
        part += count // 2
        part >>= count.bit_length() - 1
        out[region] = part
    return out


def halve_max(block: NDArray) -> NDArray:
    """Maximum of 2 x 2 x 2 voxels, so that no mask voxel is lost.

    Parameters
    ----------
    block : (z, y, x) array
        Starts at even indices of its level; odd sizes end at the volume's border.

    Returns
    -------
    (ceil(z / 2), ceil(y / 2), ceil(x / 2)) array of the same dtype
    """
    for axis in range(3):
        block = _in_pairs(np.maximum, block, axis, block.dtype.type)
    return block


def _in_pairs(combine: np.ufunc, block: NDArray, axis: int, dtype: type) -> NDArray:
    """Combine neighbours along an axis; an odd one out at the end stays as it is."""
    size = block.shape[axis]
    shape = list(block.shape)
    shape[axis] = (size + 1) // 2
    out: NDArray = np.empty(shape, dtype)
    view, pairs = np.moveaxis(out, axis, 0), np.moveaxis(block, axis, 0)
    combine(pairs[0 : size // 2 * 2 : 2], pairs[1::2], out=view[: size // 2], dtype=dtype)
    if size % 2:
        view[-1] = pairs[-1]
    return out


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
