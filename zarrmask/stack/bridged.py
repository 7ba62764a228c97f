"""A stack of which some slices cannot be read: they are interpolated from those around them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from zarrmask.stack.source import Source

MOST_IN_A_ROW = 8
"""Neighbours that are interpolated; between slices that lie farther apart too much changes."""
SHARE = 0.01
"""Of a stack's slices, or `MOST_IN_A_ROW` if that is more, are interpolated at most."""

Anchors = tuple[int | None, int | None]


class Bridged(Source):
    """A source whose unreadable slices are interpolated wherever they are read.

    Each becomes the mean of the nearest slices before and behind it that are there, weighted by how
    near they are; at the ends of the stack the nearest one.

    Parameters
    ----------
    source : Source
    bad : collection of int
        Indices of the slices that are not read, however well they can be.
    """

    def __init__(self, source: Source, bad: Collection[int]) -> None:
        self.path, self.kind, self.shape, self.dtype = (
            source.path,
            source.kind,
            source.shape,
            source.dtype,
        )
        self.missing, self.voxel_size, self.block = source.missing, source.voxel_size, source.block
        self.offset, self.oblong = source.offset, source.oblong
        self.unitless = source.unitless
        self.first = int(source.numbers[0])
        self._source = source
        self._anchors = anchors(bad, [n - self.first for n in source.missing], self.shape[0])

    @property
    def unreadable(self) -> Mapping[int, str]:
        """What is wrong with slices that are known to be unreadable, by number."""
        return self._source.unreadable

    def fingerprint(self, without: Collection[int] = ()) -> str:
        """Hash what would change if the input did."""
        return self._source.fingerprint(without)

    def forget(self) -> None:
        """Look anew, for the next fingerprint."""
        self._source.forget()

    def coarsest(self, rows: int, columns: int) -> tuple[Source, int]:
        """Give the coarsest form of the volume; what it holds is not interpolated."""
        coarse, depth = self._source.coarsest(rows, columns)
        return (self if coarse is self._source else coarse), depth

    def read_into(self, out: np.ndarray, z: slice, y: slice, x: slice) -> None:
        """Read a region into an array of its shape."""
        start = z.start
        for bad in [index for index in range(z.start, z.stop) if index in self._anchors]:
            if start < bad:
                part = out[start - z.start : bad - z.start]
                self._source.read_into(part, slice(start, bad), y, x)
            out[bad - z.start] = self._between(bad, y, x)
            start = bad + 1
        if start < z.stop:
            self._source.read_into(out[start - z.start :], slice(start, z.stop), y, x)

    def _between(self, index: int, y: slice, x: slice) -> NDArray:
        first, last = self._anchors[index]
        if first is None or last is None:
            return self._source[last if first is None else first, y, x]
        before, behind = self._source[first, y, x], self._source[last, y, x]
        return between(before, behind, index - first, last - first)

    def _read(self, z: slice, y: slice, x: slice) -> np.ndarray:
        shape = y.stop - y.start, x.stop - x.start
        wanted = range(z.start, z.stop, z.step)
        out = np.empty((len(wanted), *shape), self.dtype)
        whole = slice(y.start, y.stop, 1), slice(x.start, x.stop, 1)
        if z.step == 1:
            self.read_into(out, z, *whole)
        else:
            for place, index in enumerate(wanted):
                self.read_into(out[place : place + 1], slice(index, index + 1), *whole)
        return out[:, :: y.step, :: x.step]


def bridged(source: Source, bad: Collection[int]) -> Source:
    """Give a stack with some slices, by their numbers, interpolated; as it is where there are none.

    Parameters
    ----------
    source : Source
    bad : collection of int
        Slice numbers.
    """
    first = int(source.numbers[0])
    return Bridged(source, [number - first for number in bad]) if bad else source


def between(before: NDArray, behind: NDArray, step: int, steps: int) -> NDArray:
    """Interpolate a slice between two others; integers are rounded half up.

    Parameters
    ----------
    before, behind : arrays of one shape and dtype
        uint8, uint16, int16 or float32.
    step, steps : int
        How many slices it lies behind the one, and the other behind that.

    Examples
    --------
    >>> between(np.array([10], np.uint8), np.array([21], np.uint8), 1, 2).tolist()
    [16]
    """
    if before.dtype.kind == "f":
        share = step / steps
        return (before * np.float64(1 - share) + behind * np.float64(share)).astype(before.dtype)
    sums = before.astype(np.int64) * (steps - step) + behind.astype(np.int64) * step
    return ((2 * sums + steps) // (2 * steps)).astype(before.dtype)


def anchors(bad: Collection[int], missing: Collection[int], depth: int) -> dict[int, Anchors]:
    """Say of each unreadable slice which ones it is interpolated from.

    Parameters
    ----------
    bad, missing : collections of int
        Indices of slices that cannot be read, and of those that are not there.
    depth : int
        Slices of the stack.

    Returns
    -------
    dict
        By index, the nearest others before and behind; None beyond the ends.

    Examples
    --------
    >>> anchors([0, 4, 5], [3], 8)
    {0: (None, 1), 4: (2, 6), 5: (2, 6)}
    """
    out = {*bad, *missing}

    def nearest(indices: range) -> int | None:
        return next((index for index in indices if index not in out), None)

    return {
        index: (nearest(range(index - 1, -1, -1)), nearest(range(index + 1, depth)))
        for index in sorted(bad)
    }


def too_many(bad: Collection[int], depth: int) -> str | None:
    """Say why so many unreadable slices are not interpolated; None if they are.

    Parameters
    ----------
    bad : collection of int
        Their numbers or indices.
    depth : int
        Slices of the stack.

    Examples
    --------
    >>> too_many([3, 4, 9], 100)
    >>> too_many(range(10), 100)
    '10 slices in a row cannot be read, and no more than 8 are interpolated'
    """
    if (row := longest_row(sorted(bad))) > MOST_IN_A_ROW:
        told = f"{row:,} slices in a row cannot be read"
        return f"{told}, and no more than {MOST_IN_A_ROW} are interpolated"
    most = max(MOST_IN_A_ROW, int(SHARE * depth))
    if len(bad) > most:
        told = f"{len(bad):,} of {depth:,} slices cannot be read"
        return f"{told}, and no more than {most:,} are interpolated"
    return None


def longest_row(numbers: Sequence[int]) -> int:
    """Length of the longest row of neighbours in ascending numbers.

    Examples
    --------
    >>> longest_row([1, 2, 5, 6, 7])
    3
    """
    longest = row = 0
    last: int | None = None
    for number in numbers:
        row = row + 1 if last is not None and number == last + 1 else 1
        longest, last = max(longest, row), number
    return longest
