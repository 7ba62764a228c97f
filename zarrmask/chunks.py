"""Dask chunks of volumes that lie in blocks: not a task a block, of which a scroll has a million.

dask.array is imported where it is used: workers need it not, and it takes long to import.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Any

import numpy as np

# Bytes that a worker holds without noticing, and as few tasks as a scheduler likes when the volume
# is a whole scroll.
CHUNK_BYTES = 128 * 2**20
CHUNK_ROWS = 512
MOST_CHUNKS = 50_000


def default_chunks(
    shape: Sequence[int], dtype: np.dtype, block: Sequence[int]
) -> tuple[tuple[int, ...], ...]:
    """Choose Dask chunks of whole blocks, of a bounded size and number.

    Parameters
    ----------
    shape : tuple of int
        The volume's, voxels.
    dtype : numpy.dtype
        The volume's.
    block : tuple of int
        What is read at once.

    Returns
    -------
    tuple of tuple of int
        One slice a chunk where a slice is decoded in one piece, bands of rows where it can be
        read by rows, runs of blocks for chunked input.

    Examples
    --------
    >>> [c[0] for c in default_chunks((27000, 8000, 8000), np.dtype("u2"), (1, 1, 8000))]
    [16, 512, 8000]
    >>> [c[0] for c in default_chunks((27000, 8000, 8000), np.dtype("u2"), (1, 8000, 8000))]
    [1, 8000, 8000]
    """
    from dask.array.core import normalize_chunks

    wanted: tuple[Any, ...]
    if len(block) > 3 or block[0] > 1:
        wanted = _several(shape, dtype, block)
    elif block[1] >= shape[1]:
        wanted = (ceil(shape[0] / MOST_CHUNKS), -1, -1)
    else:
        wanted = ("auto", ceil(CHUNK_ROWS / block[1]) * block[1], -1)
    limit = max(CHUNK_BYTES, 2 * dtype.itemsize * prod(shape) // MOST_CHUNKS)
    chunks: tuple[tuple[int, ...], ...] = normalize_chunks(
        wanted, tuple(shape), limit=limit, dtype=dtype, previous_chunks=tuple(block)
    )
    return chunks


def _several(shape: Sequence[int], dtype: np.dtype, block: Sequence[int]) -> tuple[int, ...]:
    """Sides of as many blocks along each axis as may be held; more, if there are too many else."""

    def sides(times: int) -> tuple[int, ...]:
        return tuple(min(times * side, size) for side, size in zip(block, shape, strict=True))

    def count(times: int) -> int:
        return prod(ceil(size / side) for side, size in zip(sides(times), shape, strict=True))

    times = 1
    while count(times) > 1 and (
        count(times) > MOST_CHUNKS or prod(sides(times + 1)) * dtype.itemsize <= CHUNK_BYTES
    ):
        times += 1
    return sides(times)
