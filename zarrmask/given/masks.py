"""Masks that are given: painted by a person, made elsewhere, or of another run.

What is above 0 is inside. A mask counts for its slice and for those after it, until the next.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zarrmask.errors import StackError, listed
from zarrmask.masking import KeyframeStore
from zarrmask.records.journal import Journal, finished_record
from zarrmask.stack import Source, open_source
from zarrmask.stack.header import ACCEPTED
from zarrmask.storage.place import Place, place_of, printable, reached

MOST_LABELS = 100
"""Different values on a slice beyond which it is taken for a slice of a scan."""
LOOKED_AT = 3
"""Masks of which the values are looked at before anything is written."""


@dataclass(frozen=True)
class GivenMasks:
    """Masks by slice number.

    Attributes
    ----------
    source : Source
        Their labels.
    indices : (k,) int64
        Where in it each is, ascending.
    numbers : (k,) int64
        Their slices' numbers, ascending.
    crop : (rows, columns), optional
        Of a slice that they are of; by default they are of all of it, be it in another size.
    """

    source: Source
    indices: NDArray[np.int64]
    numbers: NDArray[np.int64]
    crop: tuple[slice, slice] | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """Of a mask, pixels."""
        return self.source.shape[1], self.source.shape[2]

    @property
    def local(self) -> list[Path]:
        """Where they lie on this machine; at a URL nowhere."""
        return [] if "://" in self.source.path else [Path(self.source.path)]

    def needed(self, first: int, stop: int) -> GivenMasks:
        """Those that slices from number `first` to before `stop` have, or hold from before.

        Raises
        ------
        StackError
            Where all of them come later.
        """
        if stop <= self.numbers[0]:
            raise StackError(
                f"the masks {self.source.path} begin with slice {self.numbers[0]}, and a mask "
                f"counts for its slice and those after it: slices {first} to {stop - 1} have none"
            )
        begin = max(0, int(np.searchsorted(self.numbers, first, "right")) - 1)
        part = slice(begin, int(np.searchsorted(self.numbers, stop)))
        return replace(self, indices=self.indices[part], numbers=self.numbers[part])

    def fingerprint(self) -> str:
        """Hash what would change if the masks did."""
        return self.source.fingerprint()

    def record(self) -> dict[str, Any]:
        """What a run keeps of them."""
        return {
            "path": self.source.path,
            "kind": self.source.kind,
            "shape": list(self.source.shape),
            "count": len(self.numbers),
            "z": [int(self.numbers[0]), int(self.numbers[-1])],
        }


def open_given(
    path: str | Place,
    stack: Source,
    first: int | None = None,
    begins: Mapping[int, int] | None = None,
    crop: tuple[slice, slice] | None = None,
    *,
    of_run: bool = False,
) -> GivenMasks:
    """Open masks for a stack.

    Parameters
    ----------
    path : path, URL or UPath
        A folder of numbered PNGs or TIFFs, a TIFF volume, a zarr array, an OME-Zarr, or the folder
        of a finished run.
    stack : Source
        What they are for.
    first : int, optional
        Number of the slice that the first mask is for; by default, of a folder, the number in its
        name; of a volume where its OME-Zarr says that it lies, or the stack's first slice, if there
        are as many masks as slices.
    begins : mapping, optional
        For other numbers of masks, which slice the first of them is for.
    crop : (rows, columns), optional
        Of a slice, pixels; masks that are just as large are taken for masks of these.
    of_run : bool
        Whether they are for slices of a run, whose numbers its exports have in their names.

    Raises
    ------
    StackError
        All that is wrong with them, at once.
    """
    place = place_of(path)
    with reached(place, to_be="read"):
        record = Journal.of_run(place).read()
        if record is None:
            given = _of_images(place, stack, first, begins, of_run)
        else:
            given = _of_run(place, stack, first)
    sides = () if crop is None else tuple(part.stop - part.start for part in crop)
    if given.shape == sides != stack.shape[1:]:
        given = replace(given, crop=crop)
    if problems := _problems(given, stack):
        raise StackError(
            f"the masks {printable(place)} do not fit the stack {stack.path}:\n"
            + "\n".join(f"  {problem}" for problem in problems)
        )
    return given


def _of_run(place: Place, stack: Source, first: int | None) -> GivenMasks:
    """Masks of another run, as it wrote them; where they are held, each once."""
    record = finished_record(place)
    settings = record["settings"]
    if any(settings[axis] != [None, None] for axis in ("y", "x")):
        raise StackError(f"the run in {place} wrote a crop (--y, --x); masks of whole slices are")
    source = open_source(place / "mask.zarr")
    own, stop = record["z"]
    indices = np.arange(stop - own, dtype=np.int64)
    if settings.get("propagate") == "hold" and not record.get("corrections"):
        store = KeyframeStore(place / "keyframes.zarr")
        keyframes = np.array(store.numbers())[store.seen()]
        indices = indices[np.isin(indices + own, keyframes) | (indices == 0)]
    stated = _stated_slice(source, stack)
    begin = next(number for number in (first, stated, own) if number is not None)
    return GivenMasks(source, indices, indices + begin)


def _of_images(
    place: Place,
    stack: Source,
    first: int | None,
    begins: Mapping[int, int] | None,
    of_run: bool,
) -> GivenMasks:
    source = open_source(place, allow_missing=True, labels=True)
    if source.kind.endswith(" slices"):
        numbers = source.numbers[~np.isin(source.numbers, source.missing)]
        if first is None and (doubt := _doubtful_numbers(numbers, stack, of_run)):
            raise StackError(f"{source.path}: {doubt}")
        shift = 0 if first is None else first - numbers[0]
        return GivenMasks(source, numbers - source.numbers[0], numbers + shift)
    depth, begins = source.shape[0], dict(begins or {})
    apart = _apart(source, stack)
    if abs(depth * apart - stack.shape[0]) < apart:  # they are of all slices
        begins[depth] = int(stack.numbers[0])
    if first is None:
        first = _stated_slice(source, stack)
    if first is None and depth not in begins:
        raise StackError(
            f"{source.path} holds {depth} masks and the stack {stack.shape[0]} slices, so it is "
            "unclear whose they are; give the slice number of the first mask with --first"
        )
    begin = begins[depth] if first is None else first
    indices = np.arange(depth, dtype=np.int64)
    return GivenMasks(source, indices, begin + np.round(indices * apart).astype(np.int64))


def _doubtful_numbers(numbers: NDArray[np.int64], stack: Source, of_run: bool) -> str | None:
    """Say why the numbers in masks' names may not be those of a stack's slices, or None."""
    mine, last, first = int(numbers[0]), int(numbers[-1]), int(stack.numbers[0])
    if (begins := round(stack.offset[0])) and not of_run:
        return (
            f"its masks are numbered {mine} to {last}. The stack says that it begins at slice "
            f"{begins + first} of another, but its own are numbered from {first}: say whose the "
            f"first mask is, by --first {mine - begins} if the numbers are of the other, by "
            f"--first {mine} if they are of this one"
        )
    if mine != first and len(numbers) == stack.shape[0] == last - mine + 1:
        return (
            f"it holds as many masks as there are slices, numbered {mine} to {last}, but the "
            f"slices {first} to {stack.numbers[-1]}: say whose the first mask is, by --first "
            f"{first} if it is the first slice's, by --first {mine} if the numbers are right"
        )
    return None


def _stated_slice(masks: Source, stack: Source) -> int | None:
    """Number of the slice at which an image says that it begins; None where it says nothing."""
    apart = _apart(masks, stack)
    if not any(masks.offset) or not np.isclose(_times(masks, stack) or 1, apart, rtol=1e-3):
        return None
    return round(masks.offset[0] * apart - stack.offset[0])


def _apart(masks: Source, stack: Source) -> float:
    """Slices from one mask of a volume to the next: several where its voxels are larger.

    Both have to say so, and slices to be smaller accordingly: programs write sizes that nobody set.
    """
    times = _times(masks, stack)
    if times is None or times < 1 or masks.shape[0] == stack.shape[0]:
        return 1.0
    return times if abs(masks.shape[1] * times - stack.shape[1]) < times else 1.0


def _times(masks: Source, stack: Source) -> float | None:
    """How many times as large the masks' voxels are; None where one of them does not say."""
    if masks.voxel_size is None or stack.voxel_size is None:
        return None
    return masks.voxel_size / stack.voxel_size


def _displacement(given: GivenMasks, stack: Source) -> tuple[float, float]:
    """How far an image says that it lies from where its masks would go: rows and columns."""
    if not any(given.source.offset):
        return 0.0, 0.0
    times = _times(given.source, stack) or 1.0
    begin = (0, 0) if given.crop is None else tuple(part.start for part in given.crop)
    y, x = (
        mine * times - its - start
        for mine, its, start in zip(given.source.offset[1:], stack.offset[1:], begin, strict=True)
    )
    return y, x


def _problems(given: GivenMasks, stack: Source) -> list[str]:
    problems = []
    first, last = int(stack.numbers[0]), int(stack.numbers[-1])
    if not ((given.numbers >= first) & (given.numbers <= last)).any():
        named = given.source.kind.endswith(" slices")
        problems.append(
            f"they are of slices {given.numbers[0]} to {given.numbers[-1]}; the stack's are "
            f"{first} to {last}" + ("" if named else " (--first says which the first of them is)")
        )
    (rows, columns), (height, width) = given.shape, stack.shape[1:]
    apart = abs(rows - height * columns / width), abs(columns - width * rows / height)
    times = _times(given.source, stack)
    as_large = times is not None and np.isclose(times, 1, rtol=1e-3)
    if given.crop is None and (rows > height or columns > width):
        problems.append(
            f"they are {rows} x {columns} pixels, more than the slices, {height} x {width}: those "
            "of which these were cut? Smaller masks are enlarged, larger ones are refused"
        )
    elif given.crop is None and min(apart) > 1:
        problems.append(
            f"they are {rows} x {columns} pixels, the slices {height} x {width}: not the same "
            "shape made smaller"
        )
    elif given.crop is None and given.shape != (height, width) and as_large:
        problems.append(
            f"they are {rows} x {columns} pixels and the slices {height} x {width}, of the same "
            "voxel size: a part of them? Masks of whole slices are expected"
        )
    y, x = _displacement(given, stack)
    if max(abs(y), abs(x)) > 1:
        problems.append(
            f"by their metadata they lie {y:+g} rows and {x:+g} columns from the slices: masks of "
            "whole slices are expected"
        )
    looked_at = np.unique(np.linspace(0, len(given.indices) - 1, LOOKED_AT).astype(int))
    values = {
        int(given.numbers[n]): len(np.unique(given.source[int(given.indices[n])]))
        for n in looked_at
    }
    scans = given.source.dtype in ACCEPTED  # others can only be labels
    if grey := [number for number, count in values.items() if scans and count > MOST_LABELS]:
        problems.append(
            f"those of slices {listed(grey)} hold {max(values.values())} different values: slices "
            "of a scan? Expected 0 outside and the same few labels inside"
        )
    return problems
