"""Which slices the detector looks at, where what it has seen decides that. Arithmetic only.

A few slices are looked at first. Between two neighbours whose masks disagree, the one half-way is
looked at next, and so on, until neighbours agree or lie as close as they may. Where nothing at all
was found at first, no neighbours agree: an object may lie between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from zarrmask.masking.sketch import Sketch, agreement, displacement

STRETCH = 256
"""Candidates of a stretch, about: 32 of those that are looked at first, 2,048 slices by default."""
FAR = 8.0
"""How far what one of two neighbours shows may lie from the other's mask, percent of the longer
side: a piece that comes or goes is followed, however small it is beside the rest."""


@dataclass(frozen=True, eq=False)
class Placing:
    """A rule that places keyframes.

    Attributes
    ----------
    candidates : (c,) int64
        Indices of the slices that may be keyframes, ascending.
    step : int
        Every so many of them are looked at first, and the last.
    tolerance : float
        How much neighbours' masks may differ: what is in one of them only, percent of what is in
        either.
    """

    candidates: NDArray[np.int64]
    step: int = 1
    tolerance: float = 0.0

    @classmethod
    def fixed(cls, there: NDArray[np.int64], every: int, *, last: bool = False) -> Placing:
        """Every n-th of the slices that are there (indices, ascending), from the first.

        The replaced scripts count only slices that could be read; so does this.

        Parameters
        ----------
        last : bool
            And the last: what begins behind the one before is seen on no other. The replaced
            scripts, which hold a mask until the next, do without.
        """
        return cls(np.union1d(there[::every], there[-1:] if last else there[:0]))

    @classmethod
    def adaptive(cls, there: NDArray[np.int64], least: int, most: int, tolerance: float) -> Placing:
        """Every `most` of the slices that are there, and the last; at most every `least`.

        Examples
        --------
        >>> placing = Placing.adaptive(np.arange(30), least=4, most=16, tolerance=15)
        >>> placing.candidates, placing.first
        (array([ 0,  4,  8, 12, 16, 20, 24, 28, 29]), array([0, 4, 8]))
        """
        return cls(np.union1d(there[::least], there[-1:]), max(1, most // least), tolerance)

    @property
    def first(self) -> NDArray[np.int64]:
        """Positions, among the candidates, of what is looked at first."""
        last = len(self.candidates) - 1
        return np.union1d(np.arange(0, last + 1, self.step), [last])

    @property
    def stretches(self) -> list[tuple[int, int]]:
        """First and last position of each stretch; what is looked at in one says all of it.

        Neighbours share a position, which counts as the second one's.

        Examples
        --------
        >>> Placing(np.arange(800), step=8).stretches
        [(0, 256), (256, 512), (512, 799)]
        """
        first = self.first
        each = max(1, STRETCH // self.step)
        count = max(1, (len(first) - 1) // each)
        starts = first[: count * each : each].tolist()
        return list(zip(starts, [*starts[1:], int(first[-1])], strict=True))

    def rounds(self) -> list[NDArray[np.int64]]:
        """Positions that are looked at in each round, at most: as if no neighbours ever agreed.

        Examples
        --------
        >>> Placing(np.arange(8), step=4).rounds()
        [array([0, 4, 7]), array([2, 5]), array([1, 3, 6])]
        """
        rounds, seen = [], self.first
        wanted = self.first
        while len(wanted):
            rounds.append(wanted)
            middles = (seen[:-1] + seen[1:]) // 2
            wanted = middles[middles > seen[:-1]]
            seen = np.union1d(seen, wanted)
        return rounds

    def wanted(
        self, seen: Mapping[int, Sketch], stretch: tuple[int, int] | None = None
    ) -> list[int]:
        """Positions of the candidates to look at next, ascending; none where that is enough.

        Depends on what is seen alone, in whatever order that came.

        Parameters
        ----------
        seen : mapping of int to Sketch
            Masks by position.
        stretch : (int, int), optional
            First and last position of those that count, one of `stretches`; by default all do.
        """
        begin, end = stretch or (0, len(self.candidates) - 1)
        first = [position for position in self.first.tolist() if begin <= position <= end]
        if missing := [position for position in first if position not in seen]:
            return missing
        found = any(seen[position].area for position in first)
        return [place for pair in pairwise(first) for place in self._between(*pair, seen, found)]

    def _between(
        self, left: int, right: int, seen: Mapping[int, Sketch], found: bool
    ) -> Iterator[int]:
        """What to look at between two that were seen; `found`: whether neighbours may agree."""
        middle = (left + right) // 2
        if middle in (left, right):
            return
        if middle in seen:
            yield from self._between(left, middle, seen, found)
            yield from self._between(middle, right, seen, found)
        elif not (found and self._agree(seen[left], seen[right])):
            yield middle

    def _agree(self, one: Sketch, other: Sketch) -> bool:
        """Whether what lies between two neighbours can be told from them."""
        differs = 100 * (1 - agreement(one, other))
        return differs <= self.tolerance and displacement(one, other) <= FAR
