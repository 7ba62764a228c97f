"""What zarrmask says when it cannot go on: one message for a person, never a traceback."""

import errno
import os
import re
from collections.abc import Sequence

from rich.filesize import decimal

FULL = errno.ENOSPC, errno.EDQUOT
LISTED, NAMED = 20, 5
"""Things that are named in one message, each in a line of its own; in one line."""


class ZarrmaskError(Exception):
    """Something a person can mend: says what was found, what was expected and what to do."""


class StackError(ZarrmaskError):
    """The input stack cannot be read as one volume."""


class CheckpointError(ZarrmaskError):
    """A checkpoint or its model config cannot be used."""


class AnnotationError(ZarrmaskError):
    """COCO annotations, or their images, cannot be used."""


class TrainingError(ZarrmaskError):
    """A training has gone wrong and was stopped; what it had before is kept."""


class SettingsError(ZarrmaskError):
    """A setting is missing, unknown or out of range."""


class OutputError(ZarrmaskError):
    """The output folder cannot be written: in use, not zarrmask's, or of another run."""


class RoomError(ZarrmaskError):
    """The memory, or the space on the output's disk, will not do."""


def system_number(error: BaseException) -> int | None:
    """Number of an error of the operating system; None where it is none.

    Libraries that are not written in Python tell it in their message.

    Examples
    --------
    >>> system_number(RuntimeError("Permission denied (os error 13)"))
    13
    """
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno
    told = re.search(r"\(os error (\d+)\)", str(error))
    return int(told[1]) if told else None


def no_space(error: BaseException) -> str | None:
    """Say what to do where a disk, or a quota, is full; None where an error says something else."""
    if str(error).startswith(_NO_SPACE):  # a worker's, told already
        return str(error)
    full = any(os.strerror(number) in str(error) for number in FULL)
    if not full and system_number(error) not in FULL:
        return None
    return (
        f"{_NO_SPACE} ({error}); "
        "make room, then run the same command again: it goes on from what is kept, if anything is"
    )


_NO_SPACE = "there is no space left on the output's disk, or none that you may use"


def no_memory(error: BaseException) -> str | None:
    """Say what to do where memory ran out; None where an error is zarrmask's own, or another.

    Examples
    --------
    >>> no_memory(ValueError("a number")) is None
    True
    """
    if isinstance(error, ZarrmaskError):
        return None
    told = str(error) or "an allocation failed"
    of_python = isinstance(error, MemoryError) or system_number(error) == errno.ENOMEM
    if not of_python and not _NO_MEMORY.search(f"{type(error)} {told}"):
        return None
    return (
        f"memory ran out ({told.splitlines()[0][:200]}). Take less of it at a time: smaller images "
        "or batches (train: INPUT.MIN_SIZE_TRAIN, SOLVER.IMS_PER_BATCH), fewer workers; then run "
        "the same command again: it goes on from what is kept, if anything is"
    )


_NO_MEMORY = re.compile(r"\bOutOfMemoryError\b|can't allocate memory|Failed to allocate \d+ bytes")
"""Of CUDA and of processors, as torch tells it; of OpenCV."""


def first_of(lines: Sequence[str], most: int = LISTED) -> list[str]:
    """The first of many lines of a message, and one that says how many more there are.

    Examples
    --------
    >>> first_of(["slice"] * 25)[-2:]
    ['slice', '... and 5 more']
    """
    more = [f"... and {len(lines) - most:,} more"] if len(lines) > most else []
    return [*lines[:most], *more]


def some_of(names: Sequence[object], most: int = NAMED) -> str:
    """The first of many names in a line, and how many more there are.

    Examples
    --------
    >>> some_of(["1.tif", "01.tif"]), some_of(list("abcdefg"))
    ('1.tif, 01.tif', 'a, b, c, d, e and 2 more')
    """
    more = f" and {len(names) - most:,} more" if len(names) > most else ""
    return ", ".join(map(str, names[:most])) + more


def listed(numbers: Sequence[int]) -> str:
    """Slice numbers for a person, the first of them where there are many.

    Examples
    --------
    >>> listed([3, 5, 8, 9])
    '3, 5, 8, 9'
    """
    return some_of(numbers, LISTED)


def counted(count: int, things: str) -> str:
    """A number of things for a person.

    Parameters
    ----------
    count : int
    things : str
        Their name in the plural, which ends in an s.

    Examples
    --------
    >>> counted(27_000, "slices"), counted(1, "missing slices")
    ('27,000 slices', '1 missing slice')
    """
    return f"{count:,} {things.removesuffix('s') if count == 1 else things}"


def sized(count: int) -> str:
    """Bytes for a person.

    Examples
    --------
    >>> sized(3_540_000_000_000)
    '3.5 TB'
    """
    return decimal(count, precision=1)


def escaped(text: str) -> str:
    """Make a file name safe to print: line breaks, control and undecodable characters escaped."""
    return text if text.isprintable() else ascii(text)
