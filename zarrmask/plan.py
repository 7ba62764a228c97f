"""What a run will do, worked out from headers and settings before anything is done."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zarrmask.errors import SettingsError
from zarrmask.masking import kernel_side, keyframe_indices
from zarrmask.pyramid import BrickGrid, Shape, brick_grid
from zarrmask.settings import Settings
from zarrmask.stack import Source


@dataclass(frozen=True)
class Plan:
    """The work of a run.

    Attributes
    ----------
    offset : int
        Index in the stack of the first slice that is written.
    first, stop : int
        Slice numbers that are written, `stop` excluded.
    keyframes : (k,) int64
        Slice indices in the stack that the detector sees.
    numbers : (k,) int64
        Their slice numbers.
    grid : BrickGrid
        The outputs' bricks; its shape is that of the outputs.
    side : int
        Side of the dilation's square kernel, pixels.
    voxel_size : float or None
        Micrometres.
    """

    offset: int
    first: int
    stop: int
    keyframes: NDArray[np.int64]
    numbers: NDArray[np.int64]
    grid: BrickGrid
    side: int
    voxel_size: float | None

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
    begin = first if settings.z[0] is None else settings.z[0]
    stop = last + 1 if settings.z[1] is None else settings.z[1]
    if not first <= begin < stop <= last + 1:
        raise SettingsError(
            f"--z {begin}:{stop} is not in the stack, whose slices are numbered {first} to {last}; "
            f"choose within {first}:{last + 1}"
        )
    offset, end = np.searchsorted(numbers, [begin, stop]).tolist()
    chosen = numbers[offset:end]
    present = ~np.isin(chosen, source.missing)
    if not present.any():
        raise SettingsError(f"every slice of {begin}:{stop} is missing from {source.path}")
    keyframes = keyframe_indices(present, settings.every) + offset
    _, height, width = source.shape
    shape = (end - offset, height, width)
    return Plan(
        offset=offset,
        first=begin,
        stop=stop,
        keyframes=keyframes,
        numbers=numbers[keyframes],
        grid=brick_grid(shape, source.dtype.itemsize, source.block),
        side=kernel_side(height, width, settings.dilate),
        voxel_size=settings.voxel_size or source.voxel_size,
    )
