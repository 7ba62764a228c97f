"""Shapes of a pyramid's levels, and the bricks it is written in. Arithmetic only."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import ceil, lcm, prod

from zarrmask.storage.files import Region, Shape

LEVELS_A_PASS = 2
"""A brick is written at two levels; what it is at the next one is kept for the pass after."""
SMALLEST = 128
"""Levels are made until their longest side is below this."""
BRICK: Shape = (256, 256, 512)
"""Bricks are at least this large, voxels, where the volume is: tasks are to be few."""
USUAL_BRICK = 2**30
"""Bytes that a brick has at most, unless whole blocks of the input want more."""


@dataclass(frozen=True)
class Format:
    """How the arrays of a pyramid are stored.

    Attributes
    ----------
    ngff : str
        Version of OME-NGFF: "0.4" is zarr format 2, a file a chunk; "0.5" is zarr format 3, a file
        a shard of 2 x 2 x 2 chunks.
    chunk : int
        Side of a chunk, voxels: a power of two from 16 on.
    levels : int
        Levels at most.
    compressor : str
        "none", "blosc-lz4" or "blosc-zstd".
    compression : int
        The compressor's level, 0 to 9.
    """

    ngff: str = "0.4"
    chunk: int = 128
    levels: int = 6
    compressor: str = "blosc-lz4"
    compression: int = 5

    @property
    def file(self) -> int:
        """Side of what one file holds, voxels: a chunk, or a shard."""
        return self.chunk if self.ngff == "0.4" else 2 * self.chunk

    @property
    def array_file(self) -> str:
        """Name of the file that says what an array is."""
        return ".zarray" if self.ngff == "0.4" else "zarr.json"

    @property
    def step(self) -> Shape:
        """Sides of bricks go by this: whole files at both levels of a pass, and of what is kept."""
        side = LEVELS_A_PASS * self.file
        return side, side, 2 * side


def level_shapes(shape: Shape, max_levels: int = 6) -> tuple[Shape, ...]:
    """Shapes of a pyramid's levels, finest first.

    Every axis is halved, rounded up, until the largest side is below `SMALLEST` or there are
    `max_levels` levels.

    Examples
    --------
    >>> level_shapes((300, 1024, 1024))
    ((300, 1024, 1024), (150, 512, 512), (75, 256, 256), (38, 128, 128), (19, 64, 64))
    >>> level_shapes((1, 90, 127))
    ((1, 90, 127),)
    """
    shapes = [shape]
    while max(shapes[-1]) >= SMALLEST and len(shapes) < max_levels:
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


def sides(region: Region) -> Shape:
    """Sides of a region."""
    z, y, x = (part.stop - part.start for part in region)
    return z, y, x


def shifted(region: Region, by: Shape) -> Region:
    """Move a region."""
    z, y, x = (slice(part.start + n, part.stop + n) for part, n in zip(region, by, strict=True))
    return z, y, x


def within(region: Region, whole: Region) -> Region:
    """Where a region lies in another one's array."""
    z, y, x = (part.start for part in whole)
    return shifted(region, (-z, -y, -x))


@dataclass(frozen=True)
class BrickGrid:
    """A volume cut into bricks, each the region that one task reads and writes.

    Attributes
    ----------
    shape : (z, y, x)
        The volume, voxels.
    brick : (z, y, x)
        A brick, voxels; those at the far borders are smaller. A multiple of `step` on every axis
        on which there is more than one, so that bricks share no file at any level.
    step : (z, y, x)
        A format's.
    """

    shape: Shape
    brick: Shape
    step: Shape = Format().step

    def __post_init__(self) -> None:
        for size, edge, step in zip(self.shape, self.brick, self.step, strict=True):
            if edge < size and edge % step:
                raise ValueError(f"bricks of {self.brick} share files: sides go by {self.step}")

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


def step_grid(shape: Shape, step: Shape) -> BrickGrid:
    """Cut a volume into the smallest bricks there are, whole along x.

    Parameters
    ----------
    shape : (z, y, x)
    step : (z, y, x)
        A format's.
    """
    return BrickGrid(shape, (min(step[0], shape[0]), min(step[1], shape[1]), shape[2]), step)


def touched(regions: Iterable[Region], factor: int, grid: BrickGrid) -> list[Shape]:
    """Places of the bricks of a coarser level that hold some of a finer one's regions.

    Parameters
    ----------
    regions : iterable of Region
        Of the finer level.
    factor : int
        How many of its voxels, along each axis, a voxel of the coarser one stands for.
    grid : BrickGrid
        Of the coarser level.

    Examples
    --------
    >>> grid = step_grid((600, 256, 90), (256, 256, 512))
    >>> touched([(slice(1024, 1280), slice(0, 256), slice(0, 360))], 4, grid)
    [(1, 0, 0)]
    """
    places: set[Shape] = set()
    for region in regions:
        z, y, x = (
            range(part.start // (factor * side), ceil(part.stop / (factor * side)))
            for part, side in zip(region, grid.brick, strict=True)
        )
        places.update(product(z, y, x))
    return sorted(places)


def brick_key(index: Shape) -> str:
    """Name of a brick.

    Examples
    --------
    >>> brick_key((0, 12, 3))
    '0-12-3'
    """
    return "-".join(str(place) for place in index)


def tiles(region: Region, sides: tuple[int, ...]) -> Iterator[Region]:
    """Cut a region into tiles that are whole along x, in the order of z, then y.

    Parameters
    ----------
    region : three slices
    sides : (z, y)
        Of a tile, voxels; those at the region's end may be smaller.
    """
    z, y, x = region
    for first, row in product(range(z.start, z.stop, sides[0]), range(y.start, y.stop, sides[1])):
        yield (
            slice(first, min(first + sides[0], z.stop)),
            slice(row, min(row + sides[1], y.stop)),
            x,
        )


def brick_grid(
    shape: Shape,
    itemsize: int,
    block: Shape,
    budget: int = USUAL_BRICK,
    step: Shape = Format().step,
) -> BrickGrid:
    """Choose bricks: as few files as two levels need, and no block read in vain.

    Parameters
    ----------
    shape : (z, y, x)
        The volume, voxels.
    itemsize : int
        Bytes a voxel.
    block : (z, y, x)
        The smallest region of the input that is cheap to read. Bricks hold whole blocks, if the
        budget allows: what is in two bricks is decoded twice.
    budget : int
        Bytes a brick may have; the smallest bricks may have more.
    step : (z, y, x)
        The format's.
    """
    least = [ceil(least / side) * side for least, side in zip(BRICK, step, strict=True)]
    sides = [min(side, size) for side, size in zip(least, shape, strict=True)]
    rows_as_they_lie = block[:2] == (1, 1)  # and then of any length
    blocks = (1, 1, 1) if rows_as_they_lie else block
    whole = [
        min(ceil(side / (lcm(by, edge))) * lcm(by, edge), size)
        for side, by, edge, size in zip(sides, step, blocks, shape, strict=True)
    ]
    wanted = [(2, shape[2], min(budget, USUAL_BRICK))]  # long rows are read and written best
    if prod(whole) * itemsize <= budget:
        sides = whole
    elif block[0] > 1:  # slices, if that is what they are, are decoded ahead: see `cuts_blocks`
        wanted = [(axis, whole[axis], budget) for axis in (2, 1, 0)]
    for axis, side, most in wanted:
        others = prod(side for other, side in enumerate(sides) if other != axis) * itemsize
        side = max(sides[axis], min(side, most // others))
        sides[axis] = side if side == shape[axis] else side // step[axis] * step[axis]
    z, y, x = sides
    return BrickGrid(shape, (z, y, x), step)
