"""Memory that a worker uses again from tile to tile.

What is allocated anew is zeroed anew by the operating system, page by page: for tiles of tens of
megabytes, and for the chunks that are encoded, that takes longer than the work done in them.
"""

from __future__ import annotations

import ctypes
import threading
from contextlib import suppress
from functools import cache
from math import prod

import numpy as np
from numpy.typing import DTypeLike, NDArray

CACHED = 2**20
"""Bytes to work on at a time: what is made of them stays in a core's cache."""

_held = threading.local()

# <malloc.h>; https://www.gnu.org/software/libc/manual/html_node/Malloc-Tunable-Parameters.html
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 2**25  # the most that glibc takes for the latter: larger blocks are our own to keep


def buffer(
    name: str, shape: tuple[int, ...], dtype: DTypeLike, *, room: tuple[int, ...] = ()
) -> NDArray:
    """Give this thread's array of a name: whatever it last held, until it is asked for again.

    Parameters
    ----------
    name : str
        An identifier: arrays of different names do not overlap.
    shape : tuple of int
    dtype : dtype
    room : tuple of int, optional
        The largest shape that is going to be asked for: what is set aside takes no memory before it
        is written to, what has to grow is begun anew.

    Returns
    -------
    ndarray
        Contiguous, not initialised.
    """
    _keep_freed_memory()
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    memory: NDArray[np.uint8] | None = getattr(_held, name, None)
    if memory is None or memory.nbytes < size:
        memory = np.empty(max(size, prod(room) * dtype.itemsize), np.uint8)
        setattr(_held, name, memory)
    return memory[:size].view(dtype).reshape(shape)


@cache
def _keep_freed_memory() -> None:
    """Let glibc keep what this process frees instead of giving it back block by block.

    Dask's nannies set it to give back what they can, for workers that hold data between tasks.
    """
    with suppress(AttributeError, OSError):  # another C library has other ways
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, KEPT)
        library.mallopt(M_TRIM_THRESHOLD, 4 * KEPT)
