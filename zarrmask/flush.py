"""Bringing files onto the disk while the work goes on, so that it outlasts a power cut.

A file that was written lies in the machine's memory for half a minute. A ledger that called it
finished would, after a power cut, be believed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from itertools import product
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import zarr

    from zarrmask.place import Place

THREADS = 4  # disks do several things at a time

_threads = ThreadPoolExecutor(THREADS, thread_name_prefix="flush")
_mine = threading.local()


def flush_soon(path: Path) -> None:
    """Begin to bring a file onto the disk; one that is not there is none to bring."""
    _pending().append(_threads.submit(_flush, path))


def flush_chunks_soon(place: Place, array: zarr.Array, region: Sequence[slice]) -> None:
    """Begin to bring files onto the disk that hold a region of an array; at a URL they are there.

    Parameters
    ----------
    place : Place
        Folder of the array.
    array : Array
        Without shards.
    region : sequence of slice
        Its bounds, along each axis.
    """
    if not isinstance(place, Path):
        return
    along = zip(region, array.chunks, strict=True)
    for chunk in product(*(range(one.start // side, ceil(one.stop / side)) for one, side in along)):
        flush_soon(place / array.metadata.encode_chunk_key(chunk))


def flush_all() -> None:
    """Wait until all files are on the disk that this thread has begun to bring there.

    Raises
    ------
    OSError
        Where one cannot be.
    """
    pending = _pending()
    _mine.pending = []
    for one in pending:
        one.result()


def _pending() -> list[Future[None]]:
    if not hasattr(_mine, "pending"):
        _mine.pending = []
    pending: list[Future[None]] = _mine.pending
    return pending


def _flush(path: Path) -> None:
    with suppress(FileNotFoundError):
        file = os.open(path, os.O_RDONLY)
        try:
            os.fsync(file)
        finally:
            os.close(file)
