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

    wanted: Any = "auto"
    slices = len(block) == 3 and block[0] == 1
    if slices and block[1] >= shape[1]:
        wanted = (ceil(shape[0] / MOST_CHUNKS), -1, -1)
    elif slices:
        wanted = ("auto", ceil(CHUNK_ROWS / block[1]) * block[1], -1)
    limit = max(CHUNK_BYTES, 2 * dtype.itemsize * prod(shape) // MOST_CHUNKS)
    chunks: tuple[tuple[int, ...], ...] = normalize_chunks(
        wanted, tuple(shape), limit=limit, dtype=dtype, previous_chunks=tuple(block)
    )
    return chunks
