"""Which keyframes contradict those around them. Arithmetic only.

A scroll changes slowly, or once: a mask that differs from those before and behind it in the same
way, so that leaving it out mends both steps, is a mistake of the detector. What is kept is the
cheapest path through the keyframes: a step between neighbours costs what changes, a keyframe that
has what neither neighbour has, or lacks what both have, costs that, and leaving one out has a
price. Edges that stray by no more than a margin cost nothing.

Leaving out what lacks something loses nothing. What has something is left out only where there are
many others that show an object: of an object that is seen on a few keyframes, all are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from zarrmask.masking.sighting import Sighting
from zarrmask.masking.sketch import Sketch, count

PRICE = 0.15
"""Of leaving out what the detector was sure of, in shares of a usual mask's area."""
TOGETHER = 3
"""Keyframes in a row that may be left out: what lasts longer is taken for real."""
FEW = 8
"""Keyframes that show an object, for each in a row that may be left out and has what its neighbours
have not."""
LOSS = 0.01
"""What a keyframe may have of that, and yet be left out anywhere; in shares of a usual mask."""
MARGIN = 0.02
"""By this share of the longer side an edge may stray from its neighbours' at no cost."""


@dataclass(frozen=True)
class Contradiction:
    """How a keyframe differs from both of its neighbours, beyond the margin.

    Attributes
    ----------
    surplus : float
        What it has and neither neighbour has, as a share of what any of the three has.
    lacking : float
        What both neighbours have and it has not, likewise.
    """

    surplus: float
    lacking: float

    @classmethod
    def of(cls, before: Sketch, sketch: Sketch, behind: Sketch) -> Contradiction:
        """Compare three masks in their order."""
        any_of_them = max(1, count(before.bits | sketch.bits | behind.bits))
        surplus = count(sketch.bits & ~(_grown(before) | _grown(behind)))
        lacking = count(before.bits & behind.bits & ~_grown(sketch))
        return cls(surplus / any_of_them, lacking / any_of_them)


def outliers(sightings: Sequence[Sighting]) -> list[int]:
    """Tell which of some keyframes are mistakes.

    The first and the last are left out only where they took the air: there is nothing behind them
    that could contradict.

    Parameters
    ----------
    sightings : sequence of Sighting
        Ascending in z.

    Returns
    -------
    list of int
        Their places, ascending.
    """
    airy = took_air(sightings)
    kept = [place for place in range(len(sightings)) if place not in airy]
    path = _cheapest_path([sightings[place] for place in kept])
    used = {kept[place] for place in path}
    return [place for place in range(len(sightings)) if place not in used]


def took_air(sightings: Sequence[Sighting]) -> set[int]:
    """Places of those that cover all borders, where that is not usual."""
    taking = {place for place, one in enumerate(sightings) if one.takes_all_borders}
    return taking if 2 * len(taking) < len(sightings) else set()


def cost(
    before: Sighting | None, sighting: Sighting, behind: Sighting | None, usual: float
) -> float:
    """What it costs to have a keyframe between two others, or beside one; see the module.

    Parameters
    ----------
    usual : float
        Pixels of a usual mask.
    """
    near = [one for one in (before, behind) if one is not None]
    steps = sum(_step(sighting, other, usual) for other in near)
    if sighting.takes_all_borders and not any(one.takes_all_borders for one in near):
        steps += 1
    if before is None or behind is None:
        return steps
    contradiction = Contradiction.of(before.sketch, sighting.sketch, behind.sketch)
    return steps + contradiction.surplus + contradiction.lacking


def difference(before: Sighting | None, sighting: Sighting, behind: Sighting | None) -> str:
    """Say what speaks against a keyframe between two others, in a few words."""
    if sighting.takes_all_borders:
        return "it covers all borders of the slice"
    if not sighting.sketch.area:
        return "nothing was found, unlike on either side"
    if before is None or behind is None:
        return "it differs from the next one"
    contradiction = Contradiction.of(before.sketch, sighting.sketch, behind.sketch)
    if contradiction.surplus >= contradiction.lacking:
        return f"{contradiction.surplus:.0%} of all is on neither side"
    return f"{contradiction.lacking:.0%} of all is missing, and on both sides"


def usual_area(sightings: Sequence[Sighting]) -> float:
    """Pixels of a usual mask: the median of those that are not empty; 1 where all are."""
    areas = [area for one in sightings if (area := one.sketch.area)]
    return float(np.median(areas)) if areas else 1.0


def _cheapest_path(sightings: Sequence[Sighting]) -> list[int]:
    """Places on the cheapest way from the first to the last.

    By dynamic programming: for each two that may follow each other, the cheapest way that ends with
    them.
    """
    size = len(sightings)
    if size < 3:
        return list(range(size))
    usual = usual_area(sightings)
    contrast = _usual_contrast(sightings)
    left_out = np.cumsum([0.0, *(_price(one, contrast) for one in sightings)])
    most = sum(one.sketch.area > 0 for one in sightings) // FEW
    ways: dict[tuple[int, int], tuple[float, int | None]] = {}
    for here in range(1, size):
        for before in range(max(0, here - TOGETHER - 1), here):
            between = sightings[before + 1 : here]
            if (
                len(between) > most
                and _losses(sightings[before], between, sightings[here], usual) > most
            ):
                ways[before, here] = float("inf"), None
                continue
            step = _step(sightings[before], sightings[here], usual)
            step += float(left_out[here] - left_out[before + 1])
            if before == 0:
                ways[before, here] = step, None
                continue
            cheapest: tuple[float, int | None] = float("inf"), None
            for first in range(before - 1, max(-1, before - TOGETHER - 2), -1):
                three = (sightings[place].sketch for place in (first, before, here))
                contradiction = Contradiction.of(*three)
                total = ways[first, before][0] + contradiction.surplus + contradiction.lacking
                if total < cheapest[0]:
                    cheapest = total, first
            ways[before, here] = cheapest[0] + step, cheapest[1]
    ends = [pair for pair in ways if pair[1] == size - 1]
    before, here = min(ends, key=lambda pair: (ways[pair][0], -pair[0]))
    path = [here]
    while (further := ways[before, here][1]) is not None:
        path.append(before)
        before, here = further, before
    return [*dict.fromkeys([before, *reversed(path)])]


def _losses(before: Sighting, between: Sequence[Sighting], behind: Sighting, usual: float) -> int:
    """How many keyframes have what neither of two around them has, beyond the margin."""
    either = _grown(before.sketch) | _grown(behind.sketch)
    return sum(count(one.sketch.bits & ~either) > LOSS * usual for one in between)


def _step(one: Sighting, other: Sighting, usual: float) -> float:
    """What changes between two, beyond the margin, in shares of a usual mask."""
    gone = count(one.sketch.bits & ~_grown(other.sketch))
    come = count(other.sketch.bits & ~_grown(one.sketch))
    return (gone + come) / usual


def _price(sighting: Sighting, usual_contrast: float) -> float:
    """Of leaving one out: less where the detector was unsure, or it is dark as others are not."""
    price = PRICE * (1 + sighting.best_score) / 2
    return price / 2 if sighting.contrast * usual_contrast < 0 else price


def _usual_contrast(sightings: Sequence[Sighting]) -> float:
    known = [one.contrast for one in sightings if not np.isnan(one.contrast)]
    return float(np.median(known)) if known else 0.0


@lru_cache(maxsize=64)  # of a few neighbours: all of them would fill the memory
def _grown(sketch: Sketch) -> NDArray[np.uint8]:
    """Bits of a mask grown by the margin."""
    side = 2 * round(MARGIN * max(sketch.shape)) + 1
    pixels = sketch.pixels.view(np.uint8)
    return np.packbits(cv2.dilate(pixels, np.ones((side, side), np.uint8)))
