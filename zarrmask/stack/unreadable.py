"""Slices that cannot be read: tried again for a while, then named all at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence

from zarrmask.errors import StackError
from zarrmask.storage.place import redacted

PAUSES = (0.5, 1.5, 4.0, 9.0)
"""Seconds before each further try; what a disk or a network says may be gone by then."""
FEW = 1
"""Further tries of what will hardly be gone: a file that is not there, or not what it was."""
MOST_AT_ONCE = 8
"""Slices at a URL beyond which, where they fail, no more are asked for: the server is gone."""


class UnreadableError(StackError):
    """Slices that cannot be read, however often that was tried; travels between processes.

    Parameters
    ----------
    path : str
        The stack's.
    shape : tuple of int
        Its shape: an image's coarser levels have its path, too.
    why : mapping
        What is wrong, by slice number.
    told : str
        All of it for a person.
    """

    def __init__(
        self, path: str, shape: tuple[int, int, int], why: Mapping[int, str], told: str
    ) -> None:
        super().__init__(path, shape, why, told)
        self.path, self.shape, self.why, self.told = path, shape, dict(why), told

    def __str__(self) -> str:
        return self.told


def try_each(
    read: Callable[[int], None],
    indices: Sequence[int],
    mapped: Callable[..., Iterable[Exception | None]] = map,
    *,
    hopeless: int | None = None,
) -> dict[int, Exception]:
    """Read some slices, those that fail again after a while, up to a quarter of a minute.

    Parameters
    ----------
    read : callable
        Reads the slice at an index.
    indices : sequence of int
    mapped : callable
        As `map`.
    hopeless : int, optional
        Where more than so many fail, no others are tried, and none again.

    Returns
    -------
    dict
        What the last try of each that cannot be read ended with.
    """

    def attempt(index: int) -> Exception | None:
        try:
            read(index)
        except MemoryError:
            raise
        except Exception as error:  # decoders raise what they like
            return error
        return None

    failed: dict[int, Exception] = {}
    for tries, pause in enumerate((0.0, *PAUSES)):
        again = [index for index, error in failed.items() if _may_pass(error, tries)]
        if tries and not again:
            break
        time.sleep(pause)
        wanted = again if tries else indices
        for index, error in zip(wanted, mapped(attempt, wanted), strict=True):
            failed.pop(index, None)
            if error is not None:
                failed[index] = error
            if hopeless is not None and len(failed) > hopeless:
                return failed
    return dict(sorted(failed.items()))


def _may_pass(error: Exception, tries: int) -> bool:
    """Tell whether a try after so many others may end otherwise."""
    if isinstance(error, StackError):
        return False  # it was tried often enough, or is known from the header
    lasting = FileNotFoundError | PermissionError | IsADirectoryError | NotADirectoryError
    return tries <= FEW or (isinstance(error, OSError) and not isinstance(error, lasting))


def reason(error: Exception) -> str:
    """Say for a person, without secrets, what an error means."""
    said = error.strerror if isinstance(error, OSError) else None
    return redacted(str(said or error)) or type(error).__name__
