"""The mask measured once through: its area over z, and its middle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from zarrmask.report.levels import Levels, Z

SURVEY_VOXELS = 2**29
"""Voxels of the mask level on which area is measured, at most (if the pyramid has such a level)."""


@dataclass(frozen=True)
class Survey:
    """The mask measured once through.

    Attributes
    ----------
    edges : int64 array (n + 1,)
        Where each of the n steps along z begins, and where the last one ends; indices of slices.
    area : float64 array (n,)
        Mask voxels a slice in each step.
    middle : (z, y, x)
        The mask's centre of mass, or the volume's middle where the mask is empty; indices.
    """

    edges: NDArray[np.int64]
    area: NDArray[np.float64]
    middle: tuple[int, int, int]


def survey_mask(mask: Levels, kept: float | None) -> Survey:
    """Measure a mask's area over z and its middle, on a level coarse enough to be quick.

    Coarse mask levels hold the maximum, so that they overstate; the whole is scaled back to the
    number of voxels kept, which the run counted at full size.

    Parameters
    ----------
    mask : Levels
        The mask.
    kept : float or None
        Mask voxels at level 0, if known.
    """
    level = next(
        (n for n, array in enumerate(mask.levels) if array.size <= SURVEY_VOXELS),
        len(mask.levels) - 1,
    )
    array, side = mask.levels[level], 2**level
    totals = [np.zeros(length, np.int64) for length in array.shape]
    for corner, block in _blocks(array):
        inside = block != 0
        if not inside.any():
            continue
        plane = inside.sum(axis=0, dtype=np.int64)
        counts = ([np.count_nonzero(one) for one in inside], plane.sum(axis=1), plane.sum(axis=0))
        for total, start, count in zip(totals, corner, counts, strict=True):
            total[start : start + len(count)] += count
    edges = np.minimum(np.arange(array.shape[Z] + 1) * side, mask.shape[Z])
    area = totals[Z].astype(np.float64) * side**2
    coarse = float((area * np.diff(edges)).sum())
    if level and kept is not None and 0 < kept < coarse:
        area *= kept / coarse
    z, y, x = (
        min(int((_centre(total) + 0.5) * side), length - 1)
        for total, length in zip(totals, mask.shape, strict=True)
    )
    return Survey(edges, area, (z, y, x))


def _blocks(array: zarr.Array[Any]) -> Iterator[tuple[tuple[int, ...], NDArray[Any]]]:
    """Read an array chunk by chunk, whole rows of chunks at once; with the corner of each block."""
    z, y, _ = array.shape
    deep, high, _ = array.chunks
    for top, left in product(range(0, z, deep), range(0, y, high)):
        yield (top, left, 0), np.asarray(array[top : top + deep, left : left + high, :])


def _centre(weights: NDArray[np.int64]) -> float:
    """Centre of mass of a profile; its middle where it is empty."""
    if not weights.any():
        return (len(weights) - 1) / 2
    return float(np.average(np.arange(len(weights)), weights=weights))
