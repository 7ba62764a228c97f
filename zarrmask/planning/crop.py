"""Ranges of slices, rows and columns: what is wanted of what is there."""

from __future__ import annotations

from zarrmask.errors import SettingsError

UNITS = {"z": "slices", "from": "slices", "y": "rows", "x": "columns"}


def crop(
    axis: str, wanted: tuple[int | None, int | None], there: tuple[int, int], of: str
) -> tuple[int, int]:
    """Give the range that is wanted; where an end is open, that is the end of what is there.

    Parameters
    ----------
    axis : "z", "y" or "x"
        As its option is called; "from" is a slice, too.
    wanted, there : (first, stop)
        Numbers of slices, rows or columns, `stop` excluded.
    of : str
        What is cropped, for the error.

    Raises
    ------
    SettingsError
        Where what is wanted is empty, or not all there.

    Examples
    --------
    >>> crop("z", (None, 20), (10, 300), "stack")
    (10, 20)
    """
    first, stop = there
    begin = first if wanted[0] is None else wanted[0]
    end = stop if wanted[1] is None else wanted[1]
    if not first <= begin < end <= stop:
        raise SettingsError(
            f"--{axis} {begin}:{end} is not in the {of}, whose {UNITS[axis]} are numbered {first} "
            f"to {stop - 1}; choose within {first}:{stop}"
        )
    return begin, end
