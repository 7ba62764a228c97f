"""What masks are to those who cut by them."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class RegionMasks(Protocol):
    """Masks of a region's slices."""

    def part(self, z: slice, y: slice) -> RegionMasks:
        """Masks of some of the region's slices and rows."""

    def columns(self, side: int, most: int) -> list[tuple[slice, bool]]:
        """Cut the columns that the masks reach into runs of whole files.

        Parameters
        ----------
        side : int
            Columns of a file.
        most : int
            Columns of a run, at most; a multiple of `side`.

        Returns
        -------
        list of (slice, bool)
            Columns, and whether all of their voxels are surely inside.
        """

    def fill(self, out: NDArray[np.uint8], columns: slice) -> None:
        """Write the masks of some of the region's columns into an array (z, y, x) uint8.

        255 where the object is, else 0.
        """


class Masks(Protocol):
    """Masks of all of a stack's slices."""

    def region(self, z: slice, y: slice, x: slice) -> RegionMasks:
        """Masks of a region of the stack."""

    def any_on(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which slices, from index `start` to before `stop`, the object is on: (stop - start,)."""


@dataclass(frozen=True)
class SettledMasks:
    """Masks that are settled for the first of a stack's slices.

    Attributes
    ----------
    masks : Masks
    stop : int
        Index of the first slice that they do not say; by default they say all.
    """

    masks: Masks
    stop: int = sys.maxsize
