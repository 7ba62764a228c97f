"""From a rule and what is seen to the keyframes that make the masks.

No effects of its own: what looks at slices is given, be it a cluster of detectors or a mask that is
known. Candidates are cut into stretches. Where keyframes stand in one, and which of them are
mistakes, follows from what is seen there and at the near ends of its neighbours; so one is settled
while others have not been looked at. All that is decided depends on what was seen, not on when; so
a run that was stopped decides the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zarrmask.masking.outliers import difference, outliers, usual_area
from zarrmask.masking.placing import Placing
from zarrmask.masking.sighting import AS_SEEN, REPLACED, SEEN_ANEW, Sighting

CONTEXT = 16
"""Keyframes of each neighbour that a stretch is judged with, as they were seen first."""


@dataclass(frozen=True)
class Doubt:
    """A keyframe that contradicts those around it.

    Attributes
    ----------
    position : int
        Of the keyframe, among the candidates.
    sighting : Sighting
        What was seen.
    before, behind : Sighting or None
        What is seen on the nearest keyframes that are not in doubt; None beyond the ends.
    usual : float
        Pixels of a usual mask.
    """

    position: int
    sighting: Sighting
    before: Sighting | None
    behind: Sighting | None
    usual: float


Ask: TypeAlias = int | Doubt
"""The position of a candidate to look at, or a keyframe to look at again."""
Answer: TypeAlias = Sighting | tuple[str, Sighting] | None
"""What is seen there; of a keyframe in doubt by what means more, and what; None if by none."""
Looker: TypeAlias = Callable[[Callable[[], Sequence[Ask]]], Iterable[tuple[Ask, Answer]]]
"""Of what tells what to look at next (see `Seeking.ask`), gives what is seen, in any order."""


@dataclass(frozen=True)
class Odd:
    """A keyframe that was in doubt, as it is recorded.

    Attributes
    ----------
    position : int
        Of the keyframe, among the candidates.
    why : str
        What spoke against it.
    before, behind : int or None
        Positions of the nearest used keyframes; None beyond the ends.
    by : str or None
        By what means it was seen anew, and is used; None where it is replaced.
    """

    position: int
    why: str
    before: int | None
    behind: int | None
    by: str | None


@dataclass(frozen=True)
class Keyframes:
    """Keyframes that are settled, from the first on.

    Attributes
    ----------
    positions : (k,) int64
        Among the candidates, ascending.
    sightings : list of Sighting
        What is seen on them, of two looks the better.
    states : (k,) int8
        `REPLACED`, `AS_SEEN` or `SEEN_ANEW`.
    odd : list of Odd
        Those that were in doubt, ascending.
    complete : bool
        Whether there are no more.
    """

    positions: NDArray[np.int64]
    sightings: list[Sighting]
    states: NDArray[np.int8]
    odd: list[Odd]
    complete: bool

    @property
    def used(self) -> NDArray[np.int64]:
        """Positions of those that make the masks: (u,)."""
        used: NDArray[np.int64] = self.positions[self.states != REPLACED]
        return used

    @property
    def areas(self) -> NDArray[np.int64]:
        """Pixels of the masks of those that are used: (u,)."""
        areas = np.array([sighting.area for sighting in self.sightings], np.int64)
        used: NDArray[np.int64] = areas[self.states != REPLACED]
        return used


def seek(placing: Placing, looks: Looker, *, mends: bool) -> Iterator[Keyframes]:
    """Look where the rule wants it, until it wants no more; and again where that is doubtful.

    Parameters
    ----------
    placing : Placing
    looks : callable
        See `Looker`; it ends when there is nothing to look at and nothing under way.
    mends : bool
        Whether anything is doubted. No keyframe is looked at again twice.

    Yields
    ------
    Keyframes
        Whenever more of them are settled; the last are complete.
    """
    seeking = Seeking(placing, mends)
    told = 0
    for ask, answer in looks(seeking.ask):
        seeking.answer(ask, answer)
        if seeking.settled > told:
            told = seeking.settled
            yield seeking.keyframes()


@dataclass(eq=False)
class _Stretch:
    """How far a stretch is.

    Attributes
    ----------
    first, stop : int
        Its positions; `stop` is the next one's first, if there is a next one.
    own : list of int
        Those that were seen.
    asks : list of Ask
        What it wants to be looked at and nobody was asked for.
    waiting : set of int
        Positions whose answers it lacks.
    placed : bool
        Whether enough was seen.
    replaced : set of int, optional
        Positions of its mistakes, once it is settled.
    """

    first: int
    stop: int
    own: list[int] = field(default_factory=list)
    asks: list[Ask] = field(default_factory=list)
    waiting: set[int] = field(default_factory=set)
    placed: bool = False
    replaced: set[int] | None = None


class Seeking:
    """What is still to be looked at, and what is settled; see `seek`.

    Parameters
    ----------
    placing : Placing
    mends : bool
        Whether keyframes that contradict those around them are looked at again.
    """

    def __init__(self, placing: Placing, mends: bool) -> None:
        self._placing, self._mends = placing, mends
        self._stretches = [_Stretch(*ends) for ends in placing.stretches]
        self._stretches[-1].stop += 1  # the last position is nobody else's
        self._seen: dict[int, Sighting] = {}
        self._anew: dict[int, tuple[str, Sighting] | None] = {}
        self._asked: set[int] = set()
        self._go_on()

    def ask(self) -> list[Ask]:
        """Tell what to look at next, all of one stretch and of one kind, each once.

        The first stretch comes first. Nothing where more follows from answers alone.
        """
        for stretch in self._stretches:
            if asks := stretch.asks:
                stretch.asks = []
                return asks
        return []

    def answer(self, ask: Ask, answer: Answer) -> None:
        """Take what was seen."""
        position = ask.position if isinstance(ask, Doubt) else ask
        for stretch in self._stretches:
            stretch.waiting.discard(position)
            if isinstance(answer, Sighting) and stretch.first <= position < stretch.stop:
                self._seen[position] = answer
                stretch.own.append(position)
        if not isinstance(answer, Sighting):
            self._anew[position] = answer
        self._go_on()

    @property
    def settled(self) -> int:
        """How many stretches are settled, from the first on."""
        return len(list(takewhile(lambda one: one.replaced is not None, self._stretches)))

    def keyframes(self) -> Keyframes:
        """What is settled."""
        settled = self._stretches[: self.settled]
        order = [position for stretch in settled for position in sorted(stretch.own)]
        replaced = {position for stretch in settled for position in stretch.replaced or ()}
        sides = _sides(order, replaced)
        states, odd = np.full(len(order), AS_SEEN, np.int8), []
        for n, position in enumerate(order):
            anew = self._anew.get(position)
            if position not in replaced and anew is None:
                continue  # if anything spoke against it, that is gone: a neighbour was seen anew
            states[n] = REPLACED if position in replaced else SEEN_ANEW
            before, behind = (None if one is None else self._best(one) for one in sides[position])
            why = difference(before, self._seen[position], behind)
            by = None if position in replaced or anew is None else anew[0]
            odd.append(Odd(position, why, *sides[position], by))
        return Keyframes(
            np.array(order, np.int64),
            [self._best(position) for position in order],
            states,
            odd,
            len(settled) == len(self._stretches),
        )

    def _best(self, position: int) -> Sighting:
        """What is seen on a keyframe, of two looks the better."""
        anew = self._anew.get(position)
        return self._seen[position] if anew is None else anew[1]

    def _go_on(self) -> None:
        """Work out what follows from the answers that are there."""
        idle = [one for one in self._stretches if one.replaced is None and not one.waiting]
        for stretch in idle:
            if not stretch.placed:
                self._place(stretch)
        for stretch in idle:
            here = self._stretches.index(stretch)
            before = self._stretches[max(0, here - 1) : here]
            behind = self._stretches[here + 1 : here + 2]
            if stretch.placed and all(one.placed for one in (*before, *behind)):
                self._judge(
                    stretch,
                    [position for one in before for position in sorted(one.own)[-CONTEXT:]],
                    [position for one in behind for position in sorted(one.own)[:CONTEXT]],
                )

    def _place(self, stretch: _Stretch) -> None:
        """Want more to be seen in a stretch, unless that is enough."""
        there = (*stretch.own, stretch.stop)  # the last that counts may be the next one's
        sketches = {one: self._seen[one].sketch for one in there if one in self._seen}
        wanted = self._placing.wanted(sketches, (stretch.first, stretch.stop))
        stretch.placed, stretch.waiting = not wanted, set(wanted)
        stretch.asks = [position for position in wanted if position not in self._asked]
        self._asked.update(wanted)

    def _judge(self, stretch: _Stretch, before: list[int], behind: list[int]) -> None:
        """Doubt what contradicts the rest; when all of that was looked at again, settle it."""
        own = sorted(stretch.own)
        order = [*before, *own, *behind]
        seen = {position: self._seen[position] for position in order}
        seen |= {position: self._best(position) for position in own}
        sightings = list(seen.values())
        doubtful = {order[n] for n in outliers(sightings)} if self._mends else set()
        fresh = [position for position in own if position in doubtful - self._anew.keys()]
        if not fresh:
            stretch.replaced = doubtful & set(own)
            return
        usual, sides = usual_area(sightings), _sides(order, doubtful)
        for position in fresh:
            left, right = (None if side is None else seen[side] for side in sides[position])
            stretch.asks.append(Doubt(position, seen[position], left, right, usual))
        stretch.waiting = set(fresh)


def _sides(order: list[int], doubtful: set[int]) -> dict[int, tuple[int | None, int | None]]:
    """The nearest on both sides of each that are not in doubt."""
    before: dict[int, int | None] = {}
    behind: dict[int, int | None] = {}
    for sides, ordered in ((before, order), (behind, order[::-1])):
        last: int | None = None
        for place in ordered:
            sides[place] = last
            last = last if place in doubtful else place
    return {place: (before[place], behind[place]) for place in order}
