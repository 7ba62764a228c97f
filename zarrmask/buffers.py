"""Memory that a worker uses again from tile to tile.

What is allocated anew is zeroed anew by the operating system, page by page: for tiles of tens of
megabytes, and for the chunks that are encoded, that takes longer than the work done in them.
"""

from __future__ import annotations

import ctypes
import gc
import threading
from contextlib import suppress
from functools import cache
from math import prod

import numpy as np
from numpy.typing import DTypeLike, NDArray

_held = threading.local()

# <malloc.h>; https://www.gnu.org/software/libc/manual/html_node/Malloc-Tunable-Parameters.html
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
KEPT = 2**25  # the most that glibc takes for the latter: larger blocks are our own to keep


def buffer(name: str, shape: tuple[int, ...], dtype: DTypeLike) -> NDArray:
    """Give this thread's array of a name: whatever it last held, until it is asked for again.

    Parameters
    ----------
    name : str
        An identifier: arrays of different names do not overlap.
    shape : tuple of int
    dtype : dtype

    Returns
    -------
    ndarray
        Contiguous, not initialised.
    """
    _settle()
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    memory: NDArray[np.uint8] | None = getattr(_held, name, None)
    if memory is None or memory.nbytes < size:
        memory = np.empty(size, np.uint8)
        setattr(_held, name, memory)
    return memory[:size].view(dtype).reshape(shape)


@cache
def _settle() -> None:
    """Let this process keep what it has: modules for good, and what is freed for the next tile.

    The garbage collector need not look through all modules again and again. glibc is told by Dask's
    nannies to give back what it can, block by block, for workers that hold data between tasks.
    """
    gc.freeze()
    with suppress(AttributeError, OSError):  # another C library has other ways
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_THRESHOLD, KEPT)
        library.mallopt(M_TRIM_THRESHOLD, 4 * KEPT)
