"""Runs of slices turned from chunks to rows through a scratch file, so that no chunk is decoded
twice and no slab has to fit into memory.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, prod
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from zarrmask.pyramid import Region, Shape
from zarrmask.stack import Source

PIECE_BYTES = 2**28
"""Of what a task reads at once, unless a block is more."""
LEAST_SLAB = 32
"""Slices of a slab, at least: all workers are to have something to do."""


def slab_depth(block: Shape, depth: int) -> int:
    """Slices of a slab: whole layers of blocks.

    Examples
    --------
    >>> slab_depth((128, 128, 128), 1000), slab_depth((10, 64, 64), 1000)
    (128, 40)
    """
    return min(depth, ceil(LEAST_SLAB / block[0]) * block[0])


def pieces(slab: slice, shape: Shape, block: Shape, itemsize: int) -> Iterator[Region]:
    """Cut a slab into what is read at once: whole blocks, as wide and then as deep as may be.

    Parameters
    ----------
    slab : slice
        Slices, within the volume; blocks begin at multiples of their sides.
    shape, block : (z, y, x)
        Of the volume and of what is decoded at once, voxels.
    itemsize : int
        Bytes a voxel.
    """
    piece = list(block)
    for axis in (2, 0):
        fits = max(1, PIECE_BYTES // (prod(piece) * itemsize))
        piece[axis] = min(ceil(shape[axis] / block[axis]), fits) * block[axis]
    begin = slab.start // block[0] * block[0]
    places = (
        range(begin, slab.stop, piece[0]),
        range(0, shape[1], piece[1]),
        range(0, shape[2], piece[2]),
    )
    for z, y, x in product(*places):
        yield (
            slice(max(z, slab.start), min(z + piece[0], slab.stop)),
            slice(y, min(y + piece[1], shape[1])),
            slice(x, min(x + piece[2], shape[2])),
        )


@dataclass(frozen=True)
class Slab:
    """Slices of a volume in a raw file, row after row; what was not put there is zeros.

    Attributes
    ----------
    path : Path
        The file; nobody else writes it.
    slices : slice
        Which slices these are.
    shape : (y, x)
        Of a slice, pixels.
    dtype : dtype
    """

    path: Path
    slices: slice
    shape: tuple[int, int]
    dtype: np.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the file; on the disk it takes less where slices are empty."""
        return int((self.slices.stop - self.slices.start) * prod(self.shape) * self.dtype.itemsize)

    def put(self, region: Region, voxels: NDArray) -> None:
        """Write a region, in indices of the volume; zeros are not written."""
        z, y, x = region
        width = self.shape[1]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            os.ftruncate(file, self.nbytes)
            for index, plane in zip(range(z.start, z.stop), voxels, strict=True):
                if not plane.any():
                    continue
                whole = plane.shape[1] == width
                first = ((index - self.slices.start) * self.shape[0] + y.start) * width + x.start
                for row, part in enumerate([plane] if whole else plane):
                    _write(file, np.ascontiguousarray(part), (first + row * width) * plane.itemsize)
        finally:
            os.close(file)

    def take(self, index: int) -> NDArray:
        """Read a slice, (y, x), by its index in the volume."""
        count = prod(self.shape)
        start = (index - self.slices.start) * count * self.dtype.itemsize
        return np.fromfile(self.path, self.dtype, count, offset=start).reshape(self.shape)


def _write(file: int, values: NDArray, place: int) -> None:
    view, done = values.data.cast("B"), 0
    while done < len(view):
        done += os.pwrite(file, view[done:], place + done)


def fill(source: Source, region: Region, slab: Slab) -> Slab:
    """Read a region of a volume and put it into a slab."""
    slab.put(region, source[region])
    return slab


def filled(slabs: Sequence[Slab]) -> Slab:
    """Give the slab that all of these are, now that it is filled."""
    return slabs[0]
