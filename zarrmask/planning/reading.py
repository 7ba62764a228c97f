"""How much is read at once, by how many tasks. Arithmetic: no pixel is read."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Self

import numpy as np
from numpy.typing import NDArray

from zarrmask.masking import read_together
from zarrmask.planning.plan import Plan
from zarrmask.pyramid import Region, Shape
from zarrmask.stack import Source, cuts_blocks

SAMPLED_SLICES = 8
SAMPLED_SIDE = 1024
"""Pixels: grey values are sampled from the coarsest level whose slices are no smaller."""
PATCHES = 8
"""Blocks, along each side of a slice, that stand for all of it where the finest level counts."""
READ_TOGETHER = 2**28
"""Bytes of coarse slices that are read at once, since they share chunks."""
RUNS_A_WORKER = 4
SLICES_A_TASK = 8
"""Decoded by one task: so few that all workers are busy from the start."""
PIECE = 1024
"""Columns of a tile that are masked at a time: whole files, and no more than a cache holds."""


def sampled_runs(source: Source, indices: NDArray[np.int64], *, finest: bool) -> KeyframeRuns:
    """Choose how some of these slices are read for a sample of grey values.

    A coarse level shows what the detector sees. Its voxels are means of those that are written,
    which differ more: for these the finest has to be read, of which `Patches` are. Where there is
    no coarser one (`has_coarser`) one sample serves for both.
    """
    chosen = sampled_slices(indices)
    if finest:
        return KeyframeRuns(Patches.of(source), chosen, (1,) * len(chosen))
    return keyframe_runs(source, chosen, (SAMPLED_SIDE, SAMPLED_SIDE))


def has_coarser(source: Source) -> bool:
    """Whether grey values are sampled from another level than the finest."""
    return source.coarsest(SAMPLED_SIDE, SAMPLED_SIDE)[0] is not source


@dataclass(frozen=True)
class Patches:
    """Blocks of a volume's slices, evenly spread, put beside each other to smaller slices.

    A slice of a whole scroll in chunks of 128^3 would cost as much as 128 slices.

    Attributes
    ----------
    source : Source
    rows, columns : tuple of slice
        Of the blocks.
    """

    source: Source
    rows: tuple[slice, ...]
    columns: tuple[slice, ...]

    @classmethod
    def of(cls, source: Source) -> Self:
        """Choose the blocks."""
        _, height, width = source.shape
        return cls(source, spread(height, source.block[1]), spread(width, source.block[2]))

    @property
    def shape(self) -> Shape:
        """Slices, rows, columns."""
        rows, columns = (
            sum(part.stop - part.start for part in parts) for parts in (self.rows, self.columns)
        )
        return self.source.shape[0], rows, columns

    @property
    def dtype(self) -> np.dtype:
        """The volume's."""
        return self.source.dtype

    @property
    def block(self) -> Shape:
        """The volume's."""
        return self.source.block

    def __getitem__(self, region: Region) -> NDArray:
        z = region[0]
        return np.block([[self.source[z, y, x] for x in self.columns] for y in self.rows])


def spread(size: int, side: int) -> tuple[slice, ...]:
    """Choose blocks of a side along an axis: the middle ones of `PATCHES` equal parts, at most.

    Examples
    --------
    >>> spread(300, 128)
    (slice(0, 128, None), slice(128, 256, None), slice(256, 300, None))
    >>> [part.start // 128 for part in spread(8000, 128)]
    [3, 11, 19, 27, 35, 43, 51, 59]
    """
    middles = (np.arange(PATCHES) + 0.5) / PATCHES
    places = np.unique((middles * ceil(size / side)).astype(int))
    return tuple(slice(side * place, min(side * (place + 1), size)) for place in places.tolist())


def sampled_slices(indices: NDArray[np.int64]) -> NDArray[np.int64]:
    """Choose some of these slices, evenly spread."""
    places = np.linspace(0, len(indices) - 1, SAMPLED_SLICES).round().astype(int)
    chosen: NDArray[np.int64] = indices[np.unique(places)]
    return chosen


@dataclass(frozen=True)
class KeyframeRuns:
    """How keyframes are read.

    Attributes
    ----------
    source : Source or Patches
        The stack, a coarser form of it, or parts of it.
    indices : (k,) int64
        The keyframes' slices in it.
    lengths : tuple of int
        How many are read by one task.
    """

    source: Source | Patches
    indices: NDArray[np.int64]
    lengths: tuple[int, ...]

    def spans(self) -> list[slice]:
        """The slices that are read for each run: from its first to its last keyframe."""
        ends = np.cumsum(self.lengths).tolist()
        return [
            slice(int(self.indices[end - length]), int(self.indices[end - 1]) + 1)
            for end, length in zip(ends, self.lengths, strict=True)
        ]

    def first(self) -> KeyframeRuns:
        """The first run alone."""
        return KeyframeRuns(self.source, self.indices[: self.lengths[0]], self.lengths[:1])


def keyframe_runs(
    source: Source, indices: NDArray[np.int64], shape: tuple[int, int], workers: int | None = None
) -> KeyframeRuns:
    """Choose how some slices are read: no smaller than `shape`, but as coarse as may be.

    One at a time; or, for so many workers, in runs of slices that share what is read.
    """
    coarse, depth = source.coarsest(*np.minimum(source.shape[1:], shape).tolist())
    slices = np.minimum(indices // depth, coarse.shape[0] - 1)
    _, height, width = coarse.shape
    runs = [1] * len(slices)
    if workers is not None:
        span = max(1, READ_TOGETHER // (height * width * coarse.dtype.itemsize))
        most = max(1, len(slices) // (RUNS_A_WORKER * workers))
        runs = read_together(slices, coarse.block[0], span, most)
    return KeyframeRuns(coarse, slices, tuple(runs))


def decodes_ahead(source: Source, plan: Plan) -> bool:
    """Whether slices are decoded into scratch files, since bricks would decode parts of them twice.

    No voxel is decoded more than once: where bricks hold whole strips, tiles or files, each is
    decoded by the brick that it lies in.
    """
    edges = (
        [*range(start, start + size, side), start + size]
        for start, size, side in zip(plan.origin, plan.grid.shape, plan.grid.brick, strict=True)
    )
    return cuts_blocks(source.block, edges)


def reads_by_tile(source: Source, origin: Shape, file: int) -> bool:
    """Whether reading a brick in rows of files decodes nothing twice."""
    return all(
        (file % side == 0 and start % side == 0) or file >= size
        for side, start, size in zip(source.block[:2], origin, source.shape, strict=False)
    )
