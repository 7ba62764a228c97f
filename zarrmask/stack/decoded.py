"""Slices decoded once into raw files, for readers that each want a part of many slices.

A slice that is decoded in one piece, or in strips or tiles that no brick's border follows, would
be decoded anew for each brick. So a slab of slices, what one layer of bricks reads, is decoded
first, whole slices at a time.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np

from zarrmask.stack.header import Header
from zarrmask.stack.slices import SliceSource
from zarrmask.stack.source import Source
from zarrmask.stack.tiff import read_tiff
from zarrmask.storage.atomic import partial_name

SLABS = 2  # on disk at once: one is read while the next is decoded


def cuts_blocks(block: tuple[int, ...], edges: Iterable[Iterable[int]]) -> bool:
    """Tell whether readers of a grid's bricks would decode parts of slices more than once.

    Parameters
    ----------
    block : tuple of int
        Of the source: see `Source`. Only slices are decoded ahead, so that blocks deeper than a
        slice are let be.
    edges : (z, y, x) iterables of int
        Where bricks begin and end along each axis, rising, in indices of the source.

    Examples
    --------
    >>> cuts_blocks((1, 16, 500), ([0, 5], [0, 256, 300], [0, 500]))
    False
    >>> cuts_blocks((1, 10, 500), ([0, 5], [0, 256, 300], [0, 500]))
    True
    """
    _, rows, columns = edges
    inner = [
        (edge, side)
        for side, of_axis in zip(block[1:], (rows, columns), strict=True)
        for edge in [last for _, last in pairwise(of_axis)][:-1]
    ]
    return block[0] == 1 and any(edge % side for edge, side in inner)


def decoded_bytes(slices: int, rows: int, columns: int, itemsize: int) -> int:
    """Bytes on disk of the raw files, at most.

    Parameters
    ----------
    slices : int
        Depth of a slab: of the bricks.
    rows, columns : int
        Of the stack.
    itemsize : int
        Bytes a voxel.
    """
    return SLABS * prod((slices, rows, columns, itemsize))


def decode(source: Source, indices: Sequence[int], folder: Path) -> Sequence[int]:
    """Decode slices, each into a raw file of a folder; those that are there already are not.

    Parameters
    ----------
    source : Source
        The stack.
    indices : sequence of int
        Of the slices.
    folder : Path
        Made if it is not there. A file is there whole or not at all.

    Returns
    -------
    sequence of int
        `indices`, now that they are decoded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _, height, width = source.shape
    size = height * width * source.dtype.itemsize
    for index in indices:
        path = folder / raw_name(index)
        if path.exists() and path.stat().st_size == size:
            continue
        temporary = partial_name(path)
        try:
            with temporary.open("wb") as file:
                file.write(np.ascontiguousarray(source[index]).data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    return indices


def decoded(source: Source, runs: Iterable[Sequence[int]], folder: Path) -> Source:
    """Give the stack as it is read from the raw files of some slices; the others read as zeros.

    Parameters
    ----------
    source : Source
        The stack.
    runs : iterable of sequence of int
        What `decode` gave: indices of slices that are in `folder`; one at least.
    folder : Path
        Theirs.

    Returns
    -------
    Source
        Of the same shape, dtype and numbers; any region is cheap to read.
    """
    depth, rows, columns = source.shape
    header = Header((rows, columns), source.dtype, block=(1, 1), offset=0)
    there = {index for run in runs for index in run}
    return SliceSource(
        str(folder),
        f"decoded {source.kind}",
        read_tiff,
        int(source.numbers[0]),
        [raw_name(index) if index in there else None for index in range(depth)],
        [header if index in there else None for index in range(depth)],
    )


def forget_decoded(folder: Path, indices: Iterable[int]) -> None:
    """Remove the raw files of some slices, so that they are decoded anew."""
    for index in indices:
        (folder / raw_name(index)).unlink(missing_ok=True)


def raw_name(index: int) -> str:
    """Name of the file that holds the slice at an index."""
    return f"{index}.raw"
