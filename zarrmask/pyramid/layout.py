"""Shapes of a pyramid's levels, and the bricks it is written in. Arithmetic only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, prod

Shape = tuple[int, int, int]
Region = tuple[slice, slice, slice]

CHUNK = 128
LEVELS_A_PASS = 2
"""A brick is written at two levels; what it is at the next one is kept for the pass after."""
STEP: Shape = (2 * CHUNK, 2 * CHUNK, 4 * CHUNK)
"""Sides of bricks go by this: whole chunks at both levels, and whole chunks of what is kept."""


def level_shapes(shape: Shape, max_levels: int = 6, smallest: int = CHUNK) -> tuple[Shape, ...]:
    """Shapes of a pyramid's levels, finest first.

    Every axis is halved, rounded up, until the largest side is below `smallest` or there are
    `max_levels` levels.

    Examples
    --------
    >>> level_shapes((300, 1024, 1024))
    ((300, 1024, 1024), (150, 512, 512), (75, 256, 256), (38, 128, 128), (19, 64, 64))
    >>> level_shapes((1, 90, 127))
    ((1, 90, 127),)
    """
    shapes = [shape]
    while max(shapes[-1]) >= smallest and len(shapes) < max_levels:
        shapes.append(halved(shapes[-1]))
    return tuple(shapes)


def halved(shape: Shape) -> Shape:
    """Shape of the next level: a voxel stands for the up to 2 x 2 x 2 voxels before it."""
    z, y, x = shape
    return (z + 1) // 2, (y + 1) // 2, (x + 1) // 2


def halved_region(region: Region) -> Region:
    """Where a region that starts at even indices lies one level coarser."""
    z, y, x = (slice(s.start // 2, (s.stop + 1) // 2) for s in region)
    return z, y, x


@dataclass(frozen=True)
class BrickGrid:
    """A volume cut into bricks, each the region that one task reads and writes.

    Attributes
    ----------
    shape : (z, y, x)
        The volume, voxels.
    brick : (z, y, x)
        A brick, voxels; those at the far borders are smaller. A multiple of `STEP` on every axis
        on which there is more than one, so that bricks share no chunk at any level.
    """

    shape: Shape
    brick: Shape

    def __post_init__(self) -> None:
        for size, edge, step in zip(self.shape, self.brick, STEP, strict=True):
            if edge < size and edge % step:
                raise ValueError(f"bricks of {self.brick} share chunks: sides go by {STEP}")

    @property
    def counts(self) -> Shape:
        """Number of bricks along each axis."""
        z, y, x = (ceil(s / b) for s, b in zip(self.shape, self.brick, strict=True))
        return z, y, x

    def __len__(self) -> int:
        return prod(self.counts)

    def indices(self) -> list[Shape]:
        """Places of all bricks, those of one slab together."""
        z, y, x = (range(count) for count in self.counts)
        return list(product(z, y, x))

    def region(self, index: Shape) -> Region:
        """Region of the brick at `index`."""
        z, y, x = (
            slice(i * b, min((i + 1) * b, s))
            for i, b, s in zip(index, self.brick, self.shape, strict=True)
        )
        return z, y, x


def brick_key(index: Shape) -> str:
    """Name of a brick.

    Examples
    --------
    >>> brick_key((0, 12, 3))
    '0-12-3'
    """
    return "-".join(str(place) for place in index)


def tiles(region: Region, width: int) -> Iterator[Region]:
    """Cut a region along x into tiles of at most `width`, so that temporaries stay small."""
    z, y, x = region
    for start in range(x.start, x.stop, width):
        yield z, y, slice(start, min(start + width, x.stop))


def brick_grid(shape: Shape, itemsize: int, block: Shape, budget: int = 2**29) -> BrickGrid:
    """Choose bricks: as few chunks as two levels need, and no row read in vain.

    Parameters
    ----------
    shape : (z, y, x)
        The volume, voxels.
    itemsize : int
        Bytes a voxel.
    block : (z, y, x)
        The smallest region of the input that is cheap to read. Bricks grow to whole blocks as far
        as the budget goes: a slice that must be decoded whole is decoded for each of its bricks.
    budget : int
        Bytes a brick may have.
    """
    sides = [min(step, size) for step, size in zip(STEP, shape, strict=True)]
    for axis, wanted in ((2, shape[2]), (1, max(sides[1], min(block[1], shape[1])))):
        others = prod(side for other, side in enumerate(sides) if other != axis) * itemsize
        side = min(wanted, max(sides[axis], budget // others))
        sides[axis] = side if side == shape[axis] else max(side // STEP[axis], 1) * STEP[axis]
    z, y, x = sides
    return BrickGrid(shape, (z, y, x))
