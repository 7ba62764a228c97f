"""Memory that a worker uses again from tile to tile.

What is allocated anew is zeroed anew by the operating system, page by page: for tiles of tens of
megabytes that takes longer than the work done in them.
"""

from __future__ import annotations

import threading
from math import prod

import numpy as np
from numpy.typing import DTypeLike, NDArray

_held = threading.local()


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
    dtype = np.dtype(dtype)
    size = prod(shape) * dtype.itemsize
    memory: NDArray[np.uint8] | None = getattr(_held, name, None)
    if memory is None or memory.nbytes < size:
        memory = np.empty(size, np.uint8)
        setattr(_held, name, memory)
    return memory[:size].view(dtype).reshape(shape)
