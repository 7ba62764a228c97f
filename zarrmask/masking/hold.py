"""The mask of every voxel by the rule of the scripts that zarrmask replaces.

A keyframe's mask, dilated, is held until the next keyframe.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zarrmask.masking.dilation import dilated_part
from zarrmask.masking.keyframe_store import KeyframeStore
from zarrmask.masking.keyframes import held_by
from zarrmask.masking.runs import whole_files


@dataclass(frozen=True)
class HeldMasks:
    """Masks of a stack's slices.

    Attributes
    ----------
    store : KeyframeStore
        The keyframes' undilated masks.
    keyframes : (k,) int64
        Slice indices of those that are used, ascending.
    places : (k,) int64
        Where in the store they are.
    areas : (k,) int64
        Pixels of their masks.
    shape : (height, width)
        Of a slice, pixels.
    side : int
        Side of the dilation's square kernel, pixels.
    """

    store: KeyframeStore
    keyframes: NDArray[np.int64]
    places: NDArray[np.int64]
    areas: NDArray[np.int64]
    shape: tuple[int, int]
    side: int

    def region(self, z: slice, y: slice, x: slice) -> HeldRegion:
        """Masks of a region of the stack, each keyframe's read and dilated once; see `Masks`."""
        masks = self.store.masks()
        runs = []
        for position, start, stop in held_by(z.start, z.stop, self.keyframes):

            def read(rows: slice, columns: slice, position: int = position) -> NDArray[np.uint8]:
                return np.asarray(masks[int(self.places[position]), rows, columns], np.uint8)

            plane = dilated_part(read, y, x, self.shape, self.side)
            runs.append((start - z.start, stop - z.start, plane))
        return HeldRegion(z.stop - z.start, runs)

    def any_on(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which slices the object is on; see `Masks`."""
        out = np.zeros(stop - start, bool)
        for position, first, end in held_by(start, stop, self.keyframes):
            out[first - start : end - start] = self.areas[position] > 0
        return out


@dataclass(frozen=True)
class HeldRegion:
    """Masks of a region's slices.

    Attributes
    ----------
    depth : int
        Slices of the region.
    runs : list of (start, stop, (y, x) uint8)
        Slices of the region that share a mask, 255 where the object is, else 0. Slices that are
        in none have no mask.
    """

    depth: int
    runs: list[tuple[int, int, NDArray[np.uint8]]]

    @property
    def complete(self) -> bool:
        """Whether each of its slices has a mask."""
        return sum(stop - start for start, stop, _ in self.runs) == self.depth

    def part(self, z: slice, y: slice) -> HeldRegion:
        """Masks of some of the region's slices and rows."""
        runs = [
            (max(start, z.start) - z.start, min(stop, z.stop) - z.start, plane[y])
            for start, stop, plane in self.runs
            if start < z.stop and stop > z.start
        ]
        return HeldRegion(z.stop - z.start, runs)

    def columns(self, side: int, most: int) -> list[tuple[slice, bool]]:
        """Cut the columns that the masks reach into runs of whole files; see `RegionMasks`."""
        planes = [plane for _, _, plane in self.runs]
        if not planes:
            return []
        width = planes[0].shape[1]
        first = range(0, width, side)
        some = np.bitwise_or.reduceat(np.max([p.max(axis=0) for p in planes], axis=0), first) > 0
        every = np.bitwise_and.reduceat(np.min([p.min(axis=0) for p in planes], axis=0), first) > 0
        return whole_files(some.tolist(), (every & self.complete).tolist(), width, side, most)

    def fill(self, out: NDArray[np.uint8], columns: slice) -> None:
        """Write the masks of some of the region's columns; see `RegionMasks`."""
        if not self.complete:
            out.fill(0)
        for start, stop, plane in self.runs:
            out[start:stop] = plane[:, columns]
