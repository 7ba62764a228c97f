"""What a run will do, worked out from headers and settings before anything is done."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zarrmask.errors import SettingsError
from zarrmask.masking import Placing, kernel_side
from zarrmask.planning.crop import crop
from zarrmask.pyramid import BrickGrid, Format, Shape, brick_grid
from zarrmask.settings import Settings
from zarrmask.stack import Source


@dataclass(frozen=True)
class Plan:
    """The work of a run.

    Attributes
    ----------
    origin : (z, y, x)
        Index in the stack of the first voxel that is written.
    first, stop : int
        Slice numbers that are written, `stop` excluded.
    placing : Placing
        Which slices the detector sees; its candidates are indices in the stack.
    numbers : (c,) int64
        The candidates' slice numbers.
    mends : bool
        Whether keyframes that contradict those around them are looked at anew, or replaced.
    grid : BrickGrid
        The outputs' bricks; its shape is that of the outputs.
    propagate : str
        How masks come to the slices between keyframes; see `Settings`.
    side : int
        Side of the dilation's square kernel, pixels; a mask grows by half of it each way.
    voxel_size : float or None
        Micrometres.
    offset : (z, y, x) of float
        What the stack itself is shifted by: see `Source`.
    """

    origin: Shape
    first: int
    stop: int
    placing: Placing
    numbers: NDArray[np.int64]
    mends: bool
    grid: BrickGrid
    propagate: str
    side: int
    voxel_size: float | None
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    @property
    def keyframes(self) -> NDArray[np.int64]:
        """Slice indices in the stack that the detector sees, at most: (c,)."""
        return self.placing.candidates

    @property
    def shape(self) -> Shape:
        """Shape of the outputs (z, y, x), voxels."""
        return self.grid.shape


def make_plan(source: Source, settings: Settings) -> Plan:
    """Work out what a run with these settings does to this stack.

    Raises
    ------
    SettingsError
        Where the range of slices is not in the stack, or holds nothing but missing ones.
    """
    numbers = source.numbers
    first, last = int(numbers[0]), int(numbers[-1])
    _, height, width = source.shape
    begin, stop = crop("z", settings.z, (first, last + 1), "stack")
    top, bottom = crop("y", settings.y, (0, height), "stack")
    left, right = crop("x", settings.x, (0, width), "stack")
    offset, end = np.searchsorted(numbers, [begin, stop]).tolist()
    chosen = numbers[offset:end]
    present = ~np.isin(chosen, source.missing)
    if not present.any():
        raise SettingsError(f"every slice of {begin}:{stop} is missing from {source.path}")
    there = np.flatnonzero(present) + offset
    if settings.every == "auto":
        reach = settings.every_min, settings.every_max
        placing = Placing.adaptive(there, *reach, settings.tolerance)
    else:
        placing = Placing.fixed(there, settings.every, last=settings.propagate == "field")
    shape = (end - offset, bottom - top, right - left)
    voxel_size = settings.voxel_size or source.voxel_size
    return Plan(
        origin=(offset, top, left),
        first=begin,
        stop=stop,
        placing=placing,
        numbers=numbers[placing.candidates],
        mends=settings.mend,
        grid=brick_grid(
            shape, source.dtype.itemsize, source.block, step=output_format(settings).step
        ),
        propagate=settings.propagate,
        side=kernel_side(height, width, settings.dilate, voxel_size),
        voxel_size=voxel_size,
        offset=source.offset,
    )


def output_format(settings: Settings) -> Format:
    """How volume and masked volume are stored."""
    name, level = settings.compressor
    return Format(settings.ngff, settings.chunk, settings.levels, name, level)


def mask_format(form: Format) -> Format:
    """How the mask is stored: two values are always worth compressing."""
    return (
        replace(form, compressor="blosc-lz4", compression=5) if form.compressor == "none" else form
    )
