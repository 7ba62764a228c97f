"""Writing pyramids brick by brick, two levels a pass, so that level 0 is read once.

A brick is written at levels n and n + 1. Its level n + 2, a 64th of it, goes to a scratch array
from which the next pass takes it: coarser levels never read a finer one again, and nothing of a
volume has to be held in memory or sent between workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from math import ceil
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from zarrmask.atomic import replace_file
from zarrmask.place import Place, is_local, make_folder, names_in, remove
from zarrmask.pyramid.downsample import halve
from zarrmask.pyramid.layout import (
    CHUNK,
    LEVELS_A_PASS,
    STEP,
    Region,
    Shape,
    halved_region,
    level_shapes,
)
from zarrmask.pyramid.metadata import LABEL
from zarrmask.pyramid.store import open_array, open_group

_GROUP_FILES = (".zgroup", ".zattrs")
"""In the order in which they are removed: the last says whose the folder is."""
_COMPRESSOR = {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1}


@dataclass(frozen=True)
class Pyramid:
    """A pyramid that is being written.

    Attributes
    ----------
    path : Place
        The OME-Zarr group.
    scratch : Place
        Folder for what one pass leaves to the next.
    shape : (z, y, x)
        Level 0, voxels.
    dtype : str
        uint8 or uint16.
    reduce : str
        How a level is made from the one before: "mean" or "max".
    """

    path: Place
    scratch: Place
    shape: Shape
    dtype: str
    reduce: str

    @property
    def levels(self) -> tuple[Shape, ...]:
        """Shapes of the levels."""
        return level_shapes(self.shape)

    @property
    def passes(self) -> range:
        """First level of each pass."""
        return range(0, len(self.levels), LEVELS_A_PASS)

    def create(self) -> bool:
        """Make the arrays that are not there yet, and tell whether there were any.

        Without metadata no viewer opens them.
        """
        make_folder(self.path)
        if not (self.path / ".zgroup").exists():  # zarr would begin with no attributes
            replace_file(self.path / ".zgroup", b'{"zarr_format": 2}')
        group = open_group(self.path, "r+")
        group.attrs.pop("multiscales", None)
        if isinstance(self.path, Path):
            for torn in (*self.path.glob("*.partial"), *self.path.glob("*/*.partial")):
                torn.unlink()  # zarr was stopped while it wrote metadata
        made = False
        for level, shape in enumerate(self.levels):
            made |= _create(group, str(level), shape, self.dtype, (CHUNK,) * 3, _COMPRESSOR)
        scratch = open_group(self.scratch, "a")
        kept = tuple(step // 2**LEVELS_A_PASS for step in STEP)
        for level in self.passes[1:]:
            made |= _create(scratch, str(level), self.levels[level], self.dtype, kept, None)
        return made

    def array(self, level: int) -> zarr.Array:
        """One level, to read or write."""
        return open_array(self.path / str(level), "r+")

    def handed_over(self, level: int) -> zarr.Array:
        """What the pass before left of a level, the first of its own pass."""
        return open_array(self.scratch / str(level), "r+")

    def write(self, level: int, region: Region, block: NDArray) -> None:
        """Write a block at a level, halved at the next, and hand over what comes after.

        Parameters
        ----------
        level : int
            First level of a pass.
        region : three slices
            Where the block lies at this level; starts at multiples of `2 * CHUNK`.
        block : (z, y, x) array
            The voxels. All zeros are not written: a missing chunk is zeros.
        """
        if not block.any():
            return
        for step in range(LEVELS_A_PASS):
            _write(self.path / str(level + step), region, block)
            if level + step + 1 == len(self.levels):
                return
            region, block = halved_region(region), halve(block, self.reduce)
        _write(self.scratch / str(level + LEVELS_A_PASS), region, block)


def remove_pyramid(path: Place) -> None:
    """Remove a pyramid that zarrmask wrote; what others put into its folder stays."""
    labels = path / "labels"
    for name in names_in(path):
        if name.isdecimal():
            remove(path / name)
    remove(labels / LABEL)
    for folder in (labels, path):
        if folder.is_symlink() or not folder.is_dir():
            continue
        if names_in(folder) <= set(_GROUP_FILES):
            for name in _GROUP_FILES:
                remove(folder / name)
            remove(folder)


def _create(
    group: zarr.Group,
    name: str,
    shape: Shape,
    dtype: str,
    chunks: tuple[int, ...],
    compressor: Mapping[str, Any] | None,
) -> bool:
    if name in group:
        group[name].attrs.put({})  # zarr may have been stopped before it wrote them
        return False
    group.create_array(
        name,
        shape=shape,
        dtype=np.dtype(dtype),
        chunks=chunks,
        compressors=None if compressor is None else numcodecs.get_codec(dict(compressor)),
        filters=None,
        fill_value=0,
        order="C",
        chunk_key_encoding={"name": "v2", "separator": "/"},
    )
    return True


def _write(path: Place, region: Region, block: NDArray) -> None:
    """Write whole chunks of an array.

    A run that was stopped may have left torn ones. A chunk at the border counts as written in part,
    and would be read first: so what is there goes.
    """
    array = open_array(path, "r+")
    places = (
        range(part.start // chunk, ceil(part.stop / chunk))
        for part, chunk in zip(region, array.chunks, strict=True)
    )
    if is_local(path):  # a put is whole or not at all
        for z, y, x in product(*places):
            (path / str(z) / str(y) / str(x)).unlink(missing_ok=True)
    array[region] = block
