"""Cuts through a run as pictures, with lines around the mask."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray

from zarrmask.masking.tracing import traced
from zarrmask.report.cuts import Cut, limited
from zarrmask.report.greys import common
from zarrmask.report.keyframes import KeyframeTable
from zarrmask.report.levels import Levels, X, Y, Z, common_level
from zarrmask.report.suspects import Suspect

CHUNKED = 2**27
"""Voxels that are decoded for a picture, at most, if the pyramid has a level that is so coarse."""
SUSPECT_PIXELS, SECTION_PIXELS = 420, 1000
"""The longer side that a picture has at least, where the volume is that large."""
MOST_PIXELS = 2000
"""The longer side that a picture has at most, where a pyramid lacks coarse levels."""

Outline = NDArray[np.float32]


@dataclass(frozen=True)
class Plane:
    """A cut through the run across one axis, with what the mask encloses there.

    Attributes
    ----------
    axis : int
        The axis that the cut goes across: 0 for a slice, 1 for an XZ section, 2 for a YZ section.
    index : int
        Where it cuts, voxels of level 0 from the volume's first.
    image : uint8 array (rows, columns)
        Grey values, stretched for display.
    outlines : tuple of float32 arrays (n, 2)
        Closed lines around the mask, x and y in pixels of `image` (0: the first one's edge).
    pixel : float
        Side of a pixel, voxels.
    found : tuple of float32 arrays (n, 2)
        Likewise around what the detector found, of a keyframe.
    """

    axis: int
    index: int
    image: NDArray[np.uint8]
    outlines: tuple[Outline, ...]
    pixel: float
    found: tuple[Outline, ...] = ()

    def turned(self) -> Plane:
        """Swap rows and columns."""
        outlines = tuple(line[:, ::-1] for line in self.outlines)
        image = np.ascontiguousarray(self.image.T)
        return Plane(self.axis, self.index, image, outlines, self.pixel)


def section(grey: Levels, mask: Levels, axis: int, index: int, span: tuple[float, float]) -> Plane:
    """Cut across y or x."""
    rows, columns = (other for other in (Z, Y, X) if other != axis)
    level = common_level(grey, mask, SECTION_PIXELS, (rows, columns), most=grey.levels[0].size)
    image, inside = common(
        *(_cut(pyramid.levels[level], axis, index >> level) for pyramid in (grey, mask))
    )
    return plane_of(axis, index, limited(image, inside != 0, MOST_PIXELS), 2**level, span)


def plane_of(
    axis: int,
    index: int,
    cut: Cut,
    side: int,
    span: tuple[float, float],
    found: tuple[Outline, ...] = (),
) -> Plane:
    """Stretch a cut's grey values and trace the mask's edge, and what was found on a keyframe."""
    pixel = cut.shrunk * side
    found = tuple(line / pixel for line in found)
    grey = _stretched(cut.image.astype(np.float32), *span)
    return Plane(axis, index, grey, outlines(cut.inside), pixel, found)


def beside(
    grey: Levels,
    mask: Levels,
    keyframes: KeyframeTable,
    suspect: Suspect,
    corner: tuple[int, int, int],
    span: tuple[float, float],
) -> tuple[Plane, ...]:
    """Show the worst keyframe of a range between its neighbours.

    `corner` is the number of the slice, row and column of the stack with which the run begins.
    """
    first_z, top, left = corner
    edge = np.array((left, top), np.float32)
    places = [suspect.worst + step for step in (-1, 0, 1)]
    places = [place for place in places if 0 <= place < len(keyframes.z)]
    indices = [int(keyframes.z[place]) - first_z for place in places]
    if not all(0 <= index < mask.shape[Z] for index in indices):
        return ()
    level = _suspect_level(grey, mask, int(np.diff(indices).min(initial=mask.shape[Z])))
    last = min(pyramid.levels[level].shape[Z] for pyramid in (grey, mask)) - 1
    layers = np.minimum(np.array(indices) >> level, last)
    coarse = np.unique(layers)
    images, insides = common(
        *(
            np.asarray(pyramid.levels[level].oindex[coarse, slice(None), slice(None)])
            for pyramid in (grey, mask)
        )
    )
    planes = []
    for place, index, layer in zip(places, indices, layers, strict=True):
        n = int(np.searchsorted(coarse, layer))
        sketch = keyframes.sketches[place].pixels if keyframes.sketches else np.zeros((1, 1), bool)
        found = tuple(line * keyframes.pixel - edge for line in outlines(sketch))
        cut = limited(images[n], insides[n] != 0, MOST_PIXELS)
        planes.append(plane_of(Z, index, cut, 2**level, span, found))
    return tuple(planes)


def _suspect_level(grey: Levels, mask: Levels, apart: int) -> int:
    """Choose a level on which neighbouring keyframes are told apart, if it can be read quickly."""
    level = common_level(grey, mask, SUSPECT_PIXELS, (Y, X), most=grey.levels[0].size)

    def quick(level: int) -> bool:
        array = grey.levels[level]
        return array.chunks[Z] * array.shape[Y] * array.shape[X] <= CHUNKED

    while level and 2**level > apart and quick(level - 1):
        level -= 1
    return level


def _cut(array: zarr.Array[Any], axis: int, index: int) -> NDArray[Any]:
    index = min(index, array.shape[axis] - 1)
    place = tuple(index if other == axis else slice(None) for other in range(3))
    return np.asarray(array[place])


def _stretched(image: NDArray[np.float32], low: float, high: float) -> NDArray[np.uint8]:
    grey: NDArray[np.uint8] = np.rint(np.clip((image - low) / (high - low), 0, 1) * 255).astype(
        "u1"
    )
    return grey


def outlines(inside: NDArray[np.bool_]) -> tuple[Outline, ...]:
    """Trace closed lines around a mask, holes included.

    Parameters
    ----------
    inside : bool array (rows, columns)
        The mask.

    Returns
    -------
    tuple of float32 arrays (n, 2)
        x and y in pixels, 0 being the edge of the first pixel. A line runs within the mask, a
        quarter of a pixel from its edge.

    Examples
    --------
    >>> [line.tolist() for line in outlines(np.array([[False, True]]))]
    [[[1.25, 0.25], [1.25, 0.75], [1.75, 0.75], [1.75, 0.25]]]
    """
    found, _ = traced(inside)
    smooth = 1.0 if min(inside.shape) > 100 else 0.0
    lines = (cv2.approxPolyDP(line, smooth, True)[:, 0, :] for line in found)
    return tuple(((line + 0.5) / 2).astype(np.float32) for line in lines)
