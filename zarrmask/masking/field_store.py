"""Fields of the keyframes of a run, as a zarr group that bricks read parts of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numcodecs
import numpy as np
import zarr
from numpy.typing import NDArray

from zarrmask.masking.field import (
    NOWHERE,
    cell_side,
    cells,
    coarse_mask,
    parts_apart,
    signed_distance,
)
from zarrmask.storage.files import files_of
from zarrmask.storage.flush import flush_soon
from zarrmask.storage.pipelines import opening
from zarrmask.storage.place import Place, zarr_store

KEYFRAMES_A_CHUNK = 16
"""Written by one task; a brick reads about as many."""
ROWS_A_CHUNK = 128


@dataclass(frozen=True)
class FieldStore:
    """A zarr group of the fields of keyframes.

    Arrays, in 1 / `field.UNITS` of a cell: `distance` (k, y', x') int16, and `kept` (k, y', x')
    int16, of the pieces of a keyframe or the next one that the other lacks.

    Attributes
    ----------
    path : Place
    shape : (height, width)
        Of a slice, pixels.
    """

    path: Place
    shape: tuple[int, int]

    @property
    def side(self) -> int:
        """Of a cell, pixels."""
        return cell_side(*self.shape)

    def create(self, count: int) -> bool:
        """Make the group for so many keyframes, unless it is there; tell whether it was made."""
        group = zarr.open_group(zarr_store(self.path), mode="a", zarr_format=2)
        if "kept" in group:
            return False
        rows, columns = cells(self.shape, self.side)
        for name in ("distance", "kept"):
            group.create_array(
                name,
                shape=(count, rows, columns),
                chunks=(KEYFRAMES_A_CHUNK, min(rows, ROWS_A_CHUNK), columns),
                dtype=np.int16,
                compressors=numcodecs.Blosc(cname="lz4", clevel=5),
                fill_value=int(NOWHERE),
                overwrite=True,
            )
        return True

    def write(self, first: int, masks: zarr.Array, positions: NDArray[np.int64]) -> int:
        """Write the fields of some keyframes, and give their number.

        They are on the disk after `zarrmask.storage.flush.flush_all`.

        Parameters
        ----------
        first : int
            Place of the first of them; a multiple of `KEYFRAMES_A_CHUNK`.
        masks : (n, y, x) zarr array of uint8
            Undilated masks.
        positions : (k,) int64
            Where in it all the keyframes' masks are.
        """
        stop = min(first + KEYFRAMES_A_CHUNK, len(positions))
        distance = self._array("distance", "r+")
        fields = np.empty((stop - first, *distance.shape[1:]), np.int16)
        kept = np.full_like(fields, NOWHERE)
        before = None
        for place in range(first, min(stop + 1, len(positions))):
            inside = coarse_mask(np.asarray(masks[int(positions[place])], np.uint8), self.side)
            field = signed_distance(inside)
            if place < stop:
                fields[place - first] = field
            if before is not None:
                apart = parts_apart(before[0], inside, (before[1], field))
                if apart.any():
                    kept[place - 1 - first] = signed_distance(apart)
            before = inside, field
        _, height, width = distance.shape
        region = slice(first, stop), slice(0, height), slice(0, width)
        for name, values in (("distance", fields), ("kept", kept)):
            array = self._array(name, "r+")
            array[region] = values
            flush_soon(*files_of(array, self.path / name, region))
        return stop - first

    def read(self, first: int, stop: int, rows: slice) -> tuple[NDArray[np.int16], ...]:
        """Rows of the fields of some keyframes, and of what is kept after each."""
        region = slice(first, stop), rows
        return tuple(
            np.asarray(self._array(name, "r")[region], np.int16) for name in ("distance", "kept")
        )

    def _array(self, name: str, mode: Literal["r", "r+"]) -> zarr.Array:
        with opening():
            return zarr.open_array(zarr_store(self.path / name), mode=mode)
