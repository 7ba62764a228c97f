"""Masks over masks: what a person corrected lies over what was found."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zarrmask.masking.protocol import Masks, RegionMasks
from zarrmask.masking.runs import whole_files


@dataclass(frozen=True)
class Layer:
    """Masks of some slices.

    Attributes
    ----------
    start, stop : int
        Slice indices, `stop` excluded.
    masks : Masks
    grown : int
        Side of the square kernel by which the masks had been dilated when they were kept, pixels:
        what they grow by now comes on top of it.
    """

    start: int
    stop: int
    masks: Masks
    grown: int = 0

    def part(self, start: int, stop: int) -> list[Layer]:
        """The same of fewer slices: a layer or none."""
        start, stop = max(start, self.start), min(stop, self.stop)
        return [replace(self, start=start, stop=stop)] if start < stop else []


@dataclass(frozen=True)
class LayeredMasks:
    """Masks of a stack's slices, each slice's from one layer.

    Attributes
    ----------
    layers : tuple of Layer
        Ascending, side by side; slices in none have no mask.
    """

    layers: tuple[Layer, ...]

    def covered(self, *layers: Layer) -> LayeredMasks:
        """The same with other layers over them."""
        beneath = self.layers
        for over in layers:
            before = [part for one in beneath for part in one.part(one.start, over.start)]
            behind = [part for one in beneath for part in one.part(over.stop, one.stop)]
            beneath = (*before, over, *behind)
        return LayeredMasks(beneath)

    def among(self, start: int, stop: int) -> list[Layer]:
        """Layers of some slices."""
        return [part for one in self.layers for part in one.part(start, stop)]

    def region(self, z: slice, y: slice, x: slice) -> LayeredRegion:
        """Masks of a region of the stack; see `Masks`."""
        parts = [
            (
                one.start - z.start,
                one.stop - z.start,
                one.masks.region(slice(one.start, one.stop), y, x),
            )
            for one in self.among(z.start, z.stop)
        ]
        return LayeredRegion(z.stop - z.start, x.stop - x.start, parts)

    def any_on(self, start: int, stop: int) -> NDArray[np.bool_]:
        """Which slices the object may be on; see `Masks`."""
        out = np.zeros(stop - start, bool)
        for one in self.among(start, stop):
            out[one.start - start : one.stop - start] = one.masks.any_on(one.start, one.stop)
        return out


@dataclass(frozen=True)
class LayeredRegion:
    """Masks of a region's slices.

    Attributes
    ----------
    depth, width : int
        Slices and columns of the region.
    parts : list of (start, stop, RegionMasks)
        Slices of the region, and their masks; slices that are in none have no mask.
    """

    depth: int
    width: int
    parts: list[tuple[int, int, RegionMasks]]

    @property
    def complete(self) -> bool:
        """Whether each of its slices has a mask."""
        return sum(stop - start for start, stop, _ in self.parts) == self.depth

    def part(self, z: slice, y: slice) -> LayeredRegion:
        """Masks of some of the region's slices and rows."""
        parts = []
        for start, stop, masks in self.parts:
            first, last = max(start, z.start), min(stop, z.stop)
            if first < last:
                inner = masks.part(slice(first - start, last - start), y)
                parts.append((first - z.start, last - z.start, inner))
        return replace(self, depth=z.stop - z.start, parts=parts)

    def columns(self, side: int, most: int) -> list[tuple[slice, bool]]:
        """Cut the columns that the masks reach into runs of whole files; see `RegionMasks`."""
        files = -(-self.width // side)
        reached = np.zeros(files, bool)
        full = np.full(files, self.complete)
        for _, _, masks in self.parts:
            whole = np.zeros(files, bool)
            for columns, alike in masks.columns(side, side):
                reached[columns.start // side] = True
                whole[columns.start // side] = alike
            full &= whole
        return whole_files(reached.tolist(), full.tolist(), self.width, side, most)

    def fill(self, out: NDArray[np.uint8], columns: slice) -> None:
        """Write the masks of some of the region's columns; see `RegionMasks`."""
        if not self.complete:
            out.fill(0)
        for start, stop, masks in self.parts:
            masks.fill(out[start:stop], columns)
