"""What there is to see of a finished run: a few pictures, the mask's area over z, the keyframes.

Coarse levels are read block by block, single planes of finer ones, and a sketch of each keyframe's
mask is kept, so that time and memory stay small whatever the volume's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import cv2
import numpy as np
import zarr
from numpy.typing import NDArray

from zarrmask.errors import OutputError
from zarrmask.pyramid.store import open_array
from zarrmask.report.cuts import Cut, limited
from zarrmask.report.greys import MOST, Greys, common, look_through, spread
from zarrmask.report.keyframes import KeyframeTable, read_keyframes
from zarrmask.report.suspects import Suspect, suspects
from zarrmask.report.words import bad_slices, number, pick
from zarrmask.stack.zarr_source import described
from zarrmask.storage.place import Place, place_of, zarr_store

Z, Y, X = range(3)

SLICES, FRAMES = 6, 72
"""How many slices are shown side by side, and how many one can leaf through, spread over z."""
SUSPECTS = 12
"""How many suspicious ranges are shown with pictures."""
CHUNKED = 2**27
"""Voxels that are decoded for a picture, at most, if the pyramid has a level that is so coarse."""
SLICE_PIXELS, SUSPECT_PIXELS, SECTION_PIXELS = 500, 420, 1000
"""The longer side that a picture has at least, where the volume is that large."""
MOST_PIXELS, FRAME_PIXELS = 2000, 1000
"""The longer side that a picture has at most, where a pyramid lacks coarse levels; one to leaf
through, all of which are in memory together."""
SURVEY_VOXELS = 2**29
"""Voxels of the mask level on which area is measured, at most (if the pyramid has such a level)."""

Outline = NDArray[np.float32]


@dataclass(frozen=True)
class Levels:
    """The levels of an OME-Zarr image, finest first; level n has voxels 2^n wide."""

    levels: tuple[zarr.Array[Any], ...]
    voxel_size_um: float | None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Size of level 0 (z, y, x), voxels."""
        z, y, x = self.levels[0].shape
        return z, y, x

    def level_for(self, pixels: int, axes: tuple[int, int]) -> int:
        """Tell the coarsest level whose longer side along two axes is `pixels` or more, else 0."""
        fine = [
            level
            for level, array in enumerate(self.levels)
            if max(array.shape[axis] for axis in axes) >= pixels
        ]
        return max(fine, default=0)


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


@dataclass(frozen=True)
class Views:
    """All that the report and the overview show of a run."""

    from_masked: bool  # the grey values are the masked volume's, for want of the volume
    shape: tuple[int, int, int]
    first_z: int
    voxel_size_um: float | None
    frames: tuple[Plane, ...]  # slices, ascending
    xz: Plane
    yz: Plane
    survey: Survey
    keyframes: KeyframeTable
    greys: Greys
    suspects: tuple[tuple[Suspect, tuple[Plane, ...]], ...]  # with pictures of the worst
    bad: tuple[int, ...] = ()  # numbers of slices that could not be read

    @property
    def slices(self) -> tuple[Plane, ...]:
        """Some of the frames, to be seen side by side."""
        return tuple(self.frames[place] for place in spread(len(self.frames), SLICES))

    @property
    def stop_z(self) -> int:
        """The slice number after the last."""
        return self.first_z + self.shape[Z]

    @property
    def lying(self) -> bool:
        """Whether sections are shown with z to the right: z is the longest side."""
        return self.shape[Z] >= max(self.shape[Y:])

    @property
    def sections(self) -> tuple[Plane, Plane]:
        """The XZ and the YZ section, turned as they are to be shown."""
        return (self.xz.turned(), self.yz.turned()) if self.lying else (self.xz, self.yz)

    @property
    def area_unit(self) -> tuple[float, str]:
        """A readable unit of area: how many of it a voxel has, and its name."""
        if self.voxel_size_um is not None:
            return (self.voxel_size_um / 1000) ** 2, "mm²"
        if self.survey.area.max(initial=0) >= 1e6:
            return 1e-6, "million voxels"
        return 1.0, "voxels"

    def depicts(self, plane: Plane) -> str:
        """Name a plane: a slice by its number, a section by its axes and place."""
        if plane.axis == Z:
            return f"z {self.first_z + plane.index}"
        return f"XZ at y {plane.index}" if plane.axis == Y else f"YZ at x {plane.index}"


def read_views(out: Place, record: Mapping[str, Any]) -> Views:
    """Read what is to be shown of the run in `out`.

    Parameters
    ----------
    out : Place
        A finished run's folder.
    record : mapping
        The content of its `run.json`.

    Raises
    ------
    OutputError
        There is no readable `mask.zarr`, or neither `volume.zarr` nor `masked.zarr`.
    """
    mask = open_levels(out / "mask.zarr", fast=True)
    volume = volume_place(out, record)
    from_masked = volume is None
    place = out / "masked.zarr" if volume is None else volume
    written = place in (out / "volume.zarr", out / "masked.zarr")  # else it is the stack
    grey = open_levels(place, fast=written)
    if grey.shape != mask.shape:
        raise OutputError(
            f"{place} is {grey.shape} voxels and its mask {mask.shape}: they are not of one "
            "run. Run again with --overwrite."
        )
    only_masked = place == out / "masked.zarr"
    survey = survey_mask(mask, number(pick(record, "voxels", "kept")))
    first_z, top, left = (
        _first(pick(record, *keys)) for keys in (("z",), ("settings", "y"), ("settings", "x"))
    )
    stack = pick(record, "input", "shape") or mask.shape
    keyframes = read_keyframes(out / "keyframes.zarr", max(stack[Y:]))
    # A given mask may be one of before, which the first slice holds.
    keyframes = replace(keyframes, z=np.maximum(keyframes.z, first_z))
    voxel_size = (
        number(pick(record, "voxel_size_um"))
        or number(pick(record, "input", "voxel_size_um"))
        or mask.voxel_size_um
    )
    level = _level(grey, mask, SLICE_PIXELS, (Y, X), most=MOST)
    greys, taken = look_through(
        grey.levels[level],
        mask.levels[level],
        FRAMES,
        first_z,
        2**level,
        FRAME_PIXELS,
        only_masked=only_masked,
    )
    span = greys.span(only_kept=only_masked)
    frames = tuple(
        _plane(Z, min((index << level) + 2**level // 2, mask.shape[Z] - 1), cut, 2**level, span)
        for index, cut in taken.items()
    )
    xz, yz = (_section(grey, mask, axis, survey.middle[axis], span) for axis in (Y, X))
    found, corner = suspects(keyframes, greys, record), (first_z, top, left)
    return Views(
        from_masked=from_masked,
        shape=mask.shape,
        first_z=first_z,
        voxel_size_um=voxel_size,
        frames=frames,
        xz=xz,
        yz=yz,
        survey=survey,
        keyframes=keyframes,
        greys=greys,
        suspects=tuple(
            (one, _beside(grey, mask, keyframes, one, corner, span) if n < SUSPECTS else ())
            for n, one in enumerate(found)
        ),
        bad=tuple(z for z, _, _ in bad_slices(record) if first_z <= z < first_z + mask.shape[Z]),
    )


def _first(span: Any) -> int:
    """Give the first of what was written, of slices, rows or columns; 0 where that is all."""
    first = number(span[0]) if isinstance(span, list | tuple) and span else None
    return int(first or 0)


def volume_place(out: Place, record: Mapping[str, Any]) -> Place | None:
    """Where the unmasked volume is: in the run's folder, or the stack itself; or nowhere."""
    if (out / "volume.zarr").is_dir():
        return out / "volume.zarr"
    referenced = pick(record, "volume")
    return place_of(referenced) if isinstance(referenced, str) else None


def open_levels(path: Place, *, fast: bool = False) -> Levels:
    """Open the levels of an OME-Zarr image.

    Parameters
    ----------
    path : Place
    fast : bool
        Whether it is one that zarrmask wrote; see `zarrmask.pyramid.store.open_array`.

    Raises
    ------
    OutputError
        It is missing or no OME-Zarr image of three axes.
    """
    try:
        group = zarr.open_group(zarr_store(path), mode="r")
        attributes: Any = dict(group.attrs)
        multiscale: Any = attributes.get("ome", attributes)["multiscales"][0]
        names = [dataset["path"] for dataset in multiscale["datasets"]]
        levels = tuple(open_array(path / name, "r", fast=fast) for name in names)
        voxel_size = described(multiscale).voxels.size
    except (OSError, ValueError, KeyError, IndexError, TypeError) as error:
        raise OutputError(
            f"{path} is not a readable OME-Zarr image ({type(error).__name__}: {error}): expected "
            "what a finished run leaves. Run again with --overwrite."
        ) from error
    if not levels or any(level.ndim != 3 for level in levels):
        raise OutputError(f"{path} does not hold arrays of three axes at each level.")
    return Levels(levels, voxel_size)


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


def _level(grey: Levels, mask: Levels, pixels: int, axes: tuple[int, int], *, most: int) -> int:
    """Choose the coarsest level that shows so many pixels, but one of no more than `most` voxels.

    Only levels count of which both pyramids have one of the same size, however it is rounded.
    """
    same = [
        level
        for level, (one, other) in enumerate(zip(grey.levels, mask.levels, strict=False))
        if np.all(np.abs(np.subtract(one.shape, other.shape)) <= 1)
    ]
    wanted = grey.level_for(pixels, axes)
    return next((n for n in same if n >= wanted and grey.levels[n].size <= most), same[-1])


def _section(grey: Levels, mask: Levels, axis: int, index: int, span: tuple[float, float]) -> Plane:
    """Cut across y or x."""
    rows, columns = (other for other in (Z, Y, X) if other != axis)
    level = _level(grey, mask, SECTION_PIXELS, (rows, columns), most=grey.levels[0].size)
    image, inside = common(
        *(_cut(pyramid.levels[level], axis, index >> level) for pyramid in (grey, mask))
    )
    return _plane(axis, index, limited(image, inside != 0, MOST_PIXELS), 2**level, span)


def _plane(
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


def _beside(
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
        planes.append(_plane(Z, index, cut, 2**level, span, found))
    return tuple(planes)


def _suspect_level(grey: Levels, mask: Levels, apart: int) -> int:
    """Choose a level on which neighbouring keyframes are told apart, if it can be read quickly."""
    level = _level(grey, mask, SUSPECT_PIXELS, (Y, X), most=grey.levels[0].size)

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
    # OpenCV traces through the middles of pixels: at twice the size a lone pixel has an outline.
    doubled = np.repeat(np.repeat(inside.astype(np.uint8), 2, axis=0), 2, axis=1)
    found, _ = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    smooth = 1.0 if min(inside.shape) > 100 else 0.0
    lines = (cv2.approxPolyDP(line, smooth, True)[:, 0, :] for line in found)
    return tuple(((line + 0.5) / 2).astype(np.float32) for line in lines)
