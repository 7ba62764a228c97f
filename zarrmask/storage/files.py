"""The files in which a volume is stored, a chunk or a shard each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import zarr

    from zarrmask.storage.place import Place

Shape = tuple[int, int, int]
Region = tuple[slice, slice, slice]


def by_place(region: Region, sides: Shape) -> Iterator[tuple[Shape, Region]]:
    """Cut a region along a grid of files.

    Parameters
    ----------
    region : three slices
        It may begin and end within files.
    sides : (z, y, x)
        Of a file, voxels.

    Yields
    ------
    (z, y, x)
        A file's place in the grid.
    three slices
        What of the region it holds.

    Examples
    --------
    >>> for place, part in by_place((slice(0, 4), slice(3, 5), slice(8, 12)), (4, 4, 4)):
    ...     print(place, part[1])
    (0, 0, 2) slice(3, 4, None)
    (0, 1, 2) slice(4, 5, None)
    """
    axes = (
        [
            (at, slice(max(at * side, part.start), min((at + 1) * side, part.stop)))
            for at in range(part.start // side, ceil(part.stop / side))
        ]
        for part, side in zip(region, sides, strict=True)
    )
    for (i, deep), (j, high), (k, wide) in product(*axes):
        yield (i, j, k), (deep, high, wide)


def stamps(folder: str | Path, names: Iterable[str]) -> list[tuple[str, int]]:
    """Which of these files are in a folder here, and when each was last written, ns."""
    paths = (Path(folder, name) for name in names)
    return [(path.name, path.stat().st_mtime_ns) for path in paths if path.is_file()]


def by_file(array: zarr.Array, place: Path, region: Region) -> Iterator[tuple[Path, Region]]:
    """Files that hold a region of an array in the folder `place`, each with its part of it."""
    i, j, k = array.shards or array.chunks
    for at, part in by_place(region, (i, j, k)):
        yield place / array.metadata.encode_chunk_key(at), part


def files_of(array: zarr.Array, place: Place, region: Region) -> list[Path]:
    """Files that hold a region of an array; none at a URL."""
    return [file for file, _ in by_file(array, place, region)] if isinstance(place, Path) else []
