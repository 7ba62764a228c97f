"""Which slices the detector sees, and from which of them each slice has its mask.

Arithmetic only.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def keyframe_indices(present: NDArray[np.bool_], every: int) -> NDArray[np.int64]:
    """Every n-th slice that is there, from the first.

    The replaced scripts count only slices that could be read; so does this.

    Parameters
    ----------
    present : (z,) bool
        False where a slice is missing.
    every : int
        Interval, at least 1.

    Examples
    --------
    >>> keyframe_indices(np.array([True, True, False, True, True]), 2)
    array([0, 3])
    """
    return np.flatnonzero(present)[::every]


def read_together(indices: NDArray[np.int64], depth: int, span: int, most: int) -> list[int]:
    """Cut keyframes into runs that are read at once, since they lie in the same layer of chunks.

    Parameters
    ----------
    indices : (k,) int64
        Their slice indices, ascending.
    depth : int
        Slices in a layer of chunks.
    span : int
        Slices that may be read at once.
    most : int
        Keyframes that a run may have.

    Returns
    -------
    list of int
        The runs' lengths.

    Examples
    --------
    >>> read_together(np.array([0, 10, 120, 130, 140]), depth=128, span=100, most=4)
    [2, 1, 2]
    """
    lengths: list[int] = []
    begin = 0
    for index in indices.tolist():
        layer = index // depth == begin // depth and index - begin < span
        if lengths and layer and lengths[-1] < most:
            lengths[-1] += 1
        else:
            lengths.append(1)
            begin = index
    return lengths


def held_by(start: int, stop: int, keyframes: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """Runs of slices that hold the mask of one keyframe, until the next.

    Parameters
    ----------
    start, stop : int
        Slice indices, `stop` excluded.
    keyframes : (k,) int64
        Their slice indices, ascending.

    Returns
    -------
    list of (position, start, stop)
        Position of the keyframe in `keyframes`, and the slices from `start` to before `stop` that
        hold its mask. Slices before the first keyframe are in none: they have no mask.

    Examples
    --------
    >>> held_by(5, 25, np.array([0, 10, 20]))
    [(0, 5, 10), (1, 10, 20), (2, 20, 25)]
    """
    ends = np.append(keyframes[1:], max(stop, keyframes[-1] + 1)) if len(keyframes) else keyframes
    return [
        (position, max(start, int(first)), min(stop, int(end)))
        for position, (first, end) in enumerate(zip(keyframes, ends, strict=True))
        if first < stop and end > start
    ]
