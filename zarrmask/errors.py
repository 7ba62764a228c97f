"""What zarrmask says when it cannot go on: one message for a person, never a traceback."""

from collections.abc import Sequence

LISTED = 20
"""Things that are named in one message."""


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


def first_of(lines: Sequence[str]) -> list[str]:
    """The first of many lines of a message, and one that says how many more there are.

    Examples
    --------
    >>> first_of(["slice"] * 25)[-2:]
    ['slice', '... and 5 more']
    """
    more = [f"... and {len(lines) - LISTED:,} more"] if len(lines) > LISTED else []
    return [*lines[:LISTED], *more]
