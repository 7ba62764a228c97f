"""A folder of numbered slices: which files are slices, which number each is, what is missing."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from pathlib import PurePath
from typing import NamedTuple

from zarrmask.errors import StackError, counted, escaped, some_of
from zarrmask.stack.bridged import too_many
from zarrmask.stack.header import Header, header_or_problem
from zarrmask.stack.image import (
    jpeg_header,
    png_header,
    png_labels_header,
    read_jpeg,
    read_png,
    read_png_labels,
)
from zarrmask.stack.remote import File, Remote, shown
from zarrmask.stack.slices import (
    ReadSlice,
    SliceSource,
    complaints,
    disagreements,
    file_in,
    refusal,
)
from zarrmask.stack.source import Progress
from zarrmask.stack.tiff import read_tiff, tiff_header, tiff_voxels
from zarrmask.stack.voxels import UNKNOWN, Voxels


class Format(NamedTuple):
    """How slices of one file format are read."""

    name: str
    header: Callable[[File], Header]
    read: ReadSlice
    voxels: Callable[[File], Voxels] = lambda _: UNKNOWN


TIFF = Format("TIFF", tiff_header, read_tiff, tiff_voxels)
JPEG = Format("JPEG", jpeg_header, read_jpeg)
PNG = Format("PNG", png_header, read_png)
FORMATS = {".tif": TIFF, ".tiff": TIFF, ".jpg": JPEG, ".jpeg": JPEG, ".png": PNG}

TIFF_LABELS = Format("TIFF", partial(tiff_header, labels=True), read_tiff)
PNG_LABELS = Format("PNG", png_labels_header, read_png_labels)
LABELS = {".tif": TIFF_LABELS, ".tiff": TIFF_LABELS, ".png": PNG_LABELS}
"""How images of labels are read; JPEG would blur them."""

# Headers are waited for, not computed: on a network disk each is a round trip or two.
THREADS = 8
THREADS_TO_SERVER = 32
# Beyond these, names hold a date or a hash: no scan has so many slices.
MOST_SLICES = 1_000_000
MOST_NUMBER = 2**53
RANGES = 20  # missing ranges spelled out in one message


def open_folder(
    place: str | Remote,
    allow_missing: bool,
    progress: Progress | None,
    formats: Mapping[str, Format],
    *,
    allow_unreadable: bool = False,
) -> SliceSource:
    """Open a folder of numbered slices, every header checked.

    Parameters
    ----------
    place : str or Remote
        The folder. Only its own files count, hidden ones and other extensions do not.
    allow_missing : bool
        Let missing numbers read as zeros.
    progress : callable, optional
        Called with (headers done, headers in all).
    formats : mapping
        By extension, how files are read.
    allow_unreadable : bool
        Let a few files be gone, or bad, which are known as unreadable slices then.

    Returns
    -------
    SliceSource
        The volume; its first slice has the lowest number.

    Raises
    ------
    StackError
        If there are no slices or they are no volume; one error names all bad files.
    """
    names, odd = slice_files(place, formats)
    extension = only_extension(place, names + odd)
    numbered, problems = by_number(names)
    problems = [f"{escaped(n)}: a broken link, or no regular file" for n in odd] + problems
    files = formats[extension]
    found = read_headers(place, files.header, numbered, progress)
    bad, usual = disagreements(found)
    unreadable = ({} if allow_missing else dict.fromkeys(gone(numbered), "it is not there")) | bad
    first, last = min(numbered, default=0), max(numbered, default=0)
    excess = too_many(unreadable, last - first + 1)
    allowed = allow_unreadable and not excess and len(bad) < len(found)
    problems += doubtful_numbers(numbered, allow_missing or allowed)
    if problems or (bad and not allowed):
        expected = [f"slices of {usual}"] * bool(bad) + ["every slice number once"] * bool(problems)
        problems += complaints({numbered[number]: what for number, what in bad.items()}, len(found))
        problems += [excess] if allow_unreadable and excess else []
        raise refusal(place, problems, "; ".join(expected))
    good = next(number for number in numbered if number not in bad)
    return SliceSource(
        place,
        f"{files.name} slices",
        files.read,
        first,
        [numbered.get(number) for number in range(first, last + 1)],
        [
            None if number in unreadable else header_of(found.get(number))
            for number in range(first, last + 1)
        ],
        {number - first: why for number, why in unreadable.items()},
        files.voxels(file_in(place, numbered[good])),
    )


_BLURRED = ". JPEG blurs the edges of masks: save them as PNG or TIFF"


def slice_files(place: str | Remote, formats: Mapping[str, Format]) -> tuple[list[str], list[str]]:
    """List the folder's slice files, and the entries so named that are no readable file.

    Raises
    ------
    StackError
        If there is neither; it says what is there.
    """
    names: list[str] = []
    odd: list[str] = []
    others = Counter[str]()
    for name, kind in entries(place):
        suffix = PurePath(name).suffix.lower()
        if name.startswith("."):
            others["hidden"] += 1
        elif kind == "folder":
            others["folders"] += 1
        elif suffix not in formats:
            others[suffix or "without extension"] += 1
        else:
            (names if kind == "file" else odd).append(name)
    if not names and not odd:
        there = ", ".join(f"{count:,} {escaped(what)}" for what, count in others.most_common(10))
        raise StackError(
            f"{shown(place)} holds no slices (found: {there or 'nothing, it is empty'}); "
            f"expected numbered files ({', '.join(formats)}), a multipage TIFF or a zarr"
            + (_BLURRED if formats is LABELS and {".jpg", ".jpeg"} & others.keys() else "")
        )
    return sorted(names), sorted(odd)


def entries(place: str | Remote) -> Iterator[tuple[str, str]]:
    """Go through a folder: names, and "file", "folder" or "other" (a broken link, a pipe).

    Raises
    ------
    StackError
        If it cannot be listed.
    """
    if isinstance(place, Remote):
        yield from place.entries()
        return
    try:
        with os.scandir(place) as found:
            for entry in found:
                if os.path.isdir(entry.path):  # noqa: PTH112  entry.is_dir fails on link loops
                    yield entry.name, "folder"
                else:
                    yield entry.name, "file" if os.path.isfile(entry.path) else "other"  # noqa: PTH113
    except OSError as error:
        raise StackError(f"{escaped(place)} cannot be listed: {error.strerror}") from None


def only_extension(place: str | Remote, names: Iterable[str]) -> str:
    """Return the one extension that all files have, in lower case.

    Raises
    ------
    StackError
        If there are several; it says how many files have each.
    """
    counts = Counter(PurePath(name).suffix.lower() for name in names)
    if len(counts) > 1:
        there = ", ".join(f"{count:,} {suffix}" for suffix, count in counts.most_common())
        raise StackError(
            f"{shown(place)} mixes files of several kinds ({there}); "
            "expected one extension: move the others away"
        )
    return next(iter(counts))


def slice_number(name: str) -> int | None:
    """Return the last run of digits in a file's stem, or None if there is none.

    Examples
    --------
    >>> slice_number("scan2_00123.tif")
    123
    """
    digits = re.findall("[0-9]+", PurePath(name).stem)
    return int(digits[-1]) if digits else None


def by_number(names: Iterable[str]) -> tuple[dict[int, str], list[str]]:
    """Order files by their number.

    Returns
    -------
    numbered : dict
        File name by slice number, rising.
    problems : list of str
        Files without a number, and numbers that several files have.
    """
    files: dict[int | None, list[str]] = defaultdict(list)
    for name in names:
        files[slice_number(name)].append(name)
    problems = [f"{escaped(n)}: no number in its name" for n in files.pop(None, [])]
    numbered = {number: files[number] for number in sorted(n for n in files if n is not None)}
    problems += [
        f"slice number {number} (the last digits in a name) more than once: "
        + some_of([escaped(name) for name in same])
        for number, same in numbered.items()
        if len(same) > 1
    ]
    return {number: same[0] for number, same in numbered.items()}, problems


def missing_ranges(numbers: Iterable[int]) -> list[tuple[int, int]]:
    """Return the first and last of each run of numbers that rising numbers leave out.

    Examples
    --------
    >>> missing_ranges([3, 4, 7, 9])
    [(5, 6), (8, 8)]
    """
    return [(a + 1, b - 1) for a, b in pairwise(numbers) if b > a + 1]


def gone(numbers: Collection[int]) -> list[int]:
    """Return the numbers that rising numbers leave out; none where these are no slice numbers."""
    gaps = missing_ranges(numbers)
    if sum(last - first + 1 for first, last in gaps) > MOST_SLICES:
        return []
    return [number for first, last in gaps for number in range(first, last + 1)]


def doubtful_numbers(numbers: Collection[int], allow_missing: bool) -> list[str]:
    """Say what is wrong with rising numbers as a whole: gaps, or numbers of something else."""
    gaps = missing_ranges(numbers)
    missing = sum(last - first + 1 for first, last in gaps)
    if missing > MOST_SLICES or max(numbers, default=0) > MOST_NUMBER:
        return [
            f"numbers run from {min(numbers)} to {max(numbers)}: no slice numbers? "
            "(the last digits in each name are taken)"
        ]
    if gaps and not allow_missing:
        return [
            f"{counted(missing, 'missing slice numbers')}: {spelled(gaps)} "
            "(--allow-missing reads zeros there)"
        ]
    return []


def spelled(ranges: list[tuple[int, int]]) -> str:
    """Write ranges as a person would: 5-6, 8."""
    return some_of([f"{a}-{b}" if b > a else f"{a}" for a, b in ranges], RANGES)


def read_headers(
    place: str | Remote,
    read: Callable[[File], Header],
    numbered: dict[int, str],
    progress: Progress | None,
) -> dict[int, Header | str]:
    """Read every slice's header, or what is wrong with it, by number."""
    files = [file_in(place, name) for name in numbered.values()]
    found: dict[int, Header | str] = {}
    with ThreadPoolExecutor(THREADS if isinstance(place, str) else THREADS_TO_SERVER) as pool:
        headers = pool.map(partial(header_or_problem, read), files)
        for number, header in zip(numbered, headers, strict=True):
            found[number] = header
            if progress:
                progress(len(found), len(files))
    return found


def header_of(found: Header | str | None) -> Header | None:
    """Narrow to a header, once it is known that none is bad."""
    return found if isinstance(found, Header) else None
