"""From a rule and what is seen to the keyframes that make the masks.

No effects of its own: what looks at slices is given, be it a cluster of detectors or a mask that is
known. All that is decided depends on what was seen, not on when; so a run that was stopped decides
the same again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from zarrmask.masking.outliers import difference, outliers, usual_area
from zarrmask.masking.placing import Placing
from zarrmask.masking.sighting import AS_SEEN, REPLACED, SEEN_ANEW, Sighting


@dataclass(frozen=True)
class Doubt:
    """A keyframe that contradicts those around it.

    Attributes
    ----------
    place : int
        Which of the keyframes, in the order in which they were seen.
    sighting : Sighting
        What was seen.
    before, behind : Sighting or None
        What is seen on the nearest keyframes that are not in doubt; None beyond the ends.
    usual : float
        Pixels of a usual mask.
    """

    place: int
    sighting: Sighting
    before: Sighting | None
    behind: Sighting | None
    usual: float


Look: TypeAlias = Callable[[Sequence[int], int], Sequence[Sighting]]
"""Of candidates' positions and the place of the first, gives what is seen on each."""
LookAgain: TypeAlias = Callable[[Sequence[Doubt]], Sequence[tuple[str, Sighting] | None]]
"""Of keyframes in doubt, gives by what other means more was seen, and what; None if by none."""


@dataclass(frozen=True)
class Odd:
    """A keyframe that was in doubt, as it is recorded.

    Attributes
    ----------
    place : int
        Which of the keyframes.
    why : str
        What spoke against it.
    before, behind : int or None
        Places of the nearest used keyframes; None beyond the ends.
    by : str or None
        By what means it was seen anew, and is used; None where it is replaced.
    """

    place: int
    why: str
    before: int | None
    behind: int | None
    by: str | None


@dataclass(frozen=True)
class Keyframes:
    """Keyframes in the order in which they were seen.

    Attributes
    ----------
    positions : (k,) int64
        Among the candidates.
    sightings : list of Sighting
        What is seen on them, of two looks the better.
    states : (k,) int8
        `REPLACED`, `AS_SEEN` or `SEEN_ANEW`.
    odd : list of Odd
        Those that were in doubt, ascending in z.
    """

    positions: NDArray[np.int64]
    sightings: list[Sighting]
    states: NDArray[np.int8]
    odd: list[Odd]


def seek(placing: Placing, look: Look, look_again: LookAgain | None = None) -> Keyframes:
    """Look where the rule wants it, until it wants no more; then again where that is doubtful.

    Parameters
    ----------
    placing : Placing
    look : callable
        See `Look`.
    look_again : callable, optional
        See `LookAgain`; without it nothing is doubted. No keyframe is looked at again twice.
    """
    seen: dict[int, Sighting] = {}
    while wanted := placing.wanted({position: one.sketch for position, one in seen.items()}):
        seen.update(zip(wanted, look(wanted, len(seen)), strict=True))
    positions, sightings = list(seen), list(seen.values())
    states = np.full(len(seen), AS_SEEN, np.int8)
    odd: list[Odd] = []
    if look_again is not None:
        odd = _judge(np.argsort(positions).tolist(), sightings, states, look_again)
    return Keyframes(np.array(positions, np.int64), sightings, states, odd)


def _judge(
    order: list[int], sightings: list[Sighting], states: NDArray[np.int8], look_again: LookAgain
) -> list[Odd]:
    """Look again at what is doubtful; change `sightings` and `states` where that is better.

    Parameters
    ----------
    order : list of int
        Places of the sightings, ascending in z.
    """
    first: dict[int, Sighting] = {}
    means: dict[int, str | None] = {}
    while True:
        doubtful = {order[n] for n in outliers([sightings[place] for place in order])}
        sides = _sides(order, doubtful)
        fresh = [place for place in order if place in doubtful and place not in means]
        if not fresh:
            break
        usual = usual_area(sightings)
        doubts = []
        for place in fresh:
            before, behind = (_at(sightings, side) for side in sides[place])
            doubts.append(Doubt(place, sightings[place], before, behind, usual))
        for doubt, better in zip(doubts, look_again(doubts), strict=True):
            first[doubt.place] = doubt.sighting
            means[doubt.place], sightings[doubt.place] = better or (None, doubt.sighting)
    odd = []
    for place, by in means.items():
        if place in doubtful:
            states[place], by = REPLACED, None
        elif by is None:
            continue  # what spoke against it is gone: a neighbour was seen anew
        else:
            states[place] = SEEN_ANEW
        left, right = sides[place]
        why = difference(_at(sightings, left), first[place], _at(sightings, right))
        odd.append(Odd(place, why, left, right, by))
    return sorted(odd, key=lambda one: order.index(one.place))


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


def _at(sightings: list[Sighting], place: int | None) -> Sighting | None:
    return None if place is None else sightings[place]
