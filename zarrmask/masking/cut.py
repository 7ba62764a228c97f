"""Cutting out what is inside a mask. Arithmetic only."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from zarrmask.storage.buffers import CACHED


def cut_out(voxels: NDArray, inside: NDArray[np.uint8], out: NDArray) -> NDArray:
    """Keep the voxels that are inside, and make the others zero.

    Parameters
    ----------
    voxels : (z, y, x) uint8 or uint16
    inside : (z, y, x) uint8
        255 inside, 0 outside.
    out : array of the voxels' shape and dtype
        Where they go; it may not overlap the voxels.

    Returns
    -------
    (z, y, x) array
        `out`.
    """
    all_bits = out.view(f"i{out.itemsize}")
    some = max(1, CACHED // max(out[:1].nbytes, 1))
    for first in range(0, len(out), some):
        z = slice(first, first + some)
        np.copyto(all_bits[z], inside[z].view(np.int8))  # -1 has all bits set in any width
        np.bitwise_and(voxels[z], out[z], out=out[z])
    return out
