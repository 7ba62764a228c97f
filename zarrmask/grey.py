"""Grey values: which of them a stack uses, and how they become others. Arithmetic only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

AUTO_PERCENTILES = (0.5, 99.5)
DARK_SHARE = 1 / 8
SAMPLED = 2**18
"""Voxels of a slice that stand for all of it."""
PIECE = 2**18
"""Voxels that are rescaled at a time: what that takes stays in a core's cache."""


def sample(image: NDArray) -> NDArray:
    """Give evenly spread voxels of an image, at most `SAMPLED`; of floats those that are finite."""
    values = image.ravel()
    values = values[:: -(-values.size // SAMPLED)]
    return values[np.isfinite(values)] if values.dtype.kind == "f" else values


def auto_window(values: NDArray) -> tuple[float, float]:
    """Window that shows nearly all of a sample's voxels with all of the grey values there are.

    Examples
    --------
    >>> auto_window(np.arange(1000, dtype=np.uint16))
    (4.0, 994.0)
    """
    if not values.size:
        return 0.0, 1.0
    # As floats: between signed integers that lie far apart NumPy's own would overflow.
    low, high = np.percentile(values.astype(np.float64), AUTO_PERCENTILES)
    if values.dtype.kind == "u":
        low, high = np.floor(low), max(np.floor(high), np.floor(low) + 1)
    elif not low < high:
        high = low + max(abs(low), 1.0)
    return float(low), float(high)


def shows(window: tuple[float, float], least: float, greatest: float) -> bool:
    """Whether grey values from the least to the greatest are not all black, or all white, in it.

    Examples
    --------
    >>> shows((100, 300), 0, 255), shows((255, 300), 0, 255)
    (True, False)
    """
    return window[0] < greatest and least < window[1]


def clipped(values: NDArray, window: tuple[float, float]) -> tuple[float, float]:
    """Shares of a sample that a window makes black, and white.

    Examples
    --------
    >>> clipped(np.arange(100), (10, 79))
    (0.11, 0.21)
    """
    count = max(1, values.size)
    black, white = values <= window[0], values >= window[1]
    return int(np.count_nonzero(black)) / count, int(np.count_nonzero(white)) / count


def uses_little(values: NDArray) -> bool:
    """Whether a sample uses so little of its grey range that its high byte shows very little."""
    low, high = np.percentile(values, (0.1, 99.9))
    return bool(high - low < (np.iinfo(values.dtype).max + 1) * DARK_SHARE)


@dataclass(frozen=True)
class Rescaling:
    """A window of grey values spread over all of those of an integer dtype.

    Attributes
    ----------
    low, high : float
        Become 0 and the greatest value; in between it is linear and rounded, beyond it is clipped.
        What is no number becomes 0.
    dtype : str
        uint8 or uint16.
    """

    low: float
    high: float
    dtype: str

    def __call__(self, voxels: NDArray, out: NDArray) -> None:
        """Write what voxels, of any type a stack has, become into `out`; both are contiguous."""
        become: Callable[[NDArray], NDArray] = self._become
        if voxels.dtype.kind == "u":  # few grey values and many voxels: one look-up a voxel
            become = self._become(np.arange(np.iinfo(voxels.dtype).max + 1)).__getitem__
        flat, into = voxels.reshape(-1), out.reshape(-1)
        for start in range(0, flat.size, PIECE):
            into[start : start + PIECE] = become(flat[start : start + PIECE])

    def _become(self, greys: NDArray) -> NDArray:
        greatest = np.iinfo(self.dtype).max
        scaled = (greys.astype(np.float64) - self.low) * (greatest / (self.high - self.low))
        np.nan_to_num(scaled, copy=False, nan=0.0)
        return np.clip(np.rint(scaled, out=scaled), 0, greatest, out=scaled).astype(self.dtype)
