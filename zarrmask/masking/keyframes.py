"""Which keyframes are read together, and from which of them each slice has its mask.

Arithmetic only.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray


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
    first = max(0, int(np.searchsorted(keyframes, start, "right")) - 1)
    held = keyframes[first : int(np.searchsorted(keyframes, stop))].tolist()
    return [
        (first + n, max(start, begin), end)
        for n, (begin, end) in enumerate(zip(held, [*held[1:], stop], strict=False))
    ]


@dataclass(frozen=True)
class Span:
    """Slices between two keyframes.

    Attributes
    ----------
    one, other : int
        Positions of the keyframes; the same where there is but one.
    start : int
        The first of the slices.
    places : tuple of float
        Where each of them lies, from 0 at the one to 1 at the other.
    """

    one: int
    other: int
    start: int
    places: tuple[float, ...]

    def part(self, slices: slice) -> list[Span]:
        """Those that are among other slices, counted from the first of these: a span or none."""
        first = max(self.start, slices.start)
        stop = min(self.start + len(self.places), slices.stop)
        if first >= stop:
            return []
        places = self.places[first - self.start : stop - self.start]
        return [replace(self, start=first - slices.start, places=places)]


def spans_between(start: int, stop: int, keyframes: NDArray[np.int64]) -> list[Span]:
    """Cut slices into spans between keyframes.

    Slices before the first and after the last are with that one alone.

    Parameters
    ----------
    start, stop : int
        Slice indices, `stop` excluded.
    keyframes : (k,) int64
        Their slice indices, ascending; one at least.

    Examples
    --------
    >>> for span in spans_between(2, 6, np.array([3, 5])):
    ...     print(span)
    Span(one=0, other=0, start=2, places=(0.0,))
    Span(one=0, other=1, start=3, places=(0.0, 0.5))
    Span(one=1, other=1, start=5, places=(0.0,))
    """
    last = len(keyframes) - 1
    around = np.searchsorted(keyframes, np.arange(start, stop), "right") - 1
    spans = []
    for position in np.unique(around).tolist():
        slices = np.flatnonzero(around == position) + start
        one, other = max(position, 0), min(max(position, -1) + 1, last)
        gap = int(keyframes[other] - keyframes[one]) or 1
        places = (slices - keyframes[one]) / gap if one != other else np.zeros(len(slices))
        spans.append(Span(one, other, int(slices[0]), tuple(places.tolist())))
    return spans
