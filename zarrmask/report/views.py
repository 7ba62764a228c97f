"""What there is to see of a finished run: a few pictures, the mask's area over z, the keyframes.

Coarse levels are read block by block, single planes of finer ones, and a sketch of each keyframe's
mask is kept, so that time and memory stay small whatever the volume's size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from zarrmask.errors import OutputError
from zarrmask.report.greys import MOST, Greys, look_through, spread
from zarrmask.report.keyframes import KeyframeTable, read_keyframes
from zarrmask.report.levels import X, Y, Z, common_level, open_levels, volume_place
from zarrmask.report.planes import Plane, beside, plane_of, section
from zarrmask.report.survey import Survey, survey_mask
from zarrmask.report.suspects import Suspect, suspects
from zarrmask.report.words import bad_slices, number, pick
from zarrmask.storage.place import Place

SLICES, FRAMES = 6, 72
"""How many slices are shown side by side, and how many one can leaf through, spread over z."""
SUSPECTS = 12
"""How many suspicious ranges are shown with pictures."""
SLICE_PIXELS = 500
"""The longer side that a slice has at least, where the volume is that large."""
FRAME_PIXELS = 1000
"""The longer side that a slice to leaf through has at most: all are in memory together."""


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
    def doubtful(self) -> tuple[Suspect, ...]:
        """What nobody has corrected of what is suspicious, the worst first."""
        return tuple(one for one, _ in self.suspects if not one.corrected)

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
    level = common_level(grey, mask, SLICE_PIXELS, (Y, X), most=MOST)
    greys, taken = look_through(
        grey.levels[level],
        mask.levels[level],
        FRAMES,
        first_z,
        2**level,
        FRAME_PIXELS,
        only_masked=from_masked,
    )
    span = greys.span(only_kept=from_masked)
    frames = tuple(
        plane_of(Z, min((index << level) + 2**level // 2, mask.shape[Z] - 1), cut, 2**level, span)
        for index, cut in taken.items()
    )
    xz, yz = (section(grey, mask, axis, survey.middle[axis], span) for axis in (Y, X))
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
            (one, beside(grey, mask, keyframes, one, corner, span) if n < SUSPECTS else ())
            for n, one in enumerate(found)
        ),
        bad=tuple(z for z, _, _ in bad_slices(record) if first_z <= z < first_z + mask.shape[Z]),
    )


def _first(span: Any) -> int:
    """Give the first of what was written, of slices, rows or columns; 0 where that is all."""
    first = number(span[0]) if isinstance(span, list | tuple) and span else None
    return int(first or 0)
