"""The masks before dilation that a finished run has by now, corrections of it counted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarrmask.correcting.corrections import Correction, store_of
from zarrmask.errors import OutputError, listed
from zarrmask.masking import KeyframeStore
from zarrmask.masking.sketch import Sketch
from zarrmask.stack import open_source
from zarrmask.storage.place import Place, printable


@dataclass(frozen=True)
class Undilated:
    """A slice whose mask before dilation is known.

    Attributes
    ----------
    number : int
        Its slice number.
    store, position : KeyframeStore, int
        Where the mask is.
    score : float
        Best score on it; NaN where nothing was found.
    sketch : Sketch
        The mask in small.
    given : bool
        Whether it corrects what was found, and was given for this very slice.
    """

    number: int
    store: KeyframeStore
    position: int
    score: float
    sketch: Sketch
    given: bool = False

    def mask(self) -> NDArray[np.uint8]:
        """Read the mask."""
        return np.asarray(self.store.masks()[self.position], np.uint8)


def undilated_masks(
    run: Place, record: Mapping[str, Any]
) -> tuple[list[Undilated], dict[int, str]]:
    """Give the slices of a run whose mask before dilation is known, and those where it was.

    Parameters
    ----------
    run : Place
        Its folder.
    record : mapping
        Its `run.json`.

    Returns
    -------
    known : list of Undilated
        Ascending in z: keyframes, and slices for which a correction has a mask of its own.
    lost : dict of int to str
        Slice numbers of what a correction laid another mask over, of which nobody knows how it is
        before dilation, and what that mask is.

    Raises
    ------
    OutputError
        If masks are gone.
    """
    known = {
        one.number: one for one in _entries(_opened(run, KeyframeStore(run / "keyframes.zarr")))
    }
    lost: dict[int, str] = {}
    for place, entry in enumerate(record.get("corrections", [])):
        correction = Correction.from_json(entry)
        start, own, instead = _laid_over(run, place, correction)
        over = [n for n in (*known, *lost) if start <= n < correction.z[1]]
        lost |= dict.fromkeys(over, instead)
        fresh = {one.number: one for one in own if start <= one.number < correction.z[1]}
        known = {n: one for n, one in known.items() if n not in lost} | fresh
        lost = {n: why for n, why in lost.items() if n not in fresh}
    return [known[number] for number in sorted(known)], dict(sorted(lost.items()))


def told(lost: Mapping[int, str]) -> str:
    """Say for a person what slices were lost to; see `undilated_masks`.

    Examples
    --------
    >>> told({120: "dilated otherwise", 130: "as slice 90", 140: "dilated otherwise"})
    '120, 140 (dilated otherwise); 130 (as slice 90)'
    """
    whys = dict.fromkeys(lost.values())
    slices = {why: [number for number, its in lost.items() if its == why] for why in whys}
    return "; ".join(f"{listed(numbers)} ({why})" for why, numbers in slices.items())


def _laid_over(run: Place, place: int, correction: Correction) -> tuple[int, list[Undilated], str]:
    """From which slice on a correction counts, its masks, and what other slices have instead."""
    how, start = correction.how, correction.z[0]
    if "dilate" in how or "erode" in how:
        return start, [], "dilated otherwise"
    if "from" in how:
        return start, [], f"mask of slice {how['from']}, dilated"
    store = _opened(run, store_of(run, place))
    if "detect" in how:
        return start, list(_entries(store)), "detected anew, on other slices"
    start = max(start, min(store.numbers()))
    given = how["masks"]
    whole, painted = store.masks().shape[1:], tuple(given["shape"][1:])
    if painted != whole and painted == open_source(run / "mask.zarr").shape[1:]:
        return start, [], "mask given for what the run wrote, not for the whole slice"
    if PurePath(given["path"]).name == "mask.zarr":
        return start, [], "mask of a run, dilated"
    return start, list(_entries(store, given=True)), "mask given for a slice before it"


def _opened(run: Place, store: KeyframeStore) -> KeyframeStore:
    if not store.path.exists():
        raise OutputError(
            f"{printable(run)} has lost its {store.path.name}: there is no "
            f"{printable(store.path)} any more. Put it back, or run anew"
        )
    return store


def _entries(store: KeyframeStore, given: bool = False) -> list[Undilated]:
    numbers, scores, sketches = store.numbers(), store.best_scores(), store.sketches()
    return [
        Undilated(numbers[n], store, n, float(scores[n]), sketches[n], given)
        for n in store.seen().tolist()
    ]
