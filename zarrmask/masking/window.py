"""Which grey values of a stack its slices use. Arithmetic only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

AUTO_PERCENTILES = (0.5, 99.5)
DARK_SHARE = 1 / 8


def percentiles(histogram: NDArray[np.int64], shares: tuple[float, ...]) -> tuple[int, ...]:
    """Grey values below or at which the given percents of voxels lie.

    Parameters
    ----------
    histogram : (grey values,) int64
        Voxels of each grey value.
    shares : tuple of float
        Percent.

    Examples
    --------
    >>> percentiles(np.array([5, 0, 5]), (10, 90))
    (0, 2)
    """
    below = np.cumsum(histogram)
    wanted = np.asarray(shares) / 100 * below[-1]
    return tuple(int(value) for value in np.searchsorted(below, wanted))


def auto_window(histogram: NDArray[np.int64]) -> tuple[float, float]:
    """Window that shows nearly all of the voxels with all of the detector's 8 bits."""
    low, high = percentiles(histogram, AUTO_PERCENTILES)
    return float(low), float(max(high, low + 1))


def uses_little(histogram: NDArray[np.int64]) -> bool:
    """Whether slices use so little of their grey range that their high byte shows very little."""
    low, high = percentiles(histogram, (0.1, 99.9))
    return high - low < len(histogram) * DARK_SHARE
