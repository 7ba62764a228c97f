"""Where a person should look first: keyframes that do not fit their neighbours. Arithmetic only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarrmask.errors import some_of
from zarrmask.masking.sketch import agreement
from zarrmask.report.greys import Greys
from zarrmask.report.keyframes import KeyframeTable
from zarrmask.report.words import number, percent, pick

AREA_JUMP = 0.1
"""Share of the larger of three areas by which one differs from both others."""
CENTRE_JUMP = 0.05
"""Likewise of the centre, in diameters of a usual mask."""
SCORE_DROP = 0.2
"""By this the best score is lower than both neighbours'."""
AGREEMENT_DROP = 0.03
"""IoU that two keyframes have more with each other than with the one between them."""
STEP = 0.15
"""By this IoU two neighbours are less alike than neighbours usually are."""
GREY_SHIFT = {"air": 0.12, "case": 0.03}
"""Share of what is kept that has grey values of the air or the case, beyond what is usual."""
LEAST = 0.05
"""What weighs less is not told."""


@dataclass(frozen=True)
class Complaint:
    """What speaks against one keyframe.

    Attributes
    ----------
    place : int
        Of the keyframe, among all in their order.
    weight : float
        0 to 1.
    why : str
    """

    place: int
    weight: float
    why: str


@dataclass(frozen=True)
class Suspect:
    """Neighbouring keyframes that are in doubt.

    Attributes
    ----------
    first, last, worst : int
        Places of keyframes, among all in their order.
    weight : float
        Of all that speaks against the worst of them; comparable, without a unit.
    why : tuple of str
        What speaks against them, the gravest first.
    corrected : bool
        Whether a person has corrected them since.
    """

    first: int
    last: int
    worst: int
    weight: float
    why: tuple[str, ...]
    corrected: bool = False


def suspects(keyframes: KeyframeTable, greys: Greys, record: Mapping[str, Any]) -> list[Suspect]:
    """Find ranges of keyframes that a person should look at, the worst first.

    A keyframe is suspicious where nothing was found, where its area, centre, pieces, score or
    likeness jumps against both neighbours, where its mask covers a part of the slice's border or
    keeps grey values of air or case, and where the run itself replaced it.
    """
    used = np.flatnonzero(keyframes.used)
    judged = keyframes.only(used)
    contradictions = list(_contradictions(judged))
    doubts = [
        replace(doubt, place=int(used[doubt.place]))
        for doubt in (
            *_nothing_found(judged),
            *_jumps(judged),
            *contradictions,
            *_steps(judged, {doubt.place for doubt in contradictions}),
            *_at_border(judged),
            *_odd_greys(judged, greys),
        )
        if doubt.weight >= LEAST
    ]
    doubts += _mended(keyframes, pick(record, "keyframes"))
    corrected = _corrected(keyframes, record)
    settled = [doubt for doubt in doubts if doubt.place in corrected]
    still = [doubt for doubt in doubts if doubt.place not in corrected]
    still += _found_anew(keyframes, corrections(record))
    ranges = [_joined(together, keyframes.z) for together in _neighbours(still)]
    ranges += [
        replace(one, weight=LEAST, why=("corrected since", *one.why), corrected=True)
        for one in (_joined(together, keyframes.z) for together in _neighbours(settled))
    ]
    return sorted(ranges, key=lambda one: (-one.weight, one.first))


def corrections(record: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Give what of a record's corrections can be read: slices (from, before), and how."""
    entries = pick(record, "corrections")
    return [
        entry
        for entry in (entries if isinstance(entries, list | tuple) else ())
        if isinstance(pick(entry, "how"), Mapping)
        and isinstance(pick(entry, "z"), list | tuple)
        and [type(side) for side in entry["z"]] == [int, int]
    ]


def _corrected(keyframes: KeyframeTable, record: Mapping[str, Any]) -> set[int]:
    """Give the places of keyframes that a person has corrected since."""
    spans = [entry["z"] for entry in corrections(record)]
    return {
        place
        for place, z in enumerate(keyframes.z.tolist())
        if any(start <= z < stop for start, stop in spans)
    }


def at_border_always(keyframes: KeyframeTable) -> bool:
    """Tell whether most masks cover a part of the border: then that is no sign of a mistake."""
    found = keyframes.count > 0
    touching = np.nan_to_num(keyframes.at_border[found]) > 0
    return bool(touching.size and touching.mean() > 0.5)


def _nothing_found(keyframes: KeyframeTable) -> Iterator[Complaint]:
    """Empty keyframes: within the object they are mistakes, before and behind it hardly."""
    found = np.flatnonzero(keyframes.count > 0)
    for place in np.flatnonzero(keyframes.count == 0).tolist():
        if not found.size:
            yield Complaint(place, 1.0, "nothing was found on any keyframe")
        elif found[0] < place < found[-1]:
            yield Complaint(
                place, 1.0, "nothing was found, though there is something on both sides"
            )
        else:
            yield Complaint(place, 0.1, "nothing was found, at an end of the stack")


def _jumps(keyframes: KeyframeTable) -> Iterator[Complaint]:
    """What differs from both neighbours, and in the same sense."""
    area, score, pieces = keyframes.area, keyframes.best_score, keyframes.pieces
    centre, sketches = keyframes.centre, keyframes.sketches
    found = keyframes.count > 0
    usual = float(np.median(area[found])) if found.any() else 1.0
    diameter = 2 * (usual / np.pi) ** 0.5
    for place in range(1, len(area) - 1):
        before, here, behind = three = place - 1, place, place + 1
        if not found[list(three)].all():
            continue
        jump = _jump(area, place) / max(area[list(three)])
        if abs(jump) > AREA_JUMP:
            than = "larger" if jump > 0 else "smaller"
            yield Complaint(
                here,
                abs(jump),
                f"its area is {than} than both neighbours', by {percent(abs(jump), 1)}",
            )
        if (drop := -_jump(score, place)) > SCORE_DROP:
            yield Complaint(
                here, drop / 2, f"its score, {score[here]:.2f}, is lower than both neighbours'"
            )
        if not sketches:
            continue
        if change := _jump(pieces, place):
            than = "more" if change > 0 else "fewer"
            why = f"it has {than} pieces than both neighbours: {pieces[here]:.0f}"
            yield Complaint(here, min(0.3, 0.1 * abs(change)), why)
        away = min(np.linalg.norm(centre[here] - centre[other]) for other in (before, behind))
        apart = np.linalg.norm(centre[before] - centre[behind])
        if away > max(CENTRE_JUMP * diameter, apart):
            why = f"its centre lies {away:,.0f} voxels from both neighbours'"
            yield Complaint(here, min(1.0, 2 * float(away) / diameter), why)


def _contradictions(keyframes: KeyframeTable) -> Iterator[Complaint]:
    """What is less like its neighbours than these are like each other."""
    found, sketches = keyframes.count > 0, keyframes.sketches
    for here in range(1, len(sketches) - 1):
        before, behind = here - 1, here + 1
        if not found[before : behind + 1].all():
            continue
        alike = max(agreement(sketches[here], sketches[other]) for other in (before, behind))
        neighbours = agreement(sketches[before], sketches[behind])
        if alike < neighbours - AGREEMENT_DROP:
            why = (
                f"it is less like its neighbours (IoU {alike:.2f} at best) than they are like each "
                f"other ({neighbours:.2f})"
            )
            yield Complaint(here, neighbours - alike, why)


def _jump(values: NDArray[np.float64], place: int) -> float:
    """By how much a value is above, or below, both of its neighbours; else 0.

    Examples
    --------
    >>> _jump(np.array([1.0, 5.0, 2.0]), 1), _jump(np.array([1.0, 2.0, 3.0]), 1)
    (3.0, 0.0)
    """
    first, second = values[place] - values[[place - 1, place + 1]]
    if not first * second > 0:
        return 0.0
    return float(min(first, second) if first > 0 else max(first, second))


def _steps(keyframes: KeyframeTable, odd: Set[int]) -> Iterator[Complaint]:
    """Neighbours that are much less alike than usual, where that is not for one of them alone."""
    alike = keyframes.agreement
    found = keyframes.count > 0
    both = found[1:] & found[:-1] & np.isfinite(alike)
    if not both.any():
        return
    usual = float(np.median(alike[both]))
    for place in np.flatnonzero(both & (alike < usual - STEP)).tolist():
        if {place, place + 1} & odd:
            continue
        z, behind = keyframes.z[place : place + 2]
        why = f"the mask changes abruptly between z {z} and z {behind}: IoU {alike[place]:.2f}"
        for side in (place, place + 1):
            yield Complaint(side, (usual - float(alike[place])) / 2, why)


def _at_border(keyframes: KeyframeTable) -> Iterator[Complaint]:
    if at_border_always(keyframes):
        return
    for place, share in enumerate(keyframes.at_border.tolist()):
        if share > 0:
            why = f"the mask touches the slice's border, {percent(share, 1)} of it"
            yield Complaint(place, 0.1 + 0.9 * share, why)


def _odd_greys(keyframes: KeyframeTable, greys: Greys) -> Iterator[Complaint]:
    """Masks that keep much more of the air's or the case's grey values than is usual."""
    places = greys.steps_of(keyframes.z)
    for kind, shift in GREY_SHIFT.items():
        shares = greys.like(kind)[places]
        known = shares[np.isfinite(shares)]
        if not known.size:
            continue
        usual = float(np.median(known))
        spread = float(np.median(np.abs(known - usual)))
        for place, share in enumerate((shares - usual).tolist()):
            if keyframes.count[place] and share > max(shift, 8 * spread):
                why = f"{percent(share + usual, 1)} of what it keeps has grey values of the {kind}"
                yield Complaint(place, min(1.0, 2 * share), f"{why} (usual: {percent(usual, 1)})")


def _found_anew(
    keyframes: KeyframeTable, given: Sequence[Mapping[str, Any]]
) -> Iterator[Complaint]:
    """Slices that a person had detected anew, and on which nothing was found then.

    It is said of the keyframe that is nearest; no other correction has come since.
    """
    empty: dict[int, list[int]] = {}
    for n, entry in enumerate(given):
        slices = pick(entry, "detected", "without_detection")
        for z in slices if isinstance(slices, list | tuple) and len(keyframes.z) else ():
            since = (later["z"] for later in given[n + 1 :])
            if type(z) is int and not any(start <= z < stop for start, stop in since):
                empty.setdefault(int(np.abs(keyframes.z - z).argmin()), []).append(z)
    for place, slices in empty.items():
        more = f" and {len(slices) - 1} more" if len(slices) > 1 else ""
        why = f"nothing was found on z {slices[0]}{more} when that was detected anew"
        yield Complaint(place, 1.0 if keyframes.count[place] else 0.1, why)


def _mended(keyframes: KeyframeTable, kept: Any) -> Iterator[Complaint]:
    """What the run did not believe itself, by what its record tells of keyframes."""
    places = {int(z): place for place, z in enumerate(keyframes.z)}
    for name, weight in (("replaced", 0.6), ("redone", 0.3)):
        entries = pick(kept, name)
        for entry in entries if isinstance(entries, list | tuple) else ():
            z = number(pick(entry, "z"))
            if z is None or int(z) not in places:
                continue
            sides = pick(entry, "between")
            known = [side for side in sides if side is not None] if isinstance(sides, list) else []
            told = " and ".join(f"z {side}" for side in known)
            done = f"replaced by what is on z {told[2:]}" if told else "not used"
            if name == "redone":
                done = f"detected anew, by {pick(entry, 'by')}"
            yield Complaint(places[int(z)], weight, f"{done}, since {pick(entry, 'why')}")


def _neighbours(doubts: Sequence[Complaint]) -> Iterator[list[Complaint]]:
    """Put together what speaks against keyframes that follow each other."""
    together: list[Complaint] = []
    for doubt in sorted(doubts, key=lambda one: one.place):
        if together and doubt.place > together[-1].place + 1:
            yield together
            together = []
        together.append(doubt)
    if together:
        yield together


def _joined(doubts: Sequence[Complaint], numbers: NDArray[np.int64]) -> Suspect:
    """Make one suspect of what speaks against keyframes that follow each other."""
    weights: dict[int, float] = {}
    for doubt in doubts:
        weights[doubt.place] = weights.get(doubt.place, 0.0) + doubt.weight
    worst = max(weights, key=lambda place: (weights[place], -place))
    first, last = doubts[0].place, doubts[-1].place
    gravest = sorted(doubts, key=lambda one: (one.place != worst, -one.weight))
    slices: dict[str, list[int]] = {}
    for doubt in gravest:
        slices.setdefault(doubt.why, []).append(int(numbers[doubt.place]))
    why = tuple(
        text if first == last else f"z {some_of(sorted(set(there)))}: {text}"
        for text, there in slices.items()
    )
    return Suspect(first, last, worst, weights[worst], why)
